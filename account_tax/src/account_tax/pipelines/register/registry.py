"""The Model Registry: log a classifier, make a version of it, and keep only a verified one.

Everything names its run and model by id: MLflow's active run belongs to a thread, and Kedro runs
nodes in another.
"""

import inspect
import json
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import mlflow
import pandas as pd
from mlflow import MlflowClient
from mlflow.entities import LoggedModelOutput, Metric, Run
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model, ModelSignature
from mlflow.types import ColSpec, ParamSchema, ParamSpec, Schema

from account_tax.errors import RegistrationError
from account_tax.model.classifier import SETTINGS_FILE, AccountClassifier
from account_tax.model.licence import base_package
from account_tax.parameters.schema import reserved_by_mlflow
from account_tax.provenance.environment import LOCKED
from account_tax.registry.cold import load_cold
from account_tax.registry.download import files_around, find_classifier
from account_tax.storage.names import (
    CONTENT_TAG,
    LONGEST_TEXT,
    MODEL_FILES_TAG,
    PROBE_FILE,
    TAG,
    VERIFIED_TAG,
)
from account_tax.tracking.store import condition

LOGGED_MODEL_NAME = "classifier"
MODEL_DESCRIPTION = (
    "Files ledger lines under tax accounts. Each version is an adapter and what it takes to use "
    "it, without its base; its card says what it was trained on and how well it does. Alias "
    "`challenger`: registered and checked; `champion`: approved by a review."
)
CODE_FILE = Path(inspect.getfile(AccountClassifier))  # logged with the model
REQUIREMENTS = (
    "mlflow", "torch", "transformers", "peft", "safetensors", "huggingface_hub", "pandas", "numpy",
)  # fmt: skip


@dataclass(frozen=True)
class Candidate:
    """A classifier that asks for a version: its folder, its digest and what is said about it."""

    folder: Path  # as training left it, with manifest.json
    content_sha256: str
    tags: dict[str, str]
    description: str  # no longer than the registry takes


def check_alias(alias: str) -> None:
    """Raise RegistrationError if MLflow keeps the alias for itself."""
    if reserved_by_mlflow(alias):
        raise RegistrationError(
            f"registry.alias = {alias}: MLflow reserves `latest` and `v<number>`. "
            "Choose another word, such as challenger."
        )


def register_version(
    client: MlflowClient, run_id: str, name: str, alias: str, candidate: Candidate
) -> dict[str, Any]:
    """Return the verified version that holds the candidate, made if there is none.

    A version of the same content is never made twice, also not by runs that register it at once.
    One that an interrupted registration left unverified is verified now. One that fails the cold
    check is removed again. The alias is given to the version unless a newer one has it.

    Raises:
        RegistrationError: If the version, loaded by a fresh process, is not what was trained.
    """
    version = find_same_content(client, name, candidate.content_sha256)
    created = version is None
    if version is None:
        made = create_version(client, run_id, name, candidate)
        version = _first_of(client, name, candidate.content_sha256)
        if version.version != made.version:
            _remove(client, made)
            created = False
    if version.tags.get(VERIFIED_TAG) != "true":
        with _withdrawn_on_failure(client, version):
            verify_cold(version, candidate)
        client.set_model_version_tag(name, version.version, VERIFIED_TAG, "true")
    if not created and candidate.tags["environment"] == LOCKED:  # now known to come from the lock
        client.set_model_version_tag(name, version.version, "environment", LOCKED)
    client.set_tag(run_id, f"{TAG}version", f"{name}/{version.version}")
    return {
        "name": name,
        "version": int(version.version),
        "alias": alias,
        "alias_version": _move_alias(client, name, alias, int(version.version)),
        "model_uri": f"models:/{name}/{version.version}",
        "created": created,
        CONTENT_TAG: candidate.content_sha256,
    }


def _move_alias(client: MlflowClient, name: str, alias: str, version: int) -> int:
    """Give a version the alias, unless a newer one has it; return which has it then."""
    holder = client.get_registered_model(name).aliases.get(alias, 0)
    if version >= int(holder):
        client.set_registered_model_alias(name, alias, str(version))
        return version
    return int(holder)


def _first_of(client: MlflowClient, name: str, content_sha256: str) -> ModelVersion:
    """Return the oldest version with a content; every run that registers it finds the same one."""
    return min(_with_content(client, name, content_sha256), key=lambda each: int(each.version))


def _with_content(client: MlflowClient, name: str, content_sha256: str) -> list[ModelVersion]:
    return client.search_model_versions(
        f"{condition('name', name)} and {condition(f'tags.{CONTENT_TAG}', content_sha256)}"
    )


def find_same_content(client: MlflowClient, name: str, content_sha256: str) -> ModelVersion | None:
    """Return the version with this content: a verified one if there is, else the newest."""
    return max(
        _with_content(client, name, content_sha256),
        key=lambda version: (version.tags.get(VERIFIED_TAG) == "true", int(version.version)),
        default=None,
    )


def create_version(
    client: MlflowClient, run_id: str, name: str, candidate: Candidate
) -> ModelVersion:
    """Return a new version, ready but not verified yet, with its tags and description."""
    if too_long := sorted(key for key, text in candidate.tags.items() if len(text) > LONGEST_TEXT):
        raise RegistrationError(
            f"tags longer than {LONGEST_TEXT} characters: {', '.join(too_long)}. "
            "Shorten the parameters they come from."
        )
    model_id, files = log_model(client, run_id, candidate)
    try:
        client.create_registered_model(name, description=MODEL_DESCRIPTION)
    except MlflowException as err:
        if err.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    return client.create_model_version(
        name,
        source=f"models:/{model_id}",  # the only link from a version back to its logged model
        run_id=run_id,
        model_id=model_id,
        tags={
            **candidate.tags,
            CONTENT_TAG: candidate.content_sha256,
            MODEL_FILES_TAG: json.dumps(files, ensure_ascii=False),
        },
        description=candidate.description,
    )


