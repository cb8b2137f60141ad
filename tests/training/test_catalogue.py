"""What servers were told of items wins over the data set, in the order in which they were told."""

from typing import Any

import polars as pl
import pytest

from protos.catalog_pb2 import CatalogItem, DeleteItemsRequest, ItemPatch, PatchItemsRequest, UpsertItemsRequest
from protos.impression_pb2 import FeatureValue
from serving.catalog_log import Change, Entry
from training.catalogue import folded
from training.data import ITEM_SCHEMA, searchable

COLUMNS = {"price": None, "language": ("de", "en")}
ITEMS = pl.DataFrame(
    {
        "item_id": ["a", "b", "c"],
        "title": ["Alpha", "Beta", "Gamma"],
        "category": ["news", "news", "sport"],
        "creator": ["x", "y", "x"],
        "published_ms": [10, 20, 30],
        "available": [True, False, True],
        "price": [1, 2, 3],
        "language": ["de", "en", None],
    },
    {**ITEM_SCHEMA, "price": pl.Int64, "language": pl.Utf8},
)


def upsert(item_id: str, **fields: Any) -> UpsertItemsRequest:
    return UpsertItemsRequest(items=[CatalogItem(item_id=item_id, **fields)])


def patch(item_id: str, **fields: Any) -> PatchItemsRequest:
    return PatchItemsRequest(patches=[ItemPatch(item_id=item_id, **fields)])


def delete(*item_ids: str) -> DeleteItemsRequest:
    return DeleteItemsRequest(item_ids=item_ids)


def after(*changes: Change) -> dict[str, dict[str, Any]]:
    entries = [Entry(seq, 1000 * seq, change) for seq, change in enumerate(changes, 1)]
    frame = folded(ITEMS, entries, columns=COLUMNS)
    assert frame["item_id"].n_unique() == frame.height
    return {row["item_id"]: row for row in frame.iter_rows(named=True)}


def test_without_entries_the_items_are_as_they_were() -> None:
    assert folded(ITEMS, [], columns=COLUMNS) is ITEMS


def test_a_new_item_is_whole_and_last() -> None:
    text = FeatureValue(text="en")
    found = after(
        upsert("d", title="Delta", category="new", description="deep", attributes={"language": text}, price=4)
    )
    assert list(found) == ["a", "b", "c", "d"]
    assert found["d"] == {
        "item_id": "d",
        "title": "Delta",
        "category": "new",
        "creator": None,
        "published_ms": 1000,
        "available": True,
        "price": 4.0,
        "language": "en",
        "description": "deep",
    }


def test_an_upsert_replaces_everything_but_the_time_that_it_does_not_give() -> None:
    found = after(upsert("b", title="Other"), upsert("c", title="Timed", published_ms=99, available=False))
    assert len(found) == 3
    assert (found["b"]["title"], found["b"]["category"], found["b"]["price"]) == ("Other", None, None)
    assert (found["b"]["published_ms"], found["b"]["available"]) == (20, True)
    assert (found["c"]["published_ms"], found["c"]["available"]) == (99, False)


def test_a_patch_changes_what_it_names() -> None:
    found = after(patch("a", available=False, price=7.5), patch("a", attributes={"language": FeatureValue(text="en")}))
    assert found["a"] | {"available": False, "price": 7.5, "language": "en"} == found["a"]
    assert (found["a"]["title"], found["a"]["published_ms"]) == ("Alpha", 10)


@pytest.mark.parametrize(
    ("changes", "ids", "title"),
    [
        ([delete("a", "nobody")], "bc", None),
        ([delete("a"), upsert("a", title="Again")], "bca", "Again"),
        ([upsert("a", title="Once"), upsert("a", title="Twice")], "bca", "Twice"),
        ([upsert("d", title="Brief"), delete("d")], "abc", "Alpha"),
        ([delete("a"), patch("a", available=True)], "bc", None),
        ([patch("nobody", available=True)], "abc", "Alpha"),
        ([upsert("a", title="Once"), patch("a", price=1.0)], "bca", "Once"),
    ],
)
def test_the_last_word_counts(changes: list[Change], ids: str, title: str | None) -> None:
    found = after(*changes)
    assert "".join(found) == ids
    assert found.get("a", {}).get("title") == title


def test_an_item_that_was_deleted_and_comes_back_is_new() -> None:
    assert after(delete("a"), upsert("a", title="Again"))["a"]["published_ms"] == 2000


def test_what_search_reads_of_an_item_is_what_a_server_reads() -> None:
    entry = Entry(1, 1000, upsert("d", title="Delta", description="deep"))
    assert searchable(folded(ITEMS, [entry], columns=COLUMNS))[-1] == "Delta deep"


def test_values_of_columns_that_are_not_declared_are_left_out() -> None:
    found = after(upsert("d", attributes={"colour": FeatureValue(text="red")}))
    assert "colour" not in found["d"]
