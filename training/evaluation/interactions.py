"""Reads files of who took what."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from training.data import DataError
from training.tables import read_table


def read_columns(path: Path, columns: Sequence[str]) -> pl.DataFrame:
    """These columns of a table, without a null; a text may be empty.

    Raises:
        DataError: where the file cannot be read, is empty, lacks a column, or a column holds nulls.
    """
    frame = read_table(path, columns)
    for name in columns:
        nulls = frame[name].null_count()
        if nulls:
            raise DataError(f"{path}: column {name!r} holds {nulls} nulls in {len(frame)} rows; none is allowed")
    return frame.select(columns)


def numbered(*columns: pl.Series) -> tuple[tuple[str, ...], list[NDArray[np.int64]]]:
    """The distinct values of all columns as text, sorted, and each column as positions among them."""
    texts = [column.cast(pl.Utf8) for column in columns]
    distinct = pl.concat(texts).unique().sort()
    lookup = pl.DataFrame({"value": distinct, "position": np.arange(len(distinct))})
    positions = [
        pl.DataFrame({"value": text}).join(lookup, on="value", how="left", maintain_order="left")["position"].to_numpy()
        for text in texts
    ]
    return tuple(distinct.to_list()), positions
