"""Do planted drifts sound an alarm on their first day, and do clean days stay silent?

A simulated world is served day by day through the services of a server (without its socket), a new generation is
launched every few days, tastes drift and items arrive all the time: none of that is to sound an alarm. Then one day is
served again and again, each time with something wrong, and held against the days before it.
"""

import argparse
import copy
import math
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import faiss
import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from rich.progress import Progress, TaskID

from benchmarks.__main__ import rewritten
from benchmarks.in_process import InProcess
from candidate_gen.compiled_tower import QueryEncoder
from candidate_gen.features import FeatureTable
from candidate_gen.matches import Matching
from candidate_gen.towers import TowerShape
from index.generations import GenerationStore
from index.strings import key64
from policy.settings import PolicySettings
from protos.catalog_pb2 import UpsertItemsRequest
from protos.impression_pb2 import Impression
from ranking.model import RankerShape
from serving.again import Snapshots
from serving.catalog import accepted_items
from serving.generation import Generation
from serving.hydration import hydration
from serving.log.catalog_log import FILE, CatalogLog
from serving.records import ItemEntry
from serving.retrieval import RetrievalSettings
from training import cycle
from training.cycle import CycleSettings
from training.datasets.dataset import Dataset
from training.gates import GateSettings
from training.learning.ranker import RankerSettings
from training.learning.tower import TowerSettings
from training.log.impression_log import evenly, read_impressions, read_outcomes, read_these
from training.materialise import materialise
from training.monitoring.again import as_answered_by
from training.monitoring.answerers import Answerers
from training.monitoring.checks import Check, checks, most_answered_by
from training.monitoring.days import Day, summarised
from training.monitoring.limits import Limits
from training.monitoring.stored import unlike
from training.off_policy.replay import in_order
from training.progress import progress
from training.simulation.world import World, WorldRequest

PAGE = Path(__file__).parents[1] / "docs" / "monitoring.md"
Rows = list[dict[str, Any]]
"""Of events."""
SLATE = 10
LABEL_MS = 3_600_000
_ASKED = 50
"""Requests of a day that are held against the store. Features are not computed again: these users' histories know
outcomes at once that the log says became known late."""
_ANY_QUALITY = GateSettings(index_recall=0.0, ranker_auc=0.0, ranker_ece=1.0)
_QUOTAS = {"ann": 30, "lexical": 20, "similar": 15, "fresh": 15, "popular": 15}
"""Without sources that learn while they serve: a day that is served again would find them knowing it."""


