"""The draw against an independent, plain account of it, by enumeration and by frequency.

Shape letters: K slots, N candidates, A actions, D embedding width, P slates.
"""

import math
from collections import Counter
from dataclasses import replace
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from policy_cases import case, query, unit_vectors

from policy.constraints import RELAXATION
from policy.selector import SlatePolicy, position_at, slot_distribution
from policy.settings import PolicySettings
from policy.types import SlotFlag
from ranking.types import Scored

CLICK = PolicySettings(weights={"click": 1})
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


def six(settings: PolicySettings = FULL) -> tuple[SlatePolicy, Scored]:
    rng = np.random.default_rng(7)
    return case(
        settings,
        rng.random((6, 2)),
        actions=("click", "hide"),
        category_N=CATEGORY_N,
        creator_N=CREATOR_N,
        age_days_N=AGE_DAYS_N,
        embedding_ND=unit_vectors(rng, 6, 3),
    )


def textbook(policy: SlatePolicy, scored: Scored, prefix: tuple[int, ...], size: int) -> list[float]:
    """P(next | prefix), one candidate at a time, from the definitions."""
    s = policy.settings
    vector_ND = policy.items.embedding_ID[scored.candidates.row_N].astype(np.float64)
    worth = {}
    for n in range(len(scored)):
        value = float(sum(s.weights[a] * scored.probability_NA[n, j] for j, a in enumerate(scored.action_names)))
        similarity = max((float(vector_ND[n] @ vector_ND[m]) for m in prefix), default=0.0)
        worth[n] = value - s.diversity * similarity + s.freshness_weight * 0.5 ** (AGE_DAYS_N[n] / s.half_life_days)
    left = [n for n in worth if n not in prefix]
    by_category = Counter(CATEGORY_N[m] for m in prefix if CATEGORY_N[m])
    by_creator = Counter(CREATOR_N[m] for m in prefix if CREATOR_N[m])
    in_category = [n for n in left if by_category[CATEGORY_N[n]] < (s.max_per_category or 99)]
    in_both = [n for n in in_category if by_creator[CREATOR_N[n]] < (s.max_per_creator or 99)]
    owed = math.ceil(s.fresh_quota * size) - sum(AGE_DAYS_N[m] <= s.fresh_days for m in prefix)
    must = [n for n in in_both if AGE_DAYS_N[n] <= s.fresh_days] if 0 < owed >= size - len(prefix) else []
    feasible = must or in_both or in_category or left
    most = max(worth[n] for n in feasible)
    raised = {n: math.exp((worth[n] - most) / s.temperature) for n in feasible}
    total = sum(raised.values())
    return [(1 - s.epsilon) * raised[n] / total + s.epsilon / len(feasible) if n in feasible else 0.0 for n in worth]


@pytest.mark.parametrize("size", [1, 3, 5, 6])
def test_every_slate_of_a_small_catalogue_has_the_textbook_probability_and_they_sum_to_one(size: int) -> None:
    policy, scored = six()
    total = 0.0
    for slate in permutations(range(6), size):
        draw = policy.propensity_of(query(size=size), scored, np.array(slate))
        for k in range(size):
            expected_N = textbook(policy, scored, slate[:k], size)
            np.testing.assert_allclose(draw.distribution_KN[k], expected_N, atol=1e-6)
            assert draw.propensity_K[k] == draw.distribution_KN[k, slate[k]]
        total += draw.prefix_propensity_K[-1]
    assert total == pytest.approx(1, abs=1e-12)


def test_the_propensity_of_a_drawn_slate_is_bit_for_bit_the_one_it_was_drawn_with() -> None:
    policy, scored = six()
    for request in range(50):
        asked = query(f"r{request}", size=5)
        slate = policy.select(asked, scored)
        draw = policy.propensity_of(asked, scored, slate.index_K)
        assert (draw.propensity_K == slate.propensity_K).all()
        assert (slate.propensity_K > 0).all()
        assert (slate.propensity_K <= 1).all()


