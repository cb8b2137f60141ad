"""Matches against what can be counted by hand. Shape letters: I items, M matches."""

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from candidate_gen.items import Items
from candidate_gen.matches import Matching, in_order, order_of, range_counts, value_counts
from candidate_gen.types import Order
from index.lexical import LexicalIndex, joined
from index.masks import Mask
from index.strings import key64

WORDS = ("red", "blue", "shoe", "hat", "old")
COUNT = 120


def texts(seed: int = 0) -> list[list[str]]:
    """Titles of some words, and a second field of one."""
    chance = np.random.default_rng(seed)
    return [
        [" ".join(chance.choice(WORDS, chance.integers(1, 4), replace=False)), str(chance.choice(["wool", "red", ""]))]
        for _ in range(COUNT)
    ]


TEXTS = texts()


def catalogue(text_I: list[list[str]]) -> Items:
    chance = np.random.default_rng(1)
    count = len(text_I)
    brand_I = [("", "Zed", "Acme", "\u00dcber")[n] for n in chance.integers(0, 4, count)]
    price_I = np.where(chance.random(count) < 0.2, np.nan, np.round(chance.random(count) * 20))
    return Items.of(
        ids=[f"i{row}" for row in range(count)],
        titles=[each[0] for each in text_I],
        searchable=[joined(each) for each in text_I],
        row_I=np.zeros(count, [("category", np.int32)]),
        published_ms=np.arange(count),
        embedding_ID=np.zeros((count, 2), np.float32),
        popularity=np.arange(count) % 7,
        attributes={
            "brand": np.array([key64(each) if each else 0 for each in brand_I], np.uint64),
            "price": price_I.astype(float),
        },
        texts=brand_I,
    )


@pytest.fixture(scope="module")
def matching(tmp_path_factory: pytest.TempPathFactory) -> Matching:
    return Matching(catalogue(TEXTS), words_of(tmp_path_factory.mktemp("words") / "lexical", TEXTS))


def words_of(folder: Path, text_I: list[list[str]]) -> LexicalIndex:
    return LexicalIndex.build(folder, list(map(joined, text_I)), boosts={"title": 2, "brand": 1})


def held(row: int) -> set[str]:
    return set(" ".join(TEXTS[row]).split())


@given(st.lists(st.sampled_from([*WORDS, "wool", "nowhere"]), min_size=1, max_size=4, unique=True))
def test_a_match_holds_every_word_that_any_item_holds_and_else_any(matching: Matching, typed: list[str]) -> None:
    found = matching.rows(" ".join(typed), None, time_ms=10_000).tolist()
    wanted = {word for word in typed if word != "nowhere"}
    every = [row for row in range(COUNT) if wanted and wanted <= held(row)]
    any_of = [row for row in range(COUNT) if wanted & held(row)]
    assert found == (every or any_of)


def test_what_may_not_be_shown_or_is_not_published_yet_is_no_match(matching: Matching) -> None:
    allowed_I = np.arange(COUNT) % 3 == 0
    found = matching.rows("red", Mask(allowed_I), time_ms=60)
    assert found.tolist() == [row for row in range(0, 61, 3) if "red" in held(row)]
    assert not len(matching.rows("red", Mask(np.zeros(COUNT, np.bool_)), time_ms=60))


def test_items_that_were_added_match_as_those_built_at_once(tmp_path: Path) -> None:
    grown = words_of(tmp_path / "grown", TEXTS[:50])
    for start in (50, 51, 53, 90):
        grown = grown.grown(list(map(joined, TEXTS[start : {50: 51, 51: 53, 53: 90, 90: COUNT}[start]])))
    built = words_of(tmp_path / "built", TEXTS)
    for typed in ("red", "blue hat", "wool shoe old"):
        for every in (True, False):
            assert grown.matches(typed, every=every).tolist() == built.matches(typed, every=every).tolist()
        one, other = grown.search(typed, 100), built.search(typed, 100)
        assert one.row_K.tolist() == other.row_K.tolist()
        assert one.score_K.tobytes() == other.score_K.tobytes()


