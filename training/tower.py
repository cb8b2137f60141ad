"""Trains the two towers on positives: what was liked, by whom, knowing what was known then.

Shape letters: N examples in time order, B a batch, C columns of its softmax, I items, K cut-offs.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from candidate_gen.embedding import tensors
from candidate_gen.features import FeatureTable
from candidate_gen.losses import full_softmax, mixture_log_q, sampled_softmax
from candidate_gen.towers import Towers, TowerShape
from training.lightning_run import cpu_trainer, deterministic, quiet, warmed_cosine

CUTOFFS = (10, 50, 100)
_WATCHED = "recall@50"


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerSettings:
    """How to train. The defaults suit catalogues of thousands of items and logs of tens of thousands of positives."""

    shape: TowerShape = field(default_factory=TowerShape)
    temperature: float = 0.1
    """Of the softmax over cosines."""
    softmax: Literal["sampled", "full"] = "sampled"
    """Negatives of a query: the other positives of the batch with log-Q correction, or every item."""
    uniform_negatives: int = 256
    """Items drawn uniformly for each batch beside its positives, which alone never show the rare ones."""
    epochs: int = 4
    batch: int = 512
    learning_rate: float = 4e-3
    """At its highest: it rises over the first tenth of the steps and falls as a cosine to 0."""
    weight_decay: float = 0.0
    validation: float = 0.1
    """Share of the examples, the last ones, that is held out; 0 for none."""
    patience: int | None = None
    """Epochs without a better recall@50 after which training stops and goes back to the best; None never stops."""

    def __post_init__(self) -> None:
        for name, least in (("uniform_negatives", 0), ("epochs", 1), ("batch", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if self.softmax not in ("sampled", "full"):
            raise ValueError(f"softmax is {self.softmax!r}; it must be 'sampled' or 'full'")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate is {self.learning_rate}; it must be above 0")
        if not 0 <= self.validation < 1:
            raise ValueError(f"validation is {self.validation}; it must be at least 0 and below 1")
        if self.patience is not None and not self.validation:
            raise ValueError(f"patience is {self.patience} but validation is 0, so nothing tells when to stop")


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples side by side."""

    query: dict[str, Tensor]
    positive_row_B: Tensor
    weight_B: Tensor
    negative_row_U: Tensor


class Batches:
    """Slices of tensors that are already in memory; with a seed, of a new permutation of them.

    A shuffled pass leaves out the incomplete last batch where there is a complete one.
    """

    def __init__(self, examples: Batch, *, size: int, items: int, seed: tuple[int, int] | None = None) -> None:
        self._examples = examples
        self._size = size
        self._items = items
        self._seed = seed
        count = len(examples.positive_row_B)
        self._starts = range(0, count - size + 1 if seed and count > size else count, size)

    def __len__(self) -> int:
        return len(self._starts)

    def __iter__(self) -> Iterator[Batch]:
        examples, count = self._examples, len(self._examples.positive_row_B)
        random = np.random.default_rng(self._seed)
        order_N = torch.from_numpy(random.permutation(count)) if self._seed else torch.arange(count)
        for start in self._starts:
            rows_B = order_N[start : start + self._size]
            yield Batch(
                {name: column.index_select(0, rows_B) for name, column in examples.query.items()},
                examples.positive_row_B[rows_B],
                examples.weight_B[rows_B],
                torch.from_numpy(random.integers(self._items, size=len(examples.negative_row_U))),
            )


