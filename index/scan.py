"""Inverted lists of 8-bit codes, scanned by compiled code; what looks best is scored again from the vectors themselves.

A query reads the `lists` whose centroids are nearest to it, one byte a dimension, keeps a quarter more than it was
asked for, and computes those inner products from the full vectors. FAISS finds centroids and assigns vectors to them.

Shape letters: I items (rows), G indexed items in the order of their lists, C lists, D width, K results, Z kept.
"""

import math
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, Literal, NamedTuple, Self

import faiss
import numpy as np
from numba import njit
from numpy.typing import NDArray

from index.columns import frozen
from index.prefetch import LINE_BYTES, prefetch

_EVERY_ROW = np.zeros(0, np.uint8)
_NO_LISTS = np.zeros(0, np.int64)
_NOTHING = np.zeros(0, np.float32)
_Where = tuple[int, NDArray[np.int64], NDArray[np.uint8]]
"""How many lists to read, or which; and the bits of the rows that may be returned, empty for all."""
_BINS = 2048
_AHEAD_BYTES = 8192
"""How far ahead codes are fetched: by itself the processor looks no further than the end of a page of 4096."""
_AHEAD_ROWS = 8
"""How many vectors ahead those are fetched that are scored again."""
_CHUNK = 65_536
_TRAIN_ITERATIONS = 6
_POINTS_A_LIST = 40
"""Vectors that a centroid is trained on; from 39 on FAISS has no complaint."""


_compiled: Any = njit(cache=True, nogil=True, boundscheck=False, fastmath={"reassoc", "contract", "nnan", "nsz"})
"""Sums may be taken in any order: that is what vectorises them."""


class _Lists(NamedTuple):
    centroid_CD: NDArray[np.int8]
    centroid_scale_C: NDArray[np.float32]
    offset_C1: NDArray[np.int64]
    """List c is held at offset_C1[c] up to offset_C1[c + 1]."""
    code_GD: NDArray[np.int8]
    scale_G: NDArray[np.float32]
    row_G: NDArray[np.int32]


