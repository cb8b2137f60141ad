"""A trained ranker as it serves: what it can know of an item is worked out once an item, of a query once a query.

What the ranker does first with x = [context | item | pair | interest | interest * target] is linear: the narrow side
of the first cross or, without crosses, the first layer of the experts, their gates and the linear part. So it is a sum:

    item, once an item and kept beside it -------+
    context, once a query -----------------------+-> crosses -> experts -> logits
    pair and interest, for each candidate -------+

Large products are of 16-bit numbers where that was found to leave the order as it is (`Precision`); all others, and all
sums, are of 32-bit ones. They are oneDNN's: twice as fast as the others that torch has here, and a row of the answer
has the same bits whatever other rows there are. Where torch comes without it, only what is nearly equal is promised.

Shape letters: N candidates, M a block of them, I items, X columns in, Y columns out, K columns of x that are a
candidate's alone, R requests, L history, D embedding width, E experts, Z columns of a deeper layer, A actions.
"""

import math
from collections.abc import Iterator, Sequence
from copy import copy
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from candidate_gen.features import FeatureTable
from candidate_gen.row_embedding import PastEmbedding, RowEmbedding
from index.columns import Column, appended, taken
from ranking.metrics import ndcg_at
from ranking.model import PAST, ExpertLayer, Experts, LowRankCross, Ranker

Kind = Literal["float32", "bfloat16"]
_Then = Literal["none", "relu"]

_TORCH: dict[Kind, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}
_BITS: dict[Kind, tuple[str, torch.dtype]] = {"float32": ("<f4", torch.float32), "bfloat16": ("<i2", torch.int16)}
"""What NumPy and torch both know, to keep such numbers in."""
_ALIGNED = 16
"""Columns of what is kept of an item come in multiples of this."""
_BLOCK = 512
"""Candidates, or items, that are computed at once at most, so that what they need stays in the cache."""
_STEP = 64
"""Sizes of smaller blocks are multiples of this, for each size of product that is met makes the library compile it."""
_ONE_DNN: bool = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
_CUTOFF = 10
_MOST_CHANGE = 1e-4


@dataclass(frozen=True, slots=True)
class Precision:
    """Of the large products."""

    kind: Kind = "float32"
    ndcg_change: float | None = None
    """By how much 16-bit products change NDCG@10 of held-out requests; None where nobody looked."""

    @property
    def here(self) -> Kind:
        """What this machine computes in: 32 bits where its processor has no 16-bit products."""
        return self.kind if halves_are_fast() else "float32"


def halves_are_fast() -> bool:
    """Whether this processor multiplies bfloat16 numbers itself."""
    has = torch.cpu.get_capabilities()
    return any(has.get(name, False) for name in ("avx512_bf16", "amx_bf16"))


def checked_precision(
    ranker: Ranker,
    table: FeatureTable,
    *,
    query_row_R: np.ndarray,
    request_N: NDArray[np.int64],
    item_row_N: np.ndarray,
    pair_row_N: np.ndarray,
    gain_N: NDArray[np.floating],
) -> Precision:
    """16-bit products if NDCG@10 by the first action's logit changes by at most 1e-4 with them, else 32-bit ones.

    So it is where the processor has none, or no request has a gain: what was not seen to be harmless is not used.

    Args:
        query_row_R: held-out requests.
        request_N: each candidate's request; rows of a request are neighbours.
        gain_N: see `ranking.metrics.ndcg_at`.
    """
    if not halves_are_fast():
        return Precision()
    edge = np.flatnonzero(np.diff(request_N, prepend=-1, append=-1))
    score_KN = np.empty((2, len(request_N)), np.float32)
    for score_N, kind in zip(score_KN, _TORCH, strict=True):
        compiled = CompiledRanker(ranker, table, item_row_N, kind=kind)
        for first, after in pairwise(edge):
            row_N = np.arange(first, after)
            query_row = query_row_R[request_N[first] : request_N[first] + 1]
            score_N[row_N] = compiled.logits(query_row, row_N, pair_row_N[row_N])[:, 0]
    exact, rounded = (ndcg_at(_CUTOFF, gain_N, score_N, request_N).mean for score_N in score_KN)
    change = abs(rounded - exact)
    return Precision("bfloat16" if change <= _MOST_CHANGE else "float32", change if math.isfinite(change) else None)


