"""How much of an item the slate already holds. Shape letters: N candidates, D embedding width."""

import numpy as np
from numpy.typing import NDArray


class SlateSimilarity:
    """Largest cosine similarity of each candidate to the items placed so far; 0 while there are none.

    The second term of maximal marginal relevance (Carbonell and Goldstein, SIGIR 1998, with utility for relevance),
    kept up with one matrix-vector product a slot. A candidate that points away from the whole slate has a negative
    similarity and gains by it, as in the original.
    """

    def __init__(self, embedding_ND: NDArray[np.float32]) -> None:
        length_N1 = np.linalg.norm(embedding_ND, axis=1, keepdims=True)
        self._unit_ND = np.divide(embedding_ND, length_N1, out=np.zeros_like(embedding_ND), where=length_N1 > 0)
        self._placed = False
        self.max_N: NDArray[np.float64] = np.zeros(len(embedding_ND))

    def place(self, index: int) -> None:
        """Add a candidate to the slate."""
        cosine_N = (self._unit_ND @ self._unit_ND[index]).astype(np.float64)
        self.max_N = np.maximum(self.max_N, cosine_N) if self._placed else cosine_N
        self._placed = True
