"""How a client holds back, chooses and insists: decided without a network."""

import random
from collections import Counter

import pytest

from serving.client.attempts import Ask, Attempts, Call, CallFailed, Reply, Send, Wait
from serving.client.channels import failed, replicas_of
from serving.client.replicas import Replicas
from serving.client.restraint import AdaptiveThrottle, Budget

CALL = Call("/cascade.v1.Recommender/Recommend", b"asked")
OK = Reply("OK", b"answer")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def attempts(clock: Clock, replicas: int = 2) -> Attempts:
    def throttle() -> AdaptiveThrottle:
        return AdaptiveThrottle(clock=clock, chance=lambda: 0.5)

    return Attempts(replicas=replicas, throttle=throttle, clock=clock)


def run(made: Attempts, clock: Clock, servers: dict[int, tuple[float, Reply]], *, deadline_s: float = 1.0) -> list[str]:
    """Drive one call; `servers` says after how long each replies and what, -1 whoever is asked at last.

    Returns what was done, and what came of it last.
    """
    plan = made.of(CALL, deadline_s=deadline_s)
    due: dict[int, float] = {}
    done: list[str] = []
    try:
        step = next(plan)
        while True:
            told = None
            if isinstance(step, Ask):
                done.append("ask")
                clock.now += servers[-1][0]
                told = servers[-1][1]
            elif isinstance(step, Send):
                done.append(f"send {step.replica}")
                due[step.replica] = clock.now + servers[step.replica][0]
            else:
                assert isinstance(step, Wait)
                first = min(due, key=lambda each: due[each], default=None)
                until = clock.now + step.seconds
                if first is not None and due[first] <= until:
                    clock.now = due.pop(first)
                    reply = servers[first][1]
                    told = Reply(reply.code, reply.wire, reply.message, reply.pushback_ms, first)
                else:
                    done.append(f"wait {step.seconds:.3f}")
                    clock.now = until
            step = plan.send(told)
    except StopIteration as end:
        done.append(end.value.decode())
    except CallFailed as error:
        done.append(error.code)
    return done


def known(clock: Clock, *, calls: int = 64) -> Attempts:
    """A client that knows two servers which answer in 10 ms, and has saved for a hedge."""
    made = attempts(clock)
    for _ in range(calls):
        assert run(made, clock, {0: (0.01, OK), 1: (0.01, OK)})[-1] == "answer"
    return made


def test_a_call_that_is_late_goes_to_the_other_replica_and_the_first_answer_wins() -> None:
    clock = Clock()
    made = known(clock)
    first, second = (1, 0)
    began = clock.now
    done = run(made, clock, {first: (0.5, Reply("OK", b"late")), second: (0.02, Reply("OK", b"early"))})
    assert done == ["send 1", "wait 0.010", "send 0", "early"]
    assert clock.now - began == pytest.approx(0.03)


def test_without_knowledge_or_budget_nothing_is_hedged() -> None:
    clock = Clock()
    made = attempts(clock)
    assert run(made, clock, {0: (0.5, OK), 1: (0.5, OK)}) == ["send 1", "answer"]
    made = known(clock)
    slow = {0: (0.9, OK), 1: (0.9, OK)}
    hedged = [sum(step.startswith("send") for step in run(made, clock, slow)) == 2 for _ in range(20)]
    assert hedged[0]
    assert sum(hedged) <= 4, "64 calls saved three, 20 earn one"


def test_extra_calls_stay_within_a_twentieth_whatever_happens() -> None:
    clock, chance = Clock(), random.Random(0)
    made = attempts(clock)
    sent: Counter[str] = Counter()
    for _ in range(2000):
        servers = {each: (chance.expovariate(100), OK) for each in (0, 1)}
        sent.update(step.split()[0] for step in run(made, clock, servers))
    assert sent["answer"] == 2000
    assert 2000 * 1.01 < sent["send"] <= 2000 * 1.05


def test_a_replica_that_is_down_is_passed_over_and_the_call_asked_of_any() -> None:
    clock = Clock()
    made = attempts(clock)
    down = Reply("UNAVAILABLE", message="refused")
    servers = {0: (0.01, OK), 1: (0.0, down), -1: (0.01, Reply("OK", b"any"))}
    assert run(made, clock, servers) == ["send 1", "ask", "any"]
    for _ in range(5):
        assert run(made, clock, servers) == ["send 0", "answer"]
    clock.now += 2
    assert "send 1" in run(made, clock, servers) + run(made, clock, servers), "later it is tried again"


def test_pushback_is_waited_for_and_one_that_forbids_is_obeyed() -> None:
    clock = Clock()
    made = known(clock)
    full = Reply("RESOURCE_EXHAUSTED", message="full", pushback_ms=200)
    began = clock.now
    done = run(made, clock, {0: (0.0, full), 1: (0.0, full), -1: (0.01, OK)})
    assert done == ["send 1", "wait 0.200", "ask", "answer"]
    assert clock.now - began == pytest.approx(0.21)
    for pushback_ms in (-1, None, 5000):
        refused = Reply("RESOURCE_EXHAUSTED", message="full", pushback_ms=pushback_ms)
        assert run(made, clock, {0: (0.0, refused), 1: (0.0, refused)})[-1] == "RESOURCE_EXHAUSTED"


