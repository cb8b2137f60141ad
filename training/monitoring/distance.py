"""How far two samples are apart: PSI, Kolmogorov-Smirnov, Wasserstein.

Samples are counted on one grid, once; every comparison of some days with others is then a sum of counts. Where the
grid holds every value, as it does for up to 200 different ones, the figures are exact; else they are those of values
rounded up to the next of 200 quantiles.

Shape letters: N values, G cells of a grid, B bins of PSI, D days.
"""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import chi2, kstwobign

Counts = NDArray[np.float64]
_CELLS = 200
_BINS = 10
_MOST_CATEGORIES = 30


def grid(values: Sequence[NDArray[np.generic]]) -> NDArray[np.float64]:
    """Upper ends of the cells that finite numbers are counted in, ascending; the last is the largest value.

    Args:
        values: samples that are to be compared; each has as much a say in where cells end.
    """
    finite = [each[np.isfinite(each)].astype(np.float64) for each in values]
    different_G = np.unique(np.concatenate(finite))
    if len(different_G) <= _CELLS:
        return different_G
    at = np.linspace(0, 1, _CELLS // len(values))
    return np.unique(np.concatenate([np.quantile(each, at, method="higher") for each in finite if len(each)]))


def counted(value_N: NDArray[np.generic], grid_G: NDArray[np.float64]) -> Counts:
    """Finite numbers by cell, (G,)."""
    finite_N = value_N[np.isfinite(value_N)].astype(np.float64)
    return np.bincount(np.searchsorted(grid_G, finite_N), minlength=len(grid_G)).astype(np.float64)


def categories(values: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """The most frequent values, ascending: what `tallied` counts one by one."""
    found, count = np.unique(np.concatenate(values), return_counts=True)
    return np.sort(found[np.argsort(-count, kind="stable")[:_MOST_CATEGORIES]])


def tallied(value_N: NDArray[np.int64], category_G: NDArray[np.int64]) -> Counts:
    """Rows by category, and last those of no category, (G + 1,)."""
    at_N = np.searchsorted(category_G, value_N)
    known_N = category_G[np.minimum(at_N, len(category_G) - 1)] == value_N
    return np.bincount(np.where(known_N, at_N, len(category_G)), minlength=len(category_G) + 1).astype(np.float64)


def bins(reference_G: Counts) -> NDArray[np.int64]:
    """First cells of up to ten bins that hold about equally many of the reference, (B,).

    A value so frequent that it fills bins by itself has one, and what is above it another.
    """
    share_G = np.cumsum(reference_G) / max(reference_G.sum(), 1.0)
    last_B = np.searchsorted(share_G, np.arange(1, _BINS) / _BINS - 1e-12)
    first_B = np.unique(np.concatenate(([0], last_B + 1)))
    return first_B[first_B < len(reference_G)]


def psi(now_B: Counts, then_B: Counts) -> float:
    """Population stability index: sum of (p - q) ln(p / q) over bins; half a row is added to each, so none is empty."""
    p_B = (now_B + 0.5) / (now_B.sum() + 0.5 * len(now_B))
    q_B = (then_B + 0.5) / (then_B.sum() + 0.5 * len(then_B))
    return float(((p_B - q_B) * np.log(p_B / q_B)).sum())


def ks(now_G: Counts, then_G: Counts) -> float:
    """Largest distance of the two distribution functions."""
    return float(np.abs(_cumulated(now_G) - _cumulated(then_G)).max(initial=0.0))


def wasserstein(now_G: Counts, then_G: Counts, grid_G: NDArray[np.float64]) -> float:
    """How far the reference has to be moved, in its own standard deviations; infinite where it has none."""
    moved = float((np.abs(_cumulated(now_G) - _cumulated(then_G))[:-1] * np.diff(grid_G)).sum())
    weight_G = then_G / then_G.sum()
    middle = float(weight_G @ grid_G)
    deviation = math.sqrt(float(weight_G @ (grid_G - middle) ** 2))
    if moved == 0:
        return 0.0
    return moved / deviation if deviation > 0 else math.inf


def psi_by_chance(value: float, bins: int, now: float, then: float) -> float:
    """P(a PSI so large | one distribution), for so many independent units each: PSI nm / (n + m) is chi-squared with
    a degree of freedom less than bins."""
    return float(chi2.sf(value * now * then / (now + then), max(bins - 1, 1)))


def ks_by_chance(value: float, now: float, then: float) -> float:
    """The same for the distance of distribution functions, by its limit law."""
    return float(kstwobign.sf(value * math.sqrt(now * then / (now + then))))


def _cumulated(count_G: Counts) -> NDArray[np.float64]:
    share_G: Counts = np.cumsum(count_G) / max(count_G.sum(), 1.0)
    return share_G
