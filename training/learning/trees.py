"""Grows the boosted trees on exposures and their outcomes, and calibrates them on the last of them.

As for the deep ranker, a label is P(examined | position) * P(action | examined), and only the second factor is
served. With s = sigmoid(z) the second factor, e the first and p = e s, the loss is the cross-entropy of p, whose
gradient in z is (p - y) (1 - s) / (1 - p) and whose expected second derivative is p (1 - s)^2 / (1 - p). Beside each
tree of the main action the curve e takes one step of Fisher scoring; the other actions are grown with what it found.

Shape letters: N examples, A actions, C columns, P positions, T trees.
"""

import csv
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from candidate_gen.features import FeatureTable
from ranking.calibration import KINDS, Calibration, CurveKind
from ranking.losses import inverse_propensity_weights
from ranking.metrics import ndcg_at
from ranking.trees import Columns, Trees
from training.examples.exposures import Examples
from training.learning.judged import JudgedLists, JudgedSettings
from training.learning.ranker import calibrated, rates_by_position, split_by_time

_CUTOFF = 10
_LEAST_EXAMINED = 0.02
_STEPS = 6
"""Of relevance above none; the best gains 2^6 - 1."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TreesSettings:
    """How to grow. The defaults suit logs of tens of thousands to millions of exposures."""

    objective: Literal["binary", "lambdarank"] = "binary"
    """What the trees of the main action minimise: cross-entropy, or LambdaMART's loss, for the order alone."""
    trees: int = 300
    """At most, for each action."""
    patience: int = 20
    """Trees without a smaller held-out loss after which an action is finished; the last ones are cut off."""
    leaves: int = 15
    learning_rate: float = 0.05
    leaf_rows: int = 50
    """Fewest exposures in a leaf."""
    column_share: float = 0.8
    """Share of the columns that a tree looks at, drawn for each."""
    l2: float = 1.0
    ips_clip: float = 1.0
    """Largest weight that a small propensity can give an exposure; 1 weighs all alike."""
    positions: int = 50
    """Slots with an examination probability of their own."""
    validation: float = 0.15
    """Share of the requests, the last ones, that are held out and calibrated on."""
    calibration: CurveKind | Literal["auto"] = "auto"
    """Of every action; auto: for each what `ranking.calibration.choose` finds."""
    judged: JudgedSettings = field(default_factory=JudgedSettings)
    """Learned from by `lambdarank` alone."""

    def __post_init__(self) -> None:
        least = {"trees": 1, "patience": 1, "leaves": 2, "leaf_rows": 1, "positions": 1, "ips_clip": 1, "l2": 0}
        for name, low in least.items():
            if not getattr(self, name) >= low:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {low}")
        if not self.learning_rate > 0:
            raise ValueError(f"learning_rate is {self.learning_rate}; it must be above 0")
        if not 0 < self.column_share <= 1:
            raise ValueError(f"column_share is {self.column_share}; it must be above 0 and at most 1")
        if not 0 < self.validation < 1:
            raise ValueError(f"validation is {self.validation}; it must be above 0 and below 1")
        for name, known in (("objective", ("binary", "lambdarank")), ("calibration", ("auto", *KINDS))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}; it must be one of {', '.join(known)}")
        if self.judged.judgments and self.judged.weight and self.objective != "lambdarank":
            raise ValueError(f"objective is {self.objective!r}; judged lists are learned from by 'lambdarank' alone")


@dataclass(frozen=True, slots=True)
class _Part:
    """Exposures as trees read them."""

    row_NC: NDArray[np.float32]
    label_NA: NDArray[np.float32]
    position_N: NDArray[np.int64]
    weight_N: NDArray[np.float32]
    request_N: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _Lists:
    """Rows in lists, as LambdaMART reads them."""

    row_NC: NDArray[np.float32]
    label_N: NDArray[np.float32]
    weight_N: NDArray[np.float32]
    position_N: NDArray[np.int64]
    count_R: NDArray[np.int64]

    @classmethod
    def of(cls, part: _Part) -> "_Lists":
        label_N, group_R = np.ascontiguousarray(part.label_NA[:, 0]), np.bincount(part.request_N)
        return cls(part.row_NC, label_N, part.weight_N, part.position_N, group_R[group_R > 0])

    def before(self, lists: JudgedLists, columns: Columns, settings: TreesSettings) -> "_Lists":
        """These and the judged ones, their relevance in whole steps as LightGBM wants it."""
        judged = _Lists.of(_part(columns, lists.rows, 1, clip=1.0))
        step_N = np.rint(_STEPS * lists.relevance_N / lists.relevance_N.max()).astype(np.float32)
        return _Lists(
            np.concatenate([self.row_NC, judged.row_NC]),
            np.concatenate([self.label_N, step_N]),
            np.concatenate([self.weight_N, settings.judged.weight * judged.weight_N]),
            np.concatenate([self.position_N, 1 + self.position_N.max() + judged.position_N]),
            np.concatenate([self.count_R, judged.count_R]),
        )


