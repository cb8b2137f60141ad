"""Training the ranker on a world whose truth is known."""

import csv
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from example_cases import SimulatedLog, simulated_log

from ranking.calibration import Calibration
from ranking.metrics import auc, ece
from ranking.model import Ranker, RankerShape
from training.examples.exposures import Examples
from training.learning.ranker import Batches, Earlier, RankerSettings, _batch, split_by_time, train_ranker

SMALL = RankerSettings(shape=RankerShape(dim=8, query_width=16, rank=8, hidden=(16,)), epochs=3, batch=256)
Trained = tuple[Ranker, Calibration, dict[str, float]]


@pytest.fixture(scope="module")
def log() -> SimulatedLog:
    return simulated_log(seed=2, users=40, requests=2400)


@pytest.fixture(scope="module")
def examples(log: SimulatedLog) -> Examples:
    return log.examples()


@pytest.fixture(scope="module")
def trained(log: SimulatedLog, examples: Examples, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train_ranker(log.table, examples, settings=SMALL, seed=0, folder=tmp_path_factory.mktemp("ranker"))


def test_it_learns_tastes_and_says_probabilities_that_hold(
    log: SimulatedLog, examples: Examples, trained: Trained
) -> None:
    _, _, metrics = trained
    _, held_out = split_by_time(examples, SMALL.validation)
    truth_N = log.click_NK[-len(held_out.time_ms_R) :].reshape(-1)
    oracle = auc(held_out.label_NA[:, 0], truth_N)
    assert metrics["click.auc"] > 0.5 + 0.5 * (oracle - 0.5), "half of what there is to know"
    # Of 360 * 8 rows in 15 bins the sampling noise alone is about 0.02.
    assert metrics["click.ece"] < 0.04
    assert metrics["like.ece"] < 0.04
    rate = held_out.label_NA[:, 0].mean()
    assert metrics["click.logloss"] < -(rate * np.log(rate) + (1 - rate) * np.log(1 - rate))
    assert metrics["ndcg@10"] > 0.5
    assert metrics["examples"] + metrics["held_out"] == len(examples)


def test_the_examination_curve_of_the_world_is_recovered(log: SimulatedLog, trained: Trained) -> None:
    learned_P = [trained[2][f"examination.{position}"] for position in range(8)]
    assert learned_P[0] == pytest.approx(1)
    np.testing.assert_allclose(learned_P, log.examination_P, atol=0.1)


def test_the_calibrated_relevance_is_that_of_the_world_and_not_dimmed_by_position(
    log: SimulatedLog, examples: Examples, trained: Trained
) -> None:
    ranker, calibration, _ = trained
    _, held_out = split_by_time(examples, SMALL.validation)
    batch = _batch(log.table, held_out, clip=1.0)
    with torch.inference_mode():
        logit_NA = ranker(ranker.query_half(batch.query), batch.item, batch.pair, batch.request_B).numpy()
    said_N = calibration.apply(logit_NA)[:, 0]
    truth_N = log.click_NK[-len(held_out.time_ms_R) :].reshape(-1)
    assert abs(said_N.mean() - truth_N.mean()) < 0.05
    assert abs(held_out.label_NA[:, 0].mean() - truth_N.mean()) > 0.15, "what was observed is much less"
    drawn_N = np.random.default_rng(0).random(len(truth_N)) < truth_N
    assert ece(drawn_N, said_N) < 0.08


def test_the_same_seed_gives_the_same_weights_and_another_gives_others(log: SimulatedLog, tmp_path: Path) -> None:
    few = simulated_log(seed=2, users=40, requests=200).examples()
    settings = replace(SMALL, epochs=1)
    runs = [
        train_ranker(log.table, few, settings=settings, seed=seed, folder=tmp_path / str(n))
        for n, seed in enumerate((0, 0, 1))
    ]
    weights = [run[0].state_dict() for run in runs]
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])
    assert any(not torch.equal(weights[0][name], weights[2][name]) for name in weights[0])
    timeless = [{k: v for k, v in run[2].items() if k != "examples_per_s"} for run in runs]
    assert timeless[0] == timeless[1]
    assert runs[0][1] == runs[1][1]


def _earlier(trained: Trained) -> Earlier:
    ranker, _, metrics = trained
    curve = [metrics[f"examination.{position}"] for position in range(8)]
    return Earlier(ranker, np.array(curve), int(metrics["learned_until_ms"]))


def test_a_warm_start_goes_on_from_where_the_last_one_stood(
    log: SimulatedLog, examples: Examples, trained: Trained, tmp_path: Path
) -> None:
    few, _ = split_by_time(examples, 0.9)
    settings = replace(SMALL, epochs=1, learning_rate=1e-4, warm_learning_rate=1e-4)
    cold = train_ranker(log.table, few, settings=settings, seed=0, folder=tmp_path / "cold")
    earlier = _earlier(trained)
    warm = train_ranker(log.table, few, settings=settings, seed=0, folder=tmp_path / "warm", earlier=earlier)
    assert warm[2]["click.auc"] > cold[2]["click.auc"]
    assert (warm[2]["warm_start"], cold[2]["warm_start"]) == (1, 0)
    for position in range(8):
        name = f"examination.{position}"
        assert warm[2][name] == pytest.approx(trained[2][name], abs=0.02), "one day does not throw the curve over"
    for name in trained[0].embed.tables:
        before, now = (getattr(ranker.embed, f"known_{name}") for ranker in (trained[0], warm[0]))
        assert np.isin(before.numpy(), now.numpy()).all()
    other = replace(settings, shape=RankerShape(dim=4))
    with pytest.raises(ValueError, match="the ranker to start from has RankerShape"):
        train_ranker(log.table, few, settings=other, seed=0, folder=tmp_path / "no", earlier=earlier)
    assert not (tmp_path / "no" / "csv").exists()


