"""Your own Parquet as a data set."""

from collections.abc import Collection, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import polars as pl

from candidate_gen.counts import Spans
from candidate_gen.search_text import UNKNOWN
from training.datasets.dataset import (
    DEFAULT_WEIGHTS,
    DESCRIPTION,
    IMPRESSION_SCHEMA,
    ITEM_SCHEMA,
    STATE_SCHEMA,
    USER_SCHEMA,
    DataError,
    Dataset,
    unattributed_events,
)
from training.datasets.tables import read_table, require_filled, require_known, require_past, require_unique

_SPANS = Spans()


def from_parquet(
    root: Path | str,
    *,
    now_ms: int,
    interactions: Mapping[str, Any],
    items: Mapping[str, Any] | None = None,
    users: Mapping[str, Any] | None = None,
    weights: Mapping[str, float] | None = None,
    time_unit: str = "ms",
    spans: Spans = _SPANS,
) -> Dataset:
    """Your own Parquet, by a mapping from our names to your columns.

    Args:
        root: folder that the paths are in.
        interactions: `path` and the columns `user`, `item`, `time`; if you have them `action` (else every row is a
            click), `value` (else 1), `event` (a unique id; else one is made from the row number).
        items: `path` and the column `item`; if you have them `title` (else the item's id), `category` and `creator`
            (else "unknown"), `published` (else the item's first interaction; else 0), `available` (else true),
            `description` (what search reads beside title and category), and `columns`: other columns by name with
            their kind, `category` or `number`. Without `items`, the catalogue is made of the items in the
            interactions.
        users: `path`, the column `user`, and `columns` as above. Without it, of the users in the interactions. Where
            profiles change, also `time` (from when a row holds) and, if it was known at another time, `visible`: then
            a user may have many rows, and a request sees what was known when it was made.
        weights: utility of each action, the main action first; else the actions that the interactions hold with
            `DEFAULT_WEIGHTS`, the most frequent first.
        time_unit: `ms` or `s`, of integer times; columns of dates need none.
        spans: over how much of the past the feature table counts what was shown, what came of it, and what a user did.

    Raises:
        DataError: a file or column is missing, an id is null, a time is null or later than `now_ms`, an event id or
            an item or user repeats, the log is empty, an interaction's item or user is not in its table.
    """
    if time_unit not in ("ms", "s"):
        raise DataError(f"time_unit must be ms or s, got {time_unit!r}")
    root = Path(root)
    _only(interactions, "interactions", {"path", "user", "item", "time"}, {"action", "value", "event"})
    path, log = _mapped(root, interactions, "interactions")
    needed = [name for name in ("user", "item", "time", "action", "event") if name in interactions]
    require_filled(path, log, {name: interactions[name] for name in needed})
    log = log.with_columns(_epoch_ms(path, log, interactions["time"], time_unit, "time"))
    require_past(path, log["time"], name=interactions["time"], now_ms=now_ms)
    if "event" in interactions:
        require_unique(path, log["event"], name=interactions["event"])
    events = unattributed_events(
        log["user"],
        log["item"],
        log["time"],
        action=log["action"] if "action" in interactions else None,
        value=log["value"] if "value" in interactions else None,
        event=log["event"] if "event" in interactions else None,
    )
    item_frame, item_columns, item_texts = _items(
        root, items, log=path, item_name=interactions["item"], events=events, time_unit=time_unit
    )
    user_frame, user_columns, states = _users(
        root,
        users,
        log=path,
        user_name=interactions["user"],
        events=events,
        time_unit=time_unit,
        now_ms=now_ms,
    )
    if weights is None:
        by_count = events["action"].value_counts().sort(["count", "action"], descending=[True, False])
        weights = {action: DEFAULT_WEIGHTS.get(action, 1.0) for action in by_count["action"]}
    return Dataset(
        items=item_frame,
        users=user_frame,
        impressions=pl.DataFrame(schema=IMPRESSION_SCHEMA),
        events=events,
        actions=tuple(weights),
        weights={action: float(weight) for action, weight in weights.items()},
        user_columns=user_columns,
        item_columns=item_columns,
        item_texts=item_texts,
        user_states=states,
        spans=spans,
    )


_Declared = dict[str, tuple[str, ...] | None]


def _items(
    root: Path,
    items: Mapping[str, Any] | None,
    *,
    log: Path,
    item_name: str,
    events: pl.DataFrame,
    time_unit: str,
) -> tuple[pl.DataFrame, _Declared, tuple[str, ...]]:
    """The catalogue, its declared columns, and those that search alone reads."""
    first_seen = events.group_by("item_id").agg(first_ms=pl.col("time_ms").min())
    if items is None:
        frame = first_seen.select("item_id", title="item_id", published_ms="first_ms").sort("item_id")
        frame = frame.with_columns(category=pl.lit(UNKNOWN), creator=pl.lit(UNKNOWN), available=pl.lit(True))
        return frame.select(*ITEM_SCHEMA), {}, ()
    optional = {"title", "category", "creator", "published", "available", DESCRIPTION, "columns"}
    _only(items, "items", {"path", "item"}, optional)
    path, table = _mapped(root, items, "items")
    require_filled(path, table, {"item": items["item"]})
    require_unique(path, table["item"], name=items["item"])
    table = table.with_columns(item_id=pl.col("item").cast(pl.Utf8)).join(
        first_seen, on="item_id", how="left", maintain_order="left"
    )
    published = pl.col("first_ms").fill_null(0)
    if "published" in items:
        table = table.with_columns(_epoch_ms(path, table, items["published"], time_unit, "published"))
        published = pl.col("published").fill_null(published)
    texts = {
        name: pl.col(name).cast(pl.Utf8).fill_null(default) if name in items else default
        for name, default in (
            ("title", pl.col("item_id")),
            ("category", pl.lit(UNKNOWN)),
            ("creator", pl.lit(UNKNOWN)),
            (DESCRIPTION, pl.lit("")),
        )
    }
    available = pl.col("available").cast(pl.Boolean).fill_null(True) if "available" in items else pl.lit(True)
    frame = table.with_columns(published_ms=published, available=available, **texts)
    searched: list[str] = []
    taken = [*ITEM_SCHEMA, DESCRIPTION]
    frame, columns = _declared(path, frame, items.get("columns") or {}, taken, texts=searched)
    require_known(log, events["item_id"], name=item_name, known=frame["item_id"], table=path)
    described = [DESCRIPTION] if DESCRIPTION in items else []
    return frame.select(*ITEM_SCHEMA, *described, *columns, *searched), columns, tuple(searched)


