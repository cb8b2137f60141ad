"""The vector index against a plain matrix product.

Shape letters: B queries, D embedding width, I items, K results.
"""

import gc
import itertools
import json
import math
import threading
import weakref
from pathlib import Path

import faiss
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from index.kinds import EXACT_UP_TO, Kind
from index.masks import Mask
from index.planner import Plan
from index.poison import HUGE, unusable
from index.vectors import Metric, VectorIndex

KINDS: tuple[Kind, ...] = ("exact", "ivf", "ivf_sq8", "ivf_pq", "hnsw")
WAYS: tuple[Plan, ...] = ("oversample", "scan", "subset")
D = 16
F = np.float32


def _clustered(rows: int, seed: int) -> NDArray[np.float32]:
    """Unit vectors around 20 centres that do not depend on the seed."""
    centre_CD = np.random.default_rng(99).standard_normal((20, D))
    generator = np.random.default_rng(seed)
    vector_ID = centre_CD[generator.integers(0, 20, rows)] + 0.5 * generator.standard_normal((rows, D))
    vector_ID /= np.linalg.norm(vector_ID, axis=1, keepdims=True)
    return np.asarray(vector_ID, F)


ITEM_ID = _clustered(3000, 0)
QUERY_BD = _clustered(200, 1)
TEST_BD = _clustered(50, 2)


@pytest.fixture(scope="module", params=KINDS)
def index(request: pytest.FixtureRequest) -> VectorIndex:
    return VectorIndex.build(ITEM_ID, towers="towers-1", query_BD=QUERY_BD, kind=request.param, k=20)


HALF = 2.0**-11
"""Half precision rounds a unit vector's inner product by at most this."""


def test_an_exact_index_answers_as_the_matrix_product_does() -> None:
    exact = VectorIndex.build(ITEM_ID, towers="t", kind="exact")
    for query_D in TEST_BD:
        hits = exact.search(query_D, 30)
        score_I = ITEM_ID @ query_D
        np.testing.assert_allclose(hits.score_K, np.sort(score_I)[::-1][:30], atol=HALF)
        np.testing.assert_allclose(hits.score_K, score_I[hits.row_K], atol=HALF)


def test_inner_product_is_not_cosine() -> None:
    vector_ID = np.array([[1, 0], [10, 10], [0, 1]], F)
    query_D = np.array([2, 0], F)
    hits = VectorIndex.build(vector_ID, towers="t").search(query_D, 3)
    assert hits.row_K.tolist() == [1, 0, 2]
    assert hits.score_K.tolist() == [20, 2, 0]
    hits = VectorIndex.build(vector_ID, towers="t", metric="cosine").search(query_D, 3)
    assert hits.row_K.tolist() == [0, 1, 2]
    np.testing.assert_allclose(hits.score_K, [1, math.sqrt(0.5), 0], atol=HALF)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("metric", ["inner_product", "cosine"])
def test_vectors_of_any_length_are_found_by_the_metric(kind: Kind, metric: Metric, tmp_path: Path) -> None:
    length_I = np.random.default_rng(4).lognormal(0, 0.7, len(ITEM_ID))
    vector_ID = np.asarray(ITEM_ID * length_I[:, None], F)
    built = VectorIndex.build(vector_ID, towers="t", metric=metric, kind=kind, query_BD=QUERY_BD)
    built.save(tmp_path)
    allowed = Mask(np.random.default_rng(5).random(len(ITEM_ID)) < 0.05)
    for searched in (built, VectorIndex.load(tmp_path, vector_ID)):
        for mask in (None, allowed):
            found = 0
            for query_D in TEST_BD:
                score_I = ITEM_ID @ query_D if metric == "cosine" else vector_ID @ query_D
                hits = searched.search(7 * query_D, 20, mask)
                scale = 1 if metric == "cosine" else 7
                np.testing.assert_allclose(hits.score_K, scale * score_I[hits.row_K], atol=0.1 * scale * HALF * 100)
                if mask is not None:
                    score_I = np.where(mask.allowed_I, score_I, -np.inf)
                found += int((score_I[hits.row_K] >= np.sort(score_I)[-20] - 0.02).sum())
            assert found / (20 * len(TEST_BD)) > 0.95


