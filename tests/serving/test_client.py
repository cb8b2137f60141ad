"""The typed client against a real server."""

import json
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from serving_cases import NOW_MS, MemoryLog, MemoryState, Switch, load_fakes, publish, running, serving, settings

from index.generations import GenerationStore
from serving.client import SERVICE_CONFIG, CallFailed, CascadeClient, Event
from serving.generation import Generations


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
    assert config["healthCheckConfig"] == {"serviceName": ""}
    assert config["methodConfig"][0]["retryPolicy"]["retryableStatusCodes"] == ["UNAVAILABLE"]
