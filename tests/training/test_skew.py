"""What is computed again is what was served, and whatever is not is found, named and held to its budget."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conftest import SMALL, Loop

from candidate_gen.features import Feature, FeatureTable
from protos.impression_pb2 import Impression
from ranking.scorer import RankerScorer
from serving.generation import Generation
from serving.log.impression_log import ImpressionLog
from training import cli, cycle
from training.gates import GateFailed, GateSettings, require, skew_gates
from training.reports import skew_report
from training.skew import FeatureSkew, Skew, is_of_state, measure, sampled

STRICT = GateSettings(skew_state=0.0)


def by_id(loop: Loop) -> dict[str, Generation]:
    return {each.id: each for each in loop.generations}


def of_first(loop: Loop, most: int = 40) -> list[Impression]:
    return [each for each in loop.everything.impressions if each.generation == loop.first.id][:most]


def differing(skew: Skew) -> dict[str, FeatureSkew]:
    return {each.name: each for each in skew.features if each.differing}


def tampered(logged: Sequence[Impression], change: Callable[[Impression], None]) -> list[Impression]:
    """The same with one changed, the third."""
    made = [Impression.FromString(each.SerializeToString()) for each in logged]
    change(made[2])
    return made


def set_field(table: FeatureTable, column: str, name: str, at: int, value: float) -> Callable[[Impression], None]:
    row = {"query_row": "query", "item_rows": "item", "pair_rows": "pair"}[column]

    def change(logged: Impression) -> None:
        rows = np.frombuffer(getattr(logged, column), table.dtype(row)).copy()  # type: ignore[arg-type]
        rows[name][at] = value
        setattr(logged, column, rows.tobytes())

    return change


@pytest.fixture(scope="module")
def whole(loop: Loop) -> Skew:
    return measure(loop.everything.impressions, by_id(loop), loop.history)


def test_what_generation_and_request_determine_is_equal_in_every_bit(loop: Loop, whole: Skew) -> None:
    assert whole.requests == len(loop.everything.impressions)
    assert whole.exposures == sum(len(each.item_id) for each in loop.everything.impressions)
    assert not {name for name, each in differing(whole).items() if not each.of_state}
    compared = {each.name: each.rows for each in whole.features}
    table = loop.generations[0].table
    assert list(compared) == [each.name for row in ("query", "item", "pair") for each in table.of(row)]
    assert {compared["text"], compared["history_item"]} == {whole.requests}
    assert {compared["log_shown"], compared["bm25"], compared["tower_score"]} == {whole.exposures}


def test_histories_are_equal_where_the_world_told_the_server_nothing_ahead_of_time(loop: Loop, whole: Skew) -> None:
    """The simulated world reports a visit's outcomes at once, before the same user's next request is sent, although
    some become visible after it. From then on the user's events stand in another order than they became visible in."""
    seen = pl.DataFrame(
        [(each.user_id, each.time_ms, at_ms) for each in loop.everything.impressions for at_ms in each.history_time_ms],
        {"user_id": pl.Utf8, "asked_ms": pl.Int64, "time_ms": pl.Int64},
        orient="row",
    )
    early = seen.join(loop.history, on=["user_id", "time_ms"]).filter(pl.col("visible_ms") > pl.col("asked_ms"))
    ahead = set(early["user_id"])
    told_in_time = [each for each in loop.everything.impressions if each.user_id not in ahead]
    assert len(told_in_time) > 0.9 * whole.requests
    assert any(each.history_item_key for each in told_in_time)
    assert not differing(measure(told_in_time, by_id(loop), loop.history))


def test_one_changed_value_is_found_and_shown(loop: Loop) -> None:
    table, logged = loop.generations[0].table, of_first(loop)
    was = np.frombuffer(logged[2].item_rows, table.dtype("item"))["log_shown"][1]
    changed = tampered(logged, set_field(table, "item_rows", "log_shown", 1, was + 0.5))
    (found,) = differing(measure(changed, by_id(loop), loop.history)).values()
    assert (found.name, found.row, found.of_state, found.differing) == ("log_shown", "item", False, 1)
    assert found.largest == pytest.approx(0.5)
    assert found.example is not None
    assert (found.example.request_id, found.example.item_id) == (logged[2].request_id, logged[2].item_id[1])
    assert (found.example.logged, found.example.recomputed) == (pytest.approx(was + 0.5), pytest.approx(was))


