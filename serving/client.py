"""A typed, synchronous client.

Calls wait until a server is ready, have a deadline, and are sent again where the server was unavailable: that is
safe, because every request and every event carries an id that is stored once. Retries stop when they would be more
than a tenth of all calls (`retryThrottling`).
"""

import json
import uuid
from collections.abc import Mapping, Sequence

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2

from protos import admin_pb2, catalog_pb2, events_pb2, recommender_pb2
from protos.catalog_pb2 import CatalogStatus
from protos.events_pb2 import EventStatus
from protos.recommender_pb2 import Context
from serving.records import (
    CatalogAnswer,
    Event,
    EventAnswer,
    ItemChange,
    ItemEntry,
    ShownItem,
    ShownSlate,
    slate_of,
    values,
)

__all__ = [
    "CallFailed",
    "CascadeClient",
    "CatalogAnswer",
    "Event",
    "EventAnswer",
    "ItemChange",
    "ItemEntry",
    "ShownItem",
    "ShownSlate",
    "slate_of",
]

SERVICE_CONFIG = json.dumps(
    {
        "loadBalancingConfig": [{"round_robin": {}}],
        "healthCheckConfig": {"serviceName": ""},
        "methodConfig": [
            {
                "name": [{}],
                "retryPolicy": {
                    "maxAttempts": 4,
                    "initialBackoff": "0.05s",
                    "maxBackoff": "1s",
                    "backoffMultiplier": 2,
                    "retryableStatusCodes": ["UNAVAILABLE"],
                },
            }
        ],
        "retryThrottling": {"maxTokens": 20, "tokenRatio": 0.1},
    }
)
_OPTIONS = (
    ("grpc.service_config", SERVICE_CONFIG),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.max_receive_message_length", 16 << 20),
)
_ADMIN_DEADLINE_S = 120.0
"""Loading and warming a generation takes its time."""
_EXPLAIN_DEADLINE_S = 60.0
"""Whoever answered may have to be loaded again."""


class CallFailed(RuntimeError):
    """The server's answer was an error; `code` is the gRPC status name."""

    def __init__(self, method: str, code: str, message: str) -> None:
        super().__init__(f"{method}: {code}: {message}")
        self.code = code
        self.message = message


