"""The draw against an independent, plain account of it, by enumeration and by frequency.

Shape letters: K slots, N candidates, A actions, D embedding width, P slates, B magnitudes of a probability.
"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from plain_policy import PlainPolicy
from policy_cases import case, query, unit_vectors

from policy.constraints import RELAXATION
from policy.rules import Rule
from policy.selector import SlatePolicy
from policy.settings import PolicySettings
from policy.types import SlotFlag
from ranking.types import Scored

CLICK = PolicySettings(weights={"click": 1})
GREEDY = replace(CLICK, temperature=0, epsilon=0, diversity=0)
FULL = PolicySettings(
    weights={"click": 1, "hide": -0.5},
    temperature=0.2,
    epsilon=0.1,
    diversity=0.4,
    freshness_weight=0.3,
    half_life_days=2,
    max_per_category=2,
    max_per_creator=1,
    fresh_quota=0.3,
    fresh_days=1,
)
CATEGORY_N = [1, 1, 1, 2, 2, 0]
CREATOR_N = [1, 2, 3, 3, 0, 0]
AGE_DAYS_N = [5.0, 0.5, 3.0, 4.0, 10.0, 0.2]
WORK_N = [1, 0, 2, 1, 2, 0]
PIN = Rule(id="pin", kind="pin", item_ids=("i1",), position=2)  # candidate 4
RULES = (
    PIN,
    Rule(id="boost", kind="boost", condition='category = "c1"', strength=0.2),
    Rule(id="bury", kind="bury", item_ids=("i0", "i4"), strength=0.3),  # candidates 5 and 1
    Rule(id="few", kind="quota", item_ids=("i5", "i4", "i2"), at_least=1, at_most=1),  # candidates 0, 1 and 3
)
CASES: dict[str, tuple[PolicySettings, tuple[Rule, ...]]] = {
    "full": (FULL, ()),
    "windows": (replace(FULL, max_per_category=1, category_window=2, max_per_creator=1, creator_window=3), ()),
    "minima": (replace(FULL, min_per_category={"c2": 2}, max_per_creator=0), ()),
    "more than fits": (replace(FULL, min_per_category={"c1": 2, "c2": 2}, fresh_quota=0.5), ()),
    "duplicates": (replace(FULL, duplicate_attribute="work", max_per_category=0, max_per_creator=0), ()),
    "floor": (replace(FULL, fresh_floor=0.3, epsilon=0.2), ()),
    "greedy": (replace(FULL, temperature=0.0, fresh_floor=0.1), ()),
    "cold": (replace(FULL, temperature=1e-5), ()),
    "dpp": (replace(FULL, diversity_by="dpp", diversity=0.1), ()),
    "rules": (FULL, RULES),
    "rules and windows": (replace(FULL, max_per_category=1, category_window=2, fresh_floor=0.2), RULES),
    "block": (FULL, (Rule(id="no", kind="block", item_ids=("i3", "nobody")), PIN)),  # candidate 2
}


def six(settings: PolicySettings = FULL, rules: Sequence[Rule] = ()) -> tuple[SlatePolicy, Scored]:
    rng = np.random.default_rng(7)
    return case(
        settings,
        rng.random((6, 2)),
        actions=("click", "hide"),
        category_N=CATEGORY_N,
        creator_N=CREATOR_N,
        age_days_N=AGE_DAYS_N,
        embedding_ND=unit_vectors(rng, 6, 6),
        work_N=WORK_N,
        rules=rules,
    )


def plain_six(settings: PolicySettings, rules: Sequence[Rule]) -> PlainPolicy:
    policy, scored = six(settings, rules)
    utility_N = [float(c + settings.weights.get("hide", 0) * h) for c, h in scored.probability_NA.astype(float)]
    pins, barred, quotas = {}, frozenset[int](), []
    for rule in rules:
        members = {5 - int(item[1:]) for item in rule.item_ids if item[1:].isdigit()}
        if rule.condition:
            members = {n for n in range(6) if rule.condition == f'category = "c{CATEGORY_N[n]}"'}
        for n in members:
            utility_N[n] += {"boost": rule.strength, "bury": -rule.strength}.get(rule.kind, 0.0)
        if rule.kind == "pin":
            pins[rule.position] = min(members)
        elif rule.kind == "block":
            barred = frozenset(members)
        elif rule.kind == "quota":
            quotas.append((frozenset(members), rule.at_least, rule.at_most))
    return PlainPolicy(
        settings=settings,
        utility_N=utility_N,
        vector_ND=policy.items.embedding_ID[scored.candidates.row_N].astype(np.float64),
        category_N=CATEGORY_N,
        creator_N=CREATOR_N,
        age_days_N=AGE_DAYS_N,
        work_N=WORK_N,
        pins=pins,
        barred=barred,
        quotas=quotas,
    )


@pytest.mark.parametrize("size", [1, 3, 5, 6])
@pytest.mark.parametrize("name", CASES)
def test_every_slate_of_a_small_catalogue_has_the_plain_probability_and_they_sum_to_one(name: str, size: int) -> None:
    settings, rules = CASES[name]
    (policy, scored), plain = six(settings, rules), plain_six(settings, rules)
    slots = min(size, 6 - len(plain.barred))
    total = 0.0
    for number, slate in enumerate(permutations(range(6), slots)):
        draw = policy.propensity_of(query(size=size), scored, np.array(slate))
        total += draw.propensity_K.prod()
        if number % 5 == 0 or size < 5:
            expected, _ = plain.distributions(slate, size)
            np.testing.assert_allclose(draw.distribution_KN, expected, atol=1e-3 if name == "cold" else 2e-4)
        np.testing.assert_array_equal(draw.propensity_K, draw.distribution_KN[np.arange(slots), slate])
    assert total == pytest.approx(1, abs=1e-12)


@pytest.mark.parametrize("name", CASES)
def test_the_propensity_of_a_drawn_slate_is_bit_for_bit_the_one_it_was_drawn_with(name: str) -> None:
    (policy, scored), plain = six(*CASES[name]), plain_six(*CASES[name])
    for request in range(30):
        asked = query(f"r{request}", size=5)
        slate = policy.select(asked, scored)
        draw = policy.propensity_of(asked, scored, slate.index_K)
        np.testing.assert_array_equal(draw.propensity_K, slate.propensity_K)
        assert (slate.propensity_K > 0).all()
        assert (slate.propensity_K <= 1).all()
        _, given_up = plain.distributions(slate.index_K.tolist(), 5)
        assert slate.relaxed == tuple(given_up)


def test_slates_are_drawn_as_often_as_their_propensity_says() -> None:
    policy, scored = six()
    draws = 20_000
    seen = Counter(tuple(policy.select(query(f"r{r}"), scored).index_K.tolist()) for r in range(draws))
    slates = list(permutations(range(6), 3))
    expected_P = np.array(
        [draws * policy.propensity_of(query(), scored, np.array(s)).propensity_K.prod() for s in slates]
    )
    seen_P = np.array([seen[s] for s in slates])
    assert not seen_P[expected_P == 0].any()
    rare_P = expected_P < 5
    expected_C = np.append(expected_P[~rare_P], expected_P[rare_P].sum())
    seen_C = np.append(seen_P[~rare_P], seen_P[rare_P].sum())
    expected_C, seen_C = expected_C[expected_C > 0], seen_C[expected_C > 0]
    chi_square = ((seen_C - expected_C) ** 2 / expected_C).sum()
    freedom = len(expected_C) - 1
    assert freedom > 30
    # Mean and standard deviation of a chi-square; 4 of them are about one in ten thousand.
    assert abs(chi_square - freedom) < 4 * math.sqrt(2 * freedom)


def hundred(rng: np.random.Generator, settings: PolicySettings) -> tuple[SlatePolicy, Scored]:
    return case(
        settings,
        rng.random((150, 1)),
        category_N=rng.integers(0, 9, 150).tolist(),
        creator_N=rng.integers(0, 40, 150).tolist(),
        age_days_N=rng.exponential(5, 150).tolist(),
        embedding_ND=unit_vectors(rng, 150, 8),
    )


def test_a_million_draws_are_as_likely_as_logged_whatever_their_magnitude() -> None:
    """Of all candidates whose chance lies between two powers of two, as many are drawn as their chances add up to."""
    settings = replace(
        FULL, weights={"click": 1}, max_per_category=3, category_window=10, max_per_creator=2, fresh_floor=0.05
    )
    policy, scored = hundred(np.random.default_rng(3), settings)
    slots, bins = 100, 16
    seen_B, expected_B, variance_B = np.zeros(bins), np.zeros(bins), np.zeros(bins)
    for request in range(10_000):
        asked = query(f"r{request}", size=slots)
        slate = policy.select(asked, scored)
        chance_KN = policy.propensity_of(asked, scored, slate.index_K).distribution_KN
        magnitude_KN = np.clip(-np.frexp(chance_KN)[1], 0, bins - 1) + bins * np.arange(slots)[:, None]
        mass_KB = np.bincount(magnitude_KN.ravel(), chance_KN.ravel(), slots * bins).reshape(slots, bins)
        seen_B += np.bincount(magnitude_KN[np.arange(slots), slate.index_K] % bins, minlength=bins)
        expected_B += mass_KB.sum(axis=0)
        variance_B += (mass_KB * (1 - mass_KB)).sum(axis=0)
    assert seen_B.sum() == 1_000_000
    assert expected_B.sum() == pytest.approx(1_000_000)
    often_B = expected_B > 100
    assert often_B.sum() > 8
    assert (np.abs(seen_B - expected_B)[often_B] < 4 * np.sqrt(variance_B[often_B])).all()
    chi_square = ((seen_B - expected_B)[often_B] ** 2 / variance_B[often_B]).sum()
    assert chi_square < often_B.sum() + 4 * math.sqrt(2 * often_B.sum())


def test_chances_of_slots_are_uniform_and_do_not_depend_on_each_other() -> None:
    """With chance alone, the item of a slot tells the chance."""
    policy, scored = case(replace(CLICK, epsilon=1, diversity=0), np.full((100, 1), 0.5))
    index_SK = np.array([policy.select(query(f"r{r}", size=1 + r % 2), scored).index_K[-1] for r in range(40_000)])
    for part_S in (index_SK, index_SK[::2], index_SK[1::2]):
        seen_N = np.bincount(part_S, minlength=100)
        chi_square = ((seen_N - len(part_S) / 100) ** 2 / (len(part_S) / 100)).sum()
        assert abs(chi_square - 99) < 4 * math.sqrt(2 * 99)
    assert abs(np.corrcoef(index_SK[:-1], index_SK[1:])[0, 1]) < 0.02


def test_the_draw_is_determined_by_generation_and_request() -> None:
    policy, scored = six(replace(FULL, epsilon=1.0))
    slates = [tuple(policy.select(query(f"r{r}"), scored).index_K) for r in range(20)]
    assert slates == [tuple(policy.select(query(f"r{r}"), scored).index_K) for r in range(20)]
    assert len(set(slates)) > 10
    other = SlatePolicy(policy.settings, policy.items, "g2")
    assert slates != [tuple(other.select(query(f"r{r}"), scored).index_K) for r in range(20)]


def test_the_draw_of_a_known_seed_is_the_same_for_ever() -> None:
    """What is logged today must replay after every change of this code and of the libraries below it."""
    policy, scored = hundred(np.random.default_rng(3), replace(FULL, weights={"click": 1}, freshness_weight=0))
    slate = policy.select(query("for ever", size=8), scored)
    assert slate.index_K.tolist() == [100, 119, 15, 17, 21, 7, 83, 48]
    assert [each.hex() for each in slate.propensity_K.tolist()] == [
        "0x1.a418d854262ecp-9",
        "0x1.155684698108bp-6",
        "0x1.f12d3fe8042c7p-5",
        "0x1.bf52522995f7ep-8",
        "0x1.ed69b43a68657p-6",
        "0x1.9543aa5c9d69ap-10",
        "0x1.471adc03f9c83p-5",
        "0x1.ab9983c5be771p-6",
    ]


def test_raising_a_weight_never_lowers_the_item_that_has_most_of_the_action() -> None:
    probability_NA = np.random.default_rng(5).random((8, 2))
    best = int(probability_NA[:, 1].argmax())
    for temperature in (0.0, 0.05, 1.0):
        for epsilon in (0.0, 0.3):
            settings = replace(CLICK, temperature=temperature, epsilon=epsilon)
            chances = []
            for weight in np.linspace(0, 50, 51):
                weighted = replace(settings, weights={"click": 1, "like": float(weight)})
                policy, scored = case(weighted, probability_NA, actions=("click", "like"))
                chances.append(policy.propensity_of(query(), scored, np.array([best])).propensity_K[0])
            assert (np.diff(chances) >= -1e-6).all()
            assert chances[-1] > chances[0]


def first_slot(adjusted_N: Sequence[float], **changes: Any) -> NDArray[np.float64]:
    """The distribution of the first slot over candidates of these utilities."""
    policy, scored = case(replace(CLICK, diversity=0, **changes), np.array(adjusted_N).reshape(-1, 1))
    return np.asarray(policy.propensity_of(query(size=1), scored, np.array([0])).distribution_KN[0])


def test_a_higher_temperature_moves_probability_from_the_best_to_the_worst() -> None:
    best, worst = [], []
    for temperature in (0.0, 0.01, 0.1, 1.0, 10.0, 1e6):
        probability_N = first_slot([0.9, 0.7, 0.4], temperature=temperature, epsilon=0)
        assert probability_N.sum() == pytest.approx(1, abs=1e-12)
        assert (np.diff(probability_N) <= 0).all()
        best.append(probability_N[0])
        worst.append(probability_N[2])
    assert (np.diff(best) < 1e-12).all()
    assert (np.diff(worst) > -1e-12).all()
    assert best[0] == 1
    np.testing.assert_allclose(probability_N, 1 / 3, atol=1e-6)


@given(
    utility_N=st.lists(st.floats(0, 1, width=32), min_size=1, max_size=70),
    temperature=st.floats(1e-4, 100),
    epsilon=st.floats(0, 1),
)
@hypothesis_settings(max_examples=100)
def test_the_first_slot_is_the_softmax_mixed_with_the_uniform(
    utility_N: list[float], temperature: float, epsilon: float
) -> None:
    raised_N = np.exp((np.array(utility_N) - max(utility_N)) / temperature)
    expected_N = (1 - epsilon) * raised_N / raised_N.sum() + epsilon / len(utility_N)
    found_N = first_slot(utility_N, temperature=temperature, epsilon=epsilon)
    np.testing.assert_allclose(found_N, expected_N, rtol=1e-12, atol=1e-300)


def test_extreme_settings_give_probabilities_and_no_warning() -> None:
    np.testing.assert_array_equal(first_slot([1.0, 0.0, 0.5], temperature=5e-324, epsilon=0.0), [1, 0, 0])
    np.testing.assert_allclose(first_slot([1.0, 0.0, 0.5], temperature=0.1, epsilon=1.0), 1 / 3)
    for epsilon in np.linspace(0, 1, 101):
        assert first_slot([0.3], epsilon=float(epsilon))[0] == 1


def test_a_cold_policy_still_tells_the_later_items_apart() -> None:
    """Masses that are nothing beside the first slot's best must be taken anew."""
    settings = replace(CLICK, temperature=1e-4, epsilon=0, diversity=0)
    policy, scored = case(settings, np.array([[0.9], [0.5], [0.1], [0.10005]]))
    draw = policy.propensity_of(query(size=4), scored, np.array([0, 1, 2, 3]))
    share = 1 / (1 + math.exp((float(np.float32(0.10005)) - float(np.float32(0.1))) / 1e-4))
    np.testing.assert_allclose(draw.propensity_K, [1, 1, share, 1], rtol=1e-9)


