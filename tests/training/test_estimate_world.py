"""Intervals hold the truth: logs of the simulated world's own click model, whose value of any policy is known exactly.

Shape letters: P contexts, M requests of a log, N candidates, K = 2 slots.
"""

from dataclasses import dataclass

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import binom

from training.estimate import Estimates, estimate
from training.replay import Counterfactual
from training.world import DAY_MS, World

Floats = NDArray[np.float64]
CONTEXTS, CANDIDATES, SLOTS = 300, 6, 2


@dataclass(frozen=True)
class Sampler:
    """Draws two candidates one after the other, with what each draw goes by."""

    first_PN: Floats
    second_PNN: Floats
    """Given the first one (second axis)."""

    @classmethod
    def of(cls, worth_PN: Floats, *, temperature: float, epsilon: float) -> "Sampler":
        mass_PN = np.exp(worth_PN / temperature)
        left_NN = 1 - np.eye(CANDIDATES)
        mass_PNN = mass_PN[:, None] * left_NN
        return cls(
            (1 - epsilon) * mass_PN / mass_PN.sum(1, keepdims=True) + epsilon / CANDIDATES,
            (1 - epsilon) * mass_PNN / mass_PNN.sum(2, keepdims=True) + epsilon * left_NN / (CANDIDATES - 1),
        )

    def value(self, value_PN: Floats, seen_K: Floats) -> float:
        """Of a request, by all slates there are."""
        joint_PNN = self.first_PN[:, :, None] * self.second_PNN
        each_PNN = seen_K[0] * value_PN[:, :, None] + seen_K[1] * value_PN[:, None]
        return float((joint_PNN * each_PNN).sum(axis=(1, 2)).mean())


@dataclass(frozen=True)
class Scene:
    """Contexts of the world, each with a few items; a policy that logs, and one that is asked about."""

    probability_PNA: Floats
    value_PN: Floats
    weight_A: Floats
    model_PN: Floats
    """What a ranker would say of the values: in the right order, for the most part, and too low."""
    seen_K: Floats
    logging: Sampler
    target: Sampler

    @classmethod
    def of_world(cls, seed: int) -> "Scene":
        world = World(seed, users=80, items=120, days=10)
        rng = np.random.default_rng(seed)
        user_P1 = rng.integers(world.users.height, size=(CONTEXTS, 1))
        time_ms_P1 = world.start_ms + rng.integers(10 * DAY_MS, size=(CONTEXTS, 1))
        item_PN = np.array([rng.choice(world.items.height, CANDIDATES, replace=False) for _ in range(CONTEXTS)])
        probability_PNA = world.probability(user_P1, item_PN, time_ms_P1)
        weight_A = np.array([world.weights[action] for action in world.actions])
        value_PN = probability_PNA @ weight_A
        model_PN = 0.7 * value_PN + 0.1 * rng.normal(size=value_PN.shape)
        before_PN = model_PN + 0.1 * rng.normal(size=value_PN.shape)
        return cls(
            probability_PNA,
            value_PN,
            weight_A,
            model_PN,
            world.examination(SLOTS),
            Sampler.of(before_PN, temperature=0.4, epsilon=0.2),
            Sampler.of(model_PN, temperature=0.3, epsilon=0.1),
        )

    def log(self, requests: int, rng: np.random.Generator) -> Counterfactual:
        """Requests as they come, slates as they are drawn, clicks as the world has them: see `World.respond`."""
        p_M = rng.integers(CONTEXTS, size=requests)
        first_M = drawn(self.logging.first_PN[p_M], rng)
        second_M = drawn(self.logging.second_PNN[p_M, first_M], rng)
        shown_MK = np.stack([first_M, second_M], 1)
        chance_MKA = self.probability_PNA[p_M[:, None], shown_MK]
        draw_MK3 = rng.random((requests, SLOTS, 3))
        looked_MK = draw_MK3[..., 0] < self.seen_K
        clicked_MK = looked_MK & (draw_MK3[..., 1] < chance_MKA[..., 0])
        liked_MK = clicked_MK & (draw_MK3[..., 2] * chance_MKA[..., 0] < chance_MKA[..., 1])
        hidden_MK = looked_MK & ~clicked_MK & (draw_MK3[..., 2] * (1 - chance_MKA[..., 0]) < chance_MKA[..., 2])

        def prefix(policy: Sampler) -> Floats:
            first = policy.first_PN[p_M, first_M]
            return np.stack([first, first * policy.second_PNN[p_M, first_M, second_M]], 1)

        model_MN = self.model_PN[p_M]
        expected_MK = [
            (self.target.first_PN[p_M] * model_MN).sum(1),
            (self.target.second_PNN[p_M, first_M] * model_MN).sum(1),
        ]
        return Counterfactual(
            request_ids=("r",) * requests,
            reward_MK=np.stack([clicked_MK, liked_MK, hidden_MK], -1) @ self.weight_A,
            logged_prefix_MK=prefix(self.logging),
            target_prefix_MK=prefix(self.target),
            predicted_reward_MK=self.seen_K * np.take_along_axis(model_MN, shown_MK, 1),
            target_predicted_MK=self.seen_K * np.stack(expected_MK, 1),
            inside_M=np.ones(requests),
            target_item_ids=((),) * requests,
        )


