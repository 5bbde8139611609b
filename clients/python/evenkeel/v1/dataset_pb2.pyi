from google.protobuf import empty_pb2 as _empty_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class DatasetFormat(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DATASET_FORMAT_UNSPECIFIED: _ClassVar[DatasetFormat]
    DATASET_FORMAT_JSONL: _ClassVar[DatasetFormat]
    DATASET_FORMAT_CSV: _ClassVar[DatasetFormat]
    DATASET_FORMAT_PARQUET: _ClassVar[DatasetFormat]

class DatasetSplit(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DATASET_SPLIT_UNSPECIFIED: _ClassVar[DatasetSplit]
    DATASET_SPLIT_TRAIN: _ClassVar[DatasetSplit]
    DATASET_SPLIT_VALIDATION: _ClassVar[DatasetSplit]
    DATASET_SPLIT_TEST: _ClassVar[DatasetSplit]

class DatasetWarningKind(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    DATASET_WARNING_KIND_UNSPECIFIED: _ClassVar[DatasetWarningKind]
    DATASET_WARNING_KIND_DUPLICATE_ROWS: _ClassVar[DatasetWarningKind]
    DATASET_WARNING_KIND_SPLIT_OVERLAP: _ClassVar[DatasetWarningKind]
    DATASET_WARNING_KIND_SINGLE_LABEL: _ClassVar[DatasetWarningKind]
    DATASET_WARNING_KIND_MISSING_GROUP_VALUES: _ClassVar[DatasetWarningKind]
DATASET_FORMAT_UNSPECIFIED: DatasetFormat
DATASET_FORMAT_JSONL: DatasetFormat
DATASET_FORMAT_CSV: DatasetFormat
DATASET_FORMAT_PARQUET: DatasetFormat
DATASET_SPLIT_UNSPECIFIED: DatasetSplit
DATASET_SPLIT_TRAIN: DatasetSplit
DATASET_SPLIT_VALIDATION: DatasetSplit
DATASET_SPLIT_TEST: DatasetSplit
DATASET_WARNING_KIND_UNSPECIFIED: DatasetWarningKind
DATASET_WARNING_KIND_DUPLICATE_ROWS: DatasetWarningKind
DATASET_WARNING_KIND_SPLIT_OVERLAP: DatasetWarningKind
DATASET_WARNING_KIND_SINGLE_LABEL: DatasetWarningKind
DATASET_WARNING_KIND_MISSING_GROUP_VALUES: DatasetWarningKind

class SeededSplit(_message.Message):
    __slots__ = ("validation", "test", "seed", "grouping_column")
    VALIDATION_FIELD_NUMBER: _ClassVar[int]
    TEST_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    GROUPING_COLUMN_FIELD_NUMBER: _ClassVar[int]
    validation: float
    test: float
    seed: int
    grouping_column: str
    def __init__(self, validation: _Optional[float] = ..., test: _Optional[float] = ..., seed: _Optional[int] = ..., grouping_column: _Optional[str] = ...) -> None: ...

class DatasetDeclaration(_message.Message):
    __slots__ = ("format", "text_column", "prompt_column", "completion_column", "messages_column", "label_column", "multi_label", "label_names", "label_separator", "group_columns", "split_column", "seeded_split", "csv_delimiter", "image_column")
    FORMAT_FIELD_NUMBER: _ClassVar[int]
    TEXT_COLUMN_FIELD_NUMBER: _ClassVar[int]
    PROMPT_COLUMN_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_COLUMN_FIELD_NUMBER: _ClassVar[int]
    MESSAGES_COLUMN_FIELD_NUMBER: _ClassVar[int]
    LABEL_COLUMN_FIELD_NUMBER: _ClassVar[int]
    MULTI_LABEL_FIELD_NUMBER: _ClassVar[int]
    LABEL_NAMES_FIELD_NUMBER: _ClassVar[int]
    LABEL_SEPARATOR_FIELD_NUMBER: _ClassVar[int]
    GROUP_COLUMNS_FIELD_NUMBER: _ClassVar[int]
    SPLIT_COLUMN_FIELD_NUMBER: _ClassVar[int]
    SEEDED_SPLIT_FIELD_NUMBER: _ClassVar[int]
    CSV_DELIMITER_FIELD_NUMBER: _ClassVar[int]
    IMAGE_COLUMN_FIELD_NUMBER: _ClassVar[int]
    format: DatasetFormat
    text_column: str
    prompt_column: str
    completion_column: str
    messages_column: str
    label_column: str
    multi_label: bool
    label_names: _containers.RepeatedScalarFieldContainer[str]
    label_separator: str
    group_columns: _containers.RepeatedScalarFieldContainer[str]
    split_column: str
    seeded_split: SeededSplit
    csv_delimiter: str
    image_column: str
    def __init__(self, format: _Optional[_Union[DatasetFormat, str]] = ..., text_column: _Optional[str] = ..., prompt_column: _Optional[str] = ..., completion_column: _Optional[str] = ..., messages_column: _Optional[str] = ..., label_column: _Optional[str] = ..., multi_label: bool = ..., label_names: _Optional[_Iterable[str]] = ..., label_separator: _Optional[str] = ..., group_columns: _Optional[_Iterable[str]] = ..., split_column: _Optional[str] = ..., seeded_split: _Optional[_Union[SeededSplit, _Mapping]] = ..., csv_delimiter: _Optional[str] = ..., image_column: _Optional[str] = ...) -> None: ...

class DatasetPart(_message.Message):
    __slots__ = ("split", "rows", "sha256")
    SPLIT_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    split: DatasetSplit
    rows: int
    sha256: str
    def __init__(self, split: _Optional[_Union[DatasetSplit, str]] = ..., rows: _Optional[int] = ..., sha256: _Optional[str] = ...) -> None: ...

class ValueCount(_message.Message):
    __slots__ = ("value", "rows")
    VALUE_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    value: str
    rows: int
    def __init__(self, value: _Optional[str] = ..., rows: _Optional[int] = ...) -> None: ...

class GroupColumn(_message.Message):
    __slots__ = ("name", "values", "other_values", "other_rows", "missing_rows")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    OTHER_VALUES_FIELD_NUMBER: _ClassVar[int]
    OTHER_ROWS_FIELD_NUMBER: _ClassVar[int]
    MISSING_ROWS_FIELD_NUMBER: _ClassVar[int]
    name: str
    values: _containers.RepeatedCompositeFieldContainer[ValueCount]
    other_values: int
    other_rows: int
    missing_rows: int
    def __init__(self, name: _Optional[str] = ..., values: _Optional[_Iterable[_Union[ValueCount, _Mapping]]] = ..., other_values: _Optional[int] = ..., other_rows: _Optional[int] = ..., missing_rows: _Optional[int] = ...) -> None: ...

class DatasetWarning(_message.Message):
    __slots__ = ("kind", "rows", "column", "message")
    KIND_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    COLUMN_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    kind: DatasetWarningKind
    rows: int
    column: str
    message: str
    def __init__(self, kind: _Optional[_Union[DatasetWarningKind, str]] = ..., rows: _Optional[int] = ..., column: _Optional[str] = ..., message: _Optional[str] = ...) -> None: ...

class Dataset(_message.Message):
    __slots__ = ("name", "id", "declaration", "rows", "parts", "labels", "group_columns", "warnings", "bytes", "create_time")
    NAME_FIELD_NUMBER: _ClassVar[int]
    ID_FIELD_NUMBER: _ClassVar[int]
    DECLARATION_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    PARTS_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    GROUP_COLUMNS_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    BYTES_FIELD_NUMBER: _ClassVar[int]
    CREATE_TIME_FIELD_NUMBER: _ClassVar[int]
    name: str
    id: str
    declaration: DatasetDeclaration
    rows: int
    parts: _containers.RepeatedCompositeFieldContainer[DatasetPart]
    labels: _containers.RepeatedCompositeFieldContainer[ValueCount]
    group_columns: _containers.RepeatedCompositeFieldContainer[GroupColumn]
    warnings: _containers.RepeatedCompositeFieldContainer[DatasetWarning]
    bytes: int
    create_time: _timestamp_pb2.Timestamp
    def __init__(self, name: _Optional[str] = ..., id: _Optional[str] = ..., declaration: _Optional[_Union[DatasetDeclaration, _Mapping]] = ..., rows: _Optional[int] = ..., parts: _Optional[_Iterable[_Union[DatasetPart, _Mapping]]] = ..., labels: _Optional[_Iterable[_Union[ValueCount, _Mapping]]] = ..., group_columns: _Optional[_Iterable[_Union[GroupColumn, _Mapping]]] = ..., warnings: _Optional[_Iterable[_Union[DatasetWarning, _Mapping]]] = ..., bytes: _Optional[int] = ..., create_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class UploadDatasetRequest(_message.Message):
    __slots__ = ("header", "chunk", "row")
    HEADER_FIELD_NUMBER: _ClassVar[int]
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    ROW_FIELD_NUMBER: _ClassVar[int]
    header: UploadDatasetHeader
    chunk: DatasetChunk
    row: ImageRow
    def __init__(self, header: _Optional[_Union[UploadDatasetHeader, _Mapping]] = ..., chunk: _Optional[_Union[DatasetChunk, _Mapping]] = ..., row: _Optional[_Union[ImageRow, _Mapping]] = ...) -> None: ...

class UploadDatasetHeader(_message.Message):
    __slots__ = ("name", "request_id", "expected_id", "size", "sha256", "declaration")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_ID_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    DECLARATION_FIELD_NUMBER: _ClassVar[int]
    name: str
    request_id: str
    expected_id: str
    size: int
    sha256: str
    declaration: DatasetDeclaration
    def __init__(self, name: _Optional[str] = ..., request_id: _Optional[str] = ..., expected_id: _Optional[str] = ..., size: _Optional[int] = ..., sha256: _Optional[str] = ..., declaration: _Optional[_Union[DatasetDeclaration, _Mapping]] = ...) -> None: ...

class DatasetChunk(_message.Message):
    __slots__ = ("offset", "data")
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    offset: int
    data: bytes
    def __init__(self, offset: _Optional[int] = ..., data: _Optional[bytes] = ...) -> None: ...

class ImageRow(_message.Message):
    __slots__ = ("image", "labels", "split", "values")
    class ValuesEntry(_message.Message):
        __slots__ = ("key", "value")
        KEY_FIELD_NUMBER: _ClassVar[int]
        VALUE_FIELD_NUMBER: _ClassVar[int]
        key: str
        value: str
        def __init__(self, key: _Optional[str] = ..., value: _Optional[str] = ...) -> None: ...
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    LABELS_FIELD_NUMBER: _ClassVar[int]
    SPLIT_FIELD_NUMBER: _ClassVar[int]
    VALUES_FIELD_NUMBER: _ClassVar[int]
    image: bytes
    labels: _containers.RepeatedScalarFieldContainer[str]
    split: DatasetSplit
    values: _containers.ScalarMap[str, str]
    def __init__(self, image: _Optional[bytes] = ..., labels: _Optional[_Iterable[str]] = ..., split: _Optional[_Union[DatasetSplit, str]] = ..., values: _Optional[_Mapping[str, str]] = ...) -> None: ...

class LoadDatasetRequest(_message.Message):
    __slots__ = ("name", "request_id", "expected_id", "directory", "listing", "declaration")
    NAME_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_ID_FIELD_NUMBER: _ClassVar[int]
    DIRECTORY_FIELD_NUMBER: _ClassVar[int]
    LISTING_FIELD_NUMBER: _ClassVar[int]
    DECLARATION_FIELD_NUMBER: _ClassVar[int]
    name: str
    request_id: str
    expected_id: str
    directory: str
    listing: str
    declaration: DatasetDeclaration
    def __init__(self, name: _Optional[str] = ..., request_id: _Optional[str] = ..., expected_id: _Optional[str] = ..., directory: _Optional[str] = ..., listing: _Optional[str] = ..., declaration: _Optional[_Union[DatasetDeclaration, _Mapping]] = ...) -> None: ...

class GetDatasetRequest(_message.Message):
    __slots__ = ("name",)
    NAME_FIELD_NUMBER: _ClassVar[int]
    name: str
    def __init__(self, name: _Optional[str] = ...) -> None: ...

class ListDatasetsRequest(_message.Message):
    __slots__ = ("page_size", "page_token")
    PAGE_SIZE_FIELD_NUMBER: _ClassVar[int]
    PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    page_size: int
    page_token: str
    def __init__(self, page_size: _Optional[int] = ..., page_token: _Optional[str] = ...) -> None: ...

class ListDatasetsResponse(_message.Message):
    __slots__ = ("datasets", "next_page_token")
    DATASETS_FIELD_NUMBER: _ClassVar[int]
    NEXT_PAGE_TOKEN_FIELD_NUMBER: _ClassVar[int]
    datasets: _containers.RepeatedCompositeFieldContainer[Dataset]
    next_page_token: str
    def __init__(self, datasets: _Optional[_Iterable[_Union[Dataset, _Mapping]]] = ..., next_page_token: _Optional[str] = ...) -> None: ...

class DeleteDatasetRequest(_message.Message):
    __slots__ = ("name", "expected_id", "request_id")
    NAME_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_ID_FIELD_NUMBER: _ClassVar[int]
    REQUEST_ID_FIELD_NUMBER: _ClassVar[int]
    name: str
    expected_id: str
    request_id: str
    def __init__(self, name: _Optional[str] = ..., expected_id: _Optional[str] = ..., request_id: _Optional[str] = ...) -> None: ...
