"""The page of a skew report: which features differ, how often, by how much, and whether that is within the budget."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from markupsafe import Markup

from training.durable import write_texts
from training.gates import GateSettings, skew_gates
from training.reports import plots
from training.reports.report import environment, figure, plain
from training.skew import Skew

_SHOWN = 5
"""Values of a list that are shown."""
_DRAWN = 30
"""Features that are drawn, those that differ most."""


def described(skew: Skew, gates: GateSettings, *, log: Path) -> dict[str, Any]:
    """The figures as a tree of plain values, each feature with its budget."""
    verdict = {gate.name.rpartition(".")[2]: gate for gate in skew_gates(gates, skew.metrics)}
    features = []
    for each in skew.features:
        gate = verdict.get(each.name)
        features.append(
            asdict(each)
            | {"share": each.share, "passed": gate is None or gate.passed, "limit": "" if gate is None else gate.limit}
        )
    whole = {"log": log, "requests": skew.requests, "exposures": skew.exposures, "left_out": skew.left_out}
    told: dict[str, Any] = plain(whole | {"features": features})
    return told


def write(report: Mapping[str, Any], folder: Path) -> Path:
    """Write `skew.html` and `skew.json`, each whole or not at all; returns the page's path."""
    write_texts(folder, {"skew.json": json.dumps(report, indent=2) + "\n", "skew.html": html(report)})
    return folder / "skew.html"


def html(report: Mapping[str, Any]) -> str:
    """The page, complete in itself."""
    made = environment()
    made.filters["short"] = _short
    differing = _differing(report)
    shares = {each["name"]: 100 * each["share"] for each in differing[:_DRAWN]}
    left_out = sum(report["left_out"].values())
    over = sum(not each["passed"] for each in differing)
    return made.get_template("skew.html.j2").render(
        report=report,
        tiles=[
            ("requests", figure(report["requests"]), f"{figure(left_out)} left out: their generation is gone"),
            ("exposures", figure(report["exposures"]), "items shown"),
            ("features that differ", figure(len(differing)), f"of {len(report['features'])}"),
            ("over their budget", figure(over), "none must be, to be published"),
        ],
        differing=differing,
        equal=[each["name"] for each in report["features"] if not each["differing"]],
        picture=Markup(plots.bars(shares, "percent of the rows", name="skew")) if differing else "",
    )


def told(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report in a few lines, for a terminal."""
    rows = {
        each["name"]: f"{100 * each['share']:.3g}% of {each['rows']:,} rows"
        f"{'' if each['passed'] else ', must be ' + each['limit']}"
        for each in _differing(report)
    }
    return {
        "requests": report["requests"],
        "exposures": report["exposures"],
        "left out, generation gone": sum(report["left_out"].values()),
        "features": len(report["features"]),
        "features that differ": len(rows),
        **rows,
    }


def _differing(report: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The features that differ, those over their budget first, then by share."""
    found = [each for each in report["features"] if each["differing"]]
    return sorted(found, key=lambda each: (each["passed"], -each["share"]))


def _short(value: Any) -> str:
    """Nine digits tell any two 32-bit floats apart."""
    if not isinstance(value, list):
        return f"{value:.9g}" if isinstance(value, float) else str(value)
    return ", ".join(_short(each) for each in value[:_SHOWN]) + (" ..." if len(value) > _SHOWN else "")
