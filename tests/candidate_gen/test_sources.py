from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from retrieval_cases import NOW_MS, ExhaustiveSearch, catalogue, hydrated, rows, unit_vectors

from candidate_gen.activity import POPULARITY
from candidate_gen.intents import Meant
from candidate_gen.sources import SOURCES, Ann, AsUnderstood, Fresh, Lexical, Popular, SimilarToRecent, Told
from candidate_gen.types import HydratedQuery
from candidate_gen.understanding import Understood
from index.lexical import LexicalIndex
from index.masks import Mask
from index.strings import IdMap, key64
from index.types import Hits
from index.vectors import VectorIndex
from serving.pipeline import Source

VECTORS = unit_vectors(40)
ITEMS = catalogue(
    embedding_ID=VECTORS,
    popularity=[(7 * row) % 40 for row in range(40)],
    age_days=[row - 2.5 for row in range(40)],
    available=[row % 5 != 0 for row in range(40)],
)
AVAILABLE = [row for row in range(40) if row % 5]
MASKS = [Mask(np.random.default_rng(seed).random(40) < share) for seed, share in enumerate([0.0, 0.05, 0.5])]


class Echo:
    """Finds the rows that are typed."""

    def search(self, text: str, k: int, allowed: Mask | None = None) -> Hits:
        found = rows(*map(int, text.split()))
        found = (found if allowed is None else found[allowed.allowed_I[found]])[:k]
        return Hits(found, np.ones(len(found), np.float32))


def all_sources() -> list[Source]:
    search = ExhaustiveSearch(VECTORS)
    told = [Told("covisitation"), Told("trending")]
    similar = SimilarToRecent(search, ITEMS)
    return [Ann(search), Lexical(Echo()), AsUnderstood(Echo(), ITEMS), similar, *told, Fresh(ITEMS), Popular(ITEMS)]


def test_every_source_is_a_source_and_they_are_named_in_the_order_asked() -> None:
    assert tuple(each.name for each in all_sources()) == SOURCES


def test_the_real_indexes_fit() -> None:
    def made(vectors: VectorIndex, lexical: LexicalIndex) -> list[Source]:
        return [Ann(vectors), SimilarToRecent(vectors, ITEMS), Lexical(lexical)]

    index = VectorIndex.build(VECTORS, towers="t", k=5)
    assert Ann(index).retrieve(hydrated(vector_D=VECTORS[1]), 1).row_K.tolist() == [1]


@given(
    st.integers(0, 50),
    st.lists(st.integers(-1, 39), max_size=8),
    st.lists(st.integers(0, 39), max_size=3),
    st.lists(st.integers(0, 39), max_size=8),
    st.integers(-5, 50),
    st.sampled_from([None, ITEMS.allowed, *MASKS]),
)
def test_hits_are_at_most_k_distinct_finite_and_allowed(  # noqa: PLR0917  # one argument for each strategy
    k: int, history: list[int], seeds: list[int], excluded: list[int], days_ago: int, allowed: Mask | None
) -> None:
    query = hydrated(
        history=rows(*[row for row in history if row >= 0]),
        seeds=rows(*seeds),
        excluded=rows(*excluded),
        time_ms=NOW_MS - days_ago * 86_400_000,
        vector_D=VECTORS[0],
        text="1 2 3 4 5",
        allowed=allowed,
    )
    for source in all_sources():
        hits = source.retrieve(query, k)
        assert len(hits) <= k
        assert hits.row_K.dtype == np.int64
        assert hits.score_K.dtype == np.float32
        assert len(set(hits.row_K.tolist())) == len(hits)
        assert np.isfinite(hits.score_K).all()
        assert allowed is None or allowed.allowed_I[hits.row_K].all()
        if source.name != "popular":
            assert (np.diff(hits.score_K) <= 0).all()


def test_ann_is_the_nearest_of_what_is_allowed() -> None:
    hits = Ann(ExhaustiveSearch(VECTORS)).retrieve(hydrated(vector_D=VECTORS[0], allowed=ITEMS.allowed), 3)
    expected = sorted(AVAILABLE, key=lambda row: -float(VECTORS[row] @ VECTORS[0]))[:3]
    assert hits.row_K.tolist() == expected


