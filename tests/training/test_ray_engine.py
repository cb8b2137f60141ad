"""Heavy jobs on a Ray cluster of two machines (two raylets of this one), each of which loses one of them in the middle.

What a job makes there is what it makes here, byte by byte. Shape letters: I items, D vector width.
"""

import hashlib
import importlib.util
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch
from conftest import SMALL, SMALL_RANKER, Loop
from nightly_cases import LOOSE, files_of, night, same, told

from candidate_gen.towers import Towers
from index.generations import GenerationStore
from training import cycle, jobs
from training.cycle import CycleSettings, Prepared
from training.datasets.dataset import Dataset
from training.embeddings import embedded
from training.engine import HERE, Engine, PartT, RayEngine, ResultT
from training.learning.ranker import RankerTraining
from training.learning.tower import TowerTraining
from training.nightly import prepared_files
from training.publish import IndexSettings, build_index
from training.rebuild import rebuild
from training.settings import PublishSettings, RebuildSettings, TrainSettings
from training.simulation.world import World

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.slow,
]

ROOT = Path(__file__).parents[2]
MACHINE = {"num_cpus": 1, "object_store_memory": 200_000_000}
TRAINED: CycleSettings = replace(
    SMALL,
    towers=replace(SMALL.towers, epochs=3),
    ranker=replace(SMALL_RANKER, epochs=3, patience=3),
    index=IndexSettings(kind="ivf", shards=3),
)


@dataclass(frozen=True)
class Losing:
    """An engine under which whoever is the first to begin with a part, or with the second epoch, never ends it."""

    engine: RayEngine
    begun: Path
    """Where that one says on which machine it is."""

    @property
    def at_once(self) -> int:
        return self.engine.at_once

    def each(
        self, make: Callable[[], Callable[[PartT], ResultT]], parts: Iterable[PartT]
    ) -> Iterator[tuple[int, ResultT]]:
        return self.engine.each(partial(halting, make, self.begun), parts)

    def fit(self, train: Callable[[], ResultT], *, folder: Path, processes: int = 1, cuda: bool = False) -> ResultT:
        stopping: Callable[[], ResultT] = partial(stopped, train, self.begun)
        return self.engine.fit(stopping, folder=folder, processes=processes, cuda=cuda)


def halting(make: Callable[[], Callable[[Any], Any]], begun: Path) -> Callable[[Any], Any]:
    work = make()

    def halted(part: Any) -> Any:
        halt_the_first(begun)
        return work(part)

    return halted


def stopped(train: Callable[[], Any], begun: Path) -> Any:
    for training in (TowerTraining, RankerTraining):
        start = training.on_train_epoch_start

        def halted(self: Any, start: Callable[[Any], None] = start) -> None:
            if self.current_epoch == 1:
                halt_the_first(begun)
            start(self)

        training.on_train_epoch_start = halted  # type: ignore[method-assign]
    return train()


def halt_the_first(begun: Path) -> None:
    import ray

    with suppress(FileExistsError), begun.open("x") as file:
        file.write(ray.get_runtime_context().get_node_id())
        file.flush()
        time.sleep(600)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    torch.set_num_threads(1)
    os.environ |= {
        "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests"), str(Path(__file__).parent)]),
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_USAGE_STATS_ENABLED": "0",
    }
    import ray
    from ray.cluster_utils import Cluster

    head = {**MACHINE, "num_cpus": 0, "include_dashboard": False}
    cluster = Cluster(initialize_head=True, head_node_args=head)
    completed(cluster, 2)
    yield cluster
    ray.shutdown()
    cluster.shutdown()


def killed(cluster: Any, node_id: str) -> None:
    (node,) = (each for each in cluster.worker_nodes if each.node_id == node_id)
    cluster.remove_node(node, allow_graceful=False)


def completed(cluster: Any, machines: int) -> None:
    """Others in place of those that died."""
    while len(cluster.worker_nodes) < machines:
        cluster.add_node(**MACHINE)


@contextmanager
def losing_a_machine(cluster: Any, folder: Path, *, of: int = 2) -> Iterator[Engine]:
    completed(cluster, of)
    begun = folder / "begun"

    def lose() -> None:
        deadline_s = time.monotonic() + 300
        while not (begun.exists() and begun.read_text()):
            assert time.monotonic() < deadline_s, "nobody began"
            time.sleep(0.05)
        killed(cluster, begun.read_text())

    with ThreadPoolExecutor(1) as threads:
        lost = threads.submit(lose)
        yield Losing(RayEngine(cluster.address), begun)
        lost.result()


def sha256_of(folder: Path) -> dict[str, str]:
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def saved(save: Callable[[Path], None], folder: Path) -> dict[str, str]:
    folder.mkdir(parents=True)
    save(folder)
    return sha256_of(folder)


