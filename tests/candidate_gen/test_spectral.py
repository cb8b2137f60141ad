from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from retrieval_cases import random_query_rows, small_item_rows, small_table
from torch import Tensor

from candidate_gen.embedding import FeatureEmbedder, tensors
from candidate_gen.features import Feature, FeatureTable
from candidate_gen.spectral import Graph, GraphFactors, spectral_factors
from candidate_gen.towers import Towers, TowerShape

USERS, ITEMS, FACTORS = 12, 9, 4
RANDOM = np.random.default_rng(0)
MATRIX = RANDOM.random((USERS, ITEMS)) < 0.4
MATRIX[0], MATRIX[:, 0] = False, False  # a user who took nothing, an item that nobody took
USER_T, ITEM_T = np.nonzero(MATRIX)
IDS = FeatureTable(
    (Feature("user_id", "user", "id", USERS + 1), Feature("item_id", "item", "id", ITEMS + 2)), actions=(), sources=()
)
SHAPE = TowerShape(width=6, embedding=6, hidden=0, id_dropout=0.0, start=FACTORS)


def normalised(matrix_UI: NDArray[np.bool_]) -> NDArray[np.float64]:
    users_U, items_I = (np.maximum(matrix_UI.sum(axis), 1) for axis in (1, 0))
    return np.asarray(matrix_UI / np.sqrt(users_U)[:, None] / np.sqrt(items_I))


def unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.asarray(rows / np.where(length > 0, length, 1))


def graph(*, again: int = 1) -> Graph:
    return Graph(np.tile(USER_T, again), np.tile(ITEM_T, again), users=USERS, items=ITEMS)


def id_rows(row: str, ids: NDArray[np.int64]) -> np.ndarray:
    rows = IDS.empty("query" if row == "user_id" else "item", len(ids))
    rows[row] = ids
    return rows


def id_towers(shape: TowerShape = SHAPE, *, seed: int = 0) -> Towers:
    """Towers of ids alone that know users 1 to 12 and items 1 to 9."""
    torch.manual_seed(seed)
    towers = Towers(IDS, shape, temperature=0.1)
    query_row_T, item_row_T = id_rows("user_id", USER_T + 1), id_rows("item_id", ITEM_T + 1)
    towers.embedder.fit_ids(query_row_T, item_row_T)
    towers.fit_graph(query_row_T, item_row_T, seed=seed)
    return towers.eval()


def test_sums_over_the_graph_are_products_with_its_matrix() -> None:
    each_ID, each_UD = (torch.from_numpy(RANDOM.standard_normal((n, 3))) for n in (ITEMS, USERS))
    matrix = torch.from_numpy(MATRIX.astype(np.float64))
    assert torch.allclose(graph().over_items(each_ID), matrix @ each_ID)
    assert torch.allclose(graph(again=2).over_users(each_UD), matrix.T @ each_UD)


def test_factors_are_the_singular_vectors_of_the_normalised_matrix() -> None:
    _, value_K, factor_KI = np.linalg.svd(normalised(MATRIX))
    factor_IK = spectral_factors(graph(again=3), FACTORS, seed=1).numpy()
    for k in range(FACTORS):
        assert value_K[k] - value_K[k + 1] > 1e-3, "the case must tell the factors apart"
        assert abs(factor_IK[:, k] @ factor_KI[k]) == pytest.approx(1, abs=1e-4)
    assert np.linalg.norm(normalised(MATRIX) @ factor_IK, axis=0) == pytest.approx(value_K[:FACTORS], abs=1e-4)


def test_more_factors_than_there_are_stay_zero() -> None:
    factor_IK = spectral_factors(graph(), 20, seed=0)
    rank = np.linalg.matrix_rank(MATRIX)
    assert factor_IK.shape == (ITEMS, 20)
    assert not factor_IK[0].any()
    assert torch.allclose(factor_IK.norm(dim=0), (torch.arange(20) < rank).float(), atol=1e-4)


