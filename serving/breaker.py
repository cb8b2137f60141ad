"""What does not answer is not asked for a while."""

import threading
import time
from collections.abc import Callable


class Breaker:
    """Stops asking what does not answer.

    After `failures` in a row it is open: calls fail at once. `cool_down_s` later one call is let through; its
    success closes the breaker, its failure opens it for as long again.
    """

    def __init__(self, *, failures: int = 5, cool_down_s: float = 1.0, clock: Callable[[], float] = time.monotonic):
        if failures < 1 or cool_down_s < 0:
            raise ValueError(f"a breaker needs failures >= 1 and cool_down_s >= 0, got {failures} and {cool_down_s}")
        self._limit = failures
        self._cool_down_s = cool_down_s
        self._clock = clock
        self._lock = threading.Lock()
        self._failed = 0
        self._closed_from = 0.0

    @property
    def closed(self) -> bool:
        """Whether every call is let through. Takes no lock."""
        return self._failed < self._limit

    @property
    def open(self) -> bool:
        """Whether a call made now would be refused."""
        with self._lock:
            return self._failed >= self._limit and self._clock() < self._closed_from

    def admit(self) -> bool:
        """Whether to make a call; if true, say afterwards whether it `succeeded` or `failed`."""
        if self.closed:
            return True
        with self._lock:
            now = self._clock()
            if now < self._closed_from:
                return False
            self._closed_from = now + self._cool_down_s
            return True

    def succeeded(self) -> None:
        if self._failed:
            with self._lock:
                self._failed = 0

    def failed(self) -> None:
        with self._lock:
            self._failed += 1
            if self._failed >= self._limit:
                self._closed_from = self._clock() + self._cool_down_s
