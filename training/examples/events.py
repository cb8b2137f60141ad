"""Events as they became known: the order that every point-in-time join goes by.

Shape letters: B queries, L history, E events.
"""

from collections.abc import Sequence

import numpy as np
import polars as pl
from numpy.typing import NDArray


def point_in_time_history(
    events: pl.DataFrame,
    user_B: Sequence[str] | pl.Series,
    time_ms_B: NDArray[np.int64],
    *,
    length: int,
    item_ids: pl.Series,
    actions: Sequence[str],
    strictly: bool = False,
) -> tuple[NDArray[np.int64], NDArray[np.int32], NDArray[np.int64]]:
    """What each user had done, and was known to have done, at a time: newest first, -1 and 0 pad on the right.

    The order is that in which events became visible, ties by their time and event id, which is the order in which a
    server takes them. Items that `item_ids` does not hold are left out; so is everything of the anonymous user "".

    Args:
        item_ids: the catalogue, whose positions are the rows.
        actions: those with a number (from 1); others count as 0.
        strictly: only events known before the time, not at it.

    Returns:
        Item rows, action numbers and times of the events, each (B, L).
    """
    known = (
        known_events(events.filter(pl.col("user_id") != ""))
        .join(numbered(item_ids, "item_id", "item"), on="item_id", maintain_order="left")
        .with_columns(action=action_code(actions))
    )
    users = known.select(pl.col("user_id").unique(maintain_order=True)).with_row_index("user")
    known = known.join(users, on="user_id", maintain_order="left").sort("user", maintain_order=True)
    asked = pl.DataFrame({"user_id": user_B}, {"user_id": pl.Utf8}).join(
        users, on="user_id", how="left", maintain_order="left"
    )
    user_of_B = asked["user"].cast(pl.Int64).fill_null(-1).to_numpy()

    # One sorted integer key of (user, rank of the moment) turns all look-ups into one binary search.
    moments, rank_E = np.unique(known["known_ms"].to_numpy(), return_inverse=True)
    width = len(moments) + 1
    key_E = known["user"].cast(pl.Int64).to_numpy() * width + rank_E.reshape(-1)
    until_B = np.searchsorted(moments, time_ms_B, side="left" if strictly else "right")
    end_B = np.searchsorted(key_E, user_of_B * width + until_B)
    start_B = np.searchsorted(key_E, user_of_B * width)
    end_B = np.where(user_of_B < 0, start_B, end_B)
    at_BL = end_B[:, None] - 1 - np.arange(length)
    held_BL = at_BL >= start_B[:, None]
    if not len(key_E):
        return (
            np.full(held_BL.shape, -1, np.int64),
            np.zeros(held_BL.shape, np.int32),
            np.zeros(held_BL.shape, np.int64),
        )
    at_BL = np.where(held_BL, at_BL, 0)
    return (
        np.where(held_BL, known["item"].to_numpy()[at_BL], -1),
        np.where(held_BL, known["action"].to_numpy()[at_BL], 0).astype(np.int32),
        np.where(held_BL, known["time_ms"].to_numpy()[at_BL], 0),
    )


def known_events(events: pl.DataFrame) -> pl.DataFrame:
    """Events with the moment from which they were known, in that order, ties by their own time, then by event id."""
    known = events.with_columns(known_ms=pl.max_horizontal("time_ms", "visible_ms"))
    return known.sort("known_ms", "time_ms", "event_id")


def numbered(ids: pl.Series, name: str, number: str) -> pl.DataFrame:
    """Identifiers with their positions, to join with."""
    return pl.DataFrame({name: ids, number: np.arange(len(ids), dtype=np.int64)}, {name: pl.Utf8, number: pl.Int64})


def action_code(actions: Sequence[str]) -> pl.Expr:
    """1 + position of the action; 0 where it is not among them."""
    return pl.col("action").replace_strict(
        {name: a for a, name in enumerate(actions, 1)}, default=0, return_dtype=pl.Int32
    )
