import warnings

import numpy as np
import pytest
import torch
from retrieval_cases import random_query_rows, small_item_rows, small_table

from candidate_gen.embedding import FeatureEmbedder, tensors
from candidate_gen.features import Feature, FeatureTable

TABLE = small_table()
ITEM_ROWS = small_item_rows(TABLE, 60)
QUERY_ROWS = random_query_rows(TABLE, ITEM_ROWS, 40)


def embedder(*, dim: int = 8) -> FeatureEmbedder:
    torch.manual_seed(0)
    return FeatureEmbedder(TABLE, "query", "item", dim=dim)


def item_columns(rows: np.ndarray = ITEM_ROWS) -> dict[str, torch.Tensor]:
    return tensors(rows, TABLE.of("item"))


def test_tensors_hold_what_the_records_hold_for_one_and_for_many() -> None:
    many = tensors(QUERY_ROWS, TABLE.of("query"))
    one = tensors(QUERY_ROWS[3], TABLE.of("query"))
    for feature in TABLE.of("query"):
        assert many[feature.name].shape == (40, *feature.shape)
        assert many[feature.name].dtype == (torch.int32 if feature.kind == "id" else torch.float32)
        assert torch.equal(many[feature.name], torch.from_numpy(QUERY_ROWS[feature.name].copy()))
        assert torch.equal(one[feature.name][0], many[feature.name][3])


def test_tensors_of_read_only_records_are_copies_and_no_warning() -> None:
    read_only = np.zeros(3, [("age", "<f4")])
    read_only.flags.writeable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        column = tensors(read_only, (Feature("age", "user", "number"),))["age"]
    column += 1
    assert not read_only["age"].any()


def test_an_id_over_two_hashes_is_the_sum_of_its_rows() -> None:
    each = embedder()
    weight = each.get_parameter("tables.item_id.weight")
    ids = torch.tensor([[3, 9], [5, 5], [0, 0]])
    assert torch.allclose(
        each.embed("item_id", ids), torch.stack([weight[3] + weight[9], 2 * weight[5], 0 * weight[0]])
    )


def test_a_history_and_an_item_are_embedded_in_the_same_table() -> None:
    each = embedder()
    ids_BLH = torch.from_numpy(QUERY_ROWS["history_item"].copy())
    assert torch.equal(each.embed("history_item", ids_BLH), each.embed("item_id", ids_BLH))
    assert "history_item" not in each.tables
    assert each.embed("history_item", ids_BLH).shape == (40, 5, 8)


def test_a_list_is_the_mean_of_its_entries_that_are_not_padding() -> None:
    each = embedder()
    columns = tensors(QUERY_ROWS, TABLE.of("query"))
    vectors = each.embed("history_item", columns["history_item"])
    held = (columns["history_item"] > 0).any(-1)
    expected = torch.stack([v[h].mean(0) if h.any() else torch.zeros(8) for v, h in zip(vectors, held, strict=True)])
    assert torch.allclose(each(columns, ["history_item"]), expected, atol=1e-6)
    tokens = item_columns()["title"]
    words = each.embed("title", tokens)
    expected = torch.stack([w[t > 0].mean(0) for w, t in zip(words, tokens, strict=True)])
    assert torch.allclose(each(item_columns(), ["title"]), expected, atol=1e-6)


def test_forward_is_as_wide_as_it_says() -> None:
    each = embedder()
    columns = tensors(QUERY_ROWS, TABLE.of("query")) | {n: c[:40] for n, c in item_columns().items()}
    assert each(columns).shape == (40, each.width)
    names = ["hour", "age", "history_log_hours", "title"]
    assert each(columns, names).shape == (40, each.width_of(names)) == (40, 8 + 1 + 1 + 8)


def test_numbers_are_standardised_by_the_training_rows() -> None:
    each = embedder()
    each.fit_numbers(QUERY_ROWS, ITEM_ROWS)
    age_B1 = each(tensors(QUERY_ROWS, TABLE.of("query")), ["age"])
    minutes_I1 = each(item_columns(), ["minutes"])
    for values in (age_B1, minutes_I1):
        assert float(values.detach().mean()) == pytest.approx(0, abs=1e-6)
        assert float(values.detach().std(unbiased=False)) == pytest.approx(1, abs=1e-5)


def test_padding_of_a_list_of_numbers_is_left_out_of_its_mean_and_deviation() -> None:
    each = embedder()
    each.fit_numbers(QUERY_ROWS)
    held = (QUERY_ROWS["history_item"] > 0).any(-1)
    values = QUERY_ROWS["history_log_hours"][held]
    standard = each.standardise("history_log_hours", torch.from_numpy(values.copy()))
    assert float(standard.mean()) == pytest.approx(0, abs=1e-5)
    assert float(standard.std(unbiased=False)) == pytest.approx(1, abs=1e-5)


