"""Queries encoded without torch beside the tower that is trained."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from retrieval_cases import random_query_rows, small_item_rows, small_table

from candidate_gen.compiled_tower import CompiledQueryTower, QueryEncoder, query_encoder
from candidate_gen.features import Feature, FeatureTable
from candidate_gen.towers import Towers, TowerShape

TABLE = small_table()
ITEM_ROWS = small_item_rows(TABLE, 60)


def query_rows(*, seed: int = 0, count: int = 40) -> np.ndarray:
    """Histories of every length, some with gaps."""
    rows = random_query_rows(TABLE, ITEM_ROWS, count, seed=seed)
    rows["history_item"][::3, 1] = 0
    return rows


ROWS = query_rows()


def towers_of(table: FeatureTable = TABLE, *, seed: int = 0, fitted: bool = False, **shape: Any) -> Towers:
    """Every weight was drawn, those of padding too; half of the rows were seen in training."""
    torch.manual_seed(seed)
    small: dict[str, Any] = {"width": 16, "embedding": 8, "hidden": 12, "heads": 2}
    towers = Towers(table, TowerShape(**{**small, **shape}), temperature=0.1).eval()
    for weight in towers.parameters():
        weight.data.add_(0.3 * torch.randn(weight.shape))
    if fitted:
        towers.embedder.fit_ids(ROWS[:20], ITEM_ROWS[:30])
        towers.embedder.fit_numbers(ROWS[:20], ITEM_ROWS[:30])
    return towers


def each(encode: QueryEncoder, rows: np.ndarray) -> NDArray[np.float32]:
    return np.array([encode(rows[b : b + 1]) for b in range(len(rows))])


@settings(max_examples=40)
@given(
    history=st.sampled_from(["mean", "attention"]),
    similarity=st.sampled_from(["cosine", "dot"]),
    width=st.integers(1, 20),
    embedding=st.integers(1, 12),
    hidden=st.integers(1, 20),
    heads=st.integers(1, 5),
    fitted=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_vectors_are_those_of_the_trained_tower(seed: int, fitted: bool, **shape: Any) -> None:
    towers, rows = towers_of(seed=seed, fitted=fitted, **shape), query_rows(seed=seed, count=12)
    encode = query_encoder(towers)
    assert isinstance(encode, CompiledQueryTower)
    expected_BD = towers.encode_queries(rows)
    longest = max(1.0, np.abs(expected_BD).max())
    np.testing.assert_allclose(each(encode, rows), expected_BD, rtol=0, atol=1e-5 * longest)


def test_towers_as_wide_as_usual_are_met_as_closely() -> None:
    shape = TowerShape()
    wide: dict[str, Any] = {
        "width": shape.width,
        "embedding": shape.embedding,
        "hidden": shape.hidden,
        "heads": shape.heads,
    }
    towers = towers_of(fitted=True, **wide)
    found_BD = each(query_encoder(towers), ROWS)
    assert found_BD.dtype == np.float32
    np.testing.assert_allclose(found_BD, towers.encode_queries(ROWS), rtol=0, atol=1e-5)


@pytest.mark.parametrize("history", ["mean", "attention"])
def test_a_query_of_which_nothing_is_known_has_the_trained_vector(history: str) -> None:
    towers = towers_of(history=history)
    nobody = TABLE.empty("query", 1)
    np.testing.assert_allclose(query_encoder(towers)(nobody), towers.encode_queries(nobody)[0], rtol=0, atol=1e-5)


def test_a_history_without_numbers_and_nothing_else_to_know_are_enough() -> None:
    item = Feature("item_id", "item", "id", 9)
    past = Feature("history_item", "history", "id", 9, (3,), shares="item_id")
    towers = towers_of(FeatureTable((past, item), (), ()))
    rows = towers.table.empty("query", 3)
    rows["history_item"] = [[1, 2, 3], [8, 0, 1], [0, 0, 0]]
    np.testing.assert_allclose(each(query_encoder(towers), rows), towers.encode_queries(rows), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    "shape",
    [
        {"history": "transformer"},
        {"hidden": 0},
        {"start": 4},
        {"spectral": 4},
        {"propagation": 0.5},
    ],
)
def test_towers_that_are_not_compiled_are_asked_themselves(shape: dict[str, Any]) -> None:
    towers = towers_of(fitted=True, **shape)
    encode = query_encoder(towers)
    assert not isinstance(encode, CompiledQueryTower)
    for b in range(4):
        assert np.array_equal(encode(ROWS[b : b + 1]), towers.encode_queries(ROWS[b : b + 1])[0])


def test_threads_that_share_an_encoder_get_the_same_bits() -> None:
    encode = query_encoder(towers_of(fitted=True))
    expected_BD = each(encode, ROWS)
    with ThreadPoolExecutor(4) as threads:
        for found_BD in threads.map(lambda _: each(encode, ROWS), range(8)):
            assert found_BD.tobytes() == expected_BD.tobytes()


def test_a_row_is_read_and_not_changed() -> None:
    encode = query_encoder(towers_of(fitted=True))
    row = ROWS[:1].copy()
    row.flags.writeable = False
    first_D = encode(row)
    kept_D = first_D.copy()
    encode(ROWS[5:6])
    assert np.array_equal(first_D, kept_D)
    assert row.tobytes() == ROWS[:1].tobytes()
