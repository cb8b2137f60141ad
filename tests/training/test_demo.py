"""The whole loop on one command: a real server process, a real redis-server, two cycles, replay, estimate, report."""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from conftest import SMALL

from index.generations import GenerationStore
from training import demo
from training.demo import DemoSettings
from training.log.compaction import verify
from training.log.served import ServedLog
from training.reports import report
from training.simulation.world import World

FIRST, SERVED, JUDGED, RETURNING, SLATE_SIZE = 400, 200, 80, 60, 5
TIMED = ("seconds", "latency_ms", "examples_per_s", "requests.during_swap", "requests.served")
"""What two runs need not agree on: times, and how many requests fit into a swap."""


@dataclass(frozen=True)
class Run:
    folder: Path
    page: Path
    summary: dict[str, Any]


def run_into(folder: Path) -> Run:
    page = demo.run(
        DemoSettings(
            output=folder,
            data=partial(World, 0, users=60, items=120, days=8),
            cycle=SMALL,
            first_days=4,
            first_requests=FIRST,
            served_days=2,
            served_requests=SERVED,
            judged_days=1,
            judged_requests=JUDGED,
            returning_days=1,
            returning_requests=RETURNING,
            slate_size=SLATE_SIZE,
        )
    )
    return Run(folder, page, json.loads((folder / "summary.json").read_text()))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Run]:
    """The same command twice."""
    folder = tmp_path_factory.mktemp("demo")
    return run_into(folder / "once"), run_into(folder / "twice")


def numbers(tree: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Leaves by dotted names."""
    for name, value in tree.items():
        if isinstance(value, Mapping):
            yield from numbers(value, f"{above}{name}.")
        else:
            yield f"{above}{name}", value


def test_the_summary_holds_every_number_that_a_reader_is_promised(runs: tuple[Run, Run]) -> None:
    found = dict(numbers(runs[0].summary))
    promised = {
        *(f"reward.{policy}" for policy in ("random", "popularity", "cycle1", "cycle2", "oracle")),
        *("requests.served", "requests.failed", "replay.requests", "replay.mismatches"),
        *(f"ope.{name}" for name in ("estimate", "low", "high", "truth", "effective_sample_size")),
        *(f"retrieval.cycle{cycle}.recall@{k}" for cycle in (1, 2) for k in (10, 50, 100)),
        *(f"ranker.cycle{cycle}.click.{name}" for cycle in (1, 2) for name in ("auc", "ece", "logloss")),
        *(f"ranker.cycle{cycle}.ndcg@10" for cycle in (1, 2)),
        *(
            f"latency_ms.{stage}.{quantile}"
            for stage in ("hydrate", "retrieve", "filter", "score", "select", "client")
            for quantile in ("p50", "p99")
        ),
        *("index.recall", "seconds", "seed"),
    }
    assert promised - found.keys() == set()
    missing = [name for name in promised if not isinstance(found[name], int | float) or not math.isfinite(found[name])]
    assert missing == []


def test_no_request_failed_and_every_logged_one_replayed(runs: tuple[Run, Run]) -> None:
    for run in runs:
        requests, replay = run.summary["requests"], run.summary["replay"]
        assert requests["failed"] == 0
        assert requests["during_swap"] > 0, "requests came while the generations were swapped"
        assert requests["served"] == SERVED + JUDGED + RETURNING + requests["during_swap"]
        assert replay == {"requests": SERVED + JUDGED + RETURNING, "mismatches": 0}


def test_the_same_seed_gives_the_same_numbers(runs: tuple[Run, Run]) -> None:
    once, twice = (
        {name: value for name, value in numbers(run.summary) if not any(part in name for part in TIMED)} for run in runs
    )
    assert once == twice
    assert len(once) > 40


def test_rewards_are_in_an_order_that_no_training_can_change(runs: tuple[Run, Run]) -> None:
    reward = runs[0].summary["reward"]
    assert max(reward, key=reward.__getitem__) == "oracle"
    assert reward["random"] < reward["popularity"], "the world has a crowd to follow"
    searches = runs[0].summary["search_reward"]
    assert max(searches, key=searches.__getitem__) == "oracle"
    assert searches["random"] < searches["bm25"], "what matches is what is sought"
    assert runs[0].summary["ope"]["low"] <= runs[0].summary["ope"]["estimate"] <= runs[0].summary["ope"]["high"]
    assert 1 <= runs[0].summary["ope"]["slots"] <= SLATE_SIZE


def test_both_generations_are_published_and_the_second_was_trained_from_the_first(runs: tuple[Run, Run]) -> None:
    store = GenerationStore(runs[0].folder / "generations")
    first, second = store.ids()
    assert store.current() == second
    assert store.manifest(second).parent == first
    assert [each.id for each in store.history()] == [first, second]
    served = ServedLog.read(runs[0].folder / "log", until_ms=2**62)
    assert verify(runs[0].folder / "log", quarantine=False).damaged == {}
    answered = [each.generation for each in served.impressions]
    assert answered == [first] * (SERVED + JUDGED) + [second] * RETURNING, (
        "what was asked during the swap is not logged"
    )
    assert [run_id for run in runs for run_id in GenerationStore(run.folder / "generations").ids()] == [
        first,
        second,
    ] * 2


def test_what_knows_least_draws_warmest(runs: tuple[Run, Run]) -> None:
    policies = [json.loads(path.read_text()) for path in sorted(runs[0].folder.glob("generations/0*/policy.json"))]
    first, second = (policy["temperature"] for policy in policies)
    assert first == 2 * second > 0


def test_the_report_is_there_and_latest_leads_to_it(runs: tuple[Run, Run]) -> None:
    for run in runs:
        assert run.page == run.folder / "report.html"
        text = run.page.read_text()
        assert "<svg" in text
        assert run.summary == report.read(run.folder)[0]
    assert (runs[1].folder.parent / "latest").resolve() == runs[1].folder.resolve()
    figures = report.read(runs[0].folder)[1]
    for drawn in (figures.reliability, figures.examination, figures.estimates, figures.recall, figures.training):
        assert drawn
    assert {slate.answered_by for slate in figures.slates} == {"cycle 1", "cycle 2"}
    assert any(item.reasons for slate in figures.slates for item in slate.items)


def test_nothing_is_left_running_or_half_written(runs: tuple[Run, Run]) -> None:
    for run in runs:
        assert not (run.folder / "server.json").exists(), "the server says good-bye"
        assert list(run.folder.glob("generations/.staging-*")) == []
        assert list(run.folder.parent.glob(".latest-*")) == []
        assert list(run.folder.glob("redis/redis.sock")) == []
