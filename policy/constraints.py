"""Which candidates a slot may hold, as the walk reads it.

- A blocked item is never placed, any other at most once. This is never given up.
- A pinned item is placed in its slot, whatever else holds, if it is a candidate; until then nobody draws it.
- At most `max_per_category` items of one category are in any `category_window` consecutive slots, or in the slate;
  likewise of creators, of a rule's items and, at most one, of items that share a value of `duplicate_attribute`. 0 is
  an unknown value: such items share nothing. A pinned item is held by no cap, but counts for the slots before it too,
  as if it were there already.
- Quotas (`fresh_quota` of the slots, rounded up; `min_per_category`; at least so many of a rule's items) bind as late
  as they can: once there are no more slots left than items owed, only owed items may be placed. An item counts for
  every quota that it is in; what is owed is the sum over quotas.

Where candidates remain but none may be placed, constraints are given up in the order of `RELAXATION` until one may be:
of quotas as much as cannot be kept, of caps each together with those before it and for this slot alone. Those that set
nothing are passed over.

Shape letters: N candidates, K slots, C caps, Q quotas, G groups of candidates that a cap counts together.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from candidate_gen.items import Items
from index.strings import key64
from policy.rules import Ruled
from policy.settings import PolicySettings
from policy.types import SlotFlag
from ranking.types import Scored

RELAXATION = (
    "pins",
    "fresh_quota",
    "min_per_category",
    "rules.at_least",
    "max_per_creator",
    "max_per_category",
    "rules.at_most",
    "duplicates",
)
"""The order in which constraints are given up, by the names under which a slate reports it."""


class Caps(NamedTuple):
    """At most `most_C` placed candidates are of one group in any `window_C` slots. Ordered as they are given up."""

    most_C: NDArray[np.int64]
    window_C: NDArray[np.int64]
    """0: the whole slate."""
    level_C: NDArray[np.int64]
    """Place in `RELAXATION`."""
    group_CN: NDArray[np.int64]
    """-1 for none."""
    first_CG: NDArray[np.int64]
    next_CN: NDArray[np.int64]
    """The candidates of a group as a chain that ends with -1."""


class Quotas(NamedTuple):
    """At least `owed_Q` slots hold candidates whose `member_N` has bit q. Ordered as they are given up."""

    member_N: NDArray[np.int64]
    """Empty without quotas."""
    owed_Q: NDArray[np.int64]
    flag_Q: NDArray[np.int64]
    """`SlotFlag` of a slot that a quota decided."""
    level_Q: NDArray[np.int64]


class Pool(NamedTuple):
    """Who may be drawn, for how many slots."""

    barred_N: NDArray[np.bool_]
    """Never placed."""
    fresh_N: NDArray[np.bool_]
    pin_K: NDArray[np.int64]
    """The candidate that a slot is kept for, none of them twice or barred; -1 for none."""


class Limits(NamedTuple):
    """All that limits one draw."""

    caps: Caps
    quotas: Quotas
    pool: Pool


def limits(
    settings: PolicySettings, ruled: Ruled, *, items: Items, scored: Scored, size: int, fresh_N: NDArray[np.bool_]
) -> Limits:
    """The limits of a slate of `size` items, or of all that are not blocked where there are fewer.

    Raises:
        ValueError: for an attribute that the items do not have.
    """
    size = max(0, min(size, len(scored) - int(ruled.barred_N.sum())))
    caps = list(_caps(settings, ruled, items, scored))
    quotas = list(_quotas(settings, ruled, items, scored, size=size, fresh_N=fresh_N))
    member_N = np.zeros(len(scored) if quotas else 0, np.int64)
    for q, (held_N, *_) in enumerate(quotas):
        member_N |= held_N.astype(np.int64) << q
    return Limits(
        Caps(
            np.array([most for _, most, _, _ in caps], np.int64),
            np.array([window for _, _, window, _ in caps], np.int64),
            np.array([RELAXATION.index(name) for *_, name in caps], np.int64),
            *_grouped(np.array([id_N for id_N, *_ in caps], np.int64).reshape(len(caps), len(scored))),
        ),
        Quotas(
            member_N,
            np.array([owed for _, owed, _, _ in quotas], np.int64),
            np.array([flag for _, _, flag, _ in quotas], np.int64),
            np.array([RELAXATION.index(name) for *_, name in quotas], np.int64),
        ),
        Pool(ruled.barred_N, fresh_N, _pins(ruled, scored, size)),
    )


def _caps(
    settings: PolicySettings, ruled: Ruled, items: Items, scored: Scored
) -> Iterator[tuple[NDArray[np.int64], int, int, str]]:
    """What candidates share, how many may, in which window; and the name."""
    for kind in ("creator", "category"):
        most, window = getattr(settings, f"max_per_{kind}"), getattr(settings, f"{kind}_window")
        if most:
            yield scored.item_row_N[kind].astype(np.int64), most, window, f"max_per_{kind}"
    for rule, member_N in ruled.quotas:
        if rule.at_most:
            yield member_N.astype(np.int64), rule.at_most, 0, "rules.at_most"
    if settings.duplicate_attribute:
        value_N = _attribute(items, scored, settings.duplicate_attribute, "duplicate_attribute")
        known_N = value_N == value_N  # noqa: PLR0124  # NaN is not itself
        yield np.where(known_N, value_N.view(np.int64), 0), 1, 0, "duplicates"


def _quotas(
    settings: PolicySettings, ruled: Ruled, items: Items, scored: Scored, *, size: int, fresh_N: NDArray[np.bool_]
) -> Iterator[tuple[NDArray[np.bool_], int, SlotFlag, str]]:
    """Who counts, how many are owed, the flag and the name."""
    if settings.fresh_quota:
        # Rounded first: 0.28 * 25 is a little above 7, and 7 is meant.
        yield fresh_N, math.ceil(round(settings.fresh_quota * size, 9)), SlotFlag.FRESH_QUOTA, "fresh_quota"
    if settings.min_per_category:
        key_N = _attribute(items, scored, "category", "min_per_category")
        for category, least in sorted(settings.min_per_category.items()):
            yield key_N == key64(category), least, SlotFlag.QUOTA, "min_per_category"
    for rule, member_N in ruled.quotas:
        if rule.at_least:
            yield member_N, rule.at_least, SlotFlag.QUOTA, "rules.at_least"


def _attribute(items: Items, scored: Scored, name: str, setting: str) -> NDArray[Any]:
    column = items.attributes.get(name)
    if column is None:
        known = ", ".join(sorted(items.attributes)) or "none"
        raise ValueError(f"{setting}: the items have no attribute {name!r}; they have {known}")
    return np.asarray(column[scored.candidates.row_N])


def _pins(ruled: Ruled, scored: Scored, size: int) -> NDArray[np.int64]:
    pin_K = np.full(size, -1, np.int64)
    for slot, row in ruled.pins:
        at = np.flatnonzero(scored.candidates.row_N == row)
        if slot < size and len(at) and not ruled.barred_N[at[0]]:
            pin_K[slot] = at[0]
    return pin_K


_compiled: Any = njit(cache=True, nogil=True, boundscheck=False)


@_compiled
def _grouped(id_CN):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    """Number the identifiers of each cap and chain the candidates that share one, by way of a hash table."""
    places = 16
    while places < 2 * id_CN.shape[1]:
        places *= 2
    group_CN, first_CG, next_CN = np.full(id_CN.shape, -1), np.full(id_CN.shape, -1), np.full(id_CN.shape, -1)
    taken_P = np.empty(places, np.int64)
    for c in range(len(id_CN)):
        taken_P[:] = -1
        groups = 0
        for n in range(id_CN.shape[1]):
            shared = id_CN[c, n]
            if shared != 0:
                place = (shared * 0x9E3779B97F4A7C1) >> 20 & (places - 1)
                while taken_P[place] >= 0 and id_CN[c, first_CG[c, taken_P[place]]] != shared:
                    place = (place + 1) & (places - 1)
                if taken_P[place] < 0:
                    taken_P[place] = groups
                    groups += 1
                group = taken_P[place]
                group_CN[c, n] = group
                next_CN[c, n] = first_CG[c, group]
                first_CG[c, group] = n
    return group_CN, first_CG, next_CN
