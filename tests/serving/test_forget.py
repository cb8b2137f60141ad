"""Users are told of and forgotten while requests are answered: at once, for every server, for good."""

import os
import shutil
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import redis
from catalog_cases import TABLE, loaded, publish, running, store_of

from index.generations import GenerationStore
from index.strings import IdMap, key64
from protos.catalog_pb2 import CatalogUser, ForgetUserRequest, UpsertUsersRequest
from protos.impression_pb2 import FeatureValue, Impression
from serving.client import CallFailed, CascadeClient, Event, ShownSlate, UserEntry
from serving.generation import Generation
from serving.log.catalog_log import FILE, CatalogLog, Change, Entry
from serving.profiles import NEVER_MS, Profiles
from serving.state.local_redis import LocalRedis
from serving.state.user_state import UserState, Wanted
from training.log.impression_log import read_these

STRANGER = ("DEFAULT_FEATURES",)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("forget")
    store_of(folder)
    return folder


@pytest.fixture
def site(built: Path, tmp_path: Path) -> Path:
    shutil.copytree(built / "generations", tmp_path / "generations")
    return tmp_path


@pytest.fixture
def server() -> Iterator[LocalRedis]:
    with LocalRedis() as started:
        yield started


@pytest.fixture
def state(server: LocalRedis) -> Iterator[UserState]:
    made = UserState(server.url, timeout_s=2.0)
    yield made
    made.close()


def entries(*changes: Change) -> list[Entry]:
    return [Entry(seq, 1000 * seq, change) for seq, change in enumerate(changes, start=1)]


def told(user_id: str, **numbers: float) -> UpsertUsersRequest:
    values = {name: FeatureValue(number=value) for name, value in numbers.items()}
    return UpsertUsersRequest(users=[CatalogUser(user_id=user_id, attributes=values)])


def forgotten(user_id: str) -> ForgetUserRequest:
    return ForgetUserRequest(user_id=user_id)


def age_of(profiles: Profiles, user_id: str) -> float | None:
    record = profiles.of(user_id)
    return None if record is None else float(record["age"][0])


def stored() -> Profiles:
    profile_U = np.zeros(3, TABLE.profile_dtype)
    profile_U["age"] = [10, 20, 30]
    return Profiles(IdMap.of(["a", "b", "c"]), profile_U)


def test_profiles_are_as_the_last_entry_says() -> None:
    profiles = stored().after(
        entries(told("b", age=21), told("new", age=1), forgotten("a"), told("c"), forgotten("nobody")), TABLE
    )
    assert [age_of(profiles, each) for each in ("a", "b", "c", "new", "nobody", "")] == [None, 21, 0, 1, None, None]
    assert [profiles.forgotten_ms(each) for each in ("a", "b", "nobody")] == [3000, NEVER_MS, 5000]
    back = profiles.after([Entry(6, 6000, told("a", age=11))], TABLE)
    assert (age_of(back, "a"), back.forgotten_ms("a")) == (11, 3000)
    assert age_of(profiles, "a") is None, "the value before is as it was"
    assert age_of(stored(), "b") == 20
    many = back.records(["b", "", "x", "new", "a"], stranger=TABLE.stranger)
    assert many["age"].tolist() == [21, 0, 0, 1, 11]


def test_the_next_generation_is_built_with_what_was_told_and_without_the_forgotten() -> None:
    profiles = stored().after(entries(told("b", age=21), told("new", age=1), forgotten("a")), TABLE)
    users, profile_U = profiles.folded()
    assert dict(zip(users.ids, profile_U["age"].tolist(), strict=True)) == {"c": 30, "b": 21, "new": 1}
    again = stored().folded()
    assert (list(again[0].ids), again[1]["age"].tolist()) == (["a", "b", "c"], [10, 20, 30])


def test_entries_of_no_user_change_no_profile() -> None:
    profiles = stored()
    assert profiles.after([], TABLE) is profiles


def profile_served(site: Path, slate: ShownSlate) -> float:
    """The age in the bytes that the ranker saw."""
    return float(np.frombuffer(logged(site, slate).query_row, TABLE.dtype("query"))["age"][0])


def test_a_user_who_is_told_of_is_known_to_the_next_answer_and_after_a_restart(site: Path) -> None:
    log = site / "log.db"
    with running(site, log=log, clock="system") as (client, _, _):
        assert client.recommend("new", size=5).degraded == STRANGER
        answers = client.upsert_users([UserEntry("new", {"age": 33}), UserEntry("u1", {"height": 2}), UserEntry("")])
        assert [each.status for each in answers] == ["DONE", "REJECTED", "REJECTED"]
        assert "attributes: 'height' given, allowed: age" in answers[1].reason
        assert answers[2].reason.startswith("user_id: ")
        assert profile_served(site, client.recommend("new", size=5)) == 33
    with running(site, log=log, clock="system") as (client, _, _):
        assert profile_served(site, client.recommend("new", size=5)) == 33


def logged(site: Path, slate: ShownSlate) -> Impression:
    """The impression of a slate, which is written a moment after it was answered."""
    end = time.monotonic() + 20
    while time.monotonic() < end:
        if found := read_these(site / "log.db", [slate.request_id]):
            return found[0]
        time.sleep(0.01)
    raise AssertionError(f"{slate.request_id} is not logged")


