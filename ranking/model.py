"""The deep ranker: one logit an action for each (query, item) pair, whatever other candidates there are.

    query row -> embeddings -> query half --------------+
         +- history -> keys, values -> target attention +
                                              |         |
    item row -> embeddings -> item half ------+---------+-> x -> low-rank crosses -> experts -> a head an action
    pair row -> numbers --------------------------------+

The query half is computed once for a query, however many items it is paired with.

Shape letters: Q queries, N pairs, L history, D embedding width, X features side by side, R rank, E experts, Y and Z
widths of an expert's layers, A actions.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from candidate_gen.embedding import FeatureEmbedder, filled
from candidate_gen.features import FeatureTable

TARGET = ("item_id", "category", "creator")
"""Item features that come first and attend to the history."""
PAST = ("history_item", "history_category", "history_creator", "history_action")
"""Columns of the history that attention reads, side by side."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RankerShape:
    """How large the ranker is."""

    dim: int = 16
    """Width of every embedding and of the attention."""
    query_width: int = 32
    """Width of the query half after its projection."""
    cross_layers: int = 2
    rank: int = 32
    experts: int = 1
    """Small networks whose outputs each action mixes in its own way; one is a plain network that all share."""
    hidden: tuple[int, ...] = (64, 32)
    """Widths of each expert's layers; without any there are no experts, only what is linear in the crosses."""
    dropout: float = 0.1

    def __post_init__(self) -> None:
        sizes = {"dim": self.dim, "query_width": self.query_width, "rank": self.rank, "experts": self.experts}
        sizes |= {f"hidden[{i}]": width for i, width in enumerate(self.hidden)}
        for name, size in sizes.items():
            if size < 1:
                raise ValueError(f"{name} must be at least 1, got {size}")
        if self.cross_layers < 0:
            raise ValueError(f"cross_layers must not be negative, got {self.cross_layers}")
        if not 0 <= self.dropout < 1:
            raise ValueError(f"dropout must lie in [0, 1), got {self.dropout}")


@dataclass(frozen=True, slots=True)
class QueryHalf:
    """What the ranker needs to know of queries, whatever the item."""

    context_QX: Tensor
    key_QLD: Tensor
    value_QLD: Tensor
    bias_QL: Tensor
    """Added to the attention scores; -inf where the history is padding."""


class LowRankCross(nn.Module):
    """x_next = x_0 * (U V x + b) + x: explicit products of features, one order more a layer.

    Wang et al. 2021, "DCN V2: improved deep & cross network", equation 2.
    """

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.narrow = nn.Linear(width, rank, bias=False)
        self.widen = nn.Linear(rank, width)

    def forward(self, first_NX: Tensor, x_NX: Tensor) -> Tensor:
        return torch.addcmul(x_NX, first_NX, self.widen(self.narrow(x_NX)))


class ExpertLayer(nn.Module):
    """A layer of every expert, each on its own input."""

    def __init__(self, experts: int, before: int, after: int) -> None:
        super().__init__()
        bound = 1 / math.sqrt(before)
        self.weight_EYZ = nn.Parameter(torch.empty(experts, before, after).uniform_(-bound, bound))
        self.bias_EZ = nn.Parameter(torch.empty(experts, after).uniform_(-bound, bound))

    def forward(self, hidden_ENY: Tensor) -> Tensor:
        return torch.baddbmm(self.bias_EZ[:, None], hidden_ENY, self.weight_EYZ)


class Experts(nn.Module):
    """Logits (N, A) of networks that all actions share and each action mixes by a softmax of its own over x.

    Zero until trained. Ma et al. 2018, "Modeling task relationships in multi-task learning with multi-gate
    mixture-of-experts", equations 6 and 7, with a linear tower an action. One expert has no gates.
    """

    def __init__(self, width: int, shape: RankerShape, actions: int) -> None:
        super().__init__()
        self.count, hidden = shape.experts, shape.hidden
        self.first = nn.Linear(width, self.count * hidden[0])
        """The first layers of all experts side by side, expert by expert."""
        self.deeper = nn.ModuleList([ExpertLayer(self.count, *pair) for pair in pairwise(hidden)])
        self.gates = nn.Linear(width, actions * self.count) if self.count > 1 else None
        """Rows of an action are neighbours."""
        self.tower_AY = nn.Parameter(torch.zeros(actions, hidden[-1]))
        self.dropout = nn.Dropout(shape.dropout)

    def forward(self, x_NX: Tensor) -> Tensor:
        hidden_ENY: Tensor = self.first(x_NX).unflatten(1, (self.count, -1)).transpose(0, 1)
        hidden_ENY = self.dropout(functional.relu(hidden_ENY))
        for layer in self.deeper:
            hidden_ENY = self.dropout(functional.relu(layer(hidden_ENY)))
        said_ENA = hidden_ENY @ self.tower_AY.T
        if self.gates is None:
            return said_ENA[0]
        share_NAE = torch.softmax(self.gates(x_NX).unflatten(1, (-1, self.count)), 2)
        return (share_NAE * said_ENA.permute(1, 2, 0)).sum(2)


