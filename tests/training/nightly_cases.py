"""Nights of the loop that `conftest` runs: its log, its store, and models that learn next to nothing."""

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from conftest import SMALL, Loop

from index.generations import GenerationStore
from training.datasets.dataset import Dataset
from training.gates import GateSettings, IncumbentGateSettings
from training.nightly import line
from training.nightly.contract import ContractSettings
from training.nightly.settings import NightlySettings, TrialSettings

LOOSE = GateSettings(
    index_recall=0.0,
    ranker_auc=0.0,
    ranker_ece=1.0,
    found=0.0,
    shrink=1.0,
    skew=1.0,
    skew_state=1.0,
    incumbent=IncumbentGateSettings(offline=-1.0, latency=1000.0, size=1000.0, replayed=4),
)
"""Whatever can be measured passes."""


def same(dataset: Dataset, *, now_ms: int) -> Dataset:
    return dataset


def settings_of(dataset: Dataset, log: Path, folder: Path) -> NightlySettings:
    """A night on the store in `folder`."""
    return NightlySettings(
        data=partial(same, dataset),
        cycle=replace(SMALL, gates=LOOSE),
        contract=ContractSettings(volume_low=0.0, volume_high=1000.0),
        trial=TrialSettings(requests=4),
        seed=0,
        output=folder / "output",
        log=log,
        generations=folder / "generations",
        activate=True,
    )


def told(loop: Loop, folder: Path, **changes: Any) -> NightlySettings:
    """A night on copies of the loop's store and log."""
    if not (folder / "generations").exists():
        shutil.copytree(loop.store.root, folder / "generations")
        shutil.copytree(loop.log, folder / "log")  # which a night compacts
    return replace(settings_of(loop.dataset, folder / "log", folder), **changes)


def gated(settings: NightlySettings, **changes: Any) -> NightlySettings:
    """The same with other gates."""
    return replace(settings, cycle=replace(settings.cycle, gates=replace(settings.cycle.gates, **changes)))


def night(settings: NightlySettings) -> dict[str, Any]:
    return line.nightly(settings, holder="the test", now_ms=1)


def files_of(store: GenerationStore, generation: str) -> dict[str, str]:
    """What it is made of. Files of the text index have random names, which two lists of them repeat: only their kinds
    and contents are told."""
    return {
        name.partition(".")[2] if name.startswith("lexical/") else name: entry.sha256
        for name, entry in store.verify(generation).files.items()
        if name not in ("lexical/meta.json", "lexical/.managed.json")
    }
