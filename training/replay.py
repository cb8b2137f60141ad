"""Logged requests through the pipeline that served them: the same code, so the same slates, or a bug.

`verify` asks the generation that answered; `counterfactual` asks another one what it would have done. Either knows what
the catalogue had become when the request was made: the changes since its build are read from the catalogue log.

What was state when a request came, its user's history and the words of the sources that learn while they serve, is in
the log and taken from there.

Shape letters: M impressions, K slots, N candidates.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.generations import Manifest
from policy.selector import SlatePolicy
from protos.impression_pb2 import Degraded, Impression
from serving.answers import record
from serving.catalog_log import CatalogLog
from serving.codec import query_of
from serving.generation import Generation

_ASKED = (
    "request_id",
    "time_ms",
    "kind",
    "tenant",
    "surface",
    "user_id",
    "visitor_id",
    "session_id",
    "text",
    "size",
    "seed_item_ids",
    "exclude_item_ids",
    "rank_item_ids",
    "filter",
    "features",
    "live_hits",
    "history_item_key",
    "history_action_key",
    "history_time_ms",
    "experiment_arms",
    "labels",
)
_STAGES = {
    "retrieve": ("source_names", "eligible_item_key"),
    "features": ("schema", "query_row", "item_rows", "pair_rows"),
    "score": ("action_names", "eligible_utility"),
    "select": ("policy", "item_id", "propensity", "slot_flags", "utility", "probability", "source_bits", "source_rank"),
}
"""Fields that must be equal, by the stage that makes them."""


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

    requests: int
    divergences: tuple[Divergence, ...]
    skipped: int
    """Answered without the ranker: what failed then does not fail again."""
    recalled: int
    """Of the requests, those to which sources that learn while they serve had something to say: what they said is
    taken from the log, for they know more by now."""


class Snapshots:
    """Generations as they were when an impression was made.

    Args:
        generations: by id, as loaded.
        catalog: the catalogue log beside them; None where nothing has changed.
    """

    def __init__(self, generations: Mapping[str, Generation], catalog: CatalogLog | None) -> None:
        self._loaded = generations
        self._catalog = catalog
        self._latest = dict(generations)

    def answered(self, logged: Impression) -> Generation:
        """Who answered it.

        Raises:
            ValueError: where its generation is not among those given, or the log does not reach as far.
        """
        if logged.generation not in self._loaded:
            raise ValueError(
                f"impression {logged.request_id} was answered by generation {logged.generation}, "
                f"which is not among {', '.join(sorted(self._loaded))}"
            )
        return self.at(logged.generation, logged)

    def at(self, generation: str, logged: Impression) -> Generation:
        """A generation with the catalogue as the impression's answer knew it, or as it was built where that is later.

        Changes are made once while impressions come in the order of `catalog_seq`; going back begins anew.
        """
        loaded = self._loaded[generation]
        seq = max(logged.catalog_seq, loaded.catalog_seq)
        if seq < self._latest[generation].catalog_seq:
            self._latest[generation] = loaded
        behind = self._latest[generation]
        entries = (
            self._catalog.since(behind.catalog_seq, until=seq) if self._catalog and seq > behind.catalog_seq else []
        )
        self._latest[generation] = snapshot = behind.changed(entries)
        if snapshot.catalog_seq < seq:
            raise ValueError(
                f"impression {logged.request_id} knew of change {seq} of the catalogue; the log of changes "
                f"{f'at {self._catalog.path} ends with {snapshot.catalog_seq}' if self._catalog else 'is not given'}"
            )
        return snapshot


def verify(
    impressions: Iterable[Impression], generations: Mapping[str, Generation], catalog: CatalogLog | None = None
) -> Verified:
    """Run every request again and compare bit by bit: candidates, feature bytes, scores, slate, propensities.

    Args:
        catalog: see `Snapshots`.

    Raises:
        ValueError: see `Snapshots.answered`.
    """
    snapshots = Snapshots(generations, catalog)
    requests = skipped = recalled = 0
    divergences = []
    for logged in in_order(impressions):
        if logged.degraded & Degraded.DEGRADED_RANKER_SKIPPED:
            skipped += 1
            continue
        requests += 1
        recalled += bool(logged.live_hits)
        again = ask_again(logged, snapshots.answered(logged))
        differing = (
            Divergence(logged.request_id, stage, field)
            for stage, fields in _STAGES.items()
            for field in fields
            if getattr(again, field) != getattr(logged, field)
        )
        divergences += [first] if (first := next(differing, None)) else []
    return Verified(requests, tuple(divergences), skipped, recalled)


def in_order(impressions: Iterable[Impression]) -> list[Impression]:
    """As the catalogue changed; requests that were answered side by side may be logged in another order."""
    return sorted(impressions, key=lambda each: each.catalog_seq)


def ask_again(logged: Impression, generation: Generation) -> Impression:
    """The impression that the request makes now."""
    asked = Impression()
    asked.CopyFrom(logged)
    for field, _ in logged.ListFields():
        if field.name not in _ASKED:
            asked.ClearField(field.name)
    query = query_of(asked, generation)
    answer = generation.pipeline.run(query, without=frozenset(logged.skipped_sources))
    return record(asked, query=query, answer=answer, generation=generation, eligible=bool(logged.eligible_item_key))


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
    """The confined target's own slates."""


