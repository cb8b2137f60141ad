"""How the codes of each kind are made and asked.

Their ids are rows of the catalogue, whatever the kind. One whole number, the effort, says how hard a search looks:

| kind    | a vector is held as               | effort           | codes rescored for k hits |
|---------|-----------------------------------|------------------|---------------------------|
| exact   | half precision                    | always 1         | none                      |
| ivf     | half precision, in lists          | lists read       | none                      |
| ivf_sq8 | 8 bits a dimension, in lists      | lists read       | 1.25 k                    |
| ivf_pq  | 4 bits a dimension, in lists      | lists read, e    | (1 + sqrt(e)) k           |
| hnsw    | half precision, in a linked graph | efSearch         | none                      |

A graph joins vectors of like direction, which finds the largest inner products only among vectors of one length: `hnsw`
holds one more dimension that makes up what each lacks to the longest, and that is 0 in every query (Bachrach et al.,
"Speeding Up the Xbox Recommender System", RecSys 2014).

The codes of `ivf_sq8` and `ivf_pq` only nominate: the vectors themselves decide. `ivf_sq8` is scanned by
code of ours (`index.scan`), the others are FAISS indexes. All but `ivf_pq` are read in place from the memory-mapped
file.

Shape letters: B queries, D embedding width, G rows held, I rows, K results, L lists.
"""

import math
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol, Self

import faiss
import numpy as np
from numpy.typing import NDArray

from index.lengths import unit
from index.scan import ScannedLists

Kind = Literal["exact", "ivf", "ivf_sq8", "ivf_pq", "hnsw"]
Rows = NDArray[np.int64]
Scores = NDArray[np.float32]

EXACT_UP_TO = 100_000
"""Rows up to which an exhaustive search costs less than the misses of an approximate one."""
EXACT_UP_TO_ON_GPU = 1_000_000

_FAISS: Any = faiss
"""Its stubs show the C++ constructors, not the Python ones."""
_INNER = faiss.METRIC_INNER_PRODUCT
_FILE = "vectors.faiss"
_SPEC: dict[Kind, str] = {"ivf": "IVF{lists},SQfp16", "ivf_pq": "IVF{lists},PQ{d}x4fs"}
_TRAINS_PQ = 39 * 16
"""Vectors that FAISS wants before it trains 4-bit codes without complaint."""
_LINKS, _EF_CONSTRUCTION = 16, 100
_MOST_EF = 32
"""To k; what a graph does not find by then it does not link to."""


class Device(Protocol):
    """A copy of an index's codes on an accelerator, for `VectorIndex.on`.

    The VectorIndex keeps its memory-mapped CPU index too. It sends the device only searches among all rows, of a k of
    at most `most_k`; for a mask it asks for more than it needs and drops what is not allowed; it rescores where codes
    only nominate; and it answers on the CPU what the device leaves open (-1, too few after the mask, a larger k).
    """

    most_k: int
    """2048 on CUDA."""

    def search(self, query_BD: NDArray[np.float32], k: int, effort: int) -> tuple[Scores, Rows]:
        """What `Codes.search` returns, best first, -1 where fewer are found; any thread may ask at any time.

        `query_BD` is float32, C-contiguous and finite, 1 <= k <= most_k. Raising RuntimeError (out of memory, a lost
        device) has the CPU answer this search.
        """
        ...


def chosen(count: int, *, recall_target: float = 0.97, cuda: bool = False) -> Kind:
    """The kind for so many rows.

    Exact where it is fast enough (a GPU reads more) or where nothing less will do (a target of 1); beyond that lists.
    """
    if recall_target == 1 or count <= (EXACT_UP_TO_ON_GPU if cuda else EXACT_UP_TO):
        return "exact"
    return "ivf" if cuda else "ivf_sq8"


