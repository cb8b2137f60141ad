from protos import impression_pb2 as _impression_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Priority(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PRIORITY_UNSPECIFIED: _ClassVar[Priority]
    PRIORITY_SHEDDABLE: _ClassVar[Priority]
    PRIORITY_DEFAULT: _ClassVar[Priority]
    PRIORITY_CRITICAL: _ClassVar[Priority]

class DebugLevel(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DEBUG_LEVEL_UNSPECIFIED: _ClassVar[DebugLevel]
    DEBUG_LEVEL_NONE: _ClassVar[DebugLevel]
    DEBUG_LEVEL_SUMMARY: _ClassVar[DebugLevel]
    DEBUG_LEVEL_FULL: _ClassVar[DebugLevel]

class ReasonKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REASON_UNSPECIFIED: _ClassVar[ReasonKind]
    REASON_PERSONALISED: _ClassVar[ReasonKind]
    REASON_SIMILAR_TO: _ClassVar[ReasonKind]
    REASON_SEARCH_MATCH: _ClassVar[ReasonKind]
    REASON_POPULAR: _ClassVar[ReasonKind]
    REASON_FRESH: _ClassVar[ReasonKind]
    REASON_EXPLORED: _ClassVar[ReasonKind]
    REASON_PINNED: _ClassVar[ReasonKind]
    REASON_COLD_START: _ClassVar[ReasonKind]

class SuggestionKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SUGGESTION_UNSPECIFIED: _ClassVar[SuggestionKind]
    SUGGESTION_COMPLETION: _ClassVar[SuggestionKind]
    SUGGESTION_CORRECTION: _ClassVar[SuggestionKind]
    SUGGESTION_ITEM: _ClassVar[SuggestionKind]
    SUGGESTION_CATEGORY: _ClassVar[SuggestionKind]
PRIORITY_UNSPECIFIED: Priority
PRIORITY_SHEDDABLE: Priority
PRIORITY_DEFAULT: Priority
PRIORITY_CRITICAL: Priority
DEBUG_LEVEL_UNSPECIFIED: DebugLevel
DEBUG_LEVEL_NONE: DebugLevel
DEBUG_LEVEL_SUMMARY: DebugLevel
DEBUG_LEVEL_FULL: DebugLevel
REASON_UNSPECIFIED: ReasonKind
REASON_PERSONALISED: ReasonKind
REASON_SIMILAR_TO: ReasonKind
REASON_SEARCH_MATCH: ReasonKind
REASON_POPULAR: ReasonKind
REASON_FRESH: ReasonKind
REASON_EXPLORED: ReasonKind
REASON_PINNED: ReasonKind
REASON_COLD_START: ReasonKind
SUGGESTION_UNSPECIFIED: SuggestionKind
SUGGESTION_COMPLETION: SuggestionKind
SUGGESTION_CORRECTION: SuggestionKind
SUGGESTION_ITEM: SuggestionKind
SUGGESTION_CATEGORY: SuggestionKind

class Context(_message.Message):
    __slots__ = ("tenant", "surface", "user_id", "visitor_id", "session_id", "recent_item_ids", "features", "client_time_ms", "priority")
    class FeaturesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _impression_pb2.FeatureValue
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_impression_pb2.FeatureValue, _Mapping]] = ...) -> None: ...
    TENANT_FIELD_NUMBER: _ClassVar[int]
    SURFACE_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    VISITOR_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    RECENT_ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    CLIENT_TIME_MS_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    tenant: str
    surface: str
    user_id: str
    visitor_id: str
    session_id: str
    recent_item_ids: _containers.RepeatedScalarFieldContainer[str]
    features: _containers.MessageMap[str, _impression_pb2.FeatureValue]
    client_time_ms: int
    priority: Priority
    def __init__(self, tenant: _Optional[str] = ..., surface: _Optional[str] = ..., user_id: _Optional[str] = ..., visitor_id: _Optional[str] = ..., session_id: _Optional[str] = ..., recent_item_ids: _Optional[_Iterable[str]] = ..., features: _Optional[_Mapping[str, _impression_pb2.FeatureValue]] = ..., client_time_ms: _Optional[int] = ..., priority: _Optional[_Union[Priority, str]] = ...) -> None: ...

