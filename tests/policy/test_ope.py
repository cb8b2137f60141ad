"""Estimators of single actions against closed forms, exact expectations and simulated logs; intervals; bad input.

Shape letters: N rows, A actions, C contexts.
"""

import math
from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from policy import ope
from policy.ope import Estimate, Interval

REWARD_N = np.array([1.0, 0.0, 2.0, 1.0])
LOGGED_N = np.array([0.5, 0.25, 0.1, 1.0])
TARGET_N = np.array([0.25, 0.5, 0.4, 0.0])
WEIGHT_N = np.array([0.5, 2.0, 4.0, 0.0])
MODELLED: Mapping[str, Callable[..., Estimate]] = {
    "dm": ope.dm,
    "dr": ope.dr,
    "sndr": ope.sndr,
    "switch_dr": lambda *args, **kwargs: ope.switch_dr(*args, threshold=2.0, **kwargs),
    "dr_os": lambda *args, **kwargs: ope.dr_os(*args, lam=4.0, **kwargs),
    "mrdr": ope.mrdr,
}
WEIGHTED: Mapping[str, Callable[..., Estimate]] = {"replay": ope.replay, "ips": ope.ips, "snips": ope.snips}


def test_inverse_propensity_scoring_is_the_weighted_mean() -> None:
    estimate = ope.ips(REWARD_N, LOGGED_N, TARGET_N)
    term_N = WEIGHT_N * REWARD_N
    half = 1.959963984540054 * term_N.std(ddof=1) / 2
    assert estimate.value == pytest.approx((0.5 + 8) / 4)
    assert (estimate.low, estimate.high) == pytest.approx((estimate.value - half, estimate.value + half))
    assert estimate.effective_sample_size == pytest.approx(6.5**2 / (0.25 + 4 + 16))
    assert (estimate.max_weight, estimate.n) == (4.0, 4)


def test_clipping_bounds_the_weights() -> None:
    estimate = ope.ips(REWARD_N, LOGGED_N, TARGET_N, clip=2.0)
    assert estimate.value == pytest.approx((0.5 + 4) / 4)
    assert estimate.max_weight == 2.0


def test_self_normalising_divides_by_the_sum_of_weights() -> None:
    estimate = ope.snips(REWARD_N, LOGGED_N, TARGET_N)
    value = 8.5 / 6.5
    influence_N = WEIGHT_N * (REWARD_N - value) / WEIGHT_N.mean()
    half = 1.959963984540054 * math.sqrt((influence_N**2).sum() / 3 / 4)
    assert estimate.value == pytest.approx(value)
    assert estimate.high - estimate.value == pytest.approx(half)
    shifted = ope.snips(REWARD_N + 10, LOGGED_N, TARGET_N)
    assert shifted.value == pytest.approx(value + 10)
    assert shifted.high - shifted.low == pytest.approx(estimate.high - estimate.low)


def test_the_policy_that_logged_is_worth_the_mean_reward() -> None:
    rng = np.random.default_rng(0)
    reward_N, logged_N = rng.random(50), rng.uniform(0.1, 1, 50)
    for call in (ope.ips, ope.snips):
        estimate = call(reward_N, logged_N, logged_N)
        assert estimate.value == pytest.approx(reward_N.mean())
        assert estimate.effective_sample_size == pytest.approx(50)
        assert estimate.max_weight == 1


def test_doubly_robust_is_the_model_plus_its_weighted_error() -> None:
    action_N = np.array([0, 1, 1])
    target_NA = np.array([[0.2, 0.8], [0.5, 0.5], [1.0, 0.0]])
    predicted_NA = np.array([[1.0, 2.0], [0.0, 1.0], [3.0, 0.5]])
    reward_N, logged_N = np.array([1.5, 0.0, 1.0]), np.array([0.4, 0.5, 0.2])
    expected_N = np.array([1.8, 0.5, 3.0])
    correction_N = np.array([0.5 * 0.5, 1.0 * -1.0, 0.0])
    args = (reward_N, action_N, logged_N, target_NA, predicted_NA)
    assert ope.dm(*args).value == pytest.approx(expected_N.mean())
    assert ope.dr(*args).value == pytest.approx((expected_N + correction_N).mean())
    without = (reward_N, action_N, logged_N, target_NA, np.zeros((3, 2)))
    target_N = target_NA[np.arange(3), action_N]
    assert ope.dr(*without).value == pytest.approx(ope.ips(reward_N, logged_N, target_N).value)


