"""What becomes of one call of a client: dropped, sent, sent to a second server, sent again.

`Attempts.of` is a generator: it yields what is to be done and is told what came of it, so that the blocking client and
the asyncio client make the same decisions and neither holds one.
"""

import time
from collections.abc import Callable, Generator
from dataclasses import dataclass

from serving.client.replicas import Replicas
from serving.client.restraint import AdaptiveThrottle, Budget

HEDGED = frozenset(f"/cascade.v1.Recommender/{name}" for name in ("Recommend", "Search", "Rank"))
"""What may be asked of two servers at once: it changes nothing, and the log takes one impression per request id."""
OVERLOAD = ("RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED")
"""What says that a server has too many calls."""
_ELSEWHERE = ("UNAVAILABLE", "RESOURCE_EXHAUSTED")
_HEDGES = 0.05
_RETRIES = 0.1


class CallFailed(RuntimeError):
    """The server's answer was an error, or none came in time; `code` is the gRPC status name."""

    def __init__(self, method: str, code: str, message: str) -> None:
        super().__init__(f"{method}: {code}: {message}")
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class Call:
    """One request, on its way."""

    path: str
    wire: bytes
    deadline_s: float | None = None
    """None: the client's own."""
    admin: bool = False
    """Goes to the admin port."""

    @property
    def method(self) -> str:
        return self.path.rpartition("/")[2]

    @property
    def service(self) -> str:
        return self.path.split("/")[1]

    @property
    def is_load(self) -> bool:
        """Whether it is of the kind that can overload a server: neither an operator's nor a question of health."""
        return not self.admin and self.service.startswith("cascade.")


@dataclass(frozen=True, slots=True)
class Ask:
    """Send it to any server that is ready, wait for the reply, and tell it."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Send:
    """Send it to this replica and go on at once."""

    replica: int
    seconds: float
    """How long it may take."""


@dataclass(frozen=True, slots=True)
class Wait:
    """Tell the next reply of those sent; None where there is none after so many seconds."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Reply:
    """What a server said."""

    code: str
    wire: bytes = b""
    message: str = ""
    pushback_ms: int | None = None
    """How long the server wants to be left alone; below 0: not again."""
    replica: int = -1
    """Of those sent to."""


Plan = Generator[Ask | Send | Wait, Reply | None, bytes]


class Attempts:
    """What a client knows of its calls so far.

    Args:
        replicas: how many servers it can tell apart; below 2 nothing is hedged.
        throttle: makes the one of each service.
    """

    def __init__(
        self,
        *,
        replicas: int,
        throttle: Callable[[], AdaptiveThrottle] = AdaptiveThrottle,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._make_throttle = throttle
        self._throttles: dict[str, AdaptiveThrottle] = {}
        self._replicas = Replicas(replicas, clock=clock) if replicas > 1 else None
        self._hedges = Budget(_HEDGES)
        self._retries = Budget(_RETRIES)

    def of(self, call: Call, *, deadline_s: float) -> Plan:
        """What to do for a call; whatever was sent and has not replied when it ends is to be cancelled.

        Raises:
            CallFailed: for the last reply that was no answer, or for a call that was not sent.
        """
        if not call.is_load:
            reply = yield Ask(deadline_s)
            return _answer(call, reply)
        throttle = self._throttles.setdefault(call.service, self._make_throttle())
        if not throttle.admit():
            raise CallFailed(call.method, "RESOURCE_EXHAUSTED", "not sent, because servers refuse most calls now")
        started = self._clock()
        reply = None
        if self._replicas is not None and call.path in HEDGED:
            reply = yield from self._race(self._replicas, started + deadline_s)
        if reply is None:
            reply = yield Ask(max(started + deadline_s - self._clock(), 0.0))
        throttle.settled(refused=reply is not None and reply.code in OVERLOAD)
        return _answer(call, reply)

    def _race(self, replicas: Replicas, until: float) -> Generator[Send | Wait, Reply | None, Reply | None]:
        """The first answer of a replica, or of a second one where the first is late.

        None where it is to be asked of any that is ready: those tried could not answer, or there are none.
        """
        self._hedges.earn()
        self._retries.earn()
        first = replicas.pick()
        if first is None:
            return None
        started = self._clock()
        sent = {first: started}
        yield Send(first, until - started)
        while True:
            now = self._clock()
            patience_s = replicas.patience_s if len(sent) == 1 and first in sent else None
            late_at = until if patience_s is None else min(started + patience_s, until)
            reply = yield Wait(max(late_at - now, 0.0))
            now = self._clock()
            if reply is None:
                if now >= until:
                    for other, other_at in sent.items():
                        replicas.overtaken(other, now - other_at)
                    return Reply("DEADLINE_EXCEEDED", message="no server answered in time")
                second = replicas.pick(besides=first)
                if second is not None and self._hedges.spend():
                    sent[second] = now
                    yield Send(second, until - now)
                else:
                    first = -1  # nobody else: wait for the one that was asked
                continue
            asked_at = sent.pop(reply.replica)
            if reply.code in _ELSEWHERE:
                if reply.code == "UNAVAILABLE":
                    replicas.failed(reply.replica)
                if sent:
                    continue
                return (yield from self._again(reply, until))
            replicas.answered(reply.replica, now - asked_at)
            replicas.took(now - started)
            for other, other_at in sent.items():
                replicas.overtaken(other, now - other_at)
            return reply

    def _again(self, reply: Reply, until: float) -> Generator[Wait, Reply | None, Reply | None]:
        """None where the call may be made again, after the pause that the server wants."""
        overloaded = reply.code == "RESOURCE_EXHAUSTED"
        pause_s = (reply.pushback_ms or 0) / 1000
        unwanted = pause_s < 0 or (overloaded and reply.pushback_ms is None)
        if unwanted or self._clock() + pause_s >= until or (overloaded and not self._retries.spend()):
            return reply
        if pause_s:
            yield Wait(pause_s)
        return None


def _answer(call: Call, reply: Reply | None) -> bytes:
    if reply is None or reply.code != "OK":
        code, message = ("UNKNOWN", "no reply") if reply is None else (reply.code, reply.message)
        raise CallFailed(call.method, code, message)
    return reply.wire
