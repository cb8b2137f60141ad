import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from candidate_gen.merge import fused, merge, only, with_rows
from candidate_gen.row_sets import among
from index.types import Hits

ranking = st.lists(st.integers(0, 30), unique=True, max_size=12)


def hits(rows: list[int]) -> Hits:
    return Hits(np.array(rows, np.int64), np.linspace(2, 1, len(rows), dtype=np.float32))


@given(st.lists(ranking, min_size=1, max_size=5), st.integers(1, 40))
def test_fusion_keeps_the_largest_sums_of_reciprocal_ranks(found: list[list[int]], most: int) -> None:
    names = tuple(f"s{s}" for s in range(len(found)))
    merged = merge(names, [hits(rows) for rows in found])
    kept = fused(merged, most)

    def worth(row: int) -> float:
        return sum(1 / (60 + 1 + rows.index(row)) for rows in found if row in rows)

    everything = merged.row_N.tolist()
    if len(everything) <= most:
        assert kept is merged
        return
    assert kept.row_N.tolist() == sorted(everything, key=worth, reverse=True)[:most]
    for n, row in enumerate(kept.row_N.tolist()):
        at = everything.index(row)
        assert kept.rank_NS[n].tolist() == merged.rank_NS[at].tolist(), "ranks stay those inside the sources"
        assert kept.score_NS[n].tolist() == merged.score_NS[at].tolist()


def test_what_two_sources_name_beats_what_one_names_a_little_better() -> None:
    merged = merge(("a", "b"), [hits([1, 2, 3]), hits([4, 3, 5])])
    # 3: 1/63 + 1/62 = 0.0320; 1 and 4: 1/61 = 0.0164; 2: 1/62.
    assert fused(merged, 3).row_N.tolist() == [3, 1, 4]


def test_a_callers_own_list_keeps_its_order() -> None:
    own = only(np.array([5, 3, 9], np.int64), ("a",))
    assert fused(own, 2).row_N.tolist() == [5, 3]


def test_positions_beyond_the_candidates_are_no_candidates() -> None:
    with pytest.raises(IndexError):
        only(np.array([5, 3], np.int64), ("a",)).take(np.array([2]))


def test_rows_that_must_be_there_are_added_last_and_stay_whatever_their_rank() -> None:
    merged = merge(("a",), [hits([3, 1, 4])])
    pinned = np.array([9, 1], np.int64)
    whole = with_rows(merged, pinned)
    assert whole.row_N.tolist() == [3, 1, 4, 9]
    assert whole.rank_NS[:, 0].tolist() == [0, 1, 2, -1]
    assert fused(whole, 3, always=pinned).row_N.tolist() == [1, 9, 3]


@given(st.lists(st.integers(-3, 30), max_size=12), st.lists(st.integers(-3, 30), max_size=12))
def test_rows_are_among_others_as_numpy_says(rows: list[int], others: list[int]) -> None:
    row_N, row_X = np.array(rows, np.int64), np.array(others, np.int64)
    assert among(row_N, row_X).tolist() == np.isin(row_N, row_X).tolist()


@given(st.lists(st.none() | ranking, min_size=1, max_size=5))
def test_every_item_is_there_once_in_order_of_first_appearance(found: list[list[int] | None]) -> None:
    names = tuple(f"s{s}" for s in range(len(found)))
    merged = merge(names, [None if rows is None else hits(rows) for rows in found])
    wanted = list(dict.fromkeys(row for rows in found for row in rows or []))
    assert merged.row_N.tolist() == wanted
    for n, row in enumerate(wanted):
        for s, rows in enumerate(found):
            place = rows.index(row) if rows and row in rows else -1
            assert merged.rank_NS[n, s] == place
            assert merged.score_NS[n, s] == (hits(rows).score_K[place] if rows and place >= 0 else 0)


def test_rows_are_found_among_the_candidates_or_told_to_be_none_of_them() -> None:
    own = only(np.array([5, 3, 9], np.int64), ("a",))
    assert own.positions(np.array([9, 4, 5], np.int64)).tolist() == [2, -1, 0]
    assert own.positions(np.empty(0, np.int64)).tolist() == []
    assert only(np.empty(0, np.int64), ("a",)).positions(np.array([1], np.int64)).tolist() == [-1]
