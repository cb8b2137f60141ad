"""Full ranking of a catalogue for many queries, and what it is worth.

A metric of one query is NaN where it is undefined (nothing is relevant to it, nothing was ranked for it); `mean`
and what is built on it leave those out.

Shape letters: B queries, I items, D width, K places of the ranking, T pairs, R resamples.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from policy.metrics import exposure_gini

THIRDS = ("low", "middle", "high")
_RESAMPLES = 1000


@dataclass(frozen=True, slots=True)
class ItemSets:
    """A set of items for each query, as one flat array and the offsets that cut it."""

    offset_B1: NDArray[np.int64]
    row_T: NDArray[np.int64]
    """Ascending inside each set, each row once."""

    @classmethod
    def of(cls, query_T: NDArray[np.int64], row_T: NDArray[np.int64], *, queries: int) -> "ItemSets":
        """From (query, item) pairs in any order; a pair counts once however often it appears."""
        width = int(row_T.max(initial=0)) + 1
        key_T = np.unique(query_T.astype(np.int64) * width + row_T)
        return cls(np.searchsorted(key_T // width, np.arange(queries + 1)), key_T % width)

    def __len__(self) -> int:
        return len(self.offset_B1) - 1

    @property
    def size_B(self) -> NDArray[np.int64]:
        return np.diff(self.offset_B1)

    @property
    def query_T(self) -> NDArray[np.int64]:
        """Which query each row belongs to."""
        return np.repeat(np.arange(len(self)), self.size_B)

    def only(self, kept_I: NDArray[np.bool_]) -> "ItemSets":
        """The sets without the items that are not kept."""
        kept_T = kept_I[self.row_T]
        return ItemSets(np.concatenate([[0], np.cumsum(kept_T)])[self.offset_B1], self.row_T[kept_T])


def top_k(
    query_BD: NDArray[np.float32],
    item_ID: NDArray[np.float32],
    k: int,
    *,
    masked: ItemSets | None = None,
    block: int = 256,
) -> NDArray[np.int64]:
    """Rows of the k items with the largest inner product, best first, (B, min(k, I)).

    Args:
        masked: items that must not appear, by query; -1 takes the places that are then left over.
        block: queries ranked at a time, which bounds the memory at block x I scores.
    """
    places = min(k, len(item_ID))
    best_BK = np.empty((len(query_BD), places), np.int64)
    item_DI = torch.from_numpy(np.ascontiguousarray(item_ID)).T
    for first in range(0, len(query_BD), block):
        rows = slice(first, min(first + block, len(query_BD)))
        score_bI = torch.from_numpy(np.ascontiguousarray(query_BD[rows])) @ item_DI
        if masked is not None:
            offset_b1 = masked.offset_B1[rows.start : rows.stop + 1]
            hidden_T = masked.row_T[offset_b1[0] : offset_b1[-1]]
            score_bI[np.repeat(np.arange(len(score_bI)), np.diff(offset_b1)), hidden_T] = -torch.inf
        score_bK, row_bK = torch.topk(score_bI, places, dim=1)
        best_BK[rows] = torch.where(score_bK > -torch.inf, row_bK, -1).numpy()
    return best_BK


def hits(ranked_BK: NDArray[np.int64], relevant: ItemSets) -> NDArray[np.bool_]:
    """Which places of each ranking hold a relevant item; -1 holds none."""
    width = max(int(ranked_BK.max(initial=0)), int(relevant.row_T.max(initial=0))) + 1
    ranked_key_BK = np.arange(len(ranked_BK))[:, None] * width + ranked_BK
    relevant_key_T = relevant.query_T * width + relevant.row_T
    return np.isin(ranked_key_BK, relevant_key_T) & (ranked_BK >= 0)


def recall(hit_BK: NDArray[np.bool_], relevant_B: NDArray[np.int64]) -> NDArray[np.float64]:
    """Found / relevant, by query."""
    return _divide(hit_BK.sum(axis=1), relevant_B)


def ndcg(hit_BK: NDArray[np.bool_], relevant_B: NDArray[np.int64]) -> NDArray[np.float64]:
    """Gain 1 / log2(place + 1), places from 1, over that of the best ranking of min(K, relevant) items, by query.

    As in LightGCN (He et al. 2020, "LightGCN: Simplifying and Powering Graph Convolution Network").
    """
    gain_K = 1 / np.log2(np.arange(hit_BK.shape[1]) + 2)
    ideal_K1 = np.concatenate([[0.0], np.cumsum(gain_K)])
    return _divide(hit_BK @ gain_K, ideal_K1[np.minimum(relevant_B, len(gain_K))])


def mrr(hit_BK: NDArray[np.bool_], relevant_B: NDArray[np.int64]) -> NDArray[np.float64]:
    """1 / place of the first relevant item, 0 where the ranking holds none, by query."""
    first_B = np.where(hit_BK.any(axis=1), 1 / (1 + hit_BK.argmax(axis=1)), 0.0)
    return np.where(relevant_B > 0, first_B, np.nan)


def hit_rate(hit_BK: NDArray[np.bool_], relevant_B: NDArray[np.int64]) -> NDArray[np.float64]:
    """Whether a relevant item was ranked, by query."""
    return np.where(relevant_B > 0, hit_BK.any(axis=1), np.nan)


def coverage(ranked_BK: NDArray[np.int64], items: int) -> float:
    """Share of the catalogue that some query was shown."""
    return len(np.unique(ranked_BK[ranked_BK >= 0])) / items


def gini(ranked_BK: NDArray[np.int64], items: int) -> float:
    """Gini coefficient of how often each item of the catalogue was ranked; see `policy.metrics.exposure_gini`."""
    return exposure_gini(np.bincount(ranked_BK[ranked_BK >= 0], minlength=items))


def novelty(ranked_BK: NDArray[np.int64], popularity_I: NDArray[np.int64]) -> NDArray[np.float64]:
    """Mean self-information of what was ranked, in bits, by query; as `policy.metrics.novelty` defines it.

    Args:
        popularity_I: interactions with every item in training.
    """
    count_I = popularity_I.astype(np.float64) + 1
    bits_I1 = np.append(-np.log2(count_I / count_I.sum()), 0.0)  # the last is for the places that hold -1
    return _divide(bits_I1[ranked_BK].sum(axis=1), (ranked_BK >= 0).sum(axis=1))


def diversity(ranked_BK: NDArray[np.int64], vector_ID: NDArray[np.float32]) -> NDArray[np.float64]:
    """Mean of 1 - cosine over pairs of ranked items, by query; as `policy.metrics.intra_list_diversity` defines it.

    Vectors of length 0 count as unrelated to all.
    """
    length_I1 = np.linalg.norm(vector_ID, axis=1, keepdims=True)
    unit_ID = np.append(vector_ID / np.where(length_I1 > 0, length_I1, 1), np.zeros((1, vector_ID.shape[1])), axis=0)
    sum_BD, own_B = np.zeros((len(ranked_BK), unit_ID.shape[1])), np.zeros(len(ranked_BK))
    for row_B in ranked_BK.T:
        unit_BD = unit_ID[row_B]
        sum_BD += unit_BD
        own_B += np.einsum("bd,bd->b", unit_BD, unit_BD)
    count_B = (ranked_BK >= 0).sum(axis=1)
    cosines_B = np.einsum("bd,bd->b", sum_BD, sum_BD) - own_B
    return 1 - _divide(cosines_B, count_B * (count_B - 1))


def thirds(count_N: NDArray[np.int64]) -> NDArray[np.int64]:
    """0, 1 or 2 for the third of users or items that each belongs to, fewest first; of equal counts the earlier first.

    The sizes of the thirds differ by at most one.
    """
    third_N = np.empty(len(count_N), np.int64)
    third_N[np.argsort(count_N, kind="stable")] = np.arange(len(count_N)) * 3 // max(len(count_N), 1)
    return third_N


def mean(metric_B: NDArray[np.float64]) -> float:
    """Mean over the queries for which the metric is defined; NaN where there is none."""
    defined = _defined(metric_B)
    return float(defined.mean()) if len(defined) else float("nan")


def interval(metric_B: NDArray[np.float64], *, seed: int, confidence: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of `mean` over queries (Efron and Tibshirani 1993, chapter 13)."""
    defined = _defined(metric_B)
    if not len(defined):
        return math.nan, math.nan
    random = np.random.default_rng(seed)
    mean_R = [defined[random.integers(len(defined), size=len(defined))].mean() for _ in range(_RESAMPLES)]
    low, high = np.quantile(mean_R, [(1 - confidence) / 2, (1 + confidence) / 2])
    return float(low), float(high)


