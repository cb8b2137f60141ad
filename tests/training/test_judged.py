"""Rankers that learn from judgement lists beside a log in which nobody searched, or whose clicks say little."""

import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from example_cases import SimulatedLog, simulated_log

from ranking.model import RankerShape
from serving.retrieval import RetrievalSettings
from training.datasets.dataset import DataError, field_boosts
from training.datasets.judgments import write_judgments
from training.examples.counters import item_counters
from training.examples.exposures import Examples, item_rows
from training.learning.judged import JudgedLists, JudgedSettings, judged_lists
from training.learning.ranker import RankerSettings, train_ranker
from training.learning.trees import TreesSettings, train_trees

SMALL = RankerSettings(shape=RankerShape(dim=8, query_width=16, rank=8, hidden=(16,)), epochs=2, batch=256)
TREES = TreesSettings(objective="lambdarank", trees=30, leaf_rows=5)
BOOSTS = field_boosts(RetrievalSettings().boosts, ())
WORDS = ["anvil", "basin", "candle", "drawer", "easel", "funnel", "gasket", "hammer", "inkwell", "jacket"]


@pytest.fixture(scope="module")
def log() -> SimulatedLog:
    """Each item's title is of two words; nobody types anything."""
    made = simulated_log(seed=4, users=30, items=60, requests=500)
    titles = [f"{WORDS[i % 10]} {WORDS[(i // 10 + i) % 10]}" for i in range(made.items.height)]
    return replace(made, items=made.items.with_columns(title=pl.Series(titles)))


@pytest.fixture(scope="module")
def examples(log: SimulatedLog) -> Examples:
    return log.examples()


@pytest.fixture(scope="module")
def judged(log: SimulatedLog, tmp_path_factory: pytest.TempPathFactory) -> JudgedLists:
    """Of every pair of words, the titles that have both are best and those that have neither are bad."""
    path = tmp_path_factory.mktemp("judged") / "judged.parquet"
    write_judgments(judgments(log.items), path)
    return of_list(log, path)


def judgments(items: pl.DataFrame) -> pl.DataFrame:
    rng = np.random.default_rng(0)
    rows = []
    for one in WORDS:
        for other in WORDS:
            for at in rng.choice(items.height, 12, replace=False).tolist():
                held = set(items["title"][at].split())
                rows.append((f"{one} {other}", items["item_id"][at], float((one in held) + (other in held)), "human"))
    return pl.DataFrame(rows, ["query", "item", "grade", "source"], orient="row")


def of_list(log: SimulatedLog, path: Path) -> JudgedLists:
    counters = item_counters(log.impressions, log.events, log.items, as_of_ms=log.end_ms, table=log.table)
    rows = item_rows(log.table, log.items, counters)
    return judged_lists(log.table, path=path, items=log.items, item_row_I=rows, time_ms=log.end_ms, boosts=BOOSTS)


def test_lists_are_shares_of_gain_with_the_features_of_a_search(log: SimulatedLog, judged: JudgedLists) -> None:
    rows = judged.rows
    gain_R = np.bincount(rows.request_N, np.exp2(judged.relevance_N) - 1)
    expected_N = (np.exp2(judged.relevance_N) - 1) / gain_R[rows.request_N]
    np.testing.assert_allclose(rows.label_NA[:, 0], expected_N, rtol=1e-6)
    assert not rows.label_NA[:, 1:].any()
    assert rows.query_row_R["text"].any(axis=1).all()
    assert not rows.query_row_R["history_item"].any()
    assert (rows.pair_row_N["title_coverage"] > 0).tolist() == (judged.relevance_N > 0).tolist()
    assert ((rows.pair_row_N["bm25"] > 0) == (judged.relevance_N > 0)).all()
    learned, held_out = judged.part(held_out=False), judged.part(held_out=True)
    assert len(learned) + len(held_out) == len(judged) <= 100
    assert 0.02 < len(held_out) / len(judged) < 0.25
    assert len(learned.rows) + len(held_out.rows) == len(rows)


def test_lists_that_say_nothing_are_left_out_and_a_file_of_them_is_refused(log: SimulatedLog, tmp_path: Path) -> None:
    items = log.items["item_id"]
    rows = [("alike", items[0], 1.0), ("alike", items[1], 1.0), ("gone", "zzz", 2.0), ("gone", items[2], 0.0)]
    path = tmp_path / "judged.parquet"

    def written(listed: list[tuple[str, str, float]]) -> Path:
        frame = pl.DataFrame(listed, ["query", "item", "grade"], orient="row").with_columns(source=pl.lit("human"))
        write_judgments(frame, path)
        return path

    with pytest.raises(DataError, match="no query has two judged items of the catalogue, one of them better than the"):
        of_list(log, written(rows))
    decided = [("told", items[3], 1.0), ("told", items[4], 2.0)]
    assert len(of_list(log, written([*rows, *decided]))) == 1


