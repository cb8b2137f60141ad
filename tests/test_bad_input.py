"""Bad input through the command line: one line that names the fault, exit code 2, and nothing half-written."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from index.generations import GenerationStore
from serving.log.impression_log import ImpressionLog
from training import cli

GOOD: Mapping[str, Sequence[Any]] = {
    "who": ["a", "b", "a", "c"],
    "what": ["x", "y", "y", "x"],
    "when": [1000, 2000, 3000, 4000],
    "event": ["1", "2", "3", "4"],
}
LOG = "log.parquet"


def parquet(folder: Path, **columns: Sequence[Any] | None) -> Path:
    """The good log with other columns, or without those that are None."""
    path = folder / LOG
    merged = {name: values for name, values in {**GOOD, **columns}.items() if values is not None}
    pl.DataFrame(merged).write_parquet(path)
    return path


def refused(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    """The one line that a command refuses its input with."""
    capsys.readouterr()
    assert cli.main(words) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("cascade: error: ")
    assert err.count("\n") == 1
    return err


def own_data(folder: Path) -> list[str]:
    columns = {"path": LOG, "user": "who", "item": "what", "time": "when", "event": "event"}
    return [
        *("data=parquet", f"data.root={folder}", "data.items=null"),
        *(f"data.interactions.{ours}={theirs}" for ours, theirs in columns.items()),
    ]


@pytest.mark.parametrize(
    ("columns", "told"),
    [
        ({"what": None}, ["has no column 'what'", "1 of 4 needed", "who, when, event"]),
        ({"who": ["a", None, "a", None]}, ["column 'who' is null or empty in 2 of 4 rows"]),
        ({"what": ["x", "", "y", "x"]}, ["column 'what' is null or empty in 1 of 4 rows"]),
        ({"when": [1000, None, 3000, 4000]}, ["column 'when' is null or empty in 1 of 4 rows"]),
        ({"when": [1000, 2000, 3000, 9 * 10**12]}, ["column 'when' is in the future in 1 of 4 rows"]),
        ({"when": ["then"] * 4}, ["column 'when' must hold dates or numbers", "4 rows"]),
        ({"event": ["1", "1", "1", "4"]}, ["column 'event' repeats an earlier value in 2 of 4 rows"]),
        ({name: [] for name in GOOD}, ["is empty: 0 rows"]),
    ],
)
@pytest.mark.parametrize("command", ["data", "demo"])
def test_a_faulty_parquet_is_refused_and_leaves_nothing(
    command: str,
    columns: dict[str, Sequence[Any] | None],
    told: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = parquet(tmp_path, **columns)
    err = refused(capsys, command, *own_data(tmp_path), f"output={tmp_path / 'out'}")
    for part in (str(path), *told):
        assert part in err
    assert [each.name for each in tmp_path.iterdir()] == [LOG]


def test_a_demo_that_fails_leaves_the_run_that_was_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = tmp_path / "run" / "report.html"
    before.parent.mkdir()
    before.write_text("of an earlier run")
    refused(capsys, "demo", "data=ml-1m", f"data.root={tmp_path}", f"output={tmp_path / 'run'}")
    assert before.read_text() == "of an earlier run"
    assert [each.name for each in tmp_path.iterdir()] == ["run"]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["data", "data=ml-1n", "data.root={}"], ["'ml-1n'", "the nearest is 'ml-1m'", "parquet", "world"]),
        (["data", "data=ml-1m", "data.root={}/none"], ["{}/none/ratings.dat is missing", "grouplens.org"]),
        (["data", "data=ml-latest-small", "data.root={}"], ["{}/ratings.csv is missing", "grouplens.org"]),
        (["data", "data=parquet", "data.root={}"], ["{}/interactions.parquet is missing"]),
        (["data", "data=ml-1m"], ["data.root must be given"]),
        (["data", "seeed=1"], ["no 'seeed'", "the nearest is 'seed'"]),
        (["demo", "towers.epoks=3"], ["no 'towers.epoks'", "the nearest is 'towers.epochs'"]),
        (["demo", "towers.epochs=0"], ["epochs is 0", "at least 1"]),
        (["demo", "towers.epochs=many"], ["towers.epochs is 'many'", "a whole number"]),
        (["replay", "verify", "log={}/none.db"], ["no impression log at {}/none.db"]),
        (["replay", "verify", "log={}/junk"], ["{}/junk"]),
        (["generations", "list", "--store", "{}/none"], ["{}/none is no store of generations"]),
        (["report", "{}"], ["{} holds no summary.json"]),
        (["serve", "generations={}/none"], ["{}/none holds no generations"]),
        (["rebuild", "generations={}/none"], ["{}/none holds no generations", "cascade demo"]),
        (["rebuild", "index.kind=tree"], ["kind is 'tree'", "exact, ivf"]),
        (["rebuild", "index.shards=0"], ["shards is 0", "at least 1"]),
        (["rebuild", "gates.shrink=2"], ["shrink is 2", "from 0 to 1"]),
        (["rebuild", "indx=ivf"], ["no 'indx'", "the nearest is 'index'"]),
        (["export", "output={}/none", "generations={}/g"], ["{}/none/towers/metrics.json is missing", "train tower"]),
        (["evaluate", "retreival"], ["'retreival'", "the nearest is 'retrieval'"]),
        (["evaluate", "clicks", "train=x"], ["evaluate clicks needs test="]),
        (["evaluate", "clicks", "train={}/some", "test={}/none"], ["{}/some has no column 'user_id'"]),
        (["evaluate", "ltr", "train=x"], ["evaluate ltr needs test="]),
        (["evaluate", "ltr", "train={}/none", "test=x"], ["{}/none is missing"]),
        (["evaluate", "session", "data={}/none"], ["{}/none is missing"]),
        (["evaluate", "sequence"], ["needs data="]),
        (["evaluate", "sequence", "data"], ["'data' is not key=value"]),
        (["evaluate", "sequence", "data={}/junk", "epoch=3"], ["no option 'epoch'", "the nearest is 'epochs'"]),
        (["evaluate", "sequence", "data={}/none"], ["{}/none is missing"]),
        (["evaluate", "sequence", "data={}/junk"], ["{}/junk cannot be read"]),
        (["evaluate", "sequence", "data={}/some"], ["{}/some has no column 'pos'", "1 of 3 needed"]),
        (["evaluate", "sequence", "data={}/null"], ["{}/null: column 'user' holds 1 nulls in 3 rows"]),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    words: list[str], told: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "junk").write_text("neither Parquet nor a database")
    pl.DataFrame({"user": [1], "item": [1]}).write_parquet(tmp_path / "some")
    pl.DataFrame({"user": [1, None, 2], "item": [1, 2, 3], "pos": [0, 1, 2]}).write_parquet(tmp_path / "null")
    before = sorted(each.name for each in tmp_path.iterdir())
    err = refused(capsys, *(word.replace("{}", str(tmp_path)) for word in words))
    for part in told:
        assert part.replace("{}", str(tmp_path)) in err
    assert sorted(each.name for each in tmp_path.iterdir()) == before


@pytest.mark.parametrize("words", [["replay", "verify"], ["replay", "counterfactual"], ["ope"], ["nightly"]])
def test_an_empty_log_is_no_log_to_learn_from(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    with ImpressionLog(log):
        pass
    monkeypatch.setattr("training.jobs._named", lambda *_: "000001-00000000")
    small = ["data.users=20", "data.items=60", "data.days=12"] if words == ["nightly"] else []
    err = refused(capsys, *words, f"log={log}", f"generations={tmp_path / 'generations'}", *small)
    assert f"{log}: 0 impressions; at least 1 is needed" in err
    assert GenerationStore(tmp_path / "generations").ids() == []
