"""The training node: from tokenized datasets to a trained adapter and its metrics.

The names and signatures are the specification's. The order inside is: model, LoRA, arguments,
callbacks, Trainer, train, evaluate, save.
"""

from __future__ import annotations

import copy
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from math import inf
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import DatasetDict
from peft import LoraConfig, PeftModel, TaskType, get_peft_model
from torch import nn
from transformers import (
    AutoConfig,
    EvalPrediction,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    TrainingArguments,
    enable_full_determinism,
    set_seed,
)

from account_tax.faults import hint
from account_tax.model.classifier import BaseModelError, build_classifier, resolve_base
from account_tax.model.metrics import compute_classification_metrics
from account_tax.parameters.batch import EPOCHS, batch_faults, count_epochs, share_batch
from account_tax.processes.ranks import (
    find_built,
    get_mlflow_env,
    is_rank0,
    join_as_one_rank,
    keep_operators_apart,
    leave_out_collective,
)
from account_tax.storage.checkpoints import ATTEMPT_FILE, RANKS_LOCK
from account_tax.storage.files import hold, read_json
from account_tax.storage.names import PROGRESS_VARIABLE
from account_tax.tracking.metric_sender import close_metrics, open_metrics

from .batches import RowCollator, Rows, class_weights
from .callbacks import (
    EVALUATED,
    EngineTimeCallback,
    LastStepCallback,
    MLflowMetricsCallback,
    ProgressCallback,
    SpeedCallback,
    TorchMemoryCallback,
    memory_mb,
)
from .saving import answer_probe, precision_of, save_result
from .stopping import NotFiniteCallback, StopCallback
from .trainer import LedgerTrainer, rows_a_step

__all__ = [
    "SpeedCallback",
    "TorchMemoryCallback",
    "apply_lora_adapters",
    "build_training_arguments",
    "compute_metrics",
    "get_mlflow_env",
    "instantiate_model",
    "is_rank0",
    "run_training_pipeline",
]


log = logging.getLogger(__name__)


# training.yml's words for LoRA, and PEFT's.
LORA_NAMES = {"alpha": "lora_alpha", "dropout": "lora_dropout"}
# Fields of a model's configuration that follow from the data, the base and the task.
SETTLED = {
    *("_name_or_path", "architectures", "auto_map", "dtype", "id2label", "is_encoder_decoder"),
    *("label2id", "model_type", "problem_type", "quantization_config", "return_dict"),
    "transformers_version",
}
EVAL_BATCH = 64  # rows; of transformers' 8 an evaluation takes 1.4 times as long
ATTENTIONS = ("eager", "sdpa", "flex_attention")
# The heads that PEFT (0.21) trains whole, whatever it is told: PeftModelForSequenceClassification.
HEADS = ("classifier", "score")


def run_training_pipeline(
    tokenized_datasets: DatasetDict,
    tokenizer: PreTrainedTokenizerBase,
    train_params: dict[str, Any],
    artifacts_root: str,
) -> dict[str, Any]:
    """Train on the train split, keep the best model by the validation split, save its adapter.

    Every rank runs this; rank 0 writes. What it leaves in `artifacts_root` is listed in
    docs/design.md; the marker `train_complete.json` is written last.

    Args:
        tokenized_datasets: Splits train and validation with input_ids and labels (a ClassLabel).
        tokenizer: Pads the batches; saved where all weights are, without LoRA.
        train_params: The `train` section of training.yml.
        artifacts_root: Folder of the run's results.

    Returns:
        Metrics under the specification's names (`train/loss`, `eval/f1`, ...).
    """
    _become_a_rank(train_params)
    open_metrics(Path(artifacts_root))
    training = train_params["training"]
    (enable_full_determinism if training.get("full_determinism") else set_seed)(training["seed"])
    labels = tokenized_datasets["train"].features["labels"].names
    checkpointing = training.get("gradient_checkpointing", False)
    config = {**train_params["model"], "labels": labels, "gradient_checkpointing": checkpointing}
    model = instantiate_model(config, tokenizer)
    base: Any = model.base_reference
    if train_params["lora"].get("enable", True):
        model = apply_lora_adapters(model, train_params["lora"])
    arguments = build_training_arguments(train_params, artifacts_root)
    trainer = _build_trainer(
        model, tokenizer, arguments, tokenized_datasets, train_params, Path(artifacts_root)
    )

    with _sole_writer(trainer.folder):
        training_result = trainer.train(_checkpoint_to_resume(trainer.folder))
    evaluation = trainer.evaluate_kept()
    metrics = _summarize(trainer, training_result.metrics, evaluation)
    probe = answer_probe(trainer, tokenizer)
    settings = {
        "base": base.to_dict(),
        "prefix": train_params["model"].get("prefix"),
        "pooling": train_params["model"].get("pooling", "cls"),
        "precision": precision_of(arguments),
        "labels": labels,
    }
    save_result(trainer, base, Path(artifacts_root), settings, probe, metrics)
    close_metrics()
    return metrics


