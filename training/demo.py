"""The whole loop on one machine: a world, its first log, two cycles, a real server between them, and the proof.

Shape letters: M impressions, K slots, A actions.
"""

import os
import shutil
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
import torch
from rich.console import Console

from index.generations import GenerationStore
from protos.impression_pb2 import Impression
from serving.client import CascadeClient
from serving.codec import query_of
from serving.generation import Generation
from serving.log.catalog_log import FILE, CatalogLog
from serving.state.local_redis import LocalRedis
from serving.state.user_state import UserState
from training import cycle
from training.cycle import CycleSettings
from training.datasets.dataset import Dataset
from training.examples.exposures import ATTRIBUTION_MS
from training.jobs import read
from training.log.served import ServedLog
from training.materialise import materialise
from training.off_policy.draws import drawn_again
from training.off_policy.estimate import estimate, examination, outcome_rewards
from training.off_policy.replay import counterfactual, unseen, verify
from training.publish import Published
from training.reports import report, story
from training.reports.story import Proved, Shown
from training.server_process import server_process
from training.settings import Data
from training.simulation.traffic import Users, ask, timed
from training.simulation.world import DAY_MS, World, WorldRequest

_SAMPLE_USERS = 40
_SAMPLE_SEARCHES = 10
_PATIENCE_S = 5.0
_PAUSE_MS = 60_000
"""After which a sample user comes back."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DemoSettings:
    """How large a world, and what the cycles are told."""

    output: Path
    """Folder of the run; what it holds is replaced."""
    data: Data
    cycle: CycleSettings
    seed: int = 0
    first_days: int = 10
    """Days whose requests a random and popularity policy answers."""
    first_requests: int = 8000
    served_days: int = 4
    served_requests: int = 5000
    """Answered by cycle 1 over the wire; cycle 2 is trained on them."""
    judged_days: int = 3
    judged_requests: int = 4500
    """Answered by cycle 1 still, after that: cycle 2 is judged by what it was not trained on."""
    returning_days: int = 2
    returning_requests: int = 2500
    """Answered by cycle 2."""
    slate_size: int = 10
    first_heat: float = 2.0
    """Cycle 1 draws at so many times the policy's temperature: what knows least should try most, and what it tries is
    what cycle 2 can be judged by."""


def run(settings: DemoSettings) -> Path:
    """Run the loop; returns the report's path. The run's folder appears when all is done; until then it is hidden.

    A simulated world goes through two cycles and proves what it says; a data set is trained on, served and replayed.
    """
    started = time.perf_counter()
    # As in a server. Models this small gain nothing from more, and sums do not depend on the number of cores.
    torch.set_num_threads(1)
    console = Console(stderr=True)
    folder = settings.output
    draft = folder.with_name(f".{folder.name}")
    shutil.rmtree(draft, ignore_errors=True)
    drafted = replace(settings, output=draft)
    if settings.data.func is World:
        shown, proved = _prove(drafted, console, started)
    else:
        shown, proved = _show(drafted, console, started), None
    page = report.write(story.summary(shown, proved), story.figures(shown, proved), draft)
    shutil.rmtree(folder, ignore_errors=True)
    draft.rename(folder)
    page = folder / page.name
    _point_latest(folder)
    Console().print(report.terminal_table(report.read(folder)[0]))
    console.print(f"\n{story.what_next(page, proved is not None)}", soft_wrap=True, highlight=False)
    return page


def _prove(settings: DemoSettings, console: Console, started: float) -> tuple[Shown, Proved]:
    """World, first log, cycle 1, users, cycle 2, swap, users, replay, estimate, truth."""
    folder = settings.output
    store = GenerationStore(folder / "generations")
    with _step(console, "A world with known truth, and its first log"):
        world = settings.data()
        assert isinstance(world, World)
        first_end = world.day_ms(settings.first_days)
        requests = world.requests(world.start_ms, first_end, settings.first_requests)
        dataset = world.dataset(*world.first_log(requests, slate_size=settings.slate_size))
    with _step(console, "Cycle 1: examples, towers, ranker, index, gates, publish"):
        first = _cycle(dataset, _warmer(settings), store, as_of_ms=first_end, number=1)
        store.activate(first.id, expected=None, time_ms=first_end, reason="cycle 1")
    with _serving(folder, dataset.events) as client:
        users = Users(client, world, size=settings.slate_size)
        served_end = world.day_ms(settings.first_days + settings.served_days)
        with _step(console, f"{settings.served_requests:,} requests over the wire, answered by {first.id}"):
            requests = world.requests(first_end, served_end, settings.served_requests)
            served = users.visit(requests, until_ms=served_end)
        with _step(console, "Cycle 2: trained on what was served and logged"):
            log = _log_of(folder / "log", until_ms=served_end, answers=sum(each.slate is not None for each in served))
            second = _cycle(dataset, settings, store, as_of_ms=served_end, number=2, served=log)
        judged_end = world.day_ms(settings.first_days + settings.served_days + settings.judged_days)
        with _step(console, f"{settings.judged_requests:,} more, to judge {second.id} by before it is shown"):
            requests = world.requests(served_end, judged_end, settings.judged_requests)
            judged = users.visit(requests, until_ms=judged_end)
        with _step(console, f"{second.id} swapped in while requests keep coming"):
            probes = _swap_under_load(client, requests, first.id, second.id)
        returning_end = judged_end + settings.returning_days * DAY_MS
        with _step(console, f"{settings.returning_requests:,} requests of returning users, answered by {second.id}"):
            requests = world.requests(judged_end, returning_end, settings.returning_requests)
            returning = users.visit(requests, until_ms=returning_end + 2 * ATTRIBUTION_MS)
            stage_ms = _stage_ms(client)
    known = pl.concat([dataset.events, log.events])
    log = ServedLog.read(folder / "log", until_ms=returning_end + 2 * ATTRIBUTION_MS)
    pl.concat([dataset.events, log.events]).write_parquet(folder / "history.parquet")
    by_id = {each.request.request_id: each.request for each in (*served, *judged, *returning)}
    of_second = [each for each in log.impressions if each.generation == second.id]
    generations = (Generation.load(store, first.id), Generation.load(store, second.id))
    with _step(console, f"Replay of {len(log.impressions):,} logged requests"):
        verified = verify(log.impressions, {each.id: each for each in generations}, CatalogLog(store.root / FILE))
    with _step(console, "Off-policy estimate of cycle 2 from cycle 1's log, beside the truth"):
        catalog = CatalogLog(store.root / FILE)
        own = unseen([each for each in log.impressions if each.generation == first.id], generations[1].manifest)
        compared = counterfactual(
            own,
            generations[1],
            rewards=outcome_rewards(log.events, world.weights),
            examination_K=examination(first.metrics),
            catalog=catalog,
        )
        estimates = estimate(compared, draws=drawn_again(own, *generations, catalog=catalog))
        slates = zip(compared.request_ids, compared.target_item_ids, strict=True)
        truth = np.mean([world.expected_reward(by_id[asked], shown[: estimates.depth]) for asked, shown in slates])
    with _step(console, "True reward of every policy on the same requests"):
        rewards, searches = _true_rewards(
            world, of_second, by_id, generations, known=(dataset.events, known), size=settings.slate_size
        )
    shown = Shown(
        folder=folder,
        data="world",
        seed=settings.seed,
        published=(first, second),
        generations=generations,
        visits=(*served, *judged, *returning),
        probes=probes,
        log=log,
        verified=verified,
        stage_ms=stage_ms,
        seconds=time.perf_counter() - started,
    )
    return shown, Proved(world, estimates, float(truth), rewards, searches)


def _show(settings: DemoSettings, console: Console, started: float) -> Shown:
    """One cycle on a data set, then users of middling activity and some searches over the wire, and their replay."""
    folder = settings.output
    store = GenerationStore(folder / "generations")
    with _step(console, "The data set, checked"):
        dataset = read(settings.data, seed=settings.seed)
    with _step(console, "Examples, towers, ranker, index, gates, publish"):
        as_of_ms = int(dataset.events["visible_ms"].to_numpy().max()) + 1
        published = _cycle(dataset, settings, store, as_of_ms=as_of_ms, number=1)
        store.activate(published.id, expected=None, time_ms=as_of_ms, reason="cycle 1")
    by_user = dataset.events.group_by("user_id").agg(pl.len(), last_ms=pl.col("visible_ms").max())
    middling = by_user.sort("len", "user_id").slice(max(0, (by_user.height - _SAMPLE_USERS) // 2), _SAMPLE_USERS)
    texts = dataset.items["category"].unique().sort().to_list()[:_SAMPLE_SEARCHES]
    asked = [
        *(
            WorldRequest(f"show/{user}", user, last_ms + _PAUSE_MS, "home", "")
            for user, _, last_ms in middling.iter_rows()
        ),
        *(WorldRequest(f"show/{text}", "", as_of_ms, "search", text) for text in texts),
    ]
    with _serving(folder, dataset.events) as client, _step(console, f"{len(asked)} requests over the wire"):
        visits = [timed(client, request, size=settings.slate_size) for request in asked]
        stage_ms = _stage_ms(client)
    log = ServedLog.read(folder / "log", until_ms=as_of_ms + _PAUSE_MS)
    dataset.events.write_parquet(folder / "history.parquet")
    with _step(console, f"Replay of {len(log.impressions)} logged requests"):
        generation = Generation.load(store, published.id)
        verified = verify(log.impressions, {generation.id: generation}, CatalogLog(store.root / FILE))
    return Shown(
        folder=folder,
        data=settings.data.func.__name__,
        seed=settings.seed,
        published=(published,),
        generations=(generation,),
        visits=tuple(visits),
        probes=(0, 0),
        log=log,
        verified=verified,
        stage_ms=stage_ms,
        seconds=time.perf_counter() - started,
    )


def _true_rewards(
    world: World,
    impressions: Sequence[Impression],
    by_id: Mapping[str, WorldRequest],
    generations: tuple[Generation, Generation],
    *,
    known: tuple[pl.DataFrame, pl.DataFrame],
    size: int,
) -> tuple[dict[str, float], dict[str, float]]:
    """Mean expected reward on the requests that the second cycle answered, and on the searches among them: the first is
    asked the same, offline.

    `popularity` goes by the clicks that cycle 1 was trained on, `popularity_now` by those that cycle 2 was; `bm25`, of
    searches alone, shows what matches best.
    """
    first, second = generations
    click_I, click_now_I = (world.click_counts(events) for events in known)
    rewards: dict[str, list[float]] = {}
    searches: dict[str, list[float]] = {}
    for logged in impressions:
        request = by_id[logged.request_id]
        answer = first.pipeline.run(query_of(logged, first))
        row_K = answer.scored.candidates.row_N[answer.slate.index_K]
        slates = {
            "random": world.random_slate(request, size),
            "popularity": world.popular_slate(request, size, click_I),
            "popularity_now": world.popular_slate(request, size, click_now_I),
            "cycle1": [first.items.ids.ids[int(row)] for row in row_K],
            "cycle2": list(logged.item_id),
            "oracle": world.oracle_slate(request, size),
        }
        earned = {name: world.expected_reward(request, item_ids) for name, item_ids in slates.items()}
        for name, reward in earned.items():
            rewards.setdefault(name, []).append(reward)
        if request.text:
            earned["bm25"] = world.expected_reward(request, bm25_slate(second, request, size))
            for name, reward in earned.items():
                searches.setdefault(name, []).append(reward)
    means = ({name: float(np.mean(values)) for name, values in each.items()} for each in (rewards, searches))
    all_kinds, of_searches = means
    return all_kinds, of_searches


def bm25_slate(generation: Generation, request: WorldRequest, size: int) -> list[str]:
    """What is published and matches what was typed best, whoever asks."""
    items = generation.items
    row_K = generation.lexical.search(request.text, len(items), items.allowed).row_K
    row_K = row_K[items.published_ms_I[row_K] <= request.time_ms][:size]
    return items.ids.ids.take(row_K)


def _warmer(settings: DemoSettings) -> DemoSettings:
    """As cycle 1 draws."""
    policy = settings.cycle.policy
    policy = replace(policy, temperature=settings.first_heat * policy.temperature)
    return replace(settings, cycle=replace(settings.cycle, policy=policy))


def _cycle(
    dataset: Dataset,
    settings: DemoSettings,
    store: GenerationStore,
    *,
    as_of_ms: int,
    number: int,
    served: ServedLog | None = None,
) -> Published:
    return cycle.run(
        dataset,
        settings=settings.cycle,
        store=store,
        folder=settings.output / f"cycle{number}",
        as_of_ms=as_of_ms,
        seed=settings.seed,
        now_ms=as_of_ms,
        served=served,
    )


@contextmanager
def _serving(folder: Path, events: pl.DataFrame) -> Iterator[CascadeClient]:
    """A Redis that knows what users did, a server process that reads it, and a client, while the `with` lasts.

    The server waits for Redis longer than one with real users would: an answer without history, because the machine
    was busy for a moment, would make every number after it depend on that.
    """
    with LocalRedis(folder / "redis") as redis:
        state = UserState(redis.url, timeout_s=_PATIENCE_S)
        materialise(events, state)
        state.close()
        overrides = (
            f"generations={folder / 'generations'}",
            f"log={folder / 'log'}",
            f"redis='{redis.url}?socket_timeout={_PATIENCE_S}&socket_connect_timeout={_PATIENCE_S}'",
            *("service.clock=request", "service.eligible_share=1.0"),
        )
        with (
            server_process(folder, overrides) as (target, admin_target),
            CascadeClient(target, admin_target=admin_target, deadline_s=10.0) as client,
        ):
            yield client


def _log_of(path: Path, *, until_ms: int, answers: int) -> ServedLog:
    """The log of a server at work, once it holds every answer: an impression is committed after it is shown."""
    until = time.monotonic() + _PATIENCE_S
    while True:
        log = ServedLog.read(path, until_ms=until_ms)
        if len(log.impressions) >= answers or time.monotonic() > until:
            return log
        time.sleep(0.05)


def _stage_ms(client: CascadeClient) -> dict[str, tuple[float, float]]:
    """Median and 99th percentile of every stage, as the server saw them."""
    return {stage.stage: (stage.p50_ms, stage.p99_ms) for stage in client.status().stages}


def _swap_under_load(
    client: CascadeClient, requests: Sequence[WorldRequest], before: str, after: str
) -> tuple[int, int]:
    """Activate a generation while requests come; returns how many were answered and how many failed.

    They are asked not to be logged, so that the log does not depend on when exactly the swap happens.
    """
    done = threading.Event()
    counts = [0, 0]

    def keep_asking() -> None:
        for request in requests:
            if done.is_set():
                return
            probe = replace(request, request_id=f"probe/{request.request_id}")
            try:
                ask(client, probe, size=10, no_log=True)
                counts[0] += 1
            except Exception:
                counts[1] += 1

    asking = threading.Thread(target=keep_asking)
    asking.start()
    time.sleep(0.3)
    client.activate(after, expected=before)
    time.sleep(0.3)
    done.set()
    asking.join()
    return counts[0], counts[1]


def _point_latest(folder: Path) -> None:
    """`latest` beside the run leads to it, for the commands that name no run."""
    link = folder.parent / "latest"
    draft = folder.parent / f".latest-{os.getpid()}"
    draft.symlink_to(folder.name)
    draft.replace(link)


@contextmanager
def _step(console: Console, what: str) -> Iterator[None]:
    started = time.perf_counter()
    with console.status(what):
        yield
    console.print(f"{time.perf_counter() - started:6.1f} s  {what}")
