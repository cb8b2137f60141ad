"""What the policy makes. Shape letters: K slots, N candidates."""

from dataclasses import dataclass, field
from enum import IntFlag

import numpy as np
from numpy.typing import NDArray


class SlotFlag(IntFlag):
    """Why a slot holds what it holds, beyond its utility."""

    NONE = 0
    EXPLORED = 1
    """Another feasible item has a larger adjusted utility."""
    FRESH_QUOTA = 2
    """A fresh item, drawn while only items that quotas still owed were feasible, the quota of fresh ones among them."""
    RELAXED = 4
    """Drawn after a constraint had to be given up; see `Slate.relaxed`."""
    PINNED = 8
    """Put there by a rule; its propensity is 1."""
    QUOTA = 16
    """Likewise of a category's minimum or of a rule."""


@dataclass(frozen=True, slots=True)
class Slate:
    """The ordered items of one response, with the exact probability of drawing them.

    `propensity_K[k]` is P(item in slot k | query, candidates, slots before k). The product over slots is the
    exact probability of the slate, because nothing reorders after the draw.
    """

    index_K: NDArray[np.int64]
    """Positions among the scored candidates."""
    utility_N: NDArray[np.float32]
    """Value of every candidate before diversity, freshness and constraints."""
    propensity_K: NDArray[np.float64]
    flag_K: NDArray[np.uint8]
    """`SlotFlag` bits."""
    relaxed: tuple[str, ...] = ()
    """Constraints given up because they starved the slate, in the order given up."""
    team_K: NDArray[np.uint8] = field(default_factory=lambda: np.empty(0, np.uint8))
    """Which of two policies drafted the slot, see `policy.interleaving`; empty where one drew them all."""

    def __len__(self) -> int:
        return len(self.index_K)

    @property
    def log_propensity(self) -> float:
        """Natural logarithm of the slate's joint probability."""
        return float(np.log(self.propensity_K).sum())


@dataclass(frozen=True, slots=True)
class Draw:
    """What a policy would have made of a slate that another drew, slot by slot, exactly.

    Row k of both is conditional on slots 0..k-1 holding what the given slate holds, whether or not this policy
    could have put it there.
    """

    propensity_K: NDArray[np.float64]
    """P(the given item in slot k); 0 where this policy could not have drawn it."""
    distribution_KN: NDArray[np.float64]
    """P(candidate n in slot k). Sums to 1 over the candidates; to 0 for slots that this policy leaves empty."""
    flag_K: NDArray[np.uint8]
    """`SlotFlag` bits as of its own draws."""
    relaxed: tuple[str, ...]
    """See `Slate`."""

    def __len__(self) -> int:
        return len(self.propensity_K)
