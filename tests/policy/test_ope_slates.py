"""Estimators of slates against their formulas, exact expectations over all slates, and simulated logs.

Shape letters: N rows, K slots, A actions, S slates, D slots times actions.
"""

import math
from collections.abc import Callable
from dataclasses import replace
from itertools import permutations, product
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from policy_cases import case, query, unit_vectors

from policy import ope
from policy.ope import Estimate
from policy.settings import PolicySettings


def test_the_policy_that_logged_is_worth_the_mean_reward() -> None:
    rng = np.random.default_rng(0)
    reward_NK = rng.random((50, 3))
    prefix_NK = rng.uniform(0.1, 1, (50, 3)).cumprod(axis=1)
    reward_N, joint_N = reward_NK.sum(axis=1), prefix_NK[:, -1]
    slots = (ope.iips, ope.sn_iips, ope.rips, ope.sn_rips)
    additive = (ope.pseudo_inverse, ope.sn_pseudo_inverse, ope.cv_pseudo_inverse)
    for estimate in (
        ope.sips(reward_NK, joint_N, joint_N),
        ope.sn_sips(reward_NK, joint_N, joint_N),
        *(call(reward_NK, prefix_NK, prefix_NK) for call in (*slots, *additive)),
    ):
        assert estimate.value == pytest.approx(reward_N.mean())
        assert estimate.effective_sample_size == pytest.approx(50)
        assert estimate.max_weight == pytest.approx(1)


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
    iips = (weight_NK * reward_NK).sum(axis=1).mean()
    assert ope.iips(reward_NK, logged_NK, target_NK).value == pytest.approx(iips)
    assert ope.sn_iips(reward_NK, logged_NK, target_NK).value == pytest.approx(sn_rips)
    zeros_NK = np.zeros((40, 3))
    assert ope.cascade_dr(*slates, zeros_NK, zeros_NK).value == pytest.approx(rips)
    assert ope.sn_cascade_dr(*slates, zeros_NK, zeros_NK).value == pytest.approx(sn_rips)


PREFIXED: dict[str, Callable[..., Estimate]] = {
    "rips": ope.rips,
    "sn_rips": ope.sn_rips,
    "iips": ope.iips,
    "sn_iips": ope.sn_iips,
    "pseudo_inverse": ope.pseudo_inverse,
    "sn_pseudo_inverse": ope.sn_pseudo_inverse,
    "cv_pseudo_inverse": ope.cv_pseudo_inverse,
    "sips": lambda reward, logged, target, **more: ope.sips(reward, logged[:, -1], target[:, -1], **more),
    "sn_sips": lambda reward, logged, target, **more: ope.sn_sips(reward, logged[:, -1], target[:, -1], **more),
    "cascade_dr": lambda reward, logged, target, **more: ope.cascade_dr(
        reward, logged, target, logged / 3, target / 2, **more
    ),
    "sn_cascade_dr": lambda reward, logged, target, **more: ope.sn_cascade_dr(
        reward, logged, target, logged / 3, target / 2, **more
    ),
}


@pytest.mark.parametrize("name", PREFIXED)
def test_position_weights_are_those_of_the_rewards(name: str) -> None:
    rng = np.random.default_rng(1)
    reward_NK, weight_K = rng.random((40, 3)), np.array([1.0, 0.5, -2.0])
    logged_NK, target_NK = rng.uniform(0.2, 1, (2, 40, 3)).cumprod(axis=2)
    weighted = PREFIXED[name](reward_NK, logged_NK, target_NK, position_weight_K=weight_K)
    assert weighted == PREFIXED[name](reward_NK * weight_K, logged_NK, target_NK)
    with pytest.raises(ValueError, match="position_weight_K has shape"):
        PREFIXED[name](reward_NK, logged_NK, target_NK, position_weight_K=[1.0, 1.0])
    with pytest.raises(ValueError, match=r"position_weight_K\[1\] is nan"):
        PREFIXED[name](reward_NK, logged_NK, target_NK, position_weight_K=[1.0, math.nan, 1.0])


