"""Spools: what counts is what was acknowledged, whatever a crash, a power loss or a flipped bit does to the file."""

import os
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from threading import Thread
from typing import Any

import numpy as np
import pytest

from protos.impression_pb2 import Impression, Outcome
from serving.log import spool as spools
from serving.log.impression_log import SPOOLS, CorruptLog, Durability, ImpressionLog
from serving.log.spool import OPEN, SEALED, Frame, Spool, SpoolWriter, is_written, paths

SECTOR = 64
"""What is written to the simulated disk whole or not at all. Small, as the files are."""


def frame(number: int, size: int = 100) -> Frame:
    return Frame.of("impressions", f"r{number}", number, np.random.default_rng(number).bytes(size))


def written(folder: Path, *groups: list[Frame], sealed: bool) -> Path:
    writer = SpoolWriter(folder, time_ms=1, synced=False)
    for group in groups:
        writer.write(group)
    if sealed:
        writer.seal()
        return writer.path.with_suffix(SEALED)
    os.close(writer._descriptor)
    return writer.path


def keys(path: Path) -> list[str]:
    with closing(Spool(path)) as spool:
        return [row.key for row in spool.rows()[0]]


def test_rows_are_followed_in_the_order_of_commits_and_read_where_they_lie(tmp_path: Path) -> None:
    writer = SpoolWriter(tmp_path, time_ms=1, synced=True)
    spool = Spool(writer.path)
    assert spool.follow(checked=True) == []
    ats = writer.write([frame(2), Frame.of("outcomes", "r2", 7, b""), frame(1)])
    found = spool.follow(checked=False)
    assert [(row.table, row.key, row.time_ms, row.at) for row in found] == [
        ("impressions", "r2", 2, ats[0]),
        ("outcomes", "r2", 7, ats[1]),
        ("impressions", "r1", 1, ats[2]),
    ]
    long = Frame.of("impressions", "k" * 5000, 3, b"x")
    writer.write([long])
    writer.seal()
    assert [row.key for row in spool.follow(checked=False)] == [long.key]
    assert spool.sealed
    assert [spool.read(at)[1] for at in ats] == [frame(2).payload, b"", frame(1).payload]
    between = [payload for _, payload in spool.read_between(ats[2], spool.end)]
    assert between == [frame(1).payload, b"x"]
    spool.close()
    with pytest.raises(ValueError, match="has 0 bytes; it must have 1 to 65535"):
        Frame.of("impressions", "", 1, b"")


def test_a_spool_has_one_writer_and_is_seen_only_locked(tmp_path: Path) -> None:
    writer = SpoolWriter(tmp_path, time_ms=1, synced=False)
    (path,) = paths(tmp_path)
    assert (path.suffix, is_written(path)) == (OPEN, True)
    writer.write([frame(1)])
    writer.seal()
    (path,) = paths(tmp_path)
    assert (path.suffix, is_written(path)) == (SEALED, False)
    left = SpoolWriter(tmp_path, time_ms=0, synced=False)
    left.write([frame(2)])
    left.abandon()
    assert not is_written(left.path)
    SpoolWriter(tmp_path, time_ms=0, synced=False).abandon()
    assert [each.name for each in paths(tmp_path)] == [left.path.name, path.name], "an empty one leaves nothing"


def test_a_group_counts_as_a_whole_or_not_at_all_wherever_its_writer_died(tmp_path: Path) -> None:
    path = written(tmp_path, [frame(1), frame(2)], [frame(3), frame(4)], sealed=False)
    whole = path.read_bytes()
    counted = set()
    for size in range(len(whole)):
        path.write_bytes(whole[:size])
        counted.add(tuple(keys(path)))
    assert counted == {(), ("r1", "r2")}
    path.write_bytes(whole)
    assert keys(path) == ["r1", "r2", "r3", "r4"]


def test_no_flipped_bit_of_a_sealed_spool_passes_unnoticed(tmp_path: Path) -> None:
    path = written(
        tmp_path, [frame(1), Frame.of("outcomes", "e1", 5, b"done")], [frame(2), frame(3)], [frame(9)], sealed=True
    )
    assert _unnoticed(path, range(path.stat().st_size)) == []


