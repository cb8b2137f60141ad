"""Skew: the features of a log computed again, offline, and compared with the logged bytes, bit by bit.

What was logged is what is trained on, so nothing here reaches a model. The report finds what serving and training
would disagree on: another definition, another order of events, a store that lost some.

Computed again are

- histories, from events alone: the log's outcomes and what was known before it, joined point-in-time as training does;
- profiles, item rows and vectors, from the generation that answered, as the catalogue was when it did;
- what follows from those: context, crosses of history and item, age, matches of texts, BM25, the towers' product.

Taken from the log, as there is no other record of it: what was asked, and the ranks that sources gave an item.

Features that are made of a user's history are `of_state`: they differ, and rightly so, where the online store lost
events or learned of them late (a restart, a time-out, an event older than a day), so they have a budget of their own.
All others are determined by generation and request and must not differ at all. The towers' product is of state too;
its last bits depend on how many candidates were scored at once, so it is compared where the log holds all of them, and
on another kind of processor it may differ in the last bits nevertheless.

Shape letters: R requests, N exposures, K slots of a request, C its candidates, L history, S sources, I items of the
events.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from itertools import groupby, islice
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from candidate_gen.features import Feature, FeatureTable, RowKind, pair_rows, query_rows
from candidate_gen.text_match import field_matches
from candidate_gen.types import Query
from index.generations import GenerationStore
from index.strings import keys64
from protos.impression_pb2 import Impression
from ranking.scorer import ranks_by_source, require_table
from serving.again import Snapshots
from serving.codec import query_of, remember
from serving.generation import Generation, action_key
from serving.log.catalog_log import FILE, CatalogLog
from serving.state.user_state import KEPT_EVENTS
from training.examples.events import point_in_time_history
from training.examples.exposures import bm25_of, no_matches
from training.gates import SKEW, SKEW_REQUESTS, SKEW_STATE
from training.log.impression_log import evenly
from training.log.served import searched_text

_CHUNK = 1024
"""Impressions that are in memory at once."""
_SAMPLED = 2000
"""Impressions that a gate looks at; each takes about 2 ms."""
_SCORE = "tower_score"
_ROWS: tuple[RowKind, ...] = ("query", "item", "pair")


@dataclass(frozen=True, slots=True)
class Example:
    """One value that differs. A feature of the request has no item."""

    request_id: str
    item_id: str
    logged: Any
    recomputed: Any


@dataclass(frozen=True, slots=True)
class FeatureSkew:
    """How far one feature is from what was logged."""

    name: str
    row: RowKind
    of_state: bool
    """Whether it is made of a user's history."""
    rows: int
    """That were compared."""
    differing: int
    """That differ in at least one bit."""
    largest: float
    """Largest absolute difference of a number; 0 for an id, which is equal or not."""
    example: Example | None
    """The first that differs."""

    @property
    def share(self) -> float:
        """Of the rows; 0 where there are none."""
        return self.differing / self.rows if self.rows else 0.0


@dataclass(frozen=True, slots=True)
class Skew:
    """What was found."""

    requests: int
    exposures: int
    left_out: Mapping[str, int]
    """Requests by the generation that answered them, where the store does not hold it any more."""
    features: tuple[FeatureSkew, ...]
    """All of them, in the order of the bytes."""

    @property
    def metrics(self) -> dict[str, float]:
        """Under the names that gates know: requests compared, and the share of every feature that differs."""
        differing = [each for each in self.features if each.differing]
        return {
            SKEW_REQUESTS: float(self.requests),
            **{f"{SKEW_STATE if each.of_state else SKEW}{each.name}": each.share for each in differing},
        }


@dataclass(slots=True)
class _Tally:
    """A `FeatureSkew` that is being counted."""

    rows: int = 0
    differing: int = 0
    largest: float = 0.0
    example: Example | None = None

    def add(self, logged_N: np.ndarray, again_N: np.ndarray, *, number: bool, of: Sequence[tuple[str, str]]) -> None:
        """
        Args:
            number: whether a difference has a size.
            of: request id and item id of every row.
        """
        if not len(logged_N):  # as the towers' product of a log that holds few whole sets of candidates
            return
        self.rows += len(logged_N)
        differs_N = np.reshape(_bits(logged_N) != _bits(again_N), (len(logged_N), -1)).any(axis=1)
        at_D = np.flatnonzero(differs_N)
        if not len(at_D):
            return
        self.differing += len(at_D)
        if number:
            with np.errstate(invalid="ignore"):
                apart = np.abs(logged_N[at_D].astype(np.float64) - again_N[at_D])
            self.largest = max(self.largest, float(np.nanmax(apart, initial=0.0)))
        if self.example is None:
            first = int(at_D[0])
            self.example = Example(*of[first], logged_N[first].tolist(), again_N[first].tolist())


