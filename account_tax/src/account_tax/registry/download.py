"""A registered version on this disk, every byte of it checked."""

from __future__ import annotations

import json
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities.model_registry import ModelVersion
from mlflow.models import Model
from yaml import YAMLError

from account_tax.model.classifier import MANIFEST_FILE, TamperedModelError, check_manifest
from account_tax.provenance.signing import (
    SIGNATURES,
    PublicKey,
    SignatureError,
    check_signatures,
    load_public_key,
    verify_key,
)
from account_tax.storage.files import sha256_of
from account_tax.storage.names import STATEMENT_FILE

from .record import fetch_artifacts


def download_version(version: ModelVersion, folder: Path, public_key: Path | None = None) -> Path:
    """Download a version below `folder` and return the classifier's own folder, checked.

    Args:
        version: Which.
        folder: Takes the files.
        public_key: The key that has to have signed it; without one the key that the variable
            ACCOUNT_TAX_VERIFY_KEY names, where it is set, so that none can forget it.

    Raises:
        TamperedModelError: If any byte of it is not what its manifest lists.
        SignatureError: If a signature is asked for and missing, or not by that key.
    """
    key_file = verify_key(public_key)
    key = load_public_key(key_file) if key_file else None
    uri = f"models:/{version.name}/{version.version}"
    path = Path(download_artifacts(uri, dst_path=str(folder)))
    classifier = _find_classifier(version, path)
    _check_manifest_tag(version, classifier)
    check_manifest(classifier)
    _check_code(version, path, classifier)
    if key:
        _check_signed(version, classifier, folder / "signed", key)
    return classifier


def _check_signed(version: ModelVersion, classifier: Path, folder: Path, key: PublicKey) -> None:
    """Check the signatures that lie among the artifacts of the version's run."""
    fetch_artifacts(MlflowClient(), str(version.run_id), (STATEMENT_FILE, SIGNATURES), folder)
    try:
        check_signatures(classifier, folder / STATEMENT_FILE, folder / SIGNATURES, key)
    except SignatureError as err:
        raise SignatureError(f"{version.name} version {version.version}: {err}") from err


def _find_classifier(version: ModelVersion, folder: Path) -> Path:
    """Return the classifier's folder below the logged model's, as MLmodel names it."""
    try:
        flavor = Model.load(folder).flavors[mlflow.pyfunc.FLAVOR_NAME]
        return folder / flavor["artifacts"]["classifier"]["path"]
    except (KeyError, TypeError, ValueError, AttributeError, YAMLError) as err:
        raise TamperedModelError(
            f"{version.name} version {version.version}: MLmodel names no classifier. Restore the "
            "registry's copy, or register it again."
        ) from err


def _check_manifest_tag(version: ModelVersion, classifier: Path) -> None:
    """Compare the manifest with the version's tag.

    It lies beside the files it lists, so whoever changes one can change the other.
    """
    file, expected = classifier / MANIFEST_FILE, version.tags.get("manifest_sha256")
    found = sha256_of(file) if file.is_file() else "missing"
    if expected is None or found != expected:
        raise TamperedModelError(
            f"{version.name} version {version.version}: {MANIFEST_FILE}: sha256 {found}, the "
            f"version's tag manifest_sha256 says {expected}. This is not the classifier that was "
            "registered: restore the registry's copy, or register it again."
        )


def _check_code(version: ModelVersion, folder: Path, classifier: Path) -> None:
    """Compare the code that lies with the model with the manifest."""
    manifest = json.loads((classifier / MANIFEST_FILE).read_text(encoding="utf-8"))
    for name, entry in manifest["code"].items():
        code = folder / name
        if not code.is_file() or sha256_of(code) != entry["sha256"]:
            raise TamperedModelError(
                f"{version.name} version {version.version}: {name} is not the code that its "
                "manifest lists. Restore the registry's copy, or register it again."
            )
