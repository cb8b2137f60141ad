"""Load from outside a server: requests by h2load, or where it is not installed by a client in Python, said so.

h2load sends one file as the body of every request and reads it anew for each. While it runs the user in that file is
changed in place, a thousand times a second, so that hardly two requests are of one user. What h2load knows of an
answer is its HTTP status and its bytes; what it says inside is for the server's own counters and for sampled calls.

Shape letters: N requests.
"""

import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from mmap import mmap
from pathlib import Path
from queue import SimpleQueue

import grpc
import numpy as np
from numpy.typing import NDArray

from protos.recommender_pb2 import Context, RecommendRequest
from serving.client.attempts import OVERLOAD
from serving.client.channels import failed
from serving.client.restraint import AdaptiveThrottle

_METHOD = "/cascade.v1.Recommender/Recommend"
_DEADLINE_S = 10
_EVERY_S = 0.001
_FRAME_HEAD = 5
"""Bytes before a gRPC message: not compressed, and its length."""
_MOST_AT_ONCE = 512
"""Of an open loop."""


@dataclass(frozen=True, slots=True)
class Load:
    """What a run saw."""

    latency_s_N: NDArray[np.float64]
    """Of the answered ones, from being sent to the last byte of the answer."""
    seconds: float
    """From the first request to the last answer."""
    unanswered: int
    """Without an answer, or with an HTTP status (from Python: a gRPC status) other than OK."""
    answer_bytes: float
    """Of a body, on average."""

    @property
    def rate(self) -> float:
        """Answers a second."""
        return len(self.latency_s_N) / self.seconds


class Question:
    """A request for a slate, in a file whose user changes while somebody is `asking`.

    Args:
        users: ids of equal length.
        columns: whether the answer is to come in columns.
    """

    def __init__(self, folder: Path, users: Sequence[str], *, size: int, columns: bool) -> None:
        self.size = size
        self.columns = columns
        self._users = [user.encode() for user in users]
        wire = self.wire(0)
        self.path = folder / f"question-{size}-{'columns' if columns else 'items'}"
        self.path.write_bytes(b"\0" + len(wire).to_bytes(_FRAME_HEAD - 1, "big") + wire)
        self._at = wire.index(self._users[0]) + _FRAME_HEAD

    def wire(self, number: int) -> bytes:
        """The request of one user after the other."""
        return self.wire_of(self.user(number), size=self.size, columns=self.columns)

    def user(self, number: int) -> str:
        return self._users[number % len(self._users)].decode()

    @staticmethod
    def wire_of(user_id: str, *, size: int, columns: bool) -> bytes:
        request = RecommendRequest(context=Context(user_id=user_id), page_size=size, columns=columns)
        return request.SerializeToString()

    @contextmanager
    def asking(self) -> Iterator[None]:
        done = threading.Event()

        def change() -> None:
            random = np.random.default_rng(0)
            with self.path.open("r+b") as file, mmap(file.fileno(), 0) as body:
                while not done.wait(_EVERY_S):
                    user = self._users[random.integers(len(self._users))]
                    body[self._at : self._at + len(user)] = user

        changing = threading.Thread(target=change)
        changing.start()
        try:
            yield
        finally:
            done.set()
            changing.join()


Asking = Callable[..., Load]


def generator() -> tuple[str, Asking]:
    """What makes the load, with its name: a function of target, question and number of requests, which are sent over
    `connections` one after the other each, or, where a `rate` a second is given, at random times (Poisson) whether
    others were answered or not."""
    if shutil.which("h2load"):
        return "h2load", ask_by_h2load
    return "a Python client, which is slow itself", ask_by_python


def ask_by_h2load(
    target: str, question: Question, requests: int, *, connections: int = 1, rate: float | None = None
) -> Load:
    uri = f"http://{target}{_METHOD}"
    if rate is None:
        return _by_h2load(question, requests, ["-c", str(connections), "-m", "1", uri])
    script = question.path.with_suffix(".script")
    script.write_text("".join(f"{1000 * at_s:.3f}\t{uri}\n" for at_s in _arrivals(requests, rate)))
    return _by_h2load(question, requests, ["-c", "1", "-m", str(_MOST_AT_ONCE), "--timing-script-file", str(script)])


def offer_by_h2load(
    target: str, question: Question, requests: int, *, rate: float, deadline_s: float, connections: int = 8
) -> Load:
    """So many a second, evenly spaced, whatever becomes of those before. On one connection gRPC has 100 at work at
    most, and what is offered beyond that waits; so there are several."""
    paced = ["-c", str(connections), "-m", str(_MOST_AT_ONCE), "--rps", str(max(1, round(rate / connections)))]
    return _by_h2load(question, requests, [*paced, f"http://{target}{_METHOD}"], deadline_s=deadline_s)


