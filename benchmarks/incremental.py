"""The ranker's nightly training: a warm start on what is new, beside a full retrain, and what each is worth.

A simulated world is logged by the policy that was there before any model. Both sides start from one ranker of the
first days. Then, night after night, ours goes on from its own last ranker with the requests that it has not learned
from, and the peer begins anew with all that there is. The note gives the mean difference of the next day's quality,
ours less the peer's, with its standard error over days and seeds.

Shape letters: B nights, N exposures, A actions.
"""

from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from time import process_time

import numpy as np
import torch
from numpy.typing import NDArray

from benchmarks.harness import Bench, main
from candidate_gen.embedding import tensors
from candidate_gen.features import FeatureTable
from ranking.calibration import Calibration
from ranking.metrics import auc, logloss, ndcg_at
from ranking.model import Ranker
from training import cycle
from training.examples.exposures import ATTRIBUTION_MS, Examples, from_impressions
from training.learning.ranker import Earlier, RankerSettings, train_ranker
from training.off_policy.estimate import examination
from training.simulation.world import DAY_MS, World

_MEASURES = ("click AUC", "NDCG@10", "click log-loss")


def measure(bench: Bench) -> None:
    torch.set_num_threads(1)
    seeds, first, nights, daily = (1, 4, 2, 100) if bench.quick else (3, 10, 5, 800)
    settings = RankerSettings(epochs=1) if bench.quick else RankerSettings()
    ours, peer, differences = [], [], []
    with TemporaryDirectory(prefix="cascade-incremental-") as folder:
        for seed in range(seeds):
            world = World(seed, users=200, items=300) if bench.quick else World(seed)
            table, examples = logged(world, days=first + nights + 1, daily=daily)
            training = partial(train_ranker, table, settings=settings, seed=seed, folder=Path(folder))
            last = training(up_to(world, examples, first))
            for day in range(first + 1, first + nights + 1):
                known = up_to(world, examples, day)
                earlier = left_by(last)
                new = known.take(known.time_ms_N > earlier.learned_until_ms)
                started_s = process_time()
                last = training(new, earlier=earlier)
                between_s = process_time()
                whole = training(known)
                ours.append(between_s - started_s)
                peer.append(process_time() - between_s)
                start_ms = world.day_ms(day)
                after = examples.take((examples.time_ms_N >= start_ms) & (examples.time_ms_N < start_ms + DAY_MS))
                differences.append(worth(table, after, last) - worth(table, after, whole))
    mean, error = np.mean(differences, 0), np.std(differences, 0) / np.sqrt(len(differences))
    told = (f"{name} {m:+.4f} (se {e:.4f})" for name, m, e in zip(_MEASURES, mean, error, strict=True))
    bench.pair(
        f"{daily} requests a day, after {first} days: CPU time of a night",
        np.array(ours),
        np.array(peer),
        peer_name="full retrain",
        unit="s",
        note=", ".join(told),
    )


Trained = tuple[Ranker, Calibration, dict[str, float]]


def logged(world: World, *, days: int, daily: int) -> tuple[FeatureTable, Examples]:
    """Point-in-time examples of a log; those of a moment do not depend on what came after."""
    end_ms = world.day_ms(days) + ATTRIBUTION_MS
    impressions, events = world.first_log(world.requests(world.start_ms, world.day_ms(days), days * daily))
    dataset = world.dataset(impressions, events)
    table = cycle.declare(dataset)
    return table, from_impressions(
        table,
        users=dataset.users,
        items=dataset.items,
        impressions=impressions,
        events=events,
        watermark_ms=end_ms,
    )


def up_to(world: World, examples: Examples, day: int) -> Examples:
    """What is mature at the end of so many days."""
    return examples.take(examples.time_ms_N <= world.day_ms(day) - ATTRIBUTION_MS)


def left_by(last: Trained) -> Earlier:
    ranker, _, metrics = last
    return Earlier(ranker, _curve(metrics), int(metrics["learned_until_ms"]))


def worth(table: FeatureTable, after: Examples, judged: Trained) -> NDArray[np.float64]:
    """`_MEASURES` on exposures that came later."""
    ranker, calibration, metrics = judged
    with torch.inference_mode():
        logit_NA = ranker(
            ranker.query_half(tensors(after.query_row_R, table.of("query"))),
            tensors(after.item_row_N, table.of("item")),
            tensors(after.pair_row_N, table.of("pair")),
            torch.from_numpy(after.request_N),
        ).numpy()
    click_N, said_N = after.label_NA[:, 0], calibration.apply(logit_NA)[:, 0]
    curve_P = _curve(metrics)
    seen_N = curve_P[np.minimum(after.position_N, len(curve_P) - 1)]
    ndcg = ndcg_at(10, click_N, said_N, after.request_N).mean
    return np.array([auc(click_N, said_N), ndcg, logloss(click_N, seen_N * said_N)])


def _curve(metrics: dict[str, float]) -> NDArray[np.float64]:
    return examination({f"ranker.{name}": value for name, value in metrics.items()})


if __name__ == "__main__":
    main("incremental", measure, "the ranker's nightly training: a warm start on what is new, beside a full retrain")
