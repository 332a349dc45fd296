"""Signatures with real keys; each kind of forgery is refused."""

import base64
import json
import os
import subprocess
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from account_tax.provenance.signing import (
    PASSPHRASE_VARIABLE,
    VERIFY_VARIABLE,
    SignatureError,
    check_signatures,
    load_private_key,
    load_public_key,
    model_statement,
    sign_version,
    verify_key,
)

# Where model-signing is installed, its own command checks our signature too.
MODEL_SIGNING = os.environ.get("MODEL_SIGNING_COMMAND", "")


def write_key(folder, key, passphrase=None):
    folder.mkdir(exist_ok=True)
    lock = BestAvailableEncryption(passphrase) if passphrase else NoEncryption()
    private, public = folder / "key.pem", folder / "key.pub"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, lock))
    public.write_bytes(
        key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    )
    return private, public


@pytest.fixture
def keys(tmp_path):
    return write_key(tmp_path / "keys", ec.generate_private_key(ec.SECP256R1()))


@pytest.fixture
def signed(tmp_path, keys):
    """A model's folder, its classifier's, what they are signed as, and the run's folder."""
    folder = tmp_path / "model" / "artifacts"
    (folder / "deep").mkdir(parents=True)
    (folder / "weights.safetensors").write_bytes(b"\x00\x01")
    (folder / "deep" / "vocab.txt").write_text("lunch\n")
    (folder / "manifest.json").write_text("{}")
    resources = model_statement(folder, "x")["predicate"]["resources"]
    subject = [{"name": each["name"], "digest": {"sha256": each["digest"]}} for each in resources]
    run = {"runDetails": {"metadata": {"invocationId": "run"}}}
    statement = json.dumps({"subject": subject, "predicate": run})
    sign(tmp_path, statement, keys)
    return tmp_path / "model", folder, ("account-tax/1", "run"), tmp_path / "run"


def sign(tmp_path, statement, keys):
    signatures = tmp_path / "run" / "signatures"
    signatures.mkdir(parents=True, exist_ok=True)
    (signatures.parent / "provenance.json").write_text(statement)
    key = load_private_key(keys[0])
    made = sign_version(tmp_path / "model", "account-tax/1", statement.encode(), key)
    for name, text in made.items():
        (signatures / name).write_text(text)


def test_a_signature_by_the_key_holds(signed, keys):
    check_signatures(*signed, load_public_key(keys[1]))


@pytest.mark.parametrize("name", ["weights.safetensors", "manifest.json", "deep/vocab.txt"])
def test_a_changed_file_is_found(signed, keys, name):
    file = signed[1] / name
    file.write_bytes(file.read_bytes() + b"\n")
    with pytest.raises(SignatureError, match=name):
        check_signatures(*signed, load_public_key(keys[1]))


def test_an_added_or_removed_file_is_found(signed, keys):
    (signed[1] / "more.json").write_text("{}")
    (signed[1] / "weights.safetensors").unlink()
    with pytest.raises(SignatureError, match=r"/more\.json, artifacts/weights\.safetensors"):
        check_signatures(*signed, load_public_key(keys[1]))


def test_changed_provenance_is_found(signed, keys):
    statement = signed[3] / "provenance.json"
    statement.write_text(statement.read_text() + " ")
    with pytest.raises(SignatureError, match=r"another provenance\.json"):
        check_signatures(*signed, load_public_key(keys[1]))


@pytest.mark.parametrize("change", ['"weights.safetensors"', '"run"'])
def test_provenance_of_another_classifier_or_run_is_found(signed, keys, tmp_path, change):
    statement = (signed[3] / "provenance.json").read_text().replace(change, '"other"')
    sign(tmp_path, statement, keys)
    with pytest.raises(SignatureError, match="another classifier or run"):
        check_signatures(*signed, load_public_key(keys[1]))


def test_another_name_or_number_is_found(signed, keys):
    for name in ("account-tax/2", "payroll/1", "account-tax"):
        asked = (*signed[:2], (name, "run"), signed[3])
        with pytest.raises(SignatureError, match=f"signed as account-tax/1, not as {name}"):
            check_signatures(*asked, load_public_key(keys[1]))


def test_mlflows_own_note_beside_a_download_is_no_other_file(signed, keys):
    (signed[0] / "registered_model_meta").write_text("model_name: account-tax\n")
    check_signatures(*signed, load_public_key(keys[1]))


