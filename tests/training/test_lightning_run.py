"""A training that is killed, shared among processes, watched; on the small world of `tower_cases`."""

import csv
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from pytorch_lightning.callbacks import RichProgressBar
from tower_cases import EXAMPLES, FAST, ITEM_ROWS, ITEMS, POSITIVE_ROWS, QUERY_ROWS, TABLE

from candidate_gen.towers import Towers
from training.learning import tower
from training.learning.batches import Batch
from training.learning.lightning_run import cpu_trainer, deterministic, unfinished, warmed_cosine
from training.learning.tower import TowerSettings, train_towers

ROOT = Path(__file__).parents[2]
STREAMED = replace(FAST, shares="streamed")
DIES = """
import os, signal, sys
from dataclasses import replace
from pathlib import Path
import torch
from tower_cases import FAST, ITEM_ROWS, POSITIVE_ROWS, QUERY_ROWS, TABLE
from training.learning import tower
from training.learning.batches import Batch

folder, last, threads = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
torch.set_num_threads(threads)
tower._LARGE_TABLE = 1
step = tower.TowerTraining.training_step

def dies(self, batch, at):
    if int(self.steps) == last:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, batch, at)

tower.TowerTraining.training_step = dies
settings = replace(FAST, shares="streamed")
tower.train_towers(TABLE, ITEM_ROWS, QUERY_ROWS, POSITIVE_ROWS, settings=settings, seed=0, folder=folder)
"""


def trained(folder: Path, settings: TowerSettings, **others: Any) -> tuple[Towers, dict[str, float]]:
    return train_towers(TABLE, ITEM_ROWS, QUERY_ROWS, POSITIVE_ROWS, settings=settings, seed=0, folder=folder, **others)


def curve(folder: Path) -> list[dict[str, float]]:
    with (folder / "csv" / "metrics.csv").open(newline="") as file:
        return [{name: float(cell) for name, cell in row.items() if cell} for row in csv.DictReader(file)]


def test_what_was_killed_goes_on_to_the_same_weights_by_the_same_curve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tower, "_LARGE_TABLE", 1)
    whole, metrics = trained(tmp_path / "whole", STREAMED)
    epoch = (EXAMPLES - EXAMPLES // 10) // FAST.batch
    folder = tmp_path / "killed"
    arguments = [str(folder), str(2 * epoch + 3), str(torch.get_num_threads())]
    died = subprocess.run(
        [sys.executable, "-c", DIES, *arguments],
        env={"PYTHONPATH": f"{ROOT}:{Path(__file__).parent}", "PATH": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    held = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    assert held["global_step"] == 2 * epoch
    assert unfinished(folder / "checkpoints" / "last.ckpt", held["arguments"], epochs=FAST.epochs) == 2 * epoch
    seen: list[int] = []
    step = tower.TowerTraining.training_step

    def counted(self: tower.TowerTraining, batch: Batch, at: int) -> torch.Tensor:
        seen.append(int(self.steps))
        return step(self, batch, at)

    monkeypatch.setattr(tower.TowerTraining, "training_step", counted)
    resumed, same = trained(folder, STREAMED)
    assert seen == list(range(2 * epoch, FAST.epochs * epoch))
    assert resumed.fingerprint == whole.fingerprint
    assert {**same, "examples_per_s": 0} == {**metrics, "examples_per_s": 0}
    assert curve(folder) == curve(tmp_path / "whole")
    assert sum("loss_epoch" in row for row in curve(folder)) == FAST.epochs


def test_what_is_left_of_another_training_is_not_gone_on_with(tmp_path: Path) -> None:
    once = replace(FAST, epochs=1)
    trained(tmp_path, once)
    last = tmp_path / "checkpoints" / "last.ckpt"
    held = torch.load(last, weights_only=True)
    assert unfinished(last, held["arguments"], epochs=2) == held["global_step"] > 0
    assert unfinished(last, held["arguments"], epochs=1) == 0
    assert unfinished(last, "other", epochs=2) == 0
    assert unfinished(tmp_path / "none.ckpt", held["arguments"], epochs=2) == 0


def test_two_processes_go_through_the_losses_of_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tower, "_LARGE_TABLE", TABLE["item_id"].size)
    random = np.random.default_rng(0)
    given: dict[str, Any] = {
        "weight_N": random.uniform(0.5, 2, EXAMPLES).astype(np.float32),
        "hard_row_NH": random.integers(-1, ITEMS, (EXAMPLES, 2)),
    }
    alone = replace(STREAMED, shape=replace(FAST.shape, id_dropout=0.0), epochs=2)
    one, metrics = trained(tmp_path / "one", alone, **given)
    two, same = trained(tmp_path / "two", replace(alone, processes=2), **given)
    assert same["loss"] == pytest.approx(metrics["loss"], rel=1e-5)
    assert same["recall@10"] == pytest.approx(metrics["recall@10"], abs=0.02)
    for (name, weight), other in zip(one.named_parameters(), two.parameters(), strict=True):
        torch.testing.assert_close(other, weight, rtol=1e-2, atol=1e-2, msg=name)
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("terminal", [False, True])
def test_a_bar_is_shown_where_a_terminal_is(terminal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with deterministic(0):
        trainer = cpu_trainer(tmp_path, epochs=1, callbacks=[], validate=False)
    assert isinstance(trainer.progress_bar_callback, RichProgressBar) == terminal


def test_the_learning_rate_rises_evenly_and_falls_as_a_cosine_to_nothing() -> None:
    weight = torch.zeros(1, requires_grad=True)
    optimizer = torch.optim.SGD([weight], lr=2.0)
    schedule = warmed_cosine(optimizer, steps=100, warm=10)["lr_scheduler"]["scheduler"]  # type: ignore[index]
    rates = []
    for _ in range(100):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates[:3] == pytest.approx([0.2, 0.4, 0.6])
    assert max(rates) == pytest.approx(2, rel=0.05)
    assert rates[50] == pytest.approx(1)
    assert rates[-1] == pytest.approx(0, abs=1e-3)
    assert optimizer.param_groups[0]["lr"] == 0
