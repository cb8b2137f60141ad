"""From core to wire: what the log holds of an answer, replay from it, what a caller is told."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from serving_cases import ACTIONS, NOW_MS, SETTINGS, SOURCES, TABLE, generation

from index.strings import keys64
from policy.selector import SlatePolicy
from protos.impression_pb2 import FeatureValue, Impression
from protos.recommender_pb2 import Context, ReasonKind, RecommendRequest, RecommendResponse, SearchRequest
from serving import answers, codec
from serving.codec import Request


def made(request: Request, *, eligible: bool = True) -> Impression:
    one = generation()
    asked = codec.asked(request, server_time_ms=NOW_MS, new_request_id=lambda at: f"made-{at}")
    query = codec.query_of(asked, one)
    answer = one.pipeline.run(query)
    return answers.record(asked, query=query, answer=answer, generation=one, eligible=eligible)


def test_a_logged_impression_gives_the_same_query_and_the_same_slate_again() -> None:
    request = RecommendRequest(
        context=Context(user_id="u1", recent_item_ids=["i4"], features={"age": FeatureValue(number=30)}),
        seed_item_ids=["i7"],
        exclude_item_ids=["i9"],
        page_size=7,
    )
    logged = Impression.FromString(made(request).SerializeToString())
    one = generation()
    again = one.pipeline.run(codec.query_of(logged, one))
    row_K = again.scored.candidates.row_N[again.slate.index_K]
    assert [one.items.ids.ids[int(row)] for row in row_K] == list(logged.item_id)
    assert again.slate.propensity_K.tolist() == list(logged.propensity)
    assert again.scored.query_row.tobytes() == logged.query_row
    assert again.scored.pair_row_N[again.slate.index_K].tobytes() == logged.pair_rows


def test_an_impression_holds_everything_about_the_draw() -> None:
    logged = made(SearchRequest(query="title", page_size=6, context=Context(user_id="u1"), labels={"a": "b"}))
    one = generation()
    slots = len(logged.item_id)
    assert slots == 6
    assert (logged.generation, logged.schema) == (one.id, TABLE.fingerprint)
    assert (logged.policy.temperature, logged.policy.epsilon, logged.policy.diversity) == (0.3, 0.05, 0.1)
    assert logged.policy.fingerprint == SETTINGS.fingerprint
    assert logged.policy.seed == SlatePolicy(SETTINGS, one.items, one.id).seed(codec.query_of(logged, one))
    assert logged.policy.log_propensity == pytest.approx(sum(math.log(p) for p in logged.propensity))
    assert list(logged.action_names) == list(ACTIONS)
    assert len(logged.probability) == slots * len(ACTIONS)
    assert list(logged.source_names) == list(SOURCES)
    item_rows = np.frombuffer(logged.item_rows, TABLE.dtype("item"))
    assert item_rows["category"].tolist() == [1 + int(item_id[1:]) % 3 for item_id in logged.item_id]
    assert len(np.frombuffer(logged.pair_rows, TABLE.dtype("pair"))) == slots
    assert len(np.frombuffer(logged.query_row, TABLE.dtype("query"))) == 1
    assert [stage.stage for stage in logged.stages] == ["hydrate", "retrieve", "filter", "score", "select"]
    assert dict(logged.labels) == {"a": "b"}
    eligible = dict(zip(logged.eligible_item_key, logged.eligible_utility, strict=True))
    for item_id, utility in zip(logged.item_id, logged.utility, strict=True):
        assert eligible[int(keys64([item_id])[0])] == utility
    assert len(eligible) > slots
    assert not made(RecommendRequest(), eligible=False).eligible_item_key


def answered(request: Request) -> tuple[RecommendResponse, Impression]:
    logged, one, response = made(request), generation(), RecommendResponse()
    answers.respond(response, request, logged=logged, query=codec.query_of(logged, one), generation=one)
    return response, logged


@given(
    user=st.sampled_from(["", "u1", "stranger"]),
    seeds=st.lists(st.sampled_from(["i5", "i35", "gone"]), max_size=3, unique=True),
    size=st.integers(1, 60),
    fields=st.lists(st.sampled_from(["title", "category", "published_ms"]), min_size=1, unique=True),
)
def test_columns_say_what_items_say(user: str, seeds: list[str], size: int, fields: list[str]) -> None:
    def request(*, columns: bool) -> RecommendRequest:
        return RecommendRequest(
            context=Context(user_id=user),
            seed_item_ids=seeds,
            page_size=size,
            include_scores=True,
            columns=columns,
            return_fields=fields,
            request_id="r",
        )

    rows, cheap = answered(request(columns=False))[0].items, answered(request(columns=True))[0].columns
    actions = len(cheap.action_names)
    assert [row.item_id for row in rows] == list(cheap.item_id)
    assert [row.position for row in rows] == list(range(len(rows)))
    assert [row.propensity for row in rows] == list(cheap.propensity)
    assert [row.score for row in rows] == list(cheap.score)
    assert [row.title for row in rows] == (list(cheap.title) or [""] * len(rows))
    assert [row.category for row in rows] == (list(cheap.category) or [""] * len(rows))
    assert [row.published_ms for row in rows] == (list(cheap.published_ms) or [0] * len(rows))
    for k, row in enumerate(rows):
        names = [name for s, name in enumerate(cheap.source_names) if cheap.source_bits[k] >> s & 1]
        assert list(row.sources) == names
        assert sum(1 << reason.kind for reason in row.reasons) == cheap.reason_bits[k]
        assert [row.actions[name] for name in cheap.action_names] == list(
            cheap.probability[k * actions : (k + 1) * actions]
        )
        assert row.prefix_propensity == pytest.approx(math.prod(cheap.propensity[: k + 1]))


@pytest.mark.parametrize("columns", [False, True])
def test_rows_that_are_known_and_rows_looked_up_tell_the_same(columns: bool) -> None:
    fields = ["title", "category", "published_ms"]
    request = RecommendRequest(page_size=30, request_id="r", columns=columns, return_fields=fields)
    expected, logged = answered(request)
    one, response = generation(), RecommendResponse()
    row_K = np.array([int(item_id[1:]) for item_id in logged.item_id])
    query = codec.query_of(logged, one)
    answers.respond(response, request, logged=logged, query=query, generation=one, row_K=row_K)
    assert response == expected


def reasons_of(request: Request) -> dict[str, set[str]]:
    response, _ = answered(request)
    return {
        item.item_id: {ReasonKind.Name(reason.kind).removeprefix("REASON_") for reason in item.reasons}
        for item in response.items
    }


def test_reasons_follow_from_sources_flags_and_what_is_known() -> None:
    stranger = reasons_of(RecommendRequest(context=Context(user_id="stranger"), page_size=60))
    assert all("COLD_START" in reasons for reasons in stranger.values())
    assert not any("PERSONALISED" in reasons for reasons in stranger.values())
    known = reasons_of(RecommendRequest(context=Context(user_id="u1"), page_size=60))
    assert not any("COLD_START" in reasons for reasons in known.values())
    assert "PERSONALISED" in known["i12"]
    assert "SIMILAR_TO" in known["i35"]
    assert {"FRESH", "POPULAR"} <= known["i3"]
    assert any("EXPLORED" in reasons for reasons in known.values())
    searched = reasons_of(SearchRequest(query="title", page_size=60))
    assert "SEARCH_MATCH" in searched["i20"]
    assert not any("COLD_START" in r for r in reasons_of(RecommendRequest(seed_item_ids=["i5"], page_size=9)).values())


def test_similar_to_names_the_nearest_seed() -> None:
    response, _ = answered(RecommendRequest(seed_item_ids=["i5", "i51"], page_size=60))
    one = generation()
    vectors = one.items.embedding_ID
    told = 0
    for item in response.items:
        for reason in item.reasons:
            if reason.kind == ReasonKind.REASON_SIMILAR_TO:
                row = int(item.item_id[1:])
                nearest = max((5, 51), key=lambda seed: float(vectors[row] @ vectors[seed]))
                assert reason.item_id == f"i{nearest}"
                told += 1
    assert told


def test_an_answer_from_the_log_is_told_by_another_generation_too() -> None:
    request = RecommendRequest(page_size=30, request_id="r")
    logged, smaller, response = made(request), generation("000002-00000000", count=20), RecommendResponse()
    answers.respond(response, request, logged=logged, query=codec.query_of(logged, smaller), generation=smaller)
    assert response.generation == "000001-00000000"
    assert [item.item_id for item in response.items] == list(logged.item_id)
    for item in response.items:
        gone = int(item.item_id[1:]) >= 20
        assert (item.title, item.category) == ("", "") if gone else item.title.startswith("000002")