class PolicyOverrides(_message.Message):
    __slots__ = ("temperature", "epsilon", "diversity", "freshness", "category_cap", "creator_cap")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    EPSILON_FIELD_NUMBER: _ClassVar[int]
    DIVERSITY_FIELD_NUMBER: _ClassVar[int]
    FRESHNESS_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_CAP_FIELD_NUMBER: _ClassVar[int]
    CREATOR_CAP_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    epsilon: float
    diversity: float
    freshness: float
    category_cap: int
    creator_cap: int
    def __init__(self, temperature: _Optional[float] = ..., epsilon: _Optional[float] = ..., diversity: _Optional[float] = ..., freshness: _Optional[float] = ..., category_cap: _Optional[int] = ..., creator_cap: _Optional[int] = ...) -> None: ...

class RecommendRequest(_message.Message):
    __slots__ = ("context", "request_id", "page_size", "page_token", "filter", "filter_mode", "policy", "boosts", "exclude_item_ids", "return_fields", "include_scores", "columns", "debug", "validate_only", "no_log", "labels", "seed_item_ids")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    FILTER_MODE_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    BOOSTS_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    RETURN_FIELDS_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_SCORES_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    DEBUG_FIELD_NUMBER: _ClassVar[int]
    VALIDATE_ONLY_FIELD_NUMBER: _ClassVar[int]
    NO_LOG_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    SEED_ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    context: Context
    request_id: str
    page_size: int
    page_token: str
    filter: str
    filter_mode: _impression_pb2.FilterMode
    policy: PolicyOverrides
    boosts: _containers.RepeatedCompositeFieldContainer[_impression_pb2.Boost]
    exclude_item_ids: _containers.RepeatedScalarFieldContainer[str]
    return_fields: _containers.RepeatedScalarFieldContainer[str]
    include_scores: bool
    columns: bool
    debug: DebugLevel
    validate_only: bool
    no_log: bool
    labels: _containers.ScalarMap[str, str]
    seed_item_ids: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, context: _Optional[_Union[Context, _Mapping]] = ..., request_id: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., filter: _Optional[str] = ..., filter_mode: _Optional[_Union[_impression_pb2.FilterMode, str]] = ..., policy: _Optional[_Union[PolicyOverrides, _Mapping]] = ..., boosts: _Optional[_Iterable[_Union[_impression_pb2.Boost, _Mapping]]] = ..., exclude_item_ids: _Optional[_Iterable[str]] = ..., return_fields: _Optional[_Iterable[str]] = ..., include_scores: _Optional[bool] = ..., columns: _Optional[bool] = ..., debug: _Optional[_Union[DebugLevel, str]] = ..., validate_only: _Optional[bool] = ..., no_log: _Optional[bool] = ..., labels: _Optional[_Mapping[str, str]] = ..., seed_item_ids: _Optional[_Iterable[str]] = ...) -> None: ...

class Reason(_message.Message):
    __slots__ = ("kind", "item_id")
    KIND_FIELD_NUMBER: _ClassVar[int]
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    kind: ReasonKind
    item_id: str
    def __init__(self, kind: _Optional[_Union[ReasonKind, str]] = ..., item_id: _Optional[str] = ...) -> None: ...

