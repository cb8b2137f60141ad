"""The archive of an impression log: its rows in Parquet, partitioned by day, and the manifest that says what counts.

    <log>/manifest.json
    <log>/impressions/day=2026-11-21/part-<hash>.parquet     day of time_ms, UTC
    <log>/outcomes/day=2026-11-21/part-<hash>.parquet        day of visible_ms, UTC

A row is what a spool held: key, time, checksum and the serialized message, and beside them a few of the message's
fields for whoever looks into the files with other tools. A part is immutable; one that the manifest does not name does
not count.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import polars as pl
from google.protobuf.message import DecodeError, Message

from index.on_disk import sync
from protos.impression_pb2 import Impression, Kind, Outcome
from serving.log.impression_log import CorruptLog
from serving.log.spool import Row, Table, checksum
from training.durable import appearing

MANIFEST = "manifest.json"
Record = TypeVar("Record", bound=Message)

_VERSION = 1
_DAY_MS = 86_400_000
_EPOCH = date(1970, 1, 1).toordinal()
_ROWS = 512
"""In a row group, and read at once."""
_KEY: dict[Table, str] = {"impressions": "request_id", "outcomes": "event_id"}
_TIME: dict[Table, str] = {"impressions": "time_ms", "outcomes": "visible_ms"}
_STORED: dict[str, Any] = {"crc": pl.UInt32, "payload": pl.Binary}
_SCHEMA: dict[Table, dict[str, Any]] = {
    "impressions": {
        "request_id": pl.String,
        "time_ms": pl.Int64,
        **_STORED,
        "kind": pl.String,
        "surface": pl.String,
        "user_id": pl.String,
        "generation": pl.String,
    },
    "outcomes": {
        "event_id": pl.String,
        "visible_ms": pl.Int64,
        **_STORED,
        "request_id": pl.String,
        "item_id": pl.String,
        "user_id": pl.String,
        "action": pl.String,
        "value": pl.Float64,
        "time_ms": pl.Int64,
    },
}


class StoredRow(NamedTuple):
    """A row of the log as it is kept: sorts by time, then by key."""

    time_ms: int
    key: str
    crc: int
    payload: bytes

    @classmethod
    def of(cls, row: Row, payload: bytes) -> "StoredRow":
        """What a spool holds."""
        return cls(row.time_ms, row.key, row.crc, payload)


@dataclass(frozen=True, slots=True)
class Part:
    """A file of the archive."""

    name: str
    """Path in the folder of the log."""
    rows: int
    min_ms: int
    max_ms: int
    schema: str
    """Fingerprint of its columns."""
    sha256: str
    bytes: int

    @property
    def table(self) -> Table:
        return "impressions" if self.name.startswith("impressions/") else "outcomes"

    @property
    def day(self) -> str:
        return self.name.split("/")[1].removeprefix("day=")


@dataclass(frozen=True, slots=True)
class Manifest:
    """What of the archive counts. Replaced as a whole: that is the moment in which a change is made."""

    parts: tuple[Part, ...] = ()

    @classmethod
    def read(cls, folder: Path) -> "Manifest":
        """An empty one where there is none.

        Raises:
            CorruptLog: where it is not what was written, or of another version.
        """
        path = folder / MANIFEST
        if not path.exists():
            return cls()
        try:
            stored = path.read_text()
            body = json.loads(stored)["manifest"]
            if stored != _rendered(body):
                raise CorruptLog(f"{path} does not match its checksum")
            if body["version"] != _VERSION:
                raise CorruptLog(f"{path} is of version {body['version']}; this program reads {_VERSION}")
            return cls(tuple(Part(**each) for each in body["parts"]))
        except (json.JSONDecodeError, UnicodeDecodeError, KeyError, TypeError) as error:
            raise CorruptLog(f"{path} is no manifest of a log: {error!r}") from error

    def write(self, folder: Path) -> None:
        parts = sorted(self.parts, key=lambda part: part.name)
        body = {"version": _VERSION, "parts": [asdict(part) for part in parts]}
        with appearing(folder / MANIFEST) as draft:
            draft.write_text(_rendered(body))

    def of(self, table: Table) -> list[Part]:
        """The parts of a table by day."""
        return sorted((part for part in self.parts if part.table == table), key=lambda part: part.name)


def fingerprint(table: Table) -> str:
    """Of the columns of a table."""
    return hashlib.sha256(repr([(name, str(kind)) for name, kind in _SCHEMA[table].items()]).encode()).hexdigest()[:16]


def day_of(time_ms: int) -> str:
    """The UTC day; times that a calendar does not have are of its first or last day."""
    return date.fromordinal(min(max(_EPOCH + time_ms // _DAY_MS, 1), date.max.toordinal())).isoformat()


def write_parts(folder: Path, table: Table, rows: Iterable[StoredRow]) -> list[Part]:
    """One part for each day, on the disk when this returns."""
    by_day: dict[str, list[StoredRow]] = {}
    for row in sorted(rows):
        by_day.setdefault(day_of(row.time_ms), []).append(row)
    return [_write_part(folder, table, day, of_day) for day, of_day in by_day.items()]


def checked(folder: Path, part: Part) -> None:
    """
    Raises:
        CorruptLog: where the file is not what was written, is missing, or has other columns than this program's.
    """
    path = folder / part.name
    try:
        found = _sha256(path)
    except FileNotFoundError:
        raise CorruptLog(f"{path} is missing") from None
    if found != part.sha256:
        raise CorruptLog(f"{path} does not match its checksum")
    if part.schema != fingerprint(part.table):
        raise CorruptLog(f"{path} has columns of another version (schema {part.schema})")


def rows_of(folder: Path, part: Part, *, first: int = 0, rows: int | None = None) -> Iterator[StoredRow]:
    """The rows of a part, all or so many from one on, by time and key; some hundred are in memory at a time."""
    end = part.rows if rows is None else first + rows
    for at in range(first, end, _ROWS):
        with _reading(folder, part):
            frame = _scan(folder, part).slice(at, min(_ROWS, end - at)).collect()
        yield from _checked_rows(folder, part, frame)


def keys_of(folder: Path, part: Part) -> Iterator[tuple[str, int]]:
    """Key and checksum of every row, without what it holds."""
    with _reading(folder, part):
        frame = _scan(folder, part).select("key", "crc").collect()
    yield from frame.iter_rows()


def times_of(folder: Path, part: Part, *, users: Sequence[str]) -> Iterator[tuple[str, int]]:
    """User and time of every row of one of the users, without what it holds."""
    with _reading(folder, part):
        scanned = pl.scan_parquet(folder / part.name, hive_partitioning=False, glob=False)
        of_users = scanned.filter(pl.col("user_id").is_in(pl.Series(users, dtype=pl.String).implode()))
        frame = of_users.select("user_id", _TIME[part.table]).collect()
    yield from frame.iter_rows()


def rows_named(folder: Path, parts: Sequence[Part], keys: Sequence[str]) -> dict[str, StoredRow]:
    """Those rows of the parts that have one of the keys."""
    found: dict[str, StoredRow] = {}
    for part in parts:
        with _reading(folder, part):
            frame = _scan(folder, part).filter(_among(keys)).collect()
        found.update((row.key, row) for row in _checked_rows(folder, part, frame))
    return found


def keys_among(folder: Path, parts: Sequence[Part], keys: Sequence[str]) -> set[str]:
    """Which of the keys have a row in the parts."""
    if not (parts and keys):
        return set()
    with _reading(folder, *parts):
        return set(_scan(folder, *parts).select("key").filter(_among(keys)).collect()["key"])


def parsed(row: StoredRow, record: type[Record], *, where: Path) -> Record:
    """
    Raises:
        CorruptLog: where it is no such message.
    """
    try:
        return record.FromString(row.payload)
    except DecodeError as error:
        raise CorruptLog(f"{where}: row {row.key!r} cannot be parsed: {error}") from error


def _checked_rows(folder: Path, part: Part, frame: pl.DataFrame) -> Iterator[StoredRow]:
    for row in map(StoredRow._make, frame.iter_rows()):
        if checksum(part.table, row.key, row.time_ms, row.payload) != row.crc:
            raise CorruptLog(f"{folder / part.name}: row {row.key!r} does not match its checksum")
        yield row


def _among(keys: Sequence[str]) -> pl.Expr:
    """The range lets row groups be skipped by their statistics: request ids begin with the time."""
    key = pl.col("key")
    return key.is_between(pl.lit(min(keys)), pl.lit(max(keys))) & key.is_in(pl.Series(keys, dtype=pl.String).implode())


def _scan(folder: Path, *parts: Part) -> pl.LazyFrame:
    """Parts of one table."""
    table = parts[0].table
    scanned = pl.scan_parquet([folder / part.name for part in parts], hive_partitioning=False, glob=False)
    return scanned.select(time_ms=_TIME[table], key=_KEY[table], crc="crc", payload="payload")


@contextmanager
def _reading(folder: Path, *parts: Part) -> Iterator[None]:
    try:
        yield
    except (pl.exceptions.PolarsError, pl.exceptions.PanicException, OSError) as error:
        for part in parts:
            checked(folder, part)  # names the one that is to blame
        raise CorruptLog(f"{folder}: the archive cannot be read: {' '.join(str(error).split())[:200]}") from error


def _write_part(folder: Path, table: Table, day: str, rows: Sequence[StoredRow]) -> Part:
    inside = folder / table / f"day={day}"
    inside.mkdir(parents=True, exist_ok=True)
    draft = inside / ".draft"
    _frame(table, rows).write_parquet(draft, compression="zstd", row_group_size=_ROWS, statistics=True)
    sha256 = _sha256(draft)
    size = draft.stat().st_size
    sync(draft)
    named = draft.rename(inside / f"part-{sha256[:16]}.parquet")
    for above in (inside, inside.parent, folder):
        sync(above)
    name = named.relative_to(folder).as_posix()
    return Part(name, len(rows), rows[0].time_ms, rows[-1].time_ms, fingerprint(table), sha256, size)


def _frame(table: Table, rows: Sequence[StoredRow]) -> pl.DataFrame:
    stored = [(row.key, row.time_ms, row.crc, row.payload) for row in rows]
    return pl.DataFrame([(*row, *_PLAIN[table](row[-1])) for row in stored], _SCHEMA[table], orient="row")


def _plain_impression(payload: bytes) -> tuple[Any, ...]:
    one = Impression.FromString(payload)
    kind = Kind.Name(one.kind) if one.kind in Kind.values() else str(one.kind)
    return kind, one.surface, one.user_id, one.generation


def _plain_outcome(payload: bytes) -> tuple[Any, ...]:
    one = Outcome.FromString(payload)
    return one.request_id, one.item_id, one.user_id, one.action, one.value, one.time_ms


_PLAIN: dict[Table, Callable[[bytes], tuple[Any, ...]]] = {
    "impressions": _plain_impression,
    "outcomes": _plain_outcome,
}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _rendered(body: object) -> str:
    """The manifest as a file holds it, with its checksum."""
    sha256 = hashlib.sha256(json.dumps(body).encode()).hexdigest()
    return json.dumps({"sha256": sha256, "manifest": body}, indent=1)
