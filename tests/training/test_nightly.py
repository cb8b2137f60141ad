"""A night goes from the log to what is in force, once, or stops at the first red gate and leaves all as it was."""

import json
import pickle
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from conftest import Loop
from kill_cases import AT_HOME, FULL
from nightly_cases import files_of, gated, night, told

from index.generations import GenerationStore
from index.leases import LeaseHeld, LeaseLost
from protos.admin_pb2 import SetTrafficRequest
from serving.generation import Generation
from serving.log.catalog_log import Entry
from training import cli, publish
from training.datasets.judgments import write_judgments
from training.gates import SearchGateSettings
from training.learning.judged import JudgedSettings
from training.nightly.inputs import Night, begun
from training.nightly.line import STAGES, NightStopped, planned
from training.nightly.settings import NightlySettings
from training.publish import Built

BOOSTS = {"title": 5, "category": 2}


@pytest.fixture(scope="module")
def undisturbed(loop: Loop, tmp_path_factory: pytest.TempPathFactory) -> NightlySettings:
    """Settings of a night that went through."""
    folder = tmp_path_factory.mktemp("night")
    generation = loop.generations[0]
    rows = range(0, len(generation.items), 5)
    judged = pl.DataFrame(
        {
            "query": [generation.items.titles[row] for row in rows],
            "item": [generation.items.ids.ids[row] for row in rows],
            "grade": [float(row % 2) for row in rows],
            "source": ["human" for _ in rows],
        }
    )
    write_judgments(judged, folder / "judged.parquet")
    settings = told(loop, folder)
    boosted = replace(settings.cycle, retrieval=replace(settings.cycle.retrieval, boosts=BOOSTS))
    search = SearchGateSettings(str(folder / "judged.parquet"), least=-1.0)
    settings = gated(replace(settings, cycle=boosted), search=search)
    plan = night(replace(settings, dry_run=True))
    assert [plan[name] for name in STAGES] == ["to do"] * len(STAGES)
    assert not settings.work.exists()
    night(settings)
    return settings


@pytest.fixture
def after(undisturbed: NightlySettings, tmp_path: Path) -> NightlySettings:
    """The same on a copy of all that the night left."""
    shutil.copytree(undisturbed.generations, tmp_path / "generations")
    return replace(undisturbed, generations=tmp_path / "generations", output=tmp_path / "output")


def report_of(settings: NightlySettings) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((settings.output / "nightly.json").read_text())
    return report


def states(settings: NightlySettings) -> dict[str, str]:
    return {each["stage"]: each["state"] for each in report_of(settings)["stages"]}


def test_a_night_goes_through_every_stage_and_puts_its_generation_in_force(
    loop: Loop, undisturbed: NightlySettings
) -> None:
    store, report = GenerationStore(undisturbed.generations), report_of(undisturbed)
    made = store.current()
    assert made is not None
    assert store.ids() == [*loop.store.ids(), made]
    assert store.manifest(made).parent == loop.second.id
    assert (report["verdict"], report["generation"], report["current"]) == ("in force", made, made)
    assert set(states(undisturbed).values()) == {"done"}
    assert all(gate["passed"] for gate in report["gates"])
    assert {gate["name"] for gate in report["gates"]} >= {
        *("contract.requests", "contract.orphans", "ranker.click.auc", "ranker.click.ece", "index.recall_low"),
        *("index.found", "size.ratio", "replay.mismatches", "offline.change_low", "latency.ratio"),
        *("search.change_low", "shadow.faults", "canary.evidence"),
    }
    page = (undisturbed.output / "nightly.html").read_text()
    assert "replay.mismatches" in page
    assert "http" not in page.replace("http-equiv", "").replace("http://www.w3.org", "")
    assert store.history()[-1].reason == "cascade nightly"
    assert {name: Generation.load(store, made).lexical.boosts[name] for name in BOOSTS} == BOOSTS


def test_a_night_that_is_done_does_nothing_twice(after: NightlySettings) -> None:
    store = GenerationStore(after.generations)
    before = store.ids(), store.current(), len(store.history())
    plan = night(replace(after, dry_run=True))
    assert [plan[name] for name in STAGES] == ["cached"] * len(STAGES)
    begun(after, store).night.write(after.work)  # as one that was killed as it began to look
    again = night(after)
    assert (store.ids(), store.current(), len(store.history())) == before
    assert (again["stages done"], again["generation"]) == (0, store.current())


