"""A mask's forms against each other. Shape letters: I rows, A allowed rows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from index.masks import Mask


@given(st.lists(st.booleans(), max_size=70), st.integers(0, 80))
def test_every_form_tells_of_the_same_rows(allowed: list[bool], head: int) -> None:
    allowed_I = np.array(allowed, np.bool_)
    mask = Mask(allowed_I)
    assert len(mask) == len(allowed)
    assert mask.count == sum(allowed) == len(mask.row_A)
    np.testing.assert_array_equal(mask.row_A, [row for row, each in enumerate(allowed) if each])
    bits = np.unpackbits(mask.bits, bitorder="little")
    np.testing.assert_array_equal(bits[: len(allowed)], allowed_I)
    assert not bits[len(allowed) :].any()
    np.testing.assert_array_equal(mask.head(head).allowed_I, allowed_I[:head])


@given(st.lists(st.tuples(st.booleans(), st.booleans())))
def test_both_must_allow(pairs: list[tuple[bool, bool]]) -> None:
    a_I, b_I = (np.array([pair[side] for pair in pairs], np.bool_) for side in (0, 1))
    assert (Mask(a_I) & Mask(b_I)).allowed_I.tolist() == [a and b for a, b in pairs]


def test_forms_and_heads_are_made_once() -> None:
    mask = Mask(np.arange(100) % 3 == 0)
    assert mask.row_A is mask.row_A
    assert mask.bits is mask.bits
    assert mask.head(50) is mask.head(50)
    assert mask.head(100) is mask


def test_what_is_no_column_of_booleans_is_refused() -> None:
    with pytest.raises(ValueError, match=r"not int64 \(3,\)"):
        Mask(np.zeros(3, np.int64))
    with pytest.raises(ValueError, match=r"not bool \(2, 2\)"):
        Mask(np.zeros((2, 2), np.bool_))
