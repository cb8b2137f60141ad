"""A VectorIndex searched on a CUDA GPU.

The GPU only nominates: masks, rescoring and whatever it leaves open stay with the VectorIndex on the CPU, for a GPU
index ignores selectors without a word. By kind it holds:

| kind          | on the GPU                                                                                    |
|---------------|-----------------------------------------------------------------------------------------------|
| exact         | half precision, every vector read                                                             |
| ivf, ivf_sq8  | half precision in the same lists                                                              |
| ivf_pq        | in the same lists 8 bits for every 2 dimensions (up to 4 where the width asks for it) of what |
|               | is left after the centroid; as large as the CPU's 4-bit codes, which have no GPU form         |
| hnsw          | stays on the CPU                                                                              |

Shape letters: B queries, D embedding width, G rows held, I rows, K results, L lists.
"""

from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from index.batching import Batcher
from index.kinds import Rows, Scores
from index.lengths import unit
from index.scan import ScannedLists
from index.vectors import VectorIndex

MOST = 2048
"""FAISS selects at most so many results, and lists, on CUDA (`getMaxKSelection`)."""

_FAISS: Any = faiss
"""Its GPU names exist in GPU builds alone."""
_SCRATCH_BYTES = 256 << 20
"""FAISS takes 1.5 GiB for each resource object unless told otherwise; what needs more allocates it for the search."""
_SUBQUANTIZERS = (1, 2, 3, 4, 8, 12, 16, 20, 24, 28, 32, 40, 48, 56, 64, 96)
"""Codes of so many bytes have kernels (`IVFPQ::isSupportedPQCodeLength`)."""
_TRAINS_PQ = 256 * 64
_CHUNK = 262_144


class NominatedByGpu:
    """A `Device` for `VectorIndex.on`: one FAISS index that one thread searches for all.

    Searches of the same k and effort that wait together are one batch; see `Batcher`.

    Args:
        moved: a FAISS index on a GPU; nobody else may use it or its resources.
        row_G: the row that each of its ids stands for; None where ids are rows.
    """

    most_k = MOST

    def __init__(self, moved: Any, row_G: Rows | None = None) -> None:
        lists = isinstance(moved, faiss.IndexIVFInterface)

        def search_batch(query_BD: NDArray[np.float32], how: tuple[int, int]) -> tuple[Scores, Rows]:
            k, effort = how
            parameters = _FAISS.SearchParametersIVF(nprobe=effort) if lists else None
            score_BK, at_BK = moved.search(query_BD, k, params=parameters)
            return score_BK, at_BK if row_G is None else np.where(at_BK < 0, -1, row_G[at_BK])

        self._batcher: Batcher[tuple[int, int]] = Batcher(search_batch)

    def search(self, query_BD: NDArray[np.float32], k: int, effort: int) -> tuple[Scores, Rows]:
        """Scores and rows of the k best codes, shape (B, k), -1 where fewer were met.

        Raises:
            RuntimeError: what FAISS raised (out of memory, a k or an effort above `MOST`), or the device was closed.
        """
        return self._batcher.search_batch(query_BD, (k, effort))

    def close(self) -> None:
        """Answer who waits and end the thread; happens by itself once nobody holds the device."""
        self._batcher.close()


def on_gpu(index: VectorIndex, *, gpu: int = 0) -> VectorIndex:
    """The index with its codes copied to the GPU of this number; the index itself where its kind cannot be there.

    Raises:
        RuntimeError: FAISS without CUDA support, no such GPU, or too little memory on it.
    """
    if not index.codes.held or index.kind == "hnsw":
        return index
    # One object for this one thread: concurrent use is not safe, and a shared one would have to be locked.
    resources = _FAISS.StandardGpuResources()
    resources.setTempMemory(_SCRATCH_BYTES)
    if index.kind == "exact":
        return index.on(NominatedByGpu(*_flat(index, resources, gpu)))
    if isinstance(index.codes, ScannedLists):
        source = half_of(index)
    else:
        source = pq_of(index) if index.kind == "ivf_pq" else index.codes.faiss
    if source is None:
        return index
    options = _FAISS.GpuClonerOptions()
    options.indicesOptions = _FAISS.INDICES_32_BIT if len(index) < 2**31 else _FAISS.INDICES_64_BIT
    options.useFloat16 = True  # of a query's tables for ivf_pq, which beyond 48 bytes a code do not fit otherwise
    moved = _FAISS.index_cpu_to_gpu(resources, gpu, source, options)
    if not source.ntotal:
        hold(moved, index)
    return index.on(NominatedByGpu(moved))


def half_of(index: VectorIndex) -> Any:
    """An empty, trained FAISS index with the lists of this one, for vectors in half precision."""
    half: Any = _FAISS.IndexIVFScalarQuantizer(
        _centroids(index), index.d, index.codes.nlist, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT, False
    )
    half.train(index.codes.centroid_LD)
    return half


def pq_of(index: VectorIndex) -> Any:
    """An empty, trained FAISS index with the lists of this one and the product quantizer that a GPU reads; None where
    no such quantizer divides the width into parts of 2 to 4 dimensions."""
    d, lists = index.d, index.codes.nlist
    bytes_each = max((each for each in _SUBQUANTIZERS if d % each == 0 and d >= 2 * each), default=0)
    if d > 4 * bytes_each:
        return None
    pq: Any = _FAISS.IndexIVFPQ(_centroids(index), d, lists, bytes_each, 8, faiss.METRIC_INNER_PRODUCT)
    pq.pq.cp.min_points_per_centroid = 1
    row_G = _held(index)
    pq.train(_told(index, row_G[:: max(1, len(row_G) // _TRAINS_PQ)]))
    return pq


def hold(moved: Any, index: VectorIndex) -> None:
    """Add every usable vector under its row."""
    row_G = _held(index)
    for first in range(0, len(row_G), _CHUNK):
        part_G = row_G[first : first + _CHUNK]
        moved.add_with_ids(_told(index, part_G), part_G)


def _centroids(index: VectorIndex) -> Any:
    quantizer: Any = faiss.IndexFlatIP(index.d)
    quantizer.add(index.codes.centroid_LD)
    return quantizer


def _flat(index: VectorIndex, resources: Any, gpu: int) -> tuple[Any, Rows | None]:
    """Usable vectors only: the CPU's exact index keeps the others as zeros and passes over them by a selector."""
    config = _FAISS.GpuIndexFlatConfig()
    config.device, config.useFloat16 = gpu, True
    flat = _FAISS.GpuIndexFlatIP(resources, index.d, config)
    row_G = _held(index)
    for first in range(0, len(row_G), _CHUNK):
        flat.add(_told(index, row_G[first : first + _CHUNK]))
    return flat, row_G if index.quarantined else None


def _held(index: VectorIndex) -> Rows:
    return np.delete(np.arange(len(index)), index.quarantined_Q)


def _told(index: VectorIndex, row_G: Rows) -> NDArray[np.float32]:
    """The vectors of some rows, as the index holds them."""
    vector_GD = np.ascontiguousarray(index.vector_ID[row_G])
    return unit(vector_GD) if index.metric == "cosine" else vector_GD