class Slates:
    """Every slate of three of five items, with its exact probability under two policies that draw for real."""

    def __init__(self, **changes: float) -> None:
        rng = np.random.default_rng(2)
        probability_NA = rng.random((5, 1))
        logging = PolicySettings(weights={"click": 1}, temperature=0.5, epsilon=0.2, diversity=0.3, max_per_category=2)
        target = replace(logging, **changes)  # type: ignore[arg-type]  # its numbers
        category_N, vector_ND = [1, 1, 1, 2, 2], unit_vectors(rng, 5, 3)
        logger, scored = case(logging, probability_NA, category_N=category_N, embedding_ND=vector_ND)
        wanted, _ = case(target, probability_NA, category_N=category_N, embedding_ND=vector_ND)
        self.item_SK = np.array(list(permutations(range(5), 3)))
        logged = [logger.propensity_of(query(), scored, item_K) for item_K in self.item_SK]
        drawn = [wanted.propensity_of(query(), scored, item_K) for item_K in self.item_SK]
        self.logged_SK, self.target_SK = (
            np.stack([np.cumprod(e.propensity_K) for e in each]) for each in (logged, drawn)
        )
        self.distribution_SKA = np.stack([each.distribution_KN for each in drawn])
        # A cascade: what a slot earns depends on the slots above it, in no simple way.
        first_S, second_S, third_S = self.item_SK.T
        self.reward_SK = np.stack([np.sin(1 + first_S), second_S * first_S / 5, np.cos(third_S + 2 * first_S)], axis=1)

    def marginal(self, prefix_SK: NDArray[np.float64]) -> NDArray[np.float64]:
        """P(slot k holds a), (K, A)."""
        return np.stack([np.bincount(self.item_SK[:, k], prefix_SK[:, -1], minlength=5) for k in range(3)])


@pytest.fixture(scope="module")
def slates() -> Slates:
    return Slates(temperature=0.1, epsilon=0.0, diversity=0.9, max_per_category=1)


def test_they_are_unbiased_over_every_slate_that_could_have_been_logged(slates: Slates) -> None:
    """Exact expectation under one slate policy, of estimates of another's value, with any model."""
    model_KA = np.random.default_rng(3).normal(size=(3, 5))
    truth = (slates.target_SK[:, -1] * slates.reward_SK.sum(axis=1)).sum()
    expected = dict.fromkeys(("sips", "rips", "cascade_dr"), 0.0)
    for s in np.flatnonzero(slates.logged_SK[:, -1]):
        reward_1K, logged_1K, target_1K = (e[[s]] for e in (slates.reward_SK, slates.logged_SK, slates.target_SK))
        predicted_1K = model_KA[np.arange(3), slates.item_SK[s]][None]
        mean_1K = (slates.distribution_SKA[s] * model_KA).sum(axis=1)[None]
        probability = logged_1K[0, -1]
        expected["sips"] += probability * ope.sips(reward_1K, logged_1K[:, -1], target_1K[:, -1]).value
        expected["rips"] += probability * ope.rips(reward_1K, logged_1K, target_1K).value
        cascade = ope.cascade_dr(reward_1K, logged_1K, target_1K, predicted_1K, mean_1K)
        expected["cascade_dr"] += probability * cascade.value
    assert expected == pytest.approx(dict.fromkeys(expected, truth), abs=1e-9)


def test_independent_slots_are_unbiased_where_a_slot_earns_by_itself(slates: Slates) -> None:
    worth_KA = np.random.default_rng(4).random((3, 5))
    logged_KA, target_KA = slates.marginal(slates.logged_SK), slates.marginal(slates.target_SK)
    slot_K = np.arange(3)
    expected = 0.0
    for s in np.flatnonzero(slates.logged_SK[:, -1]):
        at = (slot_K, slates.item_SK[s])
        one = ope.iips(worth_KA[at][None], logged_KA[at][None], target_KA[at][None])
        expected += slates.logged_SK[s, -1] * one.value
    assert expected == pytest.approx((target_KA * worth_KA).sum(), abs=1e-9)


