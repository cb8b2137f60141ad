"""Simulated users tell a server what they did when it becomes visible, neither earlier nor later."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import numpy as np

from serving.client import CallFailed, Event
from training.simulation.traffic import Users
from training.simulation.world import World, WorldRequest


@dataclass
class Recorder:
    """A client that answers every request with its own name and notes the order of what it is told."""

    told: list[str] = field(default_factory=list)
    fail: frozenset[str] = frozenset()

    def recommend(self, _user: str, *, request_id: str, **_: Any) -> SimpleNamespace:
        self.told.append(f"ask {request_id}")
        if request_id in self.fail:
            raise CallFailed("Recommend", "UNAVAILABLE", "gone")
        return SimpleNamespace(items=[SimpleNamespace(item_id=request_id)])

    def write_events(self, events: Sequence[Event]) -> None:
        self.told += [f"tell {event.event_id} at {event.visible_ms}" for event in events]


@dataclass(frozen=True)
class Delays:
    """A world in which every request is followed by one outcome, visible after so many milliseconds."""

    after_ms: dict[str, int]

    def respond(self, request: WorldRequest, _: Sequence[str]) -> list[dict[str, Any]]:
        visible_ms = request.time_ms + self.after_ms[request.request_id]
        known = {"item_id": "i", "action": "click", "user_id": request.user_id}
        return [{**known, "event_id": request.request_id, "time_ms": request.time_ms, "visible_ms": visible_ms}]


def users(client: Recorder, after_ms: dict[str, int]) -> Users:
    return Users(cast(Any, client), cast(Any, Delays(after_ms)), size=3, workers=1)


def request(name: str, user: str, time_ms: int) -> WorldRequest:
    return WorldRequest(request_id=name, user_id=user, time_ms=time_ms, surface="home", text="")


def test_an_outcome_is_told_before_the_next_request_of_its_user_that_may_know_it_and_not_before_others() -> None:
    client = Recorder()
    requests = [request("a1", "a", 10), request("b1", "b", 20), request("a2", "a", 30), request("a3", "a", 50)]
    users(client, {"a1": 25, "b1": 5, "a2": 1, "a3": 1000}).visit(requests, until_ms=60)
    assert client.told == [
        "ask a1",
        "ask b1",
        "tell b1 at 25",
        "ask a2",
        "tell a2 at 31",
        "tell a1 at 35",
        "ask a3",
    ], "what a1 led to is not visible yet when a asks again at 30; what a3 led to is not when the visit ends"


def test_a_round_is_cut_where_something_becomes_visible_to_one_of_its_users() -> None:
    client = Recorder()
    asked = [("d1", "d", 10), ("a1", "a", 11), ("a2", "a", 20), ("b1", "b", 30), ("d2", "d", 40), ("e1", "e", 41)]
    late = dict.fromkeys((name for name, *_ in asked), 1000) | {"d1": 25}
    users(client, late).visit([request(*each) for each in asked], until_ms=50)
    assert client.told == ["ask d1", "ask a1", "ask a2", "ask b1", "tell d1 at 35", "ask d2", "ask e1"]


def test_what_is_not_visible_yet_is_told_in_the_next_visit() -> None:
    client = Recorder()
    everybody = users(client, {"a1": 100, "b1": 1})
    everybody.visit([request("a1", "a", 10)], until_ms=50)
    assert client.told == ["ask a1"]
    everybody.visit([request("b1", "b", 60)], until_ms=200)
    assert client.told == ["ask a1", "ask b1", "tell b1 at 61", "tell a1 at 110"]


def test_a_request_without_an_answer_leads_to_nothing() -> None:
    client = Recorder(fail=frozenset({"a1"}))
    (visit,) = users(client, {"a1": 1}).visit([request("a1", "a", 10)], until_ms=50)
    assert visit.slate is None
    assert client.told == ["ask a1"]


def test_every_outcome_of_a_world_is_told_once_and_in_the_order_in_which_it_becomes_visible() -> None:
    world = World(0, users=20, items=60, days=3)
    client = Recorder()
    shown = world.dataset(*world.first_log(world.requests(world.start_ms, world.day_ms(1), 5), slate_size=2)).items
    item_ids = shown["item_id"].to_list()[:4]
    client.recommend = lambda *_, **__: SimpleNamespace(items=[SimpleNamespace(item_id=each) for each in item_ids])  # type: ignore[method-assign]
    client.search = client.recommend  # type: ignore[attr-defined]
    asked = world.requests(world.start_ms, world.day_ms(2), 300)
    Users(cast(Any, client), world, size=4, workers=2).visit(asked, until_ms=world.day_ms(3))
    expected = [event["event_id"] for each in asked for event in world.respond(each, item_ids)]
    told = [line.split() for line in client.told if line.startswith("tell")]
    assert sorted(line[1] for line in told) == sorted(expected)
    assert expected
    times = np.array([int(line[3]) for line in told])
    assert (np.diff(times) >= 0).all()
