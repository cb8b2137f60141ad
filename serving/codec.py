"""From the wire to the core: requests and events are checked; `serving.answers` goes the other way.

A request becomes the asking half of an `Impression`, and a `Query` is only ever made from that. What serving runs is
therefore what replay runs: `query_of` on the logged impression gives the logged query.

Shape letters: N candidates, S seeds, X excluded or shown items, L history.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise

import numpy as np
from google.protobuf.message import Message
from numpy.typing import NDArray

from candidate_gen.features import Feature
from candidate_gen.items import Items
from candidate_gen.matches import numbers_of, order_of
from candidate_gen.predicates import FilterError
from candidate_gen.predicates import parse as parse_filter
from candidate_gen.types import NO_ROWS, Query
from index.masks import Mask
from index.strings import keys64
from index.types import Hits
from protos import recommender_pb2
from protos.impression_pb2 import (
    FeatureValue,
    FilterMode,
    HybridMode,
    Impression,
    Kind,
    Page,
    QueryOptions,
    QueryStep,
)
from protos.recommender_pb2 import DebugLevel, Priority
from serving.changes import held
from serving.generation import Generation
from serving.paging import QUESTION, page_of, question_of
from serving.records import STEPS
from serving.retrieval import mixed
from serving.understanding import both, decided, understood

Request = recommender_pb2.RecommendRequest | recommender_pb2.SearchRequest | recommender_pb2.RankRequest

MAX_ID_CHARS = 256
MAX_NAME_CHARS = 64
MAX_TEXT_CHARS = 512
MAX_PAGE = 500
MAX_ITEM_IDS = 1000
MAX_RECENT = 100
MAX_FEATURES = 100
MAX_LABELS = 32
MAX_BOOSTS = 16
MAX_STRENGTH = 1000.0
MAX_RETURN_FIELDS = 32
MAX_FACETS = 16
MAX_FACET_VALUES = 1000
MAX_BOUNDS = 100
MAX_LOST = 100
MAX_WHAT_IFS = 4
MAX_TOKEN_CHARS = 1 << 14
MAX_VALUE = 1e12
MAX_TIME_MS = 4_102_444_800_000
"""The year 2100: later times are seconds or microseconds by mistake."""
FUTURE_MS = 300_000
"""How far a caller's clock may run ahead of the server's."""

_MAX_FEATURE = float(np.finfo(np.float32).max)
_DEFAULT_PAGE = 20
OWN_FIELDS = ("title", "category", "published_ms")
"""What `return_fields` may name beside attributes."""
_BURIED = -1e6
"""Far below any boost: what is filled up with comes after everything else that is drawn by utility."""
UNSIGNED = "u1."

_UNSUPPORTED: Mapping[str, str] = {
    "policy": "the generation's own policy applies",
}
_QUESTION = (*QUESTION, "size", "page")
"""What two impressions of one request id must agree on."""


class InvalidRequest(ValueError):
    """A field that is out of bounds; the message names it, its value and what is allowed."""

    def __init__(self, field: str, value: object, allowed: str) -> None:
        shown = repr(value)
        super().__init__(f"{field}: {shown if len(shown) <= 80 else shown[:77] + '...'} given, allowed: {allowed}")


class InvalidFilter(InvalidRequest):
    """A condition that cannot be read, or that these items cannot be judged by; the parser says why."""

    def __init__(self, field: str, why: FilterError) -> None:
        ValueError.__init__(self, f"{field}: {why}")


class Unsupported(ValueError):
    """A field or method that this server does not support yet; the message says what to use meanwhile."""


def asked(request: Request, *, server_time_ms: int | None, new_request_id: Callable[[int], str]) -> Impression:
    """The asking half of an impression; its history holds what the caller knew, the stored one goes in later.

    Args:
        server_time_ms: None trusts the caller's clock.
        new_request_id: makes one from the time, for a request without.

    Raises:
        InvalidRequest, Unsupported: naming the field.
    """
    for field, _ in request.ListFields():
        if field.name in _UNSUPPORTED:
            raise Unsupported(f"{field.name} is not supported yet; {_UNSUPPORTED[field.name]}")
    context = request.context
    time_ms = checked_time_ms(context, server_time_ms=server_time_ms)
    _check_options(request)
    made = Impression(
        request_id=request.request_id or new_request_id(time_ms),
        time_ms=time_ms,
        tenant=context.tenant,
        surface=context.surface or "home",
        user_id=context.user_id,
        visitor_id=context.visitor_id,
        session_id=context.session_id,
        exclude_item_ids=dict.fromkeys(request.exclude_item_ids),
        filter=request.filter.strip(),
        filter_mode=request.filter_mode,
        boosts=request.boosts,
        features=context.features,
        labels=request.labels,
    )
    if isinstance(request, recommender_pb2.RecommendRequest):
        made.kind = Kind.KIND_RECOMMEND
        _ids("seed_item_ids", request.seed_item_ids, MAX_RECENT)
        made.seed_item_ids.extend(dict.fromkeys(request.seed_item_ids))
        made.size = _page(request, default=_DEFAULT_PAGE, most=MAX_PAGE)
    elif isinstance(request, recommender_pb2.SearchRequest):
        made.kind = Kind.KIND_SEARCH
        made.surface = context.surface or "search"
        if not request.query.strip():
            raise InvalidRequest("query", request.query, f"1 to {MAX_TEXT_CHARS} characters, not only blanks")
        check_string("query", request.query, MAX_TEXT_CHARS)
        made.text = request.query
        _check_query_options(request.query_options)
        made.query_options.CopyFrom(decided(request.query_options))
        made.size = _page(request, default=_DEFAULT_PAGE, most=MAX_PAGE)
        _check_search(request)
        made.order_by = request.order_by.strip()
        if request.HasField("hybrid"):
            made.hybrid.CopyFrom(request.hybrid)
    else:
        made.kind = Kind.KIND_RANK
        check_string("query", request.query, MAX_TEXT_CHARS)
        made.text = request.query
        if not request.item_ids:
            raise InvalidRequest("item_ids", [], f"1 to {MAX_ITEM_IDS} item ids")
        _ids("item_ids", request.item_ids, MAX_ITEM_IDS)
        made.rank_item_ids.extend(dict.fromkeys(request.item_ids))
        repeated = len(request.item_ids) - len(made.rank_item_ids)
        if repeated:
            raise InvalidRequest("item_ids", f"{repeated} repeated ids", "each id once")
        made.size = _page(request, default=len(request.item_ids), most=MAX_ITEM_IDS)

    if request.page_token:
        made.page.CopyFrom(_turned_to(request.page_token, made))
    recent = keys64(dict.fromkeys(context.recent_item_ids))
    made.history_item_key.extend(recent.tolist())
    made.history_action_key.extend([0] * len(recent))
    made.history_time_ms.extend([time_ms] * len(recent))
    return made


def remember(
    asked: Impression,
    key_L: NDArray[np.uint64],
    action_key_L: NDArray[np.uint32],
    time_ms_L: NDArray[np.int64],
) -> None:
    """Put the stored history, newest first, behind what the caller sent; items that the caller sent stay there."""
    if asked.history_item_key:
        new_L = ~np.isin(key_L, np.array(asked.history_item_key, np.uint64))
        key_L, action_key_L, time_ms_L = key_L[new_L], action_key_L[new_L], time_ms_L[new_L]
    asked.history_item_key.extend(key_L.tolist())
    asked.history_action_key.extend(action_key_L.tolist())
    asked.history_time_ms.extend(time_ms_L.tolist())


def copied(asked: Impression) -> Impression:
    """What was asked, for another answer to be filled in."""
    copy = Impression()
    copy.CopyFrom(asked)
    return copy


def check_against(asked: Impression, generation: Generation) -> None:
    """What only the generation can tell of a request: the features that the caller sent, conditions, the order.

    Raises:
        InvalidRequest: for a feature that is no stored user column, or whose value has the wrong type; for a filter or
            a condition that names what is no attribute, or compares it with what it is not; for an order by what is no
            number.
    """
    check_columns("context.features", asked.features, generation.table.profile)
    name = "filter"
    try:
        generation.attributes.allowed(asked.filter)
        for n, boost in enumerate(asked.boosts):
            name = f"boosts[{n}].condition"
            generation.attributes.mask(parse_filter(boost.condition))
    except FilterError as error:
        raise InvalidFilter(name, error) from None
    if asked.order_by:
        try:
            numbers_of(generation.items, order_of(asked.order_by).attribute, NO_ROWS)
        except ValueError as error:
            raise InvalidRequest("order_by", asked.order_by, str(error)) from None


def check_columns(
    field: str, values: Mapping[str, FeatureValue], columns: Iterable[Feature], *, texts: Sequence[str] = ()
) -> None:
    """
    Args:
        texts: further columns, of texts.

    Raises:
        InvalidRequest: for a name that is none of the columns, or a value of the wrong type.
    """
    kinds = {column.name: str(column.kind) for column in columns} | dict.fromkeys(texts, "text")
    for name, value in values.items():
        if name not in kinds:
            raise InvalidRequest(field, name, ", ".join(sorted(kinds)) or "none in this generation")
        wanted = "number" if kinds[name] == "number" else "text"
        if value.WhichOneof("kind") != wanted:
            raise InvalidRequest(f"{field}[{name!r}]", _plain(value), f"a {wanted}")


def query_of(asked: Impression, generation: Generation) -> Query:
    """The query of an impression, in a generation's rows. Serving and replay both make it here.

    Items that the generation does not hold are left out.
    """
    items, attributes, meant = generation.items, generation.attributes, understood(asked, generation)
    boosts = tuple((attributes.mask(parse_filter(each.condition)), each.strength) for each in asked.boosts)
    relaxed = asked.filter_mode == FilterMode.FILTER_MODE_RELAX and bool(asked.filter)
    if relaxed and (allowed := attributes.allowed(asked.filter)) is not None:
        boosts = (*boosts, (Mask(~allowed.allowed_I), _BURIED))
    return Query(
        # All pages draw as the first, and a shadow as what it stands beside.
        request_id=asked.page.first or asked.shadow_of or asked.request_id,
        time_ms=asked.time_ms,
        surface=asked.surface,
        size=asked.size,
        user_id=asked.user_id,
        text=meant.text,
        understood=meant,
        history=generation.history(
            np.fromiter(asked.history_item_key, np.uint64),
            np.fromiter(asked.history_action_key, np.uint32),
            np.fromiter(asked.history_time_ms, np.int64),
        ),
        features={name: _plain(value) for name, value in asked.features.items()},
        seed_row_S=_known_rows(items, asked.seed_item_ids),
        exclude_row_X=_known_rows(items, asked.exclude_item_ids),
        shown_row_X=_rows_of_keys(items, asked.shown_item_key),
        fill=relaxed,
        boosts=boosts,
        mix=_mix(asked),
        order=order_of(asked.order_by) if asked.order_by else None,
        page=asked.page.number,
        before_row_X=_rows_of_keys(items, asked.page.shown_item_key),
        only_row_N=_known_rows(items, asked.rank_item_ids) if asked.kind == Kind.KIND_RANK else None,
        filter=both(asked.filter, meant.filter) if meant.is_filtered else asked.filter,
        live=live_hits(asked, generation),
    )


def _mix(asked: Impression) -> dict[str, float]:
    """The sources of a search as the caller wants them; empty where it leaves that to the generation."""
    if asked.hybrid.mode == HybridMode.HYBRID_MODE_LEXICAL:
        return mixed(1.0)
    if asked.hybrid.mode == HybridMode.HYBRID_MODE_DENSE:
        return mixed(0.0)
    return mixed(asked.hybrid.lexical_weight) if asked.hybrid.HasField("lexical_weight") else {}


def _turned_to(token: str, asked: Impression) -> Page:
    """
    Raises:
        InvalidRequest: for what is not the token of an answer to the same request.
    """
    page = page_of(token) if len(token) <= MAX_TOKEN_CHARS else None
    if page is None:
        raise InvalidRequest("page_token", token, "the next_page_token of an answer, unchanged")
    if page.question != question_of(asked):
        raise InvalidRequest("page_token", token, "the token of the same request, apart from request_id and page_size")
    return page


def tell(asked: Impression, named: Mapping[str, Hits], generation: Generation) -> None:
    """Note what the live sources said."""
    for source, hits in named.items():
        if len(hits):
            keys = generation.items.ids.keys(hits.row_K)
            asked.live_hits.add(source=source, item_key=keys.tolist(), score=hits.score_K.tolist())


def live_hits(asked: Impression, generation: Generation) -> dict[str, Hits]:
    """What the live sources said, as it was noted, in a generation's rows."""
    found = {}
    for each in asked.live_hits:
        row_K = generation.items.ids.rows(np.fromiter(each.item_key, np.uint64))
        held_K = (row_K >= 0) & ~generation.items.gone_I[row_K]
        found[each.source] = Hits(row_K[held_K], np.fromiter(each.score, np.float32)[held_K])
    return found


