"""An outcome that may yet come is waited for: no example says "no" before it can be known."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from example_cases import START_MS, SimulatedLog, simulated_log
from hypothesis import given, settings
from hypothesis import strategies as st

from training.examples.exposures import ATTRIBUTION_MS, Examples, from_impressions, tower_pairs
from training.simulation.world import World

LOG = simulated_log(seed=4, users=20, requests=120, days=1)
DAY_MS = 86_400_000


def late(log: SimulatedLog, *, seed: int) -> SimulatedLog:
    """The same outcomes, each at some time within the attribution window and known at some later time within it."""
    random = np.random.default_rng(seed)
    shown = log.impressions.select("request_id", shown_ms="time_ms")
    events = log.events.join(shown, on="request_id", maintain_order="left")
    after_ms = np.sort(random.integers(ATTRIBUTION_MS + 1, size=(events.height, 2)), axis=1)
    return replace(
        log,
        events=events.with_columns(
            time_ms=pl.col("shown_ms") + after_ms[:, 0], visible_ms=pl.col("shown_ms") + after_ms[:, 1]
        ).drop("shown_ms"),
    )


def labels(examples: Examples) -> dict[tuple[int, int], tuple[float, ...]]:
    """By the request's time and the slot."""
    keys = zip(examples.time_ms_N.tolist(), examples.position_N.tolist(), strict=True)
    return dict(zip(keys, map(tuple, examples.label_NA.tolist()), strict=True))


@settings(max_examples=15)
@given(st.integers(0, 100), st.integers(-ATTRIBUTION_MS, DAY_MS + 2 * ATTRIBUTION_MS))
def test_a_label_never_changes_once_its_exposure_is_an_example(seed: int, after_ms: int) -> None:
    """So a "no" is final, however late an outcome within its window came and was known."""
    log = late(LOG, seed=seed)
    final = labels(log.examples(log.end_ms + DAY_MS))
    assert len(final) == log.impressions["item_id"].list.len().sum()
    now = labels(log.examples(START_MS + after_ms))
    assert all(final[key] == label for key, label in now.items())
    mature = log.impressions.filter(pl.col("time_ms") <= START_MS + after_ms - ATTRIBUTION_MS)
    assert {time_ms for time_ms, _ in now} == set(mature["time_ms"].to_list())


def test_without_waiting_outcomes_would_be_missed() -> None:
    """What the test above would see: taken as they stand in the middle of the day, labels still change."""
    log = late(LOG, seed=0)
    watermark_ms = START_MS + DAY_MS // 2
    final = labels(log.examples(log.end_ms + DAY_MS))
    hasty = from_impressions(
        log.table,
        users=log.users,
        items=log.items,
        impressions=log.impressions,
        events=log.events,
        watermark_ms=watermark_ms,
        window_ms=0,
    )
    assert any(sum(label) < sum(final[key]) for key, label in labels(hasty).items())


@pytest.mark.parametrize("after_ms", [ATTRIBUTION_MS, 6 * ATTRIBUTION_MS, DAY_MS])
def test_an_item_is_no_hard_negative_while_it_may_yet_be_taken(after_ms: int) -> None:
    log = late(LOG, seed=1)
    watermark_ms = START_MS + after_ms
    known = log.events.filter(pl.col("visible_ms") <= watermark_ms)
    query_row_N, _, hard_row_NH = tower_pairs(
        log.table,
        users=log.users,
        items=log.items,
        item_row_I=log.table.empty("item", log.items.height),
        events=known,
        impressions=log.impressions.filter(pl.col("time_ms") <= watermark_ms),
        most=10_000,
        hard=8,
        watermark_ms=watermark_ms,
    )
    positives = (
        known.filter(pl.col("action") == "click")
        .join(log.impressions.select("request_id", asked_ms="time_ms"), on="request_id")
        .sort("asked_ms", "time_ms", "event_id")
    )
    assert len(query_row_N) == positives.height
    taken = set(log.events.filter(pl.col("action") == "click").select("request_id", "item_id").iter_rows())
    ids = log.items["item_id"].to_list()
    for request_id, hard_H in zip(positives["request_id"], hard_row_NH, strict=True):
        assert not any((request_id, ids[row]) in taken for row in hard_H.tolist() if row >= 0)
    assert (hard_row_NH >= 0).any() or after_ms == ATTRIBUTION_MS


def test_every_outcome_of_the_simulated_world_is_known_within_the_window() -> None:
    """Else its logs would hold silent negatives, whatever the examples do."""
    world = World(0, users=100, items=200, days=3)
    requests = world.requests(world.start_ms, world.day_ms(3), 1000)
    impressions, events = world.first_log(requests)
    shown = impressions.select("request_id", shown_ms="time_ms")
    waited = events.join(shown, on="request_id").select(pl.col("visible_ms") - pl.col("shown_ms")).to_series()
    assert 0 < waited.max() <= ATTRIBUTION_MS  # type: ignore[operator]
