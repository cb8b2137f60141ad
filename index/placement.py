"""Where a saved index is searched: on which device, by which processes."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal, get_args

import faiss
import numpy as np
from numpy.typing import NDArray

from index.gpu import on_gpu
from index.shards import Part, ShardedIndex, is_sharded, opened_here
from index.vectors import VectorIndex

DeviceName = Literal["auto", "cpu", "cuda"]
Engine = Literal["threads", "ray"]


@dataclass(frozen=True, slots=True)
class Placement:
    """The defaults need nothing: a GPU where there is one, shards on threads of this process.

    Raises:
        ValueError: a name that is not allowed, or patience that is no time.
    """

    device: DeviceName = "auto"
    """`auto` is CUDA where FAISS sees a GPU, else the CPU; kinds that have no GPU form are on the CPU anyway."""
    engine: Engine = "threads"
    """What searches the shards: threads of this process, or actors on a Ray cluster."""
    ray_address: str = "auto"
    """Of an existing cluster; `auto` is the one that this machine belongs to."""
    patience_ms: float = 1000.0
    """A shard that takes longer is left out; see `ShardedIndex`."""

    def __post_init__(self) -> None:
        for name, value, allowed in (
            ("device", self.device, get_args(DeviceName)),
            ("engine", self.engine, get_args(Engine)),
        ):
            if value not in allowed:
                raise ValueError(f"{name}: {value!r} given, allowed: {', '.join(allowed)}")
        if not 0 < self.patience_ms <= 3_600_000:
            raise ValueError(f"patience_ms: {self.patience_ms} given, allowed: above 0, at most 3600000")


def opened(
    folder: Path, vector_ID: NDArray[np.float32], placement: Placement = Placement()
) -> VectorIndex | ShardedIndex:
    """The index that was saved there, whole or in shards, ready to be searched where the placement says.

    Args:
        vector_ID: the vectors that it was built from.

    Raises:
        ValueError: as `VectorIndex.load` and `ShardedIndex.load`; CUDA is asked for where there is none; Ray is asked
            for and not installed, cannot be reached, or has no shards to place.
    """
    if not is_sharded(folder):
        if placement.engine == "ray":
            raise ValueError(f"engine: 'ray' places shards, and the index in {folder} is whole (built with shards=1)")
        return on_device(VectorIndex.load(folder, vector_ID), placement.device)
    if placement.engine == "ray":
        from index.ray_shards import actors

        opening = actors(placement.ray_address, device=placement.device, patience_ms=placement.patience_ms)
    else:
        opening = partial(_opened_on, placement.device)
    return ShardedIndex.load(folder, vector_ID, opening=opening, patience_ms=placement.patience_ms)


def on_device(index: VectorIndex, device: DeviceName, *, number: int = 0) -> VectorIndex:
    """The index on CUDA or on the CPU.

    Args:
        number: shards with successive numbers are on successive GPUs, round and round.

    Raises:
        ValueError: CUDA is asked for, and FAISS sees no GPU.
    """
    gpus = 0 if device == "cpu" else faiss.get_num_gpus()
    if device == "cuda" and not gpus:
        raise ValueError("device: 'cuda' given, but FAISS sees no GPU: faiss-gpu and a CUDA driver are needed")
    return on_gpu(index, gpu=number % gpus) if gpus else index


def _opened_on(device: DeviceName, shard: int, folder: Path) -> Part:
    return on_device(opened_here(shard, folder), device, number=shard)
