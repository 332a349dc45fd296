from __future__ import annotations

from pathlib import Path

import pytest
from kedro.io import DataCatalog, MemoryDataset
from kedro.runner import SequentialRunner

from account_tax.ledger.reading import DataError
from account_tax.pipelines.prepare.pipeline import create_pipeline
from account_tax.storage.prepared import find_prepared, split_digest

NGRAMS = {"enable": True, "word": [1, 2], "char": [2, 4], "min_rows": None, "max_features": 500}
VERSION = "2026-01-01T00.00.00.000Z"


def make_catalog(folder: Path, data: dict, model: dict) -> DataCatalog:
    """Return the catalog of the prepare pipeline, written below `folder`."""
    entries = {
        "tokenized_datasets": {
            "type": "huggingface.ArrowDataset",
            "path": str(folder / "tokenized_datasets"),
        },
        "tokenizer": {
            "type": "account_tax.datasets.TokenizerDataset",
            "filepath": str(folder / "tokenizer"),
        },
        "ngrams": {
            "type": "account_tax.datasets.TensorsDataset",
            "filepath": str(folder / "ngrams.safetensors"),
        },
        "dataset_metadata": {
            "type": "json.JSONDataset",
            "filepath": str(folder / "dataset_metadata.json"),
        },
    }
    versioned = {name: entry | {"versioned": True} for name, entry in entries.items()}
    catalog = DataCatalog.from_config(versioned, save_version=VERSION)
    for name in ("ledger", "ledger_splits"):  # as in catalog.yml
        catalog[name] = MemoryDataset(copy_mode="assign")
    catalog["params:data"] = data
    catalog["params:data.max_length"] = data["max_length"]
    catalog["params:train"] = {"model": model, "ngrams": NGRAMS}
    catalog["params:train.model"] = model
    catalog["params:train.ngrams"] = NGRAMS
    return catalog


def test_the_pipeline_writes_a_version_that_is_found_again(
    parameters, ledger_csv, two_classes, model, tmp_path
):
    data = parameters(ledger_csv(*two_classes))
    catalog = make_catalog(tmp_path / "features", data, model)
    SequentialRunner().run(create_pipeline(), catalog)
    facts = catalog.load("dataset_metadata")
    assert find_prepared(tmp_path / "features", facts["inputs_sha256"]) == VERSION
    tokenized = catalog.load("tokenized_datasets")
    assert split_digest(tokenized["test"].data) == facts["splits"]["test"]["sha256"]
    assert catalog.load("tokenizer").vocab_size > 30_000
    assert len(catalog.load("ngrams")["hashes"]) == facts["ngrams"] > 50


@pytest.mark.parametrize("fault", ["data", "model"])
def test_bad_input_leaves_nothing_written(
    parameters, ledger_csv, two_classes, model, tmp_path, fault
):
    rows = two_classes + ([("once", "rare")] if fault == "data" else [])
    model["num_labels"] = 7
    data = parameters(ledger_csv(*rows), rare="refuse")
    catalog = make_catalog(tmp_path / "features", data, model)
    with pytest.raises(DataError, match="fewer than 3" if fault == "data" else "num_labels = 7"):
        SequentialRunner().run(create_pipeline(), catalog)
    assert not (tmp_path / "features").exists()


def test_no_ledger_text_is_written(parameters, ledger_csv, two_classes, model, tmp_path):
    rows = [(text.replace("line", "zebracrossing"), label) for text, label in two_classes]
    data = parameters(ledger_csv(*rows), rare="refuse")
    catalog = make_catalog(tmp_path / "features", data, model)
    SequentialRunner().run(create_pipeline(), catalog)
    files = [path for path in (tmp_path / "features").rglob("*") if path.is_file()]
    assert len(files) > 5
    assert not any(b"zebracrossing" in path.read_bytes() for path in files)