def _by_h2load(question: Question, requests: int, how: Sequence[str], *, deadline_s: float = _DEADLINE_S) -> Load:
    log = question.path.with_suffix(".log")
    log.unlink(missing_ok=True)
    command = ["h2load", "-n", str(requests), "-d", str(question.path), "--log-file", str(log)]
    for header in ("content-type: application/grpc", "te: trailers", f"grpc-timeout: {round(1000 * deadline_s)}m"):
        command += ["-H", header]
    command += how
    with question.asking():
        run = subprocess.run(command, capture_output=True, text=True, check=True)
    seen_N3 = np.loadtxt(log, np.int64, ndmin=2)
    start_us_N, status_N, taken_us_N = seen_N3.T
    body = re.search(r"\((\d+)\) data", run.stdout)
    return Load(
        latency_s_N=taken_us_N[status_N == 200] / 1e6,
        seconds=float((start_us_N + taken_us_N).max() - start_us_N.min()) / 1e6,
        unanswered=requests - int((status_N == 200).sum()),
        answer_bytes=int(body.group(1)) / requests if body else 0.0,
    )


def ask_by_python(
    target: str, question: Question, requests: int, *, connections: int = 1, rate: float | None = None
) -> Load:
    arrivals_s = None if rate is None else _arrivals(requests, rate)
    taken_s: list[float] = []
    answered: list[int] = []
    threads = connections if rate is None else 64
    channels = [
        grpc.insecure_channel(target, options=(("grpc.use_local_subchannel_pool", 1),)) for _ in range(connections)
    ]
    methods: list[grpc.UnaryUnaryMultiCallable[bytes, bytes]] = [channel.unary_unary(_METHOD) for channel in channels]
    numbers = iter(range(requests))
    started_s = time.perf_counter()

    def ask(number: int) -> None:
        sent_s = time.perf_counter()
        try:
            answered.append(len(methods[number % connections](question.wire(number), timeout=_DEADLINE_S)))
        except grpc.RpcError:
            return
        taken_s.append(time.perf_counter() - sent_s)

    def ask_on(_: int) -> None:
        for number in numbers:
            ask(number)

    with ThreadPoolExecutor(threads) as pool:
        if arrivals_s is None:
            list(pool.map(ask_on, range(threads)))
        else:
            for number in at_their_times(arrivals_s):
                pool.submit(ask, number)
    seconds = time.perf_counter() - started_s
    for channel in channels:
        channel.close()
    return Load(np.array(taken_s), seconds, requests - len(taken_s), sum(answered) / max(len(answered), 1))


def offer_with_restraint(
    target: str, question: Question, requests: int, *, rate: float, deadline_s: float, clients: int = 4
) -> Load:
    """The same by callers that hold back as our client does. They do not read the answers: at the loads that are
    offered here a whole client in Python is short of its own core before the server is."""
    throttles = [AdaptiveThrottle() for _ in range(clients)]
    ended: SimpleQueue[tuple[float, str]] = SimpleQueue()
    options = (("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0))
    with ExitStack() as stack:
        channels = [stack.enter_context(grpc.insecure_channel(target, options)) for _ in range(clients)]
        methods: list[grpc.UnaryUnaryMultiCallable[bytes, bytes]] = [each.unary_unary(_METHOD) for each in channels]

        def end(throttle: AdaptiveThrottle, sent_s: float, call: "grpc.Future[bytes]") -> None:
            code = failed(call.code(), None, None).code  # type: ignore[attr-defined]
            throttle.settled(refused=code in OVERLOAD)
            ended.put((time.perf_counter() - sent_s, code))

        started_s, sent = time.perf_counter(), 0
        for number in at_their_times(number / rate for number in range(requests)):
            throttle = throttles[number % clients]
            if throttle.admit():
                sent += 1
                call = methods[number % clients].future(question.wire(number), timeout=deadline_s)
                call.add_done_callback(partial(end, throttle, time.perf_counter()))
        taken = [ended.get(timeout=60) for _ in range(sent)]
        seconds = time.perf_counter() - started_s
    taken_s = [taken_s for taken_s, code in taken if code == "OK"]
    return Load(np.array(taken_s), seconds, requests - len(taken_s), 0.0)


def at_their_times(arrivals_s: Iterable[float]) -> Iterator[int]:
    """The number of each arrival when it is due, in seconds from now; up to a millisecond early."""
    started_s = time.perf_counter()
    for number, at_s in enumerate(arrivals_s):
        wait_s = started_s + at_s - time.perf_counter()
        if wait_s > 0.001:
            time.sleep(wait_s)
        yield number


def _arrivals(requests: int, rate: float) -> NDArray[np.float64]:
    return np.cumsum(np.random.default_rng(requests).exponential(1 / rate, requests))
