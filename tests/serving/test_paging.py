"""Pages: tokens, draws that go on without repeats, and who answers them."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from catalog_cases import COUNT, NOW_MS, loaded, publish, running, store_of
from hypothesis import given
from hypothesis import strategies as st
from serving_cases import call, refusal

from index.generations import GenerationStore
from index.strings import keys64
from protos.catalog_pb2 import DeleteItemsRequest
from protos.impression_pb2 import Boost, Impression, QueryOptions, QueryStep
from protos.recommender_pb2 import (
    Context,
    RankRequest,
    RecommendRequest,
    RecommendResponse,
    SearchRequest,
    SearchResponse,
)
from serving.codec import query_of
from serving.generations import Generations
from serving.kept import KEPT_S, Kept
from serving.paging import MAX_SHOWN, next_page_token, page_of
from training.log.impression_log import read_impressions
from training.off_policy.replay import verify

AT = Context(client_time_ms=NOW_MS, user_id="u1")


@dataclass(frozen=True, slots=True)
class Site:
    channel: grpc.Channel
    generations: Generations
    folder: Path

    def search(self, **asked: Any) -> SearchResponse:
        request = SearchRequest(context=AT, **asked).SerializeToString()
        return SearchResponse.FromString(call(self.channel, "Recommender/Search", request))

    def recommend(self, **asked: Any) -> RecommendResponse:
        request = RecommendRequest(context=AT, **asked).SerializeToString()
        return RecommendResponse.FromString(call(self.channel, "Recommender/Recommend", request))

    def logged(self, least: int = 1) -> list[Impression]:
        """At least so many, which are written a moment after they are answered."""
        until = time.monotonic() + 20
        while len(logged := list(read_impressions(self.folder / "log"))) < least and time.monotonic() < until:
            time.sleep(0.02)
        return logged


@pytest.fixture
def site(tmp_path: Path) -> Iterator[Site]:
    store_of(tmp_path)
    with (
        running(tmp_path, log=tmp_path / "log") as (_, generations, address),
        grpc.insecure_channel(address.target) as channel,
    ):
        yield Site(channel, generations, tmp_path)


def ids(response: SearchResponse | RecommendResponse) -> list[str]:
    return [item.item_id for item in response.items]


def all_pages(ask: Callable[..., SearchResponse | RecommendResponse], **asked: Any) -> list[list[str]]:
    pages: list[list[str]] = []
    token = ""
    while not pages or token:
        response = ask(page_token=token, **asked)
        pages.append(ids(response))
        token = response.next_page_token
    return pages


def impression(**more: Any) -> Impression:
    return Impression(
        **{"request_id": "r", "generation": "g", "text": "t", "item_id": ["a", "b"], "more": True, **more}
    )


@given(st.integers(0, 200), st.integers(1, 255))
def test_a_token_that_was_changed_is_none(at: int, change: int) -> None:
    token = next_page_token(impression())
    page = page_of(token)
    assert page is not None
    assert list(page.shown_item_key) == keys64(["a", "b"]).tolist()
    at %= len(token)
    changed = token[:at] + chr((ord(token[at]) + change) % 256) + token[at + 1 :]
    assert page_of(changed) is None
    assert page_of(token[:at]) is None


@given(st.text(max_size=80))
def test_no_text_breaks_the_reading_of_tokens(text: str) -> None:
    assert page_of(text) is None


def test_there_is_no_token_where_nothing_follows_or_enough_was_shown() -> None:
    assert next_page_token(impression(more=False)) == ""
    assert next_page_token(impression(item_id=[f"i{n}" for n in range(MAX_SHOWN)])) == ""
    assert next_page_token(impression(item_id=[f"i{n}" for n in range(MAX_SHOWN - 1)])) != ""


def test_pages_of_a_search_show_every_item_once_and_end(site: Site) -> None:
    pages = all_pages(site.search, query="volume", page_size=30)
    shown = [item for page in pages for item in page]
    assert len(shown) == len(set(shown)) == COUNT - 1, "i0 is hidden"
    assert [len(page) for page in pages] == [30] * 6 + [19]


def test_pages_of_an_ordered_search_are_the_whole_order(site: Site) -> None:
    pages = all_pages(site.search, query="jazz", order_by="price desc", page_size=25)
    jazz = [row for row in range(COUNT) if row % 3 == 1]
    assert [item for page in pages for item in page] == [f"i{row}" for row in sorted(jazz, reverse=True)]
    slates = [each for each in site.logged() if each.order_by]
    assert {value for each in slates for value in each.propensity} == {1.0}
    assert {each.policy.log_propensity for each in slates} == {0.0}


def test_pages_of_recommendations_and_of_a_ranked_list_show_nothing_twice(site: Site) -> None:
    shown = [item for page in all_pages(site.recommend, page_size=50)[:4] for item in page]
    assert len(shown) == len(set(shown)) >= 150
    listed = [f"i{row}" for row in range(1, 40)]

    def rank(**asked: Any) -> RecommendResponse:
        request = RankRequest(context=AT, item_ids=listed, **asked).SerializeToString()
        return RecommendResponse.FromString(call(site.channel, "Recommender/Rank", request))

    assert sorted(item for page in all_pages(rank, page_size=10) for item in page) == sorted(listed)


def test_a_page_is_the_same_whoever_asks_for_it_again_and_its_draw_is_its_own(site: Site) -> None:
    first = site.search(query="volume", page_size=10, request_id="first")
    one = site.search(query="volume", page_size=10, page_token=first.next_page_token, request_id="one")
    other = site.search(query="volume", page_size=10, page_token=first.next_page_token)
    assert ids(one) == ids(other)
    assert [item.propensity for item in one.items] == [item.propensity for item in other.items]
    assert len({first.policy.seed, one.policy.seed}) == 2
    assert site.search(query="volume", page_size=3, page_token=first.next_page_token).next_page_token


def test_a_token_is_for_the_same_question_alone(site: Site) -> None:
    token = site.search(query="volume", page_size=5).next_page_token
    for asked in (
        {"query": "jazz"},
        {"query": "volume", "filter": "price < 9"},
        {"query": "volume", "boosts": [Boost(condition="price < 9", strength=1)]},
        {"query": "volume", "order_by": "price"},
        {"query": "volume", "query_options": QueryOptions(synonyms=QueryStep.QUERY_STEP_OFF)},
    ):
        request = SearchRequest(context=AT, page_token=token, **asked)
        code, message = refusal(site.channel, "Recommender/Search", request.SerializeToString())
        assert (code, message.startswith("page_token")) == ("INVALID_ARGUMENT", True)
    request = SearchRequest(context=AT, page_token=token[:-1], query="volume")
    assert refusal(site.channel, "Recommender/Search", request.SerializeToString())[0] == "INVALID_ARGUMENT"


def test_what_is_deleted_between_two_pages_is_not_shown(site: Site) -> None:
    first = site.search(query="volume", page_size=10)
    later = all_pages(site.search, query="volume", page_size=10)
    gone = [item for page in later[1:] for item in page if item not in ids(first)][:5]
    call(site.channel, "Catalog/DeleteItems", DeleteItemsRequest(item_ids=gone).SerializeToString())
    token, shown = first.next_page_token, ids(first)
    while token:
        response = site.search(query="volume", page_size=50, page_token=token)
        shown, token = shown + ids(response), response.next_page_token
    assert len(shown) == len(set(shown)) == COUNT - 1 - len(gone)
    assert not set(shown) & set(gone)


def test_another_server_of_the_store_goes_on_and_so_does_one_after_a_swap(site: Site) -> None:
    first = site.search(query="volume", page_size=20)
    expected = site.search(query="volume", page_size=20, page_token=first.next_page_token)
    store = GenerationStore(site.folder / "generations")
    with running(site.folder) as (_, _, address), grpc.insecure_channel(address.target) as channel:
        request = SearchRequest(context=AT, query="volume", page_size=20, page_token=first.next_page_token)
        other = SearchResponse.FromString(call(channel, "Recommender/Search", request.SerializeToString()))
        assert ids(other) == ids(expected)
    following = publish(store, seed=1)
    site.generations.activate(following, first.generation)
    assert site.search(query="volume").generation == following
    after = site.search(query="volume", page_size=20, page_token=first.next_page_token)
    assert after.generation == first.generation
    assert ids(after) == ids(expected)
    site.generations._kept = Kept()
    wire = SearchRequest(context=AT, query="volume", page_token=first.next_page_token).SerializeToString()
    code, message = refusal(site.channel, "Recommender/Search", wire)
    assert code == "FAILED_PRECONDITION"
    assert "begin anew" in message


def test_what_is_kept_is_kept_for_a_stated_time() -> None:
    now = [0.0]
    kept: Kept[str] = Kept(lambda: now[0])
    kept.keep("a", "one")
    now[0] = KEPT_S - 1
    assert kept.find("a") == "one"
    kept.keep("a", "as it has become")
    assert kept.find("a") == "as it has become"
    now[0] = KEPT_S
    assert kept.find("a") is None
    assert Kept[str](time.monotonic).find("a") is None


def test_every_page_is_replayed_bit_by_bit(site: Site) -> None:
    asked: list[dict[str, Any]] = [
        {},
        {"order_by": "price desc"},
        {"filter": "price < 3", "filter_mode": "FILTER_MODE_RELAX"},
        {"boosts": [Boost(condition='category = "jazz"', strength=2.0)]},
        {"hybrid": {"mode": "HYBRID_MODE_LEXICAL"}},
        {"hybrid": {"lexical_weight": 0.9}, "exclude_item_ids": ["i7", "i9"]},
    ]
    for each in asked:
        all_pages(site.search, query="volume jazz", page_size=70, **each)
    all_pages(site.recommend, page_size=70)
    generation = loaded(GenerationStore(site.folder / "generations"))
    found = verify(read_impressions(site.folder / "log"), {generation.id: generation})
    assert found.mismatches == 0, found.divergences
    assert found.requests > 2 * len(asked)
    assert sum(each.page.number > 0 for each in site.logged()) > len(asked)


def test_the_propensities_of_a_later_page_are_how_often_its_items_come(site: Site) -> None:
    """Given the same first page, over many seeds."""
    generation = loaded(GenerationStore(site.folder / "generations"))
    first = site.search(query="volume", page_size=180, request_id="seed")
    again = site.logged()[-1]
    page = page_of(first.next_page_token)
    assert page is not None
    again.page.CopyFrom(page)
    again.size = 1
    drawn: dict[int, int] = {}
    told: dict[int, float] = {}
    for n in range(200):
        again.page.first = f"seed{n}"
        answer = generation.pipeline.run(query_of(again, generation))
        row = int(answer.scored.candidates.row_N[answer.slate.index_K[0]])
        drawn[row] = drawn.get(row, 0) + 1
        told[row] = float(answer.slate.propensity_K[0])
    assert len(told) > 5
    for row, chance in told.items():
        assert abs(drawn[row] / 200 - chance) < 5 * np.sqrt(chance * (1 - chance) / 200) + 1e-9
