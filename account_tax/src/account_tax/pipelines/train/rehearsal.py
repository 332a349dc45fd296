"""What a training does first and last, done once before any rank starts: Trainer's parts, and back.

Whatever fails here would fail in a rank, or after the training, at the cold load.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.state import AcceleratorState
from torch.utils.checkpoint import checkpoint
from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments

from account_tax.model.classifier import (
    BaseReference,
    LoadedClassifier,
    read_classifier,
)
from account_tax.model.probe_texts import PROBE_TEXTS
from account_tax.registry.verify import FP32_TOLERANCE

from .batches import Rows
from .saving import complete_folder
from .training_core import compute_metrics, training_fields

# Relative to the largest logit, and no more than the cold check allows. Padding and another batch
# were measured to move it by 3e-6 at most; weights that were not saved move it by far more.
TOLERANCE = FP32_TOLERANCE
# Of the noise on what trains: LoRA begins at nought, which a lost adapter would repeat.
NOISE = 0.02


# --- the classifier, saved and loaded back --------------------------------------------------------


def find_loading_faults(
    model: Any, tokenizer: PreTrainedTokenizerBase, settings: dict[str, Any]
) -> list[str]:
    """Return what keeps a built classifier from answering, or from answering so when loaded back.

    Args:
        model: With its adapters; the weights that train are changed.
        tokenizer: The base's.
        settings: What classifier.json is to hold, and max_length, 0 for none.
    """
    base, length = settings["base"], settings["max_length"]
    name = f"train.model.name = {base.name}"
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter), alpha=NOISE)
    built = LoadedClassifier(model.eval(), tokenizer, settings)
    lines = _token_ids(tokenizer, PROBE_TEXTS[:2], length)
    try:
        expected = built.logits_of_ids(lines)
    except Exception as err:  # whatever a network may raise
        return [f"{name}: it can't answer padded lines ({_in_words(err)}). Take another base."]
    if not np.isfinite(expected).all() and hasattr(model, "peft_config"):
        lora = model.peft_config["default"]
        scales = f"train.lora.alpha = {lora.lora_alpha}, alpha_pattern = {lora.alpha_pattern or {}}"
        return [f"{scales}: the adapters' part is so large that logits are no numbers. Lower them."]
    faults = _length_faults(built, length)
    with tempfile.TemporaryDirectory() as scratch:
        loaded = _save_and_load(built, base, Path(scratch))
        found = np.concatenate([loaded.logits_of_ids([line]) for line in lines])
    largest = float(np.abs(found - expected).max())
    if not largest <= TOLERANCE * max(1.0, float(np.abs(expected).max())):  # also true of NaN
        faults.append(
            f"{name}: saved and loaded back, each line alone instead of padded, its logits differ "
            f"by {largest:.3g}: what is trained could not be registered. Take another base, or "
            "plain train.lora settings."
        )
    return faults


def _save_and_load(built: LoadedClassifier, base: BaseReference, folder: Path) -> LoadedClassifier:
    """Return the classifier that a fresh process would load; the built one is gone by then."""
    model: Any = built.model
    model.save_pretrained(folder)
    built.tokenizer.save_pretrained(folder)  # as Trainer does
    complete_folder(folder, model, base, {**built.settings, "base": base.to_dict()})
    model.to("meta")
    return read_classifier(folder, tokenizer=built.tokenizer)


def _length_faults(built: LoadedClassifier, length: int) -> list[str]:
    """Return the fault of lines longer than the base's positions, whatever its tokenizer says."""
    repeats = -(-length // len(PROBE_TEXTS))  # a line has more than one token
    longest = _token_ids(built.tokenizer, [" ".join(PROBE_TEXTS * repeats)], length)
    try:
        built.logits_of_ids(longest if length else [])
    except Exception as err:  # an index in one architecture, a shape in another
        limit = getattr(built.model.config, "max_position_embeddings", None)
        return [
            f"data.max_length = {length}: {built.settings['base'].name} can't answer a line of so "
            f"many tokens ({_in_words(err)}); its max_position_embeddings is {limit}. Set it lower."
        ]
    return []


def _token_ids(
    tokenizer: PreTrainedTokenizerBase, texts: list[str], length: int
) -> list[list[int]]:
    options = {"truncation": True, "max_length": length} if length else {}
    return tokenizer(texts, verbose=False, **options)["input_ids"]


# --- Trainer's parts ------------------------------------------------------------------------------


def find_trainer_faults(train: dict[str, Any]) -> list[str]:
    """Return every value of `train.training` with which Trainer's parts can't be made, and why."""
    train, faults = {**train, "training": dict(train["training"])}, []
    while (why := _why_not_made(train)) is not None:
        key = _key_to_blame(train, why)
        value = train["training"].pop(key, None)
        faults.append(f"train.training.{key} = {value}: {why}")
        if value is None:
            break
    return faults


class _Nothing(torch.nn.Module):
    """A classifier of two labels that knows nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.head = torch.nn.Linear(2, 2)

    def forward(self, input_ids: torch.Tensor, labels: torch.Tensor) -> dict[str, torch.Tensor]:
        logits = self.head(torch.nn.functional.one_hot(input_ids[:, 0], 2).float())  # (B, 2)
        return {"loss": torch.nn.functional.cross_entropy(logits, labels), "logits": logits}


def _why_not_made(train: dict[str, Any]) -> str | None:
    """Make arguments, optimizer, scheduler and loaders, and evaluate; return what went wrong."""
    rows = Rows.from_lists([[0], [0]], [0, 1])
    AcceleratorState._reset_state(reset_partial_state=True)  # of the try before
    with tempfile.TemporaryDirectory() as scratch:
        try:
            # These two would want a rank here; DeepSpeed's part is checked in the parameters.
            own = {"deepspeed": None, "ddp_backend": None, "output_dir": scratch}
            own["disable_tqdm"] = True  # nothing of this is shown
            own["label_smoothing_factor"] = 0.0  # Trainer's own way to it is not used here
            arguments = TrainingArguments(**{**training_fields(train, scratch), **own})
            trainer = Trainer(
                _Nothing(), arguments, train_dataset=rows, eval_dataset=rows,
                compute_metrics=compute_metrics,
            )  # fmt: skip
            given: Any = arguments.gradient_checkpointing_kwargs
            if given:
                checkpoint(torch.sin, torch.ones(1), **{"use_reentrant": False, **given})
            trainer.create_optimizer_and_scheduler(num_training_steps=10)
            trainer.get_train_dataloader()
            trainer.evaluation_loop(trainer.get_eval_dataloader(), "rehearsal")
        except Exception as err:  # as many kinds as there are fields
            return _in_words(err)
    return None


def _key_to_blame(train: dict[str, Any], why: str) -> str:
    """Return the key without which all is well; else one without which something else is wrong.

    Of these one that the error names, or the last: what a user adds stands behind the defaults.
    """
    others = {
        key: _why_not_made(
            {**train, "training": {k: v for k, v in train["training"].items() if k != key}}
        )
        for key in train["training"]
    }
    changing = [key for key, other in others.items() if other != why]
    ranked = sorted(changing, key=lambda key: (others[key] is None, key in why))
    return ranked[-1] if ranked else "*"


def _in_words(err: Exception) -> str:
    return f"{type(err).__name__}: {' '.join(str(err).split())}"
