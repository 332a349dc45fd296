"""Small real things every test can have: a two-layer base model and tokenized splits."""

from __future__ import annotations

import functools
import gc
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import mlflow
import pytest
from mlflow.store.db.utils import _initialize_tables
from sqlalchemy import Engine, create_engine, event

from account_tax.processes.identity import identify, state_of

WORDS = (
    *("coffee", "lunch", "taxi", "hotel", "rent", "office", "paper", "stamp"),
    *("fuel", "phone", "water", "power", "tax", "fee", "toner"),
)


def pytest_configure(config: pytest.Config) -> None:
    """Let the commands of all workers' tests share their imports: see warm_python.py."""
    if not hasattr(config, "workerinput") and "WARM_PYTHON" not in os.environ:
        place = os.environ["WARM_PYTHON"] = tempfile.mkdtemp(prefix="warm-")
        config.add_cleanup(lambda: shutil.rmtree(place))  # whose end the warm ones wait for
        # As the stages of a run have it: one warm Python serves them and the tests' own processes.
        os.environ |= {"HF_HUB_DISABLE_TELEMETRY": "1", "MLFLOW_DISABLE_TELEMETRY": "true"}
        places = [str(Path(__file__).parent / "warm"), os.environ.get("PYTHONPATH")]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, places))


def pytest_collection_finish() -> None:
    """Have garbage be looked for among what tests make alone: Trainer looks at each start."""
    gc.collect()
    gc.freeze()


@event.listens_for(Engine, "connect")
def _spare_time(connection: Any, _: Any) -> None:
    """Have a store of this process make its tables, and write, faster.

    MLflow's tables take a second each time, so the first store's are copied, and SQLite's fsync a
    quarter of the time of tests that write: no machine dies here.
    """
    if not isinstance(connection, sqlite3.Connection):
        return
    connection.execute("PRAGMA synchronous=OFF")
    file = Path(connection.execute("PRAGMA database_list").fetchone()[2])
    if file.name == "mlflow.db" and not file.stat().st_size:
        _tables().backup(connection)


@functools.cache
def _tables() -> sqlite3.Connection:
    """Return a database with MLflow's tables, and nothing in them."""
    with tempfile.TemporaryDirectory() as folder:
        engine = create_engine(f"sqlite:///{folder}/tables.db")
        _initialize_tables(engine)
        engine.dispose()
        tables = sqlite3.connect(":memory:", check_same_thread=False)
        with closing(sqlite3.connect(f"{folder}/tables.db")) as made:
            made.backup(tables)
    return tables


def make_tiny_base(folder: Path, seed: int = 0) -> Path:
    """Write a two-layer BERT with a fifteen-word vocabulary, random weights."""
    import torch
    from transformers import BertConfig, BertForMaskedLM, BertTokenizer

    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    (folder / "vocab.txt").write_text("\n".join(vocabulary) + "\n", encoding="utf-8")
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=len(vocabulary),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=64,
        hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0,
    )
    BertForMaskedLM(config).bert.save_pretrained(folder)
    tokenizer = BertTokenizer(str(folder / "vocab.txt"))
    tokenizer.model_max_length = 64
    tokenizer.save_pretrained(folder)
    return folder


def make_splits(rows: dict[str, int], num_labels: int = 3, seed: int = 0):
    """Return tokenized splits of random rows, 3 to 12 tokens, in the layout `prepare` leaves."""
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Sequence, Value

    features = Features(
        {
            "input_ids": Sequence(Value("int32")),
            "attention_mask": Sequence(Value("int8")),
            "labels": ClassLabel(names=[f"account-{index}" for index in range(num_labels)]),
            "row_id": Value("int64"),
            "length": Value("int32"),
        }
    )
    draw = random.Random(seed)
    splits = {}
    for name, count in rows.items():
        ids = [
            [2, *(draw.randrange(5, 5 + len(WORDS)) for _ in range(draw.randrange(1, 11))), 3]
            for _ in range(count)
        ]
        splits[name] = Dataset.from_dict(
            {
                "input_ids": ids,
                "attention_mask": [[1] * len(row) for row in ids],
                "labels": [index % num_labels for index in range(count)],
                "row_id": list(range(count)),
                "length": [len(row) for row in ids],
            },
            features=features,
        )
    return DatasetDict(splits)


def train_params(base: Path | str, **changes) -> dict:
    """Return a small `train` section; `changes` replace values by dotted name."""
    params = {
        "model": {"name": str(base), "pooling": "cls"},
        "deepspeed": {
            "train_micro_batch_size_per_gpu": 8,
            "gradient_accumulation_steps": 1,
            "zero_optimization": {"stage": 0},
            "gradient_clipping": 1.0,
        },
        "lora": {
            "enable": True,
            "r": 4,
            "alpha": 8,
            "target_modules": ["query", "value"],
            "dropout": 0.0,
            "bias": "none",
            "task_type": "SEQ_CLS",
        },
        "averaging": {"enable": False},
        "training": {
            "num_train_epochs": 1,
            "max_steps": None,
            "eval_strategy": "epoch",
            "save_strategy": "epoch",
            "logging_steps": 1,
            "learning_rate": 1.0e-3,
            "warmup_ratio": 0.0,
            "seed": 42,
            "report_to": ["mlflow"],
            "load_best_model_at_end": True,
            "metric_for_best_model": "f1",
            "greater_is_better": True,
            "per_device_eval_batch_size": 16,
        },
        "metrics": {"average": "macro"},
        "loss": {"class_weights": "none"},
    }
    for dotted, value in changes.items():
        *path, key = dotted.split(".")
        node = params
        for name in path:
            node = node.setdefault(name, {})
        node[key] = value
    return params


@pytest.fixture(scope="session")
def dead() -> str:
    """The identity of a process of this host that has ended."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        identity = identify(process.pid)
    assert state_of(identity) == "gone"
    return identity


@pytest.fixture(scope="session")
def tiny_base(tmp_path_factory) -> Path:
    return make_tiny_base(tmp_path_factory.mktemp("base"))


@pytest.fixture(autouse=True)
def _mlflow_as_found():
    """End open runs, and forget the store a test or a command set for the whole process.

    A store set by `mlflow.set_tracking_uri` goes before MLFLOW_TRACKING_URI, which the next test
    sets, and MLflow's registry asks that one for a version's model whichever client it serves.
    """
    yield
    while mlflow.active_run():
        mlflow.end_run()
    mlflow.set_tracking_uri(None)  # type: ignore[arg-type]  # None unsets it, as MLflow's own does
