"""From a ranker's logits to probabilities that mean what they say, one curve an action.

Fitted on rows that the ranker was not trained on. Where the rows were shown at a position, a label needs the item to
be examined first: P(label) = P(examined | position) * P(label | examined). The curves describe the second factor,
which is what serving needs; the first is given as `examination_N`, so position bias does not leak into them.

No curve falls, so none turns the order of candidates round.

Shape letters: N rows, A actions, B breakpoints, T terms of a line.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

CurveKind = Literal["identity", "temperature", "platt", "isotonic"]
KINDS: tuple[CurveKind, ...] = ("identity", "temperature", "platt", "isotonic")
"""Every kind of curve, the simplest first."""

_SMALLEST = 1e-6
_LEAST_SLOPE = 0.01
_STEPS = 100


@dataclass(frozen=True, slots=True)
class Identity:
    """sigmoid(logit): the logits are taken at their word."""

    def probability(self, logit_N: NDArray[np.generic]) -> NDArray[np.float64]:
        return _sigmoid(logit_N.astype(np.float64))


@dataclass(frozen=True, slots=True)
class Temperature:
    """sigmoid(slope * logit), the slope positive: 1 / slope is what is called the temperature."""

    slope: float

    def probability(self, logit_N: NDArray[np.generic]) -> NDArray[np.float64]:
        return _sigmoid(self.slope * logit_N.astype(np.float64))


@dataclass(frozen=True, slots=True)
class Platt:
    """sigmoid(slope * logit + intercept), the slope positive."""

    slope: float
    intercept: float

    def probability(self, logit_N: NDArray[np.generic]) -> NDArray[np.float64]:
        return _sigmoid(self.slope * logit_N.astype(np.float64) + self.intercept)


@dataclass(frozen=True, slots=True)
class Isotonic:
    """A curve that never falls: straight between breakpoints, level beyond them."""

    logit_B: tuple[float, ...]
    probability_B: tuple[float, ...]

    def probability(self, logit_N: NDArray[np.generic]) -> NDArray[np.float64]:
        return np.interp(logit_N.astype(np.float64), self.logit_B, self.probability_B)


Curve = Identity | Temperature | Platt | Isotonic


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
        return cls(tuple(actions), tuple(Identity() for _ in actions))

    @classmethod
    def fit(
        cls,
        actions: Sequence[str],
        logit_NA: NDArray[np.generic],
        label_NA: NDArray[np.generic],
        *,
        group_N: NDArray[np.generic] | None = None,
        examination_N: NDArray[np.generic] | None = None,
        kind: CurveKind | Literal["auto"] = "auto",
    ) -> "Calibration":
        """Fit each action's curve on held-out rows.

        Args:
            group_N: of rows that depend on each other, such as those of one request; see `choose`.
            examination_N: P(examined) of the position each row was shown at; all 1 where left out.
            kind: of every action's curve; "auto" takes for each the one that `choose` finds.
        """
        curves = []
        for a in range(len(actions)):
            logit_N, label_N = logit_NA[:, a], label_NA[:, a]
            chosen = kind
            if chosen == "auto":
                chosen = choose(logit_N, label_N, group_N=group_N, examination_N=examination_N)
            curves.append(fit(chosen, logit_N, label_N, examination_N=examination_N))
        return cls(tuple(actions), tuple(curves))

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kind of each action's curve."""
        return tuple(type(curve).__name__.lower() for curve in self.curves)

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
        curves = [{"kind": kind, **asdict(curve)} for kind, curve in zip(self.kinds, self.curves, strict=True)]
        return json.dumps({"actions": self.actions, "curves": curves}, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> "Calibration":
        """Back from `to_json`.

        Raises:
            ValueError: for a kind of curve that is not known.
        """
        read = json.loads(text)
        return cls(tuple(read["actions"]), tuple(_curve(each) for each in read["curves"]))


def choose(
    logit_N: NDArray[np.generic],
    label_N: NDArray[np.generic],
    *,
    group_N: NDArray[np.generic] | None = None,
    examination_N: NDArray[np.generic] | None = None,
) -> CurveKind:
    """The kind of curve that says most about labels it was not fitted on.

    Each half of the groups, of the rows where those are left out, is judged by the curve that the other half gives.
    A richer kind must have a smaller log-loss than the simpler one in force by more than the standard error of the
    difference, for what is within chance is not worth its breakpoints. Hastie et al. 2009, "The elements of
    statistical learning", section 7.10.
    """
    logit, label, examination = _fit_columns(logit_N, label_N, examination_N)
    groups = np.arange(len(logit)) if group_N is None else group_N
    half_N = np.unique(groups, return_inverse=True)[1].reshape(-1) % 2
    best, least_N = KINDS[0], np.full(len(logit), np.inf)
    for kind in KINDS if len(logit) else ():
        loss_N = np.empty(len(logit))
        for half in (0, 1):
            judged_N = half_N == half
            curve = fit(kind, logit[~judged_N], label[~judged_N], examination_N=examination[~judged_N])
            p_N = np.clip(examination[judged_N] * curve.probability(logit[judged_N]), _SMALLEST, 1 - _SMALLEST)
            loss_N[judged_N] = -np.where(label[judged_N] > 0, np.log(p_N), np.log1p(-p_N))
        gain_N = least_N - loss_N
        if kind == KINDS[0] or gain_N.mean() > gain_N.std() / np.sqrt(len(gain_N)):
            best, least_N = kind, loss_N
    return best


def fit(
    kind: CurveKind,
    logit_N: NDArray[np.generic],
    label_N: NDArray[np.generic],
    *,
    examination_N: NDArray[np.generic] | None = None,
) -> Curve:
    """A curve of one kind.

    The lines (temperature, Platt) have the greatest likelihood under a standard normal prior around the identity. The
    prior is worth less than a few rows. It makes the answer exist for separable labels, one class only, or no rows
    (the identity). The slope stays at or above 0.01. Platt 1999, "Probabilistic outputs for support vector
    machines", with the examination factor; Guo et al. 2017, "On calibration of modern neural networks".
    """
    logit, label, examination = _fit_columns(logit_N, label_N, examination_N)
    match kind:
        case "identity":
            return Identity()
        case "temperature":
            return Temperature(*_likeliest(logit[None], label, examination))
        case "platt":
            return Platt(*_likeliest(np.stack([logit, np.ones_like(logit)]), label, examination))
        case "isotonic":
            return _pooled(logit, label, examination)


def _likeliest(
    design_TN: NDArray[np.float64], label: NDArray[np.float64], examination: NDArray[np.float64]
) -> list[float]:
    """Coefficients (T,), that of the logit first, by Fisher scoring with step halving."""
    prior_T = np.eye(len(design_TN))[0]

    def loss(at_T: NDArray[np.float64]) -> float:
        p_N = np.clip(examination * _sigmoid(at_T @ design_TN), 1e-12, 1 - 1e-12)
        return float(-(label * np.log(p_N) + (1 - label) * np.log1p(-p_N)).sum() + 0.5 * ((at_T - prior_T) ** 2).sum())

    at_T = prior_T.copy()
    lowest = loss(at_T)
    for _ in range(_STEPS):
        relevant_N = _sigmoid(at_T @ design_TN)
        p_N = np.clip(examination * relevant_N, 1e-12, 1 - 1e-12)
        change_N = p_N * (1 - relevant_N)
        gradient_T = design_TN @ ((p_N - label) / (p_N * (1 - p_N)) * change_N) + at_T - prior_T
        information_TT = (design_TN * (change_N**2 / (p_N * (1 - p_N)))) @ design_TN.T + np.eye(len(at_T))
        step_T = np.linalg.solve(information_TT, gradient_T)
        scale, better = 1.0, False
        while not better and scale > 1e-6:
            trial_T = at_T - scale * step_T
            trial_T[0] = max(trial_T[0], _LEAST_SLOPE)
            value = loss(trial_T)
            better = value < lowest
            scale /= 2
        if not better:
            break
        gain, at_T, lowest = lowest - value, trial_T, value
        if gain < 1e-9 * (1 + lowest):
            break
    return [float(each) for each in at_T]


def _pooled(logit: NDArray[np.float64], label: NDArray[np.float64], examination: NDArray[np.float64]) -> Isotonic:
    """The curve that never falls and is nearest to the labels, by pooling adjacent violators.

    With the examination factor e the block mean is sum(label) / sum(e), the weighted least-squares answer to
    E[label] = e * P(label | examined). Each breakpoint is a block's mean logit. Without rows: the identity at two
    points is not defined, so the curve is level at 1/2.
    """
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
    match kind:
        case "identity":
            return Identity()
        case "temperature":
            return Temperature(**read)  # type: ignore[arg-type]
        case "platt":
            return Platt(**read)  # type: ignore[arg-type]
        case "isotonic":
            return Isotonic(*(tuple(read[name]) for name in ("logit_B", "probability_B")))  # type: ignore[arg-type]
    raise ValueError(f"a calibration curve is one of {', '.join(KINDS)}, got {kind!r}")
