"""What the same visitors take next, counted as it happens.

Each item keeps a bounded number of companions: those that visitors took soon after it or before it, in counts with
exponential decay (`candidate_gen.decay`). A new companion takes the place of the weakest.

Shape letters: P places (items that have companions), C companions of one, L what the visitor took before, N rows,
K results.
"""

import numpy as np
from numpy.typing import NDArray

from candidate_gen.decay import Decay
from candidate_gen.row_sets import among
from candidate_gen.sources import known_to
from candidate_gen.types import NO_ROWS, HydratedQuery
from index.masks import Mask
from index.types import Hits

_NOTHING = Hits(NO_ROWS, np.empty(0, np.float32))


class Covisitation:
    """Companions of items, by decayed counts of visitors who took both.

    A pair counts 1 when its later item is taken, times 1/2 for each item taken in between, times `backward` for what
    it says of the later item's companions. Memory: 12 bytes x places x companions, whatever the catalogue.

    Args:
        half_life_s: after which a pair counts half.
        companions: kept for each item.
        places: items that are kept; where more are seen, a quarter of the places, the lightest, is given up.
        depth: how many of the items taken before are paired with a new one, and asked for a query.
        backward: how much taking B after A says of A where B was taken.
    """

    name = "covisitation"

    def __init__(
        self,
        *,
        half_life_s: float,
        companions: int = 128,
        places: int = 65_536,
        depth: int = 5,
        backward: float = 0.3,
    ) -> None:
        self._decay = Decay(half_life_s)
        for name, value, least in (("companions", companions, 1), ("places", places, 2), ("depth", depth, 1)):
            if value < least:
                raise ValueError(f"{name} is {value}; it must be at least {least}")
        if not 0 <= backward <= 1:
            raise ValueError(f"backward is {backward}; it must be from 0 to 1")
        self._row_PC = np.full((0, companions), -1, np.int32)
        self._count_PC = np.zeros((0, companions))
        self._places = places
        self._place: dict[int, int] = {}
        self._depth = depth
        self._backward = backward

    def update(self, row: int, past_row_L: NDArray[np.int64], time_ms: int) -> None:
        """Count that a visitor took an item at a time.

        Args:
            past_row_L: what they took before in the same visit, newest first.
        """
        if not len(past_row_L):
            return
        if not self._place:
            self._decay.begin(time_ms)
        fading = self._decay.reach(time_ms)
        if fading != 1:
            self._count_PC *= fading
        weight = float(self._decay.weight(time_ms))
        for past in past_row_L[: self._depth].tolist():
            if past != row:
                self._add(past, row, weight)
                if self._backward:
                    self._add(row, past, weight * self._backward)
            weight /= 2

    def count(self, past_row: int, row_N: NDArray[np.int64], time_ms: int) -> NDArray[np.float64]:
        """What one item's pairs with others are worth at a time, or at that of the newest pair if that is later."""
        count_N = np.zeros(len(row_N))
        place = self._place.get(past_row)
        if place is not None and len(row_N):
            row_C = self._row_PC[place]
            order_C = np.argsort(row_C)
            at_N = np.minimum(np.searchsorted(row_C, row_N, sorter=order_C), len(row_C) - 1)
            found_N = order_C[at_N]
            count_N = np.where(row_C[found_N] == row_N, self._count_PC[place, found_N], 0.0) * self._decay.worth(
                time_ms
            )
        return count_N

    def top(self, past_row_L: NDArray[np.int64], time_ms: int, k: int, allowed: Mask | None = None) -> Hits:
        """Companions of what was taken, newest first, each item before the newest counting half of the next.

        What was taken is left out.

        Args:
            allowed: rows that may be returned; of rows behind its end none may.
        """
        rows, counts = [], []
        for back, past in enumerate(past_row_L[: self._depth].tolist()):
            place = self._place.get(past)
            if place is not None:
                rows.append(self._row_PC[place])
                counts.append(self._count_PC[place] / 2**back)
        if not rows or k < 1:
            return _NOTHING
        row_N, which = np.unique(np.concatenate(rows), return_inverse=True)
        count_N = np.bincount(which, np.concatenate(counts))
        shown_N = (row_N >= 0) & ~among(row_N, past_row_L)
        if allowed is not None:
            shown_N &= row_N < len(allowed)
            shown_N[shown_N] = allowed.allowed_I[row_N[shown_N]]
        row_N, count_N = row_N[shown_N], count_N[shown_N]
        best_K = np.argsort(-count_N, kind="stable")[:k]
        return Hits(row_N[best_K].astype(np.int64), (count_N[best_K] * self._decay.worth(time_ms)).astype(np.float32))

    def retrieve(self, hydrated: HydratedQuery, k: int) -> Hits:
        """Companions of the seeds, or where there are none of the history; seeds, history and excluded are left out."""
        query = hydrated.query
        past_row_L = query.seed_row_S if len(query.seed_row_S) else query.history.row_L
        left_out_X = known_to(query)
        hits = self.top(past_row_L, query.time_ms, k + len(left_out_X), hydrated.allowed)
        kept = np.flatnonzero(~among(hits.row_K, left_out_X))[: max(k, 0)]
        return Hits(hits.row_K[kept], hits.score_K[kept])

    def _add(self, row: int, companion: int, count: float) -> None:
        place = self._place.get(row)
        if place is None:
            place = self._new_place(row)
        row_C = self._row_PC[place]
        found = int((row_C == companion).argmax())
        if row_C[found] == companion:
            self._count_PC[place, found] += count
        else:
            weakest = int(self._count_PC[place].argmin())
            row_C[weakest], self._count_PC[place, weakest] = companion, count

    def _new_place(self, row: int) -> int:
        if len(self._place) == self._places:
            self._give_up(self._places // 4 or 1)
        elif len(self._place) == len(self._row_PC):
            more = min(max(2 * len(self._row_PC), 64), self._places) - len(self._row_PC)
            companions = self._row_PC.shape[1]
            self._row_PC = np.append(self._row_PC, np.full((more, companions), -1, np.int32), axis=0)
            self._count_PC = np.append(self._count_PC, np.zeros((more, companions)), axis=0)
        self._place[row] = len(self._place)
        return self._place[row]

    def _give_up(self, places: int) -> None:
        """The lightest places, so that the kept ones are the first."""
        kept_P = np.sort(np.argsort(self._count_PC.sum(axis=1), kind="stable")[places:])
        row_of_P = np.fromiter(self._place, np.int64, len(self._place))
        self._row_PC[: len(kept_P)], self._count_PC[: len(kept_P)] = self._row_PC[kept_P], self._count_PC[kept_P]
        self._row_PC[len(kept_P) :], self._count_PC[len(kept_P) :] = -1, 0.0
        self._place = {row: place for place, row in enumerate(row_of_P[kept_P].tolist())}