def test_the_same_seed_gives_the_same_factors() -> None:
    assert torch.equal(spectral_factors(graph(), FACTORS, seed=3), spectral_factors(graph(), FACTORS, seed=3))


def test_a_user_has_their_singular_vector() -> None:
    left_UK, value_K, _ = np.linalg.svd(normalised(MATRIX), full_matrices=False)
    expected = unit((left_UK * value_K)[:, :FACTORS])
    towers = id_towers()
    assert towers.graph is not None
    rows = id_rows("user_id", np.arange(1, USERS + 1))
    found = unit(towers.graph.queries(tensors(rows, IDS.of("query")), towers.embedder).numpy().astype(np.float64))
    assert found @ found.T == pytest.approx(expected @ expected.T, abs=1e-4)  # the signs of factors are free


TABLE = small_table(items=ITEMS, users=USERS)
ITEM_ROWS = small_item_rows(TABLE, ITEMS)


def with_history(length: int) -> tuple[GraphFactors, FeatureEmbedder, dict[str, Tensor]]:
    """Factors of the matrix, and queries of an unknown user who took what each user of it took."""
    torch.manual_seed(0)
    embedder = FeatureEmbedder(TABLE, "query", "item", dim=4)
    query_rows = random_query_rows(TABLE, ITEM_ROWS, USERS)
    query_rows["user_id"] = TABLE.encode("user_id", [f"u{n}" for n in range(USERS)])
    embedder.fit_ids(query_rows[USER_T], ITEM_ROWS)
    factors = GraphFactors(TABLE, start=FACTORS, spectral=0)
    factors.fit(embedder, query_rows[USER_T], ITEM_ROWS[ITEM_T], seed=0)
    asked = TABLE.empty("query", USERS)
    for user, row in enumerate(asked):
        took = np.flatnonzero(MATRIX[user])[:length]
        row["history_item"][: len(took)] = ITEM_ROWS["item_id"][took]
    return factors, embedder, tensors(asked, TABLE.of("query"))


def test_a_stranger_with_a_users_history_has_the_factors_of_the_user() -> None:
    places = TABLE["history_item"].shape[0]
    factors, embedder, columns = with_history(places)
    left_UK, value_K, _ = np.linalg.svd(normalised(MATRIX), full_matrices=False)
    expected = unit((left_UK * value_K)[:, :FACTORS])
    found = factors.queries(columns, embedder).numpy().astype(np.float64)
    held = (MATRIX.sum(1) <= places) & MATRIX.any(1)
    assert held.sum() > 4
    assert unit(found)[held] @ unit(found)[held].T == pytest.approx(expected[held] @ expected[held].T, abs=1e-3)
    assert not found[~MATRIX.any(1)].any()


def test_as_of_a_place_only_what_is_older_counts() -> None:
    factors, embedder, columns = with_history(3)
    row_T, place_T = torch.arange(USERS), torch.ones(USERS, dtype=torch.int64)
    found = factors.queries(columns, embedder, (row_T, place_T))
    columns["history_item"] = columns["history_item"][:, 1:]
    assert torch.allclose(found, factors.queries(columns, embedder), atol=1e-5)


def test_strangers_and_new_items_have_finite_vectors_of_length_one() -> None:
    torch.manual_seed(0)
    towers = Towers(TABLE, replace(SHAPE, hidden=8, embedding=4, start=2), temperature=0.1)
    query_rows = random_query_rows(TABLE, ITEM_ROWS, 40)
    towers.embedder.fit_ids(query_rows, ITEM_ROWS)
    towers.fit_graph(query_rows, ITEM_ROWS[RANDOM.integers(ITEMS, size=40)], seed=0)
    query_rows["user_id"] = TABLE.encode("user_id", ["stranger"])
    for vectors in (
        towers.encode_queries(query_rows),
        towers.encode_items(small_item_rows(TABLE, 5, first=100)),
    ):
        assert np.linalg.norm(vectors, axis=1) == pytest.approx(np.ones(len(vectors)), abs=1e-5)


