from evenkeel.v1 import dataset_pb2 as _dataset_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class TrainingTask(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TRAINING_TASK_UNSPECIFIED: _ClassVar[TrainingTask]
    TRAINING_TASK_CAUSAL_LM: _ClassVar[TrainingTask]
    TRAINING_TASK_SEQUENCE_CLASSIFICATION: _ClassVar[TrainingTask]
    TRAINING_TASK_IMAGE_CLASSIFICATION: _ClassVar[TrainingTask]

class AlphaPolicy(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    ALPHA_POLICY_UNSPECIFIED: _ClassVar[AlphaPolicy]
    ALPHA_POLICY_TWICE_RANK: _ClassVar[AlphaPolicy]
    ALPHA_POLICY_RANK: _ClassVar[AlphaPolicy]

class TrainingSchedule(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TRAINING_SCHEDULE_UNSPECIFIED: _ClassVar[TrainingSchedule]
    TRAINING_SCHEDULE_CONSTANT: _ClassVar[TrainingSchedule]
    TRAINING_SCHEDULE_LINEAR: _ClassVar[TrainingSchedule]
    TRAINING_SCHEDULE_COSINE: _ClassVar[TrainingSchedule]

class LossAverage(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    LOSS_AVERAGE_UNSPECIFIED: _ClassVar[LossAverage]
    LOSS_AVERAGE_TOKENS: _ClassVar[LossAverage]
    LOSS_AVERAGE_MICRO_BATCHES: _ClassVar[LossAverage]
TRAINING_TASK_UNSPECIFIED: TrainingTask
TRAINING_TASK_CAUSAL_LM: TrainingTask
TRAINING_TASK_SEQUENCE_CLASSIFICATION: TrainingTask
TRAINING_TASK_IMAGE_CLASSIFICATION: TrainingTask
ALPHA_POLICY_UNSPECIFIED: AlphaPolicy
ALPHA_POLICY_TWICE_RANK: AlphaPolicy
ALPHA_POLICY_RANK: AlphaPolicy
TRAINING_SCHEDULE_UNSPECIFIED: TrainingSchedule
TRAINING_SCHEDULE_CONSTANT: TrainingSchedule
TRAINING_SCHEDULE_LINEAR: TrainingSchedule
TRAINING_SCHEDULE_COSINE: TrainingSchedule
LOSS_AVERAGE_UNSPECIFIED: LossAverage
LOSS_AVERAGE_TOKENS: LossAverage
LOSS_AVERAGE_MICRO_BATCHES: LossAverage

class TrainingSettings(_message.Message):
    __slots__ = ("task", "lora", "full", "head_only", "epochs", "steps", "batch_size", "accumulation", "max_tokens", "packing", "train_on_prompt", "learning_rate", "schedule", "warmup_steps", "weight_decay", "beta1", "beta2", "epsilon", "max_grad_norm", "average", "recompute", "eval_every", "patience", "keep_best", "seed", "groups", "subset", "random_flip", "publish_steps")
    TASK_FIELD_NUMBER: _ClassVar[int]
    LORA_FIELD_NUMBER: _ClassVar[int]
    FULL_FIELD_NUMBER: _ClassVar[int]
    HEAD_ONLY_FIELD_NUMBER: _ClassVar[int]
    EPOCHS_FIELD_NUMBER: _ClassVar[int]
    STEPS_FIELD_NUMBER: _ClassVar[int]
    BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    ACCUMULATION_FIELD_NUMBER: _ClassVar[int]
    MAX_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PACKING_FIELD_NUMBER: _ClassVar[int]
    TRAIN_ON_PROMPT_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    SCHEDULE_FIELD_NUMBER: _ClassVar[int]
    WARMUP_STEPS_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_DECAY_FIELD_NUMBER: _ClassVar[int]
    BETA1_FIELD_NUMBER: _ClassVar[int]
    BETA2_FIELD_NUMBER: _ClassVar[int]
    EPSILON_FIELD_NUMBER: _ClassVar[int]
    MAX_GRAD_NORM_FIELD_NUMBER: _ClassVar[int]
    AVERAGE_FIELD_NUMBER: _ClassVar[int]
    RECOMPUTE_FIELD_NUMBER: _ClassVar[int]
    EVAL_EVERY_FIELD_NUMBER: _ClassVar[int]
    PATIENCE_FIELD_NUMBER: _ClassVar[int]
    KEEP_BEST_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    SUBSET_FIELD_NUMBER: _ClassVar[int]
    RANDOM_FLIP_FIELD_NUMBER: _ClassVar[int]
    PUBLISH_STEPS_FIELD_NUMBER: _ClassVar[int]
    task: TrainingTask
    lora: LoraMethod
    full: FullMethod
    head_only: HeadOnlyMethod
    epochs: float
    steps: int
    batch_size: int
    accumulation: int
    max_tokens: int
    packing: bool
    train_on_prompt: bool
    learning_rate: float
    schedule: TrainingSchedule
    warmup_steps: int
    weight_decay: float
    beta1: float
    beta2: float
    epsilon: float
    max_grad_norm: float
    average: LossAverage
    recompute: bool
    eval_every: int
    patience: int
    keep_best: bool
    seed: int
    groups: _containers.RepeatedScalarFieldContainer[str]
    subset: TrainingSubset
    random_flip: bool
    publish_steps: _containers.RepeatedScalarFieldContainer[int]
    def __init__(self, task: _Optional[_Union[TrainingTask, str]] = ..., lora: _Optional[_Union[LoraMethod, _Mapping]] = ..., full: _Optional[_Union[FullMethod, _Mapping]] = ..., head_only: _Optional[_Union[HeadOnlyMethod, _Mapping]] = ..., epochs: _Optional[float] = ..., steps: _Optional[int] = ..., batch_size: _Optional[int] = ..., accumulation: _Optional[int] = ..., max_tokens: _Optional[int] = ..., packing: bool = ..., train_on_prompt: bool = ..., learning_rate: _Optional[float] = ..., schedule: _Optional[_Union[TrainingSchedule, str]] = ..., warmup_steps: _Optional[int] = ..., weight_decay: _Optional[float] = ..., beta1: _Optional[float] = ..., beta2: _Optional[float] = ..., epsilon: _Optional[float] = ..., max_grad_norm: _Optional[float] = ..., average: _Optional[_Union[LossAverage, str]] = ..., recompute: bool = ..., eval_every: _Optional[int] = ..., patience: _Optional[int] = ..., keep_best: bool = ..., seed: _Optional[int] = ..., groups: _Optional[_Iterable[str]] = ..., subset: _Optional[_Union[TrainingSubset, _Mapping]] = ..., random_flip: bool = ..., publish_steps: _Optional[_Iterable[int]] = ...) -> None: ...

class LoraMethod(_message.Message):
    __slots__ = ("rank", "alpha", "alpha_policy", "rslora", "dora", "dropout", "target_modules", "layers", "modules_to_save")
    RANK_FIELD_NUMBER: _ClassVar[int]
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    ALPHA_POLICY_FIELD_NUMBER: _ClassVar[int]
    RSLORA_FIELD_NUMBER: _ClassVar[int]
    DORA_FIELD_NUMBER: _ClassVar[int]
    DROPOUT_FIELD_NUMBER: _ClassVar[int]
    TARGET_MODULES_FIELD_NUMBER: _ClassVar[int]
    LAYERS_FIELD_NUMBER: _ClassVar[int]
    MODULES_TO_SAVE_FIELD_NUMBER: _ClassVar[int]
    rank: int
    alpha: float
    alpha_policy: AlphaPolicy
    rslora: bool
    dora: bool
    dropout: float
    target_modules: _containers.RepeatedScalarFieldContainer[str]
    layers: _containers.RepeatedScalarFieldContainer[int]
    modules_to_save: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, rank: _Optional[int] = ..., alpha: _Optional[float] = ..., alpha_policy: _Optional[_Union[AlphaPolicy, str]] = ..., rslora: bool = ..., dora: bool = ..., dropout: _Optional[float] = ..., target_modules: _Optional[_Iterable[str]] = ..., layers: _Optional[_Iterable[int]] = ..., modules_to_save: _Optional[_Iterable[str]] = ...) -> None: ...

class FullMethod(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class HeadOnlyMethod(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class TrainingSubset(_message.Message):
    __slots__ = ("splits", "fraction", "seed")
    SPLITS_FIELD_NUMBER: _ClassVar[int]
    FRACTION_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    splits: _containers.RepeatedScalarFieldContainer[_dataset_pb2.DatasetSplit]
    fraction: float
    seed: int
    def __init__(self, splits: _Optional[_Iterable[_Union[_dataset_pb2.DatasetSplit, str]]] = ..., fraction: _Optional[float] = ..., seed: _Optional[int] = ...) -> None: ...

class TrainingProgress(_message.Message):
    __slots__ = ("step", "total_steps", "epoch", "loss", "learning_rate", "grad_norm", "tokens", "tokens_per_second", "eta_seconds", "groups", "evaluation", "truncated_rows")
    STEP_FIELD_NUMBER: _ClassVar[int]
    TOTAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    GRAD_NORM_FIELD_NUMBER: _ClassVar[int]
    TOKENS_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    ETA_SECONDS_FIELD_NUMBER: _ClassVar[int]
    GROUPS_FIELD_NUMBER: _ClassVar[int]
    EVALUATION_FIELD_NUMBER: _ClassVar[int]
    TRUNCATED_ROWS_FIELD_NUMBER: _ClassVar[int]
    step: int
    total_steps: int
    epoch: float
    loss: float
    learning_rate: float
    grad_norm: float
    tokens: int
    tokens_per_second: float
    eta_seconds: float
    groups: _containers.RepeatedCompositeFieldContainer[GroupFigure]
    evaluation: Evaluation
    truncated_rows: int
    def __init__(self, step: _Optional[int] = ..., total_steps: _Optional[int] = ..., epoch: _Optional[float] = ..., loss: _Optional[float] = ..., learning_rate: _Optional[float] = ..., grad_norm: _Optional[float] = ..., tokens: _Optional[int] = ..., tokens_per_second: _Optional[float] = ..., eta_seconds: _Optional[float] = ..., groups: _Optional[_Iterable[_Union[GroupFigure, _Mapping]]] = ..., evaluation: _Optional[_Union[Evaluation, _Mapping]] = ..., truncated_rows: _Optional[int] = ...) -> None: ...

class Evaluation(_message.Message):
    __slots__ = ("figures", "best")
    FIGURES_FIELD_NUMBER: _ClassVar[int]
    BEST_FIELD_NUMBER: _ClassVar[int]
    figures: _containers.RepeatedCompositeFieldContainer[GroupFigure]
    best: bool
    def __init__(self, figures: _Optional[_Iterable[_Union[GroupFigure, _Mapping]]] = ..., best: bool = ...) -> None: ...

class GroupFigure(_message.Message):
    __slots__ = ("column", "value", "rows", "loss", "accuracy")
    COLUMN_FIELD_NUMBER: _ClassVar[int]
    VALUE_FIELD_NUMBER: _ClassVar[int]
    ROWS_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    ACCURACY_FIELD_NUMBER: _ClassVar[int]
    column: str
    value: str
    rows: int
    loss: float
    accuracy: float
    def __init__(self, column: _Optional[str] = ..., value: _Optional[str] = ..., rows: _Optional[int] = ..., loss: _Optional[float] = ..., accuracy: _Optional[float] = ...) -> None: ...
