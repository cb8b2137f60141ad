"""The page of an off-policy estimate: what the estimators say, whether the log can carry it, for whom it holds.

A report is a tree of plain values; NaN is None.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from markupsafe import Markup

from policy.ope import Estimate, checks, least_sample_size
from training.durable import write_texts
from training.off_policy.estimate import HEADLINE, Estimates
from training.reports import plots
from training.reports.figures import Estimated
from training.reports.findings import Finding
from training.reports.report import environment, figure, plain


def report(estimates: Estimates, *, target: str, logged: str) -> dict[str, Any]:
    """Everything that the page says, of the estimate of generation `target` from the log of generation `logged`."""
    tree = {
        "target": target,
        "logged": logged,
        "requests": estimates.logged.n,
        "depth": estimates.depth,
        "headline": HEADLINE,
        "estimates": {"as logged": _figures(estimates.logged)}
        | {name: _figures(each) for name, each in estimates.by_name.items()},
        "uplift": _figures(estimates.uplift),
        "checks": [asdict(each) for each in checks(estimates.overlap)],
        "overlap": asdict(estimates.overlap),
        "least_sample_size": least_sample_size(estimates.overlap),
        "by_depth": [asdict(each) for each in estimates.by_depth],
        "bins": [asdict(each) for each in estimates.bins],
        "slices": [
            {
                "column": each.column,
                "value": each.value,
                "requests": each.estimate.n,
                "depth": each.depth,
                "logged": each.logged.value,
                "estimate": _figures(each.estimate),
                "uplift": _figures(each.uplift),
                "faults": each.faults,
            }
            for each in estimates.slices
        ],
    }
    return {**plain(tree), "findings": [asdict(each) for each in _findings(plain(tree))]}


def write(report: Mapping[str, Any], folder: Path) -> Path:
    """Write `ope.html` and `ope.json`, each whole or not at all; returns the page's path."""
    write_texts(folder, {"ope.json": json.dumps(report, indent=2) + "\n", "ope.html": html(report)})
    return folder / "ope.html"


def html(report: Mapping[str, Any]) -> str:
    """The page, complete in itself."""
    return (
        environment()
        .get_template("ope.html.j2")
        .render(
            report=report,
            slots=_slots(report),
            names=plots.ESTIMATORS,
            tiles=list(_tiles(report)),
            pictures=[{**each, "svg": Markup(each["svg"])} for each in _pictures(report)],
        )
    )


