"""What the page shows, from what the server tells: plain values in the order in which they are read."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from policy.types import SlotFlag
from protos.admin_pb2 import Arm, ArmStatus, GetTrafficResponse, ListGenerationsResponse, TrafficMode
from protos.impression_pb2 import Degraded, Understood, Variation
from protos.recommender_pb2 import ExplainResponse, Explanation, ReasonKind
from training.reports.findings import utc

KNOBS = ("temperature", "epsilon", "diversity", "freshness_weight")
"""Settings of the policy that the page offers; others can be put into its address."""
_ALARM = 1.0
"""Evidence from which on a canary is taken back."""


@dataclass(frozen=True, slots=True)
class Line:
    """An item, shown or lost."""

    explanation: Explanation
    score: float
    """Sum of its terms; NaN where there are none."""
    why: tuple[str, ...]
    """Reasons and flags, in words."""
    moved: str
    """Where it stood in the slate beside it; empty where there is none."""


@dataclass(frozen=True, slots=True)
class Source:
    """How much a source contributed."""

    name: str
    named: int
    """Eligible candidates that it named."""
    quota: int
    shown: int
    """Of them in the slate."""


@dataclass(frozen=True, slots=True)
class Side:
    """One answer: what is served, or what was tried."""

    title: str
    told: ExplainResponse
    slate: tuple[Line, ...]
    lost: tuple[Line, ...]
    sources: tuple[Source, ...]
    removed: tuple[tuple[str, int], ...]
    """Filters with how many candidates each removed, most first."""
    degraded: tuple[str, ...]

    @property
    def actions(self) -> list[str]:
        return sorted({action for each in self.told.items for action in each.actions})


def sides(told: ExplainResponse, *, logged: bool) -> list[Side]:
    """What is served, and beside it what was tried.

    Args:
        logged: whether it was shown to somebody.
    """
    served = _side("As it was served" if logged else "As it is served now", told, beside=None)
    return [served, *(_side("What if", each, beside=served) for each in told.what_ifs)]


def _side(title: str, told: ExplainResponse, *, beside: Side | None) -> Side:
    stood = {line.explanation.item_id: line.explanation.position for line in beside.slate} if beside else None
    lines = [_line(each, stood) for each in told.items]
    shown = tuple(line for line in lines if line.explanation.position >= 0)
    trace, quotas = told.trace, told.settings.quotas
    return Side(
        title=title,
        told=told,
        slate=shown,
        lost=tuple(line for line in lines if line.explanation.position < 0),
        sources=tuple(
            Source(name, named, quotas.get(name, 0), sum(name in line.explanation.ranks for line in shown))
            for name, named in sorted(trace.retrieved.items(), key=lambda each: (-each[1], each[0]))
        ),
        removed=tuple(sorted(trace.removed.items(), key=lambda each: (-each[1], each[0]))),
        degraded=tuple(
            name.removeprefix("DEGRADED_").lower().replace("_", " ")
            for name, bit in Degraded.items()
            if told.impression.degraded & bit
        ),
    )


def _line(told: Explanation, stood: Mapping[str, int] | None) -> Line:
    reasons = [ReasonKind.Name(each.kind).removeprefix("REASON_").lower().replace("_", " ") for each in told.reasons]
    flags = [flag.name.lower().replace("_", " ") for flag in SlotFlag if told.flags & flag and flag.name]
    return Line(
        explanation=told,
        score=sum(told.terms.values()) if told.terms else math.nan,
        why=tuple(dict.fromkeys([*reasons, *flags])),
        moved="" if stood is None or told.position < 0 else _moved(told.position, stood.get(told.item_id)),
    )


def _moved(position: int, before: int | None) -> str:
    if before is None:
        return "new"
    return "same" if before == position else f"was {before + 1}"


def understanding(understood: Understood, text: str) -> list[tuple[str, str]]:
    """What was made of a typed query: name and words, only what there is to say."""
    meant = zip(
        (*understood.intent, *understood.creator),
        (*understood.probability, *understood.creator_probability),
        strict=True,
    )
    searched = understood.searched or text
    told = {
        "typed": text,
        "searched for": searched,
        "spelt right": understood.corrected if understood.corrected != searched else "",
        "also for": ", ".join(understood.expanded),
        "only": understood.filter,
        "given up, nothing is": understood.dropped_filter,
        "means": ", ".join(f"{name} {chance:.0%}" for name, chance in meant),
    }
    return [(name, words) for name, words in told.items() if words]


def knobs(settings: Variation) -> list[tuple[str, str, float]]:
    """What can be tried: name in the address, name for people, value as it is."""
    return [
        *((f"policy.{name}", name.replace("_", " "), settings.policy[name]) for name in KNOBS),
        *((f"weights.{name}", f"weight of {name}", value) for name, value in sorted(settings.action_weights.items())),
        *((f"quotas.{name}", f"most from {name}", float(n)) for name, n in sorted(settings.quotas.items())),
    ]


def metrics(listed: ListGenerationsResponse, *, most: int = 4) -> tuple[list[str], list[tuple[str, list[float]]]]:
    """What training measured of the newest generations, newest first: their ids, and every metric of each; NaN where
    one does not have it."""
    newest = list(listed.generations)[: -most - 1 : -1]
    names = sorted({name for each in newest for name in each.metrics})
    return [each.id for each in newest], [(n, [each.metrics.get(n, math.nan) for each in newest]) for n in names]


@dataclass(frozen=True, slots=True)
class ArmLine:
    """An arm of an experiment in force."""

    name: str
    share: float
    generation: str
    changes: str
    status: ArmStatus | None
    """Of a canary."""
    alarms: tuple[str, ...]
    """Evidence that took it back."""


@dataclass(frozen=True, slots=True)
class ExperimentLine:
    name: str
    mode: str
    unit: str
    arms: tuple[ArmLine, ...]


def experiments(traffic: GetTrafficResponse) -> Iterator[ExperimentLine]:
    """What is in force, with how canaries fare on this server."""
    status = {(each.experiment, each.arm): each for each in traffic.arms}
    for each in traffic.experiments:
        whole = sum(arm.weight for arm in each.arms) or 1.0
        yield ExperimentLine(
            name=each.name,
            mode=TrafficMode.Name(each.mode).removeprefix("TRAFFIC_MODE_").lower(),
            unit=each.unit,
            arms=tuple(_arm(arm, arm.weight / whole, status.get((each.name, arm.name))) for arm in each.arms),
        )


def _arm(arm: Arm, share: float, status: ArmStatus | None) -> ArmLine:
    changed = {**arm.action_weights, **arm.policy, **arm.quotas}
    return ArmLine(
        name=arm.name,
        share=share,
        generation=arm.generation,
        changes=", ".join(f"{name} {value:g}" for name, value in sorted(changed.items())),
        status=status,
        alarms=() if status is None else _alarms(status.evidence),
    )


def _alarms(evidence: Mapping[str, float]) -> tuple[str, ...]:
    return tuple(sorted(name for name, value in evidence.items() if value >= _ALARM))


def when(time_ms: int) -> str:
    """A time for people; a dash for none."""
    return utc(time_ms) if time_ms else "-"


def shares(values: Sequence[float]) -> list[float]:
    """Of the largest, for a bar of each."""
    most = max(values, default=0.0)
    return [value / most if most else 0.0 for value in values]
