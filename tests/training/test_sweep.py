"""Sweeps: what is drawn, what is left after death, and that the best can be trained again."""

import json
import math
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import polars as pl
import pytest

from training.learning import run_record, sweep
from training.learning.run_record import Source
from training.settings import TrainSettings

ROOT = Path(__file__).parents[2]
METRIC = "retrieval.recall@50"
RATE = "towers.learning_rate"
FIXED = (
    *("towers.temperature=0.1", "towers.uniform_negatives=16"),
    *("towers.shape.embedding=8", "towers.shape.id_dropout=0.0"),
)
"""What `conf/sweep/tower.yaml` searches beside the learning rate."""


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Words for a data set in which a quarter of the users takes from a quarter of the items."""
    folder = tmp_path_factory.mktemp("shop")
    rng = np.random.default_rng(0)
    user_N = rng.integers(40, size=600)
    item_N = 4 * rng.integers(15, size=600) + user_N % 4
    time_s_N = 1_700_000_000 + np.sort(rng.integers(20 * 86_400, size=600))
    log = pl.DataFrame({"user_id": user_N.astype(str), "item_id": item_N.astype(str), "time": time_s_N})
    log.write_parquet(folder / "interactions.parquet")
    return ["data=parquet", f"data.root={folder}", "data.items=null", "data.time_unit=s", "towers=small"]


@pytest.fixture
def words(shop: list[str], tmp_path: Path) -> list[str]:
    """Of a sweep over the learning rate."""
    return ["mode=tower", "sweep=tower", *shop, *FIXED, f"output={tmp_path / 'swept'}", "sweep.trials=3"]


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[TrainSettings]:
    """Settings of every training, which costs nothing here and likes a learning rate of .005 best."""
    seen: list[TrainSettings] = []

    def train(settings: TrainSettings, source: Source) -> dict[str, float]:
        seen.append(settings)
        path = run_record.record_path(settings)
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"command": f"train {settings.output.name}"}))
        return {METRIC: -abs(math.log(settings.cycle.towers.learning_rate / 0.005))}

    monkeypatch.setattr(run_record, "train", train)
    return seen


def dying(monkeypatch: pytest.MonkeyPatch, *, at: int) -> None:
    """Let the trainings from number `at` on never return."""
    train, count = run_record.train, iter(range(1000))

    def die(settings: TrainSettings, source: Source | None = None) -> dict[str, float]:
        if next(count) >= at:
            raise KeyboardInterrupt
        return train(settings, source)

    monkeypatch.setattr(run_record, "train", die)


def trials(words: list[str], *states: str) -> list[Any]:
    """Those of the study that ended like this, all where no state is named."""
    output = next(each.removeprefix("output=") for each in words if each.startswith("output="))
    study = optuna.load_study(study_name="sweep", storage=f"sqlite:///{output}/study.db")
    return [each for each in study.get_trials() if not states or each.state.name in states]


def params(words: list[str]) -> list[dict[str, Any]]:
    """Of the trials that ended with a value, in their order."""
    return [each.params for each in trials(words, "COMPLETE")]


def at_another(words: list[str], output: Path) -> list[str]:
    return [f"output={output}" if each.startswith("output=") else each for each in words]


def test_every_trial_is_within_its_ranges_and_trains_in_a_folder_of_its_own(
    words: list[str], trained: list[TrainSettings], tmp_path: Path
) -> None:
    more = ("towers.batch=int(interval(32, 40))", "towers.shape.heads=1,2", "towers.epochs=range(2, 9, 3)")
    sweep.work([*(each for each in words if "id_dropout" not in each), *more])
    assert len(trained) == len({made.output for made in trained}) == 3
    for number, made in enumerate(trained):
        towers = made.cycle.towers
        assert made.output == tmp_path / "swept" / str(number)
        assert made.sweep is None
        assert 0.001 <= towers.learning_rate <= 0.02
        assert 32 <= towers.batch <= 40
        assert towers.shape.heads in (1, 2)
        assert towers.epochs in (2, 5, 8)
        assert 0 <= towers.shape.id_dropout <= 0.3
        assert towers.temperature == 0.1
    assert len({made.cycle.towers.learning_rate for made in trained}) == 3


def test_a_sweep_that_died_ends_with_the_trials_of_one_that_did_not(
    words: list[str], trained: list[TrainSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = at_another(words, tmp_path / "whole")
    sweep.work(whole)
    with monkeypatch.context() as patched:
        dying(patched, at=2)
        with pytest.raises(KeyboardInterrupt):
            sweep.work(words)
    assert [each.state.name for each in trials(words)] == ["COMPLETE", "COMPLETE", "RUNNING"]
    sweep.work(words)
    assert params(words) == params(whole)
    assert [each.number for each in trials(words, "FAIL")] == [2]
    sweep.work(words)
    assert len(trials(words)) == 4


def test_a_combination_under_which_a_process_died_twice_is_left_alone(
    words: list[str], trained: list[TrainSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(2):
        with monkeypatch.context() as patched:
            dying(patched, at=0)
            with pytest.raises(KeyboardInterrupt):
                sweep.work(words)
    sweep.work(words)
    dead = [each.params for each in trials(words, "FAIL")]
    assert dead[0] == dead[1]
    assert dead[0] not in params(words)
    assert len(params(words)) == 3


def test_a_space_of_few_combinations_is_gone_through_once(words: list[str], trained: list[TrainSettings]) -> None:
    sweep.work([*words, f"{RATE}=0.01", "towers.batch=32,64", "towers.epochs=1,2,3", "sweep.trials=50"])
    tried = {(made.cycle.towers.batch, made.cycle.towers.epochs) for made in trained}
    assert len(trained) == len(tried) == 6


def test_a_worker_whose_starter_is_gone_takes_no_other_trial(
    words: list[str], trained: list[TrainSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    parents = iter([7, 7, 1, 1])
    monkeypatch.setattr(os, "getppid", lambda: next(parents))
    sweep.work(words)
    assert len(trained) == 1


def test_a_sweep_takes_more_trials_and_refuses_other_settings(words: list[str], trained: list[TrainSettings]) -> None:
    sweep.work(words)
    sweep.work([*words, "sweep.trials=4", "sweep.workers=3"])
    assert len(trained) == 4
    for other, told in (
        ("towers.epochs=3", "towers.epochs was 1, is 3"),
        ("sweep.seed=1", "sweep.seed was 0, is 1"),
        ("sweep.direction=minimize", "sweep.direction was 'maximize', is 'minimize'"),
        ("data.weights={click:3}", r"data\.sha256|data\.weights"),
    ):
        with pytest.raises(ValueError, match=told):
            sweep.work([*words, other])
    assert len(trained) == 4


def test_a_sweep_of_which_nothing_came_takes_other_settings(
    words: list[str], trained: list[TrainSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        dying(patched, at=0)
        with pytest.raises(KeyboardInterrupt):
            sweep.work(words)
    sweep.work([*words, "towers.epochs=3"])
    assert [made.cycle.towers.epochs for made in trained] == [3, 3, 3]


def test_other_data_under_the_same_name_is_another_sweep(
    words: list[str], trained: list[TrainSettings], tmp_path: Path
) -> None:
    sweep.work(words)
    root = Path(next(each.removeprefix("data.root=") for each in words if each.startswith("data.root=")))
    path = root / "interactions.parquet"
    before = path.read_bytes()
    try:
        pl.read_parquet(path).slice(1).write_parquet(path)
        with pytest.raises(ValueError, match=r"data\.sha256 was"):
            sweep.work(words)
    finally:
        path.write_bytes(before)


def test_a_metric_that_is_not_reported_names_the_nearest_and_leaves_the_folder_free(
    words: list[str], trained: list[TrainSettings]
) -> None:
    with pytest.raises(sweep.MetricMissing, match=r"the nearest is 'retrieval\.recall@50'"):
        sweep.work([*words, "sweep.metric=retrieval.recal@50"])
    sweep.work(words)
    assert len(params(words)) == 3


def test_what_training_refuses_is_a_trial_and_the_best_is_among_the_others(
    words: list[str], trained: list[TrainSettings], monkeypatch: pytest.MonkeyPatch
) -> None:
    accept = run_record.train

    def refuse(settings: TrainSettings, source: Source | None = None) -> dict[str, float]:
        if settings.cycle.towers.batch == 32:
            raise ValueError("32 is\ntoo few")
        if settings.cycle.towers.batch == 64:
            return {METRIC: math.nan}
        return accept(settings, source)

    monkeypatch.setattr(run_record, "train", refuse)
    small = [*words, f"{RATE}=0.01", "towers.batch=32,64,96"]
    sweep.work(small)
    refused = {each.params["towers.batch"]: each.number for each in trials(small, "PRUNED")}
    assert [each.params["towers.batch"] for each in trials(small, "COMPLETE")] == ["96"]
    swept = sweep.found(small)
    assert swept.value == trials(small, "COMPLETE")[0].value
    assert swept.rows[str(refused["32"])][METRIC] == "refused: 32 is too few"
    assert swept.rows[str(refused["64"])][METRIC] == f"refused: {METRIC} is not defined here: nan"


def test_where_training_refuses_everything_the_first_refusal_is_told(
    words: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_record, "train", lambda settings, _: int(settings.output.name + " is refused"))
    sweep.work(words)
    with pytest.raises(ValueError, match=r"training refused all of 3 trials; the first: .*'0 is refused'"):
        sweep.found(words)


@pytest.mark.parametrize(("direction", "best"), [("maximize", max), ("minimize", min)])
def test_the_best_is_the_most_or_the_least(
    direction: str, best: Callable[[Iterable[float]], float], words: list[str], trained: list[TrainSettings]
) -> None:
    words = [*words, f"sweep.direction={direction}"]
    with pytest.raises(ValueError, match=r"no trial of .* has come to its end"):
        sweep.found(words)
    sweep.work(words)
    swept = sweep.found(words)
    value_by_trial = {each.number: each.value for each in trials(words)}
    assert len(value_by_trial) == 3
    assert swept.value == best(value_by_trial.values()) == value_by_trial[swept.trial]
    assert swept.command == f"train {swept.trial}"
    assert [int(name) for name in swept.rows] == sorted(
        value_by_trial, key=lambda number: value_by_trial[number], reverse=direction == "maximize"
    )


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("sweep.trials=0", "trials is 0; it must be at least 1"),
        ("sweep.workers=0", "workers is 0; it must be at least 1"),
        ("sweep.direction=up", "direction is 'up'; it must be 'maximize' or 'minimize'"),
        ("sweep.seed=-1", "seed is -1; it must not be negative"),
        (f"{RATE}=0.01", "space is empty"),
        (f"{RATE}=interval(0.1, 0.01)", "the range is empty"),
        (f"{RATE}=-1,0.1", "learning_rate is -1"),
        ("towers.epochs=interval(1, 3)", "epochs is 1.0; a whole number is needed"),
        ("towers.epocs=1,2", "the nearest is 'towers.epochs'"),
        ("sweep.metric=ranker.ndcg@10", "those of `cascade train tower` begin with 'retrieval.'"),
        ("sweep=towr", "the nearest is 'tower'"),
    ],
)
def test_what_is_wrong_is_named_before_anything_is_written(word: str, told: str, words: list[str]) -> None:
    with pytest.raises(ValueError, match=told):
        sweep.run([*words, word], tell=print)
    output = next(each.removeprefix("output=") for each in words if each.startswith("output="))
    assert not Path(output).exists()


@pytest.fixture
def killed(words: list[str]) -> list[str]:
    """Words of a sweep, all workers of which were killed in the second trial."""
    command = [sys.executable, "-m", "training.learning.sweep", *words]
    output = Path(next(each.removeprefix("output=") for each in words if each.startswith("output=")))
    with subprocess.Popen(command, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"}) as worker:
        # Not through the study: who opens it while its worker makes it would make it too.
        while not (output / "1").exists():
            assert worker.poll() is None
            time.sleep(0.1)
        worker.kill()
    return words


@pytest.mark.slow
def test_killed_it_goes_on_with_two_workers_and_its_command_trains_the_best_again(
    killed: list[str], trained: list[TrainSettings], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = at_another(killed, tmp_path / "whole")
    sweep.work(whole)
    assert [each.state.name for each in trials(killed)] == ["COMPLETE", "RUNNING"]
    told: list[str] = []
    swept = sweep.run([*killed, "sweep.workers=2"], tell=told.append)
    ended = trials(killed, "COMPLETE")
    assert sorted(each.params[RATE] for each in ended) == sorted(each[RATE] for each in params(whole))
    assert len(trials(killed, "FAIL")) == 1
    assert told[0] == "1 of 3 trials are there already"
    assert len(told) == 4
    assert swept.value == max(each.value for each in ended)
    assert next(iter(swept.rows)) == str(swept.trial)
    assert len(swept.rows) == 3

    assignment, name, *again = shlex.split(swept.command)
    assert name == "cascade"
    variable, _, threads = assignment.partition("=")
    environment = os.environ | {variable: threads, "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-m", "training.cli", *again], cwd=tmp_path, env=environment, check=True)
    record = json.loads((tmp_path / "outputs/train/towers/run.json").read_text())
    assert record["metrics"][METRIC] == swept.value
    best = json.loads((tmp_path / "swept" / str(swept.trial) / "towers/run.json").read_text())
    assert record["config"]["towers"] == best["config"]["towers"]
    assert record["data"] == best["data"]
    ours, theirs = tmp_path / "swept" / str(swept.trial), tmp_path / "outputs/train"
    weights = Path("towers/towers.safetensors")
    assert (ours / weights).read_bytes() == (theirs / weights).read_bytes()
