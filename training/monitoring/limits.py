"""From where on a difference between two times counts."""

from dataclasses import dataclass, fields

LEAST_DAYS = 3
"""Of a reference: with fewer nobody knows how much days differ."""
SECTIONS = (
    "features",
    "scores",
    "embeddings",
    "outcomes",
    "calibration",
    "popularity",
    "slices",
    "sources",
    "serving",
    "quality",
    "volume",
    "freshness",
    "skew",
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a difference must reach, whatever else it is, to be an alarm. It must also be more than chance explains,
    over everything that is looked at (`alpha`), and more than the days of the reference show among themselves."""

    psi: float = 0.2
    """Population stability index."""
    ks: float = 0.15
    """Largest distance of the distribution functions."""
    wasserstein: float = 0.4
    """In standard deviations of the reference."""
    times: float = 2.0
    """How much further than any day of the reference from the others."""
    alpha: float = 0.01
    """P(an alarm by chance alone), over all that is looked at in a report."""
    share: float = 0.02
    """Rise of a share of rows that are broken, degraded, empty, at a default."""
    source_share: float = 0.1
    """Change of the share of what is shown that a source found."""
    outcome_change: float = 0.15
    """Change of a rate of outcomes, or of followed over said, relative to the reference."""
    slice_change: float = 0.3
    """The same for a part of the requests."""
    popularity_change: float = 0.2
    """Change of coverage, of the Gini coefficient or of the head's share, relative to the reference."""
    volume_change: float = 0.5
    """Change of requests, users or outcomes, relative to the reference."""
    latency_change: float = 0.5
    """Rise of milliseconds, relative to the reference."""
    delay_change: float = 1.0
    """Rise of the time until an outcome is visible, relative to the reference."""
    ece: float = 0.02
    """Rise of the calibration error."""
    auc: float = 0.04
    """Change of the area under the curve."""
    similarity: float = 0.3
    """Least alignment of the vectors of the generations of both times; 1 where they are the same."""
    generation_days: float = 8.0
    """How old a generation may become."""
    retrain_on: tuple[str, ...] = (
        "features",
        "scores",
        "embeddings",
        "outcomes",
        "calibration",
        "popularity",
        "slices",
        "freshness",
    )
    """Sections whose alarms ask for training anew."""
    held_back_by: tuple[str, ...] = ("quality", "skew")
    """Sections whose alarms forbid it: what is broken must not be learned from."""

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, tuple):
                unknown = [name for name in value if name not in SECTIONS]
                if unknown:
                    raise ValueError(f"{each.name} names {unknown[0]!r}; there are {', '.join(SECTIONS)}")
            elif not value > 0:
                raise ValueError(f"{each.name} is {value}; it must be above 0")
        if self.alpha >= 1:
            raise ValueError(f"alpha is {self.alpha}; it must be below 1")
