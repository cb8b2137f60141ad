"""Understanding and suggesting on the way from the wire to the answer, the log and the replay."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import grpc
import numpy as np
import pytest
import serving_cases
from serving_cases import SETTINGS, ListedSource, MemoryLog, NumberScorer, Switch, call, refusal, serving
from shop_cases import GOODS, HIDDEN, NOW_MS, shop, shop_log, shop_table

from candidate_gen.completions import Completions
from candidate_gen.filters import Disallowed
from candidate_gen.predicates import Attributes
from candidate_gen.sources import AsUnderstood, Lexical
from candidate_gen.types import HydratedQuery, Query
from candidate_gen.understanding import Understanding
from index.generations import Manifest
from index.lexical import LexicalIndex
from policy.rules import Rule, RuleBook, RulesInForce
from policy.selector import SlatePolicy
from protos.impression_pb2 import Impression, QueryOptions, QueryStep
from protos.recommender_pb2 import Context, SearchRequest, SearchResponse, SuggestRequest
from serving import codec
from serving.again import ask_again, first_difference, recorded_again
from serving.client import CascadeClient
from serving.generation import Generation
from serving.suggest import suggest

AT = Context(client_time_ms=NOW_MS)
TITLES = [title for title, *_ in GOODS]


def made(folder: Path) -> Generation:
    """The shop behind the small generation's ranker and policy."""
    table = shop_table()
    items, log = shop(table), shop_log()
    lexical = LexicalIndex.build(folder / "lexical", items.searchable)
    attributes = Attributes(items)
    understanding = Understanding.of(items, log, table, rules=["loveseat => sofa"])

    def hydrate(query: Query) -> HydratedQuery:
        row = serving_cases.TABLE.empty("query", 1)
        return HydratedQuery(query, row, np.full(4, 0.5, np.float32), attributes.allowed(query.filter))

    one = serving_cases.generation()
    return replace(
        one,
        table=table,
        items=items,
        attributes=attributes,
        understanding=understanding,
        completions=Completions.of(items, log, lexical, table, is_spelt=understanding.spelling.is_right),
        pipeline=replace(
            one.pipeline,
            hydrate=hydrate,
            sources=[
                (Lexical(lexical), 10),
                (AsUnderstood(lexical, items), 10),
                (ListedSource("popular", np.empty(0, np.int64), Switch()), 1),
            ],
            items=len(items),
            filters=[Disallowed()],
            scorer=NumberScorer(items, Switch()),
            selector=SlatePolicy(SETTINGS, items, one.id),
        ),
    )


@pytest.fixture(scope="module")
def generation(tmp_path_factory: pytest.TempPathFactory) -> Generation:
    return made(tmp_path_factory.mktemp("shop"))


@dataclass(frozen=True, slots=True)
class Site:
    channel: grpc.Channel
    target: str
    log: MemoryLog
    generation: Generation

    def search(self, query: str, **asked: object) -> SearchResponse:
        request = SearchRequest(context=AT, query=query, request_id=f"r{len(self.log.impressions)}", **asked)  # type: ignore[arg-type]
        return SearchResponse.FromString(call(self.channel, "Recommender/Search", request.SerializeToString()))

    def logged(self, response: SearchResponse) -> Impression:
        return self.log.impressions[response.request_id]


@pytest.fixture(scope="module")
def site(generation: Generation, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    def as_published(name: str, *, about: Manifest, switch: Switch) -> Generation:
        return replace(generation, id=name, manifest=about)

    log = MemoryLog()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serving_cases, "generation", as_published)
        folder = tmp_path_factory.mktemp("site")
        with serving(folder, patch, log=log) as address, grpc.insecure_channel(address.target) as channel:
            yield Site(channel, address.target, log, generation)


def titles(response: SearchResponse) -> set[str]:
    return {item.title for item in response.items}


