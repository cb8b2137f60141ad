"""What a client says and is told, in plain Python, and its way to and from the wire."""

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from protos import recommender_pb2
from protos.catalog_pb2 import CatalogItem, CatalogUser, ItemPatch
from protos.impression_pb2 import Degraded, FeatureValue, Outcome, QueryOptions, QueryStep
from protos.recommender_pb2 import ReasonKind, SuggestionKind

STEPS = ("spelling", "synonyms", "expansion", "filters", "intent")
"""What may be done to a typed query, by the names of `QueryOptions`."""


@dataclass(frozen=True, slots=True)
class ShownItem:
    """One slot of a slate. `score` and `actions` are 0 and empty unless scores were asked for."""

    item_id: str
    propensity: float
    title: str = ""
    category: str = ""
    score: float = 0.0
    actions: Mapping[str, float] = field(default_factory=dict)
    sources: tuple[str, ...] = ()
    reasons: tuple[str, ...] = ()
    """Such as POPULAR, or SIMILAR_TO:<item id>."""


@dataclass(frozen=True, slots=True)
class ShownSlate:
    """What to show, in this order."""

    request_id: str
    attribution_token: str
    generation: str
    items: tuple[ShownItem, ...]
    log_propensity: float
    degraded: tuple[str, ...]
    """Empty for a complete answer; otherwise such as RANKER_SKIPPED."""
    missing_ids: tuple[str, ...]
    stage_ms: Mapping[str, float]
    experiment_arms: Mapping[str, str] = field(default_factory=dict)
    """Experiment to arm."""
    next_page_token: str = ""
    """To ask for what follows; empty where that is nothing."""
    total_size: int = 0
    """Matches of a search."""
    facets: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Of a search: by attribute how many matches have each value, most frequent first."""
    corrected_query: str = ""
    """Of a search, as all that follows: see SearchResponse."""
    expanded_query: str = ""
    extracted_filter: str = ""
    dropped_filter: str = ""
    intent: Mapping[str, float] = field(default_factory=dict)
    creator_intent: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class SuggestedLine:
    """A line to offer below the search box."""

    text: str
    kind: str
    """COMPLETION, CORRECTION, CATEGORY or ITEM."""
    score: float
    item_id: str = ""
    """Of ITEM."""


@dataclass(frozen=True, slots=True)
class Event:
    """Something a user did."""

    item_id: str
    action: str
    time_ms: int
    user_id: str = ""
    request_id: str = ""
    event_id: str = ""
    """Empty: the client makes one, and sends the same where it has to send again."""
    value: float = 1.0
    position: int = -1
    session_id: str = ""
    visible_ms: int = 0
    """Only read by a server that trusts the caller's clock."""

    def on_the_wire(self) -> Outcome:
        return Outcome(
            event_id=self.event_id or uuid.uuid4().hex,
            request_id=self.request_id,
            item_id=self.item_id,
            user_id=self.user_id,
            session_id=self.session_id,
            action=self.action,
            value=self.value,
            time_ms=self.time_ms,
            visible_ms=self.visible_ms,
            position=self.position,
        )


@dataclass(frozen=True, slots=True)
class EventAnswer:
    """`status` is STORED, DUPLICATE, REJECTED or LATE."""

    event_id: str
    status: str
    reason: str


@dataclass(frozen=True, slots=True)
class ItemEntry:
    """An item as the catalogue shall hold it, whole."""

    item_id: str
    title: str
    category: str = ""
    creator: str = ""
    published_ms: int = 0
    """0: as it was, or for a new item the time of the call."""
    description: str = ""
    """Searched, not shown."""
    price: float | None = None
    available: bool = True
    attributes: Mapping[str, str | float] = field(default_factory=dict)
    """Values of declared item columns."""

    def on_the_wire(self) -> CatalogItem:
        return CatalogItem(
            item_id=self.item_id,
            title=self.title,
            category=self.category,
            creator=self.creator,
            published_ms=self.published_ms,
            description=self.description,
            price=self.price,
            available=self.available,
            attributes=values(self.attributes),
        )


@dataclass(frozen=True, slots=True)
class ItemChange:
    """What is to change of an item; what is None or missing stays."""

    item_id: str
    available: bool | None = None
    price: float | None = None
    attributes: Mapping[str, str | float] = field(default_factory=dict)

    def on_the_wire(self) -> ItemPatch:
        return ItemPatch(
            item_id=self.item_id,
            available=self.available,
            price=self.price,
            attributes=values(self.attributes),
        )