def test_temperature_zero_takes_the_first_of_equals() -> None:
    policy, scored = case(replace(CLICK, temperature=0, epsilon=0), np.array([[0.2], [0.9], [0.9], [0.9]]))
    slate = policy.select(query(size=4), scored)
    assert slate.index_K.tolist() == [1, 2, 3, 0]
    assert slate.propensity_K.tolist() == [1, 1, 1, 1]
    assert slate.log_propensity == 0
    assert not slate.flag_K.any()


def test_without_chance_the_slate_is_that_of_maximal_marginal_relevance() -> None:
    rng = np.random.default_rng(11)
    for trial in range(20):
        vector_ND, probability_NA = unit_vectors(rng, 12, 4), rng.random((12, 1))
        policy, scored = case(replace(GREEDY, diversity=0.7), probability_NA, embedding_ND=vector_ND)
        chosen: list[int] = []
        while len(chosen) < 6:
            score = {
                n: probability_NA[n, 0] - 0.7 * max((float(vector_ND[n] @ vector_ND[m]) for m in chosen), default=0)
                for n in range(12)
                if n not in chosen
            }
            chosen.append(max(score, key=lambda n: score[n]))
        assert policy.select(query(f"r{trial}", size=6), scored).index_K.tolist() == chosen


def test_without_chance_the_slate_is_the_greedy_choice_of_a_determinantal_point_process() -> None:
    """The largest determinant of the kernel q_i cos(i, j) q_j, q = exp(utility / (2 diversity)), one item at a time."""
    rng = np.random.default_rng(12)
    for trial in range(20):
        vector_ND, probability_NA = unit_vectors(rng, 12, 8), rng.random((12, 1))
        settings = replace(GREEDY, diversity=0.2, diversity_by="dpp")
        policy, scored = case(settings, probability_NA, embedding_ND=vector_ND)
        quality_N = np.exp(probability_NA[:, 0] / 0.4)
        kernel_NN = quality_N[:, None] * (vector_ND @ vector_ND.T) * quality_N
        chosen: list[int] = []
        while len(chosen) < 6:
            gain = {
                n: np.linalg.det(kernel_NN[np.ix_([*chosen, n], [*chosen, n])]) for n in range(12) if n not in chosen
            }
            chosen.append(max(gain, key=lambda n: gain[n]))
        assert policy.select(query(f"r{trial}", size=6), scored).index_K.tolist() == chosen


