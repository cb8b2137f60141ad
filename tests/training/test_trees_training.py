"""Growing trees on a world whose truth is known, and the loop with them in place of the deep ranker."""

import csv
import math
from dataclasses import MISSING, fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import SMALL, Loop
from example_cases import SimulatedLog, simulated_log
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf

from candidate_gen.features import FeatureTable
from index.generations import GenerationStore
from protos.impression_pb2 import Degraded, Impression
from ranking.calibration import Calibration
from ranking.metrics import auc, ece
from ranking.trees import Trees, TreesScorer
from serving.answers import record
from serving.codec import query_of
from serving.generation import Generation
from training import configuration, cycle
from training.configuration import settings
from training.examples.exposures import Examples
from training.learning.judged import JudgedSettings
from training.learning.ranker import split_by_time
from training.learning.trees import TreesSettings, train_trees
from training.off_policy.replay import verify

FEW = TreesSettings(trees=120, leaf_rows=20)
Grown = tuple[Trees, Calibration, dict[str, float]]


@pytest.fixture(scope="module")
def log() -> SimulatedLog:
    return simulated_log(seed=2, users=40, requests=2400)


@pytest.fixture(scope="module")
def examples(log: SimulatedLog) -> Examples:
    return log.examples()


@pytest.fixture(scope="module")
def grown(log: SimulatedLog, examples: Examples, tmp_path_factory: pytest.TempPathFactory) -> Grown:
    return train_trees(log.table, examples, settings=FEW, seed=0, folder=tmp_path_factory.mktemp("trees"))


def _said(grown: Grown, examples: Examples) -> np.ndarray:
    trees, calibration, _ = grown
    rows = (examples.query_row_R, examples.request_N, examples.item_row_N, examples.pair_row_N)
    return calibration.apply(trees.logits(trees.columns.matrix(*rows)))


def test_they_learn_tastes_and_say_probabilities_that_hold(log: SimulatedLog, examples: Examples, grown: Grown) -> None:
    metrics = grown[2]
    _, held_out = split_by_time(examples, FEW.validation)
    truth_N = log.click_NK[-len(held_out.time_ms_R) :].reshape(-1)
    oracle = auc(held_out.label_NA[:, 0], truth_N)
    assert metrics["click.auc"] > 0.5 + 0.5 * (oracle - 0.5), "half of what there is to know"
    assert metrics["click.ece"] < 0.04
    assert metrics["like.ece"] < 0.04
    assert metrics["ndcg@10"] > 0.5
    assert metrics["examples"] + metrics["held_out"] == len(examples)
    said_N = _said(grown, held_out)[:, 0]
    assert abs(said_N.mean() - truth_N.mean()) < 0.05, "relevance is not dimmed by position"
    assert abs(held_out.label_NA[:, 0].mean() - truth_N.mean()) > 0.15, "what was observed is much less"
    drawn_N = np.random.default_rng(0).random(len(truth_N)) < truth_N
    assert ece(drawn_N, said_N) < 0.08


def _confounded(table: FeatureTable, curve_P: np.ndarray, *, requests: int, seed: int) -> Examples:
    """Better items were shown further up, so that rates by position say less than half of the truth."""
    random = np.random.default_rng(seed)
    slots = len(curve_P)
    count = requests * slots
    position_N = np.tile(np.arange(slots), requests)
    quality_N = random.normal(-0.35 * position_N, 1.0)
    click_N = random.random(count) < curve_P[position_N] / (1 + np.exp(-quality_N))
    item_row_N, pair_row_N = table.empty("item", count), table.empty("pair", count)
    item_row_N["log_shown"] = quality_N
    label_NA = np.zeros((count, len(table.actions)), np.float32)
    label_NA[:, 0] = click_N
    return Examples(
        table.empty("query", requests),
        np.arange(requests),
        np.arange(count) // slots,
        item_row_N,
        pair_row_N,
        position_N.astype(np.int32),
        np.ones(count),
        label_NA,
    )


def test_the_examination_curve_is_told_from_what_was_shown_where(log: SimulatedLog, tmp_path: Path) -> None:
    curve_P = 1 / (1 + 0.3 * np.arange(6))
    shown = _confounded(log.table, curve_P, requests=3000, seed=3)
    rate_P = np.bincount(shown.position_N, shown.label_NA[:, 0]) / np.bincount(shown.position_N)
    assert np.abs(rate_P / rate_P[0] - curve_P).max() > 0.15, "otherwise there is nothing to tell apart"
    metrics = train_trees(log.table, shown, settings=FEW, seed=0, folder=tmp_path)[2]
    np.testing.assert_allclose([metrics[f"examination.{p}"] for p in range(6)], curve_P, atol=0.06)


def test_lambdarank_orders_the_main_action_and_is_calibrated_all_the_same(
    log: SimulatedLog, examples: Examples, grown: Grown, tmp_path: Path
) -> None:
    told = replace(FEW, objective="lambdarank")
    ordered = train_trees(log.table, examples, settings=told, seed=0, folder=tmp_path)
    assert ordered[0].text_A[0] != grown[0].text_A[0]
    assert ordered[0].text_A[1] == grown[0].text_A[1]
    assert ordered[2]["ndcg@10"] > 0.95 * grown[2]["ndcg@10"]
    assert ordered[2]["click.ece"] < 0.04
    _, held_out = split_by_time(examples, FEW.validation)
    truth_N = log.click_NK[-len(held_out.time_ms_R) :].reshape(-1)
    assert abs(_said(ordered, held_out)[:, 0].mean() - truth_N.mean()) < 0.05


