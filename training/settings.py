"""What each job of the command line is told: the shapes that `conf/` fills."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Literal, get_args

from policy.ope import Interval
from training.configuration import Origin
from training.cycle import CycleSettings
from training.datasets.dataset import Dataset
from training.engine import HERE, Engine
from training.gates import GateSettings
from training.monitoring.limits import LEAST_DAYS, Limits
from training.publish import IndexSettings
from training.simulation.world import World

Data = partial[Dataset] | partial[World]
"""A data set to be read, with all it needs but the time: an adapter or the world, with its arguments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings:
    """What `cascade data` is told."""

    data: Data
    seed: int
    output: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class SweepSettings:
    """What a sweep searches, and for what."""

    metric: str
    """As training reports it."""
    direction: Literal["maximize", "minimize"]
    space: Mapping[str, str]
    """A range by the key it is of; see `configuration.held`."""
    trials: int
    """With those of earlier runs."""
    workers: int
    """Processes that train side by side and share the machine's cores."""
    seed: int
    """Of the sampler; trial n follows from it and from the trials before."""

    def __post_init__(self) -> None:
        for name in ("trials", "workers"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if self.direction not in ("maximize", "minimize"):
            raise ValueError(f"direction is {self.direction!r}; it must be 'maximize' or 'minimize'")
        if not self.space:
            raise ValueError("space is empty; name a range, as in sweep=tower towers.batch=256,512")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it must not be negative")


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainSettings:
    """What `cascade train` is told."""

    mode: Literal["tower", "ranker"]
    data: Data
    cycle: CycleSettings
    seed: int
    output: Path
    log: Path | None
    generations: Path
    mlflow: str | None = None
    """Where MLflow tracks runs; None for none."""
    engine: Engine = HERE
    sweep: SweepSettings | None = None
    origin: Origin | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishSettings:
    """What `cascade export` is told."""

    data: Data
    cycle: CycleSettings
    seed: int
    output: Path
    log: Path | None
    generations: Path
    activate: bool
    engine: Engine = HERE


@dataclass(frozen=True, slots=True, kw_only=True)
class RebuildSettings:
    """What `cascade rebuild` is told."""

    index: IndexSettings
    gates: GateSettings
    generations: Path
    log: Path | None
    generation: str
    output: Path
    activate: bool
    engine: Engine = HERE


@dataclass(frozen=True, slots=True, kw_only=True)
class LogSettings:
    """What `cascade log` is told."""

    mode: Literal["status", "compact", "verify", "retain"]
    log: Path
    generations: Path
    recent_minutes: float
    days: int | None
    quarantine: bool

    def __post_init__(self) -> None:
        _at_least_one(days=self.days)
        if not self.recent_minutes >= 0:
            raise ValueError(f"recent_minutes is {self.recent_minutes}; it must not be negative")
        if self.mode == "retain" and self.days is None:
            raise ValueError("days is null; say how many days are kept: days=90")
        if self.mode != "verify" and self.quarantine:
            raise ValueError(f"quarantine goes with verify, not with {self.mode}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplaySettings:
    """What `cascade replay` is told."""

    mode: Literal["verify", "counterfactual"]
    log: Path
    generations: Path
    generation: str
    output: Path
    workers: int | None
    limit: int | None

    def __post_init__(self) -> None:
        _at_least_one(workers=self.workers, limit=self.limit)


@dataclass(frozen=True, slots=True, kw_only=True)
class SkewSettings:
    """What `cascade report skew` is told."""

    log: Path
    history: Path | None
    generations: Path
    generation: str
    gates: GateSettings
    output: Path


@dataclass(frozen=True, slots=True, kw_only=True)
class ExperimentSettings:
    """What `cascade report experiment` is told."""

    name: str
    log: Path
    generations: Path
    alpha: float = 0.05
    planned_units: int = 10_000
    output: Path

    def __post_init__(self) -> None:
        if not 0 < self.alpha < 1:
            raise ValueError(f"alpha is {self.alpha}; it must be between 0 and 1")
        _at_least_one(planned_units=self.planned_units)


@dataclass(frozen=True, slots=True, kw_only=True)
class MonitorSettings:
    """What `cascade report monitor` is told."""

    log: Path
    history: Path | None
    generations: Path
    until: str
    days: int
    reference_until: str
    reference_days: int
    sample: int
    label_minutes: int
    skew: int
    limits: Limits
    gates: GateSettings
    output: Path
    textfile: Path | None

    def __post_init__(self) -> None:
        _at_least_one(days=self.days, sample=self.sample, label_minutes=self.label_minutes)
        if self.reference_days < LEAST_DAYS:
            raise ValueError(f"reference_days is {self.reference_days}; it must be at least {LEAST_DAYS}")
        if self.label_minutes >= 24 * 60:
            raise ValueError(f"label_minutes is {self.label_minutes}; it must be less than a day")
        if self.skew < 0:
            raise ValueError(f"skew is {self.skew}; it must be at least 0")
        for name in ("until", "reference_until"):
            try:
                _ = getattr(self, name) and date.fromisoformat(getattr(self, name))
            except ValueError:
                raise ValueError(f"{name} is {getattr(self, name)!r}; a day is needed, as in 2026-11-21") from None


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimateSettings:
    """What `cascade ope` is told."""

    log: Path
    generations: Path
    generation: str
    logged: str
    surface: str
    interval: Interval
    output: Path
    replayed: Path
    workers: int | None

    def __post_init__(self) -> None:
        _at_least_one(workers=self.workers)
        known = get_args(Interval)
        if self.interval not in known:
            raise ValueError(f"interval is {self.interval!r}; there are {', '.join(known)}")


def _at_least_one(**named: int | None) -> None:
    for name, value in named.items():
        if value is not None and value < 1:
            raise ValueError(f"{name} is {value}; it must be at least 1, or null")