# --- the specification's functions ----------------------------------------------------------------


def instantiate_model(
    model_config: dict[str, Any], tokenizer: PreTrainedTokenizerBase
) -> PreTrainedModel:
    """Return the pinned base model under a fresh head, float32; DeepSpeed casts what trains.

    Args:
        model_config: `name`, `revision`, `sha256`, `pooling`, `labels` or `num_labels`,
            `gradient_checkpointing`, and `config`: fields of the model's own configuration.
        tokenizer: Gives the padding token, for architectures that look it up.

    Raises:
        BaseModelError: If the base is missing, is not the pinned one, or has no head to train.
    """
    base = resolve_base(
        model_config["name"], model_config.get("revision"), model_config.get("sha256")
    )
    fields = model_config.get("config") or {}
    _check_fields(AutoConfig.from_pretrained(base.path, trust_remote_code=False), fields)
    labels = model_config.get("labels")
    if labels is None:
        labels = [f"LABEL_{index}" for index in range(model_config["num_labels"])]
    pooling = model_config.get("pooling") or "cls"
    model = build_classifier(base, labels=labels, pooling=pooling, **fields)
    if model.config.is_encoder_decoder and pooling == "cls":
        raise BaseModelError(
            f"train.model.name = {model_config['name']}: {model.config.model_type} is an encoder "
            "with a decoder, whose head of its own answers more than logits. Take an encoder "
            "or a decoder as base."
        )
    if model.config.pad_token_id is None:
        model.config.pad_token_id = tokenizer.pad_token_id
    if model_config.get("gradient_checkpointing"):
        model.activation_checkpointing_enable({"use_reentrant": False})
    model.base_reference = base  # type: ignore[assignment]
    return model


def _check_fields(config: PretrainedConfig, fields: dict[str, Any]) -> None:
    """Raise BaseModelError unless `train.model.config` holds fields of the base's configuration.

    Whatever else transformers takes beside them decides what is loaded, and from where.
    """
    known = {*config.to_dict(), *config.attribute_map, "attn_implementation"} - SETTLED
    faults = [
        f"train.model.config.{key} = {value}: not a field that may be set. "
        f"{hint(key, sorted(known))}"
        for key, value in fields.items()
        if key not in known
    ]
    if (attention := fields.get("attn_implementation", ATTENTIONS[0])) not in ATTENTIONS:
        faults.append(
            f"train.model.config.attn_implementation = {attention}: expected one of "
            f"{', '.join(ATTENTIONS)}; any other takes its code from a hub."
        )
    if faults:
        raise BaseModelError(" ".join(faults))


def apply_lora_adapters(model: PreTrainedModel, lora_params: dict[str, Any]) -> PeftModel:
    """Return the model with LoRA adapters; the given model is changed in place.

    Args:
        model: From `instantiate_model`; its fresh modules are trained and saved with the adapter.
        lora_params: The `lora` section of training.yml; any LoraConfig field is accepted.

    Raises:
        ValueError: If a name or number of a layer matches none, or PEFT refuses a field: a line for
            each fault, which starts with its key.
    """
    fields = {LORA_NAMES.get(key, key): value for key, value in lora_params.items()}
    fields.pop("enable", None)
    fields["task_type"] = TaskType[fields.get("task_type", "SEQ_CLS")]
    whole = _trained_whole(model, fields.get("modules_to_save") or [])
    faults = _find_lora_faults(model, fields, whole)
    if faults:
        raise ValueError("\n".join(faults))
    fields["modules_to_save"] = whole or None
    try:
        peft_model = get_peft_model(model, LoraConfig(**fields))
    except Exception as err:  # each of its fields fails in ways of its own
        why = str(err).rstrip(".")
        key = _key_to_blame(err, lora_params)
        at_fault = f"train.lora.{key} = {lora_params.get(key)}" if key else "train.lora"
        what = "" if key else f" Given are {', '.join(lora_params)}."
        raise ValueError(f"{at_fault}: {type(err).__name__}: {why}.{what}") from err
    if faults := _find_idle(peft_model.targeted_module_names, fields):
        raise ValueError("\n".join(faults))
    if is_rank0():
        trainable, everything = peft_model.get_nb_trainable_parameters()
        log.info("trainable parameters: %s of %s", f"{trainable:,}", f"{everything:,}")
    return peft_model


