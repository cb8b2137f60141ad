"""Every field of every request has a bound: what is within is taken, what is beyond is refused by name."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message
from serving_cases import NOW_MS, TABLE, generation, publish
from test_server import WIRE, process

from candidate_gen.features import FeatureTable, feature_table
from candidate_gen.predicates import MAX_CHARACTERS
from index.generations import GenerationStore
from protos import admin_pb2, catalog_pb2, events_pb2, recommender_pb2
from protos.impression_pb2 import Boost, Outcome
from protos.recommender_pb2 import FacetRequest, WhatIf
from serving import admin, catalog, codec, events, suggest
from serving.rules import MAX_CHARS, MAX_NAMES, MAX_RULE_ITEMS, MAX_RULES, rule_book

GENERATION = generation()
COLUMNS: Mapping[str, tuple[str, ...] | None] = {"price": None, "brand": ("a", "b")}


def declaring(**columns: Mapping[str, tuple[str, ...] | None]) -> FeatureTable:
    return feature_table(
        users=10,
        items=60,
        actions=("click",),
        categories=("music",),
        sources=("ann",),
        user_columns=columns.get("users", {}),
        item_columns=columns.get("items", {}),
        history_length=8,
        title_length=4,
    )


PRICED, PROFILED = declaring(items=COLUMNS), declaring(users=COLUMNS)
SLATES = (recommender_pb2.RecommendRequest, recommender_pb2.SearchRequest, recommender_pb2.RankRequest)
ELSEWHERE = {"SetTrafficRequest"}
"""Bounded in test_experiments.py."""


@dataclass(frozen=True, slots=True)
class Text:
    """Of at most so many characters."""

    most: int


@dataclass(frozen=True, slots=True)
class Number:
    """Between the two; never NaN."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Several:
    """At most so many, each made from its position; and what one may not be."""

    most: int
    each: Callable[[int], Any]
    never: tuple[Any, ...] = ()


ANY = "any"
"""A switch, or bounded by its type, or ignored."""
UNSUPPORTED = "unsupported"
ENUM = "enum"
ID, NAME, TEXT = Text(codec.MAX_ID_CHARS), Text(codec.MAX_NAME_CHARS), Text(codec.MAX_TEXT_CHARS)
TIME = Number(1, codec.MAX_TIME_MS)
VALUE = Number(-codec.MAX_VALUE, codec.MAX_VALUE)
LONG_ID = "x" * (codec.MAX_ID_CHARS + 1)


def ids(most: int) -> Several:
    return Several(most, lambda n: f"i{n}", ("", LONG_ID))


CONTEXT = {
    "tenant": NAME,
    "surface": NAME,
    "user_id": ID,
    "visitor_id": ID,
    "session_id": ID,
    "recent_item_ids": ids(codec.MAX_RECENT),
    "features": "values",
    "client_time_ms": TIME,
    "priority": ENUM,
}
SLATE: Mapping[str, Any] = {
    "context": CONTEXT,
    "request_id": ID,
    "page_size": Number(1, codec.MAX_PAGE),
    "page_token": Text(codec.MAX_TOKEN_CHARS),
    "filter": Text(MAX_CHARACTERS),
    "filter_mode": ENUM,
    "policy": UNSUPPORTED,
    "boosts": Several(codec.MAX_BOOSTS, lambda _: Boost(condition="published_ms > 3"), (Boost(),)),
    "exclude_item_ids": ids(codec.MAX_ITEM_IDS),
    "return_fields": Several(codec.MAX_RETURN_FIELDS, lambda n: ("title", "category", "published_ms")[n % 3]),
    "include_scores": ANY,
    "columns": ANY,
    "debug": ENUM,
    "validate_only": ANY,
    "no_log": ANY,
    "labels": "labels",
}
QUERY_OPTIONS = {
    **dict.fromkeys(("spelling", "synonyms", "expansion", "filters", "intent"), ENUM),
    "pin_unexpanded": ANY,
    "language": Text(0),
}
OUTCOME = {
    "event_id": ID,
    "request_id": ID,
    "item_id": ID,
    "user_id": ID,
    "session_id": ID,
    "action": NAME,
    "value": VALUE,
    "time_ms": Number(1, NOW_MS + codec.FUTURE_MS),
    "visible_ms": ANY,
    "position": Number(-1, codec.MAX_ITEM_IDS - 1),
    "attribution_token": Text(codec.MAX_ID_CHARS + 3),
    "tenant": NAME,
    "visitor_id": ID,
}
ITEM = {
    "item_id": ID,
    "title": TEXT,
    "category": ID,
    "creator": ID,
    "published_ms": Number(0, codec.MAX_TIME_MS),
    "attributes": "values",
    "price": VALUE,
    "available": ANY,
    "description": Text(catalog.MAX_DESCRIPTION_CHARS),
}
NATURAL = Number(0, 2**31 - 1)
SINCE = Number(0, 2**63 - 1)
RULE = {
    "id": Text(MAX_CHARS),
    "kind": ENUM,
    "surfaces": Several(MAX_NAMES, lambda n: f"s{n}", ("", "x" * (MAX_CHARS + 1))),
    "queries": Several(MAX_NAMES, lambda n: f"q{n}", ("", "x" * (MAX_CHARS + 1))),
    "item_ids": Several(MAX_RULE_ITEMS, lambda n: f"i{n}", ("", "x" * (MAX_CHARS + 1))),
    "condition": ANY,
    "position": NATURAL,
    "strength": Number(5e-324, 1.7e308),
    "at_least": NATURAL,
    "at_most": NATURAL,
    "from_ms": SINCE,
    "until_ms": SINCE,
    "redirect_uri": UNSUPPORTED,
}
GENERATION_ID = Text(codec.MAX_ID_CHARS)


