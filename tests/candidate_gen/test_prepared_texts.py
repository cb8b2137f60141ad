from pathlib import Path

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from candidate_gen.prepared_texts import PreparedTexts
from candidate_gen.text_match import TEXT_MATCH, text_match

TITLES = ["Steel Angle Bracket 2x4", "Shelf brackets for kitchens", "", "\u00c9cran noir"]
TEXTS = st.lists(st.text("abc2 x-\u00e9", max_size=12), max_size=6)


def matched(query: str, texts: PreparedTexts) -> list[list[float]]:
    return [row_F.tolist() for row_F in text_match(query, texts, np.arange(len(texts)))]


@given(TEXTS, TEXTS, st.text("abc2 ", max_size=8), st.integers(0, 6))
def test_texts_that_follow_match_alike_however_many_come_at_once(
    first: list[str], later: list[str], query: str, cut: int
) -> None:
    prepared = PreparedTexts.of(first)
    before = matched(query, prepared)
    at_once = prepared.appended(later)
    in_parts = prepared.appended(later[:cut]).appended(later[cut:])
    assert len(at_once) == len(in_parts) == len(first) + len(later)
    assert matched(query, at_once) == matched(query, in_parts)
    assert matched(query, at_once)[: len(first)] == before, "what is there already stays as it was"
    assert matched(query, prepared) == before


@given(TEXTS.filter(any), st.text("abc2 ", max_size=8))
def test_a_text_that_follows_matches_as_its_equal_of_the_build(texts: list[str], query: str) -> None:
    rows = matched(query, PreparedTexts.of(texts).appended(texts))
    assert rows[len(texts) :] == rows[: len(texts)]


def test_words_that_nobody_had_are_found_and_weigh_as_unseen() -> None:
    grown = PreparedTexts.of(TITLES).appended(["granite basin", "granite slab"])
    for query, row in (("granite basin", 4), ("slab", 5)):
        found = dict(zip(TEXT_MATCH, matched(query, grown)[row], strict=True))
        assert found["coverage"] == found["idf_overlap"] == found["phrase"] == 1
    assert len(grown.vocabulary) == len(PreparedTexts.of(TITLES).vocabulary) + 3, "granite once"


def test_what_was_saved_is_mapped_and_matches_the_same(tmp_path: Path) -> None:
    prepared = PreparedTexts.of(TITLES)
    prepared.save(tmp_path, "title")
    mapped = PreparedTexts.load(tmp_path, "title")
    for query in ("angle bracket", "brakets 2", "ecran"):
        assert matched(query, mapped) == matched(query, prepared)
        assert matched(query, mapped.appended(["angle"])) == matched(query, prepared.appended(["angle"]))
    assert isinstance(mapped.word.base.base, np.memmap), "shared between server processes"
