from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from retrieval_cases import NOW_MS, catalogue, hydrated, rows, unit_vectors

from candidate_gen.filters import Disallowed, Excluded, Seen, Shown, Unpublished
from candidate_gen.types import Candidates
from serving.pipeline import Filter

ITEMS = catalogue(
    embedding_ID=unit_vectors(6),
    age_days=[1, 0, -1, 5, 2, -0.001],
    available=[True, False, True, True, False, True],
)


def candidates(*row: int) -> Candidates:
    return Candidates(rows(*row), (), np.zeros((len(row), 0), np.int16), np.zeros((len(row), 0), np.float32))


def test_every_filter_is_a_filter() -> None:
    filters: list[Filter] = [Disallowed(), Unpublished(ITEMS), Seen(), Excluded(), Shown()]
    assert [each.name for each in filters] == ["disallowed", "unpublished", "seen", "excluded", "shown"]
    for each in filters:
        mask = each.keep(hydrated(), candidates())
        assert mask.shape == (0,)
        assert mask.dtype == np.bool_


def test_what_is_not_allowed_is_removed_from_the_callers_own_list_too() -> None:
    query = hydrated(allowed=ITEMS.allowed)
    assert Disallowed().keep(query, candidates(5, 4, 1, 0)).tolist() == [True, False, False, True]
    chosen = replace(query, query=replace(query.query, only_row_N=rows(5, 4)))
    assert Disallowed().keep(chosen, candidates(5, 4)).tolist() == [True, False]
    assert Disallowed().keep(hydrated(), candidates(5, 4, 1, 0)).all()


def test_items_of_the_future_are_removed_and_those_of_this_moment_kept() -> None:
    keep = Unpublished(ITEMS).keep(hydrated(time_ms=NOW_MS), candidates(0, 1, 2, 3, 4, 5))
    assert keep.tolist() == [True, True, False, True, True, False]


def test_by_default_everything_in_the_history_counts_as_seen() -> None:
    query = hydrated(history=rows(3, -1, 0), actions=[1, 2, 0])
    assert Seen().keep(query, candidates(0, 1, 3, 2)).tolist() == [False, True, False, True]


def test_only_consuming_actions_count_as_seen_where_named() -> None:
    query = hydrated(history=rows(3, 2, 0), actions=[1, 2, 1])
    assert Seen(frozenset({1})).keep(query, candidates(0, 2, 3)).tolist() == [False, True, False]


def test_a_list_of_the_callers_own_is_not_thinned_by_what_was_seen() -> None:
    seen = hydrated(history=rows(3, 0))
    chosen = replace(seen, query=replace(seen.query, only_row_N=rows(0, 3)))
    assert Seen().keep(seen, candidates(0, 3)).tolist() == [False, False]
    assert Seen().keep(chosen, candidates(0, 3)).tolist() == [True, True]


def test_excluded_items_and_seeds_are_removed() -> None:
    query = hydrated(seeds=rows(1), excluded=rows(4, 2), history=rows(3))
    assert Excluded().keep(query, candidates(0, 1, 2, 3, 4)).tolist() == [True, False, False, True, False]


@given(
    st.lists(st.integers(0, 5), unique=True),
    st.lists(st.integers(-1, 5), max_size=6),
    st.lists(st.integers(0, 5), max_size=3),
    st.lists(st.integers(0, 5), max_size=3),
)
def test_masks_are_the_set_differences(
    proposed: list[int], history: list[int], seeds: list[int], excluded: list[int]
) -> None:
    query = hydrated(history=rows(*history), seeds=rows(*seeds), excluded=rows(*excluded))
    seen = Seen().keep(query, candidates(*proposed))
    out = Excluded().keep(query, candidates(*proposed))
    assert seen.tolist() == [row not in history for row in proposed]
    assert out.tolist() == [row not in seeds + excluded for row in proposed]


def test_what_was_shown_is_removed_and_comes_back_longest_ago_first_where_a_page_would_not_be_full() -> None:
    base = hydrated()

    def kept(*shown: int, size: int) -> list[bool]:
        query = replace(base.query, size=size, shown_row_X=rows(*shown))
        return list(Shown().keep(replace(base, query=query), candidates(0, 1, 2, 3)))

    assert kept(size=4) == [True] * 4
    assert kept(3, 1, 5, size=2) == [True, False, True, False]
    assert kept(3, 1, 5, size=3) == [True, True, True, False]
    assert kept(3, 1, 5, size=9) == [True] * 4
    assert kept(0, 1, 2, 3, size=1) == [False, False, False, True]


def test_a_list_of_the_callers_own_is_not_thinned_by_what_was_shown() -> None:
    query = hydrated()
    chosen = replace(query, query=replace(query.query, only_row_N=rows(0, 3), shown_row_X=rows(0, 3), size=1))
    assert Shown().keep(chosen, candidates(0, 3)).tolist() == [True, True]
