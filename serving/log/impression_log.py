"""The impression log of a server process: what was shown and what followed, durable, each once.

One thread writes to a spool (`serving.log.spool`) in the folder of the log; whatever is queued when it is free goes
into one group, so that one sync pays for many requests and none waits for another's. A spool that is large or old
enough is sealed and another begun. `cascade log compact` makes Parquet of spools; `training.log.impression_log` reads
both.
"""

import threading
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from google.protobuf.message import DecodeError

from protos.impression_pb2 import Impression, Outcome
from serving.clock import now_ms
from serving.log.recent_rows import RecentRows
from serving.log.spool import CorruptLog, Frame, LogUnavailable, SpoolWriter

__all__ = ["SPOOLS", "CorruptLog", "Durability", "ImpressionLog", "LogUnavailable", "Status"]

Durability = Literal["group", "sync", "os"]
Status = Literal["stored", "duplicate"]

SPOOLS = "spools"
"""Folder of the spools in the folder of a log."""

_MAX_GROUP = 512
_GATHER_S = 0.005
"""How long rows that nobody waits for are gathered into one group."""
_RETRY_S = 0.2


@dataclass(slots=True)
class _Job:
    """Rows to be committed together, and who waits for that. No rows: a flush."""

    frames: list[Frame]
    waiter: Future[list[Status]] | None
    taken_s: float
    """By the monotonic clock."""
    statuses: list[Status] = field(default_factory=list)