def _users(
    root: Path,
    users: Mapping[str, Any] | None,
    *,
    log: Path,
    user_name: str,
    events: pl.DataFrame,
    time_unit: str,
    now_ms: int,
) -> tuple[pl.DataFrame, _Declared, pl.DataFrame | None]:
    """The users and their declared columns; and what each was when, where the table has times."""
    if users is None:
        return events.select(pl.col("user_id").unique().sort()), {}, None
    _only(users, "users", {"path", "user"}, {"columns", "time", "visible"})
    if "visible" in users and "time" not in users:
        raise DataError("users needs the setting 'time' beside 'visible': from when a row holds")
    path, table = _mapped(root, users, "users")
    times = [name for name in ("time", "visible") if name in users]
    require_filled(path, table, {name: users[name] for name in ("user", *times)})
    if not times:
        require_unique(path, table["user"], name=users["user"])
    for name in times:
        table = table.with_columns(_epoch_ms(path, table, users[name], time_unit, name))
        require_past(path, table[name], name=users[name], now_ms=now_ms)
    table = table.with_columns(user_id=pl.col("user").cast(pl.Utf8))
    frame, columns = _declared(path, table, users.get("columns") or {}, STATE_SCHEMA if times else USER_SCHEMA)
    require_known(log, events["user_id"], name=user_name, known=frame["user_id"], table=path)
    if not times:
        return frame.select(*USER_SCHEMA, *columns), columns, None
    states = frame.select("user_id", *columns, time_ms="time", visible_ms=times[-1])
    now = states.with_row_index("row").sort("time_ms", "visible_ms", "row")
    now = now.unique("user_id", keep="last", maintain_order=True).sort("user_id")
    return now.select(*USER_SCHEMA, *columns), columns, states


def _mapped(root: Path, mapping: Mapping[str, Any], table: str) -> tuple[Path, pl.DataFrame]:
    """A table with our names beside its own columns."""
    path = root / str(mapping["path"])
    names = {ours: str(theirs) for ours, theirs in mapping.items() if ours not in ("path", "columns")}
    declared = set(mapping.get("columns") or {})
    clash = sorted(declared & set(names))
    if clash:
        raise DataError(f"{table}: column {clash[0]!r} is declared twice, under columns and by itself")
    frame = read_table(path, [*names.values(), *declared])
    frame = frame.with_columns(pl.col(theirs).alias(f"\0{ours}") for ours, theirs in names.items())
    frame = frame.select(*(name for name in frame.columns if name.startswith("\0") or name in declared))
    frame = frame.rename({name: name[1:] for name in frame.columns if name.startswith("\0")})
    return path, frame


def _only(mapping: Mapping[str, Any], table: str, needed: set[str], optional: set[str]) -> None:
    for key in mapping:
        if key not in needed | optional:
            nearest = get_close_matches(key, sorted(needed | optional), 1, 0)
            raise DataError(f"{table} has no setting {key!r}; did you mean {nearest[0]!r}?")
    for key in sorted(needed - set(mapping)):
        raise DataError(f"{table} needs the setting {key!r}")


def _epoch_ms(path: Path, frame: pl.DataFrame, name: str, unit: str, column: str) -> pl.Expr:
    """A column of times as epoch milliseconds."""
    kind = frame.schema[column]
    if isinstance(kind, pl.Date | pl.Datetime):
        return pl.col(column).dt.timestamp("ms")
    if kind.is_numeric():
        return (pl.col(column) * (1000 if unit == "s" else 1)).cast(pl.Int64)
    raise DataError(f"{path}: column {name!r} must hold dates or numbers, holds {kind} in {frame.height} rows")


def _declared(
    path: Path,
    frame: pl.DataFrame,
    columns: Mapping[str, str],
    taken: Collection[str],
    *,
    texts: list[str] | None = None,
) -> tuple[pl.DataFrame, dict[str, tuple[str, ...] | None]]:
    """Declared columns in their canonical types, with the known values of each category.

    Args:
        texts: takes the names of columns of text, where there may be any.
    """
    declared: dict[str, tuple[str, ...] | None] = {}
    for name, kind in columns.items():
        if name in taken:
            raise DataError(f"{path}: column {name!r} cannot be declared, the name is taken")
        if kind == "number":
            frame = frame.with_columns(pl.col(name).cast(pl.Float64))
            declared[name] = None
        elif kind == "category":
            frame = frame.with_columns(pl.col(name).cast(pl.Utf8))
            declared[name] = tuple(frame[name].drop_nulls().unique().sort())
        elif kind == "text" and texts is not None:
            frame = frame.with_columns(pl.col(name).cast(pl.Utf8))
            texts.append(name)
        else:
            kinds = "category, number or text" if texts is not None else "category or number"
            raise DataError(f"{path}: column {name!r} must be declared as {kinds}, not {kind!r}")
    return frame, declared
