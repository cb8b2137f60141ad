"""A published generation's search against judgments made of its own titles."""

from functools import partial
from pathlib import Path

import polars as pl
import pytest
from conftest import Loop
from test_replay import with_settings

from serving.generation import Generation
from training.datasets.dataset import DataError
from training.datasets.judgments import SCHEMA, write_judgments
from training.evaluation.search import evaluate
from training.gates import SearchGateSettings
from training.search_judged import judged, run_of


def own_titles(loop: Loop, count: int = 25) -> pl.DataFrame:
    """Every item is right for its own title, and the next one is wrong for it."""
    items = loop.generations[0].items
    rows = []
    for row in range(count):
        rows.append((items.titles[row], items.ids.ids[row], 3.0, "human"))
        rows.append((items.titles[row], items.ids.ids[row + 100], 1.0, "human"))
    return pl.DataFrame(rows, SCHEMA, orient="row").unique(["query", "item"], maintain_order=True)


def test_an_item_is_found_by_its_own_title(loop: Loop) -> None:
    run = run_of(loop.generations[0], own_titles(loop))
    found = run.metrics(seed=0)
    assert found["recall@100"] > 0.9
    assert 0 < found["ndcg@10"] <= 1
    assert found["queries"] == run.queries.height
    assert run.results["place"].max() == 10


def test_the_same_generation_does_not_differ_from_itself(loop: Loop) -> None:
    run = run_of(loop.generations[0], own_titles(loop))
    again = run_of(with_settings(loop.generations[0], temperature=0.5, epsilon=0.3), own_titles(loop))
    found = again.metrics(run, seed=0)
    assert (found["ndcg@10.against"], found["ndcg@10.against.p"]) == (0, 1)


def test_items_that_are_not_held_count_as_not_found(loop: Loop) -> None:
    strange = own_titles(loop).with_columns(item=pl.lit("no such ") + pl.col("item"))
    found = run_of(loop.generations[0], strange).metrics(seed=0)
    assert (found["ndcg@10"], found["recall@100"], found["rows.unknown"]) == (0, 0, strange.height)


def test_people_outrank_clicks(loop: Loop) -> None:
    people = own_titles(loop)
    clicks = people.with_columns(grade=4 - pl.col("grade"), source=pl.lit("clicks"))
    both = run_of(loop.generations[0], pl.concat([clicks, people]))
    assert both.queries.equals(run_of(loop.generations[0], people).queries)


def test_equal_grades_are_refused(loop: Loop) -> None:
    with pytest.raises(DataError, match="nothing is to be found"):
        run_of(loop.generations[0], own_titles(loop).with_columns(grade=pl.lit(2.0)))


def test_the_gate_is_the_change_beside_what_is_in_force(loop: Loop, tmp_path: Path) -> None:
    path = tmp_path / "judged.parquet"
    write_judgments(own_titles(loop), path)
    settings, load = SearchGateSettings(judgments=str(path)), partial(Generation.load, loop.store)
    gate, figures = judged(loop.generations[0], settings, incumbent=loop.first.id, load=load)
    assert (gate.name, gate.value, gate.passed) == ("search.change_low", 0, True)
    assert figures["search.change"] == 0
    unreachable = SearchGateSettings(judgments=str(path), least=0.5)
    strict, _ = judged(loop.generations[0], unreachable, incumbent=loop.first.id, load=load)
    assert not strict.passed
    first, _ = judged(loop.generations[0], settings, incumbent=None, load=load)
    assert first.passed


def test_the_command_measures_a_generation_and_compares_two(loop: Loop, tmp_path: Path) -> None:
    path, before = tmp_path / "judged.parquet", tmp_path / "before"
    write_judgments(own_titles(loop), path)
    store = loop.store.root
    evaluate(path, generation=loop.first.id, store=store, out=before)
    found = evaluate(path, generation=loop.first.id, store=store, out=tmp_path / "after", against=before)
    assert found["ndcg@10.against"] == 0
    page = (tmp_path / "after" / "search.html").read_text()
    assert "Worst queries" in page
    assert "None did." in page
    assert pl.read_parquet(before / "queries.parquet").height == found["queries.against"]
