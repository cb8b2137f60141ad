from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.datasets.dataset import DataError
from training.evaluation.interactions import Pairs, Split, read_split, require_no_leak

ROWS = [("a", 1, 10), ("a", 2, 20), ("b", 1, 30), ("a", 1, 40), ("b", 3, 50), ("c", 2, 60)]


def written(path: Path, rows: list[tuple[str, int, int]] = ROWS, *, columns: int = 3) -> Path:
    pl.DataFrame(rows, schema=["user", "item", "time"], orient="row").select(
        ["user", "item", "time"][:columns]
    ).write_parquet(path)
    return path


def cut(data: Path, **options: Any) -> Split:
    return read_split(None, None, data, **{"split": "time", "test_share": 0.4, **options})


def rows_of(frame: pl.DataFrame) -> list[tuple[Any, ...]]:
    return frame.rows()


def test_one_file_is_cut_at_one_moment_for_all(tmp_path: Path) -> None:
    found = cut(written(tmp_path / "all.parquet", ROWS[::-1]))
    # The pair ("a", 1) of time 40 is known since time 10; of the 5 that are left the last 2 are the test.
    assert rows_of(found.train) == [("a", 1, 10), ("a", 2, 20), ("b", 1, 30)]
    assert rows_of(found.test) == [("b", 3, 50), ("c", 2, 60)]
    assert found.at == 50


def test_what_happens_at_the_moment_of_the_cut_is_never_parted(tmp_path: Path) -> None:
    rows = [("a", 1, 10), ("b", 1, 20), ("c", 1, 20), ("d", 1, 20)]
    found = cut(written(tmp_path / "all.parquet", rows), test_share=0.25)
    assert rows_of(found.train) == [("a", 1, 10)]
    assert len(found.test) == 3


def test_the_last_of_each_user_can_be_the_test(tmp_path: Path) -> None:
    found = cut(written(tmp_path / "all.parquet"), split="leave_one_out")
    assert rows_of(found.test) == [("a", 2, 20), ("b", 3, 50)]
    assert rows_of(found.train) == [("a", 1, 10), ("b", 1, 30), ("c", 2, 60)]


@given(st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 4), st.integers(0, 9)), min_size=1))
def test_training_never_knows_the_future(rows: list[tuple[str, int, int]]) -> None:
    frame = pl.DataFrame(rows, schema=["user", "item", "time"], orient="row")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.evaluation.interactions.read_table", lambda *_: frame)
        try:
            found = cut(Path("all.parquet"))
        except DataError:
            return  # everything happened at once
    assert found.at is not None
    assert found.train["time"].max() < found.at <= found.test["time"].min()  # type: ignore[operator]
    assert found.test.join(found.train, on=("user", "item"), how="semi").is_empty()


@pytest.mark.parametrize("planted", [("z", 9, 51), ("z", 9, 10**9)])
def test_a_planted_future_event_is_caught(planted: tuple[str, int, int], tmp_path: Path) -> None:
    train = written(tmp_path / "train.parquet", [*ROWS[:4], planted])
    test = written(tmp_path / "test.parquet", ROWS[4:])
    with pytest.raises(
        DataError, match=r"the future leaks: column 'time' is after the split at 50 in 1 of 4 training rows"
    ):
        read_split(train, test, None, split="time", test_share=0.1)
    assert read_split(train, test, None, split="given", test_share=0.1).at is None


def test_a_planted_past_event_in_the_test_is_caught(tmp_path: Path) -> None:
    train = written(tmp_path / "train.parquet", ROWS[:4])
    test = written(tmp_path / "test.parquet", [*ROWS[4:], ("z", 9, 15)])
    with pytest.raises(DataError, match="the future leaks"):
        read_split(train, test, None, split="time", test_share=0.1)


