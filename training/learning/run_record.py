"""Trains one stage and leaves with it what it takes to train it again: `run.json`, and MLflow's record where asked for.

command      words for a shell; the same data, revision and machine give the same weights
config       every setting, resolved
data         sha256 of what was read (see `fingerprint`), rows of each table
generation   whose schema declared the features; null: the data did
revision     of git, "-dirty" where files differ from it, or "unknown"
versions     of Python, torch and this package
threads      of torch
started      UTC
seconds      of training
metrics      as reported
"""

import csv
import hashlib
import json
import platform
import shlex
import subprocess
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from pytorch_lightning.loggers import MLFlowLogger

from index.generations import GenerationStore
from training import jobs
from training.datasets.dataset import Dataset
from training.durable import appearing
from training.log.served import ServedLog
from training.reports.findings import flat
from training.settings import TrainSettings

_FOLDERS = {"tower": "towers", "ranker": "ranker"}
_SLICE = 100_000


@dataclass(frozen=True, slots=True)
class Source:
    """What was read, once for all runs on it."""

    dataset: Dataset
    sha256: str
    rows: Mapping[str, int]

    @classmethod
    def of(cls, settings: TrainSettings) -> "Source":
        """Read and hash it."""
        dataset = jobs.read(settings.data, seed=settings.seed)
        tables = {name: getattr(dataset, name) for name in ("items", "users", "impressions", "events")}
        if settings.log is not None:
            served = ServedLog.read(settings.log, until_ms=np.iinfo(np.int64).max)
            tables |= {"log.impressions": served.frame, "log.events": served.events}
        return cls(dataset, fingerprint(tables), {name: table.height for name, table in tables.items()})


def train(settings: TrainSettings, source: Source | None = None) -> dict[str, float]:
    """Train one stage, see `jobs.train`, and leave `run.json` beside it.

    Args:
        source: of these settings' `data`, `seed` and `log`; read where not given.

    Raises:
        ValueError: where MLflow is asked for and not there.
    """
    if settings.mlflow is not None:
        require("mlflow", f"mlflow={settings.mlflow}")
    source = source or Source.of(settings)
    started, at_s = datetime.now(UTC), time.perf_counter()
    metrics = jobs.train(replace(settings, data=partial(_same, source.dataset)))
    record = {
        "command": command(settings),
        "config": dict(settings.origin.config) if settings.origin else {},
        "data": {"sha256": source.sha256, "rows": dict(source.rows)},
        "generation": GenerationStore(settings.generations).current(),
        "revision": revision(),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "cascade": _version()},
        "threads": torch.get_num_threads(),
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(time.perf_counter() - at_s, 3),
        "metrics": metrics,
    }
    with appearing(record_path(settings)) as draft:
        draft.write_text(json.dumps(record, indent=2, default=str))
    if settings.mlflow is not None:
        _track(settings, record)
    return metrics


def record_path(settings: TrainSettings) -> Path:
    """Where `train` leaves `run.json`."""
    return settings.output / _FOLDERS[settings.mode] / "run.json"


def command(settings: TrainSettings) -> str:
    """Words for a shell that train the same again, into the default output."""
    given = settings.origin.words if settings.origin else ()
    words = [text for text in given if text.partition("=")[0].lstrip("+") not in ("mode", "output", "mlflow")]
    return f"OMP_NUM_THREADS={torch.get_num_threads()} {shlex.join(['cascade', 'train', settings.mode, *words])}"


def fingerprint(tables: Mapping[str, pl.DataFrame]) -> str:
    """sha256 over tables: of each its name, its schema, and its rows as JSON, a line for each."""
    digest = hashlib.sha256()
    for name, table in tables.items():
        digest.update(json.dumps([name, {key: str(kind) for key, kind in table.schema.items()}]).encode())
        for rows in table.iter_slices(_SLICE):
            digest.update(rows.write_ndjson().encode())
    return digest.hexdigest()


def revision() -> str:
    """Git's, of the source that runs; "unknown" where it is not in a repository or git is not there."""
    package = Path(__file__).parent

    def git(*words: str) -> str:
        done = subprocess.run(["git", "-C", package, *words], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        git("ls-files", "--error-unmatch", "__init__.py")
        return git("describe", "--always", "--dirty", "--abbrev=40", "--exclude=*")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def require(library: str, asked: str) -> None:
    """
    Args:
        asked: what needs it.

    Raises:
        ValueError: where a library of an extra is not installed, naming the extra.
    """
    if find_spec(library) is None:
        extra = {"optuna": "sweep", "uvicorn": "console"}.get(library, library)
        raise ValueError(f"{asked} needs {library}, which is not installed: pip install 'cascade-ranking[{extra}]'")


def _same(dataset: Dataset, *, now_ms: int) -> Dataset:  # noqa: ARG001
    return dataset


def _version() -> str:
    try:
        return metadata.version("cascade-ranking")
    except metadata.PackageNotFoundError:
        return "unknown"


def _track(settings: TrainSettings, record: Mapping[str, Any]) -> None:
    """The run, told by Lightning's MLflow logger: settings, the curves of its CSV log, metrics, where it came from."""
    logger = MLFlowLogger(
        experiment_name=f"cascade-{settings.mode}",
        run_name=settings.output.name,
        tracking_uri=settings.mlflow,
        tags={"revision": record["revision"], "data": record["data"]["sha256"], "command": record["command"]},
    )
    logger.log_hyperparams(flat(record["config"]))
    for step, values in _curves(settings.output / "work" / _FOLDERS[settings.mode] / "csv" / "metrics.csv"):
        logger.log_metrics(_named(values), step)
    logger.log_metrics(_named(record["metrics"]))
    logger.finalize("success")


def _curves(path: Path) -> Iterator[tuple[int, dict[str, float]]]:
    with path.open() as file:
        for row in csv.DictReader(file):
            step = int(row.pop("step"))
            yield step, {name: float(value) for name, value in row.items() if value}


def _named(metrics: Mapping[str, float]) -> dict[str, float]:
    """MLflow takes no `@` in a name."""
    return {name.replace("@", "_at_"): value for name, value in metrics.items()}
