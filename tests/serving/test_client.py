"""The typed clients against real servers."""

import asyncio
import inspect
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from serving_cases import NOW_MS, MemoryLog, MemoryState, Switch, load_fakes, publish, running, serving, settings

from index.generations import GenerationStore
from serving.client import SERVICE_CONFIG, AsyncCascadeClient, CallFailed, CascadeClient, Event, calls
from serving.client.attempts import Attempts
from serving.client.channels import POOL
from serving.generations import Generations


@pytest.fixture
def log() -> MemoryLog:
    return MemoryLog()


@pytest.fixture
def client(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, log: MemoryLog) -> Iterator[CascadeClient]:
    with (
        serving(tmp_path, monkeypatch, log=log, state=MemoryState()) as address,
        CascadeClient(address.target, admin_target=address.admin_target, deadline_s=20) as made,
    ):
        yield made


def test_items_and_columns_give_the_same_slate(client: CascadeClient) -> None:
    slates = [
        client.recommend(
            "u1", size=6, time_ms=NOW_MS, request_id="r", no_log=True, include_scores=True, columns=columns
        )
        for columns in (False, True)
    ]
    rows, cheap = slates
    assert len(rows.items) == 6
    assert rows.generation == cheap.generation
    for item, other in zip(rows.items, cheap.items, strict=True):
        assert (item.item_id, item.propensity, item.sources) == (other.item_id, other.propensity, other.sources)
        assert item.actions == other.actions
        assert item.score == pytest.approx(other.score)
        assert [reason.split(":")[0] for reason in item.reasons] == list(other.reasons)
        assert item.title.startswith(rows.generation)
        assert other.title == ""
    assert rows.log_propensity < 0
    assert rows.degraded == ()
    assert rows.stage_ms["score"] >= 0


def test_search_and_rank_answer(client: CascadeClient) -> None:
    found = client.search("title", user_id="u1", size=5, time_ms=NOW_MS, request_id="titles")
    assert len(found.items) == 5
    assert any("SEARCH_MATCH" in item.reasons for item in found.items)
    ranked = client.rank(["i9", "gone", "i4", "i6"], user_id="u1", size=2, time_ms=NOW_MS)
    assert len(ranked.items) == 2
    assert ranked.missing_ids == ("gone",)


def test_events_are_answered_one_by_one_and_can_be_sent_again(client: CascadeClient, log: MemoryLog) -> None:
    slate = client.recommend("u1", size=3, time_ms=NOW_MS)
    clicked = Event(
        slate.items[1].item_id, "click", NOW_MS, user_id="u1", request_id=slate.request_id, position=1, event_id="e1"
    )
    answers = client.write_events([clicked, clicked, replace(clicked, event_id="", value=float("inf"))])
    assert [answer.status for answer in answers] == ["STORED", "DUPLICATE", "REJECTED"]
    assert answers[2].reason.startswith("value: inf")
    assert (log.outcomes["e1"].request_id, log.outcomes["e1"].position) == (slate.request_id, 1)
    after = client.recommend("u1", size=3, time_ms=NOW_MS, seed_item_ids=[clicked.item_id])
    assert clicked.item_id not in [item.item_id for item in after.items]


def test_a_refusal_is_an_exception_with_the_servers_sentence(client: CascadeClient) -> None:
    with pytest.raises(CallFailed, match="page_size: 0 given, allowed: 1 to 500") as caught:
        client.recommend("u1", size=0, time_ms=NOW_MS)
    assert caught.value.code == "INVALID_ARGUMENT"


def test_a_server_can_be_managed(client: CascadeClient, tmp_path: Path) -> None:
    store = GenerationStore(tmp_path / "generations")
    first, second = store.ids()[0], publish(store, 2)
    assert client.ready()
    assert [each.id for each in client.generations().generations] == [first, second]
    assert client.prepare(second).id == second
    assert client.activate(second).active
    assert client.recommend(time_ms=NOW_MS).generation == second
    with pytest.raises(CallFailed, match="FAILED_PRECONDITION"):
        client.activate(first, expected=first)
    assert client.rollback().id == first
    assert client.status().generation == first


