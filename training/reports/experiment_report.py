"""The page of an experiment: whether its units came as they should, what the arms earned, what is shown by now.

A report is a tree of plain values; NaN is None.
"""

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from markupsafe import Markup

from protos.admin_pb2 import TrafficMode
from training.durable import write_texts
from training.experiment import SRM, Findings
from training.reports import plots
from training.reports.figures import Curve, Estimated
from training.reports.findings import Finding, utc
from training.reports.report import environment, figure, plain


def report(found: Findings) -> dict[str, Any]:
    """Everything that the page says."""
    now = found.now
    times = [time_ms for each in found.compared.values() for time_ms in each.time_ms]
    tree = {
        "name": now.name,
        "mode": TrafficMode.Name(now.mode).removeprefix("TRAFFIC_MODE_").lower(),
        "unit": now.unit,
        "names": [arm.name for arm in now.arms],
        "alpha": found.alpha,
        "from": utc(min(times)) if times else "",
        "until": utc(max(times)) if times else "",
        "history": [
            {
                "set": utc(each.time_ms),
                "etag": each.etag,
                "weights": ", ".join(f"{arm.name} {arm.weight:g}" for arm in each.experiment.arms),
                "reason": each.reason,
            }
            for each in found.versions
        ],
        "arms": {name: asdict(each) for name, each in found.arms.items()},
        "compared": {
            name: asdict(each) | {"last": asdict(each.last), "p": each.p} for name, each in found.compared.items()
        },
        "shares": asdict(found.shares) | {"alarm": found.shares.alarm} if found.shares else None,
        "preference": asdict(found.preference) if found.preference else None,
        "shadows": [asdict(each) for each in found.shadows],
        "crossed": found.crossed,
    }
    made = plain(tree)
    return {**made, "findings": [asdict(each) for each in _findings(made)]}


def write(made: Mapping[str, Any], folder: Path) -> Path:
    """Write `experiment.html` and `experiment.json`, each whole or not at all; returns the page's path."""
    write_texts(folder, {"experiment.json": json.dumps(made, indent=2) + "\n", "experiment.html": html(made)})
    return folder / "experiment.html"


def html(made: Mapping[str, Any]) -> str:
    """The page, complete in itself."""
    return (
        environment()
        .get_template("experiment.html.j2")
        .render(
            report=made,
            tiles=list(_tiles(made)),
            pictures=[{**each, "svg": Markup(each["svg"])} for each in _pictures(made)],
            tables=dict(_tables(made)),
        )
    )


def told(made: Mapping[str, Any]) -> dict[str, Any]:
    """The figures of every arm in a table, for a terminal."""
    return {
        name: {
            "units": each["units"],
            "impressions": each["impressions"],
            "reward per unit": each["reward"],
            "more than the first": _last(made, name)["value"],
            "low": _last(made, name)["low"],
            "high": _last(made, name)["high"],
            "degraded": each["degraded"],
            "p50 ms": each["p50_ms"],
            "p99 ms": each["p99_ms"],
        }
        for name, each in made["arms"].items()
    }


def _last(made: Mapping[str, Any], name: str) -> dict[str, float]:
    found = made["compared"].get(name, {}).get("last", {})
    return {key: _number(found.get(key)) for key in ("value", "low", "high", "p")}


