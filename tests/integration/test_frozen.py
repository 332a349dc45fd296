"""Layers that are left out change no number, in real ranks, after a resume and at a cold load."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from account_tax.model.classifier import read_classifier
from account_tax.model.probe_texts import PROBE_TEXTS
from account_tax.storage.files import read_json
from benchmarks.loss_invariance import largest_difference
from tests.ranks import train_cases

pytestmark = pytest.mark.integration

TOLERANCE = 1e-5
RESUMED = 4  # of nine steps, in the second of three epochs
BASE = {
    "lora.layers_to_transform": [1],
    "training.max_steps": 9,
    "training.learning_rate": 1.0e-2,
    "training.eval_strategy": "steps",
    "training.eval_steps": 4,
    "training.save_strategy": "steps",
    "training.save_steps": 4,
}


def case(name: str, ranks: int = 1, stage: int = 0, **more) -> dict:
    changes = {
        "deepspeed.train_micro_batch_size_per_gpu": 16 // ranks,
        "deepspeed.zero_optimization": {
            "stage": stage,
            "stage3_gather_16bit_weights_on_model_save": True,
        },
        **BASE,
    }
    return {"name": name, "changes": changes | more.pop("changes", {}), **more}


CASES = {
    1: [
        case("left out"),
        case("whole", whole=True),
        case("again"),
        case("resumed", resume=(0, RESUMED)),
        case("dropout", changes={"model.config": {"hidden_dropout_prob": 0.3}}),
        case("bf16", changes={"training.bf16": True}),
        case("bf16, whole", whole=True, changes={"training.bf16": True}),
    ],
    2: [case("two ranks", 2), case("two ranks, ZeRO 2", 2, 2), case("two ranks, ZeRO 3", 2, 3)],
}


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> dict[str, dict]:
    work = tmp_path_factory.mktemp("frozen")
    found = [
        each
        for ranks, cases in CASES.items()
        for each in train_cases(cases, ranks, work, {"train": 37, "validation": 11})
    ]
    for each in found:
        for key in ("loss", "grad_norm", "eval_loss"):
            each[key] = [entry[key] for entry in each["history"] if key in entry]
        each["left_out"] = each["metrics"]["train/cached_layers"]
    return {each["name"]: each for each in found}


def test_layers_are_left_out_but_under_zero_3_which_shards_them(trained):
    whole = {"whole", "dropout", "bf16, whole", "two ranks, ZeRO 3"}
    assert {name for name, each in trained.items() if not each["left_out"]} == whole
    assert all(len(set(each["loss"])) == 9 for each in trained.values())  # they learn


def test_dropout_is_on_in_training_before_and_after_an_evaluation(trained):
    without, with_it = trained["whole"]["loss"], trained["dropout"]["loss"]
    assert all(a != b for a, b in zip(without, with_it, strict=True))


@pytest.mark.parametrize("curve", ["loss", "grad_norm", "eval_loss"])
@pytest.mark.parametrize("name", ["left out", *(each["name"] for each in CASES[2])])
def test_no_number_is_another_for_it(trained, name, curve):
    assert largest_difference(trained[name][curve], trained["whole"][curve]) < TOLERANCE


def test_bf16_states_are_those_the_layers_compute(trained):
    bits = trained["bf16, whole"]
    assert largest_difference(trained["bf16"]["loss"], bits["loss"]) < 2e-2  # bf16 has 8 bits


@pytest.mark.parametrize("name", ["again", "resumed"])
def test_a_rerun_and_a_resumed_run_have_the_same_bits(trained, name):
    assert trained[name]["loss"] == trained["left out"]["loss"]
    adapters = [
        (Path(trained[each]["adapter"]) / "adapter_model.safetensors").read_bytes()
        for each in (name, "left out")
    ]
    assert adapters[0] == adapters[1]


@pytest.mark.parametrize("name", ["left out", "two ranks"])
def test_the_adapter_gives_the_trainers_answers_when_it_is_loaded(trained, name):
    folder = Path(trained[name]["adapter"])
    loaded = read_classifier(folder)
    loaded.settings["max_length"] = 64
    expected = np.array(read_json(folder / "probe.json")["logits"])
    np.testing.assert_allclose(loaded.logits(PROBE_TEXTS), expected, atol=1e-5)
