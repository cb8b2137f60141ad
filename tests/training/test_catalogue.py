"""What servers were told of items wins over the data set, in the order in which they were told."""

from typing import Any

import polars as pl
import pytest

from candidate_gen.search_text import FIELDS, field_order
from index.lexical import joined
from protos.catalog_pb2 import (
    CatalogItem,
    CatalogUser,
    DeleteItemsRequest,
    ForgetUserRequest,
    ItemPatch,
    PatchItemsRequest,
    UpsertItemsRequest,
    UpsertUsersRequest,
)
from protos.impression_pb2 import FeatureValue
from serving.changes import searchable as what_a_server_reads
from serving.log.catalog_log import Change, Entry
from training.datasets.catalogue import folded, remembered, with_users
from training.datasets.dataset import EVENT_SCHEMA, IMPRESSION_SCHEMA, ITEM_SCHEMA, STATE_SCHEMA, Dataset, searchable

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
    read = searchable(folded(ITEMS, [entry], columns=COLUMNS))[-1]
    assert read == joined(["Delta", None, None, "deep"])
    assert read == what_a_server_reads(upsert("d", title="Delta", description="deep").items[0], FIELDS)


def test_a_text_that_is_declared_is_read_after_the_others() -> None:
    item = upsert("d", title="Delta", attributes={"recipe": FeatureValue(text="salt")})
    items = ITEMS.with_columns(recipe=pl.lit("flour"))
    found = searchable(folded(items, [Entry(1, 1000, item)], columns={**COLUMNS, "recipe": ()}), ["recipe"])
    assert found[-1] == joined(["Delta", None, None, None, "salt"])
    assert found[-1] == what_a_server_reads(item.items[0], field_order(["recipe"]))
    assert found[0].endswith("\x1fflour")


def test_values_of_columns_that_are_not_declared_are_left_out() -> None:
    found = after(upsert("d", attributes={"colour": FeatureValue(text="red")}))
    assert "colour" not in found["d"]


def people(*, states: bool = False) -> Dataset:
    """Users a, b and c, each with an impression and an event at 1500, 2500 and 3500 ms."""
    ids, times = ["a", "b", "c"], [1500, 2500, 3500]
    asked = [(f"{user} {time}", user, time) for user in ids for time in times]
    impressions = pl.DataFrame(
        [(request, user, time, "home", "", ["a"], [1.0]) for request, user, time in asked],
        IMPRESSION_SCHEMA,
        orient="row",
    )
    events = pl.DataFrame(
        [
            {"event_id": request, "user_id": user, "time_ms": time, "visible_ms": time, "action": "click"}
            for request, user, time in asked
        ],
        EVENT_SCHEMA,
    )
    users = pl.DataFrame({"user_id": ids, "age": [10.0, 20.0, 30.0]})
    known = users.with_columns(time_ms=pl.lit(0, pl.Int64), visible_ms=pl.lit(0, pl.Int64)).select(*STATE_SCHEMA, "age")
    return Dataset(
        items=ITEMS,
        users=users,
        impressions=impressions,
        events=events,
        actions=("click",),
        weights={"click": 1.0},
        user_columns={"age": None},
        item_columns=COLUMNS,
        user_states=known if states else None,
    )


def told_of(user_id: str, age: float) -> UpsertUsersRequest:
    return UpsertUsersRequest(users=[CatalogUser(user_id=user_id, attributes={"age": FeatureValue(number=age)})])


def entries(*changes: Change) -> list[Entry]:
    return [Entry(seq, 1000 * seq, change) for seq, change in enumerate(changes, 1)]


def test_training_knows_users_as_servers_were_told_and_nothing_of_what_was_forgotten() -> None:
    changes = entries(
        told_of("b", 21), ForgetUserRequest(user_id="a"), told_of("new", 1), ForgetUserRequest(user_id="c")
    )
    found = with_users(people(), changes)
    assert dict(found.users.select("user_id", "age").iter_rows()) == {"b": 21, "new": 1}
    for frame in (found.events, found.impressions):
        kept = frame.group_by("user_id").agg(pl.col("time_ms").sort())
        assert dict(kept.iter_rows()) == {"a": [2500, 3500], "b": [1500, 2500, 3500]}


def test_where_users_change_what_was_told_is_known_from_then_on() -> None:
    changes = entries(told_of("b", 21), ForgetUserRequest(user_id="a"), told_of("new", 1))
    found = with_users(people(states=True), changes)
    assert found.user_states is not None
    assert sorted(found.user_states.select("user_id", "visible_ms", "age").iter_rows()) == [
        ("b", 0, 20),
        ("b", 1000, 21),
        ("c", 0, 30),
        ("new", 3000, 1),
    ]
    assert sorted(found.users["user_id"]) == ["b", "c", "new"]


def test_a_data_set_of_which_nobody_was_told_is_as_it_was() -> None:
    dataset = people()
    assert with_users(dataset, entries(delete("a"))) is dataset
    assert remembered(dataset.events, {}) is dataset.events
