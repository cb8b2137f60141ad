"""A column that grew is the array of all its rows, for ever.

Shape letters: I items, N rows asked for.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from index.columns import GrownColumn, appended, growing, taken

RECORD = np.dtype([("price", np.float64), ("word", np.uint64, (3,))])
KINDS = [np.dtype(np.int64), np.dtype(np.bool_), RECORD]


def _rows(count: int, dtype: np.dtype[Any], *, seed: int = 0, width: int | None = None) -> NDArray[Any]:
    shape = (count,) if width is None else (count, width)
    noise = np.random.default_rng(seed).integers(0, 2, (*shape, dtype.itemsize), np.uint8)
    return np.ascontiguousarray(noise).view(dtype).reshape(shape)


@given(st.integers(0, 5), st.lists(st.integers(0, 7), max_size=6), st.sampled_from(KINDS), st.sampled_from([None, 3]))
def test_every_value_stays_the_array_that_it_was(
    base: int, sizes: list[int], dtype: np.dtype[Any], width: int | None
) -> None:
    whole = _rows(base, dtype, width=width)
    values = [(growing(whole), whole)]
    for seed, size in enumerate(sizes):
        rows = _rows(size, dtype, seed=seed, width=width)
        whole = np.concatenate((whole, rows))
        values.append((values[-1][0].append(rows), whole))
    for column, expected in values:
        assert (len(column), column.shape, column.dtype) == (len(expected), expected.shape, expected.dtype)
        np.testing.assert_array_equal(np.asarray(column), expected)
        row_NN = np.random.default_rng(1).integers(0, max(len(expected), 1), (4, 3) if len(expected) else (0, 3))
        np.testing.assert_array_equal(column[row_NN], expected[row_NN])
        for row in range(len(expected)):
            np.testing.assert_array_equal(column[row], expected[row])
        if dtype == RECORD:
            np.testing.assert_array_equal(np.asarray(column["word"]), expected["word"])
            np.testing.assert_array_equal(column["price"][row_NN], expected["price"][row_NN])


@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 4)), max_size=12))
def test_values_that_grow_from_one_value_do_not_meet(steps: list[tuple[int, int]]) -> None:
    values = [(growing(np.arange(3)), [0, 1, 2])]
    for number, (parent, size) in enumerate(steps, start=1):
        column, rows = values[parent % len(values)]
        added = [100 * number + n for n in range(size)]
        values.append((column.append(np.array(added, np.int64)), rows + added))
    for column, rows in values:
        assert np.asarray(column).tolist() == rows


def test_threads_that_append_to_one_value_get_their_own_rows() -> None:
    shared = growing(np.arange(10)).append(np.arange(100))
    with ThreadPoolExecutor(8) as threads:
        grown = list(threads.map(lambda n: shared.append(np.full(20, n)), range(64)))
    assert [np.unique(column[np.arange(110, 130)]).tolist() for column in grown] == [[n] for n in range(64)]


def test_one_row_at_a_time_copies_a_row_a_few_times_in_all() -> None:
    column = growing(np.arange(2))
    buffers = set()
    for n in range(1000):
        column = column.append(np.array([n]))
        buffers.add(column.tail.__array_interface__["data"][0])
    assert len(buffers) < 12
    assert np.asarray(column).tolist() == [0, 1, *range(1000)]


def test_padding_reads_some_row_and_a_row_beyond_the_column_is_refused() -> None:
    for column in (growing(np.arange(3)), appended(np.arange(3), np.arange(2)), appended(np.arange(0), np.arange(2))):
        assert column[np.array([-1, 0])].shape == (2,)
        for row in (len(column), 10**9):
            with pytest.raises(IndexError):
                column[np.array([0, row])]
            with pytest.raises(IndexError):
                column[row]


def test_a_mapped_base_is_neither_copied_nor_written_to(tmp_path: Path) -> None:
    np.save(tmp_path / "base.npy", np.arange(6.0).reshape(3, 2))
    base = np.load(tmp_path / "base.npy", mmap_mode="r")
    column = appended(base, np.ones((1, 2)))
    assert np.shares_memory(column.base, base)
    assert np.shares_memory(np.asarray(growing(base)), base)
    assert not column.tail.flags.writeable
    found_N = column[np.array([0, 3])]
    found_N[:] = 7
    assert np.asarray(column).tolist() == [[0, 1], [2, 3], [4, 5], [1, 1]]


@pytest.mark.parametrize("rows", [np.ones((1, 2), np.float32), np.ones((1, 3)), np.ones(2)])
def test_rows_of_another_kind_are_refused_with_both(rows: NDArray[Any]) -> None:
    base, message = np.ones((4, 2)), r"rows of float\d\d \(.*\) cannot follow a column of float64 \(2,\)"
    with pytest.raises(ValueError, match=message):
        GrownColumn(base, rows)
    with pytest.raises(ValueError, match=message):
        growing(base).append(rows)


@given(st.integers(1, 6), st.integers(0, 5), st.sampled_from(KINDS), st.data())
def test_rows_taken_are_those_that_indexing_gives(
    base: int, tail: int, dtype: np.dtype[Any], data: st.DataObject
) -> None:
    whole = _rows(base + tail, dtype)
    whole.flags.writeable = False
    row_N = np.array(data.draw(st.lists(st.integers(-1, len(whole) - 1))), np.int64)
    expected = whole[row_N]
    for column in (whole, whole[: base + tail], growing(whole[:base]).append(whole[base:])):
        found = taken(column, np.where(row_N < 0, len(whole) - 1, row_N) if tail else row_N)
        assert (found.dtype, found.tobytes(), found.flags.writeable) == (dtype, expected.tobytes(), True)
        with pytest.raises(IndexError):
            taken(column, np.array([len(whole)]))


def test_long_rows_taken_are_those_that_indexing_gives() -> None:
    whole = np.random.default_rng(0).standard_normal((50, 64)).astype(np.float32)
    row_N = np.array([49, 0, -1, 7, 7, -50])
    for column in (whole, whole[:, ::2], whole[::2].astype(np.float64)[:, None]):
        found = taken(column, row_N // 2)
        assert (found.dtype, found.shape) == (column.dtype, column[row_N // 2].shape)
        assert (found == column[row_N // 2]).all()
    assert (taken(whole, row_N.reshape(2, 3)) == whole[row_N.reshape(2, 3)]).all()
    assert taken(whole[:0], row_N[:0]).shape == (0, 64)
    for outside in (50, -51):
        with pytest.raises(IndexError):
            taken(whole, np.array([0, outside]))
