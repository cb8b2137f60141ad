"""Where candidates come from. Each source answers one question about the catalogue and knows nothing of the others.
What may be shown at all, the query says (`HydratedQuery.allowed`): a source returns nothing else, and k items where
there are k.

Shape letters: I items (rows), N some of them, D embedding width, K results, S seeds, X excluded, P pairs of segment
and item.
"""

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from candidate_gen.items import Items
from candidate_gen.row_sets import among, first_of_each, taking_turns
from candidate_gen.types import NO_ROWS, HydratedQuery, Query
from index.columns import Column
from index.masks import Mask
from index.strings import key64
from index.types import Hits

SOURCES = ("ann", "lexical", "understood", "similar", "covisitation", "trending", "fresh", "popular")
"""Names in the order they are asked; the last is the floor that cannot fail."""

NO_HITS = Hits(NO_ROWS, np.empty(0, np.float32))
Keep = Callable[[NDArray[np.int64]], NDArray[np.bool_]]
"""Which of some rows to keep."""
_DAY_MS = 86_400_000
_MOST_KEPT = 16_384
"""Searches, of about 2.4 kB each; those made longest ago are forgotten."""
_ROUND = 64
"""Searches ask for a multiple of this, so that one that was kept serves whoever wants fewer."""


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


class AsUnderstood:
    """Items that match what the query was understood to mean beyond its words: texts that may stand for it, each match
    for what it is worth, and the categories and creators that it is about; nothing where it was understood as no more
    than it says.

    An item scores max_t worth_t * BM25_t * (1 + P(its category | query) + P(its creator | query)) over the texts t,
    where the query's own is one of them if either is known.
    """

    name = "understood"

    def __init__(self, index: TextSearch, items: Items) -> None:
        self._index = index
        self._items = items

    def retrieve(self, hydrated: HydratedQuery, k: int) -> Hits:
        query, understood = hydrated.query, hydrated.query.understood
        if understood is None:
            return NO_HITS
        texts = list(understood.searched)
        if texts and understood.pin_unexpanded:
            matching = len(self._index.search(query.text, query.size, hydrated.allowed))
            texts = [] if matching >= query.size else texts
        if understood.meant:
            texts.append((query.text, 1.0))
        found = [(self._index.search(text, k, hydrated.allowed), worth) for text, worth in texts]
        if not found:
            return NO_HITS
        row_N, at_N = np.unique(np.concatenate([hits.row_K for hits, _ in found]), return_inverse=True)
        score_N = np.zeros(len(row_N), np.float64)
        np.maximum.at(score_N, at_N, np.concatenate([worth * hits.score_K.astype(np.float64) for hits, worth in found]))
        if understood.meant:
            score_N *= 1 + sum(each.of(self._items, row_N) for each in understood.meant)
        best_N = np.lexsort((row_N, -score_N))[: max(k, 0)]
        return Hits(row_N[best_N], score_N[best_N].astype(np.float32))


class SimilarToRecent:
    """Items near the seeds, or where there are none near the newest of the history; nothing without either.

    Each of them asks for itself and they take turns, so that the interest with the tightest cluster does not take
    every place; what was chosen is then sorted by similarity. Seeds, excluded items and the history are left out.

    What is near an item never changes while these are the items, and the same few are asked for again and again: what
    a search without a filter found is kept.

    Args:
        index: as it is best asked about items, see `index.vectors.VectorIndex.of_items`.
        recent: how many of the newest are asked.
    """

    name = "similar"

    def __init__(self, index: VectorSearch, items: Items, *, recent: int = 3) -> None:
        if recent < 1:
            raise ValueError(f"recent is {recent}; at least 1 item must be asked")
        self._index = index
        self._embedding_ID = items.embedding_ID
        self._allowed = items.allowed
        self._recent = recent
        self._kept: OrderedDict[tuple[int, int], Hits] = OrderedDict()
        """By row and how many were asked for."""
        self._lock = Lock()

    def retrieve(self, hydrated: HydratedQuery, k: int) -> Hits:
        query = hydrated.query
        asked_S = first_of_each(query.seed_row_S if len(query.seed_row_S) else query.history.row_L)[: self._recent]
        if not len(asked_S) or k < 1:
            return NO_HITS
        left_out_X = known_to(query)
        wanted = k + len(left_out_X)
        hits = [self._near(row, wanted, hydrated.allowed) for row in asked_S.tolist()]
        row_H = np.concatenate([each.row_K for each in hits], dtype=np.int64)
        score_H = np.concatenate([each.score_K for each in hits], dtype=np.float32, casting="same_kind")
        row_N, score_N, turn_N = taking_turns(row_H, score_H, np.array([len(each) for each in hits]), left_out_X)
        chosen = np.lexsort((row_N, -score_N, turn_N))[:k]
        chosen = chosen[np.argsort(-score_N[chosen], kind="stable")]
        return Hits(row_N[chosen], score_N[chosen], any(each.partial for each in hits))

    def _near(self, row: int, k: int, allowed: Mask | None) -> Hits:
        asked = _ROUND * math.ceil(k / _ROUND)
        hits = self._kept.get((row, asked)) if allowed is self._allowed else None
        if hits is None:
            hits = self._index.search(self._embedding_ID[row], asked, allowed)
            if allowed is self._allowed and not hits.partial:
                with self._lock:
                    self._kept[row, asked] = hits
                    if len(self._kept) > _MOST_KEPT:
                        self._kept.popitem(last=False)
        return Hits(hits.row_K[:k], hits.score_K[:k], hits.partial)


