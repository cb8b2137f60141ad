"""A typed query is understood by what the catalogue and the log say, as far as it is asked for, and the same again."""

import json
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from shop_cases import shop, shop_log, shop_table

from candidate_gen.query_log import QueryLog
from candidate_gen.understanding import MOST_TYPED, Step, Steps, Understanding, Understood

TABLE = shop_table()
SHOP = Understanding.of(shop(TABLE), shop_log(), TABLE, rules=["lamp, luminaire", "loveseat => sofa"])
OFF = Steps(spelling="off", synonyms="off", expansion="off", filters="off", intent="off")


def test_what_is_misspelt_is_corrected_and_what_is_typed_otherwise_stands() -> None:
    assert SHOP.understand("cieling lamp", Steps()).corrected == "ceiling lamp"
    assert SHOP.understand("cieling lamp", Steps()).text == "ceiling lamp"
    assert SHOP.understand("Ceiling  LAMP", Steps()).text == "Ceiling  LAMP"


def test_a_misspelling_that_nobody_found_anything_by_is_no_word() -> None:
    assert SHOP.understand("shwoer", Steps()).text == "shower"


def test_a_file_and_the_log_say_what_to_search_for_besides() -> None:
    assert dict(SHOP.understand("desk lamp", Steps()).searched) == {"desk luminaire": 0.8}
    assert [text for text, _ in SHOP.understand("red couch", Steps()).searched] == ["red sofa"]
    assert not SHOP.understand("desk lamp", Steps(synonyms="off")).expanded
    assert not SHOP.understand("red couch", Steps(expansion="off")).expanded


@pytest.mark.parametrize(
    ("typed", "text", "condition"),
    [
        ("towel under 50", "towel", "price < 50"),
        ("lamp between 10 and 20 dollars", "lamp", "price >= 10 AND price <= 20"),
        ("sofa up to $1,000.50", "sofa", "price <= 1000.5"),
        ("lamp over 50", "lamp over 50", ""),
        ("lamp over 50 euros", "lamp", "price > 50"),
        ("rail under 5 feet", "rail under 5 feet", ""),
        ("price under 5 rail", "rail", "price < 5"),
        ("red towel", "red towel", 'color IN ("red")'),
        ("Dark Green sofa", "Dark Green sofa", 'color IN ("dark green")'),
        ("red or blue towel", "red or blue towel", 'color IN ("red", "blue")'),
        ("towel not red", "towel not red", ""),
        ("from 5 to 9 usd", "", "price >= 5 AND price <= 9"),
        ("between 9 and 5 dollars", "between 9 and 5 dollars", ""),
    ],
)
def test_conditions_are_taken_out_of_the_words_where_they_are_plain(typed: str, text: str, condition: str) -> None:
    understood = SHOP.understand(typed, Steps(spelling="off"))
    assert (understood.text, understood.filter) == (text, condition)
    assert understood.is_filtered == bool(condition)


def test_a_word_that_is_more_than_a_value_is_no_condition() -> None:
    """The titles of two couches say blue or nothing; a blue one without the word blue changes nothing."""
    assert "blue" in SHOP.conditions.value_of
    items = shop(TABLE)
    named = Understanding.of(items, QueryLog.none(), TABLE).conditions.of(
        items, {"color": ("red", "towel")}, [["towel"] for _ in range(len(items))]
    )
    assert "towel" not in named.value_of


def test_the_category_that_people_take_is_what_a_query_means() -> None:
    understood = SHOP.understand("couch", Steps())
    assert understood.intent[0][0] == "Living"
    assert understood.intent[0][1] > 0.5
    assert [each.attribute for each in understood.meant] == ["category", "creator"]
    for each in understood.meant:
        assert each.probability_C.sum() == pytest.approx(1)


