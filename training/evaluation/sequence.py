"""Next item of a sequence as SASRec's successors measure it: leave one out, rank all items.

Shape letters: T interactions by user and position, N examples, P places of a history, U users, I items.
"""

import time
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from candidate_gen.features import Feature, FeatureTable
from candidate_gen.history import HistoryKind
from candidate_gen.towers import TowerShape
from training.evaluation.interactions import numbered, read_columns
from training.evaluation.topk import ItemSets, hits, mean, ndcg, recall, top_k
from training.tower import Precision, TowerSettings, train_towers

_FEWEST = 3
_LONG = 20


@dataclass(frozen=True, slots=True)
class _Usual:
    """What suits a kind of history encoder."""

    history_length: int
    heads: int
    id_dropout: float
    softmax: Literal["sampled", "full"]
    epochs: int
    learning_rate: float
    temperature: float


_CAUSAL = _Usual(200, 2, 0.0, "full", 5, 3e-3, 0.07)
_POOLED = _Usual(50, 4, 0.1, "sampled", 4, 4e-3, 0.1)


def evaluate(
    data: Path,
    *,
    dim: int = 64,
    history: HistoryKind | None = None,
    history_length: int | None = None,
    heads: int | None = None,
    blocks: int = 2,
    dropout: float = 0.2,
    id_dropout: float | None = None,
    softmax: Literal["sampled", "full"] | None = None,
    uniform_negatives: int = 512,
    epochs: int | None = None,
    batch: int = 1024,
    learning_rate: float | None = None,
    temperature: float | None = None,
    precision: Precision = "float32",
    k: int = 10,
    seed: int = 0,
) -> dict[str, float]:
    """Train the towers on sequences and rank all items as the end of every sequence.

    A user's last item is the test, the one before it the validation; the towers train on every earlier item that
    has a past, given that past. A transformer trains on all of a sequence at once, and a past reaches as far as the
    item's window: those of a long sequence are cut into windows of `history_length`, the newest full. The test's
    history holds the validation item. A query is its history alone: there is no user id. A user with fewer than 3
    interactions only trains.

    Items of the history are not ranked, as in the reference code of S3-Rec and gSASRec; where an item returns at the
    end of its own sequence it therefore counts as missed.

    Args:
        data: Parquet with the columns `user`, `item` and `pos`, which orders a user's interactions.
        dim: width of the vectors and of the ids' embeddings.
        history: how a past becomes a vector, see `candidate_gen.history`; with `heads`, `blocks` and `dropout`. Where
            it is not given, a transformer if sequences hold 20 interactions or more on average, else attention: of
            short pasts there is little order to learn. It decides what else is not given.
        history_length: newest items of the past that are used.
        batch: items to be found in a step, at least `history_length`.

    Returns:
        `recall@k`, `ndcg@k`, the same of the validation items as `validation_...`, `users`, `items`, `dim` and
        `cpu_seconds` of training and ranking.

    Raises:
        ValueError: where the file lacks a column, holds nulls or is empty, or where no sequence is long enough.
    """
    frame = read_columns(data, ("user", "item", "pos")).sort("user", "pos", maintain_order=True)
    _, (user_T,) = numbered(frame["user"])
    item_names, (item_T,) = numbered(frame["item"])
    start_T, length_T = _sequences(user_T)
    place_T = np.arange(len(item_T)) - start_T
    last_T = place_T == length_T - 1
    tested_T = last_T & (length_T >= _FEWEST)
    validated_T = (place_T == length_T - 2) & (length_T >= _FEWEST)
    trained_T = (place_T > 0) & ~tested_T & ~validated_T
    if trained_T.sum() < 2:
        raise ValueError(
            f"{data}: column 'user': {trained_T.sum()} interactions have a past and are followed by two more; "
            "at least 2 are needed"
        )
    if history is None:
        history = "transformer" if length_T[place_T == 0].mean() >= _LONG else "attention"
    usual = _CAUSAL if history == "transformer" else _POOLED
    history_length = usual.history_length if history_length is None else history_length
    table = _table(item_names, history_length, counted=history != "transformer")
    item_row_I = table.empty("item", len(item_names))
    item_row_I["item_id"] = np.arange(1, len(item_names) + 1)
    if history == "transformer":
        end_N = _ends(trained_T, start_T, history_length)
        positive_row = _positive_rows(item_T, start_T, end_N, history_length)
    else:
        end_N = np.flatnonzero(trained_T)
        positive_row = item_T[end_N]
    settings = TowerSettings(
        shape=TowerShape(
            width=dim,
            embedding=dim,
            history=history,
            heads=usual.heads if heads is None else heads,
            blocks=blocks,
            dropout=dropout,
            id_dropout=usual.id_dropout if id_dropout is None else id_dropout,
        ),
        temperature=usual.temperature if temperature is None else temperature,
        softmax=usual.softmax if softmax is None else softmax,
        uniform_negatives=uniform_negatives,
        epochs=usual.epochs if epochs is None else epochs,
        batch=batch,
        learning_rate=usual.learning_rate if learning_rate is None else learning_rate,
        validation=0.0,
        precision=precision,
    )
    started = time.process_time()
    with TemporaryDirectory() as folder:
        towers, _ = train_towers(
            table,
            item_row_I,
            _query_rows(table, item_T, start_T, end_N),
            positive_row,
            settings=settings,
            seed=seed,
            folder=Path(folder),
        )
    vector_ID = towers.encode_items(item_row_I)
    metrics: dict[str, float] = {}
    for prefix, target_T in (("", tested_T), ("validation_", validated_T)):
        target_U = np.flatnonzero(target_T)
        past_T = np.concatenate([np.arange(start_T[at], at) for at in target_U])
        query_T = np.repeat(np.arange(len(target_U)), place_T[target_U])
        masked = ItemSets.of(query_T, item_T[past_T], queries=len(target_U))
        vector_UD = towers.encode_queries(_query_rows(table, item_T, start_T, target_U))
        hit_UK = hits(
            top_k(vector_UD, vector_ID, k, masked=masked),
            ItemSets.of(np.arange(len(target_U)), item_T[target_U], queries=len(target_U)),
        )
        one_U = np.ones(len(target_U), np.int64)
        metrics[f"{prefix}recall@{k}"] = mean(recall(hit_UK, one_U))
        metrics[f"{prefix}ndcg@{k}"] = mean(ndcg(hit_UK, one_U))
    return metrics | {
        "users": float(tested_T.sum()),
        "items": float(len(item_names)),
        "dim": float(dim),
        "cpu_seconds": time.process_time() - started,
    }


