"""Where the heavy jobs are done: on this machine, or on a Ray cluster; with the same code, to the same bytes.

A job is cut into parts, or it is a training. Results do not depend on who made them: all work with as many threads as
the process that asks, for sums depend on them, and parts are put together by their place. What is sent is pickled by
this process for workers of its own.
"""

import multiprocessing
import signal
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain, islice
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, Protocol, TypeVar

import torch

from serving.log.impression_log import LogUnavailable

PartT = TypeVar("PartT")
ResultT = TypeVar("ResultT")
_REFUSALS = (ValueError, OSError, LogUnavailable)
"""What says that the job was told wrongly, or its files are not there: to be told on as a ValueError."""


class Engine(Protocol):
    """Does work."""

    @property
    def at_once(self) -> int:
        """How many parts it works on side by side."""
        ...

    def each(
        self, make: Callable[[], Callable[[PartT], ResultT]], parts: Iterable[PartT]
    ) -> Iterator[tuple[int, ResultT]]:
        """The place of every part among the parts and what the work made of it, as they come.

        Args:
            make: makes what works; it, parts and results are sent.

        Raises:
            ValueError: what the work refused.
            RuntimeError: what broke in it, or that it was killed.
        """
        ...

    def fit(self, train: Callable[[], ResultT], *, folder: Path, processes: int = 1, cuda: bool = False) -> ResultT:
        """What a training with Lightning returns.

        Args:
            folder: where it leaves its checkpoints; every machine that may train can write there.
            processes: that share its batches, as `lightning_run.trainer_on` knows.

        Raises:
            ValueError, RuntimeError: as `each`.
        """
        ...


@dataclass(frozen=True, slots=True)
class LocalEngine:
    """Processes of this machine; a single one is this."""

    workers: int = 1
    """Processes that parts are worked on in. Training starts its own."""

    def __post_init__(self) -> None:
        if self.workers < 1:
            raise ValueError(f"workers is {self.workers}; it must be at least 1")

    @property
    def at_once(self) -> int:
        return self.workers

    def each(
        self, make: Callable[[], Callable[[PartT], ResultT]], parts: Iterable[PartT]
    ) -> Iterator[tuple[int, ResultT]]:
        """See `Engine`. What one process can do is done here."""
        waiting = enumerate(parts)
        first = list(islice(waiting, self.workers))
        if len(first) < 2:
            if first:
                work = make()
                yield from ((place, work(part)) for place, part in chain(first, waiting))
            return
        fresh = multiprocessing.get_context("spawn")
        with ExitStack() as stack:
            given: dict[Connection, int] = {}
            for place, part in first:
                ours, theirs = fresh.Pipe()
                process = fresh.Process(target=_serve, args=(theirs, make, torch.get_num_threads()), daemon=True)
                process.start()
                theirs.close()
                stack.callback(_end, process, ours)
                given[ours] = place
                ours.send(part)
            while given:
                for ready in wait(list(given)):
                    assert isinstance(ready, Connection)
                    yield given.pop(ready), _received(ready)
                    with suppress(StopIteration):
                        given[ready], part = next(waiting)
                        ready.send(part)

    def fit(
        self,
        train: Callable[[], ResultT],
        *,
        folder: Path,  # noqa: ARG002
        processes: int = 1,  # noqa: ARG002
        cuda: bool = False,  # noqa: ARG002
    ) -> ResultT:
        """See `Engine`."""
        return train()


@dataclass(frozen=True, slots=True)
class RayEngine:
    """Tasks on a Ray cluster, each with as many CPUs as this process has threads; what dies is done again."""

    address: str = "auto"
    """Of an existing cluster; `auto` is the one that this machine belongs to."""

    @property
    def at_once(self) -> int:
        """
        Raises:
            ValueError: no Ray, no cluster, or no machine in it with so many CPUs.
        """
        from training.ray_tasks import at_once

        return at_once(self.address)

    def each(
        self, make: Callable[[], Callable[[PartT], ResultT]], parts: Iterable[PartT]
    ) -> Iterator[tuple[int, ResultT]]:
        """See `Engine`.

        Raises:
            ValueError, RuntimeError: as there; as `at_once`.
        """
        from training.ray_tasks import each

        return each(self.address, make, parts)

    def fit(self, train: Callable[[], ResultT], *, folder: Path, processes: int = 1, cuda: bool = False) -> ResultT:
        """See `Engine`.

        Raises:
            ValueError, RuntimeError: as there; as `at_once`; several processes on GPUs.
        """
        from training.ray_tasks import fit

        return fit(self.address, train, folder=folder, processes=processes, cuda=cuda)


HERE = LocalEngine()


def in_order(engine: Engine, make: Callable[[], Callable[[PartT], ResultT]], parts: Iterable[PartT]) -> list[ResultT]:
    """The results of `Engine.each` in the order of the parts."""
    return [result for _, result in sorted(engine.each(make, parts), key=lambda made: made[0])]


def answer(work: Callable[[], ResultT]) -> tuple[ResultT | None, str, str]:
    """What work returned, what it refused, or the traceback of what broke in it: what goes from process to process."""
    try:
        return work(), "", ""
    except _REFUSALS as error:
        return None, str(error) or repr(error), ""
    except Exception:
        return None, "", traceback.format_exc()


def answered(told: tuple[Any, str, str]) -> Any:
    """What `answer` told of.

    Raises:
        ValueError: what was refused.
        RuntimeError: what broke.
    """
    result, refused, broken = told
    if refused:
        raise ValueError(refused)
    if broken:
        raise RuntimeError(broken)
    return result


def _serve(asked: Connection, make: Callable[[], Callable[[Any], Any]], threads: int) -> None:
    """One process: answers until whoever asks is gone. Ctrl-C is for the one that asks."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    made = answer(make)
    with suppress(EOFError, OSError):
        while True:
            part = asked.recv()
            asked.send(made if made[0] is None else answer(partial(made[0], part)))


def _received(ready: Connection) -> Any:
    try:
        return answered(ready.recv())
    except EOFError:
        raise RuntimeError("a process was killed; run it again, and it goes on where it was") from None


def _end(process: multiprocessing.process.BaseProcess, ours: Connection) -> None:
    ours.close()
    process.terminate()
    process.join()
