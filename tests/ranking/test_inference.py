"""The compiled ranker beside the one that is trained, and beside itself."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from ranking_cases import COUNT, NOW_MS, random_queries, small_items, small_table

from candidate_gen.embedding import tensors
from candidate_gen.features import pair_rows
from ranking import inference
from ranking.inference import CompiledRanker, Kind, Precision, checked_precision
from ranking.model import Ranker, RankerShape

TABLE = small_table()
ITEMS = small_items(TABLE)
QUERIES = random_queries(TABLE, ITEMS, 8, text="jazz volume 3")
SHAPES = {
    "crosses and experts": RankerShape(dim=8, query_width=12, rank=6, experts=4, hidden=(16, 8)),
    "crosses and one network": RankerShape(dim=8, query_width=12, cross_layers=3, rank=5, experts=1, hidden=(16, 8, 4)),
    "experts": RankerShape(dim=8, query_width=12, cross_layers=0, experts=3, hidden=(16,)),
    "one network": RankerShape(dim=8, query_width=12, cross_layers=0, experts=1, hidden=(40, 24)),
    "crosses": RankerShape(dim=8, query_width=12, cross_layers=2, rank=6, hidden=()),
    "linear": RankerShape(dim=8, query_width=12, cross_layers=0, hidden=()),
}
KINDS: tuple[Kind, ...] = ("float32", "bfloat16")
every_shape = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
every_kind = pytest.mark.parametrize("kind", KINDS)


def ranker_of(shape: RankerShape, *, noise: float = 0.1) -> Ranker:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        ranker = Ranker(TABLE, shape)
        for parameter in ranker.parameters():
            parameter.data.add_(noise * torch.randn(parameter.shape))
    half = ITEMS.row_I[np.arange(COUNT // 2)]
    ranker.embed.fit_ids(QUERIES, half)
    ranker.embed.fit_numbers(QUERIES, half, pairs(QUERIES[4], np.arange(COUNT)))
    return ranker.eval()


def pairs(query_row: np.ndarray, row_N: NDArray[np.int64]) -> np.ndarray:
    random = np.random.default_rng(0)
    return pair_rows(
        TABLE,
        query_row.reshape(1),
        ITEMS.row_I[row_N],
        age_ms_N=NOW_MS - ITEMS.published_ms_I[row_N],
        tower_score_N=random.random(COUNT, dtype=np.float32)[row_N],
    )


def eager(ranker: Ranker, query_row: np.ndarray, row_N: NDArray[np.int64]) -> NDArray[np.float32]:
    with torch.inference_mode():
        half = ranker.query_half(tensors(query_row, TABLE.of("query")))
        item, pair = tensors(ITEMS.row_I[row_N], TABLE.of("item")), tensors(pairs(query_row, row_N), TABLE.of("pair"))
        logit_NA: NDArray[np.float32] = ranker(half, item, pair).numpy()
    return logit_NA


@every_shape
def test_logits_are_those_of_the_trained_ranker_but_for_rounding(shape: RankerShape) -> None:
    ranker, row_N = ranker_of(shape), np.random.default_rng(1).permutation(COUNT)[:150]
    exact, rounded = (CompiledRanker(ranker, TABLE, ITEMS.row_I, kind=kind) for kind in KINDS)
    for b in range(len(QUERIES)):
        query_row = QUERIES[b : b + 1]
        expected_NA = eager(ranker, query_row, row_N)
        spread = float(expected_NA.std())
        assert spread > 0.05
        logit_NA = exact.logits(query_row, row_N, pairs(query_row, row_N))
        assert logit_NA.dtype == np.float32
        np.testing.assert_allclose(logit_NA, expected_NA, rtol=0, atol=1e-5 * max(1, np.abs(expected_NA).max()))
        logit_NA = rounded.logits(query_row, row_N, pairs(query_row, row_N))
        assert np.abs(logit_NA - expected_NA).mean() < 0.02 * spread


@every_kind
@every_shape
def test_a_candidate_has_the_same_bytes_whatever_else_is_scored(shape: RankerShape, kind: Kind) -> None:
    compiled = CompiledRanker(ranker_of(shape), TABLE, ITEMS.row_I, kind=kind)
    query_row, pair_row_I = QUERIES[6:7], pairs(QUERIES[6], np.arange(COUNT))
    all_IA = compiled.logits(query_row, np.arange(COUNT), pair_row_I)
    random = np.random.default_rng(3)
    for count in (1, 2, 3, 5, 15, 16, 17, 31, 33, 64, 100, 127, 199):
        row_N = random.permutation(COUNT)[:count]
        np.testing.assert_array_equal(compiled.logits(query_row, row_N, pair_row_I[row_N]), all_IA[row_N])
    many_N = random.integers(COUNT, size=1000)
    np.testing.assert_array_equal(compiled.logits(query_row, many_N, pair_row_I[many_N]), all_IA[many_N])
    np.testing.assert_array_equal(compiled.logits(query_row, many_N, pair_row_I[many_N]), all_IA[many_N])


@every_kind
@every_shape
def test_queries_side_by_side_have_the_bytes_that_each_has_alone(shape: RankerShape, kind: Kind) -> None:
    compiled = CompiledRanker(ranker_of(shape), TABLE, ITEMS.row_I, kind=kind)
    random = np.random.default_rng(4)
    rows = [random.integers(COUNT, size=count) for count in (5, 64, 0, 700, 130, 1, 380, 0)]
    pair_rows_of = [pairs(QUERIES[b], row_N) for b, row_N in enumerate(rows)]
    offset_B1 = np.cumsum([0, *map(len, rows)])
    together_NA = compiled.logits_of_many(QUERIES, np.concatenate(rows), np.concatenate(pair_rows_of), offset_B1)
    for b, row_N in enumerate(rows):
        alone_NA = compiled.logits(QUERIES[b : b + 1], row_N, pair_rows_of[b])
        np.testing.assert_array_equal(together_NA[offset_B1[b] : offset_B1[b + 1]], alone_NA)


@every_kind
@every_shape
def test_items_that_come_later_are_kept_as_if_they_had_always_been_there(shape: RankerShape, kind: Kind) -> None:
    ranker = ranker_of(shape)
    whole = CompiledRanker(ranker, TABLE, ITEMS.row_I, kind=kind)
    grown = CompiledRanker(ranker, TABLE, ITEMS.row_I[np.arange(120)], kind=kind)
    for count in (121, 124, 124, COUNT):
        grown = grown.grown(ITEMS.row_I[np.arange(count)])
        assert len(grown.half_I) == count
    assert np.asarray(grown.half_I).tobytes() == np.asarray(whole.half_I).tobytes()
    row_N = np.array([3, 119, 120, 199])
    args = (QUERIES[5:6], row_N, pairs(QUERIES[5], row_N))
    np.testing.assert_array_equal(grown.logits(*args), whole.logits(*args))


def test_what_is_kept_of_other_items_or_another_ranker_is_refused() -> None:
    shape = SHAPES["experts"]
    half_I = CompiledRanker(ranker_of(shape), TABLE, ITEMS.row_I, kind="float32").half_I
    with pytest.raises(ValueError, match=r"part of 200 items, of .* does not fit 199 items"):
        CompiledRanker(ranker_of(shape), TABLE, ITEMS.row_I[np.arange(199)], kind="float32", half_I=half_I)
    with pytest.raises(ValueError, match="does not fit 200 items"):
        CompiledRanker(ranker_of(replace(shape, experts=9)), TABLE, ITEMS.row_I, kind="float32", half_I=half_I)


def checked(ranker: Ranker, *, gain: float = 1.0) -> Precision:
    """Of 8 requests with 25 candidates each."""
    row_N = np.arange(COUNT)
    request_N = row_N // 25
    return checked_precision(
        ranker,
        TABLE,
        query_row_R=QUERIES,
        request_N=request_N,
        item_row_N=np.asarray(ITEMS.row_I),
        pair_row_N=np.concatenate([pairs(QUERIES[r], row_N[request_N == r]) for r in range(len(QUERIES))]),
        gain_N=gain * (np.random.default_rng(4).random(COUNT) < 0.3),
    )


def test_short_numbers_are_used_where_they_leave_the_order_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "halves_are_fast", lambda: True)
    assert checked(ranker_of(SHAPES["linear"])) == Precision("bfloat16", 0.0)
    fine = ranker_of(SHAPES["one network"])
    fine.context.weight.data *= 1e3  # what the query says dwarfs by what the items differ
    assert fine.experts is not None
    refused = checked(fine)
    assert refused.kind == "float32"
    assert refused.ndcg_change is not None
    assert refused.ndcg_change > 1e-4
    assert checked(fine, gain=0.0) == Precision("float32", None)


def test_a_processor_without_short_numbers_uses_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inference, "halves_are_fast", lambda: False)
    assert checked(ranker_of(SHAPES["linear"])) == Precision()
    assert Precision("bfloat16", 0.0).here == "float32"
    monkeypatch.setattr(inference, "halves_are_fast", lambda: True)
    assert Precision("bfloat16", 0.0).here == "bfloat16"
    assert Precision().here == "float32"
