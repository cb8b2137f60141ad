"""Examples of a log without feature bytes, cut by requests into parts for an engine; the cut changes no bit.

A part is a slice of the requests, but what was known at a request is known from the whole log: histories, user states,
counters of every day before. So a part is a task with a slice and all tables, which Ray sends once to a machine. Ray
Data would cut the tables into blocks, each of which would need all others for its joins, and the records of a feature
table into Arrow columns and back.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import polars as pl

from candidate_gen.features import FeatureTable
from index.lexical import LexicalIndex
from training.datasets.dataset import searchable
from training.engine import Engine, in_order
from training.examples.exposures import Examples, from_impressions, mature

_LEAST = 1024
"""Impressions of a part: fewer take less time than what every part begins with."""


def examples_of(
    table: FeatureTable,
    *,
    engine: Engine,
    users: pl.DataFrame,
    items: pl.DataFrame,
    texts: Sequence[str],
    boosts: Mapping[str, int],
    impressions: pl.DataFrame,
    events: pl.DataFrame,
    watermark_ms: int,
) -> Examples:
    """`from_impressions` of all impressions.

    Args:
        texts, boosts: what search reads of the items; see `training.datasets.dataset.searchable` and
            `LexicalIndex.build`.
    """
    count = mature(impressions, watermark_ms=watermark_ms).height
    size = max(_LEAST, -(-count // engine.at_once))
    joined = partial(
        from_impressions,
        table,
        users=users,
        items=items,
        impressions=impressions,
        events=events,
        watermark_ms=watermark_ms,
    )
    make = partial(_joining, joined, items=items, texts=texts, boosts=boosts)
    parts = [slice(first, first + size) for first in range(0, max(1, count), size)]
    return Examples.concatenate(in_order(engine, make, parts))


def _joining(
    joined: Callable[..., Examples], *, items: pl.DataFrame, texts: Sequence[str], boosts: Mapping[str, int]
) -> Callable[[slice], Examples]:
    with TemporaryDirectory(prefix="cascade-lexical-") as folder:
        lexical = LexicalIndex.build(Path(folder) / "lexical", searchable(items, texts), boosts=boosts)
    return lambda part: joined(lexical=lexical, part=part)
