"""The report: a tree of plain values, the page that is made of it, a few lines for the terminal.

NaN is None in the tree.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from candidate_gen.features import FeatureTable
from protos.impression_pb2 import Kind
from training.durable import write_texts
from training.monitoring import checks as compared
from training.monitoring.checks import Check, Distribution, most_answered_by
from training.monitoring.days import DAY_MS, Day, Reliability
from training.monitoring.gauges import gauges
from training.monitoring.limits import SECTIONS
from training.monitoring.rate import Rate
from training.monitoring.verdict import Verdict, loudest, sentence
from training.monitoring.views import named
from training.reports import plots
from training.reports.figures import Calibrated, Curve, Estimated
from training.reports.findings import Finding
from training.reports.report import environment, figure, plain

_DRAWN = 6
"""Distributions that are drawn: those furthest beyond, or nearest to, their limit."""
_RATIOS = 12
_NO_AXIS = ("popularity/items shown",)
"""Categories without names."""
_MEANS = {
    "features": "what models are asked about",
    "scores": "what models say",
    "embeddings": "vectors of what is shown",
    "outcomes": "what people do, and when it is known",
    "calibration": "what was said beside what followed",
    "popularity": "which items are shown, and how evenly",
    "slices": "the main action, by parts of the requests",
    "sources": "who found what is shown",
    "serving": "how long it takes, and what was missing",
    "quality": "broken, missing, double, unknown",
    "volume": "how much there is",
    "freshness": "how old the generation is",
    "skew": "features offline and online",
}


def report(
    window: Sequence[Day],
    reference: Sequence[Day],
    found: Sequence[Check],
    verdict: Verdict,
    *,
    table: FeatureTable | None,
    log: Path,
) -> dict[str, Any]:
    """Everything that the page says.

    Args:
        table: whose vocabularies name categories.
    """
    alarms = loudest([check for check in found if check.alarm])
    tree = {
        "log": log,
        "window": _told(window),
        "reference": _told(reference),
        "verdict": asdict(verdict),
        "alarms": {section: sum(each.section == section for each in alarms) for section in SECTIONS},
        "checks": [asdict(each) | {"ratio": each.ratio} for each in found],
        "days": [
            {
                "day": day.name,
                "requests": day.requests,
                "rates": {name: rate.value for name, rate in day.rates.items()},
                "levels": day.levels,
                "generations": day.generations,
            }
            for day in (*reference, *window)
        ],
        "slices": _slices(window, reference),
        "reliability": [_calibrated(action, window) for action in window[-1].reliability],
        "distributions": [_drawn(each, table) for each in _moved(window, reference, found)],
        "findings": [asdict(each) for each in _findings(alarms, verdict, window, reference)],
    }
    made: dict[str, Any] = plain(tree)
    return made


def write(made: Mapping[str, Any], folder: Path, *, textfile: Path | None) -> Path:
    """Write `monitor.html`, `monitor.json` and the gauges, each whole or not at all; returns the page's path.

    Args:
        textfile: where the gauges go; `monitor.prom` beside the others where not given.
    """
    write_texts(folder, {"monitor.json": json.dumps(made, indent=1) + "\n", "monitor.html": html(made)})
    prom = textfile or folder / "monitor.prom"
    write_texts(prom.parent, {prom.name: gauges(made)})
    return folder / "monitor.html"


def html(made: Mapping[str, Any]) -> str:
    """The page, complete in itself."""
    sections = {
        name: {"means": _MEANS[name], "alarms": made["alarms"][name], "checks": checks}
        for name in SECTIONS
        if (checks := [each for each in made["checks"] if each["section"] == name])
    }
    return (
        environment()
        .get_template("monitor.html.j2")
        .render(
            report=made,
            tiles=list(_tiles(made)),
            pictures=[{**each, "svg": Markup(each["svg"])} for each in _pictures(made)],
            sections=sections,
        )
    )


def told(made: Mapping[str, Any]) -> dict[str, Any]:
    """A few lines for a terminal."""
    checked = {name: sum(each["section"] == name for each in made["checks"]) for name in SECTIONS}
    return {
        "looked at": f"{made['window']['from']} to {made['window']['until']}, {made['window']['requests']:,} requests",
        "beside": f"{made['reference']['from']} to {made['reference']['until']}, "
        f"{made['reference']['requests']:,} requests",
        **{f"{name}, of {checked[name]}": count for name, count in made["alarms"].items() if checked[name]},
        "train again": "yes" if made["verdict"]["retrain"] else "no",
    }


def _told(days: Sequence[Day]) -> dict[str, Any]:
    return {
        "from": days[0].name,
        "until": days[-1].name,
        "until_ms": days[-1].start_ms + DAY_MS,
        "days": len(days),
        "requests": sum(day.requests for day in days),
        "unreadable": sum(day.unreadable for day in days),
    }


def _findings(
    alarms: Sequence[Check], verdict: Verdict, window: Sequence[Day], reference: Sequence[Day]
) -> Iterator[Finding]:
    """The verdict, then what it rests on."""
    if verdict.retrain:
        yield Finding("bad", "Train again: what is served no longer fits what comes.")
    elif verdict.held_back_by:
        yield Finding("bad", "Do not train on this: something in the data is broken. Mend it first.")
    elif alarms:
        yield Finding("bad", "Something is wrong that training anew does not mend.")
    else:
        yield Finding(
            "good", f"Nothing has changed that counts: {len(reference)} days of reference show the like themselves."
        )
    for each in alarms:
        yield Finding("bad", f"{sentence(each)}.")
    generation = most_answered_by(window)
    others = sum(not set(day.generations) <= {generation} for day in reference)
    if others:
        what = (
            "What is compared of features, scores, vectors, items and sources is what it answers to their requests now."
            if any(day.asked_again for day in reference)
            else "It is not in the store, so what a launch changes counts as drift."
        )
        yield Finding("note", f"{_counted(others, 'day')} before had other generations than {generation}. {what}")
    unreadable = sum(day.unreadable for day in (*window, *reference))
    if unreadable:
        yield Finding(
            "note",
            f"The features of {unreadable:,} sampled requests cannot be read: no generation of the store has "
            "their feature table.",
        )


def _slices(window: Sequence[Day], reference: Sequence[Day]) -> list[dict[str, Any]]:
    """Parts of the requests, then and now, the largest first."""
    parts = []
    for name in sorted({name for day in window for name in day.rates if name.startswith("slices/")}):
        now, then = (
            sum((day.rates[name] for day in days if name in day.rates), start=Rate()) for days in (window, reference)
        )
        if now.rows and then.rows:
            parts.append(
                {
                    "name": name.partition("/")[2],
                    "rows": now.rows,
                    "now": now.value,
                    "then": then.value,
                    "error": float(np.hypot(now.error, then.error)),
                }
            )
    return sorted(parts, key=lambda part: -part["rows"])


def _calibrated(action: str, days: Sequence[Day]) -> dict[str, Any]:
    counted = [day.reliability[action] for day in days if action in day.reliability]
    whole = sum(counted[1:], start=counted[0]) if counted else Reliability(np.zeros(1), np.zeros(1), np.zeros(1))
    held_C = whole.rows_C >= 20
    rows_C = whole.rows_C[held_C]
    return asdict(
        Calibrated(
            action,
            (whole.said_C[held_C] / rows_C).tolist(),
            (whole.followed_C[held_C] / rows_C).tolist(),
            rows_C.astype(int).tolist(),
            whole.ece,
        )
    )


def _moved(window: Sequence[Day], reference: Sequence[Day], found: Sequence[Check]) -> Iterator[Distribution]:
    """The columns that moved most, as a share of their limits."""
    names = [
        f"{each.section}/{each.name}"
        for each in sorted(loudest(found), key=lambda each: (not each.alarm, -each.ratio))
        if each.statistic in ("psi", "ks", "wasserstein")
    ]
    for name in [each for each in names if each not in _NO_AXIS][:_DRAWN]:
        yield compared.distribution(name, window, reference)


def _drawn(each: Distribution, table: FeatureTable | None) -> dict[str, Any]:
    then, now = (counts / max(counts.sum(), 1) for counts in (each.then_G, each.now_G))
    drawn = {"name": each.name.replace("/", ": "), "categories": each.categories}
    if not each.categories:
        at = np.unique(np.linspace(0, len(each.grid_G) - 1, 80).astype(int))
        return drawn | {"x": each.grid_G[at], "then": np.cumsum(then)[at], "now": np.cumsum(now)[at]}
    short = each.name.partition("/")[2]
    codes = each.grid_G.astype(np.int64).tolist()
    if short == "kind of request":
        labels = [Kind.Name(code).removeprefix("KIND_").lower() for code in codes]
    elif table is not None and short in table:
        labels = [named(table[short], code) for code in codes]
    else:
        labels = [str(code) for code in codes]
    kept = np.argsort(-(then + now)[:-1], kind="stable")[:10]
    order = sorted(kept.tolist())
    return drawn | {"labels": [labels[n] for n in order], "then": then[order], "now": now[order]}


def _tiles(made: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    verdict, window = made["verdict"], made["window"]
    yield "alarms", figure(verdict["alarms"]), f"of {len(made['checks']):,} comparisons"
    beside = "mend the data first" if verdict["held_back_by"] else _counted(len(verdict["reasons"]), "reason")
    yield "train again", "yes" if verdict["retrain"] else "no", beside
    yield "requests", figure(window["requests"]), f"before: {_daily(made['reference'])} a day"
    last = made["days"][-1]
    for name, rate in last["rates"].items():
        if name.startswith("outcomes/"):
            then = [day["rates"].get(name) or 0 for day in made["days"][: made["reference"]["days"]]]
            yield f"{name.partition('/')[2]} rate", f"{100 * (rate or 0):.2f}%", f"before: {100 * np.mean(then):.2f}%"
            break
    age = last["levels"].get("freshness/days since the generation was made")
    if age is not None:
        yield "generation", f"{age:.1f} days", "old"


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _daily(part: Mapping[str, Any]) -> str:
    return figure(round(part["requests"] / max(part["days"], 1)))


def _pictures(made: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """Each figure with its title and with what to look at."""

    def picture(title: str, look: str, svg: str) -> dict[str, str]:
        return {"title": title, "look": look, "svg": svg}

    ratios: dict[str, float] = {}
    for each in made["checks"]:
        if each["ratio"] is not None:
            name = f"{each['section']}: {each['name']}"
            ratios[name] = max(ratios.get(name, 0.0), each["ratio"])
    first = dict(sorted(ratios.items(), key=lambda item: -item[1])[:_RATIOS])
    yield picture(
        "What moved most",
        "As a share of its limit. What is beyond the dashed line is an alarm, but for a fall of what harms by rising.",
        plots.shares_of_limit(first),
    )
    for each in made["distributions"]:
        if each["categories"]:
            svg = plots.beside(each["labels"], each["then"], each["now"], name=each["name"])
            yield picture(each["name"], "Share of the rows: grey before, coloured now.", svg)
        else:
            curves = [Curve("before", each["x"], each["then"]), Curve("now", each["x"], each["now"])]
            yield picture(each["name"], "Share of the rows up to a value.", plots.cumulated(curves, name=each["name"]))
    names = [day["day"][5:] for day in made["days"]]
    for title, look, prefix, kind in (
        ("What people do", "Rate of each action, by day.", "outcomes/", "rates"),
        ("Calibration", "Followed over said, by day: 1 is what was said.", "calibration/", "rates"),
        ("Sources", "Share of what is shown that each source found.", "sources/", "rates"),
        ("Popularity", "1 is everything, or everything on one item.", "popularity/", "levels"),
    ):
        panels = _daily_curves(made["days"], prefix, kind)
        if panels:
            yield picture(title, look, plots.by_day(panels, names, after=made["reference"]["days"], name=title))
    single = {
        "requests": "volume/requests",
        "p99 of a request's stages, ms": "serving/all stages, p99 ms",
        "days since the generation was made": "freshness/days since the generation was made",
    }
    for title, key in single.items():
        values = [day["levels"].get(key) for day in made["days"]]
        if None not in values:
            curve = [Curve(title, list(range(len(values))), values)]
            svg = plots.by_day(curve, names, after=made["reference"]["days"], name=title)
            yield picture(f"{title[0].upper()}{title[1:]}", "By day.", svg)
    degraded = [each for each in _daily_curves(made["days"], "serving/", "rates") if any(each.y)]
    if degraded:
        svg = plots.by_day(degraded, names, after=made["reference"]["days"], name="degraded")
        yield picture("Degradation", "Share of the requests that were answered without something.", svg)
    if any(each["count"] for each in made["reliability"]):
        reliable = [Calibrated(**{**each, "ece": each["ece"] or 0.0}) for each in made["reliability"]]
        yield picture(
            "Reliability now",
            "On the dashed line, a stated 10% happens in 10% of cases. Larger points hold more exposures.",
            plots.reliability(reliable),
        )
    if made["slices"]:
        parts = [
            Estimated(each["name"], change, change - 2 * each["error"], change + 2 * each["error"])
            for each in made["slices"][:24]
            for change in (each["now"] - each["then"],)
        ]
        yield picture(
            "The main action by parts of the requests",
            "Change of its rate since the reference, +- 2 standard errors.",
            plots.differences(parts, "change of the rate"),
        )


def _daily_curves(days: Sequence[Mapping[str, Any]], prefix: str, kind: str) -> list[Curve]:
    """One line for each name that all days have."""
    names = [name for name in days[-1][kind] if name.startswith(prefix)]
    x = list(range(len(days)))
    return [
        Curve(name.partition("/")[2].removesuffix(", followed over said"), x, values)
        for name in names
        if None not in (values := [day[kind].get(name) for day in days])
    ]
