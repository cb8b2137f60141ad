"""What an experiment shows, from the impression log: arms compared per unit, drafted slates by credit, shadows by how
far they are from what was shown.

A unit belongs to the arm of its first impression. What it saw under another arm, after the weights were changed, is not
counted. What a unit earned is what its impressions led to, by the time of the impression.

Shape letters: U units, A arms.
"""

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import stats

from protos.impression_pb2 import Degraded, Impression
from serving.experiments.assignment import DRAFTED, INTERLEAVE, SHADOW, Experiment, Traffic
from serving.log.catalog_log import Entry
from training.sequential import NOTHING, Difference, difference, log_evidence, mean

SRM = 0.001
"""p below which the shares of units are not what was configured."""
LOOKS = 40
"""Moments at which the comparison is shown."""
_COLUMNS: dict[str, pl.DataType | type[pl.DataType]] = {
    "request_id": pl.String,
    "time_ms": pl.Int64,
    "traffic": pl.String,
    "unit": pl.String,
    "arm": pl.String,
    "degraded": pl.Boolean,
    "failed": pl.Boolean,
    "ms": pl.Float64,
    "team": pl.List(pl.UInt8),
    "item_id": pl.List(pl.String),
}
_ROW = pl.Schema(_COLUMNS)
_OWN = ~(Degraded.DEGRADED_LOG_UNAVAILABLE | Degraded.DEGRADED_ARM_FAILED)


@dataclass(frozen=True, slots=True)
class Version:
    """The experiment as one setting of the traffic had it."""

    etag: str
    time_ms: int
    reason: str
    experiment: Experiment


def versions(entries: Iterable[Entry], name: str) -> list[Version]:
    """All there were, oldest first.

    Raises:
        ValueError: naming the experiments that there were, where this is none of them.
    """
    found, known = [], set()
    for entry in entries:
        traffic = Traffic.of(entry.request, str(entry.seq))  # type: ignore[arg-type]  # entries that set traffic
        known |= {each.name for each in traffic.experiments}
        reason = getattr(entry.request, "reason", "")
        chosen = [each for each in traffic.experiments if each.name == name]
        found += [Version(traffic.etag, entry.time_ms, reason, each) for each in chosen]
    if not found:
        raise ValueError(f"there was never an experiment {name!r}; there were {', '.join(sorted(known)) or 'none'}")
    return found


@dataclass(frozen=True, slots=True)
class ArmFigures:
    """What one arm did."""

    units: int
    impressions: int
    reward: float
    """Per unit."""
    error: float
    """Standard error of that, units being independent."""
    reward_per_impression: float
    degraded: float
    """Share of answers that were made without something."""
    failed: float
    """Share that the generation in use had to answer instead."""
    p50_ms: float
    p99_ms: float


@dataclass(frozen=True, slots=True)
class Compared:
    """An arm beside the first, at `LOOKS` moments."""

    time_ms: tuple[int, ...]
    units: tuple[int, ...]
    """Of both arms."""
    differences: tuple[Difference, ...]

    @property
    def last(self) -> Difference:
        return self.differences[-1] if self.differences else NOTHING

    @property
    def p(self) -> float:
        """The smallest there ever was."""
        return min((each.p for each in self.differences), default=1.0)


@dataclass(frozen=True, slots=True)
class Shares:
    """Units by arm beside what the weights say."""

    units: Mapping[str, int]
    expected: Mapping[str, float]
    p: float
    """However often one looks: 1 over the most evidence there was at any look."""
    chi_square_p: float
    """Of one look, now."""

    @property
    def alarm(self) -> bool:
        return self.p < SRM


@dataclass(frozen=True, slots=True)
class Preference:
    """Whose slots of drafted slates earned more: the second's less the first's."""

    arms: tuple[str, str]
    slates: int
    units: int
    wins: tuple[int, int]
    ties: int
    earned: tuple[float, float]
    score: Difference
    """Mean over units of the share of their slates that the second won, less the share that the first won."""


@dataclass(frozen=True, slots=True)
class ShadowFigures:
    """An arm that nobody saw beside what was shown."""

    arm: str
    pairs: int
    shown: int
    """Impressions that it could have stood beside; the others were dropped."""
    overlap: float
    """Share of the shown items that it would have shown too."""
    overlaps: tuple[float, ...]
    correlation: float
    """Kendall's tau of the order of the items that both hold; NaN where never two are."""
    utility: float
    """By how much it values the items that both hold more."""
    degraded: float
    shown_degraded: float
    ms: float
    """Median over the median of what was shown."""


@dataclass(frozen=True, slots=True)
class Findings:
    """Everything there is to say."""

    versions: tuple[Version, ...]
    arms: Mapping[str, ArmFigures]
    compared: Mapping[str, Compared]
    """By arm, with the first."""
    shares: Shares | None
    preference: Preference | None
    shadows: tuple[ShadowFigures, ...]
    crossed: int
    """Impressions of units that an other arm saw first."""
    alpha: float

    @property
    def now(self) -> Experiment:
        return self.versions[-1].experiment


