"""Searches the settings of one stage for the best metric: an Optuna study that outlives its processes.

The study is `<output>/study.db`; trial n trains in `<output>/<n>`. Workers are processes that take trials from the
study one by one. Whoever runs a trial holds a lock in its folder, which the system frees with the process: a trial that
runs and is not locked has died, and counts for nothing. A killed sweep is the same study with fewer trials.

Of Optuna's states, COMPLETE is a trial that trained, PRUNED one whose settings training refused (the sampler then keeps
away from such), FAIL one that died.
"""

import fcntl
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import IO, Any

import numpy as np
import optuna
import torch
from optuna.distributions import BaseDistribution, CategoricalDistribution, FloatDistribution, IntDistribution
from optuna.trial import FrozenTrial, TrialState

from training import configuration
from training.configuration import Choices, Range
from training.learning import run_record
from training.learning.run_record import Source
from training.reports.findings import flat
from training.settings import SweepSettings, TrainSettings

_ROOT = "train"
_REPORTED = {"tower": "retrieval.", "ranker": "ranker."}
_STAGES = {"tower": "towers.", "ranker": "ranker."}
_DRAWS = 100
"""How often a new combination is drawn before the space counts as exhausted."""
_REFUSAL = "refusal.txt"
_POLL_S = 0.5
_FREE = ("trials", "workers")
"""What may change between runs of one sweep."""


class MetricMissing(ValueError):
    """A metric that training does not report."""


