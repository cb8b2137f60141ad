"""The next click of a session, asked for at the very moment it happens, of the sources that count as events arrive.

The clicks are gone through once, in the order of time. Before a click is asked for, the sources are told of every click
before its time and of no other. What they name is put in one order by a mixture of what each says, whose weights are
fitted on the day before the test.

Shape letters: T clicks by time, Q queries, C candidates of a query, W things said of a candidate, L history, K places
of the ranking.
"""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from rich.progress import BarColumn, TaskProgressColumn, TextColumn, TimeElapsedColumn

from candidate_gen.covisitation import Covisitation
from candidate_gen.merge import fused, merge
from candidate_gen.trending import Trending
from candidate_gen.types import Candidates, History, HydratedQuery, Query
from training.datasets.dataset import DataError
from training.evaluation.interactions import numbered, read_columns
from training.evaluation.topk import ItemSets, coverage, hit_rate, hits, interval, mean, mrr
from training.progress import progress

SOURCES = ("trending_5m", "covisitation_20m", "covisitation_1d")
"""Named by half-life. The shorter co-visitation counts only what is clicked after an item, not what before it."""
SAID = (*SOURCES, "covisitation_20m_last", "covisitation_1d_last")
"""Of a candidate: the score that each source gives it, and its count with the last click alone."""

_DAY_MS = 86_400_000
_DEPTH = 5
_NAMED = 100
_FITTED = 10_000
_STEPS = 200


def evaluate(
    data: Path,
    *,
    test_from: str = "",
    session: str = "session_id",
    item: str = "click_article_id",
    time: str = "click_timestamp",
    k: int = 20,
    seed: int = 0,
) -> dict[str, float]:
    """Predict every click of a session but its first, of those from `test_from` on, from all that happened before.

    Before is strict: clicks of the same millisecond, in whatever session, are not known yet, and a click whose session
    has none before its time is not asked for. What the session clicked before is not ranked again. The last day before
    `test_from` serves to fit the mixture, on at most 10,000 of its clicks.

    Args:
        data: Parquet, a row for each click.
        test_from: a date or time in UTC, as 2017-10-12 or 2017-10-12T06:00, or milliseconds since 1970; without it
            the last day in UTC that the file holds.
        session: name of the column that tells sessions apart.
        item: of what was clicked.
        time: of when: dates, or whole numbers of milliseconds since 1970.
        k: places of the ranking.

    Returns:
        `hr@k`, how often the click is among the first k, and `mrr@k`, the mean of 1 / its place, 0 where it is not,
        with `.low` and `.high` of their 95% bootstrap intervals over clicks; hr@k of items first clicked in the test
        (`.items_new`) and before it (`.items_known`), of second clicks (`.second`) and of later ones (`.later`); both
        metrics of every source alone (`.trending_5m` ...) and of their reciprocal rank fusion (`.fused`); `named`, the
        share of clicks that any source named; `coverage@k`; `clicks` asked for, `sessions`, `items`; the mixture's
        `weight.<what is said>`, which add up to 1.

    Raises:
        ValueError: where the file lacks a column, holds nulls or is empty, where `test_from` is not a time, or where
            nothing is to be asked for from it on or on the day before.
    """
    clicks = Clicks.read(data, session=session, item=item, time=time)
    last_ms = int(clicks.time_ms_T[-1])
    from_ms = _moment_ms(test_from) if test_from else last_ms // _DAY_MS * _DAY_MS
    asked_Q, fitted_Q = clicks.asked(from_ms, last_ms + 1), clicks.asked(from_ms - _DAY_MS, from_ms)
    for when, part_Q in (("from", asked_Q), ("on the day before", fitted_Q)):
        if not len(part_Q):
            raise DataError(f"{data}: no session has a second click {when} {_shown(from_ms)}")
    stream = Stream(clicks)
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
    with progress(*columns) as bar:
        fitted_Q = fitted_Q[:: math.ceil(len(fitted_Q) / _FITTED)]
        seen = bar.track(fitted_Q.tolist(), description="clicks of the day before")
        weight_W = fit(np.stack([stream.pool(at).share_of(clicks.item_T[at]) for at in seen]))
        ranked: dict[str, list[NDArray[np.int64]]] = {}
        named_Q = np.zeros(len(asked_Q), np.bool_)
        for query, at in enumerate(bar.track(asked_Q.tolist(), description="clicks of the test")):
            pool = stream.pool(at)
            named_Q[query] = clicks.item_T[at] in pool.candidates.row_N
            for name, row_K in pool.rankings(weight_W, k).items():
                ranked.setdefault(name, []).append(row_K)
    found = _metrics(clicks, asked_Q, ranked, from_ms=from_ms, k=k, seed=seed)
    weights = {f"weight.{name}": float(weight) for name, weight in zip(SAID, weight_W, strict=True)}
    return {**found, "named": float(named_Q.mean()), **weights}


