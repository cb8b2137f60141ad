"""What a server has done so far, in bounded memory: latency histograms and counters."""

import math
import threading
from collections.abc import Mapping
from dataclasses import dataclass

_FLOOR_MS = 1e-3
_RATIO = 1.05
_BUCKETS = 2 + math.ceil(math.log(1e6 / _FLOOR_MS) / math.log(_RATIO))
"""Up to 1000 seconds; one more for what is longer."""


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
    """Counts in buckets whose edges grow by 5%: about 3 kB, whatever it sees."""

    def __init__(self) -> None:
        self.count = 0
        self.max_ms = 0.0
        self._bucket_counts = [0] * _BUCKETS

    def observe(self, ms: float) -> None:
        bucket = 0 if ms <= _FLOOR_MS else 1 + int(math.log(ms / _FLOOR_MS) / math.log(_RATIO))
        self._bucket_counts[min(bucket, _BUCKETS - 1)] += 1
        self.count += 1
        self.max_ms = max(self.max_ms, ms)

    def quantile(self, share: float) -> float:
        """The smallest bucket edge that `share` of the observations stay within, at most the largest observation."""
        wanted = share * self.count
        seen = 0
        for bucket, count in enumerate(self._bucket_counts):
            seen += count
            if count and seen >= wanted:
                return min(_FLOOR_MS * _RATIO**bucket, self.max_ms)
        return 0.0


class Telemetry:
    """Shared by all threads of a server."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._histograms: dict[str, Histogram] = {}
        self._counters: dict[str, dict[str, int]] = {}

    def observe(self, stage_ms: Mapping[str, float]) -> None:
        """Milliseconds by stage."""
        with self._lock:
            for stage, ms in stage_ms.items():
                if stage not in self._histograms:
                    self._histograms[stage] = Histogram()
                self._histograms[stage].observe(ms)

    def add(self, counter: str, label: str, amount: int = 1) -> None:
        """Labels must come from a small fixed set: each is kept for ever."""
        with self._lock:
            labels = self._counters.setdefault(counter, {})
            labels[label] = labels.get(label, 0) + amount

    def counts(self, counter: str) -> dict[str, int]:
        """By label; empty for a counter that was never added to."""
        with self._lock:
            return dict(self._counters.get(counter, {}))

    def latencies(self) -> list[Latency]:
        """Every stage in the order first seen."""
        with self._lock:
            return [
                Latency(stage, each.count, each.quantile(0.5), each.quantile(0.9), each.quantile(0.99), each.max_ms)
                for stage, each in self._histograms.items()
            ]
