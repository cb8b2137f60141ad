"""Counts follow items whatever row they have, and name what a request may be shown."""

import threading
from collections.abc import Sequence

import numpy as np
import pytest
from retrieval_cases import DAY_MS, NOW_MS, catalogue, hydrated, rows, unit_vectors

from candidate_gen.activity import EVENT
from candidate_gen.items import Items
from candidate_gen.live import LIVE, LiveCounts
from candidate_gen.types import Query
from index.masks import Mask
from index.strings import key64

ITEMS = catalogue(embedding_ID=unit_vectors(20))
QUOTAS = dict.fromkeys(LIVE, 10)
MINUTE_MS = 60_000


def counts(items: Items = ITEMS) -> LiveCounts:
    return LiveCounts(items, trending_half_life_s=3600, covisitation_half_life_s=86_400, visit_s=1800)


def events(*named: tuple[str, str, int]) -> np.ndarray:
    """Visitor, item, minutes after the start."""
    return np.array(
        [(key64(item), key64(who) if who else 0, 7, NOW_MS + minute * MINUTE_MS) for who, item, minute in named], EVENT
    )


def query(history: Sequence[int] = (), seeds: Sequence[int] = (), excluded: Sequence[int] = ()) -> Query:
    return hydrated(
        history=rows(*history), seeds=rows(*seeds), excluded=rows(*excluded), time_ms=NOW_MS + DAY_MS // 24
    ).query


def named(live: LiveCounts, asked: Query, items: Items = ITEMS, allowed: Mask | None = None) -> dict[str, list[int]]:
    found = live.named(asked, items, allowed, QUOTAS)
    for hits in found.values():
        assert np.isfinite(hits.score_K).all()
        assert (np.diff(hits.score_K) <= 0).all()
        assert hits.score_K.dtype == np.float32
        assert hits.row_K.dtype == np.int64
    return {name: hits.row_K.tolist() for name, hits in found.items()}


def test_what_is_taken_most_lately_is_trending() -> None:
    live = counts()
    live.add(events(*[("", "i3", minute) for minute in range(3)], ("", "i4", 1), ("", "i5", 2)), ITEMS)
    assert named(live, query())["trending"] == [3, 5, 4]
    live.add(events(*[("", "i4", 60) for _ in range(3)]), ITEMS)
    assert named(live, query())["trending"] == [4, 3, 5]


def test_the_score_is_the_decayed_count() -> None:
    live = counts()
    live.add(events(("", "i3", 0), ("", "i3", 60)), ITEMS)
    hits = live.named(query(), ITEMS, None, QUOTAS)["trending"]
    assert hits.score_K.tolist() == pytest.approx([1.5])


def test_what_one_visitor_takes_together_are_companions_and_what_comes_after_a_pause_is_not() -> None:
    live = counts()
    live.add(events(("a", "i1", 0), ("b", "i2", 1), ("a", "i3", 2), ("b", "i4", 50), ("", "i5", 51)), ITEMS)
    assert named(live, query([1]))["covisitation"] == [3]
    assert named(live, query([3]))["covisitation"] == [1]
    assert named(live, query([2]))["covisitation"] == [], "49 minutes are a pause"
    assert named(live, query([5]))["covisitation"] == [], "nobody in particular takes nothing together"
    assert named(live, query([1], seeds=[3]))["covisitation"] == [], "what is known is left out"
    assert named(live, query([2], seeds=[3]))["covisitation"] == [1], "seeds go before the history"
    assert named(live, query())["covisitation"] == []


def test_a_visit_goes_on_over_several_calls() -> None:
    live = counts()
    for event in (("a", "i1", 0), ("a", "i2", 25), ("a", "i3", 50)):
        live.add(events(event), ITEMS)
    assert set(named(live, query([3]))["covisitation"]) == {1, 2}


def test_what_is_known_or_not_allowed_is_left_out_and_others_come_instead() -> None:
    live = counts()
    live.add(events(*[("", f"i{row}", 0) for row in range(20) for _ in range(40 - row)]), ITEMS)
    assert named(live, query())["trending"] == list(range(10))
    assert named(live, query([0, 1], seeds=[2], excluded=[3]))["trending"] == list(range(4, 14))
    odd = Mask(np.arange(20) % 2 == 1)
    assert named(live, query(), allowed=odd)["trending"] == list(range(1, 20, 2))


