from protos import impression_pb2 as _impression_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TrafficMode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TRAFFIC_MODE_UNSPECIFIED: _ClassVar[TrafficMode]
    TRAFFIC_MODE_SPLIT: _ClassVar[TrafficMode]
    TRAFFIC_MODE_SHADOW: _ClassVar[TrafficMode]
    TRAFFIC_MODE_CANARY: _ClassVar[TrafficMode]
    TRAFFIC_MODE_INTERLEAVE: _ClassVar[TrafficMode]

class RuleKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RULE_UNSPECIFIED: _ClassVar[RuleKind]
    RULE_PIN: _ClassVar[RuleKind]
    RULE_BOOST: _ClassVar[RuleKind]
    RULE_BURY: _ClassVar[RuleKind]
    RULE_BLOCK: _ClassVar[RuleKind]
    RULE_QUOTA: _ClassVar[RuleKind]
    RULE_REDIRECT: _ClassVar[RuleKind]
TRAFFIC_MODE_UNSPECIFIED: TrafficMode
TRAFFIC_MODE_SPLIT: TrafficMode
TRAFFIC_MODE_SHADOW: TrafficMode
TRAFFIC_MODE_CANARY: TrafficMode
TRAFFIC_MODE_INTERLEAVE: TrafficMode
RULE_UNSPECIFIED: RuleKind
RULE_PIN: RuleKind
RULE_BOOST: RuleKind
RULE_BURY: RuleKind
RULE_BLOCK: RuleKind
RULE_QUOTA: RuleKind
RULE_REDIRECT: RuleKind

class GenerationInfo(_message.Message):
    __slots__ = ("id", "active", "created_ms", "data_from_ms", "data_to_ms", "fingerprints", "parent", "metrics")
    class FingerprintsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    class MetricsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    ID_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    CREATED_MS_FIELD_NUMBER: _ClassVar[int]
    DATA_FROM_MS_FIELD_NUMBER: _ClassVar[int]
    DATA_TO_MS_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINTS_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    id: str
    active: bool
    created_ms: int
    data_from_ms: int
    data_to_ms: int
    fingerprints: _containers.ScalarMap[str, str]
    parent: str
    metrics: _containers.ScalarMap[str, float]
    def __init__(self, id: _Optional[str] = ..., active: _Optional[bool] = ..., created_ms: _Optional[int] = ..., data_from_ms: _Optional[int] = ..., data_to_ms: _Optional[int] = ..., fingerprints: _Optional[_Mapping[str, str]] = ..., parent: _Optional[str] = ..., metrics: _Optional[_Mapping[str, float]] = ...) -> None: ...

class ListGenerationsRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class Activation(_message.Message):
    __slots__ = ("generation", "previous", "time_ms", "reason", "by")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    PREVIOUS_FIELD_NUMBER: _ClassVar[int]
    TIME_MS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    BY_FIELD_NUMBER: _ClassVar[int]
    generation: str
    previous: str
    time_ms: int
    reason: str
    by: str
    def __init__(self, generation: _Optional[str] = ..., previous: _Optional[str] = ..., time_ms: _Optional[int] = ..., reason: _Optional[str] = ..., by: _Optional[str] = ...) -> None: ...

class ListGenerationsResponse(_message.Message):
    __slots__ = ("generations", "active", "current", "history")
    GENERATIONS_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    CURRENT_FIELD_NUMBER: _ClassVar[int]
    HISTORY_FIELD_NUMBER: _ClassVar[int]
    generations: _containers.RepeatedCompositeFieldContainer[GenerationInfo]
    active: str
    current: str
    history: _containers.RepeatedCompositeFieldContainer[Activation]
    def __init__(self, generations: _Optional[_Iterable[_Union[GenerationInfo, _Mapping]]] = ..., active: _Optional[str] = ..., current: _Optional[str] = ..., history: _Optional[_Iterable[_Union[Activation, _Mapping]]] = ...) -> None: ...

class PrepareRequest(_message.Message):
    __slots__ = ("generation",)
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    generation: str
    def __init__(self, generation: _Optional[str] = ...) -> None: ...

class PrepareResponse(_message.Message):
    __slots__ = ("generation",)
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    generation: GenerationInfo
    def __init__(self, generation: _Optional[_Union[GenerationInfo, _Mapping]] = ...) -> None: ...

