"""What users and items were like before a log begins, from lists of what was shown and what of it was taken.

Shape letters: H pairs of the history, N rows, U users, I items, F factors.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, diags
from scipy.sparse.linalg import svds

_SWEEPS = 4
_RECENT = 10
_FACTORS = 12
_INFORMATION = 0.25


@dataclass(frozen=True, slots=True)
class Shown:
    """Pairs of a history, those of a user newest first."""

    user_H: NDArray[np.int64]
    item_H: NDArray[np.int64]
    taken_H: NDArray[np.float64]
    """0 or 1."""
    back_H: NDArray[np.int64]
    """Pairs of the same user that are newer."""
    users: int
    items: int


class HistoryEffects:
    """An additive logistic model of the taken pairs, and what its residuals say of users with kinds of items.

    logit P(taken) = intercept + number bins + groups + item + user, fitted by Newton steps of one block after the
    other, each with a Gaussian prior. Residual r = taken - P; information P (1 - P). For a user and a group of items,
    or the value of a number, the effect is sum(r x) / (sum P (1 - P) x^2 + prior): the first Newton step of a
    random effect (intercept: x = 1) or random slope on top of the additive model.
    """

    def __init__(
        self, shown: Shown, groups: Mapping[str, NDArray[np.int64]], numbers: Mapping[str, NDArray[np.float64]]
    ) -> None:
        """
        Args:
            groups: codes of every item, e.g. its author.
            numbers: of every item, e.g. its length; NaN where it has none.
        """
        self._shown, self._groups = shown, groups
        item_H, user_H, taken_H = shown.item_H, shown.user_H, shown.taken_H
        self._seen_U = np.bincount(user_H, minlength=shown.users)
        seen_I = np.bincount(item_H, minlength=shown.items)
        bins = {name: _bins(number_I, 12) for name, number_I in numbers.items()}
        codes = {**bins, **groups}
        base = np.clip(taken_H.mean() if len(taken_H) else 0.5, 0.01, 0.99)
        blocks: list[tuple[str, NDArray[np.int64], int, float]] = [
            *((name, code_I[item_H], int(code_I.max(initial=0)) + 1, 20.0) for name, code_I in codes.items()),
            ("item", item_H, shown.items, 8.0),
            ("user", user_H, shown.users, 4.0),
        ]
        effects = {name: np.zeros(size) for name, _, size, _ in blocks}
        logit_H = np.full(len(item_H), np.log(base / (1 - base)))
        for _ in range(_SWEEPS):
            for name, code_H, size, strength in blocks:
                odds_H, prior = sigmoid(logit_H), _INFORMATION * strength
                slope = np.bincount(code_H, taken_H - odds_H, size) - prior * effects[name]
                step = slope / (np.bincount(code_H, odds_H * (1 - odds_H), size) + prior)
                effects[name] += step
                logit_H += step[code_H]
        self._user_U, self._item_I = effects["user"], effects["item"]
        quality_I = effects["item"] + sum(effects[name][code_I] for name, code_I in codes.items())
        self._quality_I = quality_I
        expected_H = sigmoid(logit_H)
        self._residual_H = taken_H - expected_H
        self._information_H = expected_H * (1 - expected_H)
        self._bins = bins
        recent_H = shown.back_H < _RECENT
        without_H = sigmoid(logit_H - effects["user"][user_H])
        self._recent_U = np.bincount(user_H, recent_H * (taken_H - without_H), shown.users) / (
            np.bincount(user_H, recent_H * self._information_H, shown.users) + 2
        )
        self._lately_I = np.bincount(item_H, recent_H, shown.items) / (seen_I + 20)
        self._popular_I = np.log1p(seen_I)
        ranked = {name: _ranked(number_I) for name, number_I in numbers.items()}
        self._scales = {**ranked, "popularity": _ranked(self._popular_I), "quality": _ranked(quality_I)}
        self._slope_U = {name: self._slope(value_I) for name, value_I in self._scales.items()}
        self._factor_UF, self._factor_IF = self._factors(seen_I)

    def features(self, user_N: NDArray[np.int64], item_N: NDArray[np.int64]) -> dict[str, NDArray[np.floating]]:
        """For pairs of which it need not have seen either."""
        found: dict[str, NDArray[np.floating]] = {
            "past.logit": self._user_U[user_N] + self._quality_I[item_N],
            "past.user": self._user_U[user_N],
            "past.user_recent": self._recent_U[user_N],
            "past.user_seen": self._seen_U[user_N].astype(float),
            "past.item": self._item_I[item_N],
            "past.quality": self._quality_I[item_N],
            "past.popularity": self._popular_I[item_N],
            "past.lately": self._lately_I[item_N],
        }
        own = {"item": np.arange(self._shown.items)}
        for name, code_I in {**self._groups, **self._bins, **own}.items():
            found[f"past.user_{name}"], found[f"past.user_{name}_seen"] = self._cross(code_I, user_N, item_N)
        for name, slope_U in self._slope_U.items():
            found[f"past.slope_{name}"] = slope_U[user_N]
            found[f"past.moved_{name}"] = slope_U[user_N] * self._scales[name][item_N]
        for f in range(self._factor_IF.shape[1]):
            found[f"past.user_factor{f}"] = self._factor_UF[user_N, f]
            found[f"past.item_factor{f}"] = self._factor_IF[item_N, f]
        return found

    def _cross(
        self, code_I: NDArray[np.int64], user_N: NDArray[np.int64], item_N: NDArray[np.int64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        shown = self._shown
        kinds = int(code_I.max(initial=0)) + 1
        past, now = shown.user_H * kinds + code_I[shown.item_H], user_N * kinds + code_I[item_N]
        _, pair = np.unique(np.concatenate([past, now]), return_inverse=True)
        past_H, now_N = pair[: len(shown.user_H)], pair[len(shown.user_H) :]
        size = int(pair.max(initial=0)) + 1
        effect = np.bincount(past_H, self._residual_H, size) / (np.bincount(past_H, self._information_H, size) + 1.5)
        return effect[now_N], np.bincount(past_H, minlength=size)[now_N].astype(float)

    def _slope(self, value_I: NDArray[np.float64]) -> NDArray[np.float64]:
        value_H, users = value_I[self._shown.item_H], self._shown.users
        slope_U: NDArray[np.float64] = np.bincount(self._shown.user_H, self._residual_H * value_H, users) / (
            np.bincount(self._shown.user_H, self._information_H * value_H**2, users) + 2
        )
        return slope_U

    def _factors(self, seen_I: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Of which items were shown to whom, users and items damped by their numbers of pairs."""
        shown = self._shown
        count = min(_FACTORS, min(shown.users, shown.items) - 1, len(shown.item_H))
        if count < 1:
            return np.zeros((shown.users, 0)), np.zeros((shown.items, 0))
        ones_H = np.ones(len(shown.item_H))
        pairs = csr_matrix((ones_H, (shown.user_H, shown.item_H)), shape=(shown.users, shown.items))
        damped = diags(1 / np.sqrt(self._seen_U + 5.0)) @ pairs @ diags(1 / np.sqrt(seen_I + 20.0))
        _, strength_F, item_FI = svds(damped, k=count, v0=np.ones(min(damped.shape)))
        item_IF = item_FI[np.argsort(-strength_F)].T
        return damped @ item_IF, item_IF


