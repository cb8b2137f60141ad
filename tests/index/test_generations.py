"""What the store promises: ids that repeat, damage that is found, and a CURRENT that is always whole."""

import hashlib
import json
import math
import os
import random
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from dataclasses import FrozenInstanceError
from pathlib import Path
from typing import Any

import pytest

from index.generations import CorruptGeneration, GenerationStore, Manifest, StaleExpected, UnknownGeneration

FILES = {"schema.json": b"{}", "vectors.faiss": bytes(range(256)) * 8, "lexical/meta.json": b"[]", "empty": b""}


@pytest.fixture
def store(tmp_path: Path) -> GenerationStore:
    return GenerationStore(tmp_path / "generations")


def _publish(
    store: GenerationStore,
    files: Mapping[str, bytes] = FILES,
    *,
    seed: int = 0,
    parent: str | None = None,
    config: Mapping[str, Any] | None = None,
    metrics: Mapping[str, Any] | None = None,
    created_ms: int = 1,
    catalog_seq: int = 0,
    check: Callable[[Path, Manifest], object] | None = None,
) -> str:
    with store.stage() as folder:
        for name, contents in files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_bytes(contents)
        return store.publish(
            folder,
            fingerprints={"towers": f"tower-{seed}", "schema": "s"},
            parent=parent,
            config=config or {"seed": seed},
            data_window=(10, 20),
            metrics=metrics or {},
            created_ms=created_ms,
            catalog_seq=catalog_seq,
            check=check,
        )


def _published(store: GenerationStore, count: int) -> list[str]:
    return [_publish(store, seed=seed) for seed in range(count)]


def test_a_published_generation_holds_what_was_staged_and_is_not_active(store: GenerationStore) -> None:
    parent = _publish(store)
    generation = _publish(store, parent=parent, metrics={"recall": 0.5}, config={"a": {"b": [1]}}, created_ms=77)
    folder = store.folder(generation)
    assert {name: (folder / name).read_bytes() for name in FILES} == FILES
    manifest = store.verify(generation)
    assert (manifest.id, manifest.parent, manifest.created_ms) == (generation, parent, 77)
    assert manifest.data_window == (10, 20)
    assert manifest.fingerprints == {"towers": "tower-0", "schema": "s"}
    assert (manifest.config, manifest.metrics) == ({"a": {"b": [1]}}, {"recall": 0.5})
    assert {path: entry.bytes for path, entry in manifest.files.items()} == {n: len(c) for n, c in FILES.items()}
    assert manifest.bytes == sum(map(len, FILES.values()))
    assert store.current() is None
    with pytest.raises(FrozenInstanceError):
        manifest.id = "other"  # type: ignore[misc]


def test_the_id_depends_on_fingerprints_and_config_and_on_nothing_else(tmp_path: Path) -> None:
    one, two, three, four = (GenerationStore(tmp_path / name) for name in "abcd")
    first = _publish(one, {"segment-1": b"x"}, created_ms=1, metrics={"ms": 1.5})
    assert _publish(two, {"segment-2": b"yy"}, created_ms=2, metrics={"ms": 2.5}) == first
    assert _publish(three, seed=1).startswith("000001-")
    assert _publish(three, seed=1) != first
    assert _publish(four, config={"seed": 1}) != first
    again = _publish(one, parent=first)
    assert again == first.replace("000001", "000002")


def test_the_sequence_goes_on_from_the_highest(store: GenerationStore) -> None:
    store.root.mkdir()
    (store.root / "1234567-00000000").mkdir()
    (store.root / "000007-00000000").mkdir()
    assert _publish(store).startswith("1234568-")
    assert [each.partition("-")[0] for each in store.ids()] == ["000007", "1234567", "1234568"]


def test_reading_an_absent_store_finds_nothing_and_makes_nothing(store: GenerationStore) -> None:
    assert store.ids() == []
    assert store.current() is None
    assert store.before() is None
    assert store.history() == []
    assert not store.root.exists()


def test_a_failed_block_leaves_nothing(store: GenerationStore) -> None:
    def fail() -> None:
        with store.stage() as folder:
            (folder / "half").write_bytes(b"x")
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    with store.stage() as folder:
        (folder / "forgotten").write_bytes(b"x")
    assert [path.name for path in store.root.iterdir()] == [".lock"]


