"""Shards as actors on an existing Ray cluster.

A shard's folder must be readable at the same path on every machine of the cluster, and this package installed there.
Each index has actors of its own, which end with it: were they shared, one server's end would take them from all.
Actors on one machine share the pages of a folder, as processes do that map the same file.

Imported only when a placement asks for it: `pip install 'cascade-ranking[ray]'`.

Shape letters: B queries, D embedding width, K results.
"""

import os
from collections import OrderedDict
from pathlib import Path
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from index.masks import Mask
from index.placement import DeviceName, on_device
from index.ray_cluster import connect, ray
from index.shards import Found, Opening, Part, opened_here
from index.types import Hits

_AT_ONCE = 8
"""Searches of one actor at a time, as of a shard on threads."""
_START_S = 60.0
"""Within which an actor must have loaded its folder."""
_MASKS = 64
"""Kept by an actor, the last ones used."""


def actors(address: str, *, device: DeviceName, patience_ms: float) -> Opening:
    """Makes actors of shards: restarted by Ray whenever and as often as they die, and loading their folders again.

    Args:
        address: see `connect`.
        device: see `Placement`. For `cuda` each actor takes a GPU of the cluster to itself; `auto` takes none, since
            Ray shows an actor only the GPUs that it reserved.

    Raises:
        ValueError: no cluster there.
    """
    connect(address)
    actor_class = ray.remote(_Actor).options(
        max_restarts=-1,
        max_concurrency=_AT_ONCE,
        num_gpus=1 if device == "cuda" else 0,
        scheduling_strategy="SPREAD",
    )
    made: dict[Path, Any] = {}

    def opened(shard: int, folder: Path) -> Part:
        if folder not in made:
            made[folder] = actor_class.remote(str(folder.resolve()), device, shard)
        try:
            ray.get(made[folder].ready.remote(), timeout=_START_S)
        except ray.exceptions.RayError as error:
            if isinstance(error, ray.exceptions.ActorDiedError):
                del made[folder]  # for good, so the next try needs another
            raise ValueError(f"shard {shard} of {folder.parent} does not start: {_line(error)}") from error
        return _Remote(made[folder], patience_ms / 1000)

    return opened


class _Remote:
    """The part that an actor answers for."""

    def __init__(self, actor: Any, patience_s: float) -> None:
        self._actor = actor
        self._patience_s = patience_s
        self._sent: WeakKeyDictionary[Mask, Any] = WeakKeyDictionary()

    def search(self, query_D: NDArray[np.float32], k: int, allowed: Mask | None = None) -> Hits:
        """Raises:
        RayError: no answer in time, or the actor is gone.
        """
        sent = None
        if allowed is not None:
            sent = self._sent.get(allowed)
            if sent is None:
                sent = self._sent.setdefault(allowed, ray.put(allowed.bits))
        # In a list Ray leaves the reference as it is: the actor fetches a mask once, not at every search.
        row_K, score_K = ray.get(self._actor.search.remote(query_D, k, [sent]), timeout=self._patience_s)
        return Hits(row_K, score_K)

    def search_batch(self, query_BD: NDArray[np.float32], k: int) -> Found:
        found: Found = ray.get(self._actor.search_batch.remote(query_BD, k))
        return found


class _Actor:
    """Loads a shard's folder when it starts, each time it starts."""

    def __init__(self, path: str, device: DeviceName, shard: int) -> None:
        self._index = on_device(opened_here(shard, Path(path)), device)
        self._masks: OrderedDict[bytes, Mask] = OrderedDict()
        self._lock = Lock()

    def ready(self) -> int:
        """The process that answers."""
        return os.getpid()

    def search(self, query_D: NDArray[np.float32], k: int, mask: list[Any]) -> Found:
        """
        Args:
            mask: a reference to the bits of a `Mask`, or None.
        """
        hits = self._index.search(query_D, k, None if mask[0] is None else self._mask(mask[0]))
        return hits.row_K, hits.score_K

    def search_batch(self, query_BD: NDArray[np.float32], k: int) -> Found:
        return self._index.search_batch(query_BD, k)

    def _mask(self, sent: Any) -> Mask:
        name = sent.binary()
        with self._lock:
            mask = self._masks.get(name)
        if mask is None:
            mask = Mask(np.unpackbits(ray.get(sent), count=len(self._index), bitorder="little").astype(np.bool_))
        with self._lock:
            mask = self._masks.setdefault(name, mask)
            self._masks.move_to_end(name)
            if len(self._masks) > _MASKS:
                self._masks.popitem(last=False)
        return mask


def _line(error: Exception) -> str:
    """The last line, which says why; those before it are a traceback from another machine."""
    return str(error).strip().splitlines()[-1]
