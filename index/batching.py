"""Searches of many threads, done by one: those that wait together are one batch.

Shape letters: B queries, D embedding width, K results.
"""

from collections import deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future
from dataclasses import dataclass, field
from threading import Condition, Thread
from typing import Any, Generic, TypeAlias, TypeVar
from weakref import finalize

import numpy as np
from numpy.typing import NDArray

How = TypeVar("How", bound=Hashable)
Found: TypeAlias = tuple[NDArray[Any], NDArray[Any]]
"""Two arrays with a row for each query: their rows and scores, in the order of whoever searches."""


class Batcher(Generic[How]):
    """One thread that alone calls `search_batch`, as a GPU's resources demand; any number of threads may ask.

    A batch holds queries asked in the same way only (the same k), so no answer depends on who asked beside it.
    While one batch runs the next one gathers: under load batches fill by themselves, and a lone query does not wait.

    Args:
        search_batch: what it finds for queries of shape (B, D), and for how they were asked.
        most: queries in one batch; only a caller's own larger one is searched whole.
        wait_ms: how long a batch that is not full waits for more before it starts.
    """

    def __init__(
        self, search_batch: Callable[[NDArray[np.float32], How], Found], *, most: int = 256, wait_ms: float = 0.0
    ) -> None:
        if most < 1:
            raise ValueError(f"most is {most}, a batch holds at least 1 query")
        if not wait_ms >= 0:
            raise ValueError(f"wait_ms is {wait_ms}, it must not be negative")
        self._line: _Line[How] = _Line(most, wait_ms / 1000)
        self._thread = Thread(target=_serve, args=(self._line, search_batch), name="batcher", daemon=True)
        self._thread.start()
        # The thread knows the line alone: a batcher that nobody holds any more closes by itself.
        self._closed = finalize(self, self._line.close)

    def search(self, query_D: NDArray[np.float32], how: How) -> Found:
        """What is found for one query. Raises what the search raised, or as `search_batch`."""
        first_1K, second_1K = self.search_batch(query_D[None], how)
        return first_1K[0], second_1K[0]

    def search_batch(self, query_BD: NDArray[np.float32], how: How) -> Found:
        """The same for several queries at once, which are never split.

        Raises:
            RuntimeError: the batcher was closed before.
        """
        return self._line.join(query_BD, how).result()

    def close(self) -> None:
        """Take no more queries, answer those that wait, and return once the thread has ended."""
        self._closed()
        self._thread.join()


@dataclass(frozen=True, slots=True)
class _Asked(Generic[How]):
    query_BD: NDArray[np.float32]
    how: How
    found: "Future[Found]" = field(default_factory=Future)


class _Line(Generic[How]):
    """Who waits, first come first."""

    def __init__(self, most: int, wait_s: float) -> None:
        self._most, self._wait_s = most, wait_s
        self._waiting: deque[_Asked[How]] = deque()
        self._open = True
        self._changed = Condition()

    def join(self, query_BD: NDArray[np.float32], how: How) -> "Future[Found]":
        asked = _Asked(query_BD, how)
        with self._changed:
            if not self._open:
                raise RuntimeError("the batcher is closed")
            self._waiting.append(asked)
            self._changed.notify()
        return asked.found

    def batch(self) -> list[_Asked[How]]:
        """The first in line and those asked as it was, as many as fit; empty once closed and nobody waits."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or not self._open)
            if self._wait_s:
                self._changed.wait_for(lambda: not self._open or self._full(), self._wait_s)
            taken: list[_Asked[How]] = []
            left: deque[_Asked[How]] = deque()
            room = self._most
            for asked in self._waiting:
                if not taken or (asked.how == taken[0].how and len(asked.query_BD) <= room):
                    taken.append(asked)
                    room -= len(asked.query_BD)
                else:
                    left.append(asked)
            self._waiting = left
            return taken

    def close(self) -> None:
        with self._changed:
            self._open = False
            self._changed.notify()

    def _full(self) -> bool:
        how = self._waiting[0].how
        return sum(len(asked.query_BD) for asked in self._waiting if asked.how == how) >= self._most


def _serve(line: _Line[How], search_batch: Callable[[NDArray[np.float32], How], Found]) -> None:
    while batch := line.batch():
        try:
            first_BK, second_BK = search_batch(np.concatenate([asked.query_BD for asked in batch]), batch[0].how)
        except Exception as error:
            for asked in batch:
                asked.found.set_exception(error)
            continue
        start = 0
        for asked in batch:
            part = slice(start, start + len(asked.query_BD))
            asked.found.set_result((first_BK[part], second_BK[part]))
            start = part.stop
