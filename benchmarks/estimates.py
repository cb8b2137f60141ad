"""Whether estimates can be trusted: hundreds of logs of policies whose truth is known, from near a target to far.

Contexts are of the simulated world: its users, some of its items, its clicks, likes and hides. Two rankers, each with
errors of its own, make two policies with the product's default temperature and exploration; the target is the second
one, or somewhere on the way to it. Its true value is a sum over all slates there are. Every log goes through
`training.off_policy.estimate`, which takes what it can and refuses the rest.

It ends with code 1 where less than 93% of the intervals of those that are not refused hold the truth.
Shape letters: P contexts, M requests of a log, N candidates, K = 2 slots, A actions.
"""

import argparse
import json
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.__main__ import rewritten
from policy.ope import diagnose, faults
from training.off_policy.draws import Draws, SlotDraws
from training.off_policy.estimate import Estimates, estimate
from training.off_policy.replay import Counterfactual
from training.simulation.world import DAY_MS, World

Floats = NDArray[np.float64]
PAGE = Path(__file__).parents[1] / "docs" / "off_policy.md"
CONTEXTS, SLOTS = 300, 2
STEPS = (0.25, 0.5, 0.75, 1.0)
"""How far from the logging policy the target lies, on the way to the second ranker."""
REQUESTS = (500, 2000, 8000)
LOGS = 200
_LEAST = 0.93
_ASKED_AGAIN = 300


@dataclass(frozen=True)
class Sampler:
    """Draws two candidates one after the other, with what each draw goes by."""

    first_PN: Floats
    second_PNN: Floats
    """Given the first one (second axis)."""

    @classmethod
    def of(cls, worth_PN: Floats, *, temperature: float, epsilon: float) -> "Sampler":
        candidates = worth_PN.shape[1]
        mass_PN = np.exp((worth_PN - worth_PN.max(axis=1, keepdims=True)) / temperature)
        left_NN = 1 - np.eye(candidates)
        mass_PNN = np.maximum(mass_PN[:, None] * left_NN, 1e-300 * left_NN)
        return cls(
            (1 - epsilon) * mass_PN / mass_PN.sum(1, keepdims=True) + epsilon / candidates,
            (1 - epsilon) * mass_PNN / mass_PNN.sum(2, keepdims=True) + epsilon * left_NN / (candidates - 1),
        )

    def value(self, value_PN: Floats, seen_K: Floats) -> float:
        """Of a request, by all slates there are; of as many slots as are seen."""
        value = seen_K[0] * (self.first_PN * value_PN).sum(axis=1)
        if len(seen_K) > 1:
            value = value + seen_K[1] * np.einsum("pn,pnm,pm->p", self.first_PN, self.second_PNN, value_PN)
        return float(value.mean())


@dataclass(frozen=True)
class Scene:
    """Contexts of the world, each with some items; a policy that logs, and one that is asked about."""

    probability_PNA: Floats
    value_PN: Floats
    weight_A: Floats
    model_PN: Floats
    """What the logging policy's ranker says of the values."""
    seen_K: Floats
    logging: Sampler
    target: Sampler

    @classmethod
    def of_world(cls, seed: int, *, step: float, candidates: int = 40) -> "Scene":
        """
        Args:
            step: 0 for a target that is the logging policy, 1 for the second ranker's.
        """
        world = World(seed, users=80, items=120, days=10)
        rng = np.random.default_rng(seed)
        user_P1 = rng.integers(world.users.height, size=(CONTEXTS, 1))
        time_ms_P1 = world.start_ms + rng.integers(10 * DAY_MS, size=(CONTEXTS, 1))
        item_PN = np.array([rng.choice(world.items.height, candidates, replace=False) for _ in range(CONTEXTS)])
        probability_PNA = world.probability(user_P1, item_PN, time_ms_P1)
        weight_A = np.array([world.weights[action] for action in world.actions])
        value_PN = probability_PNA @ weight_A
        of_world = value_PN.mean() + 0.7 * (value_PN - value_PN.mean())
        first_PN, second_PN = (of_world + noise * rng.normal(size=value_PN.shape) for noise in (0.45, 0.2))
        return cls(
            probability_PNA,
            value_PN,
            weight_A,
            first_PN,
            world.examination(SLOTS),
            Sampler.of(first_PN, temperature=0.1, epsilon=0.05),
            Sampler.of((1 - step) * first_PN + step * second_PN, temperature=0.1, epsilon=0.05),
        )

    def log(self, requests: int, rng: np.random.Generator) -> tuple[Counterfactual, Draws]:
        """Requests as they come, slates as they are drawn, clicks as the world has them: see `World.respond`; and what
        the first requests were drawn from."""
        p_M = rng.integers(len(self.value_PN), size=requests)
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

        logged_MK, target_MK = prefix(self.logging), prefix(self.target)
        model_MN = self.model_PN[p_M]
        expected_MK = [
            (self.target.first_PN[p_M] * model_MN).sum(1),
            (self.target.second_PNN[p_M, first_M] * model_MN).sum(1),
        ]
        some, first_I = p_M[:_ASKED_AGAIN], first_M[:_ASKED_AGAIN]
        asked = ("r",) * len(some)
        slots = (
            SlotDraws(asked, self.logging.first_PN[some], self.target.first_PN[some], np.ones(len(some))),
            SlotDraws(
                asked,
                self.logging.second_PNN[some, first_I],
                self.target.second_PNN[some, first_I],
                (target_MK / logged_MK)[:_ASKED_AGAIN, 0],
            ),
        )
        own = diagnose(logged_MK[:, 0], logged_MK[:, 0])
        log = Counterfactual(
            request_ids=("r",) * requests,
            reward_MK=np.stack([clicked_MK, liked_MK, hidden_MK], -1) @ self.weight_A,
            logged_prefix_MK=logged_MK,
            target_prefix_MK=target_MK,
            predicted_reward_MK=self.seen_K * np.take_along_axis(model_MN, shown_MK, 1),
            target_predicted_MK=self.seen_K * np.stack(expected_MK, 1),
            inside_M=np.ones(requests),
            target_item_ids=((),) * requests,
        )
        return log, Draws(own, (), slots)


