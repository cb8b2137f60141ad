"""Which rows the newest spools of a folder hold, by key: those of this process and, as they are written, of others."""

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from serving.log.spool import OPEN, CorruptLog, Frame, Spool, SpoolWriter, Table, is_written, paths

MOST_ROWS, MOST_SPOOLS = 1 << 17, 64
_SETTLED_NS = 50_000_000
"""A folder whose time of change is not older than this may change again and keep that time."""


@dataclass(slots=True)
class _Known:
    """A spool, and where its rows begin."""

    spool: Spool
    others: bool
    """Whether another process may be writing to it."""
    at_of: dict[Table, dict[str, int]] = field(default_factory=lambda: {"impressions": {}, "outcomes": {}})

    def __len__(self) -> int:
        return sum(map(len, self.at_of.values()))


class RecentRows:
    """Remembers the newest 131,072 rows, in whole spools, 64 of them at most: some 30 MB.

    What cannot be read is not remembered: it is for `cascade log verify` to say so, not for a server to fail on.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._known: dict[str, _Known] = {}
        self._oldest = ""
        """Older spools are forgotten."""
        self._active = ""
        self._changed_ns = -1
        """When the folder changed last before it was listed; -1 where it has to be listed again."""
        for path in reversed(paths(folder)):
            if not self._has_room():
                break
            self._take(path)
            self._oldest = path.stem

    def begin(self, writer: SpoolWriter) -> None:
        """This process writes to another spool from now on, and says what: `add`."""
        with self._lock:
            if (listed := self._known.pop(writer.name, None)) is not None:
                listed.spool.close()
            self._known[writer.name] = _Known(Spool(writer.path), others=False)
            self._active = writer.name
            self._forget()

    def add(self, frames: Sequence[Frame], ats: Sequence[int]) -> None:
        """Rows that were committed to the spool of this process."""
        with self._lock:
            at_of = self._known[self._active].at_of
            for frame, at in zip(frames, ats, strict=True):
                at_of[frame.table][frame.key] = at

    def known(self, frames: Sequence[Frame]) -> list[bool]:
        """Of each row whether one of its key is there, or before it."""
        with self._lock:
            self._refresh()
            seen: set[tuple[Table, str]] = set()
            known = []
            for frame in frames:
                name = frame.table, frame.key
                known.append(name in seen or any(frame.key in each.at_of[frame.table] for each in self._known.values()))
                seen.add(name)
            return known

    def payload(self, table: Table, key: str) -> bytes | None:
        """What was first written under a key.

        Raises:
            CorruptLog: where it is not what was written.
            LogUnavailable: where it cannot be read now.
        """
        with self._lock:
            self._refresh()
            for each in self._known.values():
                at = each.at_of[table].get(key)
                if at is not None:
                    return each.spool.read(at)[1]
        return None

    def close(self) -> None:
        with self._lock:
            for each in self._known.values():
                each.spool.close()
            self._known.clear()

    def _refresh(self) -> None:
        """Some microseconds where nothing was written by others."""
        changed_ns = self._folder.stat().st_mtime_ns
        if changed_ns != self._changed_ns:
            self._changed_ns = changed_ns if time.time_ns() - changed_ns > _SETTLED_NS else -1
            for path in paths(self._folder):
                if path.stem > self._oldest and path.stem not in self._known:
                    self._take(path)
        for each in self._known.values():
            if each.others and not each.spool.sealed:
                self._follow(each, checked=False)
        self._forget()

    def _take(self, path: Path) -> None:
        try:
            others = path.suffix == OPEN and is_written(path)
            taken = self._known[path.stem] = _Known(Spool(path), others=others)
        except OSError:
            return  # renamed or compacted since it was listed
        # What a dead writer left half done stays so; after a power loss it can look whole.
        self._follow(taken, checked=path.suffix == OPEN and not others)

    def _follow(self, known: _Known, *, checked: bool) -> None:
        try:
            for row in known.spool.follow(checked=checked):
                known.at_of[row.table].setdefault(row.key, row.at)
        except (CorruptLog, OSError):
            known.others = False  # nothing more is read of it

    def _has_room(self) -> bool:
        return sum(map(len, self._known.values())) < MOST_ROWS and len(self._known) < MOST_SPOOLS

    def _forget(self) -> None:
        while not self._has_room() and (others := sorted(self._known.keys() - {self._active})):
            self._known.pop(others[0]).spool.close()
            self._oldest = others[0]
