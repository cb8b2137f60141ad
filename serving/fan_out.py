"""Asking several sources at once, each for as long as one is willing to wait.

A thread that waits for a source cannot be stopped, so a source that hangs keeps its thread. Therefore each source may
hold so many at most; where it does, it is not asked again until one of them comes back.
"""

import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from threading import BoundedSemaphore

from index.types import Hits

Call = Callable[[], Hits]
_EACH = 8


class FanOut:
    """Threads for the sources that are worth one.

    Args:
        names: of those sources.
        each: threads that one of them may hold.
    """

    def __init__(self, names: Iterable[str], *, each: int = _EACH) -> None:
        self._free = {name: BoundedSemaphore(each) for name in names}
        self._pool = ThreadPoolExecutor(max(1, each * len(self._free)), "source")

    def __contains__(self, name: str) -> bool:
        return name in self._free

    def begin(self, calls: Mapping[str, Call]) -> dict[str, Future[Hits] | None]:
        """Each call begun on a thread; None for a source that holds all of its threads."""
        return {name: self._begun(name, call) for name, call in calls.items()}

    def _begun(self, name: str, call: Call) -> Future[Hits] | None:
        free = self._free[name]
        if not free.acquire(blocking=False):
            return None
        future = self._pool.submit(call)
        future.add_done_callback(lambda _: free.release())
        return future


def result(future: Future[Hits] | None, until: float) -> Hits | None:
    """What the call returned, or None where it does not return by `time.monotonic() == until`.

    Raises:
        Exception: whatever the call raised.
    """
    if future is None:
        return None
    try:
        return future.result(timeout=max(until - time.monotonic(), 0) if until < float("inf") else None)
    except TimeoutError:
        if future.done():  # it came just now, or is the source's own
            return future.result()
        future.cancel()
        return None