@dataclass(frozen=True, slots=True)
class Clicks:
    """Who clicked what and when, by time."""

    time_ms_T: NDArray[np.int64]
    session_T: NDArray[np.int64]
    item_T: NDArray[np.int64]
    previous_T: NDArray[np.int64]
    """Position of the session's click before; -1 where there is none."""
    items: int

    @classmethod
    def read(cls, path: Path, *, session: str, item: str, time: str) -> "Clicks":
        """
        Raises:
            DataError: where the file cannot be read, is empty, lacks a column, holds nulls or times of another type.
        """
        frame = read_columns(path, (session, item, time))
        kind = frame.schema[time]
        if not (kind.is_integer() or isinstance(kind, pl.Date | pl.Datetime)):
            raise DataError(f"{path}: column {time!r} is {kind}; dates or whole numbers of milliseconds are needed")
        ms = pl.col(time) if kind.is_integer() else pl.col(time).dt.timestamp("ms")
        frame = frame.with_columns(ms.cast(pl.Int64).alias(time)).sort(time, maintain_order=True)
        items, (item_T,) = numbered(frame[item])
        _, (session_T,) = numbered(frame[session])
        order_T = np.argsort(session_T, kind="stable")
        same_T = np.append(False, session_T[order_T[1:]] == session_T[order_T[:-1]])
        previous_T = np.full(len(order_T), -1)
        previous_T[order_T[same_T]] = order_T[np.flatnonzero(same_T) - 1]
        return cls(frame[time].to_numpy(), session_T, item_T, previous_T, len(items))

    def asked(self, from_ms: int, to_ms: int) -> NDArray[np.int64]:
        """Clicks of this time, the end excluded, in whose session something was clicked before."""
        start, end = np.searchsorted(self.time_ms_T, [from_ms, to_ms])
        return np.array([at for at in range(start, end) if self.past(at)], np.int64)

    def past(self, at: int) -> list[int]:
        """Clicks of the same session with an earlier time, newest first."""
        past, before = [], self.previous_T[at]
        while before >= 0:
            if self.time_ms_T[before] < self.time_ms_T[at]:
                past.append(int(before))
            before = self.previous_T[before]
        return past


@dataclass(frozen=True, slots=True)
class Pool:
    """What the sources name for one query, and what each says of it."""

    candidates: Candidates
    share_CW: NDArray[np.float64]
    """Of all that is said of the candidates: each column adds up to 1, or to 0 where nothing is said."""

    def share_of(self, row: int) -> NDArray[np.float64]:
        """What is said of one item, (W,); 0 where no source named it."""
        share_W: NDArray[np.float64] = self.share_CW[self.candidates.row_N == row].sum(axis=0)
        return share_W

    def rankings(self, weight_W: NDArray[np.float64], k: int) -> dict[str, NDArray[np.int64]]:
        """The k best by the mixture (its name is empty), by reciprocal rank fusion and by every source alone."""
        row_C = self.candidates.row_N
        best_C = np.argsort(-(self.share_CW @ weight_W), kind="stable")
        found = {"": row_C[best_C[:k]], "fused": fused(self.candidates, k).row_N}
        for name, rank_C in zip(self.candidates.source_names, self.candidates.rank_NS.T, strict=True):
            named = np.flatnonzero((rank_C >= 0) & (rank_C < k))
            found[name] = row_C[named[np.argsort(rank_C[named])]]
        return found


