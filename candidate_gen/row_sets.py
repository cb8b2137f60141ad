"""Sets of rows in compiled code: a pass with a hash table in place of sorts, with the same bits.

Shape letters: N rows, each once, L some rows, X other rows, S lists, H rows of all lists, B queries, P places of a hash
table.
"""

from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from index.columns import plain

_ROW = np.dtype(np.int64)
_VACANT = -(2**63)
_compiled: Any = njit(cache=True, nogil=True, boundscheck=False)
_inlined: Any = njit(inline="always", boundscheck=False)


def among(row_N: NDArray[np.int64], row_X: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of the first rows are one of the second: `np.isin`, without what it does to choose a way."""
    among_N: NDArray[np.bool_] = _among(plain(row_N, _ROW), plain(row_X, _ROW))
    return among_N


def first_of_each(row_L: NDArray[np.int64]) -> NDArray[np.int64]:
    """Each row once, in the order of first appearance."""
    row_N: NDArray[np.int64] = _first_of_each(plain(row_L, _ROW))
    return row_N


@_compiled
def merged(row_H, score_H, count_S):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    """Each row once, in order of first appearance, with its rank and score in each list; -1 and 0 where it is not.

    Args:
        row_H, score_H: of all lists, one after the other.
        count_S: rows of each.
    """
    key_P = _table_of(len(row_H))
    index_P = np.empty(len(key_P), np.int64)
    row_N = np.empty(len(row_H), np.int64)
    rank_NS = np.full((len(row_H), len(count_S)), -1, np.int16)
    score_NS = np.zeros((len(row_H), len(count_S)), np.float32)
    held, h = 0, 0
    for source in range(len(count_S)):
        for rank in range(count_S[source]):
            place = _place_of(key_P, row_H[h])
            if key_P[place] == _VACANT:
                key_P[place], index_P[place], row_N[held] = row_H[h], held, row_H[h]
                held += 1
            rank_NS[index_P[place], source] = rank
            score_NS[index_P[place], source] = score_H[h]
            h += 1
    return row_N[:held].copy(), rank_NS[:held].copy(), score_NS[:held].copy()


@_compiled
def merged_of_many(row_H, score_H, count_BS):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    """`merged` of the lists of many queries, one query's after the other's; and where each begins, (B + 1,)."""
    row_N = np.empty(len(row_H), np.int64)
    rank_NS = np.empty((len(row_H), count_BS.shape[1]), np.int16)
    score_NS = np.empty((len(row_H), count_BS.shape[1]), np.float32)
    offset_B1 = np.zeros(len(count_BS) + 1, np.int64)
    h = 0
    for b in range(len(count_BS)):
        after = h + count_BS[b].sum()
        row_M, rank_MS, score_MS = merged(row_H[h:after], score_H[h:after], count_BS[b])
        start, end = offset_B1[b], offset_B1[b] + len(row_M)
        row_N[start:end], rank_NS[start:end], score_NS[start:end] = row_M, rank_MS, score_MS
        offset_B1[b + 1], h = end, after
    end = offset_B1[-1]
    return row_N[:end].copy(), rank_NS[:end].copy(), score_NS[:end].copy(), offset_B1


@_compiled
def best_of_each(value_N, offset_B1, most):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    """Positions of the largest values of each query, largest first, of equals the earlier; all of a query that has no
    more, as they come. And where each query's begin."""
    at_N, best_B1, held = np.empty(len(value_N), np.int64), np.zeros(len(offset_B1), np.int64), 0
    for b in range(len(offset_B1) - 1):
        start, end = offset_B1[b], offset_B1[b + 1]
        order_N = np.arange(end - start)
        if end - start > most:
            order_N = np.argsort(-value_N[start:end], kind="mergesort")[:most]
        at_N[held : held + len(order_N)] = start + order_N
        held += len(order_N)
        best_B1[b + 1] = held
    return at_N[:held].copy(), best_B1


@_compiled
def _among(row_N, row_X):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    among_N = np.zeros(len(row_N), np.bool_)
    if len(row_X) > 0:
        key_P = _table_of(len(row_X))
        for row in row_X:
            key_P[_place_of(key_P, row)] = row
        for n in range(len(row_N)):
            among_N[n] = key_P[_place_of(key_P, row_N[n])] == row_N[n]
    return among_N


@_compiled
def _first_of_each(row_L):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    key_P, row_N, held = _table_of(len(row_L)), np.empty(len(row_L), np.int64), 0
    for row in row_L:
        place = _place_of(key_P, row)
        if key_P[place] == _VACANT:
            key_P[place], row_N[held] = row, row
            held += 1
    return row_N[:held].copy()


@_compiled
def taking_turns(row_H, score_H, count_S, left_out_X):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    """Each row that is not left out, once: where it scores best, and of equal scores in the first list."""
    key_P = _table_of(len(row_H) + len(left_out_X))
    index_P = np.empty(len(key_P), np.int64)
    for row in left_out_X:
        place = _place_of(key_P, row)
        key_P[place], index_P[place] = row, -1
    row_N, score_N, turn_N = np.empty(len(row_H), np.int64), np.empty(len(row_H), np.float32), np.empty_like(row_H)
    held, h = 0, 0
    for count in count_S:
        for turn in range(count):
            row, score = row_H[h], score_H[h]
            h += 1
            place = _place_of(key_P, row)
            if key_P[place] != row:
                key_P[place], index_P[place] = row, held
                row_N[held], score_N[held], turn_N[held] = row, score, turn
                held += 1
            elif index_P[place] >= 0 and score > score_N[index_P[place]]:
                score_N[index_P[place]], turn_N[index_P[place]] = score, turn
    return row_N[:held].copy(), score_N[:held].copy(), turn_N[:held].copy()


@_inlined
def _table_of(rows):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    """Room for so many different rows, no more than half full."""
    places = 16
    while places < 2 * rows:
        places *= 2
    return np.full(places, _VACANT)


@_inlined
def _place_of(key_P, row):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    """Where the row is in the table, or is to be."""
    place = (row * 0x9E3779B97F4A7C1) >> 20 & (len(key_P) - 1)
    while key_P[place] != _VACANT and key_P[place] != row:
        place = (place + 1) & (len(key_P) - 1)
    return place
