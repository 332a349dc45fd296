"""What can only be known with the data, the base model and torch at hand, before any rank starts.

`python -m account_tax.pipelines.check PARAMETERS.yml REPORT.json` reads and splits the ledger,
loads the base model, puts the adapters on it, saves it and loads it back, makes Trainer's parts,
writes what it found, and leaves nothing else behind.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
import yaml
from huggingface_hub.constants import HF_HUB_CACHE

from account_tax.faults import shorten, with_rows
from account_tax.ledger.tokens import check_length, load_base
from account_tax.model.calibration import least_rows
from account_tax.model.classifier import PACKAGE_SCHEME, has_bf16
from account_tax.pipelines.prepare.nodes import inputs_sha256, plan_data, plan_prepared
from account_tax.pipelines.train.rehearsal import find_loading_faults, find_trainer_faults
from account_tax.pipelines.train.training_core import apply_lora_adapters, instantiate_model
from account_tax.processes.guard import guard_stage
from account_tax.processes.ranks import end_stage, find_built, keep_operators_apart
from account_tax.provenance.signing import SignatureError, load_private_key
from account_tax.storage.files import first_there, why_not_writable

POOL_HINT = " (registry.gates.pool_small_accounts=true measures them together)"


def check(values: dict[str, Any]) -> dict[str, Any]:
    """Return faults and facts of the parameters `data` and `train`, either of which may be absent.

    Returns:
        `faults`, one line each; `gpus`, how many this process sees; and, as far as known, `labels`,
        `rows` by split, `ledger` in words, `source_sha256`, `inputs_sha256`, `base` (its pin),
        `parameters`, `trainable_parameters` and `padding_token`; and `fast_bf16`, whether this
        process's device has it.
    """
    report: dict[str, Any] = {"faults": [], "gpus": torch.cuda.device_count()}
    train, data = values.get("train", {}), values.get("data")
    model = train.get("model", {})
    if data is not None:
        named = {"num_labels": None, **model}
        plan = plan_prepared(data, train) or plan_data(data, named, train.get("ngrams"))
        report["faults"] += plan.faults
        gates = values.get("registry", {}).get("gates")
        if words := floors_in_words(gates, plan.test_rows) if gates else "":
            plan.facts["gates"] = words
        if words := promise_in_words(values.get("registry", {}), plan.rows.get("validation", 0)):
            plan.facts["threshold"] = words
        report |= {"labels": plan.labels, "rows": plan.rows, "ledger": plan.facts}
        report["source_sha256"] = plan.source_sha256
    if model.get("name"):
        report |= _check_model(train, data or {}, report)
    if data is not None and report["source_sha256"] and "base" in report:
        pinned = {**train, "model": {**model, **report["base"]}}
        report["inputs_sha256"] = inputs_sha256(data, pinned, report["source_sha256"])
    report["faults"] += _training_faults(train) + _cache_faults(train, report)
    report["fast_bf16"] = has_bf16("cuda" if report["gpus"] else "cpu")
    report["faults"] += _key_faults(values.get("registry", {}))
    return report


def floors_in_words(gates: Mapping[str, Any], test_rows: Mapping[str, int]) -> str:
    """Return what a review won't be able to measure of accounts with so many test rows, or ""."""
    floor, pooled = gates["class_floor_rows"], gates["pool_small_accounts"]
    small = {label: rows for label, rows in test_rows.items() if rows < floor}
    together, count = sum(small.values()), f"{len(small)} of {len(test_rows)} accounts"
    words = {
        "leave": f"leave out {count}, of fewer than {floor} test rows",
        "pool": f"measure {count} together, by {together} test rows",
        "none": f"not be measurable: {count} have fewer than {floor} test rows",
    }
    outcome = "none" if len(small) == len(test_rows) else "leave"
    outcome = "pool" if pooled and together >= floor else outcome
    hint = ", together too" * (outcome != "pool") if pooled else POOL_HINT
    floors = " and ".join(
        name for name in ("min_class_recall", "min_class_f1") if gates[name] is not None
    )
    said = [f"{floors} will {words[outcome]}: {shorten(with_rows(small))}{hint}"] * bool(
        floors and small
    )
    least = gates["min_class_rows"] or 0
    few = {label: rows for label, rows in test_rows.items() if rows < least}
    if few and not pooled:
        said.append(
            f"min_class_rows will fail: fewer than {least} test rows of {shorten(with_rows(few))}"
        )
    return "; ".join(said)


