"""Crosses against loops that follow the definitions, and what a table declares."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from retrieval_cases import CATEGORIES, NOW_MS, small_item_rows

from candidate_gen.counts import KEYS, NEVER_LOG_HOURS, Count, Cross, Spans
from candidate_gen.features import FeatureTable, feature_table, pair_rows, query_rows

ACTIONS = ("click", "hide")
HOUR_MS = 3_600_000


def table_of(**spans: tuple[float, ...]) -> FeatureTable:
    return feature_table(
        users=5,
        items=60,
        actions=ACTIONS,
        categories=CATEGORIES,
        sources=(),
        user_columns={},
        item_columns={"minutes": None},
        spans=Spans(**spans),
        history_length=5,
    )


TABLE = table_of(window_hours=(6, 48), trend_half_life_hours=(12, 168), affinity_half_life_hours=(12, 168))
ITEM_ROWS = small_item_rows(TABLE, 60)


def asked(history: list[tuple[int, int, int]], *, table: FeatureTable = TABLE) -> np.ndarray:
    """A query row with a history of (item row, action number, age in milliseconds)."""
    columns: dict[str, Any] = {
        name: np.array([[each[n] for each in history]], kind).reshape(1, -1)
        for n, (name, kind) in enumerate((("row", np.int64), ("action", np.int32), ("age", np.int64)))
    }
    return query_rows(
        table,
        small_item_rows(table, 60),
        user_ids=["u1"],
        profile_B=np.zeros(1, table.profile_dtype),
        surfaces=["home"],
        texts=[""],
        time_ms_B=np.array([NOW_MS]),
        history_row_BL=columns["row"],
        history_action_BL=columns["action"],
        history_time_ms_BL=NOW_MS - columns["age"],
    )


def paired(query_row: np.ndarray, rows: list[int], *, table: FeatureTable = TABLE) -> np.ndarray:
    return pair_rows(table, query_row, small_item_rows(table, 60)[rows], age_ms_N=np.zeros(len(rows), np.int64))


def value_of(row: int, key: str) -> int:
    return {"item": row, "category": row % 3, "creator": row // 7}[key]


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 2), st.integers(0, 400 * 24 * HOUR_MS)), max_size=5),
    st.lists(st.integers(0, 20), min_size=1, max_size=4),
)
def test_a_cross_is_what_the_history_holds_of_the_same_item_category_or_creator(
    history: list[tuple[int, int, int]], rows: list[int]
) -> None:
    pairs = paired(asked(history), rows)
    for name, cross in TABLE.crosses:
        number = ACTIONS.index(cross.action) + 1 if cross.action else None
        for n, row in enumerate(rows):
            ages = [
                age / HOUR_MS
                for past, action, age in history
                if value_of(past, cross.by) == value_of(row, cross.by) and number in (None, action)
            ]
            weights = [0.5 ** (age / cross.half_life_hours) if cross.half_life_hours else 1.0 for age in ages]
            expected = {
                "share": sum(weights) / max(len(history), 1),
                "count": np.log1p(sum(weights)),
                "hours": min([np.log1p(age) for age in ages] + [NEVER_LOG_HOURS]),
            }[cross.measure]
            assert pairs[name][n] == pytest.approx(expected, rel=1e-4, abs=1e-6), name


def test_a_cross_of_many_queries_is_that_of_each_alone_byte_for_byte() -> None:
    histories = [[(n % 20, n % 3, n * 7 * HOUR_MS)] * (n % 6) for n in range(40)]
    queries = np.concatenate([asked(history) for history in histories])
    rows = [n % 23 for n in range(40)]
    together = paired(queries, rows)
    alone = [paired(queries[n : n + 1], rows[n : n + 1]) for n in range(40)]
    assert together.tobytes() == b"".join(each.tobytes() for each in alone)


def test_items_and_histories_of_which_nothing_is_known_have_nothing_in_common() -> None:
    unknown = pair_rows(TABLE, asked([]), TABLE.empty("item", 1), age_ms_N=np.zeros(1, np.int64))
    for name, cross in TABLE.crosses:
        assert unknown[name][0] == pytest.approx(NEVER_LOG_HOURS if cross.measure == "hours" else 0)


def test_a_table_declares_every_span_for_every_action_and_names_it_once() -> None:
    counters, crosses = dict(TABLE.counters), dict(TABLE.crosses)
    assert counters["log_shown"] == Count(measure="shown")
    assert counters["click_rate"] == Count(measure="rate", action="click")
    assert counters["log_shown_6h"] == Count(measure="shown", window_hours=6)
    assert counters["hide_lift_2d"] == Count(measure="lift", action="hide", window_hours=48)
    assert counters["creator_click_trend_12h"] == Count(
        measure="lift", action="click", by="creator", half_life_hours=12
    )
    assert crosses["category_hide_affinity_7d"] == Cross(
        by="category", measure="count", action="hide", half_life_hours=168
    )
    assert {cross.by for cross in crosses.values()} == set(KEYS)
    bare = table_of(window_hours=(), trend_half_life_hours=(), affinity_half_life_hours=())
    assert set(dict(bare.counters)) < set(counters)
    assert not any(count.window_hours or count.half_life_hours for _, count in bare.counters)
    assert FeatureTable.from_json(TABLE.to_json()) == TABLE


@pytest.mark.parametrize("hours", [(0,), (-1,), (float("nan"),), (float("inf"),), (24, 24), ("day",)])
def test_a_span_that_is_none_is_named(hours: tuple[float, ...]) -> None:
    for name in ("window_hours", "trend_half_life_hours", "affinity_half_life_hours"):
        with pytest.raises(ValueError, match=rf"{name} is \[.*\]; each must be a number above 0 and there once"):
            Spans(**{name: hours})
