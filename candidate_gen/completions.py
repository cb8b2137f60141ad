"""What somebody who has typed a few letters may be about to search for: past queries, categories, titles.

Shape letters: E entries, W witnesses of an entry, I items.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from candidate_gen.features import FeatureTable
from candidate_gen.items import Items
from candidate_gen.query_log import QueryLog
from candidate_gen.sources import TextSearch
from candidate_gen.text import typed
from index.prefixes import PrefixIndex
from index.strings import StringColumn

_LEAST_PEOPLE = 2
_MOST = 100_000
"""Queries, and titles: those worth most."""
_MOST_LETTERS = 100
_WITNESSES = 4
_WORTH = (1.0, 0.7, 0.5)
_LEAST_WORTH = 0.01
_FADE = 0.4
_TOLERANT = (4, 8)
_TEXTS, _ENTRIES = "completion", "completions.npy"
_ENTRY = np.dtype([("kind", "u1"), ("witness", "<u8", (_WITNESSES,))])


Shown = Callable[[NDArray[np.uint64]], NDArray[np.bool_]]
"""Whether items of these keys may be shown now."""


class Kind(IntEnum):
    """What an entry is."""

    QUERY = 0
    CATEGORY = 1
    TITLE = 2


@dataclass(frozen=True, slots=True)
class Suggested:
    """A line to offer."""

    text: str
    kind: Kind
    edits: int
    """How far what was typed is from what the text begins with."""
    score: float
    item_key: int
    """Of a title: its item's; otherwise of an item that searching for the text finds."""


@dataclass(frozen=True, slots=True)
class Completions:
    """Entries, found by what they begin with."""

    text_E: Sequence[str]
    entry_E: np.ndarray
    prefixes: PrefixIndex

    @classmethod
    def of(
        cls,
        items: Items,
        log: QueryLog,
        lexical: TextSearch,
        table: FeatureTable,
        *,
        is_spelt: Callable[[str], bool],
    ) -> "Completions":
        """Entries, each once as `typed` sees them, the best first.

        Every entry has up to 4 items as witnesses that searching for it finds something: the best matches of a query,
        the most popular of a category, a title's own. Queries count that at least 2 people typed, so that nobody is
        told what another one wrote, and that are spelt right. A query is worth ln(1 + n) for n people, of whom old ones
        count less; a category 0.7 ln(1 + p) and a title 0.5 ln(1 + p) for the popularity p; each over the largest of
        its kind.

        Args:
            is_spelt: whether a query is spelt right.
        """
        categories = table["category"].vocabulary
        parts = _queries(items, log, lexical, is_spelt), _categories(items, categories), _titles(items)
        found: dict[str, tuple[str, Kind, float, NDArray[np.uint64]]] = {}
        for kind, part in zip(Kind, parts, strict=True):
            entries = list(part)
            most = max((np.log1p(weight) for _, weight, _ in entries), default=0.0) or 1.0
            for text, weight, witness_W in entries:
                if key := typed(text):
                    worth = max(_WORTH[kind] * float(np.log1p(weight)) / most, _LEAST_WORTH)
                    found.setdefault(key, (text, kind, worth, witness_W))
        entry_E = np.zeros(len(found), _ENTRY)
        for entry, (_, kind, _, witness_W) in zip(entry_E, found.values(), strict=True):
            entry["kind"] = kind
            entry["witness"][: len(witness_W)] = witness_W
        worth_E = np.array([worth for _, _, worth, _ in found.values()], np.float32)
        return cls([text for text, *_ in found.values()], entry_E, PrefixIndex.of(list(found), worth_E))

    def starting(self, text: str, k: int, *, shown: Shown) -> list[Suggested]:
        """The k best entries that begin with what was typed, or nearly: from the 4th letter on with one edit, from the
        8th on with two, each of which costs six tenths of the worth. Without letters, the best of all.

        Args:
            shown: entries without a witness that is are left out.
        """
        prefix = typed(text)
        if text and not prefix:
            return []
        edits = sum(len(prefix) >= letters for letters in _TOLERANT)
        asked = 2 * k
        while True:
            row_K, edit_K, score_K = self.prefixes.starting(prefix, asked, edits=edits, fade=_FADE)
            witness_KW = self.entry_E["witness"][row_K]
            shown_KW = shown(witness_KW.ravel()).reshape(witness_KW.shape) & (witness_KW > 0)
            kept_K = np.flatnonzero(shown_KW.any(axis=1))[:k]
            if len(kept_K) == k or len(row_K) < asked:
                break
            asked *= 8
        return [
            Suggested(
                self.text_E[row_K[at]],
                Kind(int(self.entry_E["kind"][row_K[at]])),
                int(edit_K[at]),
                float(score_K[at]),
                int(witness_KW[at, shown_KW[at].argmax()]),
            )
            for at in kept_K.tolist()
        ]

    @property
    def fingerprint(self) -> str:
        """Identifies all of it: 16 hexadecimal digits."""
        digest = sha256(self.entry_E.tobytes())
        StringColumn.of(self.text_E).update(digest)
        for array in (self.prefixes.letter_NL, self.prefixes.row_N, self.prefixes.worth_N):
            digest.update(np.ascontiguousarray(array).view(np.uint8).data)
        return digest.hexdigest()[:16]

    def save(self, folder: Path) -> None:
        StringColumn.of(self.text_E).save(folder, _TEXTS)
        np.save(folder / _ENTRIES, self.entry_E, allow_pickle=False)
        self.prefixes.save(folder)

    @classmethod
    def load(cls, folder: Path) -> "Completions | None":
        """What `save` wrote; None for a generation that has none."""
        if not (folder / _ENTRIES).exists():
            return None
        entry_E = np.asarray(np.load(folder / _ENTRIES, mmap_mode="r", allow_pickle=False))
        return cls(StringColumn.load(folder, _TEXTS), entry_E, PrefixIndex.load(folder))


