"""Point-in-time joins against loops that follow the definitions, and the log's bytes against themselves."""

from dataclasses import fields, replace

import numpy as np
import polars as pl
import pytest
from example_cases import ACTIONS, START_MS, SimulatedLog, event_frame, simulated_log
from hypothesis import given
from hypothesis import strategies as st

from candidate_gen.counts import Spans
from candidate_gen.features import feature_table
from index.types import Hits
from protos.impression_pb2 import Impression
from training.datasets.dataset import IMPRESSION_SCHEMA, SYNTHETIC
from training.examples.counters import item_counters
from training.examples.events import point_in_time_history
from training.examples.exposures import ATTRIBUTION_MS, Examples, from_impressions, from_log, item_rows, tower_pairs

_DAY_MS = 86_400_000
_ITEMS = pl.Series(["i0", "i1", "i2", "i3"])

_EVENTS = st.lists(
    st.tuples(
        st.sampled_from(["", "u0", "u1", "u2"]),
        st.sampled_from([*_ITEMS, "gone"]),
        st.sampled_from(["click", "like", "stare"]),
        st.integers(0, 12),
        st.integers(0, 6),
    ),
    max_size=25,
).map(
    lambda rows: event_frame(
        [
            (f"e{n:02}", "", user, item, action, 1.0, time, time + delay, -1)
            for n, (user, item, action, time, delay) in enumerate(rows)
        ]
    )
)


@given(
    _EVENTS,
    st.lists(st.tuples(st.sampled_from(["", "u0", "u1", "nobody"]), st.integers(-1, 20)), max_size=8),
    st.integers(1, 5),
    st.booleans(),
    st.randoms(use_true_random=False),
)
def test_a_history_holds_what_was_known_at_the_time_newest_first(
    events: pl.DataFrame, asked: list[tuple[str, int]], length: int, strictly: bool, random: object
) -> None:
    shuffled = events.sample(fraction=1, shuffle=True, seed=random.randint(0, 999))  # type: ignore[attr-defined]
    row_BL, action_BL, time_ms_BL = point_in_time_history(
        shuffled,
        [user for user, _ in asked],
        np.array([time for _, time in asked], np.int64),
        length=length,
        item_ids=_ITEMS,
        actions=ACTIONS,
        strictly=strictly,
    )
    assert row_BL.shape == action_BL.shape == time_ms_BL.shape == (len(asked), length)
    for b, (user, at_ms) in enumerate(asked):
        known = [
            (each["visible_ms"], each["time_ms"], each["event_id"], each)
            for each in events.iter_rows(named=True)
            if user
            and each["user_id"] == user
            and each["item_id"] in _ITEMS
            and each["time_ms"] <= at_ms
            and (each["visible_ms"] < at_ms if strictly else each["visible_ms"] <= at_ms)
        ]
        newest = [each for *_, each in sorted(known, key=lambda one: one[:3], reverse=True)][:length]
        pad = length - len(newest)
        assert row_BL[b].tolist() == [int(each["item_id"][1:]) for each in newest] + [-1] * pad
        numbers = {"click": 1, "like": 2, "stare": 0}
        assert action_BL[b].tolist() == [numbers[each["action"]] for each in newest] + [0] * pad
        assert time_ms_BL[b].tolist() == [each["time_ms"] for each in newest] + [0] * pad


class Titles:
    """A lexical index that finds the items whose number is typed."""

    def search(self, text: str, k: int) -> Hits:
        assert k == len(_small().items)
        row_K = np.array([int(word) for word in text.split()], np.int64)
        return Hits(row_K, (1.0 + row_K).astype(np.float32))


def test_how_well_an_item_matches_what_was_typed_is_asked_again() -> None:
    log = _small()
    texts = ["3 7" if r % 2 else "" for r in range(log.impressions.height)]
    log = replace(log, impressions=log.impressions.with_columns(text=pl.Series(texts)))
    examples = _examples(log, lexical=Titles())
    typed_N = examples.query_row_N["text"].any(axis=1)
    position = {tuple(row): i for i, row in enumerate(log.table.encode("item_id", log.items["item_id"].to_list()))}
    item_N = np.array([position[tuple(row)] for row in examples.item_row_N["item_id"]])
    expected_N = np.where(typed_N & np.isin(item_N, [3, 7]), np.log1p(1.0 + item_N), 0)
    assert expected_N.any()
    np.testing.assert_allclose(examples.pair_row_N["bm25"], expected_N, rtol=1e-6)
    assert not _examples(log).pair_row_N["bm25"].any()


