import json
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest

from benchmarks.__main__ import BEGIN, END, NAMES, PAGE, rewritten, tables
from benchmarks.harness import Bench, Report, Side, cells, finite, main, median_interval, print_report
from benchmarks.load import Asking, Question, ask_by_h2load, ask_by_python
from protos import recommender_pb2, recommender_pb2_grpc

ROOT = Path(__file__).parents[1]


class Clock:
    """A clock that only work moves, and that drifts: everything takes longer the later it is."""

    def __init__(self, *, drift: float = 0.0, jitter: float = 0.0) -> None:
        self.now_s = 0.0
        self._drift = drift
        self._jitter = jitter
        self._random = np.random.default_rng(0)

    def __call__(self) -> float:
        # Looking takes time, if next to none.
        self.now_s += 1e-9
        return self.now_s

    def work(self, seconds: float) -> None:
        noise = 1 + self._jitter * self._random.random()
        self.now_s += seconds * noise * (1 + self._drift * self.now_s)


def bench(clock: Clock, *, blocks: int = 25) -> Bench:
    return Bench("trivial", quick=True, blocks=blocks, least_s=0.1, clock=clock)


def test_a_known_ratio_is_found_within_its_interval() -> None:
    clock = Clock(jitter=0.5)
    figure = bench(clock).compare(
        "twice the work", Side("one", lambda: clock.work(0.01)), Side("two", lambda: clock.work(0.02)), unit="ms"
    )
    assert figure.low is not None
    assert figure.high is not None
    assert figure.low <= 2.0 <= figure.high
    assert figure.high - figure.low < 0.2
    assert figure.blocks == 25


def test_a_machine_that_slows_down_does_not_move_the_ratio() -> None:
    """Side by side in the order AB the second side would seem slower; ABBA cancels what grows evenly."""
    clock = Clock(drift=0.05)
    side = Side("same", lambda: clock.work(0.01))
    figure = bench(clock).compare("the same", side, side, unit="us")
    assert figure.ratio == pytest.approx(1, abs=1e-3)


def test_times_are_of_one_unit_of_work() -> None:
    clock = Clock()
    ours, peer = Side("ours", lambda: clock.work(0.5)), Side("peer", lambda: clock.work(2.0))
    per_second = bench(clock).compare("a rate", ours, peer, unit="/s", per=10)
    assert (per_second.ours, per_second.peer, per_second.ratio) == pytest.approx((20, 5, 4))
    in_ms = bench(clock).compare("a time", ours, peer, unit="ms", per=10)
    assert (in_ms.ours, in_ms.peer, in_ms.ratio) == pytest.approx((50, 200, 4))


def test_quick_work_is_repeated_until_it_can_be_timed() -> None:
    clock = Clock()
    calls = 0

    def ours() -> None:
        nonlocal calls
        calls += 1
        clock.work(0.001)

    peer = Side("peer", lambda: clock.work(0.001))
    bench(clock, blocks=2).compare("many", Side("ours", ours), peer, unit="us")
    # A warm-up, one call to learn how long it takes, then two blocks of two measurements of 0.1 s.
    assert calls == 1 + 1 + 2 * 2 * 100


def test_the_interval_of_equal_values_is_that_value() -> None:
    assert median_interval(np.full(9, 3.0), random=np.random.default_rng(0)) == (3.0, 3.0, 3.0)


def test_the_interval_covers_the_true_median_about_as_often_as_it_says() -> None:
    random = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        _, low, high = median_interval(random.lognormal(size=25), random=random)
        covered += low <= 1.0 <= high
    assert 0.90 <= covered / 200 <= 1


def test_json_comes_last_and_says_what_the_table_says(capsys: pytest.CaptureFixture[str]) -> None:
    def measure(bench: Bench) -> None:
        numbers = np.random.default_rng(0).random(20_000)
        one, two = Side("once", lambda: np.sort(numbers)), Side("twice", lambda: (np.sort(numbers), np.sort(numbers)))
        bench.compare("sorting", one, two, unit="us", note="a note")
        bench.record("alone", np.linspace(0.001, 0.101, 101), unit="ms")
        assert not bench.installed("surely_not_installed")

    main("trivial", measure, "for this test", ["--quick"])
    *table, last = capsys.readouterr().out.splitlines()
    found = json.loads(last)
    assert found["name"] == "trivial"
    assert found["quick"]
    compared, alone = found["figures"]
    assert (compared["peer_name"], compared["unit"], compared["blocks"]) == ("twice", "us", 5)
    assert 1 < compared["ratio"] < 4
    assert compared["low"] <= compared["ratio"] <= compared["high"]
    assert (alone["ours"], alone["p99"], alone["peer"], alone["ratio"]) == (
        pytest.approx(51),
        pytest.approx(100),
        None,
        None,
    )
    assert found["skipped"] == {"surely_not_installed": "not installed (pip install surely_not_installed)"}
    assert found["noise"] >= 1
    assert found["machine"]["processor"]
    assert found["versions"]["numpy"] == np.__version__
    text = "\n".join(table)
    for part in ("sorting", "twice", f"{compared['ratio']:.2f}", "a note", "surely_not_installed", "p99 100 ms"):
        assert part in text


