"""What a generation carries of the outcomes before it."""

from typing import Any

import numpy as np
import polars as pl
import pytest

from candidate_gen.activity import Activity
from candidate_gen.features import FeatureTable, feature_table
from index.strings import IdMap, key64
from serving.generation import action_key
from training.examples.activity import activity, segment_column

DAY_MS = 86_400_000
NOW_MS = 1_700_000_000_000
ITEMS = IdMap.of(["i0", "i1", "i2"])
USERS = IdMap.of(["ann", "bob"])


def table(**user_columns: tuple[str, ...] | None) -> FeatureTable:
    return feature_table(
        users=2,
        items=3,
        actions=("click", "like"),
        categories=("a",),
        sources=("popular",),
        user_columns=user_columns,
        item_columns={},
    )


TABLE = table(age=None, country=("at", "de"), tongue=("x",))
PROFILE_U = np.array([(30.0, 1, 1), (40.0, 2, 1)], TABLE.profile_dtype)


def made(*rows: tuple[str, str, float], **changes: Any) -> Activity:
    """User, item and age in days of each outcome."""
    positives = pl.DataFrame(
        [(user, item, NOW_MS - int(days * DAY_MS)) for user, item, days in rows],
        {"user_id": pl.Utf8, "item_id": pl.Utf8, "time_ms": pl.Int64},
        orient="row",
    )
    told = {"recent": 10, "popular_by": "country", "as_of_ms": NOW_MS, **changes}
    return activity(positives, table=TABLE, items=ITEMS, users=USERS, profile_U=PROFILE_U, **told)


def test_the_newest_outcomes_are_carried_as_they_became_known() -> None:
    recent_E = made(("ann", "i0", 3), ("", "i1", 2), ("bob", "gone", 1), recent=2).recent_E
    assert recent_E["item_key"].tolist() == [key64("i1"), key64("gone")]
    assert recent_E["visitor_key"].tolist() == [0, key64("bob")]
    assert recent_E["time_ms"].tolist() == [NOW_MS - 2 * DAY_MS, NOW_MS - DAY_MS]
    assert set(recent_E["action_key"].tolist()) == {action_key("click")}


def test_a_segment_counts_its_own_outcomes_with_decay_and_everybody_counts_for_the_rest() -> None:
    segment_P = made(
        ("ann", "i0", 0), ("ann", "i1", 7), ("bob", "i1", 0), ("", "i2", 0), ("stranger", "i2", 0), ("bob", "gone", 0)
    ).segment_P
    # Everybody: i0 1, i1 1.5, i2 2 of 4.5; Austria, the first: i0 1 and i1 0.5, so it expects 1/3, 1/2 and 2/3.
    first = segment_P[segment_P["segment"] == 1]
    worth = {key64("i0"): 1 / 3 * 11 / (10 + 1 / 3), key64("i1"): 0.5, key64("i2"): 2 / 3 * 10 / (10 + 2 / 3)}
    assert dict(zip(first["item_key"].tolist(), first["popularity"].tolist(), strict=True)) == pytest.approx(worth)
    assert set(segment_P["segment"].tolist()) == {1, 2}


def test_nobody_and_nothing_are_carried_too() -> None:
    assert made().fingerprint == Activity.none().fingerprint
    assert made(("ann", "i0", 0), popular_by="", recent=0).fingerprint == Activity.none().fingerprint


def test_the_segment_is_the_chosen_column_or_the_first_with_known_values() -> None:
    assert segment_column(TABLE, None) == "country"
    assert segment_column(TABLE, "tongue") == "tongue"
    assert segment_column(TABLE, "") == ""
    assert segment_column(table(age=None), None) == ""


@pytest.mark.parametrize("name", ["age", "user_id", "contry"])
def test_a_column_without_known_values_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match=f"popular_by is '{name}'; it must be one of country, tongue, or empty"):
        segment_column(TABLE, name)
