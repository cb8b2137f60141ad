"""History into the online store, so that a server started today knows what users did before."""

import polars as pl

from index.strings import key64
from serving.generation import action_key
from serving.state import UserState


def materialise(events: pl.DataFrame, state: UserState) -> int:
    """Write the newest events of every user into the user state; returns how many users were written.

    Events are pushed in the order in which they became visible, which is the order in which a server would have
    seen them.
    """
    newest = (
        events.filter(pl.col("user_id") != "")
        .sort("visible_ms", "time_ms", "event_id")
        .group_by("user_id", maintain_order=True)
        .tail(state.limit)
        .group_by("user_id", maintain_order=True)
        .agg("item_id", "action", "time_ms")
    )
    for user_id, item_ids, actions, times_ms in newest.iter_rows():
        state.push(
            user_id,
            [
                (key64(item_id), action_key(action), time_ms)
                for item_id, action, time_ms in zip(item_ids, actions, times_ms, strict=True)
            ],
        )
    return newest.height
