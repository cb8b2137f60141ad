"""Gates that ask a sealed generation, and the trial of a published one: each green for a good one and red for a bad."""

import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from conftest import Loop

from index.generations import GenerationStore
from protos.impression_pb2 import Impression
from serving.client import CascadeClient
from serving.generation import Generation
from serving.generations import Generations
from serving.log.impression_log import ImpressionLog
from serving.server import Server
from serving.settings import ServerSettings, ServiceSettings
from training.examples.exposures import from_log
from training.gates import IncumbentGateSettings
from training.learning.ranker import split_by_time
from training.nightly import judges, trial
from training.nightly.settings import TrialSettings
from training.nightly.trial import Candidate


def loaded(loop: Loop, name: str) -> Generation:
    return {each.id: each for each in loop.generations}[name]


def newest(loop: Loop, count: int) -> list[Impression]:
    return list(loop.everything.impressions[-count:])


def test_size_and_latency_beside_the_incumbent(loop: Loop) -> None:
    target, told = loop.generations[1], {"incumbent": loop.first.id, "store": loop.store}
    gate, figures = judges.size_judged(target, IncumbentGateSettings(), **told)  # type: ignore[arg-type]
    assert gate.passed
    assert figures["size.ratio"] == pytest.approx(1, abs=0.3)
    assert not judges.size_judged(target, IncumbentGateSettings(size=0.1), **told)[0].passed  # type: ignore[arg-type]
    logged, load = newest(loop, 8), lambda name: loaded(loop, name)
    asked: dict[str, Any] = {**told, "logged": logged, "load": load}
    assert judges.latency_judged(target, IncumbentGateSettings(latency=1000), **asked)[0].passed
    assert not judges.latency_judged(target, IncumbentGateSettings(latency=1e-6), **asked)[0].passed


def test_held_out_impressions_are_ordered_by_both_and_the_lower_bound_is_what_counts(loop: Loop) -> None:
    table = loop.generations[0].table
    examples = from_log(table, loop.served.impressions, loop.served.events, watermark_ms=loop.served_end_ms)
    _, held_out = split_by_time(examples, 0.5)
    asked: dict[str, Any] = {"held_out": held_out, "incumbent": loop.first.id, "load": lambda name: loaded(loop, name)}
    gate, figures = judges.offline_judged(loop.generations[0], IncumbentGateSettings(offline=0.0), **asked)
    assert (gate.passed, figures["offline.change"]) == (True, 0)
    gate, figures = judges.offline_judged(loop.generations[1], IncumbentGateSettings(offline=-1.0), **asked)
    assert gate.passed
    assert figures["offline.change_low"] < figures["offline.change"] < figures["offline.change_high"]
    assert gate.value == figures["offline.change_low"]
    assert not judges.offline_judged(loop.generations[1], IncumbentGateSettings(offline=1.0), **asked)[0].passed
    few = {**asked, "held_out": held_out.take(held_out.request_N < 3)}
    gate, _ = judges.offline_judged(loop.generations[0], IncumbentGateSettings(offline=-1.0), **few)
    assert not gate.passed, "too few to say is not good enough"


def test_a_log_that_does_not_replay_is_red(loop: Loop) -> None:
    logged = newest(loop, 6)
    asked: dict[str, Any] = {"store": loop.store, "load": lambda name: loaded(loop, name)}
    gate, figures = judges.replay_judged(loop.generations[1], logged=logged, **asked)
    assert (gate.passed, figures["replay.requests"]) == (True, 6)
    other = Impression()
    other.CopyFrom(logged[0])
    other.propensity[0] *= 0.5
    gate, figures = judges.replay_judged(loop.generations[1], logged=[other, *logged[1:]], **asked)
    assert (gate.passed, figures["replay.mismatches"]) == (False, 1)


def test_a_target_that_answers_otherwise_the_second_time_is_red(loop: Loop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judges, "divergence", lambda *_: object())
    asked: dict[str, Any] = {"store": loop.store, "load": lambda name: loaded(loop, name)}
    gate, figures = judges.replay_judged(loop.generations[1], logged=newest(loop, 3), **asked)
    assert (gate.passed, figures["replay.mismatches"]) == (False, 3)


def test_where_nothing_is_in_force_nothing_is_compared(loop: Loop) -> None:
    target, told = loop.generations[0], IncumbentGateSettings(size=1e-6, latency=1e-6, offline=1.0)
    examples = from_log(target.table, loop.served.impressions, loop.served.events, watermark_ms=loop.served_end_ms)
    nobody: dict[str, Any] = {"incumbent": None, "load": lambda name: loaded(loop, name)}
    found = [
        judges.size_judged(target, told, incumbent=None, store=loop.store),
        judges.latency_judged(target, told, logged=newest(loop, 2), store=loop.store, **nobody),
        judges.offline_judged(target, told, held_out=examples, **nobody),
        judges.replay_judged(target, logged=[], store=loop.store, load=nobody["load"]),
    ]
    assert all(gate.passed for gate, _ in found)