def test_a_word_of_a_field_with_a_boost_counts_as_so_many_words(tmp_path: Path) -> None:
    fields = [["red hat", "wool"], ["hat", "red"], ["shoe", "red wool"], ["old", ""]]
    boosted = LexicalIndex.build(tmp_path / "a", list(map(joined, fields)), boosts={"title": 3, "brand": 1})
    repeated = LexicalIndex.build(tmp_path / "b", [" ".join([title] * 3 + [brand]) for title, brand in fields])
    unread = LexicalIndex.build(tmp_path / "c", list(map(joined, fields)), boosts={"title": 1, "brand": 0})
    for typed in ("red", "hat wool", "red shoe"):
        one, other = boosted.search(typed, 4), repeated.search(typed, 4)
        assert one.row_K.tolist() == other.row_K.tolist()
        assert one.score_K.tobytes() == other.score_K.tobytes()
    assert boosted.search("red", 4).row_K[0] == 0
    assert unread.search("red", 4).row_K.tolist() == [0]


@pytest.mark.parametrize("boosts", [{}, {"title": 0}, {"title": -1}, {"title": 101}, {"title": 1.5}])
def test_a_boost_is_a_small_whole_number_and_one_is_above_0(tmp_path: Path, boosts: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="boosts"):
        LexicalIndex.build(tmp_path / "a", ["a"], boosts=boosts)


@pytest.mark.parametrize("attribute", ["price", "published", "popularity"])
@pytest.mark.parametrize("descending", [False, True])
def test_an_order_is_by_value_then_row_and_items_without_a_value_are_last(
    matching: Matching, attribute: str, descending: bool
) -> None:
    items = matching.items
    row_M = np.arange(COUNT)[::-1].copy()
    found = in_order(items, row_M, Order(attribute, descending)).tolist()
    column: NDArray[np.float64] = {
        "price": np.asarray(items.attributes["price"]),
        "published": np.asarray(items.published_ms_I, float),
        "popularity": np.asarray(items.popularity_I, float),
    }[attribute]
    sign = -1 if descending else 1
    known = [row for row in range(COUNT) if not np.isnan(column[row])]
    missing = [row for row in range(COUNT) if np.isnan(column[row])]
    assert found == sorted(known, key=lambda row: (sign * column[row], row)) + missing


def test_an_order_is_an_attribute_and_a_direction(matching: Matching) -> None:
    assert order_of("price") == order_of(" price  ASC ") == Order("price")
    assert order_of("published desc") == Order("published", descending=True)
    for wrong in ("price up", "price asc desc", "a b c"):
        with pytest.raises(ValueError, match="asc or desc"):
            order_of(wrong)
    with pytest.raises(ValueError, match="one of price, published, popularity"):
        in_order(matching.items, np.arange(3), Order("brand"))


def test_values_are_counted_exactly_and_ties_are_settled_by_value(matching: Matching) -> None:
    items, row_M = matching.items, np.arange(0, COUNT, 2)
    brand_I, price_I = np.asarray(items.attributes["brand"]), np.asarray(items.attributes["price"])
    name_of = {key64(name): name for name in ("Zed", "Acme", "\u00dcber")}
    brands = Counter(name_of[key] for row in row_M if (key := int(brand_I[row])))
    by_count = sorted(brands.items(), key=lambda each: (-each[1], each[0]))
    prices = Counter(float(price_I[row]) for row in row_M)
    known = sorted(((p, n) for p, n in prices.items() if p == p), key=lambda each: (-each[1], each[0]))  # noqa: PLR0124
    for limit in (1, 2, 3, 30):
        assert value_counts(items, "brand", row_M, limit=limit) == by_count[:limit]
        assert value_counts(items, "price", row_M, limit=limit) == [(f"{p:g}", n) for p, n in known[:limit]]
    assert value_counts(items, "brand", row_M[:0], limit=3) == []
    with pytest.raises(ValueError, match="one of brand, price, published, popularity"):
        value_counts(items, "colour", row_M, limit=3)


def test_ranges_count_every_value_once(matching: Matching) -> None:
    items, row_M = matching.items, np.arange(COUNT)
    price_I = np.asarray(items.attributes["price"])
    told = range_counts(items, "price", row_M, bounds=[5, 12.5])
    assert told == [
        ("..5", int((price_I < 5).sum())),
        ("5..12.5", int(((price_I >= 5) & (price_I < 12.5)).sum())),
        ("12.5..", int((price_I >= 12.5).sum())),
    ]
    assert sum(count for _, count in told) == int((~np.isnan(price_I)).sum())
