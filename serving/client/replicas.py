"""Which of several servers gets the next call, and how long it is given before another one is asked too."""

import threading
import time
from collections import deque
from collections.abc import Callable

_RECENT = 256
"""Calls whose times tell how long one takes."""
_ENOUGH = 32
"""Calls before their times tell anything; also, after so many the quantile is taken anew."""
_QUANTILE = 0.95
_WEIGHT = 0.2
"""Of the last call in the mean time of a replica."""
_SLOWER = 2.0
_SLACK_S = 0.002
"""A replica is slow whose mean time is above `_SLOWER` times the fastest one's, and this."""
_TRIED_EVERY = 128
"""Calls between two that a slow replica gets all the same: so it is noticed that it is well again."""
_REST_S = 1.0
"""How long a replica that failed gets no calls."""


class Replicas:
    """Turns of round robin, past those that failed just now and those that are slow."""

    def __init__(self, count: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._mean_s = [0.0] * count
        """0 where nothing is known."""
        self._back_at = [0.0] * count
        self._calls = 0
        self._recent_s: deque[float] = deque(maxlen=_RECENT)
        self._until_quantile = _ENOUGH
        self._patience_s: float | None = None

    @property
    def patience_s(self) -> float | None:
        """The 95th percentile of recent calls: who takes longer is late. None while too little is known."""
        return self._patience_s

    def pick(self, *, besides: int | None = None) -> int | None:
        """Whose turn it is; None where nobody is left.

        Args:
            besides: who is being asked already. A call that goes besides takes nobody's turn.
        """
        with self._lock:
            now = self._clock()
            count = len(self._mean_s)
            if besides is None:
                self._calls += 1
            turn = self._calls % count if besides is None else besides + 1
            well = [
                each
                for each in ((turn + step) % count for step in range(count))
                if each != besides and self._back_at[each] <= now
            ]
            if not well:
                return None
            fast_s = _SLOWER * min(self._mean_s[each] for each in well) + _SLACK_S
            anybody = besides is None and self._calls % _TRIED_EVERY < count
            return next(each for each in well if anybody or self._mean_s[each] <= fast_s)

    def answered(self, replica: int, seconds: float) -> None:
        """A replica took so long for an answer."""
        with self._lock:
            self._learn(replica, seconds)

    def overtaken(self, replica: int, seconds: float) -> None:
        """A replica had not answered after so long, when another one had."""
        with self._lock:
            if seconds > self._mean_s[replica]:
                self._learn(replica, seconds)

    def failed(self, replica: int) -> None:
        """A replica cannot be reached, or says that it cannot answer."""
        with self._lock:
            self._back_at[replica] = self._clock() + _REST_S

    def took(self, seconds: float) -> None:
        """A call, whoever answered it, took so long."""
        with self._lock:
            self._recent_s.append(seconds)
            self._until_quantile -= 1
            if not self._until_quantile:
                self._until_quantile = _ENOUGH
                self._patience_s = sorted(self._recent_s)[int(_QUANTILE * len(self._recent_s))]

    def _learn(self, replica: int, seconds: float) -> None:
        mean_s = self._mean_s[replica]
        self._mean_s[replica] = mean_s + _WEIGHT * (seconds - mean_s) if mean_s else seconds
