"""A rebuild folds in every change once, publishes what passes its gates, and comes to the same end however it began."""

import json
import shutil
import subprocess
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from conftest import OPEN_GATES, Loop
from kill_cases import ROOT, require_struck

from candidate_gen.items import Items
from candidate_gen.towers import Towers
from index.generations import GenerationStore, StaleExpected
from index.leases import LeaseHeld, LeaseLost
from protos.catalog_pb2 import CatalogItem, DeleteItemsRequest, ItemPatch, PatchItemsRequest, UpsertItemsRequest
from serving.generation import Generation, GenerationMismatch
from serving.generations import Generations
from serving.log.catalog_log import FILE, CatalogLog, Change
from serving.log.impression_log import CorruptLog
from training import cli, publish
from training.gates import GateFailed
from training.publish import Built, IndexSettings
from training.rebuild import rebuild
from training.settings import RebuildSettings

NOW_MS = 1_800_000_000_000


@pytest.fixture
def store(loop: Loop, tmp_path: Path) -> GenerationStore:
    """The loop's, to be changed."""
    return GenerationStore(Path(shutil.copytree(loop.store.root, tmp_path / "generations")))


def settings(loop: Loop, store: GenerationStore, **changes: Any) -> RebuildSettings:
    told = RebuildSettings(
        index=IndexSettings(),
        gates=OPEN_GATES,
        generations=store.root,
        log=loop.log,
        generation="",
        output=store.root.parent / "report",
        activate=True,
    )
    return replace(told, **changes)


def rebuilt(loop: Loop, store: GenerationStore, **changes: Any) -> dict[str, Any]:
    return rebuild(settings(loop, store, **changes), holder="the test", now_ms=NOW_MS)


def tell(store: GenerationStore, *changes: Change) -> None:
    with closing(CatalogLog(store.root / FILE)) as log:
        for change in changes:
            log.append(change, time_ms=NOW_MS, after=log.head())


def upsert(*item_ids: str, title: str = "Something New") -> UpsertItemsRequest:
    return UpsertItemsRequest(items=[CatalogItem(item_id=each, title=f"{title} {each}") for each in item_ids])


def state(store: GenerationStore) -> tuple[list[str], str | None, int]:
    return store.ids(), store.current(), len(store.history())


def items_by_id(generation: Generation) -> dict[str, tuple[Any, ...]]:
    items = generation.items
    return {
        items.ids.ids[int(row)]: (
            items.titles[int(row)],
            items.searchable[int(row)],
            items.row_I[int(row)].tobytes(),
            int(items.published_ms_I[int(row)]),
            bool(items.available_I[int(row)]),
            *(np.asarray(column[int(row)]).tobytes() for column in items.attributes.values()),
        )
        for row in items.current()
    }


def test_a_rebuild_of_an_unchanged_catalogue_is_the_same_with_a_new_index(loop: Loop, store: GenerationStore) -> None:
    before = store.current()
    report = rebuilt(loop, store)
    made = report["generation"]
    assert store.current() == made != before
    assert store.before() == before
    old, new = store.manifest(before or ""), store.manifest(made)
    assert (new.parent, new.catalog_seq, new.data_window) == (before, 0, old.data_window)
    assert {**new.fingerprints, "items": ""} == {**old.fingerprints, "items": ""}
    generation = Generation.load(store, made)
    assert items_by_id(generation) == items_by_id(loop.generations[1])
    expected = generation.towers.encode_items(np.asarray(generation.items.row_I))
    assert np.asarray(generation.items.embedding_ID).tobytes() == expected.tobytes()
    assert new.metrics["drift.cosine"] == pytest.approx(1, abs=1e-5)
    assert new.metrics["drift.overlap"] > 0.99
    assert all(gate["passed"] for gate in report["gates"])
    assert {gate["name"] for gate in report["gates"]} == {
        "index.items",
        "index.poisoned",
        "index.recall_low",
        "index.found",
    }


