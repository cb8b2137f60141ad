"""Simulated users on a real server: they ask over the wire, look down the slate, and send what they do."""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from index.strings import key64
from serving.client import CallFailed, CascadeClient, Event, ShownSlate
from training.world import World, WorldRequest


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
    """Send the requests, each user's one after the other, and report what each user did with the answer.

    Users do not influence each other between two generations, so the result does not depend on how the workers
    take turns.
    """
    by_worker: list[list[WorldRequest]] = [[] for _ in range(workers)]
    for request in sorted(requests, key=lambda each: each.time_ms):
        by_worker[key64(request.user_id) % workers].append(request)

    def work(mine: list[WorldRequest]) -> list[Visit]:
        return [_visit(client, world, request, size) for request in mine]

    with ThreadPoolExecutor(workers) as pool:
        visits = [each for part in pool.map(work, by_worker) for each in part]
    return sorted(visits, key=lambda each: (each.request.time_ms, each.request.request_id))


def _visit(client: CascadeClient, world: World, request: WorldRequest, size: int) -> Visit:
    visited = timed(client, request, size=size)
    if visited.slate is not None:
        outcomes = world.respond(request, [item.item_id for item in visited.slate.items])
        events = [Event(**each) for each in outcomes]  # type: ignore[arg-type]  # rows of the events frame
        if events:
            client.write_events(events)
    return visited


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
