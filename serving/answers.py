"""From the core to the wire: an answer becomes the answering half of an `Impression`, and that a response.

A response is only ever made from an impression, so an answer found in the log is told like one just made.

Shape letters: K slots, N candidates, A actions, S sources, L recent items.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from candidate_gen.items import Items
from candidate_gen.types import Query
from index.columns import taken
from policy.selector import SlatePolicy
from policy.types import SlotFlag
from protos import impression_pb2, recommender_pb2
from protos.impression_pb2 import FeatureValue, Impression
from protos.recommender_pb2 import Item, Reason, ReasonKind
from serving.changes import held
from serving.codec import OWN_FIELDS, Request, attribution_token, missing_ids
from serving.found import tell_found
from serving.generation import Generation
from serving.paging import next_page_token
from serving.pipeline import Answer, Trace
from serving.understanding import message, tell

Response = recommender_pb2.RecommendResponse | recommender_pb2.SearchResponse | recommender_pb2.RankResponse

_SHOWN_BY_DEFAULT = ("title", "category")
_SEARCH_MATCH, _PERSONALISED = int(ReasonKind.REASON_SEARCH_MATCH), int(ReasonKind.REASON_PERSONALISED)
_SIMILAR_TO = int(ReasonKind.REASON_SIMILAR_TO)
_BITS_OF_SOURCE: Mapping[str, int] = {
    "similar": 1 << _SIMILAR_TO,
    "covisitation": 1 << _SIMILAR_TO,
    "lexical": 1 << _SEARCH_MATCH,
    "understood": 1 << _SEARCH_MATCH,
    "popular": 1 << ReasonKind.REASON_POPULAR,
    "trending": 1 << ReasonKind.REASON_POPULAR,
    "fresh": 1 << ReasonKind.REASON_FRESH,
}
_REASON_OF_FLAG: Mapping[int, int] = {
    SlotFlag.EXPLORED: ReasonKind.REASON_EXPLORED,
    SlotFlag.FRESH_QUOTA: ReasonKind.REASON_FRESH,
    SlotFlag.PINNED: ReasonKind.REASON_PINNED,
}
_BITS_OF_FLAG = np.array(
    [1 << _REASON_OF_FLAG[1 << b] if 1 << b in _REASON_OF_FLAG else 0 for b in range(max(SlotFlag).bit_length())],
    np.uint32,
)
"""By bit of the flag."""
_REASONS = tuple((int(kind), Reason(kind=name)) for name, kind in ReasonKind.items())
_OF_SLOTS = (
    "item_id",
    "propensity",
    "source_bits",
    "reason_bits",
    "score",
    "probability",
    "title",
    "category",
    "published_ms",
)
"""Columns with as many entries as slots, or a multiple."""
_ANCHORS = 10
"""How many of the latest items of a history a SIMILAR_TO reason may name."""


def stage_times(trace: Trace) -> list[impression_pb2.StageTime]:
    """Every stage with its milliseconds, and `retrieve.<source>` for each source left out."""
    late = [
        impression_pb2.StageTime(stage=f"retrieve.{source}", status=why)
        for source, why in trace.skipped_sources.items()
    ]
    return [impression_pb2.StageTime(stage=name, milliseconds=ms) for name, ms in trace.stage_ms.items()] + late


def record(asked: Impression, *, query: Query, answer: Answer, generation: Generation, eligible: bool) -> Impression:
    """Fill in who answered and what was shown; returns `asked`, now whole.

    Args:
        eligible: also log every candidate that the slate was drawn from.
    """
    asked.generation = generation.id
    asked.catalog_seq = generation.catalog_seq
    asked.policy.CopyFrom(policy_of(query, answer, generation))
    if (meant := understood_of(query)).ByteSize():
        asked.understood.CopyFrom(meant)
    asked.degraded = answer.trace.degraded
    asked.more = has_more(query, answer)
    asked.stages.extend(stage_times(answer.trace))
    asked.skipped_sources.extend(answer.trace.skipped_sources)
    for name, column in columns_of(answer, generation).items():
        if isinstance(column, bytes | str):
            setattr(asked, name, column)
        else:
            getattr(asked, name).extend(column.tolist() if isinstance(column, np.ndarray) else column)
    if eligible:
        row_N = answer.scored.candidates.row_N
        asked.eligible_item_key.extend(generation.items.ids.keys(row_N).tolist())
        asked.eligible_utility.extend(answer.slate.utility_N.tolist())
    return asked


def has_more(query: Query, answer: Answer) -> bool:
    """Whether there was more to show; where two arms drafted the slate, whether there may have been."""
    slate = answer.slate
    return len(slate) == query.size if len(slate.team_K) else len(answer.scored) > len(slate) > 0


def understood_of(query: Query) -> impression_pb2.Understood:
    """What was understood of a query, as an impression holds it; empty where there is nothing to tell."""
    return message(query.understood) if query.understood is not None else impression_pb2.Understood()


def policy_of(query: Query, answer: Answer, generation: Generation) -> impression_pb2.Policy:
    """The draw, as an impression holds it."""
    settings = generation.settings
    return impression_pb2.Policy(
        temperature=settings.temperature,
        epsilon=settings.epsilon,
        diversity=settings.diversity,
        seed=SlatePolicy(settings, generation.items, generation.id).seed(query),
        log_propensity=answer.slate.log_propensity,
        relaxed=answer.slate.relaxed,
        fingerprint=settings.fingerprint,
        rules=generation.rules_etag,
    )


def columns_of(answer: Answer, generation: Generation) -> dict[str, NDArray[Any] | Sequence[str] | str | bytes]:
    """What an impression holds of what was shown and of what the ranker saw of it, by field."""
    slate, scored = answer.slate, answer.scored
    index_K = slate.index_K
    rank_KS = scored.candidates.rank_NS[index_K]
    return {
        "schema": generation.table.fingerprint,
        "query_row": scored.query_row.tobytes(),
        "item_rows": taken(scored.item_row_N, index_K).tobytes(),
        "pair_rows": taken(scored.pair_row_N, index_K).tobytes(),
        "action_names": scored.action_names,
        "item_id": generation.items.ids.ids.take(scored.candidates.row_N[index_K]),
        "propensity": slate.propensity_K,
        "slot_flags": slate.flag_K,
        "utility": slate.utility_N[index_K],
        "probability": scored.probability_NA[index_K].ravel(),
        "source_names": scored.candidates.source_names,
        "source_bits": _source_bits(rank_KS),
        "source_rank": rank_KS.ravel(),
        "slot_team": slate.team_K,
    }


def respond(
    response: Response,
    request: Request,
    *,
    logged: Impression,
    query: Query,
    generation: Generation,
    row_K: NDArray[np.int64] | None = None,
) -> None:
    """Fill a response with the slate of an impression, just made or found in the log.

    Args:
        generation: the one that made it; or, for a retry after a swap, the one that is active: titles and categories
            come from there, and are empty for items that it does not hold.
        row_K: rows of the items in this generation, -1 for one that it does not hold; looked up where not given.
    """
    response.request_id = logged.request_id
    response.attribution_token = attribution_token(logged.request_id)
    response.generation = logged.generation
    response.experiment_arms.update(logged.experiment_arms)
    response.degradation.bits = logged.degraded
    response.degradation.stages.extend(logged.stages)
    response.policy.CopyFrom(logged.policy)
    if isinstance(response, recommender_pb2.SearchResponse):
        tell(response, logged)
    response.missing_ids.extend(missing_ids(logged, query, generation))
    response.next_page_token = next_page_token(logged)
    if isinstance(response, recommender_pb2.SearchResponse) and isinstance(request, recommender_pb2.SearchRequest):
        tell_found(response, request, query=query, generation=generation)
    row_K = generation.items.ids.rows_of(logged.item_id) if row_K is None else row_K
    slots = _Slots(logged, query, generation, row_K)
    if request.columns:
        _fill_columns(response.columns, request, slots)
    else:
        _fill_items(response, request, slots)


def withdraw(response: Response, items: Items) -> bool:
    """Take out of a repeated answer what the catalogue no longer shows; whether that was anything.

    What stays keeps the position and the propensity that the impression gives it.
    """
    columnar = response.HasField("columns")
    item_ids = list(response.columns.item_id) if columnar else [item.item_id for item in response.items]
    row_K = held(items, item_ids)
    shown_K = (row_K >= 0) & items.available_I[row_K]
    if columnar and not shown_K.all():
        _keep_columns(response.columns, np.flatnonzero(shown_K).tolist(), len(item_ids))
    elif not columnar:
        for k in np.flatnonzero(~shown_K)[::-1].tolist():
            del response.items[k]
    named = [reason for item in response.items for reason in item.reasons if reason.item_id]
    gone = [reason for reason, row in zip(named, held(items, [each.item_id for each in named]), strict=True) if row < 0]
    for reason in gone:
        reason.ClearField("item_id")
    return bool(gone) or not shown_K.all()


def _keep_columns(columns: recommender_pb2.Columns, kept: Sequence[int], slots: int) -> None:
    for name in _OF_SLOTS:
        column = getattr(columns, name)
        width = len(column) // slots
        column[:] = [column[k * width + n] for k in kept for n in range(width)]


def trace_of(answer: Answer, query: Query) -> recommender_pb2.Trace:
    """Counts on the way from sources to slate."""
    candidates = answer.scored.candidates
    named_S = (candidates.rank_NS >= 0).sum(axis=0)
    return recommender_pb2.Trace(
        retrieved=dict(zip(candidates.source_names, named_S.tolist(), strict=True)),
        removed={name: len(row_R) for name, row_R in answer.trace.removed.items()},
        eligible=len(candidates),
        history=len(query.history),
    )


@dataclass(frozen=True)
class _Slots:
    """What a response tells of each slot beyond the impression."""

    logged: Impression
    query: Query
    generation: Generation
    row_K: NDArray[np.int64]
    """-1 for an item that the generation does not hold."""

    @cached_property
    def reason_bits_K(self) -> NDArray[np.uint32]:
        """Bit r: reason r holds."""
        query = self.query
        stored = bool(query.user_id) and self.generation.profiles.of(query.user_id) is not None
        known = stored or len(query.history) > 0
        of_ann = bool(query.text) << _SEARCH_MATCH | known << _PERSONALISED
        of_source = {**_BITS_OF_SOURCE, "ann": of_ann}
        bits_S = np.array([of_source.get(name, 0) for name in self.logged.source_names], np.uint32)
        bits_K = _united(np.array(self.logged.source_bits, np.uint32), bits_S)
        bits_K |= _united(np.array(self.logged.slot_flags, np.uint32), _BITS_OF_FLAG)
        if self.logged.order_by:
            bits_K |= np.uint32(1 << _SEARCH_MATCH)
        if not known and not len(query.seed_row_S):
            bits_K |= np.uint32(1 << ReasonKind.REASON_COLD_START)
        return bits_K

    def titles(self) -> list[str]:
        return self.generation.items.titles.take(self.row_K)

    def categories(self) -> list[str]:
        names = ("", *self.generation.table["category"].vocabulary)
        code_K = self.generation.items.row_I["category"][self.row_K]
        return [names[code] for code in np.where(self.row_K >= 0, code_K, 0).tolist()]

    def published_ms(self) -> list[int]:
        published_ms_K: list[int] = np.where(
            self.row_K >= 0, self.generation.items.published_ms_I[self.row_K], 0
        ).tolist()
        return published_ms_K

    def attribute(self, name: str) -> list[FeatureValue | None]:
        """None where an item has none."""
        held_K = self.row_K >= 0
        value_K = np.asarray(self.generation.items.attributes[name][np.where(held_K, self.row_K, 0)])
        if value_K.dtype.kind == "u":
            texts = zip(self.generation.items.texts_of(value_K), held_K.tolist(), strict=True)
            return [FeatureValue(text=text) if text and held else None for text, held in texts]
        numbers = np.where(held_K, value_K, np.nan).tolist()
        return [None if math.isnan(number) else FeatureValue(number=number) for number in numbers]

    def similar_to(self) -> list[str]:
        """Id of the seed, or else of the recent item, that a slot with the reason SIMILAR_TO is nearest to."""
        seeds, recent = self.query.seed_row_S, self.query.history.row_L[:_ANCHORS]
        anchor_row_L = seeds if len(seeds) else recent
        anchor_row_L = anchor_row_L[~self.generation.items.gone_I[anchor_row_L]]
        similar_K = (self.reason_bits_K >> np.uint32(_SIMILAR_TO) & np.uint32(1)) > 0
        id_K = [""] * len(self.row_K)
        at_K = np.flatnonzero(similar_K & (self.row_K >= 0))
        if len(anchor_row_L) and len(at_K):
            items = self.generation.items
            similarity_KL = items.embedding_ID[self.row_K[at_K]] @ items.embedding_ID[anchor_row_L].T
            id_L = items.ids.ids.take(anchor_row_L)
            for k, nearest in zip(at_K.tolist(), similarity_KL.argmax(axis=1).tolist(), strict=True):
                id_K[k] = id_L[nearest]
        return id_K


def _fill_items(response: Response, request: Request, slots: _Slots) -> None:
    logged = slots.logged
    shown = tuple(request.return_fields) or _SHOWN_BY_DEFAULT
    nothing = [""] * len(logged.item_id)
    title_K = slots.titles() if "title" in shown else nothing
    category_K = slots.categories() if "category" in shown else nothing
    published_ms_K = slots.published_ms() if "published_ms" in shown else [0] * len(nothing)
    attributes = {name: slots.attribute(name) for name in shown if name not in OWN_FIELDS}
    like: dict[tuple[int, int, str], Item] = {}  # few combinations occur, and copying is cheaper than building
    prefix = 1.0
    actions = len(logged.action_names)
    causes = zip(logged.source_bits, slots.reason_bits_K.tolist(), slots.similar_to(), strict=True)
    for k, (item_id, propensity, cause) in enumerate(zip(logged.item_id, logged.propensity, causes, strict=True)):
        if cause not in like:
            source_bits, reason_bits, similar_to = cause
            names = [name for s, name in enumerate(logged.source_names) if source_bits >> s & 1]
            like[cause] = Item(sources=names, reasons=_reasons(reason_bits, similar_to))
        prefix *= propensity
        item = response.items.add()
        item.CopyFrom(like[cause])
        item.item_id = item_id
        item.position = k
        item.propensity = propensity
        item.prefix_propensity = prefix
        item.title = title_K[k]
        item.category = category_K[k]
        item.published_ms = published_ms_K[k]
        for name, value_K in attributes.items():
            if (value := value_K[k]) is not None:
                item.fields[name].CopyFrom(value)
        if request.include_scores:
            item.score = logged.utility[k]
            probability_A = logged.probability[k * actions : (k + 1) * actions]
            item.actions.update(zip(logged.action_names, probability_A, strict=True))


def _reasons(bits: int, similar_to: str) -> list[Reason]:
    return [
        Reason(kind="REASON_SIMILAR_TO", item_id=similar_to) if kind == _SIMILAR_TO else reason
        for kind, reason in _REASONS
        if bits >> kind & 1
    ]


def _fill_columns(columns: recommender_pb2.Columns, request: Request, slots: _Slots) -> None:
    logged = slots.logged
    columns.item_id.extend(logged.item_id)
    columns.propensity.extend(logged.propensity)
    columns.source_names.extend(logged.source_names)
    columns.source_bits.extend(logged.source_bits)
    columns.reason_bits.extend(slots.reason_bits_K.tolist())
    if request.include_scores:
        columns.score.extend(logged.utility)
        columns.action_names.extend(logged.action_names)
        columns.probability.extend(logged.probability)
    if "title" in request.return_fields:
        columns.title.extend(slots.titles())
    if "category" in request.return_fields:
        columns.category.extend(slots.categories())
    if "published_ms" in request.return_fields:
        columns.published_ms.extend(slots.published_ms())


def _united(given_K: NDArray[np.uint32], bits_B: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """The bits that stand for each bit given, together."""
    is_given_KB = given_K[:, None] >> np.arange(len(bits_B), dtype=np.uint32) & np.uint32(1)
    return np.asarray(np.bitwise_or.reduce(is_given_KB * bits_B, axis=1, initial=np.uint32(0)), np.uint32)


def _source_bits(rank_KS: NDArray[np.int16]) -> NDArray[np.uint32]:
    weight_S = np.uint32(1) << np.arange(rank_KS.shape[1], dtype=np.uint32)
    return np.asarray(((rank_KS >= 0) * weight_S).sum(axis=1), np.uint32)
