"""Slates for many users at once, in Parquet files: the pipeline that serves, a block of users at a time.

Users are cut into chunks, a file each, made in processes side by side; files that are there are not made again. What a
user did comes from the log and from what was known before it; what is trending, from the generation, as a server begins
with it. The request id is made of the moment and the user, so the same slates are drawn again from the same files.

Every slate is the one that a server draws for the same request; a few of each file are drawn again one at a time, as a
server does, and those that differ are counted. `batch.json` says what the files were made with.

A row is a user's slate: `user_id`, `request_id`, `generation`, `time_ms`, `degraded` (bits of protos/impression.proto),
and, slot by slot, `item_id`, `propensity` (P(item in its slot | slots before), exact) and `utility`.

Shape letters: K slots, N candidates.
"""

import json
import time
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import polars as pl
import torch

from candidate_gen.types import Query
from index.generations import GenerationStore
from index.strings import StringColumn, keys64
from protos.impression_pb2 import Variation
from serving.blocks import BlockPipeline
from serving.experiments.variants import varied
from serving.fan_out import FanOut
from serving.generation import Generation, action_key
from serving.live import Live
from serving.log.catalog_log import FILE, CatalogLog
from serving.pipeline import Answer
from serving.state.user_state import KEPT_EVENTS
from training.datasets.tables import read_table
from training.durable import appearing
from training.log.impression_log import Segment
from training.log.resumable import Journal, Result, Work, cores, over
from training.log.served import read_done
from training.off_policy import passes

