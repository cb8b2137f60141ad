"""The catalogue log: what changed between two generations, items, users, rules and traffic, durable, in one order for
every process of a store.

A file in SQLite with a write-ahead log. A row is one call that changed something, holding what of it was accepted, so
that the log is also the record of what was deleted and who was forgotten when. Readers check the CRC-32 that every row
carries.
"""

import os
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from google.protobuf.message import DecodeError

from protos.admin_pb2 import PutRulesRequest, SetTrafficRequest
from protos.catalog_pb2 import (
    DeleteItemsRequest,
    ForgetUserRequest,
    PatchItemsRequest,
    UpsertItemsRequest,
    UpsertUsersRequest,
)
from serving.log.impression_log import CorruptLog, LogUnavailable

Change = (
    UpsertItemsRequest
    | DeleteItemsRequest
    | PatchItemsRequest
    | PutRulesRequest
    | SetTrafficRequest
    | UpsertUsersRequest
    | ForgetUserRequest
)

FILE = "catalog.db"
"""Name of the log in the folder of a generation store."""

_VERSION = 1
_CHANGES: dict[str, type[Change]] = {
    "upsert_items": UpsertItemsRequest,
    "delete_items": DeleteItemsRequest,
    "patch_items": PatchItemsRequest,
    "put_rules": PutRulesRequest,
    "upsert_users": UpsertUsersRequest,
    "forget_user": ForgetUserRequest,
    "set_traffic": SetTrafficRequest,
}
_KIND_OF = {change: kind for kind, change in _CHANGES.items()}
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
_SCHEMA = """
    CREATE TABLE IF NOT EXISTS entries (
        seq INTEGER PRIMARY KEY, time_ms INTEGER NOT NULL, kind TEXT NOT NULL, crc INTEGER NOT NULL,
        payload BLOB NOT NULL
    ) STRICT;
"""
_PATIENCE_S = 5
_MADE = "SELECT user_version, (SELECT count(*) FROM sqlite_schema) FROM pragma_user_version"


class StaleHead(RuntimeError):
    """Another process has appended since."""


class UnknownChange(ValueError):
    """An entry of a kind that this version does not know, written by a later one."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One call that changed the catalogue."""

    seq: int
    """From 1, without gaps."""
    time_ms: int
    """When the server took it."""
    request: Change
    """With what was accepted and nothing else."""


