"""What is counted over time: of items by the log, and of a user's history by the candidate. Declared in the table.

A counter of items is taken at a moment (the start of an example's day, the build of a generation) and rides in the
item row. A cross compares the history in the query row with the candidate when it is scored. Neither knows of anything
later: a counter ends where it is taken, a history where the request begins.

Shape letters: Q queries (1, or one a pair), N pairs, L history, K crosses of one key.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

Key = Literal["item", "category", "creator"]
"""What two things may have in common."""
KEYS: tuple[Key, ...] = get_args(Key)
_ID_OF: dict[Key, str] = {"item": "item_id", "category": "category", "creator": "creator"}
NEVER_LOG_HOURS = float(np.log1p(24 * 365))
"""What never happened counts as a year ago, and so does what is longer ago."""
_UNIT = 2.0**32


@dataclass(frozen=True, slots=True, kw_only=True)
class Spans:
    """Over how much of the past things are counted, beside all of it."""

    window_hours: tuple[float, ...] = (168,)
    """Of counters of items: whole windows, that end when the count is taken."""
    trend_half_life_hours: tuple[float, ...] = (168,)
    """Of counters of items, their categories and creators, that fade: what is this old counts half."""
    affinity_half_life_hours: tuple[float, ...] = (168,)
    """Of what a user did with the item, its category and its creator."""

    def __post_init__(self) -> None:
        for name in ("window_hours", "trend_half_life_hours", "affinity_half_life_hours"):
            hours = getattr(self, name)
            good = [each for each in hours if isinstance(each, int | float) and isfinite(each) and each > 0]
            if len(set(good)) < len(hours):
                raise ValueError(f"{name} is {list(hours)}; each must be a number above 0 and there once")


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """What a counter in the item row says of exposures made, and outcomes known, before it was taken.

    What is known of n exposures that h outcomes followed is s = (h + 20 p) / (n + 20), where p is the share of all
    exposures over the same time: p where there are none.
    """

    measure: Literal["shown", "rate", "lift"]
    """log(1 + n); s; log(s / p), which means the same whatever policy chose the exposures, and is 0 for a new item."""
    action: str = ""
    """That followed; empty for what was shown."""
    by: Key = "item"
    """Of the item alone, or of all items of its category or creator."""
    window_hours: float | None = None
    """None: since the first exposure."""
    half_life_hours: float | None = None
    """None: all exposures count alike."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cross:
    """What a number in the pair row says of the part of the history that the candidate has its key in common with."""

    by: Key
    measure: Literal["share", "count", "hours"]
    """Its share of the history; log(1 + how many); log(1 + hours since the newest)."""
    action: str = ""
    """Events of this action alone; empty: all."""
    half_life_hours: float | None = None
    """Of a count that fades."""


def counts(actions: Sequence[str], spans: Spans) -> Iterator[tuple[str, Count]]:
    """Names and counters of a table, in the order of its bytes."""
    yield "log_shown", Count(measure="shown")
    for action in actions:
        yield f"{action}_rate", Count(measure="rate", action=action)
    for hours in spans.window_hours:
        yield f"log_shown_{_named(hours)}", Count(measure="shown", window_hours=hours)
        for action in actions:
            yield f"{action}_lift_{_named(hours)}", Count(measure="lift", action=action, window_hours=hours)
    for hours in spans.trend_half_life_hours:
        for key in KEYS:
            for action in actions:
                name = f"{key}_{action}_trend_{_named(hours)}"
                yield name, Count(measure="lift", action=action, by=key, half_life_hours=hours)


def crosses(actions: Sequence[str], spans: Spans) -> Iterator[tuple[str, Cross]]:
    """Names and crosses of a table, in the order of its bytes."""
    yield "category_affinity", Cross(by="category", measure="share")
    yield "creator_affinity", Cross(by="creator", measure="share")
    yield "log_repeats", Cross(by="item", measure="count")
    for key in KEYS[1:]:
        yield f"{key}_log_hours", Cross(by=key, measure="hours")
    for hours in spans.affinity_half_life_hours:
        for key in KEYS:
            for action in actions:
                name = f"{key}_{action}_affinity_{_named(hours)}"
                yield name, Cross(by=key, measure="count", action=action, half_life_hours=hours)


def _named(hours: float) -> str:
    return f"{hours / 24:g}d" if hours % 24 == 0 else f"{hours:g}h"


def crossed(
    declared: Sequence[tuple[str, Cross]], actions: Sequence[str], query_row_Q: np.ndarray, item_row_N: np.ndarray
) -> dict[str, NDArray[np.floating]]:
    """Every cross of each pair by name, (N,).

    A pair's numbers do not depend on what else is computed with it: weights are rounded to 2^-32, so that sums of them
    are exact in whatever order they are added.

    Args:
        query_row_Q: one row for all items, or one for each.
    """
    found: dict[str, NDArray[np.floating]] = {}
    log_hours_QL = query_row_Q["history_log_hours"]
    hours_QL = np.expm1(log_hours_QL.astype(np.float64))
    action_QL = query_row_Q["history_action"]
    number_of = {action: number for number, action in enumerate(actions, start=1)}
    faded_QL = {
        half_life: np.rint(np.exp2(hours_QL / -half_life) * _UNIT) / _UNIT
        for half_life in {each.half_life_hours for _, each in declared if each.half_life_hours is not None}
    }
    length_Q = np.maximum((query_row_Q["history_category"] > 0).sum(axis=1), 1)
    for key in KEYS:
        same_NL = _same(key, query_row_Q, item_row_N)
        summed = [(name, each) for name, each in declared if each.by == key and each.measure != "hours"]
        weight_QLK = np.ones((*hours_QL.shape, len(summed)))
        for k, (_, each) in enumerate(summed):
            if each.half_life_hours is not None:
                weight_QLK[..., k] = faded_QL[each.half_life_hours]
            if each.action:
                weight_QLK[..., k] *= action_QL == number_of[each.action]
        held_NL = same_NL.astype(np.float64)
        sum_NK = held_NL @ weight_QLK[0] if len(query_row_Q) == 1 else (held_NL[:, None] @ weight_QLK)[:, 0]
        for k, (name, each) in enumerate(summed):
            found[name] = sum_NK[:, k] / length_Q if each.measure == "share" else np.log1p(sum_NK[:, k])
        for name, each in declared:
            if each.by == key and each.measure == "hours":
                found[name] = np.where(same_NL, log_hours_QL, np.float32(NEVER_LOG_HOURS)).min(
                    axis=1, initial=NEVER_LOG_HOURS
                )
    return found


def _same(key: Key, query_row_Q: np.ndarray, item_row_N: np.ndarray) -> NDArray[np.bool_]:
    """Which entries of the history have the key of the item, (N, L); what is unknown is like nothing."""
    id_N, past_QL = item_row_N[_ID_OF[key]], query_row_Q[f"history_{key}"]
    id_NH, past_QLH = (id_N[:, None], past_QL[..., None]) if id_N.ndim == 1 else (id_N, past_QL)
    same_NL: NDArray[np.bool_] = (past_QLH[..., 0] == id_NH[:, :1]) & (id_NH > 0).all(axis=1, keepdims=True)
    for h in range(1, id_NH.shape[1]):
        same_NL &= past_QLH[..., h] == id_NH[:, h, None]
    return same_NL