@dataclass(frozen=True, slots=True)
class Told:
    """What a source that learns while it serves said when the query was asked (`Query.live`); see `live`."""

    name: str

    def retrieve(self, hydrated: HydratedQuery, k: int) -> Hits:
        hits = hydrated.query.live.get(self.name, NO_HITS)
        at_K = np.arange(len(hits))
        if hydrated.allowed is not None:
            at_K = at_K[hydrated.allowed.allowed_I[hits.row_K]]
        return Hits(hits.row_K[at_K[: max(k, 0)]], hits.score_K[at_K[: max(k, 0)]])


class Fresh:
    """Items published within the horizon before the query, newest first.

    Where there are more than can be named, a share of the places goes to items drawn evenly from all of them, so that
    none is passed over only because newer ones come. The request id decides which.

    The score is the share of the horizon that is left: 1 for an item of this moment.

    Args:
        explored: that share.
    """

    name = "fresh"

    def __init__(self, items: Items, *, horizon_days: float = 7.0, explored: float = 0.0) -> None:
        if not horizon_days > 0:
            raise ValueError(f"horizon_days is {horizon_days}; it must be above 0")
        if not 0 <= explored <= 1:
            raise ValueError(f"explored is {explored}; it must be from 0 to 1")
        self._published_ms_I = items.published_ms_I
        self._order = _Order(items.published_ms_I)
        self._horizon_ms = int(horizon_days * _DAY_MS)
        self._explored = explored

    def on(self, items: Items) -> "Fresh":
        """Of the items that these have become."""
        grown = copy(self)
        grown._published_ms_I, grown._order = items.published_ms_I, self._order.on(items.published_ms_I)
        return grown

    def retrieve(self, hydrated: HydratedQuery, k: int) -> Hits:
        return self._named(hydrated, k, self._newest(hydrated, k))

    def retrieve_of_many(self, hydrated: Sequence[HydratedQuery], k: int) -> list[Hits]:
        """Of queries of one moment, to which the same is allowed."""
        newest_K = self._newest(hydrated[0], k)
        return [self._named(each, k, newest_K) for each in hydrated]

    def _newest(self, hydrated: HydratedQuery, k: int) -> NDArray[np.int64]:
        now_ms = hydrated.query.time_ms
        return self._order.best(k, hydrated.allowed, above=now_ms - self._horizon_ms, up_to=now_ms)

    def _named(self, hydrated: HydratedQuery, k: int, row_K: NDArray[np.int64]) -> Hits:
        now_ms = hydrated.query.time_ms
        horizon = (now_ms - self._horizon_ms, now_ms)
        drawn = round(self._explored * k)
        if drawn and len(row_K) == k:
            chance = np.random.default_rng(key64(f"fresh/{hydrated.query.request_id}"))
            row_N = self._order.drawn(4 * drawn, hydrated.allowed, chance, above=horizon[0], up_to=horizon[1])
            newest_K, others_K = row_K[: k - drawn], row_K[k - drawn :]
            row_N = row_N[~among(row_N, newest_K)][:drawn]
            others_K = np.concatenate([row_N, others_K[~among(others_K, row_N)]])[:drawn]
            others_K = others_K[np.lexsort((others_K, self._published_ms_I[others_K]))[::-1]]
            row_K = np.concatenate([newest_K, others_K])
        age_ms_K = now_ms - self._published_ms_I[row_K]
        return Hits(row_K, (1 - age_ms_K / self._horizon_ms).astype(np.float32))


