"""A spool: the file that impressions and outcomes are first written to, and the rule of what in it counts.

    file   = MAGIC group* [seal]
    group  = row* commit             written by one call and, where asked for, synced before the next group
    row    = head key payload        head: mark, kind, bytes of the key, time_ms, bytes of the payload, CRC-32
    commit = head                    head: mark, kind, 0, position of the group, rows of the group, CRC-32
    seal   = head                    as of a group without rows; nothing follows

A group counts once its commit is there and all of its rows match their checksums. What a crash can leave is one last
group that does not count: it was never acknowledged. Something broken before a later commit is damage: the earlier
group had been synced before the later one was written.

A spool has one writer, which keeps it locked (flock) as long as it lives. Its name ends with `.spool` while it is
written, with `.sealed` once it is complete.
"""

import fcntl
import os
import secrets
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Literal, NamedTuple, get_args

from index.on_disk import is_locked, sync

Table = Literal["impressions", "outcomes"]
TABLES: tuple[Table, ...] = get_args(Table)
OPEN, SEALED = ".spool", ".sealed"

_MAGIC = b"CASPOOL1"
_MARK = b"\xc5\x9fpl"
_HEAD = struct.Struct("<4sBHqII")
_CONTROL = struct.Struct("<BQQI")
_GLANCE = 128
"""Bytes that hold a head and almost every key."""
_COMMIT, _SEAL = 1, 2
_KIND: dict[Table, int] = {"impressions": 16, "outcomes": 17}
_TABLE: dict[int, Table] = {kind: table for table, kind in _KIND.items()}


class LogUnavailable(RuntimeError):
    """Nothing can be logged or read now: the queue or the disk is full, the disk fails, or the log is closed."""


class CorruptLog(ValueError):
    """The log does not hold what was written; names the file and, where one is to blame, the row's key."""


class Frame(NamedTuple):
    """A row as it is written."""

    table: Table
    key: str
    data: bytes

    @classmethod
    def of(cls, table: Table, key: str, time_ms: int, payload: bytes) -> "Frame":
        """
        Raises:
            ValueError: where the key is empty or longer than 65535 bytes.
        """
        name = key.encode()
        if not 0 < len(name) < 1 << 16:
            raise ValueError(f"the key of a row of {table} has {len(name)} bytes; it must have 1 to 65535")
        head = _HEAD.pack(_MARK, _KIND[table], len(name), time_ms, len(payload), checksum(table, key, time_ms, payload))
        return cls(table, key, b"".join((head, name, payload)))

    @property
    def payload(self) -> bytes:
        return self.data[_HEAD.size + len(self.key.encode()) :]


class Row(NamedTuple):
    """Where a row lies."""

    table: Table
    key: str
    time_ms: int
    crc: int
    at: int
    """Position of its frame in the file."""
    end: int


class SpoolWriter:
    """Makes a spool and writes to it; whoever fails to write abandons it and makes another.

    Args:
        time_ms: now; spools of one folder sort by it.
        synced: whether what is written is on the disk (fsync) when a method returns.

    Raises:
        OSError: from every method.
    """

    def __init__(self, folder: Path, *, time_ms: int, synced: bool) -> None:
        self.name = f"{time_ms:013d}-{os.getpid()}-{secrets.token_hex(3)}"
        self.path = folder / f"{self.name}{OPEN}"
        self.end = len(_MAGIC)
        self._synced = synced
        draft = folder / f".{self.name}"
        self._descriptor = os.open(draft, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)  # before anybody can see the file
            self._put(_MAGIC)
            draft.rename(self.path)
            if synced:
                sync(folder)
        except BaseException:
            for made in (draft, self.path):
                made.unlink(missing_ok=True)
            os.close(self._descriptor)
            raise

    @property
    def is_empty(self) -> bool:
        return self.end == len(_MAGIC)

    def write(self, frames: Sequence[Frame]) -> list[int]:
        """Write a group; returns the position of each of its rows."""
        ats, at = [], self.end
        for frame in frames:
            ats.append(at)
            at += len(frame.data)
        self._put(b"".join((*(frame.data for frame in frames), _control(_COMMIT, at, self.end, len(frames)))))
        self.end = at + _HEAD.size
        return ats

    def seal(self) -> None:
        """Nothing more will be written."""
        self._put(_control(_SEAL, self.end, self.end, 0))
        self.path.rename(self.path.with_suffix(SEALED))  # after a crash it may have either name
        os.close(self._descriptor)

    def abandon(self) -> None:
        """Leave it with the groups that were written whole; without any, leave nothing. Never fails."""
        with suppress(OSError):
            os.ftruncate(self._descriptor, self.end)
        if self.is_empty:
            with suppress(OSError):
                self.path.unlink(missing_ok=True)
        os.close(self._descriptor)

    def _put(self, data: bytes) -> None:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]
        if self._synced:
            os.fdatasync(self._descriptor)


