"""What is asked for in advance changes nothing."""

import numpy as np
import pytest
from numba import njit

from index.prefetch import LINE_BYTES, prefetch


@njit
def _asked_for(array, at):  # type: ignore[no-untyped-def] # pragma: no cover - compiled
    prefetch(array, at)
    return array.sum()


@pytest.mark.parametrize("at", [0, LINE_BYTES, -(1 << 40), 1 << 40])
def test_a_place_inside_or_outside_an_array_can_be_asked_for(at: int) -> None:
    array = np.arange(24, dtype=np.int64).reshape(4, 6)
    assert _asked_for(array, np.int64(at)) == 276
    assert (array == np.arange(24).reshape(4, 6)).all()
