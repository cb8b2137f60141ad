"""Days as one generation would have answered them.

Every generation has scores and vectors on a scale of its own, counts items anew and shows others. What is shown and
said can therefore only be held against what the same generation shows and says: requests that another one answered are
asked again of this one, with the histories and the catalogue that they had.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

from index.generations import GenerationStore
from protos.impression_pb2 import Impression
from serving.again import Snapshots, recorded_again
from serving.experiments.variants import varied
from serving.generation import Generation
from serving.log.catalog_log import FILE, CatalogLog
from training.log.impression_log import evenly, read_these
from training.monitoring.answerers import Answerers
from training.monitoring.days import Day, summarised
from training.off_policy.replay import in_order

_MOST = 500
"""Requests of a day that are asked again; each takes some milliseconds."""
_OF_ANSWERS = ("features/", "scores/", "embeddings/", "popularity/")
"""Columns that follow from what was asked and who answered."""


def as_answered_by(
    generation: str, days: Sequence[Day], *, log: Path, store: GenerationStore, answerers: Answerers
) -> list[Day]:
    """The days with features, scores, vectors, items and sources of one generation; what people did, and what it took
    to serve them, stay as they were. A day that it answered alone stays as it is, as all do where it is not in the
    store.

    Args:
        log: that holds the requests of the days' samples.
    """
    others = [not set(day.generations) <= {generation} for day in days]
    if generation not in answerers.by_id or not any(others):
        return list(days)
    loaded = Generation.load(store, generation)
    with closing(CatalogLog(store.root / FILE)) as catalog:
        snapshots = Snapshots({generation: loaded}, catalog)
        return [
            _again(generation, day, log, snapshots, answerers) if other else day
            for day, other in zip(days, others, strict=True)
        ]


def _again(generation: str, day: Day, log: Path, snapshots: Snapshots, answerers: Answerers) -> Day:
    asked = in_order(read_these(log, evenly(day.sampled, _MOST)))
    made = list(_answered(generation, asked, snapshots))
    again = summarised(made, (), answerers, start_ms=day.start_ms, label_ms=0, sample=len(made))
    columns = {name: column for name, column in again.columns.items() if name.startswith(_OF_ANSWERS)}
    rates = {name: rate for name, rate in again.rates.items() if _is_of_answers(name)}
    return replace(
        day, units=again.units, columns=day.columns | columns, rates=day.rates | rates, asked_again=len(made)
    )


def _answered(generation: str, asked: Iterable[Impression], snapshots: Snapshots) -> Iterator[Impression]:
    """What this generation answers; without what another one drafted together with a third."""
    for each in asked:
        if each.generation == generation:
            yield each
        elif not each.HasField("drafted"):
            yield recorded_again(each, varied(snapshots.at(generation, each), each.variation))


def _is_of_answers(rate: str) -> bool:
    return rate.startswith("sources/") or rate.endswith(" at its default")
