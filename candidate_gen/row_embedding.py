"""What `FeatureEmbedder` makes of feature rows, without a tensor and a call for each feature: one row costs little.

Shape letters: B rows, W words of a record, X features side by side, V rows of an embedding table, D their width,
G known ids, L history, P entries of all histories, H hashes, F number features.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numba import njit
from numba.typed import List
from numpy.typing import NDArray

from candidate_gen.embedding import FARTHEST, FeatureEmbedder
from candidate_gen.features import Feature, FeatureTable, RowKind, words

_PAST = "history_item"
"""Tells which entries of the lists of a history are padding."""
_compiled: Any = njit(cache=True, nogil=True, boundscheck=False)


class _Ids:
    """Id features side by side.

    Args:
        at_F: the word of each where its first id begins, and how many ids it has.
        listed_F: a mean over the entries that are known, not one vector.
        column_F: where its vector goes.
    """

    def __init__(
        self,
        embed: FeatureEmbedder,
        features: Sequence[Feature],
        *,
        at_F: Sequence[tuple[int, int]],
        listed_F: Sequence[bool],
        column_F: Sequence[int],
    ) -> None:
        stored, names = embed.state_dict(), [feature.shares or feature.name for feature in features]
        # Lists that compiled code knows by one reference each: as arguments, arrays would cost more than the sums.
        self._table_F = _listed(
            [stored[f"tables.{name}.weight"].cpu().numpy() for name in names] or [np.zeros((0, 0), "f4")]
        )
        self._known_F = _listed([stored[f"known_{name}"].cpu().numpy() for name in names] or [np.zeros(0, np.int64)])
        hashes_F = [feature.hashes for feature in features]
        each = zip(at_F, hashes_F, listed_F, column_F, strict=True)
        self._where_F5 = np.array([(*at, hashes, listed, column) for at, hashes, listed, column in each], np.int64)

    def add(self, word_BW: NDArray[np.int32], out_BX: NDArray[np.float32]) -> None:
        """Add the vectors to zeros."""
        if len(self._where_F5):
            _embed(word_BW, out_BX, self._table_F, self._known_F, self._where_F5)


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
        ats = [table.words(kind, name) for name in names]
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
        self._lists: list[tuple[_Numbers, int]] = []
        ids, column_F, column = [], [], 0
        for name in names:
            if table[name].kind == "id":
                ids.append(table[name])
                column_F.append(column)
                column += embed.dim
            elif table[name].shape:
                self._lists.append((_Numbers.of(embed, table, kind, [name]), column))
                column += 1
        ats = [table.words(kind, feature.name) for feature in ids]
        self._ids = _Ids(
            embed,
            ids,
            at_F=[(at.start, (at.stop - at.start) // each.hashes) for each, at in zip(ids, ats, strict=True)],
            listed_F=[len(each.shape) > (each.hashes > 1) for each in ids],
            column_F=column_F,
        )
        self._past = table.words(kind, _PAST) if self._lists else slice(0)
        self._hashes = table[_PAST].hashes if self._lists else 1
        plain = [name for name in names if table[name].kind == "number" and not table[name].shape]
        self._plain = _Numbers.of(embed, table, kind, plain)
        self.width = column + len(plain)

    def __call__(self, rows: np.ndarray) -> NDArray[np.float32]:
        """(B, width) in the order of `FeatureEmbedder.forward`."""
        word_BW = words(rows)
        out_BX = np.zeros((len(rows), self.width), np.float32)
        self._ids.add(word_BW, out_BX)
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
        each, self.length = [table[name] for name in ids], table[_PAST].shape[0]
        """Entries there can be."""
        starts = [table.words("query", name).start for name in ids]
        self._word_LH = np.array(
            [
                [
                    start + place * feature.hashes + h
                    for start, feature in zip(starts, each, strict=True)
                    for h in range(feature.hashes)
                ]
                for place in range(self.length)
            ],
            np.int64,
        )
        """Words of each entry."""
        self._ids = _Ids(
            embed,
            each,
            at_F=[(sum(before.hashes for before in each[:f]), 1) for f in range(len(each))],
            listed_F=[False] * len(each),
            column_F=[f * embed.dim for f in range(len(each))],
        )
        self._width = len(each) * embed.dim
        self._numbers = _Numbers.of(embed, table, "query", numbers)
        self._past = table.words("query", _PAST)
        self._hashes = table[_PAST].hashes

    def __call__(self, row: np.ndarray) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Of one query record, (1,), the places that are not padding, (L,), and what is there, (L, width)."""
        word_BW = words(row)
        place_L = np.flatnonzero((word_BW[0, self._past].reshape(self.length, self._hashes) > 0).any(1))
        number_FL = self._numbers(word_BW).reshape(-1, self.length)
        out_LX = np.zeros((len(place_L), self._width + len(number_FL)), np.float32)
        self._ids.add(word_BW[0, self._word_LH[place_L]], out_LX)
        out_LX[:, self._width :] = number_FL[:, place_L].T
        return place_L, out_LX

    def of_many(self, rows: np.ndarray) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.int64]]:
        """The same of many records, (B,), one after the other: places, (P,), what is there, and where each begins."""
        word_BW = words(rows)
        filled_BL = (word_BW[:, self._past].reshape(len(rows), self.length, self._hashes) > 0).any(2)
        query_P, place_P = np.nonzero(filled_BL)
        number_BFL = self._numbers(word_BW).reshape(len(rows), -1, self.length)
        out_PX = np.zeros((len(place_P), self._width + number_BFL.shape[1]), np.float32)
        self._ids.add(word_BW[query_P[:, None], self._word_LH[place_P]], out_PX)
        out_PX[:, self._width :] = number_BFL[query_P, :, place_P]
        return place_P, out_PX, np.concatenate([[0], np.cumsum(filled_BL.sum(1))])


def _listed(arrays: Sequence[NDArray[Any]]) -> Any:
    """At least one, of one type. Lists of numba made any other way compile for a second in every process."""
    made = _list_of(arrays[0])
    for each in arrays[1:]:
        _append(made, each)
    return made


@_compiled
def _list_of(array):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    made = List()
    made.append(array)
    return made


@_compiled
def _append(made, array):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    made.append(array)


@_compiled
def _embed(word_BW, out_BX, table_F, known_F, where_F5):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    for f in range(len(where_F5)):
        table_VD, known_G = table_F[f], known_F[f]
        first, entries, hashes, listed, column = where_F5[f]
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
