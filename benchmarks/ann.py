"""One nearest-neighbour query after another on one thread: `VectorIndex` beside what one would use instead.

Vectors and queries are drawn around common centres, as towers' vectors are. Every peer is turned up until it finds at
least as large a share of the exact answers as our index does; only then is it timed.

Shape letters: I items, B queries, D width, K results.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import cycle
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import Bench, Side, main
from index.vectors import VectorIndex

_K = 100
_D = 64

Search = Callable[[NDArray[np.float32]], NDArray[np.int64]]
"""Rows of the best for one query."""


@dataclass(frozen=True, slots=True)
class Peer:
    """An index with one knob that buys recall with time."""

    name: str
    knobs: Sequence[int]
    """From fast to thorough."""
    searcher: Callable[[int], Search]
    """Set the knob."""


def measure(bench: Bench) -> None:
    faiss.omp_set_num_threads(1)
    items, queries = (20_000, 300) if bench.quick else (300_000, 1000)
    item_ID, query_BD = clustered(items, queries, seed=0)
    _, exact_BK = faiss.knn(query_BD, item_ID, _K, metric=faiss.METRIC_INNER_PRODUCT)

    def recall(search: Search) -> float:
        found = [np.isin(exact_K, search(query_D)).mean() for query_D, exact_K in zip(query_BD, exact_BK, strict=True)]
        return float(np.mean(found))

    index = VectorIndex.build(item_ID, towers="", recall_target=0.95, k=_K, query_BD=query_BD, kind="ivf")
    # The build may leave FAISS with other settings than it found.
    faiss.omp_set_num_threads(1)

    def ours(query_D: NDArray[np.float32]) -> NDArray[np.int64]:
        return index.search(query_D, _K).row_K

    reached = recall(ours)
    for peer in peers(bench, item_ID):
        for knob in peer.knobs:
            search = peer.searcher(knob)
            found = recall(search)
            if found >= reached:
                bench.compare(
                    f"search {items:,} x {_D}, k {_K}",
                    _one_by_one("VectorIndex", ours, query_BD),
                    _one_by_one(peer.name, search, query_BD),
                    unit="ms",
                    note=f"recall {reached:.3f}, peer {found:.3f} at {knob}",
                )
                break
        else:
            bench.skip(peer.name, f"finds at most {found:.3f} of the exact answers, ours {reached:.3f}")


def clustered(items: int, queries: int, *, seed: int) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Unit vectors around a thousand common centres of unequal weight."""
    random = np.random.default_rng(seed)
    centre_CD = random.standard_normal((1000, _D))
    weight_C = random.pareto(1.5, len(centre_CD)) + 0.1
    centre = random.choice(len(centre_CD), items + queries, p=weight_C / weight_C.sum())
    vectors = centre_CD[centre] + 0.7 * random.standard_normal((items + queries, _D))
    vectors = (vectors / np.linalg.norm(vectors, axis=1, keepdims=True)).astype(np.float32)
    return vectors[:items], vectors[items:]


def peers(bench: Bench, item_ID: NDArray[np.float32]) -> list[Peer]:
    """Those that are installed, built."""
    found = [_faiss_ivf(item_ID), _faiss_hnsw(item_ID)]
    for package, build in (("hnswlib", _hnswlib), ("usearch", _usearch), ("scann", _scann)):
        if bench.installed(package):
            found.append(build(item_ID))
    return found


def _one_by_one(name: str, search: Search, query_BD: NDArray[np.float32]) -> Side:
    turn = cycle(query_BD)
    return Side(name, lambda: search(next(turn)))


def _faiss_ivf(item_ID: NDArray[np.float32]) -> Peer:
    """As FAISS's own guidelines have it: 4 sqrt(I) lists of full-precision vectors, 39 or more to train each."""
    lists = min(round(4 * len(item_ID) ** 0.5), len(item_ID) // 39)
    index: Any = faiss.index_factory(_D, f"IVF{lists},Flat", faiss.METRIC_INNER_PRODUCT)
    index.train(item_ID)
    index.add(item_ID)

    def searcher(nprobe: int) -> Search:
        index.nprobe = nprobe
        return lambda query_D: np.asarray(index.search(query_D[None], _K)[1][0])

    return Peer("faiss IVF,Flat", [*range(1, 32), *range(32, 513, 8)], searcher)


def _faiss_hnsw(item_ID: NDArray[np.float32]) -> Peer:
    index = faiss.IndexHNSWFlat(_D, 32, faiss.METRIC_INNER_PRODUCT)
    index.hnsw.efConstruction = 100
    index.add(item_ID)

    def searcher(ef: int) -> Search:
        index.hnsw.efSearch = ef
        return lambda query_D: np.asarray(index.search(query_D[None], _K)[1][0])

    return Peer("faiss HNSW32", range(_K, 1001, 50), searcher)


def _hnswlib(item_ID: NDArray[np.float32]) -> Peer:
    hnswlib = import_module("hnswlib")
    index = hnswlib.Index(space="ip", dim=_D)
    index.init_index(max_elements=len(item_ID), M=32, ef_construction=100, random_seed=0)
    index.set_num_threads(1)
    index.add_items(item_ID)

    def searcher(ef: int) -> Search:
        index.set_ef(ef)
        return lambda query_D: np.asarray(index.knn_query(query_D, k=_K)[0][0], np.int64)

    return Peer("hnswlib", range(_K, 1001, 50), searcher)


def _usearch(item_ID: NDArray[np.float32]) -> Peer:
    index = import_module("usearch.index").Index(ndim=_D, metric="ip", dtype="f16", connectivity=32, expansion_add=100)
    index.add(np.arange(len(item_ID)), item_ID, threads=1)

    def searcher(ef: int) -> Search:
        index.expansion_search = ef
        return lambda query_D: np.asarray(index.search(query_D, _K, threads=1).keys, np.int64)

    return Peer("usearch", range(_K, 1001, 50), searcher)


def _scann(item_ID: NDArray[np.float32]) -> Peer:
    leaves = round(2 * len(item_ID) ** 0.5)
    index = (
        import_module("scann")
        .scann_ops_pybind.builder(item_ID, _K, "dot_product")
        .tree(num_leaves=leaves, num_leaves_to_search=leaves // 10, training_sample_size=min(len(item_ID), 100_000))
        .score_ah(2, anisotropic_quantization_threshold=0.2)
        .reorder(3 * _K)
        .build()
    )

    def searcher(leaves_searched: int) -> Search:
        return lambda query_D: np.asarray(index.search(query_D, leaves_to_search=leaves_searched)[0], np.int64)

    return Peer("scann", range(1, leaves, max(1, leaves // 100)), searcher)


if __name__ == "__main__":
    main("ann", measure, "nearest neighbours one query at a time, at equal recall")
