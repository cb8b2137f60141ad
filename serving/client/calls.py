"""What a client can ask, each once for both clients: arguments to request, reply to answer.

Every function here is a generator of the calls that it takes, is told each one's reply and returns the answer;
Both clients of `serving.client` bind them as methods. All of them raise CallFailed.
"""

import uuid
from collections.abc import Generator, Mapping, Sequence
from typing import TypeVar

from google.protobuf.message import Message
from grpc_health.v1 import health_pb2

from protos import admin_pb2, catalog_pb2, events_pb2, recommender_pb2
from protos.catalog_pb2 import CatalogStatus
from protos.events_pb2 import EventStatus
from protos.recommender_pb2 import Context
from serving.client.attempts import Call, CallFailed
from serving.records import (
    CatalogAnswer,
    Event,
    EventAnswer,
    ItemChange,
    ItemEntry,
    ShownSlate,
    SuggestedLine,
    UserEntry,
    lines_of,
    options_of,
    slate_of,
    values,
)

_T = TypeVar("_T")
Steps = Generator[Call, bytes, _T]

_HEALTH = "/grpc.health.v1.Health/Check"
_ADMIN_DEADLINE_S = 120.0
"""Loading and warming a generation takes its time."""
_EXPLAIN_DEADLINE_S = 60.0
"""Whoever answered may have to be loaded again."""


def recommend(
    user_id: str = "",
    *,
    size: int = 20,
    seed_item_ids: Sequence[str] = (),
    surface: str = "home",
    session_id: str = "",
    recent_item_ids: Sequence[str] = (),
    exclude_item_ids: Sequence[str] = (),
    filter: str = "",  # noqa: A002  # one word for it everywhere
    features: Mapping[str, str | float] | None = None,
    request_id: str = "",
    time_ms: int = 0,
    include_scores: bool = False,
    columns: bool = False,
    no_log: bool = False,
    page_token: str = "",
    deadline_s: float | None = None,
) -> Steps[ShownSlate]:
    """A slate for a user and/or seed items.

    Args:
        filter: a condition on attributes, such as `category = "News" AND price < 20`.
        time_ms: as of when, for a server that trusts the caller's clock.
        columns: ask for the cheap form: no titles, no categories, reasons without item ids.
        page_token: `next_page_token` of the slate before; all else as there.

    Raises:
        CallFailed: as all methods do.
    """
    request = recommender_pb2.RecommendRequest(
        context=_context(
            user_id,
            surface=surface,
            session_id=session_id,
            recent_item_ids=recent_item_ids,
            features=features,
            time_ms=time_ms,
        ),
        request_id=request_id or uuid.uuid4().hex,
        page_size=size,
        seed_item_ids=seed_item_ids,
        exclude_item_ids=exclude_item_ids,
        filter=filter,
        include_scores=include_scores,
        columns=columns,
        no_log=no_log,
        page_token=page_token,
    )
    reply = yield _call("Recommender/Recommend", request, deadline_s)
    return slate_of(recommender_pb2.RecommendResponse.FromString(reply))


def search(
    query: str,
    *,
    user_id: str = "",
    size: int = 20,
    surface: str = "search",
    session_id: str = "",
    recent_item_ids: Sequence[str] = (),
    exclude_item_ids: Sequence[str] = (),
    filter: str = "",  # noqa: A002  # one word for it everywhere
    query_options: Mapping[str, str | bool] | None = None,
    features: Mapping[str, str | float] | None = None,
    request_id: str = "",
    time_ms: int = 0,
    include_scores: bool = False,
    columns: bool = False,
    no_log: bool = False,
    page_token: str = "",
    order_by: str = "",
    facets: Sequence[str] = (),
    deadline_s: float | None = None,
) -> Steps[ShownSlate]:
    """A slate for a typed query; arguments as of `recommend`.

    Args:
        order_by: an attribute that is a number and a direction, such as "price asc"; by utility where empty.
        facets: attributes whose values among all matches to count.
        query_options: what may be done to the query, all where not given; see `records.options_of`.
    """
    request = recommender_pb2.SearchRequest(
        context=_context(
            user_id,
            surface=surface,
            session_id=session_id,
            recent_item_ids=recent_item_ids,
            features=features,
            time_ms=time_ms,
        ),
        query=query,
        query_options=options_of(query_options or {}),
        request_id=request_id or uuid.uuid4().hex,
        page_size=size,
        exclude_item_ids=exclude_item_ids,
        filter=filter,
        include_scores=include_scores,
        columns=columns,
        no_log=no_log,
        page_token=page_token,
        order_by=order_by,
        facets=[recommender_pb2.FacetRequest(field=name) for name in facets],
    )
    reply = yield _call("Recommender/Search", request, deadline_s)
    return slate_of(recommender_pb2.SearchResponse.FromString(reply))


