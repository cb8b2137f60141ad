"""Embedding in parts gives the vectors of one go, and goes on where it was cut off."""

from pathlib import Path

import numpy as np
import pytest

from candidate_gen.features import FeatureTable, feature_table
from candidate_gen.towers import Towers, TowerShape
from training.embeddings import PART_ROWS, embedded

TABLE: FeatureTable = feature_table(
    users=10,
    items=60,
    actions=("click",),
    categories=("news", "sport"),
    sources=("ann",),
    user_columns={},
    item_columns={"size": None},
    history_length=4,
    title_length=4,
)


@pytest.fixture
def towers() -> Towers:
    return Towers(TABLE, TowerShape(width=8, embedding=8, hidden=16, heads=1), temperature=0.1).eval()


def rows(count: int) -> np.ndarray:
    row_I = TABLE.empty("item", count)
    row_I["item_id"] = np.arange(count)[:, None] % 50 + 1
    row_I["size"] = np.linspace(-1, 1, count) if count else 0
    return row_I


def test_a_part_is_whole_batches() -> None:
    assert PART_ROWS % 4096 == 0


@pytest.mark.parametrize("count", [0, 1, 4096, 10_000])
def test_parts_make_the_vectors_of_one_go(towers: Towers, tmp_path: Path, count: int) -> None:
    told: list[int] = []
    found = embedded(towers, rows(count), tmp_path, part_rows=4096, advance=told.append)
    assert found.tobytes() == towers.encode_items(rows(count)).tobytes()
    assert found.shape == (count, 8)
    assert sum(told) == count
    assert len(list(tmp_path.iterdir())) == len(told) == -(-count // 4096)


def test_a_run_that_was_cut_off_goes_on_and_makes_no_part_twice(
    towers: Towers, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, made = towers.encode_items, list[int]()

    def encode(row_I: np.ndarray) -> np.ndarray:
        if len(made) == 2:
            made.append(0)
            raise KeyboardInterrupt
        made.append(len(row_I))
        return real(row_I)

    monkeypatch.setattr(towers, "encode_items", encode)
    with pytest.raises(KeyboardInterrupt):
        embedded(towers, rows(10_000), tmp_path, part_rows=4096)
    assert [each.name for each in sorted(tmp_path.iterdir())] == ["000000000000.npy", "000000004096.npy"]
    again = embedded(towers, rows(10_000), tmp_path, part_rows=4096)
    assert made == [4096, 4096, 0, 10_000 - 2 * 4096]
    assert again.tobytes() == real(rows(10_000)).tobytes()