def slate(message: Any) -> None:
    codec.check_against(codec.asked(message, server_time_ms=None, new_request_id=str), GENERATION)


def suggested(message: Any) -> None:
    suggest.suggest(message, GENERATION, time_ms=suggest.check(message, server_time_ms=None))


def explained(message: Any) -> None:
    codec.explained(message)


def forgotten(message: Any) -> None:
    catalog.check_user_id(message.user_id)
    codec.check_string("reference", message.reference, codec.MAX_ID_CHARS)


def happened(message: Any) -> None:
    events.kept(message, server_time_ms=NOW_MS)


def counted(most: int, entries: Callable[[Any], Any]) -> Callable[[Any], None]:
    def check(message: Any) -> None:
        codec.check_whole("the number", len(entries(message)), 1, most)

    return check


def named(message: Any) -> None:
    for field, _ in message.ListFields():
        if field.name != "reason":
            admin._check_id(field.name, getattr(message, field.name))


def activated(message: Any) -> None:
    named(message)
    admin.check_reason(message)


def ruled(message: Any) -> None:
    rule_book(admin_pb2.PutRulesRequest(rules=[message]), "1")


def put_rules(message: Any) -> None:
    codec.check_string("etag", message.etag, codec.MAX_ID_CHARS)
    rule_book(message, "1")


def context(**more: Any) -> dict[str, Any]:
    return {"context": recommender_pb2.Context(client_time_ms=NOW_MS), **more}


