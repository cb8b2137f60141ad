"""Runs every benchmark of times, each in a process of its own.

`closed_loop`, `estimates`, `search_world` and `faults` are run by themselves: they take a while.
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import LOUD, Figure, busy, cells, remarks

NAMES = (
    "ann",
    "gpu",
    "policy",
    "tower",
    "incremental",
    "ranker",
    "retrieval",
    "pipeline",
    "search",
    "point_in_time",
    "replay",
    "swap",
    "serving",
    "batch",
)
PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
BEGIN, END = "<!-- benchmarks: begin -->", "<!-- benchmarks: end -->"


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="small sizes and few blocks: does it run, not how fast")
    parser.add_argument("--write", action="store_true", help=f"rewrite the tables of docs/{PAGE.name}")
    given = parser.parse_args()
    reports = []
    for name in NAMES:
        command = [sys.executable, "-m", f"benchmarks.{name}", *(["--quick"] if given.quick else [])]
        run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
        if run.returncode:
            print(f"benchmarks.{name} ended with code {run.returncode}", file=sys.stderr)
            return 1
        *table, last = run.stdout.splitlines()
        print("\n".join(table), flush=True)
        reports.append(json.loads(last))
    if given.write:
        PAGE.write_text(rewritten(PAGE.read_text(), tables(reports)))
    print(json.dumps({"benchmarks": reports}))
    return 0


def rewritten(page: str, between: str) -> str:
    """The page with other text between its markers.

    Raises:
        ValueError: where a marker is missing or they are in the wrong order.
    """
    begin, end = page.find(BEGIN), page.find(END)
    if not 0 <= begin < end:
        raise ValueError(f"the page needs the line {BEGIN} and, after it, the line {END}")
    return f"{page[: begin + len(BEGIN)]}\n\n{between}\n{page[end:]}"


def tables(reports: Sequence[dict[str, Any]]) -> str:
    """The reports, as the benchmarks wrote them, in Markdown."""
    lines: list[str] = []
    for report in reports:
        versions = ", ".join(f"{package} {number}" for package, number in report["versions"].items())
        lines += [f"### {report['name']}{' (quick)' if report['quick'] else ''}", ""]
        lines += ["| what | ours | peer | | peer / ours | 95% interval | |", "|---|--:|--:|---|--:|--:|---|"]
        for each in report["figures"]:
            figure = Figure(**each)
            lines.append(f"| {' | '.join((*cells(figure), remarks(figure)))} |")
        lines += ["", f"{', '.join(report['machine'].values())}; {versions}."]
        if (report["noise"] or 0) > LOUD:
            lines.append(f"While it ran, {busy(report['noise'])}.")
        if report["skipped"]:
            lines.append(f"Left out: {'; '.join(f'{peer}, {why}' for peer, why in report['skipped'].items())}.")
        lines += [f"{note}." for note in report["notes"]]
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
