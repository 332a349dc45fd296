"""`kedro export`: a version as an ordinary Hugging Face folder, merged into its base.

With `pooling: cls` the folder loads with AutoModelForSequenceClassification alone. With
`pooling: mean`, which transformers does not know, the class stands in a file beside the weights
that its user imports; no remote code is ever trusted.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import shutil
import tempfile
from pathlib import Path
from typing import Any

import click
import mlflow
import numpy as np
import torch
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from account_tax.errors import Failed
from account_tax.model.classifier import (
    MEAN_POOLING_SCALE,
    LoadedClassifier,
    MeanPoolingClassifier,
    load_classifier,
)
from account_tax.model.licence import base_licence
from account_tax.registry.download import download_version, refuse_broken
from account_tax.registry.find import find_version
from account_tax.registry.registry_state import check_standing
from account_tax.storage.names import PROBE_FILE, UNAPPROVED_TAG
from account_tax.tracking.owned_run import OwnedRun
from account_tax.tracking.store import tracking_uri

from .modeling_account_tax import MeanPoolingConfig, MeanPoolingForSequenceClassification
from .request import Request

LOADER = Path(inspect.getfile(MeanPoolingConfig))
TOLERANCE = 1e-5  # of logits: merging adds the adapter to the weights before, not after, a product

# What docs/review.md and the README.md of each export say; tests run it as it stands.
LOAD_CLS = """\
from transformers import AutoModelForSequenceClassification, AutoTokenizer

folder = "exported"
model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
"""
LOAD_MEAN = """\
import sys

from transformers import AutoModelForSequenceClassification, AutoTokenizer

folder = "exported"
sys.path.insert(0, folder)
import modeling_account_tax  # the class that transformers does not know; read it first

model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
tokenizer = AutoTokenizer.from_pretrained(folder)
"""
USE = """\
import torch

texts = ["BLUE WHALE TAXI | ride to client office"]
batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
with torch.inference_mode():
    logits = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits
