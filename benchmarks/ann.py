"""One nearest-neighbour query after another on one thread: `VectorIndex` beside what one would use instead.

Two sets of vectors: a million drawn around nested centres, as towers' vectors are; and, where CASCADE_DATA names a
folder that holds gowalla/, the towers' vectors of its items grown to 300,000, asked by its users. Every peer is turned
up until it finds at least as large a share of the exact answers as our index does; only then is it timed. The queries
that tune our index are not those that are timed.

Shape letters: I items, B queries, D width, K results, C centres.
"""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import faiss
import numpy as np
import polars as pl
from numpy.typing import NDArray

from benchmarks.harness import Bench, Side, main
from candidate_gen.features import Feature, FeatureTable
from candidate_gen.towers import TowerShape
from index.vectors import VectorIndex
from training.learning.tower import TowerSettings, train_towers

_D = 64
_KS = (500, 100)
_TARGET = 0.97
_JUDGED = 500

Search = Callable[[NDArray[np.float32]], NDArray[np.int64]]
"""Rows of the best for one query."""


@dataclass(frozen=True, slots=True)
class Vectors:
    """Items, and two samples of queries from one population."""

    name: str
    item_ID: NDArray[np.float32]
    tuning_BD: NDArray[np.float32]
    query_BD: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Peer:
    """An index with one knob that buys recall with time."""

    name: str
    knobs: Sequence[int]
    """From fast to thorough."""
    searcher: Callable[[int, int], Search]
    """For a number of results and a place of the knob."""


def measure(bench: Bench) -> None:
    approximate(bench, clustered(*((20_000, 600) if bench.quick else (1_000_000, 4000)), seed=0))
    root = os.environ.get("CASCADE_DATA", "")
    folder = Path(root) / "gowalla"
    if root and folder.is_dir():
        approximate(bench, gowalla(folder, items=60_000 if bench.quick else 300_000, epochs=1 if bench.quick else 3))
    else:
        bench.skip("gowalla", "CASCADE_DATA does not name a folder that holds it")
    exact(bench, clustered(*((5000, 300) if bench.quick else (100_000, 2000)), seed=1))


def approximate(bench: Bench, vectors: Vectors) -> None:
    """Our index, built and tuned, beside every peer, at 500 and 100 results."""
    started_s = time.perf_counter()
    index = VectorIndex.build(
        vectors.item_ID, towers="", recall_target=_TARGET, k=_KS[0], query_BD=vectors.tuning_BD, kind="ivf_sq8"
    )
    built_s = time.perf_counter() - started_s
    with TemporaryDirectory() as folder:
        index.save(Path(folder))
        stored = sum(path.stat().st_size for path in Path(folder).iterdir())
    bench.record(
        f"build {vectors.name}",
        np.array([built_s]),
        unit="ms",
        note=f"trained, tuned and certified on all cores; {stored / len(index):.1f} bytes a vector",
    )
    faiss.omp_set_num_threads(1)
    _, exact_BK = faiss.knn(vectors.query_BD[:_JUDGED], vectors.item_ID, max(_KS), metric=faiss.METRIC_INNER_PRODUCT)
    for peer in peers(bench, vectors.item_ID):
        for k in _KS:
            _beside(bench, vectors, exact_BK[:, :k], index, peer)


def exact(bench: Bench, vectors: Vectors) -> None:
    """The index of a small catalogue beside FAISS's flat one."""
    index = VectorIndex.build(vectors.item_ID, towers="", query_BD=vectors.tuning_BD)
    flat: Any = faiss.IndexFlatIP(_D)
    flat.add(vectors.item_ID)
    faiss.omp_set_num_threads(1)
    for k in _KS:
        _, exact_BK = flat.search(vectors.query_BD[:_JUDGED], k)
        search = _ours(index, k)
        bench.compare(
            f"exact, {vectors.name}, k {k}",
            _one_by_one("VectorIndex", search, vectors.query_BD),
            _one_by_one("faiss Flat", _faiss_searcher(flat, k), vectors.query_BD),
            unit="ms",
            note=f"recall {recall(search, vectors.query_BD, exact_BK):.4f}",
        )


