"""Who comes in, who waits, who is refused: by room, deadline, tenant, rate and priority."""

import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import pytest

from protos.recommender_pb2 import PRIORITY_CRITICAL, PRIORITY_DEFAULT, PRIORITY_SHEDDABLE
from serving.admission import Admission, DeadlinePassed, Overloaded

LONG_S = 20.0


@dataclass
class Clock:
    """Stands still until it is moved."""

    now_s: float = 100.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Room:
    """An admission with one call at work, which leaves when it is told to, and others that come after it.

    A call that takes the place of another is counted with it.
    """

    admission: Admission
    served: list[str] = field(default_factory=list)
    asked: list[Future[None]] = field(default_factory=list)
    pool: ThreadPoolExecutor = field(default_factory=lambda: ThreadPoolExecutor(64))
    leave: threading.Event = field(default_factory=threading.Event)

    def ask(self, name: str, *, tenant: str = "", priority: int = 0, within_s: float = LONG_S) -> Future[None]:
        """Comes in, or waits: returns when it does either."""

        def call() -> None:
            with self.admission.enter(time.monotonic() + within_s, tenant=tenant, priority=priority):
                self.served.append(name)
                self.leave.wait(LONG_S)

        before = self._settled()
        self.asked.append(self.pool.submit(call))
        while self._settled() == before:
            time.sleep(0.0005)
        return self.asked[-1]

    def _settled(self) -> int:
        """Calls that came in, or wait, or were refused, or have left."""
        return self.admission.inside + sum(each.done() for each in self.asked)


@contextmanager
def room(*, running: int = 1, waiting: int) -> Iterator[Room]:
    made = Room(Admission(running=running, waiting=waiting))
    made.ask("at work")
    try:
        yield made
    finally:
        made.leave.set()
        made.pool.shutdown()
        assert made.admission.inside == 0, "nobody is left behind"


def why(refused: Callable[[], object]) -> str:
    with pytest.raises(Overloaded) as caught:
        refused()
    assert caught.value.retry_after_ms >= 10
    return caught.value.why


def test_it_counts_who_is_inside_and_turns_the_rest_away() -> None:
    with room(waiting=1) as at:
        second = at.ask("second")
        assert at.admission.inside == 2
        assert why(lambda: at.ask("third").result(LONG_S)) == "full"
        assert why(lambda: at.admission.check(time.monotonic() + LONG_S)) == "full"
        at.leave.set()
        second.result(LONG_S)
    assert at.served == ["at work", "second"]


def test_who_could_not_be_answered_in_time_is_refused_at_once() -> None:
    with room(waiting=60) as at:
        for number in range(20):
            at.ask(f"{number}")
        started = time.monotonic()
        assert why(lambda: at.ask("late", within_s=0.05).result(LONG_S)) == "deadline"
        assert why(lambda: at.admission.check(time.monotonic() + 0.05)) == "deadline"
        assert time.monotonic() - started < 5, "it did not wait its turn"
        at.admission.check(time.monotonic() + LONG_S)


def test_whose_deadline_passes_while_it_waits_is_told_and_its_place_is_free() -> None:
    with room(waiting=2) as at:
        late = at.ask("late", within_s=0.1)
        with pytest.raises(DeadlinePassed):
            late.result(LONG_S)
        assert at.admission.inside == 1
    assert at.served == ["at work"]


def test_whose_wait_has_become_too_long_is_passed_over_when_its_turn_comes() -> None:
    clock = Clock()
    admission = Admission(running=1, waiting=2, clock=clock)
    refused: list[str] = []

    def late() -> None:
        try:
            with admission.enter(clock.now_s + 10):
                pass
        except Overloaded as error:
            refused.append(error.why)

    thread = threading.Thread(target=late)
    with admission.enter(clock.now_s + 10):
        thread.start()
        while admission.inside < 2:
            time.sleep(0.001)
        clock.now_s += 9.9
    thread.join(LONG_S)
    assert refused == ["deadline"], "what is left is less than a call usually takes"
    assert admission.inside == 0


def test_tenants_take_turns_and_each_ones_calls_come_in_order() -> None:
    with room(waiting=20) as at:
        waiting = [at.ask(f"a{n}", tenant="a") for n in range(4)]
        waiting += [at.ask(f"b{n}", tenant="b") for n in range(2)]
        waiting += [at.ask("c0", tenant="c")]
        at.leave.set()
        for each in waiting:
            each.result(LONG_S)
    assert at.served[1:] == ["a0", "b0", "c0", "a1", "b1", "a2", "a3"]


def test_where_the_room_is_full_the_longest_line_makes_place_and_the_last_comer_of_it_goes() -> None:
    with room(waiting=4) as at:
        flood = [at.ask(f"a{n}", tenant="a") for n in range(4)]
        victim = at.ask("b0", tenant="b")
        assert why(lambda: flood[3].result(LONG_S)) == "displaced"
        assert why(lambda: at.ask("a4", tenant="a").result(LONG_S)) == "full"
        second = at.ask("b1", tenant="b")
        assert why(lambda: flood[2].result(LONG_S)) == "displaced"
        assert why(lambda: at.ask("b2", tenant="b").result(LONG_S)) == "full", "both have as much"
        at.leave.set()
        for each in (victim, second, *flood[:2]):
            each.result(LONG_S)