def _find_idle(adapted: list[str], fields: dict[str, Any]) -> list[str]:
    """Return a fault for each name that changed none of the layers with an adapter.

    PEFT (0.21) warns of those in patterns, and takes them as expressions: the first that fits a
    layer counts. It saves them in another order, so a layer may not fit two with two values.
    """
    ends = ", ".join(sorted({name.rpartition(".")[2] for name in adapted}))
    faults = list[str]()
    for key in ("rank_pattern", "alpha_pattern"):
        given = fields.get(key) or {}
        for layer in adapted:
            fitting = [name for name in given if _ending(name, as_expression=True)(layer)]
            if len({given[name] for name in fitting}) > 1:
                faults.append(
                    f"train.lora.{key} = {given}: {layer} fits {' and '.join(fitting)}, whose "
                    "values differ. Give names or expressions of which each layer fits one."
                )
                break
    return faults + [
        f"train.lora.{key} = {given}: no layer is changed by {name}. Adapted are: {ends}."
        for key in ("target_modules", "rank_pattern", "alpha_pattern")
        if (given := fields.get(key)) and not isinstance(given, str)
        for name in given
        if not any(map(_ending(name, key.endswith("_pattern")), adapted))
    ]


def _ending(name: str, as_expression: bool) -> Callable[[str], Any]:
    """Return what matches the modules whose whole name, or its last parts, a word gives."""
    own = re.compile(name if as_expression else re.escape(name))  # its errors are of it alone
    return re.compile(rf"(.*\.)?({own.pattern})").fullmatch


def _key_to_blame(err: Exception, lora_params: dict[str, Any]) -> str | None:
    """Return the key that PEFT's error names, else the last whose value it repeats; None if none.

    What it refuses without either is what the layers can't be.
    """
    # `bias=True` is a layer's, as torch shows it.
    named = {*re.findall(r"\b(?!bias=)\w+", str(err))}
    for key in lora_params:
        if LORA_NAMES.get(key, key) in named:
            return key
    for key, value in reversed(lora_params.items()):
        if _long_words(err) & _long_words(value):
            return key
    return "target_modules" if isinstance(err, ValueError) else None


def _long_words(said: Any) -> set[str]:
    return set() if isinstance(said, bool) else {*re.findall(r"\w{3,}", str(said).lower())}


def _trained_whole(model: PreTrainedModel, given: list[str]) -> list[str]:
    """Return the names of the modules that are trained and saved whole, none inside another.

    PEFT (0.21) wraps every module whose name ends in a given one, and `classifier` and `score` in
    any case; one that is wrapped twice can't be loaded.
    """
    names = [name for name, _ in model.named_modules() if name]
    ends = tuple(f".{end}" for end in (*getattr(model, "fresh_modules", []), *given))
    chosen = [name for name in names if name.endswith(HEADS) or f".{name}".endswith(ends)]
    return sorted(
        name for name in chosen if not any(name.startswith(f"{other}.") for other in chosen)
    )


