"""A slate of 20 from 500 candidates: `SlatePolicy.select` beside the same definition in plain Python.

The plain version reads like the policy's documentation, a list and a loop at a time. Both must draw the same slates
with the same propensities, from the same seeds, before either is timed.

Shape letters: N candidates, A actions, D embedding width.
"""

import math
from collections.abc import Sequence
from itertools import cycle
from operator import mul

import numpy as np

from benchmarks.harness import Bench, Side, main
from candidate_gen.items import Items
from candidate_gen.types import Candidates, Query
from policy.selector import SlatePolicy
from policy.settings import PolicySettings
from policy.value import DAY_MS
from ranking.types import Scored

_NOW_MS = 1_700_000_000_000
_D = 64
_ACTIONS = ("click", "like", "hide")
_SETTINGS = PolicySettings(
    weights={"click": 1.0, "like": 2.0, "hide": -3.0},
    temperature=0.05,
    epsilon=0.05,
    diversity=0.2,
    freshness_weight=0.05,
    max_per_category=4,
    max_per_creator=2,
    fresh_quota=0.2,
)


def measure(bench: Bench) -> None:
    candidates, size, checked = (100, 10, 20) if bench.quick else (500, 20, 100)
    policy, scored = case(candidates)
    plain = PlainPolicy(policy, scored)
    queries = [Query(f"request {number}", _NOW_MS, "home", size) for number in range(checked)]
    for query in queries:
        slate = policy.select(query, scored)
        index, propensity = plain.select(query)
        if slate.index_K.tolist() != index or not np.allclose(slate.propensity_K, propensity, rtol=1e-4):
            raise AssertionError(f"the two policies draw different slates for {query.request_id!r}")
    our_turn, peer_turn = cycle(queries), cycle(queries)
    bench.compare(
        f"select {size} of {candidates}",
        Side("SlatePolicy", lambda: policy.select(next(our_turn), scored)),
        Side("plain Python", lambda: plain.select(next(peer_turn))),
        unit="ms",
        note=f"{checked} of {checked} slates identical",
    )


class PlainPolicy:
    """`SlatePolicy` over one list of candidates, with lists for arrays and without a thought to speed."""

    def __init__(self, policy: SlatePolicy, scored: Scored) -> None:
        items, rows = policy.items, scored.candidates.row_N
        self._policy = policy
        self._probability: list[list[float]] = scored.probability_NA.tolist()
        self._category: list[int] = scored.item_row_N["category"].tolist()
        self._creator: list[int] = scored.item_row_N["creator"].tolist()
        self._published_ms: list[int] = items.published_ms_I[rows].tolist()
        self._vector: list[list[float]] = items.embedding_ID[rows].tolist()

    def select(self, query: Query) -> tuple[list[int], list[float]]:
        """Positions of the slate and their propensities."""
        settings = self._policy.settings
        chances = np.random.default_rng(self._policy.seed(query)).random(query.size).tolist()
        age_days = [(query.time_ms - published) / DAY_MS for published in self._published_ms]
        worth = []
        for probability, age in zip(self._probability, age_days, strict=True):
            value = sum(settings.weights[action] * p for action, p in zip(_ACTIONS, probability, strict=True))
            worth.append(value + settings.freshness_weight * 0.5 ** (max(age, 0) / settings.half_life_days))
        fresh = [age <= settings.fresh_days for age in age_days]
        slate: list[int] = []
        propensities: list[float] = []
        nearest = [-math.inf] * len(worth)
        for slot, chance in enumerate(chances):
            feasible = self._feasible(slate, fresh, slots=query.size - slot, size=query.size)
            adjusted = [worth[n] - (settings.diversity * nearest[n] if slate else 0) for n in feasible]
            best = max(adjusted)
            mass = [math.exp((value - best) / settings.temperature) for value in adjusted]
            total = sum(mass)
            share = [(1 - settings.epsilon) * each / total + settings.epsilon / len(mass) for each in mass]
            reached, drawn = 0.0, 0
            for drawn, each in enumerate(share):  # noqa: B007
                reached += each
                if reached > chance:
                    break
            slate.append(feasible[drawn])
            propensities.append(share[drawn])
            placed = self._vector[slate[-1]]
            nearest = [max(n, sum(map(mul, each, placed))) for n, each in zip(nearest, self._vector, strict=True)]
        return slate, propensities

    def _feasible(self, slate: Sequence[int], fresh: Sequence[bool], *, slots: int, size: int) -> list[int]:
        settings = self._policy.settings
        free = [n for n in range(len(fresh)) if n not in slate]

        def below(most: int, identifiers: Sequence[int], n: int) -> bool:
            placed = [identifiers[each] for each in slate]
            return not most or not identifiers[n] or placed.count(identifiers[n]) < most

        in_category = [n for n in free if below(settings.max_per_category, self._category, n)]
        allowed = [n for n in in_category if below(settings.max_per_creator, self._creator, n)]
        owed = math.ceil(round(settings.fresh_quota * size, 9)) - sum(fresh[n] for n in slate)
        only_fresh = [n for n in allowed if fresh[n]] if 0 < owed >= slots else []
        return only_fresh or allowed or in_category or free


def case(candidates: int) -> tuple[SlatePolicy, Scored]:
    """A catalogue of which every item is a candidate."""
    random = np.random.default_rng(0)
    ids = [f"i{row}" for row in range(candidates)]
    item_row_N = np.zeros(candidates, [("category", "<i4"), ("creator", "<i4")])
    item_row_N["category"] = random.integers(0, 12, candidates)
    item_row_N["creator"] = random.integers(0, candidates // 5, candidates)
    embedding_ND = random.standard_normal((candidates, _D))
    items = Items.of(
        ids=ids,
        titles=ids,
        row_I=item_row_N,
        published_ms=_NOW_MS - random.exponential(10, candidates) * DAY_MS,
        embedding_ID=(embedding_ND / np.linalg.norm(embedding_ND, axis=1, keepdims=True)).astype(np.float32),
    )
    nothing = np.zeros((candidates, 0), np.int16), np.zeros((candidates, 0), np.float32)
    scored = Scored(
        candidates=Candidates(np.arange(candidates), (), *nothing),
        action_names=_ACTIONS,
        probability_NA=random.beta(2, 20, (candidates, len(_ACTIONS))).astype(np.float32),
        query_row=np.zeros(1, [("user_id", "<i4")]),
        item_row_N=item_row_N,
        pair_row_N=np.zeros(candidates, [("bm25", "<f4")]),
    )
    return SlatePolicy(_SETTINGS, items, "benchmark"), scored


if __name__ == "__main__":
    main("policy", measure, "drawing a slate, beside the same definition in plain Python")
