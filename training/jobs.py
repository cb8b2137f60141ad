"""The jobs of the command line: settings in, what is to be told out. Each is a few calls of what does the work."""

import json
import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from socket import gethostname
from typing import Any

import numpy as np
import polars as pl
import torch

from candidate_gen.items import Items
from candidate_gen.towers import Towers
from index.generations import GenerationStore
from index.leases import Lease
from policy.ope import require_overlap
from policy.settings import PolicySettings
from protos.admin_pb2 import SetTrafficRequest
from protos.impression_pb2 import Impression
from ranking.rankers import bound, load_scorer
from serving.clock import now_ms
from serving.generation import Generation
from serving.log.catalog_log import FILE, CatalogLog, Entry
from serving.log.impression_log import CorruptLog
from training import cycle
from training import experiment as experiments
from training import rebuild as rebuilds
from training import skew as skews
from training.cycle import Prepared
from training.datasets.catalogue import head_of
from training.datasets.dataset import EVENT_SCHEMA, Dataset, synthesise_impressions
from training.datasets.tables import read_table
from training.durable import appearing
from training.gates import GateFailed, require, skew_gates
from training.log import compaction
from training.log.compaction import Compacted, Verified
from training.log.impression_log import read_impressions
from training.log.served import ServedLog, read_events, shown
from training.monitoring import job as monitoring
from training.off_policy import passes
from training.off_policy.estimate import of_surface, rewarded
from training.off_policy.uplift import estimated
from training.progress import progress
from training.publish import Published
from training.reports import estimate_report, experiment_report, rebuild_report, skew_report
from training.settings import (
    Data,
    DataSettings,
    EstimateSettings,
    ExperimentSettings,
    LogSettings,
    PublishSettings,
    RebuildSettings,
    ReplaySettings,
    SkewSettings,
    TrainSettings,
)
from training.simulation.world import World

monitor = monitoring.monitor
_FIRST_DAYS, _FIRST_REQUESTS = 10, 8000
_METRICS = "metrics.json"
JOB = "nightly"


class ReplayMismatch(ValueError):
    """Logged requests that gave another answer."""


class SkewOverBudget(ValueError):
    """Features that are over their budget; the message says which, and by what."""


def data(settings: DataSettings) -> dict[str, Any]:
    """Read and check a data set; returns how much it holds."""
    dataset = read(settings.data, seed=settings.seed)
    frames = {name: getattr(dataset, name) for name in ("items", "users", "impressions", "events")}
    if settings.output is not None:
        _write_tables(frames, settings.output)
    counted = Counter(dataset.events["action"])
    times = dataset.events["time_ms"]
    return {
        **{name: frame.height for name, frame in frames.items()},
        **{f"events.{action}": counted[action] for action in dataset.actions},
        "weights": dict(dataset.weights),
        "first event": _utc(times.min()),
        "last event": _utc(times.max()),
        "user columns": list(dataset.user_columns),
        "item columns": list(dataset.item_columns),
    }


def train(settings: TrainSettings) -> dict[str, float]:
    """Train one stage and leave it in `output/<stage>`; returns its metrics."""
    prepared = _prepared(settings)
    work = settings.output / "work"
    if settings.mode == "tower":
        towers, metrics = cycle.fit_towers(
            prepared, settings.cycle, seed=settings.seed, folder=work, engine=settings.engine
        )
        named = {f"retrieval.{name}": value for name, value in metrics.items()}
        _leave(settings.output / "towers", towers.save, named)
    else:
        ranker, calibration, metrics = cycle.fit_ranker(
            prepared, settings.cycle, seed=settings.seed, folder=work, engine=settings.engine
        )
        scorer = bound(ranker, calibration, prepared.table, catalogue(prepared))
        named = {f"ranker.{name}": value for name, value in metrics.items()}
        _leave(settings.output / "ranker", scorer.save, named)
    return named


def export(settings: PublishSettings) -> dict[str, Any]:
    """Publish what `train` left.

    Raises:
        ValueError: where a stage was not trained, or on other features.
        GateFailed: naming every red gate.
    """
    metrics: dict[str, float] = {}
    for stage, word in (("towers", "tower"), ("ranker", "ranker")):
        path = settings.output / stage / _METRICS
        if not path.exists():
            raise ValueError(f"{path} is missing; first `cascade train {word} output={settings.output}`")
        metrics |= json.loads(path.read_text())
    store = GenerationStore(settings.generations)
    with store.job(JOB, holder=holder()) as job:
        prepared = _prepared(settings)
        towers = Towers.load(settings.output / "towers", prepared.table)
        scorer = load_scorer(settings.output / "ranker", prepared.table, catalogue(prepared))
        published = cycle.export(
            prepared,
            towers,
            scorer.ranker,
            scorer.calibration,
            settings=settings.cycle,
            metrics=metrics,
            store=store,
            now_ms=now_ms(),
            job=job,
            engine=settings.engine,
        )
        return _activated(store, published, settings.activate, job) | published.metrics


