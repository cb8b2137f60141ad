"""What does not answer is left out, and tried on the side until it does."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

import pytest

from serving.breaker import UNWATCHED, Breaker, Watch


@dataclass
class Clock:
    """Stands still until it is moved."""

    now_s: float = 0.0

    def __call__(self) -> float:
        return self.now_s


@dataclass
class Part:
    """A part of a pipeline that takes `takes_s` of the clock, or fails."""

    clock: Clock
    takes_s: float = 0.01
    fails: bool = False
    asked: int = 0

    def __call__(self) -> None:
        self.asked += 1
        self.clock.now_s += self.takes_s
        if self.fails:
            raise OSError("gone")


def asked(watch: Watch, part: Part, *, left_s: float = 0.1) -> bool:
    """Whether a caller asked it. It waits for the trials that it causes."""
    if not watch.fits(left_s):
        watch.try_again(part, within_s=left_s)
        for each in threading.enumerate():
            if each.name == "trial":
                each.join(20)
        return False
    started = part.clock()
    try:
        part()
    except OSError:
        watch.failed()
    else:
        watch.answered(started, started + left_s)
    return True


def in_a_while(true: Callable[[], bool], *, within_s: float = 20.0) -> bool:
    end = time.monotonic() + within_s
    while not (done := true()) and time.monotonic() < end:
        time.sleep(0.005)
    return done


def test_a_breaker_counts_failures_in_a_row_and_lets_one_call_through_after_its_cool_down() -> None:
    clock = Clock()
    breaker = Breaker(failures=2, cool_down_s=10.0, clock=clock)
    for _ in range(5):
        assert breaker.admit()
        breaker.failed()
        assert breaker.admit()
        breaker.succeeded()
    for _ in range(2):
        assert breaker.admit()
        breaker.failed()
    assert breaker.open
    assert not breaker.admit()
    clock.now_s = 10.0
    assert [breaker.admit() for _ in range(3)] == [True, False, False]
    breaker.succeeded()
    assert breaker.admit()
    assert not breaker.open


def test_bounds_are_checked() -> None:
    with pytest.raises(ValueError, match="failures >= 1"):
        Breaker(failures=0)


def test_what_fails_is_left_out_after_at_most_twenty_calls_and_back_within_five_seconds() -> None:
    clock = Clock()
    watch, part = Watch(clock=clock), Part(clock, fails=True)
    assert sum(asked(watch, part) for _ in range(100)) <= 20
    for _ in range(300):
        clock.now_s += 0.1
        assert not asked(watch, part), "no caller pays for a trial"
    assert 15 < part.asked < 60, "it was tried now and then"
    part.fails = False
    came_back = clock.now_s
    while not asked(watch, part):
        clock.now_s += 0.1
    assert clock.now_s - came_back <= 5


def test_what_is_slow_is_left_out_and_back_once_a_trial_shows_that_it_is_quick_again() -> None:
    clock = Clock()
    watch, part = Watch(clock=clock), Part(clock)
    assert all(asked(watch, part) for _ in range(10))
    part.takes_s = 3.0
    assert sum(asked(watch, part) for _ in range(100)) <= 20
    part.takes_s = 0.01
    clock.now_s += 5.0
    asked(watch, part)
    assert all(asked(watch, part) for _ in range(10))


def test_a_caller_with_less_time_than_it_usually_takes_does_not_ask_and_blames_nobody() -> None:
    clock = Clock()
    watch, part = Watch(clock=clock), Part(clock, takes_s=0.015)
    assert asked(watch, part, left_s=0.001), "nothing is known yet"
    for _ in range(50):
        assert not asked(watch, part, left_s=0.001)
        assert watch.closed
        assert asked(watch, part, left_s=0.1)


def test_a_trial_that_hangs_is_the_only_one() -> None:
    clock, gate = Clock(), threading.Event()
    watch = Watch(breaker=Breaker(failures=1, cool_down_s=1.0, clock=clock), clock=clock)
    begun: list[int] = []

    def hangs() -> None:
        begun.append(1)
        gate.wait(20)

    watch.failed()
    for _ in range(20):
        clock.now_s += 2.0
        watch.try_again(hangs, within_s=100.0)
    assert in_a_while(lambda: bool(begun))
    assert len(begun) == 1
    gate.set()
    assert in_a_while(lambda: watch.closed)


def test_the_unwatched_is_always_asked() -> None:
    for _ in range(100):
        UNWATCHED.failed()
    UNWATCHED.answered(0.0, -1.0)
    UNWATCHED.try_again(pytest.fail, within_s=1.0)
    assert UNWATCHED.fits(-1.0)
    assert UNWATCHED.closed