class ActivateRequest(_message.Message):
    __slots__ = ("generation", "expected", "reason")
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    generation: str
    expected: str
    reason: str
    def __init__(self, generation: _Optional[str] = ..., expected: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class ActivateResponse(_message.Message):
    __slots__ = ("generation",)
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    generation: GenerationInfo
    def __init__(self, generation: _Optional[_Union[GenerationInfo, _Mapping]] = ...) -> None: ...

class RollbackRequest(_message.Message):
    __slots__ = ("reason",)
    REASON_FIELD_NUMBER: _ClassVar[int]
    reason: str
    def __init__(self, reason: _Optional[str] = ...) -> None: ...

class RollbackResponse(_message.Message):
    __slots__ = ("generation",)
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    generation: GenerationInfo
    def __init__(self, generation: _Optional[_Union[GenerationInfo, _Mapping]] = ...) -> None: ...

class Arm(_message.Message):
    __slots__ = ("name", "weight", "generation", "action_weights", "policy", "quotas")
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
    NAME_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    ACTION_WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    POLICY_FIELD_NUMBER: _ClassVar[int]
    QUOTAS_FIELD_NUMBER: _ClassVar[int]
    name: str
    weight: float
    generation: str
    action_weights: _containers.ScalarMap[str, float]
    policy: _containers.ScalarMap[str, float]
    quotas: _containers.ScalarMap[str, int]
    def __init__(self, name: _Optional[str] = ..., weight: _Optional[float] = ..., generation: _Optional[str] = ..., action_weights: _Optional[_Mapping[str, float]] = ..., policy: _Optional[_Mapping[str, float]] = ..., quotas: _Optional[_Mapping[str, int]] = ...) -> None: ...

class Experiment(_message.Message):
    __slots__ = ("name", "mode", "arms", "unit", "salt", "layer", "layer_from", "layer_until", "surfaces", "kinds")
    NAME_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    ARMS_FIELD_NUMBER: _ClassVar[int]
    UNIT_FIELD_NUMBER: _ClassVar[int]
    SALT_FIELD_NUMBER: _ClassVar[int]
    LAYER_FIELD_NUMBER: _ClassVar[int]
    LAYER_FROM_FIELD_NUMBER: _ClassVar[int]
    LAYER_UNTIL_FIELD_NUMBER: _ClassVar[int]
    SURFACES_FIELD_NUMBER: _ClassVar[int]
    KINDS_FIELD_NUMBER: _ClassVar[int]
    name: str
    mode: TrafficMode
    arms: _containers.RepeatedCompositeFieldContainer[Arm]
    unit: str
    salt: str
    layer: str
    layer_from: float
    layer_until: float
    surfaces: _containers.RepeatedScalarFieldContainer[str]
    kinds: _containers.RepeatedScalarFieldContainer[_impression_pb2.Kind]
    def __init__(self, name: _Optional[str] = ..., mode: _Optional[_Union[TrafficMode, str]] = ..., arms: _Optional[_Iterable[_Union[Arm, _Mapping]]] = ..., unit: _Optional[str] = ..., salt: _Optional[str] = ..., layer: _Optional[str] = ..., layer_from: _Optional[float] = ..., layer_until: _Optional[float] = ..., surfaces: _Optional[_Iterable[str]] = ..., kinds: _Optional[_Iterable[_Union[_impression_pb2.Kind, str]]] = ...) -> None: ...

class SetTrafficRequest(_message.Message):
    __slots__ = ("experiments", "etag", "reason")
    EXPERIMENTS_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    experiments: _containers.RepeatedCompositeFieldContainer[Experiment]
    etag: str
    reason: str
    def __init__(self, experiments: _Optional[_Iterable[_Union[Experiment, _Mapping]]] = ..., etag: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class SetTrafficResponse(_message.Message):
    __slots__ = ("experiments", "etag")
    EXPERIMENTS_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    experiments: _containers.RepeatedCompositeFieldContainer[Experiment]
    etag: str
    def __init__(self, experiments: _Optional[_Iterable[_Union[Experiment, _Mapping]]] = ..., etag: _Optional[str] = ...) -> None: ...

class GetTrafficRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ArmStatus(_message.Message):
    __slots__ = ("experiment", "arm", "requests", "failed", "degraded", "p50_ms", "p99_ms", "evidence")
    class EvidenceEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    EXPERIMENT_FIELD_NUMBER: _ClassVar[int]
    ARM_FIELD_NUMBER: _ClassVar[int]
    REQUESTS_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_FIELD_NUMBER: _ClassVar[int]
    P50_MS_FIELD_NUMBER: _ClassVar[int]
    P99_MS_FIELD_NUMBER: _ClassVar[int]
    EVIDENCE_FIELD_NUMBER: _ClassVar[int]
    experiment: str
    arm: str
    requests: int
    failed: int
    degraded: int
    p50_ms: float
    p99_ms: float
    evidence: _containers.ScalarMap[str, float]
    def __init__(self, experiment: _Optional[str] = ..., arm: _Optional[str] = ..., requests: _Optional[int] = ..., failed: _Optional[int] = ..., degraded: _Optional[int] = ..., p50_ms: _Optional[float] = ..., p99_ms: _Optional[float] = ..., evidence: _Optional[_Mapping[str, float]] = ...) -> None: ...

class GetTrafficResponse(_message.Message):
    __slots__ = ("experiments", "etag", "reason", "set_ms", "arms", "follow_error")
    EXPERIMENTS_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    SET_MS_FIELD_NUMBER: _ClassVar[int]
    ARMS_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_ERROR_FIELD_NUMBER: _ClassVar[int]
    experiments: _containers.RepeatedCompositeFieldContainer[Experiment]
    etag: str
    reason: str
    set_ms: int
    arms: _containers.RepeatedCompositeFieldContainer[ArmStatus]
    follow_error: str
    def __init__(self, experiments: _Optional[_Iterable[_Union[Experiment, _Mapping]]] = ..., etag: _Optional[str] = ..., reason: _Optional[str] = ..., set_ms: _Optional[int] = ..., arms: _Optional[_Iterable[_Union[ArmStatus, _Mapping]]] = ..., follow_error: _Optional[str] = ...) -> None: ...

class Rule(_message.Message):
    __slots__ = ("id", "kind", "surfaces", "queries", "item_ids", "condition", "position", "strength", "at_least", "at_most", "from_ms", "until_ms", "redirect_uri")
    ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    SURFACES_FIELD_NUMBER: _ClassVar[int]
    QUERIES_FIELD_NUMBER: _ClassVar[int]
    ITEM_IDS_FIELD_NUMBER: _ClassVar[int]
    CONDITION_FIELD_NUMBER: _ClassVar[int]
    POSITION_FIELD_NUMBER: _ClassVar[int]
    STRENGTH_FIELD_NUMBER: _ClassVar[int]
    AT_LEAST_FIELD_NUMBER: _ClassVar[int]
    AT_MOST_FIELD_NUMBER: _ClassVar[int]
    FROM_MS_FIELD_NUMBER: _ClassVar[int]
    UNTIL_MS_FIELD_NUMBER: _ClassVar[int]
    REDIRECT_URI_FIELD_NUMBER: _ClassVar[int]
    id: str
    kind: RuleKind
    surfaces: _containers.RepeatedScalarFieldContainer[str]
    queries: _containers.RepeatedScalarFieldContainer[str]
    item_ids: _containers.RepeatedScalarFieldContainer[str]
    condition: str
    position: int
    strength: float
    at_least: int
    at_most: int
    from_ms: int
    until_ms: int
    redirect_uri: str
    def __init__(self, id: _Optional[str] = ..., kind: _Optional[_Union[RuleKind, str]] = ..., surfaces: _Optional[_Iterable[str]] = ..., queries: _Optional[_Iterable[str]] = ..., item_ids: _Optional[_Iterable[str]] = ..., condition: _Optional[str] = ..., position: _Optional[int] = ..., strength: _Optional[float] = ..., at_least: _Optional[int] = ..., at_most: _Optional[int] = ..., from_ms: _Optional[int] = ..., until_ms: _Optional[int] = ..., redirect_uri: _Optional[str] = ...) -> None: ...

class PutRulesRequest(_message.Message):
    __slots__ = ("rules", "etag")
    RULES_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    rules: _containers.RepeatedCompositeFieldContainer[Rule]
    etag: str
    def __init__(self, rules: _Optional[_Iterable[_Union[Rule, _Mapping]]] = ..., etag: _Optional[str] = ...) -> None: ...

class PutRulesResponse(_message.Message):
    __slots__ = ("rules", "etag")
    RULES_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    rules: _containers.RepeatedCompositeFieldContainer[Rule]
    etag: str
    def __init__(self, rules: _Optional[_Iterable[_Union[Rule, _Mapping]]] = ..., etag: _Optional[str] = ...) -> None: ...

class GetRulesRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GetRulesResponse(_message.Message):
    __slots__ = ("rules", "etag")
    RULES_FIELD_NUMBER: _ClassVar[int]
    ETAG_FIELD_NUMBER: _ClassVar[int]
    rules: _containers.RepeatedCompositeFieldContainer[Rule]
    etag: str
    def __init__(self, rules: _Optional[_Iterable[_Union[Rule, _Mapping]]] = ..., etag: _Optional[str] = ...) -> None: ...

class GetStatusRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StageLatency(_message.Message):
    __slots__ = ("stage", "count", "p50_ms", "p90_ms", "p99_ms", "max_ms")
    STAGE_FIELD_NUMBER: _ClassVar[int]
    COUNT_FIELD_NUMBER: _ClassVar[int]
    P50_MS_FIELD_NUMBER: _ClassVar[int]
    P90_MS_FIELD_NUMBER: _ClassVar[int]
    P99_MS_FIELD_NUMBER: _ClassVar[int]
    MAX_MS_FIELD_NUMBER: _ClassVar[int]
    stage: str
    count: int
    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float
    def __init__(self, stage: _Optional[str] = ..., count: _Optional[int] = ..., p50_ms: _Optional[float] = ..., p90_ms: _Optional[float] = ..., p99_ms: _Optional[float] = ..., max_ms: _Optional[float] = ...) -> None: ...

class GetStatusResponse(_message.Message):
    __slots__ = ("generation", "current", "started_ms", "now_ms", "pid", "version", "ready", "served", "failed", "degraded", "in_flight", "stages", "follow_error", "calls", "logged", "log_failures", "defaulted", "standing")
    class FailedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class DegradedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class CallsEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class DefaultedEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: int
        def __init__(self, key: _Optional[str] = ..., value: _Optional[int] = ...) -> None: ...
    class StandingEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: float
        def __init__(self, key: _Optional[str] = ..., value: _Optional[float] = ...) -> None: ...
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    CURRENT_FIELD_NUMBER: _ClassVar[int]
    STARTED_MS_FIELD_NUMBER: _ClassVar[int]
    NOW_MS_FIELD_NUMBER: _ClassVar[int]
    PID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    READY_FIELD_NUMBER: _ClassVar[int]
    SERVED_FIELD_NUMBER: _ClassVar[int]
    FAILED_FIELD_NUMBER: _ClassVar[int]
    DEGRADED_FIELD_NUMBER: _ClassVar[int]
    IN_FLIGHT_FIELD_NUMBER: _ClassVar[int]
    STAGES_FIELD_NUMBER: _ClassVar[int]
    FOLLOW_ERROR_FIELD_NUMBER: _ClassVar[int]
    CALLS_FIELD_NUMBER: _ClassVar[int]
    LOGGED_FIELD_NUMBER: _ClassVar[int]
    LOG_FAILURES_FIELD_NUMBER: _ClassVar[int]
    DEFAULTED_FIELD_NUMBER: _ClassVar[int]
    STANDING_FIELD_NUMBER: _ClassVar[int]
    generation: str
    current: str
    started_ms: int
    now_ms: int
    pid: int
    version: str
    ready: bool
    served: int
    failed: _containers.ScalarMap[str, int]
    degraded: _containers.ScalarMap[str, int]
    in_flight: int
    stages: _containers.RepeatedCompositeFieldContainer[StageLatency]
    follow_error: str
    calls: _containers.ScalarMap[str, int]
    logged: int
    log_failures: int
    defaulted: _containers.ScalarMap[str, int]
    standing: _containers.ScalarMap[str, float]
    def __init__(self, generation: _Optional[str] = ..., current: _Optional[str] = ..., started_ms: _Optional[int] = ..., now_ms: _Optional[int] = ..., pid: _Optional[int] = ..., version: _Optional[str] = ..., ready: _Optional[bool] = ..., served: _Optional[int] = ..., failed: _Optional[_Mapping[str, int]] = ..., degraded: _Optional[_Mapping[str, int]] = ..., in_flight: _Optional[int] = ..., stages: _Optional[_Iterable[_Union[StageLatency, _Mapping]]] = ..., follow_error: _Optional[str] = ..., calls: _Optional[_Mapping[str, int]] = ..., logged: _Optional[int] = ..., log_failures: _Optional[int] = ..., defaulted: _Optional[_Mapping[str, int]] = ..., standing: _Optional[_Mapping[str, float]] = ...) -> None: ...
