"""Run records: what lies beside a trained stage, and whether it tells one source from another."""

import json
import subprocess
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from training import configuration
from training.learning import run_record
from training.learning.run_record import Source, command, fingerprint, revision
from training.settings import TrainSettings

TABLE = pl.DataFrame({"user_id": ["1", "2"], "value": [1.0, None], "history": [[1, 2], []]})


@pytest.fixture(scope="module")
def shop(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Words for a small data set and small models."""
    folder = tmp_path_factory.mktemp("shop")
    rng = np.random.default_rng(0)
    log = {
        "user_id": rng.integers(40, size=600).astype(str),
        "item_id": rng.integers(60, size=600).astype(str),
        "time": 1_700_000_000 + np.sort(rng.integers(20 * 86_400, size=600)),
    }
    pl.DataFrame(log).write_parquet(folder / "interactions.parquet")
    data = ("data=parquet", f"data.root={folder}", "data.items=null", "data.time_unit=s")
    return [*data, "experiment=quick", f"generations={folder / 'generations'}"]


def told(*words: str) -> TrainSettings:
    made: TrainSettings = configuration.settings("train", words)
    return made


@pytest.mark.parametrize(("mode", "folder"), [("tower", "towers"), ("ranker", "ranker")])
def test_beside_what_was_trained_lies_what_it_was_trained_with(
    mode: str, folder: str, shop: list[str], tmp_path: Path
) -> None:
    settings = told(f"mode={mode}", f"output={tmp_path}", *shop, "seed=3")
    source = Source.of(settings)
    metrics = run_record.train(settings, source)
    record: dict[str, Any] = json.loads((tmp_path / folder / "run.json").read_text())
    assert run_record.record_path(settings) == tmp_path / folder / "run.json"
    assert record["metrics"] == metrics == json.loads((tmp_path / folder / "metrics.json").read_text())
    assert record["config"]["seed"] == 3
    assert record["config"]["towers"]["shape"]["width"] == 16
    assert record["config"]["data"]["root"] == str(settings.data.keywords["root"])
    assert record["data"] == {"sha256": source.sha256, "rows": dict(source.rows)}
    assert record["data"]["rows"]["events"] == 600
    assert record["revision"] == revision()
    assert record["versions"]["torch"] == torch.__version__
    assert record["threads"] == torch.get_num_threads()
    assert record["seconds"] > 0
    assert record["generation"] is None
    logs = tmp_path / "work" / folder
    assert (logs / "csv" / "metrics.csv").exists()
    assert list((logs / "board").glob("events.out.tfevents.*"))


def test_a_record_of_an_older_training_is_replaced(shop: list[str], tmp_path: Path) -> None:
    words = ("mode=tower", f"output={tmp_path}", *shop)
    for seed in (1, 2):
        run_record.train(told(*words, f"seed={seed}"))
        assert json.loads((tmp_path / "towers" / "run.json").read_text())["config"]["seed"] == seed


def test_the_command_repeats_every_word_but_where_the_result_goes() -> None:
    words = ("mode=ranker", "output=a/b", "mlflow=sqlite:///x", "data=ml-1m", "data.root=my films", "++seed=3")
    assert command(told(*words)) == (
        f"OMP_NUM_THREADS={torch.get_num_threads()} cascade train ranker data=ml-1m 'data.root=my films' ++seed=3"
    )


def test_tables_have_the_same_fingerprint_however_they_lie_in_memory() -> None:
    one = fingerprint({"events": TABLE})
    assert len(one) == 64
    assert fingerprint({"events": pl.concat([TABLE[:1], TABLE[1:]], rechunk=False)}) == one


@pytest.mark.parametrize(
    "other",
    [
        {"items": TABLE},
        {"events": TABLE[::-1]},
        {"events": TABLE[:1]},
        {"events": TABLE.with_columns(value=pl.Series([1.0, 0.0]))},
        {"events": TABLE.with_columns(pl.col("value").cast(pl.Float32))},
        {"events": TABLE.rename({"value": "worth"})},
        {"events": TABLE.with_columns(history=pl.Series([[1], [2]]))},
        {"events": TABLE, "users": TABLE},
    ],
)
def test_other_tables_have_another_fingerprint(other: dict[str, pl.DataFrame]) -> None:
    assert fingerprint(other) != fingerprint({"events": TABLE})


def test_the_revision_is_that_of_the_source_and_says_where_files_differ(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "training"
    package.mkdir()
    (package / "__init__.py").write_text("")
    monkeypatch.setattr(run_record, "__file__", str(package / "run_record.py"))
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))

    def git(*words: str) -> str:
        identity = ("-c", "user.name=n", "-c", "user.email=e@x")
        done = subprocess.run(["git", "-C", tmp_path, *identity, *words], check=True, capture_output=True, text=True)
        return done.stdout.strip()

    assert revision() == "unknown"
    git("init", "-q")
    assert revision() == "unknown", "in somebody else's repository"
    git("add", ".")
    git("commit", "-qm", "first")
    git("tag", "-a", "v1", "-m", "v1")
    assert revision() == git("rev-parse", "HEAD")
    (package / "__init__.py").write_text("changed")
    assert revision() == git("rev-parse", "HEAD") + "-dirty"


def test_without_git_the_revision_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    assert revision() == "unknown"


def test_mlflow_that_is_not_installed_is_told_before_training(
    shop: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_record, "find_spec", lambda _: None)
    settings = told("mode=tower", f"output={tmp_path / 'out'}", "mlflow=sqlite:///x.db", *shop)
    with pytest.raises(ValueError, match=r"^mlflow=sqlite:///x.db needs mlflow, .*'cascade-ranking\[mlflow\]'$"):
        run_record.train(settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.skipif(find_spec("mlflow") is None, reason="the extra `mlflow` is not installed")
@pytest.mark.filterwarnings("ignore")
def test_mlflow_gets_settings_metrics_curves_and_where_they_came_from(shop: list[str], tmp_path: Path) -> None:
    from mlflow.tracking import MlflowClient

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    settings = told("mode=tower", f"output={tmp_path / 'mine'}", f"mlflow={uri}", *shop)
    metrics = run_record.train(settings)
    record = json.loads(run_record.record_path(settings).read_text())
    client = MlflowClient(uri)
    experiment = client.get_experiment_by_name("cascade-tower")
    (run,) = client.search_runs([experiment.experiment_id])
    assert (run.info.run_name, run.info.status) == ("mine", "FINISHED")
    assert run.data.params["towers.epochs"] == "1"
    assert run.data.metrics["retrieval.recall_at_50"] == metrics["retrieval.recall@50"]
    assert run.data.tags["revision"] == record["revision"]
    assert run.data.tags["data"] == record["data"]["sha256"]
    assert run.data.tags["command"] == record["command"]
    assert client.get_metric_history(run.info.run_id, "loss_epoch")
