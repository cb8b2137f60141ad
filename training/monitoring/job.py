"""`cascade report monitor`: read the days, compare, write the report, say whether to train again."""

from collections.abc import Iterator
from contextlib import closing
from datetime import date
from math import ceil
from pathlib import Path
from typing import Any

import polars as pl
import torch
from scipy.stats import binom

from index.generations import GenerationStore
from protos.impression_pb2 import Outcome
from serving.again import Snapshots
from serving.generation import Generation
from serving.log.catalog_log import FILE, CatalogLog
from training.datasets.dataset import EVENT_SCHEMA
from training.datasets.tables import read_table
from training.gates import SKEW, SKEW_STATE, Gate, skew_gates
from training.log.archive import day_of
from training.log.impression_log import evenly, opened, read_impressions, read_outcomes, read_these
from training.log.served import shown
from training.monitoring import page
from training.monitoring.again import as_answered_by
from training.monitoring.answerers import Answerers
from training.monitoring.checks import Check, checks, most_answered_by
from training.monitoring.days import DAY_MS, Day, summarised
from training.monitoring.stored import unlike
from training.monitoring.verdict import Verdict
from training.off_policy.replay import in_order
from training.progress import progress
from training.settings import MonitorSettings
from training.skew import measure

_EPOCH = date(1970, 1, 1).toordinal()


def monitor(settings: MonitorSettings) -> dict[str, Any]:
    """Hold some days of a log against others; write `monitor.html`, `monitor.json` and the gauges.

    Raises:
        ValueError: where the store or the log is not there, or holds too few of the days.
        RetrainAdvised: where what is served no longer fits what comes, once everything is written.
        AlarmsRaised: where something else is wrong, likewise.
    """
    if not settings.generations.is_dir():
        raise ValueError(f"{settings.generations} holds no generations; `cascade demo` or `cascade export` makes one")
    store = GenerationStore(settings.generations)
    window_ms, reference_ms = starts(settings)
    answerers = Answerers.load(store)
    with progress() as bar:
        reading = bar.add_task("", total=len(reference_ms) + len(window_ms))
        days: list[Day] = []
        for start_ms in (*reference_ms, *window_ms):
            bar.update(reading, description=day_of(start_ms))
            days.append(read(settings.log, start_ms, answerers, settings))
            bar.advance(reading)
        if generation := most_answered_by(days[len(reference_ms) :]):
            bar.update(bar.add_task("other generations", total=None))
            days = as_answered_by(generation, days, log=settings.log, store=store, answerers=answerers)
        reference, window = days[: len(reference_ms)], days[len(reference_ms) :]
        try:
            found = checks(window, reference, answerers, settings.limits)
        except ValueError as error:
            raise ValueError(f"{settings.log}, {day_of(window_ms[0])}: {error}") from error
        if settings.skew:
            bar.update(bar.add_task("skew", total=None))
            found += beside_store(settings, store, [each for day in window for each in day.sampled])
    verdict = Verdict.of(found, settings.limits)
    current = answerers.by_id.get(store.current() or "")
    made = page.report(
        [day for day in window if day.requests],
        [day for day in reference if day.requests],
        found,
        verdict,
        table=current.table if current else None,
        log=settings.log,
    )
    where = page.write(made, settings.output, textfile=settings.textfile)
    verdict.require(where=str(where))
    return made | {"page": str(where)}


def starts(settings: MonitorSettings) -> tuple[list[int], list[int]]:
    """When the days begin that are looked at, and those of the reference."""
    if settings.until:
        last_ms = (date.fromisoformat(settings.until).toordinal() - _EPOCH) * DAY_MS
    else:
        last_ms = last_whole_day(settings.log)
    first_ms = last_ms - (settings.days - 1) * DAY_MS
    before_ms = first_ms
    if settings.reference_until:
        before_ms = (date.fromisoformat(settings.reference_until).toordinal() - _EPOCH + 1) * DAY_MS
    window_ms = list(range(first_ms, last_ms + 1, DAY_MS))
    return window_ms, list(range(before_ms - settings.reference_days * DAY_MS, before_ms, DAY_MS))


def last_whole_day(log: Path) -> int:
    """When the last day began that something was logged after; where there is none, the last day.

    Raises:
        ValueError: for a log without an impression.
    """
    with opened(log) as held:
        days = {part.min_ms // DAY_MS for part in held.manifest.of("impressions")}
        days |= {each.row.time_ms // DAY_MS for each in held.rows["impressions"]}
    if not days:
        raise ValueError(f"{log}: 0 impressions; at least 1 is needed")
    in_order = sorted(days)
    return in_order[-2 if len(in_order) > 1 else -1] * DAY_MS


def read(log: Path, start_ms: int, answerers: Answerers, settings: MonitorSettings) -> Day:
    """One day of a log."""
    until_ms = start_ms + DAY_MS
    return summarised(
        shown(read_impressions(log, since_ms=start_ms, until_ms=until_ms)),
        read_outcomes(log, since_ms=start_ms, until_ms=until_ms),
        answerers,
        start_ms=start_ms,
        label_ms=settings.label_minutes * 60_000,
        sample=settings.sample,
    )


def beside_store(settings: MonitorSettings, store: GenerationStore, request_ids: list[str]) -> list[Check]:
    """Some requests beside what the store says of them: features computed again, as `cascade report skew` does of all,
    and what towers and rankers say of the logged ones."""
    torch.set_num_threads(1)  # as in a server, for equal sums
    held = set(store.ids())
    asked = read_these(settings.log, evenly(request_ids, settings.skew))
    logged = in_order(each for each in asked if each.generation in held and not each.HasField("drafted"))
    if not logged:
        return []
    users = {each.user_id for each in logged}
    known = [_events(read_outcomes(settings.log, until_ms=max(each.time_ms for each in logged) + 1), users)]
    if settings.history is not None and settings.history.exists():
        before = read_table(settings.history, list(EVENT_SCHEMA)).select(*EVENT_SCHEMA)
        known.append(before.filter(pl.col("user_id").is_in(list(users))))
    events = pl.concat(known).unique("event_id", keep="first", maintain_order=True)
    generations = {name: Generation.load(store, name) for name in {each.generation for each in logged}}
    with closing(CatalogLog(store.root / FILE)) as catalog:
        skew = measure(logged, generations, events, catalog=catalog)
        said = unlike(logged, Snapshots(generations, catalog), settings.limits)
    gates = skew_gates(settings.gates, skew.metrics)
    return [*(skew_check(gate, requests=skew.requests, alpha=settings.limits.alpha) for gate in gates), *said]


def _events(outcomes: Iterator[Outcome], users: set[str]) -> pl.DataFrame:
    rows = [tuple(getattr(each, name) for name in EVENT_SCHEMA) for each in outcomes if each.user_id in users]
    return pl.DataFrame(rows, EVENT_SCHEMA, orient="row")


def skew_check(gate: Gate, *, requests: int, alpha: float) -> Check:
    """A verdict as a comparison, of so many requests: beyond its limit by more than chance, if all that is of one
    request differs together. The limit is 0 where nothing may differ."""
    limit = float(gate.limit.removeprefix("<= "))
    feature = gate.name.removeprefix(SKEW_STATE).removeprefix(SKEW)
    p = float(binom.sf(ceil(gate.value * requests) - 1, requests, limit))
    return Check("skew", feature, "share", gate.value, limit, 0.0, gate.value, not gate.passed and p < alpha, p)
