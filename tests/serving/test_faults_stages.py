"""A source or a ranker that is slow, hangs, raises or talks nonsense: every answer comes in time, and says so."""

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from numpy.typing import NDArray
from serving_cases import NOW_MS, SOURCES, Switch, generation

from candidate_gen.types import Candidates, HydratedQuery, Query
from index.types import Hits
from protos.impression_pb2 import Degraded
from ranking.types import Scored
from serving.admission import CallerGone
from serving.breaker import Watch
from serving.fan_out import FanOut
from serving.pipeline import Answer, Pipeline

QUERY = Query("r1", NOW_MS, "home", 8, user_id="u1", text="title")
BUDGET_S = 0.2
ON_TIME = 0.98
"""On a machine that others use too; `benchmarks.faults` measures it on a quiet one."""


@dataclass
class Fault:
    """What a part does, changed from outside."""

    what: str = ""
    gate: threading.Event = field(default_factory=threading.Event)
    asked: int = 0

    def __call__(self) -> None:
        self.asked += 1
        if self.what == "raises":
            raise OSError("gone")
        if self.what == "slow":
            time.sleep(2 * BUDGET_S)
        if self.what == "hangs":
            self.gate.wait(30)


@dataclass(frozen=True)
class FaultySource:
    """Names two rows, or what the fault makes of it."""

    name: str
    fault: Fault

    def retrieve(self, hydrated: HydratedQuery, k: int) -> Hits:  # noqa: ARG002
        self.fault()
        score = np.nan if self.fault.what == "nonsense" else 1.0
        return Hits(np.array([1, 2]), np.full(2, score, np.float32))


@dataclass(frozen=True)
class FaultyScorer:
    """A ranker of `catalogue`, with a fault."""

    whole: Pipeline
    fault: Fault

    def score(self, hydrated: HydratedQuery, candidates: Candidates) -> Scored:
        self.fault()
        scored = self.whole.scorer.score(hydrated, candidates)
        probability_NA: NDArray[np.float32] = scored.probability_NA.copy()
        if self.fault.what == "nonsense":
            probability_NA[0] = np.nan
        return replace(scored, probability_NA=probability_NA)


def with_a_source(fault: Fault) -> Pipeline:
    """A pipeline whose first source is on a thread and has the fault."""
    whole = generation(switch=Switch(watched=True)).pipeline
    (_, quota), *others = whole.sources
    sources = [(FaultySource("ann", fault), quota), *others]
    return replace(whole, sources=sources, fan_out=FanOut(["ann"]), patience_s=0.05)


def with_a_ranker(fault: Fault) -> Pipeline:
    whole = generation(switch=Switch(watched=True)).pipeline
    return replace(whole, scorer=FaultyScorer(whole, fault))


def asked_often(pipeline: Pipeline, times: int) -> tuple[list[Answer], list[float]]:
    """Answers, and the seconds that each took."""
    pipeline.run(QUERY, without=frozenset({"ann"}))  # what is compiled at first use is
    answers, taken_s = [], []
    for number in range(times):
        started = time.monotonic()
        answers.append(pipeline.run(replace(QUERY, request_id=f"r{number}"), budget_s=BUDGET_S))
        taken_s.append(time.monotonic() - started)
    return answers, taken_s


def in_a_while(true: Callable[[], bool], *, within_s: float = 20.0) -> float:
    """Seconds until it was so."""
    started = time.monotonic()
    while not true():
        assert time.monotonic() - started < within_s
        time.sleep(0.01)
    return time.monotonic() - started


