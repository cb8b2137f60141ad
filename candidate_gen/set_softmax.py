"""Softmax over a whole catalogue for queries that have several positives each.

A query with twenty positives costs here what a query with one costs: where many examples share their query, as those
of a user about whom only the id is known do, that is twenty times less work than `losses.full_softmax` on pairs.

Shape letters: B queries, P positives of them all, I items, D width.
"""

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from candidate_gen.losses import with_gradients

_CELLS = {"cpu": 1 << 22}
"""Logits at a time. Few rows of a wide catalogue make slow products, so more than the inner caches hold."""
_CELLS_ELSEWHERE = 1 << 26


def set_softmax(
    query_BD: Tensor,
    item_ID: Tensor,
    *,
    query_P: Tensor,
    item_row_P: Tensor,
    weight_P: Tensor,
    temperature: float | Tensor,
    positive_temperature: float | None = None,
    products: torch.dtype = torch.float32,
) -> Tensor:
    """Weighted mean over positives p = (b, i) of -s_bi + log sum_j exp(s_bj), s = query . item / temperature.

    That is the multinomial likelihood of Liang et al. 2018, "Variational Autoencoders for Collaborative Filtering".
    With a `positive_temperature` the softmax is bilateral as in `losses.sampled_softmax`: the positive counts with
    that temperature, and the sum leaves out all positives of the query, for they are no negatives of each other.
    Where that leaves nothing, the logarithm counts as 0.

    Args:
        query_P: which query each positive belongs to, ascending.
        item_row_P: each item at most once for each query.
        products: as in `losses.sampled_softmax`.
    """
    share_P = weight_P / weight_P.sum()
    share_B = query_BD.new_zeros(len(query_BD)).index_add_(0, query_P, share_P)
    scaled_BD, item_ID = (query_BD / temperature).float(), item_ID.float()
    terms = _Terms(share_B, query_P, item_row_P, positive_temperature is not None, products)
    sums = with_gradients(scaled_BD, item_ID, partial(_sums_and_gradients, terms=terms))
    positive_P = (scaled_BD[query_P] * item_ID[item_row_P]).sum(1)
    return sums - (share_P * positive_P).sum() * (temperature / (positive_temperature or temperature))


@dataclass(frozen=True, slots=True)
class _Terms:
    """How much a query counts, and which items its sum may lack."""

    weight_B: Tensor
    query_P: Tensor
    item_row_P: Tensor
    without_positives: bool
    products: torch.dtype


def _sums_and_gradients(query_BD: Tensor, item_ID: Tensor, *, terms: _Terms) -> tuple[Tensor, Tensor, Tensor]:
    """sum_b weight_b log( sum_i exp(q_b . i_i) ), over all items or those that are no positive of b."""
    weight_B, query_P, products = terms.weight_B, terms.query_P, terms.products
    count = len(query_BD)
    some = max(1, min(count, _CELLS.get(query_BD.device.type, _CELLS_ELSEWHERE) // len(item_ID)))
    read_BD, read_ID = query_BD.to(products), item_ID.to(products)
    product = torch.empty(some, len(item_ID), dtype=products, device=query_BD.device)
    logit = product if products == torch.float32 else torch.empty_like(product, dtype=torch.float32)
    sums = query_BD.new_zeros(())
    query_grad_BD, item_grad_ID = torch.empty_like(query_BD), torch.zeros_like(item_ID)
    edges = list(range(0, count, some))
    cuts = torch.searchsorted(query_P, query_P.new_tensor([*edges, count])).tolist()
    for n, first in enumerate(edges):
        part = slice(first, first + some)
        product_bI, logit_bI = product[: count - first], logit[: count - first]
        torch.mm(read_BD[part], read_ID.T, out=product_bI)
        if products != torch.float32:
            logit_bI.copy_(product_bI)
        if terms.without_positives:
            own = slice(cuts[n], cuts[n + 1])
            logit_bI[query_P[own] - first, terms.item_row_P[own]] = -math.inf
        top_b1 = logit_bI.amax(1, True).clamp_(min=-1e30)
        logit_bI.sub_(top_b1).exp_()
        total_b1 = logit_bI.sum(1, True)
        log_b1 = torch.where(total_b1 == 0, 0.0, total_b1.log() + top_b1)
        sums += (weight_B[part, None] * log_b1).sum()
        scale_b1 = torch.where(total_b1 == 0, 0.0, weight_B[part, None] / total_b1)
        if products != torch.float32:
            product_bI.copy_(logit_bI)
        query_grad_BD[part] = torch.mm(product_bI, read_ID).float() * scale_b1
        item_grad_ID += torch.mm(product_bI.T, (query_BD[part] * scale_b1).to(products))
    return sums, query_grad_BD, item_grad_ID
