"""Calibration curves: they recover a known distortion, never fall and always give a probability."""

from typing import Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from ranking.calibration import Calibration, Isotonic, Platt, fit_isotonic, fit_platt
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
    curve = fit_platt(logit_N, label_N, examination_N=examination_N)
    assert curve.slope == pytest.approx(0.5, abs=0.03)
    assert curve.intercept == pytest.approx(-1, abs=0.05)
    blind = fit_platt(logit_N, label_N)
    assert blind.intercept < -1.3, "without the examination factor position bias leaks into the curve"


def test_platt_is_where_the_penalised_likelihood_has_no_slope() -> None:
    logit_N, label_N, examination_N = _world(count=400)
    curve = fit_platt(logit_N, label_N, examination_N=examination_N)

    def loss(slope: float, intercept: float) -> float:
        p_N = examination_N * _sigmoid(slope * logit_N + intercept)
        likelihood = np.where(label_N, np.log(p_N), np.log(1 - p_N)).sum()
        return float(-likelihood + 0.5 * (slope - 1) ** 2 + 0.5 * intercept**2)

    here = loss(curve.slope, curve.intercept)
    for move in ((1e-3, 0), (-1e-3, 0), (0, 1e-3), (0, -1e-3)):
        assert loss(curve.slope + move[0], curve.intercept + move[1]) > here


def test_isotonic_without_examination_is_the_least_squares_fit_that_never_falls() -> None:
    curve = fit_isotonic(np.arange(6.0), np.array([0, 1, 0, 0, 1, 1]))
    np.testing.assert_allclose(curve.logit_B, [0, 2, 4.5])
    np.testing.assert_allclose(curve.probability_B, [1e-6, 1 / 3, 1 - 1e-6])


@pytest.mark.parametrize("kind", ["platt", "isotonic"])
def test_calibrated_probabilities_mean_what_they_say_on_fresh_rows(kind: Literal["platt", "isotonic"]) -> None:
    logit_N, label_N, examination_N = _world()
    calibration = Calibration.fit(
        ("click",), logit_N[:, None], label_N[:, None], examination_N=examination_N, kind=kind
    )
    logit_N, label_N, examination_N = _world(seed=1)
    raw_N = Calibration.identity(("click",)).apply(logit_N[:, None])[:, 0]
    calibrated_N = calibration.apply(logit_N[:, None])[:, 0]
    assert ece(label_N, examination_N * raw_N) > 0.1
    assert ece(label_N, examination_N * calibrated_N) < 0.01


@given(_LOGITS, st.data(), st.sampled_from(["platt", "isotonic"]))
def test_whatever_it_is_fitted_on_a_curve_is_finite_rising_and_inside_0_and_1(
    logit_N: np.ndarray, data: st.DataObject, kind: Literal["platt", "isotonic"]
) -> None:
    label_N = data.draw(arrays(np.bool_, len(logit_N)))
    examination_N = data.draw(arrays(np.float64, len(logit_N), elements=st.floats(1e-3, 1)))
    calibration = Calibration.fit(("a",), logit_N[:, None], label_N[:, None], examination_N=examination_N, kind=kind)
    asked_N = np.sort(np.concatenate([logit_N, [-np.inf, -1e30, -3, 0, 3, 1e30, np.inf]]))
    probability_N = calibration.apply(asked_N[:, None])[:, 0]
    assert ((probability_N > 0) & (probability_N < 1)).all()
    assert (np.diff(probability_N) >= 0).all()


def test_platt_of_nothing_is_the_identity_and_a_backward_ranker_is_not_turned_round() -> None:
    assert fit_platt(np.empty(0), np.empty(0)) == Platt(1.0, 0.0)
    backward = fit_platt(np.repeat([-2.0, 2.0], 500), np.repeat([1, 0], 500))
    assert backward.slope == pytest.approx(0.01)


def test_calibration_survives_json() -> None:
    logit_N, label_N, _ = _world(count=500)
    calibration = Calibration(("click", "like"), (fit_platt(logit_N, label_N), fit_isotonic(logit_N, label_N)))
    again = Calibration.from_json(calibration.to_json())
    assert again == calibration
    assert isinstance(again.curves[1], Isotonic)
    assert again.to_json() == calibration.to_json()


def test_nan_logits_are_refused_when_fitting_and_when_serving() -> None:
    with pytest.raises(ValueError, match="1 of 2 logits are NaN"):
        Calibration.identity(("a",)).apply(np.array([[0.0], [np.nan]]))
    with pytest.raises(ValueError, match="1 of 2 logits are not finite"):
        fit_platt(np.array([0.0, np.inf]), np.zeros(2))
    with pytest.raises(ValueError, match=r"examination must lie in \(0, 1\], got 0 to 1"):
        fit_platt(np.zeros(2), np.zeros(2), examination_N=np.array([0.0, 1.0]))
    with pytest.raises(ValueError, match="platt or isotonic, got 'beta'"):
        Calibration.from_json('{"actions": ["a"], "curves": [{"kind": "beta"}]}')
