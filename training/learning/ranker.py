"""Trains the ranker on exposures and their outcomes, and calibrates it on the last of them.

Training explains a label as P(examined | position) * P(action | examined); the first factor is learned from the log
beside the ranker and left behind, the second is what is calibrated, measured and served.

Shape letters: R requests, N examples, B a batch, Q requests of a batch, A actions, P positions.
"""

import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

import numpy as np
import pytorch_lightning as pl
import torch
from numpy.typing import NDArray
from pytorch_lightning.callbacks import Callback, EarlyStopping
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from candidate_gen.embedding import tensors
from candidate_gen.features import FeatureTable, RowKind
from ranking.calibration import KINDS, Calibration, CurveKind
from ranking.losses import action_loss, inverse_propensity_weights, listwise_loss
from ranking.metrics import auc, ece, gauc, logloss, ndcg_at
from ranking.model import Ranker, RankerShape
from ranking.position import Examination
from training.examples.exposures import Examples
from training.learning.judged import JudgedLists, JudgedSettings
from training.learning.lightning_run import cpu_trainer, deterministic, moved, quiet, warmed_cosine

_WATCHED = "held_out_loss"
_EXAMINATION_PACE = 3.0
"""How much faster the few examination logits learn than the ranker's weights. At 10 they still swing when training
stops: twice the error on the simulated world."""
_CUTOFF = 10


