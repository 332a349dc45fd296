"""What a version was made of: the in-toto statement about it.

The statement is in-toto's Statement v1 with SLSA's provenance v1 as its predicate, so that a reader
needs no other document than https://slsa.dev/spec/v1.0/provenance.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from typing import Any
from urllib.parse import quote

import yaml

from account_tax.confidential import public_source
from account_tax.storage.names import PARAMETERS_FILE, PATCH_FILE, RECORD_FILE

from .code import BEFORE

STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
BUILD_TYPE = "urn:account-tax:training:v1"  # docs/design.md has its schema; no host serves it
BUILDER = "urn:account-tax:kedro-train"
NOT_RECORDED = "not recorded"


# --- the statement --------------------------------------------------------------------------------


@dataclass(frozen=True)
class RunRecord:
    """What the training's MLflow run knows of its inputs.

    Attributes:
        run_id: The run.
        tags: Its tags without their prefix; used are those of `Code.tags`, `BEFORE`, and the
            command, which has no secrets.
        world_size: Ranks, as text.
        threads: What OMP_NUM_THREADS was in each rank, as text: sums depend on it.
        started: Seconds since the epoch.
        files: Bytes of parameters.yml, environment.json, dataset_metadata.json,
            training_metrics.json and test_answers.json, by name, those that are there.
    """

    run_id: str
    tags: Mapping[str, str]
    world_size: str | None
    threads: str | None
    started: float
    files: Mapping[str, bytes] = field(default_factory=dict[str, bytes])


def build_statement(
    record: RunRecord,
    manifest: Mapping[str, Any],
    digests: Mapping[str, str],
    dataset: Mapping[str, Any],
    base: Mapping[str, Any],
    finished: float,
) -> dict[str, Any]:
    """Return the in-toto statement of a classifier: what it is, and what it was made of.

    Args:
        record: The training's run.
        manifest: manifest.json of the classifier; its files are the subject.
        digests: Used are manifest_sha256 and config_sha256.
        dataset: dataset_metadata.json.
        base: The pin of the base model, from classifier.json.
        finished: Seconds since the epoch.

    Source: in-toto attestation, Statement v1; SLSA provenance v1.
    """
    environment = json.loads(record.files.get(RECORD_FILE, b"null"))
    parameters = yaml.safe_load(record.files.get(PARAMETERS_FILE, b""))
    return {
        "_type": STATEMENT_TYPE,
        "subject": _subject(manifest, digests),
        "predicateType": PREDICATE_TYPE,
        "predicate": {
            "buildDefinition": {
                "buildType": BUILD_TYPE,
                "externalParameters": {
                    "command": record.tags.get("command", NOT_RECORDED),
                    "parameters": _public_values(parameters) if parameters else NOT_RECORDED,
                },
                "internalParameters": {
                    "ranks": record.world_size or NOT_RECORDED,
                    "threadsPerRank": record.threads or NOT_RECORDED,
                    "configurationSha256": digests.get("config_sha256", NOT_RECORDED),
                    "environment": environment or NOT_RECORDED,
                },
                "resolvedDependencies": [
                    *_code_dependencies(record.tags),
                    *_data_dependencies(dataset),
                    _base_dependency(base),
                    *_environment_dependencies(environment),
                ],
            },
            "runDetails": _run_details(record, finished),
        },
    }


def statement_bytes(statement: Mapping[str, Any]) -> bytes:
    """Return the statement as it is stored, hashed and signed."""
    return (json.dumps(statement, ensure_ascii=False, indent=2) + "\n").encode()


def _subject(manifest: Mapping[str, Any], digests: Mapping[str, str]) -> list[dict[str, Any]]:
    files = {name: entry["sha256"] for name, entry in manifest["files"].items()}
    files["manifest.json"] = digests["manifest_sha256"]
    return [{"name": name, "digest": {"sha256": files[name]}} for name in sorted(files)]


def _code_dependencies(tags: Mapping[str, str]) -> Iterator[dict[str, Any]]:
    if commit := tags.get("commit"):
        dirty = tags.get("dirty") == "true"
        notes = {"dirty": dirty} | ({"before": tags[BEFORE]} if BEFORE in tags else {})
        yield {"name": "code", "digest": {"gitCommit": commit}, "annotations": notes}
    if patch := tags.get("patch_sha256"):
        yield {"name": PATCH_FILE, "digest": {"sha256": patch}, "mediaType": "text/x-diff"}
    if package := tags.get("package_sha256"):
        yield {"name": "package", "digest": {"sha256": package}}


def _data_dependencies(dataset: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    digest = {"sha256": dataset["source_sha256"]}
    source = public_source(dataset["source"])
    yield {"name": "data/source", "digest": digest, "annotations": {"source": source}}
    for name, split in dataset["splits"].items():
        rows = {"rows": split["rows"]}
        yield {"name": f"data/{name}", "digest": {"sha256": split["sha256"]}, "annotations": rows}


def _base_dependency(base: Mapping[str, Any]) -> dict[str, Any]:
    """Return the base model; one of the hub has a package URL, pinned by its commit."""
    entry = {"name": "base", "digest": {"sha256": base["sha256"]}}
    if base["kind"] == "hub":
        entry["uri"] = f"pkg:huggingface/{quote(base['name'])}@{base['revision']}"
    return entry | {"annotations": {key: base.get(key) for key in ("name", "kind", "revision")}}


def _environment_dependencies(environment: Mapping[str, Any] | None) -> Iterator[dict[str, Any]]:
    if environment and environment.get("lock_sha256"):
        yield {
            "name": "environment lock",
            "digest": {"sha256": environment["lock_sha256"]},
            "annotations": {"differences": environment["differences"]},
        }


def _run_details(record: RunRecord, finished: float) -> dict[str, Any]:
    versions = {name: metadata.version(name) for name in ("mlflow", "kedro")}
    return {
        "builder": {"id": BUILDER, "version": versions},
        "metadata": {
            "invocationId": record.run_id,
            "startedOn": _timestamp(record.started),
            "finishedOn": _timestamp(finished),
        },
        "byproducts": [
            {"name": name, "digest": {"sha256": hashlib.sha256(raw).hexdigest()}}
            for name, raw in record.files.items()
        ],
    }


def recorded_digest(statement: Mapping[str, Any], name: str) -> str | None:
    """Return the digest a statement has of a dependency or byproduct, or None."""
    predicate = statement["predicate"]
    entries: Sequence[Mapping[str, Any]] = [
        *predicate["buildDefinition"]["resolvedDependencies"],
        *predicate["runDetails"].get("byproducts", []),
    ]
    found = [entry["digest"] for entry in entries if entry.get("name") == name]
    return next(iter(found[0].values())) if found else None


def _public_values(parameters: Mapping[str, Any]) -> dict[str, Any]:
    data = {**parameters["data"], "source": public_source(parameters["data"]["source"])}
    return {**parameters, "data": data}


def _timestamp(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