def test_lexical_searches_what_was_typed_and_nothing_without_text() -> None:
    assert Lexical(Echo()).retrieve(hydrated(text="7 3 9"), 2).row_K.tolist() == [7, 3]
    assert Lexical(Echo()).retrieve(hydrated(text="5 3 9", allowed=ITEMS.allowed), 2).row_K.tolist() == [3, 9]
    assert len(Lexical(Echo()).retrieve(hydrated(text="  "), 2)) == 0


def test_similar_is_nothing_without_history_and_seeds() -> None:
    assert len(SimilarToRecent(ExhaustiveSearch(VECTORS), ITEMS).retrieve(hydrated(), 5)) == 0


def test_similar_to_one_item_is_its_nearest_others() -> None:
    hits = SimilarToRecent(ExhaustiveSearch(VECTORS), ITEMS).retrieve(
        hydrated(history=rows(7), allowed=ITEMS.allowed), 4
    )
    expected = sorted(set(AVAILABLE) - {7}, key=lambda row: -float(VECTORS[row] @ VECTORS[7]))[:4]
    assert hits.row_K.tolist() == expected
    assert hits.score_K == pytest.approx(VECTORS[expected] @ VECTORS[7])


def test_seeds_go_before_the_history() -> None:
    source = SimilarToRecent(ExhaustiveSearch(VECTORS), ITEMS, recent=1)
    both = source.retrieve(hydrated(history=rows(7), seeds=rows(11)), 4).row_K.tolist()
    seeded = source.retrieve(hydrated(seeds=rows(11)), 40).row_K.tolist()
    assert both == [row for row in seeded if row != 7][:4]


def test_what_is_known_is_left_out_of_what_is_similar() -> None:
    query = hydrated(history=rows(7, 8), seeds=rows(11), excluded=rows(1, 2, 3), allowed=ITEMS.allowed)
    found = SimilarToRecent(ExhaustiveSearch(VECTORS), ITEMS).retrieve(query, 40).row_K.tolist()
    assert set(found) == set(AVAILABLE) - {7, 8, 11, 1, 2, 3}


def test_recent_items_take_turns() -> None:
    # Two clusters; the one around item 0 is much tighter, and would take every place by similarity alone.
    angle = np.array([0.0, 0.01, 0.02, 0.03, 1.6, 1.9, 2.0, 2.1])
    vectors = np.stack([np.cos(angle), np.sin(angle)], 1).astype(np.float32)
    items = catalogue(embedding_ID=vectors)
    found = SimilarToRecent(ExhaustiveSearch(vectors), items).retrieve(hydrated(history=rows(0, 4)), 4)
    assert set(found.row_K.tolist()) == {1, 2, 5, 6}


def test_an_older_history_is_not_asked() -> None:
    source = SimilarToRecent(ExhaustiveSearch(VECTORS), ITEMS, recent=2)
    recent = source.retrieve(hydrated(history=rows(7, 8)), 3).row_K.tolist()
    longer = source.retrieve(hydrated(history=rows(7, 8, 39)), 3).row_K.tolist()
    assert 39 not in longer
    assert longer == recent or 39 in recent


def test_fresh_is_what_was_published_within_the_horizon_newest_first() -> None:
    # Item n is n - 2.5 days old and every fifth is not available.
    hits = Fresh(ITEMS, horizon_days=5).retrieve(hydrated(allowed=ITEMS.allowed), 10)
    assert hits.row_K.tolist() == [3, 4, 6, 7]
    assert hits.score_K == pytest.approx([0.9, 0.7, 0.3, 0.1])
    assert Fresh(ITEMS, horizon_days=5).retrieve(hydrated(allowed=ITEMS.allowed), 2).row_K.tolist() == [3, 4]


def test_the_horizon_is_open_at_its_far_end_and_closed_at_the_moment_of_the_query() -> None:
    items = catalogue(embedding_ID=unit_vectors(3), age_days=[0, 5, 4.99])
    assert Fresh(items, horizon_days=5).retrieve(hydrated(), 5).row_K.tolist() == [0, 2]


def test_popular_is_in_order_of_popularity() -> None:
    items = catalogue(embedding_ID=unit_vectors(5), popularity=[3, 9, 1, 7, 7], available=[True] * 4 + [False])
    hits = Popular(items).retrieve(hydrated(text="jazz", allowed=items.allowed), 10)
    assert hits.row_K.tolist() == [1, 3, 0, 2]
    assert hits.score_K.tolist() == [9, 7, 3, 1]
    assert Popular(items).retrieve(hydrated(), 10).row_K.tolist() == [1, 4, 3, 0, 2]


