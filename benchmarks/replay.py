"""Replayed requests a second, stage by stage: what was served and logged, asked again and compared bit by bit.

One process and one core. Nothing else replays a request, so there is no peer; a log is replayed by as many processes as
there are cores, which share nothing but the generation's memory-mapped files.
"""

import time
from pathlib import Path
from tempfile import TemporaryDirectory

import faiss
import numpy as np
import torch

from benchmarks.harness import Bench, main
from benchmarks.pipeline import last_of, published
from index.strings import keys64
from protos.impression_pb2 import Impression, Kind
from serving.again import first_difference
from serving.answers import record
from serving.codec import query_of
from serving.generation import Generation, action_key
from training.datasets.dataset import Dataset
from training.simulation.world import World, WorldRequest

_SIZE = 10
_PASSES = 3
_LOGGED_DAYS = 5


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
        payloads = [served(each, generation, dataset) for each in requests]
        timed = [replayed(each, generation) for _ in range(1 + _PASSES) for each in payloads][len(payloads) :]
    whole_s = np.array([sum(each.values()) for each in timed])
    candidates = float(np.median([len(Impression.FromString(each).eligible_item_key) for each in payloads]))
    note = f"{1 / whole_s.mean():,.0f} requests/s, {candidates:.0f} candidates each, all of them equal"
    bench.record("a request, whole", whole_s, unit="ms", note=note)
    for stage in timed[0]:
        bench.record(f"a request, {stage}", np.array([each[stage] for each in timed]), unit="ms")


def served(request: WorldRequest, generation: Generation, dataset: Dataset) -> bytes:
    """The impression of a request with what its user did last, as a server logs it."""
    past = last_of(request, dataset)
    asked = Impression(
        request_id=request.request_id,
        time_ms=request.time_ms,
        kind=Kind.KIND_SEARCH if request.text else Kind.KIND_RECOMMEND,
        surface=request.surface,
        user_id=request.user_id,
        text=request.text,
        size=_SIZE,
        history_item_key=keys64(past["item_id"]).tolist(),
        history_action_key=[action_key(action) for action in past["action"]],
        history_time_ms=past["time_ms"].to_list(),
    )
    query = query_of(asked, generation)
    made = record(asked, query=query, answer=generation.pipeline.run(query), generation=generation, eligible=True)
    return made.SerializeToString()


def replayed(payload: bytes, generation: Generation) -> dict[str, float]:
    """Seconds of every stage.

    Raises:
        ValueError: where the answer is another one.
    """
    began = time.perf_counter()
    logged = Impression.FromString(payload)
    parsed = time.perf_counter()
    query = query_of(logged, generation)
    asked = time.perf_counter()
    answer = generation.pipeline.run(query)
    answered = time.perf_counter()
    if differing := first_difference(logged, query, answer, generation):
        raise ValueError(f"{logged.request_id} differs from stage {differing[0]} on ({differing[1]})")
    compared = time.perf_counter()
    stages = {name: ms / 1000 for name, ms in answer.trace.stage_ms.items()}
    between = answered - asked - sum(stages.values())
    return {
        "parse": parsed - began,
        "query": asked - parsed,
        **stages,
        "between stages": between,
        "compare": compared - answered,
    }


if __name__ == "__main__":
    main("replay", measure, "logged requests, replayed and compared")