def test_what_matters_more_comes_first_and_takes_the_place_of_what_matters_less() -> None:
    with room(waiting=4) as at:
        sheddable = at.ask("sheddable", priority=PRIORITY_SHEDDABLE)
        assert why(lambda: at.ask("too many", priority=PRIORITY_SHEDDABLE).result(LONG_S)) == "full"
        others = [at.ask("default"), at.ask("also", priority=PRIORITY_DEFAULT)]
        others.append(at.ask("critical", priority=PRIORITY_CRITICAL))
        others.append(at.ask("third"))
        assert why(lambda: sheddable.result(LONG_S)) == "displaced"
        assert why(lambda: at.ask("fourth").result(LONG_S)) == "full"
        others.append(at.ask("more critical", priority=PRIORITY_CRITICAL))
        assert why(lambda: others.pop(3).result(LONG_S)) == "displaced"
        at.leave.set()
        for each in others:
            each.result(LONG_S)
    assert at.served[1:] == ["critical", "more critical", "default", "also"]


def test_a_tenant_that_floods_leaves_the_others_their_share() -> None:
    admission = Admission(running=2, waiting=16)
    done, outcome = threading.Event(), Counter[tuple[str, str]]()

    def ask(tenant: str, pause_s: float) -> None:
        while not done.is_set():
            try:
                with admission.enter(time.monotonic() + 5.0, tenant=tenant):
                    time.sleep(0.001)
                outcome[tenant, "answered"] += 1
            except Overloaded:
                outcome[tenant, "refused"] += 1
                time.sleep(0.0005)
            time.sleep(pause_s)

    with ThreadPoolExecutor(42) as pool:
        for _ in range(40):
            pool.submit(ask, "flood", 0.0)
        for _ in range(2):
            pool.submit(ask, "victim", 0.01)
        time.sleep(1.0)
        done.set()
    assert outcome["flood", "refused"] > outcome["flood", "answered"] / 2, "it was a flood"
    assert outcome["victim", "answered"] > 20
    assert outcome["victim", "refused"] == 0
    assert admission.inside == 0


def test_a_tenant_may_ask_as_often_as_its_rate_says_and_is_told_when_it_may_again() -> None:
    clock = Clock()
    admission = Admission(running=1, waiting=0, tenant_per_s=4.0, clock=clock)

    def asked(tenant: str) -> str:
        try:
            admission.check(clock.now_s + LONG_S, tenant=tenant)
        except Overloaded as error:
            return f"{error.why} {error.retry_after_ms}"
        return "answered"

    refused = "rate 250"
    assert [asked("a") for _ in range(6)] == ["answered"] * 4 + [refused] * 2
    assert asked("b") == "answered", "another tenant's rate is its own"
    clock.now_s += 0.25
    assert [asked("a") for _ in range(2)] == ["answered", refused]
    clock.now_s += 1000
    assert [asked("a") for _ in range(5)] == ["answered"] * 4 + [refused], "what was not used is not saved up"


def test_a_block_that_fails_gives_its_place_back() -> None:
    admission = Admission(running=1, waiting=0)
    for _ in range(3):
        with pytest.raises(OSError, match="no"), admission.enter(time.monotonic() + LONG_S):
            raise OSError("no")
    assert admission.inside == 0


@pytest.mark.parametrize(
    ("running", "waiting", "rate"), [(0, 1, None), (1, -1, None), (1, 1, 0.0)], ids=["running", "waiting", "rate"]
)
def test_bounds_are_checked(running: int, waiting: int, rate: float | None) -> None:
    with pytest.raises(ValueError, match="must be"):
        Admission(running=running, waiting=waiting, tenant_per_s=rate)


def test_while_calls_wait_only_so_many_are_read_to_be_refused() -> None:
    with room(waiting=1) as busy:
        busy.ask("waits")
        taken_in = 0
        while not busy.admission.unread and taken_in < 200:
            busy.admission.take_in()
            taken_in += 1
        assert 1 < taken_in < 200, "those that are being read might all be refused"
        for _ in range(taken_in):
            busy.admission.let_out()
        _fill(busy.admission)
        turned_away = 0
        while not (unread := busy.admission.unread):
            assert why(lambda: busy.admission.check(time.monotonic() + LONG_S)) == "full"
            turned_away += 1
        assert 1 < turned_away < 200
        assert unread.why == "unread"
        assert unread.retry_after_ms >= 10
        _empty(busy.admission)
        assert not busy.admission.unread, "its slots would be idle"


@pytest.mark.parametrize("tenants", [1, 2])
def test_of_callers_that_differ_more_are_read(tenants: int) -> None:
    """Of one kind a few, so that another is noticed, of several as many as come at four times; of neither all."""
    clock = Clock()
    admission = Admission(running=1, waiting=1, clock=clock)
    _fill(admission)
    read, turns = 0, 500
    with ThreadPoolExecutor(2) as pool:
        for turn in range(turns):
            leave = threading.Event()
            callers = [pool.submit(stay, admission, leave, clock.now_s + LONG_S) for _ in range(2)]
            while admission.inside < 2:
                time.sleep(0.0001)
            for caller in range(20):
                if admission.unread is None:
                    read += 1
                    tenant = str((turn + caller) % tenants) if tenants > 1 else ""
                    assert why(partial(admission.check, clock.now_s + LONG_S, tenant=tenant)) == "full"
            leave.set()
            for each in callers:
                each.result()
    per_turn = read / (2 * turns)
    assert per_turn >= (3 if tenants > 1 else 0.2)
    assert per_turn < (8 if tenants > 1 else 1)


_MANY = 8


def _fill(admission: Admission) -> None:
    """So many calls are at hand that none is taken in to keep the slots busy."""
    for _ in range(_MANY):
        admission.take_in()


def _empty(admission: Admission) -> None:
    for _ in range(_MANY):
        admission.let_out()


def stay(admission: Admission, leave: threading.Event, until: float) -> None:
    with admission.enter(until):
        leave.wait(LONG_S)