def test_popular_passes_over_what_the_query_knows_while_there_is_enough_else() -> None:
    items = catalogue(embedding_ID=unit_vectors(5), popularity=[5, 4, 3, 2, 1])
    query = hydrated(history=rows(0), seeds=rows(1), excluded=rows(3))
    assert Popular(items).retrieve(query, 2).row_K.tolist() == [2, 4]
    assert Popular(items).retrieve(query, 5).row_K.tolist() == [2, 4, 0, 1, 3]


@given(
    st.integers(0, 45),
    st.lists(st.integers(0, 39), max_size=40),
    st.integers(-1, 45),
    st.sampled_from([None, ITEMS.allowed, *MASKS]),
)
def test_popular_never_fails_while_enough_is_allowed(
    k: int, history: list[int], days_ago: int, allowed: Mask | None
) -> None:
    query = hydrated(history=rows(*history), time_ms=NOW_MS - days_ago * 86_400_000, allowed=allowed)
    published_I = ITEMS.published_ms_I[np.arange(40)] <= query.query.time_ms
    shown = set(np.flatnonzero(published_I if allowed is None else published_I & allowed.allowed_I).tolist())
    hits = Popular(ITEMS).retrieve(query, k)
    assert len(hits) == min(k, len(shown))
    assert set(hits.row_K.tolist()) <= shown


@given(
    st.integers(0, 30),
    st.lists(st.tuples(st.integers(0, 3), st.integers(-1, 9), st.booleans()), max_size=30),
    st.integers(0, 30),
    st.lists(st.integers(0, 29), max_size=5),
)
def test_what_is_fresh_and_popular_is_in_order_with_the_later_row_first_among_equals(
    k: int, made: list[tuple[int, int, bool]], first: int, history: list[int]
) -> None:
    items = catalogue(
        embedding_ID=np.ones((len(made), 2), np.float32),
        popularity=[popularity for popularity, _, _ in made],
        age_days=[age for _, age, _ in made],
        available=[available for _, _, available in made],
    )
    known = rows(*[row for row in history if row < len(made)])
    query = hydrated(history=known, allowed=items.allowed)
    shown = [row for row, (_, age, available) in enumerate(made) if available and age >= 0]
    popular = sorted(shown, key=lambda row: (row in known, -made[row][0], -row))
    fresh = sorted((row for row in shown if made[row][1] < 7), key=lambda row: (made[row][1], -row))
    base = items.take(np.arange(min(first, len(made))))
    for now in (items, base.appended(items.take(np.arange(len(base), len(made))))):
        for source, expected in (
            (Popular(now), popular),
            (Popular(base).on(now), popular),
            (Fresh(now), fresh),
            (Fresh(base).on(now), fresh),
        ):
            assert source.retrieve(query, k).row_K.tolist() == expected[:k]


def test_a_source_still_answers_of_the_items_it_had_after_they_have_grown() -> None:
    base = ITEMS.take(np.arange(20))
    grown = base.appended(ITEMS.take(np.arange(20, 40)))
    for source in (Popular(base), Fresh(base, horizon_days=50)):
        before = source.retrieve(hydrated(), 40).row_K.tolist()
        assert max(source.on(grown).retrieve(hydrated(), 40).row_K.tolist()) > 20
        assert source.retrieve(hydrated(), 40).row_K.tolist() == before


def test_what_is_similar_is_partial_where_a_search_was() -> None:
    for partial in (True, False):
        source = SimilarToRecent(ExhaustiveSearch(VECTORS, partial=partial), ITEMS)
        assert source.retrieve(hydrated(history=rows(7, 8)), 3).partial == partial


def test_an_empty_catalogue_has_nothing_and_no_error() -> None:
    items = catalogue(embedding_ID=np.zeros((0, 4), np.float32))
    for source in (Popular(items), Fresh(items)):
        assert len(source.retrieve(hydrated(), 5)) == 0


def fresh_rows(source: Fresh, k: int, *, request_id: str = "r0", allowed: Mask | None = None) -> list[int]:
    query = hydrated(allowed=allowed)
    found: list[int] = source.retrieve(
        replace(query, query=replace(query.query, request_id=request_id)), k
    ).row_K.tolist()
    return found


