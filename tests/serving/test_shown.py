"""What a user was shown is not shown again for a while, where that is asked for; and a replay knows."""

import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from catalog_cases import NOW_MS, loaded, running, store_of

from index.generations import GenerationStore
from serving.again import recorded_again
from serving.client import CascadeClient
from serving.settings import ServiceSettings
from serving.state.local_redis import LocalRedis
from serving.state.user_state import UserState
from training.log.impression_log import read_impressions

HOUR_MS = 3_600_000


@pytest.fixture
def state() -> Iterator[UserState]:
    with LocalRedis() as server:
        made = UserState(server.url, timeout_s=2.0)
        yield made
        made.close()


def ask(client: CascadeClient, state: UserState, user_id: str, *, after_hours: float = 0, size: int = 20) -> list[str]:
    slate = client.recommend(user_id, size=size, time_ms=NOW_MS + int(after_hours * HOUR_MS))
    state.flush()
    return [item.item_id for item in slate.items]


def test_nothing_is_shown_twice_within_the_window_and_every_slate_is_made_again_from_the_log(
    tmp_path: Path, state: UserState
) -> None:
    store_of(tmp_path)
    with running(tmp_path, log=tmp_path / "log.db", state=state, shown_hours=24.0) as (client, _, _):
        first, second, third = (ask(client, state, "u1") for _ in range(3))
        assert len({*first, *second, *third}) == 60
        assert {*ask(client, state, "u2", size=100), *ask(client, state, "", size=100)} & {*first}, "nobody else's"
        assert client.rank(first, user_id="u1", time_ms=NOW_MS).items, "nor a list of the caller's own"
        assert len(ask(client, state, "u1", size=190)) == 190, "what was shown longest ago comes back"
        ask(client, state, "u1", after_hours=30)
    logged = list(read_impressions(tmp_path / "log.db"))
    by_count = [len(each.shown_item_key) for each in logged if each.user_id == "u1"]
    assert sorted(by_count) == [0, 0, 20, 40, 60, 60]
    generation = loaded(GenerationStore(tmp_path / "generations"))
    for each in logged:
        again = recorded_again(each, generation)
        assert (list(again.item_id), list(again.propensity)) == (list(each.item_id), list(each.propensity))
        assert again.shown_item_key == each.shown_item_key


def test_it_is_off_unless_asked_for(tmp_path: Path, state: UserState) -> None:
    store_of(tmp_path)
    with running(tmp_path, log=tmp_path / "log.db", state=state) as (client, _, _):
        ask(client, state, "u1")
        ask(client, state, "u1")
        time.sleep(0.01)
    assert [len(each.shown_item_key) for each in read_impressions(tmp_path / "log.db")] == [0, 0]


@pytest.mark.parametrize(("name", "value"), [("shown_hours", -1.0), ("shown_hours", 1e9), ("shown_most", 0)])
def test_bounds_are_named(name: str, value: float) -> None:
    with pytest.raises(ValueError, match=name):
        ServiceSettings(**{name: value})  # type: ignore[arg-type]
