"""What does not answer, or not in time, is not asked for a while.

Every part of a pipeline that may fail is watched. Once it has failed too often in a row it is left out, and while it
is, it is tried now and then on a thread of its own: no caller waits for a trial.
"""

import threading
import time
from collections.abc import Callable

_SMOOTHING = 0.2
_STALE_S = 1.0
"""Who was not asked for so long may have become quicker."""
_QUICK_S = 0.02
"""Who answers within that is not slow, however little time a caller had left."""


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


class Watch:
    """One part of a pipeline: whether it is to be asked, and for how long it is likely to be at work.

    Threads may share it; what they lose of each other's measurements does not matter.
    """

    def __init__(self, *, breaker: Breaker | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self.breaker = breaker or Breaker(clock=clock)
        self._clock = clock
        self._usual_s = 0.0
        self._seen_at = 0.0
        self._trying = threading.Lock()

    @property
    def closed(self) -> bool:
        """Whether it has not failed too often."""
        return self.breaker.closed

    def fits(self, left_s: float) -> bool:
        """Whether to ask it, with so much time for it."""
        return self._usual_s <= left_s and self.breaker.closed

    def answered(self, started: float, until: float) -> None:
        """It has answered now; that it was slow and later than `until` counts as a failure."""
        self._seen_at = now = self._clock()
        taken_s = now - started
        self._usual_s += _SMOOTHING * (taken_s - self._usual_s) if self._usual_s else taken_s
        if now <= until or taken_s <= _QUICK_S:
            self.breaker.succeeded()
        else:
            self.breaker.failed()

    def failed(self) -> None:
        self.breaker.failed()

    def try_again(self, call: Callable[[], object], *, within_s: float) -> None:
        """Where it was left out and it is time to look again: ask it, on a thread, and forget the answer.

        Only one trial is at work at a time, for as long as it hangs.
        """
        due = self._clock() > self._seen_at + _STALE_S if self.closed else self.breaker.admit()
        if not due or not self._trying.acquire(blocking=False):
            return

        def trial() -> None:
            started = self._clock()
            try:
                call()
            except Exception:
                self.failed()
            else:
                self._usual_s = 0.0  # what it took before it was left out says nothing any more
                self.answered(started, started + within_s)
            finally:
                self._trying.release()

        threading.Thread(target=trial, name="trial", daemon=True).start()


class Unwatched:
    """A part that is asked whatever it did before: the floor, and all of them where nobody waits."""

    closed = True

    def fits(self, left_s: float) -> bool:  # noqa: ARG002  # as Watch's
        return True

    def answered(self, started: float, until: float) -> None:
        pass

    def failed(self) -> None:
        pass

    def try_again(self, call: Callable[[], object], *, within_s: float) -> None:
        pass


UNWATCHED = Unwatched()
