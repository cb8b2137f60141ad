"""The policy is the sampler: everything that can change a slate happens inside the draw.

Shape letters: K slots, N candidates, F feasible candidates of a slot, D embedding width.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from candidate_gen.items import Items
from candidate_gen.types import Query
from index.strings import key64
from policy.constraints import SlateConstraints
from policy.diversity import SlateSimilarity
from policy.settings import PolicySettings
from policy.types import Draw, Slate, SlotFlag
from policy.value import DAY_MS, freshness, utility
from ranking.types import Scored


@dataclass(frozen=True, slots=True)
class SlatePolicy:
    """Draws slates, and says how likely it was to draw one.

    Slot by slot the adjusted utility of a candidate is its utility, minus `diversity` times its largest cosine
    similarity to the slate so far, plus `freshness_weight` halved with every `half_life_days` of its age. The slot
    is drawn from `slot_distribution` of the adjusted utilities of the feasible candidates (`SlateConstraints`).

    The draw is a function of the settings, the generation, the query and the candidates in their order.
    """

    settings: PolicySettings
    items: Items
    generation: str

    def seed(self, query: Query) -> int:
        """Seed of the query's draw."""
        return key64(f"{self.generation}/{query.request_id}")

    def select(self, query: Query, scored: Scored) -> Slate:
        """Draw a slate of `query.size` candidates, or of all where there are fewer.

        Raises:
            ValueError: for a weight of an action that was not predicted and for a probability that is not finite.
        """
        walk = self._walk(query, scored)
        slots_K = np.arange(len(walk.index_K))
        propensity_K = walk.distribution_KN[slots_K, walk.index_K]
        return Slate(walk.index_K, walk.utility_N, propensity_K, walk.flag_K, walk.relaxed)

    def propensity_of(self, query: Query, scored: Scored, index_K: NDArray[np.int64]) -> Draw:
        """How this policy would have drawn a given slate, by the code that draws.

        Args:
            index_K: positions among the candidates; -1 for an item that is not among them, which has propensity 0
                and, for the slots after it, took a place and nothing else (no cap, no similarity, no freshness).
                May stop before this policy would, and is then a prefix; the slots that go beyond what it would
                fill have propensity 0.

        Raises:
            ValueError: for a position outside the candidates or given twice, and as `select` does.
        """
        given_K = np.asarray(index_K, np.int64)
        outside_K = given_K[(given_K < -1) | (given_K >= len(scored))]
        if len(outside_K):
            raise ValueError(f"index_K holds {outside_K[0]}; positions go from -1 to {len(scored) - 1}")
        index_U, count_U = np.unique(given_K[given_K >= 0], return_counts=True)
        if (count_U > 1).any():
            raise ValueError(f"index_K holds {index_U[count_U > 1][0]} twice; a slate holds an item once")
        walk = self._walk(query, scored, given_K)
        distribution_KN = np.zeros((len(given_K), len(scored)))
        distribution_KN[: len(walk.distribution_KN)] = walk.distribution_KN
        if not len(scored):
            return Draw(np.zeros(len(given_K)), distribution_KN)
        propensity_K = distribution_KN[np.arange(len(given_K)), given_K]
        return Draw(np.where(given_K >= 0, propensity_K, 0.0), distribution_KN)

    def _walk(self, query: Query, scored: Scored, given_K: NDArray[np.int64] | None = None) -> "_Walk":
        """Fill the slots one after the other, with the given items or, without them, with drawn ones."""
        settings = self.settings
        utility_N = utility(scored.probability_NA, action_names=scored.action_names, weights=settings.weights)
        row_N = scored.candidates.row_N
        age_ms_N = query.time_ms - self.items.published_ms_I[row_N]
        worth_N = utility_N.astype(np.float64)
        if settings.freshness_weight:
            worth_N += settings.freshness_weight * freshness(age_ms_N, settings.half_life_days)
        similarity = SlateSimilarity(self.items.embedding_ID[row_N]) if settings.diversity else None
        size = max(0, min(query.size, len(scored)))
        constraints = SlateConstraints(
            settings,
            size=size,
            category_N=scored.item_row_N["category"],
            creator_N=scored.item_row_N["creator"],
            fresh_N=age_ms_N <= settings.fresh_days * DAY_MS,
        )
        if given_K is None:
            chance_K = np.random.default_rng(self.seed(query)).random(size)
        else:
            size = min(size, len(given_K))
        index_K = np.empty(size, np.int64)
        flag_K = np.zeros(size, np.uint8)
        distribution_KN = np.zeros((size, len(scored)))
        relaxed: dict[str, None] = {}
        for k in range(size):
            feasible = constraints.feasible()
            index_F = np.flatnonzero(feasible.mask_N)
            adjusted_F = worth_N[index_F]
            if similarity:
                adjusted_F -= settings.diversity * similarity.max_N[index_F]
            probability_F = slot_distribution(adjusted_F, settings.temperature, settings.epsilon)
            distribution_KN[k, index_F] = probability_F
            index = int(given_K[k] if given_K is not None else index_F[position_at(probability_F, chance_K[k])])
            index_K[k] = index
            flag_K[k] = (
                SlotFlag.EXPLORED * (index != index_F[adjusted_F.argmax()])
                | SlotFlag.FRESH_QUOTA * feasible.fresh_only
                | SlotFlag.RELAXED * bool(feasible.relaxed)
            )
            relaxed |= dict.fromkeys(feasible.relaxed)
            constraints.place(index)
            if similarity and index >= 0:
                similarity.place(index)
        return _Walk(index_K, utility_N, distribution_KN, flag_K, tuple(relaxed))


@dataclass(frozen=True, slots=True)
class _Walk:
    """Every slot with the distribution that it was, or would have been, drawn from."""

    index_K: NDArray[np.int64]
    utility_N: NDArray[np.float32]
    distribution_KN: NDArray[np.float64]
    flag_K: NDArray[np.uint8]
    relaxed: tuple[str, ...]


def slot_distribution(adjusted_F: NDArray[np.float64], temperature: float, epsilon: float) -> NDArray[np.float64]:
    """P(f) = (1 - epsilon) softmax(adjusted / temperature)_f + epsilon / F, for one or more feasible items.

    Temperature 0 is the limit: all of the first term goes to the largest, the first of them where several are.
    Never above 1, and exactly 1 for a single item.
    """
    if temperature == 0:
        greedy_F = np.zeros(len(adjusted_F))
        greedy_F[adjusted_F.argmax()] = 1.0
    else:
        # The largest exponent is 0; one so small that it overflows to -inf has probability 0, as it should.
        with np.errstate(over="ignore"):
            greedy_F = np.exp((adjusted_F - adjusted_F.max()) / temperature)
        greedy_F /= greedy_F.sum()
    return (1 - epsilon) * greedy_F + epsilon / len(adjusted_F)


def position_at(probability_F: NDArray[np.float64], chance: float) -> int:
    """Inverse of the cumulative distribution at `chance` in [0, 1]; never a position of probability 0."""
    cumulative_F = probability_F.cumsum()
    index = int(cumulative_F.searchsorted(chance * cumulative_F[-1], side="right"))
    # The product can round up to the total, which lies beyond every position.
    return index if index < len(probability_F) else int(probability_F.nonzero()[0][-1])
