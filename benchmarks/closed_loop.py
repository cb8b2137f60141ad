"""What a system earns that learns from its own slates: the loop closed, on a world whose truth is known.

Tastes drift and items arrive every day. A first generation learns from the log of a policy without a model. From then
on every generation learns from everything logged so far, its own slates among it: it is trained early in the window
of the one before, estimated on the log of the rest of it, which it has not seen, and launched at its end. Arms
differ in two settings: whether the policy explores, and whether the ranker weighs exposures by inverse propensity. All
arms of a seed live in one world and answer the same requests.

Everything but the socket is the product: training cycle, generations, services, catalogue changes, log, estimate.

Shape letters: I items, K slots, M impressions, W windows.
"""

import argparse
import json
import math
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, cast

import faiss
import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from benchmarks.__main__ import rewritten
from benchmarks.harness import finite
from benchmarks.in_process import InProcess, Shown
from index.generations import GenerationStore
from policy.metrics import (
    category_coverage,
    exposure_gini,
    fresh_share,
    novelty,
    time_to_impressions,
)
from policy.ope import faults
from policy.settings import PolicySettings
from serving.generation import Generation
from serving.retrieval import RetrievalSettings
from training import cycle
from training.cycle import CycleSettings
from training.datasets.dataset import EVENT_SCHEMA, Dataset
from training.durable import appearing
from training.gates import GateSettings
from training.learning.ranker import RankerSettings
from training.learning.tower import TowerSettings
from training.materialise import materialise
from training.off_policy.draws import drawn_again
from training.off_policy.estimate import estimate, examination, outcome_rewards
from training.off_policy.replay import counterfactual, unseen
from training.progress import progress
from training.publish import Published
from training.reports import drawing, plots
from training.simulation.world import DAY_MS, World, WorldRequest

FOLDER = Path("outputs/closed_loop")
PAGE = Path(__file__).parents[1] / "docs" / "closed_loop"
SLATE = 10
LEARNED = 0.25
"""Share of a window after which the next generation is trained; what is logged after it tells what that is worth."""
CHANCES = (1, 10)
"""Impressions of a new item that are waited for."""
FRESH_DAYS = 3.0
_IPS_CLIP = 10.0
_RETRIEVAL = RetrievalSettings(
    quotas={"ann": 60, "lexical": 40, "similar": 30, "covisitation": 20, "trending": 20, "fresh": 40, "popular": 20},
    fresh_explored=0.5,
)
_ANY_QUALITY = GateSettings(index_recall=0.0, ranker_auc=0.0, ranker_ece=1.0)
"""What each arm learns is what is measured; a gate would hide the worst of it."""
LABELS = {
    "explore+ips": "explores, exposures weighed",
    "explore": "explores",
    "greedy": "greedy: always the best",
}
REFERENCES = ("random", "popularity", "oracle")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How large the world is and how long it lasts."""

    users: int = 800
    items: int = 1200
    drift: float = 0.05
    arriving: float = 0.5
    first_days: int = 5
    first_requests: int = 3000
    windows: int = 5
    """A generation serves for each of them."""
    window_days: int = 2
    window_requests: int = 1400
    wait_days: float = 5.0
    """How long the chances of a new item are looked at; what is published later is left out."""

    @property
    def told(self) -> dict[str, float]:
        """As the files hold it."""
        return asdict(self)

    def world(self, seed: int) -> World:
        days = self.first_days + self.windows * self.window_days
        return World(seed, users=self.users, items=self.items, days=days, drift=self.drift, arriving=self.arriving)

    def first_log(self, seed: int) -> Dataset:
        """What the policy without a model left behind."""
        world = self.world(seed)
        requests = world.requests(world.start_ms, world.day_ms(self.first_days), self.first_requests)
        return world.dataset(*world.first_log(requests, slate_size=SLATE))

    def day(self, window: int) -> float:
        """When a window begins; the last one ends when one more would begin."""
        return self.first_days + window * self.window_days

    def requests(self, world: World, window: int) -> tuple[list[WorldRequest], list[WorldRequest]]:
        """Those of a window before and after the moment that the next generation learns up to."""
        times_ms = [world.day_ms(self.day(window) + part * self.window_days) for part in (0, LEARNED, 1)]
        early = round(LEARNED * self.window_requests)
        return (
            world.requests(times_ms[0], times_ms[1], early),
            world.requests(times_ms[1], times_ms[2], self.window_requests - early),
        )


QUICK = Scale(
    users=60, items=150, first_days=2, first_requests=300, windows=2, window_days=2, window_requests=120, wait_days=2.0
)


@dataclass(frozen=True, slots=True)
class Arm:
    """A way to run the loop."""

    explores: bool
    weighs: bool
    """Exposures by inverse propensity."""

    @property
    def name(self) -> str:
        return f"{'explore' if self.explores else 'greedy'}{'+ips' if self.weighs else ''}"

    def settings(self, weights: Mapping[str, float]) -> CycleSettings:
        """The product's defaults but for the two of the arm."""
        policy = PolicySettings(weights=weights)
        return CycleSettings(
            policy=policy if self.explores else replace(policy, temperature=0.0, epsilon=0.0),
            towers=TowerSettings(epochs=2),
            ranker=RankerSettings(ips_clip=_IPS_CLIP if self.weighs else 1.0),
            retrieval=_RETRIEVAL,
            gates=_ANY_QUALITY,
        )