def unseen(impressions: Sequence[Impression], target: Manifest) -> list[Impression]:
    """Those that the target was not trained on.

    A policy that has learned the outcomes of a log shows what was clicked there, and its estimate from that log is
    too good: on the simulated world by a fifth.

    Raises:
        ValueError: where there are none.
    """
    until_ms = target.data_window[1]
    later = [each for each in impressions if each.time_ms >= until_ms]
    if not later:
        raise ValueError(
            f"none of {len(impressions)} impressions is later than {until_ms}, when the data that {target.id} was "
            "trained on ends; its own training data would flatter it"
        )
    return later


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
        ValueError: where no impression holds its eligible candidates.
    """
    usable = in_order(each for each in impressions if each.eligible_item_key)
    if not usable:
        raise ValueError(f"none of {len(impressions)} impressions holds the candidates it was drawn from")
    width = max(len(each.item_id) for each in usable)
    snapshots = Snapshots({target.id: target}, catalog)
    columns = [_compare(each, snapshots.at(target.id, each), width, rewards, examination_K) for each in usable]
    reward, logged, aimed, predicted, expected, inside, shown = zip(*columns, strict=True)
    return Counterfactual(
        tuple(each.request_id for each in usable),
        np.stack(reward),
        np.stack(logged),
        np.stack(aimed),
        np.stack(predicted),
        np.stack(expected),
        np.array(inside),
        tuple(shown),
    )


_Compared = tuple[
    NDArray[np.float64],
    NDArray[np.float64],
    NDArray[np.float64],
    NDArray[np.float64],
    NDArray[np.float64],
    float,
    tuple[str, ...],
]


def _compare(
    logged: Impression,
    target: Generation,
    width: int,
    rewards: Mapping[tuple[str, str], float],
    examination_K: NDArray[np.float64],
) -> _Compared:
    policy = target.pipeline.selector
    if not isinstance(policy, SlatePolicy):
        raise ValueError(f"generation {target.id} has no policy that knows its propensities")
    query = query_of(logged, target)
    answer = target.pipeline.run(query)
    own_row_K = answer.scored.candidates.row_N[answer.slate.index_K]
    worth = dict(
        zip(
            target.items.ids.rows(np.array(logged.eligible_item_key, np.uint64)).tolist(),
            logged.eligible_utility,
            strict=True,
        )
    )
    row_N = answer.scored.candidates.row_N
    kept_N = np.array([row in worth for row in row_N.tolist()], np.bool_)
    confined = answer.scored.keep(kept_N)
    index_of = {row: n for n, row in enumerate(confined.candidates.row_N.tolist())}
    shown_row_K = target.items.ids.rows_of(logged.item_id).tolist()
    draw = policy.propensity_of(query, confined, np.array([index_of.get(row, -1) for row in shown_row_K], np.int64))
    slate = policy.select(query, confined)

    count = len(logged.item_id)
    seen_K = examination_K[np.minimum(np.arange(count), len(examination_K) - 1)]
    worth_N = np.array([worth[row] for row in confined.candidates.row_N.tolist()])

    def padded(values_K: NDArray[np.float64], *, last: bool) -> NDArray[np.float64]:
        """To the common width: a slot that is not there earns nothing and changes no probability."""
        fill = values_K[-1] if last else 0.0
        return np.concatenate([values_K, np.full(width - count, fill)])

    return (
        padded(np.array([rewards.get((logged.request_id, item), 0.0) for item in logged.item_id]), last=False),
        padded(np.cumprod(np.array(logged.propensity)), last=True),
        padded(draw.prefix_propensity_K, last=True),
        padded(seen_K * np.array(logged.utility, np.float64), last=False),
        padded(seen_K * (draw.distribution_KN @ worth_N), last=False),
        float(np.mean([row in worth for row in own_row_K.tolist()])) if len(own_row_K) else 1.0,
        tuple(target.items.ids.ids[int(row)] for row in confined.candidates.row_N[slate.index_K]),
    )
