"""Twelve groups of items; a user takes items of one group only."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from training.evaluation import retrieval

GROUPS, ITEMS, USERS = 12, 120, 240
SETTINGS = {"dim": 16, "epochs": 15, "batch": 128, "learning_rate": 0.02}


def write(folder: Path) -> tuple[Path, Path]:
    random = np.random.default_rng(0)
    pairs: dict[str, list[tuple[str, int]]] = {"train": [], "test": []}
    for user in range(USERS):
        own = user % GROUPS + GROUPS * random.permutation(ITEMS // GROUPS)
        pairs["train"] += [(f"u{user}", int(item)) for item in own[:6]]
        pairs["test"] += [(f"u{user}", int(item)) for item in own[6:]]
    for name, rows in pairs.items():
        pl.DataFrame(rows, schema=["user", "item"], orient="row").write_parquet(folder / f"{name}.parquet")
    return folder / "train.parquet", folder / "test.parquet"


def test_the_rest_of_a_group_is_found_and_what_was_trained_on_is_not_in_the_way(tmp_path: Path) -> None:
    train, test = write(tmp_path)
    found = retrieval.evaluate(train, test, k=4, **SETTINGS)  # type: ignore[arg-type]
    # Only 4 of the 10 items of the group are left once those of training are masked; chance is 4 / 114.
    assert found["recall@4"] > 0.8
    assert found["ndcg@4"] > 0.8
    assert found["users"] == USERS
    assert found["items"] == ITEMS
    assert found["dim"] == 16


def test_factors_beside_widen_the_vectors_and_find_the_group_without_training(tmp_path: Path) -> None:
    train, test = write(tmp_path)
    short = SETTINGS | {"dim": 1, "epochs": 1, "learning_rate": 1e-6}
    alone = retrieval.evaluate(train, test, k=4, **short)  # type: ignore[arg-type]
    beside = retrieval.evaluate(train, test, k=4, spectral=GROUPS, **short)  # type: ignore[arg-type]
    assert beside["dim"] == 1 + GROUPS
    assert beside["recall@4"] > 0.8 > alone["recall@4"]


def test_the_same_seed_gives_the_same_figures(tmp_path: Path) -> None:
    train, test = write(tmp_path)
    short = SETTINGS | {"epochs": 1}
    first, second = (retrieval.evaluate(train, test, **short) for _ in range(2))  # type: ignore[arg-type]
    assert {**first, "cpu_seconds": 0} == {**second, "cpu_seconds": 0}


def test_a_test_user_and_a_test_item_that_training_never_saw_are_counted(tmp_path: Path) -> None:
    train, test = write(tmp_path)
    extra = pl.DataFrame({"user": ["stranger"], "item": [777]})
    pl.concat([pl.read_parquet(test), extra]).write_parquet(test)
    found = retrieval.evaluate(train, test, **(SETTINGS | {"epochs": 1}))  # type: ignore[arg-type]
    assert found["users"] == USERS + 1
    assert found["items"] == ITEMS + 1


def test_every_metric_is_there_and_the_slices_make_up_the_whole(tmp_path: Path) -> None:
    train, test = write(tmp_path)
    found = retrieval.evaluate(train, test, k=4, **(SETTINGS | {"epochs": 2}))  # type: ignore[arg-type]
    for name in ("mrr@4", "hit_rate@4", "coverage@4", "novelty@4", "gini@4", "diversity@4"):
        assert 0 < found[name] < 10
    assert found["recall@4.low"] < found["recall@4"] < found["recall@4.high"]
    users = [found[f"recall@4.users_{third}"] for third in ("low", "middle", "high")]
    assert sum(users) / 3 == pytest.approx(found["recall@4"])


def test_one_file_is_cut_by_time_and_a_planted_future_event_is_caught(tmp_path: Path) -> None:
    """Everyone takes the rest of their group later."""
    paths = write(tmp_path)
    frames = [pl.read_parquet(path).with_columns(time=pl.int_range(pl.len())) for path in paths]
    frames[1] = frames[1].with_columns(pl.col("time") + len(frames[0]))
    data = tmp_path / "all.parquet"
    pl.concat(frames).write_parquet(data)
    share = len(frames[1]) / (len(frames[0]) + len(frames[1]))
    short = SETTINGS | {"epochs": 1}
    whole = retrieval.evaluate(data=data, test_share=share, **short)  # type: ignore[arg-type]
    assert whole["users"] == USERS
    for frame, path in zip(frames, paths, strict=True):
        frame.write_parquet(path)
    assert {**retrieval.evaluate(*paths, **short), "cpu_seconds": 0} == {**whole, "cpu_seconds": 0}  # type: ignore[arg-type]
    future = pl.DataFrame({"user": ["u0"], "item": [1], "time": [10**9]})
    pl.concat([frames[0], future]).write_parquet(paths[0])
    with pytest.raises(ValueError, match="the future leaks: column 'time' is after the split"):
        retrieval.evaluate(*paths, **short)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("frame", "message"),
    [
        (pl.DataFrame({"user": [1]}), "has no column 'item' "),
        (pl.DataFrame({"user": [1, None, None], "item": [1, 2, 3]}), ": column 'user' holds 2 nulls in 3 rows"),
        (pl.DataFrame({"user": [], "item": []}, schema={"user": pl.Int32, "item": pl.Int32}), " is empty: 0 rows"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_what_is_wrong(
    frame: pl.DataFrame, message: str, tmp_path: Path
) -> None:
    train, test = write(tmp_path)
    frame.write_parquet(test)
    with pytest.raises(ValueError, match=f"test.parquet ?{message}"):
        retrieval.evaluate(train, test)


def test_a_file_that_is_not_there_or_not_parquet_is_named(tmp_path: Path) -> None:
    train, test = write(tmp_path)
    train.write_text("user,item\n1,2\n")
    with pytest.raises(ValueError, match=r"train.parquet cannot be read: "):
        retrieval.evaluate(train, test)
    train.unlink()
    with pytest.raises(ValueError, match=r"train.parquet is missing"):
        retrieval.evaluate(train, test)
