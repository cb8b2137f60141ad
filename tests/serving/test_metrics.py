"""What a scrape of a running server shows, and that it is what GetStatus says."""

import re
import shutil
import ssl
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.request import urlopen

import grpc
import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families
from serving_cases import NOW_MS, MemoryLog, Switch, call, load_fakes, publish, refusal, running, serving, settings

from index.generations import GenerationStore
from protos.admin_pb2 import GetStatusResponse
from protos.recommender_pb2 import Context, RecommendRequest
from serving.generations import Generations
from serving.observability.metrics import MetricsEndpoint, TelemetryCollector
from serving.observability.telemetry import Call, Histogram, Reading, Telemetry, current_call
from serving.pipeline import Trace
from serving.server import Address

AT = Context(client_time_ms=NOW_MS, user_id="u1")
Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def samples(text: str) -> Samples:
    """By name and sorted labels."""
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def scraped(address: Address) -> Samples:
    with urlopen(f"http://{address.metrics_target}/metrics", timeout=20) as reply:
        return samples(reply.read().decode())


@contextmanager
def measured(folder: Path, patch: pytest.MonkeyPatch, *, switch: Switch | None = None) -> Iterator[Address]:
    load_fakes(patch, switch)
    store = GenerationStore(folder / "generations")
    store.activate(publish(store, 1), time_ms=NOW_MS)
    chosen = replace(settings(folder), metrics_port=0)
    with running(Generations(store), chosen, log=MemoryLog()) as address:
        yield address


def recommend(address: Address, *requests: RecommendRequest) -> None:
    with grpc.insecure_channel(address.target) as channel:
        for request in requests:
            refusal(channel, "Recommender/Recommend", request.SerializeToString())


def test_a_scrape_says_what_status_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    switch = Switch(fail=frozenset({"similar", "ranker"}))
    with measured(tmp_path, monkeypatch, switch=switch) as address:
        good = [RecommendRequest(context=AT, request_id=f"r{number % 3}") for number in range(5)]
        recommend(address, *good, RecommendRequest(context=AT, page_size=-1))
        with grpc.insecure_channel(address.admin_target) as admin:
            status = GetStatusResponse.FromString(call(admin, "Admin/GetStatus", b""))
        found = scraped(address)
    method = ("method", "Recommend")
    assert found["cascade_requests_started_total", (method,)] == status.calls["Recommend"] == 6
    assert found["cascade_requests_total", (("code", "OK"), method)] == 5
    assert found["cascade_requests_total", (("code", "INVALID_ARGUMENT"), method)] == 1
    assert status.failed == {"INVALID_ARGUMENT": 1}
    assert found["cascade_request_duration_seconds_count", (method,)] == 5
    assert found["cascade_replies_repeated_total", (("kept", "memory"),)] == 2
    assert found["cascade_log_writes_total", (("result", "stored"),)] == status.logged == 3
    for reason, answers in status.degraded.items():
        assert found["cascade_degraded_total", (("reason", reason),)] == answers == 3
    assert set(status.degraded) == {"DEGRADED_SOURCE_ERROR", "DEGRADED_RANKER_SKIPPED"}
    assert found["cascade_source_skipped_total", (("reason", "error"), ("source", "similar"))] == 3
    assert found["cascade_source_rows_total", (("source", "ann"),)] == 3 * 20
    assert found["cascade_source_duration_seconds_count", (("source", "ann"),)] == 3
    stages = {each.stage: each.count for each in status.stages}
    assert found["cascade_stage_duration_seconds_count", (("stage", "select"),)] == stages["select"] == 3
    assert found["cascade_generation_info", (("generation", status.generation),)] == 1
    assert found["cascade_generation_created_timestamp_seconds", ()] == NOW_MS / 1000
    assert found["cascade_generation_changes_total", (("result", "activated"),)] == 1
    assert (found["cascade_ready", ()], found["cascade_log_available", ()]) == (1, 1)
    assert (found["cascade_catalog_seq", ()], found["cascade_catalog_lag_entries", ()]) == (0, 0)
    assert found["cascade_calls_inside", (("service", "recommender"),)] == 0
    assert found["cascade_calls_places", (("service", "recommender"),)] == 66
    gauges = {name.removeprefix("cascade_"): value for (name, labels), value in found.items() if not labels}
    alone = {name: value for name, value in status.standing.items() if "{" not in name}
    assert alone.items() <= gauges.items()
    assert status.standing["calls_places{recommender}"] == 66
    assert found["process_resident_memory_bytes", ()] > 1e6


def test_without_a_port_nothing_is_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(tmp_path, monkeypatch) as address:
        assert address.metrics_target == ""


def test_a_metrics_port_that_is_taken_is_told_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with measured(tmp_path, monkeypatch) as address:
        taken = replace(settings(tmp_path), metrics_port=int(address.metrics_target.rpartition(":")[2]))
        generations = Generations(GenerationStore(tmp_path / "generations"))
        with pytest.raises(ValueError, match=r"^metrics_port: .*in use"), running(generations, taken):
            pass


def exposed(telemetry: Telemetry) -> Samples:
    registry = CollectorRegistry()
    registry.register(TelemetryCollector(telemetry))
    return samples(generate_latest(registry).decode())


def observed(telemetry: Telemetry, ms: float, **stage_ms: float) -> None:
    call = Call("Recommend", ms=ms, trace=Trace(stage_ms=stage_ms))
    telemetry.begin(call)
    telemetry.end(call)


