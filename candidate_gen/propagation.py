"""One step over the graph of who took what, after training: a query gets a part of what it took, an item of its takers.

With q and v what is learned of users and items, q' and v' the same less the means over users and items, w the weight
and d the numbers of pairs,

    q_u + w sum_i v'_i / sqrt(d_u d_i)        v_i + w sum_u q'_u / sqrt(d_u d_i)

which is a layer of He et al. 2020, "LightGCN: Simplifying and Powering Graph Convolution Network", beside the one
before it. The means are left out because a bilateral softmax drives those of users and items apart, and their sums
over many takers would bury all else. Items that many alike took become longer: inner products and not cosines rank.

Shape letters: T pairs of user and item, B rows, L history, N known item ids, M known user ids, D width.
"""

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from candidate_gen.embedding import FeatureEmbedder, filled
from candidate_gen.features import FeatureTable
from candidate_gen.history import AsOf
from candidate_gen.spectral import by_place, load_rows, pairs_of


class Propagation(nn.Module):
    """What the step adds; nothing for items that training did not know. A query's part comes from the history of its
    row; where the table has none it is that of the user in training."""

    given_ND: Tensor
    """v'_i / sqrt(d_i), by place among the known ids: what an item gives to its takers."""
    item_ND: Tensor
    user_MD: Tensor
    longest: Tensor

    def __init__(self, table: FeatureTable, *, weight: float, width: int) -> None:
        super().__init__()
        missing = [name for name in ("user_id", "item_id") if name not in table]
        if missing:
            raise ValueError(f"propagation is {weight}; the feature table has no {' and no '.join(missing)}")
        self._weight = weight
        self._by_history = "history_item" in table
        for name in ("given_ND", "item_ND", "user_MD"):
            self.register_buffer(name, torch.zeros(1, width))
        self.register_buffer("longest", torch.ones(()))

    def fit(
        self,
        embedder: FeatureEmbedder,
        query_row_T: np.ndarray,
        item_row_T: np.ndarray,
        *,
        query_TD: NDArray[np.float32],
        item_TD: NDArray[np.float32],
    ) -> None:
        """Take the step over training's pairs, of which the vectors are what is learned; a user's is their mean."""
        graph, user_T, item_T = pairs_of(embedder, query_row_T, item_row_T)
        user_M1, item_N1 = (count.clamp(min=1).rsqrt()[:, None] for count in (graph.taken_U, graph.takers_I))
        offset_MD, _ = _offsets(user_T, query_TD, len(user_M1))
        offset_ND, middle_D = _offsets(item_T, item_TD, len(item_N1))
        self.given_ND = offset_ND * item_N1
        self.item_ND = item_N1 * graph.over_users(offset_MD * user_M1)
        if not self._by_history:
            self.user_MD = user_M1 * graph.over_items(self.given_ND)
        self.longest = (offset_ND + middle_D + self._weight * self.item_ND).norm(dim=1).max().clamp(min=1)

    def queries(
        self, vector_BD: Tensor, columns: Mapping[str, Tensor], embedder: FeatureEmbedder, as_of: AsOf | None
    ) -> Tensor:
        """(B, D), of length 1."""
        if not self._by_history:
            step_BD = by_place(self.user_MD, "user_id", columns, embedder)
        else:
            each_BLD = by_place(self.given_ND, "history_item", columns, embedder)
            count_BL = filled(columns["history_item"]).float()
            if as_of is None:
                step_BD, count_B = each_BLD.sum(1), count_BL.sum(1)
            else:
                step_BD, count_B = (each.flip(1).cumsum(1).flip(1)[as_of] for each in (each_BLD, count_BL))
            step_BD = step_BD * count_B.clamp(min=1).rsqrt()[:, None]
        return functional.normalize(vector_BD + self._weight * step_BD, dim=1)

    def items(self, vector_BD: Tensor, columns: Mapping[str, Tensor], embedder: FeatureEmbedder) -> Tensor:
        """(B, D), of length 1 at most."""
        step_BD = by_place(self.item_ND, "item_id", columns, embedder)
        return (vector_BD + self._weight * step_BD) / self.longest

    def _load_from_state_dict(self, state_dict: dict[str, Tensor], prefix: str, *others: object) -> None:
        load_rows(self, ("given_ND", "item_ND", "user_MD"), state_dict, prefix)
        super()._load_from_state_dict(state_dict, prefix, *others)


def _offsets(place_T: NDArray[np.int64], vector_TD: NDArray[np.float32], places: int) -> tuple[Tensor, Tensor]:
    """The mean vector of each place, less the mean over places, and that mean; zeros where there is no vector."""
    at_T = torch.from_numpy(place_T)
    sum_PD = torch.zeros(places, vector_TD.shape[1]).index_add_(0, at_T, torch.from_numpy(vector_TD))
    count_P1 = torch.bincount(at_T, minlength=places)[:, None]
    count_P1[0] = 0
    mean_PD = sum_PD / count_P1.clamp(min=1) * (count_P1 > 0)
    middle_D = mean_PD.sum(0) / (count_P1 > 0).sum()
    return (mean_PD - middle_D) * (count_P1 > 0), middle_D
