"""What estimators take: checked arrays of float64, or an error that names the argument, the place and the value."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

ROUNDING = 1e-9
"""By how much a probability may exceed 1, and a prefix propensity the one before it."""


def finite(name: str, value: ArrayLike, axes: int) -> NDArray[np.float64]:
    """
    Raises:
        ValueError: for another number of axes, no rows, and what is NaN or infinite.
    """
    array = np.asarray(value, np.float64)
    if array.ndim != axes:
        raise ValueError(f"{name} has shape {array.shape}; {axes} axes are needed")
    if not array.size:
        raise ValueError(f"{name} has shape {array.shape}; at least one row is needed")
    wrong = np.argwhere(~np.isfinite(array))
    if len(wrong):
        raise ValueError(f"{name}{wrong[0].tolist()} is {array[tuple(wrong[0])]}; a finite number is needed")
    return array


def propensity(name: str, value: ArrayLike, axes: int, *, logged: bool = False) -> NDArray[np.float64]:
    """
    Args:
        logged: of what was shown, and therefore above 0.

    Raises:
        ValueError: as `finite` does, and for what is no probability.
    """
    array = finite(name, value, axes)
    wrong = np.argwhere((array > 1 + ROUNDING) | (array <= 0 if logged else array < 0))
    if len(wrong):
        allowed = "above 0, at most 1" if logged else "between 0 and 1"
        raise ValueError(
            f"{name}{wrong[0].tolist()} is {array[tuple(wrong[0])]:.6g}; a probability {allowed} is needed "
            f"({len(wrong)} are not)"
        )
    return array


def distribution(name: str, value: ArrayLike) -> NDArray[np.float64]:
    """
    Raises:
        ValueError: as `propensity` does, and for a row that does not sum to 1.
    """
    array_NA = propensity(name, value, 2)
    total_N = array_NA.sum(axis=1)
    wrong_N = np.flatnonzero(np.abs(total_N - 1) > 1e-3)
    if len(wrong_N):
        raise ValueError(f"{name}[{wrong_N[0]}] sums to {total_N[wrong_N[0]]:.6g}; it must sum to 1")
    return array_NA


def positions(name: str, value: ArrayLike, axes: int, size: int) -> NDArray[np.int64]:
    """Positions along an axis of `size`.

    Raises:
        ValueError: for another number of axes, what is no whole number, and what lies outside.
    """
    array = np.asarray(value)
    if not np.issubdtype(array.dtype, np.integer):
        raise ValueError(f"{name} has type {array.dtype}; positions along the action axis are needed")
    if array.ndim != axes:
        raise ValueError(f"{name} has shape {array.shape}; {axes} axes are needed")
    outside = array[(array < 0) | (array >= size)]
    if len(outside):
        raise ValueError(f"{name} holds {outside[0]}; positions go from 0 to {size - 1}")
    return array.astype(np.int64)


def same_shape(**arrays: NDArray[np.generic]) -> None:
    """
    Raises:
        ValueError: naming the first array, and the one that differs from it.
    """
    (first, expected), *others = arrays.items()
    for name, array in others:
        if array.shape != expected.shape:
            raise ValueError(f"{name} has shape {array.shape}, but {first} {expected.shape}")
