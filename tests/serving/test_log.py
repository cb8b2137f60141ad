"""The log of a process: what is acknowledged is there, once, whatever happens to the writer or the disk."""

import os
import resource
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protos.impression_pb2 import Impression, Outcome
from serving.log import recent_rows
from serving.log.impression_log import SPOOLS, CorruptLog, Durability, ImpressionLog, LogUnavailable
from serving.log.spool import SEALED, SpoolWriter, is_written, paths
from training.log.impression_log import read_impressions, read_outcomes


def impression(number: int, *, size: int = 200) -> Impression:
    body = np.random.default_rng(number).bytes(size)
    return Impression(request_id=f"r{number:05d}", time_ms=1_000 + number, user_id="u", item_rows=body)


def outcome(number: int) -> Outcome:
    return Outcome(event_id=f"e{number:05d}", action="click", time_ms=2_000 + number, visible_ms=3_000 + number)


def until(holds: Callable[[], bool], *, within_s: float = 10.0) -> bool:
    end = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


@pytest.mark.parametrize("durability", ["group", "sync", "os"])
def test_what_was_written_is_read_in_time_order_and_by_window(tmp_path: Path, durability: Durability) -> None:
    path = tmp_path / "log"
    with ImpressionLog(path, durability=durability) as log:
        for number in (3, 1, 2, 0):
            log.append(impression(number))
        assert log.write_outcomes([outcome(2), outcome(1)]) == ["stored", "stored"]
    assert list(read_impressions(path)) == [impression(n) for n in range(4)]
    assert list(read_impressions(path, since_ms=1_001, until_ms=1_003)) == [impression(1), impression(2)]
    assert list(read_outcomes(path)) == [outcome(1), outcome(2)]
    assert list(read_outcomes(path, since_ms=3_002)) == [outcome(2)]


def test_a_retry_of_a_request_and_of_an_event_is_one_row_also_after_a_restart(tmp_path: Path) -> None:
    path = tmp_path / "log"
    for life in range(2):
        with ImpressionLog(path) as log:
            for _ in range(3):
                again = impression(7)
                again.user_id = f"life {life}"
                log.append(again)
            log.flush()
            statuses = log.write_outcomes([outcome(1), outcome(1), outcome(2 + life)])
            assert statuses == ["duplicate" if life else "stored", "duplicate", "stored"]
    assert [one.user_id for one in read_impressions(path)] == ["life 0"]
    assert [one.event_id for one in read_outcomes(path)] == ["e00001", "e00002", "e00003"]


def test_an_impression_is_found_by_its_request_id_before_and_after_its_commit(tmp_path: Path) -> None:
    with ImpressionLog(tmp_path / "log") as log:
        for number in range(50):
            log.append(impression(number))
            assert log.find(f"r{number:05d}") == impression(number)
        log.flush()
        assert log.find("r00007") == impression(7)
        assert log.find("nobody") is None