def suggest(
    prefix: str,
    *,
    user_id: str = "",
    size: int = 10,
    surface: str = "search",
    time_ms: int = 0,
    deadline_s: float | None = None,
) -> Steps[tuple[SuggestedLine, ...]]:
    """What somebody who has typed so much may search for, best first."""
    request = recommender_pb2.SuggestRequest(
        context=_context(user_id, surface=surface, session_id="", recent_item_ids=(), features=None, time_ms=time_ms),
        prefix=prefix,
        page_size=size,
    )
    reply = yield _call("Recommender/Suggest", request, deadline_s)
    return lines_of(recommender_pb2.SuggestResponse.FromString(reply))


def rank(
    item_ids: Sequence[str],
    *,
    user_id: str = "",
    query: str = "",
    size: int | None = None,
    surface: str = "home",
    session_id: str = "",
    recent_item_ids: Sequence[str] = (),
    filter: str = "",  # noqa: A002  # one word for it everywhere
    features: Mapping[str, str | float] | None = None,
    request_id: str = "",
    time_ms: int = 0,
    include_scores: bool = False,
    columns: bool = False,
    no_log: bool = False,
    deadline_s: float | None = None,
) -> Steps[ShownSlate]:
    """The caller's items put in order, the best `size` of them; arguments as of `recommend`."""
    request = recommender_pb2.RankRequest(
        context=_context(
            user_id,
            surface=surface,
            session_id=session_id,
            recent_item_ids=recent_item_ids,
            features=features,
            time_ms=time_ms,
        ),
        item_ids=item_ids,
        query=query,
        request_id=request_id or uuid.uuid4().hex,
        page_size=size,
        filter=filter,
        include_scores=include_scores,
        columns=columns,
        no_log=no_log,
    )
    reply = yield _call("Recommender/Rank", request, deadline_s)
    return slate_of(recommender_pb2.RankResponse.FromString(reply))


def explain(
    asked: str | recommender_pb2.RecommendRequest | recommender_pb2.SearchRequest,
    *,
    item_ids: Sequence[str] = (),
    features: bool = False,
    what_ifs: Sequence[recommender_pb2.WhatIf] = (),
    lost: int = 0,
    deadline_s: float = _EXPLAIN_DEADLINE_S,
) -> Steps[recommender_pb2.ExplainResponse]:
    """Why the slate of a request holds what it holds.

    Args:
        asked: the id of a logged request; or one to be answered now and forgotten.
        item_ids: what to explain, shown or not; empty for all that were shown.
        features: also what the ranker saw, and what each feature contributed.
        what_ifs: other ways to answer it, to be told of beside it.
        lost: how many of the items that were lost at each stage to explain too.
    """
    request = recommender_pb2.ExplainRequest(item_ids=item_ids, features=features, what_ifs=what_ifs, lost=lost)
    if isinstance(asked, str):
        request.request_id = asked
    elif isinstance(asked, recommender_pb2.SearchRequest):
        request.search.CopyFrom(asked)
    else:
        request.recommend.CopyFrom(asked)
    reply = yield _call("Recommender/Explain", request, deadline_s)
    return recommender_pb2.ExplainResponse.FromString(reply)


def rules() -> Steps[admin_pb2.GetRulesResponse]:
    """The business rules in force, and their etag."""
    reply = yield _manage("GetRules", admin_pb2.GetRulesRequest())
    return admin_pb2.GetRulesResponse.FromString(reply)


def put_rules(rules: Sequence[admin_pb2.Rule], *, etag: str) -> Steps[admin_pb2.PutRulesResponse]:
    """Replace all rules, if those in force still have this etag; the next request follows them."""
    reply = yield _manage("PutRules", admin_pb2.PutRulesRequest(rules=rules, etag=etag))
    return admin_pb2.PutRulesResponse.FromString(reply)


def traffic() -> Steps[admin_pb2.GetTrafficResponse]:
    """The experiments in force, their etag, and how canaries fare."""
    reply = yield _manage("GetTraffic", admin_pb2.GetTrafficRequest())
    return admin_pb2.GetTrafficResponse.FromString(reply)


def set_traffic(
    experiments: Sequence[admin_pb2.Experiment], *, etag: str, reason: str = ""
) -> Steps[admin_pb2.SetTrafficResponse]:
    """Replace all experiments, if those in force still have this etag; the next request follows them."""
    request = admin_pb2.SetTrafficRequest(experiments=experiments, etag=etag, reason=reason)
    reply = yield _manage("SetTraffic", request)
    return admin_pb2.SetTrafficResponse.FromString(reply)


def write_events(events: Sequence[Event], *, deadline_s: float | None = None) -> Steps[list[EventAnswer]]:
    """At most 1000 events; one answer each, in order."""
    request = events_pb2.WriteEventsRequest(events=[each.on_the_wire() for each in events])
    reply = yield _call("Events/Write", request, deadline_s)
    response = events_pb2.WriteEventsResponse.FromString(reply)
    return [
        EventAnswer(each.event_id, EventStatus.Name(each.status).removeprefix("EVENT_STATUS_"), each.reason)
        for each in response.results
    ]


def upsert_items(items: Sequence[ItemEntry], *, deadline_s: float | None = None) -> Steps[list[CatalogAnswer]]:
    """Add or replace at most 1000 items; one answer each, in order. The next request can show them."""
    request = catalog_pb2.UpsertItemsRequest(items=[each.on_the_wire() for each in items])
    return (yield from _change("UpsertItems", request, deadline_s))


