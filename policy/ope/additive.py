"""Estimators for slates whose reward is a sum over slots, of which only the sum need be seen.

With phi(k, a) what item a adds in slot k, the expected reward of a slate s is sum_k phi(k, s_k). Then a slate's weight
need not be the ratio of joint propensities, which no log supports for long: G below has the same effect on such a
reward, and a variance that grows with K A instead of A^K. G may be negative.

Shape letters: N rows (requests), K slots, A actions, D = K A slots times actions, C controls.
"""

from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from policy.ope.arrays import positions, propensity, same_shape
from policy.ope.interval import Estimate, Interval, ratio_estimate
from policy.ope.slates import weighted_rewards

_NOISE = 1e-10
"""Eigenvalues below this share of the largest are taken for 0."""


def pseudo_inverse(
    reward_NK: ArrayLike,
    logged_marginal_NK: ArrayLike,
    target_marginal_NK: ArrayLike,
    *,
    position_weight_K: ArrayLike | None = None,
    interval: Interval = "delta",
    seed: int = 0,
) -> Estimate:
    """Pseudo-inverse, slots drawn independently: mean_n G_n sum_k r_nk, G_n = 1 - K + sum_k w_nk, w of marginals.

    A marginal propensity is P(slot k holds what it holds). Assumes an additive reward, support of every slot, and that
    the log drew every slot by itself, from a distribution that the request alone decides (`pseudo_inverse_of_pairs`
    has no such need); the target may be any policy. Unbiased then. Fails by bias where items compete or complete each
    other, and where the log drew without replacement. Source: Swaminathan et al., NeurIPS 2017; the closed form:
    Vlassis et al., ICML 2021.
    """
    reward_N, weight_N, _ = _independent(reward_NK, logged_marginal_NK, target_marginal_NK, position_weight_K)
    return ratio_estimate((weight_N * reward_N)[:, None], None, weight_N, interval, seed)


def sn_pseudo_inverse(
    reward_NK: ArrayLike,
    logged_marginal_NK: ArrayLike,
    target_marginal_NK: ArrayLike,
    *,
    position_weight_K: ArrayLike | None = None,
    interval: Interval = "delta",
    seed: int = 0,
) -> Estimate:
    """Self-normalised `pseudo_inverse`: sum_n G_n r_n / sum_n G_n, r_n the reward of the slate.

    Assumes what `pseudo_inverse` does. Consistent, biased by O(1/n), indifferent to a constant added to the rewards.
    Fails as it does, and where the weights, some of them negative, come near to cancelling each other. Source:
    Swaminathan et al., NeurIPS 2017 (wPI).
    """
    reward_N, weight_N, _ = _independent(reward_NK, logged_marginal_NK, target_marginal_NK, position_weight_K)
    return ratio_estimate((weight_N * reward_N)[:, None], weight_N[:, None], weight_N, interval, seed)


def cv_pseudo_inverse(
    reward_NK: ArrayLike,
    logged_marginal_NK: ArrayLike,
    target_marginal_NK: ArrayLike,
    *,
    position_weight_K: ArrayLike | None = None,
    interval: Interval = "delta",
    seed: int = 0,
) -> Estimate:
    """`pseudo_inverse` with control variates: mean_n [ G_n r_n - sum_k b_k (w_nk - 1) ].

    Every w_nk is 1 in expectation, so any b leaves the expectation as it is; b is fitted by least squares, for the
    least variance. Assumes what `pseudo_inverse` does. Biased by O(1/n), for b is fitted on the same rows; fails as
    `pseudo_inverse` does, and with hardly more rows than slots. Source: Vlassis et al., ICML 2021 (a control a slot).
    """
    reward_N, weight_N, slot_NK = _independent(reward_NK, logged_marginal_NK, target_marginal_NK, position_weight_K)
    terms_N = _controlled(weight_N * reward_N, slot_NK - 1)
    return ratio_estimate(terms_N[:, None], None, weight_N, interval, seed)