def test_a_share_of_the_fresh_places_goes_to_fresh_items_that_are_not_the_newest() -> None:
    items = catalogue(embedding_ID=unit_vectors(200), age_days=[row / 100 for row in range(200)])
    source = Fresh(items, horizon_days=1.0, explored=0.3)
    drawn: set[int] = set()
    for number in range(60):
        found = fresh_rows(source, 10, request_id=f"r{number}")
        assert found[:7] == list(range(7)), "the newest keep the other places"
        assert len(set(found)) == 10
        assert found == sorted(found), "newest first"
        assert found == fresh_rows(source, 10, request_id=f"r{number}"), "the request id decides"
        drawn |= set(found[7:])
    assert len(drawn) > 70, "evenly from all 93 others that are fresh"
    assert max(drawn) < 100, "and never from behind the horizon"


def test_what_is_drawn_of_the_fresh_is_allowed_and_new_items_are_drawn_too() -> None:
    items = catalogue(embedding_ID=unit_vectors(50), age_days=[row / 100 for row in range(50)])
    more = replace(
        catalogue(embedding_ID=unit_vectors(10), age_days=[0.9] * 10), ids=IdMap.of([f"n{row}" for row in range(10)])
    )
    grown = items.appended(more)
    odd = Mask(np.arange(60) % 2 == 1)
    source = Fresh(items, horizon_days=1.0, explored=0.5).on(grown)
    found = {row for number in range(40) for row in fresh_rows(source, 8, request_id=f"r{number}", allowed=odd)}
    assert all(row % 2 for row in found)
    assert {row for row in found if row >= 50} == {51, 53, 55, 57, 59}


def test_where_fewer_are_fresh_than_asked_for_all_are_named_newest_first() -> None:
    items = catalogue(embedding_ID=unit_vectors(9), age_days=[row / 10 for row in range(9)])
    assert fresh_rows(Fresh(items, horizon_days=0.45, explored=1.0), 20) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_a_share_of_exploration_that_is_none_is_refused(share: float) -> None:
    with pytest.raises(ValueError, match="explored is"):
        Fresh(ITEMS, explored=share)


def of_segment(number: int, **asked: Any) -> HydratedQuery:
    return replace(hydrated(**asked), row=np.array([(number,)], [("country", "<i4")]))


def segments(*named: tuple[int, str, float]) -> np.ndarray:
    return np.array([(number, key64(item_id), worth) for number, item_id, worth in named], POPULARITY)


SEGMENTED = Popular(
    ITEMS,
    segment="country",
    segment_P=segments((1, "i9", 3.0), (1, "i5", 2.5), (1, "i2", 2.0), (1, "gone", 1.0), (2, "i4", 1.0)),
)


def test_the_segment_goes_first_and_everybody_behind() -> None:
    everybody = Popular(ITEMS).retrieve(hydrated(), 12).row_K.tolist()
    found = SEGMENTED.retrieve(of_segment(1), 12)
    own = [9, 5] if ITEMS.published_ms_I[2] > NOW_MS else [9, 5, 2]
    assert found.row_K.tolist() == [*own, *(row for row in everybody if row not in own)][:12]
    assert (np.diff(found.score_K) <= 0).all()
    assert SEGMENTED.retrieve(of_segment(2), 12).row_K[0] == 4
    for number in (0, 3):
        assert SEGMENTED.retrieve(of_segment(number), 12).row_K.tolist() == everybody, "nobody knows them"


def test_what_a_segment_likes_is_shown_only_where_it_is_allowed_and_not_known() -> None:
    found = SEGMENTED.retrieve(of_segment(1, allowed=ITEMS.allowed, history=rows(9)), 12).row_K.tolist()
    assert 5 not in found, "not available"
    assert 9 not in found, "known, and there are others"
    whole = SEGMENTED.retrieve(of_segment(1, allowed=ITEMS.allowed, history=rows(9)), 40).row_K.tolist()
    assert whole[-1] == 9, "last of all"
    assert len(set(whole)) == len(whole)


