"""Experiments in a running server: in force at once and everywhere, kept, logged, and replayed bit by bit."""

import json
import shutil
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from itertools import count
from pathlib import Path
from typing import Any

import pytest
from catalog_cases import NOW_MS, loaded, publish, running, store_of
from google.protobuf.json_format import MessageToDict

from index.generations import GenerationStore
from protos import admin_pb2
from protos.admin_pb2 import Arm, Experiment
from protos.impression_pb2 import Degraded, Impression
from serving.again import Snapshots, ask_again
from serving.client import CallFailed, CascadeClient, ShownSlate
from serving.experiments.traffic import generations_named
from serving.log.catalog_log import FILE, CatalogLog
from training.cli import MISUSE, main
from training.log.impression_log import read_impressions
from training.off_policy.replay import verify

SAME = Arm(name="same", weight=1)
COLD = Arm(name="cold", weight=1, policy={"temperature": 0, "epsilon": 0}, quotas={"fresh": 0})
LIKES = Arm(name="likes", weight=1, action_weights={"click": 0, "like": 5})


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("traffic")
    store_of(folder)
    publish(GenerationStore(folder / "generations"), seed=1)
    return folder


@pytest.fixture
def site(template: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(template, tmp_path / "site"))


def generations_of(site: Path) -> list[str]:
    return GenerationStore(site / "generations").ids()


def experiment(*arms: Arm, name: str = "e", mode: str = "SPLIT", **fields: Any) -> Experiment:
    return Experiment(name=name, mode=f"TRAFFIC_MODE_{mode}", arms=arms, **{"unit": "user_id", **fields})


def ask(client: CascadeClient, times: int = 24, *, prefix: str = "r", size: int = 6) -> list[ShownSlate]:
    return [client.recommend(f"u{n % 12}", size=size, time_ms=NOW_MS, request_id=f"{prefix}{n}") for n in range(times)]


