"""The log of what was served, as training reads it: impressions with their feature bytes, outcomes as a frame."""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import polars as pl

from protos.impression_pb2 import Impression
from serving.log.catalog_log import FILE, CatalogLog
from training.datasets.catalogue import remembered
from training.datasets.dataset import EVENT_SCHEMA, IMPRESSION_SCHEMA, DataError
from training.datasets.tables import read_table
from training.log.impression_log import read_impressions, read_outcomes

_PART = 50_000


def shown(impressions: Iterable[Impression]) -> Iterator[Impression]:
    """Without the shadows that experiments computed beside them: what somebody saw."""
    return (each for each in impressions if not each.shadow_of)


def as_published(impressions: Iterable[Impression]) -> Iterator[Impression]:
    """What generations showed as they were published: by no arm of an experiment that changes them, nor by two that
    drafted it. All answers of one generation are then of one policy."""
    return (each for each in shown(impressions) if not each.HasField("variation") and not each.HasField("drafted"))


def searched_text(impression: Impression) -> str:
    """What was searched for, which is what features are made of; it need not be what was typed."""
    return impression.understood.searched if impression.HasField("understood") else impression.text


def read_events(path: Path, *, until_ms: int | None = None) -> pl.DataFrame:
    """Outcomes visible before a moment, or all; in the order in which they became visible."""
    logged = read_outcomes(path, until_ms=until_ms)
    parts = [pl.DataFrame(schema=EVENT_SCHEMA)]
    while rows := [tuple(getattr(each, name) for name in EVENT_SCHEMA) for each in islice(logged, _PART)]:
        parts.append(pl.DataFrame(rows, EVENT_SCHEMA, orient="row"))
    return pl.concat(parts)


def read_done(log: Path | None, history: Path | None, *, generations: Path) -> pl.DataFrame:
    """What users did, by a log and by a table of events, each event once, without those who were forgotten.

    Args:
        generations: the store whose catalogue log says who was forgotten.

    Raises:
        DataError: for a history that is no table of events.
        CorruptLog: for a damaged log.
    """
    known = [pl.DataFrame(schema=EVENT_SCHEMA)]
    if log is not None:
        known.append(read_events(log))
    if history is not None:
        before = read_table(history, list(EVENT_SCHEMA)).select(*EVENT_SCHEMA)
        if before.schema != EVENT_SCHEMA:
            raise DataError(f"{history} must hold events with the columns {dict(EVENT_SCHEMA)}")
        known.append(before)
    with closing(CatalogLog(generations / FILE)) as catalog:
        return remembered(pl.concat(known).unique("event_id", keep="first", maintain_order=True), catalog.forgotten())


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
        impressions = tuple(shown(read_impressions(path, until_ms=until_ms)))
        if not impressions:
            raise ValueError(f"{path}: 0 impressions; at least 1 is needed")
        return cls(impressions, read_events(path, until_ms=until_ms))

    def remembering(self, forgotten: Mapping[str, int]) -> "ServedLog":
        """The same without what is about users up to when they were forgotten (`forgotten_in`)."""
        if not forgotten:
            return self
        kept = (each for each in self.impressions if each.time_ms > forgotten.get(each.user_id, -1))
        return ServedLog(tuple(kept), remembered(self.events, forgotten))

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
                    searched_text(one),
                    list(one.item_id),
                    list(one.propensity),
                )
                for one in self.impressions
            ],
            IMPRESSION_SCHEMA,
            orient="row",
        )
