"""What the ranker makes. Shape letters: N candidates, A actions."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from candidate_gen.types import Candidates


@dataclass(frozen=True, slots=True)
class Scored:
    """Candidates with a calibrated probability for each action, and the feature rows the ranker saw.

    The rows are what the impression log keeps, byte for byte, and what the ranker is trained on.
    """

    candidates: Candidates
    action_names: tuple[str, ...]
    probability_NA: NDArray[np.float32]
    query_row: np.ndarray
    """One record of the feature table's query dtype, shape (1,)."""
    item_row_N: np.ndarray
    """Records of the item dtype."""
    pair_row_N: np.ndarray
    """Records of the pair dtype."""

    def __post_init__(self) -> None:
        shape = (len(self.candidates), len(self.action_names))
        if self.probability_NA.shape != shape:
            raise ValueError(f"probabilities {self.probability_NA.shape} do not fit {shape}")
        if not len(self.item_row_N) == len(self.pair_row_N) == len(self.candidates):
            raise ValueError(f"{len(self.item_row_N)} feature rows for {len(self.candidates)} candidates")

    def __len__(self) -> int:
        return len(self.candidates)

    def keep(self, kept_N: NDArray[np.bool_]) -> "Scored":
        """Those where `kept_N` is true, in the same order; no score changes, because none depends on another."""
        return Scored(
            self.candidates.keep(kept_N),
            self.action_names,
            self.probability_NA[kept_N],
            self.query_row,
            self.item_row_N[kept_N],
            self.pair_row_N[kept_N],
        )