ARMS = (Arm(True, True), Arm(True, False), Arm(False, False))
"""Whoever shows the best with certainty has nothing to weigh by: every propensity is 1."""


def run_arm(scale: Scale, seed: int, arm: Arm, folder: Path, step: Callable[[], None]) -> dict[str, Any]:
    """Run the loop in a folder of its own; returns what came of it."""
    world, dataset = scale.world(seed), scale.first_log(seed)
    first_ms = world.day_ms(scale.first_days)
    store = GenerationStore(folder / "generations")
    windows: list[Shown] = []
    launches: list[dict[str, Any]] = []
    shop = InProcess(store, world, folder, from_ms=first_ms)

    def trained(as_of_ms: int) -> Published:
        step()
        return cycle.run(
            dataset,
            settings=arm.settings(world.weights),
            store=store,
            folder=folder / f"training-{as_of_ms}",
            as_of_ms=as_of_ms,
            seed=seed,
            now_ms=as_of_ms,
            served=shop.log(as_of_ms) if as_of_ms > first_ms else None,
            changes=shop.generations.catalog.since(0),
        )

    try:
        materialise(dataset.events, cast(Any, shop.histories))
        following = trained(first_ms)
        for window in range(scale.windows):
            serving = following
            shop.launch(serving.id)
            before, after = scale.requests(world, window)
            early = shop.serve(before, size=SLATE)
            if window + 1 < scale.windows:
                following = trained(world.day_ms(scale.day(window) + LEARNED * scale.window_days))
            late = shop.serve(after, size=SLATE)
            windows.append(early + late)
            if launches:
                launches[-1]["truth"] = earned(world, windows[-1], launches[-1]["slots"])
            if following is not serving:
                launches.append(estimated(shop, serving, following, late, now_ms=world.day_ms(scale.day(window + 1))))
    finally:
        shop.close()
    return told(scale, world, dataset, windows) | {"launches": launches}


def estimated(shop: InProcess, serving: Published, following: Published, late: Shown, *, now_ms: int) -> dict[str, Any]:
    """What the log of one generation says of the next before it is launched."""
    log, world, catalog = shop.log(now_ms), shop.world, shop.generations.catalog
    logging, target = (Generation.load(shop.generations.store, each.id) for each in (serving, following))
    own = unseen([each for each in log.impressions if each.generation == logging.id], target.manifest)
    compared = counterfactual(
        own,
        target,
        rewards=outcome_rewards(log.events, world.weights),
        examination_K=examination(serving.metrics),
        catalog=catalog,
    )
    found = estimate(compared, draws=drawn_again(own, logging, target, catalog=catalog))
    asked = {request.request_id: request for request, _ in late}
    would = [
        (asked[each], list(slate)) for each, slate in zip(compared.request_ids, compared.target_item_ids, strict=True)
    ]
    return {
        "slots": found.depth,
        "estimate": found.headline.value,
        "low": found.headline.low,
        "high": found.headline.high,
        "faults": list(faults(found.overlap)),
        "same_requests": earned(world, would, found.depth),
        "incumbent": earned(world, late, found.depth),
        "uplift": [found.uplift.value, found.uplift.low, found.uplift.high],
        "effective_sample_size": found.headline.effective_sample_size,
    }


