"""What another generation would have earned on a log, by several estimators side by side, as a whole and by slice.

Shape letters: M impressions, K slots.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import compress
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from policy.ope import (
    Estimate,
    Interval,
    Overlap,
    PropensityBin,
    cascade_dr,
    diagnose,
    faults,
    rips,
    sips,
    sn_cascade_dr,
    sn_rips,
    sn_sips,
    truncated,
)
from training.off_policy.draws import Draws
from training.off_policy.replay import Counterfactual

HEADLINE = "truncated_cascade_dr"
"""The estimator whose figure stands for all: self-normalised, doubly robust, its weights cut to sqrt(requests). On
the simulated world its intervals held the truth where those of the others were beside it or several times as wide."""
_MOST_VALUES = 12
"""A column with more values than this makes no slices."""


@dataclass(frozen=True, slots=True)
class SliceEstimate:
    """The headline estimator on a part of the requests."""

    column: str
    """What the requests of a slice have in common: "surface", "users", a stored user column, a label."""
    value: str
    depth: int
    """As of all requests, or less where the log of the part does not reach as far."""
    estimate: Estimate
    logged: Estimate
    uplift: Estimate
    faults: tuple[str, ...]
    """Why the part is too little by itself; its figures are then no more than that."""


@dataclass(frozen=True, slots=True)
class Estimates:
    """One policy's value per request from another's log, as far down the slate as the log reaches.

    Weights of slates multiply from slot to slot, so a log that says much about the first slots says little about
    the last. All figures are of the reward of the first `depth` slots.
    """

    depth: int
    """The most slots whose truncated weights have no faults; 1 where even those of the first have."""
    by_name: Mapping[str, Estimate]
    logged: Estimate
    """What the logging policy itself earned: the plain mean."""
    uplift: Estimate
    """The headline less `logged`, request by request: what they share does not widen its interval."""
    overlap: Overlap
    by_depth: tuple[Overlap, ...]
    """Of the first slot, the first two, ... of truncated weights."""
    bins: tuple[PropensityBin, ...]
    slices: tuple[SliceEstimate, ...]

    @property
    def headline(self) -> Estimate:
        return self.by_name[HEADLINE]


def estimate(
    compared: Counterfactual,
    *,
    slices: Mapping[tuple[str, str], NDArray[np.bool_]] | None = None,
    draws: Draws | None = None,
    interval: Interval = "delta",
) -> Estimates:
    """Every slate estimator on one comparison, of as many slots as the log supports.

    The headline's interval and the uplift's allow for what the cut of the weights leaves out, where `draws` tell how
    much that is (`Overlap.thin_support`): it may earn anything from nothing to twice what the rest is estimated at.

    Args:
        slices: which requests are in each, (M,), by column and value.
        draws: what some of the requests were drawn from, and would have been.
    """
    by_depth = _by_depth(compared, slice(None), compared.reward_MK.shape[1], draws)
    depth = _reach(by_depth)
    overlap = by_depth[depth - 1]
    if draws is not None:
        overlap = replace(
            overlap,
            shown_actions=draws.overlap.shown_actions,
            shown_actions_error=draws.overlap.shown_actions_error,
            miscalibration=draws.overlap.miscalibration,
        )
    log = _Prefixed.of(compared, depth)
    headline, uplift = log.truncated().allowing(overlap.thin_support, interval)
    joint = (log.reward_MK, log.logged_MK[:, -1], log.target_MK[:, -1])
    prefixed = (log.reward_MK, log.logged_MK, log.target_MK)
    return Estimates(
        depth=depth,
        by_name={
            "sips": sips(*joint, interval=interval),
            "sn_sips": sn_sips(*joint, interval=interval),
            "rips": rips(*prefixed, interval=interval),
            "sn_rips": sn_rips(*prefixed, interval=interval),
            "cascade_dr": cascade_dr(*prefixed, *log.model, interval=interval),
            "sn_cascade_dr": sn_cascade_dr(*prefixed, *log.model, interval=interval),
            HEADLINE: headline,
        },
        logged=log.earned(interval),
        uplift=uplift,
        overlap=overlap,
        by_depth=by_depth,
        bins=() if draws is None else draws.bins,
        slices=tuple(
            _slice(compared, by_depth[:depth], (column, value), inside_M, draws=draws, interval=interval)
            for (column, value), inside_M in (slices or {}).items()
            if inside_M.any()
        ),
    )


def slices_of(rows: pl.DataFrame) -> dict[tuple[str, str], NDArray[np.bool_]]:
    """Which of the requests are in each slice, by column and value.

    Columns are `users` (new: without any history; returning), `surface`, every stored user column with a vocabulary,
    every label and every experiment. One that has a single value, or more than 12, makes no slices.

    Args:
        rows: see `training.off_policy.replay.ROW`.
    """
    marked = (
        rows.select(pl.int_range(pl.len()).alias("row"), "marks").explode("marks", empty_as_null=False).unnest("marks")
    )
    count = pl.col("value").n_unique().over("column")
    chosen = marked.filter((count > 1) & (count <= _MOST_VALUES))
    slices = {}
    for (column, value), of in chosen.sort("column", "value").group_by("column", "value", maintain_order=True):
        inside_M = np.zeros(rows.height, np.bool_)
        inside_M[of["row"].to_numpy()] = True
        slices[str(column), str(value)] = inside_M
    return slices


def of_surface(rows: pl.LazyFrame, surface: str, *, log: Path) -> pl.LazyFrame:
    """The requests of one surface.

    Args:
        rows: see `training.off_policy.replay.ROW`.
        log: where they are logged.

    Raises:
        ValueError: where there are none.
    """
    on = pl.element().struct.field("value").filter(pl.element().struct.field("column") == "surface").first()
    marked = rows.with_columns(surface=pl.col("marks").list.eval(on).list.first())
    known = marked.select("surface").unique().sort("surface").collect()["surface"].to_list()
    if surface not in known:
        raise ValueError(f"{log} holds no request of the surface {surface!r}; there are {', '.join(known)}")
    return marked.filter(pl.col("surface") == surface).drop("surface")


def outcome_rewards(
    events: pl.DataFrame, weights: Mapping[str, float], *, request_ids: Sequence[str] | None = None
) -> dict[tuple[str, str], float]:
    """`rewarded`, by (request, item); of the requests named, or of all."""
    counted = events if request_ids is None else events.filter(pl.col("request_id").is_in(request_ids))
    return {(request, item): reward for request, item, reward in rewarded(counted, weights).iter_rows()}


def rewarded(events: pl.DataFrame, weights: Mapping[str, float]) -> pl.DataFrame:
    """Utility of the outcomes of every exposure, see `training.off_policy.replay.REWARD`: the sum over its
    distinct actions of their weights."""
    return (
        events.filter(pl.col("action").is_in(list(weights)))
        .unique(["request_id", "item_id", "action"])
        .with_columns(reward=pl.col("action").replace_strict(dict(weights), return_dtype=pl.Float64))
        .group_by("request_id", "item_id")
        .agg(pl.col("reward").sum())
    )


def examination(metrics: Mapping[str, float]) -> NDArray[np.float64]:
    """P(examined) by slot, (K,), as a generation's metrics tell what its ranker learned; 1 where they tell nothing."""
    prefix = "ranker.examination."
    learned = {int(name.removeprefix(prefix)): p for name, p in metrics.items() if name.startswith(prefix)}
    return np.array([learned[position] for position in sorted(learned)] or [1.0])


