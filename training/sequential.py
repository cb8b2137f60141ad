"""Statistics that stay true however often one looks at them, for experiments that are watched while they run.

Confidence sequences. While units come in, the difference d of two arms' means per unit has the variance
v = s1^2 / n1 + s2^2 / n2, and with t = n1 + n2 units

    d +- sqrt(v) sqrt(2 (t r + 1) / (t r) log(sqrt(t r + 1) / alpha))

holds the truth at all t at once with probability 1 - alpha, as t grows (asymptotic confidence sequences: Waudby-Smith,
Arbour, Sinha, Kennedy and Ramdas 2021; the mixture of Robbins 1970, and the test of Johari, Koomen, Pekelis and Walsh
2017). r decides at how many units it is tightest, and is fixed before:

    r = (-2 log alpha + log(-2 log alpha) + 1) / planned units.

Units that return and go on earning only make the looks more alike, and fewer chances to err. What is seen of fewer than
`LEAST` units an arm is not judged: there the mean is not yet normal.

Counts. Under the shares that were configured, the Bayes factor of counts against them, with a Dirichlet prior around
them, is a martingale that starts at 1, so it ever reaches 1 / alpha with probability alpha at most (Lindon and Malek,
NeurIPS 2022).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaln

LEAST = 50
_CONCENTRATION = 500.0
"""Of the prior on shares: how far they are expected to be off, about 1 / sqrt of it."""


@dataclass(frozen=True, slots=True)
class Difference:
    """How much more per unit one arm earns than another, as of now, with an interval that may be looked at any time."""

    value: float
    low: float
    high: float
    p: float
    """The smallest alpha at which 0 is outside; 1 where nothing can be said yet."""


NOTHING = Difference(math.nan, -math.inf, math.inf, 1.0)


def difference(one_U: NDArray[np.float64], other_U: NDArray[np.float64], *, alpha: float, planned: int) -> Difference:
    """Of the mean per unit of the second over the first.

    Args:
        one_U: of every unit of an arm, what it earned so far.
        planned: units of both arms together at which the interval should be tightest.
    """
    if min(len(one_U), len(other_U)) < LEAST:
        return NOTHING
    variance = one_U.var(ddof=1) / len(one_U) + other_U.var(ddof=1) / len(other_U)
    return sequence(float(other_U.mean() - one_U.mean()), float(variance), len(one_U) + len(other_U), alpha, planned)


def mean(value_U: NDArray[np.float64], *, alpha: float, planned: int) -> Difference:
    """Of the mean over units from 0."""
    if len(value_U) < LEAST:
        return NOTHING
    return sequence(float(value_U.mean()), float(value_U.var(ddof=1) / len(value_U)), len(value_U), alpha, planned)


def sequence(value: float, variance: float, units: int, alpha: float, planned: int) -> Difference:
    """
    Args:
        variance: of `value` as an estimate.
    """
    if not variance > 0:
        return Difference(value, value, value, 1.0 if value == 0 else 0.0) if units else NOTHING
    mixed = units * (-2 * math.log(alpha) + math.log(-2 * math.log(alpha)) + 1) / planned
    radius = math.sqrt(variance * 2 * (mixed + 1) / mixed * math.log(math.sqrt(mixed + 1) / alpha))
    log_ratio = value**2 / (2 * variance) * mixed / (mixed + 1) - 0.5 * math.log(mixed + 1)
    return Difference(value, value - radius, value + radius, min(1.0, math.exp(-min(log_ratio, 700.0))))


def log_evidence(count_A: Sequence[int], share_A: Sequence[float]) -> float:
    """Natural logarithm of the Bayes factor of counts against the shares they should have. Counts that come after a
    change of the shares have a factor of their own; the factors multiply.

    Raises:
        ValueError: where something was counted that has no share.
    """
    count, share = np.array(count_A, np.float64), np.array(share_A, np.float64)
    if (count[share <= 0] > 0).any():
        raise ValueError(
            f"counts {list(count_A)} where the shares are {list(share_A)}: an arm without a share has none"
        )
    count, share = count[share > 0], share[share > 0] / share.sum()
    prior = _CONCENTRATION * share
    mixed = gammaln(prior.sum()) - gammaln(prior.sum() + count.sum()) + (gammaln(prior + count) - gammaln(prior)).sum()
    return float(mixed - (count * np.log(share)).sum())
