"""What servers said beside what the generations of the store say of the same rows: weights and vectors in memory that
are not those on disk.

Feature rows are taken as they were logged, so neither histories nor the catalogue's order matter, as they do for skew;
and numbers that differ by rounding, as those of another processor do, are the same here.

Shape letters: K slots of a request, A actions.
"""

import math
from collections.abc import Iterable, Iterator

import numpy as np
from numpy.typing import NDArray

from protos.impression_pb2 import Degraded, Impression
from serving.again import Snapshots
from serving.generation import Generation
from training.monitoring import views
from training.monitoring.checks import Check
from training.monitoring.limits import Limits
from training.monitoring.rate import Rate

_ROUNDING = 0.05
"""Of the root mean square of what is said in a request: what 16-bit products come to, several times over."""


def unlike(impressions: Iterable[Impression], snapshots: Snapshots, limits: Limits) -> list[Check]:
    """Shares of the exposures of which something else was said than the generation says that answered.

    Args:
        impressions: whose generations are all among those of the snapshots, best in the order of `catalog_seq`. Slates
            that two drafted are left out.
    """
    rates: dict[str, Rate] = {}
    for logged in impressions:
        generation = snapshots.at(logged.generation, logged)
        if logged.HasField("drafted") or not logged.item_id or logged.schema != generation.table.fingerprint:
            continue
        for name, was_K, again_K in _said_again(logged, generation):
            off_K = ~(np.abs(was_K - again_K) <= _ROUNDING * np.sqrt(np.mean(np.square(again_K))))
            rates[name] = rates.get(name, Rate()) + Rate.of(off_K)
    return [
        Check("skew", name, "share", share, limits.share, 0.0, share, share > limits.share, math.nan)
        for name, rate in rates.items()
        for share in (rate.value,)
    ]


def _said_again(
    logged: Impression, generation: Generation
) -> Iterator[tuple[str, NDArray[np.float32], NDArray[np.float32]]]:
    """What was said of the slots, and what the generation says."""
    rows_of = views.rows(generation.table, [logged])
    row_K = generation.items.ids.rows_of(list(logged.item_id))
    if (row_K >= 0).all():
        product_K = np.asarray(generation.items.embedding_ID[row_K]) @ generation.encode_query(rows_of["query"])
        yield "tower_score of the store's towers", rows_of["pair"]["tower_score"], product_K
    names = list(logged.action_names)
    whole = len(logged.probability) == len(logged.item_id) * len(names)
    if not names or not whole or logged.degraded & Degraded.DEGRADED_RANKER_SKIPPED:
        return
    was_KA = np.array(logged.probability, np.float32).reshape(-1, len(names))
    again_KA = generation.scorer.probabilities(rows_of["query"], rows_of["item"], rows_of["pair"])
    for a, action in enumerate(names):
        yield f"P({action}) of the store's ranker", was_KA[:, a], again_KA[:, generation.table.actions.index(action)]
