"""What an engine makes of parts, whoever makes it; with processes of this machine. `test_ray_engine` has the others."""

import hashlib
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from example_cases import simulated_log

from index.shards import ShardedIndex
from training.engine import HERE, LocalEngine, RayEngine, in_order
from training.examples.exposures import Examples, from_impressions, mature
from training.publish import built_by

TWO = LocalEngine(workers=2)


def working() -> Callable[[int], tuple[int, int, int]]:
    return lambda part: (part * part, os.getpid(), torch.get_num_threads())


def test_parts_come_back_in_their_order_whoever_worked_on_them() -> None:
    here, there = in_order(HERE, working, range(5)), in_order(TWO, working, range(5))
    assert [square for square, *_ in here] == [square for square, *_ in there] == [0, 1, 4, 9, 16]
    assert {process for _, process, _ in here} == {os.getpid()}
    assert len({process for _, process, _ in there}) == 2
    assert {threads for *_, threads in there} == {torch.get_num_threads()}, "sums depend on them"


def test_one_part_or_none_is_worked_on_here() -> None:
    assert in_order(TWO, working, []) == []
    assert in_order(TWO, working, [3]) == [(9, os.getpid(), torch.get_num_threads())]


def test_an_engine_without_a_process_is_refused() -> None:
    with pytest.raises(ValueError, match="workers is 0; it must be at least 1"):
        LocalEngine(workers=0)


@pytest.mark.parametrize("size", [7, 100, 299])
def test_examples_are_the_same_however_the_requests_are_cut(size: int) -> None:
    log = simulated_log(seed=3, requests=300, days=5)
    joined = partial(
        from_impressions,
        log.table,
        users=log.users,
        items=log.items,
        impressions=log.impressions,
        events=log.events,
        watermark_ms=log.end_ms,
    )
    whole = joined()
    count = mature(log.impressions, watermark_ms=log.end_ms).height
    parts = [joined(part=slice(first, first + size)) for first in range(0, count, size)]
    assert len(parts) > 1
    assert count == len(whole.time_ms_R) == 300
    cut = Examples.concatenate(parts)
    for name in Examples.__slots__:
        assert getattr(cut, name).tobytes() == getattr(whole, name).tobytes(), name


def test_shards_built_by_processes_are_those_built_here_in_one_go(tmp_path: Path) -> None:
    vector_ID = np.random.default_rng(0).standard_normal((900, 8)).astype(np.float32)
    files = []
    for name, building in (("here", map), ("there", partial(built_by, TWO))):
        folder = tmp_path / name
        folder.mkdir()
        index = ShardedIndex.build(vector_ID, shard_I=np.arange(900) % 3, towers="t", kind="ivf_sq8", building=building)
        index.save(folder)
        inside = sorted(path for path in folder.rglob("*") if path.is_file())
        files.append({path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest() for path in inside})
    assert len({path.parent for path in files[0]}) == 4
    assert files[0] == files[1]


def test_ray_is_asked_for_and_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    for name in ("index.ray_cluster", "training.ray_tasks"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    with pytest.raises(ValueError, match=r"Ray is not installed: pip install 'cascade-ranking\[ray\]'"):
        RayEngine().fit(lambda: None, folder=tmp_path)
