"""A whole request in one process: a generation trained on a small simulated world, published, loaded and asked.

Nothing else answers the same request, so there is no peer; the stages are what to look at, and where the time goes.
"""

from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import faiss
import numpy as np
import polars as pl
import torch

from benchmarks.harness import Bench, main
from candidate_gen.types import Query
from index.generations import GenerationStore
from index.strings import keys64
from policy.settings import PolicySettings
from serving.generation import Generation, action_key
from training import cycle
from training.cycle import CycleSettings
from training.datasets.dataset import Dataset
from training.gates import GateSettings
from training.learning.ranker import RankerSettings
from training.learning.tower import TowerSettings
from training.simulation.world import World, WorldRequest

_SIZE = 10
_HISTORY = 32
_PASSES = 3
_LOGGED_DAYS = 5
_STAGES = ("hydrate", "retrieve", "filter", "score", "select")
_ANY_QUALITY = GateSettings(index_recall=0.0, ranker_auc=0.0, ranker_ece=1.0)
"""What is measured is time; a world this small need not teach much."""


def measure(bench: Bench) -> None:
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    users, items, logged, asked = (100, 300, 600, 40) if bench.quick else (1200, 2000, 4000, 400)
    world = World(0, users=users, items=items)
    now_ms = world.day_ms(_LOGGED_DAYS)
    dataset = world.dataset(*world.first_log(world.requests(world.start_ms, now_ms, logged), slate_size=_SIZE))
    with TemporaryDirectory(prefix="cascade-benchmark-") as folder:
        generation = published(dataset, Path(folder), now_ms=now_ms, weights=dict(world.weights))
        requests = world.requests(now_ms, world.day_ms(_LOGGED_DAYS + 1), asked)
        for kind, surface in (("recommend", "home"), ("search", "search")):
            queries = [as_query(each, generation, dataset) for each in requests if each.surface == surface]
            record(bench, kind, generation, queries)


def published(dataset: Dataset, folder: Path, *, now_ms: int, weights: dict[str, float]) -> Generation:
    """One cycle, as the demo runs it, with as little training as gives every part its real size."""
    store = GenerationStore(folder / "generations")
    settings = CycleSettings(
        towers=TowerSettings(epochs=1),
        ranker=RankerSettings(epochs=1),
        policy=PolicySettings(weights=weights, diversity=0.1, max_per_creator=2),
        gates=_ANY_QUALITY,
    )
    made = cycle.run(
        dataset, settings=settings, store=store, folder=folder / "training", as_of_ms=now_ms, seed=0, now_ms=now_ms
    )
    return Generation.load(store, made.id)


def as_query(request: WorldRequest, generation: Generation, dataset: Dataset) -> Query:
    """The request with what its user did last."""
    past = last_of(request, dataset)
    return Query(
        request.request_id,
        request.time_ms,
        request.surface,
        _SIZE,
        user_id=request.user_id,
        text=request.text,
        history=generation.history(
            keys64(past["item_id"]),
            np.array([action_key(action) for action in past["action"]], np.uint32),
            past["time_ms"].to_numpy(),
        ),
    )


def last_of(request: WorldRequest, dataset: Dataset) -> pl.DataFrame:
    """Events of a request's user that were visible by then, newest first."""
    return (
        dataset.events.filter((pl.col("user_id") == request.user_id) & (pl.col("visible_ms") <= request.time_ms))
        .sort("time_ms", descending=True)
        .head(_HISTORY)
    )


def record(bench: Bench, kind: str, generation: Generation, queries: Sequence[Query]) -> None:
    """Median time of every stage over the queries, after one pass that warms up."""
    answers = [generation.pipeline.run(query) for _ in range(1 + _PASSES) for query in queries][len(queries) :]
    scored = float(np.median([len(answer.scored) for answer in answers]))
    stage_s = {stage: np.array([answer.trace.stage_ms[stage] for answer in answers]) / 1000 for stage in _STAGES}
    note = f"{len(generation.items):,} items, {scored:.0f} candidates scored"
    bench.record(f"{kind}, whole", np.sum(list(stage_s.values()), axis=0), unit="ms", note=note)
    for stage, taken_s in stage_s.items():
        bench.record(f"{kind}, {stage}", taken_s, unit="ms")


if __name__ == "__main__":
    main("pipeline", measure, "a whole request in one process, stage by stage")
