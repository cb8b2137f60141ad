"""Batches of examples for the towers, cut from tensors that are already in memory.

Shape letters: N examples, P places of a history, R examples of a whole batch, W its positives, B those of one process's
part of it, U uniform draws, S distinct items of the batch's positives and uniform draws, C those and its other hard
negatives, H hard negatives of an example.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from candidate_gen.history import AsOf

_LIKE = 32
"""Batches whose examples are sorted by their number of positives: enough for them to be alike, too few for the same
ones to meet in every pass."""


@dataclass(frozen=True, slots=True)
class Examples:
    """Examples side by side."""

    query: dict[str, Tensor]
    positive_row_NP: Tensor
    """What was taken as of each place of the history (see `candidate_gen.history`), -1 where nothing is to be learned;
    with P = 1 each example as it is."""
    weight_N: Tensor
    """Of each of its positives."""
    hard_row_NH: Tensor
    """Rows of items that were shown and not taken; -1 pads."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One process's part of a batch, and the items of the whole of it, each once."""

    query: dict[str, Tensor]
    as_of: AsOf | None
    """Which of the queries, and as of which place, each positive followed on; None for each as it is."""
    weight_B: Tensor
    item_row_C: Tensor
    """The sampled items, ascending, then those that are hard negatives only."""
    count_S: Tensor
    """How often a sampled item is a positive or a uniform draw of the whole batch."""
    own_B: Tensor
    """Column of the positive."""
    hard_BH: Tensor
    """Columns of the hard negatives; -1 pads."""
    positive_row_W: Tensor
    share: float
    """The part's weight over the mean weight of a part."""


class Batches:
    """Slices of the examples; with a seed, of a new permutation of them.

    A shuffled pass leaves out the incomplete last batch where there is a complete one. Examples of many positives are
    put together with others of about as many, so that little of a batch is padding.

    Args:
        size: positives of a batch, at least those of any example; where examples have several, about as many.
        uniform: items drawn for each batch.
        part: which of how many processes gets it; each gets its part of the same batches.
    """

    def __init__(
        self,
        examples: Examples,
        *,
        size: int,
        items: int,
        uniform: int = 0,
        seed: tuple[int, int] | None = None,
        part: tuple[int, int] = (0, 1),
    ) -> None:
        self._examples = examples
        self._size = size
        self._items = items
        self._uniform = uniform
        self._seed = seed
        self._part = part
        self._count_N = (examples.positive_row_NP >= 0).sum(1).numpy()
        self._many = examples.positive_row_NP.shape[1] > 1
        if self._count_N.max(initial=0) > size:
            raise ValueError(f"a batch of {size} positives cannot hold an example of {self._count_N.max()}")
        total = int(self._count_N.sum())
        self._batches = max(1, total // size) if seed else len(self._cuts(np.arange(len(self._count_N)))) - 1

    def __len__(self) -> int:
        return self._batches

    def __iter__(self) -> Iterator[Batch]:
        random = np.random.default_rng(self._seed)
        order_N, turn = np.arange(len(self._count_N)), np.arange(self._batches)
        if self._seed:
            order_N = random.permutation(order_N)
        if self._seed and self._many:
            near_N = np.arange(len(order_N)) * self._batches // (_LIKE * len(order_N))
            order_N = order_N[np.lexsort((self._count_N[order_N], near_N))]
            turn = random.permutation(turn)
        cut = self._cuts(order_N)
        for batch in turn:
            uniform_row_U = torch.from_numpy(random.integers(self._items, size=self._uniform))
            yield self._batch(torch.from_numpy(order_N[cut[batch] : cut[batch + 1]]), uniform_row_U)

    def _cuts(self, order_N: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where each batch begins in an order of the examples, and where the last one ends."""
        count_N = self._count_N[order_N]
        batch_N = (np.cumsum(count_N) - count_N) // self._size
        return np.searchsorted(batch_N, np.arange(batch_N.max(initial=-1) + 2))

    def _batch(self, whole_R: Tensor, uniform_row_U: Tensor) -> Batch:
        examples, (process, processes) = self._examples, self._part
        positive_row_RP = examples.positive_row_NP[whole_R]
        row_W, place_W = (positive_row_RP >= 0).nonzero(as_tuple=True)
        positive_row_W = positive_row_RP[row_W, place_W]
        drawn = torch.cat([positive_row_W, uniform_row_U])
        item_row_S, column, count_S = torch.unique(drawn, return_inverse=True, return_counts=True)
        mine_W = row_W % processes == process
        row_B, place_B = row_W[mine_W] // processes, place_W[mine_W]
        part = whole_R[process::processes]
        weight_W = examples.weight_N[whole_R][row_W]
        weight_B = weight_W[mine_W]
        hard_BH, other_row = _columns(examples.hard_row_NH[part][row_B], item_row_S)
        return Batch(
            {name: values.index_select(0, part) for name, values in examples.query.items()},
            (row_B, place_B) if self._many else None,
            weight_B,
            torch.cat([item_row_S, other_row]),
            count_S,
            column[: len(row_W)][mine_W],
            hard_BH,
            positive_row_W,
            processes * float(weight_B.sum() / weight_W.sum()) if processes > 1 else 1.0,
        )


def _columns(hard_row_BH: Tensor, item_row_S: Tensor) -> tuple[Tensor, Tensor]:
    """Columns of hard negatives among the sampled items and, after these, the others; and the rows of the others."""
    at_BH = torch.searchsorted(item_row_S, hard_row_BH).clamp_(max=len(item_row_S) - 1)
    sampled_BH = item_row_S[at_BH] == hard_row_BH
    other_BH = (hard_row_BH >= 0) & ~sampled_BH
    other_row, column = torch.unique(hard_row_BH[other_BH], return_inverse=True)
    column_BH = torch.where(sampled_BH, at_BH, -1)
    column_BH[other_BH] = len(item_row_S) + column
    return column_BH, other_row
