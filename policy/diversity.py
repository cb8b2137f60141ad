"""How alike a candidate and the slate are, as the walk keeps it up.

Shape letters: K slots, N candidates, D embedding width, L lanes.
"""

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

CODE_OF_ONE = 32767
"""Vectors of length 1 are rounded to so many levels a side: a cosine is then off by 1e-5, and a sum of whole numbers,
which is the same on every machine and in every order. None overflows, for no inner product exceeds this squared."""
LEAST_RESIDUAL = 2.0**-20
"""What is left of a candidate that lies in the span of the slate, at the least: 0 has no logarithm."""
_LANES = 32
_LEAST = -(2**31)


class Similarity(NamedTuple):
    """Of one draw. What its kind does not need is empty."""

    code_DN: NDArray[np.int16]
    """Filled up with zeros to 4 dimensions and whole lanes."""
    product_N: NDArray[np.int32]
    nearest_N: NDArray[np.int32]
    """Largest inner product of codes with a placed candidate."""
    vector_DN: NDArray[np.float64]
    residual_N: NDArray[np.float64]
    """Squared length of what is left of each vector outside the span of the placed ones."""
    basis_KD: NDArray[np.float64]
    changed_N: NDArray[np.int64]
    argument_N: NDArray[np.float64]


def similarity(vector_ND: NDArray[np.float32], size: int, *, spanning: bool) -> Similarity:
    """Before anything is placed.

    Args:
        vector_ND: of any length, of which only the direction counts. D = 0 where similarity does not matter.
        size: slots of the slate.
        spanning: by the span of the slate, not by its nearest member.
    """
    count, d = vector_ND.shape
    length_N1 = np.linalg.norm(vector_ND, axis=1, keepdims=True)
    length_N1[length_N1 == 0] = np.inf
    vector_ND = vector_ND / length_N1
    by_code, by_span = (0, count) if spanning else (count, 0)
    padded = -by_code % _LANES + by_code
    return Similarity(
        np.zeros((0, 0), np.int16) if spanning else _codes(vector_ND),
        np.zeros(padded, np.int32),
        np.full(padded, _LEAST, np.int32),
        vector_ND.T.astype(np.float64, order="C") if spanning else np.zeros((0, 0)),
        np.ones(by_span),
        np.zeros((size, d) if spanning else (0, 0)),
        np.empty(count, np.int64),
        np.empty(count),
    )


_compiled: Any = njit(cache=True, nogil=True, boundscheck=False)


@_compiled
def _codes(vector_ND):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    count, d = vector_ND.shape
    code_DN = np.zeros(((d + 3) // 4 * 4, (count + _LANES - 1) // _LANES * _LANES), np.int16)
    code_LD = np.empty((_LANES, d), np.int16)
    for start in range(0, count, _LANES):  # in parts that stay in the cache while they are turned
        part = min(_LANES, count - start)
        for lane in range(part):
            for i in range(d):
                code_LD[lane, i] = np.int16(np.rint(min(max(vector_ND[start + lane, i], -1.0), 1.0) * CODE_OF_ONE))
        for i in range(d):
            for lane in range(part):
                code_DN[i, start + lane] = code_LD[lane, i]
    return code_DN
