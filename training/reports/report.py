"""The report of a run: one HTML page that needs no network, `summary.json` beside it, a table for the terminal."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, FunctionLoader, StrictUndefined
from markupsafe import Markup
from rich.table import Table

from training.durable import write_texts
from training.reports import drawing, plots
from training.reports.figures import Figures
from training.reports.findings import CALLS, findings, flat, number

_SECTIONS = {
    "reward": "reward per request",
    "search_reward": "reward per search",
    "requests": "requests over the wire",
    "replay": "replay",
    "ope": "off-policy estimate of the new policy",
    "retrieval": "retrieval",
    "ranker": "ranker",
    "index": "index",
    "latency_ms": "latency, ms",
}


@dataclass(frozen=True, slots=True)
class _Section:
    """Numbers under one heading, as text."""

    title: str
    columns: list[str]
    rows: list[tuple[str, list[str]]]


def write(summary: Mapping[str, Any], figures: Figures, folder: Path) -> Path:
    """Write `report.html`, `summary.json` and `figures.json` into a run's folder; returns the page's path.

    Each file appears whole or not at all. Numbers that are not finite become null in the JSON files.

    Args:
        summary: keys `reward.{random,popularity,cycle1,cycle2,oracle}`, `requests.{served,failed}`,
            `replay.{requests,mismatches}`, `ope.{estimate,low,high,truth,effective_sample_size}`, `retrieval.*`,
            `ranker.*`, `index.recall`, `latency_ms.<stage>.{p50,p99}`, `seconds`, `seed`; beside them `data`, and any
            other. The page leaves out what is absent.
    """
    summary = plain(summary)
    texts = {
        "report.html": html(summary, figures),
        "figures.json": json.dumps(plain(asdict(figures))),
        "summary.json": json.dumps(summary, indent=2) + "\n",
    }
    write_texts(folder, texts)
    return folder / "report.html"


def read(folder: Path) -> tuple[dict[str, Any], Figures]:
    """What `write` wrote.

    Raises:
        ValueError: where a run's folder holds no finished report.
    """
    found = []
    for name in ("summary.json", "figures.json"):
        path = folder / name
        try:
            found.append(json.loads(path.read_text()))
        except FileNotFoundError as error:
            raise ValueError(f"{folder} holds no {name}; `cascade demo` makes a run with a report") from error
        except json.JSONDecodeError as error:
            raise ValueError(f"{path} is not JSON: {error}") from error
    return found[0], Figures.from_json(found[1])


def html(summary: Mapping[str, Any], figures: Figures) -> str:
    """The page, complete in itself."""
    template = environment().get_template("report.html.j2")
    slates: dict[str, list[object]] = {}
    for slate in figures.slates:
        slates.setdefault(slate.request, []).append(slate)
    return template.render(
        data=summary.get("data", ""),
        seed=summary.get("seed"),
        seconds=number(summary, "seconds"),
        tiles=list(_tiles(summary)),
        findings=findings(summary),
        pictures=[{**each, "svg": Markup(each["svg"])} for each in _pictures(summary, figures)],
        slates=slates,
        sections=_sections(summary),
        is_world=math.isfinite(number(summary, "reward.oracle")),
    )


def environment() -> Environment:
    """What pages are made with: their templates, and `figure`, a number as a person reads it."""
    folder = files("training") / "templates"
    made = Environment(
        loader=FunctionLoader(lambda name: (folder / name).read_text()),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters["figure"] = figure
    return made


def terminal_table(summary: Mapping[str, Any]) -> Table:
    """The summary as one table for a terminal; a section with the same figures for several things has columns."""
    table = Table(box=None, pad_edge=False, show_header=False)
    table.add_column(overflow="fold")
    sections = _sections(plain(summary))
    for _ in range(max(len(section.columns) for section in sections)):
        table.add_column(justify="right")
    for section in sections:
        table.add_row()
        table.add_row(section.title, *section.columns, style="bold")
        for name, values in section.rows:
            table.add_row(f"  {name}", *values)
    return table


def _tiles(summary: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Headline figures: name, value, what to hold it against."""
    cycle1, cycle2 = number(summary, "reward.cycle1"), number(summary, "reward.cycle2")
    if math.isfinite(cycle2):
        yield "reward per request", figure(cycle2), f"cycle 1: {figure(cycle1)}"
    value, truth = number(summary, "ope.estimate"), number(summary, "ope.truth")
    if math.isfinite(value):
        slots = number(summary, "ope.slots")
        name = f"estimated before, slot{'s 1 to ' if slots > 1 else ' '}{slots:.0f}" if math.isfinite(slots) else ""
        beside = f"truth: {figure(truth)}" if math.isfinite(truth) else ""
        beside = f"refused; {beside}" if summary["ope"].get("refused") else beside
        yield name or "estimated before", figure(value), beside
    served, failed = number(summary, "requests.served"), number(summary, "requests.failed")
    if math.isfinite(served):
        yield "requests served", f"{served:,.0f}", f"failed: {figure(failed)}"
    requests, mismatches = number(summary, "replay.requests"), number(summary, "replay.mismatches")
    if math.isfinite(requests):
        yield "requests replayed", f"{requests:,.0f}", f"other answers: {figure(mismatches)}"
    if math.isfinite(recall := number(summary, "index.recall")):
        yield "index recall", f"{100 * recall:.1f}%", "of exact search"
    seen = next((each for each in ("client", "total") if each in summary.get("latency_ms", {})), "client")
    p50, p99 = number(summary, f"latency_ms.{seen}.p50"), number(summary, f"latency_ms.{seen}.p99")
    if math.isfinite(p50):
        yield "median latency", f"{figure(p50)} ms", f"p99: {figure(p99)} ms"


