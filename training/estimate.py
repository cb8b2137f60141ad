"""What another generation would have earned on a log, by several estimators side by side.

Shape letters: M impressions, K slots.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from policy.ope import (
    Estimate,
    InsufficientOverlap,
    Overlap,
    cascade_dr,
    diagnose,
    require_overlap,
    rips,
    sips,
    sn_cascade_dr,
    sn_rips,
    sn_sips,
    truncated,
)
from training.replay import Counterfactual

HEADLINE = "truncated_cascade_dr"
"""The estimator whose figure stands for all: self-normalised, doubly robust, its weights cut to sqrt(requests). On
the simulated world its intervals held the truth where those of the others were beside it or several times as wide."""


@dataclass(frozen=True, slots=True)
class Estimates:
    """One policy's value per request from another's log, as far down the slate as the log reaches.

    Weights of slates multiply from slot to slot, so a log that says much about the first slots says little about
    the last. All figures are of the reward of the first `depth` slots.
    """

    depth: int
    """The most slots whose overlap, of truncated weights, `require_overlap` accepts; 1 where it accepts none."""
    by_name: Mapping[str, Estimate]
    logged: Estimate
    """What the logging policy itself earned: the plain mean."""
    overlap: Overlap

    @property
    def headline(self) -> Estimate:
        return self.by_name[HEADLINE]


def estimate(compared: Counterfactual) -> Estimates:
    """Every slate estimator on one comparison, of as many slots as the log supports."""
    outside = float(1 - compared.inside_M.mean())
    depth, overlap = 1, _overlap(compared, 1, outside)
    for deeper in range(2, compared.reward_MK.shape[1] + 1):
        below = _overlap(compared, deeper, outside)
        if not _sufficient(below):
            break
        depth, overlap = deeper, below
    reward_MK, logged_MK, target_MK, predicted_MK, expected_MK = (
        column_MK[:, :depth]
        for column_MK in (
            compared.reward_MK,
            compared.logged_prefix_MK,
            compared.target_prefix_MK,
            compared.predicted_reward_MK,
            compared.target_predicted_MK,
        )
    )
    joint = (reward_MK, logged_MK[:, -1], target_MK[:, -1])
    prefixed = (reward_MK, logged_MK, target_MK)
    return Estimates(
        depth=depth,
        by_name={
            "sips": sips(*joint),
            "sn_sips": sn_sips(*joint),
            "rips": rips(*prefixed),
            "sn_rips": sn_rips(*prefixed),
            "cascade_dr": cascade_dr(*prefixed, predicted_MK, expected_MK),
            "sn_cascade_dr": sn_cascade_dr(*prefixed, predicted_MK, expected_MK),
            HEADLINE: sn_cascade_dr(reward_MK, logged_MK, truncated(logged_MK, target_MK), predicted_MK, expected_MK),
        },
        logged=sips(reward_MK, logged_MK[:, -1], logged_MK[:, -1]),
        overlap=overlap,
    )


def _overlap(compared: Counterfactual, depth: int, outside: float) -> Overlap:
    logged_MK = compared.logged_prefix_MK[:, :depth]
    cut_MK = truncated(logged_MK, compared.target_prefix_MK[:, :depth])
    return diagnose(logged_MK[:, -1], cut_MK[:, -1], outside_support=outside)


def _sufficient(overlap: Overlap) -> bool:
    try:
        require_overlap(overlap)
    except InsufficientOverlap:
        return False
    return True


def outcome_rewards(
    events: pl.DataFrame, weights: Mapping[str, float], *, request_ids: Sequence[str] | None = None
) -> dict[tuple[str, str], float]:
    """Utility of the outcomes of every (request, item): the sum over its distinct actions of their weights."""
    counted = events.filter(pl.col("action").is_in(list(weights)))
    if request_ids is not None:
        counted = counted.filter(pl.col("request_id").is_in(request_ids))
    totals = (
        counted.unique(["request_id", "item_id", "action"])
        .with_columns(reward=pl.col("action").replace_strict(dict(weights), return_dtype=pl.Float64))
        .group_by("request_id", "item_id")
        .agg(pl.col("reward").sum())
    )
    return {(request, item): reward for request, item, reward in totals.iter_rows()}


def examination(metrics: Mapping[str, float]) -> NDArray[np.float64]:
    """P(examined) by slot, (K,), as a generation's metrics tell what its ranker learned; 1 where they tell nothing."""
    prefix = "ranker.examination."
    learned = {int(name.removeprefix(prefix)): p for name, p in metrics.items() if name.startswith(prefix)}
    return np.array([learned[position] for position in sorted(learned)] or [1.0])
