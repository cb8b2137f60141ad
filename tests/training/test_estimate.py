"""What is estimated from a comparison: how deep, for whom, and what must come out where the answer is known."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from conftest import SLATE_SIZE, Loop
from numpy.typing import NDArray

from policy.ope import InsufficientOverlap, diagnose, faults, propensity_bins, require_overlap
from protos.impression_pb2 import Impression
from serving.again import Snapshots
from training import cli
from training.datasets.dataset import EVENT_SCHEMA
from training.off_policy.draws import Draws, SlotDraws, drawn_again
from training.off_policy.estimate import HEADLINE, estimate, outcome_rewards, slices_of
from training.off_policy.replay import Counterfactual, compared


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
    far = estimate(replace(compared, inside_M=np.full(1000, 0.5)))
    assert far.depth == 4, "it is the same at every depth"
    assert [each for each in faults(far.overlap) if "outside" in each] == list(faults(far.overlap)) != []


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


def test_the_uplift_is_the_headline_less_what_was_earned_and_what_both_share_does_not_widen_it() -> None:
    rng = np.random.default_rng(4)
    compared = own_log()
    same = estimate(compared).uplift
    assert (same.value, same.low, same.high) == pytest.approx((0, 0, 0), abs=1e-12)
    nearly_MK = compared.target_prefix_MK * rng.uniform(0.8, 1, (1000, 1))
    estimates = estimate(replace(compared, target_prefix_MK=nearly_MK))
    uplift, headline, logged = estimates.uplift, estimates.headline, estimates.logged
    assert uplift.value == pytest.approx(headline.value - logged.value, abs=1e-12)
    assert uplift.high - uplift.low < 0.2 * (logged.high - logged.low)
    assert uplift.effective_sample_size == pytest.approx(headline.effective_sample_size)


def test_intervals_are_made_as_they_are_asked_for() -> None:
    compared = own_log()
    delta, bootstrap, bernstein = (estimate(compared, interval=name) for name in ("delta", "bootstrap", "bernstein"))
    for name, each in delta.by_name.items():
        width = each.high - each.low
        assert bootstrap.by_name[name].value == bernstein.by_name[name].value == each.value
        assert bootstrap.by_name[name].high - bootstrap.by_name[name].low == pytest.approx(width, rel=0.1)
        assert bernstein.by_name[name].high - bernstein.by_name[name].low > 1.2 * width
        assert bootstrap.by_name[name] != each


def test_a_slice_is_estimated_as_if_there_were_nothing_else() -> None:
    rng = np.random.default_rng(5)
    compared = own_log()
    compared = replace(compared, target_prefix_MK=compared.target_prefix_MK * rng.uniform(0.85, 1, (1000, 1)))
    part_M = np.arange(1000) % 3 == 0
    slices = {
        ("surface", "home"): part_M,
        ("surface", "few"): np.arange(1000) < 50,
        ("surface", "none"): part_M & ~part_M,
    }
    home, few = estimate(compared, slices=slices).slices
    alone = estimate(
        Counterfactual(
            request_ids=compared.request_ids[::3],
            reward_MK=compared.reward_MK[part_M],
            logged_prefix_MK=compared.logged_prefix_MK[part_M],
            target_prefix_MK=compared.target_prefix_MK[part_M],
            predicted_reward_MK=compared.predicted_reward_MK[part_M],
            target_predicted_MK=compared.target_predicted_MK[part_M],
            inside_M=compared.inside_M[part_M],
            target_item_ids=compared.target_item_ids[::3],
        )
    )
    assert (home.column, home.value, home.faults) == ("surface", "home", ())
    assert (home.estimate, home.logged, home.uplift) == (alone.headline, alone.logged, alone.uplift)
    assert "effective sample size" in few.faults[0]


def test_propensities_that_are_not_the_policys_refuse_an_estimate_that_looks_fine() -> None:
    half_N = np.full(500, 0.5)
    distribution_NA = np.full((500, 2), 0.5)
    biased = propensity_bins(np.tile([0.3, 0.7], (500, 1)), np.arange(500) % 2)
    for bins, right in ((propensity_bins(distribution_NA, np.arange(500) % 2), True), (biased, False)):
        draws = Draws(diagnose(half_N, half_N, actions_N=2, bins=bins), bins, ())
        estimates = estimate(own_log(), draws=draws)
        assert (not faults(estimates.overlap)) is right
        assert estimates.depth == 4, "the weights are as good as they were"
        assert estimates.overlap.shown_actions == 1
        assert estimates.bins == bins


def of_first(loop: Loop, most: int = 60) -> list[Impression]:
    return [each for each in loop.everything.impressions if each.generation == loop.first.id][:most]


def drawn_from(*target_KA: list[float]) -> Draws:
    """Forty requests whose slots were drawn from 1 : 99 and would have been from what is given."""
    count = 40
    logged_IA = np.tile([0.01, 0.99], (count, 1))
    ids = tuple(f"r{m}" for m in range(count))
    slots = tuple(SlotDraws(ids, logged_IA, np.tile(target_A, (count, 1)), np.ones(count)) for target_A in target_KA)
    propensity_N = logged_IA[:, 1]
    return Draws(diagnose(propensity_N, propensity_N), (), slots)


def test_what_the_cut_leaves_out_is_allowed_for_on_both_sides() -> None:
    """1,000 requests: weights are cut to 31.6, so of a target that wants what 1% show in 40% of cases 8.4% is lost."""
    plain, allowing = (estimate(own_log(slots=1), draws=draws) for draws in (None, drawn_from([0.4, 0.6])))
    thin = 0.4 - 0.01 * np.sqrt(1000)
    assert allowing.overlap.thin_support == pytest.approx(thin)
    for name, wider, than in (
        ("headline", allowing.headline, plain.headline),
        ("uplift", allowing.uplift, plain.uplift),
    ):
        assert wider.value == than.value, name
        assert than.low - wider.low == pytest.approx(thin * plain.headline.value), name
        assert wider.high - than.high == pytest.approx(thin * plain.headline.value), name
    assert not faults(allowing.overlap)


def test_a_log_is_refused_where_too_much_lies_in_what_the_cut_leaves_out_however_even_its_weights_look() -> None:
    estimates = estimate(own_log(slots=1), draws=drawn_from([0.5, 0.5]))
    assert estimates.overlap.effective_sample_size == pytest.approx(1000)
    (fault,) = faults(estimates.overlap)
    assert fault.startswith("target where the log is thin 18.4%")


def test_a_slice_is_held_to_what_its_own_requests_were_drawn_from() -> None:
    draws = drawn_from([0.5, 0.5])
    (slot,) = draws.slots
    slot.target_IA[:30] = [0.01, 0.99]
    compared = own_log(slots=1)
    halves = {("half", name): np.arange(1000) // bound % 2 == 0 for name, bound in (("alike", 30), ("few", 10))}
    alike, few = estimate(compared, draws=draws, slices=halves).slices
    assert alike.faults == (), "of the forty asked, the thirty in it draw alike"
    assert draws.thin_support(10.0, among={f"r{m}" for m in range(30)}) == pytest.approx(0)
    assert np.isnan(draws.thin_support(10.0, among={f"r{m}" for m in range(20)})).all(), "too few to tell"
    assert few.uplift.low == pytest.approx(few.uplift.high - 2 * (few.uplift.high - few.uplift.value)), (
        "nothing allowed"
    )


def test_it_goes_only_as_deep_as_what_the_cut_leaves_out_allows() -> None:
    estimates = estimate(own_log(slots=3), draws=drawn_from([0.3, 0.7], [0.35, 0.65], [0.9, 0.1]))
    assert estimates.depth == 2
    assert estimates.by_depth[2].thin_support == pytest.approx(1 - (1 - 0.0338) * (1 - (0.9 - 0.3162)), abs=1e-3)


def test_a_served_log_was_drawn_as_it_says(loop: Loop) -> None:
    draws = drawn_again(of_first(loop), *loop.generations)
    assert draws is not None
    assert draws.overlap.n == 60 * SLATE_SIZE
    assert not any("E[1/p]" in each or "propensities" in each for each in faults(draws.overlap))
    assert sum(each.observed for each in draws.bins) == 60 * SLATE_SIZE
    assert drawn_again(of_first(loop), *reversed(loop.generations)) is None, "none of them is its own"


def test_what_both_would_have_drawn_from_is_what_the_weights_are_made_of(loop: Loop) -> None:
    """The weight of the slots before, times the ratio of the chances of what was drawn, is that of the slots after."""
    impressions = of_first(loop)
    draws = drawn_again(impressions, *loop.generations)
    assert draws is not None
    rows = compared(impressions, loop.generations[1], Snapshots({each.id: each for each in loop.generations}, None))
    weight_IK = np.cumprod(
        np.array(rows["target_propensity"].to_list()) / np.array(rows["propensity"].to_list()), axis=1
    )
    assert len(draws.slots) == SLATE_SIZE
    for k, slot in enumerate(draws.slots):
        before_I = weight_IK[:, k - 1] if k else np.ones(len(impressions))
        assert slot.before_I == pytest.approx(before_I)
        assert slot.logged_IA.sum(axis=1) == pytest.approx(1)
        assert slot.target_IA.sum(axis=1) == pytest.approx(1)
    assert draws.thin_support(1e12) == pytest.approx(0), "uncut weights leave nothing out"
    assert (np.diff(draws.thin_support(3.0)) >= 0).all()
    assert 0 <= draws.thin_support(3.0)[0] < draws.thin_support(1.2)[0] < 1


def test_a_log_with_other_propensities_than_its_policy_gives_is_not_believed(loop: Loop) -> None:
    logged = Impression.FromString(of_first(loop, 1)[0].SerializeToString())
    logged.propensity[1] *= 0.9
    with pytest.raises(ValueError, match=rf"request {logged.request_id}: slot 2 was logged with propensity"):
        drawn_again([logged], *loop.generations)


def test_requests_are_sliced_by_history_surface_user_columns_and_labels(loop: Loop) -> None:
    impressions = [Impression.FromString(each.SerializeToString()) for each in of_first(loop)]
    for number, each in enumerate(impressions):
        each.labels["side"] = "left" if number % 2 else "right"
        each.labels["request"] = str(number)
        each.labels["same"] = "always"
    generation = loop.generations[0]
    slices = slices_of(compared(impressions, generation, Snapshots({generation.id: generation}, None)))
    columns = {column for column, _ in slices}
    assert {"surface", "segment", "age_band", "side"} <= columns
    assert not columns & {"request", "same"}, "too many values, and only one"
    told = dict(loop.world.users.select("user_id", "segment").iter_rows())
    for (column, value), inside_M in slices.items():
        for each, inside in zip(impressions, inside_M, strict=True):
            match column:
                case "surface":
                    assert (each.surface == value) is bool(inside)
                case "segment":
                    assert (told[each.user_id] == value) is bool(inside)
                case "users":
                    assert (not each.history_item_key) is bool(inside == (value == "new"))
    per_column = {column: sum(slices[key] for key in slices if key[0] == column) for column in columns}
    assert all((np.asarray(count_M) == 1).all() for count_M in per_column.values()), "a request is in one slice of each"


def test_too_little_overlap_ends_with_code_3_and_leaves_a_page_that_says_why(
    loop: Loop, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["ope", f"log={loop.log}", f"generations={loop.store.root}", f"output={tmp_path}"]
    words += [f"replayed={tmp_path / 'replayed'}", "workers=1"]
    assert cli.main([*words, f"generation={loop.first.id}", f"logged={loop.second.id}"]) == 3
    err = capsys.readouterr().err
    assert err.startswith("cascade: error: too little overlap of the two policies: effective sample size")
    assert err.count("\n") == 1
    report = json.loads((tmp_path / "ope.json").read_text())
    assert report["requests"] == 80
    assert "No verdict" in (tmp_path / "ope.html").read_text()
    monkeypatch.setattr("training.jobs.require_overlap", lambda _: None)
    assert cli.main([*words, f"generation={loop.first.id}", "interval=bootstrap"]) == 0
    out = capsys.readouterr().out
    for part in (
        "SNIPS, whole slates",
        "effective sample size",
        "uplift",
        "No verdict",
        f"{tmp_path}/ope.html",
    ):
        assert part in " ".join(out.split()), part
    assert cli.main([*words, "interval=wald"]) == 2
    assert "interval is 'wald'; there are delta, bootstrap, bernstein" in capsys.readouterr().err
    assert cli.main([*words, f"generation={loop.first.id}", "logged=000009-abcdef01"]) == 2
    assert f"no request that 000009-abcdef01 answered; {loop.second.id} did" in capsys.readouterr().err
    assert cli.main([*words, f"generation={loop.first.id}", "surface=search"]) == 0
    assert 0 < json.loads((tmp_path / "ope.json").read_text())["requests"] < report["requests"]
    assert cli.main([*words, f"generation={loop.first.id}", "surface=cart"]) == 2
    assert "holds no request of the surface 'cart'; there are home, search" in capsys.readouterr().err


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