@dataclass(frozen=True, slots=True)
class UserEntry:
    """A user as the catalogue shall hold one, whole."""

    user_id: str
    attributes: Mapping[str, str | float] = field(default_factory=dict)
    """Values of declared user columns."""

    def on_the_wire(self) -> CatalogUser:
        return CatalogUser(user_id=self.user_id, attributes=values(self.attributes))


@dataclass(frozen=True, slots=True)
class CatalogAnswer:
    """`status` is DONE, UNKNOWN or REJECTED, and then `reason` says why."""

    item_id: str
    status: str
    reason: str


def values(plain: Mapping[str, str | float]) -> dict[str, FeatureValue]:
    """Texts and numbers by name."""
    return {
        name: FeatureValue(text=value) if isinstance(value, str) else FeatureValue(number=value)
        for name, value in plain.items()
    }


def slate_of(
    response: recommender_pb2.RecommendResponse | recommender_pb2.SearchResponse | recommender_pb2.RankResponse,
) -> ShownSlate:
    return ShownSlate(
        request_id=response.request_id,
        attribution_token=response.attribution_token,
        generation=response.generation,
        items=_from_columns(response.columns) if response.HasField("columns") else _from_items(response.items),
        log_propensity=response.policy.log_propensity,
        degraded=tuple(
            name.removeprefix("DEGRADED_") for name, bit in Degraded.items() if response.degradation.bits & bit
        ),
        missing_ids=tuple(response.missing_ids),
        stage_ms={stage.stage: stage.milliseconds for stage in response.degradation.stages},
        experiment_arms=dict(response.experiment_arms),
        next_page_token=response.next_page_token,
        **(_of_search(response) if isinstance(response, recommender_pb2.SearchResponse) else {}),
    )


def _of_search(response: recommender_pb2.SearchResponse) -> dict[str, Any]:
    names = ("total_size", "corrected_query", "expanded_query", "extracted_filter", "dropped_filter")
    facets = {facet.field: {each.value: each.count for each in facet.values} for facet in response.facets}
    told = {name: getattr(response, name) for name in names}
    of = {name: dict(getattr(response, name)) for name in ("intent", "creator_intent")}
    return told | {"facets": facets, **of}


def lines_of(response: recommender_pb2.SuggestResponse) -> tuple[SuggestedLine, ...]:
    return tuple(
        SuggestedLine(
            each.text, SuggestionKind.Name(each.kind).removeprefix("SUGGESTION_"), each.score, item_id=each.item_id
        )
        for each in response.suggestions
    )


def options_of(options: Mapping[str, str | bool]) -> QueryOptions:
    """What may be done to a query: `{"spelling": "off", "filters": "suggest", "pin_unexpanded": True}`.

    Raises:
        ValueError: naming what is no step, or no way to take it.
    """
    made = QueryOptions()
    for name, value in options.items():
        try:
            setattr(made, name, value if isinstance(value, bool) else QueryStep.Value(f"QUERY_STEP_{value.upper()}"))
        except (AttributeError, TypeError, ValueError):
            steps = ", ".join(QueryOptions.DESCRIPTOR.fields_by_name)
            raise ValueError(
                f"query_options: {name}={value!r} given; there are {steps}: off, auto or suggest"
            ) from None
    return made


def _from_items(items: Sequence[recommender_pb2.Item]) -> tuple[ShownItem, ...]:
    return tuple(
        ShownItem(
            item_id=item.item_id,
            propensity=item.propensity,
            title=item.title,
            category=item.category,
            score=item.score,
            actions=dict(item.actions),
            sources=tuple(item.sources),
            reasons=tuple(_reason(each.kind) + (f":{each.item_id}" if each.item_id else "") for each in item.reasons),
        )
        for item in items
    )


def _from_columns(columns: recommender_pb2.Columns) -> tuple[ShownItem, ...]:
    actions = len(columns.action_names)
    return tuple(
        ShownItem(
            item_id=item_id,
            propensity=columns.propensity[k],
            title=columns.title[k] if columns.title else "",
            category=columns.category[k] if columns.category else "",
            score=columns.score[k] if columns.score else 0.0,
            actions=dict(zip(columns.action_names, columns.probability[k * actions : (k + 1) * actions], strict=True)),
            sources=tuple(name for s, name in enumerate(columns.source_names) if columns.source_bits[k] >> s & 1),
            reasons=tuple(_reason(kind) for kind in ReasonKind.values() if columns.reason_bits[k] >> kind & 1),
        )
        for k, item_id in enumerate(columns.item_id)
    )


def _reason(kind: int) -> str:
    return ReasonKind.Name(kind).removeprefix("REASON_")