def missing_ids(asked: Impression, query: Query, generation: Generation) -> list[str]:
    """Seed items and items to rank that the generation does not hold, in the order of the request."""
    named = [*asked.seed_item_ids, *asked.rank_item_ids]
    found = len(query.seed_row_S) + (0 if query.only_row_N is None else len(query.only_row_N))
    if found == len(named):
        return []
    return [each for each, row in zip(named, held(generation.items, named), strict=True) if row < 0]


def same_question(asked: Impression, logged: Impression) -> bool:
    """Whether an impression in the log answers what is asked: then it is the answer, else the id was used twice."""
    return all(getattr(asked, name) == getattr(logged, name) for name in _QUESTION)


def explained(request: recommender_pb2.ExplainRequest) -> Request | None:
    """What is to be asked now and explained; None for a logged request.

    Raises:
        InvalidRequest: naming the field.
    """
    asked: dict[str, Request] = {
        name: getattr(request, name) for name in ("recommend", "search") if request.HasField(name)
    }
    if bool(request.request_id) + len(asked) != 1:
        given = [*(["request_id"] if request.request_id else []), *asked]
        raise InvalidRequest("request_id", ", ".join(given), "one of request_id, recommend and search")
    check_string("request_id", request.request_id, MAX_ID_CHARS)
    for name, each in asked.items():
        if each.page_token:
            raise InvalidRequest(f"{name}.page_token", each.page_token, "none, for first pages are explained")
    _ids("item_ids", request.item_ids, MAX_ITEM_IDS)
    check_whole("lost", request.lost, 0, MAX_LOST)
    if len(request.what_ifs) > MAX_WHAT_IFS:
        raise InvalidRequest("what_ifs", f"{len(request.what_ifs)} of them", f"at most {MAX_WHAT_IFS}")
    for n, what_if in enumerate(request.what_ifs):
        check_string(f"what_ifs[{n}].generation", what_if.generation, MAX_ID_CHARS)
    return next(iter(asked.values()), None)


