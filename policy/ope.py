"""What another policy would have earned, from the log of the one that ran: pure functions on arrays.

With weight w = target propensity / logged propensity, every estimator here is a sum of means, or of ratios of two
means. They all assume that rows are independent, that logged propensities are the ones the items were drawn with,
and support: where the target policy could put an item, the logging policy could too. Where support is thin they
still compute; `diagnose` says how thin, and `require_overlap` refuses.

Rewards of slots arrive weighted, so that the reward of a slate is their sum. A slate shorter than K is padded with
reward 0 and propensities that repeat the last.

Undefined values (a self-normalised mean whose weights are all 0, an interval from one row) are NaN.

Shape letters: N rows (requests), K slots, A actions, M means.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Interval = Literal["delta", "bootstrap", "bernstein"]
"""How the 95% interval is made.

- `delta`: normal, with the standard error of the linearised estimate (exactly the mean's where nothing is
  normalised). Too narrow where a few weights carry the sum.
- `bootstrap`: percentiles of 1,000 resamples of rows, each normalised anew; resamples without any weight are left
  out. The same failure, a little milder; takes time in proportion to 1,000 N.
- `bernstein`: empirical Bernstein (Maurer and Pontil, COLT 2009, theorem 4, two-sided), with the range seen in the
  linearised terms standing in for the bound on it. Far wider; valid for small N but for that substitution.
"""

_Z = 1.959963984540054
_RESAMPLES = 1_000
_ROUNDING = 1e-9
_MOST_SHARE = 0.05


@dataclass(frozen=True, slots=True)
class Estimate:
    """A policy's value per row, with its 95% interval and what it rests on."""

    value: float
    low: float
    high: float
    effective_sample_size: float
    """(sum w)^2 / sum w^2: how many equally weighted rows would be as good. The least over slots that have weights
    of their own; of the unused weights for `dm`, where it says how far the model was left alone."""
    max_weight: float
    """The largest weight, of any slot."""
    n: int


@dataclass(frozen=True, slots=True)
class Overlap:
    """How well one log supports another policy."""

    n: int
    mean_weight: float
    """1 in expectation where support and logged propensities are right; far from it means one of them is not."""
    mean_weight_error: float
    """Its standard error."""
    effective_sample_size: float
    max_share: float
    """Share of all weight that one row carries."""
    outside_support: float
    """Share of the target policy's probability on items that the logging policy could not have shown."""


class InsufficientOverlap(ValueError):
    """The log says too little about the target policy for an estimate to mean anything."""

    def __init__(self, overlap: Overlap, needed: float) -> None:
        super().__init__(
            f"too little overlap: effective sample size {overlap.effective_sample_size:.1f} of {overlap.n} rows "
            f"(at least {needed:.0f} needed), one row carries {100 * overlap.max_share:.1f}% of the weight "
            f"(at most {100 * _MOST_SHARE:.0f}% allowed), mean weight {overlap.mean_weight:.3f} "
            f"+- {overlap.mean_weight_error:.3f} (1 expected), "
            f"{100 * overlap.outside_support:.1f}% of the target outside the log's support"
        )
        self.overlap = overlap


def diagnose(
    logged_propensity_N: ArrayLike, target_propensity_N: ArrayLike, *, outside_support: float = 0.0
) -> Overlap:
    """Figures on the weights target / logged.

    Args:
        logged_propensity_N: of actions, or joint ones of slates.
        outside_support: measured by the caller, who knows what else the target policy would have shown.
    """
    logged_N = _propensity("logged_propensity_N", logged_propensity_N, 1, logged=True)
    target_N = _propensity("target_propensity_N", target_propensity_N, 1)
    _same_shape(logged_propensity_N=logged_N, target_propensity_N=target_N)
    if not 0 <= outside_support <= 1:
        raise ValueError(f"outside_support is {outside_support}; a share between 0 and 1 is needed")
    weight_N = target_N / logged_N
    n, total = len(weight_N), weight_N.sum()
    return Overlap(
        n=n,
        mean_weight=float(weight_N.mean()),
        mean_weight_error=_standard_error(weight_N),
        effective_sample_size=_effective_sample_size(weight_N),
        max_share=float(weight_N.max() / total) if total else 1.0,
        outside_support=outside_support,
    )