def _small() -> SimulatedLog:
    return simulated_log(seed=5, users=6, items=12, requests=25, slots=4, days=3)


def _examples(log: SimulatedLog, **changes: object) -> Examples:
    given_ = {
        "users": log.users,
        "items": log.items,
        "impressions": log.impressions,
        "events": log.events,
        "watermark_ms": log.end_ms,
    }
    return from_impressions(log.table, **{**given_, **changes})  # type: ignore[arg-type]


_SIX_HOURS_MS = 21_600_000
_AT_MS = START_MS // _DAY_MS * _DAY_MS + 5 * _DAY_MS + 2 * _SIX_HOURS_MS
"""When the request is made whose features are looked at."""
_CATALOGUE = pl.DataFrame(
    {
        "item_id": [f"i{i}" for i in range(5)],
        "title": [f"volume {i}" for i in range(5)],
        "category": ["a", "b", "a", None, "b"],
        "creator": ["c", "d", "c", "d", None],
        "published_ms": [_AT_MS - 9 * _DAY_MS] * 5,
        "available": [True] * 5,
    }
)
_WINDOWED = feature_table(
    users=3,
    items=5,
    actions=ACTIONS,
    categories=("a", "b"),
    sources=("ann",),
    user_columns={},
    item_columns={},
    spans=Spans(window_hours=(6, 24), trend_half_life_hours=(12,), affinity_half_life_hours=(12,)),
    history_length=3,
    title_length=4,
)
_Happened = tuple[str, str, str, int, int]
"""User, item, action; steps of six hours from the request to the event, and to when it became visible."""


def _happened(*, known: bool) -> st.SearchStrategy[list[_Happened]]:
    """Events that were, or were not, both over and visible when the request was made; many at its very moment."""
    steps = st.integers(-12, 0 if known else 8)
    return st.lists(
        st.tuples(
            st.sampled_from(["u0", "u1", ""]),
            st.sampled_from([*_CATALOGUE["item_id"], "gone"]),
            st.sampled_from([*ACTIONS, "stare"]),
            steps,
            steps,
        ).filter(lambda each: known or max(each[3:]) > 0),
        max_size=8,
    )


def _shown(*, earlier: bool) -> st.SearchStrategy[list[tuple[int, list[str]]]]:
    steps = st.integers(-12, -1) if earlier else st.integers(0, 8)
    items = st.lists(st.sampled_from([*_CATALOGUE["item_id"], "gone"]), min_size=1, max_size=3, unique=True)
    return st.lists(st.tuples(steps, items), max_size=4)


def _features(
    past: tuple[list[tuple[int, list[str]]], list[_Happened]],
    future: tuple[list[tuple[int, list[str]]], list[_Happened]],
    *,
    items: pl.DataFrame,
    wait_ms: int,
) -> dict[str, bytes]:
    """Every feature of the request `asked`, by name, as the public function makes it of a log."""
    requests = [("asked", 0, ["i0", "i1", "i3"])]
    events = []
    for word, (shown, happened) in (("past", past), ("future", future)):
        requests += [(f"{word}{r}", step, ids) for r, (step, ids) in enumerate(shown)]
        for n, (user, item, action, time, visible) in enumerate(happened):
            # Of a request that showed the item if one did, also of the one that is looked at.
            shows = [name for name, _, ids in requests if item in ids]
            at_ms, visible_ms = _AT_MS + time * _SIX_HOURS_MS, _AT_MS + visible * _SIX_HOURS_MS
            events.append(
                (f"{word}{n}", shows[n % len(shows)] if shows else "", user, item, action, 1.0, at_ms, visible_ms, 0)
            )
    impressions = pl.DataFrame(
        [
            (name, "u0", _AT_MS + step * _SIX_HOURS_MS, "home", "volume 1", ids, [0.5] * len(ids))
            for name, step, ids in requests
        ],
        IMPRESSION_SCHEMA,
        orient="row",
    )
    examples = from_impressions(
        _WINDOWED,
        users=pl.DataFrame({"user_id": ["u0", "u1"]}),
        items=items,
        impressions=impressions,
        events=event_frame(events),
        watermark_ms=_AT_MS + ATTRIBUTION_MS + wait_ms,
    )
    names = impressions.filter(pl.col("time_ms") <= _AT_MS + wait_ms).sort("time_ms", "request_id")["request_id"]
    row_of = {name: r for r, name in enumerate(_with_items(impressions, names, items))}
    of_N = examples.request_N == row_of["asked"]
    rows = {
        "query": examples.query_row_R[row_of["asked"]],
        "item": examples.item_row_N[of_N],
        "pair": examples.pair_row_N[of_N],
    }
    return {name: row[name].tobytes() for row in rows.values() for name in row.dtype.names or ()}


