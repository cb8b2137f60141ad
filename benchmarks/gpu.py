"""Many queries at a time on a GPU, beside the same index on all cores of the CPU; skipped where there is no GPU.

Shape letters: I items, B queries of a batch, D width.
"""

from itertools import cycle

import faiss
import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import Bench, Side, main
from index.gpu import on_gpu
from index.kinds import Kind
from index.vectors import VectorIndex

_D, _K = 64, 100
_BATCHES = (1, 32, 256)
_KINDS: tuple[Kind, ...] = ("exact", "ivf", "ivf_pq")


def measure(bench: Bench) -> None:
    if not hasattr(faiss, "StandardGpuResources") or not faiss.get_num_gpus():
        bench.skip("GPU", "FAISS sees none")
        return
    for items in (20_000,) if bench.quick else (1_000_000, 10_000_000):
        random = np.random.default_rng(0)
        centre_CD = random.standard_normal((items // 50, _D), np.float32)
        vector_ID = centre_CD[random.integers(len(centre_CD), size=items)]
        vector_ID += 0.6 * random.standard_normal((items, _D), np.float32)
        vector_ID /= np.linalg.norm(vector_ID, axis=1, keepdims=True)
        query_BD = vector_ID[:: items // 4096] + 0.02 * random.standard_normal((1, _D), np.float32)
        for kind in _KINDS:
            index = VectorIndex.build(vector_ID, towers="", query_BD=query_BD[1::2], kind=kind)
            moved = on_gpu(index)
            for batch in _BATCHES:
                same = np.mean(moved.search_batch(query_BD[:256], _K)[0] == index.search_batch(query_BD[:256], _K)[0])
                bench.compare(
                    f"{kind}, {items:,} x {_D}, k {_K}, {batch} at a time",
                    _side("GPU", moved, query_BD, batch),
                    _side("CPU", index, query_BD, batch),
                    unit="ms",
                    note=f"certified recall {index.recall:.3f}; {same:.1%} of the rows in the same place",
                )


def _side(name: str, index: VectorIndex, query_BD: NDArray[np.float32], batch: int) -> Side:
    turn = cycle([query_BD[first : first + batch] for first in range(0, len(query_BD) - batch + 1, batch)])
    return Side(name, lambda: index.search_batch(next(turn), _K))


if __name__ == "__main__":
    main("gpu", measure, "searches in batches on a GPU and on the CPU")
