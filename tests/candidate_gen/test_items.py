from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from retrieval_cases import rows

from candidate_gen.items import Items
from candidate_gen.text_match import TEXT_MATCH, text_match
from index.strings import StringColumn

DTYPE = np.dtype([("item_id", "<i4", (2,)), ("rate", "<f4")])
Listed = list[tuple[str, int, bool]]
"""Id, a number that all of the item's columns are made of, and whether it may be shown."""

IDS = st.sampled_from(["a", "b", "c", "\u00fc", "", "a longer id"])
LISTED = st.lists(st.tuples(IDS, st.integers(0, 99), st.booleans()), max_size=5, unique_by=lambda item: item[0])
CHANGES = st.lists(
    st.one_of(
        st.tuples(st.just("upsert"), LISTED),
        st.tuples(st.sampled_from(["delete", "show", "hide"]), st.lists(IDS, max_size=3, unique=True)),
    ),
    max_size=8,
)


def made(listed: Listed) -> Items:
    numbers = np.array([number for _, number, _ in listed], np.int64)
    row_I = np.zeros(len(listed), DTYPE)
    row_I["item_id"], row_I["rate"] = numbers[:, None], numbers / 7
    return Items.of(
        ids=[item_id for item_id, _, _ in listed],
        titles=[f"title {number}" for number in numbers],
        searchable=[f"title {number} \u00e9" * (number % 3) for number in numbers],
        row_I=row_I,
        published_ms=1000 * numbers,
        available=[available for _, _, available in listed],
        popularity=numbers / 3,
        embedding_ID=np.stack([numbers, -numbers], 1).astype(np.float32),
        attributes={"category": numbers.astype(np.uint64), "price": np.where(numbers % 2, numbers, np.nan)},
    )


def listed(items: Items, row_N: np.ndarray) -> Listed:
    """What `made` made them of, as every column says."""
    told = []
    for row in row_N.tolist():
        number = int(items.published_ms_I[row]) // 1000
        assert items.titles[row] == f"title {number}"
        match_F = text_match(f"title {number}", items.prepared["title"], np.array([row]))[0]
        assert match_F[TEXT_MATCH.index("coverage")] == 1, "whatever its words were, they are known by now"
        assert items.searchable[row] == f"title {number} \u00e9" * (number % 3)
        assert items.row_I[row]["item_id"].tolist() == [number, number]
        assert items.row_I["rate"][row] == np.float32(number / 7)
        assert items.popularity_I[row] == np.float32(number / 3)
        assert items.embedding_ID[row].tolist() == [number, -number]
        assert items.attributes["category"][row] == number
        np.testing.assert_equal(items.attributes["price"][row], float(number) if number % 2 else np.nan)
        told.append((items.ids.ids[row], number, bool(items.available_I[row])))
    return told


@given(LISTED, CHANGES)
def test_items_that_grew_are_those_made_at_once(first: Listed, changes: list[tuple[str, Any]]) -> None:
    items = made(first)
    expected = {item_id: (number, available) for item_id, number, available in first}
    snapshots = []
    for kind, about in changes:
        snapshots.append((items, items.fingerprint, listed(items, items.current())))
        if kind == "upsert":
            items = items.appended(made(about))
            for item_id, number, available in about:
                expected.pop(item_id, None)
                expected[item_id] = number, available
            continue
        known = [item_id for item_id in about if item_id in expected]
        row_N = items.ids.rows_of(known)
        if kind == "delete":
            items = items.without(row_N)
            expected = {item_id: told for item_id, told in expected.items() if item_id not in known}
        else:
            items = items.with_available(row_N, kind == "show")
            expected |= {item_id: (expected[item_id][0], kind == "show") for item_id in known}
    current = items.current()
    told = [(item_id, number, available) for item_id, (number, available) in expected.items()]
    assert listed(items, current) == told
    assert items.take(current).fingerprint == made(told).fingerprint
    assert items.ids.rows_of(expected).tolist() == current.tolist()
    assert items.gone_I.sum() == len(items) - len(expected)
    assert not (items.gone_I & items.available_I).any()
    shown = np.ones(len(items), np.bool_) if items.allowed is None else items.allowed.allowed_I
    assert shown.tolist() == items.available_I.tolist()
    for snapshot, fingerprint, was in snapshots:
        assert listed(snapshot, snapshot.current()) == was
        assert replace(snapshot).fingerprint == fingerprint


def test_items_can_grow_twice_from_the_same_ones() -> None:
    base = made([("a", 1, True), ("b", 2, True)])
    one, other = base.appended(made([("c", 3, True)])), base.appended(made([("a", 4, True), ("d", 5, False)]))
    assert listed(one, one.current()) == [("a", 1, True), ("b", 2, True), ("c", 3, True)]
    assert listed(other, other.current()) == [("b", 2, True), ("a", 4, True), ("d", 5, False)]


