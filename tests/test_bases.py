"""What is trained can be loaded: every kind of base, head and adapter, two steps each.

The whole matrix takes minutes: `pytest -m "slow or not slow" tests/test_bases.py`.
"""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import mlflow
import numpy as np
import pandas as pd
import pytest
from mlflow import MlflowClient

from account_tax.export.command import write_export
from account_tax.model.classifier import load_classifier
from account_tax.registry.download import download_version
from tests.bases import FAMILIES, KINDS, changes, make_base, train_in_process
from tests.conftest import make_splits
from tests.pipelines.register.conftest import DATASET_METADATA, METRICS, TRAIN_PARAMS
from tests.pipelines.register.test_registry import open_run, register, relative_store

POOLINGS = ("cls", "mean")
# One of each kind, and the families that failed in their own way.
FAST = [
    *(("roberta", "cls", kind) for kind in KINDS),
    *((family, "cls", "plain") for family in FAMILIES if family != "roberta"),
    *((family, "mean", "plain") for family in ("bert", "llama")),
]


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Give what returns a family's tiny base."""
    made = {}
    folder = tmp_path_factory.mktemp("bases")

    def base(family):
        if family not in made:
            made[family] = make_base(folder / family, family)
        return made[family]

    return base


@pytest.mark.parametrize(
    ("family", "pooling", "kind"),
    [
        pytest.param(
            *(family, pooling, kind),
            marks=[] if (family, pooling, kind) in FAST else pytest.mark.slow,
        )
        for family in FAMILIES
        for pooling in POOLINGS
        for kind in KINDS
    ],
)
def test_what_was_trained_is_loaded_and_exported_with_the_trainers_logits(
    bases, tmp_path, family, pooling, kind
):
    folder = train_in_process(bases(family), tmp_path, **changes(family, pooling, kind))
    probe = json.loads((folder / "probe.json").read_text())
    loaded = load_classifier(folder).logits(probe["texts"])
    assert np.abs(loaded - np.array(probe["logits"])).max() <= 1e-5
    version: Any = SimpleNamespace(name="any", version="1", tags={"content_sha256": "0" * 64})
    assert write_export(folder, tmp_path / "exported", version) <= 1e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "pooling"), [*((family, "cls") for family in FAMILIES), ("llama", "mean")]
)
def test_one_of_each_family_is_registered_answers_and_is_exported(
    bases, tmp_path, monkeypatch, family, pooling
):
    folder = train_in_process(bases(family), tmp_path / "run", **changes(family, pooling, "plain"))
    open_run(monkeypatch, relative_store(monkeypatch, tmp_path))
    trained = SimpleNamespace(
        root=folder.parent,
        splits=make_splits({"validation": 12, "test": 24}),
        metadata=DATASET_METADATA | {"max_length": 8},
        metrics=METRICS,
        train=TRAIN_PARAMS,
    )
    uri = register(trained)["model_uri"]  # with its cold load, in a process of its own
    texts = json.loads((folder / "probe.json").read_text())["texts"]
    answers = mlflow.pyfunc.load_model(uri).predict(pd.DataFrame({"text": texts}))
    expected = load_classifier(folder).rank(load_classifier(folder).logits(texts))
    assert answers["label"].tolist() == expected["label"].tolist()
    version = MlflowClient().get_model_version("account-tax", "1")
    downloaded = download_version(version, tmp_path / "downloaded")
    assert write_export(downloaded, tmp_path / "exported", version) <= 1e-5