def test_the_guard_itself_finds_what_a_faulty_cut_would_leave(tmp_path: Path) -> None:
    good = cut(written(tmp_path / "all.parquet"))
    require_no_leak(good, origin="here")
    future = good.test.with_columns(user=pl.lit("z"))
    with pytest.raises(DataError, match=r"here: the future leaks: .* in 1 of 5 training rows and before it in 0 of 2"):
        require_no_leak(Split(pl.concat([good.train, future]), good.test, good.at), origin="here")
    with pytest.raises(DataError, match=r"before it in 3 of 5 test rows"):
        require_no_leak(Split(good.train, pl.concat([good.train, good.test]), good.at), origin="here")


def test_files_without_times_are_taken_as_they_are(tmp_path: Path) -> None:
    train = written(tmp_path / "train.parquet", columns=2)
    test = written(tmp_path / "test.parquet", [("a", 1, 0), ("d", 9, 0)], columns=2)
    found = read_split(train, test, None, split="time", test_share=0.1)
    assert found.at is None
    assert len(found.train) == 5


def test_dates_are_times(tmp_path: Path) -> None:
    path = tmp_path / "all.parquet"
    frame = pl.DataFrame(ROWS, schema=["user", "item", "time"], orient="row")
    frame.with_columns(pl.from_epoch("time", time_unit="d")).write_parquet(path)
    assert [len(part) for part in (cut(path).train, cut(path).test)] == [3, 2]


@pytest.mark.parametrize(
    ("files", "options", "message"),
    [
        ("", {}, "needs train=FILE and test=FILE, or data=FILE alone"),
        ("train", {}, "needs train=FILE and test=FILE, or data=FILE alone"),
        ("train test data", {}, "needs train=FILE and test=FILE, or data=FILE alone"),
        ("data", {"split": "given"}, r"split is 'given' but data=FILE is to be cut"),
        ("train test", {"split": "leave_one_out"}, r"split is 'leave_one_out' but train=FILE and test=FILE are cut"),
        ("data", {"test_share": 1.0}, "test_share is 1.0; it must be between 0 and 1"),
        ("data", {"test_share": 0.999}, "no interaction is left for training"),
    ],
)
def test_what_cannot_be_cut_is_named(files: str, options: dict[str, Any], message: str, tmp_path: Path) -> None:
    path = written(tmp_path / "all.parquet")
    train, test, data = (path if name in files.split() else None for name in ("train", "test", "data"))
    with pytest.raises(ValueError, match=message):
        read_split(train, test, data, **{"split": "time", "test_share": 0.1, **options})


def test_times_must_be_whole_numbers_or_dates_and_be_there(tmp_path: Path) -> None:
    path = tmp_path / "all.parquet"
    frame = pl.DataFrame(ROWS, schema=["user", "item", "time"], orient="row")
    frame.with_columns(pl.col("time") / 3).write_parquet(path)
    with pytest.raises(DataError, match=r"column 'time' is Float64; a whole number or a date is needed"):
        cut(path)
    with pytest.raises(DataError, match=r"has no column 'time'"):
        cut(written(path, columns=2))


def test_pairs_number_users_and_items_of_both_parts(tmp_path: Path) -> None:
    pairs = Pairs.of(cut(written(tmp_path / "all.parquet")))
    assert (pairs.users, pairs.items) == (("a", "b", "c"), ("1", "2", "3"))
    assert pairs.train_user_T.tolist() == [0, 0, 1]
    assert pairs.train_item_T.tolist() == [0, 1, 0]
    assert pairs.asked_U.tolist() == [1, 2]
    assert (pairs.relevant.row_T.tolist(), pairs.relevant.size_B.tolist()) == ([2, 1], [1, 1])
    assert (pairs.masked.row_T.tolist(), pairs.masked.size_B.tolist()) == ([0], [1, 0])
    ranking = pairs.ranking(np.array([[2], [0]]))
    assert ranking.popularity_I.tolist() == [2, 1, 0]
    assert ranking.activity_B.tolist() == [1, 0]
    assert ranking.metrics(1, seed=0)["recall@1"] == 0.5