def delete_items(item_ids: Sequence[str], *, deadline_s: float | None = None) -> Steps[list[CatalogAnswer]]:
    """Take out at most 1000 items; no answer to a later request shows them."""
    return (yield from _change("DeleteItems", catalog_pb2.DeleteItemsRequest(item_ids=item_ids), deadline_s))


def patch_items(changes: Sequence[ItemChange], *, deadline_s: float | None = None) -> Steps[list[CatalogAnswer]]:
    """Change at most 1000 items, which are not embedded again: ranker and filters know a new value at once, the
    vectors when the next generation is built."""
    request = catalog_pb2.PatchItemsRequest(patches=[each.on_the_wire() for each in changes])
    return (yield from _change("PatchItems", request, deadline_s))


def upsert_users(users: Sequence[UserEntry], *, deadline_s: float | None = None) -> Steps[list[CatalogAnswer]]:
    """Add or replace the stored columns of at most 1000 users; one answer each, in order."""
    request = catalog_pb2.UpsertUsersRequest(users=[each.on_the_wire() for each in users])
    return (yield from _change("UpsertUsers", request, deadline_s))


def forget_user(user_id: str, *, reference: str = "", deadline_s: float | None = None) -> Steps[str]:
    """Remove a person from the stored columns, the user state and later trainings; returns the record's number.

    Args:
        reference: of the demand, kept in the record.
    """
    request = catalog_pb2.ForgetUserRequest(user_id=user_id, reference=reference)
    reply = yield _call("Catalog/ForgetUser", request, deadline_s)
    return catalog_pb2.ForgetUserResponse.FromString(reply).audit_id


def ready(*, deadline_s: float = 1.0) -> Steps[bool]:
    """Whether a server answers with a generation within the deadline."""
    try:
        reply = yield Call(_HEALTH, health_pb2.HealthCheckRequest().SerializeToString(), deadline_s)
    except CallFailed:
        return False
    status = health_pb2.HealthCheckResponse.FromString(reply).status
    return bool(status == health_pb2.HealthCheckResponse.SERVING)


def status() -> Steps[admin_pb2.GetStatusResponse]:
    """What the server is doing."""
    reply = yield _manage("GetStatus", admin_pb2.GetStatusRequest())
    return admin_pb2.GetStatusResponse.FromString(reply)


def generations() -> Steps[admin_pb2.ListGenerationsResponse]:
    """What the server's store holds."""
    reply = yield _manage("ListGenerations", admin_pb2.ListGenerationsRequest())
    return admin_pb2.ListGenerationsResponse.FromString(reply)


def prepare(generation: str) -> Steps[admin_pb2.GenerationInfo]:
    """Load a generation beside the one that serves."""
    reply = yield _manage("Prepare", admin_pb2.PrepareRequest(generation=generation))
    return admin_pb2.PrepareResponse.FromString(reply).generation


def activate(generation: str, *, expected: str | None = None, reason: str = "") -> Steps[admin_pb2.GenerationInfo]:
    """Make a generation current.

    Args:
        expected: the current one; None reads it first, and so only guards against a change in between.
        reason: for the audit log of the store.
    """
    believed = (yield from generations()).current if expected is None else expected
    request = admin_pb2.ActivateRequest(generation=generation, expected=believed, reason=reason)
    reply = yield _manage("Activate", request)
    return admin_pb2.ActivateResponse.FromString(reply).generation


def rollback(*, reason: str = "") -> Steps[admin_pb2.GenerationInfo]:
    """Back to the generation before.

    Args:
        reason: for the audit log of the store.
    """
    reply = yield _manage("Rollback", admin_pb2.RollbackRequest(reason=reason))
    return admin_pb2.RollbackResponse.FromString(reply).generation


def _change(method: str, request: Message, deadline_s: float | None) -> Steps[list[CatalogAnswer]]:
    reply = yield _call(f"Catalog/{method}", request, deadline_s)
    response = catalog_pb2.CatalogResponse.FromString(reply)
    return [
        CatalogAnswer(each.id, CatalogStatus.Name(each.status).removeprefix("CATALOG_STATUS_"), each.reason)
        for each in response.results
    ]


def _call(method: str, request: Message, deadline_s: float | None) -> Call:
    return Call(f"/cascade.v1.{method}", request.SerializeToString(), deadline_s)


def _manage(method: str, request: Message) -> Call:
    return Call(f"/cascade.v1.Admin/{method}", request.SerializeToString(), _ADMIN_DEADLINE_S, admin=True)


def _context(
    user_id: str,
    *,
    surface: str,
    session_id: str,
    recent_item_ids: Sequence[str],
    features: Mapping[str, str | float] | None,
    time_ms: int,
) -> Context:
    return Context(
        user_id=user_id,
        surface=surface,
        session_id=session_id,
        recent_item_ids=recent_item_ids,
        features=values(features or {}),
        client_time_ms=time_ms,
    )
