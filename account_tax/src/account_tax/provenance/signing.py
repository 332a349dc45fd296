"""Signatures of a version by a key that its users trust, made and checked offline.

The form is OpenSSF model-signing's key mode (1.1): a sigstore bundle whose DSSE envelope holds an
in-toto statement, so its own command checks the classifier's files as well:
`model_signing verify key FOLDER --signature model.sig --public_key key.pub`. It is written here
with `cryptography`: model-signing would bring fifteen packages (sigstore, tuf, ...) and, 1.1.1 with
sigstore 4.5, can't be imported without a sixteenth that neither names (pyOpenSSL).
"""

from __future__ import annotations

import base64
import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import ECDSA, SECP256R1
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePrivateKey as PrivateKey
from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey as PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)

from account_tax.errors import Refused
from account_tax.storage.files import NOT_READ, digests_below
from account_tax.storage.names import STATEMENT_FILE

from .environment import differing

SIGNATURES = "signatures"  # folder among the artifacts of the training's run
MODEL_SIGNATURE, STATEMENT_SIGNATURE = "model.sig", "provenance.sig"
KEY_TAG = "signed_by"  # of a version: the fingerprint of the key
PASSPHRASE_VARIABLE = "ACCOUNT_TAX_SIGN_KEY_PASSPHRASE"
VERIFY_VARIABLE = "ACCOUNT_TAX_VERIFY_KEY"
EXPECTED_KEY = "expected a PEM file with an EC P-256 key (openssl ecparam -name prime256v1 -genkey)"

MEDIA_TYPE = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD_TYPE = "application/vnd.in-toto+json"
MODEL_PREDICATE = "https://model_signing/signature/v1.0"
MLFLOW_NOTE = "registered_model_meta"  # MLflow writes it beside what it downloads
# model-signing's default, and MLflow's note.
IGNORED = [".git", ".gitattributes", ".github", ".gitignore", MLFLOW_NOTE]


class SignatureError(Refused):
    """A key can't be used, or a signature is missing, broken or by another key."""


# --- keys -----------------------------------------------------------------------------------------


def load_private_key(file: Path) -> PrivateKey:
    """Return the key that signs; its passphrase, where it has one, is in the environment.

    Raises:
        SignatureError: If it is no EC P-256 key, or the passphrase is missing or wrong.
    """
    passphrase = os.environ.get(PASSPHRASE_VARIABLE)
    try:
        raw = file.read_bytes()
        key = load_pem_private_key(raw, passphrase.encode() if passphrase else None)
    except (OSError, ValueError, TypeError, UnsupportedAlgorithm) as err:
        # The library's own text may quote the file; its kind says enough.
        locked = "a passphrase is needed, or the one given is wrong or too much; it is read from "
        raise SignatureError(
            f"registry.sign_key = {file}: can't be read ({type(err).__name__}); {EXPECTED_KEY}. "
            f"If it is one, {locked}{PASSPHRASE_VARIABLE}."
        ) from None
    if not isinstance(key, PrivateKey) or not isinstance(key.curve, SECP256R1):
        raise SignatureError(f"registry.sign_key = {file}: another kind of key; {EXPECTED_KEY}.")
    return key


def load_public_key(file: Path) -> PublicKey:
    """Return the key that a signature has to be by.

    Raises:
        SignatureError: If it is no EC P-256 public key.
    """
    expected = "expected the PEM file that `openssl ec -in KEY -pubout` writes"
    try:
        key = load_pem_public_key(file.read_bytes())
    except (OSError, ValueError, UnsupportedAlgorithm) as err:
        reason = f"can't be read as a public key ({type(err).__name__}); {expected}"
        raise SignatureError(f"verify_key = {file}: {reason}.") from None
    if not isinstance(key, PublicKey) or not isinstance(key.curve, SECP256R1):
        raise SignatureError(f"verify_key = {file}: another kind of key; {expected}.")
    return key


def verify_key(given: Path | None = None) -> Path | None:
    """Return the file of the key that signatures are to be by: the one given, or the variable's."""
    set_for_all = os.environ.get(VERIFY_VARIABLE)
    return given or (Path(set_for_all) if set_for_all else None)


def key_in_use() -> str:
    """Return the fingerprint of the key that everything has to be signed by; empty: none is set."""
    file = verify_key()
    return fingerprint(load_public_key(file)) if file else ""


def signer_faults(sign_key: str | None) -> list[str]:
    """Return why a decision can't be signed as the key that is in use asks."""
    try:
        own = sign_key and fingerprint(load_private_key(Path(sign_key)).public_key())
        if (wanted := key_in_use()) and own != wanted:
            return [
                f"registry.sign_key = {sign_key}: {VERIFY_VARIABLE} is set, so a decision has to "
                "be signed by that key. Give it (-P registry.sign_key=FILE)."
            ]
    except SignatureError as err:
        return [str(err)]
    return []


def key_faults(given: Path | None) -> list[str]:
    """Return what is wrong with the file of the key that signatures are to be by."""
    try:
        if file := verify_key(given):
            load_public_key(file)
    except SignatureError as err:
        return [str(err)]
    return []


def fingerprint(key: PublicKey) -> str:
    """Return the sha256 of the public key's PEM text, model-signing's name for a key."""
    pem = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    return hashlib.sha256(pem).hexdigest()


# --- signing --------------------------------------------------------------------------------------


def sign_statement(raw: bytes, key: PrivateKey) -> dict[str, Any]:
    """Return the sigstore bundle over an in-toto statement's bytes."""
    signature = key.sign(_pre_authentication(raw), ECDSA(SHA256()))
    return {
        "mediaType": MEDIA_TYPE,
        "verificationMaterial": {
            "publicKey": {"hint": fingerprint(key.public_key())},
            "tlogEntries": [],
        },
        "dsseEnvelope": {
            "payload": base64.b64encode(raw).decode(),
            "payloadType": PAYLOAD_TYPE,
            "signatures": [{"sig": base64.b64encode(signature).decode(), "keyid": ""}],
        },
    }