def test_towers_start_from_the_graph() -> None:
    towers = id_towers(replace(SHAPE, width=4, embedding=4))
    assert towers.graph is not None
    item_rows = id_rows("item_id", np.arange(2, ITEMS + 1))
    factor_IK = towers.graph.items(tensors(item_rows, IDS.of("item")), towers.embedder)
    cosine_I = (unit(factor_IK.numpy().astype(np.float64)) * towers.encode_items(item_rows)).sum(1)
    assert cosine_I.min() > 0.9


def test_scores_with_factors_beside_are_the_sum_of_what_is_learned_and_the_low_pass_filter() -> None:
    towers = id_towers(replace(SHAPE, spectral=3))
    query_rows, item_rows = id_rows("user_id", np.arange(1, USERS + 1)), id_rows("item_id", np.arange(1, ITEMS + 1))
    query_BD, item_ID = towers.encode_queries(query_rows), towers.encode_items(item_rows)
    assert query_BD.shape[1] == item_ID.shape[1] == towers.shape.whole == SHAPE.width + 3
    took = MATRIX.any(1)
    assert np.linalg.norm(query_BD, axis=1) == pytest.approx(np.ones(USERS), abs=1e-5)
    assert np.linalg.norm(item_ID, axis=1).max() == pytest.approx(1, abs=1e-5)
    left_UK, value_K, right_KI = np.linalg.svd(normalised(MATRIX), full_matrices=False)
    rating_BI = unit((left_UK * value_K)[:, :3]) @ (right_KI[:3] * np.sqrt(MATRIX.sum(0)))
    with torch.no_grad():
        towers.train()
        learned_BI = (
            towers.query_vectors(tensors(query_rows, IDS.of("query")))
            @ towers.item_vectors(tensors(item_rows, IDS.of("item"))).T
        ).numpy()
    score_BI = (query_BD @ item_ID.T)[took]
    expected_BI = (learned_BI + rating_BI)[took]
    assert score_BI / score_BI.max() == pytest.approx(expected_BI / expected_BI.max(), abs=1e-4)


def test_serving_equals_the_forward_with_factors() -> None:
    towers = id_towers(replace(SHAPE, spectral=3))
    rows = id_rows("user_id", np.arange(USERS + 1))
    with torch.no_grad():
        vector_BD = towers.query_vectors(tensors(rows, IDS.of("query"))).numpy()
    for n in range(len(rows)):
        assert np.abs(towers.encode_queries(rows[n : n + 1])[0] - vector_BD[n]).max() < 1e-5


def test_factors_are_saved_loaded_and_part_of_the_fingerprint(tmp_path: Path) -> None:
    towers = id_towers(replace(SHAPE, spectral=3))
    towers.save(tmp_path)
    again = Towers.load(tmp_path, IDS)
    for row, encode in (("user_id", Towers.encode_queries), ("item_id", Towers.encode_items)):
        rows = id_rows(row, np.arange(ITEMS + 1))
        assert np.array_equal(encode(again, rows), encode(towers, rows))
    assert towers.graph is not None
    towers.graph.item_NK[3, 0] += 1
    assert towers.fingerprint != again.fingerprint


def test_an_id_alone_that_training_did_not_know_has_the_vector_of_the_unknown() -> None:
    towers = id_towers()
    found = towers.encode_queries(id_rows("user_id", np.array([0, 1, 9, 2])))  # 1 and 9 took nothing
    assert np.array_equal(found[0], found[1])
    assert np.array_equal(found[0], found[2])
    assert not np.array_equal(found[0], found[3])
    assert np.linalg.norm(found[0]) == pytest.approx(1, abs=1e-5)


def test_what_factors_need_is_said() -> None:
    bare = FeatureTable((Feature("item_id", "item", "id", 5),), actions=(), sources=())
    with pytest.raises(ValueError, match="start or spectral is above 0; the feature table has no user_id"):
        GraphFactors(bare, start=4, spectral=0)
    with pytest.raises(ValueError, match="start is 7; it must be at least 0 and at most width, 6"):
        replace(SHAPE, start=7)
