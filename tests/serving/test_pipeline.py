"""The line from query to slate: what a source, a filter or a scorer may do wrong, and what is shown then."""

import math
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from serving_cases import NOW_MS, OrderScorer, Switch, catalogue, generation

from candidate_gen.merge import merge
from candidate_gen.types import Candidates, HydratedQuery, Query
from index.types import Hits
from protos.impression_pb2 import Degraded
from ranking.types import Scored
from serving.fan_out import FanOut
from serving.pipeline import Answer, Pipeline, Source

NAMES = ("ann", "lexical", "similar", "fresh", "popular")
QUERY = Query("r1", NOW_MS, "home", 8, user_id="u1", text="title")
STAGES = ["hydrate", "retrieve", "filter", "score", "select"]

rows_of_a_source = st.none() | st.lists(st.integers(0, 59), unique=True, max_size=20)


def hits(rows: Sequence[int]) -> Hits:
    return Hits(np.array(rows, np.int64), np.linspace(2, 1, len(rows), dtype=np.float32))


@dataclass(frozen=True)
class Rows:
    """A source that names the same rows to everybody, and takes its time on a clock."""

    name: str
    rows: Sequence[int]
    clock: "Clock | None" = None
    takes_s: float = 0.0
    asked: list[str] = field(default_factory=list)

    def retrieve(self, hydrated: HydratedQuery, k: int) -> Hits:
        self.asked.append(hydrated.query.request_id)
        if self.clock is not None:
            self.clock.now_s += self.takes_s
        return hits(self.rows[:k])


@dataclass(frozen=True)
class Says:
    """A source that answers with something made up."""

    name: str
    hits: Hits

    def retrieve(self, hydrated: HydratedQuery, k: int) -> Hits:  # noqa: ARG002
        return self.hits


@dataclass(frozen=True)
class Raises:
    """A source that fails."""

    name: str
    error: Exception

    def retrieve(self, hydrated: HydratedQuery, k: int) -> Hits:  # noqa: ARG002
        raise self.error


@dataclass(frozen=True)
class Waits:
    """A source that answers once a gate is open."""

    name: str
    gate: threading.Event
    asked: list[str] = field(default_factory=list)

    def retrieve(self, hydrated: HydratedQuery, k: int) -> Hits:  # noqa: ARG002
        self.asked.append(hydrated.query.request_id)
        self.gate.wait(30)
        return hits([1, 2])


def in_a_while(true: Callable[[], bool], *, within_s: float = 20.0) -> bool:
    end = time.monotonic() + within_s
    while not (done := true()) and time.monotonic() < end:
        time.sleep(0.01)
    return done


@dataclass
class Clock:
    """Stands in for the pipeline's clock."""

    now_s: float = 100.0

    def monotonic(self) -> float:
        return self.now_s

    def perf_counter(self) -> float:
        return self.now_s


@dataclass(frozen=True)
class Mask:
    """A filter that keeps what `kept` says of each row; a fixed mask where it is an array."""

    name: str
    kept: frozenset[int] | NDArray[np.bool_]

    def keep(self, hydrated: HydratedQuery, candidates: Candidates) -> NDArray[np.bool_]:  # noqa: ARG002
        if isinstance(self.kept, np.ndarray):
            return self.kept
        return np.isin(candidates.row_N, sorted(self.kept))


@dataclass(frozen=True)
class Poisoned:
    """A scorer one of whose probabilities is not a number."""

    value: float

    def score(self, hydrated: HydratedQuery, candidates: Candidates) -> Scored:
        scored = OrderScorer(catalogue("g")).score(hydrated, candidates)
        probability_NA = scored.probability_NA.copy()
        probability_NA[-1, -1] = self.value
        return replace(scored, probability_NA=probability_NA)


def rows_of(answer: Answer) -> list[int]:
    """What was shown, as item rows."""
    shown: list[int] = answer.scored.candidates.row_N[answer.slate.index_K].tolist()
    return shown


