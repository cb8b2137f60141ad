"""Full ranking of a catalogue for many queries, and what it is worth.

A metric of one query is NaN where nothing is relevant to it; `mean` leaves those out.

Shape letters: B queries, I items, D width, K places of the ranking, T pairs.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray


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


def top_k(
    query_BD: NDArray[np.float32],
    item_ID: NDArray[np.float32],
    k: int,
    *,
    masked: ItemSets | None = None,
    block: int = 512,
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


def mean(metric_B: NDArray[np.float64]) -> float:
    """Mean over the queries for which the metric is defined; NaN where there is none."""
    defined = metric_B[~np.isnan(metric_B)]
    return float(defined.mean()) if len(defined) else float("nan")


def _divide(upper_B: NDArray[np.generic], lower_B: NDArray[np.generic]) -> NDArray[np.float64]:
    quotient_B = np.full(len(upper_B), np.nan)
    np.divide(upper_B, lower_B, out=quotient_B, where=lower_B > 0)  # type: ignore[operator]
    return quotient_B
