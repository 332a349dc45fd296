"""A version's provenance, logged to its run, and the signatures of whoever registered it."""

from __future__ import annotations

import hashlib
import os
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

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
from account_tax.registry.download import download_unsigned, model_of
from account_tax.registry.record import INPUTS, read_artifacts, read_record
from account_tax.storage.names import (
    PATCH_FILE,
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
    names = [name for name in INPUTS if name != PATCH_FILE]  # which is among the dependencies
    files = read_artifacts(client, run_id, names)
    return RunRecord(run_id, tags, ranks, _threads(ranks), run.info.start_time / 1000, files)


def _threads(ranks: str | None) -> str | None:
    """Return the threads of each rank, as the launcher hands out cores."""
    if ranks is None:
        return None
    shared = max(1, len(os.sched_getaffinity(0)) // int(ranks))
    return os.environ.get("OMP_NUM_THREADS", str(shared))


def sign_registered(client: MlflowClient, name: str, number: int, key: Path) -> None:
    """Sign a version's files and its provenance; the signatures go to the version's own run.

    That may be an earlier run than this one: the same content is the same version.

    Raises:
        TamperedModelError: If a file is not the one that was registered.
        SignatureError: If the key can't be used, or the run keeps other files than it did.
    """
    private_key = load_private_key(key)
    version = client.get_model_version(name, str(number))
    run_id = str(version.run_id)
    raw = read_artifacts(client, run_id, (STATEMENT_FILE,)).get(STATEMENT_FILE, b"")
    changed = [each.text for each in read_record(client, version).changed]
    if changed or not raw or STATEMENT_TAG not in version.tags:
        raise SignatureError(
            f"{name} version {number}: nothing is signed, since its run's files are not those of "
            f"its provenance: {'; '.join(changed) or STATEMENT_FILE}. "
            "Restore them, or delete the version and train again."
        )
    with tempfile.TemporaryDirectory() as scratch:
        model = model_of(download_unsigned(version, Path(scratch)))
        signed = sign_version(model, f"{name}/{number}", raw, private_key)
    for signature, text in signed.items():
        client.log_text(run_id, text, f"{SIGNATURES}/{signature}")
    client.set_model_version_tag(
        name, version.version, KEY_TAG, fingerprint(private_key.public_key())
    )
