"""The reports' figures, each as inline SVG."""

import math
from collections.abc import Mapping, Sequence
from itertools import cycle
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from training.reports.drawing import (
    GRID,
    HEIGHT,
    INK,
    MUTED,
    REFERENCE,
    SERIES,
    draw_bars,
    draw_lines,
    figure_of,
    short,
    spaced,
    styled,
    svg,
)
from training.reports.figures import Calibrated, Curve, Estimated, Slice

_NAME = 44
"""Letters of a name beside a bar."""
ESTIMATORS = {
    "sips": "IPS, whole slates",
    "sn_sips": "SNIPS, whole slates",
    "rips": "IPS, slot by slot",
    "sn_rips": "SNIPS, slot by slot",
    "cascade_dr": "doubly robust",
    "sn_cascade_dr": "doubly robust, normalised",
    "truncated_cascade_dr": "the same, weights cut",
}


@styled
def rewards(reward: Mapping[str, float]) -> str:
    """Bars of the reward of each policy; the references grey, the cycles coloured."""
    shown = [(name, reward[name]) for name in reward if math.isfinite(reward[name])]
    figure, (axes,) = figure_of(height=0.7 + 0.45 * len(shown))
    cycles = [name for name, _ in shown if name.startswith("cycle")]
    colours = [SERIES[cycles.index(name) % len(SERIES)] if name in cycles else REFERENCE for name, _ in shown]
    draw_bars(axes, [(spaced(name), value) for name, value in shown], colours)
    axes.set_xlabel("true reward per request")
    return svg(figure, "rewards")


@styled
def reliability(curves: Sequence[Calibrated]) -> str:
    """Observed share over predicted probability, one panel an action; the area of a point is its share of the rows."""
    figure, panels = figure_of(columns=len(curves), height=2.9)
    for axes, curve in zip(panels, curves, strict=True):
        most = 1.08 * max([*curve.predicted, *curve.observed, 1e-6])
        axes.plot([0, most], [0, most], color=REFERENCE, linestyle=(0, (4, 3)), linewidth=1.5)
        axes.plot(curve.predicted, curve.observed, color=SERIES[0])
        rows = max(sum(curve.count), 1)
        areas = [max(12.0, 400 * count / rows) for count in curve.count]
        axes.scatter(curve.predicted, curve.observed, s=areas, color=SERIES[0], linewidths=0, zorder=3)
        axes.set(xlim=(0, most), ylim=(0, most), xlabel="predicted")
        axes.set_title(f"{curve.action}\nECE {curve.ece:.3f}", loc="left")
        axes.locator_params(axis="x", nbins=2)
        axes.locator_params(axis="y", nbins=3)
        for axis in (axes.xaxis, axes.yaxis):
            axis.set_major_formatter(lambda value, _: short(value))
    panels[0].set_ylabel("observed")
    return svg(figure, "reliability")


@styled
def slices(parts: Sequence[Slice]) -> str:
    """AUC with its interval and calibration error beside what chance alone would show, a row a part."""
    figure, (left, right) = figure_of(columns=2, height=1.1 + 0.24 * len(parts))
    for row, part in enumerate(parts):
        left.plot([part.auc_low, part.auc_high], [row, row], color=SERIES[0], linewidth=2, solid_capstyle="round")
        left.plot([part.auc], [row], "o", color=SERIES[0], markersize=6)
        right.plot([0, part.ece_by_chance], [row, row], color=REFERENCE, linewidth=6, solid_capstyle="butt")
        right.plot([part.ece], [row], "o", color=SERIES[1], markersize=6)
    left.axvline(parts[0].auc, color=REFERENCE, linestyle=(0, (4, 3)), linewidth=1.5, zorder=0)
    names = [f"{spaced(part.by)} {part.value}".strip() + f" ({short(part.exposures)})" for part in parts]
    left.set_yticks(range(len(parts)), names, color=INK)
    right.set_yticks(range(len(parts)), [""] * len(parts))
    for axes in (left, right):
        axes.set_ylim(len(parts) - 0.4, -0.6)
        axes.grid(visible=False, axis="y")
        axes.locator_params(axis="x", nbins=4)
        axes.xaxis.set_major_formatter(lambda value, _: short(value))
    left.set_xlabel("AUC")
    right.set(xlabel="ECE, by chance grey", xlim=(0, None))
    return svg(figure, "slices")


