"""Evidence as a review gathers it: drawn answers on 120 rows of three accounts."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from mlflow.entities.model_registry import ModelVersion

from account_tax.model.classifier import LoadedClassifier
from account_tax.parameters.config import resolve
from account_tax.registry.record import Record
from account_tax.review.evidence import Contender, Evidence, Scored
from account_tax.review.findings import find
from tests.test_mlproject import REPOSITORY

LABELS = [
    "접대비",
    "통신비",
    "fees & <tax> | [x](javascript:y) `",
]  # what HTML and Markdown would stumble over
ROWS = 120


def make_record(lora_r: int, **changes) -> Record:
    counts = {"train": (960, "a"), "validation": (120, "b"), "test": (ROWS, "c")}
    splits = {
        name: {"rows": rows, "sha256": 64 * digit, "classes": dict.fromkeys(LABELS, rows // 3)}
        for name, (rows, digit) in counts.items()
    }
    dataset = {
        "source_sha256": "d" * 64,
        "rows": {"read": 1300, "kept": 1200},
        "labels": "strict",
        "text_columns": ["text"],
        "splits": splits,
    }
    given = {
        "parameters": {
            "data": {"source": "s3://someone:secret@books/ledger.csv"},
            "train": {"lora": {"r": lora_r, "alpha": 8}},
            "artifacts_root": f"data/06_models/run{lora_r}",
        },
        "dataset": dataset,
        "environment": {
            "lock_sha256": "e" * 64,
            "differences": [],
            "python": "3.11.9",
            "cpu": "a CPU",
            "gpus": [],
            "packages": {"torch": "2.13.0", "numpy": f"2.{lora_r}"},
        },
        "tags": {"commit": "f" * 40, "dirty": "false"},
        "metrics": {"train/runtime_seconds": 61.0},
        "seconds": 90.5,
    }
    return Record(**given | changes)


def make_contender(number: int, record: Record, labels: list[str] = LABELS) -> Contender:
    settings = {
        "labels": labels,
        "text_columns": ["text"],
        "separator": " | ",
        "max_length": 64,
        "base": {"name": "package://tiny/model", "sha256": "9" * 64},
        "calibration": {"temperature": 1.25, "threshold": 0.7, "target_precision": 0.9},
    }
    tags = {"verified": "true", "content_sha256": "7" * 64, "test/accuracy": "0.9"}
    version = ModelVersion(
        name="account-tax", version=number, creation_timestamp=0, run_id="b" * 32,
        tags=[SimpleNamespace(key=key, value=value) for key, value in tags.items()],
    )  # fmt: skip
    tokenizer: Any = None  # nothing is tokenized here
    return Contender(
        version, LoadedClassifier(torch.nn.Identity(), tokenizer, settings), record, 1_300_000
    )


def make_answers(accuracy: float, seed: int) -> Scored:
    random = np.random.RandomState(seed)
    truth = np.arange(ROWS) % len(LABELS)
    wrong = random.rand(ROWS) > accuracy
    predicted = np.where(wrong, (truth + random.randint(1, 3, ROWS)) % 3, truth)
    return Scored(predicted, np.where(wrong, 0.5, 0.8) + 0.15 * random.rand(ROWS), 0.4, 512.0)


@pytest.fixture
def evidence() -> Evidence:
    truth = np.arange(ROWS) % len(LABELS)
    return Evidence(
        names=LABELS,
        truth=truth,
        row_ids=1000 + np.arange(ROWS),
        challenger=make_contender(3, make_record(16)),
        champion=make_contender(2, make_record(8)),
        champion_note="",
        answers={"challenger": make_answers(0.9, 1), "champion": make_answers(0.8, 2)},
        baselines={"majority": np.zeros(ROWS, dtype=int), "tfidf": make_answers(0.7, 3).predicted},
        slices={"region": pd.Series(["seoul", "busan"] * (ROWS // 2))},
        unknown_rows=0,
        leaked_rows=0,
        leak_note="",
        train_rows=960,
        data={"source": "s3://someone:secret@books/ledger.csv"},
    )


@pytest.fixture
def first_evidence(evidence) -> Evidence:
    """A version that has no champion to be compared with."""
    answers = {"challenger": evidence.answers["challenger"]}
    note = "no version has the alias champion yet"
    return replace(evidence, champion=None, champion_note=note, answers=answers, leaked_rows=None)


@pytest.fixture(scope="session")
def gates() -> dict:
    return resolve(REPOSITORY, []).values["registry"]["gates"]


RUN = {"run_id": "0123456789abcdef" * 2, "date": "2026-11-24 09:30 UTC"}


@pytest.fixture
def findings(evidence, gates) -> dict:
    return find(evidence, gates) | RUN


@pytest.fixture
def first_findings(first_evidence, gates) -> dict:
    return find(first_evidence, gates) | RUN
