"""What is taken most right now, counted as it happens.

Every event counts 1 when it happens and half as much a half-life later. Counts only ever grow, in a scale of their own
(`candidate_gen.decay`), so the largest can be kept at hand: a query passes over them alone.

Shape letters: I items (rows), M leaders, N events, K results.
"""

import numpy as np
from numpy.typing import NDArray

from candidate_gen.decay import Decay
from candidate_gen.row_sets import among
from candidate_gen.sources import known_to
from candidate_gen.types import NO_ROWS, HydratedQuery
from index.masks import Mask
from index.types import Hits


class Trending:
    """Counts of every item with exponential decay, and those with the largest.

    Memory: 9 bytes for each item up to the highest row seen, and the leaders.

    Args:
        half_life_s: after which an event counts half.
        leaders: how many of the largest counts are kept at hand. Where the k best of those allowed are not among
            them, a query passes over all items.
    """

    name = "trending"

    def __init__(self, *, half_life_s: float, leaders: int = 1024) -> None:
        self._decay = Decay(half_life_s)
        if leaders < 1:
            raise ValueError(f"leaders is {leaders}; at least 1 must be kept")
        self._count_I = np.zeros(0)
        self._leads_I = np.zeros(0, np.bool_)
        self._leader_M = NO_ROWS
        self._ranked_M: NDArray[np.int64] | None = None
        """The leaders, best first; None where they must be ranked anew."""
        self._leaders = leaders
        self._least = 0.0
        """No leader's count is lower; no other's is higher."""

    def update(self, row_N: NDArray[np.int64], time_ms_N: NDArray[np.int64]) -> None:
        """Count events, in any order; a late one counts as if it had come in time."""
        if not len(row_N):
            return
        self._reach(int(row_N.max()) + 1, int(time_ms_N.max()))
        self._ranked_M = None
        np.add.at(self._count_I, row_N, self._decay.weight(time_ms_N))
        rising = row_N[~self._leads_I[row_N] & (self._count_I[row_N] > self._least)]
        if len(rising):
            self._promote(np.unique(rising))

    def count(self, row_N: NDArray[np.int64], time_ms: int) -> NDArray[np.float64]:
        """What the items' events are worth at a time, or at that of the newest event if that is later."""
        count_N = np.zeros(len(row_N))
        known_N = row_N < len(self._count_I)
        count_N[known_N] = self._count_I[row_N[known_N]]
        return count_N * self._decay.worth(time_ms)

    def top(self, time_ms: int, k: int, allowed: Mask | None = None) -> Hits:
        """The k largest counts as of a time, as `count` has it; items without an event are not named.

        Args:
            allowed: rows that may be returned; of rows behind its end none may.
        """
        if self._ranked_M is None:
            self._ranked_M = self._ranked(self._leader_M)
        row_K = _among(self._ranked_M, allowed)[: max(k, 0)]
        if len(row_K) < k and len(self._leader_M) == self._leaders:
            row_K = self._ranked(_among(np.flatnonzero(self._count_I), allowed))[: max(k, 0)]
        return Hits(row_K, (self._count_I[row_K] * self._decay.worth(time_ms)).astype(np.float32))

    def retrieve(self, hydrated: HydratedQuery, k: int) -> Hits:
        """Seeds, excluded items and the history are left out."""
        known_X = known_to(hydrated.query)
        hits = self.top(hydrated.query.time_ms, k + len(known_X), hydrated.allowed)
        kept = np.flatnonzero(~among(hits.row_K, known_X))[: max(k, 0)]
        return Hits(hits.row_K[kept], hits.score_K[kept])

    def _ranked(self, row_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Largest count first, of equals the smaller row."""
        return row_N[np.lexsort((row_N, -self._count_I[row_N]))]

    def _reach(self, rows: int, time_ms: int) -> None:
        if not len(self._count_I):
            self._decay.begin(time_ms)
        if rows > len(self._count_I):
            more = max(rows, 2 * len(self._count_I)) - len(self._count_I)
            self._count_I = np.append(self._count_I, np.zeros(more))
            self._leads_I = np.append(self._leads_I, np.zeros(more, np.bool_))
        fading = self._decay.reach(time_ms)
        if fading != 1:
            self._count_I *= fading
            self._least *= fading

    def _promote(self, row_N: NDArray[np.int64]) -> None:
        """Keep the largest of the leaders and these."""
        row_M = np.concatenate([self._leader_M, row_N])
        if len(row_M) > self._leaders:
            row_M = row_M[np.argpartition(-self._count_I[row_M], self._leaders - 1)[: self._leaders]]
            self._least = float(self._count_I[row_M].min())
        self._leads_I[self._leader_M] = False
        self._leads_I[row_M] = True
        self._leader_M = row_M


def _among(row_N: NDArray[np.int64], allowed: Mask | None) -> NDArray[np.int64]:
    if allowed is None:
        return row_N
    row_N = row_N[row_N < len(allowed)]
    return row_N[allowed.allowed_I[row_N]]
