"""Columns that grow at the end without touching what is there.

Shape letters: I items, J rows after the base, N rows asked for, * further axes of a row.
"""

import math
from threading import Lock
from typing import Any, TypeAlias, overload

import numpy as np
from numba import njit
from numpy.typing import NDArray

from index.prefetch import LINE_BYTES, prefetch

_ROW = np.dtype(np.int64)
_AHEAD_ROWS = 8
_compiled: Any = njit(cache=True, nogil=True, boundscheck=False)


class GrownColumn:
    """A column (maybe memory-mapped, structured or of several axes) and the rows after it, read as one.

    Immutable: `append` makes a new value. Successive values share one buffer that doubles, so a row is copied a few
    times in all; only appending to a value that is not the newest copies its tail. Any threads may read and append.

    Args:
        base: rows 0 and up. Kept as it is.
        tail: the rows that follow it. Neither may be written to afterwards.

    Raises:
        ValueError: rows of the two differ in type or shape.
    """

    __slots__ = ("_room", "base", "tail")

    def __init__(self, base: NDArray[Any], tail: NDArray[Any]) -> None:
        if tail.dtype != base.dtype or tail.shape[1:] != base.shape[1:]:
            raise ValueError(
                f"rows of {tail.dtype} {tail.shape[1:]} cannot follow a column of {base.dtype} {base.shape[1:]}"
            )
        self.base = np.asarray(base)  # a plain view: indexing a memmap runs Python
        self.tail = np.asarray(tail)
        self._room = _Room(self.tail, len(self.tail))

    def __len__(self) -> int:
        return len(self.base) + len(self.tail)

    @property
    def dtype(self) -> np.dtype[Any]:
        return self.base.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return (len(self), *self.base.shape[1:])

    @overload
    def __getitem__(self, at: str) -> "GrownColumn": ...
    @overload
    def __getitem__(self, at: int) -> Any: ...
    @overload
    def __getitem__(self, at: NDArray[np.integer[Any]]) -> NDArray[Any]: ...
    def __getitem__(self, at: str | int | NDArray[np.integer[Any]]) -> Any:
        """A field, a row, or rows by their numbers in an array of any shape.

        -1 reads some row (as padding does), so long as there is one.

        Raises:
            IndexError: a row beyond the column.
        """
        if isinstance(at, str):
            return GrownColumn(self.base[at], self.tail[at])
        split = len(self.base)
        if isinstance(at, int | np.integer):
            return self.base[at] if split and (at < split or not len(self.tail)) else self.tail[at - split]
        row_N = np.asarray(at)
        if not split:
            return _taken(self.tail, row_N)
        if not len(self.tail):
            return _taken(self.base, row_N)
        late_N = row_N >= split
        if not late_N.any():
            return _taken(self.base, row_N)
        found_N = _taken(self.base, np.where(late_N, 0, row_N))
        found_N[late_N] = _taken(self.tail, row_N[late_N] - split)
        return found_N

    def __array__(self, dtype: np.dtype[Any] | None = None, copy: bool | None = None) -> NDArray[Any]:
        whole = np.concatenate((self.base, self.tail)) if len(self.tail) else self.base
        return np.array(whole, dtype, copy=copy)

    def append(self, rows: NDArray[Any]) -> "GrownColumn":
        """This column and the rows after it.

        Raises:
            ValueError: rows of another type or shape.
        """
        count, end = len(self.tail), len(self.tail) + len(rows)
        grown = GrownColumn(self.base, rows)
        if not len(rows):
            return self
        room = self._room
        if not room.written(count, rows):
            room = _Room(np.empty((2 * end, *self.base.shape[1:]), self.dtype), end)
            room.buffer_J[:count] = self.tail
            room.buffer_J[count:end] = rows
        grown.tail = room.buffer_J[:end]
        grown.tail.flags.writeable = False
        grown._room = room
        return grown


Column: TypeAlias = NDArray[Any] | GrownColumn


def taken(column: Column, row_N: NDArray[np.integer[Any]]) -> NDArray[Any]:
    """`column[row_N]`, of a column of records or of long rows several times as fast."""
    found_N: NDArray[Any] = column[row_N] if isinstance(column, GrownColumn) else _taken(column, row_N)
    return found_N