def rebuild(settings: RebuildSettings) -> dict[str, Any]:
    """A generation with the changes of the catalogue folded in, and a new index; models stay as they are.

    Raises:
        GateFailed, LeaseHeld, LeaseLost, StaleExpected: see `training.rebuild`.
    """
    report = rebuilds.rebuild(settings, holder=holder(), now_ms=now_ms())
    return rebuild_report.told(report) | {"current": GenerationStore(settings.generations).current()}


def log(settings: LogSettings) -> dict[str, Any]:
    """Look after an impression log.

    Raises:
        CorruptLog: where a file is damaged, once all the others have been seen to.
        LogBusy, LogUnavailable, ValueError: see `training.log.compaction.compact`.
    """
    if settings.mode == "status":
        return compaction.status(settings.log)
    done: Compacted | Verified
    if settings.mode == "verify":
        done = compaction.verify(settings.log, quarantine=settings.quarantine)
    else:
        done = compacted(settings.log, settings.generations, recent_minutes=settings.recent_minutes)
    told = {name.replace("_", " "): value for name, value in asdict(done).items() if name != "damaged"}
    if settings.days is not None and settings.mode == "retain":
        gone = compaction.retain(settings.log, days=settings.days, now_ms=now_ms())
        told |= {"days dropped": len(gone), "rows dropped": sum(gone.values())} | gone
    if done.damaged:
        aside = ", set aside" if settings.quarantine else ""
        reasons = "; ".join(done.damaged.values())
        raise CorruptLog(f"{settings.log} has {len(done.damaged)} damaged files{aside}: {reasons}")
    return told


def compacted(log: Path, generations: Path, *, recent_minutes: float = 15) -> Compacted:
    """See `compaction.compact`; of users that a store has forgotten nothing is kept."""
    with closing(CatalogLog(generations / FILE)) as catalog:
        forgotten = catalog.forgotten()
    return compaction.compact(log, forgotten=forgotten, recent_since_s=now_ms() / 1000 - 60 * recent_minutes)


def replay(settings: ReplaySettings) -> dict[str, Any]:
    """Run logged requests again, by who answered them or by another generation. What was stopped goes on.

    Raises:
        ReplayMismatch: where `verify` found one that gave another answer.
    """
    store = GenerationStore(settings.generations)
    log = passes.Log(settings.log, settings.generations, settings.output, settings.workers, settings.limit)
    started = time.perf_counter()
    if settings.mode == "verify":
        verified, went = passes.verify(log)
        if verified.mismatches:
            first = verified.divergences[0]
            stages = ", ".join(f"{count} from stage {stage} on" for stage, count in verified.stages.items())
            raise ReplayMismatch(
                f"{verified.mismatches} of {verified.requests} requests gave another answer, {stages}; the first is "
                f"{first.request_id}, which differs from stage {first.stage} on ({first.field})"
            )
        told: dict[str, Any] = {
            "requests": verified.requests,
            "mismatches": 0,
            "skipped": verified.skipped,
            "with live hits from the log": verified.recalled,
        }
    else:
        target = _named(store, settings.generation)
        rows, went = passes.compare(log, target)
        inside = rows.select("request_id", "inside").collect()
        rewards = rewarded(read_events(settings.log), _weights(store, target)).join(inside, on="request_id", how="semi")
        told = {
            "requests": inside.height,
            "reward as logged": rewards["reward"].sum() / inside.height,
            "share of its slates inside the log's support": inside["inside"].mean(),
            "requests for which it wants what the log could not show": inside.filter(pl.col("inside") < 1).height,
            "rows": str(settings.output / target),
        }
    told["requests_per_s"] = went.requests / (time.perf_counter() - started)
    return told | {name: value for name, value in (("resumed", went.resumed), ("afresh", went.afresh)) if value}


