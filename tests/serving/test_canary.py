"""Canaries that harm are taken back, harmless ones almost never; across processes, and over the wire."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from serving_cases import NOW_MS, Switch, generation, load_fakes, publish, running, settings

from index.generations import GenerationStore
from protos.admin_pb2 import Arm, Experiment, GetTrafficResponse, SetTrafficRequest
from serving.client import CascadeClient
from serving.experiments.canary import Evidence
from serving.generation import Generation
from serving.generations import Generations


def peeked(rate: float, other: float, *, looks: int, share: float, seed: int, tolerated: float = 1.0) -> float:
    """The most evidence that is seen over many looks."""
    random = np.random.default_rng(seed)
    evidence, most = Evidence(tolerated), 0.0
    for _ in range(looks):
        own, others = int(random.binomial(40, share)), 40
        evidence.add(
            int(random.binomial(own, rate)), int(random.binomial(others, other)), requests=own, requests_of_other=others
        )
        most = max(most, evidence.value)
    return most


def test_harmless_canaries_are_hardly_ever_taken_back_however_often_one_looks() -> None:
    alarms = [peeked(0.05, 0.05, looks=150, share=0.3, seed=seed) >= 1 for seed in range(80)]
    tolerated = [peeked(0.2, 0.1, looks=150, share=0.3, seed=seed, tolerated=2.0) >= 1 for seed in range(80)]
    assert sum(alarms) <= 3
    assert sum(tolerated) <= 3
    assert not any(peeked(0.01, 0.05, looks=100, share=0.3, seed=seed) >= 1 for seed in range(20)), "better is no harm"


def test_harm_is_seen_and_the_sooner_the_worse_it_is() -> None:
    assert all(peeked(0.2, 0.05, looks=150, share=0.3, seed=seed) >= 1 for seed in range(20))
    assert all(peeked(1.0, 0.01, looks=4, share=0.3, seed=seed) >= 1 for seed in range(20))


def canary(candidate: str, weight: float = 1.0) -> Experiment:
    arms = [Arm(name="now", weight=1), Arm(name="next", weight=weight, generation=candidate)]
    return Experiment(name="release", mode="TRAFFIC_MODE_CANARY", unit="request_id", arms=arms)


def taken_back(told: GetTrafficResponse) -> bool:
    return told.experiments[0].arms[1].weight == 0


def ask_until(client: CascadeClient, met: Callable[[], bool], *, most: int = 4000) -> int:
    """How many requests it took."""
    for n in range(most):
        client.recommend(f"u{n % 10}", size=3, time_ms=NOW_MS)
        if n % 20 == 19 and met():
            return n + 1
    raise AssertionError(f"not after {most} requests")


@pytest.mark.parametrize("how", ["failing", "degraded", "slow"])
def test_a_canary_that_harms_is_taken_back_and_it_is_said_why(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, caplog: pytest.LogCaptureFixture
) -> None:
    switch = Switch()
    load_fakes(monkeypatch)
    store = GenerationStore(tmp_path / "generations")
    store.activate(publish(store, 1), time_ms=NOW_MS)
    candidate = publish(store, 2)
    fake = Generation.load

    def load(store: GenerationStore, name: str, **rest: object) -> Generation:
        return generation(name, about=store.verify(name), switch=switch) if name == candidate else fake(store, name)

    monkeypatch.setattr(Generation, "load", staticmethod(load))
    generations = Generations(store)
    with (
        running(generations, settings(tmp_path)) as address,
        running(Generations(store), settings(tmp_path)) as quiet,
        CascadeClient(address.target, admin_target=address.admin_target, deadline_s=20) as client,
        CascadeClient(quiet.target, deadline_s=20) as elsewhere,
    ):
        client.set_traffic([canary(candidate)], etag="")
        if how == "slow":  # the first answers of the other arm say what slow is
            ask_until(client, lambda: client.traffic().arms[0].requests > 120)
        assert not taken_back(client.traffic())
        switch.fail = frozenset({"failing": ["hydrate"], "degraded": ["ranker"]}.get(how, []))
        switch.sleep_s = 0.02 if how == "slow" else 0.0
        requests = ask_until(client, lambda: taken_back(client.traffic()))
        told = client.traffic()
        found = {"failing": "failed", "degraded": "degraded", "slow": ""}[how]
        assert told.reason.startswith(f"canary 'release' took 'next' back: {found}")
        assert told.experiments[0].arms[0].weight == 1
        assert requests < 1500
        after = [each.recommend("u1", size=3, time_ms=NOW_MS) for _ in range(15) for each in (client, elsewhere)]
        assert {slate.generation for slate in after} == {store.ids()[0]}
        assert not any(slate.degraded for slate in after)
    assert "took 'next' back" in caplog.text
    entry = generations.catalog.traffic(until=generations.catalog.head())
    assert entry is not None
    assert isinstance(entry.request, SetTrafficRequest)
    assert entry.request.reason == told.reason, "the log of changes holds it"


SERVER = """
import json, sys, time
from pathlib import Path
import serving_cases as cases
from index.generations import GenerationStore
from serving.generation import Generation
from serving.generations import Generations

folder, ready, candidate, fault = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4])

class Faulty(cases.Switch):
    @property
    def fail(self):
        return frozenset({"hydrate"}) if fault.exists() else frozenset()
    @fail.setter
    def fail(self, _):
        pass

def load(store, name, *, placement=None):
    return cases.generation(name, about=store.verify(name), switch=Faulty() if name == candidate else cases.Switch())

Generation.load = staticmethod(load)
with cases.running(Generations(GenerationStore(folder / "generations")), cases.settings(folder)) as address:
    ready.write_text(json.dumps([address.target, address.admin_target]))
    time.sleep(60)
"""


@pytest.mark.slow
def test_what_one_server_process_takes_back_is_taken_back_in_the_others(tmp_path: Path) -> None:
    store = GenerationStore(tmp_path / "generations")
    store.activate(publish(store, 1), time_ms=NOW_MS)
    candidate, fault = publish(store, 2), tmp_path / "fault"
    here = Path(__file__).parent
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(here.parents[1]), str(here)])}
    ready = [tmp_path / f"ready{n}" for n in (0, 1)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", SERVER, str(tmp_path), str(each), candidate, str(fault)], env=environment
        )
        for each in ready
    ]
    try:
        deadline = time.monotonic() + 60
        while not all(each.exists() and each.read_text() for each in ready):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        (one, one_admin), (other, other_admin) = (json.loads(each.read_text()) for each in ready)
        with (
            CascadeClient(one, admin_target=one_admin, deadline_s=20) as busy,
            CascadeClient(other, admin_target=other_admin, deadline_s=20) as quiet,
        ):
            busy.set_traffic([canary(candidate, 0.3)], etag="")
            ask_until(quiet, lambda: candidate in {quiet.recommend(time_ms=NOW_MS).generation for _ in range(30)})
            fault.touch()
            ask_until(busy, lambda: taken_back(busy.traffic()))
            slates = [quiet.recommend(f"u{n % 10}", size=3, time_ms=NOW_MS) for n in range(40)]
            assert {slate.generation for slate in slates} == {store.ids()[0]}
            assert not any(slate.degraded for slate in slates), "it never saw enough to judge by itself"
            assert taken_back(quiet.traffic())
    finally:
        for process in processes:
            process.send_signal(signal.SIGKILL)
            process.wait()
