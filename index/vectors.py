"""Nearest item vectors by inner product, through FAISS.

Shape letters: B queries, D embedding width, I items (rows of the catalogue), G items in the index (not quarantined),
K results, Q quarantined items.
"""

import json
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, Self, get_args

import faiss
import numpy as np
from numpy.typing import NDArray

from index.recall import Recall, recall_at
from index.types import Hits

Kind = Literal["exact", "ivf"]

EXACT_UP_TO = 100_000
"""Rows up to which an exhaustive search costs less than the misses of an approximate one."""
POISON_SHARE = 0.001
"""A build with a larger share of unusable vectors is refused. Below 1,000 rows a single one is too many."""
HUGE = 100.0
"""A vector this many times longer than the median one would answer every query."""

_FAISS: Any = faiss
"""Its stubs show the C++ constructors, not the Python ones."""
_FILE, _FACTS = "vectors.faiss", "vectors.json"
_CURVE_K = (100, 500)
_SAMPLE = 1_000
_TIMED = 100
_CHUNK = 65_536


@dataclass(frozen=True, slots=True)
class Certificate:
    """What was measured at build time, on a sample of the queries, against float32 exact search."""

    recall: Recall
    nprobe: int
    """Inverted lists visited; 1 for an exact index, which is one list."""
    latency_ms: float
    """Median of single searches on one thread."""


