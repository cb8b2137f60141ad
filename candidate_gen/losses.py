"""Softmax over a catalogue, exact or estimated from samples; one chunked computation under all of it.

Shape letters: B positives, S distinct sampled items, C columns (the S, then items that are only hard negatives),
I items, H hard negatives of a query, E exact terms of a query (its positive, then its hard negatives), N examples,
F hashes, D width.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

_CELLS_CPU = 1 << 19
"""Logits at a time: 2 MiB, which the caches of a core hold."""
_CELLS_GPU = 1 << 24
"""Where the cost of a launch counts more."""
_NONE = -1e30
"""The logit of a term that is none: unlike -inf, it is a number also where all others are none. Exact terms have half
of it, so that sampled ones then have no share."""
_ODD = (0x9E3779B97F4A7C1, 0xC2B2AE3D27D4EB5)
"""Multipliers of the hashes of `StreamingShare`."""


def full_softmax(
    query_BD: Tensor,
    item_ID: Tensor,
    *,
    item_row_B: Tensor,
    temperature: float | Tensor,
    positive_temperature: float | None = None,
    weight_B: Tensor | None = None,
    products: torch.dtype = torch.float32,
) -> Tensor:
    """Weighted mean of -log P(item_row_b | query_b), P = softmax(query . item / temperature) over all items.

    `positive_temperature` and `products` as in `sampled_softmax`.
    """
    return _softmax(
        query_BD,
        item_ID,
        offset_S=item_ID.new_zeros(len(item_ID)),
        own_B=item_row_B,
        hard_BH=None,
        temperature=temperature,
        positive_temperature=positive_temperature,
        weight_B=weight_B,
        products=products,
    )


def sampled_softmax(
    query_BD: Tensor,
    item_CD: Tensor,
    *,
    own_B: Tensor,
    count_S: Tensor,
    log_q_S: Tensor,
    temperature: float | Tensor,
    positive_temperature: float | None = None,
    hard_BH: Tensor | None = None,
    weight_B: Tensor | None = None,
    products: torch.dtype = torch.float32,
) -> Tensor:
    """`full_softmax` estimated from one batch: every query's negatives are the batch's other items.

    With s = query . item / temperature, n = sum(count) - 1 negatives that were drawn, of which item j is each with
    probability q_j and m_j = count_j of them all are item j,

        loss_b = -log( exp(s_bb) / (exp(s_bb) + sum_{h in hard_b} exp(s_bh)
                                              + sum_{j != b, j not in hard_b} m_j exp(s_bj) / (n q_j)) ).

    Draws of the query's own positive (accidental hits) are left out. The last sum's expectation is the sum of
    exp(s_bj) over all items but the positive and the hard ones, so the loss tends to the full one as n grows. The
    positive and the hard negatives are there with certainty, not by chance, and so are not corrected; a hard
    negative that was also drawn counts once. Dividing the positive by its q too (the form of Yi et al. 2019,
    "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations") keeps the optimum but not the
    limit; see Khrylchenko et al. 2025, "Correcting the LogQ Correction".

    With a `positive_temperature` t the softmax is bilateral:

        loss_b = -query . item_b / t + log( the two sums over negatives ),

    the positive being left out of the sum. That is the loss of Wu et al. 2024, "BSL: Understanding and Improving
    Softmax Loss for Recommendation", in the form their code trains, -s_bb + r log(sum), divided by its r = t /
    temperature. Where a query has no negative the logarithm counts as 0.

    Args:
        item_CD: vectors of distinct items, the sampled ones first.
        own_B: column of each query's positive, which is one of the sampled.
        count_S: how often the batch holds each sampled item, as a positive or as a draw; at least 1.
        log_q_S: logarithm of the probability that one negative is the column's item; see `mixture_log_q`.
        hard_BH: columns of what the query was shown and did not take; -1 pads. Repeats count once, the query's
            own positive not at all.
        products: bfloat16 rounds what the three matrix products read, and the logits between the first and the
            exponential; sums are kept in float32, and the terms of positive and hard negatives are exact. Twice as
            fast on processors that multiply bfloat16 and slow on others. With cosines over 0.05 or more, gradients
            then differ by less than 1%, which is less than another batch would change them; unbounded inner products
            above 100 are rounded by 0.25 and more, and should stay in float32.
    """
    offset_S = count_S.to(log_q_S.dtype).log() - log_q_S - (count_S.sum() - 1).clamp(min=1).log()
    return _softmax(
        query_BD,
        item_CD,
        offset_S=offset_S,
        own_B=own_B,
        hard_BH=hard_BH,
        temperature=temperature,
        positive_temperature=positive_temperature,
        weight_B=weight_B,
        products=products,
    )


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


class StreamingShare(nn.Module):
    """Each item's share of a stream of positives, from how far apart its appearances are.

    Algorithm 2 of Yi et al. 2019 with several hashes: per slot the moving average of the steps between appearances,
    whose inverse is the share. A step here is one example and not one batch, so that an item that every batch holds
    is told from one that every batch holds ten times; several appearances in one batch count as evenly spread over
    the steps since the last one. Items that share a slot only make its interval shorter, so the longest over the
    hashes counts.

    Args:
        slots: of each hash; a few times the number of items.
        pace: weight of the newest interval in the average.
    """

    last_FS: Tensor
    interval_FS: Tensor
    step: Tensor

    def __init__(self, slots: int, *, pace: float = 0.05) -> None:
        super().__init__()
        if not 0 < pace <= 1:
            raise ValueError(f"pace is {pace}; it must be above 0 and at most 1")
        self._pace = pace
        self.register_buffer("last_FS", torch.zeros(len(_ODD), slots, dtype=torch.float64))
        self.register_buffer("interval_FS", torch.zeros(len(_ODD), slots, dtype=torch.float64))
        self.register_buffer("step", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def update(self, item_row_B: Tensor) -> None:
        """Take in the next positives, in their order."""
        self.step += len(item_row_B)
        for last_S, interval_S, slot_B in zip(self.last_FS, self.interval_FS, self._slots(item_row_B), strict=True):
            slot_U, count_U = torch.unique(slot_B, return_counts=True)
            newest_U = (self.step - last_S[slot_U]) / count_U
            kept_U = torch.where(interval_S[slot_U] > 0, (1 - self._pace) ** count_U, 0.0)
            interval_S[slot_U] = kept_U * interval_S[slot_U] + (1 - kept_U) * newest_U
            last_S[slot_U] = self.step

    def log_q(self, item_row_S: Tensor) -> Tensor:
        """Logarithm of the estimated shares, -inf for what never appeared."""
        slot_FS = self._slots(item_row_S)
        interval_S = self.interval_FS.gather(1, slot_FS).amax(0)
        seen_S = (self.interval_FS.gather(1, slot_FS) > 0).all(0)
        return torch.where(seen_S, -interval_S.clamp(min=1).log(), -math.inf).float()

    def _slots(self, item_row_B: Tensor) -> Tensor:
        odd_F1 = torch.tensor(_ODD, device=item_row_B.device)[:, None]
        return ((item_row_B.long() + 1) * odd_F1 >> 20) % self.last_FS.shape[1]


def _softmax(
    query_BD: Tensor,
    item_CD: Tensor,
    *,
    offset_S: Tensor,
    own_B: Tensor,
    hard_BH: Tensor | None,
    temperature: float | Tensor,
    positive_temperature: float | None,
    weight_B: Tensor | None,
    products: torch.dtype,
) -> Tensor:
    """Weighted mean of -positive + log(sum of exact terms + sum of sampled terms)."""
    share_B = torch.full_like(query_BD[:, 0], 1 / len(query_BD)) if weight_B is None else weight_B / weight_B.sum()
    exact_BE = own_B[:, None]
    counts_BE = torch.full_like(exact_BE, positive_temperature is None, dtype=torch.bool)
    if hard_BH is not None:
        hard_BH = hard_BH.sort(1).values
        counts_BH = (hard_BH >= 0) & (hard_BH != exact_BE)
        counts_BH[:, 1:] &= hard_BH[:, 1:] != hard_BH[:, :-1]
        exact_BE = torch.cat([exact_BE, torch.where(counts_BH, hard_BH, exact_BE)], 1)
        counts_BE = torch.cat([counts_BE, counts_BH], 1)
    scaled_BD, item_CD = (query_BD / temperature).float(), item_CD.float()
    terms = _Terms(offset_S, exact_BE, counts_BE, share_B, products)
    sums = with_gradients(scaled_BD, item_CD, partial(_sums_and_gradients, terms=terms))
    positive_B = (scaled_BD * item_CD.index_select(0, own_B)).sum(1)
    if positive_temperature is not None:
        positive_B = positive_B * (temperature / positive_temperature)
    return sums - (share_B * positive_B).sum()


@dataclass(frozen=True, slots=True)
class _Terms:
    """Which terms a query's sum has, and how much it counts."""

    offset_S: Tensor
    exact_BE: Tensor
    """Columns that the sampled terms leave out."""
    counts_BE: Tensor
    """Which of those are there as exact terms."""
    weight_B: Tensor
    products: torch.dtype