def check_remembered(asked: Impression, made_ms: int, generation: Generation) -> None:
    """
    Args:
        made_ms: when the request was answered.

    Raises:
        InvalidRequest: for an answer that was given to somebody who was forgotten since.
    """
    forgotten_ms = generation.profiles.forgotten_ms(asked.user_id)
    if made_ms <= forgotten_ms:
        raise InvalidRequest("request_id", asked.request_id, "an id from after the user was forgotten")


def attribution_token(request_id: str) -> str:
    """What a response gives and an outcome brings back. Opaque to callers, so that it can be signed one day."""
    return UNSIGNED + request_id


def request_id_of(token: str) -> str:
    """
    Raises:
        InvalidRequest: for anything that `attribution_token` did not make.
    """
    if not token.startswith(UNSIGNED) or len(token) == len(UNSIGNED):
        raise InvalidRequest("attribution_token", token, "the token of a response, unchanged")
    return token.removeprefix(UNSIGNED)


def parse(message: Message, wire: bytes) -> None:
    """
    Raises:
        InvalidRequest: where the bytes are no such message.
    """
    try:
        message.ParseFromString(wire)
    except Exception as error:  # protobuf raises DecodeError, and RuntimeError or ValueError from its C part
        raise InvalidRequest("the request", f"{len(wire)} bytes", f"a {message.DESCRIPTOR.full_name}") from error


