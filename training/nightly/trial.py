"""A published generation is tried before it is put in force: first in shadow, where nobody sees it, then by few.

Where a server with traffic is named, it does both, as `docs/experiments.md` describes: shadows are read from its log,
and its canary is judged by the server itself, which takes it back where it is worse. Without one, the newest requests
of the log are asked again here, of the generation in force and of the new one in turn, and what was counted goes
through the same sequential test.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import partial
from math import nan
from pathlib import Path
from typing import TypeVar

import numpy as np

from index.generations import GenerationStore
from index.leases import Lease
from protos.admin_pb2 import TRAFFIC_MODE_CANARY, TRAFFIC_MODE_SHADOW, Arm, ArmStatus, Experiment, TrafficMode
from protos.impression_pb2 import Impression
from serving.canaries import FAULTS
from serving.client import CascadeClient
from serving.experiments.canary import TOLERATED, Evidence
from serving.log.catalog_log import FILE, CatalogLog
from training.gates import Gate, free_gate, least, most
from training.log.impression_log import read_impressions
from training.nightly.judges import Asked, Load, asked_of_both
from training.nightly.settings import TrialSettings

_NAME, _NOW, _NEW = "nightly", "now", "new"
_POLL_S = 1.0
_SHADOWED = 0.5
"""Share of the users whose requests are computed twice."""
_REFUSED_FROM = 1.0
"""Evidence by which a canary is taken back, see `serving.experiments.canary`."""
Tried = tuple[tuple[Gate, ...], Mapping[str, float]]
_Seen = TypeVar("_Seen")


@dataclass(frozen=True, slots=True)
class Candidate:
    """What is tried, beside what, with which requests."""

    generation: str
    incumbent: str
    store: GenerationStore
    load: Load
    logged: Sequence[Impression]
    """The newest."""


def shadow(candidate: Candidate, settings: TrialSettings) -> Tried:
    """The newest logged requests, answered by the new generation: whether any answer is worse than the logged one, and
    how many of the items shown are the same."""
    pairs = _pairs(candidate, settings)
    if not pairs:
        return (free_gate("shadow.faults"),), {"shadow.requests": 0.0}
    same = [len({*now.item_ids} & {*new.item_ids}) / max(1, len(now.item_ids)) for now, new in pairs]
    figures = {
        "shadow.requests": float(len(pairs)),
        "shadow.faults": float(np.mean([new.worse for _, new in pairs])),
        "shadow.same_items": float(np.mean(same)),
    }
    return (most("shadow.faults", figures, settings.faults),), figures


def canary(candidate: Candidate, settings: TrialSettings) -> Tried:
    """The same requests of both, through the test by which a server judges a canary."""
    pairs = _pairs(candidate, settings)
    if not pairs:
        return (free_gate("canary.evidence"),), {"canary.requests": 0.0}
    ms = [now.ms for now, _ in pairs]
    slow_ms, tail_ms = 2 * float(np.nanmedian(ms)), float(np.nanquantile(ms, 0.99))
    kinds: Mapping[str, Callable[[Asked], bool]] = {
        "failed": lambda asked: asked.failed,
        "degraded": lambda asked: asked.worse and not asked.failed,
        "slow": lambda asked: asked.ms > slow_ms,
        "tail": lambda asked: asked.ms > tail_ms,
    }
    figures = {"canary.requests": float(len(pairs))}
    for kind, happened in kinds.items():
        evidence = Evidence(TOLERATED[kind])
        of_now, of_new = (sum(happened(pair[side]) for pair in pairs) for side in (0, 1))
        evidence.add(of_new, of_now, requests=len(pairs), requests_of_other=len(pairs))
        figures[f"canary.{kind}"] = evidence.value
    figures["canary.evidence"] = max(figures[f"canary.{kind}"] for kind in kinds)
    return (_not_taken_back(figures["canary.evidence"]),), figures


def shadow_on_server(
    candidate: Candidate, settings: TrialSettings, *, log: Path, since_ms: int, job: Lease, poll_s: float = _POLL_S
) -> Tried:
    """Shadows of a server's traffic, from its log: enough of them in time, and none with a fault.

    Args:
        since_ms: from when on impressions may be of this trial.
    """
    with _experiment(candidate, settings, TRAFFIC_MODE_SHADOW, job=job):
        found = _waited(partial(_shadows, log, candidate.generation, since_ms), len, settings, job, poll_s)
    figures = {
        "shadow.requests": float(len(found)),
        "shadow.faults": float(np.mean([bool(each.degraded & FAULTS) for each in found])) if found else nan,
    }
    gates = least("shadow.requests", figures, settings.requests), most("shadow.faults", figures, settings.faults)
    return gates, figures


def canary_on_server(candidate: Candidate, settings: TrialSettings, *, job: Lease, poll_s: float = _POLL_S) -> Tried:
    """A share of a server's users, until it has answered enough requests or the server has taken it back."""
    with _experiment(candidate, settings, TRAFFIC_MODE_CANARY, job=job) as client:

        def fares() -> ArmStatus:
            traffic = client.traffic()
            mine = next((each for each in traffic.experiments if each.name == _NAME), None)
            status = next((each for each in traffic.arms if (each.experiment, each.arm) == (_NAME, _NEW)), ArmStatus())
            if mine is None or not mine.arms[1].weight:
                status.evidence["taken back"] = _REFUSED_FROM
                status.requests = max(status.requests, settings.requests)
            return status

        status = _waited(fares, lambda each: each.requests, settings, job, poll_s)
    figures = {
        "canary.requests": float(status.requests),
        "canary.evidence": max(status.evidence.values(), default=0.0),
        "canary.p50_ms": status.p50_ms,
        "canary.p99_ms": status.p99_ms,
    }
    return (least("canary.requests", figures, settings.requests), _not_taken_back(figures["canary.evidence"])), figures


