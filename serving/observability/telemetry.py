"""What a server has done so far, in bounded memory: latency histograms and counters.

A call is written down while it goes, by the one thread that answers it, and taken as a whole when it ends: one lock.
"""

import logging
import math
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Literal

import grpc
import numpy as np

from protos.impression_pb2 import Degraded
from serving.pipeline import Trace

Label = str | tuple[str, ...]
Family = Literal["call", "stage", "source"]

_EDGES_AN_OCTAVE = 15
_OCTAVES = 30
_EDGE_MS_E = 1e-3 * 2.0 ** (np.arange(_EDGES_AN_OCTAVE * _OCTAVES + 1) / _EDGES_AN_OCTAVE)
"""From a microsecond to 18 minutes, 4.7% apart; what is longer is counted behind them."""
_EXPOSED = range(4, 25)
"""Octaves whose counts are shown: 16 microseconds to 17 seconds."""
_TOGETHER = 128
"""Calls that wait to be counted at once, which costs half as much."""
_DEGRADED = [(bit, name) for name, bit in Degraded.items() if bit]
_LOGGER = logging.getLogger("cascade.serving")
_CALL: ContextVar["Call | None"] = ContextVar("call", default=None)


@dataclass(slots=True)
class Call:
    """One call of a method, from its first byte on; whoever learns something of it writes it here."""

    method: str
    context: grpc.ServicerContext | None = None
    started_ns: int = 0
    """Since the epoch."""
    ms: float = 0.0
    code: str = "OK"
    """Name of the gRPC status."""
    request_id: str = ""
    generation: str = ""
    trace: Trace | None = None
    """Of calls that made a slate."""


def current_call() -> Call:
    """The call that this thread answers; outside of any a new one, which nobody hears of."""
    return _CALL.get() or Call("")


@dataclass(frozen=True, slots=True)
class Reading:
    """How one thing stands at the moment."""

    name: str
    """In the form of Prometheus: with the unit, without `cascade_`."""
    value: float
    about: str
    label: tuple[str, str] | None = None
    """Name and value."""


@dataclass(frozen=True, slots=True)
class Latency:
    """One stage; quantiles are exact to 5%, 0 where nothing was observed."""

    stage: str
    count: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float


class Histogram:
    """Counts in buckets whose edges grow by 4.7%: about 4 kB, whatever it sees."""

    def __init__(self) -> None:
        self.sum_ms = 0.0
        self.max_ms = 0.0
        self._count_E = np.zeros(len(_EDGE_MS_E) + 1, np.int64)

    @property
    def count(self) -> int:
        return int(self._count_E.sum())

    def observe(self, ms_N: Sequence[float]) -> None:
        """At least one."""
        bucket_N = np.searchsorted(_EDGE_MS_E, ms_N)
        self._count_E += np.bincount(bucket_N, minlength=len(self._count_E))
        self.sum_ms += sum(ms_N)
        self.max_ms = max(self.max_ms, *ms_N)

    def quantile(self, share: float) -> float:
        """The smallest bucket edge that `share` of the observations stay within, at most the largest observation."""
        bucket = int(np.searchsorted(self._count_E.cumsum(), max(share * self.count, 1)))
        return min(float(_EDGE_MS_E[bucket]), self.max_ms) if bucket < len(_EDGE_MS_E) else self.max_ms

    def within(self) -> list[tuple[float, int]]:
        """Bounds in seconds, a power of two apart, the last infinite; and how many observations were at most that."""
        seen_E = self._count_E.cumsum()
        return [
            *((2.0**octave / 1e6, int(seen_E[octave * _EDGES_AN_OCTAVE])) for octave in _EXPOSED),
            (math.inf, int(seen_E[-1])),
        ]


