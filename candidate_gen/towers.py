"""The query tower and the item tower: one unit vector each, whose inner product is what retrieval ranks by.

The code that trains is the code that serves; there is no export step whose result could differ.

Shape letters: B queries, I items, L history, E embedding width, H heads, W input width, D vector width.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from candidate_gen.embedding import FeatureEmbedder, filled, tensors
from candidate_gen.features import Feature, FeatureTable

_WEIGHTS = "towers.safetensors"
_DESCRIPTION = "towers.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerShape:
    """Dimensions of both towers."""

    width: int = 64
    """Of the vectors that the index holds."""
    embedding: int = 32
    """Of every id."""
    hidden: int = 128
    heads: int = 4
    """Of the attention over the history."""
    id_dropout: float = 0.1
    """Share of training rows whose own id is hidden, so that what else is known of it must carry it alone."""

    def __post_init__(self) -> None:
        for name in ("width", "embedding", "hidden", "heads"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0 <= self.id_dropout < 1:
            raise ValueError(f"id_dropout is {self.id_dropout}; it must be at least 0 and below 1")


class HistoryEncoder(nn.Module):
    """A history as one vector: its mean, and one weighted mean a head, where weights follow from content and place.

    An entry is the sum of its id embeddings, its standardised numbers through a linear map, and its position
    (0 is the newest). A history without entries gives zeros.
    """

    def __init__(self, features: tuple[Feature, ...], *, dim: int, heads: int) -> None:
        super().__init__()
        self._ids = [feature.name for feature in features if feature.kind == "id"]
        self._numbers = [feature.name for feature in features if feature.kind == "number"]
        length = features[0].shape[0]
        self.position_LE = nn.Parameter(torch.zeros(length, dim))
        self.number = nn.Linear(len(self._numbers), dim, bias=False) if self._numbers else None
        self.weigh = nn.Sequential(nn.Linear(dim, dim), nn.GELU(), nn.Linear(dim, heads, bias=False))
        self.width = dim * (1 + heads)

    def forward(self, columns: Mapping[str, Tensor], embedder: FeatureEmbedder) -> Tensor:
        filled_BL1 = filled(columns["history_item"]).unsqueeze(-1)
        entry_BLE = self.position_LE.expand(len(filled_BL1), -1, -1)
        for name in self._ids:
            entry_BLE = entry_BLE + embedder.embed(name, columns[name])
        if self.number is not None:
            numbers = [embedder.standardise(name, columns[name]) for name in self._numbers]
            entry_BLE = entry_BLE + self.number(torch.stack(numbers, -1))
        entry_BLE = entry_BLE * filled_BL1
        logit_BLH = self.weigh(entry_BLE).masked_fill(~filled_BL1, torch.finfo(entry_BLE.dtype).min)
        heads_BHE = torch.softmax(logit_BLH, 1).transpose(1, 2) @ entry_BLE
        mean_BE = entry_BLE.sum(1) / filled_BL1.sum(1).clamp(min=1)
        return torch.cat([mean_BE, heads_BHE.flatten(1)], 1)


class Projection(nn.Module):
    """A linear map plus a two-layer correction, scaled to length 1."""

    def __init__(self, width: int, *, hidden: int, out: int) -> None:
        super().__init__()
        self.straight = nn.Linear(width, out, bias=False)
        self.bent = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, out))

    def forward(self, input_BW: Tensor) -> Tensor:
        return functional.normalize(self.straight(input_BW) + self.bent(input_BW), dim=1)


class QueryTower(nn.Module):
    """User, context, typed text and history to a unit vector. Takes whatever the feature table has of them."""

    def __init__(self, table: FeatureTable, embedder: FeatureEmbedder, shape: TowerShape) -> None:
        super().__init__()
        past = tuple(f for f in table.of("query") if f.owner == "history" and f.shape)
        self._names = [f.name for f in table.of("query") if f not in past]
        self._id_dropout = shape.id_dropout
        self.history = HistoryEncoder(past, dim=shape.embedding, heads=shape.heads) if past else None
        width = embedder.width_of(self._names) + (self.history.width if self.history else 0)
        self.projection = Projection(width, hidden=shape.hidden, out=shape.width)

    def forward(self, columns: Mapping[str, Tensor], embedder: FeatureEmbedder) -> Tensor:
        parts = []
        if self._names:
            shown = _hide(columns, "user_id", self._id_dropout) if self.training else columns
            parts.append(embedder(shown, self._names))
        if self.history is not None:
            parts.append(self.history(columns, embedder))
        vector_BD: Tensor = self.projection(torch.cat(parts, 1))
        return vector_BD


class ItemTower(nn.Module):
    """Id, content and text of an item to a unit vector."""

    def __init__(self, embedder: FeatureEmbedder, shape: TowerShape) -> None:
        super().__init__()
        self._names = [f.name for f in embedder.features if f.owner == "item"]
        self._id_dropout = shape.id_dropout
        self.projection = Projection(embedder.width_of(self._names), hidden=shape.hidden, out=shape.width)

    def forward(self, columns: Mapping[str, Tensor], embedder: FeatureEmbedder) -> Tensor:
        shown = _hide(columns, "item_id", self._id_dropout) if self.training else columns
        vector_BD: Tensor = self.projection(embedder(shown, self._names))
        return vector_BD


class Towers(nn.Module):
    """The pair, with the embeddings they share: what a history holds is described as what is being retrieved.

    Counters of an item (`log_shown`, the rates) are left out. They differ between the time of an example and the
    time of the build, and they would tell a new item from an old one, which must land near its kind.
    """

    def __init__(self, table: FeatureTable, shape: TowerShape, *, temperature: float) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}; it must be above 0")
        self.table = table
        self.shape = shape
        self.temperature = temperature
        counters = ("log_shown", *(f"{action}_rate" for action in table.actions))
        self.embedder = FeatureEmbedder(table, "query", "item", dim=shape.embedding, without=counters)
        self.query_tower = QueryTower(table, self.embedder, shape)
        self.item_tower = ItemTower(self.embedder, shape)

    def query_vectors(self, columns: Mapping[str, Tensor]) -> Tensor:
        """(B, D), from `tensors(row_B, table.of("query"))`; with gradients and, while training, dropout."""
        vector_BD: Tensor = self.query_tower(columns, self.embedder)
        return vector_BD

    def item_vectors(self, columns: Mapping[str, Tensor]) -> Tensor:
        """(I, D), from `tensors(row_I, table.of("item"))`; with gradients and, while training, dropout."""
        vector_ID: Tensor = self.item_tower(columns, self.embedder)
        return vector_ID

    def encode_queries(self, row_B: np.ndarray, *, batch: int = 4096) -> NDArray[np.float32]:
        """Unit vectors (B, D) of query records, as served."""
        return self._encode(row_B, batch, items=False)

    def encode_items(self, row_I: np.ndarray, *, batch: int = 4096) -> NDArray[np.float32]:
        """Unit vectors (I, D) of item records, as served."""
        return self._encode(row_I, batch, items=True)

    def _encode(self, rows: np.ndarray, batch: int, *, items: bool) -> NDArray[np.float32]:
        rows = np.atleast_1d(rows)
        features = self.table.of("item" if items else "query")
        vectors = np.empty((len(rows), self.shape.width), np.float32)
        was_training = self.training
        if was_training:
            self.eval()
        with torch.inference_mode():
            for first in range(0, len(rows), batch):
                columns = tensors(rows[first : first + batch], features)
                part = self.item_vectors(columns) if items else self.query_vectors(columns)
                vectors[first : first + batch] = part.numpy()
        if was_training:
            self.train()
        return vectors

    @property
    def fingerprint(self) -> str:
        """Identifies every vector the towers can make: 16 hexadecimal digits over weights, shape and feature table."""
        digest = sha256(json.dumps([asdict(self.shape), self.temperature, self.table.fingerprint]).encode())
        for name, weight in sorted(self.state_dict().items()):
            digest.update(f"{name} {weight.dtype} {tuple(weight.shape)}".encode())
            digest.update(weight.detach().cpu().contiguous().numpy().reshape(-1).data)
        return digest.hexdigest()[:16]

    def save(self, folder: Path) -> None:
        """Write `towers.safetensors` and `towers.json`."""
        weights = {name: weight.detach().cpu().contiguous() for name, weight in self.state_dict().items()}
        save_file(weights, folder / _WEIGHTS)
        description = {
            "shape": asdict(self.shape),
            "temperature": self.temperature,
            "table": self.table.fingerprint,
            "fingerprint": self.fingerprint,
        }
        (folder / _DESCRIPTION).write_text(json.dumps(description, indent=2) + "\n")

    @classmethod
    def load(cls, folder: Path, table: FeatureTable) -> "Towers":
        """What `save` wrote, ready to serve.

        Raises:
            ValueError: where the towers were trained on another feature table, or the weights are not those that
                the description describes.
        """
        described = json.loads((folder / _DESCRIPTION).read_text())
        if described["table"] != table.fingerprint:
            raise ValueError(
                f"{folder / _DESCRIPTION} was trained on feature table {described['table']}, not on {table.fingerprint}"
            )
        towers = cls(table, TowerShape(**described["shape"]), temperature=described["temperature"])
        try:
            towers.load_state_dict(load_file(folder / _WEIGHTS))
        except RuntimeError as error:
            raise ValueError(
                f"{folder / _WEIGHTS} does not fit its description: {' '.join(str(error).split())}"
            ) from None
        if towers.fingerprint != described["fingerprint"]:
            raise ValueError(
                f"{folder / _WEIGHTS} has fingerprint {towers.fingerprint}, its description {described['fingerprint']}"
            )
        return towers.eval()


def _hide(columns: Mapping[str, Tensor], name: str, share: float) -> Mapping[str, Tensor]:
    """`columns` with the id `name` unknown in a random share of the rows."""
    if name not in columns or not share:
        return columns
    ids = columns[name]
    kept = (torch.rand(len(ids), device=ids.device) >= share).reshape(-1, *[1] * (ids.ndim - 1))
    return {**columns, name: ids * kept}
