"""One cycle of the loop: data and log in, a gated generation out.

    prepare -> fit_towers -> fit_ranker -> export (embed, index, gates, write, ask, publish)

Each step is a function of what the one before made; `run` does all of them.

Shape letters: I items, U users, N examples, H hard negatives of an example, Q queries, D vector width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import polars as pl
from numpy.typing import NDArray

from candidate_gen.features import FeatureTable, feature_table
from candidate_gen.items import Items
from candidate_gen.sources import SOURCES
from candidate_gen.towers import Towers
from index.generations import GenerationStore
from index.leases import Lease
from index.lexical import LexicalIndex
from index.strings import IdMap
from policy.settings import PolicySettings
from ranking.calibration import Calibration
from ranking.model import Ranker
from ranking.scorer import RankerScorer
from serving.catalog_log import Entry
from serving.retrieval import RetrievalSettings
from training.activity import activity, segment_column
from training.catalogue import folded
from training.counters import item_counters
from training.data import Dataset, searchable
from training.events import known_events
from training.examples import Examples, from_impressions, from_log, item_attributes, item_rows, profiles, tower_pairs
from training.gates import GateSettings, ranker_gates
from training.publish import IndexSettings, Judge, Parts, Published, build_index, publish
from training.ranker import RankerSettings, train_ranker
from training.served import ServedLog
from training.tower import TowerSettings, train_towers


@dataclass(frozen=True, slots=True, kw_only=True)
class CycleSettings:
    """Everything that a cycle can be told."""

    policy: PolicySettings
    towers: TowerSettings = field(default_factory=TowerSettings)
    ranker: RankerSettings = field(default_factory=RankerSettings)
    retrieval: RetrievalSettings = field(default_factory=RetrievalSettings)
    index: IndexSettings = field(default_factory=IndexSettings)
    gates: GateSettings = field(default_factory=GateSettings)
    tower_positives: int = 200_000
    """Most positives that the towers are trained on; of more, evenly spaced ones."""
    tower_hard_negatives: int = 4
    """Most items a positive that were shown with it and not taken; the first ones in slot order."""


@dataclass(frozen=True, slots=True)
class Prepared:
    """What training reads: rows of every kind, all of them as of one moment."""

    table: FeatureTable
    as_of_ms: int
    window: tuple[int, int]
    """Times of the first and the last thing learned from."""
    items: pl.DataFrame
    item_row_I: np.ndarray
    popularity_I: NDArray[np.float32]
    users: IdMap
    profile_U: np.ndarray
    tower_query_N: np.ndarray
    tower_positive_N: NDArray[np.int64]
    tower_hard_NH: NDArray[np.int64]
    examples: Examples
    positives: pl.DataFrame
    """Outcomes of the main action, in the order in which they became known."""
    repeats: bool
    """See `Dataset`."""
    catalog_seq: int
    """Number of the last change of the catalogue that `items` know of."""


def prepare(
    dataset: Dataset,
    *,
    as_of_ms: int,
    tower_positives: int,
    tower_hard_negatives: int = 0,
    served: ServedLog | None = None,
    table: FeatureTable | None = None,
    changes: Sequence[Entry] = (),
) -> Prepared:
    """Point-in-time rows of everything known at `as_of_ms`.

    Args:
        tower_positives, tower_hard_negatives: see `CycleSettings`.
        served: what a server logged; its feature bytes are taken as they are.
        table: of the incumbent, which logged bytes were written with; a new one is declared where there is none.
        changes: the whole catalogue log, which wins over the data set. Servers know all of it, so the items do too,
            whatever the moment.
    """
    items = dataset.items.filter(pl.col("published_ms") <= as_of_ms)
    items = folded(items, changes, columns=dataset.item_columns)
    events = dataset.events.filter(pl.col("visible_ms") <= as_of_ms)
    unserved = impressions = dataset.impressions.filter(pl.col("time_ms") <= as_of_ms)
    if served is not None:
        events = pl.concat([events, served.events.select(events.columns)])
        impressions = pl.concat([impressions, served.frame.select(impressions.columns)])
    if table is None:
        table = declare(dataset)
    counters = item_counters(impressions, events, items, as_of_ms=as_of_ms, actions=table.actions)
    item_row_I = item_rows(table, items, counters)
    query_N, positive_N, hard_NH = tower_pairs(
        table,
        users=dataset.users,
        items=items,
        item_row_I=item_row_I,
        events=events,
        impressions=impressions,
        most=tower_positives,
        hard=tower_hard_negatives,
        watermark_ms=as_of_ms,
    )
    parts = []
    if dataset.impressions.height:
        with TemporaryDirectory(prefix="cascade-lexical-") as folder:
            lexical = LexicalIndex.build(Path(folder) / "lexical", searchable(items))
        parts.append(
            from_impressions(
                table,
                users=dataset.users,
                items=items,
                impressions=unserved,
                events=events,
                watermark_ms=as_of_ms,
                lexical=lexical,
            )
        )
    if served is not None:
        parts.append(from_log(table, served.impressions, served.events, watermark_ms=as_of_ms))
    times_ms = (impressions if impressions.height else events)["time_ms"].to_numpy()
    return Prepared(
        table=table,
        as_of_ms=as_of_ms,
        window=(int(times_ms.min()), as_of_ms),
        items=items,
        item_row_I=item_row_I,
        popularity_I=counters.popularity_I,
        users=IdMap.of(dataset.users["user_id"].to_list()),
        profile_U=profiles(table, dataset.users),
        tower_query_N=query_N,
        tower_positive_N=positive_N,
        tower_hard_NH=hard_NH,
        examples=Examples.concatenate(parts),
        positives=known_events(events.filter(pl.col("action") == table.actions[0])),
        repeats=dataset.repeats,
        catalog_seq=changes[-1].seq if changes else 0,
    )


def declare(dataset: Dataset) -> FeatureTable:
    """The feature table of a data set."""
    return feature_table(
        users=dataset.users.height,
        items=dataset.items.height,
        actions=dataset.actions,
        categories=dataset.items["category"].unique().sort().to_list(),
        sources=SOURCES,
        user_columns=dataset.user_columns,
        item_columns=dataset.item_columns,
    )


def fit_towers(
    prepared: Prepared, settings: CycleSettings, *, seed: int, folder: Path
) -> tuple[Towers, dict[str, float]]:
    """Train the towers."""
    return train_towers(
        prepared.table,
        prepared.item_row_I,
        prepared.tower_query_N,
        prepared.tower_positive_N,
        hard_row_NH=prepared.tower_hard_NH,
        settings=settings.towers,
        seed=seed,
        folder=folder / "towers",
    )


def fit_ranker(
    prepared: Prepared, settings: CycleSettings, *, seed: int, folder: Path
) -> tuple[Ranker, Calibration, dict[str, float]]:
    """Train and calibrate the ranker."""
    return train_ranker(
        prepared.table, prepared.examples, settings=settings.ranker, seed=seed, folder=folder / "ranker"
    )


def export(
    prepared: Prepared,
    towers: Towers,
    ranker: Ranker,
    calibration: Calibration,
    *,
    settings: CycleSettings,
    metrics: Mapping[str, float],
    store: GenerationStore,
    now_ms: int,
    judge: Judge | None = None,
    job: Lease | None = None,
) -> Published:
    """Embed, build the index, pass the gates, publish. Nothing is published where a gate is red.

    Policy weights of actions that the data does not have are left out.

    Args:
        judge: see `publish`.

    Raises:
        GateFailed, GenerationMismatch, LeaseLost: see `publish`.
    """
    frame = prepared.items
    items = Items.of(
        ids=frame["item_id"].to_list(),
        titles=frame["title"].to_list(),
        searchable=searchable(frame),
        row_I=prepared.item_row_I,
        published_ms=frame["published_ms"].to_numpy(),
        available=frame["available"].to_numpy(),
        popularity=prepared.popularity_I,
        embedding_ID=towers.encode_items(prepared.item_row_I),
        attributes=item_attributes(prepared.table, frame),
    )
    held_out = max(1, len(prepared.tower_query_N) // 10)
    retrieval = settings.retrieval
    retrieval = replace(
        retrieval,
        hide_seen=not prepared.repeats if retrieval.hide_seen is None else retrieval.hide_seen,
        popular_by=segment_column(prepared.table, retrieval.popular_by),
    )
    predicted = {name: w for name, w in settings.policy.weights.items() if name in prepared.table.actions}
    return publish(
        store,
        Parts(
            table=prepared.table,
            items=items,
            users=prepared.users,
            profile_U=prepared.profile_U,
            towers=towers,
            scorer=RankerScorer(ranker, calibration, prepared.table, items),
            policy=replace(settings.policy, weights=predicted),
            retrieval=retrieval,
            activity=activity(
                prepared.positives,
                table=prepared.table,
                items=items.ids,
                users=prepared.users,
                profile_U=prepared.profile_U,
                as_of_ms=prepared.as_of_ms,
                recent=retrieval.recent_events,
                popular_by=retrieval.popular_by or "",
            ),
        ),
        build_index(
            items,
            settings.index,
            towers=towers.fingerprint,
            query_BD=towers.encode_queries(prepared.tower_query_N[-held_out:]),
        ),
        gates=settings.gates,
        others=ranker_gates(settings.gates, metrics, action=prepared.table.actions[0]),
        metrics=metrics,
        parent=store.current(),
        config=asdict(settings),
        data_window=prepared.window,
        catalog_seq=prepared.catalog_seq,
        now_ms=now_ms,
        judge=judge,
        job=job,
    )


def run(
    dataset: Dataset,
    *,
    settings: CycleSettings,
    store: GenerationStore,
    folder: Path,
    as_of_ms: int,
    seed: int,
    now_ms: int,
    served: ServedLog | None = None,
    changes: Sequence[Entry] = (),
    judge: Judge | None = None,
    job: Lease | None = None,
) -> Published:
    """One whole cycle: what was known at `as_of_ms` becomes a published (not yet activated) generation."""
    current = store.current()
    table = None
    if current is not None:
        table = FeatureTable.from_json((store.folder(current) / "schema.json").read_text())
    prepared = prepare(
        dataset,
        as_of_ms=as_of_ms,
        tower_positives=settings.tower_positives,
        tower_hard_negatives=settings.tower_hard_negatives,
        served=served,
        table=table,
        changes=changes,
    )
    towers, retrieval = fit_towers(prepared, settings, seed=seed, folder=folder)
    ranker, calibration, ranking = fit_ranker(prepared, settings, seed=seed, folder=folder)
    metrics = {f"retrieval.{name}": value for name, value in retrieval.items()}
    metrics |= {f"ranker.{name}": value for name, value in ranking.items()}
    return export(
        prepared,
        towers,
        ranker,
        calibration,
        settings=settings,
        metrics=metrics,
        store=store,
        now_ms=now_ms,
        judge=judge,
        job=job,
    )
