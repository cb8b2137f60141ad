"""Logged impressions as columns that can be compared: features, scores, vectors, slices.

Integers are categories, floats are numbers. Ids of things that come and go (users, items, creators, words) are no
column of their own: how they are distributed is a matter of popularity and of volume, and how many are missing is in
`defaults`.

Shape letters: R requests, N exposures, K slots of a request, A actions, L entries of a history.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from candidate_gen.features import Feature, FeatureTable, RowKind
from protos.impression_pb2 import Impression
from training.monitoring.answerers import Answerers
from training.monitoring.rate import Rate

Columns = dict[str, list[NDArray[np.generic]]]
ROWS: dict[RowKind, str] = {"query": "query_row", "item": "item_rows", "pair": "pair_rows"}
_CATEGORIES = 64
"""An id with more values than this is one of things that come and go, unless they are declared."""


def rows(table: FeatureTable, logged: Sequence[Impression]) -> dict[RowKind, np.ndarray]:
    """The feature rows of impressions that were logged with this table."""
    return {
        kind: np.frombuffer(b"".join(getattr(each, name) for each in logged), table.dtype(kind))
        for kind, name in ROWS.items()
    }


def features(
    table: FeatureTable, rows_of: dict[RowKind, np.ndarray], counted_N: NDArray[np.bool_]
) -> Iterator[tuple[str, NDArray[np.generic]]]:
    """Comparable columns by name; of a history its newest entry, of counters those of items that have some.

    Args:
        counted_N: see `Answerers.counted`.
    """
    for kind, rows_N in rows_of.items():
        for feature in table.of(kind):
            values = rows_N[feature.name]
            if feature.kind == "id" and not (feature.vocabulary or feature.size <= _CATEGORIES or feature.shares):
                continue
            if feature.shares and not (table[feature.shares].vocabulary and feature.hashes == 1):
                continue
            column_N = _flat(values)[:, 0]
            column_N = column_N[counted_N] if feature.count else column_N
            yield feature.name, column_N.astype(np.int64) if feature.kind == "id" else column_N


def defaults(
    table: FeatureTable, rows_of: dict[RowKind, np.ndarray], counted_N: NDArray[np.bool_]
) -> Iterator[tuple[str, Rate]]:
    """Share of the rows in which a feature holds nothing but its default, by name; of requests, or of exposures.

    Args:
        counted_N: as of `features`.
    """
    for kind, rows_N in rows_of.items():
        for feature in table.of(kind):
            empty_N = (_flat(rows_N[feature.name]) == feature.default).all(axis=1)
            yield feature.name, Rate.of(empty_N[counted_N] if feature.count else empty_N)


def _flat(values: np.ndarray) -> np.ndarray:
    """A row of numbers for each of the rows, of which there may be none."""
    return values.reshape(len(values), math.prod(values.shape[1:]))


def not_finite(table: FeatureTable, rows_of: dict[RowKind, np.ndarray]) -> Rate:
    """Numbers that are NaN or infinite."""
    bad, count = 0, 0
    for kind, rows_N in rows_of.items():
        for feature in table.of(kind):
            if feature.kind == "number":
                bad += int((~np.isfinite(rows_N[feature.name])).sum())
                count += rows_N[feature.name].size
    return Rate(bad, count, bad, bad, count)


def named(feature: Feature, code: int) -> str:
    """A category as a person reads it."""
    if code == 0 and feature.kind == "id":
        return "(none)"
    return feature.vocabulary[code - 1] if 0 < code <= len(feature.vocabulary) else str(code)


def vectors(answerers: Answerers, logged: Sequence[Impression]) -> Columns:
    """What does not change where a space of vectors is turned: the length of what is shown, and its product with the
    mean of all items, by which vectors that crowd together, or another part of the catalogue, show."""
    columns: Columns = {"vector length": [], "vector by the mean": []}
    by_generation: dict[str, list[str]] = {}
    for each in logged:
        by_generation.setdefault(each.generation, []).extend(each.item_id)
    for generation, item_ids in by_generation.items():
        if generation in answerers.by_id:
            answerer = answerers.by_id[generation]
            vector_ND = answerer.vectors(item_ids)
            columns["vector length"].append(np.linalg.norm(vector_ND, axis=1))
            columns["vector by the mean"].append(vector_ND @ answerer.middle_D)
    return columns


def slices(answerers: Answerers, logged: Sequence[Impression]) -> dict[str, NDArray[np.str_]]:
    """What each request is, by name of the respect: surface, kind, what is known of the user, declared user columns."""
    told: dict[str, list[str]] = {
        "surface": [each.surface for each in logged],
        "query": ["typed" if each.text.strip() else "none" for each in logged],
        "history": ["some" if each.history_item_key else "none" for each in logged],
    }
    for name in sorted({name for each in logged for name in each.labels}):
        told[f"label {name}"] = [each.labels.get(name, "") for each in logged]
    for name in sorted({feature.name for table in answerers.tables.values() for feature in table.profile}):
        told[name] = [_profile(answerers.tables.get(each.schema), each, name) for each in logged]
    return {name: np.array(values, np.str_) for name, values in told.items() if any(values)}


def _profile(table: FeatureTable | None, logged: Impression, name: str) -> str:
    """A declared column of the user, where its values are; empty otherwise."""
    if table is None or name not in table or not table[name].vocabulary:
        return ""
    code = int(np.frombuffer(logged.query_row, table.dtype("query"))[name][0])
    return named(table[name], code)
