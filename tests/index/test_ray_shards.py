"""Shards as Ray actors, on a cluster of one machine that is started for these tests and ends with them.

Shape letters: D embedding width, I items, K results.
"""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from index.masks import Mask
from index.placement import Placement, opened
from index.shards import ShardedIndex

pytestmark = [
    pytest.mark.skipif(importlib.util.find_spec("ray") is None, reason="Ray is not installed"),
    pytest.mark.filterwarnings("ignore"),
]

D, SHARDS = 8, 2
ITEM_ID = np.random.default_rng(0).standard_normal((400, D)).astype(np.float32)
QUERY_BD = np.random.default_rng(1).standard_normal((5, D)).astype(np.float32)
SHARD_I = np.arange(len(ITEM_ID)) % SHARDS
ON_RAY = Placement(device="cpu", engine="ray", patience_ms=20_000)

OTHER_SERVER = """
import sys, time
from pathlib import Path
import numpy as np, ray
from index.placement import Placement, opened
folder, address = Path(sys.argv[1]), sys.argv[2]
vector_ID = np.load(folder.parent / "vectors.npy")
index = opened(folder, vector_ID, Placement(device="cpu", engine="ray", ray_address=address, patience_ms=20_000))
print(*(ray.get(shard.part._actor.ready.remote()) for shard in index.shards), flush=True)
time.sleep(120)
"""


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    import ray

    ray.init(num_cpus=2 * SHARDS + 1, include_dashboard=False, log_to_driver=False, namespace="elsewhere")
    yield str(ray.get_runtime_context().gcs_address)
    ray.shutdown()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("saved") / "index"
    folder.mkdir()
    np.save(folder.parent / "vectors.npy", ITEM_ID, allow_pickle=False)
    ShardedIndex.build(ITEM_ID, shard_I=SHARD_I, towers="t", query_BD=QUERY_BD).save(folder)
    return folder


def _pids(index: ShardedIndex) -> list[int]:
    import ray

    parts: list[Any] = [shard.part for shard in index.shards]
    return [ray.get(part._actor.ready.remote()) for part in parts]


def _until(reached: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < deadline_s
        time.sleep(0.02)


@pytest.fixture
def index(address: str, folder: Path) -> ShardedIndex:
    index = opened(folder, ITEM_ID, ON_RAY)
    assert isinstance(index, ShardedIndex)
    return index


def test_actors_find_what_threads_find(index: ShardedIndex, folder: Path) -> None:
    here = opened(folder, ITEM_ID, Placement(device="cpu", patience_ms=60_000))
    assert os.getpid() not in _pids(index)
    mask = Mask(np.arange(len(ITEM_ID)) % 3 == 0)
    for query_D in QUERY_BD:
        for allowed in (None, mask, mask, Mask(np.zeros(len(ITEM_ID), np.bool_))):
            far, near = index.search(query_D, 40, allowed), here.search(query_D, 40, allowed)
            assert not far.partial
            np.testing.assert_array_equal(far.row_K, near.row_K)
            np.testing.assert_array_equal(far.score_K, near.score_K)
    for far_BK, near_BK in zip(index.search_batch(QUERY_BD, 7), here.search_batch(QUERY_BD, 7), strict=True):
        np.testing.assert_array_equal(far_BK, near_BK)


def test_a_killed_actor_gives_partial_hits_and_is_back_within_seconds(index: ShardedIndex) -> None:
    query_D = QUERY_BD[0]
    whole, pids = index.search(query_D, 20), _pids(index)
    os.kill(pids[0], signal.SIGKILL)
    _until(lambda: index.search(query_D, 20).partial)
    hits = index.search(query_D, 20)
    if hits.partial:
        assert (SHARD_I[hits.row_K] == 1).all()
        assert len(hits) == 20
    _until(lambda: not index.search(query_D, 20).partial)
    np.testing.assert_array_equal(index.search(query_D, 20).row_K, whole.row_K)
    again = _pids(index)
    assert again[0] != pids[0]
    assert again[1] == pids[1]


def test_an_actor_that_is_gone_for_good_is_replaced(index: ShardedIndex) -> None:
    import ray

    query_D = QUERY_BD[1]
    whole, pids = index.search(query_D, 20), _pids(index)
    part: Any = index.shards[1].part
    ray.kill(part._actor, no_restart=True)
    _until(lambda: index.search(query_D, 20).partial)
    _until(lambda: not index.search(query_D, 20).partial)
    np.testing.assert_array_equal(index.search(query_D, 20).row_K, whole.row_K)
    assert _pids(index)[0] == pids[0]
    assert _pids(index)[1] != pids[1]


def test_a_server_joins_a_cluster_by_its_address_and_its_actors_end_with_it(address: str, folder: Path) -> None:
    arguments = [sys.executable, "-c", OTHER_SERVER, str(folder), address]
    other = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[2])
    try:
        assert other.stdout is not None
        made = [int(pid) for pid in other.stdout.readline().split()]
        assert len(made) == SHARDS
        assert all(Path(f"/proc/{pid}").exists() for pid in made)
    finally:
        other.kill()
        other.communicate()
    _until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in made))


def test_a_shard_that_does_not_load_is_an_error_that_says_why(address: str, folder: Path, tmp_path: Path) -> None:
    for number in range(SHARDS):
        (tmp_path / f"shard-{number}").mkdir()
        for file in (folder / f"shard-{number}").iterdir():
            (tmp_path / f"shard-{number}" / file.name).write_bytes(file.read_bytes())
    (tmp_path / "shards.json").write_bytes((folder / "shards.json").read_bytes())
    (tmp_path / "shard-1" / "vectors.faiss").write_bytes(b"")
    with pytest.raises(ValueError, match=r"shard 1 of .* does not start: .*vectors\.faiss"):
        opened(tmp_path, ITEM_ID, ON_RAY)
