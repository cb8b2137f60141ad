"""What changes between two generations and is about a person, in Redis: all that a request needs in one round trip.

| key | holds | ends |
|---|---|---|
| `cascade:{user:<id>}:events` | packed rows: what the user did, last known first, at most `limit` | 30 days idle |
| `cascade:{user:<id>}:shown` | packed rows: what the user was shown, last first, bounded too | the window |
| `cascade:{user:<id>}:event:<event id>` | nothing: the event was counted | a day |
| `cascade:{user:<id>}:request:<request id>` | who answers this request, then its answer | 1 s, then 2 min |

What stands in braces decides in which slot of a cluster a key is, so that one node holds all of a user; what is about
nobody in particular has the event's or the request's id there. Every row and every value begins with its version;
one of another version, written by another release, is passed over and counted.

Shape letters: L history, X shown items.
"""

import logging
import struct
import threading
import time
import uuid
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import redis
from numpy.typing import NDArray

from serving.breaker import Breaker
from serving.state.redis_store import Batch, Command, RedisStore, StateUnavailable
from serving.state.replies import Answered, other_question

KEPT_EVENTS = 64
"""Of each user, the latest known."""
LEASE_S = 0.2
"""How long whoever claimed a request id may take before it has to ask whether the claim still stands."""

_EVENT = np.dtype([("version", "u1"), ("item_key", "<u8"), ("action_key", "<u4"), ("time_ms", "<i8")])
_SHOWN = np.dtype([("version", "u1"), ("item_key", "<u8"), ("time_ms", "<i8")])
_HEAD = struct.Struct("<B16sq")
"""Of an answer: version, digest of the question, when it was given. Of a claim too, with a token for an answer."""
_VERSION = 1
_VERSION_BYTE = bytes([_VERSION])
_CLAIM_MS = 1000
"""Of a claim: what it is longer than a lease is for the answer, which is kept by a thread that may be late."""
_EVENT_ID_MS = 86_700_000
"""A day and the five minutes that clocks may differ: an event that comes again later than that is late."""
_REPLY_S = 120
_MAX_REPLY_BYTES = 1 << 18
_MAX_WAITING = 10_000
_TOGETHER = 256

_CLAIM = """
local standing = redis.call('GET', KEYS[1])
if standing and standing ~= ARGV[1] then return standing end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return false
"""
_RELEASE = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end"
_PUSH = """
local new = {}
for i = 2, #KEYS do
  local first = redis.call('SET', KEYS[i], '', 'NX', 'PX', ARGV[1])
  new[i - 1] = first and 1 or 0
  if first and tonumber(ARGV[2]) > 0 then redis.call('LPUSH', KEYS[1], ARGV[i + 2]) end
end
redis.call('LTRIM', KEYS[1], 0, ARGV[2] - 1)
redis.call('EXPIRE', KEYS[1], ARGV[3])
return new
"""
_RESTORE = """
local held = {}
for _, row in ipairs(redis.call('LRANGE', KEYS[1], 0, -1)) do held[row] = true end
for i = 3, #ARGV do
  if not held[ARGV[i]] then redis.call('RPUSH', KEYS[1], ARGV[i]) end
end
redis.call('LTRIM', KEYS[1], 0, ARGV[1] - 1)
redis.call('EXPIRE', KEYS[1], ARGV[2])
"""
_LOGGER = logging.getLogger("cascade.serving")

History = tuple[NDArray[np.uint64], NDArray[np.uint32], NDArray[np.int64]]
"""Item keys (`key64`), action keys (CRC-32 of the name) and times of the latest events, last known first."""
NO_HISTORY: History = (np.empty(0, np.uint64), np.empty(0, np.uint32), np.empty(0, np.int64))
NO_KEYS = np.empty(0, np.uint64)


