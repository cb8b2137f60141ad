"""Recommendations to many users at one moment, as a batch makes them: the line of `serving.pipeline`, where a stage is
done with a whole block of queries before the next begins. What they share is worked out once; what is a query's own
has the bits that it has alone, so every slate is the one that `Pipeline.run` draws.

Shape letters: B queries, N candidates of all of them, X items in their histories.
"""

from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from candidate_gen.filters import Disallowed, Excluded, Seen, Shown, Unpublished
from candidate_gen.merge import fused_of_many, merge_of_many
from candidate_gen.row_sets import among
from candidate_gen.sources import NO_HITS, AsUnderstood, Fresh, Lexical, Popular
from candidate_gen.types import Candidates, HydratedQuery, Query
from index.types import Hits
from protos.impression_pb2 import Degraded
from ranking.scorer import RankerScorer
from ranking.types import Scored
from serving.generation import Generation
from serving.hydration import hydrated_of_many
from serving.live import Live
from serving.pipeline import Answer, Filter, Source, Trace


class BlockPipeline:
    """Answers blocks of queries that say who asks and what they did, and nothing else: no text, seeds, filter,
    exclusions or order. Those of a block are of one moment.

    Args:
        live: what its sources say is asked once for a block.
    """

    def __init__(self, generation: Generation, live: Live) -> None:
        self._generation = generation
        self._pipeline = generation.pipeline
        self._live = live
        self.alone = 0
        """Queries so far that were not answered as a block."""

    def run(self, queries: Sequence[Query]) -> list[Answer]:
        """What `Pipeline.run` answers to each of them, at least one.

        Where a part of the pipeline knows no blocks or a stage fails, each query is answered alone: without what
        failed, and saying so.
        """
        try:
            return self.together(queries)
        except Exception:
            self.alone += len(queries)
            return [self.run_alone(query) for query in queries]

    def together(self, queries: Sequence[Query]) -> list[Answer]:
        """The same, where nothing fails.

        Raises:
            NotImplementedError: for a query that asks for more, and for a part of the pipeline that knows no blocks.
            Exception: whatever a stage raises.
        """
        generation, pipeline = self._generation, self._pipeline
        if not all(map(_is_plain, queries)) or len({query.time_ms for query in queries}) > 1:
            raise NotImplementedError("queries of a block ask for a recommendation at one moment and nothing else")
        if not isinstance(pipeline.scorer, RankerScorer):
            raise NotImplementedError(f"{type(pipeline.scorer).__name__} scores no blocks")
        if any(len(pipeline.pinned(query)) for query in queries):
            raise NotImplementedError("pinned items are the business of each query")
        said = self._live.named_of_many(queries, generation, generation.attributes.allowed(""))
        queries = [replace(query, live=own) for query, own in zip(queries, said, strict=True)]
        hydrated = hydrated_of_many(
            generation.table,
            generation.items,
            generation.profiles,
            attributes=generation.attributes,
            encode_query=generation.encode_query,
            queries=queries,
        )
        hits = self._retrieved(hydrated)
        candidates = self._filtered(hydrated, hits)
        scored = pipeline.scorer.score_of_many(hydrated, candidates)
        if not all(np.isfinite(each.probability_NA).all() for each in scored):
            raise FloatingPointError("the ranker answered with a value that is not finite")
        return [self._answer(*each) for each in zip(hydrated, hits, scored, strict=True)]

    def run_alone(self, query: Query) -> Answer:
        """What a server answers."""
        allowed = self._generation.attributes.allowed(query.filter)
        return self._pipeline.run(replace(query, live=self._live.named(query, self._generation, allowed)))

    def _retrieved(self, hydrated: Sequence[HydratedQuery]) -> list[tuple[Hits, ...]]:
        """What each source names to each query."""
        found = [_named(source, hydrated, quota) for source, quota in self._pipeline.sources]
        return list(zip(*found, strict=True))

    def _filtered(self, hydrated: Sequence[HydratedQuery], hits: Sequence[Sequence[Hits]]) -> list[Candidates]:
        """Those of each query that may be shown, and no more than are to be scored.

        Raises:
            ValueError: for what `Hits` never holds.
        """
        pipeline = self._pipeline
        names = tuple(source.name for source, _ in pipeline.sources)
        merged, offset_B1 = merge_of_many(names, hits)
        row_N, query_N = merged.row_N, np.repeat(np.arange(len(hydrated)), np.diff(offset_B1))
        if len(row_N) and (row_N.min() < 0 or row_N.max() >= pipeline.items or not np.isfinite(merged.score_NS).all()):
            raise ValueError(f"rows from {row_N.min()} to {row_N.max()} of {pipeline.items} items")
        kept_N = np.ones(len(merged), np.bool_)
        for each in pipeline.filters:
            kept_N &= _keep(each, hydrated, merged, query_N)
        merged, query_N = merged.keep(kept_N), query_N[kept_N]
        offset_B1 = np.concatenate([[0], np.cumsum(np.bincount(query_N, minlength=len(hydrated)))])
        if pipeline.most is not None:
            merged, offset_B1 = fused_of_many(merged, offset_B1, pipeline.most)
        return [
            Candidates(merged.row_N[start:end], names, merged.rank_NS[start:end], merged.score_NS[start:end])
            for start, end in pairwise(offset_B1.tolist())
        ]

    def _answer(self, hydrated: HydratedQuery, hits: Sequence[Hits], scored: Scored) -> Answer:
        slate = self._pipeline.selector.select(hydrated.query, scored)
        degraded = (
            Degraded.DEGRADED_DEFAULT_FEATURES * bool(hydrated.defaulted)
            | Degraded.DEGRADED_PARTIAL_INDEX * any(each.partial for each in hits)
            | Degraded.DEGRADED_POLICY_RELAXED * bool(slate.relaxed)
            | Degraded.DEGRADED_EMPTY * (not len(slate))
        )
        return Answer(slate, scored, Trace(degraded, defaulted=hydrated.defaulted))


