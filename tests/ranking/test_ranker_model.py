"""The ranker's logits: of one pair alone, whatever stands beside it."""

import numpy as np
import pytest
import torch
from ranking_cases import NOW_MS, random_queries, random_ranker, small_items, small_table

from candidate_gen.embedding import tensors
from candidate_gen.features import pair_rows
from ranking.model import Ranker, RankerShape

TABLE = small_table()
ITEMS = small_items(TABLE)
RANKER = random_ranker(TABLE)


def _logits(query_rows: np.ndarray, item_N: np.ndarray, query_N: np.ndarray | None = None) -> np.ndarray:
    item_row_N = ITEMS.row_I[item_N]
    pair_row_N = pair_rows(
        TABLE,
        query_rows if query_N is None else query_rows[query_N],
        item_row_N,
        age_ms_N=NOW_MS - ITEMS.published_ms_I[item_N],
    )
    with torch.inference_mode():
        half = RANKER.query_half(tensors(query_rows, TABLE.of("query")))
        logit_NA: np.ndarray = RANKER(
            half,
            tensors(item_row_N, TABLE.of("item")),
            tensors(pair_row_N, TABLE.of("pair")),
            None if query_N is None else torch.from_numpy(query_N),
        ).numpy()
    return logit_NA


def test_a_candidate_scores_the_same_alone_as_among_others() -> None:
    query_B = random_queries(TABLE, ITEMS, 8)
    item_N = np.arange(len(ITEMS))
    for query in query_B:
        together_NA = _logits(query[None], item_N)
        assert together_NA.std(axis=0).min() > 0.05, "a constant would pass this test"
        alone_NA = np.concatenate([_logits(query[None], item_N[n : n + 1]) for n in range(0, len(ITEMS), 17)])
        np.testing.assert_allclose(alone_NA, together_NA[::17], rtol=0, atol=1e-6)
        np.testing.assert_allclose(_logits(query[None], item_N[::-1].copy())[::-1], together_NA, rtol=0, atol=1e-6)


def test_training_on_many_queries_computes_what_serving_one_does() -> None:
    query_B = random_queries(TABLE, ITEMS, 8)
    query_N, item_N = np.repeat(np.arange(8), 5), np.arange(40)
    together_NA = _logits(query_B, item_N, query_N)
    for b, query in enumerate(query_B):
        np.testing.assert_allclose(_logits(query[None], item_N[query_N == b]), together_NA[query_N == b], atol=2e-6)


def test_the_history_moves_items_that_resemble_it_and_its_padding_does_not() -> None:
    query = random_queries(TABLE, ITEMS, 4)[3:]
    item_N = np.arange(30)
    before_NA = _logits(query, item_N)
    padded = query.copy()
    assert (padded["history_item"][0, 3:] == 0).all()
    padded["history_log_hours"][0, 3:] = 7.0
    np.testing.assert_array_equal(_logits(padded, item_N), before_NA)
    other = query.copy()
    other["history_category"][0, 0] = 1 + other["history_category"][0, 0] % 3
    assert not np.allclose(_logits(other, item_N), before_NA)


def test_an_empty_history_and_no_candidates_are_ordinary() -> None:
    query = random_queries(TABLE, ITEMS, 1)
    assert not (query["history_item"] > 0).any()
    assert np.isfinite(_logits(query, np.arange(5))).all()
    assert _logits(query, np.empty(0, np.int64)).shape == (0, 2)


def test_every_parameter_that_has_data_learns() -> None:
    ranker = random_ranker(TABLE)
    query_B = random_queries(TABLE, ITEMS, 8, text="jazz volume")
    item_row_N = ITEMS.row_I[np.arange(40)]
    query_N = np.repeat(np.arange(8), 5)
    pair_row_N = pair_rows(TABLE, query_B[query_N], item_row_N, age_ms_N=np.arange(40) * 10**7)
    logit_NA = ranker(
        ranker.query_half(tensors(query_B, TABLE.of("query"))),
        tensors(item_row_N, TABLE.of("item")),
        tensors(pair_row_N, TABLE.of("pair")),
        torch.from_numpy(query_N),
    )
    logit_NA.square().sum().backward()
    # No item of the catalogue has a format.
    still = [
        name for name, weight in ranker.named_parameters() if weight.grad is None or not weight.grad.abs().sum() > 0
    ]
    assert still == ["embed.tables.format.weight"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dim": 0}, "dim must be at least 1, got 0"),
        ({"hidden": (8, 0)}, r"hidden\[1\] must be at least 1, got 0"),
        ({"cross_layers": -1}, "cross_layers must not be negative, got -1"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\), got 1.0"),
    ],
)
def test_an_impossible_shape_is_refused(change: dict[str, int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RankerShape(**change)  # type: ignore[arg-type]


def test_without_crosses_or_hidden_layers_it_is_linear_in_its_inputs_and_runs() -> None:
    ranker = Ranker(TABLE, RankerShape(cross_layers=0, hidden=())).eval()
    with torch.inference_mode():
        half = ranker.query_half(tensors(random_queries(TABLE, ITEMS, 1), TABLE.of("query")))
        rows = ITEMS.row_I[np.arange(3)]
        logit_NA = ranker(half, tensors(rows, TABLE.of("item")), tensors(TABLE.empty("pair", 3), TABLE.of("pair")))
    np.testing.assert_array_equal(logit_NA.numpy(), np.zeros((3, 2)), "heads start at zero")
