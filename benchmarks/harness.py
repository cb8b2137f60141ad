"""Compares two ways to do the same work so that the ratio survives a noisy machine.

Both sides run in one process, in blocks of ours, peer, peer, ours: whatever drifts slowly (clock rate, neighbours,
caches) falls on both alike. A block's ratio is the peer's time over ours; the median over blocks is reported with a
bootstrap interval of that median. Between blocks a fixed piece of work, the canary, is timed: where it varies much,
so did the machine.

Shape letters: B blocks, R resamples.
"""

import argparse
import json
import math
import os
import platform
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

Unit = Literal["s", "ms", "us", "/s"]
_PER_SECOND: dict[Unit, float] = {"s": 1, "ms": 1e3, "us": 1e6}
_VERSIONS = ("numpy", "torch", "faiss-cpu", "faiss-gpu", "tantivy", "polars", "hnswlib", "usearch", "scann", "implicit")
_RESAMPLES = 2000
LOUD = 1.25
"""Noise from which a report says that the machine was busy."""


@dataclass(frozen=True, slots=True)
class Side:
    """One way to do the work."""

    name: str
    run: Callable[[], object]


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of a benchmark's table. Without a peer, `ratio` and its bounds are None."""

    name: str
    unit: Unit
    ours: float
    """Median over blocks; in s, ms or us for one unit of work, or units of work a second."""
    peer_name: str = ""
    peer: float | None = None
    ratio: float | None = None
    """How many times as long the peer takes: above 1 ours is faster."""
    low: float | None = None
    high: float | None = None
    """95% bootstrap interval of the ratio."""
    blocks: int = 0
    p99: float | None = None
    """Of single measurements; only where there is no peer."""
    note: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What one benchmark found."""

    name: str
    quick: bool
    figures: tuple[Figure, ...]
    skipped: dict[str, str] = field(default_factory=dict)
    """Peer to why it was left out."""
    noise: float = math.nan
    """Slowest tenth of the canary's times over their median."""
    machine: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    seconds: float = 0.0
    summary: dict[str, float] = field(default_factory=dict)
    """See `Bench`."""
    notes: tuple[str, ...] = ()
    """Lines below the table."""


