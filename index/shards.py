"""One index in several parts, searched side by side.

Every row belongs to one shard, by an assignment that the caller gives: a hash of the item's id as a rule, so that all
shards hold alike. A shard has a folder of its own with its rows, their vectors and a VectorIndex of them, and needs
nothing else: any machine that has the folder can answer for it, and what a search reads lies together.

Shape letters: B queries, D embedding width, I items (rows of the catalogue), K results, Q quarantined items, S rows of
one shard.
"""

import json
import math
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any, Protocol, Self
from weakref import ReferenceType, WeakKeyDictionary, finalize, ref

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
    between,
    certified,
    filters,
    least_recall,
    timed,
    tuned,
)
from index.kinds import Kind
from index.lengths import unit
from index.masks import Mask
from index.poison import quarantined
from index.recall import Recall
from index.types import Hits
from index.vectors import Metric, VectorIndex

_FACTS, _ROWS, _VECTORS = "shards.json", "rows.npy", "vectors.npy"
_BUILD_MS = 3_600_000.0
_AT_ONCE = 8
"""Searches of one shard at a time; more wait their turn."""
_FIRST_S, _MOST_S = 0.1, 10.0
"""A lost shard is opened anew after the first wait, which doubles up to the last."""

Found = tuple[NDArray[np.int64], NDArray[np.float32]]


class Part(Protocol):
    """What answers for a shard, by rows of its own. Whatever it raises loses the shard."""

    def search(self, query_D: NDArray[np.float32], k: int, allowed: Mask | None = None) -> Hits: ...
    def search_batch(self, query_BD: NDArray[np.float32], k: int) -> Found: ...


Vectors = NDArray[np.float32]
Building = Callable[[Callable[[Vectors], VectorIndex], Iterable[Vectors]], Iterable[VectorIndex]]
"""A `map`: builds the part of every shard, in their order, of its vectors."""
Opening = Callable[[int, Path], Part]
"""Makes the part of the shard of this number out of its folder."""


def opened_here(_: int, folder: Path) -> VectorIndex:
    """Memory-mapped and searched in this process.

    Raises:
        ValueError: as `VectorIndex.load`.
    """
    return VectorIndex.load(folder, _array(folder / _VECTORS))


def is_sharded(folder: Path) -> bool:
    """Whether a ShardedIndex was saved there."""
    return (folder / _FACTS).exists()


