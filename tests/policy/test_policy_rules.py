"""Rules: what is refused, where and when they apply, and what they say about candidates."""

from dataclasses import replace

import numpy as np
import pytest
from policy_cases import NOW_MS, case, query

from policy.rules import Rule, RuleBook
from policy.settings import PolicySettings

PIN = Rule(id="pin", kind="pin", item_ids=("a",), position=1)
BOOST = Rule(id="boost", kind="boost", condition='category = "c1"', strength=1)


@pytest.mark.parametrize(
    ("rule", "changed", "message"),
    [
        (PIN, {"id": ""}, "a rule has the id ''"),
        (PIN, {"position": -1}, "rule 'pin': position is -1; allowed: at least 0"),
        (PIN, {"item_ids": ("a", "b")}, r"rule 'pin': item_ids is \('a', 'b'\); allowed: the one item"),
        (PIN, {"item_ids": ()}, r"rule 'pin': item_ids are \[\] and condition is ''; one of the two"),
        (PIN, {"condition": "x = 1"}, r"rule 'pin': item_ids are \['a'\] and condition is 'x = 1'; one of the two"),
        (BOOST, {"strength": 0}, "rule 'boost': strength is 0; allowed: a finite number above 0"),
        (BOOST, {"strength": float("nan")}, "strength is nan"),
        (BOOST, {"kind": "quota"}, "at_least and at_most are 0; a quota needs one of them"),
        (BOOST, {"kind": "quota", "at_least": 3, "at_most": 2}, "at_least is 3, more than at_most, 2"),
        (PIN, {"from_ms": 9, "until_ms": 9}, "until_ms is 9, not after from_ms, 9"),
    ],
)
def test_a_rule_that_makes_no_sense_is_refused_by_name(rule: Rule, changed: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(rule, **changed)  # type: ignore[arg-type]  # wrong on purpose


@pytest.mark.parametrize(
    ("other", "why"),
    [
        (replace(PIN, id="x", item_ids=("b",)), "both fill slot 1"),
        (replace(PIN, id="x", position=2), "both pin 'a', and a slate holds an item once"),
        (Rule(id="x", kind="block", item_ids=("z", "a")), "'a' is pinned by one and blocked by the other"),
    ],
)
def test_rules_that_contradict_each_other_are_both_named_unless_they_never_meet(other: Rule, why: str) -> None:
    with pytest.raises(ValueError, match=f"rules 'pin' and 'x' contradict each other: {why}"):
        RuleBook((PIN, other))
    for apart in (
        (replace(PIN, surfaces=("home",)), replace(other, surfaces=("cart", "search"))),
        (replace(PIN, queries=("shoes",)), replace(other, queries=("hats",))),
        (replace(PIN, until_ms=100), replace(other, from_ms=100)),
    ):
        RuleBook(apart)
    with pytest.raises(ValueError, match="contradict each other"):
        RuleBook((replace(PIN, surfaces=("home",)), replace(other, queries=("hats",))))


def test_ids_and_numbers_of_rules_are_bounded() -> None:
    with pytest.raises(ValueError, match="two rules have the id 'boost'"):
        RuleBook((BOOST, BOOST))
    quotas = tuple(Rule(id=f"q{n}", kind="quota", item_ids=("a",), at_most=1) for n in range(25))
    RuleBook(quotas[:24])
    with pytest.raises(ValueError, match="25 rules are quotas; at most 24"):
        RuleBook(quotas)


def test_a_rule_applies_where_and_when_it_says() -> None:
    asked = replace(query(), text="Red  SHOES ")
    for changed, applies in (
        ({}, True),
        ({"surfaces": ("home",)}, True),
        ({"surfaces": ("cart",)}, False),
        ({"queries": ("red shoes",)}, True),
        ({"queries": ("shoes",)}, False),
        ({"from_ms": NOW_MS}, True),
        ({"from_ms": NOW_MS + 1}, False),
        ({"until_ms": NOW_MS + 1}, True),
        ({"until_ms": NOW_MS}, False),
    ):
        assert replace(BOOST, **changed).applies(asked) == applies, changed


def test_what_rules_say_of_candidates_adds_up() -> None:
    rules = (
        BOOST,
        Rule(id="bury", kind="bury", item_ids=("i3", "elsewhere"), strength=0.25),
        Rule(id="no", kind="block", condition='work = "w7"'),
        Rule(id="quota", kind="quota", item_ids=("i0", "i1"), at_least=1),
        Rule(id="pin", kind="pin", item_ids=("i2",), position=1),
        Rule(id="far", kind="pin", item_ids=("i1",), position=8),
        Rule(id="gone", kind="pin", item_ids=("i77",), position=0),
    )
    settings = PolicySettings(weights={"click": 1})
    policy, scored = case(settings, np.full((4, 1), 0.5), category_N=[1, 2, 1, 2], work_N=[0, 0, 7, 0], rules=rules)
    assert policy.rules is not None
    ruled = policy.rules.judged(query(), scored.candidates.row_N)  # candidate n is item i<3 - n>
    assert ruled.boost_N.tolist() == [0.75, 0, 1, 0]
    assert ruled.barred_N.tolist() == [False, False, True, False]
    assert [(rule.id, member_N.tolist()) for rule, member_N in ruled.quotas] == [("quota", [False, False, True, True])]
    assert ruled.pins == ((1, 2),)
    assert policy.rules.pinned(query()).tolist() == [2]
    slate = policy.select(query(), scored)
    assert set(slate.index_K) == {0, 1, 3}
    assert slate.index_K[1] == 1


def test_a_condition_that_cannot_be_judged_names_its_rule() -> None:
    policy, _ = case(
        PolicySettings(weights={"click": 1}), np.ones((1, 1)), rules=[replace(BOOST, condition="price < 3")]
    )
    assert policy.rules is not None
    with pytest.raises(ValueError, match=r"rule 'boost': condition: at character 1: no attribute 'price'"):
        policy.rules.check()
