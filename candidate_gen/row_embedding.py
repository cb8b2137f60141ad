"""What `FeatureEmbedder` makes of feature rows, without a tensor and a call for each feature: one row costs little.

Shape letters: B rows, W words of a record, X features side by side, V rows of an embedding table, D their width,
G known ids, L history, H hashes, F number features.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from candidate_gen.embedding import FARTHEST, FeatureEmbedder
from candidate_gen.features import FeatureTable, RowKind

_PAST = "history_item"
"""Tells which entries of the lists of a history are padding."""
_compiled: Any = njit(cache=True, nogil=True, boundscheck=False)


@dataclass(frozen=True, slots=True)
class _Ids:
    """An id feature: the word of its record where it begins, and how it is looked up."""

    first: int
    entries: int
    hashes: int
    table_VD: NDArray[np.float32]
    known_G: NDArray[np.int64]
    listed: bool
    """A mean over the entries that are known, not one vector."""

    @classmethod
    def of(cls, embed: FeatureEmbedder, table: FeatureTable, kind: RowKind, name: str) -> "_Ids":
        feature, at = table[name], _words_of(table, kind, name)
        stored = embed.state_dict()
        return cls(
            at.start,
            (at.stop - at.start) // feature.hashes,
            feature.hashes,
            stored[f"tables.{feature.shares or name}.weight"].cpu().numpy(),
            stored[f"known_{feature.shares or name}"].cpu().numpy(),
            len(feature.shape) > (feature.hashes > 1),
        )

    def add(self, word_BW: NDArray[np.int32], out_BX: NDArray[np.float32], column: int) -> None:
        """Add its vectors to zeros from `column` on."""
        where = (self.first, self.entries, self.hashes, self.listed)
        _embed(word_BW, out_BX, column, (self.table_VD, self.known_G), where)


@dataclass(frozen=True, slots=True)
class _Numbers:
    """Number features: the words where they are, and what they are standardised by."""

    at_F: NDArray[np.int64] | slice
    """A slice where they are neighbours, for that is no copy."""
    mean_F: NDArray[np.float32]
    scale_F: NDArray[np.float32]

    @classmethod
    def of(cls, embed: FeatureEmbedder, table: FeatureTable, kind: RowKind, names: Sequence[str]) -> "_Numbers":
        """Of a list, every entry."""
        ordered = [feature.name for feature in embed.features if feature.kind == "number"]
        ats = [_words_of(table, kind, name) for name in names]
        f = [ordered.index(name) for name, at in zip(names, ats, strict=True) for _ in range(at.start, at.stop)]
        at_F = np.array([word for at in ats for word in range(at.start, at.stop)], np.int64)
        neighbours = len(at_F) > 0 and bool((np.diff(at_F) == 1).all())
        return cls(
            slice(int(at_F[0]), int(at_F[-1]) + 1) if neighbours else at_F,
            embed.mean_F.cpu().numpy()[f],
            embed.scale_F.cpu().numpy()[f],
        )

    def __call__(self, word_BW: NDArray[np.int32]) -> NDArray[np.float32]:
        value_BF: NDArray[np.float32] = word_BW.view(np.float32)[:, self.at_F] - self.mean_F
        value_BF *= self.scale_F
        np.maximum(value_BF, -FARTHEST, out=value_BF)
        np.minimum(value_BF, FARTHEST, out=value_BF)
        return value_BF


class RowEmbedding:
    """A `FeatureEmbedder` over the features named, all of one kind of row: its numbers but for the order of sums.

    An id beyond its table counts as unknown. Embedding tables are shared with `embed`, not copied.
    """

    def __init__(self, embed: FeatureEmbedder, table: FeatureTable, kind: RowKind, names: Sequence[str]) -> None:
        self._ids: list[tuple[_Ids, int]] = []
        self._lists: list[tuple[_Numbers, int]] = []
        column = 0
        for name in names:
            if table[name].kind == "id":
                self._ids.append((_Ids.of(embed, table, kind, name), column))
                column += embed.dim
            elif table[name].shape:
                self._lists.append((_Numbers.of(embed, table, kind, [name]), column))
                column += 1
        self._past = _words_of(table, kind, _PAST) if self._lists else slice(0)
        self._hashes = table[_PAST].hashes if self._lists else 1
        plain = [name for name in names if table[name].kind == "number" and not table[name].shape]
        self._plain = _Numbers.of(embed, table, kind, plain)
        self.width = column + len(plain)

    def __call__(self, rows: np.ndarray) -> NDArray[np.float32]:
        """(B, width) in the order of `FeatureEmbedder.forward`."""
        word_BW = _words(rows)
        out_BX = np.zeros((len(rows), self.width), np.float32)
        for ids, column in self._ids:
            ids.add(word_BW, out_BX, column)
        for numbers, column in self._lists:
            value_BL = numbers(word_BW)
            filled_BL = (word_BW[:, self._past].reshape(*value_BL.shape, self._hashes) > 0).any(2)
            out_BX[:, column] = (value_BL * filled_BL).sum(1) / np.maximum(filled_BL.sum(1), 1)
        if plain := len(self._plain.mean_F):
            out_BX[:, self.width - plain :] = self._plain(word_BW)
        return out_BX


class PastEmbedding:
    """The history of one query, entry by entry: vectors of the id features named side by side, then the numbers."""

    def __init__(self, embed: FeatureEmbedder, table: FeatureTable, ids: Sequence[str], numbers: Sequence[str]) -> None:
        self._at = [_words_of(table, "query", name) for name in ids]
        each = [_Ids.of(embed, table, "query", name) for name in ids]
        self._ids = [replace(ids, first=0, entries=1, listed=False) for ids in each]
        self._numbers = _Numbers.of(embed, table, "query", numbers)
        self._past = _words_of(table, "query", _PAST)
        self._hashes = table[_PAST].hashes
        self.length = table[_PAST].shape[0]
        """Entries there can be."""
        self._dim = embed.dim

    def __call__(self, row: np.ndarray) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Of one query record, (1,), the places that are not padding, (L,), and what is there, (L, width)."""
        word_BW = _words(row)
        place_L = np.flatnonzero((word_BW[0, self._past].reshape(self.length, self._hashes) > 0).any(1))
        number_FL = self._numbers(word_BW).reshape(-1, self.length)
        ids = len(self._ids) * self._dim
        out_LX = np.zeros((len(place_L), ids + len(number_FL)), np.float32)
        for column, (each, at) in enumerate(zip(self._ids, self._at, strict=True)):
            each.add(word_BW[0, at].reshape(self.length, -1)[place_L], out_LX, column * self._dim)
        out_LX[:, ids:] = number_FL[:, place_L].T
        return place_L, out_LX


