"""Learning to rank on judged features, as LETOR measures it: LambdaMART from one file of queries to another.

Shape letters: N rows, F features, Q queries.
"""

import time
from dataclasses import dataclass
from pathlib import Path

import lightgbm
import numpy as np
import polars as pl
from numpy.typing import NDArray

from ranking.metrics import ndcg_at
from training.datasets.tables import read_table

_HIGHEST = 30


@dataclass(frozen=True, slots=True)
class Judged:
    """Rows of a query side by side."""

    feature_NF: NDArray[np.float32]
    grade_N: NDArray[np.int64]
    query_N: NDArray[np.int64]
    """Codes from 0, rising."""


def evaluate(
    train: Path,
    test: Path,
    *,
    label: str = "label",
    query: str = "qid",
    trees: int = 300,
    leaves: int = 6,
    learning_rate: float = 0.03,
    members: int = 3,
    k: int = 10,
    threads: int = 1,
    seed: int = 0,
) -> dict[str, float]:
    """Train LambdaMART (Burges 2010) on one file and rank the queries of the other.

    NDCG has the gain 2^grade - 1. A query without a relevant row has none: it is left out of the mean, and counted.
    Every column beside the label and the query is a feature.

    Args:
        train: Parquet or CSV, a row for each judged document of a query.
        test: likewise.
        label: column of the grades, whole numbers from 0.
        query: column that tells queries apart.
        members: models of different seeds whose scores are summed.

    Returns:
        `ndcg@k`, `ndcg@k.random` of a random order, `queries` in the mean, `queries.empty` left out of it, `rows` and
        `cpu_seconds`.

    Raises:
        ValueError: where a file lacks a column or is empty, where a feature is not a number, where a grade is not a
            whole number from 0 to 30, or where no training query has rows of different grades.
    """
    frames = [read_table(path, (label, query)) for path in (train, test)]
    features = [name for name in frames[0].columns if name not in (label, query)]
    missing = [name for name in features if name not in frames[1].columns]
    if missing or not features:
        raise ValueError(f"{test} has no column {missing[0]!r} of {train}" if missing else f"{train} has no feature")
    fit, held_out = (
        _judged(path, frame, features, label=label, query=query)
        for path, frame in zip((train, test), frames, strict=True)
    )
    mean_Q = np.bincount(fit.query_N, fit.grade_N) / np.bincount(fit.query_N)
    if np.array_equal(mean_Q[fit.query_N], fit.grade_N):
        raise ValueError(f"{train}: column {label!r} is the same for all rows of each query; nothing to rank")
    started = time.process_time()
    settings = {
        "objective": "lambdarank",
        "lambdarank_truncation_level": 3 * k,
        "learning_rate": learning_rate,
        "num_leaves": leaves,
        "min_data_in_leaf": min(50, len(fit.grade_N) // 10),
        "feature_fraction": 0.3,
        "bagging_fraction": 0.5,
        "bagging_freq": 1,
        "lambda_l2": 10.0,
        "num_threads": threads,
        "deterministic": True,
        "verbose": -1,
    }
    score_N = np.zeros(len(held_out.grade_N))
    for member in range(members):
        data = lightgbm.Dataset(fit.feature_NF, fit.grade_N, group=np.bincount(fit.query_N))
        model = lightgbm.train({**settings, "seed": seed * members + member}, data, trees)
        score_N += model.predict(held_out.feature_NF, num_threads=threads)
    gain_N = np.exp2(held_out.grade_N) - 1
    found = ndcg_at(k, gain_N, score_N, held_out.query_N)
    return {
        f"ndcg@{k}": found.mean,
        f"ndcg@{k}.random": ndcg_at(k, gain_N, np.zeros(len(gain_N)), held_out.query_N).mean,
        "queries": float(found.groups),
        "queries.empty": float(found.left_out),
        "rows": float(len(gain_N)),
        "cpu_seconds": time.process_time() - started,
    }


def _judged(path: Path, frame: pl.DataFrame, features: list[str], *, label: str, query: str) -> Judged:
    for name in (label, *features):
        if not frame[name].dtype.is_numeric():
            raise ValueError(f"{path}: column {name!r} is {frame[name].dtype}; numbers are needed")
    for name in (label, query):
        if frame[name].null_count():
            raise ValueError(f"{path}: column {name!r} holds {frame[name].null_count()} nulls; none is allowed")
    frame = frame.sort(query, maintain_order=True)
    grade_N = frame[label].cast(pl.Float64).to_numpy()
    wrong_N = ~((grade_N >= 0) & (grade_N <= _HIGHEST) & (grade_N == np.round(grade_N)))
    if wrong_N.any():
        raise ValueError(
            f"{path}: column {label!r} holds {wrong_N.sum()} values in {len(frame)} rows that are no whole number "
            f"from 0 to {_HIGHEST}, first {grade_N[wrong_N][0]:g}"
        )
    query_N = frame[query].rle_id().cast(pl.Int64).to_numpy()
    return Judged(frame.select(features).cast(pl.Float32).to_numpy(), grade_N.astype(np.int64), query_N)
