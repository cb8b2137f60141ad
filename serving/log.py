"""The impression log: what was shown and what followed, durable, each once.

A spool in SQLite with a write-ahead log. One thread writes; whatever is queued when it is free goes into one
transaction (group commit), so that one fsync pays for many requests and none waits for another's. Every row carries
a CRC-32 over its key, its time and its payload, which readers check.
"""

import os
import sqlite3
import threading
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, TypeVar

from google.protobuf.message import DecodeError

from protos.impression_pb2 import Impression, Outcome

Durability = Literal["group", "sync", "os"]
Status = Literal["stored", "duplicate"]
Table = Literal["impressions", "outcomes"]
_Record = TypeVar("_Record", Impression, Outcome)

_VERSION = 1
_MAX_GROUP = 2048
_RETRY_S = 0.2
_KEY = {"impressions": "request_id", "outcomes": "event_id"}
_TIME = {"impressions": "time_ms", "outcomes": "visible_ms"}
_SCHEMA = "".join(
    f"""
    CREATE TABLE IF NOT EXISTS {table} (
        {key} TEXT NOT NULL PRIMARY KEY, {_TIME[table]} INTEGER NOT NULL, crc INTEGER NOT NULL, payload BLOB NOT NULL
    ) STRICT;
    CREATE INDEX IF NOT EXISTS {table}_by_time ON {table} ({_TIME[table]}, {key});
    """
    for table, key in _KEY.items()
)
_NOT_THE_FILE = {
    sqlite3.SQLITE_BUSY,
    sqlite3.SQLITE_LOCKED,
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_NOMEM,
    sqlite3.SQLITE_PERM,
}
"""Results of SQLite that speak of the disk or the moment, not of what the file holds."""


class LogUnavailable(RuntimeError):
    """Nothing can be logged now: the queue or the disk is full, the disk fails, or the log is closed."""


class CorruptLog(ValueError):
    """The file does not hold what was written; names the file and, where one is to blame, the row's key."""


@dataclass(frozen=True, slots=True)
class _Row:
    table: Table
    key: str
    time_ms: int
    crc: int
    payload: bytes


@dataclass(slots=True)
class _Job:
    """Rows to be committed together, and who waits for that. No rows: a flush."""

    rows: list[_Row]
    waiter: Future[list[Status]] | None
    statuses: list[Status] = field(default_factory=list)


