"""From a ranker's logits to probabilities that mean what they say, one curve an action.

Fitted on rows that the ranker was not trained on. Where the rows were shown at a position, a label needs the item to
be examined first: P(label) = P(examined | position) * P(label | examined). The curves describe the second factor,
which is what serving needs; the first is given as `examination_N`, so position bias does not leak into them.

Shape letters: N rows, A actions, B breakpoints.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

_SMALLEST = 1e-6
_LEAST_SLOPE = 0.01
_STEPS = 100


@dataclass(frozen=True, slots=True)
class Platt:
    """sigmoid(slope * logit + intercept), the slope positive."""

    slope: float = 1.0
    intercept: float = 0.0

    def probability(self, logit_N: NDArray[np.generic]) -> NDArray[np.float64]:
        return _sigmoid(self.slope * logit_N.astype(np.float64) + self.intercept)


@dataclass(frozen=True, slots=True)
class Isotonic:
    """A curve that never falls: straight between breakpoints, level beyond them."""

    logit_B: tuple[float, ...]
    probability_B: tuple[float, ...]

    def probability(self, logit_N: NDArray[np.generic]) -> NDArray[np.float64]:
        return np.interp(logit_N.astype(np.float64), self.logit_B, self.probability_B)


Curve = Platt | Isotonic


@dataclass(frozen=True, slots=True)
class Calibration:
    """A curve for each action."""

    actions: tuple[str, ...]
    curves: tuple[Curve, ...]

    def __post_init__(self) -> None:
        if len(self.actions) != len(self.curves):
            raise ValueError(f"{len(self.curves)} curves for {len(self.actions)} actions")

    @classmethod
    def identity(cls, actions: Sequence[str]) -> "Calibration":
        """The logits are taken at their word."""
        return cls(tuple(actions), tuple(Platt() for _ in actions))

    @classmethod
    def fit(
        cls,
        actions: Sequence[str],
        logit_NA: NDArray[np.generic],
        label_NA: NDArray[np.generic],
        *,
        examination_N: NDArray[np.generic] | None = None,
        kind: Literal["platt", "isotonic"] = "platt",
    ) -> "Calibration":
        """Fit each action's curve on held-out rows.

        Args:
            examination_N: P(examined) of the position each row was shown at; all 1 where left out.
        """
        fit = fit_platt if kind == "platt" else fit_isotonic
        return cls(
            tuple(actions),
            tuple(fit(logit_NA[:, a], label_NA[:, a], examination_N=examination_N) for a in range(len(actions))),
        )

    def apply(self, logit_NA: NDArray[np.generic]) -> NDArray[np.float32]:
        """Probabilities, each inside (0, 1), never falling as the logit rises.

        Raises:
            ValueError: where a logit is NaN; there is no honest probability for it.
        """
        if np.isnan(logit_NA).any():
            raise ValueError(f"{int(np.isnan(logit_NA).sum())} of {logit_NA.size} logits are NaN")
        probability_NA = np.empty(logit_NA.shape, np.float32)
        for a, curve in enumerate(self.curves):
            probability_NA[:, a] = np.clip(curve.probability(logit_NA[:, a]), _SMALLEST, 1 - _SMALLEST)
        return probability_NA

    def to_json(self) -> str:
        curves = [{"kind": type(curve).__name__.lower(), **asdict(curve)} for curve in self.curves]
        return json.dumps({"actions": self.actions, "curves": curves}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Calibration":
        """Back from `to_json`.

        Raises:
            ValueError: for a kind of curve that is not known.
        """
        read = json.loads(text)
        return cls(tuple(read["actions"]), tuple(_curve(each) for each in read["curves"]))


def fit_platt(
    logit_N: NDArray[np.generic],
    label_N: NDArray[np.generic],
    *,
    examination_N: NDArray[np.generic] | None = None,
) -> Platt:
    """Slope and intercept by maximum likelihood under a standard normal prior around the identity.

    The prior is worth less than a few rows. It makes the answer exist for separable labels, one class only, or no
    rows (the identity). Maximised by Fisher scoring with step halving; the slope stays at or above 0.01, so that
    the order of the candidates is never turned round. Platt 1999, "Probabilistic outputs for support vector
    machines", with the examination factor.
    """
    logit, label, examination = _fit_columns(logit_N, label_N, examination_N)
    design_2N = np.stack([logit, np.ones_like(logit)])
    prior = np.array([1.0, 0.0])

    def loss(at: NDArray[np.float64]) -> float:
        p_N = np.clip(examination * _sigmoid(at @ design_2N), 1e-12, 1 - 1e-12)
        return float(-(label * np.log(p_N) + (1 - label) * np.log1p(-p_N)).sum() + 0.5 * ((at - prior) ** 2).sum())

    at = prior.copy()
    lowest = loss(at)
    for _ in range(_STEPS):
        relevant_N = _sigmoid(at @ design_2N)
        p_N = np.clip(examination * relevant_N, 1e-12, 1 - 1e-12)
        change_N = p_N * (1 - relevant_N)
        gradient = design_2N @ ((p_N - label) / (p_N * (1 - p_N)) * change_N) + at - prior
        information = (design_2N * (change_N**2 / (p_N * (1 - p_N)))) @ design_2N.T + np.eye(2)
        step = np.linalg.solve(information, gradient)
        scale, better = 1.0, False
        while not better and scale > 1e-6:
            trial = np.array([max(at[0] - scale * step[0], _LEAST_SLOPE), at[1] - scale * step[1]])
            value = loss(trial)
            better = value < lowest
            scale /= 2
        if not better:
            break
        gain, at, lowest = lowest - value, trial, value
        if gain < 1e-9 * (1 + lowest):
            break
    return Platt(float(at[0]), float(at[1]))


def fit_isotonic(
    logit_N: NDArray[np.generic],
    label_N: NDArray[np.generic],
    *,
    examination_N: NDArray[np.generic] | None = None,
) -> Isotonic:
    """The curve that never falls and is nearest to the labels, by pooling adjacent violators.

    With the examination factor e the block mean is sum(label) / sum(e), the weighted least-squares answer to
    E[label] = e * P(label | examined). Each breakpoint is a block's mean logit. Without rows: the identity at two
    points is not defined, so the curve is level at 1/2.
    """
    logit, label, examination = _fit_columns(logit_N, label_N, examination_N)
    if not len(logit):
        return Isotonic((0.0,), (0.5,))
    values, tie_N = np.unique(logit, return_inverse=True)
    hits = np.bincount(tie_N, label)
    mass = np.bincount(tie_N, examination)
    count = np.bincount(tie_N).astype(np.float64)
    blocks: list[list[float]] = []
    for block in np.stack([hits, mass, count, values * count], axis=1).tolist():
        blocks.append(block)
        while len(blocks) > 1 and blocks[-2][0] * blocks[-1][1] >= blocks[-1][0] * blocks[-2][1]:
            last = blocks.pop()
            blocks[-1] = [one + other for one, other in zip(blocks[-1], last, strict=True)]
    return Isotonic(
        tuple(total / rows for _, _, rows, total in blocks),
        tuple(float(np.clip(hit / weight, _SMALLEST, 1 - _SMALLEST)) for hit, weight, _, _ in blocks),
    )


def _fit_columns(
    logit_N: NDArray[np.generic], label_N: NDArray[np.generic], examination_N: NDArray[np.generic] | None
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    logit, label = logit_N.astype(np.float64), label_N.astype(np.float64)
    examination = np.ones_like(logit) if examination_N is None else examination_N.astype(np.float64)
    if not logit.shape == label.shape == examination.shape:
        raise ValueError(f"{len(label)} labels and {len(examination)} examinations for {len(logit)} logits")
    if not np.isfinite(logit).all():
        raise ValueError(f"{int((~np.isfinite(logit)).sum())} of {len(logit)} logits are not finite")
    if len(examination) and not (examination.min() > 0 and examination.max() <= 1):
        raise ValueError(f"examination must lie in (0, 1], got {examination.min():.3g} to {examination.max():.3g}")
    return logit, label, examination


def _sigmoid(value_N: NDArray[np.float64]) -> NDArray[np.float64]:
    return 0.5 * (1 + np.tanh(0.5 * value_N))


def _curve(read: dict[str, object]) -> Curve:
    kind = read.pop("kind", None)
    if kind == "platt":
        return Platt(**read)  # type: ignore[arg-type]
    if kind == "isotonic":
        return Isotonic(*(tuple(read[name]) for name in ("logit_B", "probability_B")))  # type: ignore[arg-type]
    raise ValueError(f"a calibration curve is platt or isotonic, got {kind!r}")
