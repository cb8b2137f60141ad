"""Immutable, versioned directories: what training publishes and serving reads.

    root/
        000001-3fa1c20b/        a generation: its files and manifest.json
        CURRENT                 the id in force, then those in force before it, newest first, one a line
        history.jsonl           what was activated when, why and by whom, append-only
        .lock                   held while the store changes
        .job-*                  the lease of a job that changes it, see `index.leases`
        .staging-*              folders being written; one whose writer has died is removed by the next `stage`

For a local POSIX file system: rename is atomic and flock excludes other processes.
"""

import fcntl
import hashlib
import json
import math
import os
import re
import shutil
import stat
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import mkdtemp
from types import EllipsisType
from typing import Any

from index.leases import Lease, leased
from index.on_disk import sync

_ID = re.compile(r"[0-9]{6,}-[0-9a-f]{8}")
_JOB = re.compile(r"[a-z]+")
_MANIFEST = "manifest.json"
_STAGING = ".staging-"
_PART_BYTES = 1 << 23
"""Read and hashed at once: between two parts the thread waits for its turn among those that serve."""
_PICKLES = frozenset({".ckpt", ".dill", ".joblib", ".pickle", ".pkl", ".pt", ".pth"})


class UnknownGeneration(ValueError):
    """An id that the store does not hold."""


class StaleExpected(ValueError):
    """Another generation is current than the caller believed."""


class CorruptGeneration(ValueError):
    """A file is not what was published."""


@dataclass(frozen=True, slots=True)
class FileEntry:
    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a generation is."""

    id: str
    parent: str | None
    """The generation that it was trained from."""
    created_ms: int
    data_window: tuple[int, int]
    """First and last event time in the data, in milliseconds."""
    fingerprints: Mapping[str, str]
    """Of the parts that must agree when it is loaded."""
    config: Mapping[str, Any]
    metrics: Mapping[str, Any]
    """None stands for a metric that was not finite."""
    files: Mapping[str, FileEntry]
    """By path inside the generation, with forward slashes; the manifest itself is not among them."""
    catalog_seq: int = 0
    """Entries of the catalogue log up to this one are folded in."""

    @property
    def bytes(self) -> int:
        return sum(each.bytes for each in self.files.values())


@dataclass(frozen=True, slots=True)
class Difference:
    """What differs between two generations: name to (value in the first, value in the second), None if absent.

    Nested config and metrics are named by dotted paths, files by sha256.
    """

    files: Mapping[str, tuple[Any, Any]]
    fingerprints: Mapping[str, tuple[Any, Any]]
    config: Mapping[str, tuple[Any, Any]]
    metrics: Mapping[str, tuple[Any, Any]]


@dataclass(frozen=True, slots=True)
class Activation:
    """One line of the audit log. It is written before CURRENT is replaced: where the next line's `previous` is not
    this line's `id`, the process died in between and CURRENT never changed."""

    id: str
    previous: str | None
    time_ms: int
    reason: str
    by: str = ""
    """Who did it, as far as they said."""


