"""A registered version with random weights, ledgers in each format, and the command on them."""

import json
import random
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import mlflow
import pandas as pd
import pytest
from mlflow import MlflowClient

from account_tax.pipelines.register.nodes import complete_settings, write_manifest
from account_tax.pipelines.register.registry import Candidate, create_version
from account_tax.storage.names import VERIFIED_TAG
from tests.commands import as_words, call
from tests.conftest import WORDS
from tests.pipelines.register.conftest import DATASET_METADATA, LABELS, save_classifier

# As `mlflow run` hands it over: every name, and what is not given as none.
NOT_GIVEN = {
    "model": "models:/account-tax@challenger",
    **dict.fromkeys(
        ("input", "output", "top_k", "threshold", "on_error", "batch_rows", "overwrite"), "none"
    ),
    **dict.fromkeys(("errors", "encoding", "header_row", "sheet", "amount_column"), "none"),
    **dict.fromkeys(("allow_unapproved", "precision"), "none"),
}
# Sharp and high: the random logits lie within a tenth of each other.
CALIBRATION = {"temperature": 0.02, "target_precision": 0.9, "threshold": 0.8, "rows": 12}


@dataclass(frozen=True)
class Shop:
    """A project whose registry has one version."""

    folder: Path
    labels: list[str]

    @property
    def store(self) -> str:
        return f"sqlite:///{self.folder / 'mlflow.db'}"

    def model(self):
        return mlflow.pyfunc.load_model("models:/account-tax@challenger")


def register_random(folder: Path, base: Path) -> None:
    """Register a classifier with random weights; the cold check has tests of its own."""
    client = MlflowClient()
    experiment = client.create_experiment("account-tax", str(folder / "mlruns"))
    run = client.create_run(experiment)
    adapter = folder / "adapter"
    save_classifier(adapter, str(base), LABELS)
    metadata = {**DATASET_METADATA, "text_columns": ["memo", "merchant"]}
    complete_settings(adapter, metadata, CALIBRATION)
    manifest = write_manifest(adapter)
    candidate = Candidate(adapter, manifest["content_sha256"], {VERIFIED_TAG: "true"}, "")
    version = create_version(client, run.info.run_id, "account-tax", candidate)
    client.set_registered_model_alias("account-tax", "challenger", version.version)


@pytest.fixture(scope="session")
def shop(tmp_path_factory, tiny_base) -> Shop:
    folder = tmp_path_factory.mktemp("shop")
    shop = Shop(folder, LABELS)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", shop.store)
        mlflow.set_tracking_uri(shop.store)
        register_random(folder, tiny_base)
    return shop


@pytest.fixture
def file_with(shop, monkeypatch) -> Iterator[Callable[..., int]]:
    """Give the command in the shop: file_with(input=…, output=…) is its exit status."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", shop.store)
    before = {each: signal.getsignal(each) for each in (2, 15, 1)}
    yield lambda **words: call(
        *(shop.folder, "predict"),
        *as_words(NOT_GIVEN | {name: str(word) for name, word in words.items()}),
    )
    for each, handler in before.items():
        signal.signal(each, handler)


def make_rows(count: int) -> list[dict[str, str]]:
    """Return rows with awkward values in a column that no model reads."""
    draw = random.Random(1)
    awkward = ["0012", "1,5", 'a "b"', "two\nlines", "", " padded ", "한글", "'=1+1"]
    return [
        {
            "id": f"{number:05d}",
            "memo": " ".join(draw.choices(WORDS, k=draw.randint(1, 9))),
            "merchant": draw.choice(["taxi fee", "hotel, water", ""]),
            "note": awkward[number % len(awkward)],
        }
        for number in range(count)
    ]


def write_ledger(path: Path, rows: list[dict[str, str]]) -> Path:
    """Write rows by the ending of the file's name."""
    if path.suffix == ".jsonl":
        lines = [json.dumps(row, ensure_ascii=False) for row in rows]
        path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    elif path.suffix == ".parquet":
        pd.DataFrame(rows).to_parquet(path, row_group_size=13)
    else:
        pd.DataFrame(rows).to_csv(path, index=False, lineterminator="\n")
    return path


def read_ledger(path: Path) -> pd.DataFrame:
    """Return a ledger's table, every value as text where the format has no types."""
    if path.suffix == ".jsonl":
        return pd.DataFrame([json.loads(line) for line in path.read_text("utf-8").splitlines()])
    if path.suffix == ".parquet":
        return pd.read_parquet(path)
    return pd.read_csv(path, dtype=str, keep_default_na=False)


@pytest.fixture
def ledger(tmp_path) -> Path:
    return write_ledger(tmp_path / "ledger.csv", make_rows(60))


@pytest.fixture
def output(tmp_path) -> Path:
    return tmp_path / "filed.csv"