_CYCLE = CycleSettings(
    policy=PolicySettings(weights=dict(World.weights)),
    towers=TowerSettings(shape=TowerShape(width=16, embedding=16, hidden=32, heads=1), epochs=2, batch=256),
    ranker=RankerSettings(shape=RankerShape(dim=8, query_width=16, cross_layers=1, hidden=(32,)), epochs=2),
    retrieval=RetrievalSettings(quotas=_QUOTAS),
    gates=_ANY_QUALITY,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How large the world is and how long it is looked at."""

    users: int = 600
    items: int = 800
    first_days: int = 8
    first_requests: int = 2500
    reference_days: int = 7
    clean_days: int = 20
    requests: int = 350
    """A day."""
    launched_days: int = 4
    """A new generation is trained on everything logged so far and launched so often."""
    cycle: CycleSettings = field(default_factory=lambda: _CYCLE)

    @property
    def served_days(self) -> int:
        return self.reference_days + self.clean_days


QUICK = Scale(
    users=60, items=120, first_days=3, first_requests=300, reference_days=3, clean_days=1, requests=80, launched_days=3
)


@dataclass(frozen=True, slots=True)
class Planted:
    """Something wrong with a day."""

    name: str
    expected: tuple[str, ...]
    """Sections, one of which must sound an alarm."""
    requests: Callable[[World, list[WorldRequest]], list[WorldRequest]] = lambda _, requests: requests
    responses: Callable[[Rows], Rows] = lambda rows: rows
    prepare: Callable[["Shop"], None] = lambda _: None
    impressions: Callable[["Shop", Iterable[Impression]], Iterable[Impression]] = lambda _, logged: logged


class Users:
    """The world's, but for what they do: it is what `Planted.responses` makes of it."""

    def __init__(self, world: World, responses: Callable[[Rows], Rows]) -> None:
        self._world, self._responses = world, responses

    def __getattr__(self, name: str) -> Any:
        return getattr(self._world, name)

    def respond(self, request: WorldRequest, item_ids: Sequence[str]) -> Rows:
        return self._responses(cast(Rows, self._world.respond(request, item_ids)))


@dataclass(frozen=True, slots=True)
class Looked:
    """A day that was served."""

    day: Day
    said: list[Check]
    """What was said beside what the store says."""


@dataclass(slots=True)
class Shop:
    """A store, its server, and all that was known when the first generation was trained."""

    scale: Scale
    world: World
    dataset: Dataset
    served: InProcess
    folder: Path

    @classmethod
    def open(cls, scale: Scale, seed: int, folder: Path) -> "Shop":
        world = World(seed, users=scale.users, items=scale.items, days=scale.first_days + scale.served_days)
        asked = world.requests(world.start_ms, world.day_ms(scale.first_days), scale.first_requests)
        dataset = world.dataset(*world.first_log(asked, slate_size=SLATE))
        store = GenerationStore(folder / "generations")
        served = InProcess(store, world, folder, from_ms=world.day_ms(scale.first_days))
        materialise(dataset.events, cast(Any, served.histories))
        return cls(scale, world, dataset, served, folder)

    def launch(self, day: int, dataset: Dataset | None = None) -> None:
        """Train on everything that is known at the beginning of a day, and serve it."""
        as_of_ms = self.start_ms(day)
        published = cycle.run(
            dataset or self.dataset,
            settings=self.scale.cycle,
            store=self.served.generations.store,
            folder=self.folder / f"training-{day}",
            as_of_ms=as_of_ms,
            seed=self.world.seed,
            now_ms=as_of_ms,
            served=self.served.log(as_of_ms) if day and dataset is None else None,
            changes=self.served.generations.catalog.since(0),
        )
        self.served.launch(published.id)

    @property
    def table(self) -> FeatureTable:
        return self.served.active.table

    def start_ms(self, day: int) -> int:
        return self.world.day_ms(self.scale.first_days + day)

    def asked(self, day: int) -> list[WorldRequest]:
        return self.world.requests(self.start_ms(day), self.start_ms(day + 1), self.scale.requests)

    def day(self, day: int, plant: Planted | None = None) -> Looked:
        """Serve a day and read it."""
        requests = self.asked(day)
        if plant is not None:
            self.served.world = cast(World, Users(self.world, plant.responses))
            requests = plant.requests(self.world, requests)
        self.served.serve(requests, size=SLATE)
        self.served.flush()
        store = self.served.generations.store
        within = {"since_ms": self.start_ms(day), "until_ms": self.start_ms(day + 1)}
        logged: Iterable[Impression] = timed(read_impressions(self.served.path, **within))
        read = summarised(
            plant.impressions(self, logged) if plant is not None else logged,
            read_outcomes(self.served.path, **within),
            Answerers.load(store),
            start_ms=self.start_ms(day),
            label_ms=LABEL_MS,
            sample=2000,
        )
        asked = in_order(read_these(self.served.path, evenly(read.sampled, _ASKED)))
        with closing(CatalogLog(store.root / FILE)) as catalog:
            snapshots = Snapshots({self.served.active.id: Generation.load(store, self.served.active.id)}, catalog)
            return Looked(read, unlike(asked, snapshots, Limits()))

    def again(self, day: int, folder: Path) -> "Shop":
        """The same shop at the beginning of a day, to be spoilt."""
        shutil.copytree(self.served.generations.store.root, folder / "generations")
        store = GenerationStore(folder / "generations")
        served = InProcess(store, self.world, folder, from_ms=self.start_ms(day))
        served.histories._events_of.update(copy.deepcopy(self.served.histories._events_of))
        served.launch(cast(str, store.current()))
        return replace(self, served=served, folder=folder)


def timed(logged: Iterable[Impression]) -> Iterator[Impression]:
    """With times of stages that are drawn: how busy this machine is, is not to be measured here."""
    for each in logged:
        ms = float(np.random.default_rng(key64(each.request_id)).lognormal(1.0, 0.4))
        for stage in each.stages:
            stage.milliseconds = ms / len(each.stages)
        yield each


# -- What goes wrong


def _crowd(world: World, requests: list[WorldRequest]) -> list[WorldRequest]:
    """Two of five visits are of one segment, as after a campaign."""
    of_one = world.users.filter(pl.col("segment") == world.users["segment"][0])["user_id"].to_list()
    moved = []
    for each in requests:
        rng = np.random.default_rng(key64(each.request_id))
        user_id = of_one[int(rng.integers(len(of_one)))] if rng.random() < 0.4 else each.user_id
        moved.append(replace(each, user_id=user_id))
    return moved


def _lost_column(shop: Shop, logged: Iterable[Impression]) -> Iterator[Impression]:
    """A column of the profiles is not filled in for three requests of ten."""
    table = shop.table
    for each in logged:
        if key64(f"lost {each.request_id}") % 10 < 3:
            rows = np.frombuffer(each.query_row, table.dtype("query")).copy()
            rows["segment"] = 0
            each.query_row = rows.tobytes()
        yield each


def _scaled(shop: Shop) -> None:
    """The query tower of the server, not that of the store, makes vectors that are half as long again."""
    served = shop.served.active
    encode_query = partial(_longer, served.encode_query)
    hydrate = hydration(
        served.table,
        served.items,
        served.profiles,
        attributes=served.attributes,
        encode_query=encode_query,
        matching=Matching(served.items, served.lexical),
    )
    pipeline = replace(served.pipeline, hydrate=hydrate)
    shop.served.generations._active = replace(served, encode_query=encode_query, pipeline=pipeline)


def _longer(encode_query: QueryEncoder, row: np.ndarray) -> NDArray[np.float32]:
    return np.float32(1.5) * encode_query(row)


def _less_catalogue(shop: Shop) -> None:
    """The three largest categories are not delivered."""
    items = shop.world.items_at(shop.start_ms(shop.scale.served_days))
    largest = items["category"].value_counts(sort=True).head(3)["category"].implode()
    gone = items.filter(pl.col("category").is_in(largest)).with_columns(available=pl.lit(False))
    listed = [ItemEntry(**row).on_the_wire() for row in gone.iter_rows(named=True)]
    request = UpsertItemsRequest(items=listed)
    shop.served.generations.change(
        lambda active: accepted_items(request, active)[0], time_ms=shop.start_ms(shop.scale.served_days)
    )


def _wrong_model(shop: Shop) -> None:
    """Trained on a log in which clicks and hides were mistaken for each other."""
    mistaken = pl.col("action").replace({"click": "hide", "hide": "click"})
    events = shop.dataset.events.with_columns(mistaken)
    shop.launch(shop.scale.served_days, replace(shop.dataset, events=events))


def _fewer_clicks(rows: Rows) -> Rows:
    """Every third outcome gets lost, or people care less."""
    return [row for row in rows if key64(f"lost {row['event_id'].rpartition('/')[0]}") % 3]


def _late(rows: Rows) -> Rows:
    """One outcome of five becomes known half an hour to two hours late."""
    for row in rows:
        draw = key64(f"late {row['event_id']}")
        if draw % 5 == 0:
            row["visible_ms"] += 1_800_000 + draw % 5_400_000
    return rows


def _twice(rows: Rows) -> Rows:
    """One outcome of ten is sent again under another id."""
    again = [row | {"event_id": f"{row['event_id']}/again"} for row in rows if key64(f"x {row['event_id']}") % 10 == 0]
    return rows + again


PLANTED = (
    Planted("users of one segment crowd in", ("features",), requests=_crowd),
    Planted("a profile column is lost for 30%", ("quality", "features"), impressions=_lost_column),
    Planted("three categories are missing", ("popularity", "features"), prepare=_less_catalogue),
    Planted("a third of the outcomes is gone", ("outcomes",), responses=_fewer_clicks),
    Planted("the server's query tower is scaled by 1.5", ("skew",), prepare=_scaled),
    Planted("a wrong model is launched", ("scores", "embeddings", "calibration", "outcomes"), prepare=_wrong_model),
    Planted("20% of outcomes come late", ("outcomes", "quality"), responses=_late),
    Planted("10% of outcomes come twice", ("quality",), responses=_twice),
)


@dataclass(frozen=True, slots=True)
class Lived:
    """The days of a world."""

    days: list[Looked]
    """Those of the first reference, then the clean ones."""
    planted: dict[str, Looked]
    """What would have been the next, by what went wrong with it."""
    folder: Path

    def store(self, name: str) -> GenerationStore:
        """Of the clean days, or of a planted one."""
        return GenerationStore(self.folder / name / "generations")


def lived(scale: Scale, seed: int, folder: Path, *, planted: Sequence[Planted], step: Callable[[str], None]) -> Lived:
    """Serve the clean days, then one day with each of these."""
    shop = Shop.open(scale, seed, folder / "clean")
    days: list[Looked] = []
    spoilt: dict[str, Looked] = {}
    try:
        for day in range(scale.served_days):
            if day % scale.launched_days == 0:
                shop.launch(day)
            days.append(shop.day(day))
            step(f"day {day}")
        for plant in planted:
            other = shop.again(scale.served_days, folder / plant.name)
            try:
                plant.prepare(other)
                spoilt[plant.name] = other.day(scale.served_days, plant)
            finally:
                other.served.close()
            step(plant.name)
    finally:
        shop.served.close()
    return Lived(days, spoilt, folder)


@dataclass(frozen=True, slots=True)
class Judged:
    """What the days of a world sounded."""

    clean: list[list[Check]]
    """Every comparison of every clean day."""
    planted: dict[str, list[Check]]
    """Likewise, by what went wrong."""


def judged(lived: Lived, scale: Scale) -> Judged:
    """Hold every day against those before it, as `cascade report monitor` does."""
    limits = Limits(generation_days=scale.launched_days + 1.0)
    first, clean = scale.reference_days, [each.day for each in lived.days]
    again: dict[tuple[str, str], Day] = {}

    def sounded(looked: Looked, before: list[Day], name: str) -> list[Check]:
        store, generation = lived.store(name), most_answered_by([looked.day])
        among = Answerers.load(store)
        unasked = [day for day in before if (generation, day.name) not in again]
        asked = as_answered_by(generation, unasked, log=lived.folder / "clean" / "log", store=store, answerers=among)
        again.update({(generation, day.name): day for day in asked})
        reference = [again[generation, day.name] for day in before]
        return checks([looked.day], reference, among, limits) + looked.said

    return Judged(
        [sounded(lived.days[n], clean[n - first : n], "clean") for n in range(first, len(clean))],
        {name: sounded(looked, clean[-first:], name) for name, looked in lived.planted.items()},
    )


def tables(found: Sequence[Judged]) -> str:
    """What was caught, and how loud clean days are, in Markdown: lowest and highest over the worlds."""
    lines = [
        "| planted | caught on its first day | loudest of what must tell | found | limit | largest on a clean day |",
        "|---|--:|---|--:|--:|--:|",
    ]
    clean = [check for world in found for day in world.clean for check in day]
    for plant in PLANTED:
        telling = [
            max((each for each in world.planted[plant.name] if each.section in plant.expected), key=_loudness)
            for world in found
        ]
        caught = sum(each.alarm for each in telling)
        first = telling[0]
        same = [each for each in clean if _named(each) == _named(first)]
        again = [
            next((each for each in world.planted[plant.name] if _named(each) == _named(first)), first)
            for world in found
        ]
        cells = (
            plant.name,
            f"{caught} of {len(found)}",
            f"{first.section}: {first.name}, {first.statistic}",
            _over(each.value for each in again),
            _over(each.limit for each in again),
            f"{max((abs(each.value) for each in same), default=math.nan):.2g}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    days = sum(len(world.clean) for world in found)
    loud = sum(any(each.alarm for each in day) for world in found for day in world.clean)
    nearest = sorted((each for each in clean if math.isfinite(each.ratio)), key=lambda each: -each.ratio)[0]
    lines += [
        "",
        f"Clean days with an alarm: {loud} of {days}, over {len(clean):,} comparisons; the nearest to its limit "
        f"reached {nearest.ratio:.0%} of it ({nearest.section}: {nearest.name}, {nearest.statistic}).",
    ]
    return "\n".join(lines)


def _loudness(check: Check) -> tuple[bool, float]:
    return check.alarm, check.ratio


def _named(check: Check) -> tuple[str, str, str]:
    return check.section, check.name, check.statistic


def _over(values: Iterable[float]) -> str:
    each = list(values)
    return f"{each[0]:.2g}" if len(each) == 1 else f"{min(each):.2g} to {max(each):.2g}"


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.drift", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="a tiny world: does it run, not what comes of it")
    parser.add_argument("--seeds", type=int, default=2, help="worlds, from seed 0 on")
    parser.add_argument("--write", action="store_true", help="rewrite the table of docs/monitoring.md")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    scale = QUICK if given.quick else Scale()
    found = []
    with progress() as bar, TemporaryDirectory(prefix="cascade-drift-") as name:
        task = bar.add_task("", total=given.seeds * (scale.served_days + len(PLANTED)))
        for seed in range(given.seeds):
            step = partial(_step, bar, task, seed)
            found.append(judged(lived(scale, seed, Path(name, str(seed)), planted=PLANTED, step=step), scale))
    print(tables(found))
    if given.write:
        PAGE.write_text(rewritten(PAGE.read_text(), tables(found)))
    return 0


def _step(bar: Progress, task: TaskID, seed: int, what: str) -> None:
    bar.update(task, description=f"seed {seed}, {what}", advance=1)


if __name__ == "__main__":
    sys.exit(main())
