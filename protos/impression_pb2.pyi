from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Kind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    KIND_UNSPECIFIED: _ClassVar[Kind]
    KIND_RECOMMEND: _ClassVar[Kind]
    KIND_SEARCH: _ClassVar[Kind]
    KIND_RANK: _ClassVar[Kind]

class Degraded(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DEGRADED_UNSPECIFIED: _ClassVar[Degraded]
    DEGRADED_SOURCE_TIMEOUT: _ClassVar[Degraded]
    DEGRADED_SOURCE_ERROR: _ClassVar[Degraded]
    DEGRADED_DEFAULT_FEATURES: _ClassVar[Degraded]
    DEGRADED_RANKER_SKIPPED: _ClassVar[Degraded]
    DEGRADED_POPULAR_FALLBACK: _ClassVar[Degraded]
    DEGRADED_POLICY_RELAXED: _ClassVar[Degraded]
    DEGRADED_LOG_UNAVAILABLE: _ClassVar[Degraded]
    DEGRADED_EMPTY: _ClassVar[Degraded]
    DEGRADED_PARTIAL_INDEX: _ClassVar[Degraded]
    DEGRADED_ARM_FAILED: _ClassVar[Degraded]
    DEGRADED_FILTER_RELAXED: _ClassVar[Degraded]
    DEGRADED_NO_MATCH: _ClassVar[Degraded]

class FilterMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FILTER_MODE_UNSPECIFIED: _ClassVar[FilterMode]
    FILTER_MODE_STRICT: _ClassVar[FilterMode]
    FILTER_MODE_RELAX: _ClassVar[FilterMode]

class HybridMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    HYBRID_MODE_UNSPECIFIED: _ClassVar[HybridMode]
    HYBRID_MODE_BOTH: _ClassVar[HybridMode]
    HYBRID_MODE_LEXICAL: _ClassVar[HybridMode]
    HYBRID_MODE_DENSE: _ClassVar[HybridMode]

class QueryStep(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    QUERY_STEP_UNSPECIFIED: _ClassVar[QueryStep]
    QUERY_STEP_OFF: _ClassVar[QueryStep]
    QUERY_STEP_AUTO: _ClassVar[QueryStep]
    QUERY_STEP_SUGGEST: _ClassVar[QueryStep]
KIND_UNSPECIFIED: Kind
KIND_RECOMMEND: Kind
KIND_SEARCH: Kind
KIND_RANK: Kind
DEGRADED_UNSPECIFIED: Degraded
DEGRADED_SOURCE_TIMEOUT: Degraded
DEGRADED_SOURCE_ERROR: Degraded
DEGRADED_DEFAULT_FEATURES: Degraded
DEGRADED_RANKER_SKIPPED: Degraded
DEGRADED_POPULAR_FALLBACK: Degraded
DEGRADED_POLICY_RELAXED: Degraded
DEGRADED_LOG_UNAVAILABLE: Degraded
DEGRADED_EMPTY: Degraded
DEGRADED_PARTIAL_INDEX: Degraded
DEGRADED_ARM_FAILED: Degraded
DEGRADED_FILTER_RELAXED: Degraded
DEGRADED_NO_MATCH: Degraded
FILTER_MODE_UNSPECIFIED: FilterMode
FILTER_MODE_STRICT: FilterMode
FILTER_MODE_RELAX: FilterMode
HYBRID_MODE_UNSPECIFIED: HybridMode
HYBRID_MODE_BOTH: HybridMode
HYBRID_MODE_LEXICAL: HybridMode
HYBRID_MODE_DENSE: HybridMode
QUERY_STEP_UNSPECIFIED: QueryStep
QUERY_STEP_OFF: QueryStep
QUERY_STEP_AUTO: QueryStep
QUERY_STEP_SUGGEST: QueryStep

class FeatureValue(_message.Message):
    __slots__ = ("text", "number")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    text: str
    number: float
    def __init__(self, text: _Optional[str] = ..., number: _Optional[float] = ...) -> None: ...

class StageTime(_message.Message):
    __slots__ = ("stage", "milliseconds", "status")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    MILLISECONDS_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    stage: str
    milliseconds: float
    status: str
    def __init__(self, stage: _Optional[str] = ..., milliseconds: _Optional[float] = ..., status: _Optional[str] = ...) -> None: ...

class Policy(_message.Message):
    __slots__ = ("temperature", "epsilon", "diversity", "seed", "log_propensity", "relaxed", "fingerprint", "rules")
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    EPSILON_FIELD_NUMBER: _ClassVar[int]
    DIVERSITY_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    LOG_PROPENSITY_FIELD_NUMBER: _ClassVar[int]
    RELAXED_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    RULES_FIELD_NUMBER: _ClassVar[int]
    temperature: float
    epsilon: float
    diversity: float
    seed: int
    log_propensity: float
    relaxed: _containers.RepeatedScalarFieldContainer[str]
    fingerprint: str
    rules: str
    def __init__(self, temperature: _Optional[float] = ..., epsilon: _Optional[float] = ..., diversity: _Optional[float] = ..., seed: _Optional[int] = ..., log_propensity: _Optional[float] = ..., relaxed: _Optional[_Iterable[str]] = ..., fingerprint: _Optional[str] = ..., rules: _Optional[str] = ...) -> None: ...

class SourceHits(_message.Message):
    __slots__ = ("source", "item_key", "score")
    SOURCE_FIELD_NUMBER: _ClassVar[int]
    ITEM_KEY_FIELD_NUMBER: _ClassVar[int]
    SCORE_FIELD_NUMBER: _ClassVar[int]
    source: str
    item_key: _containers.RepeatedScalarFieldContainer[int]
    score: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, source: _Optional[str] = ..., item_key: _Optional[_Iterable[int]] = ..., score: _Optional[_Iterable[float]] = ...) -> None: ...

class Variation(_message.Message):
    __slots__ = ("action_weights", "policy", "quotas")
    class ActionWeightsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class PolicyEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    class QuotasEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    ACTION_WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    QUOTAS_FIELD_NUMBER: _ClassVar[int]
    action_weights: _containers.ScalarMap[str, float]
    policy: _containers.ScalarMap[str, float]
    quotas: _containers.ScalarMap[str, int]
    def __init__(self, action_weights: _Optional[_Mapping[str, float]] = ..., policy: _Optional[_Mapping[str, float]] = ..., quotas: _Optional[_Mapping[str, int]] = ...) -> None: ...

class Drafted(_message.Message):
    __slots__ = ("arms", "generation", "variation")
    ARMS_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    VARIATION_FIELD_NUMBER: _ClassVar[int]
    arms: _containers.RepeatedScalarFieldContainer[str]
    generation: str
    variation: Variation
    def __init__(self, arms: _Optional[_Iterable[str]] = ..., generation: _Optional[str] = ..., variation: _Optional[_Union[Variation, _Mapping]] = ...) -> None: ...

class Boost(_message.Message):
    __slots__ = ("condition", "strength")
    CONDITION_FIELD_NUMBER: _ClassVar[int]
    STRENGTH_FIELD_NUMBER: _ClassVar[int]
    condition: str
    strength: float
    def __init__(self, condition: _Optional[str] = ..., strength: _Optional[float] = ...) -> None: ...

class HybridOptions(_message.Message):
    __slots__ = ("mode", "lexical_weight")
    MODE_FIELD_NUMBER: _ClassVar[int]
    LEXICAL_WEIGHT_FIELD_NUMBER: _ClassVar[int]
    mode: HybridMode
    lexical_weight: float
    def __init__(self, mode: _Optional[_Union[HybridMode, str]] = ..., lexical_weight: _Optional[float] = ...) -> None: ...

class Page(_message.Message):
    __slots__ = ("number", "first", "generation", "catalog_seq", "question", "shown_item_key")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    FIRST_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    CATALOG_SEQ_FIELD_NUMBER: _ClassVar[int]
    QUESTION_FIELD_NUMBER: _ClassVar[int]
    SHOWN_ITEM_KEY_FIELD_NUMBER: _ClassVar[int]
    number: int
    first: str
    generation: str
    catalog_seq: int
    question: int
    shown_item_key: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, number: _Optional[int] = ..., first: _Optional[str] = ..., generation: _Optional[str] = ..., catalog_seq: _Optional[int] = ..., question: _Optional[int] = ..., shown_item_key: _Optional[_Iterable[int]] = ...) -> None: ...