class ScannedLists:
    """What `index.kinds.Codes` is for FAISS: codes that a `VectorIndex` asks, here of the kind `ivf_sq8`.

    Row g of the codes is round(127 v / max |v_d|), its scale max |v_d| / 127, so that long vectors cost short ones no
    precision. All arrays are read-only and may be memory-mapped; any number of threads may search at once, each on its
    own. FAISS finds the centroids and assigns the vectors.

    Args:
        vector_ID: all vectors; those of indexed rows are read for the scores.
        length_I: what the scores of each row are divided by, for a cosine; None where they are not.
    """

    kind: ClassVar[Literal["ivf_sq8"]] = "ivf_sq8"
    nominates: ClassVar[bool] = False

    def __init__(self, lists: _Lists, vector_ID: NDArray[np.float32], length_I: NDArray[np.float32] | None) -> None:
        self._lists = _Lists(*[frozen(np.ascontiguousarray(array)) for array in lists])
        self._vector_ID = frozen(np.ascontiguousarray(vector_ID))
        self._inverse_I = _NOTHING if length_I is None else frozen(1 / length_I)
        self.nlist = len(lists.centroid_CD)

    @classmethod
    def build(
        cls,
        vector_ID: NDArray[np.float32],
        *,
        row_G: NDArray[np.int64],
        lists: int,
        length_I: NDArray[np.float32] | None = None,
    ) -> Self:
        """Index the given rows, at least one, in at most so many lists. The same input gives the same bytes."""
        count, d = len(row_G), vector_ID.shape[1]
        lists = max(1, min(lists, count))

        def told(at_G: NDArray[np.int64]) -> NDArray[np.float32]:
            part = vector_ID[row_G[at_G]]
            return part if length_I is None else np.asarray(part / length_I[row_G[at_G], None], np.float32)

        sample = np.random.default_rng(0).permutation(count)[: _POINTS_A_LIST * lists]
        quantizer: Any = faiss.IndexFlatIP(d)
        training: Any = faiss.ClusteringParameters()
        training.niter = _TRAIN_ITERATIONS
        training.min_points_per_centroid = 1
        training.max_points_per_centroid = _POINTS_A_LIST
        clustering: Any = faiss.Clustering(d, lists, training)
        clustering.train(told(np.sort(sample)), quantizer)
        list_G = np.empty(count, np.int64)
        for first in range(0, count, _CHUNK):
            at_G = np.arange(first, min(first + _CHUNK, count))
            list_G[at_G] = quantizer.search(told(at_G), 1)[1][:, 0]
        order_G = np.argsort(list_G, kind="stable")
        code_GD, scale_G = np.empty((count, d), np.int8), np.empty(count, np.float32)
        for first in range(0, count, _CHUNK):
            part = slice(first, first + _CHUNK)
            code_GD[part], scale_G[part] = _coded(told(order_G[part]))
        centroid_CD, centroid_scale_C = _coded(quantizer.reconstruct_n(0, lists))
        made = _Lists(
            centroid_CD=centroid_CD,
            centroid_scale_C=centroid_scale_C,
            offset_C1=np.concatenate([[0], np.cumsum(np.bincount(list_G, minlength=lists))]),
            code_GD=code_GD,
            scale_G=scale_G,
            row_G=row_G[order_G].astype(np.int32),
        )
        return cls(made, vector_ID, length_I)

    @classmethod
    def read(cls, folder: Path, vector_ID: NDArray[np.float32], *, length_I: NDArray[np.float32] | None = None) -> Self:
        """Map what `write` wrote.

        Raises:
            ValueError: a missing or unreadable file, or arrays that do not belong together or to the vectors.
        """
        try:
            arrays = {name: np.load(_path(folder, name), mmap_mode="r", allow_pickle=False) for name in _Lists._fields}
        except (OSError, ValueError) as error:
            raise ValueError(f"{folder} does not hold inverted lists: {error}") from error
        found = _Lists(**arrays)
        count, lists, d = len(found.row_G), len(found.centroid_CD), vector_ID.shape[1]
        expected = {
            "centroid_CD": ("int8", (lists, d)),
            "centroid_scale_C": ("float32", (lists,)),
            "offset_C1": ("int64", (lists + 1,)),
            "code_GD": ("int8", (count, d)),
            "scale_G": ("float32", (count,)),
            "row_G": ("int32", (count,)),
        }
        for name, array in arrays.items():
            if (str(array.dtype), array.shape) != expected[name]:
                raise ValueError(f"{_path(folder, name)} is {array.dtype} {array.shape}, expected {expected[name]}")
        if found.offset_C1[0] != 0 or found.offset_C1[-1] != count or (np.diff(found.offset_C1) < 0).any():
            raise ValueError(f"{_path(folder, 'offset_C1')} does not cut {count} vectors into lists")
        if count and not 0 <= found.row_G.min() <= found.row_G.max() < len(vector_ID):
            raise ValueError(f"{_path(folder, 'row_G')} names rows outside the {len(vector_ID)} vectors")
        return cls(found, vector_ID, length_I)

    def write(self, folder: Path) -> None:
        for name, array in self._lists._asdict().items():
            np.save(_path(folder, name), array, allow_pickle=False)

    @property
    def d(self) -> int:
        return int(self._vector_ID.shape[1])

    @property
    def held(self) -> int:
        """Indexed rows."""
        return len(self._lists.row_G)

    @property
    def bytes(self) -> int:
        """Size without the vectors."""
        return sum(array.nbytes for array in self._lists)

    def ladder(self, k: int) -> tuple[int, int]:  # noqa: ARG002
        """The effort is the number of lists read."""
        return 1, self.nlist

    def nominated(self, k: int, effort: int) -> int:  # noqa: ARG002
        return k

    def search(
        self, query_BD: NDArray[np.float32], k: int, effort: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """Exact scores and rows of the k best found for each query, (B, k), equal ones by row; -1 where fewer are."""
        score_BK = np.full((len(query_BD), k), -np.inf, np.float32)
        row_BK = np.full((len(query_BD), k), -1, np.int64)
        for b, query_D in enumerate(query_BD):
            row_K, score_K = self._best(query_D, k, (effort, _NO_LISTS, _EVERY_ROW))
            row_BK[b, : len(row_K)], score_BK[b, : len(row_K)] = row_K, score_K
        return score_BK, row_BK

    def selector(self, bits: NDArray[np.uint8]) -> NDArray[np.uint8]:
        return bits

    def scan_lists(
        self,
        query_D: NDArray[np.float32],
        k: int,
        selector: NDArray[np.uint8],
        *,
        list_N: NDArray[np.int64],
        score_N: NDArray[np.float32],  # noqa: ARG002
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        """As `search`, for one query among the rows whose bit is set, reading these lists."""
        row_K, score_K = self._best(query_D, k, (0, list_N, selector))
        missing = k - len(row_K)
        return (
            np.pad(score_K, (0, missing), constant_values=-np.inf)[None],
            np.pad(row_K, (0, missing), constant_values=-1)[None],
        )

    @cached_property
    def centroid_LD(self) -> NDArray[np.float32]:
        return np.asarray(self._lists.centroid_CD * self._lists.centroid_scale_C[:, None], np.float32)

    @cached_property
    def list_I(self) -> NDArray[np.int32]:
        """The list that holds each row; -1 where none does."""
        list_I = np.full(len(self._vector_ID), -1, np.int32)
        list_I[self._lists.row_G] = np.repeat(np.arange(self.nlist, dtype=np.int32), np.diff(self._lists.offset_C1))
        return list_I

    def _best(
        self, query_D: NDArray[np.float32], k: int, where: "_Where"
    ) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        largest = float(np.abs(query_D).max(initial=0.0))
        finest = min(32767, (2**31 - 1) // (128 * max(1, len(query_D))))
        query16_D = np.rint(query_D * (finest / largest if largest > 0 else 0.0)).astype(np.int16)
        keep = math.ceil(1.25 * k) + 16
        lists, (read, list_L, bits) = self._lists, where
        if not len(list_L):
            score_C = _products(lists.centroid_CD, lists.centroid_scale_C, np.arange(self.nlist), query16_D)
            list_L = _best(score_C, read)
        at_G = _positions(lists.offset_C1, lists.row_G, list_L, bits)
        at_Z = at_G[_best(_products(lists.code_GD, lists.scale_G, at_G, query16_D), keep)]
        key_Z = _keys(lists.row_G[at_Z], self._vector_ID, self._inverse_I, query_D)
        key_Z.sort()
        row_K, score_K = _decoded(key_Z[:k])
        return row_K, score_K


def _path(folder: Path, name: str) -> Path:
    return folder / f"lists.{name}.npy"


def _coded(vector_ID: NDArray[np.float32]) -> tuple[NDArray[np.int8], NDArray[np.float32]]:
    scale_I = np.abs(vector_ID).max(axis=1) / np.float32(127)
    inverse_I = np.divide(1, scale_I, out=np.zeros_like(scale_I), where=scale_I > 0)
    return np.rint(vector_ID * inverse_I[:, None]).astype(np.int8), scale_I


# Each of these is called from Python: where one is a part of another, its sums may not be vectorised.


@_compiled
def _keys(row_Z, vector_ID, inverse_I, query_D):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    """Sortable keys of the kept rows: the smallest is the best, then the smaller row."""
    key_Z = np.empty(len(row_Z), np.uint64)
    row_bytes, last = 4 * vector_ID.shape[1], len(row_Z) - 1
    for z in range(len(row_Z)):
        ahead = np.int64(row_Z[min(z + _AHEAD_ROWS, last)]) * row_bytes
        for line in range(0, row_bytes, LINE_BYTES):
            prefetch(vector_ID, ahead + line)
        row = row_Z[z]
        exact = np.float32(0)
        for i in range(vector_ID.shape[1]):
            exact += vector_ID[row, i] * query_D[i]
        if len(inverse_I) > 0:
            exact *= inverse_I[row]
        number = np.float32(exact).view(np.uint32)
        ascending = ~number if number >> 31 else number | np.uint32(0x80000000)
        key_Z[z] = (np.uint64(np.uint32(~ascending)) << np.uint64(32)) | np.uint64(row)
    return key_Z


@_compiled
def _products(code_GD, scale_G, at_N, query16_D):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    """Inner products of some codes with the query, up to a factor that is the query's."""
    product_N = np.empty(len(at_N), np.int32)
    ahead, last = _AHEAD_BYTES // code_GD.shape[1] + 1, len(at_N) - 1
    for n in range(len(at_N)):
        prefetch(code_GD, at_N[min(n + ahead, last)] * code_GD.shape[1])
        total = np.int32(0)
        for i in range(code_GD.shape[1]):
            total += np.int32(code_GD[at_N[n], i]) * np.int32(query16_D[i])
        product_N[n] = total
    score_N = np.empty(len(at_N), np.float32)  # scaled apart: in one loop the compiler does not vectorise the sum
    for n in range(len(at_N)):
        score_N[n] = np.float32(product_N[n]) * scale_G[at_N[n]]
    return score_N


@_compiled
def _positions(offset_C1, row_G, list_L, bits):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    """Places in the codes of what some lists hold and the bits allow."""
    held = 0
    for c in list_L:
        held += offset_C1[c + 1] - offset_C1[c]
    at_N = np.empty(held, np.int64)
    n = 0
    for c in list_L:
        first, after = offset_C1[c], offset_C1[c + 1]
        if len(bits) == 0:
            for g in range(first, after):
                at_N[n + g - first] = g
            n += after - first
        else:
            for g in range(first, after):
                if (bits[row_G[g] >> 3] >> (row_G[g] & 7)) & 1:
                    at_N[n] = g
                    n += 1
    return at_N[:n]


@_compiled
def _best(value_N, k):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    """Positions, ascending, of the k largest values and of those that share the last one's histogram bin."""
    count = len(value_N)
    if count <= k:
        return np.arange(count)
    low, high = value_N[0], value_N[0]
    for n in range(count):
        low = min(low, value_N[n])
        high = max(high, value_N[n])
    scale = np.float32(_BINS - 1) / (high - low) if high > low else np.float32(0)
    bin_N = np.empty(count, np.int16)
    for n in range(count):
        bin_N[n] = np.int16((value_N[n] - low) * scale)
    held = np.zeros(_BINS + 1, np.int32)
    for n in range(count):
        held[bin_N[n]] += 1
    reached, least = 0, _BINS + 1
    while reached < k:
        least -= 1
        reached += held[least]
    best_K = np.empty(reached, np.int64)
    k = 0
    for n in range(count):
        if bin_N[n] >= least:
            best_K[k] = n
            k += 1
    return best_K


@_compiled
def _decoded(key_K):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    row_K = np.empty(len(key_K), np.int64)
    score_K = np.empty(len(key_K), np.float32)
    for i in range(len(key_K)):
        row_K[i] = np.int64(key_K[i] & np.uint64(0xFFFFFFFF))
        ascending = ~np.uint32(key_K[i] >> np.uint64(32))
        number = ascending & np.uint32(0x7FFFFFFF) if ascending >> 31 else ~ascending
        score_K[i] = np.uint32(number).view(np.float32)
    return row_K, score_K
