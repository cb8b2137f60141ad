"""What callers tell a server, and when the sources that learn from it say it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from serving_cases import NOW_MS, MemoryLog, call, generation, load_fakes, publish, serving

from candidate_gen.activity import EVENT, Activity
from candidate_gen.sources import Told
from candidate_gen.types import Query
from index.generations import GenerationStore
from index.strings import key64
from protos.events_pb2 import WriteEventsRequest
from protos.impression_pb2 import Degraded, Outcome, Variation
from protos.recommender_pb2 import Context, RecommendRequest, RecommendResponse
from serving.experiments.variants import varied
from serving.generation import Generation, action_key
from serving.generations import Generations
from serving.live import Live, _Counts
from serving.retrieval import RetrievalSettings

MINUTE_MS = 60_000


def outcome(item: str, *, user: str = "", minute: int = 1, action: str = "click", **others: Any) -> Outcome:
    time_ms = NOW_MS + minute * MINUTE_MS
    event_id = f"{user}/{item}/{action}/{minute}"
    told = {"user_id": user, "time_ms": time_ms, "visible_ms": time_ms, **others}
    return Outcome(event_id=event_id, item_id=item, action=action, **told)


def events(*named: tuple[str, str, int]) -> np.ndarray:
    """Visitor, item, minutes after the data of the generation ends."""
    return np.array(
        [(key64(item), key64(who), action_key("click"), NOW_MS + minute * MINUTE_MS) for who, item, minute in named],
        EVENT,
    )


def with_past(name: str, recent_E: np.ndarray | None = None) -> Generation:
    """A generation whose data ends at `NOW_MS`, with live sources in its pipeline."""
    made = generation(name)
    told = [(Told(each), 10) for each in ("covisitation", "trending")]
    sources = [*made.pipeline.sources[:-1], *told, made.pipeline.sources[-1]]
    activity = Activity.none() if recent_E is None else replace(Activity.none(), recent_E=recent_E)
    return replace(
        made, activity=activity, retrieval=RetrievalSettings(), pipeline=replace(made.pipeline, sources=sources)
    )


def trending(live: Live, of: Generation) -> list[str]:
    hits = live.named(Query("r", NOW_MS + 99 * MINUTE_MS, "home", 5), of, of.items.allowed)["trending"]
    return [of.items.ids.ids[row] for row in hits.row_K.tolist()]


FIRST = with_past("000001-00000000", events(("a", "i3", -5), ("b", "i3", -4), ("a", "i4", -3)))
SECOND = with_past("000002-00000000", events(("a", "i5", -2)))


@pytest.mark.parametrize(("quota", "named"), [(0, None), (1, ["i3"]), (90, ["i3", "i4"])])
def test_an_arm_is_told_as_many_as_its_own_quota_says(quota: int, named: list[str] | None) -> None:
    few = replace(FIRST, retrieval=RetrievalSettings(quotas={"trending": 1, "popular": 5}))
    arm = varied(few, Variation(quotas={"trending": quota}))
    live = Live(lambda: few)
    if named is None:
        assert "trending" not in live.named(Query("r", NOW_MS, "home", 5), arm, None)
    else:
        assert trending(live, arm) == named


def test_a_generation_begins_with_the_events_that_it_carries() -> None:
    live = Live(lambda: FIRST)
    live.prepare(FIRST)
    assert trending(live, FIRST) == ["i3", "i4"]
    asked = Query("r", NOW_MS, "home", 5, seed_row_S=np.array([3], np.int64))
    assert live.named(asked, FIRST, None)["covisitation"].row_K.tolist() == [4]


def test_an_event_counts_at_once() -> None:
    live = Live(lambda: FIRST)
    live.write([outcome("i7", user="c"), outcome("i7", user="d"), outcome("i7", user="e")])
    assert trending(live, FIRST) == ["i7", "i3", "i4"]
    live.write([outcome("i8", user="c", minute=2)])
    asked = Query("r", NOW_MS, "home", 5, seed_row_S=np.array([8], np.int64))
    assert live.named(asked, FIRST, None)["covisitation"].row_K.tolist() == [7]


def test_only_the_main_action_counts() -> None:
    live = Live(lambda: FIRST)
    live.write([outcome("i7", action="like"), outcome("i8", action="hide"), outcome("i9", action="click")])
    assert set(trending(live, FIRST)) == {"i3", "i4", "i9"}


def test_a_swap_forgets_nothing_and_counts_nothing_twice() -> None:
    serving_now = [FIRST]
    live = Live(lambda: serving_now[0])
    live.prepare(FIRST)
    live.write([outcome("i7", user="c"), outcome("i7", user="d"), outcome("i5", user="e", minute=-1)])
    live.prepare(SECOND)
    live.prepare(SECOND)
    serving_now[0] = SECOND
    live.write([outcome("i7", user="f", minute=3)])
    hits = live.named(Query("r", NOW_MS + 3 * MINUTE_MS, "home", 5), SECOND, None)["trending"]
    assert hits.row_K.tolist() == [7, 5], "what is older than its data, the generation knows"
    assert hits.score_K.tolist() == pytest.approx([3, 1], rel=0.02)
    assert trending(live, FIRST)[0] == "i7", "the one before can still be rolled back to"


def test_the_one_that_serves_is_never_given_up() -> None:
    live = Live(lambda: FIRST)
    live.prepare(FIRST)
    live.write([outcome("i7") for _ in range(9)])
    for number in range(2, 9):
        live.prepare(with_past(f"00000{number}-00000000"))
    assert list(live._counts) == [FIRST.id, *(f"00000{number}-00000000" for number in (5, 6, 7, 8))]


def test_so_many_events_are_remembered_and_no_more() -> None:
    live = Live(lambda: FIRST, remembered=10)
    for minute in range(1, 30):
        live.write([outcome(f"i{minute}", minute=minute), outcome(f"i{minute}", user="x", minute=minute)])
    assert sum(len(batch) for batch in live._recent) == 10
    live.prepare(SECOND)
    assert set(trending(live, SECOND)) == {"i5", *(f"i{row}" for row in range(25, 30))}


def test_events_that_come_while_counts_are_made_are_in_them(monkeypatch: pytest.MonkeyPatch) -> None:
    live = Live(lambda: None)
    begun = _Counts.begun

    def late(of: Generation) -> Any:
        made = begun(of)
        live.write([outcome("i9"), outcome("i9", user="z")])
        return made

    monkeypatch.setattr("serving.live._Counts.begun", late)
    live.prepare(SECOND)
    assert trending(live, SECOND) == ["i9", "i5"]


@pytest.mark.parametrize(
    ("others", "visitor"),
    [({"user_id": "u"}, "u"), ({"visitor_id": "v"}, "v"), ({"session_id": "s"}, "s"), ({}, "")],
)
def test_a_visitor_is_the_user_or_the_device_or_the_visit(others: dict[str, Any], visitor: str) -> None:
    live = Live(lambda: None)
    live.write([outcome("i1", **others)])
    (written,) = np.frombuffer(live.outbox[0], EVENT)
    assert written["visitor_key"] == (key64(visitor) if visitor else 0)


def test_what_waits_for_other_servers_is_bounded() -> None:
    live = Live(lambda: None)
    for minute in range(2000):
        live.write([outcome("i1", minute=minute)])
    assert len(live.outbox) == 1024
    assert np.frombuffer(live.outbox[-1], EVENT)["time_ms"][0] == NOW_MS + 1999 * MINUTE_MS


def ask(channel: grpc.Channel, request_id: str, minute: int = 5) -> RecommendResponse:
    request = RecommendRequest(
        request_id=request_id,
        context=Context(user_id="u1", client_time_ms=NOW_MS + minute * MINUTE_MS),
        page_size=60,
    )
    return RecommendResponse.FromString(call(channel, "Recommender/Recommend", request.SerializeToString()))


def write(channel: grpc.Channel, *outcomes: Outcome) -> None:
    call(channel, "Events/Write", WriteEventsRequest(events=outcomes).SerializeToString())


def sources_of(response: RecommendResponse) -> dict[str, list[str]]:
    return {item.item_id: list(item.sources) for item in response.items}


def live_fakes(patch: pytest.MonkeyPatch, **changes: Any) -> None:
    patch.setattr("serving_cases.generation", lambda name, **_: replace(with_past(name), **changes))


def test_what_was_taken_a_moment_ago_is_named_in_the_next_answer_and_noted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live_fakes(monkeypatch)
    log = MemoryLog()
    with serving(tmp_path, monkeypatch, log=log) as address, grpc.insecure_channel(address.target) as channel:
        before = sources_of(ask(channel, "r1"))
        assert not any("trending" in each for each in before.values())
        write(channel, outcome("i55", user="u2"), outcome("i57", user="u2", minute=2), outcome("i57", user="u3"))
        after = sources_of(ask(channel, "r2"))
        assert {item for item, each in after.items() if "trending" in each} == {"i55", "i57"}
        write(channel, outcome("i55", user="u2"))
        assert sources_of(ask(channel, "r3"))["i57"] == ["trending"], "a duplicate does not count again"
    assert list(log.impressions["r1"].live_hits) == []
    (noted,) = log.impressions["r2"].live_hits
    assert noted.source == "trending"
    assert list(noted.item_key) == [key64("i57"), key64("i55")]
    assert noted.score[0] > noted.score[1] > 0
    (again,) = log.impressions["r3"].live_hits
    assert again == noted
    logged = log.impressions["r2"]
    names = list(logged.source_names)
    rank = np.array(logged.source_rank).reshape(-1, len(names))
    assert rank[list(logged.item_id).index("i57"), names.index("trending")] == 0
    assert rank[list(logged.item_id).index("i55"), names.index("trending")] == 1
    assert (((rank >= 0) * (1 << np.arange(len(names)))).sum(axis=1) == np.array(logged.source_bits)).all()


def test_a_late_or_a_refused_event_counts_for_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live_fakes(monkeypatch)
    with (
        serving(tmp_path, monkeypatch, log=MemoryLog()) as address,
        grpc.insecure_channel(address.target) as channel,
    ):
        late = outcome("i55", minute=-3000, visible_ms=NOW_MS)
        write(channel, late, outcome("i56", minute=1, value=float("nan")), outcome("i57"))
        found = sources_of(ask(channel, "r1"))
    assert {item for item, each in found.items() if "trending" in each} == {"i57"}


def test_live_sources_that_fail_are_left_out_and_the_rest_answers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    live_fakes(monkeypatch)
    log = MemoryLog()
    with serving(tmp_path, monkeypatch, log=log) as address, grpc.insecure_channel(address.target) as channel:
        write(channel, outcome("i55"))
        monkeypatch.setattr(Live, "named", lambda *_: 1 / 0)
        response = ask(channel, "r1")
    assert response.degradation.bits == Degraded.DEGRADED_SOURCE_ERROR
    late = {each.stage: each.status for each in response.degradation.stages if each.status}
    assert late == {"retrieve.covisitation": "error", "retrieve.trending": "error"}
    assert len(response.items) > 20
    assert set(log.impressions["r1"].skipped_sources) == {"covisitation", "trending"}


def test_events_are_taken_where_live_sources_fail_to_learn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live_fakes(monkeypatch)
    log = MemoryLog()
    monkeypatch.setattr(Live, "write", lambda *_: 1 / 0)
    with serving(tmp_path, monkeypatch, log=log) as address, grpc.insecure_channel(address.target) as channel:
        write(channel, outcome("i55"))
    assert len(log.outcomes) == 1


def test_without_a_quota_nothing_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    live_fakes(monkeypatch, retrieval=RetrievalSettings(quotas={"popular": 5}))
    log = MemoryLog()
    with serving(tmp_path, monkeypatch, log=log) as address, grpc.insecure_channel(address.target) as channel:
        write(channel, outcome("i55"))
        ask(channel, "r1")
    assert not log.impressions["r1"].live_hits


def test_a_generation_is_prepared_before_it_serves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    load_fakes(monkeypatch)
    store = GenerationStore(tmp_path / "generations")
    names = [publish(store, number) for number in (1, 2)]
    generations = Generations(store)
    ready: list[tuple[str, str | None]] = []
    generations.on_ready = lambda each: ready.append((each.id, store.current()))
    generations.activate(names[0], None)
    generations.activate(names[1], names[0])
    assert ready == [(names[0], None), (names[1], names[0])]
    generations.close()