def test_the_next_stage_removes_what_a_dead_writer_left_and_spares_a_living_one(store: GenerationStore) -> None:
    with store.stage() as living:
        (living / "file").write_bytes(b"x")
        dead = store.root / ".staging-dead"
        (dead / "deep").mkdir(parents=True)
        with store.stage() as other:
            assert not dead.exists()
            assert (living / "file").exists()
            assert other != living


def test_what_cannot_be_trusted_is_not_published(store: GenerationStore, tmp_path: Path) -> None:
    facts: dict[str, Any] = {
        "fingerprints": {},
        "parent": None,
        "config": {},
        "data_window": (0, 1),
        "metrics": {},
        "created_ms": 0,
    }
    makers: list[tuple[str, Callable[[Path], object]]] = [
        ("link is not a plain file", lambda folder: (folder / "link").symlink_to(tmp_path)),
        ("to is not a plain file", lambda folder: (folder / "to").symlink_to("missing")),
        ("pipe is not a plain file", lambda folder: os.mkfifo(folder / "pipe")),
        ("model.pkl is a pickle", lambda folder: (folder / "model.pkl").touch()),
        ("M.PT is a pickle", lambda folder: (folder / "M.PT").touch()),
        ("nothing to publish", lambda folder: (folder / "only" / "folders").mkdir(parents=True)),
    ]
    for message, make in makers:
        with store.stage() as folder:
            make(folder)
            with pytest.raises(ValueError, match=message):
                store.publish(folder, **facts)
    for change, message in (
        ({"parent": "000009-00000000"}, "no generation '000009-00000000'"),
        ({"data_window": (2, 1)}, "data_window ends at 1, before it starts at 2"),
        ({"config": {"path": Path()}}, "fingerprints or config cannot be written as JSON"),
        ({"config": {"rate": math.nan}}, "fingerprints or config cannot be written as JSON"),
        ({"metrics": {"x": {1}}}, "metrics cannot be written as JSON"),
    ):
        with store.stage() as folder:
            (folder / "file").touch()
            with pytest.raises(ValueError, match=message):
                store.publish(folder, **(facts | change))
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with pytest.raises(ValueError, match="was not staged in"):
        store.publish(elsewhere, **facts)
    assert store.ids() == []


def test_a_check_sees_the_sealed_folder_before_it_has_a_name_and_may_refuse_it(store: GenerationStore) -> None:
    seen: list[Manifest] = []

    def check(folder: Path, manifest: Manifest) -> None:
        assert {name: (folder / name).read_bytes() for name in FILES} == FILES
        assert f'"id": "{manifest.id}"' in (folder / "manifest.json").read_text()
        assert store.ids() == []
        seen.append(manifest)

    def refuse(folder: Path, manifest: Manifest) -> None:
        raise ValueError("a canary died")

    with pytest.raises(ValueError, match="a canary died"):
        _publish(store, check=refuse, catalog_seq=7)
    assert store.ids() == []
    assert not list(store.root.glob(".staging-*"))
    generation = _publish(store, check=check, catalog_seq=7)
    assert store.verify(generation) == seen[0]
    assert seen[0].catalog_seq == 7
    assert store.manifest(_publish(store)).catalog_seq == 0


def test_what_was_published_during_a_check_keeps_its_number(store: GenerationStore) -> None:
    between: list[str] = []
    generation = _publish(store, check=lambda *_: between.append(_publish(store, seed=1)))
    assert between[0].startswith("000001-")
    assert generation.startswith("000002-")
    assert [store.verify(each).id for each in store.ids()] == [between[0], generation]


def test_a_manifest_reads_back_as_it_was_sealed_whatever_json_makes_of_the_values(store: GenerationStore) -> None:
    generation = _publish(
        store,
        config={"k": (1, 2), "by": {10: "a", 9: "b"}, "text": "\u00e9\ud800"},
        metrics={"auc": math.nan, "slices": [math.inf, {"x": -0.0}]},
    )
    manifest = store.verify(generation)
    assert manifest.config == {"k": [1, 2], "by": {"10": "a", "9": "b"}, "text": "\u00e9\ud800"}
    assert manifest.metrics == {"auc": None, "slices": [None, {"x": -0.0}]}