@pytest.fixture(scope="module")
def dataset() -> Dataset:
    world = World(0, users=120, items=250, days=12)
    requests = world.requests(world.start_ms, world.day_ms(8), 3000)
    return world.dataset(*world.first_log(requests, slate_size=6))


def prepare(dataset: Dataset, engine: Engine) -> Prepared:
    return cycle.prepare(dataset, as_of_ms=World(0).day_ms(9), tower_positives=2000, engine=engine)


@pytest.fixture(scope="module")
def prepared(dataset: Dataset) -> Prepared:
    return prepare(dataset, HERE)


@pytest.fixture(scope="module")
def towers(prepared: Prepared, tmp_path_factory: pytest.TempPathFactory) -> Towers:
    return cycle.fit_towers(prepared, TRAINED, seed=0, folder=tmp_path_factory.mktemp("here"))[0]


def test_examples(cluster: Any, dataset: Dataset, prepared: Prepared, tmp_path: Path) -> None:
    with losing_a_machine(cluster, tmp_path) as engine:
        assert engine.at_once == 2
        there = prepare(dataset, engine)
    assert len(there.examples.time_ms_R) == 3000
    kept = saved(partial(prepared_files.save, prepared), tmp_path / "here")
    assert saved(partial(prepared_files.save, there), tmp_path / "there") == kept


def test_embeddings(cluster: Any, prepared: Prepared, towers: Towers, tmp_path: Path) -> None:
    rows = np.tile(prepared.item_row_I, 100)
    here = embedded(towers, rows, tmp_path / "here", part_rows=4096)
    with losing_a_machine(cluster, tmp_path) as engine:
        there = embedded(towers, rows, tmp_path / "there", part_rows=4096, engine=engine)
    np.testing.assert_array_equal(there, here)
    assert sha256_of(tmp_path / "there") == sha256_of(tmp_path / "here")


def test_shards_of_an_index(cluster: Any, prepared: Prepared, tmp_path: Path) -> None:
    rows = prepared.items.height
    items = cycle.items_of(prepared, np.random.default_rng(0).standard_normal((rows, 16)).astype(np.float32))
    build = partial(build_index, items, TRAINED.index, towers="t", query_BD=None)
    with losing_a_machine(cluster, tmp_path) as engine:
        there = build(engine=engine)
    assert saved(there.index.save, tmp_path / "there") == saved(build().index.save, tmp_path / "here")


@pytest.mark.parametrize("processes", [1, 2])
def test_towers(cluster: Any, prepared: Prepared, tmp_path: Path, processes: int) -> None:
    settings = replace(TRAINED, towers=replace(TRAINED.towers, processes=processes))
    here, found = cycle.fit_towers(prepared, settings, seed=0, folder=tmp_path / "here")
    with losing_a_machine(cluster, tmp_path, of=processes + 1) as engine:
        there, told = cycle.fit_towers(prepared, settings, seed=0, folder=tmp_path / "there", engine=engine)
    assert saved(there.save, tmp_path / "towers there") == saved(here.save, tmp_path / "towers here")
    assert timeless(told) == timeless(found)
    curves = [pl.read_csv(tmp_path / each / "towers" / "csv" / "metrics.csv") for each in ("here", "there")]
    assert curves[0].cast(pl.Float64).equals(curves[1].cast(pl.Float64)), "what was logged before is kept"


def test_ranker(cluster: Any, prepared: Prepared, tmp_path: Path) -> None:
    fit = partial(cycle.fit_ranker, prepared, TRAINED, seed=0)
    (here, calibration, found) = fit(folder=tmp_path / "here")
    with losing_a_machine(cluster, tmp_path) as engine:
        there, its_calibration, told = fit(folder=tmp_path / "there", engine=engine)
    assert isinstance(here, torch.nn.Module)
    assert isinstance(there, torch.nn.Module)
    for name, weight in here.state_dict().items():
        assert torch.equal(there.state_dict()[name], weight), name
    actions = len(prepared.table.actions)
    logit_NA = np.linspace(-5, 5, actions * 50).reshape(50, actions)
    np.testing.assert_array_equal(its_calibration.apply(logit_NA), calibration.apply(logit_NA))
    assert timeless(told) == timeless(found)


def made_in(store: GenerationStore) -> tuple[str, dict[str, str]]:
    """The generation in force, and its files."""
    made = store.current()
    assert made is not None
    return made, files_of(store, made)


def test_a_whole_night(cluster: Any, loop: Loop, tmp_path: Path) -> None:
    def night_of(name: str, engine: Engine) -> tuple[str, dict[str, str]]:
        settings = told(loop, tmp_path / name, engine=engine)
        night(replace(settings, cycle=replace(settings.cycle, index=TRAINED.index)))
        return made_in(GenerationStore(settings.generations))

    with losing_a_machine(cluster, tmp_path) as engine:
        there = night_of("there", engine)
    assert there == night_of("here", HERE)


