"""Which rows may be returned: what a filter pushes into a search.

Shape letters: I items (rows), A allowed rows.
"""

from functools import cached_property

import numpy as np
from numpy.typing import NDArray


class Mask:
    """An immutable set of rows. The forms that searches want are made once and kept, so keep the mask."""

    def __init__(self, allowed_I: NDArray[np.bool_]) -> None:
        if allowed_I.ndim != 1 or allowed_I.dtype != np.bool_:
            raise ValueError(f"a mask is one column of booleans, not {allowed_I.dtype} {allowed_I.shape}")
        self.allowed_I = allowed_I

    def __len__(self) -> int:
        """Rows that it tells of, allowed or not."""
        return len(self.allowed_I)

    def __and__(self, other: "Mask") -> "Mask":
        return Mask(self.allowed_I & other.allowed_I)

    @cached_property
    def count(self) -> int:
        """Allowed rows."""
        return int(np.count_nonzero(self.allowed_I))

    @cached_property
    def row_A(self) -> NDArray[np.int64]:
        """Allowed rows, ascending."""
        return np.flatnonzero(self.allowed_I)

    @cached_property
    def bits(self) -> NDArray[np.uint8]:
        """Bit i % 8 of byte i // 8 is row i."""
        return np.packbits(self.allowed_I, bitorder="little")

    def head(self, rows: int) -> "Mask":
        """Of the first rows alone."""
        if rows == len(self):
            return self
        if rows not in self._heads:
            self._heads[rows] = Mask(self.allowed_I[:rows])
        return self._heads[rows]

    @cached_property
    def _heads(self) -> dict[int, "Mask"]:
        return {}