class ShardedIndex:
    """What a VectorIndex of all rows would find, up to ties and to what an approximate kind misses.

    A shard that raises, or does not answer in time, is left out and the hits are `partial`. It is opened anew in the
    background, at growing intervals, until it answers; from then on hits are whole again. Results are put together in
    the order of the shards, so no answer depends on which of them was first.

    Args:
        vector_ID: of all rows, as the towers made them.
        kind: of the shards; of the first where they differ, as small ones may.
        efforts: of every shard, by k certified, ascending.
        curve: everything that was measured of whole answers at build time.
        patience_ms: a shard that takes longer is left out.
    """

    def __init__(
        self,
        shards: "Sequence[Shard]",
        vector_ID: NDArray[np.float32],
        *,
        towers: str,
        metric: Metric,
        kind: Kind,
        typical_norm: float,
        efforts: dict[int, int],
        curve: tuple[Certificate, ...] = (),
        patience_ms: float = 1000.0,
    ) -> None:
        self.shards = tuple(shards)
        self.vector_ID = vector_ID
        self.towers = towers
        """Fingerprint of the towers whose embeddings these are."""
        self.metric: Metric = metric
        self.kind: Kind = kind
        self.typical_norm = typical_norm
        """Median length of the usable vectors, for `unusable`; NaN without any."""
        self.efforts = efforts
        self.curve = curve
        self._patience_s = patience_ms / 1000
        held_I = np.zeros(len(vector_ID), np.bool_)
        for shard in shards:
            held_I[shard.row_S] = True
        self.quarantined_Q = np.flatnonzero(~held_I)
        """Rows whose vector could not be used, ascending: they are in no shard."""

    @classmethod
    def build(
        cls,
        vector_ID: NDArray[np.float32],
        *,
        shard_I: NDArray[np.integer[Any]],
        towers: str,
        metric: Metric = "inner_product",
        recall_target: float = 0.97,
        k: int = 100,
        query_BD: NDArray[np.float32] | None = None,
        kind: Kind | None = None,
        lists: int | None = None,
        effort: int | None = None,
        cuda: bool = False,
        building: Building = map,
    ) -> "ShardedIndex":
        """Build a VectorIndex of every shard, tuned and certified by what they find together.

        Unusable vectors are in no shard; as large a share of them as refuses a VectorIndex refuses the build. The
        effort is the same for all shards. It is raised until whole answers reach the target: a shard holds few of
        the best rows of all, so one that proved as much by itself would read far more than is of use.

        Args:
            shard_I: number of each row's shard, from 0 without a gap.
            lists: of every shard.
            building: `map` builds them here, one after the other.

        Other arguments are those of `VectorIndex.build`.

        Raises:
            ValueError: as `VectorIndex.build`, or an assignment that is none.
        """
        count = len(vector_ID)
        if shard_I.shape != (count,) or not np.issubdtype(shard_I.dtype, np.integer):
            raise ValueError(f"shard_I is {shard_I.dtype} {shard_I.shape}, not a number for each of {count} rows")
        present = np.unique(shard_I)
        if not np.array_equal(present, np.arange(max(1, len(present)))):
            raise ValueError(f"shard_I names shards {present[:3]} to {present[-1:]}, not 0 and up without a gap")
        quarantined_Q = quarantined(vector_ID)
        usable_I = np.ones(count, np.bool_)
        usable_I[quarantined_Q] = False
        if query_BD is None:
            query_BD = vector_ID[np.flatnonzero(usable_I)[:: math.ceil(count / QUERIES)]]
        if effort is not None and effort < 1:
            raise ValueError(f"effort is {effort}, it must be at least 1")
        rows = [np.flatnonzero((shard_I == number) & usable_I) for number in present]
        build = partial(
            VectorIndex.build,
            towers=towers,
            metric=metric,
            recall_target=recall_target,
            k=k,
            query_BD=query_BD[:0],
            kind=kind,
            lists=lists,
            cuda=cuda,
        )
        parts = list(building(build, (vector_ID[row_S] for row_S in rows)))

        def made(efforts: dict[int, int]) -> ShardedIndex:
            shards = [
                Shard(row_S, partial(_working_with, efforts, part), d=part.d)
                for row_S, part in zip(rows, parts, strict=True)
            ]
            return cls(
                shards,
                vector_ID,
                towers=towers,
                metric=metric,
                kind=parts[0].kind,
                typical_norm=float(np.nanmedian([part.typical_norm for part in parts])),
                efforts=efforts,
                patience_ms=_BUILD_MS,
            )

        def ladder(k: int) -> tuple[int, int]:
            least, most = zip(*(part.codes.ladder(k) for part in parts), strict=True)
            return max(least), max(most)

        if not len(query_BD):
            return made({})
        query_BD = query_BD[:: math.ceil(len(query_BD) / QUERIES)]
        ks = sorted({min(each, int(usable_I.sum())) for each in (k, *CURVE_K)})
        cosine, usable = metric == "cosine", Mask(usable_I)
        told_ID, told_BD = (unit(each) if cosine else each for each in (vector_ID, query_BD))
        truth = Truth(told_ID, told_BD, ks[-1], row_A=usable.row_A if len(quarantined_Q) else None)

        def measured(k: int, effort: int) -> Recall:
            return truth.recall(made({k: effort}).search_batch(query_BD, k)[0])

        efforts, curve = tuned(measured, ladder, ks=ks, target=recall_target, effort=effort)
        index = made(efforts)
        few_BD = told_BD[:: math.ceil(len(told_BD) / FILTERED_QUERIES)]
        index.curve = (*curve, *certified(index._whole, told_ID, few_BD, usable, efforts=efforts))
        return index

    @classmethod
    def load(
        cls,
        folder: Path,
        vector_ID: NDArray[np.float32],
        *,
        opening: Opening = opened_here,
        patience_ms: float = 1000.0,
    ) -> Self:
        """Open what `save` wrote, every shard by `opening`, all at once.

        Args:
            vector_ID: the vectors that it was built from.

        Raises:
            ValueError: files that are missing, unreadable, or not of these vectors; what `opening` raises.
        """
        facts = folder / _FACTS
        try:
            stored = json.loads(facts.read_text())
            number = int(stored["shards"])
            known = {
                "towers": str(stored["towers"]),
                "metric": stored["metric"],
                "kind": stored["kind"],
                "typical_norm": float(stored["typical_norm"]),
                "efforts": {int(k): int(effort) for k, effort in stored["efforts"].items()},
                "curve": tuple(Certificate.stored(each) for each in stored["curve"]),
            }
            shape, quarantined = (stored["count"], stored["d"]), stored["quarantined"]
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{facts} does not describe a sharded index: {error!r}") from error
        if vector_ID.shape != shape:
            raise ValueError(f"{facts} is of vectors of shape {shape}, not {vector_ID.shape}")
        folders = _folders(folder, number)
        rows = [_array(inside / _ROWS) for inside in folders]
        named = np.concatenate([*rows, np.array(quarantined, np.int64)])
        if not np.array_equal(np.sort(named), np.arange(len(vector_ID))):
            raise ValueError(f"{folder} names {len(named)} rows, not each of {len(vector_ID)} once")
        for row_S, inside in zip(rows, folders, strict=True):
            some = [0, -1] if len(row_S) else []
            if not np.array_equal(_array(inside / _VECTORS)[some], vector_ID[row_S[some]]):
                raise ValueError(f"{inside / _VECTORS} does not hold the vectors of its rows")

        def shard(at: int) -> Shard:
            return Shard(rows[at], partial(opening, at, folders[at]), d=vector_ID.shape[1])

        with ThreadPoolExecutor(number) as threads:
            shards = list(threads.map(shard, range(number)))
        return cls(shards, vector_ID, patience_ms=patience_ms, **known)

    def save(self, folder: Path) -> None:
        """Write `shards.json` and a folder for each shard.

        Raises:
            ValueError: shards that are not in this process.
        """
        for shard, inside in zip(self.shards, _folders(folder, len(self.shards)), strict=True):
            part = shard.part
            if not isinstance(part, VectorIndex):
                raise ValueError("only shards in this process can be saved")
            inside.mkdir()
            part.save(inside)
            np.save(inside / _ROWS, shard.row_S, allow_pickle=False)
            np.save(inside / _VECTORS, part.vector_ID, allow_pickle=False)
        stored = {
            "shards": len(self.shards),
            "count": len(self),
            "d": self.d,
            "towers": self.towers,
            "metric": self.metric,
            "kind": self.kind,
            "typical_norm": self.typical_norm,
            "quarantined": self.quarantined_Q.tolist(),
            "efforts": self.efforts,
            "curve": [asdict(each) for each in self.curve],
        }
        (folder / _FACTS).write_text(json.dumps(stored, indent=1) + "\n")

    @property
    def of_items(self) -> Self:
        """This index: its shards are asked about items as about queries."""
        return self

    def __len__(self) -> int:
        """Rows of the catalogue, the quarantined ones among them."""
        return len(self.vector_ID)

    @property
    def d(self) -> int:
        return int(self.vector_ID.shape[1])

    @property
    def quarantined(self) -> int:
        return len(self.quarantined_Q)

    @property
    def certificates(self) -> tuple[Certificate, ...]:
        """As `VectorIndex.certificates`, of whole answers."""
        return at_work(self.curve, self.efforts)

    @property
    def recall(self) -> float:
        """As `VectorIndex.recall`."""
        return least_recall(self.certificates)

    def search(self, query_D: NDArray[np.float32], k: int, allowed: Mask | None = None) -> Hits:
        """As `VectorIndex.search`, on threads of the shards. What a mask means to them is kept while it lives."""
        if query_D.ndim != 1:
            raise ValueError(f"the query has shape {query_D.shape}, it must be one vector of dimension {self.d}")
        self._check(query_D[None], k)
        if allowed is not None and len(allowed) != len(self):
            raise ValueError(f"a mask of {len(allowed)} rows for {len(self)} rows")
        asked = [shard.ask(query_D, k, allowed) for shard in self.shards]
        wait([each.hits for each in asked if each is not None], self._patience_s)
        answers = [shard.answer(each) for shard, each in zip(self.shards, asked, strict=True)]
        hits = [each for each in answers if each is not None]
        row_N = np.concatenate([_NO_ROWS, *(each.row_K for each in hits)])
        score_N = np.concatenate([_NO_SCORES, *(each.score_K for each in hits)])
        best_K = np.argsort(-score_N, kind="stable")[:k]
        lost = len(hits) < len(answers) or any(each.partial for each in hits)
        return Hits(row_N[best_K], score_N[best_K], partial=lost)

    def search_batch(self, query_BD: NDArray[np.float32], k: int) -> Found:
        """As `VectorIndex.search_batch`, of all shards: it waits for each as long as it takes, opens those that are
        lost, and raises what they raise."""
        self._check(query_BD, k)
        with ThreadPoolExecutor(len(self.shards)) as threads:
            found = list(threads.map(lambda shard: shard.search_batch(query_BD, k), self.shards))
        row_BN = np.concatenate([row_BK for row_BK, _ in found], axis=1)
        score_BN = np.concatenate([score_BK for _, score_BK in found], axis=1)
        best_BK = np.argsort(-score_BN, axis=1, kind="stable")[:, :k]
        return np.take_along_axis(row_BN, best_BK, 1), np.take_along_axis(score_BN, best_BK, 1)

    def latencies_ms(
        self, query_BD: NDArray[np.float32], *, clock: Callable[[], float] = time.perf_counter
    ) -> dict[str, float]:
        """As `VectorIndex.latencies_ms`, of whole answers, at the points of `certificates`."""
        query_BD = query_BD[:: max(1, math.ceil(len(query_BD) / TIMED))]
        usable_I = np.ones(len(self), np.bool_)
        usable_I[self.quarantined_Q] = False
        told_ID = unit(self.vector_ID) if self.metric == "cosine" else self.vector_ID
        masks = {(share, regions): mask for share, regions, mask in filters(told_ID, Mask(usable_I))}

        def search(query_D: NDArray[np.float32], point: Certificate) -> Hits:
            return self.search(query_D, point.recall.k, masks.get((point.share, point.regions)))

        return timed(self.certificates, query_BD, search, clock=clock)

    def _check(self, query_BD: NDArray[np.float32], k: int) -> None:
        """Misuse must not lose a shard."""
        if k < 0:
            raise ValueError(f"k is {k}, it must not be negative")
        if query_BD.ndim != 2 or query_BD.shape[1] != self.d:
            raise ValueError(f"the query has dimension {query_BD.shape[-1]}, the index has {self.d}")
        with np.errstate(over="ignore"):
            if not np.isfinite(np.einsum("bd,bd->b", query_BD, query_BD, dtype=np.float32)).all():
                raise ValueError("the query holds NaN or infinity, or is too long for a finite score")

    def _whole(self, query_D: NDArray[np.float32], k: int, mask: Mask) -> NDArray[np.int64]:
        hits = self.search(query_D, k, mask)
        if hits.partial:
            raise RuntimeError("a shard failed while the index was measured")
        return hits.row_K