def promise_in_words(registry: Mapping[str, Any], rows: int) -> str:
    """Return that no threshold can be promised with so few validation rows, or ""."""
    if "target_precision" not in registry:
        return ""
    target = registry["target_precision"]
    least = least_rows(target, registry["guarantee"])
    return (
        f"none can be promised: a precision of {target:g} takes at least {least:,} validation "
        f"rows, and there are {rows:,}; a person will look at every line filed"
    ) * (rows < least)


def _check_model(
    train: dict[str, Any], data: dict[str, Any], report: dict[str, Any]
) -> dict[str, Any]:
    """Build the model just as a rank does; return its size, or add a fault to the report."""
    labels = report.get("labels") or ["one", "two"]  # any two do to look at the layers
    name, length = train["model"]["name"], data.get("max_length", 0)
    try:
        base, tokenizer = load_base(train["model"])
        prefix = train["model"].get("prefix")
        report["faults"] += check_length(length, tokenizer, name) if data else []
        model: Any = instantiate_model({**train["model"], "labels": labels}, tokenizer)
        if train.get("lora", {}).get("enable", True) and "lora" in train:
            model = apply_lora_adapters(model, train["lora"])
        sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
        pooling = train["model"].get("pooling") or "cls"
        settings = {"base": base, "prefix": prefix, "pooling": pooling, "labels": labels}
        settings["max_length"] = length
        if length <= tokenizer.model_max_length:  # else it has its fault
            report["faults"] += find_loading_faults(model, tokenizer, settings)
    except Exception as err:  # a folder that is no model fails in as many ways as there are files
        report["faults"] += _model_faults(err, name)
        return {}
    return {
        "base": {"revision": base.revision, "sha256": base.sha256},
        "parameters": sum(size for size, _ in sizes),
        "trainable_parameters": sum(size for size, trains in sizes if trains),
        "padding_token": tokenizer.pad_token,
    }


def _model_faults(err: Exception, name: str) -> list[str]:
    """Return an error as lines that start with their parameter; this project's own do already."""
    parts = [" ".join(part.split()) for part in re.split(r"\n(?=train\.)", str(err))]
    if parts[0].startswith("train."):
        return parts
    why = f"{type(err).__name__}: {' '.join(parts)}"
    return [
        f"train.model.name = {name}: can't be built as a classifier ({why}). "
        "Check the model's files and train.model.config."
    ]


def _training_faults(train: dict[str, Any]) -> list[str]:
    """Return the faults of `train.training`, one of each key."""
    if not {"training", "deepspeed"} <= train.keys():
        return []
    precision = _precision_faults(train["training"])
    named = tuple(fault.partition(" = ")[0] for fault in precision)
    others = [fault for fault in find_trainer_faults(train) if not fault.startswith(named or "-")]
    return precision + others


def _cache_faults(train: Mapping[str, Any], report: Mapping[str, Any]) -> list[str]:
    """Return the faults of folders outside the project that the run has to write to."""
    folders = {}
    if find_built(train, torch.cuda.device_count()):
        keep_operators_apart()
        folders["TORCH_EXTENSIONS_DIR"] = os.environ["TORCH_EXTENSIONS_DIR"]
    name = train.get("model", {}).get("name") or ""
    if "base" not in report and not (Path(name).is_dir() or name.startswith(PACKAGE_SCHEME)):
        folders["HF_HUB_CACHE"] = HF_HUB_CACHE  # a base that is there needs no writing
    return [
        f"{key} = {folder}: it can't be written to ({why}), and "
        f"{'DeepSpeed builds its operators' if key.startswith('TORCH') else 'the base is kept'} "
        "there. Set it to a folder that can."
        for key, folder in folders.items()
        if (why := why_not_writable(first_there(Path(folder))))
    ]


def _precision_faults(training: dict[str, Any]) -> list[str]:
    if training.get("fp16") and not torch.cuda.is_available():
        return [
            "train.training.fp16 = true: half precision needs a GPU, and none is visible. "
            "Set precision to bf16 or fp32."
        ]
    if training.get("bf16") and torch.cuda.is_available() and not torch.cuda.is_bf16_supported():
        name = torch.cuda.get_device_name()
        return [f"train.training.bf16 = true: {name} has no bf16. Set precision to fp16 or fp32."]
    return []


def _key_faults(registry: dict[str, Any]) -> list[str]:
    """Return the fault of a key that can't sign: better now than when the training is done."""
    if not registry.get("sign_key"):
        return []
    try:
        load_private_key(Path(registry["sign_key"]))
    except SignatureError as err:
        return [str(err)]
    return []


def main() -> None:
    """Check the parameters of a file and write the report."""
    guard_stage()
    parameters, report = map(Path, sys.argv[1:])
    found = check(yaml.safe_load(parameters.read_text(encoding="utf-8")))
    report.write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")
    end_stage()


if __name__ == "__main__":
    main()
