"""The vectors of a catalogue, made in parts that outlive the process that makes them.

Shape letters: I items, D vector width.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from candidate_gen.towers import Towers
from training.durable import appearing
from training.engine import HERE, Engine

PART_ROWS = 65_536
"""Rows of a part: whole batches of `Towers.encode_items`, so that parts change no batch, and so no bit."""


def embedded(
    towers: Towers,
    row_I: np.ndarray,
    folder: Path,
    *,
    engine: Engine = HERE,
    part_rows: int = PART_ROWS,
    advance: Callable[[int], object] = lambda _: None,
) -> NDArray[np.float32]:
    """Unit vectors (I, D) of item records: those of `towers.encode_items(row_I)`.

    Args:
        folder: holds the parts. Those that it already holds are taken as they are, so it must belong to these towers
            and rows alone.
        advance: told of every part, as it is found or made, how many rows it has.
    """
    file_of = {first: folder / f"{first:012d}.npy" for first in range(0, len(row_I), part_rows)}
    missing = [first for first, path in file_of.items() if not path.exists()]
    for first in file_of.keys() - set(missing):
        advance(min(part_rows, len(row_I) - first))
    parts = (row_I[first : first + part_rows] for first in missing)
    for place, vector_ID in engine.each(partial(_encoding, towers), parts):
        with appearing(file_of[missing[place]]) as draft, draft.open("wb") as file:
            np.save(file, vector_ID, allow_pickle=False)
        advance(len(vector_ID))
    made = [np.load(path, mmap_mode="r", allow_pickle=False) for path in file_of.values()]
    return np.concatenate(made) if made else np.empty((0, towers.shape.whole), np.float32)


def _encoding(towers: Towers) -> Callable[[np.ndarray], NDArray[np.float32]]:
    return towers.encode_items
