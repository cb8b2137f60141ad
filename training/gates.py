"""What a generation must reach to be published. Whatever is measured, the verdict on it is here."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from math import nan
from typing import Literal, get_args

from index.poison import POISON_SHARE

SKEW, SKEW_STATE, SKEW_REQUESTS = "skew.", "skew.state.", "skew.requests"
"""How figures of features that differ begin, of those made of a user's history, and how many requests were compared."""


OnNoOverlap = Literal["refuse", "pass"]


@dataclass(frozen=True, slots=True)
class UpliftSettings:
    """How a generation is judged by the log before it is published."""

    hours: float = 0.0
    """The last hours of the log, which it is then not trained on; 0: it is not judged."""
    least: float = -0.05
    """Least lower bound of its uplift over the incumbent, as a share of what the incumbent earned."""
    on_no_overlap: OnNoOverlap = "refuse"
    """What becomes of one that the log says too little about."""

    def __post_init__(self) -> None:
        if not 0 <= self.hours < 24 * 366:
            raise ValueError(f"hours is {self.hours}; it must be at least 0 and less than a year")
        if not -1 <= self.least <= 1:
            raise ValueError(f"least is {self.least}; it must be from -1 to 1")
        if self.on_no_overlap not in get_args(OnNoOverlap):
            raise ValueError(
                f"on_no_overlap is {self.on_no_overlap!r}; it must be one of {', '.join(get_args(OnNoOverlap))}"
            )


@dataclass(frozen=True, slots=True)
class SearchGateSettings:
    """How a generation's search is held against judgments before it is published."""

    judgments: str | None = None
    """Path of a judgement list, see `training.datasets.judgments`; null: it is not held against any."""
    least: float = -0.01
    """Least lower bound of the change of ndcg@10 beside the generation in force."""

    def __post_init__(self) -> None:
        if not -1 <= self.least <= 1:
            raise ValueError(f"least is {self.least}; it must be from -1 to 1")