def test_a_slate_that_spans_everything_leaves_the_rest_to_utility() -> None:
    probability_NA = np.linspace(0.9, 0.1, 9)[:, None]
    settings = replace(GREEDY, diversity=0.5, diversity_by="dpp")
    policy, scored = case(settings, probability_NA, embedding_ND=np.eye(3)[[0, 0, 0, 1, 1, 1, 2, 2, 2]])
    assert policy.select(query(size=9), scored).index_K.tolist() == [0, 3, 6, 1, 2, 4, 5, 7, 8]


def test_freshness_reads_age_from_the_query_and_the_items_row() -> None:
    settings = replace(CLICK, temperature=1, epsilon=0, freshness_weight=2, half_life_days=4)
    policy, scored = case(settings, np.full((2, 1), 0.5), age_days_N=[0, 4])
    first, second = policy.propensity_of(query(size=1), scored, np.array([0])).distribution_KN[0]
    assert first / second == pytest.approx(math.exp(2 - 1))


@hypothesis_settings(max_examples=300)
@given(data=st.data())
def test_no_candidate_is_lost_or_repeated_under_random_constraints(data: st.DataObject) -> None:
    count = data.draw(st.integers(0, 40))
    size = data.draw(st.integers(0, 45))
    numbers = st.floats(0, 1, width=32)

    def capped(kind: str) -> dict[str, Any]:
        most = data.draw(st.integers(0, 3))
        return {f"max_per_{kind}": most, f"{kind}_window": data.draw(st.sampled_from([0, most + 1])) if most else 0}

    settings = PolicySettings(
        weights={"click": 1},
        temperature=data.draw(st.sampled_from([0.0, 1e-5, 0.1, 5.0])),
        epsilon=data.draw(st.sampled_from([0.0, 0.2, 0.6])),
        diversity=data.draw(st.sampled_from([0.0, 0.5])),
        diversity_by=data.draw(st.sampled_from(["mmr", "dpp"])),
        freshness_weight=data.draw(st.sampled_from([0.0, 0.5])),
        min_per_category=data.draw(st.dictionaries(st.sampled_from(["c1", "c2"]), st.integers(0, 1))),
        duplicate_attribute=data.draw(st.sampled_from(["", "work"])),
        fresh_quota=data.draw(numbers),
        fresh_floor=data.draw(st.sampled_from([0.0, 0.4])),
        **capped("category"),
        **capped("creator"),
    )
    ids = st.integers(0, 45).map(lambda n: f"i{n}")
    pins = data.draw(st.dictionaries(st.integers(0, 5), ids, max_size=3))
    rules = [
        Rule(id=f"p{slot}", kind="pin", item_ids=(item,), position=slot)
        for slot, item in pins.items()
        if list(pins.values()).count(item) == 1
    ]
    blocked = set(data.draw(st.lists(ids, max_size=5))) - set(pins.values())
    rules += [Rule(id=f"b{item}", kind="block", item_ids=(item,)) for item in sorted(blocked)]
    if data.draw(st.booleans()):
        rules.append(Rule(id="q", kind="quota", condition='category = "c1"', at_least=1, at_most=2))

    def each(strategy: st.SearchStrategy[float]) -> NDArray[np.float64]:
        return np.array(data.draw(st.lists(strategy, min_size=count, max_size=count)), np.float64)

    category_N, creator_N = each(st.integers(0, 3)).astype(int), each(st.integers(0, 3)).astype(int)
    policy, scored = case(
        settings,
        each(numbers).reshape(count, 1),
        category_N=category_N.tolist(),
        creator_N=creator_N.tolist(),
        age_days_N=each(st.floats(0, 3)).tolist(),
        work_N=each(st.integers(0, 9)).astype(int).tolist(),
        rules=rules,
    )
    asked = query(size=size)
    slate = policy.select(asked, scored)
    barred = {count - 1 - int(item[1:]) for item in blocked}
    assert len(slate) == min(size, count - sum(n >= 0 for n in barred))
    assert len(set(slate.index_K.tolist())) == len(slate)
    assert ((slate.index_K >= 0) & (slate.index_K < max(count, 1))).all()
    assert not barred & set(slate.index_K.tolist())
    assert len(slate.utility_N) == count
    assert ((slate.propensity_K > 0) & (slate.propensity_K <= 1)).all()
    for rule in rules:
        if rule.kind == "pin" and int(rule.item_ids[0][1:]) < count and rule.position < len(slate):
            assert slate.index_K[rule.position] == count - 1 - int(rule.item_ids[0][1:])
            assert slate.flag_K[rule.position] == SlotFlag.PINNED
    for kind, shared_N in (("category", category_N), ("creator", creator_N)):
        most, window = getattr(settings, f"max_per_{kind}"), getattr(settings, f"{kind}_window") or size
        if most and f"max_per_{kind}" not in slate.relaxed and not pins:
            for start in range(len(slate)):
                shown = Counter(shared_N[slate.index_K[start : start + window]].tolist())
                assert all(times <= most for code, times in shown.items() if code)
    owed = math.ceil(round(settings.fresh_quota * len(slate), 9))
    if "fresh_quota" not in slate.relaxed:
        age_N = asked.time_ms - policy.items.published_ms_I[scored.candidates.row_N]
        assert (age_N[slate.index_K] <= 86_400_000).sum() >= owed
    draw = policy.propensity_of(asked, scored, slate.index_K)
    np.testing.assert_array_equal(draw.propensity_K, slate.propensity_K)
    np.testing.assert_allclose(draw.distribution_KN.sum(axis=1), 1, atol=1e-12)


