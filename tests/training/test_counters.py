"""Counters against loops that follow the definitions."""

import numpy as np
import polars as pl
import pytest
from example_cases import ACTIONS, START_MS, event_frame
from hypothesis import given
from hypothesis import strategies as st

from candidate_gen.counts import Count, Spans
from candidate_gen.features import FeatureTable, feature_table
from training.datasets.dataset import IMPRESSION_SCHEMA
from training.examples.counters import counters_at, item_counters

HOUR_MS = 3_600_000
CATEGORIES = ("a", "b")
ITEMS = pl.DataFrame(
    {
        "item_id": ["i0", "i1", "i2", "i3"],
        "title": [""] * 4,
        "category": ["a", "b", "a", None],
        "creator": ["c", None, "d", "c"],
        "published_ms": [START_MS] * 4,
        "available": [True] * 4,
    }
)
TABLE: FeatureTable = feature_table(
    users=2,
    items=4,
    actions=ACTIONS,
    categories=CATEGORIES,
    sources=(),
    user_columns={},
    item_columns={},
    spans=Spans(window_hours=(5, 24), trend_half_life_hours=(8,)),
)
_HOURS = st.integers(0, 60)
_SHOWN = st.lists(
    st.tuples(_HOURS, st.lists(st.sampled_from(["i0", "i1", "i2", "i3", "gone"]), max_size=3, unique=True))
)
_DONE = st.lists(
    st.tuples(
        st.integers(0, 4), st.sampled_from(["i0", "i1", "i2", "i3"]), st.sampled_from([*ACTIONS, "stare"]), _HOURS
    )
)


def log_of(
    shown: list[tuple[int, list[str]]], done: list[tuple[int, str, str, int]]
) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Requests by hour, and outcomes of theirs that are visible some hours after."""
    impressions = pl.DataFrame(
        [
            (f"r{r}", "u", START_MS + hour * HOUR_MS, "home", "", items, [0.5] * len(items))
            for r, (hour, items) in enumerate(shown)
        ],
        IMPRESSION_SCHEMA,
        orient="row",
    )
    events = []
    for n, (r, item, action, delay) in enumerate(done):
        at_ms = START_MS + (shown[r][0] if r < len(shown) else 30) * HOUR_MS
        events.append((f"e{n}", f"r{r}", "u", item, action, 1.0, at_ms, at_ms + delay * HOUR_MS, 0))
    return impressions, event_frame(events)


def weight(count: Count, age_hours: float) -> float:
    """Of an exposure in the counter's span."""
    if age_hours <= 0 or (count.window_hours is not None and age_hours > count.window_hours):
        return 0.0
    return float(0.5 ** (age_hours / count.half_life_hours)) if count.half_life_hours else 1.0


@given(_SHOWN, _DONE, st.lists(_HOURS, min_size=1, max_size=4, unique=True))
def test_a_counter_counts_exposures_and_known_outcomes_of_its_span_and_key(
    shown: list[tuple[int, list[str]]], done: list[tuple[int, str, str, int]], hours: list[int]
) -> None:
    impressions, events = log_of(shown, done)
    moments = np.array(sorted(hours), np.int64) * HOUR_MS + START_MS
    for at_ms, found in zip(
        moments.tolist(), counters_at(impressions, events, ITEMS, as_of_ms_D=moments, table=TABLE), strict=True
    ):
        now = (at_ms - START_MS) / HOUR_MS
        known = {
            (f"r{r}", item, action)
            for r, item, action, delay in done
            if action in ACTIONS and r < len(shown) and max(shown[r][0] + delay, shown[r][0]) < now
        }
        for name, count in TABLE.counters:
            exposed = [(item, weight(count, now - hour)) for hour, items in shown for item in items if item != "gone"]
            hits = [
                (item, weight(count, now - shown[int(r[1:])][0])) for r, item, action in known if action == count.action
            ]
            keys = dict(zip(ITEMS["item_id"], ITEMS["item_id" if count.by == "item" else count.by], strict=True))
            for i, key in enumerate(keys.values()):
                n = sum(w for item, w in exposed if key is not None and keys[item] == key)
                h = sum(w for item, w in hits if key is not None and keys[item] == key)
                p = sum(w for _, w in hits) / max(sum(w for _, w in exposed), 1)
                s = (h + 20 * p) / (n + 20)
                expected = {"shown": np.log1p(n), "rate": s, "lift": np.log(s / p) if p else 0.0}[count.measure]
                assert found.column_of[name][i] == pytest.approx(expected, rel=1e-5, abs=1e-6), name


@given(_SHOWN, _DONE, st.lists(_HOURS, min_size=2, max_size=4, unique=True))
def test_a_counter_does_not_depend_on_the_moments_at_which_it_was_taken_before(
    shown: list[tuple[int, list[str]]], done: list[tuple[int, str, str, int]], hours: list[int]
) -> None:
    impressions, events = log_of(shown, done)
    moments = np.array(sorted(hours), np.int64) * HOUR_MS + START_MS
    *_, last = counters_at(impressions, events, ITEMS, as_of_ms_D=moments, table=TABLE)
    alone = item_counters(impressions, events, ITEMS, as_of_ms=int(moments[-1]), table=TABLE)
    for name, column_I in alone.column_of.items():
        np.testing.assert_allclose(last.column_of[name], column_I, rtol=1e-6, atol=1e-9, err_msg=name)
    np.testing.assert_allclose(last.popularity_I, alone.popularity_I, rtol=1e-6)
