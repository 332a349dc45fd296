"""What the run that trained a version recorded of its making; no torch."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException

from account_tax.provenance.statement import recorded_digest
from account_tax.storage.files import scratch_folder
from account_tax.storage.names import (
    ANSWERS_FILE,
    DATASET_METADATA_FILE,
    METRICS_FILE,
    PARAMETERS_FILE,
    PATCH_FILE,
    RECORD_FILE,
    STATEMENT_FILE,
    STATEMENT_TAG,
    TAG,
)

from .find import GONE

# A run's files that its provenance has the digest of, and what one that differs is a cause of.
INPUTS = {
    PATCH_FILE: "code",
    PARAMETERS_FILE: "configuration",
    RECORD_FILE: "environment",
    DATASET_METADATA_FILE: "data",
    METRICS_FILE: "files",
    ANSWERS_FILE: "files",
}


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
        tags: Of the run, without their prefix.
        params: Of the run; used is launch.world_size.
        metrics: Of the run, each one's last value; those it was registered with as
            training_metrics.json has them.
        seconds: From the run's start to its end.
        statement: provenance.json.
        parameters: parameters.yml: data, train, registry.
        environment: environment.json.
        dataset: dataset_metadata.json.
        patch: code.patch, where the run's code had one.
        changed: Files of the run that are not the ones the provenance names.
    """

    tags: Mapping[str, str] = field(default_factory=dict)
    params: Mapping[str, str] = field(default_factory=dict)
    metrics: Mapping[str, float] = field(default_factory=dict)
    seconds: float | None = None
    statement: dict[str, Any] | None = None
    parameters: dict[str, Any] | None = None
    environment: dict[str, Any] | None = None
    dataset: dict[str, Any] | None = None
    patch: bytes | None = None
    changed: tuple[Difference, ...] = ()

    @property
    def data(self) -> dict[str, Any] | None:
        """The parameters of data.yml."""
        return self.parameters and self.parameters["data"]

    def digest(self, name: str) -> str | None:
        """Return the digest that the provenance has of an input or a file, such as data/test."""
        return recorded_digest(self.statement, name) if self.statement else None

    @property
    def missing(self) -> list[str]:
        """The names of the files without which nothing can be trained again."""
        kept = {PARAMETERS_FILE: self.parameters, DATASET_METADATA_FILE: self.dataset}
        return [name for name, content in kept.items() if content is None]

    @property
    def threads(self) -> str | None:
        """What OMP_NUM_THREADS was in each rank, where it is known."""
        if self.statement is None:
            return None
        internal = self.statement["predicate"]["buildDefinition"]["internalParameters"]
        threads = internal.get("threadsPerRank", "")
        return threads if threads.isdigit() else None


def read_record(client: MlflowClient, version: ModelVersion) -> Record:
    """Return what a version's run kept, its files compared with the provenance.

    Of a run that is gone nothing is left but what the version itself says is missing.
    """
    try:
        run = client.get_run(str(version.run_id))
    except MlflowException as err:
        if err.error_code not in GONE:
            raise
        return Record(changed=tuple(_changed(version, {}, None, {})))
    raw = read_artifacts(client, run.info.run_id, (STATEMENT_FILE, *INPUTS))
    tags = {key.removeprefix(TAG): text for key, text in run.data.tags.items()}

    def read(name: str, parse: Callable[[bytes], Any] = json.loads) -> Any:
        return parse(raw[name]) if raw.get(name) else None

    statement = read(STATEMENT_FILE)
    ended = run.info.end_time
    return Record(
        tags,
        run.data.params,
        run.data.metrics | (read(METRICS_FILE) or {}),
        (ended - run.info.start_time) / 1000 if ended else None,
        statement,
        read(PARAMETERS_FILE, yaml.safe_load),
        read(RECORD_FILE),
        read(DATASET_METADATA_FILE),
        raw.get(PATCH_FILE) if "patch_sha256" in tags else None,
        tuple(_changed(version, raw, statement, tags)),
    )


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
    for name, cause in INPUTS.items():
        listed = recorded_digest(statement, name) if statement else None
        if name == PATCH_FILE:
            listed = listed or tags.get("patch_sha256")
        if listed and _sha256(raw.get(name)) != listed:
            yield Difference(cause, _instead(name, raw.get(name), listed))


def _changed_tags(statement: Mapping[str, Any], tags: Mapping[str, str]) -> Iterator[Difference]:
    """Yield each digest of code that the run has a tag of, and another one."""
    names = {"code": "commit", PATCH_FILE: "patch_sha256", "package": "package_sha256"}
    for name, tag in names.items():
        found, listed = tags.get(tag), recorded_digest(statement, name)
        if found != listed:
            yield Difference("code", f"the run's tag {TAG}{tag}: {found} instead of {listed}")


def _sha256(raw: bytes | None) -> str | None:
    return None if raw is None else hashlib.sha256(raw).hexdigest()


def _instead(name: str, raw: bytes | None, expected: str) -> str:
    found = _sha256(raw)
    return f"{name}: {f'sha256 {found}' if found else 'missing'} instead of sha256 {expected}"


# --- a run's artifacts ----------------------------------------------------------------------------


def fetch_artifacts(
    client: MlflowClient, run_id: str, names: Iterable[str], folder: Path
) -> dict[str, Path]:
    """Return those of a run's artifacts, files or folders, that are there, below `folder`."""
    there = {item.path for item in client.list_artifacts(run_id)}
    folder.mkdir(parents=True, exist_ok=True)
    return {
        name: Path(client.download_artifacts(run_id, name, str(folder)))
        for name in names
        if name in there
    }


def read_artifacts(client: MlflowClient, run_id: str, names: Iterable[str]) -> dict[str, bytes]:
    """Return the bytes of those of a run's files that are there, by name."""
    with scratch_folder() as scratch:
        found = fetch_artifacts(client, run_id, names, scratch)
        return {name: file.read_bytes() for name, file in found.items()}
