"""Data sets by their names, for code; on the command line `conf/data/` names them."""

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from training.data import DataError, Dataset
from training.movielens import movielens_1m, movielens_small
from training.parquet import from_parquet


def load(name: str, root: Path | str, *, now_ms: int, mapping: Mapping[str, Any] | None = None) -> Dataset:
    """A data set by its name: `ml-1m`, `ml-latest-small`, or `parquet` with the mapping of `from_parquet`.

    Raises:
        DataError: where the name is not known, or see the adapters.
    """
    if name == "ml-1m":
        return movielens_1m(root, now_ms=now_ms)
    if name == "ml-latest-small":
        return movielens_small(root, now_ms=now_ms)
    if name == "parquet":
        return from_parquet(root, now_ms=now_ms, **(mapping or {}))
    known = ("ml-1m", "ml-latest-small", "parquet")
    nearest = get_close_matches(name, known, 1, 0.3)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    raise DataError(f"no data set {name!r}, there are {', '.join(known)} (and world, which is simulated){hint}")
