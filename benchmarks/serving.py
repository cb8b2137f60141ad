"""Slates from a server with a million items, logged, beside the naive stack of `benchmarks.naive`.

All that answers is on one core, the server and its Redis; the load comes from another: in a closed loop, where each of
so many callers asks as soon as it is answered, and in an open one, at random times whether others were answered or
not. The naive stack is asked in turn with ours. What the generator of the load cannot see, the server's own counters,
its log and sampled answers tell: that every request was answered in full, by every stage, and logged.

The ranker is a network of 256, 128 and 64; in the end a server with the default one, which has crosses, is asked too.

Shape letters: B blocks.
"""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from math import ceil
from pathlib import Path
from tempfile import TemporaryDirectory

import grpc
import numpy as np
import polars as pl
import redis
from google.protobuf.message import Message

from benchmarks.harness import Bench, Figure, main
from benchmarks.large_catalogue import CANDIDATES, LARGE, SMALL, LargeCatalogue, large_catalogue
from benchmarks.load import Asking, Load, Question, generator
from benchmarks.naive import build_index, push_history, redis_of_items
from candidate_gen.features import FeatureTable
from candidate_gen.items import Items
from candidate_gen.types import Query
from index.generations import GenerationStore
from policy.selector import SlatePolicy
from protos.admin_pb2 import (
    Arm,
    Experiment,
    GetStatusResponse,
    GetTrafficResponse,
    SetTrafficRequest,
    SetTrafficResponse,
    TrafficMode,
)
from protos.recommender_pb2 import RecommendResponse
from serving.generation import Generation
from serving.state.local_redis import LocalRedis
from serving.state.user_state import UserState, Wanted
from training.log.impression_log import read_impressions
from training.materialise import materialise
from training.server_process import server_process

BUDGET_MS = {
    "state": 0.10,
    "hydrate": 0.10,
    "retrieve": 0.30,
    "filter": 0.02,
    "score": 0.30,
    "select": 0.10,
    "record": 0.08,
    "log": 0.03,
    "encode": 0.05,
}
"""What each stage may take of the 1.18 ms that 850 requests a second leave; the wire has the rest."""
_CALLERS = (1, 8, 32)
_SIZES = (20, 100)
_LOADS = (0.25, 0.5, 0.75)
"""Of an open loop, as shares of what a closed one gets answered."""
_SAMPLED = 50
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")


@dataclass(frozen=True, slots=True)
class Plan:
    """How much is asked."""

    blocks: int
    """Of ours and of the naive stack in turn."""
    block_s: float
    warm: int
    """Requests that are not timed."""


FULL = Plan(blocks=7, block_s=5.0, warm=500)
QUICK = Plan(blocks=2, block_s=0.3, warm=20)


class Asked:
    """A server, what it was asked, and what of that went wrong.

    Args:
        admin_targets: of its processes, where it has such ports.
    """

    def __init__(self, target: str, asking: Asking, admin_targets: Sequence[str] = ()) -> None:
        self.target = target
        self.sent = 0
        self._asking = asking
        self._admin_targets = admin_targets
        self._unanswered = 0
        self._thin = 0

    def ask(self, question: Question, requests: int, *, connections: int = 1, rate: float | None = None) -> Load:
        load = self._asking(self.target, question, requests, connections=connections, rate=rate)
        self.sent += requests
        self._unanswered += load.unanswered
        self._thin += load.answer_bytes < 16 * question.size  # an id and a propensity for each item
        return load

    def statuses(self) -> list[GetStatusResponse]:
        """Of its processes."""
        return [GetStatusResponse.FromString(_admin(each, "GetStatus")) for each in self._admin_targets]

    @contextmanager
    def split(self, experiment: Experiment) -> Iterator[None]:
        """Answers by the arms of an experiment while the `with` lasts."""
        target = self._admin_targets[0]
        before = GetTrafficResponse.FromString(_admin(target, "GetTraffic"))
        asked = SetTrafficRequest(experiments=[experiment], etag=before.etag, reason="a benchmark")
        etag = SetTrafficResponse.FromString(_admin(target, "SetTraffic", asked)).etag
        try:
            yield
        finally:
            _admin(target, "SetTraffic", SetTrafficRequest(etag=etag, reason="a benchmark has ended"))

    def faults(self) -> dict[str, int]:
        """How many of the requests, and of the runs, were not as they should be; all of them by name."""
        statuses = self.statuses()
        return {
            "unanswered": self._unanswered,
            "failed": sum(sum(each.failed.values()) for each in statuses),
            "degraded": sum(sum(each.degraded.values()) for each in statuses),
            "not logged": self.sent - sum(each.logged for each in statuses),
            "runs with answers too small": self._thin,
        }


