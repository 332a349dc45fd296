"""Prepared data: found again where it is whole and of the same inputs."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from datasets import load_from_disk
from kedro.io.core import DatasetError

from account_tax.datasets import TensorsDataset
from account_tax.storage.prepared import find_prepared


@pytest.fixture
def write_version(prepared, tokenizer, tmp_path):
    """Return a function that writes one version as the catalog does."""

    def write(version: str) -> str:
        _, _, tokenized, facts = prepared()
        folder = tmp_path / "features"
        tokenized.save_to_disk(folder / "tokenized_datasets" / version / "tokenized_datasets")
        tokenizer.save_pretrained(folder / "tokenizer" / version / "tokenizer")
        ngrams = folder / "ngrams.safetensors" / version / "ngrams.safetensors"
        TensorsDataset(filepath=str(ngrams)).save({"validation": torch.zeros(4)})
        metadata = folder / "dataset_metadata.json" / version / "dataset_metadata.json"
        metadata.parent.mkdir(parents=True)
        metadata.write_text(json.dumps(facts))
        return facts["inputs_sha256"]

    return write


def test_the_newest_whole_version_is_found(write_version, tmp_path):
    folder = tmp_path / "features"
    assert find_prepared(folder, "x") is None
    key = write_version("2026-01-01T00.00.00.000Z")
    write_version("2026-01-02T00.00.00.000Z")
    assert find_prepared(folder, key) == "2026-01-02T00.00.00.000Z"
    assert find_prepared(folder, "another key") is None


@pytest.mark.parametrize(
    "lost",
    [
        "dataset_metadata.json/{}/dataset_metadata.json",
        "tokenizer/{}/tokenizer/tokenizer_config.json",
        "ngrams.safetensors/{}/ngrams.safetensors",
        "tokenized_datasets/{}/tokenized_datasets/dataset_dict.json",
        "tokenized_datasets/{}/tokenized_datasets/test/state.json",
        "tokenized_datasets/{}/tokenized_datasets/train/data-00000-of-00001.arrow",
    ],
)
def test_a_version_that_is_not_whole_is_passed_over(write_version, tmp_path, lost):
    folder = tmp_path / "features"
    old, new = "2026-01-01T00.00.00.000Z", "2026-01-02T00.00.00.000Z"
    write_version(old)
    key = write_version(new)
    (folder / lost.format(new)).unlink()
    assert find_prepared(folder, key) == old


@pytest.mark.parametrize("damage", [lambda raw: raw[:-1], lambda raw: raw[:-1] + b"\1"])
def test_a_damaged_model_on_ngrams_is_made_anew(write_version, tmp_path, damage):
    folder, version = tmp_path / "features", "2026-01-01T00.00.00.000Z"
    key = write_version(version)
    file = folder / "ngrams.safetensors" / version / "ngrams.safetensors"
    file.write_bytes(damage(file.read_bytes()))
    assert find_prepared(folder, key) is None
    with pytest.raises(DatasetError, match="is not the file that was written"):
        TensorsDataset(filepath=str(file)).load()


def test_metadata_that_is_no_json_is_passed_over(write_version, tmp_path):
    folder = tmp_path / "features"
    key = write_version("2026-01-01T00.00.00.000Z")
    broken = folder / "dataset_metadata.json" / "2026-01-02T00.00.00.000Z"
    broken.mkdir()
    (broken / "dataset_metadata.json").write_text('{"inputs_sha256": "')
    assert find_prepared(folder, key) == "2026-01-01T00.00.00.000Z"


@pytest.mark.parametrize("change", ["an account", "a token", "cut", "no table", "names"])
def test_rows_that_were_changed_afterwards_are_not_trained_on(write_version, tmp_path, change):
    folder = tmp_path / "features"
    old, new = "2026-01-01T00.00.00.000Z", "2026-01-02T00.00.00.000Z"
    write_version(old)
    key = write_version(new)
    split = folder / "tokenized_datasets" / new / "tokenized_datasets" / "train"
    file, info = split / "data-00000-of-00001.arrow", split / "dataset_info.json"
    if change == "names":
        known = json.loads(info.read_text())
        known["features"]["labels"]["names"].reverse()
        info.write_text(json.dumps(known))
    elif change == "cut":
        file.write_bytes(file.read_bytes()[:-200])
    elif change == "no table":
        file.write_bytes(b"x" * 100)
    else:
        column = {"an account": "labels", "a token": "input_ids"}[change]
        rows = load_from_disk(split)
        values = rows[column][:]
        values[-1] = (values[-1] + 1) % 3 if column == "labels" else [*values[-1][:-1], 1]
        other = rows.remove_columns(column).add_column(
            column, values, feature=rows.features[column]
        )
        other.save_to_disk(tmp_path / "other")
        shutil.copy(tmp_path / "other" / file.name, file)
    assert find_prepared(folder, key) == old