class QueryOptions(_message.Message):
    __slots__ = ("spelling", "synonyms", "expansion", "pin_unexpanded", "language", "filters", "intent")
    SPELLING_FIELD_NUMBER: _ClassVar[int]
    SYNONYMS_FIELD_NUMBER: _ClassVar[int]
    EXPANSION_FIELD_NUMBER: _ClassVar[int]
    PIN_UNEXPANDED_FIELD_NUMBER: _ClassVar[int]
    LANGUAGE_FIELD_NUMBER: _ClassVar[int]
    FILTERS_FIELD_NUMBER: _ClassVar[int]
    INTENT_FIELD_NUMBER: _ClassVar[int]
    spelling: QueryStep
    synonyms: QueryStep
    expansion: QueryStep
    pin_unexpanded: bool
    language: str
    filters: QueryStep
    intent: QueryStep
    def __init__(self, spelling: _Optional[_Union[QueryStep, str]] = ..., synonyms: _Optional[_Union[QueryStep, str]] = ..., expansion: _Optional[_Union[QueryStep, str]] = ..., pin_unexpanded: _Optional[bool] = ..., language: _Optional[str] = ..., filters: _Optional[_Union[QueryStep, str]] = ..., intent: _Optional[_Union[QueryStep, str]] = ...) -> None: ...