@styled
def examination(curves: Sequence[Curve]) -> str:
    """P(looked at) by slot."""
    figure, (axes,) = figure_of()
    draw_lines(axes, curves)
    axes.set(xlabel="slot", ylabel="looked at, first slot = 1", ylim=(0, None))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return svg(figure, "examination")


@styled
def estimates(
    estimated: Sequence[Estimated],
    truth: float | None,
    logged: float | None,
    *,
    earned: str = "cycle 1",
    label: str = "reward per request",
) -> str:
    """Every estimator with its interval, beside what the world knows and what the logging policy, `earned`, did."""
    figure, (axes,) = figure_of(height=1.35 + 0.42 * len(estimated))
    for row, each in enumerate(estimated):
        axes.plot([each.low, each.high], [row, row], color=SERIES[0], linewidth=2.5, solid_capstyle="round")
        axes.plot([each.value], [row], "o", color=SERIES[0], markersize=8)
    for value, named, colour, dashes in (
        (truth, "truth", SERIES[1], "solid"),
        (logged, earned, REFERENCE, (0, (4, 3))),
    ):
        if value is not None:
            axes.axvline(value, color=colour, linestyle=dashes, linewidth=2, label=f"{named} {short(value)}", zorder=0)
    axes.set_yticks(
        range(len(estimated)), [ESTIMATORS.get(each.estimator, each.estimator) for each in estimated], color=INK
    )
    axes.set(xlabel=label, ylim=(len(estimated) - 0.4, -0.6))
    axes.grid(visible=False, axis="y")
    if truth is not None or logged is not None:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=2, borderaxespad=0)
    return svg(figure, "estimates")


@styled
def differences(estimated: Sequence[Estimated], label: str) -> str:
    """Each with its interval, beside 0: wholly to the right of it in green, wholly to the left in orange."""
    figure, (axes,) = figure_of(height=0.8 + 0.36 * len(estimated))
    axes.axvline(0, color=REFERENCE, linestyle=(0, (4, 3)), linewidth=2, zorder=0)
    for row, each in enumerate(estimated):
        colour = SERIES[2] if each.low > 0 else SERIES[1] if each.high < 0 else SERIES[0]
        axes.plot([each.low, each.high], [row, row], color=colour, linewidth=2.5, solid_capstyle="round")
        axes.plot([each.value], [row], "o", color=colour, markersize=8)
    axes.set_yticks(range(len(estimated)), [each.estimator for each in estimated], color=INK)
    axes.set(xlabel=label, ylim=(len(estimated) - 0.4, -0.6))
    axes.grid(visible=False, axis="y")
    return svg(figure, "differences")


@styled
def band(curve: Curve, low: Sequence[float], high: Sequence[float], *, x: str, y: str) -> str:
    """A line inside its interval, beside 0."""
    figure, (axes,) = figure_of()
    axes.axhline(0, color=REFERENCE, linestyle=(0, (4, 3)), linewidth=2)
    axes.fill_between(curve.x, low, high, color=SERIES[0], alpha=0.18, linewidth=0)
    axes.plot(curve.x, curve.y, color=SERIES[0])
    for edge in (low, high):
        axes.plot(curve.x, edge, color=SERIES[0], linewidth=1)
    last = [low[-1], high[-1]]
    around = max(abs(each) for each in (*last, curve.y[-1]))
    axes.set(xlabel=x, ylabel=y, ylim=(max(min(low), -6 * around), min(max(high), 6 * around)))
    axes.xaxis.set_major_formatter(lambda value, _: short(value))
    return svg(figure, f"band {curve.label}")


@styled
def reach(sizes: Sequence[float], *, needed: float, depth: int) -> str:
    """Effective sample size by how many slots are taken together; those that the log reaches are filled."""
    figure, (axes,) = figure_of()
    slots = range(1, len(sizes) + 1)
    axes.axhline(needed, color=REFERENCE, linestyle=(0, (4, 3)), linewidth=1.5)
    axes.annotate(f"needed: {short(needed)}", (1, needed), xytext=(0, 5), textcoords="offset points")
    axes.plot(slots, sizes, color=SERIES[0], marker="o", markerfacecolor="none")
    axes.plot(slots[:depth], sizes[:depth], "o", color=SERIES[0], markersize=8)
    axes.set(xlabel="first slots taken together", ylabel="effective sample size", yscale="log")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.yaxis.set_major_formatter(lambda value, _: short(value))
    axes.yaxis.set_minor_formatter(NullFormatter())
    return svg(figure, "reach")


