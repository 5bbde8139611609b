from evenkeel.v1 import audit_report_pb2 as _audit_report_pb2
from evenkeel.v1 import audit_settings_pb2 as _audit_settings_pb2
from evenkeel.v1 import job_pb2 as _job_pb2
from evenkeel.v1 import training_pb2 as _training_pb2
from google.protobuf import empty_pb2 as _empty_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class ReportFormat(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    REPORT_FORMAT_UNSPECIFIED: _ClassVar[ReportFormat]
    REPORT_FORMAT_JSON: _ClassVar[ReportFormat]
    REPORT_FORMAT_HTML: _ClassVar[ReportFormat]
    REPORT_FORMAT_MARKDOWN: _ClassVar[ReportFormat]
    REPORT_FORMAT_CSV: _ClassVar[ReportFormat]
REPORT_FORMAT_UNSPECIFIED: ReportFormat
REPORT_FORMAT_JSON: ReportFormat
REPORT_FORMAT_HTML: ReportFormat
REPORT_FORMAT_MARKDOWN: ReportFormat
REPORT_FORMAT_CSV: ReportFormat

class CreateAuditRequest(_message.Message):
    __slots__ = ("name", "dataset", "models", "sweeps", "settings", "keep_models", "request_id", "base_model")
    NAME_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    SWEEPS_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    KEEP_MODELS_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    name: str
    dataset: str
    models: _containers.RepeatedCompositeFieldContainer[AuditModel]
    sweeps: _containers.RepeatedCompositeFieldContainer[AuditSweep]
    settings: _audit_settings_pb2.AuditSettings
    keep_models: bool
    request_id: str
    base_model: str
    def __init__(self, name: _Optional[str] = ..., dataset: _Optional[str] = ..., models: _Optional[_Iterable[_Union[AuditModel, _Mapping]]] = ..., sweeps: _Optional[_Iterable[_Union[AuditSweep, _Mapping]]] = ..., settings: _Optional[_Union[_audit_settings_pb2.AuditSettings, _Mapping]] = ..., keep_models: bool = ..., request_id: _Optional[str] = ..., base_model: _Optional[str] = ...) -> None: ...

class AuditModel(_message.Message):
    __slots__ = ("name", "base", "adapter", "training", "scale")
    NAME_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    TRAINING_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    name: str
    base: BaseSource
    adapter: str
    training: TrainingSource
    scale: float
    def __init__(self, name: _Optional[str] = ..., base: _Optional[_Union[BaseSource, _Mapping]] = ..., adapter: _Optional[str] = ..., training: _Optional[_Union[TrainingSource, _Mapping]] = ..., scale: _Optional[float] = ...) -> None: ...

class BaseSource(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TrainingSource(_message.Message):
    __slots__ = ("settings", "dataset")
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    settings: _training_pb2.TrainingSettings
    dataset: str
    def __init__(self, settings: _Optional[_Union[_training_pb2.TrainingSettings, _Mapping]] = ..., dataset: _Optional[str] = ...) -> None: ...

class AuditSweep(_message.Message):
    __slots__ = ("name", "base", "ranks", "alphas", "alpha_policies", "layers", "steps", "seeds", "learning_rates", "checkpoints")
    NAME_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    RANKS_FIELD_NUMBER: _ClassVar[int]
    ALPHAS_FIELD_NUMBER: _ClassVar[int]
    ALPHA_POLICIES_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    SEEDS_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATES_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINTS_FIELD_NUMBER: _ClassVar[int]
    name: str
    base: TrainingSource
    ranks: _containers.RepeatedScalarFieldContainer[int]
    alphas: _containers.RepeatedScalarFieldContainer[float]
    alpha_policies: _containers.RepeatedScalarFieldContainer[_training_pb2.AlphaPolicy]
    layers: _containers.RepeatedCompositeFieldContainer[LayerSet]
    steps: _containers.RepeatedScalarFieldContainer[int]
    seeds: _containers.RepeatedScalarFieldContainer[int]
    learning_rates: _containers.RepeatedScalarFieldContainer[float]
    checkpoints: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, name: _Optional[str] = ..., base: _Optional[_Union[TrainingSource, _Mapping]] = ..., ranks: _Optional[_Iterable[int]] = ..., alphas: _Optional[_Iterable[float]] = ..., alpha_policies: _Optional[_Iterable[_Union[_training_pb2.AlphaPolicy, str]]] = ..., layers: _Optional[_Iterable[_Union[LayerSet, _Mapping]]] = ..., steps: _Optional[_Iterable[int]] = ..., seeds: _Optional[_Iterable[int]] = ..., learning_rates: _Optional[_Iterable[float]] = ..., checkpoints: _Optional[_Iterable[int]] = ...) -> None: ...

class LayerSet(_message.Message):
    __slots__ = ("layers",)
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    layers: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, layers: _Optional[_Iterable[int]] = ...) -> None: ...

