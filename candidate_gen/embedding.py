"""Feature rows as one dense vector: what the towers and the ranker have in common.

Shape letters: B rows, L list entries, H hashes, D embedding width, F number features, K known ids.
"""

from collections.abc import Collection, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from candidate_gen.features import Feature, FeatureTable, RowKind

INITIAL_SCALE = 0.05
FARTHEST = 8.0
"""Deviations from the mean at which a number is cut."""


def tensors(rows: np.ndarray, features: Sequence[Feature]) -> dict[str, Tensor]:
    """Columns of feature records as tensors of their own, by feature name: int32 ids (B, *shape), float32 numbers.

    Args:
        rows: records that hold the features, (B,); a single record is a batch of one. May be read-only.
    """
    rows_B = np.atleast_1d(rows)
    return {feature.name: torch.from_numpy(np.array(rows_B[feature.name], order="C")) for feature in features}


class FeatureEmbedder(nn.Module):
    """Turns the features of some kinds of row into vectors.

    An id becomes a row of an embedding table, the sum of its rows where it is spread over several hashes; features
    that share a table (`Feature.shares`) share the weights. Id 0 is unknown or padding and is the zero vector. A
    list becomes the mean of its entries that are not padding, zero where there are none. A number is standardised
    by the mean and deviation of the training rows and cut at 8 deviations.

    Both `fit_` methods describe the training rows; the result is part of the weights. Without them numbers pass as
    they are and every id counts as known.

    Args:
        rows: kinds of row whose features it takes.
        dim: width of every embedding.
        without: names of features to leave out.
    """

    mean_F: Tensor
    scale_F: Tensor

    def __init__(self, table: FeatureTable, *rows: RowKind, dim: int, without: Collection[str] = ()) -> None:
        super().__init__()
        self.dim = dim
        self.features = tuple(f for row in rows for f in table.of(row) if f.name not in without)
        """What it takes, in the order of the rows' bytes."""
        self._feature = {feature.name: feature for feature in self.features}
        self._table_of = {f.name: f.shares or f.name for f in self.features if f.kind == "id"}
        size_of = {name: table[name].size for name in self._table_of.values()}
        self.tables = nn.ModuleDict(
            {name: nn.Embedding(size, dim, padding_idx=0) for name, size in sorted(size_of.items())}
        )
        for name in self.tables:
            self.register_buffer(f"known_{name}", torch.empty(0, dtype=torch.int64))
            with torch.no_grad():
                self._weight(name)[1:].normal_(std=INITIAL_SCALE)
        numbers = [feature.name for feature in self.features if feature.kind == "number"]
        self._number = {name: f for f, name in enumerate(numbers)}
        self.register_buffer("mean_F", torch.zeros(len(numbers)))
        self.register_buffer("scale_F", torch.ones(len(numbers)))

    @property
    def width(self) -> int:
        """Width of `forward` over every feature."""
        return self.width_of([feature.name for feature in self.features])

    def width_of(self, names: Sequence[str]) -> int:
        """Width of `forward` over the features named."""
        return sum(self.dim if name in self._table_of else 1 for name in names)

    def fit_numbers(self, *rows: np.ndarray) -> None:
        """Take mean and deviation of number features from training rows of one kind or several.

        A feature that never varied is switched off (scale 0): what training could not learn from must not move a
        score when it starts to vary. Lists count their entries that are not padding; one without any, or a batch of
        no rows, is switched off too.
        """
        for rows_B in rows:
            for name, f in self._number.items():
                if name not in (rows_B.dtype.names or ()):
                    continue
                values = rows_B[name].astype(np.float64)
                if self._feature[name].shape:
                    values = values[filled(torch.from_numpy(np.array(rows_B["history_item"], order="C"))).numpy()]
                mean = float(values.mean()) if values.size else 0.0
                deviation = float(values.std()) if values.size else 0.0
                varies = deviation > 1e-6 * max(1.0, abs(mean))
                self.mean_F[f] = mean
                self.scale_F[f] = 1 / deviation if varies else 0.0

    def fit_ids(self, *rows: np.ndarray) -> None:
        """Take the known ids of every table from training rows; ids held by none of them count as 0 from here on.

        A hashed id that was never trained on would otherwise be the sum of other ids' rows or of random ones. The
        rows of all its hashes together tell an id from nearly every other.
        """
        held: dict[str, list[np.ndarray]] = {name: [np.zeros(1, np.int64)] for name in self.tables}
        for rows_B in rows:
            for name, table_name in self._table_of.items():
                if name in (rows_B.dtype.names or ()):
                    held[table_name].append(self._distinct_keys(name, rows_B[name]))
        for name, keys_of in held.items():
            setattr(self, f"known_{name}", torch.from_numpy(np.unique(np.concatenate(keys_of))))

    def known(self, name: str, ids: Tensor) -> Tensor:
        """`ids` of one id feature with those that training never saw replaced by 0."""
        if not self.count(name):
            return ids
        held = self.places(name, ids) > 0
        return ids * (held.unsqueeze(-1) if self._feature[name].hashes > 1 else held)

    def places(self, name: str, ids: Tensor) -> Tensor:
        """Where `ids`, (...) or with hashes (..., H), are among the known ids of their table; 0 for unknown."""
        known_K: Tensor = getattr(self, f"known_{self._table_of[name]}")
        keys = self._keys(name, ids)
        if not len(known_K):
            return torch.zeros_like(keys)
        at = torch.searchsorted(known_K, keys).clamp_(max=len(known_K) - 1)
        return at * (known_K[at] == keys)

    def count(self, name: str) -> int:
        """How many ids of the table of feature `name` are known, 0 among them; 0 before `fit_ids`."""
        return len(getattr(self, f"known_{self._table_of[name]}"))

    def embed(self, name: str, ids: Tensor) -> Tensor:
        """Vectors (..., D) of ids of one feature, (...) or with its hashes (..., H); nothing is pooled.

        Histories and targets that share a table can be compared entry by entry.
        """
        table = self.tables[self._table_of[name]]
        vectors: Tensor = table(self.known(name, ids))
        return vectors.sum(-2) if self._feature[name].hashes > 1 else vectors

    def standardise(self, name: str, values: Tensor) -> Tensor:
        """Values of one number feature, any shape, in deviations from the training mean."""
        f = self._number[name]
        return ((values - self.mean_F[f]) * self.scale_F[f]).clamp(-FARTHEST, FARTHEST)

    def forward(self, columns: Mapping[str, Tensor], names: Sequence[str] | None = None) -> Tensor:
        """The features named, or all, side by side: (B, width).

        Ids and lists come first, then plain numbers, each in the order of `names`.

        Args:
            columns: from `tensors`; a list of numbers also needs `history_item`, which tells what is padding.
        """
        wanted = [self._feature[name] for name in names] if names is not None else self.features
        parts: list[Tensor] = []
        plain: list[str] = []
        for feature in wanted:
            column = columns[feature.name]
            if feature.kind == "number" and not feature.shape:
                plain.append(feature.name)
            elif feature.kind == "number":
                filled_BL = filled(columns["history_item"])
                total_B = (self.standardise(feature.name, column) * filled_BL).sum(1)
                parts.append((total_B / filled_BL.sum(1).clamp(min=1))[:, None])
            elif len(feature.shape) > (feature.hashes > 1):
                parts.append(self._mean(feature, column))
            else:
                parts.append(self.embed(feature.name, column))
        if plain:
            f = [self._number[name] for name in plain]
            values_BF = torch.stack([columns[name] for name in plain], 1)
            parts.append(((values_BF - self.mean_F[f]) * self.scale_F[f]).clamp(-FARTHEST, FARTHEST))
        return torch.cat(parts, 1)

    def _mean(self, feature: Feature, ids: Tensor) -> Tensor:
        ids = self.known(feature.name, ids)
        held_BL = (ids > 0).any(-1) if feature.hashes > 1 else ids > 0
        table = self.tables[self._table_of[feature.name]]
        assert isinstance(table, nn.Embedding)
        total_BD = nn.functional.embedding_bag(
            ids.flatten(1), table.weight, mode="sum", padding_idx=0, sparse=table.sparse
        )
        return total_BD / held_BL.sum(1, keepdim=True).clamp(min=1)

    def _distinct_keys(self, name: str, ids: np.ndarray) -> np.ndarray:
        feature = self._feature[name]
        if feature.hashes == 1:
            held = np.zeros(feature.size, np.bool_)
            held[ids] = True
            return np.flatnonzero(held)
        keys: np.ndarray = np.unique(self._keys(name, torch.from_numpy(np.array(ids, order="C"))).numpy())
        return keys

    def _keys(self, name: str, ids: Tensor) -> Tensor:
        """One 64-bit number an id: its hashes as digits."""
        feature = self._feature[name]
        if feature.hashes == 1:
            return ids.to(torch.int64)
        digits = torch.tensor([feature.size**h for h in range(feature.hashes)], device=ids.device)
        return (ids.to(torch.int64) * digits).sum(-1)

    def _weight(self, table_name: str) -> nn.Parameter:
        weight = self.tables[table_name].weight
        assert isinstance(weight, nn.Parameter)
        return weight

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *others: object) -> None:
        """The number of known ids is data, not a shape to agree on."""
        for name in self.tables:
            stored = state_dict.get(f"{prefix}known_{name}")
            if stored is not None and stored.ndim == 1:
                setattr(self, f"known_{name}", torch.empty_like(stored))
        super()._load_from_state_dict(state_dict, prefix, *others)


def filled(item: Tensor) -> Tensor:
    """Which entries of `history_item`, (B, L) or with hashes (B, L, H), are not padding: (B, L)."""
    return (item > 0).any(-1) if item.ndim > 2 else item > 0
