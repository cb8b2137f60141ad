"""What an index is proved to find: effort raised until held-out queries show the target, and the curve on the way.

Shape letters: A allowed rows, B queries, D embedding width, I rows, K results, N rows of a chunk.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import faiss
import numpy as np
from numpy.typing import NDArray

from index.masks import Mask
from index.recall import Recall, recall_at

CURVE_K = (100, 500)
"""Certified whatever k the index is built for."""
SHARES = (0.1, 0.01, 0.001)
"""Of the rows, that a certified filter allows."""
QUERIES = 500
"""That unfiltered recall is measured on, at most."""
FILTERED_QUERIES = 100
TIMED = 50
"""Queries that latencies are measured with, at most."""

_ANCHORS = 8
_CHUNK = 16_384


@dataclass(frozen=True, slots=True)
class Certificate:
    """One measured point, against exact search in float32 on held-out queries."""

    recall: Recall
    effort: int
    """See `index.kinds`. Under a filter it is the effort for k, which the planner widens or sets aside."""
    share: float = 1.0
    """Of the rows, that were allowed."""
    regions: bool = False
    """Allowed were the rows nearest to a few points, as a category's are; else a random sample."""

    @property
    def name(self) -> str:
        """As in `k=100`, `k=100 share=0.01 random`; with the effort, unique among an index's points."""
        share = "" if self.share == 1 else f" share={self.share:g} {'regions' if self.regions else 'random'}"
        return f"k={self.recall.k}{share}"

    @classmethod
    def stored(cls, fields: Mapping[str, Any]) -> Self:
        """What `dataclasses.asdict` made of one."""
        return cls(**{**fields, "recall": Recall(**fields["recall"])})


def at_work(curve: Sequence[Certificate], efforts: Mapping[int, int]) -> tuple[Certificate, ...]:
    """The points of a curve that searches work at, unfiltered ones first, each by ascending k."""
    working = [each for each in curve if each.effort == efforts[each.recall.k]]
    return tuple(sorted(working, key=lambda each: (-each.share, each.regions, each.recall.k)))


def least_recall(certificates: Sequence[Certificate]) -> float:
    """The lowest certified recall without a filter, over the ks; NaN where there is none."""
    return min((each.recall.value for each in certificates if each.share == 1), default=math.nan)


def timed(
    points: Sequence[Certificate],
    query_BD: NDArray[np.float32],
    search: Callable[[NDArray[np.float32], Certificate], object],
    *,
    clock: Callable[[], float],
) -> dict[str, float]:
    """Median milliseconds of a search at every point, by its name and effort; nothing without a query."""
    taken_ms = {}
    for each in points if len(query_BD) else ():
        taken_s = []
        for query_D in query_BD:
            started_s = clock()
            search(query_D, each)
            taken_s.append(clock() - started_s)
        taken_ms[f"{each.name} effort={each.effort}"] = round(1000 * float(np.median(taken_s)), 4)
    return taken_ms


class Truth:
    """The exact answers to some queries among some rows."""

    def __init__(
        self,
        vector_ID: NDArray[np.float32],
        query_BD: NDArray[np.float32],
        k: int,
        *,
        row_A: NDArray[np.int64] | None = None,
    ) -> None:
        self.query_BD = query_BD
        self._vector_ID = vector_ID
        among = vector_ID if row_A is None else vector_ID[row_A]
        exist = min(k, len(among))
        self._score_BK = np.full((len(query_BD), k), -np.inf, np.float32)
        self._score_BK[:, :exist] = faiss.knn(query_BD, among, exist, metric=faiss.METRIC_INNER_PRODUCT)[0]

    def recall(self, row_BK: NDArray[np.int64]) -> Recall:
        """Of these answers, -1 where there is none."""
        exact_BK = self._score_BK[:, : row_BK.shape[1]]
        return recall_at(row_BK, exact_BK, true_scores(self._vector_ID, self.query_BD, row_BK))