class UserEvent(NamedTuple):
    """What a user did, as the state keeps it."""

    event_id: str
    user_id: str
    item_key: int
    action_key: int
    time_ms: int

    @property
    def tag(self) -> str:
        """What all keys about it begin with."""
        return _of_user(self.user_id) if self.user_id else f"cascade:{{event:{self.event_id}}}"


@dataclass(frozen=True, slots=True)
class Claim:
    """That somebody answers a request id. Whoever holds it is the only one to answer and to log an impression of it."""

    request_id: str
    user_id: str
    digest: bytes
    """16 bytes that stand for the question: another one must not use the id."""
    token: bytes

    @classmethod
    def of(cls, request_id: str, user_id: str, digest: bytes) -> "Claim":
        return cls(request_id, user_id, digest, uuid.uuid4().bytes)

    @property
    def key(self) -> str:
        if not self.user_id:
            return f"cascade:{{request:{self.request_id}}}"
        return f"{_of_user(self.user_id)}:request:{self.request_id}"

    @property
    def command(self) -> Command:
        return ("EVAL", _CLAIM, 1, self.key, self.value, _CLAIM_MS)

    @property
    def value(self) -> bytes:
        """What stands at the key while this is held."""
        return _HEAD.pack(_VERSION, self.digest, 0) + self.token


class ClaimedElsewhere(RuntimeError):
    """Another process answers this request id now."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a request needs of the state."""

    user_id: str
    """Empty for nobody's."""
    since_ms: int = -(1 << 62)
    """What was done before is not to be known."""
    shown: int = 0
    """How many of the items last shown to look at."""
    shown_since_ms: int = 0
    claim: Claim | None = None
    """To be had for this request."""


@dataclass(frozen=True, slots=True)
class Recalled:
    """What the state knows as a request comes."""

    history: History = NO_HISTORY
    shown_key_X: NDArray[np.uint64] = field(default_factory=lambda: NO_KEYS)
    """What the user was shown in the window, last first, each once."""
    answered: Answered | None = None
    """Set where the request id was answered before: then there is nothing else here."""
    claimed: bool = False
    """Whether the claim is now held."""
    skipped: int = 0
    """Rows of another version."""
    refused: tuple[str, ...] = ()
    """What the store would not say, and why."""


