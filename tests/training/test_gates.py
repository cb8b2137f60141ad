"""A gate is red where its figure misses the limit, or is no figure."""

import math
from collections.abc import Callable, Mapping

import pytest

from training.gates import Gate, GateFailed, GateSettings, index_gates, ranker_gates, require, smoke_gates

GREEN = {
    "index.items": 100.0,
    "index.poisoned": 0.0,
    "index.recall_low": 0.99,
    "index.found": 1.0,
    "ranker.click.auc": 0.7,
    "ranker.click.ece": 0.01,
}


def all_gates(metrics: Mapping[str, float], *, before: float = 0.0) -> dict[str, Gate]:
    gates = (
        *index_gates(GateSettings(), metrics, incumbent={"index.items": before} if before else {}),
        *smoke_gates(GateSettings(), metrics),
        *ranker_gates(GateSettings(), metrics, action="click"),
    )
    return {gate.name: gate for gate in gates}


def test_there_is_a_gate_for_every_figure_and_all_can_pass() -> None:
    gates = all_gates(GREEN)
    assert set(gates) == set(GREEN)
    assert all(gate.passed for gate in gates.values())
    require(gates.values())


@pytest.mark.parametrize(
    ("name", "limit", "better"),
    [
        ("index.poisoned", 0.001, lambda value: value - 0.0001),
        ("index.recall_low", 0.95, lambda value: value + 0.01),
        ("index.found", 0.99, lambda value: value + 0.01),
        ("ranker.click.auc", 0.55, lambda value: value + 0.01),
        ("ranker.click.ece", 0.05, lambda value: value - 0.01),
    ],
)
def test_a_figure_at_its_limit_passes_and_one_beyond_does_not(
    name: str, limit: float, better: Callable[[float], float]
) -> None:
    def passes(value: float) -> bool:
        return all_gates({**GREEN, name: value})[name].passed

    assert passes(better(limit))
    assert passes(limit)
    assert not passes(2 * limit - better(limit))
    assert not passes(math.nan)
    assert not all_gates({other: value for other, value in GREEN.items() if other != name})[name].passed


@pytest.mark.parametrize(("items", "passed"), [(80.0, True), (79.0, False), (100.0, True), (300.0, True), (0.0, False)])
def test_a_catalogue_may_shrink_only_so_far_beside_the_incumbents(items: float, passed: bool) -> None:
    gate = all_gates({**GREEN, "index.items": items}, before=100.0)["index.items"]
    assert (gate.passed, gate.limit) == (passed, ">= 80")


def test_a_first_generation_must_hold_at_least_one_item() -> None:
    gate = all_gates({**GREEN, "index.items": 0.0})["index.items"]
    assert (gate.passed, gate.limit) == (False, ">= 1")


def test_every_red_gate_is_named_with_figure_and_limit() -> None:
    gates = all_gates({**GREEN, "index.items": 0.0, "index.recall_low": math.nan, "index.poisoned": 0.25})
    with pytest.raises(GateFailed) as failed:
        require(gates.values())
    assert str(failed.value) == (
        "index.items is 0, must be >= 1; index.poisoned is 0.25, must be <= 0.001; "
        "index.recall_low is nan, must be >= 0.95"
    )


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
@pytest.mark.parametrize("name", ["index_recall", "found", "ranker_auc", "ranker_ece", "shrink"])
def test_a_limit_that_is_no_share_is_refused(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{name} is {value}; it must be from 0 to 1"):
        GateSettings(**{name: value})
