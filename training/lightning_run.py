"""What every training with Lightning has in common: chance, schedule, trainer, silence."""

import logging
import math
import sys
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, ModelCheckpoint, RichProgressBar
from pytorch_lightning.loggers import CSVLogger, TensorBoardLogger
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig

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
    """A trainer whose logs (CSV, TensorBoard) go to `folder`, with a progress bar where a terminal shows it.

    It asks for new data loaders every epoch, and keeps checkpoints only where a callback does.
    """
    shown = sys.stderr.isatty()
    return pl.Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        callbacks=[*callbacks, RichProgressBar()] if shown else list(callbacks),
        logger=[CSVLogger(folder, name="", version="csv"), TensorBoardLogger(folder, name="", version="board")],
        limit_val_batches=None if validate else 0,
        num_sanity_val_steps=0,
        reload_dataloaders_every_n_epochs=1,
        enable_checkpointing=any(isinstance(each, ModelCheckpoint) for each in callbacks),
        enable_progress_bar=shown,
        enable_model_summary=False,
        deterministic=True,
    )


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
    notes = [logging.getLogger(name) for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric")]
    levels = [each.level for each in notes]
    with warnings.catch_warnings():
        for message in _EXPECTED_WARNINGS:
            warnings.filterwarnings("ignore", message)
        for each in notes:
            each.setLevel(logging.WARNING)
        try:
            yield
        finally:
            for each, level in zip(notes, levels, strict=True):
                each.setLevel(level)
