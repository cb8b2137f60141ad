"""What a log was drawn from, asked again: whether its propensities are true, and where it is too thin for a target.

Shape letters: R draws, A candidates, K slots, I requests that were asked again.
"""

import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from policy.ope import Overlap, PropensityBin, diagnose, propensity_bins, thin_support
from protos.impression_pb2 import Degraded, Impression
from serving.again import Snapshots, ask_again
from serving.generation import Generation
from serving.log.catalog_log import CatalogLog
from training.off_policy.replay import confined, in_order

_ASKED_AGAIN = 300
_LEAST_ASKED = 30
"""Of a part of the log, for a share to be told."""
_Each = TypeVar("_Each")


@dataclass(frozen=True, slots=True)
class SlotDraws:
    """What both policies would have drawn one slot from, given the slots before as they were logged."""

    request_ids: tuple[str, ...]
    logged_IA: NDArray[np.float64]
    target_IA: NDArray[np.float64]
    before_I: NDArray[np.float64]
    """The weight of the slots before: target / logged."""


@dataclass(frozen=True, slots=True)
class Draws:
    """A logging policy's propensities beside what it drew, and beside what a target would have drawn."""

    overlap: Overlap
    """Of the logging policy with itself, one row a draw: how many actions it could show."""
    bins: tuple[PropensityBin, ...]
    slots: tuple[SlotDraws, ...]

    def thin_support(self, most: float, *, among: Collection[str] | None = None) -> NDArray[np.float64]:
        """Share of the target's choices that cutting weights to `most` leaves out: in the first slot, the first two,
        ..., (K,); NaN from the slot on that too few requests have.

        Args:
            among: of these requests alone, at least 30 of them; None for all, however few.
        """
        return 1 - np.cumprod([1 - _thin(each, most, among) for each in self.slots], dtype=np.float64)


def spaced(of: Sequence[_Each]) -> list[_Each]:
    """As many as `drawn_again` asks, from all over."""
    return [of[int(at)] for at in np.unique(np.linspace(0, len(of) - 1, _ASKED_AGAIN).astype(int))] if len(of) else []


def drawn_again(
    impressions: Iterable[Impression], logging: Generation, target: Generation, *, catalog: CatalogLog | None = None
) -> Draws | None:
    """Both policies asked for what they would have drawn from, for up to 300 of those of the logging one; None where
    none is whole.

    Raises:
        ValueError: where the logging policy gives an item another propensity than the log does.
    """
    whole = [
        each
        for each in impressions
        if each.generation == logging.id
        and each.eligible_item_key
        and not each.degraded & Degraded.DEGRADED_RANKER_SKIPPED
    ]
    # Apart, for a target that is not published yet may have taken the id of another.
    of_logging, of_target = (Snapshots({each.id: each}, catalog) for each in (logging, target))
    asked = [_drawn(each, of_logging.answered(each), of_target.at(target.id, each)) for each in in_order(spaced(whole))]
    if not any(len(each.propensity_K) for each in asked):
        return None
    logged_RA = _padded([row_A for each in asked for row_A in each.logged_KA])
    propensity_R = np.concatenate([each.propensity_K for each in asked])
    bins = propensity_bins(logged_RA, np.concatenate([each.index_K for each in asked]))
    count_R = np.count_nonzero(logged_RA, axis=1)
    depth = max(len(each.propensity_K) for each in asked)
    return Draws(
        diagnose(propensity_R, propensity_R, actions_N=count_R, bins=bins),
        bins,
        tuple(_slot([each for each in asked if len(each.propensity_K) > k], k) for k in range(depth)),
    )


def _thin(slot: SlotDraws, most: float, among: Collection[str] | None) -> float:
    held_I = np.array([among is None or each in among for each in slot.request_ids])
    if among is not None and held_I.sum() < _LEAST_ASKED:
        return math.nan
    before_I = slot.before_I[held_I]
    return thin_support(slot.logged_IA[held_I], slot.target_IA[held_I], most=most, before_N=before_I)


@dataclass(frozen=True, slots=True)
class _Asked:
    """One request: what was drawn, and what from."""

    request_id: str
    index_K: NDArray[np.int64]
    propensity_K: NDArray[np.float64]
    target_K: NDArray[np.float64]
    """The target's propensities of the same."""
    logged_KA: NDArray[np.float64]
    target_KA: NDArray[np.float64]


def _drawn(logged: Impression, logging: Generation, target: Generation) -> _Asked:
    query, answer = ask_again(logged, logging)
    index_K = answer.scored.candidates.positions(logging.items.ids.rows_of(logged.item_id))
    draw = logging.policy.propensity_of(query, answer.scored, index_K)
    differing_K = np.flatnonzero(~np.isclose(draw.propensity_K, logged.propensity, rtol=1e-6, atol=0))
    if len(differing_K):
        k = differing_K[0]
        raise ValueError(
            f"request {logged.request_id}: slot {k + 1} was logged with propensity {logged.propensity[k]:.6g}, but "
            f"generation {logging.id} gives {draw.propensity_K[k]:.6g}; `cascade replay verify` says what differs"
        )
    of_target = confined(logged, target)
    wanted = of_target.draw(logged.item_id, target)
    target_KA = np.zeros_like(draw.distribution_KN)
    target_KA[:, of_target.eligible_C] = wanted.distribution_KN
    return _Asked(logged.request_id, index_K, draw.propensity_K, wanted.propensity_K, draw.distribution_KN, target_KA)


def _slot(asked: Sequence[_Asked], k: int) -> SlotDraws:
    return SlotDraws(
        tuple(each.request_id for each in asked),
        _padded([each.logged_KA[k] for each in asked]),
        _padded([each.target_KA[k] for each in asked]),
        np.array([np.prod(each.target_K[:k] / each.propensity_K[:k]) for each in asked]),
    )


def _padded(rows: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    padded_RA = np.zeros((len(rows), max(map(len, rows))))
    for padded_A, row_A in zip(padded_RA, rows, strict=True):
        padded_A[: len(row_A)] = row_A
    return padded_RA
