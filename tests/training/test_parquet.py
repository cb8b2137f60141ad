"""Your own Parquet: what is made of good input, and the one line said about bad input."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from candidate_gen.counts import Spans
from training.configuration import ConfigurationError, settings
from training.cycle import declare
from training.datasets.dataset import DataError, Dataset
from training.datasets.parquet import from_parquet
from training.examples.point_in_time import rows_known, users_known

NOW_MS = 1_800_000_000_000


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A small shop's Parquet."""
    pl.DataFrame(
        {
            "who": [1, 1, 2, 3, 3],
            "what": ["a", "b", "a", "c", "a"],
            "at": [10, 20, 30, 40, 50],
            "did": ["view", "buy", "view", "view", "buy"],
            "key": ["k1", "k2", "k3", "k4", "k5"],
            "much": [1.0, None, 3.0, 4.0, 5.0],
        }
    ).write_parquet(tmp_path / "log.parquet")
    pl.DataFrame(
        {
            "sku": ["a", "b", "c", "d"],
            "name": ["Apple", None, "Cherry", "Date"],
            "kind": ["fruit", None, "fruit", "fruit"],
            "price": [1.5, 2.5, None, 4.0],
            "colour": ["red", "blue", "red", None],
            "since": [5, None, None, None],
        }
    ).write_parquet(tmp_path / "items.parquet")
    pl.DataFrame({"id": [1, 2, 3], "town": ["X", "Y", "X"]}).write_parquet(tmp_path / "users.parquet")
    return tmp_path


INTERACTIONS = {"path": "log.parquet", "user": "who", "item": "what", "time": "at"}
ITEMS = {"path": "items.parquet", "item": "sku"}


def test_own_parquet_with_everything_declared(own: Path) -> None:
    data = from_parquet(
        own,
        now_ms=NOW_MS,
        interactions={**INTERACTIONS, "action": "did", "value": "much", "event": "key"},
        items={
            **ITEMS,
            "title": "name",
            "category": "kind",
            "published": "since",
            "columns": {"price": "number", "colour": "category"},
        },
        users={"path": "users.parquet", "user": "id", "columns": {"town": "category"}},
        weights={"buy": 5, "view": 1},
        time_unit="s",
    )
    assert data.actions == ("buy", "view")
    assert data.weights == {"buy": 5.0, "view": 1.0}
    assert data.item_columns == {"price": None, "colour": ("blue", "red")}
    assert data.user_columns == {"town": ("X", "Y")}
    assert data.events.select("event_id", "user_id", "item_id", "action", "value", "time_ms").rows()[:2] == [
        ("k1", "1", "a", "view", 1.0, 10_000),
        ("k2", "1", "b", "buy", None, 20_000),
    ]
    assert data.items.select("item_id", "title", "category", "creator", "published_ms", "price").rows() == [
        ("a", "Apple", "fruit", "unknown", 5_000, 1.5),
        ("b", "b", "unknown", "unknown", 20_000, 2.5),
        ("c", "Cherry", "fruit", "unknown", 40_000, None),
        ("d", "Date", "fruit", "unknown", 0, 4.0),
    ]
    assert data.users.rows() == [("1", "X"), ("2", "Y"), ("3", "X")]


def test_own_parquet_with_the_least_declared_gets_the_stated_defaults(own: Path) -> None:
    data = from_parquet(own, now_ms=NOW_MS, interactions=INTERACTIONS)
    assert data.actions == ("click",)
    assert data.weights == {"click": 1.0}
    assert data.items.rows() == [(i, i, "unknown", "unknown", at, True) for i, at in (("a", 10), ("b", 20), ("c", 40))]
    assert data.users["user_id"].to_list() == ["1", "2", "3"]
    assert data.events["event_id"].n_unique() == 5
    assert data.events["value"].to_list() == [1.0] * 5
    assert data.impressions.is_empty()


def test_dates_are_times_whatever_their_zone_and_unit(own: Path) -> None:
    log = pl.read_parquet(own / "log.parquet")
    moment = pl.lit("2024-03-01 12:00:00").str.to_datetime(time_unit="us").dt.replace_time_zone("Asia/Tokyo")
    log.with_columns(at=moment).write_parquet(own / "log.parquet")
    data = from_parquet(own, now_ms=NOW_MS, interactions=INTERACTIONS)
    assert data.events["time_ms"].unique().to_list() == [1_709_262_000_000]


