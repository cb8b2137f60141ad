"""Parts of what was shown, each with what it is worth and how sure that is."""

import math

import numpy as np
import pytest

from ranking.metrics import auc, ece
from training.off_policy.slices import auc_error, ece_by_chance, slices


def _exposures(seed: int, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Labels of probabilities that are exactly right."""
    random = np.random.default_rng(seed)
    probability_N = random.beta(1, 6, count)
    return random.random(count) < probability_N, probability_N


def test_every_part_is_measured_on_its_own_exposures() -> None:
    label_N, probability_N = _exposures(0, 3000)
    surface_N = np.where(np.arange(3000) % 3 == 0, "search", "home")
    found = {(part.by, part.value): part for part in slices({"surface": surface_N.tolist()}, label_N, probability_N)}
    assert list(found) == [("all", ""), ("surface", "home"), ("surface", "search")]
    for value, part in (("home", found["surface", "home"]), ("search", found["surface", "search"])):
        at_N = surface_N == value
        assert part.exposures == at_N.sum()
        assert part.auc == auc(label_N[at_N], probability_N[at_N])
        assert part.ece == ece(label_N[at_N], probability_N[at_N], bins=10)
        assert part.auc_low < part.auc < part.auc_high


def test_of_many_values_the_most_frequent_are_told() -> None:
    label_N, probability_N = _exposures(1, 1000)
    value_N = np.random.default_rng(0).zipf(1.5, 1000).clip(max=40).astype(np.str_)
    told = [part.value for part in slices({"item": value_N.tolist()}, label_N, probability_N)][1:]
    values, count = np.unique(value_N, return_counts=True)
    assert len(told) == 6
    assert told == sorted(told)
    assert min(count[np.isin(values, told)]) >= max(count[~np.isin(values, told)])


def test_a_part_where_all_ended_alike_has_no_auc() -> None:
    (everything,) = slices({}, np.zeros(5, np.bool_), np.linspace(0.1, 0.5, 5))
    assert math.isnan(everything.auc)
    assert math.isnan(everything.auc_low)
    assert everything.ece > 0


def test_the_error_of_an_auc_is_how_far_it_strays() -> None:
    drawn = [_exposures(seed, 600) for seed in range(300)]
    strays = np.std([auc(*each) for each in drawn])
    assert np.mean([auc_error(*each) for each in drawn]) == pytest.approx(strays, rel=0.15)


def test_chance_explains_the_calibration_error_of_probabilities_that_are_right_and_not_of_others() -> None:
    drawn = [_exposures(seed, 600) for seed in range(200)]
    by_chance = np.mean([ece_by_chance(*each) for each in drawn])
    assert np.mean([ece(*each, bins=10) for each in drawn]) == pytest.approx(by_chance, rel=0.1)
    assert np.mean([ece(label_N, probability_N / 2, bins=10) for label_N, probability_N in drawn]) > 2 * by_chance
