"""A generation is judged by the incumbent's log before it is published, and refused where that says too little."""

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from conftest import Loop
from test_replay import with_settings

from policy.ope import InsufficientOverlap
from serving.generation import Generation
from training import cli
from training.estimate import estimate, examination, outcome_rewards
from training.gates import Gate, GateFailed, UpliftSettings
from training.publish import Published
from training.replay import counterfactual
from training.uplift import judged


def until(generation: Generation, end_ms: int) -> Generation:
    """As if it had been trained on nothing later."""
    return replace(generation, manifest=replace(generation.manifest, data_window=(0, end_ms)))


def verdict(loop: Loop, target: Generation, settings: UpliftSettings) -> tuple[Gate, dict[str, float]]:
    return judged(target, settings, incumbent=loop.first.id, log=loop.log, store=loop.store)


def test_the_figures_are_those_of_the_estimate(loop: Loop) -> None:
    """A policy a little bolder than the incumbent, on everything that the incumbent answered."""
    target = until(with_settings(loop.generations[0], temperature=0.19), loop.first_end_ms)
    gate, figures = verdict(loop, target, UpliftSettings(least=-0.5))
    logged = [each for each in loop.everything.impressions if each.generation == loop.first.id]
    rewards = outcome_rewards(loop.everything.events, loop.world.weights)
    curve_K = examination(loop.first.metrics)
    found = estimate(counterfactual(logged, target, rewards=rewards, examination_K=curve_K))
    assert figures["uplift.requests"] == len(logged) == 400
    assert figures["uplift.low"] == pytest.approx(found.uplift.low, rel=1e-9)
    assert figures["uplift.earned"] == pytest.approx(found.logged.value, rel=1e-9)
    assert gate.value == pytest.approx(found.uplift.low / found.logged.value, rel=1e-9)
    assert gate.passed
    strict, _ = verdict(loop, target, UpliftSettings(least=1.0))
    assert not strict.passed


def test_too_little_overlap_refuses_or_passes_as_it_is_told(loop: Loop) -> None:
    far = until(with_settings(loop.generations[0], temperature=0.0, epsilon=0.0), loop.first_end_ms)
    with pytest.raises(InsufficientOverlap, match="effective sample size"):
        verdict(loop, far, UpliftSettings())
    gate, figures = verdict(loop, far, UpliftSettings(on_no_overlap="pass"))
    assert (gate.passed, figures) == (True, {})


def test_an_incumbent_that_answered_nothing_since_refuses_too(loop: Loop) -> None:
    with pytest.raises(GateFailed, match=f"uplift is unknown: {loop.first.id} answered no request after"):
        verdict(loop, loop.generations[1], UpliftSettings())
    assert verdict(loop, loop.generations[1], UpliftSettings(on_no_overlap="pass"))[0].passed


def test_nightly_keeps_the_last_hours_for_the_verdict_and_a_refusal_ends_with_code_3(
    loop: Loop, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: dict[str, Any] = {}

    def run(dataset: object, **told: Any) -> Published:
        asked.update(told)
        for judge in told["judges"]:
            judge(until(loop.generations[1], told["as_of_ms"]))
        return Published(loop.second.id, {}, ())

    shutil.copytree(loop.store.root, tmp_path / "store")
    monkeypatch.setattr("training.cycle.run", run)
    monkeypatch.setattr("training.jobs.read", lambda *_, **__: loop.dataset)
    words = ["nightly", f"log={loop.log}", f"generations={tmp_path / 'store'}", "activate=false"]
    words.append(f"output={tmp_path}")
    last_ms = max(each.time_ms for each in loop.everything.impressions)
    assert cli.main(words) == 0
    assert asked["judges"] == []
    assert asked["as_of_ms"] > last_ms
    assert cli.main([*words, "gates.uplift.hours=6"]) == 3, "the incumbent, the second, answered few"
    assert asked["as_of_ms"] == last_ms + 1 - 6 * 3_600_000
    assert all(each.time_ms < asked["as_of_ms"] for each in asked["served"].impressions)
    err = capsys.readouterr().err
    assert err.startswith("cascade: error: too little overlap of the two policies: effective sample size")
    assert err.count("\n") == 1
