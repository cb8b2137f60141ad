"""What search earns that learns from its own slates, beside BM25's order, on a world whose truth is known.

People type what they mean, other words for it, or misspell it. A first generation learns from the log of a policy
without a model, answers a window of searches and recommendations, and a second learns from that. Before the second is
launched, the first answers another window, from which the second's reward is estimated, searches and recommendations
apart; then the second answers a third, and every search of it is also answered by BM25 alone.

Everything but the socket is the product; the ranker is of trees, as is advised for a log this young. The policy
explores as it does by default, BM25 does not: what the same slates would earn without chance is told too. It ends with
code 1 where the gain over BM25 of a seed is not above zero with its whole interval. Shape letters: K slots, M requests.
"""

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import faiss
import numpy as np
import torch

from benchmarks.closed_loop import SLATE, Arm, Scale, earned
from benchmarks.in_process import InProcess, Shown
from index.generations import GenerationStore
from policy.ope import faults
from protos.impression_pb2 import Impression
from serving.generation import Generation
from training import cycle
from training.demo import bm25_slate
from training.learning.trees import TreesSettings
from training.materialise import materialise
from training.off_policy.draws import drawn_again
from training.off_policy.estimate import estimate, examination, outcome_rewards
from training.off_policy.replay import counterfactual, unseen
from training.publish import Published

SCALE = Scale(users=400, items=800, first_requests=3000, windows=3, window_requests=1200)
QUICK = Scale(users=60, items=150, first_days=2, first_requests=300, windows=3, window_requests=90)
SEARCHES = 0.5
"""Share of the requests of each window."""
_ARM = Arm(explores=True, weighs=False)
_KINDS: Mapping[str, Callable[[str], bool]] = {"search": bool, "recommendation": lambda text: not text}


def run(scale: Scale, seed: int, folder: Path) -> dict[str, Any]:
    """Two cycles in a folder of their own; returns what came of them."""
    world = scale.world(seed)
    first_ms = world.day_ms(scale.first_days)
    asked = world.requests(world.start_ms, first_ms, scale.first_requests, search_share=SEARCHES)
    dataset = world.dataset(*world.first_log(asked, slate_size=SLATE))
    store = GenerationStore(folder / "generations")
    shop = InProcess(store, world, folder, from_ms=first_ms)

    def trained(as_of_ms: int) -> Published:
        return cycle.run(
            dataset,
            settings=replace(_ARM.settings(world.weights), ranker=TreesSettings()),
            store=store,
            folder=folder / f"training-{as_of_ms}",
            as_of_ms=as_of_ms,
            seed=seed,
            now_ms=as_of_ms,
            served=shop.log(as_of_ms) if as_of_ms > first_ms else None,
            changes=shop.generations.catalog.since(0),
        )

    def served(window: int) -> Shown:
        start_ms, end_ms = (world.day_ms(scale.day(window + each)) for each in (0, 1))
        return shop.serve(world.requests(start_ms, end_ms, scale.window_requests, search_share=SEARCHES), size=SLATE)

    try:
        materialise(dataset.events, cast(Any, shop.histories))
        first = trained(first_ms)
        shop.launch(first.id)
        served(0)
        second = trained(world.day_ms(scale.day(1)))
        before = served(1)
        launched = {kind: estimated(shop, second, before, scale, of) for kind, of in _KINDS.items()}
        shop.launch(second.id)
        shown = [(request, slate) for request, slate in served(2) if request.text]
        by_bm25 = [(request, bm25_slate(shop.active, request, SLATE)) for request, _ in shown]
        best = without_chance(shop, shown, until_ms=world.day_ms(scale.day(3)))
    finally:
        shop.close()
    gain_M = np.array(
        [world.expected_reward(*one) - world.expected_reward(*other) for one, other in zip(shown, by_bm25, strict=True)]
    )
    oracle = [(request, world.oracle_slate(request, SLATE)) for request, _ in shown]
    rewards = {"cycle2": shown, "without chance": best, "bm25": by_bm25, "oracle": oracle}
    return {
        "searches": len(shown),
        "reward": {name: earned(world, slates, SLATE) for name, slates in rewards.items()},
        "gain": interval(gain_M),
        "launched": launched,
    }