class Bench:
    """Collects the figures of one benchmark.

    Args:
        blocks: of each comparison; each is four measurements.
        least_s: how long one measurement takes at least; quicker work is repeated in it.
        clock: seconds.
    """

    def __init__(
        self,
        name: str,
        *,
        quick: bool,
        blocks: int,
        least_s: float,
        seed: int = 0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        self.name = name
        self.quick = quick
        self._blocks = blocks
        self._least_s = least_s
        self._random = np.random.default_rng(seed)
        self._clock = clock
        self._started_s = clock()
        self._figures: list[Figure] = []
        self._skipped: dict[str, str] = {}
        self._notes: list[str] = []
        self._canary_s: list[float] = []
        self._canary_work = self._random.random(1 << 16)
        self.summary: dict[str, float] = {}
        """Figures by names of their own, which programs look for at the top of the JSON object."""

    def compare(self, name: str, ours: Side, peer: Side, *, unit: Unit, per: int = 1, note: str = "") -> Figure:
        """Time both sides and keep the figure.

        Args:
            per: units of work in one call of either side.
        """
        ours.run()
        peer.run()
        repeats = self._repeats(min(self._timed_s(ours, 1), self._timed_s(peer, 1)))
        time_B4 = np.empty((self._blocks, 4))
        for time_4 in time_B4:
            self._canary()
            for at, side in enumerate((ours, peer, peer, ours)):
                time_4[at] = self._timed_s(side, repeats)
        ours_s_B = (time_B4[:, 0] + time_B4[:, 3]) / (2 * repeats * per)
        peer_s_B = (time_B4[:, 1] + time_B4[:, 2]) / (2 * repeats * per)
        return self.pair(name, ours_s_B, peer_s_B, peer_name=peer.name, unit=unit, note=note)

    def pair(
        self,
        name: str,
        ours_s_B: NDArray[np.float64],
        peer_s_B: NDArray[np.float64],
        *,
        peer_name: str,
        unit: Unit,
        note: str = "",
    ) -> Figure:
        """Keep a figure of times measured side by side, one of each side for each block."""
        ratio, low, high = median_interval(peer_s_B / ours_s_B, random=self._random)
        figure = Figure(
            name,
            unit,
            _in(unit, float(np.median(ours_s_B))),
            peer_name,
            _in(unit, float(np.median(peer_s_B))),
            ratio,
            low,
            high,
            len(ours_s_B),
            note=note,
        )
        self._figures.append(figure)
        return figure

    def record(self, name: str, taken_s_N: NDArray[np.float64], *, unit: Literal["ms", "us"], note: str = "") -> None:
        """Keep a figure that has no peer: median and 99th percentile of what single calls took."""
        self._canary()
        middle, p99 = (_in(unit, float(np.quantile(taken_s_N, share))) for share in (0.5, 0.99))
        self._figures.append(Figure(name, unit, middle, p99=p99, note=note))

    def keep(self, figure: Figure) -> None:
        """Keep a figure that somebody else has measured."""
        self._figures.append(figure)

    def skip(self, peer: str, why: str) -> None:
        """Name a peer that is left out."""
        self._skipped[peer] = why

    def note(self, text: str) -> None:
        """Keep a line for below the table."""
        self._notes.append(text)

    def installed(self, package: str) -> bool:
        """Whether a peer can be imported; if not, it is named as skipped."""
        if find_spec(package) is None:
            self.skip(package, f"not installed (pip install {package})")
            return False
        return True

    def report(self) -> Report:
        slowest = float(np.quantile(self._canary_s, 0.9) / np.median(self._canary_s)) if self._canary_s else math.nan
        return Report(
            self.name,
            self.quick,
            tuple(self._figures),
            dict(self._skipped),
            slowest,
            _machine(),
            _versions(),
            self._clock() - self._started_s,
            dict(self.summary),
            tuple(self._notes),
        )

    def _timed_s(self, side: Side, repeats: int) -> float:
        started_s = self._clock()
        for _ in range(repeats):
            side.run()
        return self._clock() - started_s

    def _repeats(self, once_s: float) -> int:
        return max(1, math.ceil(self._least_s / max(once_s, 1e-9)))

    def _canary(self) -> None:
        started_s = self._clock()
        for _ in range(8):
            np.sort(self._canary_work)
        self._canary_s.append(self._clock() - started_s)


def median_interval(
    value_B: NDArray[np.float64], *, random: np.random.Generator, confidence: float = 0.95
) -> tuple[float, float, float]:
    """The median with the percentile bootstrap interval of it (Efron and Tibshirani 1993, chapter 13)."""
    resampled_RB = value_B[random.integers(len(value_B), size=(_RESAMPLES, len(value_B)))]
    tail = (1 - confidence) / 2
    low, high = np.quantile(np.median(resampled_RB, axis=1), [tail, 1 - tail])
    return float(np.median(value_B)), float(low), float(high)


def main(name: str, measure: Callable[[Bench], None], summary: str, arguments: Sequence[str] | None = None) -> None:
    """The command line of a benchmark: measure, print the table, then the JSON object as the last line."""
    parser = argparse.ArgumentParser(prog=f"python -m benchmarks.{name}", description=summary)
    parser.add_argument("--quick", action="store_true", help="small sizes and few blocks: does it run, not how fast")
    given = parser.parse_args(arguments)
    bench = Bench(name, quick=given.quick, blocks=5 if given.quick else 25, least_s=0.02 if given.quick else 0.1)
    measure(bench)
    print_report(bench.report())


def print_report(report: Report) -> None:
    """A readable table, then one line of JSON."""
    print(f"{report.name}{' (quick)' if report.quick else ''}: {', '.join(report.machine.values())}")
    print(f"  {', '.join(f'{package} {number}' for package, number in report.versions.items())}")
    lines = [("what", "ours", "peer", "", "peer / ours", "95% interval"), *(cells(figure) for figure in report.figures)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line, figure in zip(lines, (None, *report.figures), strict=True):
        padded = [text.ljust(width) for text, width in zip(line, widths, strict=True)]
        print(f"  {'  '.join([*padded, remarks(figure) if figure else ''])}".rstrip())
    for peer, why in report.skipped.items():
        print(f"  {peer}: {why}")
    for note in report.notes:
        print(f"  {note}")
    if report.noise > LOUD:
        print(f"  {busy(report.noise)}")
    print(f"  {report.seconds:.0f} s", flush=True)
    found = asdict(report)
    print(json.dumps(finite(found | found.pop("summary"))), flush=True)


def cells(figure: Figure) -> tuple[str, str, str, str, str, str]:
    """A figure as cells: what, ours, peer, the peer's name, ratio, interval."""
    ours = _shown(figure.ours, figure.unit)
    if figure.peer is None or figure.ratio is None or figure.low is None or figure.high is None:
        return figure.name, ours, "", "", "", ""
    return (
        figure.name,
        ours,
        _shown(figure.peer, figure.unit),
        figure.peer_name,
        f"{figure.ratio:.2f}",
        f"{figure.low:.2f}-{figure.high:.2f}" if figure.blocks > 1 else "one run",
    )


def remarks(figure: Figure) -> str:
    """What stands behind the cells."""
    p99 = "" if figure.p99 is None else f"p99 {_shown(figure.p99, figure.unit)}"
    return "; ".join(part for part in (p99, figure.note) if part)


def busy(noise: float) -> str:
    """What a report says of a machine that had other things to do."""
    return f"the machine was busy: one canary in ten took {noise:.2f} times the median or longer"


def finite(value: Any) -> Any:
    """The value with None for every number that JSON has no word for."""
    if isinstance(value, dict):
        return {name: finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [finite(each) for each in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _in(unit: Unit, seconds: float) -> float:
    return 1 / seconds if unit == "/s" else seconds * _PER_SECOND[unit]


def _shown(value: float, unit: Unit) -> str:
    return f"{value:,.0f}{unit}" if unit == "/s" else f"{value:.3g} {unit}"


def _machine() -> dict[str, str]:
    return {
        "processor": _processor(),
        "cores": f"{len(os.sched_getaffinity(0)) if hasattr(os, 'sched_getaffinity') else os.cpu_count()} cores",
        "system": f"{platform.system()} {platform.machine()}",
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    named = next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
    return named or platform.processor() or "unknown processor"


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _VERSIONS:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