def test_a_warm_start_reads_numbers_as_they_were_read_and_takes_in_those_that_begin_to_vary(
    log: SimulatedLog, examples: Examples, trained: Trained, tmp_path: Path
) -> None:
    few, _ = split_by_time(examples, 0.9)
    few.pair_row_N["log_age_days"] += 100
    few.pair_row_N["bm25"] = np.random.default_rng(0).random(len(few))
    warm, _, _ = train_ranker(
        log.table, few, settings=replace(SMALL, epochs=1), seed=0, folder=tmp_path, earlier=_earlier(trained)
    )
    before, now = trained[0].embed, warm.embed
    for name, changes in (("log_age_days", False), ("bm25", True)):
        same = torch.equal(before.standardise(name, torch.arange(3.0)), now.standardise(name, torch.arange(3.0)))
        assert same is not changes
    assert not before.standardise("bm25", torch.arange(3.0)).any(), "what never varied is switched off"


def test_the_time_until_which_it_learned_parts_what_it_saw_from_what_it_did_not(
    examples: Examples, trained: Trained
) -> None:
    train, held_out = split_by_time(examples, SMALL.validation)
    assert train.time_ms_R.max() == trained[2]["learned_until_ms"] < held_out.time_ms_R.min()


def test_the_curve_that_serves_is_named_for_each_action(trained: Trained) -> None:
    _, calibration, metrics = trained
    for action, kind in zip(calibration.actions, calibration.kinds, strict=True):
        assert [name for name in metrics if name.startswith(f"{action}.calibration")] == [
            f"{action}.calibration.{kind}"
        ]


def test_logs_of_the_run_are_left_in_the_folder(log: SimulatedLog, examples: Examples, tmp_path: Path) -> None:
    few, _ = split_by_time(examples, 0.95)
    train_ranker(log.table, few, settings=replace(SMALL, epochs=1), seed=0, folder=tmp_path)
    with (tmp_path / "csv" / "metrics.csv").open() as file:
        columns = set(next(csv.reader(file)))
    assert {"epoch", "loss_epoch", "held_out_loss"} <= columns
    assert list((tmp_path / "board").glob("events*"))


def test_batches_hold_every_row_once_with_its_own_query(log: SimulatedLog, examples: Examples) -> None:
    ragged = examples.take(np.random.default_rng(0).random(len(examples)) < 0.6)
    data = _batch(log.table, ragged, clip=1.0)
    for seed in (None, (3, 0), (3, 1)):
        batches = Batches(data, size=100, seed=seed)
        parts = list(batches)
        assert len(parts) == len(batches)
        sizes = [len(part.position_B) for part in parts]
        assert sum(sizes) == len(ragged)
        assert max(sizes) < 100 + 8
        hours = torch.cat([part.query["history_log_length"][part.request_B] for part in parts])
        ages = torch.cat([part.pair["log_age_days"] for part in parts])
        found = np.sort(np.stack([hours.numpy(), ages.numpy()], 1).view("f4,f4").ravel())
        expected = np.stack([ragged.query_row_N["history_log_length"], ragged.pair_row_N["log_age_days"]], 1)
        np.testing.assert_array_equal(found, np.sort(expected.view("f4,f4").ravel()))
    first, second = (next(iter(Batches(data, size=100, seed=(3, epoch)))) for epoch in (0, 1))
    assert not torch.equal(first.pair["log_age_days"], second.pair["log_age_days"])


def test_validation_is_the_last_requests_whole(examples: Examples) -> None:
    train, held_out = split_by_time(examples.take(np.arange(len(examples))[::-1]), 0.15)
    assert train.time_ms_R.max() <= held_out.time_ms_R.min()
    assert len(held_out.time_ms_R) == round(0.15 * len(examples.time_ms_R))
    assert len(held_out) == 8 * len(held_out.time_ms_R)
    assert (np.diff(train.request_N) >= 0).all()


def test_too_few_requests_and_features_that_are_not_finite_are_refused(
    log: SimulatedLog, examples: Examples, tmp_path: Path
) -> None:
    one = examples.take(examples.request_N == 0)
    with pytest.raises(ValueError, match="1 requests with mature outcomes; the ranker needs at least 2"):
        train_ranker(log.table, one, settings=SMALL, seed=0, folder=tmp_path)
    broken = examples.take(examples.request_N < 5)
    broken.pair_row_N["log_age_days"][3] = np.nan
    with pytest.raises(ValueError, match="'log_age_days' is not finite in 1 of 40 pair rows"):
        train_ranker(log.table, broken, settings=SMALL, seed=0, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"epochs": 0}, "epochs is 0; it must be at least 1"),
        ({"listwise": -1.0}, "listwise is -1.0; it must not be negative"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; it must be above 0"),
        ({"warm_learning_rate": 0.0}, "warm_learning_rate is 0.0; it must be above 0"),
        ({"validation": 1.0}, "validation is 1.0; it must be above 0 and below 1"),
        ({"calibration": "beta"}, "calibration is 'beta'; it must be auto, identity, temperature, platt, isotonic"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RankerSettings(**change)  # type: ignore[arg-type]
