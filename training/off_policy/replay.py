"""Logged requests through the pipeline that served them: the same code, so the same slates, or a bug.

`verify` asks the generation that answered; `counterfactual` asks another one what it would have done. Either knows what
the catalogue had become when the request was made: the changes since its build are read from the catalogue log.

What was state when a request came, its user's history and the words of the sources that learn while they serve, is in
the log and taken from there. `training.off_policy.passes` does both for whole logs.

Shape letters: M impressions, K slots, N candidates, E eligible candidates of the log, C candidates that are both.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import polars as pl
from numpy.typing import NDArray

from candidate_gen.features import FeatureTable
from candidate_gen.types import Query
from index.generations import Manifest
from policy.types import Draw
from protos.impression_pb2 import Degraded, Impression
from ranking.types import Scored
from serving.again import Snapshots, ask_again, first_difference
from serving.codec import query_of
from serving.generation import Generation
from serving.log.catalog_log import CatalogLog
from serving.pipeline import Answer

_TOLD = 100
"""Most divergences that are kept one by one."""


@dataclass(frozen=True, slots=True)
class Divergence:
    """A logged request that did not give the same answer again."""

    request_id: str
    stage: str
    """The first stage whose result differs."""
    field: str


@dataclass(frozen=True, slots=True)
class Verified:
    """How a replay went."""

    requests: int = 0
    mismatches: int = 0
    divergences: tuple[Divergence, ...] = ()
    """The first 100 mismatches."""
    stages: Mapping[str, int] = field(default_factory=dict)
    """Mismatches by the first stage that differs."""
    skipped: int = 0
    """Answered without the ranker: what failed then does not fail again."""
    recalled: int = 0
    """Of the requests, those to which sources that learn while they serve had something to say: what they said is
    taken from the log, for they know more by now."""

    def __add__(self, other: "Verified") -> "Verified":
        return Verified(
            self.requests + other.requests,
            self.mismatches + other.mismatches,
            (*self.divergences, *other.divergences)[:_TOLD],
            dict(Counter(self.stages) + Counter(other.stages)),
            self.skipped + other.skipped,
            self.recalled + other.recalled,
        )


def verify(
    impressions: Iterable[Impression], generations: Mapping[str, Generation], catalog: CatalogLog | None = None
) -> Verified:
    """Run every request again and compare bit by bit: candidates, feature bytes, scores, slate, propensities.

    Args:
        catalog: see `Snapshots`.

    Raises:
        ValueError: see `Snapshots.answered`.
    """
    return verified(impressions, Snapshots(generations, catalog))


def verified(impressions: Iterable[Impression], snapshots: Snapshots) -> Verified:
    """`verify`, by snapshots that go on with the next impressions."""
    whole = list(impressions)
    ranked = [each for each in whole if not each.degraded & Degraded.DEGRADED_RANKER_SKIPPED]
    found = [divergence(each, snapshots.answered(each), snapshots.second(each)) for each in in_order(ranked)]
    divergences = tuple(each for each in found if each is not None)
    return Verified(
        requests=len(ranked),
        mismatches=len(divergences),
        divergences=divergences[:_TOLD],
        stages=dict(Counter(each.stage for each in divergences)),
        skipped=len(whole) - len(ranked),
        recalled=sum(bool(each.live_hits) for each in ranked),
    )


def in_order(impressions: Iterable[Impression]) -> list[Impression]:
    """As the catalogue changed; requests that were answered side by side may be logged in another order."""
    return sorted(impressions, key=lambda each: each.catalog_seq)


def divergence(logged: Impression, generation: Generation, second: Generation | None = None) -> Divergence | None:
    """Where the answer that the request gets now differs from the logged one; None where they are equal bit by bit.

    It is what comparing with the impression that the request makes now would say, without making it.

    Args:
        second: who drafted the slate with the generation, if anybody did.
    """
    differing = first_difference(logged, *ask_again(logged, generation, second), generation)
    return Divergence(logged.request_id, *differing) if differing else None


_COLUMNS: dict[str, pl.DataType | type[pl.DataType]] = {
    "request_id": pl.String,
    "time_ms": pl.Int64,
    "generation": pl.String,
    "item_id": pl.List(pl.String),
    "propensity": pl.List(pl.Float64),
    "target_propensity": pl.List(pl.Float64),
    "utility": pl.List(pl.Float32),
    "target_utility": pl.List(pl.Float64),
    "inside": pl.Float64,
    "target_item_id": pl.List(pl.String),
    "marks": pl.List(pl.Struct({"column": pl.String, "value": pl.String})),
}
ROW = pl.Schema(_COLUMNS)
"""Columns of `compared`, slots as lists: what was shown and how likely the logging policy and the target were to put it
there, given the slots before; the logging ranker's utility of it, and its expectation for a draw of the target's; the
share of the target's own slate that the logging policy could have shown; the target's slate confined to that; and what
the request can be sliced by."""


@dataclass(frozen=True, slots=True)
class Counterfactual:
    """A logged policy's slates and what another policy would have made of the same requests.

    The other policy is the target generation's whole pipeline, confined to the candidates that the logging policy
    could have shown: outside of them a log has nothing to say. `inside_M` tells how much that leaves out.
    """

    request_ids: tuple[str, ...]
    reward_MK: NDArray[np.float64]
    """Utility of what followed each exposure."""
    logged_prefix_MK: NDArray[np.float64]
    target_prefix_MK: NDArray[np.float64]
    predicted_reward_MK: NDArray[np.float64]
    """The logging ranker's expectation for each exposure."""
    target_predicted_MK: NDArray[np.float64]
    """Its expectation for a draw of the target policy in each slot, given the slots before as logged."""
    inside_M: NDArray[np.float64]
    """Share of the target's own slate that the logging policy could have shown."""
    target_item_ids: tuple[tuple[str, ...], ...]
    """The confined target's own slates; empty where nobody asked for them."""


