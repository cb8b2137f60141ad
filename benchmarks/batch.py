"""Slates for everybody, beside the same pipeline asked by one user after the other, among 100,000 items.

Both give the same slates, which is checked for every user whom both answer. Times are CPU-seconds, so that what else
runs on the machine counts as little as it can. Once with as many candidates as a generation names by default, all of
them scored, and once as a batch that is content with fewer; in the end the command itself, in two processes.

Shape letters: B blocks.
"""

import resource
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch

from benchmarks.harness import Bench, main
from benchmarks.large_catalogue import MEDIUM, SMALL, LargeCatalogue, large_catalogue
from candidate_gen.types import Query
from index.strings import keys64
from protos.impression_pb2 import Variation
from serving.blocks import BlockPipeline
from serving.experiments.variants import varied
from serving.fan_out import FanOut
from serving.generation import Generation, action_key
from serving.live import Live
from serving.state.user_state import KEPT_EVENTS
from training.batch_slates import BatchSettings, recommend

_TOGETHER, _ALONE = 256, 32
"""Users of a block, and how many of them are asked one after the other too."""
_SLATE = 10


@dataclass(frozen=True, slots=True)
class Work:
    """How many candidates are named and scored."""

    name: str
    quotas: Mapping[str, int]
    most: int | None


_BY_DEFAULT = {"ann": 200, "lexical": 0, "similar": 80, "covisitation": 50, "trending": 50, "fresh": 50, "popular": 50}
"""Of a query without a text."""
_WORKS = (
    Work("default quotas, all scored", _BY_DEFAULT, None),
    Work("half of them, the best 64 scored", {name: quota // 2 for name, quota in _BY_DEFAULT.items()}, 64),
)


def measure(bench: Bench) -> None:
    torch.set_num_threads(1)
    catalogue = large_catalogue(SMALL if bench.quick else MEDIUM)
    generation = Generation.load(catalogue.crossed, catalogue.crossed.ids()[0])
    queries = _queries(catalogue, generation)
    with TemporaryDirectory(prefix="cascade-benchmark-") as folder:
        for work in _WORKS:
            few = varied(generation, Variation(quotas=work.quotas))
            few = replace(few, pipeline=replace(few.pipeline, most=work.most, fan_out=FanOut(())))
            _compare(bench, few, queries, work, blocks=2 if bench.quick else 8)
            _whole(bench, catalogue, work, Path(folder) / str(work.most))


def _queries(catalogue: LargeCatalogue, generation: Generation) -> list[Query]:
    """Of everybody who did something, in no order."""
    known = catalogue.events.sort("visible_ms", "time_ms", "event_id", descending=True)
    now_ms = int(known["visible_ms"][0]) + 1
    queries = []
    for (user_id,), own in known.group_by("user_id"):
        last = own.head(KEPT_EVENTS)
        history = generation.history(
            keys64(last["item_id"].to_list()),
            np.array([action_key(each) for each in last["action"]], np.uint32),
            last["time_ms"].to_numpy(),
        )
        queries.append(Query(f"{now_ms}/{user_id}", now_ms, "batch", _SLATE, user_id=str(user_id), history=history))
    return queries


def _compare(bench: Bench, generation: Generation, queries: list[Query], work: Work, *, blocks: int) -> None:
    """A block, and some of its users one after the other, in turn."""
    pipeline = BlockPipeline(generation, Live(lambda: generation))
    together = min(_TOGETHER, len(queries) // (blocks + 1))
    pipeline.run(queries[:together])
    ours_s_B, peer_s_B = np.empty(blocks), np.empty(blocks)
    scored, differing, asked = 0, 0, 0
    for block in range(blocks):
        own = queries[(1 + block) * together :][:together]
        alone = own[:_ALONE]
        started_s = time.process_time()
        answers = pipeline.run(own)
        ours_s_B[block] = (time.process_time() - started_s) / len(own)
        started_s = time.process_time()
        expected = [pipeline.run_alone(query) for query in alone]
        peer_s_B[block] = (time.process_time() - started_s) / len(alone)
        scored += sum(len(each.scored) for each in answers)
        asked += len(alone)
        for one, other in zip(answers, expected, strict=False):
            same = np.array_equal(one.slate.index_K, other.slate.index_K)
            differing += not (same and np.array_equal(one.slate.propensity_K, other.slate.propensity_K))
    figure = bench.pair(
        f"{len(generation.items):,} items, {work.name}",
        ours_s_B,
        peer_s_B,
        peer_name="one user after the other",
        unit="/s",
        note=f"users a second of one core's CPU; {scored / blocks / together:.0f} candidates scored; blocks from "
        f"{1 / ours_s_B.max():,.0f} to {1 / ours_s_B.min():,.0f}/s; {asked - differing} of {asked} slates equal",
    )
    bench.summary[f"users_per_s_per_core, {work.name}"] = figure.ours
    bench.summary[f"differing, {work.name}"] = differing + pipeline.alone


def _whole(bench: Bench, catalogue: LargeCatalogue, work: Work, output: Path) -> None:
    """The command, in two processes, by the clock and with all that they begin with."""
    settings = BatchSettings(
        mode="recommend",
        generations=catalogue.crossed.root,
        generation="",
        log=None,
        history=catalogue.folder / "events.parquet",
        users=None,
        size=_SLATE,
        surface="batch",
        time_ms=None,
        output=output,
        workers=2,
        chunk=1000,
        quotas=work.quotas,
        most=work.most,
    )
    told = recommend(settings)
    resident_mb = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    bench.note(
        f"`cascade batch recommend` with {work.name}: {told['users']:,} users in two processes, "
        f"{told['users_per_s']:,.0f} a second by the clock, which also counts the start of the processes; the larger "
        f"process had {resident_mb:,.0f} MB resident, shared pages among them; "
        f"{told['of them differing']} of {told['slates drawn again']} slates that it drew again differ"
    )


if __name__ == "__main__":
    main("batch", measure, "slates for everybody, beside one user after the other")
