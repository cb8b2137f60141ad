"""Queries answered together have, bit by bit, the answers that each has alone."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from conftest import Loop

from candidate_gen.activity import EVENT
from candidate_gen.filters import Seen
from candidate_gen.types import HydratedQuery, Query
from index.strings import keys64
from index.types import Hits
from protos.catalog_pb2 import CatalogItem, DeleteItemsRequest, UpsertItemsRequest
from protos.impression_pb2 import Degraded, Variation
from serving.blocks import BlockPipeline
from serving.experiments.variants import varied
from serving.fan_out import FanOut
from serving.generation import Generation, action_key
from serving.live import Live
from serving.log.catalog_log import Change, Entry
from serving.pipeline import Answer


@pytest.fixture(scope="module")
def generation(loop: Loop) -> Generation:
    found = loop.generations[1]
    return replace(found, pipeline=replace(found.pipeline, fan_out=FanOut(())))


def queries(loop: Loop, generation: Generation) -> list[Query]:
    """Of everybody, with all that they did, and of two strangers."""
    of = {str(user_id): events for (user_id,), events in loop.history.group_by("user_id")}
    found = []
    for user_id in [*loop.dataset.users["user_id"].to_list(), "nobody", "none"]:
        own = of.get(user_id, loop.history[:0]).sort("visible_ms", "time_ms", "event_id", descending=True).head(64)
        history = generation.history(
            keys64(own["item_id"].to_list()),
            np.array([action_key(each) for each in own["action"]], np.uint32),
            own["time_ms"].to_numpy(),
        )
        time_ms = loop.served_end_ms
        found.append(Query(f"block/{user_id}", time_ms, "home", 6, user_id=user_id, history=history))
    return found


def live(loop: Loop, generation: Generation) -> Live:
    """That has counted what everybody did."""
    made = Live(lambda: generation)
    made.prepare(generation)
    events = loop.history.sort("visible_ms", "time_ms", "event_id")
    made.add(
        np.array(
            list(
                zip(
                    keys64(events["item_id"].to_list()),
                    keys64(events["user_id"].to_list()),
                    [action_key(each) for each in events["action"]],
                    events["time_ms"].to_list(),
                    strict=True,
                )
            ),
            EVENT,
        )
    )
    return made


def alone(asked: Sequence[Query], generation: Generation, live: Live) -> list[Answer]:
    allowed = generation.attributes.allowed("")
    return [generation.pipeline.run(replace(query, live=live.named(query, generation, allowed))) for query in asked]


def bits(answer: Answer) -> tuple[object, ...]:
    scored, slate = answer.scored, answer.slate
    arrays = (
        scored.candidates.row_N,
        scored.candidates.rank_NS,
        scored.candidates.score_NS,
        scored.query_row,
        scored.item_row_N,
        scored.pair_row_N,
        scored.probability_NA,
        slate.index_K,
        slate.utility_N,
        slate.propensity_K,
        slate.flag_K,
    )
    return (
        *((each.shape, each.dtype, each.tobytes()) for each in arrays),
        scored.candidates.source_names,
        slate.relaxed,
        answer.trace.degraded,
        answer.trace.defaulted,
    )


def assert_same(loop: Loop, generation: Generation) -> list[Answer]:
    asked, counts = queries(loop, generation), live(loop, generation)
    blocks = BlockPipeline(generation, counts)
    together = blocks.run(asked)
    assert blocks.alone == 0
    for ours, expected in zip(together, alone(asked, generation, counts), strict=True):
        assert bits(ours) == bits(expected)
    return together


def test_answers_are_those_of_the_pipeline_to_the_last_bit(loop: Loop, generation: Generation) -> None:
    answers = assert_same(loop, generation)
    assert len({len(each.scored) for each in answers}) > 1
    assert answers[-1].trace.degraded & Degraded.DEGRADED_DEFAULT_FEATURES
    assert not answers[0].trace.degraded


def test_so_they_are_where_what_was_seen_is_left_out(loop: Loop, generation: Generation) -> None:
    hiding = replace(generation, pipeline=replace(generation.pipeline, filters=[*generation.pipeline.filters, Seen()]))
    answers, others = assert_same(loop, hiding), assert_same(loop, generation)
    assert sum(len(each.scored) for each in answers) < sum(len(each.scored) for each in others)


@pytest.mark.parametrize("most", [1, 40, 1000])
def test_so_they_are_where_fewer_candidates_are_scored(loop: Loop, generation: Generation, most: int) -> None:
    assert_same(loop, replace(generation, pipeline=replace(generation.pipeline, most=most)))


def test_so_they_are_with_other_sources_and_another_policy(loop: Loop, generation: Generation) -> None:
    variation = Variation(
        quotas={"similar": 0, "popular": 230, "trending": 90}, policy={"diversity": 0.3, "max_per_creator": 1}
    )
    answers = assert_same(loop, varied(generation, variation))
    assert max(len(each.scored) for each in answers) > 150  # so many that what is known comes last


def test_so_they_are_after_the_catalogue_changed(loop: Loop, generation: Generation) -> None:
    ids = generation.items.ids.ids
    popular = [ids[row] for row in np.argsort(generation.items.popularity_I)[-5:].tolist()]
    changes: list[Change] = [
        UpsertItemsRequest(items=[CatalogItem(item_id=f"new-{n}", title="New", published_ms=loop.served_end_ms - n)])
        for n in range(3)
    ]
    changes.append(DeleteItemsRequest(item_ids=popular))
    seq = generation.catalog_seq
    entries = [Entry(seq + n, loop.served_end_ms, change) for n, change in enumerate(changes, start=1)]
    changed = generation.changed(entries)
    answers = assert_same(loop, replace(changed, pipeline=replace(changed.pipeline, fan_out=FanOut(()))))
    first_new = len(generation.items)
    assert any((each.scored.candidates.row_N >= first_new).any() for each in answers)


@pytest.mark.parametrize(
    "more", [{"text": "jazz"}, {"exclude_row_X": np.arange(3)}, {"seed_row_S": np.arange(2)}, {"time_ms": 1}]
)
def test_queries_that_ask_for_more_are_answered_alone(
    loop: Loop, generation: Generation, more: dict[str, object]
) -> None:
    asked = queries(loop, generation)[:5]
    asked[2] = replace(asked[2], **more)  # type: ignore[arg-type]
    counts = live(loop, generation)
    blocks = BlockPipeline(generation, counts)
    answers = blocks.run(asked)
    assert blocks.alone == 5
    assert [bits(each) for each in answers] == [bits(each) for each in alone(asked, generation, counts)]


class BrokenSource:
    name = "fresh"

    def retrieve(self, hydrated: HydratedQuery, k: int) -> Hits:  # noqa: ARG002
        raise RuntimeError("broken")


def test_where_a_source_fails_each_is_answered_alone_and_says_so(loop: Loop, generation: Generation) -> None:
    sources = [(BrokenSource() if each.name == "fresh" else each, quota) for each, quota in generation.pipeline.sources]
    broken = replace(generation, pipeline=replace(generation.pipeline, sources=sources))
    asked, counts = queries(loop, broken), live(loop, broken)
    blocks = BlockPipeline(broken, counts)
    answers = blocks.run(asked)
    assert blocks.alone == len(asked)
    assert all(each.trace.degraded & Degraded.DEGRADED_SOURCE_ERROR for each in answers)
    assert [bits(each) for each in answers] == [bits(each) for each in alone(asked, broken, counts)]
