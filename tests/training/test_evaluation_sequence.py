"""Everyone walks a circle of 40 items from a place of their own: the next item follows from the last one."""

from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from training.evaluation import sequence
from training.evaluation.reranking import SequenceStatistics
from training.evaluation.sequence import _ends, _positive_rows, _query_rows, _sequences, _table
from training.learning.tower import TowerSettings

Array = NDArray[Any]
ITEMS, USERS = 40, 150
SETTINGS = {"dim": 16, "epochs": 15, "batch": 128, "learning_rate": 0.02, "history_length": 4}


def write(folder: Path) -> Path:
    random = np.random.default_rng(0)
    rows = []
    for user in range(USERS):
        start, length = random.integers(ITEMS), random.integers(5, 12)
        rows += [(user, f"i{(start + pos) % ITEMS}", pos) for pos in range(length)]
    shuffled = [rows[n] for n in random.permutation(len(rows))]
    path = folder / "walks.parquet"
    pl.DataFrame(shuffled, schema=["user", "item", "pos"], orient="row").write_parquet(path)
    return path


def test_the_next_step_is_found(tmp_path: Path) -> None:
    found = sequence.evaluate(write(tmp_path), k=2, **SETTINGS)  # type: ignore[arg-type]
    assert found["recall@2"] > 0.9
    assert found["ndcg@2"] > 0.8
    assert found["validation_recall@2"] > 0.9
    assert found["users"] == USERS
    assert found["items"] == ITEMS


def test_the_same_seed_gives_the_same_figures(tmp_path: Path) -> None:
    path = write(tmp_path)
    first, second = (sequence.evaluate(path, **(SETTINGS | {"epochs": 1})) for _ in range(2))  # type: ignore[arg-type]
    assert {**first, "cpu_seconds": 0} == {**second, "cpu_seconds": 0}


def test_items_of_the_test_do_not_touch_the_training(tmp_path: Path) -> None:
    path = write(tmp_path)
    once = SETTINGS | {"epochs": 1}
    before = sequence.evaluate(path, **once)  # type: ignore[arg-type]
    frame = pl.read_parquet(path)
    last = pl.col("pos") == pl.col("pos").max().over("user")
    frame.with_columns(pl.when(last).then(pl.lit("i0")).otherwise("item").alias("item")).write_parquet(path)
    after = sequence.evaluate(path, **once)  # type: ignore[arg-type]
    assert after["validation_recall@10"] == before["validation_recall@10"]
    assert after["validation_ndcg@10"] == before["validation_ndcg@10"]
    assert after["recall@10"] != before["recall@10"]


def test_a_short_sequence_only_trains(tmp_path: Path) -> None:
    path = write(tmp_path)
    short = pl.DataFrame({"user": [900, 900, 901], "item": ["i0", "i1", "i2"], "pos": [0, 1, 0]})
    pl.concat([pl.read_parquet(path), short]).write_parquet(path)
    assert sequence.evaluate(path, **(SETTINGS | {"epochs": 1}))["users"] == USERS  # type: ignore[arg-type]


def test_a_query_holds_the_newest_of_what_came_before_and_nothing_else() -> None:
    user_T = np.array([0, 0, 0, 0, 1, 1])
    item_T = np.array([10, 11, 12, 13, 14, 15])
    start_T, length_T = _sequences(user_T)
    assert start_T.tolist() == [0, 0, 0, 0, 4, 4]
    assert length_T.tolist() == [4, 4, 4, 4, 2, 2]
    rows = _query_rows(_table(tuple(f"i{n}" for n in range(16)), 2), item_T, start_T, np.array([0, 1, 3, 4, 5]))
    assert rows["history_item"].tolist() == [[0, 0], [11, 0], [13, 12], [0, 0], [15, 0]]
    counted = _table(tuple(f"i{n}" for n in range(16)), 2, counted=True)
    length_N = _query_rows(counted, item_T, start_T, np.array([0, 1, 3, 4, 5]))["history_log_length"]
    assert np.expm1(length_N) == pytest.approx([0, 1, 2, 0, 1], abs=1e-6)


def test_windows_hold_each_trained_item_once_as_what_followed_its_past() -> None:
    item_T = np.arange(100, 120)
    start_T = np.repeat([0, 9, 11, 12], [9, 2, 1, 8])
    trained_T = np.isin(np.arange(20), [1, 2, 3, 4, 5, 6, 10, 13, 14])
    end_N = _ends(trained_T, start_T, 4)
    assert end_N.tolist() == [2, 6, 10, 14]
    found = _positive_rows(item_T, start_T, end_N, 4)
    assert found.tolist() == [[102, 101, -1, -1], [106, 105, 104, 103], [110, -1, -1, -1], [114, 113, -1, -1]]
    past = _query_rows(_table(tuple(f"i{n}" for n in range(120)), 4), item_T, start_T, end_N)["history_item"]
    assert np.array_equal(past > 0, found >= 0)
    assert past[1].tolist() == [106, 105, 104, 103]


