"""From wire to core: bounds, defaults, and what a question becomes."""

import contextlib
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from google.protobuf.message import Message
from hypothesis import given
from hypothesis import strategies as st
from serving_cases import NOW_MS, generation

from index.strings import keys64
from protos.events_pb2 import WriteEventsRequest
from protos.impression_pb2 import Boost, FeatureValue, HybridOptions, Impression, Kind, Outcome, QueryOptions
from protos.recommender_pb2 import (
    Context,
    FacetRequest,
    PolicyOverrides,
    RankRequest,
    RecommendRequest,
    SearchRequest,
)
from serving import codec, events
from serving.codec import InvalidRequest, Request, Unsupported

LONG = "x" * 10_000


def ask(request: Request, *, time_ms: int | None = NOW_MS) -> Impression:
    return codec.asked(request, server_time_ms=time_ms, new_request_id=lambda at: f"made-{at}")


ACCEPTED: list[Callable[[], Request]] = [
    RecommendRequest,
    lambda: RecommendRequest(page_size=1),
    lambda: RecommendRequest(page_size=500),
    lambda: RecommendRequest(request_id="x" * 256),
    lambda: RecommendRequest(context=Context(user_id="x" * 256, tenant="x" * 64, surface="x" * 64)),
    lambda: RecommendRequest(context=Context(visitor_id="x" * 256, session_id="x" * 256)),
    lambda: RecommendRequest(context=Context(recent_item_ids=["x" * 256] * 100)),
    lambda: RecommendRequest(context=Context(client_time_ms=codec.MAX_TIME_MS)),
    lambda: RecommendRequest(context=Context(features={f"f{k}": FeatureValue(number=k) for k in range(100)})),
    lambda: RecommendRequest(context=Context(features={"f": FeatureValue(text="x" * 512)})),
    lambda: RecommendRequest(seed_item_ids=["x"] * 100),
    lambda: RecommendRequest(exclude_item_ids=["x"] * 1000),
    lambda: RecommendRequest(return_fields=["title", "category", "published_ms"]),
    lambda: RecommendRequest(labels={f"l{k}": "x" * 256 for k in range(32)}),
    lambda: RecommendRequest(debug="DEBUG_LEVEL_SUMMARY"),
    lambda: SearchRequest(query="x" * 512),
    lambda: RankRequest(item_ids=[f"i{k}" for k in range(1000)]),
    lambda: RankRequest(item_ids=["i1"], page_size=1000),
    lambda: RecommendRequest(filter="x" * 5000),  # the parser has its own bounds
    lambda: SearchRequest(query="a", filter_mode="FILTER_MODE_STRICT"),
]

