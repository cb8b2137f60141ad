"""One reader over spools and archive: every row once, in order, the same before, between and after compactions."""

from datetime import UTC, datetime
from pathlib import Path
from threading import Event, Thread

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protos.impression_pb2 import Impression, Outcome
from serving.log.impression_log import SPOOLS, ImpressionLog
from training.log.archive import day_of
from training.log.compaction import compact
from training.log.impression_log import read_impressions, read_outcomes, read_segment, read_these, segments

HOUR_MS = 3_600_000
START_MS = 1_790_000_000_000


def impression(number: int, *, user: str = "u", size: int = 200) -> Impression:
    """Every third hour one, so that a few make many days."""
    time_ms = START_MS + 3 * HOUR_MS * number
    return Impression(request_id=f"r{number:05d}", time_ms=time_ms, user_id=user, item_rows=bytes(size))


def outcome(number: int, *, action: str = "click") -> Outcome:
    return Outcome(event_id=f"e{number:05d}", visible_ms=START_MS + HOUR_MS * number, action=action)


def write(folder: Path, numbers: range | list[int], *, user: str = "u") -> None:
    with ImpressionLog(folder, durability="os") as log:
        for number in numbers:
            log.append(impression(number, user=user))
        log.write_outcomes([outcome(number, action=user) for number in numbers])


def read(folder: Path) -> tuple[list[str], list[str], set[str]]:
    """Request ids, event ids, and which users wrote."""
    shown, done = list(read_impressions(folder)), list(read_outcomes(folder))
    return (
        [each.request_id for each in shown],
        [each.event_id for each in done],
        {each.user_id for each in shown} | {each.action for each in done},
    )


def expected(numbers: range) -> tuple[list[str], list[str], set[str]]:
    return [f"r{number:05d}" for number in numbers], [f"e{number:05d}" for number in numbers], {"u"}


def test_spools_and_archive_are_read_as_one_in_time_order_whatever_was_compacted(tmp_path: Path) -> None:
    write(tmp_path, [7, 3, 5, 1])
    compact(tmp_path)
    write(tmp_path, [0, 2, 8])
    once = read(tmp_path)
    compact(tmp_path)
    write(tmp_path, [4, 6, 9])
    assert read(tmp_path) == expected(range(10))
    compact(tmp_path)
    assert read(tmp_path) == expected(range(10))
    assert once[0] == ["r00000", "r00001", "r00002", "r00003", "r00005", "r00007", "r00008"]


def test_a_window_of_time_is_cut_from_all_of_them(tmp_path: Path) -> None:
    write(tmp_path, range(0, 40, 2))
    compact(tmp_path)
    write(tmp_path, range(1, 40, 2))
    since_ms, until_ms = impression(5).time_ms, impression(23).time_ms
    shown = list(read_impressions(tmp_path, since_ms=since_ms, until_ms=until_ms))
    assert shown == [impression(number) for number in range(5, 23)]
    assert len(list(read_outcomes(tmp_path, until_ms=outcome(3).visible_ms))) == 3


def test_the_first_of_a_key_counts_and_compaction_keeps_it(tmp_path: Path) -> None:
    write(tmp_path, range(10))
    for folder in (tmp_path / "early", tmp_path / "late"):
        write(folder, range(5, 15), user="again")
    (path,) = (tmp_path / "early" / SPOOLS).iterdir()
    path.rename(tmp_path / SPOOLS / "9999999999999-1-000000.sealed")
    shown, _, users = read(tmp_path)
    assert (len(shown), users) == (15, {"u", "again"})
    assert [each.user_id for each in read_impressions(tmp_path)] == ["u"] * 10 + ["again"] * 5
    compacted = compact(tmp_path)
    assert (compacted.rows, compacted.duplicates) == (30, 10)
    (path,) = (tmp_path / "late" / SPOOLS).iterdir()
    path.rename(tmp_path / SPOOLS / path.name)
    assert [each.user_id for each in read_impressions(tmp_path)] == ["u"] * 10 + ["again"] * 5
    compacted = compact(tmp_path)
    assert (compacted.rows, compacted.duplicates) == (0, 20)
    assert [each.user_id for each in read_impressions(tmp_path)] == ["u"] * 10 + ["again"] * 5


def test_segments_hold_every_impression_once_in_spools_and_in_the_archive(tmp_path: Path) -> None:
    def held(**options: int) -> list[str]:
        return [each.request_id for cut in segments(tmp_path, **options) for each in read_segment(tmp_path, cut)]

    write(tmp_path, range(30))
    assert held(size=7) == expected(range(30))[0]
    compact(tmp_path)
    assert held(size=7) == expected(range(30))[0]
    assert all(cut.rows <= 7 for cut in segments(tmp_path, size=7))
    write(tmp_path / "other", [28, 30, 29, 31, 5, 32])
    (path,) = (tmp_path / "other" / SPOOLS).iterdir()
    path.rename(tmp_path / SPOOLS / path.name)
    assert held(size=7) == [f"r{number:05d}" for number in (*range(30), 30, 31, 32)]
    assert held(newest=5) == [f"r{number:05d}" for number in (28, 29, 30, 31, 32)]
    assert held(newest=2) == ["r00031", "r00032"]
    cut = segments(tmp_path)
    compact(tmp_path)
    with pytest.raises(ValueError, match="was compacted or removed while it was being read"):
        read_segment(tmp_path, cut[-1])


def test_requests_are_found_by_id_wherever_they_lie(tmp_path: Path) -> None:
    write(tmp_path, range(20))
    compact(tmp_path)
    write(tmp_path, range(20, 30))
    found = read_these(tmp_path, ["r00025", "nobody", "r00003", "r00019"])
    assert found == [impression(25), impression(3), impression(19)]
    assert read_these(tmp_path, []) == []


def test_a_reader_sees_every_row_once_while_others_write_and_compact(tmp_path: Path) -> None:
    """What was committed when a reading began is in it, once, and in order."""
    write(tmp_path, range(20))
    done = Event()

    def writes() -> None:
        with ImpressionLog(tmp_path, durability="os", rotate_bytes=4_000) as log:
            for number in range(20, 320):
                log.append(impression(number))
                if number % 20 == 0:
                    log.flush()

    def compacts() -> None:
        while not done.is_set():
            compact(tmp_path)

    threads = [Thread(target=writes), Thread(target=compacts)]
    for each in threads:
        each.start()
    seen = 20
    try:
        while threads[0].is_alive():
            shown = [each.request_id for each in read_impressions(tmp_path)]
            assert shown == expected(range(len(shown)))[0]
            assert len(shown) >= seen
            seen = len(shown)
    finally:
        done.set()
        for each in threads:
            each.join()
    assert [each.request_id for each in read_impressions(tmp_path)] == expected(range(320))[0]


@given(st.integers(-(1 << 63), (1 << 63) - 1))
@settings(max_examples=300)
def test_every_time_has_a_day_and_days_are_in_the_order_of_times(time_ms: int) -> None:
    assert day_of(time_ms) <= day_of(min(time_ms + 86_400_000, (1 << 63) - 1))
    if 0 <= time_ms < 4_000_000_000_000:
        assert day_of(time_ms) == f"{datetime.fromtimestamp(time_ms / 1000, UTC):%Y-%m-%d}"
