"""One cycle of the loop: data and log in, a gated generation out.

    prepare -> fit_towers -> fit_ranker -> export (embed, index, gates, write, ask, publish)

Each step is a function of what the one before made; `run` does all of them.

Shape letters: I items, U users, N examples, H hard negatives of an example, Q queries, D vector width.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from candidate_gen.features import FeatureTable, attribute_texts, feature_table
from candidate_gen.items import Items
from candidate_gen.query_log import QueryLog
from candidate_gen.sources import SOURCES
from candidate_gen.towers import Towers
from index.generations import GenerationStore
from index.leases import Lease
from index.strings import IdMap
from policy.settings import PolicySettings
from ranking.calibration import Calibration
from ranking.inference import Precision, checked_precision
from ranking.model import Ranker
from ranking.rankers import AnyRanker, AnyScorer, bound, load_scorer
from ranking.scorer import RankerScorer
from serving.log.catalog_log import Entry, forgotten_in
from serving.retrieval import RetrievalSettings
from training.datasets.catalogue import folded, with_users
from training.datasets.dataset import Dataset, field_boosts, searchable
from training.embeddings import embedded
from training.engine import HERE, Engine
from training.examples.activity import activity, segment_column
from training.examples.counters import item_counters
from training.examples.events import known_events
from training.examples.exposures import (
    Examples,
    described,
    from_log,
    item_attributes,
    item_rows,
    profiles,
    tower_pairs,
)
from training.examples.parts import examples_of
from training.examples.point_in_time import users_known
from training.gates import GateSettings, ranker_gates, skew_gates
from training.learning.judged import judged_lists
from training.learning.ranker import Earlier, RankerSettings, split_by_time, train_ranker
from training.learning.tower import TowerSettings, train_towers
from training.learning.trees import TreesSettings, train_trees
from training.log.query_log import query_log, rules_of
from training.log.served import ServedLog
from training.off_policy.estimate import examination
from training.publish import Built, IndexSettings, Judge, Parts, Published, build_index, publish
from training.skew import sampled

_LEARNED_UNTIL = "ranker.learned_until_ms"


@dataclass(frozen=True, slots=True, kw_only=True)
class CycleSettings:
    """Everything that a cycle can be told."""

    policy: PolicySettings
    towers: TowerSettings = field(default_factory=TowerSettings)
    ranker: RankerSettings | TreesSettings = field(default_factory=RankerSettings)
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
    queries: QueryLog
    repeats: bool
    """See `Dataset`."""
    catalog_seq: int
    """Number of the last change of the catalogue that `items` know of."""
    boosts: Mapping[str, int] = field(default_factory=dict)
    """Of every field that search reads, see `RetrievalSettings`."""
    earlier: Earlier | None = None
    """What the ranker goes on from; `examples` are what it has not learned from."""
    skew: Mapping[str, float] = field(default_factory=dict)
    """Figures of the features that the log and a computation from events disagree on."""


def prepare(
    dataset: Dataset,
    *,
    as_of_ms: int,
    tower_positives: int,
    tower_hard_negatives: int = 0,
    served: ServedLog | None = None,
    table: FeatureTable | None = None,
    earlier: Earlier | None = None,
    changes: Sequence[Entry] = (),
    store: GenerationStore | None = None,
    boosts: Mapping[str, int] | None = None,
    engine: Engine = HERE,
) -> Prepared:
    """Point-in-time rows of everything known at `as_of_ms`.

    Args:
        tower_positives, tower_hard_negatives: see `CycleSettings`.
        served: what a server logged; its feature bytes are taken as they are.
        table: of the incumbent, which logged bytes were written with; a new one is declared where there is none.
        earlier: of the incumbent, for a warm start.
        changes: the whole catalogue log, which wins over the data set. Servers know all of it, so items and users do
            too, whatever the moment.
        store: of the generations that answered what was served; without it, skew is not looked at.
        boosts: as in `RetrievalSettings`, whose default stands where not given.
        engine: of examples that are joined; those of a server's log are read.

    Raises:
        ValueError: a boost of a field that the data set does not have.
    """
    dataset = with_users(dataset, changes)
    served = served and served.remembering(forgotten_in(changes))
    items = dataset.items.filter(pl.col("published_ms") <= as_of_ms)
    items = folded(items, changes, columns={**dataset.item_columns, **dict.fromkeys(dataset.item_texts, ())})
    boosts = field_boosts(RetrievalSettings().boosts if boosts is None else boosts, dataset.item_texts)
    events = dataset.events.filter(pl.col("visible_ms") <= as_of_ms)
    unserved = impressions = dataset.impressions.filter(pl.col("time_ms") <= as_of_ms)
    if served is not None:
        events = pl.concat([events, served.events.select(events.columns)])
        impressions = pl.concat([impressions, served.frame.select(impressions.columns)])
    if table is None:
        table = declare(dataset)
    counters = item_counters(impressions, events, items, as_of_ms=as_of_ms, table=table)
    item_row_I = item_rows(table, items, counters)
    query_N, positive_N, hard_NH = tower_pairs(
        table,
        users=dataset.told_of_users,
        items=items,
        item_row_I=item_row_I,
        events=events,
        impressions=impressions,
        most=tower_positives,
        hard=tower_hard_negatives,
        watermark_ms=as_of_ms,
    )
    parts = []
    new_ms = 0 if earlier is None else earlier.learned_until_ms + 1
    if unserved.filter(pl.col("time_ms") >= new_ms).height:
        joined = examples_of(
            table,
            engine=engine,
            users=dataset.told_of_users,
            items=items,
            texts=dataset.item_texts,
            boosts=boosts,
            impressions=unserved,
            events=events,
            watermark_ms=as_of_ms,
        )
        parts.append(joined.take(joined.time_ms_N >= new_ms))
    if served is not None:
        logged = [each for each in served.impressions if each.time_ms >= new_ms]
        parts.append(from_log(table, logged, served.events, watermark_ms=as_of_ms))
    times_ms = (impressions if impressions.height else events)["time_ms"].to_numpy()
    return Prepared(
        table=table,
        as_of_ms=as_of_ms,
        window=(int(times_ms.min()), as_of_ms),
        items=items,
        item_row_I=item_row_I,
        popularity_I=counters.popularity_I,
        users=IdMap.of(dataset.users["user_id"].to_list()),
        profile_U=profiles(table, users_known(dataset, as_of_ms)),
        tower_query_N=query_N,
        tower_positive_N=positive_N,
        tower_hard_NH=hard_NH,
        examples=Examples.concatenate(parts),
        positives=known_events(events.filter(pl.col("action") == table.actions[0])),
        queries=query_log(impressions, events.filter(pl.col("action") == table.actions[0]), as_of_ms=as_of_ms),
        repeats=dataset.repeats,
        catalog_seq=changes[-1].seq if changes else 0,
        boosts=boosts,
        earlier=earlier,
        skew={} if served is None or store is None else sampled(served.impressions, store, events),
    )


def in_force(store: GenerationStore, settings: CycleSettings) -> tuple[FeatureTable | None, Earlier | None]:
    """What the current generation leaves to the next: its feature table, and what the ranker goes on from.

    The ranker only where `RankerSettings.warm_start` asks for it and its shape is the one that is asked for.
    """
    return left_by(store, store.current(), settings)


def left_by(
    store: GenerationStore, current: str | None, settings: CycleSettings
) -> tuple[FeatureTable | None, Earlier | None]:
    """What `current` leaves to the next, likewise."""
    if current is None:
        return None, None
    folder, metrics, told = store.folder(current), store.manifest(current).metrics, settings.ranker
    table = FeatureTable.load(folder)
    if isinstance(told, TreesSettings) or not told.warm_start or _LEARNED_UNTIL not in metrics:
        return table, None
    nothing = Items.of(
        ids=[], titles=[], row_I=table.empty("item", 0), published_ms=[], embedding_ID=np.zeros((0, 1), np.float32)
    )
    scorer = load_scorer(folder, table, nothing)
    if not isinstance(scorer, RankerScorer) or scorer.ranker.shape != told.shape:
        return table, None
    return table, Earlier(scorer.ranker, examination(metrics), int(metrics[_LEARNED_UNTIL]))


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
        spans=dataset.spans,
    )


def fit_towers(
    prepared: Prepared, settings: CycleSettings, *, seed: int, folder: Path, engine: Engine = HERE
) -> tuple[Towers, dict[str, float]]:
    """Train the towers."""
    told, folder = settings.towers, (folder / "towers").absolute()
    train = partial(
        train_towers,
        prepared.table,
        prepared.item_row_I,
        prepared.tower_query_N,
        prepared.tower_positive_N,
        hard_row_NH=prepared.tower_hard_NH,
        settings=told,
        seed=seed,
        folder=folder,
    )
    return engine.fit(train, folder=folder, processes=told.processes, cuda=told.accelerator == "cuda")


def fit_ranker(
    prepared: Prepared, settings: CycleSettings, *, seed: int, folder: Path, engine: Engine = HERE
) -> tuple[AnyRanker, Calibration, dict[str, float]]:
    """Train and calibrate the ranker."""
    table, examples, told = prepared.table, prepared.examples, settings.ranker
    judged = None
    if told.judged.judgments is not None:
        judged = judged_lists(
            table,
            path=Path(told.judged.judgments),
            items=prepared.items,
            item_row_I=prepared.item_row_I,
            time_ms=prepared.as_of_ms,
            boosts=prepared.boosts,
        )
    folder = (folder / "ranker").absolute()
    given: dict[str, Any] = {"seed": seed, "folder": folder, "judged": judged}
    if isinstance(told, TreesSettings):
        return engine.fit(partial(train_trees, table, examples, settings=told, **given), folder=folder)
    train = partial(train_ranker, table, examples, settings=told, earlier=prepared.earlier, **given)
    return engine.fit(train, folder=folder)


def export(
    prepared: Prepared,
    towers: Towers,
    ranker: AnyRanker,
    calibration: Calibration,
    *,
    settings: CycleSettings,
    metrics: Mapping[str, float],
    store: GenerationStore,
    now_ms: int,
    judges: Sequence[Judge] = (),
    job: Lease | None = None,
    engine: Engine = HERE,
) -> Published:
    """Embed, build the index, pass the gates, publish. Nothing is published where a gate is red.

    Args:
        judges: see `publish`.

    Raises:
        GateFailed, GenerationMismatch, LeaseLost: see `publish`.
    """
    with TemporaryDirectory(prefix="cascade-embeddings-") as folder:
        items = items_of(prepared, embedded(towers, prepared.item_row_I, Path(folder), engine=engine))
    query_BD = towers.encode_queries(held_out_queries(prepared))
    built = build_index(items, settings.index, towers=towers.fingerprint, query_BD=query_BD, engine=engine)
    scorer = bound(ranker, calibration, prepared.table, items, precision=precision_of(ranker, prepared, settings))
    return offer(
        prepared,
        parts_of(prepared, items, towers, scorer, settings),
        built,
        settings=settings,
        metrics={**metrics, **prepared.skew},
        store=store,
        parent=store.current(),
        now_ms=now_ms,
        judges=judges,
        job=job,
    )


def items_of(prepared: Prepared, embedding_ID: NDArray[np.float32]) -> Items:
    """The catalogue, with the vectors that the towers gave it."""
    frame = prepared.items
    return Items.of(
        ids=frame["item_id"].to_list(),
        titles=frame["title"].to_list(),
        searchable=searchable(frame, prepared.boosts),
        row_I=prepared.item_row_I,
        published_ms=frame["published_ms"].to_numpy(),
        available=frame["available"].to_numpy(),
        popularity=prepared.popularity_I,
        embedding_ID=embedding_ID,
        attributes=item_attributes(prepared.table, frame),
        texts=attribute_texts(prepared.table, **described(prepared.table, frame)),
    )


def held_out_queries(prepared: Prepared) -> np.ndarray:
    """Query rows to tune the index with: the last tenth of those that the towers learned from."""
    return prepared.tower_query_N[-max(1, len(prepared.tower_query_N) // 10) :]


def parts_of(prepared: Prepared, items: Items, towers: Towers, scorer: AnyScorer, settings: CycleSettings) -> Parts:
    """What the generation is made of. Policy weights of actions that the data does not have are left out."""
    retrieval = settings.retrieval
    retrieval = replace(
        retrieval,
        hide_seen=not prepared.repeats if retrieval.hide_seen is None else retrieval.hide_seen,
        popular_by=segment_column(prepared.table, retrieval.popular_by),
        boosts=prepared.boosts,
    )
    predicted = {name: w for name, w in settings.policy.weights.items() if name in prepared.table.actions}
    return Parts(
        table=prepared.table,
        items=items,
        users=prepared.users,
        profile_U=prepared.profile_U,
        towers=towers,
        scorer=scorer,
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
        queries=prepared.queries,
        synonyms=rules_of(retrieval.synonyms),
    )


def offer(
    prepared: Prepared,
    parts: Parts,
    built: Built,
    *,
    settings: CycleSettings,
    metrics: Mapping[str, float],
    store: GenerationStore,
    parent: str | None,
    now_ms: int,
    judges: Sequence[Judge] = (),
    job: Lease | None = None,
) -> Published:
    """Pass the gates, or be refused; publish.

    Args:
        metrics: of the ranker, and of skew where that was looked at.
        parent: the generation that it is compared with.

    Raises:
        GateFailed, GenerationMismatch, LeaseLost: see `publish`.
    """
    return publish(
        store,
        parts,
        built,
        gates=settings.gates,
        others=(
            *ranker_gates(settings.gates, metrics, action=prepared.table.actions[0]),
            *skew_gates(settings.gates, metrics),
        ),
        metrics=metrics,
        parent=parent,
        config=asdict(settings),
        data_window=prepared.window,
        catalog_seq=prepared.catalog_seq,
        now_ms=now_ms,
        judges=judges,
        job=job,
    )


def precision_of(ranker: AnyRanker, prepared: Prepared, settings: CycleSettings) -> Precision:
    """Of the ranker's products: the cheapest that orders held-out exposures as well."""
    if not isinstance(ranker, Ranker):
        return Precision()
    _, held_out = split_by_time(prepared.examples, settings.ranker.validation)
    return checked_precision(
        ranker,
        prepared.table,
        query_row_R=held_out.query_row_R,
        request_N=held_out.request_N,
        item_row_N=held_out.item_row_N,
        pair_row_N=held_out.pair_row_N,
        gain_N=held_out.label_NA[:, 0],
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
    judges: Sequence[Judge] = (),
    job: Lease | None = None,
) -> Published:
    """One whole cycle: what was known at `as_of_ms` becomes a published (not yet activated) generation."""
    table, earlier = in_force(store, settings)
    prepared = prepare(
        dataset,
        as_of_ms=as_of_ms,
        tower_positives=settings.tower_positives,
        tower_hard_negatives=settings.tower_hard_negatives,
        served=served,
        table=table,
        earlier=earlier,
        changes=changes,
        store=store,
        boosts=settings.retrieval.boosts,
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
        judges=judges,
        job=job,
    )
