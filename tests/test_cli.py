"""The command line as a person meets it: its help, its errors, how it ends."""

import json
import subprocess
import sys
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import polars as pl
import pytest

from index.generations import GenerationStore
from policy.ope import InsufficientOverlap
from serving.client import ShownItem, ShownSlate
from training import cli, commands
from training.evaluation import tasks
from training.learning import run_record, sweep
from training.settings import TrainSettings

COMMANDS = (
    *("demo", "data", "train", "export", "rebuild", "serve", "call", "replay", "ope", "nightly", "batch"),
    *("generations", "state", "evaluate", "report", "console"),
)
DAY_MS = 86_400_000
ROOT = Path(__file__).parents[1]


def run_here(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    """Exit code, standard output and standard error of a command run in this process."""
    capsys.readouterr()
    code = cli.main(words)
    out, err = capsys.readouterr()
    return code, out, err


def failing(error: BaseException) -> Callable[[Namespace], None]:
    def fail(given: Namespace) -> None:
        raise error

    return fail


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    out = capsys.readouterr().out
    assert ended.value.code == 0
    assert "examples:" in out
    assert f"cascade {command}" in out.partition("examples:")[2]


def test_help_lists_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["--help"])
    out = capsys.readouterr().out
    assert all(f"\n    {command}" in out for command in COMMANDS)


