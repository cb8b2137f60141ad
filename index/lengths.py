"""Lengths of vectors, and vectors of length 1, of many rows without a second copy of them. Letters: I rows, D width."""

import numpy as np
from numpy.typing import NDArray

_CHUNK = 65_536


def norms(vector_ID: NDArray[np.float32], stored: type[np.floating] = np.float32) -> NDArray[np.float32]:
    """Lengths of the vectors as stored."""
    norm_I = np.empty(len(vector_ID), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, len(vector_ID), _CHUNK):
            part_ID = vector_ID[start : start + _CHUNK].astype(stored).astype(np.float32)
            norm_I[start : start + _CHUNK] = np.sqrt(np.einsum("id,id->i", part_ID, part_ID))
    return norm_I


def unit(vector_ID: NDArray[np.float32]) -> NDArray[np.float32]:
    """The vectors at length 1; zeros stay zeros. In double precision, where no square is lost."""
    unit_ID = np.empty_like(vector_ID)
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, len(vector_ID), _CHUNK):
            part_ID = vector_ID[start : start + _CHUNK].astype(np.float64)
            length_I = np.sqrt(np.einsum("id,id->i", part_ID, part_ID))
            unit_ID[start : start + _CHUNK] = part_ID / np.where(length_I > 0, length_I, 1.0)[:, None]
    return unit_ID