def _pictures(summary: Mapping[str, Any], figures: Figures) -> Iterator[dict[str, str]]:
    """Each figure with its title and with what to look at."""

    def picture(title: str, look: str, svg: str) -> dict[str, str]:
        return {"title": title, "look": look, "svg": svg}

    reward = {name: number(summary, f"reward.{name}") for name in summary.get("reward", {})}
    if any(math.isfinite(value) for value in reward.values()):
        yield picture(
            "What a request earns",
            "The oracle knows every user's taste; each cycle should stand closer to it than the one before.",
            plots.rewards(reward),
        )
    searches = {name: number(summary, f"search_reward.{name}") for name in summary.get("search_reward", {})}
    if any(math.isfinite(value) for value in searches.values()):
        yield picture(
            "What a search earns",
            "BM25 shows what matches best, whoever asks; the second cycle should earn more.",
            plots.rewards(searches),
        )
    if figures.estimates:
        truth, logged = number(summary, "ope.truth"), number(summary, "ope.logged")
        yield picture(
            "Off-policy estimates of cycle 2, from cycle 1's log",
            "Each bar is a 95% interval of the reward of the slots that the log reaches. It should hold the truth.",
            plots.estimates(
                figures.estimates,
                truth if math.isfinite(truth) else None,
                logged if math.isfinite(logged) else None,
            ),
        )
    if figures.recall:
        yield picture(
            "Retrieval: how much of what is liked it finds",
            "What retrieval misses, no ranker can bring back.",
            plots.recall(figures.recall),
        )
    if figures.reliability:
        yield picture(
            "Calibration: what was said and what happened",
            "On the dashed line, a stated 10% happens in 10% of cases. Larger points hold more impressions.",
            plots.reliability(figures.reliability),
        )
    if figures.slices:
        yield picture(
            "The ranker by parts: who and what it is worse for",
            "Exposures in brackets. A part whose AUC lies left of the dashed line is ordered worse than the whole; a "
            "point far beyond its grey bar is calibrated worse than so few exposures explain.",
            plots.slices(figures.slices),
        )
    if figures.examination:
        yield picture(
            "Position bias: who still looks at slot k",
            "The learned curve should follow the true one; then clicks low on the page count for what they are worth.",
            plots.examination(figures.examination),
        )
    if figures.training:
        yield picture(
            "Training of the ranker",
            "Validation that rises while training falls is overfitting.",
            plots.training(figures.training),
        )
    if summary.get("latency_ms"):
        yield picture(
            "Where a request's time goes",
            "Median and 99th percentile, at the right in milliseconds: the stages in their order, then whole calls.",
            plots.latency(_in_order(summary["latency_ms"])),
        )
    if figures.slate_metrics:
        yield picture(
            "What the slates are like",
            "A cycle that earns more by showing everybody the same few items would show here.",
            plots.slate_metrics(figures.slate_metrics),
        )


def _in_order(latency_ms: Mapping[str, Mapping[str, float]]) -> dict[str, Mapping[str, float]]:
    """Stages, then whole calls; without activating a generation, which no request waits for."""
    stages = {name: times for name, times in latency_ms.items() if name not in CALLS}
    return stages | {name: latency_ms[name] for name in CALLS if name in latency_ms and name != "activate"}


def _sections(summary: Mapping[str, Any]) -> list[_Section]:
    """Every number of the summary under its heading; what has the same figures for several things is in columns."""
    sections = []
    for key, title in _SECTIONS.items():
        tree = summary.get(key) or {}
        if key == "latency_ms":
            quantiles = ["p50", "p99"]
            rows = [(stage.replace("_", " "), [figure(at[each]) for each in quantiles]) for stage, at in tree.items()]
            sections.append(_Section(title, quantiles, rows))
        elif tree and all(isinstance(each, Mapping) for each in tree.values()):
            columns = {drawing.spaced(name): flat(part) for name, part in tree.items()}
            names = list(dict.fromkeys(name for part in columns.values() for name in part))
            rows = [(name, [figure(part.get(name)) for part in columns.values()]) for name in names]
            sections.append(_Section(title, list(columns), rows))
        else:
            sections.append(_Section(title, [""], [(drawing.spaced(n), [figure(v)]) for n, v in flat(tree).items()]))
    rest = {key: value for key, value in summary.items() if key not in _SECTIONS}
    sections.append(_Section("run", [""], [(name, [figure(value)]) for name, value in flat(rest).items()]))
    return [section for section in sections if section.rows]


def figure(value: object) -> str:
    """A value as a person reads it: three significant digits, whole numbers in full, a dash for nothing."""
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "-"
    if isinstance(value, float) and value != round(value) and abs(value) < 1000:
        return f"{value:.3g}"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:,.0f}"
    return str(value)


def plain(value: Any) -> Any:
    """The same tree in what JSON knows: NumPy becomes Python, a number that is not finite becomes None."""
    if isinstance(value, Mapping):
        return {str(key): plain(each) for key, each in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(each) for each in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return str(value) if isinstance(value, Path) else value
