"""What is known of a user, an item and their context at the moment one was shown to the other.

Shape letters: N rows of the log in order of time, I items, U users, Z columns.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from training.evaluation.click_history import sigmoid
from training.examples.windows import Windows, coded

Columns = dict[str, NDArray[np.floating]]

_HOUR_MS = 3_600_000
_DAY_MS = 24 * _HOUR_MS
_LEVEL_MS = 2 * _DAY_MS
_LONGEST_GAP_MS = 2 * _DAY_MS
_ANSWERS = ("past.logit", "past.user", "past.user_recent")


@dataclass(frozen=True, slots=True)
class ClickLog:
    """Impressions in order of time, with what came of them."""

    user_N: NDArray[np.int64]
    item_N: NDArray[np.int64]
    time_ms_N: NDArray[np.int64]
    place_N: NDArray[np.int64]
    """Codes of where it was shown."""
    number_N: NDArray[np.float64]
    """A number that is known when it is shown, e.g. the length of a video."""
    fitted_N: NDArray[np.bool_]
    """Rows of training."""
    label_N: Mapping[str, NDArray[np.float64]]
    """0 or 1 for each action."""
    group_I: Mapping[str, NDArray[np.int64]]
    """Codes of every item."""


@dataclass(frozen=True, slots=True)
class Features:
    """Columns by what an ordering of one user's candidates may read."""

    order: Columns
    """Of items, contexts and users; no outcome of the user in the log."""
    user_outcomes: Columns
    """What came of the user's own earlier impressions."""
    level_N: dict[str, NDArray[np.float64]]
    """Of each action: log-odds by which the last two days' outcomes exceeded what `order` made of them. An intercept
    that follows the log: which rows come changes from day to day and so does how people answer to them, and this is
    the second without the first."""