class Ranker(nn.Module):
    """Logits of P(action | query, item, examined) for every action of the table.

    Candidates do not see each other, and nothing is normalised over the batch. `linear`, `experts.first` and
    `experts.gates` all read the output of the last cross.
    """

    def __init__(self, table: FeatureTable, shape: RankerShape) -> None:
        super().__init__()
        self.shape = shape
        self.embed = FeatureEmbedder(table, "query", "item", "pair", dim=shape.dim)
        self.query_names = [feature.name for feature in table.of("query")]
        self.item_names = [*TARGET, *(f.name for f in table.of("item") if f.name not in TARGET)]
        self.pair_names = [feature.name for feature in table.of("pair")]
        dim = shape.dim
        self.context = nn.Linear(self.embed.width_of(self.query_names), shape.query_width)
        self.past = nn.Linear(len(PAST) * dim + 1, 2 * dim)
        self.recency = nn.Parameter(torch.zeros(()))
        self.target = nn.Linear(len(TARGET) * dim, dim)
        item_width, pair_width = self.embed.width_of(self.item_names), self.embed.width_of(self.pair_names)
        width = shape.query_width + item_width + pair_width + 2 * dim
        self.crosses = nn.ModuleList([LowRankCross(width, shape.rank) for _ in range(shape.cross_layers)])
        self.experts = Experts(width, shape, len(table.actions)) if shape.hidden else None
        self.linear = nn.Linear(width, len(table.actions))
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    def query_half(self, query: Mapping[str, Tensor]) -> QueryHalf:
        """Query columns, from `tensors`, to what every pair of theirs shares."""
        context_QX = functional.relu(self.context(self.embed(query, self.query_names)))
        hours_QL = self.embed.standardise("history_log_hours", query["history_log_hours"])
        past_QLX = torch.cat([*(self.embed.embed(name, query[name]) for name in PAST), hours_QL[..., None]], -1)
        key_QLD, value_QLD = self.past(past_QLX).chunk(2, -1)
        bias_QL = (self.recency * hours_QL).masked_fill(~filled(query["history_item"]), -torch.inf)
        return QueryHalf(context_QX, key_QLD, value_QLD, bias_QL)

    def forward(
        self,
        half: QueryHalf,
        item: Mapping[str, Tensor],
        pair: Mapping[str, Tensor],
        query_N: Tensor | None = None,
    ) -> Tensor:
        """Logits, (N, A).

        Args:
            item: item columns of each pair.
            pair: pair columns.
            query_N: position of each pair's query in `half`; without it, all pairs are of its only query.
        """
        item_NX = self.embed(item, self.item_names)
        pair_NX = self.embed(pair, self.pair_names)
        target_ND = self.target(item_NX[:, : self.target.in_features])
        interest_ND = _attend(half, target_ND, query_N)
        context_QX = half.context_QX
        context_NX = context_QX.expand(len(item_NX), -1) if query_N is None else context_QX[query_N]
        first_NX = torch.cat([context_NX, item_NX, pair_NX, interest_ND, interest_ND * target_ND], 1)
        x_NX = first_NX
        for cross in self.crosses:
            x_NX = cross(first_NX, x_NX)
        logit_NA: Tensor = self.linear(x_NX)
        return logit_NA if self.experts is None else logit_NA + self.experts(x_NX)


def _attend(half: QueryHalf, target_ND: Tensor, query_N: Tensor | None) -> Tensor:
    """The history as each item sees it, (N, D): a softmax that can also attend to nothing (a score of 0, value 0).

    So an empty history gives zeros. Zhou et al. 2018, "Deep interest network for click-through rate prediction",
    with a scaled dot product in place of its activation unit.
    """
    scale = 1 / math.sqrt(target_ND.shape[1])
    if query_N is None:
        score_NL = torch.addmm(half.bias_QL, target_ND, half.key_QLD[0].T, alpha=scale)
        return torch.softmax(functional.pad(score_NL, (1, 0)), 1)[:, 1:] @ half.value_QLD[0]
    score_NL = (half.key_QLD[query_N] @ target_ND[..., None])[..., 0] * scale + half.bias_QL[query_N]
    weight_NL = torch.softmax(functional.pad(score_NL, (1, 0)), 1)[:, 1:]
    return (weight_NL[:, None] @ half.value_QLD[query_N])[:, 0]