class Popular:
    """Items with the most positive outcomes, for a text query too: the floor that cannot fail.

    Answers with k items wherever that many are allowed and published: what the query's segment likes best, then what
    everybody does. Those that the query already knows (seeds, excluded, history) are passed over while there are k
    others, and come last otherwise, so that the filters that follow do not take away the floor.

    Args:
        segment: the user column whose values are segments; none where it is empty.
        segment_P: see `activity.POPULARITY`.
    """

    name = "popular"

    def __init__(self, items: Items, *, segment: str = "", segment_P: np.ndarray | None = None) -> None:
        self._items = items
        self._order = _Order(items.popularity_I)
        self._segment = segment
        self._listed: dict[int, np.ndarray] = {}
        if segment and segment_P is not None:
            numbers = np.unique(segment_P["segment"]).tolist()
            self._listed = {number: segment_P[segment_P["segment"] == number] for number in numbers}
        self._own = self._own_rows()

    def on(self, items: Items) -> "Popular":
        """Of the items that these have become."""
        grown = copy(self)
        grown._items, grown._order = items, self._order.on(items.popularity_I)
        grown._own = grown._own_rows()
        return grown

    def _published(self, time_ms: int, row_N: NDArray[np.int64]) -> NDArray[np.bool_]:
        return np.asarray(self._items.published_ms_I[row_N] <= time_ms)

    def _own_rows(self) -> dict[int, tuple[NDArray[np.int64], NDArray[np.float32]]]:
        """Of each segment the listed items that there are, and what they are worth to it."""
        rows = {number: self._items.ids.rows(listed["item_key"]) for number, listed in self._listed.items()}
        return {n: (row_N[row_N >= 0], self._listed[n]["popularity"][row_N >= 0]) for n, row_N in rows.items()}

    def retrieve(self, hydrated: HydratedQuery, k: int) -> Hits:
        known_X = known_to(hydrated.query)
        return self._named(hydrated, k, known_X, self._best(hydrated, max(k, 0) + len(known_X)))

    def retrieve_of_many(self, hydrated: Sequence[HydratedQuery], k: int) -> list[Hits]:
        """Of queries of one moment, to which the same is allowed."""
        known, k = [known_to(each.query) for each in hydrated], max(k, 0)
        best_M = self._best(hydrated[0], k + max(map(len, known)))
        liked: dict[int, Hits] = {}
        """By segment, as who knows nothing is told."""
        hits = []
        for each, known_X in zip(hydrated, known, strict=True):
            number = int(each.row[self._segment][0]) if self._own else 0
            if number not in liked:
                liked[number] = self._named(each, len(self._items), known_X[:0], best_M)
            row_M, score_M = liked[number].row_K, liked[number].score_K
            at_K = np.flatnonzero(~among(row_M[: k + len(known_X)], known_X))[:k]
            hits.append(Hits(row_M[at_K], score_M[at_K]) if len(at_K) == k else self.retrieve(each, k))
        return hits

    def _best(self, hydrated: HydratedQuery, k: int) -> NDArray[np.int64]:
        """Of everybody; those of a smaller k are the first of these."""
        return self._order.best(k, hydrated.allowed, keep=partial(self._published, hydrated.query.time_ms))

    def _named(self, hydrated: HydratedQuery, k: int, known_X: NDArray[np.int64], row_K: NDArray[np.int64]) -> Hits:
        published = partial(self._published, hydrated.query.time_ms)
        score_K = self._items.popularity_I[row_K]
        own = self._own.get(int(hydrated.row[self._segment][0])) if self._own else None
        if own is not None:
            own_N, worth_N = own
            shown_N = published(own_N)
            if hydrated.allowed is not None:
                shown_N &= hydrated.allowed.allowed_I[own_N]
            own_N, worth_N = own_N[shown_N], worth_N[shown_N]
            kept_K = ~among(row_K, own_N)
            rest_K = np.minimum(score_K[kept_K], worth_N.min(initial=np.inf))
            row_K, score_K = np.concatenate([own_N, row_K[kept_K]]), np.concatenate([worth_N, rest_K])
        order_K = np.argsort(among(row_K, known_X), kind="stable")[: max(k, 0)]
        return Hits(row_K[order_K], score_K[order_K].astype(np.float32))


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
        keep: Keep | None = None,
        above: float = -np.inf,
        up_to: float = np.inf,
    ) -> NDArray[np.int64]:
        """The k best that are allowed and kept, or as many as there are, with above < worth <= up_to."""
        shown = partial(_shown, allowed, keep)
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

    def drawn(
        self, count: int, allowed: Mask | None, chance: np.random.Generator, *, above: float, up_to: float
    ) -> NDArray[np.int64]:
        """Some of those with above < worth <= up_to, in random order: of `count` draws the different, allowed ones."""
        parts = []
        for part in (self._base, self._tail):
            start, end = np.searchsorted(part.worth_I, np.array([above, up_to], part.worth_I.dtype), side="right")
            parts.append((part.row_I, int(start), int(end)))
        (base_I, first, last), (tail_I, start, end) = parts
        if not (held := last - first + end - start):
            return NO_ROWS
        at_N = first_of_each(chance.integers(held, size=count))
        of_base = at_N < last - first
        row_N = np.empty(len(at_N), np.int64)
        row_N[of_base] = base_I[first + at_N[of_base]]
        row_N[~of_base] = tail_I[start + at_N[~of_base] - (last - first)]
        return row_N if allowed is None else row_N[allowed.allowed_I[row_N]]


def _shown(allowed: Mask | None, keep: Keep | None, row_N: NDArray[np.int64]) -> NDArray[np.int64]:
    row_N = row_N if allowed is None else row_N[allowed.allowed_I[row_N]]
    return row_N if keep is None else row_N[keep(row_N)]


def known_to(query: Query) -> NDArray[np.int64]:
    """Seeds, excluded items, the history and what earlier pages showed, each once."""
    parts = (query.seed_row_S, query.exclude_row_X, query.history.row_L, query.before_row_X)
    held = [each for each in parts if len(each)]
    return first_of_each(np.concatenate(held) if len(held) > 1 else held[0]) if held else NO_ROWS