class VectorIndex:
    """An immutable index whose row i is item i.

    `exact` keeps every vector in half precision and reads them all. `ivf` keeps the same codes in lists around
    centroids and reads the `nprobe` nearest lists; with all lists it answers as `exact` does.
    """

    def __init__(
        self,
        index: Any,
        *,
        towers: str,
        quarantined_Q: NDArray[np.int64],
        certificates: tuple[Certificate, ...] = (),
    ) -> None:
        self.towers = towers
        """Fingerprint of the towers whose embeddings these are."""
        self.quarantined_Q = quarantined_Q
        """Rows whose vector could not be used, ascending; no search returns them."""
        self.certificates = certificates
        """One for each k measured, ascending."""
        self._index = index
        self._len = int(index.ntotal) + len(quarantined_Q)
        self._row_G = np.delete(np.arange(self._len), quarantined_Q) if len(quarantined_Q) else None

    @classmethod
    def build(
        cls,
        vector_ID: NDArray[np.float32],
        *,
        towers: str,
        recall_target: float = 0.97,
        k: int = 100,
        query_BD: NDArray[np.float32] | None = None,
        kind: Kind | None = None,
        clock: Callable[[], float] = time.perf_counter,
    ) -> Self:
        """Index the vectors, leaving out those that no query should find, and certify the recall.

        Quarantined are vectors that in half precision hold NaN or infinity (beyond 65504), are all zero, or are
        longer than `HUGE` times the median; more than `POISON_SHARE` of them refuses the build.

        Args:
            towers: fingerprint of the towers that made the vectors.
            recall_target: the lower confidence bound of recall that `nprobe` is raised to, for k, 100 and 500.
                Where no `nprobe` proves it (too few queries) all lists are read.
            query_BD: real queries, held out of training; up to 1,000 evenly spaced ones are used. None takes
                item vectors instead, which flatters the index: each finds itself.
            kind: None decides by the number of rows. An empty catalogue is always exact.
            clock: seconds; read for the certificate's latency only.

        Raises:
            ValueError: poison, a recall target outside (0, 1], a k below 1, or vectors that do not fit.
        """
        if not 0 < recall_target <= 1:
            raise ValueError(f"recall_target is {recall_target}, it must be above 0 and at most 1")
        if k < 1:
            raise ValueError(f"k is {k}, it must be at least 1")
        if kind is not None and kind not in get_args(Kind):
            raise ValueError(f"kind is {kind!r}, it must be one of {', '.join(get_args(Kind))}")
        if vector_ID.ndim != 2 or vector_ID.shape[1] == 0:
            raise ValueError(f"item vectors have shape {vector_ID.shape}, they must be rows of at least 1 dimension")
        with np.errstate(over="ignore"):
            vector_ID = np.ascontiguousarray(vector_ID, np.float32)
        quarantined_Q = _poison(vector_ID)
        if len(quarantined_Q) > POISON_SHARE * len(vector_ID):
            raise ValueError(
                f"{len(quarantined_Q)} of {len(vector_ID)} item vectors are NaN, infinite, zero or huge (the first is"
                f" row {quarantined_Q[0]}); at most {POISON_SHARE:.1%} may be"
            )
        vector_GD = np.delete(vector_ID, quarantined_Q, axis=0) if len(quarantined_Q) else vector_ID
        count, d = vector_GD.shape
        if query_BD is None:
            query_BD = vector_GD
        elif query_BD.ndim != 2 or query_BD.shape[1] != d:
            raise ValueError(f"queries have shape {query_BD.shape}, the index has dimension {d}")
        query_BD = np.ascontiguousarray(query_BD[:: max(1, math.ceil(len(query_BD) / _SAMPLE))], np.float32)
        if not np.isfinite(query_BD).all():
            bad = int((~np.isfinite(query_BD).all(1)).sum())
            raise ValueError(f"{bad} of {len(query_BD)} sampled queries are not finite")
        if kind is None:
            kind = "exact" if count <= EXACT_UP_TO else "ivf"
        made = cls(_filled(vector_GD, kind), towers=towers, quarantined_Q=quarantined_Q)
        if count and len(query_BD):
            ks = sorted({min(each, count) for each in (k, *_CURVE_K)})
            made.certificates = made._tuned(vector_GD, query_BD, target=recall_target, ks=ks)
            made.certificates = made._timed(query_BD[:_TIMED], clock)
        return made

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Open what `save` wrote, mapped from the file so that processes on one machine share its pages.

        Raises:
            ValueError: a missing or unreadable file, or an index that is not the one its description tells of.
        """
        facts = folder / _FACTS
        try:
            stored = json.loads(facts.read_text())
            kind, d, count, towers = stored["kind"], stored["d"], stored["count"], stored["towers"]
            quarantined_Q = np.array(stored["quarantined"], np.int64)
            certificates = tuple(
                Certificate(Recall(**each["recall"]), each["nprobe"], each["latency_ms"])
                for each in stored["certificates"]
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ValueError(f"{facts} does not describe a vector index: {error!r}") from error
        path = folder / _FILE
        try:
            index = faiss.read_index(str(path), faiss.IO_FLAG_MMAP_IFC)
        except RuntimeError as error:
            raise ValueError(f"{path} is not a FAISS index: {str(error).splitlines()[-1]}") from error
        found = (_kind(index), index.d, index.ntotal + len(quarantined_Q))
        if found != (kind, d, count):
            raise ValueError(
                f"{path} is {found[0]} of dimension {found[1]} with {found[2]} rows,"
                f" {_FACTS} says {kind} of dimension {d} with {count} rows"
            )
        if index.metric_type != faiss.METRIC_INNER_PRODUCT:
            raise ValueError(f"{path} has FAISS metric {index.metric_type}, not the inner product")
        if not np.isin(quarantined_Q, np.arange(count)).all():
            raise ValueError(f"{facts} quarantines rows beyond its {count}")
        return cls(index, towers=towers, quarantined_Q=quarantined_Q, certificates=certificates)

    def save(self, folder: Path) -> None:
        """Write `vectors.faiss` and `vectors.json`."""
        faiss.write_index(self._index, str(folder / _FILE))
        stored = {
            "kind": self.kind,
            "d": self.d,
            "count": len(self),
            "towers": self.towers,
            "quarantined": self.quarantined_Q.tolist(),
            "certificates": [asdict(each) for each in self.certificates],
        }
        (folder / _FACTS).write_text(json.dumps(stored, indent=1) + "\n")

    def __len__(self) -> int:
        """Rows of the catalogue, the quarantined ones among them."""
        return self._len

    @property
    def d(self) -> int:
        return int(self._index.d)

    @property
    def kind(self) -> Kind:
        return _kind(self._index)

    @property
    def quarantined(self) -> int:
        return len(self.quarantined_Q)

    @property
    def recall(self) -> float:
        """The lowest certified recall over the ks measured; NaN for an index without vectors."""
        return min((each.recall.value for each in self.certificates), default=math.nan)

    def search(self, query_D: NDArray[np.float32], k: int, allowed_I: NDArray[np.bool_] | None = None) -> Hits:
        """The k items of largest inner product with the query, on the calling thread alone.

        Args:
            allowed_I: rows that may be returned. As many lists are read as it takes to meet the same number of
                allowed vectors as without it, and all of them where that does not give k.

        Returns:
            k hits, or all that exist where they are fewer.

        Raises:
            ValueError: a query of another dimension or not finite, a mask of another length, or a negative k.
        """
        if query_D.ndim != 1:
            raise ValueError(f"the query has shape {query_D.shape}, it must be one vector of dimension {self.d}")
        query_1D = self._checked(query_D[None], k)
        exist, selector = int(self._index.ntotal), None
        if allowed_I is not None:
            if allowed_I.shape != (len(self),) or allowed_I.dtype != np.bool_:
                raise ValueError(f"a mask of {allowed_I.dtype} {allowed_I.shape} for {len(self)} rows")
            allowed_G = allowed_I if self._row_G is None else allowed_I[self._row_G]
            exist = int(np.count_nonzero(allowed_G))
            bitmap = np.packbits(allowed_G, bitorder="little")
            selector = _FAISS.IDSelectorBitmap(bitmap)
        k = min(k, exist)
        if k == 0:
            return Hits(np.empty(0, np.int64), np.empty(0, np.float32))
        nprobe = self._nprobe(k, exist)
        with _one_thread():
            score_1K, at_1K = self._index.search(query_1D, k, params=self._parameters(nprobe, selector))
            if at_1K[0, -1] < 0:
                score_1K, at_1K = self._index.search(query_1D, k, params=self._parameters(self._nlist, selector))
        row_K = at_1K[0] if self._row_G is None else self._row_G[at_1K[0]]
        return Hits(row_K, score_1K[0])

    def search_batch(self, query_BD: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Rows and scores of the k best for each query, shape (B, k), -1 and -inf where fewer than k exist.

        For offline use: runs on all of FAISS's threads. Raises as `search` does.
        """
        query_BD = self._checked(query_BD, k)
        row_BK = np.full((len(query_BD), k), -1, np.int64)
        score_BK = np.full((len(query_BD), k), -np.inf, np.float32)
        exist = min(k, int(self._index.ntotal))
        if exist == 0 or not len(query_BD):
            return row_BK, score_BK
        score, at = self._index.search(query_BD, exist, params=self._parameters(self._nprobe(exist, None), None))
        starved_B = at[:, -1] < 0
        if starved_B.any():
            everything = self._parameters(self._nlist, None)
            score[starved_B], at[starved_B] = self._index.search(query_BD[starved_B], exist, params=everything)
        row_BK[:, :exist] = at if self._row_G is None else self._row_G[at]
        score_BK[:, :exist] = score
        return row_BK, score_BK

    @property
    def _nlist(self) -> int:
        return int(self._index.nlist) if self.kind == "ivf" else 1

    def _nprobe(self, k: int, exist: int | None) -> int:
        """Lists to read for k results among the `exist` rows allowed: as certified, in proportion beyond that."""
        if not self.certificates:
            return self._nlist
        nearest = next((each for each in self.certificates if each.recall.k >= k), self.certificates[-1])
        scale = max(1.0, k / nearest.recall.k)
        if exist is not None:
            scale *= self._index.ntotal / exist
        return min(self._nlist, math.ceil(nearest.nprobe * scale))

    def _parameters(self, nprobe: int, selector: Any) -> Any:
        if self.kind == "ivf":
            return _FAISS.SearchParametersIVF(nprobe=nprobe, sel=selector)
        return _FAISS.SearchParameters(sel=selector)

    def _checked(self, query_BD: NDArray[np.float32], k: int) -> NDArray[np.float32]:
        if k < 0:
            raise ValueError(f"k is {k}, it must not be negative")
        if query_BD.ndim != 2:
            raise ValueError(f"the queries have shape {query_BD.shape}, they must be rows of dimension {self.d}")
        if query_BD.shape[1] != self.d:
            raise ValueError(f"the query has dimension {query_BD.shape[1]}, the index has {self.d}")
        with np.errstate(over="ignore"):
            query_BD = np.ascontiguousarray(query_BD, np.float32)
            # A finite length is what makes every score finite: stored values are at most 65504.
            if not np.isfinite(np.einsum("bd,bd->b", query_BD, query_BD)).all():
                raise ValueError("the query holds NaN or infinity, or is too long for a finite score")
        return query_BD

    def _tuned(
        self, vector_GD: NDArray[np.float32], query_BD: NDArray[np.float32], *, target: float, ks: list[int]
    ) -> tuple[Certificate, ...]:
        exact_BK, _ = faiss.knn(query_BD, vector_GD, ks[-1], metric=faiss.METRIC_INNER_PRODUCT)

        def measured(k: int, nprobe: int) -> Recall:
            _, at_BK = self._index.search(query_BD, k, params=self._parameters(nprobe, None))
            true_BK = np.stack([vector_GD[at_K] @ query_D for at_K, query_D in zip(at_BK, query_BD, strict=True)])
            return recall_at(at_BK, exact_BK[:, :k], true_BK)

        certificates: list[Certificate] = []
        nprobe = 1
        for k in ks:
            nprobe, recall = _least(partial(measured, k), start=nprobe, most=self._nlist, target=target)
            certificates.append(Certificate(recall, nprobe, math.nan))
        return tuple(certificates)

    def _timed(self, query_BD: NDArray[np.float32], clock: Callable[[], float]) -> tuple[Certificate, ...]:
        certificates = []
        for each in self.certificates:
            taken_s = []
            for query_D in query_BD:
                started_s = clock()
                self.search(query_D, each.recall.k)
                taken_s.append(clock() - started_s)
            certificates.append(replace(each, latency_ms=round(1000 * float(np.median(taken_s)), 4)))
        return tuple(certificates)


