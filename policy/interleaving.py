"""Team-draft interleaving of two policies (Radlinski, Kurup and Joachims, CIKM 2008), drawn and with exact chances.

In every round of two slots a coin says who goes first, and the other goes next. Whose turn it is draws from its own
policy, given all slots so far, whoever filled them: with policies that take the best this is the team draft of the
paper. A team that has nobody left passes its turn.

Teams are a means of the draw, so the propensity of a slot leaves it open who filled it. At the first slot of a round
both may have: P(i) = 1/2 a(i) + 1/2 b(i). At the second, who was first is told in part by what stands there:
P(j | i) = P(a first | i) b(j) + P(b first | i) a(j). Rounds are independent given the slots before.

Shape letters: K slots, N candidates of a team, T the two teams.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from candidate_gen.types import Query
from index.strings import key64
from policy.selector import SlatePolicy
from policy.types import Draw
from ranking.types import Scored


@dataclass(frozen=True, slots=True)
class Team:
    """A policy and what it draws from. Two teams may know the items by different rows."""

    policy: SlatePolicy
    query: Query
    scored: Scored

    def item_ids(self) -> list[str]:
        return list(self.policy.items.ids.ids.take(self.scored.candidates.row_N))

    def draw(self, index_K: NDArray[np.int64]) -> Draw:
        """What it makes of a slate, -1 for what is none of its candidates."""
        return self.policy.propensity_of(self.query, self.scored, index_K)


@dataclass(frozen=True, slots=True)
class Draft:
    """One slate of two teams."""

    index_K: NDArray[np.int64]
    """Positions among the candidates of the team that filled the slot."""
    team_K: NDArray[np.uint8]
    propensity_K: NDArray[np.float64]
    """P(item in slot k | slots before k), whoever filled them."""
    flag_K: NDArray[np.uint8]
    """As of the team that filled the slot."""
    relaxed: tuple[str, ...]


def draft(one: Team, other: Team, *, size: int) -> Draft:
    """Fill `size` slots, or as many as the teams can. A function of the teams alone."""
    teams = (one, other)
    seed = f"draft/{one.policy.generation}/{other.policy.generation}/{one.query.request_id}"
    ids_T = [each.item_ids() for each in teams]
    position_T = [{item: n for n, item in enumerate(ids)} for ids in ids_T]
    given_KT = np.full((size, 2), -1, np.int64)
    team_K, first = np.zeros(size, np.uint8), 0
    slots = 0
    for k in range(size):
        opening = k % 2 == 0
        turn = int(_chance(seed, k, "coin") < 0.5) if opening else 1 - first
        for team in (turn, 1 - turn):
            distribution_N = _next(teams[team], given_KT[:k, team])
            if distribution_N.any():
                break
        else:
            break
        first = team if opening else first
        item = ids_T[team][_drawn(distribution_N, _chance(seed, k, "item"))]
        given_KT[k] = [position.get(item, -1) for position in position_T]
        team_K[k], slots = team, k + 1
    given_KT, team_K = given_KT[:slots], team_K[:slots]
    draws = [each.draw(given_KT[:, t]) for t, each in enumerate(teams)]
    return Draft(
        index_K=given_KT[np.arange(slots), team_K],
        team_K=team_K,
        propensity_K=_propensities(*draws),
        flag_K=np.where(team_K == 0, draws[0].flag_K, draws[1].flag_K),
        relaxed=tuple(dict.fromkeys((*draws[0].relaxed, *draws[1].relaxed))),
    )


def _propensities(one: Draw, other: Draw) -> NDArray[np.float64]:
    chance_KT = np.stack([one.propensity_K, other.propensity_K], axis=1)
    able_KT = np.stack([each.distribution_KN.any(axis=1) for each in (one, other)], axis=1)
    propensity_K, first_T = np.zeros(len(one)), np.zeros(2)
    for k in range(len(one)):
        turn_T = np.full(2, 0.5) if k % 2 == 0 else first_T[::-1]
        turn_T = turn_T if able_KT[k].all() else able_KT[k].astype(np.float64)  # whoever cannot passes
        of_T = turn_T * chance_KT[k]
        propensity_K[k] = of_T.sum()
        first_T = of_T / propensity_K[k] if k % 2 == 0 else first_T
    return propensity_K


def _next(team: Team, before_K: NDArray[np.int64]) -> NDArray[np.float64]:
    """What the team draws the next slot from."""
    distribution_N: NDArray[np.float64] = team.draw(np.append(before_K, -1)).distribution_KN[-1]
    return distribution_N


def _drawn(distribution_N: NDArray[np.float64], chance: float) -> int:
    """Inverse of the cumulative distribution; nobody of probability 0."""
    reached_N = np.cumsum(distribution_N)
    at = int(np.searchsorted(reached_N, chance * reached_N[-1], side="right"))
    return min(at, int(np.flatnonzero(distribution_N)[-1]))


def _chance(seed: str, k: int, what: str) -> float:
    """Uniform below 1, the same on every machine."""
    return float((key64(f"{seed}/{k}/{what}") >> 11) / 2.0**53)