def test_the_doubly_robust_family_differs_in_what_it_makes_of_weights() -> None:
    rng = np.random.default_rng(5)
    n, actions = 60, 4
    logged_NA, target_NA = rng.dirichlet(np.ones(actions), (2, n))
    action_N = rng.integers(actions, size=n)
    row_N, reward_N, predicted_NA = np.arange(n), rng.random(n), rng.random((n, actions))
    logged_N = logged_NA[row_N, action_N]
    weight_N = target_NA[row_N, action_N] / logged_N
    expected_N = (target_NA * predicted_NA).sum(axis=1)
    residual_N = reward_N - predicted_NA[row_N, action_N]
    args = (reward_N, action_N, logged_N, target_NA, predicted_NA)
    assert ope.sndr(*args).value == pytest.approx(expected_N.mean() + (weight_N @ residual_N) / weight_N.sum())
    kept_N = weight_N * (weight_N <= 1.2)
    switched = ope.switch_dr(*args, threshold=1.2)
    assert switched.value == pytest.approx((expected_N + kept_N * residual_N).mean())
    assert switched.max_weight == kept_N.max() <= 1.2 < weight_N.max()
    shrunk_N = 3 * weight_N / (weight_N**2 + 3)
    assert ope.dr_os(*args, lam=3).value == pytest.approx((expected_N + shrunk_N * residual_N).mean())
    for without, all_of_it in ((0.0, math.inf), (0, 1e300)):
        assert ope.switch_dr(*args, threshold=without).value == pytest.approx(ope.dm(*args).value)
        assert ope.switch_dr(*args, threshold=all_of_it).value == pytest.approx(ope.dr(*args).value)
        assert ope.dr_os(*args, lam=without).value == pytest.approx(ope.dm(*args).value)
        assert ope.dr_os(*args, lam=all_of_it).value == pytest.approx(ope.dr(*args).value)


def test_replay_is_the_mean_reward_where_the_target_agrees() -> None:
    reward_N, uniform_N = np.array([1.0, 5.0, 3.0, 7.0]), np.full(4, 0.25)
    agreed = ope.replay(reward_N, uniform_N, [1.0, 0.0, 1.0, 0.0])
    assert (agreed.value, agreed.effective_sample_size, agreed.n) == (2.0, 2.0, 4)
    mixed = ope.replay(reward_N, uniform_N, [0.5, 0.0, 1.0, 0.5])
    assert mixed.value == pytest.approx((0.5 + 3 + 3.5) / 2)
    assert math.isnan(ope.replay(reward_N, uniform_N, np.zeros(4)).value), "it agrees nowhere"


