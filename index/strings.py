"""Identifiers and titles as memory-mapped columns, so that N server processes share one copy.

Shape letters: I items, N rows asked for, Q keys asked for, R runs of rows, T entries of a sorted table.
"""

from collections.abc import Iterable, Sequence
from functools import cached_property
from hashlib import blake2b
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numba import njit
from numpy.typing import NDArray

from index.columns import Column, frozen, gathered, growing, plain

_KEYS_A_BUCKET = 4
_KEY = np.dtype(np.uint64)
_compiled: Any = njit(cache=True, nogil=True, boundscheck=False)


class Digest(Protocol):
    """What `hashlib` makes."""

    def update(self, data: memoryview, /) -> None: ...


def key64(text: str) -> int:
    """Stable 64-bit hash of an identifier: the same in every process, on every machine, for ever."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def keys64(texts: Iterable[str]) -> NDArray[np.uint64]:
    """`key64` of each."""
    return np.fromiter((key64(text) for text in texts), np.uint64)


def side_by_side(texts: Iterable[str]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """UTF-8 bytes of the texts, and where each begins, (I + 1,)."""
    encoded = [text.encode() for text in texts]
    offset_I1 = np.zeros(len(encoded) + 1, np.int64)
    np.cumsum([len(each) for each in encoded], out=offset_I1[1:])
    return np.frombuffer(b"".join(encoded), np.uint8), offset_I1


class StringColumn(Sequence[str]):
    """Immutable strings in two flat columns: UTF-8 bytes and the offsets that cut them."""

    def __init__(self, offset_I1: Column, utf8: Column) -> None:
        self._offset_I1 = growing(offset_I1)
        self._utf8 = growing(utf8)
        self._base, self._tail = self._utf8.base.data, self._utf8.tail.data

    @classmethod
    def of(cls, texts: Iterable[str]) -> "StringColumn":
        utf8, offset_I1 = side_by_side(texts)
        return cls(offset_I1, utf8)

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
        utf8, offset_N1 = self.utf8(row_N)
        offsets = pairwise(offset_N1.tolist())
        whole = utf8.tobytes()
        if whole.isascii():  # then a byte is a character
            text = whole.decode("ascii")
            return [text[start:end] for start, end in offsets]
        return [whole[start:end].decode() for start, end in offsets]

    def utf8(self, row_N: NDArray[np.int64]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
        """Bytes of these rows side by side, and where each begins, (N + 1,); those of row -1 are none.

        Raises:
            IndexError: a row beyond the column.
        """
        start_N, end_N = self._offset_I1[row_N], self._offset_I1[row_N + 1]
        end_N[row_N < 0] = start_N[row_N < 0]
        return gathered(self._utf8, start_N, end_N)

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

    def keys(self, row_N: NDArray[np.int64]) -> NDArray[np.uint64]:
        """`key64` of each row's identifier."""
        late_N = row_N >= self._base.rows
        if not late_N.any():
            return self._base.key_of_row_I[row_N]
        key_N = np.empty(len(row_N), np.uint64)
        key_N[~late_N] = self._base.key_of_row_I[row_N[~late_N]]
        key_N[late_N] = self._tail.key_of_row_I[row_N[late_N] - self._base.rows]
        return key_N

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
    """Keys in ascending order, equal ones in order of their rows, which follow each other from some row on."""

    def __init__(self, key_T: NDArray[np.uint64], row_T: NDArray[np.int64]) -> None:
        self.key_T = frozen(key_T)
        self.row_T = frozen(row_T)
        self.rows = len(row_T)
        self._bits = max(0, (self.rows // _KEYS_A_BUCKET).bit_length() - 1)

    def newest(self, key_Q: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Last row of each key; -1 where there is none."""
        shift, key_Q = np.uint64(64 - self._bits), plain(key_Q, _KEY)
        row_Q: NDArray[np.int64] = _newest(self.key_T, self.row_T, self._first_B, shift, key_Q)
        return row_Q

    @cached_property
    def _first_B(self) -> NDArray[np.int64]:
        """Where the keys of each bucket begin, by their first bits; hashes fill buckets evenly."""
        least_B = np.arange(1 << self._bits, dtype=np.uint64) << np.uint64(64 - self._bits if self._bits else 0)
        return frozen(np.append(np.searchsorted(self.key_T, least_B), self.rows))

    @cached_property
    def key_of_row_I(self) -> NDArray[np.uint64]:
        """By row, from the first one on."""
        key_I = np.empty(self.rows, np.uint64)
        if self.rows:
            key_I[self.row_T - self.row_T.min()] = self.key_T
        return key_I

    def merged(self, later: "_Table") -> "_Table":
        """All of both; the rows of the other follow this one's."""
        at_T = np.searchsorted(self.key_T, later.key_T, side="right")
        return _Table(np.insert(self.key_T, at_T, later.key_T), np.insert(self.row_T, at_T, later.row_T))


@_compiled
def _newest(key_T, row_T, first_B, shift, key_Q):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    row_Q = np.full(len(key_Q), -1, np.int64)
    for q in range(len(key_Q)):
        bucket = np.int64(key_Q[q] >> shift) if shift < 64 else 0
        for t in range(first_B[bucket + 1] - 1, first_B[bucket] - 1, -1):
            if key_T[t] <= key_Q[q]:
                if key_T[t] == key_Q[q]:
                    row_Q[q] = row_T[t]
                break
    return row_Q