def _poison(vector_ID: NDArray[np.float32]) -> NDArray[np.int64]:
    norm_I = np.empty(len(vector_ID), np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        for start in range(0, len(vector_ID), _CHUNK):
            stored_ID = vector_ID[start : start + _CHUNK].astype(np.float16).astype(np.float32)
            norm_I[start : start + _CHUNK] = np.sqrt(np.einsum("id,id->i", stored_ID, stored_ID))
        usable_I = np.isfinite(norm_I) & (norm_I > 0)
        if usable_I.any():
            usable_I &= norm_I <= HUGE * np.median(norm_I[usable_I])
    return np.flatnonzero(~usable_I)


def _filled(vector_GD: NDArray[np.float32], kind: Kind) -> Any:
    """A FAISS index of the vectors; half-precision codes, not residuals, so that both kinds score alike."""
    count, d = vector_GD.shape
    index: Any
    if kind == "exact" or count == 0:
        index = faiss.IndexScalarQuantizer(d, faiss.ScalarQuantizer.QT_fp16, faiss.METRIC_INNER_PRODUCT)
    else:
        # Four times the square root balances the cost of finding lists with that of reading them; 39 vectors
        # a list is the least that FAISS trains a centroid on without complaint.
        nlist = max(1, min(round(4 * math.sqrt(count)), count // 39))
        index = faiss.index_factory(d, f"IVF{nlist},SQfp16", faiss.METRIC_INNER_PRODUCT)
        index.by_residual = False
        index.cp.niter = 6
        index.cp.max_points_per_centroid = 40
    if count:
        index.train(vector_GD)
        index.add(vector_GD)
    return index


def _kind(index: Any) -> Kind:
    return "ivf" if isinstance(index, faiss.IndexIVF) else "exact"


def _least(measure: Callable[[int], Recall], *, start: int, most: int, target: float) -> tuple[int, Recall]:
    """An nprobe from `start`, at most an eighth above the least whose lower bound reaches the target."""
    too_few, enough, recall = start - 1, start, measure(start)
    while recall.low < target and enough < most:
        too_few, enough = enough, min(2 * enough, most)
        recall = measure(enough)
    while enough - too_few > max(1, enough // 8):
        middle = (too_few + enough) // 2
        at_middle = measure(middle)
        if at_middle.low < target:
            too_few = middle
        else:
            enough, recall = middle, at_middle
    return enough, recall


@contextmanager
def _one_thread() -> Iterator[None]:
    """One OpenMP thread for the calling thread; the setting is its own, so concurrent searches do not meet."""
    threads = faiss.omp_get_max_threads()
    faiss.omp_set_num_threads(1)
    try:
        yield
    finally:
        faiss.omp_set_num_threads(threads)
