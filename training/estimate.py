"""What another generation would have earned on a log, by several estimators side by side, as a whole and by slice.

Shape letters: M impressions, K slots, R draws, N candidates.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

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
    propensity_bins,
    rips,
    sips,
    sn_cascade_dr,
    sn_rips,
    sn_sips,
    truncated,
)
from protos.impression_pb2 import Degraded, Impression
from serving.again import Snapshots, ask_again
from serving.catalog_log import CatalogLog
from serving.generation import Generation
from training.replay import Counterfactual, in_order

HEADLINE = "truncated_cascade_dr"
"""The estimator whose figure stands for all: self-normalised, doubly robust, its weights cut to sqrt(requests). On
the simulated world its intervals held the truth where those of the others were beside it or several times as wide."""
_CHECKED_REQUESTS = 300
_Each = TypeVar("_Each")
_MOST_VALUES = 12
"""A column with more values than this makes no slices."""


@dataclass(frozen=True, slots=True)
class OwnDraws:
    """How a logging policy's own propensities fare beside what it drew."""

    overlap: Overlap
    """Of the policy with itself, one row a draw: how many actions it could show."""
    bins: tuple[PropensityBin, ...]


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
    own: OwnDraws | None = None,
    interval: Interval = "delta",
) -> Estimates:
    """Every slate estimator on one comparison, of as many slots as the log supports.

    Args:
        slices: which requests are in each, (M,), by column and value.
        own: what is known of the logging policy's propensities.
    """
    by_depth = _by_depth(compared, slice(None), compared.reward_MK.shape[1])
    depth = _reach(by_depth)
    overlap = by_depth[depth - 1]
    if own is not None:
        overlap = replace(
            overlap,
            shown_actions=own.overlap.shown_actions,
            shown_actions_error=own.overlap.shown_actions_error,
            miscalibration=own.overlap.miscalibration,
        )
    log = _Prefixed.of(compared, depth)
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
            HEADLINE: log.truncated().headline(interval),
        },
        logged=log.earned(interval),
        uplift=log.truncated().uplift(interval),
        overlap=overlap,
        by_depth=by_depth,
        bins=() if own is None else own.bins,
        slices=tuple(
            _slice(compared, depth, (column, value), inside_M, interval)
            for (column, value), inside_M in (slices or {}).items()
            if inside_M.any()
        ),
    )


def spaced(of: Sequence[_Each]) -> list[_Each]:
    """As many as `own_draws` asks again, from all over."""
    return (
        [of[int(at)] for at in np.unique(np.linspace(0, len(of) - 1, _CHECKED_REQUESTS).astype(int))] if len(of) else []
    )


def own_draws(
    impressions: Iterable[Impression], generation: Generation, *, catalog: CatalogLog | None = None
) -> OwnDraws | None:
    """A logging policy asked again for what it drew from, for up to 300 of its impressions; None where none is whole.

    Raises:
        ValueError: where it gives an item another propensity than the log does.
    """
    whole = [
        each
        for each in impressions
        if each.generation == generation.id
        and each.eligible_item_key
        and not each.degraded & Degraded.DEGRADED_RANKER_SKIPPED
    ]
    chosen = spaced(whole)
    snapshots = Snapshots({generation.id: generation}, catalog)
    drawn = [_drawn_again(each, snapshots.answered(each)) for each in in_order(chosen)]
    width = max((len(distribution_N) for distribution_KN, _ in drawn for distribution_N in distribution_KN), default=0)
    if not width:
        return None
    distribution_RN = np.concatenate(
        [np.pad(distribution_KN, ((0, 0), (0, width - distribution_KN.shape[1]))) for distribution_KN, _ in drawn]
    )
    action_R = np.concatenate([index_K for _, index_K in drawn])
    propensity_R = distribution_RN[np.arange(len(action_R)), action_R]
    bins = propensity_bins(distribution_RN, action_R)
    count_R = np.count_nonzero(distribution_RN, axis=1)
    return OwnDraws(diagnose(propensity_R, propensity_R, actions_N=count_R, bins=bins), bins)


def slices_of(rows: pl.DataFrame) -> dict[tuple[str, str], NDArray[np.bool_]]:
    """Which of the requests are in each slice, by column and value.

    Columns are `users` (new: without any history; returning), `surface`, every stored user column with a vocabulary,
    every label and every experiment. One that has a single value, or more than 12, makes no slices.

    Args:
        rows: see `training.replay.ROW`.
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
        rows: see `training.replay.ROW`.
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
    """Utility of the outcomes of every exposure, see `training.replay.REWARD`: the sum over its distinct actions of
    their weights."""
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

    def earned(self, interval: Interval) -> Estimate:
        return sips(self.reward_MK, self.logged_MK[:, -1], self.logged_MK[:, -1], interval=interval)


def _slice(
    compared: Counterfactual,
    most: int,
    named: tuple[str, str],
    inside_M: NDArray[np.bool_],
    interval: Interval,
) -> SliceEstimate:
    by_depth = _by_depth(compared, inside_M, most)
    depth = _reach(by_depth)
    log = _Prefixed.of(compared, depth, inside_M)
    return SliceEstimate(
        *named,
        depth,
        log.truncated().headline(interval),
        log.earned(interval),
        log.truncated().uplift(interval),
        faults(by_depth[depth - 1]),
    )


def _by_depth(compared: Counterfactual, inside_M: NDArray[np.bool_] | slice, most: int) -> tuple[Overlap, ...]:
    outside = float(1 - compared.inside_M[inside_M].mean())
    logs = (_Prefixed.of(compared, depth, inside_M).truncated() for depth in range(1, most + 1))
    return tuple(diagnose(log.logged_MK[:, -1], log.target_MK[:, -1], outside_support=outside) for log in logs)


def _reach(by_depth: Sequence[Overlap]) -> int:
    """How many slots there are before the first whose weights have faults; 1 where there are none. What lies outside
    the log's support is the same at every depth and has no say."""
    weights = (faults(replace(each, outside_support=0.0)) for each in by_depth)
    return max(1, next((k for k, found in enumerate(weights) if found), len(by_depth)))


def _drawn_again(logged: Impression, generation: Generation) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """What each slot was drawn from, and what was drawn."""
    policy = generation.policy
    query, answer = ask_again(logged, generation)
    index_K = answer.scored.candidates.positions(generation.items.ids.rows_of(logged.item_id))
    draw = policy.propensity_of(query, answer.scored, index_K)
    differing_K = np.flatnonzero(~np.isclose(draw.propensity_K, logged.propensity, rtol=1e-6, atol=0))
    if len(differing_K):
        k = differing_K[0]
        raise ValueError(
            f"request {logged.request_id}: slot {k + 1} was logged with propensity {logged.propensity[k]:.6g}, but "
            f"generation {generation.id} gives {draw.propensity_K[k]:.6g}; `cascade replay verify` says what differs"
        )
    return draw.distribution_KN, index_K
