"""Vectors that no query should find. Shape letters: D embedding width, I rows, Q quarantined rows."""

import math

import numpy as np
from numpy.typing import NDArray

from index.lengths import norms

POISON_SHARE = 0.001
"""A build with a larger share of unusable vectors is refused. Below 1,000 rows a single one is too many."""
HUGE = 100.0
"""A vector this many times longer than the median one would answer every query."""


def quarantined(vector_ID: NDArray[np.float32]) -> NDArray[np.int64]:
    """The `unusable` rows of a build.

    Raises:
        ValueError: where they are more than `POISON_SHARE`.
    """
    row_Q = unusable(vector_ID)
    if len(row_Q) > POISON_SHARE * len(vector_ID):
        raise ValueError(
            f"{len(row_Q)} of {len(vector_ID)} item vectors are NaN, infinite, zero or huge (the first is"
            f" row {row_Q[0]}); at most {POISON_SHARE:.1%} may be"
        )
    return row_Q


def unusable(vector_ID: NDArray[np.float32], *, typical_norm: float | None = None) -> NDArray[np.int64]:
    """Rows that no query should find, ascending: vectors that in half precision hold NaN or infinity (beyond 65504),
    are all zero, or are longer than `HUGE` times the typical one.

    Args:
        typical_norm: None or NaN takes the median of the vectors themselves.
    """
    norm_I = norms(vector_ID, np.float16)
    usable_I = np.isfinite(norm_I) & (norm_I > 0)
    if usable_I.any():
        if typical_norm is None or math.isnan(typical_norm):
            typical_norm = float(np.median(norm_I[usable_I]))
        usable_I &= norm_I <= HUGE * typical_norm
    return np.flatnonzero(~usable_I)