class CompiledRanker:
    """Logits of a ranker's items for one query at a time. Immutable; any threads may share it.

    Of the kind `float32` they are the ranker's own but for the order of sums: within 1e-5 of them, and of the largest
    where that is above 1. The same query, item and pair give the
    same bytes on the same machine, whatever else is scored with them.

    Args:
        ranker: as it is now.
        row_I: item rows of a catalogue.
        half_I: `half_I` of one made with the same arguments; worked out where not given.

    Raises:
        ValueError: a `half_I` of another number of items or of another shape.
    """

    def __init__(
        self, ranker: Ranker, table: FeatureTable, row_I: Column, *, kind: Kind, half_I: Column | None = None
    ) -> None:
        _keep_freed_memory()
        embed, experts = ranker.embed, ranker.experts
        self.kind = kind
        self._type = _TORCH[kind]
        self._actions = len(table.actions)
        self._dim = ranker.shape.dim
        self._query = RowEmbedding(embed, table, "query", ranker.query_names)
        self._past = PastEmbedding(embed, table, PAST, ["history_log_hours"])
        self._item = RowEmbedding(embed, table, "item", ranker.item_names)
        self._pair = RowEmbedding(embed, table, "pair", ranker.pair_names)
        self._context, self._memory, self._target = (
            _Linear([layer], torch.float32) for layer in (ranker.context, ranker.past, ranker.target)
        )
        self._recency = float(ranker.recency.detach())
        cut = (ranker.shape.query_width, self._item.width)
        last = [ranker.linear, *([experts.gates] if experts is not None and experts.gates is not None else [])]
        crosses = [cross for cross in ranker.crosses if isinstance(cross, LowRankCross)]
        self._crosses = [(_Linear([each.narrow], self._type), _Linear([each.widen], self._type)) for each in crosses]
        self._exact = _Sums([crosses[0].narrow] if crosses else last, torch.float32, *cut)
        self._last = _Linear(last, torch.float32)
        self._experts = self._first = self._wide = None
        if experts is not None:
            self._experts = _Experts(experts, self._type)
            if crosses:
                self._first = _Linear([experts.first], self._type)
            else:
                self._wide = _Sums([experts.first], self._type, *cut)
        self._width = self._item.width if crosses else 0 if self._wide is None else self._wide.width
        self.half_I: Column = self._halves(row_I) if half_I is None else half_I
        if half_I is not None and (len(half_I), half_I.dtype) != (len(row_I), self._half_type):
            raise ValueError(
                f"the ranker's part of {len(half_I)} items, of {half_I.dtype}, "
                f"does not fit {len(row_I)} items, of {self._half_type}"
            )

    def grown(self, row_I: Column) -> "CompiledRanker":
        """The same for more items; `row_I` begins with those that it has."""
        made = copy(self)
        made.half_I = appended(self.half_I, self._halves(row_I[np.arange(len(self.half_I), len(row_I))]))
        return made

    def logits(self, query_row: np.ndarray, row_N: NDArray[np.int64], pair_row_N: np.ndarray) -> NDArray[np.float32]:
        """(N, A).

        Args:
            query_row: one query record, (1,).
            row_N: rows of the items.
            pair_row_N: pair records.
        """
        logit_NA = np.empty((len(row_N), self._actions), np.float32)
        with torch.inference_mode():
            asked = self._asked(self._query(query_row), self._past(query_row)[1])
            pair_NX = torch.from_numpy(self._pair(pair_row_N))
            for start in range(0, len(row_N), _BLOCK):
                part = slice(start, start + _BLOCK)
                logit_NA[part] = self._scored(asked, row_N[part], pair_NX[part])
        return logit_NA

    def logits_of_many(
        self,
        query_row_B: np.ndarray,
        row_N: NDArray[np.int64],
        pair_row_N: np.ndarray,
        offset_B1: NDArray[np.int64],
    ) -> NDArray[np.float32]:
        """The same of many queries, each with the bits that it has alone: query b's items begin at offset_B1[b]."""
        logit_NA = np.empty((len(row_N), self._actions), np.float32)
        with torch.inference_mode():
            known_BX = self._query(query_row_B)
            _, past_PX, past_B1 = self._past.of_many(query_row_B)
            pair_NX = torch.from_numpy(self._pair(pair_row_N))
            for first, after in _together(offset_B1):
                asked = [
                    self._asked(known_BX[b : b + 1], past_PX[past_B1[b] : past_B1[b + 1]]) for b in range(first, after)
                ]
                start_B1 = offset_B1[first : after + 1]
                for start in range(start_B1[0], start_B1[-1], _BLOCK):  # more than one for one query at most
                    part = slice(start, min(start + _BLOCK, start_B1[-1]))
                    edges = np.clip(start_B1, part.start, part.stop) - part.start
                    logit_NA[part] = self._scored_of_many(asked, row_N[part], pair_NX[part], edges.tolist())
        return logit_NA

    def _asked(self, known_1X: NDArray[np.float32], past_LX: NDArray[np.float32]) -> "_Asked":
        # In NumPy, which begins sooner: there is one row of all this.
        context_X = np.maximum(self._context.of_rows(known_1X)[0], 0)
        length, dim = 1 + len(past_LX), self._dim
        # The first entry is nothing: a score of 0 and the vector 0, as in the model. Padding follows the others.
        memory_LY = np.zeros((1 + self._past.length, 2 * dim), np.float32)
        memory_LY[1:length] = self._memory.of_rows(past_LX)
        bias_L = np.full(len(memory_LY), -np.inf, np.float32)
        bias_L[0], bias_L[1:length] = 0, self._recency * past_LX[:, -1]
        return _Asked(
            torch.from_numpy(context_X).to(self._type),
            self._exact.query_part(context_X),
            None if self._wide is None else self._wide.query_part(context_X),
            torch.from_numpy(memory_LY[:, :dim] * np.float32(1 / math.sqrt(dim))),
            torch.from_numpy(memory_LY[:, dim:].T.copy()),
            torch.from_numpy(bias_L),
        )

    def _scored(self, asked: "_Asked", row_N: NDArray[np.int64], pair_NX: Tensor) -> NDArray[np.float32]:
        """Logits of a block."""
        count, pair, dim = len(row_N), self._pair.width, self._dim
        row_M = np.zeros(_padded(count), np.int64)
        row_M[:count] = row_N
        half_M = taken(self.half_I, row_M)
        exact_MX, wide_MX = torch.from_numpy(half_M["exact"]), torch.from_numpy(half_M["wide"]).view(self._type)
        alone_MK = torch.zeros(len(row_M), pair + 2 * dim)
        alone_MK[:count, :pair] = pair_NX
        last_MY, first_MY = self._begun(asked, exact_MX, wide_MX, alone_MK)
        context_MX = asked.context_X.expand(len(row_M), -1)
        return self._ended(context_MX, wide_MX, alone_MK, last_MY, first_MY)[:count].numpy()

    def _scored_of_many(
        self, asked: Sequence["_Asked"], row_N: NDArray[np.int64], pair_NX: Tensor, edges: Sequence[int]
    ) -> NDArray[np.float32]:
        """Logits of a block that holds the items of several queries, cut at these edges."""
        # Products are of so many rows as if each query were alone; those beyond its own belong to the next queries,
        # which write over them, or to nobody.
        count, pair, dim = len(row_N), self._pair.width, self._dim
        row_M = np.zeros(_padded(count) + _STEP, np.int64)
        row_M[:count] = row_N
        half_M = taken(self.half_I, row_M)
        exact_MX, wide_MX = torch.from_numpy(half_M["exact"]), torch.from_numpy(half_M["wide"]).view(self._type)
        alone_MK = torch.zeros(len(row_M), pair + 2 * dim)
        alone_MK[:count, :pair] = pair_NX
        context_MX = torch.zeros(len(row_M), len(asked[0].context_X), dtype=self._type)
        last_MY = first_MY = None
        for each, (start, end) in zip(asked, pairwise(edges), strict=True):
            if start < end:
                part = slice(start, start + _padded(end - start))
                last_SY, first_SY = self._begun(each, exact_MX[part], wide_MX[part], alone_MK[part])
                context_MX[start:end] = each.context_X
                if last_MY is None:
                    last_MY = torch.zeros(len(row_M), last_SY.shape[1])
                    first_MY = (
                        None if first_SY is None else torch.zeros(len(row_M), first_SY.shape[1], dtype=self._type)
                    )
                last_MY[part] = last_SY
                if first_MY is not None and first_SY is not None:
                    first_MY[part] = first_SY
        assert last_MY is not None
        rows = slice(_padded(count))
        first_MY = None if first_MY is None else first_MY[rows]
        logit_MA = self._ended(context_MX[rows], wide_MX[rows], alone_MK[rows], last_MY[rows], first_MY)
        logit_NA: NDArray[np.float32] = logit_MA[:count].numpy()
        return logit_NA

    def _begun(
        self, asked: "_Asked", exact_MX: Tensor, wide_MX: Tensor, alone_MK: Tensor
    ) -> tuple[Tensor, Tensor | None]:
        """The first sums of one query's items; without crosses those of the experts too. Notes its interest in them
        in `alone_MK`."""
        pair, dim = self._pair.width, self._dim
        target_MD = exact_MX[:, :dim]
        weight_ML = torch.softmax(_product(target_MD, asked.key_LD, asked.bias_L), 1)
        interest_MD = _product(weight_ML, asked.value_DL, None)
        alone_MK[:, pair : pair + dim] = interest_MD
        torch.mul(interest_MD, target_MD, out=alone_MK[:, pair + dim :])
        last_MY = self._exact(exact_MX[:, dim : dim + self._exact.width], alone_MK, asked.exact_Y)
        if self._crosses or self._wide is None or asked.wide_Y is None:
            return last_MY, None
        return last_MY, self._wide(wide_MX[:, : self._width], alone_MK.to(self._type), asked.wide_Y).relu_()

    def _ended(
        self, context_MX: Tensor, wide_MX: Tensor, alone_MK: Tensor, last_MY: Tensor, first_MY: Tensor | None
    ) -> Tensor:
        """Logits (M, A) of what was begun, whoever's items they are."""
        if self._crosses:
            parts = [context_MX, wide_MX[:, : self._width], alone_MK.to(self._type)]
            x_MX = self._crossed(last_MY.to(self._type), torch.cat(parts, 1))
            last_MY = self._last(x_MX.float())
            first_MY = None if self._first is None else self._first(x_MX, "relu")
        logit_MA = last_MY[:, : self._actions]
        if self._experts is not None and first_MY is not None:
            logit_MA = logit_MA + self._experts(first_MY, last_MY[:, self._actions :])
        return logit_MA

    def _crossed(self, narrow_MY: Tensor, first_MX: Tensor) -> Tensor:
        """After all crosses, of which the first has its narrow side."""
        x_MX = first_MX
        for number, (narrow, widen) in enumerate(self._crosses):
            if number:
                narrow_MY = narrow(x_MX)
            x_MX = torch.addcmul(x_MX, first_MX, widen(narrow_MY))
        return x_MX

    @property
    def _half_type(self) -> np.dtype[np.void]:
        """Of an item `exact`, its target and exact sums; `wide`, its columns of x if there are crosses, else its first
        sums of the experts.
        """
        exact, stored = self._dim + self._exact.width, _BITS[self.kind][0]
        return np.dtype([("exact", "<f4", (_aligned(exact),)), ("wide", stored, (_aligned(self._width),))])

    def _halves(self, row_I: Column) -> np.ndarray:
        exact, wide, bits = self._dim + self._exact.width, self._width, _BITS[self.kind][1]
        half_I = np.zeros(len(row_I), self._half_type)
        with torch.inference_mode():
            for start in range(0, len(row_I), _BLOCK):
                part = slice(start, min(start + _BLOCK, len(row_I)))
                count = part.stop - part.start
                item_MX = torch.zeros(_padded(count), self._item.width)
                item_MX[:count] = torch.from_numpy(self._item(row_I[np.arange(part.start, part.stop)]))
                target_MD = self._target(item_MX[:, : self._target.weight_YX.shape[1]])
                exact_MY = torch.cat([target_MD, _product(item_MX, self._exact.item_YX, None)], 1)
                wide_MY = item_MX if self._wide is None else _product(item_MX, self._wide.item_YX, None)
                half_I["exact"][part, :exact] = exact_MY[:count].numpy()
                half_I["wide"][part, :wide] = wide_MY[:count, :wide].to(self._type).view(bits).numpy()
        return half_I