@given(LISTED, LISTED)
def test_a_fingerprint_does_not_tell_what_was_appended(first: Listed, later: Listed) -> None:
    later = [item for item in later if item[0] not in {item_id for item_id, _, _ in first}]
    assert made(first).appended(made(later)).fingerprint == made(first + later).fingerprint


def test_a_fingerprint_tells_of_every_column() -> None:
    items = made([("a", 1, True), ("b", 2, True)])
    texts, truths = StringColumn.of(["title 1", "titel 2"]), np.array([True, False])
    changes: list[dict[str, Any]] = [
        {"ids": made([("a", 1, True), ("c", 2, True)]).ids},
        *({name: texts} for name in ("titles", "searchable")),
        *({name: truths} for name in ("available_I", "gone_I")),
        *({name: getattr(items, name)[::-1]} for name in ("row_I", "published_ms_I", "popularity_I", "embedding_ID")),
        {"attributes": {**items.attributes, "price": np.array([1.0, 2.0])}},
        {"attributes": {"other": items.attributes["category"], "price": items.attributes["price"]}},
    ]
    told = {name for change in changes for name in change}
    made_of_texts = {"prepared", "texts"}  # of what attributes hold
    assert told == {each.name for each in fields(Items)} - made_of_texts
    assert len({items.fingerprint, *(replace(items, **change).fingerprint for change in changes)}) == len(changes) + 1


def test_items_are_read_as_they_were_saved(tmp_path: Path) -> None:
    items = made([("a", 1, True), ("", 2, False), ("\u00fc", 3, True)])
    items.save(tmp_path)
    read = Items.load(tmp_path)
    assert read.fingerprint == items.fingerprint
    assert listed(read, read.current()) == listed(items, items.current())
    assert list(read.attributes) == ["category", "price"]
    grown = read.appended(made([("", 4, True)]))
    assert listed(grown, grown.current()) == [("a", 1, True), ("\u00fc", 3, True), ("", 4, True)]


def test_only_current_items_are_saved(tmp_path: Path) -> None:
    items = made([("a", 1, True), ("b", 2, False)])
    for changed in (items.appended(made([("c", 3, True)])), items.without(rows(0))):
        with pytest.raises(ValueError, match=r"save items.take\(items.current\(\)\)"):
            changed.save(tmp_path)
        changed.take(changed.current()).save(tmp_path)
        assert listed(Items.load(tmp_path), rows(0)) == listed(changed, changed.current()[:1])


def test_the_mask_of_what_may_be_shown_is_made_once_and_none_where_all_may() -> None:
    items = made([("a", 1, True), ("b", 2, True)])
    assert items.allowed is None
    hidden = items.with_available(rows(1), False)
    assert hidden.allowed is hidden.allowed
    assert hidden.allowed is not None
    assert hidden.allowed.row_A.tolist() == [0]
    assert hidden.with_available(rows(1), True).allowed is None


def test_a_row_that_is_gone_is_not_shown_again() -> None:
    items = made([("a", 1, True), ("b", 2, True)]).without(rows(1))
    with pytest.raises(ValueError, match="row 1 is gone"):
        items.with_available(rows(0, 1), True)


def test_rows_of_one_id_are_not_taken_together() -> None:
    with pytest.raises(ValueError, match="repeated ids, the first is 'a'"):
        made([("a", 1, True)]).appended(made([("a", 2, True)])).take(rows(0, 1))


def test_items_with_other_attributes_do_not_follow() -> None:
    with pytest.raises(ValueError, match=r"attributes \['price'\] follow \['category', 'price'\]"):
        made([("a", 1, True)]).appended(replace(made([("b", 2, True)]), attributes={"price": np.ones(1)}))


@pytest.mark.parametrize(
    ("name", "column"),
    [
        ("titles", ["x"]),
        ("published_ms", [1, 2, 3]),
        ("available", [True]),
        ("embedding_ID", np.zeros((3, 2), np.float32)),
        ("attributes", {"price": np.zeros(1)}),
    ],
)
def test_a_column_of_another_length_is_refused_by_name_and_both_lengths(name: str, column: Any) -> None:
    columns: dict[str, Any] = {
        "ids": ["a", "b"],
        "titles": ["x", "y"],
        "row_I": np.zeros(2, DTYPE),
        "published_ms": [1, 2],
        "embedding_ID": np.zeros((2, 2), np.float32),
    }
    with pytest.raises(ValueError, match=r"column '[\w.]*' has [13] rows for 2 ids") as refused:
        Items.of(**{**columns, name: column})
    assert (name if name != "attributes" else "attribute.price") in str(refused.value)
