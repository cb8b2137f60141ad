"""The jobs of the command line: settings in, what is to be told out. Each is a few calls of what does the work."""

import json
import os
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from socket import gethostname
from typing import Any

import numpy as np
import polars as pl
import torch

from candidate_gen.features import FeatureTable
from candidate_gen.items import Items
from candidate_gen.towers import Towers
from index.generations import GenerationStore
from index.leases import Lease
from policy.ope import require_overlap
from protos.impression_pb2 import Impression
from ranking.scorer import RankerScorer
from serving.catalog_log import FILE, CatalogLog, Entry
from serving.generation import Generation
from serving.log import read_impressions
from training import cycle, estimate_report, rebuild_report
from training import rebuild as rebuilds
from training import replay as replays
from training.catalogue import head_of
from training.cycle import Prepared
from training.data import Dataset, synthesise_impressions
from training.durable import appearing
from training.estimate import estimate, examination, outcome_rewards, own_draws, slices_of
from training.publish import Published
from training.served import ServedLog
from training.settings import (
    Data,
    DataSettings,
    EstimateSettings,
    PublishSettings,
    RebuildSettings,
    ReplaySettings,
    TrainSettings,
)
from training.world import World

_FIRST_DAYS, _FIRST_REQUESTS = 10, 8000
_METRICS = "metrics.json"
_JOB = "nightly"


class ReplayMismatch(ValueError):
    """Logged requests that gave another answer."""


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
        towers, metrics = cycle.fit_towers(prepared, settings.cycle, seed=settings.seed, folder=work)
        named = {f"retrieval.{name}": value for name, value in metrics.items()}
        _leave(settings.output / "towers", towers.save, named)
    else:
        ranker, calibration, metrics = cycle.fit_ranker(prepared, settings.cycle, seed=settings.seed, folder=work)
        scorer = RankerScorer(ranker, calibration, prepared.table, _catalogue(prepared))
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
    with store.job(_JOB, holder=_holder()) as job:
        prepared = _prepared(settings)
        towers = Towers.load(settings.output / "towers", prepared.table)
        scorer = RankerScorer.load(settings.output / "ranker", prepared.table, _catalogue(prepared))
        published = cycle.export(
            prepared,
            towers,
            scorer.ranker,
            scorer.calibration,
            settings=settings.cycle,
            metrics=metrics,
            store=store,
            now_ms=_now_ms(),
            job=job,
        )
        return _activated(store, published, settings.activate, job) | published.metrics


def nightly(settings: PublishSettings) -> dict[str, Any]:
    """One cycle: everything known becomes a generation.

    Raises:
        GateFailed: naming every red gate; what is current stays.
        LeaseHeld: another process does this; who, and since when.
    """
    store = GenerationStore(settings.generations)
    with store.job(_JOB, holder=_holder()) as job:
        dataset = read(settings.data, seed=settings.seed)
        served, as_of_ms = _served(settings.log, dataset)
        published = cycle.run(
            dataset,
            settings=settings.cycle,
            store=store,
            folder=settings.output,
            as_of_ms=as_of_ms,
            seed=settings.seed,
            now_ms=_now_ms(),
            served=served,
            changes=_changes(store),
            job=job,
        )
        return _activated(store, published, settings.activate, job) | published.metrics


def rebuild(settings: RebuildSettings) -> dict[str, Any]:
    """A generation with the changes of the catalogue folded in, and a new index; models stay as they are.

    Raises:
        GateFailed, LeaseHeld, LeaseLost, StaleExpected: see `training.rebuild`.
    """
    report = rebuilds.rebuild(settings, holder=_holder(), now_ms=_now_ms())
    return rebuild_report.told(report) | {"current": GenerationStore(settings.generations).current()}


def replay(settings: ReplaySettings) -> dict[str, Any]:
    """Run logged requests again, by who answered them or by another generation.

    Raises:
        ReplayMismatch: where `verify` found one that gave another answer.
    """
    store = GenerationStore(settings.generations)
    impressions = _logged(settings.log)
    impressions = impressions[-settings.limit :] if settings.limit else impressions
    torch.set_num_threads(1)  # as in a server, for equal sums
    started = time.perf_counter()
    if settings.mode == "verify":
        answered = sorted({each.generation for each in impressions})
        loaded = {each: Generation.load(store, each) for each in answered}
        verified = replays.verify(impressions, loaded, CatalogLog(store.root / FILE))
        if verified.divergences:
            first = verified.divergences[0]
            raise ReplayMismatch(
                f"{len(verified.divergences)} of {verified.requests} requests gave another answer; the first is "
                f"{first.request_id}, which differs from stage {first.stage} on ({first.field})"
            )
        seconds = time.perf_counter() - started
        return {
            "requests": verified.requests,
            "mismatches": 0,
            "skipped": verified.skipped,
            "with live hits from the log": verified.recalled,
            "requests_per_s": verified.requests / seconds,
        }
    compared = _compared(settings.log, store, _named(store, settings.generation), impressions)
    if settings.output is not None:
        columns = {
            "request_id": compared.request_ids,
            "target_item_id": [list(each) for each in compared.target_item_ids],
            "logged_prefix_propensity": compared.logged_prefix_MK.tolist(),
            "target_prefix_propensity": compared.target_prefix_MK.tolist(),
            "reward": compared.reward_MK.tolist(),
        }
        _write_tables({settings.output.name: pl.DataFrame(columns)}, settings.output)
    return {
        "requests": len(compared.request_ids),
        "requests_per_s": len(compared.request_ids) / (time.perf_counter() - started),
        "reward as logged": float(compared.reward_MK.sum(1).mean()),
        "share of its slates inside the log's support": float(compared.inside_M.mean()),
    }