def test_no_candidates_give_an_empty_slate() -> None:
    policy, scored = case(FULL, np.zeros((0, 2)), actions=("click", "hide"))
    slate = policy.select(query(), scored)
    assert len(slate) == 0
    assert slate.relaxed == ()
    assert len(policy.propensity_of(query(), scored, np.array([], np.int64))) == 0
    assert policy.propensity_of(query(), scored, np.array([-1, -1])).propensity_K.tolist() == [0, 0]


def test_a_cap_that_starves_the_slate_is_given_up_and_flagged() -> None:
    policy, scored = case(replace(GREEDY, max_per_category=1), np.array([[0.9], [0.8], [0.7]]), category_N=[1, 1, 2])
    slate = policy.select(query(), scored)
    assert slate.index_K.tolist() == [0, 2, 1]
    assert slate.flag_K.tolist() == [0, 0, SlotFlag.RELAXED]
    assert slate.relaxed == ("max_per_category",)


def test_constraints_are_given_up_in_the_documented_order_and_only_as_far_as_needed() -> None:
    settings = replace(GREEDY, max_per_category=2, max_per_creator=1, fresh_quota=1.0, fresh_days=1)
    probability_NA = np.array([[0.9], [0.8], [0.7], [0.6]])
    policy, scored = case(
        settings, probability_NA, category_N=[1, 1, 1, 2], creator_N=[1, 2, 1, 2], age_days_N=[0, 9, 9, 9]
    )
    slate = policy.select(query(size=4), scored)
    # 0 is the fresh one; then none is fresh and 1 keeps both caps; then every creator is full and only 3 keeps its
    # category's cap; then that is full too.
    assert slate.index_K.tolist() == [0, 1, 3, 2]
    assert slate.flag_K.tolist() == [SlotFlag.FRESH_QUOTA, *[SlotFlag.RELAXED] * 3]
    assert slate.relaxed == ("fresh_quota", "max_per_creator", "max_per_category")
    assert [name for name in RELAXATION if name in slate.relaxed] == list(slate.relaxed)


