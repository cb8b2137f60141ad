"""A request id is answered once, an event counts once: by whichever server, and across restarts."""

import itertools
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from pathlib import Path

import grpc
import pytest
import redis
from serving_cases import NOW_MS, Switch, call, load_fakes, publish, refusal, running, settings

from index.generations import GenerationStore
from protos.events_pb2 import EventStatus, WriteEventsRequest, WriteEventsResponse
from protos.impression_pb2 import Degraded, Outcome
from protos.recommender_pb2 import Context, RecommendRequest, RecommendResponse
from serving.generations import Generations
from serving.log.impression_log import ImpressionLog
from serving.state.local_redis import LocalRedis
from serving.state.user_state import Claim, UserState, Wanted
from training.log.impression_log import read_impressions


@pytest.fixture(scope="module")
def server() -> Iterator[LocalRedis]:
    with LocalRedis() as started:
        yield started


@pytest.fixture
def url(server: LocalRedis) -> str:
    with redis.Redis.from_url(server.url) as client:
        client.flushall()
    return server.url


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a generation that every server there serves."""
    load_fakes(monkeypatch)
    store = GenerationStore(tmp_path / "generations")
    store.activate(publish(store, 1), time_ms=NOW_MS)
    return tmp_path


@contextmanager
def replica(site: Path, name: str, url: str) -> Iterator[grpc.Channel]:
    """A server with a log of its own."""
    with ExitStack() as stack:
        log = stack.enter_context(ImpressionLog(site / name, durability="os"))
        state = UserState(url, timeout_s=2.0)
        stack.callback(state.close)
        generations = Generations(GenerationStore(site / "generations"))
        stack.callback(generations.close)
        address = stack.enter_context(running(generations, settings(site), state=state, log=log))
        yield stack.enter_context(grpc.insecure_channel(address.target))


def wire(number: int, *, name: str = "r", size: int = 5) -> bytes:
    user_id = f"u{number % 10}" if number % 3 else ""
    context = Context(client_time_ms=NOW_MS + number, user_id=user_id)
    return RecommendRequest(context=context, request_id=f"{name}{number}", page_size=size).SerializeToString()


def slate(channel: grpc.Channel, request: bytes) -> list[tuple[str, float]]:
    response = RecommendResponse.FromString(call(channel, "Recommender/Recommend", request))
    assert not response.degradation.bits & ~Degraded.DEGRADED_SOURCE_ERROR
    return [(item.item_id, item.propensity) for item in response.items]


def logged(site: Path, *names: str) -> list[str]:
    return sorted(each.request_id for name in names for each in read_impressions(site / name))


def send_three_times(site: Path, url: str, count: int) -> None:
    """Every id twice at once to two servers, then, with one of them new, to either."""
    numbers = range(count)
    with replica(site, "b", url) as other, ThreadPoolExecutor(4) as pool:

        def sent(channels: Sequence[grpc.Channel]) -> list[list[tuple[str, float]]]:
            asked = [(channel, wire(n)) for n, channel in zip(numbers, itertools.cycle(channels))]
            return list(pool.map(lambda each: slate(*each), asked))

        with replica(site, "a", url) as one:
            forth = pool.submit(lambda: [slate(one, wire(n)) for n in numbers])
            back = [slate(other, wire(n)) for n in numbers]
            first = forth.result()
            assert first == back
        with replica(site, "a", url) as anew:
            assert sent([other, anew]) == first
    assert logged(site, "a", "b") == sorted(f"r{n}" for n in numbers)


def test_every_id_sent_three_times_over_two_servers_and_a_restart_is_one_slate_and_one_impression(
    site: Path, url: str
) -> None:
    send_three_times(site, url, 80)


@pytest.mark.slow
def test_ten_thousand_ids_sent_three_times_are_ten_thousand_impressions(site: Path, url: str) -> None:
    send_three_times(site, url, 10_000)


def test_an_id_for_another_question_is_refused_by_any_server(site: Path, url: str) -> None:
    with replica(site, "a", url) as one, replica(site, "b", url) as other:
        slate(one, wire(1))
        time.sleep(0.1)
        code, message = refusal(other, "Recommender/Recommend", wire(1, size=7))
    assert (code, message[:11]) == ("INVALID_ARGUMENT", "request_id:")


def test_a_server_that_died_at_work_holds_its_request_up_for_a_moment_only(site: Path, url: str) -> None:
    dead = UserState(url, timeout_s=2.0)
    assert dead.recall(Wanted("u1", claim=Claim.of("r1", "u1", _digest(wire(1))))).claimed
    with replica(site, "a", url) as channel:
        started = time.monotonic()
        assert len(slate(channel, wire(1))) == 5
        assert 0.1 < time.monotonic() - started < 5
    assert logged(site, "a") == ["r1"]
    dead.close()


def test_one_that_is_slower_than_its_claim_gives_way_to_the_one_that_took_over(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Switch(sleep_s=2.0)
    load_fakes(monkeypatch, slow)
    store = GenerationStore(tmp_path / "generations")
    store.activate(publish(store, 1), time_ms=NOW_MS)
    with replica(tmp_path, "a", url) as one:
        load_fakes(monkeypatch)
        with replica(tmp_path, "b", url) as other, ThreadPoolExecutor(1) as pool:
            late = pool.submit(slate, one, wire(1))
            while not slow.calls:
                time.sleep(0.005)
            soon = slate(other, wire(1))
            assert not late.done()
            assert late.result() == soon
    assert logged(tmp_path, "a", "b") == ["r1"]
    assert logged(tmp_path, "b") == ["r1"]


def test_a_request_that_fails_leaves_its_id_to_the_next(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    slow = Switch(sleep_s=0.15)
    load_fakes(monkeypatch, slow)
    store = GenerationStore(tmp_path / "generations")
    store.activate(publish(store, 1), time_ms=NOW_MS)
    with replica(tmp_path, "a", url) as channel:
        with pytest.raises(grpc.RpcError):
            call(channel, "Recommender/Recommend", wire(1), timeout=0.1)
        slow.sleep_s = 0.0
        assert len(slate(channel, wire(1))) == 5
    assert logged(tmp_path, "a") == ["r1"]


def test_without_redis_a_server_still_knows_its_own(site: Path) -> None:
    with LocalRedis() as started, replica(site, "a", started.url) as channel:
        started.stop()
        for _ in range(2):
            response = RecommendResponse.FromString(call(channel, "Recommender/Recommend", wire(3)))
            assert response.degradation.bits == Degraded.DEGRADED_DEFAULT_FEATURES, "said for the anonymous too"
    with LocalRedis() as started, replica(site, "a", started.url) as channel:
        again = RecommendResponse.FromString(call(channel, "Recommender/Recommend", wire(3)))
        assert [item.item_id for item in again.items] == [item.item_id for item in response.items]
    assert logged(site, "a") == ["r3"]


def test_an_event_told_to_two_servers_is_stored_by_one_and_counts_once(site: Path, url: str) -> None:
    def outcome(event_id: str, user_id: str) -> Outcome:
        return Outcome(event_id=event_id, item_id="i5", user_id=user_id, action="click", time_ms=NOW_MS)

    request = WriteEventsRequest(events=[outcome("e1", "u1"), outcome("e2", ""), outcome("e1", "u1")])
    stored, twice = EventStatus.EVENT_STATUS_STORED, EventStatus.EVENT_STATUS_DUPLICATE
    with replica(site, "a", url) as one, replica(site, "b", url) as other:
        told = [
            [each.status for each in WriteEventsResponse.FromString(call(to, "Events/Write", wired)).results]
            for to, wired in itertools.product((one, other, one), [request.SerializeToString()])
        ]
        assert told == [[stored, stored, twice], [twice, twice, twice], [twice, twice, twice]]
        slate(other, wire(1))
    (impression,) = read_impressions(site / "b")
    assert len(impression.history_item_key) == 1, "the next request of the user, to any server, sees it"


def _digest(wired: bytes) -> bytes:
    from hashlib import blake2b

    return blake2b(wired, digest_size=16).digest()