def test_from_a_stage_on_all_is_done_again_and_gives_the_same(after: NightlySettings) -> None:
    store = GenerationStore(after.generations)
    before = store.ids()
    plan = night(replace(after, dry_run=True, from_stage="index"))
    assert (plan["embed"], plan["index"], plan["publish"]) == ("cached", "to do", "to do")
    night(replace(after, from_stage="index"))
    assert (states(after)["embed"], states(after)["index"], states(after)["publish"]) == ("cached", "done", "done")
    assert store.ids() == before


def test_a_setting_makes_anew_what_depends_on_it_and_nothing_else(after: NightlySettings) -> None:
    policy = replace(after.cycle.policy, temperature=0.3)
    plan = night(replace(after, dry_run=True, cycle=replace(after.cycle, policy=policy)))
    assert [name for name in STAGES if plan[name] == "to do"] == ["publish", "shadow", "canary"]
    plan = night(replace(after, dry_run=True, seed=1))
    assert [name for name in STAGES if plan[name] == "cached"] == ["validate", "examples", "skew"]
    retrieval = replace(after.cycle.retrieval, boosts={"title": 7})
    plan = night(replace(after, dry_run=True, cycle=replace(after.cycle, retrieval=retrieval)))
    assert [name for name in STAGES if plan[name] == "cached"] == ["validate", "skew"]


def test_a_judgement_list_that_changes_in_its_place_makes_anew_what_is_learned_from_it(
    after: NightlySettings, tmp_path: Path
) -> None:
    path = tmp_path / "learned.parquet"
    ranker = replace(after.cycle.ranker, judged=JudgedSettings(str(path)))
    settings = replace(after, cycle=replace(after.cycle, ranker=ranker))
    inputs = begun(settings, GenerationStore(settings.generations))
    keys = []
    for content in (b"a list", b"another one"):
        path.write_bytes(content)
        keys.append({name: stage.folder for name, stage in planned(settings, inputs).items()})
    differing = [name for name in STAGES if keys[0][name] != keys[1][name]]
    assert differing == ["ranker", "publish", "shadow", "canary"]


def test_a_published_generation_that_was_damaged_since_is_made_again(after: NightlySettings) -> None:
    store = GenerationStore(after.generations)
    made = store.current()
    assert made is not None
    (store.folder(made) / "policy.json").write_text("{}")
    assert night(replace(after, dry_run=True))["publish"] == "to do"


def test_a_red_gate_stops_the_night_with_a_page_and_leaves_what_is_in_force(loop: Loop, tmp_path: Path) -> None:
    settings = told(loop, tmp_path)
    strict = replace(settings, contract=replace(settings.contract, requests=10**9))
    for _ in range(2):
        with pytest.raises(NightStopped, match=r"^validate: contract.requests is .* must be >= 1e\+09; see .*html$"):
            night(strict)
        store = GenerationStore(settings.generations)
        assert (store.ids(), store.current()) == (loop.store.ids(), loop.second.id)
    assert states(strict)["validate"] == "red"
    assert set(list(states(strict).values())[1:]) == {"not reached"}
    assert "&#10007; red" in (settings.output / "nightly.html").read_text()


def test_a_gate_of_the_sealed_generation_that_is_red_publishes_nothing_and_keeps_what_was_learned(
    after: NightlySettings,
) -> None:
    store = GenerationStore(after.generations)
    before = store.ids(), store.current()
    told_of = replace(after.cycle.gates.incumbent, size=1e-6)
    with pytest.raises(NightStopped, match=r"^publish: size.ratio is .* must be <= 1e-06"):
        night(gated(after, incumbent=told_of))
    assert (store.ids(), store.current()) == before
    found = states(after)
    assert (found["ranker"], found["index"], found["publish"], found["shadow"]) == (
        *("cached", "cached"),
        *("red", "not reached"),
    )


def test_a_night_that_was_killed_goes_on_with_what_it_began_with_whatever_is_logged_meanwhile(
    loop: Loop, tmp_path: Path
) -> None:
    settings = told(loop, tmp_path)
    store = GenerationStore(settings.generations)
    whole = begun(settings, store)
    assert whole.served is not None
    early = Night(loop.served_end_ms, 0, loop.second.id)
    early.write(settings.work)
    resumed = begun(settings, store)
    assert resumed.night.until_ms == loop.served_end_ms
    assert resumed.served is not None
    assert len(resumed.served.impressions) == len(loop.served.impressions) < len(whole.served.impressions)
    replace(resumed.night, over=True).write(settings.work)
    assert begun(settings, store).night.digest == whole.night.digest, "what is over is not gone on with"
    early.write(settings.work)
    store.activate(loop.first.id, time_ms=1)
    assert begun(settings, store).night.incumbent == loop.first.id, "nor what another one overtook"


