"""Team draft: the chances that are logged are the chances that it has, and who leads is a coin's choice."""

from collections import Counter
from dataclasses import replace

import numpy as np

from candidate_gen.items import Items
from candidate_gen.types import Candidates, Query
from policy.interleaving import Team, draft
from policy.selector import SlatePolicy
from policy.settings import PolicySettings
from ranking.types import Scored

GREEDY = PolicySettings(weights={"click": 1.0}, temperature=0.0, epsilon=0.0, diversity=0.0)
MIXED = replace(GREEDY, temperature=0.3, epsilon=0.1)


def items(ids: list[str]) -> Items:
    return Items.of(
        ids=ids,
        titles=ids,
        row_I=np.zeros(len(ids), [("category", np.int32), ("creator", np.int32)]),
        published_ms=np.zeros(len(ids), np.int64),
        embedding_ID=np.eye(len(ids), 4, dtype=np.float32),
    )


def team(
    name: str, worth: dict[str, float], *, settings: PolicySettings = MIXED, request: str = "r", size: int = 3
) -> Team:
    ids = list(worth)
    count = len(ids)
    scored = Scored(
        Candidates(np.arange(count), ("s",), np.zeros((count, 1), np.int16), np.zeros((count, 1), np.float32)),
        ("click",),
        np.array(list(worth.values()), np.float32)[:, None],
        np.zeros(1, [("x", np.int8)]),
        np.zeros(count, [("x", np.int8)]),
        np.zeros(count, [("x", np.int8)]),
    )
    return Team(SlatePolicy(settings, items(ids), name), Query(request, 0, "home", size), scored)


ONE = {"a": 0.9, "b": 0.6, "c": 0.3, "d": 0.1}
OTHER = {"d": 0.8, "c": 0.7, "b": 0.2}
"""Knows the items by other rows, and a not at all."""


def shown(one: Team, other: Team, size: int) -> tuple[str, ...]:
    made = draft(one, other, size=size)
    ids = (one.item_ids(), other.item_ids())
    return tuple(ids[t][n] for t, n in zip(made.team_K, made.index_K, strict=True))


def test_greedy_teams_draft_as_the_paper_says() -> None:
    one, other = (team(name, worth, settings=GREEDY) for name, worth in (("g1", ONE), ("g2", OTHER)))
    slates = {}
    for n in range(40):
        teams = [replace(each, query=replace(each.query, request_id=f"r{n}")) for each in (one, other)]
        made = draft(teams[0], teams[1], size=4)
        slates[shown(teams[0], teams[1], 4)] = (made.team_K.tolist()[:2], made.propensity_K.tolist())
    assert {each[:2] for each in slates} == {("a", "d"), ("d", "a")}
    for (first, *_), (leading, propensity_K) in slates.items():
        assert leading == ([0, 1] if first == "a" else [1, 0])
        assert propensity_K[:2] == [0.5, 1.0], "the second of a round follows from the first"


def test_the_logged_chance_of_a_slate_is_how_often_it_comes() -> None:
    draws = 1500
    counted: Counter[tuple[str, ...]] = Counter()
    chance: dict[tuple[str, ...], float] = {}
    for n in range(draws):
        one, other = team("g1", ONE, request=f"r{n}"), team("g2", OTHER, request=f"r{n}")
        made = draft(one, other, size=3)
        ids = (one.item_ids(), other.item_ids())
        slate = tuple(ids[t][i] for t, i in zip(made.team_K, made.index_K, strict=True))
        counted[slate] += 1
        chance[slate] = float(np.prod(made.propensity_K))
    assert 0.98 < sum(chance.values()) < 1 + 1e-9, "nearly every slate was drawn at least once"
    assert len(chance) > 18
    for slate, p in chance.items():
        assert abs(counted[slate] - p * draws) < 5 * np.sqrt(draws * p * (1 - p)) + 1, slate


def test_a_draft_of_a_policy_with_itself_has_the_policys_own_chances() -> None:
    one = team("g1", ONE, size=4)
    made = draft(one, replace(one, policy=replace(one.policy, generation="g2")), size=4)
    np.testing.assert_allclose(made.propensity_K, one.draw(made.index_K).propensity_K)
    assert set(made.team_K.tolist()) == {0, 1}


def test_a_team_that_has_nobody_left_passes() -> None:
    one, other = team("g1", ONE, size=4), team("g2", {"d": 0.5}, size=4)
    made = draft(one, other, size=4)
    assert len(made.index_K) == 4
    assert sum(made.team_K) <= 1
    assert np.all(made.propensity_K > 0)


def test_a_draft_is_the_same_every_time() -> None:
    one, other = team("g1", ONE), team("g2", OTHER)
    first, again = draft(one, other, size=3), draft(one, other, size=3)
    assert first.index_K.tolist() == again.index_K.tolist()
    assert first.propensity_K.tobytes() == again.propensity_K.tobytes()