@styled
def propensities(propensity: Sequence[float], ratio: Sequence[float], error: Sequence[float]) -> str:
    """How often what was logged with some probability happened, over how often it should have, +- 2 standard errors."""
    figure, (axes,) = figure_of()
    axes.axhline(1, color=REFERENCE, linestyle=(0, (4, 3)), linewidth=1.5)
    for at, middle, off in zip(propensity, ratio, error, strict=True):
        axes.plot([at, at], [middle - 2 * off, middle + 2 * off], color=SERIES[0], solid_capstyle="round")
    axes.plot(propensity, ratio, "o", color=SERIES[0], markersize=7)
    axes.set(xscale="log", xlabel="logged propensity", ylabel="drawn / expected")
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(lambda value, _: short(value))
    axes.xaxis.set_minor_formatter(NullFormatter())
    return svg(figure, "propensities")


@styled
def latency(stages: Mapping[str, Mapping[str, float]]) -> str:
    """Median and 99th percentile of each stage, in the order given."""
    figure, (axes,) = figure_of(height=1.2 + 0.31 * len(stages))
    for row, times in enumerate(stages.values()):
        p50, p99 = times["p50"], times["p99"]
        axes.plot([p50, p99], [row, row], color=REFERENCE, linewidth=3, solid_capstyle="round")
        axes.plot([p50], [row], "o", color=SERIES[0], markersize=8, label="p50" if not row else "")
        axes.plot([p99], [row], "o", color=SERIES[1], markersize=8, label="p99" if not row else "")
        axes.annotate(
            f"{short(p50)} / {short(p99)}", (1, row), xycoords=("axes fraction", "data"), color=INK,
            xytext=(6, 0), textcoords="offset points", va="center",
        )  # fmt: skip
    axes.set_yticks(range(len(stages)), [spaced(stage) for stage in stages], color=INK)
    axes.set(xlabel="milliseconds", ylim=(len(stages) - 0.4, -0.6))
    seen = [value for times in stages.values() for value in (times["p50"], times["p99"]) if value > 0]
    if seen and max(seen) > 30 * min(seen):
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: short(value))
    else:
        axes.set_xlim(0, None)
    axes.grid(visible=False, axis="y")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=2, borderaxespad=0)
    return svg(figure, "latency")


@styled
def recall(curves: Sequence[Curve]) -> str:
    """Recall of retrieval over how many are retrieved."""
    figure, (axes,) = figure_of()
    draw_lines(axes, curves)
    cutoffs = sorted({x for curve in curves for x in curve.x})
    if len(cutoffs) > 1:
        axes.set_xscale("log")
    axes.set_xticks(cutoffs, [short(x) for x in cutoffs])
    axes.minorticks_off()
    axes.set(xlabel="k, items retrieved", ylabel="recall@k", ylim=(0, None))
    return svg(figure, "recall")


@styled
def training(curves: Sequence[Curve]) -> str:
    """The ranker's loss by epoch."""
    figure, (axes,) = figure_of()
    draw_lines(axes, curves)
    axes.set(xlabel="epoch", ylabel="loss")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    return svg(figure, "training")


@styled
def slate_metrics(metrics: Mapping[str, Mapping[str, float]]) -> str:
    """One panel a metric, each in its own scale, with a bar a cycle."""
    bars = max(len(values) for values in metrics.values())
    figure, panels = figure_of(rows=len(metrics), height=len(metrics) * (0.35 + 0.28 * bars))
    for axes, (metric, values) in zip(panels, metrics.items(), strict=True):
        draw_bars(axes, list(values.items()), [SERIES[row % len(SERIES)] for row in range(len(values))])
        axes.set_title(metric, loc="left", pad=3)
        axes.set_xticks([])
        axes.spines["bottom"].set_visible(False)
    return svg(figure, "slates")


@styled
def tradeoff(curves: Sequence[Curve], *, floor: float) -> str:
    """Recall over milliseconds; the floor is dashed."""
    figure, (axes,) = figure_of()
    axes.axhline(floor, color=REFERENCE, linestyle=(0, (4, 3)), linewidth=1.5)
    draw_lines(axes, curves)
    axes.set(xscale="log", xlabel="ms, median of single searches", ylabel="recall")
    axes.margins(x=0.08, y=0.12)
    axes.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axes.xaxis.set_major_formatter(lambda value, _: short(value))
    axes.xaxis.set_minor_formatter(NullFormatter())
    return svg(figure, "tradeoff")


