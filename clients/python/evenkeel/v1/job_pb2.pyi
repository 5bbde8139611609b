from evenkeel.v1 import audit_settings_pb2 as _audit_settings_pb2
from evenkeel.v1 import training_pb2 as _training_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class JobKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    JOB_KIND_UNSPECIFIED: _ClassVar[JobKind]
    JOB_KIND_FINE_TUNING: _ClassVar[JobKind]
    JOB_KIND_AUDIT: _ClassVar[JobKind]

class JobState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    JOB_STATE_UNSPECIFIED: _ClassVar[JobState]
    JOB_STATE_QUEUED: _ClassVar[JobState]
    JOB_STATE_RUNNING: _ClassVar[JobState]
    JOB_STATE_SUCCEEDED: _ClassVar[JobState]
    JOB_STATE_FAILED: _ClassVar[JobState]
    JOB_STATE_CANCELLED: _ClassVar[JobState]
JOB_KIND_UNSPECIFIED: JobKind
JOB_KIND_FINE_TUNING: JobKind
JOB_KIND_AUDIT: JobKind
JOB_STATE_UNSPECIFIED: JobState
JOB_STATE_QUEUED: JobState
JOB_STATE_RUNNING: JobState
JOB_STATE_SUCCEEDED: JobState
JOB_STATE_FAILED: JobState
JOB_STATE_CANCELLED: JobState

class Job(_message.Message):
    __slots__ = ("id", "kind", "state", "cancelling", "create_time", "start_time", "end_time", "adapter", "alias", "dataset", "base_fingerprint", "settings", "progress", "checkpoint_step", "result", "error", "resumable", "audit", "audit_progress", "parent")
    ID_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    CANCELLING_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    BASE_FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_STEP_FIELD_NUMBER: _ClassVar[int]
    RESULT_FIELD_NUMBER: _ClassVar[int]
    ERROR_FIELD_NUMBER: _ClassVar[int]
    RESUMABLE_FIELD_NUMBER: _ClassVar[int]
    AUDIT_FIELD_NUMBER: _ClassVar[int]
    AUDIT_PROGRESS_FIELD_NUMBER: _ClassVar[int]
    PARENT_FIELD_NUMBER: _ClassVar[int]
    id: str
    kind: JobKind
    state: JobState
    cancelling: bool
    create_time: _timestamp_pb2.Timestamp
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    adapter: str
    alias: str
    dataset: str
    base_fingerprint: str
    settings: _training_pb2.TrainingSettings
    progress: _training_pb2.TrainingProgress
    checkpoint_step: int
    result: JobResult
    error: JobError
    resumable: bool
    audit: AuditJob
    audit_progress: AuditProgress
    parent: str
    def __init__(self, id: _Optional[str] = ..., kind: _Optional[_Union[JobKind, str]] = ..., state: _Optional[_Union[JobState, str]] = ..., cancelling: bool = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., adapter: _Optional[str] = ..., alias: _Optional[str] = ..., dataset: _Optional[str] = ..., base_fingerprint: _Optional[str] = ..., settings: _Optional[_Union[_training_pb2.TrainingSettings, _Mapping]] = ..., progress: _Optional[_Union[_training_pb2.TrainingProgress, _Mapping]] = ..., checkpoint_step: _Optional[int] = ..., result: _Optional[_Union[JobResult, _Mapping]] = ..., error: _Optional[_Union[JobError, _Mapping]] = ..., resumable: bool = ..., audit: _Optional[_Union[AuditJob, _Mapping]] = ..., audit_progress: _Optional[_Union[AuditProgress, _Mapping]] = ..., parent: _Optional[str] = ...) -> None: ...

class JobResult(_message.Message):
    __slots__ = ("adapter", "generation", "report", "checkpoints", "unreached_steps")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    REPORT_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINTS_FIELD_NUMBER: _ClassVar[int]
    UNREACHED_STEPS_FIELD_NUMBER: _ClassVar[int]
    adapter: str
    generation: str
    report: str
    checkpoints: _containers.RepeatedCompositeFieldContainer[PublishedCheckpoint]
    unreached_steps: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, adapter: _Optional[str] = ..., generation: _Optional[str] = ..., report: _Optional[str] = ..., checkpoints: _Optional[_Iterable[_Union[PublishedCheckpoint, _Mapping]]] = ..., unreached_steps: _Optional[_Iterable[int]] = ...) -> None: ...

class PublishedCheckpoint(_message.Message):
    __slots__ = ("step", "adapter", "generation")
    STEP_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    step: int
    adapter: str
    generation: str
    def __init__(self, step: _Optional[int] = ..., adapter: _Optional[str] = ..., generation: _Optional[str] = ...) -> None: ...

