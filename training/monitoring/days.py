"""What is kept of a day of the log: rates and levels of all of it, columns of a sample of whole requests.

A day is read once, in the order of its time; some thousand impressions are in memory at a time, beside the keys of the
day's outcomes. Which requests are sampled depends on their ids alone, so a day is the same whenever it is read.

Shape letters: R requests of a chunk, N exposures, K slots, A actions, C cells of probability, I items.
"""

import heapq
import math
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
from numpy.typing import NDArray

from index.strings import keys64
from policy.metrics import exposure_gini
from protos.impression_pb2 import Degraded, Impression, Outcome
from ranking.metrics import auc
from training.log.archive import day_of
from training.monitoring import views
from training.monitoring.answerers import Answerers
from training.monitoring.labels import Exposures, Labels
from training.monitoring.rate import Rate

DAY_MS = 86_400_000
_CHUNK = 2048
_HEAD = 0.01
"""Share of the catalogue that is called its head."""
_CELLS = 1 / (1 + np.exp(-np.linspace(-7.0, 3.0, 21)))
"""Of probabilities, upper ends; evenly spaced by logit."""
_DELAYS = 20_000
"""Outcomes whose delay is looked at, the first of the day."""


@dataclass(frozen=True, slots=True)
class Reliability:
    """Of one action, by cell of what was said: rows, the sum of what was said, what followed."""

    rows_C: NDArray[np.float64]
    said_C: NDArray[np.float64]
    followed_C: NDArray[np.float64]

    @classmethod
    def of(cls, said_N: NDArray[np.float64], followed_N: NDArray[np.bool_]) -> "Reliability":
        cell_N, count = np.searchsorted(_CELLS, said_N), len(_CELLS) + 1
        weights = (np.ones(len(said_N)), said_N, followed_N)
        return cls(*(np.bincount(cell_N, each, count).astype(np.float64) for each in weights))

    def __add__(self, other: "Reliability") -> "Reliability":
        return Reliability(self.rows_C + other.rows_C, self.said_C + other.said_C, self.followed_C + other.followed_C)

    @property
    def ece(self) -> float:
        """Mean over rows of |said - followed|, by cell; NaN without rows."""
        rows = self.rows_C.sum()
        return float(np.abs(self.said_C - self.followed_C).sum() / rows) if rows else math.nan


@dataclass(frozen=True, slots=True)
class Day:
    """One day, UTC. Names of what was found are `section/name`."""

    start_ms: int
    requests: int
    units: int
    """Different users of the sample, or visitors, or requests of nobody: what is independent of each other."""
    rates: dict[str, Rate]
    levels: dict[str, float]
    """What is one number a day."""
    columns: dict[str, NDArray[np.generic]]
    """Of the sample: integers are categories, floats numbers."""
    reliability: dict[str, Reliability]
    """By action."""
    generations: dict[str, int]
    """Requests by who answered."""
    sampled: tuple[str, ...]
    """Ids of the sampled requests."""
    unreadable: int
    """Of the sample: their feature table is nowhere in the store."""
    asked_again: int = 0
    """Requests whose answers are those that another generation gives now, see `training.monitoring.again`."""

    @property
    def name(self) -> str:
        return day_of(self.start_ms)


@dataclass(slots=True)
class _Tally:
    """A day that is being read."""

    rates: dict[str, Rate] = field(default_factory=dict)
    reliability: dict[str, Reliability] = field(default_factory=dict)
    generations: dict[str, int] = field(default_factory=dict)
    requests: int = 0
    users: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    item_key_I: NDArray[np.uint64] = field(default_factory=lambda: np.empty(0, np.uint64))
    exposure_I: NDArray[np.float64] = field(default_factory=lambda: np.empty(0))
    latency_ms: list[float] = field(default_factory=list)
    sample: list[tuple[int, str, Impression]] = field(default_factory=list)
    """A heap of those with the smallest hashes, the largest of them first."""

    def add(self, name: str, rate: Rate) -> None:
        self.rates[name] = self.rates.get(name, Rate()) + rate

    def show(self, item_key_N: NDArray[np.uint64]) -> None:
        """Count exposures by item."""
        self.item_key_I, at_N = np.unique(np.concatenate((self.item_key_I, item_key_N)), return_inverse=True)
        weight_N = np.concatenate((self.exposure_I, np.ones(len(item_key_N))))
        self.exposure_I = np.bincount(at_N, weight_N, len(self.item_key_I)).astype(np.float64)

    def keep(self, each: Impression, *, most: int) -> None:
        entry = (-zlib.crc32(each.request_id.encode()), each.request_id, each)
        if len(self.sample) < most:
            heapq.heappush(self.sample, entry)
        elif entry[:2] > self.sample[0][:2]:
            heapq.heapreplace(self.sample, entry)


