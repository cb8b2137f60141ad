"""A query made whole: its feature row, its vector, what may be shown, and what is listed where it asks for an order."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from candidate_gen.compiled_tower import QueryEncoder, encoded
from candidate_gen.features import FeatureTable, query_rows
from candidate_gen.items import Items
from candidate_gen.matches import Matching
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
    matching: Matching,
) -> Callable[[Query], HydratedQuery]:
    """What makes queries whole."""

    def hydrate(query: Query) -> HydratedQuery:
        profile, defaulted = _profile(table, profiles, query)
        row = _query_row(table, items, profile, query)
        allowed = attributes.allowed(query.filter)
        hydrated = HydratedQuery(query, row, encode_query(row), allowed, defaulted)
        return hydrated if query.order is None else replace(hydrated, listed_row_N=matching.listed(hydrated))

    return hydrate


def hydrated_of_many(
    table: FeatureTable,
    items: Items,
    profiles: Profiles,
    *,
    attributes: Attributes,
    encode_query: QueryEncoder,
    queries: Sequence[Query],
) -> list[HydratedQuery]:
    """The same of many queries, at least one, of known users: none with a text, features, a filter or an order."""
    user_ids = [query.user_id for query in queries]
    longest = max(len(query.history) for query in queries)
    row_BL, time_ms_BL = (np.full((len(queries), longest), -1, np.int64) for _ in range(2))
    action_BL = np.zeros((len(queries), longest), np.int32)
    for b, query in enumerate(queries):
        own = len(query.history)
        row_BL[b, :own], action_BL[b, :own] = query.history.row_L, query.history.action_L
        time_ms_BL[b, :own] = query.history.time_ms_L
    rows = query_rows(
        table,
        items.row_I,
        user_ids=user_ids,
        profile_B=profiles.records(user_ids, stranger=table.stranger),
        surfaces=[query.surface for query in queries],
        texts=[""] * len(queries),
        time_ms_B=np.array([query.time_ms for query in queries], np.int64),
        history_row_BL=row_BL,
        history_action_BL=action_BL,
        history_time_ms_BL=time_ms_BL,
    )
    vector_BD, allowed = encoded(encode_query, rows), attributes.allowed("")
    missing = tuple(sorted(feature.name for feature in table.profile))
    return [
        HydratedQuery(query, rows[b : b + 1], vector_BD[b], allowed, () if is_known else missing)
        for b, (query, is_known) in enumerate(zip(queries, profiles.known(user_ids).tolist(), strict=True))
    ]


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
