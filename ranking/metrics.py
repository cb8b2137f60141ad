"""How well scores separate, order and mean what they say.

A metric is NaN where it is undefined (no rows, one class only, a group without anything relevant); a mean over
groups says how many groups it left out for that reason. Rows of a group need not be neighbours.

Shape letters: N rows, G groups, B bins.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_SMALLEST = 1e-7


@dataclass(frozen=True, slots=True)
class GroupMean:
    """A mean over the groups for which the metric is defined; NaN where there is none."""

    mean: float
    groups: int
    """Groups in the mean."""
    left_out: int
    """Groups for which the metric is undefined."""


@dataclass(frozen=True, slots=True)
class Reliability:
    """What was said beside what happened, in bins of equally many rows, lowest probability first."""

    predicted_B: NDArray[np.float64]
    observed_B: NDArray[np.float64]
    count_B: NDArray[np.int64]


def auc(label_N: NDArray[np.generic], score_N: NDArray[np.generic]) -> float:
    """P(a positive row scores above a negative one), ties count half: the Mann-Whitney statistic.

    NaN unless both classes occur.
    """
    return float(_group_auc(label_N, score_N, np.zeros(len(score_N), np.int64), 1)[0])


def logloss(label_N: NDArray[np.generic], probability_N: NDArray[np.generic]) -> float:
    """Mean negative log-likelihood of binary labels in nats; probabilities are cut to [1e-7, 1 - 1e-7]."""
    label, probability = _columns(label_N, probability_N)
    if not len(label):
        return math.nan
    probability = np.clip(probability, _SMALLEST, 1 - _SMALLEST)
    return float(-np.mean(label * np.log(probability) + (1 - label) * np.log1p(-probability)))


def reliability(label_N: NDArray[np.generic], probability_N: NDArray[np.generic], *, bins: int = 15) -> Reliability:
    """The rows by probability, cut into `bins` parts whose sizes differ by at most one (fewer where rows are fewer).

    Rows with equal probabilities may fall into two bins; then each bin gets their mean label, so that the order in
    which they came makes no difference.
    """
    label, probability = _columns(label_N, probability_N)
    order = np.argsort(probability, kind="stable")
    label, probability = label[order], probability[order]
    _, tie_N = np.unique(probability, return_inverse=True)
    label = _block_means(tie_N, label)
    edge = np.linspace(0, len(label), min(bins, len(label)) + 1).astype(np.int64)
    count_B, start = np.diff(edge), edge[:-1]
    if not len(label):
        return Reliability(np.empty(0), np.empty(0), np.empty(0, np.int64))
    return Reliability(np.add.reduceat(probability, start) / count_B, np.add.reduceat(label, start) / count_B, count_B)


def ece(label_N: NDArray[np.generic], probability_N: NDArray[np.generic], *, bins: int = 15) -> float:
    """Expected calibration error: the mean over equal-mass bins of |observed - predicted|; NaN without rows."""
    curve = reliability(label_N, probability_N, bins=bins)
    if not len(curve.count_B):
        return math.nan
    return float(np.average(np.abs(curve.observed_B - curve.predicted_B), weights=curve.count_B))


def gauc(label_N: NDArray[np.generic], score_N: NDArray[np.generic], group_N: NDArray[np.generic]) -> GroupMean:
    """AUC within each group, averaged with the groups' numbers of rows as weights.

    Zhu et al. 2017, "Optimized cost per click in Taobao display advertising". Groups with one class are left out.
    """
    code_N, groups = _codes(group_N)
    return _mean(_group_auc(label_N, score_N, code_N, groups), np.bincount(code_N, minlength=groups))


def ndcg_at(
    k: int, gain_N: NDArray[np.generic], score_N: NDArray[np.generic], group_N: NDArray[np.generic]
) -> GroupMean:
    """Mean of `ndcg_of_groups`. Groups whose gains are all 0 are left out."""
    return _mean(ndcg_of_groups(k, gain_N, score_N, group_N))


def ndcg_of_groups(
    k: int, gain_N: NDArray[np.generic], score_N: NDArray[np.generic], group_N: NDArray[np.generic]
) -> NDArray[np.float64]:
    """Normalised discounted cumulative gain of the first `k` rows of each group by falling score, by rising group.

    DCG = sum of gain / log2(1 + rank), rank from 1. Rows with equal scores share the mean of their discounts, which
    is the expectation over their random order. NaN where a group's gains are all 0.

    Args:
        gain_N: not negative; the caller shapes it (a label, or 2^relevance - 1).
    """
    gain, score = _columns(gain_N, score_N)
    code_N, groups = _codes(group_N)
    dcg_G = _expected_gain(gain, score, code_N, groups, k, discounted=True)
    return _ratio(dcg_G, _expected_gain(gain, gain, code_N, groups, k, discounted=True))


def recall_at(
    k: int, relevant_N: NDArray[np.generic], score_N: NDArray[np.generic], group_N: NDArray[np.generic]
) -> GroupMean:
    """Share of a group's relevant rows among its first `k` by falling score.

    Of equal scores it is the expectation over their random order. Groups without a relevant row are left out.
    """
    relevant, score = _columns(relevant_N, score_N)
    code_N, groups = _codes(group_N)
    relevant = (relevant > 0).astype(np.float64)
    found_G = _expected_gain(relevant, score, code_N, groups, k, discounted=False)
    return _mean(_ratio(found_G, _sums(code_N, relevant, groups)))


def _columns(
    first_N: NDArray[np.generic], second_N: NDArray[np.generic]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    if first_N.shape != second_N.shape or first_N.ndim != 1:
        raise ValueError(f"two columns of one length are needed, got shapes {first_N.shape} and {second_N.shape}")
    if np.isnan(second := second_N.astype(np.float64)).any():
        raise ValueError(f"{int(np.isnan(second).sum())} of {len(second)} scores are NaN")
    return first_N.astype(np.float64), second


def _codes(group_N: NDArray[np.generic]) -> tuple[NDArray[np.int64], int]:
    values, code_N = np.unique(group_N, return_inverse=True)
    return code_N.reshape(-1).astype(np.int64), len(values)


def _mean(value_G: NDArray[np.float64], weight_G: NDArray[np.generic] | None = None) -> GroupMean:
    defined_G = ~np.isnan(value_G)
    groups = int(defined_G.sum())
    weights = None if weight_G is None else weight_G[defined_G].astype(np.float64)
    mean = float(np.average(value_G[defined_G], weights=weights)) if groups else math.nan
    return GroupMean(mean, groups, len(value_G) - groups)


def _ratio(above_G: NDArray[np.float64], below_G: NDArray[np.float64]) -> NDArray[np.float64]:
    ratio_G = np.full(len(above_G), np.nan)
    np.divide(above_G, below_G, out=ratio_G, where=below_G > 0)
    return ratio_G


def _group_auc(
    label_N: NDArray[np.generic], score_N: NDArray[np.generic], code_N: NDArray[np.int64], groups: int
) -> NDArray[np.float64]:
    label, score = _columns(label_N, score_N)
    positive = label > 0
    order = np.lexsort((score, code_N))
    code, score, positive = code_N[order], score[order], positive[order]
    size_G = np.bincount(code, minlength=groups)
    start_G = np.cumsum(size_G) - size_G
    rank = np.arange(1, len(code) + 1) - start_G[code]
    tie = _tie_blocks(code, score)
    mean_rank = _block_means(tie, rank.astype(np.float64))
    positives_G = _sums(code, positive.astype(np.float64), groups)
    above_G = _sums(code, mean_rank * positive, groups) - positives_G * (positives_G + 1) / 2
    return _ratio(above_G, positives_G * (size_G - positives_G))


def _sums(code_N: NDArray[np.int64], value_N: NDArray[np.float64], groups: int) -> NDArray[np.float64]:
    return np.bincount(code_N, value_N, minlength=groups).astype(np.float64)


def _block_means(block_N: NDArray[np.int64], value_N: NDArray[np.float64]) -> NDArray[np.float64]:
    """Every row's value replaced by the mean of its block."""
    means: NDArray[np.float64] = (np.bincount(block_N, value_N) / np.bincount(block_N))[block_N]
    return means


def _tie_blocks(code: NDArray[np.int64], score: NDArray[np.float64]) -> NDArray[np.int64]:
    """A number for each run of one group and one score in sorted columns."""
    if not len(code):
        return np.empty(0, np.int64)
    starts = np.concatenate([[False], (code[1:] != code[:-1]) | (score[1:] != score[:-1])])
    return np.cumsum(starts)


def _expected_gain(
    gain: NDArray[np.float64],
    score: NDArray[np.float64],
    code_N: NDArray[np.int64],
    groups: int,
    k: int,
    *,
    discounted: bool,
) -> NDArray[np.float64]:
    order = np.lexsort((-score, code_N))
    code, gain, score = code_N[order], gain[order], score[order]
    size_G = np.bincount(code, minlength=groups)
    rank = np.arange(len(code)) - (np.cumsum(size_G) - size_G)[code]
    worth = np.where(rank < k, 1 / np.log2(2 + rank) if discounted else 1.0, 0.0)
    return _sums(code, gain * _block_means(_tie_blocks(code, score), worth), groups)
