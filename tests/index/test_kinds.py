"""How each kind of index is made, mapped and asked.

Shape letters: B queries, D embedding width, I items, K results, L lists.
"""

from pathlib import Path

import faiss
import numpy as np
import pytest

from index.kinds import EXACT_UP_TO, EXACT_UP_TO_ON_GPU, Kind, chosen, inner_products, lists_for, made, read

KINDS: tuple[Kind, ...] = ("exact", "ivf", "ivf_sq8", "ivf_pq", "hnsw")
D = 16
F = np.float32
ITEM_ID = np.random.default_rng(0).standard_normal((4000, D)).astype(F)
QUERY_BD = np.random.default_rng(1).standard_normal((20, D)).astype(F)
NONE = np.empty(0, np.int64)


def test_a_kind_is_exact_where_that_is_fast_or_nothing_less_will_do() -> None:
    assert chosen(EXACT_UP_TO) == "exact"
    assert chosen(EXACT_UP_TO + 1) == "ivf_sq8"
    assert chosen(EXACT_UP_TO_ON_GPU, cuda=True) == "exact"
    assert chosen(EXACT_UP_TO_ON_GPU + 1, cuda=True) == "ivf"
    assert chosen(10**8, recall_target=1) == "exact"


@pytest.mark.parametrize(("count", "lists"), [(1, 1), (80, 2), (10_000, 256), (1_000_000, 4000)])
def test_lists_grow_with_the_root_of_the_rows_and_each_has_enough_to_train_on(count: int, lists: int) -> None:
    assert lists_for(count) == lists


@pytest.mark.parametrize("kind", KINDS)
def test_ids_are_rows_and_quarantined_ones_are_never_found(kind: Kind, tmp_path: Path) -> None:
    vector_ID = ITEM_ID.copy()
    vector_ID[[0, 7, 3999]] = np.nan
    quarantined_Q = np.array([0, 7, 3999])
    built = made(vector_ID, quarantined_Q, kind=kind)
    built.write(tmp_path)
    for codes in (built, read(tmp_path, quarantined_Q, kind=kind, vector_ID=vector_ID)):
        assert (codes.kind, codes.d) == (kind, D)
        for row in (1, 8, 3998):
            score_BK, row_BK = codes.search(vector_ID[row][None], 300, codes.ladder(300)[1])
            assert row in row_BK
            assert (np.diff(score_BK) <= 0).all()
        for query_D in -QUERY_BD:
            everything = codes.search(query_D[None], 3990, codes.ladder(3990)[1])[1]
            assert not np.isin(quarantined_Q, everything).any()


@pytest.mark.parametrize("kind", KINDS)
def test_all_kinds_but_fast_scan_are_read_in_place(kind: Kind, tmp_path: Path) -> None:
    """What changes in a mapped file changes in the index."""
    made(ITEM_ID, NONE, kind=kind).write(tmp_path)
    codes = read(tmp_path, NONE, kind=kind, vector_ID=ITEM_ID)
    path = max(tmp_path.iterdir(), key=lambda each: each.stat().st_size)
    bytes_all = path.stat().st_size
    effort = codes.ladder(200)[1]
    before = codes.search(QUERY_BD, 200, effort)[0]
    with path.open("r+b") as file:
        file.seek(bytes_all * 9 // 10)
        file.write(bytes(bytes_all // 20))
    assert np.array_equal(before, codes.search(QUERY_BD, 200, effort)[0]) == (kind == "ivf_pq")


@pytest.mark.parametrize("kind", KINDS)
def test_a_file_of_another_kind_is_refused(kind: Kind, tmp_path: Path) -> None:
    made(ITEM_ID, NONE, kind=kind).write(tmp_path)
    for other in KINDS:
        if other != kind:
            with pytest.raises(ValueError, match=rf"is {kind}, not {other}|not a FAISS index|does not hold inverted"):
                read(tmp_path, NONE, kind=other, vector_ID=ITEM_ID)


@pytest.mark.parametrize("kind", ["ivf", "ivf_sq8", "ivf_pq"])
def test_lists_are_the_nearest_centroids(kind: Kind) -> None:
    codes = made(ITEM_ID, NONE, kind=kind)
    nearest_I = (ITEM_ID @ codes.centroid_LD.T).argmax(1)
    assert (codes.list_I == nearest_I).mean() > 0.99  # ivf_sq8 keeps its centroids in 8 bits
    score_L = inner_products(QUERY_BD[0], codes.centroid_LD)
    np.testing.assert_allclose(score_L, codes.centroid_LD @ QUERY_BD[0], rtol=1e-4, atol=1e-5)
    order_L = np.argsort(-score_L)[:10]
    everything = codes.selector(np.full(500, 255, np.uint8))
    by_lists = codes.scan_lists(QUERY_BD[0], 30, everything, list_N=order_L, score_N=score_L[order_L])
    np.testing.assert_array_equal(by_lists[1], codes.search(QUERY_BD[:1], 30, 10)[1])


@pytest.mark.parametrize("kind", KINDS)
def test_more_effort_finds_more(kind: Kind) -> None:
    codes = made(ITEM_ID, NONE, kind=kind)
    exact_BK = np.argsort(-(QUERY_BD @ ITEM_ID.T))[:, :50]
    least, most = codes.ladder(50)
    shares = []
    for effort in (least, most):
        row_BK = codes.search(QUERY_BD, codes.nominated(50, effort), effort)[1]
        shares.append(np.mean([np.isin(a, b).mean() for a, b in zip(exact_BK, row_BK, strict=True)]))
    assert shares[1] > 0.95
    assert shares[0] < shares[1] or kind == "exact"


def test_a_catalogue_too_small_to_train_codes_on_is_held_exactly() -> None:
    assert made(ITEM_ID[:600], NONE, kind="ivf_pq").kind == "exact"
    assert made(ITEM_ID[:700], NONE, kind="ivf_pq").kind == "ivf_pq"
    assert made(ITEM_ID[:0], NONE, kind="hnsw").kind == "exact"


def test_bytes_a_vector_are_what_the_kinds_are_for(tmp_path: Path) -> None:
    """Half precision in lists is 2 D and 8 for the row; fixed parts are spread over only 4,000 vectors here."""
    bytes_each = {}
    for kind in KINDS:
        (tmp_path / kind).mkdir()
        made(ITEM_ID, NONE, kind=kind, lists=10).write(tmp_path / kind)
        bytes_each[kind] = sum(path.stat().st_size for path in (tmp_path / kind).iterdir()) / len(ITEM_ID)
    assert bytes_each["ivf_pq"] < bytes_each["ivf_sq8"] < bytes_each["exact"] < bytes_each["ivf"] < bytes_each["hnsw"]
    assert 2 * D + 8 <= bytes_each["ivf"] < 2 * D + 9


def test_inner_products_of_some_rows_are_those_of_all() -> None:
    row_N = np.array([5, 3999, 5, 0])
    score_I = inner_products(QUERY_BD[0], ITEM_ID)
    np.testing.assert_allclose(score_I, ITEM_ID @ QUERY_BD[0], rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(inner_products(QUERY_BD[0], ITEM_ID, row_N), score_I[row_N], rtol=1e-4, atol=1e-5)
    assert len(inner_products(QUERY_BD[0], ITEM_ID, NONE)) == 0


def test_the_number_of_threads_is_left_alone() -> None:
    threads = faiss.omp_get_max_threads()
    codes = made(ITEM_ID, NONE, kind="hnsw")
    codes.search(QUERY_BD[:1], 5, 10)
    assert faiss.omp_get_max_threads() == threads
