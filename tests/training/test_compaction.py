"""Looking after a log: killed anywhere it counts every row once, damage is found and set aside, old days go."""

import hashlib
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from test_impression_log import HOUR_MS, expected, impression, outcome, read, write

from serving.log.impression_log import SPOOLS, CorruptLog, ImpressionLog
from serving.log.spool import OPEN, paths
from training import cli
from training.log.archive import MANIFEST, Manifest, fingerprint
from training.log.compaction import LogBusy, _alone, compact, retain, status, verify
from training.log.impression_log import read_impressions, read_outcomes

ROOT = Path(__file__).parents[2]


def test_spools_become_parquet_by_day_that_other_tools_read(tmp_path: Path) -> None:
    write(tmp_path, range(30))
    compacted = compact(tmp_path)
    assert (compacted.spools, compacted.rows, compacted.duplicates, compacted.written_to) == (1, 60, 0, 0)
    assert paths(tmp_path / SPOOLS) == []
    manifest = Manifest.read(tmp_path)
    assert sum(part.rows for part in manifest.of("impressions")) == 30
    for part in manifest.parts:
        path = tmp_path / part.name
        assert part.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
        assert (part.bytes, part.schema) == (path.stat().st_size, fingerprint(part.table))
    frame = pl.read_parquet(tmp_path / "impressions", hive_partitioning=True)
    assert frame.height == 30
    assert frame["request_id"].to_list() == expected(range(30))[0]
    assert (frame["time_ms"].cast(pl.Datetime("ms")).dt.date() == frame["day"]).all()
    assert set(frame["user_id"]) == {"u"}
    row = frame.row(7, named=True)
    assert row["payload"] == impression(7).SerializeToString()
    outcomes = pl.read_parquet(tmp_path / "outcomes")
    assert dict(zip(outcomes["event_id"], outcomes["action"], strict=True)) == dict.fromkeys(
        expected(range(30))[1], "u"
    )


def test_what_is_being_written_is_left_and_what_a_dead_writer_left_is_taken(tmp_path: Path) -> None:
    script = (
        "import os, sys\nfrom pathlib import Path\nsys.path[:0] = sys.argv[2:]\n"
        "from test_impression_log import impression\nfrom serving.log.impression_log import ImpressionLog\n"
        "log = ImpressionLog(Path(sys.argv[1]))\n"
        "for number in range(5): log.append(impression(number))\n"
        "log.flush()\nos.kill(os.getpid(), 9)\n"
    )
    died = subprocess.run([sys.executable, "-c", script, tmp_path, ROOT, Path(__file__).parent], check=False)
    assert died.returncode == -9
    with ImpressionLog(tmp_path) as log:
        log.append(impression(5))
        log.flush()
        compacted = compact(tmp_path)
        assert (compacted.spools, compacted.rows, compacted.written_to) == (1, 5, 1)
        assert [path.suffix for path in paths(tmp_path / SPOOLS)] == [OPEN]
        log.append(impression(6))
    assert [each.request_id for each in read_impressions(tmp_path)] == expected(range(7))[0]


_KILLED = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[3])
count = int(sys.argv[2])
def dying(do):
    def done(*given, **named):
        global count
        count -= 1
        if count < 0:
            os.kill(os.getpid(), 9)
        return do(*given, **named)
    return done
for name in ("rename", "replace", "unlink", "mkdir"):
    setattr(Path, name, dying(getattr(Path, name)))
