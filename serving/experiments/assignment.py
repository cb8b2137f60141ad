"""Experiments: which arm a request gets, and what that changes. Nothing here reads a clock or a store.

A unit (a user, a visitor, a session, a request) is hashed with the experiment's salt and the name of each arm, and the
arm with the smallest -log(hash) / weight has it: weighted rendezvous hashing (Schindelhauer and Schomaker, SPAA 2005).
Shares are as the weights say, arms of different salts are independent, and a weight that grows only ever moves units
into its own arm, whatever the order of the arms.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations

from index.strings import key64
from protos.admin_pb2 import Arm as ArmOnTheWire
from protos.admin_pb2 import Experiment as ExperimentOnTheWire
from protos.admin_pb2 import SetTrafficRequest, TrafficMode
from protos.impression_pb2 import Impression, Kind, Variation

SPLIT = TrafficMode.TRAFFIC_MODE_SPLIT
SHADOW = TrafficMode.TRAFFIC_MODE_SHADOW
CANARY = TrafficMode.TRAFFIC_MODE_CANARY
INTERLEAVE = TrafficMode.TRAFFIC_MODE_INTERLEAVE
DRAFTED = "drafted"
"""Stands for the arm of a slate that two arms drafted."""

UNITS = ("user_id", "visitor_id", "session_id", "request_id")
MAX_EXPERIMENTS = 32
MAX_ARMS = 10
MAX_SURFACES = 100
MAX_CHARS = 64
"""Of a name, a salt, a layer or a surface."""


@dataclass(frozen=True, slots=True)
class Side:
    """Somebody who can answer."""

    generation: str = ""
    """Empty: the one in use."""
    variation: bytes = b""
    """A `Variation`, so that equal ones are equal."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One way to answer, with its share."""

    name: str
    weight: float
    side: Side

    @classmethod
    def of(cls, arm: ArmOnTheWire) -> "Arm":
        variation = Variation(action_weights=arm.action_weights, policy=arm.policy, quotas=arm.quotas)
        return cls(arm.name, arm.weight, Side(arm.generation, variation.SerializeToString(deterministic=True)))

    @property
    def changes(self) -> set[str]:
        """What it decides, by name: no other layer may decide it too."""
        variation = Variation.FromString(self.side.variation)
        return {
            *(["generation"] if self.side.generation else []),
            *(f"action_weights.{name}" for name in variation.action_weights),
            *(f"policy.{name}" for name in variation.policy),
            *(f"quotas.{name}" for name in variation.quotas),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """Arms that are compared.

    Raises:
        ValueError: naming the experiment, the field, its value and what is allowed.
    """

    name: str
    mode: int
    arms: tuple[Arm, ...]
    """The first is the one in use."""
    unit: str
    salt: str
    layer: str
    layer_from: float
    layer_until: float
    """Which part of the layer's units it has, between 0 and 1."""
    surfaces: frozenset[str]
    """Where it runs; empty: everywhere."""
    kinds: frozenset[int]

    @classmethod
    def of(cls, asked: ExperimentOnTheWire) -> "Experiment":
        return cls(
            name=asked.name,
            mode=asked.mode,
            arms=tuple(map(Arm.of, asked.arms)),
            unit=asked.unit,
            salt=asked.salt or asked.name,
            layer=asked.layer,
            layer_from=asked.layer_from,
            layer_until=asked.layer_until or 1.0,
            surfaces=frozenset(asked.surfaces),
            kinds=frozenset(asked.kinds),
        )

    def __post_init__(self) -> None:
        if not self.name:
            raise self._wrong("name", self.name, f"1 to {MAX_CHARS} characters")
        for name in ("name", "salt", "layer"):
            if len(getattr(self, name)) > MAX_CHARS:
                raise self._wrong(name, f"{getattr(self, name)[:8]}...", f"at most {MAX_CHARS} characters")
        if self.mode not in (SPLIT, SHADOW, CANARY, INTERLEAVE):
            raise self._wrong("mode", self.mode, "SPLIT, SHADOW, CANARY or INTERLEAVE")
        if self.unit not in UNITS:
            raise self._wrong("unit", self.unit, ", ".join(UNITS))
        if not 0 <= self.layer_from < self.layer_until <= 1:
            between = (self.layer_from, self.layer_until)
            raise self._wrong("layer_from and layer_until", between, "0 <= from < until <= 1")
        if len(self.surfaces) > MAX_SURFACES or any(not 1 <= len(each) <= MAX_CHARS for each in self.surfaces):
            allowed = f"at most {MAX_SURFACES} of 1 to {MAX_CHARS} characters"
            raise self._wrong("surfaces", f"{len(self.surfaces)} surfaces", allowed)
        if unknown := self.kinds - (set(Kind.values()) - {Kind.KIND_UNSPECIFIED}):
            raise self._wrong("kinds", sorted(unknown), "KIND_RECOMMEND, KIND_SEARCH, KIND_RANK")
        self._check_arms()

    def _check_arms(self) -> None:
        names, weights = [arm.name for arm in self.arms], [arm.weight for arm in self.arms]
        if not 2 <= len(names) <= MAX_ARMS or (self.mode == INTERLEAVE and len(names) > 2):
            raise self._wrong("arms", f"{len(names)} arms", f"2 to {MAX_ARMS}; 2 where they are interleaved")
        if len(set(names)) < len(names) or any(not 1 <= len(each) <= MAX_CHARS or each == DRAFTED for each in names):
            allowed = f"names of 1 to {MAX_CHARS} characters, each once, and none of them {DRAFTED!r}"
            raise self._wrong("arms.name", ", ".join(names), allowed)
        for name, weight in zip(names, weights, strict=True):
            if not 0 <= weight < math.inf:
                raise self._wrong(f"arms[{name!r}].weight", weight, "a finite number, at least 0")
        if not any(weights):
            raise self._wrong("arms.weight", "0 for all arms", "above 0 for one of them")
        if self.mode == INTERLEAVE and weights[0] != weights[1]:
            raise self._wrong("arms.weight", weights, "equal weights, because interleaved arms take turns")

    def _wrong(self, name: str, value: object, allowed: str) -> ValueError:
        return ValueError(f"experiment {self.name!r}: {name}: {value!r} given, allowed: {allowed}")

    def unit_of(self, asked: Impression) -> str:
        """What is assigned of a request; empty where that is nothing."""
        if (self.surfaces and asked.surface not in self.surfaces) or (self.kinds and asked.kind not in self.kinds):
            return ""
        unit: str = getattr(asked, self.unit)
        if self.unit == "request_id":  # all pages are of one arm
            unit = asked.page.first or unit
        return unit if unit and self._has(unit) else ""

    def arm_of(self, unit: str) -> Arm:
        """The arm of a unit that the experiment has."""
        weighted = [each for each in self.arms if each.weight > 0]
        return min(weighted, key=lambda arm: -math.log(_position("arm", self.salt, arm.name, unit)) / arm.weight)

    def share(self, arm: str) -> float:
        """Of the experiment's units."""
        return next(each.weight for each in self.arms if each.name == arm) / sum(each.weight for each in self.arms)

    def meets(self, other: "Experiment") -> bool:
        """Whether one request may be in both."""
        if self.layer and self.layer == other.layer and self.unit == other.unit:
            return self.layer_from < other.layer_until and other.layer_from < self.layer_until
        return _overlap(self.surfaces, other.surfaces) and _overlap(self.kinds, other.kinds)

    def _has(self, unit: str) -> bool:
        whole = self.layer_from == 0 and self.layer_until == 1
        return whole or self.layer_from <= _position("layer", self.layer or self.name, unit) < self.layer_until


@dataclass(frozen=True, slots=True)
class Shadow:
    """An arm that is computed beside the answer."""

    experiment: str
    arm: str
    side: Side


@dataclass(frozen=True, slots=True)
class Plan:
    """What the experiments make of a request; all requests with the same arms share one."""

    arms: Mapping[str, str] = field(default_factory=dict)
    """Experiment to arm, for the response and the log."""
    side: Side = field(default_factory=Side)
    """Who answers."""
    canaries: Mapping[str, str] = field(default_factory=dict)
    """Those of the arms that are watched."""
    shadows: tuple[Shadow, ...] = ()
    drafted: tuple[str, str, str] | None = None
    """Of two arms that draft one slate: the experiment, the arm of `side`, the arm of `second`."""
    second: Side | None = None


NOBODY = Plan()


class Traffic:
    """All experiments in force.

    Raises:
        ValueError: naming the experiments and what is wrong with them, or between them.
    """

    def __init__(self, experiments: Sequence[Experiment] = (), etag: str = "") -> None:
        self.experiments = tuple(experiments)
        self.etag = etag
        """Which version it is; empty where there has never been any."""
        self._plans: dict[tuple[str, ...], Plan] = {}
        if len(self.experiments) > MAX_EXPERIMENTS:
            raise ValueError(f"{len(self.experiments)} experiments given, allowed: at most {MAX_EXPERIMENTS}")
        for one, other in combinations(self.experiments, 2):
            _check_together(one, other)

    @classmethod
    def of(cls, request: SetTrafficRequest, etag: str) -> "Traffic":
        return cls([Experiment.of(each) for each in request.experiments], etag)

    @property
    def arms(self) -> list[tuple[Experiment, Arm]]:
        """Every arm of every experiment."""
        return [(each, arm) for each in self.experiments for arm in each.arms]

    @property
    def generations(self) -> set[str]:
        """Those that arms name."""
        return {arm.side.generation for _, arm in self.arms if arm.side.generation}

    def plan(self, asked: Impression) -> Plan:
        """What becomes of a request: some hashes and a look into a dictionary."""
        if not self.experiments:
            return NOBODY
        units = [each.unit_of(asked) for each in self.experiments]
        arms = tuple(each.arm_of(unit).name if unit else "" for each, unit in zip(self.experiments, units, strict=True))
        plan = self._plans.get(arms)
        if plan is None:
            plan = self._plans[arms] = self._planned(arms)
        return plan

    def _planned(self, names: Sequence[str]) -> Plan:
        found = [
            (each, next(arm for arm in each.arms if arm.name == name))
            for each, name in zip(self.experiments, names, strict=True)
            if name
        ]
        shown = {each.name: arm if each.mode in (SPLIT, CANARY) else each.arms[0] for each, arm in found}
        told = {each.name: DRAFTED if each.mode == INTERLEAVE else shown[each.name].name for each, _ in found}
        drafting = next((each for each, _ in found if each.mode == INTERLEAVE), None)
        return Plan(
            arms=told,
            side=_together(shown.values()),
            canaries={each.name: arm.name for each, arm in found if each.mode == CANARY},
            shadows=tuple(
                Shadow(each.name, arm.name, _together((shown | {each.name: arm}).values()))
                for each, arm in found
                if each.mode == SHADOW and arm is not each.arms[0]
            ),
            drafted=(drafting.name, drafting.arms[0].name, drafting.arms[1].name) if drafting else None,
            second=_together((shown | {drafting.name: drafting.arms[1]}).values()) if drafting else None,
        )


def _together(arms: Iterable[Arm]) -> Side:
    """Arms of different layers, which change different things."""
    generation, variation = "", Variation()
    for arm in arms:
        generation = arm.side.generation or generation
        variation.MergeFromString(arm.side.variation)
    return Side(generation, variation.SerializeToString(deterministic=True))


def _check_together(one: Experiment, other: Experiment) -> None:
    named = f"experiments {one.name!r} and {other.name!r}"
    if one.name == other.name:
        raise ValueError(f"two experiments have the name {one.name!r}; every experiment needs one of its own")
    if one.salt == other.salt:
        raise ValueError(f"{named} have the salt {one.salt!r}; their arms would go together")
    if one.layer and one.layer == other.layer:
        if one.unit != other.unit:
            raise ValueError(
                f"{named} share the layer {one.layer!r} and assign {one.unit} and {other.unit}; "
                "in one layer all assign the same"
            )
        if one.meets(other):
            raise ValueError(
                f"{named} overlap in the layer {one.layer!r}: {one.layer_from:g} to {one.layer_until:g} and "
                f"{other.layer_from:g} to {other.layer_until:g}"
            )
    if not one.meets(other):
        return
    both = set().union(*(arm.changes for arm in one.arms)) & set().union(*(arm.changes for arm in other.arms))
    if both:
        raise ValueError(f"{named} may meet and both change {min(both)}; put them into one layer, side by side")
    if one.mode == other.mode == INTERLEAVE:
        raise ValueError(f"{named} may meet and are both interleaved; put them into one layer, side by side")


def _position(*parts: str) -> float:
    """Where a text stands between 0 and 1: uniform, never 0 or 1."""
    return ((key64("\0".join(parts)) >> 11) + 0.5) / 2.0**53


def _overlap(some: frozenset[str] | frozenset[int], others: frozenset[str] | frozenset[int]) -> bool:
    """Empty means all."""
    return not some or not others or not some.isdisjoint(others)
