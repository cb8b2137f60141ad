"""What an item is worth before the slate around it counts. Shape letters: N candidates, A actions."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

DAY_MS = 86_400_000


def utility(
    probability_NA: NDArray[np.float32], *, action_names: Sequence[str], weights: Mapping[str, float]
) -> NDArray[np.float32]:
    """Expected worth of showing each candidate: the sum over actions of weight times probability.

    Summed in float64 and rounded once to the float32 that the impression log keeps, so that a draw can be
    repeated from the log.

    Raises:
        ValueError: for a weight of an action that the ranker does not predict, and for a candidate whose utility
            is not finite.
    """
    unknown = [action for action in weights if action not in action_names]
    if unknown:
        raise ValueError(f"weights name {unknown[0]!r}; the ranker predicts {', '.join(action_names)}")
    # Not a matrix product: its rounding depends on the number of rows, a candidate's utility must not.
    total_N = np.zeros(len(probability_NA))
    for action, probability_N in zip(action_names, probability_NA.T, strict=True):
        if weight := weights.get(action, 0.0):
            total_N += weight * probability_N.astype(np.float64)
    utility_N = total_N.astype(np.float32)
    if not np.isfinite(utility_N).all():
        worst = int(np.flatnonzero(~np.isfinite(utility_N))[0])
        raise ValueError(f"utility of candidate {worst} is {utility_N[worst]}; probabilities must be finite")
    return utility_N


def freshness(age_ms_N: NDArray[np.int64], half_life_days: float) -> NDArray[np.float64]:
    """2^(-age / half-life): 1 for an item published now (or later), one half after a half-life."""
    return np.asarray(np.exp2(-np.maximum(age_ms_N, 0) / (half_life_days * DAY_MS)), np.float64)