def test_every_change_is_folded_in_once_and_as_servers_apply_it(loop: Loop, store: GenerationStore) -> None:
    first, second, third, *_ = loop.generations[1].items.ids.ids
    tell(
        store,
        upsert("new-1", "new-2", first),
        PatchItemsRequest(patches=[ItemPatch(item_id=second, available=False)]),
        DeleteItemsRequest(item_ids=[third, "new-2"]),
        upsert("new-3"),
        upsert("new-3", title="Once More"),
    )
    with closing(CatalogLog(store.root / FILE)) as log:
        snapshot = loop.generations[1].changed(log.since(0))
    report = rebuilt(loop, store)
    generation = Generation.load(store, report["generation"])
    assert generation.catalog_seq == report["catalog_seq"] == report["changes"] == 5
    assert items_by_id(generation) == items_by_id(snapshot)
    assert len(generation.items) == len(loop.generations[1].items) + 2 - 1
    known = set(items_by_id(generation))
    assert {"new-1", "new-3", first, second} <= known
    assert not known & {"new-2", third}
    (row,) = generation.items.ids.rows_of(["new-3"])
    vector_D = np.asarray(generation.items.embedding_ID[int(row)])
    assert row in generation.vectors.search(vector_D, 20).row_K
    with closing(CatalogLog(store.root / FILE)) as log:
        assert generation.changed(log.since(generation.catalog_seq)) is generation


def test_changes_after_a_rebuild_are_those_of_the_next(loop: Loop, store: GenerationStore) -> None:
    tell(store, upsert("new-1"))
    first = rebuilt(loop, store)
    tell(store, upsert("new-2"), DeleteItemsRequest(item_ids=["new-1"]))
    second = rebuilt(loop, store)
    assert (second["parent"], second["catalog_seq"], second["changes"]) == (first["generation"], 3, 2)
    known = items_by_id(Generation.load(store, second["generation"]))
    assert "new-2" in known
    assert "new-1" not in known
    assert [each["generation"] for each in second["history"]][-2:] == [first["generation"], second["generation"]]


def test_servers_take_up_what_was_rebuilt_with_the_changes_since(loop: Loop, store: GenerationStore) -> None:
    with closing(Generations(store)) as serving:
        serving.follow()
        tell(store, upsert("new-1"), DeleteItemsRequest(item_ids=["new-1"]), upsert("new-2"))
        made = rebuilt(loop, store)["generation"]
        tell(store, upsert("new-3"))
        active = serving.follow()
        assert active is not None
        assert (active.id, active.manifest.catalog_seq, active.catalog_seq) == (made, 3, 4)
        known = [item_id for item_id in items_by_id(active) if item_id.startswith("new")]
        assert sorted(known) == ["new-2", "new-3"]
        assert list(active.items.ids.ids).count("new-2") == 1


def test_a_log_that_lost_changes_is_not_rebuilt_from(loop: Loop, store: GenerationStore) -> None:
    tell(store, upsert("new-1"))
    made = rebuilt(loop, store)["generation"]
    for path in store.root.glob(f"{FILE}*"):
        path.unlink()
    left = state(store)
    with pytest.raises(CorruptLog, match=f"ends with change 0, generation {made} holds all up to 1"):
        rebuilt(loop, store)
    assert state(store) == left


def test_a_run_with_nothing_to_do_finds_what_the_last_one_made(loop: Loop, store: GenerationStore) -> None:
    tell(store, upsert("new-1"))
    first = rebuilt(loop, store)
    left = state(store)
    assert rebuilt(loop, store) == first
    assert state(store) == left
    assert [each.name for each in (store.root / ".rebuild").rglob("*") if each.is_file()] == ["published.json"]
    other = rebuilt(loop, store, index=IndexSettings(kind="ivf"))
    assert other["parent"] == first["generation"]
    assert other["index"]["kind"] == "ivf"


