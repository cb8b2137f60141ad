"""Slate metrics against their closed forms and plain definitions."""

import math
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from policy_cases import unit_vectors

from policy.metrics import (
    category_coverage,
    exposure_gini,
    fresh_share,
    intra_list_diversity,
    novelty,
    time_to_impressions,
)
from policy.value import DAY_MS


def test_diversity_is_the_mean_distance_of_pairs() -> None:
    vector_KD = unit_vectors(np.random.default_rng(0), 7, 3)
    pairs = [1 - float(vector_KD[a] @ vector_KD[b]) for a, b in combinations(range(7), 2)]
    assert intra_list_diversity(vector_KD) == pytest.approx(np.mean(pairs))
    assert intra_list_diversity(5 * vector_KD) == pytest.approx(np.mean(pairs))


def test_diversity_of_copies_strangers_and_opposites() -> None:
    assert intra_list_diversity(np.ones((4, 3))) == pytest.approx(0)
    assert intra_list_diversity(np.eye(4)) == pytest.approx(1)
    assert intra_list_diversity([[1.0, 0], [-1.0, 0]]) == pytest.approx(2)


def test_diversity_is_undefined_without_a_pair_of_directions() -> None:
    assert math.isnan(intra_list_diversity(np.eye(3)[:1]))
    assert math.isnan(intra_list_diversity(np.zeros((0, 3))))
    assert math.isnan(intra_list_diversity([[1.0, 0.0], [0.0, 0.0]]))


def test_coverage_counts_known_categories_once() -> None:
    assert category_coverage([1, 1, 3, 0], 4) == 0.5
    assert category_coverage([], 4) == 0
    assert math.isnan(category_coverage([1], 0))


def test_gini_of_equal_shares_and_of_one_that_has_all() -> None:
    assert exposure_gini(np.full(9, 3)) == pytest.approx(0)
    assert exposure_gini([0, 0, 0, 5]) == pytest.approx(3 / 4)
    assert math.isnan(exposure_gini([]))
    assert math.isnan(exposure_gini([0, 0]))
    with pytest.raises(ValueError, match=r"exposure_I holds -1.0 to 2.0"):
        exposure_gini([2, -1])


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=30).filter(any))
def test_gini_is_half_the_relative_mean_absolute_difference(exposures: list[int]) -> None:
    exposure_I = np.array(exposures, np.float64)
    difference = np.abs(exposure_I[:, None] - exposure_I[None]).mean()
    assert exposure_gini(exposures) == pytest.approx(difference / (2 * exposure_I.mean()), abs=1e-12)


def test_novelty_is_the_bits_that_an_item_is_worth() -> None:
    assert novelty([0, 5], np.full(8, 10)) == pytest.approx(3)
    assert novelty([1], [2, 0]) == pytest.approx(2)
    assert novelty([1], [2, 0]) > novelty([0, 1], [2, 0]) > novelty([0], [2, 0])
    assert math.isnan(novelty([], [2, 0]))


def test_fresh_share_counts_items_up_to_the_age() -> None:
    assert fresh_share([0, DAY_MS, DAY_MS + 1, -5], 1) == 0.75
    assert math.isnan(fresh_share([], 1))


@given(st.lists(st.tuples(st.integers(0, 4), st.integers(0, 50)), max_size=40), st.integers(1, 4))
def test_the_wait_for_n_impressions_is_read_off_the_items_own_list(shown: list[tuple[int, int]], count: int) -> None:
    published = [0, 10, 20, 30, 0, 5]
    waited_I = time_to_impressions(
        [row for row, _ in shown], [time for _, time in shown], published_ms_I=published, count=count
    )
    for row, waited in enumerate(waited_I.tolist()):
        times = sorted(time for shown_row, time in shown if shown_row == row)
        if len(times) < count:
            assert math.isnan(waited)
        else:
            assert waited == max(times[count - 1] - published[row], 0)


def test_the_wait_for_no_impression_is_refused() -> None:
    with pytest.raises(ValueError, match="count is 0; at least 1"):
        time_to_impressions([0], [0], published_ms_I=[0], count=0)
