"""What training leaves behind: the classifier, the best model, the marker."""

from __future__ import annotations

import json
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedTokenizerBase, Trainer, TrainingArguments

from account_tax.model.classifier import SETTINGS_FILE, BaseReference, tokenizer_files
from account_tax.model.probe_texts import PROBE_TEXTS
from account_tax.processes.ranks import is_rank0
from account_tax.storage.checkpoints import require_whole, step_of
from account_tax.storage.files import sha256_of, write_json
from account_tax.storage.names import (
    ADAPTER_FOLDER,
    BEST_FOLDER,
    LOG_HISTORY_FILE,
    MARKER_FILE,
    MODEL_METADATA_FILE,
    PROBE_FILE,
)

from .batches import Rows
from .trainer import LedgerTrainer


def answer_probe(trainer: Trainer, tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    """Return the trainer's own logits for the made-up lines; every rank takes part."""
    input_ids = tokenizer(PROBE_TEXTS, truncation=True)["input_ids"]
    rows = Rows.from_lists(input_ids, [0] * len(input_ids))
    logits = trainer.predict(rows, metric_key_prefix="probe").predictions
    return {
        "texts": PROBE_TEXTS,
        "precision": precision_of(trainer.args),
        "logits": np.asarray(logits, dtype=np.float32).tolist(),
    }


def precision_of(arguments: TrainingArguments) -> str:
    """Return the precision that a training computes in: fp32, bf16 or fp16."""
    return "bf16" if arguments.bf16 else "fp16" if arguments.fp16 else "fp32"


def save_result(
    trainer: Any,
    base: BaseReference,
    root: Path,
    settings: dict[str, Any],
    probe: dict[str, Any],
    metrics: dict[str, Any],
) -> None:
    """Save adapter or model, label maps and history; ranks gather the weights, rank 0 writes."""
    folder = root / ADAPTER_FOLDER
    if is_rank0():
        shutil.rmtree(folder, ignore_errors=True)  # an earlier training's, manifest and all
    trainer.save_model(str(folder))  # all ranks: ZeRO-3 gathers the weights
    if not is_rank0():
        return
    complete_folder(folder, trainer.model, base, settings)
    write_json(folder / PROBE_FILE, probe)
    write_json(root / LOG_HISTORY_FILE, trainer.state.log_history)
    _keep_best(trainer, root, settings)
    write_json(
        root / MARKER_FILE,
        {
            "global_step": trainer.state.global_step,
            "best_checkpoint_metric": trainer.state.best_metric,
            "weights": _weights_of(folder),
            "finished": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "metrics": metrics,
        },
    )


def complete_folder(
    folder: Path, model: Any, base: BaseReference, settings: dict[str, Any]
) -> None:
    """Make of a saved model what `read_classifier` takes on any machine."""
    (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle: never shipped
    (folder / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
    adapter = folder / "adapter_config.json"
    if adapter.exists():
        for file in tokenizer_files(folder):
            file.unlink()  # the base's, pinned with it; megabytes where it knows many languages
        model.config.save_pretrained(folder)
        write_json(adapter, _portable_adapter_config(json.loads(adapter.read_text()), base))
    write_json(folder / SETTINGS_FILE, settings)


def _keep_best(trainer: LedgerTrainer, root: Path, settings: dict[str, Any]) -> None:
    """Rank 0 only: copy the best model, which is the result unless load_best_model_at_end is off.

    Beside it goes model_metadata.json. Where no checkpoint is the best, nothing is written.
    """
    best, source = root / BEST_FOLDER, trainer.state.best_model_checkpoint
    shutil.rmtree(best, ignore_errors=True)
    if source is None:
        return
    shutil.copytree(root / ADAPTER_FOLDER, best)
    if not trainer.args.load_best_model_at_end:
        require_whole(Path(source))
        (best / PROBE_FILE).unlink()  # answers of the last weights
        for name in _weights_of(best):
            shutil.copy(Path(source) / name, best)
    metadata = {
        **trainer.facts,
        **settings,
        "global_step": step_of(Path(source)),
        "metric": trainer.args.metric_for_best_model,
        "best_metric": trainer.state.best_metric,
        "world_size": trainer.args.world_size,
        "weights": _weights_of(best),
    }
    write_json(root / MODEL_METADATA_FILE, metadata)


def _weights_of(folder: Path) -> dict[str, str]:
    return {file.name: sha256_of(file) for file in sorted(folder.glob("*.safetensors"))}


def _portable_adapter_config(config: dict[str, Any], base: BaseReference) -> dict[str, Any]:
    """Return PEFT's configuration without this machine's path, in an order that repeats."""
    config |= {"base_model_name_or_path": base.name, "revision": base.revision}
    for key in ("target_modules", "modules_to_save"):  # sets, listed in an order that changes
        if isinstance(config[key], list):
            config[key] = sorted(set(config[key]))
    return dict(sorted(config.items()))
