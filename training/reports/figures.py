"""What the report draws beside the summary: plain numbers, so that a report can be drawn again from its JSON."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, slots=True)
class Curve:
    """A line through points; `x` and `y` are equally long."""

    label: str
    x: Sequence[float]
    y: Sequence[float]

    def __post_init__(self) -> None:
        if len(self.x) != len(self.y):
            raise ValueError(f"curve {self.label!r} has {len(self.x)} x but {len(self.y)} y")


@dataclass(frozen=True, slots=True)
class Calibrated:
    """The reliability curve of one action: by bin the mean predicted probability, the observed share, the rows."""

    action: str
    predicted: Sequence[float]
    observed: Sequence[float]
    count: Sequence[int]
    ece: float


@dataclass(frozen=True, slots=True)
class Slice:
    """How good the main action's probabilities are for a part of the exposures."""

    by: str
    """What the part is told by: "surface"; "all" for everything."""
    value: str
    exposures: int
    auc: float
    """NaN, as its ends, where all exposures ended alike."""
    auc_low: float
    auc_high: float
    """Ends of its 95% interval."""
    ece: float
    ece_by_chance: float
    """What so few exposures would show of probabilities that are exactly right."""


@dataclass(frozen=True, slots=True)
class Estimated:
    """What one off-policy estimator says, with the ends of its interval."""

    estimator: str
    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class ShownItem:
    """One position of a sample slate."""

    title: str
    category: str
    score: float
    """Utility."""
    propensity: float
    """P(this item in this slot | the slots before)."""
    sources: Sequence[str]
    reasons: Sequence[str]
    """As a person reads them: "popular", "similar to Paper Moons"."""


@dataclass(frozen=True, slots=True)
class SampleSlate:
    """One response, first position first."""

    request: str
    """What was asked: "for user u17", "search: space adventure". Slates of one request stand side by side."""
    answered_by: str
    """"cycle 1", "cycle 2"."""
    items: Sequence[ShownItem]


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """What is drawn from more than the summary; the report leaves out what is empty."""

    reliability: Sequence[Calibrated] = ()
    """The newest ranker's on held-out impressions, one an action."""
    slices: Sequence[Slice] = ()
    """Of the same impressions: everything, then parts of it."""
    examination: Sequence[Curve] = ()
    """P(looked at) by slot (x, from 1) relative to the first slot; the world's own is labelled "true"."""
    estimates: Sequence[Estimated] = ()
    """Of the new policy's reward from the old policy's log; the truth is the summary's `ope.truth`."""
    recall: Sequence[Curve] = ()
    """Recall of retrieval over k, one a cycle."""
    training: Sequence[Curve] = ()
    """The ranker's loss over epochs: "training", "validation"."""
    slate_metrics: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """Metric to the value of each cycle: {"category coverage": {"cycle 1": 0.4, "cycle 2": 0.5}}."""
    slates: Sequence[SampleSlate] = ()

    @classmethod
    def from_json(cls, read: Mapping[str, Any]) -> "Figures":
        """What `dataclasses.asdict` and JSON made of figures."""
        return cls(
            reliability=[Calibrated(**each) for each in read["reliability"]],
            slices=[Slice(**_with_nan(each)) for each in read.get("slices", ())],
            examination=[Curve(**each) for each in read["examination"]],
            estimates=[Estimated(**each) for each in read["estimates"]],
            recall=[Curve(**each) for each in read["recall"]],
            training=[Curve(**each) for each in read["training"]],
            slate_metrics=read["slate_metrics"],
            slates=[
                SampleSlate(**{**each, "items": [ShownItem(**i) for i in each["items"]]}) for each in read["slates"]
            ],
        )


def _with_nan(read: Mapping[str, Any]) -> dict[str, Any]:
    """JSON has no NaN: it stands there as null."""
    return {name: math.nan if value is None else value for name, value in read.items()}