class Understood(_message.Message):
    __slots__ = ("searched", "corrected", "expanded", "filter", "dropped_filter", "intent", "probability", "creator", "creator_probability")
    SEARCHED_FIELD_NUMBER: _ClassVar[int]
    CORRECTED_FIELD_NUMBER: _ClassVar[int]
    EXPANDED_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    DROPPED_FILTER_FIELD_NUMBER: _ClassVar[int]
    INTENT_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    CREATOR_FIELD_NUMBER: _ClassVar[int]
    CREATOR_PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    searched: str
    corrected: str
    expanded: _containers.RepeatedScalarFieldContainer[str]
    filter: str
    dropped_filter: str
    intent: _containers.RepeatedScalarFieldContainer[str]
    probability: _containers.RepeatedScalarFieldContainer[float]
    creator: _containers.RepeatedScalarFieldContainer[str]
    creator_probability: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, searched: _Optional[str] = ..., corrected: _Optional[str] = ..., expanded: _Optional[_Iterable[str]] = ..., filter: _Optional[str] = ..., dropped_filter: _Optional[str] = ..., intent: _Optional[_Iterable[str]] = ..., probability: _Optional[_Iterable[float]] = ..., creator: _Optional[_Iterable[str]] = ..., creator_probability: _Optional[_Iterable[float]] = ...) -> None: ...

