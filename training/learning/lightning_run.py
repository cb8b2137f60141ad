"""What every training with Lightning has in common: chance, schedule, trainer, silence."""

import csv
import logging
import math
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import pytorch_lightning as pl
import torch
from lightning_fabric.plugins.environments.torchelastic import TorchElasticEnvironment
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, RichProgressBar
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.strategies import DDPStrategy
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

_EXPECTED_WARNINGS = (
    # Batches are made from tensors in memory; there is no loader that workers could help.
    ".*does not have many workers.*",
    # A run of few steps, as in tests, logs at its end.
    ".*The number of training batches .* is smaller than the logging interval.*",
    # Training again into the same folder, as a resumed cycle does.
    ".*Checkpoint directory .* exists and is not empty.*",
    ".*Experiment logs directory .* exists.*",
    # Lightning's own use of what torch deprecates.
    ".*LeafSpec.* is deprecated.*",
)


def cpu_trainer(folder: Path, *, epochs: int, callbacks: Sequence[Callback], validate: bool = True) -> pl.Trainer:
    """`trainer_on` one process of the CPU, without rounding."""
    return trainer_on("cpu", folder, epochs=epochs, callbacks=callbacks, validate=validate)


def trainer_on(
    accelerator: Literal["cpu", "cuda"],
    folder: Path,
    *,
    epochs: int,
    callbacks: Sequence[Callback],
    validate: bool,
    precision: Literal["32-true", "bf16-mixed"] = "32-true",
    processes: int = 1,
) -> pl.Trainer:
    """A trainer whose logs (CSV, TensorBoard) go to `folder`, with a progress bar where a terminal shows it.

    It asks for new data loaders every epoch, and keeps checkpoints only where a callback does. Several processes
    are started for the length of a fit and each computes its own part of the gradient. Where somebody started them
    already, as Ray Train does, and each of them calls this, they are joined.
    """
    shown = sys.stderr.isatty()
    strategy: DDPStrategy | Literal["auto"] = "auto"
    if processes > 1 and torch.distributed.is_initialized():
        strategy = _QuietProcesses(cluster_environment=TorchElasticEnvironment())
    elif processes > 1:
        strategy = _QuietProcesses(start_method="spawn")
    return pl.Trainer(
        accelerator=accelerator,
        devices=processes,
        strategy=strategy,
        precision=precision,
        max_epochs=epochs,
        callbacks=[*callbacks, RichProgressBar(console_kwargs={"stderr": True})] if shown else list(callbacks),
        logger=[CSVLogger(folder, name="", version="csv"), TensorBoardLogger(folder, name="", version="board")],
        limit_val_batches=None if validate else 0,
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,
        enable_checkpointing=any(isinstance(each, ModelCheckpoint) for each in callbacks),
        enable_progress_bar=shown,
        enable_model_summary=False,
        # On CUDA that needs a setting of the environment, made before the process starts.
        deterministic=accelerator == "cpu",
    )


BatchT = TypeVar("BatchT")


def moved(batch: BatchT, device: torch.device) -> BatchT:
    """A dataclass with its tensors, and those in its mappings and tuples, on a device."""

    def there(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value.to(device)
        if isinstance(value, dict):
            return {name: there(each) for name, each in value.items()}
        return tuple(map(there, value)) if isinstance(value, tuple) else value

    return replace(batch, **{each.name: there(getattr(batch, each.name)) for each in fields(batch)})  # type: ignore[type-var, arg-type]


def unfinished(checkpoint: Path, arguments: str, *, epochs: int) -> int:
    """Steps that a killed training with these arguments had passed when it wrote `checkpoint`.

    0 where there is nothing to go on from: no checkpoint, other arguments, or a training that came to its end.
    """
    if not checkpoint.exists():
        return 0
    held = torch.load(checkpoint, weights_only=True)
    stopped = any(state.get("stopped_epoch") for state in held["callbacks"].values())
    if held.get("arguments") != arguments or held["epoch"] + 1 >= epochs or stopped:
        return 0
    return int(held["global_step"])


def keep_log(trainer: pl.Trainer, folder: Path, *, steps: int) -> None:
    """Let the CSV log of `trainer` begin with what the log in `folder` says of the first `steps`.

    Lightning begins it anew.
    """
    log = folder / "csv" / "metrics.csv"
    if not log.exists():
        return
    with log.open(newline="") as file:
        rows = [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(file)]
    for row in rows:
        step = int(row.pop("step"))
        if step < steps:
            trainer.loggers[0].log_metrics(row, step)
    trainer.loggers[0].save()


def warmed_cosine(optimizer: torch.optim.Optimizer, *, steps: int, warm: int) -> OptimizerLRSchedulerConfig:
    """The learning rate rises evenly over the first `warm` steps and falls as a cosine to 0 at the last of `steps`."""
    rising = max(1, warm)

    def share(step: int) -> float:
        return min((step + 1) / rising, 0.5 + 0.5 * math.cos(math.pi * min(step, steps) / steps))

    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, share)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@contextmanager
def deterministic(seed: int) -> Iterator[None]:
    """Torch's chance follows from `seed` inside and is left as it was outside."""
    before = torch.are_deterministic_algorithms_enabled()
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        try:
            yield
        finally:
            torch.use_deterministic_algorithms(before)


@contextmanager
def quiet() -> Iterator[None]:
    """Without Lightning's notes on hardware, nor its warnings about what is meant to be so here."""
    notes = _notes()
    levels = [each.level for each in notes]
    with warnings.catch_warnings():
        _hush()
        try:
            yield
        finally:
            for each, level in zip(notes, levels, strict=True):
                each.setLevel(level)


class _QuietProcesses(DDPStrategy):
    """Starts processes that are `quiet` as the one that starts them is."""

    def setup_environment(self) -> None:
        _hush()
        super().setup_environment()


def _notes() -> list[logging.Logger]:
    return [logging.getLogger(name) for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric")]


def _hush() -> None:
    for message in _EXPECTED_WARNINGS:
        warnings.filterwarnings("ignore", message)
    for each in _notes():
        each.setLevel(logging.WARNING)