@dataclass(slots=True)
class _Count:
    requests: int = 0
    exposures: int = 0
    left_out: Counter[str] = field(default_factory=Counter)
    tallies: dict[str, _Tally] = field(default_factory=dict)
    features: dict[str, tuple[RowKind, Feature]] = field(default_factory=dict)


def measure(
    impressions: Iterable[Impression],
    generations: Mapping[str, Generation],
    events: pl.DataFrame,
    *,
    catalog: CatalogLog | None = None,
    advance: Callable[[int], object] = lambda _: None,
) -> Skew:
    """Compute the features of every impression again.

    Args:
        impressions: in the order of time, or nearly; read once, some at a time.
        generations: those that may have answered; impressions of others are counted and left out.
        events: everything known, before the log and in it, each once.
        catalog: see `serving.again.Snapshots`.
        advance: told how many impressions were looked at, again and again.

    Raises:
        ValueError: where there is no impression, or none of these generations; where bytes were written with another
            feature table than the generation has, or do not fit the items shown; where an item is not in the
            generation.
    """
    snapshots, count = Snapshots(generations, catalog), _Count()
    tables = [each.table for each in generations.values()]
    waiting = iter(impressions)
    while chunk := list(islice(waiting, _CHUNK)):
        count.left_out.update(each.generation for each in chunk if each.generation not in generations)
        kept = sorted(
            (each for each in chunk if each.generation in generations),
            key=lambda each: (each.generation, each.catalog_seq),
        )
        users = {each.user_id for each in kept}
        known = events.filter(pl.col("user_id").is_in(list(users)))
        for _, group in groupby(kept, key=lambda each: (each.generation, each.catalog_seq)):
            logged = list(group)
            for each in logged:
                require_schema(each, generations[each.generation].table, tables)
            _compare(logged, snapshots.answered(logged[0]), known, count)
        advance(len(chunk))
    if not count.requests:
        raise ValueError(
            f"the log holds {count.left_out.total()} impressions, none answered by {', '.join(generations) or 'nobody'}"
            f"; they are of {', '.join(sorted(count.left_out)) or 'nobody'}"
        )
    measured = tuple(
        FeatureSkew(
            name,
            row,
            is_of_state(each),
            tally.rows,
            tally.differing,
            tally.largest,
            tally.example,
        )
        for name, (row, each) in count.features.items()
        for tally in (count.tallies[name],)
    )
    return Skew(count.requests, count.exposures, dict(count.left_out), measured)


def sampled(
    impressions: Sequence[Impression], store: GenerationStore, events: pl.DataFrame, *, most: int = _SAMPLED
) -> dict[str, float]:
    """`Skew.metrics` of evenly spaced impressions, of those whose generation the store still holds; empty without any.

    Args:
        most: impressions that are looked at.
    """
    held = set(store.ids())
    of_held = [each for each in impressions if each.generation in held]
    if not of_held:
        return {}
    asked = evenly(of_held, most)
    generations = {name: Generation.load(store, name) for name in {each.generation for each in asked}}
    with closing(CatalogLog(store.root / FILE)) as catalog:
        return measure(asked, generations, events, catalog=catalog).metrics


def table_of(store: GenerationStore, generation: str) -> FeatureTable:
    """The feature table of a generation."""
    return FeatureTable.load(store.folder(generation))


def require_schema(logged: Impression, table: FeatureTable, known: Iterable[FeatureTable]) -> None:
    """
    Args:
        known: tables that its bytes may have been written with.

    Raises:
        ValueError: where the bytes of an impression were written with another table; names the first feature that
            differs, where that table is among those known.
    """
    if logged.schema == table.fingerprint:
        return
    for other in known:
        if other.fingerprint == logged.schema:
            described = {"table": other.fingerprint, "schema": json.loads(other.to_json())}
            require_table(Path(f"who answered impression {logged.request_id}"), described, table)
    raise ValueError(
        f"impression {logged.request_id} was logged with feature table {logged.schema}, not with {table.fingerprint}"
    )