@styled
def bars(values: Mapping[str, float], label: str, *, name: str) -> str:
    """A bar a value, in their order."""
    figure, (axes,) = figure_of(height=0.7 + 0.36 * len(values))
    draw_bars(axes, list(values.items()), [SERIES[0]] * len(values))
    axes.set_xlabel(label)
    return svg(figure, name)


@styled
def lines(panels: Mapping[str, Sequence[Curve]], names: Sequence[str], *, name: str) -> str:
    """Lines over things that have names and no distance: x counts them from 0. A panel each, all of the same lines."""
    figure, axes_of = figure_of(columns=len(panels))
    for axes, (title, curves) in zip(axes_of, panels.items(), strict=True):
        for curve, colour in zip(curves, cycle(SERIES)):
            axes.plot(curve.x, curve.y, color=colour, marker="o", label=curve.label)
        axes.set_title(title, loc="left", pad=6)
        axes.set_xticks(range(len(names)), names)
        axes.margins(x=0.08, y=0.12)
    figure.legend(*axes_of[0].get_legend_handles_labels(), loc="outside upper left", ncols=2, borderaxespad=0)
    return svg(figure, name)


@styled
def shares_of_limit(ratios: Mapping[str, float]) -> str:
    """A bar each beside the limit, on a scale that is cut at three times the limit; the text says how long it is."""
    figure, (axes,) = figure_of(height=0.7 + 0.3 * len(ratios))
    cut = {name: min(ratio, 3.0) for name, ratio in ratios.items()}
    colours = [SERIES[1] if ratio > 1 else SERIES[0] for ratio in ratios.values()]
    axes.barh(range(len(cut)), list(cut.values()), color=colours, height=0.62)
    for row, ratio in enumerate(ratios.values()):
        at = (min(ratio, 3.0), row)
        axes.annotate(short(ratio), at, xytext=(5, 0), textcoords="offset points", va="center", color=INK)
    axes.axvline(1, color=REFERENCE, linestyle=(0, (4, 3)), linewidth=1.5)
    names = [name if len(name) <= _NAME else f"{name[: _NAME - 3]}..." for name in cut]
    axes.set_yticks(range(len(cut)), names, color=INK, fontsize=9)
    axes.set(xlabel="of the limit", xlim=(0, 3.4), ylim=(len(cut) - 0.4, -0.6))
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False, axis="y")
    return svg(figure, "limits")


@styled
def beside(labels: Sequence[str], then: Sequence[float], now: Sequence[float], *, name: str) -> str:
    """Two bars a label: what was, grey, and what is."""
    figure, (axes,) = figure_of(height=0.8 + 0.36 * len(labels))
    rows = np.arange(len(labels))
    axes.barh(rows - 0.2, then, color=REFERENCE, height=0.36, label="before")
    axes.barh(rows + 0.2, now, color=SERIES[0], height=0.36, label="now")
    axes.set_yticks(rows, labels, color=INK)
    axes.set(xlabel="share of the rows", ylim=(len(labels) - 0.4, -0.6))
    axes.spines["left"].set_visible(False)
    axes.grid(visible=False, axis="y")
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=2, borderaxespad=0)
    return svg(figure, f"beside {name}")


@styled
def cumulated(curves: Sequence[Curve], *, name: str) -> str:
    """Distribution functions: what was, grey, and what is."""
    figure, (axes,) = figure_of()
    for curve, colour in zip(curves, (REFERENCE, SERIES[0]), strict=True):
        axes.step(curve.x, curve.y, where="post", color=colour, label=curve.label)
    axes.set(xlabel=name.rpartition(": ")[2], ylabel="share up to there", ylim=(0, 1.02))
    figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=2, borderaxespad=0)
    return svg(figure, f"cumulated {name}")


