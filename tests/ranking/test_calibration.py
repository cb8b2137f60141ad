"""Calibration curves: they recover a known distortion, never fall and always give a probability."""

from collections.abc import Callable
from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ranking.calibration import KINDS, Calibration, CurveKind, Identity, Isotonic, Platt, Temperature, choose, fit
from ranking.metrics import ece

_LOGITS = arrays(np.float32, st.integers(0, 60), elements=st.floats(-50, 50, width=32))


def _sigmoid(value_N: np.ndarray) -> np.ndarray:
    return np.asarray(1 / (1 + np.exp(-value_N)))


def _world(*, seed: int = 0, count: int = 60_000) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Overconfident logits, true P(label | examined) = sigmoid(0.5 z - 1), and examination."""
    random = np.random.default_rng(seed)
    logit_N = random.normal(0, 2, count)
    examination_N = 1 / (1 + 0.3 * random.integers(10, size=count))
    label_N = random.random(count) < examination_N * _sigmoid(0.5 * logit_N - 1)
    return logit_N, label_N, examination_N


def test_platt_recovers_slope_and_intercept_under_examination() -> None:
    logit_N, label_N, examination_N = _world()
    curve = fit("platt", logit_N, label_N, examination_N=examination_N)
    assert isinstance(curve, Platt)
    assert curve.slope == pytest.approx(0.5, abs=0.03)
    assert curve.intercept == pytest.approx(-1, abs=0.05)
    blind = fit("platt", logit_N, label_N)
    assert isinstance(blind, Platt)
    assert blind.intercept < -1.3, "without the examination factor position bias leaks into the curve"


def test_temperature_recovers_a_slope_and_adds_nothing() -> None:
    random = np.random.default_rng(0)
    logit_N = random.normal(0, 2, 60_000)
    curve = fit("temperature", logit_N, random.random(60_000) < _sigmoid(0.5 * logit_N))
    assert isinstance(curve, Temperature)
    assert curve.slope == pytest.approx(0.5, abs=0.02)
    assert curve.probability(np.zeros(1)) == [0.5]


@pytest.mark.parametrize("kind", ["temperature", "platt"])
def test_a_line_is_where_the_penalised_likelihood_has_no_slope(kind: CurveKind) -> None:
    logit_N, label_N, examination_N = _world(count=400)
    curve = fit(kind, logit_N, label_N, examination_N=examination_N)
    assert isinstance(curve, Temperature | Platt)

    def loss(slope: float, intercept: float) -> float:
        p_N = examination_N * _sigmoid(slope * logit_N + intercept)
        likelihood = np.where(label_N, np.log(p_N), np.log(1 - p_N)).sum()
        return float(-likelihood + 0.5 * (slope - 1) ** 2 + 0.5 * intercept**2)

    at = (curve.slope, curve.intercept if isinstance(curve, Platt) else 0.0)
    moves = [(1e-3, 0.0), (-1e-3, 0.0)] + ([(0.0, 1e-3), (0.0, -1e-3)] if isinstance(curve, Platt) else [])
    for move in moves:
        assert loss(at[0] + move[0], at[1] + move[1]) > loss(*at)


def test_isotonic_without_examination_is_the_least_squares_fit_that_never_falls() -> None:
    curve = fit("isotonic", np.arange(6.0), np.array([0, 1, 0, 0, 1, 1]))
    assert isinstance(curve, Isotonic)
    np.testing.assert_allclose(curve.logit_B, [0, 2, 4.5])
    np.testing.assert_allclose(curve.probability_B, [1e-6, 1 / 3, 1 - 1e-6])


def _bent(logit_N: np.ndarray) -> np.ndarray:
    """A truth that no line says."""
    return np.where(logit_N < 0, 0.05, 0.4)


@pytest.mark.parametrize(
    ("truth", "kind"),
    [
        (_sigmoid, "identity"),
        (lambda logit_N: _sigmoid(0.4 * logit_N), "temperature"),
        (lambda logit_N: _sigmoid(0.5 * logit_N - 1), "platt"),
        (_bent, "isotonic"),
    ],
)
@pytest.mark.parametrize("seed", range(3))
def test_the_simplest_kind_that_says_what_there_is_to_say_is_chosen(
    truth: Callable[[np.ndarray], np.ndarray], kind: CurveKind, seed: int
) -> None:
    random = np.random.default_rng(seed)
    logit_N, examination_N = random.normal(0, 2, 20_000), 1 / (1 + 0.3 * random.integers(10, size=20_000))
    label_N = random.random(20_000) < examination_N * truth(logit_N)
    groups = np.arange(20_000) // 10
    assert choose(logit_N, label_N, group_N=groups, examination_N=examination_N) == kind


def test_a_curve_is_judged_by_groups_that_it_was_not_fitted_on() -> None:
    """Two groups whose slopes differ: what one of them teaches does not hold for the other."""
    random = np.random.default_rng(1)
    logit_N, group_N = random.normal(0, 2, 4000), np.repeat([7, 9], 2000)
    label_N = random.random(4000) < _sigmoid(np.where(group_N == 7, 0.1, 1.0) * logit_N)
    assert choose(logit_N, label_N) == "temperature"
    assert choose(logit_N, label_N, group_N=group_N) == "identity"


def test_each_action_gets_the_kind_that_suits_it_unless_one_is_asked_for() -> None:
    random = np.random.default_rng(5)
    logit_NA = random.normal(0, 2, (20_000, 2))
    label_NA = random.random((20_000, 2)) < np.stack([_sigmoid(logit_NA[:, 0]), _bent(logit_NA[:, 1])], 1)
    assert Calibration.fit(("a", "b"), logit_NA, label_NA).kinds == ("identity", "isotonic")
    for kind in KINDS:
        assert Calibration.fit(("a", "b"), logit_NA, label_NA, kind=kind).kinds == (kind, kind)


@pytest.mark.parametrize("kind", ["platt", "isotonic", "auto"])
def test_calibrated_probabilities_mean_what_they_say_on_fresh_rows(kind: CurveKind | Literal["auto"]) -> None:
    logit_N, label_N, examination_N = _world()
    calibration = Calibration.fit(
        ("click",), logit_N[:, None], label_N[:, None], examination_N=examination_N, kind=kind
    )
    logit_N, label_N, examination_N = _world(seed=1)
    raw_N = Calibration.identity(("click",)).apply(logit_N[:, None])[:, 0]
    calibrated_N = calibration.apply(logit_N[:, None])[:, 0]
    assert ece(label_N, examination_N * raw_N) > 0.1
    assert ece(label_N, examination_N * calibrated_N) < 0.01


@given(_LOGITS, st.data(), st.sampled_from(["auto", *KINDS]))
def test_whatever_it_is_fitted_on_a_curve_is_finite_rising_and_inside_0_and_1(
    logit_N: np.ndarray, data: st.DataObject, kind: CurveKind | Literal["auto"]
) -> None:
    label_N = data.draw(arrays(np.bool_, len(logit_N)))
    examination_N = data.draw(arrays(np.float64, len(logit_N), elements=st.floats(1e-3, 1)))
    calibration = Calibration.fit(("a",), logit_N[:, None], label_N[:, None], examination_N=examination_N, kind=kind)
    asked_N = np.sort(np.concatenate([logit_N, [-np.inf, -1e30, -3, 0, 3, 1e30, np.inf]]))
    probability_N = calibration.apply(asked_N[:, None])[:, 0]
    assert ((probability_N > 0) & (probability_N < 1)).all()
    assert (np.diff(probability_N) >= 0).all()


def test_lines_through_nothing_are_the_identity_and_a_backward_ranker_is_not_turned_round() -> None:
    nothing = np.empty(0)
    assert fit("platt", nothing, nothing) == Platt(1.0, 0.0)
    assert fit("temperature", nothing, nothing) == Temperature(1.0)
    assert choose(nothing, nothing) == "identity"
    for kind in ("temperature", "platt"):
        backward = fit(kind, np.repeat([-2.0, 2.0], 500), np.repeat([1, 0], 500))
        assert isinstance(backward, Temperature | Platt)
        assert backward.slope == pytest.approx(0.01)


def test_calibration_survives_json() -> None:
    logit_N, label_N, _ = _world(count=500)
    calibration = Calibration(KINDS, tuple(fit(kind, logit_N, label_N) for kind in KINDS))
    again = Calibration.from_json(calibration.to_json())
    assert again == calibration
    assert again.kinds == KINDS
    assert again.to_json() == calibration.to_json()
    assert Calibration.identity(("a",)).curves == (Identity(),)


def test_nan_logits_are_refused_when_fitting_and_when_serving() -> None:
    with pytest.raises(ValueError, match="1 of 2 logits are NaN"):
        Calibration.identity(("a",)).apply(np.array([[0.0], [np.nan]]))
    with pytest.raises(ValueError, match="1 of 2 logits are not finite"):
        fit("platt", np.array([0.0, np.inf]), np.zeros(2))
    with pytest.raises(ValueError, match=r"examination must lie in \(0, 1\], got 0 to 1"):
        fit("platt", np.zeros(2), np.zeros(2), examination_N=np.array([0.0, 1.0]))
    with pytest.raises(ValueError, match="one of identity, temperature, platt, isotonic, got 'beta'"):
        Calibration.from_json('{"actions": ["a"], "curves": [{"kind": "beta"}]}')
