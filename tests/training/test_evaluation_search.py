import os
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from training.evaluation.search import evaluate
from training.evaluation.search_run import average_precision

COLOURS = ("red", "green", "blue", "black", "white", "yellow")
THINGS = ("chair", "table", "lamp", "shelf", "clock", "mirror", "sofa", "bench")


def measured(
    path: Path,
    *,
    title: str = "name",
    description: str = "",
    id: str = "",  # noqa: A002
    folds: int = 5,
    seed: int = 0,
) -> dict[str, float]:
    return evaluate(
        path,
        query="typed",
        title=title,
        relevance="grade",
        description=description,
        id=id,
        folds=folds,
        seed=seed,
    )


@pytest.fixture
def judged(tmp_path: Path) -> Path:
    """Queries such as "red chair", where only the thing decides: the colour alone is worth nothing."""
    random = np.random.default_rng(0)
    rows = []
    for colour in COLOURS:
        for thing in THINGS:
            others = [str(other) for other in random.choice([t for t in THINGS if t != thing], 3, replace=False)]
            rows += [
                (f"{colour} {thing}", f"{random.choice(COLOURS)} {thing} with {colour} legs", 3.0),
                (f"{colour} {thing}", f"plain {thing} for {others[0]}s", 2.33),
                (f"{colour} {thing}", f"{colour} {others[1]}", 1.0),
                (f"{colour} {thing}", f"{colour} {others[2]} for any {thing}", 1.0),
            ]
    path = tmp_path / "judged.parquet"
    pl.DataFrame(rows, schema=["typed", "name", "grade"], orient="row").sort("grade", "name").write_parquet(path)
    return path


def test_the_ranker_learns_what_word_matching_does_not_know(judged: Path) -> None:
    found = measured(judged)
    assert found["ndcg@10"] > found["ndcg@10.bm25"] + 0.02
    assert found["ndcg@10"] > 0.95
    assert (found["queries"], found["rows"], found["queries.undecided"]) == (48, 192, 0)


def test_the_same_seed_gives_the_same_numbers(judged: Path) -> None:
    assert measured(judged, seed=3) == measured(judged, seed=3)


def test_shuffled_grades_teach_nothing(judged: Path) -> None:
    """A leak between folds would show here: nothing about these grades can be known from other queries."""
    frame = pl.read_parquet(judged)
    frame = frame.with_columns(pl.Series("grade", np.random.default_rng(1).permutation(frame["grade"].to_numpy())))
    frame.write_parquet(judged)
    found = measured(judged)
    assert abs(found["ndcg@10"] - found["ndcg@10.random"]) < 0.08


def test_random_and_gain_follow_their_closed_forms(tmp_path: Path) -> None:
    path = tmp_path / "two.parquet"
    frame = pl.DataFrame(
        {"typed": ["a", "a", "b", "b", "c"], "name": ["u", "v", "w", "x", "y"], "grade": [0, 2, 1, 2, 1]}
    )
    frame.write_parquet(path)
    found = measured(path, folds=2)
    discount = 1 / np.log2(3)
    first = (3 + 0) * (1 + discount) / 2 / 3
    second = (1 + 3) * (1 + discount) / 2 / (3 + discount)
    assert found["ndcg@10.random"] == pytest.approx((first + second) / 2)
    assert (found["queries"], found["queries.undecided"], found["titles"]) == (2, 1, 5)


def test_recall_counts_titles_from_two_thirds_of_the_scale(tmp_path: Path) -> None:
    """Of 150 equally good titles the first 100 are found, whichever grade they have."""
    path = tmp_path / "many.parquet"
    grades = [1.0] * 50 + [2.33] * 20 + [1.0] * 40 + [3.0] * 30 + [2.0] * 10
    frame = pl.DataFrame({"typed": ["oak"] * 150, "id": range(150), "name": ["oak door"] * 150, "grade": grades})
    other = pl.DataFrame({"typed": ["elm", "elm"], "id": [200, 201], "name": ["elm", "ash"], "grade": [1.0, 3.0]})
    pl.concat([frame, other]).write_parquet(path)
    found = measured(path, id="id", folds=2)
    lexical_order = sorted(range(150), key=str)[:100]
    of_oak = sum(grades[item] >= 2.33 for item in lexical_order) / 50
    assert found["recall@100.bm25"] == pytest.approx((of_oak + 0) / 2)
    assert found["queries.recall"] == 2
    assert found["titles"] == 152


def test_a_description_is_read_where_one_is_named(judged: Path) -> None:
    frame = pl.read_parquet(judged)
    frame.with_columns(about=pl.when(pl.col("grade") > 2.5).then("typed").otherwise(pl.lit("nothing"))).with_columns(
        about=pl.col("about").fill_null("")
    ).write_parquet(judged)
    blind = measured(judged)
    assert measured(judged, description="about")["ndcg@10"] >= blind["ndcg@10"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (pl.lit(None, pl.Utf8).alias("name"), r"judged\.parquet: column 'name' holds 192 nulls in 192 rows"),
        (pl.lit(2.0).alias("grade"), r"judged\.parquet: column 'grade' holds 2 in all of 192 rows"),
        (pl.lit("good").alias("grade"), r"judged\.parquet: column 'grade' is String; relevance must be numbers"),
        (pl.lit(float("nan")).alias("grade"), r"column 'grade' holds 192 values in 192 rows that are not finite"),
        (pl.col("grade") * 100, r"column 'grade' goes from 100 to 300; .* 100 wide at most"),
    ],
)
def test_bad_input_is_named_in_one_line(judged: Path, change: pl.Expr, message: str) -> None:
    pl.read_parquet(judged).with_columns(change).write_parquet(judged)
    with pytest.raises(ValueError, match=message) as raised:
        measured(judged)
    assert "\n" not in str(raised.value)