def test_the_pseudo_inverse_of_pairs_is_unbiased_for_the_real_policy_and_the_closed_form_is_not(
    slates: Slates,
) -> None:
    """Only the sum of a slate is seen, and drawing without replacement couples the slots."""
    worth_KA = np.random.default_rng(5).random((3, 5))
    target_KA, logged_KA = slates.marginal(slates.target_SK), slates.marginal(slates.logged_SK)
    shown_SD = np.zeros((len(slates.item_SK), 15))
    shown_SD[np.arange(len(shown_SD))[:, None], slates.item_SK + 5 * np.arange(3)] = 1
    pair_DD = np.einsum("s,sd,se->de", slates.logged_SK[:, -1], shown_SD, shown_SD)
    truth = (target_KA * worth_KA).sum()
    expected = closed = 0.0
    for s in np.flatnonzero(slates.logged_SK[:, -1]):
        at = (np.arange(3), slates.item_SK[s])
        reward_1K = np.array([[worth_KA[at].sum(), 0, 0]])
        pairs = ope.pseudo_inverse_of_pairs(reward_1K, slates.item_SK[[s]], pair_DD[None], target_KA[None])
        expected += slates.logged_SK[s, -1] * pairs.value
        closed += (
            slates.logged_SK[s, -1] * ope.pseudo_inverse(reward_1K, logged_KA[at][None], target_KA[at][None]).value
        )
    assert expected == pytest.approx(truth, abs=1e-9)
    assert abs(closed - truth) > 0.01


def test_the_pseudo_inverse_of_independent_slots_equals_the_truth_for_any_target() -> None:
    """All 3^3 slates, uniform and otherwise; the target picks whole slates."""
    rng = np.random.default_rng(6)
    item_SK = np.array(list(product(range(3), repeat=3)))
    slot_K = np.arange(3)
    worth_KA, target_S = rng.normal(size=(3, 3)), rng.dirichlet(np.full(27, 0.3))
    target_KA = np.stack([np.bincount(item_SK[:, k], target_S, minlength=3) for k in range(3)])
    truth = target_S @ worth_KA[slot_K, item_SK].sum(axis=1)
    seen_SK = np.zeros((27, 3))
    seen_SK[:, 1] = worth_KA[slot_K, item_SK].sum(axis=1)
    uniform = (np.full((27, 3), 1 / 3), target_KA[slot_K, item_SK])
    for call in (ope.pseudo_inverse, ope.sn_pseudo_inverse, ope.cv_pseudo_inverse):
        assert call(seen_SK, *uniform).value == pytest.approx(truth), "a log as it is expected to be"
    logged_KA = rng.dirichlet(np.full(3, 2.0), 3)
    probability_S = logged_KA[slot_K, item_SK].prod(axis=1)
    marginal = (logged_KA[slot_K, item_SK], target_KA[slot_K, item_SK])
    shown_SD = np.zeros((27, 9))
    shown_SD[np.arange(27)[:, None], item_SK + 3 * slot_K] = 1
    pair_NDD = np.broadcast_to(np.einsum("s,sd,se->de", probability_S, shown_SD, shown_SD), (27, 9, 9))
    target_NKA = np.broadcast_to(target_KA, (27, 3, 3))
    closed, of_pairs = 0.0, 0.0
    for s in range(27):
        closed += probability_S[s] * ope.pseudo_inverse(seen_SK[[s]], *(each[[s]] for each in marginal)).value
        of_pairs += (
            probability_S[s]
            * ope.pseudo_inverse_of_pairs(seen_SK[[s]], item_SK[[s]], pair_NDD[[s]], target_NKA[[s]]).value
        )
    assert (closed, of_pairs) == pytest.approx((truth, truth), abs=1e-9)
    whole = (seen_SK, item_SK, pair_NDD, target_NKA)
    for form, call in (("plain", ope.pseudo_inverse), ("normalised", ope.sn_pseudo_inverse)):
        assert ope.pseudo_inverse_of_pairs(*whole, form=form).value == pytest.approx(call(seen_SK, *marginal).value)  # type: ignore[arg-type]
    uniform_pair = np.einsum("sd,se->de", shown_SD, shown_SD) / 27
    controlled = ope.pseudo_inverse_of_pairs(
        seen_SK, item_SK, np.broadcast_to(uniform_pair, (27, 9, 9)), target_NKA, form="controlled"
    )
    assert controlled.value == pytest.approx(truth)


