"""The last report as gauges for Prometheus, in the text that a node exporter's textfile collector reads."""

from collections.abc import Mapping
from typing import Any

from prometheus_client import CollectorRegistry, Gauge
from prometheus_client.exposition import generate_latest


def gauges(report: Mapping[str, Any]) -> str:
    """Every comparison, the alarms by section, the verdict, and how old it is.

    Args:
        report: see `training.monitoring.page.report`.
    """
    registry = CollectorRegistry()

    def gauge(name: str, text: str, *labels: str) -> Gauge:
        return Gauge(f"cascade_monitor_{name}", text, labels, registry=registry)

    names = ("section", "name", "statistic")
    value = gauge("value", "What was found: a distance, or the change since the reference.", *names)
    limit = gauge("limit", "What it must stay below.", *names)
    for check in report["checks"]:
        labels = [check[name] for name in names]
        for of, number in ((value, check["value"]), (limit, check["limit"])):
            of.labels(*labels).set(float("inf") if number is None else number)
    alarms = gauge("alarms", "Things that sound an alarm.", "section")
    for section, count in report["alarms"].items():
        alarms.labels(section).set(count)
    verdict = report["verdict"]
    gauge("retrain", "1 where training anew is advised.").set(verdict["retrain"])
    gauge("held_back", "1 where it would be, if the data were sound.").set(
        bool(verdict["reasons"] and verdict["held_back_by"])
    )
    until = gauge("window_end_timestamp_seconds", "The end of what was looked at.")
    until.set(report["window"]["until_ms"] / 1000)
    return generate_latest(registry).decode()
