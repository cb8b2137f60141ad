"""A shadow that hangs, fails or floods costs nobody anything but the shadows after it."""

import statistics
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from serving_cases import NOW_MS, MemoryLog, Switch, generation, load_fakes, publish, running, settings

from index.generations import GenerationStore
from protos.admin_pb2 import Arm, Experiment
from serving.client import CascadeClient
from serving.generation import Generation
from serving.generations import Generations

SHADOW = "dark"


def medians_ms(client: CascadeClient, rounds: int = 80) -> float:
    took = []
    for n in range(rounds):
        started = time.perf_counter()
        client.recommend(f"u{n % 10}", size=3, time_ms=NOW_MS)
        took.append(1000 * (time.perf_counter() - started))
    return statistics.median(took)


def until(met: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("how", ["hangs", "fails"])
def test_answers_are_as_fast_and_as_good_beside_a_shadow_that(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    load_fakes(monkeypatch)
    store = GenerationStore(tmp_path / "generations")
    store.activate(publish(store, 1), time_ms=NOW_MS)
    candidate, switch, fake = publish(store, 2), Switch(), Generation.load

    def load(store: GenerationStore, name: str, **rest: object) -> Generation:
        return generation(name, about=store.verify(name), switch=switch) if name == candidate else fake(store, name)

    monkeypatch.setattr(Generation, "load", staticmethod(load))
    arms = [Arm(name="now"), Arm(name="next", weight=1, generation=candidate)]
    shadow = Experiment(name=SHADOW, mode="TRAFFIC_MODE_SHADOW", unit="request_id", arms=arms)
    log = MemoryLog()
    with (
        running(Generations(store), settings(tmp_path), log=log) as address,
        CascadeClient(address.target, admin_target=address.admin_target, deadline_s=20) as client,
    ):
        medians_ms(client, 30)
        alone, beside = [], []
        for n in (0, 2):  # in turns, because the machine may get busier
            alone.append(medians_ms(client))
            client.set_traffic([shadow], etag=str(n or ""))
            switch.sleep_s = 30.0 if how == "hangs" else 0.0  # from now on, for it had to answer to be loaded
            switch.fail = frozenset({"hydrate"} if how == "fails" else ())
            beside.append(medians_ms(client))
            switch.sleep_s, switch.fail = 0.0, frozenset()
            client.set_traffic([], etag=str(n + 1))
        assert min(beside) < 5 * min(alone) + 20, "a hung shadow would add 30 seconds"
        assert not any(each.degraded for each in log.impressions.values() if not each.shadow_of)


def test_shadows_that_come_faster_than_they_are_computed_are_dropped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    switch = Switch()
    load_fakes(monkeypatch, switch)
    store = GenerationStore(tmp_path / "generations")
    store.activate(publish(store, 1), time_ms=NOW_MS)
    arms = [Arm(name="now"), Arm(name="next", weight=1, policy={"temperature": 1})]
    shadow = Experiment(name=SHADOW, mode="TRAFFIC_MODE_SHADOW", unit="request_id", arms=arms)
    log = MemoryLog()
    with (
        running(Generations(store), settings(tmp_path, running=4), log=log) as address,
        CascadeClient(address.target, admin_target=address.admin_target, deadline_s=20) as client,
    ):
        client.set_traffic([shadow], etag="")
        switch.sleep_s = 0.02
        callers = [threading.Thread(target=medians_ms, args=(client, 30)) for _ in range(4)]
        for each in callers:
            each.start()
        for each in callers:
            each.join()
        until(lambda: sum(bool(each.shadow_of) for each in log.impressions.values()) >= 16)
        shown = [each for each in log.impressions.values() if not each.shadow_of]
        shadows = [each for each in log.impressions.values() if each.shadow_of]
        assert len(shown) == 120
        assert len(shadows) < 120
        assert {each.shadow_of for each in shadows} <= {each.request_id for each in shown}
        assert {each.policy.temperature for each in shadows} == {1.0}
