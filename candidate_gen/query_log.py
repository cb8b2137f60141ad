"""What people typed up to a build, and what they took for it.

Items are 64-bit keys (`index.strings.key64`), not rows: they outlive every catalogue.

Shape letters: Q queries, C pairs of a query and an item.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from index.strings import StringColumn

QUERY = np.dtype([("people", "<i4"), ("weight", "<f4")])
"""How many different people typed it, and the same with the old ones worth less."""
TAKEN = np.dtype([("query", "<i4"), ("item_key", "<u8"), ("people", "<i4")])
"""How many different people took an item that they found by typing a query, which stands at that place."""
_FILES = {"row_Q": ("queries.npy", QUERY), "taken_C": ("queries_taken.npy", TAKEN)}
_TEXTS = "query"


@dataclass(frozen=True, slots=True)
class QueryLog:
    """Queries as `spelt`, each once, in any order."""

    text_Q: Sequence[str]
    row_Q: np.ndarray
    taken_C: np.ndarray
    """By query."""

    @classmethod
    def none(cls) -> "QueryLog":
        """Of a system that nobody has searched."""
        return cls((), np.empty(0, QUERY), np.empty(0, TAKEN))

    def taken(self) -> NDArray[np.int64]:
        """How many takings each query led to."""
        return np.bincount(self.taken_C["query"], self.taken_C["people"], len(self.text_Q)).astype(np.int64)

    @property
    def fingerprint(self) -> str:
        """Identifies all of it: 16 hexadecimal digits."""
        digest = sha256("\n".join(self.text_Q).encode())
        for name in _FILES:
            digest.update(getattr(self, name).tobytes())
        return digest.hexdigest()[:16]

    def save(self, folder: Path) -> None:
        StringColumn.of(self.text_Q).save(folder, _TEXTS)
        for name, (file, _) in _FILES.items():
            np.save(folder / file, getattr(self, name), allow_pickle=False)

    @classmethod
    def load(cls, folder: Path) -> "QueryLog":
        """What `save` wrote; nothing where a generation has no such files.

        Raises:
            ValueError: where a file holds something else.
        """
        if not (folder / "queries.npy").exists():
            return cls.none()
        found = {}
        for name, (file, dtype) in _FILES.items():
            found[name] = np.load(folder / file, allow_pickle=False)
            if found[name].dtype != dtype:
                raise ValueError(f"{folder / file} holds {found[name].dtype}; it must hold {dtype}")
        column = StringColumn.load(folder, _TEXTS)
        return cls(column.take(np.arange(len(column))), **found)


def spelt(text: str) -> str:
    """A query as it is counted: without the difference of case and blanks."""
    return " ".join(text.casefold().split())
