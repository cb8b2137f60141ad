"""The query tower and the item tower: one vector each, whose inner product is what retrieval ranks by.

The code that trains is the code that builds the index; there is no export step whose result could differ. A single
query is encoded by `candidate_gen.compiled_tower`, from the same weights.

Shape letters: B queries, I items, W input width, D vector width.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn import functional

from candidate_gen.embedding import INITIAL_SCALE, FeatureEmbedder, tensors
from candidate_gen.features import FeatureTable
from candidate_gen.history import AsOf, HistoryKind, history_encoder
from candidate_gen.propagation import Propagation
from candidate_gen.spectral import GraphFactors

_WEIGHTS = "towers.safetensors"
_DESCRIPTION = "towers.json"
_DRAWN_IN = 0.2


Similarity = Literal["cosine", "dot"]


@dataclass(frozen=True, slots=True, kw_only=True)
class TowerShape:
    """Dimensions of both towers."""

    width: int = 64
    """Of what is learned of a query or an item, which is its vector where nothing stands beside it."""
    similarity: Similarity = "cosine"
    """What is learned has length 1, or any (dot), for which a temperature of about 1 suits."""
    embedding: int = 32
    """Of every id."""
    hidden: int = 128
    """Of the correction to a linear map; 0 for none, and no map either where an id alone is as wide as the vector."""
    history: HistoryKind = "attention"
    """What becomes of the history: its mean; and beside it weighted means, or the state of a causal transformer."""
    heads: int = 4
    """Of the attention over the history; of the transformer's, whose width is that of an id."""
    blocks: int = 2
    """Of the transformer."""
    dropout: float = 0.2
    """Share of what the transformer's blocks read and add that is hidden in training."""
    id_dropout: float = 0.1
    """Share of training rows whose own id is hidden, so that what else is known of it must carry it alone."""
    start: int = 0
    """Factors of the graph of who took what from which the vectors start; see `candidate_gen.spectral`."""
    spectral: int = 0
    """Such factors beside what is learned. They widen the vectors, and those of items are then shorter than 1."""
    propagation: float = 0.0
    """Weight of a step over the graph after training; see `candidate_gen.propagation`. Items are then shorter too."""

    def __post_init__(self) -> None:
        for name in ("width", "embedding", "hidden", "heads", "blocks", "spectral"):
            least = 0 if name in ("hidden", "spectral") else 1
            if getattr(self, name) < least:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least {least}")
        if not 0 <= self.start <= self.width:
            raise ValueError(f"start is {self.start}; it must be at least 0 and at most width, {self.width}")
        if self.propagation < 0 or (self.propagation and self.spectral):
            raise ValueError(
                f"propagation is {self.propagation} and spectral {self.spectral}; both must be at least 0 and one be 0"
            )
        for name in ("id_dropout", "dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 0 and below 1")
        if self.similarity not in get_args(Similarity):
            raise ValueError(f"similarity is {self.similarity!r}; it must be {' or '.join(get_args(Similarity))}")
        if self.history not in get_args(HistoryKind):
            raise ValueError(f"history is {self.history!r}; it must be one of {', '.join(get_args(HistoryKind))}")
        if self.history == "transformer" and self.embedding % self.heads:
            raise ValueError(f"heads is {self.heads}; with a transformer it must divide embedding, {self.embedding}")

    @property
    def whole(self) -> int:
        """Width of the vectors that the index holds."""
        return self.width + self.spectral


class Projection(nn.Module):
    """A linear map plus a two-layer correction plus a start, scaled to length 1 where a cosine is wanted.

    Without the correction, what nothing is known of has a vector of its own.
    """

    def __init__(self, width: int, shape: TowerShape) -> None:
        super().__init__()
        hidden, out = shape.hidden, shape.width
        self._unit = shape.similarity == "cosine"
        maps = hidden or width != out
        self.straight = nn.Linear(width, out, bias=False) if maps else nn.Identity()
        self.bent = nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, out)) if hidden else None
        self.unknown_D = None if hidden else nn.Parameter(torch.randn(out) * INITIAL_SCALE)

    def forward(self, input_BW: Tensor, start_BD: Tensor | float = 0.0) -> Tensor:
        vector_BD = self.straight(input_BW) + start_BD
        if self.bent is not None:
            vector_BD = vector_BD + self.bent(input_BW)
        elif self.unknown_D is not None:
            vector_BD = torch.where((vector_BD != 0).any(1, keepdim=True), vector_BD, self.unknown_D)
        return functional.normalize(vector_BD, dim=1) if self._unit else vector_BD