def _findings(made: Mapping[str, Any]) -> Iterator[Finding]:
    """The alarm first: with it, nothing else counts."""
    shares = made["shares"]
    if shares is not None and shares["alarm"]:
        counts = ", ".join(
            f"{name} {count:,} for {shares['expected'][name]:,.0f}" for name, count in shares["units"].items()
        )
        yield Finding(
            "bad",
            f"Sample-ratio mismatch: units are not where the weights send them ({counts}; p = {shares['p']:.1g}). "
            "Something loses or moves units of one arm: a crash, a redirect, a filter, a bot. Believe no figure below "
            "until that is found.",
        )
    elif shares is not None and sum(shares["units"].values()):
        yield Finding("good", f"Units came as the weights say (p = {shares['p']:.2g}; the alarm is below {SRM:g}).")
    for name in made["compared"]:
        yield _verdict(made, name)
    if made["preference"] is not None:
        yield _preferred(made["preference"])
    for each in made["shadows"]:
        yield Finding(
            "bad" if _number(each["degraded"]) > _number(each["shown_degraded"]) + 0.01 else "note",
            f"{each['arm']} would have shown {100 * _number(each['overlap']):.0f}% of what was shown, over "
            f"{each['pairs']:,} of {each['shown']:,} requests; {100 * _number(each['degraded']):.1f}% of its answers "
            f"are degraded ({100 * _number(each['shown_degraded']):.1f}% of those shown).",
        )
    for each in made["history"]:
        if " took " in each["reason"] and each["reason"].startswith("canary "):
            yield Finding("bad", f"{each['set']}: {each['reason']}.")
    if made["crossed"]:
        yield Finding(
            "note", f"{made['crossed']:,} impressions are left out: an other arm saw their unit first, before a ramp."
        )
    if not any((made["arms"], made["preference"] and made["preference"]["slates"], made["shadows"])):
        yield Finding("note", "The log holds no impression of it yet.")


def _verdict(made: Mapping[str, Any], name: str) -> Finding:
    last, first = _last(made, name), made["names"][0]
    earned = made["arms"].get(first, {}).get("reward")
    level = f"{100 * (1 - made['alpha']):.0f}%"
    if not math.isfinite(last["value"]) or not math.isfinite(last["low"]):
        return Finding("note", f"{name} against {first}: too few units yet.")
    relative = f" ({100 * last['value'] / earned:+.1f}%)" if earned else ""
    text = (
        f"{last['value']:+.3g} per unit{relative}, {level} interval {last['low']:+.3g} to {last['high']:+.3g}, "
        "whenever one looks"
    )
    if last["low"] > 0:
        return Finding("good", f"{name} earns more than {first}: {text}.")
    if last["high"] < 0:
        return Finding("bad", f"{name} earns less than {first}: {text}.")
    return Finding("note", f"No difference is shown between {name} and {first}: {text}. It may go on.")


def _preferred(each: Mapping[str, Any]) -> Finding:
    first, second = each["arms"]
    score = {key: _number(each["score"][key]) for key in ("value", "low", "high")}
    text = (
        f"{second} won {each['wins'][1]:,} slates, {first} {each['wins'][0]:,}, {each['ties']:,} were even; mean over "
        f"{each['units']:,} units {score['value']:+.3f}, interval {score['low']:+.3f} to {score['high']:+.3f}"
    )
    if score["low"] > 0:
        return Finding("good", f"Users prefer what {second} drafts: {text}.")
    if score["high"] < 0:
        return Finding("bad", f"Users prefer what {first} drafts: {text}.")
    return Finding("note", f"No preference is shown: {text}.")