def _with_items(impressions: pl.DataFrame, names: pl.Series, items: pl.DataFrame) -> list[str]:
    """Requests that leave an example: those that showed an item of the catalogue."""
    shown = impressions.explode("item_id").filter(pl.col("item_id").is_in(items["item_id"].to_list()))
    held = set(shown["request_id"])
    return [name for name in names if name in held]


@given(
    st.tuples(_shown(earlier=True), _happened(known=True)),
    st.tuples(_shown(earlier=False), _happened(known=False)),
    st.tuples(_shown(earlier=False), _happened(known=False)),
    st.integers(0, 3 * _DAY_MS),
    st.booleans(),
)
def test_no_feature_postdates_its_impression(
    past: tuple[list[tuple[int, list[str]]], list[_Happened]],
    future: tuple[list[tuple[int, list[str]]], list[_Happened]],
    other: tuple[list[tuple[int, list[str]]], list[_Happened]],
    wait_ms: int,
    published: bool,
) -> None:
    """Whatever happens or becomes visible after a request, and whatever else is shown from then on, and published:
    every feature of it has the same bytes. What is known at its very moment is of its past."""
    new = pl.DataFrame([("new", "volume 1", "a", "c", _AT_MS + 1, True)], _CATALOGUE.schema, orient="row")
    before = _features(past, future, items=_CATALOGUE, wait_ms=0)
    items = pl.concat([new, _CATALOGUE]) if published else _CATALOGUE
    after = _features(past, other, items=items, wait_ms=wait_ms)
    assert set(before) == {feature.name for feature in _WINDOWED.features}
    assert {name for name in before if before[name] != after[name]} == set()


def test_every_count_and_cross_does_change_with_what_was_known_before() -> None:
    """The counterpart of the test above: without it, features that ignore all events would pass."""
    nothing = _features(([], []), ([], []), items=_CATALOGUE, wait_ms=0)
    changed = set()
    for action in ACTIONS:
        past = ([(-3, ["i0", "i1", "i4"])], [("u0", item, action, -3, -3) for item in ("i0", "i4", "i3")])
        told = _features(past, ([], []), items=_CATALOGUE, wait_ms=0)
        changed |= {name for name in told if told[name] != nothing[name]}
    made_of_logs = {name for name, _ in (*_WINDOWED.counters, *_WINDOWED.crosses)}
    history = {feature.name for feature in _WINDOWED.features if feature.owner == "history"}
    assert changed == made_of_logs | history


def test_a_past_event_does_change_the_features() -> None:
    """The counterpart of the test above: without it, features that ignore all events would pass."""
    log = _small()
    before = _examples(log)
    r = len(before.time_ms_R) - 1
    request = log.impressions.sort("time_ms")[r]
    at_ms, item = int(before.time_ms_R[r]), request["item_id"][0][0]
    planted = event_frame(
        [("new", "r0", request["user_id"][0], item, "click", 1.0, at_ms - 2 * _DAY_MS, at_ms - 2 * _DAY_MS + 1, 0)]
    )
    after = _examples(log, events=pl.concat([log.events, planted]))
    row_N = np.flatnonzero(before.request_N == r)
    assert after.query_row_R[r].tobytes() != before.query_row_R[r].tobytes()
    assert after.item_row_N[row_N[0]]["click_rate"] > before.item_row_N[row_N[0]]["click_rate"]
    assert after.pair_row_N[row_N[0]]["log_repeats"] > before.pair_row_N[row_N[0]]["log_repeats"]