class Spool:
    """A spool as far as it is written, also while it is.

    Raises:
        CorruptLog: from every method, where the file is not what was written.
        LogUnavailable: from every method, where the disk fails.
        FileNotFoundError: where it is not there (any more).
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = path.stem
        self.sealed = False
        self.end = 0
        """Where the groups that count end, as far as `follow` has gone."""
        self._descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)

    def follow(self, *, checked: bool) -> list[Row]:
        """The rows of the groups that were completed since the last call, in the order of commits.

        Args:
            checked: compare the rows with their checksums too: a machine that lost power may leave a group whose
                commit is on the disk and whose rows are not. For a file that was written since this process began
                there is no need.
        """
        if self.sealed:
            return []
        size = os.fstat(self._descriptor).st_size
        if self.end == 0 and size >= len(_MAGIC):
            if self._bytes(0, len(_MAGIC)) != _MAGIC:
                raise CorruptLog(f"{self.path} is not a spool of version 1")
            self.end = len(_MAGIC)
        found: list[Row] = []
        group: list[Row] = []
        at = self.end
        while not self.sealed and 0 < at <= size - _HEAD.size:
            head = self._bytes(at, _GLANCE)
            if len(head) < _HEAD.size:
                break  # its writer has just taken back a group that it could not write
            mark, kind, _, time_ms, number, _ = _HEAD.unpack_from(head)
            if mark == _MARK and kind in _TABLE:
                if (row := self._row(at, head, checked)) is None:
                    break
                group.append(row)
                at = row.end
            elif (mark, time_ms, number) == (_MARK, self.end, len(group)) and _is_control(head, at):
                found += group
                group = []
                at = self.end = at + _HEAD.size
                self.sealed = kind == _SEAL
            else:
                break
        return found

    def rows(self) -> tuple[list[Row], int]:
        """All rows that count, checked; and how many bytes at the end belong to a group that was never completed."""
        rows = self.follow(checked=True)
        while True:
            try:
                return rows, self._unfinished()
            except CorruptLog:  # or its writer completed the group while we looked at what follows
                if not (more := self.follow(checked=True)):
                    raise
                rows += more

    def read_between(self, start: int, end: int) -> Iterator[tuple[Row, bytes]]:
        """The rows whose frames lie there."""
        at = start
        while at < end:
            if _is_control(self._bytes(at, _HEAD.size), at):
                at += _HEAD.size
                continue
            row, payload = self.read(at)
            yield row, payload
            at = row.end

    def read(self, at: int) -> tuple[Row, bytes]:
        """The row whose frame is there, and its payload."""
        row = self._row(at, self._bytes(at, _GLANCE), checked=True)
        if row is None:
            raise CorruptLog(f"{self.path}: the row at byte {at} does not match its checksum")
        return row, self._bytes(at, row.end - at)[_HEAD.size + len(row.key.encode()) :]

    def close(self) -> None:
        os.close(self._descriptor)

    def _unfinished(self) -> int:
        """
        Raises:
            CorruptLog: where what follows the groups that count cannot come from a crash.
        """
        size = os.fstat(self._descriptor).st_size
        left = size - self.end
        if left and self.sealed:
            raise CorruptLog(f"{self.path}: {left} bytes follow the seal")
        if self.path.suffix == SEALED and not self.sealed:
            raise CorruptLog(f"{self.path}: damaged after byte {self.end} of {size}")
        tail = self._bytes(self.end, left)
        at = tail.find(_MARK)
        while at >= 0:
            head = tail[at : at + _HEAD.size]
            # A commit of a later group than the first that does not count.
            if _is_control(head, self.end + at) and _HEAD.unpack(head)[3] > self.end:
                raise CorruptLog(f"{self.path}: damaged between byte {self.end} and a later group")
            at = tail.find(_MARK, at + 1)
        return left

    def _row(self, at: int, head: bytes, checked: bool) -> Row | None:
        """None where it is not what was written, or not all of it is there."""
        if len(head) < _HEAD.size:
            return None
        _, kind, key_bytes, time_ms, payload_bytes, crc = _HEAD.unpack_from(head)
        start = _HEAD.size + key_bytes
        end = at + start + payload_bytes
        if end > os.fstat(self._descriptor).st_size:
            return None
        if checked or start > len(head):
            head = self._bytes(at, end - at)
        try:
            key = head[_HEAD.size : start].decode()
            table = _TABLE[kind]
        except (UnicodeDecodeError, KeyError):
            return None
        if checked and checksum(table, key, time_ms, head[start:]) != crc:
            return None
        return Row(table, key, time_ms, crc, at, end)

    def _bytes(self, at: int, size: int) -> bytes:
        try:
            return os.pread(self._descriptor, size, at)
        except OSError as error:
            raise LogUnavailable(f"{self.path}: {error.strerror}") from error


def paths(folder: Path) -> list[Path]:
    """The spools of a folder, oldest first."""
    found = (each for each in folder.iterdir() if each.suffix in (OPEN, SEALED) and not each.name.startswith("."))
    return sorted(found, key=lambda path: path.stem)


def is_written(path: Path) -> bool:
    """Whether its writer lives."""
    return is_locked(path)


def checksum(table: Table, key: str, time_ms: int, payload: bytes) -> int:
    """Of a row, wherever it lies."""
    return zlib.crc32(payload, zlib.crc32(f"{table}\0{key}\0{time_ms}".encode()))


def _control(kind: int, at: int, start: int, rows: int) -> bytes:
    return _HEAD.pack(_MARK, kind, 0, start, rows, zlib.crc32(_CONTROL.pack(kind, at, start, rows)))


def _is_control(head: bytes, at: int) -> bool:
    if len(head) < _HEAD.size:
        return False
    mark, kind, key_bytes, start, rows, crc = _HEAD.unpack_from(head)
    return (
        (mark, key_bytes) == (_MARK, 0)
        and kind in (_COMMIT, _SEAL)
        and 0 <= start <= at
        and crc == zlib.crc32(_CONTROL.pack(kind, at, start, rows))
    )
