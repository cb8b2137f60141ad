"""The request as one straight line: hydrate, retrieve, filter, score, select.

Serving, replay and evaluation all run this; nothing else decides what is shown.

Shape letters: N candidates, S sources.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from candidate_gen.merge import fused, joined, merge, only, with_rows
from candidate_gen.row_sets import among
from candidate_gen.types import NO_ROWS, Candidates, HydratedQuery, Query
from index.types import Hits
from policy.types import Slate
from protos.impression_pb2 import Degraded
from ranking.types import Scored
from serving.breaker import UNWATCHED, Unwatched, Watch
from serving.fan_out import FanOut, result

_RETRIEVED_BY, _SCORED_BY = 0.5, 0.9
"""Shares of a caller's time: when the sources must have answered, and when the ranker."""
LEXICAL = "lexical"
"""The source that finds items by their words."""
_OF_WORDS = (LEXICAL, "understood")
"""Sources that name nothing where no word matches."""
RANKER = "ranker"
"""Its name among what is watched."""
_BIT_OF = {
    "without": 0,
    "timeout": Degraded.DEGRADED_SOURCE_TIMEOUT,
    "open": Degraded.DEGRADED_SOURCE_ERROR,
}


class Source(Protocol):
    """One way to retrieve. May fail or be late: the answer is then made without it."""

    @property
    def name(self) -> str: ...
    def retrieve(self, hydrated: HydratedQuery, k: int) -> Hits: ...


class Filter(Protocol):
    """Eligibility. Returns a mask, so it cannot reorder, repeat or invent a candidate."""

    @property
    def name(self) -> str: ...
    def keep(self, hydrated: HydratedQuery, candidates: Candidates) -> NDArray[np.bool_]: ...


class Scorer(Protocol):
    """Probabilities of every action for every candidate, each independent of the other candidates."""

    def score(self, hydrated: HydratedQuery, candidates: Candidates) -> Scored: ...


class Selector(Protocol):
    """Draws the slate. What it returns is shown as it is."""

    def select(self, query: Query, scored: Scored) -> Slate: ...


@dataclass(slots=True)
class Trace:
    """What happened on the way: for the response, the log and the metrics."""

    degraded: int = 0
    stage_ms: dict[str, float] = field(default_factory=dict)
    source_ms: dict[str, float] = field(default_factory=dict)
    """Of those that answered, from when they were asked."""
    named: dict[str, int] = field(default_factory=dict)
    """Rows that each source named."""
    skipped_sources: dict[str, str] = field(default_factory=dict)
    """Source to why: timeout, error, or open (its breaker)."""
    removed: dict[str, NDArray[np.int64]] = field(default_factory=dict)
    """Rows that each filter took out, and under `most` those that were too many to score."""
    defaulted: tuple[str, ...] = ()
    """See `HydratedQuery`."""

    def follow(self, before: "Trace") -> None:
        """Take over what happened before."""
        self.degraded |= before.degraded
        self.skipped_sources |= before.skipped_sources
        self.stage_ms = before.stage_ms | self.stage_ms

    def stage(self, name: str) -> "_Stopwatch":
        """Adds to a stage's time what passes while the `with` lasts."""
        return _Stopwatch(self.stage_ms, name)


class _Stopwatch:
    """A generator would cost as much as some of the stages."""

    __slots__ = ("_name", "_stage_ms", "_started_s")

    def __init__(self, stage_ms: dict[str, float], name: str) -> None:
        self._stage_ms, self._name = stage_ms, name

    def __enter__(self) -> None:
        self._started_s = time.perf_counter()

    def __exit__(self, *_: object) -> None:
        spent_ms = 1000 * (time.perf_counter() - self._started_s)
        self._stage_ms[self._name] = self._stage_ms.get(self._name, 0.0) + spent_ms


@dataclass(frozen=True, slots=True)
class Answer:
    """A slate with what it was drawn from."""

    slate: Slate
    scored: Scored
    trace: Trace


def nothing_pinned(_query: Query) -> NDArray[np.int64]:
    return NO_ROWS


