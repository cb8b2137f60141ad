"""The front door of a machine: one server process, or several on one port and somebody who looks after them.

Each process is a whole server, `serving.server.serve`: it has its own admin port and its own spool of the log, and maps
the files of the generation, so that all share one copy. They listen with SO_REUSEPORT: the kernel gives every new
connection to one of them. The supervisor serves nothing. It forks them while it has no thread, so that they share what
was imported, and holds the writing end of a pipe, the lifeline, whose end they wait for: when it comes, because the
supervisor was told to stop or because it was killed, each of them drains and exits.
"""

import gc
import logging
import multiprocessing
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkProcess

from serving.server import Address, told_in
from serving.server import serve as serve_alone
from serving.settings import ServerSettings

_FORK = multiprocessing.get_context("fork")
_FIRST_BACKOFF_S = 0.25
_MAX_BACKOFF_S = 30.0
_SOUND_S = 60.0
"""A process that lived so long was not broken from the start."""
_LOGGER = logging.getLogger("cascade.serving")


def serve(settings: ServerSettings, *, on_ready: Callable[[Address], None]) -> None:
    """Serve by as many processes as the settings say until SIGTERM or SIGINT, then drain.

    Must be called from the main thread.

    Args:
        on_ready: told where they listen, once all do.

    Raises:
        ValueError: as `serving.server.serve`; nothing serves where one process cannot.
        ChildProcessError: a process did not end as it should have, so that something may be lost.
    """
    if settings.processes == 1:
        serve_alone(settings, on_ready=on_ready)
        return
    with ExitStack() as stack:
        port = stack.enter_context(_reserved(settings.host, settings.port)).getsockname()[1]
        supervisor = Supervisor([_of_process(replace(settings, port=port), i) for i in range(settings.processes)])
        for signal_number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(signal_number, lambda *_: supervisor.ask_to_stop())
        stack.callback(supervisor.stop)
        first, *others = supervisor.start()
        address = replace(first, pid=os.getpid(), other_admin_targets=tuple(each.admin_target for each in others))
        stack.enter_context(told_in(settings.ready_file, address))
        on_ready(address)
        supervisor.look_after()


class Supervisor:
    """Keeps a server process for each of the settings, from `start` until `stop`. Has no thread.

    Args:
        settings: what tells the processes apart is in them.
    """

    def __init__(self, settings: Sequence[ServerSettings]) -> None:
        self._places = [_Place(each) for each in settings]
        self._lifeline, self._held = _FORK.Pipe(duplex=False)

    def start(self) -> list[Address]:
        """Start all; returns where each listens, once all do.

        Raises:
            ValueError: one cannot; `stop` the others.
        """
        gc.freeze()  # pages that the collector never visits stay shared: 45 MB of every process
        for place in self._places:
            self._begin(place)
        return [self._settled(number, place) for number, place in enumerate(self._places)]

    def look_after(self) -> None:
        """Start again what dies, ever later where it keeps dying; returns once `ask_to_stop` was called."""
        while not self._held.closed:
            now_s = time.monotonic()
            for place in self._places:
                if place.process is None and place.again_at_s <= now_s:
                    self._begin(place)
            later_s = [place.again_at_s - now_s for place in self._places if place.process is None]
            running = [place.process.sentinel for place in self._places if place.process is not None]
            wait([self._lifeline, *running], min(later_s, default=None))
            for number, place in enumerate(self._places):
                if place.process is not None and not place.process.is_alive() and not self._held.closed:
                    self._plan_again(number, place)

    def ask_to_stop(self) -> None:
        """Have every process drain, whether it serves already or not. For signal handlers too."""
        self._held.close()

    def stop(self) -> None:
        """Ask, and wait until all have ended.

        Raises:
            ChildProcessError: naming those that failed to end well.
        """
        self.ask_to_stop()
        bad = []
        for number, place in enumerate(self._places):
            if place.process is not None:
                place.process.join()
                if place.process.exitcode not in (0, -signal.SIGTERM):
                    bad.append(f"process {number} {_end(place)}")
        self._lifeline.close()
        if bad and sys.exc_info()[0] is None:
            raise ChildProcessError(", ".join(bad))

    def _begin(self, place: "_Place") -> None:
        place.told, theirs = _FORK.Pipe(duplex=False)
        place.process = _FORK.Process(target=_serve, args=(place.settings, self._lifeline, self._held, theirs))
        place.began_s = time.monotonic()
        place.process.start()
        theirs.close()

    def _settled(self, number: int, place: "_Place") -> Address:
        """Where a process listens; from then on, where those that come after it will."""
        assert place.told is not None
        assert place.process is not None
        try:
            said: Address | str = place.told.recv()
        except EOFError:
            place.process.join()
            said = f"process {number} {_end(place)} before it listened"
        if isinstance(said, str):
            raise ValueError(said)
        place.settings = replace(place.settings, admin_port=int(said.admin_target.rpartition(":")[2]))
        return said

    def _plan_again(self, number: int, place: "_Place") -> None:
        lived_s = time.monotonic() - place.began_s
        place.failures = 0 if lived_s > _SOUND_S else place.failures + 1
        delay_s = min(_FIRST_BACKOFF_S * 2.0 ** max(place.failures - 1, 0), _MAX_BACKOFF_S)
        _LOGGER.error("process %d %s; another is started in %.2g s", number, _end(place), delay_s)
        place.process, place.again_at_s = None, time.monotonic() + delay_s


