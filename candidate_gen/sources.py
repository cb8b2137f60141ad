"""Where candidates come from. Each source answers one question about the catalogue and knows nothing of the others.

Shape letters: I items, D embedding width, K results, S seeds, X excluded.
"""

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from candidate_gen.items import Items
from candidate_gen.types import NO_ROWS, HydratedQuery, Query
from index.types import Hits

SOURCES = ("ann", "lexical", "similar", "fresh", "popular")
"""Names in the order they are asked; the last is the floor that cannot fail."""

NO_HITS = Hits(NO_ROWS, np.empty(0, np.float32))
_DAY_MS = 86_400_000


class VectorSearch(Protocol):
    """What `index.vectors.VectorIndex` does for a source."""

    def search(self, query_D: NDArray[np.float32], k: int, allowed_I: NDArray[np.bool_] | None = None) -> Hits: ...


class TextSearch(Protocol):
    """What `index.lexical.LexicalIndex` does for a source."""

    def search(self, text: str, k: int) -> Hits: ...


class Ann:
    """Available items whose vectors have the largest inner product with the query's."""

    name = "ann"

    def __init__(self, index: VectorSearch, items: Items) -> None:
        self._index = index
        self._allowed_I = _unless_all(items.available_I)

    def retrieve(self, hydrated: HydratedQuery, k: int) -> Hits:
        return self._index.search(hydrated.vector_D, k, self._allowed_I)


class Lexical:
    """Items whose titles match the typed text (BM25); nothing where no text was typed."""

    name = "lexical"

    def __init__(self, index: TextSearch) -> None:
        self._index = index

    def retrieve(self, hydrated: HydratedQuery, k: int) -> Hits:
        return self._index.search(hydrated.query.text, k) if hydrated.query.text.strip() else NO_HITS


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
        self._allowed_I = _unless_all(items.available_I)
        self._recent = recent

    def retrieve(self, hydrated: HydratedQuery, k: int) -> Hits:
        query = hydrated.query
        asked_S = _first_of_each(query.seed_row_S if len(query.seed_row_S) else query.history.row_L)[: self._recent]
        if not len(asked_S) or k < 1:
            return NO_HITS
        left_out_X = _known_to(query)
        hits = [self._index.search(self._embedding_ID[row], k + len(left_out_X), self._allowed_I) for row in asked_S]
        row = np.concatenate([each.row_K for each in hits])
        score = np.concatenate([each.score_K for each in hits])
        turn = np.concatenate([np.arange(len(each)) for each in hits])
        kept = np.flatnonzero(~np.isin(row, left_out_X))
        best_first = kept[np.argsort(-score[kept], kind="stable")]
        _, first = np.unique(row[best_first], return_index=True)
        once = best_first[first]
        chosen = once[np.lexsort((-score[once], turn[once]))[:k]]
        chosen = chosen[np.argsort(-score[chosen], kind="stable")]
        return Hits(row[chosen].astype(np.int64), score[chosen].astype(np.float32))


class Fresh:
    """Available items published within the horizon before the query, newest first.

    The score is the share of the horizon that is left: 1 for an item of this moment.
    """

    name = "fresh"

    def __init__(self, items: Items, *, horizon_days: float = 7.0) -> None:
        if not horizon_days > 0:
            raise ValueError(f"horizon_days is {horizon_days}; it must be above 0")
        available = np.flatnonzero(items.available_I)
        order = np.argsort(items.published_ms_I[available], kind="stable")
        self._row_I = available[order].astype(np.int64)
        self._published_ms_I = np.asarray(items.published_ms_I[self._row_I])
        self._horizon_ms = int(horizon_days * _DAY_MS)

    def retrieve(self, hydrated: HydratedQuery, k: int) -> Hits:
        now_ms = hydrated.query.time_ms
        first = int(np.searchsorted(self._published_ms_I, now_ms - self._horizon_ms, side="right"))
        end = int(np.searchsorted(self._published_ms_I, now_ms, side="right"))
        newest_K = slice(max(first, end - max(k, 0)), end)
        age_ms_K = now_ms - self._published_ms_I[newest_K][::-1]
        return Hits(self._row_I[newest_K][::-1].copy(), (1 - age_ms_K / self._horizon_ms).astype(np.float32))


class Popular:
    """Available items with the most positive outcomes, for a text query too: the floor that cannot fail.

    Answers with k items wherever that many are available and published. Those that the query already knows (seeds,
    excluded, history) are passed over while there are k others, and come last otherwise, so that the filters that
    follow do not take away the floor.
    """

    name = "popular"

    def __init__(self, items: Items) -> None:
        available = np.flatnonzero(items.available_I)
        order = np.argsort(-items.popularity_I[available], kind="stable")
        self._row_I = available[order].astype(np.int64)
        self._popularity_I = np.asarray(items.popularity_I[self._row_I], np.float32)
        self._published_ms_I = np.asarray(items.published_ms_I[self._row_I])
        self._newest_ms = int(self._published_ms_I.max(initial=np.iinfo(np.int64).min))

    def retrieve(self, hydrated: HydratedQuery, k: int) -> Hits:
        query = hydrated.query
        known_X = _known_to(query)
        wanted = max(k, 0) + len(known_X)
        if query.time_ms >= self._newest_ms:
            at = np.arange(min(wanted, len(self._row_I)))
        else:
            at = np.flatnonzero(self._published_ms_I <= query.time_ms)[:wanted]
        known = np.isin(self._row_I[at], known_X)
        at = np.concatenate([at[~known], at[known]])[: max(k, 0)]
        return Hits(self._row_I[at], self._popularity_I[at])


def _known_to(query: Query) -> NDArray[np.int64]:
    return np.unique(np.concatenate([query.seed_row_S, query.exclude_row_X, query.history.row_L]))


def _first_of_each(row_L: NDArray[np.int64]) -> NDArray[np.int64]:
    _, first = np.unique(row_L, return_index=True)
    return row_L[np.sort(first)]


def _unless_all(available_I: NDArray[np.bool_]) -> NDArray[np.bool_] | None:
    """A search without a mask is cheaper."""
    return None if available_I.all() else np.asarray(available_I, np.bool_)