class CascadeClient:
    """
    Args:
        target: `host:port`, or `ipv4:host:port,host:port` for several servers, which are called in turn.
        admin_target: the admin port of one server; without it the admin methods raise ValueError.
        deadline_s: for each call on the data port.
    """

    def __init__(self, target: str, *, admin_target: str = "", deadline_s: float = 1.0) -> None:
        self._channel = grpc.insecure_channel(target, options=_OPTIONS)
        self._admin = grpc.insecure_channel(admin_target) if admin_target else None
        self._deadline_s = deadline_s

    def close(self) -> None:
        self._channel.close()
        if self._admin is not None:
            self._admin.close()

    def __enter__(self) -> "CascadeClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def recommend(
        self,
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
        deadline_s: float | None = None,
    ) -> ShownSlate:
        """A slate for a user and/or seed items.

        Args:
            filter: a condition on attributes, such as `category = "News" AND price < 20`.
            time_ms: as of when, for a server that trusts the caller's clock.
            columns: ask for the cheap form: no titles, no categories, reasons without item ids.

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
        )
        response = recommender_pb2.RecommendResponse()
        self._call("Recommender/Recommend", request, response, deadline_s)
        return slate_of(response)

    def search(
        self,
        query: str,
        *,
        user_id: str = "",
        size: int = 20,
        surface: str = "search",
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
        deadline_s: float | None = None,
    ) -> ShownSlate:
        """A slate for a typed query; arguments as of `recommend`."""
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
            request_id=request_id or uuid.uuid4().hex,
            page_size=size,
            exclude_item_ids=exclude_item_ids,
            filter=filter,
            include_scores=include_scores,
            columns=columns,
            no_log=no_log,
        )
        response = recommender_pb2.SearchResponse()
        self._call("Recommender/Search", request, response, deadline_s)
        return slate_of(response)

    def rank(
        self,
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
    ) -> ShownSlate:
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
        response = recommender_pb2.RankResponse()
        self._call("Recommender/Rank", request, response, deadline_s)
        return slate_of(response)

    def explain(
        self,
        request_id: str,
        *,
        item_ids: Sequence[str] = (),
        features: bool = False,
        deadline_s: float = _EXPLAIN_DEADLINE_S,
    ) -> recommender_pb2.ExplainResponse:
        """Why the slate of a request holds what it holds.

        Args:
            item_ids: what to explain, shown or not; empty for all that were shown.
            features: also what the ranker saw, and what each feature contributed.
        """
        request = recommender_pb2.ExplainRequest(request_id=request_id, item_ids=item_ids, features=features)
        response = recommender_pb2.ExplainResponse()
        self._call("Recommender/Explain", request, response, deadline_s)
        return response

    def rules(self) -> admin_pb2.GetRulesResponse:
        """The business rules in force, and their etag."""
        response = admin_pb2.GetRulesResponse()
        self._manage("GetRules", admin_pb2.GetRulesRequest(), response)
        return response

    def put_rules(self, rules: Sequence[admin_pb2.Rule], *, etag: str) -> admin_pb2.PutRulesResponse:
        """Replace all rules, if those in force still have this etag; the next request follows them."""
        response = admin_pb2.PutRulesResponse()
        self._manage("PutRules", admin_pb2.PutRulesRequest(rules=rules, etag=etag), response)
        return response

    def traffic(self) -> admin_pb2.GetTrafficResponse:
        """The experiments in force, their etag, and how canaries fare."""
        response = admin_pb2.GetTrafficResponse()
        self._manage("GetTraffic", admin_pb2.GetTrafficRequest(), response)
        return response

    def set_traffic(
        self, experiments: Sequence[admin_pb2.Experiment], *, etag: str, reason: str = ""
    ) -> admin_pb2.SetTrafficResponse:
        """Replace all experiments, if those in force still have this etag; the next request follows them."""
        response = admin_pb2.SetTrafficResponse()
        request = admin_pb2.SetTrafficRequest(experiments=experiments, etag=etag, reason=reason)
        self._manage("SetTraffic", request, response)
        return response

    def write_events(self, events: Sequence[Event], *, deadline_s: float | None = None) -> list[EventAnswer]:
        """At most 1000 events; one answer each, in order."""
        request = events_pb2.WriteEventsRequest(events=[each.on_the_wire() for each in events])
        response = events_pb2.WriteEventsResponse()
        self._call("Events/Write", request, response, deadline_s)
        return [
            EventAnswer(each.event_id, EventStatus.Name(each.status).removeprefix("EVENT_STATUS_"), each.reason)
            for each in response.results
        ]

    def upsert_items(self, items: Sequence[ItemEntry], *, deadline_s: float | None = None) -> list[CatalogAnswer]:
        """Add or replace at most 1000 items; one answer each, in order. The next request can show them."""
        request = catalog_pb2.UpsertItemsRequest(items=[each.on_the_wire() for each in items])
        return self._change("UpsertItems", request, deadline_s)

    def delete_items(self, item_ids: Sequence[str], *, deadline_s: float | None = None) -> list[CatalogAnswer]:
        """Take out at most 1000 items; no answer to a later request shows them."""
        return self._change("DeleteItems", catalog_pb2.DeleteItemsRequest(item_ids=item_ids), deadline_s)

    def patch_items(self, changes: Sequence[ItemChange], *, deadline_s: float | None = None) -> list[CatalogAnswer]:
        """Change at most 1000 items, which are not embedded again: ranker and filters know a new value at once, the
        vectors when the next generation is built."""
        request = catalog_pb2.PatchItemsRequest(patches=[each.on_the_wire() for each in changes])
        return self._change("PatchItems", request, deadline_s)

    def ready(self, *, deadline_s: float = 1.0) -> bool:
        """Whether a server answers with a generation within the deadline."""
        reply = health_pb2.HealthCheckResponse()
        try:
            self._send(
                self._channel, "/grpc.health.v1.Health/Check", health_pb2.HealthCheckRequest(), reply, deadline_s
            )
        except CallFailed:
            return False
        return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)

    def status(self) -> admin_pb2.GetStatusResponse:
        """What the server is doing."""
        response = admin_pb2.GetStatusResponse()
        self._manage("GetStatus", admin_pb2.GetStatusRequest(), response)
        return response

    def generations(self) -> admin_pb2.ListGenerationsResponse:
        """What the server's store holds."""
        response = admin_pb2.ListGenerationsResponse()
        self._manage("ListGenerations", admin_pb2.ListGenerationsRequest(), response)
        return response

    def prepare(self, generation: str) -> admin_pb2.GenerationInfo:
        """Load a generation beside the one that serves."""
        response = admin_pb2.PrepareResponse()
        self._manage("Prepare", admin_pb2.PrepareRequest(generation=generation), response)
        return response.generation

    def activate(self, generation: str, *, expected: str | None = None) -> admin_pb2.GenerationInfo:
        """Make a generation current.

        Args:
            expected: the current one; None reads it first, and so only guards against a change in between.
        """
        believed = self.generations().current if expected is None else expected
        response = admin_pb2.ActivateResponse()
        self._manage("Activate", admin_pb2.ActivateRequest(generation=generation, expected=believed), response)
        return response.generation

    def rollback(self) -> admin_pb2.GenerationInfo:
        """Back to the generation before."""
        response = admin_pb2.RollbackResponse()
        self._manage("Rollback", admin_pb2.RollbackRequest(), response)
        return response.generation

    def _change(self, method: str, request: Message, deadline_s: float | None) -> list[CatalogAnswer]:
        response = catalog_pb2.CatalogResponse()
        self._call(f"Catalog/{method}", request, response, deadline_s)
        return [
            CatalogAnswer(each.id, CatalogStatus.Name(each.status).removeprefix("CATALOG_STATUS_"), each.reason)
            for each in response.results
        ]

    def _call(self, method: str, request: Message, response: Message, deadline_s: float | None) -> None:
        self._send(self._channel, f"/cascade.v1.{method}", request, response, deadline_s or self._deadline_s)

    def _manage(self, method: str, request: Message, response: Message) -> None:
        if self._admin is None:
            raise ValueError(f"admin_target: empty given, the admin port's host:port is needed for {method}")
        self._send(self._admin, f"/cascade.v1.Admin/{method}", request, response, _ADMIN_DEADLINE_S)

    @staticmethod
    def _send(channel: grpc.Channel, path: str, request: Message, response: Message, deadline_s: float) -> None:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(path)
        try:
            reply = call(request.SerializeToString(), timeout=deadline_s, wait_for_ready=True)
        except grpc.RpcError as error:
            raise CallFailed(path.rsplit("/", 1)[-1], error.code().name, str(error.details())) from None
        response.ParseFromString(reply)


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