class Item(_message.Message):
    __slots__ = ("item_id", "position", "score", "actions", "propensity", "prefix_propensity", "reasons", "sources", "fields", "title", "category", "published_ms")
    class ActionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class FieldsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _impression_pb2.FeatureValue
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_impression_pb2.FeatureValue, _Mapping]] = ...) -> None: ...
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    ACTIONS_FIELD_NUMBER: _ClassVar[int]
    PROPENSITY_FIELD_NUMBER: _ClassVar[int]
    PREFIX_PROPENSITY_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    SOURCES_FIELD_NUMBER: _ClassVar[int]
    FIELDS_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    PUBLISHED_MS_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    position: int
    score: float
    actions: _containers.ScalarMap[str, float]
    propensity: float
    prefix_propensity: float
    reasons: _containers.RepeatedCompositeFieldContainer[Reason]
    sources: _containers.RepeatedScalarFieldContainer[str]
    fields: _containers.MessageMap[str, _impression_pb2.FeatureValue]
    title: str
    category: str
    published_ms: int
    def __init__(self, item_id: _Optional[str] = ..., position: _Optional[int] = ..., score: _Optional[float] = ..., actions: _Optional[_Mapping[str, float]] = ..., propensity: _Optional[float] = ..., prefix_propensity: _Optional[float] = ..., reasons: _Optional[_Iterable[_Union[Reason, _Mapping]]] = ..., sources: _Optional[_Iterable[str]] = ..., fields: _Optional[_Mapping[str, _impression_pb2.FeatureValue]] = ..., title: _Optional[str] = ..., category: _Optional[str] = ..., published_ms: _Optional[int] = ...) -> None: ...

class Columns(_message.Message):
    __slots__ = ("item_id", "propensity", "source_names", "source_bits", "reason_bits", "score", "action_names", "probability", "title", "category", "published_ms")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    PROPENSITY_FIELD_NUMBER: _ClassVar[int]
    SOURCE_NAMES_FIELD_NUMBER: _ClassVar[int]
    SOURCE_BITS_FIELD_NUMBER: _ClassVar[int]
    REASON_BITS_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    ACTION_NAMES_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    PUBLISHED_MS_FIELD_NUMBER: _ClassVar[int]
    item_id: _containers.RepeatedScalarFieldContainer[str]
    propensity: _containers.RepeatedScalarFieldContainer[float]
    source_names: _containers.RepeatedScalarFieldContainer[str]
    source_bits: _containers.RepeatedScalarFieldContainer[int]
    reason_bits: _containers.RepeatedScalarFieldContainer[int]
    score: _containers.RepeatedScalarFieldContainer[float]
    action_names: _containers.RepeatedScalarFieldContainer[str]
    probability: _containers.RepeatedScalarFieldContainer[float]
    title: _containers.RepeatedScalarFieldContainer[str]
    category: _containers.RepeatedScalarFieldContainer[str]
    published_ms: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, item_id: _Optional[_Iterable[str]] = ..., propensity: _Optional[_Iterable[float]] = ..., source_names: _Optional[_Iterable[str]] = ..., source_bits: _Optional[_Iterable[int]] = ..., reason_bits: _Optional[_Iterable[int]] = ..., score: _Optional[_Iterable[float]] = ..., action_names: _Optional[_Iterable[str]] = ..., probability: _Optional[_Iterable[float]] = ..., title: _Optional[_Iterable[str]] = ..., category: _Optional[_Iterable[str]] = ..., published_ms: _Optional[_Iterable[int]] = ...) -> None: ...

class Degradation(_message.Message):
    __slots__ = ("bits", "stages")
    BITS_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    bits: int
    stages: _containers.RepeatedCompositeFieldContainer[_impression_pb2.StageTime]
    def __init__(self, bits: _Optional[int] = ..., stages: _Optional[_Iterable[_Union[_impression_pb2.StageTime, _Mapping]]] = ...) -> None: ...

class Trace(_message.Message):
    __slots__ = ("retrieved", "removed", "eligible", "history")
    class RetrievedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class RemovedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    RETRIEVED_FIELD_NUMBER: _ClassVar[int]
    REMOVED_FIELD_NUMBER: _ClassVar[int]
    ELIGIBLE_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    retrieved: _containers.ScalarMap[str, int]
    removed: _containers.ScalarMap[str, int]
    eligible: int
    history: int
    def __init__(self, retrieved: _Optional[_Mapping[str, int]] = ..., removed: _Optional[_Mapping[str, int]] = ..., eligible: _Optional[int] = ..., history: _Optional[int] = ...) -> None: ...