@dataclass(frozen=True, slots=True)
class _Asked:
    """A query, and nothing of any item."""

    context_X: Tensor
    exact_Y: Tensor
    """Its part of the sums."""
    wide_Y: Tensor | None
    key_LD: Tensor
    value_DL: Tensor
    bias_L: Tensor


class _Linear:
    """Layers that read the same input, side by side, of one type of number."""

    def __init__(self, layers: Sequence[nn.Linear], dtype: torch.dtype) -> None:
        biases = [torch.zeros(layer.out_features) if layer.bias is None else layer.bias.detach() for layer in layers]
        self.weight_YX = _fixed(torch.cat([layer.weight.detach().cpu() for layer in layers]), dtype)
        self.bias_Y = _fixed(torch.cat([bias.cpu() for bias in biases]), dtype)

    def __call__(self, x_MX: Tensor, then: _Then = "none") -> Tensor:
        return _product(x_MX, self.weight_YX, self.bias_Y, then)

    def of_rows(self, x_MX: NDArray[np.float32]) -> NDArray[np.float32]:
        """The same of a few rows; for 32-bit numbers."""
        y_MY: NDArray[np.float32] = x_MX @ self.weight_YX.numpy().T + self.bias_Y.numpy()
        return y_MY


class _Sums:
    """Such layers of an input of three parts: context, item, and what is a candidate's alone."""

    def __init__(self, layers: Sequence[nn.Linear], dtype: torch.dtype, context: int, item: int) -> None:
        whole = _Linear(layers, torch.float32)
        self.width = len(whole.bias_Y)
        self._context_YX = _fixed(whole.weight_YX[:, :context], torch.float32).numpy()
        self.item_YX = _fixed(whole.weight_YX[:, context : context + item], torch.float32)
        self._bias_Y = whole.bias_Y.numpy()
        self._alone_YK = _fixed(whole.weight_YX[:, context + item :], dtype)

    def query_part(self, context_X: NDArray[np.float32]) -> Tensor:
        return torch.from_numpy(self._context_YX @ context_X + self._bias_Y).to(self._alone_YK.dtype)

    def __call__(self, item_MY: Tensor, alone_MK: Tensor, query_Y: Tensor) -> Tensor:
        return _product_and(item_MY, alone_MK, self._alone_YK, query_Y)