def checked_time_ms(context: recommender_pb2.Context, *, server_time_ms: int | None) -> int:
    """As of when a request is answered.

    Args:
        server_time_ms: None trusts the caller's clock.

    Raises:
        InvalidRequest: naming the field of the context.
    """
    trusted = server_time_ms is None
    for name in ("tenant", "surface"):
        check_string(f"context.{name}", getattr(context, name), MAX_NAME_CHARS)
    for name in ("user_id", "visitor_id", "session_id"):
        check_string(f"context.{name}", getattr(context, name), MAX_ID_CHARS)
    _ids("context.recent_item_ids", context.recent_item_ids, MAX_RECENT)
    check_values("context.features", context.features)
    check_whole("context.client_time_ms", context.client_time_ms, 1 if trusted else 0, MAX_TIME_MS)
    if context.priority not in Priority.values():
        raise InvalidRequest("context.priority", context.priority, "SHEDDABLE, DEFAULT or CRITICAL")
    return int(context.client_time_ms if server_time_ms is None else server_time_ms)


def _check_options(request: Request) -> None:
    check_string("request_id", request.request_id, MAX_ID_CHARS)
    _ids("exclude_item_ids", request.exclude_item_ids, MAX_ITEM_IDS)
    if request.filter_mode not in FilterMode.values():
        raise InvalidRequest("filter_mode", request.filter_mode, "STRICT, RELAX")
    if len(request.boosts) > MAX_BOOSTS:
        raise InvalidRequest("boosts", f"{len(request.boosts)} boosts", f"at most {MAX_BOOSTS}")
    for n, boost in enumerate(request.boosts):
        if not boost.condition.strip():
            raise InvalidRequest(f"boosts[{n}].condition", boost.condition, 'a condition, such as category = "News"')
        if not abs(boost.strength) <= MAX_STRENGTH:
            raise InvalidRequest(f"boosts[{n}].strength", boost.strength, f"-{MAX_STRENGTH:g} to {MAX_STRENGTH:g}")
    _labels(request.labels)
    if len(request.return_fields) > MAX_RETURN_FIELDS:
        raise InvalidRequest("return_fields", f"{len(request.return_fields)} names", f"at most {MAX_RETURN_FIELDS}")
    if request.debug == DebugLevel.DEBUG_LEVEL_FULL:
        raise Unsupported("debug FULL is not supported yet; SUMMARY fills the trace")
    if request.debug not in DebugLevel.values():
        raise InvalidRequest("debug", request.debug, "NONE, SUMMARY")


