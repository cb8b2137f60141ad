"""The one way into the store: build an index, pass the gates, write, look at what was written, publish.

Shape letters: I items, B queries, S sampled items, D vector width.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from math import inf, nan
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, get_args

import numpy as np
from numpy.typing import NDArray

from candidate_gen.activity import Activity
from candidate_gen.features import FeatureTable
from candidate_gen.items import Items
from candidate_gen.query_log import QueryLog
from candidate_gen.towers import Towers
from index.drift import Drift, drift
from index.generations import CorruptGeneration, GenerationStore, Manifest
from index.kinds import Kind
from index.leases import Lease
from index.placement import Placement
from index.shards import ShardedIndex, Vectors
from index.strings import IdMap, keys64
from index.vectors import VectorIndex
from policy.settings import PolicySettings
from ranking.rankers import AnyScorer
from serving.generation import Generation, write
from serving.retrieval import RetrievalSettings
from training.engine import HERE, Engine, in_order
from training.gates import Gate, GateSettings, index_gates, require, smoke_gates

_SAMPLE = 200
_NEAR = 100
_LEXICAL = "lexical/"
_LOOKED_AT = Placement(device="cpu", patience_ms=60_000)
"""Here nobody waits, so no shard is given up."""


@dataclass(frozen=True, slots=True)
class IndexSettings:
    """See `VectorIndex.build`; None leaves it to the index."""

    kind: Kind | None = None
    recall_target: float = 0.97
    k: int = 100
    lists: int | None = None
    effort: int | None = None
    shards: int = 1
    """Parts by hash of the item's id."""

    def __post_init__(self) -> None:
        if self.kind is not None and self.kind not in get_args(Kind):
            raise ValueError(f"kind is {self.kind!r}; it must be one of {', '.join(get_args(Kind))}, or null")
        if not 0 < self.recall_target <= 1:
            raise ValueError(f"recall_target is {self.recall_target}; it must be above 0 and at most 1")
        for name in ("k", "lists", "effort", "shards"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What a generation is made of, the index apart."""

    table: FeatureTable
    items: Items
    users: IdMap
    profile_U: np.ndarray
    towers: Towers
    scorer: AnyScorer
    policy: PolicySettings
    retrieval: RetrievalSettings
    activity: Activity
    queries: QueryLog
    synonyms: Sequence[str]
    """Rules as `candidate_gen.synonyms` reads them."""


@dataclass(frozen=True, slots=True)
class Published:
    """A generation in the store, with what is known of it."""

    id: str
    metrics: dict[str, float]
    gates: tuple[Gate, ...]


Judge = Callable[[Generation], tuple[Gate, Mapping[str, float]]]
"""A gate that asks a generation which is not published yet, with the figures that it went by."""


class _HeldAlready(Exception):
    """The store holds what was to be published."""

    def __init__(self, generation: str) -> None:
        self.generation = generation


@dataclass(frozen=True, slots=True)
class Built:
    """An index, and what was measured of it that is not among its files, for it differs from run to run."""

    index: VectorIndex | ShardedIndex
    latency_ms: Mapping[str, float]
    """See `VectorIndex.latencies_ms`."""

    @property
    def metrics(self) -> dict[str, float]:
        """Under the names that gates and reports know.

        The lower bound is that of the least certain k. An exact index misses nothing that more queries could find, so
        its bound is what was found, however few they were.
        """
        index, count = self.index, len(self.index)
        points = [each for each in index.certificates if each.share == 1]
        lows = [each.recall.value if index.kind == "exact" else each.recall.low for each in points]
        latency_ms = {each.recall.k: self.latency_ms.get(f"{each.name} effort={each.effort}", nan) for each in points}
        return {
            "index.items": float(count),
            "index.poisoned": index.quarantined / count if count else 0.0,
            "index.recall": index.recall,
            "index.recall_low": min(lows, default=nan),
            **{f"index.latency_ms.{k}": value for k, value in latency_ms.items()},
        }

    @property
    def curve(self) -> list[dict[str, Any]]:
        """Every point measured: k, share of the items allowed, whether as regions, effort, whether searches
        work with it, recall, its lower bound, ms."""
        return [
            {
                "k": each.recall.k,
                "share": each.share,
                "regions": each.regions,
                "effort": each.effort,
                "working": each.effort == self.index.efforts[each.recall.k],
                "recall": each.recall.value,
                "low": each.recall.low,
                "latency_ms": self.latency_ms.get(f"{each.name} effort={each.effort}", nan),
            }
            for each in self.index.curve
        ]


def build_index(
    items: Items,
    settings: IndexSettings,
    *,
    towers: str,
    query_BD: NDArray[np.float32] | None,
    engine: Engine = HERE,
) -> Built:
    """The index of the items' vectors that the settings ask for.

    Args:
        towers: fingerprint of those that made the vectors.
        query_BD: real queries to tune and time it with, see `VectorIndex.build`.
        engine: of its shards, where there are several; they are tuned and timed here.

    Raises:
        ValueError: poison.
    """
    vector_ID = np.asarray(items.embedding_ID)
    told = {name: value for name, value in asdict(settings).items() if name != "shards"}
    index: VectorIndex | ShardedIndex
    if settings.shards > 1 and len(items):
        # A small catalogue may leave a shard without an item; numbers must have no gap.
        _, shard_I = np.unique(keys64(items.ids.ids) % np.uint64(settings.shards), return_inverse=True)
        building = map if engine == HERE else partial(built_by, engine)
        index = ShardedIndex.build(
            vector_ID, shard_I=shard_I, towers=towers, query_BD=query_BD, building=building, **told
        )
    else:
        index = VectorIndex.build(vector_ID, towers=towers, query_BD=query_BD, **told)
    asked_BD = np.delete(vector_ID, index.quarantined_Q, axis=0) if query_BD is None else query_BD
    return Built(index, index.latencies_ms(asked_BD))


def built_by(
    engine: Engine, build: Callable[[Vectors], VectorIndex], parts: Iterable[Vectors]
) -> Iterator[VectorIndex]:
    """Indexes of vectors, in their order; on their way from whoever built them they are the files that they save."""
    given = list(parts)
    made = in_order(engine, partial(_saving, build), given)
    for vector_SD, files in zip(given, made, strict=True):
        with TemporaryDirectory(prefix="cascade-shard-") as folder:
            for name, held in files.items():
                Path(folder, name).write_bytes(held)
            yield VectorIndex.load(Path(folder), vector_SD)


def publish(
    store: GenerationStore,
    parts: Parts,
    built: Built,
    *,
    gates: GateSettings,
    others: tuple[Gate, ...] = (),
    metrics: Mapping[str, float],
    parent: str | None,
    config: Mapping[str, Any],
    data_window: tuple[int, int],
    catalog_seq: int,
    now_ms: int,
    judges: Sequence[Judge] = (),
    job: Lease | None = None,
) -> Published:
    """Hold the parts and their index to the gates, write them, ask the sealed folder its first queries, publish.

    Where the store holds the same generation already (same parent, same log, same files), that one is it.

    Args:
        others: gates of other parts, to be held with those of the index.
        parent: the generation that its items, its table and its drift are compared with.
        judges: asked last of all.

    Raises:
        GateFailed: naming every red gate; nothing is published.
        GenerationMismatch: where the parts do not belong together.
        LeaseLost: where the job is somebody else's by now.
    """
    incumbent = store.manifest(parent).metrics if parent is not None else {}
    kept = {name: value for name, value in metrics.items() if not name.startswith(("index.", "drift."))}
    metrics = {**kept, **built.metrics}
    if parent is not None:
        moved = drift_since(Items.load(store.folder(parent)), parts.items)
        metrics |= {f"drift.{name}": float(value) for name, value in asdict(moved).items()}
    held = [*index_gates(gates, metrics, incumbent=incumbent), *others]
    require(held)

    def look(folder: Path, manifest: Manifest) -> None:
        _refuse_twin(store, manifest)
        generation = Generation.read(folder, manifest, placement=_LOOKED_AT)
        metrics["index.found"] = found_share(generation)
        held.extend(smoke_gates(gates, metrics))
        require(held)
        for judge in judges:
            gate, figures = judge(generation)
            metrics.update(figures)
            held.append(gate)
            require(held)

    with store.stage() as folder:
        fingerprints = write(
            folder,
            table=parts.table,
            items=parts.items,
            users=parts.users,
            profile_U=parts.profile_U,
            towers=parts.towers,
            vectors=built.index,
            scorer=parts.scorer,
            policy=parts.policy,
            retrieval=parts.retrieval,
            activity=parts.activity,
            queries=parts.queries,
            synonyms=parts.synonyms,
        )
        try:
            generation = store.publish(
                folder,
                fingerprints=fingerprints,
                parent=parent,
                config=config,
                data_window=data_window,
                metrics=metrics,
                created_ms=now_ms,
                catalog_seq=catalog_seq,
                check=look,
                job=job,
            )
        except _HeldAlready as held_already:
            generation = held_already.generation
    return Published(generation, metrics, tuple(held))


def drift_since(before: Items, after: Items, *, seed: int = 0) -> Drift:
    """How far the vectors of the items moved that both hold."""
    row_I = before.ids.rows_of(after.ids.ids)
    after_N = np.flatnonzero(row_I >= 0)
    return drift(np.asarray(before.embedding_ID[row_I[after_N]]), np.asarray(after.embedding_ID[after_N]), seed=seed)


def found_share(generation: Generation, *, sample: int = _SAMPLE) -> float:
    """Share of evenly spaced items that are among the nearest to their own vector, ties counted in their favour.

    NaN where no item has a vector to search with.
    """
    count = len(generation.items)
    found = []
    for row in sorted({round(at) for at in np.linspace(0, count - 1, min(sample, count))}):
        vector_D = np.asarray(generation.items.embedding_ID[row])
        own = float(vector_D @ vector_D)
        if np.isfinite(own) and own > 0:
            hits = generation.vectors.search(vector_D, _NEAR)
            last = float(hits.score_K[-1]) if len(hits) else inf
            found.append(bool((hits.row_K == row).any()) or last >= own)
    return float(np.mean(found)) if found else nan


def _saving(build: Callable[[Vectors], VectorIndex]) -> Callable[[Vectors], dict[str, bytes]]:
    def work(vector_SD: Vectors) -> dict[str, bytes]:
        with TemporaryDirectory(prefix="cascade-shard-") as folder:
            build(vector_SD).save(Path(folder))
            return {path.name: path.read_bytes() for path in Path(folder).iterdir()}

    return work


def _refuse_twin(store: GenerationStore, manifest: Manifest) -> None:
    for generation in store.ids():
        if generation.partition("-")[2] != manifest.id.partition("-")[2]:
            continue
        with suppress(CorruptGeneration):
            other = store.verify(generation)
            same_origin = (other.parent, other.catalog_seq) == (manifest.parent, manifest.catalog_seq)
            if same_origin and _files(other) == _files(manifest):
                raise _HeldAlready(generation)


def _files(manifest: Manifest) -> dict[str, str]:
    """Without the text index, whose files have random names and which follows from the items."""
    return {path: entry.sha256 for path, entry in manifest.files.items() if not path.startswith(_LEXICAL)}
