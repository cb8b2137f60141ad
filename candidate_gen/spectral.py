"""What the graph of who took what says of users and items, for the towers to start from or to stand beside them.

R is the users x items matrix of ones where a user took an item, d the numbers of ones in its rows and columns,
A = D_u^-1/2 R D_i^-1/2. The first right singular vectors V of A hold an item as others see it, through who takes what
together. A user is where the items point that they took, sum_i d_i^-1/2 V_i: a multiple of row u of A V = U S.
This is the ideal low-pass filter of Shen et al. 2021, "How Powerful is Graph Convolution for Recommendation?".

Shape letters: T pairs of user and item, U users, I items, K factors, S factors computed, X rows to be added up,
D width, B rows of a table, L history, N known item ids, M known user ids.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from candidate_gen.embedding import INITIAL_SCALE, FeatureEmbedder
from candidate_gen.features import FeatureTable
from candidate_gen.history import AsOf

_PASSES = 4
_SPARE = 16
"""Factors that are computed beside those wanted, for the last of these to be right."""


class Graph:
    """Who took what, each pair once.

    Args:
        user_T: below `users`.
        item_T: below `items`.
    """

    def __init__(self, user_T: NDArray[np.int64], item_T: NDArray[np.int64], *, users: int, items: int) -> None:
        key_T = np.unique(user_T * items + item_T)
        user_T, item_T = key_T // items, key_T % items
        by_item_T = np.argsort(item_T, kind="stable")
        self._taken = torch.from_numpy(item_T), _starts(user_T, users)
        self._takers = torch.from_numpy(user_T[by_item_T]), _starts(item_T[by_item_T], items)
        self.taken_U = torch.from_numpy(np.bincount(user_T, minlength=users))
        """How many items each user took."""
        self.takers_I = torch.from_numpy(np.bincount(item_T, minlength=items))
        """How many users took each item."""

    def over_items(self, each_ID: Tensor) -> Tensor:
        """(U, D): sums over the items that a user took."""
        member_T, start_U = self._taken
        return functional.embedding_bag(member_T, each_ID, start_U, mode="sum")

    def over_users(self, each_UD: Tensor) -> Tensor:
        """(I, D): sums over the users that took an item."""
        member_T, start_I = self._takers
        return functional.embedding_bag(member_T, each_UD, start_I, mode="sum")


def spectral_factors(graph: Graph, width: int, *, seed: int) -> Tensor:
    """The first right singular vectors of A, (I, width), orthogonal and of length 1; zeros where A has no more.

    An item that nobody took has zeros.

    Subspace iteration from random vectors of the seed (Halko, Martinsson and Tropp 2011, "Finding Structure with
    Randomness", algorithm 4.4) with some spare vectors: exact where that is the rank of A, else close.
    """
    users, items = len(graph.taken_U), len(graph.takers_I)
    user_U1, item_I1 = (count.clamp(min=1).rsqrt()[:, None] for count in (graph.taken_U, graph.takers_I))

    def onto_users(basis_IS: Tensor) -> Tensor:
        return user_U1 * graph.over_items(item_I1 * basis_IS)

    kept = min(width, users, items)
    spread = min(kept + _SPARE, users, items)
    basis_IS = torch.from_numpy(np.random.default_rng(seed).standard_normal((items, spread), np.float32))
    for _ in range(_PASSES):
        basis_IS = torch.linalg.qr(item_I1 * graph.over_users(user_U1 * onto_users(basis_IS))).Q
    part_US = onto_users(basis_IS)
    square_S, turn_SS = torch.linalg.eigh(part_US.T @ part_US)
    factor_IK = (basis_IS @ turn_SS).flip(1)[:, :kept] * (square_S.flip(0)[:kept] > 1e-5)
    return functional.pad(factor_IK * (graph.takers_I > 0)[:, None], (0, width - kept))


class GraphFactors(nn.Module):
    """The factors of the users and items of rows, as a start for what is learned of them and to stand beside it.

    An item's are zeros where training did not know it. A query's are folded from the history of its row, so that a user
    whom training did not know has some too; where the table has no history they are those of the user in training.

    Args:
        start: factors from which learned vectors start.
        spectral: factors that stand beside them.
    """

    item_NK: Tensor
    """d_i^-1/2 V_i, by place among the known ids: what an item adds to where its users are."""
    user_MK: Tensor
    """Where users are; one row where queries have histories."""
    takers_N: Tensor
    longest: Tensor
    """Length of the longest item when a learned vector of length 1 and the factors are side by side."""

    def __init__(self, table: FeatureTable, *, start: int, spectral: int) -> None:
        super().__init__()
        missing = [name for name in ("user_id", "item_id") if name not in table]
        if missing:
            raise ValueError(f"start or spectral is above 0; the feature table has no {' and no '.join(missing)}")
        self._start, self._spectral = start, spectral
        self._by_history = "history_item" in table
        for name in ("item_NK", "user_MK"):
            self.register_buffer(name, torch.zeros(1, max(start, spectral)))
        self.register_buffer("takers_N", torch.zeros(1, dtype=torch.int64))
        self.register_buffer("longest", torch.ones(()))

    def fit(self, embedder: FeatureEmbedder, query_row_T: np.ndarray, item_row_T: np.ndarray, *, seed: int) -> None:
        """Take the factors of the graph of pairs: who asked each query, and the item that was taken then.

        Args:
            embedder: knows all their ids.
        """
        graph, _, _ = pairs_of(embedder, query_row_T, item_row_T)
        self.item_NK = spectral_factors(graph, self.item_NK.shape[1], seed=seed)
        self.item_NK *= graph.takers_I.clamp(min=1).rsqrt()[:, None]
        self.takers_N = graph.takers_I
        self.longest = (1 + (self.takers_N * self.item_NK[:, : self._spectral].norm(dim=1)).square().max()).sqrt()
        if not self._by_history:
            self.user_MK = graph.over_items(self.item_NK)

    def items(self, columns: Mapping[str, Tensor], embedder: FeatureEmbedder) -> Tensor:
        """(B, K), from columns of item rows."""
        return by_place(self.item_NK, "item_id", columns, embedder)

    def queries(self, columns: Mapping[str, Tensor], embedder: FeatureEmbedder, as_of: AsOf | None = None) -> Tensor:
        """(B, K), from columns of query rows; (T, K) for those asked for by `as_of` (see `candidate_gen.history`)."""
        if not self._by_history:
            return by_place(self.user_MK, "user_id", columns, embedder)
        each_BLK = by_place(self.item_NK, "history_item", columns, embedder)
        return each_BLK.sum(1) if as_of is None else each_BLK.flip(1).cumsum(1).flip(1)[as_of]

    def start(self, factor_BK: Tensor, *, width: int) -> Tensor:
        """What vectors (B, width) of users or items start from: as long as an embedding is at first, or zeros."""
        start_BD = functional.normalize(factor_BK[:, : self._start], dim=1) * (INITIAL_SCALE * width**0.5)
        return functional.pad(start_BD, (0, width - self._start))

    def beside_queries(self, vector_BD: Tensor, factor_BK: Tensor) -> Tensor:
        """Vectors of length 1 with the factors beside them, of length 1 again: (B, D + spectral)."""
        beside_BK = functional.normalize(factor_BK[:, : self._spectral], dim=1)
        return functional.normalize(torch.cat([vector_BD, beside_BK], 1), dim=1)

    def beside_items(self, vector_BD: Tensor, columns: Mapping[str, Tensor], embedder: FeatureEmbedder) -> Tensor:
        """Vectors of length 1 with d_i^1/2 V_i beside them, of length 1 at most: (B, D + spectral).

        The inner product with a query is that of the learned vectors plus the rating of the low-pass filter, to scale.
        """
        factor_BK = self.items(columns, embedder)[:, : self._spectral]
        takers_B = by_place(self.takers_N[:, None], "item_id", columns, embedder)
        return torch.cat([vector_BD, takers_B * factor_BK], 1) / self.longest

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *others: object) -> None:
        load_rows(self, ("item_NK", "user_MK", "takers_N"), state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *others)


def pairs_of(
    embedder: FeatureEmbedder, query_row_T: np.ndarray, item_row_T: np.ndarray
) -> tuple[Graph, NDArray[np.int64], NDArray[np.int64]]:
    """The graph of pairs of query and item, and the user and the item of each pair, all as places among the known ids.

    Pairs without a known user or item are no part of the graph.
    """
    user_T, item_T = (
        embedder.places(name, torch.from_numpy(np.array(rows[name], order="C"))).numpy()
        for name, rows in (("user_id", query_row_T), ("item_id", item_row_T))
    )
    known_T = (user_T > 0) & (item_T > 0)
    users, items = embedder.count("user_id"), embedder.count("item_id")
    return Graph(user_T[known_T], item_T[known_T], users=users, items=items), user_T, item_T


def by_place(rows: Tensor, name: str, columns: Mapping[str, Tensor], embedder: FeatureEmbedder) -> Tensor:
    """Rows of the known ids; place 0, of the unknown, has zeros, and so has all before there was a fit."""
    places = embedder.places(name, columns[name])
    return rows[places] if len(rows) > 1 else rows.expand(*places.shape, -1)


def load_rows(module: nn.Module, names: tuple[str, ...], state_dict: Mapping[str, Tensor], prefix: str) -> None:
    """Make room for buffers whose number of rows is data, not a shape to agree on."""
    for name in names:
        stored, own = state_dict.get(f"{prefix}{name}"), getattr(module, name)
        if stored is not None and stored.ndim == own.ndim:
            setattr(module, name, own.new_empty(len(stored), *own.shape[1:]))


def _starts(group_T: NDArray[np.int64], groups: int) -> Tensor:
    """Where each group begins among the ascending."""
    return torch.from_numpy(np.searchsorted(group_T, np.arange(groups)))
