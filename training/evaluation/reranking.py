"""A retrieval's candidates in another order: by what the sequences say of each, weighed by a listwise softmax.

Shape letters: T interactions by user and position, N queries, B some of them, L entries of a history, C candidates of
a query, Z things said of a candidate, I items, F the most frequent of them.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.sparse import csr_matrix, diags

SAID = (
    "retrieval",
    "next",
    "second",
    "soon",
    "near",
    "together",
    "linear",
    "linear_recent",
    "popularity",
    "early",
    "late",
    "newest",
)
"""Of a candidate: the score of the retrieval; logarithms of how often it came right after the newest item, two
after the one before, within five after the newest few, within ten after the newest tens, and in the same sequences as
these; the linear model of all of the history and of the newest tens; log popularity; how early and how far through
their sequences others took it; the cosine with the newest item."""

_FREQUENT = 4096
_BLOCK = 512
_RIDGE = 500.0
"""Of the linear model, in sequences: what EASE is published with on data of this kind."""
_PRIOR = 10.0
"""Of the weights of standardised columns, in lists."""
_FEW, _TENS = 10, 40


@dataclass(frozen=True, slots=True)
class Lists:
    """Candidates of queries, best first, and what is said of them before the sequences are asked."""

    history_NL: NDArray[np.int64]
    """Item rows, newest first; -1 pads."""
    row_NC: NDArray[np.int64]
    """Item rows; -1 where there are fewer."""
    score_NC: NDArray[np.float32]
    """Of the retrieval."""
    next_N: NDArray[np.int64]
    """Rows of the items that came next, among the candidates or not."""

    @property
    def held_NC(self) -> NDArray[np.bool_]:
        is_held_NC: NDArray[np.bool_] = self.row_NC >= 0
        return is_held_NC

    @property
    def next_NC(self) -> NDArray[np.bool_]:
        is_next_NC: NDArray[np.bool_] = self.row_NC == self.next_N[:, None]
        return is_next_NC


class SequenceStatistics:
    """What sequences say of items and of one item after another.

    Memory: a number for each pair of items of a sequence, and 64 MiB for the linear model.

    Args:
        item_T: item rows, those of a user side by side and in order.
        start_T: where each interaction's sequence begins.
        known_T: interactions that may be learned from; of each sequence the first ones.
        vector_ID: of all items.
    """

    def __init__(
        self,
        item_T: NDArray[np.int64],
        start_T: NDArray[np.int64],
        known_T: NDArray[np.bool_],
        vector_ID: NDArray[np.float32],
    ) -> None:
        place_T = (np.arange(len(item_T)) - start_T)[known_T]
        item_T = item_T[known_T]
        _, user_T, size_U = np.unique(start_T[known_T], return_inverse=True, return_counts=True)
        items = len(vector_ID)
        count_I = np.bincount(item_T, minlength=items)

        def mean(value_T: NDArray[np.floating]) -> NDArray[np.float64]:
            mean_I: NDArray[np.float64] = (np.bincount(item_T, value_T, items) + value_T.mean()) / (count_I + 1)
            return mean_I

        def followers(distance: int) -> csr_matrix:
            after_T = np.flatnonzero(place_T >= distance)
            pair = item_T[after_T - distance], item_T[after_T]
            return csr_matrix((np.ones(len(after_T), np.float32), pair), shape=(items, items))

        self._popularity_I = np.log((count_I + 1) / (len(item_T) + items))
        self._early_I = mean(np.log1p(place_T))
        self._late_I = mean(place_T / size_U[user_T])
        by_distance = [followers(distance) for distance in range(1, 11)]
        self._next_II, self._second_II = (_shares(counts) for counts in by_distance[:2])
        self._soon_II = _shares(sum(counts * (1 - d / 6) for d, counts in enumerate(by_distance[:5])))
        self._near_II = _shares(sum(by_distance))
        taken = np.ones(len(item_T), np.float32), (user_T, item_T)
        taken_UI = csr_matrix(taken, shape=(len(size_U), items))
        taken_UI.data[:] = 1
        damped = diags(1 / np.sqrt(np.maximum(count_I, 1)).astype(np.float32))
        self._together_II = (damped @ (taken_UI.T @ taken_UI) @ damped).tocsr()
        self._together_II.setdiag(0)
        self._frequent_F = np.sort(np.argsort(-count_I, kind="stable")[:_FREQUENT])
        self._linear_FF = _linear_model(taken_UI[:, self._frequent_F])
        length_I = np.linalg.norm(vector_ID, axis=1, keepdims=True)
        self._unit_ID = vector_ID / np.where(length_I > 0, length_I, 1)

    def said(self, lists: Lists) -> NDArray[np.float32]:
        """`SAID` of every candidate, (N, C, Z), as differences from the list's mean; 0 where there is none."""
        blocks = [self._said_block(lists, rows) for rows in _slices(len(lists.row_NC))]
        return np.concatenate(blocks)

    def _said_block(self, lists: Lists, rows: slice) -> NDArray[np.float32]:
        history_BL, row_BC = lists.history_NL[rows], lists.row_NC[rows]
        back_L = np.arange(history_BL.shape[1])
        newest_BI = self._weighted(history_BL, 1.0 * (back_L == 0))
        second_BI = self._weighted(history_BL, 1.0 * (back_L == 1))
        few_BI = self._weighted(history_BL, 0.5 ** (back_L / 1.5) * (back_L < _FEW))
        tens_BI = self._weighted(history_BL, 0.5 ** (back_L / 6) * (back_L < _TENS))
        all_BI = self._weighted(history_BL, np.ones(len(back_L)))
        newest_BD = self._unit_ID[history_BL[:, 0]] * (history_BL[:, :1] >= 0)

        def among(score_BI: NDArray[np.float32]) -> NDArray[np.float32]:
            score_BC: NDArray[np.float32] = np.take_along_axis(score_BI, row_BC, 1)
            return score_BC

        def counted(weight_BI: csr_matrix, share_II: csr_matrix, least: float) -> NDArray[np.float32]:
            log_BC: NDArray[np.float32] = np.log(among((weight_BI @ share_II).toarray()) + np.float32(least))
            return log_BC

        said_BCZ = np.stack(
            [
                lists.score_NC[rows],
                counted(newest_BI, self._next_II, 1e-3),
                counted(second_BI, self._second_II, 1e-3),
                counted(few_BI, self._soon_II, 1e-3),
                counted(tens_BI, self._near_II, 1e-3),
                counted(tens_BI, self._together_II, 1e-2),
                among(self._linear(all_BI)),
                among(self._linear(tens_BI)),
                self._popularity_I[row_BC],
                self._early_I[row_BC],
                self._late_I[row_BC],
                np.einsum("bcd,bd->bc", self._unit_ID[row_BC], newest_BD),
            ],
            axis=2,
        )
        held_BC1 = lists.held_NC[rows, :, None]
        mean_B1Z = (said_BCZ * held_BC1).sum(axis=1, keepdims=True) / np.maximum(held_BC1.sum(axis=1, keepdims=True), 1)
        centred_BCZ: NDArray[np.float32] = ((said_BCZ - mean_B1Z) * held_BC1).astype(np.float32)
        return centred_BCZ

    def _weighted(self, history_BL: NDArray[np.int64], weight_L: NDArray[np.floating]) -> csr_matrix:
        row, back = np.nonzero((history_BL >= 0) & (weight_L > 0))
        entries = weight_L[back].astype(np.float32), (row, history_BL[row, back])
        return csr_matrix(entries, shape=(len(history_BL), len(self._popularity_I)))

    def _linear(self, weight_BI: csr_matrix) -> NDArray[np.float32]:
        score_BI = np.zeros(weight_BI.shape, np.float32)
        score_BI[:, self._frequent_F] = weight_BI[:, self._frequent_F] @ self._linear_FF
        return score_BI


