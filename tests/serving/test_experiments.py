"""Assignment: balanced, independent, stable while weights grow, exclusive inside a layer; and what is refused."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from protos import admin_pb2
from protos.admin_pb2 import Arm, SetTrafficRequest
from protos.impression_pb2 import Impression, Kind, Variation
from serving.experiments.assignment import DRAFTED, NOBODY, Experiment, Traffic

USERS = [f"user-{n}" for n in range(2000)]


def on_the_wire(name: str = "e", *, weights: Mapping[str, float] | None = None, **fields: Any) -> admin_pb2.Experiment:
    arms = [Arm(name=arm, weight=weight) for arm, weight in (weights or {"a": 1, "b": 1}).items()]
    given_fields = {"mode": "TRAFFIC_MODE_SPLIT", "unit": "user_id", "arms": arms} | fields
    return admin_pb2.Experiment(name=name, **given_fields)


def traffic(*experiments: admin_pb2.Experiment) -> Traffic:
    return Traffic.of(SetTrafficRequest(experiments=experiments), "1")


def assigned(in_force: Traffic, experiment: str = "e") -> dict[str, str]:
    plans = {user: in_force.plan(Impression(user_id=user, surface="home")) for user in USERS}
    return {user: plan.arms[experiment] for user, plan in plans.items() if experiment in plan.arms}


def within_chance(count: int, share: float, of: int) -> bool:
    return bool(abs(count - share * of) < 4.5 * np.sqrt(share * (1 - share) * of))


@settings(max_examples=6, deadline=None)
@given(st.lists(st.floats(0.2, 5), min_size=2, max_size=4), st.text(max_size=8))
def test_shares_are_as_the_weights_say(weights: list[float], salt: str) -> None:
    named = {f"arm{n}": weight for n, weight in enumerate(weights)}
    found = Counter(assigned(traffic(on_the_wire(weights=named, salt=salt))).values())
    for name, weight in named.items():
        assert within_chance(found[name], weight / sum(weights), len(USERS)), (named, found)


def test_arms_of_different_salts_are_independent_and_of_one_salt_are_the_same() -> None:
    one, other, again = (
        assigned(traffic(on_the_wire(name=name, salt=salt)), name)
        for name, salt in (("e", "s"), ("f", "t"), ("g", "s"))
    )
    assert one == again
    both = Counter((one[user], other[user]) for user in USERS)
    assert all(within_chance(both[pair], 0.25, len(USERS)) for pair in both)
    assert len(both) == 4


@settings(max_examples=6, deadline=None)
@given(st.permutations(["a", "b", "c"]), st.floats(1.0, 20.0))
def test_a_weight_that_grows_only_moves_units_into_its_own_arm(order: list[str], factor: float) -> None:
    weights = {"a": 8.0, "b": 1.0, "c": 1.0}
    before = assigned(traffic(on_the_wire(weights=weights)))
    grown = weights | {"c": factor}
    after = assigned(traffic(on_the_wire(weights={name: grown[name] for name in order})))
    assert {after[user] for user in USERS if after[user] != before[user]} <= {"c"}


def test_arms_ramped_together_never_exchange_units_and_a_weight_of_0_takes_nobody() -> None:
    before = assigned(traffic(on_the_wire(weights={"a": 8, "b": 1, "c": 1})))
    after = assigned(traffic(on_the_wire(weights={"a": 4, "b": 3, "c": 3})))
    assert all(after[user] == before[user] for user in USERS if before[user] != "a")
    assert set(assigned(traffic(on_the_wire(weights={"a": 1, "b": 0}))).values()) == {"a"}


def test_experiments_of_one_layer_never_meet_and_of_two_do() -> None:
    same: dict[str, Any] = {"layer": "ranking"}
    in_force = traffic(
        on_the_wire("one", layer_until=0.5, **same),
        on_the_wire("two", layer_from=0.5, layer_until=0.8, **same),
        on_the_wire("other"),
    )
    plans = [in_force.plan(Impression(user_id=user)) for user in USERS]
    met = Counter(frozenset(plan.arms) for plan in plans)
    assert set(met) == {frozenset({"one", "other"}), frozenset({"two", "other"}), frozenset({"other"})}
    assert within_chance(met[frozenset({"two", "other"})], 0.3, len(USERS))
    wider = traffic(on_the_wire("one", layer_until=0.7, **same))
    was = {user for user, plan in zip(USERS, plans, strict=True) if "one" in plan.arms}
    assert was <= assigned(wider, "one").keys(), "those already in stay in"


def test_who_has_no_unit_or_asks_elsewhere_is_in_no_arm() -> None:
    in_force = traffic(on_the_wire(surfaces=["cart"], kinds=[Kind.KIND_SEARCH]))
    inside = Impression(user_id="u", surface="cart", kind=Kind.KIND_SEARCH)
    assert in_force.plan(inside).arms
    for name, value in (("user_id", ""), ("surface", "home"), ("kind", Kind.KIND_RANK)):
        outside = Impression.FromString(inside.SerializeToString())
        setattr(outside, name, value)
        assert not in_force.plan(outside).arms
    assert Traffic().plan(inside) is NOBODY
    assert in_force.plan(inside) is in_force.plan(inside), "requests with equal arms share a plan"


def test_what_arms_change_adds_up_over_the_layers() -> None:
    warm = Arm(name="warm", weight=1, policy={"temperature": 2.0}, generation="g")
    likes = Arm(name="likes", weight=1, action_weights={"like": 3.0})
    same = Arm(name="same")
    in_force = traffic(
        on_the_wire("heat", arms=[same, warm]),
        on_the_wire("worth", arms=[same, likes], mode="TRAFFIC_MODE_CANARY"),
    )
    plan = in_force.plan(Impression(user_id="u"))
    assert plan.arms == {"heat": "warm", "worth": "likes"}
    assert plan.canaries == {"worth": "likes"}
    assert plan.side.generation == "g"
    assert Variation.FromString(plan.side.variation) == Variation(
        policy={"temperature": 2.0}, action_weights={"like": 3.0}
    )
    assert in_force.generations == {"g"}


def test_shadows_and_drafts_are_of_the_other_arm() -> None:
    cold = Arm(name="cold", weight=1, policy={"temperature": 0.0})
    in_force = traffic(
        on_the_wire("dark", arms=[Arm(name="now"), cold], mode="TRAFFIC_MODE_SHADOW"),
        on_the_wire("turns", mode="TRAFFIC_MODE_INTERLEAVE"),
    )
    plan = in_force.plan(Impression(user_id="u"))
    assert plan.arms == {"dark": "now", "turns": DRAFTED}
    assert not plan.side.variation
    (shadow,) = plan.shadows
    assert (shadow.experiment, shadow.arm) == ("dark", "cold")
    assert Variation.FromString(shadow.side.variation).policy == {"temperature": 0.0}
    assert plan.drafted == ("turns", "a", "b")
    assert plan.second == plan.side


LAYER: dict[str, Any] = {"layer": "l"}
HOT = [Arm(name="a", weight=1), Arm(name="b", weight=1, policy={"temperature": 1.0})]


@pytest.mark.parametrize(
    ("experiments", "message"),
    [
        ([on_the_wire("")], "name: '' given"),
        ([on_the_wire(mode="TRAFFIC_MODE_UNSPECIFIED")], "experiment 'e': mode: 0 given, allowed: SPLIT, SHADOW"),
        ([on_the_wire(unit="cookie")], "unit: 'cookie' given, allowed: user_id, visitor_id"),
        ([on_the_wire(weights={"a": 1})], "arms: '1 arms' given, allowed: 2 to 10"),
        ([on_the_wire(weights={"a": 0, "b": 0})], "arms.weight: '0 for all arms' given"),
        ([on_the_wire(weights={"a": 1, "b": -1})], r"arms\['b'\].weight: -1.0 given"),
        ([on_the_wire(weights={"a": 1, "b": float("nan")})], r"arms\['b'\].weight: nan given"),
        ([on_the_wire(weights={"a": 1, "drafted": 1})], "none of them 'drafted'"),
        ([on_the_wire(arms=[Arm(name="a", weight=1)] * 2)], "arms.name: 'a, a' given"),
        ([on_the_wire(mode="TRAFFIC_MODE_INTERLEAVE", weights={"a": 1, "b": 2})], "equal weights"),
        ([on_the_wire(layer_from=0.5, layer_until=0.2)], "0 <= from < until <= 1"),
        ([on_the_wire(surfaces=[""])], "surfaces: '1 surfaces' given"),
        ([on_the_wire(kinds=[9])], r"kinds: \[9\] given"),
        ([on_the_wire("x" * 65)], "name: 'xxxxxxxx...' given, allowed: at most 64"),
        ([on_the_wire(), on_the_wire()], "two experiments have the name 'e'"),
        ([on_the_wire(salt="s"), on_the_wire("f", salt="s")], "have the salt 's'"),
        (
            [on_the_wire(**LAYER), on_the_wire("f", unit="session_id", **LAYER)],
            "share the layer 'l' and assign user_id",
        ),
        ([on_the_wire(**LAYER), on_the_wire("f", **LAYER)], "overlap in the layer 'l': 0 to 1 and 0 to 1"),
        ([on_the_wire(arms=HOT), on_the_wire("f", arms=HOT)], "may meet and both change policy.temperature"),
        ([on_the_wire(n, mode="TRAFFIC_MODE_INTERLEAVE") for n in "ef"], "are both interleaved"),
        ([on_the_wire(str(n)) for n in range(33)], "33 experiments given, allowed: at most 32"),
    ],
)
def test_what_cannot_be_run_is_refused_by_name(experiments: list[admin_pb2.Experiment], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        traffic(*experiments)


def test_experiments_that_cannot_meet_may_change_the_same() -> None:
    traffic(on_the_wire(arms=HOT, surfaces=["home"]), on_the_wire("f", arms=HOT, surfaces=["cart"]))
    traffic(on_the_wire(arms=HOT, layer_until=0.5, **LAYER), on_the_wire("f", arms=HOT, layer_from=0.5, **LAYER))


def test_an_experiment_is_frozen() -> None:
    experiment = Experiment.of(on_the_wire())
    assert experiment.share("a") == 0.5
    with pytest.raises(AttributeError):
        experiment.salt = "other"  # type: ignore[misc]
