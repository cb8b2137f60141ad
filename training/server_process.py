"""A server as a process of its own, for as long as a `with` lasts."""

import json
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

_START_S = 60.0
_STOP_S = 30.0


@contextmanager
def server_process(folder: Path, overrides: Sequence[str]) -> Iterator[tuple[str, str]]:
    """`cascade serve` on free ports, from when it is ready.

    Args:
        folder: gets its output, `server.log`, and while it runs `server.json`.
        overrides: of `conf/serve.yaml`.

    Yields:
        Where it listens, and where its admin port does.

    Raises:
        RuntimeError: where it does not start; names the file with its output.
    """
    ready, output = folder / "server.json", folder / "server.log"
    command = [sys.executable, "-m", "training.cli", "serve", "port=0", "admin_port=0", f"ready_file={ready}"]
    with output.open("wb") as file:
        process = subprocess.Popen([*command, *overrides], stdin=subprocess.DEVNULL, stdout=file, stderr=file)
    try:
        until = time.monotonic() + _START_S
        while not ready.exists():
            if process.poll() is not None or time.monotonic() > until:
                raise RuntimeError(f"the server did not start; its output is in {output}")
            time.sleep(0.05)
        address = json.loads(ready.read_text())
        yield address["target"], address["admin_target"]
    finally:
        process.terminate()
        process.wait(_STOP_S)


def last_seen(history: Path, user_id: str) -> tuple[int, str]:
    """A minute after the last event of a user, or of anybody where the user has none; and who that is."""
    import polars as pl

    seen = pl.scan_parquet(history).select("user_id", "visible_ms")
    times_ms = pl.col("visible_ms")
    last = seen.select(of_user=times_ms.filter(pl.col("user_id") == user_id).max(), of_all=times_ms.max())
    of_user, of_all = last.collect().row(0)
    return int(of_user or of_all) + 60_000, f"user {user_id}" if of_user else "anybody"