def _is_plain(query: Query) -> bool:
    """Whether it says no more than who asks, and what they did."""
    told = (query.text, query.features, query.filter, query.fill, query.boosts, query.mix, query.order, query.page)
    rows = (query.seed_row_S, query.exclude_row_X, query.shown_row_X, query.before_row_X)
    return not any(told) and query.only_row_N is None and not any(map(len, rows))


def _named(source: Source, hydrated: Sequence[HydratedQuery], quota: int) -> list[Hits]:
    match source:
        case Lexical() | AsUnderstood():  # nothing was typed
            return [NO_HITS] * len(hydrated)
        case Fresh() | Popular():
            return source.retrieve_of_many(hydrated, quota)
    return [source.retrieve(each, quota) for each in hydrated]


def _keep(
    rule: Filter, hydrated: Sequence[HydratedQuery], candidates: Candidates, query_N: NDArray[np.int64]
) -> NDArray[np.bool_]:
    """Which candidates of all queries the rule keeps.

    Raises:
        NotImplementedError: for a rule that knows no blocks.
    """
    match rule:
        case Disallowed() | Unpublished():  # know no more of a query than its moment
            return rule.keep(hydrated[0], candidates)
        case Excluded() | Shown():  # nothing is excluded, and what was shown is not known
            return np.ones(len(candidates), np.bool_)
        case Seen(actions=None):
            past = [each.query.history.row_L for each in hydrated]
            query_X = np.repeat(np.arange(len(past)), [len(each) for each in past])
            # A row of one query is another row than the same of the next.
            rows = int(candidates.row_N.max(initial=0)) + 1
            past_X = np.concatenate(past)
            own_X = past_X < rows
            return ~among(candidates.row_N + rows * query_N, (past_X + rows * query_X)[own_X])
    raise NotImplementedError(f"{rule.name} knows no blocks")
