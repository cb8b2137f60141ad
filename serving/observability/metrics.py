"""The server as Prometheus sees it: what `Telemetry` holds, and how things stand at the moment of the scrape.

`docs/observability.md` says what each metric means, `docs/runbook.md` what to do about it.
"""

import math
import ssl
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from protos.impression_pb2 import Degraded
from serving.observability.telemetry import Family, Label, Telemetry

_HISTOGRAMS: dict[Family, tuple[str, str, str]] = {
    "call": ("cascade_request_duration_seconds", "method", "Calls that were answered OK, from first byte to answer"),
    "stage": ("cascade_stage_duration_seconds", "stage", "Stages of a slate; wait is the queue"),
    "source": ("cascade_source_duration_seconds", "source", "Sources that answered, from when they were asked"),
}


@dataclass(frozen=True, slots=True)
class _Counter:
    """How a counter of `Telemetry` is shown."""

    name: str
    labels: tuple[str, ...]
    about: str
    from_start: tuple[str, ...] = ()
    """Labels that are shown before they were counted: a rate never sees the first of a kind."""


_COUNTERS = {
    "calls": _Counter("cascade_requests_started", ("method",), "Calls begun"),
    "handled": _Counter("cascade_requests", ("method", "code"), "Calls that have ended, by gRPC status"),
    "failed": _Counter("cascade_requests_refused", ("code",), "Calls that failed before they reached a method"),
    "shed": _Counter("cascade_requests_shed", ("reason",), "Calls turned away, or whose turn never came"),
    "degraded": _Counter(
        "cascade_degraded",
        ("reason",),
        "Answers that a fallback had a part in, by bit of Degraded",
        tuple(name for name, bit in Degraded.items() if bit),
    ),
    "named": _Counter("cascade_source_rows", ("source",), "Candidates that a source named"),
    "skipped": _Counter("cascade_source_skipped", ("source", "reason"), "Answers that were made without a source"),
    "defaulted": _Counter(
        "cascade_features_defaulted", ("feature",), "Answers and changed items with a feature's default", ("history",)
    ),
    "state": _Counter(
        "cascade_user_state", ("what",), "Rows of another version passed over, waits for another server's answer"
    ),
    "shadow": _Counter("cascade_shadows", ("result",), "Answers computed beside others, by what became of them"),
    "arm_failed": _Counter("cascade_arm_failures", ("arms",), "Slates that the arms of a request could not make"),
    "repeated": _Counter("cascade_replies_repeated", ("kept",), "Answers given before, by where they were kept"),
    "log": _Counter(
        "cascade_log_writes", ("result",), "Rows that the log took, and writes that failed", ("stored", "failed")
    ),
    "events": _Counter("cascade_events", ("status",), "Outcomes that were sent, by what became of them"),
    "catalog": _Counter("cascade_catalog_changes", ("status",), "Changed items, by what became of them"),
    "generations": _Counter(
        "cascade_generation_changes",
        ("result",),
        "Generations that were activated, and refused",
        ("activated", "refused"),
    ),
}
"""Others appear as cascade_<counter>."""


class TelemetryCollector(Collector):
    """Makes metrics of what is counted anyway, so that no request pays twice."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry

    def collect(self) -> Iterator[Metric]:
        for family, (name, label, about) in _HISTOGRAMS.items():
            histogram = HistogramMetricFamily(name, about, labels=[label])
            for value, (within, sum_s) in self._telemetry.histograms(family).items():
                buckets = [("+Inf" if math.isinf(bound_s) else str(bound_s), n) for bound_s, n in within]
                histogram.add_metric([value], buckets, sum_s)
            yield histogram
        counters = self._telemetry.counters()
        for counter in dict.fromkeys((*_COUNTERS, *counters)):
            shown = _COUNTERS.get(counter, _Counter(f"cascade_{counter}", ("label",), f"The counter {counter}"))
            metric = CounterMetricFamily(shown.name, shown.about, labels=shown.labels)
            counts: dict[Label, int] = {**dict.fromkeys(shown.from_start, 0), **counters.get(counter, {})}
            for each, n in counts.items():
                values = (each,) if isinstance(each, str) else each
                metric.add_metric(values if len(values) == len(shown.labels) else ["/".join(values)], n)
            yield metric
        gauges: dict[str, GaugeMetricFamily] = {}
        for reading in self._telemetry.readings():
            name, value = reading.label or ("", "")
            gauge = GaugeMetricFamily(f"cascade_{reading.name}", reading.about, labels=[name] if name else [])
            gauges.setdefault(reading.name, gauge).add_metric([value] if name else [], reading.value)
        yield from gauges.values()


class MetricsEndpoint:
    """Answers scrapes on a port of its own, on a thread, from when it is made until `close`.

    Args:
        port: 0 chooses a free one.
        tls: the server's certificate and its key, PEM, read again at every handshake; None for plain HTTP.

    Raises:
        ValueError: where the port cannot be had, or the certificate not be used.
    """

    def __init__(self, telemetry: Telemetry, *, host: str, port: int, tls: tuple[Path, Path] | None = None) -> None:
        registry = CollectorRegistry()
        registry.register(TelemetryCollector(telemetry))
        ProcessCollector(registry=registry)
        GCCollector(registry=registry)
        certificate, key = map(str, tls) if tls is not None else (None, None)
        try:
            if tls is not None:
                _context(tls)  # before there is a port that would have to be given back
            self._server, self._thread = start_http_server(port, host, registry, certificate, key)
        except OSError as error:
            raise ValueError(f"metrics_port: {port} given, which cannot be had on {host}: {error}") from error
        if tls is not None:
            cast(ssl.SSLSocket, self._server.socket).context.sni_callback = partial(_renewed, tls)
        self.port = int(self._server.server_port)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _context(tls: tuple[Path, Path]) -> ssl.SSLContext:
    """
    Raises:
        OSError: where the files cannot be used.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(*tls)
    return context


def _renewed(tls: tuple[Path, Path], connection: ssl.SSLObject, _name: str, _context_before: ssl.SSLContext) -> None:
    """Have the handshake use the files as they are; where they cannot be used, what was read at the start."""
    with suppress(OSError):
        connection.context = _context(tls)