class _Experts:
    """`Experts` after the sums of its first layers and of its gates."""

    def __init__(self, experts: Experts, dtype: torch.dtype) -> None:
        layers = [layer for layer in experts.deeper if isinstance(layer, ExpertLayer)]
        self._count = experts.count
        self._deeper = [
            [(_fixed(weight_YZ.T, dtype), _fixed(bias_Z, dtype)) for weight_YZ, bias_Z in zip(*each, strict=True)]
            for each in ((layer.weight_EYZ, layer.bias_EZ) for layer in layers)
        ]
        self._tower_YZ = _fixed(torch.kron(torch.eye(self._count), experts.tower_AY.detach().cpu()), torch.float32)

    def __call__(self, hidden_MY: Tensor, gate_MA: Tensor) -> Tensor:
        """Logits, (M, A).

        Args:
            hidden_MY: of the first layers, expert by expert.
            gate_MA: expert by expert of each action; empty for one expert.
        """
        for layer in self._deeper:
            each = zip(hidden_MY.chunk(self._count, 1), layer, strict=True)
            hidden_EMZ = [_product(part_MY, weight_ZY, bias_Z, "relu") for part_MY, (weight_ZY, bias_Z) in each]
            hidden_MY = torch.cat(hidden_EMZ, 1) if self._count > 1 else hidden_EMZ[0]
        said_MY = _product(hidden_MY.float(), self._tower_YZ, None)
        if self._count == 1:
            return said_MY
        share_MAE = torch.softmax(gate_MA.reshape(len(gate_MA), -1, self._count), 2)
        return (share_MAE * said_MY.view(len(said_MY), self._count, -1).transpose(1, 2)).sum(2)