def true_scores(
    vector_ID: NDArray[np.float32], query_BD: NDArray[np.float32], row_BK: NDArray[np.int64]
) -> NDArray[np.float32]:
    """Inner products of each query with its rows; any number at -1."""
    score_BK = np.empty(row_BK.shape, np.float32)
    step = max(1, _CHUNK // max(1, row_BK.shape[1]))
    for start in range(0, len(row_BK), step):
        part = slice(start, start + step)
        np.einsum("bkd,bd->bk", vector_ID[row_BK[part]], query_BD[part], out=score_BK[part])
    return score_BK


def tuned(
    measure: Callable[[int, int], Recall],
    ladder: Callable[[int], tuple[int, int]],
    *,
    ks: list[int],
    target: float,
    effort: int | None = None,
) -> tuple[dict[int, int], list[Certificate]]:
    """The effort of each k, and everything that was measured to find it.

    An effort is at most an eighth above the least whose lower bound reaches the target, or the greatest there is.

    Args:
        measure: recall at k with an effort.
        ladder: least and greatest effort at k.
        ks: ascending.
        effort: None finds it; another is taken as it is, so far as there is such a one.
    """
    if effort is not None:
        fixed = {k: between(ladder(k), effort) for k in ks}
        return fixed, [Certificate(measure(k, each), each) for k, each in fixed.items()]
    efforts: dict[int, int] = {}
    curve: list[Certificate] = []
    found = 1
    for k in ks:
        least, most = ladder(k)

        def reaches(effort: int, k: int = k) -> bool:
            curve.append(Certificate(measure(k, effort), effort))
            return curve[-1].recall.low >= target

        found = min(max(found, least), most)
        too_few = least - 1
        while not reaches(found) and found < most:
            too_few, found = found, min(2 * found, most)
        while found - too_few > max(1, too_few // 8):
            middle = (too_few + found) // 2
            if reaches(middle):
                found = middle
            else:
                too_few = middle
        efforts[k] = found
    return efforts, sorted(curve, key=lambda each: (each.recall.k, each.effort))


def filters(vector_ID: NDArray[np.float32], usable: Mask) -> Iterator[tuple[float, bool, Mask]]:
    """For each share a random sample of the usable rows and the whole regions around a few of them.

    The same rows every time. A share allows at least one row.
    """
    if not usable.count:
        return
    draw_I = np.random.default_rng(0).random(len(vector_ID))
    anchor_AD = vector_ID[usable.row_A[:: max(1, usable.count // _ANCHORS)][:_ANCHORS]]
    near_I = np.empty(len(vector_ID))
    for start in range(0, len(vector_ID), _CHUNK):
        part = slice(start, start + _CHUNK)
        near_I[part] = np.nan_to_num((vector_ID[part] @ anchor_AD.T).max(1))
    draw_I[~usable.allowed_I] = near_I[~usable.allowed_I] = -np.inf
    for share in SHARES:
        rows = max(1, round(share * usable.count))
        for regions, rank_I in ((False, draw_I), (True, near_I)):
            allowed_I = np.zeros(len(vector_ID), np.bool_)
            allowed_I[np.argpartition(rank_I, -rows)[-rows:]] = True
            yield share, regions, Mask(allowed_I)


def between(ends: tuple[int, int], number: int) -> int:
    return max(ends[0], min(number, ends[1]))


def certified(
    search: Callable[[NDArray[np.float32], int, Mask], NDArray[np.int64]],
    vector_ID: NDArray[np.float32],
    query_BD: NDArray[np.float32],
    usable: Mask,
    *,
    efforts: Mapping[int, int],
) -> list[Certificate]:
    """Recall under filters.

    Args:
        search: rows for one query, among those allowed.
        efforts: by k, what the search uses.
    """
    found: list[Certificate] = []
    for share, regions, mask in filters(vector_ID, usable):
        truth = Truth(vector_ID, query_BD, max(efforts), row_A=mask.row_A)
        for k, effort in efforts.items():
            row_BK = np.full((len(query_BD), k), -1, np.int64)
            for row_K, query_D in zip(row_BK, query_BD, strict=True):
                hit_K = search(query_D, k, mask)
                row_K[: len(hit_K)] = hit_K
            found.append(Certificate(truth.recall(row_BK), effort, share, regions))
    return found