def test_a_segments_items_are_found_where_they_have_moved() -> None:
    moved = replace(ITEMS.take(rows(9)), popularity_I=np.zeros(1, np.float32))
    grown = SEGMENTED.on(ITEMS.appended(moved))
    assert grown.retrieve(of_segment(1, allowed=Mask(~ITEMS.appended(moved).gone_I)), 3).row_K[0] == 40


def told(rows_of: dict[str, NDArray[np.int64]], **asked: Any) -> HydratedQuery:
    query = hydrated(**asked)
    live = {name: Hits(row_K, np.linspace(1, 0.5, len(row_K), dtype=np.float32)) for name, row_K in rows_of.items()}
    return replace(query, query=replace(query.query, live=live))


def test_what_was_told_is_said_again_where_it_is_allowed() -> None:
    query = told({"trending": rows(4, 5, 6, 7)}, allowed=ITEMS.allowed)
    hits = Told("trending").retrieve(query, 2)
    assert hits.row_K.tolist() == [4, 6], "5 is not available"
    assert hits.score_K.tolist() == pytest.approx([1.0, 2 / 3])
    assert len(Told("covisitation").retrieve(query, 9)) == 0
    assert len(Told("trending").retrieve(query, -1)) == 0


@pytest.mark.parametrize("days", [0, -1, float("nan")])
def test_a_horizon_that_is_none_is_refused(days: float) -> None:
    with pytest.raises(ValueError, match="horizon_days is"):
        Fresh(ITEMS, horizon_days=days)


class Counted(ExhaustiveSearch):
    """Counts how often it is asked."""

    calls = 0

    def search(self, query_D: NDArray[np.float32], k: int, allowed: Mask | None = None) -> Hits:
        self.calls += 1
        return super().search(query_D, k, allowed)


def test_what_is_near_an_item_is_searched_once_unless_under_a_filter_or_in_part() -> None:
    search = Counted(VECTORS)
    source, query = SimilarToRecent(search, ITEMS), hydrated(history=rows(0, 4), allowed=ITEMS.allowed)
    first, again = source.retrieve(query, 9), source.retrieve(query, 9)
    assert (first.row_K.tolist(), first.score_K.tolist()) == (again.row_K.tolist(), again.score_K.tolist())
    assert search.calls == 2
    mask = Mask(np.arange(len(ITEMS)) % 2 == 0)
    filtered = [source.retrieve(replace(query, allowed=mask), 9).row_K.tolist() for _ in range(2)]
    assert filtered[0] == filtered[1] != first.row_K.tolist()
    assert search.calls == 6
    more = source.retrieve(query, 10).row_K.tolist()
    assert len(more) == 10
    assert set(first.row_K.tolist()) <= set(more)
    assert search.calls == 6  # what was kept holds enough
    failing = Counted(VECTORS, partial=True)
    lame = SimilarToRecent(failing, ITEMS)
    assert lame.retrieve(query, 9).partial
    assert lame.retrieve(query, 9).partial
    assert failing.calls == 4


def test_asking_no_recent_item_is_refused() -> None:
    with pytest.raises(ValueError, match="recent is 0"):
        SimilarToRecent(ExhaustiveSearch(VECTORS), ITEMS, recent=0)


def test_what_a_query_means_beyond_its_words_is_worth_less_than_they_are_and_its_category_more() -> None:
    items = replace(ITEMS, attributes={"category": np.arange(40) % 2 + np.uint64(7)})
    source = AsUnderstood(Echo(), items)
    asked = hydrated(text="1 2")
    assert len(source.retrieve(asked, 9)) == 0, "nothing was understood"

    def hits(understood: Understood) -> Hits:
        return source.retrieve(replace(asked, query=replace(asked.query, understood=understood)), 9)

    keys, chances = np.array([7, 8], np.uint64), np.array([0.0, 0.25, 0.75])
    meant = Meant(attribute="category", key_V=keys, probability_C=chances)
    other = hits(Understood(text="1 2", searched=(("3 4", 0.5),)))
    assert other.row_K.tolist() == [3, 4]
    assert other.score_K.tolist() == [0.5, 0.5]
    both = hits(Understood(text="1 2", searched=(("2 3", 0.5),), meant=(meant,)))
    assert dict(zip(both.row_K.tolist(), both.score_K.tolist(), strict=True)) == {1: 1.75, 2: 1.25, 3: 0.875}
    assert both.row_K.tolist() == [1, 2, 3]