def test_control_variates_narrow_the_pseudo_inverse() -> None:
    rng = np.random.default_rng(7)
    logged_A, target_A = np.array([0.5, 0.3, 0.2]), np.array([0.1, 0.2, 0.7])
    worth_A = np.array([1.0, 2.0, 3.0])
    truth = 4 * float(target_A @ worth_A)
    values: dict[str, list[float]] = {}
    for _ in range(200):
        action_NK = rng.choice(3, size=(300, 4), p=logged_A)
        args = (worth_A[action_NK] + rng.normal(size=(300, 4)), logged_A[action_NK], target_A[action_NK])
        for call in (ope.sips, ope.pseudo_inverse, ope.sn_pseudo_inverse, ope.cv_pseudo_inverse):
            joint = (args[0], args[1].prod(axis=1), args[2].prod(axis=1))
            values.setdefault(call.__name__, []).append(call(*(joint if call is ope.sips else args)).value)
    spread = {name: float(np.std(each)) for name, each in values.items()}
    for name, each in values.items():
        assert abs(np.mean(each) - truth) < 4 * spread[name] / math.sqrt(200), name
    order = ("cv_pseudo_inverse", "sn_pseudo_inverse", "pseudo_inverse", "sips")
    assert [spread[name] for name in order] == sorted(spread.values())