def test_it_can_be_published_without_being_put_in_force_and_activated_by_a_second_run(
    loop: Loop, store: GenerationStore
) -> None:
    before = store.current()
    made = rebuilt(loop, store, activate=False)["generation"]
    assert store.current() == before
    assert rebuilt(loop, store)["generation"] == made
    assert store.current() == made


def test_another_generation_than_the_current_one_can_be_rebuilt(loop: Loop, store: GenerationStore) -> None:
    report = rebuilt(loop, store, generation=loop.first.id)
    assert report["parent"] == loop.first.id
    assert store.current() == report["generation"]
    towers = store.manifest(report["generation"]).fingerprints["towers"]
    assert towers == store.manifest(loop.first.id).fingerprints["towers"]


def test_the_index_is_tuned_with_logged_queries_where_there_are_enough(loop: Loop, store: GenerationStore) -> None:
    logged = len(loop.everything.impressions)
    assert rebuilt(loop, store)["queries"] == logged > 100
    assert rebuilt(loop, store, log=None)["queries"] == 0


def half_missing(loop: Loop, store: GenerationStore) -> str:
    gone = list(loop.generations[1].items.ids.ids)[: len(loop.generations[1].items) // 2 + 1]
    tell(store, DeleteItemsRequest(item_ids=gone))
    return r"index\.items is \d+, must be >= \d+"


def test_a_catalogue_that_shrank_or_is_empty_is_not_published(loop: Loop, store: GenerationStore) -> None:
    left = state(store)
    message = half_missing(loop, store)
    with pytest.raises(GateFailed, match=message):
        rebuilt(loop, store, gates=replace(OPEN_GATES, shrink=0.2))
    tell(store, DeleteItemsRequest(item_ids=list(loop.generations[1].items.ids.ids)))
    with pytest.raises(GateFailed, match=r"index\.items is 0, must be >= 1"):
        rebuilt(loop, store)
    assert state(store) == left
    assert not list(store.root.glob(".staging-*"))
    assert not (store.root.parent / "report").exists()


def test_a_red_gate_costs_no_work_twice(loop: Loop, store: GenerationStore, monkeypatch: pytest.MonkeyPatch) -> None:
    half_missing(loop, store)
    with pytest.raises(GateFailed):
        rebuilt(loop, store, gates=replace(OPEN_GATES, shrink=0.2))
    monkeypatch.setattr("training.rebuild.build_index", None)
    monkeypatch.setattr(Towers, "encode_items", None)
    assert rebuilt(loop, store)["generation"] == store.current()


def poisoned(monkeypatch: pytest.MonkeyPatch) -> None:
    real = Towers.encode_items

    def encode(towers: Towers, row_I: np.ndarray, **named: Any) -> np.ndarray:
        vector_ID = real(towers, row_I, **named)
        vector_ID[::50] = np.nan
        return vector_ID

    monkeypatch.setattr(Towers, "encode_items", encode)


def test_poison_is_not_published(loop: Loop, store: GenerationStore, monkeypatch: pytest.MonkeyPatch) -> None:
    left = state(store)
    poisoned(monkeypatch)
    with pytest.raises(ValueError, match=r"item vectors are NaN, infinite, zero or huge .*; at most 0\.1% may be"):
        rebuilt(loop, store)
    assert state(store) == left


def test_an_index_of_other_vectors_or_other_towers_is_found_out_before_it_has_a_name(
    loop: Loop, store: GenerationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = state(store)
    real = publish.build_index

    def turned(items: Items, told: IndexSettings, **named: Any) -> Built:
        opposite = replace(items, embedding_ID=-np.asarray(items.embedding_ID))
        return real(opposite, replace(told, kind="ivf", lists=8, effort=1), **named)

    def strange(items: Items, told: IndexSettings, **named: Any) -> Built:
        return real(items, told, **{**named, "towers": "those of another training"})

    with monkeypatch.context() as patch:
        patch.setattr("training.rebuild.build_index", turned)
        with pytest.raises(GateFailed, match=r"index\.found is 0.*, must be >= 0\.99"):
            rebuilt(loop, store, gates=replace(OPEN_GATES, found=0.99))
    shutil.rmtree(store.root / ".rebuild")
    towers = loop.generations[1].towers.fingerprint
    with monkeypatch.context() as patch:
        patch.setattr("training.rebuild.build_index", strange)
        with pytest.raises(GenerationMismatch, match=f"those of another training.*{towers}"):
            rebuilt(loop, store)
    assert state(store) == left
    assert not list(store.root.glob(".staging-*"))


def test_a_recall_that_is_not_proved_is_not_published(loop: Loop, store: GenerationStore) -> None:
    left = state(store)
    rough = IndexSettings(kind="ivf", lists=32, effort=1)
    with pytest.raises(GateFailed, match=r"index\.recall_low is 0\.\d+, must be >= 0\.95"):
        rebuilt(loop, store, index=rough, gates=replace(OPEN_GATES, index_recall=0.95))
    assert state(store) == left


def test_who_comes_second_is_told_who_is_at_work(loop: Loop, store: GenerationStore) -> None:
    with (
        store.job("rebuild", holder="the other"),
        pytest.raises(LeaseHeld, match=r"is held by the other since .* UTC"),
    ):
        rebuilt(loop, store)


def test_who_was_taken_over_publishes_nothing(
    loop: Loop, store: GenerationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = state(store)
    real = publish.build_index

    def overtaken(*given: Any, **named: Any) -> Built:
        (store.root / ".job-rebuild").unlink()
        shutil.rmtree(store.root / ".rebuild")
        with store.job("rebuild", holder="the heir"):
            pass
        return real(*given, **named)

    monkeypatch.setattr("training.rebuild.build_index", overtaken)
    with pytest.raises(LeaseLost, match=r"the test lost .*the heir has it"):
        rebuilt(loop, store)
    assert state(store) == left


def test_what_was_put_in_force_meanwhile_stays(
    loop: Loop, store: GenerationStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = publish.build_index

    def meanwhile(*given: Any, **named: Any) -> Built:
        store.activate(loop.first.id, time_ms=NOW_MS, reason="by hand")
        return real(*given, **named)

    monkeypatch.setattr("training.rebuild.build_index", meanwhile)
    with pytest.raises(StaleExpected, match=f"expected {loop.second.id} to be current, found {loop.first.id}"):
        rebuilt(loop, store)
    assert store.current() == loop.first.id


def test_a_published_generation_that_was_damaged_since_is_made_again(loop: Loop, store: GenerationStore) -> None:
    before = store.current()
    first = rebuilt(loop, store, activate=False)["generation"]
    (store.folder(first) / "policy.json").write_text("{}")
    second = rebuilt(loop, store)["generation"]
    assert store.current() == second != first
    assert store.manifest(second).parent == before


@pytest.mark.parametrize(
    "index",
    [
        *(IndexSettings(kind=kind) for kind in ("ivf", "ivf_sq8", "ivf_pq", "hnsw")),
        IndexSettings(shards=3),
        IndexSettings(kind="ivf", shards=2),
    ],
    ids=lambda index: f"{index.kind}-{index.shards}",
)
def test_every_kind_of_index_can_be_rebuilt(loop: Loop, store: GenerationStore, index: IndexSettings) -> None:
    report = rebuilt(loop, store, index=index)
    assert report["metrics"]["index.found"] == 1.0
    assert len(Generation.load(store, report["generation"]).vectors) == report["items"]["after"]


def run_cli(capsys: pytest.CaptureFixture[str], store: GenerationStore, *words: str) -> tuple[int, str, str]:
    capsys.readouterr()
    code = cli.main(["rebuild", f"generations={store.root}", f"output={store.root.parent / 'report'}", *words])
    out, err = capsys.readouterr()
    return code, out, err


def test_the_command_prints_a_short_table_and_leaves_the_page(
    loop: Loop, store: GenerationStore, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = run_cli(capsys, store, f"log={loop.log}", "gates=open")
    assert (code, err) == (0, "")
    assert str(store.current()) in out
    assert len(out.splitlines()) < 20
    told = json.loads((store.root.parent / "report" / "rebuild.json").read_text())
    assert told["generation"] == store.current()
    assert "<svg" in (store.root.parent / "report" / "rebuild.html").read_text()


@pytest.mark.parametrize("words", [["gates=open", "index.kind=ivf", "index.lists=32", "index.effort=1"]])
def test_a_refusal_is_one_line_with_code_2(
    loop: Loop, store: GenerationStore, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    left = state(store)
    code, out, err = run_cli(capsys, store, f"log={loop.log}", *words, "gates.index_recall=0.99")
    assert (code, out) == (2, "")
    assert err.startswith("cascade: error: index.recall_low is 0.")
    assert err.endswith("must be >= 0.99\n")
    assert err.count("\n") == 1
    assert state(store) == left


_STRUCK = """
import shutil, sys
from pathlib import Path
import faiss, torch
torch.set_num_threads(1)
faiss.omp_set_num_threads(1)
from index.generations import GenerationStore
from kill_cases import struck_anywhere
from nightly_cases import files_of
from training.gates import GateSettings
from training.publish import IndexSettings
from training.rebuild import rebuild
from training.settings import RebuildSettings

source, place, log, points = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
OPEN = GateSettings(index_recall=0.0, ranker_auc=0.0, ranker_ece=1.0, found=0.0, shrink=1.0)
before = GenerationStore(source).ids()

def run(folder):
    rebuild(RebuildSettings(index=IndexSettings(kind="ivf"), gates=OPEN, generations=folder / "generations", log=log,
                            generation="", output=folder / "report", activate=True), holder="a", now_ms=1)

def outcome(folder):
    root = folder / "generations"
    store = GenerationStore(root)
    made = [store.verify(each) for each in store.ids()[len(before):]]
    assert [each.id for each in made] == [store.current()], (made, store.current())
    left = [each.name for each in (root / ".rebuild").rglob("*") if each.is_file()]
    assert left == ["published.json"], left
    assert (folder / "report" / "rebuild.html").exists()
    assert not list(root.glob(".staging-*"))
    return made[0].id, made[0].fingerprints, files_of(store, made[0].id)

def fresh(name):
    shutil.rmtree(place / name, ignore_errors=True)
    shutil.copytree(source, place / name / "generations")
    return place / name

print(*struck_anywhere(
    fresh, run, outcome, points=points,
    files=(
        "training/rebuild", "training/publish", "training/durable", "training/embeddings",
        "training/reports/rebuild_report",
        "training/gates", "index/generations", "index/on_disk", "index/leases", "serving/generation",
        "candidate_gen/items")))
"""


@pytest.mark.parametrize("points", [3, pytest.param(100, marks=pytest.mark.slow)])
def test_struck_anywhere_and_run_again_it_makes_the_same_generation(
    loop: Loop, store: GenerationStore, tmp_path: Path, points: int
) -> None:
    """kill -9 before random lines of what stages, writes, publishes and activates, and at random moments."""
    tell(store, upsert("new-1", "new-2"), DeleteItemsRequest(item_ids=["new-2"]))
    require_struck(_STRUCK, store.root, tmp_path / "runs", loop.log, points, points=points)


@pytest.mark.slow
def test_of_eight_rebuilds_at_once_one_publishes(loop: Loop, store: GenerationStore) -> None:
    command = [sys.executable, "-m", "training.cli", "rebuild", f"generations={store.root}", f"log={loop.log}"]
    command += ["gates=open", f"output={store.root.parent / 'report'}"]
    before = store.ids()
    started = [
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) for _ in range(8)
    ]
    ended = [(each.communicate()[1], each.returncode) for each in started]
    assert len(store.ids()) == len(before) + 1
    assert store.current() == store.ids()[-1]
    for err, code in ended:
        assert code == 0 or (code == 2 and "only one does this at a time" in err), err