def test_traffic_that_was_set_for_the_trial_begins_no_new_night(
    undisturbed: NightlySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = GenerationStore(undisturbed.generations)
    before = begun(undisturbed, store).night
    monkeypatch.setattr("training.jobs.changes", lambda _: [Entry(1, 1, SetTrafficRequest())])
    assert begun(undisturbed, store).night == before


def test_who_comes_second_is_told_who_is_at_work(after: NightlySettings) -> None:
    store = GenerationStore(after.generations)
    with store.job("nightly", holder="the other"), pytest.raises(LeaseHeld, match="is held by the other since"):
        night(after)


def test_who_was_taken_over_publishes_nothing(
    loop: Loop, after: NightlySettings, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = GenerationStore(after.generations)
    store.activate(loop.second.id, time_ms=1)
    left = store.ids(), store.current()
    real = publish.build_index

    def overtaken(*given: Any, **named: Any) -> Built:
        (store.root / ".job-nightly").unlink()
        with store.job("nightly", holder="the heir"):
            pass
        return real(*given, **named)

    monkeypatch.setattr("training.nightly.line.build_index", overtaken)
    with pytest.raises(LeaseLost, match=r"the test lost .*the heir has it"):
        night(replace(after, from_stage="index"))
    assert (store.ids(), store.current()) == left


def test_the_command_ends_with_code_3_and_one_line_where_a_gate_is_red(
    loop: Loop, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(loop.store.root, tmp_path / "generations")
    shutil.copytree(loop.log, tmp_path / "log")
    monkeypatch.setattr("training.jobs.read", lambda *_, **__: loop.dataset)
    words = [
        "nightly",
        f"log={tmp_path / 'log'}",
        f"generations={tmp_path / 'generations'}",
        f"output={tmp_path / 'output'}",
    ]
    assert cli.main([*words, "dry_run=true"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in STAGES)
    assert cli.main([*words, "contract.requests=1000000"]) == 3
    err = capsys.readouterr().err
    assert err.startswith("cascade: error: validate: contract.requests is ")
    assert err.count("\n") == 1
    assert cli.main([*words, "from_stage=nonsense"]) == 2
    assert "it must be one of validate, examples" in capsys.readouterr().err


_DISTURBED = """
import os, pickle, resource, signal, sys
from pathlib import Path

from index.generations import GenerationStore
from nightly_cases import night
from training.nightly import line

def killed(real):
    def ask(*given, **named):
        real(*given, **named)
        os.kill(os.getpid(), 9)
    return ask

def full(real):  # no file can be larger than 2 kB any more
    def ask(*given):
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000, 2_000))
        return real(*given)
    return ask

match sys.argv[2]:
    case "training":
        line._ranker = killed(line._ranker)
    case "publishing":
        GenerationStore.publish = killed(GenerationStore.publish)
    case "activating":
        GenerationStore.activate = killed(GenerationStore.activate)
    case "out of disk":
        line._embed = full(line._embed)
night(pickle.loads((Path(sys.argv[1]) / "settings").read_bytes()))
"""


def test_killed_or_out_of_disk_and_run_again_it_makes_the_same_generation(
    loop: Loop, undisturbed: NightlySettings, tmp_path: Path
) -> None:
    """kill -9 in training, after the rename that publishes, after the one that activates; and a disk that is full."""
    whole = GenerationStore(undisturbed.generations)
    expected = whole.current()
    assert expected is not None
    disturbed = {}
    for how in ("training", "publishing", "activating", "out of disk"):
        place = tmp_path / how
        settings = replace(undisturbed, generations=place / "generations", output=place / "output", log=place / "log")
        shutil.copytree(loop.store.root, settings.generations)
        shutil.copytree(loop.log, place / "log")
        (place / "settings").write_bytes(pickle.dumps(settings))
        words = [sys.executable, "-c", _DISTURBED, str(place), how]
        disturbed[how] = settings, subprocess.Popen(words, stderr=subprocess.PIPE, text=True, env=AT_HOME)
    for how, (settings, process) in disturbed.items():
        err = process.communicate()[1]
        assert process.returncode == (1 if how == "out of disk" else -9), err
        assert how != "out of disk" or FULL.search(err), err
        store = GenerationStore(settings.generations)
        assert store.current() == (expected if how == "activating" else loop.second.id)
        for generation in store.ids():
            store.verify(generation)
        night(settings)
        assert store.ids() == [*loop.store.ids(), expected], how
        assert store.current() == expected
        assert files_of(store, expected) == files_of(whole, expected)
        assert not list(store.root.glob(".staging-*"))
        assert len(store.history()) == len(whole.history())
