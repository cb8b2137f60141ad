"""How good a ranker's probabilities are for parts of what was shown: one who is new, one surface, one category.

A mean over everything can hide a part for which nothing was learned.

Shape letters: N exposures, B bins.
"""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ranking.metrics import auc, ece, reliability
from training.reports.figures import Slice

_BINS = 10
_MOST = 6
"""Values of one column that are told of, those with the most exposures."""
_SIDES = 1.96
"""Standard errors on each side of a 95% interval."""


def slices(
    columns: Mapping[str, Sequence[str]], label_N: NDArray[np.bool_], probability_N: NDArray[np.float64]
) -> Iterator[Slice]:
    """Everything, then the most frequent values of each column, in the order of their names.

    Args:
        columns: by name, what each exposure is in that respect.
    """
    yield _of("all", "", label_N, probability_N)
    for name, values in columns.items():
        value_N = np.array(values, np.str_)
        found, count = np.unique(value_N, return_counts=True)
        for value in sorted(found[np.argsort(-count, kind="stable")[:_MOST]].tolist()):
            at_N = value_N == value
            yield _of(name, value, label_N[at_N], probability_N[at_N])


def auc_error(label_N: NDArray[np.bool_], score_N: NDArray[np.float64]) -> float:
    """Standard error of an AUC; NaN with fewer than two positives or two negatives.

    DeLong et al. 1988, "Comparing the areas under two or more correlated receiver operating characteristic curves":
    from how much the share of the other class that is beaten varies within each class.
    """
    positive, negative = np.sort(score_N[label_N]), np.sort(score_N[~label_N])
    if min(len(positive), len(negative)) < 2:
        return math.nan

    def variance(of: NDArray[np.float64], among: NDArray[np.float64]) -> float:
        below = np.searchsorted(among, of, side="left") + np.searchsorted(among, of, side="right")
        return float(np.var(below / (2 * len(among)), ddof=1)) / len(of)

    return math.sqrt(variance(positive, negative) + variance(negative, positive))


def ece_by_chance(label_N: NDArray[np.bool_], probability_N: NDArray[np.float64]) -> float:
    """About the calibration error that probabilities have that are exactly right, for so few exposures; NaN for none.

    A bin's mean label strays from its mean probability p by sqrt(2 p (1 - p) / (pi rows)) on average, as a normal
    variable of that deviation does.
    """
    curve = reliability(label_N, probability_N, bins=_BINS)
    if not len(curve.count_B):
        return math.nan
    stray_B = np.sqrt(2 * curve.predicted_B * (1 - curve.predicted_B) / (math.pi * curve.count_B))
    return float(np.average(stray_B, weights=curve.count_B))


def _of(name: str, value: str, label_N: NDArray[np.bool_], probability_N: NDArray[np.float64]) -> Slice:
    area, half = auc(label_N, probability_N), _SIDES * auc_error(label_N, probability_N)
    return Slice(
        name,
        value,
        len(label_N),
        area,
        max(area - half, 0.0),
        min(area + half, 1.0),
        ece(label_N, probability_N, bins=_BINS),
        ece_by_chance(label_N, probability_N),
    )
