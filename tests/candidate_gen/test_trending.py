import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from retrieval_cases import NOW_MS, hydrated, rows

from candidate_gen.trending import Trending
from index.masks import Mask

HALF_LIFE_S = 60.0
EVENTS = st.lists(st.tuples(st.integers(0, 12), st.integers(0, 10**7)), max_size=60)


def told(events: list[tuple[int, int]], *, leaders: int = 1024, batch: int = 7) -> Trending:
    """After events in batches: (row, ms since `NOW_MS`)."""
    trending = Trending(half_life_s=HALF_LIFE_S, leaders=leaders)
    for first in range(0, len(events), batch):
        part = events[first : first + batch]
        trending.update(rows(*[row for row, _ in part]), NOW_MS + rows(*[ms for _, ms in part]))
    return trending


def counts(events: list[tuple[int, int]], at_ms: int) -> dict[int, float]:
    """By the definition."""
    count: dict[int, float] = {}
    for row, ms in events:
        count[row] = count.get(row, 0.0) + 0.5 ** ((at_ms - ms) / (1000 * HALF_LIFE_S))
    return count


def test_an_event_counts_half_a_half_life_later() -> None:
    trending = told([(3, 0), (3, 0), (5, 60_000)])
    assert trending.count(rows(3, 5, 4, 99), NOW_MS + 60_000) == pytest.approx([1, 1, 0, 0])
    assert trending.count(rows(3, 5, 4, 99), NOW_MS + 120_000) == pytest.approx([0.5, 0.5, 0, 0])


@given(EVENTS, st.integers(1, 6), st.integers(1, 5), st.integers(0, 9))
def test_the_best_are_those_of_counting_everything(
    events: list[tuple[int, int]], leaders: int, batch: int, k: int
) -> None:
    """Times are in any order; few leaders are overtaken often."""
    trending = told(events, leaders=leaders, batch=batch)
    at_ms = max((ms for _, ms in events), default=0)
    expected = {row: count for row, count in counts(events, at_ms).items() if count > 1e-290}
    hits = trending.top(NOW_MS + at_ms, k)
    best = sorted(expected.values(), reverse=True)[:k]
    assert hits.score_K == pytest.approx(best, rel=1e-5)
    assert [expected[row] for row in hits.row_K.tolist()] == pytest.approx(best)


def test_what_is_asked_between_events_changes_nothing_and_equals_are_named_by_row() -> None:
    trending = told([(5, 0), (3, 0), (4, 0)])
    assert trending.top(NOW_MS, 2).row_K.tolist() == [3, 4]
    trending.update(rows(5), NOW_MS + rows(1))
    assert trending.top(NOW_MS, 9).row_K.tolist() == [5, 3, 4]


def test_a_query_of_a_time_before_the_newest_event_is_answered_as_of_that_event() -> None:
    trending = told([(1, 0), (2, 120_000)])
    assert trending.top(NOW_MS, 2).score_K.tolist() == [1.0, 0.25]
    assert trending.count(rows(1, 2), NOW_MS - 10**12).tolist() == [0.25, 1.0]


def test_counts_stay_finite_over_more_half_lives_than_a_float_holds() -> None:
    trending = Trending(half_life_s=HALF_LIFE_S, leaders=2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for day in range(400):
            trending.update(rows(day % 5, 4), np.full(2, NOW_MS + day * 86_400_000))
    hits = trending.top(NOW_MS + 399 * 86_400_000, 2)
    assert hits.row_K[0] == 4
    assert hits.score_K[0] == pytest.approx(2)


def test_only_what_is_allowed_is_named_and_as_many_as_there_are() -> None:
    """The leaders are all forbidden, so everything must be gone through; rows behind the mask's end are not allowed."""
    events = [(row, 0) for row in range(8) for _ in range(8 - row)]
    allowed = Mask(np.array([False] * 5 + [True, False]))
    assert told(events, leaders=3).top(NOW_MS, 4, allowed).row_K.tolist() == [5]
    query = hydrated(allowed=Mask(np.arange(8) != 1))
    assert told(events, leaders=3).retrieve(query, 3).row_K.tolist() == [0, 2, 3]


def test_what_the_query_knows_is_left_out() -> None:
    trending = told([(row, 0) for row in range(9) for _ in range(9 - row)])
    query = hydrated(history=rows(0, 2, 0), seeds=rows(4), excluded=rows(1, 77))
    hits = trending.retrieve(query, 3)
    assert hits.row_K.tolist() == [3, 5, 6]
    assert hits.score_K.tolist() == [6, 4, 3]


def test_nothing_is_named_before_anything_happened_or_where_none_is_wanted() -> None:
    assert len(Trending(half_life_s=1).retrieve(hydrated(), 5)) == 0
    assert len(told([(1, 0)]).retrieve(hydrated(), 0)) == 0
    trending = told([])
    trending.update(rows(), rows())
    assert trending.count(rows(0), NOW_MS).tolist() == [0]


@pytest.mark.parametrize(("half_life_s", "leaders"), [(0.0, 9), (float("nan"), 9), (1.0, 0)])
def test_settings_that_make_no_sense_are_named(half_life_s: float, leaders: int) -> None:
    with pytest.raises(ValueError, match=r"(half_life_s|leaders) is "):
        Trending(half_life_s=half_life_s, leaders=leaders)
