"""Events from server to server: what one is told counts in all, a moment later.

A Redis stream of bounded length, appended to and read by a thread in the background: no request waits for it, and
where Redis is silent, each server goes by what it is told itself.
"""

import logging
import threading
import uuid
from typing import Any, cast

import numpy as np
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from candidate_gen.activity import EVENT
from serving.live import Live

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
        self._client = redis.Redis.from_url(
            url, socket_timeout=1.0, socket_connect_timeout=1.0, retry=Retry(NoBackoff(), 0), protocol=2
        )

    def start(self) -> None:
        self._thread.start()

    def close(self) -> None:
        self._closing.set()
        if self._thread.is_alive():
            self._thread.join()
        self._client.close()

    def _run(self) -> None:
        while not self._closing.wait(self._every_s):
            try:
                self.pass_on()
                self._failing = False
            except Exception as error:
                if not self._failing:
                    expected = isinstance(error, redis.RedisError | OSError)
                    _LOGGER.warning("events cannot be exchanged: %s", error, exc_info=None if expected else error)
                self._failing = True

    def pass_on(self) -> None:
        """Tell what this server was told since, hear what others were.

        Raises:
            RedisError, OSError: what was not told yet is told next time, or twice where the answer was lost.
        """
        self._hear()
        outbox = self._live.outbox
        while outbox:
            own = outbox.popleft()
            try:
                self._client.xadd(_KEY, {_WHO: self._own, _WHAT: own}, maxlen=self._length, approximate=True)
            except (redis.RedisError, OSError):
                outbox.appendleft(own)
                raise

    def _hear(self) -> None:
        entries: list[tuple[bytes, dict[bytes, bytes]]]
        if self._last is None:
            entries = cast(Any, self._client.xrevrange(_KEY, count=self._caught_up))[::-1]
            self._last = b"0-0"
        else:
            heard = cast(Any, self._client.xread({_KEY: self._last}, count=self._length))
            entries = heard[0][1] if heard else []
        for number, entry in entries:
            self._last = number
            packed = entry.get(_WHAT, b"")
            if entry.get(_WHO) != self._own and len(packed) % EVENT.itemsize == 0:
                self._live.add(np.frombuffer(packed, EVENT))
