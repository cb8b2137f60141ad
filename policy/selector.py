"""The policy is the sampler: everything that can change a slate happens inside the draw.

Shape letters: K slots, N candidates, D embedding width.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from candidate_gen.items import Items
from candidate_gen.types import Query
from index.columns import taken
from index.strings import key64
from policy.constraints import RELAXATION, limits
from policy.diversity import similarity
from policy.rules import Ruled, RulesInForce
from policy.settings import PolicySettings
from policy.terms import Terms, nearness, novelty
from policy.types import Draw, Slate
from policy.value import DAY_MS, freshness, utility
from policy.walk import walk
from ranking.types import Scored

_NONE_GIVEN = np.zeros(0, np.int64)


@dataclass(frozen=True, slots=True)
class SlatePolicy:
    """Draws slates, and says how likely it was to draw one.

    Slot by slot the adjusted utility of a candidate is its utility, plus `freshness_weight` halved with every
    `half_life_days` of its age, plus what rules add, and by `diversity_by`

    - `mmr`: minus `diversity` times its largest cosine similarity to the slate so far (maximal marginal relevance,
      Carbonell and Goldstein, SIGIR 1998, with utility for relevance). The first slot knows no similarity; a candidate
      that points away from the whole slate gains.
    - `dpp`: plus `diversity` times the logarithm of the squared length of what is left of its vector outside the span
      of the slate so far. The largest is the greedy choice for the determinantal point process of the kernel
      q_i cos(i, j) q_j with q = exp(utility / (2 diversity)) (Chen, Zhang and Zhou, NeurIPS 2018).

    Of the feasible candidates (`policy.constraints`) one is drawn: with the share `epsilon` any, with the share
    `fresh_floor` any fresh one, otherwise from the softmax of adjusted utility / `temperature`; temperature 0 is its
    limit, the first of the largest.

    The draw is a function of the settings, the rules, the generation, the query and the candidates in their order.

    Where the query asks for an order there is no draw: the candidates that are not blocked are placed as they come,
    each with probability 1.

    Args:
        rules: None for none.
    """

    settings: PolicySettings
    items: Items
    generation: str
    rules: RulesInForce | None = None

    def seed(self, query: Query) -> int:
        """Seed of the query's draw. Pages have seeds of their own, for their draws must not depend on each other."""
        page = f"#{query.page}" if query.page else ""
        return key64(f"{self.generation}/{query.request_id}{page}")

    def select(self, query: Query, scored: Scored) -> Slate:
        """Draw a slate of `query.size` candidates, or of all that are not blocked where there are fewer.

        Raises:
            ValueError: for a weight of an action that was not predicted, for a probability that is not finite and for
                a setting that names an attribute which the items do not have.
        """
        return self._walk(query, scored, None, np.zeros((0, 0)))

    def propensity_of(self, query: Query, scored: Scored, index_K: NDArray[np.int64]) -> Draw:
        """How this policy would have drawn a given slate, by the code that draws.

        Args:
            index_K: positions among the candidates; -1 for an item that is not among them, which has propensity 0
                and, for the slots after it, took a place and nothing else (no cap, no similarity, no freshness).
                May stop before this policy would, and is then a prefix; the slots that go beyond what it would
                fill have propensity 0. A slot that is pinned to another item has propensity 0, and what was pinned
                there may be drawn later.

        Raises:
            ValueError: for a position outside the candidates or given twice, and as `select` does.
        """
        given_K = np.array(index_K, np.int64)
        outside_K = given_K[(given_K < -1) | (given_K >= len(scored))]
        if len(outside_K):
            raise ValueError(f"index_K holds {outside_K[0]}; positions go from -1 to {len(scored) - 1}")
        index_U, count_U = np.unique(given_K[given_K >= 0], return_counts=True)
        if (count_U > 1).any():
            raise ValueError(f"index_K holds {index_U[count_U > 1][0]} twice; a slate holds an item once")
        propensity_K, distribution_KN = np.zeros(len(given_K)), np.zeros((len(given_K), len(scored)))
        slate = self._walk(query, scored, given_K, distribution_KN)
        propensity_K[: len(slate)] = slate.propensity_K
        flag_K = np.zeros(len(given_K), np.uint8)
        flag_K[: len(slate)] = slate.flag_K
        return Draw(propensity_K, distribution_KN, flag_K, slate.relaxed)

    def terms(self, query: Query, scored: Scored, index_K: NDArray[np.int64]) -> Terms:
        """What the chances of every candidate are made of, slot by slot, given a slate.

        Args:
            index_K: positions among the candidates, each once.
        """
        settings, row_N = self.settings, scored.candidates.row_N
        fresh_N = freshness(query.time_ms - self.items.published_ms_I[row_N], settings.half_life_days)
        diversity_KN = np.zeros((len(index_K), len(row_N)))
        if settings.diversity:
            vector_ND = taken(self.items.embedding_ID, row_N)
            gain_KN = novelty(vector_ND, index_K) if settings.diversity_by == "dpp" else -nearness(vector_ND, index_K)
            diversity_KN = settings.diversity * gain_KN
        return Terms(
            utility(scored.probability_NA, action_names=scored.action_names, weights=settings.weights).astype(float),
            settings.freshness_weight * fresh_N,
            self._ruled(query, row_N).boost_N,
            diversity_KN,
        )

    def _ruled(self, query: Query, row_N: NDArray[np.int64]) -> Ruled:
        ruled = Ruled.nothing(len(row_N)) if self.rules is None else self.rules.judged(query, row_N)
        for boosted, strength in query.boosts:
            ruled.boost_N[boosted.allowed_I[row_N]] += strength
        return ruled

    def _walk(
        self, query: Query, scored: Scored, given_K: NDArray[np.int64] | None, distribution_KN: NDArray[np.float64]
    ) -> Slate:
        """Fill the slots one after the other, with the given items or, without them, with drawn ones."""
        settings, row_N = self.settings, scored.candidates.row_N
        utility_N = utility(scored.probability_NA, action_names=scored.action_names, weights=settings.weights)
        age_ms_N = query.time_ms - self.items.published_ms_I[row_N]
        ruled = self._ruled(query, row_N)
        if query.order is not None:
            return _listed(utility_N, ~ruled.barred_N, query.size, given_K, distribution_KN)
        worth_N = utility_N + ruled.boost_N
        if settings.freshness_weight:
            worth_N += settings.freshness_weight * freshness(age_ms_N, settings.half_life_days)
        held = limits(
            settings,
            ruled,
            items=self.items,
            scored=scored,
            size=query.size,
            fresh_N=age_ms_N <= settings.fresh_days * DAY_MS,
        )
        pin_K, spanning = held.pool.pin_K, settings.diversity_by == "dpp"
        vector_ND = (
            taken(self.items.embedding_ID, row_N) if settings.diversity else np.zeros((len(row_N), 0), np.float32)
        )
        index_K, propensity_K, flag_K, given_up = walk(
            Knobs(settings.temperature, settings.epsilon, settings.fresh_floor, settings.diversity, spanning),
            worth_N,
            held,
            similarity(vector_ND, len(pin_K), spanning=spanning),
            (
                np.uint64(self.seed(query)),
                given_K is not None,
                _NONE_GIVEN if given_K is None else given_K,
                distribution_KN,
            ),
        )
        relaxed = [RELAXATION[level] for level in given_up[given_up >= 0].tolist()]
        if query.only_row_N is None and any(slot < len(pin_K) and pin_K[slot] < 0 for slot, _ in ruled.pins):
            relaxed.insert(0, RELAXATION[0])
        return Slate(index_K, utility_N, propensity_K, flag_K, tuple(relaxed))


def _listed(
    utility_N: NDArray[np.float32],
    open_N: NDArray[np.bool_],
    size: int,
    given_K: NDArray[np.int64] | None,
    distribution_KN: NDArray[np.float64],
) -> Slate:
    """The open candidates in their order, or how that fits a given slate.

    Args:
        distribution_KN: filled where it has rows.
    """
    size = min(size, int(open_N.sum()))
    index_K = np.flatnonzero(open_N)[:size] if given_K is None else given_K[:size]
    propensity_K, open_N = np.ones(len(index_K)), open_N.copy()
    if given_K is not None:
        for k, n in enumerate(index_K.tolist()):
            first = int(open_N.argmax())
            distribution_KN[k, first] = 1.0
            propensity_K[k] = first == n
            if n >= 0:
                open_N[n] = False
    return Slate(index_K, utility_N, propensity_K, np.zeros(len(index_K), np.uint8))


class Knobs(NamedTuple):
    """What the walk reads of the settings."""

    temperature: float
    epsilon: float
    fresh_floor: float
    diversity: float
    spanning: bool