def _not_taken_back(evidence: float) -> Gate:
    return Gate("canary.evidence", evidence, f"< {_REFUSED_FROM:g}", evidence < _REFUSED_FROM)


def _pairs(candidate: Candidate, settings: TrialSettings) -> list[tuple[Asked, Asked]]:
    newest = candidate.logged[-settings.requests :]
    before, after = (candidate.load(each) for each in (candidate.incumbent, candidate.generation))
    with closing(CatalogLog(candidate.store.root / FILE)) as catalog:
        return asked_of_both(newest, before, after, catalog)


def _shadows(log: Path, generation: str, since_ms: int) -> list[Impression]:
    logged = read_impressions(log, since_ms=since_ms)
    return [each for each in logged if each.shadow_of and each.generation == generation]


def _waited(
    look: Callable[[], _Seen], count: Callable[[_Seen], int], settings: TrialSettings, job: Lease, poll_s: float
) -> _Seen:
    """What is seen once there are enough requests, or time is up."""
    until_s = time.monotonic() + settings.wait_s
    while True:
        job.check()
        seen = look()
        if count(seen) >= settings.requests or time.monotonic() >= until_s:
            return seen
        time.sleep(poll_s)


@contextmanager
def _experiment(
    candidate: Candidate, settings: TrialSettings, mode: TrafficMode, *, job: Lease
) -> Iterator[CascadeClient]:
    """The experiment for the block, beside those that are in force.

    Users without an id are in no arm.
    """
    share = settings.share if mode == TRAFFIC_MODE_CANARY else _SHADOWED
    arms = [Arm(name=_NOW, weight=1 - share), Arm(name=_NEW, weight=share, generation=candidate.generation)]
    asked = Experiment(name=_NAME, mode=mode, arms=arms, unit="user_id")
    assert settings.server is not None
    with CascadeClient(settings.server, admin_target=settings.server) as client:
        job.check()
        _set(client, [asked], "tries a generation")
        try:
            yield client
        finally:
            job.check()  # or the experiment is the heir's
            _set(client, [], "the trial is over")


def _set(client: CascadeClient, ours: list[Experiment], reason: str) -> None:
    now = client.traffic()
    others = [each for each in now.experiments if each.name != _NAME]
    client.set_traffic([*others, *ours], etag=now.etag, reason=f"cascade nightly {reason}")
