"""Identifiers and titles as memory-mapped columns, so that N server processes share one copy.

Shape letters: I items, N rows asked for, Q keys asked for, R runs of rows, T entries of a sorted table.
"""

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from pathlib import Path
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from index.columns import Column, growing


class Digest(Protocol):
    """What `hashlib` makes."""

    def update(self, data: memoryview, /) -> None: ...


def key64(text: str) -> int:
    """Stable 64-bit hash of an identifier: the same in every process, on every machine, for ever."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def keys64(texts: Iterable[str]) -> NDArray[np.uint64]:
    """`key64` of each."""
    return np.fromiter((key64(text) for text in texts), np.uint64)


class StringColumn(Sequence[str]):
    """Immutable strings in two flat columns: UTF-8 bytes and the offsets that cut them."""

    def __init__(self, offset_I1: Column, utf8: Column) -> None:
        self._offset_I1 = growing(offset_I1)
        self._utf8 = growing(utf8)
        self._base, self._tail = self._utf8.base.data, self._utf8.tail.data

    @classmethod
    def of(cls, texts: Iterable[str]) -> "StringColumn":
        encoded = [text.encode() for text in texts]
        offset_I1 = np.zeros(len(encoded) + 1, np.int64)
        np.cumsum([len(each) for each in encoded], out=offset_I1[1:])
        return cls(offset_I1, np.frombuffer(b"".join(encoded), np.uint8))

    @classmethod
    def load(cls, folder: Path, name: str) -> "StringColumn":
        return cls(
            np.load(folder / f"{name}.offsets.npy", mmap_mode="r", allow_pickle=False),
            np.load(folder / f"{name}.utf8.npy", mmap_mode="r", allow_pickle=False),
        )

    def save(self, folder: Path, name: str) -> None:
        np.save(folder / f"{name}.offsets.npy", np.asarray(self._offset_I1), allow_pickle=False)
        np.save(folder / f"{name}.utf8.npy", np.asarray(self._utf8), allow_pickle=False)

    def __len__(self) -> int:
        return len(self._offset_I1) - 1

    def __getitem__(self, row: int) -> str:  # type: ignore[override]  # slices are never needed
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of {len(self)} strings")
        row %= len(self)
        return str(self._bytes(int(self._offset_I1[row]), int(self._offset_I1[row + 1])), "utf-8")

    def take(self, row_N: NDArray[np.int64]) -> list[str]:
        """Text of each row; empty where the row is -1.

        Raises:
            IndexError: a row beyond the column.
        """
        start_N, end_N = self._offset_I1[row_N], self._offset_I1[row_N + 1]
        end_N[row_N < 0] = 0
        return [
            str(self._bytes(start, end), "utf-8") for start, end in zip(start_N.tolist(), end_N.tolist(), strict=True)
        ]

    def appended(self, texts: Iterable[str]) -> "StringColumn":
        """This column and the texts after it, in time that depends on the texts alone."""
        added = StringColumn.of(texts)
        offset_N = len(self._utf8) + added._offset_I1.base[1:]
        return StringColumn(self._offset_I1.append(offset_N), self._utf8.append(added._utf8.base))

    def selected(self, row_N: NDArray[np.int64]) -> "StringColumn":
        """The texts of these rows alone, in this order.

        Raises:
            IndexError: a row beyond the column, or a negative one.
        """
        if (row_N < 0).any():
            raise IndexError(f"row {row_N.min()} of {len(self)} strings")
        start_N, end_N = self._offset_I1[row_N], self._offset_I1[row_N + 1]
        # Texts that lie side by side are copied at one go: all but for gaps and for where the tail begins.
        first_N = np.ones(len(row_N), np.bool_)
        first_N[1:] = (start_N[1:] != end_N[:-1]) | (start_N[1:] == len(self._base))
        first_R = np.flatnonzero(first_N)
        run_R = zip(start_N[first_R].tolist(), end_N[np.append(first_R, len(row_N))[1:] - 1].tolist(), strict=True)
        offset_N1 = np.zeros(len(row_N) + 1, np.int64)
        np.cumsum(end_N - start_N, out=offset_N1[1:])
        return StringColumn(offset_N1, np.frombuffer(b"".join(self._bytes(*run) for run in run_R), np.uint8))

    def update(self, digest: Digest) -> None:
        """Feed all texts to a digest. Equal texts feed equal bytes, other texts other bytes; columns may follow."""
        digest.update(np.array([len(self)]).data)
        for column in (self._offset_I1, self._utf8):
            digest.update(column.base.data)
            digest.update(column.tail.data)

    def _bytes(self, start: int, end: int) -> memoryview:
        """No text lies across the end of the base."""
        split = len(self._base)
        return self._base[start:end] if end <= split else self._tail[start - split : end - split]


class IdMap:
    """Identifiers to rows and back, without a Python object for each.

    Raises:
        ValueError: where an identifier appears twice (or, once in 10^7 catalogues of a million, two collide).
    """

    def __init__(self, ids: StringColumn, key_I: NDArray[np.uint64], row_I: NDArray[np.int64]) -> None:
        self.ids = ids
        self._base = _Table(key_I, row_I)
        self._tail = _Table(np.empty(0, np.uint64), np.empty(0, np.int64))

    @classmethod
    def of(cls, ids: Sequence[str]) -> "IdMap":
        return cls._of(StringColumn.of(ids), keys64(ids))

    @classmethod
    def _of(cls, ids: StringColumn, key_I: NDArray[np.uint64]) -> "IdMap":
        row_I = np.argsort(key_I, kind="stable").astype(np.int64)
        sorted_I = key_I[row_I]
        repeated = np.flatnonzero(sorted_I[1:] == sorted_I[:-1])
        if len(repeated):
            raise ValueError(f"{len(repeated)} repeated ids, the first is {ids[int(row_I[repeated].min())]!r}")
        return cls(ids, sorted_I, row_I)

    @classmethod
    def load(cls, folder: Path, name: str) -> "IdMap":
        return cls(
            StringColumn.load(folder, name),
            np.load(folder / f"{name}.keys.npy", mmap_mode="r", allow_pickle=False),
            np.load(folder / f"{name}.rows.npy", mmap_mode="r", allow_pickle=False),
        )

    def save(self, folder: Path, name: str) -> None:
        self.ids.save(folder, name)
        whole = self._base.merged(self._tail)
        np.save(folder / f"{name}.keys.npy", whole.key_T, allow_pickle=False)
        np.save(folder / f"{name}.rows.npy", whole.row_T, allow_pickle=False)

    def __len__(self) -> int:
        """Rows, those whose id names a newer one included."""
        return len(self.ids)

    def rows(self, key_Q: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Newest row of each key; -1 where the catalogue does not hold it."""
        row_Q = self._base.newest(key_Q)
        if not len(self._tail.key_T):
            return row_Q
        late_Q = self._tail.newest(key_Q)
        return np.where(late_Q >= 0, late_Q, row_Q)

    def rows_of(self, ids: Iterable[str]) -> NDArray[np.int64]:
        """Newest row of each identifier; -1 where the catalogue does not hold it."""
        return self.rows(keys64(ids))

    def appended(self, ids: Sequence[str]) -> "IdMap":
        """This map and a row for each of the ids after it; an id that is there already names its newest row.

        Takes time for the ids and for two plain copies of the table of what was appended before.
        """
        key_N = keys64(ids)
        order_N = np.argsort(key_N, kind="stable").astype(np.int64)
        grown = IdMap(self.ids.appended(ids), self._base.key_T, self._base.row_T)
        grown._tail = self._tail.merged(_Table(key_N[order_N], len(self) + order_N))
        return grown

    def selected(self, row_N: NDArray[np.int64]) -> "IdMap":
        """The ids of these rows alone, in this order, hashed no second time.

        Raises:
            IndexError: a row beyond the map, or a negative one.
            ValueError: two rows have one id.
        """
        key_I = np.empty(len(self), np.uint64)
        for table in (self._base, self._tail):
            key_I[table.row_T] = table.key_T
        return IdMap._of(self.ids.selected(row_N), key_I[row_N])


class _Table:
    """Keys in ascending order, those that are equal in order of their rows."""

    __slots__ = ("key_T", "row_T")

    def __init__(self, key_T: NDArray[np.uint64], row_T: NDArray[np.int64]) -> None:
        self.key_T = key_T
        self.row_T = row_T

    def newest(self, key_Q: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Last row of each key; -1 where there is none."""
        if not len(self.key_T):
            return np.full(len(key_Q), -1, np.int64)
        at_Q = np.searchsorted(self.key_T, key_Q, side="right") - 1  # -1 is the largest key, which is then another
        return np.where(self.key_T[at_Q] == key_Q, self.row_T[at_Q], -1)

    def merged(self, later: "_Table") -> "_Table":
        """All of both; the rows of the other follow this one's."""
        at_T = np.searchsorted(self.key_T, later.key_T, side="right")
        return _Table(np.insert(self.key_T, at_T, later.key_T), np.insert(self.row_T, at_T, later.row_T))