def test_a_busy_machine_is_pointed_out(capsys: pytest.CaptureFixture[str]) -> None:
    print_report(Report("noisy", False, (), noise=1.8))
    assert "1.80 times the median" in capsys.readouterr().out
    print_report(Report("quiet", False, (), noise=1.1))
    assert "busy" not in capsys.readouterr().out


def test_undefined_numbers_become_null() -> None:
    assert finite({"a": [float("nan"), 1.0], "b": (float("inf"), "c")}) == {"a": [None, 1.0], "b": [None, "c"]}


def test_the_page_is_rewritten_between_its_markers_only() -> None:
    page = f"before\n{BEGIN}\nold\n{END}\nafter\n"
    once = rewritten(page, "new")
    assert once == f"before\n{BEGIN}\n\nnew\n{END}\nafter\n"
    assert rewritten(once, "new") == once
    assert rewritten(PAGE.read_text(), "x").count(BEGIN) == 1
    with pytest.raises(ValueError, match="the page needs the line"):
        rewritten("no markers", "new")


def test_tables_hold_every_figure_and_what_was_left_out() -> None:
    clock = Clock()
    collected = bench(clock)
    collected.compare("a", Side("x", lambda: clock.work(1)), Side("y", lambda: clock.work(3)), unit="ms")
    collected.skip("z", "not installed")
    markdown = tables([json.loads(json.dumps(finite(asdict(collected.report()))))])
    assert "| a | 1e+03 ms | 3e+03 ms | y | 3.00 | 3.00-3.00 |  |" in markdown
    assert "Left out: z, not installed." in markdown


def test_every_benchmark_of_times_is_run_by_the_command_that_runs_all() -> None:
    shared, alone = (
        {"__init__", "__main__", "harness", "in_process"},
        {"closed_loop", "drift", "estimates", "faults", "search_world"},
    )
    shared |= {"large_catalogue", "load", "naive"}
    modules = {path.stem for path in (ROOT / "benchmarks").glob("*.py")}
    assert modules - shared - alone == set(NAMES)


def test_pairs_of_times_give_the_median_of_their_ratios() -> None:
    figure = bench(Clock()).pair(
        "a pair", np.array([1.0, 2.0, 4.0]), np.array([3.0, 4.0, 4.0]), peer_name="peer", unit="ms", note="a note"
    )
    assert (figure.ours, figure.peer, figure.ratio, figure.blocks) == (2000, 4000, 2, 3)
    assert (figure.peer_name, figure.note) == ("peer", "a note")


def test_one_run_has_a_ratio_and_no_interval() -> None:
    figure = bench(Clock()).pair("a run", np.array([2.0]), np.array([3.0]), peer_name="peer", unit="s")
    assert cells(figure) == ("a run", "2 s", "3 s", "peer", "1.50", "one run")


@pytest.mark.parametrize("name", ["point_in_time", "policy", "replay", "tower"])
def test_a_benchmark_ends_with_json_and_its_peers_do_the_same_work(name: str) -> None:
    command = [sys.executable, "-m", f"benchmarks.{name}", "--quick"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300)
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["name"] == name
    assert found["figures"][0]["note"].endswith(("identical", "equal"))


def test_retrieval_is_compared_on_one_split_and_what_is_not_installed_is_named() -> None:
    command = [sys.executable, "-m", "benchmarks.retrieval", "--quick"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300)
    found = json.loads(run.stdout.splitlines()[-1])
    peers = {each["peer_name"]: each for each in found["figures"]}
    assert {"popularity", "plain torch two-tower"} <= set(peers)
    assert ("implicit ALS" in peers) != ("implicit" in found["skipped"])
    assert {(each["unit"], each["blocks"]) for each in peers.values()} == {("s", 1)}
    assert all(each["note"].startswith("recall@20 0.") for each in peers.values())
    assert peers["popularity"]["ratio"] < 1