def test_a_missing_column_file_or_row_is_named(judged: Path, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"judged\.parquet has no column 'text' \(1 of 3 needed are missing\)",
    ):
        measured(judged, title="text")
    with pytest.raises(ValueError, match=r"none\.parquet is missing"):
        measured(tmp_path / "none.parquet")
    pl.read_parquet(judged).clear().write_parquet(judged)
    with pytest.raises(ValueError, match=r"judged\.parquet is empty: 0 rows"):
        measured(judged)


@pytest.mark.parametrize("folds", [1, 49])
def test_folds_must_fit_the_queries(judged: Path, folds: int) -> None:
    with pytest.raises(ValueError, match=f"folds is {folds}; it must be at least 2 and at most the 48 queries"):
        measured(judged, folds=folds)


@pytest.fixture
def collection(tmp_path: Path) -> dict[str, Any]:
    """Three things to find in prose, and much else."""
    things = ["dielectric constant of a liquid", "noise in a transistor", "a printed inductor"]
    other = [f"the study of {colour} {thing}s and of their use" for colour in COLOURS for thing in THINGS]
    files = {name: tmp_path / f"{name}.parquet" for name in ("documents", "queries", "qrels")}
    texts = [f"on the measurement of the {thing}" for thing in things] + other
    pl.DataFrame({"doc_id": range(7, 7 + len(texts)), "text": texts}).write_parquet(files["documents"])
    pl.DataFrame({"query_id": [1, 2, 3, 4], "text": [*things, "nobody judged this"]}).write_parquet(files["queries"])
    pl.DataFrame({"query_id": [2, 1, 3], "doc_id": [8, 7, 9], "rel": [1, 1, 1]}).write_parquet(files["qrels"])
    return files


def test_a_collection_of_documents_is_searched_whole(collection: dict[str, Any]) -> None:
    found = evaluate(**collection, folds=3)
    assert (found["map.bm25"], found["mrr"], found["recall@100"]) == (1, 1, 1)
    assert (found["queries.recall"], found["titles"]) == (3, 51)
    assert np.isnan(found["ndcg@10"])


def test_a_collection_whose_files_do_not_fit_is_refused(collection: dict[str, Any]) -> None:
    pl.DataFrame({"query_id": [1, 1], "doc_id": [7, 99], "rel": [1, 1]}).write_parquet(collection["qrels"])
    with pytest.raises(ValueError, match=r"qrels\.parquet: 1 of 2 rows have a doc_id that .* does not hold"):
        evaluate(**collection)
    with pytest.raises(ValueError, match="needs judgments=FILE, or documents=FILE queries=FILE qrels=FILE"):
        evaluate(documents=collection["documents"])


def test_average_precision_is_its_definition() -> None:
    hit_QK = np.array([[True, False, True], [False, False, False], [False, True, False]])
    assert average_precision(hit_QK, np.array([3, 2, 0])) == pytest.approx([(1 + 2 / 3) / 3, 0, np.nan], nan_ok=True)


def test_two_runs_are_compared_query_by_query(judged: Path, tmp_path: Path) -> None:
    columns: dict[str, Any] = {"query": "typed", "title": "name", "relevance": "grade"}
    evaluate(judged, **columns, tower=False, out=tmp_path / "one", seed=0)
    same = evaluate(judged, **columns, tower=False, against=tmp_path / "one", out=tmp_path / "two", seed=0)
    assert (same["ndcg@10.against"], same["recall@100.against.p"], same["queries.against"]) == (0, 1, 48)
    other = evaluate(judged, **columns, tower=False, against=tmp_path / "one", out=tmp_path / "two", seed=5)
    page = (tmp_path / "two" / "search.html").read_text()
    assert (other["ndcg@10.against"] != 0) == ("None did." not in page)
    with pytest.raises(ValueError, match="holds no run of `evaluate search"):
        evaluate(judged, **columns, against=tmp_path / "none")


def public(name: str) -> Path:
    folder = Path(os.environ.get("CASCADE_DATA", "")) / name
    if "CASCADE_DATA" not in os.environ or not folder.is_dir():
        pytest.skip(f"set CASCADE_DATA to a folder that holds {name}")
    return folder


def test_bm25_on_vaswani_is_near_the_published_map() -> None:
    """Terrier's BM25 has a mean average precision of .299 there."""
    folder = public("vaswani-npl")
    files: dict[str, Any] = {
        name: folder / f"{path}.parquet" for name, path in (("documents", "docs"), ("queries", "queries"))
    }
    found = evaluate(**files, qrels=folder / "qrels.parquet", tower=False)
    assert found["map.bm25"] == pytest.approx(0.299, abs=0.005)


@pytest.mark.slow
def test_home_depot_is_ranked_better_than_bm25() -> None:
    found = evaluate(
        public("home-depot-search") / "train.parquet",
        query="search_term",
        title="product_title",
        relevance="relevance",
        id="product_uid",
    )
    assert found["ndcg@10.random"] == pytest.approx(0.875, abs=0.001)
    assert found["ndcg@10.bm25"] == pytest.approx(0.894, abs=0.002)
    assert found["ndcg@10"] >= 0.899
    assert found["ndcg@10.gain.low"] > 0
    assert found["recall@100"] >= 0.79
