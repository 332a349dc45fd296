"""The project as a user makes it ready for a backend, and a tracking server's address for it."""

import json
import shutil
from pathlib import Path

import pytest
from mlflow import MlflowClient

from account_tax.backends.slurm.runs import FOLDER_TAG
from account_tax.tracking.ownership import SLURM_TAG

ROOT = Path(__file__).parents[2]
IMAGE = f"registry.internal/ml/account-tax@sha256:{'a' * 64}"


@pytest.fixture(autouse=True)
def _elsewhere(monkeypatch):
    """Name a server elsewhere: databricks is not asked about its experiments."""
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "databricks")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "/Shared/account-tax")
    monkeypatch.delenv("KUBE_MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def ready(tmp_path):
    """Return a folder with the backends' files, placeholders filled in."""
    shutil.copytree(ROOT / "backends", tmp_path / "backends")
    folder = tmp_path / "backends" / "kubernetes"
    for name in ("mlproject", "pytorchjob.yaml"):
        text = (folder / name).read_text(encoding="utf-8")
        placeholder = f"registry.example.com/account-tax@sha256:{'0' * 64}"
        assert placeholder in text
        (folder / name).write_text(text.replace(placeholder, IMAGE), encoding="utf-8")
    config = json.loads((folder / "config.json").read_text())
    config["repository-uri"] = "registry.internal/ml/account-tax"
    (folder / "config.json").write_text(json.dumps(config))
    return tmp_path


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


@pytest.fixture
def client(store, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    return MlflowClient(store)


@pytest.fixture
def new_run(client, tmp_path):
    """Return what makes a run whose Slurm job has this number, and left this status."""

    def make(job, status=None):
        run_id = client.create_run("0").info.run_id
        client.set_tag(run_id, SLURM_TAG, job)
        client.set_tag(run_id, FOLDER_TAG, str(tmp_path))
        if status is not None:
            (tmp_path / "exit_status").write_text(f"{status}\n")
        return run_id

    return make