def _bins(number_I: NDArray[np.float64], count: int) -> NDArray[np.int64]:
    """Bins of about equally many values, and one for NaN."""
    held = number_I[np.isfinite(number_I)]
    edges = np.unique(np.quantile(held, np.linspace(0, 1, count + 1)[1:-1])) if len(held) else np.empty(0)
    return np.where(np.isfinite(number_I), 1 + np.digitize(number_I, edges), 0)


def _ranked(number_I: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks from -1 to 1, equal values alike; 0 for NaN."""
    held_I = np.isfinite(number_I)
    ranked_I = np.zeros(len(number_I))
    if held_I.any():
        _, place, count = np.unique(number_I[held_I], return_inverse=True, return_counts=True)
        ranked_I[held_I] = (2 * np.cumsum(count) - count - held_I.sum())[place] / held_I.sum()
    return ranked_I


def sigmoid(logit: NDArray[np.float64]) -> NDArray[np.float64]:
    odds: NDArray[np.float64] = 1 / (1 + np.exp(-logit))
    return odds


def back_positions(sizes: Sequence[int]) -> NDArray[np.int64]:
    """For lists of these sizes side by side, oldest first: how many of its list are newer than each entry."""
    size_U = np.asarray(sizes, np.int64)
    return np.repeat(np.cumsum(size_U), size_U) - 1 - np.arange(size_U.sum())
