"""Whole logs, replayed: segment by segment, in processes side by side, resumable, in memory that does not grow.

The segments of a log are known by what they hold, so a log that grew is gone on with, and a segment that was changed is
replayed anew; a generation or a program that was changed begins the whole work anew.
"""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from hashlib import sha256
from importlib import metadata
from pathlib import Path

import polars as pl
import torch

import candidate_gen
import index
import policy
import ranking
import serving
import training
from index.generations import GenerationStore, Manifest
from serving.again import Snapshots, answering
from serving.generation import Generation
from serving.log.catalog_log import FILE, CatalogLog
from training.durable import appearing
from training.log.impression_log import Segment, read_segment, segments
from training.log.resumable import Journal, Result, Work, cores, over
from training.log.served import as_published
from training.off_policy.replay import Divergence, Verified, compared, nothing_unseen, verified

_ANSWERING = (index, candidate_gen, ranking, policy, serving, training)
_COMPUTING = ("numpy", "torch", "faiss-cpu", "numba", "tantivy")
_MOST_LOADED = 4
_NOTHING = Verified()


@dataclass(frozen=True, slots=True)
class Log:
    """What is replayed, and how."""

    path: Path
    generations: Path
    """Folder of the store of who answered."""
    folder: Path
    """For what is done so far."""
    workers: int | None = None
    """Processes; None for one on each core."""
    newest: int | None = None
    """Only so many impressions, those logged last."""

    def cut(self) -> list[Segment]:
        """
        Raises:
            ValueError: where it holds nothing, and see `training.log.impression_log.segments`.
        """
        found = segments(self.path, newest=self.newest)
        if not found:
            raise ValueError(f"{self.path}: 0 impressions; at least 1 is needed")
        return found


@dataclass(frozen=True, slots=True)
class Went:
    """How a pass over a log went."""

    requests: int
    """Replayed now."""
    resumed: int
    """Replayed by a run before, that was stopped."""
    afresh: str
    """Why such a run counted for nothing; empty where none did."""


def verify(log: Log) -> tuple[Verified, Went]:
    """`training.off_policy.replay.verify`, of the whole log. Once it is through, the next one begins at the beginning.

    Raises:
        ValueError: see `Log.cut`; for a generation that is not in the store, or not what was published.
    """
    cut = log.cut()
    journal = Journal(log.folder / "verify.jsonl", {"program": program(), "store": str(log.generations.absolute())})
    went = _went(cut, journal)
    make = partial(_verifying, log.path, log.generations)
    total = _NOTHING
    for result in over(cut, make, journal=journal, workers=cores(log.workers), title="replayed"):
        total += _verified_of(result)
    journal.remove()
    return total, went


def compare(log: Log, target: str) -> tuple[pl.LazyFrame, Went]:
    """What a generation makes of every logged request that others answered, that was made after its training data
    ended, and whose candidates are in the log: `training.off_policy.replay.compared`.

    The rows are left in Parquet files, one for each segment; the next call reads them and replays nothing twice.

    Raises:
        ValueError: see `Log.cut`; where there is no such request; and as `training.off_policy.replay.compared` does.
        UnknownGeneration, CorruptGeneration: see `GenerationStore`.
    """
    cut = log.cut()
    manifest = GenerationStore(log.generations).manifest(target)
    folder = log.folder / target
    journal = Journal(folder / "compared.jsonl", {"program": program(), "generation": _identity(manifest)})
    journal.done = {each: made for each, made in journal.done.items() if _part(folder, each).is_file()}
    went = _went(cut, journal)
    make = partial(_comparing, log.path, log.generations, target, folder)
    results = list(over(cut, make, journal=journal, workers=cores(log.workers), title="compared"))
    others, later, whole = (sum(each[name] for each in results) for name in ("others", "later", "whole"))
    if not others:
        raise ValueError(f"{log.path} holds no request that another generation than {target} answered")
    if not later:
        raise ValueError(nothing_unseen(others, manifest))
    if not whole:
        raise ValueError(f"none of {later} impressions holds the candidates it was drawn from")
    for stale in set(folder.glob("*.parquet")) - {_part(folder, each) for each in cut}:
        stale.unlink()
    return pl.scan_parquet([_part(folder, each) for each in cut]), went


def program() -> str:
    """Identifies the code that answers, and the libraries that it computes with."""
    digest = sha256()
    for package in _ANSWERING:
        for path in sorted(Path(str(package.__file__)).parent.rglob("*.py")):
            digest.update(path.name.encode())
            digest.update(path.read_bytes())
    for name in _COMPUTING:
        with suppress(metadata.PackageNotFoundError):
            digest.update(f"{name} {metadata.version(name)}".encode())
    return digest.hexdigest()[:16]


def _identity(manifest: Manifest) -> str:
    files = sorted((name, entry.sha256) for name, entry in manifest.files.items())
    return f"{manifest.id} {sha256(repr(files).encode()).hexdigest()[:16]}"


def _went(cut: Sequence[Segment], journal: Journal) -> Went:
    resumed = sum(each.rows for each in cut if each in journal.done)
    return Went(sum(each.rows for each in cut) - resumed, resumed, journal.afresh)


def _verifying(log: Path, generations: Path) -> Work:
    torch.set_num_threads(1)  # as in a server, for equal sums
    store = GenerationStore(generations)
    catalog = CatalogLog(store.root / FILE)
    loaded: dict[str, Generation] = {}
    snapshots = Snapshots(loaded, catalog)

    def work(segment: Segment) -> Result:
        nonlocal loaded, snapshots
        impressions = read_segment(log, segment)
        wanted = set[str]().union(*map(answering, impressions))
        if not wanted <= loaded.keys():
            kept = loaded if len(loaded | dict.fromkeys(wanted)) <= _MOST_LOADED else {}
            loaded = {**kept, **{each: loaded.get(each) or Generation.load(store, each) for each in wanted}}
            snapshots = Snapshots(loaded, catalog)
        return asdict(verified(impressions, snapshots))

    return work


def _verified_of(result: Mapping[str, object]) -> Verified:
    divergences = result["divergences"]
    assert isinstance(divergences, list | tuple)
    return Verified(**{**result, "divergences": tuple(Divergence(**each) for each in divergences)})  # type: ignore[arg-type]


def _comparing(log: Path, generations: Path, target: str, folder: Path) -> Work:
    torch.set_num_threads(1)
    store = GenerationStore(generations)
    loaded = Generation.load(store, target)
    snapshots = Snapshots({target: loaded}, CatalogLog(store.root / FILE))

    def work(segment: Segment) -> Result:
        impressions = [each for each in as_published(read_segment(log, segment)) if each.generation != target]
        later = [each for each in impressions if each.time_ms >= loaded.manifest.data_window[1]]
        rows = compared(later, loaded, snapshots)
        with appearing(_part(folder, segment)) as draft:
            rows.write_parquet(draft)
        return {"others": len(impressions), "later": len(later), "whole": rows.height}

    return work


def _part(folder: Path, segment: Segment) -> Path:
    return folder / f"{Path(segment.source).stem}-{segment.first}-{segment.rows}-{segment.digest:08x}.parquet"