@dataclass(frozen=True, slots=True)
class _Prefixed:
    """The first slots of a comparison."""

    reward_MK: NDArray[np.float64]
    logged_MK: NDArray[np.float64]
    target_MK: NDArray[np.float64]
    predicted_MK: NDArray[np.float64]
    expected_MK: NDArray[np.float64]

    @classmethod
    def of(cls, compared: Counterfactual, depth: int, inside_M: NDArray[np.bool_] | slice = slice(None)) -> "_Prefixed":
        whole = (
            compared.reward_MK,
            compared.logged_prefix_MK,
            compared.target_prefix_MK,
            compared.predicted_reward_MK,
            compared.target_predicted_MK,
        )
        return cls(*(column_MK[inside_M, :depth] for column_MK in whole))

    @property
    def model(self) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        return self.predicted_MK, self.expected_MK

    def truncated(self) -> "_Prefixed":
        return replace(self, target_MK=truncated(self.logged_MK, self.target_MK))

    def headline(self, interval: Interval) -> Estimate:
        return sn_cascade_dr(self.reward_MK, self.logged_MK, self.target_MK, *self.model, interval=interval)

    def uplift(self, interval: Interval) -> Estimate:
        """A slot before the first, certain under both policies, that costs what was earned: the rest is as it was."""
        cost_M1 = -self.reward_MK.sum(axis=1, keepdims=True)
        certain_M1, nothing_M1 = np.ones_like(cost_M1), np.zeros_like(cost_M1)
        return _Prefixed(
            np.hstack([cost_M1, self.reward_MK]),
            np.hstack([certain_M1, self.logged_MK]),
            np.hstack([certain_M1, self.target_MK]),
            np.hstack([nothing_M1, self.predicted_MK]),
            np.hstack([nothing_M1, self.expected_MK]),
        ).headline(interval)

    def allowing(self, thin: float, interval: Interval) -> tuple[Estimate, Estimate]:
        """Headline and uplift, both with the share `thin` of the target's choices allowed to earn anything from nothing
        to twice the headline; nothing is allowed for where it is NaN."""
        headline = self.headline(interval)
        allowed = 0.0 if math.isnan(thin) else thin * abs(headline.value)
        headline, uplift = (
            replace(each, low=each.low - allowed, high=each.high + allowed)
            for each in (headline, self.uplift(interval))
        )
        return headline, uplift

    def earned(self, interval: Interval) -> Estimate:
        return sips(self.reward_MK, self.logged_MK[:, -1], self.logged_MK[:, -1], interval=interval)