@dataclass(frozen=True, slots=True)
class _Open:
    """A part, and the threads that search it: one that hangs keeps them, so the next part has others."""

    part: Part
    threads: ThreadPoolExecutor


@dataclass(frozen=True, slots=True)
class _Asked:
    hits: "Future[Hits]"
    of: _Open


class Shard:
    """One part of a ShardedIndex, and what brings it back. Any number of threads may ask.

    Args:
        row_S: rows of the catalogue, in the order of the part's own.
        opening: makes the part; now, and whenever it was lost.
    """

    def __init__(self, row_S: NDArray[np.int64], opening: Callable[[], Part], *, d: int) -> None:
        self.row_S = row_S
        self._opening = opening
        self._probe_D = np.zeros(d, np.float32)
        self._masks: WeakKeyDictionary[Mask, Mask] = WeakKeyDictionary()
        self._open: _Open | None = self._opened()
        self._wait_s = _FIRST_S
        self._lock = Lock()
        self._forgotten = Event()
        finalize(self, self._forgotten.set)

    @property
    def part(self) -> Part | None:
        """None while it is lost."""
        return None if self._open is None else self._open.part

    def ask(self, query_D: NDArray[np.float32], k: int, allowed: Mask | None) -> _Asked | None:
        """Begin to search; None while the part is lost."""
        now = self._open
        return None if now is None else _Asked(now.threads.submit(self._searched, now.part, query_D, k, allowed), now)

    def answer(self, asked: _Asked | None) -> Hits | None:
        """What was found, by rows of the catalogue; None where there is no answer by now, or an error."""
        if asked is None or asked.hits.cancel():  # what never had its turn says nothing about the part
            return None
        if not asked.hits.done() or asked.hits.exception() is not None:
            self._lose(asked.of)
            return None
        self._wait_s = _FIRST_S
        return asked.hits.result()

    def search_batch(self, query_BD: NDArray[np.float32], k: int) -> Found:
        now = self._open or self._opened()
        row_BK, score_BK = now.part.search_batch(query_BD, k)
        return np.where(row_BK < 0, -1, self.row_S[row_BK]), score_BK

    def _searched(self, part: Part, query_D: NDArray[np.float32], k: int, allowed: Mask | None) -> Hits:
        own = None
        if allowed is not None:
            own = self._masks.get(allowed)
            if own is None:
                own = self._masks.setdefault(allowed, Mask(allowed.allowed_I[self.row_S]))
        hits = part.search(query_D, k, own)
        return Hits(self.row_S[hits.row_K], hits.score_K, hits.partial)

    def _opened(self) -> _Open:
        return _Open(self._opening(), ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="shard"))

    def _lose(self, lost: _Open) -> None:
        with self._lock:
            if self._open is not lost:
                return
            self._open = None
            wait_s, self._wait_s = self._wait_s, min(2 * self._wait_s, _MOST_S)
        Thread(target=_bring_back, args=(ref(self), self._forgotten, wait_s), name="lost shard", daemon=True).start()

    def _is_back(self) -> bool:
        try:
            now = self._opened()
            now.part.search(self._probe_D, 1)
        except Exception:
            return False
        self._open = now
        return True


def _bring_back(lost: "ReferenceType[Shard]", forgotten: Event, wait_s: float) -> None:
    """Holds the shard only while it is opened, so that an index that nobody uses any more can go."""
    while not forgotten.wait(wait_s):
        shard = lost()
        if shard is None or shard._is_back():
            return
        del shard
        wait_s = min(2 * wait_s, _MOST_S)


_NO_ROWS, _NO_SCORES = np.empty(0, np.int64), np.empty(0, np.float32)


def _working_with(efforts: dict[int, int], part: VectorIndex) -> VectorIndex:
    """The part with other efforts, as far as it can make them."""
    return VectorIndex(
        part.codes,
        part.vector_ID,
        towers=part.towers,
        metric=part.metric,
        quarantined_Q=part.quarantined_Q,
        typical_norm=part.typical_norm,
        efforts={k: between(part.codes.ladder(k), effort) for k, effort in efforts.items()},
    )


def _folders(folder: Path, shards: int) -> list[Path]:
    return [folder / f"shard-{number}" for number in range(shards)]


def _array(path: Path) -> NDArray[Any]:
    try:
        return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))  # plain: indexing a memmap runs Python
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} holds no array: {error}") from error
