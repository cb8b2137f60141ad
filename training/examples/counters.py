"""Counters of every item at one moment: what was shown, what came of it, how popular it is.

One function computes them, for the rows of a generation and for the examples of every day; which there are, the
feature table declares.

Shape letters: I items, A actions, D moments, G values of a key.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from candidate_gen.counts import KEYS, Count, Key
from candidate_gen.features import FeatureTable
from training.examples.events import action_code, known_events, numbered

HALF_LIFE_MS = 7 * 86_400_000
_HOUR_MS = 3_600_000
_PRIOR_SHOWN = 20.0
_Span = tuple[float | None, float | None]
"""Hours of the window and of the half-life."""


@dataclass(frozen=True, slots=True)
class ItemCounters:
    """What is known of every item at one moment."""

    column_of: Mapping[str, NDArray[np.float32]]
    """Every counter that the table declares, (I,), by name."""
    popularity_I: NDArray[np.float32]
    """Outcomes of the main action, each halved every 7 days."""


def item_counters(
    impressions: pl.DataFrame, events: pl.DataFrame, items: pl.DataFrame, *, as_of_ms: int, table: FeatureTable
) -> ItemCounters:
    """Counters of exposures made, and outcomes visible, before `as_of_ms`."""
    moments = np.array([as_of_ms], np.int64)
    return next(counters_at(impressions, events, items, as_of_ms_D=moments, table=table))


def counters_at(
    impressions: pl.DataFrame,
    events: pl.DataFrame,
    items: pl.DataFrame,
    *,
    as_of_ms_D: NDArray[np.int64],
    table: FeatureTable,
) -> Iterator[ItemCounters]:
    """Counters at each of some rising moments, in one pass over the log.

    An outcome has the time of its exposure, so that a window holds both or neither, but counts from when it was known.
    An action counts once an exposure, and only for the impressions given. Popularity also counts outcomes without an
    impression, and goes by their own time.
    """
    rows = numbered(items["item_id"], "item_id", "item")
    shown = (
        impressions.select("request_id", "item_id", "time_ms")
        .filter(pl.col("item_id").list.len() > 0)
        .explode("item_id")
        .join(rows, on="item_id")
        .sort("time_ms")
    )
    known = known_events(events).join(rows, on="item_id").with_columns(action=action_code(table.actions))
    outcomes = (
        known.filter(pl.col("action") > 0)
        .join(impressions.select("request_id", shown_ms="time_ms"), on="request_id")
        .with_columns(known_ms=pl.max_horizontal("known_ms", "shown_ms"))
        .sort("known_ms", "time_ms", "event_id")
        .unique(["request_id", "item", "action"], keep="first", maintain_order=True)
    )
    positives = known.filter(pl.col("action") == 1)
    actions = len(table.actions)
    spans: set[_Span] = {(count.window_hours, count.half_life_hours) for _, count in table.counters}
    shown_ms = shown["time_ms"].to_numpy()
    exposed_of = {span: _Sums(span, shown["item"].to_numpy(), shown_ms, shown_ms, cells=items.height) for span in spans}
    hit_cell = (outcomes["item"] * actions + outcomes["action"] - 1).to_numpy()
    hit_ms, hit_known_ms = outcomes["shown_ms"].to_numpy(), outcomes["known_ms"].to_numpy()
    hits_of = {span: _Sums(span, hit_cell, hit_ms, hit_known_ms, cells=items.height * actions) for span in spans}
    popularity = _Sums(
        (None, HALF_LIFE_MS / _HOUR_MS),
        positives["item"].to_numpy(),
        positives["time_ms"].to_numpy(),
        positives["known_ms"].to_numpy(),
        cells=items.height,
    )
    code_of = {key: _codes(table, items, key) for key in KEYS}
    for as_of_ms in as_of_ms_D.tolist():
        sums_of = {
            span: (exposed_of[span].at(as_of_ms), hits_of[span].at(as_of_ms).reshape(items.height, actions))
            for span in spans
        }
        yield ItemCounters(
            {
                name: _value(
                    count, *sums_of[count.window_hours, count.half_life_hours], code_of[count.by], table.actions
                )
                for name, count in table.counters
            },
            popularity.at(as_of_ms).astype(np.float32),
        )


class _Sums:
    """Events of each cell over one span of time, as known before each of some rising moments.

    Args:
        time_ms: when each happened, which is what the span goes by.
        known_ms: from when it counts, no earlier than that; rising.
    """

    def __init__(
        self,
        span: _Span,
        cell: NDArray[np.int64],
        time_ms: NDArray[np.int64],
        known_ms: NDArray[np.int64],
        *,
        cells: int,
    ) -> None:
        self._window_hours, self._half_life_hours = span
        self._cell, self._time_ms, self._known_ms = cell, time_ms, known_ms
        self._sum = np.zeros(cells)
        self._known = 0
        self._before_ms = 0

    def at(self, as_of_ms: int) -> NDArray[np.float64]:
        """(cells,); of a window that includes its begin and not its end."""
        known = int(np.searchsorted(self._known_ms, as_of_ms))
        if self._window_hours is not None:
            since_ms = as_of_ms - self._window_hours * _HOUR_MS
            inside = slice(int(np.searchsorted(self._known_ms, since_ms)), known)
            return self._added(inside, self._time_ms[inside] >= since_ms)
        new = slice(self._known, known)
        if self._half_life_hours is None:
            self._sum = self._sum + self._added(new)
        else:
            half_life_ms = self._half_life_hours * _HOUR_MS
            faded = 0.5 ** ((as_of_ms - self._before_ms) / half_life_ms)
            worth = 0.5 ** ((as_of_ms - self._time_ms[new]) / half_life_ms)
            self._sum = faded * self._sum + self._added(new, worth)
        self._known, self._before_ms = known, as_of_ms
        return self._sum

    def _added(self, part: slice, worth: NDArray[np.generic] | None = None) -> NDArray[np.float64]:
        return np.bincount(self._cell[part], worth, minlength=len(self._sum)).astype(np.float64, copy=False)


def _codes(table: FeatureTable, items: pl.DataFrame, key: Key) -> NDArray[np.int64]:
    """Which value of the key each item has, (I,), as its row says; 0 is unknown, which is like nothing."""
    if key == "item":
        return np.arange(1, items.height + 1)
    return table.encode(key, items[key].to_list()).astype(np.int64)


def _value(
    count: Count,
    shown_I: NDArray[np.float64],
    hit_IA: NDArray[np.float64],
    code_I: NDArray[np.int64],
    actions: Sequence[str],
) -> NDArray[np.float32]:
    """A counter of every item, from what was shown and what came of it over the counter's span."""
    hit_I = hit_IA[:, actions.index(count.action)] if count.action else shown_I
    prior = hit_I.sum() / max(shown_I.sum(), 1)
    if count.by != "item":
        shown_I, hit_I = (_of_key(each, code_I) for each in (shown_I, hit_I))
    rate_I = (hit_I + _PRIOR_SHOWN * prior) / (shown_I + _PRIOR_SHOWN)
    match count.measure:
        case "shown":
            value_I = np.log1p(shown_I)
        case "rate":
            value_I = rate_I
        case "lift":
            value_I = np.log(rate_I / prior) if prior > 0 else np.zeros_like(rate_I)
    return np.asarray(value_I, np.float32)


def _of_key(value_I: NDArray[np.float64], code_I: NDArray[np.int64]) -> NDArray[np.float64]:
    total_G = np.bincount(code_I, value_I, minlength=1).astype(np.float64, copy=False)
    total_G[0] = 0
    total_I: NDArray[np.float64] = total_G[code_I]
    return total_I