def _beside(bench: Bench, vectors: Vectors, exact_BK: NDArray[np.int64], index: VectorIndex, peer: Peer) -> None:
    k = exact_BK.shape[1]
    ours = _ours(index, k)
    reached = recall(ours, vectors.query_BD, exact_BK)
    found = 0.0
    for knob in peer.knobs:
        search = peer.searcher(k, knob)
        found = recall(search, vectors.query_BD, exact_BK)
        if found >= reached:
            bench.compare(
                f"{vectors.name}, k {k}",
                _one_by_one("VectorIndex", ours, vectors.query_BD),
                _one_by_one(peer.name, search, vectors.query_BD),
                unit="ms",
                note=f"recall {reached:.3f}, peer {found:.3f} at {knob}",
            )
            return
    bench.skip(peer.name, f"finds at most {found:.3f} of the {k} exact answers, ours {reached:.3f}")


def recall(search: Search, query_BD: NDArray[np.float32], exact_BK: NDArray[np.int64]) -> float:
    """Mean share of the exact answers that are found."""
    pairs = zip(query_BD[: len(exact_BK)], exact_BK, strict=True)
    return float(np.mean([np.isin(exact_K, search(query_D)).mean() for query_D, exact_K in pairs]))


def clustered(items: int, queries: int, *, seed: int) -> Vectors:
    """Unit vectors around 20,000 centres of unequal weight, which lie around 200 others."""
    random = np.random.default_rng(seed)
    broad_CD = random.standard_normal((200, _D))
    centre_CD = broad_CD[random.integers(200, size=20_000)] + 0.7 * random.standard_normal((20_000, _D))
    weight_C = random.pareto(1.5, len(centre_CD)) + 0.1
    centre = random.choice(len(centre_CD), items + queries, p=weight_C / weight_C.sum())
    vectors = _unit(centre_CD[centre] + 0.6 * random.standard_normal((items + queries, _D)))
    asked = vectors[items:]
    return Vectors(f"clustered {items:,} x {_D}", vectors[:items], asked[::2], asked[1::2])


def gowalla(folder: Path, *, items: int, epochs: int) -> Vectors:
    """Towers trained on the check-ins of train.parquet; more items lie between real ones and their neighbours.

    A further item is a random point of the line from a real item to one of its ten nearest, with noise of a third of
    their distance. Queries are users.
    """
    pairs = pl.read_parquet(folder / "train.parquet").select("user", "item").cast(pl.Utf8)
    user_names, item_names = (sorted(pairs[name].unique().to_list()) for name in ("user", "item"))
    table = FeatureTable(
        (
            Feature("user_id", "user", "id", len(user_names) + 1, vocabulary=tuple(user_names)),
            Feature("item_id", "item", "id", len(item_names) + 1, vocabulary=tuple(item_names)),
        ),
        actions=(),
        sources=(),
    )
    query_row_T = table.empty("query", pairs.height)
    query_row_T["user_id"] = table.encode("user_id", pairs["user"].to_list())
    item_row_I = table.empty("item", len(item_names))
    item_row_I["item_id"] = 1 + np.arange(len(item_names))
    positive_T = table.encode("item_id", pairs["item"].to_list()).astype(np.int64) - 1
    settings = TowerSettings(
        shape=TowerShape(width=_D, embedding=_D, id_dropout=0.0),
        temperature=0.1,
        uniform_negatives=1024,
        epochs=epochs,
        batch=2048,
        learning_rate=4e-3,
        validation=0.0,
    )
    with TemporaryDirectory() as work:
        towers, _ = train_towers(
            table, item_row_I, query_row_T, positive_T, settings=settings, seed=0, folder=Path(work)
        )
    real_ID = towers.encode_items(item_row_I)
    random = np.random.default_rng(0)
    _, near_IK = faiss.knn(real_ID, real_ID, 11, metric=faiss.METRIC_INNER_PRODUCT)
    base = random.integers(len(real_ID), size=max(0, items - len(real_ID)))
    step_ID = real_ID[near_IK[base, random.integers(1, 11, size=len(base))]] - real_ID[base]
    noise_ID = random.standard_normal(step_ID.shape) * np.linalg.norm(step_ID, axis=1, keepdims=True) / (3 * _D**0.5)
    more_ID = _unit(real_ID[base] + random.random((len(base), 1)) * step_ID + noise_ID)
    query_row_U = table.empty("query", len(user_names))
    query_row_U["user_id"] = 1 + random.permutation(len(user_names))
    query_UD = towers.encode_queries(query_row_U[:4000])
    item_ID = np.concatenate([real_ID, more_ID])
    return Vectors(f"gowalla {len(item_ID):,} x {_D}", item_ID, query_UD[::2], query_UD[1::2])


