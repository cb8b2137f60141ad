"""What a generation must reach to be published. Whatever is measured, the verdict on it is here."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from math import nan

from index.poison import POISON_SHARE


class GateFailed(ValueError):
    """A generation that must not be published; the message lists every red gate with its figures."""


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

    def __post_init__(self) -> None:
        for each in fields(self):
            if not 0 <= getattr(self, each.name) <= 1:
                raise ValueError(f"{each.name} is {getattr(self, each.name)}; it must be from 0 to 1")


@dataclass(frozen=True, slots=True)
class Gate:
    """One condition of a publish, and what was found."""

    name: str
    value: float
    limit: str
    passed: bool


def index_gates(
    settings: GateSettings, metrics: Mapping[str, float], *, incumbent: Mapping[str, float]
) -> tuple[Gate, ...]:
    """Of an index that is built, beside the one that serves.

    Args:
        incumbent: metrics of the generation in force; empty where there is none.
    """
    before = incumbent.get("index.items") or 0.0
    return (
        _least("index.items", metrics, max(1.0, (1 - settings.shrink) * before)),
        _most("index.poisoned", metrics, POISON_SHARE),
        _least("index.recall_low", metrics, settings.index_recall),
    )


def smoke_gates(settings: GateSettings, metrics: Mapping[str, float]) -> tuple[Gate, ...]:
    """Of a generation that is written and has answered its first queries."""
    return (_least("index.found", metrics, settings.found),)


def ranker_gates(settings: GateSettings, metrics: Mapping[str, float], *, action: str) -> tuple[Gate, ...]:
    """Of a ranker that is trained, for the main action."""
    return (
        _least(f"ranker.{action}.auc", metrics, settings.ranker_auc),
        _most(f"ranker.{action}.ece", metrics, settings.ranker_ece),
    )


def require(gates: Iterable[Gate]) -> None:
    """
    Raises:
        GateFailed: naming every red gate.
    """
    red = [f"{gate.name} is {gate.value:.4g}, must be {gate.limit}" for gate in gates if not gate.passed]
    if red:
        raise GateFailed("; ".join(red))


def _least(name: str, metrics: Mapping[str, float], limit: float) -> Gate:
    value = metrics.get(name, nan)
    return Gate(name, value, f">= {limit:.4g}", value >= limit)


def _most(name: str, metrics: Mapping[str, float], limit: float) -> Gate:
    value = metrics.get(name, nan)
    return Gate(name, value, f"<= {limit:.4g}", value <= limit)
