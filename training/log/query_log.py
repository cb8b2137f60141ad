"""What people typed, from the log: see `candidate_gen.query_log.QueryLog`."""

from pathlib import Path

import numpy as np
import polars as pl

from candidate_gen.query_log import QUERY, TAKEN, QueryLog, spelt
from index.strings import keys64
from training.datasets.dataset import SYNTHETIC

_HALF_LIFE_MS = 14 * 86_400_000
_MOST = 200_000
"""Queries that are kept, those worth most."""


def query_log(impressions: pl.DataFrame, positives: pl.DataFrame, *, as_of_ms: int) -> QueryLog:
    """Who typed what, and took what they found. Anonymous requests count as one person each; what one person typed
    counts once, as of the last time, and half for every 14 days since. Made-up requests are left out.

    Args:
        impressions: in the canonical form.
        positives: outcomes of the main action.
    """
    typed = impressions.filter(
        pl.col("text").str.strip_chars() != "", ~pl.col("request_id").str.starts_with(SYNTHETIC)
    ).select(
        "request_id",
        "time_ms",
        person=pl.when(pl.col("user_id") == "").then(pl.concat_str(pl.lit("/"), "request_id")).otherwise("user_id"),
        text=pl.col("text").map_elements(spelt, return_dtype=pl.Utf8),
    )
    people = typed.group_by("text", "person").agg(pl.col("time_ms").max())
    weight = (0.5 ** ((as_of_ms - pl.col("time_ms")) / _HALF_LIFE_MS)).sum()
    queries = people.group_by("text").agg(people=pl.len().cast(pl.Int32), weight=weight.cast(pl.Float32))
    queries = queries.sort(["weight", "text"], descending=[True, False]).head(_MOST).with_row_index("query")
    taken = (
        positives.select("request_id", "item_id")
        .join(typed, on="request_id")
        .join(queries.select("text", "query"), on="text")
        .group_by("query", "item_id")
        .agg(people=pl.col("person").n_unique().cast(pl.Int32))
        .sort("query", "item_id")
    )
    row_Q, taken_C = np.zeros(queries.height, QUERY), np.zeros(taken.height, TAKEN)
    for name in QUERY.names or ():
        row_Q[name] = queries[name].to_numpy()
    taken_C["query"], taken_C["people"] = taken["query"].to_numpy(), taken["people"].to_numpy()
    taken_C["item_key"] = keys64(taken["item_id"])
    return QueryLog(queries["text"].to_list(), row_Q, taken_C)


def rules_of(path: str | None) -> list[str]:
    """The lines of a file of synonyms; none without one.

    Raises:
        ValueError: a file that cannot be read.
    """
    if path is None:
        return []
    try:
        return Path(path).read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"retrieval.synonyms is {path!r}, which cannot be read: {error}") from error
