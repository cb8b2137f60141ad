"""Whether a log can carry an estimate of another policy: figures, and what is wrong with them.

Shape letters: N rows (requests), A actions.
"""

import math
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import ArrayLike, NDArray

from policy.ope.arrays import finite, positions, propensity, same_shape
from policy.ope.interval import effective_sample_size, standard_error

_LEAST_ROWS, _LEAST_ROWS_UNMEASURED, _LEAST_SHARE = 100.0, 200.0, 0.01
_MOST_SHARE = 0.05
_MOST_OUTSIDE, _MOST_THIN = 0.3, 0.1
_ERRORS = 4.0
"""Standard errors that chance is believed to bring about."""
_TOLERANCE = 0.1
"""What a mean of 1 may be off beside that: cut weights are, by what was cut."""
_ROUNDED = 1e-9
_UNMEASURED = "not measured"


@dataclass(frozen=True, slots=True)
class PropensityBin:
    """Draws whose probability is alike: how many should have happened, and how many did."""

    propensity: float
    """The mean over what should have been drawn: sum p^2 / sum p."""
    expected: float
    """The sum of the probabilities."""
    observed: int
    error: float
    """The standard error of `observed`."""

    @property
    def errors(self) -> float:
        """How many standard errors they are apart."""
        off = self.observed - self.expected
        if abs(off) < _ROUNDED * self.expected:
            return 0.0
        return off / self.error if self.error else math.copysign(math.inf, off)


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
    thin_support: float = math.nan
    """Share of its probability on the others that cut weights leave out, see `thin_support`. NaN where unmeasured."""
    shown_actions: float = math.nan
    """E[1/p] against the number of actions: the mean of 1 / (p A). In expectation the share of the actions that the
    log could show, so never above 1; above it, logged propensities are too small. NaN where A was not told."""
    shown_actions_error: float = math.nan
    """Its standard error."""
    miscalibration: float = math.nan
    """The largest distance of a bin of propensities from what happened, in standard errors. NaN where unmeasured."""


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that an estimate needs of a log, and what was found."""

    name: str
    found: str
    limit: str
    passed: bool


class InsufficientOverlap(ValueError):
    """The log says too little about the target policy for an estimate to mean anything."""

    def __init__(self, overlap: Overlap, found: tuple[str, ...]) -> None:
        super().__init__(f"too little overlap of the two policies: {'; '.join(found)}{_besides(overlap)}")
        self.overlap = overlap
        self.faults = found


def diagnose(
    logged_propensity_N: ArrayLike,
    target_propensity_N: ArrayLike,
    *,
    outside_support: float = 0.0,
    thin_support: float = math.nan,
    actions_N: ArrayLike | None = None,
    bins: tuple[PropensityBin, ...] = (),
) -> Overlap:
    """Figures on the weights target / logged.

    Args:
        logged_propensity_N: of actions, or joint ones of slates.
        outside_support: measured by the caller, who knows what else the target policy would have shown.
        thin_support: measured by the caller, who knows both distributions.
        actions_N: how many actions the logging policy chose from, a row, or one number for all.
        bins: of `propensity_bins`.
    """
    logged_N = propensity("logged_propensity_N", logged_propensity_N, 1, logged=True)
    target_N = propensity("target_propensity_N", target_propensity_N, 1)
    same_shape(logged_propensity_N=logged_N, target_propensity_N=target_N)
    if not 0 <= outside_support <= 1:
        raise ValueError(f"outside_support is {outside_support}; a share between 0 and 1 is needed")
    shown_N = np.full(1, math.nan)
    if actions_N is not None:
        shown_N = 1 / (logged_N * _counts(actions_N, logged_N))
    weight_N = target_N / logged_N
    total = weight_N.sum()
    return Overlap(
        n=len(weight_N),
        mean_weight=float(weight_N.mean()),
        mean_weight_error=standard_error(weight_N),
        effective_sample_size=effective_sample_size(weight_N),
        max_share=float(weight_N.max() / total) if total else 1.0,
        outside_support=outside_support,
        thin_support=thin_support,
        shown_actions=float(shown_N.mean()),
        shown_actions_error=standard_error(shown_N),
        miscalibration=max((abs(each.errors) for each in bins), default=math.nan),
    )


def thin_support(
    logged_NA: ArrayLike, target_NA: ArrayLike, *, most: float, before_N: ArrayLike | None = None
) -> float:
    """Share of the target's probability that is left out where weights are cut to `most`: what it would do and the
    logging policy hardly ever does. The weights of a log tell it badly, for the largest seldom come up in it; the
    distributions tell it exactly:

        1 - sum_n sum_a min(w_n target(a), most logged(a)) / sum_n min(w_n, most)

    Args:
        logged_NA: what the logging policy drew from; a row may have actions of probability 0.
        target_NA: what the target would have drawn from.
        before_N: w, the weight of what led to the draw, such as the slots before; 1 for all where it is None.
    """
    logged_NA, target_NA = propensity("logged_NA", logged_NA, 2), propensity("target_NA", target_NA, 2)
    same_shape(logged_NA=logged_NA, target_NA=target_NA)
    before_N = finite("before_N", np.ones(len(logged_NA)) if before_N is None else before_N, 1)
    same_shape(before_N=before_N, **{"logged_NA[:, 0]": logged_NA[:, 0]})
    reached = np.minimum(before_N, most).sum()
    kept = np.minimum(before_N[:, None] * target_NA, most * logged_NA).sum()
    return float(np.clip(1 - kept / reached, 0.0, 1.0)) if reached else 1.0


def least_sample_size(overlap: Overlap) -> float:
    """What the effective sample size must be: 100, or 1% of the rows where that is more. Where it was not measured what
    the cut leaves out, 200: a log that lacks what matters looks better than it is."""
    rows = _LEAST_ROWS_UNMEASURED if math.isnan(overlap.thin_support) else _LEAST_ROWS
    return max(rows, _LEAST_SHARE * overlap.n)


def propensity_bins(distribution_NA: ArrayLike, action_N: ArrayLike, *, bins: int = 10) -> tuple[PropensityBin, ...]:
    """Calibration of logged propensities: of draws with probability about p, a share of about p must have happened.

    All N A pairs of row and action, sorted by probability, are cut into bins that expect equally many draws, at least
    ten: there are fewer bins than asked for where rows are few. A row may sum to less than 1 where not every action is
    told. The error is that of a sum of independent draws, a little too large where a bin holds several actions of one
    row.

    Args:
        distribution_NA: what the logging policy drew from.
        action_N: what it drew.

    Raises:
        ValueError: for an action whose probability is 0.
    """
    distribution_NA = propensity("distribution_NA", distribution_NA, 2)
    action_N = positions("action_N", action_N, 1, distribution_NA.shape[1])
    same_shape(action_N=action_N, distribution_NA=distribution_NA[:, 0])
    if bins < 1:
        raise ValueError(f"bins is {bins}; it must be at least 1")
    row_N = np.arange(len(action_N))
    propensity("distribution_NA[action_N]", distribution_NA[row_N, action_N], 1, logged=True)
    happened_NA = np.zeros(distribution_NA.shape, np.bool_)
    happened_NA[row_N, action_N] = True
    chance_P = distribution_NA.ravel()
    bins = max(1, min(bins, len(action_N) // 10))
    order_P = np.argsort(chance_P, kind="stable")
    order_P = order_P[np.searchsorted(chance_P[order_P], 0.0, side="right") :]
    chance_P, happened_P = chance_P[order_P], happened_NA.ravel()[order_P]
    total_P = chance_P.cumsum()
    cuts = np.unique([0, *np.searchsorted(total_P, total_P[-1] * np.arange(1, bins) / bins), len(chance_P)])
    return tuple(_bin(chance_P[a:b], happened_P[a:b]) for a, b in pairwise(cuts))


def checks(overlap: Overlap) -> tuple[Check, ...]:
    """Everything that an estimate needs of a log:

    - an effective sample size as large as `least_sample_size` says;
    - no row with more than 5% of the weight;
    - a mean weight that is off 1 by at most 0.1 and four standard errors;
    - at most 30% of the target policy outside the log's support;
    - at most 10% of the rest where the log is too thin for its weights, where it was measured;
    - E[1/p] above the number of actions by at most a tenth and four standard errors, where it was measured;
    - no bin of propensities off what happened by more than four standard errors, where they were measured.
    """
    needed = least_sample_size(overlap)
    size, share, outside = overlap.effective_sample_size, overlap.max_share, overlap.outside_support
    thin = overlap.thin_support
    mean, error = overlap.mean_weight, overlap.mean_weight_error
    shown, shown_error, bins = overlap.shown_actions, overlap.shown_actions_error, overlap.miscalibration
    return (
        Check(
            "effective sample size", f"{size:.1f} of {overlap.n} rows", f"at least {needed:.0f} needed", size >= needed
        ),
        Check(
            "one row's share of the weight",
            f"{100 * share:.1f}%",
            f"at most {100 * _MOST_SHARE:.0f}% allowed",
            share <= _MOST_SHARE,
        ),
        Check(
            "mean weight",
            f"{mean:.3f} +- {error:.3f}",
            "1 expected where propensities and support are right",
            not abs(mean - 1) > _TOLERANCE + _ERRORS * error,
        ),
        Check(
            "target outside the log's support",
            f"{100 * outside:.1f}%",
            f"at most {100 * _MOST_OUTSIDE:.0f}% allowed",
            outside <= _MOST_OUTSIDE,
        ),
        Check(
            "target where the log is thin",
            _UNMEASURED if math.isnan(thin) else f"{100 * thin:.1f}%",
            f"at most {100 * _MOST_THIN:.0f}% allowed",
            not thin > _MOST_THIN,
        ),
        Check(
            "E[1/p] over the number of actions",
            _UNMEASURED if math.isnan(shown) else f"{shown:.3f} +- {shown_error:.3f}",
            "at most 1 possible where propensities are right",
            not shown - 1 > _TOLERANCE + _ERRORS * shown_error,
        ),
        Check(
            "propensities off what happened",
            _UNMEASURED if math.isnan(bins) else f"{bins:.1f} standard errors",
            f"at most {_ERRORS:.0f} allowed",
            not bins > _ERRORS,
        ),
    )


def faults(overlap: Overlap) -> tuple[str, ...]:
    """What makes the figures too weak to carry an estimate, in words; empty where nothing does."""
    return tuple(f"{each.name} {each.found} ({each.limit})" for each in checks(overlap) if not each.passed)


def require_overlap(overlap: Overlap) -> None:
    """Refuse a log that cannot carry an estimate.

    Raises:
        InsufficientOverlap: where there are `faults`.
    """
    if found := faults(overlap):
        raise InsufficientOverlap(overlap, found)


def _besides(overlap: Overlap) -> str:
    right = [f"{each.name} {each.found}" for each in checks(overlap) if each.passed and each.found != _UNMEASURED]
    return f"; besides: {', '.join(right)}" if right else ""


def _counts(actions_N: ArrayLike, logged_N: NDArray[np.float64]) -> NDArray[np.float64]:
    count_N = finite("actions_N", np.broadcast_to(actions_N, np.shape(actions_N) or logged_N.shape), 1)
    same_shape(logged_propensity_N=logged_N, actions_N=count_N)
    if count_N.min() < 1:
        raise ValueError(f"actions_N[{count_N.argmin()}] is {count_N.min():g}; at least 1 is needed")
    return count_N


def _bin(chance_P: NDArray[np.float64], happened_P: NDArray[np.bool_]) -> PropensityBin:
    expected = float(chance_P.sum())
    error = math.sqrt(float((chance_P * (1 - np.minimum(chance_P, 1))).sum()))
    return PropensityBin(float((chance_P**2).sum()) / expected, expected, int(happened_P.sum()), error)