def pseudo_inverse_of_pairs(
    reward_NK: ArrayLike,
    action_NK: ArrayLike,
    logged_pair_NDD: ArrayLike,
    target_marginal_NKA: ArrayLike,
    *,
    form: Literal["plain", "normalised", "controlled"] = "plain",
    position_weight_K: ArrayLike | None = None,
    interval: Interval = "delta",
    seed: int = 0,
) -> Estimate:
    """Pseudo-inverse for any logging policy, such as one without replacement: G_n = q_n' pinv(Gamma_n) 1_{s_n}.

    Args:
        action_NK: s, what the slots held.
        logged_pair_NDD: Gamma; entry (k A + a, l A + b) is P(slot k holds a and slot l holds b | request).
        target_marginal_NKA: q; P(slot k holds a | request) under the target policy.
        form: `plain` mean_n G_n r_n; `normalised` and `controlled` as `sn_pseudo_inverse` and `cv_pseudo_inverse`, with
            G_n - 1 as the only control.

    Assumes an additive reward and support of every slot. Unbiased then, but for the form. Fails by bias where items
    compete or complete each other, and costs D^3 a row: for a handful of slots and actions. Source: Swaminathan et
    al., NeurIPS 2017.
    """
    reward_N = weighted_rewards(reward_NK, position_weight_K).sum(axis=1)
    target_NKA = propensity("target_marginal_NKA", target_marginal_NKA, 3)
    n, slots, actions = target_NKA.shape
    pair_NDD = propensity("logged_pair_NDD", logged_pair_NDD, 3)
    if pair_NDD.shape != (n, slots * actions, slots * actions):
        raise ValueError(f"logged_pair_NDD has shape {pair_NDD.shape}, but target_marginal_NKA {target_NKA.shape}")
    action_NK = positions("action_NK", action_NK, 2, actions)
    same_shape(action_NK=action_NK, target_marginal_NKA=target_NKA[:, :, 0], reward_NK=np.asarray(reward_NK))
    inverse_NDD = np.linalg.pinv(pair_NDD, rcond=_NOISE, hermitian=True)
    of_slot_ND = np.einsum("nd,nde->ne", target_NKA.reshape(n, -1), inverse_NDD)
    weight_N = np.take_along_axis(of_slot_ND, action_NK + actions * np.arange(slots), axis=1).sum(axis=1)
    terms_N = weight_N * reward_N
    if form == "controlled":
        terms_N = _controlled(terms_N, weight_N[:, None] - 1)
    elif form not in ("plain", "normalised"):
        raise ValueError(f"form is {form!r}; there are plain, normalised, controlled")
    below_NM = weight_N[:, None] if form == "normalised" else None
    return ratio_estimate(terms_N[:, None], below_NM, weight_N, interval, seed)


def _independent(
    reward_NK: ArrayLike,
    logged_marginal_NK: ArrayLike,
    target_marginal_NK: ArrayLike,
    position_weight_K: ArrayLike | None,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Rewards of slates, their weights, and the weights of their slots."""
    reward_NK = weighted_rewards(reward_NK, position_weight_K)
    logged_NK = propensity("logged_marginal_NK", logged_marginal_NK, 2, logged=True)
    target_NK = propensity("target_marginal_NK", target_marginal_NK, 2)
    same_shape(reward_NK=reward_NK, logged_marginal_NK=logged_NK, target_marginal_NK=target_NK)
    slot_NK = target_NK / logged_NK
    return reward_NK.sum(axis=1), 1 - slot_NK.shape[1] + slot_NK.sum(axis=1), slot_NK


def _controlled(terms_N: NDArray[np.float64], control_NC: NDArray[np.float64]) -> NDArray[np.float64]:
    """Terms without what controls of expectation 0 explain of them."""
    slope_C, *_ = np.linalg.lstsq(control_NC - control_NC.mean(axis=0), terms_N - terms_N.mean())
    controlled_N: NDArray[np.float64] = terms_N - control_NC @ slope_C
    return controlled_N