REFUSED: list[tuple[str, Callable[[], Request]]] = [
    ("page_size", lambda: RecommendRequest(page_size=0)),
    ("page_size", lambda: RecommendRequest(page_size=-1)),
    ("page_size", lambda: RecommendRequest(page_size=501)),
    ("page_size", lambda: SearchRequest(query="a", page_size=501)),
    ("page_size", lambda: RankRequest(item_ids=["i1"], page_size=1001)),
    ("request_id", lambda: RecommendRequest(request_id="x" * 257)),
    ("context.user_id", lambda: RecommendRequest(context=Context(user_id="x" * 257))),
    ("context.visitor_id", lambda: RecommendRequest(context=Context(visitor_id="x" * 257))),
    ("context.session_id", lambda: RecommendRequest(context=Context(session_id="x" * 257))),
    ("context.tenant", lambda: RecommendRequest(context=Context(tenant="x" * 65))),
    ("context.surface", lambda: RecommendRequest(context=Context(surface="x" * 65))),
    ("context.recent_item_ids", lambda: RecommendRequest(context=Context(recent_item_ids=["x"] * 101))),
    ("context.recent_item_ids", lambda: RecommendRequest(context=Context(recent_item_ids=[""]))),
    ("context.priority", lambda: RecommendRequest(context=Context(priority=4))),  # type: ignore[arg-type]
    ("context.client_time_ms", lambda: RecommendRequest(context=Context(client_time_ms=-1))),
    ("context.client_time_ms", lambda: RecommendRequest(context=Context(client_time_ms=codec.MAX_TIME_MS + 1))),
    ("context.features", lambda: RecommendRequest(context=Context(features={"f": FeatureValue(number=math.nan)}))),
    ("context.features", lambda: RecommendRequest(context=Context(features={"f": FeatureValue(number=math.inf)}))),
    ("context.features", lambda: RecommendRequest(context=Context(features={"f": FeatureValue(number=1e39)}))),
    ("context.features", lambda: RecommendRequest(context=Context(features={"f": FeatureValue(text="x" * 513)}))),
    ("context.features", lambda: RecommendRequest(context=Context(features={"f": FeatureValue()}))),
    ("context.features", lambda: RecommendRequest(context=Context(features={LONG: FeatureValue(number=1)}))),
    (
        "context.features",
        lambda: RecommendRequest(context=Context(features={f"f{k}": FeatureValue(number=1) for k in range(101)})),
    ),
    ("seed_item_ids", lambda: RecommendRequest(seed_item_ids=["x"] * 101)),
    ("seed_item_ids", lambda: RecommendRequest(seed_item_ids=[""])),
    ("exclude_item_ids", lambda: RecommendRequest(exclude_item_ids=["x"] * 1001)),
    ("exclude_item_ids", lambda: RecommendRequest(exclude_item_ids=["x" * 257])),
    ("return_fields", lambda: RecommendRequest(return_fields=["price"] * 33)),
    ("page_token", lambda: RecommendRequest(page_token="t")),
    ("page_token", lambda: RecommendRequest(page_token="\u00fc" * 20_000)),
    ("boosts", lambda: RecommendRequest(boosts=[Boost(condition="price < 3")] * 17)),
    ("boosts[0].condition", lambda: RecommendRequest(boosts=[Boost()])),
    ("boosts[0].strength", lambda: RecommendRequest(boosts=[Boost(condition="price < 3", strength=math.nan)])),
    ("boosts[0].strength", lambda: RecommendRequest(boosts=[Boost(condition="price < 3", strength=1001)])),
    ("facets", lambda: SearchRequest(query="a", facets=[FacetRequest()] * 17)),
    ("facets[0].limit", lambda: SearchRequest(query="a", facets=[FacetRequest(field="category", limit=1001)])),
    ("facets[0].bounds", lambda: SearchRequest(query="a", facets=[FacetRequest(field="price", bounds=[2, 1])])),
    ("hybrid.mode", lambda: SearchRequest(query="a", hybrid=HybridOptions(mode=9))),  # type: ignore[arg-type]
    ("hybrid.lexical_weight", lambda: SearchRequest(query="a", hybrid=HybridOptions(lexical_weight=1.5))),
    ("order_by", lambda: SearchRequest(query="a", order_by="price upwards")),
    ("labels", lambda: RecommendRequest(labels={f"l{k}": "" for k in range(33)})),
    ("labels", lambda: RecommendRequest(labels={"l": "x" * 257})),
    ("labels", lambda: RecommendRequest(labels={"x" * 65: ""})),
    ("filter_mode", lambda: RecommendRequest(filter_mode=99)),  # type: ignore[arg-type]
    ("debug", lambda: RecommendRequest(debug=99)),  # type: ignore[arg-type]
    ("query", SearchRequest),
    ("query", lambda: SearchRequest(query=" \t ")),
    ("query", lambda: SearchRequest(query="x" * 513)),
    ("query", lambda: RankRequest(item_ids=["i1"], query="x" * 513)),
    ("query_options.spelling", lambda: SearchRequest(query="a", query_options={"spelling": 9})),
    ("query_options.language", lambda: SearchRequest(query="a", query_options=QueryOptions(language="de"))),
    ("item_ids", RankRequest),
    ("item_ids", lambda: RankRequest(item_ids=[f"i{k}" for k in range(1001)])),
    ("item_ids", lambda: RankRequest(item_ids=["i1", "i2", "i1"])),
    ("item_ids", lambda: RankRequest(item_ids=[""])),
]

NOT_YET: list[tuple[str, Callable[[], Request]]] = [
    ("policy", lambda: RecommendRequest(policy=PolicyOverrides(temperature=0))),
    ("debug", lambda: RecommendRequest(debug="DEBUG_LEVEL_FULL")),
]


@pytest.mark.parametrize("request_of", ACCEPTED)
def test_the_largest_value_allowed_is_taken(request_of: Callable[[], Request]) -> None:
    assert ask(request_of()).request_id


