"""Events from server to server: what one is told counts in all, a moment later.

A Redis stream of bounded length, on one node of a cluster, appended to and read by a thread in the background: no
request waits for it, and where Redis is silent, each server goes by what it is told itself.
"""

import logging
import threading
import uuid
from typing import Any

import numpy as np
import redis

from candidate_gen.activity import EVENT
from serving.live import Live
from serving.state.redis_store import RedisStore, StateUnavailable

_KEY = "cascade:events"
_WHO, _WHAT = b"server", b"events"
_LOGGER = logging.getLogger("cascade.serving")


class EventExchange:
    """Passes events on between the servers of one Redis, from `start` until `close`.

    Args:
        every_s: how often.
        length: entries that the stream keeps, about; one holds the events of one call.
        caught_up: entries that a server which starts reads of what was there before.
    """

    def __init__(
        self, live: Live, url: str, *, every_s: float = 0.2, length: int = 20_000, caught_up: int = 5_000
    ) -> None:
        self._live = live
        self._every_s = every_s
        self._length = length
        self._caught_up = caught_up
        self._own = uuid.uuid4().hex.encode()
        self._last: bytes | None = None
        self._failing = False
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, name="events", daemon=True)
        self._store = RedisStore(url, timeout_s=1.0)

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()
        self._store.close()

    def _run(self) -> None:
        while not self._closing.wait(self._every_s):
            try:
                self.pass_on()
                self._failing = False
            except Exception as error:
                if not self._failing:
                    expected = isinstance(error, StateUnavailable)
                    _LOGGER.warning("events cannot be exchanged: %s", error, exc_info=None if expected else error)
                self._failing = True

    def pass_on(self) -> None:
        """Tell what this server was told since, hear what others were.

        Raises:
            StateUnavailable: what was not told yet is told next time, or twice where the answer was lost.
        """
        self._hear()
        outbox = self._live.outbox
        while outbox:
            own = outbox.popleft()
            try:
                self._ask("XADD", _KEY, "MAXLEN", "~", self._length, "*", _WHO, self._own, _WHAT, own)
            except StateUnavailable:
                outbox.appendleft(own)
                raise

    def _hear(self) -> None:
        if self._last is None:
            entries = self._ask("XREVRANGE", _KEY, "+", "-", "COUNT", self._caught_up)[::-1]
            self._last = b"0-0"
        else:
            heard = self._ask("XREAD", "COUNT", self._length, "STREAMS", _KEY, self._last)
            entries = heard[0][1] if heard else []
        for number, fields in entries:
            self._last = number
            entry = dict(zip(fields[::2], fields[1::2], strict=True))
            packed = entry.get(_WHAT, b"")
            if entry.get(_WHO) != self._own and len(packed) % EVENT.itemsize == 0:
                self._live.add(np.frombuffer(packed, EVENT))

    def _ask(self, *command: bytes | str | int) -> Any:
        (said,) = self._store.ask(_KEY, [command])
        if isinstance(said, redis.RedisError):
            raise StateUnavailable(f"redis: {said}")
        return said