class RecommendResponse(_message.Message):
    __slots__ = ("request_id", "attribution_token", "items", "columns", "next_page_token", "generation", "experiment_arms", "degradation", "policy", "missing_ids", "trace")
    class ExperimentArmsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTION_TOKEN_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    EXPERIMENT_ARMS_FIELD_NUMBER: _ClassVar[int]
    DEGRADATION_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    MISSING_IDS_FIELD_NUMBER: _ClassVar[int]
    TRACE_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    attribution_token: str
    items: _containers.RepeatedCompositeFieldContainer[Item]
    columns: Columns
    next_page_token: str
    generation: str
    experiment_arms: _containers.ScalarMap[str, str]
    degradation: Degradation
    policy: _impression_pb2.Policy
    missing_ids: _containers.RepeatedScalarFieldContainer[str]
    trace: Trace
    def __init__(self, request_id: _Optional[str] = ..., attribution_token: _Optional[str] = ..., items: _Optional[_Iterable[_Union[Item, _Mapping]]] = ..., columns: _Optional[_Union[Columns, _Mapping]] = ..., next_page_token: _Optional[str] = ..., generation: _Optional[str] = ..., experiment_arms: _Optional[_Mapping[str, str]] = ..., degradation: _Optional[_Union[Degradation, _Mapping]] = ..., policy: _Optional[_Union[_impression_pb2.Policy, _Mapping]] = ..., missing_ids: _Optional[_Iterable[str]] = ..., trace: _Optional[_Union[Trace, _Mapping]] = ...) -> None: ...

class FacetRequest(_message.Message):
    __slots__ = ("field", "limit", "bounds")
    FIELD_FIELD_NUMBER: _ClassVar[int]
    LIMIT_FIELD_NUMBER: _ClassVar[int]
    BOUNDS_FIELD_NUMBER: _ClassVar[int]
    field: str
    limit: int
    bounds: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, field: _Optional[str] = ..., limit: _Optional[int] = ..., bounds: _Optional[_Iterable[float]] = ...) -> None: ...

class Facet(_message.Message):
    __slots__ = ("field", "values")
    FIELD_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    field: str
    values: _containers.RepeatedCompositeFieldContainer[FacetValue]
    def __init__(self, field: _Optional[str] = ..., values: _Optional[_Iterable[_Union[FacetValue, _Mapping]]] = ...) -> None: ...

class FacetValue(_message.Message):
    __slots__ = ("value", "count")
    VALUE_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    value: str
    count: int
    def __init__(self, value: _Optional[str] = ..., count: _Optional[int] = ...) -> None: ...