def require_overlap(overlap: Overlap) -> None:
    """Refuse a log that cannot carry an estimate.

    Raises:
        InsufficientOverlap: where the effective sample size is below 200 or 1% of the rows, or where one row
            carries more than 5% of the weight.
    """
    needed = max(200.0, 0.01 * overlap.n)
    if overlap.effective_sample_size < needed or overlap.max_share > _MOST_SHARE:
        raise InsufficientOverlap(overlap, needed)


def truncated(logged_prefix_NK: ArrayLike, target_prefix_NK: ArrayLike) -> NDArray[np.float64]:
    """Target prefix propensities with every weight cut to sqrt(N): min(w, sqrt(N)) times the logged ones.

    For any estimator here in place of the target's own. A few rows can then no longer carry the sum; what they
    would have added is lost, a bias that goes to 0 as N grows and that self-normalising makes smaller still.
    Source: Ionides, Journal of Computational and Graphical Statistics 2008 (the rate sqrt(N)).
    """
    logged_NK = _propensity("logged_prefix_NK", logged_prefix_NK, 2, logged=True)
    target_NK = _propensity("target_prefix_NK", target_prefix_NK, 2)
    _same_shape(logged_prefix_NK=logged_NK, target_prefix_NK=target_NK)
    cut_NK = np.minimum(target_NK / logged_NK, math.sqrt(len(logged_NK))) * logged_NK
    return np.minimum.accumulate(cut_NK, axis=1)


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
    reward_N, weight_N = _single(reward_N, logged_propensity_N, target_propensity_N)
    if not clip > 0:
        raise ValueError(f"clip is {clip}; it must be above 0")
    weight_N = np.minimum(weight_N, clip)
    return _estimate(_column(weight_N * reward_N), None, weight_N, interval, seed)


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
    reward_N, weight_N = _single(reward_N, logged_propensity_N, target_propensity_N)
    return _estimate(_column(weight_N * reward_N), _column(weight_N), weight_N, interval, seed)


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
    return _estimate(_column(terms.expected_N), None, terms.weight_N, interval, seed)


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
    corrected_N = terms.expected_N + terms.weight_N * terms.residual_N
    return _estimate(_column(corrected_N), None, terms.weight_N, interval, seed)


def sips(
    reward_NK: ArrayLike,
    logged_joint_N: ArrayLike,
    target_joint_N: ArrayLike,
    *,
    interval: Interval = "delta",
    seed: int = 0,
) -> Estimate:
    """Slate inverse propensity scoring: mean_n w_n sum_k r_nk, with w the ratio of joint propensities of slates.

    Assumes nothing about how slots influence each other. Unbiased given support of whole slates; fails by
    variance, which grows exponentially with K. Source: as `ips`, on slates; named so by McInerney et al., KDD 2020.
    """
    reward_NK, weight_N = _joint(reward_NK, logged_joint_N, target_joint_N)
    return _estimate(_column(weight_N * reward_NK.sum(axis=1)), None, weight_N, interval, seed)


def sn_sips(
    reward_NK: ArrayLike,
    logged_joint_N: ArrayLike,
    target_joint_N: ArrayLike,
    *,
    interval: Interval = "delta",
    seed: int = 0,
) -> Estimate:
    """Self-normalised `sips`: sum_n w_n sum_k r_nk / sum_n w_n. Assumption, failure, source: `sips` and `snips`."""
    reward_NK, weight_N = _joint(reward_NK, logged_joint_N, target_joint_N)
    return _estimate(_column(weight_N * reward_NK.sum(axis=1)), _column(weight_N), weight_N, interval, seed)


def rips(
    reward_NK: ArrayLike,
    logged_prefix_NK: ArrayLike,
    target_prefix_NK: ArrayLike,
    *,
    interval: Interval = "delta",
    seed: int = 0,
) -> Estimate:
    """Reward-interaction inverse propensity scoring: mean_n sum_k w_nk r_nk, w_nk the ratio of prefix propensities.

    A prefix propensity is P(slots 0..k hold what they hold): the running product of the logged conditional ones.
    Assumes that the reward of a slot depends on its own and earlier slots only (people read downwards); given that
    and support, unbiased, with less variance than `sips`. Fails where later slots matter (a better item below
    steals the click), and by variance in low slots. Source: McInerney et al., KDD 2020.
    """
    reward_NK, weight_NK = _prefixed(reward_NK, logged_prefix_NK, target_prefix_NK)
    return _estimate(_column((weight_NK * reward_NK).sum(axis=1)), None, weight_NK, interval, seed)