class CatalogLog:
    """One file, which any number of processes read and append to. It comes into being with the first entry.

    Raises:
        CorruptLog: from every method, where the file is not what was written.
        LogUnavailable: from every method, where the disk refuses.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._reader: sqlite3.Connection | None = None
        self._writer: sqlite3.Connection | None = None
        self._reading = threading.Lock()
        self._writing = threading.Lock()

    def head(self) -> int:
        """Number of the last entry; 0 where there is none. Some microseconds, so that every request can ask."""
        with self._reading:
            try:
                reader = self._open_to_read()
                return 0 if reader is None else int(reader.execute("SELECT max(seq) FROM entries").fetchone()[0] or 0)
            except (sqlite3.Error, UnicodeDecodeError) as error:
                raise self._failed(error) from error

    def since(self, seq: int, until: int | None = None) -> list[Entry]:
        """Entries after `seq`, up to and with `until`, in order.

        Raises:
            UnknownChange: for an entry of a later version.
        """
        entries = self._found("seq > ? AND seq <= ? ORDER BY seq", seq, (1 << 63) - 1 if until is None else until)
        for expected, entry in enumerate(entries, start=seq + 1):
            if entry.seq != expected:
                raise CorruptLog(f"{self.path}: entry {expected} is missing, the next is {entry.seq}")
        return entries

    def rules(self, until: int) -> Entry | None:
        """The last entry up to and with `until` that put rules; None where none did."""
        return self._last("put_rules", until)

    def traffic(self, until: int) -> Entry | None:
        """The last entry up to and with `until` that set the traffic; None where none did."""
        return self._last("set_traffic", until)

    def _last(self, kind: str, until: int) -> Entry | None:
        found = self._found("seq <= ? AND kind = ? ORDER BY seq DESC LIMIT 1", until, kind)
        return found[0] if found else None

    def forgotten(self, until: int | None = None) -> dict[str, int]:
        """When each user was last forgotten that was, in ms, by the entries up to and with `until`."""
        found = self._found("seq <= ? AND kind = 'forget_user' ORDER BY seq", (1 << 63) - 1 if until is None else until)
        return forgotten_in(found)

    def append(self, request: Change, *, time_ms: int, after: int) -> Entry:
        """Write the entry that follows number `after`; on disk (fsync) when this returns.

        Raises:
            StaleHead: where the last entry is another, and nothing was written.
        """
        kind, payload = _KIND_OF[type(request)], request.SerializeToString(deterministic=True)
        seq = after + 1
        with self._writing:
            try:
                writer = self._open_to_write()
                writer.execute("BEGIN IMMEDIATE")
                head = writer.execute("SELECT max(seq) FROM entries").fetchone()[0] or 0
                if head != after:
                    writer.execute("ROLLBACK")
                    raise StaleHead(f"{self.path} ends with entry {head}, not {after}")
                writer.execute(
                    "INSERT INTO entries VALUES (?, ?, ?, ?, ?)",
                    (seq, time_ms, kind, _crc(seq, time_ms, kind, payload), payload),
                )
                writer.execute("COMMIT")
            except (sqlite3.Error, UnicodeDecodeError) as error:
                _close(self._writer)
                self._writer = None
                raise _explained(error, self.path) from error
        return Entry(seq, time_ms, request)

    def close(self) -> None:
        with self._reading, self._writing:
            for each in (self._reader, self._writer):
                _close(each)
            self._reader = self._writer = None

    def _open_to_read(self) -> sqlite3.Connection | None:
        """None while there is no entry."""
        if self._reader is None and self.path.is_file():
            reader = _open_to_read(self.path)
            try:
                self._reader = reader if self._is_made(reader) else None
            finally:
                if self._reader is None:
                    reader.close()
        return self._reader

    def _open_to_write(self) -> sqlite3.Connection:
        if self._writer is None:
            writer = sqlite3.connect(self.path, timeout=_PATIENCE_S, isolation_level=None, check_same_thread=False)
            try:
                self._make(writer)
                writer.execute("PRAGMA synchronous = FULL")
                self._writer = writer
            finally:
                if self._writer is None:
                    writer.close()
        return self._writer

    def _make(self, writer: sqlite3.Connection) -> None:
        """As one of several that may be about to. SQLite does not wait for its turn to change the journal's mode."""
        until = time.monotonic() + _PATIENCE_S
        while not self._is_made(writer):
            try:
                writer.execute("PRAGMA journal_mode = WAL")
                writer.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version = {_VERSION}; COMMIT;")
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > until:
                    raise
                time.sleep(0.001)

    def _is_made(self, connection: sqlite3.Connection) -> bool:
        # As of one moment: between two statements another process may make it.
        version, tables = connection.execute(_MADE).fetchone()
        if version == _VERSION:
            return True
        if version or tables:
            raise CorruptLog(f"{self.path} is not a catalogue log of version {_VERSION} (it says {version})")
        return False

    def _found(self, where: str, *bounds: int | str) -> list[Entry]:
        with self._reading:
            try:
                reader = self._open_to_read()
                if reader is None:
                    return []
                rows = reader.execute(f"SELECT seq, time_ms, kind, crc, payload FROM entries WHERE {where}", bounds)
                found = rows.fetchall()
            except (sqlite3.Error, UnicodeDecodeError) as error:
                raise self._failed(error) from error
        return [self._entry(*row) for row in found]

    def _entry(self, seq: int, time_ms: int, kind: str, crc: int, payload: bytes) -> Entry:
        if not isinstance(payload, bytes) or _crc(seq, time_ms, kind, payload) != crc:
            raise CorruptLog(f"{self.path}: entry {seq} does not match its checksum")
        if kind not in _CHANGES:
            raise UnknownChange(
                f"{self.path}: entry {seq} is of kind {kind!r}; this version knows {', '.join(_CHANGES)}, "
                "so it must be upgraded before it can serve this catalogue"
            )
        try:
            return Entry(seq, time_ms, _CHANGES[kind].FromString(payload))
        except DecodeError as error:
            raise CorruptLog(f"{self.path}: entry {seq} cannot be parsed: {error}") from error

    def _failed(self, error: sqlite3.Error | UnicodeDecodeError) -> Exception:
        """Our error for SQLite's; the next reader opens the file anew."""
        _close(self._reader)
        self._reader = None
        return _explained(error, self.path)


def forgotten_in(entries: Iterable[Entry]) -> dict[str, int]:
    """When each user was last forgotten that was, in ms."""
    return {each.request.user_id: each.time_ms for each in entries if isinstance(each.request, ForgetUserRequest)}


def _close(connection: sqlite3.Connection | None) -> None:
    if connection is not None:
        with suppress(sqlite3.Error):
            connection.close()


def _crc(seq: int, time_ms: int, kind: str, payload: bytes) -> int:
    return zlib.crc32(payload, zlib.crc32(f"{seq}\0{time_ms}\0{kind}".encode()))


def _open_to_read(path: Path) -> sqlite3.Connection:
    """A connection that writes nothing, to a log in use or to one in a folder that may not be written to."""
    sealed = not os.access(path.parent, os.W_OK) and not path.with_name(f"{path.name}-wal").exists()
    mode = "immutable=1" if sealed else "mode=ro"
    return sqlite3.connect(
        f"{path.absolute().as_uri()}?{mode}",
        uri=True,
        timeout=_PATIENCE_S,
        isolation_level=None,
        check_same_thread=False,
    )


def _explained(error: sqlite3.Error | UnicodeDecodeError, path: Path) -> Exception:
    """Our error for one of SQLite's, or for text that a damaged file made it return."""
    kind = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT) & 0xFF
    make: Callable[[str], Exception] = LogUnavailable if kind in _NOT_THE_FILE else CorruptLog
    return make(f"{path}: {' '.join(str(error).split())}")
