"""The data contract counts what is wrong with a night's data, and every one of its gates can turn red."""

from collections.abc import Callable
from dataclasses import replace

import polars as pl
import pytest
from conftest import Loop

from training.datasets.dataset import Dataset
from training.gates import Gate
from training.nightly.contract import ContractSettings, contract_gates, found_in

HOUR_MS, DAY_MS = 3_600_000, 86_400_000


def red(dataset: Dataset, settings: ContractSettings | None = None) -> set[str]:
    gates = contract_gates(settings or ContractSettings(), found_in(dataset).figures)
    return {gate.name for gate in gates if not gate.passed}


def events(*change: pl.Expr, **named: pl.Expr) -> Callable[[Dataset], Dataset]:
    return lambda dataset: replace(dataset, events=dataset.events.with_columns(*change, **named))


def impressions(*change: pl.Expr, **named: pl.Expr) -> Callable[[Dataset], Dataset]:
    return lambda dataset: replace(dataset, impressions=dataset.impressions.with_columns(*change, **named))


def twice(dataset: Dataset) -> Dataset:
    again = dataset.events.with_columns(event_id=pl.col("event_id") + "/again")
    return replace(dataset, events=pl.concat([dataset.events, again]))


def fewer_on_the_last_day(dataset: Dataset) -> Dataset:
    day = pl.col("time_ms") // DAY_MS
    kept = (day != day.max() - 1) | (pl.int_range(pl.len()) % 10 == 0)
    return replace(dataset, impressions=dataset.impressions.filter(kept))


def more_on_the_last_day(dataset: Dataset) -> Dataset:
    day = pl.col("time_ms") // DAY_MS
    last = dataset.impressions.filter(day == day.max() - 1)
    more = [last.with_columns(request_id=pl.col("request_id") + f"/{n}") for n in range(5)]
    return replace(dataset, impressions=pl.concat([dataset.impressions, *more]))


def test_a_log_as_it_should_be_is_green(loop: Loop) -> None:
    assert red(loop.dataset) == set()
    assert found_in(loop.dataset).broken == {}


@pytest.mark.parametrize(
    ("spoil", "names"),
    [
        (lambda d: replace(d, impressions=d.impressions.head(20)), {"contract.requests", "contract.orphans"}),
        (impressions(pl.col("time_ms") // 1000), {"contract.bad_rows.impressions"}),
        (impressions(pl.col("propensity").list.eval(pl.element() * 2)), {"contract.bad_rows.impressions"}),
        (impressions(pl.col("propensity").list.head(2)), {"contract.bad_rows.impressions"}),
        (impressions(request_id=pl.lit("one")), {"contract.bad_rows.impressions", "contract.orphans"}),
        (events(value=pl.lit(float("nan"))), {"contract.bad_rows.events"}),
        (events(pl.col("visible_ms") + 30 * HOUR_MS), {"contract.delay_h"}),
        (events(pl.col("visible_ms") - 2 * DAY_MS), {"contract.bad_rows.events"}),
        (events(request_id=pl.lit("never shown")), {"contract.orphans"}),
        (twice, {"contract.duplicates"}),
        (lambda d: replace(d, items=d.items.head(20)), {"contract.strangers"}),
        (lambda d: replace(d, items=pl.concat([d.items, d.items])), {"contract.bad_rows.items"}),
        (lambda d: replace(d, users=pl.concat([d.users, d.users])), {"contract.bad_rows.users"}),
        (fewer_on_the_last_day, {"contract.volume"}),
        (more_on_the_last_day, {"contract.volume"}),
    ],
)
def test_what_is_wrong_turns_its_gate_red(loop: Loop, spoil: Callable[[Dataset], Dataset], names: set[str]) -> None:
    assert names <= red(spoil(loop.dataset))


def test_a_few_bad_rows_are_counted_by_rule_and_tolerated(loop: Loop) -> None:
    first = pl.int_range(pl.len()) == 0
    spoilt = events(value=pl.when(first).then(float("inf")).otherwise(pl.col("value")))(loop.dataset)
    found = found_in(spoilt)
    assert found.broken == {"events: value|inf": 1}
    assert 0 < found.figures["contract.bad_rows.events"] < 0.01
    assert red(spoilt, ContractSettings(bad_rows=0.01)) == set()


def test_a_short_log_says_nothing_of_volumes(loop: Loop) -> None:
    day = pl.col("time_ms") // DAY_MS
    short = replace(loop.dataset, impressions=loop.dataset.impressions.filter(day > day.max() - 3))
    names = {gate.name: gate for gate in contract_gates(ContractSettings(), found_in(short).figures)}
    assert "contract.volume" not in names
    assert isinstance(names["contract.requests"], Gate)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bad_rows": 1.5}, "bad_rows is 1.5; it must be from 0 to 1"),
        ({"volume_low": 2.0}, "volumes go from 2.0 to 3.0; 1 must be between them"),
        ({"delay_h": 0.0}, "delay_h is 0.0; it must be above 0"),
        ({"requests": -1}, "requests is -1; it must not be negative"),
    ],
)
def test_a_contract_that_is_none_is_refused(changes: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ContractSettings(**changes)  # type: ignore[arg-type]
