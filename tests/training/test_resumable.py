"""Work on segments: each once, in one process or in several, and what was done before a kill is not done again."""

import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from shutil import rmtree

import pytest

from protos.impression_pb2 import Impression
from serving.log.impression_log import ImpressionLog
from training.log.impression_log import Segment, read_segment, segments
from training.log.resumable import Journal, Result, Work, over


def log_of(path: Path, first: int, last: int) -> Path:
    with ImpressionLog(path, durability="os") as log:
        for number in range(first, last):
            log.append(Impression(request_id=f"r{number}", time_ms=last - number))
    return path


def counting(log: Path, noted: Path, *, fails_at: str = "") -> Work:
    """Counts rows, and leaves a line for every segment that it is given."""

    def work(segment: Segment) -> Result:
        ids = [each.request_id for each in read_segment(log, segment)]
        if fails_at == "killed":
            os._exit(7)
        if fails_at in ids:
            raise ValueError(f"{fails_at} is not wanted")
        if fails_at == "broken":
            raise KeyError("a defect")
        with noted.open("a") as file:
            file.write(f"{ids[0].removeprefix('r')} {os.getpid()}\n")
        return {"ids": ids}

    return work


def lines(noted: Path) -> list[tuple[int, int]]:
    text = noted.read_text() if noted.exists() else ""
    return [(int(first), int(process)) for first, process in map(str.split, text.splitlines())]


def done(tmp_path: Path, *, workers: int = 1, about: str = "same", fails_at: str = "") -> list[str]:
    log, noted = tmp_path / "log", tmp_path / "noted"
    journal = Journal(tmp_path / "journal.jsonl", {"program": about, "log": "here"})
    make = partial(counting, log, noted, fails_at=fails_at)
    found = over(segments(log, size=10), make, journal=journal, workers=workers, title="test")
    return [name for each in found for name in each["ids"]]


def test_every_row_is_worked_on_once_by_one_process_or_by_two(tmp_path: Path) -> None:
    log_of(tmp_path / "log", 0, 45)
    wanted = [f"r{number}" for number in range(45)]
    assert done(tmp_path) == wanted, "in the order of commits, not of time"
    assert {process for _, process in lines(tmp_path / "noted")} == {os.getpid()}
    (tmp_path / "journal.jsonl").unlink()
    (tmp_path / "noted").unlink()
    assert sorted(done(tmp_path, workers=2)) == sorted(wanted)
    firsts, processes = zip(*lines(tmp_path / "noted"), strict=True)
    assert sorted(firsts) == [0, 10, 20, 30, 40]
    assert os.getpid() not in processes


def test_what_was_done_is_not_done_again_and_gives_the_same(tmp_path: Path) -> None:
    log_of(tmp_path / "log", 0, 45)
    with pytest.raises(ValueError, match="r33 is not wanted"):
        done(tmp_path, fails_at="r33")
    assert [first for first, _ in lines(tmp_path / "noted")] == [0, 10, 20]
    assert sorted(done(tmp_path)) == sorted(f"r{number}" for number in range(45))
    assert [first for first, _ in lines(tmp_path / "noted")] == [0, 10, 20, 30, 40]
    done(tmp_path)
    assert len(lines(tmp_path / "noted")) == 5


def test_a_line_that_was_torn_counts_for_nothing(tmp_path: Path) -> None:
    log_of(tmp_path / "log", 0, 25)
    done(tmp_path)
    journal = tmp_path / "journal.jsonl"
    journal.write_text(journal.read_text()[:-20])
    assert sorted(done(tmp_path)) == sorted(f"r{number}" for number in range(25))
    assert [first for first, _ in lines(tmp_path / "noted")] == [0, 10, 20, 20]
    assert all(json.loads(line) for line in journal.read_text().splitlines()), "and is mended"