class SearchRequest(_message.Message):
    __slots__ = ("context", "request_id", "page_size", "page_token", "filter", "filter_mode", "policy", "boosts", "exclude_item_ids", "return_fields", "include_scores", "columns", "debug", "validate_only", "no_log", "labels", "query", "facets", "query_options", "hybrid", "order_by")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    FILTER_MODE_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    BOOSTS_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    RETURN_FIELDS_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_SCORES_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    DEBUG_FIELD_NUMBER: _ClassVar[int]
    VALIDATE_ONLY_FIELD_NUMBER: _ClassVar[int]
    NO_LOG_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    FACETS_FIELD_NUMBER: _ClassVar[int]
    QUERY_OPTIONS_FIELD_NUMBER: _ClassVar[int]
    HYBRID_FIELD_NUMBER: _ClassVar[int]
    ORDER_BY_FIELD_NUMBER: _ClassVar[int]
    context: Context
    request_id: str
    page_size: int
    page_token: str
    filter: str
    filter_mode: _impression_pb2.FilterMode
    policy: PolicyOverrides
    boosts: _containers.RepeatedCompositeFieldContainer[_impression_pb2.Boost]
    exclude_item_ids: _containers.RepeatedScalarFieldContainer[str]
    return_fields: _containers.RepeatedScalarFieldContainer[str]
    include_scores: bool
    columns: bool
    debug: DebugLevel
    validate_only: bool
    no_log: bool
    labels: _containers.ScalarMap[str, str]
    query: str
    facets: _containers.RepeatedCompositeFieldContainer[FacetRequest]
    query_options: _impression_pb2.QueryOptions
    hybrid: _impression_pb2.HybridOptions
    order_by: str
    def __init__(self, context: _Optional[_Union[Context, _Mapping]] = ..., request_id: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., filter: _Optional[str] = ..., filter_mode: _Optional[_Union[_impression_pb2.FilterMode, str]] = ..., policy: _Optional[_Union[PolicyOverrides, _Mapping]] = ..., boosts: _Optional[_Iterable[_Union[_impression_pb2.Boost, _Mapping]]] = ..., exclude_item_ids: _Optional[_Iterable[str]] = ..., return_fields: _Optional[_Iterable[str]] = ..., include_scores: _Optional[bool] = ..., columns: _Optional[bool] = ..., debug: _Optional[_Union[DebugLevel, str]] = ..., validate_only: _Optional[bool] = ..., no_log: _Optional[bool] = ..., labels: _Optional[_Mapping[str, str]] = ..., query: _Optional[str] = ..., facets: _Optional[_Iterable[_Union[FacetRequest, _Mapping]]] = ..., query_options: _Optional[_Union[_impression_pb2.QueryOptions, _Mapping]] = ..., hybrid: _Optional[_Union[_impression_pb2.HybridOptions, _Mapping]] = ..., order_by: _Optional[str] = ...) -> None: ...

class SearchResponse(_message.Message):
    __slots__ = ("request_id", "attribution_token", "items", "columns", "next_page_token", "generation", "experiment_arms", "degradation", "policy", "missing_ids", "trace", "facets", "total_size", "corrected_query", "expanded_query", "redirect_uri", "extracted_filter", "dropped_filter", "intent", "creator_intent")
    class ExperimentArmsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class IntentEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class CreatorIntentEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTION_TOKEN_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    EXPERIMENT_ARMS_FIELD_NUMBER: _ClassVar[int]
    DEGRADATION_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    MISSING_IDS_FIELD_NUMBER: _ClassVar[int]
    TRACE_FIELD_NUMBER: _ClassVar[int]
    FACETS_FIELD_NUMBER: _ClassVar[int]
    TOTAL_SIZE_FIELD_NUMBER: _ClassVar[int]
    CORRECTED_QUERY_FIELD_NUMBER: _ClassVar[int]
    EXPANDED_QUERY_FIELD_NUMBER: _ClassVar[int]
    REDIRECT_URI_FIELD_NUMBER: _ClassVar[int]
    EXTRACTED_FILTER_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FILTER_FIELD_NUMBER: _ClassVar[int]
    INTENT_FIELD_NUMBER: _ClassVar[int]
    CREATOR_INTENT_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    attribution_token: str
    items: _containers.RepeatedCompositeFieldContainer[Item]
    columns: Columns
    next_page_token: str
    generation: str
    experiment_arms: _containers.ScalarMap[str, str]
    degradation: Degradation
    policy: _impression_pb2.Policy
    missing_ids: _containers.RepeatedScalarFieldContainer[str]
    trace: Trace
    facets: _containers.RepeatedCompositeFieldContainer[Facet]
    total_size: int
    corrected_query: str
    expanded_query: str
    redirect_uri: str
    extracted_filter: str
    dropped_filter: str
    intent: _containers.ScalarMap[str, float]
    creator_intent: _containers.ScalarMap[str, float]
    def __init__(self, request_id: _Optional[str] = ..., attribution_token: _Optional[str] = ..., items: _Optional[_Iterable[_Union[Item, _Mapping]]] = ..., columns: _Optional[_Union[Columns, _Mapping]] = ..., next_page_token: _Optional[str] = ..., generation: _Optional[str] = ..., experiment_arms: _Optional[_Mapping[str, str]] = ..., degradation: _Optional[_Union[Degradation, _Mapping]] = ..., policy: _Optional[_Union[_impression_pb2.Policy, _Mapping]] = ..., missing_ids: _Optional[_Iterable[str]] = ..., trace: _Optional[_Union[Trace, _Mapping]] = ..., facets: _Optional[_Iterable[_Union[Facet, _Mapping]]] = ..., total_size: _Optional[int] = ..., corrected_query: _Optional[str] = ..., expanded_query: _Optional[str] = ..., redirect_uri: _Optional[str] = ..., extracted_filter: _Optional[str] = ..., dropped_filter: _Optional[str] = ..., intent: _Optional[_Mapping[str, float]] = ..., creator_intent: _Optional[_Mapping[str, float]] = ...) -> None: ...

