"""The sources that learn while they serve: what is trending, and what is taken together, fed with events as they come.

What they hold is state, as a user's history is: it is read when a request comes, goes into the log, and the pipeline
sees what was read (`sources.Told`). So nothing of a request depends on them but through its query.

Shape letters: E events, N items, K results, L what was taken before.
"""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from threading import Lock

import numpy as np
from numpy.typing import NDArray

from candidate_gen.covisitation import Covisitation
from candidate_gen.items import Items
from candidate_gen.row_sets import among, first_of_each
from candidate_gen.sources import known_to
from candidate_gen.trending import Trending
from candidate_gen.types import Query
from index.masks import Mask
from index.strings import IdMap, key64
from index.types import Hits

LIVE = ("covisitation", "trending")
"""Names of these sources."""
_LEADERS = 1024
_COMPANIONS = 64
_DEPTH = 5
_VISITORS = 65_536


class LiveCounts:
    """What both sources know of one generation's items. Threads may share it.

    Items may be replaced meanwhile, and come: counts follow the id, not the row. A source answers from what leads it
    (1,024 trending items, 64 companions of each of 5), so under a filter that few of those pass, it names few. Memory:
    9 bytes an item of the catalogue, and up to 80 MB for companions and visitors.

    Args:
        items: those of the generation as it was built, or later ones.
        trending_half_life_s, covisitation_half_life_s: after which an event, and a pair, counts half.
        visit_s: what a visitor takes after a longer pause is no longer taken together with what was before.
    """

    def __init__(
        self, items: Items, *, trending_half_life_s: float, covisitation_half_life_s: float, visit_s: float
    ) -> None:
        self._numbers = _Numbers(items.ids)
        self._trending = Trending(half_life_s=trending_half_life_s, leaders=_LEADERS)
        self._covisitation = Covisitation(half_life_s=covisitation_half_life_s, companions=_COMPANIONS, depth=_DEPTH)
        self._visit_ms = visit_s * 1000
        self._visits: OrderedDict[int, tuple[list[int], int]] = OrderedDict()
        """By visitor: numbers of what was taken, newest first, and when the last was; the longest silent first."""
        self._lock = Lock()

    def add(self, event_E: np.ndarray, items: Items) -> None:
        """Count events (`activity.EVENT`), in the order in which they became known.

        Args:
            items: as they are now; events of others are passed over.
        """
        event_E = event_E[items.ids.rows(event_E["item_key"]) >= 0]
        if not len(event_E):
            return
        with self._lock:
            number_E = self._numbers.of(event_E["item_key"])
            self._trending.update(number_E, event_E["time_ms"])
        visitors = zip(event_E["visitor_key"].tolist(), number_E.tolist(), event_E["time_ms"].tolist(), strict=True)
        for visitor, number, time_ms in visitors:
            if visitor:
                with self._lock:  # for one event at a time: requests are waiting
                    self._visit(visitor, number, time_ms)

    def named(self, query: Query, items: Items, allowed: Mask | None, quotas: Mapping[str, int]) -> dict[str, Hits]:
        """What each source says of a query: rows that are allowed, best first, without what the query knows already.

        Args:
            items: those that the rows are of.
            quotas: how many items a source may name; one without is not asked.
        """
        asked = [(name, k) for name in LIVE if (k := quotas.get(name, 0)) > 0]
        return {name: self._shown(name, query, items, allowed, k) for name, k in asked}

    def named_of_many(
        self, queries: Sequence[Query], items: Items, allowed: Mask | None, quotas: Mapping[str, int]
    ) -> list[dict[str, Hits]]:
        """The same of queries of one moment."""
        others = {name: k for name, k in quotas.items() if name != Trending.name}
        named = [self.named(query, items, allowed, others) for query in queries]
        k = quotas.get(Trending.name, 0)
        if k > 0:
            with self._lock:
                leaders = self._asked(Trending.name, queries[0], items, _LEADERS)
                row_M = self._numbers.rows(leaders.row_K, items)
            shown_M = row_M >= 0
            if allowed is not None:
                shown_M[shown_M] = allowed.allowed_I[row_M[shown_M]]
            row_M, score_M = row_M[shown_M], leaders.score_K[shown_M]
            for query, own in zip(queries, named, strict=True):
                known_X = known_to(query)
                first = slice(k + len(known_X))
                at_K = np.flatnonzero(~among(row_M[first], known_X))[:k]
                own[Trending.name] = Hits(row_M[at_K], score_M[at_K])
        return named

    def _shown(self, name: str, query: Query, items: Items, allowed: Mask | None, k: int) -> Hits:
        known_X = known_to(query)
        for wanted in (2 * k + len(known_X), _LEADERS):
            with self._lock:
                hits = self._asked(name, query, items, wanted)
                row_K = self._numbers.rows(hits.row_K, items)
            shown_K = (row_K >= 0) & ~among(row_K, known_X)
            if allowed is not None:
                shown_K[shown_K] = allowed.allowed_I[row_K[shown_K]]
            at_K = np.flatnonzero(shown_K)[:k]
            if len(at_K) == k or len(hits) < wanted:
                break
        return Hits(row_K[at_K], hits.score_K[at_K])

    def _asked(self, name: str, query: Query, items: Items, k: int) -> Hits:
        """In numbers."""
        if name == Trending.name:
            return self._trending.top(query.time_ms, k)
        past_L = first_of_each(query.seed_row_S if len(query.seed_row_S) else query.history.row_L)[:_DEPTH]
        return self._covisitation.top(self._numbers.of_rows(past_L, items), query.time_ms, k)

    def _visit(self, visitor: int, number: int, time_ms: int) -> None:
        past, last_ms = self._visits.pop(visitor, ([], time_ms))
        if time_ms - last_ms > self._visit_ms:
            past = []
        self._covisitation.update(number, np.array(past, np.int64), time_ms)
        self._visits[visitor] = [number, *(each for each in past if each != number)][:_DEPTH], time_ms
        if len(self._visits) > _VISITORS:
            self._visits.popitem(last=False)


