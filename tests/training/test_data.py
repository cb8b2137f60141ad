"""The canonical frames, and impressions made up for a data set that has none."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from training.datasets.dataset import (
    EVENT_SCHEMA,
    IMPRESSION_SCHEMA,
    ITEM_SCHEMA,
    DataError,
    Dataset,
    synthesise_impressions,
)


def _history(users: int, items: int, taken: int, *, seed: int = 0) -> Dataset:
    rng = np.random.default_rng(seed)
    pairs = [(u, i) for u in range(users) for i in rng.choice(items, taken, replace=False)]
    return Dataset(
        items=pl.DataFrame(
            {
                "item_id": [f"i{i}" for i in range(items)],
                "title": ["t"] * items,
                "category": ["c"] * items,
                "creator": ["m"] * items,
                "published_ms": np.arange(items) * 10,
                "available": [True] * items,
            },
            ITEM_SCHEMA,
        ),
        users=pl.DataFrame({"user_id": [f"u{u}" for u in range(users)]}),
        impressions=pl.DataFrame(schema=IMPRESSION_SCHEMA),
        events=pl.DataFrame(
            [
                (f"{action}{u}-{i}", "", f"u{u}", f"i{i}", action, 1.0, at, at, -1)
                for n, (u, i) in enumerate(pairs)
                for action, at in (("click", 10 * int(i) + 1000 + n), ("like", 10 * int(i) + 1005 + n))
            ],
            EVENT_SCHEMA,
            orient="row",
        ),
        actions=("click", "like"),
        weights={"click": 1.0, "like": 2.0},
    )


def test_made_up_impressions_hold_one_taken_item_and_others_never_taken_and_already_there() -> None:
    data = _history(users=20, items=300, taken=12)
    made = synthesise_impressions(data, negatives=7, positives=100, seed=1)
    taken = set(data.events.select("user_id", "item_id").iter_rows())
    published = dict(data.items.select("item_id", "published_ms").iter_rows())
    assert made.impressions.height == 100
    assert made.impressions["request_id"].str.starts_with("synthetic-").all()
    assert made.impressions["request_id"].n_unique() == 100
    slots = []
    for request_id, user_id, time_ms, _, _, item_ids, propensities in made.impressions.iter_rows():
        assert len(set(item_ids)) == 8
        assert propensities == [1 / 8] * 8
        at = [k for k, item_id in enumerate(item_ids) if (user_id, item_id) in taken]
        assert len(at) == 1
        assert all(published[item_id] <= time_ms for item_id in item_ids)
        outcomes = made.events.filter(request_id=request_id)
        assert outcomes["action"].to_list() == ["click", "like"]
        assert outcomes["position"].to_list() == at * 2
        assert outcomes["item_id"].to_list() == [item_ids[at[0]]] * 2
        assert outcomes["visible_ms"].min() == time_ms + 1  # or the history would hold the outcome
        slots += at
    assert len(set(slots)) == 8
    assert made.events.drop("request_id", "position").equals(data.events.drop("request_id", "position"))
    assert made.events.filter(pl.col("request_id") == "")["position"].unique().to_list() == [-1]


def test_made_up_impressions_depend_on_the_seed_alone() -> None:
    data = _history(users=10, items=200, taken=5)
    first, again, other = (synthesise_impressions(data, positives=20, seed=seed).impressions for seed in (1, 1, 2))
    assert first.equals(again)
    assert not first.equals(other)


def test_a_made_up_search_is_for_words_of_its_item_and_half_of_its_negatives_match_too() -> None:
    data = _history(users=40, items=300, taken=12)
    first, second = ("red", "green", "blue", "white", "black"), ("fox", "owl", "eel", "ant")
    titles = [f"The {first[i % 5]} {second[i % 4]} of {i}" for i in range(300)]
    data = replace(data, items=data.items.with_columns(title=pl.Series(titles), description=pl.lit("swift of legs")))
    made = synthesise_impressions(data, positives=400, negatives=6, searches=0.5, seed=2)
    title_of = dict(zip(data.items["item_id"], titles, strict=True))
    published = dict(data.items.select("item_id", "published_ms").iter_rows())
    taken = set(data.events.select("user_id", "item_id").iter_rows())
    asked = made.impressions.filter(pl.col("text") != "")
    assert 150 < asked.height < 250
    assert set(asked["surface"]) == {"search"}
    assert set(made.impressions.filter(pl.col("text") == "")["surface"]) == {"home"}
    assert {len(text.split()) for text in asked["text"]} == {1, 2, 3}
    for user_id, time_ms, text, item_ids in asked.select("user_id", "time_ms", "text", "item_id").iter_rows():
        matching = {i for i, title in title_of.items() if set(text.split()) & set(title.lower().split())}
        (item_id,) = [each for each in item_ids if (user_id, each) in taken]
        assert set(text.split()) <= set(title_of[item_id].lower().split()) - {"the"}
        others = {i for i in matching if published[i] <= time_ms and (user_id, i) not in taken}
        assert len(matching & set(item_ids)) - 1 >= min(3, len(others))


def test_half_of_the_negatives_are_drawn_by_popularity() -> None:
    data = _history(users=200, items=1000, taken=5, seed=3)
    star = pl.DataFrame(
        [(f"s{u}", "", f"u{u}", "i0", "click", 1.0, 50_000, 50_000, -1) for u in range(100)],
        EVENT_SCHEMA,
        orient="row",
    )
    made = synthesise_impressions(
        Dataset(
            items=data.items.with_columns(published_ms=pl.lit(0, pl.Int64)),
            users=data.users,
            impressions=data.impressions,
            events=pl.concat([data.events, star]),
            actions=data.actions,
            weights=data.weights,
        ),
        negatives=2,
        positives=10_000,
        seed=0,
    )
    others = made.impressions.filter(pl.col("user_id").str.slice(1).cast(pl.Int64) >= 100)
    shown = others.filter(pl.col("item_id").list.contains("i0")).height / others.height
    # i0 has about 100 of 1100 takes: one popular draw in eleven, half of two draws are popular.
    assert 0.05 < shown < 0.14


def test_pairs_of_unknown_value_or_without_enough_to_choose_from_are_not_shown() -> None:
    data = _history(users=3, items=30, taken=4)
    unknown = pl.when(pl.col("user_id") == "u0").then(None).otherwise(pl.col("value"))
    some = Dataset(
        items=data.items,
        users=data.users,
        impressions=data.impressions,
        events=data.events.with_columns(value=unknown),
        actions=data.actions,
        weights=data.weights,
    )
    assert set(synthesise_impressions(some, seed=0).impressions["user_id"]) == {"u1", "u2"}
    with pytest.raises(DataError, match="none of 12 pairs of user and item can be shown among 27 items"):
        synthesise_impressions(data, negatives=27, seed=0)
    with pytest.raises(DataError, match="at least 1, got 0"):
        synthesise_impressions(data, negatives=0, seed=0)


def test_a_data_set_checks_its_frames() -> None:
    data = _history(users=3, items=30, taken=4)

    def changed(**frames: pl.DataFrame) -> None:
        kept = {name: getattr(data, name) for name in ("items", "users", "impressions", "events")}
        Dataset(**{**kept, **frames}, actions=data.actions, weights=data.weights)

    with pytest.raises(DataError, match="items has no column 'title'"):
        changed(items=data.items.drop("title"))
    with pytest.raises(DataError, match="events: column 'time_ms' must be Int64, is Float64"):
        changed(events=data.events.with_columns(pl.col("time_ms").cast(pl.Float64)))
