"""Judgement lists: who said how well which item answers which query, as one form of Parquet for all who say it.

Shape letters: N judgments (rows), K slots of an impression.
"""

from collections.abc import Iterable
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import polars as pl

from candidate_gen.text import words
from protos.impression_pb2 import Impression
from training.datasets.dataset import DataError
from training.datasets.tables import read_table, require_filled
from training.durable import appearing

VERSION = "1"
SCHEMA = {"query": pl.Utf8, "item": pl.Utf8, "grade": pl.Float64, "source": pl.Utf8}
"""A row for each judged pair of query and item; more is better. `source` says who judged: see `Judge`."""
Judge = Literal["human", "clicks"]
HIGHEST = 3.0
"""The best grade that clicks can give: grades go from 0 to here."""
_KEY = "cascade.judgments"
_WIDEST = 100


def write_judgments(frame: pl.DataFrame, path: Path) -> None:
    """Write a list whole or not at all, in the order of its queries and items.

    Raises:
        DataError: see `read_judgments`.
    """
    frame = _checked(path, frame.select(SCHEMA.keys()).cast(SCHEMA))  # type: ignore[arg-type]
    with appearing(path) as draft:
        frame.sort("query", "item", "source").write_parquet(draft, metadata={_KEY: VERSION})


def read_judgments(path: Path) -> pl.DataFrame:
    """A list that `write_judgments` wrote, or that has its columns.

    Raises:
        DataError: where it is of another version, a column is missing or of another kind, a query or an item is empty,
            a grade is no number or a judge unknown, or where one judge judged a pair twice.
    """
    frame = read_table(path, tuple(SCHEMA))
    version = pl.read_parquet_metadata(path).get(_KEY, VERSION)
    if version != VERSION:
        raise DataError(f"{path} is a judgement list of version {version}; this is able to read version {VERSION}")
    return _checked(path, frame.select(SCHEMA.keys()))


def relevance(judgments: pl.DataFrame) -> pl.DataFrame:
    """Each judged pair once, with its `relevance`: its grade from the lowest of the list. Where people and clicks
    judged the same pair, people are right."""
    best_first = pl.col("source").replace_strict({"human": 0, "clicks": 1}, return_dtype=pl.Int64)
    pairs = judgments.sort("query", "item", best_first).unique(["query", "item"], keep="first", maintain_order=True)
    return pairs.with_columns(relevance=pl.col("grade") - pl.col("grade").min())


def mined(
    impressions: Iterable[Impression], events: pl.DataFrame, *, examination: np.ndarray, least: int = 5
) -> pl.DataFrame:
    """What clicks say of queries that were answered: clicks over expected clicks (COEC; Zhang and Jones 2007,
    "Comparing Click Logs and Editorial Labels for Training Query Rewriting"), as grades of a judgement list.

    A slot's expected clicks are the rate of all searches times how much more often it is looked at than the mean slot.
    The grade is `HIGHEST * (c + 1) / (c + e + 2)` for c clicks where e were expected: half the scale for an item that
    is taken as often as its slots lead to expect, and near it where little is known.

    Args:
        events: outcomes that count as clicks, by `request_id` and `item_id`.
        examination: P(examined) by slot; what lies behind the last is looked at as the last.
        least: shown so often under a query, a pair is judged.
    """
    shown = pl.DataFrame(
        [
            (each.request_id, " ".join(words(each.text)), item, float(examination[min(at, len(examination) - 1)]))
            for each in impressions
            if each.text.strip()
            for at, item in enumerate(each.item_id)
        ],
        {"request_id": pl.Utf8, "query": pl.Utf8, "item": pl.Utf8, "seen": pl.Float64},
        orient="row",
    )
    taken = events.select("request_id", pl.col("item_id").alias("item")).unique().with_columns(click=1.0)
    rows = shown.join(taken, ["request_id", "item"], "left").with_columns(pl.col("click").fill_null(0.0))
    rate = float(rows["click"].sum()) / max(float(rows["seen"].sum()), 1e-9)
    counted = rows.group_by("query", "item").agg(
        pl.len(), pl.col("click").sum(), (pl.col("seen").sum() * rate).alias("due")
    )
    grade = HIGHEST * (pl.col("click") + 1) / (pl.col("click") + pl.col("due") + 2)
    return (
        counted.filter((pl.col("len") >= least) & (pl.col("query") != ""))
        .select("query", "item", grade.alias("grade"), pl.lit("clicks").alias("source"))
        .sort("query", "item")
    )


def _checked(path: Path, frame: pl.DataFrame) -> pl.DataFrame:
    for name, kind in SCHEMA.items():
        if kind == pl.Utf8 and frame.schema[name] != pl.Utf8:
            raise DataError(f"{path}: column {name!r} is {frame.schema[name]}; text is needed")
    require_filled(path, frame, {name: name for name in ("query", "item", "grade", "source")})
    if not frame["grade"].dtype.is_numeric():
        raise DataError(f"{path}: column 'grade' is {frame['grade'].dtype}; grades must be numbers")
    frame = frame.with_columns(pl.col("grade").cast(pl.Float64))
    wrong = int((~frame["grade"].is_finite()).sum())
    if wrong:
        raise DataError(f"{path}: column 'grade' holds {wrong} values in {frame.height} rows that are not finite")
    if frame.height and frame["grade"].max() - frame["grade"].min() > _WIDEST:  # type: ignore[operator]
        raise DataError(f"{path}: column 'grade' is wider than {_WIDEST}; the gain of 2^grade is too large to add up")
    unknown = set(frame["source"].unique()) - set(get_args(Judge))
    if unknown:
        raise DataError(f"{path}: source {min(unknown)!r} is unknown; it must be one of {', '.join(get_args(Judge))}")
    twice = int(frame.select("query", "item", "source").is_duplicated().sum())
    if twice:
        raise DataError(
            f"{path}: {twice} of {frame.height} rows judge a pair that the same judge judged in another row"
        )
    return frame
