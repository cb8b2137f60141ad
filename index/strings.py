"""Identifiers and titles as memory-mapped columns, so that N server processes share one copy.

Shape letters: I items.
"""

from collections.abc import Iterable, Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np
from numpy.typing import NDArray


def key64(text: str) -> int:
    """Stable 64-bit hash of an identifier: the same in every process, on every machine, for ever."""
    return int.from_bytes(blake2b(text.encode(), digest_size=8).digest(), "little")


def keys64(texts: Iterable[str]) -> NDArray[np.uint64]:
    """`key64` of each."""
    return np.fromiter((key64(text) for text in texts), np.uint64)


class StringColumn(Sequence[str]):
    """Immutable strings in two flat arrays: UTF-8 bytes and the offsets that cut them."""

    def __init__(self, offset_I1: NDArray[np.int64], utf8: NDArray[np.uint8]) -> None:
        self._offset_I1 = offset_I1
        self._utf8 = utf8

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
        np.save(folder / f"{name}.offsets.npy", self._offset_I1, allow_pickle=False)
        np.save(folder / f"{name}.utf8.npy", self._utf8, allow_pickle=False)

    def __len__(self) -> int:
        return len(self._offset_I1) - 1

    def __getitem__(self, row: int) -> str:  # type: ignore[override]  # slices are never needed
        if not -len(self) <= row < len(self):
            raise IndexError(f"row {row} of {len(self)} strings")
        row %= len(self)
        return self._utf8[self._offset_I1[row] : self._offset_I1[row + 1]].tobytes().decode()


class IdMap:
    """Identifiers to rows and back, without a Python object for each.

    Raises:
        ValueError: where an identifier appears twice (or, once in 10^7 catalogues of a million, two collide).
    """

    def __init__(self, ids: StringColumn, key_I: NDArray[np.uint64], row_I: NDArray[np.int64]) -> None:
        self.ids = ids
        self._key_I = key_I
        self._row_I = row_I

    @classmethod
    def of(cls, ids: Sequence[str]) -> "IdMap":
        key_I = keys64(ids)
        row_I = np.argsort(key_I, kind="stable").astype(np.int64)
        sorted_I = key_I[row_I]
        repeated = np.flatnonzero(sorted_I[1:] == sorted_I[:-1])
        if len(repeated):
            raise ValueError(f"{len(repeated)} repeated ids, the first is {ids[int(row_I[repeated].min())]!r}")
        return cls(StringColumn.of(ids), sorted_I, row_I)

    @classmethod
    def load(cls, folder: Path, name: str) -> "IdMap":
        return cls(
            StringColumn.load(folder, name),
            np.load(folder / f"{name}.keys.npy", mmap_mode="r", allow_pickle=False),
            np.load(folder / f"{name}.rows.npy", mmap_mode="r", allow_pickle=False),
        )

    def save(self, folder: Path, name: str) -> None:
        self.ids.save(folder, name)
        np.save(folder / f"{name}.keys.npy", self._key_I, allow_pickle=False)
        np.save(folder / f"{name}.rows.npy", self._row_I, allow_pickle=False)

    def __len__(self) -> int:
        return len(self.ids)

    def rows(self, key_Q: NDArray[np.uint64]) -> NDArray[np.int64]:
        """Row of each key; -1 where the catalogue does not hold it."""
        if not len(self):
            return np.full(len(key_Q), -1, np.int64)
        at_Q = np.minimum(np.searchsorted(self._key_I, key_Q), len(self) - 1)
        return np.where(self._key_I[at_Q] == key_Q, self._row_I[at_Q], -1)

    def rows_of(self, ids: Iterable[str]) -> NDArray[np.int64]:
        """Row of each identifier; -1 where the catalogue does not hold it."""
        return self.rows(keys64(ids))
