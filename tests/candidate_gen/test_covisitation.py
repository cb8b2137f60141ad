from collections import defaultdict
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from retrieval_cases import NOW_MS, hydrated, rows

from candidate_gen.covisitation import Covisitation
from index.masks import Mask

HALF_LIFE_S = 60.0
VISITS = st.lists(st.lists(st.integers(0, 9), min_size=1, max_size=6), max_size=12)


def told(visits: list[list[int]], *, gap_ms: int = 1000, **options: Any) -> Covisitation:
    """After visits, one after the other, of rows in the order they were taken, each `gap_ms` after the last."""
    covisitation = Covisitation(half_life_s=HALF_LIFE_S, **options)
    time_ms = NOW_MS
    for visit in visits:
        for place, row in enumerate(visit):
            covisitation.update(row, rows(*visit[:place][::-1]), time_ms)
            time_ms += gap_ms
    return covisitation


def test_the_next_counts_one_the_one_after_half_and_the_way_back_less() -> None:
    covisitation = told([[1, 2, 3]], gap_ms=0, backward=0.25)
    assert covisitation.count(1, rows(2, 3, 4), NOW_MS).tolist() == [1, 0.5, 0]
    assert covisitation.count(2, rows(3, 1), NOW_MS).tolist() == [1, 0.25]
    assert covisitation.count(3, rows(2, 1), NOW_MS).tolist() == [0.25, 0.125]
    assert covisitation.count(1, rows(2), NOW_MS + 60_000).tolist() == [0.5]
    assert covisitation.count(7, rows(1), NOW_MS).tolist() == [0]


@given(VISITS, st.lists(st.integers(0, 9), max_size=4), st.integers(0, 12), st.integers(0, 40_000))
def test_the_best_are_those_of_counting_every_pair(
    visits: list[list[int]], past: list[int], k: int, gap_ms: int
) -> None:
    covisitation = told(visits, gap_ms=gap_ms, depth=3, backward=0.5)
    pair: dict[tuple[int, int], float] = defaultdict(float)
    steps = [(visit[:place][::-1][:3], row) for visit in visits for place, row in enumerate(visit)]
    now_ms = NOW_MS + gap_ms * len(steps)
    for step, (before, row) in enumerate(steps):
        worth = 0.5 ** ((len(steps) - step) * gap_ms / (1000 * HALF_LIFE_S))
        for back, other in enumerate(before):
            if other != row:
                pair[other, row] += worth / 2**back
                pair[row, other] += worth / 2**back / 2
    expected: dict[int, float] = defaultdict(float)
    for (one, other), count in pair.items():
        expected[other] += sum(count / 2**back for back, row in enumerate(past[:3]) if row == one)
    named = {row: count for row, count in expected.items() if count > 0 and row not in past}
    hits = covisitation.top(rows(*past), now_ms, k)
    best = sorted(named.values(), reverse=True)[:k]
    assert hits.score_K == pytest.approx(best, rel=1e-5)
    assert [named[row] for row in hits.row_K.tolist()] == pytest.approx(best)
    for one in range(10):
        counted = covisitation.count(one, np.arange(10), now_ms)
        assert counted == pytest.approx([pair[one, other] for other in range(10)])


def test_the_weakest_companion_gives_way_to_a_new_one() -> None:
    covisitation = told([[0, 1], [0, 1], [0, 2], [0, 3]], gap_ms=0, companions=2, backward=0.0)
    assert covisitation.top(rows(0), NOW_MS, 9).row_K.tolist() == [1, 3]


def test_the_lightest_items_are_given_up_when_the_places_run_out() -> None:
    heavy = [[0, 1]] * 5
    covisitation = told([*heavy, [2, 3], *heavy, [4, 5], [6, 7]], gap_ms=0, places=4)
    assert covisitation.count(0, rows(1), NOW_MS).tolist() == [10]
    assert covisitation.count(6, rows(7), NOW_MS).tolist() == [1]
    assert covisitation.count(2, rows(3), NOW_MS).tolist() == [0]


def test_counts_stay_finite_over_more_half_lives_than_a_float_holds() -> None:
    covisitation = Covisitation(half_life_s=HALF_LIFE_S)
    for day in range(400):
        covisitation.update(1, rows(0), NOW_MS + day * 86_400_000)
    assert covisitation.count(0, rows(1), NOW_MS).tolist() == [1.0]


def test_only_what_is_allowed_and_not_known_is_named() -> None:
    covisitation = told([[0, row] for row in range(9, 0, -1) for _ in range(row)], gap_ms=0)
    query = hydrated(history=rows(0, 9), excluded=rows(8), allowed=Mask(np.arange(8) != 7))
    assert covisitation.retrieve(query, 2).row_K.tolist() == [6, 5]


def test_seeds_go_before_the_history() -> None:
    covisitation = told([[0, 1], [2, 3]], gap_ms=0, backward=0.0)
    assert covisitation.retrieve(hydrated(history=rows(0), seeds=rows(2)), 5).row_K.tolist() == [3]
    assert covisitation.retrieve(hydrated(history=rows(0)), 5).row_K.tolist() == [1]
    assert len(covisitation.retrieve(hydrated(), 5)) == 0
    assert len(covisitation.retrieve(hydrated(history=rows(0)), 0)) == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"half_life_s": 0.0}, "half_life_s is 0.0; it must be above 0"),
        ({"companions": 0}, "companions is 0; it must be at least 1"),
        ({"places": 1}, "places is 1; it must be at least 2"),
        ({"depth": 0}, "depth is 0; it must be at least 1"),
        ({"backward": 1.5}, "backward is 1.5; it must be from 0 to 1"),
    ],
)
def test_settings_that_make_no_sense_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Covisitation(**{"half_life_s": 1.0, **options})
