"""The ranker's logits: of one pair alone, whatever stands beside it."""

from collections.abc import Callable, Mapping

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from ranking_cases import NOW_MS, random_queries, random_ranker, small_items, small_table

from candidate_gen.embedding import tensors
from candidate_gen.features import pair_rows
from ranking.model import ExpertLayer, Experts, Ranker, RankerShape

TABLE = small_table()
ITEMS = small_items(TABLE)
RANKER = random_ranker(TABLE)
QUERY = random_queries(TABLE, ITEMS, 5)[4:]
Columns = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]
"""Of items and of pairs."""


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


def _columns(query: np.ndarray, item_N: np.ndarray) -> Columns:
    item_row_N = ITEMS.row_I[item_N]
    pair_row_N = pair_rows(TABLE, query, item_row_N, age_ms_N=NOW_MS - ITEMS.published_ms_I[item_N])
    return tensors(item_row_N, TABLE.of("item")), tensors(pair_row_N, TABLE.of("pair"))


def _in_double(columns: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: column.double() if column.is_floating_point() else column for name, column in columns.items()}


def _precise(query: np.ndarray, item_N: np.ndarray) -> np.ndarray:
    """Logits without the rounding of 32 bits."""
    ranker = random_ranker(TABLE).double()
    item, pair = _columns(query, item_N)
    with torch.inference_mode():
        half = ranker.query_half(_in_double(tensors(query, TABLE.of("query"))))
        logit_NA: np.ndarray = ranker(half, _in_double(item), _in_double(pair)).numpy()
    return logit_NA


Score = Callable[[Ranker, dict[str, torch.Tensor], dict[str, torch.Tensor]], torch.Tensor]


def _as_it_is(ranker: Ranker, item: dict[str, torch.Tensor], pair: dict[str, torch.Tensor]) -> torch.Tensor:
    logit_NA: torch.Tensor = ranker(ranker.query_half(tensors(QUERY, TABLE.of("query"))), item, pair)
    return logit_NA


def _normalised(ranker: Ranker, item: dict[str, torch.Tensor], pair: dict[str, torch.Tensor]) -> torch.Tensor:
    """What a layer that looks at the batch would do, ever so slightly."""
    logit_NA = _as_it_is(ranker, item, pair)
    return logit_NA - 1e-3 * logit_NA.mean(0)


def _moved_by_neighbours(score: Score, place: int) -> bool:
    """Whether one bit of the logits in a place changes when every other candidate does, however strangely."""
    random = np.random.default_rng(place)
    seen = set()
    for kind in ("others", "one many times", "extreme", "not finite"):
        item_N = random.integers(len(ITEMS), size=40)
        if kind == "one many times":
            item_N[:] = 3
        item_N[place] = 7
        item, pair = _columns(QUERY, item_N)
        other = torch.arange(40) != place
        for columns in (item, pair):
            for column in columns.values():
                if column.is_floating_point() and kind in ("extreme", "not finite"):
                    column[other] = 3e38 if kind == "extreme" else torch.nan
        with torch.inference_mode():
            seen.add(score(RANKER, item, pair)[place].numpy().tobytes())
    return len(seen) > 1


@pytest.mark.parametrize("place", [0, 1, 17, 38, 39])
def test_in_its_place_a_candidate_scores_the_same_to_the_last_bit_whatever_the_others_are(place: int) -> None:
    assert not _moved_by_neighbours(_as_it_is, place)
    assert _moved_by_neighbours(_normalised, place), "this test sees the slightest dependence"


@settings(max_examples=40)
@given(st.lists(st.integers(0, len(ITEMS) - 1), min_size=1, max_size=60))
def test_subsets_orders_and_repeats_of_candidates_leave_only_rounding(item_ids: list[int]) -> None:
    """Where a candidate stands and how many there are decides which kernel multiplies its row, so that the last bits
    of 32 may differ; with 64 bits there is next to nothing left."""
    item_N = np.array(item_ids)
    everything = np.arange(len(ITEMS))
    assert _logits(QUERY, everything).std(axis=0).min() > 0.05, "a constant would pass this test"
    np.testing.assert_allclose(_logits(QUERY, item_N), _logits(QUERY, everything)[item_N], rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(_precise(QUERY, item_N), _precise(QUERY, everything)[item_N], rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("experts", [1, 3])
def test_experts_are_networks_of_their_own_that_each_action_mixes(experts: int) -> None:
    """Against the mixture written out, expert by expert."""
    torch.manual_seed(0)
    mixture = Experts(6, RankerShape(experts=experts, hidden=(5, 4)), actions=2).eval()
    torch.nn.init.normal_(mixture.tower_AY)
    x_NX = torch.randn(7, 6)
    share_NAE = torch.ones(7, 2, 1)
    if mixture.gates is not None:
        share_NAE = torch.softmax(mixture.gates(x_NX).view(7, 2, experts), -1)
    expected_NA = torch.zeros(7, 2)
    for e in range(experts):
        weight, bias = mixture.first.weight[5 * e : 5 * e + 5], mixture.first.bias[5 * e : 5 * e + 5]
        hidden = torch.relu(x_NX @ weight.T + bias)
        (deeper,) = mixture.deeper
        assert isinstance(deeper, ExpertLayer)
        hidden = torch.relu(hidden @ deeper.weight_EYZ[e] + deeper.bias_EZ[e])
        expected_NA += share_NAE[:, :, e] * (hidden @ mixture.tower_AY.T)
    torch.testing.assert_close(mixture(x_NX), expected_NA)


def test_training_on_many_queries_computes_what_serving_one_does() -> None:
    query_B = random_queries(TABLE, ITEMS, 8)
    query_N, item_N = np.repeat(np.arange(8), 5), np.arange(40)
    together_NA = _logits(query_B, item_N, query_N)
    for b, query in enumerate(query_B):
        np.testing.assert_allclose(
            _logits(query[None], item_N[query_N == b]), together_NA[query_N == b], rtol=1e-5, atol=1e-5
        )


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
        ({"experts": 0}, "experts must be at least 1, got 0"),
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
    np.testing.assert_array_equal(logit_NA.numpy(), np.zeros((3, 2)), "what is linear starts at zero")
