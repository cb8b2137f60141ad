"""Point-in-time sums over windows of a log: what was known of a key when a row was made.

A row is never counted for itself, nor for any row of the same moment: only events with a strictly earlier time count.

Shape letters: N rows of the log, which are its events too.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_INFORMATION = 0.25
"""Of one binary outcome at even odds, p (1 - p)."""
_UNIT = 2.0**-32


@dataclass(frozen=True, slots=True)
class Windows:
    """Events of every key in order of time, ready to be summed between two moments."""

    key_N: NDArray[np.int64]
    """Codes from 0."""
    time_N: NDArray[np.int64]
    """Since the first event, in milliseconds."""
    order_N: NDArray[np.int64]
    """Rows by key, then time."""
    place_N: NDArray[np.int64]
    """Key and time as one rising number, in that order."""
    span: int
    """More than any time."""

    @classmethod
    def of(cls, time_ms_N: NDArray[np.int64], *columns: NDArray[np.generic]) -> "Windows":
        """The events of a log whose key is a combination of columns.

        Raises:
            ValueError: where the combinations times the milliseconds do not fit 63 bits.
        """
        time_N = time_ms_N - (time_ms_N.min() if len(time_ms_N) else 0)
        key_N = coded(*columns) if columns else np.zeros(len(time_N), np.int64)
        span = int(time_N.max(initial=0)) + 1
        if (int(key_N.max(initial=0)) + 1) * span >= 1 << 63:
            raise ValueError(f"the log spans {span} ms; times {int(key_N.max()) + 1} keys it must be below 2^63")
        place_N = key_N * span + time_N
        order_N = np.argsort(place_N, kind="stable")
        return cls(key_N, time_N, order_N, place_N[order_N], span)

    def sums(
        self,
        *value_N: NDArray[np.floating],
        window_ms: int | None = None,
    ) -> list[NDArray[np.float64]]:
        """For each row the sums over its key's events with `time - window <= event time < time`.

        Values are rounded to 2^-32 and added as whole numbers: a sum depends on its own events alone, bit by bit.

        Args:
            value_N: of every event.
            window_ms: length; None reaches back to the first event.

        Raises:
            ValueError: where values are not finite or sum to more than 2^30.
        """
        since_N = np.zeros_like(self.time_N) if window_ms is None else np.maximum(self.time_N - window_ms, 0)
        base_N = self.key_N * self.span
        stop_N = np.searchsorted(self.place_N, base_N + self.time_N)
        start_N = np.searchsorted(self.place_N, base_N + since_N)
        sums = []
        for value in value_N:
            size = np.abs(value).sum()
            if not size <= 1 << 30:
                raise ValueError(f"the values sum to {size:g}; they must be finite and sum to at most 2^30")
            units = np.rint(value[self.order_N] / _UNIT).astype(np.int64)
            total = np.concatenate([np.zeros(1, np.int64), np.cumsum(units)])
            sums.append((total[stop_N] - total[start_N]) * _UNIT)
        return sums

    def rate(
        self,
        label_N: NDArray[np.floating],
        prior_N: NDArray[np.floating] | float,
        *,
        strength: float,
        window_ms: int | None = None,
    ) -> NDArray[np.float64]:
        """Mean label of the key's events, pulled towards a prior that counts as `strength` events."""
        hits_N, count_N = self.sums(label_N, np.ones(len(label_N)), window_ms=window_ms)
        mean: NDArray[np.float64] = (hits_N + strength * prior_N) / (count_N + strength)
        return mean

    def effect(
        self,
        label_N: NDArray[np.floating],
        expected_N: NDArray[np.floating],
        *,
        strength: float,
        window_ms: int | None = None,
    ) -> NDArray[np.float64]:
        """Log-odds by which a key's outcomes differ from what was expected of them, 0 without events.

        One Newton step of a logistic intercept from 0 with a Gaussian prior: sum(y - p) / (sum p (1 - p) + s / 4).
        Unlike a rate it does not say how many events there were, nor which kinds of rows the key was shown in, and so
        means the same early and late in a log.

        Args:
            label_N: 0 or 1.
            expected_N: P(label) as known at each event's own moment.
            strength: of the prior, in events at even odds.
        """
        above_N, information_N = self.sums(label_N - expected_N, expected_N * (1 - expected_N), window_ms=window_ms)
        effect: NDArray[np.float64] = above_N / (information_N + _INFORMATION * strength)
        return effect


def coded(*columns: NDArray[np.generic]) -> NDArray[np.int64]:
    """A code from 0 for each distinct combination of values."""
    code_N = np.zeros(len(columns[0]), np.int64)
    for column in columns:
        distinct, part_N = np.unique(column, return_inverse=True)
        code_N = np.unique(code_N * len(distinct) + part_N, return_inverse=True)[1]
    return code_N