@dataclass(frozen=True, slots=True)
class Difference:
    """Of two runs on the same queries: the first's mean less the second's."""

    mean: float
    low: float
    high: float
    """95% bootstrap interval over queries."""
    p: float
    """How often as large a difference, in either direction, comes of runs that are exchangeable."""


def difference(one_B: NDArray[np.float64], other_B: NDArray[np.float64], *, seed: int) -> Difference:
    """Compare two runs query by query, over those for which both are defined.

    `p` is of Fisher's randomisation test with 1,000 draws of signs, itself among them (Smucker, Allan and Carterette,
    CIKM 2007, "A Comparison of Statistical Significance Tests for Information Retrieval Evaluation").

    Raises:
        ValueError: for runs of unequal length.
    """
    if one_B.shape != other_B.shape:
        raise ValueError(f"runs of {len(one_B)} and {len(other_B)} queries cannot be compared query by query")
    each_B = one_B - other_B
    defined = _defined(each_B)
    if not len(defined):
        return Difference(math.nan, math.nan, math.nan, math.nan)
    random = np.random.default_rng(seed)
    found = abs(defined.sum()) * (1 - 1e-12)  # the same terms in another order may add up to a little less
    as_large = sum(
        abs(defined.sum() - 2 * defined[random.random(len(defined)) < 0.5].sum()) >= found for _ in range(_RESAMPLES)
    )
    return Difference(mean(each_B), *interval(each_B, seed=seed), (1 + as_large) / (1 + _RESAMPLES))


