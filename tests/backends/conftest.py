"""The project as a user makes it ready for a backend, and a tracking server's address for it."""

import json
import shutil
from pathlib import Path

import pytest

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