class GenerationStore:
    """The generations under one root. Reading creates nothing and takes no lock."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def job(
        self, name: str, *, holder: str, ttl_s: float = 60.0, clock: Callable[[], float] = time.time
    ) -> AbstractContextManager[Lease]:
        """The right to do a job on this store, for a `with` block; see `index.leases.leased`.

        Raises:
            ValueError: a name that is not lower-case letters.
            LeaseHeld, LeaseLost.
        """
        if not _JOB.fullmatch(name):
            raise ValueError(f"a job's name is lower-case letters, not {name!r}")
        return leased(self.root / f".job-{name}", holder=holder, ttl_s=ttl_s, clock=clock, locked=self._locked)

    @contextmanager
    def stage(self) -> Iterator[Path]:
        """A new empty folder on the store's file system, to write a generation into and `publish`.

        It is gone after the block unless it was published. Folders of writers that died are removed.
        """
        with self._locked():
            for left in self.root.glob(f"{_STAGING}*"):
                with _held(left) as ours:
                    if ours:
                        shutil.rmtree(left)
            folder = Path(mkdtemp(prefix=_STAGING, dir=self.root))
            folder.chmod(0o755)
            holder = os.open(folder, os.O_RDONLY)
            fcntl.flock(holder, fcntl.LOCK_EX)
        try:
            yield folder
        finally:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(holder)

    def publish(
        self,
        folder: Path,
        *,
        fingerprints: Mapping[str, str],
        parent: str | None,
        config: Mapping[str, Any],
        data_window: tuple[int, int],
        metrics: Mapping[str, Any],
        created_ms: int,
        catalog_seq: int = 0,
        check: Callable[[Path, Manifest], object] | None = None,
        job: Lease | None = None,
    ) -> str:
        """Seal a staged folder and give it an id, durably and in one step; it is not activated.

        The id is a sequence number, one above the highest there is, and eight digits of the sha256 over
        fingerprints and config: the same training in the same place gives the same id. A manifest.json that the
        folder already holds is replaced.

        Args:
            check: looks at the sealed folder before it gets its name; what it raises refuses the publish. The
                sequence number in the manifest that it sees may yet change.
            job: whose lease must still be good.

        Raises:
            LeaseLost: see `job`.
            ValueError: a folder that is not staged here or empty, anything in it that is neither a plain file nor a
                folder, a file that only unpickling could read, or values that JSON cannot hold.
            UnknownGeneration: the parent is not in the store.
        """
        if folder.parent != self.root or not folder.name.startswith(_STAGING):
            raise ValueError(f"{folder} was not staged in {self.root}")
        if parent is not None:
            self.folder(parent)
        if data_window[0] > data_window[1]:
            raise ValueError(f"data_window ends at {data_window[1]}, before it starts at {data_window[0]}")
        identity = _canonical({"fingerprints": dict(fingerprints), "config": dict(config)}, "fingerprints or config")
        hash8 = hashlib.sha256(identity.encode()).hexdigest()[:8]
        # Through JSON and back: what is sealed must be what a reader will find.
        stored = json.loads(identity) | {"metrics": json.loads(_canonical(_finite(metrics), "metrics"))}
        (folder / _MANIFEST).unlink(missing_ok=True)
        paths = _plain_files(folder)
        if not paths:
            raise ValueError(f"{folder} is empty, there is nothing to publish")
        files = {path: _entry(folder / path) for path in paths}
        for path in paths:
            sync(folder / path)
        manifest = Manifest(
            id=self._next(hash8),
            parent=parent,
            created_ms=created_ms,
            data_window=data_window,
            files=files,
            catalog_seq=catalog_seq,
            **stored,
        )
        if check is not None:
            (folder / _MANIFEST).write_text(_sealed(manifest))
            check(folder, manifest)
        with self._locked():
            if job is not None:
                job.check()
            manifest = replace(manifest, id=self._next(hash8))
            (folder / _MANIFEST).write_text(_sealed(manifest))
            sync(folder / _MANIFEST)
            for inside, _, _ in os.walk(folder, topdown=False):
                sync(Path(inside))
            folder.rename(self.root / manifest.id)
            sync(self.root)
        return manifest.id

    def ids(self) -> list[str]:
        """All generations, oldest first."""
        if not self.root.is_dir():
            return []
        return sorted((each.name for each in self.root.iterdir() if self._holds(each.name)), key=_sequence)

    def folder(self, generation: str) -> Path:
        """Where a generation's files are.

        Raises:
            UnknownGeneration: there is none of that id.
        """
        if not self._holds(generation):
            raise UnknownGeneration(f"no generation {generation!r} in {self.root}, which holds {len(self.ids())}")
        return self.root / generation

    def manifest(self, generation: str) -> Manifest:
        """What was published, checked against the manifest's own seal but not against the files.

        Raises:
            UnknownGeneration, CorruptGeneration.
        """
        path = self.folder(generation) / _MANIFEST
        try:
            text = path.read_bytes().decode()
            fields = json.loads(text)
            found = fields.pop("sha256")
            fields["data_window"] = tuple(fields["data_window"])
            fields["files"] = {name: FileEntry(**entry) for name, entry in fields["files"].items()}
            manifest = Manifest(**fields)
            sealed = _sealed(manifest)
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CorruptGeneration(f"{path} is not a manifest: {error!r}") from error
        if text != sealed:
            expected = json.loads(sealed)["sha256"]
            raise CorruptGeneration(f"{path} was changed: its contents have sha256 {expected}, its seal says {found}")
        if manifest.id != generation:
            raise CorruptGeneration(f"{path} expected id {generation}, found {manifest.id}")
        return manifest

    def verify(self, generation: str) -> Manifest:
        """Read every byte again and compare with what was published.

        Raises:
            UnknownGeneration: there is none of that id.
            CorruptGeneration: names the first file that is missing, extra, unreadable, of another size or of another
                sha256, with what was expected and found.
        """
        manifest, folder = self.manifest(generation), self.folder(generation)
        try:
            found = set(_plain_files(folder)) - {_MANIFEST}
        except ValueError as error:
            raise CorruptGeneration(f"generation {generation}: {error}") from error
        for path in sorted(found | set(manifest.files)):
            what = f"generation {generation}: {path}"
            expected = manifest.files.get(path)
            if expected is None:
                raise CorruptGeneration(f"{what} is extra, expected {len(manifest.files)} other files")
            if path not in found:
                raise CorruptGeneration(f"{what} is missing, expected {expected.bytes} bytes")
            try:
                entry = _entry(folder / path)
            except OSError as error:
                raise CorruptGeneration(f"{what} is unreadable, expected {expected.bytes} bytes: {error}") from error
            if entry.bytes != expected.bytes:
                raise CorruptGeneration(f"{what} expected {expected.bytes} bytes, found {entry.bytes}")
            if entry.sha256 != expected.sha256:
                raise CorruptGeneration(f"{what} expected sha256 {expected.sha256}, found {entry.sha256}")
        return manifest

    def current(self) -> str | None:
        """The generation in force; None before the first activation.

        Raises:
            CorruptGeneration: CURRENT names none that exists.
        """
        lines = self._lines()
        if not lines:
            return None
        if not self._holds(lines[0]):
            raise CorruptGeneration(f"{self.root / 'CURRENT'} names {lines[0]!r}, which is not in the store")
        return lines[0]

    def before(self) -> str | None:
        """The generation that `rollback` goes to; None where there is none."""
        return next((each for each in self._lines()[1:] if self._holds(each)), None)

    def activate(
        self,
        generation: str,
        *,
        time_ms: int,
        reason: str = "",
        by: str = "",
        expected: str | EllipsisType | None = ...,
        job: Lease | None = None,
        verified: Manifest | None = None,
    ) -> str | None:
        """Put a generation in force, after reading all of it, and return the one it replaces.

        Args:
            reason, by: for the audit log: why, and who.
            expected: what the caller believes is current (None: nothing is); the ellipsis goes ahead whatever is.
            job: whose lease must still be good.
            verified: what `verify` has just returned to the caller; then the files are not read again.

        Raises:
            LeaseLost: see `job`.
            UnknownGeneration, CorruptGeneration: and what was current stays so.
            StaleExpected: another process was first.
        """
        if verified is None or verified != self.manifest(generation):
            self.verify(generation)
        with self._locked():
            if job is not None:
                job.check()
            self.folder(generation)
            lines = self._lines()
            previous = lines[0] if lines else None
            if expected is not ... and previous != expected:
                raise StaleExpected(f"expected {expected} to be current, found {previous}")
            if previous != generation:
                older = [each for each in lines if each != generation and self._holds(each)]
                self._switch([generation, *older], time_ms=time_ms, reason=reason, by=by)
        return previous

    def rollback(self, *, time_ms: int, reason: str = "rollback", by: str = "") -> str:
        """Go back to the generation that was in force before, and return it; again, and it goes one further back.

        Raises:
            UnknownGeneration: there is none before.
            CorruptGeneration: it is damaged, and what was current stays so.
        """
        with self._locked():
            target, lines = self.before(), self._lines()
            if target is None:
                raise UnknownGeneration(f"no generation was in force before {lines[0] if lines else None}")
            self.verify(target)
            self._switch(lines[lines.index(target) :], time_ms=time_ms, reason=reason, by=by)
        return target

    def history(self) -> list[Activation]:
        """The audit log, oldest first; a line torn by a crash is left out."""
        path = self.root / "history.jsonl"
        lines = path.read_bytes().split(b"\n") if path.exists() else []
        activations = []
        for line in lines:
            try:
                activations.append(Activation(**json.loads(line)))
            except (ValueError, TypeError):
                continue
        return activations

    def prune(self, keep: int, *, named: Collection[str] = ()) -> list[str]:
        """Remove all but the newest `keep`, the current one, the one before and those named; returns what was removed.

        A process that has them mapped keeps its pages.

        Raises:
            ValueError: a keep below 1; the newest is what the next sequence number counts from.
        """
        if keep < 1:
            raise ValueError(f"keep is {keep}, it must be at least 1")
        with self._locked():
            ids = self.ids()
            kept = {*ids[-keep:], self.current(), self.before(), *named}
            removed = [each for each in ids if each not in kept]
            for each in removed:
                # One step takes it out of the store; if the next is cut short, `stage` removes the rest.
                gone = self.root / f"{_STAGING}{each}"
                (self.root / each).rename(gone)
                shutil.rmtree(gone)
            sync(self.root)
        return removed

    def diff(self, a: str, b: str) -> Difference:
        """What differs between two generations, by their manifests."""
        first, second = self.manifest(a), self.manifest(b)
        return Difference(
            files=_differing(
                {path: entry.sha256 for path, entry in first.files.items()},
                {path: entry.sha256 for path, entry in second.files.items()},
            ),
            fingerprints=_differing(first.fingerprints, second.fingerprints),
            config=_differing(_flat(first.config), _flat(second.config)),
            metrics=_differing(_flat(first.metrics), _flat(second.metrics)),
        )

    def _next(self, hash8: str) -> str:
        """The id of the next generation."""
        ids = self.ids()
        return f"{1 + (_sequence(ids[-1]) if ids else 0):06d}-{hash8}"

    def _holds(self, generation: str) -> bool:
        folder = self.root / generation
        return _ID.fullmatch(generation) is not None and folder.is_dir() and not folder.is_symlink()

    def _lines(self) -> list[str]:
        try:
            return (self.root / "CURRENT").read_text(errors="replace").splitlines()
        except FileNotFoundError:
            return []

    def _switch(self, lines: list[str], *, time_ms: int, reason: str, by: str) -> None:
        before = self._lines()
        line = Activation(lines[0], before[0] if before else None, time_ms, reason, by)
        history = self.root / "history.jsonl"
        torn = history.exists() and not history.read_bytes().endswith(b"\n")
        with history.open("a") as file:
            file.write("\n" * torn + json.dumps(asdict(line)) + "\n")
            file.flush()
            os.fsync(file.fileno())
        fresh = self.root / ".CURRENT"
        fresh.write_text("".join(f"{each}\n" for each in lines))
        sync(fresh)
        fresh.replace(self.root / "CURRENT")
        sync(self.root)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        self.root.mkdir(parents=True, exist_ok=True)
        with (self.root / ".lock").open("a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield


@contextmanager
def _held(folder: Path) -> Iterator[bool]:
    """Whether the folder's lock was free, and is now ours for the block."""
    holder = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(holder, fcntl.LOCK_EX | fcntl.LOCK_NB)
            free = True
        except BlockingIOError:
            free = False
        yield free
    finally:
        os.close(holder)