def measure(bench: Bench) -> None:
    plan, catalogue = (QUICK, large_catalogue(SMALL)) if bench.quick else (FULL, large_catalogue(LARGE))
    by, asking = generator()
    if by != "h2load":
        bench.skip("h2load", f"not installed (Debian: nghttp2-client); the load comes from {by}")
    cores = os.sched_getaffinity(0)
    first, *others = sorted(cores)
    with TemporaryDirectory(prefix="cascade-benchmark-") as made, ExitStack() as stack:
        folder = Path(made)
        stack.callback(os.sched_setaffinity, 0, cores)
        os.sched_setaffinity(0, {first})  # what is started from here on stays there
        url, naive_url = stack.enter_context(_stores(catalogue, folder))
        with (
            _ours(catalogue.store, folder / "one", url, asking) as ours,
            _naive(catalogue, folder, naive_url) as target,
        ):
            os.sched_setaffinity(0, others or {first})
            naive = Asked(target, asking)
            _overlap(bench, catalogue, naive, url)
            questions = _questions(catalogue, folder)
            cpu_ms = _one(bench, plan, ours, naive, questions)
            _from_vectors(bench, plan, ours, naive, questions[0])
            _sample(ours, catalogue)
            faults = ours.faults()
        _logged(bench, folder / "one", ours, faults, processes=1)
        os.sched_setaffinity(0, cores if len(cores) < 3 else {first, others[0]})
        with _ours(catalogue.store, folder / "two", url, asking, processes=2) as both:
            os.sched_setaffinity(0, cores if len(cores) < 3 else others[1:])
            _two(bench, plan, both, _questions(catalogue, folder)[0], cpu_ms=cpu_ms, apart=len(cores) > 2)
            faults = both.faults()
        _logged(bench, folder / "two", both, faults, processes=2)
        os.sched_setaffinity(0, {first})
        with _ours(catalogue.crossed, folder / "crossed", url, asking) as crossed:
            os.sched_setaffinity(0, others or {first})
            _crossed(bench, plan, crossed, _questions(catalogue, folder)[0])
            faults = crossed.faults()
        _logged(bench, folder / "crossed", crossed, faults, processes=1)


@contextmanager
def _stores(catalogue: LargeCatalogue, folder: Path) -> Iterator[tuple[str, str]]:
    """Redis for each side, which know what users did; the naive one's also has the items."""

    def items() -> tuple[Items, FeatureTable]:
        table = FeatureTable.from_json((catalogue.generation / "schema.json").read_text())
        return Items.load(catalogue.generation), table

    with LocalRedis(folder / "redis") as ours, redis_of_items(catalogue.folder, items) as naive_url:
        state = UserState(ours.url, timeout_s=5.0)
        materialise(catalogue.events, state)
        state.close()
        with redis.Redis.from_url(naive_url) as client:
            known = catalogue.events.sort("visible_ms", "time_ms", "event_id")
            for (user_id,), events in known.group_by("user_id", maintain_order=True):
                push_history(client, str(user_id), events.select("item_id", "action", "time_ms").rows())
        yield ours.url, naive_url


@contextmanager
def _ours(store: GenerationStore, folder: Path, url: str, asking: Asking, *, processes: int = 1) -> Iterator[Asked]:
    folder.mkdir()
    overrides = [f"generations={store.root}", f"log={folder / 'log'}", f"redis={url}"]
    with server_process(folder, [*overrides, f"processes={processes}"]) as (target, admin_target):
        told = json.loads((folder / "server.json").read_text())
        yield Asked(target, asking, (admin_target, *told["other_admin_targets"]))


