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
        self._embedding_ND = embedding_ND
        self._placed = False
        self.max_N: NDArray[np.float64] = np.zeros(len(embedding_ND))

    def place(self, index: int) -> None:
        """Add a candidate to the slate."""
        cosine_N = (self._embedding_ND @ self._embedding_ND[index]).astype(np.float64)
        self.max_N = np.maximum(self.max_N, cosine_N) if self._placed else cosine_N
        self._placed = True
