"""Which sources a generation asks, and how."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from candidate_gen.activity import Activity
from candidate_gen.features import FeatureTable
from candidate_gen.items import Items
from candidate_gen.live import LIVE
from candidate_gen.sources import (
    SOURCES,
    Ann,
    AsUnderstood,
    Fresh,
    Lexical,
    Popular,
    SimilarToRecent,
    TextSearch,
    Told,
)
from index.delta import Base
from index.lexical import check_boosts
from index.vectors import VectorIndex
from serving.fan_out import FanOut
from serving.pipeline import Source

Quotas = Sequence[tuple[Source, int]]


@dataclass(frozen=True, slots=True)
class RetrievalSettings:
    """How many candidates each source may name, what it goes by, and which of them are not eligible."""

    quotas: Mapping[str, int] = field(
        default_factory=lambda: {
            "ann": 200,
            "lexical": 200,
            "understood": 50,
            "similar": 80,
            "covisitation": 50,
            "trending": 50,
            "fresh": 50,
            "popular": 50,
        }
    )
    most: int | None = None
    """Candidates that are scored, the best by reciprocal rank fusion; None for all that the sources name."""
    lexical_weight: float | None = 0.5
    """Of what was typed only words and meaning count: the weight of words against meaning in the fusion, 0 to 1. None:
    every source is asked, as it is for a recommendation."""
    most_of_search: int | None = 200
    """`most`, where something was typed."""
    boosts: Mapping[str, int] = field(
        default_factory=lambda: {"title": 1, "category": 1, "creator": 1, "description": 1}
    )
    """How often a word in a field of an item counts for search; 0: the field is not read. 1 for declared columns of
    text that are not named."""
    patience_ms: float = 100.0
    """How long a search is waited for where searches have threads of their own: where the index is in shards."""
    fresh_days: float = 3.0
    fresh_explored: float = 0.2
    """Share of the fresh source's places that goes to fresh items drawn evenly, not to the newest."""
    trending_half_life_hours: float = 12.0
    covisitation_half_life_days: float = 7.0
    visit_minutes: float = 30.0
    """After a longer pause, what a visitor takes is no longer taken together with what was before."""
    recent_events: int = 20_000
    """Newest positive outcomes that a generation carries, for trending and co-visitation to begin with."""
    popular_by: str | None = None
    """User column by whose values popularity is counted, beside everybody's; None: the data set's first with known
    values. Empty for everybody's alone."""
    synonyms: str | None = None
    """File of rules, see `candidate_gen.synonyms`; None for none."""
    hide_seen: bool | None = None
    """Leave out what the user's history holds; None: as suits the data, see `Dataset.repeats`."""

    def __post_init__(self) -> None:
        if any(quota < 0 for quota in self.quotas.values()) or self.quotas.get("popular", 0) < 1:
            raise ValueError(f"quotas must not be negative and popular's at least 1, got {dict(self.quotas)}")
        if unknown := sorted(set(self.quotas) - set(SOURCES)):
            raise ValueError(f"quotas names {', '.join(unknown)}; there are the sources {', '.join(SOURCES)}")
        if self.most is not None and self.most < 1:
            raise ValueError(f"most is {self.most}; it must be at least 1, or null")
        if self.most_of_search is not None and self.most_of_search < 1:
            raise ValueError(f"most_of_search is {self.most_of_search}; it must be at least 1, or null")
        if self.lexical_weight is not None and not 0 <= self.lexical_weight <= 1:
            raise ValueError(f"lexical_weight is {self.lexical_weight}; it must be from 0 to 1, or null")
        check_boosts(self.boosts)
        spans = ("patience_ms", "fresh_days", "trending_half_life_hours", "covisitation_half_life_days")
        for name in (*spans, "visit_minutes"):
            if not 0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive, got {getattr(self, name)}")
        if not 0 <= self.fresh_explored <= 1:
            raise ValueError(f"fresh_explored is {self.fresh_explored}; it must be from 0 to 1")
        if self.recent_events < 0:
            raise ValueError(f"recent_events is {self.recent_events}; it must not be negative")


def mixed(lexical_weight: float) -> dict[str, float]:
    """The sources of a search, with their weights in the fusion; one that weighs nothing is not asked. What a query is
    understood to mean beyond its words counts half as much as they do."""
    weights = {"lexical": lexical_weight, "understood": lexical_weight / 2, "ann": 1 - lexical_weight}
    return {name: weight for name, weight in weights.items() if weight}


def chosen(
    settings: RetrievalSettings,
    items: Items,
    *,
    vectors: Base,
    lexical: TextSearch,
    activity: Activity,
    table: FeatureTable,
) -> Quotas:
    """The sources that may name candidates, in the order of `SOURCES`."""
    segment = settings.popular_by if settings.popular_by in (table.profile_dtype.names or ()) else None
    sources: tuple[Source, ...] = (
        Ann(vectors),
        Lexical(lexical),
        AsUnderstood(lexical, items),
        SimilarToRecent(vectors.of_items, items),
        *(Told(name) for name in LIVE),
        Fresh(items, horizon_days=settings.fresh_days, explored=settings.fresh_explored),
        Popular(items, segment=segment or "", segment_P=activity.segment_P),
    )
    return [(each, quota) for each in sources if (quota := settings.quotas.get(each.name))]


def grown(sources: Quotas, items: Items, *, vectors: Base, lexical: TextSearch) -> Quotas:
    """The same of the items that theirs have become."""

    def of(source: Source) -> Source:
        match source:
            case Ann():
                return Ann(vectors)
            case Lexical():
                return Lexical(lexical)
            case AsUnderstood():
                return AsUnderstood(lexical, items)
            case SimilarToRecent():
                return SimilarToRecent(vectors.of_items, items)
            case Fresh() | Popular():
                return source.on(items)
        return source

    return [(of(source), quota) for source, quota in sources]


def fan_out(vectors: Base) -> FanOut:
    """Threads for the sources that search, where shards may keep silent. What this process searches itself it does in
    turn: threads would wait for each other's turn of the interpreter, and with a process for each core of no other."""
    return FanOut(() if isinstance(vectors, VectorIndex) else ("ann", "lexical", "understood", "similar"))