class RankRequest(_message.Message):
    __slots__ = ("context", "request_id", "page_size", "page_token", "filter", "filter_mode", "policy", "boosts", "exclude_item_ids", "return_fields", "include_scores", "columns", "debug", "validate_only", "no_log", "labels", "item_ids", "query")
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    FILTER_MODE_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    BOOSTS_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    RETURN_FIELDS_FIELD_NUMBER: _ClassVar[int]
    INCLUDE_SCORES_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    DEBUG_FIELD_NUMBER: _ClassVar[int]
    VALIDATE_ONLY_FIELD_NUMBER: _ClassVar[int]
    NO_LOG_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    QUERY_FIELD_NUMBER: _ClassVar[int]
    context: Context
    request_id: str
    page_size: int
    page_token: str
    filter: str
    filter_mode: _impression_pb2.FilterMode
    policy: PolicyOverrides
    boosts: _containers.RepeatedCompositeFieldContainer[_impression_pb2.Boost]
    exclude_item_ids: _containers.RepeatedScalarFieldContainer[str]
    return_fields: _containers.RepeatedScalarFieldContainer[str]
    include_scores: bool
    columns: bool
    debug: DebugLevel
    validate_only: bool
    no_log: bool
    labels: _containers.ScalarMap[str, str]
    item_ids: _containers.RepeatedScalarFieldContainer[str]
    query: str
    def __init__(self, context: _Optional[_Union[Context, _Mapping]] = ..., request_id: _Optional[str] = ..., page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., filter: _Optional[str] = ..., filter_mode: _Optional[_Union[_impression_pb2.FilterMode, str]] = ..., policy: _Optional[_Union[PolicyOverrides, _Mapping]] = ..., boosts: _Optional[_Iterable[_Union[_impression_pb2.Boost, _Mapping]]] = ..., exclude_item_ids: _Optional[_Iterable[str]] = ..., return_fields: _Optional[_Iterable[str]] = ..., include_scores: _Optional[bool] = ..., columns: _Optional[bool] = ..., debug: _Optional[_Union[DebugLevel, str]] = ..., validate_only: _Optional[bool] = ..., no_log: _Optional[bool] = ..., labels: _Optional[_Mapping[str, str]] = ..., item_ids: _Optional[_Iterable[str]] = ..., query: _Optional[str] = ...) -> None: ...

class RankResponse(_message.Message):
    __slots__ = ("request_id", "attribution_token", "items", "columns", "next_page_token", "generation", "experiment_arms", "degradation", "policy", "missing_ids", "trace")
    class ExperimentArmsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTION_TOKEN_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    EXPERIMENT_ARMS_FIELD_NUMBER: _ClassVar[int]
    DEGRADATION_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    MISSING_IDS_FIELD_NUMBER: _ClassVar[int]
    TRACE_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    attribution_token: str
    items: _containers.RepeatedCompositeFieldContainer[Item]
    columns: Columns
    next_page_token: str
    generation: str
    experiment_arms: _containers.ScalarMap[str, str]
    degradation: Degradation
    policy: _impression_pb2.Policy
    missing_ids: _containers.RepeatedScalarFieldContainer[str]
    trace: Trace
    def __init__(self, request_id: _Optional[str] = ..., attribution_token: _Optional[str] = ..., items: _Optional[_Iterable[_Union[Item, _Mapping]]] = ..., columns: _Optional[_Union[Columns, _Mapping]] = ..., next_page_token: _Optional[str] = ..., generation: _Optional[str] = ..., experiment_arms: _Optional[_Mapping[str, str]] = ..., degradation: _Optional[_Union[Degradation, _Mapping]] = ..., policy: _Optional[_Union[_impression_pb2.Policy, _Mapping]] = ..., missing_ids: _Optional[_Iterable[str]] = ..., trace: _Optional[_Union[Trace, _Mapping]] = ...) -> None: ...

