import math
import zlib
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from candidate_gen.prepared_texts import PreparedTexts, match_words
from candidate_gen.text_match import TEXT_MATCH, text_match

TITLES = (
    "Simpson Strong-Tie 12-Gauge Angle",
    "Steel Angle Bracket 2x4 in Black",
    "Shelf Brackets for Kitchens",
    "Deck Screws",
    "",
    "angle angle bracket",
)
STATS = PreparedTexts.of(TITLES)


def matched(query: str, title: str, stats: PreparedTexts = STATS, titles: tuple[str, ...] = TITLES) -> dict[str, float]:
    row = np.array([titles.index(title)])
    return dict(zip(TEXT_MATCH, text_match(query, stats, row)[0].tolist(), strict=True))


def idf(word: str) -> float:
    frequency = sum(word in match_words(title) for title in TITLES)
    return math.log1p((len(TITLES) - frequency + 0.5) / (frequency + 0.5))


def trigrams(text: str) -> Counter[int]:
    """Buckets of the trigrams of every word, each once a word."""
    marked = [f"^{word}$" for word in match_words(text)]
    found = [{word[at : at + 3] for at in range(len(word) - 2)} for word in marked]
    return Counter(zlib.crc32(gram.encode()) % 8191 for grams in found for gram in grams)


def test_digits_and_letters_come_apart() -> None:
    assert match_words("36in. Écran 2x4") == ["36", "in", "ecran", "2", "x", "4"]


def test_a_title_matches_itself_in_every_way() -> None:
    found = matched(TITLES[0], TITLES[0])
    assert found.pop("bm25") > 0
    assert found == pytest.approx(dict.fromkeys(found, 1.0))


def test_a_title_matches_nothing_that_it_does_not_hold() -> None:
    found = matched("zzzz", TITLES[3])
    assert found.pop("length_ratio") == 0.5
    assert found.pop("numbers") == 1
    assert set(found.values()) == {0.0}


def test_bm25_is_the_textbook_sum() -> None:
    lengths = [len(match_words(title)) for title in TITLES]
    expected = 0.0
    for word, times in (("angle", 2), ("bracket", 1)):
        weight = 1.2 * (0.25 + 0.75 * 3 / (sum(lengths) / len(lengths)))
        expected += idf(word) * times * 2.2 / (times + weight)
    assert matched("angle zinc bracket", TITLES[5])["bm25"] == pytest.approx(expected, rel=1e-5)


def test_overlap_weighs_words_by_how_rare_they_are() -> None:
    found = matched("steel angle zinc", TITLES[1])
    typed = idf("steel") + idf("angle") + idf("zinc")
    assert found["coverage"] == pytest.approx(2 / 3)
    assert found["idf_overlap"] == pytest.approx((idf("steel") + idf("angle")) / typed, rel=1e-5)
    title = sum(idf(word) for word in match_words(TITLES[1]))
    assert found["title_overlap"] == pytest.approx((idf("steel") + idf("angle")) / title, rel=1e-5)


@pytest.mark.parametrize(
    ("query", "phrase", "bigrams"),
    [
        ("angle bracket", 1, 1),
        ("bracket angle", 0, 0),
        ("steel bracket", 0, 0),
        ("steel angle bracket", 1, 1),
        ("steel angle black", 0, 0.5),
        ("bracket", 1, 0),
        ("steel angle bracket 2x4 in black and white", 0, 7 / 9),
    ],
)
def test_neighbours_must_be_neighbours_in_order(query: str, phrase: float, bigrams: float) -> None:
    found = matched(query, TITLES[1])
    assert (found["phrase"], found["bigrams"]) == pytest.approx((phrase, bigrams))


def test_plurals_and_half_typed_words_match_by_prefix_and_numbers_do_not() -> None:
    assert matched("bracket", TITLES[2])["prefix"] == 1
    assert matched("brackets", TITLES[1])["prefix"] == 1
    assert matched("kitch", TITLES[2])["last_word"] == 1
    assert matched("br", TITLES[1])["prefix"] == 0
    assert matched("120", TITLES[0])["prefix"] == 0


def test_misspelt_words_are_near_by_their_trigrams() -> None:
    # ^br bra rac ack cke ket et$ against ^br bra rak ake ket et$
    shared, sizes = 4, 7 + 6
    assert matched("braket", TITLES[1])["fuzzy"] == pytest.approx(2 * shared / sizes)
    assert matched("braket", TITLES[3])["fuzzy"] < 0.2


def test_numbers_are_matched_apart_from_words() -> None:
    assert matched("black 2 x 6", TITLES[1])["numbers"] == pytest.approx(1 / 2)
    assert matched("black", TITLES[0])["numbers"] == 1


def test_the_head_of_a_title_stands_before_its_first_preposition() -> None:
    assert matched("brackets", TITLES[2])["head"] == 1
    assert matched("kitchens", TITLES[2])["head"] < 0.3
    assert matched("kitchens", TITLES[2])["last_position"] == 1
    assert matched("shelf", TITLES[2])["last_position"] == pytest.approx(1 / 4)


@given(st.sampled_from([title for title in TITLES if title]), st.text("abcdeknst 24", max_size=16))
def test_trigram_cosine_is_that_of_the_counts(title: str, query: str) -> None:
    typed, held = trigrams(query), trigrams(title)
    if not typed:
        return
    norms = math.sqrt(sum(n**2 for n in typed.values()) * sum(n**2 for n in held.values()))
    expected = sum(typed[gram] * held[gram] for gram in typed) / norms
    assert matched(query, title)["trigram_cosine"] == pytest.approx(expected, abs=1e-5)


@given(st.text(max_size=200), st.lists(st.sampled_from(range(len(TITLES))), max_size=8))
def test_any_text_gives_finite_features_and_no_title_depends_on_the_others(query: str, rows: list[int]) -> None:
    row_N = np.array(rows, np.int64)
    match_NF = text_match(query, STATS, row_N)
    assert match_NF.shape == (len(rows), len(TEXT_MATCH))
    assert match_NF.dtype == np.float32
    assert np.isfinite(match_NF).all()
    assert (match_NF >= 0).all()
    assert (match_NF[:, 1:] <= 1 + 1e-5).all()
    for row, match_F in zip(row_N, match_NF, strict=True):
        np.testing.assert_allclose(match_F, text_match(query, STATS, row[None])[0], atol=1e-5)


@pytest.mark.parametrize("query", ["", "  ", "!?", "\ud800", "\x00"])
def test_a_query_without_words_gets_zeros(query: str) -> None:
    assert not text_match(query, STATS, np.arange(len(TITLES))).any()


def test_a_title_without_words_gets_zeros_beside_others() -> None:
    both_NF = text_match("angle", STATS, np.array([4, 5]))
    assert not both_NF[0].any()
    assert both_NF[1].any()


def test_endless_words_and_texts_are_cut() -> None:
    long_N: NDArray[np.int64] = np.arange(len(TITLES))
    assert np.isfinite(text_match("x" * 10_000 + " " + "angle " * 10_000, STATS, long_N)).all()
    long = PreparedTexts.of(["word " * 1000, "y" * 1000])
    assert np.asarray(long.offset_I1).tolist() == [0, 64, 65]


def test_an_empty_catalogue_has_no_matches() -> None:
    assert text_match("angle", PreparedTexts.of([]), np.empty(0, np.int64)).shape == (0, len(TEXT_MATCH))