def test_without_an_admin_target_managing_says_what_is_missing(client: CascadeClient) -> None:
    with CascadeClient("127.0.0.1:1") as plain, pytest.raises(ValueError, match="admin_target"):
        plain.status()


def test_nobody_there_is_told_when_the_deadline_is_over() -> None:
    with CascadeClient("127.0.0.1:1", deadline_s=0.3) as client:
        assert not client.ready(deadline_s=0.2)
        started = time.monotonic()
        with pytest.raises(CallFailed) as caught:
            client.recommend("u1")
        assert caught.value.code in ("DEADLINE_EXCEEDED", "UNAVAILABLE")
        assert time.monotonic() - started >= 0.25


def test_a_call_waits_until_a_generation_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_fakes(monkeypatch)
    store = GenerationStore(tmp_path / "generations")
    with (
        running(Generations(store), settings(tmp_path)) as address,
        CascadeClient(address.target, deadline_s=20) as client,
    ):
        assert not client.ready(deadline_s=0.1)
        timer = threading.Timer(0.3, lambda: store.activate(publish(store, 1), time_ms=NOW_MS))
        timer.start()
        assert client.recommend(time_ms=NOW_MS).items
        timer.join()


def test_rolling_restarts_of_two_servers_lose_no_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_fakes(monkeypatch, Switch(sleep_s=0.005))
    store = GenerationStore(tmp_path / "generations")
    store.activate(publish(store, 1), time_ms=NOW_MS)
    chosen = replace(settings(tmp_path, waiting=100), lame_duck_s=0.5)
    log = MemoryLog()
    first = running(Generations(store), chosen, log=log)
    second = running(Generations(store), chosen, log=log)
    addresses = [first.__enter__(), second.__enter__()]
    fixed = [replace(chosen, port=int(address.target.rsplit(":", 1)[1])) for address in addresses]
    servers = [first, second]
    stop = threading.Event()
    failed: list[str] = []
    asked: list[str] = []

    def load(client: CascadeClient) -> None:
        while not stop.is_set():
            try:
                asked.append(client.recommend("u1", size=3, time_ms=NOW_MS).request_id)
            except CallFailed as error:
                failed.append(str(error))

    with CascadeClient("ipv4:" + ",".join(each.target for each in addresses), deadline_s=20) as client:
        threads = [threading.Thread(target=load, args=(client,)) for _ in range(3)]
        for thread in threads:
            thread.start()
        for turn in range(4):
            servers[turn % 2].__exit__(None, None, None)
            servers[turn % 2] = running(Generations(store), fixed[turn % 2], log=log)
            servers[turn % 2].__enter__()
            time.sleep(0.5)
        stop.set()
        for thread in threads:
            thread.join()
    for server in servers:
        server.__exit__(None, None, None)
    assert failed == []
    assert len(asked) > 100
    assert set(asked) <= set(log.impressions)


def test_the_service_config_is_json_that_other_languages_can_read() -> None:
    config = json.loads(SERVICE_CONFIG)
    assert ("grpc.service_config", SERVICE_CONFIG) in POOL
    assert config == json.loads((Path(calls.__file__).with_name("service_config.json")).read_text())
    assert config["healthCheckConfig"] == {"serviceName": ""}
    assert config["methodConfig"][0]["retryPolicy"]["retryableStatusCodes"] == ["UNAVAILABLE", "RESOURCE_EXHAUSTED"]


def test_both_clients_have_the_same_methods_with_the_same_arguments() -> None:
    def methods(client: type) -> dict[str, inspect.Signature]:
        public = {name: each for name, each in vars(client).items() if not name.startswith("_") and name != "close"}
        return {name: inspect.signature(each) for name, each in public.items()}

    assert methods(CascadeClient) == methods(AsyncCascadeClient)
    assert len(methods(CascadeClient)) == 21


