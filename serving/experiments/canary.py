"""Canaries: an arm that gets little traffic first, and loses it where it fails more, degrades more or is slower.

Four things are counted, each against the first arm of its experiment: requests that an arm `failed`, answers that
were `degraded`, answers that were `slow` (longer than twice the median of the first arm) and the `tail` (longer than
its 99th percentile). The two limits are set once, by the first answers of the first arm, which are not counted.

Whenever something of one kind happens, it happened to the canary with the chance p = r n / (r n + m) at most, where the
canary had n requests since the last look, the first arm m, and r is the ratio that is tolerated. If it happens r * psi
times as often, the chance is larger. The likelihood ratio of the two, averaged over a grid of psi, is no more than a
martingale while the first holds, so it ever reaches 1 / alpha with probability alpha at most, however often one looks
(Ville). This is the test of Lindon and Malek (NeurIPS 2022) for counts, one-sided, with a grid for a prior.
"""

import logging
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from protos.admin_pb2 import ArmStatus
from serving.experiments.assignment import CANARY
from serving.experiments.traffic import TrafficRouter
from serving.observability.telemetry import Histogram

_LOGGER = logging.getLogger("cascade.serving")

TOLERATED: Mapping[str, float] = {"failed": 1.0, "degraded": 1.0, "slow": 2.0, "tail": 2.0}
"""How many times as often it may happen to a canary as to the first arm."""
FALSE_ALARMS = 0.01
"""Share of harmless canaries that are taken back, at most, over all of the time and all that is counted."""
LEAST = 30
"""Requests of a canary before it is judged."""
FOR_LIMITS = 100
"""Answers of the first arm that set what slow is."""
_PSI = np.geomspace(1.25, 64, 24)


@dataclass(slots=True)
class Evidence:
    """That something happens to one of two more often than is tolerated."""

    tolerated: float
    log_ratio_G: np.ndarray = field(default_factory=lambda: np.zeros(len(_PSI)))

    def add(self, happened: int, happened_to_other: int, *, requests: int, requests_of_other: int) -> None:
        """What happened since the last look."""
        if requests and requests_of_other and happened + happened_to_other:
            odds = self.tolerated * requests / requests_of_other
            chance, larger_G = odds / (1 + odds), odds * _PSI / (1 + odds * _PSI)
            self.log_ratio_G += happened * np.log(larger_G / chance)
            self.log_ratio_G += happened_to_other * np.log((1 - larger_G) / (1 - chance))

    @property
    def value(self) -> float:
        """The e-value over what is needed: from 1 on the difference is shown."""
        most = self.log_ratio_G.max()
        mean = most + np.log(np.exp(self.log_ratio_G - most).mean())
        return float(np.exp(np.minimum(mean, 600.0)) * FALSE_ALARMS / len(TOLERATED))


@dataclass(slots=True)
class _Tally:
    """What one arm did."""

    tried: Counter[str] = field(default_factory=Counter)
    """How often each kind of thing could have happened."""
    happened: Counter[str] = field(default_factory=Counter)
    latency: Histogram = field(default_factory=Histogram)

    @property
    def requests(self) -> int:
        return self.tried["failed"]

    def count(self, **happened: bool) -> None:
        self.tried.update(happened.keys())
        self.happened.update(name for name, did in happened.items() if did)


@dataclass(slots=True)
class _Case:
    """An arm against the first of its experiment."""

    evidence: dict[str, Evidence] = field(default_factory=lambda: {k: Evidence(r) for k, r in TOLERATED.items()})
    seen: Counter[tuple[str, str, bool]] = field(default_factory=Counter)
    """Counts at the last look, by kind, what was counted, and whose."""

    def look(self, arm: _Tally, first: _Tally) -> None:
        for kind, evidence in self.evidence.items():
            now = Counter(
                {
                    (kind, what, own): getattr(tally, what)[kind]
                    for what in ("tried", "happened")
                    for own, tally in ((True, arm), (False, first))
                }
            )
            since = {key: count - self.seen[key] for key, count in now.items()}
            self.seen |= now
            evidence.add(
                since[kind, "happened", True],
                since[kind, "happened", False],
                requests=since[kind, "tried", True],
                requests_of_other=since[kind, "tried", False],
            )


