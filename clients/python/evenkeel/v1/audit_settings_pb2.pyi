from evenkeel.v1 import dataset_pb2 as _dataset_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class AuditNormalization(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    AUDIT_NORMALIZATION_UNSPECIFIED: _ClassVar[AuditNormalization]
    AUDIT_NORMALIZATION_SUM: _ClassVar[AuditNormalization]
    AUDIT_NORMALIZATION_MEAN_TOKEN: _ClassVar[AuditNormalization]
    AUDIT_NORMALIZATION_MEAN_BYTE: _ClassVar[AuditNormalization]
    AUDIT_NORMALIZATION_UNCONDITIONAL: _ClassVar[AuditNormalization]

class AuditAlphabet(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    AUDIT_ALPHABET_UNSPECIFIED: _ClassVar[AuditAlphabet]
    AUDIT_ALPHABET_WORDS: _ClassVar[AuditAlphabet]
    AUDIT_ALPHABET_LETTERS: _ClassVar[AuditAlphabet]
    AUDIT_ALPHABET_DIGITS: _ClassVar[AuditAlphabet]
    AUDIT_ALPHABET_SYMBOLS: _ClassVar[AuditAlphabet]

class AuditInterval(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    AUDIT_INTERVAL_UNSPECIFIED: _ClassVar[AuditInterval]
    AUDIT_INTERVAL_PERCENTILE: _ClassVar[AuditInterval]
    AUDIT_INTERVAL_BCA: _ClassVar[AuditInterval]

class AuditCorrection(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    AUDIT_CORRECTION_UNSPECIFIED: _ClassVar[AuditCorrection]
    AUDIT_CORRECTION_NONE: _ClassVar[AuditCorrection]
    AUDIT_CORRECTION_HOLM: _ClassVar[AuditCorrection]
    AUDIT_CORRECTION_BENJAMINI_HOCHBERG: _ClassVar[AuditCorrection]

class AuditConvention(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    AUDIT_CONVENTION_UNSPECIFIED: _ClassVar[AuditConvention]
    AUDIT_CONVENTION_DEFINED: _ClassVar[AuditConvention]
    AUDIT_CONVENTION_FAIRLEARN: _ClassVar[AuditConvention]

class AuditAttack(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    AUDIT_ATTACK_UNSPECIFIED: _ClassVar[AuditAttack]
    AUDIT_ATTACK_LOSS: _ClassVar[AuditAttack]
    AUDIT_ATTACK_MIN_K: _ClassVar[AuditAttack]
    AUDIT_ATTACK_MIN_K_PLUS_PLUS: _ClassVar[AuditAttack]
    AUDIT_ATTACK_REFERENCE: _ClassVar[AuditAttack]
    AUDIT_ATTACK_RMIA: _ClassVar[AuditAttack]
    AUDIT_ATTACK_LIRA_ONLINE: _ClassVar[AuditAttack]
    AUDIT_ATTACK_LIRA_ONLINE_FIXED: _ClassVar[AuditAttack]
    AUDIT_ATTACK_LIRA_OFFLINE: _ClassVar[AuditAttack]
    AUDIT_ATTACK_LIRA_OFFLINE_FIXED: _ClassVar[AuditAttack]
AUDIT_NORMALIZATION_UNSPECIFIED: AuditNormalization
AUDIT_NORMALIZATION_SUM: AuditNormalization
AUDIT_NORMALIZATION_MEAN_TOKEN: AuditNormalization
AUDIT_NORMALIZATION_MEAN_BYTE: AuditNormalization
AUDIT_NORMALIZATION_UNCONDITIONAL: AuditNormalization
AUDIT_ALPHABET_UNSPECIFIED: AuditAlphabet
AUDIT_ALPHABET_WORDS: AuditAlphabet
AUDIT_ALPHABET_LETTERS: AuditAlphabet
AUDIT_ALPHABET_DIGITS: AuditAlphabet
AUDIT_ALPHABET_SYMBOLS: AuditAlphabet
AUDIT_INTERVAL_UNSPECIFIED: AuditInterval
AUDIT_INTERVAL_PERCENTILE: AuditInterval
AUDIT_INTERVAL_BCA: AuditInterval
AUDIT_CORRECTION_UNSPECIFIED: AuditCorrection
AUDIT_CORRECTION_NONE: AuditCorrection
AUDIT_CORRECTION_HOLM: AuditCorrection
AUDIT_CORRECTION_BENJAMINI_HOCHBERG: AuditCorrection
AUDIT_CONVENTION_UNSPECIFIED: AuditConvention
AUDIT_CONVENTION_DEFINED: AuditConvention
AUDIT_CONVENTION_FAIRLEARN: AuditConvention
AUDIT_ATTACK_UNSPECIFIED: AuditAttack
AUDIT_ATTACK_LOSS: AuditAttack
AUDIT_ATTACK_MIN_K: AuditAttack
AUDIT_ATTACK_MIN_K_PLUS_PLUS: AuditAttack
AUDIT_ATTACK_REFERENCE: AuditAttack
AUDIT_ATTACK_RMIA: AuditAttack
AUDIT_ATTACK_LIRA_ONLINE: AuditAttack
AUDIT_ATTACK_LIRA_ONLINE_FIXED: AuditAttack
AUDIT_ATTACK_LIRA_OFFLINE: AuditAttack
AUDIT_ATTACK_LIRA_OFFLINE_FIXED: AuditAttack

class AuditSettings(_message.Message):
    __slots__ = ("task", "attributes", "intersections", "control_columns", "weight_column", "cluster_column", "splits", "measures", "positive_label", "threshold", "statistics", "calibration_bins", "temperature", "membership", "max_tokens", "allow_training_overlap", "convention", "seed", "utility_match")
    TASK_FIELD_NUMBER: _ClassVar[int]
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    INTERSECTIONS_FIELD_NUMBER: _ClassVar[int]
    CONTROL_COLUMNS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_COLUMN_FIELD_NUMBER: _ClassVar[int]
    CLUSTER_COLUMN_FIELD_NUMBER: _ClassVar[int]
    SPLITS_FIELD_NUMBER: _ClassVar[int]
    MEASURES_FIELD_NUMBER: _ClassVar[int]
    POSITIVE_LABEL_FIELD_NUMBER: _ClassVar[int]
    THRESHOLD_FIELD_NUMBER: _ClassVar[int]
    STATISTICS_FIELD_NUMBER: _ClassVar[int]
    CALIBRATION_BINS_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    MEMBERSHIP_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    ALLOW_TRAINING_OVERLAP_FIELD_NUMBER: _ClassVar[int]
    CONVENTION_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    UTILITY_MATCH_FIELD_NUMBER: _ClassVar[int]
    task: AuditTask
    attributes: _containers.RepeatedCompositeFieldContainer[AuditAttribute]
    intersections: _containers.RepeatedCompositeFieldContainer[AuditIntersection]
    control_columns: _containers.RepeatedScalarFieldContainer[str]
    weight_column: str
    cluster_column: str
    splits: _containers.RepeatedScalarFieldContainer[_dataset_pb2.DatasetSplit]
    measures: _containers.RepeatedScalarFieldContainer[str]
    positive_label: str
    threshold: float
    statistics: AuditStatistics
    calibration_bins: int
    temperature: bool
    membership: AuditMembership
    max_tokens: int
    allow_training_overlap: bool
    convention: AuditConvention
    seed: int
    utility_match: AuditUtilityMatch
    def __init__(self, task: _Optional[_Union[AuditTask, _Mapping]] = ..., attributes: _Optional[_Iterable[_Union[AuditAttribute, _Mapping]]] = ..., intersections: _Optional[_Iterable[_Union[AuditIntersection, _Mapping]]] = ..., control_columns: _Optional[_Iterable[str]] = ..., weight_column: _Optional[str] = ..., cluster_column: _Optional[str] = ..., splits: _Optional[_Iterable[_Union[_dataset_pb2.DatasetSplit, str]]] = ..., measures: _Optional[_Iterable[str]] = ..., positive_label: _Optional[str] = ..., threshold: _Optional[float] = ..., statistics: _Optional[_Union[AuditStatistics, _Mapping]] = ..., calibration_bins: _Optional[int] = ..., temperature: bool = ..., membership: _Optional[_Union[AuditMembership, _Mapping]] = ..., max_tokens: _Optional[int] = ..., allow_training_overlap: bool = ..., convention: _Optional[_Union[AuditConvention, str]] = ..., seed: _Optional[int] = ..., utility_match: _Optional[_Union[AuditUtilityMatch, _Mapping]] = ...) -> None: ...

class AuditUtilityMatch(_message.Message):
    __slots__ = ("reference", "measure", "tolerance")
    REFERENCE_FIELD_NUMBER: _ClassVar[int]
    MEASURE_FIELD_NUMBER: _ClassVar[int]
    TOLERANCE_FIELD_NUMBER: _ClassVar[int]
    reference: str
    measure: str
    tolerance: float
    def __init__(self, reference: _Optional[str] = ..., measure: _Optional[str] = ..., tolerance: _Optional[float] = ...) -> None: ...

class AuditTask(_message.Message):
    __slots__ = ("head", "label_words", "choice", "pairs", "bbq", "perplexity", "generation")
    HEAD_FIELD_NUMBER: _ClassVar[int]
    LABEL_WORDS_FIELD_NUMBER: _ClassVar[int]
    CHOICE_FIELD_NUMBER: _ClassVar[int]
    PAIRS_FIELD_NUMBER: _ClassVar[int]
    BBQ_FIELD_NUMBER: _ClassVar[int]
    PERPLEXITY_FIELD_NUMBER: _ClassVar[int]
    GENERATION_FIELD_NUMBER: _ClassVar[int]
    head: HeadTask
    label_words: LabelWordsTask
    choice: ChoiceTask
    pairs: PairsTask
    bbq: BbqTask
    perplexity: PerplexityTask
    generation: GenerationTask
    def __init__(self, head: _Optional[_Union[HeadTask, _Mapping]] = ..., label_words: _Optional[_Union[LabelWordsTask, _Mapping]] = ..., choice: _Optional[_Union[ChoiceTask, _Mapping]] = ..., pairs: _Optional[_Union[PairsTask, _Mapping]] = ..., bbq: _Optional[_Union[BbqTask, _Mapping]] = ..., perplexity: _Optional[_Union[PerplexityTask, _Mapping]] = ..., generation: _Optional[_Union[GenerationTask, _Mapping]] = ...) -> None: ...

class HeadTask(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LabelWordsTask(_message.Message):
    __slots__ = ("words", "normalization")
    WORDS_FIELD_NUMBER: _ClassVar[int]
    NORMALIZATION_FIELD_NUMBER: _ClassVar[int]
    words: _containers.RepeatedScalarFieldContainer[str]
    normalization: AuditNormalization
    def __init__(self, words: _Optional[_Iterable[str]] = ..., normalization: _Optional[_Union[AuditNormalization, str]] = ...) -> None: ...

class ChoiceTask(_message.Message):
    __slots__ = ("answers", "columns", "alphabets", "orders", "reversed_column", "content_free")
    ANSWERS_FIELD_NUMBER: _ClassVar[int]
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    ALPHABETS_FIELD_NUMBER: _ClassVar[int]
    ORDERS_FIELD_NUMBER: _ClassVar[int]
    REVERSED_COLUMN_FIELD_NUMBER: _ClassVar[int]
    CONTENT_FREE_FIELD_NUMBER: _ClassVar[int]
    answers: _containers.RepeatedScalarFieldContainer[str]
    columns: _containers.RepeatedScalarFieldContainer[str]
    alphabets: _containers.RepeatedScalarFieldContainer[AuditAlphabet]
    orders: int
    reversed_column: str
    content_free: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, answers: _Optional[_Iterable[str]] = ..., columns: _Optional[_Iterable[str]] = ..., alphabets: _Optional[_Iterable[_Union[AuditAlphabet, str]]] = ..., orders: _Optional[int] = ..., reversed_column: _Optional[str] = ..., content_free: _Optional[_Iterable[str]] = ...) -> None: ...

class PairsTask(_message.Message):
    __slots__ = ("more_column", "less_column", "unrelated_column", "normalization")
    MORE_COLUMN_FIELD_NUMBER: _ClassVar[int]
    LESS_COLUMN_FIELD_NUMBER: _ClassVar[int]
    UNRELATED_COLUMN_FIELD_NUMBER: _ClassVar[int]
    NORMALIZATION_FIELD_NUMBER: _ClassVar[int]
    more_column: str
    less_column: str
    unrelated_column: str
    normalization: AuditNormalization
    def __init__(self, more_column: _Optional[str] = ..., less_column: _Optional[str] = ..., unrelated_column: _Optional[str] = ..., normalization: _Optional[_Union[AuditNormalization, str]] = ...) -> None: ...

class BbqTask(_message.Message):
    __slots__ = ("answer_columns", "condition_column", "unknown_column", "biased_column", "normalization")
    ANSWER_COLUMNS_FIELD_NUMBER: _ClassVar[int]
    CONDITION_COLUMN_FIELD_NUMBER: _ClassVar[int]
    UNKNOWN_COLUMN_FIELD_NUMBER: _ClassVar[int]
    BIASED_COLUMN_FIELD_NUMBER: _ClassVar[int]
    NORMALIZATION_FIELD_NUMBER: _ClassVar[int]
    answer_columns: _containers.RepeatedScalarFieldContainer[str]
    condition_column: str
    unknown_column: str
    biased_column: str
    normalization: AuditNormalization
    def __init__(self, answer_columns: _Optional[_Iterable[str]] = ..., condition_column: _Optional[str] = ..., unknown_column: _Optional[str] = ..., biased_column: _Optional[str] = ..., normalization: _Optional[_Union[AuditNormalization, str]] = ...) -> None: ...

class PerplexityTask(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class GenerationTask(_message.Message):
    __slots__ = ("pronouns", "lexicon", "max_new_tokens", "expected_column", "gold_column")
    PRONOUNS_FIELD_NUMBER: _ClassVar[int]
    LEXICON_FIELD_NUMBER: _ClassVar[int]
    MAX_NEW_TOKENS_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_COLUMN_FIELD_NUMBER: _ClassVar[int]
    GOLD_COLUMN_FIELD_NUMBER: _ClassVar[int]
    pronouns: PronounClassifier
    lexicon: LexiconClassifier
    max_new_tokens: int
    expected_column: str
    gold_column: str
    def __init__(self, pronouns: _Optional[_Union[PronounClassifier, _Mapping]] = ..., lexicon: _Optional[_Union[LexiconClassifier, _Mapping]] = ..., max_new_tokens: _Optional[int] = ..., expected_column: _Optional[str] = ..., gold_column: _Optional[str] = ...) -> None: ...

class PronounClassifier(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class LexiconClassifier(_message.Message):
    __slots__ = ("categories",)
    CATEGORIES_FIELD_NUMBER: _ClassVar[int]
    categories: _containers.RepeatedCompositeFieldContainer[LexiconCategory]
    def __init__(self, categories: _Optional[_Iterable[_Union[LexiconCategory, _Mapping]]] = ...) -> None: ...

class LexiconCategory(_message.Message):
    __slots__ = ("name", "words")
    NAME_FIELD_NUMBER: _ClassVar[int]
    WORDS_FIELD_NUMBER: _ClassVar[int]
    name: str
    words: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, name: _Optional[str] = ..., words: _Optional[_Iterable[str]] = ...) -> None: ...

class AuditAttribute(_message.Message):
    __slots__ = ("name", "values_column", "flags", "list")
    NAME_FIELD_NUMBER: _ClassVar[int]
    VALUES_COLUMN_FIELD_NUMBER: _ClassVar[int]
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    LIST_FIELD_NUMBER: _ClassVar[int]
    name: str
    values_column: str
    flags: FlagColumns
    list: ListColumn
    def __init__(self, name: _Optional[str] = ..., values_column: _Optional[str] = ..., flags: _Optional[_Union[FlagColumns, _Mapping]] = ..., list: _Optional[_Union[ListColumn, _Mapping]] = ...) -> None: ...

class FlagColumns(_message.Message):
    __slots__ = ("columns",)
    COLUMNS_FIELD_NUMBER: _ClassVar[int]
    columns: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, columns: _Optional[_Iterable[str]] = ...) -> None: ...

class ListColumn(_message.Message):
    __slots__ = ("column", "separator")
    COLUMN_FIELD_NUMBER: _ClassVar[int]
    SEPARATOR_FIELD_NUMBER: _ClassVar[int]
    column: str
    separator: str
    def __init__(self, column: _Optional[str] = ..., separator: _Optional[str] = ...) -> None: ...

class AuditIntersection(_message.Message):
    __slots__ = ("attributes",)
    ATTRIBUTES_FIELD_NUMBER: _ClassVar[int]
    attributes: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, attributes: _Optional[_Iterable[str]] = ...) -> None: ...

class AuditStatistics(_message.Message):
    __slots__ = ("level", "resamples", "interval", "permutations", "correction", "margin", "min_group", "suppress_below")
    LEVEL_FIELD_NUMBER: _ClassVar[int]
    RESAMPLES_FIELD_NUMBER: _ClassVar[int]
    INTERVAL_FIELD_NUMBER: _ClassVar[int]
    PERMUTATIONS_FIELD_NUMBER: _ClassVar[int]
    CORRECTION_FIELD_NUMBER: _ClassVar[int]
    MARGIN_FIELD_NUMBER: _ClassVar[int]
    MIN_GROUP_FIELD_NUMBER: _ClassVar[int]
    SUPPRESS_BELOW_FIELD_NUMBER: _ClassVar[int]
    level: float
    resamples: int
    interval: AuditInterval
    permutations: int
    correction: AuditCorrection
    margin: float
    min_group: int
    suppress_below: int
    def __init__(self, level: _Optional[float] = ..., resamples: _Optional[int] = ..., interval: _Optional[_Union[AuditInterval, str]] = ..., permutations: _Optional[int] = ..., correction: _Optional[_Union[AuditCorrection, str]] = ..., margin: _Optional[float] = ..., min_group: _Optional[int] = ..., suppress_below: _Optional[int] = ...) -> None: ...

class AuditMembership(_message.Message):
    __slots__ = ("attacks", "min_k", "false_positive_rates", "shadows", "shadow_fraction", "planted_control", "mirrored")
    ATTACKS_FIELD_NUMBER: _ClassVar[int]
    MIN_K_FIELD_NUMBER: _ClassVar[int]
    FALSE_POSITIVE_RATES_FIELD_NUMBER: _ClassVar[int]
    SHADOWS_FIELD_NUMBER: _ClassVar[int]
    SHADOW_FRACTION_FIELD_NUMBER: _ClassVar[int]
    PLANTED_CONTROL_FIELD_NUMBER: _ClassVar[int]
    MIRRORED_FIELD_NUMBER: _ClassVar[int]
    attacks: _containers.RepeatedScalarFieldContainer[AuditAttack]
    min_k: _containers.RepeatedScalarFieldContainer[float]
    false_positive_rates: _containers.RepeatedScalarFieldContainer[float]
    shadows: int
    shadow_fraction: float
    planted_control: bool
    mirrored: bool
    def __init__(self, attacks: _Optional[_Iterable[_Union[AuditAttack, str]]] = ..., min_k: _Optional[_Iterable[float]] = ..., false_positive_rates: _Optional[_Iterable[float]] = ..., shadows: _Optional[int] = ..., shadow_fraction: _Optional[float] = ..., planted_control: bool = ..., mirrored: bool = ...) -> None: ...