TABLES: Mapping[type[Message], tuple[Message, Callable[[Any], None], Mapping[str, Any]]] = {
    recommender_pb2.RecommendRequest: (
        recommender_pb2.RecommendRequest(**context()),
        slate,
        {**SLATE, "seed_item_ids": ids(codec.MAX_RECENT)},
    ),
    recommender_pb2.SearchRequest: (
        recommender_pb2.SearchRequest(**context(query="q")),
        slate,
        {
            **SLATE,
            "query": TEXT,
            "facets": Several(codec.MAX_FACETS, lambda _: FacetRequest(field="category"), (FacetRequest(limit=-1),)),
            "query_options": QUERY_OPTIONS,
            "hybrid": {"mode": ENUM, "lexical_weight": Number(0, 1)},
            "order_by": Text(codec.MAX_ID_CHARS),
        },
    ),
    recommender_pb2.SuggestRequest: (
        recommender_pb2.SuggestRequest(**context(prefix="q")),
        suggested,
        {"context": CONTEXT, "prefix": TEXT, "page_size": Number(1, suggest.MAX_SUGGESTIONS)},
    ),
    recommender_pb2.RankRequest: (
        recommender_pb2.RankRequest(**context(item_ids=["i1"])),
        slate,
        {**SLATE, "page_size": Number(1, codec.MAX_ITEM_IDS), "query": TEXT, "item_ids": ids(codec.MAX_ITEM_IDS)},
    ),
    recommender_pb2.ExplainRequest: (
        recommender_pb2.ExplainRequest(request_id="r"),
        explained,
        {
            "request_id": ID,
            "item_ids": ids(codec.MAX_ITEM_IDS),
            "features": ANY,
            **dict.fromkeys(("recommend", "search"), ANY),  # a request of its own, with a table of its own
            "what_ifs": Several(codec.MAX_WHAT_IFS, lambda _: WhatIf(), (WhatIf(generation=LONG_ID),)),
            "lost": Number(0, codec.MAX_LOST),
        },
    ),
    Outcome: (Outcome(event_id="e", item_id="i", action="click", time_ms=NOW_MS), happened, OUTCOME),
    catalog_pb2.CatalogItem: (
        catalog_pb2.CatalogItem(item_id="i"),
        lambda message: catalog.check_item(message, PRICED),
        ITEM,
    ),
    catalog_pb2.ItemPatch: (
        catalog_pb2.ItemPatch(item_id="i", available=True),
        lambda message: catalog.check_patch(message, PRICED),
        {name: ITEM[name] for name in ("item_id", "available", "price", "attributes")},
    ),
    admin_pb2.Rule: (
        admin_pb2.Rule(id="r", kind=admin_pb2.RULE_BOOST, strength=1.0, item_ids=["i1"]),
        ruled,
        RULE,
    ),
    events_pb2.WriteEventsRequest: (
        events_pb2.WriteEventsRequest(),
        events.check_events,
        {"events": Several(events.MAX_EVENTS, lambda _: Outcome())},
    ),
    catalog_pb2.UpsertItemsRequest: (
        catalog_pb2.UpsertItemsRequest(),
        counted(catalog.MAX_ENTRIES, lambda message: message.items),
        {"items": Several(catalog.MAX_ENTRIES, lambda _: catalog_pb2.CatalogItem())},
    ),
    catalog_pb2.DeleteItemsRequest: (
        catalog_pb2.DeleteItemsRequest(),
        counted(catalog.MAX_ENTRIES, lambda message: message.item_ids),
        {"item_ids": Several(catalog.MAX_ENTRIES, str)},
    ),
    catalog_pb2.PatchItemsRequest: (
        catalog_pb2.PatchItemsRequest(),
        counted(catalog.MAX_ENTRIES, lambda message: message.patches),
        {"patches": Several(catalog.MAX_ENTRIES, lambda _: catalog_pb2.ItemPatch())},
    ),
    catalog_pb2.CatalogUser: (
        catalog_pb2.CatalogUser(user_id="u"),
        lambda message: catalog.check_user(message, PROFILED),
        {"user_id": ID, "attributes": "values"},
    ),
    catalog_pb2.UpsertUsersRequest: (
        catalog_pb2.UpsertUsersRequest(),
        counted(catalog.MAX_ENTRIES, lambda message: message.users),
        {"users": Several(catalog.MAX_ENTRIES, lambda _: catalog_pb2.CatalogUser())},
    ),
    catalog_pb2.ForgetUserRequest: (
        catalog_pb2.ForgetUserRequest(user_id="u"),
        forgotten,
        {"user_id": ID, "reference": ID},
    ),
    admin_pb2.PrepareRequest: (admin_pb2.PrepareRequest(generation="1"), named, {"generation": GENERATION_ID}),
    admin_pb2.ActivateRequest: (
        admin_pb2.ActivateRequest(generation="1"),
        activated,
        {"generation": GENERATION_ID, "expected": GENERATION_ID, "reason": TEXT},
    ),
    admin_pb2.RollbackRequest: (admin_pb2.RollbackRequest(), activated, {"reason": TEXT}),
    admin_pb2.PutRulesRequest: (
        admin_pb2.PutRulesRequest(),
        put_rules,
        {
            "etag": ID,
            "rules": Several(
                MAX_RULES,
                lambda n: admin_pb2.Rule(id=f"r{n}", kind=admin_pb2.RULE_BLOCK, item_ids=["i1"]),
                (admin_pb2.Rule(),),
            ),
        },
    ),
}


def leaves() -> Iterator[tuple[type[Message], str]]:
    """Every field that has a bound, by message and dotted path."""
    for kind, (_, _, table) in TABLES.items():
        for name, bound in table.items():
            if isinstance(bound, Mapping):
                yield from ((kind, f"{name}.{inner}") for inner in bound)
            else:
                yield kind, name


