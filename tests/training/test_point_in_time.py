"""The point-in-time join beside the rule read out row by row, and its refusals."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.datasets.dataset import DataError
from training.examples.point_in_time import Versions, point_in_time

Row = tuple[str, int, int, int | None]
Request = tuple[str | None, int]
TIMES = st.integers(-3, 12)
ROWS = st.lists(st.tuples(st.sampled_from("abc"), TIMES, TIMES, st.none() | st.integers(0, 3)), max_size=25)
REQUESTS = st.lists(st.tuples(st.none() | st.sampled_from("abcd"), TIMES), max_size=15)


def table(rows: Sequence[Row], *, value: str = "value") -> pl.DataFrame:
    schema = {"key": pl.Utf8, "time_ms": pl.Int64, "visible_ms": pl.Int64, value: pl.Int64}
    return pl.DataFrame(rows, schema, orient="row").with_row_index(f"{value} row")


def asked(requests: Sequence[Request]) -> pl.LazyFrame:
    return pl.LazyFrame(requests, {"key": pl.Utf8, "time_ms": pl.Int64}, orient="row")


def by_the_rule(rows: Sequence[Row], key: str | None, time_ms: int) -> int | None:
    """Number of the row that the rule takes."""
    counting = [
        (event_ms, visible_ms, number)
        for number, (of, event_ms, visible_ms, _) in enumerate(rows)
        if of == key and event_ms <= time_ms and visible_ms <= time_ms
    ]
    return max(counting)[2] if counting else None


@pytest.mark.parametrize("engine", ["in-memory", "streaming"])
@given(rows=ROWS, requests=REQUESTS)
def test_every_request_gets_the_row_that_the_rule_takes(
    rows: Sequence[Row], requests: Sequence[Request], engine: Any
) -> None:
    joined = point_in_time(asked(requests), Versions(frame=table(rows), key="key")).collect(engine=engine)
    expected = [by_the_rule(rows, key, time_ms) for key, time_ms in requests]
    assert joined.select("key", "time_ms").rows() == requests
    assert joined["value row"].to_list() == expected
    assert joined["value"].to_list() == [None if at is None else rows[at][3] for at in expected]


@given(rows=ROWS, requests=REQUESTS)
def test_nothing_joined_is_from_after_its_request(rows: Sequence[Row], requests: Sequence[Request]) -> None:
    told = table(rows).with_columns(happened_ms="time_ms", known_ms="visible_ms")
    joined = point_in_time(asked(requests), Versions(frame=told, key="key")).collect()
    known = joined.drop_nulls("value row")
    assert (known["happened_ms"] <= known["time_ms"]).all()
    assert (known["known_ms"] <= known["time_ms"]).all()


@given(rows=ROWS, others=ROWS, requests=REQUESTS)
def test_two_tables_are_joined_as_each_alone(
    rows: Sequence[Row], others: Sequence[Row], requests: Sequence[Request]
) -> None:
    one = Versions(frame=table(rows), key="key")
    two = Versions(frame=table(others, value="other").lazy(), key="key")
    both = point_in_time(asked(requests), one, two).collect()
    assert both.select("value", "value row").equals(
        point_in_time(asked(requests), one).collect().select("value", "value row")
    )
    assert both.select("other", "other row").equals(
        point_in_time(asked(requests), two).collect().select("other", "other row")
    )


def test_a_row_that_is_not_visible_yet_leaves_the_one_before() -> None:
    rows = [("a", 1, 1, 10), ("a", 5, 9, 20), ("a", 3, 4, 30)]
    joined = point_in_time(asked([("a", t) for t in (0, 1, 3, 4, 5, 8, 9)]), Versions(frame=table(rows), key="key"))
    assert joined.collect()["value"].to_list() == [None, 10, 10, 30, 30, 30, 20]


def test_what_becomes_visible_late_and_was_overtaken_meanwhile_never_counts() -> None:
    rows = [("a", 2, 9, 10), ("a", 5, 6, 20)]
    joined = point_in_time(asked([("a", t) for t in (2, 6, 9, 99)]), Versions(frame=table(rows), key="key"))
    assert joined.collect()["value"].to_list() == [None, 20, 20, 20]


def test_of_equal_event_times_the_last_visible_wins_and_then_the_last_in_the_table() -> None:
    rows = [("a", 1, 4, 40), ("a", 1, 2, 20), ("a", 1, 3, 31), ("a", 1, 3, 32)]
    joined = point_in_time(asked([("a", t) for t in (2, 3, 4)]), Versions(frame=table(rows), key="key"))
    assert joined.collect()["value"].to_list() == [20, 32, 40]


def test_a_row_known_beforehand_counts_once_it_holds() -> None:
    rows = [("a", 5, -2, 1), ("a", 5, 1, 2), ("a", 4, 6, 3)]
    joined = point_in_time(asked([("a", t) for t in (4, 5, 6)]), Versions(frame=table(rows), key="key"))
    assert joined.collect()["value"].to_list() == [None, 2, 2]


def test_it_is_not_the_as_of_join_on_event_time() -> None:
    """On a log in which rows become visible some time after they happen, that one leaks."""
    random = np.random.default_rng(0)
    time_ms = np.sort(random.integers(0, 100_000, 3000))
    rows = pl.DataFrame(
        {
            "key": random.integers(0, 50, 3000),
            "time_ms": time_ms,
            "visible_ms": time_ms + random.integers(0, 5000, 3000),
        }
    ).with_row_index("row")
    requests = pl.DataFrame(
        {"key": random.integers(0, 50, 2000), "time_ms": np.sort(random.integers(0, 110_000, 2000))}
    )
    naive = requests.join_asof(rows, on="time_ms", by="key", check_sortedness=False)
    ours = point_in_time(requests.lazy(), Versions(frame=rows, key="key")).collect()
    leaks = naive.filter(pl.col("visible_ms") > pl.col("time_ms")).height
    assert leaks > 500
    assert (naive["row"].fill_null(9999) != ours["row"].fill_null(9999)).sum() == leaks


def test_times_and_keys_of_any_size_fit() -> None:
    low, high = -(2**62), 2**62
    rows = pl.DataFrame(
        {"key": [2**60, 2**60, 7], "time_ms": [low, high, 0], "visible_ms": [low, high, 0], "v": [1, 2, 3]}
    )
    requests = pl.LazyFrame({"key": [2**60, 2**60, 2**60, 8], "time_ms": [low, high - 1, high, high]})
    assert point_in_time(requests, Versions(frame=rows, key="key")).collect()["v"].to_list() == [1, 1, 2, None]


def test_columns_are_chosen_and_rows_filtered_after_it_as_after_any_join() -> None:
    rows = Versions(frame=table([("a", 1, 1, 10), ("b", 1, 1, 20)]), key="key")
    joined = point_in_time(asked([("a", 2), ("b", 2), ("b", 0)]), rows)
    assert joined.filter(pl.col("value") > 10).select("value").collect().rows() == [(20,)]
    assert joined.filter(pl.col("key") == "b").select("time_ms", "value").tail(1).collect().rows() == [(0, None)]


GOOD = table([("a", 1, 1, 10), ("b", 2, 3, 20)])
BAD: dict[str, tuple[pl.DataFrame, str]] = {
    "null time": (GOOD.with_columns(time_ms=pl.Series([1, None])), "table 0: column 'time_ms' is null in 1 of 2 rows"),
    "null visible": (
        GOOD.with_columns(visible_ms=pl.lit(None, pl.Int64)),
        "table 0: column 'visible_ms' is null in 2 of 2 rows",
    ),
    "null key": (GOOD.with_columns(key=pl.Series(["a", None])), "table 0: column 'key' is null in 1 of 2 rows"),
    "missing time": (GOOD.drop("visible_ms"), "table 0: there is no column 'visible_ms'; there are value row, key"),
    "text time": (
        GOOD.with_columns(pl.col("time_ms").cast(pl.Utf8)),
        "table 0: column 'time_ms' must be Int64, is String",
    ),
    "float time": (GOOD.with_columns(pl.col("time_ms").cast(pl.Float64)), "must be Int64, is Float64"),
    "other key": (
        GOOD.with_columns(key=pl.Series([1, 2])),
        "table 0: column 'key' must be String, is Int64",
    ),
    "same name": (GOOD.with_columns(asked=pl.lit(1)), "column 'asked' of table 0 is in the requests"),
}


@pytest.mark.parametrize("fault", BAD)
def test_a_bad_table_is_refused_at_once_with_what_is_wrong(fault: str) -> None:
    frame, message = BAD[fault]
    requests = asked([("a", 1)]).with_columns(asked=pl.lit(0))
    with pytest.raises(DataError, match=message):
        point_in_time(requests, Versions(frame=frame, key="key"))


def test_bad_requests_are_refused() -> None:
    rows = Versions(frame=GOOD, key="key")
    with pytest.raises(DataError, match="requests: column 'time_ms' holds nulls"):
        point_in_time(pl.LazyFrame({"key": ["a", "b"], "time_ms": [1, None]}), rows).collect()
    with pytest.raises(DataError, match="requests have no column 'key', the key of table 0; they have who, time_ms"):
        point_in_time(pl.LazyFrame({"who": ["a"], "time_ms": [1]}), rows)
    with pytest.raises(DataError, match="requests: column 'time_ms' must be Int64, is Date"):
        point_in_time(pl.LazyFrame({"key": ["a"], "time_ms": [0]}).with_columns(pl.col("time_ms").cast(pl.Date)), rows)
    with pytest.raises(DataError, match=r"column 'value row' of table 1 is in the requests or in another table too"):
        point_in_time(asked([]), rows, rows)


def test_without_tables_requests_stay_as_they_are() -> None:
    requests = asked([("a", 1), (None, 2)])
    assert point_in_time(requests).collect().equals(requests.collect())
