"""The demo's proof as a report: `summary` gives the numbers, `figures` what is drawn beside them.

Shape letters: M impressions, K slots, B bins.
"""

import csv
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from policy.metrics import category_coverage, exposure_gini, fresh_share, intra_list_diversity, novelty
from policy.ope import faults
from protos.impression_pb2 import Impression, Kind
from protos.recommender_pb2 import RecommendRequest, RecommendResponse
from ranking.metrics import ece, reliability
from serving.again import recorded_again
from serving.answers import respond
from serving.client import slate_of
from serving.codec import query_of
from serving.generation import Generation
from training.commands import in_words
from training.log.served import ServedLog
from training.off_policy.estimate import Estimates, examination
from training.off_policy.replay import Verified
from training.off_policy.slices import slices
from training.publish import Published
from training.reports.figures import Calibrated, Curve, Estimated, Figures, SampleSlate, ShownItem
from training.simulation.traffic import Visit
from training.simulation.world import World

_BINS = 10
_USERS = 2
_LAST = 5
"""Titles of a user's history that are told."""


Outcome = tuple[NDArray[np.bool_], NDArray[np.float64]]
"""Of each exposure, whether an action came, and what was said of it."""


@dataclass(frozen=True, slots=True)
class Shown:
    """What a run on any data shows."""

    folder: Path
    data: str
    seed: int
    published: tuple[Published, ...]
    generations: tuple[Generation, ...]
    visits: tuple[Visit, ...]
    probes: tuple[int, int]
    """Requests answered while generations were swapped, and those that failed."""
    log: ServedLog
    verified: Verified
    stage_ms: Mapping[str, tuple[float, float]]
    seconds: float


@dataclass(frozen=True, slots=True)
class Proved:
    """What only a world with known truth can show beside it."""

    world: World
    estimates: Estimates
    truth: float
    """The world's own value of what was estimated."""
    rewards: Mapping[str, float]
    """Expected reward per request of every policy, on the same requests of the same users at the same time."""
    searches: Mapping[str, float]
    """The same of the searches among them; `bm25` is the order of what matches best."""


def summary(shown: Shown, proved: Proved | None) -> dict[str, Any]:
    """The numbers of `summary.json`."""
    failed = sum(visit.slate is None for visit in shown.visits) + shown.probes[1]
    asked = len(shown.visits) + sum(shown.probes)
    milliseconds = [visit.milliseconds for visit in shown.visits if visit.slate is not None]
    newest = shown.published[-1].metrics
    numbers: dict[str, Any] = {
        "data": shown.data,
        "seed": shown.seed,
        "seconds": shown.seconds,
        "requests": {"served": asked - failed, "failed": failed, "during_swap": sum(shown.probes)},
        "replay": {"requests": shown.verified.requests, "mismatches": shown.verified.mismatches},
        "retrieval": _by_cycle(shown.published, "retrieval"),
        "ranker": _by_cycle(shown.published, "ranker"),
        "index": {"recall": newest["index.recall"], "items": newest["index.items"]},
        "latency_ms": {
            **{stage: {"p50": p50, "p99": p99} for stage, (p50, p99) in shown.stage_ms.items()},
            "client": {"p50": float(np.percentile(milliseconds, 50)), "p99": float(np.percentile(milliseconds, 99))},
        },
    }
    if proved is not None:
        headline, overlap = proved.estimates.headline, proved.estimates.overlap
        numbers["reward"] = dict(proved.rewards)
        numbers["search_reward"] = dict(proved.searches)
        numbers["ope"] = {
            "estimate": headline.value,
            "low": headline.low,
            "high": headline.high,
            "truth": proved.truth,
            "effective_sample_size": headline.effective_sample_size,
            "thin_support": overlap.thin_support,
            **({"refused": "; ".join(found)} if (found := faults(overlap)) else {}),
            "logged": proved.estimates.logged.value,
            "inside_support": 1 - overlap.outside_support,
            "slots": proved.estimates.depth,
        }
    return numbers


def what_next(page: Path, is_world: bool) -> str:
    """Where to look, and what to try."""
    lines = [
        f"Look at {page}: first what a request earns, then the estimate beside the truth."
        if is_world
        else f"Look at {page}: first the sample slates, then what retrieval finds.",
        "Then try:",
        "  cascade call recommend --user " + ("u00001" if is_world else "1"),
        '  cascade call search "space adventure"',
        "  cascade serve                        # and the same calls from elsewhere",
        "  cascade generations list",
        "  cascade replay verify log=outputs/latest/log",
    ]
    return "\n".join(lines)


