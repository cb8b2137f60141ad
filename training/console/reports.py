"""The last reports of the loop's jobs: pages that are complete in themselves, and what they say in sentences."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.reports.findings import Finding, findings

_MOST = 4
_NAMES = {
    "nightly": "The last night",
    "monitor": "Monitoring",
    "experiment": "Experiment",
    "ope": "Off-policy estimate",
    "report": "The run",
}


@dataclass(frozen=True, slots=True)
class Report:
    name: str
    """Of its address."""
    title: str
    made_ms: int
    findings: tuple[Finding, ...]
    """The first of them; empty where the JSON beside the page says nothing."""


def reports(pages: Sequence[Path]) -> list[Report]:
    """Those that exist, in this order."""
    return [
        Report(
            name=page.stem,
            title=_NAMES.get(page.stem, page.stem),
            made_ms=int(1000 * page.stat().st_mtime),
            findings=tuple(_findings(page))[:_MOST],
        )
        for page in pages
        if page.is_file()
    ]


def _findings(page: Path) -> list[Finding]:
    try:
        if page.stem == "report":
            return findings(json.loads(page.with_name("summary.json").read_text()))
        told: Mapping[str, Any] = json.loads(page.with_suffix(".json").read_text())
        if page.stem == "nightly":
            return [Finding("bad" if told["verdict"] == "stopped" else "good", f"{told['verdict']}: {told['told']}")]
        return [Finding(each["verdict"], each["text"]) for each in told["findings"]]
    except (OSError, ValueError, KeyError, TypeError):
        return []  # the page itself says it