def bound_of(kind: type[Message], path: str) -> Any:
    bound: Any = TABLES[kind][2]
    for name in path.split("."):
        bound = bound[name]
    return bound


def holder(message: Message, path: str) -> tuple[Any, FieldDescriptor]:
    *outer, name = path.split(".")
    inside: Any = message
    for each in outer:
        inside = getattr(inside, each)
    return inside, inside.DESCRIPTOR.fields_by_name[name]


def put(message: Message, path: str, value: Any) -> None:
    inside, field = holder(message, path)
    if not field.is_repeated:
        setattr(inside, field.name, value)
        return
    inside.ClearField(field.name)
    getattr(inside, field.name).extend(value)


def verdict(kind: type[Message], path: str, value: Any) -> str:
    """Nothing where the value is taken, else why not."""
    base, check, _ = TABLES[kind]
    message: Any = kind()
    message.CopyFrom(base)
    put(message, path, value)
    try:
        check(message)
    except codec.Unsupported as error:
        return f"unsupported: {error}"
    except ValueError as error:
        return str(error)
    return ""


def test_every_field_of_every_request_is_in_the_table() -> None:
    files = (recommender_pb2, events_pb2, catalog_pb2, admin_pb2)
    asked = {
        method.input_type
        for file in files
        for service in file.DESCRIPTOR.services_by_name.values()
        for method in service.methods
        if method.input_type.name not in ELSEWHERE
    }
    tables = {kind.DESCRIPTOR: table for kind, (_, _, table) in TABLES.items()}
    assert {each.name for each in asked if each.fields} <= {each.name for each in tables}

    def unlisted(message: Any, table: Mapping[str, Any]) -> Iterator[str]:
        assert set(table) <= set(message.fields_by_name)
        for field in message.fields:
            if field.name not in table:
                yield f"{message.name}.{field.name}"
            elif isinstance(table[field.name], Mapping):
                yield from unlisted(field.message_type, table[field.name])

    assert [each for message, table in tables.items() for each in unlisted(message, table)] == []


@pytest.mark.parametrize(("kind", "path"), [*leaves()], ids=lambda each: getattr(each, "__name__", each))
def test_a_field_takes_what_is_within_its_bound_and_refuses_what_is_beyond(kind: type[Message], path: str) -> None:
    bound = bound_of(kind, path)
    match bound:
        case Text(most):
            check_text(kind, path, most)
        case Number(low, high):
            check_number(kind, path, low, high)
        case Several(most, each, never):
            assert verdict(kind, path, [each(n) for n in range(most)]) == ""
            assert verdict(kind, path, [each(n) for n in range(most + 1)]) != ""
            assert all(verdict(kind, path, [one]) for one in never)
        case "unsupported":
            check_unsupported(kind, path)
        case "enum":
            assert path in verdict(kind, path, 99)
        case "values" | "labels":
            check_mapping(kind, path)
        case _:
            assert bound == ANY


def check_text(kind: type[Message], path: str, most: int) -> None:
    beyond = verdict(kind, path, "x" * (most + 1))
    assert path.rpartition(".")[2] in beyond, "refused by name"
    assert len(beyond) < 1000, "what is too long is not sent back"
    if path not in ("filter", "attribution_token", "page_token", "order_by"):  # which have a form of their own
        assert verdict(kind, path, "x" * most) == ""


def check_number(kind: type[Message], path: str, low: float, high: float) -> None:
    name = path.rpartition(".")[2]
    inside, field = holder(kind(), path)
    for within in (low, high):
        assert verdict(kind, path, within) in ("", _only_with(name)), within
    if field.cpp_type == FieldDescriptor.CPPTYPE_DOUBLE:
        never = [math.nan, math.inf, -math.inf, math.nextafter(low, -math.inf)]
        never += [math.nextafter(high, math.inf)] if high < 1e308 else []
    else:
        never = [each for each in (low - 1, high + 1) if _fits(inside, field, each)]
    for each in never:
        assert name in verdict(kind, path, each), each


def check_unsupported(kind: type[Message], path: str) -> None:
    base, check, _ = TABLES[kind]
    message: Any = kind()
    message.CopyFrom(base)
    field = message.DESCRIPTOR.fields_by_name[path]
    if field.is_repeated:
        getattr(message, path).add()
    elif field.cpp_type == FieldDescriptor.CPPTYPE_MESSAGE:
        getattr(message, path).SetInParent()
    else:
        setattr(message, path, "x")
    with pytest.raises(ValueError, match="not supported yet"):
        check(message)


