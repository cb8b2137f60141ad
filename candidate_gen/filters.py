"""Who may not be shown, one rule each. Every rule is a mask over the candidates: true is kept.

Shape letters: I items, L history, N candidates, X shown items.
"""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from candidate_gen.items import Items
from candidate_gen.row_sets import among
from candidate_gen.types import Candidates, HydratedQuery


@dataclass(frozen=True, slots=True)
class Disallowed:
    """Removes items that are not available or do not satisfy the query's filter, from the caller's own list too."""

    name: ClassVar[str] = "disallowed"

    def keep(self, hydrated: HydratedQuery, candidates: Candidates) -> NDArray[np.bool_]:
        if hydrated.allowed is None:
            return np.ones(len(candidates), np.bool_)
        return hydrated.allowed.allowed_I[candidates.row_N]


@dataclass(frozen=True, slots=True)
class Unpublished:
    """Removes items published after the time of the query, which a replay of an old query could otherwise show."""

    items: Items
    name: ClassVar[str] = "unpublished"

    def keep(self, hydrated: HydratedQuery, candidates: Candidates) -> NDArray[np.bool_]:
        return np.asarray(self.items.published_ms_I[candidates.row_N] <= hydrated.query.time_ms, np.bool_)


@dataclass(frozen=True, slots=True)
class Seen:
    """Removes what the history holds, but nothing from a list that the caller chose or ordered.

    Args:
        actions: codes (1 + position in the feature table's actions, 0 for one it does not know) that consume an
            item; None for any.
    """

    actions: frozenset[int] | None = None
    name: ClassVar[str] = "seen"

    def keep(self, hydrated: HydratedQuery, candidates: Candidates) -> NDArray[np.bool_]:
        if hydrated.query.only_row_N is not None or hydrated.listed_row_N is not None:
            return np.ones(len(candidates), np.bool_)
        history = hydrated.query.history
        row_L = history.row_L
        if self.actions is not None:
            row_L = row_L[np.isin(history.action_L, list(self.actions))]
        return ~among(candidates.row_N, row_L)


@dataclass(frozen=True, slots=True)
class Excluded:
    """Removes what the caller excluded, what earlier pages showed, and seeds, which the answer should only resemble."""

    name: ClassVar[str] = "excluded"

    def keep(self, hydrated: HydratedQuery, candidates: Candidates) -> NDArray[np.bool_]:
        query = hydrated.query
        return ~among(candidates.row_N, np.concatenate([query.exclude_row_X, query.before_row_X, query.seed_row_S]))


@dataclass(frozen=True, slots=True)
class Shown:
    """Removes what the user was shown lately, but nothing from a list that the caller chose or ordered.

    Where less than a page would be left, what was shown longest ago comes back.
    """

    name: ClassVar[str] = "shown"

    def keep(self, hydrated: HydratedQuery, candidates: Candidates) -> NDArray[np.bool_]:
        query = hydrated.query
        if query.only_row_N is not None or hydrated.listed_row_N is not None or not len(query.shown_row_X):
            return np.ones(len(candidates), np.bool_)
        kept_N = ~among(candidates.row_N, query.shown_row_X)
        missing = query.size - int(kept_N.sum())
        if missing > 0:
            at_X = candidates.positions(query.shown_row_X)
            kept_N[at_X[at_X >= 0][::-1][:missing]] = True
        return kept_N
