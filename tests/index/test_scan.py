"""Inverted lists of 8-bit codes."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from index.masks import Mask
from index.scan import ScannedLists


def clustered(count: int, d: int, seed: int = 0) -> NDArray[np.float32]:
    random = np.random.default_rng(seed)
    centre_CD = random.standard_normal((40, d))
    vector_ID = centre_CD[random.integers(40, size=count)] + 0.5 * random.standard_normal((count, d))
    return vector_ID.astype(np.float32)


def exact(vector_ID: NDArray[np.float32], query_D: NDArray[np.float32], k: int) -> NDArray[np.int64]:
    score_I = vector_ID.astype(np.float64) @ query_D.astype(np.float64)
    return np.argsort(-score_I, kind="stable")[:k]


def found_rows(index: ScannedLists, query_D: NDArray[np.float32], k: int, lists: int) -> NDArray[np.int64]:
    row_K: NDArray[np.int64] = index.search(query_D[None], k, lists)[1][0]
    return row_K


def built(vector_ID: NDArray[np.float32], lists: int) -> ScannedLists:
    return ScannedLists.build(vector_ID, row_G=np.arange(len(vector_ID)), lists=lists)


@settings(max_examples=40)
@given(
    shape=st.tuples(st.integers(1, 300), st.sampled_from([1, 3, 16, 33, 64])),
    k=st.integers(1, 350),
    lists=st.integers(1, 12),
    share=st.sampled_from([0.0, 0.02, 0.5, 1.0]),
    seed=st.integers(0, 99),
)
def test_what_is_found_is_allowed_scored_exactly_and_in_order(
    shape: tuple[int, int], k: int, lists: int, share: float, seed: int
) -> None:
    count, d = shape
    vector_ID = clustered(count, d, seed)
    query_D = clustered(1, d, seed + 1)[0]
    mask = Mask(np.random.default_rng(seed).random(count) < share)
    index = built(vector_ID, lists)
    score_1K, row_1K = index.scan_lists(
        query_D, k, mask.bits, list_N=np.arange(index.nlist), score_N=np.zeros(index.nlist, np.float32)
    )
    row_K, score_K = row_1K[0, : mask.count], score_1K[0, : mask.count]
    assert row_1K.shape == score_1K.shape == (1, k)
    assert (row_1K[0, mask.count :] == -1).all()
    assert len(np.unique(row_K)) == len(row_K)
    assert mask.allowed_I[row_K].all()
    np.testing.assert_allclose(score_K, vector_ID[row_K] @ query_D, rtol=1e-4, atol=1e-4)
    assert (np.diff(score_K) <= 0).all()


def test_with_all_lists_read_nearly_every_exact_answer_is_found() -> None:
    vector_ID, query_BD = clustered(5000, 32), clustered(50, 32, seed=1)
    index = built(vector_ID, 50)
    found = [
        np.isin(exact(vector_ID, query_D, 100), found_rows(index, query_D, 100, 50)).mean() for query_D in query_BD
    ]
    assert np.mean(found) > 0.99


def test_long_vectors_cost_short_ones_no_precision() -> None:
    vector_ID = clustered(2000, 32)
    vector_ID[:1000] *= 0.001
    index = ScannedLists.build(vector_ID, row_G=np.arange(1000), lists=4)
    query_D = clustered(1, 32, seed=1)[0]
    row_K = found_rows(index, query_D, 50, 4)
    assert np.isin(row_K, exact(vector_ID[:1000], query_D, 50)).mean() > 0.95


def test_a_cosine_divides_by_the_length() -> None:
    vector_ID = clustered(300, 8)
    length_I = np.linalg.norm(vector_ID, axis=1)
    index = ScannedLists.build(vector_ID, row_G=np.arange(300), lists=4, length_I=length_I)
    query_D = clustered(1, 8, seed=1)[0]
    (score_K,), (row_K,) = index.search(query_D[None], 300, 4)
    unit_ID = vector_ID / length_I[:, None]
    assert (np.isin(row_K[:50], exact(unit_ID, query_D, 50))).mean() > 0.95
    np.testing.assert_allclose(score_K, unit_ID[row_K] @ query_D, rtol=1e-4, atol=1e-5)


def test_more_lists_find_more() -> None:
    vector_ID, query_BD = clustered(5000, 16), clustered(40, 16, seed=1)
    index = built(vector_ID, 64)

    def recall(lists: int) -> float:
        return float(
            np.mean([np.isin(exact(vector_ID, q, 50), found_rows(index, q, 50, lists)).mean() for q in query_BD])
        )

    assert recall(1) < recall(8) <= recall(64)
    assert recall(64) > 0.98


def test_equal_scores_come_in_the_order_of_rows() -> None:
    vector_ID = np.tile(clustered(3, 8), (20, 1))
    (score_K,), (row_K,) = built(vector_ID, 4).search(vector_ID[:1], 60, 4)
    assert [tuple(pair) for pair in np.c_[-score_K, row_K]] == sorted(tuple(pair) for pair in np.c_[-score_K, row_K])


def test_rows_that_were_left_out_are_never_found() -> None:
    vector_ID = clustered(100, 8)
    kept_G = np.arange(0, 100, 3)
    index = ScannedLists.build(vector_ID, row_G=kept_G, lists=5)
    assert sorted(found_rows(index, vector_ID[1], 100, 5)) == [-1] * (100 - len(kept_G)) + kept_G.tolist()


def test_a_zero_query_finds_something_and_scores_it_zero() -> None:
    (score_K,), (row_K,) = built(clustered(30, 4), 3).search(np.zeros((1, 4), np.float32), 5, 3)
    assert row_K.tolist() == [0, 1, 2, 3, 4]
    assert not score_K.any()


def test_building_again_gives_the_same_bytes(tmp_path: Path) -> None:
    vector_ID = clustered(3000, 16)
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        built(vector_ID, 32).write(tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_what_is_loaded_answers_as_what_was_saved(tmp_path: Path) -> None:
    vector_ID = clustered(500, 16)
    index = built(vector_ID, 8)
    index.write(tmp_path)
    loaded = ScannedLists.read(tmp_path, vector_ID)
    assert loaded.held == 500
    assert loaded.bytes == index.bytes < 500 * (16 + 8) + 8 * (16 + 4 + 8) + 8 + 1
    for ours, theirs in zip(index.search(vector_ID[:7], 20, 3), loaded.search(vector_ID[:7], 20, 3), strict=True):
        np.testing.assert_array_equal(ours, theirs)


@pytest.mark.parametrize("name", ["code_GD", "scale_G", "row_G", "offset_C1", "centroid_CD"])
def test_arrays_that_do_not_belong_together_are_refused(tmp_path: Path, name: str) -> None:
    vector_ID = clustered(50, 4)
    built(vector_ID, 5).write(tmp_path)
    path = tmp_path / f"lists.{name}.npy"
    np.save(path, np.load(path, allow_pickle=False)[:-1], allow_pickle=False)
    with pytest.raises(ValueError, match=r"expected|cut 50 vectors"):
        ScannedLists.read(tmp_path, vector_ID)


def test_rows_beyond_the_vectors_are_refused(tmp_path: Path) -> None:
    vector_ID = clustered(50, 4)
    built(vector_ID, 5).write(tmp_path)
    with pytest.raises(ValueError, match="rows outside the 49 vectors"):
        ScannedLists.read(tmp_path, vector_ID[:49])
