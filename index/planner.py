"""How a filtered search is done: by share allowed and by cost.

*oversample*: search all rows for a few more than k and drop what is not allowed. *scan*: the codes through a selector,
the lists nearest to the query that hold allowed rows until enough of those were met. *subset*: the exact scores of
every allowed row.

Shape letters: A allowed rows, H lists that hold allowed rows, I rows, K results, N rows or lists looked at.
"""

import math
from collections.abc import Callable
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from index.kinds import Codes, Device, Kind, Rows, Scores, inner_products
from index.masks import Mask
from index.scan import ScannedLists

Plan = Literal["oversample", "scan", "subset"]

WIDER = 8.0
"""Lists read under a filter to those read without one: rows far from the query, where a filter may leave nothing else,
are told apart less well by their lists' centroids."""
MET = 8
"""Allowed rows met in lists, at least, for each that is wanted."""

_CODE_NS: dict[Kind, float] = {"exact": 6.0, "ivf": 15.0, "ivf_sq8": 8.0, "ivf_pq": 5.0, "hnsw": 1_500.0}
"""Score one code of those that the effort stands for: all, those in lists, or a step in a graph."""
_TEST_NS = 2.0
"""Ask a selector about one code."""
_HIT_NS = 140.0
"""Keep, sort and hand over one hit."""
_GATHER_NS = 30.0
"""Score one vector out of its place in memory."""
_RANK_NS = 60_000.0
"""Rank the lists."""
_DEVICE_NS = 200_000.0
"""Hear from a device."""
_SHORT = 0.5
"""Share of filters taken to allow rows away from the query, so that oversampling falls short and a scan must follow."""


def plan(
    codes: Codes | ScannedLists,
    *,
    k: int,
    count: int,
    usable: int,
    effort: Callable[[int], int],
    device: Device | None,
) -> Plan:
    """The cheapest way to the k best of `count` allowed rows out of `usable`, 1 <= k <= count < usable."""
    asked = oversampled(k, count, usable)
    list_rows, code_ns = usable / max(1, codes.nlist), _CODE_NS[codes.kind]
    nominated = codes.nominated(asked, effort(asked))
    if device is not None and nominated <= device.most_k:
        read_ns = _DEVICE_NS
    else:
        read_ns = code_ns * (effort(asked) if codes.kind == "hnsw" else effort(asked) * list_rows)
    if codes.nlist:
        read = max(lists_read(count, usable, effort(k)) * list_rows, MET * k * usable / count)
        scan_ns = _RANK_NS + min(read, usable) * code_ns
    else:
        scan_ns = usable * _TEST_NS + count * _CODE_NS["exact"]
    scan_ns += k * _HIT_NS + codes.nominates * codes.nominated(k, effort(k)) * _GATHER_NS
    oversample_ns = read_ns + asked * _HIT_NS + codes.nominates * nominated * _GATHER_NS
    costs: dict[Plan, float] = {
        "subset": count * _GATHER_NS,
        "oversample": oversample_ns + _SHORT * (1 - count / usable) * scan_ns,
        "scan": scan_ns,
    }
    return min(costs, key=costs.__getitem__)


def lists_read(count: int, usable: int, effort: int) -> int:
    """Among those that hold allowed rows: the fewer are allowed, the farther from the query lie the k best."""
    return math.ceil(WIDER * effort * math.cbrt(usable / count))


def oversampled(k: int, count: int, usable: int) -> int:
    """How many to ask for so that k are allowed, in all but one search in thousands if rows are allowed by chance."""
    expected = k * usable / count
    return min(usable, math.ceil(expected + 4 * math.sqrt(expected * (1 - count / usable))) + 1)


class Reading:
    """One mask as one index reads it; made once a mask."""

    def __init__(self, mask: Mask, codes: Codes | ScannedLists) -> None:
        # Not the mask itself: what is kept for a mask while it lives must not keep it alive.
        self.plans: dict[int, Plan] = {}
        """By k."""
        self._codes = codes
        self._allowed_I = mask.allowed_I

    @cached_property
    def selector(self) -> Any:
        return self._codes.selector(np.packbits(self._allowed_I, bitorder="little"))

    @cached_property
    def _held(self) -> tuple[Rows, Rows]:
        """Lists that hold allowed rows, and how many each."""
        list_I = self._codes.list_I
        count_L = np.bincount(list_I[self._allowed_I[: len(list_I)]], minlength=self._codes.nlist)
        list_H = np.flatnonzero(count_L)
        return list_H, count_L[list_H]

    def nearest(self, query_D: NDArray[np.float32], *, lists: int, met: int) -> tuple[Rows, Scores]:
        """So many of the nearest lists that hold allowed rows, or more until they hold `met` of them; their scores."""
        list_H, count_H = self._held
        score_H = inner_products(query_D, self._codes.centroid_LD, list_H)
        order_H = np.argsort(-score_H)
        near_N = order_H[: max(lists, int(np.searchsorted(np.cumsum(count_H[order_H]), met)) + 1)]
        return list_H[near_N], score_H[near_N]


def best(score_N: Scores, k: int) -> NDArray[np.int64]:
    """Positions of the k largest scores, or of all that there are, largest first, ties by position."""
    count = len(score_N)
    if k == 0:
        return np.empty(0, np.int64)
    if k >= count:
        return np.argsort(-score_N, kind="stable")
    at_N = np.flatnonzero(score_N >= np.partition(score_N, count - k)[count - k])
    return at_N[np.argsort(-score_N[at_N], kind="stable")[:k]]