def test_of_a_spool_that_was_left_behind_only_the_last_group_can_be_taken_for_a_crash(tmp_path: Path) -> None:
    """A bit that flips in it later looks like a write that was never completed; `cascade log status` counts those."""
    path = written(tmp_path, [frame(1)], [frame(2), frame(3)], [frame(4)], sealed=False)
    with closing(Spool(path)) as spool:
        last = spool.rows()[0][-1].at
    unnoticed = _unnoticed(path, range(path.stat().st_size))
    assert unnoticed == list(range(last, path.stat().st_size))


def _unnoticed(path: Path, where: range) -> list[int]:
    """Bytes that can be flipped without an error; whatever is read must be what was written all the same."""
    whole = path.read_bytes()
    with closing(Spool(path)) as spool:
        right = [spool.read(row.at) for row in spool.rows()[0]]
    rng = np.random.default_rng(0)
    unnoticed = []
    for at in where:
        flipped = bytearray(whole)
        flipped[at] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        try:
            with closing(Spool(path)) as spool:
                read = [spool.read(row.at) for row in spool.rows()[0]]
        except CorruptLog:
            continue
        assert read == right[: len(read)]
        unnoticed.append(at)
    path.write_bytes(whole)
    return unnoticed


@dataclass(frozen=True)
class Step:
    """Something that happened to a simulated disk, or an acknowledgement."""

    what: str
    """write, truncate, sync, rename, name (all files of the folder have names that last), ack."""
    name: str = ""
    data: bytes = b""
    size: int = 0


class Disk:
    """Notes what `serving.log.spool` does to its files, in order, while the real system does it."""

    def __init__(self) -> None:
        self.steps: list[Step] = []
        self._name_of: dict[int, str] = {}

    def __getattr__(self, name: str) -> Any:
        return getattr(os, name)

    def open(self, path: Path, flags: int, mode: int = 0o777) -> int:
        descriptor = os.open(path, flags, mode)
        if flags & os.O_CREAT:
            self._name_of[descriptor] = path.name.removeprefix(".")
        return descriptor

    def write(self, descriptor: int, data: bytes) -> int:
        done = os.write(descriptor, data)
        self.steps.append(Step("write", self._name_of[descriptor], bytes(data[:done])))
        return done

    def ftruncate(self, descriptor: int, size: int) -> None:
        os.ftruncate(descriptor, size)
        self.steps.append(Step("truncate", self._name_of[descriptor], size=size))

    def fdatasync(self, descriptor: int) -> None:
        self.steps.append(Step("sync", self._name_of[descriptor]))

    def rename(self, path: Path, target: Path) -> Path:
        os.rename(path, target)  # noqa: PTH104
        self.steps.append(Step("rename", target.stem, target.suffix.encode()))
        return target

    def sync(self, _: Path) -> None:
        self.steps.append(Step("name"))

    def after_power_loss(self, steps: list[Step], rng: np.random.Generator) -> dict[str, bytes]:
        """What may be left: all that was synced, and any mixture of old, new, no and wrong bytes where none was."""
        held: dict[str, bytearray] = {}
        lasting: dict[str, bytes] = {}
        names: dict[str, list[str]] = {}
        """That a file may have: those since the folder was last synced."""
        for step in steps:
            if step.what == "write":
                held.setdefault(step.name, bytearray()).extend(step.data)
            elif step.what == "truncate":
                del held[step.name][step.size :]
            elif step.what == "sync":
                lasting[step.name] = bytes(held[step.name])
            elif step.what == "name":
                names = {each: given[-1:] for each, given in names.items()}
            elif step.what == "rename":
                names.setdefault(step.name, [""]).append(step.data.decode())
        left = {}
        for name, given in names.items():
            suffix, data = given[int(rng.integers(len(given)))], held[name]
            if not suffix:
                continue  # still a draft, which counts for nothing
            synced = len(lasting.get(name, b""))
            tail = bytearray(data[synced:])
            for at in range(0, len(tail), SECTOR):
                fate = rng.integers(4)
                if fate == 0:
                    tail[at : at + SECTOR] = bytes(len(tail[at : at + SECTOR]))
                elif fate == 1:
                    tail[at : at + SECTOR] = rng.bytes(len(tail[at : at + SECTOR]))
            kept = int(rng.integers(len(tail) + 1)) if rng.random() < 0.5 else len(tail)
            left[name + suffix] = bytes(data[:synced] + tail[:kept])
        return left


