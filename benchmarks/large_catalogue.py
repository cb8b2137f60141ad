"""A generation of a million items: models that learned for a while from a small world, and a catalogue of its kind.

Its ranker is a network of 256, 128 and 64 with 16-bit products, whatever these change after so short a training; a
second store has the same generation with the default ranker, that of crosses, and shares all other files. Both are made
once, in the system's folder for temporary files, and again where they no longer load.
"""

import os
import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import gettempdir

import numpy as np
import polars as pl

from candidate_gen.items import Items
from index.generations import CorruptGeneration, GenerationStore
from policy.settings import PolicySettings
from ranking.inference import Precision
from ranking.model import RankerShape
from ranking.rankers import AnyScorer, bound
from ranking.scorer import RankerScorer
from serving.generation import Generation, GenerationMismatch
from serving.retrieval import RetrievalSettings
from training import cycle
from training.examples.counters import item_counters
from training.examples.exposures import item_rows
from training.gates import GateSettings
from training.learning.ranker import RankerSettings
from training.learning.tower import TowerSettings
from training.progress import progress
from training.simulation.world import World

CANDIDATES = 500
NETWORK = RankerShape(cross_layers=0, hidden=(256, 128, 64))
_DAYS = 20
_LEARNED_DAYS = 10
_SETTINGS = cycle.CycleSettings(
    policy=PolicySettings(
        weights=World.weights, negative_actions=("hide",), temperature=0.1, epsilon=0.05, diversity=0.05
    ),
    retrieval=RetrievalSettings(
        quotas={
            "ann": 500,
            "lexical": 100,
            "similar": 150,
            "covisitation": 50,
            "trending": 50,
            "fresh": 100,
            "popular": 100,
        },
        most=CANDIDATES,
    ),
    gates=GateSettings(index_recall=0.0, found=0.0, ranker_auc=0.0, ranker_ece=1.0, shrink=1.0),
)
"""Gates are open: what learned for a minute is there to be timed, not to be judged."""


@dataclass(frozen=True, slots=True)
class Size:
    """Of the catalogue, and of the world that its models learn from."""

    items: int
    learned_items: int
    users: int
    requests: int
    epochs: int


LARGE = Size(items=1_000_000, learned_items=20_000, users=5000, requests=30_000, epochs=12)
MEDIUM = Size(items=100_000, learned_items=10_000, users=10_000, requests=40_000, epochs=2)
SMALL = Size(items=3000, learned_items=1000, users=300, requests=600, epochs=1)


@dataclass(frozen=True, slots=True)
class LargeCatalogue:
    """What a benchmark starts servers from."""

    folder: Path
    """For what else is to be kept with it."""
    store: GenerationStore
    events: pl.DataFrame
    """What its users did; see `training.datasets.dataset.EVENT_SCHEMA`."""
    crossed: GenerationStore
    """The same generation with the ranker that has crosses."""

    @property
    def generation(self) -> Path:
        """Folder of the one generation there is."""
        return self.store.folder(self.store.ids()[0])


def large_catalogue(size: Size) -> LargeCatalogue:
    """The one of this size."""
    folder = Path(gettempdir()) / f"cascade-benchmark-{size.items}-items"
    store, crossed = (GenerationStore(folder / name) for name in ("generations", "crossed"))
    events = folder / "events.parquet"
    if not (events.exists() and _loads(store) and _loads(crossed)):
        shutil.rmtree(folder, ignore_errors=True)
        for each in (store, crossed):
            each.root.mkdir(parents=True)
        _make(size, store, crossed).write_parquet(events)
    return LargeCatalogue(folder, store, pl.read_parquet(events), crossed)


def _loads(store: GenerationStore) -> bool:
    current = store.current()
    try:
        return current is not None and bool(Generation.load(store, current).items)
    except (CorruptGeneration, GenerationMismatch):
        return False