class QueryTower(nn.Module):
    """User, context, typed text and history to a vector. Takes whatever the feature table has of them."""

    def __init__(self, table: FeatureTable, embedder: FeatureEmbedder, shape: TowerShape) -> None:
        super().__init__()
        past = tuple(f for f in table.of("query") if f.owner == "history" and f.shape)
        self.names = [f.name for f in table.of("query") if f not in past]
        self._id_dropout = shape.id_dropout
        self._width = shape.width
        self.history = (
            history_encoder(
                shape.history,
                past,
                dim=shape.embedding,
                heads=shape.heads,
                blocks=shape.blocks,
                dropout=shape.dropout,
            )
            if past
            else None
        )
        width = embedder.width_of(self.names) + (self.history.width if self.history else 0)
        self.projection = Projection(width, shape)

    def forward(
        self,
        columns: Mapping[str, Tensor],
        embedder: FeatureEmbedder,
        graph: GraphFactors | None,
        as_of: AsOf | None,
    ) -> Tensor:
        parts = []
        shown = _hide(columns, "user_id", self._id_dropout) if self.training else columns
        if self.names:
            known = embedder(shown, self.names)
            parts.append(known if as_of is None else known[as_of[0]])
        if self.history is not None:
            parts.append(self.history(columns, embedder, as_of))
        start_BD = graph.start(graph.queries(shown, embedder, as_of), width=self._width) if graph else 0.0
        vector_BD: Tensor = self.projection(torch.cat(parts, 1), start_BD)
        return vector_BD


class ItemTower(nn.Module):
    """Id, content and text of an item to a vector."""

    def __init__(self, embedder: FeatureEmbedder, shape: TowerShape) -> None:
        super().__init__()
        self._names = [f.name for f in embedder.features if f.owner == "item"]
        self._id_dropout = shape.id_dropout
        self._width = shape.width
        self.projection = Projection(embedder.width_of(self._names), shape)

    def forward(self, columns: Mapping[str, Tensor], embedder: FeatureEmbedder, graph: GraphFactors | None) -> Tensor:
        shown = _hide(columns, "item_id", self._id_dropout) if self.training else columns
        start_BD = graph.start(graph.items(shown, embedder), width=self._width) if graph else 0.0
        vector_BD: Tensor = self.projection(embedder(shown, self._names), start_BD)
        return vector_BD


