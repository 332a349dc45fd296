"""A signed version attacked by who can edit the registry: found before anything is loaded."""

from __future__ import annotations

import json
import re
import shutil
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from cryptography.hazmat.primitives.asymmetric import ec
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from account_tax.errors import Refused
from account_tax.model.classifier import TamperedModelError
from account_tax.pipelines.register.attest import log_statement, sign_registered
from account_tax.pipelines.register.nodes import complete_settings, write_manifest
from account_tax.pipelines.register.registry import Candidate, create_version
from account_tax.provenance.signing import SignatureError
from account_tax.registry.download import download_version, model_of, refuse_broken
from account_tax.review.allowed import Proposal
from account_tax.review.command import _roll_back
from account_tax.storage.files import sha256_of
from tests.pipelines.register.conftest import DATASET_METADATA, LABELS, save_classifier
from tests.provenance.test_signing import write_key

NAME = "account-tax"


@pytest.fixture(scope="module")
def shop(tmp_path_factory, tiny_base):
    """Two versions of one model, signed, and the key that a user trusts."""
    folder = tmp_path_factory.mktemp("signed")
    keys = write_key(folder / "keys", ec.generate_private_key(ec.SECP256R1()))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder / 'mlflow.db'}")
        client = MlflowClient()
        experiment = client.create_experiment("ledger", str(folder / "mlruns"))
        for number in (1, 2):
            register_signed(client, experiment, folder / f"adapter-{number}", tiny_base, keys[0])
        yield SimpleNamespace(client=client, key=keys[1])


def register_signed(client, experiment, adapter, base, key):
    tags = {"account_tax.commit": "9" * 40, "account_tax.dirty": "false"}
    run_id = client.create_run(experiment, tags=tags).info.run_id
    save_classifier(adapter, str(base), LABELS)
    complete_settings(adapter, DATASET_METADATA, {"temperature": 1.0, "of": adapter.name})
    manifest = write_manifest(adapter)
    client.log_text(run_id, "data: {source: ledger.csv}\n", "parameters.yml")
    client.log_text(run_id, "{}", "environment.json")
    client.log_text(run_id, "{}", "training_metrics.json")
    client.log_text(run_id, "{}", "test_answers.json")
    client.log_dict(run_id, DATASET_METADATA, "dataset_metadata.json")
    settings = json.loads((adapter / "classifier.json").read_text())
    digests = {"manifest_sha256": sha256_of(adapter / "manifest.json")}
    facts = {"digests": digests, "dataset": DATASET_METADATA, "settings": settings}
    tags = digests | {"provenance_sha256": log_statement(client, run_id, facts, manifest)}
    candidate = Candidate(adapter, manifest["content_sha256"], tags, "")
    version = create_version(client, run_id, NAME, candidate)
    sign_registered(client, NAME, int(version.version), key)


def version_of(shop, number=2, name=NAME):
    return shop.client.get_model_version(name, str(number))


def model_folder(shop, number=2) -> Path:
    source = str(version_of(shop, number).source).removeprefix("models:/")
    return Path(shop.client.get_logged_model(source).artifact_location)


def run_folder(shop, number=2) -> Path:
    return Path(shop.client.get_run(str(version_of(shop, number).run_id)).info.artifact_uri)


@contextmanager
def put_back(folder: Path, scratch: Path):
    """Undo whatever is done to a folder."""
    shutil.copytree(folder, scratch)
    try:
        yield folder
    finally:
        shutil.rmtree(folder)
        shutil.copytree(scratch, folder)


def test_what_was_signed_is_taken(shop, tmp_path):
    for number in (1, 2):
        folder = download_version(version_of(shop, number), tmp_path / str(number), shop.key)
        assert (folder / "adapter_model.safetensors").is_file()


def test_compiled_code_beside_the_model_is_never_taken(shop, tmp_path):
    with put_back(model_folder(shop), tmp_path / "kept") as folder:
        for place in (folder / "__pycache__", folder / "artifacts/adapter-2/__pycache__"):
            place.mkdir()
            (place / "classifier.cpython-311.pyc").write_bytes(b"foreign")
        classifier = download_version(version_of(shop), tmp_path / "found", shop.key)
        assert not list(model_of(classifier).rglob("__pycache__"))
        assert (folder / "__pycache__").is_dir()  # the registry's own is left alone


AROUND = (
    *("MLmodel", "requirements.txt", "python_env.yaml", "conda.yaml", "input_example.json"),
    *("serving_input_example.json", "classifier.py", "artifacts/adapter-2/manifest.json"),
)


@pytest.mark.parametrize("key", [True, False], ids=["key", "no-key"])
@pytest.mark.parametrize("name", AROUND)
def test_a_file_around_the_classifier_is_one_of_the_version(shop, tmp_path, name, key):
    with put_back(model_folder(shop), tmp_path / "kept") as folder:
        with (folder / name).open("a") as file:
            file.write("\n")
        with pytest.raises(TamperedModelError, match=rf"version 2: .*{name}"):
            download_version(version_of(shop), tmp_path / "found", shop.key if key else None)