Computed = Callable[[Tensor, Tensor], tuple[Tensor, Tensor, Tensor]]
"""From vectors of queries and items to a number and its gradients by both."""


def with_gradients(query_BD: Tensor, item_CD: Tensor, compute: Computed) -> Tensor:
    """The number that `compute` gives, with its gradients, which it makes beside it in the forward pass.

    Some rows at a time, so that nothing of size queries x items is ever held and each logit is computed once.
    """
    number: Tensor = _WithGradients.apply(query_BD, item_CD, compute)  # type: ignore[no-untyped-call]
    return number


class _WithGradients(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query_BD: Tensor, item_CD: Tensor, compute: Computed) -> Tensor:
        with torch.autocast(query_BD.device.type, enabled=False):
            number, *gradients = compute(query_BD, item_CD)
        ctx.save_for_backward(*gradients)
        return number

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad: Tensor) -> tuple[Tensor, Tensor, None]:
        query_grad_BD, item_grad_CD = ctx.saved_tensors
        return query_grad_BD * grad[0], item_grad_CD * grad[0], None


def _sums_and_gradients(query_BD: Tensor, item_CD: Tensor, *, terms: _Terms) -> tuple[Tensor, Tensor, Tensor]:
    """
    sum_b weight_b log( sum_{e: counts_be} exp(q_b . i_e) + sum_{s < S, s not exact_b} exp(q_b . i_s + offset_s) )
    """
    exact_BE, weight_B, products = terms.exact_BE, terms.weight_B, terms.products
    rows, sampled = len(query_BD), len(terms.offset_S)
    some = min(rows, max(1, (_CELLS_CPU if query_BD.device.type == "cpu" else _CELLS_GPU) // sampled))
    exact_item_BED = item_CD[exact_BE]
    exact_logit_BE = (query_BD[:, None] * exact_item_BED).sum(2).masked_fill_(~terms.counts_BE, _NONE / 2)
    exact_sum_B = exact_logit_BE.logsumexp(1)
    dropped_BE = torch.where(exact_BE < sampled, exact_BE, exact_BE[:, :1])
    read_BD, read_SD = query_BD.to(products), item_CD[:sampled].to(products)
    logit, share = (torch.empty(some, sampled, device=query_BD.device) for _ in range(2))
    product = logit if products == torch.float32 else torch.empty_like(logit, dtype=products)
    sum_B = torch.empty_like(weight_B)
    query_grad_BD, item_grad_CD = torch.empty_like(query_BD), torch.zeros_like(item_CD)
    for first in range(0, rows, some):
        part = slice(first, first + some)
        product_bS, logit_bS, share_bS = product[: rows - first], logit[: rows - first], share[: rows - first]
        torch.mm(read_BD[part], read_SD.T, out=product_bS)
        torch.add(product_bS, terms.offset_S, out=logit_bS)
        logit_bS.scatter_(1, dropped_BE[part], _NONE)
        torch.softmax(logit_bS, 1, out=share_bS)
        # The largest share of a row is the one of its largest logit.
        sampled_sum_b = logit_bS.amax(1) - share_bS.amax(1).log_()
        sum_B[part] = torch.logaddexp(sampled_sum_b, exact_sum_B[part])
        scale_b1 = (weight_B[part] * (sampled_sum_b - sum_B[part]).exp_())[:, None]
        read_bS = share_bS if product is logit else product_bS.copy_(share_bS)
        torch.mul(torch.mm(read_bS, read_SD), scale_b1, out=query_grad_BD[part])
        item_grad_CD[:sampled] += torch.mm(read_bS.T, (query_BD[part] * scale_b1).to(products))
    exact_share_BE = ((exact_logit_BE - sum_B[:, None]).exp_() * weight_B[:, None]).masked_fill_(~terms.counts_BE, 0.0)
    query_grad_BD += (exact_share_BE[:, :, None] * exact_item_BED).sum(1)
    pulled_BED = exact_share_BE[:, :, None] * query_BD[:, None]
    item_grad_CD.index_add_(0, exact_BE.flatten(), pulled_BED.flatten(0, 1))
    sums = (weight_B * sum_B.masked_fill_(sum_B < _NONE / 4, 0.0)).sum()
    return sums, query_grad_BD, item_grad_CD