class AuditJob(_message.Message):
    __slots__ = ("models", "settings", "children", "keep_models")
    MODELS_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    CHILDREN_FIELD_NUMBER: _ClassVar[int]
    KEEP_MODELS_FIELD_NUMBER: _ClassVar[int]
    models: _containers.RepeatedCompositeFieldContainer[AuditJobModel]
    settings: _audit_settings_pb2.AuditSettings
    children: _containers.RepeatedScalarFieldContainer[str]
    keep_models: bool
    def __init__(self, models: _Optional[_Iterable[_Union[AuditJobModel, _Mapping]]] = ..., settings: _Optional[_Union[_audit_settings_pb2.AuditSettings, _Mapping]] = ..., children: _Optional[_Iterable[str]] = ..., keep_models: bool = ...) -> None: ...

class AuditJobModel(_message.Message):
    __slots__ = ("name", "adapter", "generation", "scale", "job", "checkpoint")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    SCALE_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    name: str
    adapter: str
    generation: str
    scale: float
    job: str
    checkpoint: int
    def __init__(self, name: _Optional[str] = ..., adapter: _Optional[str] = ..., generation: _Optional[str] = ..., scale: _Optional[float] = ..., job: _Optional[str] = ..., checkpoint: _Optional[int] = ...) -> None: ...

class AuditProgress(_message.Message):
    __slots__ = ("phase", "model", "done", "total", "items_per_second", "eta_seconds")
    PHASE_FIELD_NUMBER: _ClassVar[int]
    MODEL_FIELD_NUMBER: _ClassVar[int]
    DONE_FIELD_NUMBER: _ClassVar[int]
    TOTAL_FIELD_NUMBER: _ClassVar[int]
    ITEMS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    ETA_SECONDS_FIELD_NUMBER: _ClassVar[int]
    phase: str
    model: str
    done: int
    total: int
    items_per_second: float
    eta_seconds: float
    def __init__(self, phase: _Optional[str] = ..., model: _Optional[str] = ..., done: _Optional[int] = ..., total: _Optional[int] = ..., items_per_second: _Optional[float] = ..., eta_seconds: _Optional[float] = ...) -> None: ...

class JobError(_message.Message):
    __slots__ = ("reason", "message")
    REASON_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    reason: str
    message: str
    def __init__(self, reason: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class GetJobRequest(_message.Message):
    __slots__ = ("id",)
    ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    def __init__(self, id: _Optional[str] = ...) -> None: ...

class ListJobsRequest(_message.Message):
    __slots__ = ("page_size", "page_token", "state")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    state: JobState
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ..., state: _Optional[_Union[JobState, str]] = ...) -> None: ...

class ListJobsResponse(_message.Message):
    __slots__ = ("jobs", "next_page_token")
    JOBS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    jobs: _containers.RepeatedCompositeFieldContainer[Job]
    next_page_token: str
    def __init__(self, jobs: _Optional[_Iterable[_Union[Job, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class WatchJobRequest(_message.Message):
    __slots__ = ("id", "token")
    ID_FIELD_NUMBER: _ClassVar[int]
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    id: str
    token: str
    def __init__(self, id: _Optional[str] = ..., token: _Optional[str] = ...) -> None: ...

class WatchJobResponse(_message.Message):
    __slots__ = ("token", "time", "job", "progress", "audit_progress", "checkpoint")
    TOKEN_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    JOB_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_FIELD_NUMBER: _ClassVar[int]
    AUDIT_PROGRESS_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_FIELD_NUMBER: _ClassVar[int]
    token: str
    time: _timestamp_pb2.Timestamp
    job: Job
    progress: _training_pb2.TrainingProgress
    audit_progress: AuditProgress
    checkpoint: PublishedCheckpoint
    def __init__(self, token: _Optional[str] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., job: _Optional[_Union[Job, _Mapping]] = ..., progress: _Optional[_Union[_training_pb2.TrainingProgress, _Mapping]] = ..., audit_progress: _Optional[_Union[AuditProgress, _Mapping]] = ..., checkpoint: _Optional[_Union[PublishedCheckpoint, _Mapping]] = ...) -> None: ...

class CancelJobRequest(_message.Message):
    __slots__ = ("id", "request_id")
    ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    request_id: str
    def __init__(self, id: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...

class ResumeJobRequest(_message.Message):
    __slots__ = ("id", "request_id")
    ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    id: str
    request_id: str
    def __init__(self, id: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...
