"""A run that was interrupted goes on, and ends with the bytes it would have had anyway."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

from tests.ranks import train_cases

pytestmark = pytest.mark.integration

ADAPTER = "adapter_model.safetensors"
ROWS = {"train": 48, "validation": 17}
# Dropout draws from every random number generator; intervals that share no factor with the epoch.
RESUMABLE = {
    "model.config": {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1},
    "lora.dropout": 0.1,
    "training.num_train_epochs": 3,
    "training.eval_strategy": "steps",
    "training.eval_steps": 2,
    "training.save_strategy": "steps",
    "training.save_steps": 2,
    "training.logging_steps": 3,
    "training.learning_rate": 1e-2,
}
TIMES = ("runtime", "per_second")


def digest(folder: str | Path) -> str:
    return hashlib.sha256((Path(folder) / ADAPTER).read_bytes()).hexdigest()


def timeless(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in entry.items() if not key.endswith(TIMES)} for entry in history
    ]


# --- every checkpoint of a training ---------------------------------------------------------------


def case(stage: int, **changes: Any) -> dict[str, Any]:
    zero = {"deepspeed.zero_optimization": {"stage": stage}}
    return {"name": f"ZeRO {stage}, {changes}", "changes": RESUMABLE | zero | changes}


def resumed_at(number: int, of: dict[str, Any], step: int) -> dict[str, Any]:
    return of | {"resume": [number, step]}


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2])
def test_from_any_checkpoint_the_same_adapter_and_history(world_size, tmp_path):
    steps = 18 // world_size
    whole = [
        case(0),
        case(2),
        case(1, **{"training.bf16": True}),
        case(2, **{"lora.enable": False, "training.eval_strategy": "epoch",
                   "training.load_best_model_at_end": False}),
        case(0, **{"training.train_sampling_strategy": "group_by_length",
                   "training.dataloader_num_workers": 1}),
        case(2, **{"training.max_steps": 4, "training.eval_strategy": "epoch",
                   "training.load_best_model_at_end": False}),
    ]  # fmt: skip
    again = [
        resumed_at(number, each, step)
        for number, each in enumerate(whole)
        for step in range(2, 1 + each["changes"].get("training.max_steps", steps), 2)
    ]
    results = train_cases([*whole, *again], world_size, tmp_path, ROWS)
    for result in results[len(whole) :]:
        number, step = result["resume"]
        first = results[number]
        name = "model.safetensors" if "lora.enable" in result["changes"] else ADAPTER
        same = [(Path(each["adapter"]) / name).read_bytes() for each in (first, result)]
        assert same[0] == same[1], (result["name"], step)
        assert timeless(result["history"]) == timeless(first["history"]), (result["name"], step)
        for key in ("train/loss", "eval/loss", "train/global_step"):
            assert result["metrics"][key] == first["metrics"][key], (result["name"], step, key)