@pytest.mark.parametrize("what", ["raises", "slow", "hangs", "nonsense"])
def test_a_faulty_source_is_left_out_in_time_not_asked_for_long_and_comes_back(what: str) -> None:
    fault = Fault(what)
    pipeline = with_a_source(fault)

    answers, taken_s = asked_often(pipeline, 200)

    assert np.mean(np.array(taken_s) <= BUDGET_S) >= ON_TIME
    assert all(len(answer.slate) == QUERY.size for answer in answers)
    bits = Degraded.DEGRADED_SOURCE_ERROR | Degraded.DEGRADED_SOURCE_TIMEOUT
    assert all(answer.trace.degraded & bits and not answer.trace.degraded & ~bits for answer in answers)
    whys = [answer.trace.skipped_sources["ann"] for answer in answers]
    assert whys.index("open") <= 20
    assert set(whys[20:]) == {"open"}
    fault.what = ""
    fault.gate.set()
    came_back_s = in_a_while(lambda: pipeline.run(QUERY, budget_s=BUDGET_S).trace.degraded == 0)
    assert came_back_s <= 5


@pytest.mark.parametrize("what", ["raises", "slow", "nonsense"])
def test_a_faulty_ranker_gives_way_to_retrieval_order_is_not_asked_for_long_and_comes_back(what: str) -> None:
    fault = Fault(what)
    pipeline = with_a_ranker(fault)

    answers, taken_s = asked_often(pipeline, 200)

    late = np.mean(np.array(taken_s[20:]) > BUDGET_S)
    assert late <= 1 - ON_TIME, "a slow call cannot be cut short; the breaker sees to the next"
    skipped = [bool(answer.trace.degraded & Degraded.DEGRADED_RANKER_SKIPPED) for answer in answers]
    assert all(skipped[20:])
    assert all(np.isfinite(answer.scored.probability_NA).all() for answer in answers)
    assert all(np.isfinite(answer.slate.propensity_K).all() for answer in answers)
    assert fault.asked <= 21, "one of them without a caller"
    fault.what = ""
    came_back_s = in_a_while(lambda: pipeline.run(QUERY, budget_s=BUDGET_S).trace.degraded == 0)
    assert came_back_s <= 5


def test_a_ranker_that_usually_takes_longer_than_is_left_is_not_asked() -> None:
    switch = Switch(watched=True, sleep_s=0.03)
    pipeline = generation(switch=switch).pipeline
    assert pipeline.run(QUERY, budget_s=1.0).trace.degraded == 0
    calls = switch.calls
    for _ in range(5):
        answer = pipeline.run(QUERY, budget_s=0.02)
        assert answer.trace.degraded & Degraded.DEGRADED_RANKER_SKIPPED
    assert switch.calls == calls
    assert pipeline.run(QUERY, budget_s=1.0).trace.degraded == 0, "with more time it is asked"


def test_where_nobody_waits_everything_is_asked_whatever_it_did_before() -> None:
    fault = Fault("raises")
    pipeline = with_a_ranker(fault)
    asked_often(pipeline, 30)
    fault.what = ""
    assert pipeline.run(QUERY).trace.degraded == 0, "a replay does not depend on what this process has been through"


def test_a_hung_source_leaves_the_others_their_threads() -> None:
    fault = Fault("hangs")
    whole = with_a_source(fault)
    other = Fault()
    sources = [whole.sources[0], (FaultySource("lexical", other), 9), *whole.sources[2:]]
    watched = {name: Watch() for name in SOURCES[:-1]}
    pipeline = replace(whole, sources=sources, fan_out=FanOut(["ann", "lexical"], each=2), watched=watched)
    before = threading.active_count()
    answers, _ = asked_often(pipeline, 100)
    assert all("lexical" not in answer.trace.skipped_sources for answer in answers)
    assert other.asked >= 100
    assert threading.active_count() - before <= 2 + 2 + 1, "its own two, the other's two, one that tries again"
    fault.gate.set()


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_when_the_caller_is_gone_nothing_more_is_begun(stage: int) -> None:
    pipeline = generation(switch=(switch := Switch())).pipeline
    asked = 0

    def proceed() -> None:
        nonlocal asked
        asked += 1
        if asked == stage:
            raise CallerGone("hung up")

    with pytest.raises(CallerGone):
        pipeline.run(QUERY, proceed=proceed)
    assert switch.calls == (stage == 3)
