"""Where candidates come from. Each source answers one question about the catalogue and knows nothing of the others.
What may be shown at all, the query says (`HydratedQuery.allowed`): a source returns nothing else, and k items where
there are k.

Shape letters: I items (rows), N some of them, D embedding width, K results, S seeds, X excluded.
"""

from collections.abc import Callable
from copy import copy
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from candidate_gen.items import Items
from candidate_gen.types import NO_ROWS, HydratedQuery, Query
from index.columns import Column
from index.masks import Mask
from index.types import Hits

SOURCES = ("ann", "lexical", "similar", "fresh", "popular")
"""Names in the order they are asked; the last is the floor that cannot fail."""

NO_HITS = Hits(NO_ROWS, np.empty(0, np.float32))
_DAY_MS = 86_400_000


class VectorSearch(Protocol):
    """What a vector index does for a source."""

    def search(self, query_D: NDArray[np.float32], k: int, allowed: Mask | None = None) -> Hits: ...


class TextSearch(Protocol):
    """What `index.lexical.LexicalIndex` does for a source."""

    def search(self, text: str, k: int, allowed: Mask | None = None) -> Hits: ...


class Ann:
    """Items whose vectors have the largest inner product with the query's."""

    name = "ann"

    def __init__(self, index: VectorSearch) -> None:
        self._index = index

    def retrieve(self, hydrated: HydratedQuery, k: int) -> Hits:
        return self._index.search(hydrated.vector_D, k, hydrated.allowed)


class Lexical:
    """Items whose text matches what was typed (BM25); nothing where no text was typed."""

    name = "lexical"

    def __init__(self, index: TextSearch) -> None:
        self._index = index

    def retrieve(self, hydrated: HydratedQuery, k: int) -> Hits:
        text = hydrated.query.text
        return self._index.search(text, k, hydrated.allowed) if text.strip() else NO_HITS


class SimilarToRecent:
    """Items near the seeds, or where there are none near the newest of the history; nothing without either.

    Each of them asks for itself and they take turns, so that the interest with the tightest cluster does not take
    every place; what was chosen is then sorted by similarity. Seeds, excluded items and the history are left out.

    Args:
        recent: how many of the newest are asked.
    """

    name = "similar"

    def __init__(self, index: VectorSearch, items: Items, *, recent: int = 3) -> None:
        if recent < 1:
            raise ValueError(f"recent is {recent}; at least 1 item must be asked")
        self._index = index
        self._embedding_ID = items.embedding_ID
        self._recent = recent

    def retrieve(self, hydrated: HydratedQuery, k: int) -> Hits:
        query = hydrated.query
        asked_S = _first_of_each(query.seed_row_S if len(query.seed_row_S) else query.history.row_L)[: self._recent]
        if not len(asked_S) or k < 1:
            return NO_HITS
        left_out_X = _known_to(query)
        wanted = k + len(left_out_X)
        hits = [self._index.search(self._embedding_ID[row], wanted, hydrated.allowed) for row in asked_S.tolist()]
        row = np.concatenate([each.row_K for each in hits])
        score = np.concatenate([each.score_K for each in hits])
        turn = np.concatenate([np.arange(len(each)) for each in hits])
        kept = np.flatnonzero(~np.isin(row, left_out_X))
        best_first = kept[np.argsort(-score[kept], kind="stable")]
        _, first = np.unique(row[best_first], return_index=True)
        once = best_first[first]
        chosen = once[np.lexsort((-score[once], turn[once]))[:k]]
        chosen = chosen[np.argsort(-score[chosen], kind="stable")]
        partial = any(each.partial for each in hits)
        return Hits(row[chosen].astype(np.int64), score[chosen].astype(np.float32), partial)


class Fresh:
    """Items published within the horizon before the query, newest first.

    The score is the share of the horizon that is left: 1 for an item of this moment.
    """

    name = "fresh"

    def __init__(self, items: Items, *, horizon_days: float = 7.0) -> None:
        if not horizon_days > 0:
            raise ValueError(f"horizon_days is {horizon_days}; it must be above 0")
        self._published_ms_I = items.published_ms_I
        self._order = _Order(items.published_ms_I)
        self._horizon_ms = int(horizon_days * _DAY_MS)

    def on(self, items: Items) -> "Fresh":
        """Of the items that these have become."""
        grown = copy(self)
        grown._published_ms_I, grown._order = items.published_ms_I, self._order.on(items.published_ms_I)
        return grown

    def retrieve(self, hydrated: HydratedQuery, k: int) -> Hits:
        now_ms = hydrated.query.time_ms
        row_K = self._order.best(k, hydrated.allowed, above=now_ms - self._horizon_ms, up_to=now_ms)
        age_ms_K = now_ms - self._published_ms_I[row_K]
        return Hits(row_K, (1 - age_ms_K / self._horizon_ms).astype(np.float32))