@dataclass(frozen=True, slots=True, kw_only=True)
class RankerSettings:
    """How to train. The defaults suit logs of tens of thousands to millions of exposures."""

    shape: RankerShape = field(default_factory=RankerShape)
    epochs: int = 3
    """At most; the weights of the epoch with the least held-out loss are kept."""
    warm_start: bool = False
    """Go on from the ranker in force, and learn only from what it has not learned from. Where none is in force, or
    one of other features or another shape, training begins anew."""
    warm_learning_rate: float = 2e-3
    """Instead of `learning_rate` after a warm start."""
    patience: int = 1
    """Epochs without a smaller held-out loss after which training stops."""
    batch: int = 512
    """Exposures; a batch is made of whole requests, so it is a little more."""
    learning_rate: float = 5e-3
    weight_decay: float = 1e-5
    listwise: float = 0.1
    """Weight of the softmax of the main action within a request, beside the cross-entropies."""
    ips_clip: float = 1.0
    """Largest weight that a small propensity can give an exposure; 1 weighs all alike."""
    positions: int = 50
    """Slots with an examination probability of their own."""
    validation: float = 0.15
    """Share of the requests, the last ones, that are held out and calibrated on."""
    calibration: CurveKind | Literal["auto"] = "auto"
    """Of every action; auto: for each what `ranking.calibration.choose` finds."""
    judged: JudgedSettings = field(default_factory=JudgedSettings)

    def __post_init__(self) -> None:
        for name in ("epochs", "patience", "batch", "positions", "ips_clip"):
            if not getattr(self, name) >= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        for name in ("weight_decay", "listwise"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must not be negative")
        for name in ("learning_rate", "warm_learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be above 0")
        if not 0 < self.validation < 1:
            raise ValueError(f"validation is {self.validation}; it must be above 0 and below 1")
        if self.calibration not in ("auto", *KINDS):
            raise ValueError(f"calibration is {self.calibration!r}; it must be auto, {', '.join(KINDS)}")


@dataclass(frozen=True, slots=True)
class Earlier:
    """A ranker to go on from."""

    ranker: Ranker
    examination_P: NDArray[np.float64]
    """The curve that was learned beside it."""
    learned_until_ms: int
    """Time of the last request that it was trained on; what was held out then comes after."""


@dataclass(frozen=True, slots=True)
class Batch:
    """Exposures of whole requests, and of each request its query columns once."""

    query: dict[str, Tensor]
    item: dict[str, Tensor]
    pair: dict[str, Tensor]
    request_B: Tensor
    """Position of the exposure's request among `query`; never falls."""
    position_B: Tensor
    label_BA: Tensor
    weight_B: Tensor

    def take(self, request_Q: Tensor, request_B: Tensor, row_B: Tensor) -> "Batch":
        """Requests and their rows; `request_B` points into `request_Q`."""
        return Batch(
            {name: column.index_select(0, request_Q) for name, column in self.query.items()},
            {name: column.index_select(0, row_B) for name, column in self.item.items()},
            {name: column.index_select(0, row_B) for name, column in self.pair.items()},
            request_B,
            self.position_B[row_B],
            self.label_BA[row_B],
            self.weight_B[row_B],
        )


class Batches:
    """Slices of tensors that are already in memory, cut between requests; with a seed, requests in a new order."""

    def __init__(self, examples: Batch, *, size: int, seed: tuple[int, int] | None = None) -> None:
        self._examples = examples
        self._count_R = np.bincount(examples.request_B.numpy())
        self._start_R = np.cumsum(self._count_R) - self._count_R
        requests = len(self._count_R)
        self._order_R = np.random.default_rng(seed).permutation(requests) if seed else np.arange(requests)
        before_R = np.cumsum(self._count_R[self._order_R]) - self._count_R[self._order_R]
        self._cut = [*np.flatnonzero(np.diff(before_R // size, prepend=-1)).tolist(), requests]

    def __len__(self) -> int:
        return len(self._cut) - 1

    def __iter__(self) -> Iterator[Batch]:
        for first, last in pairwise(self._cut):
            request_Q = self._order_R[first:last]
            count_Q = self._count_R[request_Q]
            request_B = np.repeat(np.arange(len(request_Q)), count_Q)
            slot_B = np.arange(len(request_B)) - (np.cumsum(count_Q) - count_Q)[request_B]
            row_B = self._start_R[request_Q][request_B] + slot_B
            yield self._examples.take(*(torch.from_numpy(each) for each in (request_Q, request_B, row_B)))


class RankerTraining(pl.LightningModule):
    """One epoch is one pass over the training requests, in an order that follows from seed and epoch alone."""

    def __init__(
        self,
        ranker: Ranker,
        examination: Examination,
        settings: RankerSettings,
        *,
        train: Batch,
        held_out: Batch,
        judged: Batch | None,
        seed: int,
    ) -> None:
        super().__init__()
        self.ranker = ranker
        self.examination = examination
        self._settings = settings
        self._train = train
        self._held_out = held_out
        self._judged = judged
        self._judged_batches: list[Batch] = []
        self._seed = seed
        self._least = math.inf
        self._best: dict[str, Tensor] = {}

    def train_dataloader(self) -> Batches:
        return Batches(self._train, size=self._settings.batch, seed=(self._seed, self.current_epoch))

    def val_dataloader(self) -> Batches:
        return Batches(self._held_out, size=4096)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        settings = self._settings
        groups = [
            {"params": list(self.ranker.parameters()), "weight_decay": settings.weight_decay},
            {
                "params": list(self.examination.parameters()),
                "lr": _EXAMINATION_PACE * settings.learning_rate,
                "weight_decay": 0.0,
            },
        ]
        optimizer = torch.optim.AdamW(groups, lr=settings.learning_rate, fused=True)
        steps = settings.epochs * len(self.train_dataloader())
        return warmed_cosine(optimizer, steps=steps, warm=steps // 20)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:  # noqa: ARG002
        return moved(batch, device)

    def forward(self, batch: Batch) -> Tensor:
        """Logits of P(action | examined), (B, A)."""
        logit_BA: Tensor = self.ranker(self.ranker.query_half(batch.query), batch.item, batch.pair, batch.request_B)
        return logit_BA

    def on_train_epoch_start(self) -> None:
        if self._judged is not None:
            seed = (self._seed, self.current_epoch)
            self._judged_batches = list(Batches(self._judged, size=self._settings.batch, seed=seed))

    def training_step(self, batch: Batch, number: int) -> Tensor:
        logit_BA, examination_B = self(batch), self.examination(batch.position_B)
        loss = action_loss(logit_BA, batch.label_BA, examination_B=examination_B, weight_B=batch.weight_B).sum()
        if self._settings.listwise:
            loss = loss + self._settings.listwise * listwise_loss(
                logit_BA[:, 0], batch.label_BA[:, 0], batch.request_B, examination_B=examination_B
            )
        if self._judged_batches:
            lists = moved(self._judged_batches[number % len(self._judged_batches)], batch.label_BA.device)
            share_B = lists.label_BA[:, 0]
            loss = loss + self._settings.judged.weight * listwise_loss(self(lists)[:, 0], share_B, lists.request_B)
        self.log("loss", loss, on_step=True, on_epoch=True, batch_size=len(logit_BA))
        return loss

    def validation_step(self, batch: Batch, _: int) -> None:
        """Cross-entropy summed over actions; neither weights nor lists, so that it compares across settings."""
        loss = action_loss(self(batch), batch.label_BA, examination_B=self.examination(batch.position_B)).sum()
        self.log(_WATCHED, loss, on_step=False, on_epoch=True, batch_size=len(batch.position_B))

    def on_validation_epoch_end(self) -> None:
        loss = float(self.trainer.callback_metrics[_WATCHED])
        if loss < self._least:
            self._least = loss
            self._best = {name: weight.clone() for name, weight in self.state_dict().items()}

    def keep_best(self) -> None:
        """Back to the weights of the epoch with the least held-out loss.

        Raises:
            ValueError: where the loss was never finite.
        """
        if not self._best:
            raise ValueError("training diverged: the held-out loss was never finite; lower the learning rate")
        self.load_state_dict(self._best)


def train_ranker(
    table: FeatureTable,
    examples: Examples,
    *,
    settings: RankerSettings,
    seed: int,
    folder: Path,
    earlier: Earlier | None = None,
    judged: JudgedLists | None = None,
) -> tuple[Ranker, Calibration, dict[str, float]]:
    """Train on the first requests, stop by, calibrate and measure on the last.

    The same arguments give the same weights, bit by bit, on the same machine with as many threads.

    Args:
        folder: gets the logs (CSV, TensorBoard).
        earlier: of the same table and shape; then this is a warm start, and ids that it knew stay known.
        judged: lists whose softmax is learned beside what the log says of the main action.

    Returns:
        The ranker, ready to serve; its calibration of P(action | examined); and, of the held-out requests: for
        each action `<action>.auc` and `.gauc` (within a request) of the score that serving orders by, `.logloss`
        and `.ece` of P(examined | position) * calibrated P(action | examined), which is what a logged label
        follows, with each half of the requests calibrated on the other, `.ece_raw` before calibration, and
        `.calibration.<kind>`, 1, of the curve that serves; `ndcg@10` of the main action within requests that have
        one; `examination.<position>`; `examples`, `held_out`, `epochs`, `warm_start` (1 or 0), `examples_per_s`;
        `learned_until_ms`, the time of the last request trained on; and of judged lists held out `judged.ndcg@10`
        and `judged.queries`.

    Raises:
        ValueError: where there is too little to train on, a feature is not finite, or the earlier ranker does not fit.
    """
    train, held_out = split_by_time(examples, settings.validation)
    _check(table, examples)
    if earlier is not None:
        settings = replace(settings, learning_rate=settings.warm_learning_rate)
    folder.mkdir(parents=True, exist_ok=True)
    with deterministic(seed):
        ranker = Ranker(table, settings.shape)
        examination = Examination(min(settings.positions, int(train.position_N.max()) + 1))
        _start_from_rates(ranker, examination, train)
        lists = judged and judged.part(held_out=False)
        read = Examples.concatenate([train, lists.rows]) if lists else train
        rows = (read.query_row_R, read.item_row_N, read.pair_row_N)
        ranker.embed.fit_numbers(*rows)
        ranker.embed.fit_ids(*rows)
        if earlier is not None:
            _go_on_from(earlier, ranker, examination)
        training = RankerTraining(
            ranker,
            examination,
            settings,
            train=_batch(table, train, clip=settings.ips_clip),
            held_out=_batch(table, held_out, clip=1.0),
            judged=_batch(table, lists.rows, clip=1.0) if lists and settings.judged.weight else None,
            seed=seed,
        )
        callbacks: list[Callback] = [EarlyStopping(_WATCHED, patience=settings.patience)]
        started = time.perf_counter()
        with quiet():
            trainer = cpu_trainer(folder, epochs=settings.epochs, callbacks=callbacks)
            trainer.fit(training)
        seconds = time.perf_counter() - started
        training.keep_best()
    training.eval()
    with torch.inference_mode():
        logit_NA = torch.cat([training(batch) for batch in training.val_dataloader()]).numpy()
        unseen = judged and judged.part(held_out=True)
        figures = unseen.figures(training(_batch(table, unseen.rows, clip=1.0))[:, 0].numpy()) if unseen else {}
    curve_P = examination.curve_P
    calibration, metrics = calibrated(table.actions, logit_NA, held_out, curve_P=curve_P, kind=settings.calibration)
    return (
        ranker.eval(),
        calibration,
        metrics
        | figures
        | {
            "examples": float(len(train)),
            "held_out": float(len(held_out)),
            "epochs": float(trainer.current_epoch),
            "warm_start": float(earlier is not None),
            "learned_until_ms": float(train.time_ms_R.max()),
            "examples_per_s": len(train) * trainer.current_epoch / seconds,
        },
    )


def split_by_time(examples: Examples, validation: float) -> tuple[Examples, Examples]:
    """The first requests and the last `validation` share of them, each with all its exposures.

    Raises:
        ValueError: where one of the parts would be empty.
    """
    requests = len(examples.time_ms_R)
    held = max(1, round(validation * requests))
    if requests <= held:
        raise ValueError(
            f"{requests} requests with mature outcomes; the ranker needs at least {held + 1} to learn from"
        )
    last_R = np.zeros(requests, np.bool_)
    last_R[np.argsort(examples.time_ms_R, kind="stable")[requests - held :]] = True
    row_N = np.argsort(examples.request_N, kind="stable")
    last_N = last_R[examples.request_N[row_N]]
    return examples.take(row_N[~last_N]), examples.take(row_N[last_N])


def rates_by_position(label_NA: NDArray[np.float32], position_N: NDArray[np.integer]) -> NDArray[np.float64]:
    """Where an examination curve begins, (P,): rates of any action, as if every position held the same items.

    1 at position 0, from 0.02 to 0.98 beyond.
    """
    any_N, shown_P = label_NA.max(axis=1), np.bincount(position_N)
    # A few pseudo-exposures at the overall rate keep the ratio finite where a position is rare.
    rate_P = (np.bincount(position_N, any_N) + 10 * any_N.mean() + 1e-9) / (shown_P + 10)
    return np.concatenate([[1.0], np.clip(rate_P[1:] / rate_P[0], 0.02, 0.98)])


def calibrated(
    actions: Sequence[str],
    logit_NA: NDArray[np.floating],
    held_out: Examples,
    *,
    curve_P: NDArray[np.float64],
    kind: CurveKind | Literal["auto"],
) -> tuple[Calibration, dict[str, float]]:
    """Calibration of logits of P(action | examined), and their metrics against logged labels; see `train_ranker`.

    Args:
        curve_P: examination of each position; beyond the last, as there.
    """
    label_NA, request_N = held_out.label_NA, held_out.request_N
    examination_N = curve_P[np.clip(held_out.position_N, 0, len(curve_P) - 1)]
    serving = Calibration.fit(actions, logit_NA, label_NA, group_N=request_N, examination_N=examination_N, kind=kind)
    raw_NA = examination_N[:, None] * Calibration.identity(actions).apply(logit_NA)
    probability_NA = np.empty_like(raw_NA)
    for half in (0, 1):
        fit_N = request_N % 2 != half
        calibration = Calibration.fit(
            actions,
            logit_NA[fit_N],
            label_NA[fit_N],
            group_N=request_N[fit_N],
            examination_N=examination_N[fit_N],
            kind=kind,
        )
        probability_NA[~fit_N] = examination_N[~fit_N, None] * calibration.apply(logit_NA[~fit_N])
    metrics: dict[str, float] = {}
    for a, action in enumerate(actions):
        label_N, score_N = label_NA[:, a], logit_NA[:, a]
        metrics |= {
            f"{action}.auc": auc(label_N, score_N),
            f"{action}.gauc": gauc(label_N, score_N, request_N).mean,
            f"{action}.logloss": logloss(label_N, probability_NA[:, a]),
            f"{action}.ece": ece(label_N, probability_NA[:, a]),
            f"{action}.ece_raw": ece(label_N, raw_NA[:, a]),
        }
    ndcg = ndcg_at(_CUTOFF, label_NA[:, 0], logit_NA[:, 0], request_N)
    metrics |= {f"ndcg@{_CUTOFF}": ndcg.mean, f"ndcg@{_CUTOFF}.requests": float(ndcg.groups)}
    metrics |= {f"{action}.calibration.{kind}": 1.0 for action, kind in zip(actions, serving.kinds, strict=True)}
    return serving, metrics | {f"examination.{p}": float(share) for p, share in enumerate(curve_P)}


def _batch(table: FeatureTable, examples: Examples, *, clip: float) -> Batch:
    return Batch(
        tensors(examples.query_row_R, table.of("query")),
        tensors(examples.item_row_N, table.of("item")),
        tensors(examples.pair_row_N, table.of("pair")),
        torch.tensor(examples.request_N),
        torch.tensor(examples.position_N, dtype=torch.int64),
        torch.tensor(examples.label_NA),
        torch.from_numpy(inverse_propensity_weights(examples.propensity_N, clip=clip)),
    )


def _check(table: FeatureTable, examples: Examples) -> None:
    kinds: tuple[tuple[RowKind, np.ndarray], ...] = (
        ("query", examples.query_row_R),
        ("item", examples.item_row_N),
        ("pair", examples.pair_row_N),
    )
    for kind, rows in kinds:
        for feature in table.of(kind):
            if feature.kind == "number" and not (finite := np.isfinite(rows[feature.name])).all():
                raise ValueError(
                    f"feature {feature.name!r} is not finite in {int((~finite).sum())} of {len(rows)} {kind} rows"
                )


def _start_from_rates(ranker: Ranker, examination: Examination, train: Examples) -> None:
    """Begin at what the labels say without features: rates by position, as if every position held the same items."""
    positions = len(examination.logit_P) + 1
    position_N = np.minimum(train.position_N, positions - 1)
    with torch.no_grad():
        examination.logit_P.copy_(torch.logit(torch.from_numpy(rates_by_position(train.label_NA, position_N)[1:])))
        examined = float(examination.curve_P[position_N].mean())
        rate_A = torch.from_numpy(train.label_NA.mean(0)) / examined
        ranker.linear.bias.copy_(torch.logit(rate_A.clamp(1e-4, 0.9)))


def _go_on_from(earlier: Earlier, ranker: Ranker, examination: Examination) -> None:
    """Take over what was learned, and how numbers were standardised where they varied; known ids stay known."""
    before = earlier.ranker
    if before.shape != ranker.shape:
        raise ValueError(f"the ranker to start from has {before.shape}, not {ranker.shape}")
    numbers = {name: getattr(ranker.embed, name).clone() for name in ("mean_F", "scale_F")}
    ids = {f"known_{name}": getattr(ranker.embed, f"known_{name}") for name in ranker.embed.tables}
    try:
        ranker.load_state_dict(before.state_dict())
    except RuntimeError as error:
        raise ValueError(
            f"the ranker to start from has another feature table: {' '.join(str(error).split())}"
        ) from None
    varied_F = before.embed.scale_F > 0
    for name, now_F in numbers.items():
        setattr(ranker.embed, name, torch.where(varied_F, getattr(before.embed, name), now_F))
    for name, now in ids.items():
        held = getattr(before.embed, name)
        setattr(ranker.embed, name, torch.unique(torch.cat([held, now])) if len(held) else held.clone())
    known = min(len(earlier.examination_P) - 1, len(examination.logit_P))
    with torch.no_grad():
        curve_P = torch.from_numpy(earlier.examination_P[1 : known + 1])
        examination.logit_P[:known].copy_(torch.logit(curve_P.clamp(0.001, 0.999)))
