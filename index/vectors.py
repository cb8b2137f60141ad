"""Nearest item vectors by inner product or cosine, among all rows or those that a mask allows.

Shape letters: A allowed rows, B queries, D embedding width, I items (rows of the catalogue), K results,
N nominated rows, Q quarantined items.
"""

import json
import math
import time
from bisect import bisect_left
from collections.abc import Callable
from copy import copy
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Literal, Self, get_args
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from index.certificates import (
    CURVE_K,
    FILTERED_QUERIES,
    QUERIES,
    TIMED,
    Certificate,
    Truth,
    at_work,
    certified,
    filters,
    least_recall,
    timed,
    true_scores,
    tuned,
)
from index.kinds import Codes, Device, Kind, Scores, chosen, inner_products, made, read
from index.lengths import norms, unit
from index.masks import Mask
from index.planner import MET, Reading, best, lists_read, oversampled, plan
from index.poison import quarantined
from index.recall import Recall
from index.scan import ScannedLists
from index.types import Hits

Metric = Literal["inner_product", "cosine"]


_FACTS = "vectors.json"
_NO_HITS = Hits(np.empty(0, np.int64), np.empty(0, np.float32))


class VectorIndex:
    """An immutable index whose row i is item i.

    A search by one query runs on the calling thread alone, and any number of threads may search at once. Scores are
    of the codes (half precision rounds them) or, where the kind rescores, exact.
    """

    def __init__(
        self,
        codes: Codes | ScannedLists,
        vector_ID: NDArray[np.float32],
        *,
        towers: str,
        metric: Metric,
        quarantined_Q: NDArray[np.int64],
        typical_norm: float,
        efforts: dict[int, int],
        curve: tuple[Certificate, ...] = (),
        item_efforts: dict[int, int] | None = None,
        item_curve: tuple[Certificate, ...] = (),
    ) -> None:
        self.codes = codes
        self.vector_ID = vector_ID
        """Of all rows as the towers made them; read where few rows are allowed and where codes only nominate."""
        self.towers = towers
        """Fingerprint of the towers whose embeddings these are."""
        self.metric: Metric = metric
        self.quarantined_Q = quarantined_Q
        """Rows whose vector could not be used, ascending; no search returns them."""
        self.typical_norm = typical_norm
        """Median length of the usable vectors, for `unusable`; NaN without any."""
        self.efforts = efforts
        """By k certified, ascending."""
        self.curve = curve
        """Everything that was measured at build time."""
        self.item_efforts = efforts if item_efforts is None else item_efforts
        """The same of searches for what is near an item: its own vector is an easier question than a query's."""
        self.item_curve = item_curve
        self._device: Device | None = None
        self._efforts: dict[int, int] = {}
        self._usable = len(vector_ID) - len(quarantined_Q)
        self._readings: WeakKeyDictionary[Mask, tuple[Mask | None, Reading]] = WeakKeyDictionary()

    @classmethod
    def build(
        cls,
        vector_ID: NDArray[np.float32],
        *,
        towers: str,
        metric: Metric = "inner_product",
        recall_target: float = 0.97,
        k: int = 100,
        query_BD: NDArray[np.float32] | None = None,
        kind: Kind | None = None,
        lists: int | None = None,
        effort: int | None = None,
        cuda: bool = False,
    ) -> Self:
        """Index the vectors, leaving out those that no query should find, and certify the recall.

        `unusable` vectors are quarantined; more than `POISON_SHARE` of them refuses the build. The same input gives
        the same files.

        Args:
            towers: fingerprint of the towers that made the vectors.
            metric: `cosine` takes vectors and queries as if they had length 1 (a query of zeros scores 0).
            recall_target: the lower confidence bound of recall that the effort is raised to, for k, 100 and 500.
                Where nothing proves it (too few queries) the effort is the greatest there is.
            query_BD: real queries, held out of training; up to `QUERIES` evenly spaced ones are used. None takes
                item vectors instead, which flatters the index: each finds itself.
            kind: None decides by `index.kinds.chosen`. Too few rows to make the kind of are held exactly.
            lists: None decides by the number of rows; only of the kinds with lists.
            effort: None tunes it for each k; see `index.kinds` for what it means.
            cuda: whether it is to be searched on a GPU, where the choice of kind is another.

        Raises:
            ValueError: poison, a recall target outside (0, 1], a k, number of lists or effort below 1, or vectors
                that do not fit.
        """
        if not 0 < recall_target <= 1:
            raise ValueError(f"recall_target is {recall_target}, it must be above 0 and at most 1")
        for name, value in (("k", k), ("lists", lists), ("effort", effort)):
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, it must be at least 1")
        if kind is not None and kind not in get_args(Kind):
            raise ValueError(f"kind is {kind!r}, it must be one of {', '.join(get_args(Kind))}")
        if metric not in get_args(Metric):
            raise ValueError(f"metric is {metric!r}, it must be one of {', '.join(get_args(Metric))}")
        if vector_ID.ndim != 2 or vector_ID.shape[1] == 0:
            raise ValueError(f"item vectors have shape {vector_ID.shape}, they must be rows of at least 1 dimension")
        count, d = vector_ID.shape
        with np.errstate(over="ignore"):
            vector_ID = np.ascontiguousarray(vector_ID, np.float32)
        quarantined_Q = quarantined(vector_ID)
        usable_I = np.ones(count, np.bool_)
        usable_I[quarantined_Q] = False
        usable = Mask(usable_I)
        if query_BD is None:
            query_BD = vector_ID[usable.row_A[:: max(1, math.ceil(usable.count / QUERIES))]]
        elif query_BD.ndim != 2 or query_BD.shape[1] != d:
            raise ValueError(f"queries have shape {query_BD.shape}, the index has dimension {d}")
        query_BD = np.ascontiguousarray(query_BD[:: max(1, math.ceil(len(query_BD) / QUERIES))], np.float32)
        if not np.isfinite(query_BD).all():
            bad = int((~np.isfinite(query_BD).all(1)).sum())
            raise ValueError(f"{bad} of {len(query_BD)} sampled queries are not finite")
        told_ID = unit(vector_ID) if metric == "cosine" else vector_ID
        if kind is None:
            kind = chosen(usable.count, recall_target=recall_target, cuda=cuda)
        ks = sorted({min(each, usable.count) for each in (k, *CURVE_K)}) if usable.count else []
        index = cls(
            made(vector_ID, quarantined_Q, kind=kind, lists=lists, length_I=_divisors(vector_ID, metric)),
            vector_ID,
            towers=towers,
            metric=metric,
            quarantined_Q=quarantined_Q,
            typical_norm=float(np.median(norms(vector_ID)[usable_I])) if usable.count else math.nan,
            efforts={},
        )
        if ks and len(query_BD):
            index._certify(told_ID, unit(query_BD) if metric == "cosine" else query_BD, ks, recall_target, effort)
        return index

    @classmethod
    def load(cls, folder: Path, vector_ID: NDArray[np.float32]) -> Self:
        """Open what `save` wrote, mapped from the file (but for `ivf_pq`) so that processes share its pages.

        Args:
            vector_ID: the vectors that it was built from; memory-mapped ones are read in place.

        Raises:
            ValueError: a missing or unreadable file, or an index that is not the one its description tells of, or
                not of these vectors.
        """
        facts = folder / _FACTS
        try:
            stored = json.loads(facts.read_text())
            kind, d, count = stored["kind"], stored["d"], stored["count"]
            quarantined_Q = np.array(stored["quarantined"], np.int64)
            metric: Metric = stored["metric"]
            known = {
                "towers": stored["towers"],
                "metric": metric,
                "typical_norm": math.nan if stored["typical_norm"] is None else float(stored["typical_norm"]),
                "efforts": {int(k): int(effort) for k, effort in stored["efforts"].items()},
                "curve": tuple(Certificate.stored(each) for each in stored["curve"]),
                "item_efforts": {int(k): int(e) for k, e in stored.get("item_efforts", stored["efforts"]).items()},
                "item_curve": tuple(Certificate.stored(each) for each in stored.get("item_curve", ())),
            }
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{facts} does not describe a vector index: {error!r}") from error
        if not np.isin(quarantined_Q, np.arange(count)).all():
            raise ValueError(f"{facts} quarantines rows beyond its {count}")
        if vector_ID.shape != (count, d):
            raise ValueError(f"{facts} is of vectors of shape {(count, d)}, not {vector_ID.shape}")
        vector_ID = np.ascontiguousarray(vector_ID, np.float32)
        length_I = _divisors(vector_ID, metric)
        codes = read(folder, quarantined_Q, kind=kind, vector_ID=vector_ID, length_I=length_I)
        held = count - (len(quarantined_Q) if codes.nlist else 0)
        if (codes.d, codes.held) != (d, held):
            raise ValueError(
                f"the codes in {folder} are {codes.held} vectors of dimension {codes.d},"
                f" {_FACTS} says {held} of dimension {d}"
            )
        return cls(codes, vector_ID, quarantined_Q=quarantined_Q, **known)

    def save(self, folder: Path) -> None:
        """Write the codes and `vectors.json`."""
        self.codes.write(folder)
        stored = {
            "kind": self.kind,
            "metric": self.metric,
            "d": self.d,
            "count": len(self),
            "towers": self.towers,
            "typical_norm": None if math.isnan(self.typical_norm) else self.typical_norm,
            "quarantined": self.quarantined_Q.tolist(),
            "efforts": self.efforts,
            "curve": [asdict(each) for each in self.curve],
            "item_efforts": self.item_efforts,
            "item_curve": [asdict(each) for each in self.item_curve],
        }
        (folder / _FACTS).write_text(json.dumps(stored, indent=1) + "\n")

    def on(self, device: Device) -> Self:
        """This index, with the device asked wherever it can answer."""
        index = copy(self)
        index._device = device
        index._readings = WeakKeyDictionary()
        index.__dict__.pop("of_items", None)
        return index

    @cached_property
    def of_items(self) -> Self:
        """This index, reading no more than a search takes whose query is the vector of an item."""
        index = copy(self)
        index.efforts, index.curve = self.item_efforts, self.item_curve
        index._efforts, index._readings = {}, WeakKeyDictionary()
        return index

    def __len__(self) -> int:
        """Rows of the catalogue, the quarantined ones among them."""
        return len(self.vector_ID)

    @property
    def d(self) -> int:
        return int(self.vector_ID.shape[1])

    @property
    def kind(self) -> Kind:
        return self.codes.kind

    @property
    def quarantined(self) -> int:
        return len(self.quarantined_Q)

    @property
    def certificates(self) -> tuple[Certificate, ...]:
        """The points of the curve that searches work at, unfiltered ones first, each by ascending k."""
        return at_work(self.curve, self.efforts)

    @property
    def recall(self) -> float:
        """The lowest certified recall without a filter, over the ks; NaN for an index without vectors."""
        return least_recall(self.certificates)

    def effort(self, k: int) -> int:
        """Of a search for k: as certified, between two ks by the logarithm of k, in proportion beyond the largest."""
        known = self._efforts.get(k)
        if known is None:
            least, most = self.codes.ladder(k)
            known = self._efforts[k] = max(least, min(self._interpolated(k), most)) if self.efforts else most
        return known

    def _interpolated(self, k: int) -> int:
        ks = list(self.efforts)
        at = bisect_left(ks, k)
        if at == len(ks):
            return math.ceil(self.efforts[ks[-1]] * k / ks[-1])
        high = self.efforts[ks[at]]
        if at == 0 or ks[at] == k:
            return high
        low, share = self.efforts[ks[at - 1]], math.log(k / ks[at - 1]) / math.log(ks[at] / ks[at - 1])
        return math.ceil(low + share * (high - low))

    def search(self, query_D: NDArray[np.float32], k: int, allowed: Mask | None = None) -> Hits:
        """The k best items for the query.

        Args:
            allowed: rows that may be returned. How is planned by their number and what each way costs; see
                `index.planner`. What is derived from a mask is kept while it lives.

        Returns:
            k hits, or all that exist where they are fewer.

        Raises:
            ValueError: a query of another dimension or not finite, a mask of another length, or a negative k.
        """
        if query_D.ndim != 1:
            raise ValueError(f"the query has shape {query_D.shape}, it must be one vector of dimension {self.d}")
        query_D = self._asked(query_D[None], k)[0]
        if allowed is None:
            return self._among_all(query_D, k)
        if len(allowed) != len(self):
            raise ValueError(f"a mask of {len(allowed)} rows for {len(self)} rows")
        return self._among(query_D, k, allowed)

    def search_batch(self, query_BD: NDArray[np.float32], k: int) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Rows and scores of the k best for each query, shape (B, k), -1 and -inf where fewer than k exist.

        Runs on all of FAISS's threads. Raises as `search` does.
        """
        query_BD = self._asked(query_BD, k)
        row_BK, score_BK = self._batch(query_BD, k, self.effort(k))
        exist = min(k, self._usable)
        for b in np.flatnonzero(row_BK[:, exist - 1] < 0) if exist else ():
            hits = self._among_all(query_BD[b], exist)
            row_BK[b, :exist], score_BK[b, :exist] = hits.row_K, hits.score_K
        return row_BK, score_BK

    def latencies_ms(
        self, query_BD: NDArray[np.float32], *, clock: Callable[[], float] = time.perf_counter
    ) -> dict[str, float]:
        """Median of single searches at every point of the curve, by `Certificate.name` and effort.

        Not among the facts saved: the files of an index depend on what it was built from alone.

        Args:
            query_BD: up to 50 evenly spaced ones are used.
            clock: seconds.
        """
        query_BD = self._asked(query_BD[:: max(1, math.ceil(len(query_BD) / TIMED))], 0)
        told_ID = unit(self.vector_ID) if self.metric == "cosine" else self.vector_ID
        masks = {(share, regions): mask for share, regions, mask in filters(told_ID, self._all)}

        def search(query_D: NDArray[np.float32], point: Certificate) -> Hits:
            mask = masks.get((point.share, point.regions))
            if mask is None:
                return self._among_all(query_D, point.recall.k, point.effort)
            return self._among(query_D, point.recall.k, mask)

        return timed(self.curve, query_BD, search, clock=clock)

    def _asked(self, query_BD: NDArray[np.float32], k: int) -> NDArray[np.float32]:
        if k < 0:
            raise ValueError(f"k is {k}, it must not be negative")
        if query_BD.ndim != 2:
            raise ValueError(f"the queries have shape {query_BD.shape}, they must be rows of dimension {self.d}")
        if query_BD.shape[1] != self.d:
            raise ValueError(f"the query has dimension {query_BD.shape[1]}, the index has {self.d}")
        if query_BD.dtype != np.float32 or not query_BD.flags.c_contiguous:
            with np.errstate(over="ignore"):
                query_BD = np.ascontiguousarray(query_BD, np.float32)
        # A finite length is what makes every score finite: stored values are at most 65504.
        with np.errstate(over="ignore"):
            if len(query_BD) == 1:
                finite = math.isfinite(query_BD[0].dot(query_BD[0]))
            else:
                finite = bool(np.isfinite(np.einsum("bd,bd->b", query_BD, query_BD)).all())
        if not finite:
            raise ValueError("the query holds NaN or infinity, or is too long for a finite score")
        return unit(query_BD) if self.metric == "cosine" else query_BD

    def _among_all(self, query_D: NDArray[np.float32], k: int, effort: int | None = None) -> Hits:
        k = min(k, self._usable)
        if k == 0:
            return _NO_HITS
        effort, most = effort or self.effort(k), self.codes.ladder(k)[1]
        while True:
            hits = self._best(query_D, *self._nominees(query_D[None], k, effort), k)
            if len(hits) == k:
                return hits
            if effort == most:
                return self._subset(query_D, k, self._all)
            effort = min(4 * effort, most)

    def _among(self, query_D: NDArray[np.float32], k: int, allowed: Mask) -> Hits:
        allowed, reading = self._read(allowed)
        count = allowed.count
        k = min(k, count)
        if k == 0:
            return _NO_HITS
        if count == self._usable:
            return self._among_all(query_D, k)
        way = reading.plans.get(k)
        if way is None:
            way = plan(self.codes, k=k, count=count, usable=self._usable, effort=self.effort, device=self._device)
            reading.plans[k] = way
        if way == "oversample":
            hits = self._among_all(query_D, oversampled(k, count, self._usable))
            kept_N = np.flatnonzero(allowed.allowed_I[hits.row_K])[:k]
            if len(kept_N) == k:
                return Hits(hits.row_K[kept_N], hits.score_K[kept_N])
            way = "scan"
        if way == "scan":
            hits = self._scan(query_D, k, reading, count)
            if len(hits) == k:
                return hits
        return self._subset(query_D, k, allowed)

    def _read(self, allowed: Mask) -> tuple[Mask, Reading]:
        """The mask without quarantined rows. What is kept for a mask must not hold it, lest neither ever goes."""
        known = self._readings.get(allowed)
        if known is None:
            own = allowed & self._all if allowed.allowed_I[self.quarantined_Q].any() else None
            known = own, Reading(allowed if own is None else own, self.codes)
            self._readings[allowed] = known
        own, reading = known
        return (allowed if own is None else own), reading

    @cached_property
    def _all(self) -> Mask:
        """All rows but the quarantined."""
        usable_I = np.ones(len(self), np.bool_)
        usable_I[self.quarantined_Q] = False
        return Mask(usable_I)

    @cached_property
    def _length_I(self) -> NDArray[np.float32] | None:
        return _divisors(self.vector_ID, self.metric)

    def _scores(self, query_D: NDArray[np.float32], row_N: NDArray[np.int64]) -> Scores:
        score_N = inner_products(query_D, self.vector_ID, row_N)
        return score_N if self._length_I is None else score_N / self._length_I[row_N]

    def _nominees(
        self, query_BD: NDArray[np.float32], k: int, effort: int
    ) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
        k = min(self.codes.nominated(k, effort), self._usable)
        if self._device is not None and k <= self._device.most_k:
            try:
                return self._device.search(query_BD, k, effort)
            except RuntimeError:
                pass
        return self.codes.search(query_BD, k, effort)

    def _best(self, query_D: NDArray[np.float32], score_1N: Scores, row_1N: NDArray[np.int64], k: int) -> Hits:
        """The k best nominees; fewer where fewer were met."""
        row_N, score_N = row_1N[0], score_1N[0]
        if row_N[-1] < 0:
            row_N, score_N = row_N[row_N >= 0], score_N[row_N >= 0]
        if not self.codes.nominates:
            return Hits(row_N, score_N)
        score_N = self._scores(query_D, row_N)
        at_K = best(score_N, k)
        return Hits(row_N[at_K], score_N[at_K])

    def _scan(self, query_D: NDArray[np.float32], k: int, reading: Reading, count: int) -> Hits:
        if isinstance(self.codes, Codes) and not self.codes.nlist:
            return self._best(query_D, *self.codes.scan(query_D, k, reading.selector), k)
        effort = self.effort(k)
        nominated = min(self.codes.nominated(k, effort), count)
        list_N, score_N = reading.nearest(
            query_D, lists=lists_read(count, self._usable, effort), met=max(MET * k, nominated)
        )
        found = self.codes.scan_lists(query_D, nominated, reading.selector, list_N=list_N, score_N=score_N)
        return self._best(query_D, *found, k)

    def _subset(self, query_D: NDArray[np.float32], k: int, allowed: Mask) -> Hits:
        score_A = self._scores(query_D, allowed.row_A)
        at_K = best(score_A, k)
        return Hits(allowed.row_A[at_K], score_A[at_K])

    def _batch(self, query_BD: NDArray[np.float32], k: int, effort: int) -> tuple[NDArray[np.int64], Scores]:
        """Without a second try where one effort meets too few."""
        row_BK = np.full((len(query_BD), k), -1, np.int64)
        score_BK = np.full((len(query_BD), k), -np.inf, np.float32)
        exist = min(k, self._usable)
        if exist == 0 or not len(query_BD):
            return row_BK, score_BK
        score_BN, row_BN = self._nominees(query_BD, exist, effort)
        if self.codes.nominates:
            score_BN = np.where(row_BN < 0, -np.inf, true_scores(self.vector_ID, query_BD, row_BN))
            if self._length_I is not None:
                score_BN /= self._length_I[row_BN]
            at_BK = np.argsort(-score_BN, axis=1, kind="stable")[:, :exist]
            row_BN, score_BN = np.take_along_axis(row_BN, at_BK, 1), np.take_along_axis(score_BN, at_BK, 1)
        row_BK[:, :exist], score_BK[:, :exist] = row_BN, score_BN
        return row_BK, score_BK

    def _certify(
        self,
        told_ID: NDArray[np.float32],
        query_BD: NDArray[np.float32],
        ks: list[int],
        target: float,
        effort: int | None,
    ) -> None:
        def efforts(query_BD: NDArray[np.float32]) -> tuple[dict[int, int], list[Certificate]]:
            truth = Truth(told_ID, query_BD, ks[-1], row_A=self._all.row_A if self.quarantined else None)

            def measured(k: int, effort: int) -> Recall:
                return truth.recall(self._batch(query_BD, k, effort)[0])

            return tuned(measured, self.codes.ladder, ks=ks, target=target, effort=effort)

        self.efforts, curve = efforts(query_BD)
        self.item_efforts = self.efforts
        if effort is None and self.codes.nlist:
            self.item_efforts, found = efforts(told_ID[self._all.row_A[:: max(1, math.ceil(self._usable / QUERIES))]])
            self.item_curve = tuple(found)
        few_BD = query_BD[:: max(1, math.ceil(len(query_BD) / FILTERED_QUERIES))]
        curve += certified(
            lambda query_D, k, mask: self._among(query_D, k, mask).row_K,
            told_ID,
            few_BD,
            self._all,
            efforts=self.efforts,
        )
        self.curve = tuple(curve)


def _divisors(vector_ID: NDArray[np.float32], metric: Metric) -> NDArray[np.float32] | None:
    """What the scores of a cosine are divided by; None for an inner product."""
    return np.maximum(norms(vector_ID), np.finfo(np.float32).tiny) if metric == "cosine" else None
