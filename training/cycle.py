"""One cycle of the loop: data and log in, a gated generation out.

    prepare -> fit_towers -> fit_ranker -> export (embed, index, gates, publish)

Each step is a function of what the one before made; `run` does all of them.

Shape letters: I items, U users, N examples, Q queries, D vector width.
"""

from collections.abc import Mapping
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
from index.lexical import LexicalIndex
from index.strings import IdMap, StringColumn
from index.vectors import Kind, VectorIndex
from policy.settings import PolicySettings
from ranking.calibration import Calibration
from ranking.model import Ranker
from ranking.scorer import RankerScorer
from serving.generation import RetrievalSettings, write
from training.counters import item_counters
from training.data import Dataset, searchable
from training.examples import Examples, from_impressions, from_log, item_rows, profiles, tower_pairs
from training.ranker import RankerSettings, train_ranker
from training.served import ServedLog
from training.tower import TowerSettings, train_towers


class GateFailed(ValueError):
    """A generation that must not be published; the message lists every red gate with its figures."""


@dataclass(frozen=True, slots=True)
class GateSettings:
    """What a generation must reach. A gate whose figure is undefined (NaN) is red."""

    index_recall: float = 0.95
    """Least recall@k of the index against exact search."""
    ranker_auc: float = 0.55
    """Least AUC of the first action on held-out impressions."""
    ranker_ece: float = 0.05
    """Largest calibration error of the first action."""
    shrink: float = 0.2
    """Largest share of the incumbent's items that may be missing."""


@dataclass(frozen=True, slots=True)
class IndexSettings:
    """See `VectorIndex.build`."""

    kind: Kind | None = None
    recall_target: float = 0.97
    k: int = 100


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
    examples: Examples
    repeats: bool
    """See `Dataset`."""


