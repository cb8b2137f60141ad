"""User state and events over a Redis Cluster of three real processes."""

import itertools
import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, cast

import numpy as np
import pytest
import redis
from redis.crc import key_slot
from state_cases import ClusterNode, redis_cluster

from candidate_gen.activity import EVENT
from serving.breaker import Breaker
from serving.state.exchange import EventExchange
from serving.state.redis_store import RedisStore, StateUnavailable
from serving.state.replies import Answered
from serving.state.user_state import Claim, UserEvent, UserState, Wanted

Cluster = tuple[ClusterNode, ...]


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with redis_cluster(tmp_path_factory.mktemp("cluster")) as nodes:
        yield nodes


@pytest.fixture
def state(cluster: Cluster) -> Iterator[UserState]:
    made = UserState(address(cluster), timeout_s=0.3, breaker=lambda: Breaker(failures=2, cool_down_s=0.2))
    yield made
    made.close()


def address(cluster: Cluster) -> str:
    return "redis+cluster://" + ",".join(f"127.0.0.1:{node.port}" for node in cluster[:2])


def users_of(cluster: Cluster, node: int, count: int = 5) -> list[str]:
    """Users whose keys this node holds."""
    share = -(-16_384 // len(cluster))
    named = (f"user {n}" for n in range(10_000))
    return [each for each in named if key_slot(f"cascade:{{user:{each}}}".encode()) // share == node][:count]


def until(holds: Callable[[], bool], *, within_s: float = 15.0) -> bool:
    end = time.monotonic() + within_s
    while not holds():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def known(state: UserState, user_id: str) -> list[int]:
    numbers: list[int] = state.recall(Wanted(user_id)).history[0].tolist()
    return numbers


def test_users_of_every_node_are_read_and_written_as_with_one_redis(cluster: Cluster, state: UserState) -> None:
    users = [user for node in range(3) for user in users_of(cluster, node)]
    events = [UserEvent(f"{user} {n}", user, n, 0, n) for n in range(3) for user in [*users, ""]]
    assert state.push(events) == [True] * len(events)
    assert state.push(events) == [False] * len(events)
    for user in users:
        assert known(state, user) == [2, 1, 0]
        claim = Claim.of("r", user, bytes(16))
        assert state.recall(Wanted(user, claim=claim)).claimed
        state.answer(claim, Answered(user.encode(), 7))
        state.show(user, [5, 6], time_ms=9, most=10, ttl_s=100)
    state.flush()
    for user in users:
        again = state.recall(Wanted(user, shown=9, claim=Claim.of("r", user, bytes(16))))
        assert again.answered == Answered(user.encode(), 7)
        assert state.recall(Wanted(user, shown=9)).shown_key_X.tolist() == [5, 6]
        state.forget(user)
        assert known(state, user) == []


@pytest.mark.parametrize("how", ["killed", "stopped"])
def test_one_node_of_three_is_missed_by_its_own_users_alone_and_found_again(
    cluster: Cluster, state: UserState, how: str
) -> None:
    users = [users_of(cluster, node) for node in range(3)]
    for n, user in enumerate(itertools.chain(*users)):
        state.push([UserEvent(f"{how} {n}", user, 1, 0, 1)])
    ill = cluster[1]
    ill.end() if how == "killed" else os.kill(ill.process.pid, signal.SIGSTOP)
    try:
        for _ in range(3):
            for user in users[0] + users[2]:
                assert known(state, user)[0] == 1, "others notice nothing"
            for user in users[1]:
                with pytest.raises(StateUnavailable):
                    state.recall(Wanted(user))
        with pytest.raises(StateUnavailable):
            state.push(
                [UserEvent(f"{how} x {user}", user, 2, 0, 2) for user in (users[0][0], users[1][0], users[2][0])]
            )
        assert [known(state, user)[0] for user in (users[0][0], users[2][0])] == [2, 2]
        started = time.monotonic()
        for _ in range(200):
            with pytest.raises(StateUnavailable, match="breaker is open"):
                state.recall(Wanted(users[1][0]))
        assert time.monotonic() - started < 1, "the first calls found out for the others"
    finally:
        ill.begin_again() if how == "killed" else os.kill(ill.process.pid, signal.SIGCONT)

    def found_again() -> bool:
        try:
            return not state.recall(Wanted(users[1][0])).refused
        except StateUnavailable:
            return False

    assert until(found_again)


def test_a_slot_that_has_moved_is_followed(cluster: Cluster, state: UserState) -> None:
    store = RedisStore(address(cluster), timeout_s=1.0)
    user = users_of(cluster, 0)[0]
    key = f"cascade:{{user:{user}}}:events"
    assert store.ask(key, [("GET", "cascade:{user:" + user + "}:x")]) == [None]
    store._node_of_slot[key_slot(key.encode())] = store._node(f"127.0.0.1:{cluster[2].port}")
    assert store.ask(key, [("SET", key, "a", "EX", 1), ("GET", key)]) == [b"OK", b"a"]
    assert store.ask(key, [("DEL", key)]) == [1]
    store.close()


def test_keys_on_their_way_to_another_node_are_found_where_they_are(cluster: Cluster, state: UserState) -> None:
    first, second = users_of(cluster, 0, count=40)[-2:]
    assert state.push([UserEvent(f"on its way {user}", user, 1, 0, 1) for user in (first, second)]) == [True, True]
    with redis.Redis(port=cluster[0].port) as giver, redis.Redis(port=cluster[2].port) as taker:
        ids = [each.execute_command("CLUSTER MYID") for each in (giver, taker)]
        slot = key_slot(f"cascade:{{user:{first}}}".encode())
        taker.execute_command("CLUSTER SETSLOT", slot, "IMPORTING", ids[0])
        giver.execute_command("CLUSTER SETSLOT", slot, "MIGRATING", ids[1])
        assert known(state, first) == [1], "still where it was"
        assert not state.recall(Wanted(first, shown=9)).refused, "what is nowhere is asked of both"
        keys = giver.execute_command("CLUSTER GETKEYSINSLOT", slot, 100)
        assert giver.execute_command("MIGRATE", "127.0.0.1", cluster[2].port, "", 0, 5000, "KEYS", *keys) == b"OK"
        recalled = state.recall(Wanted(first, shown=9))
        assert (recalled.history[0].tolist(), recalled.refused) == ([1], ())
        claim = Claim.of("r", first, bytes(16))
        assert state.recall(Wanted(first, claim=claim)).claimed
        with pytest.raises(StateUnavailable, match="during rehashing of slot"):
            state.push([UserEvent("on its way", first, 2, 0, 2), UserEvent("on its way", second, 2, 0, 2)])
        assert known(state, second) == [2, 1], "others notice nothing"
        for each in (taker, giver):
            each.execute_command("CLUSTER SETSLOT", slot, "NODE", ids[1])
    assert known(state, first) == [1], "and knows who has it now"
    assert state.push([UserEvent("on its way", first, 2, 0, 2)]) == [True]
    assert known(state, first) == [2, 1]


def test_a_cluster_that_is_not_there_yet_is_waited_for_in_the_background(cluster: Cluster) -> None:
    for node in cluster:
        os.kill(node.process.pid, signal.SIGSTOP)
    try:
        state = UserState(address(cluster), timeout_s=0.05)
        with pytest.raises(StateUnavailable):
            state.recall(Wanted("anna"))
    finally:
        for node in cluster:
            os.kill(node.process.pid, signal.SIGCONT)

    def there() -> bool:
        try:
            return state.recall(Wanted("anna")).refused == ()
        except StateUnavailable:
            return False

    assert until(there)
    state.close()


class Listener:
    """What an exchange needs of `Live`."""

    def __init__(self) -> None:
        self.outbox: deque[bytes] = deque()
        self.heard: list[int] = []

    def add(self, event_E: np.ndarray) -> None:
        self.heard += event_E["item_key"].tolist()


def test_events_are_exchanged_over_a_cluster(cluster: Cluster) -> None:
    here, there = Listener(), Listener()
    one, other = (EventExchange(cast(Any, each), address(cluster)) for each in (here, there))
    other.pass_on()
    for number in range(3):
        here.outbox.append(np.array([(number, 0, 0, 0)], EVENT).tobytes())
    one.pass_on()
    other.pass_on()
    one.pass_on()
    assert (there.heard, here.heard) == ([0, 1, 2], [])
    one.close()
    other.close()
