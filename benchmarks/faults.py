"""What callers notice of faults: real servers are swapped, damaged, stopped, killed, flooded and worn.

`python -m benchmarks.faults [--row N ...] [--full]`. Rows are those of the table in docs/reliability.md; short forms
of all of them are among the tests, long forms are here. A row ends after `_ROW_S` at the latest, with what it has
measured until then; `--full` does all that the targets speak of, however long that takes. Generations are
`benchmarks.swap`'s: models of real size that learned nothing. Load and servers share the machine.

Shape letters: N requests.
"""

import argparse
import json
import math
import os
import random
import shutil
import signal
import socket
import statistics
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from itertools import cycle, islice, product
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
import numpy as np
import torch
from grpc_health.v1 import health_pb2

from benchmarks.load import Question, ask_by_h2load, at_their_times, offer_by_h2load, offer_with_restraint
from benchmarks.swap import asking, publish
from candidate_gen.types import HydratedQuery, Query
from index.generations import GenerationStore
from index.types import Hits
from protos.impression_pb2 import Degraded
from protos.recommender_pb2 import Context, RecommendRequest
from ranking.types import Scored
from serving.breaker import Watch
from serving.client import CallFailed, CascadeClient, Event
from serving.fan_out import FanOut
from serving.generation import Generation
from serving.pipeline import RANKER, Pipeline
from training.log.impression_log import read_impressions, read_outcomes
from training.server_process import server_process

_LABELS = ("a", "b", "c")
_DEADLINE_S = 0.2
_ROW_S = 150.0
_SETTINGS = bytes(3) + b"\x04" + bytes(5)
_PING = b"\x00\x00\x08\x06" + bytes(5) + b"flooding"
"""Frames of HTTP/2."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the table."""

    row: int
    fault: str
    target: str
    measured: str
    held: bool


@dataclass(frozen=True, slots=True)
class Site:
    """A store of three generations, and how much is to be done."""

    folder: Path
    store: GenerationStore
    published: dict[str, str]
    items: int
    full: bool
    ends_s: float
    """`time.monotonic` at which a row stops where it is."""
    tell: Callable[[str], None]

    def many(self, short: int, full: int) -> int:
        return full if self.full else short

    @property
    def over(self) -> bool:
        return time.monotonic() > self.ends_s

    @contextmanager
    def server(self, name: str = "one", *overrides: str) -> Iterator[tuple[str, CascadeClient, int]]:
        """Where it listens, a client with its admin port, and its process id. Its log is `log(name)`."""
        folder = self.folder / name
        folder.mkdir(exist_ok=True)
        (folder / "server.json").unlink(missing_ok=True)  # of one that was killed
        given = [f"generations={self.store.root}", f"log={self.log(name)}", "redis=none", *overrides]
        with (
            server_process(folder, given) as (target, admin_target),
            CascadeClient(target, admin_target=admin_target, deadline_s=30.0) as client,
        ):
            yield target, client, int(json.loads((folder / "server.json").read_text())["pid"])

    def log(self, name: str) -> Path:
        return self.folder / name / "log"


