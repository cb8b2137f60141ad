"""A query with what every stage reads of it."""

from collections.abc import Callable

import numpy as np

from candidate_gen.compiled_tower import QueryEncoder
from candidate_gen.features import FeatureTable, query_rows
from candidate_gen.items import Items
from candidate_gen.predicates import Attributes
from candidate_gen.types import HydratedQuery, Query
from serving.profiles import Profiles


def hydration(
    table: FeatureTable,
    items: Items,
    profiles: Profiles,
    *,
    attributes: Attributes,
    encode_query: QueryEncoder,
) -> Callable[[Query], HydratedQuery]:
    """Makes of a query what every stage reads: its feature row, its vector, the items that it may be answered with."""

    def hydrate(query: Query) -> HydratedQuery:
        profile, defaulted = _profile(table, profiles, query)
        row = _query_row(table, items, profile, query)
        allowed = attributes.allowed(query.filter)
        return HydratedQuery(query, row, encode_query(row), allowed, defaulted)

    return hydrate


def _profile(table: FeatureTable, profiles: Profiles, query: Query) -> tuple[np.ndarray, tuple[str, ...]]:
    """The profile, and which of its features stand at their defaults where a value was wanted: see `HydratedQuery`."""
    stored = profiles.of(query.user_id)
    defaulted = {feature.name for feature in table.profile if query.user_id and stored is None}
    profile = table.stranger if stored is None else stored.copy()
    for name, value in query.features.items():
        if name in (profile.dtype.names or ()):
            profile[name], unusable_B = table.encoded(name, [value])
            (defaulted.add if unusable_B[0] else defaulted.discard)(name)
    return profile, tuple(sorted(defaulted))


def _query_row(table: FeatureTable, items: Items, profile: np.ndarray, query: Query) -> np.ndarray:
    history = query.history
    return query_rows(
        table,
        items.row_I,
        user_ids=[query.user_id],
        profile_B=profile,
        surfaces=[query.surface],
        texts=[query.text],
        time_ms_B=np.array([query.time_ms], np.int64),
        history_row_BL=history.row_L[None],
        history_action_BL=history.action_L[None],
        history_time_ms_BL=history.time_ms_L[None],
    )