class ImpressionLog:
    """Writes one log file; a server process has its own.

    While the disk refuses, what had been accepted is kept and tried again every 0.2 s, everything new is refused at
    once, and `available` is false: the caller answers without exploration and says so.

    Args:
        durability: `group`: a commit is on disk (fsync) before it is acknowledged, an impression is acknowledged
            before its commit. `sync`: an impression too is acknowledged only after its commit. `os`: no fsync; what
            was committed survives the death of this process but not of the machine.
        capacity: while this many rows wait, more are refused.

    Raises:
        CorruptLog: where the file is not a log, or is one of another version.
        LogUnavailable: where it cannot be opened or made.
    """

    def __init__(self, path: Path, *, durability: Durability = "group", capacity: int = 4096) -> None:
        if durability not in ("group", "sync", "os"):
            raise ValueError(f"durability must be group, sync or os, got {durability!r}")
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, got {capacity}")
        self._path = path
        self._durability = durability
        self._capacity = capacity
        self._connection: sqlite3.Connection | None = self._open()
        self._wake = threading.Condition()
        self._queue: deque[_Job] = deque()
        self._waiting_rows = 0
        self._unsaved: dict[str, _Row] = {}
        self._fault = ""
        self._closing = False
        self._reader: sqlite3.Connection | None = None
        self._reading = threading.Lock()
        self._writer = threading.Thread(target=self._write_until_closed, name="impression-log", daemon=True)
        self._writer.start()

    @property
    def available(self) -> bool:
        """Whether an impression would be accepted now."""
        with self._wake:
            return not self._refusal(1)

    @property
    def waiting(self) -> int:
        """Rows accepted and not yet committed."""
        with self._wake:
            return self._waiting_rows

    def append(self, impression: Impression) -> None:
        """Log an impression; a second one with the same request id changes nothing.

        Returns at once, except where durability is `sync`.

        Raises:
            LogUnavailable: it is not logged.
        """
        row = _row("impressions", impression.request_id, impression.time_ms, impression.SerializeToString())
        waiter = self._enqueue([row], wait=self._durability == "sync")
        if waiter is not None:
            waiter.result()

    def write_outcomes(self, outcomes: Sequence[Outcome]) -> list[Status]:
        """Log outcomes and wait for the commit; one status each.

        Raises:
            LogUnavailable: none is acknowledged. Some may have been stored: to send all of them again is right.
            ValueError: where an event id is empty.
        """
        rows = [_row("outcomes", one.event_id, one.visible_ms, one.SerializeToString()) for one in outcomes]
        if not rows:
            return []
        waiter = self._enqueue(rows, wait=True)
        return waiter.result() if waiter is not None else []

    def find(self, request_id: str) -> Impression | None:
        """The impression of a request id, committed or still waiting: what a retry of that request is answered with.

        Raises:
            LogUnavailable: where the file cannot be read now.
            CorruptLog: where the row is not what was written.
        """
        with self._wake:
            waiting = self._unsaved.get(request_id)
        try:
            with self._reading:
                if self._reader is None:
                    self._reader = open_to_read(self._path)
                found = self._reader.execute(
                    "SELECT time_ms, crc, payload FROM impressions WHERE request_id = ?", (request_id,)
                ).fetchone()
        except (sqlite3.Error, UnicodeDecodeError) as error:
            raise explained(error, self._path) from error
        if found is not None:
            return _checked(self._path, "impressions", (request_id, *found), Impression)
        return None if waiting is None else Impression.FromString(waiting.payload)

    def flush(self) -> None:
        """Return when everything accepted so far is committed.

        Raises:
            LogUnavailable: it cannot be committed now, and is kept.
        """
        waiter = self._enqueue([], wait=True)
        if waiter is not None:
            waiter.result()

    def close(self) -> None:
        """Commit what waits, then close. Closing again does nothing.

        Raises:
            LogUnavailable: says how many accepted rows could not be committed and are lost.
        """
        with self._wake:
            if self._closing:
                return
            self._closing = True
            self._wake.notify()
        self._writer.join()
        with self._reading:
            if self._reader is not None:
                self._reader.close()
        if self._waiting_rows:
            raise LogUnavailable(f"{self._path}: {self._waiting_rows} accepted rows are lost: {self._fault}")

    def __enter__(self) -> "ImpressionLog":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _refusal(self, rows: int) -> str:
        if self._closing:
            return "the log is closed"
        if self._fault:
            return self._fault
        if rows and self._waiting_rows >= self._capacity:
            return f"{self._waiting_rows} rows wait to be written, the capacity is {self._capacity}"
        return ""

    def _enqueue(self, rows: list[_Row], *, wait: bool) -> Future[list[Status]] | None:
        waiter: Future[list[Status]] | None = Future() if wait else None
        job = _Job(rows, waiter)  # the writer takes the waiter out of it once it is told
        with self._wake:
            refusal = self._refusal(len(rows))
            if refusal:
                raise LogUnavailable(f"{self._path}: {refusal}")
            self._queue.append(job)
            self._waiting_rows += len(rows)
            for row in rows:
                if row.table == "impressions":
                    self._unsaved.setdefault(row.key, row)
            self._wake.notify()
        return waiter

    def _open(self) -> sqlite3.Connection:
        try:
            connection = sqlite3.connect(self._path, timeout=5, isolation_level=None, check_same_thread=False)
        except sqlite3.Error as error:
            raise explained(error, self._path) from error
        try:
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            made = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()[0]
            if version != _VERSION and (version or made):
                raise CorruptLog(f"{self._path} is not a log of version {_VERSION} (it says {version})")
            connection.execute("PRAGMA journal_mode = WAL")
            connection.execute(f"PRAGMA synchronous = {'NORMAL' if self._durability == 'os' else 'FULL'}")
            connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;")
        except (sqlite3.Error, UnicodeDecodeError) as error:
            connection.close()
            raise explained(error, self._path) from error
        except CorruptLog:
            connection.close()
            raise
        return connection

    def _write_until_closed(self) -> None:
        group: list[_Job] = []
        while True:
            with self._wake:
                if self._fault and not self._closing:
                    self._wake.wait_for(lambda: self._closing, _RETRY_S)
                else:
                    self._wake.wait_for(lambda: self._queue or self._closing)
                closing = self._closing
                rows = sum(len(job.rows) for job in group)
                while self._queue and (not rows or rows + len(self._queue[0].rows) <= _MAX_GROUP):
                    job = self._queue.popleft()
                    rows += len(job.rows)
                    group.append(job)
            if group or self._fault:
                self._settle(group, self._commit(group))
            with self._wake:
                if closing and (self._fault or not self._queue):
                    break
        if self._connection is not None:
            self._connection.close()

    def _commit(self, group: list[_Job]) -> str:
        """Write all jobs in one transaction; returns why it failed, or nothing."""
        try:
            if self._connection is None:
                self._connection = self._open()
            self._connection.execute("BEGIN IMMEDIATE")
            for job in group:
                job.statuses = [self._insert(self._connection, row) for row in job.rows]
            self._connection.execute("COMMIT")
        except Exception as error:  # whatever it is, those who wait must hear of it
            if self._connection is not None:
                self._connection.close()
                self._connection = None
            return str(error) or repr(error)
        return ""

    @staticmethod
    def _insert(connection: sqlite3.Connection, row: _Row) -> Status:
        inserted = connection.execute(
            f"INSERT INTO {row.table} VALUES (?, ?, ?, ?) ON CONFLICT ({_KEY[row.table]}) DO NOTHING",
            (row.key, row.time_ms, row.crc, row.payload),
        )
        return "stored" if inserted.rowcount else "duplicate"

    def _settle(self, group: list[_Job], fault: str) -> None:
        """Tell those who wait. After a failure the rows stay in `group` for the next attempt.

        On a failure jobs still in the queue are pulled in too, so that no waiter is left without an answer.
        """
        with self._wake:
            self._fault = fault
            if fault:
                group.extend(self._queue)
                self._queue.clear()
            else:
                for job in group:
                    self._waiting_rows -= len(job.rows)
                    for row in job.rows:
                        if self._unsaved.get(row.key) is row:
                            del self._unsaved[row.key]
            waiters = [(job, job.waiter) for job in group if job.waiter is not None]
            for job in group:
                job.waiter = None
            if not fault:
                group.clear()
            else:
                group[:] = [job for job in group if job.rows]
        for job, waiter in waiters:
            if fault:
                waiter.set_exception(LogUnavailable(f"{self._path}: {fault}"))
            else:
                waiter.set_result(job.statuses)


