"""A typed, synchronous client.

Calls wait until a server is ready, have a deadline, and are sent again where the server was unavailable: that is
safe, because every request and every event carries an id that is stored once. Retries stop when they would be more
than a tenth of all calls (`retryThrottling`).
"""

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import grpc
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2

from protos import admin_pb2, events_pb2, recommender_pb2
from protos.events_pb2 import EventStatus
from protos.impression_pb2 import Degraded, FeatureValue, Outcome
from protos.recommender_pb2 import Context, ReasonKind

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


class CallFailed(RuntimeError):
    """The server's answer was an error; `code` is the gRPC status name."""

    def __init__(self, method: str, code: str, message: str) -> None:
        super().__init__(f"{method}: {code}: {message}")
        self.code = code
        self.message = message


@dataclass(frozen=True, slots=True)
class ShownItem:
    """One slot of a slate. `score` and `actions` are 0 and empty unless scores were asked for."""

    item_id: str
    propensity: float
    title: str = ""
    category: str = ""
    score: float = 0.0
    actions: Mapping[str, float] = field(default_factory=dict)
    sources: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    """Such as POPULAR, or SIMILAR_TO:<item id>."""


@dataclass(frozen=True, slots=True)
class ShownSlate:
    """What to show, in this order."""

    request_id: str
    attribution_token: str
    generation: str
    items: tuple[ShownItem, ...]
    log_propensity: float
    degraded: tuple[str, ...]
    """Empty for a complete answer; otherwise such as RANKER_SKIPPED."""
    missing_ids: tuple[str, ...]
    stage_ms: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Event:
    """Something a user did."""

    item_id: str
    action: str
    time_ms: int
    user_id: str = ""
    request_id: str = ""
    event_id: str = ""
    """Empty: the client makes one, and sends the same where it has to send again."""
    value: float = 1.0
    position: int = -1
    session_id: str = ""
    visible_ms: int = 0
    """Only read by a server that trusts the caller's clock."""


@dataclass(frozen=True, slots=True)
class EventAnswer:
    """`status` is STORED, DUPLICATE, REJECTED or LATE."""

    event_id: str
    status: str
    reason: str


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
            include_scores=include_scores,
            columns=columns,
            no_log=no_log,
        )
        response = recommender_pb2.RankResponse()
        self._call("Recommender/Rank", request, response, deadline_s)
        return slate_of(response)

    def write_events(self, events: Sequence[Event], *, deadline_s: float | None = None) -> list[EventAnswer]:
        """At most 1000 events; one answer each, in order."""
        request = events_pb2.WriteEventsRequest(
            events=[
                Outcome(
                    event_id=event.event_id or uuid.uuid4().hex,
                    request_id=event.request_id,
                    item_id=event.item_id,
                    user_id=event.user_id,
                    session_id=event.session_id,
                    action=event.action,
                    value=event.value,
                    time_ms=event.time_ms,
                    visible_ms=event.visible_ms,
                    position=event.position,
                )
                for event in events
            ]
        )
        response = events_pb2.WriteEventsResponse()
        self._call("Events/Write", request, response, deadline_s)
        return [
            EventAnswer(each.event_id, EventStatus.Name(each.status).removeprefix("EVENT_STATUS_"), each.reason)
            for each in response.results
        ]

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
        features={
            name: FeatureValue(text=value) if isinstance(value, str) else FeatureValue(number=value)
            for name, value in (features or {}).items()
        },
        client_time_ms=time_ms,
    )


def slate_of(
    response: recommender_pb2.RecommendResponse | recommender_pb2.SearchResponse | recommender_pb2.RankResponse,
) -> ShownSlate:
    return ShownSlate(
        request_id=response.request_id,
        attribution_token=response.attribution_token,
        generation=response.generation,
        items=_from_columns(response.columns) if response.HasField("columns") else _from_items(response.items),
        log_propensity=response.policy.log_propensity,
        degraded=tuple(
            name.removeprefix("DEGRADED_") for name, bit in Degraded.items() if response.degradation.bits & bit
        ),
        missing_ids=tuple(response.missing_ids),
        stage_ms={stage.stage: stage.milliseconds for stage in response.degradation.stages},
    )


def _from_items(items: Sequence[recommender_pb2.Item]) -> tuple[ShownItem, ...]:
    return tuple(
        ShownItem(
            item_id=item.item_id,
            propensity=item.propensity,
            title=item.title,
            category=item.category,
            score=item.score,
            actions=dict(item.actions),
            sources=tuple(item.sources),
            reasons=tuple(_reason(each.kind) + (f":{each.item_id}" if each.item_id else "") for each in item.reasons),
        )
        for item in items
    )


def _from_columns(columns: recommender_pb2.Columns) -> tuple[ShownItem, ...]:
    actions = len(columns.action_names)
    return tuple(
        ShownItem(
            item_id=item_id,
            propensity=columns.propensity[k],
            title=columns.title[k] if columns.title else "",
            category=columns.category[k] if columns.category else "",
            score=columns.score[k] if columns.score else 0.0,
            actions=dict(zip(columns.action_names, columns.probability[k * actions : (k + 1) * actions], strict=True)),
            sources=tuple(name for s, name in enumerate(columns.source_names) if columns.source_bits[k] >> s & 1),
            reasons=tuple(_reason(kind) for kind in ReasonKind.values() if columns.reason_bits[k] >> kind & 1),
        )
        for k, item_id in enumerate(columns.item_id)
    )


def _reason(kind: int) -> str:
    return ReasonKind.Name(kind).removeprefix("REASON_")