class SuggestRequest(_message.Message):
    __slots__ = ("context", "prefix", "page_size")
    CONTEXT_FIELD_NUMBER: _ClassVar[int]
    PREFIX_FIELD_NUMBER: _ClassVar[int]
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    context: Context
    prefix: str
    page_size: int
    def __init__(self, context: _Optional[_Union[Context, _Mapping]] = ..., prefix: _Optional[str] = ..., page_size: _Optional[int] = ...) -> None: ...

class Suggestion(_message.Message):
    __slots__ = ("kind", "text", "score", "item_id")
    KIND_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    kind: SuggestionKind
    text: str
    score: float
    item_id: str
    def __init__(self, kind: _Optional[_Union[SuggestionKind, str]] = ..., text: _Optional[str] = ..., score: _Optional[float] = ..., item_id: _Optional[str] = ...) -> None: ...

class SuggestResponse(_message.Message):
    __slots__ = ("suggestions", "generation")
    SUGGESTIONS_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    suggestions: _containers.RepeatedCompositeFieldContainer[Suggestion]
    generation: str
    def __init__(self, suggestions: _Optional[_Iterable[_Union[Suggestion, _Mapping]]] = ..., generation: _Optional[str] = ...) -> None: ...

class WhatIf(_message.Message):
    __slots__ = ("generation", "variation")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    VARIATION_FIELD_NUMBER: _ClassVar[int]
    generation: str
    variation: _impression_pb2.Variation
    def __init__(self, generation: _Optional[str] = ..., variation: _Optional[_Union[_impression_pb2.Variation, _Mapping]] = ...) -> None: ...

class ExplainRequest(_message.Message):
    __slots__ = ("request_id", "item_ids", "features", "recommend", "search", "what_ifs", "lost")
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    RECOMMEND_FIELD_NUMBER: _ClassVar[int]
    SEARCH_FIELD_NUMBER: _ClassVar[int]
    WHAT_IFS_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    item_ids: _containers.RepeatedScalarFieldContainer[str]
    features: bool
    recommend: RecommendRequest
    search: SearchRequest
    what_ifs: _containers.RepeatedCompositeFieldContainer[WhatIf]
    lost: int
    def __init__(self, request_id: _Optional[str] = ..., item_ids: _Optional[_Iterable[str]] = ..., features: _Optional[bool] = ..., recommend: _Optional[_Union[RecommendRequest, _Mapping]] = ..., search: _Optional[_Union[SearchRequest, _Mapping]] = ..., what_ifs: _Optional[_Iterable[_Union[WhatIf, _Mapping]]] = ..., lost: _Optional[int] = ...) -> None: ...

class Rival(_message.Message):
    __slots__ = ("item_id", "score", "propensity")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    PROPENSITY_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    score: float
    propensity: float
    def __init__(self, item_id: _Optional[str] = ..., score: _Optional[float] = ..., propensity: _Optional[float] = ...) -> None: ...

