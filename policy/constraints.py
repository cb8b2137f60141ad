"""Which items a slot may hold, and what is given up when the answer is none. Shape letters: N candidates."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from policy.settings import PolicySettings

RELAXATION = ("fresh_quota", "max_per_creator", "max_per_category")
"""The order in which constraints are given up; each is given up together with those before it."""


@dataclass(frozen=True, slots=True)
class Feasible:
    """What one slot may hold."""

    mask_N: NDArray[np.bool_]
    fresh_only: bool
    """The fresh quota leaves this slot no choice."""
    relaxed: tuple[str, ...]
    """Constraints given up for this slot, a part of `RELAXATION` in its order."""


class SlateConstraints:
    """What may still be placed, given what the slate holds. One object serves one draw.

    - An item is placed once. This is never given up.
    - At most `max_per_category` items share a category, at most `max_per_creator` a creator. Identifier 0 is an
      unknown one: such items share nothing and no cap binds them.
    - From the slot on where the slots left are no more than the fresh items still owed, only fresh items may be
      placed. Owed are `fresh_quota` times `size`, rounded up.

    Where candidates remain but none may be placed, constraints are given up in the order of `RELAXATION` until one
    may be; those that set nothing are passed over.
    """

    def __init__(
        self,
        settings: PolicySettings,
        *,
        size: int,
        category_N: NDArray[np.int32],
        creator_N: NDArray[np.int32],
        fresh_N: NDArray[np.bool_],
    ) -> None:
        self._free_N = np.ones(len(fresh_N), np.bool_)
        self._category = _Cap(settings.max_per_category, category_N)
        self._creator = _Cap(settings.max_per_creator, creator_N)
        self._fresh_N = fresh_N
        self._slots = size
        # Rounded first: 0.28 * 25 is a little above 7, and 7 is meant.
        self._owed = math.ceil(round(settings.fresh_quota * size, 9))

    def feasible(self) -> Feasible:
        """What the next slot may hold; empty only where every candidate is placed."""
        in_category_N = self._free_N & self._category.open_N
        mask_N = in_category_N & self._creator.open_N
        relaxed: tuple[str, ...] = ()
        if 0 < self._owed >= self._slots:
            fresh_N = mask_N & self._fresh_N
            if fresh_N.any():
                return Feasible(fresh_N, True, ())
            relaxed += RELAXATION[:1]
        if mask_N.any() or not self._free_N.any():
            return Feasible(mask_N, False, relaxed)
        if self._creator.most:
            relaxed += RELAXATION[1:2]
            if in_category_N.any():
                return Feasible(in_category_N, False, relaxed)
        return Feasible(self._free_N.copy(), False, relaxed + RELAXATION[2:])

    def place(self, index: int) -> None:
        """Fill the next slot with a candidate, or with something that is none of them (-1)."""
        self._slots -= 1
        if index >= 0:
            self._free_N[index] = False
            self._category.place(index)
            self._creator.place(index)
            self._owed -= int(self._fresh_N[index])


class _Cap:
    """At most so many placed items may share an identifier; 0 for any number."""

    def __init__(self, most: int, id_N: NDArray[np.int32]) -> None:
        self.most = most
        self.open_N = np.ones(len(id_N), np.bool_)
        self._id_N = id_N
        self._placed: dict[int, int] = {}

    def place(self, index: int) -> None:
        shared = int(self._id_N[index])
        if self.most and shared:
            self._placed[shared] = self._placed.get(shared, 0) + 1
            if self._placed[shared] == self.most:
                self.open_N &= self._id_N != shared
