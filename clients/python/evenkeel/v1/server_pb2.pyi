from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class GetServerInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ServerInfo(_message.Message):
    __slots__ = ("version", "base_model", "limits", "image_models")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    LIMITS_FIELD_NUMBER: _ClassVar[int]
    IMAGE_MODELS_FIELD_NUMBER: _ClassVar[int]
    version: str
    base_model: BaseModel
    limits: Limits
    image_models: _containers.RepeatedCompositeFieldContainer[BaseModel]
    def __init__(self, version: _Optional[str] = ..., base_model: _Optional[_Union[BaseModel, _Mapping]] = ..., limits: _Optional[_Union[Limits, _Mapping]] = ..., image_models: _Optional[_Iterable[_Union[BaseModel, _Mapping]]] = ...) -> None: ...

class BaseModel(_message.Message):
    __slots__ = ("name", "architecture", "fingerprint", "parameters", "dtype", "context_length", "device", "vocab_size", "has_chat_template", "label_names", "image_height", "image_width")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ARCHITECTURE_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    PARAMETERS_FIELD_NUMBER: _ClassVar[int]
    DTYPE_FIELD_NUMBER: _ClassVar[int]
    CONTEXT_LENGTH_FIELD_NUMBER: _ClassVar[int]
    DEVICE_FIELD_NUMBER: _ClassVar[int]
    VOCAB_SIZE_FIELD_NUMBER: _ClassVar[int]
    HAS_CHAT_TEMPLATE_FIELD_NUMBER: _ClassVar[int]
    LABEL_NAMES_FIELD_NUMBER: _ClassVar[int]
    IMAGE_HEIGHT_FIELD_NUMBER: _ClassVar[int]
    IMAGE_WIDTH_FIELD_NUMBER: _ClassVar[int]
    name: str
    architecture: str
    fingerprint: str
    parameters: int
    dtype: str
    context_length: int
    device: str
    vocab_size: int
    has_chat_template: bool
    label_names: _containers.RepeatedScalarFieldContainer[str]
    image_height: int
    image_width: int
    def __init__(self, name: _Optional[str] = ..., architecture: _Optional[str] = ..., fingerprint: _Optional[str] = ..., parameters: _Optional[int] = ..., dtype: _Optional[str] = ..., context_length: _Optional[int] = ..., device: _Optional[str] = ..., vocab_size: _Optional[int] = ..., has_chat_template: bool = ..., label_names: _Optional[_Iterable[str]] = ..., image_height: _Optional[int] = ..., image_width: _Optional[int] = ...) -> None: ...

class Limits(_message.Message):
    __slots__ = ("max_waiting_sequences", "max_running_sequences", "max_step_tokens", "kv_cache_bytes", "adapter_bytes", "max_upload_bytes", "max_n", "max_logprobs", "max_stop_strings", "max_candidates", "max_message_bytes", "max_page_size", "max_waiting_images", "max_images", "max_image_bytes", "max_image_pixels", "max_request_pixels")
    MAX_WAITING_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    MAX_RUNNING_SEQUENCES_FIELD_NUMBER: _ClassVar[int]
    MAX_STEP_TOKENS_FIELD_NUMBER: _ClassVar[int]
    KV_CACHE_BYTES_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_UPLOAD_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_N_FIELD_NUMBER: _ClassVar[int]
    MAX_LOGPROBS_FIELD_NUMBER: _ClassVar[int]
    MAX_STOP_STRINGS_FIELD_NUMBER: _ClassVar[int]
    MAX_CANDIDATES_FIELD_NUMBER: _ClassVar[int]
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    MAX_WAITING_IMAGES_FIELD_NUMBER: _ClassVar[int]
    MAX_IMAGES_FIELD_NUMBER: _ClassVar[int]
    MAX_IMAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    MAX_IMAGE_PIXELS_FIELD_NUMBER: _ClassVar[int]
    MAX_REQUEST_PIXELS_FIELD_NUMBER: _ClassVar[int]
    max_waiting_sequences: int
    max_running_sequences: int
    max_step_tokens: int
    kv_cache_bytes: int
    adapter_bytes: int
    max_upload_bytes: int
    max_n: int
    max_logprobs: int
    max_stop_strings: int
    max_candidates: int
    max_message_bytes: int
    max_page_size: int
    max_waiting_images: int
    max_images: int
    max_image_bytes: int
    max_image_pixels: int
    max_request_pixels: int
    def __init__(self, max_waiting_sequences: _Optional[int] = ..., max_running_sequences: _Optional[int] = ..., max_step_tokens: _Optional[int] = ..., kv_cache_bytes: _Optional[int] = ..., adapter_bytes: _Optional[int] = ..., max_upload_bytes: _Optional[int] = ..., max_n: _Optional[int] = ..., max_logprobs: _Optional[int] = ..., max_stop_strings: _Optional[int] = ..., max_candidates: _Optional[int] = ..., max_message_bytes: _Optional[int] = ..., max_page_size: _Optional[int] = ..., max_waiting_images: _Optional[int] = ..., max_images: _Optional[int] = ..., max_image_bytes: _Optional[int] = ..., max_image_pixels: _Optional[int] = ..., max_request_pixels: _Optional[int] = ...) -> None: ...
