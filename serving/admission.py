"""Who may come in when more ask than can be answered in time.

So many calls run at once, so many wait for their turn, and the rest are refused at once, which costs little: without
a bound, twice the load that a server can carry leaves it answering nothing in time. Turns go round the tenants, so a
tenant that floods waits behind itself.
"""

import math
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Literal

import grpc

from protos.recommender_pb2 import PRIORITY_CRITICAL, PRIORITY_DEFAULT, PRIORITY_SHEDDABLE, PRIORITY_UNSPECIFIED

Why = Literal["full", "deadline", "displaced", "rate", "unread"]

_LEAST_PUSHBACK_MS = 10
_SHEDDABLE_SHARE = 0.25
"""Of the waiting room: where more wait, sheddable calls are refused."""
_SMOOTHING = 0.05
_MARGIN = 1.5
"""On what is expected: half of the calls take longer than usual, and a late answer is work for nothing."""
_READ_A_TURN = 0.25
"""Calls that are read and refused for each that had its turn."""
_READ_A_MIXED_TURN = 6.0
"""The same where callers differ: all up to seven times the capacity."""
_AT_HAND = 4
"""For each slot: where no more calls have been taken in, another is, so that none of the slots is idle."""
_READ_AT_ONCE = 64.0
"""More than that in a burst."""
_MIXED_S = 1.0
"""Callers differ for so long after one that was not like the one before."""
_TENANTS = 4096
"""Whose rates are remembered, those that asked last."""
_SAID: dict[Why, str] = {
    "full": "too many calls wait",
    "deadline": "the wait would be longer than the deadline",
    "displaced": "a call that matters more has taken the place",
    "rate": "the tenant asks more often than it may",
    "unread": "so many calls are refused that not all of them can be read",
}


class Overloaded(RuntimeError):
    """Refused, and not a bit of the work was done."""

    def __init__(self, why: Why, *, after_s: float) -> None:
        self.why = why
        self.retry_after_ms = max(_LEAST_PUSHBACK_MS, round(1000 * after_s))
        super().__init__(f"{_SAID[why]}; come back in {self.retry_after_ms} ms")

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What tells gRPC clients not to come back before."""
        return (("grpc-retry-pushback-ms", str(self.retry_after_ms)),)


class DeadlinePassed(RuntimeError):
    """The caller has stopped waiting."""


class CallerGone(RuntimeError):
    """The caller has hung up."""


@dataclass(slots=True, eq=False)
class _Ticket:
    """One call that waits. Whoever holds the admission's lock may decide it, once."""

    until: float
    tenant: str
    priority: int
    decided: threading.Lock = field(default_factory=threading.Lock)
    """Held until it is."""
    why_not: Why | None = None
    """Why it was refused; None where its turn has come."""

    def __post_init__(self) -> None:
        self.decided.acquire()

    def decide(self, why_not: Why | None = None) -> None:
        self.why_not = why_not
        self.decided.release()


class _Line:
    """The waiting calls of one tenant: those that matter more first, then in the order of their coming."""

    def __init__(self) -> None:
        self._by_priority: tuple[deque[_Ticket], ...] = tuple(deque() for _ in range(PRIORITY_CRITICAL + 1))

    def __len__(self) -> int:
        return sum(map(len, self._by_priority))

    def before(self, priority: int) -> int:
        """How many a newcomer would wait behind."""
        return sum(map(len, self._by_priority[priority:]))

    def join(self, ticket: _Ticket) -> None:
        self._by_priority[ticket.priority].append(ticket)

    def remove(self, ticket: _Ticket) -> None:
        self._by_priority[ticket.priority].remove(ticket)

    def first(self) -> _Ticket:
        return next(each for each in reversed(self._by_priority) if each).popleft()

    def last(self) -> _Ticket:
        """Who would be served last; it stays in line."""
        return next(each for each in self._by_priority if each)[-1]


@dataclass(slots=True)
class _Bucket:
    """What a tenant may still ask for now."""

    tokens: float
    at_s: float


