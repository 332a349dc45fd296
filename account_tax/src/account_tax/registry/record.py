"""What the run of a version recorded of its making."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from account_tax.ledger.sources import SAMPLE
from account_tax.provenance.statement import recorded_digest
from account_tax.reproduce.differences import _changed_tags
from account_tax.storage.names import (
    PARAMETERS_FILE,
    PATCH_FILE,
    RECORD_FILE,
    STATEMENT_FILE,
    STATEMENT_TAG,
    TAG,
)

from .download import download_run_artifact

DATASET_FILE = "dataset_metadata.json"


@dataclass(frozen=True)
class Difference:
    """An input that is not what it was.

    Attributes:
        cause: Which of `CAUSES`.
        text: What it was and is.
        inferred: Whether it was only concluded from a result that differs, seen in no input.
    """

    cause: str
    text: str
    inferred: bool = False


@dataclass(frozen=True)
class Record:
    """What a version's run kept; a file that it doesn't have is None.

    Attributes:
        tags: Of the run, without their prefix; used are `CODE_TAGS` and `BEFORE`.
        params: Of the run; used is launch.world_size.
        statement: provenance.json.
        parameters: parameters.yml, its paths absolute.
        environment: environment.json.
        dataset: dataset_metadata.json.
        patch: code.patch, where the run's code had one.
        changed: Files of the run that are not the ones the provenance names.
    """

    tags: Mapping[str, str]
    params: Mapping[str, str]
    statement: dict[str, Any] | None
    parameters: dict[str, Any] | None
    environment: dict[str, Any] | None
    dataset: dict[str, Any] | None
    patch: bytes | None
    changed: tuple[Difference, ...]

    @property
    def missing(self) -> list[str]:
        """The names of the files without which nothing can be trained again."""
        kept = {PARAMETERS_FILE: self.parameters, DATASET_FILE: self.dataset}
        return [name for name, content in kept.items() if content is None]

    @property
    def threads(self) -> str | None:
        """What OMP_NUM_THREADS was in each rank, where it is known."""
        if self.statement is None:
            return None
        internal = self.statement["predicate"]["buildDefinition"]["internalParameters"]
        threads = internal.get("threadsPerRank", "")
        return threads if threads.isdigit() else None


def read_record(
    client: MlflowClient, version: ModelVersion, folder: Path, project: Path, source: str | None
) -> Record:
    """Return what a version's run kept, its files compared with the provenance.

    Args:
        client: Of the store that has both.
        version: The version.
        folder: Takes the files.
        project: What relative paths in the parameters are relative to; they come back absolute.
        source: Where the data are now, if they have moved.
    """
    run = client.get_run(str(version.run_id))
    names = (STATEMENT_FILE, PARAMETERS_FILE, RECORD_FILE, DATASET_FILE, PATCH_FILE)
    raw: dict[str, bytes] = {}
    for name in names:
        if file := download_run_artifact(client, run.info.run_id, name, folder):
            raw[name] = file.read_bytes()
    statement = json.loads(raw[STATEMENT_FILE]) if STATEMENT_FILE in raw else None
    environment = raw.get(RECORD_FILE)
    tags = {key.removeprefix(TAG): text for key, text in run.data.tags.items()}
    return Record(
        tags,
        run.data.params,
        statement,
        _localise(raw.get(PARAMETERS_FILE), project, source),
        json.loads(environment) if environment else None,
        json.loads(raw[DATASET_FILE]) if DATASET_FILE in raw else None,
        raw.get(PATCH_FILE) if "patch_sha256" in tags else None,
        tuple(_changed(version, raw, statement, tags)),
    )


def _localise(raw: bytes | None, project: Path, source: str | None) -> dict[str, Any] | None:
    """Return the parameters with the source and a base's folder as any folder finds them."""
    if raw is None:
        return None
    parameters: dict[str, Any] = yaml.safe_load(raw)
    data, model = parameters["data"], parameters["train"]["model"]
    data["source"] = source or data["source"]
    if data["source"] != SAMPLE and "://" not in data["source"]:
        data["source"] = str((project / data["source"]).resolve())
    if (project / model["name"]).is_dir():
        model["name"] = str((project / model["name"]).resolve())
    return parameters


def _changed(
    version: ModelVersion,
    raw: Mapping[str, bytes],
    statement: Mapping[str, Any] | None,
    tags: Mapping[str, str],
) -> Iterator[Difference]:
    """Yield what was edited since: the provenance itself, then what it has a digest of."""
    expected = version.tags.get(STATEMENT_TAG)
    if expected and _sha256(raw.get(STATEMENT_FILE)) != expected:
        yield Difference("files", _instead(STATEMENT_FILE, raw.get(STATEMENT_FILE), expected))
        return
    if statement:
        yield from _changed_tags(statement, tags)
    inputs = {PATCH_FILE: "code", PARAMETERS_FILE: "configuration", RECORD_FILE: "environment"}
    for name, cause in inputs.items():
        listed = recorded_digest(statement, name) if statement else None
        if name == PATCH_FILE:
            listed = listed or tags.get("patch_sha256")
        if listed and _sha256(raw.get(name)) != listed:
            yield Difference(cause, _instead(name, raw.get(name), listed))


def _sha256(raw: bytes | None) -> str | None:
    return None if raw is None else hashlib.sha256(raw).hexdigest()


def _instead(name: str, raw: bytes | None, expected: str) -> str:
    found = _sha256(raw)
    return f"{name}: {f'sha256 {found}' if found else 'missing'} instead of sha256 {expected}"
