"""The simulated world: its stated truth is what its data show."""

import itertools
import math
import os
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from candidate_gen.features import feature_table
from candidate_gen.text import words
from training.simulation.words import SYNONYMS
from training.simulation.world import DAY_MS, World, WorldRequest


@pytest.fixture(scope="module")
def world() -> World:
    return World(11, users=150, items=400, days=20)


def at(world: World, day: float, *, user: int = 0, text: str = "", name: str = "x") -> WorldRequest:
    surface = "search" if text else "home"
    return WorldRequest(name, world.users["user_id"][user], world.day_ms(day), surface, text)


def test_what_is_misspelt_does_not_follow_from_how_python_hashes() -> None:
    """Which differs from process to process, and orders sets."""
    script = """
import numpy as np
from training.simulation.typing import Typing
typing, rng = Typing({"chocolate", "keyboards", "trousers"}), np.random.default_rng(0)
print([typing.typed("chocolate keyboards trousers", rng) for _ in range(200)])
"""
    told = {
        subprocess.run(
            [sys.executable, "-c", script],
            env={**os.environ, "PYTHONHASHSEED": seed},
            cwd=Path(__file__).parents[2],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(told) == 1


def test_the_same_seed_makes_the_same_world_log_and_answers_and_another_seed_does_not() -> None:
    made = []
    for seed in (5, 5, 6):
        world = World(seed, users=30, items=80, days=5)
        requests = world.requests(world.day_ms(1), world.day_ms(2), 40)
        impressions, events = world.first_log(requests)
        made.append((world.items, world.users, requests, impressions, events, world.oracle_slate(requests[0], 5)))
    first, again, other = made
    assert first[2] == again[2]
    assert first[5] == again[5]
    assert all(a.equals(b) for a, b in zip(first[:2] + first[3:5], again[:2] + again[3:5], strict=True))
    assert not first[3].equals(other[3])
    assert not first[0].equals(other[0])


def test_requests_are_sorted_unique_inside_their_window_and_search_as_often_as_asked(world: World) -> None:
    start, end = world.day_ms(2), world.day_ms(4)
    requests = world.requests(start, end, 2000, search_share=0.3)
    times = [request.time_ms for request in requests]
    assert times == sorted(times)
    assert start <= times[0]
    assert times[-1] < end
    others = world.requests(start, end, 2000, search_share=0.3, seed=1)
    assert len({request.request_id for request in requests + others}) == 4000
    assert abs(sum(request.surface == "search" for request in requests) / 2000 - 0.3) < 0.05
    assert all((request.surface == "search") == bool(request.text) for request in requests)
    assert all(world.relevance(request.text).max() == 1 for request in requests if request.text)


def test_items_arrive_every_day_and_sixty_percent_are_there_from_the_start(world: World) -> None:
    published = [world.items_at(world.day_ms(day)).height for day in range(21)]
    assert abs(published[0] / 400 - 0.6) < 0.01
    assert published[-1] == 400
    assert all(4 <= after - before <= 12 for before, after in itertools.pairwise(published))
    assert world.items["published_ms"].is_sorted()
    assert world.items["item_id"].n_unique() == world.items["title"].n_unique() == 400


@pytest.mark.parametrize("share", [0.0, 0.25, 0.9])
def test_as_many_items_arrive_as_asked_for(share: float) -> None:
    world = World(3, users=20, items=200, days=10, arriving=share)
    published = [world.items_at(world.day_ms(day)).height for day in (0, 5, 10)]
    assert published == pytest.approx([200 * (1 - share), 200 * (1 - share / 2), 200], abs=2)


def test_taste_turns_as_fast_as_asked_for_and_not_at_all_without_drift() -> None:
    still, slow, fast = (World(3, users=50, items=80, drift=drift) for drift in (0.0, 0.03, 0.06))
    users, old = np.arange(50), int(np.argmin(still.items["published_ms"].to_numpy()))
    first_ms, later_ms = (still.items["published_ms"][old] + days * DAY_MS for days in (200, 210))
    first_UA, later_UA = (still.probability(users, old, time_ms) for time_ms in (first_ms, later_ms))
    np.testing.assert_allclose(first_UA, later_UA, rtol=1e-9)
    np.testing.assert_allclose(2 * slow._turn_U, fast._turn_U)
    assert World(3, users=50, items=80)._turn_U.tolist() == slow._turn_U.tolist()
    assert slow._turn_U.mean() == pytest.approx(0.03, rel=0.2)


def test_titles_name_what_items_are_about(world: World) -> None:
    named = [
        bool(set(words(category)) & set(words(title)))
        for category, title in world.items.select("category", "title").iter_rows()
    ]
    assert 0.35 < np.mean(named) < 0.65
    relevance_I = world.relevance("Space Adventure")
    inside = (world.items["category"] == "Space Adventure").to_numpy()
    assert (relevance_I[inside] == 1).all()
    assert relevance_I[~inside].max() < 1
    assert world.relevance("the of zzz").max() == 0


def _first_slate_probability(world: World, request: WorldRequest, slate: Sequence[str], share: float) -> list[float]:
    """The logging policy as stated, the slow way: conditional probability of each slot."""
    there = world.items_at(request.time_ms)
    if request.text:
        typed = set(words(request.text))
        weight = {
            i: float(bool(typed & set(words(t)) - {"the", "a"})) for i, t in there.select("item_id", "title").rows()
        }
    else:
        weight = dict(zip(there["item_id"], world._renown_I[: there.height].tolist(), strict=True))
    left = list(there["item_id"])
    probabilities = []
    for item_id in slate:
        mass = sum(weight[each] for each in left)
        by_weight = weight[item_id] / mass if mass > 1e-9 else 0.0
        used = share if mass > 1e-9 else 0.0
        probabilities.append(used * by_weight + (1 - used) / len(left))
        left.remove(item_id)
    return probabilities


@pytest.mark.parametrize("search", [False, True])
def test_propensities_of_the_first_log_are_exact(search: bool) -> None:
    world = World(2, users=3, items=10, days=5)
    there = world.items_at(world.day_ms(0))
    assert there.height == 6
    text = next(word for word in words(there["title"][3]) if len(word) > 3) if search else ""
    requests = [at(world, 0, text=text, name=f"r{n}") for n in range(6000)]
    impressions, _ = world.first_log(requests, slate_size=2, popularity_share=0.6)
    seen: Counter[tuple[str, ...]] = Counter()
    for item_ids, propensities in impressions.select("item_id", "propensity").iter_rows():
        assert propensities == pytest.approx(_first_slate_probability(world, requests[0], item_ids, 0.6), abs=1e-12)
        seen[tuple(item_ids)] += 1
    total = 0.0
    for slate in itertools.permutations(there["item_id"], 2):
        chance = math.prod(_first_slate_probability(world, requests[0], slate, 0.6))
        total += chance
        assert abs(seen[slate] - 6000 * chance) < 4.5 * math.sqrt(6000 * chance * (1 - chance)) + 1
    assert total == pytest.approx(1)


def test_a_catalogue_smaller_than_the_slate_is_shown_whole_with_propensities_that_end_in_one() -> None:
    world = World(2, users=3, items=5, days=5)
    for text in ("", "the", words(world.items["title"][0])[-1]):
        impressions, _ = world.first_log([at(world, 0, text=text)], slate_size=10)
        assert sorted(impressions["item_id"][0]) == sorted(world.items_at(world.day_ms(0))["item_id"])
        assert impressions["propensity"][0][-1] == pytest.approx(1)


@pytest.mark.parametrize("text", ["", "space adventure"])
def test_outcomes_are_as_frequent_as_the_truth_says(world: World, text: str) -> None:
    count = 4000
    request = at(world, 3, user=7, text=text)
    best = world.oracle_slate(request, 3)
    slate = [*best, *(item_id for item_id in world.random_slate(request, 6) if item_id not in best)]
    rows = [world.items["item_id"].to_list().index(item_id) for item_id in slate]
    truth_KA = world.probability(7, rows, request.time_ms, text) * world.examination(len(slate))[:, None]
    seen: Counter[tuple[int, str]] = Counter()
    reward = 0.0
    for n in range(count):
        for event in world.respond(at(world, 3, user=7, text=text, name=f"q{n}"), slate):
            seen[int(event["position"]), str(event["action"])] += 1
            reward += world.weights[str(event["action"])]
    for k, a in itertools.product(range(len(slate)), range(3)):
        wanted = count * truth_KA[k, a]
        assert abs(seen[k, world.actions[a]] - wanted) < 4.5 * math.sqrt(wanted) + 1
    assert reward / count == pytest.approx(world.expected_reward(request, slate), abs=4.5 * 5 / math.sqrt(count))


def test_position_bias_is_seen_in_the_first_log() -> None:
    world = World(4, users=300, items=300, days=10)
    requests = world.requests(world.day_ms(0), world.day_ms(2), 4000)
    _, events = world.first_log(requests)
    clicks = events.filter(action="click").group_by("position").len().sort("position")["len"].to_numpy()
    relative_K = clicks / clicks.sum()
    curve_K = World.examination(10)
    noise_K = np.sqrt(clicks) / clicks.sum()
    assert (np.abs(relative_K - curve_K / curve_K.sum()) < 4.5 * noise_K + 0.005).all()
    assert relative_K[0] > 2 * relative_K[5]


def test_answers_do_not_depend_on_the_order_of_asking(world: World) -> None:
    requests = world.requests(world.day_ms(1), world.day_ms(2), 30)
    slates = [world.random_slate(request, 10) for request in requests]
    forth = [world.respond(request, slate) for request, slate in zip(requests, slates, strict=True)]
    back = [world.respond(request, slate) for request, slate in zip(requests[::-1], slates[::-1], strict=True)]
    assert forth == back[::-1]


def test_outcomes_come_after_their_request_are_seen_later_and_within_the_hour(world: World) -> None:
    requests = world.requests(world.day_ms(1), world.day_ms(2), 1500)
    impressions, events = world.first_log(requests)
    assert events["event_id"].n_unique() == events.height
    joined = events.join(impressions.select("request_id", shown_ms="time_ms", slate="item_id"), on="request_id")
    assert joined.height == events.height
    assert (joined["time_ms"] > joined["shown_ms"]).all()
    assert (joined["visible_ms"] >= joined["time_ms"]).all()
    assert (joined["visible_ms"] - joined["shown_ms"] < 3_600_000).all()
    assert (joined["slate"].list.get(joined["position"]) == joined["item_id"]).all()
    likes = events.filter(action="like").select("request_id", "item_id")
    assert likes.join(events.filter(action="click"), on=["request_id", "item_id"], how="anti").is_empty()
    hides = events.filter(action="hide").select("request_id", "item_id")
    assert hides.join(events.filter(action="click"), on=["request_id", "item_id"], how="semi").is_empty()


def test_no_slate_beats_the_oracle_and_expected_reward_is_the_stated_sum(world: World) -> None:
    for text in ("", "jazz", "haunted house"):
        request = at(world, 5, user=3, text=text)
        best = world.expected_reward(request, world.oracle_slate(request, 4))
        ids = world.items_at(request.time_ms)["item_id"].to_list()
        rng = np.random.default_rng(0)
        for _ in range(200):
            assert world.expected_reward(request, rng.choice(ids, 4, replace=False).tolist()) <= best
        slate = world.random_slate(request, 3)
        by_hand = sum(
            (1 + k) ** -0.6
            * sum(w * p for w, p in zip((1, 2, -2), world.probability(3, row, request.time_ms, text)[0], strict=True))
            for k, row in enumerate(ids.index(item_id) for item_id in slate)
        )
        assert world.expected_reward(request, slate) == pytest.approx(by_hand)
    assert world.expected_reward(request, []) == 0.0
    assert world.respond(request, []) == []


def test_random_is_worse_than_popular_is_worse_than_knowing_the_user_is_worse_than_the_oracle() -> None:
    for seed in (0, 1, 2):
        world = World(seed, users=400, items=800, days=20)
        _, events = world.first_log(world.requests(world.day_ms(0), world.day_ms(5), 2500))
        click_I = world.click_counts(events)
        assert click_I.sum() == events.filter(action="click").height
        asked = world.requests(world.day_ms(5), world.day_ms(6), 300, seed=1)
        random, popular, oracle, partial = (
            float(
                np.mean([world.expected_reward(request, slate) for request, slate in zip(asked, slates, strict=True)])
            )
            for slates in (
                [world.random_slate(request, 10) for request in asked],
                [world.popular_slate(request, 10, click_I) for request in asked],
                [world.oracle_slate(request, 10) for request in asked],
                [_by_taste_for_categories(world, request, click_I) for request in asked],
            )
        )
        assert 2 * random < popular
        assert 1.15 * popular < partial < oracle
        assert oracle > 2 * popular


def _by_taste_for_categories(world: World, request: WorldRequest, click_I: np.ndarray) -> list[str]:
    """Popularity times the user's liking of the category: what a model that learned only that would show."""
    if request.text:
        return world.popular_slate(request, 10, click_I)
    user = world.users["user_id"].to_list().index(request.user_id)
    there = world.items_at(request.time_ms).height
    score_I = np.log(click_I[:there] + 1) + world._now_UC[user, world._category_I[:there]]
    return world.items["item_id"].gather(np.argsort(-score_I)[:10]).to_list()


def test_taste_drifts_and_novelty_fades(world: World) -> None:
    users = np.arange(150)
    now, soon, later = (
        np.corrcoef(
            world._now_UC.ravel(),
            np.concatenate(
                [
                    np.cos(world._turn_U[u] * day) * world._now_UC[u]
                    + np.sin(world._turn_U[u] * day) * world._later_UC[u]
                    for u in users
                ]
            ),
        )[0, 1]
        for day in (0, 7, 30)
    )
    assert now == pytest.approx(1)
    assert 0.9 < soon < 1
    assert later < soon
    ages_ms = np.array([0, 1, 5, 50]) * DAY_MS
    published = world.items["published_ms"][0]
    still = np.flatnonzero(world._turn_U == world._turn_U.min())[0]
    appeal = world.probability(still, 0, published + ages_ms[:2])[:, 0]
    assert appeal[1] < appeal[0]


def test_a_search_is_clicked_for_its_relevance(world: World) -> None:
    request = at(world, 4, user=2, text="noir")
    relevance_I = world.relevance("noir")
    click_I = world.probability(2, np.arange(400), request.time_ms, "noir")[:, 0]
    assert click_I[relevance_I == 1].mean() > 10 * click_I[relevance_I == 0].mean()
    best = world.oracle_slate(request, 5)
    assert all(world.relevance("noir")[world.items["item_id"].to_list().index(item_id)] == 1 for item_id in best)


def test_synonyms_and_misspellings_are_searches_for_what_is_meant_and_no_text_holds_them(world: World) -> None:
    for typed, meant in (("soccer", "football"), ("footbal", "football"), ("fooball", "football"), ("ofotball", "")):
        expected_I = world.relevance(meant)
        np.testing.assert_array_equal(world.relevance(typed), expected_I)
        assert expected_I.any() == bool(meant)
    held = {word for title in world.items["title"] for word in words(title)}
    held |= {word for category in world.items["category"].unique() for word in words(category)}
    asked = [each.text for each in world.requests(world.day_ms(0), world.day_ms(3), 4000, search_share=1.0)]
    foreign = [text for text in asked if not set(words(text)) <= held | set(world._about)]
    others = [text for text in foreign if set(words(text)) & set(SYNONYMS.values())]
    assert not held & set(SYNONYMS.values())
    assert 0.06 < (len(foreign) - len(others)) / len(asked) < 0.11, "a tenth, less the short words"
    assert 0.08 < len(others) / len(asked) < 0.2, "a fifth, less what has no synonym"


def test_popular_searches_put_matches_first_and_never_show_what_is_not_there(world: World) -> None:
    click_I = np.arange(400)[::-1].copy()
    request = at(world, 4, text="Romance")
    slate = world.popular_slate(request, 300, click_I)
    titles = dict(world.items.select("item_id", "title").iter_rows())
    matched = ["romance" in words(titles[item_id]) for item_id in slate]
    assert sum(matched) > 0
    assert matched == sorted(matched, reverse=True)
    assert set(slate) <= set(world.items_at(request.time_ms)["item_id"])


def test_the_world_as_a_data_set_declares_a_feature_table(world: World) -> None:
    impressions, events = world.first_log(world.requests(world.day_ms(0), world.day_ms(1), 20))
    data = world.dataset(impressions, events)
    table = feature_table(
        users=data.users.height,
        items=data.items.height,
        actions=data.actions,
        categories=data.items["category"].unique().sort().to_list(),
        sources=("ann",),
        user_columns=data.user_columns,
        item_columns=data.item_columns,
    )
    assert (table.encode("segment", data.users["segment"].to_list()) > 0).all()
    assert (table.encode("age_band", data.users["age_band"].to_list()) > 0).all()
    assert data.impressions.height == 20
    assert (data.impressions["propensity"].list.max() <= 1).all()


def test_misuse_is_told(world: World) -> None:
    request = at(world, 1)
    with pytest.raises(ValueError, match="1 of 2 items are not of this world, first 'zzz'"):
        world.respond(request, ["i00001", "zzz"])
    with pytest.raises(ValueError, match="a slate of 2 items holds only 1 different"):
        world.expected_reward(request, ["i00001", "i00001"])
    with pytest.raises(ValueError, match="start_ms < end_ms"):
        world.requests(5, 5, 1)
    with pytest.raises(ValueError, match=r"popularity_share in 0..1, got 10 and 2"):
        world.first_log([request], popularity_share=2)
    with pytest.raises(ValueError, match="at least 1, got 0"):
        World(0, users=0)
    with pytest.raises(ValueError, match=r"drift must be at least 0 and arriving .* below 1, got -0.1 and 0.4"):
        World(0, drift=-0.1)
    with pytest.raises(ValueError, match=r"got 0.03 and 1$"):
        World(0, arriving=1)