def _find_lora_faults(
    model: PreTrainedModel, fields: dict[str, Any], whole: list[str]
) -> list[str]:
    """Return a line for each key that names what the model has not, or gives it what can't be."""
    everything = [name for name, _ in model.named_modules() if name]
    ends = {name.rpartition(".")[2] for name in everything}
    shown = {end for end in ends if not end.isdecimal()}
    faults = _find_unknown("modules_to_save", fields.get("modules_to_save"), everything, shown)
    adaptable, layers = _adaptable(model, whole)
    leaves = [name for name in adaptable if not any(model.get_submodule(name).children())]
    trained = sorted({*everything} - {*adaptable})
    linear = {name.rpartition(".")[2] for name in layers}
    for key in ("target_modules", "exclude_modules", "rank_pattern", "alpha_pattern"):
        faults += _find_unknown(key, fields.get(key), leaves, linear, trained)
    highest = max((min(at.in_features, at.out_features) for at in layers.values()), default=inf)
    ranks = {"r": fields.get("r", 1)}
    ranks |= {f"rank_pattern.{name}": r for name, r in (fields.get("rank_pattern") or {}).items()}
    faults += [
        f"train.lora.{key} = {r}: expected at most {highest}, the highest rank a layer has here."
        for key, r in ranks.items()
        if r > highest
    ]
    named = ("train.lora.target_modules", "train.lora.exclude_modules")
    if not any(fault.startswith(named) for fault in faults):
        faults += _find_exclusion_faults(leaves, [*layers], fields)
    return faults + _find_layer_faults(adaptable, fields, linear)


def _find_exclusion_faults(
    leaves: list[str], linear: list[str], fields: dict[str, Any]
) -> list[str]:
    """Return why `exclude_modules` leaves out nothing, or everything, of `target_modules`."""
    excluded, targets = fields.get("exclude_modules"), fields.get("target_modules")
    if not (excluded and targets):
        return []

    def among(given: Any) -> set[str]:
        if given == "all-linear":
            return {*linear}
        matches = (
            [re.compile(given).fullmatch]
            if isinstance(given, str)
            else [_ending(name, as_expression=False) for name in given]
        )
        return {leaf for leaf in leaves if any(match(leaf) for match in matches)}

    chosen, start = among(targets), f"train.lora.exclude_modules = {excluded}:"
    if chosen and chosen <= among(excluded):
        return [f"{start} nothing is left of target_modules. Exclude less."]
    return [
        f"{start} {name} is no part of target_modules, so leaves nothing out."
        for name in ([excluded] if isinstance(excluded, str) else excluded)
        if not chosen & among(excluded if isinstance(excluded, str) else [name])
    ]


def _find_layer_faults(names: list[str], fields: dict[str, Any], linear: set[str]) -> list[str]:
    """Return why `layers_to_transform` does not fit; PEFT (0.21) leaves out what is not there."""
    given, pattern = fields.get("layers_to_transform"), fields.get("layers_pattern")
    if given in (None, []):
        without = f"train.lora.layers_pattern = {pattern}: no layers_to_transform is given with it."
        return [without] if pattern else []
    numbered = [re.match(r".*?\.([^.]*)\.(\d+)\.", name) for name in names]  # as PEFT finds them
    layers = {int(match[2]) for match in numbered if match}
    faults, start = list[str](), f"train.lora.layers_to_transform = {given}:"
    there = {match[1] for match in numbered if match}
    if not there.issuperset([pattern] if isinstance(pattern, str) else pattern or []):
        said = f"expected names of {', '.join(sorted(there))}, below which layers are numbered."
        faults.append(f"train.lora.layers_pattern = {pattern}: {said}")
    if not layers.issuperset(given if isinstance(given, list) else [given]):
        faults.append(f"{start} the base has the layers 0 to {max(layers, default=-1)}.")
    if isinstance(fields.get("target_modules"), str):
        as_in = ",".join(sorted(linear))
        faults.append(f"{start} set train.lora.target_modules to a list too, as in {as_in}.")
    return faults


def _find_unknown(
    key: str, given: Any, names: list[str], shown: set[str], trained: Iterable[str] = ()
) -> list[str]:
    """Return a fault unless each given name is the end of one that there is.

    What is trained whole gets its own words. PEFT (0.21) takes the keys of the patterns, and a text
    for a list, as expressions.
    """
    as_text = isinstance(given, str)
    words = [given] if as_text else given or []
    faults = list[str]()
    for word in words:
        try:
            ends = _ending(word, as_text or key.endswith("_pattern"))
        except re.error as err:
            faults.append(f"{word} is no regular expression ({err}).")
            continue
        if as_text or (any(map(ends, names)) and not word.isdecimal()):
            continue
        if any(map(ends, trained)):
            faults.append(f"{word} is trained whole, as train.lora.modules_to_save or the head.")
        else:
            faults.append(f"no layer for it is called {word}. {hint(word, sorted(shown))}")
    return [f"train.lora.{key} = {given}: {' '.join(faults)}"] if faults else []


