"""A history as one vector: as it is, or as it was before its newest entries came.

Places count from the newest entry, which is 0. An entry whose `history_item` is 0 is padding or a gap and counts for
nothing. As of place p means without what is newer: the entries at places below p.

Shape letters: B queries, L places, E embedding width, H heads, T states asked for, W width of a state.
"""

import math
from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from candidate_gen.embedding import FeatureEmbedder, filled
from candidate_gen.features import Feature

HistoryKind = Literal["mean", "attention", "transformer"]
AsOf = tuple[Tensor, Tensor]
"""Which query and as of which of its places, (T,) each."""


class Entries(nn.Module):
    """An entry as the sum of its id embeddings and its standardised numbers through a linear map; zeros for none."""

    def __init__(self, features: tuple[Feature, ...], *, dim: int) -> None:
        super().__init__()
        self.ids = [feature.name for feature in features if feature.kind == "id"]
        self.numbers = [feature.name for feature in features if feature.kind == "number"]
        self.number = nn.Linear(len(self.numbers), dim, bias=False) if self.numbers else None

    def columns(self, columns: Mapping[str, Tensor], as_of: AsOf | None = None) -> dict[str, Tensor]:
        """The history's columns, (B, L, ...) or as of the places asked for (T, L, ...), where L is the longest's."""
        held_L = filled(columns["history_item"]).any(0)
        places = int(held_L.nonzero().max()) + 1 if held_L.any() else 1
        held = {name: columns[name][:, :places] for name in (*self.ids, *self.numbers)}
        if as_of is None:
            return held
        row_T, place_T = as_of
        place_TL = place_T[:, None] + torch.arange(places, device=place_T.device)
        past_TL = place_TL < places
        shifted = {name: column[row_T[:, None], place_TL.clamp(max=places - 1)] for name, column in held.items()}
        return {
            name: column * past_TL.view(*past_TL.shape, *[1] * (column.ndim - 2)) for name, column in shifted.items()
        }

    def forward(self, columns: Mapping[str, Tensor], embedder: FeatureEmbedder) -> Tensor:
        first, *others = self.ids
        entry_BLE = embedder.embed(first, columns[first])
        for name in others:
            entry_BLE = entry_BLE + embedder.embed(name, columns[name])
        if self.number is not None:
            numbers = [embedder.standardise(name, columns[name]) for name in self.numbers]
            entry_BLE = entry_BLE + self.number(torch.stack(numbers, -1))
        return entry_BLE * filled(columns["history_item"]).unsqueeze(-1)


class MeanEncoder(nn.Module):
    """The mean of the entries, whatever their order; zeros where there are none."""

    def __init__(self, features: tuple[Feature, ...], *, dim: int) -> None:
        super().__init__()
        self.entries = Entries(features, dim=dim)
        self.width = dim

    def forward(self, columns: Mapping[str, Tensor], embedder: FeatureEmbedder, as_of: AsOf | None = None) -> Tensor:
        columns = self.entries.columns(columns, as_of)
        count_B1 = filled(columns["history_item"]).sum(1, keepdim=True)
        mean_BE: Tensor = self.entries(columns, embedder).sum(1) / count_B1.clamp(min=1)
        return mean_BE


class AttentionEncoder(nn.Module):
    """The mean of the entries, and one weighted mean a head, where weights follow from content and place.

    A history without entries gives zeros.
    """

    def __init__(self, features: tuple[Feature, ...], *, dim: int, heads: int) -> None:
        super().__init__()
        self.entries = Entries(features, dim=dim)
        self.position_LE = nn.Parameter(torch.zeros(features[0].shape[0], dim))
        self.weigh = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, heads, bias=False))
        self.width = dim * (1 + heads)

    def forward(self, columns: Mapping[str, Tensor], embedder: FeatureEmbedder, as_of: AsOf | None = None) -> Tensor:
        columns = self.entries.columns(columns, as_of)
        filled_BL1 = filled(columns["history_item"]).unsqueeze(-1)
        entry_BLE = self.entries(columns, embedder)
        entry_BLE = entry_BLE + self.position_LE[: entry_BLE.shape[1]] * filled_BL1
        logit_BLH = self.weigh(entry_BLE).masked_fill(~filled_BL1, torch.finfo(entry_BLE.dtype).min)
        heads_BHE = torch.softmax(logit_BLH, 1).transpose(1, 2) @ entry_BLE
        mean_BE = entry_BLE.sum(1) / filled_BL1.sum(1).clamp(min=1)
        return torch.cat([mean_BE, heads_BHE.flatten(1)], 1)