def _only_with(name: str) -> str:
    """Rules bound some fields by each other; a value within the bound of its own may still be refused so."""
    return "rule 'r': at_least is 2147483647, more than at_most, 0" if name == "at_least" else ""


def _fits(message: Any, field: FieldDescriptor, value: float) -> bool:
    try:
        setattr(message, field.name, value)
    except (ValueError, TypeError):
        return False
    return True


def check_mapping(kind: type[Message], path: str) -> None:
    values = path.endswith(("features", "attributes"))

    def refused(entries: Mapping[str, Any]) -> bool:
        base, check, _ = TABLES[kind]
        message: Any = kind()
        message.CopyFrom(base)
        inside, field = holder(message, path)
        for name, value in entries.items():
            target = getattr(inside, field.name)
            if not values:
                target[name] = value
            elif value is None:
                target[name].SetInParent()
            else:
                setattr(target[name], "text" if isinstance(value, str) else "number", value)
        try:
            check(message)
        except codec.InvalidRequest as error:
            return field.name in str(error)
        return False

    most = codec.MAX_FEATURES if values else codec.MAX_LABELS
    assert refused({f"n{n}": "x" for n in range(most + 1)})
    assert refused({"x" * (codec.MAX_NAME_CHARS + 1): "x"})
    if not values:
        assert not refused({f"n{n}": "x" * codec.MAX_ID_CHARS for n in range(most)})
        assert refused({"a": LONG_ID})
        return
    known_text, known_number = ("country", "age") if path.startswith("context") else ("brand", "price")
    assert not refused({known_text: "x" * codec.MAX_TEXT_CHARS, known_number: 1.0})
    assert refused({known_text: "x" * (codec.MAX_TEXT_CHARS + 1)})
    assert refused({known_number: 3.5e38})
    assert all(refused({known_number: never}) for never in (math.nan, math.inf, -math.inf))
    assert refused({known_text: None})
    assert refused({known_text: 1.0})
    assert refused({"invented": "x"})


def test_repeated_items_to_rank_are_refused_and_repeated_exclusions_count_once() -> None:
    twice = recommender_pb2.RankRequest(**context(item_ids=["i1", "i2", "i1"]))
    with pytest.raises(codec.InvalidRequest, match=r"item_ids: '1 repeated ids'"):
        slate(twice)
    request = recommender_pb2.RecommendRequest(**context(exclude_item_ids=["i1"] * 500))
    assert codec.asked(request, server_time_ms=None, new_request_id=str).exclude_item_ids == ["i1"]


def test_text_that_is_not_utf_8_is_refused() -> None:
    wire = recommender_pb2.RecommendRequest(request_id="abc").SerializeToString().replace(b"abc", b"a\xffc")
    with pytest.raises(codec.InvalidRequest, match="the request"):
        codec.parse(recommender_pb2.RecommendRequest(), wire)


def peak_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text()
    return 1024 * int(status.partition("VmHWM:")[2].split()[0])


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads Linux's /proc")
def test_a_compression_bomb_and_an_oversized_request_are_refused_without_being_held(tmp_path: Path) -> None:
    store = GenerationStore(tmp_path / "generations")
    store.activate(publish(store, 1), time_ms=NOW_MS)
    unknown_field = b"\x9a\x06" + b"\x80\x80\x80\x20"  # field 99, 64 MiB of what follows
    bomb = WIRE + unknown_field + bytes(64 << 20)
    with process(tmp_path) as (server, target), grpc.insecure_channel(target) as data:
        multi: grpc.UnaryUnaryMultiCallable[bytes, bytes] = data.unary_unary("/cascade.v1.Recommender/Recommend")
        multi(WIRE, timeout=20)
        before = peak_bytes(server.pid)
        for compression in (grpc.Compression.Gzip, None):
            with pytest.raises(grpc.RpcError) as caught:
                multi(bomb[: (4 << 20) if compression is None else None], timeout=20, compression=compression)
            assert caught.value.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
        assert peak_bytes(server.pid) - before < 50 << 20
        multi(WIRE, timeout=20)


def test_the_table_of_features_knows_the_columns_that_the_cases_send() -> None:
    assert {column.name for column in TABLE.profile} >= {"age", "country"}