class Stream:
    """The sources, told of the clicks in the order of time."""

    def __init__(self, clicks: Clicks) -> None:
        self._clicks = clicks
        self._told = 0
        self._trending = Trending(half_life_s=300)
        self._covisitations = (
            Covisitation(half_life_s=1_200, depth=_DEPTH, backward=0.0),
            Covisitation(half_life_s=86_400, depth=_DEPTH),
        )

    def pool(self, at: int) -> Pool:
        """What the sources name for a click, told of all clicks before its time.

        Clicks must be asked for in the order of time.
        """
        clicks = self._clicks
        now_ms = int(clicks.time_ms_T[at])
        self._tell(int(np.searchsorted(clicks.time_ms_T, now_ms)))
        past = clicks.past(at)
        history = History(clicks.item_T[past], np.zeros(len(past), np.int32), clicks.time_ms_T[past])
        query = Query(str(at), now_ms, "session", _NAMED, history=history)
        hydrated = HydratedQuery(query, np.empty(0), np.empty(0, np.float32))
        named = [source.retrieve(hydrated, _NAMED) for source in (self._trending, *self._covisitations)]
        candidates = merge(SOURCES, named)
        last = int(history.row_L[0])
        counted = [each.count(last, candidates.row_N, now_ms) for each in self._covisitations]
        said_CW = np.column_stack([candidates.score_NS, *counted]).astype(np.float64)
        total_W = said_CW.sum(axis=0)
        return Pool(candidates, said_CW / np.where(total_W > 0, total_W, 1))

    def _tell(self, end: int) -> None:
        """The sources of the clicks up to this one."""
        part = slice(self._told, end)
        row_N, time_ms_N = self._clicks.item_T[part], self._clicks.time_ms_T[part]
        self._trending.update(row_N, time_ms_N)
        for at, row, time_ms in zip(range(self._told, end), row_N.tolist(), time_ms_N.tolist(), strict=True):
            past: list[int] = []
            before = int(self._clicks.previous_T[at])
            while before >= 0 and len(past) < _DEPTH:
                past.append(before)
                before = int(self._clicks.previous_T[before])
            if past:
                past_row_L = self._clicks.item_T[past]
                for covisitation in self._covisitations:
                    covisitation.update(row, past_row_L, time_ms)
        self._told = end


def fit(share_QW: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights, at least 0 and 1 together, of the mixture that makes what was clicked most probable.

    By expectation maximisation on held-out clicks, as Jelinek and Mercer (1980, "Interpolated estimation of Markov
    source parameters from sparse data") do; the likelihood is concave. Clicks that no source named tell nothing.

    Args:
        share_QW: what was said of each click's item.
    """
    weight_W = np.full(share_QW.shape[1], 1 / share_QW.shape[1])
    share_QW = share_QW[share_QW.any(axis=1)]
    for _ in range(_STEPS if len(share_QW) else 0):
        due_QW = share_QW * weight_W
        weight_W = (due_QW / due_QW.sum(axis=1, keepdims=True)).mean(axis=0)
    return weight_W


def _metrics(
    clicks: Clicks,
    asked_Q: NDArray[np.int64],
    ranked: Mapping[str, Iterable[NDArray[np.int64]]],
    *,
    from_ms: int,
    k: int,
    seed: int,
) -> dict[str, float]:
    one_Q = np.ones(len(asked_Q), np.int64)
    relevant = ItemSets.of(np.arange(len(asked_Q)), clicks.item_T[asked_Q], queries=len(asked_Q))
    found: dict[str, float] = {}
    for name, rankings in ranked.items():
        ranked_QK = np.stack([np.pad(row_K, (0, k - len(row_K)), constant_values=-1) for row_K in rankings])
        hit_QK = hits(ranked_QK, relevant)
        hit_Q, mrr_Q = hit_rate(hit_QK, one_Q), mrr(hit_QK, one_Q)
        of = f".{name}" if name else ""
        found |= {f"hr@{k}{of}": mean(hit_Q), f"mrr@{k}{of}": mean(mrr_Q)}
        if name:
            continue
        for metric, metric_Q in (("hr", hit_Q), ("mrr", mrr_Q)):
            found[f"{metric}@{k}.low"], found[f"{metric}@{k}.high"] = interval(metric_Q, seed=seed)
        start = int(np.searchsorted(clicks.time_ms_T, from_ms))
        new_Q = ~np.isin(clicks.item_T[asked_Q], clicks.item_T[:start])
        second_Q = clicks.previous_T[clicks.previous_T[asked_Q]] < 0
        for part, of_Q in (("items_new", new_Q), ("items_known", ~new_Q), ("second", second_Q), ("later", ~second_Q)):
            found[f"hr@{k}.{part}"] = mean(hit_Q[of_Q])
        found[f"coverage@{k}"] = coverage(ranked_QK, clicks.items)
    counts = {"clicks": len(asked_Q), "sessions": len(np.unique(clicks.session_T[asked_Q])), "items": clicks.items}
    return found | {name: float(count) for name, count in counts.items()}


def _moment_ms(text: str) -> int:
    """A date, a time or milliseconds, as milliseconds since 1970.

    Raises:
        ValueError: for anything else.
    """
    if text.lstrip("-").isdigit():
        return int(text)
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ValueError(
            f"test_from is {text!r}; a date or time such as 2017-10-12T06:00, or milliseconds since 1970, is needed"
        ) from None
    return int(moment.replace(tzinfo=moment.tzinfo or UTC).timestamp() * 1000)


def _shown(time_ms: int) -> str:
    return datetime.fromtimestamp(time_ms / 1000, UTC).isoformat(timespec="seconds")