def test_a_pin_that_is_no_candidate_is_given_up_but_not_in_a_list_of_the_callers() -> None:
    policy, scored = six(GREEDY, (Rule(id="no", kind="block", item_ids=("i3",)), replace(PIN, item_ids=("i2",))))
    kept = scored.keep(scored.candidates.row_N != 2)
    assert policy.select(query(), kept).relaxed == ("pins",)
    assert policy.select(replace(query(), only_row_N=kept.candidates.row_N), kept).relaxed == ()


def test_a_window_lets_a_category_come_back() -> None:
    settings = replace(GREEDY, max_per_category=1, category_window=3)
    probability_NA = np.linspace(0.9, 0.1, 9)[:, None]
    policy, scored = case(settings, probability_NA, category_N=[1, 1, 1, 2, 2, 2, 3, 3, 3])
    slate = policy.select(query(size=9), scored)
    assert slate.index_K.tolist() == [0, 3, 6, 1, 4, 7, 2, 5, 8]
    assert slate.relaxed == ()


def test_a_pin_counts_for_the_slots_before_it() -> None:
    settings = replace(GREEDY, max_per_category=1)
    policy, scored = case(
        settings,
        np.array([[0.9], [0.8], [0.7], [0.1]]),
        category_N=[1, 2, 3, 1],
        rules=[replace(PIN, item_ids=("i0",))],
    )
    slate = policy.select(query(size=3), scored)
    assert slate.index_K.tolist() == [1, 2, 3]
    assert slate.propensity_K[2] == 1
    assert slate.flag_K.tolist() == [0, 0, SlotFlag.PINNED]