@dataclass(slots=True)
class _Place:
    """One process after the other."""

    settings: ServerSettings
    process: ForkProcess | None = None
    told: Connection | None = None
    """Gets the address once it listens, and why it ends where it fails."""
    began_s: float = 0.0
    failures: int = 0
    """Processes in a row that died young."""
    again_at_s: float = 0.0


def _end(place: _Place) -> str:
    """How a process ended, with its last words."""
    assert place.process is not None
    assert place.told is not None
    code, words = place.process.exitcode or 0, ""
    with suppress(EOFError):
        while place.told.poll():
            said = place.told.recv()
            words = f": {said}" if isinstance(said, str) else ""
    return f"{f'was killed by signal {-code}' if code < 0 else f'ended with code {code}'}{words}"


def _serve(settings: ServerSettings, lifeline: Connection, held: Connection, told: Connection) -> None:
    """One process."""
    for signal_number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signal_number, signal.SIG_DFL)  # until `serve` listens to them
    held.close()
    threading.Thread(target=_stop_at_the_end, args=(lifeline,), name="lifeline", daemon=True).start()
    try:
        serve_alone(settings, on_ready=told.send)
    except (ValueError, OSError, RuntimeError) as error:
        told.send(str(error) or repr(error))
        sys.exit(2)


def _stop_at_the_end(lifeline: Connection) -> None:
    lifeline.poll(None)  # nothing is ever written
    os.kill(os.getpid(), signal.SIGTERM)


def _of_process(settings: ServerSettings, number: int) -> ServerSettings:
    """What tells one process from the others."""
    return replace(
        settings,
        admin_port=settings.admin_port + number if settings.admin_port else 0,
        metrics_port=settings.metrics_port + number if settings.metrics_port else settings.metrics_port,
        ready_file=None,
    )


def _reserved(host: str, port: int) -> socket.socket:
    """A socket that keeps the port for those who share it. It does not listen, so it is given no connection.

    Raises:
        ValueError: somebody else has the port.
    """
    family, kind, _, _, (name, *_) = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    try:
        with socket.socket(family, kind) as alone:  # shares the port with nobody, so that it notices everybody
            alone.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            alone.bind((name, port))
            chosen = alone.getsockname()[1]
        shared = socket.socket(family, kind)
        shared.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        shared.bind((name, chosen))
    except OSError as error:
        raise ValueError(
            f"port: {port} given, which is taken on {host} ({error.strerror}); allowed: a free port, or 0 to choose one"
        ) from None
    return shared
