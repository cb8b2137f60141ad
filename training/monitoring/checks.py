"""Some days against the days of a reference: what is different, and by more than chance and than those days among
themselves.

Three things must come together for an alarm:

1. The difference reaches its limit in `Limits`: a small one is of no consequence, however certain.
2. Chance does not explain it: P < alpha / number of sections / number of comparisons in the section (Bonferroni: many
   features do not make outcomes any harder to judge), where only different users count as independent.
3. The reference does not show the like. A distribution must be `times` as far from the reference as any of its days is
   from its other days. A rate or a level must lie outside of what one more such day would show (Student's t over the
   days; where the days differ no more than their sampling errors say, the normal law and those errors).

The third is what keeps weekdays and slow trends from sounding an alarm every day. What a generation shows and says is
its own: give this days that one generation answered, or would have (`training.monitoring.again`).

Shape letters: G cells, D days.
"""

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import cast

import numpy as np
from numpy.typing import NDArray
from scipy.stats import norm, t

from training.monitoring import distance
from training.monitoring.answerers import Answerers
from training.monitoring.days import Day
from training.monitoring.limits import LEAST_DAYS, Limits
from training.monitoring.rate import Rate

_LEAST_UNITS = 30
_RISES = ("quality", "serving", "freshness")
"""Sections in which a fall is no harm."""


@dataclass(frozen=True, slots=True)
class Check:
    """One comparison."""

    section: str
    name: str
    statistic: str
    """psi, ks, wasserstein; change; similarity, age."""
    value: float
    """The statistic: of a distribution its distance, else the difference between now and then."""
    limit: float
    """What it must stay below."""
    then: float
    """Of a distribution the largest distance within the reference; of a rate or level its mean there."""
    now: float
    alarm: bool
    p: float
    """P(so much | no difference) by chance alone; NaN where that is in the limit."""

    @property
    def ratio(self) -> float:
        """Of the limit; infinite where that is 0 and the value is not."""
        return abs(self.value) / self.limit if self.limit else math.inf if self.value else 0.0


@dataclass(frozen=True, slots=True)
class Distribution:
    """A column, then and now, as it is drawn."""

    name: str
    grid_G: NDArray[np.float64]
    """Upper ends of cells, or categories."""
    then_G: NDArray[np.float64]
    now_G: NDArray[np.float64]
    categories: bool


def checks(window: Sequence[Day], reference: Sequence[Day], answerers: Answerers, limits: Limits) -> list[Check]:
    """Every comparison, the largest share of its limit first.

    Raises:
        ValueError: where the window is empty, or the reference has too few days with requests.
    """
    reference = [day for day in reference if day.requests]
    window = [day for day in window if day.requests]
    if not window:
        raise ValueError("the log holds no impression of the days that are to be looked at")
    if len(reference) < LEAST_DAYS:
        raise ValueError(f"the reference has {len(reference)} days with requests; at least {LEAST_DAYS} are needed")
    columns = sorted(set(window[0].columns).intersection(*(day.columns for day in (*window[1:], *reference))))
    names = [(day.rates.keys(), day.levels.keys()) for day in (*window, *reference)]
    rates = sorted(set.intersection(*(set(each) for each, _ in names)))
    levels = sorted(set.intersection(*(set(each) for _, each in names)))
    comparisons = Counter(name.partition("/")[0] for name in (*columns, *columns, *columns, *rates, *levels))

    def alpha(name: str) -> float:
        return limits.alpha / len(comparisons) / comparisons[name.partition("/")[0]]

    found = [check for name in columns for check in _distances(name, window, reference, limits, alpha(name))]
    found += [check for name in rates for check in _rate(name, window, reference, limits, alpha(name))]
    found += [check for name in levels for check in _level(name, window, reference, limits, alpha(name))]
    found += _generations(window, reference, answerers, limits)
    return sorted(found, key=lambda check: (not check.alarm, -check.ratio, check.name))


def distribution(name: str, window: Sequence[Day], reference: Sequence[Day]) -> Distribution:
    """A column of both times."""
    grid_G, now_DG, then_DG = _counts(name, window, reference)
    categories = window[0].columns[name].dtype.kind == "i"
    return Distribution(name, grid_G, then_DG.sum(axis=0), now_DG.sum(axis=0), categories)