class TransformerEncoder(nn.Module):
    """The state of a causal transformer at the newest entry and the mean of what it read; zeros where there are none.

    A state follows from its own entry and those before it alone, and of these from their distance, not from how many
    follow: as of every place it is what a history that ended there would give, so that all of them are had at the
    cost of one. Kang and McAuley 2018, "Self-Attentive Sequential Recommendation", with learned weights of distances
    (Raffel et al. 2020, "Exploring the Limits of Transfer Learning") in place of learned positions.
    """

    def __init__(self, features: tuple[Feature, ...], *, dim: int, heads: int, blocks: int, dropout: float) -> None:
        super().__init__()
        self.entries = Entries(features, dim=dim)
        places = features[0].shape[0]
        self.norm_in = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(dim, heads=heads, places=places, dropout=dropout) for _ in range(blocks))
        self.norm_out = nn.LayerNorm(dim)
        self.width = 2 * dim

    def forward(self, columns: Mapping[str, Tensor], embedder: FeatureEmbedder, as_of: AsOf | None = None) -> Tensor:
        columns = self.entries.columns(columns)
        filled_BL = filled(columns["history_item"])
        rows, places = filled_BL.shape
        # Oldest first and without gaps: then what pads comes last, where no state looks.
        place_L = torch.arange(places, device=filled_BL.device)
        oldest_BL = torch.where(filled_BL, -place_L, 1).argsort(dim=1, stable=True)
        entry_BLE = self.entries(columns, embedder)
        state_BLE = entry_BLE.gather(1, oldest_BL.unsqueeze(-1).expand_as(entry_BLE))
        state_BLE = self.dropout(self.norm_in(state_BLE))
        mean_BLE = state_BLE.cumsum(1) / (1 + place_L[:, None])
        for block in self.blocks:
            state_BLE = block(state_BLE)
        older_BL = filled_BL.flip(1).cumsum(1).flip(1)
        if as_of is None:
            as_of = torch.arange(rows, device=filled_BL.device), place_L.new_zeros(rows)
        row_T, place_T = as_of
        count_T = torch.where(place_T < places, older_BL[row_T, place_T.clamp(max=places - 1)], 0)
        newest = row_T, (count_T - 1).clamp(min=0)
        vector_TW = torch.cat([self.norm_out(state_BLE[newest]), mean_BLE[newest]], 1)
        return vector_TW * (count_T > 0).unsqueeze(-1)


class Block(nn.Module):
    """Causal attention, then a two-layer network; each reads the normalised state and adds to it."""

    def __init__(self, dim: int, *, heads: int, places: int, dropout: float) -> None:
        super().__init__()
        self._heads = heads
        self.bias_HL = nn.Parameter(torch.zeros(heads, places))
        """What the distance between two entries adds to a logit."""
        self.attention_norm = nn.LayerNorm(dim)
        self.attention_in = nn.Linear(dim, 3 * dim, bias=False)
        self.attention_out = nn.Linear(dim, dim)
        self.network = nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, 2 * dim), nn.GELU(), nn.Linear(2 * dim, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, state_BLE: Tensor) -> Tensor:
        """
        Args:
            state_BLE: oldest first.
        """
        places = state_BLE.shape[1]
        parts = self.attention_in(self.attention_norm(state_BLE)).unflatten(-1, (3, self._heads, -1))
        read_BHLX, key_BHLX, value_BHLX = parts.permute(2, 0, 3, 1, 4)
        # Row i of the windows below, last first, holds the distances i, i - 1, ..., 0 and then what is yet to come.
        line = functional.pad(self.bias_HL[:, :places].flip(1), (0, places - 1), value=-math.inf)
        logit_HLL = line.unfold(1, places, 1).flip(1)
        mixed_BHLX = functional.scaled_dot_product_attention(read_BHLX, key_BHLX, value_BHLX, attn_mask=logit_HLL)
        state_BLE = state_BLE + self.dropout(self.attention_out(mixed_BHLX.transpose(1, 2).flatten(2)))
        added_BLE: Tensor = self.dropout(self.network(state_BLE))
        return state_BLE + added_BLE


def history_encoder(
    kind: HistoryKind, features: tuple[Feature, ...], *, dim: int, heads: int, blocks: int, dropout: float
) -> MeanEncoder | AttentionEncoder | TransformerEncoder:
    """
    Args:
        features: of the history, `history_item` among them.
        blocks: of the transformer, as is `dropout`.
    """
    if kind == "mean":
        return MeanEncoder(features, dim=dim)
    if kind == "attention":
        return AttentionEncoder(features, dim=dim, heads=heads)
    return TransformerEncoder(features, dim=dim, heads=heads, blocks=blocks, dropout=dropout)
