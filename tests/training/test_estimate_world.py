"""Intervals hold the truth: logs of the simulated world's click model, whose value of any policy is known exactly."""

import numpy as np
import pytest
from scipy.stats import binom

from benchmarks.estimates import SLOTS, Scene, coverage, row, table
from training.off_policy.estimate import Estimates, estimate


def covered(scene: Scene, logs: int, requests: int) -> dict[str, int]:
    """How many of the logs' intervals hold the truth, by estimator, and that of the uplift."""
    truth = scene.target.value(scene.value_PN, scene.seen_K)
    earned = scene.logging.value(scene.value_PN, scene.seen_K)
    counts: dict[str, int] = {}
    for run in range(logs):
        log, _ = scene.log(requests, np.random.default_rng([7, run]))
        made: Estimates = estimate(log)
        assert made.depth == SLOTS, "the log supports the target"
        asked = {name: (each, truth) for name, each in made.by_name.items()}
        asked |= {"as logged": (made.logged, earned), "uplift": (made.uplift, truth - earned)}
        for name, (each, value) in asked.items():
            counts[name] = counts.get(name, 0) + (each.low <= value <= each.high)
    return counts


def test_the_scene_is_what_the_world_says() -> None:
    """The exact value is the mean of what simulated logs earn, and the target would earn something else."""
    scene = Scene.of_world(0, step=0.5)
    log, _ = scene.log(100_000, np.random.default_rng(0))
    reward_M = log.reward_MK.sum(1)
    truth = scene.logging.value(scene.value_PN, scene.seen_K)
    assert abs(reward_M.mean() - truth) < 4 * reward_M.std() / np.sqrt(len(reward_M))
    assert scene.target.value(scene.value_PN, scene.seen_K) > 1.05 * truth
    weight_M = log.target_prefix_MK[:, -1] / log.logged_prefix_MK[:, -1]
    assert abs(weight_M.mean() - 1) < 4 * weight_M.std() / np.sqrt(len(weight_M))


def test_intervals_hold_the_truth_as_often_as_chance_lets_95_percent_look_in_few_logs() -> None:
    """Nothing is allowed for here: what the cut leaves out of so near a target is next to nothing."""
    logs = 100
    low, _ = binom.interval(0.9999, logs, 0.95)
    for name, count in covered(Scene.of_world(0, step=0.15), logs, 1_000).items():
        assert count >= low, name


def test_a_far_target_is_refused_from_every_log_and_a_nearer_one_is_held_with_what_is_allowed_for() -> None:
    logs = 60
    far = row(1.0, 1_000, logs=logs, worlds=2)
    assert (far["taken"], far["held"]) == (0, 0)
    assert far["thin"] > 0.1
    near = row(0.5, 1_000, logs=logs, worlds=2)
    low, _ = binom.interval(0.9999, near["taken"], 0.95)
    assert near["taken"] > 0.8 * logs
    assert min(near["held"], near["uplift_held"]) >= low
    assert coverage([far, near], "held") == near["held"] / near["taken"]
    assert table([far, near]).count("\n") == 5


@pytest.mark.slow
def test_95_percent_intervals_hold_the_truth_in_93_to_97_percent_of_1200_logs_of_the_world() -> None:
    logs = 1_200
    shares = {name: count / logs for name, count in covered(Scene.of_world(0, step=0.15), logs, 1_500).items()}
    assert all(0.93 <= share <= 0.97 for share in shares.values()), shares
