"""What can only be known with the data, the base model and torch at hand, before any rank starts.

`python -m account_tax.check PARAMETERS.yml REPORT.json` reads and splits the ledger, loads the base
model and puts the adapters on it, writes what it found, and leaves nothing else behind.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

from account_tax.pipelines.prepare.nodes import inputs_sha256, plan_data
from account_tax.pipelines.train.training_core import apply_lora_adapters, instantiate_model


def check(values: dict[str, Any]) -> dict[str, Any]:
    """Return faults and facts of the parameters `data` and `train`, either of which may be absent.

    Returns:
        `faults`, one line each; `gpus`, how many this process sees; and, as far as known, `labels`,
        `rows` by split, `source_sha256`, `inputs_sha256`, `trainable_parameters`, `parameters`.
    """
    report: dict[str, Any] = {"faults": [], "gpus": torch.cuda.device_count()}
    train, data = values.get("train", {}), values.get("data")
    model = train.get("model", {})
    if data is not None:
        plan = plan_data(data, model)
        report["faults"] += plan.faults
        report |= {"labels": plan.labels, "rows": plan.rows, "source_sha256": plan.source_sha256}
        if plan.source_sha256:
            report["inputs_sha256"] = inputs_sha256(data, model, plan.source_sha256)
    if model.get("name"):
        report |= _check_model(train, report)
    report["faults"] += _precision_faults(train.get("training", {}))
    return report


def _check_model(train: dict[str, Any], report: dict[str, Any]) -> dict[str, Any]:
    """Build the model just as a rank does; return its size, or add a fault to the report."""
    labels = report.get("labels") or ["one", "two"]  # any two do to look at the layers
    try:
        model = instantiate_model({**train["model"], "labels": labels}, _NoTokenizer())
        if train.get("lora", {}).get("enable", True) and "lora" in train:
            model = apply_lora_adapters(model, train["lora"])
    except ValueError as err:
        report["faults"].append(str(err))
        return {}
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters()]
    return {
        "parameters": sum(size for size, _ in sizes),
        "trainable_parameters": sum(size for size, trains in sizes if trains),
    }


class _NoTokenizer:
    """Stands for the tokenizer where only the model's layers matter."""

    pad_token_id = 0


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


def main() -> None:
    """Check the parameters of a file and write the report."""
    parameters, report = map(Path, sys.argv[1:])
    found = check(yaml.safe_load(parameters.read_text(encoding="utf-8")))
    report.write_text(json.dumps(found, ensure_ascii=False), encoding="utf-8")


if __name__ == "__main__":
    main()