def _check_search(request: recommender_pb2.SearchRequest) -> None:
    check_string("order_by", request.order_by, MAX_ID_CHARS)
    if request.order_by.strip():
        try:
            order_of(request.order_by)
        except ValueError as error:
            raise InvalidRequest("order_by", request.order_by, str(error)) from None
    if request.hybrid.mode not in HybridMode.values():
        raise InvalidRequest("hybrid.mode", request.hybrid.mode, "BOTH, LEXICAL, DENSE")
    if not 0 <= request.hybrid.lexical_weight <= 1:
        raise InvalidRequest("hybrid.lexical_weight", request.hybrid.lexical_weight, "0 to 1")
    if len(request.facets) > MAX_FACETS:
        raise InvalidRequest("facets", f"{len(request.facets)} facets", f"at most {MAX_FACETS}")
    for n, facet in enumerate(request.facets):
        check_whole(f"facets[{n}].limit", facet.limit, 0, MAX_FACET_VALUES)
        bounds = list(facet.bounds)
        if len(bounds) > MAX_BOUNDS or any(not low < high for low, high in pairwise([-math.inf, *bounds, math.inf])):
            raise InvalidRequest(f"facets[{n}].bounds", bounds, f"at most {MAX_BOUNDS} numbers, ascending")


def _check_query_options(options: QueryOptions) -> None:
    for name in STEPS:
        if getattr(options, name) not in QueryStep.values():
            raise InvalidRequest(f"query_options.{name}", getattr(options, name), "OFF, AUTO, SUGGEST")
    if options.language:
        raise InvalidRequest("query_options.language", options.language, "none, for the catalogue has one")


