"""The page of a night: how far it came, what every gate found, and what became of it.

A report is a tree of plain values, as `training.nightly.line` leaves it; NaN is None.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from training.durable import write_texts
from training.reports import plots
from training.reports.report import environment, figure, plain


def write(report: Mapping[str, Any], folder: Path) -> Path:
    """Write `nightly.html` and `nightly.json`, each whole or not at all; returns the page's path."""
    report = plain(report)
    write_texts(folder, {"nightly.json": json.dumps(report, indent=2) + "\n", "nightly.html": html(report)})
    return folder / "nightly.html"


def html(report: Mapping[str, Any]) -> str:
    """The page, complete in itself."""
    red = sum(not gate["passed"] for gate in report["gates"])
    seconds = {each["stage"]: each["seconds"] for each in report["stages"] if each["state"] == "done"}
    return (
        environment()
        .get_template("nightly.html.j2")
        .render(
            report=report,
            tiles=[
                ("verdict", report["verdict"], f"in force: {report['current'] or 'nothing'}"),
                ("impressions", figure(report["impressions"]), f"as of {report['as_of']}"),
                ("gates", figure(len(report["gates"])), f"{red} red"),
                ("stages done", figure(len(seconds)), f"of {len(report['stages'])}"),
            ],
            picture=Markup(plots.bars(seconds, "seconds", name="seconds")) if any(seconds.values()) else "",
        )
    )


def told(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report in a few lines, for a terminal."""
    return {
        "generation": report["generation"] or "none",
        "current": report["current"] or "none",
        "impressions": report["impressions"],
        "stages done": sum(each["state"] == "done" for each in report["stages"]),
        "stages that were done": sum(each["state"] == "cached" for each in report["stages"]),
        "gates passed": sum(gate["passed"] for gate in report["gates"]),
        **{name: value for name, value in report["metrics"].items() if value is not None},
    }
