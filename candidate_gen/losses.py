"""Softmax over a catalogue, exact or estimated from samples.

Shape letters: B positives, C columns (the B positives, then further negatives), I items, D width.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional


def full_softmax(
    query_BD: Tensor, item_ID: Tensor, *, item_row_B: Tensor, temperature: float, weight_B: Tensor | None = None
) -> Tensor:
    """Weighted mean of -log P(item_row_b | query_b), P = softmax(query . item / temperature) over all items."""
    loss_B = functional.cross_entropy(query_BD / temperature @ item_ID.T, item_row_B, reduction="none")
    return _mean(loss_B, weight_B)


def sampled_softmax(
    query_BD: Tensor,
    item_CD: Tensor,
    *,
    item_row_C: Tensor,
    log_q_C: Tensor,
    temperature: float,
    weight_B: Tensor | None = None,
) -> Tensor:
    """`full_softmax` estimated from one batch: every query's negatives are the other columns.

    With s = query . item / temperature and n = C - 1 negatives, of which item j is each with probability q_j,

        loss_b = -log( exp(s_bb) / (exp(s_bb) + sum_{c: item_c != item_b} exp(s_bc - log q_c - log n)) ).

    Columns that hold the query's own positive (accidental hits) are left out. The sum's expectation is the full
    softmax's sum over the items other than the positive, so the loss tends to the full one as n grows. The
    positive's own term is not corrected: it is there with certainty. Dividing it by its q too (the form of Yi et
    al. 2019, "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations") keeps the optimum but
    not the limit; see Khrylchenko et al. 2025, "Correcting the LogQ Correction". Without `log n` only the balance
    between the positive and its negatives would change.

    Args:
        item_CD: column b < B is the positive of query b.
        item_row_C: which item each column is.
        log_q_C: logarithm of the probability that one negative is the column's item; see `mixture_log_q`.
    """
    rows, columns = len(query_BD), len(item_CD)
    correction_C = log_q_C + math.log(max(columns - 1, 1))
    logits_BC = torch.addmm(-correction_C, query_BD / temperature, item_CD.T)
    logits_BC.diagonal().add_(correction_C[:rows])
    hit_BC = item_row_C[:rows, None] == item_row_C
    hit_BC.diagonal().zero_()
    logits_BC.masked_fill_(hit_BC, -math.inf)
    own_B = torch.arange(rows, device=query_BD.device)
    return _mean(functional.cross_entropy(logits_BC, own_B, reduction="none"), weight_B)


def mixture_log_q(log_q: Tensor, *, batch: int, uniform: int, items: int) -> Tensor:
    """The one log Q of negatives of two origins: the `batch` - 1 other positives and `uniform` draws over `items`.

    Q_j = ((batch - 1) q_j + uniform / items) / (batch - 1 + uniform), whichever of the two a column came from.

    Args:
        log_q: logarithm of each item's share of the positives; -inf for an item that is none.
    """
    others = max(batch - 1, 1)
    if not uniform:
        return log_q
    from_batch = log_q + math.log(others / (others + uniform))
    from_all = math.log(uniform / ((others + uniform) * items))
    return torch.logaddexp(from_batch, torch.full_like(from_batch, from_all))


def _mean(loss_B: Tensor, weight_B: Tensor | None) -> Tensor:
    if weight_B is None:
        return loss_B.mean()
    return (loss_B * weight_B).sum() / weight_B.sum()
