"""Registered versions without a training: small logged artifacts in a store of their own.

As a pytest plugin it gives the fixtures `client`, `new_model` and `model`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from datetime import UTC, datetime

import pytest
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from account_tax.registry.history import Entry, load_history
from account_tax.registry.states import PENDING, STATUS_TAG
from account_tax.review.gates import GateResult


def state_of(version: ModelVersion) -> str:
    """Return the state of a version as its tag shows it."""
    return version.tags.get(STATUS_TAG, PENDING)


def read_history(client: MlflowClient, name: str) -> list[Entry]:
    """Return the entries of a registered model's history that are as recorded, oldest first."""
    return load_history(client, client.get_registered_model(name)).entries


NOW = datetime(2026, 3, 1, 9, 30, tzinfo=UTC)
PASSED = GateResult("accuracy", "passed", "0.93", "at least 0.90", "it is above")
FAILED = GateResult("calibration_error", "failed", "0.09", "at most 0.05", "it is above")
NOT_MEASURED = GateResult("reproduced", "not measured", "", "within tolerance", "Nobody tried.")


def register(client: MlflowClient, name: str, versions: int = 3, author: str = "lee") -> str:
    """Register versions 1, 2, … of different content, each from a run of `author`."""
    client.create_registered_model(name)
    experiment = client.create_experiment(f"training of {name}")
    for number in range(1, versions + 1):
        tags = {"mlflow.user": author} if author else {}
        run_id = client.create_run(experiment, tags=tags).info.run_id
        client.log_text(run_id, f"weights {number}", "model/weights.txt")
        client.create_model_version(
            name,
            source=f"{client.get_run(run_id).info.artifact_uri}/model",
            run_id=run_id,
            tags={"content_sha256": f"{number:x}" * 64, "verified": "true"},
        )
    return name


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    """A client of a store of its own; its artifacts lie beside it."""
    folder = tmp_path_factory.mktemp("registry")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("account_tax.registry.registry_state.PAUSE_SECONDS", 0.01)
        yield MlflowClient(f"sqlite:///{folder}/mlflow.db")


@pytest.fixture(scope="module")
def new_model(client) -> Callable[..., str]:
    """Return what registers a model of three versions under a name of its own."""
    numbers = itertools.count(1)
    return lambda **how: register(client, f"model-{next(numbers)}", **how)


@pytest.fixture
def model(new_model) -> str:
    """A registered model with the versions 1, 2 and 3, about which nothing was decided."""
    return new_model()
