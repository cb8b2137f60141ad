"""The nightly rebuild: a generation and what the catalogue log says since become the next generation.

    items -> queries -> embeddings -> index -> gates -> written, asked, published -> report -> activated

Models, users, their activity and the policy stay as they are. Every stage leaves what it made in a work folder whose
name is made of what determines it, so that a run that died goes on where it was, and gives what it would have given.
Once all is done the folder holds the report alone, by which a run for which nothing is left to do knows it.

Shape letters: I items, B queries, D vector width.
"""

import hashlib
import json
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.progress import Progress

from candidate_gen.activity import Activity
from candidate_gen.features import FeatureTable
from candidate_gen.items import Items
from candidate_gen.query_log import QueryLog
from candidate_gen.towers import Towers
from candidate_gen.understanding import synonyms_of
from index.generations import CorruptGeneration, GenerationStore, Manifest, UnknownGeneration
from index.leases import Lease
from index.placement import Placement, opened
from index.strings import IdMap
from policy.settings import PolicySettings
from ranking.rankers import load_scorer
from serving.changes import changed
from serving.log.catalog_log import FILE, CatalogLog, Entry
from serving.profiles import Profiles
from serving.retrieval import RetrievalSettings
from training.datasets.catalogue import head_of
from training.durable import appearing, remove
from training.embeddings import embedded
from training.log.impression_log import read_impressions
from training.log.served import shown
from training.progress import counted
from training.publish import Built, Parts, build_index, publish
from training.reports import rebuild_report
from training.reports.report import plain
from training.settings import RebuildSettings

JOB = "rebuild"
_WORK = ".rebuild"
_PUBLISHED = "published.json"
_LATENCIES = "latency_ms.json"
_GENERATIONS = 12
"""That the report looks back on."""
_QUERIES, _FEWEST_QUERIES = 2_000, 100
"""Logged queries to tune the index with: at most, the newest; fewer than the least prove nothing."""


@dataclass(slots=True)
class _Run:
    """One attempt: its folder, what it shows while it works, and how long each stage took."""

    folder: Path
    job: Lease
    progress: Progress
    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def stage(self, name: str, total: int | None = None) -> Iterator[Any]:
        """Gives a function that is told of progress. A process that lost the job ends here."""
        self.job.check()
        task = self.progress.add_task(name, total=total)
        started_s = time.perf_counter()
        yield lambda count: self.progress.advance(task, count)
        self.progress.update(task, total=total or 1, completed=total or 1)
        self.seconds[name] = time.perf_counter() - started_s


def rebuild(settings: RebuildSettings, *, holder: str, now_ms: int) -> dict[str, Any]:
    """Publish the next generation, put it in force where that is asked for, and return what the report says.

    Two runs of the same settings over the same generation and catalogue log make one generation: the second finds the
    first's. A generation that must not be published changes nothing.

    Args:
        holder: who this is, for others that want to rebuild meanwhile.

    Raises:
        LeaseHeld: another process does this; who, and since when.
        LeaseLost: this process was stopped for so long that another one took over.
        GateFailed: naming every red gate.
        StaleExpected: another generation was put in force meanwhile. This one is published, not activated.
        CorruptLog: the catalogue log has lost changes that the generation holds.
        ValueError: poison, or a generation that does not exist.
    """
    store = GenerationStore(settings.generations)
    if not store.ids():
        raise ValueError(f"{store.root} holds no generations; `cascade demo` or `cascade export` makes one")
    with store.job(JOB, holder=holder) as job, closing(CatalogLog(store.root / FILE)) as log:
        current = store.current()
        if not (settings.generation or current):
            raise ValueError(f"no generation of {store.root} is current; name one: generation=...")
        base, seq, folder = _start(store, settings, log)
        for other in folder.parent.glob("*"):
            if other != folder:
                remove(other)
        with counted() as bar:
            run = _Run(folder, job, bar)
            report = _read(folder / _PUBLISHED)
            if not is_whole(store, report.get("generation", "")):
                report = _published(
                    store, base, log.since(base.catalog_seq, seq), settings, run, seq=seq, now_ms=now_ms
                )
        rebuild_report.write(report, settings.output)
        made = report["generation"]
        if settings.activate and made != store.current():
            store.activate(made, time_ms=now_ms, reason="rebuilt", expected=current, job=job)
        for left in folder.iterdir():
            if left.name != _PUBLISHED:
                remove(left)
    return report


def _start(store: GenerationStore, settings: RebuildSettings, log: CatalogLog) -> tuple[Manifest, int, Path]:
    """The generation to begin with, the last change of the catalogue to take in, and the work folder for both.

    Where the last run made the current generation, and nothing has changed since, it is that run over again.
    """
    base = store.verify(settings.generation or store.current() or "")
    seq = head_of(log, base)
    if base.parent in store.ids():
        folder = _folder(store, base.parent, settings, seq=seq)
        if _read(folder / _PUBLISHED).get("generation") == base.id:
            return store.manifest(base.parent), seq, folder
    return base, seq, _folder(store, base.id, settings, seq=seq)


def _folder(store: GenerationStore, base: str, settings: RebuildSettings, *, seq: int) -> Path:
    determined = {"base": base, "seq": seq, "index": asdict(settings.index), "log": str(settings.log)}
    return store.root / _WORK / hashlib.sha256(json.dumps(determined, sort_keys=True).encode()).hexdigest()[:16]


