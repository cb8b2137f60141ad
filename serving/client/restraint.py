"""How a client holds back, so that its calls do not finish off a server that has too many already."""

import random
import threading
import time
from collections import deque
from collections.abc import Callable

_SLICES = 10
_FEW = 10
"""Calls that say too little about a server to drop one."""


class AdaptiveThrottle:
    """Drops a call before it is sent, as often as it would be refused anyway.

    With `requests` calls settled and `accepts` of them not refused in the last `window_s`, a call is dropped with
    probability max(0, (requests - multiple * accepts) / (requests + 1)): none while servers take at least one in
    `multiple`, and none of the first few. (Beyer et al., Site Reliability Engineering, chapter 21, "Client-Side
    Throttling".)

    Args:
        chance: draws from [0, 1).
    """

    def __init__(
        self,
        *,
        multiple: float = 2.0,
        window_s: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
        chance: Callable[[], float] = random.random,
    ) -> None:
        self._multiple = multiple
        self._slice_s = window_s / _SLICES
        self._clock = clock
        self._chance = chance
        self._lock = threading.Lock()
        self._slices: deque[tuple[float, list[int]]] = deque()
        """Of those before the present one: when it ended; requests and accepts."""
        self._until = 0.0
        self._present = [0, 0]
        self._past = [0, 0]

    def admit(self) -> bool:
        """Whether to send a call. Say afterwards whether it was `refused`; one that is not sent counts as that."""
        with self._lock:
            self._turn()
            requests, accepts = (a + b for a, b in zip(self._present, self._past, strict=True))
            excess = requests - self._multiple * accepts
            sent = requests < _FEW or self._chance() >= excess / (requests + 1)
            self._present[0] += not sent
            return sent

    def settled(self, *, refused: bool) -> None:
        """What a server made of a call that was sent."""
        with self._lock:
            self._turn()
            self._present[0] += 1
            self._present[1] += not refused

    def _turn(self) -> None:
        now = self._clock()
        if now < self._until:
            return
        self._slices.append((self._until, self._present))
        self._past = [a + b for a, b in zip(self._present, self._past, strict=True)]
        self._present = [0, 0]
        self._until = now + self._slice_s
        while self._slices and self._slices[0][0] <= now - (_SLICES - 1) * self._slice_s:
            _, gone = self._slices.popleft()
            self._past = [a - b for a, b in zip(self._past, gone, strict=True)]


class Budget:
    """Extra calls, at most a `share` of all: each call earns as much, an extra one costs 1, and `most` can be saved."""

    def __init__(self, share: float, *, most: float = 10.0) -> None:
        self._share = share
        self._most = most
        self._lock = threading.Lock()
        self._saved = 0.0

    def earn(self) -> None:
        with self._lock:
            self._saved = min(self._saved + self._share, self._most)

    def spend(self) -> bool:
        """Whether an extra call may be made, which is then counted as made."""
        with self._lock:
            if self._saved < 1:
                return False
            self._saved -= 1
            return True