def swap(site: Site) -> Iterator[Finding]:
    with site.server() as (target, client, _), asking(target, site.published, site.items) as load:
        time.sleep(3)
        steady, swaps = len(load), 0
        turns = cycle([site.published["b"], site.published["a"]])
        while not site.over and (swaps < site.many(50, 500) or len(load) < site.many(5000, 100_000)):
            client.activate(next(turns))
            swaps += 1
            time.sleep(0.05)
            site.tell(f"{swaps} swaps, {len(load):,} requests")
        taken_s = np.array([each.taken_s for each in load[len(load) // 100 :]])
        p99_s = [float(np.quantile(part, 0.99)) for part in (taken_s[:steady], taken_s[steady:])]
    faults = Counter(each.fault for each in load)
    measured = f"{len(load):,} requests x {swaps} swaps: {faults['failed']} failed, {faults['mixed']} mixed, "
    measured += f"{faults['degraded']} degraded, p99 {p99_s[1] / p99_s[0]:.2f} x steady"
    held = not faults["failed"] + faults["mixed"] and p99_s[1] <= 2 * p99_s[0]
    yield Finding(1, "hot swap under load", "0 failed, 0 mixed, p99 <= 2 x steady", measured, held)


def damage(site: Site) -> Iterator[Finding]:
    chance, times = random.Random(0), site.many(200, 10_000)
    folder = site.store.folder(site.published["c"])
    paths = [each for each in sorted(folder.rglob("*")) if each.is_file() and each.stat().st_size]
    codes: Counter[str] = Counter()
    with site.server() as (_, client, _):
        serving = client.status().generation
        for turn in range(times):
            path = chance.choice(paths)
            at, bit = chance.randrange(path.stat().st_size), 1 << chance.randrange(8)
            with flipped(path, at, bit):
                try:
                    client.activate(site.published["c"], expected=serving)
                    codes["OK"] += 1
                except CallFailed as error:
                    codes[error.code] += 1
            codes["another serves"] += client.recommend("u1", size=3).generation != serving
            site.tell(f"{turn + 1} flips")
            if site.over:
                times = turn + 1
                break
        ready = client.ready()
    refused = codes["FAILED_PRECONDITION"]
    measured = (
        f"{times:,} flips: {refused:,} refused, {times - refused} served, health {'SERVING' if ready else 'lost'}"
    )
    held = refused == times and not codes["another serves"] and ready
    yield Finding(2, "flipped byte in a generation", "0 served, old one serves", measured, held)


@contextmanager
def flipped(path: Path, at: int, bit: int) -> Iterator[None]:
    """A file with one bit changed for as long as the block lasts."""

    def flip() -> None:
        with path.open("r+b") as file:
            file.seek(at)
            (byte,) = file.read(1)
            file.seek(at)
            file.write(bytes([byte ^ bit]))

    flip()
    try:
        yield
    finally:
        flip()


def roll_back(site: Site) -> Iterator[Finding]:
    taken_s: list[float] = []
    before_mb, cycles = 0.0, site.many(30, 100)
    with site.server() as (target, client, pid), asking(target, site.published, site.items) as load:
        for turn in range(cycles):
            client.activate(site.published["b" if client.status().generation == site.published["a"] else "a"])
            started = time.perf_counter()
            client.rollback()
            taken_s.append(time.perf_counter() - started)
            before_mb = resident_mb(pid) if turn <= cycles // 5 else before_mb
            site.tell(f"{turn + 1} cycles")
            if site.over:
                break
        growth = resident_mb(pid) / before_mb - 1
    failed = sum(bool(each.fault) for each in load)
    measured = f"{len(taken_s)} cycles: median {statistics.median(taken_s):.2f} s, at most {max(taken_s):.2f} s, "
    measured += f"{failed} of {len(load):,} requests failed, RSS {100 * growth:+.1f}%"
    held = max(taken_s) <= 1 and not failed and growth < 0.05
    yield Finding(3, "roll back", "<= 1 s, 0 failed, RSS < 5%", measured, held)


def roll(site: Site) -> Iterator[Finding]:
    ports, rolls = [free_port(), free_port()], site.many(10, 50)
    target = f"ipv4:{','.join(f'127.0.0.1:{port}' for port in ports)}"
    replicas = [ExitStack(), ExitStack()]

    def start(number: int) -> None:
        replicas[number].enter_context(site.server(f"replica{number}", f"port={ports[number]}"))

    for number in (0, 1):
        start(number)
    with writing(target) as load:
        for turn in range(rolls):
            replicas[turn % 2].close()
            start(turn % 2)
            time.sleep(1)
            site.tell(f"{turn + 1} rolls, {len(load.answered):,} requests")
            if site.over:
                rolls = turn + 1
                break
    for each in replicas:
        each.close()
    measured = f"{rolls} rolls, {len(load.answered):,} requests, {len(load.failed)} failed{said_of(load.failed)}"
    yield Finding(4, "rolling restart of 2 replicas", "0 failed", measured, not load.failed)


def kill(site: Site) -> Iterator[Finding]:
    ports, kills, chance = [free_port(), free_port()], site.many(10, 100), random.Random(0)
    target = f"ipv4:{','.join(f'127.0.0.1:{port}' for port in ports)}"
    names, ready_s = ("killed0", "killed1"), []
    with ExitStack() as stack:
        replicas = [stack.enter_context(ExitStack()) for _ in names]
        pids = [
            replicas[number].enter_context(site.server(name, f"port={ports[number]}"))[2]
            for number, name in enumerate(names)
        ]
        with writing(target) as load:
            for turn in range(kills):
                time.sleep(chance.uniform(0.1, 1.0))
                os.kill(pids[turn % 2], signal.SIGKILL)
                replicas[turn % 2].close()
                started = time.perf_counter()
                server = site.server(names[turn % 2], f"port={ports[turn % 2]}")
                pids[turn % 2] = replicas[turn % 2].enter_context(server)[2]
                ready_s.append(time.perf_counter() - started)
                site.tell(f"{turn + 1} kills, {len(load.acknowledged):,} events")
                if site.over:
                    kills = turn + 1
                    break
    stored = [[each.event_id for each in read_outcomes(site.log(name))] for name in names]
    shown = {each.request_id for name in names for each in read_impressions(site.log(name))}
    lost = len(set(load.acknowledged) - set(stored[0]) - set(stored[1]))
    unlogged = len(set(load.answered) - shown)
    twice = sum(len(each) - len(set(each)) for each in stored)
    measured = f"{kills} kills: of {len(load.acknowledged):,} acknowledged events {lost} lost, {twice} twice in a log; "
    measured += f"{unlogged} of {len(load.answered):,} slates without an impression (durability group); "
    measured += f"{len(load.failed)} calls failed; ready again {statistics.median(ready_s):.1f} s"
    target_ = "0 acknowledged lost, 0 duplicated, ready <= 5 s"
    yield Finding(5, "kill -9", target_, measured, not lost + twice and statistics.median(ready_s) <= 5)


@dataclass(frozen=True, slots=True)
class Written:
    """What callers were told."""

    answered: list[str] = field(default_factory=list)
    acknowledged: list[str] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)


def said_of(failed: Sequence[str]) -> str:
    """The kinds of failures, most frequent first."""
    kinds = Counter(each.partition(";")[0] for each in failed)
    return f" ({', '.join(f'{count} x {kind}' for kind, count in kinds.most_common(3))})" if kinds else ""


@contextmanager
def writing(target: str, *, clients: int = 2) -> Iterator[Written]:
    """Clients that ask for a slate and write an event, again and again."""
    told, done = Written(), threading.Event()

    def work(number: int) -> None:
        with CascadeClient(target, deadline_s=10.0) as client:
            turn = 0
            while not done.is_set():
                turn += 1
                name = f"{number}-{turn}-{time.time_ns()}"
                try:
                    told.answered.append(client.recommend("u1", size=5, request_id=f"r{name}").request_id)
                    now_ms = time.time_ns() // 1_000_000
                    event = Event("i1", "click", now_ms, user_id="u1", event_id=f"e{name}")
                    told.acknowledged.extend(each.event_id for each in client.write_events([event]))
                except CallFailed as error:
                    told.failed.append(str(error))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(clients)]
    for each in threads:
        each.start()
    try:
        yield told
    finally:
        done.set()
        for each in threads:
            each.join()


def short_deadlines(site: Site) -> Iterator[Finding]:
    calls, chance = site.many(3000, 100_000), random.Random(0)
    with site.server() as (target, client, _), Load(target) as load:
        for _ in range(0, calls, 100):
            load.send([("", wire())] * 100, per_s=1000, deadline_s=chance.uniform(0.001, 0.05))
            site.tell(f"{sum(load.codes.values()):,} calls")
        time.sleep(0.5)
        left = client.status().in_flight
    counted = ", ".join(f"{count:,} {code}" for (_, code), count in load.codes.most_common())
    allowed = {"OK", "DEADLINE_EXCEEDED", "RESOURCE_EXHAUSTED"}
    held = not left and {code for _, code in load.codes} <= allowed
    yield Finding(10, "deadlines of 1-50 ms", "0 left at work", f"{counted}; {left} left at work", held)


class Load:
    """Calls sent at their times whatever becomes of those before."""

    def __init__(self, target: str) -> None:
        self.codes: Counter[tuple[str, str]] = Counter()
        """By the kind of the call, and its status."""
        self.taken_s: list[float] = []
        """Of those that were answered."""
        self._channel = grpc.insecure_channel(target)
        self._call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(
            "/cascade.v1.Recommender/Recommend"
        )
        self._open = 0
        self._changed = threading.Condition()

    def __enter__(self) -> "Load":
        return self

    def __exit__(self, *_: object) -> None:
        self._channel.close()

    def send(self, kinds: Sequence[tuple[str, bytes]], *, per_s: float, deadline_s: float = _DEADLINE_S) -> None:
        """One call of each, evenly spaced, and wait for the last."""
        for number in at_their_times(number / per_s for number in range(len(kinds))):
            name, asked = kinds[number]
            with self._changed:
                self._open += 1
            future = self._call.future(asked, timeout=deadline_s)
            future.add_done_callback(partial(self._note, name, time.monotonic()))
        with self._changed:
            self._changed.wait_for(lambda: not self._open, 60)

    def _note(self, name: str, sent: float, done: Any) -> None:
        with self._changed:
            self.codes[name, done.code().name] += 1
            if done.code() is grpc.StatusCode.OK:
                self.taken_s.append(time.monotonic() - sent)
            self._open -= 1
            self._changed.notify()

    def share(self, name: str, code: str = "OK") -> float:
        return self.codes[name, code] / sum(count for (each, _), count in self.codes.items() if each == name)


def wire(tenant: str = "", *, size: int = 100) -> bytes:
    context = Context(user_id="u1", tenant=tenant)
    return RecommendRequest(context=context, page_size=size, columns=True).SerializeToString()


def capacity(target: str, *, for_s: float) -> float:
    """Slates a second that callers get who ask again as soon as they are answered."""
    with grpc.insecure_channel(target) as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/cascade.v1.Recommender/Recommend")
        end = time.monotonic() + for_s

        def ask(_: int) -> int:
            answered = 0
            while time.monotonic() < end:
                call(wire(), timeout=10)
                answered += 1
            return answered

        with ThreadPoolExecutor(4) as pool:
            return sum(pool.map(ask, range(4))) / for_s


def overload(site: Site) -> Iterator[Finding]:
    """The server has one core, the load another, where there are two. Goodput is by the server's count of OK, less
    every call that its caller saw end after the deadline, whatever was said. The capacity is taken before and after
    each load, by callers who ask again as soon as they are answered."""
    if not shutil.which("h2load"):
        yield Finding(14, "overload", "goodput >= 90%", "not measured: it needs h2load", held=False)
        return
    for_s = site.many(4, 20)
    question = Question(site.folder, [f"u{number}" for number in range(100, 1000)], size=100, columns=True)
    with site.server() as (target, client, pid), apart(pid):

        def capacity_per_s() -> float:
            return ask_by_h2load(target, question, site.many(1000, 3000), connections=16).rate

        before_per_s, before_mb = min(capacity_per_s(), capacity_per_s()), resident_mb(pid)
        for times, ours in product((2, 5, 10), (False, True)):
            served = client.status().served
            rate, asked = times * before_per_s, int(times * before_per_s * for_s)
            offer = offer_with_restraint if ours else offer_by_h2load
            load = offer(target, question, asked, rate=rate, deadline_s=_DEADLINE_S)
            late = int((load.latency_s_N > _DEADLINE_S).sum())
            answered = client.status().served - served - 1
            after_per_s = capacity_per_s()
            carries = (before_per_s + after_per_s) / 2
            goodput = max(answered - late, 0) / load.seconds / carries
            p99_ms = 1000 * float(np.quantile(load.latency_s_N, 0.99))
            measured = f"capacity {carries:.0f}/s, offered {asked / load.seconds / carries:.1f}x: goodput "
            measured += f"{100 * goodput:.0f}% ({answered:,} answered, {late:,} late), p99 {p99_ms:.0f} of "
            measured += f"{1000 * _DEADLINE_S:.0f} ms, RSS {resident_mb(pid) - before_mb:+.0f} MB"
            name = f"overload {times}x, callers {'as ours' if ours else 'without restraint'}"
            yield Finding(14, name, "goodput >= 90%", measured, goodput >= 0.9)
            before_per_s = after_per_s


@contextmanager
def apart(pid: int) -> Iterator[None]:
    """A process has one core, this one and what it starts the others, where there are two or more."""
    ours = os.sched_getaffinity(0)
    theirs, *others = sorted(ours)
    if others:
        for thread in Path(f"/proc/{pid}/task").iterdir():
            os.sched_setaffinity(int(thread.name), {theirs})
        os.sched_setaffinity(0, others)
    try:
        yield
    finally:
        os.sched_setaffinity(0, ours)


def flood(site: Site) -> Iterator[Finding]:
    with site.server() as (target, _, _):
        capacity(target, for_s=2)
        carries = capacity(target, for_s=3)
        kinds = cycle([("victim", wire("victim")), *[("flood", wire("flood"))] * 10])
        with Load(target) as load:
            load.send([*islice(kinds, int(2 * carries * site.many(4, 30)))], per_s=2 * carries, deadline_s=1.0)
    measured = f"10:1 at 2 x capacity: victim {100 * load.share('victim'):.2f}%, flood {100 * load.share('flood'):.0f}%"
    yield Finding(15, "one tenant floods", "victim >= 99.9%", measured, load.share("victim") >= 0.999)


@dataclass
class Faulty:
    """A source or a ranker that does what `what` says, else what `whole` does."""

    name: str
    whole: Any
    what: str = ""
    asked: int = 0
    gate: threading.Event = field(default_factory=threading.Event)

    def retrieve(self, hydrated: HydratedQuery, k: int) -> Hits:
        self._misbehave()
        hits: Hits = self.whole.retrieve(hydrated, k)
        return replace(hits, score_K=hits.score_K * np.float32(np.nan)) if self.what == "nonsense" else hits

    def score(self, hydrated: HydratedQuery, candidates: Any) -> Scored:
        self._misbehave()
        scored: Scored = self.whole.score(hydrated, candidates)
        nonsense = self.what == "nonsense"
        return replace(scored, probability_NA=scored.probability_NA * np.float32(np.nan)) if nonsense else scored

    def _misbehave(self) -> None:
        self.asked += 1
        if self.what == "raises":
            raise OSError("gone")
        if self.what == "slow":
            time.sleep(2 * _DEADLINE_S)
        if self.what == "hangs":
            self.gate.wait(60)


def faulty_stages(site: Site) -> Iterator[Finding]:
    whole = Generation.load(site.store, site.published["a"]).pipeline
    for row, part in ((11, "ann"), (12, RANKER)):
        for what in ("raises", "slow", "hangs", "nonsense")[: 4 if row == 11 else None]:
            if (part, what) != (RANKER, "hangs"):
                yield _faulty(site, whole, row, part, what)


def _faulty(site: Site, whole: Pipeline, row: int, part: str, what: str) -> Finding:
    watched = {name: Watch() for name in whole.watched}
    if part == RANKER:
        faulty = Faulty(part, whole.scorer, what)
        pipeline = replace(whole, scorer=faulty, watched=watched)
    else:
        faulty = Faulty(part, next(source for source, _ in whole.sources if source.name == part), what)
        sources = [(faulty if source.name == part else source, quota) for source, quota in whole.sources]
        pipeline = replace(whole, sources=sources, fan_out=FanOut([part]), watched=watched, patience_s=0.1)
    asked = Query("r", time.time_ns() // 1_000_000, "home", 20, user_id="u1")
    pipeline.run(asked)  # what is compiled at first use is
    late, queries, opened = 0, site.many(1500, 10_000), 0
    for number in range(queries):
        started = time.monotonic()
        answer = pipeline.run(replace(asked, request_id=f"r{number}"), budget_s=_DEADLINE_S)
        late += time.monotonic() - started > _DEADLINE_S
        if not np.isfinite(answer.slate.propensity_K).all() or not len(answer.slate):
            return Finding(row, f"{part} {what}", "OK degraded", "an answer that is none", held=False)
        opened = opened or (number if not watched[part].closed else 0)
        site.tell(f"{part} {what}: {number + 1}")
    faulty.what, started = "", time.monotonic()
    faulty.gate.set()
    bits = Degraded.DEGRADED_RANKER_SKIPPED | Degraded.DEGRADED_SOURCE_ERROR | Degraded.DEGRADED_SOURCE_TIMEOUT
    while pipeline.run(asked, budget_s=_DEADLINE_S).trace.degraded & bits:
        time.sleep(0.01)
    back_s, on_time = time.monotonic() - started, 1 - late / queries
    measured = f"{100 * on_time:.2f}% of {queries:,} in time, opened after {opened}, back after {back_s:.1f} s"
    held = on_time >= 0.999 and opened <= 20 and back_s <= 5
    return Finding(row, f"{part} {what}", "99.9% in time, opens <= 20 calls, back <= 5 s", measured, held)


def watch_health(site: Site) -> Iterator[Finding]:
    seen: list[float] = []
    with site.server() as (target, _, pid), grpc.insecure_channel(target) as channel:
        stream: grpc.UnaryStreamMultiCallable[bytes, bytes] = channel.unary_stream("/grpc.health.v1.Health/Watch")
        updates = stream(health_pb2.HealthCheckRequest().SerializeToString(), timeout=30)
        next(iter(updates))
        os.kill(pid, signal.SIGTERM)
        seen.append(time.monotonic())
        next(iter(updates))
        seen.append(time.monotonic())
    taken_ms = 1000 * (seen[1] - seen[0])
    yield Finding(29, "health is pushed on SIGTERM", "<= 100 ms", f"{taken_ms:.0f} ms", taken_ms <= 100)


def hostile(site: Site) -> Iterator[Finding]:
    done = threading.Event()

    def pings(port: int) -> None:
        while not done.is_set():
            try:
                with socket.create_connection(("127.0.0.1", port), timeout=5) as flood:
                    flood.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + _SETTINGS)
                    for _ in range(1000):
                        flood.sendall(_PING)
            except OSError:
                time.sleep(0.01)  # it was thrown out, and comes again

    with site.server() as (target, _, pid), ExitStack() as stack:
        port = int(target.rsplit(":", 1)[1])
        per_s, seconds = 100, site.many(4, 20)
        p99_s, before = [], resident_mb(pid)
        for turn in ("quiet", "flooded"):
            if turn == "flooded":
                for _ in range(300):
                    stack.enter_context(socket.create_connection(("127.0.0.1", port)))
                threading.Thread(target=pings, args=(port,), daemon=True).start()
            with Load(target) as load:
                load.send([("", wire(size=20))] * per_s * seconds, per_s=per_s, deadline_s=5.0)
            p99_s.append(float(np.quantile(load.taken_s, 0.99)))
        done.set()
        growth = resident_mb(pid) - before
    ratio = p99_s[1] / p99_s[0]
    measured = f"300 idle connections and a flood of pings: others' p99 {ratio:.2f} x, RSS {growth:+.0f} MB"
    yield Finding(30, "hostile connections", "others' p99 <= 2 x", measured, ratio <= 2)


def soak(site: Site) -> Iterator[Finding]:
    samples: list[tuple[float, float]] = []
    with site.server() as (target, _, pid), writing(target) as load:
        seconds = site.many(20, 180)
        time.sleep(min(30, seconds / 3))
        held, started = (threads_of(pid), files_of(pid)), time.monotonic()
        while time.monotonic() - started < seconds:
            time.sleep(1)
            samples.append(((time.monotonic() - started) / 60, resident_mb(pid)))
            site.tell(f"{len(load.answered):,} requests, {samples[-1][1]:.0f} MB")
        grown = threads_of(pid) - held[0], files_of(pid) - held[1]
    minute_N, resident_N = np.array(samples).T
    slope = float(np.polyfit(minute_N, resident_N, 1)[0])
    measured = f"{seconds} s, {len(load.answered):,} slates and events: RSS {slope:+.2f} MB/min, "
    measured += f"threads {grown[0]:+d}, files {grown[1]:+d}, {len(load.failed)} failed"
    flat = slope < 1 and max(grown) <= 2 and not load.failed
    yield Finding(32, "soak", "< 1 MB/min, threads and files flat", measured, flat)


def resident_mb(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def threads_of(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/task").iterdir()))


def files_of(pid: int) -> int:
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


ROWS: dict[tuple[int, ...], Callable[[Site], Iterator[Finding]]] = {
    (1,): swap,
    (2,): damage,
    (3,): roll_back,
    (4,): roll,
    (5,): kill,
    (10,): short_deadlines,
    (11, 12): faulty_stages,
    (14,): overload,
    (15,): flood,
    (29,): watch_health,
    (30,): hostile,
    (32,): soak,
}


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.faults", description=__doc__)
    parser.add_argument("--full", action="store_true", help="as much as the targets speak of, however long it takes")
    known = sorted(row for rows in ROWS for row in rows)
    parser.add_argument("--row", type=int, action="append", choices=known, help="only this row; may be repeated")
    given = parser.parse_args()
    torch.set_num_threads(1)
    wanted = {rows: measure for rows, measure in ROWS.items() if not given.row or set(rows) & set(given.row)}
    findings: list[Finding] = []
    with TemporaryDirectory(prefix="cascade-faults-") as name:
        store, now_ms = GenerationStore(Path(name) / "generations"), time.time_ns() // 1_000_000
        items = 20_000 if given.full else 2000
        published = {label: publish(store, label, count=items, now_ms=now_ms) for label in _LABELS}
        for turn, (rows, measure) in enumerate(wanted.items()):
            store.activate(published["a"], time_ms=now_ms)
            ends_s = math.inf if given.full else time.monotonic() + _ROW_S
            tell = partial(_progress, turn / len(wanted), rows[0])
            site = Site(Path(name), store, published, items, given.full, ends_s, tell)
            for finding in measure(site):
                findings.append(finding)
                held = "held" if finding.held else "NOT HELD"
                sys.stderr.write("\r\x1b[K")
                print(f"{finding.row:>3}  {finding.fault}: {finding.measured} ({finding.target}: {held})", flush=True)
    print(json.dumps({"benchmark": "faults", "full": given.full, "findings": [asdict(each) for each in findings]}))
    return 0


def _progress(share: float, row: int, what: str) -> None:
    if sys.stderr.isatty():
        filled = round(20 * share)
        sys.stderr.write(f"\r\x1b[K[{'#' * filled}{'.' * (20 - filled)}] row {row}: {what}")
        sys.stderr.flush()


if __name__ == "__main__":
    sys.exit(main())