@pytest.mark.parametrize(("field", "request_of"), REFUSED)
def test_a_value_out_of_bounds_is_refused_in_one_line_that_names_the_field(
    field: str, request_of: Callable[[], Request]
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        ask(request_of())
    message = str(caught.value)
    assert message.startswith(field)
    assert "allowed" in message
    assert "\n" not in message
    assert len(message) < 300


@pytest.mark.parametrize(("field", "request_of"), NOT_YET)
def test_a_field_that_is_not_supported_is_not_silently_ignored(field: str, request_of: Callable[[], Request]) -> None:
    with pytest.raises(Unsupported, match=field):
        ask(request_of())


def test_every_field_of_a_request_is_used_or_refused() -> None:
    """A field that is added to the wire has to be thought of here."""
    used = {
        *("context", "request_id", "page_size", "exclude_item_ids", "return_fields", "include_scores", "columns"),
        *("debug", "validate_only", "no_log", "labels", "seed_item_ids", "query", "item_ids"),
        *("filter", "filter_mode", "page_token", "boosts", "facets", "hybrid", "order_by", "query_options"),
    }
    for request in (RecommendRequest, SearchRequest, RankRequest):
        for field in request.DESCRIPTOR.fields:
            assert (field.name in used) != (field.name in codec._UNSUPPORTED), field.name


def test_a_trusted_clock_needs_a_time() -> None:
    with pytest.raises(InvalidRequest, match="client_time_ms"):
        ask(RecommendRequest(), time_ms=None)
    assert ask(RecommendRequest(context=Context(client_time_ms=7)), time_ms=None).time_ms == 7
    assert ask(RecommendRequest(context=Context(client_time_ms=7))).time_ms == NOW_MS


def test_what_is_left_out_has_a_stated_default() -> None:
    recommend, search = ask(RecommendRequest()), ask(SearchRequest(query="a"))
    assert (recommend.size, recommend.surface, recommend.request_id) == (20, "home", f"made-{NOW_MS}")
    assert (search.surface, search.text, search.kind) == ("search", "a", Kind.KIND_SEARCH)
    assert ask(RankRequest(item_ids=["i1", "i2"])).size == 2


def test_the_callers_recent_items_go_before_the_stored_history_and_are_not_repeated() -> None:
    asked = ask(RecommendRequest(context=Context(recent_item_ids=["i3", "i4", "i3"])))
    stored = keys64(["i4", "i5"])
    codec.remember(asked, stored, np.array([1, 2], np.uint32), np.array([10, 20], np.int64))
    assert list(asked.history_item_key) == keys64(["i3", "i4", "i5"]).tolist()
    assert list(asked.history_action_key) == [0, 0, 2]
    assert list(asked.history_time_ms) == [NOW_MS, NOW_MS, 20]


def test_a_query_holds_rows_of_the_generation_and_leaves_out_what_it_does_not_know() -> None:
    request = RecommendRequest(
        context=Context(user_id="u1", features={"age": FeatureValue(number=30), "country": FeatureValue(text="at")}),
        seed_item_ids=["i7", "gone"],
        exclude_item_ids=["gone", "i9"],
        page_size=5,
    )
    one = generation()
    asked = ask(request)
    codec.remember(
        asked, keys64(["i2", "gone"]), np.array([7, 7], np.uint32), np.array([NOW_MS - 5, NOW_MS - 6], np.int64)
    )
    query = codec.query_of(asked, one)
    assert query.seed_row_S.tolist() == [7]
    assert query.exclude_row_X.tolist() == [9]
    assert query.only_row_N is None
    assert query.history.row_L.tolist() == [2]
    assert query.features == {"age": 30.0, "country": "at"}
    assert (query.user_id, query.size, query.time_ms) == ("u1", 5, NOW_MS)
    assert codec.missing_ids(asked, query, one) == ["gone"]


def test_a_rank_query_holds_only_the_callers_items_in_their_order() -> None:
    asked = ask(RankRequest(item_ids=["i9", "gone", "i3"]))
    one = generation()
    query = codec.query_of(asked, one)
    assert query.only_row_N is not None
    assert query.only_row_N.tolist() == [9, 3]
    assert codec.missing_ids(asked, query, one) == ["gone"]


@pytest.mark.parametrize(
    ("features", "named"),
    [
        ({"shoe_size": FeatureValue(number=1)}, "shoe_size"),
        ({"age": FeatureValue(text="old")}, "age"),
        ({"country": FeatureValue(number=1)}, "country"),
    ],
)
def test_a_feature_that_the_generation_does_not_have_is_refused(features: dict[str, FeatureValue], named: str) -> None:
    asked = ask(RecommendRequest(context=Context(features=features)))
    with pytest.raises(InvalidRequest, match=named):
        codec.check_against(asked, generation())


@pytest.mark.parametrize(
    ("condition", "named"),
    [("published_ms >", "expected"), ("colour = 1", "colour"), ('published_ms = "x"', "published")],
)
def test_a_filter_is_read_by_the_generation_that_answers(condition: str, named: str) -> None:
    asked = ask(RankRequest(item_ids=["i1"], filter=condition))
    with pytest.raises(InvalidRequest, match=f"^filter: .*{named}"):
        codec.check_against(asked, generation())
    asked = ask(RankRequest(item_ids=["i1"], filter=" available = true "))
    codec.check_against(asked, generation())
    assert asked.filter == "available = true"
    assert codec.query_of(asked, generation()).filter == "available = true"
    assert not codec.same_question(asked, ask(RankRequest(item_ids=["i1"])))


OUTCOME: dict[str, Any] = {"event_id": "e", "item_id": "i1", "action": "click", "time_ms": NOW_MS, "value": 1.0}


@pytest.mark.parametrize(
    ("field", "changes"),
    [
        ("event_id", {"event_id": ""}),
        ("event_id", {"event_id": "x" * 257}),
        ("item_id", {"item_id": ""}),
        ("item_id", {"item_id": "x" * 257}),
        ("action", {"action": ""}),
        ("action", {"action": "x" * 65}),
        ("request_id", {"request_id": "x" * 257}),
        ("user_id", {"user_id": "x" * 257}),
        ("session_id", {"session_id": "x" * 257}),
        ("visitor_id", {"visitor_id": "x" * 257}),
        ("tenant", {"tenant": "x" * 65}),
        ("value", {"value": math.nan}),
        ("value", {"value": -math.inf}),
        ("value", {"value": 1e13}),
        ("time_ms", {"time_ms": 0}),
        ("time_ms", {"time_ms": -1}),
        ("time_ms", {"time_ms": NOW_MS + codec.FUTURE_MS + 1}),
        ("position", {"position": -2}),
        ("position", {"position": 1000}),
        ("attribution_token", {"attribution_token": "forged"}),
        ("attribution_token", {"attribution_token": "u1."}),
        ("attribution_token", {"attribution_token": "u1." + "x" * 257}),
        ("request_id", {"attribution_token": "u1.r1", "request_id": "r2"}),
    ],
)
def test_an_event_out_of_bounds_is_refused(field: str, changes: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        events.kept(Outcome(**{**OUTCOME, **changes}), server_time_ms=NOW_MS)
    assert str(caught.value).startswith(field)


def test_an_event_is_stamped_and_attributed() -> None:
    token = codec.attribution_token("r7")
    kept = events.kept(Outcome(**OUTCOME, attribution_token=token), server_time_ms=NOW_MS + 5)
    assert (kept.request_id, kept.visible_ms, kept.position) == ("r7", NOW_MS + 5, -1)
    trusted = events.kept(Outcome(**OUTCOME, visible_ms=NOW_MS + 9, position=0), server_time_ms=None)
    assert (trusted.visible_ms, trusted.position) == (NOW_MS + 9, 0)
    ahead = events.kept(Outcome(**{**OUTCOME, "time_ms": NOW_MS + 1000}), server_time_ms=NOW_MS)
    assert ahead.visible_ms == NOW_MS + 1000


@pytest.mark.parametrize("count", [0, 1001])
def test_a_batch_of_events_is_bounded(count: int) -> None:
    with pytest.raises(InvalidRequest, match="events"):
        events.check_events(WriteEventsRequest(events=[Outcome()] * count))


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_an_invalid_request(wire: bytes) -> None:
    messages: list[Message] = [RecommendRequest(), SearchRequest(), RankRequest(), WriteEventsRequest(), Outcome()]
    for message in messages:
        with contextlib.suppress(InvalidRequest):
            codec.parse(message, wire)


@given(st.text(max_size=300), st.text(max_size=600), st.lists(st.text(max_size=300), max_size=4), st.integers(-5, 600))
def test_any_request_is_asked_or_refused(user: str, text: str, ids: list[str], size: int) -> None:
    requests: list[Request] = [
        RecommendRequest(context=Context(user_id=user), seed_item_ids=ids, page_size=size),
        SearchRequest(context=Context(user_id=user), query=text, exclude_item_ids=ids),
        RankRequest(context=Context(surface=text), item_ids=ids),
    ]
    for request in requests:
        try:
            asked = ask(request)
        except InvalidRequest:
            continue
        one = generation()
        answer = one.pipeline.run(codec.query_of(asked, one))
        assert len(answer.slate) <= asked.size
