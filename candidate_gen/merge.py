"""What the sources named, as one set of candidates.

Shape letters: N candidates, S sources, K hits of a source, H hits of all, B queries.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from candidate_gen.row_sets import among, best_of_each, merged, merged_of_many
from candidate_gen.types import NO_ROWS, Candidates
from index.types import Hits

_FAR = 60.0


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
    row_N, rank_NS, score_NS = merged(row_H, score_H, count_S)
    return Candidates(row_N, names, rank_NS, score_NS)


def merge_of_many(names: tuple[str, ...], hits: Sequence[Sequence[Hits]]) -> tuple[Candidates, NDArray[np.int64]]:
    """The union of what the sources named to each of many queries, one query's after the other's, and where each
    begins, (B + 1,).

    Args:
        hits: of each query, for each source.
    """
    count_BS = np.array([[len(each) for each in own] for own in hits], np.int64)
    row_H = np.concatenate([each.row_K for own in hits for each in own], dtype=np.int64)
    score_H = np.concatenate([each.score_K for own in hits for each in own], dtype=np.float32, casting="same_kind")
    row_N, rank_NS, score_NS, offset_B1 = merged_of_many(row_H, score_H, count_BS)
    return Candidates(row_N, names, rank_NS, score_NS), offset_B1


def with_rows(candidates: Candidates, row_N: NDArray[np.int64]) -> Candidates:
    """With those of the rows that are missing as the last candidates, which no source named."""
    if not len(row_N):
        return candidates
    return joined(candidates, only(row_N[~among(row_N, candidates.row_N)], candidates.source_names))


def joined(candidates: Candidates, others: Candidates) -> Candidates:
    """One after the other: none of the others is a candidate yet, and the sources are the same."""
    return Candidates(
        np.concatenate([candidates.row_N, others.row_N]),
        candidates.source_names,
        np.concatenate([candidates.rank_NS, others.rank_NS]),
        np.concatenate([candidates.score_NS, others.score_NS]),
    )


def fused(
    candidates: Candidates,
    most: int,
    *,
    always: NDArray[np.int64] = NO_ROWS,
    weights: Mapping[str, float] | None = None,
) -> Candidates:
    """The best by reciprocal rank fusion, best first; of equals the earlier one.

    sum over sources of weight / (60 + rank), ranks from 1. Source: Cormack, Clarke and Buettcher, SIGIR 2009.

    Args:
        always: rows that stay whatever their rank, and count towards `most`.
        weights: of the sources, by name; 1 for those that are not named.
    """
    if len(candidates) <= most:
        return candidates
    share_N = _shares(candidates, weights or {})
    share_N[among(candidates.row_N, always)] = np.inf
    return candidates.take(np.argsort(-share_N, kind="stable")[:most])


def fused_of_many(
    candidates: Candidates, offset_B1: NDArray[np.int64], most: int
) -> tuple[Candidates, NDArray[np.int64]]:
    """The best of each of many queries, and where each query's begin."""
    at_N, best_B1 = best_of_each(_shares(candidates, {}), offset_B1, most)
    return candidates.take(at_N), best_B1


def _shares(candidates: Candidates, weights: Mapping[str, float]) -> NDArray[np.float64]:
    """What each is worth in the fusion."""
    share_NS = np.where(candidates.rank_NS >= 0, 1 / (_FAR + 1 + candidates.rank_NS), 0.0)
    if weights:
        share_NS *= [weights.get(name, 1.0) for name in candidates.source_names]
    share_N: NDArray[np.float64] = share_NS.sum(axis=1)
    return share_N
