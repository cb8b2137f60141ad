"""Strings and identifiers survive the disk and are found again."""

from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.strings import IdMap, StringColumn, key64, keys64

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)


@given(st.lists(texts))
def test_a_column_is_the_list_it_was_made_of(strings: list[str]) -> None:
    with TemporaryDirectory() as name:
        StringColumn.of(strings).save(Path(name), "title")
        for column in (StringColumn.of(strings), StringColumn.load(Path(name), "title")):
            assert list(column) == strings
            assert len(column) == len(strings)
            assert [column[-1 - row] for row in range(len(strings))] == strings[::-1]


@given(st.lists(st.lists(texts), max_size=5), st.lists(st.integers(0, 100)))
def test_a_column_that_grew_is_the_list_of_all_its_texts(parts: list[list[str]], picks: list[int]) -> None:
    column, strings = StringColumn.of([]), list[str]()
    values = []
    for part in parts:
        column, strings = column.appended(part), strings + part
        values.append((column, strings))
    for grown, expected in values:
        row_N = np.array([pick % len(expected) for pick in picks if expected], np.int64)
        assert list(grown) == expected
        assert grown.take(row_N) == [expected[row] for row in row_N]
        for chosen in (grown.selected(row_N), grown.selected(row_N).appended([])):
            assert list(chosen) == [expected[row] for row in row_N]
        with TemporaryDirectory() as name:
            grown.save(Path(name), "title")
            assert list(StringColumn.load(Path(name), "title")) == expected


@given(st.lists(texts), st.lists(texts), st.lists(texts))
def test_a_digest_is_that_of_the_texts_whatever_was_appended(
    first: list[str], second: list[str], other: list[str]
) -> None:
    def digest(column: StringColumn) -> str:
        made = sha256()
        column.update(made)
        return made.hexdigest()

    whole = digest(StringColumn.of(first + second))
    assert digest(StringColumn.of(first).appended(second)) == whole
    assert digest(StringColumn.of([]).appended(first).appended(second)) == whole
    assert (digest(StringColumn.of(other)) == whole) == (other == first + second)


def test_padding_reads_as_no_text() -> None:
    for column in (StringColumn.of(["a", "b"]), StringColumn.of(["a"]).appended(["b"]), StringColumn.of(["b"])):
        assert column.take(np.array([-1, len(column) - 1, -1])) == ["", "b", ""]
        with pytest.raises(IndexError):
            column.take(np.array([len(column)]))
        for row in (-1, len(column)):
            with pytest.raises(IndexError):
                column.selected(np.array([0, row]))


@pytest.mark.parametrize("row", [2, -3, 10**9])
def test_a_row_beyond_the_column_is_an_index_error_that_names_both_numbers(row: int) -> None:
    with pytest.raises(IndexError, match=f"row {row} of 2 strings"):
        StringColumn.of(["a", "b"])[row]


@given(st.lists(texts, unique=True), st.lists(texts))
def test_an_id_map_finds_what_it_holds_and_nothing_else(ids: list[str], others: list[str]) -> None:
    with TemporaryDirectory() as name:
        IdMap.of(ids).save(Path(name), "item_id")
        for map_ in (IdMap.of(ids), IdMap.load(Path(name), "item_id")):
            assert map_.rows_of(ids).tolist() == list(range(len(ids)))
            assert list(map_.ids) == ids
            expected = [ids.index(other) if other in ids else -1 for other in others]
            assert map_.rows_of(others).tolist() == expected
            assert map_.rows(keys64(others)).tolist() == expected


def test_a_repeated_id_is_refused_and_the_first_one_in_the_catalogue_is_named() -> None:
    ids = [f"item{n}" for n in range(50)]
    with pytest.raises(ValueError, match=r"^3 repeated ids, the first is 'item7'$"):
        IdMap.of([*ids, "item40", "item7", "item40"])


few = st.sampled_from([f"item{n}" for n in range(12)])


@given(st.lists(few, unique=True), st.lists(st.lists(few, max_size=8), max_size=6))
def test_an_id_that_is_appended_names_its_newest_row(base: list[str], parts: list[list[str]]) -> None:
    values = [(IdMap.of(base), base)]
    for part in parts:
        map_, ids = values[-1]
        values.append((map_.appended(part), ids + part))
    asked = [f"item{n}" for n in range(13)]
    for map_, ids in values:
        newest = {each: row for row, each in enumerate(ids)}
        expected = [newest.get(each, -1) for each in asked]
        assert (len(map_), list(map_.ids)) == (len(ids), ids)
        assert map_.rows_of(asked).tolist() == expected
        row_N = np.array(sorted(newest.values())[::-1], np.int64)
        with TemporaryDirectory() as name:
            map_.save(Path(name), "item_id")
            loaded = IdMap.load(Path(name), "item_id")
            assert loaded.rows_of(asked).tolist() == expected
            for kept in (map_.selected(row_N), loaded.selected(row_N)):
                assert list(kept.ids) == [ids[row] for row in row_N]
                assert kept.rows_of(kept.ids).tolist() == list(range(len(row_N)))


@given(st.lists(few, unique=True), st.lists(few, max_size=8))
def test_the_key_of_a_row_is_that_of_its_id_appended_or_not(base: list[str], added: list[str]) -> None:
    map_, ids = IdMap.of(base).appended(added), base + added
    row_N = np.arange(len(ids))[::-1]
    np.testing.assert_array_equal(map_.keys(row_N), keys64(ids[::-1]))


crowded = st.integers(0, 40).map(lambda low: (low % 3 << 62) + low)
"""Keys that crowd into few buckets, as hashes never do."""


@given(st.lists(crowded, max_size=60), st.lists(crowded | st.just(2**64 - 1)))
def test_keys_are_found_however_they_lie(keys: list[int], asked: list[int]) -> None:
    key_I = np.array(keys, np.uint64)
    row_I = np.argsort(key_I, kind="stable")
    map_ = IdMap(StringColumn.of([""] * len(keys)), key_I[row_I], row_I)
    newest = {key: row for row, key in enumerate(keys)}
    assert map_.rows(np.array(asked, np.uint64)).tolist() == [newest.get(key, -1) for key in asked]


def test_rows_of_one_id_cannot_both_be_selected() -> None:
    map_ = IdMap.of(["a", "b"]).appended(["c", "a"])
    with pytest.raises(ValueError, match=r"^1 repeated ids, the first is 'a'$"):
        map_.selected(np.array([3, 2, 0]))
    with pytest.raises(IndexError):
        map_.selected(np.array([4]))


def test_the_hash_of_an_id_never_changes() -> None:
    assert key64("") == 13020603013274838756
    assert key64("item 1") == 6144745251313264031
    assert keys64(["", "item 1"]).dtype == np.uint64