def _by_cycle(published: Sequence[Published], name: str) -> dict[str, dict[str, float]]:
    return {f"cycle{number}": _part(each.metrics, name) for number, each in enumerate(published, start=1)}


def _part(metrics: Mapping[str, float], name: str) -> dict[str, float]:
    prefix = f"{name}."
    return {
        each.removeprefix(prefix): value
        for each, value in metrics.items()
        if each.startswith(prefix) and "examination" not in each and "learned_until" not in each
    }


def figures(shown: Shown, proved: Proved | None) -> Figures:
    """What is drawn: all of it from the log, the store and the training's own records."""
    curve_K = examination(shown.published[-1].metrics)
    drawn = Figures(
        recall=[
            Curve(f"cycle {number}", *_recall(published.metrics))
            for number, published in enumerate(shown.published, start=1)
        ],
        training=_losses(shown.folder / f"cycle{len(shown.published)}" / "ranker" / "csv" / "metrics.csv"),
        slate_metrics=_slate_metrics(shown),
        slates=list(_samples(shown)),
    )
    if proved is None:
        return drawn
    slots = [float(k + 1) for k in range(len(curve_K))]
    outcomes = _outcomes(shown, curve_K)
    return replace(
        drawn,
        reliability=list(_reliability(outcomes)),
        slices=list(slices(_parts(shown), *outcomes[shown.generations[-1].table.actions[0]])),
        examination=[
            Curve("learned", slots, curve_K.tolist()),
            Curve("true", slots, proved.world.examination(len(curve_K)).tolist()),
        ],
        estimates=[Estimated(name, each.value, each.low, each.high) for name, each in proved.estimates.by_name.items()],
    )


def _recall(metrics: Mapping[str, float]) -> tuple[list[float], list[float]]:
    prefix = "retrieval.recall@"
    points = sorted((int(name.removeprefix(prefix)), r) for name, r in metrics.items() if name.startswith(prefix))
    return [float(k) for k, _ in points], [recall for _, recall in points]


def _reliability(outcomes: Mapping[str, Outcome]) -> Iterator[Calibrated]:
    """The reliability curve of every action."""
    for action, (came_N, said_N) in outcomes.items():
        curve = reliability(came_N, said_N, bins=_BINS)
        error = ece(came_N, said_N, bins=_BINS)
        columns = (curve.predicted_B.tolist(), curve.observed_B.tolist(), curve.count_B.tolist())
        yield Calibrated(action, *columns, error)


def _outcomes(shown: Shown, examination_K: NDArray[np.float64]) -> dict[str, Outcome]:
    """Of the newest cycle's served slates: P(action | examined) times the learned examination, and what followed."""
    impressions = _latest(shown)
    happened = set(shown.log.events.select("request_id", "item_id", "action").iter_rows())
    outcomes = {}
    for a, action in enumerate(shown.generations[-1].table.actions):
        said, came = [], []
        for each in impressions:
            probability_K = np.array(each.probability).reshape(len(each.item_id), -1)[:, a]
            said.append(
                probability_K * examination_K[np.minimum(np.arange(len(probability_K)), len(examination_K) - 1)]
            )
            came.append([(each.request_id, item_id, action) in happened for item_id in each.item_id])
        outcomes[action] = np.concatenate(came).astype(np.bool_), np.concatenate(said)
    return outcomes


def _parts(shown: Shown) -> dict[str, list[str]]:
    """What each exposure of the newest cycle is: by who asked, where, for what, and in which slot."""
    table = shown.generations[-1].table
    declared = {"category": table["category"]} | {each.name: each for each in table.profile if each.vocabulary}
    columns: dict[str, list[str]] = {"history": [], "surface": [], "slot": [], **{name: [] for name in declared}}
    for each in _latest(shown):
        slots = len(each.item_id)
        past = len(each.history_item_key)
        columns["history"] += ["none" if not past else "1 to 9" if past < 10 else "10 and more"] * slots
        columns["surface"] += [each.surface] * slots
        columns["slot"] += ["1" if k == 0 else "2 to 3" if k < 3 else "4 and below" for k in range(slots)]
        query_row = np.frombuffer(each.query_row, table.dtype("query"))
        item_rows = np.frombuffer(each.item_rows, table.dtype("item"))
        for name, feature in declared.items():
            row_K = item_rows[name] if name == "category" else np.repeat(query_row[name], slots)
            columns[name] += [("unknown", *feature.vocabulary)[row] for row in row_K.tolist()]
    return columns


