"""The estimators against closed forms, exact expectations over all slates, simulated logs and obp.

Shape letters: N rows, K slots, A actions, C contexts, P slates, I items.
"""

import math
import os
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray
from policy_cases import case, query, unit_vectors

from policy import ope
from policy.ope import Estimate, InsufficientOverlap, Interval, diagnose, require_overlap
from policy.settings import PolicySettings

REWARD_N = np.array([1.0, 0.0, 2.0, 1.0])
LOGGED_N = np.array([0.5, 0.25, 0.1, 1.0])
TARGET_N = np.array([0.25, 0.5, 0.4, 0.0])
WEIGHT_N = np.array([0.5, 2.0, 4.0, 0.0])


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
    reward_NK = rng.random((50, 3))
    prefix_NK = rng.uniform(0.1, 1, (50, 3)).cumprod(axis=1)
    reward_N, joint_N = reward_NK.sum(axis=1), prefix_NK[:, -1]
    for estimate in (
        ope.ips(reward_N, joint_N, joint_N),
        ope.snips(reward_N, joint_N, joint_N),
        ope.sips(reward_NK, joint_N, joint_N),
        ope.sn_sips(reward_NK, joint_N, joint_N),
        ope.rips(reward_NK, prefix_NK, prefix_NK),
        ope.sn_rips(reward_NK, prefix_NK, prefix_NK),
    ):
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


def test_slate_estimators_equal_their_formulas() -> None:
    rng = np.random.default_rng(1)
    reward_NK, predicted_NK, mean_NK = rng.random((3, 40, 3))
    logged_NK, target_NK = rng.uniform(0.2, 1, (2, 40, 3)).cumprod(axis=2)
    weight_NK = target_NK / logged_NK
    sips = sn_sips = rips = cascade = 0.0
    for n in range(40):
        sips += weight_NK[n, 2] * reward_NK[n].sum() / 40
        sn_sips += weight_NK[n, 2] * reward_NK[n].sum() / weight_NK[:, 2].sum()
        for k in range(3):
            before = weight_NK[n, k - 1] if k else 1.0
            rips += weight_NK[n, k] * reward_NK[n, k] / 40
            cascade += (before * mean_NK[n, k] + weight_NK[n, k] * (reward_NK[n, k] - predicted_NK[n, k])) / 40
    assert ope.sips(reward_NK, logged_NK[:, -1], target_NK[:, -1]).value == pytest.approx(sips)
    assert ope.sn_sips(reward_NK, logged_NK[:, -1], target_NK[:, -1]).value == pytest.approx(sn_sips)
    assert ope.rips(reward_NK, logged_NK, target_NK).value == pytest.approx(rips)
    sn_rips = sum((weight_NK[:, k] * reward_NK[:, k]).sum() / weight_NK[:, k].sum() for k in range(3))
    assert ope.sn_rips(reward_NK, logged_NK, target_NK).value == pytest.approx(sn_rips)
    slates = (reward_NK, logged_NK, target_NK)
    assert ope.cascade_dr(*slates, predicted_NK, mean_NK).value == pytest.approx(cascade)
    zeros_NK = np.zeros((40, 3))
    assert ope.cascade_dr(*slates, zeros_NK, zeros_NK).value == pytest.approx(rips)
    assert ope.sn_cascade_dr(*slates, zeros_NK, zeros_NK).value == pytest.approx(sn_rips)


