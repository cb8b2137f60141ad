"""What retrieval takes and makes. Shape letters: L history, S sources, N candidates, X shown items."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from candidate_gen.understanding import Understood
from index.masks import Mask
from index.types import Hits

NO_ROWS = np.empty(0, np.int64)
_Value = TypeVar("_Value", bound=np.generic)


@dataclass(frozen=True, slots=True)
class History:
    """What a user did, newest first. Rows are positions in the item table of the generation that serves the query."""

    row_L: NDArray[np.int64] = field(default_factory=lambda: NO_ROWS)
    action_L: NDArray[np.int32] = field(default_factory=lambda: np.empty(0, np.int32))
    """1 + position of the action in the feature table's actions; 0 is an action it does not know."""
    time_ms_L: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))

    def __len__(self) -> int:
        return len(self.row_L)


@dataclass(frozen=True, slots=True)
class Order:
    """By an attribute instead of utility."""

    attribute: str
    descending: bool = False


@dataclass(frozen=True, slots=True)
class Query:
    """One request: who, when, what was typed, recent history.

    Together with a generation it determines the answer, so that a logged query can be run again: nothing below
    the wire reads a clock, a store or a random source of its own.
    """

    request_id: str
    time_ms: int
    surface: str
    size: int
    user_id: str = ""
    """Empty for an anonymous request."""
    text: str = ""
    """What is searched for, which need not be what was typed; empty for a recommendation."""
    understood: Understood | None = None
    """What was typed as it was understood; None where it is searched for as it is."""
    history: History = field(default_factory=History)
    features: Mapping[str, str | float] = field(default_factory=dict)
    """Values of query-owned features that the caller sent; they go before the stored profile."""
    seed_row_S: NDArray[np.int64] = field(default_factory=lambda: NO_ROWS)
    """Items the answer should be similar to."""
    exclude_row_X: NDArray[np.int64] = field(default_factory=lambda: NO_ROWS)
    shown_row_X: NDArray[np.int64] = field(default_factory=lambda: NO_ROWS)
    """What the user was shown lately and is not to be shown again so soon, last first."""
    only_row_N: NDArray[np.int64] | None = None
    """The caller's own list to rank; then no source is asked."""
    filter: str = ""
    """A condition on attributes that every item shown satisfies, see `candidate_gen.predicates`; empty for none."""
    live: Mapping[str, Hits] = field(default_factory=dict)
    """What the sources said that learn while they serve, by name, when this was asked."""
    fill: bool = False
    """Where the filter leaves less than a page, popular items that it refuses follow."""
    boosts: tuple[tuple[Mask, float], ...] = ()
    """Items, and what is added to their utility."""
    mix: Mapping[str, float] = field(default_factory=dict)
    """Of what was typed: the sources that are asked and their weights against each other; empty: as the generation
    has it."""
    order: Order | None = None
    """Of what was typed: the matches are listed in this order, and nothing is drawn."""
    page: int = 0
    """Pages before this one."""
    before_row_X: NDArray[np.int64] = field(default_factory=lambda: NO_ROWS)
    """What they showed, which is not shown again."""


@dataclass(frozen=True, slots=True)
class Candidates:
    """Items proposed for one query, not yet judged, each once, with every source that named it."""

    row_N: NDArray[np.int64]
    source_names: tuple[str, ...]
    rank_NS: NDArray[np.int16]
    """0-based rank inside each source; -1 where the source did not name the item."""
    score_NS: NDArray[np.float32]
    """The source's own score, in its own scale; 0 where the source did not name the item."""

    def __post_init__(self) -> None:
        shape = (len(self.row_N), len(self.source_names))
        if self.rank_NS.shape != shape or self.score_NS.shape != shape:
            raise ValueError(f"ranks {self.rank_NS.shape} and scores {self.score_NS.shape} do not fit {shape}")

    def __len__(self) -> int:
        return len(self.row_N)

    def positions(self, row_K: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where each of some rows stands among the candidates; -1 for one that is none of them."""
        is_KN = row_K[:, None] == self.row_N
        return np.where(is_KN.any(axis=1), np.pad(is_KN, ((0, 0), (0, 1)), constant_values=True).argmax(axis=1), -1)

    def keep(self, kept_N: NDArray[np.bool_]) -> "Candidates":
        """Those where `kept_N` is true, in the same order."""
        if kept_N.shape != self.row_N.shape:
            raise ValueError(f"a mask of {kept_N.shape} for {len(self)} candidates")
        return self.take(np.flatnonzero(kept_N))

    def take(self, index_N: NDArray[np.int64]) -> "Candidates":
        """Those at these positions, in this order."""
        return Candidates(self.row_N[index_N], self.source_names, self.rank_NS[index_N], self.score_NS[index_N])


@dataclass(frozen=True, slots=True)
class HydratedQuery:
    """A query with its feature row and its vector, made once and read by every stage."""

    query: Query
    row: np.ndarray
    """One record of the feature table's query dtype, shape (1,)."""
    vector_D: NDArray[np.float32]
    """The query tower's output, of length 1."""
    allowed: Mask | None = None
    """Items that are available and satisfy the query's filter; None for all."""
    defaulted: tuple[str, ...] = ()
    """Features whose default stands for something that was wanted: a value sent that is unknown or not finite, the
    row of a user that the generation does not hold."""
    listed_row_N: NDArray[np.int64] | None = None
    """What matches the query, in the order that it asks for; then no source is asked."""


def by_source(
    value_NS: NDArray[_Value], names: Sequence[str], wanted: Sequence[str], *, missing: int
) -> NDArray[_Value]:
    """Columns of sources, in the order of `names`, as columns of those that are wanted.

    Args:
        missing: stands in a column of a source that is none of `names`.
    """
    wanted_NS = np.full((len(value_NS), len(wanted)), missing, value_NS.dtype)
    for s, name in enumerate(wanted):
        if name in names:
            wanted_NS[:, s] = value_NS[:, list(names).index(name)]
    return wanted_NS