@dataclass(frozen=True, slots=True)
class Turn:
    """One call's time."""

    context: grpc.ServicerContext
    until: float
    """`time.monotonic` at which the caller stops waiting."""

    @property
    def left_s(self) -> float:
        return self.until - time.monotonic()

    def proceed(self) -> None:
        """
        Raises:
            DeadlinePassed, CallerGone: nobody waits for the answer any more.
        """
        if self.left_s < 0:
            raise DeadlinePassed("the deadline passed while the slate was made")
        if not self.context.is_active():
            raise CallerGone("the caller hung up while the slate was made")


class Admission:
    """
    Args:
        running: calls at work at once.
        waiting: calls that may wait.
        tenant_per_s: calls a second that each tenant may make, on average over a second or longer; None for any number.
    """

    def __init__(
        self,
        *,
        running: int,
        waiting: int,
        tenant_per_s: float | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if running < 1 or waiting < 0:
            raise ValueError(f"running must be at least 1 and waiting at least 0, got {running} and {waiting}")
        if tenant_per_s is not None and tenant_per_s <= 0:
            raise ValueError(f"tenant_per_s must be positive, or None for any number, got {tenant_per_s}")
        self.places = running + waiting
        self._most_running = running
        self._most_waiting = waiting
        self._tenant_per_s = tenant_per_s
        self._clock = clock
        self._lock = threading.Lock()
        self._at_hand = 0
        """Calls taken in and not let out: being read, waiting, running, being refused."""
        self._running = 0
        self._waiting = 0
        self._lines: OrderedDict[str, _Line] = OrderedDict()
        """Of tenants with calls that wait; the first one's turn is next."""
        self._buckets: OrderedDict[str, _Bucket] = OrderedDict()
        self._held_s = 0.01
        self._readable = _READ_AT_ONCE
        """Calls that may still be read to be refused."""
        self._kind: tuple[str, int] = ("", PRIORITY_DEFAULT)
        self._mixed_until = -math.inf

    @property
    def inside(self) -> int:
        """Calls running or waiting now."""
        return self._running + self._waiting

    @property
    def unread(self) -> Overloaded | None:
        """Why the next call is to be refused whoever makes it, before a byte of it is read; None where it is not.

        To refuse a call for what it says costs a good part of what an answer does. So only so many are read to be
        refused for each that has its turn, and more where tenants and priorities make it matter which.
        """
        if self._has_time:
            return None
        return Overloaded("unread", after_s=self._waiting * self._held_s / self._most_running)

    def take_in(self) -> None:
        """Say that a call is going to be read; `let_out` is to be called for each."""
        with self._lock:
            self._at_hand += 1

    def let_out(self) -> None:
        """Say that a call has ended, whatever became of it."""
        with self._lock:
            self._at_hand -= 1

    def check(self, until: float, *, tenant: str = "", priority: int = PRIORITY_UNSPECIFIED) -> None:
        """Before any work is done for a call: whether the tenant's rate allows it, and whether there is a chance that
        it is answered in time.

        Raises:
            Overloaded: there is not, and `enter` would say so too.
        """
        if self._tenant_per_s is not None:
            with self._lock:
                self._charge(tenant, self._tenant_per_s)
        if self._waiting:
            with self._lock:
                self._displaced_by(until, tenant, priority or PRIORITY_DEFAULT)

    @contextmanager
    def enter(self, until: float, *, tenant: str = "", priority: int = PRIORITY_UNSPECIFIED) -> Iterator[None]:
        """A turn, for the length of the block.

        Args:
            until: `time.monotonic` of the caller's deadline.
            priority: one of `protos.recommender_pb2.Priority`.

        Raises:
            Overloaded: at once, where the turn would come too late or no place is left; later, where the wait has
                become too long or the place was taken by another call.
            DeadlinePassed: where the deadline passed before the turn came.
        """
        with self._lock:
            ticket = None
            if self._running < self._most_running and not self._waiting:
                self._running += 1
            else:
                ticket = self._queued(until, tenant, priority or PRIORITY_DEFAULT)
        if ticket is not None:
            self._wait(ticket)
        entered = self._clock()
        try:
            yield
        finally:
            self._leave(self._clock() - entered)

    @property
    def _has_time(self) -> bool:
        """To read one more. Those that are being read may all be refused, if callers are alike."""
        reading = 0 if self._clock() < self._mixed_until else self._at_hand - self.inside
        return self._readable >= 1 + reading or self._at_hand < _AT_HAND * self._most_running

    def _charge(self, tenant: str, per_s: float) -> None:
        now, most = self._clock(), max(per_s, 1.0)
        bucket = self._buckets.get(tenant)
        if bucket is None:
            bucket = self._buckets[tenant] = _Bucket(most, now)
            if len(self._buckets) > _TENANTS:
                self._buckets.popitem(last=False)
        self._buckets.move_to_end(tenant)
        bucket.tokens = min(most, bucket.tokens + (now - bucket.at_s) * per_s)
        bucket.at_s = now
        if bucket.tokens < 1:
            raise Overloaded("rate", after_s=(1 - bucket.tokens) / per_s)
        bucket.tokens -= 1

    def _queued(self, until: float, tenant: str, priority: int) -> _Ticket:
        displaced = self._displaced_by(until, tenant, priority)
        if displaced is not None:
            self._remove(displaced)
            displaced.decide("displaced")
        ticket = _Ticket(until, tenant, priority)
        self._lines.setdefault(tenant, _Line()).join(ticket)
        self._waiting += 1
        return ticket

    def _displaced_by(self, until: float, tenant: str, priority: int) -> _Ticket | None:
        """Who must give way to a newcomer; None where there is room.

        That is the last of the longest line, so that nobody is kept out by another tenant's flood; where the
        newcomer's own line is as long, the last of its own, if that matters less.
        """
        if (tenant, priority) != self._kind:
            self._kind, self._mixed_until = (tenant, priority), self._clock() + _MIXED_S
        line = self._lines.get(tenant)
        ahead = line.before(priority) if line else 0
        ahead += sum(min(len(each), ahead + 1) for name, each in self._lines.items() if name != tenant)
        wait_s = (ahead + 1) * self._held_s / self._most_running
        if self._clock() + _MARGIN * (wait_s + self._held_s) > until:
            raise self._refused("deadline", wait_s)
        if priority == PRIORITY_SHEDDABLE and self._waiting >= _SHEDDABLE_SHARE * self._most_waiting:
            raise self._full()
        if self._waiting < self._most_waiting:
            return None
        longest = max(self._lines.values(), key=len, default=None)
        if longest is not None and len(longest) > 1 + (len(line) if line else 0):
            return longest.last()
        last = line.last() if line else None
        if last is None or last.priority >= priority:
            raise self._full()
        return last

    def _full(self) -> Overloaded:
        return self._refused("full", self._waiting * self._held_s / self._most_running)

    def _refused(self, why: Why, after_s: float) -> Overloaded:
        self._readable = max(self._readable - 1, 0.0)
        return Overloaded(why, after_s=after_s)

    def _wait(self, ticket: _Ticket) -> None:
        if not ticket.decided.acquire(timeout=max(ticket.until - self._clock(), 0)):
            with self._lock:
                late = not ticket.decided.acquire(blocking=False)
                if late:
                    self._remove(ticket)
            if late:
                raise DeadlinePassed("the deadline passed while the call waited for its turn")
        if ticket.why_not is not None:
            raise Overloaded(ticket.why_not, after_s=self._waiting * self._held_s / self._most_running)

    def _leave(self, held_s: float) -> None:
        with self._lock:
            self._held_s += _SMOOTHING * (held_s - self._held_s)
            self._running -= 1
            more = _READ_A_MIXED_TURN if self._clock() < self._mixed_until else _READ_A_TURN
            self._readable = min(self._readable + more, _READ_AT_ONCE)
            while self._waiting and self._running < self._most_running:
                tenant, line = next(iter(self._lines.items()))
                ticket = line.first()
                self._waiting -= 1
                if len(line):
                    self._lines.move_to_end(tenant)
                else:
                    del self._lines[tenant]
                if self._clock() + _MARGIN * self._held_s > ticket.until:
                    ticket.decide("deadline")
                    continue
                self._running += 1
                ticket.decide()

    def _remove(self, ticket: _Ticket) -> None:
        line = self._lines[ticket.tenant]
        line.remove(ticket)
        self._waiting -= 1
        if not len(line):
            del self._lines[ticket.tenant]