def test_duplicates_are_shown_once() -> None:
    settings = replace(GREEDY, duplicate_attribute="work")
    policy, scored = case(settings, np.array([[0.9], [0.8], [0.7], [0.6]]), work_N=[5, 5, 0, 0])
    assert policy.select(query(size=3), scored).index_K.tolist() == [0, 2, 3]
    slate = policy.select(query(size=4), scored)
    assert slate.index_K.tolist() == [0, 2, 3, 1]
    assert slate.relaxed == ("duplicates",)


def test_minima_bind_as_late_as_they_can() -> None:
    settings = replace(GREEDY, min_per_category={"c2": 1, "c3": 1})
    probability_NA = np.array([[0.9], [0.8], [0.7], [0.6], [0.2], [0.1]])
    policy, scored = case(settings, probability_NA, category_N=[1, 1, 1, 1, 2, 3])
    slate = policy.select(query(size=4), scored)
    assert slate.index_K.tolist() == [0, 1, 4, 5]
    assert slate.flag_K.tolist() == [0, 0, SlotFlag.QUOTA, SlotFlag.QUOTA]


def test_the_floor_gives_every_fresh_item_its_share_and_no_more_than_the_rest_loses() -> None:
    base_N = first_slot([0.9, 0.5, 0.1, 0.1], temperature=0.05, epsilon=0.1)
    settings = replace(CLICK, diversity=0, temperature=0.05, epsilon=0.1, fresh_floor=0.2)
    policy, scored = case(settings, np.array([[0.9], [0.5], [0.1], [0.1]]), age_days_N=[9, 9, 9, 0])
    floored_N = policy.propensity_of(query(size=1), scored, np.array([0])).distribution_KN[0]
    np.testing.assert_allclose(floored_N, (base_N - 0.025) * 0.7 / 0.9 + 0.025 + [0, 0, 0, 0.2])