class Popular:
    """Items with the most positive outcomes, for a text query too: the floor that cannot fail.

    Answers with k items wherever that many are allowed and published. Those that the query already knows (seeds,
    excluded, history) are passed over while there are k others, and come last otherwise, so that the filters that
    follow do not take away the floor.
    """

    name = "popular"

    def __init__(self, items: Items) -> None:
        self._items = items
        self._order = _Order(items.popularity_I)

    def on(self, items: Items) -> "Popular":
        """Of the items that these have become."""
        grown = copy(self)
        grown._items, grown._order = items, self._order.on(items.popularity_I)
        return grown

    def retrieve(self, hydrated: HydratedQuery, k: int) -> Hits:
        query = hydrated.query
        known_X = _known_to(query)

        def published(row_N: NDArray[np.int64]) -> NDArray[np.bool_]:
            return np.asarray(self._items.published_ms_I[row_N] <= query.time_ms)

        row_K = self._order.best(max(k, 0) + len(known_X), hydrated.allowed, keep=published)
        known_K = np.isin(row_K, known_X)
        row_K = np.concatenate([row_K[~known_K], row_K[known_K]])[: max(k, 0)]
        return Hits(row_K, self._items.popularity_I[row_K])


class _Sorted:
    """Rows from some row on, by ascending worth."""

    __slots__ = ("row_I", "worth_I")

    def __init__(self, worth_I: Column, first: int) -> None:
        row_I = np.arange(first, len(worth_I))
        worth_S = worth_I[row_I]
        ascending = np.argsort(worth_S, kind="stable")
        self.row_I, self.worth_I = row_I[ascending], worth_S[ascending]


class _Order:
    """All rows by worth, of equals the later one first.

    A generation's own rows are sorted once; of its snapshots only the rows that follow them.
    """

    def __init__(self, worth_I: Column, base: _Sorted | None = None) -> None:
        self._worth_I = worth_I
        self._base = base or _Sorted(worth_I, 0)
        self._tail = _Sorted(worth_I, len(self._base.row_I))

    def on(self, worth_I: Column) -> "_Order":
        return _Order(worth_I, self._base)

    def best(
        self,
        k: int,
        allowed: Mask | None,
        *,
        keep: Callable[[NDArray[np.int64]], NDArray[np.bool_]] | None = None,
        above: float = -np.inf,
        up_to: float = np.inf,
    ) -> NDArray[np.int64]:
        """The k best that are allowed and kept, or as many as there are, with above < worth <= up_to."""

        def shown(row_N: NDArray[np.int64]) -> NDArray[np.int64]:
            row_N = row_N if allowed is None else row_N[allowed.allowed_I[row_N]]
            return row_N if keep is None else row_N[keep(row_N)]

        if allowed is not None and allowed.count**2 <= k * len(allowed):  # fewer than would be walked past
            row_N = shown(allowed.row_A)
            row_N = row_N[(self._worth_I[row_N] > above) & (self._worth_I[row_N] <= up_to)]
        else:
            found = [NO_ROWS]
            for part in (self._base, self._tail):
                bounds = np.array([above, up_to], part.worth_I.dtype)  # of another type they would be compared slowly
                start, end = np.searchsorted(part.worth_I, bounds, side="right").tolist()
                left, step = k, 2 * k
                while left > 0 and end > start:
                    row_N = shown(part.row_I[max(start, end - step) : end][::-1])[:left]
                    found.append(row_N)
                    left, end, step = left - len(row_N), end - step, 4 * step
            row_N = np.concatenate(found)
        return row_N[np.lexsort((row_N, self._worth_I[row_N]))[::-1][: max(k, 0)]]


def _known_to(query: Query) -> NDArray[np.int64]:
    return np.unique(np.concatenate([query.seed_row_S, query.exclude_row_X, query.history.row_L]))


def _first_of_each(row_L: NDArray[np.int64]) -> NDArray[np.int64]:
    _, first = np.unique(row_L, return_index=True)
    return row_L[np.sort(first)]