def test_slate_estimators_are_unbiased_over_every_slate_that_could_have_been_logged() -> None:
    """Exact expectation under one slate policy, of estimates of another's value, with any model."""
    rng = np.random.default_rng(2)
    probability_NA = rng.random((5, 1))
    logging = PolicySettings(weights={"click": 1}, temperature=0.5, epsilon=0.2, diversity=0.3, max_per_category=2)
    target = replace(logging, temperature=0.1, epsilon=0.0, diversity=0.9, max_per_category=1)
    category_N, vector_ND = [1, 1, 1, 2, 2], unit_vectors(rng, 5, 3)
    logger, scored = case(logging, probability_NA, category_N=category_N, embedding_ND=vector_ND)
    wanted, _ = case(target, probability_NA, category_N=category_N, embedding_ND=vector_ND)
    model_KN = rng.normal(size=(3, 5))
    truth = 0.0
    expected = dict.fromkeys(("sips", "rips", "cascade_dr"), 0.0)
    for slate in permutations(range(5), 3):
        index_K = np.array(slate)
        logged = logger.propensity_of(query(), scored, index_K)
        drawn = wanted.propensity_of(query(), scored, index_K)
        # A cascade: what a slot earns depends on the slots above it, in no simple way.
        reward_1K = np.array([[math.sin(1 + slate[0]), slate[1] * slate[0] / 5, math.cos(slate[2] + 2 * slate[0])]])
        probability = logged.prefix_propensity_K[-1]
        truth += drawn.prefix_propensity_K[-1] * reward_1K.sum()
        if probability == 0:
            continue
        prefixes = (logged.prefix_propensity_K[None], drawn.prefix_propensity_K[None])
        predicted_1K = model_KN[np.arange(3), index_K][None]
        mean_1K = (drawn.distribution_KN * model_KN).sum(axis=1)[None]
        joint = (prefixes[0][:, -1], prefixes[1][:, -1])
        expected["sips"] += probability * ope.sips(reward_1K, *joint).value
        expected["rips"] += probability * ope.rips(reward_1K, *prefixes).value
        expected["cascade_dr"] += probability * ope.cascade_dr(reward_1K, *prefixes, predicted_1K, mean_1K).value
    for name, value in expected.items():
        assert value == pytest.approx(truth, abs=1e-9), name


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
        target_N, model_NA = self.target_CA[context_N, action_N], self.model_CA[context_N]
        return {
            "ips": ope.ips(reward_N, logged_N, target_N, interval=interval),
            "snips": ope.snips(reward_N, logged_N, target_N, interval=interval),
            "dr": ope.dr(reward_N, action_N, logged_N, target_NA, model_NA, interval=interval),
        }


def test_intervals_cover_the_truth_as_often_as_they_say() -> None:
    bandit, runs = Bandit(), 600
    covered = dict.fromkeys(("ips", "snips", "dr"), 0)
    values: dict[str, list[float]] = {name: [] for name in covered}
    for seed in range(runs):
        for name, estimate in bandit.estimates(1_000, seed).items():
            covered[name] += estimate.low <= bandit.truth <= estimate.high
            values[name].append(estimate.value)
    for name, count in covered.items():
        assert 0.925 < count / runs < 0.975, name
        error = np.std(values[name]) / math.sqrt(runs)
        assert abs(np.mean(values[name]) - bandit.truth) < 4 * error, name
    assert np.std(values["dr"]) < np.std(values["ips"])


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


