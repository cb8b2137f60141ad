"""What a log says of an experiment: who is compared, when to believe it, and what the page and the command say."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from protos.admin_pb2 import Arm, Experiment, SetTrafficRequest
from protos.impression_pb2 import Degraded, Drafted, Impression, Outcome, StageTime, Variation
from serving.experiments.assignment import Traffic
from serving.log.catalog_log import FILE, CatalogLog, Entry
from serving.log.impression_log import ImpressionLog
from training import jobs
from training.cli import MISUSE, main
from training.experiment import Findings, Version, measure, versions
from training.log.served import ServedLog, as_published, shown
from training.off_policy.replay import REWARD
from training.reports import experiment_report

HOUR_MS = 3_600_000


def entry(seq: int, weights: dict[str, float], *, mode: str = "SPLIT", reason: str = "") -> Entry:
    arms = [Arm(name=name, weight=weight) for name, weight in weights.items()]
    asked = Experiment(name="e", mode=f"TRAFFIC_MODE_{mode}", unit="user_id", arms=arms)
    return Entry(seq, seq * HOUR_MS, SetTrafficRequest(experiments=[asked], reason=reason))


def impression(n: int, user: str, arm: str, *, traffic: str = "1", **fields: Any) -> Impression:
    return Impression(
        request_id=f"r{n}",
        time_ms=HOUR_MS + 1000 * n,
        user_id=user,
        item_id=["x", "y"],
        utility=[0.5, 0.25],
        experiment_arms={"e": arm},
        traffic=traffic,
        stages=[StageTime(stage="score", milliseconds=1.0 + n % 7)],
        **fields,
    )


def served(users: int, effect: float, *, entries: Sequence[Entry], seed: int = 0, lost: float = 0.0) -> Findings:
    """Users of two arms who come some times each; some of the second arm's are lost on the way."""
    random = np.random.default_rng(seed)
    of = versions(entries, "e")
    traffic = Traffic([of[-1].experiment], of[-1].etag)
    logged, rewards = [], []
    for n in range(3 * users):
        user = f"u{random.integers(users)}"
        arm = traffic.plan(Impression(user_id=user)).arms["e"]
        if arm == "next" and hash_share(user) < lost:
            continue
        logged.append(impression(n, user, arm, traffic=of[-1].etag))
        if random.random() < 0.3 * (1 + effect * (arm == "next")):
            rewards.append((f"r{n}", "x", 1.0))
    return found_in(logged, of, rewards)


def found_in(logged: Sequence[Impression], of: list[Version], rewards: Sequence[tuple[str, str, float]]) -> Findings:
    return measure(logged, pl.DataFrame(list(rewards), REWARD, orient="row"), of, alpha=0.05, planned=1000)


def hash_share(user: str) -> float:
    return int(user[1:]) % 100 / 100


def texts(found: Findings) -> str:
    return " ".join(each["text"] for each in experiment_report.report(found)["findings"])


def test_a_better_arm_is_found_per_unit_and_the_shares_are_as_set() -> None:
    found = served(800, 0.6, entries=[entry(1, {"now": 1, "next": 1})])
    last = found.compared["next"].last
    assert 0 < last.low < last.value < last.high
    assert found.arms["now"].units + found.arms["next"].units == sum(
        found.shares.units.values() if found.shares else []
    )
    assert found.shares is not None
    assert not found.shares.alarm
    assert found.shares.chi_square_p > 0.001
    assert "next earns more than now" in texts(found)
    per_unit = found.arms["next"].reward - found.arms["now"].reward
    assert last.value == pytest.approx(per_unit), "a comparison of means per unit"
    assert found.arms["next"].reward_per_impression < found.arms["next"].reward


def test_equal_arms_are_not_told_apart() -> None:
    found = served(800, 0.0, entries=[entry(1, {"now": 1, "next": 1})], seed=1)
    assert found.compared["next"].last.low < 0 < found.compared["next"].last.high
    assert found.compared["next"].p > 0.05
    assert "No difference is shown" in texts(found)


def test_units_that_go_missing_raise_the_alarm_before_anything_else_is_said() -> None:
    found = served(3000, 0.0, entries=[entry(1, {"now": 1, "next": 1})], lost=0.25)
    assert found.shares is not None
    assert found.shares.alarm
    first = experiment_report.report(found)["findings"][0]
    assert first["verdict"] == "bad"
    assert first["text"].startswith("Sample-ratio mismatch: units are not where the weights send them (now ")


def test_units_that_a_ramp_moves_stay_with_the_arm_that_saw_them_first() -> None:
    of = versions([entry(1, {"now": 9, "next": 1}), entry(2, {"now": 1, "next": 1})], "e")
    logged = [
        impression(0, "u1", "now"),
        impression(1, "u2", "next"),
        impression(2, "u1", "next", traffic="2"),
        impression(3, "u3", "next", traffic="2"),
    ]
    found = found_in(logged, of, [("r0", "x", 1.0), ("r2", "x", 5.0), ("r3", "y", 2.0)])
    assert found.crossed == 1
    assert (found.arms["now"].reward, found.arms["next"].reward) == (1.0, 1.0)
    assert found.shares is not None
    assert found.shares.expected == pytest.approx({"now": 2 * 0.9 + 0.5, "next": 2 * 0.1 + 0.5})
    assert "1 impressions are left out" in texts(found)


