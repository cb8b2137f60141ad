"""How much of the exact answer a search finds.

Shape letters: B queries, K results.
"""

import math
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Recall:
    """Mean recall@k over queries, with the interval that covers its expectation."""

    k: int
    value: float
    """NaN where no query has an answer."""
    low: float
    high: float
    queries: int
    """How many the mean is over; those without any exact answer are left out."""


def recall_at(
    found_row_BK: NDArray[np.int64],
    exact_score_BK: NDArray[np.float32],
    found_score_BK: NDArray[np.float32],
    *,
    tolerance: float = 1e-5,
    confidence: float = 0.95,
) -> Recall:
    """Tie-aware recall@k against an exact search.

    For query b with m_b = min(k, rows that exist) exact answers, the last of which scores t_b,

        recall_b = |{distinct found rows r: score_b(r) >= t_b - tolerance * max_j |exact_score_bj|}| / m_b

    so an item that ties with the last exact one counts whichever of the two the search named
    (Aumueller, Bernhardsson, Faithfull, "ANN-Benchmarks", Information Systems 2020).

    The interval is mean -+ z * deviation / sqrt(n + 1) of the recalls with one imaginary query added that found
    nothing (for `low`) or everything (for `high`), in the manner of Agresti and Coull: queries are the
    trials, since neighbours of one query are missed together, and a sample without a miss does not certify 1.

    Args:
        found_row_BK: rows that the search under test returned; -1 where it returned fewer than k.
        exact_score_BK: scores of the exact answer, best first; -inf where fewer than k rows exist.
        found_score_BK: the *exact* score of each found row (the index's own may be rounded); ignored at -1.

    Raises:
        ValueError: where the three shapes differ.
    """
    if not found_row_BK.shape == exact_score_BK.shape == found_score_BK.shape:
        raise ValueError(
            f"found rows {found_row_BK.shape}, exact scores {exact_score_BK.shape} and found scores"
            f" {found_score_BK.shape} must have one shape"
        )
    k = found_row_BK.shape[1]
    exists_BK = np.isfinite(exact_score_BK)
    exists_B = exists_BK.sum(1)
    asked_B = exists_B > 0
    n = int(asked_B.sum())
    if n == 0:
        return Recall(k=k, value=math.nan, low=math.nan, high=math.nan, queries=0)
    exact_BK = np.where(exists_BK, exact_score_BK, 0.0).astype(np.float64)[asked_B]
    found_BK, row_BK, m_B = found_score_BK[asked_B], found_row_BK[asked_B], exists_B[asked_B]
    last_B = exact_BK[np.arange(n), m_B - 1] - tolerance * np.abs(exact_BK).max(1)
    good_BK = (row_BK >= 0) & (found_BK >= last_B[:, None])
    sorted_BK = np.sort(np.where(good_BK, row_BK, -1), axis=1)
    distinct_BK = sorted_BK >= 0
    distinct_BK[:, 1:] &= sorted_BK[:, 1:] != sorted_BK[:, :-1]
    recall_B = np.minimum(distinct_BK.sum(1) / m_B, 1.0)
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    low_B, high_B = np.append(recall_B, 0.0), np.append(recall_B, 1.0)
    return Recall(
        k=k,
        value=float(recall_B.mean()),
        low=max(0.0, float(low_B.mean() - z * low_B.std(ddof=1) / math.sqrt(n + 1))),
        high=min(1.0, float(high_B.mean() + z * high_B.std(ddof=1) / math.sqrt(n + 1))),
        queries=n,
    )