def _adaptable(model: PreTrainedModel, whole: list[str]) -> tuple[list[str], dict[str, nn.Linear]]:
    """Return the names of the modules outside those trained whole, and the linear ones by name."""
    found = {
        name: module
        for name, module in model.named_modules()
        if not any(f"{name}.".startswith(f"{trained}.") for trained in whole)
    }
    linear = {name: module for name, module in found.items() if isinstance(module, nn.Linear)}
    return list(found), linear


def build_training_arguments(
    train_params: dict[str, Any], artifacts_root: str
) -> TrainingArguments:
    """Return TrainingArguments of the `train` section of training.yml.

    The deepspeed block goes in as a dict; batch sizes and clipping are read from it, so each has
    one home. `warmup_ratio` and `max_steps: null`, gone in transformers 5, are mapped.
    """
    return TrainingArguments(**training_fields(train_params, artifacts_root))


def training_fields(train_params: dict[str, Any], artifacts_root: str) -> dict[str, Any]:
    """Return the fields of `build_training_arguments`."""
    given = {"output_dir": str(Path(artifacts_root) / "checkpoints"), **train_params["training"]}
    deepspeed = build_deepspeed_config(train_params["deepspeed"], given)
    if given.get("max_steps") is None:
        given["max_steps"] = -1
    if given.get("num_train_epochs") == "auto":
        given["num_train_epochs"] = EPOCHS  # until there are rows to count
    if (ratio := given.pop("warmup_ratio", None)) is not None:
        given.setdefault("warmup_steps", ratio)  # a fraction in [0, 1) is a share of the steps
    given.setdefault("per_device_eval_batch_size", EVAL_BATCH)
    report_to = given.pop("report_to", None) or []
    report_to = [report_to] if isinstance(report_to, str) else report_to
    if given.get("gradient_checkpointing"):
        given.setdefault("gradient_checkpointing_kwargs", {"use_reentrant": False})
    owned = {
        "per_device_train_batch_size": deepspeed["train_micro_batch_size_per_gpu"],
        "gradient_accumulation_steps": deepspeed["gradient_accumulation_steps"],
        "max_grad_norm": deepspeed.get("gradient_clipping", given.pop("max_grad_norm", 1.0)),
        "deepspeed": deepspeed,
        # MLflowMetricsCallback logs to MLflow; transformers' own would end the launcher's run.
        "report_to": [name for name in report_to if name != "mlflow"],
        "label_names": ["labels"],
        # It would show a mean of earlier losses for one that is no number, which stops the run.
        "logging_nan_inf_filter": False,
        "use_cpu": not torch.cuda.is_available(),
        "disable_tqdm": PROGRESS_VARIABLE in os.environ or given.pop("disable_tqdm", False),
    }
    return {**given, **owned}


def compute_metrics(eval_pred: EvalPrediction, average: str = "macro") -> dict[str, float]:
    """Return accuracy, f1, precision and recall of logits, (N, C), against labels, (N,)."""
    return compute_classification_metrics(
        np.asarray(eval_pred.predictions), np.asarray(eval_pred.label_ids), average
    )


# --- parts of the workflow ------------------------------------------------------------------------


def build_deepspeed_config(block: dict[str, Any], training: dict[str, Any]) -> dict[str, Any]:
    """Return the deepspeed block as DeepSpeed takes it on this machine.

    Precision follows `training`. Without a GPU there is nothing to offload from, and DeepSpeed
    would build its CPU optimizer for a minute to no effect, so offloading is left out.
    """
    config = copy.deepcopy(block)
    config.pop("train_batch_size", None)  # follows from the others, and is not this process's alone
    rows, steps = share_batch(block, int(os.environ.get("WORLD_SIZE", 1)))
    config |= {
        "train_micro_batch_size_per_gpu": max(1, rows),  # else a fault, which the plan tells of
        "gradient_accumulation_steps": max(1, steps),
    }
    # SpeedCallback counts; DeepSpeed's counter waits for the device twice in a micro-batch.
    config.setdefault("timers", {"throughput": {"enabled": False}})
    for precision in ("bf16", "fp16"):
        config.setdefault(precision, {"enabled": bool(training.get(precision))})
    zero = config.setdefault("zero_optimization", {"stage": 0})
    offload = [key for key in ("offload_optimizer", "offload_param") if zero.get(key)]
    if offload and not torch.cuda.is_available():
        log.info("no GPU to offload from: %s left out", ", ".join(offload))
        zero |= dict.fromkeys(offload)
    config["zero_optimization"] = {key: value for key, value in zero.items() if value is not None}
    return config


