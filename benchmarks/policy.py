"""A slate of 100 from 500 candidates: `SlatePolicy.select` beside the same definition in plain Python.

The plain version reads like the policy's documentation, a list and a loop at a time. Both must draw the same slates
with the same propensities, from the same seeds, before either is timed.

Shape letters: N candidates, A actions, D embedding width.
"""

import math
import time
from collections.abc import Callable, Sequence
from operator import mul

import numpy as np

from benchmarks.harness import Bench, main
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
    max_per_category=3,
    category_window=10,
    max_per_creator=1,
    creator_window=5,
)


def measure(bench: Bench) -> None:
    candidates, size, blocks = (100, 20, 5) if bench.quick else (500, 100, 15)
    policy, scored = case(candidates)
    plain = PlainPolicy(policy, scored)
    queries = [Query(f"request {number}", _NOW_MS, "home", size) for number in range(2 * blocks)]
    for query in queries:
        slate = policy.select(query, scored)
        index, propensity = plain.select(query)
        if slate.index_K.tolist() != index or not np.allclose(slate.propensity_K, propensity, rtol=1e-9):
            raise AssertionError(f"the two policies draw different slates for {query.request_id!r}")

    def taken_s(select: Callable[[Query], object], query: Query, repeats: int) -> float:
        started_s = time.perf_counter()
        for _ in range(repeats):
            select(query)
        return (time.perf_counter() - started_s) / repeats

    def ours(query: Query) -> object:
        return policy.select(query, scored)

    # By hand, for repeating a slow peer as often as this would take hours.
    time_B4 = np.array(
        [
            (
                taken_s(ours, one, 200),
                taken_s(plain.select, one, 1),
                taken_s(plain.select, two, 1),
                taken_s(ours, two, 200),
            )
            for one, two in zip(queries[::2], queries[1::2], strict=True)
        ]
    )
    bench.pair(
        f"select {size} of {candidates}",
        time_B4[:, [0, 3]].mean(axis=1),
        time_B4[:, [1, 2]].mean(axis=1),
        peer_name="plain Python",
        unit="ms",
        note=f"{len(queries)} of {len(queries)} slates identical",
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
        # As the policy rounds them: the cosine of these is exact.
        self._vector: list[list[float]] = (np.rint(items.embedding_ID[rows].astype(float) * 32767) / 32767).tolist()

    def select(self, query: Query) -> tuple[list[int], list[float]]:
        """Positions of the slate and their propensities."""
        settings = self._policy.settings
        worth = []
        for probability, published_ms in zip(self._probability, self._published_ms, strict=True):
            age_days = (query.time_ms - published_ms) / DAY_MS
            value = sum(settings.weights[action] * p for action, p in zip(_ACTIONS, probability, strict=True))
            value = float(np.float32(value))
            worth.append(value + settings.freshness_weight * 0.5 ** (max(age_days, 0) / settings.half_life_days))
        slate: list[int] = []
        propensities: list[float] = []
        nearest = [-math.inf] * len(worth)
        for chance in chances(self._policy.seed(query), query.size):
            feasible = self._feasible(slate)
            adjusted = {n: worth[n] - (settings.diversity * nearest[n] if slate else 0) for n in feasible}
            best = max(adjusted.values())
            mass = {n: math.exp((value - best) / settings.temperature) for n, value in adjusted.items()}
            total = sum(mass.values())
            share = {
                n: (1 - settings.epsilon) * each / total + settings.epsilon / len(mass) for n, each in mass.items()
            }
            reached = 0.0
            for drawn in sorted(feasible, key=lambda n: n % 32):
                reached += share[drawn]
                if reached > chance:
                    break
            slate.append(drawn)
            propensities.append(share[drawn])
            placed = self._vector[drawn]
            nearest = [max(n, sum(map(mul, each, placed))) for n, each in zip(nearest, self._vector, strict=True)]
        return slate, propensities

    def _feasible(self, slate: Sequence[int]) -> list[int]:
        settings = self._policy.settings

        def near(window: int, identifiers: Sequence[int]) -> list[int]:
            return [identifiers[n] for n in slate[-window + 1 :]]

        free = [n for n in range(len(self._category)) if n not in slate]
        categories = near(settings.category_window, self._category)
        creators = near(settings.creator_window, self._creator)
        in_category = [
            n for n in free if not self._category[n] or categories.count(self._category[n]) < settings.max_per_category
        ]
        allowed = [
            n
            for n in in_category
            if not self._creator[n] or creators.count(self._creator[n]) < settings.max_per_creator
        ]
        return allowed or in_category or free


def chances(seed: int, count: int) -> list[float]:
    """SplitMix64."""
    whole = (1 << 64) - 1
    drawn = []
    for k in range(1, count + 1):
        z = (seed + k * 0x9E3779B97F4A7C15) & whole
        z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & whole
        z = (z ^ (z >> 27)) * 0x94D049BB133111EB & whole
        drawn.append(((z ^ (z >> 31)) >> 11) * 2.0**-53)
    return drawn


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