def drawn(chance_MN: Floats, rng: np.random.Generator) -> NDArray[np.int64]:
    total_MN = np.cumsum(chance_MN, axis=1, dtype=np.float64)
    return np.asarray((rng.random((len(chance_MN), 1)) * total_MN[:, -1:] > total_MN).sum(1), np.int64)


@dataclass(frozen=True)
class Judged:
    """One log's estimate beside the truth."""

    refused: bool
    slots: int
    thin: float
    error: float
    """Of the estimate, as a share of the truth."""
    half: float
    """Half its interval, likewise."""
    held: bool
    uplift_held: bool


def judged(scene: Scene, found: Estimates) -> Judged:
    seen_K = scene.seen_K[: found.depth]
    truth, earned = (policy.value(scene.value_PN, seen_K) for policy in (scene.target, scene.logging))
    headline, uplift = found.headline, found.uplift
    return Judged(
        refused=bool(faults(found.overlap)),
        slots=found.depth,
        thin=found.overlap.thin_support,
        error=(headline.value - truth) / truth,
        half=(headline.high - headline.low) / 2 / truth,
        held=headline.low <= truth <= headline.high,
        uplift_held=uplift.low <= truth - earned <= uplift.high,
    )


def row(step: float, requests: int, *, logs: int, worlds: int) -> dict[str, Any]:
    """How the estimates of as many logs fare, as evenly as can be of every world."""
    each: list[Judged] = []
    for seed in range(worlds):
        scene = Scene.of_world(seed, step=step)
        for run in range(seed, logs, worlds):
            log, draws = scene.log(requests, np.random.default_rng([7, seed, run]))
            each.append(judged(scene, estimate(log, draws=draws)))
    taken, refused = [one for one in each if not one.refused], [one for one in each if one.refused]
    return {
        "step": step,
        "requests": requests,
        "logs": len(each),
        "taken": len(taken),
        "thin": float(np.mean([one.thin for one in each])),
        "slots": share(one.slots for one in taken),
        "half": share(one.half for one in taken),
        "error": share(one.error for one in taken),
        "held": sum(one.held for one in taken),
        "uplift_held": sum(one.uplift_held for one in taken),
        "refused_error": share(abs(one.error) for one in refused),
    }


def share(values: Iterable[float]) -> float | None:
    """Their mean; None of none."""
    held = list(values)
    return float(np.mean(held)) if held else None


def coverage(rows: Sequence[Mapping[str, Any]], of: str) -> float:
    """Of all logs that are not refused."""
    held, taken = (sum(int(each[name]) for each in rows) for name in (of, "taken"))
    return held / max(1, taken)


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """A line for each distance and size, in Markdown."""
    heads = (
        "step to the target",
        "requests",
        "thin, %",
        "refused, %",
        "slots",
        "error, %",
        "half an interval, %",
        "holds the truth, %",
        "of the uplift, %",
        "of those refused off by, %",
    )

    def percent(value: float | None, form: str = ".1f") -> str:
        return "-" if value is None else f"{100 * value:{form}}"

    lines = [f"| {' | '.join(heads)} |", f"|{'--:|' * len(heads)}"]
    for each in rows:
        taken = each["taken"]
        cells = (
            f"{each['step']:g}",
            f"{each['requests']:,}",
            percent(each["thin"]),
            percent(1 - taken / each["logs"], ".0f"),
            "-" if each["slots"] is None else f"{each['slots']:.1f}",
            percent(each["error"], "+.1f"),
            percent(each["half"], ".0f"),
            percent(each["held"] / taken if taken else None),
            percent(each["uplift_held"] / taken if taken else None),
            percent(each["refused_error"], ".0f"),
        )
        lines.append(f"| {' | '.join(cells)} |")
    taken, logs = (sum(each[name] for each in rows) for name in ("taken", "logs"))
    lines += [
        "",
        f"Of {logs:,} logs {logs - taken:,} are refused; of the other {taken:,} intervals "
        f"{100 * coverage(rows, 'held'):.1f}% hold the truth, of those of the uplift "
        f"{100 * coverage(rows, 'uplift_held'):.1f}%.",
    ]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.estimates", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="few logs of one world: does it run, not what comes of it")
    parser.add_argument("--write", action="store_true", help=f"rewrite the table of docs/{PAGE.name}")
    given = parser.parse_args(arguments)
    logs, worlds, sizes = (10, 1, REQUESTS[:1]) if given.quick else (LOGS, 2, REQUESTS)
    rows = [row(step, requests, logs=logs, worlds=worlds) for step in STEPS for requests in sizes]
    print(table(rows))
    if given.write:
        PAGE.write_text(rewritten(PAGE.read_text(), table(rows)))
    held = {of: coverage(rows, of) for of in ("held", "uplift_held")}
    print(json.dumps({"name": "estimates", "rows": rows} | held))
    return 0 if given.quick or min(held.values()) >= _LEAST else 1


if __name__ == "__main__":
    sys.exit(main())