@pytest.mark.parametrize("key", [True, False], ids=["key", "no-key"])
@pytest.mark.parametrize(
    "name", ["foreign.py", "artifacts/foreign.py", "code/foreign.py", "registered_model_meta.py"]
)
def test_a_file_that_nothing_lists_is_refused(shop, tmp_path, name, key):
    with put_back(model_folder(shop), tmp_path / "kept") as folder:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text("print('foreign')\n")
        with pytest.raises(TamperedModelError, match=name):
            download_version(version_of(shop), tmp_path / "found", shop.key if key else None)


def test_a_link_to_a_folder_elsewhere_is_refused_and_not_followed(shop, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/salaries.csv").touch()
    with put_back(model_folder(shop), tmp_path / "kept") as folder:
        (folder / "extra").symlink_to(tmp_path / "mine")
        with pytest.raises(TamperedModelError, match="version 2: a link among its files leads"):
            download_version(version_of(shop), tmp_path / "found")
    assert not list((tmp_path / "found").rglob("salaries.csv"))


def test_a_temporary_folder_without_space_is_said_in_a_line():
    many = "\n".join(f"##### File {n} #####\n[Errno 28] No space left on device" for n in "ab")
    with pytest.raises(Refused) as refused, refuse_broken("account-tax version 2"):
        raise MlflowException(f"The following failures occurred\n{many}")
    assert re.fullmatch(r".* version 2: its files don't fit into .*TMPDIR.*", str(refused.value))


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ("account-tax version 2: MLmodel: not what it lists.", "MLmodel: not what it lists."),
        ("this is not the classifier: a: missing", "this is not the classifier: a: missing"),
    ],
)
def test_a_version_is_named_once(said, expected):
    title = "model = models:/account-tax/2 (-P model): account-tax version 2"
    with pytest.raises(Refused) as refused, refuse_broken(title):
        raise TamperedModelError(said)
    assert str(refused.value) == f"{title}: {expected}"


def test_foreign_code_is_refused_also_where_the_versions_tags_were_made_to_fit(shop, tmp_path):
    version = version_of(shop)
    with put_back(model_folder(shop), tmp_path / "kept") as folder:
        (folder / "foreign.py").write_text("print('foreign')\n")
        content = yaml.safe_load((folder / "MLmodel").read_text())
        content["flavors"]["python_function"]["model_code_path"] = "foreign.py"
        (folder / "MLmodel").write_text(yaml.safe_dump(content))
        files = json.loads(version.tags["model_files"])
        files |= {name: sha256_of(folder / name) for name in ("MLmodel", "foreign.py")}
        version.tags["model_files"] = json.dumps(files)
        assert download_version(version, tmp_path / "no-key")  # nothing but the tags can tell
        with pytest.raises(SignatureError, match=r"other files: MLmodel, foreign\.py"):
            download_version(version, tmp_path / "found", shop.key)


def test_another_content_is_refused_also_where_manifest_and_tags_were_made_to_fit(shop, tmp_path):
    version = version_of(shop)
    with put_back(model_folder(shop), tmp_path / "kept") as folder:
        adapter = folder / "artifacts/adapter-2"
        shutil.copy(model_folder(shop, 1) / "artifacts/adapter-1/classifier.json", adapter)
        manifest = write_manifest(adapter)
        files = json.loads(version.tags["model_files"])
        files["artifacts/adapter-2/manifest.json"] = sha256_of(adapter / "manifest.json")
        version.tags["model_files"] = json.dumps(files)
        with pytest.raises(TamperedModelError, match="its content has sha256"):
            download_version(version, tmp_path / "found")
        (adapter / "manifest.json").write_text(json.dumps(manifest | {"content_sha256": "0" * 64}))
        files["artifacts/adapter-2/manifest.json"] = sha256_of(adapter / "manifest.json")
        version.tags.update(model_files=json.dumps(files), content_sha256="0" * 64)
        with pytest.raises(TamperedModelError, match="its content has sha256"):
            download_version(version, tmp_path / "lies")


def test_a_version_whose_files_nothing_lists_is_refused(shop, tmp_path):
    version = version_of(shop)
    del version.tags["model_files"]
    with pytest.raises(TamperedModelError, match="no tag model_files"):
        download_version(version, tmp_path / "found")


@pytest.mark.parametrize("tag", ["abc", "[]", "3", ""])
def test_a_tag_that_lists_no_files_is_named(shop, tmp_path, tag):
    version = version_of(shop)
    version.tags["model_files"] = tag
    with pytest.raises(TamperedModelError, match="its tag model_files is not what registration"):
        download_version(version, tmp_path / "found")


