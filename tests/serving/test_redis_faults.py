"""Whatever Redis does, every request is answered: OK, soon, and it says what is missing."""

import os
import signal
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import pytest
import redis
from serving_cases import NOW_MS, MemoryLog, call, serving
from state_cases import Ill, RedisProxy

from protos.events_pb2 import EventStatus, WriteEventsRequest, WriteEventsResponse
from protos.impression_pb2 import Degraded, Outcome
from protos.recommender_pb2 import Context, RecommendRequest, RecommendResponse
from serving.state.local_redis import LocalRedis
from serving.state.user_state import UserState

DEFAULTS = Degraded.DEGRADED_DEFAULT_FEATURES


class Site:
    """A server whose Redis is behind a proxy."""

    def __init__(self, channel: grpc.Channel, proxy: RedisProxy, server: LocalRedis, raw: redis.Redis) -> None:
        self.proxy, self.server, self.raw = proxy, server, raw
        self._channel = channel
        self._numbers = iter(range(1_000_000))

    def ask(self) -> tuple[int, float]:
        """`Degraded` bits of an answer, and how many milliseconds it took."""
        context = Context(client_time_ms=NOW_MS, user_id="u1")
        request = RecommendRequest(context=context, page_size=5, request_id=f"r{next(self._numbers)}")
        started = time.perf_counter()
        reply = call(self._channel, "Recommender/Recommend", request.SerializeToString())
        taken_ms = 1000 * (time.perf_counter() - started)
        response = RecommendResponse.FromString(reply)
        assert len(response.items) == 5
        return response.degradation.bits, taken_ms

    def tell(self) -> tuple[int, int]:
        """The status of an event, and `Degraded` bits."""
        event = Outcome(event_id=f"e{next(self._numbers)}", item_id="i5", user_id="u1", action="click", time_ms=NOW_MS)
        wire = WriteEventsRequest(events=[event]).SerializeToString()
        response = WriteEventsResponse.FromString(call(self._channel, "Events/Write", wire))
        return response.results[0].status, response.degraded

    def recovers(self, *, within_s: float = 15.0) -> bool:
        end = time.monotonic() + within_s
        while self.ask()[0]:
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
        return True


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with ExitStack() as stack:
        patch = stack.enter_context(pytest.MonkeyPatch.context())
        server = stack.enter_context(LocalRedis())
        raw = stack.enter_context(redis.Redis.from_url(server.url))
        proxy = RedisProxy(server.url.removeprefix("unix://"))
        stack.callback(proxy.close)
        state = UserState(proxy.url)
        stack.callback(state.close)
        folder: Path = tmp_path_factory.mktemp("site")
        address = stack.enter_context(serving(folder, patch, state=state, log=MemoryLog()))
        channel = stack.enter_context(grpc.insecure_channel(address.target))
        yield Site(channel, proxy, server, raw)


@contextmanager
def ill(site: Site, how: Ill) -> Iterator[None]:
    site.proxy.ill = how
    try:
        yield
    finally:
        site.proxy.ill = ""


@contextmanager
def stopped(site: Site) -> Iterator[None]:
    os.kill(site.server.pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(site.server.pid, signal.SIGCONT)


@contextmanager
def shut(site: Site) -> Iterator[None]:
    with ill(site, "shut"):
        site.proxy.cut()
        yield


FAULTS: dict[str, Callable[[Site], object]] = {
    "stopped": stopped,
    "refusing connections": shut,
    "reset": lambda site: ill(site, "reset"),
    "silent": lambda site: ill(site, "silent"),
    "garbage": lambda site: ill(site, "garbage"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_nobody_gets_an_error_and_soon_nobody_waits(site: Site, name: str) -> None:
    assert site.recovers()
    before_ms = statistics.median(site.ask()[1] for _ in range(20))
    with FAULTS[name](site):  # type: ignore[attr-defined]
        first = [site.ask() for _ in range(10)]
        assert {bits for bits, _ in first} <= {0, DEFAULTS}
        assert statistics.median(taken_ms for _, taken_ms in first) < before_ms + 200, "one timeout each, at most"
        then = [site.ask() for _ in range(40)]
        assert {bits for bits, _ in then} == {DEFAULTS}
        assert statistics.median(taken_ms for _, taken_ms in then) < before_ms + 20, "the breaker is open"
        assert site.tell() == (EventStatus.EVENT_STATUS_STORED, DEFAULTS), "the log has it, the state has not"
    assert site.recovers()
    assert site.tell() == (EventStatus.EVENT_STATUS_STORED, 0)


def test_answers_of_the_wrong_type_are_told_and_passed_over(site: Site) -> None:
    assert site.recovers()
    with ill(site, "wrong type"):
        assert {site.ask()[0] for _ in range(20)} <= {0, DEFAULTS}
    assert site.recovers()


def test_a_redis_that_forgot_everything_is_a_redis_of_strangers(site: Site) -> None:
    assert site.recovers()
    site.tell()
    site.raw.flushall()
    site.raw.script_flush()
    assert site.ask()[0] == 0
    assert site.tell() == (EventStatus.EVENT_STATUS_STORED, 0)


def test_a_redis_without_memory_still_says_what_it_holds(site: Site) -> None:
    assert site.recovers()
    site.tell()
    site.raw.config_set("maxmemory", "1")
    try:
        assert {site.ask()[0] for _ in range(20)} == {DEFAULTS}
        assert site.tell() == (EventStatus.EVENT_STATUS_STORED, DEFAULTS)
    finally:
        site.raw.config_set("maxmemory", "0")
    assert site.ask()[0] == 0, "one that refuses does answer: no breaker was in the way"


def test_a_key_of_another_type_is_one_users_trouble(site: Site) -> None:
    assert site.recovers()
    site.raw.flushall()
    site.raw.set("cascade:{user:u1}:events", "a string")
    assert {site.ask()[0] for _ in range(10)} == {DEFAULTS}
    site.raw.flushall()
    assert site.ask()[0] == 0
