"""A grown index against one built of all its rows.

Shape letters: B queries, D embedding width, I rows, J rows of the tail, K results.
"""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from index.delta import GrownIndex
from index.masks import Mask
from index.types import Hits
from index.vectors import Metric, VectorIndex

D, BASE = 8, 300
F = np.float32
ITEM_ID = np.random.default_rng(0).standard_normal((400, D)).astype(F)
QUERY_BD = np.random.default_rng(1).standard_normal((10, D)).astype(F)
METRICS: tuple[Metric, ...] = ("inner_product", "cosine")
BASES = {metric: VectorIndex.build(ITEM_ID[:BASE], towers="t", metric=metric) for metric in METRICS}


def _scores(query_D: NDArray[np.float32], metric: Metric) -> NDArray[np.float64]:
    score_I = ITEM_ID.astype(np.float64) @ query_D
    if metric == "cosine":
        score_I /= np.linalg.norm(ITEM_ID, axis=1) * np.linalg.norm(query_D)
    return np.asarray(score_I)


@given(
    seed=st.integers(0, 2**32 - 1),
    k=st.integers(0, 450),
    tail=st.integers(0, 100),
    share=st.sampled_from([None, 0.0, 0.02, 0.5, 1.0]),
    metric=st.sampled_from(METRICS),
)
def test_hits_are_the_best_of_base_and_tail(
    seed: int, k: int, *, tail: int, share: float | None, metric: Metric
) -> None:
    grown = GrownIndex(BASES[metric], ITEM_ID[BASE : BASE + tail])
    query_D = QUERY_BD[seed % len(QUERY_BD)]
    allowed = None if share is None else Mask(np.random.default_rng(seed).random(len(grown)) < share)
    allowed_I = np.ones(len(grown), np.bool_) if allowed is None else allowed.allowed_I
    hits = grown.search(query_D, k, allowed)
    score_I = _scores(query_D, metric)[: len(grown)]
    assert len(hits) == min(k, int(allowed_I.sum())) == len(np.unique(hits.row_K))
    assert allowed_I[hits.row_K].all()
    assert (np.diff(hits.score_K) <= 0).all()
    assert hits.score_K.dtype == np.float32
    np.testing.assert_allclose(hits.score_K, score_I[hits.row_K], atol=0.01)
    np.testing.assert_allclose(hits.score_K, np.sort(score_I[allowed_I])[::-1][:k], atol=0.01)


def test_ties_go_by_row() -> None:
    vector_ID = np.tile(ITEM_ID[:1], (6, 1)).astype(np.float16).astype(F)
    grown = GrownIndex(VectorIndex.build(vector_ID[:3], towers="t"), vector_ID[3:])
    hits = grown.search(np.eye(D, dtype=F)[0], 5)
    assert hits.row_K.tolist() == ([0, 1, 2, 3, 4])
    assert len(set(hits.score_K.tolist())) == 1


def test_appending_leaves_older_values_as_they_were() -> None:
    buffer = np.zeros((10, D), F)
    buffer[:2] = ITEM_ID[BASE : BASE + 2]
    older = GrownIndex(BASES["inner_product"], buffer[:2])
    before = older.search(QUERY_BD[0], 400)
    buffer[2] = 10 * QUERY_BD[0]
    newer = GrownIndex(BASES["inner_product"], buffer[:3])
    np.testing.assert_array_equal(older.search(QUERY_BD[0], 400).row_K, before.row_K)
    assert newer.search(QUERY_BD[0], 1).row_K.tolist() == [BASE + 2]
    assert (len(older), len(newer), newer.d, newer.towers, newer.metric) == (302, 303, D, "t", "inner_product")


@pytest.mark.parametrize("metric", METRICS)
def test_a_batch_is_its_single_searches_padded(metric: Metric) -> None:
    grown = GrownIndex(BASES[metric], ITEM_ID[BASE:])
    for k in (7, 405):
        row_BK, score_BK = grown.search_batch(QUERY_BD, k)
        for row_K, score_K, query_D in zip(row_BK, score_BK, QUERY_BD, strict=True):
            hits = grown.search(query_D, k)
            np.testing.assert_array_equal(row_K[: len(hits)], hits.row_K)
            np.testing.assert_allclose(score_K[: len(hits)], hits.score_K, rtol=1e-4, atol=1e-5)
            assert (row_K[len(hits) :] == -1).all()
            assert (score_K[len(hits) :] == -np.inf).all()


class _Partial:
    towers, metric, d = "t", "inner_product", D

    def __len__(self) -> int:
        return BASE

    @property
    def of_items(self) -> "_Partial":
        return self

    def search(self, query_D: NDArray[np.float32], k: int, allowed: Mask | None = None) -> Hits:  # noqa: ARG002
        return Hits(np.array([3]), np.array([0.5], F), partial=True)

    def search_batch(self, query_BD: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        raise NotImplementedError


def test_a_part_that_did_not_answer_is_told_of() -> None:
    for tail in (0, 50):
        assert GrownIndex(_Partial(), ITEM_ID[:tail]).search(QUERY_BD[0], 5).partial


def test_an_empty_base_is_all_tail() -> None:
    grown = GrownIndex(VectorIndex.build(ITEM_ID[:0], towers="t"), ITEM_ID)
    score_I = ITEM_ID @ QUERY_BD[0]
    assert grown.search(QUERY_BD[0], 5).row_K.tolist() == np.argsort(-score_I)[:5].tolist()


def test_misuse_names_what_is_wrong() -> None:
    base = BASES["inner_product"]
    with pytest.raises(ValueError, match=r"the tail has shape \(5, 7\), the index has dimension 8"):
        GrownIndex(base, np.ones((5, 7), F))
    with pytest.raises(ValueError, match="the tail is float64"):
        GrownIndex(base, np.ones((5, D)))  # type: ignore[arg-type]
    grown = GrownIndex(base, ITEM_ID[BASE:])
    with pytest.raises(ValueError, match="a mask of 300 rows for 400 rows"):
        grown.search(QUERY_BD[0], 5, Mask(np.ones(300, np.bool_)))
    with pytest.raises(ValueError, match="dimension 7, the index has 8"):
        grown.search(QUERY_BD[0, :7], 5)
    with pytest.raises(ValueError, match="k is -1"):
        grown.search(QUERY_BD[0], -1)