def test_slate_intervals_hold_the_truth_in_95_percent_of_1200_logs_of_the_real_policy() -> None:
    slates = Slates(temperature=0.35, epsilon=0.1, diversity=0.5)
    rng = np.random.default_rng(8)
    chance_SK = np.clip(0.4 + 0.3 * slates.reward_SK, 0.05, 0.95)
    truth = float(slates.target_SK[:, -1] @ chance_SK.sum(axis=1))
    # The mean of the model over the target's draws, given the slots above as logged.
    mean_SK = np.empty_like(chance_SK)
    for k, s in product(range(3), range(len(mean_SK))):
        alike_S = (slates.item_SK[:, :k] == slates.item_SK[s, :k]).all(axis=1)
        mean_SK[s, k] = np.average(chance_SK[alike_S, k], weights=slates.target_SK[alike_S, -1] + 1e-12)
    runs, n = 1_200, 1_000
    names = ("sips", "sn_sips", "rips", "sn_rips", "cascade_dr", "sn_cascade_dr")
    held, widths = dict.fromkeys(names, 0), dict.fromkeys(names, 0.0)
    for _ in range(runs):
        s_N = rng.choice(len(mean_SK), n, p=slates.logged_SK[:, -1] / slates.logged_SK[:, -1].sum())
        reward_NK = (rng.random((n, 3)) < chance_SK[s_N]).astype(np.float64)
        prefix = (slates.logged_SK[s_N], slates.target_SK[s_N])
        joint = tuple(each[:, -1] for each in prefix)
        for name in names:
            args: tuple[Any, ...] = joint if "sips" in name else prefix
            args += (chance_SK[s_N], mean_SK[s_N]) if "dr" in name else ()
            estimate = getattr(ope, name)(reward_NK, *args)
            held[name] += estimate.low <= truth <= estimate.high
            widths[name] += (estimate.high - estimate.low) / runs
    for name, count in held.items():
        assert 0.93 < count / runs < 0.97, name
    assert widths["cascade_dr"] < widths["rips"] < widths["sips"]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: ope.sips([1.0], [0.5], [0.5]), r"reward_NK has shape \(1,\); 2 axes"),
        (lambda: ope.sips([[1.0]], [0.5, 0.5], [0.5]), r"logged_joint_N has shape \(2,\), but reward_NK"),
        (lambda: ope.sips([[1.0]], [0.0], [0.5]), r"logged_joint_N\[0\] is 0; a probability above 0"),
        (lambda: ope.sn_sips([[1.0]], [0.5], [math.nan]), r"target_joint_N\[0\] is nan"),
        (lambda: ope.iips([[1.0]], [[1.5]], [[0.5]]), r"logged_marginal_NK\[0, 0\] is 1.5"),
        (lambda: ope.iips([[1.0, 1]], [[0.5, 0.5]], [[0.5]]), r"target_marginal_NK has shape \(1, 1\), but reward_NK"),
        (lambda: ope.pseudo_inverse([[1.0]], [[0.5]], [[-0.5]]), r"target_marginal_NK\[0, 0\] is -0.5"),
        (lambda: ope.rips([[1.0]], [[0.0]], [[0.5]]), r"logged_prefix_NK\[0, 0\] is 0; a probability above 0"),
        (lambda: ope.rips([[1.0, 1]], [[0.5, 0.25]], [[0.1, 0.2]]), r"target_prefix_NK\[0\] rises from 0.1 to 0.2"),
        (lambda: ope.sn_rips([[1.0, 1]], [[0.2, 0.4]], [[0.2, 0.2]]), r"logged_prefix_NK\[0\] rises from 0.2 to 0.4"),
        (lambda: ope.cascade_dr([[1.0]], [[0.5]], [[0.5]], [[1.0, 2.0]], [[1.0]]), "predicted_reward_NK has shape"),
        (
            lambda: ope.cascade_dr([[1.0]], [[0.5]], [[0.5]], [[1.0]], [[math.inf]]),
            r"target_predicted_NK\[0, 0\] is inf",
        ),
        (
            lambda: ope.pseudo_inverse_of_pairs([[1.0]], [[2]], np.full((1, 2, 2), 0.5), [[[0.5, 0.5]]]),
            "action_NK holds 2; positions go from 0 to 1",
        ),
        (
            lambda: ope.pseudo_inverse_of_pairs([[1.0]], [[0]], np.full((1, 3, 3), 0.5), [[[0.5, 0.5]]]),
            r"logged_pair_NDD has shape \(1, 3, 3\), but target_marginal_NKA \(1, 1, 2\)",
        ),
        (
            lambda: ope.pseudo_inverse_of_pairs(
                [[1.0]],
                [[0]],
                np.full((1, 2, 2), 0.5),
                [[[0.5, 0.5]]],
                form="best",  # type: ignore[arg-type]
            ),
            "form is 'best'; there are plain, normalised, controlled",
        ),
    ],
)
def test_bad_input_is_refused_by_name(call: Callable[[], Estimate], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()


def test_truncation_bounds_every_weight_by_the_root_of_the_rows() -> None:
    rng = np.random.default_rng(9)
    logged_NK, target_NK = (rng.uniform(0.01, 1, (100, 4)) ** 2).cumprod(axis=1), np.ones((100, 4))
    cut_NK = ope.truncated(logged_NK, target_NK)
    assert (cut_NK / logged_NK).max() <= 10 * (1 + 1e-12)
    assert (cut_NK <= target_NK).all()
    assert (np.diff(cut_NK, axis=1) <= 0).all()
    mild_NK = logged_NK * rng.uniform(0.5, 1, (100, 1))
    assert ope.truncated(logged_NK, mild_NK) == pytest.approx(mild_NK)