def unseen(impressions: Sequence[Impression], target: Manifest) -> list[Impression]:
    """Those that the target was not trained on.

    A policy that has learned the outcomes of a log shows what was clicked there, and its estimate from that log is
    too good: on the simulated world by a fifth.

    Raises:
        ValueError: where there are none.
    """
    later = [each for each in impressions if each.time_ms >= target.data_window[1]]
    if not later:
        raise ValueError(nothing_unseen(len(impressions), target))
    return later


def nothing_unseen(impressions: int, target: Manifest) -> str:
    return (
        f"none of {impressions} impressions is later than {target.data_window[1]}, when the data that {target.id} was "
        "trained on ends; its own training data would flatter it"
    )


def counterfactual(
    impressions: Sequence[Impression],
    target: Generation,
    *,
    rewards: Mapping[tuple[str, str], float],
    examination_K: NDArray[np.float64],
    catalog: CatalogLog | None = None,
) -> Counterfactual:
    """What `target` would have shown, and with which probability it would have shown what was shown.

    Args:
        impressions: with their eligible candidates; all others are left out.
        rewards: utility of the outcomes of (request id, item id); 0 where there is none.
        examination_K: P(examined) by slot, for the predicted rewards; slots beyond it share its last entry.
        catalog: see `Snapshots`.

    Raises:
        ValueError: where no impression holds its eligible candidates, and as `compared` does.
    """
    rows = compared(impressions, target, Snapshots({target.id: target}, catalog))
    if not rows.height:
        raise ValueError(f"none of {len(impressions)} impressions holds the candidates it was drawn from")
    known = [(request, item, reward) for (request, item), reward in rewards.items()]
    return counterfactual_of(rows, pl.DataFrame(known, REWARD, orient="row"), examination_K=examination_K)


REWARD = pl.Schema({"request_id": pl.String, "item_id": pl.String, "reward": pl.Float64})
"""Utility of the outcomes of an exposure; each once."""


def counterfactual_of(
    rows: pl.DataFrame, rewards: pl.DataFrame, *, examination_K: NDArray[np.float64], slates: bool = True
) -> Counterfactual:
    """The comparisons of requests, at least one, beside what followed.

    Args:
        rows: see `ROW`.
        rewards: see `REWARD`; 0 where there is none.
        examination_K: see `counterfactual`.
        slates: also the target's own, which are Python objects.
    """
    count_M = rows["item_id"].list.len().to_numpy()
    width = int(count_M.max())
    held_MK = np.arange(width) < count_M[:, None]

    def slots(name: str, fill: float) -> NDArray[np.float64]:
        """To the common width: a slot that is not there earns nothing and changes no probability."""
        value_MK = np.full(held_MK.shape, fill)
        value_MK[held_MK] = rows[name].explode(empty_as_null=False).to_numpy()
        return value_MK

    seen_K = examination_K[np.minimum(np.arange(width), len(examination_K) - 1)]
    return Counterfactual(
        request_ids=tuple(rows["request_id"].to_list()),
        reward_MK=_earned(rows, rewards, width),
        logged_prefix_MK=np.cumprod(slots("propensity", 1.0), axis=1, dtype=np.float64),
        target_prefix_MK=np.cumprod(slots("target_propensity", 1.0), axis=1, dtype=np.float64),
        predicted_reward_MK=seen_K * slots("utility", 0.0),
        target_predicted_MK=seen_K * slots("target_utility", 0.0),
        inside_M=rows["inside"].to_numpy(),
        target_item_ids=tuple(map(tuple, rows["target_item_id"].to_list())) if slates else (),
    )


def _earned(rows: pl.DataFrame, rewards: pl.DataFrame, width: int) -> NDArray[np.float64]:
    reward_MK = np.zeros((rows.height, width))
    exposures = (
        rows.lazy()
        .select("request_id", "item_id")
        .with_row_index("m")
        .join(rewards.lazy().select("request_id").unique(), on="request_id", how="semi")
        .with_columns(k=pl.int_ranges(pl.col("item_id").list.len()))
        .explode("item_id", "k")
    )
    earned = exposures.join(rewards.lazy(), on=["request_id", "item_id"]).select("m", "k", "reward").collect()
    reward_MK[earned["m"].to_numpy(), earned["k"].to_numpy()] = earned["reward"].to_numpy()
    return reward_MK


