"""The impression log as replay and training read it: spools and archive as one, every row once.

Of rows with one key the first counts: one in the archive before one in a spool, one in an older spool before one in a
newer one. A reader sees the log as it was when it was opened, also while servers write and while it is compacted.
"""

import heapq
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple, TypeVar

from protos.impression_pb2 import Impression, Outcome
from serving.log.impression_log import SPOOLS, LogUnavailable
from serving.log.spool import OPEN, SEALED, TABLES, Row, Spool, Table, paths
from training.log.archive import (
    Manifest,
    Part,
    Record,
    StoredRow,
    checked,
    day_of,
    keys_among,
    keys_of,
    parsed,
    rows_named,
    rows_of,
)

_Each = TypeVar("_Each")
_EARLIEST, _LATEST = -(1 << 63), (1 << 63) - 1


def read_impressions(folder: Path, *, since_ms: int | None = None, until_ms: int | None = None) -> Iterator[Impression]:
    """Committed impressions with `since_ms <= time_ms < until_ms`, by (time_ms, request id); also during writing.

    Every spool is checked before the first row comes, every part of the archive before the first row of its day.

    Raises:
        CorruptLog: where a file or a row is not what was written.
        LogUnavailable: where the disk cannot be read.
        ValueError: where there is no log.
    """
    return _read(folder, "impressions", since_ms, until_ms, Impression)


def read_outcomes(folder: Path, *, since_ms: int | None = None, until_ms: int | None = None) -> Iterator[Outcome]:
    """Committed outcomes with `since_ms <= visible_ms < until_ms`, by (visible_ms, event id); else like impressions."""
    return _read(folder, "outcomes", since_ms, until_ms, Outcome)


def read_these(folder: Path, request_ids: Iterable[str]) -> list[Impression]:
    """The impressions of these requests, in this order; those that are not there are left out.

    Of the archive only the rows that are found are checked.

    Raises:
        CorruptLog, LogUnavailable, ValueError: see `read_impressions`.
    """
    ordered = list(request_ids)
    wanted = set(ordered)
    with opened(folder) as log:
        found = {
            row.key: parsed(row, Impression, where=folder)
            for each in log.rows["impressions"]
            if each.row.key in wanted and (row := each.stored())
        }
        if wanted:
            for key, row in rows_named(folder, log.manifest.of("impressions"), ordered).items():
                found[key] = parsed(row, Impression, where=folder)
    return [found[each] for each in ordered if each in found]