# --- the logged model -----------------------------------------------------------------------------


def log_model(
    client: MlflowClient, run_id: str, candidate: Candidate
) -> tuple[str, dict[str, str]]:
    """Log the classifier to the run as a pyfunc model.

    Returns:
        The logged model's id, and the digests of its files that are none of the classifier's.
    """
    run = client.get_run(run_id)
    recipe = run.data.tags.get(f"{TAG}recipe", LOGGED_MODEL_NAME)
    logged = client.create_logged_model(
        run.info.experiment_id,
        name=f"{recipe}-{candidate.content_sha256[:8]}",
        source_run_id=run_id,
        tags={CONTENT_TAG: candidate.content_sha256},
        params=run.data.params,
        model_type="classifier",
    )
    try:
        with tempfile.TemporaryDirectory() as scratch:
            path = Path(scratch) / LOGGED_MODEL_NAME
            save_pyfunc(path, candidate.folder, Model(run_id=run_id, model_id=logged.model_id))
            files = files_around(path, find_classifier(path))
            client.log_model_artifacts(logged.model_id, str(path))
        client.log_outputs(run_id, [LoggedModelOutput(logged.model_id, step=0)])
        _attach_test_metrics(client, run, logged.model_id)
    except BaseException:
        client.finalize_logged_model(logged.model_id, "FAILED")
        raise
    client.finalize_logged_model(logged.model_id, "READY")
    return logged.model_id, files


def save_pyfunc(path: Path, folder: Path, model: Model) -> None:
    """Save the classifier in a folder as an MLflow model: classifier.py and its files, no base."""
    settings = json.loads((folder / SETTINGS_FILE).read_text(encoding="utf-8"))
    probe = json.loads((folder / PROBE_FILE).read_text(encoding="utf-8"))
    columns = settings["text_columns"]
    example = pd.DataFrame("", index=range(min(3, len(probe["texts"]))), columns=columns)
    example[columns[0]] = probe["texts"][:3]
    mlflow.pyfunc.save_model(
        path=str(path),
        mlflow_model=model,
        python_model=str(CODE_FILE),
        artifacts={LOGGED_MODEL_NAME: str(folder)},
        # Given, not inferred: inference would run the model while it is saved.
        signature=ModelSignature(
            inputs=Schema([ColSpec("string", column) for column in columns]),
            outputs=Schema([ColSpec("string", "label"), ColSpec("double", "score")]),
            params=ParamSchema(
                [ParamSpec("top_k", "long", 1), ParamSpec("needs_review", "boolean", False)]
            ),
        ),
        input_example=example,
        pip_requirements=pinned_requirements(settings["base"]),
    )
    # MLflow notes where the files came from; this machine's folders are nobody's business.
    flavor = model.flavors[mlflow.pyfunc.FLAVOR_NAME]
    flavor["artifacts"][LOGGED_MODEL_NAME]["uri"] = LOGGED_MODEL_NAME
    flavor["model_code_path"] = CODE_FILE.name
    model.save(str(path / "MLmodel"))


def pinned_requirements(base: Mapping[str, Any]) -> list[str]:
    """Return what loads the model, at the versions installed here, the packaged base included."""
    names: list[str] = list(REQUIREMENTS)
    if base["kind"] == "package":
        names.append(base_package(base["name"]))
    # A local part such as +cpu names a build, which no index serves under that version.
    return [f"{name}=={metadata.version(name).partition('+')[0]}" for name in names]


def _attach_test_metrics(client: MlflowClient, run: Run, model_id: str) -> None:
    """Log the test metrics of a run as the model's, on the dataset that they are of."""
    run_id, inputs = run.info.run_id, run.inputs.dataset_inputs if run.inputs else []
    read = next((each.dataset for each in inputs if each.tags[0].value == "test"), None)
    of = {"dataset_name": read.name, "dataset_digest": read.digest} if read else {}
    names = [key for key in run.data.metrics if key.startswith("test/")]
    newest = [client.get_metric_history(run_id, name)[-1] for name in names]
    client.log_batch(
        run_id,
        metrics=[
            Metric(each.key, each.value, each.timestamp, each.step, model_id=model_id, **of)
            for each in newest
        ],
        synchronous=True,
    )


# --- the cold check -------------------------------------------------------------------------------


def verify_cold(version: ModelVersion, candidate: Candidate) -> None:
    """Raise RegistrationError unless a fresh process, without the project, repeats the logits."""
    uri = f"models:/{version.name}/{version.version}"
    outcome = load_cold(uri, candidate.folder / PROBE_FILE, candidate.content_sha256)
    if outcome["verified"]:
        return
    raise RegistrationError(
        f"{version.name} version {version.version} was not registered: loaded by a fresh process, "
        f"{outcome['reason']}\nThe classifier is still in {candidate.folder}. Compare this "
        "environment's torch, transformers and peft with those it was trained with; if they are "
        "the same, train again."
    )


@contextmanager
def _withdrawn_on_failure(client: MlflowClient, version: ModelVersion) -> Iterator[None]:
    """Remove the version and its logged model, and a registered model left empty, on any error."""
    try:
        yield
    except BaseException:
        _remove(client, version)
        raise


def _remove(client: MlflowClient, version: ModelVersion) -> None:
    client.delete_model_version(version.name, version.version)
    client.delete_logged_model(str(version.source).removeprefix("models:/"))
    if not client.search_model_versions(condition("name", version.name)):
        client.delete_registered_model(version.name)
