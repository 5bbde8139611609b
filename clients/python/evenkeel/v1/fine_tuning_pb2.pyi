from evenkeel.v1 import job_pb2 as _job_pb2
from evenkeel.v1 import training_pb2 as _training_pb2
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class CreateFineTuningJobRequest(_message.Message):
    __slots__ = ("adapter", "dataset", "settings", "expected_generation", "alias", "pinned", "allow_no_effect", "request_id", "base_model")
    ADAPTER_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    SETTINGS_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_GENERATION_FIELD_NUMBER: _ClassVar[int]
    ALIAS_FIELD_NUMBER: _ClassVar[int]
    PINNED_FIELD_NUMBER: _ClassVar[int]
    ALLOW_NO_EFFECT_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    adapter: str
    dataset: str
    settings: _training_pb2.TrainingSettings
    expected_generation: str
    alias: str
    pinned: bool
    allow_no_effect: bool
    request_id: str
    base_model: str
    def __init__(self, adapter: _Optional[str] = ..., dataset: _Optional[str] = ..., settings: _Optional[_Union[_training_pb2.TrainingSettings, _Mapping]] = ..., expected_generation: _Optional[str] = ..., alias: _Optional[str] = ..., pinned: bool = ..., allow_no_effect: bool = ..., request_id: _Optional[str] = ..., base_model: _Optional[str] = ...) -> None: ...
