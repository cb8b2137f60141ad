"""Words of scripts without blanks: found, and found the same however often one looks."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from index.lexical import LexicalIndex
from index.measures import measured
from index.segments import segmented


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("\u6771\u4eac\u90fd\u306e\u5b89\u3044\u30db\u30c6\u30eb", "\u30db\u30c6\u30eb"),
        ("\u0e1c\u0e49\u0e32\u0e02\u0e19\u0e2b\u0e19\u0e39\u0e2a\u0e35\u0e41\u0e14\u0e07", "\u0e41\u0e14\u0e07"),
        ("\u7ea2\u8272\u8fde\u8863\u88d9", "\u7ea2\u8272"),
    ],
)
def test_a_word_inside_a_phrase_without_blanks_is_found(
    text: str, word: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    assert word in segmented(text).split()
    index = LexicalIndex.build(tmp_path_factory.mktemp("segments") / "lexical", ["lamp", text])
    assert index.search(word, 5).row_K.tolist() == [1]


def test_text_with_blanks_is_left_alone() -> None:
    for text in (
        "red towel",
        "R\u00e9sum\u00e9",
        "\u041a\u0440\u0430\u0441\u043d\u044b\u0439 \u0441\u0442\u043e\u043b",
    ):
        assert segmented(text) == text


@given(st.text(max_size=40))
@example("A0V")
@example("A.0")
@example("0V.0L")
@example("0'X.0")
@example("0/1")
def test_preparing_a_text_twice_is_like_once(text: str) -> None:
    once = segmented(text)
    assert segmented(once).split() == once.split()
    assert measured(measured(text)).split() == measured(text).split()


def test_numbers_with_units_are_found_however_they_are_written(tmp_path_factory: pytest.TempPathFactory) -> None:
    titles = ["Vanity 36-in. White", "Ladder 3 ft.", "Vanity 24 in."]
    index = LexicalIndex.build(tmp_path_factory.mktemp("units") / "lexical", titles)
    for typed in ("36in vanity", "36 inch vanity", 'vanity 36"'):
        assert index.search(typed, 1).row_K.tolist() == [0]
    assert index.search("3' ladder", 1).row_K.tolist() == [1]
