"""Runs that are killed before random lines of theirs and run again; in a process of its own, for it forks."""

import os
import random
import signal
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from index.generations import GenerationStore

ROOT = Path(__file__).parents[2]
AT_HOME = {
    **os.environ,
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}:{ROOT / 'tests' / 'training'}",
}
"""Where a process finds the modules of the tests."""


def killed_anywhere(
    fresh: Callable[[str], Path],
    run: Callable[[Path], object],
    outcome: Callable[[Path], object],
    *,
    files: tuple[str, ...],
    points: int,
) -> tuple[int, int]:
    """How many runs were killed, and how many lines there were to choose from.

    Args:
        fresh: makes a folder of that name with a store, `generations`.
        run: in that folder.
        outcome: of a run that ended; raises for what a run may not leave.
        files: whose lines count, without `.py`.
    """
    folder = fresh("undisturbed")
    assert _in_child(lambda: _traced(run, folder, files, last=0)) == 0
    expected, lines = outcome(folder), int((folder / "lines").read_text())
    chance = random.Random(0)
    killed = 0
    for point in sorted(chance.randrange(1, lines) for _ in range(points)):
        folder = fresh("killed")
        killed += os.WIFSIGNALED(_in_child(lambda: _traced(run, folder, files, last=point)))  # noqa: B023
        store = GenerationStore(folder / "generations")
        assert store.current() in store.ids()
        for each in store.ids():
            store.verify(each)
        assert _in_child(lambda: _traced(run, folder, files, last=0)) == 0, point  # noqa: B023
        assert outcome(folder) == expected, (point, lines)
    return killed, lines


def _in_child(run: Callable[[], object]) -> int:
    child = os.fork()
    if not child:
        try:
            run()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    return os.waitpid(child, 0)[1]


def _traced(run: Callable[[Path], object], folder: Path, files: tuple[str, ...], *, last: int) -> None:
    """Leaves the number of lines that it took; killed before line `last`."""
    lines = 0
    ours = tuple(f"/{name}.py" for name in files)

    def trace(frame: FrameType, event: str, _: object) -> Any:
        nonlocal lines
        if not frame.f_code.co_filename.endswith(ours):
            return None
        if event == "line":
            lines += 1
            if lines == last:
                os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    run(folder)
    sys.settrace(None)
    (folder / "lines").write_text(str(lines))
