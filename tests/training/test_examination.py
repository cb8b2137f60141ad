"""Position bias in the simulated world, whose examination curve is known and which no training is told."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
import torch

from training import cycle
from training.examples.exposures import from_impressions
from training.learning.ranker import RankerSettings, _batch, split_by_time, train_ranker
from training.simulation.world import World

SLOTS = 10


def _trained(seed: int, folder: Path, *, positions: int) -> tuple[np.ndarray, float, float]:
    """The curve that is learned from 120,000 exposures, and what is said and true of P(click | examined) after."""
    world = World(seed)
    end_ms = world.day_ms(12)
    impressions, events = world.first_log(world.requests(world.start_ms, end_ms, 12_000), slate_size=SLOTS)
    dataset = world.dataset(impressions, events)
    table = cycle.declare(dataset)
    examples = from_impressions(
        table,
        users=dataset.users,
        items=dataset.items,
        impressions=impressions,
        events=events,
        watermark_ms=end_ms,
    )
    settings = RankerSettings(positions=positions)
    ranker, calibration, metrics = train_ranker(table, examples, settings=settings, seed=seed, folder=folder)
    _, held_out = split_by_time(examples, settings.validation)
    batch = _batch(table, held_out, clip=1.0)
    with torch.inference_mode():
        logit_NA = ranker(ranker.query_half(batch.query), batch.item, batch.pair, batch.request_B).numpy()
    first_ms, last_ms = (int(each) for each in (held_out.time_ms_R.min(), held_out.time_ms_R.max()))
    shown = impressions.filter(pl.col("time_ms").is_between(first_ms, last_ms)).sort("time_ms", "request_id")
    row_of = {item_id: row for row, item_id in enumerate(dataset.items["item_id"])}
    truth = [
        world.probability(int(user_id[1:]), [row_of[each] for each in item_ids], time_ms, text)[:, 0]
        for user_id, time_ms, text, item_ids in shown.select("user_id", "time_ms", "text", "item_id").iter_rows()
    ]
    curve_P = np.array([metrics[f"examination.{p}"] for p in range(min(positions, SLOTS))])
    return curve_P, float(calibration.apply(logit_NA)[:, 0].mean()), float(np.concatenate(truth).mean())


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_the_curve_is_recovered_and_leaving_it_out_dims_every_probability(seed: int, tmp_path: Path) -> None:
    torch.set_num_threads(1)
    curve_P, said, truth = _trained(seed, tmp_path / "with", positions=50)
    true_P = World.examination(SLOTS)
    assert curve_P[0] == pytest.approx(1)
    np.testing.assert_allclose(curve_P, true_P, atol=0.06)
    assert said / truth == pytest.approx(1, abs=0.15)
    _, blind, _ = _trained(seed, tmp_path / "without", positions=1)
    assert blind / truth < 0.7, "as if every slot were looked at, most of what is liked seems not to be"
