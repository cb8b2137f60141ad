"""What was known of a key at a moment: the bitemporal point-in-time join.

A row of a table that changes holds from its event time on and is known from its visible time on. At time T a row
counts only where `event time <= T` and `visible time <= T`. Of the rows of a key that count the one with the latest
event time is taken; of equal event times the one that became visible last; of those the one that stands last in the
table. An as-of join on event time alone finds another row where the latest event is not visible yet, and leaks it.

The method is one look-up a request, and exact. A row counts from its effective time max(event, visible) on, so what
counts at T is a prefix of the key's rows in the order (effective, visible, place in the table). Let a record be a row
with no later event time before it in that order. The row to be taken is the last record of the prefix:

    Let m be the latest event time of the prefix. Every row with event time m is a record, for nothing in the prefix is
    later; so a record after the first of them has event time m too. The last record is therefore the last row with
    event time m in that order. Among rows of one event time, max(m, visible) does not fall as visible rises, so that
    order is (visible, place): the last is the one that the rule takes.

Of records of one effective time only the last can be the last of a prefix; the others are dropped.

Shape letters: F rows of a table, R records, B requests of a batch.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from training.datasets.dataset import STATE_SCHEMA, USER_SCHEMA, DataError, Dataset


@dataclass(frozen=True, slots=True, kw_only=True)
class Versions:
    """A table that changes: each row replaces what was true of its key before."""

    frame: pl.DataFrame | pl.LazyFrame
    key: str
    """Name of the column, here and among the requests."""
    time_ms: str = "time_ms"
    """Column of event times: from when a row holds."""
    visible_ms: str = "visible_ms"
    """Column of visible times: from when it was known. It may be before the event."""


@dataclass(frozen=True, slots=True)
class _Records:
    """The records of a table, by key and then by effective time."""

    codes: pl.DataFrame
    """Key and `code`, its number from 0."""
    moment_F: NDArray[np.int64]
    """Effective times of all rows, in order."""
    place_R: NDArray[np.int64]
    """code * (F + 1) + number of rows, of any key, that are effective before."""
    row_R: NDArray[np.int64]
    """Where in the table each record stands."""
    values: pl.DataFrame
    """The table's columns that are joined."""

    def known(self, code_B: NDArray[np.int64], time_ms_B: NDArray[np.int64]) -> pl.Series:
        """The row of the table that each request is to have; null where there is none.

        Args:
            code_B: -1 for a key that the table does not hold.
        """
        first_B = code_B * (len(self.moment_F) + 1)
        until_B = first_B + np.searchsorted(self.moment_F, time_ms_B, side="right")
        order_B = np.argsort(until_B)  # neighbouring look-ups touch the same memory: ten times as fast
        at_B = np.empty(len(until_B), np.int64)
        at_B[order_B] = np.searchsorted(self.place_R, until_B[order_B]) - 1
        found_B = at_B >= 0
        found_B[found_B] = self.place_R[at_B[found_B]] >= first_B[found_B]
        found_B &= code_B >= 0
        row_B = np.zeros(len(at_B), np.int64)
        row_B[found_B] = self.row_R[at_B[found_B]]
        return pl.select(pl.when(pl.Series(found_B)).then(pl.Series(row_B))).to_series()


def point_in_time(requests: pl.LazyFrame, *tables: Versions, time_ms: str = "time_ms") -> pl.LazyFrame:
    """Requests, in the order in which they come, each with the columns of every table as known at its time.

    A request whose key is null, is not in the table, or of which nothing was known by then gets nulls. A null in the
    row that is taken stays null; an older value does not shine through.

    Tables are read and sorted at once. Requests stream: in polars' streaming engine (`collect(engine="streaming")`,
    `sink_parquet`) memory is that of the tables and of some batches of requests.

    Args:
        time_ms: column of the requests' times. Tables' own keys and times are not joined.

    Raises:
        DataError: a column is missing or of another type than it must be, a table has a null key or time, or a column
            is in two of them; when collected, where a request's time is null.
    """
    schema = requests.collect_schema()
    _require(schema, "requests", {time_ms: pl.Int64()})
    read: list[_Records] = []
    joined = requests
    whole = dict(schema)
    for n, table in enumerate(tables):
        records = _records(table, n, schema)
        for name, kind in records.values.schema.items():
            if name in whole:
                raise DataError(f"column {name!r} of table {n} is in the requests or in another table too; rename one")
            whole[name] = kind
        codes = records.codes.rename({"code": _code(n)}).lazy()
        joined = joined.join(codes, on=table.key, how="left", maintain_order="left")
        read.append(records)
    return joined.map_batches(
        lambda batch: _joined(batch, read, time_ms),
        schema=pl.Schema(whole),
        streamable=True,
        predicate_pushdown=False,
        projection_pushdown=False,
        slice_pushdown=False,
    )


