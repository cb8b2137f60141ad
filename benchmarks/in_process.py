"""A server's services in this process: told and asked in bytes as over the wire, by the users of a simulated world."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import numpy as np
import polars as pl

from index.generations import GenerationStore
from protos.catalog_pb2 import UpsertItemsRequest
from protos.events_pb2 import WriteEventsRequest
from protos.impression_pb2 import Degraded
from protos.recommender_pb2 import Context, RecommendRequest, RecommendResponse, SearchRequest, SearchResponse
from serving.catalog import accepted_items
from serving.events import EventsService
from serving.generation import Generation
from serving.generations import Generations
from serving.live import Live
from serving.log.impression_log import ImpressionLog
from serving.observability.telemetry import Telemetry
from serving.records import Event, ItemEntry
from serving.service import RecommenderService
from serving.settings import ServiceSettings
from serving.state.replies import Answered
from serving.state.user_state import Claim, Recalled, UserEvent, Wanted
from training.log.served import ServedLog
from training.simulation.world import World, WorldRequest

_UPSERT_MS = 3 * 3_600_000
"""How often the catalogue is told of what was published since."""

Shown = list[tuple[WorldRequest, list[str]]]
"""Requests in order of time, each with its slate."""


class Histories:
    """What `UserState` keeps in Redis, in this process."""

    limit = 64

    def __init__(self) -> None:
        self._events_of: dict[str, list[tuple[int, int, int]]] = {}

    def recall(self, wanted: Wanted) -> Recalled:
        latest = self._events_of.get(wanted.user_id, [])[: -self.limit - 1 : -1]
        item_keys, action_keys, times_ms = zip(*latest, strict=True) if latest else ((), (), ())
        return Recalled(
            (np.array(item_keys, np.uint64), np.array(action_keys, np.uint32), np.array(times_ms, np.int64))
        )

    def push(self, events: Sequence[UserEvent]) -> list[bool]:
        for event in events:
            self._events_of.setdefault(event.user_id, []).append(event[2:])
        return [True] * len(events)

    def restore(self, user_id: str, events: Sequence[tuple[int, int, int]]) -> None:
        there = self._events_of.get(user_id, [])
        self._events_of[user_id] = [*(each for each in events if each not in there), *there]

    def forget(self, user_id: str) -> None:
        self._events_of.pop(user_id, None)

    def show(self, user_id: str, item_key_K: Sequence[int], *, time_ms: int, most: int, ttl_s: int) -> None: ...

    def renew(self, claim: Claim) -> None: ...

    def release(self, claim: Claim) -> None: ...

    def answer(self, claim: Claim, answered: Answered) -> None: ...


class _Patient:
    """A caller without a deadline, who stays."""

    def time_remaining(self) -> None:
        return None

    def is_active(self) -> bool:
        return True


class InProcess:
    """A server's services, told and asked in bytes as over the wire, one call after the other.

    Args:
        from_ms: the first generation knows what was published by then.
    """

    def __init__(self, store: GenerationStore, world: World, folder: Path, *, from_ms: int) -> None:
        self.path = folder / "log"
        self.generations = Generations(store)
        self.histories = Histories()
        self.world = world
        self._log = ImpressionLog(self.path, durability="os")
        self._upserted_ms = from_ms
        live = Live(lambda: self.generations.active)
        self.generations.on_ready = live.prepare
        parts: dict[str, Any] = {
            "state": self.histories,
            "log": self._log,
            "live": live,
            "telemetry": Telemetry(),
            "settings": ServiceSettings(clock="request", deadline_s=3600.0, eligible_share=1.0, replies=1),
        }
        self._recommender = RecommenderService(self.generations, **parts)
        self._events = EventsService(**parts)

    def launch(self, generation: str) -> None:
        """Serve it from now on."""
        self.generations.activate(generation, self.generations.store.current())

    @property
    def active(self) -> Generation:
        """What is served now."""
        active = self.generations.active
        assert active is not None
        return active

    def serve(self, requests: Sequence[WorldRequest], *, size: int) -> Shown:
        """Ask, look down the slate, report what was done, the next."""
        shown: Shown = []
        for request in requests:
            if request.time_ms >= self._upserted_ms + _UPSERT_MS:
                self._upsert(request.time_ms)
            slate = self._ask(request, size)
            shown.append((request, slate))
            done = [Event(**row).on_the_wire() for row in self.world.respond(request, slate)]  # type: ignore[arg-type]
            if done:
                self._events.write(WriteEventsRequest(events=done).SerializeToString(), cast(Any, _Patient()))
        return shown

    def flush(self) -> None:
        """Return when everything is in the log."""
        self._log.flush()

    def log(self, until_ms: int) -> ServedLog:
        """What has been logged."""
        self.flush()
        return ServedLog.read(self.path, until_ms=until_ms)

    def close(self) -> None:
        self._log.close()
        self.generations.close()

    def _ask(self, request: WorldRequest, size: int) -> list[str]:
        named: dict[str, Any] = {
            "context": Context(user_id=request.user_id, surface=request.surface, client_time_ms=request.time_ms),
            "request_id": request.request_id,
            "page_size": size,
        }
        response: RecommendResponse | SearchResponse
        if request.text:
            asked, response = SearchRequest(query=request.text, **named), SearchResponse()
            response.ParseFromString(self._recommender.search(asked.SerializeToString(), cast(Any, _Patient())))
        else:
            wanted, response = RecommendRequest(**named), RecommendResponse()
            response.ParseFromString(self._recommender.recommend(wanted.SerializeToString(), cast(Any, _Patient())))
        if response.degradation.bits & ~Degraded.DEGRADED_NO_MATCH:
            raise RuntimeError(f"request {request.request_id} was answered with degradation {response.degradation}")
        return [item.item_id for item in response.items]

    def _upsert(self, time_ms: int) -> None:
        """Tell the catalogue of what was published since."""
        since = pl.col("published_ms").is_between(self._upserted_ms, time_ms, closed="right")
        new = self.world.items.filter(since)
        self._upserted_ms = time_ms
        listed = [ItemEntry(**row).on_the_wire() for row in new.iter_rows(named=True)]
        if listed:
            request = UpsertItemsRequest(items=listed)
            self.generations.change(lambda active: accepted_items(request, active)[0], time_ms=time_ms)