_Entries = Iterator[tuple[str, float, NDArray[np.uint64]]]
"""Text, weight, keys of witnesses."""


def _queries(items: Items, log: QueryLog, lexical: TextSearch, is_spelt: Callable[[str], bool]) -> _Entries:
    weight_Q = np.where(log.row_Q["people"] >= _LEAST_PEOPLE, log.row_Q["weight"], 0)
    for query in np.argsort(-weight_Q, kind="stable")[:_MOST].tolist():
        text = log.text_Q[query]
        if weight_Q[query] > 0 and len(text) <= _MOST_LETTERS and is_spelt(text):
            row_W = lexical.search(text, _WITNESSES, items.allowed).row_K
            if len(row_W):
                yield text, float(weight_Q[query]), items.ids.keys(row_W)


def _categories(items: Items, categories: Sequence[str]) -> _Entries:
    available_I = np.asarray(items.available_I)
    category_I = np.asarray(items.row_I["category"][np.arange(len(items))]) if len(items) else np.empty(0, np.int32)
    popularity_I = np.asarray(items.popularity_I[np.arange(len(items))])
    best_first = np.lexsort((-popularity_I, category_I))
    best_first = best_first[available_I[best_first]]
    start_C = np.searchsorted(category_I[best_first], np.arange(1, len(categories) + 2))
    for name, start, end in zip(categories, start_C[:-1].tolist(), start_C[1:].tolist(), strict=True):
        row_N = best_first[start:end]
        if len(row_N):
            yield name, float(popularity_I[row_N].sum()), items.ids.keys(row_N[:_WITNESSES])


def _titles(items: Items) -> _Entries:
    popularity_I = np.asarray(items.popularity_I[np.arange(len(items))])
    row_N = np.argsort(-popularity_I, kind="stable")
    row_N = row_N[np.asarray(items.available_I)[row_N]][:_MOST]
    for text, weight, key in zip(
        items.titles.take(row_N), popularity_I[row_N].tolist(), items.ids.keys(row_N), strict=True
    ):
        yield text[:_MOST_LETTERS], weight, np.array([key], np.uint64)
