"""The policy as its documentation reads, one candidate and one slot at a time, without a thought to speed.

Everything is worked out anew for every slot from the slate before it. Shape letters: N candidates, K slots.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from policy.settings import PolicySettings


@dataclass(frozen=True, kw_only=True)
class PlainPolicy:
    """What is drawn from, as plain lists over the candidates."""

    settings: PolicySettings
    utility_N: Sequence[float]
    """With what rules add."""
    vector_ND: NDArray[np.float64]
    category_N: Sequence[int]
    creator_N: Sequence[int]
    age_days_N: Sequence[float]
    work_N: Sequence[int]
    pins: Mapping[int, int] = field(default_factory=dict)
    barred: frozenset[int] = frozenset()
    quotas: Sequence[tuple[frozenset[int], int, int]] = ()
    """Of rules: members, at least, at most."""

    def distributions(self, given: Sequence[int], size: int) -> tuple[list[list[float]], list[str]]:
        """P(candidate) of every slot that the given slate fills, each given the slots before; and what was given up."""
        s, every = self.settings, range(len(self.utility_N))
        size = min(size, len(every) - len(self.barred))
        pins = {slot: n for slot, n in self.pins.items() if slot < size and n not in self.barred}
        fresh = {n for n in every if self.age_days_N[n] <= s.fresh_days}
        caps = [
            ("max_per_creator", self.creator_N, s.max_per_creator, s.creator_window),
            ("max_per_category", self.category_N, s.max_per_category, s.category_window),
            *(("rules.at_most", [int(n in members) for n in every], most, 0) for members, _, most in self.quotas),
            ("duplicates", self.work_N, int(bool(s.duplicate_attribute)), 0),
        ]
        caps = [cap for cap in caps if cap[2]]
        quotas = [("fresh_quota", fresh, math.ceil(round(s.fresh_quota * size, 9)))]
        for name, least in sorted(s.min_per_category.items()):
            members = {n for n in every if self.category_N[n] and name == f"c{self.category_N[n]}"}
            quotas.append(("min_per_category", members, least))
        quotas += [("rules.at_least", set(members), least) for members, least, _ in self.quotas]
        forgone = [0] * len(quotas)
        given_up: list[str] = []
        rows = []
        for k in range(min(size, len(given))):
            slate = list(given[:k])
            ahead = {slot: n for slot, n in pins.items() if slot >= k and n not in slate}
            if k in ahead:
                rows.append([float(n == ahead[k]) for n in every])
                continue
            left = sum(slot not in ahead for slot in range(k, size))
            owed = [
                least - forgone[q] - sum(n in members for n in [*slate, *ahead.values()])
                for q, (_, members, least) in enumerate(quotas)
            ]

            def forgo(q: int, owed: list[int] = owed) -> None:
                owed[q] -= 1
                forgone[q] += 1
                given_up.append(quotas[q][0])

            while sum(max(each, 0) for each in owed) > left:
                forgo(next(q for q, each in enumerate(owed) if each > 0))
            free = [n for n in every if n not in slate and n not in self.barred and n not in ahead.values()]

            def keeps(n: int, cap: tuple[str, Sequence[int], int, int], k: int = k) -> bool:
                _, shared, most, window = cap
                near = [m for slot, m in enumerate(given[:k]) if m >= 0 and (not window or slot > k - window)]
                near += [m for slot, m in ahead.items() if not window or slot < k + window]  # noqa: B023
                return not shared[n] or sum(shared[m] == shared[n] for m in near) < most

            feasible = [n for n in free if all(keeps(n, cap) for cap in caps)]
            if sum(max(each, 0) for each in owed) == left:
                due = [n for n in feasible if any(owed[q] > 0 and n in quotas[q][1] for q in range(len(quotas)))]
                if due:
                    feasible = due
                else:
                    forgo(next(q for q, each in enumerate(owed) if each > 0))
            kept = list(caps)
            while not feasible and kept:
                given_up.append(kept.pop(0)[0])
                feasible = [n for n in free if all(keeps(n, cap) for cap in kept)]
            rows.append(self._distribution(feasible, [n for n in slate if n >= 0]))
        if len(rows) == size:
            whole = list(given[:size])
            given_up += [
                name
                for q, (name, members, least) in enumerate(quotas)
                if least - forgone[q] > sum(n in members for n in whole)
            ]
        return rows, list(dict.fromkeys(given_up))

    def adjusted(self, slate: Sequence[int]) -> list[float]:
        s = self.settings
        worth = [
            u + s.freshness_weight * 0.5 ** (max(age, 0) / s.half_life_days)
            for u, age in zip(self.utility_N, self.age_days_N, strict=True)
        ]
        if not slate or not s.diversity:
            return worth
        if s.diversity_by == "mmr":
            nearest = (self.vector_ND @ self.vector_ND[list(slate)].T).max(axis=1)
            return [w - s.diversity * near for w, near in zip(worth, nearest, strict=True)]
        # The determinant of a Gram matrix grows by the squared distance to the span of the rows before.
        gains = []
        for n in range(len(worth)):
            grams = [self.vector_ND[rows] @ self.vector_ND[rows].T for rows in ([*slate, n], list(slate))]
            gains.append(max(np.linalg.det(grams[0]) / np.linalg.det(grams[1]), 2.0**-20))
        return [w + s.diversity * math.log(gain) for w, gain in zip(worth, gains, strict=True)]

    def _distribution(self, feasible: Sequence[int], slate: Sequence[int]) -> list[float]:
        s, adjusted = self.settings, self.adjusted(slate)
        fresh = [n for n in feasible if self.age_days_N[n] <= s.fresh_days]
        floor = s.fresh_floor if fresh else 0.0
        best = max(adjusted[n] for n in feasible)
        if s.temperature:
            mass = {n: math.exp((adjusted[n] - best) / s.temperature) for n in feasible}
        else:
            first = next(n for n in feasible if adjusted[n] == best)
            mass = {n: float(n == first) for n in feasible}
        total = sum(mass.values())
        return [
            (1 - s.epsilon - floor) * mass[n] / total
            + s.epsilon / len(feasible)
            + (floor / len(fresh) if n in fresh else 0)
            if n in mass
            else 0.0
            for n in range(len(adjusted))
        ]