def _table(item_names: tuple[str, ...], length: int, *, counted: bool = False) -> FeatureTable:
    """
    Args:
        counted: a query says how long its history is, which a mean does not.
    """
    size = len(item_names) + 1
    return FeatureTable(
        (
            Feature("history_item", "history", "id", size, (length,), shares="item_id"),
            *([Feature("history_log_length", "history", "number")] if counted else []),
            Feature("item_id", "item", "id", size, vocabulary=item_names),
        ),
        actions=(),
        sources=(),
    )


def _sequences(user_T: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Where each interaction's sequence starts and how long it is, for interactions sorted by user."""
    first = np.flatnonzero(np.concatenate([[True], user_T[1:] != user_T[:-1]]))
    length = np.diff(np.append(first, len(user_T)))
    return np.repeat(first, length), np.repeat(length, length)


def _ends(trained_T: NDArray[np.bool_], start_T: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Last interactions of windows of `length` targets that hold every trained one, the newest windows full."""
    target_N = np.flatnonzero(trained_T)
    last_T = np.zeros(len(trained_T), np.int64)
    np.maximum.at(last_T, start_T[target_N], target_N)
    is_end_N: NDArray[np.bool_] = (last_T[start_T[target_N]] - target_N) % length == 0
    return target_N[is_end_N]


def _positive_rows(
    item_T: NDArray[np.int64], start_T: NDArray[np.int64], end_N: NDArray[np.int64], length: int
) -> NDArray[np.int64]:
    """What followed as of each place of the history before `end_N`; -1 where nothing came before."""
    at_NP = end_N[:, None] - np.arange(length)
    return np.where(at_NP > start_T[end_N, None], item_T[np.maximum(at_NP, 0)], -1)


def _query_rows(
    table: FeatureTable, item_T: NDArray[np.int64], start_T: NDArray[np.int64], target_N: NDArray[np.int64]
) -> np.ndarray:
    """What came before each target, newest first."""
    rows_N = table.empty("query", len(target_N))
    for back in range(table["history_item"].shape[0]):
        at_N = target_N - 1 - back
        held_N = at_N >= start_T[target_N]
        rows_N["history_item"][:, back] = np.where(held_N, 1 + item_T[np.maximum(at_N, 0)], 0)
    if "history_log_length" in (rows_N.dtype.names or ()):
        rows_N["history_log_length"] = np.log1p((rows_N["history_item"] > 0).sum(axis=1))
    return rows_N