def _counts(
    name: str, window: Sequence[Day], reference: Sequence[Day]
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """The grid, and the counts of the window's days and of the reference's."""
    now, then = ([day.columns[name] for day in days] for days in (window, reference))
    if now[0].dtype.kind == "i":
        of_then = cast(list[NDArray[np.int64]], then)
        category_G = distance.categories(of_then)
        counts = [[distance.tallied(each.astype(np.int64), category_G) for each in part] for part in (now, then)]
        grid_G = category_G.astype(np.float64)
    else:
        grid_G = distance.grid([np.concatenate(now), np.concatenate(then)])
        counts = [[distance.counted(each, grid_G) for each in part] for part in (now, then)]
    return grid_G, np.array(counts[0]), np.array(counts[1])


def _distances(
    name: str, window: Sequence[Day], reference: Sequence[Day], limits: Limits, alpha: float
) -> Iterator[Check]:
    """PSI of everything, for numbers also the distances that know an order."""
    units, then_units = sum(day.units for day in window), sum(day.units for day in reference)
    if not sum(len(day.columns[name]) for day in reference) or min(units, then_units) < _LEAST_UNITS:
        return
    grid_G, now_DG, then_DG = _counts(name, window, reference)
    now_G, then_G = now_DG.sum(axis=0), then_DG.sum(axis=0)
    if not (now_G.any() and then_G.any()):
        return
    pairs = [(one_G, then_G - one_G) for one_G in then_DG if one_G.any() and (then_G - one_G).any()]
    is_number = window[0].columns[name].dtype.kind == "f"
    first_B = distance.bins(then_G) if is_number else np.arange(len(then_G))

    def psi(one_G: NDArray[np.float64], other_G: NDArray[np.float64]) -> float:
        return distance.psi(np.add.reduceat(one_G, first_B), np.add.reduceat(other_G, first_B))

    statistics: dict[str, Callable[[NDArray[np.float64], NDArray[np.float64]], float]] = {"psi": psi}
    if is_number:
        statistics |= {"ks": distance.ks, "wasserstein": lambda one, other: distance.wasserstein(one, other, grid_G)}
    for statistic, apart in statistics.items():
        value = apart(now_G, then_G)
        among = max((apart(one_G, rest_G) for one_G, rest_G in pairs), default=0.0)
        if statistic == "psi":
            p = distance.psi_by_chance(value, len(first_B), units, then_units)
        else:
            p = distance.ks_by_chance(distance.ks(now_G, then_G), units, then_units)
        limit = max(getattr(limits, statistic), limits.times * among)
        section, _, short = name.partition("/")
        yield Check(section, short, statistic, value, limit, among, value, value > limit and p < alpha, p)


def _rate(name: str, window: Sequence[Day], reference: Sequence[Day], limits: Limits, alpha: float) -> Iterator[Check]:
    now = sum((day.rates[name] for day in window), Rate())
    then = sum((day.rates[name] for day in reference), Rate())
    value_D = np.array([day.rates[name].value for day in reference])
    error_D = np.array([day.rates[name].error for day in reference])
    if min(now.requests, then.requests / len(reference)) < _LEAST_UNITS:
        return
    sampling = math.hypot(max(now.error, float(np.sqrt(np.nanmean(error_D**2)))), then.error)
    yield from _changed(name, now.value, value_D[np.isfinite(value_D)], sampling=sampling, limits=limits, alpha=alpha)


def _level(name: str, window: Sequence[Day], reference: Sequence[Day], limits: Limits, alpha: float) -> Iterator[Check]:
    value_D = np.array([day.levels[name] for day in reference])
    now = float(np.mean([day.levels[name] for day in window]))
    if name.startswith("freshness/"):
        section, _, short = name.partition("/")
        limit = limits.generation_days
        yield Check(section, short, "age", now, limit, float(np.nanmean(value_D)), now, now > limit, math.nan)
    elif math.isfinite(now):
        yield from _changed(name, now, value_D[np.isfinite(value_D)], sampling=0.0, limits=limits, alpha=alpha)


def _changed(
    name: str, now: float, value_D: NDArray[np.float64], *, sampling: float, limits: Limits, alpha: float
) -> Iterator[Check]:
    """
    Args:
        sampling: standard error of the difference that comes of requests being few; 0 where it is not known.
    """
    count = len(value_D)
    if count < LEAST_DAYS:
        return
    middle, among = float(value_D.mean()), float(value_D.std(ddof=1)) * math.sqrt(1 + 1 / count)
    if among <= 1.5 * sampling:
        noise = max(among, sampling) * float(norm.isf(alpha / 2))
    else:
        noise = among * float(t.isf(alpha / 2, count - 1))
    section, _, short = name.partition("/")
    limit = max(_least(section, short, abs(middle), limits), noise)
    change = now - middle
    alarm = (change if section in _RISES else abs(change)) > limit
    yield Check(section, short, "change", change, limit, middle, now, alarm, math.nan)


def _least(section: str, name: str, middle: float, limits: Limits) -> float:
    """What a change must reach to be of consequence."""
    absolute = {
        "quality": limits.share,
        "serving": limits.share,
        "sources": limits.source_share,
        "calibration ECE": limits.ece,
        "calibration AUC": limits.auc,
    }
    relative = {
        "slices": limits.slice_change,
        "popularity": limits.popularity_change,
        "volume": limits.volume_change,
        "serving ms": limits.latency_change,
        "outcomes s": limits.delay_change,
    }
    special = f"{section} {name.rpartition(' ')[2]}"
    for kind in (special, section):
        if kind in relative:
            return relative[kind] * middle
        if kind in absolute:
            return absolute[kind]
    return limits.outcome_change * middle


def _generations(
    window: Sequence[Day], reference: Sequence[Day], answerers: Answerers, limits: Limits
) -> Iterator[Check]:
    """The vectors of who answers now beside those of who answered before; nothing where one of them is gone."""
    now, then = most_answered_by(window), most_answered_by(reference)
    alike = answerers.similarity(then, now)
    if math.isfinite(alike):
        apart, limit = 1 - alike, 1 - limits.similarity
        name = "vectors of the generations"
        yield Check("embeddings", name, "similarity", apart, limit, 1.0, alike, apart > limit, math.nan)


def most_answered_by(days: Sequence[Day]) -> str:
    """Who answered most requests; empty where there were none."""
    counts = Counter[str]()
    for day in days:
        counts.update(day.generations)
    return max(counts, key=lambda name: (counts[name], name), default="")
