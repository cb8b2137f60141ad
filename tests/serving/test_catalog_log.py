"""What the catalogue log acknowledges is there: in order, without gaps, for every process, whatever happens to it."""

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path

import pytest

from protos.catalog_pb2 import CatalogItem, DeleteItemsRequest, ItemPatch, PatchItemsRequest, UpsertItemsRequest
from serving.log.catalog_log import CatalogLog, Change, StaleHead, UnknownChange
from serving.log.impression_log import CorruptLog, LogUnavailable

ROOT = Path(__file__).parents[2]
CHANGES: tuple[Change, ...] = (
    UpsertItemsRequest(items=[CatalogItem(item_id="a", title="A Title")]),
    DeleteItemsRequest(item_ids=["a", "b"]),
    PatchItemsRequest(patches=[ItemPatch(item_id="c", available=False)]),
)


def deletion(name: str) -> DeleteItemsRequest:
    return DeleteItemsRequest(item_ids=[name])


def filled(path: Path, count: int = 5) -> CatalogLog:
    log = CatalogLog(path)
    for after in range(count):
        log.append(deletion(f"i{after}"), time_ms=after, after=after)
    return log


def test_a_log_that_is_not_there_is_a_catalogue_that_did_not_change(tmp_path: Path) -> None:
    log = CatalogLog(tmp_path / "catalog.db")
    assert (log.head(), log.since(0)) == (0, [])
    assert not log.path.exists(), "to look creates nothing"


def test_entries_come_back_as_they_were_in_order_to_every_reader(tmp_path: Path) -> None:
    log, other = CatalogLog(tmp_path / "catalog.db"), CatalogLog(tmp_path / "catalog.db")
    assert other.head() == 0
    for after, change in enumerate(CHANGES):
        assert log.append(change, time_ms=100 + after, after=after).seq == after + 1
        assert log.head() == other.head() == after + 1
    found = other.since(0)
    assert [(each.seq, each.time_ms, each.request) for each in found] == [
        (seq, 99 + seq, change) for seq, change in enumerate(CHANGES, start=1)
    ]
    assert other.since(1, until=2) == found[1:2]
    assert other.since(3) == []


def test_only_who_knows_the_last_entry_appends_the_next(tmp_path: Path) -> None:
    log, other = filled(tmp_path / "catalog.db", 2), CatalogLog(tmp_path / "catalog.db")
    other.append(deletion("x"), time_ms=9, after=2)
    for after in (0, 2, 4):
        with pytest.raises(StaleHead, match=f"ends with entry 3, not {after}"):
            log.append(deletion("y"), time_ms=9, after=after)
    assert log.append(deletion("y"), time_ms=9, after=3).seq == 4
    assert [list(each.request.item_ids) for each in log.since(2) if isinstance(each.request, DeleteItemsRequest)] == [
        ["x"],
        ["y"],
    ]


APPENDER = """
import sys
from pathlib import Path
from protos.catalog_pb2 import DeleteItemsRequest
from serving.log.catalog_log import CatalogLog, StaleHead

log = CatalogLog(Path(sys.argv[1]))
for number in range(int(sys.argv[3])):
    while True:
        try:
            request = DeleteItemsRequest(item_ids=[f"{sys.argv[2]}-{number}"])
            log.append(request, time_ms=1, after=log.head())
            break
        except StaleHead:
            pass
    print(number, flush=True)
"""


def appender(path: Path, name: str, count: int) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", APPENDER, str(path), name, str(count)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment)


def ids(log: CatalogLog) -> list[str]:
    return [each for entry in log.since(0) for each in entry.request.item_ids]  # type: ignore[union-attr]  # deletions


