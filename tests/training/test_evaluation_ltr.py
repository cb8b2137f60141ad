"""Documents whose first feature is their grade with noise, and whose others are noise."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest

from training.evaluation import ltr

QUICK = {"trees": 40, "members": 1}


def judged(queries: int, *, seed: int, empty: int = 0) -> pl.DataFrame:
    random = np.random.default_rng(seed)
    grade_QN = random.integers(0, 3, (queries, 12))
    grade_QN[:, 0] = 2
    grade_QN[:empty] = 0
    rows = grade_QN.size
    return pl.DataFrame(
        {
            "label": grade_QN.ravel(),
            "qid": np.repeat(random.permutation(queries), 12),
            "f1": grade_QN.ravel() + 0.3 * random.normal(size=rows),
            "f2": random.normal(size=rows),
            "f3": random.normal(size=rows),
        }
    ).sample(fraction=1, shuffle=True, seed=seed)


def write(folder: Path, *, empty: int = 0) -> tuple[Path, Path]:
    train, test = folder / "train.parquet", folder / "test.parquet"
    judged(60, seed=0).write_parquet(train)
    judged(40, seed=1, empty=empty).write_parquet(test)
    return train, test


def test_a_feature_that_tells_the_grade_is_found_among_others(tmp_path: Path) -> None:
    found = ltr.evaluate(*write(tmp_path), **QUICK)  # type: ignore[arg-type]
    assert found["ndcg@10"] > 0.95
    assert found["ndcg@10.random"] < 0.75
    assert found["queries"] == 40
    assert found["rows"] == 480


def test_queries_without_a_relevant_document_are_left_out_and_counted(tmp_path: Path) -> None:
    found = ltr.evaluate(*write(tmp_path, empty=15), **QUICK)  # type: ignore[arg-type]
    assert (found["queries"], found["queries.empty"]) == (25, 15)
    assert found["ndcg@10"] > 0.95


def test_the_same_seed_gives_the_same_figures_and_the_order_of_rows_none_other(tmp_path: Path) -> None:
    train, test = write(tmp_path)
    first = ltr.evaluate(train, test, **QUICK)  # type: ignore[arg-type]
    pl.read_parquet(test).reverse().write_parquet(test)
    second = ltr.evaluate(train, test, **QUICK)  # type: ignore[arg-type]
    assert {**second, "cpu_seconds": 0} == pytest.approx({**first, "cpu_seconds": 0})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (pl.col("label") - 1, "train.parquet: column 'label' holds .* no whole number from 0 to 30, first -1"),
        (pl.col("label") * 0, "train.parquet: column 'label' is the same for all rows of each query"),
        (pl.col("f2").cast(pl.Utf8), "train.parquet: column 'f2' is String; numbers are needed"),
        (pl.lit(None, pl.Int64).alias("qid"), "train.parquet: column 'qid' holds 720 nulls"),
        (pl.lit(1.0).alias("f9"), "test.parquet has no column 'f9' of .*train.parquet"),
    ],
)
def test_a_file_that_cannot_be_used_is_named_with_what_is_wrong(change: pl.Expr, message: str, tmp_path: Path) -> None:
    train, test = write(tmp_path)
    pl.read_parquet(train).with_columns(change).write_parquet(train)
    with pytest.raises(ValueError, match=message):
        ltr.evaluate(train, test)
