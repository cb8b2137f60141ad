"""What a candidate's chance in a slot is made of, for people to read: the walk's arithmetic as its definition reads.

Shape letters: K slots, N candidates, D embedding width.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from policy.diversity import LEAST_RESIDUAL


@dataclass(frozen=True, slots=True)
class Terms:
    """Summands of the adjusted utility, from which a slot is drawn by a softmax over the feasible candidates."""

    utility_N: NDArray[np.float64]
    freshness_N: NDArray[np.float64]
    rules_N: NDArray[np.float64]
    """What rules boost and bury."""
    diversity_KN: NDArray[np.float64]
    """Against the slots before."""

    @property
    def adjusted_KN(self) -> NDArray[np.float64]:
        return self.utility_N + self.freshness_N + self.rules_N + self.diversity_KN


def nearness(vector_ND: NDArray[np.floating], index_K: NDArray[np.int64]) -> NDArray[np.float64]:
    """Largest cosine of every candidate to the slots before k, (K, N); 0 for the first slot.

    The second term of maximal marginal relevance: Carbonell and Goldstein, SIGIR 1998.

    Args:
        index_K: the slate, as positions among the candidates.
    """
    unit_ND = _unit(vector_ND)
    nearest_KN = np.zeros((len(index_K), len(vector_ND)))
    if len(index_K) > 1:
        nearest_KN[1:] = np.maximum.accumulate(unit_ND[index_K[:-1]] @ unit_ND.T, axis=0)
    return nearest_KN


def novelty(vector_ND: NDArray[np.floating], index_K: NDArray[np.int64]) -> NDArray[np.float64]:
    """Log of the squared length of what is left of every candidate outside the span of the slots before k, (K, N).

    The gain of greedy inference for a determinantal point process: Chen, Zhang and Zhou, NeurIPS 2018.
    """
    unit_ND = _unit(vector_ND)
    left_ND = unit_ND.copy()
    log_KN = np.zeros((len(index_K), len(vector_ND)))
    for k, index in enumerate(index_K[:-1].tolist(), start=1):
        length = np.linalg.norm(left_ND[index])
        if length > 0:
            axis_D = left_ND[index] / length
            left_ND = left_ND - (left_ND @ axis_D)[:, None] * axis_D
        log_KN[k] = np.log(np.maximum((left_ND**2).sum(axis=1), LEAST_RESIDUAL))
    return log_KN


def _unit(vector_ND: NDArray[np.floating]) -> NDArray[np.float64]:
    wide_ND = vector_ND.astype(np.float64)
    length_N1 = np.linalg.norm(wide_ND, axis=1, keepdims=True)
    unit_ND: NDArray[np.float64] = np.divide(wide_ND, length_N1, out=np.zeros_like(wide_ND), where=length_N1 > 0)
    return unit_ND
