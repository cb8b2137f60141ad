"""What a night begins with: the data set, the log, the catalogue and the generation in force, as of one moment.

The moment is written down when a night begins, so that one that is killed goes on with the same inputs whatever is
logged meanwhile.
"""

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import polars as pl

from index.generations import GenerationStore
from protos.admin_pb2 import SetTrafficRequest
from protos.impression_pb2 import Impression
from serving.log.catalog_log import Entry, forgotten_in
from training import jobs
from training.datasets.catalogue import folded, with_users
from training.datasets.dataset import Dataset
from training.durable import appearing
from training.learning.run_record import fingerprint
from training.log.served import ServedLog
from training.nightly.settings import NightlySettings

NIGHT = "night.json"
"""The record of the last night."""
_HOUR_MS = 3_600_000
_TABLES = ("items", "users", "impressions", "events", "user_states")


@dataclass(frozen=True, slots=True)
class Night:
    """When a night began, and what became of it."""

    until_ms: int
    """What was logged from here on is for the next night."""
    seq: int
    """Last change of the catalogue that it knows of."""
    incumbent: str | None
    digest: str = ""
    """Of its inputs."""
    generation: str | None = None
    """That it published."""
    over: bool = False

    @classmethod
    def read(cls, folder: Path) -> "Night | None":
        """The last one; None where there was none."""
        path = folder / NIGHT
        return cls(**json.loads(path.read_text())) if path.exists() else None

    def write(self, folder: Path) -> None:
        with appearing(folder / NIGHT) as draft:
            draft.write_text(json.dumps(asdict(self)))


@dataclass(frozen=True, slots=True)
class Inputs:
    """Everything that a night's generation follows from, beside code and settings."""

    dataset: Dataset
    served: ServedLog | None
    """What is learned from: without what the uplift gate is to judge by."""
    newest: tuple[Impression, ...]
    """The last impressions, those of the uplift gate among them, to ask again."""
    changes: tuple[Entry, ...]
    as_of_ms: int
    night: Night

    @property
    def whole(self) -> Dataset:
        """The data set with what was logged, as the data contract sees it."""
        dataset = with_users(self.dataset, self.changes)
        dataset = replace(dataset, items=folded(dataset.items, self.changes, columns=dataset.item_columns))
        if self.served is None:
            return dataset
        frame, events = self.served.frame, self.served.events
        return replace(
            dataset,
            impressions=pl.concat([dataset.impressions, frame.select(dataset.impressions.columns)]),
            events=pl.concat([dataset.events, events.select(dataset.events.columns)]),
        )

    @property
    def remembered(self) -> ServedLog | None:
        """What is learned from, without what is about users who were forgotten."""
        return self.served and self.served.remembering(forgotten_in(self.changes))

    def with_known(self, served: ServedLog) -> pl.DataFrame:
        """Outcomes of the data set that were known at the moment, and those of a log."""
        events = self.dataset.events.filter(pl.col("visible_ms") <= self.as_of_ms)
        return pl.concat([events, served.events.select(events.columns)])


def begun(settings: NightlySettings, store: GenerationStore) -> Inputs:
    """The inputs of the night that was killed, or of the last one where nothing has changed since; else of a new one.

    Raises:
        ValueError: where the log holds nothing.
        CorruptLog, LogUnavailable: see `read_impressions` and `CatalogLog`.
    """
    dataset = jobs.read(settings.data, seed=settings.seed)
    changes = jobs.changes(store)
    served = None if settings.log is None else ServedLog.read(settings.log, until_ms=np.iinfo(np.int64).max)
    now = Night(jobs.last_ms(dataset, served) + 1, changes[-1].seq if changes else 0, store.current())
    last = Night.read(settings.work)
    if last is None or now.incumbent not in (last.incumbent, last.generation):
        return _as_of(now, settings, dataset, served, changes)
    if not last.over:
        return _as_of(last, settings, dataset, served, changes)
    since = [each for each in changes if each.seq > last.seq]
    # A trial on a server writes its traffic into the same log, and changes no item.
    seq = last.seq if all(isinstance(each.request, SetTrafficRequest) for each in since) else now.seq
    same = replace(now, seq=seq, incumbent=last.incumbent, generation=last.generation)
    again = _as_of(same, settings, dataset, served, changes)
    return again if again.night.digest == last.digest else _as_of(now, settings, dataset, served, changes)


def _as_of(
    night: Night, settings: NightlySettings, dataset: Dataset, served: ServedLog | None, changes: list[Entry]
) -> Inputs:
    uplift = settings.cycle.gates.uplift
    kept_ms = int(uplift.hours * _HOUR_MS) if uplift.hours and night.incumbent and served else 0
    whole = served and _until(served, night.until_ms)
    as_of_ms = whole.impressions[-1].time_ms + 1 - kept_ms if whole is not None and kept_ms else night.until_ms
    known = tuple(each for each in changes if each.seq <= night.seq)
    learned = served and _until(served, as_of_ms)
    if learned is not None and not learned.impressions:
        raise ValueError(f"{settings.log}: 0 impressions before {as_of_ms}; at least 1 is needed")
    frames = {name: frame for name in _TABLES if (frame := getattr(dataset, name)) is not None}
    if whole is not None:
        frames["log.events"] = whole.events
    digest = sha256(f"{fingerprint(frames)} {night.until_ms} {as_of_ms} {night.incumbent}".encode())
    for message in _messages(whole, known):
        digest.update(message)
    newest = whole.impressions[-settings.asked :] if whole is not None else ()
    dated = replace(night, digest=digest.hexdigest(), over=False)
    return Inputs(dataset, learned, newest, known, as_of_ms, dated)


def _until(served: ServedLog, until_ms: int) -> ServedLog:
    kept = tuple(each for each in served.impressions if each.time_ms < until_ms)
    return ServedLog(kept, served.events.filter(pl.col("visible_ms") < until_ms))


def _messages(served: ServedLog | None, changes: Iterable[Entry]) -> Iterable[bytes]:
    for each in served.impressions if served is not None else ():
        yield each.SerializeToString(deterministic=True)
    for entry in changes:
        yield f"{entry.seq} {entry.time_ms} {type(entry.request).__name__}".encode()
        yield entry.request.SerializeToString(deterministic=True)