def read_impressions(path: Path, *, since_ms: int | None = None, until_ms: int | None = None) -> Iterator[Impression]:
    """Committed impressions with `since_ms <= time_ms < until_ms`, by (time_ms, request id); also during writing.

    The file as a whole is checked before the first row comes.

    Raises:
        CorruptLog: where the file or a row is not what was written.
        LogUnavailable: where the disk cannot be read.
        ValueError: where there is no such file.
    """
    return _read(path, "impressions", since_ms, until_ms, Impression)


@dataclass(frozen=True, slots=True)
class Segment:
    """Impressions that were committed one after the other, to be read and worked on together."""

    first: int
    """Numbers of its rows, in the order of commits."""
    last: int
    rows: int
    digest: int
    """CRC-32 over the keys and checksums of its rows: other rows, another digest."""


def segments(path: Path, *, size: int = 256, newest: int | None = None) -> list[Segment]:
    """The log cut every `size` rows, without reading what they hold; a log that grows keeps all but its last segment.

    The file as a whole is checked first.

    Args:
        newest: only so many impressions, those committed last.

    Raises:
        CorruptLog, LogUnavailable, ValueError: see `read_impressions`.
    """
    cut: dict[int, Segment] = {}
    with _reading(path, check=True) as connection:
        found = connection.execute(
            "SELECT rowid, request_id, crc FROM impressions WHERE rowid >= coalesce("
            "(SELECT rowid FROM impressions ORDER BY rowid DESC LIMIT 1 OFFSET ? - 1), 0) ORDER BY rowid",
            ((1 << 63) - 1 if newest is None else newest,),
        )
        for row, key, crc in found:
            before = cut.get(row // size, Segment(row, row, 0, 0))
            digest = zlib.crc32(f"{row}\0{key}\0{crc}".encode(), before.digest)
            cut[row // size] = Segment(before.first, row, before.rows + 1, digest)
    return list(cut.values())


def read_segment(path: Path, segment: Segment) -> list[Impression]:
    """What a segment holds, in the order of commits.

    Raises:
        CorruptLog, LogUnavailable, ValueError: see `read_impressions`.
    """
    with _reading(path, check=False) as connection:
        found = connection.execute(
            "SELECT request_id, time_ms, crc, payload FROM impressions WHERE rowid BETWEEN ? AND ? ORDER BY rowid",
            (segment.first, segment.last),
        )
        return [_checked(path, "impressions", row, Impression) for row in found]


def read_these(path: Path, request_ids: Iterable[str]) -> list[Impression]:
    """The impressions of these requests, in this order; those that are not there are left out.

    Raises:
        CorruptLog, LogUnavailable, ValueError: see `read_impressions`.
    """
    wanted = "SELECT request_id, time_ms, crc, payload FROM impressions WHERE request_id = ?"
    with _reading(path, check=False) as connection:
        found = (row for each in request_ids for row in connection.execute(wanted, (each,)))
        return [_checked(path, "impressions", row, Impression) for row in found]


def read_outcomes(path: Path, *, since_ms: int | None = None, until_ms: int | None = None) -> Iterator[Outcome]:
    """Committed outcomes with `since_ms <= visible_ms < until_ms`, by (visible_ms, event id); else like impressions."""
    return _read(path, "outcomes", since_ms, until_ms, Outcome)


def _read(
    path: Path, table: Table, since_ms: int | None, until_ms: int | None, record: type[_Record]
) -> Iterator[_Record]:
    key, time = _KEY[table], _TIME[table]
    with _reading(path, check=True) as connection:
        found = connection.execute(
            f"SELECT {key}, {time}, crc, payload FROM {table} WHERE {time} >= ? AND {time} < ? ORDER BY {time}, {key}",
            (-(1 << 63) if since_ms is None else since_ms, (1 << 63) - 1 if until_ms is None else until_ms),
        )
        for row in found:
            yield _checked(path, table, row, record)


@contextmanager
def _reading(path: Path, *, check: bool) -> Iterator[sqlite3.Connection]:
    """One state of the log while the `with` lasts."""
    if not path.is_file():
        raise ValueError(f"no impression log at {path}")
    try:
        with closing(open_to_read(path)) as connection:
            connection.execute("BEGIN")
            verdict = connection.execute("PRAGMA integrity_check(1)").fetchone()[0] if check else "ok"
            if verdict != "ok":
                raise CorruptLog(f"{path}: {' '.join(str(verdict).split())}")
            version = connection.execute("PRAGMA user_version").fetchone()[0]
            if version != _VERSION:
                raise CorruptLog(f"{path} is not a log of version {_VERSION} (it says {version})")
            yield connection
    except (sqlite3.Error, UnicodeDecodeError) as error:
        raise explained(error, path) from error


def open_to_read(path: Path) -> sqlite3.Connection:
    """A connection that writes nothing, to a log in use or to one in a folder that may not be written to."""
    sealed = not os.access(path.parent, os.W_OK) and not path.with_name(f"{path.name}-wal").exists()
    mode = "immutable=1" if sealed else "mode=ro"
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?{mode}", uri=True, timeout=5, isolation_level=None, check_same_thread=False
    )


def _row(table: Table, key: str, time_ms: int, payload: bytes) -> _Row:
    if not key:
        raise ValueError(f"{_KEY[table]} must not be empty")
    return _Row(table, key, time_ms, _crc(key, time_ms, payload), payload)


def _crc(key: str, time_ms: int, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(f"{key}\0{time_ms}".encode()))


def _checked(path: Path, table: Table, row: tuple[str, int, int, bytes], record: type[_Record]) -> _Record:
    key, time_ms, crc, payload = row
    if not isinstance(payload, bytes) or _crc(str(key), time_ms, payload) != crc:
        raise CorruptLog(f"{path}: {table} row {key!r} does not match its checksum")
    try:
        return record.FromString(payload)
    except DecodeError as error:
        raise CorruptLog(f"{path}: {table} row {key!r} cannot be parsed: {error}") from error


def explained(error: sqlite3.Error | UnicodeDecodeError, path: Path) -> Exception:
    """Our error for one of SQLite's, or for text that a damaged file made it return."""
    kind = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
    make: Callable[[str], Exception] = LogUnavailable if kind in _NOT_THE_FILE else CorruptLog
    return make(f"{path}: {' '.join(str(error).split())}")