class Towers(nn.Module):
    """The pair, with the embeddings they share: what a history holds is described as what is being retrieved.

    Counters of an item are left out. They differ between the time of an example and the
    time of the build, and they would tell a new item from an old one, which must land near its kind.
    """

    def __init__(self, table: FeatureTable, shape: TowerShape, *, temperature: float) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}; it must be above 0")
        self.table = table
        self.shape = shape
        self.temperature = temperature
        counters = [name for name, _ in table.counters]
        self.embedder = FeatureEmbedder(table, "query", "item", dim=shape.embedding, without=counters)
        self.query_tower = QueryTower(table, self.embedder, shape)
        self.item_tower = ItemTower(self.embedder, shape)
        factors = max(shape.start, shape.spectral)
        self.graph = GraphFactors(table, start=shape.start, spectral=shape.spectral) if factors else None

        self.propagation = (
            Propagation(table, weight=shape.propagation, width=shape.width) if shape.propagation else None
        )

    def fit_graph(self, query_row_T: np.ndarray, item_row_T: np.ndarray, *, seed: int) -> None:
        """Take the factors of training's pairs of query and item, if any are wanted; see `GraphFactors.fit`.

        Ids that are vectors of their own are drawn in, so that chance does not hide what the graph says.
        """
        if self.graph is None:
            return
        self.graph.fit(self.embedder, query_row_T, item_row_T, seed=seed)
        with torch.no_grad():
            for tower, name in ((self.query_tower, "user_id"), (self.item_tower, "item_id")):
                weight = self.embedder.tables[name].weight
                assert isinstance(weight, nn.Parameter)
                if isinstance(tower.projection.straight, nn.Identity):
                    weight.mul_(_DRAWN_IN)

    def propagate(self, query_row_T: np.ndarray, item_row_T: np.ndarray) -> None:
        """Once trained, take the step over training's pairs of query and item, if one is wanted."""
        if self.propagation is not None:
            query_TD, item_TD = self.encode_queries(query_row_T), self.encode_items(item_row_T)
            self.propagation.fit(self.embedder, query_row_T, item_row_T, query_TD=query_TD, item_TD=item_TD)

    def query_vectors(self, columns: Mapping[str, Tensor], as_of: AsOf | None = None) -> Tensor:
        """(B, D), from `tensors(row_B, table.of("query"))`; with gradients and, while training, dropout.

        While training only what is learned: it does not depend on what stands beside it or is propagated.

        Args:
            as_of: which query, and as of which place of its history, for each vector (T, D) that is asked for; see
                `candidate_gen.history`. All else of a query is as it is. Without, each query once, as it is.
        """
        vector_BD: Tensor = self.query_tower(columns, self.embedder, self.graph, as_of)
        if self.propagation is not None and not self.training:
            return self.propagation.queries(vector_BD, columns, self.embedder, as_of)
        if self.graph is None or not self.shape.spectral or self.training:
            return vector_BD
        return self.graph.beside_queries(vector_BD, self.graph.queries(columns, self.embedder, as_of))

    def item_vectors(self, columns: Mapping[str, Tensor]) -> Tensor:
        """(I, D), from `tensors(row_I, table.of("item"))`; likewise."""
        vector_ID: Tensor = self.item_tower(columns, self.embedder, self.graph)
        if self.propagation is not None and not self.training:
            return self.propagation.items(vector_ID, columns, self.embedder)
        if self.graph is None or not self.shape.spectral or self.training:
            return vector_ID
        return self.graph.beside_items(vector_ID, columns, self.embedder)

    def encode_queries(self, row_B: np.ndarray, *, batch: int = 4096) -> NDArray[np.float32]:
        """Unit vectors (B, D) of query records, as served."""
        return self._encode(row_B, batch, items=False)

    def encode_items(self, row_I: np.ndarray, *, batch: int = 4096) -> NDArray[np.float32]:
        """Vectors (I, D) of item records, as served: unit vectors, or shorter where factors stand beside."""
        return self._encode(row_I, batch, items=True)

    def _encode(self, rows: np.ndarray, batch: int, *, items: bool) -> NDArray[np.float32]:
        rows = np.atleast_1d(rows)
        features = self.table.of("item" if items else "query")
        vectors = np.empty((len(rows), self.shape.whole), np.float32)
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
        towers.map_weights(folder)
        if towers.fingerprint != described["fingerprint"]:
            raise ValueError(
                f"{folder / _WEIGHTS} has fingerprint {towers.fingerprint}, its description {described['fingerprint']}"
            )
        return towers.eval()

    def map_weights(self, folder: Path) -> None:
        """Read in place what `save` wrote: processes share it, and what was read of an earlier map leaves the memory.

        Raises:
            ValueError: where they are of other towers.
        """
        map_weights(self, folder / _WEIGHTS)


def _hide(columns: Mapping[str, Tensor], name: str, share: float) -> Mapping[str, Tensor]:
    """`columns` with the id `name` unknown in a random share of the rows."""
    if name not in columns or not share:
        return columns
    ids = columns[name]
    kept = (torch.rand(len(ids), device=ids.device) >= share).reshape(-1, *[1] * (ids.ndim - 1))
    return {**columns, name: ids * kept}


def map_weights(module: nn.Module, path: Path) -> None:
    """Read the weights of a module in place, so that processes share them.

    Raises:
        ValueError: where they are of another one.
    """
    try:
        module.load_state_dict(load_file(path), assign=True)
    except RuntimeError as error:
        raise ValueError(f"{path} does not fit its description: {' '.join(str(error).split())}") from None