labels = [model.config.id2label[index] for index in logits.argmax(-1).tolist()]
"""


def export(project: Path, request: Request, run: OwnedRun | None) -> None:
    """Write a version as an ordinary folder."""
    uri = run.tracking_uri if run else tracking_uri(project)
    mlflow.set_tracking_uri(uri)
    client = MlflowClient(uri)
    version = find_version(client, request.name, request.reference)
    if against := check_standing(client, version, request.reference, request.allow_unapproved):
        click.echo(f"mind this: {version.name} version {version.version}: {against}", err=True)
        assert run is not None, "one is made where this may be"
        run.set_tags({UNAPPROVED_TAG: against})
    title = f"{version.name} version {version.version}"
    with tempfile.TemporaryDirectory() as scratch:
        with refuse_broken(title):
            classifier = download_version(version, Path(scratch), request.verify_key)
        difference = write_export(classifier, project / request.output, version)
    click.echo(
        f"{version.name} version {version.version} is in {request.output}; largest difference of "
        f"logits {difference:.3g}, allowed {TOLERANCE:g}"
    )


def write_export(classifier: Path, output: Path, version: ModelVersion) -> float:
    """Write the folder, whole or not at all, and return the largest difference of logits.

    Args:
        classifier: The downloaded classifier's folder.
        output: The folder to make.
        version: Which one it is, for its README.

    Raises:
        Failed: If what was written does not answer as the classifier does.
    """
    loaded = load_classifier(classifier)
    texts = json.loads((classifier / PROBE_FILE).read_text(encoding="utf-8"))["texts"]
    logits = loaded.logits(texts)
    # Beside the output, so that the last step is one rename on one disk.
    scratch = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    try:
        save_merged(loaded, scratch)
        (scratch / "README.md").write_text(write_readme(loaded, version), encoding="utf-8")
        difference = compare_export(scratch, loaded, texts, logits)
        scratch.chmod(0o755)  # mkdtemp's is for one user only
        scratch.rename(output)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return difference


def save_merged(loaded: LoadedClassifier, folder: Path) -> None:
    """Save weights, configuration and tokenizer in float32, the adapter merged into its base."""
    model: Any = loaded.model
    if hasattr(model, "merge_and_unload"):
        model = model.merge_and_unload()
    if loaded.settings["pooling"] == "mean":
        model = _with_own_class(model)
        (folder / LOADER.name).write_text(standalone_loader(), encoding="utf-8")
    model.config.id2label = dict(enumerate(loaded.labels))
    model.config.label2id = {label: index for index, label in enumerate(loaded.labels)}
    model.config._name_or_path = loaded.settings["base"]["name"]  # not this machine's folder
    model.float().save_pretrained(folder)
    tokenizer = loaded.tokenizer
    tokenizer.model_max_length = loaded.settings["max_length"]  # truncation=True cuts there
    tokenizer.save_pretrained(folder)


def _with_own_class(model: MeanPoolingClassifier) -> MeanPoolingForSequenceClassification:
    """Return the network under the class whose configuration says what it is.

    Under the encoder's own configuration the Auto class would build another network, its head
    freshly initialised.
    """
    encoder: Any = model.config
    options = inspect.signature(type(model.encoder).__init__).parameters
    config = MeanPoolingConfig(
        encoder=encoder.to_diff_dict(), pooler="add_pooling_layer" not in options
    )
    config.encoder.pop("_name_or_path", None)
    config.id2label, config.label2id = encoder.id2label, encoder.label2id
    own = MeanPoolingForSequenceClassification(config)
    own.load_state_dict(model.state_dict())
    return own


def standalone_loader() -> str:
    """Return the loader as one file: what it imports of this project written out."""
    text = LOADER.read_text(encoding="utf-8")
    imported = "from account_tax.model.classifier import MeanPoolingClassifier\n"
    head, found, rest = text.partition(imported)
    assert found, "the loader's import has changed"
    needs = (
        "import torch\nfrom torch import Tensor, nn\nfrom transformers import PreTrainedModel\n"
        "from transformers.modeling_outputs import SequenceClassifierOutput\n\n"
        f"MEAN_POOLING_SCALE = {MEAN_POOLING_SCALE}\n\n\n"
    )
    return f"{head}{needs}{inspect.getsource(MeanPoolingClassifier)}{rest}"


def compare_export(
    folder: Path, loaded: LoadedClassifier, texts: list[str], expected: np.ndarray
) -> float:
    """Return the largest difference of logits of what was written, loaded as its README says.

    Raises:
        Failed: If it is too large, or a label is another one.
    """
    if loaded.settings["pooling"] == "mean":
        _import_file(folder / LOADER.name)
    model: Any = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        found = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits.numpy()
    difference = float(np.abs(found - expected).max())
    labels = [model.config.id2label[index] for index in range(len(loaded.labels))]
    if not difference <= TOLERANCE or labels != loaded.labels:  # also true of NaN
        raise Failed(
            f"the merged model's logits differ by up to {difference:.3g} from the version's, "
            f"allowed are {TOLERANCE:g}. Nothing was written; compare this environment's "
            "transformers and peft with those of the version."
        )
    return difference


def _import_file(file: Path) -> None:
    """Run a loader by its path, as its user's import does."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    spec.loader.exec_module(importlib.util.module_from_spec(spec))


def write_readme(loaded: LoadedClassifier, version: ModelVersion) -> str:
    """Return the README of an export: what it is, how to load it, whose licence holds."""
    settings, base = loaded.settings, loaded.settings["base"]
    load = LOAD_MEAN if settings["pooling"] == "mean" else LOAD_CLS
    columns, separator = ", ".join(settings["text_columns"]), settings["separator"]
    at = f", revision `{base['revision']}`" if base["revision"] else ""
    return (
        f"# {version.name} version {version.version}\n\n"
        f"Files a ledger line under one of {len(loaded.labels)} accounts. Merged into its base, "
        "float32.\n\n"
        f"```python\n{load}```\n\n"
        f"```python\n{USE}```\n\n"
        f"A text is the columns {columns}, each in NFC, without format characters and with single "
        f"spaces, joined by `{separator}`, empty ones left out; {settings['max_length']} tokens of "
        "it are read.\n\n"
        "## Origin\n\n"
        f"- content_sha256 of the version: `{version.tags['content_sha256']}`\n"
        f"- base: `{base['name']}`{at}, weights sha256 `{base['sha256']}`\n\n"
        "## Licence\n\n"
        f"The base's: {base_licence(base['name'])}. These weights hold the base's, so its licence "
        "goes with them; see to it before you pass them on. They were trained on a ledger: treat "
        "them as confidential as that.\n"
    )