def whatever_happens() -> None:
    """Goes on."""


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The four stages of one generation."""

    hydrate: Callable[[Query], HydratedQuery]
    sources: Sequence[tuple[Source, int]]
    """Each with how many candidates it may name; the last is the floor that cannot fail."""
    items: int
    """Rows there are; a source that names another is broken."""
    filters: Sequence[Filter]
    scorer: Scorer
    retrieval_order: Scorer
    """Stands in for a scorer that failed."""
    selector: Selector
    fan_out: FanOut = field(default_factory=partial(FanOut, ()))
    """Who asks the sources that are worth a thread; the others are asked in turn."""
    patience_s: float = math.inf
    """How long such a source is waited for."""
    most: int | None = None
    """Candidates that are scored, the best by reciprocal rank fusion; None for all that the sources name."""
    mix: Mapping[str, float] = field(default_factory=dict)
    """Sources that are asked where something was typed, with their weights in the fusion; empty for all, weighing the
    same. The floor is then asked only where they find nothing."""
    most_of_search: int | None = None
    """`most`, where something was typed."""
    pinned: Callable[[Query], NDArray[np.int64]] = nothing_pinned
    """Rows that are candidates even if no source names them."""
    watched: Mapping[str, Watch] = field(default_factory=dict)
    """Sources by name, and `RANKER`: what may be left out for a while. The floor is always asked."""

    def run(
        self,
        query: Query,
        *,
        budget_s: float = math.inf,
        without: frozenset[str] = frozenset(),
        proceed: Callable[[], None] = whatever_happens,
    ) -> Answer:
        """Answer a query.

        Args:
            budget_s: seconds until the caller stops waiting: sources have half of it, the ranker what is left until
                nine tenths, and what is late by then, or is usually, is left out. Where nobody waits, neither
                `patience_s` nor `watched` is looked at.
            without: sources to leave out, as a logged request did.
            proceed: called before retrieval, scoring and the draw; what it raises ends the run.
        """
        trace = Trace()
        started = time.monotonic()
        with trace.stage("hydrate"):
            hydrated = self.hydrate(query)
        proceed()
        if hydrated.defaulted:
            trace.defaulted = hydrated.defaulted
            trace.degraded |= Degraded.DEGRADED_DEFAULT_FEATURES
        with trace.stage("retrieve"):
            candidates = self._retrieve(hydrated, started + _RETRIEVED_BY * budget_s, without, trace)
        with trace.stage("filter"):
            candidates = self._filter(hydrated, candidates, trace)
            candidates = self._fewer(query, candidates, trace)
            if query.fill and len(candidates) < query.size:
                candidates = self._filled(query, candidates, trace)
        proceed()
        with trace.stage("score"):
            scored = self._score(hydrated, candidates, started + _SCORED_BY * budget_s, trace)
        proceed()
        with trace.stage("select"):
            slate = self.selector.select(query, scored)
        if slate.relaxed:
            trace.degraded |= Degraded.DEGRADED_POLICY_RELAXED
        if not len(slate):
            trace.degraded |= Degraded.DEGRADED_EMPTY
        return Answer(slate, scored, trace)

    def _retrieve(self, hydrated: HydratedQuery, until: float, without: frozenset[str], trace: Trace) -> Candidates:
        names = tuple(source.name for source, _ in self.sources)
        query = hydrated.query
        listed_row_N = hydrated.listed_row_N if query.only_row_N is None else query.only_row_N
        if listed_row_N is not None:
            return only(listed_row_N, names)
        mix, floor = self._mix(query), self.sources[-1][0]
        deeper = len(query.before_row_X)  # what earlier pages showed is found again, and then removed
        asked = [(source, quota + deeper) for source, quota in self.sources if not mix or source.name in mix]
        left_out = self._left_out(hydrated, asked, until, without)
        handed_over = {
            source.name: partial(source.retrieve, hydrated, quota)
            for source, quota in asked
            if source.name in self.fan_out and source.name not in left_out
        }
        begun_at = time.perf_counter()
        begun = self.fan_out.begin(handed_over if time.monotonic() <= until else {})
        patient_until = until if math.isinf(until) else min(until, time.monotonic() + self.patience_s)
        found: dict[str, Hits] = {}

        def ask(source: Source, quota: int) -> None:
            if source.name in left_out:
                trace.skipped_sources[source.name] = why = left_out[source.name]
                trace.degraded |= _BIT_OF[why]
                return
            hits = None
            asked_at = begun_at if source.name in begun else time.perf_counter()
            try:
                if source.name in begun:
                    hits = self._said(source.name, partial(result, begun[source.name], patient_until), until)
                elif source is floor or time.monotonic() <= until:
                    hits = self._said(source.name, partial(source.retrieve, hydrated, quota), until)
            except Exception:
                trace.skipped_sources[source.name] = "error"
                trace.degraded |= Degraded.DEGRADED_SOURCE_ERROR
                return
            if hits is not None:
                found[source.name] = hits
                trace.source_ms[source.name] = 1000 * (time.perf_counter() - asked_at)
                trace.degraded |= Degraded.DEGRADED_PARTIAL_INDEX * hits.partial
            else:
                trace.skipped_sources[source.name] = "timeout"
                trace.degraded |= Degraded.DEGRADED_SOURCE_TIMEOUT

        for source, quota in sorted(asked, key=lambda each: each[0].name in begun):  # others work meanwhile
            ask(source, quota)
        answered = any(map(len, found.values())) or (query.page and not trace.skipped_sources)
        if mix and not answered:  # on this page, nor on those before
            ask(*self.sources[-1])
        trace.named = {name: len(hits) for name, hits in found.items()}
        if trace.skipped_sources and not any(len(found.get(name, ())) for name in names[:-1]):
            trace.degraded |= Degraded.DEGRADED_POPULAR_FALLBACK
        unmatched = LEXICAL in mix and LEXICAL in found and not any(len(found.get(name, ())) for name in _OF_WORDS)
        if unmatched and not query.page and any(map(len, found.values())):
            trace.degraded |= Degraded.DEGRADED_NO_MATCH
        return with_rows(merge(names, [found.get(name) for name in names]), self.pinned(query))

    def _mix(self, query: Query) -> Mapping[str, float]:
        return (query.mix or self.mix) if query.text and query.only_row_N is None else {}

    def _watch(self, name: str, until: float) -> Watch | Unwatched:
        return UNWATCHED if math.isinf(until) else self.watched.get(name, UNWATCHED)

    def _left_out(
        self,
        hydrated: HydratedQuery,
        asked: Sequence[tuple[Source, int]],
        until: float,
        without: frozenset[str],
    ) -> dict[str, str]:
        """Sources not to be asked now, and why. Where it is time to, one of them is tried on the side."""
        found = {source.name: "without" for source, _ in asked if source.name in without}
        left_s = until - time.monotonic()
        for source, quota in asked:
            if source is self.sources[-1][0]:
                continue
            watch = self._watch(source.name, until)
            if source.name not in found and not watch.fits(left_s):
                found[source.name] = "timeout" if watch.closed else "open"
                watch.try_again(partial(self._try, source, hydrated, quota), within_s=left_s)
        return found

    def _said(self, name: str, ask: Callable[[], Hits | None], until: float) -> Hits | None:
        """What a source says; None where that is nothing in time.

        Raises:
            Exception: whatever the source raised; ValueError where it names what is no item.
        """
        watch, asked_at = self._watch(name, until), time.monotonic()
        try:
            hits = ask()
            if hits is not None:
                self._check(hits)
        except Exception:
            watch.failed()
            raise
        if hits is not None:
            watch.answered(asked_at, until)
        else:
            watch.failed()
        return hits

    def _try(self, source: Source, hydrated: HydratedQuery, quota: int) -> None:
        self._check(source.retrieve(hydrated, quota))

    def _check(self, hits: Hits) -> None:
        """
        Raises:
            ValueError: for what `Hits` never holds.
        """
        row_K = hits.row_K
        if len(row_K) and (row_K.min() < 0 or row_K.max() >= self.items or not np.isfinite(hits.score_K).all()):
            raise ValueError(f"rows from {row_K.min()} to {row_K.max()} of {self.items} items")

    def _filter(self, hydrated: HydratedQuery, candidates: Candidates, trace: Trace) -> Candidates:
        kept_N = np.ones(len(candidates), np.bool_)
        for each in self.filters:
            passed_N = each.keep(hydrated, candidates)
            if passed_N.shape != kept_N.shape:
                raise ValueError(f"{each.name}: a mask of {passed_N.shape} for {len(candidates)} candidates")
            trace.removed[each.name] = candidates.row_N[kept_N & ~passed_N]
            kept_N &= passed_N
        return candidates if kept_N.all() else candidates.keep(kept_N)

    def _fewer(self, query: Query, candidates: Candidates, trace: Trace) -> Candidates:
        mix = self._mix(query)
        most = max(self.most_of_search, query.size) if mix and self.most_of_search else self.most
        if most is None or len(candidates) <= most or query.order is not None:
            return candidates
        kept = fused(candidates, most, always=self.pinned(query), weights=mix)
        trace.removed["most"] = np.sort(candidates.row_N[~among(candidates.row_N, kept.row_N)])
        return kept

    def _filled(self, query: Query, candidates: Candidates, trace: Trace) -> Candidates:
        """With as many popular items that the filter refuses as a page has room for; boosts of the query bury them."""
        unfiltered = self.hydrate(replace(query, filter="", order=None))
        floor = self.sources[-1][0]
        hits = floor.retrieve(unfiltered, query.size + len(candidates))
        names = candidates.source_names
        others = merge(names, [hits if name == floor.name else None for name in names])
        others = others.keep(~among(others.row_N, candidates.row_N))
        others = self._filter(unfiltered, others, Trace())
        added = others.take(np.arange(min(len(others), query.size - len(candidates))))
        if len(added):
            trace.degraded |= Degraded.DEGRADED_FILTER_RELAXED
        return joined(candidates, added)

    def _score(self, hydrated: HydratedQuery, candidates: Candidates, until: float, trace: Trace) -> Scored:
        watch, asked_at = self._watch(RANKER, until), time.monotonic()
        ranked = partial(self._ranked, hydrated, candidates)
        if watch.fits(until - asked_at):
            try:
                scored = ranked()
                watch.answered(asked_at, until)
                return scored
            except Exception:
                watch.failed()
        else:
            watch.try_again(ranked, within_s=until - asked_at)
        trace.degraded |= Degraded.DEGRADED_RANKER_SKIPPED
        return self.retrieval_order.score(hydrated, candidates)

    def _ranked(self, hydrated: HydratedQuery, candidates: Candidates) -> Scored:
        """
        Raises:
            FloatingPointError: for a probability that is not finite.
        """
        scored = self.scorer.score(hydrated, candidates)
        if not np.isfinite(scored.probability_NA).all():
            raise FloatingPointError("the ranker answered with a value that is not finite")
        return scored
