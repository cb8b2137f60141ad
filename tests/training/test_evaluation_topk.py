import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from training.evaluation.topk import ItemSets, hits, mean, ndcg, recall, top_k


def item_sets(*sets: set[int]) -> ItemSets:
    pairs = [(query, row) for query, items in enumerate(sets) for row in items]
    query_T, row_T = np.array(pairs, np.int64).reshape(-1, 2).T
    return ItemSets.of(query_T, row_T, queries=len(sets))


def test_sets_are_cut_by_query_sorted_and_without_repeats() -> None:
    sets = ItemSets.of(np.array([2, 0, 2, 2]), np.array([5, 1, 3, 5]), queries=4)
    assert sets.offset_B1.tolist() == [0, 1, 1, 3, 3]
    assert sets.row_T.tolist() == [1, 3, 5]
    assert sets.size_B.tolist() == [1, 0, 2, 0]
    assert sets.query_T.tolist() == [0, 2, 2]


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(0, 9), st.integers(1, 12), st.integers(1, 15), st.integers(1, 4))
def test_ranking_equals_sorting_everything(seed: int, queries: int, items: int, k: int, block: int) -> None:
    random = np.random.default_rng(seed)
    query_BD = random.normal(size=(queries, 3)).astype(np.float32)
    item_ID = random.normal(size=(items, 3)).astype(np.float32)
    hidden = [{int(row) for row in random.integers(items, size=random.integers(items + 1))} for _ in range(queries)]
    ranked_BK = top_k(query_BD, item_ID, k, masked=item_sets(*hidden), block=block)
    assert ranked_BK.shape == (queries, min(k, items))
    for query_D, ranked_K, out in zip(query_BD, ranked_BK.tolist(), hidden, strict=True):
        score = item_ID @ query_D
        expected = sorted(set(range(items)) - out, key=lambda row: -score[row])[:k]
        assert ranked_K == expected + [-1] * (min(k, items) - len(expected))


def test_without_a_mask_everything_is_ranked() -> None:
    item_ID = np.array([[0.1], [0.3], [0.2]], np.float32)
    assert top_k(np.ones((1, 1), np.float32), item_ID, 9).tolist() == [[1, 2, 0]]


def test_hits_are_the_relevant_places_and_the_empty_place_is_none() -> None:
    ranked_BK = np.array([[4, 0, -1], [1, 9, 0], [-1, -1, -1]])
    relevant = item_sets({0, 7}, {0, 1}, {0})
    assert hits(ranked_BK, relevant).tolist() == [[False, True, False], [True, False, True], [False, False, False]]


@settings(deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(1, 10), st.integers(1, 6))
def test_metrics_equal_the_loops_of_their_definitions(seed: int, queries: int, items: int, k: int) -> None:
    random = np.random.default_rng(seed)
    k = min(k, items)
    ranked_BK = np.stack([random.permutation(items)[:k] for _ in range(queries)])
    relevant = [{int(row) for row in random.integers(items, size=random.integers(5))} for _ in range(queries)]
    sets = item_sets(*relevant)
    hit_BK = hits(ranked_BK, sets)
    for query in range(queries):
        wanted = relevant[query]
        if not wanted:
            assert math.isnan(recall(hit_BK, sets.size_B)[query])
            assert math.isnan(ndcg(hit_BK, sets.size_B)[query])
            continue
        found = [row in wanted for row in ranked_BK[query].tolist()]
        gain = sum(1 / math.log2(place + 2) for place, hit in enumerate(found) if hit)
        best = sum(1 / math.log2(place + 2) for place in range(min(k, len(wanted))))
        assert recall(hit_BK, sets.size_B)[query] == pytest.approx(sum(found) / len(wanted))
        assert ndcg(hit_BK, sets.size_B)[query] == pytest.approx(gain / best)


def test_ndcg_by_hand() -> None:
    # Relevant: 3 items, found at places 1 and 3 of 4. DCG = 1 + 1/2 = 1.5; ideal 1 + 0.6309 + 0.5 = 2.1309.
    hit_BK = np.array([[True, False, True, False]])
    assert ndcg(hit_BK, np.array([3]))[0] == pytest.approx(1.5 / (1 + 1 / math.log2(3) + 0.5))
    # With 9 relevant items only 4 places can hold one.
    ideal = sum(1 / math.log2(place + 1) for place in (1, 2, 3, 4))
    assert ndcg(hit_BK, np.array([9]))[0] == pytest.approx(1.5 / ideal)


def test_the_mean_leaves_out_what_is_undefined() -> None:
    assert mean(np.array([0.5, np.nan, 1.0])) == 0.75
    assert math.isnan(mean(np.array([np.nan])))