class Impression(_message.Message):
    __slots__ = ("request_id", "time_ms", "kind", "tenant", "surface", "user_id", "visitor_id", "session_id", "text", "size", "seed_item_ids", "exclude_item_ids", "rank_item_ids", "features", "history_item_key", "history_action_key", "history_time_ms", "filter", "live_hits", "shown_item_key", "filter_mode", "boosts", "hybrid", "order_by", "page", "query_options", "generation", "schema", "policy", "degraded", "stages", "skipped_sources", "experiment_arms", "labels", "catalog_seq", "understood", "item_id", "propensity", "utility", "slot_flags", "action_names", "probability", "source_names", "source_bits", "source_rank", "more", "slot_team", "query_row", "item_rows", "pair_rows", "eligible_item_key", "eligible_utility", "traffic", "shadow_of", "drafted", "variation")
    class FeaturesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: FeatureValue
        def __init__(self, key: _Optional[str] = ..., value: _Optional[_Union[FeatureValue, _Mapping]] = ...) -> None: ...
    class ExperimentArmsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class LabelsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    TIME_MS_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    SURFACE_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    VISITOR_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    TEXT_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    SEED_ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    EXCLUDE_ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    RANK_ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    FEATURES_FIELD_NUMBER: _ClassVar[int]
    HISTORY_ITEM_KEY_FIELD_NUMBER: _ClassVar[int]
    HISTORY_ACTION_KEY_FIELD_NUMBER: _ClassVar[int]
    HISTORY_TIME_MS_FIELD_NUMBER: _ClassVar[int]
    FILTER_FIELD_NUMBER: _ClassVar[int]
    LIVE_HITS_FIELD_NUMBER: _ClassVar[int]
    SHOWN_ITEM_KEY_FIELD_NUMBER: _ClassVar[int]
    FILTER_MODE_FIELD_NUMBER: _ClassVar[int]
    BOOSTS_FIELD_NUMBER: _ClassVar[int]
    HYBRID_FIELD_NUMBER: _ClassVar[int]
    ORDER_BY_FIELD_NUMBER: _ClassVar[int]
    PAGE_FIELD_NUMBER: _ClassVar[int]
    QUERY_OPTIONS_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    SCHEMA_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_SOURCES_FIELD_NUMBER: _ClassVar[int]
    EXPERIMENT_ARMS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    CATALOG_SEQ_FIELD_NUMBER: _ClassVar[int]
    UNDERSTOOD_FIELD_NUMBER: _ClassVar[int]
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    PROPENSITY_FIELD_NUMBER: _ClassVar[int]
    UTILITY_FIELD_NUMBER: _ClassVar[int]
    SLOT_FLAGS_FIELD_NUMBER: _ClassVar[int]
    ACTION_NAMES_FIELD_NUMBER: _ClassVar[int]
    PROBABILITY_FIELD_NUMBER: _ClassVar[int]
    SOURCE_NAMES_FIELD_NUMBER: _ClassVar[int]
    SOURCE_BITS_FIELD_NUMBER: _ClassVar[int]
    SOURCE_RANK_FIELD_NUMBER: _ClassVar[int]
    MORE_FIELD_NUMBER: _ClassVar[int]
    SLOT_TEAM_FIELD_NUMBER: _ClassVar[int]
    QUERY_ROW_FIELD_NUMBER: _ClassVar[int]
    ITEM_ROWS_FIELD_NUMBER: _ClassVar[int]
    PAIR_ROWS_FIELD_NUMBER: _ClassVar[int]
    ELIGIBLE_ITEM_KEY_FIELD_NUMBER: _ClassVar[int]
    ELIGIBLE_UTILITY_FIELD_NUMBER: _ClassVar[int]
    TRAFFIC_FIELD_NUMBER: _ClassVar[int]
    SHADOW_OF_FIELD_NUMBER: _ClassVar[int]
    DRAFTED_FIELD_NUMBER: _ClassVar[int]
    VARIATION_FIELD_NUMBER: _ClassVar[int]
    request_id: str
    time_ms: int
    kind: Kind
    tenant: str
    surface: str
    user_id: str
    visitor_id: str
    session_id: str
    text: str
    size: int
    seed_item_ids: _containers.RepeatedScalarFieldContainer[str]
    exclude_item_ids: _containers.RepeatedScalarFieldContainer[str]
    rank_item_ids: _containers.RepeatedScalarFieldContainer[str]
    features: _containers.MessageMap[str, FeatureValue]
    history_item_key: _containers.RepeatedScalarFieldContainer[int]
    history_action_key: _containers.RepeatedScalarFieldContainer[int]
    history_time_ms: _containers.RepeatedScalarFieldContainer[int]
    filter: str
    live_hits: _containers.RepeatedCompositeFieldContainer[SourceHits]
    shown_item_key: _containers.RepeatedScalarFieldContainer[int]
    filter_mode: FilterMode
    boosts: _containers.RepeatedCompositeFieldContainer[Boost]
    hybrid: HybridOptions
    order_by: str
    page: Page
    query_options: QueryOptions
    generation: str
    schema: str
    policy: Policy
    degraded: int
    stages: _containers.RepeatedCompositeFieldContainer[StageTime]
    skipped_sources: _containers.RepeatedScalarFieldContainer[str]
    experiment_arms: _containers.ScalarMap[str, str]
    labels: _containers.ScalarMap[str, str]
    catalog_seq: int
    understood: Understood
    item_id: _containers.RepeatedScalarFieldContainer[str]
    propensity: _containers.RepeatedScalarFieldContainer[float]
    utility: _containers.RepeatedScalarFieldContainer[float]
    slot_flags: _containers.RepeatedScalarFieldContainer[int]
    action_names: _containers.RepeatedScalarFieldContainer[str]
    probability: _containers.RepeatedScalarFieldContainer[float]
    source_names: _containers.RepeatedScalarFieldContainer[str]
    source_bits: _containers.RepeatedScalarFieldContainer[int]
    source_rank: _containers.RepeatedScalarFieldContainer[int]
    more: bool
    slot_team: _containers.RepeatedScalarFieldContainer[int]
    query_row: bytes
    item_rows: bytes
    pair_rows: bytes
    eligible_item_key: _containers.RepeatedScalarFieldContainer[int]
    eligible_utility: _containers.RepeatedScalarFieldContainer[float]
    traffic: str
    shadow_of: str
    drafted: Drafted
    variation: Variation
    def __init__(self, request_id: _Optional[str] = ..., time_ms: _Optional[int] = ..., kind: _Optional[_Union[Kind, str]] = ..., tenant: _Optional[str] = ..., surface: _Optional[str] = ..., user_id: _Optional[str] = ..., visitor_id: _Optional[str] = ..., session_id: _Optional[str] = ..., text: _Optional[str] = ..., size: _Optional[int] = ..., seed_item_ids: _Optional[_Iterable[str]] = ..., exclude_item_ids: _Optional[_Iterable[str]] = ..., rank_item_ids: _Optional[_Iterable[str]] = ..., features: _Optional[_Mapping[str, FeatureValue]] = ..., history_item_key: _Optional[_Iterable[int]] = ..., history_action_key: _Optional[_Iterable[int]] = ..., history_time_ms: _Optional[_Iterable[int]] = ..., filter: _Optional[str] = ..., live_hits: _Optional[_Iterable[_Union[SourceHits, _Mapping]]] = ..., shown_item_key: _Optional[_Iterable[int]] = ..., filter_mode: _Optional[_Union[FilterMode, str]] = ..., boosts: _Optional[_Iterable[_Union[Boost, _Mapping]]] = ..., hybrid: _Optional[_Union[HybridOptions, _Mapping]] = ..., order_by: _Optional[str] = ..., page: _Optional[_Union[Page, _Mapping]] = ..., query_options: _Optional[_Union[QueryOptions, _Mapping]] = ..., generation: _Optional[str] = ..., schema: _Optional[str] = ..., policy: _Optional[_Union[Policy, _Mapping]] = ..., degraded: _Optional[int] = ..., stages: _Optional[_Iterable[_Union[StageTime, _Mapping]]] = ..., skipped_sources: _Optional[_Iterable[str]] = ..., experiment_arms: _Optional[_Mapping[str, str]] = ..., labels: _Optional[_Mapping[str, str]] = ..., catalog_seq: _Optional[int] = ..., understood: _Optional[_Union[Understood, _Mapping]] = ..., item_id: _Optional[_Iterable[str]] = ..., propensity: _Optional[_Iterable[float]] = ..., utility: _Optional[_Iterable[float]] = ..., slot_flags: _Optional[_Iterable[int]] = ..., action_names: _Optional[_Iterable[str]] = ..., probability: _Optional[_Iterable[float]] = ..., source_names: _Optional[_Iterable[str]] = ..., source_bits: _Optional[_Iterable[int]] = ..., source_rank: _Optional[_Iterable[int]] = ..., more: _Optional[bool] = ..., slot_team: _Optional[_Iterable[int]] = ..., query_row: _Optional[bytes] = ..., item_rows: _Optional[bytes] = ..., pair_rows: _Optional[bytes] = ..., eligible_item_key: _Optional[_Iterable[int]] = ..., eligible_utility: _Optional[_Iterable[float]] = ..., traffic: _Optional[str] = ..., shadow_of: _Optional[str] = ..., drafted: _Optional[_Union[Drafted, _Mapping]] = ..., variation: _Optional[_Union[Variation, _Mapping]] = ...) -> None: ...