@dataclass(frozen=True, slots=True)
class IncumbentGateSettings:
    """How `cascade nightly` holds a generation against the one in force, before it is published."""

    offline: float = -0.05
    """Least lower bound of the change of ndcg@10 of held-out impressions; where too few were followed by an outcome to
    say, the gate is red."""
    latency: float = 2.0
    """Most times the median that the one in force takes for the same logged requests."""
    size: float = 2.0
    """Most times its bytes."""
    replayed: int = 200
    """Logged requests, the newest, that must give the same answer again, bit by bit; of latency too."""

    def __post_init__(self) -> None:
        if not -1 <= self.offline <= 1:
            raise ValueError(f"offline is {self.offline}; it must be from -1 to 1")
        for name in ("latency", "size", "replayed"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")


@dataclass(frozen=True, slots=True)
class GateSettings:
    """Limits between 0 and 1. A gate whose figure is undefined (NaN) is red."""

    index_recall: float = 0.95
    """Least lower bound of the index's recall@k against exact search."""
    found: float = 0.99
    """Least share of sampled items that a search for their own vector finds."""
    ranker_auc: float = 0.55
    """Least AUC of the first action on held-out impressions."""
    ranker_ece: float = 0.05
    """Largest calibration error of the first action."""
    shrink: float = 0.2
    """Largest share of the incumbent's items that may be missing."""
    skew: float = 0.0
    """Largest share of logged rows in which a feature differs from what is computed again, see `training.skew`."""
    skew_state: float = 0.05
    """The same for a feature that is made of a user's history, for an online store may lose events."""
    skew_of: Mapping[str, float] = field(default_factory=dict)
    """Of single features by their names, in place of those two."""
    uplift: UpliftSettings = field(default_factory=UpliftSettings)
    search: SearchGateSettings = field(default_factory=SearchGateSettings)
    incumbent: IncumbentGateSettings = field(default_factory=IncumbentGateSettings)

    def __post_init__(self) -> None:
        apart = ("skew_of", "uplift", "search", "incumbent")
        limits = {each.name: getattr(self, each.name) for each in fields(self) if each.name not in apart}
        for name, limit in (limits | {f"skew_of.{name}": limit for name, limit in self.skew_of.items()}).items():
            if not 0 <= limit <= 1:
                raise ValueError(f"{name} is {limit}; it must be from 0 to 1")


@dataclass(frozen=True, slots=True)
class Gate:
    """One condition of a publish, and what was found."""

    name: str
    value: float
    limit: str
    passed: bool


class GateFailed(ValueError):
    """A generation that must not be published; the message lists every red gate with its figures."""

    def __init__(self, told: str, gates: tuple[Gate, ...] = ()) -> None:
        super().__init__(told)
        self.gates = gates
        """All that were held, the green ones too."""


def index_gates(
    settings: GateSettings, metrics: Mapping[str, float], *, incumbent: Mapping[str, float]
) -> tuple[Gate, ...]:
    """Of an index that is built, beside the one that serves.

    Args:
        incumbent: metrics of the generation in force; empty where there is none.
    """
    before = incumbent.get("index.items") or 0.0
    return (
        least("index.items", metrics, max(1.0, (1 - settings.shrink) * before)),
        most("index.poisoned", metrics, POISON_SHARE),
        least("index.recall_low", metrics, settings.index_recall),
    )


def smoke_gates(settings: GateSettings, metrics: Mapping[str, float]) -> tuple[Gate, ...]:
    """Of a generation that is written and has answered its first queries."""
    return (least("index.found", metrics, settings.found),)


def ranker_gates(settings: GateSettings, metrics: Mapping[str, float], *, action: str) -> tuple[Gate, ...]:
    """Of a ranker that is trained, for the main action."""
    return (
        least(f"ranker.{action}.auc", metrics, settings.ranker_auc),
        most(f"ranker.{action}.ece", metrics, settings.ranker_ece),
    )


def uplift_gate(settings: UpliftSettings, metrics: Mapping[str, float]) -> Gate:
    """Of a generation that was judged by what the incumbent logged: the lower bound of its uplift, as a share of what
    the incumbent earned."""
    low, earned = metrics["uplift.low"], abs(metrics["uplift.earned"])
    return least("uplift.low_share", {"uplift.low_share": low / earned if earned else nan}, settings.least)


def search_gate(settings: SearchGateSettings, metrics: Mapping[str, float]) -> Gate:
    """Of a generation whose search was held against judgments beside the incumbent's: the change of ndcg@10."""
    return least("search.change_low", metrics, settings.least)


def skew_gates(settings: GateSettings, metrics: Mapping[str, float]) -> tuple[Gate, ...]:
    """Of the features that serving and training disagree on; none where they agree, or where nothing was compared."""
    gates = []
    for name in metrics:
        if name.startswith(SKEW) and name != SKEW_REQUESTS:
            limit = settings.skew_state if name.startswith(SKEW_STATE) else settings.skew
            feature = name.removeprefix(SKEW_STATE).removeprefix(SKEW)
            gates.append(most(name, metrics, settings.skew_of.get(feature, limit)))
    return tuple(gates)


def require(gates: Iterable[Gate]) -> None:
    """
    Raises:
        GateFailed: naming every red gate.
    """
    held = tuple(gates)
    red = [f"{gate.name} is {gate.value:.4g}, must be {gate.limit}" for gate in held if not gate.passed]
    if red:
        raise GateFailed("; ".join(red), held)


def free_gate(name: str) -> Gate:
    """Of what cannot be compared yet: nothing is in force, or nothing was logged."""
    return Gate(name, nan, "anything, for there is nothing to compare", passed=True)


def least(name: str, metrics: Mapping[str, float], limit: float) -> Gate:
    """Of a figure by its name; red where it is undefined."""
    value = metrics.get(name, nan)
    return Gate(name, value, f">= {limit:.4g}", value >= limit)


def most(name: str, metrics: Mapping[str, float], limit: float) -> Gate:
    """Likewise, with an upper limit."""
    value = metrics.get(name, nan)
    return Gate(name, value, f"<= {limit:.4g}", value <= limit)