def test_a_query_of_zeros_has_no_direction() -> None:
    index = VectorIndex.build(ITEM_ID, towers="t", metric="cosine")
    assert index.search(np.zeros(D, F), 3).score_K.tolist() == [0, 0, 0]


def test_the_kind_follows_the_number_of_rows() -> None:
    assert VectorIndex.build(ITEM_ID, towers="t").kind == "exact"
    vector_ID = np.tile(ITEM_ID, (EXACT_UP_TO // len(ITEM_ID) + 1, 1))[: EXACT_UP_TO + 1, :4]
    assert VectorIndex.build(vector_ID, towers="t", query_BD=vector_ID[:5], k=1).kind == "ivf_sq8"


@pytest.mark.parametrize("kind", KINDS[1:])
def test_an_approximate_index_reaches_the_target_on_queries_that_it_was_not_tuned_on(kind: Kind) -> None:
    for target in (0.6, 0.9, 0.97):
        made = VectorIndex.build(ITEM_ID, towers="t", query_BD=QUERY_BD, kind=kind, k=20, recall_target=target)
        found = 0
        for query_D in TEST_BD:
            score_I = ITEM_ID @ query_D
            found += int((score_I[made.search(query_D, 20).row_K] >= np.sort(score_I)[-20] - 1e-4).sum())
        assert found / (20 * len(TEST_BD)) > target - 0.05
        for each in made.certificates:
            if each.share == 1:
                assert each.recall.low >= target or each.effort == made.codes.ladder(each.recall.k)[1]


def test_what_a_person_fixes_is_taken() -> None:
    made = VectorIndex.build(ITEM_ID, towers="t", query_BD=QUERY_BD, kind="ivf", lists=30, effort=7)
    assert made.codes.nlist == 30
    assert set(made.efforts.values()) == {7}
    assert VectorIndex.build(ITEM_ID, towers="t", kind="ivf", lists=30, effort=99).efforts == {100: 30, 500: 30}


def test_a_higher_target_reads_more_lists_and_a_low_one_not_all() -> None:
    indexes = [
        VectorIndex.build(ITEM_ID, towers="t", query_BD=QUERY_BD, kind="ivf", recall_target=target)
        for target in (0.3, 0.9, 0.999)
    ]
    nprobes = [index.certificates[0].effort for index in indexes]
    assert nprobes == sorted(nprobes)
    assert nprobes[0] < nprobes[2]


def test_the_certificate_is_what_an_outsider_measures(index: VectorIndex) -> None:
    """Recall of the certified queries, counted anew by sets of rows; ties apart from rounding do not occur here."""
    unfiltered = [each for each in index.certificates if each.share == 1]
    assert [each.recall.k for each in unfiltered] == [20, 100, 500]
    for each in unfiltered:
        k, shared = each.recall.k, 0
        for query_D in QUERY_BD:
            exact_K = np.argsort(-(ITEM_ID @ query_D))[:k]
            shared += len(np.intersect1d(exact_K, index.search(query_D, k).row_K))
        assert shared / (k * len(QUERY_BD)) == pytest.approx(each.recall.value, abs=0.005)
        assert each.recall.low <= each.recall.value <= each.recall.high
        assert each.recall.queries == len(QUERY_BD)
    assert index.recall == min(each.recall.value for each in unfiltered)


def test_latency_is_the_median_of_the_clock_that_was_given() -> None:
    seconds = itertools.accumulate(itertools.cycle([0.002, 1.0]))
    index = VectorIndex.build(ITEM_ID[:500], towers="t", query_BD=QUERY_BD[:9])
    latency_ms = index.latencies_ms(QUERY_BD[:9], clock=lambda: next(seconds))
    assert set(latency_ms.values()) == {1000}
    assert len(latency_ms) == len(index.curve)
    assert {"k=100 effort=1", "k=500 share=0.01 regions effort=1"} <= set(latency_ms)


@given(
    seed=st.integers(0, 2**32 - 1),
    k=st.integers(0, 3200),
    share=st.sampled_from([0.0, 0.0005, 0.01, 0.1, 0.5, 0.99, 1.0]),
    region=st.booleans(),
    way=st.sampled_from([None, *WAYS]),
)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_every_hit_satisfies_the_mask_and_there_are_k_where_k_exist(
    index: VectorIndex, *, seed: int, k: int, share: float, region: bool, way: Plan | None
) -> None:
    """However the search is done, and whether the allowed rows are strewn or lie far from the query."""
    query_D = TEST_BD[seed % len(TEST_BD)]
    rank_I = ITEM_ID @ query_D if region else np.random.default_rng(seed).random(len(ITEM_ID))
    allowed = Mask(rank_I <= np.quantile(rank_I, share) if share else np.zeros(len(ITEM_ID), np.bool_))
    with pytest.MonkeyPatch.context() as patched:
        if way is not None:
            patched.setattr("index.vectors.plan", lambda *_, **__: way)
        hits = index.search(query_D, k, allowed)
    assert len(hits) == min(k, allowed.count)
    assert allowed.allowed_I[hits.row_K].all()
    assert len(np.unique(hits.row_K)) == len(hits)
    assert (np.diff(hits.score_K) <= 0).all()
    np.testing.assert_allclose(hits.score_K, ITEM_ID[hits.row_K] @ query_D, atol=2 * HALF)


@pytest.mark.parametrize("way", [None, *WAYS])
@pytest.mark.parametrize("region", [False, True])
@pytest.mark.parametrize("share", [0.9, 0.5, 0.1, 0.03])
def test_a_mask_costs_no_recall(index: VectorIndex, share: float, region: bool, way: Plan | None) -> None:
    rank_I = ITEM_ID @ ITEM_ID[5] if region else np.random.default_rng(3).random(len(ITEM_ID))
    allowed = Mask(rank_I >= np.quantile(rank_I, 1 - share))
    found = exist = 0
    with pytest.MonkeyPatch.context() as patched:
        if way is not None:
            patched.setattr("index.vectors.plan", lambda *_, **__: way)
        for query_D in TEST_BD:
            score_I = np.where(allowed.allowed_I, ITEM_ID @ query_D, -np.inf)
            hits = index.search(query_D, 20, allowed)
            found += int((score_I[hits.row_K] >= np.sort(score_I)[-20] - 1e-3).sum())
            exist += min(20, allowed.count)
    assert found / exist >= 0.95


def test_ties_are_all_there_and_no_row_twice() -> None:
    vector_ID = np.tile(ITEM_ID[:30], (100, 1))
    allowed = Mask(np.arange(3000) % 7 > 0)
    for kind in KINDS:
        tied = VectorIndex.build(vector_ID, towers="t", kind=kind)
        for mask in (None, allowed):
            hits = tied.search(ITEM_ID[0], 3000, mask)
            assert len(hits) == len(np.unique(hits.row_K)) == (3000 if mask is None else allowed.count)


def test_what_is_kept_for_a_mask_goes_with_it(index: VectorIndex) -> None:
    allowed = Mask(np.arange(len(ITEM_ID)) % 2 == 0)
    index.search(TEST_BD[0], 5, allowed)
    gone = weakref.ref(allowed)
    del allowed
    gc.collect()
    assert gone() is None


class _Device:
    """Answers from the CPU's codes, with the failures of a GPU."""

    most_k = 64

    def __init__(self, index: VectorIndex, *, broken: bool = False, misses: int = 0) -> None:
        self.index, self.broken, self.misses = index, broken, misses
        self.asked: list[int] = []

    def search(
        self, query_BD: NDArray[np.float32], k: int, effort: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        assert k <= self.most_k
        self.asked.append(k)
        if self.broken:
            raise RuntimeError("CUDA error 2 out of memory")
        score_BK, row_BK = self.index.codes.search(query_BD, k, effort)
        if self.misses:
            score_BK[:, -self.misses :], row_BK[:, -self.misses :] = -np.inf, -1
        return score_BK, row_BK


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("misses", [0, 3])
def test_a_device_answers_what_it_can_and_the_cpu_the_rest(index: VectorIndex, broken: bool, misses: int) -> None:
    device = _Device(index, broken=broken, misses=misses)
    on_device = index.on(device)
    few = Mask(np.arange(len(ITEM_ID)) % 100 == 0)
    most = Mask(np.arange(len(ITEM_ID)) % 100 != 0)
    for query_D in TEST_BD[:5]:
        for k in (5, 60, 500, 5000):
            for allowed in (None, few, most):
                hits = on_device.search(query_D, k, allowed)
                exist = len(ITEM_ID) if allowed is None else allowed.count
                assert len(hits) == min(k, exist)
                assert allowed is None or allowed.allowed_I[hits.row_K].all()
        row_BK, _ = on_device.search_batch(query_D[None], 20)
        assert (row_BK >= 0).all()
    assert device.asked


def test_a_search_with_every_row_allowed_is_the_search_without_a_mask(index: VectorIndex) -> None:
    for query_D in TEST_BD[:10]:
        everything = index.search(query_D, 40, Mask(np.ones(len(ITEM_ID), np.bool_)))
        np.testing.assert_array_equal(everything.row_K, index.search(query_D, 40).row_K)


def test_a_k_beyond_the_catalogue_gives_all_of_it(index: VectorIndex) -> None:
    hits = index.search(QUERY_BD[0], 10**6)
    assert sorted(hits.row_K.tolist()) == list(range(len(ITEM_ID)))


def test_an_empty_answer_is_an_answer(index: VectorIndex) -> None:
    assert len(index.search(QUERY_BD[0], 0)) == 0
    assert len(index.search(QUERY_BD[0], 5, Mask(np.zeros(len(ITEM_ID), np.bool_)))) == 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_catalogue_without_rows_is_an_index(kind: Kind, tmp_path: Path) -> None:
    index = VectorIndex.build(np.empty((0, 4), F), towers="t", query_BD=np.ones((3, 4), F), kind=kind)
    index.save(tmp_path)
    for each in (index, VectorIndex.load(tmp_path, np.empty((0, 4), F))):
        assert len(each) == 0
        assert math.isnan(each.recall)
        assert len(each.search(np.ones(4, F), 5)) == 0
        assert len(each.search(np.ones(4, F), 5, Mask(np.empty(0, np.bool_)))) == 0
        row_BK, score_BK = each.search_batch(np.ones((2, 4), F), 3)
        assert (row_BK == -1).all()
        assert (score_BK == -np.inf).all()


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rows", [1, 2, 39, 80])
def test_a_tiny_catalogue_is_found_whole(kind: Kind, rows: int) -> None:
    index = VectorIndex.build(ITEM_ID[:rows], towers="t", kind=kind)
    assert sorted(index.search(QUERY_BD[0], 100).row_K.tolist()) == list(range(rows))
    assert index.recall == 1


def test_a_batch_is_its_single_searches_padded(index: VectorIndex) -> None:
    row_BK, score_BK = index.search_batch(TEST_BD[:20], 25)
    for row_K, score_K, query_D in zip(row_BK, score_BK, TEST_BD[:20], strict=True):
        hits = index.search(query_D, 25)
        np.testing.assert_array_equal(row_K, hits.row_K)
        np.testing.assert_allclose(score_K, hits.score_K, rtol=1e-5)
    row_BK, score_BK = index.search_batch(TEST_BD[:2], len(ITEM_ID) + 7)
    assert (np.sort(row_BK[:, : len(ITEM_ID)]) == np.arange(len(ITEM_ID))).all()
    assert (row_BK[:, len(ITEM_ID) :] == -1).all()
    assert (score_BK[:, len(ITEM_ID) :] == -np.inf).all()
    assert index.search_batch(np.empty((0, D), F), 3)[0].shape == (0, 3)


@given(
    st.lists(st.sampled_from(["nan", "inf", "zero", "tiny", "huge", "beyond half"]), max_size=4),
    st.integers(0, 2**32 - 1),
    st.sampled_from(KINDS),
)
@settings(max_examples=25)
def test_poison_is_counted_and_never_found(poisons: list[str], seed: int, kind: Kind) -> None:
    vector_ID = np.tile(ITEM_ID, (2, 1))[:5000].copy()
    rows = np.sort(np.random.default_rng(seed).choice(5000, len(poisons), replace=False))
    for row, poison in zip(rows, poisons, strict=True):
        if poison in ("nan", "inf"):
            vector_ID[row, seed % D] = float(poison)
        else:
            vector_ID[row] *= {"zero": 0, "tiny": 1e-9, "huge": 101, "beyond half": 1e6}[poison]
    index = VectorIndex.build(vector_ID, towers="t", kind=kind, query_BD=QUERY_BD[:5], k=5)
    assert index.quarantined == len(poisons)
    assert index.quarantined_Q.tolist() == rows.tolist()
    assert len(index) == 5000
    hits = index.search(QUERY_BD[0], 5000)
    assert sorted([*hits.row_K.tolist(), *rows.tolist()]) == list(range(5000))
    np.testing.assert_allclose(hits.score_K, vector_ID[hits.row_K] @ QUERY_BD[0], atol=HALF)
    allowed_I = np.zeros(5000, np.bool_)
    allowed_I[rows] = True
    assert len(index.search(QUERY_BD[0], 10, Mask(allowed_I))) == 0
    allowed_I[rows[:1] - 1] = True
    assert index.search(QUERY_BD[0], 10, Mask(allowed_I)).row_K.tolist() == [
        row for row in (rows[:1] - 1) % 5000 if row not in rows
    ]
    assert sorted(index.search_batch(QUERY_BD[:1], 5000)[0][0].tolist()) == sorted(
        [*hits.row_K.tolist(), *[-1] * len(rows)]
    )


def test_poison_is_told_from_what_is_typical_elsewhere() -> None:
    vector_ID = np.array([[3, 4], [0, 0], [np.nan, 1], [300, 401], [70_000, 0]], F)
    assert unusable(vector_ID, typical_norm=5).tolist() == [1, 2, 3, 4]
    assert unusable(vector_ID, typical_norm=501 / HUGE + 0.1).tolist() == [1, 2, 4]
    assert unusable(vector_ID[3:4]).tolist() == []
    assert unusable(vector_ID[:1], typical_norm=math.nan).tolist() == []


@pytest.mark.parametrize(("rows", "poisoned"), [(5000, 6), (999, 1), (1, 1), (3, 3)])
def test_more_poison_than_one_in_a_thousand_refuses_the_build(rows: int, poisoned: int) -> None:
    vector_ID = np.tile(ITEM_ID, (2, 1))[:rows].copy()
    vector_ID[:poisoned] = np.nan
    with pytest.raises(ValueError, match=rf"^{poisoned} of {rows} item vectors .* at most 0.1% may be$"):
        VectorIndex.build(vector_ID, towers="t")


def test_what_is_near_an_item_is_found_with_the_effort_that_items_need(tmp_path: Path) -> None:
    made = VectorIndex.build(ITEM_ID, towers="t", kind="ivf_sq8", lists=40, query_BD=TEST_BD)
    assert made.of_items.efforts == made.item_efforts
    assert all(each.effort in made.item_efforts.values() for each in made.of_items.certificates if each.share == 1)
    assert made.of_items.recall >= 0.97
    made.save(tmp_path)
    loaded = VectorIndex.load(tmp_path, ITEM_ID).of_items
    assert (loaded.efforts, loaded.curve) == (made.item_efforts, made.item_curve)
    missed = 0
    for row in range(0, len(ITEM_ID), 40):
        near = loaded.search(ITEM_ID[row], 100).row_K
        missed += 100 - len(np.intersect1d(near, np.argsort(-(ITEM_ID @ ITEM_ID[row]))[:100]))
    assert missed <= 0.03 * 100 * len(ITEM_ID[::40])


def test_an_index_from_before_there_were_efforts_of_items_asks_as_for_queries(
    index: VectorIndex, tmp_path: Path
) -> None:
    index.save(tmp_path)
    facts = json.loads((tmp_path / "vectors.json").read_text())
    del facts["item_efforts"], facts["item_curve"]
    (tmp_path / "vectors.json").write_text(json.dumps(facts))
    assert VectorIndex.load(tmp_path, ITEM_ID).of_items.efforts == index.efforts


def test_what_is_saved_is_what_is_loaded(index: VectorIndex, tmp_path: Path) -> None:
    index.save(tmp_path)
    loaded = VectorIndex.load(tmp_path, ITEM_ID)
    assert (loaded.kind, loaded.d, len(loaded), loaded.towers) == (index.kind, D, len(ITEM_ID), "towers-1")
    assert loaded.curve == index.curve
    assert loaded.efforts == index.efforts
    assert loaded.typical_norm == index.typical_norm == pytest.approx(1)
    allowed = Mask(np.arange(len(ITEM_ID)) % 3 == 0)
    for query_D in TEST_BD[:10]:
        for mask in (None, allowed):
            np.testing.assert_array_equal(loaded.search(query_D, 50, mask).row_K, index.search(query_D, 50, mask).row_K)


def test_quarantine_survives_the_disk(tmp_path: Path) -> None:
    vector_ID = ITEM_ID[:2000].copy()
    vector_ID[[3, 1999]] = 0
    VectorIndex.build(vector_ID, towers="t").save(tmp_path)
    loaded = VectorIndex.load(tmp_path, vector_ID)
    assert loaded.quarantined_Q.tolist() == [3, 1999]
    assert sorted([3, 1999, *loaded.search(QUERY_BD[0], 2000).row_K.tolist()]) == list(range(2000))


def test_a_loaded_index_lies_in_the_file_and_not_in_memory(index: VectorIndex, tmp_path: Path) -> None:
    index.save(tmp_path)
    loaded = VectorIndex.load(tmp_path, ITEM_ID)
    largest = max(tmp_path.iterdir(), key=lambda each: each.stat().st_size)
    assert str(largest) in Path("/proc/self/maps").read_text()
    largest.unlink()
    assert len(loaded.search(QUERY_BD[0], 3000)) == 3000


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_vectors_make_the_same_file(kind: Kind, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        VectorIndex.build(ITEM_ID, towers="t", kind=kind, query_BD=QUERY_BD).save(tmp_path / name)
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"count": 2999}, r"is of vectors of shape \(2999, 16\), not \(3000, 16\)"),
        ({"d": 8}, r"is of vectors of shape \(3000, 8\), not \(3000, 16\)"),
        ({"kind": "ivf"}, "is exact, not ivf"),
        ({"count": 3001, "quarantined": [9999]}, "quarantines rows beyond its 3001"),
        ({"curve": [{}]}, "does not describe a vector index: KeyError"),
    ],
)
def test_a_description_that_does_not_fit_is_refused(change: dict[str, object], message: str, tmp_path: Path) -> None:
    VectorIndex.build(ITEM_ID, towers="t").save(tmp_path)
    facts = tmp_path / "vectors.json"
    facts.write_text(json.dumps(json.loads(facts.read_text()) | change))
    with pytest.raises(ValueError, match=message) as raised:
        VectorIndex.load(tmp_path, ITEM_ID)
    assert "\n" not in str(raised.value)