@dataclass(frozen=True, slots=True)
class Swept:
    """A sweep that is done."""

    metric: str
    value: float
    """Of the best trial."""
    trial: int
    """The best."""
    command: str
    """Trains the best again, to the same metrics."""
    rows: Mapping[str, Mapping[str, Any]]
    """By trial, the best first: state, metric, what was searched, seconds."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """A sweep as it was told."""

    words: tuple[str, ...]
    """What all trials have."""
    settings: TrainSettings
    sweep: SweepSettings

    @classmethod
    def of(cls, words: Sequence[str]) -> "_Plan":
        settings: TrainSettings = configuration.settings(_ROOT, words)
        if not isinstance(settings.sweep, SweepSettings) or settings.origin is None:
            raise ValueError("a sweep must be named: sweep=tower or sweep=ranker")
        own = ("sweep", "output")
        kept = [
            text for text in settings.origin.words if text.lstrip("+").partition("=")[0].partition(".")[0] not in own
        ]
        if not settings.sweep.metric.startswith(_REPORTED[settings.mode]):
            raise MetricMissing(
                f"sweep.metric is {settings.sweep.metric!r}; those of `cascade train {settings.mode}` begin with "
                f"{_REPORTED[settings.mode]!r}"
            )
        return cls(tuple(kept), settings, settings.sweep)

    def folder(self, trial: FrozenTrial) -> Path:
        """Where it trains."""
        return self.settings.output / str(trial.number)

    def settings_of(self, trial: FrozenTrial) -> TrainSettings:
        """The settings of one training."""
        chosen = [f"{key}={value}" for key, value in trial.params.items()]
        made: TrainSettings = configuration.settings(_ROOT, [*self.words, *chosen, f"output={self.folder(trial)}"])
        return made

    def space(self) -> dict[str, BaseDistribution]:
        """As Optuna wants it."""

        def distribution(held: Choices | Range) -> BaseDistribution:
            if isinstance(held, Choices):
                return CategoricalDistribution(held.texts)
            if held.whole:
                return IntDistribution(int(held.low), int(held.high), log=held.log, step=int(held.step or 1))
            return FloatDistribution(held.low, held.high, log=held.log, step=held.step)

        return {key: distribution(configuration.held(key, text)) for key, text in self.sweep.space.items()}


def run(words: Sequence[str], *, tell: Callable[[str], None]) -> Swept:
    """Run a sweep, or what is left of it, and return what it found.

    Args:
        words: overrides of `conf/train.yaml` that name a sweep.
        tell: gets a line for every trial that ends.

    Raises:
        ValueError: where the words are wrong, the metric is not reported, training refused all trials, or what lies in
            `output` is another sweep.
        ChildProcessError: where a worker was killed and no other did its work; the same words go on.
    """
    plan = _Plan.of(words)
    if plan.settings.mlflow is not None:
        run_record.require("mlflow", f"mlflow={plan.settings.mlflow}")
    for key, text in plan.sweep.space.items():
        for value in configuration.held(key, text).ends:
            configuration.settings(_ROOT, [*plan.words, f"{key}={value}"])
    _watch(plan, words, tell)
    return found(words)


def found(words: Sequence[str]) -> Swept:
    """What a sweep has found so far.

    Raises:
        ValueError: where no trial has come to its end.
    """
    plan = _Plan.of(words)
    ended = sorted(_ended(_study(plan)), key=lambda trial: _order(plan, trial))
    if not ended:
        raise ValueError(f"no trial of {plan.settings.output} has come to its end")
    best = ended[0]
    if best.value is None:
        raise ValueError(f"training refused all of {len(ended)} trials; the first: {_refusal(plan, best)}")
    record = json.loads(run_record.record_path(plan.settings_of(best)).read_text())
    return Swept(
        metric=plan.sweep.metric,
        value=best.value,
        trial=best.number,
        command=record["command"],
        rows={str(trial.number): _row(plan, trial) for trial in ended},
    )


def work(words: Sequence[str]) -> None:
    """Take trials until the sweep has as many as it should and none still runs, or whoever started this is gone."""
    plan = _Plan.of(words)
    study = _study(plan)
    sources = [(_key(plan.settings), Source.of(plan.settings))]
    _require_same(plan, study, sources[0][1])
    starter = os.getppid()
    space = plan.space()
    while os.getppid() == starter:
        if taken := _take(plan, study, space):
            trial, lock = taken
            with lock:
                _try(plan, study, trial, sources)
        elif study.get_trials(states=(TrialState.RUNNING,)):
            time.sleep(_POLL_S)  # another's, who may die
        else:
            return


def _study(plan: _Plan) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    plan.settings.output.mkdir(parents=True, exist_ok=True)
    with _alone(plan.settings.output):
        return optuna.create_study(
            # Optuna logs that it waits for SQLite's lock only after this long.
            storage=optuna.storages.RDBStorage(
                f"sqlite:///{plan.settings.output / 'study.db'}", engine_kwargs={"connect_args": {"timeout": 60}}
            ),
            study_name="sweep",
            direction=plan.sweep.direction,
            load_if_exists=True,
        )


def _require_same(plan: _Plan, study: optuna.Study, source: Source) -> None:
    """A study in which no trial came to anything takes any settings.

    Raises:
        ValueError: where the study is of other settings or other data, naming the first that differs.
    """
    assert plan.settings.origin is not None
    left_out = ("output", "mlflow", "engine")
    config = {name: value for name, value in plan.settings.origin.config.items() if name not in left_out}
    config["sweep"] = {name: value for name, value in config["sweep"].items() if name not in _FREE}
    ours = json.loads(json.dumps({**flat(config), "data.sha256": source.sha256}, default=str))
    with _alone(plan.settings.output):
        _bury(plan, study)
        theirs = study.user_attrs.get("settings")
        if theirs is None or all(trial.state == TrialState.FAIL for trial in study.get_trials()):
            study.set_user_attr("settings", ours)
            return
    differing = [name for name in sorted({*ours, *theirs}) if ours.get(name) != theirs.get(name)]
    if differing:
        name = differing[0]
        raise ValueError(
            f"{plan.settings.output} holds a sweep of other settings: {name} was {theirs.get(name)!r}, "
            f"is {ours.get(name)!r}; output=... begins another"
        )


def _take(
    plan: _Plan, study: optuna.Study, space: Mapping[str, BaseDistribution]
) -> tuple[FrozenTrial, IO[bytes]] | None:
    """The next trial and the lock on its folder; None where there are enough, or the space holds no other."""
    with _alone(plan.settings.output):
        _bury(plan, study)
        params = _drawn(plan, study.get_trials(), space)
        if params is None:
            return None
        study.add_trial(optuna.create_trial(state=TrialState.RUNNING, params=params, distributions=dict(space)))
        taken = study.get_trials()[-1]
        lock = _lock(plan.folder(taken))
        assert lock is not None
        return taken, lock


def _bury(plan: _Plan, study: optuna.Study) -> None:
    """Let the trials whose process is gone have failed."""
    for trial in study.get_trials(states=(TrialState.RUNNING,)):
        free = _lock(plan.folder(trial))
        if free is not None:
            free.close()
            study.tell(trial.number, state=TrialState.FAIL, skip_if_finished=True)


def _drawn(plan: _Plan, trials: list[FrozenTrial], space: Mapping[str, BaseDistribution]) -> dict[str, Any] | None:
    """The next combination: none that was tried, nor one under which a process died twice.

    It follows from the seed and from the trials that did not die, so that one worker finds the same however often it
    is killed.
    """
    died = [trial.params for trial in trials if trial.state == TrialState.FAIL]
    known = [trial for trial in trials if trial.state != TrialState.FAIL]
    tried = [trial.params for trial in known]
    for attempt in range(_DRAWS if len(known) < plan.sweep.trials else 0):
        seed = int(np.random.SeedSequence([plan.sweep.seed, len(known), attempt]).generate_state(1)[0])
        draft = optuna.create_study(
            direction=plan.sweep.direction,
            sampler=optuna.samplers.RandomSampler(seed=seed)
            if attempt
            else optuna.samplers.TPESampler(seed=seed, constant_liar=True),
        )
        draft.add_trials(known)
        params: dict[str, Any] = draft.ask(dict(space)).params
        if params not in tried and died.count(params) < 2:
            return params
    return None


def _try(plan: _Plan, study: optuna.Study, trial: FrozenTrial, sources: list[tuple[str, Source]]) -> None:
    """One training, told to the study. Settings that it refuses it would refuse again.

    Args:
        sources: what was read last; replaced where the trial reads something else.

    Raises:
        MetricMissing: where training does not report the metric.
    """
    try:
        settings = plan.settings_of(trial)
        if sources[0][0] != _key(settings):
            sources[0] = (_key(settings), Source.of(settings))
        metrics = run_record.train(settings, sources[0][1])
        if math.isnan(metrics.get(plan.sweep.metric, 0.0)):
            raise ValueError(f"{plan.sweep.metric} is not defined here: nan")
    except ValueError as error:
        (plan.folder(trial) / _REFUSAL).write_text(" ".join(str(error).split()))
        study.tell(trial.number, state=TrialState.PRUNED)
        return
    if plan.sweep.metric not in metrics:
        study.tell(trial.number, state=TrialState.FAIL)
        nearest = get_close_matches(plan.sweep.metric, metrics, 1, 0.0)
        raise MetricMissing(
            f"sweep.metric is {plan.sweep.metric!r}, which training does not report; the nearest is {nearest[0]!r} of "
            f"{', '.join(sorted(metrics))}"
        )
    study.tell(trial.number, metrics[plan.sweep.metric])


def _watch(plan: _Plan, words: Sequence[str], tell: Callable[[str], None]) -> None:
    """Start workers, tell what they do, and wait for them."""
    output, study = plan.settings.output, _study(plan)
    if before := len(_ended(study)):
        tell(f"{before} of {plan.sweep.trials} trials are there already")
    told = {trial.number for trial in study.get_trials() if trial.state.is_finished()}

    def tell_new() -> None:
        for trial in study.get_trials():
            if trial.state.is_finished() and trial.number not in told:
                told.add(trial.number)
                if trial.state == TrialState.FAIL:
                    tell(f"trial {trial.number} died")
                else:
                    tell(", ".join(f"{name} {value}" for name, value in _row(plan, trial).items()))

    with _workers(output, words, plan.sweep.workers) as processes:
        while any(process.poll() is None for process in processes):
            time.sleep(_POLL_S)
            tell_new()
            if any((process.returncode or 0) > 0 for process in processes):
                break
        tell_new()
    codes = [process.returncode for process in processes]
    for number, code in enumerate(codes):
        if code > 0:
            last = (output / f"worker-{number}.log").read_text(errors="replace").strip().rpartition("\n")[2]
            raise (ValueError if code == 2 else RuntimeError)(last or f"worker {number} ended with code {code}")
    if any(codes) and len(_ended(study)) < plan.sweep.trials:
        raise ChildProcessError(f"a worker was killed by signal {-min(codes)}; the same command goes on")


@contextmanager
def _workers(output: Path, words: Sequence[str], count: int) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """Processes that work on the sweep, with an equal share of the cores; stopped at the end."""
    environment = dict(os.environ)
    if count > 1:
        environment["OMP_NUM_THREADS"] = str(max(1, torch.get_num_threads() // count))
    processes = []
    try:
        for number in range(count):
            with (output / f"worker-{number}.log").open("wb") as file:
                command = [sys.executable, "-m", "training.learning.sweep", *words]
                processes.append(
                    subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, env=environment)
                )
        yield processes
    finally:
        for process in processes:
            if process.poll() is None:
                process.terminate()
        for process in processes:
            process.wait()


def _ended(study: optuna.Study) -> list[FrozenTrial]:
    return study.get_trials(states=(TrialState.COMPLETE, TrialState.PRUNED))


def _row(plan: _Plan, trial: FrozenTrial) -> dict[str, Any]:
    assert trial.duration is not None
    return {
        plan.sweep.metric: f"refused: {_refusal(plan, trial)}" if trial.value is None else f"{trial.value:.5g}",
        **{key.removeprefix(_STAGES[plan.settings.mode]): _short(value) for key, value in trial.params.items()},
        "seconds": round(trial.duration.total_seconds(), 1),
    }


def _refusal(plan: _Plan, trial: FrozenTrial) -> str:
    return (plan.folder(trial) / _REFUSAL).read_text()


def _order(plan: _Plan, trial: FrozenTrial) -> tuple[bool, float, int]:
    """The best first, those that were refused last."""
    if trial.value is None:
        return True, 0.0, trial.number
    return False, -trial.value if plan.sweep.direction == "maximize" else trial.value, trial.number


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _key(settings: TrainSettings) -> str:
    """Of what `Source.of` reads."""
    return f"{settings.data} {settings.seed} {settings.log}"


def _lock(folder: Path) -> IO[bytes] | None:
    """Held until it is closed or the process ends; None where another process holds it."""
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / ".lock").open("wb")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        return None
    return file


@contextmanager
def _alone(output: Path) -> Iterator[None]:
    """No other process of the sweep is in such a block meanwhile."""
    with (output / ".lock").open("wb") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    try:
        work(sys.argv[1:])
    except (ValueError, OSError) as error:
        sys.stderr.write(" ".join(str(error).split()) + "\n")
        sys.exit(2)
