"""Utility and freshness against their closed forms."""

import numpy as np
import pytest

from policy.value import DAY_MS, freshness, utility


def test_utility_is_the_weighted_sum_of_probabilities() -> None:
    probability_NA = np.array([[0.5, 0.1, 0.2], [0.25, 0.0, 0.0]], np.float32)
    utility_N = utility(probability_NA, action_names=("click", "like", "hide"), weights={"click": 1, "hide": -2})
    np.testing.assert_allclose(utility_N, [0.5 - 0.4, 0.25], rtol=1e-6)
    assert utility_N.dtype == np.float32


def test_a_candidates_utility_does_not_depend_on_its_company() -> None:
    probability_NA = np.random.default_rng(0).random((301, 5)).astype(np.float32)
    actions = ("a", "b", "c", "d", "e")
    weights = {"a": 0.3, "b": 1.7, "c": 0.9, "e": 2.3}
    together_N = utility(probability_NA, action_names=actions, weights=weights)
    for n in range(0, 301, 50):
        alone_N = utility(probability_NA[n : n + 1], action_names=actions, weights=weights)
        assert alone_N[0] == together_N[n]


def test_a_weight_of_an_action_that_is_not_predicted_is_refused() -> None:
    with pytest.raises(ValueError, match="weights name 'like'; the ranker predicts click, hide"):
        utility(np.ones((1, 2), np.float32), action_names=("click", "hide"), weights={"click": 1, "like": 1})


def test_a_probability_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ValueError, match="utility of candidate 1 is nan"):
        utility(np.array([[0.5], [np.nan]], np.float32), action_names=("click",), weights={"click": 1})


def test_freshness_halves_with_every_half_life_and_never_exceeds_one() -> None:
    age_ms_N = np.array([-5 * DAY_MS, 0, 3 * DAY_MS, 6 * DAY_MS, 10**15])
    np.testing.assert_allclose(freshness(age_ms_N, 3.0), [1, 1, 0.5, 0.25, 0], atol=1e-12)
