"""Looking after an impression log: spools become Parquet, old days go, damage is found and set aside.

A change is made in the moment in which the manifest is replaced. Killed before, it has changed nothing, and what lies
about is cleared away by the next one; killed after, spools whose rows are in the archive too may be left, and those
rows count once.
"""

import fcntl
import os
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

from protos.impression_pb2 import Impression, Outcome
from serving.log.impression_log import SPOOLS, CorruptLog, LogUnavailable
from serving.log.spool import OPEN, TABLES, Spool, Table, is_written, paths
from training.durable import remove
from training.log.archive import (
    Manifest,
    Part,
    StoredRow,
    checked,
    day_of,
    keys_among,
    parsed,
    rows_of,
    times_of,
    write_parts,
)
from training.log.impression_log import opened

QUARANTINE = "quarantine"
_LOCK = ".compaction"
_BATCH_BYTES = 256 << 20
"""Of spools that are compacted together: their rows are in memory."""
_DAY_MS = 86_400_000
_RECORD: dict[Table, type[Impression | Outcome]] = {"impressions": Impression, "outcomes": Outcome}


class LogBusy(ValueError):
    """Another process looks after this log."""


@dataclass(slots=True)
class Compacted:
    """What a compaction did."""

    spools: int = 0
    rows: int = 0
    duplicates: int = 0
    """Rows left out, since the archive or an older spool has one of that key."""
    parts: int = 0
    unfinished_bytes: int = 0
    """Of groups that a writer was killed over; they were never acknowledged."""
    written_to: int = 0
    """Spools left alone: their writers live."""
    recent: int = 0
    """Spools left alone: their rows may yet be sent again."""
    forgotten: int = 0
    """Rows left out, or taken out of the archive: their users were forgotten."""
    damaged: dict[str, str] = field(default_factory=dict)
    """Spools left alone, and why."""


@dataclass(slots=True)
class Verified:
    """What is in a log, and what of it is damaged."""

    spools: int = 0
    parts: int = 0
    rows: int = 0
    damaged: dict[str, str] = field(default_factory=dict)
    """What is wrong, by path in the folder of the log."""


def compact(
    folder: Path, *, forgotten: Mapping[str, int] | None = None, recent_since_s: float = float("inf")
) -> Compacted:
    """Make Parquet of every spool that nobody writes to any more.

    Args:
        forgotten: users of whom nothing is kept up to a time, in ms: of them nothing gets into the archive, and what is
            there goes.
        recent_since_s: spools written to since then (epoch) are for a later compaction: a server that starts meanwhile
            knows of their rows, and of those in the archive it does not.

    Raises:
        LogBusy: another process does this.
        CorruptLog: for a damaged manifest.
        LogUnavailable: where the disk fails.
        ValueError: where there is no log.
    """
    with _alone(folder):
        done = Compacted()
        _clear_away(folder, Manifest.read(folder))
        batch: list[Path] = []
        for path in paths(folder / SPOOLS):
            with suppress(FileNotFoundError):  # sealed since the folder was listed: the next compaction's
                if path.suffix == OPEN and is_written(path):
                    done.written_to += 1
                    continue
                if path.stat().st_mtime > recent_since_s:
                    done.recent += 1
                    continue
                if sum(each.stat().st_size for each in (*batch, path)) > _BATCH_BYTES:
                    _compact(folder, batch, done, forgotten or {})
                    batch = []
                batch.append(path)
        _compact(folder, batch, done, forgotten or {})
        for table in TABLES:
            for part in Manifest.read(folder).of(table):
                _forget(folder, part, forgotten or {}, done)
        return done


def retain(folder: Path, *, days: int, now_ms: int) -> dict[str, int]:
    """Drop what the archive holds of more than so many days before today (UTC); the rows that went, by day.

    Raises:
        CorruptLog, LogBusy, LogUnavailable, ValueError: see `compact`.
    """
    oldest = day_of(now_ms - days * _DAY_MS)
    with _alone(folder):
        manifest = Manifest.read(folder)
        old = [part for part in manifest.parts if part.day < oldest]
        gone: dict[str, int] = {}
        for part in sorted(old, key=lambda part: part.day):
            gone[part.day] = gone.get(part.day, 0) + part.rows
        kept = Manifest(tuple(part for part in manifest.parts if part.day >= oldest))
        if old:
            kept.write(folder)
        _clear_away(folder, kept)
        return gone


def verify(folder: Path, *, quarantine: bool) -> Verified:
    """Read every file of the log and check every row.

    Args:
        quarantine: move damaged files to the folder `quarantine` of the log, so that what is left can be read. A spool
            whose writer lives stays.

    Raises:
        CorruptLog: for a damaged manifest.
        LogBusy, LogUnavailable, ValueError: see `compact`.
    """
    with _alone(folder):
        found = Verified()
        manifest = Manifest.read(folder)
        for part in manifest.parts:
            found.parts += 1
            try:
                found.rows += _verified_part(folder, part)
            except CorruptLog as error:
                found.damaged[part.name] = str(error)
        for path in paths(folder / SPOOLS):
            try:
                with closing(Spool(path)) as spool:
                    for row in spool.rows()[0]:
                        _require_message(StoredRow.of(*spool.read(row.at)), row.table, path)
                        found.rows += 1
                found.spools += 1
            except FileNotFoundError:
                continue  # sealed since the folder was listed
            except CorruptLog as error:
                found.spools += 1
                found.damaged[path.relative_to(folder).as_posix()] = str(error)
        if quarantine and found.damaged:
            _set_aside(folder, manifest, set(found.damaged))
        return found


