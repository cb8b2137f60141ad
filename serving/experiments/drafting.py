"""A slate that two arms of an experiment draft in turns, as one answer in the rows of the first.

Shape letters: K slots, N candidates, S sources.
"""

import numpy as np

from candidate_gen.types import Candidates, Query, by_source
from policy.interleaving import Team, draft
from policy.types import Slate
from protos.impression_pb2 import Degraded
from ranking.types import Scored
from serving.changes import held
from serving.generation import Generation
from serving.pipeline import Answer

MAX_SLOTS = 50
"""Each slot is drawn given all before it, so time grows with the square of their number."""


def check_teams(one: Generation, other: Generation) -> None:
    """
    Raises:
        ValueError: where what their rankers see cannot stand in one impression.
    """
    if one.table.fingerprint != other.table.fingerprint:
        raise ValueError(
            f"{one.id} and {other.id} have different feature tables, {one.table.fingerprint} and "
            f"{other.table.fingerprint}; only arms of one table draft a slate together"
        )


def drafted(
    one: tuple[Query, Generation],
    other: tuple[Query, Generation],
    *,
    budget_s: float,
    without: frozenset[str] = frozenset(),
) -> Answer:
    """The slate that two arms draft; or that of the first alone, where one of them had to do without something, the
    slate is too long or the query asks for an order. Only items that both hold come into it.

    What the impression keeps of a slot is what the arm saw that filled it; the query's row is that of the first.
    """
    started = [side[1].pipeline.run(side[0], budget_s=budget_s, without=without) for side in (one, other)]
    own, second = started
    if one[0].size > MAX_SLOTS or one[0].order is not None or any(_lacks(each, without) for each in started):
        return own
    row_N = held(one[1].items, other[1].items.ids.ids.take(second.scored.candidates.row_N))
    kept_N = row_N >= 0
    scored_T = (own.scored, second.scored.keep(kept_N))
    row_T, utility_T = (
        (own.scored.candidates.row_N, row_N[kept_N]),
        (own.slate.utility_N, second.slate.utility_N[kept_N]),
    )
    teams = [Team(side[1].policy, side[0], each) for side, each in zip((one, other), scored_T, strict=True)]
    made = draft(teams[0], teams[1], size=one[0].size)
    index_T = [made.index_K[made.team_K == t] for t in (0, 1)]
    slot_K = np.argsort(np.argsort(made.team_K, kind="stable"))  # where each slot is after all of one and all of other

    def slots(*column_T: np.ndarray) -> np.ndarray:
        return np.concatenate([column[index_K] for column, index_K in zip(column_T, index_T, strict=True)])[slot_K]

    candidates_T = [each.candidates for each in scored_T]
    names = tuple(dict.fromkeys(name for each in candidates_T for name in each.source_names))
    candidates = Candidates(
        slots(*row_T),
        names,
        slots(*(by_source(each.rank_NS, each.source_names, names, missing=-1) for each in candidates_T)),
        slots(*(by_source(each.score_NS, each.source_names, names, missing=0) for each in candidates_T)),
    )
    scored = Scored(
        candidates,
        own.scored.action_names,
        slots(*(each.probability_NA for each in scored_T)),
        own.scored.query_row,
        slots(*(each.item_row_N for each in scored_T)),
        slots(*(each.pair_row_N for each in scored_T)),
    )
    slate = Slate(
        np.arange(len(made.index_K)), slots(*utility_T), made.propensity_K, made.flag_K, made.relaxed, made.team_K
    )
    own.trace.degraded |= second.trace.degraded | (Degraded.DEGRADED_POLICY_RELAXED if made.relaxed else 0)
    return Answer(slate, scored, own.trace)


def _lacks(answer: Answer, without: frozenset[str]) -> bool:
    """Whether it had to do without something that a replay would have."""
    trace = answer.trace
    return bool(trace.degraded & Degraded.DEGRADED_RANKER_SKIPPED or set(trace.skipped_sources) - without)