def lists_for(count: int) -> int:
    """Four times the square root balances the cost of finding lists with that of reading them; 39 vectors a list is
    the least that FAISS trains a centroid on without complaint."""
    return max(1, min(round(4 * math.sqrt(count)), count // 39))


def made(
    vector_ID: NDArray[np.float32],
    quarantined_Q: Rows,
    *,
    kind: Kind,
    lists: int | None = None,
    length_I: NDArray[np.float32] | None = None,
) -> "Codes | ScannedLists":
    """Codes of the vectors that are not quarantined; exact ones where there are none.

    Args:
        lists: None decides by the number of rows; only of the kinds with lists.
        length_I: for a cosine, what each vector is divided by.
    """
    row_G = np.delete(np.arange(len(vector_ID)), quarantined_Q)
    if not len(row_G):
        kind = "exact"
    if kind == "ivf_sq8":
        return ScannedLists.build(vector_ID, row_G=row_G, lists=lists or lists_for(len(row_G)), length_I=length_I)
    told_ID = vector_ID if length_I is None else unit(vector_ID)
    return Codes.build(told_ID, quarantined_Q, kind=kind, lists=lists)


def read(
    folder: Path,
    quarantined_Q: Rows,
    *,
    kind: Kind,
    vector_ID: NDArray[np.float32],
    length_I: NDArray[np.float32] | None = None,
) -> "Codes | ScannedLists":
    """What `write` wrote.

    Raises:
        ValueError: files that cannot be read or are of another kind.
    """
    if kind == "ivf_sq8":
        return ScannedLists.read(folder, vector_ID, length_I=length_I)
    return Codes.read(folder, kind, quarantined_Q)


class Codes:
    """A FAISS index. Searches by one query stay on the calling thread; any number of threads may search at once."""

    def __init__(self, index: Any, kind: Kind, quarantined_Q: Rows) -> None:
        self.faiss = index
        self.kind = kind
        self.nlist = int(index.nlist) if kind.startswith("ivf") else 0
        self.nominates = kind == "ivf_pq"
        """Its scores are rough: rescore more than are wanted."""
        self._parameters: dict[int, Any] = {}
        self._usable: Any = None
        if len(quarantined_Q) and not self.nlist:
            # Position is identity in these kinds, so a quarantined row is there as zeros and must be passed over.
            usable_I = np.ones(index.ntotal, np.bool_)
            usable_I[quarantined_Q] = False
            self._usable = self.selector(np.packbits(usable_I, bitorder="little"))

    @classmethod
    def build(
        cls, vector_ID: NDArray[np.float32], quarantined_Q: Rows, *, kind: Kind, lists: int | None = None
    ) -> Self:
        """Hold the vectors, which are finite but for the quarantined ones. The same input gives the same bytes.

        A catalogue too small to train the codes on is held exactly. A graph is linked by one thread, since several
        would race for the links.
        """
        count, d = vector_ID.shape
        usable = count - len(quarantined_Q)
        if kind == "ivf_pq" and usable < _TRAINS_PQ:
            kind = "exact"
        index: Any
        if kind in _SPEC:
            row_G = np.delete(np.arange(count), quarantined_Q) if len(quarantined_Q) else np.arange(count)
            vector_GD = vector_ID[row_G] if len(quarantined_Q) else vector_ID
            index = faiss.index_factory(d, _SPEC[kind].format(lists=lists or lists_for(usable), d=d), _INNER)
            index.by_residual = False
            index.cp.niter = 6
            index.cp.max_points_per_centroid = 40
            index.train(vector_GD)
            index.add_with_ids(vector_GD, row_G)
            return cls(index, kind, quarantined_Q)
        if len(quarantined_Q):
            vector_ID = vector_ID.copy()
            vector_ID[quarantined_Q] = 0
        if kind == "exact":
            index = faiss.IndexScalarQuantizer(d, faiss.ScalarQuantizer.QT_fp16, _INNER)
        else:
            vector_ID = _level(vector_ID)
            index = faiss.index_factory(d + 1, f"HNSW{_LINKS},SQfp16", _INNER)
            index.hnsw.efConstruction = _EF_CONSTRUCTION
        if count:
            index.train(vector_ID)
            if kind == "exact":
                index.add(vector_ID)
            else:
                on_this_thread(index.add, vector_ID)
        return cls(index, kind, quarantined_Q)

    @classmethod
    def read(cls, folder: Path, kind: Kind, quarantined_Q: Rows) -> Self:
        """Mapped from the file but for `ivf_pq`, so that processes on one machine share its pages.

        Raises:
            ValueError: a file that FAISS cannot read, an index of another kind or metric.
        """
        path = folder / _FILE
        try:
            index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError as error:
            raise ValueError(f"{path} is not a FAISS index: {str(error).splitlines()[-1]}") from error
        if (found := _kind_of(index)) != kind:
            raise ValueError(f"{path} is {found}, not {kind}")
        if index.metric_type != _INNER:
            raise ValueError(f"{path} has FAISS metric {index.metric_type}, not the inner product")
        return cls(index, kind, quarantined_Q)

    def write(self, folder: Path) -> None:
        faiss.write_index(self.faiss, str(folder / _FILE))

    @property
    def d(self) -> int:
        """Of the vectors."""
        return int(self.faiss.d) - (self.kind == "hnsw")

    @property
    def held(self) -> int:
        """Vectors in it; the quarantined ones are among them only in the kinds without lists."""
        return int(self.faiss.ntotal)

    def ladder(self, k: int) -> tuple[int, int]:
        """The least and the greatest effort that mean something for k results."""
        if self.kind == "hnsw":
            return min(k, self.held), min(_MOST_EF * k, self.held)
        return 1, self.nlist or 1

    def nominated(self, k: int, effort: int) -> int:
        """Codes to ask for, k or more, so that the best k of them by their vectors are the answer."""
        if self.kind == "ivf_pq":
            return math.ceil(k * (1 + math.sqrt(effort)))
        return k

    def search(self, query_BD: NDArray[np.float32], k: int, effort: int) -> tuple[Scores, Rows]:
        """Scores and rows of the k best codes of all, shape (B, k), -1 where fewer were met; 1 <= k <= held."""
        parameters = self._parameters.get(effort)
        if parameters is None:
            if self.nlist:
                parameters = _FAISS.SearchParametersIVF(nprobe=effort)
            elif self.kind == "hnsw":
                parameters = _FAISS.SearchParametersHNSW(efSearch=effort, sel=self._usable)
            else:
                parameters = _FAISS.SearchParameters(sel=self._usable)
            self._parameters[effort] = parameters
        return _asked(self.faiss.search_c, self._told(query_BD), k, parameters)

    def selector(self, bits: NDArray[np.uint8]) -> Any:
        """The rows whose bit is set (bit i % 8 of byte i // 8), as searches of these codes want them."""
        return _FAISS.IDSelectorBitmap(bits)

    def scan(self, query_D: NDArray[np.float32], k: int, selector: Any) -> tuple[Scores, Rows]:
        """As `search`, for one query among the rows of a selector, reading all codes; for kinds without lists."""
        codes, told = self.faiss.storage if self.kind == "hnsw" else self.faiss, self._told(query_D[None])
        return _asked(_FAISS.downcast_index(codes).search_c, told, k, _FAISS.SearchParameters(sel=selector))

    def scan_lists(
        self, query_D: NDArray[np.float32], k: int, selector: Any, *, list_N: Rows, score_N: Scores
    ) -> tuple[Scores, Rows]:
        """As `scan`, reading these lists, whose centroids have these inner products with the query."""
        score_1K, row_1K = np.empty((1, k), np.float32), np.empty((1, k), np.int64)
        pointer = faiss.swig_ptr
        on_this_thread(
            self.faiss.search_preassigned_c,
            *(1, pointer(query_D), k, pointer(list_N), pointer(score_N), pointer(score_1K), pointer(row_1K), False),
            *(_FAISS.SearchParametersIVF(nprobe=len(list_N), sel=selector), None),
        )
        return score_1K, row_1K

    def _told(self, query_BD: NDArray[np.float32]) -> NDArray[np.float32]:
        return np.pad(query_BD, ((0, 0), (0, 1))) if self.kind == "hnsw" else query_BD

    @cached_property
    def centroid_LD(self) -> NDArray[np.float32]:
        centroid_LD: NDArray[np.float32] = self.faiss.quantizer.reconstruct_n(0, self.nlist)
        return centroid_LD

    @cached_property
    def list_I(self) -> NDArray[np.int32]:
        """The list that holds each row, up to the last row held; -1 where none does."""
        lists = self.faiss.invlists
        rows = [
            faiss.rev_swig_ptr(lists.get_ids(each), lists.list_size(each)) if lists.list_size(each) else _NONE
            for each in range(self.nlist)
        ]
        row_G = np.concatenate(rows)
        list_I = np.full(row_G.max() + 1, -1, np.int32)
        list_I[row_G] = np.repeat(np.arange(self.nlist, dtype=np.int32), [len(each) for each in rows])
        return list_I


_NONE = np.empty(0, np.int64)


def inner_products(
    query_D: NDArray[np.float32], vector_ID: NDArray[np.float32], row_N: Rows | None = None
) -> NDArray[np.float32]:
    """With the vectors of these rows, or all; read in place, on the calling thread, one pass.

    BLAS would copy the rows out first and may wake its own threads.
    """
    pointer = faiss.swig_ptr
    count, d = len(vector_ID) if row_N is None else len(row_N), vector_ID.shape[1]
    score_N = np.empty(count, np.float32)
    if count == 0:
        return score_N
    if row_N is None:
        _FAISS.fvec_inner_products_ny(pointer(score_N), pointer(query_D), pointer(vector_ID), d, count)
    else:
        on_this_thread(
            _FAISS.fvec_inner_products_by_idx,
            *(pointer(score_N), pointer(query_D), pointer(vector_ID), pointer(row_N), d, 1, count),
        )
    return score_N


def on_this_thread(work: Any, *arguments: Any) -> None:
    """OpenMP keeps its number of threads per calling thread, so concurrent searches do not meet here."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        work(*arguments)
    finally:
        faiss.omp_set_num_threads(threads)


def _asked(search: Any, query_BD: NDArray[np.float32], k: int, parameters: Any) -> tuple[Scores, Rows]:
    """FAISS's own Python wrapper checks and converts again what the VectorIndex has checked."""
    count, pointer = len(query_BD), faiss.swig_ptr
    score_BK, row_BK = np.empty((count, k), np.float32), np.empty((count, k), np.int64)
    arguments = (count, pointer(query_BD), k, pointer(score_BK), pointer(row_BK), parameters)
    if count == 1:
        on_this_thread(search, *arguments)
    else:
        search(*arguments)
    return score_BK, row_BK


def _level(vector_ID: NDArray[np.float32]) -> NDArray[np.float32]:
    """With a dimension more, in which all are as long as the longest."""
    square_I = np.einsum("id,id->i", vector_ID, vector_ID, dtype=np.float64)
    lacks_I = np.sqrt(np.maximum(square_I.max(initial=0.0) - square_I, 0.0))
    return np.column_stack([vector_ID, lacks_I.astype(np.float32)])


def _kind_of(index: Any) -> str:
    if isinstance(index, faiss.IndexIVFPQFastScan):
        return "ivf_pq"
    if isinstance(index, faiss.IndexHNSW):
        return "hnsw"
    for codes, kind in ((faiss.IndexIVFScalarQuantizer, "ivf"), (faiss.IndexScalarQuantizer, "exact")):
        if isinstance(index, codes) and index.sq.qtype == faiss.ScalarQuantizer.QT_fp16:
            return kind
    return type(index).__name__