def run_references(scale: Scale, seed: int, step: Callable[[], None]) -> dict[str, Any]:
    """The same requests answered at random, by popularity and by who knows the truth.

    Popularity too lives on its own log: the most clicked so far, counted anew for every window.
    """
    world, dataset = scale.world(seed), scale.first_log(seed)
    click_I = world.click_counts(dataset.events)
    windows_of: dict[str, list[Shown]] = {name: [] for name in REFERENCES}
    for window in range(scale.windows):
        step()
        requests = [each for part in scale.requests(world, window) for each in part]
        popular = [(each, world.popular_slate(each, SLATE, click_I)) for each in requests]
        windows_of["random"].append([(each, world.random_slate(each, SLATE)) for each in requests])
        windows_of["popularity"].append(popular)
        windows_of["oracle"].append([(each, world.oracle_slate(each, SLATE)) for each in requests])
        done = [row for each, slate in popular for row in world.respond(each, slate)]
        click_I = click_I + world.click_counts(pl.DataFrame(done, EVENT_SCHEMA))
    return {name: told(scale, world, dataset, windows) for name, windows in windows_of.items()}


def told(scale: Scale, world: World, dataset: Dataset, windows: Sequence[Shown]) -> dict[str, Any]:
    """What slates earned, what they were like, and how long new items waited for their chances."""
    row_of = {item_id: row for row, item_id in enumerate(world.items["item_id"])}
    slates = [
        (request.time_ms, np.array([row_of[item_id] for item_id in slate]))
        for shown in windows
        for request, slate in shown
    ]
    published_ms_I = world.items["published_ms"].to_numpy()
    category_I = world.items["category"].rank("dense").to_numpy()
    click_I = world.click_counts(dataset.events)
    row_M = np.concatenate([row_K for _, row_K in slates])
    time_ms_M = np.concatenate([np.full(len(row_K), time_ms) for time_ms, row_K in slates])
    new_I = (published_ms_I > world.day_ms(scale.day(0))) & (
        published_ms_I <= world.day_ms(scale.day(scale.windows) - scale.wait_days)
    )
    waited = {
        str(count): (time_to_impressions(row_M, time_ms_M, published_ms_I=published_ms_I, count=count) / DAY_MS)[new_I]
        for count in CHANCES
    }
    return {
        "reward": [earned(world, shown, SLATE) for shown in windows],
        "waited_days": finite({count: np.round(days, 2).tolist() for count, days in waited.items()}),
        "slates": {
            "categories in a slate": mean(
                category_coverage(category_I[row_K], category_I.max()) for _, row_K in slates
            ),
            "novelty, bits": mean(novelty(row_K, click_I) for _, row_K in slates),
            "fresh share": mean(fresh_share(time_ms - published_ms_I[row_K], FRESH_DAYS) for time_ms, row_K in slates),
            "exposure Gini": exposure_gini(np.bincount(row_M, minlength=len(published_ms_I))),
        },
    }


def earned(world: World, shown: Shown, slots: int) -> float:
    """Mean expected reward of the first slots."""
    return mean(world.expected_reward(request, slate[:slots]) for request, slate in shown)


def mean(values: Iterable[float]) -> float:
    return float(np.mean(list(values)))


def results(scale: Scale, seeds: int, folder: Path) -> dict[str, Any]:
    """Of every seed and policy; what the folder already holds is taken from there."""
    runs = [(seed, arm) for seed in range(seeds) for arm in (None, *ARMS)]
    found: dict[str, Any] = {}
    with progress() as bar:
        task = bar.add_task("", total=len(runs) * scale.windows)
        for done, (seed, arm) in enumerate(runs, start=1):
            name = "references" if arm is None else arm.name
            bar.update(task, description=f"seed {seed}, {name}")
            path = folder / f"seed{seed}-{name}.json"
            held = json.loads(path.read_text()) if path.exists() else {}
            if held.get("scale") != scale.told:
                held = {"scale": scale.told} | one(scale, seed, arm, lambda: bar.advance(task))
                with appearing(path) as draft:
                    draft.write_text(json.dumps(held, indent=1))
            bar.update(task, completed=done * scale.windows)
            found[str(seed)] = found.get(str(seed), {}) | held["policies"]
    return {"scale": scale.told, "seeds": found}


def one(scale: Scale, seed: int, arm: Arm | None, step: Callable[[], None]) -> dict[str, Any]:
    """One run and the CPU seconds that it took; without an arm that of the references."""
    started_s = time.process_time()
    if arm is None:
        policies = run_references(scale, seed, step)
    else:
        with TemporaryDirectory(prefix="cascade-closed-loop-") as folder:
            policies = {arm.name: run_arm(scale, seed, arm, Path(folder), step)}
    return {"cpu_s": round(time.process_time() - started_s), "policies": policies}