class EstimateAuditRequest(_message.Message):
    __slots__ = ("audit",)
    AUDIT_FIELD_NUMBER: _ClassVar[int]
    audit: CreateAuditRequest
    def __init__(self, audit: _Optional[_Union[CreateAuditRequest, _Mapping]] = ...) -> None: ...

class EstimateAuditResponse(_message.Message):
    __slots__ = ("trainings", "steps", "items", "training_seconds", "scoring_seconds", "score_bytes", "memory_bytes", "disk_bytes")
    TRAININGS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    ITEMS_FIELD_NUMBER: _ClassVar[int]
    TRAINING_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SCORING_SECONDS_FIELD_NUMBER: _ClassVar[int]
    SCORE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    DISK_BYTES_FIELD_NUMBER: _ClassVar[int]
    trainings: int
    steps: int
    items: int
    training_seconds: float
    scoring_seconds: float
    score_bytes: int
    memory_bytes: int
    disk_bytes: int
    def __init__(self, trainings: _Optional[int] = ..., steps: _Optional[int] = ..., items: _Optional[int] = ..., training_seconds: _Optional[float] = ..., scoring_seconds: _Optional[float] = ..., score_bytes: _Optional[int] = ..., memory_bytes: _Optional[int] = ..., disk_bytes: _Optional[int] = ...) -> None: ...

class AuditScoresRequest(_message.Message):
    __slots__ = ("header", "rows", "shadows")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    SHADOWS_FIELD_NUMBER: _ClassVar[int]
    header: ScoresHeader
    rows: ScoresRows
    shadows: ShadowSignals
    def __init__(self, header: _Optional[_Union[ScoresHeader, _Mapping]] = ..., rows: _Optional[_Union[ScoresRows, _Mapping]] = ..., shadows: _Optional[_Union[ShadowSignals, _Mapping]] = ...) -> None: ...

class ScoresHeader(_message.Message):
    __slots__ = ("name", "request_id", "labels", "multi_label", "models", "attributes", "controls", "settings")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    MULTI_LABEL_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    CONTROLS_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    name: str
    request_id: str
    labels: _containers.RepeatedScalarFieldContainer[str]
    multi_label: bool
    models: _containers.RepeatedScalarFieldContainer[str]
    attributes: _containers.RepeatedScalarFieldContainer[str]
    controls: _containers.RepeatedScalarFieldContainer[str]
    settings: _audit_settings_pb2.AuditSettings
    def __init__(self, name: _Optional[str] = ..., request_id: _Optional[str] = ..., labels: _Optional[_Iterable[str]] = ..., multi_label: bool = ..., models: _Optional[_Iterable[str]] = ..., attributes: _Optional[_Iterable[str]] = ..., controls: _Optional[_Iterable[str]] = ..., settings: _Optional[_Union[_audit_settings_pb2.AuditSettings, _Mapping]] = ...) -> None: ...

class ScoresRows(_message.Message):
    __slots__ = ("labels", "label_flags", "models", "attributes", "controls", "weights", "clusters")
    LABELS_FIELD_NUMBER: _ClassVar[int]
    LABEL_FLAGS_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    CONTROLS_FIELD_NUMBER: _ClassVar[int]
    WEIGHTS_FIELD_NUMBER: _ClassVar[int]
    CLUSTERS_FIELD_NUMBER: _ClassVar[int]
    labels: _containers.RepeatedScalarFieldContainer[int]
    label_flags: _containers.RepeatedScalarFieldContainer[bool]
    models: _containers.RepeatedCompositeFieldContainer[ModelScores]
    attributes: _containers.RepeatedCompositeFieldContainer[GroupValues]
    controls: _containers.RepeatedCompositeFieldContainer[GroupValues]
    weights: _containers.RepeatedScalarFieldContainer[float]
    clusters: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, labels: _Optional[_Iterable[int]] = ..., label_flags: _Optional[_Iterable[bool]] = ..., models: _Optional[_Iterable[_Union[ModelScores, _Mapping]]] = ..., attributes: _Optional[_Iterable[_Union[GroupValues, _Mapping]]] = ..., controls: _Optional[_Iterable[_Union[GroupValues, _Mapping]]] = ..., weights: _Optional[_Iterable[float]] = ..., clusters: _Optional[_Iterable[str]] = ...) -> None: ...

