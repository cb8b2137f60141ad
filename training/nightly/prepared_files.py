"""What training reads, in files: `cycle.Prepared` between two stages of a night."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from candidate_gen.features import FeatureTable
from candidate_gen.query_log import QueryLog
from index.strings import IdMap
from training.cycle import Prepared
from training.examples.exposures import Examples
from training.learning.ranker import Earlier

_ROWS = ("item_row_I", "popularity_I", "profile_U", "tower_query_N", "tower_positive_N", "tower_hard_NH")
_FRAMES = ("items", "positives")
_SCALARS = ("as_of_ms", "window", "repeats", "catalog_seq", "boosts")
_SCALARS_FILE = "prepared.json"


def save(prepared: Prepared, folder: Path) -> None:
    """Without the ranker to go on from, which is in the store, and without skew, which is a stage of its own."""
    prepared.table.save(folder)
    prepared.users.save(folder, "user_id")
    prepared.queries.save(folder)
    for name in _FRAMES:
        getattr(prepared, name).write_parquet(folder / f"{name}.parquet")
    arrays = {name: getattr(prepared, name) for name in _ROWS}
    arrays |= {f"examples.{name}": getattr(prepared.examples, name) for name in Examples.__slots__}
    for name, array in arrays.items():
        np.save(folder / f"{name}.npy", array, allow_pickle=False)
    scalars = {name: getattr(prepared, name) for name in _SCALARS}
    (folder / _SCALARS_FILE).write_text(json.dumps(scalars))


def load(folder: Path, earlier: Earlier | None) -> Prepared:
    """What `save` wrote, memory-mapped."""
    read: dict[str, Any] = json.loads((folder / _SCALARS_FILE).read_text())
    read |= {"window": tuple(read["window"])}
    read |= {name: pl.read_parquet(folder / f"{name}.parquet") for name in _FRAMES}
    read |= {name: _array(folder, name) for name in _ROWS}
    return Prepared(
        table=FeatureTable.load(folder),
        users=IdMap.load(folder, "user_id"),
        examples=Examples(**{name: _array(folder, f"examples.{name}") for name in Examples.__slots__}),
        queries=QueryLog.load(folder),
        earlier=earlier,
        **read,
    )


def _array(folder: Path, name: str) -> np.ndarray:
    # Copied on a write, for torch wants what it is given to be writable.
    return np.asarray(np.load(folder / f"{name}.npy", mmap_mode="c", allow_pickle=False))
