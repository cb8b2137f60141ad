"""What is estimated from a comparison: how deep, and what must come out where the answer is known."""

from dataclasses import replace

import numpy as np
import polars as pl
import pytest
from numpy.typing import NDArray

from policy.ope import InsufficientOverlap, require_overlap
from training.data import EVENT_SCHEMA
from training.estimate import HEADLINE, estimate, outcome_rewards
from training.replay import Counterfactual


def own_log(requests: int = 1000, slots: int = 4, *, seed: int = 0) -> Counterfactual:
    """A policy compared with itself, by a model that predicts every draw."""
    rng = np.random.default_rng(seed)
    prefix_MK: NDArray[np.float64] = np.cumprod(rng.uniform(0.2, 0.9, (requests, slots)), axis=1, dtype=np.float64)
    predicted_MK = rng.normal(size=(requests, slots))
    return Counterfactual(
        request_ids=tuple(f"r{m}" for m in range(requests)),
        reward_MK=rng.integers(0, 3, (requests, slots)).astype(np.float64),
        logged_prefix_MK=prefix_MK,
        target_prefix_MK=prefix_MK.copy(),
        predicted_reward_MK=predicted_MK,
        target_predicted_MK=predicted_MK.copy(),
        inside_M=np.ones(requests),
        target_item_ids=(("i1",),) * requests,
    )


def thin_from(compared: Counterfactual, slot: int, *, kept: int) -> Counterfactual:
    """Only the first `kept` requests could also have been the target's beyond `slot` slots."""
    target_MK: NDArray[np.float64] = compared.logged_prefix_MK.copy()
    target_MK[kept:, slot:] = 0.0
    return replace(compared, target_prefix_MK=target_MK)


def test_every_estimator_gives_the_plain_mean_of_a_policys_own_log() -> None:
    compared = own_log()
    estimates = estimate(compared)
    mean = compared.reward_MK.sum(axis=1).mean()
    assert estimates.depth == 4
    assert estimates.logged.value == pytest.approx(mean, abs=1e-12)
    assert {name: each.value for name, each in estimates.by_name.items()} == {
        name: pytest.approx(mean, abs=1e-12) for name in estimates.by_name
    }
    for each in estimates.by_name.values():
        assert each.low < mean < each.high
        assert each.effective_sample_size == pytest.approx(len(compared.request_ids))
        assert each.max_weight == pytest.approx(1.0)


def test_the_headline_is_one_of_the_estimators() -> None:
    estimates = estimate(own_log())
    assert estimates.headline is estimates.by_name[HEADLINE]


@pytest.mark.parametrize("slot", [1, 2, 3])
def test_it_goes_only_as_deep_as_the_overlap_reaches(slot: int) -> None:
    compared = thin_from(own_log(), slot, kept=100)
    estimates = estimate(compared)
    mean = compared.reward_MK[:, :slot].sum(axis=1).mean()
    assert estimates.depth == slot
    assert estimates.logged.value == pytest.approx(mean, abs=1e-12)
    for each in estimates.by_name.values():
        assert each.value == pytest.approx(mean, abs=1e-12), "what lies below has no say"
    require_overlap(estimates.overlap)


def test_depth_ends_at_the_first_gap_even_where_the_overlap_comes_back() -> None:
    compared = own_log(slots=3)
    logged_MK, target_MK = np.full((1000, 3), 0.9), np.full((1000, 3), 0.9)
    target_MK[50:, 1:] = 1e-4
    logged_MK[50:, 2] = 1e-4
    compared = replace(compared, logged_prefix_MK=logged_MK, target_prefix_MK=target_MK)
    weight_MK = target_MK / logged_MK
    assert (weight_MK[:, 0] == 1).all()
    assert (weight_MK[:, 2] == 1).all()
    assert estimate(compared).depth == 1


def test_a_log_that_supports_enough_is_read_to_the_end() -> None:
    assert estimate(thin_from(own_log(), 2, kept=900)).depth == 4


def test_where_even_the_first_slot_lacks_overlap_the_depth_is_1_and_it_is_refused() -> None:
    estimates = estimate(thin_from(own_log(), 0, kept=50))
    assert estimates.depth == 1
    with pytest.raises(InsufficientOverlap):
        require_overlap(estimates.overlap)


def test_a_target_that_the_log_never_shows_has_no_weight_at_all() -> None:
    compared = own_log()
    estimates = estimate(replace(compared, target_prefix_MK=np.zeros_like(compared.target_prefix_MK)))
    assert estimates.depth == 1
    assert estimates.by_name["sips"].value == estimates.by_name["rips"].value == 0.0
    assert np.isnan(estimates.by_name["sn_sips"].value)
    with pytest.raises(InsufficientOverlap):
        require_overlap(estimates.overlap)


def test_what_lies_outside_the_logs_support_is_told() -> None:
    compared = replace(own_log(), inside_M=np.repeat([1.0, 0.5], 500))
    assert estimate(compared).overlap.outside_support == pytest.approx(0.25)


def test_a_good_model_narrows_the_interval_and_a_bad_one_does_not_move_the_middle() -> None:
    """Two items in one slot, logged evenly, wanted always: the target's value is the better item's mean reward."""
    rng = np.random.default_rng(3)
    count = 40_000
    taken_M = rng.integers(2, size=count)
    mean_2 = np.array([0.2, 0.8])
    reward_M = mean_2[taken_M] + 0.1 * rng.normal(size=count)

    def compared(predicted_2: NDArray[np.float64]) -> Counterfactual:
        return Counterfactual(
            request_ids=("r",) * count,
            reward_MK=reward_M[:, None],
            logged_prefix_MK=np.full((count, 1), 0.5),
            target_prefix_MK=np.where(taken_M == 1, 0.9, 0.1)[:, None],
            predicted_reward_MK=predicted_2[taken_M][:, None],
            target_predicted_MK=np.full((count, 1), 0.1 * predicted_2[0] + 0.9 * predicted_2[1]),
            inside_M=np.ones(count),
            target_item_ids=(("i",),) * count,
        )

    truth = 0.1 * 0.2 + 0.9 * 0.8
    good, bad = (estimate(compared(predicted)).by_name["cascade_dr"] for predicted in (mean_2, -mean_2))
    plain = estimate(compared(mean_2)).by_name["sips"]
    for each in (good, bad, plain):
        assert each.low < truth < each.high
    assert good.high - good.low < 0.5 * (plain.high - plain.low)


def events(*rows: tuple[str, str, str]) -> pl.DataFrame:
    """Outcomes of (request, item, action)."""
    return pl.DataFrame(
        [
            (f"e{n}", request, "u", item, action, 1.0, 10 + n, 10 + n, 0)
            for n, (request, item, action) in enumerate(rows)
        ],
        EVENT_SCHEMA,
        orient="row",
    )


def test_an_outcome_is_worth_the_weights_of_its_distinct_actions() -> None:
    frame = events(
        ("r1", "a", "click"),
        ("r1", "a", "click"),
        ("r1", "a", "like"),
        ("r1", "b", "hide"),
        ("r2", "a", "click"),
        ("r2", "b", "share"),
    )
    weights = {"click": 1.0, "like": 2.0, "hide": -2.0}
    assert outcome_rewards(frame, weights) == {("r1", "a"): 3.0, ("r1", "b"): -2.0, ("r2", "a"): 1.0}
    assert outcome_rewards(frame, weights, request_ids=["r2"]) == {("r2", "a"): 1.0}
    assert outcome_rewards(frame.clear(), weights) == {}
