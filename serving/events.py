"""The Events service: what users did, into the log first, then into whatever learns from it."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import grpc

from index.strings import key64
from protos import events_pb2
from protos.events_pb2 import EventResult, EventStatus
from protos.impression_pb2 import Degraded, Outcome
from serving import codec
from serving.admission import Admission
from serving.generation import action_key
from serving.live import Live
from serving.log.impression_log import LogUnavailable, Status
from serving.observability.telemetry import Telemetry
from serving.parts import Log, State, deadline, server_time_ms, warn
from serving.rpc import Handlers, Unavailable, handlers
from serving.settings import ServiceSettings
from serving.state.user_state import UserEvent

LATE_MS = 86_400_000
"""An outcome older than a day is logged but changes nobody's state."""
_STREAM_BATCH = 256
_MAX_REJECTIONS = 1000
MAX_EVENTS = 1000
"""Of a call."""


class EventsService:
    """Outcomes: into the log first, then into the user state and the live sources."""

    def __init__(
        self,
        *,
        state: State | None,
        log: Log | None,
        telemetry: Telemetry,
        settings: ServiceSettings,
        live: Live | None = None,
    ) -> None:
        self._state = state
        self._log = log
        self._live = live
        self._telemetry = telemetry
        self._settings = settings
        self.admission = Admission(running=settings.event_calls, waiting=settings.waiting)

    def handlers(self) -> Handlers:
        return handlers(
            events_pb2.DESCRIPTOR.services_by_name["Events"],
            self._telemetry,
            methods={"Write": self.write},
            streams={"Stream": self.stream},
        )

    def write(self, wire: bytes, context: grpc.ServicerContext) -> bytes:
        until = deadline(context, self._settings)
        request = events_pb2.WriteEventsRequest()
        codec.parse(request, wire)
        check_events(request)
        with self.admission.enter(until):
            results, degraded = self._store(request.events)
        return events_pb2.WriteEventsResponse(results=results, degraded=degraded).SerializeToString()

    def stream(self, wires: Iterator[bytes], context: grpc.ServicerContext) -> bytes:
        counts = dict.fromkeys(EventStatus.values(), 0)
        response = events_pb2.StreamEventsResponse()
        while batch := list(islice(wires, _STREAM_BATCH)):
            events = []
            for wire in batch:
                events.append(Outcome())
                codec.parse(events[-1], wire)
            with self.admission.enter(deadline(context, self._settings)):
                results, degraded = self._store(events)
            response.degraded |= degraded
            for result in results:
                counts[result.status] += 1
                if result.status == EventStatus.EVENT_STATUS_REJECTED and len(response.rejections) < _MAX_REJECTIONS:
                    response.rejections.append(result)
        response.stored = counts[EventStatus.EVENT_STATUS_STORED]
        response.duplicate = counts[EventStatus.EVENT_STATUS_DUPLICATE]
        response.rejected = counts[EventStatus.EVENT_STATUS_REJECTED]
        response.late = counts[EventStatus.EVENT_STATUS_LATE]
        return response.SerializeToString()

    def _store(self, events: Iterable[Outcome]) -> tuple[list[EventResult], int]:
        """A result for each event, and `Degraded` bits."""
        time_ms = server_time_ms(self._settings)
        results: list[EventResult] = []
        accepted: list[tuple[EventResult, Outcome]] = []
        for event in events:
            result = EventResult(event_id=event.event_id)
            try:
                accepted.append((result, kept(event, server_time_ms=time_ms)))
            except codec.InvalidRequest as error:
                result.status = EventStatus.EVENT_STATUS_REJECTED
                result.reason = str(error)
            results.append(result)
        current: list[tuple[EventResult, Outcome]] = []
        logged = self._write([outcome for _, outcome in accepted])
        for (result, outcome), status in zip(accepted, logged, strict=True):
            late = outcome.time_ms < outcome.visible_ms - LATE_MS
            result.status = EventStatus.EVENT_STATUS_LATE if late else EventStatus.EVENT_STATUS_STORED
            if status == "duplicate":
                result.status = EventStatus.EVENT_STATUS_DUPLICATE
            if not late:
                current.append((result, outcome))
        degraded = self._apply(current)
        for result in results:
            self._telemetry.add("events", EventStatus.Name(result.status))
        self._learn([outcome for result, outcome in current if result.status == EventStatus.EVENT_STATUS_STORED])
        return results, degraded

    def _learn(self, outcomes: Sequence[Outcome]) -> None:
        if self._live is None:
            return
        try:
            self._live.write(outcomes)
        except Exception as error:
            warn(error, "live sources cannot learn")

    def _write(self, outcomes: Sequence[Outcome]) -> Sequence[Status]:
        if self._log is None or not outcomes:
            return ["stored"] * len(outcomes)
        try:
            statuses = self._log.write_outcomes(outcomes)
        except LogUnavailable as error:
            self._telemetry.add("log", "failed")
            raise Unavailable(f"the events are not stored, send them again: {error}") from error
        self._telemetry.add("log", "stored", len(outcomes))
        return statuses

    def _apply(self, current: Sequence[tuple[EventResult, Outcome]]) -> int:
        """Change the state of every user concerned, in the order of training's histories; returns `Degraded` bits.

        Those that this server's log holds already are pushed too: it may be the state that did not take them then.
        Those that another server was told of first become duplicates.
        """
        if self._state is None or not current:
            return 0
        ordered = sorted(current, key=lambda each: (each[1].visible_ms, each[1].time_ms, each[1].event_id))
        events = [
            UserEvent(one.event_id, one.user_id, key64(one.item_id), action_key(one.action), one.time_ms)
            for _, one in ordered
        ]
        try:
            new = self._state.push(events)
        except Exception as error:
            warn(error, "user state cannot be changed")
            return Degraded.DEGRADED_DEFAULT_FEATURES
        for (result, _), first in zip(ordered, new, strict=True):
            if not first:
                result.status = EventStatus.EVENT_STATUS_DUPLICATE
        return 0