def test_another_key_is_refused_also_where_it_claims_to_be_the_right_one(signed, tmp_path):
    other = write_key(tmp_path / "other", ec.generate_private_key(ec.SECP256R1()))
    key = load_public_key(other[1])
    with pytest.raises(SignatureError, match="signed by the key"):
        check_signatures(*signed, key)
    for bundle in (signed[3] / "signatures").iterdir():
        content = json.loads(bundle.read_text())
        content["verificationMaterial"]["publicKey"] = {}
        bundle.write_text(json.dumps(content))
    with pytest.raises(SignatureError, match="not of what it holds"):
        check_signatures(*signed, key)


@pytest.mark.parametrize("missing", ["model.sig", "provenance.sig"])
def test_a_missing_signature_is_refused(signed, keys, missing):
    (signed[3] / "signatures" / missing).unlink()
    with pytest.raises(SignatureError, match=f"{missing}: there is no such signature"):
        check_signatures(*signed, load_public_key(keys[1]))


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"dsseEnvelope": null}', "\x00", "[" * 9999])
def test_a_broken_signature_is_refused(signed, keys, text):
    (signed[3] / "signatures/model.sig").write_text(text)
    with pytest.raises(SignatureError, match="not a signature"):
        check_signatures(*signed, load_public_key(keys[1]))


def test_a_payload_put_under_a_good_signature_is_refused(signed, keys):
    bundle = signed[3] / "signatures/model.sig"
    content = json.loads(bundle.read_text())
    payload = json.loads(base64.b64decode(content["dsseEnvelope"]["payload"]))
    payload["predicate"]["resources"][0]["digest"] = "0" * 64
    content["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(payload).encode()).decode()
    bundle.write_text(json.dumps(content))
    with pytest.raises(SignatureError, match="not of what it holds"):
        check_signatures(*signed, load_public_key(keys[1]))


def test_the_passphrase_comes_from_the_environment(tmp_path, monkeypatch):
    key = ec.generate_private_key(ec.SECP256R1())
    private, _ = write_key(tmp_path, key, b"open sesame")
    monkeypatch.delenv(PASSPHRASE_VARIABLE, raising=False)
    with pytest.raises(SignatureError, match=PASSPHRASE_VARIABLE):
        load_private_key(private)
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "wrong")
    with pytest.raises(SignatureError, match=PASSPHRASE_VARIABLE) as caught:
        load_private_key(private)
    assert "wrong or" in str(caught.value)
    monkeypatch.setenv(PASSPHRASE_VARIABLE, "open sesame")
    assert load_private_key(private).private_numbers() == key.private_numbers()


@pytest.mark.parametrize(
    "key",
    [ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048)],
    ids=["P-384", "RSA"],
)
def test_another_kind_of_key_is_refused(tmp_path, key):
    private, public = write_key(tmp_path, key)
    with pytest.raises(SignatureError, match="another kind of key"):
        load_private_key(private)
    with pytest.raises(SignatureError, match="another kind of key"):
        load_public_key(public)


def test_no_key_and_no_file_are_refused(tmp_path):
    (tmp_path / "text.pem").write_text("a secret that no message repeats")
    for name in ("text.pem", "missing.pem"):
        for load in (load_private_key, load_public_key):
            with pytest.raises(SignatureError, match="can't be read") as caught:
                load(tmp_path / name)
            assert "secret" not in str(caught.value)


def test_the_key_given_goes_before_the_variables(monkeypatch):
    monkeypatch.delenv(VERIFY_VARIABLE, raising=False)
    assert verify_key() is None
    monkeypatch.setenv(VERIFY_VARIABLE, "all.pub")
    assert verify_key() == Path("all.pub")
    assert verify_key(Path("one.pub")) == Path("one.pub")


@pytest.mark.skipif(not MODEL_SIGNING, reason="MODEL_SIGNING_COMMAND names no model_signing")
def test_model_signing_takes_our_signature(signed, keys):
    (signed[0] / "registered_model_meta").write_text("as MLflow leaves it beside a download")
    words = [
        "verify",
        "key",
        str(signed[0]),
        "--signature",
        str(signed[3] / "signatures/model.sig"),
    ]
    done = subprocess.run([MODEL_SIGNING, *words, "--public_key", str(keys[1])], check=False)
    assert done.returncode == 0
