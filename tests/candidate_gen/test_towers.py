import json
from pathlib import Path
from typing import cast

import numpy as np
import pytest
import torch
from retrieval_cases import random_query_rows, small_item_rows, small_table
from safetensors.torch import load_file, save_file
from torch import nn

from candidate_gen.embedding import tensors
from candidate_gen.features import Feature, FeatureTable
from candidate_gen.losses import full_softmax, sampled_softmax
from candidate_gen.towers import Towers, TowerShape

TABLE = small_table()
ITEM_ROWS = small_item_rows(TABLE, 60)
QUERY_ROWS = random_query_rows(TABLE, ITEM_ROWS, 80)
SHAPE = TowerShape(width=16, embedding=8, hidden=12, heads=2, id_dropout=0.3)


def small_towers(*, fitted: bool = True, seed: int = 0) -> Towers:
    torch.manual_seed(seed)
    towers = Towers(TABLE, SHAPE, temperature=0.1)
    if fitted:
        towers.embedder.fit_ids(QUERY_ROWS, ITEM_ROWS)
        towers.embedder.fit_numbers(QUERY_ROWS, ITEM_ROWS)
    return towers.eval()


def test_vectors_have_length_one() -> None:
    towers = small_towers()
    for vectors in (towers.encode_queries(QUERY_ROWS), towers.encode_items(ITEM_ROWS)):
        assert vectors.dtype == np.float32
        assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(len(vectors)), abs=1e-5)


def test_serving_equals_the_forward_that_was_trained() -> None:
    towers = small_towers()
    with torch.no_grad():
        query_BD = towers.query_vectors(tensors(QUERY_ROWS, TABLE.of("query"))).numpy()
        item_ID = towers.item_vectors(tensors(ITEM_ROWS, TABLE.of("item"))).numpy()
    assert np.abs(towers.encode_queries(QUERY_ROWS) - query_BD).max() < 1e-5
    assert np.abs(towers.encode_items(ITEM_ROWS, batch=7) - item_ID).max() < 1e-5
    for n in range(5):
        assert np.abs(towers.encode_queries(QUERY_ROWS[n : n + 1])[0] - query_BD[n]).max() < 1e-5


def test_encoding_does_not_drop_ids_and_leaves_the_mode_as_it_was() -> None:
    towers = small_towers()
    expected = towers.encode_queries(QUERY_ROWS)
    towers.train()
    assert np.array_equal(towers.encode_queries(QUERY_ROWS), expected)
    assert towers.training


def test_no_rows_give_no_vectors() -> None:
    assert small_towers().encode_queries(QUERY_ROWS[:0]).shape == (0, 16)


def test_a_query_without_any_history_still_has_a_finite_unit_vector() -> None:
    vector = small_towers().encode_queries(TABLE.empty("query", 1))
    assert np.isfinite(vector).all()
    assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)


def test_padding_of_a_history_does_not_matter() -> None:
    towers = small_towers()
    filled = (QUERY_ROWS["history_item"] > 0).any(-1)
    dirty = QUERY_ROWS.copy()
    dirty["history_log_hours"][~filled] = 123.0
    dirty["history_action"][~filled] = 1
    assert np.array_equal(towers.encode_queries(dirty), towers.encode_queries(QUERY_ROWS))


def test_the_order_of_a_history_matters() -> None:
    towers = small_towers()
    with torch.no_grad():
        assert towers.query_tower.history is not None
        cast(nn.Parameter, towers.query_tower.history.position_LE).normal_()
    full = QUERY_ROWS[(QUERY_ROWS["history_item"] > 0).all((1, 2))]
    turned = full.copy()
    for name in ("history_item", "history_category", "history_creator", "history_action", "history_log_hours"):
        turned[name] = full[name][:, ::-1]
    assert np.abs(towers.encode_queries(turned) - towers.encode_queries(full)).max(axis=1).min() > 1e-3


def test_what_was_typed_matters() -> None:
    towers = small_towers()
    typed = QUERY_ROWS[:10].copy()
    typed["text"] = TABLE.encode("text", ["art volume 3"])
    silent = typed.copy()
    silent["text"] = 0
    assert np.abs(towers.encode_queries(typed) - towers.encode_queries(silent)).max(axis=1).min() > 1e-3


def test_counters_of_an_item_do_not_move_its_vector() -> None:
    towers = small_towers()
    counted = ITEM_ROWS.copy()
    counted["log_shown"] = 9
    counted["click_rate"] = 0.5
    assert np.array_equal(towers.encode_items(counted), towers.encode_items(ITEM_ROWS))


def test_a_new_item_has_the_vector_of_its_content_whatever_its_id() -> None:
    towers = small_towers()
    new = ITEM_ROWS[:3].copy()
    new["item_id"] = TABLE.encode("item_id", ["never", "seen", "before"])
    nameless = new.copy()
    nameless["item_id"] = 0
    assert np.array_equal(towers.encode_items(new), towers.encode_items(nameless))


