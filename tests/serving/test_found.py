"""What a search asks for and tells beside its slate, on a real server: counts, fields, mixes, fallbacks."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
from catalog_cases import COUNT, NOW_MS, running, store_of
from serving_cases import call, refusal

from protos.catalog_pb2 import CatalogItem, DeleteItemsRequest, ItemPatch, PatchItemsRequest, UpsertItemsRequest
from protos.impression_pb2 import Boost, Degraded, FeatureValue
from protos.recommender_pb2 import (
    Context,
    FacetRequest,
    ReasonKind,
    RecommendRequest,
    RecommendResponse,
    SearchRequest,
    SearchResponse,
)

JAZZ = [row for row in range(COUNT) if row % 3 == 1]
"""Rows whose titles and categories say so."""


@dataclass(frozen=True, slots=True)
class Site:
    channel: grpc.Channel

    def search(self, query: str, **asked: Any) -> SearchResponse:
        request = SearchRequest(context=Context(client_time_ms=NOW_MS), query=query, **asked).SerializeToString()
        return SearchResponse.FromString(call(self.channel, "Recommender/Search", request))

    def refused(self, query: str, **asked: Any) -> str:
        request = SearchRequest(context=Context(client_time_ms=NOW_MS), query=query, **asked).SerializeToString()
        code, message = refusal(self.channel, "Recommender/Search", request)
        assert code == "INVALID_ARGUMENT"
        return message


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("found")
    store_of(folder)
    with running(folder) as (_, _, address), grpc.insecure_channel(address.target) as channel:
        yield Site(channel)


@pytest.fixture
def changing(tmp_path: Path) -> Iterator[Site]:
    store_of(tmp_path)
    with running(tmp_path) as (_, _, address), grpc.insecure_channel(address.target) as channel:
        yield Site(channel)


def told(response: SearchResponse) -> dict[str, list[tuple[str, int]]]:
    return {facet.field: [(each.value, each.count) for each in facet.values] for facet in response.facets}


def rows(response: SearchResponse) -> list[int]:
    return [int(item.item_id[1:]) for item in response.items]


def test_facets_count_all_matches_whatever_the_page(site: Site) -> None:
    facets = [
        FacetRequest(field="category"),
        FacetRequest(field="creator", limit=3),
        FacetRequest(field="price", bounds=[10, 50]),
    ]
    response = site.search("volume jazz", page_size=1, facets=facets)
    creators = Counter(f"c{row % 7}" for row in JAZZ)
    assert response.total_size == len(JAZZ)
    assert told(response) == {
        "category": [("jazz", len(JAZZ))],
        "creator": sorted(creators.items(), key=lambda each: (-each[1], each[0]))[:3],
        "price": [
            ("..10", sum(row < 20 for row in JAZZ)),
            ("10..50", sum(20 <= row < 100 for row in JAZZ)),
            ("50..", sum(row >= 100 for row in JAZZ)),
        ],
    }
    filtered = site.search("volume jazz", page_size=1, filter="price < 10", facets=facets)
    assert filtered.total_size == sum(row < 20 for row in JAZZ)
    assert site.search("volume nowhere").total_size == COUNT - 1, "i0 is hidden, and no item holds the other word"
    assert site.search("nowhere").total_size == 0


def test_facets_know_what_the_catalogue_was_told_since(changing: Site) -> None:
    item = CatalogItem(item_id="new", title="volume of jazz", category="gnawa", creator="c1", published_ms=NOW_MS - 1)
    item.attributes["format"].text = "tape"
    call(changing.channel, "Catalog/UpsertItems", UpsertItemsRequest(items=[item]).SerializeToString())
    call(changing.channel, "Catalog/DeleteItems", DeleteItemsRequest(item_ids=["i1", "i4"]).SerializeToString())
    patches = [
        ItemPatch(item_id="i7", available=False),
        ItemPatch(item_id="i10", attributes={"format": FeatureValue(text="scroll")}),
    ]
    call(changing.channel, "Catalog/PatchItems", PatchItemsRequest(patches=patches).SerializeToString())
    response = changing.search("jazz", facets=[FacetRequest(field="category"), FacetRequest(field="format")])
    assert response.total_size == len(JAZZ) - 3 + 1
    assert told(response) == {
        "category": [("jazz", len(JAZZ) - 3), ("gnawa", 1)],
        "format": [("film", len(JAZZ) - 4), ("scroll", 1), ("tape", 1)],
    }
    shown = changing.search("jazz", order_by="published desc", page_size=1, return_fields=["format", "creator"]).items[
        0
    ]
    assert (shown.item_id, shown.fields["format"].text, shown.fields["creator"].text) == ("new", "tape", "c1")
    assert changing.search("gnawa").total_size == changing.search("c1 gnawa").total_size == 1


def test_fields_are_those_that_were_asked_for(site: Site) -> None:
    fields = ["price", "format", "title"]
    item = site.search("jazz", order_by="price desc", page_size=1, return_fields=fields).items[0]
    assert (item.title, item.category) == (f"volume {JAZZ[-1]} of jazz", "")
    assert dict(item.fields) == {"price": FeatureValue(number=JAZZ[-1] / 2), "format": FeatureValue(text="film")}
    missing = site.search("math", order_by="price desc", page_size=1, return_fields=["format"]).items[0]
    assert dict(missing.fields) == {}, "it has none"
    assert "price" in site.refused("jazz", return_fields=["colour"])
    assert "price" not in site.refused("jazz", return_fields=["format"], columns=True).partition("allowed")[2]


def test_only_words_and_meaning_answer_what_was_typed(site: Site) -> None:
    response = site.search("volume jazz", page_size=50, debug="DEBUG_LEVEL_SUMMARY")
    assert {name for name, count in response.trace.retrieved.items() if count} == {"ann", "lexical"}
    words = site.search("jazz", page_size=200, hybrid={"mode": "HYBRID_MODE_LEXICAL"})
    assert sorted(rows(words)) == JAZZ
    assert not words.degradation.bits
    meaning = site.search("jazz", page_size=200, hybrid={"mode": "HYBRID_MODE_DENSE"})
    assert {tuple(item.sources) for item in meaning.items} == {("ann",)}
    heavy = site.search("jazz", page_size=200, hybrid={"lexical_weight": 1.0})
    assert sorted(rows(heavy)) == JAZZ
    assert "hybrid.lexical_weight" in site.refused("jazz", hybrid={"lexical_weight": 2})


def test_what_nothing_fits_is_said(site: Site) -> None:
    popular = site.search("nowhere", page_size=3, hybrid={"mode": "HYBRID_MODE_LEXICAL"})
    assert popular.degradation.bits == Degraded.DEGRADED_NO_MATCH
    assert {tuple(item.sources) for item in popular.items} == {("popular",)}
    assert all(ReasonKind.REASON_POPULAR in [each.kind for each in item.reasons] for item in popular.items)
    near = site.search("nowhere", page_size=3)
    assert near.degradation.bits == Degraded.DEGRADED_NO_MATCH
    assert len(near.items) == 3
    nothing = site.search("jazz", filter="price > 1000")
    assert nothing.degradation.bits & Degraded.DEGRADED_EMPTY
    assert not nothing.items


def test_a_filter_that_is_relaxed_is_followed_by_popular_items_that_it_refuses(site: Site) -> None:
    strict = site.search("jazz", filter="price < 3", page_size=10)
    relaxed = site.search("jazz", filter="price < 3", page_size=10, filter_mode="FILTER_MODE_RELAX")
    assert len(strict.items) == 5
    assert len(relaxed.items) == 10
    assert relaxed.degradation.bits == Degraded.DEGRADED_FILTER_RELAXED
    assert relaxed.total_size == strict.total_size == 2, "what fills up is no match"
    assert set(rows(strict)) < set(rows(relaxed))
    plenty = site.search("jazz", filter="price < 90", page_size=10, filter_mode="FILTER_MODE_RELAX")
    assert not plenty.degradation.bits
    assert all(row < 180 for row in rows(plenty))
    request = RecommendRequest(
        context=Context(client_time_ms=NOW_MS), filter="price < 3", page_size=10, filter_mode="FILTER_MODE_RELAX"
    )
    wire = call(site.channel, "Recommender/Recommend", request.SerializeToString())
    assert len(RecommendResponse.FromString(wire).items) == 10


def test_a_boost_moves_items_inside_the_draw(site: Site) -> None:
    boosted = site.search("volume", page_size=40, boosts=[Boost(condition='category = "math"', strength=1000.0)])
    buried = site.search("volume", page_size=40, boosts=[Boost(condition='category = "math"', strength=-1000.0)])
    assert sum(row % 3 == 2 for row in rows(boosted)) > 30
    assert sum(row % 3 == 2 for row in rows(buried)) < 10
    assert all(0 < item.propensity <= 1 for item in (*boosted.items, *buried.items))
    message = site.refused("volume", boosts=[Boost(condition="colour = 3", strength=1.0)])
    assert message.startswith("boosts[0].condition")


def test_an_order_is_of_a_number(site: Site) -> None:
    assert rows(site.search("jazz", order_by="price", page_size=3)) == JAZZ[:3]
    assert rows(site.search("jazz", order_by="popularity asc", page_size=3)) == JAZZ[::-1][:3]
    assert rows(site.search("jazz", order_by="published DESC", page_size=3)) == JAZZ[:3]
    assert "price, published, popularity" in site.refused("jazz", order_by="format asc")
    reasons = {each.kind for item in site.search("jazz", order_by="price").items for each in item.reasons}
    assert ReasonKind.REASON_SEARCH_MATCH in reasons
