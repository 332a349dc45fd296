"""What a classifier is built from and loaded from, and what is never run for it."""

from __future__ import annotations

import json
import shutil
from types import SimpleNamespace

import numpy as np
import pytest

from account_tax.model.classifier import (
    MANIFEST_FILE,
    AccountClassifier,
    TamperedModelError,
    build_classifier,
    load_classifier,
    load_tokenizer,
    resolve_base,
)
from tests.bases import changes, make_base, train_in_process

LABELS = ["one", "two"]


@pytest.fixture
def trained(tmp_path):
    """The folder of a classifier as registration leaves it."""
    base = make_base(tmp_path / "base", "bert")
    return train_in_process(base, tmp_path / "run", **changes("bert", "cls", "plain"))


def edit(file, **fields):
    file.write_text(json.dumps(json.loads(file.read_text()) | fields))


def test_without_its_manifest_nothing_is_loaded(trained):
    (trained / MANIFEST_FILE).unlink()
    with pytest.raises(TamperedModelError, match=r"manifest\.json: missing"):
        load_classifier(trained)
    context = SimpleNamespace(artifacts={"classifier": str(trained)})
    with pytest.raises(TamperedModelError, match=r"manifest\.json: missing"):
        AccountClassifier().load_context(context)


def test_of_the_base_only_its_pinned_weights_count_when_loaded_back(trained, tmp_path):
    before = load_classifier(trained).logits(["LUNCH"])
    edit(tmp_path / "base/config.json", hidden_act="relu", layer_norm_eps=0.5)
    (tmp_path / "base/tokenizer.json").unlink()
    assert np.array_equal(load_classifier(trained).logits(["LUNCH"]), before)


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_code_that_lies_with_a_base_is_never_run(tmp_path, pooling):
    folder, ran = make_base(tmp_path / "base", "bert"), tmp_path / "ran"
    (folder / "own.py").write_text(
        f"open({str(ran)!r}, 'w')\n"
        "from transformers import BertConfig as Config, BertModel as Model\n"
        "from transformers import BertTokenizer as Tokenizer\n"
    )
    names = ("AutoModel", "AutoModelForSequenceClassification")
    code = {"AutoConfig": "own.Config", **dict.fromkeys(names, "own.Model")}
    edit(folder / "config.json", auto_map=code, model_type="own")
    edit(folder / "tokenizer_config.json", auto_map={"AutoTokenizer": ["own.Tokenizer", None]})
    base = resolve_base(str(folder))
    with pytest.raises(ValueError, match="trust_remote_code"):
        build_classifier(base, labels=LABELS, pooling=pooling, trust_remote_code=True)
    assert load_tokenizer(base)  # transformers has a class of its own for it
    assert not ran.exists()


@pytest.mark.parametrize("pooling", ["cls", "mean"])
def test_pickled_weights_are_not_loaded_whatever_is_asked_for(tmp_path, pooling):
    folder = make_base(tmp_path / "base", "bert")
    base = resolve_base(str(folder))
    shutil.move(folder / "model.safetensors", folder / "pytorch_model.bin")
    with pytest.raises(OSError, match=r"model\.safetensors"):
        build_classifier(base, labels=LABELS, pooling=pooling, use_safetensors=False)
