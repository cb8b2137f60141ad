"""The query tower as it serves: one query at a time, without the calls of torch, which cost far more than its sums.

Every sum is in a fixed order and on one thread, so a query has the same bits whatever else runs and however often.

Shape letters: B queries, D vector width, E embedding width, F numbers of an entry, L entries, P those of all queries,
H heads, X columns in, Y columns out, Z hidden columns.
"""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray
from torch import Tensor, nn

from candidate_gen.history import AttentionEncoder, MeanEncoder
from candidate_gen.row_embedding import PastEmbedding, RowEmbedding
from candidate_gen.towers import Towers

QueryEncoder = Callable[[np.ndarray], NDArray[np.float32]]
"""The vector (D,) of one query record, (1,). Any threads may share it."""

_HALF, _ONE, _TINY = np.float32(0.5), np.float32(1), np.float32(1e-12)
_ROOT = np.float32(math.sqrt(0.5))
_compiled: Any = njit(cache=True, nogil=True, boundscheck=False)


def query_encoder(towers: Towers) -> QueryEncoder:
    """What serving encodes queries with: `towers.encode_queries` of one row, but for the order of sums.

    Compiled are towers with the mean of a history or attention to it, and with a correction; others are asked
    themselves, and so are those with factors of a graph or a step over it.
    """
    history = towers.query_tower.history
    graph = towers.graph is not None or towers.propagation is not None
    if graph or not towers.shape.hidden or not isinstance(history, AttentionEncoder | MeanEncoder):
        return lambda row: towers.encode_queries(row)[0]
    return CompiledQueryTower(towers, history)


class CompiledQueryTower:
    """Vectors within 1e-5 of the trained tower's, as it is now. Embedding tables are shared with it, not copied.

    Args:
        history: the encoder of the tower, which has a correction and nothing of a graph.
    """

    def __init__(self, towers: Towers, history: AttentionEncoder | MeanEncoder) -> None:
        embed, table, entries = towers.embedder, towers.table, history.entries
        self._known = RowEmbedding(embed, table, "query", towers.query_tower.names)
        self._past = PastEmbedding(embed, table, entries.ids, entries.numbers)
        self._unit = towers.shape.similarity == "cosine"
        width = embed.dim
        number_FE = np.zeros((0, width), np.float32) if entries.number is None else _layer(entries.number)[0]
        if isinstance(history, AttentionEncoder):
            place_LE = _fixed(history.position_LE)
            (first_EE, bias_E), (last_EH, _) = _layer(history.weigh[0]), _layer(history.weigh[2])
        else:
            place_LE = np.zeros((self._past.length, width), np.float32)
            first_EE, bias_E, last_EH = np.zeros((width, 0), "f4"), np.zeros(0, "f4"), np.zeros((0, 0), "f4")
        self._history = number_FE, place_LE, first_EE, bias_E, last_EH
        projection = towers.query_tower.projection
        assert projection.bent is not None
        straight_XD, _ = _layer(projection.straight)
        narrow_XZ, bias_Z = _layer(projection.bent[0])
        self._projection = np.concatenate([straight_XD, narrow_XZ], 1), bias_Z, *_layer(projection.bent[2])

    def __call__(self, row: np.ndarray) -> NDArray[np.float32]:
        vector_D: NDArray[np.float32] = _vector(
            self._known(row), self._past(row), self._history, self._projection, self._unit
        )
        return vector_D

    def of_many(self, rows: np.ndarray) -> NDArray[np.float32]:
        """Vectors (B, D) of many query records, (B,), each with the bits that it has alone."""
        place_P, entry_PX, offset_B1 = self._past.of_many(rows)
        vector_BD: NDArray[np.float32] = _vectors(
            self._known(rows), (place_P, entry_PX, offset_B1), self._history, self._projection, self._unit
        )
        return vector_BD


def encoded(encode_query: QueryEncoder, rows: np.ndarray) -> NDArray[np.float32]:
    """Vectors (B, D) of many query records, (B,), at least one, each with the bits that it has alone."""
    if isinstance(encode_query, CompiledQueryTower):
        return encode_query.of_many(rows)
    return np.stack([encode_query(rows[b : b + 1]) for b in range(len(rows))])


