"""What `cascade nightly` is told."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal, get_args

from training.cycle import CycleSettings
from training.engine import HERE, Engine
from training.nightly.contract import ContractSettings
from training.settings import Data

StageName = Literal["validate", "examples", "skew", "towers", "ranker", "embed", "index", "publish", "shadow", "canary"]
"""What is kept of a night, in the order in which it is made."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrialSettings:
    """How a published generation is tried before it is put in force."""

    server: str | None = None
    """Address of the admin port of a server that has traffic; null: logged requests are asked here instead."""
    requests: int = 200
    """Requests that must be answered in shadow, and as many again by the canary; the newest of the log where no server
    is named."""
    share: float = 0.05
    """Share of the users whom the canary answers."""
    wait_s: float = 3600.0
    """Most seconds for each of the two; a server with too little traffic by then puts nothing in force."""
    faults: float = 0.0
    """Largest share of answers that are worse than those that were logged: without the ranker or a source, or empty."""

    def __post_init__(self) -> None:
        if self.requests < 1:
            raise ValueError(f"requests is {self.requests}; it must be at least 1")
        if not 0 < self.share < 1:
            raise ValueError(f"share is {self.share}; it must be above 0 and below 1")
        if not self.wait_s > 0:
            raise ValueError(f"wait_s is {self.wait_s}; it must be above 0")
        if not 0 <= self.faults <= 1:
            raise ValueError(f"faults is {self.faults}; it must be from 0 to 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class NightlySettings:
    """See `conf/nightly.yaml`."""

    data: Data
    cycle: CycleSettings
    contract: ContractSettings
    trial: TrialSettings
    seed: int
    output: Path
    log: Path | None
    generations: Path
    activate: bool
    from_stage: str | None = None
    """From here on all is done again."""
    dry_run: bool = False
    """Say what would be done; do nothing."""
    engine: Engine = HERE

    def __post_init__(self) -> None:
        known = get_args(StageName)
        if self.from_stage is not None and self.from_stage not in known:
            raise ValueError(f"from_stage is {self.from_stage!r}; it must be one of {', '.join(known)}, or null")

        if self.trial.server is not None and self.log is None:
            raise ValueError(f"trial.server is {self.trial.server} and log is null; shadows are read from its log")

    @property
    def work(self) -> Path:
        """For what stages leave to each other; beside the generations, whose lease guards it."""
        return self.generations / ".nightly"

    @property
    def asked(self) -> int:
        """How many logged requests gates and trial ask again, at most."""
        return max(self.trial.requests, self.cycle.gates.incumbent.replayed)