def _slice(
    compared: Counterfactual,
    of_all: Sequence[Overlap],
    named: tuple[str, str],
    inside_M: NDArray[np.bool_],
    *,
    draws: Draws | None,
    interval: Interval,
) -> SliceEstimate:
    by_depth = _by_depth(compared, inside_M, len(of_all), draws)
    depth = _reach(by_depth)
    log, overlap = _Prefixed.of(compared, depth, inside_M), by_depth[depth - 1]
    headline, uplift = log.truncated().allowing(overlap.thin_support, interval)
    return SliceEstimate(*named, depth, headline, log.earned(interval), uplift, faults(overlap))


def _by_depth(
    compared: Counterfactual, inside_M: NDArray[np.bool_] | slice, most: int, draws: Draws | None
) -> tuple[Overlap, ...]:
    outside_M = 1 - compared.inside_M[inside_M]
    thin_K = np.full(most, math.nan)
    if draws is not None:
        among = None if isinstance(inside_M, slice) else set(compress(compared.request_ids, inside_M))
        thin_K[: len(draws.slots)] = draws.thin_support(math.sqrt(len(outside_M)), among=among)[:most]
    logs = (_Prefixed.of(compared, depth, inside_M).truncated() for depth in range(1, most + 1))
    return tuple(
        diagnose(log.logged_MK[:, -1], log.target_MK[:, -1], outside_support=float(outside_M.mean()), thin_support=thin)
        for log, thin in zip(logs, thin_K.tolist(), strict=True)
    )


def _reach(by_depth: Sequence[Overlap]) -> int:
    """How many slots there are before the first whose weights have faults; 1 where there are none. What lies outside
    the log's support is the same at every depth and has no say."""
    weights = (faults(replace(each, outside_support=0.0)) for each in by_depth)
    return max(1, next((k for k, found in enumerate(weights) if found), len(by_depth)))