def test_codes_of_other_vectors_are_refused(tmp_path: Path) -> None:
    for name, count in (("a", 100), ("b", 99)):
        (tmp_path / name).mkdir()
        VectorIndex.build(ITEM_ID[:count], towers="t").save(tmp_path / name)
    (tmp_path / "b" / "vectors.faiss").replace(tmp_path / "a" / "vectors.faiss")
    with pytest.raises(ValueError, match=r"are 99 vectors of dimension 16, vectors.json says 100 of dimension 16"):
        VectorIndex.load(tmp_path / "a", ITEM_ID[:100])


def test_an_index_of_another_metric_is_refused(tmp_path: Path) -> None:
    VectorIndex.build(ITEM_ID[:100], towers="t").save(tmp_path)
    other = faiss.index_factory(D, "SQfp16", faiss.METRIC_L2)
    other.train(ITEM_ID[:100])
    other.add(ITEM_ID[:100])
    faiss.write_index(other, str(tmp_path / "vectors.faiss"))
    with pytest.raises(ValueError, match="has FAISS metric 1, not the inner product"):
        VectorIndex.load(tmp_path, ITEM_ID[:100])


def test_vectors_of_another_shape_are_refused(tmp_path: Path) -> None:
    VectorIndex.build(ITEM_ID[:100], towers="t").save(tmp_path)
    with pytest.raises(ValueError, match=r"is of vectors of shape \(100, 16\), not \(99, 16\)"):
        VectorIndex.load(tmp_path, ITEM_ID[:99])