def test_the_asyncio_client_gets_the_answers_of_the_blocking_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def ask(target: str, admin_target: str) -> None:
        async with AsyncCascadeClient(target, admin_target=admin_target, deadline_s=20) as client:
            assert await client.ready(deadline_s=20)
            slates = await asyncio.gather(
                *[client.recommend("u1", size=4, time_ms=NOW_MS, request_id=f"r{n}", no_log=True) for n in range(8)]
            )
            for number, slate in enumerate(slates):
                again = plain.recommend("u1", size=4, time_ms=NOW_MS, request_id=f"r{number}", no_log=True)
                assert [item.item_id for item in slate.items] == [item.item_id for item in again.items]
            assert (await client.write_events([Event("i1", "click", NOW_MS)]))[0].status == "STORED"
            assert (await client.status()).generation == plain.status().generation
            with pytest.raises(CallFailed, match="page_size: 0 given"):
                await client.recommend("u1", size=0, time_ms=NOW_MS)
            with pytest.raises(CallFailed, match="NOT_FOUND"):
                await client.activate("000009-00000000")

    with (
        serving(tmp_path, monkeypatch, log=MemoryLog()) as address,
        CascadeClient(address.target, admin_target=address.admin_target, deadline_s=20) as plain,
    ):
        asyncio.run(ask(address.target, address.admin_target))


@contextmanager
def one_slow(folder: Path, patch: pytest.MonkeyPatch) -> Iterator[tuple[str, list[Switch]]]:
    """Two servers, the second one 100 ms slower; and who scored how much."""
    store = GenerationStore(folder / "generations")
    store.activate(publish(store, 1), time_ms=NOW_MS)
    switches = [Switch(), Switch(sleep_s=0.1)]
    load_fakes(patch, switches[0])
    with running(Generations(store), settings(folder)) as fast:
        load_fakes(patch, switches[1])
        with running(Generations(store), settings(folder)) as slow:
            yield f"ipv4:{fast.target},{slow.target}", switches


def p99_s(ask: Callable[[], object], calls: int) -> float:
    took_s = []
    for _ in range(calls):
        started = time.perf_counter()
        ask()
        took_s.append(time.perf_counter() - started)
    return sorted(took_s)[int(0.99 * calls)]


def test_with_one_of_two_servers_slow_the_99th_percentile_is_halved_by_a_twentieth_more_calls(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with one_slow(tmp_path, monkeypatch) as (target, switches):
        with CascadeClient(target, deadline_s=20) as plain:
            plain._attempts = Attempts(replicas=0)
            p99_s(lambda: plain.recommend(time_ms=NOW_MS, size=3), 4)  # connects
            before_s = p99_s(lambda: plain.recommend(time_ms=NOW_MS, size=3), 30)
        with CascadeClient(target, deadline_s=20) as client:
            p99_s(lambda: client.recommend(time_ms=NOW_MS, size=3), 100)
            scored = sum(switch.calls for switch in switches)
            after_s = p99_s(lambda: client.recommend(time_ms=NOW_MS, size=3), 500)
            assert sum(switch.calls for switch in switches) - scored <= 500 + 0.05 * 600
        assert after_s <= before_s / 2


def test_the_asyncio_client_hedges_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def ask(target: str) -> list[float]:
        took_s = []
        async with AsyncCascadeClient(target, deadline_s=20) as client:
            for _ in range(400):
                started = time.perf_counter()
                await client.recommend(time_ms=NOW_MS, size=3)
                took_s.append(time.perf_counter() - started)
        return took_s

    with one_slow(tmp_path, monkeypatch) as (target, switches):
        took_s = asyncio.run(ask(target))
        assert sorted(took_s[100:])[int(0.99 * 300)] < 0.1
        assert sum(switch.calls for switch in switches) <= 400 + 0.05 * 400


def test_a_server_that_goes_is_passed_over_without_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_fakes(monkeypatch)
    store = GenerationStore(tmp_path / "generations")
    store.activate(publish(store, 1), time_ms=NOW_MS)
    with running(Generations(store), settings(tmp_path)) as first:
        second = running(Generations(store), settings(tmp_path))
        gone = second.__enter__()
        with CascadeClient(f"ipv4:{first.target},{gone.target}", deadline_s=20) as client:
            for number in range(120):
                if number == 60:
                    second.__exit__(None, None, None)
                assert client.recommend(time_ms=NOW_MS, size=3).items