def is_of_state(feature: Feature) -> bool:
    """Whether a feature is made of the user's history."""
    return feature.owner == "history" or feature.cross is not None or feature.name == _SCORE


def _compare(logged: Sequence[Impression], generation: Generation, events: pl.DataFrame, count: _Count) -> None:
    """Count impressions that one snapshot of a generation answered."""
    table = generation.table
    exposed = [(each.request_id, item_id) for each in logged for item_id in each.item_id]
    asked = [(each.request_id, "") for each in logged]
    again, scored_N = _again(logged, generation, events)
    for row, was in zip(_ROWS, _logged_rows(logged, table), strict=True):
        where = asked if row == "query" else exposed
        for feature in table.of(row):
            name = feature.name
            at = np.flatnonzero(scored_N) if name == _SCORE else np.arange(len(was))
            count.features.setdefault(name, (row, feature))
            count.tallies.setdefault(name, _Tally()).add(
                was[name][at],
                again[row][name][at],
                number=feature.kind == "number",
                of=[where[n] for n in at.tolist()] if name == _SCORE else where,
            )
    count.requests += len(logged)
    count.exposures += len(exposed)


def _logged_rows(logged: Sequence[Impression], table: FeatureTable) -> Iterator[np.ndarray]:
    for row, name in zip(_ROWS, ("query_row", "item_rows", "pair_rows"), strict=True):
        dtype = table.dtype(row)
        for each in logged:
            needed = dtype.itemsize * (1 if row == "query" else len(each.item_id))
            if len(getattr(each, name)) != needed:
                raise ValueError(
                    f"impression {each.request_id} holds {len(getattr(each, name))} bytes of {row} rows; "
                    f"{len(each.item_id)} items take {needed}"
                )
        yield np.frombuffer(b"".join(getattr(each, name) for each in logged), dtype)


def _again(
    logged: Sequence[Impression], generation: Generation, events: pl.DataFrame
) -> tuple[dict[RowKind, np.ndarray], NDArray[np.bool_]]:
    """Rows of every kind, as the logged ones are laid out, and for which exposures the towers' product is exact."""
    table, items = generation.table, generation.items
    queries = _queries(logged, generation, events)
    query_row_R = _query_rows(queries, generation)
    request_N = np.repeat(np.arange(len(logged)), [len(each.item_id) for each in logged])
    row_N = items.ids.rows_of([item_id for each in logged for item_id in each.item_id])
    if (row_N < 0).any():
        n = int(np.flatnonzero(row_N < 0)[0])
        each = logged[int(request_N[n])]
        raise ValueError(
            f"impression {each.request_id} shows an item that generation {generation.id}, which answered it, lacks"
        )
    item_row_N: np.ndarray = items.row_I[row_N]
    time_ms_R = np.array([each.time_ms for each in logged], np.int64)
    start_R1 = np.searchsorted(request_N, np.arange(len(logged) + 1))
    score_N = np.zeros(len(row_N), np.float32)
    scored_N = np.zeros(len(row_N), np.bool_)
    bm25_N = np.zeros(len(row_N), np.float32)
    match_NF = no_matches(len(row_N))
    rank_NS = np.full((len(row_N), len(table.sources)), -1, np.int16)
    for r, each in enumerate(logged):
        of = slice(start_R1[r], start_R1[r + 1])
        if each.eligible_item_key:
            score_N[of] = _tower_scores(each, row_N[of], query_row_R[r : r + 1], generation)
            scored_N[of] = True
        asked_KS = np.array(each.source_rank, np.int16).reshape(len(each.item_id), len(each.source_names))
        rank_NS[of] = ranks_by_source(table, each.source_names, asked_KS)
        text = searched_text(each)
        for name, matched_KF in (field_matches(text, items.prepared, row_N[of]) or {}).items():
            match_NF[name][of] = matched_KF
        if text.strip() and "lexical" in table.sources:
            named_K = rank_NS[of, table.sources.index("lexical")] >= 0
            first_K = np.zeros(len(named_K), np.int64)
            matched_K = bm25_of(generation.lexical, [text], first_K, row_N[of], items=len(items))
            bm25_N[of] = matched_K * named_K
    pair_row_N = pair_rows(
        table,
        query_row_R[request_N],
        item_row_N,
        age_ms_N=time_ms_R[request_N] - items.published_ms_I[row_N],
        tower_score_N=score_N,
        match_NF=match_NF,
        bm25_N=bm25_N,
        rank_NS=rank_NS,
    )
    return {"query": query_row_R, "item": item_row_N, "pair": pair_row_N}, scored_N


