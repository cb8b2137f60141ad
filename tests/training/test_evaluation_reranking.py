"""Statistics of sequences by hand, and a ranker that finds the weights that made the choices."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from training.evaluation.reranking import SAID, Lists, ListwiseRanker, SequenceStatistics

NEXT, SECOND, LINEAR, POPULARITY, NEWEST = (
    SAID.index(name) for name in ("next", "second", "linear", "popularity", "newest")
)
ITEM_T = np.array([0, 1, 2, 3, 0, 1, 4, 3, 2, 0])
START_T = np.array([0, 0, 0, 0, 4, 4, 4, 7, 7, 7])
VECTOR_ID = np.eye(6, 4, dtype=np.float32)


def lists_of(row_NC: list[list[int]], *history_NL: list[int], score: float = 0.0) -> Lists:
    row = np.array(row_NC, np.int64)
    return Lists(np.array(history_NL, np.int64), row, np.full(row.shape, score, np.float32), row[:, 0])


def said(lists: Lists, *, item_T: NDArray[np.int64] = ITEM_T, known: int = 10) -> NDArray[np.float32]:
    return SequenceStatistics(item_T, START_T, np.arange(len(item_T)) < known, VECTOR_ID).said(lists)


def test_what_followed_is_a_share_of_all_that_followed_and_five_more() -> None:
    found = said(lists_of([[1, 2, 5]], [0, 3, -1]))[0]
    share_C = np.array([2 / (2 + 5), 0, 0])
    logged_C = np.log(share_C + 1e-3)
    assert found[:, NEXT] == pytest.approx(logged_C - logged_C.mean(), abs=1e-5)
    before_C = np.log(np.array([0, 0, 0]) + 1e-3)
    assert found[:, SECOND] == pytest.approx(before_C - before_C.mean(), abs=1e-5)


def test_two_after_the_one_before_the_newest_counts_as_second() -> None:
    found = said(lists_of([[2, 4, 5]], [1, 0]))[0]
    logged_C = np.log(np.array([1 / (2 + 5), 1 / (2 + 5), 0]) + 1e-3)
    assert found[:, SECOND] == pytest.approx(logged_C - logged_C.mean(), abs=1e-5)


def test_popularity_counts_known_interactions_alone() -> None:
    lists = lists_of([[0, 5]], [1])
    for known, count in ((10, 3), (7, 2)):
        found = said(lists, known=known)[0, :, POPULARITY]
        assert found[0] - found[1] == pytest.approx(np.log(count + 1), abs=1e-5)


def test_what_is_not_known_changes_nothing_that_is_said() -> None:
    lists = lists_of([[1, 2, 4]], [0, 3])
    later = ITEM_T.copy()
    later[7:] = 5
    assert np.array_equal(said(lists, known=7), said(lists, item_T=later, known=7))
    assert not np.array_equal(said(lists), said(lists, item_T=later))


def test_the_linear_model_is_ridge_regression_without_the_item_itself() -> None:
    taken_UI = np.zeros((3, 6))
    taken_UI[np.repeat([0, 1, 2], [4, 3, 3]), ITEM_T] = 1
    inverse = np.linalg.inv(taken_UI.T @ taken_UI + 500 * np.eye(6))
    weight_II = -inverse / np.diag(inverse)
    np.fill_diagonal(weight_II, 0)
    expected_C = weight_II[[0, 3]].sum(axis=0)[[1, 2, 5]]
    found = said(lists_of([[1, 2, 5]], [0, 3]))[0, :, LINEAR]
    assert found == pytest.approx(expected_C - expected_C.mean(), rel=1e-4)


def test_a_candidate_like_the_newest_item_is_near_it() -> None:
    found = said(lists_of([[1, 2, 3]], [1, 0]))[0, :, NEWEST]
    assert found == pytest.approx([2 / 3, -1 / 3, -1 / 3], abs=1e-6)


def test_a_place_without_a_candidate_says_nothing_and_comes_last() -> None:
    whole, padded = lists_of([[1, 2]], [0, 3]), lists_of([[1, 2, -1]], [0, 3])
    found = said(padded)
    assert np.array_equal(found[:, :2], said(whole))
    assert not found[:, 2].any()
    assert ListwiseRanker(-np.ones(len(SAID))).order(padded, found)[0, -1] == -1


def test_without_a_history_nothing_is_said_of_what_followed() -> None:
    found = said(lists_of([[1, 2, 5]], [-1, -1]))[0]
    assert not found[:, [NEXT, SECOND, LINEAR, NEWEST]].any()
    assert found[:, POPULARITY].any()


def test_the_weights_that_made_the_choices_are_found() -> None:
    random = np.random.default_rng(0)
    said_NCZ = random.normal(size=(20_000, 8, 3)).astype(np.float32)
    weight_Z = np.array([1.0, -0.5, 0.0])
    chosen_N = (said_NCZ @ weight_Z + random.gumbel(size=(20_000, 8))).argmax(axis=1)
    row_NC = np.tile(np.arange(8), (20_000, 1))
    lists = Lists(np.zeros((20_000, 1), np.int64), row_NC, np.zeros(row_NC.shape, np.float32), chosen_N)
    found = ListwiseRanker.fit(lists, said_NCZ)
    assert found.weight_Z == pytest.approx(weight_Z, abs=0.04)
    missing_N = np.where(np.arange(20_000) < 10_000, chosen_N, 99)
    half = ListwiseRanker.fit(replace(lists, next_N=missing_N), said_NCZ)
    first = Lists(lists.history_NL[:10_000], row_NC[:10_000], lists.score_NC[:10_000], chosen_N[:10_000])
    assert np.array_equal(half.weight_Z, ListwiseRanker.fit(first, said_NCZ[:10_000]).weight_Z)


def test_an_order_keeps_the_candidates_and_leaves_equal_ones_as_they_were() -> None:
    lists = lists_of([[4, 2, 5, 1]], [0])
    said_1CZ = np.array([[[0.0], [1.0], [0.0], [1.0]]], np.float32)
    assert ListwiseRanker(np.array([1.0])).order(lists, said_1CZ).tolist() == [[2, 1, 4, 5]]


def test_lists_that_never_hold_the_next_item_are_refused() -> None:
    lists = replace(lists_of([[1, 2]], [0]), next_N=np.array([4]))
    with pytest.raises(ValueError, match="none of 1 lists of candidates holds what came next"):
        ListwiseRanker.fit(lists, said(lists))
