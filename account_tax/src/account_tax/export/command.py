"""`kedro export`: a version as an ordinary Hugging Face folder, merged into its base.

With `pooling: cls` the folder loads with AutoModelForSequenceClassification alone. With
`pooling: mean`, which transformers does not know, the class stands in a file beside the weights
that its user imports; no remote code is ever trusted. The model on n-grams, where the version has
one, is a second file of code with its weights.
"""

from __future__ import annotations

import importlib.util
import inspect
import json
import shutil
import tempfile
from pathlib import Path
from types import ModuleType
from typing import Any

import click
import mlflow
import numpy as np
import torch
from mlflow.entities.model_registry import ModelVersion
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer

from account_tax.errors import Failed
from account_tax.model.classifier import (
    MEAN_POOLING_SCALE,
    NGRAMS_FILE,
    WORD,
    LoadedClassifier,
    MeanPoolingClassifier,
    Ngrams,
    count_ngrams,
    fuse,
    hash_within,
    load_classifier,
    quiet_loading,
)
from account_tax.model.licence import base_licence
from account_tax.registry.download import download_version, refuse_broken
from account_tax.registry.find import find_version
from account_tax.registry.registry_state import check_standing
from account_tax.storage.files import scratch_folder
from account_tax.storage.names import PROBE_FILE, UNAPPROVED_TAG
from account_tax.tracking.owned_run import OwnedRun
from account_tax.tracking.store import open_store, tracking_uri

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
USE_NGRAMS = """\
import sys

from safetensors.torch import load_file

sys.path.insert(0, folder)
from ngrams import Ngrams  # the other part of the classifier

ngrams = Ngrams(**load_file(f"{folder}/ngrams.safetensors"))
logits = ENCODER * logits + NGRAMS * torch.from_numpy(ngrams.logits(texts))
labels = [model.config.id2label[index] for index in logits.argmax(-1).tolist()]
"""


def export(project: Path, request: Request, run: OwnedRun | None) -> None:
    """Write a version as an ordinary folder."""
    uri = run.tracking_uri if run else tracking_uri(project)
    mlflow.set_tracking_uri(uri)
    client = open_store(uri)
    version = find_version(client, request.name, request.reference)
    if against := check_standing(client, version, request.reference, request.allow_unapproved):
        click.echo(f"mind this: {version.name} version {version.version}: {against}", err=True)
    title = f"{version.name} version {version.version}"
    with scratch_folder() as scratch:
        with refuse_broken(title):
            classifier = download_version(version, scratch, request.verify_key)
        difference = write_export(classifier, project / request.output, version)
    if run:
        run.introduce("export", title, {UNAPPROVED_TAG: against or None})
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
        with quiet_loading():
            save_merged(loaded, scratch)
        if loaded.ngrams:
            shutil.copy(classifier / NGRAMS_FILE, scratch)
            (scratch / "ngrams.py").write_text(standalone_ngrams(), encoding="utf-8")
        (scratch / "README.md").write_text(write_readme(loaded, version), encoding="utf-8")
        difference = compare_export(scratch, loaded, texts, logits)
        shutil.rmtree(scratch / "__pycache__", ignore_errors=True)  # left by its imports
        scratch.chmod(0o755)  # mkdtemp's is for one user only
        scratch.rename(output)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return difference


def save_merged(loaded: LoadedClassifier, folder: Path) -> None:
    """Save weights, configuration and tokenizer in float32, the adapter merged into its base."""
    model: Any = loaded.merge().model
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


def standalone_ngrams() -> str:
    """Return the model on n-grams as one file, which needs torch alone."""
    return (
        '"""The model on n-grams beside the encoder; its weights are in ngrams.safetensors."""\n\n'
        "import re\nimport zlib\nfrom array import array\nfrom collections import Counter\n"
        "from collections.abc import Sequence\nfrom dataclasses import dataclass\n"
        "from functools import lru_cache\nfrom itertools import chain\n\n"
        "import numpy as np\nimport torch\nfrom torch import Tensor, nn\n\n"
        f"WORD = re.compile({WORD.pattern!r})\n\n\n"
        + "\n\n".join(map(inspect.getsource, (Ngrams, count_ngrams, hash_within)))
    )


def compare_export(
    folder: Path, loaded: LoadedClassifier, texts: list[str], expected: np.ndarray
) -> float:
    """Return the largest difference of logits of what was written, loaded as its README says.

    Raises:
        Failed: If it is too large, or a label is another one.
    """
    if loaded.settings["pooling"] == "mean":
        _import_file(folder / LOADER.name)
    with quiet_loading():
        model: Any = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    batch = tokenizer(texts, padding=True, truncation=True, return_tensors="pt")
    with torch.inference_mode():
        found = model(batch["input_ids"], attention_mask=batch["attention_mask"]).logits.numpy()
    if loaded.ngrams:
        ngrams = _import_file(folder / "ngrams.py").Ngrams(**load_file(folder / NGRAMS_FILE))
        found = fuse(found, ngrams.logits(texts), loaded.calibration["fusion"])
    difference = float(np.abs(found - expected).max())
    labels = [model.config.id2label[index] for index in range(len(loaded.labels))]
    if not difference <= TOLERANCE or labels != loaded.labels:  # also true of NaN
        raise Failed(
            f"the merged model's logits differ by up to {difference:.3g} from the version's, "
            f"allowed are {TOLERANCE:g}. Nothing was written; compare this environment's "
            "transformers and peft with those of the version."
        )
    return difference


def _import_file(file: Path) -> ModuleType:
    """Return a file of an export as a module, as its user's import does."""
    spec = importlib.util.spec_from_file_location(file.stem, file)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


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
        f"```python\n{USE}```\n\n{_use_ngrams(loaded)}"
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


def _use_ngrams(loaded: LoadedClassifier) -> str:
    """Return how the model on n-grams is added, where there is one."""
    if not loaded.ngrams:
        return ""
    fusion = loaded.calibration["fusion"]
    code = USE_NGRAMS.replace("ENCODER", f"{fusion['encoder']}")
    code = code.replace("NGRAMS", f"{fusion['ngrams']}")
    said = "That is the encoder. The version adds what n-grams of the text say:"
    return f"{said}\n\n```python\n{code}```\n\n"
