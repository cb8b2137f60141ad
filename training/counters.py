"""Counters of every item at one moment: what it was shown, what came of it, how popular it is.

Shape letters: I items, A actions, D moments.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from training.events import action_code, known_events, numbered

HALF_LIFE_MS = 7 * 86_400_000
_PRIOR_SHOWN = 20.0


@dataclass(frozen=True, slots=True)
class ItemCounters:
    """What is known of every item at one moment."""

    log_shown_I: NDArray[np.float32]
    """log(1 + times shown)."""
    rate_IA: NDArray[np.float32]
    """(outcomes + 20 * overall rate) / (times shown + 20)."""
    popularity_I: NDArray[np.float32]
    """Outcomes of the main action, each halved every 7 days."""


def item_counters(
    impressions: pl.DataFrame, events: pl.DataFrame, items: pl.DataFrame, *, as_of_ms: int, actions: Sequence[str]
) -> ItemCounters:
    """Counters of exposures made, and outcomes visible, before `as_of_ms`."""
    moments = np.array([as_of_ms], np.int64)
    return next(counters_at(impressions, events, items, as_of_ms_D=moments, actions=actions))


def counters_at(
    impressions: pl.DataFrame,
    events: pl.DataFrame,
    items: pl.DataFrame,
    *,
    as_of_ms_D: NDArray[np.int64],
    actions: Sequence[str],
) -> Iterator[ItemCounters]:
    """Counters at each of some rising moments, in one pass over the log.

    Rates count an action once an exposure, and only for the impressions given. Popularity also counts outcomes
    without an impression.
    """
    rows = numbered(items["item_id"], "item_id", "item")
    shown = (
        impressions.select("item_id", "time_ms")
        .filter(pl.col("item_id").list.len() > 0)
        .explode("item_id")
        .join(rows, on="item_id")
        .sort("time_ms")
    )
    known = known_events(events).join(rows, on="item_id").with_columns(action=action_code(actions))
    outcomes = (
        known.filter(pl.col("action") > 0)
        .join(impressions.select("request_id"), on="request_id", how="semi")
        .unique(["request_id", "item", "action"], keep="first", maintain_order=True)
    )
    positives = known.filter(pl.col("action") == 1)
    shown_item, shown_ms = shown["item"].to_numpy(), shown["time_ms"].to_numpy()
    hit_cell = (outcomes["item"] * len(actions) + outcomes["action"] - 1).to_numpy()
    hit_ms = outcomes["known_ms"].to_numpy()
    liked_item, liked_ms = positives["item"].to_numpy(), positives["time_ms"].to_numpy()
    liked_known_ms = positives["known_ms"].to_numpy()

    count = items.height
    shown_I, hit_IA, popularity_I = np.zeros(count), np.zeros((count, len(actions))), np.zeros(count)
    before_ms: int | None = None
    s = h = p = 0
    for as_of_ms in as_of_ms_D.tolist():
        s, start = int(np.searchsorted(shown_ms, as_of_ms)), s
        shown_I += np.bincount(shown_item[start:s], minlength=count)
        h, start = int(np.searchsorted(hit_ms, as_of_ms)), h
        hit_IA += np.bincount(hit_cell[start:h], minlength=count * len(actions)).reshape(count, -1)
        p, start = int(np.searchsorted(liked_known_ms, as_of_ms)), p
        worth = 0.5 ** ((as_of_ms - liked_ms[start:p]) / HALF_LIFE_MS)
        faded = 0.5 ** ((as_of_ms - before_ms) / HALF_LIFE_MS) if before_ms is not None else 0.0
        popularity_I = faded * popularity_I + np.bincount(liked_item[start:p], worth, minlength=count)
        before_ms = as_of_ms
        prior_A = hit_IA.sum(0) / max(shown_I.sum(), 1)
        rate_IA = (hit_IA + _PRIOR_SHOWN * prior_A) / (shown_I + _PRIOR_SHOWN)[:, None]
        yield ItemCounters(
            np.log1p(shown_I).astype(np.float32), rate_IA.astype(np.float32), popularity_I.astype(np.float32)
        )