@dataclass(frozen=True, slots=True)
class Ranking:
    """What was ranked for whom, and what of it was right."""

    ranked_BK: NDArray[np.int64]
    relevant: ItemSets
    activity_B: NDArray[np.int64]
    """Training interactions of each query's user."""
    popularity_I: NDArray[np.int64]
    """Training interactions of each item."""
    vector_ID: NDArray[np.float32] | None = None
    """By which diversity is measured."""

    def metrics(self, k: int, *, seed: int) -> dict[str, float]:
        """Every metric by its name.

        `recall`, `ndcg`, `mrr` and `hit_rate` at k, the first two with `.low` and `.high` of their interval, recall
        by thirds of users by activity (`.users_low` ...) and, counting only the relevant items of that third, of
        items by popularity (`.items_low` ...); `coverage`, `novelty`, `gini` and, with vectors, `diversity` at k.
        """
        ranked_BK, items = self.ranked_BK[:, :k], len(self.popularity_I)
        hit_BK, size_B = hits(ranked_BK, self.relevant), self.relevant.size_B
        recall_B, ndcg_B = recall(hit_BK, size_B), ndcg(hit_BK, size_B)
        found: dict[str, float] = {}
        for name, metric_B in (("recall", recall_B), ("ndcg", ndcg_B)):
            low, high = interval(metric_B, seed=seed)
            found |= {f"{name}@{k}": mean(metric_B), f"{name}@{k}.low": low, f"{name}@{k}.high": high}
        found[f"mrr@{k}"] = mean(mrr(hit_BK, size_B))
        found[f"hit_rate@{k}"] = mean(hit_rate(hit_BK, size_B))
        user_third_B, item_third_I = thirds(self.activity_B), thirds(self.popularity_I)
        for third, name in enumerate(THIRDS):
            found[f"recall@{k}.users_{name}"] = mean(recall_B[user_third_B == third])
        for third, name in enumerate(THIRDS):
            part = self.relevant.only(item_third_I == third)
            found[f"recall@{k}.items_{name}"] = mean(recall(hits(ranked_BK, part), part.size_B))
        found[f"coverage@{k}"] = coverage(ranked_BK, items)
        found[f"novelty@{k}"] = mean(novelty(ranked_BK, self.popularity_I))
        found[f"gini@{k}"] = gini(ranked_BK, items)
        if self.vector_ID is not None:
            found[f"diversity@{k}"] = mean(diversity(ranked_BK, self.vector_ID))
        return found


def _defined(metric_B: NDArray[np.float64]) -> NDArray[np.float64]:
    return metric_B[~np.isnan(metric_B)]


def _divide(upper_B: NDArray[np.generic], lower_B: NDArray[np.generic]) -> NDArray[np.float64]:
    quotient_B = np.full(len(upper_B), np.nan)
    np.divide(upper_B, lower_B, out=quotient_B, where=lower_B > 0)  # type: ignore[operator]
    return quotient_B