def _unit(vectors: NDArray[np.float64]) -> NDArray[np.float32]:
    return np.asarray(vectors / np.linalg.norm(vectors, axis=1, keepdims=True), np.float32)


def peers(bench: Bench, item_ID: NDArray[np.float32]) -> list[Peer]:
    """Those that are installed, built."""
    found = [_faiss_ivf(item_ID)]
    for package, build in (("hnswlib", _hnswlib), ("usearch", _usearch), ("scann", _scann)):
        if bench.installed(package):
            found.append(build(item_ID))
    return found


def _ours(index: VectorIndex, k: int) -> Search:
    return lambda query_D: index.search(query_D, k).row_K


def _one_by_one(name: str, search: Search, query_BD: NDArray[np.float32]) -> Side:
    turn = cycle(query_BD)
    return Side(name, lambda: search(next(turn)))


def _faiss_searcher(index: Any, k: int, parameters: Any = None) -> Search:
    return lambda query_D: np.asarray(index.search(query_D[None], k, params=parameters)[1][0])


def _faiss_ivf(item_ID: NDArray[np.float32]) -> Peer:
    """As FAISS's own guidelines have it: 4 sqrt(I) lists of full-precision vectors, 39 or more to train each."""
    lists = min(round(4 * len(item_ID) ** 0.5), len(item_ID) // 39)
    index: Any = faiss.index_factory(_D, f"IVF{lists},Flat", faiss.METRIC_INNER_PRODUCT)
    faiss.omp_set_num_threads(os.cpu_count() or 1)
    index.train(item_ID)
    index.add(item_ID)
    faiss.omp_set_num_threads(1)

    def searcher(k: int, nprobe: int) -> Search:
        made: Any = faiss.SearchParametersIVF
        return _faiss_searcher(index, k, made(nprobe=nprobe))

    return Peer("faiss IVF,Flat", [*range(1, 32), *range(32, 513, 8)], searcher)


def _hnswlib(item_ID: NDArray[np.float32]) -> Peer:
    hnswlib = import_module("hnswlib")
    index = hnswlib.Index(space="ip", dim=_D)
    index.init_index(max_elements=len(item_ID), M=16, ef_construction=100, random_seed=0)
    index.add_items(item_ID)
    index.set_num_threads(1)

    def searcher(k: int, ef: int) -> Search:
        def search(query_D: NDArray[np.float32]) -> NDArray[np.int64]:
            index.set_ef(ef)
            return np.asarray(index.knn_query(query_D, k=k)[0][0], np.int64)

        return search

    return Peer("hnswlib", range(100, 2001, 50), searcher)


def _usearch(item_ID: NDArray[np.float32]) -> Peer:
    index = import_module("usearch.index").Index(ndim=_D, metric="ip", dtype="f16", connectivity=16, expansion_add=100)
    index.add(np.arange(len(item_ID)), item_ID)

    def searcher(k: int, ef: int) -> Search:
        def search(query_D: NDArray[np.float32]) -> NDArray[np.int64]:
            index.expansion_search = ef
            return np.asarray(index.search(query_D, k, threads=1).keys, np.int64)

        return search

    return Peer("usearch", range(100, 2001, 50), searcher)


def _scann(item_ID: NDArray[np.float32]) -> Peer:
    """As its own page on parameters has it: 2 sqrt(I) leaves, hashes of 2 dimensions, 3 times as many scored again."""
    leaves = round(2 * len(item_ID) ** 0.5)
    index = (
        import_module("scann")
        .scann_ops_pybind.builder(item_ID, max(_KS), "dot_product")
        .tree(num_leaves=leaves, num_leaves_to_search=leaves // 10, training_sample_size=min(len(item_ID), 250_000))
        .score_ah(2, anisotropic_quantization_threshold=0.2)
        .reorder(3 * max(_KS))
        .build()
    )

    def searcher(k: int, leaves_searched: int) -> Search:
        return lambda query_D: np.asarray(
            index.search(
                query_D,
                final_num_neighbors=k,
                leaves_to_search=leaves_searched,
                pre_reorder_num_neighbors=max(3 * k, 350),
            )[0],
            np.int64,
        )

    return Peer("scann", [*range(4, 40, 2), *range(40, 400, 5)], searcher)


if __name__ == "__main__":
    main("ann", measure, "nearest neighbours one query at a time, at equal recall")
