"""Looking all the time errs no more often than was said, and what is there is found."""

import numpy as np
import pytest

from training.sequential import LEAST, NOTHING, difference, log_evidence, mean, sequence

ALPHA, PLANNED = 0.05, 4000


def ever_outside(effect: float, *, seed: int, looks: int = 40, units: int = 3000, returning: bool = True) -> bool:
    """Whether 0 is ever outside while units of two arms come in, skewed, and come back."""
    random = np.random.default_rng(seed)
    arm_U = random.random(units) < 0.3
    taste_U = random.gamma(0.5, 2.0, units)
    earned_U, seen = np.zeros(units), 0
    for look in range(looks):
        seen = units * (look + 1) // looks
        active_U = np.flatnonzero(random.random(seen) < (0.3 if returning else 0.0))
        active_U = np.union1d(active_U, np.arange(units * look // looks, seen))
        earned_U[active_U] += random.poisson(taste_U[active_U] * (1 + effect * arm_U[active_U]))
        found = difference(earned_U[:seen][~arm_U[:seen]], earned_U[:seen][arm_U[:seen]], alpha=ALPHA, planned=PLANNED)
        if found.low > 0 or found.high < 0:
            return True
    return False


@pytest.mark.parametrize("returning", [True, pytest.param(False, marks=pytest.mark.slow)])
def test_arms_that_are_the_same_are_told_apart_as_seldom_as_was_said(returning: bool) -> None:
    wrong = sum(ever_outside(0.0, seed=seed, returning=returning) for seed in range(300))
    assert wrong <= 0.05 * 300 + 2 * np.sqrt(300 * 0.05 * 0.95), wrong


def test_a_difference_that_is_there_is_found() -> None:
    assert sum(ever_outside(0.4, seed=seed) for seed in range(40)) >= 36


def test_a_fixed_interval_would_err_more_often() -> None:
    """What the sequence is for: at the same looks, +-1.96 standard errors are left by many of the same arms."""
    wrong = 0
    for seed in range(200):
        random = np.random.default_rng(seed)
        value_U = random.standard_normal(3000)
        ends = range(100, 3001, 50)
        wrong += any(abs(value_U[:end].mean()) > 1.96 * value_U[:end].std(ddof=1) / np.sqrt(end) for end in ends)
        assert mean(value_U[: LEAST - 1], alpha=ALPHA, planned=PLANNED) == NOTHING
    assert wrong > 40


def test_the_p_value_is_the_level_at_which_the_interval_ends_at_0() -> None:
    found = sequence(0.2, 0.005, 2000, ALPHA, PLANNED)
    at = sequence(0.2, 0.005, 2000, ALPHA, PLANNED)
    assert found == at
    mixed = 2000 * (-2 * np.log(ALPHA) + np.log(-2 * np.log(ALPHA)) + 1) / PLANNED
    radius = np.sqrt(0.005 * 2 * (mixed + 1) / mixed * np.log(np.sqrt(mixed + 1) / found.p))
    assert radius == pytest.approx(0.2)
    assert sequence(0.0, 0.0, 10, ALPHA, PLANNED).p == 1.0


def test_shares_as_configured_raise_no_alarm_however_often_one_looks_and_others_do() -> None:
    def alarmed(share: float, seed: int) -> bool:
        second_U = np.random.default_rng(seed).random(20_000) < share
        ends = range(500, 20_001, 500)
        return any(
            log_evidence([end - second_U[:end].sum(), second_U[:end].sum()], [1, 1]) > np.log(1000) for end in ends
        )

    assert sum(alarmed(0.5, seed) for seed in range(300)) <= 2
    assert all(alarmed(0.53, seed) for seed in range(20))
    assert log_evidence([0, 0], [1, 1]) == 0
    assert log_evidence([50, 50, 0], [1, 1, 0]) < 0
    with pytest.raises(ValueError, match="an arm without a share has none"):
        log_evidence([1, 1], [1, 0])
