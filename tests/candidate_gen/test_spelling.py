"""What is known stands; what is not is written as most write it."""

from pathlib import Path
from string import ascii_lowercase

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from candidate_gen.spelling import Spelling

WORDS = ["ceiling", "fan", "chandelier", "towel", "shower", "head", "dishwasher", "white", "while"]
TEXTS = [[word] for word in WORDS for _ in range(3)] + [["white"]] * 5
SPELLING = Spelling.of(TEXTS)


@pytest.mark.parametrize(
    ("typed", "right"),
    [
        ("Cieling FAN", "ceiling FAN"),
        ("whitte towel, 2.5 gal", "white towel, 2.5 gal"),
        ("showerhead", "shower head"),
        ("dish washer", "dishwasher"),
        ("chandalier", "chandelier"),
        ("ceiling  fan", "ceiling  fan"),
        ("36xq-7 zzzz", "36xq-7 zzzz"),
        ("\u6771\u4eac\u90fd\u306e", "\u6771\u4eac\u90fd\u306e"),
        ("", ""),
    ],
)
def test_only_the_words_that_nobody_knows_change(typed: str, right: str) -> None:
    assert SPELLING.corrected(typed) == right


@given(st.lists(st.sampled_from(WORDS), min_size=1, max_size=4))
def test_what_is_known_is_never_corrected(typed: list[str]) -> None:
    assert SPELLING.is_right(" ".join(typed))


def test_a_word_of_the_log_is_known_and_corrected_to() -> None:
    taught = Spelling.of(TEXTS, typed={"cieling": 5, "gazebo": 4})
    assert taught.is_right("cieling gazebo")
    assert taught.corrected("gazbo") == "gazebo"
    assert not SPELLING.is_right("cieling")


def test_of_equally_near_words_the_most_frequent_is_meant() -> None:
    assert SPELLING.corrected("whise") == "white"


@given(st.sampled_from(WORDS), st.integers(1, 20), st.sampled_from(ascii_lowercase))
def test_one_replaced_letter_is_found_by_brute_force_or_not_at_all(word: str, at: int, letter: str) -> None:
    typed = word[:at] + letter + word[at + 1 :] if at < len(word) else word
    if len(typed) >= 5 and typed not in SPELLING.count_of:
        assert SPELLING.corrected(typed) in (*WORDS, typed)
        assert SPELLING.corrected(typed) != typed


@given(st.text(max_size=60))
def test_any_text_can_be_corrected(text: str) -> None:
    assert isinstance(SPELLING.corrected(text), str)


def test_what_is_stored_corrects_the_same(tmp_path: Path) -> None:
    SPELLING.save(tmp_path)
    stored = Spelling.load(tmp_path)
    for typed in ("cieling fan", "chandalier", "dish washer"):
        assert stored.corrected(typed) == SPELLING.corrected(typed)


def test_most_single_typos_are_undone() -> None:
    rng = np.random.default_rng(0)
    letters = list(ascii_lowercase)
    vocabulary = sorted({"".join(rng.choice(letters, rng.integers(6, 12))) for _ in range(2000)})
    spelling = Spelling.of([[word] for word in vocabulary for _ in range(2)])
    right = 0
    for word in vocabulary[:300]:
        at = int(rng.integers(1, len(word) - 1))
        typo = [word[:at] + word[at + 1 :], word[:at] + word[at + 1] + word[at] + word[at + 2 :]][int(rng.integers(2))]
        right += spelling.corrected(typo) == word
    assert right >= 290