@pytest.mark.parametrize("loss", ["full", "sampled"])
def test_every_parameter_receives_a_gradient(loss: str) -> None:
    towers = small_towers().train()
    torch.manual_seed(1)
    query_BD = towers.query_vectors(tensors(QUERY_ROWS, TABLE.of("query")))
    item_ID = towers.item_vectors(tensors(ITEM_ROWS, TABLE.of("item")))
    row_B = torch.arange(len(QUERY_ROWS)) % len(ITEM_ROWS)
    if loss == "full":
        value = full_softmax(query_BD, item_ID, item_row_B=row_B, temperature=0.1)
    else:
        ones_I = torch.ones(len(item_ID))
        value = sampled_softmax(query_BD, item_ID, own_B=row_B, count_S=ones_I, log_q_S=-4.0 * ones_I, temperature=0.1)
    torch.autograd.backward(value)
    without = [name for name, weight in towers.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert without == []


def test_id_dropout_hides_ids_in_training_only() -> None:
    towers = small_towers().train()
    columns = tensors(ITEM_ROWS, TABLE.of("item"))
    torch.manual_seed(3)
    with torch.no_grad():
        dropped = towers.item_vectors(columns).numpy()
        nameless = towers.eval().item_vectors({**columns, "item_id": torch.zeros_like(columns["item_id"])}).numpy()
        shown = towers.item_vectors(columns).numpy()
    hidden = np.abs(dropped - nameless).max(axis=1) < 1e-6
    kept = np.abs(dropped - shown).max(axis=1) < 1e-6
    assert (hidden | kept).all()
    assert 0.1 < hidden.mean() < 0.5


def test_what_is_saved_is_loaded(tmp_path: Path) -> None:
    towers = small_towers()
    towers.save(tmp_path)
    again = Towers.load(tmp_path, TABLE)
    assert again.fingerprint == towers.fingerprint
    assert not again.training
    assert again.temperature == 0.1
    assert np.array_equal(again.encode_queries(QUERY_ROWS), towers.encode_queries(QUERY_ROWS))
    assert np.array_equal(again.encode_items(ITEM_ROWS), towers.encode_items(ITEM_ROWS))


def test_the_fingerprint_is_of_weights_shape_and_table() -> None:
    towers = small_towers()
    assert len(towers.fingerprint) == 16
    assert small_towers().fingerprint == towers.fingerprint
    prints = {towers.fingerprint, small_towers(seed=1).fingerprint, small_towers(fitted=False).fingerprint}
    with torch.no_grad():
        cast(nn.Linear, towers.item_tower.projection.straight).weight[0, 0] += 1e-6
    assert towers.fingerprint not in prints
    assert len(prints) == 3


def test_towers_of_another_feature_table_are_refused_with_both_fingerprints(tmp_path: Path) -> None:
    small_towers().save(tmp_path)
    other = small_table(items=5000)
    with pytest.raises(ValueError, match=f"{TABLE.fingerprint}.*{other.fingerprint}"):
        Towers.load(tmp_path, other)


def test_weights_that_are_missing_or_of_another_shape_are_refused(tmp_path: Path) -> None:
    small_towers().save(tmp_path)
    weights = load_file(tmp_path / "towers.safetensors")
    name = "item_tower.projection.straight.weight"
    save_file({**weights, name: weights[name][:, :-1].contiguous()}, tmp_path / "towers.safetensors")
    with pytest.raises(ValueError, match=f"does not fit its description.*{name}"):
        Towers.load(tmp_path, TABLE)
    del weights[name]
    save_file(weights, tmp_path / "towers.safetensors")
    with pytest.raises(ValueError, match=f"does not fit its description.*{name}"):
        Towers.load(tmp_path, TABLE)


def test_weights_that_are_not_those_described_are_refused(tmp_path: Path) -> None:
    small_towers().save(tmp_path)
    described = json.loads((tmp_path / "towers.json").read_text())
    small_towers(seed=1).save(tmp_path)
    (tmp_path / "towers.json").write_text(json.dumps(described))
    with pytest.raises(ValueError, match=described["fingerprint"]):
        Towers.load(tmp_path, TABLE)


@pytest.mark.parametrize(("field", "value"), [("width", 0), ("heads", 0), ("id_dropout", 1.0), ("id_dropout", -0.1)])
def test_a_shape_that_cannot_be_is_refused_by_name(field: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{field} is {value}"):
        TowerShape(**{field: value})  # type: ignore[arg-type]


def test_a_table_of_two_ids_is_enough() -> None:
    table = FeatureTable((Feature("user_id", "user", "id", 9), Feature("item_id", "item", "id", 9)), (), ())
    towers = Towers(table, SHAPE, temperature=0.1)
    assert towers.encode_queries(table.empty("query", 2)).shape == (2, 16)
    assert towers.encode_items(table.empty("item", 3)).shape == (3, 16)
