"""The log of what was served, as training reads it: impressions with their feature bytes, outcomes as a frame."""

from dataclasses import dataclass
from pathlib import Path

import polars as pl

from protos.impression_pb2 import Impression
from serving.log import read_impressions, read_outcomes
from training.data import EVENT_SCHEMA, IMPRESSION_SCHEMA


@dataclass(frozen=True, slots=True)
class ServedLog:
    """Everything served up to a moment."""

    impressions: tuple[Impression, ...]
    events: pl.DataFrame

    @classmethod
    def read(cls, path: Path, *, until_ms: int) -> "ServedLog":
        """Impressions made before `until_ms` and outcomes visible before it.

        Raises:
            ValueError: where the log holds no impression.
        """
        impressions = tuple(read_impressions(path, until_ms=until_ms))
        if not impressions:
            raise ValueError(f"{path}: 0 impressions; at least 1 is needed")
        rows = [
            tuple(getattr(outcome, name) for name in EVENT_SCHEMA)
            for outcome in read_outcomes(path)
            if outcome.visible_ms < until_ms
        ]
        return cls(impressions, pl.DataFrame(rows, EVENT_SCHEMA, orient="row"))

    @property
    def frame(self) -> pl.DataFrame:
        """Impressions in the canonical form, without their feature bytes."""
        return pl.DataFrame(
            [
                (
                    one.request_id,
                    one.user_id,
                    one.time_ms,
                    one.surface,
                    one.text,
                    list(one.item_id),
                    list(one.propensity),
                )
                for one in self.impressions
            ],
            IMPRESSION_SCHEMA,
            orient="row",
        )