def test_a_reader_sees_a_snapshot_while_the_server_writes(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with ImpressionLog(path, durability="os") as log:
        for number in range(10):
            log.append(impression(number))
        log.flush()
        reading = read_impressions(path)
        first = next(reading)
        for number in range(10, 20):
            log.append(impression(number))
        log.flush()
        assert [first, *reading] == [impression(n) for n in range(10)]
        assert len(list(read_impressions(path))) == 20


def test_many_threads_lose_nothing_and_share_commits(tmp_path: Path) -> None:
    path = tmp_path / "log"

    def client(first: int) -> None:
        for number in range(first, first + 50):
            log.append(impression(number))
            assert log.write_outcomes([outcome(number)]) == ["stored"]

    with ImpressionLog(path) as log:
        threads = [threading.Thread(target=client, args=(100 * each,)) for each in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert log.waiting <= 6
        log.flush()
        assert log.lag_s == 0
    wanted = [100 * each + n for each in range(6) for n in range(50)]
    assert list(read_impressions(path)) == [impression(n) for n in wanted]
    assert list(read_outcomes(path)) == [outcome(n) for n in wanted]


def test_a_full_queue_refuses_and_recovers_when_the_disk_is_quick_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "log"
    with ImpressionLog(path, capacity=5) as log:
        free = threading.Event()
        write = SpoolWriter.write

        def blocked(*given: Any) -> list[int]:
            free.wait()
            return write(*given)

        monkeypatch.setattr(SpoolWriter, "write", blocked)
        accepted = 0
        while log.available:
            log.append(impression(accepted))
            accepted += 1
        with pytest.raises(LogUnavailable, match="the capacity is 5"):
            log.append(impression(99))
        assert accepted == 5
        time.sleep(0.05)
        assert log.lag_s >= 0.05
        free.set()
        assert until(lambda: log.available)
        log.append(impression(accepted))
    assert list(read_impressions(path)) == [impression(n) for n in range(6)]


@pytest.fixture
def small_disk() -> Iterator[Callable[[int], None]]:
    """Sets the largest size a file may have; SIGXFSZ is ignored by Python, so that writes fail with EFBIG."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    assert signal.getsignal(signal.SIGXFSZ) == signal.SIG_IGN
    yield lambda size: resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_refuses_tears_no_row_and_resumes(tmp_path: Path, small_disk: Callable[[int], None]) -> None:
    """Every write is cut short after 2,000 bytes."""
    path = tmp_path / "log"
    log = ImpressionLog(path)
    for number in range(3):
        log.append(impression(number, size=5_000))
    log.flush()
    small_disk(2_000)
    try:
        number = _fill(log, first=3)
    finally:
        small_disk(resource.RLIM_INFINITY)
    _require_whole(log, path, accepted=number)


def test_a_full_file_system_refuses_tears_no_row_and_resumes(tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "log", str(disk)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("a file system cannot be mounted here")
    try:
        (disk / "other").write_bytes(bytes(500_000))
        log = ImpressionLog(disk / "log")
        number = _fill(log, first=0)
        assert number > 50, "there was room for some"
        (disk / "other").unlink()
        _require_whole(log, disk / "log", accepted=number)
    finally:
        subprocess.run(["umount", disk], check=True)


def _fill(log: ImpressionLog, *, first: int) -> int:
    """Append until the disk is full; the number of the first impression that was not accepted."""
    number = first
    while log.available:
        try:
            log.append(impression(number, size=5_000))
        except LogUnavailable:
            break  # the writer met the full disk after we looked
        number += 1
        assert number < 1_000
        time.sleep(0.001)
    with pytest.raises(LogUnavailable):
        log.write_outcomes([outcome(1)])
    with pytest.raises(LogUnavailable):
        log.append(impression(number))
    return number


def _require_whole(log: ImpressionLog, path: Path, *, accepted: int) -> None:
    """Space has returned: so does the log, with all that it had accepted."""
    assert until(lambda: log.available, within_s=5)
    assert log.write_outcomes([outcome(2)]) == ["stored"]
    log.close()
    assert list(read_impressions(path)) == [impression(n, size=5_000) for n in range(accepted)]
    assert [one.event_id for one in read_outcomes(path)] == ["e00002"]


def test_closing_on_a_full_disk_says_what_is_lost(tmp_path: Path, small_disk: Callable[[int], None]) -> None:
    log = ImpressionLog(tmp_path / "log")
    small_disk(2_000)
    for number in range(20):
        if log.available:
            log.append(impression(number, size=20_000))
    with pytest.raises(LogUnavailable, match="accepted rows are lost"):
        log.close()
    log.close()
    with pytest.raises(LogUnavailable, match="closed"):
        log.append(impression(1))


_WRITER = """
import sys
from pathlib import Path
from protos.impression_pb2 import Impression, Outcome
from serving.log.impression_log import ImpressionLog
log = ImpressionLog(Path(sys.argv[1]), durability=sys.argv[2])
first = int(sys.argv[3])
for number in range(first, first + 100_000):
    log.append(Impression(request_id=f"r{number}", time_ms=number, item_rows=b"x" * 3000))
    if sys.argv[2] != "sync":
        log.write_outcomes([Outcome(event_id=f"e{number}", visible_ms=number)])
    print(number, flush=True)
"""


@pytest.mark.parametrize("durability", ["group", "sync"])
def test_kill_9_loses_nothing_acknowledged_and_doubles_nothing(tmp_path: Path, durability: Durability) -> None:
    path = tmp_path / "log"
    root = Path(__file__).parents[2]
    acknowledged: list[int] = []
    for life in range(4):
        first = max(acknowledged[-1] - 5, 0) if acknowledged else 0  # the client sends the last few again
        writer = subprocess.Popen(
            [sys.executable, "-c", _WRITER, str(path), durability, str(first)],
            stdout=subprocess.PIPE,
            text=True,
            cwd=root,
            env={**os.environ, "PYTHONPATH": str(root)},
        )
        assert writer.stdout is not None
        for line in writer.stdout:
            acknowledged.append(int(line))
            if len(acknowledged) >= 40 * (life + 1) + 7 * life:
                writer.send_signal(signal.SIGKILL)
                break
        acknowledged += [int(line) for line in writer.stdout if line.endswith("\n")]
        writer.stdout.close()
        writer.wait()
    impressions = [one.time_ms for one in read_impressions(path)]
    assert impressions == sorted(set(impressions))
    if durability == "sync":
        assert set(acknowledged) <= set(impressions)
    else:
        outcomes = [one.visible_ms for one in read_outcomes(path)]
        assert outcomes == sorted(set(outcomes))
        assert set(acknowledged) <= set(outcomes)
        assert set(outcomes) <= set(impressions)  # one queue, in order
    assert len(set(acknowledged)) >= 100


def test_a_spool_is_sealed_by_size_and_by_age_and_retries_are_known_across(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with ImpressionLog(path, rotate_bytes=20_000) as log:
        for number in range(12):
            log.append(impression(number, size=5_000))
            log.flush()
        assert until(lambda: [each.suffix for each in paths(path / SPOOLS)] == [SEALED] * 3)
        assert log.find("r00001") == impression(1, size=5_000)
        log.append(impression(1, size=10))
    assert len(list(read_impressions(path))) == 12
    with ImpressionLog(path, rotate_s=0.2) as log:
        assert log.find("r00001") == impression(1, size=5_000)
        log.append(impression(50))
        assert until(lambda: all(each.suffix == SEALED for each in paths(path / SPOOLS)))
        log.append(impression(51))
    assert len(list(read_impressions(path))) == 14


def test_processes_share_a_folder_and_know_each_others_rows(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with ImpressionLog(path) as log, ImpressionLog(path) as other:
        assert len([each for each in paths(path / SPOOLS) if is_written(each)]) == 2
        for number in range(20):
            writes, reads = (log, other) if number % 2 else (other, log)
            assert reads.find(f"r{number:05d}") is None
            writes.append(impression(number))
            writes.flush()
            assert reads.find(f"r{number:05d}") == impression(number)
            assert reads.write_outcomes([outcome(number)]) == ["stored"]
            assert writes.write_outcomes([outcome(number)]) == ["duplicate"]
    assert list(read_impressions(path)) == [impression(n) for n in range(20)]
    assert len(list(read_outcomes(path))) == 20


def test_only_so_many_rows_are_remembered_and_a_row_written_again_is_read_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(recent_rows, "MOST_ROWS", 10)
    path = tmp_path / "log"
    for life in range(2):
        with ImpressionLog(path, rotate_bytes=1_000) as log:
            for number in range(30):
                again = impression(number)
                again.user_id = f"life {life}"
                log.append(again)
                log.flush()
            assert log.find("r00000") is None
            assert log.find("r00029") is not None
    assert [one.user_id for one in read_impressions(path)] == ["life 0"] * 30


def test_a_damaged_spool_of_another_life_keeps_nobody_from_writing(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with ImpressionLog(path) as log:
        log.append(impression(1))
    (damaged,) = paths(path / SPOOLS)
    damaged.write_bytes(b"not a spool at all")
    with ImpressionLog(path) as log:
        log.append(impression(2))
        log.flush()
        assert log.find("r00002") == impression(2)
    with pytest.raises(CorruptLog, match="is not a spool of version 1"):
        list(read_impressions(path))


def test_a_place_that_is_no_folder_is_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no impression log at"):
        list(read_impressions(tmp_path / "absent"))
    text = tmp_path / "text"
    text.write_text("hello")
    with pytest.raises(ValueError, match=r"no impression log at .*text, which is a file"):
        list(read_impressions(text))
    with pytest.raises(LogUnavailable, match="text: Not a directory"):
        ImpressionLog(text)


def test_misuse_names_the_field(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="durability must be group, sync or os"):
        ImpressionLog(tmp_path / "log", durability="never")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="capacity must be at least 1, got 0"):
        ImpressionLog(tmp_path / "log", capacity=0)
    with ImpressionLog(tmp_path / "log") as log:
        with pytest.raises(ValueError, match="the key of a row of impressions has 0 bytes"):
            log.append(Impression())
        with pytest.raises(ValueError, match="the key of a row of outcomes has 0 bytes"):
            log.write_outcomes([Outcome()])
        assert log.write_outcomes([]) == []


def test_who_is_slow_to_wait_still_hears_what_became_of_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer may have settled a job before the caller has begun to wait for it."""
    log = ImpressionLog(tmp_path / "log", durability="os")
    caller, wake = threading.get_ident(), log._wake

    class Slow:
        """The caller rests after every release."""

        def __enter__(self) -> None:
            wake.__enter__()

        def __exit__(self, *raised: object) -> None:
            wake.__exit__(*raised)  # type: ignore[arg-type]
            if threading.get_ident() == caller:
                time.sleep(0.05)

        def __getattr__(self, name: str) -> object:
            return getattr(wake, name)

    monkeypatch.setattr(log, "_wake", Slow())
    assert [log.write_outcomes([outcome(number)]) for number in range(5)] == [["stored"]] * 5
    log.close()


def test_a_failure_without_words_is_not_taken_for_success(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with ImpressionLog(tmp_path / "log") as log:

        def out_of_memory(*_: object) -> None:
            raise MemoryError

        monkeypatch.setattr(SpoolWriter, "write", out_of_memory)
        with pytest.raises(LogUnavailable, match="MemoryError"):
            log.write_outcomes([outcome(0)])
        monkeypatch.undo()
        assert until(lambda: log.available)
        assert log.write_outcomes([outcome(1)]) == ["stored"]