def test_retries_of_refusals_are_a_tenth_of_the_calls() -> None:
    clock = Clock()
    made = attempts(clock)
    full = Reply("RESOURCE_EXHAUSTED", pushback_ms=1)
    asked = 0
    for number in range(1000):
        servers = {0: (0.01, full if number % 3 == 0 else OK), 1: (0.01, full if number % 3 == 0 else OK), -1: (0, OK)}
        asked += "ask" in run(made, clock, servers)
    assert 50 < asked <= 100


def test_misuse_is_told_at_once() -> None:
    clock = Clock()
    wrong = Reply("INVALID_ARGUMENT", message="page_size")
    assert run(attempts(clock), clock, {0: (0, wrong), 1: (0, wrong)}) == ["send 1", "INVALID_ARGUMENT"]


def test_nobody_in_time_is_a_deadline() -> None:
    clock = Clock()
    assert run(known(clock), clock, {0: (9, OK), 1: (9, OK)})[-1] == "DEADLINE_EXCEEDED"


def test_a_slow_replica_gets_few_calls_and_as_many_as_before_once_it_is_well() -> None:
    clock = Clock()
    replicas = Replicas(2, clock=clock)
    took_s = {0: 0.005, 1: 0.1}
    picked: list[int] = []

    def ask(times: int) -> float:
        del picked[:]
        for _ in range(times):
            chosen = replicas.pick()
            assert chosen is not None
            replicas.answered(chosen, took_s[chosen])
            picked.append(chosen)
        return picked.count(1) / times

    ask(10)
    assert 0 < ask(1280) <= 0.01
    took_s[1] = 0.005
    ask(2560)
    assert ask(1280) == pytest.approx(0.5, abs=0.02)


def test_nothing_is_dropped_while_a_server_takes_half_and_the_rest_in_proportion() -> None:
    clock, chance = Clock(), random.Random(1)

    def sent(share_taken: float, *, calls: int = 20_000) -> float:
        throttle = AdaptiveThrottle(clock=clock, chance=chance.random)
        sent = 0
        for _ in range(calls):
            clock.now += 0.001
            if throttle.admit():
                sent += 1
                throttle.settled(refused=chance.random() >= share_taken)
        return sent / calls

    assert sent(1.0) == 1.0
    assert sent(0.6) > 0.99
    # a server that takes a share s of what is sent: x sent of 1 wanted, x = 1 - (1 - 2sx), hence all or almost none
    assert sent(0.1) < 0.1


@pytest.mark.parametrize("multiple", [2, 5, 10])
def test_offered_many_times_the_capacity_a_server_is_sent_about_twice_what_it_can_do(multiple: int) -> None:
    """A server that takes 100 calls a second and refuses the rest."""
    clock, chance = Clock(), random.Random(2)
    throttle = AdaptiveThrottle(clock=clock, chance=chance.random)
    sent = taken = 0
    left, second = 100.0, 0.0
    for number in range(100 * multiple * 60):
        clock.now = number / (100 * multiple)
        left = min(left + 100 * (clock.now - second), 5.0)
        second = clock.now
        if throttle.admit():
            takes = left >= 1
            left -= takes
            throttle.settled(refused=not takes)
            if clock.now > 20:
                sent += 1
                taken += takes
    assert taken >= 0.9 * 100 * 40, "goodput"
    assert sent <= 2.4 * taken


def test_a_throttle_forgets_what_is_long_past() -> None:
    clock = Clock()
    throttle = AdaptiveThrottle(clock=clock, chance=lambda: 0.0)
    for _ in range(100):
        if throttle.admit():
            throttle.settled(refused=True)
    assert not throttle.admit()
    clock.now += 11
    assert throttle.admit()


def test_one_service_is_not_throttled_for_another_and_health_and_admin_never() -> None:
    clock = Clock()
    made = attempts(clock, replicas=0)
    full = {-1: (0.0, Reply("RESOURCE_EXHAUSTED"))}
    assert {run(made, clock, full)[-1] for _ in range(30)} == {"RESOURCE_EXHAUSTED"}
    assert run(made, clock, full)[0] == "RESOURCE_EXHAUSTED", "dropped before it is sent"
    for call in (
        Call("/cascade.v1.Events/Write", b""),
        Call("/grpc.health.v1.Health/Check", b""),
        Call("/cascade.v1.Admin/GetStatus", b"", admin=True),
    ):
        assert isinstance(next(made.of(call, deadline_s=1.0)), Ask)


def test_a_budget_saves_up_to_its_bound() -> None:
    budget = Budget(0.5, most=2)
    assert not budget.spend()
    for _ in range(100):
        budget.earn()
    assert [budget.spend() for _ in range(3)] == [True, True, False]


def test_only_a_list_of_addresses_can_be_told_apart() -> None:
    assert replicas_of("ipv4:127.0.0.1:1,127.0.0.1:2") == ["ipv4:127.0.0.1:1", "ipv4:127.0.0.1:2"]
    assert replicas_of("ipv4:127.0.0.1:1") == replicas_of("localhost:1") == replicas_of("dns:///a:1") == []


@pytest.mark.parametrize(("told", "pushback_ms"), [("120", 120), ("-1", -1), ("soon", -1), (None, None)])
def test_what_a_server_says_of_pushback_is_read(told: str | None, pushback_ms: int | None) -> None:
    import grpc

    trailers = (("x", "1"), ("grpc-retry-pushback-ms", told)) if told is not None else None
    assert failed(grpc.StatusCode.RESOURCE_EXHAUSTED, "full", trailers).pushback_ms == pushback_ms
