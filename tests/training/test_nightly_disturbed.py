"""Nights that are struck down anywhere, that meet seven others, or that were stopped and taken over."""

import json
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from conftest import Loop
from kill_cases import AT_HOME, ROOT, require_struck

from index.generations import GenerationStore

_STRUCK = """
import pickle, shutil, sys
from pathlib import Path

from index.generations import GenerationStore
from kill_cases import struck_anywhere
from nightly_cases import files_of, night, settings_of

source, place, log, points, disk = *map(Path, sys.argv[1:4]), int(sys.argv[4]), sys.argv[5] == "full"
dataset = pickle.loads((place / "dataset").read_bytes())
before = GenerationStore(source).ids()

def outcome(folder):
    root = folder / "generations"
    store = GenerationStore(root)
    made = [store.verify(each) for each in store.ids()[len(before):]]
    assert [each.id for each in made] == [store.current()], (made, store.current())
    assert not list(root.glob(".staging-*"))
    assert (folder / "output" / "nightly.html").exists()
    return made[0].id, made[0].fingerprints, files_of(store, made[0].id)

def fresh(name):
    folder = place / name
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(source, folder / "generations")
    shutil.copytree(log, folder / "log")
    return folder

print(*struck_anywhere(
    fresh, lambda folder: night(settings_of(dataset, folder / "log", folder)), outcome, points=points, disk=disk,
    files=(
        *(f"training/nightly/{name}" for name in ("line", "stages", "inputs", "prepared_files", "report")),
        "training/publish", "training/durable", "training/embeddings", "training/log/compaction",
        "index/generations", "index/on_disk", "index/leases", "serving/generation", "candidate_gen/items",
        "training/learning/lightning_run")))
"""


@pytest.mark.slow
@pytest.mark.parametrize(("points", "how"), [(100, "killed"), (30, "full")])
def test_struck_down_anywhere_and_run_again_it_makes_the_same_generation(
    loop: Loop, tmp_path: Path, points: int, how: str
) -> None:
    (tmp_path / "dataset").write_bytes(pickle.dumps(loop.dataset))
    require_struck(_STRUCK, loop.store.root, tmp_path, loop.log, points, how, points=points)


_RIVALS = """
import json, os, pickle, signal, sys
from pathlib import Path

from index.generations import GenerationStore
from nightly_cases import settings_of
from training import cli
from training.nightly import line

folder, how = Path(sys.argv[1]), sys.argv[2]
settings = settings_of(pickle.loads((folder / "dataset").read_bytes()), folder / "log", folder)
store = GenerationStore(settings.generations)
nightly = line.nightly
line.nightly = lambda _, **named: nightly(settings, **named)  # the command, on a small world

def began(name):
    child = os.fork()
    if child:
        return child
    for stream in (1, 2):
        os.dup2(os.open(folder / f"{name}.{stream}", os.O_WRONLY | os.O_CREAT), stream)
    os._exit(cli.main(["nightly"]))

def ended(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def state():
    return store.ids(), store.current(), len(store.history())

def after(real, do):
    def first(*given, **named):
        do()
        return real(*given, **named)
    return first

if how == "at once":
    told, tell = os.pipe()

    def wait():
        os.close(tell)
        os.read(told, 1)

    line.begun = after(line.begun, wait)  # who has the lease waits until the others are gone
    for rival in range(8):
        began(f"night{rival}")
    codes = [ended(-1) for _ in range(7)]
    before = state()
    os.write(tell, b".")
    codes.append(ended(-1))
else:
    home, name = {
        "training": (line, "_towers"),
        "publishing": (GenerationStore, "publish"),
        "activating": (GenerationStore, "activate"),
    }[how]
    real = getattr(home, name)
    setattr(home, name, after(real, lambda: os.kill(os.getpid(), signal.SIGSTOP)))
    zombie = began("zombie")
    _, status = os.waitpid(zombie, os.WUNTRACED)
    assert os.WIFSTOPPED(status), status
    setattr(home, name, real)
    os.utime(store.root / ".job-nightly", (1, 1))  # as if a minute had passed
    codes = [ended(began("heir"))]
    before = state()
    os.kill(zombie, signal.SIGCONT)
    codes.append(ended(zombie))
print(json.dumps({"codes": codes, "before": before, "after": state()}))
"""


def met(loop: Loop, folder: Path, how: str) -> dict[str, Any]:
    """Exit codes of nights in one store, in the order in which they ended; what the store held before the last did."""
    (folder / "dataset").write_bytes(pickle.dumps(loop.dataset))
    shutil.copytree(loop.store.root, folder / "generations")
    shutil.copytree(loop.log, folder / "log")
    ran = subprocess.run(
        [sys.executable, "-c", _RIVALS, str(folder), how],
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
        env=AT_HOME,
        timeout=300,
    )
    assert ran.returncode == 0, ran.stderr
    found: dict[str, Any] = json.loads(ran.stdout)
    return found


def test_of_eight_nights_at_once_one_publishes_and_seven_are_told_who_is_at_work(loop: Loop, tmp_path: Path) -> None:
    found = met(loop, tmp_path, "at once")
    assert found["codes"] == [2] * 7 + [0]
    assert found["before"][:2] == [loop.store.ids(), loop.second.id]
    made, current, _ = found["after"]
    assert made == [*loop.store.ids(), current]
    GenerationStore(tmp_path / "generations").verify(current)
    said = [path.read_text() for path in sorted(tmp_path.glob("night*.2"))]
    refused = r"cascade: error: .*\.job-nightly is held by .+ since .+ UTC .*; only one does this at a time\n"
    assert sum(re.fullmatch(refused, each) is not None for each in said) == 7, said


@pytest.mark.slow
@pytest.mark.parametrize("how", ["training", "publishing", "activating"])
def test_a_night_that_was_stopped_and_taken_over_changes_nothing_when_it_wakes_up(
    loop: Loop, tmp_path: Path, how: str
) -> None:
    """SIGSTOP for longer than a lease lives without being renewed, SIGCONT once the heir is done."""
    found = met(loop, tmp_path, how)
    assert found["codes"] == [0, 2]
    assert found["after"] == found["before"]
    made, current, _ = found["after"]
    assert made == [*loop.store.ids(), current]
    assert re.search(
        r"^cascade: error: .* lost .*\.job-nightly .*and .+ has it", (tmp_path / "zombie.2").read_text(), re.M
    )