def sn_rips(
    reward_NK: ArrayLike,
    logged_prefix_NK: ArrayLike,
    target_prefix_NK: ArrayLike,
    *,
    interval: Interval = "delta",
    seed: int = 0,
) -> Estimate:
    """Self-normalised `rips`: sum_k [ sum_n w_nk r_nk / sum_n w_nk ].

    Every slot is normalised by its own weights, whose spread grows with k. Assumption, failure: `rips` and `snips`.
    Source: McInerney et al., KDD 2020.
    """
    reward_NK, weight_NK = _prefixed(reward_NK, logged_prefix_NK, target_prefix_NK)
    return _estimate(weight_NK * reward_NK, weight_NK, weight_NK, interval, seed)


def cascade_dr(
    reward_NK: ArrayLike,
    logged_prefix_NK: ArrayLike,
    target_prefix_NK: ArrayLike,
    predicted_reward_NK: ArrayLike,
    target_predicted_NK: ArrayLike,
    *,
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
        reward_NK, logged_prefix_NK, target_prefix_NK, predicted_reward_NK, target_predicted_NK
    )
    terms_NK = before_NK * mean_NK + weight_NK * (reward_NK - predicted_NK)
    return _estimate(_column(terms_NK.sum(axis=1)), None, weight_NK, interval, seed)


def sn_cascade_dr(
    reward_NK: ArrayLike,
    logged_prefix_NK: ArrayLike,
    target_prefix_NK: ArrayLike,
    predicted_reward_NK: ArrayLike,
    target_predicted_NK: ArrayLike,
    *,
    interval: Interval = "delta",
    seed: int = 0,
) -> Estimate:
    """Self-normalised `cascade_dr`: the weights of every slot, and those of the slot before it, divided by their mean.

    Consistent under the assumption of `cascade_dr`, biased by O(1/n); fails as it does, and hides missing support
    as `snips` does. Arguments and source: `cascade_dr`; normalisation: Thomas and Brunskill, ICML 2016.
    """
    reward_NK, weight_NK, before_NK, predicted_NK, mean_NK = _cascade(
        reward_NK, logged_prefix_NK, target_prefix_NK, predicted_reward_NK, target_predicted_NK
    )
    numerator_NM = np.concatenate([before_NK * mean_NK, weight_NK * (reward_NK - predicted_NK)], axis=1)
    return _estimate(numerator_NM, np.concatenate([before_NK, weight_NK], axis=1), weight_NK, interval, seed)


def _estimate(
    numerator_NM: NDArray[np.float64],
    denominator_NM: NDArray[np.float64] | None,
    weight: NDArray[np.float64],
    interval: Interval,
    seed: int,
) -> Estimate:
    """sum_m mean(numerator_m) / mean(denominator_m); without denominators they are 1. `weight` is (N,) or (N, K)."""
    if interval not in ("delta", "bootstrap", "bernstein"):
        raise ValueError(f"interval is {interval!r}; there are delta, bootstrap, bernstein")
    n = len(numerator_NM)
    if denominator_NM is None:
        denominator_NM = np.ones_like(numerator_NM)
    below_M = denominator_NM.mean(axis=0)
    low, value, high = math.nan, math.nan, math.nan
    if below_M.all():
        ratio_M = numerator_NM.mean(axis=0) / below_M
        value = float(ratio_M.sum())
        # First-order influence of each row on the estimate, plus the estimate: its mean is `value`.
        linear_N = ((numerator_NM - ratio_M * denominator_NM) / below_M).sum(axis=1) + value
        if interval == "bootstrap":
            low, high = _bootstrap(numerator_NM, denominator_NM, seed)
        else:
            half = _Z * _standard_error(linear_N) if interval == "delta" else _bernstein(linear_N)
            low, high = value - half, value + half
    weight_NK = weight.reshape(n, -1)
    return Estimate(
        value=value,
        low=low,
        high=high,
        effective_sample_size=min(_effective_sample_size(weight_N) for weight_N in weight_NK.T),
        max_weight=float(weight_NK.max()),
        n=n,
    )


