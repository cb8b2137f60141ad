"""What is counted over time: of items by the log, and of a user's history by the candidate. Declared in the table.

A counter of items is taken at a moment (the start of an example's day, the build of a generation) and rides in the
item row. A cross compares the history in the query row with the candidate when it is scored. Neither knows of anything
later: a counter ends where it is taken, a history where the request begins.

Shape letters: Q queries (1, or one a pair), N pairs, L history, W words of a record, X crosses, E keys, F weights of
an entry of the history: 1, and one for each half-life.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import Any, Literal, get_args

import numpy as np
from numba import njit
from numpy.typing import NDArray

Key = Literal["item", "category", "creator"]
"""What two things may have in common."""
KEYS: tuple[Key, ...] = get_args(Key)
_ID_OF: dict[Key, str] = {"item": "item_id", "category": "category", "creator": "creator"}
NEVER_LOG_HOURS = float(np.log1p(24 * 365))
"""What never happened counts as a year ago, and so does what is longer ago."""
_UNIT = 2.0**32
_CATEGORY = KEYS.index("category")
_COUNT, _SHARE, _HOURS = 0, 1, 2
_compiled: Any = njit(cache=True, nogil=True, boundscheck=False)
_inlined: Any = njit(inline="always", boundscheck=False)


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


class Crossing:
    """Every cross of a table, as `FeatureTable.crosses` declares them."""

    def __init__(self, declared: Sequence[tuple[str, Cross]], actions: Sequence[str], at: Mapping[str, slice]) -> None:
        """
        Args:
            at: words of four bytes that a feature has in its record, by name.
        """
        self._names = [name for name, _ in declared]
        self._half_lives = sorted({each.half_life_hours for _, each in declared if each.half_life_hours is not None})
        number_of = {action: number for number, action in enumerate(actions, start=1)}
        code_of = {"count": _COUNT, "share": _SHARE, "hours": _HOURS}
        self._what_X4 = np.array(
            [
                (
                    KEYS.index(each.by),
                    code_of[each.measure],
                    number_of[each.action] if each.action else 0,
                    0 if each.half_life_hours is None else 1 + self._half_lives.index(each.half_life_hours),
                )
                for _, each in declared
            ],
            np.int64,
        ).reshape(-1, 4)
        self._key_at_E3 = np.array(
            [(at[f"history_{key}"].start, at[_ID_OF[key]].start, _width(at[_ID_OF[key]])) for key in KEYS], np.int64
        )
        self._at = at["history_log_hours"], at["history_action"]

    def __call__(
        self,
        query_word_QW: NDArray[np.int32],
        item_word_NW: NDArray[np.int32],
        query_N: NDArray[np.int64] | None = None,
    ) -> dict[str, NDArray[np.floating]]:
        """Every cross of each pair by name, (N,).

        A pair's numbers do not depend on what else is computed with it: weights are rounded to 2^-32, so that sums of
        them are exact in whatever order they are added.

        Args:
            query_word_QW: query records, one for all items or one for each, as words; both can be written to.
            query_N: which of them is each item's, where they are neither.
        """
        if query_N is None:
            query_N = np.arange(len(item_word_NW)) if len(query_word_QW) > 1 else np.zeros(len(item_word_NW), np.int64)
        hours_at, action_at = self._at
        log_hours_QL = query_word_QW.view(np.float32)[:, hours_at]
        hours_QL = np.expm1(log_hours_QL.astype(np.float64))
        weight_FQL = np.ones((1 + len(self._half_lives), *hours_QL.shape))
        for faded_QL, half_life in zip(weight_FQL[1:], self._half_lives, strict=True):
            faded_QL[:] = np.rint(np.exp2(hours_QL / -half_life) * _UNIT) / _UNIT
        at = self._key_at_E3, action_at.start
        past = query_word_QW, log_hours_QL, weight_FQL
        found_XN = _crossed(past, item_word_NW, query_N, at, self._what_X4)
        met_XN = (found_XN > 0) & (self._what_X4[:, 1:2] == _COUNT)  # few are
        found_XN[met_XN] = np.log1p(found_XN[met_XN])
        return dict(zip(self._names, found_XN, strict=True))


def _width(at: slice) -> int:
    return int(at.stop - at.start)


@_compiled
def _crossed(past, item_word_NW, query_N, at, what_X4):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    """(X, N): sums, shares of the history, and logarithms of hours."""
    query_word_QW, log_hours_QL, weight_FQL = past
    key_at_E3, action_at = at
    history = log_hours_QL.shape[1]
    found_XN = np.zeros((len(what_X4), len(item_word_NW)))
    for x in range(len(what_X4)):
        if what_X4[x, 1] == _HOURS:
            found_XN[x] = NEVER_LOG_HOURS
    category_at = key_at_E3[_CATEGORY, 0]
    same_L = np.zeros(history, np.bool_)
    for key in range(len(key_at_E3)):
        past_at, id_at, hashes = key_at_E3[key]
        for n in range(len(item_word_NW)):
            q = query_N[n]
            if _met(query_word_QW[q, past_at:], item_word_NW[n, id_at : id_at + hashes], same_L) == 0:
                continue
            length = 0
            for place in range(history):
                length += query_word_QW[q, category_at + place] > 0
            for x in range(len(what_X4)):
                by, measure, action, fading = what_X4[x]
                if by != key:
                    continue
                total, least = 0.0, np.float32(NEVER_LOG_HOURS)
                for place in range(history):
                    if same_L[place] and (action == 0 or query_word_QW[q, action_at + place] == action):
                        total += weight_FQL[fading, q, place]
                        least = min(least, log_hours_QL[q, place])
                if measure == _SHARE:
                    total /= max(length, 1)
                found_XN[x, n] = least if measure == _HOURS else total
    return found_XN


@_inlined
def _met(past_W, id_H, same_L):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    """Note which entries of the history have the id; returns how many. What is unknown is like nothing."""
    hashes, met = len(id_H), 0
    for place in range(len(same_L)):
        same_L[place] = past_W[place * hashes] == id_H[0]
        met += same_L[place]
    for h in range(hashes):
        met *= id_H[h] > 0
    for h in range(1, hashes if met > 0 else 0):
        for place in range(len(same_L)):
            same_L[place] &= past_W[place * hashes + h] == id_H[h]
    return met
