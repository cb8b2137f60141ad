"""The catalogue log folded into a data set, so that training knows what servers were told since."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import polars as pl

from index.generations import Manifest
from protos.catalog_pb2 import (
    CatalogItem,
    DeleteItemsRequest,
    ForgetUserRequest,
    PatchItemsRequest,
    UpsertItemsRequest,
    UpsertUsersRequest,
)
from serving.changes import values_of
from serving.log.catalog_log import CatalogLog, Entry, forgotten_in
from serving.log.impression_log import CorruptLog
from training.datasets.dataset import DESCRIPTION, USER_SCHEMA, Columns, Dataset

Row = dict[str, Any]


def head_of(log: CatalogLog, generation: Manifest | None) -> int:
    """Number of the log's last change.

    Raises:
        CorruptLog: the log has lost changes that the generation holds; what was made of it, servers would refuse.
    """
    head, held = log.head(), generation.catalog_seq if generation is not None else 0
    if generation is not None and head < held:
        raise CorruptLog(f"{log.path} ends with change {head}, generation {generation.id} holds all up to {held}")
    return head


def folded(items: pl.DataFrame, entries: Sequence[Entry], *, columns: Columns) -> pl.DataFrame:
    """The items after these entries, each of which wins over the data set and over the entries before it.

    What an entry says means here what it means to a server (`serving.changes`): an item upserted is whole and replaces
    the one of its id, a patch changes what it names, and ids that are not there are passed over. Items that were
    touched come last, in the order of their last upsert or first patch.

    Args:
        columns: the data set's declared item columns; values of others are left out.
    """
    if not entries:
        return items
    if DESCRIPTION not in items.columns:
        items = items.with_columns(pl.lit(None, pl.Utf8).alias(DESCRIPTION))
    numbers = [name for name, known in columns.items() if known is None]
    items = items.with_columns(pl.col(numbers).cast(pl.Float64))
    position_of = {item_id: position for position, item_id in enumerate(items["item_id"])}
    now: dict[str, Row | None] = {}

    def held(item_id: str) -> Row | None:
        if item_id in now:
            return now[item_id]
        return items.row(position_of[item_id], named=True) if item_id in position_of else None

    for entry in entries:
        request = entry.request
        if isinstance(request, UpsertItemsRequest):
            for item in request.items:
                before = held(item.item_id)
                now.pop(item.item_id, None)
                now[item.item_id] = _row(item, columns, before["published_ms"] if before else entry.time_ms)
        elif isinstance(request, PatchItemsRequest):
            for patch in request.patches:
                before = held(patch.item_id)
                if before is not None:
                    available = {"available": patch.available} if patch.HasField("available") else {}
                    now[patch.item_id] = before | available | _declared(values_of(patch), columns)
        elif isinstance(request, DeleteItemsRequest):
            now |= dict.fromkeys(request.item_ids)
    untouched = items.filter(~pl.col("item_id").is_in(list(now)))
    rows = [row for row in now.values() if row is not None]
    return pl.concat([untouched, pl.DataFrame(rows, schema=items.schema)])


def with_users(dataset: Dataset, entries: Sequence[Entry]) -> Dataset:
    """The data set with the users as these entries say, and without what anybody did before being forgotten.

    A user upserted is whole. Where the data set says when it learned what of its users, the entry's time is when it
    learned this; elsewhere users are what they always were, and this is it.
    """
    forgotten = forgotten_in(entries)
    told: dict[str, Row] = {}
    for entry in entries:
        if isinstance(entry.request, UpsertUsersRequest):
            for user in entry.request.users:
                told[user.user_id] = _declared(values_of(user), dataset.user_columns) | {"time_ms": entry.time_ms}
        elif isinstance(entry.request, ForgetUserRequest):
            told.pop(entry.request.user_id, None)
    if not told and not forgotten:
        return dataset
    rows = [{"user_id": user_id, "visible_ms": row["time_ms"], **row} for user_id, row in told.items()]
    columns = [*USER_SCHEMA, *dataset.user_columns]
    users, states = dataset.users, dataset.user_states
    kept = users.filter(~pl.col("user_id").is_in([*forgotten, *(told if states is None else ())]))
    added = _frame(rows, users.select(columns)).filter(~pl.col("user_id").is_in(kept["user_id"].to_list()))
    if states is not None:
        states = states.filter(~pl.col("user_id").is_in(list(forgotten)))
        states = pl.concat([states, _frame(rows, states)]).sort("visible_ms", "time_ms", maintain_order=True)
    return replace(
        dataset,
        users=pl.concat([kept, added], how="diagonal"),
        user_states=states,
        impressions=remembered(dataset.impressions, forgotten),
        events=remembered(dataset.events, forgotten),
    )


def remembered(rows: pl.DataFrame, forgotten: Mapping[str, int]) -> pl.DataFrame:
    """Rows with `user_id` and `time_ms`, without those of users up to when they were forgotten (`forgotten_in`)."""
    if not forgotten:
        return rows
    until = pl.col("user_id").replace_strict(dict(forgotten), default=None, return_dtype=pl.Int64)
    return rows.filter(until.is_null() | (pl.col("time_ms") > until))


def _frame(rows: Sequence[Row], like: pl.DataFrame) -> pl.DataFrame:
    return pl.DataFrame(
        [{name: row.get(name) for name in like.columns} for row in rows], schema=like.schema, strict=False
    )


def _row(item: CatalogItem, columns: Columns, published_ms: int) -> Row:
    return {
        "item_id": item.item_id,
        "title": item.title,
        "category": item.category or None,
        "creator": item.creator or None,
        "published_ms": item.published_ms if item.published_ms > 0 else published_ms,
        "available": item.available if item.HasField("available") else True,
        DESCRIPTION: item.description or None,
    } | _declared(values_of(item), columns)


def _declared(values: Mapping[str, Any], columns: Columns) -> Row:
    return {name: value for name, value in values.items() if name in columns}