def test_rankers_order_lists_that_they_have_not_seen_as_the_lists_that_they_learn_from_do(
    log: SimulatedLog, examples: Examples, judged: JudgedLists, tmp_path: Path
) -> None:
    """Whether titles that have what was typed are best or worst; of rankers that do not learn it, none knows both."""

    def deep(lists: JudgedLists, weight: float) -> dict[str, float]:
        settings = replace(SMALL, judged=JudgedSettings(weight=weight))
        return train_ranker(log.table, examples, settings=settings, seed=0, folder=tmp_path, judged=lists)[2]

    def boosted(lists: JudgedLists, weight: float) -> dict[str, float]:
        settings = replace(TREES, judged=JudgedSettings(weight=weight))
        return train_trees(log.table, examples, settings=settings, seed=0, folder=tmp_path, judged=lists)[2]

    forth, back = judged, reversed_lists(judged)
    for train in (deep, boosted):
        learned = [train(lists, 1.0) for lists in (forth, back)]
        assert min(each["judged.ndcg@10"] for each in learned) > 0.9, train.__name__
        measured = train(forth, 0.0)
        figures = (measured["judged.ndcg@10"], train(back, 0.0)["judged.ndcg@10"])
        assert min(figures) < 0.8, train.__name__
        assert learned[0]["judged.queries"] == len(judged.part(held_out=True))
        assert abs(learned[0]["click.auc"] - measured["click.auc"]) < 0.06, "what the log says is not unlearned"


def reversed_lists(judged: JudgedLists) -> JudgedLists:
    relevance_N = judged.relevance_N.max() - judged.relevance_N
    gain_N, label_NA = np.exp2(relevance_N) - 1, judged.rows.label_NA.copy()
    label_NA[:, 0] = gain_N / np.bincount(judged.rows.request_N, gain_N)[judged.rows.request_N]
    return replace(judged, rows=replace(judged.rows, label_NA=label_NA), relevance_N=relevance_N)


def test_trees_that_cannot_learn_from_lists_say_so() -> None:
    with pytest.raises(ValueError, match="objective is 'binary'; judged lists are learned from by 'lambdarank' alone"):
        TreesSettings(judged=JudgedSettings(judgments="judged.parquet"))
    TreesSettings(judged=JudgedSettings(judgments="judged.parquet", weight=0))
    with pytest.raises(ValueError, match="weight is -1; it must not be negative"):
        JudgedSettings(weight=-1)


@pytest.mark.slow
def test_home_depots_raters_teach_both_rankers_to_order_what_they_did_not_rate_better_than_bm25(tmp_path: Path) -> None:
    """Nobody's clicks say anything: the log is of random slates and random clicks."""
    judged = Path(os.environ.get("CASCADE_DATA", "")) / "home-depot-search" / "train.parquet"
    if "CASCADE_DATA" not in os.environ or not judged.is_file():
        pytest.skip("set CASCADE_DATA to a folder that holds home-depot-search")
    items, list_of = titles_and_judgments(pl.read_parquet(judged), queries=2500)
    path = tmp_path / "judged.parquet"
    log = simulated_log(seed=1, users=20, items=items.height, requests=400)
    log = replace(log, items=items.with_columns(item_id=pl.Series([f"i{i}" for i in range(items.height)])))
    number = dict(zip(items["item_id"], log.items["item_id"], strict=True))
    write_judgments(list_of.with_columns(pl.col("item").replace_strict(number)), path)
    lists = of_list(log, path)
    held_out = lists.part(held_out=True)
    bm25 = held_out.figures(held_out.rows.pair_row_N["bm25"])["judged.ndcg@10"]
    shown = log.examples()
    deep = replace(SMALL, epochs=10, patience=10, learning_rate=3e-3, judged=JudgedSettings())
    boosted = replace(TREES, trees=150, patience=150, leaf_rows=50)
    learned = (
        train_ranker(log.table, shown, settings=deep, seed=0, folder=tmp_path, judged=lists)[2],
        train_trees(log.table, shown, settings=boosted, seed=0, folder=tmp_path, judged=lists)[2],
    )
    assert min(each["judged.ndcg@10"] for each in learned) > bm25 + 0.003


def titles_and_judgments(rated: pl.DataFrame, *, queries: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """A catalogue and a judgement list of rows with a query, a title and a grade each; of the first queries."""
    some = rated["search_term"].unique(maintain_order=True).head(queries)
    rated = rated.filter(pl.col("search_term").is_in(some.implode()))
    items = rated.unique("product_uid", maintain_order=True).select(
        item_id=pl.col("product_uid").cast(pl.Utf8),
        title="product_title",
        category=pl.lit("tools"),
        creator=pl.lit("unknown"),
        published_ms=pl.lit(0, pl.Int64),
        available=pl.lit(value=True),
    )
    judgments = rated.unique(["search_term", "product_uid"], maintain_order=True).select(
        query="search_term",
        item=pl.col("product_uid").cast(pl.Utf8),
        grade=pl.col("relevance").cast(pl.Float64),
        source=pl.lit("human"),
    )
    return items, judgments