def skew(settings: SkewSettings) -> dict[str, Any]:
    """Compute the features of a log again, compare, and leave a page and its figures in `output`.

    Raises:
        ValueError: for a generation that the store does not hold or that answered nothing, for an empty log, for
            bytes of another feature table.
        SkewOverBudget: after the page is written.
    """
    store = GenerationStore(settings.generations)
    if settings.generation and settings.generation not in store.ids():
        raise ValueError(
            f"{settings.generations} holds no generation {settings.generation!r}; it holds {', '.join(store.ids())}"
        )
    torch.set_num_threads(1)  # as in a server, for equal sums
    with progress() as bar:
        reading = bar.add_task("read", total=None)
        answered = Counter(each.generation for each in bar.track(_one_sided(settings.log), task_id=reading))
        if not answered:
            raise ValueError(f"{settings.log}: 0 impressions; at least 1 is needed")
        names = [settings.generation] if settings.generation else list(answered)
        held = set(answered) & set(store.ids()) & set(names)
        if not held:
            _refuse_strangers(store, settings, answered)
        known = [read_events(settings.log)]
        if settings.history is not None:
            before = read_table(settings.history, list(EVENT_SCHEMA)).select(*EVENT_SCHEMA)
            if before.schema != EVENT_SCHEMA:
                raise ValueError(f"{settings.history} must hold events with the columns {dict(EVENT_SCHEMA)}")
            known.append(before)
        looking = bar.add_task("compare", total=answered.total())
        with closing(CatalogLog(store.root / FILE)) as catalog:
            found = skews.measure(
                (
                    each
                    for each in _one_sided(settings.log)
                    if not settings.generation or each.generation == settings.generation
                ),
                {name: Generation.load(store, name) for name in sorted(held)},
                pl.concat(known).unique("event_id", keep="first", maintain_order=True),
                catalog=catalog,
                advance=lambda count: bar.advance(looking, count),
            )
    report = skew_report.described(found, settings.gates, log=settings.log)
    page = skew_report.write(report, settings.output)
    try:
        require(skew_gates(settings.gates, found.metrics))
    except GateFailed as error:
        raise SkewOverBudget(f"{error}; see {page}") from error
    return skew_report.told(report) | {"page": str(page)}


def experiment(settings: ExperimentSettings) -> dict[str, Any]:
    """What an experiment shows by now; and a page.

    Raises:
        ValueError: where none is named, and where there was never such an experiment.
    """
    if not settings.name:
        raise ValueError("name is ''; name an experiment: `cascade report experiment NAME`")
    store = GenerationStore(settings.generations)
    weights = _weights(store, _named(store, ""))
    with closing(CatalogLog(store.root / FILE)) as log:
        entries = [each for each in log.since(0) if isinstance(each.request, SetTrafficRequest)]
    of = experiments.versions(entries, settings.name)
    with progress() as bar:
        logged = bar.track(read_impressions(settings.log), task_id=bar.add_task("read", total=None))
        rewards = rewarded(read_events(settings.log), weights)
        found = experiments.measure(logged, rewards, of, alpha=settings.alpha, planned=settings.planned_units)
    report = experiment_report.report(found)
    return report | {"page": experiment_report.write(report, settings.output)}


def ope(settings: EstimateSettings) -> dict[str, Any]:
    """Every estimator of one generation's reward from what another logged after its training data ended; and a page.

    Raises:
        ValueError: where nothing was logged after that, and where the log's propensities are not the policy's.
        InsufficientOverlap: with the figures, after the page is written.
    """
    store = GenerationStore(settings.generations)
    target = _named(store, settings.generation)
    rows, _ = passes.compare(
        passes.Log(settings.log, settings.generations, settings.replayed, settings.workers), target
    )
    if settings.surface:
        rows = of_surface(rows, settings.surface, log=settings.log)
    answered = rows.group_by("generation").len().sort("len", "generation", descending=True).collect()["generation"]
    logged = settings.logged or answered[0]
    if logged not in answered:
        raise ValueError(f"{settings.log} holds no request that {logged} answered; {', '.join(answered)} did")
    torch.set_num_threads(1)
    estimates = estimated(
        rows.filter(generation=logged).collect(),
        Generation.load(store, target),
        log=settings.log,
        store=store,
        interval=settings.interval,
    )
    report = estimate_report.report(estimates, target=target, logged=logged)
    page = estimate_report.write(report, settings.output)
    require_overlap(estimates.overlap)
    return report | {"page": page}


def read(source: Data, *, seed: int) -> Dataset:
    """A data set with impressions to learn from: logged ones, the world's, or made-up ones where there are none."""
    if source.func is World:
        world = source()
        assert isinstance(world, World)
        requests = world.requests(world.start_ms, world.day_ms(_FIRST_DAYS), _FIRST_REQUESTS)
        return world.dataset(*world.first_log(requests))
    dataset = source(now_ms=now_ms())
    assert isinstance(dataset, Dataset)
    return dataset if dataset.impressions.height else synthesise_impressions(dataset, seed=seed)


