"""Slates for everybody are those of the pipeline that serves, each once, with propensities that the policy confirms."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from conftest import Loop

from candidate_gen.types import Query
from index.strings import keys64
from ranking.inference import CompiledRanker
from serving.fan_out import FanOut
from serving.generation import action_key
from serving.live import Live
from training import batch_slates, cli
from training.batch_slates import ROW, BatchSettings, recommend


@pytest.fixture(scope="module")
def settings(loop: Loop, tmp_path_factory: pytest.TempPathFactory) -> BatchSettings:
    """Of a batch that was made, for everybody."""
    folder = tmp_path_factory.mktemp("batch")
    loop.dataset.events.write_parquet(folder / "history.parquet")
    told = BatchSettings(
        mode="recommend",
        generations=loop.store.root,
        generation="",
        log=loop.log,
        history=folder / "history.parquet",
        users=None,
        size=5,
        surface="batch",
        time_ms=None,
        output=folder / "slates",
        workers=1,
        chunk=50,
    )
    result = recommend(told)
    assert (result["users"], result["made before"], result["empty slates"]) == (120, 0, 0)
    assert (result["slates drawn again"], result["of them differing"], result["slates made one at a time"]) == (
        12,
        0,
        0,
    )
    return told


def rows(settings: BatchSettings) -> pl.DataFrame:
    return pl.read_parquet(settings.output / "slates-*.parquet")


def test_every_user_has_one_slate_of_different_items(loop: Loop, settings: BatchSettings) -> None:
    made = rows(settings)
    assert made.schema == ROW
    assert sorted(made["user_id"]) == sorted(loop.dataset.users["user_id"])
    assert len(list(settings.output.glob("slates-*.parquet"))) == 3
    assert made["item_id"].list.n_unique().to_list() == made["item_id"].list.len().to_list()
    assert set(made["generation"]) == {loop.second.id}


def test_the_propensities_are_the_policy_s_own(loop: Loop, settings: BatchSettings) -> None:
    """Asked of the generation for the very slate, with the history that the log tells."""
    generation = loop.generations[1]
    live = Live(lambda: generation)
    pipeline = replace(generation.pipeline, fan_out=FanOut(()))
    for row in rows(settings).head(10).iter_rows(named=True):
        own = loop.history.filter(user_id=row["user_id"]).sort("visible_ms", "time_ms", "event_id", descending=True)
        own = own.head(64)
        history = generation.history(
            keys64(own["item_id"].to_list()),
            np.array([action_key(each) for each in own["action"]], np.uint32),
            own["time_ms"].to_numpy(),
        )
        query = Query(row["request_id"], row["time_ms"], "batch", 5, user_id=row["user_id"], history=history)
        query = replace(query, live=live.named(query, generation, generation.attributes.allowed("")))
        answer = pipeline.run(query)
        index_K = answer.scored.candidates.positions(generation.items.ids.rows_of(row["item_id"]))
        draw = generation.policy.propensity_of(query, answer.scored, index_K)
        assert draw.propensity_K.tolist() == row["propensity"]
        assert answer.slate.utility_N[index_K].tolist() == pytest.approx(row["utility"], rel=0, abs=0)
        assert (draw.propensity_K > 0).all()


def test_what_the_slates_were_made_with_stands_beside_them(settings: BatchSettings, tmp_path: Path) -> None:
    few = replace(settings, output=tmp_path / "few", most=7, quotas={"lexical": 0})
    recommend(few)
    told = json.loads((few.output / "batch.json").read_text())
    assert (told["most"], told["size"], told["of them differing"]) == (7, 5, 0)
    assert "lexical" not in told["quotas"]
    assert json.loads((settings.output / "batch.json").read_text())["most"] is None
    assert not rows(few).equals(rows(settings))


def test_a_slate_that_differs_from_the_served_one_is_counted(
    settings: BatchSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def off(self: CompiledRanker, *args: Any) -> Any:
        return -logits_of_many(self, *args)

    logits_of_many = CompiledRanker.logits_of_many
    monkeypatch.setattr(CompiledRanker, "logits_of_many", off)
    assert recommend(replace(settings, output=tmp_path / "off"))["of them differing"] > 0


def copied(settings: BatchSettings, folder: Path, **changes: Any) -> BatchSettings:
    shutil.copytree(settings.output, folder / "slates")
    return replace(settings, output=folder / "slates", **changes)


def test_what_is_there_is_not_made_again_and_what_is_missing_comes_out_the_same(
    settings: BatchSettings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    again = copied(settings, tmp_path)
    first, second, _ = sorted(again.output.glob("slates-*.parquet"))
    before = second.read_bytes()
    second.unlink()
    result = recommend(again)
    assert (result["made before"], second.read_bytes()) == (70, before)
    monkeypatch.setattr(batch_slates, "_recommending", lambda *_: pytest.fail("all is done"))
    assert recommend(again)["made before"] == 120
    assert first.exists()


def test_another_question_is_answered_afresh_and_leaves_nothing_of_the_last(
    settings: BatchSettings, tmp_path: Path
) -> None:
    pl.DataFrame({"user_id": ["3", "nobody", "3"]}).write_parquet(tmp_path / "users.parquet")
    other = copied(settings, tmp_path, users=tmp_path / "users.parquet", quotas={"ann": 0, "similar": 0}, size=3)
    result = recommend(other)
    assert (result["users"], result["made before"]) == (2, 0)
    made = rows(other)
    assert made["user_id"].to_list() == ["3", "nobody"]
    assert made["item_id"].list.len().to_list() == [3, 3]


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["size=0"], "size is 0; it must be at least 1"),
        (["most=0"], "most is 0; it must be at least 1"),
        (["generation=nonsense"], "no generation 'nonsense'"),
        (["quotas.magic=3"], "magic"),
        (["users=missing.parquet"], "missing.parquet is missing"),
    ],
)
def test_what_cannot_be_done_is_said_in_one_line(
    loop: Loop, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    given = ["batch", "recommend", f"generations={loop.store.root}", "log=null", f"output={tmp_path / 'out'}", *words]
    assert cli.main(given) == 2
    err = capsys.readouterr().err
    assert told in err
    assert err.count("\n") == 1


@pytest.mark.slow
def test_processes_side_by_side_make_the_same_slates(settings: BatchSettings, tmp_path: Path) -> None:
    two = replace(settings, output=tmp_path / "two", workers=2)
    recommend(two)
    assert rows(two).equals(rows(settings))