def ope(settings: EstimateSettings) -> dict[str, Any]:
    """Every estimator of one generation's reward from what another logged after its training data ended; and a page.

    Raises:
        ValueError: where nothing was logged after that, and where the log's propensities are not the policy's.
        InsufficientOverlap: with the figures, after the page is written.
    """
    store = GenerationStore(settings.generations)
    target = _named(store, settings.generation)
    impressions = _logged(settings.log)
    answered = Counter(each.generation for each in impressions)
    others = [each for each, _ in answered.most_common() if each != target]
    if settings.logged and settings.logged not in answered:
        raise ValueError(f"{settings.log} holds no request that {settings.logged} answered; {', '.join(answered)} did")
    if not settings.logged and not others:
        raise ValueError(f"{settings.log} holds no request that another generation than {target} answered")
    logged = settings.logged or others[0]
    torch.set_num_threads(1)
    impressions = replays.unseen([each for each in impressions if each.generation == logged], store.manifest(target))
    incumbent = Generation.load(store, logged)
    compared = _compared(settings.log, store, target, impressions)
    estimates = estimate(
        compared,
        slices=slices_of(impressions, compared.request_ids, incumbent.table),
        own=own_draws(impressions, incumbent, catalog=CatalogLog(store.root / FILE)),
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
    dataset = source(now_ms=_now_ms())
    assert isinstance(dataset, Dataset)
    return dataset if dataset.impressions.height else synthesise_impressions(dataset, seed=seed)


def _prepared(settings: TrainSettings | PublishSettings) -> Prepared:
    dataset = read(settings.data, seed=settings.seed)
    served, as_of_ms = _served(settings.log, dataset)
    store = GenerationStore(settings.generations)
    current = store.current()
    table = FeatureTable.from_json((store.folder(current) / "schema.json").read_text()) if current else None
    return cycle.prepare(
        dataset,
        as_of_ms=as_of_ms,
        tower_positives=settings.cycle.tower_positives,
        tower_hard_negatives=settings.cycle.tower_hard_negatives,
        served=served,
        table=table,
        changes=_changes(store),
    )


def _changes(store: GenerationStore) -> list[Entry]:
    """The catalogue log of a store, all of it."""
    current = store.current()
    with closing(CatalogLog(store.root / FILE)) as log:
        return log.since(0, until=head_of(log, store.manifest(current) if current else None))


def _served(log: Path | None, dataset: Dataset) -> tuple[ServedLog | None, int]:
    """The log, and the moment after the last thing known."""
    seen_ms = max(dataset.events["visible_ms"].max(), dataset.impressions["time_ms"].max())  # type: ignore[type-var]
    assert isinstance(seen_ms, int)
    if log is None:
        return None, seen_ms + 1
    served = ServedLog.read(log, until_ms=np.iinfo(np.int64).max)
    times = [seen_ms, served.impressions[-1].time_ms]
    if served.events.height:
        times.append(served.events["visible_ms"].to_list()[-1])
    return served, max(times) + 1


def _logged(log: Path) -> list[Impression]:
    """Every impression of a log that is not empty."""
    impressions = list(read_impressions(log))
    if not impressions:
        raise ValueError(f"{log}: 0 impressions; at least 1 is needed")
    return impressions


def _compared(log: Path, store: GenerationStore, target: str, impressions: list[Impression]) -> replays.Counterfactual:
    loaded = Generation.load(store, target)
    events = ServedLog.read(log, until_ms=np.iinfo(np.int64).max).events
    answered = Counter(each.generation for each in impressions).most_common(1)
    curve = examination(store.manifest(answered[0][0]).metrics if answered else {})
    rewards = outcome_rewards(events, loaded.settings.weights)
    return replays.counterfactual(
        impressions, loaded, rewards=rewards, examination_K=curve, catalog=CatalogLog(store.root / FILE)
    )


def _catalogue(prepared: Prepared) -> Items:
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


def _activated(store: GenerationStore, published: Published, activate: bool, job: Lease) -> dict[str, Any]:
    if activate:
        before = store.manifest(published.id).parent
        store.activate(published.id, time_ms=_now_ms(), reason="published", expected=before, job=job)
    return {"generation": published.id, "current": store.current()}


def _holder() -> str:
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


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def _utc(time_ms: Any) -> str:
    return "" if time_ms is None else str(np.datetime64(time_ms, "ms"))
