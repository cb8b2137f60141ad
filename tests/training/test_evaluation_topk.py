import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from policy import metrics as of_one_slate
from training.evaluation.topk import (
    ItemSets,
    Ranking,
    coverage,
    difference,
    diversity,
    gini,
    hit_rate,
    hits,
    interval,
    mean,
    mrr,
    ndcg,
    novelty,
    recall,
    thirds,
    top_k,
)


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


def random_rankings(
    seed: int, *, queries: int, items: int, k: int, least: int = 0
) -> tuple[NDArray[np.int64], list[set[int]]]:
    """Rankings of which some end early, and what is relevant: `least` items or more of each query."""
    random = np.random.default_rng(seed)
    ranked_BK = np.stack([random.permutation(items)[:k] for _ in range(queries)])
    ranked_BK[np.arange(ranked_BK.shape[1]) >= random.integers(ranked_BK.shape[1] + 1, size=queries)[:, None]] = -1
    most = random.integers(least, 6, size=queries)
    return ranked_BK, [{int(row) for row in random.choice(items, min(size, items), replace=False)} for size in most]


@pytest.mark.parametrize("k", [1, 5, 20])
def test_metrics_equal_those_of_trec_eval(k: int) -> None:
    pytrec_eval = pytest.importorskip("pytrec_eval")
    ranked_BK, relevant = random_rankings(k, queries=300, items=60, k=k, least=1)
    sets = item_sets(*relevant)
    names = (f"recall.{k}", f"ndcg_cut.{k}", "recip_rank", f"success.{k}")
    judge = pytrec_eval.RelevanceEvaluator(
        {f"q{query}": {str(row): 1 for row in wanted} for query, wanted in enumerate(relevant)}, set(names)
    )
    run = {
        f"q{query}": {str(row): float(-place) for place, row in enumerate(ranked_K) if row >= 0}
        for query, ranked_K in enumerate(ranked_BK.tolist())
    }
    judged = judge.evaluate({query: scores for query, scores in run.items() if scores})
    hit_BK = hits(ranked_BK, sets)
    for metric, name in zip((recall, ndcg, mrr, hit_rate), names, strict=True):
        # trec_eval knows no query without a ranking; to us it is a query for which nothing was found.
        judged_B = [judged.get(f"q{query}", {}).get(name.replace(".", "_"), 0.0) for query in range(300)]
        assert metric(hit_BK, sets.size_B) == pytest.approx(judged_B)
        assert 0 < np.mean(judged_B) < 1


def test_mrr_and_hit_rate_by_hand() -> None:
    hit_BK = np.array([[False, True, True], [False, False, False], [False, False, False]])
    relevant_B = np.array([2, 1, 0])
    assert mrr(hit_BK, relevant_B).tolist()[:2] == [0.5, 0.0]
    assert hit_rate(hit_BK, relevant_B).tolist()[:2] == [1.0, 0.0]
    assert np.isnan([mrr(hit_BK, relevant_B)[2], hit_rate(hit_BK, relevant_B)[2]]).all()


@given(st.integers(0, 10**6), st.integers(1, 8), st.integers(1, 10), st.integers(1, 6))
def test_novelty_diversity_and_gini_equal_those_of_one_slate(seed: int, queries: int, items: int, k: int) -> None:
    ranked_BK, _ = random_rankings(seed, queries=queries, items=items, k=k)
    random = np.random.default_rng(seed)
    popularity_I = random.integers(9, size=items)
    vector_ID = random.normal(size=(items, 3)).astype(np.float32)
    for ranked_K, novelty_of, diversity_of in zip(
        ranked_BK, novelty(ranked_BK, popularity_I), diversity(ranked_BK, vector_ID), strict=True
    ):
        row_K = ranked_K[ranked_K >= 0]
        assert novelty_of == pytest.approx(of_one_slate.novelty(row_K, popularity_I), nan_ok=True)
        expected = of_one_slate.intra_list_diversity(vector_ID[row_K])
        assert diversity_of == pytest.approx(expected, nan_ok=True, abs=1e-6)
    shown_I = np.bincount(ranked_BK[ranked_BK >= 0], minlength=items)
    assert gini(ranked_BK, items) == pytest.approx(of_one_slate.exposure_gini(shown_I), nan_ok=True)
    assert coverage(ranked_BK, items) == pytest.approx((shown_I > 0).mean())


def test_vectors_of_length_zero_are_unrelated_to_all() -> None:
    vector_ID = np.array([[1, 0], [1, 0], [0, 0]], np.float32)
    assert diversity(np.array([[0, 1], [0, 2]]), vector_ID).tolist() == [0, 1]


@given(st.lists(st.integers(0, 5), max_size=20))
def test_thirds_are_of_equal_size_and_in_order(counts: list[int]) -> None:
    third_N = thirds(np.array(counts, np.int64))
    sizes = np.bincount(third_N, minlength=3)
    assert sizes.max() - sizes.min() <= 1
    for low, high in ((0, 1), (1, 2)):
        held = [[count for count, third in zip(counts, third_N, strict=True) if third == of] for of in (low, high)]
        assert max(held[0], default=0) <= min(held[1], default=5)


def test_an_interval_holds_the_true_mean_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    held = 0
    for seed in range(100):
        low, high = interval(random.exponential(size=200), seed=seed)
        held += low <= 1 <= high
    assert 88 <= held <= 100
    assert interval(np.array([np.nan, 2.0, 2.0]), seed=0) == (2, 2)
    assert np.isnan(interval(np.array([np.nan]), seed=0)).all()


def test_a_difference_is_paired_and_its_p_is_even_where_there_is_none() -> None:
    random = np.random.default_rng(0)
    of_query_B = random.normal(size=400)
    better = difference(of_query_B + 0.1 + 0.01 * random.normal(size=400), of_query_B, seed=0)
    assert better.low < 0.1 < better.high
    assert better.p == pytest.approx(1 / 1001)
    p_N = [difference(random.normal(size=50), random.normal(size=50), seed=seed).p for seed in range(60)]
    assert 0.35 < np.mean(p_N) < 0.65
    assert difference(of_query_B, of_query_B, seed=0).p == 1
    undefined = difference(np.array([np.nan, 1.0]), np.array([1.0, np.nan]), seed=0)
    assert np.isnan([undefined.mean, undefined.low, undefined.high, undefined.p]).all()
    with pytest.raises(ValueError, match="runs of 2 and 3 queries"):
        difference(np.zeros(2), np.zeros(3), seed=0)


def test_slices_are_of_the_users_and_items_that_they_name() -> None:
    """The least active user finds all, the most active nothing; of items only the most popular are found."""
    found = Ranking(
        ranked_BK=np.array([[2, -1], [2, 0], [0, 1]]),
        relevant=item_sets({2}, {1, 2}, {2}),
        activity_B=np.array([1, 5, 9]),
        popularity_I=np.array([0, 3, 7]),
    ).metrics(2, seed=0)
    users = [found[f"recall@2.users_{third}"] for third in ("low", "middle", "high")]
    assert users == [1, 0.5, 0]
    assert found["recall@2"] == pytest.approx(0.5)
    assert found["recall@2.low"] <= 0.5 <= found["recall@2.high"]
    assert math.isnan(found["recall@2.items_low"])
    assert found["recall@2.items_middle"] == 0
    assert found["recall@2.items_high"] == pytest.approx(2 / 3)
    assert "diversity@2" not in found
