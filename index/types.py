"""What the index makes. Shape letters: K results."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Hits:
    """Item rows found for one query, best first; rows are positions in the generation's item table.

    Never holds -1, a repeated row or a non-finite score. Shorter than asked for where fewer exist.
    """

    row_K: NDArray[np.int64]
    score_K: NDArray[np.float32]
    partial: bool = False
    """A part of the index did not answer: what it holds is missing."""

    def __post_init__(self) -> None:
        if self.row_K.shape != self.score_K.shape:
            raise ValueError(f"{len(self.row_K)} rows but {len(self.score_K)} scores")

    def __len__(self) -> int:
        return len(self.row_K)
