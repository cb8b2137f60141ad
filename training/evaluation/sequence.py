"""Next item of a sequence as SASRec's successors measure it: leave one out, rank all items.

Shape letters: T interactions by user and position, N examples, P places of a history, U users, I items.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from candidate_gen.features import Feature, FeatureTable
from candidate_gen.history import HistoryKind
from candidate_gen.towers import Towers, TowerShape
from training.evaluation.interactions import numbered, read_columns
from training.evaluation.reranking import Lists, ListwiseRanker, SequenceStatistics
from training.evaluation.topk import ItemSets, difference, mean, ndcg, top_k
from training.learning.tower import Precision, TowerSettings, train_towers

_FEWEST = 3
_LONG = 20
_ENCODED = 128


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
    stages: int = 1,
    candidates: int = 100,
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

    With two stages a ranker (see `training.evaluation.reranking`) puts the towers' candidates in another order. It
    learns from the last item that the towers would have trained on, of every sequence of 4 or more: towers know what
    they were trained on too well, so of that item neither they nor what the ranker is told of items are shown anything.
    Their own figures are then of towers that were trained on that much less.

    Args:
        data: Parquet with the columns `user`, `item` and `pos`, which orders a user's interactions.
        dim: width of the vectors and of the ids' embeddings.
        history: how a past becomes a vector, see `candidate_gen.history`; with `heads`, `blocks` and `dropout`. Where
            it is not given, a transformer if sequences hold 20 interactions or more on average, else attention: of
            short pasts there is little order to learn. It decides what else is not given.
        history_length: newest items of the past that are used.
        batch: items to be found in a step, at least `history_length`.
        stages: 1 for the towers alone, 2 for a ranker behind them.
        candidates: how many the towers hand to the ranker, at least k.

    Returns:
        `recall@k`, `ndcg@k` of the towers, the same of the validation items as `validation_...`, `users`, `items`,
        `dim` and `cpu_seconds` of training and ranking. With two stages also `ranked.` and `validation_ranked.` with
        the same of the ranker, `ranked.gain` with the share by which its NDCG is higher, `.low` and `.high` of its
        95% bootstrap interval over users, and `recall@candidates`, which no order can exceed.

    Raises:
        ValueError: where the file lacks a column, holds nulls or is empty, where no sequence is long enough, and where
            there are neither one nor two stages or fewer candidates than places.
    """
    if stages not in (1, 2):
        raise ValueError(f"stages is {stages}; it must be 1 (towers) or 2 (towers and ranker)")
    if stages == 2 and candidates < k:
        raise ValueError(f"candidates is {candidates}; it must be at least k, {k}")
    frame = read_columns(data, ("user", "item", "pos")).sort("user", "pos", maintain_order=True)
    _, (user_T,) = numbered(frame["user"])
    item_names, (item_T,) = numbered(frame["item"])
    start_T, length_T = _sequences(user_T)
    if length_T.max() < stages + 2:
        raise ValueError(
            f"{data}: column 'user': the longest sequence holds {length_T.max()} interactions; "
            f"with stages={stages} at least one of {stages + 2} is needed"
        )
    place_T = np.arange(len(item_T)) - start_T
    last_T = place_T == length_T - 1
    tested_T = last_T & (length_T >= _FEWEST)
    validated_T = (place_T == length_T - 2) & (length_T >= _FEWEST)
    ranked_T = (place_T == length_T - 3) & (place_T > 0) & (stages == 2)
    known_T = ~tested_T & ~validated_T & ~ranked_T
    trained_T = (place_T > 0) & known_T
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
    count = k if stages == 1 else candidates

    def listed(target_T: NDArray[np.bool_]) -> Lists:
        return _lists(towers, vector_ID, item_T, start_T, np.flatnonzero(target_T), count=count)

    asked = {"": listed(tested_T), "validation_": listed(validated_T)}
    metrics: dict[str, float] = {}
    for name, lists in asked.items():
        metrics |= _figures(lists.row_NC, lists.next_N, k, name=name)
    if stages == 2:
        statistics = SequenceStatistics(item_T, start_T, known_T, vector_ID)
        metrics |= _second_stage(statistics, listed(ranked_T), asked, k=k, seed=seed)
    return metrics | {
        "users": float(tested_T.sum()),
        "items": float(len(item_names)),
        "dim": float(dim),
        "cpu_seconds": time.process_time() - started,
    }


def _lists(
    towers: Towers,
    vector_ID: NDArray[np.float32],
    item_T: NDArray[np.int64],
    start_T: NDArray[np.int64],
    target_N: NDArray[np.int64],
    *,
    count: int,
) -> Lists:
    """What the towers name as the targets, without what came before them."""
    rows_N = _query_rows(towers.table, item_T, start_T, target_N)
    history_NL = rows_N["history_item"].astype(np.int64) - 1
    # A batch is as wide as its longest history.
    order_N = np.argsort((history_NL >= 0).sum(axis=1), kind="stable")
    vector_ND = np.empty((len(rows_N), vector_ID.shape[1]), np.float32)
    vector_ND[order_N] = towers.encode_queries(rows_N[order_N], batch=_ENCODED)
    size_N = target_N - start_T[target_N]
    past_T = np.concatenate([np.arange(start_T[at], at) for at in target_N])
    masked = ItemSets.of(np.repeat(np.arange(len(target_N)), size_N), item_T[past_T], queries=len(target_N))
    row_NC = top_k(vector_ND, vector_ID, count, masked=masked)
    score_NC = np.stack([vector_ID[row_C] @ vector_D for row_C, vector_D in zip(row_NC, vector_ND, strict=True)])
    return Lists(history_NL, row_NC, score_NC, item_T[target_N])


def _second_stage(
    statistics: SequenceStatistics, learned: Lists, asked: Mapping[str, Lists], *, k: int, seed: int
) -> dict[str, float]:
    """Figures of a ranker that has learned from some lists and orders those that are asked for."""
    ranker = ListwiseRanker.fit(learned, statistics.said(learned))
    ranked = {name: ranker.order(lists, statistics.said(lists)) for name, lists in asked.items()}
    metrics: dict[str, float] = {}
    for name, lists in asked.items():
        metrics |= _figures(ranked[name], lists.next_N, k, name=f"{name}ranked.")
    tested = asked[""]
    before_N, after_N = (_ndcg(row_NC, tested.next_N, k) for row_NC in (tested.row_NC, ranked[""]))
    gain = difference(after_N, before_N, seed=seed)
    for part, value in {"": gain.mean, ".low": gain.low, ".high": gain.high}.items():
        metrics[f"ranked.gain{part}"] = value / mean(before_N) if before_N.any() else math.nan
    return metrics | {"recall@candidates": float(tested.next_NC.any(axis=1).mean())}


def _figures(row_NC: NDArray[np.int64], next_N: NDArray[np.int64], k: int, *, name: str) -> dict[str, float]:
    found_N = (row_NC[:, :k] == next_N[:, None]).any(axis=1)
    return {f"{name}recall@{k}": float(found_N.mean()), f"{name}ndcg@{k}": mean(_ndcg(row_NC, next_N, k))}


def _ndcg(row_NC: NDArray[np.int64], next_N: NDArray[np.int64], k: int) -> NDArray[np.float64]:
    return ndcg(row_NC[:, :k] == next_N[:, None], np.ones(len(next_N), np.int64))


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