def test_a_csv_says_its_times_as_iso_dates_with_or_without_a_time_of_day(tmp_path: Path) -> None:
    for name, times in (("days", ["1970-01-02", "1970-01-03"]), ("minutes", ["1970-01-02 00:00", "1970-01-03 00:00"])):
        (tmp_path / f"{name}.csv").write_text(f"who,what,at\n1,a,{times[0]}\n2,b,{times[1]}\n")
        data = from_parquet(tmp_path, now_ms=NOW_MS, interactions={**INTERACTIONS, "path": f"{name}.csv"})
        assert data.events["time_ms"].to_list() == [86_400_000, 172_800_000]


def _set(column: str, values: Any) -> Callable[[pl.DataFrame], pl.DataFrame]:
    return lambda frame: frame.with_columns(pl.Series(column, values))


STATES = pl.DataFrame(
    {
        "id": [1, 1, 1, 2, 3],
        "town": ["X", "Y", "Z", "Y", "X"],
        "since": [5, 25, 35, 0, 0],
        "told": [5, 45, 35, 0, 60],
    }
)
"""The first one moved at 25 (known at 45) and at 35."""
CHANGING = {"path": "users.parquet", "user": "id", "time": "since", "visible": "told", "columns": {"town": "category"}}


def test_users_that_change_are_what_was_known_of_them_at_each_moment(own: Path) -> None:
    STATES.write_parquet(own / "users.parquet")
    data = from_parquet(own, now_ms=100, interactions=INTERACTIONS, users=CHANGING)
    assert data.users.rows() == [("1", "Z"), ("2", "Y"), ("3", "X")]
    assert data.user_columns == {"town": ("X", "Y", "Z")}
    assert data.told_of_users.columns == ["user_id", "town", "time_ms", "visible_ms"]
    towns = {at_ms: users_known(data, at_ms)["town"].to_list() for at_ms in (4, 30, 40, 50, 60)}
    assert towns == {
        4: [None, "Y", None],
        30: ["X", "Y", None],
        40: ["Z", "Y", None],
        50: ["Z", "Y", None],
        60: ["Z", "Y", "X"],
    }
    asked = pl.DataFrame({"user_id": ["1", "1", "", "9", "3"], "time_ms": [34, 35, 35, 35, 59]})
    assert rows_known(data.told_of_users, asked).tolist() == [0, 2, -1, -1, -1]


def test_without_a_visible_time_a_state_is_known_from_when_it_holds(own: Path) -> None:
    STATES.write_parquet(own / "users.parquet")
    mapping = {name: column for name, column in CHANGING.items() if name != "visible"}
    data = from_parquet(own, now_ms=100, interactions=INTERACTIONS, users=mapping, time_unit="ms")
    assert users_known(data, 30)["town"].to_list() == ["Y", "Y", "X"]


def test_users_without_times_always_were_what_they_are(own: Path) -> None:
    mapping = {"path": "users.parquet", "user": "id", "columns": {"town": "category"}}
    data = from_parquet(own, now_ms=NOW_MS, interactions=INTERACTIONS, users=mapping)
    assert data.user_states is None
    assert users_known(data, 0).equals(data.users)
    asked = pl.DataFrame({"user_id": ["2", "nobody"], "time_ms": [0, 0]})
    assert rows_known(data.told_of_users, asked).tolist() == [1, -1]


@pytest.mark.parametrize(
    ("change", "mapping", "message"),
    [
        ({"since": [1, 2, None, 4, 5]}, {}, r"column 'since' is null or empty in 1 of 5 rows"),
        ({"told": [1, 2, 3, 4, 101]}, {}, r"column 'told' is in the future in 1 of 5 rows"),
        ({"told": list("abcde")}, {}, r"column 'told' must hold dates or numbers, holds String"),
        ({}, {"when": "since"}, r"users has no setting 'when'"),
        ({}, {"time": None}, r"users needs the setting 'time' beside 'visible'"),
        ({}, {"columns": {"time_ms": "number"}}, r"column 'time_ms' cannot be declared, the name is taken"),
    ],
)
def test_user_states_that_cannot_be_used_are_refused(
    own: Path, change: dict[str, list[Any]], mapping: dict[str, Any], message: str
) -> None:
    frame = STATES.with_columns(pl.Series(name, values) for name, values in change.items())
    frame.with_columns(time_ms=pl.lit(0)).write_parquet(own / "users.parquet")
    users = {name: value for name, value in (CHANGING | mapping).items() if value is not None}
    with pytest.raises(DataError, match=message):
        from_parquet(own, now_ms=100, interactions=INTERACTIONS, users=users)


