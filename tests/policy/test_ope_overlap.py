"""Figures of overlap, what they refuse, and the calibration of propensities.

Shape letters: N rows, A actions.
"""

import math
from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from policy.ope import (
    InsufficientOverlap,
    Overlap,
    diagnose,
    faults,
    least_sample_size,
    propensity_bins,
    require_overlap,
    thin_support,
)

LOGGED_N = np.array([0.5, 0.25, 0.1, 1.0])
TARGET_N = np.array([0.25, 0.5, 0.4, 0.0])
WEIGHT_N = np.array([0.5, 2.0, 4.0, 0.0])
GOOD = Overlap(
    n=1000,
    mean_weight=1.0,
    mean_weight_error=0.01,
    effective_sample_size=800.0,
    max_share=0.01,
    outside_support=0.1,
    thin_support=0.05,
    shown_actions=0.9,
    shown_actions_error=0.05,
    miscalibration=1.5,
)


def test_overlap_figures_are_those_of_the_weights() -> None:
    overlap = diagnose(LOGGED_N, TARGET_N, outside_support=0.1)
    assert overlap.mean_weight == pytest.approx(6.5 / 4)
    assert overlap.mean_weight_error == pytest.approx(WEIGHT_N.std(ddof=1) / 2)
    assert overlap.effective_sample_size == pytest.approx(6.5**2 / 20.25)
    assert overlap.max_share == pytest.approx(4 / 6.5)
    assert (overlap.outside_support, overlap.n) == (0.1, 4)


def test_thin_overlap_is_refused_with_the_figures() -> None:
    good_N = np.full(200, 0.5)
    require_overlap(diagnose(good_N, good_N))
    with pytest.raises(InsufficientOverlap, match=r"effective sample size 199.0 of 199 rows \(at least 200 needed\)"):
        require_overlap(diagnose(good_N[1:], good_N[1:]))
    target_N = np.full(50_000, 1e-6)
    target_N[:499] = 0.5
    with pytest.raises(InsufficientOverlap, match="at least 500 needed"):
        require_overlap(diagnose(np.full(50_000, 0.5), target_N))
    logged_N = np.full(10_000, 0.5)
    logged_N[0] = 0.0005
    with pytest.raises(InsufficientOverlap, match=r"one row's share of the weight 9\.1%"):
        require_overlap(diagnose(logged_N, np.full(10_000, 0.5)))
    with pytest.raises(InsufficientOverlap, match=r"effective sample size 0\.0") as caught:
        require_overlap(diagnose(good_N, np.zeros(200)))
    assert caught.value.overlap.max_share == 1
    assert len(caught.value.faults) == 3, "no rows, one share, and a mean weight of 0"


def test_thin_support_is_the_mass_that_cut_weights_lack() -> None:
    """Exactly, and as the mean of the weights of ever so many draws says."""
    rng = np.random.default_rng(0)
    logged_NA, target_NA = (rng.dirichlet(np.full(6, 0.3), 40) for _ in range(2))
    before_N = rng.exponential(size=40)
    weight_NA = before_N[:, None] * target_NA / logged_NA
    for most in (0.5, 3.0, 30.0):
        kept_N = (logged_NA * np.minimum(weight_NA, most)).sum(axis=1)
        expected = 1 - kept_N.sum() / np.minimum(before_N, most).sum()
        assert thin_support(logged_NA, target_NA, most=most, before_N=before_N) == pytest.approx(expected)
    row_R = rng.integers(40, size=200_000)
    drawn_R = (rng.random((len(row_R), 1)) > logged_NA.cumsum(axis=1)[row_R]).sum(axis=1)
    weight_R = np.minimum((target_NA / logged_NA)[row_R, np.minimum(drawn_R, 5)], 3.0)
    assert thin_support(logged_NA, target_NA, most=3.0) == pytest.approx(1 - weight_R.mean(), abs=0.02)


def test_nothing_is_thin_where_both_draw_alike_and_all_where_the_target_wants_what_never_comes() -> None:
    even_NA = np.full((5, 4), 0.25)
    assert thin_support(even_NA, even_NA, most=1.0) == 0
    left_NA, right_NA = np.tile([1.0, 0.0], (5, 1)), np.tile([0.0, 1.0], (5, 1))
    assert thin_support(left_NA, right_NA, most=1e6) == 1
    assert thin_support(left_NA, left_NA, most=10.0, before_N=np.zeros(5)) == 1, "nothing leads there"


def test_a_log_needs_more_rows_where_nobody_measured_what_it_lacks() -> None:
    assert least_sample_size(GOOD) == 100
    assert least_sample_size(replace(GOOD, thin_support=math.nan)) == 200
    assert least_sample_size(replace(GOOD, n=50_000)) == 500


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"effective_sample_size": 99.0}, "effective sample size 99.0 of 1000 rows"),
        ({"effective_sample_size": 199.0, "thin_support": math.nan}, "effective sample size 199.0 of 1000 rows"),
        ({"thin_support": 0.11}, "target where the log is thin 11.0%"),
        ({"n": 50_000, "effective_sample_size": 499.0}, "at least 500 needed"),
        ({"max_share": 0.051}, "one row's share of the weight 5.1%"),
        ({"mean_weight": 1.15}, "mean weight 1.150"),
        ({"mean_weight": 0.85}, "mean weight 0.850"),
        ({"outside_support": 0.31}, "target outside the log's support 31.0%"),
        ({"shown_actions": 1.4}, r"E\[1/p\] over the number of actions 1.400"),
        ({"miscalibration": 4.5}, "propensities off what happened 4.5 standard errors"),
    ],
)
def test_every_figure_can_refuse_by_itself(change: dict[str, float], told: str) -> None:
    require_overlap(GOOD)
    with pytest.raises(InsufficientOverlap, match=told) as caught:
        require_overlap(replace(GOOD, **change))  # type: ignore[arg-type]
    assert len(caught.value.faults) == 1


