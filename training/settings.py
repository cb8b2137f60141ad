"""What each job of the command line is told: the shapes that `conf/` fills."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from training.cycle import CycleSettings
from training.data import Dataset
from training.gates import GateSettings
from training.publish import IndexSettings
from training.world import World

Data = partial[Dataset] | partial[World]
"""A data set to be read, with all it needs but the time: an adapter or the world, with its arguments."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DataSettings:
    """What `cascade data` is told."""

    data: Data
    seed: int
    output: Path | None


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


@dataclass(frozen=True, slots=True, kw_only=True)
class PublishSettings:
    """What `cascade export` and `cascade nightly` are told."""

    data: Data
    cycle: CycleSettings
    seed: int
    output: Path
    log: Path | None
    generations: Path
    activate: bool


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
    keep: int

    def __post_init__(self) -> None:
        if self.keep < 1:
            raise ValueError(f"keep is {self.keep}; it must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplaySettings:
    """What `cascade replay` is told."""

    mode: Literal["verify", "counterfactual"]
    log: Path
    generations: Path
    generation: str
    output: Path | None
    limit: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimateSettings:
    """What `cascade ope` is told."""

    log: Path
    generations: Path
    generation: str
    logged: str