def _queries(logged: Sequence[Impression], generation: Generation, events: pl.DataFrame) -> list[Query]:
    """What was asked, with the history that events tell of in place of the one that was read."""
    item_ids = events["item_id"].unique(maintain_order=True)
    actions = events["action"].unique(maintain_order=True).to_list()
    row_RL, action_RL, time_ms_RL = point_in_time_history(
        events,
        [each.user_id for each in logged],
        np.array([each.time_ms for each in logged], np.int64),
        length=KEPT_EVENTS,
        item_ids=item_ids,
        actions=actions,
    )
    key_I = keys64(item_ids)
    action_keys = np.array([0, *map(action_key, actions)], np.uint32)
    queries = []
    for each, row_L, action_L, time_ms_L in zip(logged, row_RL, action_RL, time_ms_RL, strict=True):
        sent = [
            n for n, key in enumerate(each.history_action_key) if not key and each.history_time_ms[n] == each.time_ms
        ]
        asked = Impression(
            request_id=each.request_id,
            time_ms=each.time_ms,
            surface=each.surface,
            user_id=each.user_id,
            text=each.text,
            filter=each.filter,
            query_options=each.query_options if each.HasField("query_options") else None,
            size=each.size,
            features=each.features,
            history_item_key=[each.history_item_key[n] for n in sent],
            history_action_key=[0] * len(sent),
            history_time_ms=[each.time_ms] * len(sent),
        )
        held_L = row_L >= 0
        if each.user_id:
            remember(asked, key_I[row_L[held_L]], action_keys[action_L[held_L]], time_ms_L[held_L])
        queries.append(query_of(asked, generation))
    return queries


def _query_rows(queries: Sequence[Query], generation: Generation) -> np.ndarray:
    table = generation.table
    user_ids = [query.user_id for query in queries]
    profile_R = generation.profiles.records(user_ids, stranger=table.stranger)
    names = profile_R.dtype.names or ()
    for r, query in enumerate(queries):
        for name in names:
            if name in query.features:
                profile_R[name][r] = table.encode(name, [query.features[name]])[0]
    length = max([1, *(len(query.history) for query in queries)])
    row_RL = np.full((len(queries), length), -1, np.int64)
    action_RL = np.zeros((len(queries), length), np.int32)
    time_ms_RL = np.zeros((len(queries), length), np.int64)
    for r, query in enumerate(queries):
        held = slice(0, len(query.history))
        row_RL[r, held] = query.history.row_L
        action_RL[r, held] = query.history.action_L
        time_ms_RL[r, held] = query.history.time_ms_L
    return query_rows(
        table,
        generation.items.row_I,
        user_ids=user_ids,
        profile_B=profile_R,
        surfaces=[query.surface for query in queries],
        texts=[query.text for query in queries],
        time_ms_B=np.array([query.time_ms for query in queries], np.int64),
        history_row_BL=row_RL,
        history_action_BL=action_RL,
        history_time_ms_BL=time_ms_RL,
    )


def _tower_scores(
    logged: Impression, row_K: NDArray[np.int64], query_row: np.ndarray, generation: Generation
) -> NDArray[np.float32]:
    """Of the shown items, computed alone and with all candidates at once, as when they were served."""
    row_C = generation.items.ids.rows(np.array(logged.eligible_item_key, np.uint64))
    score_C = generation.items.embedding_ID[row_C] @ generation.encode_query(query_row)
    score_of = dict(zip(row_C.tolist(), score_C.tolist(), strict=True))
    return np.array([score_of[row] for row in row_K.tolist()], np.float32)


def _bits(column_N: np.ndarray) -> np.ndarray:
    """Four-byte values as whole numbers, so that NaN equals itself and -0 is not 0."""
    return np.ascontiguousarray(column_N).view("<u4")