def test_user_states_need_their_columns(own: Path) -> None:
    STATES.write_parquet(own / "users.parquet")
    data = from_parquet(own, now_ms=100, interactions=INTERACTIONS, users=CHANGING)
    assert data.user_states is not None
    with pytest.raises(DataError, match="user_states has no column 'visible_ms'"):
        replace(data, user_states=data.user_states.drop("visible_ms"))


BAD_LOGS: dict[str, tuple[Callable[[pl.DataFrame], pl.DataFrame], str]] = {
    "missing column": (lambda frame: frame.drop("who"), r"log\.parquet has no column 'who' \(1 of \d needed"),
    "null user": (_set("who", [1, None, None, 2, 3]), r"column 'who' is null or empty in 2 of 5 rows"),
    "empty item": (_set("what", ["a", "", "b", "c", "a"]), r"column 'what' is null or empty in 1 of 5 rows"),
    "null time": (_set("at", [1, 2, None, 4, 5]), r"column 'at' is null or empty in 1 of 5 rows"),
    "future": (_set("at", [1, 2, NOW_MS + 1, NOW_MS, 5]), r"column 'at' is in the future in 1 of 5 rows \(the latest"),
    "repeated event": (_set("key", ["k", "k", "k", "l", "m"]), r"column 'key' repeats an earlier value in 2 of 5"),
    "empty log": (lambda frame: frame.head(0), r"log\.parquet is empty: 0 rows"),
    "text times": (_set("at", list("abcde")), r"column 'at' must hold dates or numbers, holds String in 5 rows"),
    "unknown item": (
        _set("what", ["a", "z", "z", "y", "a"]),
        r"names 2 ids that items\.parquet does not hold, in 3 of 5",
    ),
}


@pytest.mark.parametrize("fault", BAD_LOGS)
def test_a_fault_is_one_line_with_file_column_and_count(own: Path, fault: str) -> None:
    change, message = BAD_LOGS[fault]
    change(pl.read_parquet(own / "log.parquet")).write_parquet(own / "log.parquet")
    with pytest.raises(DataError, match=message) as raised:
        from_parquet(own, now_ms=NOW_MS, interactions={**INTERACTIONS, "event": "key"}, items=ITEMS)
    assert str(own / "log.parquet") in str(raised.value)
    assert "\n" not in str(raised.value)


def test_files_that_are_missing_or_no_parquet_are_named(own: Path) -> None:
    with pytest.raises(DataError, match=r"absent\.parquet is missing"):
        from_parquet(own, now_ms=NOW_MS, interactions={**INTERACTIONS, "path": "absent.parquet"})
    (own / "log.parquet").write_text("hello")
    with pytest.raises(DataError, match=r"log\.parquet cannot be read: ") as raised:
        from_parquet(own, now_ms=NOW_MS, interactions=INTERACTIONS)
    assert "\n" not in str(raised.value)


def test_what_is_counted_over_which_spans_is_declared_beside_the_columns(own: Path) -> None:
    data = from_parquet(own, now_ms=NOW_MS, interactions=INTERACTIONS, spans=Spans(window_hours=(6,)))
    names = {name for name, _ in declare(data).counters}
    assert {"log_shown_6h", "click_lift_6h"} <= names
    written = settings("data", ["data=parquet", "data.root=x", "data.spans.window_hours=[6]"])
    assert written.data.keywords["spans"] == data.spans
    assert settings("data", ["data=parquet", "data.root=x"]).data.keywords["spans"] == Spans()
    with pytest.raises(
        ConfigurationError, match=r"data.spans: trend_half_life_hours is \[0\]; each must be a number above 0"
    ):
        settings("data", ["data=parquet", "data.root=x", "data.spans.trend_half_life_hours=[0]"])


def test_a_wrong_mapping_names_the_setting(own: Path) -> None:
    def made(**settings: Any) -> Dataset:
        return from_parquet(own, now_ms=NOW_MS, **{"interactions": INTERACTIONS, **settings})

    with pytest.raises(DataError, match="interactions has no setting 'itm'; did you mean 'item'"):
        made(interactions={**INTERACTIONS, "itm": "what"})
    with pytest.raises(DataError, match="interactions needs the setting 'time'"):
        made(interactions={"path": "log.parquet", "user": "who", "item": "what"})
    with pytest.raises(DataError, match="time_unit must be ms or s, got 'us'"):
        made(time_unit="us")
    with pytest.raises(DataError, match="column 'price' must be declared as category, number or text, not 'float'"):
        made(items={**ITEMS, "columns": {"price": "float"}})
    with pytest.raises(DataError, match="has no column 'weight'"):
        made(items={**ITEMS, "columns": {"weight": "number"}})
    with pytest.raises(DataError, match="every action needs a weight"):
        made(weights={})
