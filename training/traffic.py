"""Simulated users on a real server: they ask over the wire, look down the slate, and send what they do."""

import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from serving.client import CallFailed, CascadeClient, Event, ShownSlate
from training.world import World, WorldRequest

_ROUND = 32
"""Requests that are asked before what was done with them is reported, at most."""


@dataclass(frozen=True, slots=True)
class Visit:
    """One request and its answer; no slate where the call failed."""

    request: WorldRequest
    slate: ShownSlate | None
    milliseconds: float
    """As the caller saw it."""


def visit(
    client: CascadeClient, world: World, requests: Sequence[WorldRequest], *, size: int, workers: int = 4
) -> list[Visit]:
    """Send the requests in order of time and report what each user did with the answer.

    They are sent in rounds that hold a user once at most. What is done in a round is reported when all of it is
    answered, by one writer, so that no answer, from sources that learn from everybody too, depends on how the workers
    take turns.
    """
    visits: list[Visit] = []
    with ThreadPoolExecutor(workers) as pool:
        for together in _rounds(sorted(requests, key=lambda each: (each.time_ms, each.request_id))):
            answered = list(pool.map(lambda each: timed(client, each, size=size), together))
            visits += answered
            _report(client, world, answered)
    return visits


def _rounds(requests: Sequence[WorldRequest]) -> Iterator[list[WorldRequest]]:
    """The requests in their order, cut wherever a user would come twice or there are enough."""
    together: dict[str, WorldRequest] = {}
    for request in requests:
        if request.user_id in together or len(together) == _ROUND:
            yield list(together.values())
            together = {}
        together[request.user_id] = request
    if together:
        yield list(together.values())


def _report(client: CascadeClient, world: World, visits: Sequence[Visit]) -> None:
    events = [
        Event(**outcome)  # type: ignore[arg-type]  # rows of the events frame
        for visit in visits
        if visit.slate is not None
        for outcome in world.respond(visit.request, [item.item_id for item in visit.slate.items])
    ]
    if events:
        client.write_events(events)


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
