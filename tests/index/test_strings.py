"""Strings and identifiers survive the disk and are found again."""

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


def test_the_hash_of_an_id_never_changes() -> None:
    assert key64("") == 13020603013274838756
    assert key64("item 1") == 6144745251313264031
    assert keys64(["", "item 1"]).dtype == np.uint64
