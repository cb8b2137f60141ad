"""Recall against its definition, in cases that can be counted by hand."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from index.recall import recall_at

F, ROW = np.float32, np.int64


def _of(found: list[list[int]], exact: list[list[float]], score: list[list[float]]) -> float:
    return recall_at(np.array(found, ROW), np.array(exact, F), np.array(score, F)).value


def test_recall_is_the_share_of_exact_answers_found() -> None:
    exact = [[9.0, 8.0, 7.0, 6.0], [5.0, 4.0, 3.0, 2.0]]
    assert _of([[0, 1, 2, 3], [0, 1, 2, 3]], exact, exact) == 1
    assert _of([[0, 1, 2, 9], [0, 8, 9, -1]], exact, [[9, 8, 7, 5.9], [5, 1, 1, 0]]) == (3 / 4 + 1 / 4) / 2


def test_an_item_that_ties_with_the_last_exact_one_counts() -> None:
    assert _of([[0, 7]], [[2.0, 1.0]], [[2.0, 1.0]]) == 1


def test_a_difference_within_the_tolerance_is_a_tie_and_one_beyond_it_is_not() -> None:
    found, exact = np.array([[0, 7]], ROW), np.array([[100.0, 1.0]], F)
    assert recall_at(found, exact, np.array([[100.0, 0.9995]], F)).value == 1
    assert recall_at(found, exact, np.array([[100.0, 0.9985]], F)).value == 0.5
    assert recall_at(found, exact, np.array([[100.0, 0.9985]], F), tolerance=1e-4).value == 1


def test_a_row_named_twice_counts_once() -> None:
    assert _of([[4, 4, 4]], [[3.0, 2.0, 1.0]], [[3.0, 3.0, 3.0]]) == pytest.approx(1 / 3)


def test_where_fewer_rows_exist_than_asked_for_those_are_all_that_can_be_found() -> None:
    exact = [[3.0, 2.0, -math.inf]]
    assert _of([[0, 1, -1]], exact, [[3, 2, 9]]) == 1
    assert _of([[0, -1, -1]], exact, [[3, 9, 9]]) == 0.5


def test_queries_without_any_answer_are_left_out_and_an_empty_mean_is_nan() -> None:
    exact = np.array([[1.0], [-math.inf]], F)
    some = recall_at(np.array([[0], [-1]], ROW), exact, exact)
    assert (some.value, some.queries) == (1, 1)
    none = recall_at(np.array([[-1]], ROW), exact[1:], exact[1:])
    assert math.isnan(none.value)
    assert math.isnan(none.low)
    assert none.queries == 0


@given(st.lists(st.integers(0, 4), min_size=1, max_size=60))
def test_the_interval_holds_the_value_and_a_sample_without_a_miss_does_not_certify_one(found: list[int]) -> None:
    row_BK = np.array([[0, 1, 2, 3][:n] + [-1] * (4 - n) for n in found], ROW)
    score_BK = np.tile(np.array([4, 3, 2, 1], F), (len(found), 1))
    recall = recall_at(row_BK, score_BK, score_BK)
    assert recall.value == pytest.approx(np.mean(found) / 4)
    assert 0 <= recall.low <= recall.value <= recall.high <= 1
    assert recall.low < 1
    assert recall.k == 4


@pytest.mark.parametrize("queries", [50, 400])
def test_the_interval_covers_the_truth_as_often_as_it_says(queries: int) -> None:
    """Correlated misses: a query is answered wholly or not at all. 1,000 samples; 95% nominal on both sides."""
    generator = np.random.default_rng(5)
    covered = 0
    for _ in range(1000):
        found_B = generator.random(queries) < 0.95
        row_BK: NDArray[np.int64] = np.where(found_B[:, None], np.arange(10), -1)
        score_BK = np.ones((queries, 10), F)
        recall = recall_at(row_BK, score_BK, score_BK)
        covered += recall.low <= 0.95 <= recall.high
    assert covered >= 935


def test_more_confidence_is_a_wider_interval() -> None:
    row_BK = np.array([[0], [-1], [0], [0]], ROW)
    score_BK = np.ones((4, 1), F)
    widths = []
    for confidence in (0.5, 0.9, 0.99):
        recall = recall_at(row_BK, score_BK, score_BK, confidence=confidence)
        widths.append(recall.high - recall.low)
    assert widths == sorted(widths)


def test_shapes_that_differ_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"found rows \(1, 2\), exact scores \(1, 3\)"):
        recall_at(np.zeros((1, 2), ROW), np.zeros((1, 3), F), np.zeros((1, 3), F))