@pytest.mark.parametrize("damage", ["missing faiss", "missing json", "truncated faiss", "empty faiss", "text", "json"])
def test_a_damaged_file_is_one_line_that_names_it(damage: str, tmp_path: Path) -> None:
    VectorIndex.build(ITEM_ID[:100], towers="t").save(tmp_path)
    path = tmp_path / ("vectors.json" if "json" in damage else "vectors.faiss")
    if damage.startswith("missing"):
        path.unlink()
    else:
        contents = {"truncated faiss": path.read_bytes()[:200], "text": b"hello there", "json": b"{"}
        path.write_bytes(contents.get(damage, b""))
    with pytest.raises(ValueError, match=path.name) as raised:
        VectorIndex.load(tmp_path, ITEM_ID[:100])
    assert "\n" not in str(raised.value)


def test_a_query_of_another_dimension_names_both(index: VectorIndex) -> None:
    message = "the query has dimension 15, the index has 16"
    with pytest.raises(ValueError, match=message):
        index.search(QUERY_BD[0, :15], 5)
    with pytest.raises(ValueError, match=message):
        index.search_batch(QUERY_BD[:, :15], 5)
    with pytest.raises(ValueError, match=r"shape \(1, 16\), it must be one vector of dimension 16"):
        index.search(QUERY_BD[:1], 5)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e30])