class TowerTraining(pl.LightningModule):
    """One epoch is one pass over the training examples, in an order that follows from seed and epoch alone."""

    def __init__(
        self,
        towers: Towers,
        settings: TowerSettings,
        *,
        item: Mapping[str, Tensor],
        train: Batch,
        held_out: Batch,
        seed: int,
    ) -> None:
        super().__init__()
        self.towers = towers
        self._settings = settings
        self._item = item
        self._items = len(next(iter(item.values())))
        self._train = train
        self._held_out = held_out
        self._seed = seed
        count_I = torch.bincount(train.positive_row_B, minlength=self._items)
        self._log_q_I = (count_I / count_I.sum()).log()
        self._item_ID = torch.empty(0)

    def train_dataloader(self) -> Batches:
        seed = (self._seed, self.current_epoch)
        return Batches(self._train, size=self._settings.batch, items=self._items, seed=seed)

    def val_dataloader(self) -> Batches:
        return Batches(self._held_out, size=1024, items=self._items)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        settings = self._settings
        optimizer = torch.optim.AdamW(
            self.towers.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True
        )
        steps = settings.epochs * len(self.train_dataloader())
        return warmed_cosine(optimizer, steps=steps, warm=steps // 10)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:  # noqa: ARG002
        return Batch(
            {name: column.to(device) for name, column in batch.query.items()},
            batch.positive_row_B.to(device),
            batch.weight_B.to(device),
            batch.negative_row_U.to(device),
        )

    def training_step(self, batch: Batch, _: int) -> Tensor:
        loss = self.loss(batch)
        self.log("loss", loss, on_step=True, on_epoch=True, batch_size=len(batch.weight_B))
        return loss

    def loss(self, batch: Batch) -> Tensor:
        """Of one batch, as `TowerSettings.softmax` says."""
        query_BD = self.towers.query_vectors(batch.query)
        temperature = self.towers.temperature
        if self._settings.softmax == "full":
            return full_softmax(
                query_BD,
                self.towers.item_vectors(self._item),
                item_row_B=batch.positive_row_B,
                temperature=temperature,
                weight_B=batch.weight_B,
            )
        row_C = torch.cat([batch.positive_row_B, batch.negative_row_U])
        log_q_C = mixture_log_q(
            self._log_q_I[row_C], batch=len(query_BD), uniform=len(batch.negative_row_U), items=self._items
        )
        return sampled_softmax(
            query_BD,
            self.towers.item_vectors({name: column[row_C] for name, column in self._item.items()}),
            item_row_C=row_C,
            log_q_C=log_q_C,
            temperature=temperature,
            weight_B=batch.weight_B,
        )

    def on_validation_epoch_start(self) -> None:
        self._item_ID = self.towers.item_vectors(self._item)

    def validation_step(self, batch: Batch, _: int) -> None:
        """The share of held-out positives among the first k of all items; a tie counts against the positive."""
        score_BI = self.towers.query_vectors(batch.query) @ self._item_ID.T
        positive_B1 = score_BI.gather(1, batch.positive_row_B[:, None])
        rank_B = (score_BI >= positive_B1).sum(1) - 1
        for k in CUTOFFS:
            hit = (rank_B < k).float().mean()
            self.log(f"recall@{k}", hit, on_step=False, on_epoch=True, batch_size=len(rank_B))


def train_towers(
    table: FeatureTable,
    item_row_I: np.ndarray,
    query_row_N: np.ndarray,
    positive_row_N: NDArray[np.int64],
    *,
    settings: TowerSettings,
    seed: int,
    folder: Path,
    weight_N: NDArray[np.float32] | None = None,
) -> tuple[Towers, dict[str, float]]:
    """Train on the first examples, measure on the last.

    The same arguments give the same weights, bit by bit, on the same machine with as many threads.

    Args:
        item_row_I: records of the table's item dtype, all items.
        query_row_N: records of the query dtype, each as it was known just before its positive, oldest first.
        positive_row_N: rows of the items that were taken.
        weight_N: above 0; how much each example counts; all the same where not given.
        folder: gets the logs (CSV, TensorBoard) and the checkpoints.

    Returns:
        The towers, ready to serve, and `loss` (of the last epoch), `examples`, `examples_per_s` and, where
        something was held out, `recall@k` over all items for each of `CUTOFFS`, with `held_out` examples.

    Raises:
        ValueError: where there is nothing to train on or the arguments do not fit each other.
    """
    count = len(positive_row_N)
    held = round(settings.validation * count)
    _check(item_row_I, query_row_N, positive_row_N, weight_N, count - held)
    weight_N = np.ones(count, np.float32) if weight_N is None else weight_N
    folder.mkdir(parents=True, exist_ok=True)

    def examples(part: slice) -> Batch:
        return Batch(
            tensors(query_row_N[part], table.of("query")),
            torch.from_numpy(np.array(positive_row_N[part], np.int64)),
            torch.from_numpy(np.array(weight_N[part], np.float32)),
            torch.zeros(settings.uniform_negatives if settings.softmax == "sampled" else 0, dtype=torch.int64),
        )

    train, rest = slice(count - held), slice(count - held, None)
    with deterministic(seed):
        towers = Towers(table, settings.shape, temperature=settings.temperature)
        taken = item_row_I[np.unique(positive_row_N[train])]
        towers.embedder.fit_ids(query_row_N[train], taken)
        towers.embedder.fit_numbers(query_row_N[train], taken)
        training = TowerTraining(
            towers,
            settings,
            item=tensors(item_row_I, table.of("item")),
            train=examples(train),
            held_out=examples(rest),
            seed=seed,
        )
        checkpoints = ModelCheckpoint(
            folder / "checkpoints",
            filename="best",
            monitor=_WATCHED if held else None,
            mode="max",
            save_last=True,
            enable_version_counter=False,
        )
        callbacks: list[Callback] = [checkpoints]
        if settings.patience is not None:
            callbacks.append(EarlyStopping(_WATCHED, mode="max", patience=settings.patience))
        started = time.perf_counter()
        with quiet():
            trainer = cpu_trainer(folder, epochs=settings.epochs, callbacks=callbacks, validate=bool(held))
            trainer.fit(training)
            seconds = time.perf_counter() - started
            loss = float(trainer.callback_metrics["loss_epoch"])
            if settings.patience is not None:
                best = torch.load(checkpoints.best_model_path, weights_only=True)
                training.load_state_dict(best["state_dict"])
                trainer.validate(training, verbose=False)
    passed = settings.batch * trainer.global_step
    metrics = {name: float(trainer.callback_metrics[name]) for name in [f"recall@{k}" for k in CUTOFFS] if held}
    return towers.eval(), metrics | {
        "loss": loss,
        "examples": float(count - held),
        "held_out": float(held),
        "examples_per_s": min(passed, (count - held) * settings.epochs) / seconds,
    }


def _check(
    item_row_I: np.ndarray,
    query_row_N: np.ndarray,
    positive_row_N: NDArray[np.int64],
    weight_N: NDArray[np.float32] | None,
    train: int,
) -> None:
    count = len(positive_row_N)
    if train < 2:
        raise ValueError(f"{train} of {count} positives are left to train the towers on; at least 2 are needed")
    if len(query_row_N) != count:
        raise ValueError(f"{len(query_row_N)} query rows for {count} positives")
    if positive_row_N.min() < 0 or positive_row_N.max() >= len(item_row_I):
        outside = (positive_row_N < 0) | (positive_row_N >= len(item_row_I))
        raise ValueError(f"{outside.sum()} of {count} positives are not among the {len(item_row_I)} items")
    if weight_N is not None and (len(weight_N) != count or not (np.isfinite(weight_N) & (weight_N > 0)).all()):
        fit = int((np.isfinite(weight_N) & (weight_N > 0)).sum())
        raise ValueError(f"{fit} of {len(weight_N)} weights are above 0 and finite; {count} are needed")