def summarised(
    impressions: Iterable[Impression],
    outcomes: Iterable[Outcome],
    answerers: Answerers,
    *,
    start_ms: int,
    label_ms: int,
    sample: int,
) -> Day:
    """Read a day.

    Args:
        impressions: of this day, as they were shown.
        outcomes: that became visible on this day.
        label_ms: within which an outcome has to follow; an impression so late that its day ends before has no labels.
        sample: requests whose features are looked at.
    """
    tally = _Tally()
    labels = Labels.of(outcomes, start_ms=start_ms, end_ms=start_ms + DAY_MS, label_ms=label_ms)
    waiting = iter(impressions)
    while chunk := list(islice(waiting, _CHUNK)):
        _count(chunk, labels, answerers, tally)
        for each in chunk:
            tally.keep(each, most=sample)
    tally.add("quality/outcomes of nothing shown", labels.of_nothing_shown())
    logged = [each for _, _, each in sorted(tally.sample, key=lambda entry: entry[1])]
    columns = _columns(logged, answerers, tally)
    columns["outcomes/delay, log s"] = np.log1p(labels.delay_s_E[:_DELAYS])
    levels = _levels(tally, labels, answerers, start_ms) | _sliced(logged, labels, answerers, tally)
    return Day(
        start_ms=start_ms,
        requests=tally.requests,
        units=len({each.user_id or each.visitor_id or each.request_id for each in logged}),
        rates=tally.rates | labels.rates,
        levels=levels,
        columns=columns,
        reliability=tally.reliability,
        generations=tally.generations,
        sampled=tuple(each.request_id for each in logged),
        unreadable=sum(each.schema not in answerers.tables for each in logged),
    )


def _count(chunk: list[Impression], labels: Labels, answerers: Answerers, tally: _Tally) -> None:
    """Everything that is looked at of all requests."""
    exposures = Exposures.of(chunk)
    labels.unmatched.difference_update(exposures.pair_N.tolist())
    tally.requests += len(chunk)
    tally.show(exposures.item_key_N)
    tally.users = np.union1d(tally.users, keys64(each.user_id for each in chunk if each.user_id))
    for each in chunk:
        tally.generations[each.generation] = tally.generations.get(each.generation, 0) + 1
        tally.latency_ms.append(sum(stage.milliseconds for stage in each.stages))
    degraded_R = np.array([each.degraded for each in chunk], np.int64)
    for name, bit in Degraded.items():
        if bit:
            tally.add(f"serving/{name.removeprefix('DEGRADED_').lower()}", Rate.of((degraded_R & bit) > 0))
    tally.add("quality/empty slates", Rate.of(exposures.count_R == 0))
    tally.add("quality/numbers out of range", Rate.of(np.array([not _in_range(each) for each in chunk])))
    _sources(chunk, tally)
    labelled_R = np.array([each.time_ms < labels.labelled_until_ms for each in chunk], np.bool_)
    for action, said_N in _said(chunk, answerers).items():
        followed_N = labels.followed(exposures, action)
        kept_N = labelled_R[exposures.request_N]
        tally.add(f"outcomes/{action}", Rate.of(exposures.sums(followed_N & kept_N), exposures.sums(kept_N)))
        usable_N = kept_N & np.isfinite(said_N)
        said_R = exposures.sums(np.where(usable_N, said_N, 0))
        tally.add(f"calibration/{action}, followed over said", Rate.of(exposures.sums(followed_N & usable_N), said_R))
        found = Reliability.of(said_N[usable_N], followed_N[usable_N])
        tally.reliability[action] = tally.reliability[action] + found if action in tally.reliability else found


def _said(logged: Sequence[Impression], answerers: Answerers) -> dict[str, NDArray[np.float64]]:
    """P(action) of every exposure, times what the ranker learned of who looks at its slot; NaN where not said."""
    said: dict[str, list[NDArray[np.float64]]] = {action: [] for each in logged for action in each.action_names}
    for each in logged:
        slots, names = len(each.item_id), list(each.action_names)
        answerer = answerers.by_id.get(each.generation)
        learned_K = answerer.examination_K if answerer else np.ones(1)
        examined_K = learned_K[np.minimum(np.arange(slots), len(learned_K) - 1)]
        whole = len(each.probability) == slots * len(names)
        probability_KA = np.array(each.probability, np.float64).reshape(slots, len(names)) if whole and names else None
        for action, parts in said.items():
            if probability_KA is None or action not in names:
                parts.append(np.full(slots, np.nan))
            else:
                parts.append(examined_K * probability_KA[:, names.index(action)])
    return {action: np.concatenate(parts) for action, parts in said.items()}