def test_what_is_typed_is_logged_as_typed_and_what_was_understood_beside_it(site: Site) -> None:
    response = site.search("cieling lamp")
    assert response.corrected_query == "ceiling lamp"
    assert response.intent["Light"] > 0.5
    assert max(response.creator_intent, key=response.creator_intent.__getitem__) == "Glow"
    assert "Ceiling Lamp 36-in." in titles(response)
    logged = site.logged(response)
    assert (logged.text, logged.understood.searched) == ("cieling lamp", "ceiling lamp")


@pytest.mark.parametrize(
    "query", ["cieling lamp", "red couch under 500", "loveseat", "towel under 1", "under 50", "zzz", "36in lamp"]
)
def test_a_logged_query_is_understood_and_answered_again_bit_by_bit(site: Site, query: str) -> None:
    logged = site.logged(site.search(query))
    again = replace(site.generation, id=logged.generation)
    assert first_difference(logged, *ask_again(logged, again), again) is None
    made_again = recorded_again(logged, again)
    for each in (logged, made_again):
        each.ClearField("stages")
    assert made_again == logged


def test_a_replay_finds_out_where_something_else_was_understood(site: Site) -> None:
    logged = site.logged(site.search("cieling lamp"))
    logged.query_options.spelling = QueryStep.QUERY_STEP_OFF
    again = replace(site.generation, id=logged.generation)
    assert first_difference(logged, *ask_again(logged, again), again) is not None


def test_a_condition_in_the_query_holds_for_every_item_and_is_told(site: Site) -> None:
    response = site.search("lamp under 50")
    assert response.extracted_filter == "price < 50"
    assert titles(response) == {"Desk Lamp blue"}


def test_a_condition_that_leaves_nothing_is_dropped_and_told(site: Site) -> None:
    response = site.search("towel under 1")
    assert (response.extracted_filter, response.dropped_filter) == ("", "price < 1")
    assert "Bath Towel red" in titles(response)


def test_a_condition_never_lifts_the_callers_filter(site: Site) -> None:
    response = site.search("towel under 10", filter='color = "red"')
    assert response.dropped_filter == "price < 10", "together they would leave nothing"
    assert titles(response) == {"Bath Towel red"}


def test_what_stands_for_the_words_finds_items_by_a_source_of_its_own(site: Site) -> None:
    response = site.search("loveseat")
    assert response.expanded_query == "sofa"
    assert {"Velvet Sofa red", "Leather Sofa dark green"} <= titles(response)
    assert all(list(item.sources) == ["understood"] for item in response.items)
    assert not titles(site.search("loveseat", query_options=QueryOptions(synonyms="QUERY_STEP_OFF")))


def test_pinned_matches_leave_no_room_for_others_where_they_fill_a_page(site: Site) -> None:
    pinned = QueryOptions(pin_unexpanded=True, intent="QUERY_STEP_OFF")
    page = site.search("couch", page_size=2, query_options=pinned)
    assert all("Couch" in title for title in titles(page))
    assert any("Sofa" in title for title in titles(site.search("couch", page_size=8, query_options=pinned)))


def test_a_step_that_is_off_is_neither_taken_nor_told(site: Site) -> None:
    off = QueryOptions(**dict.fromkeys(("spelling", "synonyms", "expansion", "filters", "intent"), "QUERY_STEP_OFF"))  # type: ignore[arg-type]
    response = site.search("cieling lamp under 50", query_options=off)
    assert {response.corrected_query, response.extracted_filter, *response.intent} == {""}
    logged = site.logged(response)
    assert not logged.HasField("understood")
    told = QueryOptions(spelling="QUERY_STEP_SUGGEST", filters="QUERY_STEP_SUGGEST")
    response = site.search("cieling lamp under 50", query_options=told)
    assert response.extracted_filter == "price < 50"
    assert response.corrected_query == "ceiling lamp under 50"
    assert site.logged(response).understood.searched == "cieling lamp under 50"