def _published(
    store: GenerationStore,
    base: Manifest,
    entries: Sequence[Entry],
    settings: RebuildSettings,
    run: _Run,
    *,
    seq: int,
    now_ms: int,
) -> dict[str, Any]:
    """What the report says of the generation that is published."""
    old = store.folder(base.id)
    table = FeatureTable.load(old)
    towers = Towers.load(old, table)
    with run.stage("items", len(entries)) as advance:
        items = Items.load(old)
        if not (run.folder / "items").exists():
            for entry in entries:
                items = changed(items, entry, table=table, towers=towers)
                advance(1)
            with appearing(run.folder / "items") as draft:
                draft.mkdir()
                items.take(items.current()).save(draft)
        items = Items.load(run.folder / "items")
    told = Profiles(IdMap.load(old, "user_id"), np.load(old / "profile_U.npy", mmap_mode="r", allow_pickle=False))
    users, profile_U = told.after(entries, table).folded()
    with run.stage("queries"):
        query_BD = _queries(settings.log, run.folder / "queries", table=table, towers=towers)
    with run.stage("embeddings", len(items)) as advance:
        parts, engine = run.folder / "embeddings", settings.engine
        vector_ID = embedded(towers, np.asarray(items.row_I), parts, engine=engine, advance=advance)
        items = replace(items, embedding_ID=vector_ID)
    with run.stage("index"):
        if not (run.folder / "index").exists():
            built = build_index(items, settings.index, towers=towers.fingerprint, query_BD=query_BD, engine=engine)
            with appearing(run.folder / "index") as draft:
                draft.mkdir()
                built.index.save(draft)
                (draft / _LATENCIES).write_text(json.dumps(built.latency_ms))
        latency_ms = json.loads((run.folder / "index" / _LATENCIES).read_text())
        built = Built(opened(run.folder / "index", vector_ID, Placement(device="cpu")), latency_ms)
    with run.stage("publish"):
        published = publish(
            store,
            Parts(
                table=table,
                items=items,
                users=users,
                profile_U=profile_U,
                towers=towers,
                scorer=load_scorer(old, table, items),
                policy=PolicySettings.from_json((old / "policy.json").read_text()),
                retrieval=RetrievalSettings(**json.loads((old / "retrieval.json").read_text())),
                activity=Activity.load(old),
                queries=QueryLog.load(old),
                synonyms=synonyms_of(old),
            ),
            built,
            gates=settings.gates,
            metrics=base.metrics,
            parent=base.id,
            config={**base.config, "index": asdict(settings.index), "gates": asdict(settings.gates)},
            data_window=base.data_window,
            catalog_seq=seq,
            now_ms=now_ms,
            job=run.job,
        )
    manifest = store.manifest(published.id)
    report: dict[str, Any] = {
        "generation": published.id,
        "parent": base.id,
        "catalog_seq": seq,
        "changes": len(entries),
        "items": {"before": base.metrics.get("index.items"), "after": len(items)},
        "queries": 0 if query_BD is None else len(query_BD),
        "index": {
            "kind": built.index.kind,
            "recall_target": settings.index.recall_target,
            "curve": built.curve,
        },
        "gates": [asdict(gate) for gate in published.gates],
        "metrics": published.metrics,
        "bytes": rebuild_report.sizes(manifest),
        "history": _history(store, published.id),
        "seconds": run.seconds,
    }
    with appearing(run.folder / _PUBLISHED) as draft:
        draft.write_text(json.dumps(plain(report)))
    return _read(run.folder / _PUBLISHED)


def _queries(log: Path | None, folder: Path, *, table: FeatureTable, towers: Towers) -> NDArray[np.float32] | None:
    """Vectors of the newest queries that were asked of these towers' feature table; None where they are too few."""
    path = folder / "query_BD.npy"
    if not path.exists():
        row_B: deque[bytes] = deque(maxlen=_QUERIES)
        if log is not None and log.exists():
            row_B.extend(each.query_row for each in shown(read_impressions(log)) if each.schema == table.fingerprint)
        query_BD = towers.encode_queries(np.frombuffer(b"".join(row_B), table.dtype("query")))
        with appearing(path) as draft, draft.open("wb") as file:
            np.save(file, query_BD, allow_pickle=False)
    query_BD = np.load(path, allow_pickle=False)
    return query_BD if len(query_BD) >= _FEWEST_QUERIES else None


def _history(store: GenerationStore, generation: str) -> list[dict[str, Any]]:
    """How far each generation in a line of descent, oldest first, is from the one before, as far as can be read."""
    line: list[dict[str, Any]] = []
    at: str | None = generation
    with suppress(UnknownGeneration, CorruptGeneration):
        while at is not None and len(line) < _GENERATIONS:
            manifest = store.manifest(at)
            told = {name: manifest.metrics.get(f"drift.{name}") for name in ("cosine", "overlap")}
            line.append({"generation": at, "items": manifest.metrics.get("index.items"), **told})
            at = manifest.parent
    return line[::-1]


def is_whole(store: GenerationStore, generation: str) -> bool:
    """Whether the store holds it as it was published."""
    try:
        store.verify(generation)
    except (UnknownGeneration, CorruptGeneration):
        return False
    return True


def _read(path: Path) -> dict[str, Any]:
    """The report that a run left when it had published; empty where there is none."""
    if not path.exists():
        return {}
    report: dict[str, Any] = json.loads(path.read_text())
    return report