class UserState:
    """What users did and were shown lately, and which request ids are answered.

    What need not be known before a request is answered is written by a thread of its own.

    Args:
        url: see `RedisStore`.
        timeout_s: see `RedisStore`.
        limit: events kept for each user.
        ttl_s: a user who does nothing for so long is forgotten.

    Raises:
        ValueError: where the address is not one of a Redis, or a bound is not positive.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout_s: float = 0.04,
        limit: int = KEPT_EVENTS,
        ttl_s: int = 30 * 86_400,
        breaker: Callable[[], Breaker] = Breaker,
    ) -> None:
        if min(timeout_s, limit, ttl_s) <= 0:
            raise ValueError(f"timeout_s, limit and ttl_s must be positive, got {timeout_s}, {limit} and {ttl_s}")
        self.limit = limit
        self._ttl_s = ttl_s
        self._store = RedisStore(url, timeout_s=timeout_s, breaker=breaker)
        self._waiting: deque[tuple[str, Batch]] = deque(maxlen=_MAX_WAITING)
        self._wake = threading.Event()
        self._writing = False
        self._closing = False
        self._writer = threading.Thread(target=self._write, name="state-writer", daemon=True)
        self._writer.start()

    def recall(self, wanted: Wanted) -> Recalled:
        """What a request wants of the state, in one round trip; in none where it wants nothing.

        Raises:
            ClaimedElsewhere: another process answers this request id now; its answer can soon be had the same way.
            InvalidRequest: the request id was used by a request of other bytes.
            StateUnavailable: no connection, no answer in time, or an answer that is none.
        """
        user, claim = _of_user(wanted.user_id), wanted.claim
        batch: list[Command] = [] if claim is None else [claim.command]
        if wanted.user_id:
            batch.append(("LRANGE", f"{user}:events", 0, self.limit - 1))
            if wanted.shown:
                batch.append(("LRANGE", f"{user}:shown", 0, wanted.shown - 1))
        if not batch:
            return Recalled()
        rows = self._store.ask(claim.key if claim else user, batch)
        standing = rows.pop(0) if claim is not None else None
        if claim is not None and isinstance(standing, bytes) and standing[:1] == _VERSION_BYTE:
            return Recalled(answered=_answered(standing, claim))
        refused = [each for each in rows if not isinstance(each, list)]
        if not isinstance(standing, bytes | None):
            refused.append(standing)
        event_L, old_events = _unpacked(rows[0] if rows else [], _EVENT)
        event_L = event_L[event_L["time_ms"] > wanted.since_ms]
        shown_X, old_shown = _unpacked(rows[1] if len(rows) > 1 else [], _SHOWN)
        key_X = shown_X["item_key"][shown_X["time_ms"] > wanted.shown_since_ms]
        return Recalled(
            history=(event_L["item_key"].copy(), event_L["action_key"].copy(), event_L["time_ms"].copy()),
            shown_key_X=key_X[np.sort(np.unique(key_X, return_index=True)[1])],
            claimed=claim is not None and standing is None,
            skipped=old_events + old_shown + isinstance(standing, bytes),
            refused=tuple(f"user state: {each}" for each in refused),
        )

    def renew(self, claim: Claim) -> None:
        """Hold a claim on, which is needed `LEASE_S` after it was made or renewed.

        Raises:
            ClaimedElsewhere: meanwhile another process has taken it.
            StateUnavailable: it is not known.
        """
        (standing,) = self._store.ask(claim.key, [claim.command])
        if isinstance(standing, redis.RedisError):
            raise StateUnavailable(f"user state: {standing}")
        if standing is not None:
            raise ClaimedElsewhere

    def release(self, claim: Claim) -> None:
        """Give a claim up, soon, where there will be no answer."""
        self._soon(claim.key, [("EVAL", _RELEASE, 1, claim.key, claim.value)])

    def answer(self, claim: Claim, answered: Answered) -> None:
        """Keep, soon and for two minutes, what a claimed request was answered with."""
        if len(answered.reply) <= _MAX_REPLY_BYTES:
            value = _HEAD.pack(_VERSION, claim.digest, answered.made_ms) + answered.reply
            self._soon(claim.key, [("SET", claim.key, value, "EX", _REPLY_S)])

    def show(self, user_id: str, item_key_K: Sequence[int], *, time_ms: int, most: int, ttl_s: int) -> None:
        """Note, soon, what a user was shown; the newest `most` are kept, for `ttl_s` after the last."""
        if user_id and len(item_key_K):
            key = f"{_of_user(user_id)}:shown"
            rows = np.array([(_VERSION, item_key, time_ms) for item_key in item_key_K[::-1]], _SHOWN)
            self._soon(key, [("LPUSH", key, *_split(rows)), ("LTRIM", key, 0, most - 1), ("EXPIRE", key, ttl_s)])

    def push(self, events: Sequence[UserEvent]) -> list[bool]:
        """Add events, the latest known last, one round trip for each node; and which of them were not yet counted.

        An event id counts once, whichever process is told of it; one of the anonymous user "" changes no history.

        Raises:
            StateUnavailable: it is not known which were added; to push all of them again is right.
        """
        own: dict[str, list[int]] = {}
        for n, event in enumerate(events):
            own.setdefault(event.tag, []).append(n)
        said = self._store.ask_all({tag: [self._pushing(tag, [events[n] for n in at])] for tag, at in own.items()})
        new = [False] * len(events)
        for tag, at in own.items():
            (flags,) = said.get(tag, ("no answer",))
            if not isinstance(flags, list):
                raise StateUnavailable(f"user state: {flags}")
            for n, flag in zip(at, flags, strict=True):
                new[n] = flag == 1
        return new

    def _pushing(self, tag: str, events: Sequence[UserEvent]) -> Command:
        """Of events of one user; of nobody's only the ids are kept."""
        ids = [f"{tag}:event:{event.event_id}" for event in events]
        rows = np.array([(_VERSION, *event[2:]) for event in events], _EVENT)
        limit = self.limit if events[0].user_id else 0
        return ("EVAL", _PUSH, 1 + len(ids), f"{tag}:events", *ids, _EVENT_ID_MS, limit, self._ttl_s, *_split(rows))

    def restore(self, user_id: str, events: Sequence[tuple[int, int, int]]) -> None:
        """Put events (item key, action key, time in ms), the latest known last, behind those that are there.

        Those that are there already stay where they are, so that to restore again changes nothing.

        Raises:
            StateUnavailable: it is not known whether they were added.
        """
        if user_id and events:
            rows = np.array([(_VERSION, *event) for event in events[: -self.limit - 1 : -1]], _EVENT)
            key = f"{_of_user(user_id)}:events"
            self._done(key, [("EVAL", _RESTORE, 1, key, self.limit, self._ttl_s, *_split(rows))])

    def forget(self, user_id: str) -> None:
        """Delete what a user did and was shown. What this process still had to write about the user comes first.

        Raises:
            StateUnavailable: it is not known whether it was deleted.
        """
        if user_id:
            self.flush()
            tag = _of_user(user_id)
            self._done(tag, [("DEL", f"{tag}:events", f"{tag}:shown")])

    @property
    def available(self) -> bool:
        """Whether every user's would be asked for now."""
        return self._store.available

    def ping(self) -> bool:
        """Whether the store answers now; asks it even while a breaker is open."""
        return self._store.ping()

    def flush(self, *, within_s: float = 1.0) -> None:
        """Wait until what is to be written soon is written or given up."""
        end = time.monotonic() + within_s
        while (self._waiting or self._writing) and time.monotonic() < end:
            time.sleep(0.001)

    def close(self) -> None:
        self.flush()
        self._closing = True
        self._wake.set()
        self._writer.join()
        self._store.close()

    def _done(self, key: str, batch: Batch) -> None:
        for each in self._store.ask(key, batch):
            if isinstance(each, redis.RedisError):
                raise StateUnavailable(f"user state: {each}")

    def _soon(self, key: str, batch: Batch) -> None:
        self._waiting.append((key, batch))
        self._wake.set()

    def _write(self) -> None:
        """What cannot be written is given up: it is worth less than the memory to keep it in."""
        while not self._closing:
            self._wake.wait()
            self._wake.clear()
            self._writing = True
            while self._waiting:
                batches: dict[str, Batch] = {}
                while self._waiting and len(batches) < _TOGETHER:
                    key, batch = self._waiting.popleft()
                    batches[key] = [*batches.get(key, ()), *batch]
                try:
                    self._store.ask_all(batches)
                except Exception:
                    _LOGGER.exception("what was shown and answered is not noted")
            self._writing = False


def _of_user(user_id: str) -> str:
    return f"cascade:{{user:{user_id}}}"


def _answered(standing: bytes, claim: Claim) -> Answered:
    """What stands where a claim was wanted."""
    _, digest, made_ms = _HEAD.unpack_from(standing)
    if digest != claim.digest:
        raise other_question(claim.request_id)
    if not made_ms:
        raise ClaimedElsewhere
    return Answered(standing[_HEAD.size :], made_ms)


def _split(rows: np.ndarray) -> list[bytes]:
    return [row.tobytes() for row in rows]


def _unpacked(rows: Any, dtype: np.dtype[Any]) -> tuple[np.ndarray, int]:
    """Rows of this version, and how many of another there are; none where the store did not say."""
    if not isinstance(rows, list):
        return np.empty(0, dtype), 0
    known = [row for row in rows if isinstance(row, bytes) and len(row) == dtype.itemsize and row[0] == _VERSION]
    return np.frombuffer(b"".join(known), dtype), len(rows) - len(known)