class _ExaminedLoss:
    """Cross-entropy of e * sigmoid(z) for one action, as LightGBM asks for it."""

    def __init__(self, train: _Part, action: int, curve_P: NDArray[np.float64], *, moves: bool) -> None:
        self._train, self._action = train, action
        self._moves = moves
        self.curve_P = curve_P

    def step(self, score_N: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Gradient and expected second derivative on the training part."""
        label_N, weight_N = self._train.label_NA[:, self._action], self._train.weight_N
        taken_N = _sigmoid(score_N)
        if self._moves:
            self._move(taken_N, label_N)
        seen_N = self.curve_P[self._train.position_N] * taken_N
        share_N = (1 - taken_N) / (1 - seen_N)
        return weight_N * (seen_N - label_N) * share_N, weight_N * seen_N * (1 - taken_N) * share_N

    def loss(self, score_N: NDArray[np.float64], part: _Part) -> float:
        """Without weights, so that it compares across settings."""
        seen_N = self.curve_P[part.position_N] * _sigmoid(score_N)
        return float(-np.log(np.where(part.label_NA[:, self._action] > 0, seen_N, 1 - seen_N)).mean())

    def _move(self, taken_N: NDArray[np.float64], label_N: NDArray[np.float32]) -> None:
        """One step towards the curve that is likeliest given P(action | examined).

        It is divided by its first value: that fixes the scale, which the product leaves open, and takes out how much
        all of it rises while trees learn labels by heart.
        """
        examined_N = self.curve_P[self._train.position_N]
        unseen_N = 1 - examined_N * taken_N
        gradient_N = label_N / examined_N - (1 - label_N) * taken_N / unseen_N
        information_N = taken_N / (examined_N * unseen_N)
        positions = len(self.curve_P)
        gradient_P = np.bincount(self._train.position_N, gradient_N, positions)
        # The 1 keeps a position that nobody was shown where it is.
        information_P = 1 + np.bincount(self._train.position_N, information_N, positions)
        moved_P = self.curve_P + gradient_P / information_P
        self.curve_P = np.clip(moved_P / moved_P[0], _LEAST_EXAMINED, 1)


def train_trees(
    table: FeatureTable,
    examples: Examples,
    *,
    settings: TreesSettings,
    seed: int,
    folder: Path,
    judged: JudgedLists | None = None,
) -> tuple[Trees, Calibration, dict[str, float]]:
    """Grow on the first requests, stop by, calibrate and measure on the last.

    The same arguments give the same trees, bit by bit, on the same machine with as many threads.

    Args:
        folder: gets the losses by tree (CSV), summed over actions.
        judged: lists that LambdaMART learns beside those of the log.

    Returns:
        The trees, ready to serve; their calibration of P(action | examined); and what `train_ranker` says of the
        held-out requests, under the same names, with `<action>.trees` in place of `epochs`.

    Raises:
        ValueError: where there is too little to grow on.
    """
    first, last = split_by_time(examples, settings.validation)
    columns = Columns(table)
    positions = min(settings.positions, int(first.position_N.max()) + 1)
    train = _part(columns, first, positions, clip=settings.ips_clip)
    held_out = _part(columns, last, positions, clip=1.0)
    curve_P = rates_by_position(train.label_NA, train.position_N)
    text_A, base_A, losses = [], [], []
    started = time.perf_counter()
    for a in range(len(table.actions)):
        examined = float(curve_P[train.position_N].mean())
        base = float(_logit(np.clip(train.label_NA[:, a].mean() / examined, 1e-4, 0.9)))
        loss = _ExaminedLoss(train, a, curve_P, moves=a == 0)
        text, curve = _grown(columns, train, held_out, loss, base=base, settings=settings, seed=seed)
        curve_P = loss.curve_P
        if a == 0 and settings.objective == "lambdarank":
            lists = judged and judged.part(held_out=False)
            text, base = _ordering(columns, train, held_out, lists, settings=settings, seed=seed), 0.0
        text_A.append(text)
        base_A.append(base)
        losses.append(curve)
    seconds = time.perf_counter() - started
    _leave(losses, folder)
    trees = Trees(table, text_A, base_A)
    logit_NA = trees.logits(held_out.row_NC)
    calibration, metrics = calibrated(table.actions, logit_NA, last, curve_P=curve_P, kind=settings.calibration)
    if judged is not None:
        unseen = judged.part(held_out=True)
        metrics |= unseen.figures(trees.logits(_part(columns, unseen.rows, 1, clip=1.0).row_NC)[:, 0])
    return (
        trees,
        calibration,
        metrics
        | {f"{action}.trees": float(n) for action, n in zip(table.actions, trees.count_A, strict=True)}
        | {
            "examples": float(len(first)),
            "held_out": float(len(last)),
            "examples_per_s": len(first) / seconds,
        },
    )


def _part(columns: Columns, examples: Examples, positions: int, *, clip: float) -> _Part:
    return _Part(
        columns.matrix(examples.query_row_R, examples.request_N, examples.item_row_N, examples.pair_row_N),
        examples.label_NA,
        np.clip(examples.position_N, 0, positions - 1).astype(np.int64),
        inverse_propensity_weights(examples.propensity_N, clip=clip),
        examples.request_N,
    )


def _grown(
    columns: Columns,
    train: _Part,
    held_out: _Part,
    loss: _ExaminedLoss,
    *,
    base: float,
    settings: TreesSettings,
    seed: int,
) -> tuple[str, NDArray[np.float64]]:
    """The model of an action, and its losses tree by tree, (T, 2): of training, held out."""
    import lightgbm  # as in ranking/trees.py: only where trees are asked for

    data = lightgbm.Dataset(
        train.row_NC, categorical_feature=list(columns.categorical), init_score=np.full(len(train.row_NC), base)
    )
    valid = data.create_valid(held_out.row_NC, init_score=np.full(len(held_out.row_NC), base))

    def step(score_N: NDArray[np.float64], _: Any) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return loss.step(score_N)  # a function, for of a bound method LightGBM would copy the object

    def told(score_N: NDArray[np.float64], asked: Any) -> tuple[str, float, bool]:
        return "loss", loss.loss(score_N, train if asked is data else held_out), False

    heard: dict[str, Any] = {}
    model = lightgbm.train(
        {**_parameters(settings, seed), "objective": step, "metric": "None"},
        data,
        settings.trees,
        valid_sets=[data, valid],
        valid_names=["training", "held_out"],
        feval=told,
        callbacks=[lightgbm.early_stopping(settings.patience, verbose=False), lightgbm.record_evaluation(heard)],
    )
    curve = np.array([heard["training"]["loss"], heard["held_out"]["loss"]]).T
    return model.model_to_string(num_iteration=model.best_iteration), curve


def _ordering(
    columns: Columns, train: _Part, held_out: _Part, lists: JudgedLists | None, *, settings: TreesSettings, seed: int
) -> str:
    """LambdaMART (Burges 2010) on the main action, with LightGBM's own correction of position bias.

    Judged lists stand all in one position behind the last: within a list none is looked at more than another.
    """
    import lightgbm

    shown = _Lists.of(train)
    learned = shown if lists is None or not settings.judged.weight else shown.before(lists, columns, settings)
    sets: list[lightgbm.Dataset] = []
    for each in (learned, _Lists.of(held_out)):
        sets.append(
            lightgbm.Dataset(
                each.row_NC,
                each.label_N,
                weight=each.weight_N,
                group=each.count_R,
                position=each.position_N if each is learned else None,
                categorical_feature=list(columns.categorical),
                reference=sets[0] if sets else None,
            )
        )

    def told(score_N: NDArray[np.float64], _: Any) -> tuple[str, float, bool]:
        # LightGBM's own NDCG breaks ties by slot, which flatters the first trees.
        return "ndcg", ndcg_at(_CUTOFF, held_out.label_NA[:, 0], score_N, held_out.request_N).mean, True

    model = lightgbm.train(
        {
            **_parameters(settings, seed),
            "objective": "lambdarank",
            "metric": "None",
            "lambdarank_truncation_level": 2 * _CUTOFF,
        },
        sets[0],
        settings.trees,
        valid_sets=[sets[1]],
        feval=told,
        callbacks=[lightgbm.early_stopping(settings.patience, verbose=False)],
    )
    return str(model.model_to_string(num_iteration=model.best_iteration))


def _parameters(settings: TreesSettings, seed: int) -> dict[str, Any]:
    return {
        "num_leaves": settings.leaves,
        "learning_rate": settings.learning_rate,
        "min_data_in_leaf": settings.leaf_rows,
        "feature_fraction": settings.column_share,
        "lambda_l2": settings.l2,
        "seed": seed,
        "deterministic": True,
        "force_col_wise": True,
        "verbose": -1,
    }


def _leave(losses: list[NDArray[np.float64]], folder: Path) -> None:
    """As Lightning would: `csv/metrics.csv`, where a tree stands for an epoch. A finished action keeps its loss."""
    longest = max(len(each) for each in losses)
    total_T2 = sum(each[np.minimum(np.arange(longest), len(each) - 1)] for each in losses)
    (folder / "csv").mkdir(parents=True, exist_ok=True)
    with (folder / "csv" / "metrics.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["step", "epoch", "loss_epoch", "held_out_loss"])
        rows.writerows([t, t, *pair] for t, pair in enumerate(np.asarray(total_T2).tolist()))


def _sigmoid(value_N: NDArray[np.float64]) -> NDArray[np.float64]:
    # Away from both ends, where 1 - e s would be 0.
    return np.clip(0.5 * (1 + np.tanh(0.5 * value_N)), 1e-9, 1 - 1e-9)


def _logit(share: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.log(share / (1 - share))
