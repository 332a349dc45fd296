"""A version's provenance, logged to its run, and the signatures of whoever registered it."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from mlflow import MlflowClient

from account_tax.provenance.signing import (
    KEY_TAG,
    SIGNATURES,
    SignatureError,
    fingerprint,
    load_private_key,
    sign_version,
)
from account_tax.provenance.statement import RunRecord, build_statement, statement_bytes
from account_tax.registry.record import read_artifacts
from account_tax.storage.names import (
    PARAMETERS_FILE,
    RECORD_FILE,
    STATEMENT_FILE,
    STATEMENT_TAG,
    TAG,
)


def log_statement(
    client: MlflowClient, run_id: str, facts: Mapping[str, Any], manifest: Mapping[str, Any]
) -> str:
    """Log the provenance of a classifier to its run and return its sha256.

    Args:
        client: Of the store that has the run.
        run_id: The training's run.
        facts: See `write_card`.
        manifest: manifest.json of the classifier.
    """
    record = read_run(client, run_id)
    statement = build_statement(
        record,
        manifest,
        facts["digests"],
        facts["dataset"],
        facts["settings"]["base"],
        yaml.safe_load(record.parameters) if record.parameters else None,
        time.time(),
    )
    raw = statement_bytes(statement)
    client.log_text(run_id, raw.decode(), STATEMENT_FILE)
    return hashlib.sha256(raw).hexdigest()


def read_run(client: MlflowClient, run_id: str) -> RunRecord:
    """Return what a training's run knows of its inputs."""
    run = client.get_run(run_id)
    ranks = run.data.params.get("launch.world_size")
    tags = {key.removeprefix(TAG): text for key, text in run.data.tags.items()}
    raw = read_artifacts(client, run_id, (PARAMETERS_FILE, RECORD_FILE))
    return RunRecord(
        run_id,
        tags,
        ranks,
        _threads(ranks),
        run.info.start_time / 1000,
        raw.get(PARAMETERS_FILE),
        raw.get(RECORD_FILE),
    )


def _threads(ranks: str | None) -> str | None:
    """Return the threads of each rank, as the launcher hands out cores."""
    if ranks is None:
        return None
    shared = max(1, len(os.sched_getaffinity(0)) // int(ranks))
    return os.environ.get("OMP_NUM_THREADS", str(shared))


def sign_registered(client: MlflowClient, name: str, number: int, folder: Path, key: Path) -> None:
    """Sign a version's files and its provenance; the signatures go to the version's own run.

    That may be an earlier run than this one: the same content is the same version.

    Raises:
        SignatureError: If the key can't be used, or the run's provenance is not the version's.
    """
    private_key = load_private_key(key)
    version = client.get_model_version(name, str(number))
    run_id = str(version.run_id)
    raw = read_artifacts(client, run_id, (STATEMENT_FILE,)).get(STATEMENT_FILE, b"")
    expected = version.tags.get(STATEMENT_TAG)
    if hashlib.sha256(raw).hexdigest() != expected:
        raise SignatureError(
            f"{name} version {number}: nothing is signed, since {STATEMENT_FILE} of its run is not "
            f"the one of its tag {STATEMENT_TAG} ({expected or 'not set'}). "
            "Restore it, or delete the version and train again."
        )
    for signature, text in sign_version(folder, name, raw, private_key).items():
        client.log_text(run_id, text, f"{SIGNATURES}/{signature}")
    client.set_model_version_tag(
        name, version.version, KEY_TAG, fingerprint(private_key.public_key())
    )