def test_counters_follow_their_definitions_and_stop_at_the_moment() -> None:
    log = _small()
    as_of_ms = START_MS + 2 * _DAY_MS
    counters = item_counters(log.impressions, log.events, log.items, as_of_ms=as_of_ms, table=log.table)
    shown = dict.fromkeys(log.items["item_id"], 0)
    for each in log.impressions.iter_rows(named=True):
        for item in each["item_id"]:
            shown[item] += each["time_ms"] < as_of_ms
    hits: dict[str, dict[str, int]] = {action: dict.fromkeys(log.items["item_id"], 0) for action in ACTIONS}
    popularity = dict.fromkeys(log.items["item_id"], 0.0)
    for each in log.events.iter_rows(named=True):
        if each["visible_ms"] < as_of_ms:
            hits[each["action"]][each["item_id"]] += 1
            if each["action"] == "click":
                popularity[each["item_id"]] += 0.5 ** ((as_of_ms - each["time_ms"]) / (7 * _DAY_MS))
    assert 0 < sum(shown.values()) < log.impressions.height * 4
    np.testing.assert_allclose(counters.column_of["log_shown"], np.log1p(list(shown.values())), rtol=1e-6)
    np.testing.assert_allclose(counters.popularity_I, list(popularity.values()), rtol=1e-5)
    for action in ACTIONS:
        hit_I, shown_I = np.array(list(hits[action].values())), np.array(list(shown.values()))
        prior = hit_I.sum() / shown_I.sum()
        np.testing.assert_allclose(
            counters.column_of[f"{action}_rate"], (hit_I + 20 * prior) / (shown_I + 20), rtol=1e-5
        )


def test_example_items_are_as_of_the_start_of_the_day_and_else_as_the_generation_has_them() -> None:
    log = _small()
    examples = _examples(log)
    slots = log.impressions.sort("time_ms", "request_id").explode("item_id", "propensity")
    for n in range(0, len(examples), 9):
        time_ms = int(examples.time_ms_N[n])
        counters = item_counters(
            log.impressions, log.events, log.items, as_of_ms=time_ms // _DAY_MS * _DAY_MS, table=log.table
        )
        row_I = item_rows(log.table, log.items, counters)
        expected = row_I[log.items["item_id"].to_list().index(slots["item_id"][n])]
        for name in row_I.dtype.names or ():
            np.testing.assert_allclose(examples.item_row_N[n][name], expected[name], rtol=1e-5, err_msg=name)


def test_an_action_counts_once_an_exposure_and_rates_stay_below_1() -> None:
    log = _small()
    twice = log.events.with_columns(event_id=pl.col("event_id") + "again")
    one, two = (
        item_counters(log.impressions, events, log.items, as_of_ms=log.end_ms, table=log.table)
        for events in (log.events, pl.concat([log.events, twice]))
    )
    for name, column_I in one.column_of.items():
        np.testing.assert_array_equal(column_I, two.column_of[name], err_msg=name)
    empty = item_counters(log.impressions.clear(), log.events, log.items, as_of_ms=log.end_ms, table=log.table)
    assert not any(column_I.any() for column_I in empty.column_of.values())
    assert empty.popularity_I.sum() > 0, "popularity does not need impressions"


def test_labels_are_outcomes_in_time_and_immature_exposures_are_withheld() -> None:
    log = _small()
    last_ms = int(log.impressions["time_ms"].max())  # type: ignore[arg-type]
    watermark_ms = last_ms + ATTRIBUTION_MS - 1
    examples = _examples(log, watermark_ms=watermark_ms)
    assert len(examples) == 4 * (log.impressions.height - 1), "the last request is one millisecond too young"
    happened = {(each["request_id"], each["item_id"], each["action"]) for each in log.events.iter_rows(named=True)}
    slots = log.impressions.sort("time_ms").head(-1).explode("item_id")
    expected = [
        [(request, item, action) in happened for action in ACTIONS]
        for request, item in slots.select("request_id", "item_id").iter_rows()
    ]
    np.testing.assert_array_equal(examples.label_NA, expected)
    assert 0 < examples.label_NA.mean() < 1
    late = log.events.with_columns(pl.col("time_ms", "visible_ms") + ATTRIBUTION_MS)
    assert not _examples(log, events=late).label_NA.any(), "after the window"
    unseen = log.events.with_columns(visible_ms=pl.lit(log.end_ms + 1))
    assert not _examples(log, events=unseen).label_NA.any(), "not visible at the watermark"