def until(met: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not met():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def verified(site: Path, log: Path) -> list[Impression]:
    """What was logged, each of which gives the same answer again."""
    logged = list(read_impressions(log))
    store = GenerationStore(site / "generations")
    with closing(CatalogLog(site / "generations" / FILE)) as catalog:
        found = verify(logged, {each: loaded(store, each) for each in store.ids()}, catalog)
    assert (found.requests, found.divergences) == (len(logged), ())
    return logged


def test_arms_are_in_force_from_the_next_answer_on_in_the_log_and_replayed(site: Path) -> None:
    log = site / "log"
    other = generations_of(site)[1]
    with running(site, log=log) as (client, _, _):
        assert client.traffic() == admin_pb2.GetTrafficResponse()
        ask(client, 3, prefix="before")
        split = experiment(SAME, COLD, LIKES, Arm(name="next", weight=1, generation=other), salt="s")
        answer = client.set_traffic([split], etag="", reason="to see")
        assert answer.etag == "1"
        slates = ask(client)
        assert {slate.generation for slate in slates} == set(generations_of(site))
        told = client.traffic()
        assert (list(told.experiments), told.etag, told.reason) == ([split], "1", "to see")
        client.delete_items([slates[0].items[0].item_id])
        gone = slates[0].items[0].item_id
        after = ask(client, prefix="after")
        assert gone not in {item.item_id for slate in after for item in slate.items}, "in no arm's generation either"
        client.set_traffic([], etag="1")
        assert {slate.generation for slate in ask(client, 12, prefix="end")} == {generations_of(site)[0]}
    logged = {each.request_id: each for each in verified(site, log)}
    arms = Counter(logged[f"r{n}"].experiment_arms["e"] for n in range(24))
    assert set(arms) == {"same", "cold", "likes", "next"}
    for n in range(12):
        first = logged[f"r{n}"]
        assert first.traffic == "1"
        assert first.experiment_arms == logged[f"r{n + 12}"].experiment_arms == logged[f"after{n}"].experiment_arms
        arm = first.experiment_arms["e"]
        assert (first.generation == other) == (arm == "next")
        assert first.HasField("variation") == (arm in ("cold", "likes"))
        assert (first.policy.temperature == 0) == (arm == "cold")
        assert ("fresh" in first.source_names) == (arm != "cold")
        if arm == "cold":
            assert list(first.propensity) == [1.0] * 6
    assert not logged["before0"].experiment_arms
    assert not logged["before0"].traffic
    assert (logged["end0"].traffic, dict(logged["end0"].experiment_arms)) == ("3", {})


def test_two_arms_draft_one_slate_and_it_is_replayed(site: Path) -> None:
    log = site / "log"
    first, second = generations_of(site)
    with running(site, log=log) as (client, _, _):
        turns = experiment(
            SAME, Arm(name="next", weight=1, generation=second, policy={"epsilon": 0.2}), mode="INTERLEAVE"
        )
        client.set_traffic([turns], etag="")
        slates = ask(client)
        assert len(client.recommend("u1", size=60, time_ms=NOW_MS, request_id="long").items) == 60
        with pytest.raises(CallFailed, match="UNIMPLEMENTED: slates that two arms drafted"):
            client.explain("r1")
    logged = {each.request_id: each for each in verified(site, log)}
    assert dict(logged["long"].experiment_arms) == {"e": "same"}, "too long to be drafted"
    assert not logged["long"].slot_team
    drafted = [logged[f"r{n}"] for n in range(24)]
    for each in drafted:
        assert dict(each.experiment_arms) == {"e": "drafted"}
        assert (each.generation, each.drafted.generation) == (first, second)
        assert list(each.drafted.arms) == ["same", "next"]
        assert [sum(each.slot_team[k : k + 2]) for k in (0, 2, 4)] == [1, 1, 1], "one slot of each round"
        assert not each.eligible_item_key
        assert all(0 < p <= 1 for p in each.propensity)
    assert 4 < sum(each.slot_team[0] for each in drafted) < 20
    assert all(item.title for slate in slates for item in slate.items)


def test_shadows_are_computed_logged_replayed_and_not_shown(site: Path) -> None:
    log = site / "log"
    first, second = generations_of(site)
    with running(site, log=log) as (client, _, _):
        now = Arm(name="now")
        client.set_traffic(
            [
                experiment(now, Arm(name="next", weight=1, generation=second), mode="SHADOW"),
                experiment(now, SAME, mode="SHADOW", name="itself", surfaces=["home"]),
            ],
            etag="",
        )
        for n in range(6):  # at most as many wait
            client.recommend(f"u{n}", size=6, time_ms=NOW_MS, request_id=f"r{n}")
            until(lambda n=n: sum(bool(each.shadow_of) for each in read_impressions(log)) == 2 * (n + 1))  # type: ignore[misc]
    logged = {each.request_id: each for each in verified(site, log)}
    assert len(logged) == 18
    for n in range(6):
        shown, beside, itself = (logged[f"r{n}{name}"] for name in ("", "/shadow/e", "/shadow/itself"))
        assert dict(shown.experiment_arms) == {"e": "now", "itself": "now"}
        assert (beside.shadow_of, beside.generation) == (shown.request_id, second)
        assert dict(beside.experiment_arms) == {"e": "next", "itself": "now"}
        assert list(itself.item_id) == list(shown.item_id), "it draws by the same chance"
        assert not shown.shadow_of
        assert shown.generation == first


def test_all_servers_of_a_store_share_the_traffic_and_it_survives_them(site: Path) -> None:
    other = generations_of(site)[1]
    half = experiment(SAME, Arm(name="next", weight=1, generation=other))
    with running(site) as (here, _, _), running(site) as (there, _, _):
        ask(there, 2)
        here.set_traffic([experiment(SAME, COLD)], etag="")
        assert all(slate.experiment_arms for slate in ask(there, 4, prefix="now")), "nothing has to be loaded"
        with pytest.raises(CallFailed, match="FAILED_PRECONDITION: etag: '' given, the traffic in force has '1'"):
            there.set_traffic([], etag="")
        here.set_traffic([half], etag="1")
        prefixes = map("later{}-".format, count())
        until(lambda: other in {slate.generation for slate in ask(there, 12, prefix=next(prefixes))})
        assert there.traffic().etag == "2"
    with running(site) as (client, _, _):
        assert {slate.generation for slate in ask(client, 12, prefix="again")} == set(generations_of(site))
        client.activate(other)
        assert {slate.generation for slate in ask(client, 12, prefix="active")} == {other}
        assert client.traffic().etag == "2"
    assert generations_named(GenerationStore(site / "generations")) == {other}, "what is pruned by"


def test_what_an_arm_cannot_answer_the_generation_in_use_does(site: Path) -> None:
    log = site / "log"
    other = generations_of(site)[1]
    with running(site, log=log) as (client, generations, _):
        broken = generations.prepare(other)
        client.set_traffic([experiment(SAME, Arm(name="next", weight=1, generation=other))], etag="")
        object.__setattr__(broken.pipeline, "hydrate", lambda _: 1 / 0)
        slates = ask(client, 12)
        assert {slate.generation for slate in slates} == {generations_of(site)[0]}
        assert any("ARM_FAILED" in slate.degraded for slate in slates)
    logged = verified(site, log)
    failed = [each for each in logged if each.degraded & Degraded.DEGRADED_ARM_FAILED]
    assert {each.experiment_arms["e"] for each in failed} == {"next"}, "who was to be compared stays where it was"
    assert len(failed) < len(logged)


@pytest.mark.parametrize(
    ("arm", "code", "message"),
    [
        (Arm(name="b", generation="000009-00000000"), "NOT_FOUND", "000009-00000000"),
        (Arm(name="b", generation="../x"), "INVALID_ARGUMENT", "generation: '../x' given"),
        (
            Arm(name="b", action_weights={"buy": 1}),
            "INVALID_ARGUMENT",
            "'e', arm 'b': action_weights: 'buy' given, all",
        ),
        (Arm(name="b", policy={"heat": 1}), "INVALID_ARGUMENT", "policy: 'heat' given, allowed: temperature, epsilon"),
        (Arm(name="b", policy={"epsilon": 2}), "INVALID_ARGUMENT", "epsilon is 2.0; it must be between 0 and 1"),
        (Arm(name="b", policy={"max_per_creator": 1.5}), "INVALID_ARGUMENT", "max_per_creator is 1.5; a whole number"),
        (Arm(name="b", quotas={"magic": 3}), "INVALID_ARGUMENT", "quotas: 'magic' given, allowed: the sources of"),
        (Arm(name="b", quotas={"popular": 0}), "INVALID_ARGUMENT", "quotas: popular is 0; at least 1 is needed"),
        (Arm(name="same"), "INVALID_ARGUMENT", "experiments: experiment 'e': arms.name: 'same, same' given"),
    ],
)
def test_arms_that_cannot_answer_are_refused_and_what_was_stays(
    template: Path, arm: Arm, code: str, message: str
) -> None:
    with running(template) as (client, generations, _):
        arm.weight = 1
        with pytest.raises(CallFailed, match=code) as refused:
            client.set_traffic([experiment(SAME, arm)], etag="")
        assert message in refused.value.message
        assert not client.traffic().etag
        assert generations.catalog.head() == 0


def test_more_generations_than_a_server_can_hold_are_refused(site: Path) -> None:
    arms = [Arm(name=str(n), weight=1, generation=f"00000{n}-00000000") for n in range(4)]
    with running(site) as (client, _, _), pytest.raises(CallFailed, match="allowed: at most 3"):
        client.set_traffic([experiment(*arms)], etag="")


def test_a_drafted_answer_is_not_asked_again_by_half(site: Path) -> None:
    log = site / "log"
    with running(site, log=log) as (client, _, _):
        client.set_traffic([experiment(SAME, COLD, mode="INTERLEAVE")], etag="")
        ask(client, 1)
    (logged,) = read_impressions(log)
    first = loaded(GenerationStore(site / "generations"), logged.generation)
    with closing(CatalogLog(site / "generations" / FILE)) as catalog:
        generation = Snapshots({first.id: first}, catalog).answered(logged)
    with pytest.raises(ValueError, match="was drafted by two arms; only the first was given"):
        ask_again(logged, generation)


def test_traffic_is_shown_and_set_by_the_command(
    site: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with running(site) as (client, _, address):
        where = ["--target", address.target, "--admin", address.admin_target]
        assert main(["call", "traffic", *where]) == 0
        assert json.loads(capsys.readouterr().out) == {}
        file = tmp_path / "traffic.json"
        split = MessageToDict(experiment(SAME, COLD), preserving_proto_field_name=True)
        file.write_text(json.dumps({"experiments": [split], "reason": "to see"}))
        assert main(["call", "traffic", str(file), *where]) == 0
        assert capsys.readouterr().out.startswith("1 experiments are in force, etag 1")
        assert main(["call", "traffic", str(file), *where]) == MISUSE
        assert "read it with GetTraffic" in capsys.readouterr().err
        assert main(["call", "ramp", "e", "cold", "3", *where]) == 0
        assert client.traffic().experiments[0].arms[1].weight == 3
        assert main(["call", "ramp", "e", "warm", "3", *where]) == MISUSE
        assert "no arm 'warm'" in capsys.readouterr().err
        assert main(["call", "traffic", *where]) == 0
        printed = capsys.readouterr().out
        file.write_text(printed)
        assert main(["call", "traffic", str(file), *where]) == 0, "what is printed can be put"
        assert main(["call", "stop", "e", *where]) == 0
        assert list(client.traffic().experiments) == []
        assert main(["call", "stop", "e", *where]) == MISUSE
        assert "no experiment 'e'" in capsys.readouterr().err