from training.log.compaction import compact
compact(Path(sys.argv[1]))
"""


@pytest.mark.parametrize("every", [6, pytest.param(1, marks=pytest.mark.slow)])
def test_a_compaction_killed_before_any_change_of_a_file_counts_every_row_once(tmp_path: Path, every: int) -> None:
    for number in range(4):
        write(tmp_path, range(4 * number, 4 * number + 6))
    killed = 0
    for step in range(0, 200, every):
        died = subprocess.run([sys.executable, "-c", _KILLED, tmp_path, str(step), ROOT], check=False)
        assert read(tmp_path) == expected(range(18))
        if died.returncode == 0:
            break
        assert died.returncode == -9
        killed += 1
        if step % 8 == 0:
            write(tmp_path, [0, 17])  # retries that a server does not remember
    assert killed >= 2
    compact(tmp_path)
    assert read(tmp_path) == expected(range(18))
    assert verify(tmp_path, quarantine=False).damaged == {}
    named = {tmp_path / part.name for part in Manifest.read(tmp_path).parts}
    assert {*tmp_path.glob("*/day=*/*"), *tmp_path.glob("*/day=*/.*")} == named, "nothing is left lying about"


@pytest.mark.parametrize("flips", [120, pytest.param(1000, marks=pytest.mark.slow)])
def test_no_flipped_bit_of_a_spool_a_part_or_the_manifest_passes_unnoticed(tmp_path: Path, flips: int) -> None:
    write(tmp_path, range(12))
    compact(tmp_path)
    write(tmp_path, range(12, 20))
    right = [list(read_impressions(tmp_path)), list(read_outcomes(tmp_path))]
    files = [
        tmp_path / MANIFEST,
        *paths(tmp_path / SPOOLS),
        *(tmp_path / part.name for part in Manifest.read(tmp_path).parts),
    ]
    rng = np.random.default_rng(0)
    found = 0
    for number in range(flips):
        path = files[number % len(files)]
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[int(rng.integers(len(whole)))] ^= 1 << int(rng.integers(8))
        path.write_bytes(flipped)
        try:
            assert [list(read_impressions(tmp_path)), list(read_outcomes(tmp_path))] == right
        except CorruptLog as error:
            found += str(path) in str(error)
        path.write_bytes(whole)
    assert found == flips


def test_damage_is_named_with_code_2_and_set_aside_so_that_the_rest_can_be_read(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*words: str) -> tuple[int, str, str]:
        code = cli.main(["log", *words, f"log={tmp_path}"])
        out, err = capsys.readouterr()
        return code, out, err

    write(tmp_path, range(16))
    compact(tmp_path)
    write(tmp_path, range(16, 20))
    assert run("verify")[0] == 0
    part = tmp_path / Manifest.read(tmp_path).of("impressions")[0].name
    (spool,) = paths(tmp_path / SPOOLS)
    lost = pl.read_parquet(part)["request_id"].to_list()
    for path in (part, spool):
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        path.write_bytes(data)
    for words in (["verify"], ["compact", "recent_minutes=0"]):
        code, _, err = run(*words)
        assert (code, err.count("\n")) == (2, 1)
        assert str(spool) in err
    assert str(part) in run("verify")[2]
    with pytest.raises(CorruptLog):
        read(tmp_path)
    code, _, err = run("verify", "quarantine=true")
    assert code == 2
    assert "2 damaged files, set aside" in err
    assert len(list((tmp_path / "quarantine").iterdir())) == 2
    assert read(tmp_path)[0] == [name for name in expected(range(16))[0] if name not in lost]
    assert run("verify")[0] == 0
    assert status(tmp_path)["files in quarantine"] == 2


def test_retention_drops_the_days_before_and_says_which(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, range(40))
    compact(tmp_path)
    now_ms = impression(39).time_ms
    before = read(tmp_path)
    assert retain(tmp_path, days=30, now_ms=now_ms) == {}
    gone = retain(tmp_path, days=2, now_ms=now_ms)
    kept = [each.time_ms for each in read_impressions(tmp_path)]
    assert min(kept) // (24 * HOUR_MS) == now_ms // (24 * HOUR_MS) - 2
    assert sum(gone.values()) == sum(map(len, before[:2])) - sum(map(len, read(tmp_path)[:2]))
    assert all(not list(tmp_path.glob(f"*/day={day}")) for day in gone)
    assert verify(tmp_path, quarantine=False).damaged == {}
    assert cli.main(["log", "retain", f"log={tmp_path}"]) == 2
    assert "days is null; say how many days are kept" in capsys.readouterr().err
    write(tmp_path, [100])
    assert cli.main(["log", "retain", f"log={tmp_path}", "days=1"]) == 0
    assert "rows dropped" in capsys.readouterr().out


def test_one_process_at_a_time_looks_after_a_log(tmp_path: Path) -> None:
    write(tmp_path, range(2))
    with _alone(tmp_path), pytest.raises(LogBusy, match="by another process"):
        compact(tmp_path)
    with pytest.raises(ValueError, match="no impression log at"):
        verify(tmp_path / "none", quarantine=False)
    told = status(tmp_path)
    assert (told["impressions"], told["outcomes"], told["spools"], told["spools being written"]) == (2, 2, 1, 0)


def test_a_server_that_starts_after_a_compaction_knows_what_was_written_of_late(tmp_path: Path) -> None:
    write(tmp_path, range(5))
    compacted = compact(tmp_path, recent_since_s=time.time() - 900)
    assert (compacted.spools, compacted.recent, compacted.rows) == (0, 1, 0)
    with ImpressionLog(tmp_path) as log:
        assert log.find(expected(range(5))[0][3]) == impression(3)
        assert log.write_outcomes([outcome(3)]) == ["duplicate"]
    assert read(tmp_path) == expected(range(5))
    later = compact(tmp_path, recent_since_s=time.time() + 1)
    assert (later.recent, later.rows) == (0, 10)


def test_nothing_of_a_forgotten_user_stays_in_the_archive_or_gets_there(tmp_path: Path) -> None:
    for numbers, user in ((range(6), "gone"), (range(6, 12), "here")):
        write(tmp_path, numbers, user=user)
    compact(tmp_path)
    for numbers, user in ((range(12, 18), "gone"), (range(18, 24), "here")):
        write(tmp_path, numbers, user=user)
    until_ms = impression(14).time_ms
    compacted = compact(tmp_path, forgotten={"gone": until_ms, "never seen": until_ms})
    assert compacted.forgotten == 6 + 3, "the six before, and those up to the moment, that included"
    assert compacted.duplicates == 0
    left = {each.request_id: each.user_id for each in read_impressions(tmp_path)}
    assert [name for name, user in left.items() if user == "gone"] == expected(range(15, 18))[0]
    assert sum(user == "here" for user in left.values()) == 12
    assert not paths(tmp_path / SPOOLS)
    assert verify(tmp_path, quarantine=False).damaged == {}
    named = {part.name for part in Manifest.read(tmp_path).parts}
    assert {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.parquet")} == named
    again = compact(tmp_path, forgotten={"gone": until_ms})
    assert (again.forgotten, again.parts) == (0, 0)
