"""Requests joined with two tables that change: the point-in-time join beside polars' as-of join, which is not one.

The peer joins by event time alone, so it hands rows to requests that could not have known them; the note says to how
many. Both read Parquet and write Parquet, each run in a process of its own, whose peak memory the note gives. Before
that, on tables in which everything is visible at once, both must find the same rows.

Shape letters: B blocks.
"""

import resource
import sys
import time
from collections.abc import Callable
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl

from benchmarks.harness import Bench, main
from training.examples.point_in_time import Versions, point_in_time

_ROWS = {"requests": 10_000_000, "user": 2_000_000, "item": 1_000_000}
_QUICK_ROWS = {"requests": 40_000, "user": 8_000, "item": 4_000}
_VERSIONS_A_KEY = 10
_COLUMNS = 8
_SPAN_MS = 30 * 86_400_000
_DELAY_MS = 3_600_000
"""Mean time from a row's event until it is visible."""
_BLOCKS, _QUICK_BLOCKS = 3, 2
_MIB_OF_RSS = 1024 if sys.platform == "linux" else 1024 * 1024

Join = Callable[[pl.LazyFrame, pl.LazyFrame, pl.LazyFrame], pl.LazyFrame]


def measure(bench: Bench) -> None:
    rows = _QUICK_ROWS if bench.quick else _ROWS
    with TemporaryDirectory(prefix="cascade-point-in-time-") as name:
        folder = Path(name)
        _same_where_all_is_visible(folder)
        _write(folder, rows, delay_ms=_DELAY_MS)
        leaked = _leaked(folder)
        blocks = _QUICK_BLOCKS if bench.quick else _BLOCKS
        time_s_B4, mib_B4 = np.empty((blocks, 4)), np.empty((blocks, 4))
        for b in range(blocks):
            for at, join in enumerate((ours, peer, peer, ours)):
                time_s_B4[b, at], mib_B4[b, at] = _measured(join, folder)
    requests, users, items = (f"{count:,}" for count in rows.values())
    bench.pair(
        f"{requests} requests, {users} user and {items} item rows of {_COLUMNS} columns, Parquet to Parquet",
        time_s_B4[:, [0, 3]].mean(1),
        time_s_B4[:, [1, 2]].mean(1),
        peer_name="polars join_asof",
        unit="s",
        note=f"peak {mib_B4[:, [0, 3]].max():,.0f} and {mib_B4[:, [1, 2]].max():,.0f} MiB; the peer leaks into "
        f"{100 * leaked:.1f}% of the requests; where all is visible at once, identical",
    )


def ours(requests: pl.LazyFrame, users: pl.LazyFrame, items: pl.LazyFrame) -> pl.LazyFrame:
    """Both times count."""
    return point_in_time(requests, Versions(frame=users, key="user"), Versions(frame=items, key="item"))


def peer(requests: pl.LazyFrame, users: pl.LazyFrame, items: pl.LazyFrame) -> pl.LazyFrame:
    """Visible times are ignored."""
    joined = requests
    for key, table in (("user", users), ("item", items)):
        joined = joined.join_asof(table.drop("visible_ms"), on="time_ms", by=key, check_sortedness=False)
    return joined


def _write(folder: Path, rows: dict[str, int], *, delay_ms: int) -> None:
    """Tables in order of event time, as the peer needs them, each key with ten versions on average."""
    random = np.random.default_rng(0)
    times_ms = {name: np.sort(random.integers(_SPAN_MS, size=count)) for name, count in rows.items()}
    keys = {name: max(1, rows[name] // _VERSIONS_A_KEY) for name in ("user", "item")}
    requests = {name: random.integers(count, size=rows["requests"]) for name, count in keys.items()}
    pl.DataFrame({**requests, "time_ms": times_ms["requests"]}).write_parquet(folder / "requests.parquet")
    for name, count in keys.items():
        height = rows[name]
        table = {
            name: random.integers(count, size=height),
            "time_ms": times_ms[name],
            "visible_ms": times_ms[name] + random.exponential(delay_ms, height).astype(np.int64),
            **{f"{name} {column}": random.random(height, np.float32) for column in range(_COLUMNS)},
        }
        pl.DataFrame(table).write_parquet(folder / f"{name}.parquet")


def _scanned(folder: Path) -> tuple[pl.LazyFrame, pl.LazyFrame, pl.LazyFrame]:
    requests, users, items = (pl.scan_parquet(folder / f"{name}.parquet") for name in ("requests", "user", "item"))
    return requests, users, items


def _same_where_all_is_visible(folder: Path) -> None:
    _write(folder, _QUICK_ROWS, delay_ms=0)
    requests, users, items = _scanned(folder)
    users, items = (
        table.unique(subset=[name, "time_ms"], keep="last", maintain_order=True)
        for name, table in (("user", users), ("item", items))
    )
    if not ours(requests, users, items).collect().equals(peer(requests, users, items).collect()):
        raise RuntimeError("the joins differ although every row is visible at once")


def _leaked(folder: Path) -> float:
    """Share of requests that the peer gives a row of a user that was not visible yet."""
    requests, users, _ = _scanned(folder)
    told = users.select("user", "time_ms", known_ms="visible_ms")
    joined = requests.join_asof(told, on="time_ms", by="user", check_sortedness=False)
    return float(joined.select((pl.col("known_ms") > pl.col("time_ms")).fill_null(False).mean()).collect().item())


def _measured(join: Join, folder: Path) -> tuple[float, float]:
    """Seconds and peak MiB of a join in a process that does nothing else."""
    spawning = get_context("spawn")
    receiving, sending = spawning.Pipe(duplex=False)
    process = spawning.Process(target=_run, args=(join, folder, sending))
    process.start()
    sending.close()
    try:
        found: tuple[float, float] = receiving.recv()
    finally:
        process.join()
    return found


def _run(join: Join, folder: Path, sending: Connection) -> None:
    started_s = time.perf_counter()
    join(*_scanned(folder)).sink_parquet(folder / "joined.parquet")
    taken_s = time.perf_counter() - started_s
    sending.send((taken_s, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _MIB_OF_RSS))


if __name__ == "__main__":
    main("point_in_time", measure, "the point-in-time join, beside an as-of join on event time")
