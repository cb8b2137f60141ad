"""The page of a run of search over judged queries: its figures, its worst queries, what changed since another run."""

import json
import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from markupsafe import Markup

from training.durable import write_texts
from training.evaluation.search_run import FIGURES, SearchRun
from training.reports import plots
from training.reports.figures import Estimated
from training.reports.report import environment, figure, plain

_WORST, _CHANGED = 20, 20
_BINS = np.linspace(0, 1, 11)


def write(run: SearchRun, before: SearchRun | None, metrics: Mapping[str, float], folder: Path) -> Path:
    """Write the run's tables, `search.json` and `search.html`; returns the page's path."""
    run.write(folder)
    told = json.dumps(plain(metrics), indent=2) + "\n"
    write_texts(folder, {"search.json": told, "search.html": html(run, before, metrics)})
    return folder / "search.html"


def html(run: SearchRun, before: SearchRun | None, metrics: Mapping[str, float]) -> str:
    """The page, complete in itself."""
    ranked_by = "ndcg@10" if metrics.get("queries", 0) else "map"
    return (
        environment()
        .get_template("search.html.j2")
        .render(
            tiles=list(_tiles(metrics)),
            table=[
                {"name": name, "value": value, "low": metrics.get(f"{name}.low"), "high": metrics.get(f"{name}.high")}
                for name, value in metrics.items()
                if not name.endswith((".low", ".high", ".p"))
            ],
            pictures=[{**each, "svg": Markup(each["svg"])} for each in _pictures(run, metrics)],
            ranked_by=ranked_by,
            worst=[
                {"query": row["query"], "value": row[ranked_by], "list": _listed(run, row["query"])}
                for row in run.worst(ranked_by, most=_WORST).iter_rows(named=True)
            ],
            compared=before is not None,
            changed=[] if before is None else list(_changed(run, before, ranked_by)),
        )
    )


def _tiles(metrics: Mapping[str, float]) -> Iterator[tuple[str, str, str]]:
    for name in FIGURES:
        value = metrics.get(name, math.nan)
        if not math.isnan(value):
            low, high = metrics[f"{name}.low"], metrics[f"{name}.high"]
            yield name, f"{value:.4f}", f"{low:.4f} to {high:.4f}"
    yield "queries", figure(metrics["queries.recall"]), f"{figure(metrics['titles'])} titles"


def _pictures(run: SearchRun, metrics: Mapping[str, float]) -> Iterator[dict[str, str]]:
    for beside, label, title in (
        ("gain", "difference to BM25", "What it is worth beside BM25"),
        ("against", "difference to the other run", "What changed since the other run"),
    ):
        estimated = [
            Estimated(name, metrics[at], metrics[f"{at}.low"], metrics[f"{at}.high"])
            for name in FIGURES
            if not math.isnan(metrics.get(at := f"{name}.{beside}", math.nan))
        ]
        if estimated:
            yield {
                "title": title,
                "look": "Mean difference over the queries, with its paired 95% interval: wholly right of 0 is better, "
                "wholly left of it worse.",
                "svg": plots.differences(estimated, label),
            }
    for name in ("recall@100", "ndcg@10"):
        value = run.queries[name].to_numpy()
        value = value[~np.isnan(value)]
        if len(value):
            share, _ = np.histogram(value, _BINS)
            names = [f"{low:.1f}-{low + 0.1:.1f}" for low in _BINS[:-1]]
            yield {
                "title": f"{name}, query by query",
                "look": "How many queries have how much of it. A mean hides the queries that find nothing.",
                "svg": plots.bars(dict(zip(names, share.tolist(), strict=True)), "queries", name=f"search-{name}"),
            }


def _changed(run: SearchRun, before: SearchRun, name: str) -> Iterator[dict[str, Any]]:
    """The queries whose lists differ, those first whose figure changed most."""
    both = run.beside(before).with_columns(change=pl.col(name) - pl.col(f"{name}.before"))
    ordered = both.filter(pl.col("change").is_not_nan() & (pl.col("change") != 0))
    for row in ordered.sort(pl.col("change").abs(), descending=True).head(_CHANGED).iter_rows(named=True):
        lists = _listed(before, row["query"]), _listed(run, row["query"])
        yield {"query": row["query"], "change": row["change"], "before": lists[0], "after": lists[1]}


def _listed(run: SearchRun, query: str) -> list[dict[str, Any]]:
    return run.results.filter(pl.col("query") == query).sort("place").to_dicts()
