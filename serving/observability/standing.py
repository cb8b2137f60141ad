"""How a server stands at the moment: what its metrics show besides what was counted."""

from collections.abc import Iterator, Mapping

from serving.admin import AdminService
from serving.admission import Admission
from serving.generations import Generations
from serving.live import Live
from serving.log.impression_log import ImpressionLog
from serving.observability.telemetry import Reading
from serving.parts import Log
from serving.state.user_state import UserState


def of_server(admin: AdminService, log: Log | None) -> Iterator[Reading]:
    yield Reading("ready", float(admin.ready), "1 where a generation serves and the server is not stopping")
    refused = float(bool(admin.follow_error))
    yield Reading("generation_refused", refused, "1 where the store's current generation cannot be taken up")
    if log is not None:
        yield Reading("log_available", float(log.available), "1 where an impression would be taken now")


def of_generation(generations: Generations) -> Iterator[Reading]:
    """
    Raises:
        CorruptLog, LogUnavailable: see `CatalogLog.head`; what was yielded before holds.
    """
    active = generations.active
    if active is None:
        return
    yield Reading("generation_info", 1.0, "The generation that serves", ("generation", active.id))
    created_s = active.manifest.created_ms / 1000
    yield Reading("generation_created_timestamp_seconds", created_s, "When the generation that serves was made")
    yield Reading("catalog_seq", active.catalog_seq, "The last change of the catalogue that answers know of")
    behind = generations.catalog.head() - active.catalog_seq
    yield Reading("catalog_lag_entries", behind, "Changes of the catalogue that the next request will learn of")


def of_rooms(rooms: Mapping[str, Admission]) -> Iterator[Reading]:
    for service, room in rooms.items():
        yield Reading("calls_inside", room.inside, "Calls that run or wait", ("service", service))
        yield Reading("calls_places", room.places, "Calls that may run or wait", ("service", service))


def of_writer(log: ImpressionLog) -> Iterator[Reading]:
    yield Reading("log_waiting_rows", log.waiting, "Rows that the log took and has not committed")
    yield Reading("log_lag_seconds", log.lag_s, "How long the oldest of them has waited")


def of_user_state(state: UserState, live: Live) -> Iterator[Reading]:
    yield Reading("user_state_available", float(state.available), "0 while the breaker of Redis is open")
    yield Reading("exchange_waiting_calls", len(live.outbox), "Calls whose events no other server was told of yet")
