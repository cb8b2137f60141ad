"""What is offered to somebody who types: what many typed, what there is, and nothing that leads nowhere."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from shop_cases import TYPED, shop, shop_log, shop_table

from candidate_gen.completions import Completions, Kind
from candidate_gen.understanding import Understanding
from index.lexical import LexicalIndex
from index.strings import key64


@pytest.fixture(scope="module")
def offered(tmp_path_factory: pytest.TempPathFactory) -> Completions:
    table = shop_table()
    items, log = shop(table), shop_log()
    lexical = LexicalIndex.build(tmp_path_factory.mktemp("shop") / "lexical", items.searchable)
    spelling = Understanding.of(items, log, table).spelling
    return Completions.of(items, log, lexical, table, is_spelt=spelling.is_right)


def everything(key_N: NDArray[np.uint64]) -> NDArray[np.bool_]:
    return key_N > 0


def texts(offered: Completions, typed: str, k: int = 20) -> list[str]:
    return [each.text for each in offered.starting(typed, k, shown=everything)]


def test_past_queries_come_by_how_many_typed_them_and_titles_after(offered: Completions) -> None:
    assert texts(offered, "towel") == ["towel", "towel rail"]
    assert texts(offered, "c")[0] == "couch"
    assert "Corner Couch blue" in texts(offered, "c")


def test_an_entry_is_offered_once_however_it_is_written(offered: Completions) -> None:
    assert texts(offered, "TOWEL  rail") == ["towel rail"], "a title too"


def test_typos_are_forgiven_from_the_fourth_letter_on(offered: Completions) -> None:
    assert "ceiling lamp" in texts(offered, "ceilng l")
    assert "ceiling lamp" in texts(offered, "cieilng la"), "two from the eighth"
    assert texts(offered, "xow") == []
    found = offered.starting("towle", 1, shown=everything)
    assert (found[0].text, found[0].edits) == ("towel", 1)
    exact = offered.starting("towel", 1, shown=everything)
    assert exact[0].score > found[0].score


def test_nothing_is_offered_that_finds_nothing_is_misspelt_or_that_one_person_typed(offered: Completions) -> None:
    assert texts(offered, "nothing of") == []
    assert "shwoer head" not in texts(offered, "shwoer")
    assert "a present for jo" not in texts(offered, "a present")


def test_what_may_not_be_shown_now_is_not_offered(offered: Completions) -> None:
    assert "Hidden Lamp" not in texts(offered, "hidden"), "it was hidden when the generation was made"

    def without_rail(key_N: NDArray[np.uint64]) -> NDArray[np.bool_]:
        return np.asarray((key_N > 0) & (key_N != np.uint64(key64("g6"))))

    assert [each.text for each in offered.starting("shower", 5, shown=without_rail)] == ["shower head"]
    left = [each.text for each in offered.starting("t", 20, shown=without_rail)]
    assert "towel" in left
    nothing = offered.starting("", 20, shown=lambda key_N: np.zeros(len(key_N), np.bool_))
    assert nothing == []


def test_a_category_is_offered_by_its_name(offered: Completions) -> None:
    assert {each.kind for each in offered.starting("living", 5, shown=everything)} == {Kind.CATEGORY}
    assert {each.kind for each in offered.starting("velvet", 5, shown=everything)} == {Kind.TITLE}


def test_without_letters_the_most_wanted_are_offered(offered: Completions) -> None:
    assert texts(offered, "", 3) == sorted(TYPED, key=lambda each: -TYPED[each][0])[:3]
    assert texts(offered, "?!", 3) == []


@given(st.text(max_size=600), st.integers(1, 50))
@settings(deadline=None, max_examples=50)
def test_any_text_has_at_most_so_many_lines(offered: Completions, typed: str, k: int) -> None:
    found = offered.starting(typed, k, shown=everything)
    assert len(found) <= k
    assert [each.score for each in found] == sorted((each.score for each in found), reverse=True)


def test_what_is_stored_offers_the_same(offered: Completions, tmp_path: Path) -> None:
    offered.save(tmp_path)
    stored = Completions.load(tmp_path)
    assert stored is not None
    assert stored.fingerprint == offered.fingerprint
    for typed in ("", "c", "towle", "shwoer h"):
        assert stored.starting(typed, 9, shown=everything) == offered.starting(typed, 9, shown=everything)
    assert Completions.load(tmp_path / "nowhere") is None