def without_chance(shop: InProcess, shown: Shown, *, until_ms: int) -> Shown:
    """The same requests with the candidates of highest utility, as it was logged."""
    logged_of = {each.request_id: each for each in shop.log(until_ms).impressions}
    ids, slates = shop.active.items.ids, []
    for request, _ in shown:
        logged = logged_of[request.request_id]
        best_K = np.argsort(-np.array(logged.eligible_utility), kind="stable")[:SLATE]
        row_K = ids.rows(np.array(logged.eligible_item_key, np.uint64)[best_K])
        slates.append((request, ids.ids.take(row_K)))
    return slates


def estimated(
    shop: InProcess, second: Published, before: Shown, scale: Scale, of: Callable[[str], bool]
) -> dict[str, Any]:
    """What the log of the generation in force says of the second, of requests of one kind, beside the truth."""
    first, target = (Generation.load(shop.generations.store, each) for each in (shop.active.id, second.id))
    world, log, catalog = shop.world, shop.log(shop.world.day_ms(scale.day(2))), shop.generations.catalog
    own: list[Impression] = [each for each in log.impressions if each.generation == first.id and of(each.text)]
    later = unseen(own, target.manifest)
    compared = counterfactual(
        later,
        target,
        rewards=outcome_rewards(log.events, world.weights),
        examination_K=examination(first.manifest.metrics),
        catalog=catalog,
    )
    found = estimate(compared, draws=drawn_again(later, first, target, catalog=catalog))
    by_id = {request.request_id: request for request, _ in before}
    would = [
        (by_id[each], list(slate)) for each, slate in zip(compared.request_ids, compared.target_item_ids, strict=True)
    ]
    return {
        "requests": len(would),
        "slots": found.depth,
        "estimate": [found.headline.value, found.headline.low, found.headline.high],
        "truth": earned(world, would, found.depth),
        "refused": faults(found.overlap),
    }


def interval(value_M: np.ndarray) -> list[float]:
    """Mean and the ends of its 95% interval."""
    mean, half = float(value_M.mean()), 1.96 * float(value_M.std(ddof=1)) / np.sqrt(len(value_M))
    return [mean, mean - half, mean + half]


def table(found: Sequence[Mapping[str, Any]]) -> str:
    """A line for each seed, in Markdown."""
    lines = [
        "| seed | searches | BM25 order | after two cycles | without chance | oracle | gain over BM25, % (95%) | "
        "estimate of search before the launch (truth) | of recommendations (truth) |",
        "|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for seed, each in enumerate(found):
        reward, gain = each["reward"], [100 * part / each["reward"]["bm25"] for part in each["gain"]]
        said = [
            f"{'refused: ' if kind['refused'] else ''}{value:.2f} ({low:.2f} to {high:.2f}; {kind['truth']:.2f})"
            for kind in each["launched"].values()
            for value, low, high in (kind["estimate"],)
        ]
        lines.append(
            f"| {seed} | {each['searches']} | {reward['bm25']:.2f} | {reward['cycle2']:.2f} | "
            f"{reward['without chance']:.2f} | {reward['oracle']:.2f} | "
            f"{gain[0]:+.0f} ({gain[1]:+.0f} to {gain[2]:+.0f}) | {' | '.join(said)} |"
        )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.search_world", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--quick", action="store_true", help="a tiny world: does it run, not what comes of it")
    parser.add_argument("--seeds", type=int, default=3, help="worlds, from seed 0 on")
    parser.add_argument("--json", type=Path, help="where to leave the figures")
    given = parser.parse_args(arguments)
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    found = []
    for seed in range(given.seeds):
        with TemporaryDirectory(prefix="cascade-search-world-") as folder:
            found.append(run(QUICK if given.quick else SCALE, seed, Path(folder)))
        print(table(found), flush=True)
    if given.json:
        given.json.write_text(json.dumps(found, indent=1) + "\n")
    beaten = all(each["gain"][1] > 0 for each in found)
    return 0 if given.quick or beaten else 1


if __name__ == "__main__":
    sys.exit(main())
