"""Synonyms as files say and as takings show; each rule of mining can be missed by a hair."""

import numpy as np
import pytest

from candidate_gen.query_log import QUERY, TAKEN, QueryLog, spelt
from candidate_gen.synonyms import mined, stated, variants


def log_of(takings: dict[str, dict[int, int]]) -> QueryLog:
    """From how many people took which item by typing what."""
    row_Q = np.zeros(len(takings), QUERY)
    row_Q["people"] = row_Q["weight"] = [max(sum(each.values()), 1) for each in takings.values()]
    taken = [(q, item, people) for q, each in enumerate(takings.values()) for item, people in each.items()]
    return QueryLog(list(takings), row_Q, np.array(taken, TAKEN))


OTHERS = {f"other{n}": {100 + n: 40} for n in range(20)}


def test_a_file_says_what_stands_for_what_one_way_and_both() -> None:
    others = stated(["sofa, Couch ,settee  # furniture", "", "# nothing", "laptop => notebook, portable computer"])
    assert [each for each, _ in others["couch"]] == ["settee", "sofa"]
    assert [each for each, _ in others["laptop"]] == ["notebook", "portable computer"]
    assert "notebook" not in others


@pytest.mark.parametrize("line", ["sofa", "a => ", " => b", "a,,b", "one two three four, five"])
def test_a_line_that_says_nothing_is_named(line: str) -> None:
    with pytest.raises(ValueError, match=r"synonyms, line 2: "):
        stated(["a, b", line])


def test_queries_that_lead_to_the_same_items_tell_of_the_words_they_differ_in() -> None:
    found = mined(log_of({"red couch": {1: 10, 2: 10}, "red sofa": {1: 9, 2: 12}, **OTHERS}))
    assert [each for each, _ in found["couch"]] == ["sofa"]
    assert [each for each, _ in found["sofa"]] == ["couch"]


def test_what_is_narrower_finds_what_is_broader_and_not_the_other_way_round() -> None:
    broad = dict.fromkeys(range(1, 11), 10)
    found = mined(log_of({"chihuahua": {1: 6, 2: 6}, "dog": broad, **OTHERS}))
    assert [each for each, _ in found["chihuahua"]] == ["dog"]
    assert "dog" not in found


@pytest.mark.parametrize(
    ("couch", "sofa", "why"),
    [
        ({1: 4}, {1: 4}, "one item"),
        ({1: 2, 2: 2}, {1: 2, 2: 2}, "four takings"),
        ({1: 3, 2: 3, 3: 7}, {1: 3, 2: 3, 4: 7}, "less than half"),
    ],
)
def test_little_evidence_is_none(couch: dict[int, int], sofa: dict[int, int], why: str) -> None:
    assert not mined(log_of({"couch": couch, "sofa": sofa, **OTHERS})), why


def test_what_everybody_takes_tells_nothing() -> None:
    everywhere = {f"query{n}": {1: 10, 2: 10} for n in range(8)}
    assert not mined(log_of({"couch": {1: 10, 2: 10}, "sofa": {1: 10, 2: 10}, **everywhere}))


def test_a_query_that_only_says_more_is_no_synonym() -> None:
    assert not mined(log_of({"couch": {1: 9, 2: 9}, "red couch": {1: 9, 2: 9}, **OTHERS}))


def test_one_phrase_at_a_time_is_replaced_best_first() -> None:
    others = stated(["couch, sofa"]) | {"red": (("crimson", 0.4),)}
    assert variants(["red", "couch"], others) == [("red sofa", 0.8), ("crimson couch", 0.4)]
    assert variants([], others) == []


def test_queries_are_counted_without_the_difference_of_case_and_blanks() -> None:
    assert spelt("  Red   COUCH ") == "red couch"