def test_the_creator_that_people_take_or_name_is_what_a_query_means() -> None:
    lamp = SHOP.understand("lamp", Steps())
    assert [name for name, _ in lamp.creators[:2]] == ["Glow", "Lumen"], "twenty took the one, ten the other"
    assert SHOP.understand("lumen lamp", Steps(spelling="off")).creators[0][0] == "Lumen"
    items = shop(TABLE)
    for each in lamp.meant:
        of_I = each.of(items, np.arange(len(items)))
        assert of_I[8] == max(each.probability_C), "the ceiling lamp, of Glow"
    assert lamp.meant[1].of(items, np.array([7, 9])).tolist() == [0, dict(lamp.creators)["Lumen"]]
    other = replace(items, attributes={})
    assert lamp.meant[1].of(other, np.arange(3)).tolist() == [0, 0, 0]
    assert SHOP.understand("lamp", OFF).creators == ()


@pytest.mark.parametrize("typed", ["cieling lamp under 50", "red couch", "towl"])
def test_what_is_off_changes_nothing_and_what_is_suggested_only_tells(typed: str) -> None:
    off = SHOP.understand(typed, OFF)
    assert off == Understood(text=typed)
    suggest: Step = "suggest"
    told = SHOP.understand(
        typed, Steps(spelling=suggest, synonyms=suggest, expansion=suggest, filters=suggest, intent=suggest)
    )
    assert told.text == typed
    assert not told.searched
    assert not told.is_filtered
    assert not told.meant
    assert told.corrected or told.expanded or told.filter


@pytest.mark.parametrize("typed", ["", "   ", "word " * (MOST_TYPED + 1)])
def test_a_query_that_says_nothing_or_too_much_is_left_alone(typed: str) -> None:
    assert SHOP.understand(typed, Steps()) == Understood(text=typed)


@given(st.text(max_size=200))
@settings(deadline=None)
def test_any_text_is_understood_somehow_and_the_same_again(typed: str) -> None:
    assert SHOP.understand(typed, Steps()) == SHOP.understand(typed, Steps())


def test_a_dropped_condition_is_told_and_its_words_are_searched_for_again() -> None:
    dropped = SHOP.without_filter("towel under 1", Steps())
    assert (dropped.text, dropped.filter, dropped.dropped_filter) == ("towel under 1", "", "price < 1")


def test_what_is_stored_understands_the_same_and_is_known_by_its_fingerprint(tmp_path: Path) -> None:
    saved = SHOP.save(tmp_path)
    stored = Understanding.load(tmp_path)
    assert stored is not None
    assert stored.fingerprint == saved.fingerprint
    for typed in ("cieling lamp under 50", "red couch", "loveseat", "towel not red"):
        one, other = SHOP.understand(typed, Steps()), stored.understand(typed, Steps())
        assert one == other
        assert [each.attribute for each in one.meant] == [each.attribute for each in other.meant]
        for ours, theirs in zip(one.meant, other.meant, strict=True):
            assert ours.probability_C.tobytes() == theirs.probability_C.tobytes()
            assert ours.key_V.tobytes() == theirs.key_V.tobytes()
    (tmp_path / "synonyms.txt").write_text("a, b\n")
    tampered = Understanding.load(tmp_path)
    assert tampered is not None
    assert tampered.fingerprint != saved.fingerprint


def test_what_knows_of_no_creators_is_refused(tmp_path: Path) -> None:
    SHOP.save(tmp_path)
    path = tmp_path / "understanding.json"
    told = json.loads(path.read_text())
    del told["creators"]
    path.write_text(json.dumps(told))
    with pytest.raises(ValueError, match="knows of no creators"):
        Understanding.load(tmp_path)


def test_a_generation_that_has_none_says_so(tmp_path: Path) -> None:
    assert Understanding.load(tmp_path) is None


def test_every_step_has_a_switch() -> None:
    assert {each.name for each in fields(Steps)} == {
        *("spelling", "synonyms", "expansion", "filters", "intent", "pin_unexpanded")
    }