def _prepared(settings: TrainSettings | PublishSettings) -> Prepared:
    dataset = read(settings.data, seed=settings.seed)
    served, as_of_ms = _served(settings.log, dataset)
    store = GenerationStore(settings.generations)
    table, earlier = cycle.in_force(store, settings.cycle)
    return cycle.prepare(
        dataset,
        as_of_ms=as_of_ms,
        tower_positives=settings.cycle.tower_positives,
        tower_hard_negatives=settings.cycle.tower_hard_negatives,
        served=served,
        table=table,
        earlier=earlier,
        changes=changes(store),
        store=store,
        boosts=settings.cycle.retrieval.boosts,
        engine=settings.engine,
    )


def changes(store: GenerationStore) -> list[Entry]:
    """The catalogue log of a store, all of it."""
    current = store.current()
    with closing(CatalogLog(store.root / FILE)) as log:
        return log.since(0, until=head_of(log, store.manifest(current) if current else None))


def _served(log: Path | None, dataset: Dataset) -> tuple[ServedLog | None, int]:
    """The log, and the moment after the last thing known."""
    served = None if log is None else ServedLog.read(log, until_ms=np.iinfo(np.int64).max)
    return served, last_ms(dataset, served) + 1


def last_ms(dataset: Dataset, served: ServedLog | None) -> int:
    """When the last thing happened or became known that the data set and the log tell of."""
    times = [dataset.events["visible_ms"].max(), dataset.impressions["time_ms"].max()]
    if served is not None:
        times += [served.impressions[-1].time_ms, served.events["visible_ms"].max()]
    return max(each for each in times if isinstance(each, int))


def _refuse_strangers(store: GenerationStore, settings: SkewSettings, answered: Mapping[str, int]) -> None:
    """
    Raises:
        ValueError: the log is of generations that are not to be looked at, or of another feature table.
    """
    tables = {name: skews.table_of(store, name) for name in store.ids()}
    if settings.generation:
        first = next(_one_sided(settings.log))
        skews.require_schema(first, tables[settings.generation], tables.values())
    raise ValueError(
        f"{settings.log} holds no impression that {settings.generation or 'a generation of the store'} answered; it "
        f"holds those of {', '.join(sorted(answered))}"
    )


def _one_sided(log: Path) -> Iterator[Impression]:
    """What was shown, but for slates of two arms, whose features two generations know."""
    return (each for each in shown(read_impressions(log)) if not each.HasField("drafted"))


def catalogue(prepared: Prepared) -> Items:
    """The items, for what needs them by name and has no use for vectors."""
    frame = prepared.items
    return Items.of(
        ids=frame["item_id"].to_list(),
        titles=frame["title"].to_list(),
        row_I=prepared.item_row_I,
        published_ms=frame["published_ms"].to_numpy(),
        embedding_ID=np.zeros((frame.height, 1), np.float32),
    )


def _named(store: GenerationStore, generation: str) -> str:
    current = generation or store.current()
    if current is None:
        raise ValueError(f"no generation of {store.root} is current; name one: generation=...")
    return current


def _weights(store: GenerationStore, generation: str) -> Mapping[str, float]:
    """What an outcome of each action is worth to it."""
    return PolicySettings.from_json((store.folder(generation) / "policy.json").read_text()).weights


def _activated(store: GenerationStore, published: Published, activate: bool, job: Lease) -> dict[str, Any]:
    if activate:
        before = store.manifest(published.id).parent
        store.activate(published.id, time_ms=now_ms(), reason="published", expected=before, job=job)
    return {"generation": published.id, "current": store.current()}


def holder() -> str:
    """Who this process is, for others that find a lease taken."""
    return f"process {os.getpid()} on {gethostname()}"


def _leave(folder: Path, save: Any, metrics: Mapping[str, float]) -> None:
    """A trained stage, whole or not at all."""
    with appearing(folder) as draft:
        draft.mkdir()
        save(draft)
        (draft / _METRICS).write_text(json.dumps(dict(metrics), indent=2))


def _write_tables(frames: Mapping[str, pl.DataFrame], folder: Path) -> None:
    """Parquet files that appear whole."""
    for name, frame in frames.items():
        with appearing(folder / f"{name}.parquet") as draft:
            frame.write_parquet(draft)


def _utc(time_ms: Any) -> str:
    return "" if time_ms is None else str(np.datetime64(time_ms, "ms"))