def test_a_warm_start_is_held_against_a_full_retrain_in_time_and_in_worth() -> None:
    command = [sys.executable, "-m", "benchmarks.incremental", "--quick"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300)
    (figure,) = json.loads(run.stdout.splitlines()[-1])["figures"]
    assert (figure["peer_name"], figure["unit"], figure["blocks"]) == ("full retrain", "s", 2)
    assert all(f"{name} " in figure["note"] for name in ("click AUC", "NDCG@10", "click log-loss"))


def test_the_compiled_ranker_says_what_the_trained_one_says() -> None:
    command = [sys.executable, "-m", "benchmarks.ranker", "--quick"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300)
    figures = json.loads(run.stdout.splitlines()[-1])["figures"]
    assert {"eager torch", "eager torch, columns given"} <= {each["peer_name"] for each in figures}
    gaps = {each["name"]: float(each["note"].partition("largest dp ")[2].partition(",")[0]) for each in figures}
    for form in ("crosses and network", "network"):
        assert gaps[f"{form}, float32"] < 1e-5


class Echo(recommender_pb2_grpc.RecommenderServicer):
    """Remembers who asked."""

    def __init__(self) -> None:
        self.users: list[str] = []

    def Recommend(
        self,
        request: recommender_pb2.RecommendRequest,
        context: grpc.ServicerContext,  # noqa: ARG002
    ) -> recommender_pb2.RecommendResponse:
        self.users.append(request.context.user_id)
        time.sleep(0.005)
        return recommender_pb2.RecommendResponse(request_id="x" * request.page_size)


@pytest.mark.parametrize("asking", [ask_by_h2load, ask_by_python])
@pytest.mark.parametrize("how", [{"connections": 4}, {"rate": 200.0}])
def test_load_is_as_many_requests_as_were_asked_for_of_many_users(
    tmp_path: Path, asking: Asking, how: dict[str, Any]
) -> None:
    if asking is ask_by_h2load and shutil.which("h2load") is None:
        pytest.skip("h2load is not installed (Debian: nghttp2-client)")
    echo, server = Echo(), grpc.server(ThreadPoolExecutor(4))
    recommender_pb2_grpc.add_RecommenderServicer_to_server(echo, server)  # type: ignore[no-untyped-call]
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    question = Question(tmp_path, [f"u{number:03d}" for number in range(1000)], size=30, columns=True)
    load = asking(f"127.0.0.1:{port}", question, 100, **how)
    server.stop(0).wait()
    assert (len(load.latency_s_N), load.unanswered, len(echo.users)) == (100, 0, 100)
    assert len(set(echo.users)) > 10
    assert all(len(user) == 4 for user in echo.users)
    assert load.latency_s_N.min() >= 0.005
    assert load.answer_bytes > 30
    assert load.rate == pytest.approx(100 / load.seconds)
    if "rate" in how:
        assert load.seconds > 0.25, "100 requests at 200 a second take half a second, whoever is quick"


@pytest.mark.slow
def test_a_server_under_load_answers_and_logs_everything_and_says_how_fast_it_is() -> None:
    command = [sys.executable, "-m", "benchmarks.serving", "--quick"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=600)
    found = json.loads(run.stdout.splitlines()[-1])
    assert found["faults"] == 0
    named = ("requests_per_s_per_core", "p50_ms", "p99_ms", "ratio_to_naive", "scaling_2_processes")
    assert min(found[name] for name in named) > 0
    assert found["p50_ms"] <= found["p99_ms"]
    assert {"stage score", "stage retrieve", "stage log"} <= {each["name"] for each in found["figures"]}


@pytest.mark.slow
def test_no_request_fails_or_mixes_generations_while_they_are_swapped() -> None:
    command = [sys.executable, "-m", "benchmarks.swap", "--quick"]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, timeout=300)
    notes = {each["name"]: each["note"] for each in json.loads(run.stdout.splitlines()[-1])["figures"]}
    assert notes["vectors added to the delta"].endswith("the same vectors: yes")
    assert notes["request without a swap, p99"].endswith(": 0 failed, 0 degraded, 0 mixed")
    for change in ("upsert", "delete"):
        assert notes[f"{change} of 1 until a search knows of it"].endswith(", 0 searches too early")
