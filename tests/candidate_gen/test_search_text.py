import pytest
from hypothesis import given
from hypothesis import strategies as st

from candidate_gen.search_text import SearchText
from candidate_gen.spelling import Spelling
from candidate_gen.text import words
from index.measures import measured

TITLES = [
    "Drywall Screw 2-1/2 in.",
    "Ceiling Fan with Light",
    "Ceiling Paint",
    "Shower Head",
    "Shower Rod",
    "Fan Blade",
]
TITLES += ["Light Head", "Trash Can", "Drywall Tape", "Can Opener", "Chandelier, 5-Light", "Chandelier Shade"]


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("3' rug", "3 feet rug"),
        ('36" vanity', "36-in. vanity"),
        ("2 1/2 in. screw", "2.5 inch screw"),
        ("12,000 btu", "12000 btu"),
        ("2x4", "2 in X 4".replace(" in", "")),
        ("100w bulb", "100 Watts bulb"),
        ("20 lb. bag", "20 pounds bag"),
        ("1000 sq. ft.", "1000 square feet"),
        ("painter&#39;s tape", "painter's tape"),
    ],
)
def test_what_is_measured_alike_is_written_alike(one: str, other: str) -> None:
    assert words(measured(one)) == words(measured(other))


def test_units_are_units_behind_numbers_alone() -> None:
    assert measured("lamps in white") == "lamps in white"
    assert words(measured("1/3 hp")) == ["1of3", "hp"]


@given(st.text(max_size=60))
def test_any_text_can_be_measured_and_repaired(text: str) -> None:
    prepared = SearchText.of(TITLES)
    assert isinstance(prepared.of_query(text), str)
    assert isinstance(prepared.of_item(text), str)


@pytest.mark.parametrize(
    "text", ["9" * 10_000, "1/" + "9" * 6_000, "1," * 5_000, "1 " * 5_000, "2" + "a " * 5_000, "." * 9_000]
)
def test_hostile_numbers_are_read_without_an_error(text: str) -> None:
    assert isinstance(measured(text), str)


@pytest.mark.parametrize(
    ("typed", "right"),
    [
        ("cieling fan", "ceiling fan"),
        ("chandalier", "chandelier"),
        ("dry wall", "drywall"),
        ("showerhead", "shower head"),
        ("fan 36xq", "fan 36 xq"),
        ("zzzz", "zzzz"),
    ],
)
def test_words_that_no_title_has_are_written_as_titles_write_them(typed: str, right: str) -> None:
    assert SearchText.of(TITLES).of_query(typed) == right


def test_words_that_a_title_has_stand() -> None:
    spelling = Spelling.of([["blade"], ["blades"], ["blades"]])
    assert spelling.repaired("blade blades") == "blade blades"


def test_function_words_leave_prose_and_stay_in_titles() -> None:
    prose = SearchText.of(["the theory of the waves in a plasma is given", "a note on the use of the valves"])
    assert prose.of_item("the waves of a can") == "waves"
    assert prose.of_query("the") == "the"
    assert SearchText.of(TITLES).of_query("trash can") == "trash can"
