"""Where an index is searched, as far as this machine has it."""

import importlib.util
import math
from pathlib import Path

import faiss
import numpy as np
import pytest

from index import placement
from index.placement import Placement, on_device, opened
from index.shards import ShardedIndex
from index.vectors import VectorIndex

ITEM_ID = np.random.default_rng(0).standard_normal((90, 4)).astype(np.float32)
QUERY_D = ITEM_ID[3]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    VectorIndex.build(ITEM_ID, towers="t").save(folder)
    return folder


@pytest.fixture(scope="module")
def sharded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sharded")
    ShardedIndex.build(ITEM_ID, shard_I=np.arange(90) % 4, towers="t").save(folder)
    return folder


def test_what_was_saved_whole_opens_whole_and_what_was_saved_in_shards_in_shards(whole: Path, sharded: Path) -> None:
    one, many = opened(whole, ITEM_ID), opened(sharded, ITEM_ID, Placement(patience_ms=60_000))
    assert isinstance(one, VectorIndex)
    assert isinstance(many, ShardedIndex)
    assert one.towers == many.towers == "t"
    assert one.search(QUERY_D, 9).row_K.tolist() == many.search(QUERY_D, 9).row_K.tolist()


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("device", "gpu", "device: 'gpu' given, allowed: auto, cpu, cuda"),
        ("engine", "dask", "engine: 'dask' given, allowed: threads, ray"),
        ("patience_ms", 0.0, "patience_ms: 0.0 given"),
        ("patience_ms", math.nan, "patience_ms: nan given"),
        ("patience_ms", math.inf, "patience_ms: inf given"),
    ],
)
def test_a_placement_that_is_none_names_the_field_the_value_and_what_is_allowed(
    field: str, value: str | float, message: str
) -> None:
    settings: dict[str, object] = {field: value}
    with pytest.raises(ValueError, match=message):
        Placement(**settings)  # type: ignore[arg-type]


def test_cuda_is_chosen_where_there_is_a_gpu_or_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    index = VectorIndex.build(ITEM_ID, towers="t")
    copied: list[int] = []

    def on_gpu(index: VectorIndex, *, gpu: int) -> VectorIndex:
        copied.append(gpu)
        return index

    monkeypatch.setattr(placement, "on_gpu", on_gpu)
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 2)
    for shard in range(3):
        on_device(index, "auto", number=shard)
    on_device(index, "cuda")
    on_device(index, "cpu")
    assert copied == [0, 1, 0, 0]
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0)
    on_device(index, "auto")
    assert copied == [0, 1, 0, 0]


def test_cuda_without_a_gpu_is_an_error(whole: Path, sharded: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faiss, "get_num_gpus", lambda: 0)
    for folder in (whole, sharded):
        with pytest.raises(ValueError, match="device: 'cuda' given, but FAISS sees no GPU"):
            opened(folder, ITEM_ID, Placement(device="cuda"))


def test_ray_places_shards_and_nothing_else(whole: Path) -> None:
    with pytest.raises(ValueError, match=r"engine: 'ray' places shards, and the index in .* is whole"):
        opened(whole, ITEM_ID, Placement(engine="ray"))


@pytest.mark.skipif(importlib.util.find_spec("ray") is not None, reason="Ray is installed")
def test_ray_that_is_not_installed_is_an_error_that_says_how_to_get_it(sharded: Path) -> None:
    with pytest.raises(ValueError, match=r"Ray is not installed: pip install 'cascade-ranking\[ray\]'"):
        opened(sharded, ITEM_ID, Placement(engine="ray"))