@dataclass(frozen=True, slots=True)
class ListwiseRanker:
    """P(candidate is the next item | candidates) = softmax of w . z, each candidate's score its own.

    The conditional logit of McFadden 1974, "Conditional logit analysis of qualitative choice behavior"; where z are
    log-probabilities of several models, a product of experts.
    """

    weight_Z: NDArray[np.float64]

    @classmethod
    def fit(cls, lists: Lists, said_NCZ: NDArray[np.float32]) -> "ListwiseRanker":
        """The weights that make what came next most probable; lists without it say nothing.

        Raises:
            ValueError: where no list holds what came next.
        """
        useful_N = np.flatnonzero(lists.next_NC.any(axis=1))
        if not len(useful_N):
            raise ValueError(
                f"none of {len(lists.next_N)} lists of candidates holds what came next; nothing to learn from"
            )
        said_NCZ, next_NC, held_NC = said_NCZ[useful_N], lists.next_NC[useful_N], lists.held_NC[useful_N]
        scale_Z = said_NCZ[held_NC].std(axis=0).astype(np.float64)
        scale_Z[scale_Z == 0] = 1
        unit_NCZ = (said_NCZ / scale_Z).astype(np.float32)
        chosen_Z = unit_NCZ[next_NC].sum(axis=0, dtype=np.float64)

        def loss(weight_Z: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
            logit_NC = np.where(held_NC, unit_NCZ @ weight_Z.astype(np.float32), -np.inf)
            highest_N1 = logit_NC.max(axis=1, keepdims=True)
            odds_NC = np.exp(logit_NC - highest_N1)
            sum_N1 = odds_NC.sum(axis=1, keepdims=True, dtype=np.float64)
            expected_Z = np.tensordot((odds_NC / sum_N1).astype(np.float32), unit_NCZ, 2)
            value = float((np.log(sum_N1) + highest_N1).sum() - chosen_Z @ weight_Z + _PRIOR / 2 * weight_Z @ weight_Z)
            return value, expected_Z - chosen_Z + _PRIOR * weight_Z

        found = minimize(loss, np.zeros(len(scale_Z)), jac=True, method="L-BFGS-B")
        return cls(found.x / scale_Z)

    def order(self, lists: Lists, said_NCZ: NDArray[np.float32]) -> NDArray[np.int64]:
        """The same candidates, likeliest first; equal ones as they were, -1 last."""
        score_NC = np.where(lists.held_NC, said_NCZ @ self.weight_Z, -np.inf)
        row_NC: NDArray[np.int64] = np.take_along_axis(lists.row_NC, np.argsort(-score_NC, axis=1, kind="stable"), 1)
        return row_NC


def _shares(count_II: csr_matrix) -> csr_matrix:
    """Of what followed each item, as if five more had that are not known."""
    total_I = np.asarray(count_II.sum(axis=1)).ravel()
    return (diags((1 / (total_I + 5)).astype(np.float32)) @ count_II).tocsr()


def _linear_model(taken_UF: csr_matrix) -> NDArray[np.float32]:
    """Items from the other items of a sequence, by ridge regression without the item itself.

    Steck 2019, "Embarrassingly shallow autoencoders for sparse data", equation 8.
    """
    gram_FF = (taken_UF.T @ taken_UF).toarray().astype(np.float64)
    inverse_FF = np.linalg.inv(gram_FF + _RIDGE * np.eye(len(gram_FF)))
    weight_FF = -inverse_FF / np.diag(inverse_FF)
    np.fill_diagonal(weight_FF, 0)
    found: NDArray[np.float32] = weight_FF.astype(np.float32)
    return found


def _slices(count: int) -> Iterator[slice]:
    for first in range(0, count, _BLOCK):
        yield slice(first, first + _BLOCK)
