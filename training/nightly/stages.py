"""Stages whose results outlive whoever made them, in folders named after everything that determines them.

A key is made of the code, the settings of the stage and the keys of what it reads, so that what has a name is right
whoever made it and when. A folder appears whole or not at all; a figure that is not finite is null in its JSON.
"""

import json
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from math import nan
from pathlib import Path
from typing import Any

from rich.progress import Progress

from index.leases import Lease
from training.durable import appearing, remove
from training.reports.report import plain

_RECORD = "stage.json"
_PARTS = ".parts"
Figures = dict[str, Any]


@dataclass(frozen=True, slots=True)
class Stage:
    """One step, and where its result is or will be."""

    name: str
    folder: Path

    @property
    def done(self) -> bool:
        return (self.folder / _RECORD).exists()

    @property
    def parts(self) -> Path:
        """For a stage that keeps what it has so far."""
        return self.folder.with_name(self.folder.name + _PARTS)

    def figures(self) -> Figures:
        """What the stage found, once it is done."""
        figures: Figures = _finite(json.loads((self.folder / _RECORD).read_text())["figures"])
        return figures

    def forget(self) -> None:
        """It is to be done again."""
        remove(self.folder)
        remove(self.parts)


def key(*determining: object) -> str:
    """16 hexadecimal digits over plain values, each of which JSON can hold."""
    text = json.dumps(determining, sort_keys=True, default=str)
    return sha256(text.encode()).hexdigest()[:16]


def keep_only(folder: Path, stages: Iterable[Stage], *, also: Sequence[str]) -> None:
    """Remove the results of other nights."""
    kept = {*also, *(path.name for each in stages for path in (each.folder, each.parts))}
    for path in folder.glob("*"):
        if path.name not in kept:
            remove(path)


@dataclass(frozen=True, slots=True)
class Went:
    """How a stage went."""

    stage: str
    cached: bool
    seconds: float


class StageRun:
    """Does stages one after the other, each at most once.

    Args:
        job: a process that lost it ends at the next stage, and leaves nothing of the one that it was at.
    """

    def __init__(self, job: Lease, progress: Progress, *, stages: int) -> None:
        self.went: list[Went] = []
        self.at = ""
        """The stage that is being done, or was the last."""
        self._job = job
        self._progress = progress
        self._task = progress.add_task("", total=stages)

    def figures(self, stage: Stage, make: Callable[[Path], Mapping[str, Any]]) -> Figures:
        """What the stage found: made now, where nobody has.

        Args:
            make: fills the stage's folder.

        Raises:
            LeaseLost: see `Lease`.
        """
        self._job.check()
        self.at = stage.name
        self._progress.update(self._task, description=stage.name)
        started_s, cached = time.perf_counter(), stage.done
        if not cached:
            with appearing(stage.folder) as draft:
                draft.mkdir()
                figures = plain(make(draft))
                (draft / _RECORD).write_text(json.dumps({"figures": figures}))
                self._job.check()
            remove(stage.parts)
        self._progress.advance(self._task)
        self.went.append(Went(stage.name, cached, 0.0 if cached else time.perf_counter() - started_s))
        return stage.figures()


def _finite(tree: Any) -> Any:
    """As `plain` had it, with NaN for null."""
    if isinstance(tree, dict):
        return {name: _finite(each) for name, each in tree.items()}
    if isinstance(tree, list):
        return [_finite(each) for each in tree]
    return nan if tree is None else tree
