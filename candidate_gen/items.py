"""The catalogue of one generation: immutable columns, memory-mapped and shared between server processes.

Shape letters: I items, D embedding width.
"""

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index.strings import IdMap, StringColumn

_ARRAYS = ("row_I", "published_ms_I", "available_I", "popularity_I", "embedding_ID")


@dataclass(frozen=True, slots=True)
class Items:
    """Row i of every column is item i."""

    ids: IdMap
    titles: StringColumn
    row_I: np.ndarray
    """Records of the feature table's item dtype."""
    published_ms_I: NDArray[np.int64]
    available_I: NDArray[np.bool_]
    popularity_I: NDArray[np.float32]
    """Positive outcomes with exponential decay, as of the build."""
    embedding_ID: NDArray[np.float32]
    """Item tower's vectors, each of length 1."""

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def fingerprint(self) -> str:
        """Identifies every column: 16 hexadecimal digits."""
        digest = sha256()
        for name in _ARRAYS:
            column = np.ascontiguousarray(getattr(self, name))
            digest.update(f"{name} {column.dtype} {column.shape}".encode())
            digest.update(column.tobytes())
        for text in (*self.ids.ids, *self.titles):
            digest.update(text.encode() + b"\0")
        return digest.hexdigest()[:16]

    def save(self, folder: Path) -> None:
        self.ids.save(folder, "item_id")
        self.titles.save(folder, "title")
        for name in _ARRAYS:
            np.save(folder / f"{name}.npy", getattr(self, name), allow_pickle=False)

    @classmethod
    def load(cls, folder: Path) -> "Items":
        arrays = {name: np.load(folder / f"{name}.npy", mmap_mode="r", allow_pickle=False) for name in _ARRAYS}
        return cls(IdMap.load(folder, "item_id"), StringColumn.load(folder, "title"), **arrays)