@dataclass
class Losses:
    """What power losses took."""

    acknowledged: int = 0
    wrong: int = 0
    damaged: int = 0
    unfinished: int = 0


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
    made = Disk()
    monkeypatch.setattr(spools, "os", made)
    monkeypatch.setattr(spools, "sync", made.sync)
    monkeypatch.setattr(Path, "rename", lambda *given: made.rename(*given))  # noqa: PLW0108
    yield made
    monkeypatch.undo()


def worked(disk: Disk, folder: Path, durability: Durability) -> dict[str, bytes]:
    """Four clients write to a log that rotates often; returns the payload of every key."""
    payloads: dict[str, bytes] = {}

    def client(first: int) -> None:
        for number in range(first, first + 12):
            shown = Impression(request_id=f"r{number}", time_ms=number, item_rows=bytes([number]) * 150)
            done = Outcome(event_id=f"e{number}", visible_ms=number, action="click")
            payloads[shown.request_id], payloads[done.event_id] = shown.SerializeToString(), done.SerializeToString()
            log.append(shown)
            if durability == "sync":
                disk.steps.append(Step("ack", shown.request_id))
            log.write_outcomes([done])
            disk.steps.append(Step("ack", done.event_id))

    with ImpressionLog(folder, durability=durability, rotate_bytes=4_000) as log:
        clients = [Thread(target=client, args=(first,)) for first in (0, 50, 100, 150)]
        for each in clients:
            each.start()
        for each in clients:
            each.join()
    return payloads


def lost(disk: Disk, payloads: dict[str, bytes], folder: Path, *, times: int, again_every: int = 8) -> Losses:
    """Cut the power so many times, at moments drawn at random, and read what is left."""
    losses = Losses()
    rng = np.random.default_rng(1)
    everything = list(disk.steps)
    for time in range(times):
        steps = everything[: int(rng.integers(len(everything) + 1))]
        acknowledged = {step.name for step in steps if step.what == "ack"}
        image = folder / str(time) / SPOOLS
        image.mkdir(parents=True)
        for name, data in disk.after_power_loss(steps, rng).items():
            (image / name).write_bytes(data)
        read, unfinished, damaged = _read(image)
        losses.acknowledged += len(acknowledged - read.keys())
        losses.wrong += sum(payloads[key] != payload for key, payload in read.items())
        losses.unfinished += unfinished
        losses.damaged += damaged
        if time % again_every == 0 and not damaged:
            with ImpressionLog(image.parent, durability="os") as log:  # a row that is torn is no duplicate
                for key, payload in payloads.items():
                    if key.startswith("r"):
                        log.append(Impression.FromString(payload))
                    else:
                        log.write_outcomes([Outcome.FromString(payload)])
            losses.acknowledged += len(payloads.keys() - _read(image)[0].keys())
    return losses


def _read(folder: Path) -> tuple[dict[str, bytes], int, int]:
    """What counts, by key; bytes of unfinished groups; damaged files."""
    read: dict[str, bytes] = {}
    unfinished = damaged = 0
    for path in paths(folder):
        with closing(Spool(path)) as spool:
            try:
                rows, left = spool.rows()
            except CorruptLog:
                damaged += 1
                continue
            unfinished += left
            for row in rows:
                read.setdefault(row.key, spool.read(row.at)[1])
    return read, unfinished, damaged


@pytest.mark.parametrize("times", [50, pytest.param(1000, marks=pytest.mark.slow)])
@pytest.mark.parametrize("durability", ["group", "sync"])
def test_a_power_loss_takes_nothing_that_was_acknowledged(
    disk: Disk, tmp_path: Path, durability: Durability, times: int
) -> None:
    payloads = worked(disk, tmp_path / "log", durability)
    losses = lost(disk, payloads, tmp_path / "left", times=times)
    assert (losses.acknowledged, losses.wrong, losses.damaged) == (0, 0, 0)
    assert losses.unfinished > 0, "some were cut off in the middle of a write"


def test_without_a_sync_the_same_power_losses_take_what_was_acknowledged(disk: Disk, tmp_path: Path) -> None:
    """The control: the test above can fail. What is read is right all the same."""
    payloads = worked(disk, tmp_path / "log", "os")
    losses = lost(disk, payloads, tmp_path / "left", times=50, again_every=1000)
    assert losses.acknowledged > 0
    assert losses.wrong == 0