def test_what_was_not_measured_refuses_nothing_and_what_chance_explains_neither() -> None:
    nan = math.nan
    for fine in (
        replace(GOOD, shown_actions=nan, shown_actions_error=nan, miscalibration=nan),
        replace(GOOD, mean_weight=1.15, mean_weight_error=0.02),
        replace(GOOD, shown_actions=1.25, shown_actions_error=0.05),
        replace(GOOD, shown_actions=0.1),
    ):
        assert faults(fine) == ()


def drawn(rng: np.random.Generator, distribution_NA: NDArray[np.float64]) -> NDArray[np.int64]:
    action_N: NDArray[np.int64] = (distribution_NA.cumsum(axis=1) < rng.random((len(distribution_NA), 1))).sum(axis=1)
    return action_N


def test_the_inverse_propensity_is_the_number_of_actions_that_can_be_shown() -> None:
    rng = np.random.default_rng(0)
    distribution_NA = rng.dirichlet(np.full(6, 3.0), 20_000)
    action_N = drawn(rng, distribution_NA)
    logged_N = distribution_NA[np.arange(20_000), action_N]
    overlap = diagnose(logged_N, logged_N, actions_N=6)
    assert abs(overlap.shown_actions - 1) < 4 * overlap.shown_actions_error
    assert diagnose(logged_N, logged_N, actions_N=np.full(20_000, 12)).shown_actions == pytest.approx(
        overlap.shown_actions / 2
    ), "half of them are never shown"
    assert math.isnan(diagnose(logged_N, logged_N).shown_actions)
    too_small = diagnose(logged_N / 2, logged_N / 2, actions_N=6)
    assert any("E[1/p]" in each for each in faults(too_small)), "nothing else can tell: the weights are all 1"
    assert not faults(overlap)


def test_draws_from_a_distribution_are_calibrated_and_those_from_another_are_not() -> None:
    rng = np.random.default_rng(1)
    distribution_NA = rng.dirichlet(np.full(20, 0.5), 3_000)
    action_N = drawn(rng, distribution_NA)
    bins = propensity_bins(distribution_NA, action_N)
    assert len(bins) == 10
    assert sum(each.observed for each in bins) == 3_000
    assert sum(each.expected for each in bins) == pytest.approx(3_000)
    for each in bins:
        assert each.expected == pytest.approx(300, abs=1.5)
        assert abs(each.errors) < 4
    assert [each.propensity for each in bins] == sorted(each.propensity for each in bins)
    sharper_NA = distribution_NA**1.3 / (distribution_NA**1.3).sum(axis=1, keepdims=True)
    wrong = propensity_bins(sharper_NA, action_N)
    assert diagnose(np.full(300, 0.5), np.full(300, 0.5), bins=bins).miscalibration < 4
    with pytest.raises(InsufficientOverlap, match="propensities off what happened"):
        require_overlap(diagnose(np.full(300, 0.5), np.full(300, 0.5), bins=wrong))


def test_bins_are_fewer_where_rows_are_few_and_certainty_is_no_error() -> None:
    certain_NA = np.tile([1.0, 0.0], (25, 1))
    (only,) = propensity_bins(certain_NA, np.zeros(25, np.int64), bins=1)
    assert (only.propensity, only.expected, only.observed, only.errors) == (1, 25, 25, 0)
    half_NA = np.full((25, 2), 0.5)
    assert len(propensity_bins(half_NA, np.zeros(25, np.int64))) == 2
    assert len(propensity_bins(half_NA[:3], np.zeros(3, np.int64))) == 1


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: diagnose([0.5], [0.5], outside_support=1.5), "outside_support is 1.5"),
        (lambda: diagnose([0.0], [0.5]), r"logged_propensity_N\[0\] is 0; a probability above 0"),
        (lambda: diagnose([0.5], [0.5, 0.5]), r"target_propensity_N has shape \(2,\)"),
        (lambda: diagnose([0.5], [0.5], actions_N=[2, 2]), r"actions_N has shape \(2,\)"),
        (lambda: diagnose([0.5], [0.5], actions_N=0), r"actions_N\[0\] is 0; at least 1"),
        (lambda: propensity_bins([[0.5, 0.5]], [2]), "action_N holds 2; positions go from 0 to 1"),
        (lambda: propensity_bins([[1.0, 0.0]], [1]), r"distribution_NA\[action_N\]\[0\] is 0; a probability above 0"),
        (lambda: propensity_bins([[0.5, 0.5]], [0], bins=0), "bins is 0; it must be at least 1"),
        (lambda: propensity_bins([[0.5, 0.5]], [0, 1]), "distribution_NA has shape"),
    ],
)
def test_bad_input_is_refused_by_name(call: object, message: str) -> None:
    assert callable(call)
    with pytest.raises(ValueError, match=message):
        call()