class ModelScores(_message.Message):
    __slots__ = ("probabilities", "members", "signals", "reference_signals")
    PROBABILITIES_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    SIGNALS_FIELD_NUMBER: _ClassVar[int]
    REFERENCE_SIGNALS_FIELD_NUMBER: _ClassVar[int]
    probabilities: _containers.RepeatedScalarFieldContainer[float]
    members: _containers.RepeatedScalarFieldContainer[bool]
    signals: _containers.RepeatedScalarFieldContainer[float]
    reference_signals: _containers.RepeatedScalarFieldContainer[float]
    def __init__(self, probabilities: _Optional[_Iterable[float]] = ..., members: _Optional[_Iterable[bool]] = ..., signals: _Optional[_Iterable[float]] = ..., reference_signals: _Optional[_Iterable[float]] = ...) -> None: ...

class GroupValues(_message.Message):
    __slots__ = ("dictionary", "values", "flags")
    DICTIONARY_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    dictionary: _containers.RepeatedScalarFieldContainer[str]
    values: _containers.RepeatedScalarFieldContainer[int]
    flags: _containers.RepeatedScalarFieldContainer[bool]
    def __init__(self, dictionary: _Optional[_Iterable[str]] = ..., values: _Optional[_Iterable[int]] = ..., flags: _Optional[_Iterable[bool]] = ...) -> None: ...

class ShadowSignals(_message.Message):
    __slots__ = ("model", "signals", "members")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    SIGNALS_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    model: int
    signals: _containers.RepeatedScalarFieldContainer[float]
    members: _containers.RepeatedScalarFieldContainer[bool]
    def __init__(self, model: _Optional[int] = ..., signals: _Optional[_Iterable[float]] = ..., members: _Optional[_Iterable[bool]] = ...) -> None: ...

class GetAuditReportRequest(_message.Message):
    __slots__ = ("name", "format")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    name: str
    format: ReportFormat
    def __init__(self, name: _Optional[str] = ..., format: _Optional[_Union[ReportFormat, str]] = ...) -> None: ...

class GetAuditReportResponse(_message.Message):
    __slots__ = ("summary", "report", "file", "media_type")
    SUMMARY_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    FILE_FIELD_NUMBER: _ClassVar[int]
    MEDIA_TYPE_FIELD_NUMBER: _ClassVar[int]
    summary: AuditReportSummary
    report: _audit_report_pb2.AuditReport
    file: bytes
    media_type: str
    def __init__(self, summary: _Optional[_Union[AuditReportSummary, _Mapping]] = ..., report: _Optional[_Union[_audit_report_pb2.AuditReport, _Mapping]] = ..., file: _Optional[bytes] = ..., media_type: _Optional[str] = ...) -> None: ...

class AuditReportSummary(_message.Message):
    __slots__ = ("id", "name", "job", "create_time", "dataset", "models", "adapters")
    ID_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    ADAPTERS_FIELD_NUMBER: _ClassVar[int]
    id: str
    name: str
    job: str
    create_time: _timestamp_pb2.Timestamp
    dataset: str
    models: _containers.RepeatedScalarFieldContainer[str]
    adapters: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, id: _Optional[str] = ..., name: _Optional[str] = ..., job: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., dataset: _Optional[str] = ..., models: _Optional[_Iterable[str]] = ..., adapters: _Optional[_Iterable[str]] = ...) -> None: ...

class ListAuditReportsRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "adapter", "name")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    NAME_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    adapter: str
    name: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., adapter: _Optional[str] = ..., name: _Optional[str] = ...) -> None: ...

