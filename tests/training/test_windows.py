"""Sums over windows against sums over lists."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from training.examples.windows import Windows, coded

ROWS = st.lists(
    st.tuples(st.integers(0, 3), st.integers(0, 30), st.sampled_from([0.0, 1.0, 2.5])), min_size=1, max_size=40
)


def columns(rows: list[tuple[int, int, float]]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    key, time, value = (np.array(each) for each in zip(*rows, strict=True))
    return key, time + 1_650_000_000_000, value


@given(ROWS, st.sampled_from([None, 0, 1, 5, 100]))
def test_a_sum_is_that_of_the_keys_strictly_earlier_events_in_the_window(
    rows: list[tuple[int, int, float]], window: int | None
) -> None:
    key, time, value = columns(rows)
    (found,) = Windows.of(time, key).sums(value, window_ms=window)
    for row, (own, now, _) in enumerate(rows):
        since = 0 if window is None else now - window
        assert found[row] == pytest.approx(sum(v for k, t, v in rows if k == own and since <= t < now))


@given(ROWS, st.integers(0, 30))
def test_an_event_planted_at_a_moment_changes_nothing_up_to_that_moment(
    rows: list[tuple[int, int, float]], moment: int
) -> None:
    rows = [(0, 0, 1.0), *rows]  # the clock of both logs starts at the same event
    before, after = (
        Windows.of(time, key).effect((value > 1) * 1.0, np.full(len(key), 0.3), strength=4)
        for key, time, value in map(columns, (rows, [*rows, *((key, moment, 2.5) for key in range(4))]))
    )
    unmoved = [row for row, (_, time, _) in enumerate(rows) if time <= moment]
    np.testing.assert_array_equal(before[unmoved], after[unmoved])


def test_an_effect_is_one_newton_step_towards_the_keys_own_odds() -> None:
    time, label = np.arange(5), np.array([1.0, 1.0, 0.0, 1.0, 0.0])
    expected = np.array([0.5, 0.25, 0.5, 0.5, 0.5])
    effect = Windows.of(time).effect(label, expected, strength=8)
    # Before row 3: residuals .5 + .75 - .5, information .25 + .1875 + .25, prior 8 / 4.
    assert effect[3] == pytest.approx(0.75 / (0.6875 + 2))
    assert effect[0] == 0


def test_a_rate_starts_at_its_prior_and_moves_with_the_events() -> None:
    rate = Windows.of(np.arange(3), np.array([7, 7, 7])).rate(np.array([1.0, 1.0, 0.0]), 0.2, strength=5)
    assert rate == pytest.approx([0.2, (1 + 1) / 6, (2 + 1) / 7])


def test_a_key_may_be_a_combination_of_columns() -> None:
    code = coded(np.array([1, 1, 2, 2]), np.array(["a", "b", "a", "b"]))
    assert sorted(code) == [0, 1, 2, 3]
    (seen,) = Windows.of(np.array([0, 1, 2]), np.array([1, 1, 1]), np.array([5, 6, 5])).sums(np.ones(3))
    assert seen.tolist() == [0, 0, 1]


def test_keys_and_times_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"times 4 keys it must be below 2\^63"):
        Windows.of(np.array([0, 1 << 61, 2, 3]), np.arange(4))


def test_values_that_cannot_be_summed_exactly_are_refused() -> None:
    for value in (np.array([np.nan, 1.0]), np.array([2.0**31, 0.0])):
        with pytest.raises(ValueError, match=r"they must be finite and sum to at most 2\^30"):
            Windows.of(np.arange(2)).sums(value)