@contextmanager
def _naive(catalogue: LargeCatalogue, folder: Path, url: str) -> Iterator[str]:
    """Where the naive stack listens."""
    index, ready, output = catalogue.folder / "naive.faiss", folder / "naive.ready", folder / "naive.log"
    if not index.exists():
        build_index(Items.load(catalogue.generation), index)
    command = [sys.executable, "-m", "benchmarks.naive", "--generation", str(catalogue.generation)]
    command += ["--index", str(index), "--url", url, "--log", str(folder / "naive.db"), "--ready", str(ready)]
    with output.open("wb") as file:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file)
    try:
        while not ready.exists():
            if process.poll() is not None:
                raise RuntimeError(f"the naive stack did not start: {output.read_text()[-500:]}")
            time.sleep(0.05)
        yield ready.read_text()
    finally:
        process.terminate()
        process.wait()


def _users(catalogue: LargeCatalogue) -> list[str]:
    """Those who did something."""
    return catalogue.events["user_id"].unique().sort().to_list()


def _questions(catalogue: LargeCatalogue, folder: Path) -> tuple[Question, ...]:
    """For a slate of each size, in columns; and for one with a message for each item."""
    users = _users(catalogue)
    sizes = [Question(folder, users, size=size, columns=True) for size in _SIZES]
    return (*sizes, Question(folder, users, size=_SIZES[0], columns=False))