class Broken:
    """A ranker that fails every time."""

    def score(self, *_: object) -> Any:
        raise RuntimeError("broken")


def candidate(loop: Loop, load: Any) -> Candidate:
    return Candidate(loop.second.id, loop.first.id, loop.store, load, newest(loop, 30))


def test_the_trial_passes_a_good_generation_and_finds_a_broken_one_out(loop: Loop) -> None:
    told = TrialSettings(requests=30)

    def spoilt(name: str) -> Generation:
        generation = loaded(loop, name)
        if name == loop.first.id:
            return generation
        return replace(generation, pipeline=replace(generation.pipeline, scorer=Broken()))

    def raising(name: str) -> Generation:
        generation = loaded(loop, name)
        if name == loop.first.id:
            return generation
        return replace(generation, pipeline=replace(generation.pipeline, selector=SimpleNamespace()))

    good = candidate(loop, lambda name: loaded(loop, name))
    (gate,), figures = trial.shadow(good, told)
    assert (gate.passed, figures["shadow.requests"], figures["shadow.faults"]) == (True, 30, 0)
    assert 0 < figures["shadow.same_items"] <= 1
    (gate,), figures = trial.canary(good, told)
    assert (figures["canary.failed"] < 1, figures["canary.degraded"] < 1) == (True, True)
    for load, kind in ((spoilt, "degraded"), (raising, "failed")):
        (gate,), figures = trial.shadow(candidate(loop, load), told)
        assert (gate.passed, figures["shadow.faults"]) == (False, 1)
        (gate,), figures = trial.canary(candidate(loop, load), told)
        assert not gate.passed
        assert figures[f"canary.{kind}"] >= 1


@pytest.fixture
def server(loop: Loop, tmp_path: Path) -> Iterator[tuple[Server, Any, Path, GenerationStore]]:
    """One on a copy of the store, where the first generation is in force."""
    shutil.copytree(loop.store.root, tmp_path / "generations")
    store = GenerationStore(tmp_path / "generations")
    store.activate(loop.first.id, time_ms=1)
    service = ServiceSettings(deadline_s=60.0)
    settings = ServerSettings(
        generations=store.root, log=tmp_path / "log", port=0, admin_port=0, lame_duck_s=0.0, service=service
    )
    with ImpressionLog(tmp_path / "log", durability="os") as log:
        running = Server(Generations(store), state=None, log=log, settings=settings)
        address = running.start()
        try:
            yield running, address, tmp_path / "log", store
        finally:
            running.stop()


def test_a_server_with_traffic_tries_a_generation_and_is_left_as_it_was(
    loop: Loop, server: tuple[Server, Any, Path, GenerationStore]
) -> None:
    _, address, log, store = server
    told = TrialSettings(server=address.admin_target, requests=10, share=0.5, wait_s=30.0)
    tried = Candidate(loop.second.id, loop.first.id, store, lambda name: loaded(loop, name), ())
    done = threading.Event()

    def visit() -> None:
        with CascadeClient(address.target, deadline_s=60.0) as client:
            n = 0
            while not done.wait(0.01):
                client.recommend(f"{n % 100}", size=5)
                n += 1

    visitor = threading.Thread(target=visit)
    visitor.start()
    try:
        with store.job("nightly", holder="the test") as job:
            gates, figures = trial.shadow_on_server(tried, told, log=log, since_ms=0, job=job, poll_s=0.1)
            assert all(gate.passed for gate in gates), gates
            assert figures["shadow.requests"] >= 10
            gates, figures = trial.canary_on_server(tried, told, job=job, poll_s=0.1)
            assert figures["canary.requests"] >= 10
            assert gates[0].passed
            hasty = replace(told, requests=10**6, wait_s=0.01)
            gates, _ = trial.canary_on_server(tried, hasty, job=job, poll_s=0.01)
            assert not gates[0].passed, "a server with too little traffic puts nothing in force"
    finally:
        done.set()
        visitor.join()
    with CascadeClient(address.target, admin_target=address.admin_target) as client:
        assert not client.traffic().experiments
    assert store.current() == loop.first.id


def test_a_canary_that_the_server_takes_back_is_red(
    loop: Loop, server: tuple[Server, Any, Path, GenerationStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, address, _, store = server
    real = CascadeClient.traffic

    def taken_back(client: CascadeClient) -> Any:
        answer = real(client)
        for each in answer.experiments:
            each.arms[1].weight = 0
        return answer

    monkeypatch.setattr(CascadeClient, "traffic", taken_back)
    tried = Candidate(loop.second.id, loop.first.id, store, lambda name: loaded(loop, name), ())
    told = TrialSettings(server=address.admin_target, requests=10, wait_s=30.0)
    with store.job("nightly", holder="the test") as job:
        gates, _ = trial.canary_on_server(tried, told, job=job, poll_s=0.01)
    assert [gate.passed for gate in gates] == [True, False]
