"""Estimators for logs of slates, by what the reward of a slot may depend on.

`position_weight_K` multiplies the reward of each slot; predicted rewards are of what it makes of them.

Shape letters: N rows (requests), K slots.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from policy.ope.arrays import ROUNDING, finite, propensity, same_shape
from policy.ope.interval import Estimate, Interval, ratio_estimate


def truncated(logged_prefix_NK: ArrayLike, target_prefix_NK: ArrayLike) -> NDArray[np.float64]:
    """Target prefix propensities with every weight cut to sqrt(N): min(w, sqrt(N)) times the logged ones.

    For any estimator of prefixes in place of the target's own. A few rows can then no longer carry the sum; what they
    would have added is lost, a bias that goes to 0 as N grows and that self-normalising makes smaller still.
    Source: Ionides, Journal of Computational and Graphical Statistics 2008 (the rate sqrt(N)).
    """
    logged_NK = propensity("logged_prefix_NK", logged_prefix_NK, 2, logged=True)
    target_NK = propensity("target_prefix_NK", target_prefix_NK, 2)
    same_shape(logged_prefix_NK=logged_NK, target_prefix_NK=target_NK)
    cut_NK = np.minimum(target_NK / logged_NK, math.sqrt(len(logged_NK))) * logged_NK
    return np.minimum.accumulate(cut_NK, axis=1)


def sips(
    reward_NK: ArrayLike,
    logged_joint_N: ArrayLike,
    target_joint_N: ArrayLike,
    *,
    position_weight_K: ArrayLike | None = None,
    interval: Interval = "delta",
    seed: int = 0,
) -> Estimate:
    """Slate inverse propensity scoring: mean_n w_n sum_k r_nk, with w the ratio of joint propensities of slates.

    Assumes nothing about how slots influence each other. Unbiased given support of whole slates; fails by
    variance, which grows exponentially with K. Source: as `ips`, on slates; named so by McInerney et al., KDD 2020.
    """
    reward_N, weight_N = _joint(reward_NK, logged_joint_N, target_joint_N, position_weight_K)
    return ratio_estimate((weight_N * reward_N)[:, None], None, weight_N, interval, seed)


def sn_sips(
    reward_NK: ArrayLike,
    logged_joint_N: ArrayLike,
    target_joint_N: ArrayLike,
    *,
    position_weight_K: ArrayLike | None = None,
    interval: Interval = "delta",
    seed: int = 0,
) -> Estimate:
    """Self-normalised `sips`: sum_n w_n sum_k r_nk / sum_n w_n. Assumption, failure, source: `sips` and `snips`."""
    reward_N, weight_N = _joint(reward_NK, logged_joint_N, target_joint_N, position_weight_K)
    return ratio_estimate((weight_N * reward_N)[:, None], weight_N[:, None], weight_N, interval, seed)


def iips(
    reward_NK: ArrayLike,
    logged_marginal_NK: ArrayLike,
    target_marginal_NK: ArrayLike,
    *,
    position_weight_K: ArrayLike | None = None,
    interval: Interval = "delta",
    seed: int = 0,
) -> Estimate:
    """Independent inverse propensity scoring: mean_n sum_k w_nk r_nk, w_nk the ratio of marginal propensities.

    A marginal propensity is P(slot k holds what it holds), whatever the other slots hold; where slots are drawn one
    after the other, that is not the logged conditional one. Assumes that the reward of a slot depends on its own item
    only; given that and support, unbiased, with the least variance of the three. Fails by bias wherever items compete
    or complete each other. Source: Li et al., KDD 2018 (the item-position model).
    """
    reward_NK, weight_NK = _slotwise("marginal", reward_NK, logged_marginal_NK, target_marginal_NK, position_weight_K)
    return ratio_estimate((weight_NK * reward_NK).sum(axis=1)[:, None], None, weight_NK, interval, seed)


def sn_iips(
    reward_NK: ArrayLike,
    logged_marginal_NK: ArrayLike,
    target_marginal_NK: ArrayLike,
    *,
    position_weight_K: ArrayLike | None = None,
    interval: Interval = "delta",
    seed: int = 0,
) -> Estimate:
    """Self-normalised `iips`: sum_k [ sum_n w_nk r_nk / sum_n w_nk ]. Assumption, failure, source: `iips`, `snips`."""
    reward_NK, weight_NK = _slotwise("marginal", reward_NK, logged_marginal_NK, target_marginal_NK, position_weight_K)
    return ratio_estimate(weight_NK * reward_NK, weight_NK, weight_NK, interval, seed)


def rips(
    reward_NK: ArrayLike,
    logged_prefix_NK: ArrayLike,
    target_prefix_NK: ArrayLike,
    *,
    position_weight_K: ArrayLike | None = None,
    interval: Interval = "delta",
    seed: int = 0,
) -> Estimate:
    """Reward-interaction inverse propensity scoring: mean_n sum_k w_nk r_nk, w_nk the ratio of prefix propensities.

    A prefix propensity is P(slots 0..k hold what they hold): the running product of the logged conditional ones.
    Assumes that the reward of a slot depends on its own and earlier slots only (people read downwards); given that
    and support, unbiased, with less variance than `sips`. Fails where later slots matter (a better item below
    steals the click), and by variance in low slots. Source: McInerney et al., KDD 2020.
    """
    reward_NK, weight_NK = _prefixed(reward_NK, logged_prefix_NK, target_prefix_NK, position_weight_K)
    return ratio_estimate((weight_NK * reward_NK).sum(axis=1)[:, None], None, weight_NK, interval, seed)


def sn_rips(
    reward_NK: ArrayLike,
    logged_prefix_NK: ArrayLike,
    target_prefix_NK: ArrayLike,
    *,
    position_weight_K: ArrayLike | None = None,
    interval: Interval = "delta",
    seed: int = 0,
) -> Estimate:
    """Self-normalised `rips`: sum_k [ sum_n w_nk r_nk / sum_n w_nk ].

    Every slot is normalised by its own weights, whose spread grows with k. Assumption, failure: `rips` and `snips`.
    Source: McInerney et al., KDD 2020.
    """
    reward_NK, weight_NK = _prefixed(reward_NK, logged_prefix_NK, target_prefix_NK, position_weight_K)
    return ratio_estimate(weight_NK * reward_NK, weight_NK, weight_NK, interval, seed)


def cascade_dr(
    reward_NK: ArrayLike,
    logged_prefix_NK: ArrayLike,
    target_prefix_NK: ArrayLike,
    predicted_reward_NK: ArrayLike,
    target_predicted_NK: ArrayLike,
    *,
    position_weight_K: ArrayLike | None = None,
    interval: Interval = "delta",
    seed: int = 0,
) -> Estimate:
    """Cascade doubly robust: mean_n sum_k [ w_{n,k-1} v_nk + w_nk (r_nk - q_nk) ], with w_{n,-1} = 1.

    Args:
        predicted_reward_NK: q_nk, the model's value of the logged item in slot k given the slots before it.
        target_predicted_NK: v_nk, the same model's mean over what the target policy would have put there:
            sum_a target(a | logged slots before k) q_k(a), from `Draw.distribution_KN`.

    Assumes what `rips` does; then unbiased for any q that was not fitted on these rows. Variance is least where
    q_nk is the expected reward of slot k *and of those after it* under the target policy; the expected reward of
    slot k alone is valid too. Fails by variance in low slots where q is poor. Source: Kiyohara et al., WSDM 2022.
    """
    reward_NK, weight_NK, before_NK, predicted_NK, mean_NK = _cascade(
        reward_NK,
        logged_prefix_NK,
        target_prefix_NK,
        predicted_reward_NK,
        target_predicted_NK,
        position_weight_K=position_weight_K,
    )
    terms_NK = before_NK * mean_NK + weight_NK * (reward_NK - predicted_NK)
    return ratio_estimate(terms_NK.sum(axis=1)[:, None], None, weight_NK, interval, seed)


def sn_cascade_dr(
    reward_NK: ArrayLike,
    logged_prefix_NK: ArrayLike,
    target_prefix_NK: ArrayLike,
    predicted_reward_NK: ArrayLike,
    target_predicted_NK: ArrayLike,
    *,
    position_weight_K: ArrayLike | None = None,
    interval: Interval = "delta",
    seed: int = 0,
) -> Estimate:
    """Self-normalised `cascade_dr`: the weights of every slot, and those of the slot before it, divided by their mean.

    Consistent under the assumption of `cascade_dr`, biased by O(1/n); fails as it does, and hides missing support
    as `snips` does. Arguments and source: `cascade_dr`; normalisation: Thomas and Brunskill, ICML 2016.
    """
    reward_NK, weight_NK, before_NK, predicted_NK, mean_NK = _cascade(
        reward_NK,
        logged_prefix_NK,
        target_prefix_NK,
        predicted_reward_NK,
        target_predicted_NK,
        position_weight_K=position_weight_K,
    )
    numerator_NM = np.concatenate([before_NK * mean_NK, weight_NK * (reward_NK - predicted_NK)], axis=1)
    return ratio_estimate(numerator_NM, np.concatenate([before_NK, weight_NK], axis=1), weight_NK, interval, seed)


def weighted_rewards(reward_NK: ArrayLike, position_weight_K: ArrayLike | None) -> NDArray[np.float64]:
    """Rewards of slots times the weights of their positions.

    Raises:
        ValueError: where these are not one a slot, or not finite.
    """
    reward_NK = finite("reward_NK", reward_NK, 2)
    if position_weight_K is None:
        return reward_NK
    weight_K = finite("position_weight_K", position_weight_K, 1)
    same_shape(**{"reward_NK[0]": reward_NK[0], "position_weight_K": weight_K})
    return reward_NK * weight_K


def _joint(
    reward_NK: ArrayLike, logged_joint_N: ArrayLike, target_joint_N: ArrayLike, position_weight_K: ArrayLike | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    reward_NK = weighted_rewards(reward_NK, position_weight_K)
    logged_N = propensity("logged_joint_N", logged_joint_N, 1, logged=True)
    target_N = propensity("target_joint_N", target_joint_N, 1)
    same_shape(reward_NK=reward_NK[:, 0], logged_joint_N=logged_N, target_joint_N=target_N)
    return reward_NK.sum(axis=1), target_N / logged_N


def _slotwise(
    kind: str,
    reward_NK: ArrayLike,
    logged_NK: ArrayLike,
    target_NK: ArrayLike,
    position_weight_K: ArrayLike | None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    reward_NK = weighted_rewards(reward_NK, position_weight_K)
    logged_NK = propensity(f"logged_{kind}_NK", logged_NK, 2, logged=True)
    target_NK = propensity(f"target_{kind}_NK", target_NK, 2)
    same_shape(**{"reward_NK": reward_NK, f"logged_{kind}_NK": logged_NK, f"target_{kind}_NK": target_NK})
    return reward_NK, target_NK / logged_NK


def _prefixed(
    reward_NK: ArrayLike,
    logged_prefix_NK: ArrayLike,
    target_prefix_NK: ArrayLike,
    position_weight_K: ArrayLike | None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    checked = _slotwise("prefix", reward_NK, logged_prefix_NK, target_prefix_NK, position_weight_K)
    for name, given_NK in (("logged_prefix_NK", logged_prefix_NK), ("target_prefix_NK", target_prefix_NK)):
        prefix_NK = np.asarray(given_NK, np.float64)
        rising_RK = np.argwhere(np.diff(prefix_NK, axis=1) > ROUNDING)
        if len(rising_RK):
            n, k = rising_RK[0]
            raise ValueError(
                f"{name}[{n}] rises from {prefix_NK[n, k]:.6g} to {prefix_NK[n, k + 1]:.6g}; prefix propensities "
                "are running products of conditional ones and never rise"
            )
    return checked


def _cascade(
    reward_NK: ArrayLike,
    logged_prefix_NK: ArrayLike,
    target_prefix_NK: ArrayLike,
    predicted_reward_NK: ArrayLike,
    target_predicted_NK: ArrayLike,
    *,
    position_weight_K: ArrayLike | None,
) -> tuple[NDArray[np.float64], ...]:
    """Rewards, weights of slots 0..k, weights of slots 0..k-1, predicted rewards, their means under the target."""
    reward_NK, weight_NK = _prefixed(reward_NK, logged_prefix_NK, target_prefix_NK, position_weight_K)
    predicted_NK = finite("predicted_reward_NK", predicted_reward_NK, 2)
    mean_NK = finite("target_predicted_NK", target_predicted_NK, 2)
    same_shape(reward_NK=reward_NK, predicted_reward_NK=predicted_NK, target_predicted_NK=mean_NK)
    before_NK = np.concatenate([np.ones((len(weight_NK), 1)), weight_NK[:, :-1]], axis=1)
    return reward_NK, weight_NK, before_NK, predicted_NK, mean_NK
