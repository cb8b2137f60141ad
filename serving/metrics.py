"""The server as Prometheus sees it: what `Telemetry` holds, and how things stand at the moment of the scrape.

`docs/observability.md` says what each metric means and what to do about it.
"""

import logging
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from serving.telemetry import Family, Telemetry

_HISTOGRAMS: dict[Family, tuple[str, str, str]] = {
    "call": ("cascade_request_duration_seconds", "method", "Calls that were answered OK, from first byte to answer"),
    "stage": ("cascade_stage_duration_seconds", "stage", "Stages of a slate; wait is the queue"),
    "source": ("cascade_source_duration_seconds", "source", "Sources that answered, from when they were asked"),
}
_COUNTERS: dict[str, tuple[str, tuple[str, ...], str]] = {
    "calls": ("cascade_requests_started", ("method",), "Calls begun"),
    "handled": ("cascade_requests", ("method", "code"), "Calls that have ended, by gRPC status"),
    "degraded": ("cascade_degraded", ("reason",), "Answers that a fallback had a part in, by bit of Degraded"),
    "named": ("cascade_source_rows", ("source",), "Candidates that a source named"),
    "skipped": ("cascade_source_skipped", ("source", "reason"), "Times that a source was left out of an answer"),
    "defaulted": ("cascade_features_defaulted", ("feature",), "Answers and changed items with a feature's default"),
    "repeated": ("cascade_replies_repeated", ("kept",), "Answers to a request id that had been answered before"),
    "log": ("cascade_log_writes", ("result",), "Impressions and outcomes that the log took, and writes that failed"),
    "events": ("cascade_events", ("status",), "Outcomes that were sent, by what became of them"),
    "catalog": ("cascade_catalog_changes", ("status",), "Changed items by what became of them"),
    "failed": ("cascade_requests_refused", ("code",), "Calls that failed before they reached a method"),
    "shed": ("cascade_requests_shed", ("reason",), "Calls turned away, or whose turn never came"),
    "generations": ("cascade_generation_changes", ("result",), "Generations that were activated, and refused"),
}
"""Counters of `Telemetry` by name: the metric, its labels, what it counts. Others appear as cascade_<counter>."""


_LOGGER = logging.getLogger("cascade.serving")


class TelemetryCollector(Collector):
    """Makes metrics of what is counted anyway, so that no request pays twice."""

    def __init__(self, telemetry: Telemetry) -> None:
        self._telemetry = telemetry

    def collect(self) -> Iterator[Metric]:
        for family, (name, label, about) in _HISTOGRAMS.items():
            histogram = HistogramMetricFamily(name, about, labels=[label])
            for value, (counts, sum_s) in self._telemetry.histograms(family).items():
                histogram.add_metric([value], [(floatToGoString(bound_s), n) for bound_s, n in counts], sum_s)
            yield histogram
        counters = self._telemetry.counters()
        for counter in dict.fromkeys((*_COUNTERS, *counters)):
            name, labels, about = _COUNTERS.get(counter, (f"cascade_{counter}", ("label",), f"The counter {counter}"))
            metric = CounterMetricFamily(name, about, labels=labels)
            for label, n in counters.get(counter, {}).items():
                values = (label,) if isinstance(label, str) else label
                metric.add_metric(values if len(values) == len(labels) else ["/".join(values)], n)
            yield metric
        yield from self._gauges().values()

    def _gauges(self) -> dict[str, GaugeMetricFamily]:
        """By name. What cannot be read now is missing, the rest is there."""
        gauges: dict[str, GaugeMetricFamily] = {}
        for read in self._telemetry.readers:
            try:
                for each in read():
                    name, value = each.label or ("", "")
                    names = [name] if name else []
                    gauge = GaugeMetricFamily(f"cascade_{each.name}", each.about, labels=names)
                    gauges.setdefault(each.name, gauge).add_metric([value] if name else [], each.value)
            except Exception as error:
                _LOGGER.warning("a metric cannot be read: %s", error)
        return gauges


class MetricsEndpoint:
    """Answers scrapes on a port of its own, on a thread, from when it is made until `close`.

    Args:
        port: 0 chooses a free one.

    Raises:
        ValueError: where the port cannot be had.
    """

    def __init__(self, telemetry: Telemetry, *, host: str, port: int) -> None:
        registry = CollectorRegistry()
        registry.register(TelemetryCollector(telemetry))
        ProcessCollector(registry=registry)
        GCCollector(registry=registry)
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except OSError as error:
            raise ValueError(f"metrics_port: {port} given, which cannot be had on {host}: {error}") from error
        self.port = int(self._server.server_port)

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()
