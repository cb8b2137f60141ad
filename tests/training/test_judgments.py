from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conftest import Loop

from protos.impression_pb2 import Impression
from training.datasets.dataset import DataError
from training.datasets.judgments import HIGHEST, SCHEMA, mined, read_judgments, write_judgments
from training.evaluation.judgments import evaluate

ROWS = [("red chair", "a", 3.0, "human"), ("red chair", "b", 1.0, "human"), ("lamp", "c", 2.0, "clicks")]


def frame_of(rows: list[tuple[str, str, float, str]]) -> pl.DataFrame:
    return pl.DataFrame(rows, SCHEMA, orient="row")


def test_what_is_written_is_read(tmp_path: Path) -> None:
    path = tmp_path / "judged.parquet"
    write_judgments(frame_of(ROWS), path)
    assert read_judgments(path).rows() == sorted(ROWS)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (pl.lit("guess").alias("source"), "source 'guess' is unknown; it must be one of human, clicks"),
        (pl.lit(float("inf")).alias("grade"), "column 'grade' holds 3 values in 3 rows that are not finite"),
        (pl.lit("").alias("query"), "column 'query' is null or empty in 3 of 3 rows"),
        (pl.lit("a").alias("item"), "2 of 3 rows judge a pair that the same judge judged in another row"),
    ],
)
def test_a_bad_list_is_refused_in_one_line(tmp_path: Path, change: pl.Expr, message: str) -> None:
    path = tmp_path / "judged.parquet"
    frame_of(ROWS).with_columns(change).write_parquet(path)
    with pytest.raises(DataError, match=message) as raised:
        read_judgments(path)
    assert "\n" not in str(raised.value)


def test_a_list_of_a_later_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "judged.parquet"
    frame_of(ROWS).write_parquet(path, metadata={"cascade.judgments": "9"})
    with pytest.raises(DataError, match="of version 9; this is able to read version 1"):
        read_judgments(path)


def test_clicks_are_held_against_what_the_places_lead_to_expect() -> None:
    """Two items are clicked equally often, one of them from a place that few look at."""
    impressions = [
        Impression(request_id=f"{n}", text="Red Chair", item_id=["top", "middle", "low"]) for n in range(100)
    ]
    events = pl.DataFrame(
        [(f"{n}", item) for n in range(20) for item in ("top", "low")],
        {"request_id": pl.Utf8, "item_id": pl.Utf8},
        orient="row",
    )
    found = mined(impressions, events, examination=np.array([1.0, 0.5, 0.25]))
    grade = dict(zip(found["item"], found["grade"], strict=True))
    assert grade["low"] > grade["top"] > grade["middle"]
    assert 0 < min(grade.values()) < max(grade.values()) < HIGHEST
    rate = 40 / 175
    assert grade["low"] == pytest.approx(HIGHEST * 21 / (20 + 25 * rate + 2))
    assert found["query"].unique().to_list() == ["red chair"]
    assert found["source"].unique().to_list() == ["clicks"]


def test_pairs_shown_seldom_and_recommendations_are_not_judged() -> None:
    impressions = [Impression(request_id=f"{n}", text="" if n else "lamp", item_id=["a"]) for n in range(20)]
    events = pl.DataFrame(schema={"request_id": pl.Utf8, "item_id": pl.Utf8})
    assert mined(impressions, events, examination=np.ones(1)).height == 0


def test_a_log_becomes_a_list_that_is_compared_with_people(loop: Loop, tmp_path: Path) -> None:
    out = tmp_path / "clicks.parquet"
    found = evaluate(loop.log, out, store=loop.store.root, least=1)
    listed = read_judgments(out)
    assert found == {"queries": listed["query"].n_unique(), "rows": listed.height}
    people = listed.with_columns(source=pl.lit("human"))
    write_judgments(people, tmp_path / "same.parquet")
    same = evaluate(loop.log, out, store=loop.store.root, least=1, human=tmp_path / "same.parquet")
    assert (same["rows.both"], same["agreement"]) == (listed.height, 1)
    write_judgments(people.with_columns(grade=-pl.col("grade")), tmp_path / "opposite.parquet")
    opposite = evaluate(loop.log, out, store=loop.store.root, least=1, human=tmp_path / "opposite.parquet")
    assert opposite["agreement"] == 0


def test_a_log_that_says_too_little_is_refused(loop: Loop, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no item that was shown 100000 times under one query"):
        evaluate(loop.log, tmp_path / "none.parquet", store=loop.store.root, least=100_000)
    assert not (tmp_path / "none.parquet").exists()
