"""Calls that come too often, too late, from one tenant, or whose caller has gone; and what a defect tells."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from serving_cases import NOW_MS, MemoryLog, Switch, call, refusal, serving

from protos.admin_pb2 import GetStatusResponse
from protos.events_pb2 import EventStatus, WriteEventsRequest, WriteEventsResponse
from protos.impression_pb2 import Outcome
from protos.recommender_pb2 import (
    PRIORITY_CRITICAL,
    PRIORITY_DEFAULT,
    PRIORITY_SHEDDABLE,
    Context,
    RecommendRequest,
    RecommendResponse,
)
from serving.server import Address

HELD_S = 0.01
RUNNING = 2
CAPACITY_PER_S = RUNNING / HELD_S


def wire(*, tenant: str = "", priority: int = 0, request_id: str = "", time_ms: int = NOW_MS) -> bytes:
    context = Context(client_time_ms=time_ms, user_id="u1", tenant=tenant, priority=priority)  # type: ignore[arg-type]
    return RecommendRequest(context=context, page_size=5, request_id=request_id).SerializeToString()


@dataclass
class Load:
    """Calls sent at their times whatever becomes of those before, and what became of them."""

    channel: grpc.Channel
    codes: Counter[tuple[str, str]] = field(default_factory=Counter)
    """By tenant or priority, and by status."""
    taken_s: list[float] = field(default_factory=list)
    """Of those answered."""
    pushbacks: list[int] = field(default_factory=list)
    _open: int = 0
    _changed: threading.Condition = field(default_factory=threading.Condition)

    def send(self, kinds: Sequence[tuple[str, bytes]], *, per_s: float, for_s: float, deadline_s: float) -> None:
        """Requests of each kind in turn, evenly spaced."""
        method: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self.channel.unary_unary(
            "/cascade.v1.Recommender/Recommend"
        )
        started = time.monotonic()
        for number in range(int(per_s * for_s)):
            time.sleep(max(0.0, started + number / per_s - time.monotonic()))
            name, asked = kinds[number % len(kinds)]
            with self._changed:
                self._open += 1
            sent = time.monotonic()
            future = method.future(asked, timeout=deadline_s)
            future.add_done_callback(partial(self._note, name, sent))
        with self._changed:
            assert self._changed.wait_for(lambda: not self._open, 30)

    def _note(self, name: str, sent: float, done: Any) -> None:
        code = done.code().name
        with self._changed:
            self.codes[name, code] += 1
            if code == "OK":
                self.taken_s.append(time.monotonic() - sent)
            if code == "RESOURCE_EXHAUSTED":
                told = dict(done.trailing_metadata())
                self.pushbacks.append(int(told.get("grpc-retry-pushback-ms", 0)))
            self._open -= 1
            self._changed.notify()

    def share(self, name: str, code: str) -> float:
        of_it = sum(count for (each, _), count in self.codes.items() if each == name)
        return self.codes[name, code] / of_it


@contextmanager
def busy(
    folder: Path, patch: pytest.MonkeyPatch, *, waiting: int = 32, switch: Switch | None = None
) -> Iterator[tuple[grpc.Channel, Callable[[], GetStatusResponse], Address]]:
    """A server whose every slate takes a while, but no processor."""
    switch = switch or Switch(sleep_s=HELD_S)
    with (
        serving(folder, patch, switch=switch, log=MemoryLog(), running=RUNNING, waiting=waiting) as address,
        grpc.insecure_channel(address.target) as channel,
        grpc.insecure_channel(address.admin_target) as admin,
    ):
        for _ in range(8):
            call(channel, "Recommender/Recommend", wire())
        yield channel, lambda: GetStatusResponse.FromString(call(admin, "Admin/GetStatus", b"")), address


def calm(status: Callable[[], GetStatusResponse]) -> bool:
    """Whether nothing is at work any more."""
    end = time.monotonic() + 20
    while status().in_flight:
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def test_three_times_the_load_leaves_the_answers_and_refuses_the_rest_with_a_time_to_come_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with busy(tmp_path, monkeypatch) as (channel, status, _):
        load = Load(channel)
        load.send([("all", wire())], per_s=3 * CAPACITY_PER_S, for_s=1.5, deadline_s=0.5)
        assert calm(status)
    assert {code for _, code in load.codes} <= {"OK", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"}
    assert load.share("all", "OK") > 0.1, "without a bound, hardly any answer would be in time"
    assert load.share("all", "RESOURCE_EXHAUSTED") > 0.3
    late = load.share("all", "DEADLINE_EXCEEDED")
    assert late < load.share("all", "RESOURCE_EXHAUSTED"), "who cannot be answered in time is told so before"
    assert min(load.pushbacks) >= 10


def test_a_tenant_that_floods_takes_nothing_from_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with busy(tmp_path, monkeypatch) as (channel, status, _):
        load = Load(channel)
        kinds = [("victim", wire(tenant="victim")), *[("flood", wire(tenant="flood"))] * 10]
        load.send(kinds, per_s=3 * CAPACITY_PER_S, for_s=1.5, deadline_s=1.0)
        assert calm(status)
    assert load.share("flood", "OK") < 0.8, "it was a flood"
    assert load.share("victim", "OK") >= 0.99


def test_under_overload_what_matters_less_goes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = {"sheddable": PRIORITY_SHEDDABLE, "default": PRIORITY_DEFAULT, "critical": PRIORITY_CRITICAL}
    kinds = [(name, wire(priority=priority)) for name, priority in named.items()]
    with busy(tmp_path, monkeypatch) as (channel, status, _):
        load = Load(channel)
        load.send(kinds, per_s=2 * CAPACITY_PER_S, for_s=1.5, deadline_s=1.0)
        assert calm(status)
    sheddable, default, critical = (load.share(name, "OK") for name in named)
    assert critical > max(default, sheddable)
    assert default >= sheddable - 0.02, "none of either, where the machine has little time"


def test_deadlines_too_short_leave_nothing_at_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with busy(tmp_path, monkeypatch) as (channel, status, _):
        method: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/cascade.v1.Recommender/Recommend")
        random = np.random.default_rng(0)
        futures = [method.future(wire(), timeout=float(random.uniform(0.001, 0.05))) for _ in range(500)]
        codes = Counter(each.code().name for each in futures)
        assert set(codes) <= {"OK", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"}
        assert codes["DEADLINE_EXCEEDED"]
        assert calm(status)
        assert refusal(channel, "Recommender/Recommend", wire())[0] == "OK"


def test_who_sets_no_deadline_gets_the_servers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with (
        serving(tmp_path, monkeypatch, switch=Switch(sleep_s=0.5), running=1, deadline_s=0.2) as address,
        grpc.insecure_channel(address.target) as channel,
    ):
        method: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/cascade.v1.Recommender/Recommend")
        futures = [method.future(wire()) for _ in range(4)]
        codes = Counter(each.code().name for each in futures)
    assert set(codes) == {"DEADLINE_EXCEEDED"}


def test_who_hangs_up_while_waiting_costs_no_slate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    switch = Switch()
    with busy(tmp_path, monkeypatch, switch=switch) as (channel, status, _):
        switch.sleep_s, before = 0.5, switch.calls
        method: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/cascade.v1.Recommender/Recommend")
        futures = [method.future(wire(), timeout=20) for _ in range(20)]
        while status().in_flight < len(futures):
            time.sleep(0.005)
        for each in futures:
            each.cancel()
        assert calm(status)
        assert switch.calls - before <= 2 * RUNNING
        assert status().failed["CANCELLED"] >= len(futures) - 2 * RUNNING
        switch.sleep_s = 0.0
        assert refusal(channel, "Recommender/Recommend", wire())[0] == "OK"


def test_who_retries_a_request_that_was_given_up_gets_an_answer_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    switch = Switch()
    with busy(tmp_path, monkeypatch, switch=switch) as (channel, _, _):
        switch.sleep_s = 0.3
        method: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/cascade.v1.Recommender/Recommend")
        first = method.future(wire(request_id="r1"), timeout=20)
        time.sleep(0.05)
        second = method.future(wire(request_id="r1"), timeout=20)
        time.sleep(0.05)
        first.cancel()
        assert RecommendResponse.FromString(second.result()).request_id == "r1"


@pytest.mark.parametrize(
    "part",
    [
        "serving.service.answers.record",
        "serving.service.answers.respond",
        "serving.service.codec.query_of",
        "serving.found.check_against",
        "policy.selector.SlatePolicy.select",
        "candidate_gen.filters.Excluded.keep",
    ],
)
def test_a_defect_anywhere_tells_an_opaque_id_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, part: str
) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError('File "/secret/path/module.py", line 3, in function')

    with busy(tmp_path, monkeypatch, switch=Switch()) as (channel, status, _):
        with monkeypatch.context() as patch:
            patch.setattr(part, fails)
            code, message = refusal(channel, "Recommender/Recommend", wire())
        assert code == "INTERNAL"
        assert message.startswith("internal error ")
        assert not {"/", ".py", "line", "secret", "Traceback"} & set(message.replace("/", " / ").split())
        assert len(message.split()) == 3
        assert calm(status)
        assert refusal(channel, "Recommender/Recommend", wire())[0] == "OK"


@pytest.mark.parametrize("jump_ms", [-86_400_000, 86_400_000])
def test_a_clock_that_jumps_a_day_bounds_no_deadline_and_marks_events(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, jump_ms: int
) -> None:
    now = [NOW_MS]
    monkeypatch.setattr("serving.parts.now_ms", lambda: now[0])
    with (
        serving(tmp_path, monkeypatch, log=MemoryLog(), clock="system") as address,
        grpc.insecure_channel(address.target) as channel,
    ):

        def written(event_id: str) -> int:
            event = Outcome(event_id=event_id, item_id="i5", action="click", value=1.0, time_ms=NOW_MS - 1000)
            request = WriteEventsRequest(events=[event]).SerializeToString()
            return WriteEventsResponse.FromString(call(channel, "Events/Write", request)).results[0].status

        assert written("before") == EventStatus.EVENT_STATUS_STORED
        for at_ms in (NOW_MS, NOW_MS + jump_ms, NOW_MS):
            now[0] = at_ms
            reply = RecommendResponse.FromString(call(channel, "Recommender/Recommend", wire(), timeout=20))
            assert all(each.milliseconds >= 0 for each in reply.degradation.stages)
            assert len(reply.items) == 5
            jumped = EventStatus.EVENT_STATUS_LATE if jump_ms > 0 else EventStatus.EVENT_STATUS_REJECTED
            expected = EventStatus.EVENT_STATUS_STORED if at_ms == NOW_MS else jumped
            assert written(f"at {at_ms} {time.monotonic_ns()}") == expected