class Outcome(_message.Message):
    __slots__ = ("event_id", "request_id", "item_id", "user_id", "session_id", "action", "value", "time_ms", "visible_ms", "position", "attribution_token", "tenant", "visitor_id")
    EVENT_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    ITEM_ID_FIELD_NUMBER: _ClassVar[int]
    USER_ID_FIELD_NUMBER: _ClassVar[int]
    SESSION_ID_FIELD_NUMBER: _ClassVar[int]
    ACTION_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    TIME_MS_FIELD_NUMBER: _ClassVar[int]
    VISIBLE_MS_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTION_TOKEN_FIELD_NUMBER: _ClassVar[int]
    TENANT_FIELD_NUMBER: _ClassVar[int]
    VISITOR_ID_FIELD_NUMBER: _ClassVar[int]
    event_id: str
    request_id: str
    item_id: str
    user_id: str
    session_id: str
    action: str
    value: float
    time_ms: int
    visible_ms: int
    position: int
    attribution_token: str
    tenant: str
    visitor_id: str
    def __init__(self, event_id: _Optional[str] = ..., request_id: _Optional[str] = ..., item_id: _Optional[str] = ..., user_id: _Optional[str] = ..., session_id: _Optional[str] = ..., action: _Optional[str] = ..., value: _Optional[float] = ..., time_ms: _Optional[int] = ..., visible_ms: _Optional[int] = ..., position: _Optional[int] = ..., attribution_token: _Optional[str] = ..., tenant: _Optional[str] = ..., visitor_id: _Optional[str] = ...) -> None: ...