def model_statement(folder: Path, name: str) -> dict[str, Any]:
    """Return the statement model-signing makes of a folder: each file's sha256, and theirs."""
    files = digests_below(folder)
    files.pop(MLFLOW_NOTE, None)
    names = sorted(files)
    root = hashlib.sha256(bytes.fromhex("".join(files[each] for each in names))).hexdigest()
    return {
        "_type": "https://in-toto.io/Statement/v1",
        "subject": [{"name": name, "digest": {"sha256": root}}],
        "predicateType": MODEL_PREDICATE,
        "predicate": {
            "serialization": {
                "method": "files",
                "hash_type": "sha256",
                "allow_symlinks": False,
                "ignore_paths": IGNORED,
            },
            "resources": [
                {"name": each, "algorithm": "sha256", "digest": files[each]} for each in names
            ],
        },
    }


def sign_version(folder: Path, name: str, statement: bytes, key: PrivateKey) -> dict[str, str]:
    """Return the text of each signature file of a version, by its name.

    Args:
        folder: The logged model's, as MLflow downloads it: all that is loaded or run.
        name: The registered name and number, which the signature binds it to.
        statement: provenance.json.
        key: See `load_private_key`.
    """
    signed = {
        MODEL_SIGNATURE: json.dumps(model_statement(folder, name), indent=2).encode(),
        STATEMENT_SIGNATURE: statement,
    }
    return {file: json.dumps(sign_statement(raw, key)) + "\n" for file, raw in signed.items()}


def _pre_authentication(payload: bytes) -> bytes:
    """Return what is signed. Source: DSSE 1.0, protocol.md."""
    return b"DSSEv1 %d %s %d " % (len(PAYLOAD_TYPE), PAYLOAD_TYPE.encode(), len(payload)) + payload


# --- checking -------------------------------------------------------------------------------------


def read_signed(bundle: Path, key: PublicKey) -> bytes:
    """Return what a bundle's signature is over.

    Raises:
        SignatureError: If there is no bundle, it is none, or its signature is not by this key.
    """
    if not bundle.is_file():
        raise SignatureError(
            f"{bundle.name}: there is no such signature. Train with -P sign_key=FILE, or do "
            "without a key to verify with."
        )
    return read_bundle(bundle.name, bundle.read_bytes(), key)


def read_bundle(name: str, bundle: bytes | str, key: PublicKey) -> bytes:
    """Return what the signature of a bundle of this name is over; raises as `read_signed`."""
    try:
        content: Mapping[str, Any] = json.loads(bundle)
        envelope = content["dsseEnvelope"]
        payload = base64.b64decode(envelope["payload"], validate=True)
        (signature,) = envelope["signatures"]
        raw = base64.b64decode(signature["sig"], validate=True)
        hint = content["verificationMaterial"]["publicKey"].get("hint")
        known = content["mediaType"] == MEDIA_TYPE and envelope["payloadType"] == PAYLOAD_TYPE
    except (*NOT_READ, AttributeError) as err:
        raise SignatureError(f"{name}: not a signature ({type(err).__name__}).") from None
    if not known:
        raise SignatureError(f"{name}: a signature of another kind.")
    if hint and hint != fingerprint(key):
        raise SignatureError(
            f"{name}: signed by the key {hint[:16]}…, expected {fingerprint(key)[:16]}…."
        )
    try:
        key.verify(raw, _pre_authentication(payload), ECDSA(SHA256()))
    except InvalidSignature:
        raise SignatureError(f"{name}: the signature is not of what it holds.") from None
    return payload


def check_signatures(
    model: Path, classifier: Path, named: tuple[str, str], run: Path, key: PublicKey
) -> None:
    """Check that a key has signed a version's files and its provenance, as they are here.

    Args:
        model: The downloaded model's folder.
        classifier: The classifier's folder in it.
        named: What it has to be signed as, and the id of the run that has to have made it.
        run: The folder with that run's provenance.json and signatures.
        key: See `load_public_key`.

    Raises:
        SignatureError: If not; the message names what was signed otherwise.
    """
    signed = json.loads(read_signed(run / SIGNATURES / MODEL_SIGNATURE, key))
    if signed.get("predicateType") != MODEL_PREDICATE:
        raise SignatureError(f"{MODEL_SIGNATURE}: signs no model.")
    if (name := signed["subject"][0]["name"]) != named[0]:
        raise SignatureError(f"{MODEL_SIGNATURE}: signed as {name}, not as {named[0]}.")
    there, listed = _resources(model_statement(model, "")), _resources(signed)
    if other := [name for name, *_ in differing(there, listed)]:
        raise SignatureError(f"{MODEL_SIGNATURE}: signed were other files: {', '.join(other)}.")
    statement = run / STATEMENT_FILE
    raw = statement.read_bytes() if statement.is_file() else b""
    if read_signed(run / SIGNATURES / STATEMENT_SIGNATURE, key) != raw:
        raise SignatureError(f"{STATEMENT_SIGNATURE}: signed was another {statement.name}.")
    content = json.loads(raw)
    subjects = {entry["name"]: entry["digest"]["sha256"] for entry in content["subject"]}
    made_by = content["predicate"]["runDetails"]["metadata"]["invocationId"]
    if subjects != digests_below(classifier) or made_by != named[1]:
        raise SignatureError(f"{statement.name}: it is about another classifier or run.")


def _resources(statement: Mapping[str, Any]) -> dict[str, str]:
    return {entry["name"]: entry["digest"] for entry in statement["predicate"]["resources"]}