def test_items_that_the_catalogue_does_not_hold_leave_no_example() -> None:
    log = _small()
    examples = _examples(log, items=log.items.filter(pl.col("item_id") != "i3"))
    shown = log.impressions.explode("item_id").filter(pl.col("item_id") == "i3").height
    assert shown > 0
    assert len(examples) == 4 * log.impressions.height - shown


def _logged(log: SimulatedLog, examples: Examples) -> list[Impression]:
    impressions = []
    for r, each in enumerate(log.impressions.sort("time_ms").iter_rows(named=True)):
        of_N = examples.request_N == r
        impressions.append(
            Impression(
                request_id=each["request_id"],
                time_ms=each["time_ms"],
                schema=log.table.fingerprint,
                item_id=each["item_id"],
                propensity=each["propensity"],
                query_row=examples.query_row_R[r].tobytes(),
                item_rows=examples.item_row_N[of_N].tobytes(),
                pair_rows=examples.pair_row_N[of_N].tobytes(),
            )
        )
    return impressions


def test_logged_bytes_are_the_training_bytes() -> None:
    log = _small()
    joined = _examples(log)
    logged = from_log(
        log.table, [*_logged(log, joined), Impression(schema="no items")], log.events, watermark_ms=log.end_ms
    )
    for each in fields(Examples):
        one, other = getattr(joined, each.name), getattr(logged, each.name)
        assert one.dtype == other.dtype
        assert one.tobytes() == other.tobytes(), each.name


def test_bytes_of_another_feature_table_or_of_another_length_are_refused() -> None:
    log = _small()
    logged = _logged(log, _examples(log))
    other = feature_table(
        users=1, items=1, actions=ACTIONS, categories=["a"], sources=["ann"], user_columns={}, item_columns={}
    )
    with pytest.raises(ValueError, match=f"{log.table.fingerprint}, not {other.fingerprint}"):
        from_log(other, logged, log.events, watermark_ms=log.end_ms)
    logged[3].item_rows = logged[3].item_rows[:-1]
    size = log.table.dtype("item").itemsize
    with pytest.raises(ValueError, match=f"holds {4 * size - 1} bytes of item rows; 4 rows take {4 * size}"):
        from_log(log.table, logged, log.events, watermark_ms=log.end_ms)


def test_an_empty_log_makes_no_examples() -> None:
    log = _small()
    for empty in (
        _examples(log, impressions=log.impressions.clear()),
        from_log(log.table, [], log.events, watermark_ms=log.end_ms),
    ):
        assert len(empty) == 0
        assert empty.label_NA.shape == (0, 2)
    with pytest.raises(ValueError, match="there are no examples"):
        Examples.concatenate([])


def test_parts_put_together_and_taken_apart_are_what_they_were() -> None:
    log = _small()
    examples = _examples(log)
    whole = Examples.concatenate([examples, examples])
    assert len(whole.time_ms_R) == 2 * len(examples.time_ms_R)
    random = np.random.default_rng(0).permutation(len(whole))[:37]
    taken = whole.take(random)
    for name in ("item_row_N", "pair_row_N", "label_NA", "position_N", "propensity_N", "query_row_N", "time_ms_N"):
        np.testing.assert_array_equal(getattr(taken, name), getattr(whole, name)[random], err_msg=name)
    assert len(taken.query_row_R) == len(np.unique(whole.request_N[random]))
    narrow = feature_table(
        users=1, items=1, actions=ACTIONS, categories=["a"], sources=["ann"], user_columns={}, item_columns={}
    )
    other = from_log(narrow, [], log.events, watermark_ms=log.end_ms)
    with pytest.raises(ValueError, match="query_row_R of one part has fields"):
        Examples.concatenate([examples, other])


