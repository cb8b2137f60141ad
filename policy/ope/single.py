"""Estimators for logs of one action a row.

Shape letters: N rows (requests), A actions.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from policy.ope.arrays import distribution, finite, positions, propensity, same_shape
from policy.ope.interval import Estimate, Interval, ratio_estimate


def replay(
    reward_N: ArrayLike,
    logged_propensity_N: ArrayLike,
    target_propensity_N: ArrayLike,
    *,
    interval: Interval = "delta",
    seed: int = 0,
) -> Estimate:
    """Replay: sum_n target_n r_n / sum_n target_n; for a target without chance, the mean reward where it agrees.

    Assumes that the log was drawn uniformly from as many actions in every row, and uses the logged propensities for
    nothing else than to be checked. Unbiased then. Fails by bias on any other log, where what was shown often counts
    often; and it reads one row in A. Source: Li et al., WSDM 2011, with the draw of a target that has chance replaced
    by its probability.
    """
    reward_N, _ = _weighted(reward_N, logged_propensity_N, target_propensity_N)
    agreed_N = np.asarray(target_propensity_N, np.float64)
    return ratio_estimate(_column(agreed_N * reward_N), _column(agreed_N), agreed_N, interval, seed)


def ips(
    reward_N: ArrayLike,
    logged_propensity_N: ArrayLike,
    target_propensity_N: ArrayLike,
    *,
    clip: float = math.inf,
    interval: Interval = "delta",
    seed: int = 0,
) -> Estimate:
    """Inverse propensity scoring: mean_n min(w_n, clip) r_n.

    Assumes support. Unbiased without clipping; clipping trades variance for a bias towards 0. Fails by variance:
    a rare action that the target policy likes decides the result. Source: Horvitz and Thompson, JASA 1952; Strehl
    et al., NeurIPS 2010; clipping: Bottou et al., JMLR 2013.
    """
    reward_N, weight_N = _weighted(reward_N, logged_propensity_N, target_propensity_N)
    if not clip > 0:
        raise ValueError(f"clip is {clip}; it must be above 0")
    weight_N = np.minimum(weight_N, clip)
    return ratio_estimate(_column(weight_N * reward_N), None, weight_N, interval, seed)


def snips(
    reward_N: ArrayLike,
    logged_propensity_N: ArrayLike,
    target_propensity_N: ArrayLike,
    *,
    interval: Interval = "delta",
    seed: int = 0,
) -> Estimate:
    """Self-normalised inverse propensity scoring: sum_n w_n r_n / sum_n w_n.

    Assumes support. Consistent, biased by O(1/n), never outside the range of the rewards; indifferent to a
    constant added to them. Fails where few rows carry the weight, and hides missing support: what the log cannot
    see is taken to earn what the rest does. Source: Swaminathan and Joachims, NeurIPS 2015.
    """
    reward_N, weight_N = _weighted(reward_N, logged_propensity_N, target_propensity_N)
    return ratio_estimate(_column(weight_N * reward_N), _column(weight_N), weight_N, interval, seed)


def dm(
    reward_N: ArrayLike,
    action_N: ArrayLike,
    logged_propensity_N: ArrayLike,
    target_distribution_NA: ArrayLike,
    predicted_reward_NA: ArrayLike,
    *,
    interval: Interval = "delta",
    seed: int = 0,
) -> Estimate:
    """Direct method: mean_n sum_a target(a) q(a), with q the predicted reward.

    Assumes that the model is right where the target policy goes. No importance weights, hence little variance;
    fails by bias, and silently: rewards do not enter, and the interval knows nothing of the model's error. Source:
    Beygelzimer and Langford, KDD 2009.
    """
    terms = _modelled(reward_N, action_N, logged_propensity_N, target_distribution_NA, predicted_reward_NA)
    return ratio_estimate(_column(terms.expected_N), None, terms.weight_N, interval, seed)


def dr(
    reward_N: ArrayLike,
    action_N: ArrayLike,
    logged_propensity_N: ArrayLike,
    target_distribution_NA: ArrayLike,
    predicted_reward_NA: ArrayLike,
    *,
    interval: Interval = "delta",
    seed: int = 0,
) -> Estimate:
    """Doubly robust: mean_n [ sum_a target(a) q(a) + w_n (r_n - q(a_n)) ].

    Unbiased for any q that was not fitted on these rows, given support; its variance is that of the residuals.
    Fails as `ips` does where weights are large and q poor, and is biased where q saw these rewards (fit on other
    rows, or cross-fit). Source: Dudik, Langford and Li, ICML 2011.
    """
    terms = _modelled(reward_N, action_N, logged_propensity_N, target_distribution_NA, predicted_reward_NA)
    return _corrected(terms, terms.weight_N, interval, seed)


def sndr(
    reward_N: ArrayLike,
    action_N: ArrayLike,
    logged_propensity_N: ArrayLike,
    target_distribution_NA: ArrayLike,
    predicted_reward_NA: ArrayLike,
    *,
    interval: Interval = "delta",
    seed: int = 0,
) -> Estimate:
    """Self-normalised doubly robust: mean_n sum_a target(a) q(a) + sum_n w_n (r_n - q(a_n)) / sum_n w_n.

    Assumes what `dr` does. Consistent, biased by O(1/n), its correction never outside the range of the residuals.
    Fails where few rows carry the weight, and hides missing support as `snips` does. Source: Dudik et al.,
    Statistical Science 2014; normalisation: Thomas and Brunskill, ICML 2016.
    """
    terms = _modelled(reward_N, action_N, logged_propensity_N, target_distribution_NA, predicted_reward_NA)
    numerator_NM = np.stack([terms.expected_N, terms.weight_N * terms.residual_N], axis=1)
    denominator_NM = np.stack([np.ones_like(terms.weight_N), terms.weight_N], axis=1)
    return ratio_estimate(numerator_NM, denominator_NM, terms.weight_N, interval, seed)


def switch_dr(
    reward_N: ArrayLike,
    action_N: ArrayLike,
    logged_propensity_N: ArrayLike,
    target_distribution_NA: ArrayLike,
    predicted_reward_NA: ArrayLike,
    *,
    threshold: float,
    interval: Interval = "delta",
    seed: int = 0,
) -> Estimate:
    """Switch to the model where weights are large: `dr` with weights w_n [w_n <= threshold].

    `dm` at threshold 0, `dr` at infinity. Assumes that the model is right where weights are above the threshold.
    Fails by the model's bias there, which the interval knows nothing of, and by the choice of the threshold. Source:
    Wang, Agarwal and Dudik, ICML 2017.
    """
    terms = _modelled(reward_N, action_N, logged_propensity_N, target_distribution_NA, predicted_reward_NA)
    if not threshold >= 0:
        raise ValueError(f"threshold is {threshold}; it must be at least 0")
    return _corrected(terms, np.where(terms.weight_N <= threshold, terms.weight_N, 0.0), interval, seed)


def dr_os(
    reward_N: ArrayLike,
    action_N: ArrayLike,
    logged_propensity_N: ArrayLike,
    target_distribution_NA: ArrayLike,
    predicted_reward_NA: ArrayLike,
    *,
    lam: float,
    interval: Interval = "delta",
    seed: int = 0,
) -> Estimate:
    """Doubly robust with optimistic shrinkage: `dr` with weights lam w_n / (w_n^2 + lam).

    `dm` at lam 0, `dr` at infinity; in between a large weight counts as a small one, for a weight w above sqrt(lam)
    is cut to about lam / w. Assumes what `dr` does. Fails by bias where the model is poor for exactly the actions that
    the target policy likes and the log hardly shows, and by the choice of lam. Source: Su et al., ICML 2020.
    """
    terms = _modelled(reward_N, action_N, logged_propensity_N, target_distribution_NA, predicted_reward_NA)
    if not lam >= 0:
        raise ValueError(f"lam is {lam}; it must be at least 0")
    shrunk_N = terms.weight_N / (1 + terms.weight_N**2 / lam) if lam else np.zeros_like(terms.weight_N)
    return _corrected(terms, shrunk_N, interval, seed)


def mrdr(
    reward_N: ArrayLike,
    action_N: ArrayLike,
    logged_propensity_N: ArrayLike,
    target_distribution_NA: ArrayLike,
    predicted_reward_NA: ArrayLike,
    *,
    interval: Interval = "delta",
    seed: int = 0,
) -> Estimate:
    """More robust doubly robust: `dr` with the model, among all b + c q, whose residuals add least variance.

    b and c are least squares with weights target(a_n) (1 - logged_n) / logged_n^2, fitted on the rows of even position
    for those of odd position and the other way round; so the estimate is unbiased as `dr` is, for any q that was not
    fitted on these rows. Assumes support. Gains where q is off in level or scale, as a model of clicks often is; fails
    as `dr` does otherwise, and with a handful of rows b and c are noise. Source: Farajtabar, Chow and Ghavamzadeh,
    ICML 2018; the weights for a target that has chance: Saito et al., NeurIPS 2021 (the Open Bandit Pipeline).
    """
    terms = _modelled(reward_N, action_N, logged_propensity_N, target_distribution_NA, predicted_reward_NA)
    logged_N = np.asarray(logged_propensity_N, np.float64)
    root_N = np.sqrt(terms.weight_N * np.maximum(1 - logged_N, 0) / logged_N)
    model_N2 = np.stack([np.ones_like(root_N), terms.predicted_N], axis=1)
    better_N = terms.expected_N + terms.weight_N * terms.residual_N
    for of in (0, 1):
        other = slice(1 - of, None, 2)
        # What b and c - 1 add to the model; 0 where nothing tells.
        added_2, *_ = np.linalg.lstsq(model_N2[other] * root_N[other, None], terms.residual_N[other] * root_N[other])
        expected_N2 = np.stack([np.ones_like(root_N), terms.expected_N], axis=1)
        better_N[of::2] += ((expected_N2 - terms.weight_N[:, None] * model_N2) @ added_2)[of::2]
    return ratio_estimate(_column(better_N), None, terms.weight_N, interval, seed)


@dataclass(frozen=True, slots=True)
class _Modelled:
    expected_N: NDArray[np.float64]
    """sum_a target(a) q(a)."""
    predicted_N: NDArray[np.float64]
    residual_N: NDArray[np.float64]
    weight_N: NDArray[np.float64]


def _corrected(terms: _Modelled, weight_N: NDArray[np.float64], interval: Interval, seed: int) -> Estimate:
    return ratio_estimate(_column(terms.expected_N + weight_N * terms.residual_N), None, weight_N, interval, seed)


def _modelled(
    reward_N: ArrayLike,
    action_N: ArrayLike,
    logged_propensity_N: ArrayLike,
    target_distribution_NA: ArrayLike,
    predicted_reward_NA: ArrayLike,
) -> _Modelled:
    reward_N = finite("reward_N", reward_N, 1)
    logged_N = propensity("logged_propensity_N", logged_propensity_N, 1, logged=True)
    target_NA = distribution("target_distribution_NA", target_distribution_NA)
    predicted_NA = finite("predicted_reward_NA", predicted_reward_NA, 2)
    same_shape(target_distribution_NA=target_NA, predicted_reward_NA=predicted_NA)
    action_N = positions("action_N", action_N, 1, target_NA.shape[1])
    same_shape(
        reward_N=reward_N, action_N=action_N, logged_propensity_N=logged_N, target_distribution_NA=target_NA[:, 0]
    )
    row_N = np.arange(len(reward_N))
    predicted_N = predicted_NA[row_N, action_N]
    return _Modelled(
        expected_N=(target_NA * predicted_NA).sum(axis=1),
        predicted_N=predicted_N,
        residual_N=reward_N - predicted_N,
        weight_N=target_NA[row_N, action_N] / logged_N,
    )


def _weighted(
    reward_N: ArrayLike, logged_propensity_N: ArrayLike, target_propensity_N: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    reward_N = finite("reward_N", reward_N, 1)
    logged_N = propensity("logged_propensity_N", logged_propensity_N, 1, logged=True)
    target_N = propensity("target_propensity_N", target_propensity_N, 1)
    same_shape(reward_N=reward_N, logged_propensity_N=logged_N, target_propensity_N=target_N)
    return reward_N, target_N / logged_N


def _column(value_N: NDArray[np.float64]) -> NDArray[np.float64]:
    return value_N[:, None]
