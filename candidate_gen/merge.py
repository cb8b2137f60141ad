"""What the sources named, as one set of candidates.

Shape letters: N candidates, S sources, K hits of a source, H hits of all, X other rows, P places of a hash table.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from candidate_gen.types import NO_ROWS, Candidates
from index.columns import plain
from index.types import Hits

_FAR = 60.0
_ROW = np.dtype(np.int64)
_VACANT = -(2**63)
_compiled: Any = njit(cache=True, nogil=True, boundscheck=False)
_inlined: Any = njit(inline="always", boundscheck=False)


def only(row_N: NDArray[np.int64], names: tuple[str, ...]) -> Candidates:
    """A caller's own list as candidates that no source named."""
    shape = (len(row_N), len(names))
    return Candidates(row_N, names, np.full(shape, -1, np.int16), np.zeros(shape, np.float32))


def merge(names: tuple[str, ...], hits: Sequence[Hits | None]) -> Candidates:
    """The union of what the sources named, each item once, in order of first appearance."""
    count_S = np.array([0 if each is None else len(each) for each in hits], np.int64)
    named = [each for each in hits if each is not None]
    if not count_S.any():
        return only(NO_ROWS, names)
    row_H = np.concatenate([each.row_K for each in named], dtype=np.int64)
    score_H = np.concatenate([each.score_K for each in named], dtype=np.float32, casting="same_kind")
    row_N, rank_NS, score_NS = _merged(row_H, score_H, count_S)
    return Candidates(row_N, names, rank_NS, score_NS)


def among(row_N: NDArray[np.int64], row_X: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Which of the first rows are one of the second: `np.isin`, without what it does to choose a way."""
    among_N: NDArray[np.bool_] = _among(plain(row_N, _ROW), plain(row_X, _ROW))
    return among_N


def first_of_each(row_L: NDArray[np.int64]) -> NDArray[np.int64]:
    """Each row once, in the order of first appearance."""
    row_N: NDArray[np.int64] = _first_of_each(plain(row_L, _ROW))
    return row_N


def with_rows(candidates: Candidates, row_N: NDArray[np.int64]) -> Candidates:
    """With those of the rows that are missing as the last candidates, which no source named."""
    if not len(row_N):
        return candidates
    added = only(row_N[~among(row_N, candidates.row_N)], candidates.source_names)
    return Candidates(
        np.concatenate([candidates.row_N, added.row_N]),
        candidates.source_names,
        np.concatenate([candidates.rank_NS, added.rank_NS]),
        np.concatenate([candidates.score_NS, added.score_NS]),
    )


def fused(candidates: Candidates, most: int, *, always: NDArray[np.int64] = NO_ROWS) -> Candidates:
    """The best by reciprocal rank fusion, best first; of equals the earlier one.

    sum over sources of 1 / (60 + rank), ranks from 1. Source: Cormack, Clarke and Buettcher, SIGIR 2009.

    Args:
        always: rows that stay whatever their rank, and count towards `most`.
    """
    if len(candidates) <= most:
        return candidates
    share_NS = np.where(candidates.rank_NS >= 0, 1 / (_FAR + 1 + candidates.rank_NS), 0.0)
    share_N = share_NS.sum(axis=1)
    share_N[among(candidates.row_N, always)] = np.inf
    return candidates.take(np.argsort(-share_N, kind="stable")[:most])


@_compiled
def _merged(row_H, score_H, count_S):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    key_P = table_of(len(row_H))
    index_P = np.empty(len(key_P), np.int64)
    row_N = np.empty(len(row_H), np.int64)
    rank_NS = np.full((len(row_H), len(count_S)), -1, np.int16)
    score_NS = np.zeros((len(row_H), len(count_S)), np.float32)
    held, h = 0, 0
    for source in range(len(count_S)):
        for rank in range(count_S[source]):
            place = place_of(key_P, row_H[h])
            if key_P[place] == _VACANT:
                key_P[place], index_P[place], row_N[held] = row_H[h], held, row_H[h]
                held += 1
            rank_NS[index_P[place], source] = rank
            score_NS[index_P[place], source] = score_H[h]
            h += 1
    return row_N[:held].copy(), rank_NS[:held].copy(), score_NS[:held].copy()


@_compiled
def _among(row_N, row_X):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    among_N = np.zeros(len(row_N), np.bool_)
    if len(row_X) > 0:
        key_P = table_of(len(row_X))
        for row in row_X:
            key_P[place_of(key_P, row)] = row
        for n in range(len(row_N)):
            among_N[n] = key_P[place_of(key_P, row_N[n])] == row_N[n]
    return among_N


@_compiled
def _first_of_each(row_L):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    key_P, row_N, held = table_of(len(row_L)), np.empty(len(row_L), np.int64), 0
    for row in row_L:
        place = place_of(key_P, row)
        if key_P[place] == _VACANT:
            key_P[place], row_N[held] = row, row
            held += 1
    return row_N[:held].copy()


@_inlined
def table_of(rows):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    """Room for so many different rows, no more than half full."""
    places = 16
    while places < 2 * rows:
        places *= 2
    return np.full(places, _VACANT)


@_inlined
def place_of(key_P, row):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    """Where the row is in the table, or is to be."""
    place = (row * 0x9E3779B97F4A7C1) >> 20 & (len(key_P) - 1)
    while key_P[place] != _VACANT and key_P[place] != row:
        place = (place + 1) & (len(key_P) - 1)
    return place
