"""Simulated users on a real server: they ask over the wire, look down the slate, and send what they do."""

import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from serving.client import CallFailed, CascadeClient, Event, ShownSlate
from training.simulation.world import World, WorldRequest

_ROUND = 32
"""Requests that are asked side by side, at most."""
_MOST_EVENTS = 1000
"""Of one call."""


@dataclass(frozen=True, slots=True)
class Visit:
    """One request and its answer; no slate where the call failed."""

    request: WorldRequest
    slate: ShownSlate | None
    milliseconds: float
    """As the caller saw it."""


class Users:
    """Those of a world, on one server. What they did and nobody can know yet is kept until its time has come.

    Requests are sent in rounds that hold a user once at most, and between rounds, by one writer, what has become
    visible: so no answer depends on how the workers take turns, every user's history is what was visible when the user
    asked, and sources that learn from everybody never know more than that.
    """

    def __init__(self, client: CascadeClient, world: World, *, size: int, workers: int = 4) -> None:
        self._client = client
        self._world = world
        self._size = size
        self._workers = workers
        self._untold: list[Event] = []

    def visit(self, requests: Sequence[WorldRequest], *, until_ms: int) -> list[Visit]:
        """Send the requests in order of time, and report what their users did with the answers as it becomes visible.

        Args:
            until_ms: what is visible by then is reported before this returns; the next visit is no earlier.
        """
        visits: list[Visit] = []
        waiting = deque(sorted(requests, key=lambda each: (each.time_ms, each.request_id)))
        with ThreadPoolExecutor(self._workers) as pool:
            while waiting:
                self._tell(waiting[0].time_ms)
                answered = list(pool.map(lambda each: timed(self._client, each, size=self._size), self._round(waiting)))
                self._untold += [event for each in answered for event in self._done(each)]
                visits += answered
        self._tell(until_ms)
        return visits

    def _round(self, waiting: deque[WorldRequest]) -> list[WorldRequest]:
        """The next requests, cut before a user who comes twice or whose last outcomes have become visible meanwhile."""
        known_ms: dict[str, int] = {}
        for event in self._untold:
            known_ms.setdefault(event.user_id, event.visible_ms)  # they are in this order
        together: dict[str, WorldRequest] = {}
        while waiting and len(together) < _ROUND:
            request = waiting[0]
            if request.user_id in together or known_ms.get(request.user_id, request.time_ms + 1) <= request.time_ms:
                break
            together[request.user_id] = waiting.popleft()
        return list(together.values())

    def _done(self, visit: Visit) -> list[Event]:
        if visit.slate is None:
            return []
        outcomes = self._world.respond(visit.request, [item.item_id for item in visit.slate.items])
        return [Event(**outcome) for outcome in outcomes]  # type: ignore[arg-type]  # rows of the events frame

    def _tell(self, now_ms: int) -> None:
        """Report what is visible at this time."""
        self._untold.sort(key=lambda event: (event.visible_ms, event.time_ms, event.event_id))
        visible = [event for event in self._untold if event.visible_ms <= now_ms]
        self._untold = self._untold[len(visible) :]
        for first in range(0, len(visible), _MOST_EVENTS):
            self._client.write_events(visible[first : first + _MOST_EVENTS])


def timed(client: CascadeClient, request: WorldRequest, *, size: int) -> Visit:
    """Ask, and take the time."""
    started = time.perf_counter()
    try:
        slate = ask(client, request, size=size)
    except CallFailed:
        slate = None
    return Visit(request, slate, 1000 * (time.perf_counter() - started))


def ask(client: CascadeClient, request: WorldRequest, *, size: int, no_log: bool = False) -> ShownSlate:
    """Recommend, or search where something was typed.

    Raises:
        CallFailed: where the server did not answer.
    """
    if request.text:
        return client.search(
            request.text,
            user_id=request.user_id,
            size=size,
            request_id=request.request_id,
            time_ms=request.time_ms,
            no_log=no_log,
        )
    return client.recommend(
        request.user_id,
        size=size,
        request_id=request.request_id,
        time_ms=request.time_ms,
        no_log=no_log,
    )
