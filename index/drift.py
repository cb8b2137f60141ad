"""How far embeddings moved between two generations.

Shape letters: N items that both hold, S sampled items, D embedding width, K neighbours.
"""

import math
from dataclasses import dataclass

import faiss
import numpy as np
from numpy.typing import NDArray

_SAMPLE = 250


@dataclass(frozen=True, slots=True)
class Drift:
    """What moved, apart from a rotation of the whole space, which changes no inner product."""

    common: int
    """Items that both generations hold with a usable vector in each."""
    cosine: float
    """Mean over the common items after alignment; NaN where there are none, or the widths differ."""
    overlap: float
    """Mean share of the k nearest neighbours that stayed; NaN where there are fewer than two common items."""
    k: int


def drift(
    before_ND: NDArray[np.float32], after_ND: NDArray[np.float32], *, seed: int, k: int = 50, sample: int = _SAMPLE
) -> Drift:
    """Compare the vectors of the same items, row by row.

    Rows whose vector in either is zero or not finite are left out; the rest is scaled to length 1. With X and Y the
    vectors before and after and U S V^T the singular value decomposition of X^T Y, the rotation (or reflection)
    W = U V^T minimises ||X W - Y|| (Schoenemann, "A generalized solution of the orthogonal Procrustes problem",
    Psychometrika 1966), and

        cosine  = mean_i (x_i W) . y_i
        overlap = mean_s |nearest_k(x_s) & nearest_k(y_s)| / k

    where nearest_k are the other common items of largest inner product, for some items s (Hamilton, Leskovec,
    Jurafsky, "Cultural shift or linguistic drift?", EMNLP 2016). k is at most the number of other items.

    Args:
        seed: chooses the sampled items.

    Raises:
        ValueError: where the two do not have one row for each item.
    """
    if len(before_ND) != len(after_ND):
        raise ValueError(f"{len(before_ND)} vectors before and {len(after_ND)} after; each needs its counterpart")
    usable_N = _usable(before_ND) & _usable(after_ND)
    before, after = _unit(before_ND[usable_N]), _unit(after_ND[usable_N])
    count = len(before)
    cosine = overlap = math.nan
    if count and before.shape[1] == after.shape[1]:
        u, _, vt = np.linalg.svd(before.T.astype(np.float64) @ after)
        cosine = float(np.einsum("nd,nd->n", before @ (u @ vt).astype(np.float32), after).mean(dtype=np.float64))
    k = min(k, count - 1)
    if k > 0:
        row_S = np.random.default_rng(seed).choice(count, min(sample, count), replace=False)
        near_SK, then_SK = _nearest(before, row_S, k), _nearest(after, row_S, k)
        overlap = float(np.mean([len(np.intersect1d(a, b)) / k for a, b in zip(near_SK, then_SK, strict=True)]))
    return Drift(common=count, cosine=cosine, overlap=overlap, k=max(k, 0))


def _usable(vector_ND: NDArray[np.float32]) -> NDArray[np.bool_]:
    with np.errstate(over="ignore", invalid="ignore"):
        square_N = np.einsum("nd,nd->n", vector_ND, vector_ND)
    usable_N: NDArray[np.bool_] = np.isfinite(square_N) & (square_N > 0)
    return usable_N


def _unit(vector_ND: NDArray[np.float32]) -> NDArray[np.float32]:
    return np.ascontiguousarray(vector_ND / np.linalg.norm(vector_ND, axis=1, keepdims=True), np.float32)


def _nearest(vector_ND: NDArray[np.float32], row_S: NDArray[np.int64], k: int) -> list[NDArray[np.int64]]:
    """Of each sampled row the k other rows nearest to it."""
    _, near_SK = faiss.knn(vector_ND[row_S], vector_ND, k + 1, metric=faiss.METRIC_INNER_PRODUCT)
    return [near_K[near_K != row][:k] for near_K, row in zip(near_SK, row_S, strict=True)]
