"""A generation is judged by the incumbent's log before it is published, and refused where that says too little."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from conftest import Loop
from test_replay import with_settings

from index.generations import GenerationStore
from policy.ope import InsufficientOverlap
from serving.generation import Generation
from training import cli
from training.configuration import settings
from training.gates import Gate, GateFailed, UpliftSettings
from training.nightly import inputs
from training.off_policy.estimate import estimate, examination, outcome_rewards
from training.off_policy.replay import counterfactual
from training.off_policy.uplift import judged


def until(generation: Generation, end_ms: int) -> Generation:
    """As if it had been trained on nothing later."""
    return replace(generation, manifest=replace(generation.manifest, data_window=(0, end_ms)))


def verdict(loop: Loop, target: Generation, told: UpliftSettings) -> tuple[Gate, dict[str, float]]:
    return judged(target, told, incumbent=loop.first.id, log=loop.log, store=loop.store)


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
    shutil.copytree(loop.store.root, tmp_path / "generations")
    shutil.copytree(loop.log, tmp_path / "log")
    monkeypatch.setattr("training.jobs.read", lambda *_, **__: loop.dataset)
    words = [
        f"log={tmp_path / 'log'}",
        f"generations={tmp_path / 'generations'}",
        f"output={tmp_path}",
        "gates.uplift.hours=6",
    ]
    small = ["experiment=quick", "gates=open", "contract=open", "gates.incumbent.replayed=2"]
    last_ms = max(each.time_ms for each in loop.everything.impressions)
    begun = inputs.begun(settings("nightly", words), loop.store)
    assert begun.as_of_ms == last_ms + 1 - 6 * 3_600_000
    assert begun.served is not None
    assert all(each.time_ms < begun.as_of_ms for each in begun.served.impressions)
    assert cli.main(["nightly", *words, *small]) == 3, "the incumbent, the second, answered few"
    err = capsys.readouterr().err
    assert err.startswith("cascade: error: publish: too little overlap of the two policies: effective sample size")
    assert err.count("\n") == 1
    assert GenerationStore(tmp_path / "generations").ids() == loop.store.ids()
