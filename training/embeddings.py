"""The vectors of a catalogue, made in parts that outlive the process that makes them.

Shape letters: I items, D vector width.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from candidate_gen.towers import Towers
from training.durable import appearing

PART_ROWS = 65_536
"""Rows of a part: whole batches of `Towers.encode_items`, so that parts change no batch, and so no bit."""


def embedded(
    towers: Towers,
    row_I: np.ndarray,
    folder: Path,
    *,
    part_rows: int = PART_ROWS,
    advance: Callable[[int], object] = lambda _: None,
) -> NDArray[np.float32]:
    """Unit vectors (I, D) of item records: those of `towers.encode_items(row_I)`.

    Args:
        folder: holds the parts. Those that it already holds are taken as they are, so it must belong to these towers
            and rows alone.
        advance: told of every part how many rows it has.
    """
    parts = []
    for first in range(0, len(row_I), part_rows):
        path = folder / f"{first:012d}.npy"
        if not path.exists():
            vector_ID = towers.encode_items(row_I[first : first + part_rows])
            with appearing(path) as draft, draft.open("wb") as file:
                np.save(file, vector_ID, allow_pickle=False)
        parts.append(np.load(path, mmap_mode="r", allow_pickle=False))
        advance(len(parts[-1]))
    return np.concatenate(parts) if parts else np.empty((0, towers.shape.whole), np.float32)