def test_a_number_that_never_varied_in_training_is_switched_off() -> None:
    each = embedder()
    constant = QUERY_ROWS.copy()
    constant["age"] = 41.7
    each.fit_numbers(constant)
    constant["age"] = np.linspace(-1e6, 1e6, len(constant))
    assert not each(tensors(constant, TABLE.of("query")), ["age"]).any()


def test_a_number_far_from_training_is_cut_at_eight_deviations() -> None:
    each = embedder()
    each.fit_numbers(QUERY_ROWS)
    far = QUERY_ROWS[:2].copy()
    far["age"] = [1e30, -1e30]
    assert each(tensors(far, TABLE.of("query")), ["age"]).flatten().tolist() == [8.0, -8.0]


def test_an_id_that_training_never_held_counts_as_unknown() -> None:
    each = embedder()
    each.fit_ids(ITEM_ROWS[:30], QUERY_ROWS)
    known = set(map(tuple, ITEM_ROWS["item_id"][:30].tolist())) | set(
        map(tuple, QUERY_ROWS["history_item"].reshape(-1, 2).tolist())
    )
    kept = each.known("item_id", torch.from_numpy(ITEM_ROWS["item_id"].copy()))
    for before, after in zip(ITEM_ROWS["item_id"].tolist(), kept.tolist(), strict=True):
        assert after == (before if tuple(before) in known else [0, 0])


def test_one_trained_hash_of_two_does_not_make_an_id_known() -> None:
    each = embedder()
    rows = ITEM_ROWS[:2].copy()
    rows["item_id"] = [[3, 4], [5, 6]]
    each.fit_ids(rows)
    assert each.known("item_id", torch.tensor([[3, 4], [3, 6], [4, 3], [5, 6]])).tolist() == [
        [3, 4],
        [0, 0],
        [0, 0],
        [5, 6],
    ]


def test_before_fitting_every_id_is_known() -> None:
    ids = torch.from_numpy(ITEM_ROWS["item_id"].copy())
    assert torch.equal(embedder().known("item_id", ids), ids)


def test_what_was_fitted_is_part_of_the_weights() -> None:
    fitted, fresh = embedder(), embedder()
    fitted.fit_ids(ITEM_ROWS[:9], QUERY_ROWS[:9])
    fitted.fit_numbers(ITEM_ROWS[:9], QUERY_ROWS[:9])
    fresh.load_state_dict(fitted.state_dict())
    columns = tensors(QUERY_ROWS, TABLE.of("query")) | {n: c[:40] for n, c in item_columns().items()}
    assert torch.equal(fresh(columns), fitted(columns))


def test_a_single_hash_keeps_the_ids_of_training_and_no_others() -> None:
    table = FeatureTable((Feature("city", "user", "id", 9),), (), ())
    each = FeatureEmbedder(table, "query", dim=2)
    rows = table.empty("query", 3)
    rows["city"] = [2, 7, 2]
    each.fit_ids(rows)
    assert each.known("city", torch.arange(9)).tolist() == [0, 0, 2, 0, 0, 0, 0, 7, 0]


def test_a_table_with_sparse_gradients_gets_the_same_ones_and_names_only_rows_that_were_read() -> None:
    dense, sparse = embedder(), embedder()
    columns = tensors(QUERY_ROWS, TABLE.of("query")) | {n: c[:40] for n, c in item_columns().items()}
    for table in sparse.tables.values():
        assert isinstance(table, torch.nn.Embedding)
        table.sparse = True
    for each in (dense, sparse):
        # The history goes through `embed` and, as a mean, through `forward`, into one gradient.
        total = each(columns).square().sum() + each.embed("history_item", columns["history_item"]).square().sum()
        torch.autograd.backward(total)
    for (name, expected), given in zip(dense.named_parameters(), sparse.parameters(), strict=True):
        assert expected.grad is not None, name
        assert given.grad is not None, name
        assert given.grad.is_sparse, name
        torch.testing.assert_close(given.grad.to_dense(), expected.grad, msg=name)
        assert not given.grad.to_dense()[0].any(), name
    rows = sparse.get_parameter("tables.item_id.weight").grad
    assert rows is not None
    read = {0, *QUERY_ROWS["history_item"].ravel().tolist(), *ITEM_ROWS["item_id"][:40].ravel().tolist()}
    assert set(rows.coalesce().indices()[0].tolist()) <= read