def test_slate_intervals_cover_the_truth() -> None:
    """Slots filled independently, the reward of a slot multiplied by what stands above it."""
    rng = np.random.default_rng(4)
    logging_A, target_A = np.array([0.4, 0.3, 0.3]), np.array([0.2, 0.2, 0.6])
    worth_A = np.array([0.2, 0.5, 0.7])
    mean = float(target_A @ worth_A)
    truth = mean + mean**2
    runs, n = 400, 800
    covered = dict.fromkeys(("sips", "sn_sips", "rips", "sn_rips", "cascade_dr", "sn_cascade_dr"), 0)
    widths = dict.fromkeys(covered, 0.0)
    for _ in range(runs):
        action_NK = rng.choice(3, size=(n, 2), p=logging_A)
        chance_NK = worth_A[action_NK].cumprod(axis=1)
        reward_NK = (rng.random((n, 2)) < chance_NK).astype(np.float64)
        prefixes = (logging_A[action_NK].cumprod(axis=1), target_A[action_NK].cumprod(axis=1))
        joint = (prefixes[0][:, -1], prefixes[1][:, -1])
        mean_NK = np.stack([np.full(n, mean), worth_A[action_NK[:, 0]] * mean], axis=1)
        for name, estimate in {
            "sips": ope.sips(reward_NK, *joint),
            "sn_sips": ope.sn_sips(reward_NK, *joint),
            "rips": ope.rips(reward_NK, *prefixes),
            "sn_rips": ope.sn_rips(reward_NK, *prefixes),
            "cascade_dr": ope.cascade_dr(reward_NK, *prefixes, chance_NK, mean_NK),
            "sn_cascade_dr": ope.sn_cascade_dr(reward_NK, *prefixes, chance_NK, mean_NK),
        }.items():
            covered[name] += estimate.low <= truth <= estimate.high
            widths[name] += (estimate.high - estimate.low) / runs
    for name, count in covered.items():
        assert 0.915 < count / runs < 0.985, name
    assert widths["cascade_dr"] < widths["rips"] < widths["sips"]


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
        (lambda: ope.sips([1.0], [0.5], [0.5]), r"reward_NK has shape \(1,\); 2 axes"),
        (lambda: ope.rips([[1.0, 1]], [[0.5, 0.25]], [[0.1, 0.2]]), r"target_prefix_NK\[0\] rises from 0.1 to 0.2"),
        (
            lambda: ope.cascade_dr([[1.0]], [[0.5]], [[0.5]], [[1.0, 2.0]], [[1.0]]),
            "predicted_reward_NK has shape",
        ),
    ],
)
def test_bad_input_is_refused_by_name(call: Callable[[], Estimate], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


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
    with pytest.raises(InsufficientOverlap, match=r"one row carries 9.1% of the weight"):
        require_overlap(diagnose(logged_N, np.full(10_000, 0.5)))
    with pytest.raises(InsufficientOverlap, match=r"effective sample size 0\.0") as caught:
        require_overlap(diagnose(good_N, np.zeros(200)))
    assert caught.value.overlap.max_share == 1


# Of 10^6 slates drawn by obp 0.5.7's BernoulliTS(campaign="men", is_zozotown_prior=True, random_state=12345), how
# many held each item in each position: its `compute_batch_action_dist(n_sim=1_000_000)` before division.
THOMPSON_PI = np.array([
    [45913, 4180, 32654, 13774, 764, 2585, 35972, 16790, 16606, 33494, 4040, 807, 453, 286488, 17938, 3308, 4527,
     9002, 53435, 16047, 1987, 39858, 64701, 153895, 2894, 359, 32420, 21740, 2903, 25322, 1968, 28584, 4568, 20024],
    [45969, 3052, 40989, 32546, 515, 1752, 56483, 21386, 15082, 44374, 7775, 915, 578, 314215, 17731, 2352, 2379,
     9128, 22103, 10120, 1853, 20908, 36621, 161895, 2444, 285, 29198, 20770, 2282, 20375, 1471, 23013, 2625, 26816],
    [52516, 3211, 52108, 58621, 464, 1760, 78098, 28717, 17195, 58853, 13059, 1199, 851, 209464, 21496, 2626, 2339,
     10774, 19083, 9688, 2271, 19128, 34115, 154255, 2897, 310, 32455, 24350, 2608, 21747, 1508, 24328, 2717, 35189],
])  # fmt: skip


def open_bandit(name: str) -> pl.DataFrame:
    root = os.environ.get("CASCADE_DATA", "")
    path = Path(root) / "obd-small" / f"{name}.parquet"
    if not root or not path.exists():
        pytest.skip(f"set CASCADE_DATA to a folder that holds obd-small/{name}.parquet (Open Bandit Dataset)")
    return pl.read_parquet(path)


def test_values_on_the_open_bandit_data_are_those_of_obp() -> None:
    log = open_bandit("random_men")
    item_N, position_N = log["item_id"].to_numpy(), log["position"].to_numpy() - 1
    target_N = THOMPSON_PI[position_N, item_N] / 1_000_000
    reward_N, logged_N = log["click"].to_numpy(), log["propensity_score"].to_numpy()
    # As published, to the last digit.
    assert f"{ope.ips(reward_N, logged_N, target_N).value:.8f}" == "0.00454268"
    assert f"{ope.snips(reward_N, logged_N, target_N).value:.8f}" == "0.00461351"
    require_overlap(diagnose(logged_N, target_N))


def test_the_uniform_policy_cannot_be_judged_from_the_womens_thompson_log() -> None:
    log = open_bandit("bts_women")
    logged_N = log["propensity_score"].to_numpy()
    overlap = diagnose(logged_N, np.full(len(logged_N), 1 / 46))
    assert overlap.effective_sample_size < 3
    with pytest.raises(InsufficientOverlap, match="effective sample size 2"):
        require_overlap(overlap)