def prepare(
    dataset: Dataset,
    *,
    as_of_ms: int,
    tower_positives: int,
    served: ServedLog | None = None,
    table: FeatureTable | None = None,
) -> Prepared:
    """Point-in-time rows of everything known at `as_of_ms`.

    Args:
        tower_positives: see `CycleSettings`.
        served: what a server logged; its feature bytes are taken as they are.
        table: of the incumbent, which logged bytes were written with; a new one is declared where there is none.
    """
    items = dataset.items.filter(pl.col("published_ms") <= as_of_ms)
    events = dataset.events.filter(pl.col("visible_ms") <= as_of_ms)
    unserved = impressions = dataset.impressions.filter(pl.col("time_ms") <= as_of_ms)
    if served is not None:
        events = pl.concat([events, served.events.select(events.columns)])
        impressions = pl.concat([impressions, served.frame.select(impressions.columns)])
    if table is None:
        table = declare(dataset)
    counters = item_counters(impressions, events, items, as_of_ms=as_of_ms, actions=table.actions)
    item_row_I = item_rows(table, items, counters)
    query_N, positive_N = tower_pairs(
        table,
        users=dataset.users,
        items=items,
        item_row_I=item_row_I,
        events=events,
        impressions=impressions,
        most=tower_positives,
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
        examples=Examples.concatenate(parts),
        repeats=dataset.repeats,
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


@dataclass(frozen=True, slots=True)
class Gate:
    """One condition of a publish, and what was found."""

    name: str
    value: float
    limit: str
    passed: bool


@dataclass(frozen=True, slots=True)
class Published:
    """A generation in the store, with what is known of it."""

    id: str
    metrics: dict[str, float]
    gates: tuple[Gate, ...]


def fit_towers(
    prepared: Prepared, settings: CycleSettings, *, seed: int, folder: Path
) -> tuple[Towers, dict[str, float]]:
    """Train the towers."""
    return train_towers(
        prepared.table,
        prepared.item_row_I,
        prepared.tower_query_N,
        prepared.tower_positive_N,
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
) -> Published:
    """Embed, build the index, pass the gates, publish. Nothing is published where a gate is red.

    Policy weights of actions that the data does not have are left out.

    Raises:
        GateFailed: naming every red gate.
    """
    row_I, items_frame = prepared.item_row_I, prepared.items
    embedding_ID = towers.encode_items(row_I)
    held_out = max(1, len(prepared.tower_query_N) // 10)
    query_BD = towers.encode_queries(prepared.tower_query_N[-held_out:])
    vectors = VectorIndex.build(
        embedding_ID,
        towers=towers.fingerprint,
        recall_target=settings.index.recall_target,
        k=settings.index.k,
        query_BD=query_BD,
        kind=settings.index.kind,
    )
    items = Items(
        ids=IdMap.of(items_frame["item_id"].to_list()),
        titles=StringColumn.of(items_frame["title"].to_list()),
        row_I=row_I,
        published_ms_I=items_frame["published_ms"].to_numpy(),
        available_I=items_frame["available"].to_numpy(),
        popularity_I=prepared.popularity_I,
        embedding_ID=embedding_ID,
    )
    scorer = RankerScorer(ranker, calibration, prepared.table, items)
    metrics = {**metrics, "index.recall": vectors.recall, "index.items": float(len(items))}
    retrieval = settings.retrieval
    if retrieval.hide_seen is None:
        retrieval = replace(retrieval, hide_seen=not prepared.repeats)
    predicted = {name: w for name, w in settings.policy.weights.items() if name in prepared.table.actions}
    policy = replace(settings.policy, weights=predicted)
    incumbent = store.current()
    gates = check_gates(
        settings.gates,
        metrics,
        action=prepared.table.actions[0],
        incumbent=store.manifest(incumbent).metrics if incumbent else {},
    )
    red = [f"{gate.name} is {gate.value:.4g}, must be {gate.limit}" for gate in gates if not gate.passed]
    if red:
        raise GateFailed("; ".join(red))
    with store.stage() as folder:
        fingerprints = write(
            folder,
            table=prepared.table,
            items=items,
            users=prepared.users,
            profile_U=prepared.profile_U,
            towers=towers,
            vectors=vectors,
            scorer=scorer,
            policy=policy,
            retrieval=retrieval,
            searchable=searchable(items_frame),
        )
        generation = store.publish(
            folder,
            fingerprints=fingerprints,
            parent=incumbent,
            config=asdict(settings),
            data_window=prepared.window,
            metrics=metrics,
            created_ms=now_ms,
        )
    return Published(generation, metrics, gates)


def check_gates(
    settings: GateSettings, metrics: Mapping[str, float], *, action: str, incumbent: Mapping[str, float]
) -> tuple[Gate, ...]:
    """Every gate with what was found; a figure that is missing or NaN fails its gate."""
    items_before = incumbent.get("index.items", 0.0)
    limits = (
        ("index.items", ">=", max(1.0, (1 - settings.shrink) * items_before)),
        ("index.recall", ">=", settings.index_recall),
        (f"ranker.{action}.auc", ">=", settings.ranker_auc),
        (f"ranker.{action}.ece", "<=", settings.ranker_ece),
    )
    gates = []
    for name, sign, limit in limits:
        value = metrics.get(name, float("nan"))
        gates.append(Gate(name, value, f"{sign} {limit:.4g}", value >= limit if sign == ">=" else value <= limit))
    return tuple(gates)


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
) -> Published:
    """One whole cycle: what was known at `as_of_ms` becomes a published (not yet activated) generation."""
    current = store.current()
    table = None
    if current is not None:
        table = FeatureTable.from_json((store.folder(current) / "schema.json").read_text())
    prepared = prepare(dataset, as_of_ms=as_of_ms, tower_positives=settings.tower_positives, served=served, table=table)
    towers, retrieval = fit_towers(prepared, settings, seed=seed, folder=folder)
    ranker, calibration, ranking = fit_ranker(prepared, settings, seed=seed, folder=folder)
    metrics = {f"retrieval.{name}": value for name, value in retrieval.items()}
    metrics |= {f"ranker.{name}": value for name, value in ranking.items()}
    return export(prepared, towers, ranker, calibration, settings=settings, metrics=metrics, store=store, now_ms=now_ms)
