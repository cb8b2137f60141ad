"""Metrics against their definitions written out, one pair and one list at a time."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from ranking.metrics import auc, ece, gauc, logloss, ndcg_at, recall_at, reliability

_ROWS = st.lists(
    st.tuples(st.booleans(), st.integers(0, 4).map(float), st.integers(0, 3)), min_size=1, max_size=40
).map(lambda rows: tuple(np.array(column) for column in zip(*rows, strict=True)))


def _auc_by_pairs(label_N: NDArray[np.bool_], score_N: NDArray[np.float64]) -> float:
    pairs = [
        (score_N[i] > score_N[j]) + 0.5 * (score_N[i] == score_N[j])
        for i in np.flatnonzero(label_N)
        for j in np.flatnonzero(~label_N)
    ]
    return float(np.mean(pairs)) if pairs else math.nan


@given(_ROWS)
def test_auc_is_the_share_of_pairs_in_the_right_order(rows: tuple[np.ndarray, ...]) -> None:
    label_N, score_N, _ = rows
    np.testing.assert_allclose(auc(label_N, score_N), _auc_by_pairs(label_N, score_N))


@given(_ROWS)
def test_gauc_weighs_groups_by_their_rows_and_counts_those_with_one_class(rows: tuple[np.ndarray, ...]) -> None:
    label_N, score_N, group_N = rows
    values, sizes = [], []
    for group in np.unique(group_N):
        of_N = group_N == group
        values.append(_auc_by_pairs(label_N[of_N], score_N[of_N]))
        sizes.append(of_N.sum())
    defined = ~np.isnan(values)
    found = gauc(label_N, score_N, group_N)
    assert (found.groups, found.left_out) == (defined.sum(), (~defined).sum())
    if defined.any():
        np.testing.assert_allclose(found.mean, np.average(np.array(values)[defined], weights=np.array(sizes)[defined]))
    else:
        assert math.isnan(found.mean)


def test_ndcg_of_a_list_worked_by_hand() -> None:
    gain_N = np.array([0.0, 3.0, 1.0, 7.0])
    score_N = np.array([4.0, 3.0, 2.0, 1.0])
    dcg = 3 / np.log2(3) + 1 / 2
    ideal = 7 + 3 / np.log2(3) + 1 / 2
    found = ndcg_at(3, gain_N, score_N, np.zeros(4))
    np.testing.assert_allclose(found.mean, dcg / ideal)


@given(_ROWS, st.integers(1, 6), st.randoms(use_true_random=False))
def test_of_equal_scores_ndcg_and_recall_are_the_mean_over_random_orders(
    rows: tuple[np.ndarray, ...], k: int, random: object
) -> None:
    label_N, score_N, group_N = rows
    draws = np.random.default_rng(random.randint(0, 2**32))  # type: ignore[attr-defined]
    jitter = [score_N + draws.random(len(score_N)) / 2 for _ in range(300)]
    for metric in (ndcg_at, recall_at):
        exact = metric(k, label_N, score_N, group_N)
        drawn = [metric(k, label_N, score, group_N).mean for score in jitter]
        if exact.groups:
            spread = np.std(drawn) / np.sqrt(len(drawn))
            assert abs(exact.mean - np.mean(drawn)) < 6 * spread + 1e-9
        else:
            assert math.isnan(exact.mean)


@given(_ROWS, st.permutations(range(40)))
def test_the_order_of_rows_makes_no_difference(rows: tuple[np.ndarray, ...], order: list[int]) -> None:
    label_N, score_N, group_N = rows
    moved = [at for at in order if at < len(label_N)]
    for metric in (ndcg_at, recall_at):
        one = metric(2, label_N, score_N, group_N)
        other = metric(2, label_N[moved], score_N[moved], group_N[moved])
        np.testing.assert_allclose(one.mean, other.mean)
        assert (one.groups, one.left_out) == (other.groups, other.left_out)
    np.testing.assert_allclose(ece(label_N, score_N / 4, bins=3), ece(label_N[moved], score_N[moved] / 4, bins=3))


def test_logloss_of_sure_and_wrong_is_large_but_finite() -> None:
    np.testing.assert_allclose(logloss(np.array([1, 0]), np.array([0.8, 0.4])), -np.log([0.8, 0.6]).mean())
    assert logloss(np.array([1]), np.array([0.0])) == pytest.approx(-np.log(1e-7))


def test_ece_is_the_gap_between_what_was_said_and_what_happened() -> None:
    probability_N = np.repeat([0.1, 0.6], [300, 100])
    label_N = np.concatenate([np.repeat([1, 0], [60, 240]), np.repeat([1, 0], [60, 40])])
    assert ece(label_N, probability_N, bins=4) == pytest.approx(0.75 * 0.1)
    curve = reliability(label_N, probability_N, bins=4)
    assert curve.count_B.tolist() == [100] * 4
    np.testing.assert_allclose(curve.observed_B, [0.2, 0.2, 0.2, 0.6])


def test_labels_drawn_from_the_probabilities_are_calibrated() -> None:
    random = np.random.default_rng(0)
    probability_N = random.random(50_000)
    label_N = random.random(50_000) < probability_N
    assert ece(label_N, probability_N) < 0.01
    assert ece(label_N, probability_N**2) > 0.1


def test_metrics_of_nothing_are_nan_and_never_warn() -> None:
    none = np.empty(0)
    assert math.isnan(auc(none, none))
    assert math.isnan(logloss(none, none))
    assert math.isnan(ece(none, none))
    for metric in (ndcg_at, recall_at):
        found = metric(5, none, none, none)
        assert math.isnan(found.mean)
        assert (found.groups, found.left_out) == (0, 0)


def test_nan_scores_and_columns_of_two_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="1 of 2 scores are NaN"):
        auc(np.array([0, 1]), np.array([0.5, np.nan]))
    with pytest.raises(ValueError, match=r"\(2,\) and \(3,\)"):
        logloss(np.zeros(2), np.zeros(3))
