"""Collaborative filtering as LightGCN's papers measure it: rank all items for each user, train items masked.

Shape letters: T pairs, U users, I items.
"""

import time
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np

from candidate_gen.features import Feature, FeatureTable
from candidate_gen.towers import TowerShape
from training.evaluation.interactions import numbered, read_columns
from training.evaluation.topk import ItemSets, hits, mean, ndcg, recall, top_k
from training.tower import TowerSettings, train_towers


def evaluate(
    train: Path,
    test: Path,
    *,
    dim: int = 64,
    epochs: int = 8,
    batch: int = 2048,
    learning_rate: float = 4e-3,
    temperature: float = 0.1,
    uniform_negatives: int = 1024,
    k: int = 20,
    seed: int = 0,
) -> dict[str, float]:
    """Train the towers on one file of pairs and rank for the users of the other.

    Every user with a test item counts once, whether or not training knew the user; every item of either file is
    ranked. An item that a user has in both files cannot be found.

    Args:
        train: Parquet with the columns `user` and `item`; repeated pairs count once.
        test: likewise.
        dim: width of the vectors and of the ids' embeddings.

    Returns:
        `recall@k` (found / test items), `ndcg@k`, `users` that were ranked, `items`, `dim` and `cpu_seconds` of
        training and ranking.

    Raises:
        ValueError: where a file lacks a column, holds nulls or is empty.
    """
    frames = [read_columns(path, ("user", "item")).unique(maintain_order=True) for path in (train, test)]
    user_names, (train_user_T, test_user_T) = numbered(*[frame["user"] for frame in frames])
    item_names, (train_item_T, test_item_T) = numbered(*[frame["item"] for frame in frames])
    table = FeatureTable(
        (
            Feature("user_id", "user", "id", len(user_names) + 1, vocabulary=user_names),
            Feature("item_id", "item", "id", len(item_names) + 1, vocabulary=item_names),
        ),
        actions=(),
        sources=(),
    )
    item_row_I = table.empty("item", len(item_names))
    item_row_I["item_id"] = np.arange(1, len(item_names) + 1)
    query_row_T = table.empty("query", len(train_user_T))
    query_row_T["user_id"] = 1 + train_user_T
    settings = TowerSettings(
        shape=TowerShape(width=dim, embedding=dim, id_dropout=0.0),
        temperature=temperature,
        uniform_negatives=uniform_negatives,
        epochs=epochs,
        batch=batch,
        learning_rate=learning_rate,
        validation=0.0,
    )
    started = time.process_time()
    with TemporaryDirectory() as folder:
        towers, _ = train_towers(
            table, item_row_I, query_row_T, train_item_T, settings=settings, seed=seed, folder=Path(folder)
        )
    asked_U, asked_T = np.unique(test_user_T, return_inverse=True)
    query_row_U = table.empty("query", len(asked_U))
    query_row_U["user_id"] = 1 + asked_U
    relevant = ItemSets.of(asked_T, test_item_T, queries=len(asked_U))
    row_of_user = np.full(len(user_names), -1)
    row_of_user[asked_U] = np.arange(len(asked_U))
    known_T = row_of_user[train_user_T] >= 0
    masked = ItemSets.of(row_of_user[train_user_T[known_T]], train_item_T[known_T], queries=len(asked_U))
    ranked_UK = top_k(towers.encode_queries(query_row_U), towers.encode_items(item_row_I), k, masked=masked)
    hit_UK = hits(ranked_UK, relevant)
    return {
        f"recall@{k}": mean(recall(hit_UK, relevant.size_B)),
        f"ndcg@{k}": mean(ndcg(hit_UK, relevant.size_B)),
        "users": float(len(asked_U)),
        "items": float(len(item_names)),
        "dim": float(dim),
        "cpu_seconds": time.process_time() - started,
    }