def test_a_generation_without_understanding_searches_for_what_is_typed(generation: Generation) -> None:
    old = replace(generation, understanding=None, completions=None)
    request = SearchRequest(context=AT, query="cieling lamp under 50")
    asked = codec.asked(request, server_time_ms=NOW_MS, new_request_id=str)
    query, _ = ask_again(asked, old)
    assert (query.text, query.filter) == ("cieling lamp under 50", "")
    assert not suggest(SuggestRequest(prefix="c"), old, time_ms=NOW_MS).suggestions


def test_no_text_breaks_a_search_or_a_suggestion(site: Site) -> None:
    random = np.random.default_rng(0)
    ranges = [(32, 127), (0, 32), (0x590, 0x700), (0xE00, 0xE80), (0x4E00, 0x9FFF), (0x1F300, 0x1F600), (0x900, 0x980)]
    signs = ['"', "AND", "price", "<", "under", "$", "(", "\\", "between", "to", "99999999999999999999", "\u0000"]
    for _ in range(60):
        low, high = ranges[int(random.integers(len(ranges)))]
        letters = [chr(n) for n in random.integers(low, high, random.integers(1, 60)).tolist()]
        words = [*random.choice(signs, 3).tolist(), "".join(letters)]
        random.shuffle(words)
        text = " ".join(words)
        code, message = refusal(
            site.channel, "Recommender/Search", SearchRequest(context=AT, query=text).SerializeToString()
        )
        assert code == "OK", (text, message)
        code, message = refusal(
            site.channel, "Recommender/Suggest", SuggestRequest(context=AT, prefix=text).SerializeToString()
        )
        assert code == "OK", (text, message)


def test_suggestions_come_over_the_wire_and_through_the_client(site: Site) -> None:
    with CascadeClient(site.target) as client:
        lines = client.suggest("towle", time_ms=NOW_MS, size=3)
        assert (lines[0].text, lines[0].kind) == ("towel", "CORRECTION")
        (title,) = client.suggest("velvet", time_ms=NOW_MS)
        assert (title.kind, title.item_id) == ("ITEM", "g0")
        assert client.suggest("livi", time_ms=NOW_MS)[0].kind == "CATEGORY"
        assert client.search("cieling lamp", time_ms=NOW_MS, query_options={"spelling": "off"}).corrected_query == ""
        with pytest.raises(ValueError, match="query_options: speling"):
            client.search("lamp", time_ms=NOW_MS, query_options={"speling": "off"})


@pytest.mark.parametrize(
    ("request_of", "field"),
    [
        (SuggestRequest(context=AT, prefix="x" * 513), "prefix"),
        (SuggestRequest(context=AT, prefix="x", page_size=51), "page_size"),
        (SuggestRequest(context=AT, prefix="x", page_size=0), "page_size"),
    ],
)
def test_a_suggestion_out_of_bounds_is_refused(site: Site, request_of: SuggestRequest, field: str) -> None:
    code, message = refusal(site.channel, "Recommender/Suggest", request_of.SerializeToString())
    assert code == "INVALID_ARGUMENT"
    assert message.startswith(field)


def suggested(generation: Generation, prefix: str) -> list[str]:
    return [each.text for each in suggest(SuggestRequest(prefix=prefix), generation, time_ms=NOW_MS).suggestions]


def test_nothing_is_suggested_that_only_hidden_or_blocked_items_answer(generation: Generation) -> None:
    assert "towel rail" in suggested(generation, "towel r")
    assert TITLES[HIDDEN] not in suggested(generation, "hidden")
    rows = np.array([6, 4, 5])
    hidden = replace(generation, items=generation.items.with_available(rows, available=False))
    assert suggested(hidden, "towel") == []
    rule = Rule(id="no towels", kind="block", item_ids=("g4", "g5", "g6"))
    rules = RulesInForce(RuleBook((rule,), "1"), generation.items, generation.attributes)
    assert suggested(replace(generation, rules=rules), "towel") == []
    assert suggest(SuggestRequest(prefix="towel"), generation, time_ms=0).suggestions == [], "published later"
