"""A user's profile in an example is the one that was known when the request was made."""

import numpy as np
import polars as pl

from training.cycle import prepare
from training.datasets.dataset import IMPRESSION_SCHEMA, Dataset, synthesise_impressions, unattributed_events

TOWNS = ("here", "there")


def moving(users: int = 20, items: int = 30) -> Dataset:
    """Everybody moves once, at a moment that is known ten hours later, and takes an item every hour."""
    random = np.random.default_rng(0)
    hour_ms, count = 3_600_000, 60
    user = [f"u{u}" for u in range(users) for _ in range(count)]
    time_ms = [hour_ms * (1 + hour) for _ in range(users) for hour in range(count)]
    item = [f"i{i}" for i in random.integers(items, size=users * count)]
    events = unattributed_events(
        pl.Series(user), pl.Series(item), pl.Series(time_ms), action=None, value=None, event=None
    )
    ids = [f"u{u}" for u in range(users)]
    moved_ms = hour_ms * 20
    states = pl.DataFrame(
        {
            "user_id": ids * 2,
            "town": ["here"] * users + ["there"] * users,
            "time_ms": [0] * users + [moved_ms] * users,
            "visible_ms": [0] * users + [moved_ms + 10 * hour_ms] * users,
        }
    )
    names = [f"i{i}" for i in range(items)]
    return Dataset(
        items=pl.DataFrame(
            {
                "item_id": names,
                "title": names,
                "category": ["c"] * items,
                "creator": ["d"] * items,
                "published_ms": [0] * items,
                "available": [True] * items,
            }
        ),
        users=states.tail(users).select("user_id", "town"),
        impressions=pl.DataFrame(schema=IMPRESSION_SCHEMA),
        events=events,
        actions=("click",),
        weights={"click": 1.0},
        user_columns={"town": TOWNS},
        user_states=states,
    )


def test_examples_and_towers_see_the_profile_that_was_known_and_a_server_the_newest() -> None:
    dataset = synthesise_impressions(moving(), negatives=2, seed=0)
    as_of_ms = int(dataset.events["time_ms"].to_numpy().max()) + 1
    prepared = prepare(dataset, as_of_ms=as_of_ms, tower_positives=10_000)
    known_ms = 30 * 3_600_000
    town_R, time_ms_R = prepared.examples.query_row_R["town"], prepared.examples.time_ms_R
    assert set(town_R.tolist()) == {1, 2}, "both towns, or this proves nothing"
    assert ((town_R == 2) == (time_ms_R >= known_ms)).all()
    assert {1, 2} == set(prepared.tower_query_N["town"].tolist())
    assert set(prepared.profile_U["town"].tolist()) == {2}
    early = prepare(dataset, as_of_ms=known_ms - 1, tower_positives=10_000)
    assert set(early.profile_U["town"].tolist()) == {1}