class Explanation(_message.Message):
    __slots__ = ("item_id", "position", "reasons", "lost", "terms", "features", "ranks", "actions", "propensity", "flags", "rivals", "values", "title", "category")
    class TermsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class FeaturesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class RanksEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class ActionsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class ValuesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _impression_pb2.FeatureValue
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_impression_pb2.FeatureValue, _Mapping]] = ...) -> None: ...
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    REASONS_FIELD_NUMBER: _ClassVar[int]
    LOST_FIELD_NUMBER: _ClassVar[int]
    TERMS_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    ACTIONS_FIELD_NUMBER: _ClassVar[int]
    PROPENSITY_FIELD_NUMBER: _ClassVar[int]
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    RIVALS_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    CATEGORY_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    position: int
    reasons: _containers.RepeatedCompositeFieldContainer[Reason]
    lost: str
    terms: _containers.ScalarMap[str, float]
    features: _containers.ScalarMap[str, float]
    ranks: _containers.ScalarMap[str, int]
    actions: _containers.ScalarMap[str, float]
    propensity: float
    flags: int
    rivals: _containers.RepeatedCompositeFieldContainer[Rival]
    values: _containers.MessageMap[str, _impression_pb2.FeatureValue]
    title: str
    category: str
    def __init__(self, item_id: _Optional[str] = ..., position: _Optional[int] = ..., reasons: _Optional[_Iterable[_Union[Reason, _Mapping]]] = ..., lost: _Optional[str] = ..., terms: _Optional[_Mapping[str, float]] = ..., features: _Optional[_Mapping[str, float]] = ..., ranks: _Optional[_Mapping[str, int]] = ..., actions: _Optional[_Mapping[str, float]] = ..., propensity: _Optional[float] = ..., flags: _Optional[int] = ..., rivals: _Optional[_Iterable[_Union[Rival, _Mapping]]] = ..., values: _Optional[_Mapping[str, _impression_pb2.FeatureValue]] = ..., title: _Optional[str] = ..., category: _Optional[str] = ...) -> None: ...

class PastEvent(_message.Message):
    __slots__ = ("item_id", "title", "action", "time_ms")
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    TITLE_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    TIME_MS_FIELD_NUMBER: _ClassVar[int]
    item_id: str
    title: str
    action: str
    time_ms: int
    def __init__(self, item_id: _Optional[str] = ..., title: _Optional[str] = ..., action: _Optional[str] = ..., time_ms: _Optional[int] = ...) -> None: ...

class ExplainResponse(_message.Message):
    __slots__ = ("impression", "items", "reproduced", "diverged", "trace", "query_values", "history", "settings", "what_ifs")
    class QueryValuesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: _impression_pb2.FeatureValue
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[_impression_pb2.FeatureValue, _Mapping]] = ...) -> None: ...
    IMPRESSION_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    REPRODUCED_FIELD_NUMBER: _ClassVar[int]
    DIVERGED_FIELD_NUMBER: _ClassVar[int]
    TRACE_FIELD_NUMBER: _ClassVar[int]
    QUERY_VALUES_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    WHAT_IFS_FIELD_NUMBER: _ClassVar[int]
    impression: _impression_pb2.Impression
    items: _containers.RepeatedCompositeFieldContainer[Explanation]
    reproduced: bool
    diverged: str
    trace: Trace
    query_values: _containers.MessageMap[str, _impression_pb2.FeatureValue]
    history: _containers.RepeatedCompositeFieldContainer[PastEvent]
    settings: _impression_pb2.Variation
    what_ifs: _containers.RepeatedCompositeFieldContainer[ExplainResponse]
    def __init__(self, impression: _Optional[_Union[_impression_pb2.Impression, _Mapping]] = ..., items: _Optional[_Iterable[_Union[Explanation, _Mapping]]] = ..., reproduced: _Optional[bool] = ..., diverged: _Optional[str] = ..., trace: _Optional[_Union[Trace, _Mapping]] = ..., query_values: _Optional[_Mapping[str, _impression_pb2.FeatureValue]] = ..., history: _Optional[_Iterable[_Union[PastEvent, _Mapping]]] = ..., settings: _Optional[_Union[_impression_pb2.Variation, _Mapping]] = ..., what_ifs: _Optional[_Iterable[_Union[ExplainResponse, _Mapping]]] = ...) -> None: ...