def tables(found: Mapping[str, Any]) -> str:
    """What came of it in Markdown: means over the worlds, in brackets their lowest and highest."""
    seeds = list(found["seeds"].values())
    names = [name for name in (*LABELS, *REFERENCES) if name in seeds[0]]

    def over(values: Iterable[float], form: str = ".1f") -> str:
        each = np.array(list(values))
        return f"{each.mean():{form}} ({each.min():{form}} to {each.max():{form}})" if np.isfinite(each).all() else "-"

    lines = [
        "| | first window, % of the oracle | last window | all after the first | "
        f"new items shown {CHANCES[-1]} times, % | days until half of them were |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for name in names:
        share_SW = [share_of_oracle(seed, name) for seed in seeds]
        waited = [
            [math.inf if each is None else each for each in seed[name]["waited_days"][str(CHANCES[-1])]]
            for seed in seeds
        ]
        seen = [100 * mean(each <= found["scale"]["wait_days"] for each in days) for days in waited]
        cells = (
            LABELS.get(name, name),
            over(share_W[0] for share_W in share_SW),
            over(share_W[-1] for share_W in share_SW),
            over(share_W[1:].mean() for share_W in share_SW),
            over(seen, ".0f"),
            over(float(np.median(days)) for days in waited),
        )
        lines.append(f"| {' | '.join(cells)} |")
    looks = list(seeds[0][names[0]]["slates"])
    lines += ["", f"| of the slates | {' | '.join(looks)} |", f"|---|{'--:|' * len(looks)}"]
    for name in names:
        looked = tuple(over((seed[name]["slates"][look] for seed in seeds), ".2f") for look in looks)
        lines.append(f"| {' | '.join((LABELS.get(name, name), *looked))} |")
    heads = (
        "launches",
        "refused",
        "interval holds the truth on the log's own requests",
        "after the launch",
        "mean error",
    )
    lines += ["", f"| estimates before a launch | {' | '.join(heads)} |", f"|---|{'--:|' * len(heads)}"]
    for name in names:
        launches = [launch for seed in seeds for launch in seed[name].get("launches", ())]
        if launches:
            lines.append(f"| {' | '.join((LABELS[name], *told_before(launches)))} |")
    return "\n".join(lines)


def told_before(launches: Sequence[Mapping[str, Any]]) -> tuple[str, ...]:
    """How many launches, how many whose estimate is refused, and how the others fared."""
    said = [each for each in launches if not each["faults"]]

    def holds(truth: str) -> str:
        return f"{sum(each['low'] <= each[truth] <= each['high'] for each in said)} of {len(said)}"

    error = f"{mean(each['estimate'] - each['truth'] for each in said):+.2f}" if said else "-"
    return str(len(launches)), str(len(launches) - len(said)), holds("same_requests"), holds("truth"), error


def share_of_oracle(seed: Mapping[str, Any], name: str) -> NDArray[np.float64]:
    """% of what the oracle earns, by window."""
    share_W: NDArray[np.float64] = 100 * np.divide(seed[name]["reward"], seed["oracle"]["reward"])
    return share_W


def write(found: Mapping[str, Any]) -> None:
    """The picture, the figures and the tables of the documentation."""
    drawn = plots.closed_loop(found, LABELS, count=CHANCES[-1])
    Path(f"{PAGE}.svg").write_text(
        drawing.standing_alone(drawn, title="What a system earns that learns from its own slates")
    )
    Path(f"{PAGE}.json").write_text(json.dumps(found) + "\n")
    page = Path(f"{PAGE}.md")
    page.write_text(rewritten(page.read_text(), tables(found)))


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.closed_loop", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("--quick", action="store_true", help="a tiny world: does it run, not what comes of it")
    parser.add_argument("--seeds", type=int, default=3, help="worlds, from seed 0 on")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="of what is done; a run that was cut off goes on")
    parser.add_argument("--write", action="store_true", help="rewrite the picture and the tables of docs/closed_loop")
    parser.add_argument("--draw", action="store_true", help="do that from docs/closed_loop.json, and run nothing")
    given = parser.parse_args(arguments)
    if given.draw:
        write(json.loads(Path(f"{PAGE}.json").read_text()))
        return 0
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    found = results(QUICK if given.quick else Scale(), given.seeds, given.folder)
    print(tables(found))
    if given.write:
        write(found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