def test_every_flipped_byte_is_found(store: GenerationStore) -> None:
    """All bytes of the manifest, and a sample of the others, each with a random other value."""
    generation = _publish(store, metrics={"auc": 0.75, "slices": {"new": 1e-9}})
    chance = random.Random(0)
    for path in sorted(store.folder(generation).rglob("*")):
        if not path.is_file() or not path.stat().st_size:
            continue
        contents = path.read_bytes()
        everywhere = path.name == "manifest.json" or len(contents) < 300
        for at in range(len(contents)) if everywhere else chance.sample(range(len(contents)), 300):
            flipped = bytearray(contents)
            flipped[at] ^= chance.randrange(1, 256)
            path.write_bytes(flipped)
            with pytest.raises(CorruptGeneration, match=path.name) as raised:
                store.verify(generation)
            assert "\n" not in str(raised.value)
        path.write_bytes(contents)
        store.verify(generation)


def test_damage_is_named_with_what_was_expected_and_found(store: GenerationStore) -> None:
    def damaged(damage: Callable[[Path], object]) -> str:
        generation = _publish(store)
        damage(store.folder(generation))
        with pytest.raises(CorruptGeneration) as raised:
            store.verify(generation)
        message = str(raised.value)
        assert "\n" not in message
        return message

    def swapped(folder: Path) -> None:
        (folder / "vectors.faiss").unlink()
        (folder / "vectors.faiss").symlink_to("/dev/zero")

    assert "vectors.faiss is missing, expected 2048 bytes" in damaged(lambda each: (each / "vectors.faiss").unlink())
    assert "lexical/new is extra" in damaged(lambda each: (each / "lexical/new").touch())
    assert "empty expected 0 bytes, found 3" in damaged(lambda each: (each / "empty").write_bytes(b"abc"))
    assert "schema.json expected sha256 44136fa3" in damaged(lambda each: (each / "schema.json").write_bytes(b"[]"))
    assert "vectors.faiss is not a plain file" in damaged(swapped)
    assert "manifest.json is not a manifest" in damaged(lambda each: (each / "manifest.json").unlink())
    assert "manifest.json is not a manifest" in damaged(lambda each: (each / "manifest.json").write_text("[]"))


def test_a_generation_under_another_name_is_found_out(store: GenerationStore) -> None:
    generation = _publish(store)
    store.folder(generation).rename(store.root / "000005-00000000")
    with pytest.raises(CorruptGeneration, match=f"expected id 000005-00000000, found {generation}"):
        store.verify("000005-00000000")


@pytest.mark.parametrize("name", ["..", "../x", "/etc", "", ".lock", "000001-0000000g", "000009-00000000", "a\x00b"])
def test_an_id_that_is_none_is_refused_everywhere(store: GenerationStore, name: str) -> None:
    _publish(store)
    (store.root.parent / "x").mkdir()
    for ask in (store.folder, store.manifest, store.verify, lambda each: store.activate(each, time_ms=1)):
        with pytest.raises(UnknownGeneration, match=r"no generation .* which holds 1$"):
            ask(name)


def test_nothing_outside_the_store_is_read_whatever_a_generation_says(store: GenerationStore, tmp_path: Path) -> None:
    (name,) = _published(store, 1)
    folder = store.folder(name)
    (tmp_path / "secret").write_text("x")
    outside = tmp_path / "outside"
    folder.rename(outside)
    folder.symlink_to(outside)
    with pytest.raises(UnknownGeneration):
        store.verify(name)
    assert store.ids() == []
    folder.unlink()
    outside.rename(folder)
    sealed = json.loads((folder / "manifest.json").read_text())
    for path in ("../secret", str(tmp_path / "secret")):
        fields = {each: value for each, value in sealed.items() if each != "sha256"}
        fields["files"] = sealed["files"] | {path: {"sha256": hashlib.sha256(b"x").hexdigest(), "bytes": 1}}
        seal = hashlib.sha256(json.dumps(fields, sort_keys=True, separators=(",", ":")).encode()).hexdigest()
        (folder / "manifest.json").write_text(json.dumps(fields | {"sha256": seal}, sort_keys=True, indent=1) + "\n")
        with pytest.raises(CorruptGeneration, match=r"secret is missing, expected 1 bytes"):
            store.verify(name)


def test_a_pickle_or_a_link_put_into_a_published_generation_is_refused(store: GenerationStore, tmp_path: Path) -> None:
    (name,) = _published(store, 1)
    for made, message in (("model.pkl", "a pickle"), ("weights.PT", "a pickle"), ("x.joblib", "a pickle")):
        (store.folder(name) / made).write_bytes(b"\x80\x04N.")
        with pytest.raises(CorruptGeneration, match=message):
            store.verify(name)
        (store.folder(name) / made).unlink()
    (store.folder(name) / "link").symlink_to(tmp_path)
    with pytest.raises(CorruptGeneration, match="not a plain file"):
        store.verify(name)