def test_buckets_are_cumulative_and_exact_at_their_bounds() -> None:
    telemetry = Telemetry()
    times_ms = [0.016, 1.024, 1e9, *np.random.default_rng(0).lognormal(0, 2, 1000).tolist()]
    for ms in times_ms:
        observed(telemetry, ms)
    found = exposed(telemetry)
    bounds = sorted(
        (float(dict(labels)["le"]), count)
        for (name, labels), count in found.items()
        if name == "cascade_request_duration_seconds_bucket"
    )
    assert len(bounds) == 22
    for bound_s, count in bounds:
        assert count == sum(ms <= 1000 * bound_s * (1 + 1e-12) for ms in times_ms)
    total_s = found["cascade_request_duration_seconds_sum", (("method", "Recommend"),)]
    assert total_s == pytest.approx(sum(times_ms) / 1000)


def test_nothing_that_ended_is_missing_however_many_calls_are_counted_together() -> None:
    telemetry = Telemetry()
    for calls in range(1, 400):
        observed(telemetry, 1.0, select=0.5)
        if calls % 57 == 0:
            assert telemetry.codes() == {"OK": calls}
            assert {each.stage: each.count for each in telemetry.latencies()} == {"select": calls, "recommend": calls}


def test_a_counter_that_nobody_described_is_shown_too() -> None:
    telemetry = Telemetry()
    telemetry.add("arms", ("home", "b"))
    telemetry.add("wonders", "blue", 2)
    found = exposed(telemetry)
    assert found["cascade_wonders_total", (("label", "blue"),)] == 2
    assert found["cascade_arms_total", (("label", "home/b"),)] == 1


def test_what_cannot_be_read_leaves_the_rest() -> None:
    telemetry = Telemetry()

    def broken() -> Iterator[Reading]:
        yield Reading("first", 1.0, "Read before it broke")
        raise OSError("the disk is gone")

    telemetry.readers += (broken, lambda: [Reading("last", 2.0, "Read all the same")])
    found = exposed(telemetry)
    assert (found["cascade_first", ()], found["cascade_last", ()]) == (1, 2)


def test_every_metric_has_a_name_that_prometheus_likes() -> None:
    telemetry = Telemetry()
    observed(telemetry, 1.0)
    for name, _ in exposed(telemetry):
        assert re.fullmatch(r"cascade_[a-z_]+(_total|_seconds_(bucket|sum|count))", name), name


def test_a_call_is_current_only_while_it_goes() -> None:
    telemetry = Telemetry()
    heard: list[str] = []
    telemetry.listeners.append(lambda ended: heard.append(f"{ended.request_id} {current_call().request_id}"))
    call = Call("Recommend")
    telemetry.begin(call)
    current_call().request_id = "r1"
    telemetry.end(call)
    assert heard == ["r1 r1"]
    assert current_call().request_id == ""


def test_a_listener_that_fails_takes_no_answer_away(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_call: Call) -> None:
        raise OSError("the collector is gone")

    monkeypatch.setattr("serving.server.SlowCalls", lambda _slow_ms: fail)
    wire = RecommendRequest(context=AT).SerializeToString()
    with serving(tmp_path, monkeypatch) as address, grpc.insecure_channel(address.target) as channel:
        assert refusal(channel, "Recommender/Recommend", wire)[0] == "OK"
        assert refusal(channel, "Recommender/Recommend", b"\xff")[0] == "INVALID_ARGUMENT"


def test_a_histogram_takes_its_largest_value_for_what_is_beyond_its_buckets() -> None:
    histogram = Histogram()
    histogram.observe([5e6, 7e6])
    assert (histogram.quantile(0.5), histogram.max_ms, histogram.count) == (7e6, 7e6, 2)


def certified(folder: Path, name: str) -> tuple[Path, Path]:
    """A certificate for localhost that signs itself, and its key."""
    certificate, key = folder / f"{name}.crt", folder / f"{name}.key"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2 -subj /CN=localhost"
    names = ["-addext", "subjectAltName=DNS:localhost", "-out", str(certificate), "-keyout", str(key)]
    subprocess.run([*command.split(), *names], check=True, capture_output=True)
    return certificate, key


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes certificates with openssl")
def test_over_tls_a_renewed_certificate_is_shown_from_the_next_scrape_on(tmp_path: Path) -> None:
    def scrape(authority: Path) -> str:
        trusted = ssl.create_default_context(cafile=authority)
        with urlopen(f"https://localhost:{endpoint.port}/metrics", timeout=20, context=trusted) as reply:
            return str(reply.read().decode())

    first, second = certified(tmp_path, "first"), certified(tmp_path, "second")
    tls = (tmp_path / "tls.crt", tmp_path / "tls.key")
    for path, made in zip(tls, first, strict=True):
        shutil.copy(made, path)
    endpoint = MetricsEndpoint(Telemetry(), host="127.0.0.1", port=0, tls=tls)
    try:
        assert "cascade_requests_total" in scrape(first[0])
        for path, made in zip(tls, second, strict=True):
            shutil.copy(made, path)
        assert "cascade_requests_total" in scrape(second[0])
        tls[0].write_text("half a certificate")
        assert "cascade_requests_total" in scrape(first[0])
    finally:
        endpoint.close()
    with pytest.raises(ValueError, match=r"^metrics_port: "):
        MetricsEndpoint(Telemetry(), host="127.0.0.1", port=0, tls=tls)