def test_a_log_that_grew_is_gone_on_with_and_a_part_that_changed_is_done_again(tmp_path: Path) -> None:
    with ImpressionLog(tmp_path / "log", durability="os") as log:
        for number in range(45):
            log.append(Impression(request_id=f"r{number}", time_ms=number))
            if number == 24:
                log.flush()
                done(tmp_path)
    assert sorted(done(tmp_path)) == sorted(f"r{number}" for number in range(45))
    assert [first for first, _ in lines(tmp_path / "noted")][3:] == [20, 30, 40], "the last part has more rows now"
    log_of(tmp_path / "log", 45, 60)
    done(tmp_path)
    assert [first for first, _ in lines(tmp_path / "noted")][6:] == [45, 55], "of the next spool"
    rmtree(tmp_path / "log")
    log_of(tmp_path / "log", 1, 46)
    done(tmp_path)
    assert len(lines(tmp_path / "noted")) == 8 + 5


def test_another_program_begins_afresh_and_says_why(tmp_path: Path) -> None:
    log_of(tmp_path / "log", 0, 25)
    done(tmp_path)
    done(tmp_path, about="other")
    assert len(lines(tmp_path / "noted")) == 6
    journal = Journal(tmp_path / "journal.jsonl", {"program": "third", "log": "here"})
    assert (journal.done, journal.afresh) == ({}, "program differs from the last run's")
    assert Journal(tmp_path / "new.jsonl", {}).afresh == ""


def test_what_a_process_refuses_or_breaks_on_is_told_by_the_one_that_asked(tmp_path: Path) -> None:
    """Each afresh: one segment left over would be worked on here."""
    log_of(tmp_path / "log", 0, 45)
    with pytest.raises(ValueError, match="r33 is not wanted"):
        done(tmp_path, workers=2, about="r33", fails_at="r33")
    with pytest.raises(RuntimeError, match="a defect"):
        done(tmp_path, workers=2, about="broken", fails_at="broken")
    with pytest.raises(RuntimeError, match="was killed; run it again"):
        done(tmp_path, workers=2, about="killed", fails_at="killed")


def test_processes_end_with_the_one_that_asked(tmp_path: Path) -> None:
    """Killed, it has no time to tell them."""
    log_of(tmp_path / "log", 0, 45)
    script = f"""
import os, sys, time
from functools import partial
from pathlib import Path
sys.path[:0] = {[str(Path(__file__).parent), str(Path(__file__).parents[2])]!r}
from test_resumable import counting
from training.log.impression_log import segments
from training.log.resumable import Journal, over
if __name__ == "__main__":
    here = Path({str(tmp_path)!r})
    make = partial(counting, here / "log", here / "noted")
    found = over(segments(here / "log", size=10), make, journal=Journal(here / "j", {{}}), workers=2, title="t")
    next(found), next(found)
    os._exit(9)
"""
    (tmp_path / "asks.py").write_text(script)
    with subprocess.Popen([sys.executable, tmp_path / "asks.py"], stderr=subprocess.PIPE) as asks:
        # The pipe is closed when the last process that holds it has ended.
        _, errors = asks.communicate(timeout=300)
    assert asks.returncode == 9, errors
    assert len(lines(tmp_path / "noted")) >= 2


def test_segments_say_what_they_hold_and_can_be_the_newest_only(tmp_path: Path) -> None:
    log = log_of(tmp_path / "log", 0, 45)
    cut = segments(log, size=10)
    assert [each.rows for each in cut] == [10, 10, 10, 10, 5]
    newest = segments(log, size=10, newest=8)
    assert [each.rows for each in newest] == [3, 5]
    assert [each.request_id for each in read_segment(log, newest[0])] == ["r37", "r38", "r39"]
    assert newest[1] == cut[4]
    assert segments(log, size=10, newest=1000) == cut
    assert len({each.digest for each in cut}) == 5
    with pytest.raises(ValueError, match="no impression log at"):
        segments(tmp_path / "none.db")