def test_slates_are_drawn_as_often_as_their_propensity_says() -> None:
    policy, scored = six()
    draws = 20_000
    seen = Counter(tuple(policy.select(query(f"r{r}"), scored).index_K.tolist()) for r in range(draws))
    slates = list(permutations(range(6), 3))
    expected_P = np.array(
        [draws * policy.propensity_of(query(), scored, np.array(s)).prefix_propensity_K[-1] for s in slates]
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


def test_the_draw_is_determined_by_generation_and_request() -> None:
    policy, scored = six(replace(FULL, epsilon=1.0))
    slates = [tuple(policy.select(query(f"r{r}"), scored).index_K) for r in range(20)]
    assert slates == [tuple(policy.select(query(f"r{r}"), scored).index_K) for r in range(20)]
    assert len(set(slates)) > 10
    other = SlatePolicy(policy.settings, policy.items, "g2")
    assert slates != [tuple(other.select(query(f"r{r}"), scored).index_K) for r in range(20)]


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


def test_a_higher_temperature_moves_probability_from_the_best_to_the_worst() -> None:
    adjusted_F = np.array([0.3, 0.1, -0.2])
    best, worst = [], []
    for temperature in (0.0, 0.01, 0.1, 1.0, 10.0, 1e6):
        probability_F = slot_distribution(adjusted_F, temperature, 0.0)
        assert probability_F.sum() == pytest.approx(1, abs=1e-12)
        assert (np.diff(probability_F) <= 0).all()
        best.append(probability_F[0])
        worst.append(probability_F[2])
    assert (np.diff(best) < 1e-12).all()
    assert (np.diff(worst) > -1e-12).all()
    assert best[0] == 1
    np.testing.assert_allclose(probability_F, 1 / 3, atol=1e-6)


def test_extreme_settings_give_probabilities_and_no_warning() -> None:
    adjusted_F = np.array([1e9, -1e9, 0.0])
    np.testing.assert_array_equal(slot_distribution(adjusted_F, 5e-324, 0.0), [1, 0, 0])
    np.testing.assert_allclose(slot_distribution(adjusted_F, 0.1, 1.0), 1 / 3)
    for epsilon in np.linspace(0, 1, 1001):
        assert slot_distribution(np.array([3.0]), 0.1, float(epsilon))[0] == 1


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
        policy, scored = case(
            replace(CLICK, temperature=0, epsilon=0, diversity=0.7), probability_NA, embedding_ND=vector_ND
        )
        chosen: list[int] = []
        while len(chosen) < 6:
            score = {
                n: probability_NA[n, 0] - 0.7 * max((float(vector_ND[n] @ vector_ND[m]) for m in chosen), default=0)
                for n in range(12)
                if n not in chosen
            }
            chosen.append(max(score, key=lambda n: score[n]))
        assert policy.select(query(f"r{trial}", size=6), scored).index_K.tolist() == chosen


def test_freshness_reads_age_from_the_query_and_the_items_row() -> None:
    settings = replace(CLICK, temperature=1, epsilon=0, freshness_weight=2, half_life_days=4)
    policy, scored = case(settings, np.full((2, 1), 0.5), age_days_N=[0, 4])
    first, second = policy.propensity_of(query(size=1), scored, np.array([0])).distribution_KN[0]
    assert first / second == pytest.approx(math.exp(2 - 1))


@hypothesis_settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_no_candidate_is_lost_or_repeated_under_random_constraints(data: st.DataObject) -> None:
    count = data.draw(st.integers(0, 12))
    size = data.draw(st.integers(0, 15))
    numbers = st.floats(0, 1, width=32)
    settings = PolicySettings(
        weights={"click": 1},
        temperature=data.draw(st.sampled_from([0.0, 0.1, 5.0])),
        epsilon=data.draw(st.sampled_from([0.0, 0.2, 1.0])),
        diversity=data.draw(st.sampled_from([0.0, 0.5])),
        freshness_weight=data.draw(st.sampled_from([0.0, 0.5])),
        max_per_category=data.draw(st.integers(0, 3)),
        max_per_creator=data.draw(st.integers(0, 3)),
        fresh_quota=data.draw(numbers),
    )

    def each(strategy: st.SearchStrategy[float]) -> NDArray[np.float64]:
        return np.array(data.draw(st.lists(strategy, min_size=count, max_size=count)), np.float64)

    category_N, creator_N = each(st.integers(0, 3)).astype(int), each(st.integers(0, 3)).astype(int)
    policy, scored = case(
        settings,
        each(numbers).reshape(count, 1),
        category_N=category_N.tolist(),
        creator_N=creator_N.tolist(),
        age_days_N=each(st.floats(0, 3)).tolist(),
    )
    asked = query(size=size)
    slate = policy.select(asked, scored)
    assert len(slate) == min(size, count)
    assert len(set(slate.index_K.tolist())) == len(slate)
    assert ((slate.index_K >= 0) & (slate.index_K < max(count, 1))).all()
    assert len(slate.utility_N) == count
    assert ((slate.propensity_K > 0) & (slate.propensity_K <= 1)).all()
    draw = policy.propensity_of(asked, scored, slate.index_K)
    assert (draw.propensity_K == slate.propensity_K).all()
    np.testing.assert_allclose(draw.distribution_KN.sum(axis=1), 1, atol=1e-12)
    assert bool(slate.relaxed) == bool((slate.flag_K & SlotFlag.RELAXED).any())
    for name, most, id_N in (
        ("max_per_category", settings.max_per_category, category_N),
        ("max_per_creator", settings.max_per_creator, creator_N),
    ):
        shared = Counter(id_N[slate.index_K][id_N[slate.index_K] > 0].tolist())
        if most and name not in slate.relaxed:
            assert max(shared.values(), default=0) <= most
    if "fresh_quota" not in slate.relaxed:
        age_ms_K = asked.time_ms - policy.items.published_ms_I[scored.candidates.row_N[slate.index_K]]
        assert (age_ms_K <= 86_400_000).sum() >= settings.fresh_quota * len(slate) - 1e-6


def test_no_candidates_give_an_empty_slate() -> None:
    policy, scored = case(FULL, np.zeros((0, 2)), actions=("click", "hide"))
    slate = policy.select(query(), scored)
    assert len(slate) == 0
    assert slate.relaxed == ()
    assert len(policy.propensity_of(query(), scored, np.array([], np.int64))) == 0
    assert policy.propensity_of(query(), scored, np.array([-1, -1])).propensity_K.tolist() == [0, 0]


def test_a_cap_that_starves_the_slate_is_given_up_and_flagged() -> None:
    settings = replace(CLICK, temperature=0, epsilon=0, max_per_category=1)
    policy, scored = case(settings, np.array([[0.9], [0.8], [0.7]]), category_N=[1, 1, 2])
    slate = policy.select(query(), scored)
    assert slate.index_K.tolist() == [0, 2, 1]
    assert slate.flag_K.tolist() == [0, 0, SlotFlag.RELAXED]
    assert slate.relaxed == ("max_per_category",)


def test_constraints_are_given_up_in_the_documented_order_and_only_as_far_as_needed() -> None:
    settings = replace(
        CLICK, temperature=0, epsilon=0, max_per_category=2, max_per_creator=1, fresh_quota=1.0, fresh_days=1
    )
    probability_NA = np.array([[0.9], [0.8], [0.7], [0.6]])
    policy, scored = case(
        settings, probability_NA, category_N=[1, 1, 1, 2], creator_N=[1, 2, 1, 2], age_days_N=[0, 9, 9, 9]
    )
    slate = policy.select(query(size=4), scored)
    # 0 is the fresh one; then none is fresh and 1 keeps both caps; then every creator is full and only 3 keeps its
    # category's cap; then that is full too.
    assert slate.index_K.tolist() == [0, 1, 3, 2]
    assert slate.flag_K.tolist() == [SlotFlag.FRESH_QUOTA, *[SlotFlag.RELAXED] * 3]
    assert slate.relaxed == RELAXATION


def test_the_fresh_quota_binds_as_late_as_it_can() -> None:
    settings = replace(CLICK, temperature=0, epsilon=0, fresh_quota=0.25, fresh_days=1)
    probability_NA = np.array([[0.9], [0.8], [0.7], [0.6], [0.1], [0.05]])
    policy, scored = case(settings, probability_NA, age_days_N=[2, 2, 2, 2, 0.5, 0.5])
    slate = policy.select(query(size=4), scored)
    assert slate.index_K.tolist() == [0, 1, 2, 4]
    assert slate.flag_K.tolist() == [0, 0, 0, SlotFlag.FRESH_QUOTA]


def test_the_fresh_quota_is_rounded_up_to_whole_slots_and_not_beyond() -> None:
    probability_NA = np.linspace(1, 0, 40)[:, None]
    age_days_N = [9.0] * 30 + [0.0] * 10
    for size, quota, owed in ((25, 0.28, 7), (25, 0.29, 8), (3, 0.1, 1), (3, 0.0, 0)):
        settings = replace(CLICK, temperature=0, epsilon=0, fresh_quota=quota)
        policy, scored = case(settings, probability_NA, age_days_N=age_days_N)
        assert (policy.select(query(size=size), scored).index_K >= 30).sum() == owed


def test_the_inverse_of_the_cumulative_distribution_never_lands_on_probability_zero() -> None:
    probability_F = np.array([0.0, 0.25, 0.0, 0.75, 0.0])
    landed = [position_at(probability_F, chance) for chance in (0.0, 0.2499, 0.25, 0.9999, 1.0)]
    assert landed == [1, 1, 3, 3, 3]


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
    assert draw.prefix_propensity_K.tolist()[1:] == [0, 0]
    np.testing.assert_allclose(draw.distribution_KN.sum(axis=1), 1)
    one = policy.propensity_of(query(), scored, np.array([-1, 0]))
    start = policy.propensity_of(query(), scored, np.array([0]))
    np.testing.assert_array_equal(one.distribution_KN[0], start.distribution_KN[0])


def test_an_item_that_the_policy_would_not_take_has_propensity_zero_and_counts_from_there_on() -> None:
    settings = replace(CLICK, temperature=0, epsilon=0, max_per_category=1)
    policy, scored = case(settings, np.array([[0.9], [0.8], [0.7]]), category_N=[1, 2, 2])
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


def test_unknown_categories_and_creators_share_nothing() -> None:
    settings = replace(CLICK, max_per_category=1, max_per_creator=1)
    policy, scored = case(settings, np.full((4, 1), 0.5), category_N=[0] * 4, creator_N=[0] * 4)
    assert policy.select(query(size=4), scored).relaxed == ()
