"""The data contract: what a night's data must be like before anything is learned from it.

Schemas say what a row must be; figures say what all rows together must be. Both are held as gates, so that a few bad
rows are counted and tolerated up to a stated share, and a feed that broke is not trained on.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from math import isnan, nan
from statistics import median

import dataframely as dy
import polars as pl

from training.datasets.dataset import Dataset
from training.gates import Gate, least, most

_DAY_MS, _HOUR_MS = 86_400_000, 3_600_000
_EARLIEST_MS = 946_684_800_000
"""1 January 2000: an earlier time is one in seconds, or none."""
_DAYS, _FEWEST_DAYS = 7, 4
"""The last day is held against the median of so many before it, the first of all left out: it may have begun late."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ContractSettings:
    """Limits of the figures that `figures_of` finds."""

    bad_rows: float = 0.001
    """Largest share of a table's rows that are not as the schema says."""
    requests: int = 100
    """Least impressions."""
    volume_low: float = 0.5
    """Least impressions of the last whole day (UTC), as a share of the median of the seven days before."""
    volume_high: float = 3.0
    """Most, likewise."""
    delay_h: float = 24.0
    """Most hours within which 95 in 100 outcomes became known."""
    duplicates: float = 0.05
    """Largest share of the outcomes of a request that say of an item what another one says already."""
    orphans: float = 0.05
    """Largest share of outcomes of requests that nobody logged."""
    strangers: float = 0.05
    """Largest share of exposures of items that the catalogue does not hold."""

    def __post_init__(self) -> None:
        for name in ("bad_rows", "duplicates", "orphans", "strangers"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be from 0 to 1")
        if self.requests < 0:
            raise ValueError(f"requests is {self.requests}; it must not be negative")
        if not 0 <= self.volume_low <= 1 <= self.volume_high:
            raise ValueError(f"volumes go from {self.volume_low} to {self.volume_high}; 1 must be between them")
        if not self.delay_h > 0:
            raise ValueError(f"delay_h is {self.delay_h}; it must be above 0")


class ItemRows(dy.Schema):
    """An item is named once, and published at some time."""

    item_id = dy.String(primary_key=True, min_length=1)
    title = dy.String()
    category = dy.String()
    published_ms = dy.Int64()


class UserRows(dy.Schema):
    """A user is named once."""

    user_id = dy.String(primary_key=True, min_length=1)


class ImpressionRows(dy.Schema):
    """A slate is named once, holds an item once, and knows the chance of each."""

    request_id = dy.String(primary_key=True, min_length=1)
    user_id = dy.String()
    time_ms = dy.Int64(min=_EARLIEST_MS)
    item_id = dy.List(dy.String(min_length=1))
    propensity = dy.List(dy.Float64(min_exclusive=0.0, max=1.0))

    @dy.rule()
    def each_item_has_a_propensity(self) -> pl.Expr:
        return pl.col("item_id").list.len() == pl.col("propensity").list.len()

    @dy.rule()
    def an_item_is_shown_once(self) -> pl.Expr:
        return pl.col("item_id").list.n_unique() == pl.col("item_id").list.len()


class OutcomeRows(dy.Schema):
    """An outcome is named once, of an item, and known a day before it happened at the earliest: clocks differ."""

    event_id = dy.String(primary_key=True, min_length=1)
    user_id = dy.String()
    item_id = dy.String(min_length=1)
    action = dy.String(min_length=1)
    value = dy.Float64(allow_inf=False, allow_nan=False)
    time_ms = dy.Int64(min=_EARLIEST_MS)
    visible_ms = dy.Int64(min=_EARLIEST_MS)

    @dy.rule()
    def it_is_known_after_it_happened(self) -> pl.Expr:
        return pl.col("visible_ms") >= pl.col("time_ms") - _DAY_MS


_SCHEMAS: Mapping[str, type[dy.Schema]] = {
    "items": ItemRows,
    "users": UserRows,
    "impressions": ImpressionRows,
    "events": OutcomeRows,
}


@dataclass(frozen=True, slots=True)
class Found:
    """What a night's data is like."""

    figures: Mapping[str, float]
    """Under the names of the gates; NaN where there is nothing to say it of."""
    broken: Mapping[str, int]
    """Rows that break a rule, by table and rule."""


def found_in(dataset: Dataset) -> Found:
    """Count and measure.

    Args:
        dataset: with what was logged among its impressions and events.
    """
    figures: dict[str, float] = {}
    broken: dict[str, int] = {}
    for name, schema in _SCHEMAS.items():
        frame: pl.DataFrame = getattr(dataset, name)
        kept, failed = schema.filter(frame.select(schema.column_names()))
        figures[f"contract.bad_rows.{name}"] = 1 - kept.height / frame.height if frame.height else 0.0
        broken |= {f"{name}: {rule}": count for rule, count in failed.counts().items()}
    impressions, events = dataset.impressions, dataset.events
    attributed = events.filter(pl.col("request_id") != "")
    said = attributed.select("request_id", "item_id", "action")
    exposed = impressions["item_id"].explode(empty_as_null=False)
    figures |= {
        "contract.requests": float(impressions.height),
        "contract.volume": _volume(impressions["time_ms"]),
        "contract.delay_h": _most_of((events["visible_ms"] - events["time_ms"]) / _HOUR_MS),
        "contract.duplicates": 1 - said.n_unique() / said.height if said.height else 0.0,
        "contract.orphans": _share(~attributed["request_id"].is_in(impressions["request_id"].implode())),
        "contract.strangers": _share(~exposed.is_in(dataset.items["item_id"].implode())),
    }
    return Found(figures, broken)


def contract_gates(settings: ContractSettings, figures: Mapping[str, float]) -> tuple[Gate, ...]:
    """The verdict. The volume of a day is left out where there are too few days to say what is usual."""
    gates = [most(f"contract.bad_rows.{name}", figures, settings.bad_rows) for name in _SCHEMAS]
    gates.append(least("contract.requests", figures, settings.requests))
    if not isnan(figures["contract.volume"]):
        gates.append(least("contract.volume", figures, settings.volume_low))
        gates.append(most("contract.volume", figures, settings.volume_high))
    for name in ("delay_h", "duplicates", "orphans", "strangers"):
        gates.append(most(f"contract.{name}", figures, getattr(settings, name)))
    return tuple(gates)


def _volume(time_ms: pl.Series) -> float:
    """Impressions of the last whole day beside the median of the days before; NaN where they are too few."""
    if not len(time_ms):
        return nan
    day = time_ms // _DAY_MS
    last = int(day.max())  # type: ignore[arg-type]
    count_D = [int((day == last - back).sum()) for back in range(1, _DAYS + 2) if last - back >= int(day.min())]  # type: ignore[arg-type]
    usual = median(count_D[1:-1]) if len(count_D) > _FEWEST_DAYS else 0.0
    return count_D[0] / usual if usual else nan


def _most_of(hours: pl.Series) -> float:
    """What 95 in 100 stay within; 0 without any."""
    within = hours.quantile(0.95)
    return 0.0 if within is None else float(within)


def _share(held: pl.Series) -> float:
    return float(held.mean() or 0.0)  # type: ignore[arg-type]
