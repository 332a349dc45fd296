"""Exports and downloaded adapters, loaded by processes that know only what the README says."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors import safe_open
from safetensors.torch import save_file

from account_tax.errors import Failed
from account_tax.export.command import USE, write_export
from account_tax.model.classifier import (
    NGRAMS_FILE,
    build_classifier,
    load_classifier,
    load_tokenizer,
    resolve_base,
)
from account_tax.model.ngrams import fit_ngrams
from account_tax.pipelines.register.nodes import write_manifest
from tests.bases import changes, make_base, train_in_process
from tests.test_docs import blocks
from tests.test_mlproject import REPOSITORY

from .conftest import environment

pytestmark = pytest.mark.integration

LABELS = ["접대비", "통신비", "소모품비"]
TEXTS = ["coffee lunch office", "taxi hotel", "paper toner stamp tax fee", "phone", "rent " * 90]
MAX_LENGTH = 12  # less than the last text's tokens: the export has to cut it there too
VERSION = SimpleNamespace(name="account-tax", version="3", tags={"content_sha256": "a" * 64})


def save_trained(
    folder: Path, base_name: str, pooling: str, lora: bool, ngrams: bool = False
) -> Path:
    """Save a classifier as training leaves it, all weights random."""
    base = resolve_base(base_name)
    torch.manual_seed(7)
    model = build_classifier(base, labels=LABELS, pooling=pooling)
    model.config.save_pretrained(folder)
    if lora:
        model = get_peft_model(
            model,
            LoraConfig(
                r=4,
                lora_alpha=16,
                target_modules=["query", "value"],
                modules_to_save=model.fresh_modules,
                init_lora_weights=False,
                task_type="SEQ_CLS",
            ),
        )
    model.save_pretrained(folder)
    tokenizer = load_tokenizer(base)
    tokenizer.save_pretrained(folder)
    settings = {
        **{"base": base.to_dict(), "pooling": pooling, "precision": "fp32", "labels": LABELS},
        **{"max_length": MAX_LENGTH, "text_columns": ["text"], "separator": " | "},
    }
    if ngrams:
        fusion = {"encoder": 1.0, "ngrams": 0.25}
        settings["calibration"] = {"temperature": 1.0, "threshold": None, "fusion": fusion}
        model_on_them = fit_ngrams(TEXTS, np.arange(len(TEXTS)) % len(LABELS), len(LABELS))
        save_file(vars(model_on_them), folder / NGRAMS_FILE)
    (folder / "classifier.json").write_text(json.dumps(settings))
    (folder / "probe.json").write_text(json.dumps({"texts": TEXTS, "precision": "fp32"}))
    write_manifest(folder)
    return folder


def python_blocks(readme: Path) -> str:
    return "\n".join(re.findall(r"^```python\n(.*?)^```$", readme.read_text(), re.M | re.S))


def run_elsewhere(code: str, folder: Path) -> SimpleNamespace:
    """Run documented code, with these texts, where the project is not to be found."""
    assert code.count('texts = ["BLUE WHALE') == 1
    code = re.sub(r"^texts = .*$", f"texts = {TEXTS!r}", code, flags=re.M)
    answer = "import json, sys; print(json.dumps([labels, logits.tolist(), list(sys.modules)]))"
    script = folder / "documented.py"
    script.write_text(f"{code}\n{answer}", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, script],
        cwd=folder,
        env=environment({"HF_HUB_OFFLINE": "1"}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    labels, logits, modules = json.loads(done.stdout.splitlines()[-1])
    assert "account_tax" not in modules
    return SimpleNamespace(labels=labels, logits=np.array(logits), said=done.stderr)


def assert_same(answer: SimpleNamespace, classifier: Path) -> None:
    loaded = load_classifier(classifier)
    expected = loaded.logits(TEXTS)
    assert np.abs(answer.logits - expected).max() <= 1e-5
    assert answer.labels == [loaded.labels[index] for index in expected.argmax(-1)]


@pytest.mark.parametrize(
    ("pooling", "lora", "ngrams"),
    [("cls", True, False), ("mean", True, True), ("cls", False, True), ("mean", False, False)],
)
def test_an_export_answers_as_its_readme_says(tmp_path, tiny_base, pooling, lora, ngrams):
    classifier = save_trained(tmp_path / "version", str(tiny_base), pooling, lora, ngrams)
    output = tmp_path / "exported"
    assert write_export(classifier, output, VERSION) <= 1e-5
    assert not (output / "__pycache__").exists()
    answer = run_elsewhere(python_blocks(output / "README.md"), tmp_path)
    assert_same(answer, classifier)
    assert "newly initialized" not in answer.said
    names = {file.name for file in output.iterdir()}
    assert names >= {"model.safetensors", "config.json", "README.md", "tokenizer_config.json"}
    assert ("modeling_account_tax.py" in names) == (pooling == "mean")
    assert ({"ngrams.py", "ngrams.safetensors"} <= names) == ngrams
    assert not [name for name in names if "adapter" in name or name.endswith((".bin", ".pt"))]
    with safe_open(output / "model.safetensors", "pt") as weights:
        assert {weights.get_tensor(name).dtype for name in weights.keys()} == {torch.float32}  # noqa: SIM118
    assert output.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("family", ["bert", "llama"])
def test_a_downloaded_adapter_with_cls_is_plain_peft(tmp_path, family):
    base = make_base(tmp_path / "base", family)
    classifier = train_in_process(base, tmp_path, **changes(family, "cls", "plain"))
    page = (REPOSITORY / "docs/review.md").read_text(encoding="utf-8")
    (load,) = (code for code in blocks(page, "python") if "PeftModel" in code)
    code = f'adapter, base = "adapter", {str(base)!r}\n{load}\n{USE}'
    assert_same(run_elsewhere(code, tmp_path), classifier)


def test_without_its_class_a_mean_export_is_refused_not_guessed(tmp_path, tiny_base):
    classifier = save_trained(tmp_path / "version", str(tiny_base), "mean", lora=True)
    write_export(classifier, tmp_path / "exported", VERSION)
    code = python_blocks(tmp_path / "exported" / "README.md")
    code = code.replace("import modeling_account_tax", "#")
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment({"HF_HUB_OFFLINE": "1"}),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode != 0
    assert "account-tax-mean-pooling" in done.stderr


def test_an_export_that_answers_otherwise_leaves_nothing(tmp_path, tiny_base, monkeypatch):
    classifier = save_trained(tmp_path / "version", str(tiny_base), "cls", lora=True)
    monkeypatch.setattr("account_tax.export.command.TOLERANCE", -1.0)
    with pytest.raises(Failed, match="Nothing was written"):
        write_export(classifier, tmp_path / "exported", VERSION)
    assert [path.name for path in tmp_path.iterdir()] == ["version"]
