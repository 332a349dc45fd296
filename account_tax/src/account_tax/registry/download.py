"""A registered version on this disk, every byte of it checked."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import mlflow
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts
from mlflow.entities.model_registry import ModelVersion
from mlflow.exceptions import MlflowException
from mlflow.models import Model
from mlflow.models.model import MLMODEL_FILE_NAME
from yaml import YAMLError

from account_tax.errors import Refused
from account_tax.model.classifier import (
    MANIFEST_FILE,
    BaseModelError,
    TamperedModelError,
    check_manifest,
)
from account_tax.provenance.environment import differing
from account_tax.provenance.signing import (
    MLFLOW_NOTE,
    SIGNATURES,
    PublicKey,
    SignatureError,
    check_signatures,
    load_public_key,
    verify_key,
)
from account_tax.storage.files import (
    NOT_READ,
    canonical_sha256,
    digests_below,
    is_disk_error,
    sha256_of,
)
from account_tax.storage.names import CONTENT_TAG, MODEL_FILES_TAG, STATEMENT_FILE

from .find import DENIED
from .record import fetch_artifacts, read_record

OUTSIDE = "outside the artifact directory"  # in MLflow's words (3.17) on a link to another folder


def download_version(version: ModelVersion, folder: Path, public_key: Path | None = None) -> Path:
    """Download a version below `folder` and return the classifier's own folder, checked.

    With a key everything that any command loads, reads or runs of the version is checked: its
    files, and what its run keeps.

    Args:
        version: Which.
        folder: Takes the files.
        public_key: The key that has to have signed it; without one the key that the variable
            ACCOUNT_TAX_VERIFY_KEY names, where it is set, so that none can forget it.

    Raises:
        TamperedModelError: If any byte of it is not what its manifest and tags list.
        SignatureError: If a signature is asked for and missing, or not by that key.
    """
    key_file = verify_key(public_key)
    key = load_public_key(key_file) if key_file else None
    classifier = download_unsigned(version, folder)
    if key:
        _check_signed(version, classifier, folder / "run", key)
    return classifier


def download_unsigned(version: ModelVersion, folder: Path) -> Path:
    """Download a version as `download_version` does; no signature is asked for."""
    uri, place = f"models:/{version.name}/{version.version}", folder / "model"
    place.mkdir(parents=True, exist_ok=True)
    try:
        model = Path(download_artifacts(uri, dst_path=str(place)))
    except MlflowException as err:
        if OUTSIDE not in err.message:
            raise
        raise _tampered(version, "a link among its files leads out of its folder") from err
    # Loading a version from a store of files leaves compiled code there; none may be run.
    for compiled in sorted(place.rglob("__pycache__")):
        shutil.rmtree(compiled, ignore_errors=True)  # also of one in another
    listed = _listed_files(version)
    try:
        if listed.get(MLMODEL_FILE_NAME) != sha256_of(model / MLMODEL_FILE_NAME):
            raise ValueError(f"it is not the file that the tag {MODEL_FILES_TAG} lists")
        classifier = find_classifier(model)
    except (*NOT_READ, AttributeError, OSError, YAMLError) as err:
        raise _tampered(version, f"{MLMODEL_FILE_NAME} names no classifier ({err})") from err
    if other := [name for name, *_ in differing(files_around(model, classifier), listed)]:
        raise _tampered(version, f"{', '.join(other)}: not what its tag {MODEL_FILES_TAG} lists")
    check_manifest(classifier)
    content = json.loads((classifier / MANIFEST_FILE).read_text(encoding="utf-8"))
    content.pop("content_sha256", None)
    found = canonical_sha256(content, ensure_ascii=True)
    if found != (expected := version.tags.get(CONTENT_TAG)):
        raise _tampered(version, f"its content has sha256 {found}, its tag says {expected}")
    return classifier


def _listed_files(version: ModelVersion) -> dict[str, str]:
    if MODEL_FILES_TAG not in version.tags:
        raise _tampered(version, f"no tag {MODEL_FILES_TAG}, as a version of before has none")
    try:
        listed = json.loads(version.tags[MODEL_FILES_TAG])
    except NOT_READ:
        listed = None
    if not isinstance(listed, dict):
        raise _tampered(version, f"its tag {MODEL_FILES_TAG} is not what registration wrote")
    return listed


@contextmanager
def refuse_broken(title: str) -> Iterator[None]:
    """Refuse a version that is not the one registered, or can't be had; `title` names it."""
    try:
        yield
    except (TamperedModelError, BaseModelError, SignatureError) as err:
        named, _, rest = str(err).partition(": ")
        raise Refused(f"{title}: {rest if named in title else err}") from err
    except (OSError, MlflowException) as err:
        if getattr(err, "error_code", "") in DENIED:
            raise
        if is_disk_error(err):
            raise Refused(
                f"{title}: its files don't fit into {tempfile.gettempdir()}, whose disk is full. "
                "Free some space there, or set TMPDIR to a folder elsewhere."
            ) from err
        said = str(err).partition("\n")[0]
        raise Refused(
            f"{title}: its files can't be had ({type(err).__name__}: {said}). Restore the "
            "registry's artifacts, or start the server that keeps them."
        ) from err


def find_classifier(model: Path) -> Path:
    """Return the classifier's folder below a logged model's, as MLmodel names it."""
    flavor = Model.load(model).flavors[mlflow.pyfunc.FLAVOR_NAME]
    (artifact,) = flavor["artifacts"].values()
    classifier = (model / artifact["path"]).resolve()
    if model.resolve() not in classifier.parents:
        raise ValueError(f"{artifact['path']} is not in the model")
    return classifier


def files_around(model: Path, classifier: Path) -> dict[str, str]:
    """Return the sha256 of each file of a logged model but those that its manifest lists."""
    own = f"{classifier.relative_to(model.resolve()).as_posix()}/"
    kept = digests_below(model)
    kept.pop(MLFLOW_NOTE, None)
    manifest = own + MANIFEST_FILE
    return {name: kept[name] for name in kept if name == manifest or not name.startswith(own)}


def model_of(classifier: Path) -> Path:
    """Return the folder of the logged model in which a downloaded classifier lies."""
    return next(each for each in classifier.parents if (each / MLMODEL_FILE_NAME).is_file())


def _check_signed(version: ModelVersion, classifier: Path, folder: Path, key: PublicKey) -> None:
    """Check the signatures among the artifacts of the version's run, and what else it keeps."""
    client, run_id = MlflowClient(), str(version.run_id)
    fetch_artifacts(client, run_id, (STATEMENT_FILE, SIGNATURES), folder)
    named = (f"{version.name}/{version.version}", run_id)
    try:
        check_signatures(model_of(classifier), classifier, named, folder, key)
        if changed := read_record(client, version).changed:
            raise SignatureError(f"signed was {'; '.join(each.text for each in changed)}.")
    except SignatureError as err:
        raise SignatureError(f"{version.name} version {version.version}: {err}") from err


def _tampered(version: ModelVersion, what: str) -> TamperedModelError:
    return TamperedModelError(
        f"{version.name} version {version.version}: {what}. This is not the model that was "
        "registered: restore the registry's copy, or register it again."
    )