def drawn(chance_MN: Floats, rng: np.random.Generator) -> NDArray[np.int64]:
    total_MN = np.cumsum(chance_MN, axis=1, dtype=np.float64)
    return np.asarray((rng.random((len(chance_MN), 1)) * total_MN[:, -1:] > total_MN).sum(1), np.int64)


def covered(scene: Scene, logs: int, requests: int) -> dict[str, int]:
    """How many of the logs' intervals hold the truth, by estimator, and that of the uplift."""
    truth = scene.target.value(scene.value_PN, scene.seen_K)
    earned = scene.logging.value(scene.value_PN, scene.seen_K)
    counts: dict[str, int] = {}
    for run in range(logs):
        made: Estimates = estimate(scene.log(requests, np.random.default_rng([7, run])))
        assert made.depth == SLOTS, "the log supports the target"
        asked = {name: (each, truth) for name, each in made.by_name.items()}
        asked |= {"as logged": (made.logged, earned), "uplift": (made.uplift, truth - earned)}
        for name, (each, value) in asked.items():
            counts[name] = counts.get(name, 0) + (each.low <= value <= each.high)
    return counts


def test_the_scene_is_what_the_world_says() -> None:
    """The exact value is the mean of what simulated logs earn, and the target would earn something else."""
    scene = Scene.of_world(0)
    log = scene.log(100_000, np.random.default_rng(0))
    reward_M = log.reward_MK.sum(1)
    truth = scene.logging.value(scene.value_PN, scene.seen_K)
    assert abs(reward_M.mean() - truth) < 4 * reward_M.std() / np.sqrt(len(reward_M))
    assert scene.target.value(scene.value_PN, scene.seen_K) > 1.05 * truth
    weight_M = log.target_prefix_MK[:, -1] / log.logged_prefix_MK[:, -1]
    assert abs(weight_M.mean() - 1) < 4 * weight_M.std() / np.sqrt(len(weight_M))


def test_intervals_hold_the_truth_as_often_as_chance_lets_95_percent_look_in_few_logs() -> None:
    logs = 100
    low, _ = binom.interval(0.9999, logs, 0.95)
    for name, count in covered(Scene.of_world(0), logs, 1_000).items():
        assert count >= low, name


@pytest.mark.slow
def test_95_percent_intervals_hold_the_truth_in_93_to_97_percent_of_1200_logs_of_the_world() -> None:
    logs = 1_200
    shares = {name: count / logs for name, count in covered(Scene.of_world(0), logs, 1_500).items()}
    assert all(0.93 <= share <= 0.97 for share in shares.values()), shares
