"""Runs that are struck down anywhere and go on where they were; in a process of its own, for it forks.

A blow is kill -9, or a disk that is full from then on. It falls before a random line of what writes, or at a random
moment of the processor's time, whatever runs then. The next run goes on, and may be struck down as well.
"""

import os
import random
import re
import resource
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from functools import partial
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
FULL = re.compile(r"File too large|requested and \d+ written")
"""What is said of a disk that is full."""
_DONE, _BROKEN, _OUT_OF_DISK = range(3)
_ROOM_BYTES = 2_000


def require_struck(script: str, *words: object, points: int) -> None:
    """Run a script that prints what `struck_anywhere` returns, in a process of its own."""
    command = [sys.executable, "-c", script, *map(str, words)]
    ran = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=AT_HOME)
    assert ran.returncode == 0, ran.stderr
    struck, through = map(int, ran.stdout.split())
    assert struck >= points
    assert through


def struck_anywhere(
    fresh: Callable[[str], Path],
    run: Callable[[Path], object],
    outcome: Callable[[Path], object],
    *,
    files: tuple[str, ...],
    points: int,
    disk: bool = False,
) -> tuple[int, int]:
    """How many runs were struck down, at least `points`, and how many got through after that; each of those came to
    what an undisturbed one comes to.

    Args:
        fresh: makes a folder of that name with a store, `generations`.
        run: in that folder.
        outcome: of a run that ended; raises for what a run may not leave.
        files: before whose lines blows fall, without `.py`.
        disk: it fills, instead of kill -9.
    """
    assert not [name for name in files if not (ROOT / f"{name}.py").exists()]
    folder = fresh("undisturbed")
    assert _in_child(partial(run, folder)) == _DONE
    expected = outcome(folder)
    folder = fresh("counted")  # apart, for the first one may have compiled what all others find compiled
    assert _in_child(partial(_counted, run, folder, files)) == _DONE
    assert outcome(folder) == expected
    lines, cpu_s = map(float, (folder / "length").read_text().split())
    chance = random.Random(0)
    struck = through = 0
    while struck < points:
        folder = fresh("struck")
        while True:
            # Not later, for who goes on has less to do.
            share, at_a_line = chance.uniform(0, 0.5), chance.random() < 0.5
            blow = (
                partial(_before_a_line, 1 + int(share * lines), files, _fill if disk else _kill)
                if at_a_line
                else partial(_at_a_moment, share * cpu_s, disk=disk)
            )
            code = _in_child(partial(_struck, run, folder, blow))
            if code == _DONE:
                break
            assert code == _OUT_OF_DISK if disk else code < 0, (share, at_a_line, code)
            struck += 1
            store = GenerationStore(folder / "generations")
            assert store.current() in store.ids()
            for each in store.ids():
                store.verify(each)
        assert outcome(folder) == expected, (share, at_a_line)
        through += 1
    return struck, through


def _in_child(run: Callable[[], object]) -> int:
    """How it ended; below 0 for a signal."""
    child = os.fork()
    if not child:
        code = _BROKEN
        try:
            run()
            code = _DONE
        except BaseException as error:
            code = _OUT_OF_DISK if FULL.search(str(error)) else _BROKEN
            if code == _BROKEN:
                traceback.print_exc()
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def _struck(run: Callable[[Path], object], folder: Path, blow: Callable[[], object]) -> None:
    blow()
    run(folder)


def _counted(run: Callable[[Path], object], folder: Path, files: tuple[str, ...]) -> None:
    """Leaves the number of lines and the CPU seconds that it took."""
    lines = 0

    def count() -> None:
        nonlocal lines
        lines += 1

    started_s = time.process_time()
    _at_every_line(files, count)
    run(folder)
    sys.settrace(None)
    (folder / "length").write_text(f"{lines} {time.process_time() - started_s}")


def _before_a_line(line: int, files: tuple[str, ...], blow: Callable[[], object]) -> None:
    left = line

    def count() -> None:
        nonlocal left
        left -= 1
        if left == 0:
            blow()

    _at_every_line(files, count)


def _at_every_line(files: tuple[str, ...], do: Callable[[], object]) -> None:
    ours = tuple(f"/{name}.py" for name in files)

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if not frame.f_code.co_filename.endswith(ours):
            return None
        if event == "line":
            do()
        return trace

    sys.settrace(trace)


def _at_a_moment(cpu_s: float, *, disk: bool) -> None:
    # What is not caught ends the process at once, even in the middle of what is no Python.
    signal.signal(signal.SIGPROF, (lambda *_: _fill()) if disk else signal.SIG_DFL)
    signal.setitimer(signal.ITIMER_PROF, cpu_s)


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _fill() -> None:
    """No file can be larger than 2 kB any more."""
    _, most = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (_ROOM_BYTES, most))