def _taken(rows: NDArray[Any], row_N: NDArray[np.integer[Any]]) -> NDArray[Any]:
    """NumPy copies records field by field, and waits for the memory at every row."""
    width = rows.dtype.itemsize * math.prod(rows.shape[1:])
    if (rows.dtype.names is None and width < LINE_BYTES) or not rows.flags.c_contiguous:
        return np.asarray(rows[row_N])
    found_NB = np.empty((row_N.size, width), np.uint8)
    byte_IB = frozen(rows).view(np.uint8).reshape(len(rows), width)
    if not _copied(byte_IB, plain(row_N.reshape(-1), _ROW), found_NB):
        raise IndexError(f"rows from {row_N.min()} to {row_N.max()} of {len(rows)}")
    return found_NB.reshape(-1).view(rows.dtype).reshape(row_N.shape + rows.shape[1:])


def plain(array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """As compiled code knows arrays of a type, whatever it was given: side by side, and such as can be written to. For
    others it would be compiled again, in the middle of a request."""
    if array.flags.carray and array.dtype == dtype:
        return array
    return np.require(array, dtype, ("C", "W"))


def growing(column: Column) -> GrownColumn:
    """The same column, with `append`."""
    return column if isinstance(column, GrownColumn) else GrownColumn(column, column[:0])


def appended(column: Column, rows: NDArray[Any]) -> GrownColumn:
    """The column and the rows after it."""
    return growing(column).append(rows)


def gathered(
    column: GrownColumn, start_N: NDArray[np.int64], end_N: NDArray[np.int64]
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Stretches of a plain column side by side, and where each begins, (N + 1,).

    Args:
        start_N, end_N: of each stretch; none lies across the end of the base.
    """
    flat, offset_N1 = _gathered(frozen(column.base), frozen(column.tail), start_N, end_N)
    return flat, offset_N1


class _Room:
    """A buffer whose first rows are taken for ever."""

    __slots__ = ("_lock", "_taken", "buffer_J")

    def __init__(self, buffer_J: NDArray[Any], taken: int) -> None:
        self.buffer_J = buffer_J
        self._taken = taken
        self._lock = Lock()

    def written(self, at: int, rows: NDArray[Any]) -> bool:
        """Write the rows there; False where others have been, or where they do not fit."""
        end = at + len(rows)
        with self._lock:
            if at != self._taken or end > len(self.buffer_J):
                return False
            self._taken = end
        self.buffer_J[at:end] = rows
        return True


def frozen(rows: NDArray[Any]) -> NDArray[Any]:
    """A plain read-only view, so that one compiled version serves mapped and made arrays."""
    view = np.asarray(rows).view()
    view.flags.writeable = False
    return view


@_compiled
def _copied(byte_IB, row_N, out_NB):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    """Whether all rows are there; otherwise some were not copied."""
    count, width = byte_IB.shape
    for n in range(len(row_N)):
        ahead = row_N[min(n + _AHEAD_ROWS, len(row_N) - 1)] * width
        for line in range(0, width, LINE_BYTES):
            prefetch(byte_IB, ahead + line)
        row = row_N[n] if row_N[n] >= 0 else row_N[n] + count
        if row < 0 or row >= count:
            return False
        for b in range(width):
            out_NB[n, b] = byte_IB[row, b]
    return True


@_compiled
def _gathered(base, tail, start_N, end_N):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    offset_N1 = np.zeros(len(start_N) + 1, np.int64)
    for n in range(len(start_N)):
        offset_N1[n + 1] = offset_N1[n] + end_N[n] - start_N[n]
    flat = np.empty(offset_N1[-1], base.dtype)
    split = len(base)
    for n in range(len(start_N)):
        column, first = (base, start_N[n]) if end_N[n] <= split else (tail, start_N[n] - split)
        for i in range(offset_N1[n + 1] - offset_N1[n]):
            flat[offset_N1[n] + i] = column[first + i]
    return flat, offset_N1