def test_tower_pairs_are_positives_with_what_was_known_strictly_before() -> None:
    log = _small()
    searches = log.impressions.with_columns(
        text=pl.when(pl.col("request_id") == "r7").then(pl.lit("category 1")).otherwise(pl.col("text")),
        surface=pl.when(pl.col("request_id") == "r7").then(pl.lit("search")).otherwise(pl.col("surface")),
    )
    elsewhere = event_frame([("x", "", "u0", "i1", "click", 1.0, START_MS + _DAY_MS, START_MS + _DAY_MS, -1)])
    events = pl.concat([log.events, elsewhere])
    counters = item_counters(searches, events, log.items, as_of_ms=log.end_ms, table=log.table)
    row_I = item_rows(log.table, log.items, counters)

    def pairs(most: int) -> tuple[np.ndarray, np.ndarray]:
        query_row_N, item_N, hard_row_NH = tower_pairs(
            log.table,
            users=log.users,
            items=log.items,
            item_row_I=row_I,
            events=events,
            impressions=searches,
            most=most,
            hard=0,
            watermark_ms=log.end_ms,
        )
        assert hard_row_NH.shape == (len(item_N), 0)
        return query_row_N, item_N

    query_row_N, item_N = pairs(10_000)
    few_row_N, few_N = pairs(len(item_N) // 2 + 1)
    np.testing.assert_array_equal(few_N, item_N[::2])
    assert few_row_N.tobytes() == query_row_N[::2].tobytes()
    clicks = events.filter(pl.col("action") == "click")
    assert len(query_row_N) == len(item_N) == clicks.height
    assert sorted(item_N.tolist()) == sorted(int(item[1:]) for item in clicks["item_id"])
    asked_ms = searches.select("request_id", asked_ms="time_ms")
    ordered = (
        clicks.join(asked_ms, on="request_id", how="left")
        .with_columns(at_ms=pl.coalesce("asked_ms", "time_ms"))
        .sort("at_ms", "time_ms", "event_id")
    )
    length = log.table["history_item"].shape[0]
    for n, each in enumerate(ordered.iter_rows(named=True)):
        assert item_N[n] == int(each["item_id"][1:])
        before = events.filter((pl.col("user_id") == each["user_id"]) & (pl.col("visible_ms") < each["at_ms"]))
        held = (query_row_N[n]["history_item"] > 0).any(axis=-1).sum()
        assert held == min(before.height, length)
        assert bool(query_row_N[n]["text"].any()) == (each["request_id"] == "r7")


@pytest.mark.parametrize("hard", [1, 2, 9])
def test_hard_negatives_are_the_first_that_the_request_showed_and_that_were_not_taken(hard: int) -> None:
    log = _small()
    watermark_ms = int(log.impressions["time_ms"].sort()[-5]) + ATTRIBUTION_MS
    made_up = log.impressions.with_columns(
        request_id=pl.when(pl.col("request_id") == "r7").then(pl.lit(f"{SYNTHETIC}7")).otherwise(pl.col("request_id"))
    )
    unknown = log.items.filter(pl.col("item_id") != "i3")
    counters = item_counters(made_up, log.events, unknown, as_of_ms=log.end_ms, table=log.table)
    _, item_N, hard_row_NH = tower_pairs(
        log.table,
        users=log.users,
        items=unknown,
        item_row_I=item_rows(log.table, unknown, counters),
        events=log.events.filter(pl.col("item_id") != "i3"),
        impressions=made_up,
        most=10_000,
        hard=hard,
        watermark_ms=watermark_ms,
    )
    clicks = log.events.filter(pl.col("action") == "click", pl.col("item_id") != "i3")
    ordered = (
        clicks.join(made_up.select("request_id", "item_id", asked_ms="time_ms"), on="request_id", how="left")
        .with_columns(at_ms=pl.coalesce("asked_ms", "time_ms"))
        .sort("at_ms", "time_ms", "event_id")
    )
    position = {item: n for n, item in enumerate(unknown["item_id"])}
    expected = []
    for each in ordered.iter_rows(named=True):
        taken = set(clicks.filter(pl.col("request_id") == each["request_id"])["item_id"])
        ripe = each["asked_ms"] is not None and each["asked_ms"] <= watermark_ms - ATTRIBUTION_MS
        shown = (each["item_id_right"] or []) if ripe else []
        passed_over = [position[item] for item in shown if item not in taken and item in position][:hard]
        expected.append(passed_over + [-1] * (hard - len(passed_over)))
    assert item_N.tolist() == [position[item] for item in ordered["item_id"]]
    assert hard_row_NH.tolist() == expected
    assert (hard_row_NH >= 0).any()
    assert (hard_row_NH[:, 0] < 0).any()