def test_a_query_without_a_finite_answer_is_refused(index: VectorIndex, value: float) -> None:
    query_D = QUERY_BD[0].copy()
    query_D[3] = value
    with pytest.raises(ValueError, match="NaN or infinity"):
        index.search(query_D, 5)
    with pytest.raises(ValueError, match="NaN or infinity"):
        index.search_batch(query_D[None], 5)


def test_the_longest_query_and_item_allowed_have_a_finite_score() -> None:
    index = VectorIndex.build(np.full((2, 64), 65504, F), towers="t")
    assert np.isfinite(index.search(np.full(64, 2e18, F), 2).score_K).all()


def test_misuse_names_what_is_wrong(index: VectorIndex) -> None:
    with pytest.raises(ValueError, match="k is -1"):
        index.search(QUERY_BD[0], -1)
    with pytest.raises(ValueError, match="a mask of 5 rows for 3000 rows"):
        index.search(QUERY_BD[0], 1, Mask(np.ones(5, np.bool_)))
    with pytest.raises(ValueError, match=r"recall_target is 1\.5"):
        VectorIndex.build(ITEM_ID, towers="t", recall_target=1.5)
    with pytest.raises(ValueError, match="k is 0"):
        VectorIndex.build(ITEM_ID, towers="t", k=0)
    with pytest.raises(ValueError, match="kind is 'tree', it must be one of exact, ivf, ivf_sq8, ivf_pq, hnsw"):
        VectorIndex.build(ITEM_ID, towers="t", kind="tree")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="metric is 'l2', it must be one of inner_product, cosine"):
        VectorIndex.build(ITEM_ID, towers="t", metric="l2")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="lists is 0"):
        VectorIndex.build(ITEM_ID, towers="t", lists=0)
    with pytest.raises(ValueError, match="effort is -3"):
        VectorIndex.build(ITEM_ID, towers="t", effort=-3)
    with pytest.raises(ValueError, match=r"queries have shape \(2, 3\), the index has dimension 16"):
        VectorIndex.build(ITEM_ID, towers="t", query_BD=np.ones((2, 3), F))
    with pytest.raises(ValueError, match="1 of 2 sampled queries are not finite"):
        VectorIndex.build(ITEM_ID, towers="t", query_BD=np.array([[np.nan] * D, [0.0] * D], F))
    with pytest.raises(ValueError, match=r"item vectors have shape \(5,\)"):
        VectorIndex.build(np.ones(5, F), towers="t")


def test_a_search_leaves_the_number_of_threads_alone_and_threads_do_not_meet(index: VectorIndex) -> None:
    threads = faiss.omp_get_max_threads()
    expected = [index.search(query_D, 30).row_K.tolist() for query_D in TEST_BD]
    found: list[list[list[int]]] = []

    def work() -> None:
        found.append([index.search(query_D, 30).row_K.tolist() for query_D in TEST_BD])

    workers = [threading.Thread(target=work) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert found == [expected] * 4
    assert faiss.omp_get_max_threads() == threads