def pipeline_of(*named: Sequence[int], filters: Sequence[Mask] = ()) -> Pipeline:
    sources = [(Rows(name, rows), 50) for name, rows in zip(NAMES, named, strict=False)]
    return replace(generation().pipeline, sources=sources, filters=filters)


@given(st.lists(rows_of_a_source, min_size=1, max_size=5))
def test_the_union_names_each_item_once_with_every_source_and_rank(found: list[list[int] | None]) -> None:
    names = NAMES[: len(found)]
    merged = merge(names, [None if rows is None else hits(rows) for rows in found])

    expected = list(dict.fromkeys(row for rows in found for row in rows or []))
    assert merged.row_N.tolist() == expected
    assert merged.source_names == names
    for s, rows in enumerate(found):
        score_K = hits(rows or []).score_K
        for n, row in enumerate(expected):
            rank = rows.index(row) if rows is not None and row in rows else -1
            assert merged.rank_NS[n, s] == rank
            assert merged.score_NS[n, s] == (score_K[rank] if rank >= 0 else 0)


@given(st.lists(st.lists(st.integers(0, 59), unique=True, max_size=12), min_size=1, max_size=5), st.data())
def test_no_candidate_is_lost_or_repeated(found: list[list[int]], data: st.DataObject) -> None:
    masks = [data.draw(st.frozensets(st.integers(0, 59), min_size=30)) for _ in range(2)]
    pipeline = pipeline_of(*found, filters=[Mask("first", masks[0]), Mask("second", masks[1])])

    answer = pipeline.run(replace(QUERY, size=100))

    named = list(dict.fromkeys(row for rows in found for row in rows))
    eligible = [row for row in named if row in masks[0] and row in masks[1]]
    assert answer.scored.candidates.row_N.tolist() == eligible
    assert sorted(rows_of(answer)) == sorted(eligible), "a slate with room for all shows each once"
    assert sum(map(len, answer.trace.removed.values())) == len(named) - len(eligible)
    assert bool(answer.trace.degraded & Degraded.DEGRADED_EMPTY) == (not eligible)


def test_a_source_names_no_more_than_its_quota() -> None:
    pipeline = replace(pipeline_of(), sources=[(Rows("ann", range(40)), 3), (Rows("popular", range(50, 60)), 2)])
    assert pipeline.run(QUERY).scored.candidates.row_N.tolist() == [0, 1, 2, 50, 51]


@pytest.mark.parametrize("broken", NAMES)
def test_a_source_that_raises_is_left_out_and_the_others_answer(broken: str) -> None:
    whole = generation().pipeline.run(QUERY)
    switch = Switch(fail=frozenset({broken}))

    answer = generation(switch=switch).pipeline.run(QUERY)

    assert whole.trace.degraded == 0
    assert answer.trace.skipped_sources == {broken: "error"}
    assert answer.trace.degraded == Degraded.DEGRADED_SOURCE_ERROR
    rank_NS, s = answer.scored.candidates.rank_NS, NAMES.index(broken)
    assert (rank_NS[:, s] == -1).all()
    everything = whole.scored.candidates
    by_others_N = (np.delete(everything.rank_NS, s, axis=1) >= 0).any(axis=1)
    assert set(answer.scored.candidates.row_N.tolist()) == set(everything.row_N[by_others_N].tolist())
    assert len(answer.slate) == QUERY.size


def test_where_only_the_floor_answers_it_is_said_so() -> None:
    switch = Switch(fail=frozenset(NAMES[:-1]))
    answer = generation(switch=switch).pipeline.run(QUERY)
    assert answer.trace.degraded == Degraded.DEGRADED_SOURCE_ERROR | Degraded.DEGRADED_POPULAR_FALLBACK
    assert list(answer.trace.skipped_sources) == list(NAMES[:-1])
    assert set(rows_of(answer)) <= set(range(10)), "popular names rows 0 to 9"
    assert len(answer.slate) == QUERY.size