def _page(request: Request, *, default: int, most: int) -> int:
    size = request.page_size if request.HasField("page_size") else default
    check_whole("page_size", size, 1, most)
    return size


def _known_rows(items: Items, item_ids: Sequence[str]) -> NDArray[np.int64]:
    if not item_ids:
        return NO_ROWS
    row_N = held(items, item_ids)
    return row_N[row_N >= 0]


def _rows_of_keys(items: Items, item_keys: Sequence[int]) -> NDArray[np.int64]:
    if not item_keys:
        return NO_ROWS
    row_X = items.ids.rows(np.fromiter(item_keys, np.uint64))
    return row_X[row_X >= 0]


def _plain(value: FeatureValue) -> str | float:
    return value.text if value.WhichOneof("kind") == "text" else value.number


def check_whole(field: str, value: int, low: int, high: int) -> None:
    """
    Raises:
        InvalidRequest: for a value that is not between the two.
    """
    if not low <= value <= high:
        raise InvalidRequest(field, value, f"{low} to {high}")


def check_string(field: str, value: str, most: int) -> None:
    """
    Raises:
        InvalidRequest: for a text of more characters.
    """
    if len(value) > most:
        raise InvalidRequest(field, f"{len(value)} characters", f"at most {most}")


def _ids(field: str, ids: Iterable[str], most: int) -> None:
    listed = list(ids)
    if len(listed) > most:
        raise InvalidRequest(field, f"{len(listed)} ids", f"at most {most}")
    for each in listed:
        if not 1 <= len(each) <= MAX_ID_CHARS:
            raise InvalidRequest(field, f"an id of {len(each)} characters", f"1 to {MAX_ID_CHARS}")


def check_values(field: str, values: Mapping[str, FeatureValue]) -> None:
    """
    Raises:
        InvalidRequest: for too many, for a name or text that is too long, for a number that no feature can hold.
    """
    if len(values) > MAX_FEATURES:
        raise InvalidRequest(field, f"{len(values)} values", f"at most {MAX_FEATURES}")
    for name, value in values.items():
        check_string(field, name, MAX_NAME_CHARS)
        named = f"{field}[{name!r}]"
        kind = value.WhichOneof("kind")
        if kind is None:
            raise InvalidRequest(named, None, "a text or a number")
        if kind == "number" and not abs(value.number) <= _MAX_FEATURE:
            raise InvalidRequest(named, value.number, f"-{_MAX_FEATURE:g} to {_MAX_FEATURE:g}")
        check_string(named, value.text, MAX_TEXT_CHARS)


def _labels(labels: Mapping[str, str]) -> None:
    if len(labels) > MAX_LABELS:
        raise InvalidRequest("labels", f"{len(labels)} labels", f"at most {MAX_LABELS}")
    for name, value in labels.items():
        check_string("labels", name, MAX_NAME_CHARS)
        check_string(f"labels[{name!r}]", value, MAX_ID_CHARS)
