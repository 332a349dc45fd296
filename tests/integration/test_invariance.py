"""The loss is the loss: one global batch of 16 rows, split in every way, in real ranks."""

from __future__ import annotations

import pytest

from benchmarks.loss_invariance import SPLITS, STAGES, STEPS, largest_difference, measure
from tests.conftest import make_splits

pytestmark = pytest.mark.integration

# float32 sums in another order differ by some 1e-7.
TOLERANCE = 1e-5


@pytest.fixture(scope="module")
def cases(tmp_path_factory) -> list[dict]:
    return measure(tmp_path_factory.mktemp("invariance"), quick=True)


@pytest.fixture(scope="module")
def reference(cases) -> dict[str, dict]:
    """The case all others of a variant must repeat: 16 x 1 x 1 at ZeRO 0."""
    return {
        case["variant"]: case for case in cases if case["split"] == [16, 1, 1] and not case["stage"]
    }


def name(case: dict) -> str:
    return f"{case['variant']}, ZeRO {case['stage']}, {' x '.join(map(str, case['split']))}"


def test_every_split_and_stage_is_measured(cases, reference):
    assert set(reference) == {"lora", "full"}
    assert len({name(case) for case in cases}) == 2 * len(SPLITS) * len(STAGES)
    for case in cases:
        assert len(case["loss"]) == len(case["grad_norm"]) == STEPS, name(case)
        assert len(set(case["loss"])) == STEPS, name(case)  # it learns: equal curves mean something


@pytest.mark.parametrize("curve", ["loss", "grad_norm"])
def test_curve_does_not_depend_on_the_split(cases, reference, curve):
    differences = {
        name(case): largest_difference(case[curve], reference[case["variant"]][curve])
        for case in cases
    }
    assert {key: value for key, value in differences.items() if value > TOLERANCE} == {}


def test_eval_loss_does_not_depend_on_the_split(cases, reference):
    for case in cases:
        expected = reference[case["variant"]]["eval_loss"]
        assert case["eval_loss"] == pytest.approx(expected, rel=TOLERANCE), name(case)


def test_plain_trainer_scales_the_loss_by_the_split(tiny_base, tmp_path):
    """Why the project has a trainer of its own; once this fails, it may need none.

    transformers 5 multiplies an encoder classifier's loss by the accumulation steps.
    """
    whole, accumulated = (
        plain_trainer_losses(tiny_base, tmp_path / f"{micro}", micro, accumulation)
        for micro, accumulation, _ in SPLITS[:2]
    )
    assert largest_difference(accumulated, whole) > 0.1


def plain_trainer_losses(base, folder, micro: int, accumulation: int) -> list[float]:
    """Return the loss of each step of transformers' own Trainer on the same 37 rows."""
    from transformers import (
        AutoModelForSequenceClassification,
        AutoTokenizer,
        DataCollatorWithPadding,
        Trainer,
        TrainingArguments,
        set_seed,
    )

    set_seed(42)
    rows = make_splits({"train": 37})["train"]
    trainer = Trainer(
        model=AutoModelForSequenceClassification.from_pretrained(base, num_labels=3),
        args=TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=micro,
            gradient_accumulation_steps=accumulation,
            max_steps=2,
            learning_rate=1.0e-2,
            logging_steps=1,
            save_strategy="no",
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
        ),
        train_dataset=rows.select_columns(["input_ids", "attention_mask", "labels"]),
        data_collator=DataCollatorWithPadding(AutoTokenizer.from_pretrained(base)),
    )
    trainer.train()
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
