# pyright: strict
"""What each parameter may be: keys, types and ranges, and which values can't stand together."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Annotated, Any, Literal, NotRequired, TypedDict, get_origin, get_type_hints

from pydantic import AfterValidator, BeforeValidator, Field

from account_tax.confidential import holds_secret

from .kinds import Help, Section, Words, is_flag
from .library_fields import class_fields


def _whole_or_fraction(value: float) -> float:
    if value < 1:
        return value
    if value != int(value):
        raise ValueError("neither whole nor a fraction")
    return int(value)


def reserved_by_mlflow(alias: str) -> bool:
    """Return whether MLflow keeps an alias for itself: latest, and v with a number."""
    return bool(re.fullmatch(r"latest|v\d+", alias, re.IGNORECASE))


def _alias(value: str) -> str:
    if reserved_by_mlflow(value) or not re.fullmatch(r"[\w-]+", value):
        raise ValueError("reserved by MLflow")
    return value


def _encoding(value: str) -> str:
    try:
        "".encode(value)  # refuses names of codecs that make no bytes of text, such as hex
    except LookupError as err:
        raise ValueError("no encoding of text") from err
    return value


def _registered_name(value: str) -> str:
    fits = value.isprintable() and len(value.strip()) > 0 and len(value) <= LONGEST_NAME
    if not fits or re.search(r"""[/:@#?%"'`\\]""", value):
        raise ValueError("not a registered model's name")
    return value


def _source(value: str) -> str:
    if holds_secret(value):
        raise ValueError("says who asks for it")
    return value


def _sizes(value: list[int]) -> list[int]:
    if len(value) != 2 or value[0] > value[1]:
        raise ValueError("not a shortest and a longest size")
    return value


def _metric_name(value: str) -> str:
    if value.removeprefix("eval_") not in METRICS:
        raise ValueError("not a metric of the evaluation")
    return value


LONGEST_NAME = 256  # of a registered model in MLflow's database
MOST_TRIALS = 5000  # that one search of MLflow returns
METRICS = ("loss", "accuracy", "f1", "precision", "recall")
Count = Annotated[int, Field(ge=1), Words("a whole number of at least 1")]
Natural = Annotated[int, Field(ge=0), Words("a whole number of at least 0")]
Seed = Annotated[int, Field(ge=0, lt=2**32), Words("a whole number from 0 to 4294967295")]
Positive = Annotated[float, Field(gt=0), Words("a number above 0")]
NonNegative = Annotated[float, Field(ge=0), Words("a number of at least 0")]
Share = Annotated[float, Field(ge=0, lt=1), Words("a number of at least 0 and below 1")]
Part = Annotated[float, Field(gt=0, lt=1), Words("a number between 0 and 1, neither of them")]
UpToOne = Annotated[float, Field(ge=0, le=1), Words("a number from 0 to 1")]
Change = Annotated[float, Field(ge=-1, le=1), Words("a number from -1 to 1")]
Steps = Annotated[
    int | float,
    Field(gt=0),
    AfterValidator(_whole_or_fraction),
    Words("a whole number of at least 1, or a fraction of the run below 1"),
]
Name = Annotated[str, Field(min_length=1), Words("a name")]
StudyName = Annotated[
    str,
    Field(pattern=r"^[\w.-]{1,80}$"),  # a folder's too, of at most 255 bytes
    Words("at most 80 letters, digits, -, _ and ."),
]
Source = Annotated[
    str,
    Field(min_length=1),
    AfterValidator(_source),
    Words(
        "a path or URI without password and query, since it is recorded. Give credentials by the "
        "environment (AWS_ACCESS_KEY_ID, AZURE_STORAGE_CONNECTION_STRING), download what a signed "
        "link leads to, and change what you have typed: `mlflow run` stores every -P"
    ),
]
File = Annotated[Path, Words("a path")]
Names = Annotated[list[Name], Field(min_length=1), Words("a list of at least one name")]
TokenIds = Annotated[list[Natural], Field(min_length=1)]
Sizes = Annotated[
    list[Annotated[int, Field(ge=1, le=10)]],
    AfterValidator(_sizes),
    Words("the shortest and the longest size of an n-gram, from 1 to 10, such as [1, 2]"),
]
Alias = Annotated[
    str,
    AfterValidator(_alias),
    Words("letters, digits, - and _, and neither latest nor v1, v2, ... (MLflow keeps those)"),
]
Reference = Annotated[str, Field(pattern=r"^[\w-]+$"), Words("a version's number or an alias")]
Encoding = Annotated[
    str, AfterValidator(_encoding), Words("an encoding, such as cp949, cp1252 or utf-16")
]
RegisteredName = Annotated[
    str,
    AfterValidator(_registered_name),
    Words(f"a name of at most {LONGEST_NAME} characters, no quotes and none of / : @ # ? %"),
]
# PEFT (0.21) takes eva, corda and lora_ga without a word, and begins as ever, or asks for rows;
# pissa_niter_16 and the like change the base by chance, and anew when a version is loaded.
Initialization = Literal["gaussian", "olora", "orthogonal", "mica", "pissa"]
Metric = Annotated[
    str, AfterValidator(_metric_name), Words(f"one of {', '.join(METRICS)} (eval_ may precede)")
]
# YAML reads a bare `no` as false.
NoIsText = BeforeValidator(lambda value: "no" if value is False else value)


Port = Annotated[int, Field(ge=1, le=65535), Words("a port number from 1 to 65535")]
RunId = Annotated[
    str, Field(pattern="^[0-9a-f]{32}$"), Words("the id of a run, 32 hexadecimal digits")
]


@dataclass(frozen=True)
class LaunchOptions:
    """The launcher's own options."""

    recipe: Annotated[Name, Help("A file of recipes/, by its name.")] = "starter"
    num_gpus: Annotated[
        Literal["auto"] | Count,
        Help("Ranks; auto: the GPUs there are, else one for each core with 16 rows, or one."),
    ] = "auto"
    register: Annotated[
        bool | Literal["evaluate"],
        Help("evaluate: score the test split, register nothing; false: not even that."),
    ] = True
    dry_run: Annotated[
        bool | Literal["full"],
        Help("Check all, show what is given, full: each value and its source; start nothing."),
    ] = False
    master_port: Annotated[Literal["auto"] | Port, Help("Where ranks meet.")] = "auto"
    resume: Annotated[
        Literal["auto", "never"] | RunId,
        Help("auto: go on with an interrupted run of the same parameters and data; or a run's id."),
    ] = "auto"
    grace_seconds: Annotated[NonNegative, Help("What ranks have to save after Ctrl-C.")] = 8.0
    hang_timeout_seconds: Annotated[
        NonNegative | None, Help("Without a sign of life until a run counts as hung; null: never.")
    ] = 600.0
    system_metrics_seconds: Annotated[
        Count | None, Help("Between two samples of processors, memory and GPUs; null: none.")
    ] = 10
    hostfile: Annotated[Name | None, Help("Hosts that ranks run on, by ssh.")] = None
    verbose: Annotated[bool, Help("Show what libraries say; -v for short.")] = False


# A bare `--dry-run` means true.
LAUNCH_FLAGS = [
    name
    for name, kind in get_type_hints(LaunchOptions, include_extras=True).items()
    if is_flag(kind)
]


class Split(TypedDict):
    """How rows are shared out."""

    train: Part
    validation: Part
    test: Part
    seed: Natural
    stratified: bool


class Data(TypedDict):
    """The ledger and how it is read."""

    source: Source
    encoding: Encoding | None
    header_row: Count | None
    sheet: Name | None
    on_error: Literal["skip", "fail"]
    max_rejected: UpToOne
    text_columns: Names
    label_column: Name
    labels: Literal["strict", "merge", "as_is"]
    label_map: Name | None
    group_column: Name | None
    time_column: Name | None
    date_order: Literal["ymd", "dmy", "mdy"] | None
    supplier_column: Name | None
    amount_column: Name | None
    separator: str
    max_length: Annotated[int, Field(ge=3), Words("a whole number of at least 3")]
    duplicates: Literal["drop", "keep"]
    rare: Literal["train_only", "drop", "refuse"]
    min_rows: Annotated[int, Field(ge=3), Words("a whole number of at least 3")]


class Gates(TypedDict):
    """What a review asks of a version; null or false: not asked."""

    min_accuracy: UpToOne | None
    min_f1: UpToOne | None
    min_unseen_accuracy: UpToOne | None
    max_loss: Positive | None
    accuracy_min_absolute_change: Part | None
    accuracy_min_relative_change: UpToOne | None
    f1_min_absolute_change: Part | None
    f1_min_relative_change: UpToOne | None
    accuracy_change_lower_bound: Change | None
    f1_change_lower_bound: Change | None
    tfidf_accuracy_change_lower_bound: Change | None
    min_class_recall: UpToOne | None
    min_class_f1: UpToOne | None
    class_floor_rows: Count
    pool_small_accounts: bool
    min_class_rows: Count | None
    max_calibration_error: UpToOne | None
    min_coverage: UpToOne | None
    locked_environment: bool
    clean_tree: bool
    cold_load_verified: bool
    signed: bool
    reproduced: Literal["bitwise", "within tolerance"] | None


class Registry(TypedDict):
    """Where the trained version goes."""

    name: RegisteredName
    alias: Alias
    target_precision: Part
    guarantee: Part
    allow_unlocked: bool
    sign_key: Name | None


class Model(TypedDict):
    """The base model."""

    name: Name
    revision: Name | None
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$"), Words("64 hexadecimal digits")] | None
    num_labels: Annotated[int, Field(ge=2), Words("a whole number of at least 2")] | None
    pooling: Literal["cls", "mean"]
    prefix: str | None
    config: dict[str, Any] | None


class Zero(TypedDict):
    """ZeRO, beside the fields DeepSpeed itself declares."""

    stage: Literal[0, 1, 2, 3]
    # Trainer fills these three from the model's hidden size where they say auto.
    reduce_bucket_size: NotRequired[Count | Literal["auto"]]
    stage3_prefetch_bucket_size: NotRequired[Natural | Literal["auto"]]
    stage3_param_persistence_threshold: NotRequired[Natural | Literal["auto"]]


class DeepSpeed(TypedDict):
    """The top-level keys of DeepSpeed 0.19.8 that data-parallel training can use.

    Source: deepspeed/runtime/config.py, DeepSpeedConfig._initialize_params; ZeRO's own keys come
    from deepspeed/runtime/zero/config.py.
    """

    train_micro_batch_size_per_gpu: Count | None
    gradient_accumulation_steps: Count | None
    gradient_clipping: NonNegative
    wall_clock_breakdown: bool
    train_batch_size: NotRequired[Count | None]
    steps_per_print: NotRequired[Count | None]
    activation_checkpointing: NotRequired[dict[str, Any]]
    aio: NotRequired[dict[str, Any]]
    checkpoint: NotRequired[dict[str, Any]]
    comms_logger: NotRequired[dict[str, Any]]
    communication_data_type: NotRequired[str | None]
    csv_monitor: NotRequired[dict[str, Any]]
    data_types: NotRequired[dict[str, Any]]
    disable_allgather: NotRequired[bool]
    disable_python_gc: NotRequired[bool]
    dump_state: NotRequired[bool]
    flops_profiler: NotRequired[dict[str, Any]]
    gradient_predivide_factor: NotRequired[Positive]
    log_level: NotRequired[str]
    memory_breakdown: NotRequired[bool]
    prescale_gradients: NotRequired[bool]
    tensorboard: NotRequired[dict[str, Any]]
    timers: NotRequired[dict[str, Any]]
    zero_allow_untested_optimizer: NotRequired[bool]
    zero_force_ds_cpu_optimizer: NotRequired[bool]


class Lora(TypedDict):
    """The adapter, beside the other fields of peft.LoraConfig."""

    enable: bool
    r: Count
    alpha: Count
    target_modules: Names | Literal["all-linear"]
    dropout: Share
    bias: Literal["none", "all", "lora_only"]
    task_type: Annotated[
        Literal["SEQ_CLS"], Words("SEQ_CLS, the only task here: a line is filed under one account")
    ]
    exclude_modules: NotRequired[Names | None]
    init_lora_weights: NotRequired[bool | Initialization]
    rank_pattern: NotRequired[dict[Name, Annotated[Count, Field(strict=True)]]]
    alpha_pattern: NotRequired[dict[Name, Annotated[Positive, Field(strict=True)]]]
    trainable_token_indices: NotRequired[TokenIds | dict[Name, TokenIds] | None]


class NgramModel(TypedDict):
    """The linear model on n-grams beside the encoder."""

    enable: bool
    word: Sizes
    char: Sizes
    min_rows: Count | None
    max_features: Count


class Averaging(TypedDict):
    """Whose weights are the result."""

    enable: bool


class Training(TypedDict):
    """Optimisation, beside the other fields of transformers.TrainingArguments."""

    output_dir: Name
    num_train_epochs: Literal["auto"] | Positive
    max_steps: Count | None
    eval_strategy: Annotated[Literal["no", "steps", "epoch"], NoIsText]
    eval_steps: Steps
    save_strategy: Annotated[Literal["no", "steps", "epoch", "best"], NoIsText]
    save_steps: Steps
    save_total_limit: Count | None
    logging_steps: Steps
    learning_rate: Positive
    weight_decay: NonNegative
    warmup_ratio: Share
    fp16: bool
    bf16: bool
    gradient_checkpointing: bool
    dataloader_num_workers: Natural
    seed: Seed
    report_to: list[Literal["mlflow"]]
    load_best_model_at_end: bool
    metric_for_best_model: Metric
    greater_is_better: bool
    adam_beta1: NotRequired[Share]
    adam_beta2: NotRequired[Share]
    adam_epsilon: NotRequired[NonNegative]
    label_smoothing_factor: NotRequired[Share]
    warmup_steps: NotRequired[NonNegative]
    per_device_eval_batch_size: NotRequired[Count]
    train_sampling_strategy: NotRequired[
        Literal["random", "sequential", "group_by_length", "batch_rebalance"]
    ]


class Metrics(TypedDict):
    """How the classes' scores become one."""

    average: Literal["macro", "micro", "weighted"]


class Loss(TypedDict):
    """The loss."""

    class_weights: Literal["none", "sqrt", "balanced"]


class Tuning(TypedDict):
    """What `kedro tune` searches, and how."""

    space: Name
    study: StudyName | None
    trials: Annotated[
        int, Field(ge=1, le=MOST_TRIALS), Words(f"a whole number from 1 to {MOST_TRIALS}")
    ]
    workers: Count
    metric: Literal["eval/loss", "eval/accuracy", "eval/f1", "eval/precision", "eval/recall"] | None
    direction: Literal["maximize", "minimize"] | None
    sampler: Literal["tpe", "random"]
    seed: Seed
    pruner: Literal["median", "none"]


class Root(TypedDict):
    """What stands beside the sections."""

    artifacts_root: Name


def section(declared: type, below: Mapping[str, Section] | None = None, **library: Any) -> Section:
    """Return a declared section together with the library's fields it leaves undeclared."""
    hints = get_type_hints(declared, include_extras=True)
    optional = {key for key, kind in hints.items() if get_origin(kind) is NotRequired}
    own = {key: kind.__args__[0] if key in optional else kind for key, kind in hints.items()}
    below = below or {}
    return Section({**library, **own, **below}, frozenset({*own, *below} - optional))


@cache
def parameters() -> Section:
    """Return the whole schema. The libraries' fields come from their installed source."""
    train = {
        "model": section(Model),
        "deepspeed": section(DeepSpeed, {"zero_optimization": _zero()}),
        "lora": section(Lora, **class_fields("peft", "tuners/lora/config.py", "LoraConfig")),
        "ngrams": section(NgramModel),
        "averaging": section(Averaging),
        "training": section(
            Training, **class_fields("transformers", "training_args.py", "TrainingArguments")
        ),
        "metrics": section(Metrics),
        "loss": section(Loss),
    }
    below = {
        "data": section(Data, {"split": section(Split)}),
        "train": Section(train, frozenset(train)),
        "registry": section(Registry, {"gates": section(Gates)}),
        "tuning": section(Tuning),
    }
    return section(Root, below)


def _zero() -> Section:
    library = class_fields("deepspeed", "runtime/zero/config.py", "DeepSpeedZeroConfig")
    zero = section(Zero, **library)
    offload = {
        f"offload_{what.lower()}": Section(
            class_fields(
                "deepspeed", "runtime/zero/offload_config.py", f"DeepSpeedZeroOffload{what}Config"
            ),
            frozenset({"device"}),
            nullable=True,
        )
        for what in ("Param", "Optimizer")
    }
    return Section({**zero.fields, **offload}, zero.required)


@cache
def everything() -> Section:
    """Return the parameters with the launcher's options beside them."""
    launch = section(LaunchOptions)
    return Section({**launch.fields, **parameters().fields}, parameters().required)


def _each(section: str, reason: str, keys: str) -> dict[str, str]:
    return {f"train.{section}.{key}": reason for key in keys.split()}


CONFIDENTIAL = "not available here: ledgers are confidential, nothing is sent to a hub"
# Keys the libraries know and this project settles elsewhere, with where.
REFUSED = {
    "train.training.per_device_train_batch_size": "set "
    "train.deepspeed.train_micro_batch_size_per_gpu instead",
    "train.training.gradient_accumulation_steps": "set "
    "train.deepspeed.gradient_accumulation_steps instead",
    "train.training.max_grad_norm": "set train.deepspeed.gradient_clipping instead",
    "train.training.deepspeed": "set the keys of train.deepspeed instead",
    "train.training.fsdp": "set train.deepspeed.zero_optimization instead: DeepSpeed shards here",
    "train.training.fsdp_config": "set train.deepspeed.zero_optimization instead",
    "train.training.parallelism_config": "not available here: ranks share data only",
    "train.training.logging_nan_inf_filter": "not yours to set: a loss that is no number stops the "
    "run",
    "train.training.use_liger_kernel": "not available here: no kernels of others are in the lock",
    "train.training.dataloader_drop_last": "not available here: every row counts, and the last "
    "batch is filled",
    "train.training.prediction_loss_only": "not available here: the metrics are of the answers",
    "train.training.fp16_full_eval": "set precision instead: the evaluation follows it",
    "train.training.bf16_full_eval": "set precision instead: the evaluation follows it",
    "train.training.label_names": "not yours to set: the labels are data.label_column's",
    "train.training.use_cpu": "set CUDA_VISIBLE_DEVICES= in the environment to leave GPUs alone",
    "train.training.ddp_backend": "not yours to set: gloo on CPUs, NCCL on GPUs",
    "train.training.debug": "not available here: it is TPUs' and plain DDP's",
    **_each(
        "training",
        "not available here: it is plain DDP's, and DeepSpeed trains here",
        "ddp_find_unused_parameters ddp_bucket_cap_mb ddp_broadcast_buffers ddp_static_graph",
    ),
    **_each(
        "training",
        "not yours to set: kedro train trains, evaluates, and answers the test split",
        "do_train do_eval do_predict",
    ),
    **_each(
        "training",
        "not yours to set: the training knows its own columns",
        "remove_unused_columns length_column_name",
    ),
    "train.training.auto_find_batch_size": "not available here: a batch is what the parameters say",
    "train.training.ignore_data_skip": "not available here: a resumed run goes on with the row "
    "that it stopped at",
    "train.training.run_name": "set --run-name of mlflow run instead",
    "train.training.liger_kernel_config": "not available here: no kernels of others are in the "
    "lock",
    "train.training.local_rank": "not yours to set: the launcher numbers the ranks",
    "train.training.resume_from_checkpoint": "set resume instead: auto, never, or the id of a run",
    "train.lora.lora_alpha": "set train.lora.alpha instead",
    "train.lora.lora_dropout": "set train.lora.dropout instead",
    "train.lora.base_model_name_or_path": "set train.model.name instead",
    "train.lora.revision": "set train.model.revision instead",
    **_each(
        "lora",
        "not yours to set: the training does",
        "peft_type peft_version auto_mapping inference_mode fan_in_fan_out",
    ),
    **_each(
        "lora",
        "not available here: the base is loaded in float32, not quantized",
        "use_qalora qalora_group_size loftq_config",
    ),
    **_each(
        "lora",
        "not available here: nothing is initialised from rows of the ledger",
        "eva_config corda_config lora_ga_config",
    ),
    **_each(
        "lora", "not available here: it is for layers of Megatron", "megatron_config megatron_core"
    ),
    **_each(
        "lora",
        "not available here: of PEFT's other kinds of LoRA use_dora and use_rslora are",
        "arrow_config kasa_config monteclora_config use_bdlora velora_config",
    ),
    "train.lora.target_parameters": "set train.lora.target_modules instead: layers are adapted",
    "train.lora.ensure_weight_tying": "not available here: what is tied to another is not trained",
    "train.lora.runtime_config": "not available here: a version is loaded as it was trained",
    "train.lora.layer_replication": "not available here: a version is its base and an adapter, and "
    "the base has the layers it has",
    "train.lora.alora_invocation_tokens": "not available here: it is for models that write text",
    "train.deepspeed.bf16": "set train.training.bf16 (or precision) instead",
    "train.deepspeed.fp16": "set train.training.fp16 (or precision) instead",
    "train.deepspeed.optimizer": "set train.training.optim and learning_rate instead",
    "train.deepspeed.scheduler": "set train.training.lr_scheduler_type instead",
    "train.deepspeed.wandb": CONFIDENTIAL,
    "train.deepspeed.comet": CONFIDENTIAL,
}
REFUSED_PREFIXES = tuple(
    f"train.training.{word}" for word in ("push_to_hub", "hub_", "trackio_", "project")
)


def refusal(key: str) -> str | None:
    """Return why a key a library knows is not set here, or None."""
    return CONFIDENTIAL if key.startswith(REFUSED_PREFIXES) else REFUSED.get(key)
