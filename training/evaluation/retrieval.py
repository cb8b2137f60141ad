"""Collaborative filtering: rank all items for each user, train items masked, as LightGCN's papers measure it.

Shape letters: T pairs of training, U users asked for, I items, K places, D width.
"""

import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from candidate_gen.features import Feature, FeatureTable
from candidate_gen.towers import TowerShape
from training.evaluation.interactions import Pairs, SplitKind, read_split
from training.evaluation.topk import top_k
from training.learning.tower import Precision, TowerSettings, train_towers


def evaluate(
    train: Path | None = None,
    test: Path | None = None,
    *,
    data: Path | None = None,
    split: SplitKind = "time",
    test_share: float = 0.1,
    dim: int = 64,
    spectral: int = 0,
    propagation: float = 0.3,
    epochs: int = 10,
    batch: int = 14_000,
    learning_rate: float = 5e-3,
    temperature: float = 0.08,
    positive_temperature: float = 0.1,
    precision: Precision = "float32",
    k: int = 20,
    seed: int = 0,
) -> dict[str, float]:
    """Train the towers on pairs of user and item and rank for the users of the others.

    Every user with a test item counts once, whether or not training knew the user; every item of either part is
    ranked.

    Args:
        train: Parquet with the columns `user` and `item`; repeated pairs count once.
        test: likewise; where both have a column `time` none of `train` may be later, unless `split=given`. A pair
            that is in both counts as missed.
        data: in place of both, one file with a column `time` too, which is cut as `split` says; see
            `training.evaluation.interactions.read_split`.
        test_share: of the interactions of `data`, the last ones.
        dim: width of what is learned of a user or an item: the id's embedding, which starts from as many factors of the
            graph.
        spectral: factors that stand beside it; the vectors are `dim` + `spectral` wide.
        propagation: weight of a step over the graph after training, where no factors stand beside.
        batch: positives, about; all of a user's are in one.
        precision: as in `training.learning.tower.TowerSettings`.

    Returns:
        The metrics of `training.evaluation.topk.Ranking.metrics`, `users` that were ranked, `items`, `dim` and
        `cpu_seconds` of training and ranking.

    Raises:
        ValueError: where a file lacks a column, holds nulls or is empty, or the split leaks.
    """
    pairs = Pairs.of(read_split(train, test, data, split=split, test_share=test_share))
    started = time.process_time()
    ranked_UK, vector_ID = rank(
        pairs,
        dim=dim,
        spectral=spectral,
        propagation=propagation,
        epochs=epochs,
        batch=batch,
        learning_rate=learning_rate,
        temperature=temperature,
        positive_temperature=positive_temperature,
        precision=precision,
        k=k,
        seed=seed,
    )
    cpu_seconds = time.process_time() - started
    return {
        **pairs.ranking(ranked_UK, vector_ID).metrics(k, seed=seed),
        "users": float(len(pairs.asked_U)),
        "items": float(len(pairs.items)),
        "dim": float(vector_ID.shape[1]),
        "cpu_seconds": cpu_seconds,
    }


def rank(
    pairs: Pairs,
    *,
    dim: int,
    spectral: int,
    propagation: float,
    epochs: int,
    batch: int,
    learning_rate: float,
    temperature: float,
    positive_temperature: float,
    precision: Precision,
    k: int,
    seed: int,
) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
    """Train the towers on the pairs; the k best items for every user asked for, (U, K), and the items' vectors."""
    table = FeatureTable(
        (
            Feature("user_id", "user", "id", len(pairs.users) + 1, vocabulary=pairs.users),
            Feature("item_id", "item", "id", len(pairs.items) + 1, vocabulary=pairs.items),
        ),
        actions=(),
        sources=(),
    )
    item_row_I = table.empty("item", len(pairs.items))
    item_row_I["item_id"] = np.arange(1, len(pairs.items) + 1)
    query_row_T = table.empty("query", len(pairs.train_user_T))
    query_row_T["user_id"] = 1 + pairs.train_user_T
    settings = TowerSettings(
        shape=TowerShape(
            width=dim,
            embedding=dim,
            hidden=0,
            id_dropout=0.01,
            start=dim,
            spectral=spectral,
            propagation=0.0 if spectral else propagation,
        ),
        temperature=temperature,
        positive_temperature=positive_temperature,
        softmax="full",
        epochs=epochs,
        batch=batch,
        learning_rate=learning_rate,
        precision=precision,
        validation=0.0,
    )
    with TemporaryDirectory() as folder:
        towers, _ = train_towers(
            table, item_row_I, query_row_T, pairs.train_item_T, settings=settings, seed=seed, folder=Path(folder)
        )
    query_row_U = table.empty("query", len(pairs.asked_U))
    query_row_U["user_id"] = 1 + pairs.asked_U
    vector_ID = towers.encode_items(item_row_I)
    return top_k(towers.encode_queries(query_row_U), vector_ID, k, masked=pairs.masked), vector_ID
