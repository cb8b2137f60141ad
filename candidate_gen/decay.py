"""Counts that fade, without touching them.

Counts are held in the scale of a past moment, the landmark: an event at time t adds 2^((t - landmark) / half-life),
which grows where the others would shrink (Cormode, Shkapenyuk, Srivastava and Xu, ICDE 2009, "Forward Decay"). So
counts only ever grow, and their order does not change with time.
"""

import numpy as np
from numpy.typing import NDArray

_REACH = 512
"""Half-lives behind the landmark after which it moves on; a float64 holds twice as many."""


class Decay:
    """The landmark, and the newest event.

    Args:
        half_life_s: after which an event counts half.
    """

    def __init__(self, half_life_s: float) -> None:
        if not half_life_s > 0:
            raise ValueError(f"half_life_s is {half_life_s}; it must be above 0")
        self._half_life_ms = half_life_s * 1000
        self._landmark_ms = self._newest_ms = 0

    def begin(self, time_ms: int) -> None:
        """With the first event."""
        self._landmark_ms = self._newest_ms = time_ms

    def reach(self, time_ms: int) -> float:
        """Know of an event; what all counts must be multiplied by before it is added, nearly always 1."""
        self._newest_ms = max(time_ms, self._newest_ms)
        if self._newest_ms - self._landmark_ms <= _REACH * self._half_life_ms:
            return 1.0
        worth = self.worth(self._newest_ms)
        self._landmark_ms = self._newest_ms
        return worth

    def weight(self, time_ms: int | NDArray[np.int64]) -> NDArray[np.float64]:
        """What an event at a time adds."""
        return np.exp2(np.subtract(time_ms, self._landmark_ms) / self._half_life_ms)

    def worth(self, time_ms: int) -> float:
        """Of a count of 1 at a time, or at that of the newest event if that is later."""
        return float(np.exp2((self._landmark_ms - max(time_ms, self._newest_ms)) / self._half_life_ms))