def rows_known(users: pl.DataFrame, asked: pl.DataFrame) -> NDArray[np.int64]:
    """Row of `users` that says what was known of the user of each request (user_id, time_ms); -1 where nothing was.

    Args:
        users: user states; or users without times, which always were what they are.
    """
    told = users.select(name for name in STATE_SCHEMA if name in users.columns).with_row_index("row")
    if told.columns == ["row", *STATE_SCHEMA]:
        requests = asked.lazy().select("user_id", "time_ms")
        known = point_in_time(requests, Versions(frame=told, key="user_id")).collect()
    else:
        known = asked.select("user_id").join(told, on="user_id", how="left", maintain_order="left")
    return known["row"].cast(pl.Int64).fill_null(-1).to_numpy()


def users_known(dataset: Dataset, as_of_ms: int) -> pl.DataFrame:
    """The users with their declared columns as they were known at a moment; nulls where nothing was known yet."""
    states = dataset.user_states
    if states is None:
        return dataset.users
    ids = dataset.users.select(*USER_SCHEMA)
    row_U = rows_known(states, ids.with_columns(time_ms=pl.lit(as_of_ms, pl.Int64)))
    told = states.select(*dataset.user_columns).select(pl.all().gather(pl.Series(row_U).replace(-1, None)))
    return pl.concat([ids, told], how="horizontal")


def _joined(batch: pl.DataFrame, tables: Sequence[_Records], time_ms: str) -> pl.DataFrame:
    if batch[time_ms].null_count():
        raise DataError(f"requests: column {time_ms!r} holds nulls")
    time_ms_B = batch[time_ms].to_numpy()
    parts = [batch.drop(_code(n) for n in range(len(tables)))]
    for n, records in enumerate(tables):
        code_B = batch[_code(n)].cast(pl.Int64).fill_null(-1).to_numpy()
        parts.append(records.values.select(pl.all().gather(records.known(code_B, time_ms_B))))
    return pl.concat(parts, how="horizontal")


def _code(n: int) -> str:
    """Column of key codes of the n-th table."""
    return f"\0code {n}"


def _records(table: Versions, n: int, requests: pl.Schema) -> _Records:
    name, times = f"table {n}", (table.time_ms, table.visible_ms)
    schema = table.frame.collect_schema()
    if table.key not in requests:
        raise DataError(f"requests have no column {table.key!r}, the key of {name}; they have {', '.join(requests)}")
    _require(schema, name, {table.key: requests[table.key], **dict.fromkeys(times, pl.Int64())})
    frame = table.frame.lazy().collect()
    for column in (table.key, *times):
        if nulls := frame[column].null_count():
            raise DataError(f"{name}: column {column!r} is null in {nulls} of {frame.height} rows")
    codes = frame.select(pl.col(table.key).unique(maintain_order=True)).with_row_index("code")
    code_F = frame.select(table.key).join(codes, on=table.key, maintain_order="left")["code"].to_numpy()
    place_R, moment_F, row_R = _running_latest(
        code_F.astype(np.int64), frame[table.time_ms].to_numpy(), frame[table.visible_ms].to_numpy()
    )
    return _Records(codes, moment_F, place_R, row_R, frame.drop(table.key, *times))


def _running_latest(
    code_F: NDArray[np.int64], event_ms_F: NDArray[np.int64], visible_ms_F: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """`place_R` and `moment_F` of `_Records`, and the row of each record.

    Ranks stand for times, so that key and time fit one number whatever the times are.
    """
    width = len(code_F) + 1
    row_F = np.argsort(visible_ms_F, kind="stable")
    effective_ms_F = np.maximum(event_ms_F, visible_ms_F)[row_F]
    later_F = np.argsort(effective_ms_F, kind="stable")
    row_F, moment_F = row_F[later_F], effective_ms_F[later_F]
    rank_F = np.searchsorted(moment_F, moment_F)
    place_F = code_F[row_F] * width + rank_F
    by_key_F = np.argsort(place_F, kind="stable")
    row_F, place_F = row_F[by_key_F], place_F[by_key_F]
    event_F = code_F * width + np.searchsorted(np.sort(event_ms_F), event_ms_F)
    event_F = event_F[row_F]
    kept_R = np.flatnonzero(event_F == np.maximum.accumulate(event_F))
    last_R = np.append(place_F[kept_R][1:] != place_F[kept_R][:-1], np.ones(min(len(kept_R), 1), np.bool_))
    kept_R = kept_R[last_R]
    return place_F[kept_R], moment_F, row_F[kept_R]


def _require(schema: pl.Schema, name: str, columns: dict[str, pl.DataType]) -> None:
    for column, kind in columns.items():
        if column not in schema:
            raise DataError(f"{name}: there is no column {column!r}; there are {', '.join(schema)}")
        if schema[column] != kind:
            raise DataError(f"{name}: column {column!r} must be {kind}, is {schema[column]}")