def test_a_single_bit_counts_even_where_the_values_are_equal_as_numbers(loop: Loop) -> None:
    table, logged = loop.generations[0].table, of_first(loop)
    assert (np.frombuffer(logged[2].pair_rows, table.dtype("pair"))["bm25"] == 0).all()
    changed = tampered(logged, set_field(table, "pair_rows", "bm25", 0, -0.0))
    (found,) = differing(measure(changed, by_id(loop), loop.history)).values()
    assert (found.name, found.differing, found.largest) == ("bm25", 1, 0.0)
    not_a_number = tampered(logged, set_field(table, "pair_rows", "bm25", 0, float("nan")))
    assert differing(measure(not_a_number, by_id(loop), loop.history))["bm25"].differing == 1


def test_events_that_the_store_lost_show_in_what_is_made_of_history_and_nowhere_else(loop: Loop) -> None:
    def forget(logged: Impression) -> None:
        for name in ("history_item_key", "history_action_key", "history_time_ms"):
            logged.ClearField(name)

    logged = [each for each in of_first(loop, 200) if len(each.history_item_key) > 3]
    at = pl.lit(logged[2].time_ms)
    one_more = loop.history.head(1).with_columns(
        event_id=pl.lit("more"), user_id=pl.lit(logged[2].user_id), time_ms=at, visible_ms=at
    )
    with_more = pl.concat([loop.history, one_more])
    found = differing(measure(logged, by_id(loop), with_more))
    assert "history_item" in found
    assert all(each.of_state for each in found.values())
    assert (
        measure(tampered(logged, forget), by_id(loop), loop.history).features
        == measure(logged, by_id(loop), loop.history).features
    ), "the history that was read is not looked at, only the bytes made of it"


def test_chunks_change_nothing(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    logged = of_first(loop, 30)
    at_once = measure(logged, by_id(loop), loop.history)
    seen: list[int] = []
    monkeypatch.setattr("training.skew._CHUNK", 7)
    assert measure(iter(logged), by_id(loop), loop.history, advance=seen.append) == at_once
    assert seen == [7, 7, 7, 7, 2]


def test_what_another_generation_answered_is_counted_and_left_out(loop: Loop) -> None:
    first = {loop.first.id: loop.generations[0]}
    both = [*of_first(loop, 10), *(each for each in loop.everything.impressions if each.generation == loop.second.id)]
    found = measure(both, first, loop.history)
    assert (found.requests, found.left_out) == (10, {loop.second.id: len(both) - 10})
    with pytest.raises(ValueError, match=f"none answered by {loop.first.id}; they are of {loop.second.id}"):
        measure(both[10:], first, loop.history)


def test_nothing_to_look_at_is_refused(loop: Loop) -> None:
    with pytest.raises(ValueError, match="the log holds 0 impressions"):
        measure([], by_id(loop), loop.history)


def test_bytes_of_another_feature_table_name_the_first_feature_that_differs(loop: Loop) -> None:
    first, second = loop.generations
    features = tuple(replace(each, default=1.0) if each.name == "bm25" else each for each in second.table.features)
    other = replace(second, table=FeatureTable(features, second.table.actions, second.table.sources))
    strange = tampered(of_first(loop), lambda logged: setattr(logged, "schema", other.table.fingerprint))
    with pytest.raises(ValueError, match=r"feature 'bm25' had default 1\.0, now 0\.0"):
        measure(strange, {first.id: first, other.id: other}, loop.history)
    unknown = tampered(of_first(loop), lambda logged: setattr(logged, "schema", "0123"))
    with pytest.raises(ValueError, match=f"was logged with feature table 0123, not with {first.table.fingerprint}"):
        measure(unknown, by_id(loop), loop.history)


def test_bytes_that_do_not_fit_the_items_shown_are_refused(loop: Loop) -> None:
    cut = tampered(of_first(loop), lambda logged: setattr(logged, "pair_rows", logged.pair_rows[:-1]))
    with pytest.raises(ValueError, match=f"impression {cut[2].request_id} holds .* bytes of pair rows"):
        measure(cut, by_id(loop), loop.history)


def test_what_is_made_of_history_is_said_by_the_table(loop: Loop) -> None:
    table = loop.generations[0].table
    of_state = {each.name for each in table.features if is_of_state(each)}
    assert {"history_item", "history_log_length", "category_affinity", "tower_score"} <= of_state
    assert not {"user_id", "hour", "item_id", "log_shown", "click_rate", "log_age_days", "bm25", "retrieved"} & of_state


def made(**shares: tuple[bool, float]) -> Skew:
    return Skew(
        100,
        1000,
        {},
        tuple(
            FeatureSkew(name, "pair", of_state, 1000, round(1000 * share), 0.5, None)
            for name, (of_state, share) in shares.items()
        ),
    )


def test_a_feature_over_its_budget_is_named_with_its_figure() -> None:
    metrics = made(equal=(False, 0.0), bm25=(False, 0.002), history_item=(True, 0.04), tower_score=(True, 0.2)).metrics
    assert metrics == {
        "skew.requests": 100.0,
        "skew.bm25": 0.002,
        "skew.state.history_item": 0.04,
        "skew.state.tower_score": 0.2,
    }
    with pytest.raises(GateFailed) as failed:
        require(skew_gates(GateSettings(), metrics))
    assert str(failed.value) == "skew.bm25 is 0.002, must be <= 0; skew.state.tower_score is 0.2, must be <= 0.05"
    require(skew_gates(GateSettings(skew_of={"tower_score": 1.0, "bm25": 0.002}), metrics))
    with pytest.raises(GateFailed, match=r"skew.state.history_item is 0.04, must be <= 0.01"):
        require(skew_gates(GateSettings(skew=1.0, skew_state=1.0, skew_of={"history_item": 0.01}), metrics))
    assert skew_gates(GateSettings(), made(equal=(False, 0.0)).metrics) == ()


@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_a_budget_that_is_no_share_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match=f"skew_of.bm25 is {value}; it must be from 0 to 1"):
        GateSettings(skew_of={"bm25": value})


