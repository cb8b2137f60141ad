"""Batches of queries for the softmax over the whole catalogue, each query once with all that was taken on it.

Examples whose query rows are equal are one query: of a user about whom only the id is known there is one, whatever
the number of positives. What a softmax over all items costs goes by the number of queries.

Shape letters: N examples, Q distinct queries, T their positives, P those of one process's part of a batch, W those of
the whole batch.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from training.learning.batches import Examples


@dataclass(frozen=True, slots=True)
class Sets:
    """Distinct queries and, query by query, their positives."""

    query: dict[str, Tensor]
    start_Q1: NDArray[np.int64]
    """Where the positives of each query begin, and where the last ones end."""
    positive_row_T: Tensor
    weight_T: Tensor

    @classmethod
    def of(cls, examples: Examples) -> "Sets":
        """Of examples with one positive each."""
        count = len(examples.weight_N)
        bytes_N = [column.reshape(count, -1).numpy().view(np.uint8) for column in examples.query.values()]
        packed = np.ascontiguousarray(np.concatenate(bytes_N, 1))
        row_N = packed.view(np.dtype((np.void, packed.shape[1])))[:, 0]
        _, first_Q, query_N = np.unique(row_N, return_index=True, return_inverse=True)
        order_T = torch.from_numpy(np.argsort(query_N, kind="stable"))
        return cls(
            {name: column[torch.from_numpy(first_Q)] for name, column in examples.query.items()},
            np.concatenate([[0], np.cumsum(np.bincount(query_N))]),
            examples.positive_row_NP[order_T, 0],
            examples.weight_N[order_T],
        )


@dataclass(frozen=True, slots=True)
class SetBatch:
    """One process's part of a batch."""

    query: dict[str, Tensor]
    query_P: Tensor
    """Whose each positive is, ascending."""
    item_row_P: Tensor
    weight_P: Tensor
    positive_row_W: Tensor
    share: float
    """The part's weight over the mean weight of a part."""


class SetBatches:
    """A pass over the queries in the order of a new permutation.

    Args:
        size: positives of a batch, about; a query is never cut.
        part: which of how many processes gets it; each gets its part of the same batches.
    """

    def __init__(self, sets: Sets, *, size: int, seed: tuple[int, int], part: tuple[int, int] = (0, 1)) -> None:
        self._sets = sets
        self._seed = seed
        self._part = part
        self._count_Q = np.diff(sets.start_Q1)
        self._batches = max(1, min(int(self._count_Q.sum()) // size, len(self._count_Q) // part[1]))

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[SetBatch]:
        order_Q = np.random.default_rng(self._seed).permutation(len(self._count_Q))
        for query_R in np.array_split(order_Q, self._batches):
            yield self._batch(query_R)

    def _batch(self, query_R: NDArray[np.int64]) -> SetBatch:
        sets, (process, processes) = self._sets, self._part
        mine = query_R[process::processes]
        at_P, whole_W = self._positives(mine), self._positives(query_R)
        weight_P, weight_W = sets.weight_T[at_P], sets.weight_T[whole_W]
        return SetBatch(
            {name: values[torch.from_numpy(mine)] for name, values in sets.query.items()},
            torch.from_numpy(np.repeat(np.arange(len(mine)), self._count_Q[mine])),
            sets.positive_row_T[at_P],
            weight_P,
            sets.positive_row_T[whole_W],
            processes * float(weight_P.sum() / weight_W.sum()) if processes > 1 else 1.0,
        )

    def _positives(self, query_R: NDArray[np.int64]) -> Tensor:
        """Where the positives of these queries are, query by query."""
        count_R = self._count_Q[query_R]
        first_R = self._sets.start_Q1[query_R] - np.cumsum(count_R) + count_R
        return torch.from_numpy(np.repeat(first_R, count_R) + np.arange(count_R.sum()))