def _fixed(weight: Tensor) -> NDArray[np.float32]:
    """A copy."""
    return np.array(weight.detach().cpu().numpy(), order="C")


def _layer(layer: nn.Module) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Weights (X, Y) and bias (Y,) of a linear layer."""
    assert isinstance(layer, nn.Linear)
    weight_XY = _fixed(layer.weight.T)
    return weight_XY, np.zeros(weight_XY.shape[1], np.float32) if layer.bias is None else _fixed(layer.bias)


# What is compiled has plain loops: expressions of arrays take several times as long to compile.


@_compiled
def _vector(known_BX, past, history, projection, unit):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    both_XY, bias_Z, widen_ZD, bias_D = projection
    known, width = known_BX.shape[1], len(bias_D)
    input_X = np.zeros(len(both_XY), np.float32)
    _add(known_BX[0], input_X)
    _remember(past, history, input_X[known:])
    sum_Y = np.zeros(both_XY.shape[1], np.float32)
    vector_D, hidden_Z = sum_Y[:width], sum_Y[width:]
    _add(bias_D, vector_D)
    _add(bias_Z, hidden_Z)
    _add_product(input_X, both_XY, sum_Y)
    _bend(hidden_Z)
    _add_product(hidden_Z, widen_ZD, vector_D)
    length = _ONE
    if unit:
        square = np.float32(0)
        for d in range(width):
            square += vector_D[d] * vector_D[d]
        length = max(np.float32(math.sqrt(square)), _TINY)
    out_D = np.empty(width, np.float32)
    for d in range(width):
        out_D[d] = vector_D[d] / length
    return out_D


@_compiled
def _vectors(known_BX, past, history, projection, unit):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    place_P, entry_PX, offset_B1 = past
    vector_BD = np.empty((len(known_BX), len(projection[3])), np.float32)
    for b in range(len(known_BX)):
        first, after = offset_B1[b], offset_B1[b + 1]
        own = (place_P[first:after], entry_PX[first:after])
        vector_BD[b] = _vector(known_BX[b : b + 1], own, history, projection, unit)
    return vector_BD


@_compiled
def _remember(past, history, out_X):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    """Add the mean of the entries to zeros, then a weighted mean a head."""
    place_L, entry_LX = past
    number_FE, place_LE, first_EE, bias_E, last_EH = history
    count, width, heads = len(place_L), place_LE.shape[1], last_EH.shape[1]
    ids = entry_LX.shape[1] - len(number_FE)
    state_LE = np.zeros((count, width), np.float32)
    logit_LH = np.zeros((count, heads), np.float32)
    for at in range(count):
        state_E = state_LE[at]
        for x in range(0, ids, width):
            _add(entry_LX[at, x : x + width], state_E)
        _add_product(entry_LX[at, ids:], number_FE, state_E)
        _add(place_LE[place_L[at]], state_E)
        if heads > 0:
            hidden_E = np.zeros(width, np.float32)
            _add(bias_E, hidden_E)
            _add_product(state_E, first_EE, hidden_E)
            _bend(hidden_E)
            _add_product(hidden_E, last_EH, logit_LH[at])
        for e in range(width):
            out_X[e] += state_E[e] / np.float32(count)
    for head in range(heads):
        largest, total = np.float32(-np.inf), np.float32(0)
        for at in range(count):
            largest = max(largest, logit_LH[at, head])
        for at in range(count):
            logit_LH[at, head] = math.exp(logit_LH[at, head] - largest)
            total += logit_LH[at, head]
        for at in range(count):
            share = logit_LH[at, head] / total
            for e in range(width):
                out_X[(1 + head) * width + e] += share * state_LE[at, e]


@_compiled
def _add(in_X, out_X):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    """To the first of them."""
    for x in range(len(in_X)):
        out_X[x] += in_X[x]


@_compiled
def _add_product(in_X, weight_XY, out_Y):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    for x in range(len(in_X)):
        value = in_X[x]
        for y in range(len(out_Y)):
            out_Y[y] += value * weight_XY[x, y]


@_compiled
def _bend(value_X):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    """GELU, in place."""
    for x in range(len(value_X)):
        value_X[x] *= _HALF * (_ONE + math.erf(value_X[x] * _ROOT))