def log_features(log: ClickLog, past: Columns) -> Features:
    """Counters over the log before each row, free of its overall level.

    Every outcome is counted beyond what was expected of it. Of items and groups that is what the place, the number
    and the history make of it; of users, what these and the counters of items and groups do: a logistic model fitted
    on the rows of training, from columns that are known at the row's moment, and the level of the last two days.

    Args:
        past: columns of the history, of which `past.logit` and those of `_ANSWERS` are used where they are.
    """
    time_N, ones_N = log.time_ms_N, np.ones(len(log.time_ms_N))
    groups = {"item": log.item_N, **{name: code_I[log.item_N] for name, code_I in log.group_I.items()}}
    everything, places = Windows.of(time_N), Windows.of(time_N, log.place_N)
    bin_N = _bins(log.number_N, log.fitted_N, 10)
    bins = Windows.of(time_N, log.place_N, bin_N)
    hours = Windows.of(time_N, log.place_N, time_N // (3 * _HOUR_MS) % 8)
    by_group = {name: Windows.of(time_N, code_N) for name, code_N in groups.items()}
    by_place = {f"{name}_place": Windows.of(time_N, code_N, log.place_N) for name, code_N in groups.items()}
    user = Windows.of(time_N, log.user_N)
    kinds = {"place": log.place_N, "number": bin_N // 2, **groups}
    by_kind = {name: Windows.of(time_N, log.user_N, code_N) for name, code_N in kinds.items()}
    order: Columns = {}
    own: Columns = {}
    levels = {}
    for action, label_N in log.label_N.items():
        always_N = everything.rate(label_N, label_N[log.fitted_N].mean(), strength=200)
        placed_N = places.rate(label_N, always_N, strength=20)
        plain_N = bins.rate(label_N, placed_N, strength=30)
        order[f"{action}.place"] = _logit(placed_N) - _logit(always_N)
        order[f"{action}.place_number"] = _logit(plain_N) - _logit(always_N)
        known = [order[f"{action}.place_number"], *(past[name] for name in _ANSWERS if name in past)]
        expected_N, _ = _expected(log, everything, label_N, known)
        order[f"{action}.place_hour"] = hours.effect(label_N, expected_N, strength=60)
        order[f"{action}.item_day"] = by_group["item"].effect(label_N, expected_N, strength=15, window_ms=_DAY_MS)
        for name, windows in {**by_group, **by_place}.items():
            order[f"{action}.{name}"] = windows.effect(label_N, expected_N, strength=20)
        known += [order[f"{action}.{name}"] for name in (*by_group, *by_place)]
        expected_N, levels[action] = _expected(log, everything, label_N, known)
        own[f"{action}.user"] = user.effect(label_N, expected_N, strength=6)
        own[f"{action}.user_day"] = user.effect(label_N, expected_N, strength=4, window_ms=_DAY_MS)
        own[f"{action}.user_hour"] = user.effect(label_N, expected_N, strength=4, window_ms=_HOUR_MS)
        for name, windows in by_kind.items():
            own[f"{action}.user_{name}"] = windows.effect(label_N, expected_N, strength=6)
    (order["shown.item_day"],) = by_group["item"].sums(ones_N, window_ms=_DAY_MS)
    for name, window_ms in (("hour", _HOUR_MS), ("day", _DAY_MS)):
        (order[f"shown.user_{name}"],) = user.sums(ones_N, window_ms=window_ms)
    (order["shown.user_item"],) = by_kind["item"].sums(ones_N)
    request_N = coded(log.user_N, time_N)
    order["shown.together"] = np.bincount(request_N)[request_N].astype(float)
    order["shown.gap"] = _gap(user, request_N)
    order |= {
        "place": log.place_N.astype(float),
        "number": log.number_N,
        "hour": (time_N // _HOUR_MS % 24).astype(float),
    }
    return Features(order, own, levels)


def _expected(
    log: ClickLog, everything: Windows, label_N: NDArray[np.float64], known: list[NDArray[np.floating]]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """P(label) by a logistic model of the columns and the level of the last two days, and that level in log-odds."""
    z_NZ = np.stack([*known, np.ones(len(label_N))], axis=1)
    fitted_Z, fitted_label = z_NZ[log.fitted_N], label_N[log.fitted_N]
    weight_Z = np.zeros(z_NZ.shape[1])
    for _ in range(8):
        odds = sigmoid(fitted_Z @ weight_Z)
        curvature_ZZ = (fitted_Z * (odds * (1 - odds))[:, None]).T @ fitted_Z + np.eye(len(weight_Z))
        weight_Z += np.linalg.solve(curvature_ZZ, fitted_Z.T @ (fitted_label - odds) - weight_Z)
    logit_N = z_NZ @ weight_Z
    level_N = everything.effect(label_N, sigmoid(logit_N), strength=400, window_ms=_LEVEL_MS)
    return sigmoid(logit_N + level_N), level_N


def plain_counters(log: ClickLog, action: str) -> Columns:
    """Rates and numbers of earlier impressions of items, groups, users and users with groups: the usual baseline."""
    found: Columns = {
        "place": log.place_N.astype(float),
        "number": log.number_N,
        "hour": (log.time_ms_N // _HOUR_MS % 24).astype(float),
    }
    label_N = log.label_N[action]
    prior = float(label_N[log.fitted_N].mean())
    for name, code_N in {
        "item": log.item_N,
        **{name: code_I[log.item_N] for name, code_I in log.group_I.items()},
    }.items():
        for whose, windows in (
            (name, Windows.of(log.time_ms_N, code_N)),
            (f"user_{name}", Windows.of(log.time_ms_N, log.user_N, code_N)),
        ):
            (found[f"shown.{whose}"],) = windows.sums(np.ones(len(label_N)))
            found[f"taken.{whose}"] = windows.rate(label_N, prior, strength=20 if whose == name else 5)
    user = Windows.of(log.time_ms_N, log.user_N)
    (found["shown.user"],) = user.sums(np.ones(len(label_N)))
    found["taken.user"] = user.rate(label_N, prior, strength=5)
    return found


def _gap(user: Windows, request_N: NDArray[np.int64]) -> NDArray[np.float64]:
    """log(1 + seconds) since the user's last request, at most two days; NaN for the first of the log."""
    order, gap_N = user.order_N, np.full(len(user.time_N), np.nan)
    again = user.key_N[order][1:] == user.key_N[order][:-1]
    new = request_N[order][1:] != request_N[order][:-1]
    gap_N[order[1:]] = np.where(again & new, np.diff(user.time_N[order]), np.nan)
    gap_R = np.full(int(request_N.max(initial=-1)) + 1, np.nan)
    np.fmax.at(gap_R, request_N, gap_N)
    gap: NDArray[np.float64] = np.log1p(np.minimum(gap_R[request_N], _LONGEST_GAP_MS) / 1000)
    return gap


def _bins(number_N: NDArray[np.float64], fitted_N: NDArray[np.bool_], count: int) -> NDArray[np.int64]:
    edges = np.unique(np.nanquantile(number_N[fitted_N], np.linspace(0, 1, count + 1)[1:-1]))
    return np.digitize(np.nan_to_num(number_N, nan=-np.inf), edges)


def _logit(rate_N: NDArray[np.float64]) -> NDArray[np.float64]:
    cut_N = np.clip(rate_N, 1e-6, 1 - 1e-6)
    logit: NDArray[np.float64] = np.log(cut_N / (1 - cut_N))
    return logit
