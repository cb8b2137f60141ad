"""A ratio of sums over requests, with the error that comes of requests being few; what is in one belongs together."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Rate:
    """Hits over rows: clicks over exposures, clicks over expected clicks, degraded requests over requests."""

    hits: float = 0.0
    rows: float = 0.0
    squared_hits: float = 0.0
    product: float = 0.0
    squared_rows: float = 0.0

    @classmethod
    def of(cls, hits_R: NDArray[np.generic], rows_R: NDArray[np.generic] | None = None) -> "Rate":
        """
        Args:
            hits_R: by request.
            rows_R: likewise; one each where not given.
        """
        hits = hits_R.astype(np.float64)
        rows = np.ones_like(hits) if rows_R is None else rows_R.astype(np.float64)
        squares = [float((one * other).sum()) for one, other in ((hits, hits), (hits, rows), (rows, rows))]
        return cls(float(hits.sum()), float(rows.sum()), *squares)

    def __add__(self, other: "Rate") -> "Rate":
        return Rate(
            self.hits + other.hits,
            self.rows + other.rows,
            self.squared_hits + other.squared_hits,
            self.product + other.product,
            self.squared_rows + other.squared_rows,
        )

    @property
    def value(self) -> float:
        """NaN without rows."""
        return self.hits / self.rows if self.rows else math.nan

    @property
    def requests(self) -> float:
        """How many of equally many rows would tell as much."""
        return self.rows**2 / self.squared_rows if self.squared_rows else 0.0

    @property
    def error(self) -> float:
        """Standard error of a ratio of sums over independent requests; NaN without rows."""
        if not self.rows:
            return math.nan
        squares = self.squared_hits - 2 * self.value * self.product + self.value**2 * self.squared_rows
        return math.sqrt(max(squares, 0.0)) / self.rows