class _Numbers:
    """A number for each item that stays its own, whatever row it has: that of its first row, and then one by one."""

    def __init__(self, ids: IdMap) -> None:
        self._ids = ids
        self._number_of: dict[int, int] = {}
        self._new_key: list[int] = []

    def of(self, key_N: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Of items by their keys; those that came since get one."""
        number_N = self._ids.rows(key_N)
        for n in np.flatnonzero(number_N < 0).tolist():
            key = int(key_N[n])
            if key not in self._number_of:
                self._number_of[key] = len(self._ids) + len(self._new_key)
                self._new_key.append(key)
            number_N[n] = self._number_of[key]
        return number_N

    def of_rows(self, row_N: NDArray[np.int64], items: Items) -> NDArray[np.int64]:
        """Of items by their rows."""
        if (row_N < len(self._ids)).all():
            return row_N
        return self.of(items.ids.keys(row_N))

    def rows(self, number_N: NDArray[np.int64], items: Items) -> NDArray[np.int64]:
        """The row that each has by now, -1 where the items do not hold it (any more)."""
        first = len(self._ids)
        moved_N = number_N >= first
        moved_N[~moved_N] = items.gone_I[number_N[~moved_N]]
        row_N = np.array(number_N)
        if moved_N.any():
            key_N = np.array([self._key(number) for number in number_N[moved_N].tolist()], np.uint64)
            now_N = items.ids.rows(key_N)
            row_N[moved_N] = np.where((now_N >= 0) & ~items.gone_I[now_N], now_N, -1)
        return row_N

    def _key(self, number: int) -> int:
        first = len(self._ids)
        return key64(self._ids.ids[number]) if number < first else self._new_key[number - first]