def test_mrdr_is_doubly_robust_with_a_model_that_the_other_half_of_the_rows_has_corrected() -> None:
    rng = np.random.default_rng(6)
    n, actions = 80, 3
    logged_NA, target_NA = rng.dirichlet(np.ones(actions), (2, n))
    action_N = (logged_NA.cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
    row_N, reward_N, model_NA = np.arange(n), rng.random(n), rng.random((n, actions))
    logged_N, target_N = logged_NA[row_N, action_N], target_NA[row_N, action_N]
    corrected_NA = np.empty_like(model_NA)
    for half in (0, 1):
        fit_N = row_N[row_N % 2 != half]
        weight = target_N[fit_N] * (1 - logged_N[fit_N]) / logged_N[fit_N] ** 2
        told_N = model_NA[row_N, action_N][fit_N]
        mean_q, mean_r = np.average(told_N, weights=weight), np.average(reward_N[fit_N], weights=weight)
        slope = (weight @ ((told_N - mean_q) * (reward_N[fit_N] - mean_r))) / (weight @ (told_N - mean_q) ** 2)
        corrected_NA[half::2] = mean_r + slope * (model_NA[half::2] - mean_q)
    given = (reward_N, action_N, logged_N, target_NA)
    assert ope.mrdr(*given, model_NA).value == pytest.approx(ope.dr(*given, corrected_NA).value)
    assert ope.mrdr(*given, model_NA).high == pytest.approx(ope.dr(*given, corrected_NA).high)


def test_mrdr_has_no_error_where_level_and_scale_of_the_model_are_all_that_is_wrong() -> None:
    rng = np.random.default_rng(7)
    n = 60
    mean_NA = rng.random((n, 3))
    logged_A, target_NA = np.array([0.5, 0.3, 0.2]), rng.dirichlet(np.ones(3), n)
    action_N = rng.choice(3, n, p=logged_A)
    args = (mean_NA[np.arange(n), action_N], action_N, logged_A[action_N], target_NA, 5 - 3 * mean_NA)
    truth = (target_NA * mean_NA).sum(axis=1).mean()
    assert ope.mrdr(*args).value == pytest.approx(truth, abs=1e-9)
    assert abs(ope.dr(*args).value - truth) > 0.05
    one = tuple(each[:1] for each in args)
    assert ope.mrdr(*one).value == pytest.approx(ope.dr(*one).value), "one row tells nothing about itself"
    certain = (args[0], action_N, np.ones(n), *args[3:])
    assert ope.mrdr(*certain).value == pytest.approx(ope.dr(*certain).value), "a log without chance needs no model"


def test_the_expectation_over_every_log_that_could_have_been_is_the_truth() -> None:
    """All 2^6 logs of two actions in six rows, each with its probability: no chance is left."""
    rng = np.random.default_rng(7)
    n = 6
    reward_NA, predicted_NA = rng.normal(size=(2, n, 2))
    logged_NA, target_NA = rng.dirichlet(np.ones(2), (2, n))
    truth = (target_NA * reward_NA).sum(axis=1).mean()
    expected = dict.fromkeys(("ips", "dr", "mrdr"), 0.0)
    row_N = np.arange(n)
    for actions in product(range(2), repeat=n):
        action_N = np.array(actions)
        logged_N, target_N, reward_N = (each[row_N, action_N] for each in (logged_NA, target_NA, reward_NA))
        probability = logged_N.prod()
        expected["ips"] += probability * ope.ips(reward_N, logged_N, target_N).value
        for name in ("dr", "mrdr"):
            estimate = MODELLED[name](reward_N, action_N, logged_N, target_NA, predicted_NA)
            expected[name] += probability * estimate.value
    assert expected == pytest.approx(dict.fromkeys(expected, truth), abs=1e-9)


def test_normalised_estimators_are_right_on_a_log_that_is_exactly_as_expected() -> None:
    """Every action of every context as often as the logging policy shows it: nothing is left to chance."""
    logged_CA = np.array([[2, 3, 5], [4, 4, 2]]) / 10
    target_CA = np.array([[0.5, 0.25, 0.25], [0.0, 0.9, 0.1]])
    mean_CA, model_CA = np.array([[1.0, 0.5, 0.2], [0.3, 0.8, 0.1]]), np.array([[0.1, 0.9, 0.4], [0.5, 0.5, 0.6]])
    context_N = np.repeat([0, 1], 10)
    action_N = np.concatenate([np.repeat(range(3), counts) for counts in ([2, 3, 5], [4, 4, 2])])
    reward_N, logged_N = mean_CA[context_N, action_N], logged_CA[context_N, action_N]
    truth = (target_CA * mean_CA).sum() / 2
    for name, value in {
        "ips": ope.ips(reward_N, logged_N, target_CA[context_N, action_N]).value,
        "snips": ope.snips(reward_N, logged_N, target_CA[context_N, action_N]).value,
        "dr": ope.dr(reward_N, action_N, logged_N, target_CA[context_N], model_CA[context_N]).value,
        "sndr": ope.sndr(reward_N, action_N, logged_N, target_CA[context_N], model_CA[context_N]).value,
        "replay": ope.replay(mean_CA.ravel(), np.full(6, 1 / 3), target_CA.ravel()).value,
    }.items():
        assert value == pytest.approx(truth), name


class Bandit:
    """Contexts, a logging and a target policy over actions, and rewards that are known in the mean."""

    def __init__(self) -> None:
        rng = np.random.default_rng(3)
        self.mean_CA = rng.uniform(0.05, 0.6, (6, 4))
        self.logging_CA = rng.dirichlet(np.full(4, 3.0), 6) * 0.8 + 0.05
        self.target_CA = rng.dirichlet(np.full(4, 1.0), 6)
        self.model_CA = self.mean_CA + rng.normal(0, 0.2, (6, 4))
        self.truth = float((self.target_CA * self.mean_CA).sum(axis=1).mean())

    def log(self, n: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.int64]]:
        """Rewards, contexts, actions."""
        rng = np.random.default_rng(seed)
        context_N = rng.integers(6, size=n)
        action_N = (self.logging_CA[context_N].cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
        return (rng.random(n) < self.mean_CA[context_N, action_N]).astype(np.float64), context_N, action_N

    def estimates(self, n: int, seed: int, interval: Interval = "delta") -> dict[str, Estimate]:
        reward_N, context_N, action_N = self.log(n, seed)
        logged_N, target_NA = self.logging_CA[context_N, action_N], self.target_CA[context_N]
        weighted = (reward_N, logged_N, self.target_CA[context_N, action_N])
        modelled = (reward_N, action_N, logged_N, target_NA, self.model_CA[context_N])
        return {
            "ips": ope.ips(*weighted, interval=interval),
            "snips": ope.snips(*weighted, interval=interval),
            "dr": ope.dr(*modelled, interval=interval),
            "sndr": ope.sndr(*modelled, interval=interval),
            "mrdr": ope.mrdr(*modelled, interval=interval),
        }


def covered(bandit: Bandit, logs: int, n: int, interval: Interval) -> dict[str, float]:
    """Share of logs whose interval holds the truth."""
    held = dict.fromkeys(("ips", "snips", "dr", "sndr", "mrdr"), 0)
    for seed in range(logs):
        for name, estimate in bandit.estimates(n, seed, interval).items():
            held[name] += estimate.low <= bandit.truth <= estimate.high
    return {name: count / logs for name, count in held.items()}


def test_95_percent_intervals_hold_the_truth_in_95_percent_of_1500_simulated_logs() -> None:
    for name, share in covered(Bandit(), 1_500, 1_000, "delta").items():
        assert 0.93 < share < 0.97, name


@pytest.mark.slow
def test_bootstrap_intervals_hold_the_truth_in_95_percent_of_1000_simulated_logs() -> None:
    for name, share in covered(Bandit(), 1_000, 400, "bootstrap").items():
        assert 0.93 < share < 0.97, name


def test_bernstein_intervals_hold_the_truth_and_are_wider() -> None:
    bandit = Bandit()
    for name, share in covered(bandit, 200, 300, "bernstein").items():
        assert share > 0.98, name
    wide, narrow = bandit.estimates(300, 0, "bernstein"), bandit.estimates(300, 0)
    for name, estimate in wide.items():
        assert estimate.high - estimate.low > narrow[name].high - narrow[name].low


def test_means_over_many_logs_are_the_truth_and_a_model_lessens_the_spread() -> None:
    bandit, runs = Bandit(), 400
    values: dict[str, list[float]] = {}
    for seed in range(runs):
        for name, estimate in bandit.estimates(1_000, seed).items():
            values.setdefault(name, []).append(estimate.value)
    for name, each in values.items():
        assert abs(np.mean(each) - bandit.truth) < 4 * np.std(each) / math.sqrt(runs), name
    assert np.std(values["mrdr"]) < np.std(values["dr"]) < np.std(values["ips"])
    assert np.std(values["snips"]) < np.std(values["ips"])


def test_bootstrap_agrees_with_the_delta_method_where_both_are_right() -> None:
    bandit = Bandit()
    delta, bootstrap = bandit.estimates(3_000, 1), bandit.estimates(3_000, 1, "bootstrap")
    for name, estimate in delta.items():
        assert bootstrap[name].value == estimate.value
        width = estimate.high - estimate.low
        assert bootstrap[name].low == pytest.approx(estimate.low, abs=0.1 * width)
        assert bootstrap[name].high == pytest.approx(estimate.high, abs=0.1 * width)


def test_bootstrap_is_determined_by_its_seed() -> None:
    first, second = (ope.snips(REWARD_N, LOGGED_N, TARGET_N, interval="bootstrap", seed=s) for s in (1, 1))
    assert first == second
    assert first.low < first.value < first.high <= 2


def test_the_bernstein_interval_is_the_theorems() -> None:
    estimate = ope.ips(REWARD_N, LOGGED_N, TARGET_N, interval="bernstein")
    term_N, log_term = WEIGHT_N * REWARD_N, math.log(4 / 0.05)
    half = math.sqrt(2 * term_N.var(ddof=1) * log_term / 4) + 7 * 8 * log_term / (3 * 3)
    assert estimate.high - estimate.value == pytest.approx(half)


def test_what_cannot_be_estimated_is_nan() -> None:
    nothing = ope.snips(REWARD_N, LOGGED_N, np.zeros(4))
    assert math.isnan(nothing.value)
    assert math.isnan(nothing.low)
    assert nothing.effective_sample_size == 0
    assert ope.ips(REWARD_N, LOGGED_N, np.zeros(4)).value == 0
    for interval in ("delta", "bootstrap", "bernstein"):
        one = ope.ips([1.0], [0.5], [1.0], interval=interval)
        assert one.value == 2
        assert math.isnan(one.low)
        assert math.isnan(one.high)


ROWS = 3
SINGLE = {
    **{name: (call, ("reward_N", "logged_propensity_N", "target_propensity_N")) for name, call in WEIGHTED.items()},
    **{
        name: (
            call,
            ("reward_N", "action_N", "logged_propensity_N", "target_distribution_NA", "predicted_reward_NA"),
        )
        for name, call in MODELLED.items()
    },
}


def good(names: tuple[str, ...]) -> dict[str, Any]:
    """Arguments that nothing is wrong with, by name."""
    arrays = {
        "reward_N": np.ones(ROWS),
        "action_N": np.zeros(ROWS, np.int64),
        "logged_propensity_N": np.full(ROWS, 0.5),
        "target_propensity_N": np.full(ROWS, 0.5),
        "target_distribution_NA": np.full((ROWS, 2), 0.5),
        "predicted_reward_NA": np.ones((ROWS, 2)),
    }
    return {name: arrays[name].copy() for name in names}


@pytest.mark.parametrize("estimator", SINGLE)
def test_every_estimator_names_the_argument_that_is_wrong(estimator: str) -> None:
    call, names = SINGLE[estimator]
    assert call(*good(names).values()).n == ROWS
    for name in names:
        wrong: list[Any] = [good(names)[name][:-1], good(names)[name][..., None]]
        if name != "action_N":
            for value in (math.nan, math.inf, *((-0.1, 1.1) if "reward" not in name else ())):
                wrong.append(good(names)[name])
                wrong[-1][1] = value
        if name == "logged_propensity_N":
            wrong.append(np.array([0.5, 0.0, 0.5]))
        for value in wrong:
            with pytest.raises(ValueError, match=name):
                call(*(good(names) | {name: value}).values())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ope.ips([1.0, 1], [0.5], [0.5, 0.5]), r"logged_propensity_N has shape \(1,\), but reward_N \(2,\)"),
        (lambda: ope.snips([1.0], [0.0], [0.5]), r"logged_propensity_N\[0\] is 0; a probability above 0"),
        (lambda: ope.snips([1.0], [-0.1], [0.5]), r"logged_propensity_N\[0\] is -0.1"),
        (lambda: ope.snips([1.0], [1.1], [0.5]), r"logged_propensity_N\[0\] is 1.1"),
        (lambda: ope.snips([1.0], [math.nan], [0.5]), r"logged_propensity_N\[0\] is nan; a finite number"),
        (lambda: ope.snips([1.0], [0.5], [-0.5]), r"target_propensity_N\[0\] is -0.5; a probability between"),
        (lambda: ope.snips([math.nan], [0.5], [0.5]), r"reward_N\[0\] is nan"),
        (lambda: ope.snips([], [], []), r"reward_N has shape \(0,\); at least one row"),
        (lambda: ope.ips([1.0], [0.5], [0.5], clip=0), "clip is 0; it must be above 0"),
        (lambda: ope.ips([1.0], [0.5], [0.5], interval="wald"), "interval is 'wald'"),  # type: ignore[arg-type]
        (lambda: ope.dr([1.0], [2], [0.5], [[0.5, 0.5]], [[1.0, 1]]), "action_N holds 2; positions go from 0 to 1"),
        (lambda: ope.dr([1.0], [0.5], [0.5], [[0.5, 0.5]], [[1.0, 1]]), "action_N has type float64"),
        (lambda: ope.dr([1.0], [0], [0.5], [[0.5, 0.4]], [[1.0, 1]]), r"target_distribution_NA\[0\] sums to 0.9"),
        (lambda: ope.dm([1.0], [0], [0.5], [[0.5, 0.5]], [[1.0]]), "predicted_reward_NA has shape"),
        (
            lambda: ope.switch_dr([1.0], [0], [0.5], [[0.5, 0.5]], [[1.0, 1]], threshold=-1),
            "threshold is -1; it must be at least 0",
        ),
        (
            lambda: ope.dr_os([1.0], [0], [0.5], [[0.5, 0.5]], [[1.0, 1]], lam=math.nan),
            "lam is nan; it must be at least 0",
        ),
    ],
)
def test_bad_input_is_refused_by_name(call: Callable[[], Estimate], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()