def _sources(chunk: Sequence[Impression], tally: _Tally) -> None:
    """What each source contributes to what is shown, and how often it was left out."""
    for name in dict.fromkeys(name for each in chunk for name in (*each.source_names, *each.skipped_sources)):
        found_R, rows_R = np.zeros(len(chunk)), np.zeros(len(chunk))
        for r, each in enumerate(chunk):
            names = list(each.source_names)
            if name in names:
                bit = 1 << names.index(name)
                found_R[r] = sum((bits & bit) > 0 for bits in each.source_bits)
                rows_R[r] = len(each.source_bits)
        tally.add(f"sources/{name}", Rate.of(found_R, rows_R))
        tally.add(f"serving/without {name}", Rate.of(np.array([name in each.skipped_sources for each in chunk])))


def _in_range(each: Impression) -> bool:
    """Propensities and probabilities are such, utilities are numbers, and every slot has its own."""
    return (
        len(each.propensity) == len(each.item_id) == len(each.utility)
        and all(0 < p <= 1 + 1e-9 for p in each.propensity)
        and all(0 <= p <= 1 for p in each.probability)
        and all(map(math.isfinite, each.utility))
    )


def _columns(logged: Sequence[Impression], answerers: Answerers, tally: _Tally) -> dict[str, NDArray[np.generic]]:
    """Of the sample; also counts how often its features hold nothing."""
    parts: dict[str, list[NDArray[np.generic]]] = {}
    for table, group in answerers.readable(logged):
        rows_of = views.rows(table, group)
        counted_N = answerers.counted(group)
        for name, column in views.features(table, rows_of, counted_N):
            section = "scores" if name == "tower_score" else "features"
            parts.setdefault(f"{section}/{name}", []).append(column)
        for name, rate in views.defaults(table, rows_of, counted_N):
            tally.add(f"quality/{name} at its default", rate)
        tally.add("quality/features that are no number", views.not_finite(table, rows_of))
    for name, columns in views.vectors(answerers, logged).items():
        parts[f"embeddings/{name}"] = columns
    parts["features/kind of request"] = [np.array([each.kind for each in logged], np.int64)]
    parts["features/words typed"] = [np.array([len(each.text.split()) for each in logged], np.float64)]
    parts["scores/utility"] = [np.array([value for each in logged for value in each.utility], np.float64)]
    for action, said_N in _said(logged, answerers).items():
        parts[f"scores/P({action})"] = [said_N]
    parts["popularity/items shown"] = [keys64(item_id for each in logged for item_id in each.item_id).view(np.int64)]
    return {name: np.concatenate(columns) for name, columns in parts.items() if columns}


def _sliced(logged: list[Impression], labels: Labels, answerers: Answerers, tally: _Tally) -> dict[str, float]:
    """Count what followed by what requests are, for the main action; returns how well that action was ordered."""
    kept = [each for each in logged if each.time_ms < labels.labelled_until_ms and each.action_names]
    if not kept:
        return {}
    action = kept[0].action_names[0]
    exposures = Exposures.of(kept)
    followed_N = labels.followed(exposures, action)
    hits_R = exposures.sums(followed_N)
    for respect, value_R in views.slices(answerers, kept).items():
        for value in np.unique(value_R).tolist():
            at_R = value_R == value
            tally.add(f"slices/{respect} {value or '(none)'}", Rate.of(hits_R[at_R], exposures.count_R[at_R]))
    said_N = _said(kept, answerers)[action]
    finite_N = np.isfinite(said_N)
    return {f"calibration/{action}, AUC": auc(followed_N[finite_N], said_N[finite_N])}


def _levels(tally: _Tally, labels: Labels, answerers: Answerers, start_ms: int) -> dict[str, float]:
    known = {answerers.by_id[name]: count for name, count in tally.generations.items() if name in answerers.by_id}
    unseen = max((len(each.items) for each in known), default=0) - len(tally.exposure_I)
    count_I = np.sort(np.concatenate((tally.exposure_I, np.zeros(max(unseen, 0)))))[::-1]
    levels = {
        "volume/requests": float(tally.requests),
        "volume/users": float(len(tally.users)),
        "volume/outcomes": float(len(labels.delay_s_E)),
        **{f"calibration/{action}, ECE": each.ece for action, each in tally.reliability.items()},
    }
    if len(count_I):
        head = count_I[: math.ceil(_HEAD * len(count_I))]
        levels |= {
            "popularity/share of the catalogue that was shown": len(tally.exposure_I) / len(count_I),
            "popularity/Gini of exposure": exposure_gini(count_I),
            "popularity/exposures of the head": float(head.sum() / count_I.sum()),
        }
    if known:
        made_ms = np.average([each.manifest.created_ms for each in known], weights=list(known.values()))
        levels["freshness/days since the generation was made"] = float(start_ms + DAY_MS - made_ms) / DAY_MS
    for quantile in (50, 99):
        if tally.latency_ms:
            levels[f"serving/all stages, p{quantile} ms"] = float(np.percentile(tally.latency_ms, quantile))
        if len(labels.delay_s_E):
            levels[f"outcomes/delay, p{quantile} s"] = float(np.percentile(labels.delay_s_E, quantile))
    return levels
