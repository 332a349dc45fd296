"""Every way a training may be set up, in real ranks: it ends, and its adapter answers as it did."""

from __future__ import annotations

import hashlib
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from account_tax.model.classifier import read_classifier
from account_tax.storage.checkpoints import list_checkpoints
from tests.conftest import make_splits
from tests.ranks import train_cases

pytestmark = pytest.mark.integration

ROWS = {"train": 40, "validation": 17}
# Of half precision's logits, relative to the largest one: bf16 keeps 8 bits.
HALF_TOLERANCE = 0.05


def case(stage: int = 0, **changes) -> dict:
    words = ", ".join(f"{key}={value}" for key, value in changes.items())
    zero = {"stage": stage, "stage3_gather_16bit_weights_on_model_save": True}
    return {
        "name": f"ZeRO {stage}, {words or 'plain'}",
        "changes": {"deepspeed.zero_optimization": zero, "training.num_train_epochs": 2, **changes},
    }


BF16, FULL = {"training.bf16": True}, {"lora.enable": False}
AVERAGED, LAST = {"averaging.enable": True}, {"training.load_best_model_at_end": False}
FAST = {"training.learning_rate": 1e-2}  # overshoots, so that the mean is better
CASES = [
    *(case(stage, **precision, **weights)
      for stage in (0, 1, 2, 3)
      for precision in ({}, BF16)
      for weights in ({}, FULL)),
    *(case(stage, **{"training.gradient_checkpointing": True, "model.pooling": pooling})
      for stage in (0, 3)
      for pooling in ("cls", "mean")),
    case(0, **FULL, **{"model.pooling": "mean"}),
    case(2, **{"loss.class_weights": "balanced", "metrics.average": "weighted",
               "training.label_smoothing_factor": 0.1}),
    case(0, **{"deepspeed.wall_clock_breakdown": True}),
    case(0, **{"loss.class_weights": "sqrt"}),
    *(case(stage, **precision, **{"training.lr_scheduler_type": "polynomial"})
      for stage, precision in ((0, BF16), (2, {}), (3, {}))),
    *(case(stage, **changes, **AVERAGED)
      for stage, changes in ((0, BF16), (2, FULL), (3, {}), (3, FULL | BF16))),
    case(0, **LAST), case(0, **LAST, **AVERAGED), case(3, **LAST, **AVERAGED),
    case(0, **LAST, **FAST), case(0, **LAST, **FAST, **AVERAGED),
    case(3, **LAST, **FAST, **AVERAGED),
    case(0),  # once more: the same bytes
    # The shape of recipes/xlm-roberta-large-zero3.yml, and a decoder.
    *(case(3, **{"lora.target_modules": "all-linear"}) | {"family": family}
      for family in ("xlm-roberta", "llama")),
]  # fmt: skip
# One process can't go back: what ZeRO-3 hooks into torch stays. A run has one training.
CASES.sort(key=lambda each: each["changes"]["deepspeed.zero_optimization"]["stage"] == 3)


@pytest.fixture(scope="module", params=[1, 2], ids=["1 rank", "2 ranks"])
def results(request, tmp_path_factory):
    work = tmp_path_factory.mktemp("matrix")
    return train_cases(CASES, request.param, work, ROWS)


def test_every_case_ends_with_its_metrics(results):
    assert len(results) == len(CASES)
    for result in results:
        for key in ("train/loss", "eval/loss", "eval/f1", "speed/tokens_per_sec"):
            assert math.isfinite(result["metrics"][key]), (result["name"], key)


def test_a_fresh_load_repeats_the_trainers_logits(results):
    for result in results:
        probe = json.loads((Path(result["adapter"]) / "probe.json").read_text())
        trained = np.array(probe["logits"])
        loaded = read_classifier(Path(result["adapter"]))
        ids = loaded.tokenizer(probe["texts"], truncation=True)["input_ids"]
        difference = np.abs(loaded.logits_of_ids(ids) - trained).max()
        half = probe["precision"] != "fp32"
        allowed = HALF_TOLERANCE * np.abs(trained).max() if half else 1e-5
        assert difference <= allowed, (result["name"], difference)


def test_eval_loss_is_the_cross_entropy_of_the_logits(results):
    validation = make_splits(ROWS)["validation"]
    labels = torch.tensor(validation["labels"][:])
    for result in results:
        if result["changes"].get("training.bf16"):
            continue
        logits = read_classifier(Path(result["adapter"])).logits_of_ids(validation["input_ids"][:])
        by_hand = (
            -torch.from_numpy(logits).log_softmax(-1)[torch.arange(len(labels)), labels].mean()
        )
        assert result["metrics"]["eval/loss"] == pytest.approx(by_hand.item(), rel=1e-5)


def test_the_same_seed_gives_the_same_adapter(results):
    first, again = (result for result in results if result["name"] == "ZeRO 0, plain")
    digests = [
        hashlib.sha256((Path(r["adapter"]) / "adapter_model.safetensors").read_bytes()).hexdigest()
        for r in (first, again)
    ]
    assert digests[0] == digests[1]


@pytest.mark.parametrize("rate", [None, 1e-2])
def test_the_better_of_mean_and_weights_is_what_is_saved(results, rate):
    plain, *averaged = (
        result
        for result in results
        if set(LAST) <= set(result["changes"])
        and result["changes"].get("training.learning_rate") == rate
    )
    second, first = (
        load_file(folder / "adapter_model.safetensors")
        for folder in list_checkpoints(Path(plain["adapter"]).parent / "checkpoints")
    )
    means = {name: (weight + 2 * second[name]) / 3 for name, weight in first.items()}
    assert len(averaged) == 2
    for result in averaged:
        losses = [each["metrics"]["eval/loss"] for each in (result, plain)]
        better = losses[0] < losses[1] - 1e-6  # else the mean began anew
        assert better or not rate, losses
        saved = load_file(Path(result["adapter"]) / "adapter_model.safetensors")
        for name, expected in (means if better else second).items():
            torch.testing.assert_close(saved[name], expected, msg=f"{result['name']}: {name}")


def test_the_best_checkpoint_is_what_is_saved(results):
    for result in results:
        if set(LAST) <= set(result["changes"]):
            continue
        scores = [entry["eval_f1"] for entry in result["history"] if "eval_f1" in entry]
        assert result["metrics"]["eval/f1"] == pytest.approx(max(scores))