def _make(size: Size, store: GenerationStore, crossed: GenerationStore) -> pl.DataFrame:
    """Publish both generations; returns the events of the small world."""
    with progress() as bar:
        making = bar.add_task("", total=7)

        def step(what: str) -> None:
            bar.update(making, description=f"{what}, of {size.items:,} items", advance=1)

        step("small world")
        world = World(0, users=size.users, items=size.learned_items, days=_DAYS)
        as_of_ms = world.day_ms(_LEARNED_DAYS)
        dataset = world.dataset(*world.first_log(world.requests(world.start_ms, as_of_ms, size.requests)))
        step("large catalogue")
        items = _enlarged(dataset.items, size)
        step("examples")
        table = cycle.declare(replace(dataset, items=items))
        prepared = cycle.prepare(dataset, as_of_ms=as_of_ms, tower_positives=100_000, table=table)
        step("towers")
        work = store.root.parent / "work"
        settings = replace(
            _SETTINGS,
            towers=TowerSettings(epochs=size.epochs, patience=2),
            ranker=RankerSettings(epochs=1, batch=4096),
        )
        towers, _ = cycle.fit_towers(prepared, settings, seed=0, folder=work)
        step("rankers")
        ranker, calibration, metrics = cycle.fit_ranker(prepared, settings, seed=0, folder=work)
        shaped = replace(settings, ranker=RankerSettings(shape=NETWORK, epochs=1, batch=4096))
        network, of_network, _ = cycle.fit_ranker(prepared, shaped, seed=0, folder=work)
        step("embeddings, index, files")
        items = items.filter(pl.col("published_ms") <= as_of_ms)
        counters = item_counters(dataset.impressions, dataset.events, items, as_of_ms=as_of_ms, table=table)
        learned = int((dataset.items["published_ms"] <= as_of_ms).sum())
        enlarged = replace(
            prepared,
            items=items,
            item_row_I=_akin(item_rows(table, items, counters), learned=learned),
            popularity_I=counters.popularity_I,
        )
        published = cycle.export(
            enlarged,
            towers,
            ranker,
            calibration,
            settings=settings,
            metrics={f"ranker.{name}": value for name, value in metrics.items()},
            store=crossed,
            now_ms=as_of_ms,
        )
        crossed.activate(published.id, time_ms=as_of_ms)
        step("the other ranker's part of the items")
        same = Items.load(crossed.folder(published.id))
        _ranked_by(store, crossed, bound(network, of_network, table, same, precision=Precision("bfloat16")))
        shutil.rmtree(work)
    return dataset.events.filter(pl.col("visible_ms") <= as_of_ms)


def _ranked_by(store: GenerationStore, other: GenerationStore, scorer: AnyScorer) -> None:
    """Publish the generation of another store with another ranker; all other files are the same on the disk."""
    manifest = other.manifest(other.ids()[0])
    with store.stage() as folder:
        for name in manifest.files:
            if not name.startswith("ranker"):
                (folder / name).parent.mkdir(exist_ok=True)
                os.link(other.folder(manifest.id) / name, folder / name)
        scorer.save(folder)
        if isinstance(scorer, RankerScorer):
            scorer.save_halves(folder)
        published = store.publish(
            folder,
            fingerprints={**manifest.fingerprints, "ranker": scorer.fingerprint},
            parent=None,
            config={},
            data_window=manifest.data_window,
            metrics={},
            created_ms=manifest.created_ms,
        )
    store.activate(published, time_ms=manifest.created_ms)


def _akin(row_I: np.ndarray, *, learned: int) -> np.ndarray:
    """Every item after the learned ones with the id of one of them that has its category.

    Vectors of ids that nothing was learned of would lie elsewhere than those that queries look for, all together.
    """
    chance = np.random.default_rng(0)
    for category in np.unique(row_I["category"]):
        at = np.flatnonzero(row_I["category"] == category)
        known, others = at[at < learned], at[at >= learned]
        if len(known):
            row_I["item_id"][others] = row_I["item_id"][chance.choice(known, len(others))]
    return row_I


def _enlarged(items: pl.DataFrame, size: Size) -> pl.DataFrame:
    """The small world's items, and as many of a large one as are asked for, whose ids go on from theirs."""
    count = size.learned_items + size.items
    return pl.concat([items, World(0, users=1, items=count, days=_DAYS, arriving=0).items[size.learned_items :]])