def compared(impressions: Iterable[Impression], target: Generation, snapshots: Snapshots) -> pl.DataFrame:
    """What `target` makes of each request whose eligible candidates are logged, as `ROW` says, in order of `in_order`.

    Raises:
        ValueError: for an impression whose columns differ in length, for a logged propensity that is none, and for a
            target without a policy that knows its propensities.
    """
    usable = in_order(each for each in impressions if each.eligible_item_key)
    rows = [_compared(_checked(each), snapshots.at(target.id, each)) for each in usable]
    return pl.DataFrame(rows, ROW, orient="row")


def _checked(logged: Impression) -> Impression:
    lengths = {name: len(getattr(logged, name)) for name in ("item_id", "propensity", "utility")}
    if len(set(lengths.values())) > 1 or len(logged.eligible_item_key) != len(logged.eligible_utility):
        lengths |= {name: len(getattr(logged, name)) for name in ("eligible_item_key", "eligible_utility")}
        told = ", ".join(f"{count} {name}" for name, count in lengths.items())
        raise ValueError(f"impression {logged.request_id} holds {told}; columns of one kind must be of one length")
    propensity_K = np.array(logged.propensity, np.float64)
    wrong_K = np.flatnonzero(~((propensity_K > 0) & (propensity_K <= 1)))
    if len(wrong_K):
        raise ValueError(
            f"impression {logged.request_id}: propensity[{wrong_K[0]}] is {propensity_K[wrong_K[0]]:g}; it must be "
            "above 0 and at most 1"
        )
    return logged


@dataclass(frozen=True, slots=True)
class Confined:
    """A logged request as another generation would have ranked what the logging policy chose from."""

    query: Query
    answer: Answer
    """As it would have been, unconfined."""
    scored: Scored
    """Its candidates that the logging policy had too."""
    kept_N: NDArray[np.bool_]
    """Which of all its candidates they are."""
    eligible_C: NDArray[np.int64]
    """Their positions among the logged eligible ones."""

    @property
    def inside(self) -> float:
        """Share of its own slate that the logging policy could have shown."""
        own_K = self.answer.slate.index_K
        return float(self.kept_N[own_K].mean()) if len(own_K) else 1.0

    def draw(self, item_ids: Sequence[str], target: Generation) -> Draw:
        """How the target's policy would have drawn the items that were shown."""
        index_K = self.scored.candidates.positions(target.items.ids.rows_of(item_ids))
        return target.policy.propensity_of(self.query, self.scored, index_K)


def confined(logged: Impression, target: Generation) -> Confined:
    """What `target` makes of a request whose eligible candidates are logged."""
    query = query_of(logged, target)
    answer = target.pipeline.run(query)
    row_N = answer.scored.candidates.row_N
    row_E = target.items.ids.rows(np.array(logged.eligible_item_key, np.uint64))
    order_E = np.argsort(row_E, kind="stable")
    at_N = np.minimum(np.searchsorted(row_E[order_E], row_N), len(row_E) - 1)
    kept_N = row_E[order_E[at_N]] == row_N
    return Confined(query, answer, answer.scored.keep(kept_N), kept_N, order_E[at_N[kept_N]])


def _compared(logged: Impression, target: Generation) -> tuple[object, ...]:
    of_target = confined(logged, target)
    draw = of_target.draw(logged.item_id, target)
    utility_C = np.array(logged.eligible_utility, np.float32)[of_target.eligible_C].astype(np.float64)
    slate = target.policy.select(of_target.query, of_target.scored)
    return (
        logged.request_id,
        logged.time_ms,
        logged.generation,
        list(logged.item_id),
        list(logged.propensity),
        draw.propensity_K.tolist(),
        list(logged.utility),
        (draw.distribution_KN @ utility_C).tolist(),
        of_target.inside,
        target.items.ids.ids.take(of_target.scored.candidates.row_N[slate.index_K]),
        [{"column": column, "value": value} for column, value in _marks(logged, target.table)],
    )


def _marks(logged: Impression, table: FeatureTable) -> Iterable[tuple[str, str]]:
    """What a request can be sliced by: column and value. User columns only where `table` is what it was logged with."""
    yield "users", "returning" if logged.history_item_key else "new"
    yield "surface", logged.surface or "none"
    row = np.frombuffer(logged.query_row, table.dtype("query")) if logged.schema == table.fingerprint else None
    for feature in table.profile:
        if feature.vocabulary and row is not None and not feature.shape:
            yield feature.name, ("unknown", *feature.vocabulary)[int(row[feature.name][0])]
    yield from logged.labels.items()
    yield from logged.experiment_arms.items()