class CanaryWatch:
    """Of the traffic in force. Counts begin anew when the traffic is set; each server goes by its own, and what one
    takes back is taken back for all.

    Args:
        router: who is told to take a canary back.
    """

    def __init__(self, router: TrafficRouter) -> None:
        self._router = router
        self._lock = threading.Lock()
        self._etag = ""
        self._tallies: dict[tuple[str, str], _Tally] = {}
        self._cases: dict[tuple[str, str], _Case] = {}
        self._limits_ms: dict[str, tuple[float, float]] = {}
        """By experiment, from where on an answer is slow and of the tail."""

    def observe(
        self, canaries: Mapping[str, str], *, failed: bool = False, degraded: bool = False, ms: float = 0.0
    ) -> None:
        """A request of these arms.

        Args:
            canaries: experiment to arm.
            failed: the arm had no answer, whoever answered instead.
        """
        with self._lock:
            self._renew()
            for experiment, arm in canaries.items():
                tally = self._tallies.setdefault((experiment, arm), _Tally())
                tally.count(failed=failed)
                if failed:
                    continue
                tally.count(degraded=degraded)
                tally.latency.observe([ms])
                if experiment in self._limits_ms:
                    slow_ms, tail_ms = self._limits_ms[experiment]
                    tally.count(slow=ms > slow_ms, tail=ms > tail_ms)
                elif tally.latency.count >= FOR_LIMITS and arm == self._first(experiment):
                    self._limits_ms[experiment] = 2 * tally.latency.quantile(0.5), tally.latency.quantile(0.99)

    def look(self, *, time_ms: int) -> None:
        """Judge every canary by what happened since the last look, and take back what is worse than it may be."""
        for experiment, arm, why in self._found_worse():
            reason = f"canary {experiment!r} took {arm!r} back: {why}"
            if self._router.take_back(experiment, arm, etag=self._etag, reason=reason, time_ms=time_ms):
                _LOGGER.error("%s", reason)

    def status(self) -> list[ArmStatus]:
        """How every arm of every canary fares."""
        with self._lock:
            self._renew()
            found = []
            for (experiment, arm), tally in sorted(self._tallies.items()):
                case = self._cases.get((experiment, arm))
                found.append(
                    ArmStatus(
                        experiment=experiment,
                        arm=arm,
                        requests=tally.requests,
                        failed=tally.happened["failed"],
                        degraded=tally.happened["degraded"],
                        p50_ms=tally.latency.quantile(0.5),
                        p99_ms=tally.latency.quantile(0.99),
                        evidence={kind: each.value for kind, each in case.evidence.items()} if case else {},
                    )
                )
            return found

    def _found_worse(self) -> list[tuple[str, str, str]]:
        """Experiment, arm and why."""
        worse = []
        with self._lock:
            self._renew()
            watched = [each for each in self._router.traffic.experiments if each.mode == CANARY]
            for experiment in watched:
                first = self._tallies.get((experiment.name, experiment.arms[0].name))
                for arm in experiment.arms[1:]:
                    tally = self._tallies.get((experiment.name, arm.name))
                    if first is None or tally is None or not arm.weight:
                        continue
                    case = self._cases.setdefault((experiment.name, arm.name), _Case())
                    case.look(tally, first)
                    kind = max(case.evidence, key=lambda each: case.evidence[each].value)
                    if tally.requests >= LEAST and case.evidence[kind].value >= 1:
                        worse.append((experiment.name, arm.name, _told(kind, tally, first)))
        return worse

    def _renew(self) -> None:
        if self._etag != self._router.traffic.etag:
            self._etag = self._router.traffic.etag
            self._tallies, self._cases, self._limits_ms = {}, {}, {}

    def _first(self, experiment: str) -> str:
        return next((each.arms[0].name for each in self._router.traffic.experiments if each.name == experiment), "")


def _told(kind: str, arm: _Tally, first: _Tally) -> str:
    each = (f"{tally.happened[kind]} of {tally.tried[kind]}" for tally in (arm, first))
    own, other = each
    medians = f"medians {arm.latency.quantile(0.5):.3g} and {first.latency.quantile(0.5):.3g} ms"
    return f"{kind} {own} requests, of the first arm {other}; {medians}"