def evenly(every: Sequence[_Each], most: int) -> list[_Each]:
    """At most so many of them, from all over."""
    return list(every[:: max(1, -(-len(every) // most))])


@dataclass(frozen=True, slots=True)
class Segment:
    """Impressions that lie one after the other in a file of the log, to be read and worked on together."""

    source: str
    """Name of a spool, or of a part of the archive."""
    first: int
    """From where: bytes of a spool, rows of a part."""
    last: int
    """Up to where, that not included."""
    rows: int
    digest: int
    """CRC-32 over the keys and checksums of its rows: other rows, another digest."""


def segments(folder: Path, *, size: int = 256, newest: int | None = None) -> list[Segment]:
    """The log cut every `size` rows, without parsing them: the archive by day, then the spools in their order.

    A spool that grows keeps all but its last segment. What is compacted is cut anew. All files are checked that a
    segment lies in.

    Args:
        newest: only so many impressions, those last in that order.

    Raises:
        CorruptLog, LogUnavailable, ValueError: see `read_impressions`.
    """
    with opened(folder) as log:
        parts, spooled = log.manifest.of("impressions"), log.rows["impressions"]
        left_out = 0 if newest is None else max(0, sum(part.rows for part in parts) + len(spooled) - newest)
        cut: list[Segment] = []
        for part in parts:
            if part.rows > left_out:
                checked(folder, part)
                keys = [(n, n, n + 1, *each) for n, each in enumerate(keys_of(folder, part))]
                cut += _cut(part.name, keys[left_out:], size)
            left_out = max(0, left_out - part.rows)
        for spool, group in groupby(spooled[left_out:], key=lambda each: each.spool):
            rows = [(each.number, each.row.at, each.row.end, each.row.key, each.row.crc) for each in group]
            cut += _cut(spool.name, rows, size)
    return cut


def read_segment(folder: Path, segment: Segment) -> list[Impression]:
    """What a segment holds, in the order of its file.

    Raises:
        CorruptLog, LogUnavailable: see `read_impressions`.
        ValueError: where its file has been compacted or removed since the log was cut.
    """
    part = next((each for each in Manifest.read(folder).parts if each.name == segment.source), None)
    if part is not None:
        found = list(rows_of(folder, part, first=segment.first, rows=segment.rows))
    else:
        spool = _spool_named(folder, segment.source)
        try:
            found = [
                StoredRow.of(row, payload)
                for row, payload in spool.read_between(segment.first, segment.last)
                if row.table == "impressions"
            ]
        finally:
            spool.close()
    return [parsed(row, Impression, where=folder / segment.source) for row in found]


class SpooledRow(NamedTuple):
    """A row in a spool."""

    spool: Spool
    number: int
    """Among the rows of its table in this spool, with those that do not count."""
    row: Row

    def stored(self) -> StoredRow:
        return StoredRow.of(*self.spool.read(self.row.at))


@dataclass(frozen=True, slots=True)
class OpenedLog:
    """A log as it was in one moment."""

    manifest: Manifest
    rows: dict[Table, list[SpooledRow]]
    """What counts of the spools, in the order of commits."""
    duplicates: int
    """Rows of spools that do not count."""
    unfinished: dict[str, int]
    """Bytes at the end of a spool that belong to a group that was never completed, or not yet, by its name."""


@contextmanager
def opened(folder: Path) -> Iterator[OpenedLog]:
    """The log as it is now, for as long as the `with` lasts.

    Raises:
        CorruptLog, LogUnavailable, ValueError: see `read_impressions`.
    """
    if not (folder / SPOOLS).is_dir():
        raise ValueError(f"no impression log at {folder}" + (", which is a file" if folder.is_file() else ""))
    spools = _spools(folder)
    try:
        manifest = Manifest.read(folder)  # after the spools, so that what is compacted meanwhile is in one of both
        rows: dict[Table, list[SpooledRow]] = {table: [] for table in TABLES}
        unfinished: dict[str, int] = {}
        found = 0
        for spool in spools:
            committed, left = spool.rows()
            found += len(committed)
            unfinished |= {spool.name: left} if left else {}
            for table in TABLES:
                of_table = (row for row in committed if row.table == table)
                rows[table] += [SpooledRow(spool, number, row) for number, row in enumerate(of_table)]
        for table in TABLES:
            archived = keys_among(folder, manifest.of(table), [each.row.key for each in rows[table]])
            rows[table] = _first_of_each(rows[table], archived)
        yield OpenedLog(manifest, rows, found - sum(map(len, rows.values())), unfinished)
    except OSError as error:
        raise LogUnavailable(f"{folder}: {error}") from error
    finally:
        for spool in spools:
            spool.close()


def _read(
    folder: Path, table: Table, since_ms: int | None, until_ms: int | None, record: type[Record]
) -> Iterator[Record]:
    since_ms, until_ms = _EARLIEST if since_ms is None else since_ms, _LATEST if until_ms is None else until_ms
    with opened(folder) as log:
        parts: dict[str, list[Part]] = {}
        for part in log.manifest.of(table):
            if part.min_ms < until_ms and part.max_ms >= since_ms:
                parts.setdefault(part.day, []).append(part)
        spooled: dict[str, list[SpooledRow]] = {}
        for each in log.rows[table]:
            if since_ms <= each.row.time_ms < until_ms:
                spooled.setdefault(day_of(each.row.time_ms), []).append(each)
        for day in sorted(parts.keys() | spooled.keys()):
            for part in parts.get(day, ()):
                checked(folder, part)
            in_order = sorted(spooled.get(day, ()), key=lambda each: (each.row.time_ms, each.row.key))
            sources = [rows_of(folder, part) for part in parts.get(day, ())]
            for row in heapq.merge(*sources, (each.stored() for each in in_order), key=itemgetter(0, 1)):
                if since_ms <= row.time_ms < until_ms:
                    yield parsed(row, record, where=folder)


def _spools(folder: Path) -> list[Spool]:
    while True:
        made: list[Spool] = []
        try:
            for path in paths(folder / SPOOLS):
                made.append(Spool(path))
            return made
        except FileNotFoundError:  # sealed or compacted since the folder was listed
            for each in made:
                each.close()
        except OSError as error:
            raise LogUnavailable(f"{folder}: {error}") from error


def _spool_named(folder: Path, name: str) -> Spool:
    for suffix in (OPEN, SEALED):  # in the order in which it has them
        try:
            return Spool(folder / SPOOLS / f"{name}{suffix}")
        except FileNotFoundError:
            continue
    raise ValueError(f"{folder}: {name} was compacted or removed while it was being read; run it again")


def _first_of_each(rows: Iterable[SpooledRow], archived: set[str]) -> list[SpooledRow]:
    seen = set(archived)
    first = []
    for each in rows:
        if each.row.key not in seen:
            seen.add(each.row.key)
            first.append(each)
    return first


def _cut(source: str, rows: Iterable[tuple[int, int, int, str, int]], size: int) -> list[Segment]:
    """
    Args:
        rows: number, where from and to, key, checksum. Where a number is left out, a row does not count, and a
            segment ends before it.
    """
    cut: list[Segment] = []
    before = -2
    for number, first, last, key, crc in rows:
        if number != before + 1 or number % size == 0:
            cut.append(Segment(source, first, first, 0, 0))
        digest = zlib.crc32(f"{first}\0{key}\0{crc}".encode(), cut[-1].digest)
        cut[-1] = replace(cut[-1], last=last, rows=cut[-1].rows + 1, digest=digest)
        before = number
    return cut