def test_help_imports_nothing_heavy() -> None:
    code = (
        "import sys; from training import cli\n"
        "try: cli.main(['--help'])\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'numpy', 'hydra', 'grpc', 'polars', 'rich', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(f'imported {heavy}' if heavy else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    "words",
    [
        ["demo", "towers.epocs=3"],
        ["demo", "nonsense"],
        ["train", "tower", "data=ml-1m"],
        ["train", "tower", "-m", "towers.epocs=1,2"],
        ["train", "tower", "-m", "towers.learning_rate=interval(0.01, 0.1)"],
        ["train", "tower", "-m", "sweep=towr"],
        ["train", "tower", "-m", "sweep.trials=3"],
        ["train", "tower", "-m", "sweep=tower,ranker"],
        ["train", "tower", "-m", "sweep=tower", "sweep.trials=0"],
        ["train", "tower", "-m", "sweep=tower", "towers.batch=interval(9, 1)"],
        ["train", "ranker", "-m", "sweep=tower"],
        ["train", "tower", "mlflow=nowhere://"],
        ["data", "data=ml-1m", "data.root=no/such/folder"],
        ["serve", "generations=no/such/store"],
        ["generations", "list", "--store", "no/such/store"],
        ["call", "recommend", "--user", "1"],
        ["evaluate", "retreival"],
        ["evaluate", "clicks", "train=x"],
        ["evaluate", "retrieval", "trian=x"],
        ["evaluate", "retrieval", "train"],
        ["report", "no/such/run"],
        ["replay", "verify", "log=no/such/log"],
    ],
    ids=" ".join,
)
def test_misuse_is_one_line_on_stderr_and_code_2(
    words: list[str], capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run_here(capsys, *words)
    assert code == 2
    assert out == ""
    assert err.startswith("cascade: error: ")
    assert err.count("\n") == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("words", [["dmeo"], ["train", "towers"], ["demo", "--quick"], ["generations"], []], ids=str)
def test_words_that_no_command_knows_end_with_code_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2
    assert "error:" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "start"),
    [
        (ValueError("two\nlines"), 2, "cascade: error: two lines\n"),
        (FileNotFoundError(2, "no such file", "x"), 2, "cascade: error: [Errno 2] no such file: 'x'\n"),
        (InsufficientOverlap.__new__(InsufficientOverlap, "thin"), 3, "cascade: error: thin\n"),
        (KeyboardInterrupt(), 130, "cascade: interrupted\n"),
        (ZeroDivisionError("division by zero"), 1, "cascade: defect: ZeroDivisionError: division by zero "),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, BaseException) else None,
)
def test_how_a_command_ends_tells_what_went_wrong(
    error: BaseException,
    code: int,
    start: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(commands, "report", failing(error))
    found, _, err = run_here(capsys, "report")
    assert found == code
    assert err.startswith(start)
    assert "Traceback" not in err


def test_a_traceback_is_shown_only_where_it_is_asked_for(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(commands, "report", failing(ValueError("wrong")))
    assert cli.main(["--traceback", "report"]) == 2
    assert "Traceback" in capsys.readouterr().err
    monkeypatch.setenv("CASCADE_TRACEBACK", "1")
    assert cli.main(["report"]) == 2
    assert "Traceback" in capsys.readouterr().err


def test_words_after_a_flag_are_overrides_too(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Namespace] = []
    monkeypatch.setattr(commands, "job", seen.append)
    assert cli.main(["train", "tower", "data=world", "-m", "towers.epochs=1,2", "seed=3"]) == 0
    assert seen[0].options == ["data=world", "towers.epochs=1,2", "seed=3"]
    assert seen[0].multirun
    assert seen[0].mode == "tower"


def test_a_sweep_ends_with_its_trials_the_best_and_the_command_that_trains_it_again(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = {"3": {"recall@50": "0.25", "towers.batch": "64"}, "0": {"recall@50": "0.125", "towers.batch": "32"}}
    again = "OMP_NUM_THREADS=1 cascade train tower " + " ".join(f"towers.key{number}={number}" for number in range(40))
    seen: list[list[str]] = []

    def found(words: list[str], *, tell: Callable[[str], None]) -> sweep.Swept:
        tell("not where nobody watches")
        seen.append(words)
        return sweep.Swept("recall@50", 0.25, 3, again, rows)

    monkeypatch.setattr(sweep, "run", found)
    code, out, err = run_here(capsys, "train", "tower", "-m", "sweep=tower", "towers.batch=32,64")
    assert (code, err) == (0, "")
    assert seen == [["mode=tower", "sweep=tower", "towers.batch=32,64"]]
    lines = out.splitlines()
    assert [line.split() for line in lines[:3]] == [
        ["recall@50", "towers.batch"],
        ["3", "0.25", "64"],
        ["0", "0.125", "32"],
    ]
    assert lines[-2] == "best: trial 3, recall@50 = 0.25; the same again:"
    assert lines[-1] == again


def test_a_sweep_without_optuna_names_the_extra(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_record, "find_spec", lambda _: None)
    code, _, err = run_here(capsys, "train", "tower", "-m", "sweep=tower")
    assert code == 2
    assert err == (
        "cascade: error: sweep=tower needs optuna, which is not installed: pip install 'cascade-ranking[sweep]'\n"
    )


def test_lists_of_values_are_trained_in_every_combination(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    seen: list[tuple[float, int, Path]] = []

    def train(settings: TrainSettings) -> dict[str, float]:
        seen.append((settings.cycle.towers.learning_rate, settings.seed, settings.output))
        return {"retrieval.recall@50": settings.cycle.towers.learning_rate * 100}

    monkeypatch.setattr(run_record, "train", train)
    code, out, _ = run_here(capsys, "train", "tower", "-m", "towers.learning_rate=1e-3,4e-3", "seed=1,2")
    assert code == 0
    assert sorted(each[:2] for each in seen) == [(0.001, 1), (0.001, 2), (0.004, 1), (0.004, 2)]
    assert len({each[2] for each in seen}) == 4
    assert all(f"towers.learning_rate={rate} seed={seed}" in out for rate in ("0.001", "0.004") for seed in (1, 2))


def test_show_prints_the_configuration_and_does_nothing(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, _ = run_here(capsys, "train", "ranker", "towers.epochs=9", "--show")
    assert code == 0
    assert "mode: ranker" in out
    assert "epochs: 9" in out
    assert not list(tmp_path.iterdir())


@pytest.fixture
def store(tmp_path: Path) -> GenerationStore:
    """Three generations, the second current."""
    store = GenerationStore(tmp_path / "generations")
    for number in range(3):
        with store.stage() as folder:
            (folder / "file").write_text(f"{number}")
            store.publish(
                folder,
                fingerprints={"schema": "s"},
                parent=None,
                config={"epochs": number},
                data_window=(0, number * DAY_MS),
                metrics={"recall": number / 10},
                created_ms=number,
            )
    store.activate(store.ids()[0], time_ms=1)
    store.activate(store.ids()[1], time_ms=2)
    return store


def test_generations_are_listed_newest_first_and_the_current_one_is_marked(
    store: GenerationStore, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, _ = run_here(capsys, "generations", "list", "--store", str(store.root))
    rows = [line.split() for line in out.splitlines()[1:]]
    assert code == 0
    assert [row[0] for row in rows] == store.ids()[::-1]
    assert [row[1] for row in rows][1:] == ["current", "before"]


def test_a_generation_is_shown_activated_and_rolled_back(
    store: GenerationStore, capsys: pytest.CaptureFixture[str]
) -> None:
    where = ("--store", str(store.root))
    newest = store.ids()[2]
    assert "config.epochs" in run_here(capsys, "generations", "show", *where)[1]
    assert run_here(capsys, "generations", "activate", newest, *where)[0] == 0
    assert store.current() == newest
    code, out, _ = run_here(capsys, "generations", "rollback", "--reason", "clicks fell", *where)
    assert (code, out.strip()) == (0, f"{store.ids()[1]} is current again; before: {newest}")
    assert store.current() == store.ids()[1]
    audited = store.history()[-1]
    assert (audited.previous, audited.id, audited.reason) == (newest, store.ids()[1], "clicks fell")
    assert " on " in audited.by
    first = run_here(capsys, "generations", "history", *where)[1].splitlines()[1]
    assert all(part in first for part in (newest, store.ids()[1], "clicks fell", audited.by))
    code, _, err = run_here(capsys, "generations", "activate", "000009-00000000", *where)
    assert code == 2
    assert "000009-00000000" in err


def test_a_difference_names_what_differs_with_both_values(
    store: GenerationStore, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second, _ = store.ids()
    _, out, _ = run_here(capsys, "generations", "diff", first, second, "--store", str(store.root))
    assert any(line.split() == ["config", "epochs", "0", "1"] for line in out.splitlines())
    assert "fingerprints" not in out


def test_pruning_never_removes_the_current_generation(
    store: GenerationStore, capsys: pytest.CaptureFixture[str]
) -> None:
    current, before = store.current(), store.before()
    assert run_here(capsys, "generations", "prune", "--keep", "1", "--store", str(store.root))[0] == 0
    assert {current, before} <= set(store.ids())


def measured(*, data: Path, k: int = 20, rate: float = 0.1, seed: int = 0, name: str | None = None) -> dict[str, float]:
    """A task."""
    assert isinstance(data, Path)
    return {f"recall@{k}": rate, "undefined": float("nan"), "seen": float(seed)}


@pytest.fixture
def task(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "import_module", lambda _: SimpleNamespace(evaluate=measured))


@pytest.mark.usefixtures("task")
def test_the_last_line_of_an_evaluation_is_one_json_object(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run_here(capsys, "evaluate", "retrieval", "data=x", "k=5", "rate=0.25", "seed=3")
    assert code == 0
    assert len(out.splitlines()) > 1
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    assert found["metrics"] == {"recall@5": 0.25, "undefined": None, "seen": 3.0}
    assert (found["task"], found["seed"]) == ("retrieval", 3)
    assert found["seconds"] >= 0
    assert len(found["config"]) == 12


@pytest.mark.usefixtures("task")
def test_the_config_of_an_evaluation_is_named_by_its_options_alone() -> None:
    one = tasks.run("retrieval", {"data": "x", "k": "20"})["config"]
    assert tasks.run("retrieval", {"data": "x"})["config"] == one
    assert tasks.run("retrieval", {"data": "y"})["config"] != one
    assert tasks.run("sequence", {"data": "x"})["config"] != one


@pytest.mark.usefixtures("task")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "evaluate retrieval needs data="),
        ({"data": "x", "seeed": "1"}, "the nearest is 'seed'"),
        ({"data": "x", "k": "many"}, "k is 'many'; a whole number is needed"),
        ({"data": "x", "rate": "much"}, "rate is 'much'; a number is needed"),
    ],
)
def test_an_option_that_a_task_does_not_take_is_named(options: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tasks.run("retrieval", options)


@pytest.mark.parametrize("name", tasks.AVAILABLE)
def test_every_available_task_says_which_options_it_needs(name: str) -> None:
    with pytest.raises(ValueError, match=f"evaluate {name} needs [a-z]+="):
        tasks.run(name, {})


def test_an_unknown_task_is_told_what_there_is() -> None:
    with pytest.raises(ValueError, match=r"no task 'sesion'; the nearest is 'session' \(there are retrieval, "):
        tasks.run("sesion", {})


class FakeClient:
    """Answers every call with one slate."""

    def __init__(self, target: str, **_: object) -> None:
        self.target = target

    def __enter__(self) -> "FakeClient":
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def recommend(self, _: str, /, **__: object) -> ShownSlate:
        item = ShownItem("12", 0.25, "Paper Moons", "drama", 1.5, {}, ("ann",), ("SIMILAR_TO:7", "EXPLORED"))
        return ShownSlate("r1", "t", "000001-00000000", (item,), -1.4, (), (), {})

    def rank(self, item_ids: list[str], **_: object) -> ShownSlate:
        named = tuple(ShownItem(item_id, 1.0, "Night Ferry") for item_id in item_ids)
        return ShownSlate("r2", "t", "000001-00000000", named, 0.0, (), (), {})


def test_a_call_prints_titles_with_propensities_sources_and_reasons(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("serving.client.CascadeClient", FakeClient)
    code, out, _ = run_here(capsys, "call", "recommend", "--user", "1", "--target", "x:1")
    assert code == 0
    shown = out.splitlines()[1]
    assert shown.split("  ")[0].strip() == "1"
    for part in ("Paper Moons", "drama", "1.500", "0.25", "ann", "similar to Night Ferry, explored"):
        assert part in shown


def test_without_a_server_a_call_starts_one_that_answers_as_of_when_the_user_was_last_seen(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, object]] = []
    started: list[list[str]] = []

    class Recording(FakeClient):
        def recommend(self, user_id: str, /, **named: object) -> ShownSlate:
            asked.append((user_id, named["time_ms"]))
            return super().recommend(user_id)

    @contextmanager
    def server_process(folder: Path, overrides: Sequence[str]) -> Iterator[tuple[str, str]]:
        assert (folder / "history.parquet").exists()
        started.append(list(overrides))
        yield "x:1", "x:2"

    monkeypatch.setattr("serving.client.CascadeClient", Recording)
    monkeypatch.setattr("training.server_process.server_process", server_process)
    monkeypatch.chdir(tmp_path)
    Path("outputs/latest/generations").mkdir(parents=True)
    history = pl.DataFrame({"user_id": ["1", "1", "2"], "visible_ms": [5_000, 7_000, 9_000]})
    history.write_parquet("outputs/latest/history.parquet")
    for user, at_ms, seen in (("1", 67_000, "user 1"), ("2", 69_000, "user 2"), ("3", 69_000, "anybody")):
        code, out, err = run_here(capsys, "call", "recommend", "--user", user)
        assert code == 0
        assert "Paper Moons" in out
        assert err.count("\n") == 1
        assert f"just after {seen} was last seen" in err
        assert asked[-1] == (user, at_ms)
    assert all(not any(f"log={tmp_path}" in each for each in overrides) for overrides in started)
    assert run_here(capsys, "call", "event", "12")[0] == 2
    assert len(started) == 3


def test_a_server_that_died_is_not_called(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    monkeypatch.chdir(tmp_path)
    Path("outputs/latest").mkdir(parents=True)
    Path("outputs/latest/server.json").write_text(json.dumps({"target": "x", "admin_target": "y", "pid": ended.pid}))
    code, _, err = run_here(capsys, "call", "status")
    assert code == 2
    assert "no server is running; start one: `cascade serve`" in err