def test_drafted_slates_are_credited_by_slot_and_counted_by_user() -> None:
    of = versions([entry(1, {"now": 1, "next": 1}, mode="INTERLEAVE")], "e")
    logged, rewards = [], []
    for n in range(300):
        logged.append(impression(n, f"u{n % 100}", "drafted", slot_team=[n % 2, 1 - n % 2], drafted=Drafted()))
        clicked = "xy"[1 - n % 2] if n % 3 else "xy"[n % 2]  # two thirds of the clicks fall on the second team's
        rewards.append((f"r{n}", clicked, 1.0))
    found = found_in(logged, of, rewards)
    assert found.preference is not None
    assert (found.preference.slates, found.preference.units) == (300, 100)
    assert found.preference.wins == (100, 200)
    assert found.preference.earned == (100.0, 200.0)
    assert found.preference.score.value == pytest.approx(1 / 3)
    assert found.compared == {}
    assert found.shares is None
    assert "next won 200 slates, now 100, 0 were even" in texts(found)


def shadowed() -> tuple[list[Impression], list[Version]]:
    of = versions([entry(1, {"now": 0, "next": 1}, mode="SHADOW")], "e")
    logged = []
    for n in range(10):
        logged.append(impression(n, f"u{n}", "now"))
        beside = impression(n, f"u{n}", "next", shadow_of=f"r{n}", degraded=Degraded.DEGRADED_RANKER_SKIPPED * (n == 0))
        beside.request_id = f"r{n}/shadow/e"
        beside.item_id[:] = ["y", "z"] if n % 2 else ["y", "x"]
        if n < 8:  # the others were dropped
            logged.append(beside)
    return logged, of


def test_shadows_are_held_against_what_was_shown() -> None:
    logged, of = shadowed()
    found = found_in(logged, of, [])
    (figures,) = found.shadows
    assert (figures.arm, figures.pairs, figures.shown) == ("next", 8, 10)
    assert figures.overlap == 0.75
    assert figures.correlation == -1.0
    assert figures.utility == pytest.approx((4 * (0.25 + -0.25) + 4 * 0.25) / 12)
    assert (figures.degraded, figures.shown_degraded) == (0.125, 0.0)
    assert figures.ms == 1.0
    assert set(found.arms) == {"now"}, "nobody saw the others"


def test_nobody_trains_on_a_shadow_and_no_estimate_takes_arms_for_one_policy(tmp_path: Path) -> None:
    logged, _ = shadowed()
    other = impression(20, "u", "next", variation=Variation(policy={"epsilon": 0.5}))
    drafted = impression(21, "u", "drafted", drafted=Drafted(generation="g"))
    with ImpressionLog(tmp_path / "log", durability="os") as log:
        for each in (*logged, other, drafted):
            log.append(each)
    assert len(ServedLog.read(tmp_path / "log", until_ms=1 << 60).impressions) == 12
    assert not any(each.shadow_of for each in shown(logged))
    assert [each.request_id for each in as_published([*logged, other, drafted])] == [f"r{n}" for n in range(10)]


def test_a_canary_that_was_taken_back_is_told() -> None:
    why = "canary 'e' took 'next' back: failed 9 of 40 requests"
    of = versions([entry(1, {"now": 9, "next": 1}), entry(2, {"now": 9, "next": 0}, reason=why)], "e")
    assert why in texts(found_in([impression(0, "u1", "now")], of, []))


def test_an_experiment_that_never_was_is_named() -> None:
    with pytest.raises(ValueError, match="there was never an experiment 'f'; there were e"):
        versions([entry(1, {"now": 1, "next": 1})], "f")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store whose log of changes set an experiment, and a log of it."""
    monkeypatch.setattr(jobs, "_named", lambda *_: "g")
    monkeypatch.setattr(jobs, "_weights", lambda *_: {"click": 1.0})
    (tmp_path / "generations").mkdir()
    catalog = CatalogLog(tmp_path / "generations" / FILE)
    catalog.append(entry(1, {"now": 1, "next": 1}).request, time_ms=HOUR_MS, after=0)
    catalog.close()
    random = np.random.default_rng(0)
    with ImpressionLog(tmp_path / "log", durability="os", capacity=10_000) as log:
        for n in range(600):
            arm = ("now", "next")[n % 2]
            log.append(impression(n, f"u{n}", arm))
            if random.random() < (0.6 if arm == "next" else 0.2):
                log.write_outcomes(
                    [Outcome(event_id=str(n), request_id=f"r{n}", item_id="x", action="click", visible_ms=1)]
                )
    return tmp_path


def test_the_command_prints_the_verdict_and_writes_a_page(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = [f"log={site / 'log'}", f"generations={site / 'generations'}", f"output={site / 'out'}"]
    assert main(["report", "experiment", "e", "planned_units=600", *words]) == 0
    out = capsys.readouterr().out
    assert "next earns more than now" in out
    assert "Units came as the weights say" in out
    made = json.loads((site / "out" / "experiment.json").read_text())
    assert made["compared"]["next"]["last"]["low"] > 0
    page = (site / "out" / "experiment.html").read_text()
    assert page.count("<svg") == 3
    assert "NaN" not in page
    assert main(["report", "experiment", "f", *words]) == MISUSE
    assert "there was never an experiment 'f'; there were e" in capsys.readouterr().err
    assert main(["report", "experiment", *words]) == MISUSE
    assert "cascade report experiment NAME" in capsys.readouterr().err