def test_mlmodel_names_no_folder_outside_the_model(shop, tmp_path):
    version = version_of(shop)
    with put_back(model_folder(shop), tmp_path / "kept") as folder:
        text = (folder / "MLmodel").read_text().replace("artifacts/adapter-2", "../elsewhere")
        (folder / "MLmodel").write_text(text)
        files = json.loads(version.tags["model_files"]) | {"MLmodel": sha256_of(folder / "MLmodel")}
        version.tags["model_files"] = json.dumps(files)
        with pytest.raises(TamperedModelError, match="MLmodel names no classifier"):
            download_version(version, tmp_path / "found")


@pytest.mark.parametrize(
    "name",
    [
        *("parameters.yml", "environment.json", "dataset_metadata.json"),
        *("training_metrics.json", "test_answers.json", "provenance.json"),
    ],
)
def test_a_file_of_the_run_is_the_signed_one(shop, tmp_path, name):
    with put_back(run_folder(shop), tmp_path / "kept") as folder:
        (folder / name).write_text((folder / name).read_text() + " ")
        with pytest.raises(SignatureError, match=name):
            download_version(version_of(shop), tmp_path / "changed", shop.key)
        (folder / name).unlink()
        with pytest.raises(SignatureError, match=name):
            download_version(version_of(shop), tmp_path / "gone", shop.key)


@pytest.mark.parametrize("tag", ["commit", "patch_sha256", "package_sha256"])
def test_code_that_was_not_signed_is_refused(shop, tmp_path, tag):
    run_id = str(version_of(shop).run_id)
    before = shop.client.get_run(run_id).data.tags.get(f"account_tax.{tag}")
    with put_back(run_folder(shop), tmp_path / "kept") as folder:
        (folder / "code.patch").write_text("--- a/x\n+++ b/x\n")
        digest = sha256_of(folder / "code.patch")
        shop.client.set_tag(run_id, f"account_tax.{tag}", digest[:40])
        with pytest.raises(SignatureError, match=f"account_tax.{tag}"):
            download_version(version_of(shop), tmp_path / "found", shop.key)
    if before:
        shop.client.set_tag(run_id, f"account_tax.{tag}", before)
    else:
        shop.client.delete_tag(run_id, f"account_tax.{tag}")


def copy_version(shop, number, name):
    """Return a version made of another one's files, run and tags."""
    of = version_of(shop, number)
    if name != NAME:
        shop.client.create_registered_model(name)
    return shop.client.create_model_version(name, str(of.source), of.run_id, tags=of.tags)


def test_a_signed_version_under_another_name_is_refused(shop, tmp_path):
    copied = copy_version(shop, 2, "payroll")
    with pytest.raises(SignatureError, match="signed as account-tax/2, not as payroll/1"):
        download_version(copied, tmp_path / "found", shop.key)


def test_an_older_version_in_the_place_of_a_newer_is_refused(shop, tmp_path):
    copied = copy_version(shop, 1, NAME)
    with pytest.raises(SignatureError, match="signed as account-tax/1, not as account-tax/3"):
        download_version(copied, tmp_path / "copied", shop.key)
    older, newer = version_of(shop, 1), version_of(shop, 2)
    newer.tags.clear()
    newer.tags.update(older.tags)
    with (
        put_back(model_folder(shop), tmp_path / "model") as folder,
        put_back(run_folder(shop), tmp_path / "run") as run,
    ):
        shutil.copytree(model_folder(shop, 1), folder, dirs_exist_ok=True)
        shutil.rmtree(folder / "artifacts/adapter-2")
        shutil.copytree(run_folder(shop, 1), run, dirs_exist_ok=True)
        with pytest.raises(SignatureError, match="signed as account-tax/1, not as account-tax/2"):
            download_version(newer, tmp_path / "overwritten", shop.key)


def test_provenance_of_another_run_is_refused(shop, tmp_path):
    copied = version_of(shop, 2)
    copied._run_id = version_of(shop, 1).run_id
    with pytest.raises(SignatureError):
        download_version(copied, tmp_path / "found", shop.key)


def test_nobody_goes_back_to_a_version_whose_files_were_changed(shop, tmp_path):
    proposal = Proposal("rollback", "Kim", "complaints", datetime.now(UTC), "run")
    shop.client.set_registered_model_alias(NAME, "champion", "2")
    shop.client.set_registered_model_alias(NAME, "previous_champion", "1")
    with put_back(model_folder(shop, 1), tmp_path / "kept") as folder:
        (folder / "MLmodel").write_text("")
        with pytest.raises(Refused, match=r"version 1 can't be gone back to.*MLmodel"):
            _roll_back(shop.client, NAME, proposal)
    assert shop.client.get_registered_model(NAME).aliases["champion"] == 2
    _roll_back(shop.client, NAME, proposal)
    assert shop.client.get_registered_model(NAME).aliases["champion"] == 1