def test_a_transformer_finds_the_next_step_too(tmp_path: Path) -> None:
    causal = {"history": "transformer", "history_length": 4, "learning_rate": 0.02}
    found = sequence.evaluate(write(tmp_path), k=2, **(SETTINGS | causal))  # type: ignore[arg-type]
    assert found["recall@2"] > 0.9


def test_a_ranker_finds_the_next_step_among_what_towers_that_learned_little_name(tmp_path: Path) -> None:
    little = SETTINGS | {"epochs": 1, "stages": 2, "candidates": 40, "k": 2}
    found = sequence.evaluate(write(tmp_path), **little)  # type: ignore[arg-type]
    assert found["ndcg@2"] < 0.5
    assert found["ranked.ndcg@2"] > 0.9
    assert found["validation_ranked.ndcg@2"] > 0.9
    assert found["ranked.gain"] == pytest.approx(found["ranked.ndcg@2"] / found["ndcg@2"] - 1)
    assert found["ranked.gain.low"] < found["ranked.gain"] < found["ranked.gain.high"]
    assert found["recall@candidates"] == 1


def test_what_the_ranker_learns_from_and_what_is_tested_touch_neither_towers_nor_statistics(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = []

    class Statistics(SequenceStatistics):
        def __init__(self, item_T: Array, start_T: Array, known_T: Array, vector_ID: Array) -> None:
            told.append((item_T[known_T], vector_ID))
            super().__init__(item_T, start_T, known_T, vector_ID)

    monkeypatch.setattr(sequence, "SequenceStatistics", Statistics)
    path = write(tmp_path)
    two = SETTINGS | {"epochs": 1, "stages": 2}
    sequence.evaluate(path, **two)  # type: ignore[arg-type]
    frame = pl.read_parquet(path)
    last_three = pl.col("pos") > pl.col("pos").max().over("user") - 3
    frame.with_columns(pl.when(last_three).then(pl.lit("i0")).otherwise("item").alias("item")).write_parquet(path)
    sequence.evaluate(path, **two)  # type: ignore[arg-type]
    (item_T, vector_ID), (item_again_T, vector_again_ID) = told
    assert len(item_T) == len(frame) - 3 * USERS
    assert np.array_equal(item_T, item_again_T)
    assert np.array_equal(vector_ID, vector_again_ID)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": 3}, r"stages is 3; it must be 1 \(towers\) or 2 \(towers and ranker\)"),
        ({"stages": 2, "candidates": 9}, "candidates is 9; it must be at least k, 10"),
    ],
)
def test_stages_that_there_are_not_and_too_few_candidates_are_refused(
    options: dict[str, int], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=message):
        sequence.evaluate(write(tmp_path), **options)  # type: ignore[arg-type]


def test_short_pasts_are_averaged_and_long_ones_are_read_in_order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = []

    def trained(*_: object, settings: TowerSettings, **__: object) -> None:
        chosen.append(settings.shape.history)
        raise InterruptedError

    monkeypatch.setattr(sequence, "train_towers", trained)
    for length in (19, 20):
        rows = [(user, f"i{(user + pos) % ITEMS}", pos) for user in range(3) for pos in range(length)]
        pl.DataFrame(rows, schema=["user", "item", "pos"], orient="row").write_parquet(tmp_path / "walks.parquet")
        with pytest.raises(InterruptedError):
            sequence.evaluate(tmp_path / "walks.parquet")
    assert chosen == ["attention", "transformer"]


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (pl.DataFrame({"user": [1], "item": [1]}), "has no column 'pos' "),
        (pl.DataFrame({"user": [1, 1], "item": [1, 2], "pos": [1, None]}), ": column 'pos' holds 1 nulls in 2 rows"),
        (
            pl.DataFrame({"user": [1, 1], "item": [1, 2], "pos": [0, 1]}),
            ": column 'user': the longest sequence holds 2 interactions; with stages=1 at least one of 3 is needed",
        ),
        (
            pl.DataFrame({"user": [1, 1, 1, 1], "item": [1, 2, 3, 4], "pos": [0, 1, 2, 3]}),
            ": column 'user': 1 interactions have a past",
        ),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_what_is_wrong(
    frame: pl.DataFrame, message: str, tmp_path: Path
) -> None:
    path = tmp_path / "walks.parquet"
    frame.write_parquet(path)
    with pytest.raises(ValueError, match=f"walks.parquet ?{message}"):
        sequence.evaluate(path)