@dataclass(slots=True)
class _Beside:
    """Shadows of one arm, as they are read."""

    overlaps: list[float] = field(default_factory=list)
    correlations: list[float] = field(default_factory=list)
    utilities: list[float] = field(default_factory=list)
    degraded: list[tuple[bool, bool]] = field(default_factory=list)
    ms: list[tuple[float, float]] = field(default_factory=list)

    def add(self, shown: Impression, beside: Impression) -> None:
        at = {item: k for k, item in enumerate(beside.item_id)}
        both = [(k, at[item]) for k, item in enumerate(shown.item_id) if item in at]
        self.overlaps.append(len(both) / len(shown.item_id) if len(shown.item_id) else 1.0)
        if len(both) > 1:
            self.correlations.append(float(stats.kendalltau(*zip(*both, strict=True)).statistic))
        self.utilities += [beside.utility[j] - shown.utility[k] for k, j in both]
        self.degraded.append((bool(beside.degraded & _OWN), bool(shown.degraded & _OWN)))
        self.ms.append((_ms(beside), _ms(shown)))

    def figures(self, arm: str, shown: int) -> ShadowFigures:
        degraded_P2, ms_P2 = np.array(self.degraded).reshape(-1, 2), np.array(self.ms).reshape(-1, 2)
        return ShadowFigures(
            arm=arm,
            pairs=len(self.overlaps),
            shown=shown,
            overlap=_average(self.overlaps),
            overlaps=tuple(self.overlaps),
            correlation=_average(self.correlations),
            utility=_average(self.utilities),
            degraded=_average(degraded_P2[:, 0]),
            shown_degraded=_average(degraded_P2[:, 1]),
            ms=float(np.median(ms_P2[:, 0]) / np.median(ms_P2[:, 1])) if len(ms_P2) else math.nan,
        )


def measure(
    impressions: Iterable[Impression], rewards: pl.DataFrame, of: Sequence[Version], *, alpha: float, planned: int
) -> Findings:
    """
    Args:
        impressions: of the whole log, by time.
        rewards: see `training.off_policy.replay.REWARD`.
        of: see `versions`.
        alpha: how often the comparison of two equal arms may err, over all time.
        planned: units at which its interval should be tightest.
    """
    now = of[-1].experiment
    shadows: dict[str, _Beside] = {}
    rows = pl.DataFrame(list(_rows(impressions, now, shadows)), _ROW, orient="row")
    earned = rewards.group_by("request_id").agg(pl.col("reward").sum())
    rows = rows.join(earned, on="request_id", how="left").with_columns(pl.col("reward").fill_null(0.0))
    first = pl.col("arm").first().over("unit", order_by=["time_ms", "request_id"])
    split = rows.filter(pl.col("arm") != DRAFTED)
    kept = split.filter(pl.col("arm") == first)
    drafting = now.mode == INTERLEAVE
    judged = now.mode not in (SHADOW, INTERLEAVE)
    names = [arm.name for arm in now.arms]
    return Findings(
        versions=tuple(of),
        arms={name: _arm(kept.filter(arm=name)) for name in names if kept.filter(arm=name).height},
        compared={name: _compared(kept, names[0], name, alpha, planned) for name in names[1:] if judged},
        shares=_shares(kept, of) if judged else None,
        preference=_preference(rows.filter(arm=DRAFTED), rewards, (names[0], names[1]), alpha, planned)
        if drafting
        else None,
        shadows=tuple(each.figures(arm, rows.height) for arm, each in shadows.items()),
        crossed=split.height - kept.height,
        alpha=alpha,
    )


def _rows(
    impressions: Iterable[Impression], now: Experiment, shadows: dict[str, _Beside]
) -> Iterator[tuple[object, ...]]:
    """Impressions of the experiment; what stands beside one goes into `shadows`."""
    shown: dict[str, Impression] = {}
    waiting: dict[str, Impression] = {}
    for each in impressions:
        arm = each.experiment_arms.get(now.name)
        if arm is None:
            continue
        if each.shadow_of:
            if each.request_id.endswith(f"/shadow/{now.name}"):
                waiting[each.shadow_of] = each
        elif now.mode == SHADOW:
            shown[each.request_id] = each
        for request_id in (each.shadow_of, each.request_id):
            if request_id in shown and request_id in waiting:
                beside = waiting.pop(request_id)
                shadows.setdefault(beside.experiment_arms[now.name], _Beside()).add(shown.pop(request_id), beside)
        if each.shadow_of:
            continue
        yield (
            each.request_id,
            each.time_ms,
            each.traffic,
            getattr(each, now.unit),
            arm,
            bool(each.degraded & _OWN),
            bool(each.degraded & Degraded.DEGRADED_ARM_FAILED),
            _ms(each),
            list(each.slot_team),
            list(each.item_id) if arm == DRAFTED else [],
        )


