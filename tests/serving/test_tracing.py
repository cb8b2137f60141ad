"""Spans of calls, as an exporter gets them."""

import builtins
import importlib
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import grpc
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from serving_cases import NOW_MS, Switch, load_fakes, publish, settings

from index.generations import GenerationStore
from protos.recommender_pb2 import Context, RecommendRequest
from serving.generations import Generations
from serving.observability.tracing import Spans
from serving.server import Server

CALLERS_TRACE, CALLERS_SPAN = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
WIRE = RecommendRequest(context=Context(client_time_ms=NOW_MS), request_id="r1").SerializeToString()
Metadata = tuple[tuple[str, str], ...]


def spans_of(
    folder: Path,
    patch: pytest.MonkeyPatch,
    *calls: tuple[bytes, Metadata],
    share: float,
    switch: Switch | None = None,
) -> list[ReadableSpan]:
    """What is exported of these calls."""
    load_fakes(patch, switch)
    store = GenerationStore(folder / "generations")
    store.activate(publish(store, 1), time_ms=NOW_MS)
    server = Server(Generations(store), state=None, log=None, settings=settings(folder))
    exporter = InMemorySpanExporter()
    spans = Spans(exporter, share=share)
    server.telemetry.listeners.append(spans.record)
    try:
        with grpc.insecure_channel(server.start().target) as channel:
            ask: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/cascade.v1.Recommender/Recommend")
            for wire, metadata in calls:
                try:
                    ask(wire, timeout=60, metadata=metadata)
                except grpc.RpcError:
                    continue
    finally:
        server.stop()
    spans.close()
    return list(exporter.get_finished_spans())


def test_a_call_is_a_span_with_its_stages_below_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    switch = Switch(fail=frozenset({"ranker"}))
    *stages, whole = spans_of(tmp_path, monkeypatch, (WIRE, ()), share=1.0, switch=switch)
    assert [stage.name for stage in stages][:4] == ["wait", "lookup", "state", "hydrate"]
    assert {"retrieve", "filter", "score", "select", "encode"} <= {stage.name for stage in stages}
    assert whole.name == "Recommend"
    assert whole.attributes is not None
    assert whole.attributes["cascade.request_id"] == "r1"
    assert str(whole.attributes["cascade.generation"]).startswith("000001-")
    assert whole.attributes["cascade.degraded"] == ("DEGRADED_RANKER_SKIPPED",)
    assert whole.parent is None
    at = whole.start_time
    for stage in stages:
        assert stage.parent is not None
        assert stage.parent.span_id == whole.context.span_id
        assert at is not None
        assert stage.start_time is not None
        assert stage.end_time is not None
        assert at <= stage.start_time <= stage.end_time
        at = stage.end_time
    assert at is not None
    assert whole.end_time is not None
    assert at <= whole.end_time + 1000


@pytest.mark.parametrize(("flag", "exported"), [("01", True), ("00", False)])
def test_the_callers_trace_is_continued_and_its_decision_followed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, flag: str, exported: bool
) -> None:
    metadata = (("traceparent", f"00-{CALLERS_TRACE}-{CALLERS_SPAN}-{flag}"),)
    share = 0.0 if exported else 1.0
    found = [
        each for each in spans_of(tmp_path, monkeypatch, (WIRE, metadata), share=share) if each.name == "Recommend"
    ]
    assert len(found) == exported
    for span in found:
        assert span.parent is not None
        assert f"{span.context.trace_id:032x}" == CALLERS_TRACE
        assert f"{span.parent.span_id:016x}" == CALLERS_SPAN


def test_a_refused_call_is_a_span_with_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (span,) = spans_of(tmp_path, monkeypatch, (b"\xff", ()), share=1.0)
    assert span.status.status_code == StatusCode.ERROR
    assert span.attributes is not None
    assert span.attributes["rpc.response.status_code"] == "INVALID_ARGUMENT"


def test_no_share_exports_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert spans_of(tmp_path, monkeypatch, (WIRE, ()), share=0.0) == []


def test_without_the_package_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    find = builtins.__import__

    def lacking(name: str, *args: Any, **more: Any) -> ModuleType:
        if name.startswith("opentelemetry"):
            raise ImportError(f"No module named {name!r}")
        return find(name, *args, **more)

    monkeypatch.delitem(sys.modules, "serving.observability.tracing")
    monkeypatch.setattr(builtins, "__import__", lacking)
    with pytest.raises(ValueError, match=r"pip install 'cascade-ranking\[otel\]'"):
        importlib.import_module("serving.observability.tracing")


@pytest.mark.parametrize(
    ("changes", "name"),
    [
        ({"traces": "127.0.0.1:4317"}, "traces"),
        ({"traces_share": 1.5}, "traces_share"),
        ({"slow_ms": 0.0}, "slow_ms"),
        ({"log_format": "xml"}, "log_format"),
        ({"metrics_port": 70_000}, "metrics_port"),
    ],
)
def test_a_setting_out_of_bounds_is_named(tmp_path: Path, changes: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=rf"^{name}: .* allowed: "):
        replace(settings(tmp_path), **changes)
