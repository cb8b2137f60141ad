"""An estimate and its 95% interval, for whatever is a sum of ratios of means.

Shape letters: N rows, K slots, M means, R resamples.
"""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Interval = Literal["delta", "bootstrap", "bernstein"]
"""How the 95% interval is made.

- `delta`: normal, with the standard error of the linearised estimate (exactly the mean's where nothing is
  normalised). Too narrow where a few weights carry the sum.
- `bootstrap`: percentiles of 1,000 resamples of rows, each normalised anew; resamples without any weight are left
  out. The same failure, a little milder; takes time in proportion to 1,000 N. Source: Efron, Annals of Statistics 1979.
- `bernstein`: empirical Bernstein (Maurer and Pontil, COLT 2009, theorem 4, two-sided), with the range seen in the
  linearised terms standing in for the bound on it. Far wider; valid for small N but for that substitution.
"""

_Z = 1.959963984540054
_RESAMPLES = 1_000
_DRAWS = 2**19


@dataclass(frozen=True, slots=True)
class Estimate:
    """A policy's value per row, with its 95% interval and what it rests on. Weights are those that were used: clipped,
    switched off or shrunk where the estimator does that."""

    value: float
    low: float
    high: float
    effective_sample_size: float
    """(sum w)^2 / sum w^2: how many equally weighted rows would be as good. The least over slots that have weights
    of their own; of the unused weights for `dm`, where it says how far the model was left alone."""
    max_weight: float
    """The largest weight, of any slot."""
    n: int


def ratio_estimate(
    numerator_NM: NDArray[np.float64],
    denominator_NM: NDArray[np.float64] | None,
    weight: NDArray[np.float64],
    interval: Interval,
    seed: int,
) -> Estimate:
    """sum_m mean(numerator_m) / mean(denominator_m).

    Args:
        denominator_NM: 1 throughout where it is None.
        weight: (N,) or (N, K); only described.

    Raises:
        ValueError: for an interval of another name.
    """
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
            half = _Z * standard_error(linear_N) if interval == "delta" else _bernstein(linear_N)
            low, high = value - half, value + half
    weight_NK = weight.reshape(n, -1)
    return Estimate(
        value=value,
        low=low,
        high=high,
        effective_sample_size=min(effective_sample_size(weight_N) for weight_N in weight_NK.T),
        max_weight=float(weight_NK.max()),
        n=n,
    )


def standard_error(value_N: NDArray[np.float64]) -> float:
    """Of the mean; NaN for one row."""
    n = len(value_N)
    return float(value_N.std(ddof=1)) / math.sqrt(n) if n > 1 else math.nan


def effective_sample_size(weight_N: NDArray[np.float64]) -> float:
    """(sum w)^2 / sum w^2; 0 where all are 0. Source: Kish, Survey Sampling, 1965."""
    most = np.abs(weight_N).max()
    if not most:
        return 0.0
    # Scaled first, so that squares of large weights do not overflow.
    scaled_N = weight_N / most
    return float(scaled_N.sum() ** 2 / (scaled_N**2).sum())


def _bootstrap(
    numerator_NM: NDArray[np.float64], denominator_NM: NDArray[np.float64], seed: int
) -> tuple[float, float]:
    rng = np.random.default_rng(seed)
    n = len(numerator_NM)
    values: list[float] = []
    while n > 1 and len(values) < _RESAMPLES:
        # As many resamples at once as are worth a call, and no more than memory should hold.
        at_once = min(_RESAMPLES - len(values), max(1, _DRAWS // n))
        drawn_RN = rng.integers(n, size=(at_once, n)) + n * np.arange(at_once)[:, None]
        count_RN = np.bincount(drawn_RN.ravel(), minlength=at_once * n).reshape(at_once, n).astype(np.float64)
        below_RM, above_RM = count_RN @ denominator_NM, count_RN @ numerator_NM
        with np.errstate(divide="ignore", invalid="ignore"):
            values += (above_RM / below_RM).sum(axis=1).tolist()
    value_R = np.array(values)
    value_R = value_R[np.isfinite(value_R)]
    if not len(value_R):
        return math.nan, math.nan
    low, high = np.quantile(value_R, (0.025, 0.975))
    return float(low), float(high)


def _bernstein(linear_N: NDArray[np.float64]) -> float:
    n = len(linear_N)
    if n < 2:
        return math.nan
    # A side gets half of the 5%, and the theorem's own ln(2 / delta) the other factor of 2.
    log_term = math.log(4 / 0.05)
    spread = math.sqrt(2 * float(linear_N.var(ddof=1)) * log_term / n)
    return spread + 7 * float(np.ptp(linear_N)) * log_term / (3 * (n - 1))
