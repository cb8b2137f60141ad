"""What a generation carries for the sources that go by events: the newest, and the best of every segment.

Shape letters: E events, U users.
"""

import numpy as np
import polars as pl

from candidate_gen.activity import EVENT, Activity, segment_popularity
from candidate_gen.features import FeatureTable
from index.strings import IdMap, keys64
from serving.generation import action_key
from training.examples.counters import HALF_LIFE_MS


def activity(
    positives: pl.DataFrame,
    *,
    table: FeatureTable,
    items: IdMap,
    users: IdMap,
    profile_U: np.ndarray,
    as_of_ms: int,
    recent: int,
    popular_by: str,
) -> Activity:
    """Of outcomes of the main action, in the order in which they became known.

    Args:
        recent: of which the newest are carried.
        popular_by: the user column whose values are segments; none where it is empty.
    """
    newest = positives.tail(recent)
    recent_E = np.zeros(newest.height, EVENT)
    recent_E["item_key"] = keys64(newest["item_id"])
    recent_E["visitor_key"] = np.where(newest["user_id"] == "", 0, keys64(newest["user_id"]))
    recent_E["action_key"] = action_key(table.actions[0])
    recent_E["time_ms"] = newest["time_ms"]
    if not popular_by:
        return Activity(recent_E, Activity.none().segment_P)
    row_E, user_E = items.rows_of(positives["item_id"]), users.rows_of(positives["user_id"])
    segment_E = np.append(profile_U[popular_by], 0)[user_E]  # the last is nobody's
    worth_E = 0.5 ** ((as_of_ms - positives["time_ms"].to_numpy()) / HALF_LIFE_MS)
    held_E = row_E >= 0
    return Activity(recent_E, segment_popularity(segment_E[held_E], row_E[held_E], worth_E[held_E], items))


def segment_column(table: FeatureTable, chosen: str | None) -> str:
    """The user column whose values are segments: the chosen one, or the first there is; empty for none.

    Raises:
        ValueError: for a column that has no known values.
    """
    columns = [feature.name for feature in table.profile if feature.vocabulary]
    if chosen is None:
        return columns[0] if columns else ""
    if chosen and chosen not in columns:
        raise ValueError(f"retrieval.popular_by is {chosen!r}; it must be one of {', '.join(columns)}, or empty")
    return chosen