class ListAuditReportsResponse(_message.Message):
    __slots__ = ("reports", "next_page_token")
    REPORTS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    reports: _containers.RepeatedCompositeFieldContainer[AuditReportSummary]
    next_page_token: str
    def __init__(self, reports: _Optional[_Iterable[_Union[AuditReportSummary, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class CompareAuditsRequest(_message.Message):
    __slots__ = ("before", "after")
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    before: str
    after: str
    def __init__(self, before: _Optional[str] = ..., after: _Optional[str] = ...) -> None: ...

class CompareAuditsResponse(_message.Message):
    __slots__ = ("comparable", "differences", "changes")
    COMPARABLE_FIELD_NUMBER: _ClassVar[int]
    DIFFERENCES_FIELD_NUMBER: _ClassVar[int]
    CHANGES_FIELD_NUMBER: _ClassVar[int]
    comparable: bool
    differences: _containers.RepeatedScalarFieldContainer[str]
    changes: _containers.RepeatedCompositeFieldContainer[FigureChange]
    def __init__(self, comparable: bool = ..., differences: _Optional[_Iterable[str]] = ..., changes: _Optional[_Iterable[_Union[FigureChange, _Mapping]]] = ...) -> None: ...

class FigureChange(_message.Message):
    __slots__ = ("model", "versus", "before", "after", "change", "apart")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSUS_FIELD_NUMBER: _ClassVar[int]
    BEFORE_FIELD_NUMBER: _ClassVar[int]
    AFTER_FIELD_NUMBER: _ClassVar[int]
    CHANGE_FIELD_NUMBER: _ClassVar[int]
    APART_FIELD_NUMBER: _ClassVar[int]
    model: str
    versus: str
    before: _audit_report_pb2.AuditFigure
    after: _audit_report_pb2.AuditFigure
    change: float
    apart: bool
    def __init__(self, model: _Optional[str] = ..., versus: _Optional[str] = ..., before: _Optional[_Union[_audit_report_pb2.AuditFigure, _Mapping]] = ..., after: _Optional[_Union[_audit_report_pb2.AuditFigure, _Mapping]] = ..., change: _Optional[float] = ..., apart: bool = ...) -> None: ...

class AuditPolicy(_message.Message):
    __slots__ = ("name", "rules", "max_age_seconds", "audit", "create_time", "dataset", "settings_of", "min_level", "min_resamples", "min_group", "allow_training_overlap", "require_known_training")
    NAME_FIELD_NUMBER: _ClassVar[int]
    RULES_FIELD_NUMBER: _ClassVar[int]
    MAX_AGE_SECONDS_FIELD_NUMBER: _ClassVar[int]
    AUDIT_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_OF_FIELD_NUMBER: _ClassVar[int]
    MIN_LEVEL_FIELD_NUMBER: _ClassVar[int]
    MIN_RESAMPLES_FIELD_NUMBER: _ClassVar[int]
    MIN_GROUP_FIELD_NUMBER: _ClassVar[int]
    ALLOW_TRAINING_OVERLAP_FIELD_NUMBER: _ClassVar[int]
    REQUIRE_KNOWN_TRAINING_FIELD_NUMBER: _ClassVar[int]
    name: str
    rules: _containers.RepeatedCompositeFieldContainer[AuditRule]
    max_age_seconds: int
    audit: str
    create_time: _timestamp_pb2.Timestamp
    dataset: str
    settings_of: str
    min_level: float
    min_resamples: int
    min_group: int
    allow_training_overlap: bool
    require_known_training: bool
    def __init__(self, name: _Optional[str] = ..., rules: _Optional[_Iterable[_Union[AuditRule, _Mapping]]] = ..., max_age_seconds: _Optional[int] = ..., audit: _Optional[str] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., dataset: _Optional[str] = ..., settings_of: _Optional[str] = ..., min_level: _Optional[float] = ..., min_resamples: _Optional[int] = ..., min_group: _Optional[int] = ..., allow_training_overlap: bool = ..., require_known_training: bool = ...) -> None: ...

class AuditRule(_message.Message):
    __slots__ = ("measure", "scope", "attribute", "versus", "at_most", "at_least", "allow_low_support")
    MEASURE_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTE_FIELD_NUMBER: _ClassVar[int]
    CLASS_FIELD_NUMBER: _ClassVar[int]
    VERSUS_FIELD_NUMBER: _ClassVar[int]
    AT_MOST_FIELD_NUMBER: _ClassVar[int]
    AT_LEAST_FIELD_NUMBER: _ClassVar[int]
    ALLOW_LOW_SUPPORT_FIELD_NUMBER: _ClassVar[int]
    measure: str
    scope: _audit_report_pb2.FigureScope
    attribute: str
    versus: str
    at_most: float
    at_least: float
    allow_low_support: bool
    def __init__(self, measure: _Optional[str] = ..., scope: _Optional[_Union[_audit_report_pb2.FigureScope, str]] = ..., attribute: _Optional[str] = ..., versus: _Optional[str] = ..., at_most: _Optional[float] = ..., at_least: _Optional[float] = ..., allow_low_support: bool = ..., **kwargs) -> None: ...

class CreateAuditPolicyRequest(_message.Message):
    __slots__ = ("policy", "request_id")
    POLICY_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    policy: AuditPolicy
    request_id: str
    def __init__(self, policy: _Optional[_Union[AuditPolicy, _Mapping]] = ..., request_id: _Optional[str] = ...) -> None: ...

class GetAuditPolicyRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ListAuditPoliciesRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListAuditPoliciesResponse(_message.Message):
    __slots__ = ("policies", "next_page_token")
    POLICIES_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    policies: _containers.RepeatedCompositeFieldContainer[AuditPolicy]
    next_page_token: str
    def __init__(self, policies: _Optional[_Iterable[_Union[AuditPolicy, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class DeleteAuditPolicyRequest(_message.Message):
    __slots__ = ("name", "request_id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    request_id: str
    def __init__(self, name: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...
