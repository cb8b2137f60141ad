"""Answers by request id, so that a retry gets the same answer and is computed and logged once."""

import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass

from serving.admission import CallerGone, DeadlinePassed, Overloaded
from serving.codec import InvalidRequest


@dataclass(frozen=True, slots=True)
class Answered:
    """What a request id was answered with."""

    reply: bytes
    made_ms: int
    """As of when."""


def other_question(request_id: str) -> InvalidRequest:
    """The refusal of an id that stands for a request of other bytes."""
    return InvalidRequest("request_id", request_id, "an id that no other request has used")


class Replies:
    """The last answers of this process. Those of the others are in the user state."""

    def __init__(self, *, most: int) -> None:
        self._most = most
        self._lock = threading.Lock()
        self._replies: OrderedDict[str, tuple[bytes, Future[Answered]]] = OrderedDict()

    def answer(
        self, request_id: str, digest: bytes, until: float, make: Callable[[], Answered]
    ) -> tuple[Answered, bool]:
        """What `make` returns, or what it returned for this id before, and whether it is that.

        A call that finds another of the same id at work waits for it; where that one was refused, given up by its
        caller or too late, it is this one's turn. An answer that failed is not kept.

        Args:
            digest: stands for the request's bytes.
            until: `time.monotonic` of the caller's deadline.

        Raises:
            InvalidRequest: where the id was used by a request of other bytes.
            DeadlinePassed: where the other is not done in time.
        """
        future: Future[Answered] = Future()
        late = DeadlinePassed("the deadline passed while another call of this request id was at work")
        while (known := self._begun(request_id, digest, future)) is not None:
            try:
                return known.result(timeout=max(until - time.monotonic(), 0)), True
            except TimeoutError:
                raise late from None
            except (CallerGone, DeadlinePassed, Overloaded):
                if time.monotonic() >= until:
                    raise late from None
        try:
            answered = make()
        except BaseException as error:
            with self._lock:
                if self._replies.get(request_id) == (digest, future):
                    del self._replies[request_id]
            future.set_exception(error)
            raise
        future.set_result(answered)
        return answered, False

    def _begun(self, request_id: str, digest: bytes, future: Future[Answered]) -> Future[Answered] | None:
        """What another call of this id will answer; None where there is none, and `future` now stands for this one."""
        with self._lock:
            known = self._replies.get(request_id)
            if known is None:
                self._replies[request_id] = (digest, future)
                if len(self._replies) > self._most:
                    self._replies.popitem(last=False)
                return None
        if known[0] != digest:
            raise other_question(request_id)
        return known[1]