def _words_of(table: FeatureTable, kind: RowKind, name: str) -> slice:
    """Where a feature is in its record, in words of four bytes."""
    fields = table.dtype(kind).fields
    assert fields is not None
    dtype, offset = fields[name][:2]
    return slice(offset // 4, (offset + dtype.itemsize) // 4)


def _words(rows: np.ndarray) -> NDArray[np.int32]:
    """A copy, for what is compiled is compiled for arrays that can be written to. Copied as records it takes longer."""
    return np.ascontiguousarray(rows).view(np.int32).reshape(len(rows), rows.dtype.itemsize // 4).copy()


@_compiled
def _embed(word_BW, out_BX, column, tables, where):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    table_VD, known_G = tables
    first, entries, hashes, listed = where
    size, width = table_VD.shape
    for b in range(len(word_BW)):
        held = 0
        for entry in range(entries):
            at = first + entry * hashes
            key, digit, beyond = np.int64(0), np.int64(1), 0
            for h in range(hashes):
                word = word_BW[b, at + h]
                beyond += word < 0 or word >= size
                key += word * digit
                digit *= size
            known = beyond == 0 and key > 0
            if known and len(known_G) > 0:
                place = np.searchsorted(known_G, key)
                known = place < len(known_G) and known_G[place] == key
            if listed and not known:
                continue
            held += 1
            for h in range(hashes):
                row = word_BW[b, at + h] if known else 0
                for d in range(width):
                    out_BX[b, column + d] += table_VD[row, d]
        if held > 1:
            for d in range(width):
                out_BX[b, column + d] /= held