@styled
def by_day(curves: Sequence[Curve], names: Sequence[str], *, after: int, name: str) -> str:
    """Lines over days; those from number `after` on are shaded."""
    figure, (axes,) = figure_of(height=HEIGHT + 0.12 * len(curves))
    axes.axvspan(after - 0.5, len(names) - 0.5, color=GRID, alpha=0.6, linewidth=0, zorder=0)
    for number, curve in enumerate(curves):
        style = ("solid", (0, (4, 2)), (0, (1, 1)))[number // len(SERIES) % 3]
        axes.plot(curve.x, curve.y, color=SERIES[number % len(SERIES)], linestyle=style, marker="o", label=curve.label)
    shown = range(len(names) - 1, -1, -max(1, -(-len(names) // 8)))
    axes.set_xticks(list(shown), [names[day] for day in shown])
    axes.set_xlim(-0.5, len(names) - 0.5)
    axes.set_ylim(0, None)
    axes.margins(y=0.12)
    if len(curves) > 1:
        figure.legend(*axes.get_legend_handles_labels(), loc="outside upper left", ncols=2, borderaxespad=0, fontsize=9)
    return svg(figure, f"by day {name}")


@styled
def closed_loop(found: Mapping[str, Any], arms: Mapping[str, str], *, count: int) -> str:
    """What arms earn in a closed loop, how soon new items are seen, and what was said before each launch.

    Args:
        found: as `benchmarks/closed_loop.py` writes it.
        arms: those to draw, with the labels that they have.
        count: impressions from which a new item counts as seen.

    Lines are means over the seeds, bars and bands reach from the lowest to the highest. An estimate that has faults is
    hollow.
    """
    figure = Figure(figsize=(11.5, 3.9), facecolor="none")
    earning, seeing, saying = figure.subplots(1, 3)
    for axes in (earning, seeing, saying):
        axes.set_facecolor("none")
    colour_of = dict(zip(arms, SERIES, strict=False)) | {"popularity": MUTED, "random": REFERENCE}
    label_of = {**arms, "popularity": "popularity", "random": "random"}
    seeds, scale = found["seeds"].values(), found["scale"]
    day_W = scale["first_days"] + scale["window_days"] * (np.arange(scale["windows"]) + 0.5)
    days = np.linspace(0, scale["wait_days"], 121)
    for number, (name, colour) in enumerate(colour_of.items()):
        dashes = "solid" if name in arms else (0, (4, 3))
        share_SW = np.array([100 * np.divide(seed[name]["reward"], seed["oracle"]["reward"]) for seed in seeds])
        at_W = day_W + 0.12 * (number - 2)
        earning.plot(at_W, share_SW.mean(0), color=colour, linestyle=dashes, marker="o", label=label_of[name])
        earning.vlines(at_W, share_SW.min(0), share_SW.max(0), color=colour, linewidth=1.2)
        seen_SD = np.array([[_reached(seed[name]["waited_days"][str(count)], day) for day in days] for seed in seeds])
        seeing.plot(days, seen_SD.mean(0), color=colour, linestyle=dashes)
        seeing.fill_between(days, seen_SD.min(0), seen_SD.max(0), color=colour, alpha=0.15, linewidth=0)
        for launch in [each for seed in seeds for each in seed[name].get("launches", ())]:
            saying.vlines(launch["truth"], launch["low"], launch["high"], color=colour, linewidth=1.2)
            inside = "none" if launch["faults"] else colour
            saying.plot(launch["truth"], launch["estimate"], "o", color=colour, markerfacecolor=inside)
    low, high = saying.get_xlim()
    saying.plot([low, high], [low, high], color=REFERENCE, linestyle=(0, (4, 3)), linewidth=1.5, zorder=0)
    earning.set(xlabel="day; a new generation at every point", ylabel="% of what the oracle earns", ylim=(0, None))
    earning.set_title("What requests earn", loc="left")
    seeing.set(xlabel="days since it was published", ylabel="% of new items", ylim=(0, 100), xlim=(0, days[-1]))
    seeing.set_title(f"New items that were shown {count} times", loc="left")
    saying.set(xlabel="reward of the first slots, after", ylabel="estimated before, with 95% interval")
    saying.set_title("Before and after a launch", loc="left")
    where = {"xycoords": "axes fraction", "ha": "right", "va": "bottom", "color": MUTED}
    saying.annotate("hollow: refused, as the log\nsupports too little of it", (0.98, 0.03), fontsize=9, **where)
    figure.legend(*earning.get_legend_handles_labels(), loc="outside upper left", ncols=len(colour_of))
    return svg(figure, "closed_loop")


def _reached(waited_days: Sequence[float | None], day: float) -> float:
    """% of things that waited at most so long; None waits still."""
    return 100 * sum(each is not None and each <= day for each in waited_days) / max(len(waited_days), 1)
