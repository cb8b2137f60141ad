"""A gate is red where its figure misses the limit, or is no figure."""

import math
import re
from collections.abc import Callable, Mapping
from typing import Any

import pytest

from training.gates import (
    Gate,
    GateFailed,
    GateSettings,
    UpliftSettings,
    index_gates,
    ranker_gates,
    require,
    smoke_gates,
    uplift_gate,
)

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
        GateSettings(**dict[str, Any]({name: value}))


@pytest.mark.parametrize(
    ("low", "earned", "share", "passed"),
    [(-0.5, 10.0, -0.05, True), (-0.51, 10.0, -0.051, False), (0.2, 2.0, 0.1, True), (0.5, -1.0, 0.5, True)],
)
def test_a_lower_bound_of_the_uplift_is_held_against_what_the_incumbent_earned(
    low: float, earned: float, share: float, passed: bool
) -> None:
    gate = uplift_gate(UpliftSettings(least=-0.05), {"uplift.low": low, "uplift.earned": earned})
    assert gate.value == pytest.approx(share)
    assert (gate.name, gate.limit, gate.passed) == ("uplift.low_share", ">= -0.05", passed)


def test_an_uplift_that_is_unknown_or_over_nothing_is_red() -> None:
    assert not uplift_gate(UpliftSettings(), {"uplift.low": math.nan, "uplift.earned": 1.0}).passed
    assert not uplift_gate(UpliftSettings(), {"uplift.low": 0.1, "uplift.earned": 0.0}).passed


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"hours": -1.0}, "hours is -1.0; it must be at least 0 and less than a year"),
        ({"hours": math.nan}, "hours is nan; it must be at least 0"),
        ({"least": 1.5}, "least is 1.5; it must be from -1 to 1"),
        ({"on_no_overlap": "hope"}, "on_no_overlap is 'hope'; it must be one of refuse, pass"),
    ],
)
def test_how_a_generation_is_judged_is_checked(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)):
        UpliftSettings(**changes)
