"""The page of a rebuild: what was measured of the new generation, what it was held to, how far it is from the old one.

A report is a tree of plain values, as `training.rebuild` leaves it; NaN is None.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from index.generations import Manifest
from training.durable import write_texts
from training.reports import plots
from training.reports.figures import Curve
from training.reports.report import environment, figure, plain

_PARTS = {
    "vectors": "index",
    "embedding_ID": "embeddings",
    "lexical": "text index",
    "towers": "towers",
    "ranker": "ranker",
    "row_I": "item features",
    "profile_U": "users",
    "user_id": "users",
}


def write(report: Mapping[str, Any], folder: Path) -> Path:
    """Write `rebuild.html` and `rebuild.json`, each whole or not at all; returns the page's path."""
    report = plain(report)
    write_texts(folder, {"rebuild.json": json.dumps(report, indent=2) + "\n", "rebuild.html": html(report)})
    return folder / "rebuild.html"


def html(report: Mapping[str, Any]) -> str:
    """The page, complete in itself."""
    return (
        environment()
        .get_template("rebuild.html.j2")
        .render(
            report=report,
            tiles=list(_tiles(report)),
            pictures=[{**each, "svg": Markup(each["svg"])} for each in _pictures(report)],
        )
    )


def told(report: Mapping[str, Any]) -> dict[str, Any]:
    """The report in a few lines, for a terminal."""
    metrics = report["metrics"]
    return {
        "generation": report["generation"],
        "from": report["parent"],
        "items": report["items"]["after"],
        "items before": report["items"]["before"],
        "changes folded in": report["changes"],
        "index": report["index"]["kind"],
        "recall, lower bound": metrics["index.recall_low"],
        "drift, mean cosine": metrics["drift.cosine"],
        "neighbours kept": metrics["drift.overlap"],
        "gates": f"{len(report['gates'])} passed",
        "seconds": sum(report["seconds"].values()),
    }


def sizes(manifest: Manifest) -> dict[str, int]:
    """Bytes of a generation by what they hold, the largest first."""
    held: Counter[str] = Counter()
    for path, entry in manifest.files.items():
        stem = path.partition("/")[0].partition(".")[0]
        held[_PARTS.get(stem, "ids, titles, columns")] += entry.bytes
    return dict(held.most_common())


def _tiles(report: Mapping[str, Any]) -> Iterator[tuple[str, str, str]]:
    """Headline figures: name, value, what to hold it against."""
    metrics, items, index = report["metrics"], report["items"], report["index"]
    yield "items", figure(items["after"]), f"before: {figure(items['before'])}"
    yield "changes folded in", figure(report["changes"]), f"up to entry {figure(report['catalog_seq'])}"
    beside = f"of {figure(report['queries'])} logged queries" if report["queries"] else "of the items themselves"
    yield "recall, lower bound", _percent(metrics["index.recall_low"]), beside
    yield "neighbours kept", _percent(metrics["drift.overlap"]), f"of the {figure(metrics['drift.k'])} nearest"
    yield "mean cosine", figure(metrics["drift.cosine"]), "of old and new vectors, aligned"
    size = report["bytes"].get("index", 0) / max(items["after"], 1)
    yield "index", f"{size:,.0f} bytes", f"a vector, {index['kind']}"


def _pictures(report: Mapping[str, Any]) -> Iterator[dict[str, str]]:
    """Each figure with its title and with what to look at."""
    curve = [each for each in report["index"]["curve"] if each["latency_ms"] is not None]
    unfiltered = []
    for k in sorted({each["k"] for each in curve}):
        points = sorted((e["effort"], e["latency_ms"], e["recall"]) for e in curve if (e["k"], e["share"]) == (k, 1))
        if points:
            _, latency_ms, recall = zip(*points, strict=True)
            unfiltered.append(Curve(f"k = {k}", latency_ms, recall))
    if unfiltered:
        yield {
            "title": "What a search costs and finds",
            "look": "Each point is one effort, from the least to the greatest. Recall is against exact search, of "
            "held-out queries; the dashed line is what its lower bound was to reach.",
            "svg": plots.tradeoff(unfiltered, floor=report["index"]["recall_target"]),
        }
    working = [each for each in curve if each["working"]]
    shares = sorted({each["share"] for each in working}, reverse=True)
    if len(shares) > 1:
        yield {
            "title": "The same under a filter",
            "look": "By the share of items that the filter allows: random ones, or whole regions as a category is.",
            "svg": plots.lines(
                {
                    "recall": _by_share(working, shares, "recall"),
                    "ms": _by_share(working, shares, "latency_ms"),
                },
                [f"{100 * share:g}%" for share in shares],
                name="filters",
            ),
        }
    drifted = [each for each in report["history"] if each["overlap"] is not None and each["cosine"] is not None]
    if drifted:
        at = range(len(drifted))
        yield {
            "title": "Drift from one generation to the next",
            "look": "A model that is trained anew moves its items; one that is rebuilt should not. A sudden drop "
            "is worth a look at what it was trained on.",
            "svg": plots.lines(
                {
                    "": [
                        Curve("neighbours kept", at, [each["overlap"] for each in drifted]),
                        Curve("mean cosine", at, [each["cosine"] for each in drifted]),
                    ]
                },
                [each["generation"].partition("-")[0].lstrip("0") for each in drifted],
                name="drift",
            ),
        }
    for title, look, values, unit in (
        (
            "What a generation weighs",
            "Memory-mapped: server processes of one machine share it.",
            {name: count / 1e6 for name, count in report["bytes"].items()},
            "MB",
        ),
        (
            "Where the time went",
            "A stage that an earlier attempt had finished takes none.",
            report["seconds"],
            "seconds",
        ),
    ):
        if any(values.values()):
            yield {"title": title, "look": look, "svg": plots.bars(values, unit, name=unit)}


def _by_share(points: Sequence[Mapping[str, Any]], shares: Sequence[float], measure: str) -> list[Curve]:
    """A line for each k and way to filter; without a filter both ways are one."""
    lines = []
    for k in sorted({each["k"] for each in points}):
        for regions in (False, True):
            ours = [each for each in points if each["k"] == k and (each["share"] == 1 or each["regions"] == regions)]
            of_share = {each["share"]: each[measure] for each in ours}
            at = [x for x, share in enumerate(shares) if share in of_share]
            lines.append(Curve(f"k = {k}, {'regions' if regions else 'random'}", at, [of_share[shares[x]] for x in at]))
    return lines


def _percent(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}%"