def test_where_every_source_fails_the_answer_is_empty_and_flagged() -> None:
    answer = generation(switch=Switch(fail=frozenset(NAMES))).pipeline.run(QUERY)
    assert len(answer.slate) == len(answer.scored) == 0
    assert answer.trace.degraded & Degraded.DEGRADED_EMPTY
    assert not answer.trace.degraded & Degraded.DEGRADED_RANKER_SKIPPED, "there was nothing to rank"


def test_sources_whose_turn_comes_too_late_are_skipped_and_the_floor_still_answers(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock = Clock()
    monkeypatch.setattr("serving.pipeline.time", clock)
    slow = Rows("ann", [1, 2, 3], clock, takes_s=0.6)
    never, floor = Rows("lexical", [4, 5]), Rows("popular", [6, 7])
    pipeline = replace(pipeline_of(), sources=[(slow, 9), (never, 9), (floor, 9)])

    answer = pipeline.run(QUERY, budget_s=1.0)

    assert answer.trace.skipped_sources == {"lexical": "timeout"}
    assert answer.trace.degraded == Degraded.DEGRADED_SOURCE_TIMEOUT
    assert never.asked == []
    assert answer.scored.candidates.row_N.tolist() == [1, 2, 3, 6, 7]
    assert answer.trace.stage_ms["retrieve"] == pytest.approx(600.0)


@pytest.mark.parametrize("threads", [(), ("ann", "lexical")])
def test_without_any_time_left_only_the_floor_is_asked(threads: tuple[str, ...]) -> None:
    sources = [Rows("ann", [1, 2]), Rows("lexical", [3]), Rows("popular", [6, 7])]
    pipeline = replace(pipeline_of(), sources=[(source, 9) for source in sources], fan_out=FanOut(threads))

    answer = pipeline.run(QUERY, budget_s=-1.0)

    assert [len(source.asked) for source in sources] == [0, 0, 1]
    assert answer.trace.degraded == Degraded.DEGRADED_SOURCE_TIMEOUT | Degraded.DEGRADED_POPULAR_FALLBACK
    assert sorted(rows_of(answer)) == [6, 7]


def test_a_source_left_out_on_purpose_is_not_asked_and_degrades_nothing() -> None:
    sources = [Rows("ann", [1, 2]), Rows("lexical", [2, 3]), Rows("popular", [6, 7])]
    pipeline = replace(pipeline_of(), sources=[(source, 9) for source in sources])

    answer = pipeline.run(QUERY, without=frozenset({"ann", "popular"}))

    assert [len(source.asked) for source in sources] == [0, 1, 0]
    assert answer.trace.skipped_sources == {"ann": "without", "popular": "without"}
    assert answer.trace.degraded == 0
    assert answer.scored.candidates.row_N.tolist() == [2, 3]
    assert answer.scored.candidates.source_names == ("ann", "lexical", "popular"), "columns stay where they are"


@pytest.mark.parametrize(
    "broken",
    [hits([3, -1]), hits([60]), Hits(np.array([3]), np.array([np.nan], np.float32))],
    ids=["a row before the first", "a row behind the last", "a score that is no number"],
)
@pytest.mark.parametrize("threads", [False, True])
def test_a_source_that_names_what_is_no_item_is_left_out_and_the_others_answer(broken: Hits, threads: bool) -> None:
    pipeline = pipeline_of([1, 2], [3, 4], [5, 6])
    (ann, quota), *others = pipeline.sources
    pipeline = replace(pipeline, sources=[(Says(ann.name, broken), quota), *others])
    pipeline = replace(pipeline, fan_out=FanOut(["ann"])) if threads else pipeline
    answer = pipeline.run(QUERY)
    assert answer.trace.skipped_sources == {"ann": "error"}
    assert answer.trace.degraded == Degraded.DEGRADED_SOURCE_ERROR
    assert answer.scored.candidates.row_N.tolist() == [3, 4, 5, 6]


def in_threads(pipeline: Pipeline, *names: str, each: int = 8, patience_s: float = 60.0) -> Pipeline:
    return replace(pipeline, fan_out=FanOut(names, each=each), patience_s=patience_s)


def test_with_threads_or_without_the_answer_is_the_same() -> None:
    named = [1, 2, 3], [3, 4], [4, 5, 1], [6, 7], [7, 8]
    alone, side_by_side = pipeline_of(*named), in_threads(pipeline_of(*named), *NAMES[:3])
    for budget_s in (60.0, math.inf):
        one, other = alone.run(QUERY, budget_s=budget_s), side_by_side.run(QUERY, budget_s=budget_s)
        assert one.scored.candidates.row_N.tolist() == other.scored.candidates.row_N.tolist() == list(range(1, 9))
        assert (one.scored.candidates.rank_NS == other.scored.candidates.rank_NS).all()
        assert rows_of(one) == rows_of(other)
        assert other.trace.degraded == 0


def test_a_source_that_sleeps_is_left_out_at_its_deadline_and_the_others_answer() -> None:
    gate = threading.Event()
    pipeline = pipeline_of([1, 2], [3, 4], [5, 6])
    (_, quota), *others = pipeline.sources
    for patience_s, budget_s in ((1.0, 60.0), (60.0, 2.0)):
        waiting = in_threads(replace(pipeline, sources=[(Waits("ann", gate), quota), *others]), "ann", "lexical")
        answer = replace(waiting, patience_s=patience_s).run(QUERY, budget_s=budget_s)
        assert answer.trace.skipped_sources == {"ann": "timeout"}
        assert answer.trace.degraded == Degraded.DEGRADED_SOURCE_TIMEOUT
        assert answer.scored.candidates.row_N.tolist() == [3, 4, 5, 6]
    gate.set()


def test_where_nobody_waits_a_slow_source_is_waited_for() -> None:
    gate = threading.Event()
    pipeline = pipeline_of([1, 2], [3, 4])
    sources = [(Waits("ann", gate), 9), *pipeline.sources[1:]]
    waiting = in_threads(replace(pipeline, sources=sources), "ann", patience_s=0.001)
    threading.Timer(0.05, gate.set).start()
    answer = waiting.run(QUERY)
    assert answer.trace.degraded == 0
    assert answer.scored.candidates.row_N.tolist() == [1, 2, 3, 4]


def test_a_source_that_hangs_holds_its_own_threads_and_nobody_elses() -> None:
    gate = threading.Event()
    pipeline = pipeline_of([1, 2], [3, 4], [5, 6])
    hangs = Waits("ann", gate)
    (_, quota), *others = pipeline.sources
    waiting = in_threads(replace(pipeline, sources=[(hangs, quota), *others]), "ann", "lexical", each=2, patience_s=1.0)
    for _ in range(5):
        answer = waiting.run(QUERY, budget_s=60.0)
        assert answer.trace.skipped_sources == {"ann": "timeout"}
        assert answer.scored.candidates.row_N.tolist() == [3, 4, 5, 6]
    assert hangs.asked == ["r1", "r1"], "no third time while both threads wait"
    gate.set()
    assert in_a_while(lambda: waiting.run(QUERY, budget_s=60.0).trace.degraded == 0), "asked again when it is back"


def test_a_source_that_raises_in_its_thread_is_left_out_even_if_it_raises_a_timeout() -> None:
    pipeline = pipeline_of([1, 2], [3, 4], [5])
    sources = [(Raises("ann", TimeoutError("its own")), 9), *pipeline.sources[1:]]
    answer = in_threads(replace(pipeline, sources=sources), "ann").run(QUERY, budget_s=60.0)
    assert answer.trace.skipped_sources == {"ann": "error"}
    assert answer.trace.degraded == Degraded.DEGRADED_SOURCE_ERROR


def test_where_the_others_have_nothing_to_say_and_one_fails_the_floor_alone_has_answered() -> None:
    pipeline = pipeline_of([1], [], [])
    sources: list[tuple[Source, int]] = [
        (Raises("ann", OSError("gone")), 9),
        (Rows("lexical", []), 9),
        (Rows("popular", [6]), 9),
    ]
    answer = replace(pipeline, sources=sources).run(QUERY)
    assert answer.trace.degraded == Degraded.DEGRADED_SOURCE_ERROR | Degraded.DEGRADED_POPULAR_FALLBACK
    healthy = replace(pipeline, sources=[(Rows("ann", []), 9), (Rows("popular", [6]), 9)]).run(QUERY)
    assert healthy.trace.degraded == 0, "nobody failed"


def test_the_best_by_fusion_are_scored_and_what_filters_remove_takes_no_place() -> None:
    mask = Mask("first", frozenset(range(60)) - {1})
    pipeline = replace(pipeline_of([1, 2, 3, 4], [9, 3, 1], [3, 8], filters=[mask]), most=3)
    answer = pipeline.run(QUERY)
    assert answer.scored.candidates.row_N.tolist() == [3, 9, 2]
    assert {name: len(rows) for name, rows in answer.trace.removed.items()} == {"first": 1, "most": 2}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_scorer_whose_values_are_not_finite_gives_way_to_the_order_of_retrieval(value: float) -> None:
    pipeline = generation().pipeline
    answer = replace(pipeline, scorer=Poisoned(value)).run(QUERY)
    expected = replace(pipeline, scorer=pipeline.retrieval_order).run(QUERY)
    assert answer.trace.degraded == Degraded.DEGRADED_RANKER_SKIPPED
    assert np.isfinite(answer.scored.probability_NA).all()
    assert rows_of(answer) == rows_of(expected)


def test_a_scorer_that_raises_gives_way_to_the_order_of_retrieval() -> None:
    healthy = generation().pipeline
    answer = generation(switch=Switch(fail=frozenset({"ranker"}))).pipeline.run(QUERY)
    expected = replace(healthy, scorer=healthy.retrieval_order).run(QUERY)
    assert answer.trace.degraded == Degraded.DEGRADED_RANKER_SKIPPED
    assert answer.scored.candidates.row_N.tolist() == healthy.run(QUERY).scored.candidates.row_N.tolist()
    assert rows_of(answer) == rows_of(expected)


@pytest.mark.parametrize("length", [0, 3, 5, 40])
def test_a_filter_whose_mask_does_not_fit_is_an_error_and_never_a_wrong_slate(length: int) -> None:
    pipeline = pipeline_of([1, 2, 3, 4], filters=[Mask("short", np.ones(length, np.bool_))])
    with pytest.raises(ValueError, match=rf"a mask of \({length},\) for 4 candidates"):
        pipeline.run(QUERY)


def test_filters_are_counted_in_their_order() -> None:
    filters = [Mask("odd", frozenset(range(1, 60, 2))), Mask("low", frozenset(range(5)))]
    answer = pipeline_of(range(10), filters=filters).run(QUERY)
    assert {name: len(rows) for name, rows in answer.trace.removed.items()} == {"odd": 5, "low": 3}
    assert answer.scored.candidates.row_N.tolist() == [1, 3]


def test_a_callers_own_list_is_ranked_without_asking_a_source() -> None:
    source = Rows("popular", [6, 7])
    pipeline = replace(generation().pipeline, sources=[(source, 9)])
    answer = pipeline.run(replace(QUERY, only_row_N=np.array([9, 0, 4], np.int64)))
    assert source.asked == []
    assert answer.scored.candidates.row_N.tolist() == [9, 4], "row 0 is not available, whoever asks for it"
    assert (answer.scored.candidates.rank_NS == -1).all()
    assert answer.trace.degraded == 0


def test_the_same_query_has_the_same_answer_and_another_request_id_another_draw() -> None:
    pipeline = generation().pipeline
    assert rows_of(pipeline.run(QUERY)) == rows_of(pipeline.run(QUERY))
    drawn = {tuple(rows_of(pipeline.run(replace(QUERY, request_id=f"r{n}")))) for n in range(10)}
    assert len(drawn) > 1


def test_every_stage_is_timed() -> None:
    answer = generation().pipeline.run(QUERY)
    assert list(answer.trace.stage_ms) == STAGES
    assert all(milliseconds >= 0 for milliseconds in answer.trace.stage_ms.values())
