"""History into the online store, so that a server started today knows what users did before."""

from contextlib import closing
from pathlib import Path

import polars as pl

from index.strings import key64
from serving.generation import action_key
from serving.state.user_state import UserState
from training.log.served import read_done

_PATIENCE_S = 5.0


def rebuild(redis: str, *, log: Path | None, history: Path | None = None, generations: Path) -> int:
    """Put what users did into a Redis that lost it or is new; returns how many users that are.

    Args:
        redis: its address, see `UserState`.
        log, history, generations: see `read_done`.
    """
    events = read_done(log, history, generations=generations)
    with closing(UserState(redis, timeout_s=_PATIENCE_S)) as state:
        return materialise(events, state)


def materialise(events: pl.DataFrame, state: UserState) -> int:
    """Write the newest events of every user into the user state; returns how many users were written.

    They are put there in the order in which they became visible, which is the order in which a server would have
    seen them, behind those that the state holds already.
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
        state.restore(
            user_id,
            [
                (key64(item_id), action_key(action), time_ms)
                for item_id, action, time_ms in zip(item_ids, actions, times_ms, strict=True)
            ],
        )
    return newest.height