def test_the_fresh_quota_binds_as_late_as_it_can() -> None:
    probability_NA = np.array([[0.9], [0.8], [0.7], [0.6], [0.1], [0.05]])
    policy, scored = case(
        replace(GREEDY, fresh_quota=0.25, fresh_days=1), probability_NA, age_days_N=[2, 2, 2, 2, 0.5, 0.5]
    )
    slate = policy.select(query(size=4), scored)
    assert slate.index_K.tolist() == [0, 1, 2, 4]
    assert slate.flag_K.tolist() == [0, 0, 0, SlotFlag.FRESH_QUOTA]


def test_the_fresh_quota_is_rounded_up_to_whole_slots_and_not_beyond() -> None:
    probability_NA = np.linspace(1, 0, 40)[:, None]
    age_days_N = [9.0] * 30 + [0.0] * 10
    for size, quota, owed in ((25, 0.28, 7), (25, 0.29, 8), (3, 0.1, 1), (3, 0.0, 0)):
        policy, scored = case(replace(GREEDY, fresh_quota=quota), probability_NA, age_days_N=age_days_N)
        assert (policy.select(query(size=size), scored).index_K >= 30).sum() == owed


def test_a_slot_that_did_not_take_the_best_is_flagged_as_explored() -> None:
    policy, scored = case(replace(CLICK, temperature=0, epsilon=0.5), np.array([[0.9], [0.8], [0.1]]))
    explored = 0
    for request in range(200):
        slate = policy.select(query(f"r{request}", size=1), scored)
        assert (slate.flag_K[0] == SlotFlag.EXPLORED) == (slate.index_K[0] != 0)
        explored += int(slate.flag_K[0] == SlotFlag.EXPLORED)
    assert 40 < explored < 95