def told(report: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The estimators in a table, for a terminal."""
    rows = {plots.ESTIMATORS.get(name, name): each for name, each in report["estimates"].items()}
    return {
        name: {
            "reward per request": _number(each["value"]),
            "low": _number(each["low"]),
            "high": _number(each["high"]),
            "effective sample size": _number(each["effective_sample_size"]),
        }
        for name, each in {**rows, "uplift": report["uplift"]}.items()
    }


def _findings(report: Mapping[str, Any]) -> Iterator[Finding]:
    """The verdict, then what stands beside it."""
    red = [check for check in report["checks"] if not check["passed"]]
    value, low, high = (_number(report["uplift"][name]) for name in ("value", "low", "high"))
    earned = _number(report["estimates"]["as logged"]["value"])
    target, logged, slots = report["target"], report["logged"], _slots(report)
    relative = f" ({100 * value / earned:+.0f}%)" if earned > 0 else ""
    if red:
        named = "; ".join(f"{each['name']} {each['found']}, {each['limit']}" for each in red)
        yield Finding(
            "bad",
            f"No verdict: the log of {logged} says too little about {target}. {named}. The figures below are shown to "
            "find out why, not to decide by. More exploration (policy.epsilon, policy.temperature) or more requests "
            "of a policy that is nearer would help.",
        )
    elif low > 0:
        yield Finding(
            "good",
            f"{target} earns more than {logged}: {value:+.3g} a request{relative}, 95% interval {low:+.3g} to "
            f"{high:+.3g}, over {slots}.",
        )
    elif high < 0:
        yield Finding(
            "bad",
            f"{target} earns less than {logged}: {value:+.3g} a request{relative}, 95% interval {low:+.3g} to "
            f"{high:+.3g}, over {slots}. Do not launch it for its reward.",
        )
    else:
        more = ((high - low) / 2 / value) ** 2 if value else math.inf
        yield Finding(
            "note",
            f"No difference is shown between {target} and {logged}: {value:+.3g} a request{relative}, 95% interval "
            f"{low:+.3g} to {high:+.3g}, over {slots}."
            + (
                f" To tell a difference of this size from chance takes about {more:.1f} times as many requests."
                if more < 1000
                else ""
            ),
        )
    yield from _beside(report)


def _beside(report: Mapping[str, Any]) -> Iterator[Finding]:
    middle = _number(report["estimates"][report["headline"]]["value"])
    apart = [
        plots.ESTIMATORS.get(name, name)
        for name, each in report["estimates"].items()
        if name != "as logged" and not _number(each["low"]) <= middle <= _number(each["high"])
    ]
    if apart:
        yield Finding(
            "note",
            f"The estimators disagree: {figure(middle)} lies outside the interval of {', '.join(apart)}. Where weights "
            "are large, a few requests decide.",
        )
    shown = len(report["by_depth"])
    if report["depth"] < shown:
        yield Finding(
            "note",
            f"Of {shown} slots the log reaches {report['depth']}: weights multiply from slot to slot, and further down "
            "too few requests carry them. Nothing is said about the slots below.",
        )
    outside = report["overlap"]["outside_support"]
    if outside > 0.05:
        yield Finding(
            "note",
            f"{100 * outside:.0f}% of what {report['target']} would show never came up for {report['logged']}; the "
            "estimate is of its choice among the rest. If that earned nothing, or twice as much as the rest, the truth "
            f"would be {figure(outside * abs(middle))} lower, or higher.",
        )
    thin = report["overlap"]["thin_support"]
    if thin is not None and thin > 0.01:
        yield Finding(
            "note",
            f"{100 * thin:.0f}% of the rest it would choose where {report['logged']} hardly ever did; the intervals of "
            f"the estimate and of the uplift allow for it, by {figure(thin * abs(middle))} to either side.",
        )
    carried = all(check["passed"] for check in report["checks"])
    clear = [each for each in report["slices"] if carried and not each["faults"]]
    for word, good in (("less", False), ("more", True)):
        where = [
            f"{each['column']} {each['value']} ({each['uplift']['value']:+.3g})"
            for each in clear
            if (each["uplift"]["low"] > 0 if good else each["uplift"]["high"] < 0)
        ]
        if where:
            yield Finding("good" if good else "bad", f"It earns {word} for {', '.join(where)}.")
    if len(clear) > 1:
        yield Finding(
            "note",
            f"Of {len(clear)} slices that can be told apart, one in twenty shows a difference by chance alone.",
        )


def _tiles(report: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Headline figures: name, value, what to hold it against."""
    headline, earned, uplift = (
        report["estimates"][report["headline"]],
        report["estimates"]["as logged"],
        report["uplift"],
    )
    yield "estimated reward", figure(headline["value"]), f"{figure(headline['low'])} to {figure(headline['high'])}"
    yield "earned by the incumbent", figure(earned["value"]), f"{figure(earned['low'])} to {figure(earned['high'])}"
    yield "uplift", _signed(uplift["value"]), f"{_signed(uplift['low'])} to {_signed(uplift['high'])}"
    yield (
        "requests",
        figure(report["requests"]),
        f"worth {figure(report['overlap']['effective_sample_size'])} of its own",
    )
    yield "slots", figure(report["depth"]), f"of {len(report['by_depth'])} that were shown"
    outside = report["overlap"]["outside_support"]
    yield "inside the log's support", f"{100 * (1 - outside):.0f}%", "of what it would show"


def _pictures(report: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """Each figure with its title and with what to look at."""
    shown = [
        Estimated(name, each["value"], each["low"], each["high"])
        for name, each in report["estimates"].items()
        if name != "as logged" and _known(each)
    ]
    if shown:
        yield {
            "title": "What the estimators say",
            "look": f"Reward of {_slots(report)}, with 95% intervals. The last one stands for all: doubly robust, "
            "normalised, its weights cut.",
            "svg": plots.estimates(shown, None, report["estimates"]["as logged"]["value"], earned="the incumbent"),
        }
    slices = [
        Estimated(f"{each['column']}: {each['value']}", *(each["uplift"][name] for name in ("value", "low", "high")))
        for each in report["slices"]
        if not each["faults"] and _known(each["uplift"])
    ]
    if _known(report["uplift"]):
        whole = Estimated("everybody", *(report["uplift"][name] for name in ("value", "low", "high")))
        yield {
            "title": "For whom it is better",
            "look": "Uplift over the incumbent by slice, with 95% intervals, over as many slots as its log "
            "reaches; slices that it cannot carry are left out.",
            "svg": plots.differences([whole, *slices], "uplift, reward per request"),
        }
    sizes = [each["effective_sample_size"] for each in report["by_depth"]]
    if len(sizes) > 1 and min(sizes) > 0:
        yield {
            "title": "How far down the log reaches",
            "look": "How many requests of its own the log is worth. Filled points are what the estimate uses.",
            "svg": plots.reach(sizes, needed=report["least_sample_size"], depth=report["depth"]),
        }
    if report["bins"]:
        columns = [
            (each["propensity"], each["observed"] / each["expected"], each["error"] / each["expected"])
            for each in report["bins"]
        ]
        yield {
            "title": "Are the logged propensities true?",
            "look": "What was drawn with some probability must have been drawn that often. Bars are two standard "
            "errors; 1 is right.",
            "svg": plots.propensities(*zip(*columns, strict=True)),
        }


def _slots(report: Mapping[str, Any]) -> str:
    return "the first slot" if report["depth"] == 1 else f"the first {report['depth']} slots"


def _figures(estimate: Estimate) -> dict[str, float]:
    return asdict(estimate)


def _known(estimate: Mapping[str, Any]) -> bool:
    return None not in (estimate["value"], estimate["low"], estimate["high"])


def _number(value: float | None) -> float:
    return math.nan if value is None else value


def _signed(value: float | None) -> str:
    return "-" if value is None else f"{value:+.3g}"
