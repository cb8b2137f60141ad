"""What each way to search finds of all titles, and all of them together.

Shape letters: N judgments, Q queries, I titles, K places, U distinct titles that were named, D width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.lexical import LexicalIndex
from training.evaluation.judged_texts import JudgedTexts
from training.evaluation.topk import top_k

FOUND = 300
"""Titles that a source names."""
_DEPTH = 5000
_RANK_CONSTANT = 60
_BLOCK = 8192


@dataclass(frozen=True, slots=True)
class Found:
    """Of one source."""

    row_QK: NDArray[np.int64]
    """Titles, best first; -1 where there is none."""
    score_N: NDArray[np.float32]
    """Of every judged pair; 0 for a title behind the first 5,000 that a lexical index found."""


def by_words(index: LexicalIndex, text_Q: Sequence[str], judged: JudgedTexts, *, places: int = FOUND) -> Found:
    """What a lexical index finds."""
    start_Q1 = judged.start_Q1
    row_QK = np.full((len(text_Q), places), -1, np.int64)
    score_N = np.zeros(len(judged.item_N), np.float32)
    score_I = np.zeros(len(index), np.float32)
    for q, text in enumerate(text_Q):
        hits = index.search(text, _DEPTH)
        rows = slice(start_Q1[q], start_Q1[q + 1])
        score_I[hits.row_K] = hits.score_K
        score_N[rows] = score_I[judged.item_N[rows]]
        score_I[hits.row_K] = 0
        row_QK[q, : min(len(hits), places)] = hits.row_K[:places]
    return Found(row_QK, score_N)


def by_vectors(query_QD: NDArray[np.float32], title_ID: NDArray[np.float32], judged: JudgedTexts) -> Found:
    """What has the largest inner products."""
    return Found(top_k(query_QD, title_ID, FOUND), products(query_QD, title_ID, judged.query_N, judged.item_N))


def products(
    query_QD: NDArray[np.float32],
    title_ID: NDArray[np.float32],
    query_N: NDArray[np.int64],
    item_N: NDArray[np.int64],
) -> NDArray[np.float32]:
    """Inner product of each pair."""
    parts = [slice(first, first + _BLOCK) for first in range(0, len(query_N), _BLOCK)]
    of_parts = [np.einsum("bd,bd->b", query_QD[query_N[part]], title_ID[item_N[part]]) for part in parts]
    return np.concatenate(of_parts).astype(np.float32)


def fused(found: Mapping[str, Found], weight_of: Mapping[str, float]) -> NDArray[np.int64]:
    """Weighted reciprocal rank fusion, (Q, K): a title's worth is the sum of weight / (60 + place) over the sources
    that name it (Cormack, Clarke and Buettcher 2009), of equal ones the smaller row first."""
    stacked = np.concatenate([found[name].row_QK for name in weight_of], axis=1)
    worth_K = np.concatenate(
        [w / (_RANK_CONSTANT + np.arange(found[name].row_QK.shape[1])) for name, w in weight_of.items()]
    )
    best_QK = np.full((len(stacked), FOUND), -1, np.int64)
    for best_K, row_K in zip(best_QK, stacked, strict=True):
        held_K = row_K >= 0
        row_U, use_K = np.unique(row_K[held_K], return_inverse=True)
        order_U = np.argsort(-np.bincount(use_K, worth_K[held_K], len(row_U)), kind="stable")[:FOUND]
        best_K[: len(order_U)] = row_U[order_U]
    return best_QK