def test_activation_compares_before_it_sets(store: GenerationStore) -> None:
    a, b, c = _published(store, 3)
    assert store.activate(a, time_ms=1, expected=None) is None
    assert store.activate(b, time_ms=2, expected=a) == a
    with pytest.raises(StaleExpected, match=f"^expected {a} to be current, found {b}$"):
        store.activate(c, time_ms=3, expected=a)
    with pytest.raises(StaleExpected, match=f"expected None to be current, found {b}"):
        store.activate(c, time_ms=3, expected=None)
    assert store.current() == b
    assert store.activate(c, time_ms=4) == b
    assert (store.current(), store.before()) == (c, b)


def test_of_many_at_once_each_publishes_its_own_and_one_activates(store: GenerationStore) -> None:
    won: list[str] = []
    lost: list[StaleExpected] = []

    def work(seed: int) -> None:
        generation = _publish(store, seed=seed)
        try:
            store.activate(generation, time_ms=seed, expected=None)
            won.append(generation)
        except StaleExpected as error:
            lost.append(error)

    workers = [threading.Thread(target=work, args=(seed,)) for seed in range(8)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [int(each.partition("-")[0]) for each in store.ids()] == list(range(1, 9))
    assert (len(won), len(lost)) == (1, 7)
    assert store.current() == won[0]


def test_current_does_not_grow_with_what_was_pruned(store: GenerationStore) -> None:
    for seed in range(9):
        store.activate(_publish(store, seed=seed), time_ms=seed)
        store.prune(1)
    assert len((store.root / "CURRENT").read_text().splitlines()) <= 3
    assert len(store.ids()) == 2


def test_rollback_goes_back_one_each_time_and_then_says_so(store: GenerationStore) -> None:
    a, b, c = _published(store, 3)
    with pytest.raises(UnknownGeneration, match="no generation was in force before None"):
        store.rollback(time_ms=0)
    for generation in (a, b, c, b, c):
        store.activate(generation, time_ms=1)
    assert store.rollback(time_ms=2) == b
    assert store.current() == b
    assert store.rollback(time_ms=3) == a
    with pytest.raises(UnknownGeneration, match=f"no generation was in force before {a}"):
        store.rollback(time_ms=4)
    store.activate(c, time_ms=5)
    assert store.before() == a


def test_nothing_damaged_is_put_in_force(store: GenerationStore) -> None:
    a, b = _published(store, 2)
    store.activate(b, time_ms=1)
    store.activate(a, time_ms=1)
    (store.folder(b) / "schema.json").write_bytes(b"[]")
    with pytest.raises(CorruptGeneration):
        store.activate(b, time_ms=2)
    with pytest.raises(CorruptGeneration):
        store.rollback(time_ms=2)
    assert store.current() == a


def test_a_current_that_names_nothing_is_reported_and_can_be_mended(store: GenerationStore) -> None:
    (generation,) = _published(store, 1)
    for contents in (b"000009-00000000\n", b"../..\n", b"\xff\x00\n"):
        (store.root / "CURRENT").write_bytes(contents)
        with pytest.raises(CorruptGeneration, match=r"CURRENT names .*, which is not in the store"):
            store.current()
    store.activate(generation, time_ms=1)
    assert store.current() == generation


def test_the_audit_log_tells_who_followed_whom_and_survives_a_torn_line(store: GenerationStore) -> None:
    a, b = _published(store, 2)
    store.activate(a, time_ms=1, reason="first")
    store.activate(a, time_ms=2, reason="nothing changes")
    with (store.root / "history.jsonl").open("a") as file:
        file.write('{"id": "0000')
    store.activate(b, time_ms=3, reason="better", by="a job")
    store.rollback(time_ms=4, by="an operator")
    assert [each.by for each in store.history()] == ["", "a job", "an operator"]
    assert [(each.id, each.previous, each.time_ms, each.reason) for each in store.history()] == [
        (a, None, 1, "first"),
        (b, a, 3, "better"),
        (a, b, 4, "rollback"),
    ]


def test_pruning_keeps_what_is_named(store: GenerationStore) -> None:
    ids = _published(store, 4)
    assert store.prune(1, named={ids[1], "000009-gone"}) == [ids[0], ids[2]]
    assert store.ids() == [ids[1], ids[3]]


def test_pruning_keeps_the_newest_the_current_and_the_one_before(store: GenerationStore) -> None:
    ids = _published(store, 7)
    store.activate(ids[0], time_ms=1)
    store.activate(ids[3], time_ms=2)
    store.activate(ids[1], time_ms=3)
    assert store.prune(2) == [ids[0], ids[2], ids[4]]
    assert store.ids() == [ids[1], ids[3], ids[5], ids[6]]
    assert store.prune(2) == []
    assert store.rollback(time_ms=4) == ids[3]
    with pytest.raises(UnknownGeneration):
        store.rollback(time_ms=5)
    with pytest.raises(ValueError, match="keep is 0"):
        store.prune(0)
    assert store.prune(1) == [ids[1], ids[5]]
    assert _publish(store).startswith("000008-")


def test_a_difference_names_what_changed(store: GenerationStore) -> None:
    a = _publish(store, config={"model": {"width": 1, "depth": 2}}, metrics={"auc": 0.5})
    files = {"schema.json": b"[]", "vectors.faiss": FILES["vectors.faiss"], "new": b""}
    b = _publish(store, files, seed=1, config={"model": {"width": 3, "depth": 2}}, metrics={"auc": 0.5, "ece": 0.1})
    difference = store.diff(a, b)
    assert set(difference.files) == {"schema.json", "lexical/meta.json", "empty", "new"}
    assert difference.files["new"][0] is None
    assert difference.fingerprints == {"towers": ("tower-0", "tower-1")}
    assert difference.config == {"model.width": (1, 3)}
    assert difference.metrics == {"ece": (None, 0.1)}
    same = store.diff(a, a)
    assert not any((same.files, same.fingerprints, same.config, same.metrics))


@pytest.mark.parametrize("call", ["fsync", "rename", "replace"])
def test_a_failing_disk_leaves_the_old_or_the_new_and_nothing_between(
    store: GenerationStore, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = _publish(store)
    store.activate(old, time_ms=1)
    real = getattr(os, call)
    for failing in range(20):
        calls = 0

        def fail(*args: Any, failing: int = failing) -> object:
            nonlocal calls
            calls += 1
            if calls > failing:
                raise OSError(28, "No space left on device")
            return real(*args)

        with monkeypatch.context() as patch:
            patch.setattr(os, call, fail)
            try:
                store.activate(_publish(store, seed=failing + 1), time_ms=2)
                finished = True
            except OSError:
                finished = False
        current = store.current()
        assert current is not None
        store.verify(current)
        for generation in store.ids():
            store.verify(generation)
        assert not list(store.root.glob(".staging-*"))
        if finished:
            assert current != old
            break
        if current != old:
            assert store.rollback(time_ms=3) == old
    else:
        pytest.fail("never ran to the end")


_KILLED = """
import os, sys
from pathlib import Path
from index.generations import GenerationStore

store = GenerationStore(Path(sys.argv[1]))
start, stride = int(sys.argv[2]), int(sys.argv[3])

def publish(seed):
    with store.stage() as folder:
        (folder / "weights").write_bytes(bytes(1000))
        return store.publish(folder, fingerprints={"seed": str(seed)}, parent=None, config={}, data_window=(0, 1),
                             metrics={}, created_ms=1)

store.activate(publish(0), time_ms=1)
for killed, lines in enumerate(range(start, 10_000, stride)):
    store.prune(1)
    old = store.current()
    child = os.fork()
    if not child:
        def die(frame, event, argument, left=[lines]):
            if event == "line" and frame.f_code.co_filename.endswith(("generations.py", "on_disk.py")):
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), 9)
            return die
        sys.settrace(die)
        store.activate(publish(1), time_ms=2)
        store.prune(1)
        sys.settrace(None)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    current = store.current()
    for generation in store.ids():
        store.verify(generation)
    with store.stage():
        assert len(list(store.root.glob(".staging-*"))) == 1
    assert current == old or store.history()[-1].id == current, (lines, old, current)
    if status == 0:
        print(killed)
        break
"""


@pytest.mark.parametrize(("start", "stride"), [(5, 17), pytest.param(0, 1, marks=pytest.mark.slow)])
def test_killed_at_any_line_it_leaves_whole_generations_and_a_valid_current(
    tmp_path: Path, start: int, stride: int
) -> None:
    """kill -9 before one line of the module after another, while it stages, publishes, activates and prunes."""
    command = [sys.executable, "-c", _KILLED, str(tmp_path / "generations"), str(start), str(stride)]
    root = Path(__file__).parents[2]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=root)
    assert ran.returncode == 0, ran.stderr
    assert int(ran.stdout) > 200 // stride
