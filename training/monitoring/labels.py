"""What followed the slates of a day, found by request and item.

Shape letters: N exposures, E outcomes.
"""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from index.strings import keys64
from protos.impression_pb2 import Impression, Outcome
from training.monitoring.rate import Rate

_CLOCK_MS = 60_000
"""By how much a caller's clock may be ahead."""


@dataclass(frozen=True, slots=True)
class Exposures:
    """Items of some slates, one after the other."""

    request_N: NDArray[np.int64]
    """Position of the impression."""
    item_key_N: NDArray[np.uint64]
    pair_N: NDArray[np.uint64]
    """One key of request and item."""
    time_ms_N: NDArray[np.int64]
    count_R: NDArray[np.int64]
    """By impression."""

    @classmethod
    def of(cls, logged: list[Impression]) -> "Exposures":
        count_R = np.array([len(each.item_id) for each in logged], np.int64)
        request_N = np.repeat(np.arange(len(logged)), count_R)
        item_key_N = keys64(item_id for each in logged for item_id in each.item_id)
        request_key_N = keys64(each.request_id for each in logged)[request_N]
        time_ms_N = np.array([each.time_ms for each in logged], np.int64)[request_N]
        return cls(request_N, item_key_N, _pairs(request_key_N, item_key_N), time_ms_N, count_R)

    def sums(self, value_N: NDArray[np.generic]) -> NDArray[np.float64]:
        """By impression."""
        return np.bincount(self.request_N, value_N, len(self.count_R)).astype(np.float64)


@dataclass(frozen=True, slots=True)
class Labels:
    """Outcomes that became visible on a day.

    An impression has labels where `label_ms` were left of its day, for outcomes within that time.
    """

    label_ms: int
    labelled_until_ms: int
    by_action: dict[str, tuple[NDArray[np.uint64], NDArray[np.int64]]]
    """Pairs and when they became visible, by pair, then time."""
    delay_s_E: NDArray[np.float64]
    unmatched: set[int]
    """Pairs that no impression had so far, without what comes so early that it may be of the day before."""
    looked_for: int
    rates: dict[str, Rate]

    @classmethod
    def of(cls, outcomes: Iterable[Outcome], *, start_ms: int, end_ms: int, label_ms: int) -> "Labels":
        rows = [
            (each.request_id, each.item_id, each.action, each.time_ms, each.visible_ms, each.value) for each in outcomes
        ]
        request_ids, item_ids, actions, times, seen, values = zip(*rows, strict=True) if rows else ([],) * 6
        pair_E = _pairs(keys64(request_ids), keys64(item_ids))
        action_E = np.array(actions, np.str_)
        time_ms_E, visible_ms_E = np.array(times, np.int64), np.array(seen, np.int64)
        named_E = np.array([bool(each) for each in request_ids], np.bool_)
        delay_s_E = np.maximum(visible_ms_E - time_ms_E, 0) / 1000
        by_action = {}
        again_E = np.zeros(len(rows), np.bool_)
        for action in np.unique(action_E).tolist():
            at_E = np.flatnonzero(action_E == action)
            at_E = at_E[np.lexsort((visible_ms_E[at_E], pair_E[at_E]))]
            by_action[action] = pair_E[at_E], visible_ms_E[at_E]
            again_E[at_E[1:]] = (pair_E[at_E[1:]] == pair_E[at_E[:-1]]) & named_E[at_E[1:]]
        unmatched = set(pair_E[named_E & (time_ms_E >= start_ms + label_ms)].tolist())
        return cls(
            label_ms=label_ms,
            labelled_until_ms=end_ms - label_ms,
            by_action=by_action,
            delay_s_E=delay_s_E,
            unmatched=unmatched,
            looked_for=len(unmatched),
            rates={
                "quality/outcomes said twice": Rate.of(again_E),
                "quality/outcomes without a request": Rate.of(~named_E),
                "quality/outcomes of no value": Rate.of(~np.isfinite(np.array(values, np.float64))),
                "quality/outcomes ahead of the clock": Rate.of(time_ms_E > visible_ms_E + _CLOCK_MS),
                "quality/outcomes too late for a label": Rate.of(delay_s_E > label_ms / 1000),
            },
        )

    def followed(self, exposures: Exposures, action: str) -> NDArray[np.bool_]:
        """Whether the first such outcome of an exposure became visible in time, (N,)."""
        pair_E, visible_ms_E = self.by_action.get(action, (np.empty(0, np.uint64), np.empty(0, np.int64)))
        if not len(pair_E):
            return np.zeros(len(exposures.pair_N), np.bool_)
        first_N = np.minimum(np.searchsorted(pair_E, exposures.pair_N), len(pair_E) - 1)
        in_time_N = visible_ms_E[first_N] <= exposures.time_ms_N + self.label_ms
        followed_N: NDArray[np.bool_] = (pair_E[first_N] == exposures.pair_N) & in_time_N
        return followed_N

    def of_nothing_shown(self) -> Rate:
        """Outcomes whose request is not of the day or did not show their item, once all of the day was seen."""
        lost = float(len(self.unmatched))
        return Rate(lost, float(self.looked_for), lost, lost, float(self.looked_for))


def _pairs(request_key: NDArray[np.uint64], item_key: NDArray[np.uint64]) -> NDArray[np.uint64]:
    mixed: NDArray[np.uint64] = request_key * np.uint64(0x9E3779B97F4A7C15) ^ item_key
    return mixed