def _build_trainer(
    model: Any,
    tokenizer: PreTrainedTokenizerBase,
    arguments: TrainingArguments,
    splits: DatasetDict,
    train_params: dict[str, Any],
    root: Path,
) -> LedgerTrainer:
    speed, finite = SpeedCallback(), NotFiniteCallback(root)
    callbacks: list[Any] = [finite, LastStepCallback(), speed, TorchMemoryCallback()]
    if "mlflow" in (train_params["training"].get("report_to") or []):
        callbacks.append(MLflowMetricsCallback())
    train_rows = Rows.from_dataset(splits["train"])
    classes = splits["train"].features["labels"].num_classes
    kind = train_params.get("loss", {}).get("class_weights", "none")
    average = train_params.get("metrics", {}).get("average", "macro")
    if train_params["training"].get("num_train_epochs") == "auto":
        epochs = count_epochs("auto", len(train_rows), rows_a_step(arguments))
        arguments.num_train_epochs = epochs
    trainer = LedgerTrainer(
        model=model,
        args=arguments,
        train_dataset=train_rows,
        eval_dataset=Rows.from_dataset(splits["validation"], longest_first=True),
        data_collator=RowCollator(tokenizer),
        processing_class=tokenizer,
        compute_metrics=partial(compute_metrics, average=average),
        callbacks=callbacks,
        speed=speed,
        finite=finite,
        class_weights=class_weights(train_rows.labels, classes, kind),
        average=train_params.get("averaging", {}).get("enable", False),
        facts=read_json(Path(arguments.output_dir or "") / ATTEMPT_FILE).get("facts"),
    )
    trainer.add_callback(EngineTimeCallback(lambda: trainer.deepspeed))
    trainer.add_callback(StopCallback(root))
    trainer.add_callback(ProgressCallback(speed))  # after what asks for a checkpoint
    return trainer


def _become_a_rank(train_params: dict[str, Any]) -> None:
    """Set up what DeepSpeed is to find; raise ValueError if the ranks can't share a step's rows."""
    join_as_one_rank()
    if faults := batch_faults(train_params["deepspeed"], int(os.environ["WORLD_SIZE"])):
        raise ValueError(" ".join(faults))  # started by hand: no launcher has looked
    leave_out_collective()
    if find_built(train_params, torch.cuda.device_count()):
        keep_operators_apart()


@contextmanager
def _sole_writer(folder: Path) -> Iterator[None]:
    """Keep other trainings from writing checkpoints here: the ranks may outlive their launcher."""
    if not is_rank0():
        yield
        return
    with hold(folder / RANKS_LOCK) as sign:
        sign({})
        yield


def _checkpoint_to_resume(folder: Path) -> str | None:
    """Return the checkpoint that the launcher found to be whole, if there is one."""
    name = read_json(folder / ATTEMPT_FILE).get("resume_from")
    return str(folder / name) if name else None


def _summarize(
    trainer: LedgerTrainer, training: dict[str, float], evaluation: dict[str, float]
) -> dict[str, Any]:
    """Return the run's metrics under the specification's names."""
    model: Any = trainer.model
    speed = trainer.speed
    measured = {}
    if speed.total_seconds:  # a resumed training may have had no step left
        measured = {"speed/tokens_per_sec": speed.total_tokens / speed.total_seconds}
    return {
        "train/loss": training["train_loss"],
        "train/runtime_seconds": training["train_runtime"],
        "train/epoch": trainer.state.epoch,
        "train/global_step": trainer.state.global_step,
        "train/trainable_parameters": sum(
            getattr(p, "ds_numel", p.numel()) for p in model.parameters() if p.requires_grad
        ),
        "train/cached_layers": trainer.frozen.count,
        **{f"eval/{name}": evaluation[f"eval_{name}"] for name in EVALUATED},
        **measured,
        **memory_mb(),
    }