def _arm(rows: pl.DataFrame) -> ArmFigures:
    reward_U = _per_unit(rows)
    return ArmFigures(
        units=len(reward_U),
        impressions=rows.height,
        reward=float(reward_U.mean()),
        error=float(reward_U.std(ddof=1) / math.sqrt(len(reward_U))) if len(reward_U) > 1 else math.nan,
        reward_per_impression=float(reward_U.sum() / rows.height),
        degraded=_average(rows["degraded"].to_numpy()),
        failed=_average(rows["failed"].to_numpy()),
        p50_ms=float(np.quantile(rows["ms"].to_numpy(), 0.5)),
        p99_ms=float(np.quantile(rows["ms"].to_numpy(), 0.99)),
    )


def _per_unit(rows: pl.DataFrame) -> NDArray[np.float64]:
    return rows.group_by("unit").agg(pl.col("reward").sum())["reward"].to_numpy().astype(np.float64)


def _looks(rows: pl.DataFrame) -> list[int]:
    """Moments that have as many impressions between them."""
    if not rows.height:
        return []
    times = rows["time_ms"].sort().to_numpy()
    return sorted({int(times[at]) for at in np.linspace(0, len(times) - 1, LOOKS + 1).astype(int)[1:]})


def _compared(rows: pl.DataFrame, first: str, name: str, alpha: float, planned: int) -> Compared:
    both = rows.filter(pl.col("arm").is_in([first, name]))
    looks = _looks(both)
    units, found = [], []
    for time_ms in looks:
        until = both.filter(pl.col("time_ms") <= time_ms)
        one_U, other_U = (_per_unit(until.filter(arm=arm)) for arm in (first, name))
        units.append(len(one_U) + len(other_U))
        found.append(difference(one_U, other_U, alpha=alpha, planned=planned))
    return Compared(tuple(looks), tuple(units), tuple(found))


def _shares(rows: pl.DataFrame, of: Sequence[Version]) -> Shares:
    """Units by the arm that they came to, under the weights that were in force when they came."""
    came = rows.sort("time_ms", "request_id").unique("unit", keep="first", maintain_order=True)
    share_of = {each.etag: {arm.name: each.experiment.share(arm.name) for arm in each.experiment.arms} for each in of}
    came = came.filter(pl.col("traffic").is_in(list(share_of)))
    names = [arm.name for arm in of[-1].experiment.arms]
    most, expected = 0.0, dict.fromkeys(names, 0.0)
    for etag, count in Counter(came["traffic"].to_list()).items():
        for name in names:
            expected[name] += count * share_of[etag].get(name, 0.0)
    for time_ms in _looks(came):
        until = came.filter(pl.col("time_ms") <= time_ms)
        found = 0.0
        for etag, share in share_of.items():
            counted = Counter(until.filter(traffic=etag)["arm"].to_list())
            found += log_evidence([counted[arm] for arm in share], list(share.values())) if counted else 0.0
        most = max(most, found)
    units = Counter(came["arm"].to_list())
    open_ = [name for name in names if expected[name] > 0]
    seen = [units[name] for name in open_]
    scaled = np.array([expected[name] for name in open_])
    chi = stats.chisquare(seen, scaled * (sum(seen) / scaled.sum())).pvalue if sum(seen) and len(open_) > 1 else 1.0
    return Shares({name: units[name] for name in names}, expected, math.exp(-most), float(chi))


def _preference(
    rows: pl.DataFrame, rewards: pl.DataFrame, arms: tuple[str, str], alpha: float, planned: int
) -> Preference:
    slots = rows.select("request_id", "unit", "item_id", "team").explode("item_id", "team")
    credited = slots.join(rewards, on=["request_id", "item_id"], how="left").with_columns(
        pl.col("reward").fill_null(0.0), second=pl.col("team") == 1
    )
    of_second, of_first = (pl.col("reward").filter(pl.col("second") == second).sum() for second in (True, False))
    slates = credited.group_by("request_id", "unit").agg(first=of_first, other=of_second)
    slates = slates.with_columns(won=(pl.col("other") - pl.col("first")).sign())
    score_U = slates.group_by("unit").agg(pl.col("won").mean())["won"].to_numpy().astype(np.float64)
    won = Counter(slates["won"].to_list())
    return Preference(
        arms=arms,
        slates=slates.height,
        units=len(score_U),
        wins=(won[-1.0], won[1.0]),
        ties=won[0.0],
        earned=(float(slates["first"].sum()), float(slates["other"].sum())),
        score=mean(score_U, alpha=alpha, planned=planned),
    )


def _ms(logged: Impression) -> float:
    return sum(stage.milliseconds for stage in logged.stages)


def _average(values: Sequence[float] | np.ndarray) -> float:
    return float(np.mean(values)) if len(values) else math.nan