def test_the_same_seed_gives_the_same_trees_and_another_gives_others(log: SimulatedLog, tmp_path: Path) -> None:
    few = simulated_log(seed=2, users=40, requests=300).examples()
    for objective in ("binary", "lambdarank"):
        told = replace(FEW, objective=objective, trees=20)
        runs = [train_trees(log.table, few, settings=told, seed=seed, folder=tmp_path) for seed in (0, 0, 1)]
        assert runs[0][0].text_A == runs[1][0].text_A
        assert runs[0][0].text_A != runs[2][0].text_A
        timeless = [{k: v for k, v in run[2].items() if k != "examples_per_s"} for run in runs]
        assert timeless[0] == timeless[1]


def test_losses_by_tree_are_left_in_the_folder(log: SimulatedLog, examples: Examples, tmp_path: Path) -> None:
    few, _ = split_by_time(examples, 0.9)
    metrics = train_trees(log.table, few, settings=replace(FEW, trees=25), seed=0, folder=tmp_path)[2]
    with (tmp_path / "csv" / "metrics.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) >= max(metrics["click.trees"], metrics["like.trees"])
    assert float(rows[-1]["loss_epoch"]) < float(rows[0]["loss_epoch"])
    assert min(float(row["held_out_loss"]) for row in rows) < float(rows[0]["held_out_loss"])


def test_an_action_that_never_happened_is_possible_and_unlikely(
    log: SimulatedLog, examples: Examples, tmp_path: Path
) -> None:
    few, _ = split_by_time(examples, 0.9)
    few.label_NA[:, 1] = 0
    grown = train_trees(log.table, few, settings=replace(FEW, trees=10), seed=0, folder=tmp_path)
    said_N = _said(grown, few)[:, 1]
    assert said_N.min() > 0
    assert said_N.max() < 0.02
    assert math.isnan(grown[2]["like.auc"])


def test_too_few_requests_are_refused(log: SimulatedLog, examples: Examples, tmp_path: Path) -> None:
    one = examples.take(examples.request_N == 0)
    with pytest.raises(ValueError, match="1 requests with mature outcomes; the ranker needs at least 2"):
        train_trees(log.table, one, settings=FEW, seed=0, folder=tmp_path)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trees": 0}, "trees is 0; it must be at least 1"),
        ({"leaves": 1}, "leaves is 1; it must be at least 2"),
        ({"l2": -1.0}, "l2 is -1.0; it must be at least 0"),
        ({"learning_rate": 0.0}, "learning_rate is 0.0; it must be above 0"),
        ({"column_share": 1.5}, "column_share is 1.5; it must be above 0 and at most 1"),
        ({"validation": 1.0}, "validation is 1.0; it must be above 0 and below 1"),
        ({"objective": "mse"}, "objective is 'mse'; it must be one of binary, lambdarank"),
        ({"calibration": "beta"}, "calibration is 'beta'; it must be one of auto, identity"),
    ],
)
def test_impossible_settings_are_refused(change: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TreesSettings(**change)  # type: ignore[arg-type]


def test_the_configuration_holds_every_setting_with_the_same_value() -> None:
    written = OmegaConf.to_container(OmegaConf.load(configuration.FOLDER / "ranker" / "trees.yaml"))
    assert isinstance(written, dict)
    assert get_object(written.pop("_target_")) is TreesSettings
    assert instantiate(written.pop("judged")) == JudgedSettings()
    assert written == {each.name: each.default for each in fields(TreesSettings) if each.default is not MISSING}


@pytest.mark.parametrize("root", ["demo", "train", "export", "nightly"])
def test_every_entry_point_that_trains_takes_trees_for_the_ranker(root: str) -> None:
    made = settings(root, ["ranker=trees", "ranker.leaves=7"])
    assert made.cycle.ranker == TreesSettings(leaves=7)


def _asked_again(logged: Impression, generation: Generation) -> Impression:
    """A logged question, answered and recorded by another generation."""
    question = Impression.FromString(logged.SerializeToString())
    keep = {"request_id", "time_ms", "kind", "surface", "user_id", "text", "size"}
    for field, _ in logged.ListFields():
        if field.name not in keep and not field.name.startswith("history_"):
            question.ClearField(field.name)
    query = query_of(question, generation)
    return record(question, query=query, answer=generation.pipeline.run(query), generation=generation, eligible=True)


def test_a_generation_ranked_by_trees_is_published_loads_serves_and_is_replayed_bit_by_bit(
    loop: Loop, tmp_path: Path
) -> None:
    torch.set_num_threads(1)
    store = GenerationStore(tmp_path / "generations")
    told = replace(SMALL, ranker=TreesSettings(trees=30, leaf_rows=20))
    published = cycle.run(
        loop.dataset,
        settings=told,
        store=store,
        folder=tmp_path / "work",
        as_of_ms=loop.served_end_ms,
        seed=0,
        now_ms=loop.served_end_ms,
        served=loop.served,
    )
    assert published.metrics["ranker.click.trees"] > 0
    generation = Generation.load(store, published.id)
    assert isinstance(generation.scorer, TreesScorer)
    assert generation.manifest.fingerprints["ranker"] == generation.scorer.fingerprint
    questions = [each for each in loop.everything.impressions if each.generation == loop.second.id][:40]
    logged = [_asked_again(each, generation) for each in questions]
    assert all(each.item_id and not each.degraded & ~Degraded.DEGRADED_NO_MATCH for each in logged)
    assert len({round(p, 9) for each in logged for p in each.probability}) > 100, "it tells items apart"

    verified = verify(logged, {published.id: Generation.load(store, published.id)})

    assert (verified.requests, verified.divergences) == (len(logged), ())
    logged[0].eligible_utility[0] += 1e-6
    assert len(verify(logged, {published.id: generation}).divergences) == 1
