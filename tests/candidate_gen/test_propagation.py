from pathlib import Path

import numpy as np
import pytest
import torch

from candidate_gen.features import Feature, FeatureTable
from candidate_gen.towers import Towers, TowerShape

USERS, ITEMS, WEIGHT = 12, 9, 0.3
RANDOM = np.random.default_rng(0)
MATRIX = RANDOM.random((USERS, ITEMS)) < 0.4
MATRIX[0], MATRIX[1, 1] = False, True  # a user who took nothing, another who took something
USER_T, ITEM_T = np.nonzero(MATRIX)
LONGEST = int(MATRIX.sum(1).max())


def table(*, history: bool = False) -> FeatureTable:
    past = (Feature("history_item", "history", "id", ITEMS + 3, (LONGEST,), shares="item_id"),) if history else ()
    ids = (Feature("user_id", "user", "id", USERS + 2), *past, Feature("item_id", "item", "id", ITEMS + 3))
    return FeatureTable(ids, actions=(), sources=())


def rows(features: FeatureTable, name: str, ids: np.ndarray) -> np.ndarray:
    found = features.empty("query" if name == "user_id" else "item", len(ids))
    found[name] = ids
    return found


def towers_of(features: FeatureTable, *, propagated: bool = True) -> Towers:
    torch.manual_seed(0)
    shape = TowerShape(width=6, embedding=6, hidden=0, id_dropout=0.0, propagation=WEIGHT, history="mean")
    towers = Towers(features, shape, temperature=0.1).eval()
    query_row_T, item_row_T = rows(features, "user_id", USER_T + 1), rows(features, "item_id", ITEM_T + 1)
    towers.embedder.fit_ids(query_row_T, item_row_T)
    if propagated:
        towers.propagate(query_row_T, item_row_T)
    return towers


def less_mean(vectors: np.ndarray, held: np.ndarray) -> np.ndarray:
    """Less their mean, those held; zeros for the others."""
    return np.asarray((vectors - vectors[held].mean(0)) * held[:, None])


def step() -> np.ndarray:
    return np.asarray(MATRIX / np.sqrt(np.maximum(MATRIX.sum(1), 1))[:, None] / np.sqrt(np.maximum(MATRIX.sum(0), 1)))


def test_scores_are_those_of_one_step_over_the_normalised_graph() -> None:
    features = table()
    query_rows, item_rows = (
        rows(features, "user_id", np.arange(USERS) + 1),
        rows(features, "item_id", np.arange(ITEMS) + 1),
    )
    before, after = towers_of(features, propagated=False), towers_of(features)
    query_UD, item_ID = before.encode_queries(query_rows), before.encode_items(item_rows)
    expected_UD = query_UD + WEIGHT * step() @ less_mean(item_ID, MATRIX.sum(0) > 0)
    expected_ID = item_ID + WEIGHT * step().T @ less_mean(query_UD, MATRIX.sum(1) > 0)
    expected_UD /= np.linalg.norm(expected_UD, axis=1, keepdims=True)
    assert after.encode_queries(query_rows) == pytest.approx(expected_UD, abs=1e-5)
    found_ID = after.encode_items(item_rows)
    assert found_ID * np.linalg.norm(expected_ID, axis=1).max() == pytest.approx(expected_ID, abs=1e-5)
    assert np.linalg.norm(found_ID, axis=1).max() == pytest.approx(1, abs=1e-5)


def test_a_stranger_gets_their_part_from_what_is_in_their_history() -> None:
    features = table(history=True)
    before, after = towers_of(features, propagated=False), towers_of(features)
    asked = rows(features, "user_id", np.full(USERS, USERS + 1))
    for user, row in enumerate(asked):
        took = np.flatnonzero(MATRIX[user])
        row["history_item"][: len(took)] = took + 1
    item_ID = before.encode_items(rows(features, "item_id", np.arange(ITEMS) + 1))
    expected_UD = before.encode_queries(asked) + WEIGHT * step() @ less_mean(item_ID, MATRIX.sum(0) > 0)
    expected_UD /= np.linalg.norm(expected_UD, axis=1, keepdims=True)
    assert after.encode_queries(asked) == pytest.approx(expected_UD, abs=1e-5)


def test_new_items_and_strangers_keep_their_direction() -> None:
    features = table()
    before, after = towers_of(features, propagated=False), towers_of(features)
    new = rows(features, "item_id", np.array([ITEMS + 2]))
    longest = float(after.propagation.longest) if after.propagation else 0.0
    assert after.encode_items(new) * longest == pytest.approx(before.encode_items(new), abs=1e-6)
    stranger = rows(features, "user_id", np.array([USERS + 1]))
    assert after.encode_queries(stranger) == pytest.approx(before.encode_queries(stranger), abs=1e-6)


def test_the_step_is_saved_loaded_and_part_of_the_fingerprint(tmp_path: Path) -> None:
    features = table()
    towers = towers_of(features)
    towers.save(tmp_path)
    again = Towers.load(tmp_path, features)
    query_rows = rows(features, "user_id", np.arange(USERS + 2))
    assert np.array_equal(again.encode_queries(query_rows), towers.encode_queries(query_rows))
    assert towers.fingerprint == again.fingerprint != towers_of(features, propagated=False).fingerprint


def test_what_cannot_be_is_said() -> None:
    for given in ({"propagation": -0.1}, {"propagation": 0.3, "spectral": 4}):
        with pytest.raises(ValueError, match="both must be at least 0 and one be 0"):
            TowerShape(**given)  # type: ignore[arg-type]
