"""What slates look like, whatever they earn: pure functions on arrays.

Where a metric is undefined it is NaN, and who averages says how many were left out.

Shape letters: K slots (or any other set of shown items), D embedding width, I items of the catalogue, M impressions.
"""

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray

from policy.value import DAY_MS


def intra_list_diversity(embedding_KD: ArrayLike) -> float:
    """Mean of 1 - cosine over pairs of items: 0 for copies of one item, 1 for unrelated ones, up to 2.

    Args:
        embedding_KD: vectors of any length above 0.

    NaN for fewer than two items or a vector of length 0. Source: Ziegler et al., WWW 2005, with cosine for their
    similarity.
    """
    vector_KD = np.asarray(embedding_KD, np.float64)
    count = len(vector_KD)
    if count < 2:
        return math.nan
    length_K = np.linalg.norm(vector_KD, axis=1)
    if not length_K.all():
        return math.nan
    # The squared length of the sum of unit vectors holds every pair's cosine twice, and each vector's own 1.
    squared = float((np.sum(vector_KD / length_K[:, None], axis=0) ** 2).sum())
    return 1 - (squared - count) / (count * (count - 1))


def category_coverage(category_K: ArrayLike, categories: int) -> float:
    """Share of the catalogue's categories that were shown.

    Args:
        category_K: identifiers from 1; 0 is unknown and covers nothing.
        categories: how many there are.

    NaN without categories; 0 for nothing shown.
    """
    if categories < 1:
        return math.nan
    shown_K = np.asarray(category_K)
    return len(np.unique(shown_K[shown_K > 0])) / categories


def exposure_gini(exposure_I: ArrayLike) -> float:
    """Gini coefficient of exposure: 0 where all items are shown alike, (I - 1) / I where one is shown alone.

    Args:
        exposure_I: number (or expected number) of exposures of every item that could be shown, zeros included.

    NaN without items or without exposures.

    Raises:
        ValueError: for an exposure below 0 or not finite.
    """
    sorted_I: NDArray[np.float64] = np.sort(np.asarray(exposure_I, np.float64))
    if not np.isfinite(sorted_I).all() or (sorted_I < 0).any():
        raise ValueError(f"exposure_I holds {sorted_I[0]} to {sorted_I[-1]}; finite numbers of at least 0 are needed")
    count, total = len(sorted_I), sorted_I.sum()
    if not count or not total:
        return math.nan
    rank_I = np.arange(1, count + 1)
    return float(((2 * rank_I - count - 1) * sorted_I).sum() / (count * total))


def novelty(row_K: ArrayLike, popularity_I: ArrayLike) -> float:
    """Mean self-information of what was shown, in bits: -log2 of the item's share of all past interactions.

    Shares are (popularity + 1) / (total + I), so that an item without any has a finite one. With popularity the
    same for all it is log2 I.

    Args:
        row_K: rows of the items shown.
        popularity_I: interactions with every item, at least 0.

    NaN for nothing shown. Source: Vargas and Castells, RecSys 2011.
    """
    shown_K = np.asarray(row_K, np.int64)
    if not len(shown_K):
        return math.nan
    count_I = np.asarray(popularity_I, np.float64) + 1
    return float(-np.log2(count_I[shown_K] / count_I.sum()).mean())


def fresh_share(age_ms_K: ArrayLike, fresh_days: float) -> float:
    """Share of the items shown that are at most `fresh_days` old. NaN for nothing shown."""
    age_K = np.asarray(age_ms_K, np.int64)
    return float((age_K <= fresh_days * DAY_MS).mean()) if len(age_K) else math.nan


def time_to_impressions(
    row_M: ArrayLike, time_ms_M: ArrayLike, *, published_ms_I: ArrayLike, count: int
) -> NDArray[np.float64]:
    """How long each item waited from its publication to its `count`-th impression, (I,), in milliseconds.

    NaN for an item that has had fewer: who summarises must say how many these are, for they are the ones that waited
    longest. An impression before the publication counts as one at it.

    Args:
        row_M: the item of each impression (M of them, in any order).
        time_ms_M: when it was.
        published_ms_I: of every item.

    Raises:
        ValueError: where `count` is below 1.
    """
    if count < 1:
        raise ValueError(f"count is {count}; at least 1 impression is needed")
    row, time_ms = np.asarray(row_M, np.int64), np.asarray(time_ms_M, np.int64)
    published = np.asarray(published_ms_I, np.int64)
    order_M = np.lexsort((time_ms, row))
    shown_I = np.bincount(row, minlength=len(published))
    first_I = np.cumsum(shown_I) - shown_I
    reached_I = np.flatnonzero(shown_I >= count)
    waited_I = np.full(len(published), np.nan)
    waited_I[reached_I] = np.maximum(time_ms[order_M][first_I[reached_I] + count - 1] - published[reached_I], 0)
    return waited_I
