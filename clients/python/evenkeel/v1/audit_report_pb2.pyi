from evenkeel.v1 import audit_settings_pb2 as _audit_settings_pb2
from evenkeel.v1 import training_pb2 as _training_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AuditedModelKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    AUDITED_MODEL_KIND_UNSPECIFIED: _ClassVar[AuditedModelKind]
    AUDITED_MODEL_KIND_BASE: _ClassVar[AuditedModelKind]
    AUDITED_MODEL_KIND_ADAPTER: _ClassVar[AuditedModelKind]
    AUDITED_MODEL_KIND_HEAD_ONLY: _ClassVar[AuditedModelKind]
    AUDITED_MODEL_KIND_FULL: _ClassVar[AuditedModelKind]
    AUDITED_MODEL_KIND_UPLOADED: _ClassVar[AuditedModelKind]

class FigureScope(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FIGURE_SCOPE_UNSPECIFIED: _ClassVar[FigureScope]
    FIGURE_SCOPE_OVERALL: _ClassVar[FigureScope]
    FIGURE_SCOPE_GROUP: _ClassVar[FigureScope]
    FIGURE_SCOPE_COMPLEMENT: _ClassVar[FigureScope]
    FIGURE_SCOPE_MEMBER_MINUS_REST: _ClassVar[FigureScope]
    FIGURE_SCOPE_MINIMUM: _ClassVar[FigureScope]
    FIGURE_SCOPE_MAXIMUM: _ClassVar[FigureScope]
    FIGURE_SCOPE_DIFFERENCE: _ClassVar[FigureScope]
    FIGURE_SCOPE_RATIO: _ClassVar[FigureScope]
    FIGURE_SCOPE_DIFFERENCE_TO_OVERALL: _ClassVar[FigureScope]
    FIGURE_SCOPE_RATIO_TO_OVERALL: _ClassVar[FigureScope]
    FIGURE_SCOPE_ATTRIBUTE: _ClassVar[FigureScope]

class FigureStatus(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    FIGURE_STATUS_UNSPECIFIED: _ClassVar[FigureStatus]
    FIGURE_STATUS_OK: _ClassVar[FigureStatus]
    FIGURE_STATUS_LOW_SUPPORT: _ClassVar[FigureStatus]
    FIGURE_STATUS_UNDEFINED: _ClassVar[FigureStatus]
    FIGURE_STATUS_NOT_MEASURED: _ClassVar[FigureStatus]
    FIGURE_STATUS_SUPPRESSED: _ClassVar[FigureStatus]
AUDITED_MODEL_KIND_UNSPECIFIED: AuditedModelKind
AUDITED_MODEL_KIND_BASE: AuditedModelKind
AUDITED_MODEL_KIND_ADAPTER: AuditedModelKind
AUDITED_MODEL_KIND_HEAD_ONLY: AuditedModelKind
AUDITED_MODEL_KIND_FULL: AuditedModelKind
AUDITED_MODEL_KIND_UPLOADED: AuditedModelKind
FIGURE_SCOPE_UNSPECIFIED: FigureScope
FIGURE_SCOPE_OVERALL: FigureScope
FIGURE_SCOPE_GROUP: FigureScope
FIGURE_SCOPE_COMPLEMENT: FigureScope
FIGURE_SCOPE_MEMBER_MINUS_REST: FigureScope
FIGURE_SCOPE_MINIMUM: FigureScope
FIGURE_SCOPE_MAXIMUM: FigureScope
FIGURE_SCOPE_DIFFERENCE: FigureScope
FIGURE_SCOPE_RATIO: FigureScope
FIGURE_SCOPE_DIFFERENCE_TO_OVERALL: FigureScope
FIGURE_SCOPE_RATIO_TO_OVERALL: FigureScope
FIGURE_SCOPE_ATTRIBUTE: FigureScope
FIGURE_STATUS_UNSPECIFIED: FigureStatus
FIGURE_STATUS_OK: FigureStatus
FIGURE_STATUS_LOW_SUPPORT: FigureStatus
FIGURE_STATUS_UNDEFINED: FigureStatus
FIGURE_STATUS_NOT_MEASURED: FigureStatus
FIGURE_STATUS_SUPPRESSED: FigureStatus

class AuditReport(_message.Message):
    __slots__ = ("id", "version", "software", "settings", "base", "data", "models", "groups", "figures", "reliability", "rocs", "preferences", "tests", "warnings", "seeds", "matched")
    ID_FIELD_NUMBER: _ClassVar[int]
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SOFTWARE_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    BASE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    MODELS_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    RELIABILITY_FIELD_NUMBER: _ClassVar[int]
    ROCS_FIELD_NUMBER: _ClassVar[int]
    PREFERENCES_FIELD_NUMBER: _ClassVar[int]
    TESTS_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    SEEDS_FIELD_NUMBER: _ClassVar[int]
    MATCHED_FIELD_NUMBER: _ClassVar[int]
    id: str
    version: int
    software: str
    settings: _audit_settings_pb2.AuditSettings
    base: AuditBaseModel
    data: AuditData
    models: _containers.RepeatedCompositeFieldContainer[AuditedModel]
    groups: _containers.RepeatedCompositeFieldContainer[AuditGroup]
    figures: _containers.RepeatedCompositeFieldContainer[AuditFigure]
    reliability: _containers.RepeatedCompositeFieldContainer[ReliabilityDiagram]
    rocs: _containers.RepeatedCompositeFieldContainer[RocCurve]
    preferences: _containers.RepeatedCompositeFieldContainer[TokenPreference]
    tests: int
    warnings: _containers.RepeatedCompositeFieldContainer[AuditWarning]
    seeds: _containers.RepeatedCompositeFieldContainer[AuditSeedSpread]
    matched: AuditUtilityMatched
    def __init__(self, id: _Optional[str] = ..., version: _Optional[int] = ..., software: _Optional[str] = ..., settings: _Optional[_Union[_audit_settings_pb2.AuditSettings, _Mapping]] = ..., base: _Optional[_Union[AuditBaseModel, _Mapping]] = ..., data: _Optional[_Union[AuditData, _Mapping]] = ..., models: _Optional[_Iterable[_Union[AuditedModel, _Mapping]]] = ..., groups: _Optional[_Iterable[_Union[AuditGroup, _Mapping]]] = ..., figures: _Optional[_Iterable[_Union[AuditFigure, _Mapping]]] = ..., reliability: _Optional[_Iterable[_Union[ReliabilityDiagram, _Mapping]]] = ..., rocs: _Optional[_Iterable[_Union[RocCurve, _Mapping]]] = ..., preferences: _Optional[_Iterable[_Union[TokenPreference, _Mapping]]] = ..., tests: _Optional[int] = ..., warnings: _Optional[_Iterable[_Union[AuditWarning, _Mapping]]] = ..., seeds: _Optional[_Iterable[_Union[AuditSeedSpread, _Mapping]]] = ..., matched: _Optional[_Union[AuditUtilityMatched, _Mapping]] = ...) -> None: ...

class AuditUtilityMatched(_message.Message):
    __slots__ = ("model", "versus", "measure", "tolerance", "difference", "interval", "within")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSUS_FIELD_NUMBER: _ClassVar[int]
    MEASURE_FIELD_NUMBER: _ClassVar[int]
    TOLERANCE_FIELD_NUMBER: _ClassVar[int]
    DIFFERENCE_FIELD_NUMBER: _ClassVar[int]
    INTERVAL_FIELD_NUMBER: _ClassVar[int]
    WITHIN_FIELD_NUMBER: _ClassVar[int]
    model: int
    versus: int
    measure: str
    tolerance: float
    difference: float
    interval: FigureInterval
    within: bool
    def __init__(self, model: _Optional[int] = ..., versus: _Optional[int] = ..., measure: _Optional[str] = ..., tolerance: _Optional[float] = ..., difference: _Optional[float] = ..., interval: _Optional[_Union[FigureInterval, _Mapping]] = ..., within: bool = ...) -> None: ...

class AuditSeedSpread(_message.Message):
    __slots__ = ("models", "measure", "scope", "attribute", "n", "mean", "standard_deviation", "minimum", "maximum")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    MEASURE_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTE_FIELD_NUMBER: _ClassVar[int]
    CLASS_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    MEAN_FIELD_NUMBER: _ClassVar[int]
    STANDARD_DEVIATION_FIELD_NUMBER: _ClassVar[int]
    MINIMUM_FIELD_NUMBER: _ClassVar[int]
    MAXIMUM_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedScalarFieldContainer[int]
    measure: str
    scope: FigureScope
    attribute: str
    n: int
    mean: float
    standard_deviation: float
    minimum: float
    maximum: float
    def __init__(self, models: _Optional[_Iterable[int]] = ..., measure: _Optional[str] = ..., scope: _Optional[_Union[FigureScope, str]] = ..., attribute: _Optional[str] = ..., n: _Optional[int] = ..., mean: _Optional[float] = ..., standard_deviation: _Optional[float] = ..., minimum: _Optional[float] = ..., maximum: _Optional[float] = ..., **kwargs) -> None: ...

class AuditBaseModel(_message.Message):
    __slots__ = ("name", "fingerprint", "dtype", "device")
    NAME_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    name: str
    fingerprint: str
    dtype: str
    device: str
    def __init__(self, name: _Optional[str] = ..., fingerprint: _Optional[str] = ..., dtype: _Optional[str] = ..., device: _Optional[str] = ...) -> None: ...

class AuditData(_message.Message):
    __slots__ = ("dataset", "rows", "sha256", "weight", "clusters", "duplicates", "truncated", "labels")
    DATASET_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    CLUSTERS_FIELD_NUMBER: _ClassVar[int]
    DUPLICATES_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    dataset: str
    rows: int
    sha256: str
    weight: float
    clusters: int
    duplicates: int
    truncated: int
    labels: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, dataset: _Optional[str] = ..., rows: _Optional[int] = ..., sha256: _Optional[str] = ..., weight: _Optional[float] = ..., clusters: _Optional[int] = ..., duplicates: _Optional[int] = ..., truncated: _Optional[int] = ..., labels: _Optional[_Iterable[str]] = ...) -> None: ...

class AuditedModel(_message.Message):
    __slots__ = ("name", "kind", "adapter", "generation", "scale", "training", "overlap")
    NAME_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    TRAINING_FIELD_NUMBER: _ClassVar[int]
    OVERLAP_FIELD_NUMBER: _ClassVar[int]
    name: str
    kind: AuditedModelKind
    adapter: str
    generation: str
    scale: float
    training: AuditedTraining
    overlap: int
    def __init__(self, name: _Optional[str] = ..., kind: _Optional[_Union[AuditedModelKind, str]] = ..., adapter: _Optional[str] = ..., generation: _Optional[str] = ..., scale: _Optional[float] = ..., training: _Optional[_Union[AuditedTraining, _Mapping]] = ..., overlap: _Optional[int] = ...) -> None: ...

class AuditedTraining(_message.Message):
    __slots__ = ("job", "dataset", "rank", "alpha", "layers", "seed", "settings", "step")
    JOB_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    RANK_FIELD_NUMBER: _ClassVar[int]
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    job: str
    dataset: str
    rank: int
    alpha: float
    layers: _containers.RepeatedScalarFieldContainer[int]
    seed: int
    settings: _training_pb2.TrainingSettings
    step: int
    def __init__(self, job: _Optional[str] = ..., dataset: _Optional[str] = ..., rank: _Optional[int] = ..., alpha: _Optional[float] = ..., layers: _Optional[_Iterable[int]] = ..., seed: _Optional[int] = ..., settings: _Optional[_Union[_training_pb2.TrainingSettings, _Mapping]] = ..., step: _Optional[int] = ...) -> None: ...

class AuditGroup(_message.Message):
    __slots__ = ("attribute", "value", "rows", "weight", "clusters", "suppressed")
    ATTRIBUTE_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    CLUSTERS_FIELD_NUMBER: _ClassVar[int]
    SUPPRESSED_FIELD_NUMBER: _ClassVar[int]
    attribute: str
    value: str
    rows: int
    weight: float
    clusters: int
    suppressed: bool
    def __init__(self, attribute: _Optional[str] = ..., value: _Optional[str] = ..., rows: _Optional[int] = ..., weight: _Optional[float] = ..., clusters: _Optional[int] = ..., suppressed: bool = ...) -> None: ...

class AuditFigure(_message.Message):
    __slots__ = ("model", "versus", "attribute", "scope", "group", "control", "measure", "value", "status", "reason", "n", "weight", "groups_defined", "groups_total", "interval", "test", "extremes")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    VERSUS_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTE_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    CONTROL_FIELD_NUMBER: _ClassVar[int]
    MEASURE_FIELD_NUMBER: _ClassVar[int]
    CLASS_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    STATUS_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    GROUPS_DEFINED_FIELD_NUMBER: _ClassVar[int]
    GROUPS_TOTAL_FIELD_NUMBER: _ClassVar[int]
    INTERVAL_FIELD_NUMBER: _ClassVar[int]
    TEST_FIELD_NUMBER: _ClassVar[int]
    EXTREMES_FIELD_NUMBER: _ClassVar[int]
    model: int
    versus: int
    attribute: str
    scope: FigureScope
    group: str
    control: FigureControl
    measure: str
    value: float
    status: FigureStatus
    reason: str
    n: int
    weight: float
    groups_defined: int
    groups_total: int
    interval: FigureInterval
    test: FigureTest
    extremes: _containers.RepeatedCompositeFieldContainer[FigureGroup]
    def __init__(self, model: _Optional[int] = ..., versus: _Optional[int] = ..., attribute: _Optional[str] = ..., scope: _Optional[_Union[FigureScope, str]] = ..., group: _Optional[str] = ..., control: _Optional[_Union[FigureControl, _Mapping]] = ..., measure: _Optional[str] = ..., value: _Optional[float] = ..., status: _Optional[_Union[FigureStatus, str]] = ..., reason: _Optional[str] = ..., n: _Optional[int] = ..., weight: _Optional[float] = ..., groups_defined: _Optional[int] = ..., groups_total: _Optional[int] = ..., interval: _Optional[_Union[FigureInterval, _Mapping]] = ..., test: _Optional[_Union[FigureTest, _Mapping]] = ..., extremes: _Optional[_Iterable[_Union[FigureGroup, _Mapping]]] = ..., **kwargs) -> None: ...

class FigureGroup(_message.Message):
    __slots__ = ("value",)
    VALUE_FIELD_NUMBER: _ClassVar[int]
    value: str
    def __init__(self, value: _Optional[str] = ...) -> None: ...

class FigureControl(_message.Message):
    __slots__ = ("column", "value")
    COLUMN_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    column: str
    value: str
    def __init__(self, column: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...

class FigureInterval(_message.Message):
    __slots__ = ("method", "level", "low", "high")
    METHOD_FIELD_NUMBER: _ClassVar[int]
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    method: str
    level: float
    low: float
    high: float
    def __init__(self, method: _Optional[str] = ..., level: _Optional[float] = ..., low: _Optional[float] = ..., high: _Optional[float] = ...) -> None: ...

class FigureTest(_message.Message):
    __slots__ = ("name", "p", "adjusted", "null", "detectable")
    NAME_FIELD_NUMBER: _ClassVar[int]
    P_FIELD_NUMBER: _ClassVar[int]
    ADJUSTED_FIELD_NUMBER: _ClassVar[int]
    NULL_FIELD_NUMBER: _ClassVar[int]
    DETECTABLE_FIELD_NUMBER: _ClassVar[int]
    name: str
    p: float
    adjusted: float
    null: float
    detectable: float
    def __init__(self, name: _Optional[str] = ..., p: _Optional[float] = ..., adjusted: _Optional[float] = ..., null: _Optional[float] = ..., detectable: _Optional[float] = ...) -> None: ...

class ReliabilityDiagram(_message.Message):
    __slots__ = ("model", "attribute", "scope", "group", "form", "bins")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTE_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    FORM_FIELD_NUMBER: _ClassVar[int]
    BINS_FIELD_NUMBER: _ClassVar[int]
    model: int
    attribute: str
    scope: FigureScope
    group: str
    form: str
    bins: _containers.RepeatedCompositeFieldContainer[ReliabilityBin]
    def __init__(self, model: _Optional[int] = ..., attribute: _Optional[str] = ..., scope: _Optional[_Union[FigureScope, str]] = ..., group: _Optional[str] = ..., form: _Optional[str] = ..., bins: _Optional[_Iterable[_Union[ReliabilityBin, _Mapping]]] = ...) -> None: ...

class ReliabilityBin(_message.Message):
    __slots__ = ("low", "high", "n", "confidence", "accuracy", "accuracy_low", "accuracy_high")
    LOW_FIELD_NUMBER: _ClassVar[int]
    HIGH_FIELD_NUMBER: _ClassVar[int]
    N_FIELD_NUMBER: _ClassVar[int]
    CONFIDENCE_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_LOW_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_HIGH_FIELD_NUMBER: _ClassVar[int]
    low: float
    high: float
    n: int
    confidence: float
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    def __init__(self, low: _Optional[float] = ..., high: _Optional[float] = ..., n: _Optional[int] = ..., confidence: _Optional[float] = ..., accuracy: _Optional[float] = ..., accuracy_low: _Optional[float] = ..., accuracy_high: _Optional[float] = ...) -> None: ...

class RocCurve(_message.Message):
    __slots__ = ("model", "attribute", "scope", "group", "attack", "members", "others", "points", "parameter")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTE_FIELD_NUMBER: _ClassVar[int]
    SCOPE_FIELD_NUMBER: _ClassVar[int]
    GROUP_FIELD_NUMBER: _ClassVar[int]
    ATTACK_FIELD_NUMBER: _ClassVar[int]
    MEMBERS_FIELD_NUMBER: _ClassVar[int]
    OTHERS_FIELD_NUMBER: _ClassVar[int]
    POINTS_FIELD_NUMBER: _ClassVar[int]
    PARAMETER_FIELD_NUMBER: _ClassVar[int]
    model: int
    attribute: str
    scope: FigureScope
    group: str
    attack: _audit_settings_pb2.AuditAttack
    members: int
    others: int
    points: _containers.RepeatedCompositeFieldContainer[RocPoint]
    parameter: float
    def __init__(self, model: _Optional[int] = ..., attribute: _Optional[str] = ..., scope: _Optional[_Union[FigureScope, str]] = ..., group: _Optional[str] = ..., attack: _Optional[_Union[_audit_settings_pb2.AuditAttack, str]] = ..., members: _Optional[int] = ..., others: _Optional[int] = ..., points: _Optional[_Iterable[_Union[RocPoint, _Mapping]]] = ..., parameter: _Optional[float] = ...) -> None: ...

class RocPoint(_message.Message):
    __slots__ = ("false_positive_rate", "true_positive_rate")
    FALSE_POSITIVE_RATE_FIELD_NUMBER: _ClassVar[int]
    TRUE_POSITIVE_RATE_FIELD_NUMBER: _ClassVar[int]
    false_positive_rate: float
    true_positive_rate: float
    def __init__(self, false_positive_rate: _Optional[float] = ..., true_positive_rate: _Optional[float] = ...) -> None: ...

class TokenPreference(_message.Message):
    __slots__ = ("model", "alphabet", "by_token", "by_position", "by_content", "flip_rate", "prior", "accuracy_raw", "accuracy_calibrated", "accuracy_debiased", "accuracy_averaged", "accuracy_reversed", "separable")
    MODEL_FIELD_NUMBER: _ClassVar[int]
    ALPHABET_FIELD_NUMBER: _ClassVar[int]
    BY_TOKEN_FIELD_NUMBER: _ClassVar[int]
    BY_POSITION_FIELD_NUMBER: _ClassVar[int]
    BY_CONTENT_FIELD_NUMBER: _ClassVar[int]
    FLIP_RATE_FIELD_NUMBER: _ClassVar[int]
    PRIOR_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_RAW_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_CALIBRATED_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_DEBIASED_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_AVERAGED_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_REVERSED_FIELD_NUMBER: _ClassVar[int]
    SEPARABLE_FIELD_NUMBER: _ClassVar[int]
    model: int
    alphabet: str
    by_token: _containers.RepeatedScalarFieldContainer[float]
    by_position: _containers.RepeatedScalarFieldContainer[float]
    by_content: _containers.RepeatedScalarFieldContainer[float]
    flip_rate: float
    prior: _containers.RepeatedScalarFieldContainer[float]
    accuracy_raw: float
    accuracy_calibrated: float
    accuracy_debiased: float
    accuracy_averaged: float
    accuracy_reversed: float
    separable: bool
    def __init__(self, model: _Optional[int] = ..., alphabet: _Optional[str] = ..., by_token: _Optional[_Iterable[float]] = ..., by_position: _Optional[_Iterable[float]] = ..., by_content: _Optional[_Iterable[float]] = ..., flip_rate: _Optional[float] = ..., prior: _Optional[_Iterable[float]] = ..., accuracy_raw: _Optional[float] = ..., accuracy_calibrated: _Optional[float] = ..., accuracy_debiased: _Optional[float] = ..., accuracy_averaged: _Optional[float] = ..., accuracy_reversed: _Optional[float] = ..., separable: bool = ...) -> None: ...

class AuditWarning(_message.Message):
    __slots__ = ("kind", "message")
    KIND_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    kind: str
    message: str
    def __init__(self, kind: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...