def test_two_processes_append_each_of_theirs_once_and_in_their_order(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    writers = [appender(path, name, 40) for name in "ab"]
    for writer in writers:
        _, errors = writer.communicate(timeout=60)
        assert writer.returncode == 0, errors
    found = ids(CatalogLog(path))
    assert len(found) == 80
    for name in "ab":
        assert [each for each in found if each.startswith(name)] == [f"{name}-{number}" for number in range(40)]


def test_two_that_make_it_at_the_same_moment_wait_for_each_other(tmp_path: Path) -> None:
    at_once = threading.Barrier(2)

    def append(path: Path, name: str) -> None:
        with closing(CatalogLog(path)) as log:
            at_once.wait(20)
            while True:
                with suppress(StaleHead):
                    log.append(deletion(name), time_ms=1, after=log.head())
                    return

    with ThreadPoolExecutor(2) as pool:
        for number in range(50):
            path = tmp_path / f"{number}.db"
            for each in [pool.submit(append, path, name) for name in "ab"]:
                each.result()
            with closing(CatalogLog(path)) as made:
                assert sorted(ids(made)) == ["a", "b"]


def test_what_was_acknowledged_survives_a_kill(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    writer = appender(path, "a", 100_000)
    assert writer.stdout is not None
    for line in writer.stdout:
        if int(line) == 60:
            break
    writer.send_signal(signal.SIGKILL)
    rest, _ = writer.communicate()
    acknowledged = 61 + len(rest.splitlines())
    found = ids(CatalogLog(path))
    assert found == [f"a-{number}" for number in range(len(found))]
    assert acknowledged <= len(found) <= acknowledged + 1, "one may be written and not yet told"


def test_it_is_read_while_it_is_written(tmp_path: Path) -> None:
    log, reader = filled(tmp_path / "catalog.db", 1), CatalogLog(tmp_path / "catalog.db")
    stop = threading.Event()
    wrong: list[str] = []

    def read() -> None:
        last = 0
        while not stop.is_set():
            head = reader.head()
            if head < last or len(reader.since(0, until=head)) != head:
                wrong.append(f"{head} after {last}")
            last = head

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for after in range(1, 150):
        log.append(deletion("x"), time_ms=1, after=after)
    stop.set()
    for thread in threads:
        thread.join()
    assert wrong == []
    assert log.head() == 150


@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("UPDATE entries SET payload = x'0a0178' WHERE seq = 3", "entry 3 does not match its checksum"),
        ("UPDATE entries SET kind = 'patch_items' WHERE seq = 2", "entry 2 does not match its checksum"),
        ("UPDATE entries SET time_ms = 7 WHERE seq = 4", "entry 4 does not match its checksum"),
        ("DELETE FROM entries WHERE seq = 3", "entry 3 is missing, the next is 4"),
        ("PRAGMA user_version = 2", "not a catalogue log of version 1 .it says 2"),
    ],
)
def test_what_was_tampered_with_is_found_and_named(tmp_path: Path, statement: str, message: str) -> None:
    path = tmp_path / "catalog.db"
    filled(path).close()
    with sqlite3.connect(path) as connection:
        connection.execute(statement)
    connection.close()
    with pytest.raises(CorruptLog, match=message):
        CatalogLog(path).since(0)


def test_an_entry_of_a_later_version_is_refused_by_its_kind(tmp_path: Path) -> None:
    path = tmp_path / "catalog.db"
    log = filled(path, 1)
    with sqlite3.connect(path) as connection:
        connection.execute("INSERT INTO entries SELECT 2, 0, 'forget_user', crc, payload FROM entries")
    connection.close()
    assert log.head() == 2
    assert len(log.since(0, until=1)) == 1
    with pytest.raises((UnknownChange, CorruptLog), match="entry 2"):
        log.since(0)


@pytest.mark.parametrize("content", [b"this is no database, but it is long enough to look like one" * 40, b"\0" * 4096])
def test_a_file_that_is_no_log_is_refused_by_name_and_left_as_it_is(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "catalog.db"
    path.write_bytes(content)
    log = CatalogLog(path)
    for attempt in (log.head, lambda: log.since(0), lambda: log.append(deletion("x"), time_ms=1, after=0)):
        with pytest.raises(CorruptLog, match=r"catalog\.db"):
            attempt()
    assert path.read_bytes() == content


def test_a_folder_that_is_not_there_is_told_and_nothing_acknowledged(tmp_path: Path) -> None:
    log = CatalogLog(tmp_path / "none" / "catalog.db")
    with pytest.raises(LogUnavailable, match=r"catalog\.db"):
        log.append(deletion("x"), time_ms=1, after=0)
    assert log.head() == 0
    (tmp_path / "none").mkdir()
    assert log.append(deletion("x"), time_ms=1, after=0).seq == 1


def test_a_full_disk_is_told_and_the_next_attempt_goes_on(tmp_path: Path) -> None:
    log = filled(tmp_path / "catalog.db", 2)
    assert log._writer is not None
    pages = log._writer.execute("PRAGMA page_count").fetchone()[0]
    log._writer.execute(f"PRAGMA max_page_count = {pages}")
    big = DeleteItemsRequest(item_ids=[f"{number:0200}" for number in range(1000)])
    with pytest.raises(LogUnavailable, match="full"):
        log.append(big, time_ms=1, after=2)
    assert log.head() == 2
    assert log.append(big, time_ms=1, after=2).seq == 3