def _tiles(made: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Headline figures: name, value, what to hold it against."""
    arms = made["arms"].values()
    if arms:
        yield "units", figure(sum(each["units"] for each in arms)), f"{sum(e['impressions'] for e in arms):,} slates"
    for name in made["compared"]:
        last = _last(made, name)
        if math.isfinite(last["low"]):
            yield name, f"{last['value']:+.3g}", f"{last['low']:+.3g} to {last['high']:+.3g} per unit"
    if made["shares"] is not None:
        yield "shares of units", "alarm" if made["shares"]["alarm"] else "as set", f"p = {made['shares']['p']:.2g}"
    if made["preference"] is not None:
        yield "drafted slates", figure(made["preference"]["slates"]), f"{figure(made['preference']['units'])} units"
    for each in made["shadows"]:
        yield f"shadow {each['arm']}", f"{100 * _number(each['overlap']):.0f}%", "of what was shown"


def _pictures(made: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """Each figure with its title and with what to look at."""
    for name, each in made["compared"].items():
        looks = [
            (units, found)
            for units, found in zip(each["units"], each["differences"], strict=True)
            if found["low"] is not None
        ]
        if len(looks) > 1:
            units = [float(count) for count, _ in looks]
            value, low, high = ([found[key] for _, found in looks] for key in ("value", "low", "high"))
            yield {
                "title": f"{name} less {made['names'][0]}, while units came",
                "look": "Reward per unit. The band holds at all times: where it leaves 0, a difference is shown.",
                "svg": plots.band(Curve(name, units, value), low, high, x="units", y="difference per unit"),
            }
    arms = [
        Estimated(name, each["reward"], each["reward"] - 1.96 * each["error"], each["reward"] + 1.96 * each["error"])
        for name, each in made["arms"].items()
        if each["error"] is not None
    ]
    if arms and made["compared"]:
        yield {
            "title": "What the arms earned",
            "look": "Mean reward per unit, +- 1.96 standard errors as of now.",
            "svg": plots.estimates(arms, None, None, label="reward per unit"),
        }
    if made["shares"] is not None and len(made["arms"]) > 1:
        counts, expected = made["shares"]["units"], made["shares"]["expected"]
        ratios = {name: counts[name] / expected[name] for name in counts if expected[name]}
        yield {
            "title": "Units seen over units expected",
            "look": "1 is what the weights say.",
            "svg": plots.bars(ratios, "seen / expected", name="shares"),
        }
    if made["preference"] is not None and made["preference"]["slates"]:
        each = made["preference"]
        won = {each["arms"][0]: each["wins"][0], "even": each["ties"], each["arms"][1]: each["wins"][1]}
        yield {
            "title": "Drafted slates won",
            "look": "Whose slots earned more, slate by slate.",
            "svg": plots.bars({name: float(count) for name, count in won.items()}, "slates", name="won"),
        }
        score = {key: each["score"][key] for key in ("value", "low", "high")}
        if None not in score.values():
            yield {
                "title": f"Preference for {each['arms'][1]}",
                "look": f"Share of a unit's slates that it won, less the share that {each['arms'][0]} won. The "
                "interval holds at all times.",
                "svg": plots.differences([Estimated(each["arms"][1], **score)], "mean over units"),
            }
    for each in made["shadows"]:
        yield {
            "title": f"What {each['arm']} would have shown too",
            "look": "Requests by the share of the shown items that the shadow holds.",
            "svg": plots.bars(_histogram(each["overlaps"]), "requests", name=f"overlap {each['arm']}"),
        }


def _tables(made: Mapping[str, Any]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    if made["arms"]:
        yield (
            "Arms",
            [
                {
                    "arm": name,
                    "units": each["units"],
                    "impressions": each["impressions"],
                    "reward per unit": each["reward"],
                    "per impression": each["reward_per_impression"],
                    "degraded": each["degraded"],
                    "answered by another": each["failed"],
                    "p50 ms": each["p50_ms"],
                    "p99 ms": each["p99_ms"],
                }
                for name, each in made["arms"].items()
            ],
        )
    if made["preference"] is not None:
        each = made["preference"]
        yield (
            "Drafted slates",
            [
                {"arm": name, "slates won": each["wins"][n], "earned in its slots": each["earned"][n]}
                for n, name in enumerate(each["arms"])
            ],
        )
    if made["shadows"]:
        yield (
            "Shadows",
            [
                {
                    "arm": each["arm"],
                    "pairs": each["pairs"],
                    "overlap": each["overlap"],
                    "Kendall's tau": each["correlation"],
                    "utility, more": each["utility"],
                    "degraded": each["degraded"],
                    "time, of that shown": each["ms"],
                }
                for each in made["shadows"]
            ],
        )
    yield "How it was set", [{**each, "reason": each["reason"] or "-"} for each in made["history"]]


def _histogram(shares: list[float]) -> dict[str, float]:
    named = [f"{low}-{low + 20}%" for low in range(0, 100, 20)]
    found = dict.fromkeys(named, 0.0)
    for share in shares:
        found[named[min(int(share * len(named)), len(named) - 1)]] += 1
    return found


def _number(value: float | None) -> float:
    return math.nan if value is None else value