def _sequence(generation: str) -> int:
    return int(generation.partition("-")[0])


def _plain_files(folder: Path) -> list[str]:
    """Relative paths of all files, ascending; refuses pickles, and what is neither a plain file nor a folder."""
    paths = []
    for inside, folders, names in os.walk(folder):
        for name in (*folders, *names):
            path = Path(inside) / name
            mode = path.lstat().st_mode
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)):
                raise ValueError(f"{path.relative_to(folder)} is not a plain file")
            if path.suffix.lower() in _PICKLES:
                raise ValueError(
                    f"{path.relative_to(folder)} is a pickle by its name, and loading one can run any code"
                )
            if stat.S_ISREG(mode):
                paths.append(path.relative_to(folder).as_posix())
    return sorted(paths)


def _entry(path: Path) -> FileEntry:
    digest = hashlib.sha256()
    with path.open("rb", buffering=0) as file:
        while part := file.read(_PART_BYTES):
            digest.update(part)
        return FileEntry(digest.hexdigest(), os.fstat(file.fileno()).st_size)


def _canonical(value: Any, name: str) -> str:
    try:
        return json.dumps(value, sort_keys=True, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} cannot be written as JSON: {error}") from error


def _sealed(manifest: Manifest) -> str:
    """The manifest as it is stored: with the sha256 over the rest of it, and in one spelling."""
    fields = asdict(manifest)
    fields["sha256"] = hashlib.sha256(_canonical(fields, "the manifest").encode()).hexdigest()
    return json.dumps(fields, sort_keys=True, indent=1) + "\n"


def _finite(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{name}.")
        else:
            flat[f"{prefix}{name}"] = value
    return flat


def _differing(first: Mapping[str, Any], second: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    names = sorted(first.keys() | second.keys())
    return {name: (first.get(name), second.get(name)) for name in names if first.get(name) != second.get(name)}