def ask(client: CascadeClient, user_id: str, request_id: str = "") -> ShownSlate:
    return client.recommend(user_id, size=5, request_id=request_id)


def test_nothing_of_a_forgotten_user_is_used_from_the_next_answer_on_and_the_record_stays(
    site: Path, server: LocalRedis, state: UserState
) -> None:
    told_at = {"clock": "system", "shown_hours": 24.0}
    with (
        running(site, log=site / "log.db", state=state, **told_at) as (client, _, _),
        UserStateOf(server) as elsewhere,
        running(site, log=site / "other.db", state=elsewhere, **told_at) as (other, _, _),
        redis.Redis.from_url(server.url) as raw,
    ):
        for user_id in ("u1", "u2"):
            now_ms = time.time_ns() // 1_000_000
            client.write_events([Event("i5", "click", now_ms, user_id=user_id)])
            assert ask(client, user_id, f"first {user_id}").degraded == ()
        state.flush()
        assert len(logged(site, ask(client, "u1")).history_item_key) == 1
        state.flush()
        record = client.forget_user("u1", reference="ticket 7")
        fresh = ask(client, "u1")
        for each in (client, other):
            assert ask(each, "u1").degraded == STRANGER, "there is no stored profile any more"
            assert ask(each, "u2").degraded == ()
            with pytest.raises(CallFailed, match="after the user was forgotten"):
                ask(each, "u1", "first u1")
            assert ask(each, "u2", "first u2").request_id == "first u2"
        assert list(logged(site, fresh).history_item_key) == []
        assert list(logged(site, fresh).shown_item_key) == []
        assert not list(raw.scan_iter("cascade:{user:u1}:events"))

        now_ms = time.time_ns() // 1_000_000 + 1
        client.write_events([Event("i6", "click", now_ms, user_id="u1")])
        history = logged(site, ask(client, "u1")).history_item_key
        assert list(history) == [key64("i6")], "who comes back is a new user"
    with running(site, log=site / "log.db", state=state, **told_at) as (client, _, _):
        assert ask(client, "u1").degraded == STRANGER, "a restart does not bring it back"
        with pytest.raises(CallFailed, match="after the user was forgotten"):
            ask(client, "u1", "first u1")
    (entry,) = CatalogLog(site / "generations" / FILE).since(0)
    assert (str(entry.seq), entry.request) == (record, ForgetUserRequest(user_id="u1", reference="ticket 7"))


class UserStateOf:
    """The user state of another server."""

    def __init__(self, server: LocalRedis) -> None:
        self._state = UserState(server.url, timeout_s=0.5)

    def __enter__(self) -> UserState:
        return self._state

    def __exit__(self, *_: object) -> None:
        self._state.close()


def test_a_state_that_cannot_be_deleted_now_is_not_used_and_the_caller_learns_of_it(
    site: Path, server: LocalRedis
) -> None:
    with (
        UserStateOf(server) as state,
        running(site, log=site / "log.db", state=state, clock="system") as (client, _, _),
    ):
        told_ms = time.time_ns() // 1_000_000
        client.write_events([Event("i5", "click", told_ms, user_id="u1")])
        os.kill(server.pid, signal.SIGSTOP)
        try:
            with pytest.raises(CallFailed, match="send this again"):
                client.forget_user("u1")
        finally:
            os.kill(server.pid, signal.SIGCONT)
        end = time.monotonic() + 10
        while not state.ping() and time.monotonic() < end:
            time.sleep(0.05)
        state.restore("u1", [(key64("i5"), 1, told_ms)])  # as if it had come to nothing
        assert list(logged(site, ask(client, "u1")).history_item_key) == []
        client.forget_user("u1")
        assert len(state.recall(Wanted("u1")).history[0]) == 0


def test_who_was_forgotten_is_known_to_generations_to_come(site: Path) -> None:
    with running(site) as (client, _, _):
        client.forget_user("u1")
    store = GenerationStore(site / "generations")
    following: Generation = loaded(store, publish(store, catalog_seq=1, seed=1))
    assert following.profiles.forgotten_ms("u1") > 0
    assert following.catalog_seq == 1


def test_after_the_acknowledgement_nothing_deleted_is_shown_and_nobody_forgotten_is_known_under_load(
    site: Path,
) -> None:
    ended = threading.Event()
    wrong: list[str] = []
    gone: set[str] = set()
    answers = [0]

    def load(client: CascadeClient, user_id: str) -> None:
        while not ended.is_set():
            hidden = set(gone)  # acknowledged before this request begins
            slate = client.recommend(user_id, size=100)
            wrong.extend(hidden & {item.item_id for item in slate.items})
            if user_id in hidden and slate.degraded != STRANGER:
                wrong.append(user_id)
            answers[0] += 1

    with running(site, clock="system") as (client, _, _), running(site, clock="system") as (other, _, _):
        threads = [threading.Thread(target=load, args=(each, f"u{n}")) for n, each in enumerate((client, other))]
        for thread in threads:
            thread.start()
        for number in range(1, 41):
            client.delete_items([f"i{number}"])
            gone.add(f"i{number}")
            if number in (10, 20):
                other.forget_user(f"u{number // 10 - 1}")
                gone.add(f"u{number // 10 - 1}")
        ended.set()
        for thread in threads:
            thread.join()
    assert answers[0] > 10
    assert wrong == []
