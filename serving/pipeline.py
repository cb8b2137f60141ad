"""The request as one straight line: hydrate, retrieve, filter, score, select.

Serving, replay and evaluation all run this; nothing else decides what is shown.

Shape letters: N candidates, S sources.
"""

import math
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from candidate_gen.types import Candidates, HydratedQuery, Query
from index.types import Hits
from policy.types import Slate
from protos.impression_pb2 import Degraded
from ranking.types import Scored


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
    skipped_sources: dict[str, str] = field(default_factory=dict)
    """Source to why: timeout or error."""
    removed: dict[str, int] = field(default_factory=dict)
    """Candidates that each filter took out."""

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        try:
            yield
        finally:
            self.stage_ms[name] = 1000 * (time.perf_counter() - started)


@dataclass(frozen=True, slots=True)
class Answer:
    """A slate with what it was drawn from."""

    slate: Slate
    scored: Scored
    trace: Trace


@dataclass(frozen=True, slots=True)
class Pipeline:
    """The four stages of one generation."""

    hydrate: Callable[[Query], HydratedQuery]
    sources: Sequence[tuple[Source, int]]
    """Each with how many candidates it may name; the last is the floor that cannot fail."""
    filters: Sequence[Filter]
    scorer: Scorer
    retrieval_order: Scorer
    """Stands in for a scorer that failed."""
    selector: Selector

    def run(self, query: Query, *, budget_s: float = math.inf, without: frozenset[str] = frozenset()) -> Answer:
        """Answer a query.

        Args:
            budget_s: seconds until the caller stops waiting; sources whose turn comes too late are skipped.
            without: sources to leave out, as a logged request did.
        """
        trace = Trace()
        started = time.monotonic()
        with trace.stage("hydrate"):
            hydrated = self.hydrate(query)
        with trace.stage("retrieve"):
            candidates = self._retrieve(hydrated, started + 0.5 * budget_s, without, trace)
        with trace.stage("filter"):
            candidates = self._filter(hydrated, candidates, trace)
        with trace.stage("score"):
            scored = self._score(hydrated, candidates, trace)
        with trace.stage("select"):
            slate = self.selector.select(query, scored)
        if slate.relaxed:
            trace.degraded |= Degraded.DEGRADED_POLICY_RELAXED
        if not len(slate):
            trace.degraded |= Degraded.DEGRADED_EMPTY
        return Answer(slate, scored, trace)

    def _retrieve(self, hydrated: HydratedQuery, until: float, without: frozenset[str], trace: Trace) -> Candidates:
        names = tuple(source.name for source, _ in self.sources)
        if hydrated.query.only_row_N is not None:
            return only(hydrated.query.only_row_N, names)
        hits: list[Hits | None] = []
        for source, quota in self.sources:
            floor = source is self.sources[-1][0]
            if source.name in without:
                trace.skipped_sources[source.name] = "without"
                hits.append(None)
            elif time.monotonic() > until and not floor:
                trace.skipped_sources[source.name] = "timeout"
                trace.degraded |= Degraded.DEGRADED_SOURCE_TIMEOUT
                hits.append(None)
            else:
                try:
                    hits.append(found := source.retrieve(hydrated, quota))
                    trace.degraded |= Degraded.DEGRADED_PARTIAL_INDEX * found.partial
                except Exception:
                    trace.skipped_sources[source.name] = "error"
                    trace.degraded |= Degraded.DEGRADED_SOURCE_ERROR
                    hits.append(None)
        if len(names) > 1 and all(each is None for each in hits[:-1]):
            trace.degraded |= Degraded.DEGRADED_POPULAR_FALLBACK
        return merge(names, hits)

    def _filter(self, hydrated: HydratedQuery, candidates: Candidates, trace: Trace) -> Candidates:
        for each in self.filters:
            kept_N = each.keep(hydrated, candidates)
            trace.removed[each.name] = int(len(kept_N) - kept_N.sum())
            candidates = candidates.keep(kept_N)
        return candidates

    def _score(self, hydrated: HydratedQuery, candidates: Candidates, trace: Trace) -> Scored:
        try:
            scored = self.scorer.score(hydrated, candidates)
            if not np.isfinite(scored.probability_NA).all():
                raise FloatingPointError("the ranker answered with a value that is not finite")
            return scored
        except Exception:
            trace.degraded |= Degraded.DEGRADED_RANKER_SKIPPED
            return self.retrieval_order.score(hydrated, candidates)


def only(row_N: NDArray[np.int64], names: tuple[str, ...]) -> Candidates:
    """A caller's own list as candidates that no source named."""
    shape = (len(row_N), len(names))
    return Candidates(row_N, names, np.full(shape, -1, np.int16), np.zeros(shape, np.float32))


def merge(names: tuple[str, ...], hits: Sequence[Hits | None]) -> Candidates:
    """The union of what the sources named, each item once, in order of first appearance."""
    found = [each.row_K for each in hits if each is not None]
    all_rows = np.concatenate(found) if found else np.empty(0, np.int64)
    row_N, first_N = np.unique(all_rows, return_index=True)
    row_N = row_N[np.argsort(first_N)]
    candidates = only(row_N, names)
    sorter_N = np.argsort(row_N)
    for s, each in enumerate(hits):
        if each is not None and len(each):
            at_K = sorter_N[np.searchsorted(row_N, each.row_K, sorter=sorter_N)]
            candidates.rank_NS[at_K, s] = np.arange(len(each))
            candidates.score_NS[at_K, s] = each.score_K
    return candidates