def _latest(shown: Shown) -> list[Impression]:
    newest = shown.generations[-1].id
    return [each for each in shown.log.impressions if each.generation == newest]


def _losses(path: Path) -> list[Curve]:
    """The ranker's loss by epoch, from Lightning's CSV log."""
    with path.open() as file:
        rows = list(csv.DictReader(file))
    curves = []
    for label, column in (("training", "loss_epoch"), ("validation", "held_out_loss")):
        points = [(float(row["epoch"]) + 1, float(row[column])) for row in rows if row.get(column)]
        curves.append(Curve(label, [x for x, _ in points], [y for _, y in points]))
    return curves


def _slate_metrics(shown: Shown) -> dict[str, dict[str, float]]:
    """What the slates of each cycle were like, as they were served."""
    table: dict[str, dict[str, float]] = {}
    for number, generation in enumerate(shown.generations, start=1):
        items = generation.items
        slates = [
            (each.time_ms, items.ids.rows_of(each.item_id))
            for each in shown.log.impressions
            if each.generation == generation.id and each.item_id
        ]
        if not slates:
            continue
        exposure_I = np.bincount(np.concatenate([row_K for _, row_K in slates]), minlength=len(items))
        categories = len(generation.table["category"].vocabulary)
        values = {
            "diversity in a slate": [intra_list_diversity(items.embedding_ID[row_K]) for _, row_K in slates],
            "categories in a slate": [
                category_coverage(items.row_I["category"][row_K], categories) for _, row_K in slates
            ],
            "novelty, bits": [novelty(row_K, items.popularity_I) for _, row_K in slates],
            "fresh share (3 days)": [fresh_share(at_ms - items.published_ms_I[row_K], 3.0) for at_ms, row_K in slates],
            "catalogue shown": [float((exposure_I > 0).mean())],
            "exposure Gini": [exposure_gini(exposure_I)],
        }
        for name, each in values.items():
            table.setdefault(name, {})[f"cycle {number}"] = float(np.nanmean(each))
    return table


def _samples(shown: Shown) -> Iterator[SampleSlate]:
    """Slates of the same request by every cycle: the users with the longest histories, and a search."""
    by_history = sorted(_latest(shown), key=lambda each: len(each.history_item_key), reverse=True)
    for kind, most in ((Kind.KIND_RECOMMEND, _USERS), (Kind.KIND_SEARCH, 1)):
        chosen = {each.user_id: each for each in reversed(by_history) if each.kind == kind}
        for logged in list(chosen.values())[-most:]:
            for number, generation in enumerate(shown.generations, start=1):
                yield _sample(logged, generation, f"cycle {number}")


def _sample(logged: Impression, generation: Generation, answered_by: str) -> SampleSlate:
    """What a generation answers to a logged request, as its caller would see it."""
    again = recorded_again(logged, generation)
    request = RecommendRequest(include_scores=True)
    response = RecommendResponse()
    respond(response, request, logged=again, query=query_of(again, generation), generation=generation)
    slate = slate_of(response)
    named = [reason.partition(":")[2] for item in slate.items for reason in item.reasons if ":" in reason]
    rows = generation.items.ids.rows_of(named)
    titles = {item_id: generation.items.titles[int(row)] for item_id, row in zip(named, rows, strict=True)}
    return SampleSlate(
        f"search: {logged.text}" if logged.text else _who(logged, generation),
        answered_by,
        [
            ShownItem(
                title=item.title,
                category=item.category,
                score=item.score,
                propensity=item.propensity,
                sources=item.sources,
                reasons=[in_words(reason, titles) for reason in item.reasons],
            )
            for item in slate.items
        ],
    )


def _who(logged: Impression, generation: Generation) -> str:
    """A user and what they last took, as a person reads it."""
    row_L = generation.items.ids.rows(np.array(logged.history_item_key, np.uint64))
    last = list(dict.fromkeys(generation.items.titles[row] for row in row_L.tolist() if row >= 0))[:_LAST]
    return f"for user {logged.user_id}" + (f", who last took {'; '.join(last)}" if last else "")
