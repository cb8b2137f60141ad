"""The sharded index against one index of all rows, and against shards that fail.

Shape letters: B queries, D embedding width, I items, K results.
"""

import gc
import json
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from vector_cases import D, clustered

from index.kinds import Kind
from index.masks import Mask
from index.shards import Part, ShardedIndex, is_sharded, opened_here
from index.types import Hits
from index.vectors import VectorIndex

SHARDS = 3
F = np.float32


ITEM_ID = clustered(3000, 0)
QUERY_BD = clustered(60, 1)
SHARD_I = np.random.default_rng(2).integers(0, SHARDS, len(ITEM_ID))
HALF = 2.0**-10
"""Half precision rounds a unit vector's inner product by less than this."""


@pytest.fixture(scope="module")
def single() -> VectorIndex:
    return VectorIndex.build(ITEM_ID, towers="t", kind="exact", query_BD=QUERY_BD)


@pytest.fixture(scope="module")
def built() -> ShardedIndex:
    return ShardedIndex.build(ITEM_ID, shard_I=SHARD_I, towers="t", kind="exact", query_BD=QUERY_BD)


@pytest.fixture(scope="module")
def folder(built: ShardedIndex, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    built.save(folder)
    return folder


@given(
    seed=st.integers(0, 2**32 - 1), k=st.integers(0, 3100), share=st.sampled_from([None, 0.0, 0.001, 0.05, 0.9, 1.0])
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_the_shards_find_what_one_index_finds(
    single: VectorIndex, built: ShardedIndex, seed: int, k: int, share: float | None
) -> None:
    query_D = QUERY_BD[seed % len(QUERY_BD)]
    allowed = None if share is None else Mask(np.random.default_rng(seed).random(len(ITEM_ID)) < share)
    one, many = single.search(query_D, k, allowed), built.search(query_D, k, allowed)
    assert len(one) == len(many) == min(k, len(ITEM_ID) if allowed is None else allowed.count)
    np.testing.assert_allclose(one.score_K, many.score_K, atol=HALF)
    np.testing.assert_allclose(many.score_K, ITEM_ID[many.row_K] @ query_D, atol=HALF)
    assert (np.diff(many.score_K) <= 0).all()
    assert len(np.unique(many.row_K)) == len(many)
    assert allowed is None or allowed.allowed_I[many.row_K].all()
    assert not many.partial


def test_a_batch_finds_what_single_searches_find(built: ShardedIndex) -> None:
    for k in (1, 40, 3100):
        row_BK, score_BK = built.search_batch(QUERY_BD, k)
        assert row_BK.shape == score_BK.shape == (len(QUERY_BD), k)
        for row_K, score_K, query_D in zip(row_BK, score_BK, QUERY_BD, strict=True):
            hits = built.search(query_D, k)
            np.testing.assert_allclose(score_K[: len(hits)], hits.score_K, atol=1e-6)
            assert (row_K[len(hits) :] == -1).all()
            assert np.isneginf(score_K[len(hits) :]).all()


@pytest.mark.parametrize("kind", ["ivf", "ivf_sq8", "ivf_pq", "hnsw"])
def test_approximate_shards_reach_the_recall_that_the_whole_certifies(kind: Kind) -> None:
    index = ShardedIndex.build(
        ITEM_ID, shard_I=SHARD_I, towers="t", kind=kind, query_BD=QUERY_BD, k=20, recall_target=0.9
    )
    assert index.kind == kind
    assert [each.recall.k for each in index.certificates if each.share == 1] == [20, 100, 500]
    for each in index.certificates[:3]:
        k, shared = each.recall.k, 0
        for query_D in QUERY_BD:
            exact_K = np.argsort(-(ITEM_ID @ query_D))[:k]
            shared += len(np.intersect1d(exact_K, index.search(query_D, k).row_K))
        assert shared / (k * len(QUERY_BD)) == pytest.approx(each.recall.value, abs=0.003)
        assert each.recall.low >= 0.9
    assert index.recall == min(each.recall.value for each in index.certificates[:3])
    assert {each.share for each in index.certificates} > {1.0}


def test_cosine_shards_take_no_notice_of_length() -> None:
    long_ID = ITEM_ID * np.random.default_rng(5).uniform(0.5, 2, (len(ITEM_ID), 1)).astype(F)
    index = ShardedIndex.build(
        long_ID, shard_I=SHARD_I, towers="t", kind="exact", metric="cosine", query_BD=7 * QUERY_BD
    )
    assert index.recall > 0.999
    for query_D in QUERY_BD[:10]:
        hits = index.search(3 * query_D, 20)
        np.testing.assert_allclose(hits.score_K, np.sort(ITEM_ID @ query_D)[::-1][:20], atol=HALF)


def test_unusable_vectors_are_in_no_shard_however_small_the_shards() -> None:
    vector_ID = np.tile(ITEM_ID, (2, 1))
    vector_ID[7], vector_ID[2500] = np.nan, 1e6
    index = ShardedIndex.build(vector_ID, shard_I=np.arange(6000) % 50, towers="t", kind="exact", query_BD=QUERY_BD)
    assert index.quarantined_Q.tolist() == [7, 2500]
    assert index.quarantined == 2
    assert len(index) == 6000
    assert sorted(index.search(QUERY_BD[0], 10**4).row_K.tolist()) == sorted({*range(6000)} - {7, 2500})
    vector_ID[:7] = 0
    with pytest.raises(ValueError, match=r"9 of 6000 item vectors are NaN, infinite, zero or huge .* row 0"):
        ShardedIndex.build(vector_ID, shard_I=np.arange(6000) % 50, towers="t")


def test_a_saved_index_answers_as_the_built_one_and_maps_its_files(
    built: ShardedIndex, folder: Path, tmp_path: Path
) -> None:
    loaded = ShardedIndex.load(folder, ITEM_ID, patience_ms=6e4)
    assert is_sharded(folder)
    assert not is_sharded(tmp_path)
    for name in ("towers", "metric", "kind", "d", "typical_norm", "efforts", "curve", "quarantined", "recall"):
        assert getattr(loaded, name) == getattr(built, name), name
    assert len(loaded) == len(built)
    mask = Mask(np.arange(len(ITEM_ID)) % 7 == 0)
    for query_D in QUERY_BD[:10]:
        for allowed in (None, mask):
            np.testing.assert_array_equal(
                loaded.search(query_D, 50, allowed).row_K, built.search(query_D, 50, allowed).row_K
            )
    for shard in loaded.shards:
        part = shard.part
        assert isinstance(part, VectorIndex)
        assert not part.vector_ID.flags.owndata
        np.testing.assert_array_equal(part.vector_ID, ITEM_ID[shard.row_S])


def test_every_search_is_timed_by_the_clock_that_was_given(built: ShardedIndex) -> None:
    ticks = iter(range(10**6))
    taken_ms = built.latencies_ms(QUERY_BD[:3], clock=lambda: float(next(ticks)))
    assert taken_ms == {f"{each.name} effort={each.effort}": 1000.0 for each in built.certificates}
    assert len(taken_ms) == len(built.certificates)


def test_a_mask_is_split_once_and_forgotten_with_it(built: ShardedIndex) -> None:
    mask = Mask(np.arange(len(ITEM_ID)) % 2 == 0)
    built.search(QUERY_BD[0], 5, mask)
    split = [shard._masks[mask] for shard in built.shards]
    built.search(QUERY_BD[1], 5, mask)
    assert [shard._masks[mask] for shard in built.shards] == split
    del mask
    gc.collect()
    assert not any(len(shard._masks) for shard in built.shards)


class Unsteady:
    """A part that can be made to fail or to hang; notes how often it was opened."""

    def __init__(self) -> None:
        self.broken = self.unopenable = False
        self.free = threading.Event()
        self.free.set()
        self.opened = 0

    def __call__(self, shard: int, folder: Path) -> Part:
        if shard != 1:
            return opened_here(shard, folder)
        self.opened += 1
        if self.unopenable:
            raise OSError("no such shard")
        whole, unsteady = opened_here(shard, folder), self

        class Open:
            def search(self, query_D: NDArray[np.float32], k: int, allowed: Mask | None = None) -> Hits:
                unsteady.free.wait(60)
                if unsteady.broken:
                    raise OSError("the disk went away")
                return whole.search(query_D, k, allowed)

            def search_batch(
                self, query_BD: NDArray[np.float32], k: int
            ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
                if unsteady.broken:
                    raise OSError("the disk went away")
                return whole.search_batch(query_BD, k)

        return Open()


@pytest.fixture
def unsteady() -> Iterator[Unsteady]:
    unsteady = Unsteady()
    yield unsteady
    unsteady.free.set()


def _until(reached: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 30
    while not reached():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def _without_shard_1(query_D: NDArray[np.float32], k: int) -> list[int]:
    score_I = np.where(SHARD_I == 1, -np.inf, ITEM_ID.astype(np.float16).astype(F) @ query_D)
    return [int(row) for row in np.argsort(-score_I)[:k]]


@pytest.mark.parametrize("hangs", [False, True])
def test_a_lost_shard_gives_partial_hits_of_the_others_and_heals(folder: Path, unsteady: Unsteady, hangs: bool) -> None:
    index = ShardedIndex.load(folder, ITEM_ID, opening=unsteady, patience_ms=1000 if hangs else 6e4)
    query_D = QUERY_BD[0]
    whole = index.search(query_D, 30)
    assert not whole.partial
    assert (SHARD_I[whole.row_K] == 1).any()

    unsteady.unopenable = True
    if hangs:
        unsteady.free.clear()
    else:
        unsteady.broken = True
    for _ in range(2):
        hits = index.search(query_D, 30)
        assert hits.partial
        assert hits.row_K.tolist() == _without_shard_1(query_D, 30)
    tried = unsteady.opened
    _until(lambda: unsteady.opened > tried + 1)
    assert index.search(query_D, 30).partial, "it was opened, but not with success"

    unsteady.broken = unsteady.unopenable = False
    unsteady.free.set()
    _until(lambda: not index.search(query_D, 30).partial)
    np.testing.assert_array_equal(index.search(query_D, 30).row_K, whole.row_K)


def test_a_lost_shard_costs_no_patience_after_the_first_search(folder: Path, unsteady: Unsteady) -> None:
    index = ShardedIndex.load(folder, ITEM_ID, opening=unsteady, patience_ms=250)
    unsteady.unopenable = True
    unsteady.free.clear()
    index.search(QUERY_BD[0], 5)
    assert index.shards[1].part is None
    asked = [shard.ask(QUERY_BD[0], 5, None) for shard in index.shards]
    assert [each is None for each in asked] == [False, True, False]


def test_a_search_that_never_had_its_turn_loses_no_shard(folder: Path, unsteady: Unsteady) -> None:
    index = ShardedIndex.load(folder, ITEM_ID, opening=unsteady)
    shard = index.shards[1]
    unsteady.free.clear()
    waiting = [shard.ask(QUERY_BD[0], 5, None) for _ in range(9)]
    assert shard.answer(waiting[-1]) is None
    assert shard.part is not None
    unsteady.free.set()


def test_a_batch_waits_for_all_shards_opens_the_lost_and_raises_what_they_raise(
    folder: Path, unsteady: Unsteady
) -> None:
    index = ShardedIndex.load(folder, ITEM_ID, opening=unsteady)
    whole = index.search_batch(QUERY_BD, 10)
    unsteady.broken = True
    with pytest.raises(OSError, match="the disk went away"):
        index.search_batch(QUERY_BD, 10)
    assert index.search(QUERY_BD[0], 5).partial
    unsteady.broken = False
    for again, before in zip(index.search_batch(QUERY_BD, 10), whole, strict=True):
        np.testing.assert_array_equal(again, before)


def test_misuse_is_an_error_and_loses_no_shard(folder: Path) -> None:
    index = ShardedIndex.load(folder, ITEM_ID, patience_ms=6e4)
    query_D = QUERY_BD[0]
    with pytest.raises(ValueError, match=f"dimension 3, the index has {D}"):
        index.search(query_D[:3], 5)
    with pytest.raises(ValueError, match="one vector"):
        index.search(QUERY_BD, 5)
    with pytest.raises(ValueError, match="NaN"):
        index.search(np.full(D, np.nan, F), 5)
    with pytest.raises(ValueError, match="k is -1"):
        index.search_batch(QUERY_BD, -1)
    with pytest.raises(ValueError, match="5 rows for 3000 rows"):
        index.search(query_D, 5, Mask(np.ones(5, np.bool_)))
    assert not index.search(query_D, 5).partial


def test_answers_do_not_depend_on_which_thread_was_first(folder: Path) -> None:
    class Dawdling:
        def __init__(self, part: VectorIndex, seed: int) -> None:
            self.part, self.generator = part, np.random.default_rng(seed)

        def search(self, query_D: NDArray[np.float32], k: int, allowed: Mask | None = None) -> Hits:
            time.sleep(self.generator.uniform(0, 0.003))
            return self.part.search(query_D, k, allowed)

        def search_batch(self, query_BD: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
            return self.part.search_batch(query_BD, k)

    index = ShardedIndex.load(
        folder, ITEM_ID, opening=lambda shard, inside: Dawdling(opened_here(shard, inside), shard), patience_ms=6e4
    )
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(lambda _: index.search(QUERY_BD[3], 100).row_K.tolist(), range(40)))
    assert all(answer == answers[0] for answer in answers)


def test_an_index_that_nobody_holds_stops_looking_for_its_lost_shard(folder: Path, unsteady: Unsteady) -> None:
    index = ShardedIndex.load(folder, ITEM_ID, opening=unsteady)
    unsteady.broken = unsteady.unopenable = True
    assert index.search(QUERY_BD[0], 5).partial
    del index
    gc.collect()
    _until(lambda: not any(thread.name == "lost shard" for thread in threading.enumerate()))


@pytest.mark.parametrize(
    ("shard_I", "message"),
    [
        (np.zeros(5, np.int64), r"int64 \(5,\), not a number for each of 3000 rows"),
        (np.zeros(3000), "float64"),
        (np.arange(3000) % 2 * 2, "without a gap"),
        (np.arange(3000) % 2 - 1, "without a gap"),
    ],
)
def test_an_assignment_that_is_none_is_refused(shard_I: NDArray[np.int64], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ShardedIndex.build(ITEM_ID, shard_I=shard_I, towers="t")


def test_a_folder_that_does_not_hold_every_row_once_is_refused(built: ShardedIndex, tmp_path: Path) -> None:
    built.save(tmp_path)
    with pytest.raises(ValueError, match=r"shape \(3000, 16\), not \(2999, 16\)"):
        ShardedIndex.load(tmp_path, ITEM_ID[1:])
    with pytest.raises(ValueError, match="does not hold the vectors of its rows"):
        ShardedIndex.load(tmp_path, ITEM_ID[::-1].copy())
    rows = tmp_path / "shard-1" / "rows.npy"
    row_S = np.load(rows, allow_pickle=False)
    row_S[3] = row_S[2]
    np.save(rows, row_S, allow_pickle=False)
    with pytest.raises(ValueError, match="not each of 3000 once"):
        ShardedIndex.load(tmp_path, ITEM_ID)
    rows.unlink()
    with pytest.raises(ValueError, match=r"rows\.npy holds no array"):
        ShardedIndex.load(tmp_path, ITEM_ID)
    (tmp_path / "shards.json").write_text(json.dumps({"shards": 3}))
    with pytest.raises(ValueError, match=r"shards\.json does not describe a sharded index"):
        ShardedIndex.load(tmp_path, ITEM_ID)


def test_only_an_index_in_this_process_can_be_saved(folder: Path, unsteady: Unsteady, tmp_path: Path) -> None:
    index = ShardedIndex.load(folder, ITEM_ID, opening=unsteady)
    with pytest.raises(ValueError, match="only shards in this process"):
        index.save(tmp_path)
