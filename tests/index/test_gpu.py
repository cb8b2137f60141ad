"""The device seam, with CPU indexes in the GPU's place that ignore masks as it does, and with a GPU where there is one.

Shape letters: B queries, D embedding width, I items, K results.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import faiss
import numpy as np
import pytest
from numpy.typing import NDArray
from vector_cases import D, clustered

from index.gpu import MOST, NominatedByGpu, half_of, hold, on_gpu, pq_of
from index.kinds import Codes, Kind, Rows, Scores
from index.masks import Mask
from index.vectors import Metric, VectorIndex

F = np.float32
HALF = 2.0**-9
"""Half precision rounds inner products of these vectors by less than this, on either side."""


ITEM_ID = clustered(4000, 0)
ITEM_ID[5], ITEM_ID[77] = 0, np.nan
QUERY_BD = clustered(40, 1)
IVF: tuple[Kind, ...] = ("ivf", "ivf_sq8", "ivf_pq")


@cache
def _built(kind: Kind, metric: Metric = "inner_product") -> VectorIndex:
    return VectorIndex.build(ITEM_ID, towers="t", kind=kind, metric=metric, query_BD=QUERY_BD, recall_target=0.95)


class Narrow:
    """A CPU index that takes no selector and no k above that of a GPU."""

    def __init__(self, index: Any) -> None:
        self.index, self.batches = index, 0

    def search(self, query_BD: NDArray[np.float32], k: int, params: Any) -> tuple[Scores, Rows]:
        if k > MOST:
            raise RuntimeError("k > 2048")
        self.batches += 1
        found: tuple[Scores, Rows] = self.index.search(query_BD, k, params=params)
        return found


class NarrowLists(Narrow, faiss.IndexIVFInterface):
    """The same, of an index that has lists."""


def _in_place_of_a_gpu(index: VectorIndex) -> VectorIndex:
    if index.kind == "exact":
        flat: Any = faiss.IndexFlatIP(D)
        row_G = np.delete(np.arange(len(index)), index.quarantined_Q)
        flat.add(index.vector_ID[row_G])
        return index.on(NominatedByGpu(Narrow(flat), row_G))
    return index.on(NominatedByGpu(NarrowLists(_lists_of(index))))


def _lists_of(index: VectorIndex) -> Any:
    """What is copied to a GPU, full."""
    if index.kind == "ivf":
        assert isinstance(index.codes, Codes)
        return index.codes.faiss
    lists = pq_of(index) if index.kind == "ivf_pq" else half_of(index)
    hold(lists, index)
    return lists


def _on_a_real_one(index: VectorIndex) -> VectorIndex:
    if not hasattr(faiss, "StandardGpuResources") or not faiss.get_num_gpus():
        pytest.skip("FAISS sees no GPU")
    return on_gpu(index)


Move = Callable[[VectorIndex], VectorIndex]


@pytest.fixture(params=[_in_place_of_a_gpu, pytest.param(_on_a_real_one, marks=pytest.mark.gpu)])
def moved(request: pytest.FixtureRequest) -> Move:
    move: Move = request.param
    return move


def _agree(index: VectorIndex, device: VectorIndex, k: int, allowed: Mask | None = None) -> None:
    """Both answer rightly, and alike up to ties where they hold the same codes; `ivf_pq` may miss a few other rows."""
    as_good = exist = 0
    for query_D in QUERY_BD:
        near, far = index.search(query_D, k, allowed), device.search(query_D, k, allowed)
        assert len(near) == len(far)
        assert (far.row_K >= 0).all()
        assert len(np.unique(far.row_K)) == len(far)
        assert not np.isin(far.row_K, index.quarantined_Q).any()
        assert allowed is None or allowed.allowed_I[far.row_K].all()
        assert (np.diff(far.score_K) <= 0).all()
        if not len(far):
            continue
        true_K = ITEM_ID[far.row_K] @ query_D
        if index.metric == "cosine":
            true_K /= np.linalg.norm(ITEM_ID[far.row_K], axis=1) * np.linalg.norm(query_D)
        np.testing.assert_allclose(far.score_K, true_K, atol=HALF)
        as_good += int((np.isin(far.row_K, near.row_K) | (far.score_K >= near.score_K[-1] - HALF)).sum())
        exist += len(far)
    assert as_good >= (0.9 if index.kind == "ivf_pq" else 1.0) * exist


@pytest.mark.parametrize("kind", ["exact", *IVF])
@pytest.mark.parametrize("metric", ["inner_product", "cosine"])
def test_a_gpu_answers_as_the_cpu_does_up_to_ties(moved: Move, kind: Kind, metric: Metric) -> None:
    index = _built(kind, metric)
    device = moved(index)
    for k in (1, 10, 100):
        _agree(index, device, k)
        row_BK, score_BK = device.search_batch(QUERY_BD, k)
        for row_K, score_K, query_D in zip(row_BK, score_BK, QUERY_BD, strict=True):
            hits = device.search(query_D, k)
            np.testing.assert_allclose(score_K, hits.score_K, atol=HALF)
            assert (row_K >= 0).all()


@pytest.mark.parametrize("kind", ["exact", *IVF])
@pytest.mark.parametrize("share", [0.0, 0.001, 0.05, 0.5, 0.8, 0.99])
def test_no_row_leaves_that_the_mask_does_not_allow_though_a_gpu_knows_no_masks(
    moved: Move, kind: Kind, share: float
) -> None:
    index = _built(kind)
    allowed = Mask(np.random.default_rng(4).random(len(ITEM_ID)) < share)
    _agree(index, moved(index), 50, allowed)


@pytest.mark.parametrize("kind", ["exact", *IVF])
def test_a_k_beyond_what_a_gpu_selects_is_answered_by_the_cpu(moved: Move, kind: Kind) -> None:
    index = _built(kind)
    device = moved(index)
    for k in (MOST, MOST + 1, 10**5):
        hits = device.search(QUERY_BD[0], k)
        assert len(hits) == min(k, len(ITEM_ID) - 2)
        assert (hits.row_K >= 0).all()


def test_one_thread_asks_and_those_who_wait_together_are_one_batch() -> None:
    index = _built("ivf")
    narrow = NarrowLists(_lists_of(index))
    device = NominatedByGpu(narrow)
    on = index.on(device)
    with ThreadPoolExecutor(8) as threads:
        hits = list(threads.map(lambda query_D: on.search(query_D, 20).row_K.tolist(), list(QUERY_BD) * 5))
    assert hits == [index.search(query_D, 20).row_K.tolist() for query_D in QUERY_BD] * 5
    assert narrow.batches <= len(hits)
    device.close()
    assert on.search(QUERY_BD[0], 20).row_K.tolist() == hits[0], "a closed device leaves it to the CPU"


def test_a_device_that_fails_leaves_the_search_to_the_cpu() -> None:
    class Lost:
        def search(self, *_: Any, **__: Any) -> tuple[Scores, Rows]:
            raise RuntimeError("CUDA error 2 out of memory")

    index = _built("exact")
    on = index.on(NominatedByGpu(Lost()))
    assert on.search(QUERY_BD[0], 9).row_K.tolist() == index.search(QUERY_BD[0], 9).row_K.tolist()


@pytest.mark.parametrize(("d", "bytes_each"), [(16, 8), (64, 32), (6, 3), (128, 64), (256, 64), (384, 96), (100, 0)])
def test_the_gpus_product_quantizer_has_as_many_bits_where_the_width_can_be_cut(d: int, bytes_each: int) -> None:
    vector_ID = np.random.default_rng(0).standard_normal((700, d)).astype(F)
    pq = pq_of(VectorIndex.build(vector_ID, towers="t", kind="ivf_pq", recall_target=0.1))
    assert (0 if pq is None else pq.pq.M) == bytes_each


@pytest.mark.parametrize("kind", ["hnsw", "exact"])
def test_what_has_no_place_on_a_gpu_stays_on_the_cpu(kind: Kind) -> None:
    vector_ID = ITEM_ID[:0] if kind == "exact" else ITEM_ID
    index = VectorIndex.build(vector_ID, towers="t", kind=kind, query_BD=QUERY_BD)
    assert on_gpu(index) is index