def _one(bench: Bench, plan: Plan, ours: Asked, naive: Asked, questions: Sequence[Question]) -> float:
    """One process on one core; returns its milliseconds of CPU for a request."""
    question, *others = questions
    for each, warm in ((ours, plan.warm), (naive, max(10, plan.warm // 10))):
        each.ask(question, warm)
    lone = ours.ask(question, _requests(ours, question, plan, connections=1), connections=1)
    _stages(bench, ours)
    name = f"one core, 8 callers, slates of {question.size}, ranker a network"
    figure, cpu_ms, resident = _in_turn(bench, plan, ours, naive, question, name=name)
    _record(bench, f"1 caller, slates of {question.size}", lone)
    for asked in (question, *others):
        for callers in _CALLERS if asked.columns else (8,):
            if (asked, callers) != (question, 1):
                load = ours.ask(asked, _requests(ours, asked, plan, connections=callers), connections=callers)
                form = "" if asked.columns else ", a message for each item"
                _record(bench, f"{callers} caller{'s' * (callers > 1)}, slates of {asked.size}{form}", load)
    for share in _LOADS:
        rate = share * figure.ours
        runs = [ours.ask(question, ceil(rate * plan.block_s), rate=rate) for _ in range(3)]
        p50_ms, p99_ms = (
            1000 * float(np.median([np.quantile(run.latency_s_N, at) for run in runs])) for at in (0.5, 0.99)
        )
        bench.record(
            f"open loop, {share:.0%} of that",
            np.concatenate([run.latency_s_N for run in runs]),
            unit="ms",
            note=f"at {rate:,.0f}/s, slates of {question.size}; of three runs the median p99 is {p99_ms:.3g} ms",
        )
        if share == 0.5:
            bench.summary |= {"p50_ms": p50_ms, "p99_ms": p99_ms}
    assert figure.ratio is not None
    bench.summary |= {
        "requests_per_s_per_core": figure.ours,
        "ratio_to_naive": figure.ratio,
        "first_process_resident_mb": resident["Rss"],
    }
    return cpu_ms


def _from_vectors(bench: Bench, plan: Plan, ours: Asked, naive: Asked, question: Question) -> None:
    """Beside the naive stack once more, with candidates from vectors alone, which are all that it asks."""
    quotas = dict.fromkeys(("lexical", "similar", "covisitation", "trending", "fresh"), 0) | {"popular": 1}
    arms = [Arm(name="all"), Arm(name="vectors", weight=1, quotas=quotas)]
    experiment = Experiment(name="sources", mode=TrafficMode.TRAFFIC_MODE_SPLIT, arms=arms, unit="user_id")
    with ours.split(experiment):
        ours.ask(question, plan.warm)
        name = "the same, candidates from vectors alone"
        figure, _, _ = _in_turn(bench, plan, ours, naive, question, name=name)
    assert figure.ratio is not None
    bench.summary["ratio_to_naive_from_vectors"] = figure.ratio


def _in_turn(
    bench: Bench, plan: Plan, ours: Asked, naive: Asked, question: Question, *, name: str
) -> tuple[Figure, float, dict[str, float]]:
    """Answers to 8 callers of ours and of the naive stack, block by block; the figure that is kept of them, our
    milliseconds of CPU for a request, and our memory."""
    counts = [_requests(each, question, plan, connections=8) for each in (ours, naive)]
    rate_B2 = np.empty((plan.blocks, 2))
    used_s, (status,) = 0.0, ours.statuses()
    for block, rate_2 in enumerate(rate_B2):
        for side in (0, 1) if block % 2 else (1, 0):  # in turn, and in turn who begins
            before_s = _cpu_s(status.pid)
            rate_2[side] = (ours, naive)[side].ask(question, counts[side], connections=8).rate
            used_s += _cpu_s(status.pid) - before_s
    cpu_ms, memory = 1000 * used_s / (plan.blocks * counts[0]), _memory_mb(status.pid)
    figure = bench.pair(
        name,
        1 / rate_B2[:, 0],
        1 / rate_B2[:, 1],
        peer_name="naive stack",
        unit="/s",
        note=f"{cpu_ms:.3g} ms of the server's CPU each; blocks from {rate_B2[:, 0].min():,.0f} to "
        f"{rate_B2[:, 0].max():,.0f}/s; {_told(memory)}",
    )
    return figure, cpu_ms, memory


def _two(bench: Bench, plan: Plan, both: Asked, question: Question, *, cpu_ms: float, apart: bool) -> None:
    """Two processes on two cores, beside what one needs for a request.

    Args:
        apart: whether the load has a core of its own. Where it has not, seconds of the processor tell how much two
            could answer, for seconds of the clock go to the load too.
    """
    both.ask(question, 2 * plan.warm, connections=16)
    count = 2 * _requests(both, question, plan, connections=16)
    pids = [status.pid for status in both.statuses()]
    rates, used_s = [], 0.0
    for _ in range(3):
        before_s = sum(map(_cpu_s, pids))
        rates.append(both.ask(question, count, connections=16).rate)
        used_s += sum(map(_cpu_s, pids)) - before_s
    two_ms = 1000 * used_s / (3 * count)
    on_the_clock = float(np.median(rates)) / bench.summary["requests_per_s_per_core"]
    shares = [status.logged / both.sent for status in both.statuses()]
    memory = [_memory_mb(pid) for pid in pids]
    bench.summary |= {
        "scaling_2_processes": on_the_clock if apart else 2 * cpu_ms / two_ms,
        "next_process_private_mb": max(each["Private_Dirty"] + each["Private_Clean"] for each in memory),
    }
    bench.keep(
        Figure(
            "two processes, 16 callers",
            "/s",
            float(np.median(rates)),
            note=f"{on_the_clock:.2f} times one{'' if apart else ', the load on the same two cores'}; {two_ms:.3g} ms "
            f"of CPU each, so two whole cores {2 * cpu_ms / two_ms:.2f} times one; {shares[0]:.0%} to the first; "
            + "; ".join(map(_told, memory)),
        )
    )


def _crossed(bench: Bench, plan: Plan, crossed: Asked, question: Question) -> None:
    """One process on one core whose ranker has crosses."""
    crossed.ask(question, plan.warm, connections=8)
    count, (status,) = _requests(crossed, question, plan, connections=8), crossed.statuses()
    before_s = _cpu_s(status.pid)
    load = crossed.ask(question, count, connections=8)
    cpu_ms = 1000 * (_cpu_s(status.pid) - before_s) / count
    note = f"{load.rate:,.0f} answers/s, {cpu_ms:.3g} ms of the server's CPU each"
    bench.record("ranker with crosses, 8 callers", load.latency_s_N, unit="ms", note=note)


def _requests(server: Asked, question: Question, plan: Plan, *, connections: int) -> int:
    """So many that they take a block's time."""
    tried = server.ask(question, max(2 * connections, plan.warm // 10), connections=connections)
    return max(2 * connections, ceil(tried.rate * plan.block_s))


def _record(bench: Bench, name: str, load: Load) -> None:
    note = f"{load.rate:,.0f} answers/s of {load.answer_bytes:,.0f} bytes"
    bench.record(name, load.latency_s_N, unit="ms", note=note)


def _stages(bench: Bench, ours: Asked) -> None:
    """Where the time of requests goes that come one after the other."""
    (status,) = ours.statuses()
    for each in status.stages:
        budget = f"budget {BUDGET_MS[each.stage]} ms" if each.stage in BUDGET_MS else ""
        bench.keep(Figure(f"stage {each.stage}", "ms", each.p50_ms, p99=each.p99_ms, note=budget))


def _overlap(bench: Bench, catalogue: LargeCatalogue, naive: Asked, url: str) -> None:
    """How much of the naive stack's best 20 is in ours where nothing is drawn: of what all sources name, and of what
    vectors alone do, which are all that it asks."""
    generation = Generation.load(catalogue.store, catalogue.store.ids()[0])
    settings = replace(generation.settings, temperature=0.0, epsilon=0.0, diversity=0.0)
    greedy = replace(generation.pipeline, selector=SlatePolicy(settings, generation.items, generation.id))
    vectors = replace(greedy, sources=[(each, CANDIDATES) for each, _ in greedy.sources if each.name == "ann"])
    state, shared, scored = UserState(url, timeout_s=5.0), [], []
    with grpc.insecure_channel(naive.target) as channel:
        method: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/cascade.v1.Recommender/Recommend")
        for user_id in _users(catalogue)[:_SAMPLED]:
            wire = Question.wire_of(user_id, size=20, columns=False)
            best = {item.item_id for item in RecommendResponse.FromString(method(wire, timeout=30)).items}
            history = generation.history(*state.recall(Wanted(user_id)).history)
            query = Query(user_id, time.time_ns() // 1_000_000, "home", 20, user_id=user_id, history=history)
            answers = [greedy.run(query), vectors.run(query)]
            scored.append(len(answers[0].scored.candidates))
            rows = [each.scored.candidates.row_N[each.slate.index_K] for each in answers]
            shared.append([len(best & set(generation.items.ids.ids.take(row_K))) / max(len(best), 1) for row_K in rows])
    state.close()
    all_sources, one_source = np.mean(shared, axis=0)
    bench.note(
        f"Of the naive stack's best 20, {all_sources:.0%} are among ours where nothing is drawn, {one_source:.0%} "
        f"where ours has its {CANDIDATES} candidates from vectors alone, too; from all sources it scores "
        f"{np.mean(scored):.0f} of {len(generation.items):,} items"
    )


def _sample(ours: Asked, catalogue: LargeCatalogue) -> None:
    """Ask and look at what is answered.

    Raises:
        RuntimeError: where a slate is not whole, or its probabilities are none.
    """
    with grpc.insecure_channel(ours.target) as channel:
        method: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/cascade.v1.Recommender/Recommend")
        for user_id in _users(catalogue)[:_SAMPLED]:
            wire = Question.wire_of(user_id, size=20, columns=True)
            slate = RecommendResponse.FromString(method(wire, timeout=30))
            ours.sent += 1
            propensity = np.array(slate.columns.propensity)
            whole = len(set(slate.columns.item_id)) == len(slate.columns.item_id) == 20
            drawn = np.isclose(np.log(propensity).sum(), slate.policy.log_propensity) and (propensity <= 1).all()
            if not (whole and drawn):
                raise RuntimeError(f"user {user_id} was answered with {slate}")


def _logged(bench: Bench, folder: Path, server: Asked, faults: dict[str, int], *, processes: int) -> None:
    """Hold the log, once its server has ended, to what was asked."""
    users = pl.Series([each.user_id for each in read_impressions(folder / "log")])
    wrong = {**faults, "missing in the log": server.sent - len(users)}
    told = ", ".join(f"{count:,} {name}" for name, count in wrong.items())
    by = f"{processes} process{'es' * (processes > 1)}"
    bench.note(f"Of {server.sent:,} requests of {users.n_unique():,} users to {by}: {told}")
    bench.summary["faults"] = bench.summary.get("faults", 0) + sum(wrong.values())


def _admin(target: str, method: str, asked: Message | None = None) -> bytes:
    with grpc.insecure_channel(target) as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/cascade.v1.Admin/{method}")
        return call(b"" if asked is None else asked.SerializeToString(), timeout=10)


def _cpu_s(pid: int) -> float:
    """Seconds of the processor that a process has used, in user and system mode."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * _TICK_S


def _memory_mb(pid: int) -> dict[str, float]:
    """See proc_pid_smaps(5)."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    return {name: int(size.split()[0]) / 1024 for name, size in (line.split(":") for line in lines)}


def _told(memory: dict[str, float]) -> str:
    private = memory["Private_Dirty"] + memory["Private_Clean"]
    return f"{memory['Rss']:,.0f} MB resident, {memory['Pss']:,.0f} in proportion, {private:,.0f} private"


if __name__ == "__main__":
    main("serving", measure, "slates of a million items, from outside, beside a naive stack")
