"""The night as one straight line, which ends at the first red gate.

    ingest -> validate -> examples -> skew -> towers -> ranker -> embed -> index
           -> publish (gates) -> shadow -> canary -> activate

Every stage between the first and the last is kept under a name made of all that determines it
(`training.nightly.stages`), so that a night that was killed goes on where it was and makes what it would have made.
The ranker is trained anew or goes on from the one in force, and is calibrated in the same stage. `publish` holds the
sealed generation to its gates before it has a name. Until `activate` what is in force stays.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any, get_args

import numpy as np
import torch

from candidate_gen.features import FeatureTable
from candidate_gen.towers import Towers
from index.generations import GenerationStore
from index.leases import Lease
from index.placement import Placement, opened
from policy.ope import InsufficientOverlap
from ranking.rankers import bound, load_scorer
from serving.generation import Generation
from training import cycle, jobs, search_judged
from training.cycle import Prepared
from training.durable import appearing
from training.embeddings import embedded
from training.gates import Gate, GateFailed, ranker_gates, require, skew_gates
from training.learning.ranker import Earlier, split_by_time
from training.log import compaction
from training.nightly import contract, judges, prepared_files, report, trial
from training.nightly.inputs import NIGHT, Inputs, begun
from training.nightly.settings import NightlySettings, StageName
from training.nightly.stages import Figures, Stage, StageRun, keep_only, key
from training.nightly.trial import Candidate
from training.off_policy import passes, uplift
from training.progress import counted
from training.publish import Built, Judge, build_index
from training.rebuild import is_whole
from training.reports.findings import utc
from training.skew import sampled

STAGES: tuple[str, ...] = get_args(StageName)


class NightStopped(GateFailed):
    """A red gate, and where the page is; what is in force stays."""


@dataclass(slots=True)
class _Night:
    """One attempt at a night."""

    settings: NightlySettings
    store: GenerationStore
    inputs: Inputs
    stages: Mapping[str, Stage]
    run: StageRun
    job: Lease
    now_ms: int
    gates: list[Gate] = field(default_factory=list)
    broken: dict[str, int] = field(default_factory=dict)
    metrics: dict[str, float] = field(default_factory=dict)
    generation: str | None = None
    _loaded: dict[str, Generation] = field(default_factory=dict)

    def load(self, name: str) -> Generation:
        """A generation of the store, read once."""
        if name not in self._loaded:
            self._loaded[name] = Generation.load(self.store, name)
        return self._loaded[name]

    def figures(self, name: StageName, make: Callable[[Path], Mapping[str, Any]]) -> Figures:
        return self.run.figures(self.stages[name], make)

    def hold(self, gates: Sequence[Gate]) -> None:
        self.gates.extend(gates)
        require(gates)


def nightly(settings: NightlySettings, *, holder: str, now_ms: int) -> dict[str, Any]:
    """Make what was logged the next generation, and put it in force where every gate is green; what the report says.

    Args:
        holder: who this is, for others that want to do the same meanwhile.

    Raises:
        NightStopped: after the page is written; what is in force stays.
        LeaseHeld: another process does this; who, and since when.
        LeaseLost: this process was stopped for so long that another one took over.
        StaleExpected: another generation was put in force meanwhile. This one is published, not activated.
        ValueError: poison, an empty log, a data set that cannot be read.
        CorruptLog, LogUnavailable: see `training.log.served` and `CatalogLog`.
    """
    store = GenerationStore(settings.generations)
    if settings.dry_run:
        return _planned(settings, store)
    with store.job(jobs.JOB, holder=holder) as job:
        if settings.log is not None:
            with suppress(compaction.LogBusy):  # somebody else does it
                jobs.compacted(settings.log, settings.generations)
        inputs = begun(settings, store)
        stages = planned(settings, inputs)
        job.check()
        keep_only(settings.work, stages.values(), also=[NIGHT])
        inputs.night.write(settings.work)
        for stage in _again(settings, store, stages):
            stage.forget()
        with counted() as bar:
            night = _Night(settings, store, inputs, stages, StageRun(job, bar, stages=len(stages)), job, now_ms)
            try:
                _go(night)
            except (GateFailed, InsufficientOverlap) as error:
                return _stopped(night, error)
        replace(inputs.night, generation=night.generation, over=True).write(settings.work)
        told = _described(night, verdict="in force" if settings.activate else "published", told="Every gate is green.")
        report.write(told, settings.output)
        return report.told(told)


def planned(settings: NightlySettings, inputs: Inputs) -> dict[str, Stage]:
    """The stages of a night by name, in their order, each named after what determines it.

    Raises:
        OSError: where a list of judgments cannot be read.
    """
    of = settings.cycle
    keys = {"inputs": key(passes.program(), inputs.night.digest, inputs.night.seq)}

    def stage(name: StageName, *told: object, after: Sequence[str] = ("inputs",)) -> None:
        keys[name] = key(name, [keys[each] for each in after], *told)

    threads, trained = torch.get_num_threads(), asdict(of.ranker)
    stage("validate")
    stage("examples", of.tower_positives, of.tower_hard_negatives, trained, dict(of.retrieval.boosts))
    stage("skew")
    stage("towers", asdict(of.towers), settings.seed, threads, after=["examples"])
    stage("ranker", trained, _digest(of.ranker.judged.judgments), settings.seed, threads, after=["examples"])
    stage("embed", after=["towers"])
    stage("index", asdict(of.index), after=["embed"])
    stage("publish", asdict(of), _digest(of.gates.search.judgments), after=["skew", "ranker", "index"])
    stage("shadow", asdict(settings.trial), after=["publish"])
    stage("canary", asdict(settings.trial), after=["publish"])
    return {name: Stage(name, settings.work / f"{name}-{keys[name]}") for name in STAGES}


def _digest(judgments: str | None) -> str:
    """Of what a judgement list holds, whatever its path."""
    return sha256(Path(judgments).read_bytes()).hexdigest() if judgments else ""


def _go(night: _Night) -> None:
    settings, store, inputs = night.settings, night.store, night.inputs
    found = night.figures("validate", lambda _: asdict(contract.found_in(inputs.whole)))
    night.broken = found["broken"]
    night.hold(contract.contract_gates(settings.contract, found["figures"]))

    table, earlier = cycle.left_by(store, inputs.night.incumbent, settings.cycle)
    night.figures("examples", lambda folder: _examples(night, table, earlier, folder))
    prepared = prepared_files.load(night.stages["examples"].folder, earlier)
    night.metrics |= night.figures("skew", lambda _: _skew(night))
    night.hold(skew_gates(settings.cycle.gates, night.metrics))

    night.metrics |= night.figures("towers", lambda folder: _towers(night, prepared, folder))
    towers = Towers.load(night.stages["towers"].folder, prepared.table)
    night.metrics |= night.figures("ranker", lambda folder: _ranker(night, prepared, folder))
    night.hold(ranker_gates(settings.cycle.gates, night.metrics, action=prepared.table.actions[0]))

    night.figures("embed", lambda folder: _embed(night, prepared, towers, folder))
    night.figures("index", lambda folder: _index(night, prepared, towers, folder))

    published = night.figures("publish", lambda _: _publish(night, prepared, towers))
    night.gates += [Gate(**each) for each in published["gates"]]
    night.metrics, night.generation = published["metrics"], published["generation"]
    replace(inputs.night, generation=night.generation).write(settings.work)
    if settings.activate:
        _activate(night)


def _examples(night: _Night, table: FeatureTable | None, earlier: Earlier | None, folder: Path) -> Figures:
    settings, inputs = night.settings.cycle, night.inputs
    prepared = cycle.prepare(
        inputs.dataset,
        as_of_ms=inputs.as_of_ms,
        tower_positives=settings.tower_positives,
        tower_hard_negatives=settings.tower_hard_negatives,
        served=inputs.served,
        table=table,
        earlier=earlier,
        changes=inputs.changes,
        boosts=settings.retrieval.boosts,
        engine=night.settings.engine,
    )
    prepared_files.save(prepared, folder)
    return {"examples": len(prepared.examples)}


def _skew(night: _Night) -> dict[str, float]:
    served = night.inputs.remembered
    return {} if served is None else sampled(served.impressions, night.store, night.inputs.with_known(served))


def _towers(night: _Night, prepared: Prepared, folder: Path) -> dict[str, float]:
    settings = night.settings
    towers, metrics = cycle.fit_towers(
        prepared, settings.cycle, seed=settings.seed, folder=settings.output, engine=settings.engine
    )
    towers.save(folder)
    return {f"retrieval.{name}": value for name, value in metrics.items()}


def _ranker(night: _Night, prepared: Prepared, folder: Path) -> dict[str, float]:
    settings = night.settings
    ranker, calibration, metrics = cycle.fit_ranker(
        prepared, settings.cycle, seed=settings.seed, folder=settings.output, engine=settings.engine
    )
    bound(ranker, calibration, prepared.table, jobs.catalogue(prepared)).save(folder)
    return {f"ranker.{name}": value for name, value in metrics.items()}


def _embed(night: _Night, prepared: Prepared, towers: Towers, folder: Path) -> Figures:
    parts, engine = night.stages["embed"].parts, night.settings.engine
    vector_ID = embedded(towers, np.asarray(prepared.item_row_I), parts, engine=engine)
    np.save(folder / "vector_ID.npy", vector_ID, allow_pickle=False)
    return {"vectors": len(vector_ID)}


def _vectors(night: _Night) -> np.ndarray:
    path = night.stages["embed"].folder / "vector_ID.npy"
    return np.asarray(np.load(path, mmap_mode="r", allow_pickle=False))


def _index(night: _Night, prepared: Prepared, towers: Towers, folder: Path) -> Figures:
    built = build_index(
        cycle.items_of(prepared, _vectors(night)),
        night.settings.cycle.index,
        towers=towers.fingerprint,
        query_BD=towers.encode_queries(cycle.held_out_queries(prepared)),
        engine=night.settings.engine,
    )
    built.index.save(folder)
    return {"latency_ms": built.latency_ms}


def _publish(night: _Night, prepared: Prepared, towers: Towers) -> Figures:
    settings, stages = night.settings.cycle, night.stages
    vector_ID = _vectors(night)
    items = cycle.items_of(prepared, vector_ID)
    trained = load_scorer(stages["ranker"].folder, prepared.table, jobs.catalogue(prepared))
    precision = cycle.precision_of(trained.ranker, prepared, settings)
    scorer = bound(trained.ranker, trained.calibration, prepared.table, items, precision=precision)
    index = opened(stages["index"].folder, vector_ID, Placement(device="cpu"))
    published = cycle.offer(
        prepared,
        cycle.parts_of(prepared, items, towers, scorer, settings),
        Built(index, stages["index"].figures()["latency_ms"]),
        settings=settings,
        metrics=night.metrics,
        store=night.store,
        parent=night.inputs.night.incumbent,
        now_ms=night.now_ms,
        judges=[_remembered(stages["publish"].parts / name, each) for name, each in _judges(night, prepared).items()],
        job=night.job,
    )
    return asdict(published) | {"generation": published.id}


def _judges(night: _Night, prepared: Prepared) -> dict[str, Judge]:
    """What is asked of a sealed generation, the cheap and the certain first."""
    gates, store, inputs = night.settings.cycle.gates, night.store, night.inputs
    told, incumbent = gates.incumbent, inputs.night.incumbent
    logged = inputs.newest[-told.replayed :]
    _, held_out = split_by_time(prepared.examples, night.settings.cycle.ranker.validation)
    asked: dict[str, Judge] = {
        "size": partial(judges.size_judged, settings=told, incumbent=incumbent, store=store),
        "replay": partial(judges.replay_judged, logged=logged, store=store, load=night.load),
        "offline": partial(
            judges.offline_judged, settings=told, held_out=held_out, incumbent=incumbent, load=night.load
        ),
        "latency": partial(
            judges.latency_judged, settings=told, logged=logged, incumbent=incumbent, store=store, load=night.load
        ),
    }
    if gates.search.judgments is not None:
        asked["search"] = partial(search_judged.judged, settings=gates.search, incumbent=incumbent, load=night.load)
    if gates.uplift.hours and incumbent is not None and night.settings.log is not None:
        log = night.settings.log
        asked["uplift"] = partial(uplift.judged, settings=gates.uplift, incumbent=incumbent, log=log, store=store)
    return asked


def _remembered(path: Path, judge: Judge) -> Judge:
    """The judge, asked until the gate is green: one that is red may be of a busy machine."""

    def ask(generation: Generation) -> tuple[Gate, Mapping[str, float]]:
        with suppress(FileNotFoundError):
            gate, figures = json.loads(path.read_text())
            return Gate(**gate), figures
        found, measured = judge(generation)
        if found.passed:
            with appearing(path) as draft:
                draft.write_text(json.dumps([asdict(found), dict(measured)]))
        return found, measured

    return ask


def _activate(night: _Night) -> None:
    """Try the generation where another one is in force, and put it in force."""
    settings, incumbent, made = night.settings.trial, night.inputs.night.incumbent, night.generation
    assert made is not None
    if incumbent is not None and night.store.current() != made:
        candidate = Candidate(made, incumbent, night.store, night.load, night.inputs.newest)
        steps: dict[StageName, Callable[[], trial.Tried]] = {
            "shadow": partial(trial.shadow, candidate, settings),
            "canary": partial(trial.canary, candidate, settings),
        }
        log = night.settings.log
        if settings.server is not None and log is not None:
            since_ms = night.inputs.night.until_ms
            steps = {
                "shadow": partial(
                    trial.shadow_on_server, candidate, settings, log=log, since_ms=since_ms, job=night.job
                ),
                "canary": partial(trial.canary_on_server, candidate, settings, job=night.job),
            }
        for name, step in steps.items():
            tried = night.figures(name, partial(_tried, step))
            night.gates += [Gate(**each) for each in tried["gates"]]
            night.metrics |= tried["figures"]
    if night.store.current() != made:
        night.store.activate(made, time_ms=night.now_ms, reason="cascade nightly", expected=incumbent, job=night.job)


def _tried(step: Callable[[], trial.Tried], _: Path) -> Figures:
    """What a trial found; one that is red is not kept, for the next attempt may meet a calmer machine."""
    gates, figures = step()
    require(gates)
    return {"gates": [asdict(each) for each in gates], "figures": figures}


def _again(settings: NightlySettings, store: GenerationStore, stages: Mapping[str, Stage]) -> list[Stage]:
    """Stages that are to be done again though they are done."""
    if settings.from_stage is not None:
        return [stages[name] for name in STAGES[STAGES.index(settings.from_stage) :]]
    publish = stages["publish"]
    return [publish] if publish.done and not is_whole(store, publish.figures()["generation"]) else []


def _planned(settings: NightlySettings, store: GenerationStore) -> dict[str, Any]:
    inputs = begun(settings, store)
    stages = planned(settings, inputs)
    again = _again(settings, store, stages)
    of = {name: "cached" if each.done and each not in again else "to do" for name, each in stages.items()}
    logged = 0 if inputs.served is None else len(inputs.served.impressions)
    return {
        "ingest": f"{logged:,} impressions as of {utc(inputs.as_of_ms)}",
        "in force": inputs.night.incumbent or "nothing",
        **of,
        "activate": "to do" if settings.activate else "not asked for",
    }


def _stopped(night: _Night, error: Exception) -> dict[str, Any]:
    """
    Raises:
        NightStopped: in any case.
    """
    gates = error.gates if isinstance(error, GateFailed) else ()
    if all(gate.passed for gate in (*night.gates, *gates)):
        gates = (*gates, Gate(f"{night.run.at}.known", float("nan"), "known", passed=False))
    night.gates += gates
    replace(night.inputs.night, generation=night.generation, over=True).write(night.settings.work)
    page = report.write(_described(night, verdict="stopped", told=str(error)), night.settings.output)
    raise NightStopped(f"{night.run.at}: {error}; see {page}", tuple(night.gates)) from error


def _described(night: _Night, *, verdict: str, told: str) -> dict[str, Any]:
    went = {each.stage: each for each in night.run.went}
    stages = []
    for name in STAGES:
        state = "not reached" if name not in went else "cached" if went[name].cached else "done"
        red = verdict == "stopped" and name == night.run.at
        stages.append(
            {"stage": name, "state": "red" if red else state, "seconds": went[name].seconds if name in went else None}
        )
    served = night.inputs.served
    return {
        "verdict": verdict,
        "told": told,
        "as_of": utc(night.inputs.as_of_ms),
        "impressions": 0 if served is None else len(served.impressions),
        "incumbent": night.inputs.night.incumbent,
        "generation": night.generation,
        "current": night.store.current(),
        "digest": night.inputs.night.digest,
        "stages": stages,
        "gates": [asdict(each) for each in dict.fromkeys(night.gates)],
        "broken": night.broken,
        "metrics": night.metrics,
    }
