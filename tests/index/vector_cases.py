"""Unit vectors around a few centres, as towers make them. Shape letters: C centres, I rows, D width."""

import numpy as np
from numpy.typing import NDArray

D = 16


def clustered(rows: int, seed: int) -> NDArray[np.float32]:
    """Around the same 20 centres for every seed."""
    centre_CD = np.random.default_rng(99).standard_normal((20, D))
    generator = np.random.default_rng(seed)
    vector_ID = centre_CD[generator.integers(0, 20, rows)] + 0.5 * generator.standard_normal((rows, D))
    return np.asarray(vector_ID / np.linalg.norm(vector_ID, axis=1, keepdims=True), np.float32)
