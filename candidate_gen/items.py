"""The catalogue of one generation: immutable columns, memory-mapped and shared between server processes.

A snapshot of a changed catalogue is the generation's own rows with more after them. A row never changes: what replaces
an item is a new row, and the old one is *gone*; its id then names the new one. Every change makes a new value that
shares what it can with the old one.

Shape letters: I items (rows), N rows named, D embedding width.
"""

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from hashlib import sha256
from pathlib import Path
from typing import Any, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from candidate_gen.prepared_texts import PreparedTexts
from candidate_gen.text_match import Field
from index.columns import Column, GrownColumn, appended
from index.masks import Mask
from index.strings import IdMap, StringColumn

_GROWING = ("row_I", "published_ms_I", "popularity_I", "embedding_ID")
_SAVED = (*_GROWING, "available_I")
_TEXTS = "attribute_text"


@dataclass(frozen=True)
class Items:
    """Row i of every column is item i. Make one with `Items.of`."""

    ids: IdMap
    titles: StringColumn
    searchable: StringColumn
    """What text search reads of every item."""
    prepared: Mapping[Field, PreparedTexts]
    """Titles and searchable texts as `text_match` compares them."""
    row_I: Column
    """Records of the feature table's item dtype."""
    published_ms_I: Column
    available_I: NDArray[np.bool_]
    """May be shown."""
    gone_I: NDArray[np.bool_]
    """Replaced or deleted; never available."""
    popularity_I: Column
    """Positive outcomes with exponential decay, as of the build; float32."""
    embedding_ID: Column
    """Item tower's vectors, each of length 1, or shorter where factors stand beside what is learned; float32."""
    attributes: Mapping[str, Column]
    """What a request may filter by, by name: `key64` of a text (0: missing) or a float64 (NaN: missing)."""
    texts: IdMap = field(default_factory=lambda: IdMap.of([]))
    """Those texts, each once; some may be no item's any more. Items that were saved before there were any have none."""

    @classmethod
    def of(
        cls,
        *,
        ids: Sequence[str],
        titles: Sequence[str],
        row_I: np.ndarray,
        published_ms: ArrayLike,
        embedding_ID: NDArray[np.float32],
        searchable: Sequence[str] | None = None,
        available: ArrayLike | None = None,
        popularity: ArrayLike | None = None,
        attributes: Mapping[str, NDArray[Any]] | None = None,
        texts: Iterable[str] = (),
    ) -> "Items":
        """Items of plain sequences, each as long as `ids`.

        Args:
            ids: each once.
            row_I: `features.item_rows`, with counters where they are known.
            searchable: what text search reads, fields as in `index.lexical`; the titles where not given.
            available: all where not given.
            popularity: 0 where not given.
            attributes: `features.item_attributes`; none where not given.
            texts: that are attributes' values, in any order and number.

        Raises:
            ValueError: an id appears twice, or a column is shorter or longer than the ids.
        """
        count = len(ids)
        searchable = titles if searchable is None else searchable
        made = cls(
            ids=IdMap.of(ids),
            titles=StringColumn.of(titles),
            searchable=StringColumn.of(searchable),
            prepared=_prepared(titles, searchable),
            row_I=row_I,
            published_ms_I=np.asarray(published_ms, np.int64),
            available_I=np.ones(count, np.bool_) if available is None else np.asarray(available, np.bool_),
            gone_I=np.zeros(count, np.bool_),
            popularity_I=np.zeros(count, np.float32) if popularity is None else np.asarray(popularity, np.float32),
            embedding_ID=np.asarray(embedding_ID, np.float32),
            attributes=dict(attributes or {}),
            texts=IdMap.of(sorted({text for text in texts if text})),
        )
        for name, column in made._columns():
            if len(column) != count:
                raise ValueError(f"column {name!r} has {len(column)} rows for {count} ids")
        return made

    def _columns(self) -> Iterator[tuple[str, Column | StringColumn]]:
        """Every column but the ids."""
        for name in ("titles", "searchable", *_GROWING, "available_I", "gone_I"):
            yield name, getattr(self, name)
        for name in sorted(self.attributes):
            yield f"attribute.{name}", self.attributes[name]

    def __len__(self) -> int:
        return len(self.available_I)

    @cached_property
    def allowed(self) -> Mask | None:
        """Rows that may be shown; None for all, for a search without a mask is cheaper."""
        return None if self.available_I.all() else Mask(self.available_I)

    def current(self) -> NDArray[np.int64]:
        """Rows that are not gone, ascending: one for each item there is."""
        return np.flatnonzero(~self.gone_I)

    def appended(self, added: "Items") -> "Items":
        """With these as the last rows. They replace the items of their ids.

        Raises:
            ValueError: columns of the two differ in name or type.
        """
        if added.attributes.keys() != self.attributes.keys():
            raise ValueError(f"items with attributes {sorted(added.attributes)} follow {sorted(self.attributes)}")
        every_N = np.arange(len(added))  # strings are taken all at once: one by one is slow
        ids = added.ids.ids.take(every_N)
        replaced_N = self.ids.rows_of(ids)
        known = self.without(replaced_N[replaced_N >= 0])
        titles, searchable = added.titles.take(every_N), added.searchable.take(every_N)
        return replace(
            known,
            ids=self.ids.appended(ids),
            titles=self.titles.appended(titles),
            searchable=self.searchable.appended(searchable),
            prepared={
                "title": self.prepared["title"].appended(titles),
                "text": self.prepared["text"].appended(searchable),
            },
            available_I=np.concatenate((known.available_I, added.available_I)),
            gone_I=np.concatenate((known.gone_I, added.gone_I)),
            texts=self._texts_with(added.texts),
            attributes={
                name: appended(column, np.asarray(added.attributes[name])) for name, column in self.attributes.items()
            },
            **{name: appended(getattr(self, name), np.asarray(getattr(added, name))) for name in _GROWING},
        )

    def _texts_with(self, others: IdMap) -> IdMap:
        every_T = np.arange(len(others))
        added = others.ids.take(every_T[self.texts.rows(others.keys(every_T)) < 0])
        return self.texts.appended(added) if added else self.texts

    def texts_of(self, key_N: NDArray[np.uint64]) -> list[str]:
        """The text of each value of attributes; empty where it is not known."""
        return self.texts.ids.take(self.texts.rows(key_N)) if len(self.texts) else [""] * len(key_N)

    def without(self, row_N: NDArray[np.int64]) -> "Items":
        """With these rows gone. Their ids go on to name them."""
        available_I, gone_I = self.available_I.copy(), self.gone_I.copy()
        available_I[row_N], gone_I[row_N] = False, True
        return replace(self, available_I=available_I, gone_I=gone_I)

    def with_available(self, row_N: NDArray[np.int64], available: bool) -> "Items":
        """With these rows shown, or hidden, from now on.

        Raises:
            ValueError: one of them is gone.
        """
        if self.gone_I[row_N].any():
            raise ValueError(f"row {row_N[self.gone_I[row_N]][0]} is gone: it can be neither shown nor hidden")
        available_I = self.available_I.copy()
        available_I[row_N] = available
        return replace(self, available_I=available_I)

    def take(self, row_N: NDArray[np.int64]) -> "Items":
        """These rows alone, in this order, as plain arrays.

        Raises:
            ValueError: two of them are of one id.
        """
        titles, searchable = self.titles.selected(row_N), self.searchable.selected(row_N)
        every_N = np.arange(len(row_N))
        return Items(
            ids=self.ids.selected(row_N),
            titles=titles,
            searchable=searchable,
            prepared=_prepared(titles.take(every_N), searchable.take(every_N)),
            available_I=self.available_I[row_N],
            gone_I=self.gone_I[row_N],
            attributes={name: np.asarray(column[row_N]) for name, column in self.attributes.items()},
            texts=self.texts,
            **{name: np.asarray(getattr(self, name)[row_N]) for name in _GROWING},
        )

    @cached_property
    def fingerprint(self) -> str:
        """Identifies every column, however its rows came there: 16 hexadecimal digits. `texts` need not be told apart,
        for the columns hold their hashes."""
        digest = sha256()
        for name, column in (("ids", self.ids.ids), *self._columns()):
            if isinstance(column, StringColumn):
                digest.update(name.encode())
                column.update(digest)
                continue
            digest.update(f"{name} {column.dtype} {column.shape}".encode())
            for part in (column.base, column.tail) if isinstance(column, GrownColumn) else (column,):
                digest.update(np.ascontiguousarray(part).reshape(-1).view(np.uint8).data)
        return digest.hexdigest()[:16]

    def save(self, folder: Path) -> None:
        """Write what `load` reads.

        Raises:
            ValueError: items that have grown or lost some; `take(current())` has not.
        """
        if isinstance(self.row_I, GrownColumn) or self.gone_I.any():
            raise ValueError(f"{len(self)} rows are not only current items; save items.take(items.current())")
        self.ids.save(folder, "item_id")
        self.titles.save(folder, "title")
        self.searchable.save(folder, "searchable")
        for of, prepared in self.prepared.items():
            prepared.save(folder, f"prepared_{of}")
        for name in _SAVED:
            np.save(folder / f"{name}.npy", getattr(self, name), allow_pickle=False)
        (folder / "attributes.json").write_text(json.dumps(list(self.attributes)))
        for number, column in enumerate(self.attributes.values()):
            np.save(folder / f"attribute_{number}.npy", column, allow_pickle=False)
        self.texts.save(folder, _TEXTS)

    @classmethod
    def load(cls, folder: Path) -> "Items":
        def column(name: str) -> NDArray[Any]:
            return np.asarray(np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False))

        ids, names = IdMap.load(folder, "item_id"), json.loads((folder / "attributes.json").read_text())
        return cls(
            ids=ids,
            titles=StringColumn.load(folder, "title"),
            searchable=StringColumn.load(folder, "searchable"),
            prepared={of: PreparedTexts.load(folder, f"prepared_{of}") for of in get_args(Field)},
            gone_I=np.zeros(len(ids), np.bool_),
            attributes={name: column(f"attribute_{number}") for number, name in enumerate(names)},
            texts=IdMap.load(folder, _TEXTS) if (folder / f"{_TEXTS}.keys.npy").exists() else IdMap.of([]),
            **{name: column(name) for name in _SAVED},
        )


def _prepared(titles: Sequence[str], searchable: Sequence[str]) -> dict[Field, PreparedTexts]:
    return {"title": PreparedTexts.of(titles), "text": PreparedTexts.of(searchable)}