def test_a_source_without_a_quota_is_not_asked() -> None:
    live = counts()
    live.add(events(("a", "i1", 0), ("a", "i2", 1)), ITEMS)
    assert list(live.named(query([1]), ITEMS, None, {"trending": 1, "covisitation": 0})) == ["trending"]
    assert len(live.named(query(), ITEMS, None, {"trending": 1})["trending"]) == 1


def test_items_that_nobody_knows_count_for_nothing() -> None:
    live = counts()
    live.add(events(("a", "junk", 0), ("a", "i1", 1), ("a", "other", 2)), ITEMS)
    assert named(live, query())["trending"] == [1]
    assert named(live, query([1]))["covisitation"] == []


def replaced(items: Items, *ids: str) -> Items:
    """With new rows for these ids, some of which may be new."""
    base = items.take(rows(0))
    parts = items
    for id_ in ids:
        renamed = Items.of(
            ids=[id_],
            titles=[id_],
            row_I=np.asarray(base.row_I),
            published_ms=[NOW_MS],
            embedding_ID=unit_vectors(1),
        )
        parts = parts.appended(renamed)
    return parts


def test_counts_stay_with_an_item_that_gets_a_new_row() -> None:
    live = counts()
    live.add(events(("a", "i1", 0), ("a", "i2", 1), ("", "i2", 1)), ITEMS)
    later = replaced(ITEMS, "i2", "new")
    assert named(live, query(), later, later.allowed)["trending"] == [20, 1]
    assert named(live, query([1]), later, later.allowed)["covisitation"] == [20]
    assert named(live, query([20]), later, later.allowed)["covisitation"] == [1]
    live.add(events(("b", "new", 2), ("b", "i2", 3), ("b", "i2", 3), ("b", "new", 4)), later)
    assert named(live, query(), later, later.allowed)["trending"] == [20, 21, 1]
    latest = replaced(later, "new")
    assert named(live, query(), latest, latest.allowed)["trending"] == [20, 22, 1]
    assert named(live, query([22]), latest, latest.allowed)["covisitation"] == [20]


def test_a_request_that_began_before_a_change_sees_its_own_rows() -> None:
    live = counts()
    later = replaced(ITEMS, "i2", "new")
    live.add(events(("", "i2", 0), ("", "i2", 0), ("", "new", 1)), later)
    assert named(live, query())["trending"] == [2], "the new item is not of this catalogue"
    assert named(live, query(), later, later.allowed)["trending"] == [20, 21]


def test_a_deleted_item_is_not_named() -> None:
    live = counts()
    live.add(events(("", "i1", 0), ("", "i2", 0)), ITEMS)
    later = ITEMS.without(rows(2))
    assert named(live, query(), later, later.allowed)["trending"] == [1]


def test_a_clock_that_is_behind_gives_finite_scores() -> None:
    live = counts()
    live.add(events(("a", "i1", 0), ("a", "i2", 1)), ITEMS)
    asked = hydrated(history=rows(1), time_ms=1).query
    for hits in live.named(asked, ITEMS, None, QUOTAS).values():
        assert len(hits)
        assert np.isfinite(hits.score_K).all()


def test_threads_may_write_and_ask_at_once() -> None:
    live = counts()
    failed: list[Exception] = []
    stop = threading.Event()

    def ask() -> None:
        try:
            while not stop.is_set():
                named(live, query([1]))
        except Exception as error:
            failed.append(error)

    def write(who: str) -> None:
        for n in range(50):
            live.add(events((f"{who}{n}", "i1", 0), (f"{who}{n}", f"i{2 + n % 5}", 1)), ITEMS)

    askers = [threading.Thread(target=ask) for _ in range(2)]
    for each in askers:
        each.start()
    writers = [threading.Thread(target=write, args=(who,)) for who in "ab"]
    for each in writers:
        each.start()
    for each in writers:
        each.join()
    stop.set()
    for each in askers:
        each.join()
    assert not failed
    assert named(live, query())["trending"][0] == 1
    assert set(named(live, query([1]))["covisitation"]) == {2, 3, 4, 5, 6}
