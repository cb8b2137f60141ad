"""Reads files of who took what, and cuts them into what is learned from and what is to be found.

Shape letters: T pairs of training, U users asked for, I items, K places of a ranking, D width.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import polars as pl
from numpy.typing import NDArray

from training.datasets.dataset import DataError
from training.datasets.tables import read_table
from training.evaluation.topk import ItemSets, Ranking

SplitKind = Literal["time", "leave_one_out", "given"]


@dataclass(frozen=True, slots=True)
class Split:
    """Interactions to learn from and interactions to be found, by the columns `user` and `item`."""

    train: pl.DataFrame
    test: pl.DataFrame
    at: int | None = None
    """Where both also have the column `time`: training has none after this time, the test none before it."""


def read_split(
    train: Path | None, test: Path | None, data: Path | None, *, split: SplitKind, test_share: float
) -> Split:
    """Two files as they are, or one file cut, without a leak (see `require_no_leak`). A repeated pair counts once.

    One file needs the columns `user`, `item` and `time` (a whole number or a date) and is cut at the time before which
    1 - `test_share` of its interactions lie, or so that each user's last interaction is the test (`leave_one_out`).
    What a user takes again in the test is left out of it.

    Two files that both have a column `time` must be cut by time too, unless the split is `given`. A pair that is in
    both counts as missed, for what was taken in training is not ranked again.

    Raises:
        ValueError: where neither `data` alone nor both `train` and `test` are given, where a file cannot be used or
            the split leaks, for a split that the files cannot have, for a share not between 0 and 1.
    """
    if not 0 < test_share < 1:
        raise ValueError(f"test_share is {test_share}; it must be between 0 and 1")
    if data is not None and train is None and test is None:
        if split == "given":
            raise ValueError("split is 'given' but data=FILE is to be cut: 'time' or 'leave_one_out' is needed")
        found, origin = _cut(_interactions(data, timed=True), split=split, test_share=test_share), str(data)
    elif data is None and train is not None and test is not None:
        if split == "leave_one_out":
            raise ValueError(
                "split is 'leave_one_out' but train=FILE and test=FILE are cut: 'time' or 'given' is needed"
            )
        known, asked = _interactions(train), _interactions(test)
        timed = split == "time" and "time" in known.columns and "time" in asked.columns
        found, origin = Split(known, asked, asked["time"][0] if timed else None), f"{train} and {test}"
    else:
        raise ValueError("evaluate retrieval needs train=FILE and test=FILE, or data=FILE alone")
    require_no_leak(found, origin=origin)
    return found


def require_no_leak(split: Split, *, origin: str) -> None:
    """
    Args:
        origin: what was cut.

    Raises:
        DataError: where training holds a later time than the test begins at, the test an earlier one, or one of the
            two is empty.
    """
    for name, part in (("training", split.train), ("the test", split.test)):
        if part.is_empty():
            raise DataError(f"{origin}: no interaction is left for {name}")
    if split.at is not None:
        late, early = int((split.train["time"] > split.at).sum()), int((split.test["time"] < split.at).sum())
        if late or early:
            raise DataError(
                f"{origin}: the future leaks: column 'time' is after the split at {split.at} in {late} of "
                f"{len(split.train)} training rows and before it in {early} of {len(split.test)} test rows"
            )


@dataclass(frozen=True, slots=True)
class Pairs:
    """A split as numbers: users and items are positions among the names of either part."""

    users: tuple[str, ...]
    items: tuple[str, ...]
    train_user_T: NDArray[np.int64]
    train_item_T: NDArray[np.int64]
    asked_U: NDArray[np.int64]
    """Users with something to be found."""
    relevant: ItemSets
    """What is to be found, for each of them."""
    masked: ItemSets
    """What they took in training, which is not ranked again."""

    @classmethod
    def of(cls, split: Split) -> "Pairs":
        users, (train_user_T, test_user_T) = numbered(split.train["user"], split.test["user"])
        items, (train_item_T, test_item_T) = numbered(split.train["item"], split.test["item"])
        asked_U, asked_T = np.unique(test_user_T, return_inverse=True)
        row_of_user = np.full(len(users), -1)
        row_of_user[asked_U] = np.arange(len(asked_U))
        known_T = row_of_user[train_user_T] >= 0
        return cls(
            users=users,
            items=items,
            train_user_T=train_user_T,
            train_item_T=train_item_T,
            asked_U=asked_U,
            relevant=ItemSets.of(asked_T, test_item_T, queries=len(asked_U)),
            masked=ItemSets.of(row_of_user[train_user_T[known_T]], train_item_T[known_T], queries=len(asked_U)),
        )

    def ranking(self, ranked_UK: NDArray[np.int64], vector_ID: NDArray[np.float32] | None = None) -> Ranking:
        """What a ranking for `asked_U` is worth.

        Args:
            vector_ID: by which its diversity is measured.
        """
        popularity_I = np.bincount(self.train_item_T, minlength=len(self.items))
        return Ranking(ranked_UK, self.relevant, self.masked.size_B, popularity_I, vector_ID)


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


def _interactions(path: Path, *, timed: bool = False) -> pl.DataFrame:
    """Pairs, each once, the first one; with whole numbers in `time`, by which they are sorted, if there is one."""
    columns = ("user", "item")
    if timed or "time" in read_table(path, columns).columns:
        frame = read_columns(path, (*columns, "time"))
        if not (frame["time"].dtype.is_integer() or frame["time"].dtype.is_temporal()):
            raise DataError(f"{path}: column 'time' is {frame['time'].dtype}; a whole number or a date is needed")
        frame = frame.with_columns(pl.col("time").cast(pl.Int64)).sort("time", maintain_order=True)
    else:
        frame = read_columns(path, columns)
    return frame.unique(columns, keep="first", maintain_order=True)


def _cut(frame: pl.DataFrame, *, split: SplitKind, test_share: float) -> Split:
    if split == "leave_one_out":
        last = pl.int_range(pl.len()).over("user") == pl.len().over("user") - 1
        many = pl.len().over("user") > 1
        return Split(frame.filter(~(last & many)), frame.filter(last & many))
    at: int = frame["time"][min(int(len(frame) * (1 - test_share)), len(frame) - 1)]
    return Split(frame.filter(pl.col("time") < at), frame.filter(pl.col("time") >= at), at)