def status(folder: Path) -> dict[str, int | str]:
    """What a log holds, for people.

    Raises:
        CorruptLog, LogUnavailable, ValueError: see `training.log.impression_log.read_impressions`.
    """
    with opened(folder) as log:
        told: dict[str, int | str] = {}
        for table in TABLES:
            parts, spooled = log.manifest.of(table), log.rows[table]
            days = sorted({part.day for part in parts} | {day_of(each.row.time_ms) for each in spooled})
            told[table] = sum(part.rows for part in parts) + len(spooled)
            told[f"{table}, in the archive"] = sum(part.rows for part in parts)
            told[f"{table}, days"] = f"{days[0]} to {days[-1]}" if days else "none"
        told["parts"] = len(log.manifest.parts)
        told["MB in parts"] = sum(part.bytes for part in log.manifest.parts) // 1_000_000
        told["rows in spools that do not count"] = log.duplicates
        told["bytes of unfinished groups"] = sum(log.unfinished.values())
    listed = paths(folder / SPOOLS)
    told["spools"] = len(listed)
    told["spools being written"] = sum(each.suffix == OPEN and is_written(each) for each in listed if each.exists())
    told["files in quarantine"] = len(list((folder / QUARANTINE).glob("*")))
    return told


def _compact(folder: Path, batch: list[Path], done: Compacted, forgotten: Mapping[str, int]) -> None:
    """Move the rows of these spools to the archive, in one step."""
    rows: dict[Table, dict[str, StoredRow]] = {table: {} for table in TABLES}
    taken = []
    for path in batch:
        with closing(Spool(path)) as spool:
            try:
                committed, unfinished = spool.rows()
                stored = [(row.table, StoredRow.of(*spool.read(row.at))) for row in committed]
            except CorruptLog as error:
                done.damaged[path.name] = str(error)
                continue
        for table, row in stored:
            if _is_forgotten(table, row, forgotten, path):
                done.forgotten += 1
                done.duplicates -= 1
            else:
                rows[table].setdefault(row.key, row)
        taken.append(path)
        done.spools += 1
        done.unfinished_bytes += unfinished
        done.duplicates += len(stored)
    manifest = Manifest.read(folder)
    made: list[Part] = []
    for table in TABLES:
        archived = keys_among(folder, manifest.of(table), list(rows[table]))
        made += write_parts(folder, table, (row for row in rows[table].values() if row.key not in archived))
    if made:
        Manifest((*manifest.parts, *made)).write(folder)
    for path in taken:
        path.unlink()
    done.parts += len(made)
    done.rows += sum(part.rows for part in made)
    done.duplicates -= sum(part.rows for part in made)


def _forget(folder: Path, part: Part, forgotten: Mapping[str, int], done: Compacted) -> None:
    """Put a part without the rows of forgotten users in the place of one that has any, in one step."""
    times = list(times_of(folder, part, users=list(forgotten)))
    if not any(time_ms <= forgotten[user_id] for user_id, time_ms in times):
        return
    checked(folder, part)
    kept = [row for row in rows_of(folder, part) if not _is_forgotten(part.table, row, forgotten, folder / part.name)]
    made = write_parts(folder, part.table, kept)
    manifest = Manifest.read(folder)
    Manifest((*(each for each in manifest.parts if each.name != part.name), *made)).write(folder)
    remove(folder / part.name)
    done.forgotten += part.rows - len(kept)


def _is_forgotten(table: Table, row: StoredRow, forgotten: Mapping[str, int], where: Path) -> bool:
    if not forgotten:
        return False
    return row.time_ms <= forgotten.get(parsed(row, _RECORD[table], where=where).user_id, row.time_ms - 1)


def _verified_part(folder: Path, part: Part) -> int:
    checked(folder, part)
    times_ms = []
    for row in rows_of(folder, part):
        _require_message(row, part.table, folder / part.name)
        times_ms.append(row.time_ms)
    if (len(times_ms), min(times_ms), max(times_ms)) != (part.rows, part.min_ms, part.max_ms):
        raise CorruptLog(f"{folder / part.name} holds other rows than the manifest says")
    return part.rows


def _require_message(row: StoredRow, table: Table, where: Path) -> None:
    parsed(row, _RECORD[table], where=where)


def _set_aside(folder: Path, manifest: Manifest, damaged: set[str]) -> None:
    aside = folder / QUARANTINE
    aside.mkdir(exist_ok=True)
    left = replace(manifest, parts=tuple(part for part in manifest.parts if part.name not in damaged))
    if left != manifest:
        left.write(folder)
    for name in damaged:
        path = folder / name
        with suppress(FileNotFoundError):
            if path.suffix != OPEN or not is_written(path):
                path.rename(aside / name.replace("/", "_"))


def _clear_away(folder: Path, manifest: Manifest) -> None:
    """Parts that do not count: of a compaction that was killed, or of days that went."""
    named = {part.name for part in manifest.parts}
    for table in TABLES:
        for day in (folder / table).glob("day=*"):
            for path in day.iterdir():
                if path.relative_to(folder).as_posix() not in named:
                    remove(path)
            with suppress(OSError):
                day.rmdir()  # where it is empty


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    if not (folder / SPOOLS).is_dir():
        raise ValueError(f"no impression log at {folder}")
    try:
        descriptor = os.open(folder / _LOCK, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise LogBusy(f"{folder} is being compacted or checked by another process") from None
        else:
            yield
        finally:
            os.close(descriptor)
    except OSError as error:
        raise LogUnavailable(f"{folder}: {error}") from error