class Telemetry:
    """Shared by all threads of a server."""

    def __init__(self) -> None:
        self.listeners: list[Callable[[Call], None]] = []
        """Told of every call when it has ended, by the thread that answered it."""
        self.readers: list[Callable[[], Iterable[Reading]]] = []
        """Asked by `readings`; readings of one name have the same kind of label."""
        self._lock = threading.Lock()
        self._histograms: dict[Family, dict[str, Histogram]] = {"call": {}, "stage": {}, "source": {}}
        self._counters: dict[str, dict[Label, int]] = {}
        self._ended: list[tuple[str, str, float, Trace | None]] = []

    def begin(self, call: Call) -> None:
        """It is this thread's current call, until `end`."""
        _CALL.set(call)
        self.add("calls", call.method)

    def end(self, call: Call) -> None:
        """Count it and, where it ended well, its time."""
        with self._lock:
            self._ended.append((call.method, call.code, call.ms, call.trace))
            if len(self._ended) >= _TOGETHER:
                self._take_in()
        for listener in self.listeners:
            try:
                listener(call)
            except Exception as error:  # the answer is made, whoever wants to hear of it
                _LOGGER.warning("a call that has ended cannot be told of: %s", error, exc_info=error)
        _CALL.set(None)

    def add(self, counter: str, label: Label, amount: int = 1) -> None:
        """Labels must come from a small fixed set: each is kept for ever."""
        with self._lock:
            self._add(counter, label, amount)

    def counts(self, counter: str) -> dict[str, int]:
        """By label, of a counter whose labels are single; empty where it was never added to."""
        with self._lock:
            self._take_in()
            return {label: n for label, n in self._counters.get(counter, {}).items() if isinstance(label, str)}

    def codes(self) -> dict[str, int]:
        """Calls that have ended, or failed before they reached a method, by name of the gRPC status."""
        found = Counter(self.counts("failed"))
        for label, calls in self.counters().get("handled", {}).items():
            found[label[-1] if isinstance(label, tuple) else label] += calls
        return dict(found)

    def histograms(self, family: Family) -> dict[str, tuple[list[tuple[float, int]], float]]:
        """By label: see `Histogram.within`; and the sum of all observations in seconds."""
        with self._lock:
            self._take_in()
            return {label: (each.within(), each.sum_ms / 1000) for label, each in self._histograms[family].items()}

    def counters(self) -> dict[str, dict[Label, int]]:
        """Every counter by label."""
        with self._lock:
            self._take_in()
            return {name: dict(labels) for name, labels in self._counters.items()}

    def readings(self) -> list[Reading]:
        """How things stand. What cannot be read now is missing, the rest is there."""
        found: list[Reading] = []
        for read in self.readers:
            try:
                found.extend(read())
            except Exception as error:
                _LOGGER.warning("how a part of the server stands cannot be read: %s", error)
        return found

    @property
    def at_work(self) -> int:
        """Calls that were begun and have not ended."""
        return sum(self.counts("calls").values()) - sum(self.counters().get("handled", {}).values())

    def latencies(self) -> list[Latency]:
        """Every stage in the order first seen, then every method in lower case."""
        with self._lock:
            self._take_in()
            named = {**self._histograms["stage"], **{m.lower(): each for m, each in self._histograms["call"].items()}}
            return [
                Latency(name, each.count, each.quantile(0.5), each.quantile(0.9), each.quantile(0.99), each.max_ms)
                for name, each in named.items()
            ]

    def _take_in(self) -> None:
        """Count what has ended. For whoever holds the lock."""
        seen: defaultdict[tuple[Family, str], list[float]] = defaultdict(list)
        for method, code, ms, trace in self._ended:
            self._add("handled", (method, code), 1)
            if code == "OK":
                seen["call", method].append(ms)
            if trace is not None:
                self._take_in_trace(trace, seen)
        self._ended.clear()
        for (family, label), ms_N in seen.items():
            self._histograms[family].setdefault(label, Histogram()).observe(ms_N)

    def _take_in_trace(self, trace: Trace, seen: Mapping[tuple[Family, str], list[float]]) -> None:
        for stage, ms in trace.stage_ms.items():
            seen["stage", stage].append(ms)
        for source, ms in trace.source_ms.items():
            seen["source", source].append(ms)
        for source, rows in trace.named.items():
            self._add("named", source, rows)
        for source, why in trace.skipped_sources.items():
            self._add("skipped", (source, why), 1)
        if trace.degraded:
            for bit, name in _DEGRADED:
                if trace.degraded & bit:
                    self._add("degraded", name, 1)
        for feature in trace.defaulted:
            self._add("defaulted", feature, 1)

    def _add(self, counter: str, label: Label, amount: int) -> None:
        labels = self._counters.setdefault(counter, {})
        labels[label] = labels.get(label, 0) + amount
