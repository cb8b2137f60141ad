"""The tuning against ladders whose answer is known, the truth against a full sort, the filters against their shares.

Shape letters: A allowed rows, B queries, D embedding width, I items, K results.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.certificates import SHARES, Certificate, Truth, certified, filters, true_scores, tuned
from index.masks import Mask
from index.recall import Recall

D = 8
F = np.float32
ITEM_ID = np.random.default_rng(0).standard_normal((5000, D)).astype(F)
QUERY_BD = np.random.default_rng(1).standard_normal((30, D)).astype(F)
ALL = Mask(np.ones(len(ITEM_ID), np.bool_))


@given(needed=st.integers(1, 3000), least=st.integers(1, 50), most=st.integers(50, 2000))
def test_tuning_stops_at_most_an_eighth_above_the_least_effort_that_reaches_the_target(
    needed: int, least: int, most: int
) -> None:
    asked: list[int] = []

    def measure(k: int, effort: int) -> Recall:
        asked.append(effort)
        low = 0.97 if effort >= needed else 0.96
        return Recall(k=k, value=low, low=low, high=1.0, queries=9)

    efforts, curve = tuned(measure, lambda _: (least, most), ks=[10], target=0.97)
    assert least <= efforts[10] <= most
    if needed > most:
        assert efforts[10] == most
    else:
        assert max(needed, least) <= efforts[10] <= max(needed, least) * 9 / 8 + 1
    assert len(set(asked)) == len(asked) < 25
    assert [each.effort for each in curve] == sorted(asked)


def test_a_larger_k_starts_where_the_smaller_one_ended() -> None:
    asked: list[tuple[int, int]] = []

    def measure(k: int, effort: int) -> Recall:
        asked.append((k, effort))
        return Recall(k=k, value=1.0, low=float(effort >= k), high=1.0, queries=9)

    efforts, _ = tuned(measure, lambda _: (1, 1000), ks=[16, 64], target=0.9)
    assert efforts[16] == 16
    assert min(effort for k, effort in asked if k == 64) == 16


@pytest.mark.parametrize("rows", [None, 40])
def test_truth_is_the_full_sort(rows: int | None) -> None:
    row_A = None if rows is None else np.random.default_rng(2).choice(len(ITEM_ID), rows, replace=False)
    score_BI = QUERY_BD @ ITEM_ID.T
    if row_A is not None:
        left_out_I = np.ones(len(ITEM_ID), np.bool_)
        left_out_I[row_A] = False
        score_BI[:, left_out_I] = -np.inf
    best_BK = np.argsort(-score_BI, axis=1)[:, :60]
    best_BK[~np.isfinite(np.take_along_axis(score_BI, best_BK, 1))] = -1
    truth = Truth(ITEM_ID, QUERY_BD, 60, row_A=row_A)
    assert truth.recall(best_BK).value == 1
    assert truth.recall(best_BK[:, :10]).value == 1
    best_BK[:, :3] = -1
    assert truth.recall(best_BK[:, :20]).value == pytest.approx(17 / 20)


def test_true_scores_are_inner_products() -> None:
    row_BK = np.random.default_rng(3).integers(0, len(ITEM_ID), (30, 2000))
    expected_BK = np.take_along_axis(QUERY_BD @ ITEM_ID.T, row_BK, 1)
    np.testing.assert_allclose(true_scores(ITEM_ID, QUERY_BD, row_BK), expected_BK, rtol=1e-4, atol=1e-5)


def test_filters_allow_their_share_of_the_usable_rows_and_regions_lie_together() -> None:
    vector_ID = ITEM_ID.copy()
    vector_ID[:5] = np.nan
    usable = Mask(np.arange(len(ITEM_ID)) >= 5)
    found = list(filters(vector_ID, usable))
    assert [(share, regions) for share, regions, _ in found] == [(s, r) for s in SHARES for r in (False, True)]
    spread = {}
    for share, regions, mask in found:
        assert mask.count == round(share * usable.count)
        assert not mask.allowed_I[:5].any()
        vector_AD = vector_ID[mask.row_A]
        spread[share, regions] = (vector_AD @ vector_AD.T).max()
    again = list(filters(vector_ID, usable))
    for (_, _, a), (_, _, b) in zip(found, again, strict=True):
        np.testing.assert_array_equal(a.allowed_I, b.allowed_I)
    assert all(spread[share, True] >= spread[share, False] for share in SHARES)


def test_a_share_of_few_rows_is_one_and_of_none_is_nothing() -> None:
    assert [mask.count for _, _, mask in filters(ITEM_ID[:3], Mask(np.ones(3, np.bool_)))] == [1] * 6
    assert list(filters(ITEM_ID[:3], Mask(np.zeros(3, np.bool_)))) == []


def test_a_search_that_misses_half_is_certified_at_half() -> None:
    def search(query_D: np.ndarray, k: int, mask: Mask) -> np.ndarray:
        score_A = ITEM_ID[mask.row_A] @ query_D
        return np.asarray(mask.row_A[np.argsort(-score_A)[:k]][::2])

    found = certified(search, ITEM_ID, QUERY_BD, ALL, efforts={10: 3, 20: 5})
    assert len(found) == 2 * 2 * len(SHARES)
    for each in found:
        rows = min(each.recall.k, round(each.share * len(ITEM_ID)))
        assert each.recall.value == pytest.approx((rows + 1) // 2 / rows)
        assert each.effort == {10: 3, 20: 5}[each.recall.k]


def test_a_point_is_named_by_what_was_asked() -> None:
    recall = Recall(k=100, value=1.0, low=0.9, high=1.0, queries=10)
    assert Certificate(recall, 3).name == "k=100"
    assert Certificate(recall, 3, 0.001).name == "k=100 share=0.001 random"
    assert Certificate(recall, 3, 0.1, True).name == "k=100 share=0.1 regions"
