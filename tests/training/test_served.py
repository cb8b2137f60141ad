"""The log as training reads it, and history as the online store gets it."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conftest import Loop

from index.strings import key64
from protos.catalog_pb2 import ForgetUserRequest
from protos.impression_pb2 import Impression, Outcome
from serving.generation import action_key
from serving.log.catalog_log import FILE, CatalogLog
from serving.log.impression_log import ImpressionLog
from serving.state.local_redis import LocalRedis
from serving.state.user_state import UserEvent, UserState, Wanted
from training.datasets.dataset import EVENT_SCHEMA, IMPRESSION_SCHEMA, DataError
from training.examples.events import point_in_time_history
from training.log.served import ServedLog
from training.materialise import materialise, rebuild


@pytest.fixture(scope="module")
def redis_url() -> Iterator[str]:
    with LocalRedis() as redis:
        yield redis.url


@pytest.fixture
def state(redis_url: str) -> Iterator[UserState]:
    made = UserState(redis_url, timeout_s=10.0)
    yield made
    made.close()


def events(*rows: tuple[str, str, str, str, int, int]) -> pl.DataFrame:
    """Rows of event id, user, item, action, time and the time from which it was visible."""
    return pl.DataFrame(
        [
            (event_id, "", user_id, item_id, action, 1.0, time_ms, visible_ms, -1)
            for event_id, user_id, item_id, action, time_ms, visible_ms in rows
        ],
        EVENT_SCHEMA,
        orient="row",
    )


def stored(state: UserState, user_id: str) -> list[tuple[int, int, int]]:
    """Newest first."""
    return list(zip(*(column.tolist() for column in state.recall(Wanted(user_id)).history), strict=True))


def test_a_log_is_read_up_to_a_moment_and_never_beyond(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with ImpressionLog(path, durability="os") as log:
        for at_ms in (10, 20, 30):
            log.append(Impression(request_id=f"r{at_ms}", time_ms=at_ms, item_id=["a"], propensity=[0.5]))
        log.write_outcomes(
            [
                Outcome(event_id="early", request_id="r10", item_id="a", action="click", time_ms=11, visible_ms=12),
                Outcome(event_id="late", request_id="r10", item_id="a", action="like", time_ms=13, visible_ms=25),
            ]
        )
    at_20, at_21, at_26 = (ServedLog.read(path, until_ms=until_ms) for until_ms in (20, 21, 26))
    assert [each.request_id for each in at_20.impressions] == ["r10"]
    assert [each.request_id for each in at_21.impressions] == ["r10", "r20"]
    assert at_21.events["event_id"].to_list() == ["early"], "what happened in time but was learned too late"
    assert at_26.events["event_id"].to_list() == ["early", "late"]


def test_a_log_without_an_impression_in_time_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with ImpressionLog(path, durability="os") as log:
        log.append(Impression(request_id="r", time_ms=100))
    with pytest.raises(ValueError, match=rf"{path}\b.* impression"):
        ServedLog.read(path, until_ms=100)


def test_every_answer_and_every_outcome_is_in_the_log_once(loop: Loop) -> None:
    shown = {
        visit.request.request_id: [item.item_id for item in visit.slate.items]
        for visit in loop.visits
        if visit.slate is not None
    }
    assert len(shown) == len(loop.visits), "no call failed"
    assert {each.request_id: list(each.item_id) for each in loop.everything.impressions} == shown
    assert len(loop.everything.impressions) == len(shown)
    expected = {
        outcome["event_id"]: outcome
        for visit in loop.visits
        for outcome in loop.world.respond(visit.request, shown[visit.request.request_id])
    }
    found = {row["event_id"]: row for row in loop.everything.events.iter_rows(named=True)}
    assert loop.everything.events.height == len(found)
    assert found == expected


def test_the_frame_of_a_log_is_in_the_canonical_form(loop: Loop) -> None:
    frame = loop.served.frame
    assert dict(frame.schema) == {
        name: kind() if isinstance(kind, type) else kind for name, kind in IMPRESSION_SCHEMA.items()
    }
    assert frame.schema == loop.dataset.impressions.schema
    assert loop.served.events.schema == loop.dataset.events.select(loop.served.events.columns).schema
    for row, logged in zip(frame.iter_rows(named=True), loop.served.impressions, strict=True):
        assert row["item_id"] == list(logged.item_id)
        assert row["propensity"] == list(logged.propensity)
        assert (row["request_id"], row["user_id"], row["time_ms"]) == (
            logged.request_id,
            logged.user_id,
            logged.time_ms,
        )
    typed = [visit.request.text for visit in loop.visits][: frame.height]
    for text, was_typed, logged in zip(frame["text"], typed, loop.served.impressions, strict=True):
        assert logged.text == was_typed
        assert text == (logged.understood.corrected or was_typed)
    assert frame["text"].to_list() != typed, "some were spelt right before they were searched for"


def test_the_online_store_holds_what_the_point_in_time_history_says(loop: Loop, state: UserState) -> None:
    """Online and offline, the history of the same user at the same time is the same."""
    dataset, generation = loop.dataset, loop.generations[0]
    written = materialise(dataset.events, state)
    users = dataset.users["user_id"]
    assert written == dataset.events["user_id"].n_unique()
    row_BL, action_BL, time_ms_BL = point_in_time_history(
        dataset.events,
        users,
        np.full(len(users), np.iinfo(np.int64).max - 1),
        length=state.limit,
        item_ids=dataset.items.head(len(generation.items))["item_id"],
        actions=dataset.actions,
    )
    longest = 0
    for b, user_id in enumerate(users):
        history = generation.history(*state.recall(Wanted(user_id)).history)
        held_L = row_BL[b] >= 0
        assert history.row_L.tolist() == row_BL[b][held_L].tolist()
        assert history.action_L.tolist() == action_BL[b][held_L].tolist()
        assert history.time_ms_L.tolist() == time_ms_BL[b][held_L].tolist()
        longest = max(longest, len(history))
    assert longest > 5


def test_events_come_in_the_order_in_which_they_became_known(state: UserState) -> None:
    materialise(
        events(
            ("e3", "order", "late", "click", 10, 90),
            ("e2", "order", "b", "like", 30, 30),
            ("e1", "order", "a", "click", 20, 30),
        ),
        state,
    )
    assert stored(state, "order") == [
        (key64("late"), action_key("click"), 10),
        (key64("b"), action_key("like"), 30),
        (key64("a"), action_key("click"), 20),
    ]


def test_only_the_newest_events_of_a_user_are_kept(redis_url: str) -> None:
    state = UserState(redis_url, timeout_s=10.0, limit=3)
    materialise(events(*((f"e{n}", "busy", f"i{n}", "click", n, n) for n in range(1, 8))), state)
    assert [time_ms for _, _, time_ms in stored(state, "busy")] == [7, 6, 5]
    state.close()


def test_nobodys_events_are_nobodys_history(state: UserState) -> None:
    frame = events(("e1", "", "a", "click", 1, 1), ("e2", "somebody", "b", "click", 2, 2))
    assert materialise(frame, state) == 1
    assert stored(state, "") == []
    assert stored(state, "somebody") == [(key64("b"), action_key("click"), 2)]
    assert materialise(frame.clear(), state) == 0


def test_a_new_redis_is_filled_from_a_table_of_events(tmp_path: Path, state: UserState, redis_url: str) -> None:
    rows = [
        {"event_id": f"{n}", "user_id": "warm", "item_id": f"i{n}", "action": "click", "time_ms": n, "visible_ms": n}
        for n in (2, 1, 3)
    ]
    blank = {name: "" if kind == pl.String() else 0 for name, kind in EVENT_SCHEMA.items()}
    pl.DataFrame([blank | row for row in rows], EVENT_SCHEMA).write_parquet(tmp_path / "events.parquet")
    told = {"history": tmp_path / "events.parquet", "generations": tmp_path / "generations"}
    assert rebuild(redis_url, log=None, **told) == 1
    assert [time_ms for _, _, time_ms in stored(state, "warm")] == [3, 2, 1]
    pl.DataFrame({"event_id": ["1"]}).write_parquet(tmp_path / "events.parquet")
    with pytest.raises(DataError, match=r"events\.parquet"):
        rebuild(redis_url, log=None, **told)


def test_a_redis_that_lost_everything_gets_it_back_from_the_log_behind_what_came_since(
    tmp_path: Path, state: UserState, redis_url: str
) -> None:
    with ImpressionLog(tmp_path / "log.db", durability="os") as log:
        log.write_outcomes(
            [
                Outcome(event_id=f"{user} {n}", user_id=user, item_id=f"i{n}", action="click", time_ms=n, visible_ms=n)
                for user in ("lost", "gone")
                for n in (1, 2, 3, 30)
            ]
        )
    (tmp_path / "generations").mkdir()
    CatalogLog(tmp_path / "generations" / FILE).append(ForgetUserRequest(user_id="gone"), time_ms=20, after=0)
    state.push([UserEvent("lost 30", "lost", key64("i30"), action_key("click"), 30)])
    for _ in range(2):
        assert rebuild(redis_url, log=tmp_path / "log.db", generations=tmp_path / "generations") == 2
        assert [time_ms for _, _, time_ms in stored(state, "lost")] == [30, 3, 2, 1]
        assert [time_ms for _, _, time_ms in stored(state, "gone")] == [30]
