"""Tables as they come, read and checked: every fault is one line that names the file, the column and the count."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import polars as pl

from training.datasets.dataset import DataError


def read_table(path: Path, columns: Sequence[str], *, origin: str = "") -> pl.DataFrame:
    """A CSV (by its ending; columns of ISO dates become dates) or Parquet file that holds these columns, and others
    perhaps, in at least one row.

    Args:
        origin: where a file that is missing is to be had.

    Raises:
        DataError: where the file is missing, cannot be read, lacks a column or is empty.
    """
    if not path.exists():
        raise DataError(f"{path} is missing" + (f"; {origin}" if origin else ""))
    try:
        frame = pl.read_csv(path, try_parse_dates=True) if path.suffix == ".csv" else pl.read_parquet(path)
    except (pl.exceptions.PolarsError, OSError) as error:
        raise DataError(f"{path} cannot be read: {' '.join(str(error).split())}") from error
    missing = [name for name in columns if name not in frame.columns]
    if missing:
        raise DataError(
            f"{path} has no column {missing[0]!r} ({len(missing)} of {len(columns)} needed are missing); "
            f"it has {', '.join(frame.columns)}"
        )
    require_rows(path, frame)
    return frame


def require_rows(path: Path, frame: pl.DataFrame) -> None:
    """
    Raises:
        DataError: where there is none.
    """
    if frame.is_empty():
        raise DataError(f"{path} is empty: 0 rows")


def require_filled(path: Path, frame: pl.DataFrame, names: Mapping[str, str]) -> None:
    """
    Args:
        names: column of the frame to its name in the file.

    Raises:
        DataError: where one of the columns holds a null or an empty text.
    """
    for column, name in names.items():
        nulls = frame[column].null_count()
        if frame.schema[column] == pl.Utf8:
            nulls += int((frame[column] == "").sum())
        if nulls:
            raise DataError(f"{path}: column {name!r} is null or empty in {nulls} of {frame.height} rows")


def require_past(path: Path, time_ms: pl.Series, *, name: str, now_ms: int) -> None:
    """
    Args:
        name: of the column in the file.

    Raises:
        DataError: where a time is later than `now_ms`.
    """
    late = int((time_ms > now_ms).sum())
    if late:
        raise DataError(
            f"{path}: column {name!r} is in the future in {late} of {len(time_ms)} rows "
            f"(the latest is {time_ms.max()!r} ms, now is {now_ms} ms)"
        )


def require_unique(path: Path, values: pl.Series, *, name: str) -> None:
    """
    Args:
        name: of the column in the file.

    Raises:
        DataError: where a value stands twice.
    """
    extra = len(values) - values.n_unique()
    if extra:
        raise DataError(f"{path}: column {name!r} repeats an earlier value in {extra} of {len(values)} rows")


def require_known(path: Path, ids: pl.Series, *, name: str, known: pl.Series, table: Path) -> None:
    """
    Args:
        name: of the column in the file.
        known: the ids that there are, which `table` holds.

    Raises:
        DataError: where there is another.
    """
    strangers = ids.filter(~ids.is_in(known.implode()))
    if len(strangers):
        raise DataError(
            f"{path}: column {name!r} names {strangers.n_unique()} ids that {table.name} does not hold, "
            f"in {len(strangers)} of {len(ids)} rows, first {strangers[0]!r}"
        )
