"""Prefixes against their definition: every text's nearest beginning, by brute force."""

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from rapidfuzz.distance import OSA

from index.prefixes import LETTERS, PrefixIndex


def worths(count: int) -> np.ndarray:
    return np.linspace(0.1, 1, max(count, 1))[:count].astype(np.float32)


@given(
    st.lists(st.text("abc", max_size=6), max_size=12), st.text("abc", max_size=5), st.integers(0, 2), st.integers(0, 8)
)
@settings(deadline=None)
def test_the_best_texts_whose_beginning_is_near_are_found(texts: list[str], prefix: str, edits: int, k: int) -> None:
    worth = worths(len(texts))
    row_K, edit_K, score_K = PrefixIndex.of(texts, worth).starting(prefix, k, edits=edits)
    nearest = [min(OSA.distance(prefix, text[:n]) for n in range(len(text) + 1)) for text in texts]
    wanted = {row: far for row, far in enumerate(nearest) if far <= edits}
    assert len(row_K) == min(k, len(wanted))
    assert edit_K.tolist() == [wanted[row] for row in row_K.tolist()]
    best = sorted((worth[row] * 0.5**far for row, far in wanted.items()), reverse=True)[:k]
    np.testing.assert_allclose(score_K, best, rtol=1e-6)


def test_letters_beyond_those_that_are_looked_at_do_not_count() -> None:
    index = PrefixIndex.of(["x" * LETTERS + "a", "y"], worths(2))
    assert index.starting("x" * LETTERS + "b", 5)[0].tolist() == [0]


def test_what_is_stored_answers_the_same(tmp_path: Path) -> None:
    index = PrefixIndex.of(["hammer", "hamster", "\U0001f600 lamp"], worths(3))
    index.save(tmp_path)
    stored = PrefixIndex.load(tmp_path)
    for prefix, edits in (("ham", 0), ("hamer", 1), ("\U0001f600", 0), ("", 0)):
        one, other = index.starting(prefix, 3, edits=edits), stored.starting(prefix, 3, edits=edits)
        assert [column.tobytes() for column in one] == [column.tobytes() for column in other]