class ImpressionLog:
    """Writes to the folder of a log, as any number of other processes may; each has a spool of its own.

    While the disk refuses, what had been accepted is kept and tried again every 0.2 s, everything new is refused at
    once, and `available` is false: the caller answers without exploration and says so.

    A row whose key is among those that `RecentRows` remembers is a duplicate and changes nothing. Of older ones, and of
    those that two processes write in the same moment, readers and compaction keep the first.

    Args:
        folder: made where there is none.
        durability: `group`: a commit is on disk (fsync) before it is acknowledged, an impression is acknowledged
            before its commit. `sync`: an impression too is acknowledged only after its commit. `os`: no fsync; what
            was committed survives the death of this process but not of the machine.
        capacity: while this many rows wait, more are refused.
        rotate_bytes: a spool of this size is sealed.
        rotate_s: as is one of this age.

    Raises:
        LogUnavailable: where it cannot be opened or made.
    """

    def __init__(
        self,
        folder: Path,
        *,
        durability: Durability = "group",
        capacity: int = 4096,
        rotate_bytes: int = 64 << 20,
        rotate_s: float = 3600.0,
    ) -> None:
        if durability not in ("group", "sync", "os"):
            raise ValueError(f"durability must be group, sync or os, got {durability!r}")
        if capacity < 1:
            raise ValueError(f"capacity must be at least 1, got {capacity}")
        self._folder = folder / SPOOLS
        self._durability = durability
        self._capacity = capacity
        self._rotate_bytes = rotate_bytes
        self._rotate_s = rotate_s
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            self._recent = RecentRows(self._folder)
            self._spool: SpoolWriter | None = self._begin()
        except OSError as error:
            raise LogUnavailable(f"{folder}: {error.strerror or error}") from error
        self._wake = threading.Condition()
        self._queue: deque[_Job] = deque()
        self._waiting_rows = 0
        self._waiting_since_s = 0.0
        """When the oldest of them was accepted."""
        self._waited_for = False
        self._unsaved: dict[str, Frame] = {}
        self._fault = ""
        self._closing = False
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

    @property
    def lag_s(self) -> float:
        """How long the oldest row has waited that is accepted and not yet committed; 0 where none has."""
        with self._wake:
            return time.monotonic() - self._waiting_since_s if self._waiting_rows else 0.0

    def append(self, impression: Impression) -> None:
        """Log an impression; a second one with the same request id changes nothing.

        Returns at once, except where durability is `sync`.

        Raises:
            LogUnavailable: it is not logged.
            ValueError: where the request id is empty.
        """
        payload = impression.SerializeToString()
        frame = Frame.of("impressions", impression.request_id, impression.time_ms, payload)
        waiter = self._enqueue([frame], wait=self._durability == "sync")
        if waiter is not None:
            waiter.result()

    def write_outcomes(self, outcomes: Sequence[Outcome]) -> list[Status]:
        """Log outcomes and wait for the commit; one status each.

        Raises:
            LogUnavailable: none is acknowledged. Some may have been stored: to send all of them again is right.
            ValueError: where an event id is empty.
        """
        frames = [Frame.of("outcomes", one.event_id, one.visible_ms, one.SerializeToString()) for one in outcomes]
        if not frames:
            return []
        waiter = self._enqueue(frames, wait=True)
        return waiter.result() if waiter is not None else []

    def find(self, request_id: str) -> Impression | None:
        """The impression of a request id: what a retry of that request is answered with.

        One that this process has accepted, or any process has committed, as far back as duplicates are known.

        Raises:
            LogUnavailable: where a spool cannot be read now.
            CorruptLog: where the row is not what was written.
        """
        with self._wake:
            waiting = self._unsaved.get(request_id)
        try:
            payload = self._recent.payload("impressions", request_id) if waiting is None else waiting.payload
            return None if payload is None else Impression.FromString(payload)
        except OSError as error:
            raise LogUnavailable(f"{self._folder}: {error.strerror or error}") from error
        except DecodeError as error:
            raise CorruptLog(f"{self._folder}: impression {request_id!r} cannot be parsed: {error}") from error

    def flush(self) -> None:
        """Return when everything accepted so far is committed.

        Raises:
            LogUnavailable: it cannot be committed now, and is kept.
        """
        waiter = self._enqueue([], wait=True)
        if waiter is not None:
            waiter.result()

    def close(self) -> None:
        """Commit what waits, then seal the spool. Closing again does nothing.

        Raises:
            LogUnavailable: says how many accepted rows could not be committed and are lost.
        """
        with self._wake:
            if self._closing:
                return
            self._closing = True
            self._wake.notify()
        self._writer.join()
        self._recent.close()
        if self._waiting_rows:
            raise LogUnavailable(f"{self._folder}: {self._waiting_rows} accepted rows are lost: {self._fault}")

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

    def _enqueue(self, frames: list[Frame], *, wait: bool) -> Future[list[Status]] | None:
        waiter: Future[list[Status]] | None = Future() if wait else None
        job = _Job(frames, waiter, time.monotonic())  # the writer takes the waiter out of it once it is told
        with self._wake:
            refusal = self._refusal(len(frames))
            if refusal:
                raise LogUnavailable(f"{self._folder}: {refusal}")
            asleep = not self._queue
            if not self._waiting_rows:
                self._waiting_since_s = job.taken_s
            self._queue.append(job)
            self._waiting_rows += len(frames)
            self._waited_for |= wait
            for frame in frames:
                if frame.table == "impressions":
                    self._unsaved.setdefault(frame.key, frame)
            if asleep or wait:
                self._wake.notify()
        return waiter

    def _begin(self) -> SpoolWriter:
        self._rotate_at_s = time.monotonic() + self._rotate_s
        made = SpoolWriter(self._folder, time_ms=now_ms(), synced=self._durability != "os")
        self._recent.begin(made)
        return made

    def _write_until_closed(self) -> None:
        group: list[_Job] = []
        while True:
            with self._wake:
                if self._fault and not self._closing:
                    self._wake.wait_for(lambda: self._closing, _RETRY_S)
                else:
                    self._wake.wait_for(lambda: self._queue or self._closing, self._until_rotation_s())
                    self._wake.wait_for(lambda: self._waited_for or self._closing, _GATHER_S)
                closing = self._closing
                rows = sum(len(job.frames) for job in group)
                while self._queue and (not rows or rows + len(self._queue[0].frames) <= _MAX_GROUP):
                    job = self._queue.popleft()
                    rows += len(job.frames)
                    group.append(job)
                self._waited_for = any(job.waiter is not None for job in self._queue)
            if group or self._fault:
                self._settle(group, self._commit(group))
            self._rotate_if_due()
            with self._wake:
                if closing and (self._fault or not self._queue):
                    break
        self._end(sealed=True)

    def _until_rotation_s(self) -> float | None:
        """None where there is nothing to seal."""
        is_empty = self._spool is None or self._spool.is_empty
        return None if is_empty else max(0.0, self._rotate_at_s - time.monotonic())

    def _rotate_if_due(self) -> None:
        if self._spool is not None and (self._until_rotation_s() == 0.0 or self._spool.end >= self._rotate_bytes):
            self._end(sealed=True)

    def _end(self, *, sealed: bool) -> None:
        """No more is written to the spool, if there is one."""
        spool, self._spool = self._spool, None
        if spool is None:
            return
        try:
            if not sealed or spool.is_empty:
                spool.abandon()
            else:
                spool.seal()
        except OSError:
            spool.abandon()  # what counts, counts without a seal

    def _commit(self, group: list[_Job]) -> str:
        """Write the rows of all jobs as one group; returns why it failed, or nothing."""
        try:
            frames = [frame for job in group for frame in job.frames]
            known = self._recent.known(frames)
            fresh = [frame for frame, is_known in zip(frames, known, strict=True) if not is_known]
            statuses: list[Status] = ["duplicate" if each else "stored" for each in known]
            for job in group:
                job.statuses, statuses = statuses[: len(job.frames)], statuses[len(job.frames) :]
            if self._spool is None:
                self._spool = self._begin()
            if fresh:
                self._recent.add(fresh, self._spool.write(fresh))
        except Exception as error:  # whatever it is, those who wait must hear of it
            self._end(sealed=False)
            return str(error) or repr(error)
        return ""

    def _settle(self, group: list[_Job], fault: str) -> None:
        """Tell those who wait. After a failure the rows stay in `group` for the next attempt.

        On a failure jobs still in the queue are pulled in too, so that no waiter is left without an answer.
        """
        with self._wake:
            self._fault = fault
            if fault:
                group.extend(self._queue)
                self._queue.clear()
                self._waited_for = False
            else:
                for job in group:
                    self._waiting_rows -= len(job.frames)
                    for frame in job.frames:
                        if self._unsaved.get(frame.key) is frame:
                            del self._unsaved[frame.key]
            waiters = [(job, job.waiter) for job in group if job.waiter is not None]
            for job in group:
                job.waiter = None
            if not fault:
                group.clear()
                self._waiting_since_s = self._queue[0].taken_s if self._queue else 0.0
            else:
                group[:] = [job for job in group if job.frames]
        for job, waiter in waiters:
            if fault:
                waiter.set_exception(LogUnavailable(f"{self._folder}: {fault}"))
            else:
                waiter.set_result(job.statuses)