_ASKED = "asked.parquet"
_JOURNAL = "batch.jsonl"
_ABOUT = "batch.json"
_PAST = ("item_key", "action_key", "time_ms")
_SLOTS = ("item_id", "propensity", "utility")
_BLOCK = 256
"""Users that are answered together: enough to share, few enough for what they need to stay small."""
_AGAIN = 4
"""Slates of a file that are drawn again one at a time."""
ROW = pl.Schema(
    {
        "user_id": pl.String(),
        "request_id": pl.String(),
        "generation": pl.String(),
        "time_ms": pl.Int64(),
        "degraded": pl.Int64(),
        "item_id": pl.List(pl.String()),
        "propensity": pl.List(pl.Float64()),
        "utility": pl.List(pl.Float32()),
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchSettings:
    """What `cascade batch recommend` is told."""

    mode: Literal["recommend"]
    generations: Path
    generation: str
    log: Path | None
    history: Path | None
    users: Path | None
    size: int
    surface: str
    time_ms: int | None
    output: Path
    workers: int | None
    chunk: int
    quotas: Mapping[str, int] = field(default_factory=dict)
    """Candidates by source, in place of the generation's."""
    most: int | None = None
    """Candidates that are scored, in place of the generation's `most`; None: as it has it."""

    def __post_init__(self) -> None:
        for name in ("size", "workers", "chunk", "most"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}; it must be at least 1")


def recommend(settings: BatchSettings) -> dict[str, Any]:
    """Make the slates that are missing; what is to be told of all of them.

    Raises:
        ValueError: for a generation that the store does not hold, for a source that it has not, without any user.
        DataError: for a list of users or a history that is no such table.
        CorruptGeneration, GenerationMismatch, CorruptLog: see `Generation.load` and `read_done`.
    """
    store = GenerationStore(settings.generations)
    name = settings.generation or store.current()
    if name is None:
        raise ValueError(f"no generation of {store.root} is current; name one: generation=...")
    generation = _loaded(settings, name)
    events = _events(settings)
    asked = _asked(settings, events, generation)
    if not asked.height:
        raise ValueError("there is nobody to recommend to: neither the generation nor the log knows a user")
    last_ms = events["visible_ms"].max()
    time_ms = (
        settings.time_ms or max(generation.manifest.data_window[1], last_ms if isinstance(last_ms, int) else 0) + 1
    )
    about = {
        "program": passes.program(),
        "generation": f"{name} {sorted(generation.manifest.fingerprints.items())} {generation.catalog_seq}",
        "request": f"{time_ms} {settings.size} {settings.surface} {sorted(settings.quotas.items())} {settings.most}",
        "users": f"{asked.height} {asked.hash_rows(seed=0).implode().hash(seed=0).item()}",
    }
    journal = Journal(settings.output / _JOURNAL, about)
    cut = [
        Segment(_ASKED, first, min(first + settings.chunk, asked.height), min(settings.chunk, asked.height - first), 0)
        for first in range(0, asked.height, settings.chunk)
    ]
    journal.done = {
        each: made for each, made in journal.done.items() if each in cut and _file(settings, each).is_file()
    }
    for stale in set(settings.output.glob("slates-*.parquet")) - {_file(settings, each) for each in journal.done}:
        stale.unlink()
    with appearing(settings.output / _ASKED) as draft:
        asked.write_parquet(draft)
    resumed = sum(each.rows for each in journal.done)
    started_s = time.perf_counter()
    make = partial(_recommending, settings, name, time_ms)
    results = list(over(cut, make, journal=journal, workers=cores(settings.workers), title="recommended"))
    seconds = time.perf_counter() - started_s
    counted = {
        "users": asked.height,
        "empty slates": sum(each["empty"] for each in results),
        "degraded slates": sum(each["degraded"] for each in results),
        "slates made one at a time": sum(each["alone"] for each in results),
        "slates drawn again": sum(each["again"] for each in results),
        "of them differing": sum(each["differing"] for each in results),
        "generation": name,
    }
    made_with = {
        "time_ms": time_ms,
        "size": settings.size,
        "surface": settings.surface,
        "quotas": {source.name: quota for source, quota in generation.pipeline.sources},
        "most": generation.pipeline.most,
    }
    with appearing(settings.output / _ABOUT) as draft:
        draft.write_text(json.dumps(counted | made_with, indent=1) + "\n")
    return counted | {
        "made before": resumed,
        "users_per_s": (asked.height - resumed) / seconds,
        "files": str(settings.output / "slates-*.parquet"),
    }


def _loaded(settings: BatchSettings, name: str) -> Generation:
    """The generation with all that its catalogue was told since, and with as many candidates as are asked for."""
    store = GenerationStore(settings.generations)
    generation = Generation.load(store, name)
    with closing(CatalogLog(store.root / FILE)) as catalog:
        generation = generation.changed(catalog.since(generation.catalog_seq))
    generation = varied(generation, Variation(quotas=settings.quotas))
    # Every core has a process of its own, so no source is worth a thread.
    pipeline = replace(generation.pipeline, fan_out=FanOut(()), most=settings.most or generation.pipeline.most)
    return replace(generation, pipeline=pipeline)


def _events(settings: BatchSettings) -> pl.DataFrame:
    """What users did, and was known by the moment."""
    events = read_done(settings.log, settings.history, generations=settings.generations)
    return events if settings.time_ms is None else events.filter(pl.col("visible_ms") <= settings.time_ms)


def _asked(settings: BatchSettings, events: pl.DataFrame, generation: Generation) -> pl.DataFrame:
    """Who is asked for, each once, with the newest of what they did, as the user state would hold it: newest first."""
    lately = (
        events.filter(pl.col("user_id") != "")
        .sort("visible_ms", "time_ms", "event_id", descending=True)
        .group_by("user_id", maintain_order=True)
        .head(KEPT_EVENTS)
    )
    lately = (
        lately.select(
            "user_id",
            "time_ms",
            pl.Series("item_key", keys64(lately["item_id"].to_list()), pl.UInt64),
            pl.Series("action_key", [action_key(each) for each in lately["action"]], pl.UInt32),
        )
        .group_by("user_id", maintain_order=True)
        .agg("item_key", "action_key", "time_ms")
    )
    if settings.users is None:
        ids = generation.profiles.users.ids
        stored = pl.Series("user_id", ids.take(np.arange(len(ids))), pl.String)
        users = pl.concat([stored, lately["user_id"]])
    else:
        users = read_table(settings.users, ["user_id"])["user_id"].cast(pl.String)
    return users.unique(maintain_order=True).to_frame().join(lately, on="user_id", how="left", maintain_order="left")


def _recommending(settings: BatchSettings, name: str, time_ms: int) -> Work:
    torch.set_num_threads(1)  # as in a server, for equal sums
    generation = _loaded(settings, name)
    asked = pl.read_parquet(settings.output / _ASKED)
    blocks = BlockPipeline(generation, Live(lambda: generation))
    ids = generation.items.ids.ids

    def work(chunk: Segment) -> Result:
        parts, differing, alone_before = [], 0, blocks.alone
        for first in range(chunk.first, chunk.last, _BLOCK):
            queries = _queries(settings, generation, asked[first : min(first + _BLOCK, chunk.last)], time_ms)
            answers = blocks.run(queries)
            parts.append(_rows(queries, answers, name, ids))
            if first == chunk.first:
                alone = [blocks.run_alone(query) for query in queries[:_AGAIN]]
                differing = sum(not _same(*each) for each in zip(answers, alone, strict=False))
        frame = pl.concat(parts)
        with appearing(_file(settings, chunk)) as draft:
            frame.write_parquet(draft)
        empty = int((frame["item_id"].list.len() == 0).sum())
        degraded = int((frame["degraded"] > 0).sum())
        return {
            "empty": empty,
            "degraded": degraded,
            "alone": blocks.alone - alone_before,
            "again": min(_AGAIN, frame.height),
            "differing": differing,
        }

    return work


def _same(one: Answer, other: Answer) -> bool:
    """Whether two answers show the same items with the same propensities, to the last bit."""
    shown, expected = (each.scored.candidates.row_N[each.slate.index_K] for each in (one, other))
    return np.array_equal(shown, expected) and np.array_equal(one.slate.propensity_K, other.slate.propensity_K)


def _queries(settings: BatchSettings, generation: Generation, asked: pl.DataFrame, time_ms: int) -> list[Query]:
    """What the users of these rows would ask."""
    length_B = asked["item_key"].list.len().fill_null(0).to_numpy()
    keys, actions, times_ms = (asked[name].explode(empty_as_null=False, keep_nulls=False).to_numpy() for name in _PAST)
    histories = generation.histories(keys, actions, times_ms, np.cumsum([0, *length_B.tolist()], dtype=np.int64))
    return [
        Query(f"batch/{time_ms}/{user_id}", time_ms, settings.surface, settings.size, user_id=user_id, history=history)
        for user_id, history in zip(asked["user_id"].to_list(), histories, strict=True)
    ]


def _rows(queries: Sequence[Query], answers: Sequence[Answer], generation: str, ids: StringColumn) -> pl.DataFrame:
    slates = [each.slate for each in answers]
    row_H = np.concatenate([each.scored.candidates.row_N[each.slate.index_K] for each in answers])
    slots = pl.DataFrame(
        {
            "slate": np.repeat(np.arange(len(slates)), [len(each) for each in slates]),
            "item_id": ids.take(row_H),
            "propensity": np.concatenate([each.propensity_K for each in slates]),
            "utility": np.concatenate([each.utility_N[each.index_K] for each in slates]),
        }
    )
    whole = pl.DataFrame(
        {
            "slate": np.arange(len(slates)),
            "user_id": [each.user_id for each in queries],
            "request_id": [each.request_id for each in queries],
            "generation": [generation] * len(queries),
            "time_ms": [each.time_ms for each in queries],
            "degraded": [each.trace.degraded for each in answers],
        }
    )
    listed = slots.group_by("slate", maintain_order=True).agg(pl.all())
    made = whole.join(listed, on="slate", how="left", maintain_order="left").drop("slate")
    return made.with_columns(pl.col(_SLOTS).fill_null([])).cast(ROW)


def _file(settings: BatchSettings, chunk: Segment) -> Path:
    return settings.output / f"slates-{chunk.first:012d}.parquet"
