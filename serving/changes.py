"""What an entry of the catalogue log makes of the items: the same in every process and in every replay.

All items of a call are embedded as one batch, because a vector's last bits depend on how many are made at once. Nothing
here reads a clock: a new item that has no time of its own gets the entry's.

Shape letters: N items of a call, D vector width.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from candidate_gen.features import FeatureTable, attribute_texts, item_attributes, item_rows
from candidate_gen.items import Items
from candidate_gen.search_text import FIELDS
from candidate_gen.towers import Towers
from index.lexical import joined
from index.poison import unusable
from index.strings import IdMap, key64
from protos.catalog_pb2 import (
    CatalogItem,
    CatalogUser,
    DeleteItemsRequest,
    ItemPatch,
    PatchItemsRequest,
    UpsertItemsRequest,
)
from serving.log.catalog_log import Change, Entry

PRICE = "price"
"""The declared item column that the field of this name stands for."""


def changed(
    items: Items, entry: Entry, *, table: FeatureTable, towers: Towers, fields: Sequence[str] = FIELDS
) -> Items:
    """The items after an entry. Ids that they do not hold are passed over, and so are items that embed badly; rules,
    users and traffic change no item.

    Args:
        fields: what search reads, in this order.
    """
    request = entry.request
    if isinstance(request, UpsertItemsRequest):
        return _upserted(items, request.items, time_ms=entry.time_ms, table=table, towers=towers, fields=fields)
    if isinstance(request, PatchItemsRequest):
        return _patched(items, request.patches, table=table)
    if isinstance(request, DeleteItemsRequest):
        row_N = held(items, request.item_ids)
        return items.without(row_N[row_N >= 0])
    return items


def held(items: Items, item_ids: Sequence[str]) -> NDArray[np.int64]:
    """Row of each id; -1 where the catalogue does not hold it, or no longer."""
    row_N = items.ids.rows_of(item_ids)
    return np.where((row_N >= 0) & ~items.gone_I[row_N], row_N, -1) if len(items) else row_N


def embedded_badly(listed: Sequence[CatalogItem], *, table: FeatureTable, towers: Towers) -> NDArray[np.int64]:
    """Positions of the items whose vectors no index can hold, where all of them are upserted in one call."""
    return _unusable(towers.encode_items(_records(listed, table)))


def values_of(item: CatalogItem | ItemPatch | CatalogUser) -> dict[str, str | float]:
    """Values by the name of their column; of an item the price is one of them."""
    values: dict[str, str | float] = {
        name: value.text if value.WhichOneof("kind") == "text" else value.number
        for name, value in item.attributes.items()
    }
    if isinstance(item, CatalogUser) or not item.HasField("price"):
        return values
    return values | {PRICE: item.price}


def defaulted(change: Change | None, table: FeatureTable) -> Counter[str]:
    """For how many of the changed items the default of a feature stands for a value that they say, by its name."""
    found: Counter[str] = Counter()
    declared = {feature.name for feature in table.item_columns}
    if isinstance(change, UpsertItemsRequest):
        found.update("category" for item in change.items if table.encoded("category", [item.category])[1].any())
    if not isinstance(change, UpsertItemsRequest | PatchItemsRequest):
        return found
    for entry in change.items if isinstance(change, UpsertItemsRequest) else change.patches:
        values = [(name, value) for name, value in values_of(entry).items() if name in declared]
        found.update(name for name, value in values if table.encoded(name, [value])[1].any())
    return found


def searchable(item: CatalogItem, fields: Sequence[str]) -> str:
    """What text search reads of an item."""
    own = {"title": item.title, "category": item.category, "creator": item.creator, "description": item.description}
    return joined([own[name] if name in own else str(values_of(item).get(name, "")) for name in fields])


def _upserted(
    items: Items,
    listed: Sequence[CatalogItem],
    *,
    time_ms: int,
    table: FeatureTable,
    towers: Towers,
    fields: Sequence[str],
) -> Items:
    """Whole new rows. What an item that was there has earned stays with it, and so does its time if none is given."""
    row_N = _records(listed, table)
    embedding_ND = towers.encode_items(row_N)
    good_N = np.ones(len(listed), np.bool_)
    good_N[_unusable(embedding_ND)] = False
    listed = [item for item, good in zip(listed, good_N, strict=True) if good]
    row_N = row_N[good_N]
    before_N = held(items, [item.item_id for item in listed])
    known_N = before_N >= 0
    old_N = before_N[known_N]
    published_ms_N = np.array([item.published_ms for item in listed], np.int64)
    popularity_N = np.zeros(len(listed), np.float32)
    inherited_N = np.full(len(listed), time_ms, np.int64)
    if len(old_N):
        inherited_N[known_N] = items.published_ms_I[old_N]
        popularity_N[known_N] = items.popularity_I[old_N]
        was_N = items.row_I[old_N]
        for name, count in table.counters:
            same_N = count.by == "item" or row_N[count.by][known_N] == was_N[count.by]
            row_N[name][known_N] = np.where(same_N, was_N[name], 0)
    return items.appended(
        Items.of(
            ids=[item.item_id for item in listed],
            titles=[item.title for item in listed],
            searchable=[searchable(item, fields) for item in listed],
            row_I=row_N,
            published_ms=np.where(published_ms_N > 0, published_ms_N, inherited_N),
            embedding_ID=embedding_ND[good_N],
            available=[not item.HasField("available") or item.available for item in listed],
            popularity=popularity_N,
            attributes=item_attributes(table, **_described(listed, table)),
            texts=attribute_texts(table, **_described(listed, table)),
        )
    )


def _patched(items: Items, patches: Sequence[ItemPatch], *, table: FeatureTable) -> Items:
    """Availability in place; anything else as a new row, with the vector that it had.

    That holds for attributes that the item tower reads too: the ranker and the filters know the new value at once, the
    vector when the next generation is built.
    """
    row_of = zip(patches, held(items, [patch.item_id for patch in patches]).tolist(), strict=True)
    found = [(patch, row) for patch, row in row_of if row >= 0]
    for available in (True, False):
        switched = [row for patch, row in found if patch.HasField("available") and patch.available == available]
        if switched:
            items = items.with_available(np.array(switched, np.int64), available)
    changing = [(row, values) for patch, row in found if (values := values_of(patch))]
    if not changing:
        return items
    added = items.take(np.array([row for row, _ in changing], np.int64))
    row_N = np.array(added.row_I)
    attributes = {name: np.array(column) for name, column in added.attributes.items()}
    texts = {value for _, values in changing for value in values.values() if isinstance(value, str) and value}
    for n, (_, values) in enumerate(changing):
        for name, value in values.items():
            row_N[name][n] = table.encode(name, [value])[0]
            attributes[name][n] = (key64(value) if value else 0) if isinstance(value, str) else value
    return items.appended(replace(added, row_I=row_N, attributes=attributes, texts=IdMap.of(sorted(texts))))


def _unusable(vector_ND: NDArray[np.float32]) -> NDArray[np.int64]:
    return unusable(vector_ND, typical_norm=1.0)


def _records(listed: Sequence[CatalogItem], table: FeatureTable) -> np.ndarray:
    return item_rows(
        table,
        ids=[item.item_id for item in listed],
        titles=[item.title for item in listed],
        **_described(listed, table),
    )


def _described(listed: Sequence[CatalogItem], table: FeatureTable) -> dict[str, Any]:
    """Categories, creators and declared columns, None where an item says nothing."""
    values = [values_of(item) for item in listed]
    return {
        "categories": [item.category for item in listed],
        "creators": [item.creator for item in listed],
        "columns": {feature.name: [each.get(feature.name) for each in values] for feature in table.item_columns},
    }
