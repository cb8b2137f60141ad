"""Trains the two towers on positives: what was liked, by whom, knowing what was known then.

Shape letters: N examples in time order, W a whole batch, B one process's part of it, S distinct items of the batch's
positives and uniform draws, C those and its other hard negatives, H hard negatives of an example, I items.
"""

import hashlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from pytorch_lightning.callbacks import Callback, EarlyStopping, ModelCheckpoint
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from candidate_gen.embedding import tensors
from candidate_gen.features import FeatureTable
from candidate_gen.losses import StreamingShare, full_softmax, mixture_log_q, sampled_softmax
from candidate_gen.set_softmax import set_softmax
from candidate_gen.towers import Towers, TowerShape
from training.learning.batches import Batch, Batches, Examples
from training.learning.lightning_run import deterministic, keep_log, moved, quiet, trainer_on, unfinished, warmed_cosine
from training.learning.row_adam import RowAdamW
from training.learning.sets import SetBatch, SetBatches, Sets

CUTOFFS = (10, 50, 100)
_WATCHED = "recall@50"
_LARGE_TABLE = 1 << 14
"""Rows from which an embedding table is trained row by row: below, a pass over all of it costs next to nothing."""
Precision = Literal["float32", "bfloat16_loss", "bfloat16"]
_LIGHTNING_PRECISION: dict[str, Literal["32-true", "bf16-mixed"]] = {"bfloat16": "bf16-mixed"}


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerSettings:
    """How to train. The defaults suit catalogues of thousands of items and logs of tens of thousands of positives."""

    shape: TowerShape = field(default_factory=TowerShape)
    temperature: float = 0.1
    """Of the softmax over cosines."""
    temperature_learned: bool = False
    """Begin with it and learn it with the weights."""
    positive_temperature: float | None = None
    """Of the positive's own cosine: a little above `temperature` makes unlikely positives count less. The softmax is
    then bilateral: its sum is over the negatives alone. None for one temperature."""
    softmax: Literal["sampled", "full"] = "sampled"
    """Negatives of a query: the other positives of the batch with log-Q correction, or every item. In the latter case
    equal queries are one, with all their positives, which are no negatives of each other where the softmax is
    bilateral."""
    shares: Literal["counted", "streamed"] = "counted"
    """How the correction knows an item's share of the positives: counted beforehand, or estimated as they pass."""
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
    precision: Precision = "float32"
    """bfloat16_loss: in the matrix products of the softmax alone, twice as fast on processors that multiply it and slow
    on others. bfloat16: in those of the towers too, as suits a GPU."""
    accelerator: Literal["cpu", "cuda"] = "cpu"
    processes: int = 1
    """That share each batch; the loss is the one of the whole batch."""

    def __post_init__(self) -> None:
        for name, least in (("uniform_negatives", 0), ("epochs", 1), ("batch", 2), ("processes", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        for name, allowed in (
            ("softmax", ("sampled", "full")),
            ("shares", ("counted", "streamed")),
            ("precision", ("float32", "bfloat16_loss", "bfloat16")),
            ("accelerator", ("cpu", "cuda")),
        ):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be {' or '.join(map(repr, allowed))}")
        if self.positive_temperature is not None and not self.positive_temperature > 0:
            raise ValueError(f"positive_temperature is {self.positive_temperature}; it must be above 0")
        if self.positive_temperature is not None and self.temperature_learned:
            raise ValueError(
                f"temperature_learned is true but positive_temperature is {self.positive_temperature}; of two "
                "temperatures the loss is least where the other one is infinite"
            )
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate is {self.learning_rate}; it must be above 0")
        if not 0 <= self.validation < 1:
            raise ValueError(f"validation is {self.validation}; it must be at least 0 and below 1")
        if self.patience is not None and not self.validation:
            raise ValueError(f"patience is {self.patience} but validation is 0, so nothing tells when to stop")


class TowerTraining(pl.LightningModule):
    """One epoch is one pass over the training examples; its order and its chance follow from seed and epoch alone.

    Args:
        arguments: identifies what was asked for; kept in the checkpoints.
    """

    log_q_I: Tensor
    steps: Tensor

    def __init__(
        self,
        towers: Towers,
        settings: TowerSettings,
        *,
        item: Mapping[str, Tensor],
        train: Examples,
        held_out: Examples,
        seed: int,
        arguments: str = "",
    ) -> None:
        super().__init__()
        self.towers = towers
        self._settings = settings
        self._item = dict(item)
        self._items = len(next(iter(item.values())))
        self._train = train
        self._held_out = held_out
        self._seed = seed
        self.arguments = arguments
        self.log_temperature = (
            nn.Parameter(torch.tensor(settings.temperature).log()) if settings.temperature_learned else None
        )
        self._products = torch.float32 if settings.precision == "float32" else torch.bfloat16
        self.streamed = StreamingShare(4 * self._items) if settings.shares == "streamed" else None
        count_I = torch.bincount(train.positive_row_NP[train.positive_row_NP >= 0], minlength=self._items)
        self.register_buffer("log_q_I", (count_I / count_I.sum()).log(), persistent=False)
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self._item_ID = torch.empty(0)
        for table in towers.embedder.tables.values():
            assert isinstance(table, nn.Embedding)
            table.sparse = settings.softmax == "sampled" and table.num_embeddings >= _LARGE_TABLE
        one = train.positive_row_NP.shape[1] == 1
        self._sets = Sets.of(train) if settings.softmax == "full" and one else None

    def train_dataloader(self) -> Batches | SetBatches:
        settings, seed = self._settings, (self._seed, self.current_epoch)
        part = (self.global_rank, self.trainer.world_size)
        if self._sets is not None:
            return SetBatches(self._sets, size=settings.batch, seed=seed, part=part)
        return Batches(
            self._train,
            size=settings.batch,
            items=self._items,
            uniform=settings.uniform_negatives if settings.softmax == "sampled" else 0,
            seed=seed,
            part=part,
        )

    def val_dataloader(self) -> Batches:
        size = max(1024, self._held_out.positive_row_NP.shape[1])
        return Batches(self._held_out, size=size, items=self._items)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        settings = self._settings
        steps = settings.epochs * len(self.train_dataloader())
        return warmed_cosine(self.optimizer(), steps=steps, warm=steps // 10)

    def optimizer(self) -> RowAdamW:
        """For all weights of the towers."""
        settings = self._settings
        return RowAdamW(self.parameters(), lr=settings.learning_rate, weight_decay=settings.weight_decay, fused=True)

    def transfer_batch_to_device(
        self,
        batch: Batch | SetBatch,
        device: torch.device,
        dataloader_idx: int,  # noqa: ARG002
    ) -> Batch | SetBatch:
        return moved(batch, device)

    def on_fit_start(self) -> None:
        self._item = {name: column.to(self.device) for name, column in self._item.items()}

    def on_train_epoch_start(self) -> None:
        # A run that was killed and goes on must draw what it would have drawn.
        torch.manual_seed(int(np.random.SeedSequence((self._seed, self.current_epoch)).generate_state(1)[0]))

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["arguments"] = self.arguments

    def training_step(self, batch: Batch | SetBatch, _: int) -> Tensor:
        loss = self.loss(batch)
        self.steps += 1
        count, parted = len(batch.positive_row_W), self.trainer.world_size > 1
        self.log("loss", loss, on_step=True, on_epoch=True, batch_size=count, sync_dist=parted)
        return loss

    def loss(self, batch: Batch | SetBatch) -> Tensor:
        """Of one process's part of a batch, as `TowerSettings.softmax` says; the mean over parts is the batch's."""
        settings = self._settings
        given: dict[str, Any] = {
            "temperature": settings.temperature if self.log_temperature is None else self.log_temperature.exp(),
            "positive_temperature": settings.positive_temperature,
            "products": self._products,
        }
        if isinstance(batch, SetBatch):
            return batch.share * set_softmax(
                self.towers.query_vectors(batch.query),
                self.towers.item_vectors(self._item),
                query_P=batch.query_P,
                item_row_P=batch.item_row_P,
                weight_P=batch.weight_P,
                **given,
            )
        given["weight_B"] = batch.weight_B
        query_BD = self.towers.query_vectors(batch.query, batch.as_of)
        if settings.softmax == "full":
            item_ID = self.towers.item_vectors(self._item)
            return batch.share * full_softmax(query_BD, item_ID, item_row_B=batch.item_row_C[batch.own_B], **given)
        item_row_S = batch.item_row_C[: len(batch.count_S)]
        if self.streamed is None:
            log_q_S = self.log_q_I[item_row_S]
        else:
            self.streamed.update(batch.positive_row_W)
            log_q_S = self.streamed.log_q(item_row_S)
        return batch.share * sampled_softmax(
            query_BD,
            self.towers.item_vectors({name: column[batch.item_row_C] for name, column in self._item.items()}),
            own_B=batch.own_B,
            count_S=batch.count_S,
            log_q_S=mixture_log_q(
                log_q_S, batch=len(batch.positive_row_W), uniform=settings.uniform_negatives, items=self._items
            ),
            hard_BH=batch.hard_BH if batch.hard_BH.shape[1] else None,
            **given,
        )

    def on_validation_epoch_start(self) -> None:
        self._item_ID = self.towers.item_vectors(self._item)

    def validation_step(self, batch: Batch, _: int) -> None:
        """The share of held-out positives among the first k of all items; a tie counts against the positive."""
        score_BI = self.towers.query_vectors(batch.query, batch.as_of) @ self._item_ID.T
        positive_B1 = score_BI.gather(1, batch.positive_row_W[:, None])
        rank_B = (score_BI >= positive_B1).sum(1) - 1
        parted = self.trainer.world_size > 1
        for k in CUTOFFS:
            hit = (rank_B < k).float().mean()
            self.log(f"recall@{k}", hit, on_step=False, on_epoch=True, batch_size=len(rank_B), sync_dist=parted)


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
    hard_row_NH: NDArray[np.int64] | None = None,
) -> tuple[Towers, dict[str, float]]:
    """Train on the first examples, measure on the last.

    The same arguments give the same weights, bit by bit, on the same machine with as many threads, also where the
    folder holds the checkpoint of an epoch of a training with these arguments that was killed: it then goes on
    from there.

    Args:
        item_row_I: records of the table's item dtype, all items.
        query_row_N: records of the query dtype, each as it was known just before its positive, oldest first.
        positive_row_N: rows of the items that were taken; or (N, P), those taken as of each of the first places of the
            example's history (see `candidate_gen.history`), -1 where nothing is to be learned. A causal transformer
            learns from all of them at the cost of one.
        weight_N: above 0; how much each example counts; all the same where not given.
        hard_row_NH: rows of items that were shown with each example and not taken; -1 pads. The full softmax has
            no need of them.
        folder: gets the logs (CSV, TensorBoard) and the checkpoints.

    Returns:
        The towers, ready to serve, and `loss` (of the last epoch), `examples` (of several positives as many),
        `examples_per_s` and, where something was held out, `recall@k` over all items for each of `CUTOFFS`, with
        `held_out` examples.

    Raises:
        ValueError: where there is nothing to train on or the arguments do not fit each other.
    """
    count = len(positive_row_N)
    held = round(settings.validation * count)
    _check(item_row_I, query_row_N, positive_row_N, weight_N, hard_row_NH, train=count - held)
    weight_N = np.ones(count, np.float32) if weight_N is None else weight_N
    hard_row_NH = np.empty((count, 0), np.int64) if hard_row_NH is None else hard_row_NH
    positive_row_NP = np.array(positive_row_N, np.int64).reshape(count, -1)
    folder.mkdir(parents=True, exist_ok=True)

    def examples(part: slice) -> Examples:
        return Examples(
            tensors(query_row_N[part], table.of("query")),
            torch.from_numpy(positive_row_NP[part]),
            torch.from_numpy(np.array(weight_N[part], np.float32)),
            torch.from_numpy(np.array(hard_row_NH[part], np.int64)),
        )

    train, rest = slice(count - held), slice(count - held, None)
    learned = positive_row_NP[train][positive_row_NP[train] >= 0]
    with deterministic(seed):
        towers = Towers(table, settings.shape, temperature=settings.temperature)
        taken = item_row_I[np.unique(learned)]
        towers.embedder.fit_ids(query_row_N[train], taken)
        towers.embedder.fit_numbers(query_row_N[train], taken)
        taken_on = query_row_N[train][(positive_row_NP[train] >= 0).nonzero()[0]]
        towers.fit_graph(taken_on, item_row_I[learned], seed=seed)
        training = TowerTraining(
            towers,
            settings,
            item=tensors(item_row_I, table.of("item")),
            train=examples(train),
            held_out=examples(rest),
            seed=seed,
            arguments=_arguments(
                towers, settings, seed, (item_row_I, query_row_N, positive_row_N, weight_N, hard_row_NH)
            ),
        )
        kept = folder / "checkpoints"
        every_epoch: dict[str, Any] = {"save_on_train_epoch_end": True, "enable_version_counter": False}
        callbacks: list[Callback] = []
        if settings.patience is not None:
            callbacks.append(EarlyStopping(_WATCHED, mode="max", patience=settings.patience))
            callbacks.append(ModelCheckpoint(kept, filename="best", monitor=_WATCHED, mode="max", **every_epoch))
        # It holds the state of those before it.
        callbacks.append(ModelCheckpoint(kept, filename="last", **every_epoch))
        last = kept / "last.ckpt"
        passed = unfinished(last, training.arguments, epochs=settings.epochs)
        started = time.perf_counter()
        with quiet():
            trainer = trainer_on(
                settings.accelerator,
                folder,
                epochs=settings.epochs,
                callbacks=callbacks,
                validate=bool(held),
                precision=_LIGHTNING_PRECISION.get(settings.precision, "32-true"),
                processes=settings.processes,
            )
            if passed:
                keep_log(trainer, folder, steps=passed)
            trainer.fit(training, ckpt_path=last if passed else None, weights_only=True)
            seconds = time.perf_counter() - started
            steps = int(training.steps) - passed
            loss = float(trainer.callback_metrics["loss_epoch"])
            if settings.patience is not None:
                best = torch.load(kept / "best.ckpt", weights_only=True)
                training.load_state_dict(best["state_dict"])
                trainer.validate(training, verbose=False)
    metrics = {name: float(trainer.callback_metrics[name]) for name in [f"recall@{k}" for k in CUTOFFS] if held}
    if training.log_temperature is not None:
        towers.temperature = metrics["temperature"] = math.exp(training.log_temperature.item())
    towers.propagate(taken_on, item_row_I[learned])
    return towers.eval(), metrics | {
        "loss": loss,
        "examples": float(len(learned)),
        "held_out": float(held),
        "examples_per_s": min(settings.batch * steps, len(learned) * settings.epochs) / seconds,
    }


def _arguments(towers: Towers, settings: TowerSettings, seed: int, arrays: Sequence[np.ndarray]) -> str:
    """Identifies a training: equal texts, equal results."""
    shapes = {name: tuple(weight.shape) for name, weight in towers.state_dict().items()}
    digest = hashlib.sha256(f"{settings} {seed} {towers.table.fingerprint} {shapes}".encode())
    for array in arrays:
        digest.update(f"{array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def _check(
    item_row_I: np.ndarray,
    query_row_N: np.ndarray,
    positive_row_N: NDArray[np.int64],
    weight_N: NDArray[np.float32] | None,
    hard_row_NH: NDArray[np.int64] | None,
    *,
    train: int,
) -> None:
    count = len(positive_row_N)
    if train < 2:
        raise ValueError(f"{train} of {count} positives are left to train the towers on; at least 2 are needed")
    if len(query_row_N) != count:
        raise ValueError(f"{len(query_row_N)} query rows for {count} positives")
    outside = (positive_row_N < 1 - positive_row_N.ndim) | (positive_row_N >= len(item_row_I))
    if outside.any():
        raise ValueError(
            f"{outside.sum()} of {positive_row_N.size} positives are not among the {len(item_row_I)} items"
        )
    if positive_row_N.ndim > 1:
        places = query_row_N["history_item"].shape[1] if "history_item" in (query_row_N.dtype.names or ()) else 0
        if positive_row_N.shape[1] > places:
            raise ValueError(f"positives as of {positive_row_N.shape[1]} places of histories of {places}")
        if hard_row_NH is not None:
            raise ValueError("hard negatives are of one positive each; examples have several")
    if weight_N is not None and (len(weight_N) != count or not (np.isfinite(weight_N) & (weight_N > 0)).all()):
        fit = int((np.isfinite(weight_N) & (weight_N > 0)).sum())
        raise ValueError(f"{fit} of {len(weight_N)} weights are above 0 and finite; {count} are needed")
    if hard_row_NH is not None and len(hard_row_NH) != count:
        raise ValueError(f"{len(hard_row_NH)} rows of hard negatives for {count} positives")
    if hard_row_NH is not None and hard_row_NH.size and hard_row_NH.max() >= len(item_row_I):
        outside = hard_row_NH >= len(item_row_I)
        raise ValueError(f"{outside.sum()} of {hard_row_NH.size} hard negatives are not among {len(item_row_I)} items")
