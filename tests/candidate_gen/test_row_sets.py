import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from candidate_gen.row_sets import among, first_of_each, taking_turns

some_rows = st.lists(st.integers(0, 40), max_size=60)
lists = st.lists(st.lists(st.tuples(st.integers(0, 12), st.integers(0, 3)), max_size=8), min_size=1, max_size=3)


@given(some_rows, some_rows)
def test_rows_are_found_and_taken_once_as_numpy_would(row_N: list[int], row_X: list[int]) -> None:
    some_N, some_X = np.array(row_N, np.int64), np.array(row_X, np.int64)
    np.testing.assert_array_equal(among(some_N, some_X), np.isin(some_N, some_X))
    assert first_of_each(some_N).tolist() == list(dict.fromkeys(row_N))
    read_only_N = some_N[::-1]
    read_only_N.flags.writeable = False
    np.testing.assert_array_equal(among(read_only_N, some_X), np.isin(read_only_N, some_X))


@given(lists, st.lists(st.integers(0, 12), max_size=4))
def test_a_row_has_its_turn_where_it_scores_best(lists: list[list[tuple[int, int]]], left_out: list[int]) -> None:
    best: dict[int, tuple[int, int]] = {}
    for each in lists:
        for turn, (row, score) in enumerate(each):
            if row not in left_out and (row not in best or score > best[row][0]):
                best[row] = score, turn
    flat = [pair for each in lists for pair in each]
    row_N, score_N, turn_N = taking_turns(
        np.array([row for row, _ in flat], np.int64),
        np.array([score for _, score in flat], np.float32),
        np.array([len(each) for each in lists], np.int64),
        np.array(left_out, np.int64),
    )
    found = {row: (score, turn) for row, score, turn in zip(row_N, score_N, turn_N, strict=True)}
    assert len(found) == len(row_N)
    assert found == best