def _product(x_MX: Tensor, weight_YX: Tensor, bias_Y: Tensor | None, then: _Then = "none") -> Tensor:
    if _ONE_DNN:
        product_MY: Tensor = torch.ops.mkldnn._linear_pointwise(x_MX, weight_YX, bias_Y, then, [], "")
        return product_MY
    product_MY = functional.linear(x_MX, weight_YX, bias_Y)
    return product_MY.relu_() if then == "relu" else product_MY


def _product_and(more_MY: Tensor, x_MX: Tensor, weight_YX: Tensor, bias_Y: Tensor) -> Tensor:
    """The product and more, added before it is rounded."""
    if _ONE_DNN:
        sum_MY: Tensor = torch.ops.mkldnn._linear_pointwise.binary(x_MX, more_MY, weight_YX, bias_Y, "add")
        return sum_MY
    return functional.linear(x_MX, weight_YX, bias_Y) + more_MY


def _keep_freed_memory() -> None:
    """Without it the system takes back what a request frees and gives it to the next one page by page, which costs as
    much as the products: glibc keeps a multiple of the largest block that was ever freed, here 64 MiB at most.
    """
    torch.empty(31 << 20, dtype=torch.uint8)


def _fixed(weight: Tensor, dtype: torch.dtype) -> Tensor:
    return weight.detach().cpu().to(dtype).contiguous()


def _aligned(columns: int) -> int:
    return -(-columns // _ALIGNED) * _ALIGNED


def _together(offset_B1: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Queries that fit into a block, first and after the last; one that is larger alone."""
    first = 0
    while first < len(offset_B1) - 1:
        after = int(np.searchsorted(offset_B1, offset_B1[first] + _BLOCK, side="right")) - 1
        after = max(after, first + 1)
        yield first, after
        first = after


def _padded(rows: int) -> int:
    return -(-rows // _STEP) * _STEP