def kept(event: Outcome, *, server_time_ms: int | None) -> Outcome:
    """An event as the log keeps it: attributed, and stamped with when the server took it.

    Args:
        server_time_ms: None trusts the event's own `visible_ms`, which is `time_ms` where it is unset.

    Raises:
        InvalidRequest: naming the field.
    """
    for name in ("event_id", "item_id", "action"):
        most = codec.MAX_NAME_CHARS if name == "action" else codec.MAX_ID_CHARS
        value = getattr(event, name)
        if not value:
            raise codec.InvalidRequest(name, value, f"1 to {most} characters")
        codec.check_string(name, value, most)
    for name in ("request_id", "user_id", "session_id", "visitor_id"):
        codec.check_string(name, getattr(event, name), codec.MAX_ID_CHARS)
    codec.check_string("tenant", event.tenant, codec.MAX_NAME_CHARS)
    codec.check_string("attribution_token", event.attribution_token, codec.MAX_ID_CHARS + len(codec.UNSIGNED))
    if not abs(event.value) <= codec.MAX_VALUE:
        raise codec.InvalidRequest("value", event.value, f"-{codec.MAX_VALUE:g} to {codec.MAX_VALUE:g}")
    visible_ms = (event.visible_ms or event.time_ms) if server_time_ms is None else server_time_ms
    codec.check_whole("visible_ms", visible_ms, 1, codec.MAX_TIME_MS)
    codec.check_whole("time_ms", event.time_ms, 1, visible_ms + codec.FUTURE_MS)
    position = event.position if event.HasField("position") else -1
    codec.check_whole("position", position, -1, codec.MAX_ITEM_IDS - 1)
    made = Outcome()
    made.CopyFrom(event)
    made.visible_ms = max(visible_ms, event.time_ms)
    made.position = position
    if event.attribution_token:
        made.request_id = codec.request_id_of(event.attribution_token)
        if event.request_id not in ("", made.request_id):
            allowed = f"{made.request_id!r}, which the token stands for"
            raise codec.InvalidRequest("request_id", event.request_id, allowed)
    return made


def check_events(request: events_pb2.WriteEventsRequest) -> None:
    """
    Raises:
        InvalidRequest: for an empty or an oversized batch.
    """
    codec.check_whole("the number of events", len(request.events), 1, MAX_EVENTS)