def _bootstrap(
    numerator_NM: NDArray[np.float64], denominator_NM: NDArray[np.float64], seed: int
) -> tuple[float, float]:
    rng = np.random.default_rng(seed)
    n = len(numerator_NM)
    values = []
    for _ in range(_RESAMPLES):
        count_N = np.bincount(rng.integers(n, size=n), minlength=n).astype(np.float64)
        below_M = count_N @ denominator_NM
        if below_M.all():
            values.append(float((count_N @ numerator_NM / below_M).sum()))
    if n < 2 or not values:
        return math.nan, math.nan
    low, high = np.quantile(values, (0.025, 0.975))
    return float(low), float(high)


def _bernstein(linear_N: NDArray[np.float64]) -> float:
    n = len(linear_N)
    if n < 2:
        return math.nan
    # A side gets half of the 5%, and the theorem's own ln(2 / delta) the other factor of 2.
    log_term = math.log(4 / 0.05)
    spread = math.sqrt(2 * float(linear_N.var(ddof=1)) * log_term / n)
    return spread + 7 * float(np.ptp(linear_N)) * log_term / (3 * (n - 1))


def _standard_error(value_N: NDArray[np.float64]) -> float:
    n = len(value_N)
    return float(value_N.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan


def _effective_sample_size(weight_N: NDArray[np.float64]) -> float:
    most = weight_N.max()
    if not most:
        return 0.0
    # Scaled first, so that squares of large weights do not overflow.
    scaled_N = weight_N / most
    return float(scaled_N.sum() ** 2 / (scaled_N**2).sum())


@dataclass(frozen=True, slots=True)
class _Modelled:
    expected_N: NDArray[np.float64]
    residual_N: NDArray[np.float64]
    weight_N: NDArray[np.float64]


def _modelled(
    reward_N: ArrayLike,
    action_N: ArrayLike,
    logged_propensity_N: ArrayLike,
    target_distribution_NA: ArrayLike,
    predicted_reward_NA: ArrayLike,
) -> _Modelled:
    reward_N = _finite("reward_N", reward_N, 1)
    logged_N = _propensity("logged_propensity_N", logged_propensity_N, 1, logged=True)
    target_NA = _propensity("target_distribution_NA", target_distribution_NA, 2)
    predicted_NA = _finite("predicted_reward_NA", predicted_reward_NA, 2)
    _same_shape(target_distribution_NA=target_NA, predicted_reward_NA=predicted_NA)
    total_N = target_NA.sum(axis=1)
    wrong_N = np.flatnonzero(np.abs(total_N - 1) > 1e-3)
    if len(wrong_N):
        raise ValueError(f"target_distribution_NA[{wrong_N[0]}] sums to {total_N[wrong_N[0]]:.6g}; it must sum to 1")
    action_N = np.asarray(action_N)
    if not np.issubdtype(action_N.dtype, np.integer):
        raise ValueError(f"action_N has type {action_N.dtype}; positions along the action axis are needed")
    _same_shape(reward_N=reward_N, action_N=action_N, logged_propensity_N=logged_N, target_distribution_NA=total_N)
    outside_N = action_N[(action_N < 0) | (action_N >= target_NA.shape[1])]
    if len(outside_N):
        raise ValueError(f"action_N holds {outside_N[0]}; positions go from 0 to {target_NA.shape[1] - 1}")
    row_N = np.arange(len(reward_N))
    return _Modelled(
        expected_N=(target_NA * predicted_NA).sum(axis=1),
        residual_N=reward_N - predicted_NA[row_N, action_N],
        weight_N=target_NA[row_N, action_N] / logged_N,
    )


def _single(
    reward_N: ArrayLike, logged_propensity_N: ArrayLike, target_propensity_N: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    reward_N = _finite("reward_N", reward_N, 1)
    logged_N = _propensity("logged_propensity_N", logged_propensity_N, 1, logged=True)
    target_N = _propensity("target_propensity_N", target_propensity_N, 1)
    _same_shape(reward_N=reward_N, logged_propensity_N=logged_N, target_propensity_N=target_N)
    return reward_N, target_N / logged_N


def _joint(
    reward_NK: ArrayLike, logged_joint_N: ArrayLike, target_joint_N: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    reward_NK = _finite("reward_NK", reward_NK, 2)
    logged_N = _propensity("logged_joint_N", logged_joint_N, 1, logged=True)
    target_N = _propensity("target_joint_N", target_joint_N, 1)
    _same_shape(reward_NK=reward_NK[:, 0], logged_joint_N=logged_N, target_joint_N=target_N)
    return reward_NK, target_N / logged_N


def _prefixed(
    reward_NK: ArrayLike, logged_prefix_NK: ArrayLike, target_prefix_NK: ArrayLike
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    reward_NK = _finite("reward_NK", reward_NK, 2)
    logged_NK = _propensity("logged_prefix_NK", logged_prefix_NK, 2, logged=True)
    target_NK = _propensity("target_prefix_NK", target_prefix_NK, 2)
    _same_shape(reward_NK=reward_NK, logged_prefix_NK=logged_NK, target_prefix_NK=target_NK)
    for name, prefix_NK in (("logged_prefix_NK", logged_NK), ("target_prefix_NK", target_NK)):
        rising_RK = np.argwhere(np.diff(prefix_NK, axis=1) > _ROUNDING)
        if len(rising_RK):
            n, k = rising_RK[0]
            raise ValueError(
                f"{name}[{n}] rises from {prefix_NK[n, k]:.6g} to {prefix_NK[n, k + 1]:.6g}; prefix propensities "
                "are running products of conditional ones and never rise"
            )
    return reward_NK, target_NK / logged_NK


def _cascade(
    reward_NK: ArrayLike,
    logged_prefix_NK: ArrayLike,
    target_prefix_NK: ArrayLike,
    predicted_reward_NK: ArrayLike,
    target_predicted_NK: ArrayLike,
) -> tuple[NDArray[np.float64], ...]:
    """Rewards, weights of slots 0..k, weights of slots 0..k-1, predicted rewards, their means under the target."""
    reward_NK, weight_NK = _prefixed(reward_NK, logged_prefix_NK, target_prefix_NK)
    predicted_NK = _finite("predicted_reward_NK", predicted_reward_NK, 2)
    mean_NK = _finite("target_predicted_NK", target_predicted_NK, 2)
    _same_shape(reward_NK=reward_NK, predicted_reward_NK=predicted_NK, target_predicted_NK=mean_NK)
    before_NK = np.concatenate([np.ones((len(weight_NK), 1)), weight_NK[:, :-1]], axis=1)
    return reward_NK, weight_NK, before_NK, predicted_NK, mean_NK


def _column(value_N: NDArray[np.float64]) -> NDArray[np.float64]:
    return value_N[:, None]


def _finite(name: str, value: ArrayLike, axes: int) -> NDArray[np.float64]:
    array = np.asarray(value, np.float64)
    if array.ndim != axes:
        raise ValueError(f"{name} has shape {array.shape}; {axes} axes are needed")
    if not array.size:
        raise ValueError(f"{name} has shape {array.shape}; at least one row is needed")
    wrong = np.argwhere(~np.isfinite(array))
    if len(wrong):
        raise ValueError(f"{name}{wrong[0].tolist()} is {array[tuple(wrong[0])]}; a finite number is needed")
    return array


def _propensity(name: str, value: ArrayLike, axes: int, *, logged: bool = False) -> NDArray[np.float64]:
    array = _finite(name, value, axes)
    wrong = np.argwhere((array > 1 + _ROUNDING) | (array <= 0 if logged else array < 0))
    if len(wrong):
        allowed = "above 0, at most 1" if logged else "between 0 and 1"
        raise ValueError(
            f"{name}{wrong[0].tolist()} is {array[tuple(wrong[0])]:.6g}; a probability {allowed} is needed "
            f"({len(wrong)} are not)"
        )
    return array


def _same_shape(**arrays: NDArray[np.generic]) -> None:
    (first, expected), *others = arrays.items()
    for name, array in others:
        if array.shape != expected.shape:
            raise ValueError(f"{name} has shape {array.shape}, but {first} {expected.shape}")