def test_a_gate_looks_at_evenly_spaced_requests_of_generations_that_are_still_there(loop: Loop) -> None:
    found = sampled(loop.everything.impressions, loop.store, loop.history, most=50)
    assert 25 < found["skew.requests"] <= 50
    require(skew_gates(GateSettings(), found))
    strange = tampered(of_first(loop, 3)[2:] * 3, lambda each: setattr(each, "generation", "gone"))
    assert sampled(strange[2:], loop.store, loop.history) == {}


def test_a_red_feature_stops_a_publish_and_is_named_with_its_figure(loop: Loop) -> None:
    generation, before = loop.generations[1], loop.store.ids()
    change = set_field(generation.table, "item_rows", "log_shown", 1, 77.0)
    served = replace(loop.served, impressions=tuple(tampered(loop.served.impressions, change)))
    prepared = cycle.prepare(
        loop.dataset,
        as_of_ms=loop.served_end_ms,
        tower_positives=50,
        served=served,
        table=generation.table,
        store=loop.store,
    )
    assert prepared.skew["skew.log_shown"] == 1 / sum(len(each.item_id) for each in served.impressions)
    scorer = generation.scorer
    assert isinstance(scorer, RankerScorer)
    with pytest.raises(GateFailed, match=r"skew\.log_shown is 0\.000\d+, must be <= 0"):
        cycle.export(
            prepared,
            generation.towers,
            scorer.ranker,
            scorer.calibration,
            settings=SMALL,
            metrics={},
            store=loop.store,
            now_ms=loop.served_end_ms,
        )
    assert loop.store.ids() == before