def test_an_item_that_is_no_candidate_has_propensity_zero_and_leaves_the_rest_as_it_was() -> None:
    policy, scored = six()
    draw = policy.propensity_of(query(), scored, np.array([0, -1, 3]))
    assert draw.propensity_K[1] == 0
    assert np.cumprod(draw.propensity_K).tolist()[1:] == [0, 0]
    np.testing.assert_allclose(draw.distribution_KN.sum(axis=1), 1)
    one = policy.propensity_of(query(), scored, np.array([-1, 0]))
    start = policy.propensity_of(query(), scored, np.array([0]))
    np.testing.assert_array_equal(one.distribution_KN[0], start.distribution_KN[0])


def test_an_item_that_the_policy_would_not_take_has_propensity_zero_and_counts_from_there_on() -> None:
    policy, scored = case(replace(GREEDY, max_per_category=1), np.array([[0.9], [0.8], [0.7]]), category_N=[1, 2, 2])
    draw = policy.propensity_of(query(), scored, np.array([1, 2, 0]))
    assert draw.propensity_K.tolist() == [0, 0, 1]
    assert draw.distribution_KN.tolist() == [[1, 0, 0], [1, 0, 0], [1, 0, 0]]


def test_a_prefix_and_a_slate_that_is_too_long_are_told_apart() -> None:
    policy, scored = six()
    full = policy.propensity_of(query(size=3), scored, np.array([0, 5, 3]))
    prefix = policy.propensity_of(query(size=3), scored, np.array([0, 5]))
    np.testing.assert_array_equal(prefix.distribution_KN, full.distribution_KN[:2])
    longer = policy.propensity_of(query(size=3), scored, np.array([0, 5, 3, 1]))
    np.testing.assert_array_equal(longer.distribution_KN[:3], full.distribution_KN)
    assert longer.propensity_K[3] == 0
    assert not longer.distribution_KN[3].any()


@pytest.mark.parametrize(
    ("index_K", "message"),
    [([0, 6], "index_K holds 6; positions go from -1 to 5"), ([-2], "holds -2"), ([1, 0, 1], "holds 1 twice")],
)
def test_a_slate_that_cannot_be_one_is_refused(index_K: list[int], message: str) -> None:
    policy, scored = six()
    with pytest.raises(ValueError, match=message):
        policy.propensity_of(query(), scored, np.array(index_K))


def test_a_setting_that_names_an_attribute_which_is_not_there_is_refused() -> None:
    policy, scored = six(replace(FULL, duplicate_attribute="isbn"))
    with pytest.raises(ValueError, match=r"duplicate_attribute: .* no attribute 'isbn'; they have category, work"):
        policy.select(query(), scored)


def test_unknown_categories_and_creators_share_nothing() -> None:
    settings = replace(CLICK, max_per_category=1, max_per_creator=1)
    policy, scored = case(settings, np.full((4, 1), 0.5), category_N=[0] * 4, creator_N=[0] * 4)
    assert policy.select(query(size=4), scored).relaxed == ()


def test_a_quota_for_which_pins_leave_no_slot_is_given_up_and_said_to_be() -> None:
    settings = PolicySettings(weights={"click": 1}, fresh_quota=1.0, fresh_days=1.0)
    pin = Rule(id="pin", kind="pin", item_ids=("i0",), position=0)
    policy, scored = case(settings, np.full((3, 1), 0.5), age_days_N=[0.0, 0.0, 2.0], rules=[pin])
    assert policy.select(query(size=1), scored).relaxed == ("fresh_quota",)
    assert policy.select(query(size=2), scored).relaxed == ("fresh_quota",)
    fresh, scored = case(settings, np.full((3, 1), 0.5), age_days_N=[0.0, 0.0, 0.0], rules=[pin])
    assert fresh.select(query(size=2), scored).relaxed == ()