def test_export_and_rebuild(cluster: Any, dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine dies under each of them."""
    monkeypatch.setattr(jobs, "now_ms", lambda: 1)
    given: dict[str, Any] = {
        "data": partial(same, dataset),
        "cycle": replace(TRAINED, gates=LOOSE),
        "seed": 0,
        "output": tmp_path / "trained",
        "log": None,
        "generations": tmp_path / "nothing",
    }
    for mode in ("tower", "ranker"):
        jobs.train(TrainSettings(mode=mode, **given))

    def export_in(store: GenerationStore, engine: Engine) -> tuple[str, dict[str, str]]:
        jobs.export(PublishSettings(**{**given, "generations": store.root}, activate=True, engine=engine))
        return made_in(store)

    def rebuild_in(store: GenerationStore, engine: Engine) -> tuple[str, dict[str, str]]:
        settings = RebuildSettings(
            index=replace(TRAINED.index, shards=2),
            gates=LOOSE,
            generations=store.root,
            log=None,
            generation="",
            output=store.root.parent / "report",
            activate=True,
            engine=engine,
        )
        rebuild(settings, holder="the test", now_ms=1)
        return made_in(store)

    here, there = (GenerationStore(tmp_path / each / "generations") for each in ("here", "there"))
    made = []
    for job in (export_in, rebuild_in):
        folder = tmp_path / job.__name__
        folder.mkdir()
        with losing_a_machine(cluster, folder) as engine:
            made.append(job(there, engine))
        assert made[-1] == job(here, HERE)
    assert made[0] != made[1]


def timeless(metrics: dict[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if name != "examples_per_s"}


def test_what_a_training_refuses_is_not_tried_again(cluster: Any, prepared: Prepared, tmp_path: Path) -> None:
    settings = replace(TRAINED, towers=replace(TRAINED.towers, validation=0.9999))
    with pytest.raises(ValueError, match="positives are left to train the towers on"):
        cycle.fit_towers(prepared, settings, seed=0, folder=tmp_path, engine=RayEngine(cluster.address))


def test_a_process_of_more_threads_than_a_machine_has_cpus_is_told(cluster: Any) -> None:
    torch.set_num_threads(3)
    try:
        with pytest.raises(ValueError, match="no machine of the Ray cluster has 3 CPUs"):
            _ = RayEngine(cluster.address).at_once
    finally:
        torch.set_num_threads(1)


def test_sweeps(cluster: Any, tmp_path: Path) -> None:
    """Trials are taken here and train there; a machine dies while one trains."""
    rng = np.random.default_rng(0)
    log = pl.DataFrame(
        {
            "user_id": rng.integers(40, size=600).astype(str),
            "item_id": rng.integers(60, size=600).astype(str),
            "time": 1_700_000_000 + np.sort(rng.integers(20 * 86_400, size=600)),
        }
    )
    log.write_parquet(tmp_path / "interactions.parquet")
    words = ["sweep=tower", "data=parquet", f"data.root={tmp_path}", "data.items=null", "data.time_unit=s"]
    words += ["towers=small", "towers.epochs=40", "sweep.trials=2"]
    swept(words, tmp_path / "here")
    there = swept_on(words, tmp_path / "there", cluster)
    for trial in ("0", "1"):
        of = Path(trial, "towers")
        kept = {name for name in sha256_of(tmp_path / "here" / of) if not name.endswith(".json")}
        assert {name: sha256_of(tmp_path / "there" / of)[name] for name in kept} == {
            name: sha256_of(tmp_path / "here" / of)[name] for name in kept
        }
    assert there, "a machine died in the middle"


def sweeping(words: list[str], output: Path) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "training.cli", "train", "tower", "-m", *words, f"output={output}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def swept(words: list[str], output: Path) -> None:
    with sweeping(words, output) as process:
        told, _ = process.communicate(timeout=300)
    assert process.returncode == 0, told


def swept_on(words: list[str], output: Path, cluster: Any) -> bool:
    """Whether a machine died while a trial trained on it."""
    completed(cluster, 2)
    with sweeping([*words, "engine=ray", f"engine.address={cluster.address}"], output) as process:
        lost = False
        while process.poll() is None and not lost:
            if list(output.glob("*/work/towers/checkpoints/last.ckpt")) and (node_id := training_on(cluster)):
                killed(cluster, node_id)
                lost = True
            time.sleep(0.02)
        told, _ = process.communicate(timeout=300)
    assert process.returncode == 0, told
    return lost


def training_on(cluster: Any) -> str:
    """The machine that a process of Ray Train is on; empty where there is none."""
    for node in cluster.worker_nodes:
        raylet = node.all_processes["raylet"][0].process.pid
        children = Path(f"/proc/{raylet}/task/{raylet}/children").read_text().split()
        for child in children:
            with suppress(FileNotFoundError, ProcessLookupError):
                if b"RayTrainWorker" in Path(f"/proc/{child}/cmdline").read_bytes():
                    return str(node.node_id)
    return ""