def test_the_page_shows_what_differs_with_its_first_example(loop: Loop, tmp_path: Path) -> None:
    table, logged = loop.generations[0].table, of_first(loop)
    changed = tampered(logged, set_field(table, "item_rows", "log_shown", 1, 77.0))
    found = measure(changed, by_id(loop), loop.history)
    report = skew_report.described(found, STRICT, log=Path("a.db"))
    page = skew_report.write(report, tmp_path).read_text()
    assert json.loads((tmp_path / "skew.json").read_text()) == report
    assert page.count("<svg") == page.count("<figure") == 1
    for part in ("log_shown", logged[2].request_id, logged[2].item_id[1], "77", "&#10007; over", "bm25"):
        assert part in page
    assert "<script" not in page
    assert skew_report.told(report)["log_shown"].endswith(", must be <= 0")
    nothing = skew_report.html(skew_report.described(made(bm25=(False, 0.0)), STRICT, log=Path("a.db")))
    assert "<svg" not in nothing


def run_here(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = cli.main(["report", "skew", *words])
    out, err = capsys.readouterr()
    return code, out, err


@pytest.fixture
def words(loop: Loop, tmp_path: Path) -> list[str]:
    loop.dataset.events.write_parquet(tmp_path / "history.parquet")
    return [
        f"log={loop.log}",
        f"generations={loop.store.root}",
        f"history={tmp_path / 'history.parquet'}",
        f"output={tmp_path / 'skew'}",
    ]


def test_the_command_prints_and_writes_and_ends_with_0(
    words: list[str], loop: Loop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run_here(capsys, *words)
    assert (code, err) == (0, "")
    assert f"{len(loop.everything.impressions)}" in out
    report = json.loads((tmp_path / "skew" / "skew.json").read_text())
    assert report["requests"] == len(loop.everything.impressions)
    assert (tmp_path / "skew" / "skew.html").exists()


def test_the_command_ends_with_3_over_the_budget_and_says_which_feature(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, _, err = run_here(capsys, *words, "history=null", "gates.skew_state=0.1")
    assert code == 3
    assert err.startswith("cascade: error: ")
    assert "skew.state.history_item is " in err
    assert "must be <= 0.1" in err
    assert (tmp_path / "skew" / "skew.html").exists()


def test_bad_input_is_one_line_and_code_2(words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    empty = tmp_path / "empty.db"
    ImpressionLog(empty).close()
    for more, message in (
        (f"log={empty}", "0 impressions; at least 1 is needed"),
        (f"log={tmp_path / 'none.db'}", "no impression log at"),
        ("generation=000009-00000000", "holds no generation '000009-00000000'; it holds 000001-"),
        (f"history={tmp_path / 'none.parquet'}", "none.parquet is missing"),
        ("gates.skew=2", "skew is 2.0; it must be from 0 to 1"),
    ):
        code, out, err = run_here(capsys, *words, more)
        assert (code, out) == (2, ""), err
        assert message in err
        assert err.count("\n") == 1
    assert not (tmp_path / "skew").exists()


def test_a_log_of_others_says_whose_it_is(
    words: list[str], loop: Loop, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with ImpressionLog(tmp_path / "first.db") as log:
        for each in of_first(loop, 3):
            log.append(each)
    code, _, err = run_here(capsys, *words, f"log={tmp_path / 'first.db'}", f"generation={loop.second.id}")
    assert code == 2
    assert f"holds no impression that {loop.second.id} answered; it holds those of {loop.first.id}" in err
    code, _, err = run_here(capsys, *words, f"generations={tmp_path / 'nowhere'}")
    assert code == 2
    assert f"holds no impression that a generation of the store answered; it holds those of {loop.first.id}" in err


def test_a_folder_takes_no_settings(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["report", str(tmp_path), "generation=a"]) == 2
    assert "'generation=a' goes with `cascade report skew`" in capsys.readouterr().err


def test_a_feature_knows_its_share() -> None:
    feature: Feature = Feature("a", "pair", "number")
    assert FeatureSkew(feature.name, "pair", False, 8, 2, 0.0, None).share == 0.25
    assert FeatureSkew(feature.name, "pair", False, 0, 0, 0.0, None).share == 0.0


def test_a_log_without_one_whole_set_of_candidates_is_compared_in_all_else(loop: Loop) -> None:
    """The towers' product is compared where all candidates are logged: by default of one request in a hundred."""
    sparse = Impression.FromString(of_first(loop, 1)[0].SerializeToString())
    del sparse.eligible_item_key[:]
    found = {each.name: each.rows for each in measure([sparse], by_id(loop), loop.history).features}
    assert found.pop("tower_score") == 0
    assert all(found.values())
