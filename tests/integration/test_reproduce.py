"""A tiny version trained, signed and reproduced; then each of its inputs is another one."""

from __future__ import annotations

import json
import shlex
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import mlflow
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from mlflow import MlflowClient
from mlflow.entities.model_registry import ModelVersion

from account_tax.provenance.signing import SignatureError, model_statement
from account_tax.provenance.statement import recorded_digest
from account_tax.registry.download import download_version
from account_tax.registry.record import read_record
from account_tax.reproduce.retrain import find_differences
from tests.provenance.test_signing import write_key

from .conftest import MARKER, Finished, Project, kedro_words

pytestmark = pytest.mark.integration


@dataclass(frozen=True)
class Trained:
    """A project with one version, signed, and what a user does with it."""

    project: Project
    ledger: Path
    keys: tuple[Path, Path]

    @property
    def client(self) -> MlflowClient:
        return self.project.client()

    @property
    def version(self) -> ModelVersion:
        return self.client.get_model_version("account-tax", "1")

    def artifact(self, name: str) -> Path:
        """Return a file of the training's run where the store keeps it."""
        uri = self.client.get_run(str(self.version.run_id)).info.artifact_uri
        return Path(unquote(urlsplit(uri).path)) / name

    def reproduce(self, *words: str, version: str = "1", **how) -> Finished:
        trains = [] if "R2" in words else ["--run_code", "yes"]
        asked = ("--version", version, *trains, *words)
        return self.project.run("kedro", "reproduce", *asked, **how)

    def report(self) -> dict:
        run = self.project.runs()[0]
        folder = Path(unquote(urlsplit(run.info.artifact_uri).path)) / "reproduce"
        assert (folder / "report.md").read_text().startswith("# account-tax version 1, reproduced")
        return json.loads((folder / "report.json").read_text())

    def rungs(self) -> dict[str, str]:
        return {rung["rung"]: rung["status"] for rung in self.report()["rungs"]}


@pytest.fixture(scope="module")
def trained(new_project, tiny, tmp_path_factory) -> Trained:
    folder = tmp_path_factory.mktemp("kept")
    values = dict(option.split("=", 1) for option in tiny)
    ledger = Path(shutil.copy(values["data"], folder / "ledger.csv"))
    keys = write_key(folder / "keys", ec.generate_private_key(ec.SECP256R1()))
    project = new_project()
    options = {**values, "data": str(ledger), "num_gpus": "1", "sign_key": str(keys[0])}
    finished = project.kedro_train(*kedro_words([f"{key}={text}" for key, text in options.items()]))
    assert finished.returncode == 0, finished.output
    return Trained(project, ledger, keys)


@contextmanager
def changed(file: Path, change: Callable[[str], str]) -> Iterator[None]:
    """Change a file's text for a while."""
    before = file.read_bytes()
    after = change(before.decode())
    assert after.encode() != before
    file.write_text(after)
    try:
        yield
    finally:
        file.write_bytes(before)


def test_provenance_names_every_input(trained):
    raw = trained.artifact("provenance.json").read_bytes()
    statement = json.loads(raw)
    commit = trained.project.run("git", "rev-parse", "HEAD").output.strip()
    assert recorded_digest(statement, "code") == commit
    for name in ("data/source", "data/test", "base", "parameters.yml", "training_metrics.json"):
        assert recorded_digest(statement, name)
    subject = {entry["name"]: entry["digest"]["sha256"] for entry in statement["subject"]}
    folder = trained.project.folder / "data/06_models" / str(trained.version.run_id) / "adapter"
    there = model_statement(folder, "")["predicate"]["resources"]
    assert subject == {each["name"]: each["digest"] for each in there}
    assert MARKER.lower() not in raw.decode().lower()
    definition = statement["predicate"]["buildDefinition"]
    parameters = definition["externalParameters"]["parameters"]
    assert parameters["train"]["training"]["max_steps"] == 4


def test_a_version_is_reproduced_bit_for_bit(trained):
    before = trained.project.run("git", "status", "--porcelain").output
    finished = trained.reproduce("--verify_key", str(trained.keys[1]))
    assert finished.returncode == 0, finished.output
    assert "account-tax version 1: BITWISE" in finished.output
    assert trained.rungs() == dict.fromkeys(["R0", "R1", "R2", "R3"], "pass"), finished.output
    assert "signature checked" in finished.output
    run = trained.project.runs()[0]
    assert trained.version.tags["reproduced"] == "bitwise"
    assert trained.version.tags["reproduced_run_id"] == run.info.run_id
    assert trained.version.description.splitlines()[-1].startswith("Reproduced: BITWISE, 20")
    assert trained.project.run("git", "status", "--porcelain").output == before
    assert run.info.status == "FINISHED"
    assert MARKER.lower() not in json.dumps(trained.report()).lower()


def other_seed(text: str) -> str:
    """Let the code seed itself otherwise than the parameters say: other weights come out."""
    return text.replace('(training["seed"])', '(training["seed"] + 1)')


def test_a_version_of_a_changed_tree_is_reproduced_with_its_patch_or_not_at_all(trained):
    code = "account_tax/src/account_tax/pipelines/train/training_core.py"
    project, ledger = trained.project, "ledger-of-mine.csv"
    run = trained.client.get_run(str(trained.version.run_id))
    words = shlex.split(run.data.tags["account_tax.command"])
    shutil.copy(trained.ledger, project.folder / ledger)
    with changed(project.folder / code, other_seed):
        finished = project.run(*words)
    (project.folder / ledger).unlink()
    assert finished.returncode == 0, finished.output
    said = " ".join(finished.output.split())
    assert f"without 1 changed file that may be data: {ledger}" in said
    run, second = project.runs()[0], trained.client.get_model_version("account-tax", "2")
    assert second.tags["content_sha256"] != trained.version.tags["content_sha256"]
    assert run.data.tags["account_tax.dirty"] == "true"
    patch = Path(unquote(urlsplit(run.info.artifact_uri).path)) / "code.patch"
    assert patch.read_text().count("\n+++ b/") == 1
    assert "+++ b/" + code in patch.read_text()

    finished = trained.reproduce("--rungs", "R3", version="2")
    assert finished.returncode == 0, finished.output
    assert "account-tax version 2: BITWISE" in finished.output
    assert f" and code.patch {run.data.tags['account_tax.patch_sha256'][:12]}" in finished.output

    patch.rename(patch.with_name("gone"))
    finished = trained.reproduce("--rungs", "R3", version="2")
    assert finished.returncode == 1
    assert "DIFFERENT (code: code.patch: missing instead of sha256 " in finished.output


def other_row(text: str) -> str:
    """Change one row's label; the file stays a good ledger."""
    lines = text.splitlines(keepends=True)
    lines[5] = lines[5].replace(",meals", ",office").replace(",travel", ",office")
    return "".join(lines)


def test_one_row_changed_is_data(trained):
    with changed(trained.ledger, other_row):
        finished = trained.reproduce()
    assert finished.returncode == 1
    assert "DIFFERENT (data: sha256 " in finished.output
    expected = read_record(trained.client, trained.version).digest("data/source")
    assert f" instead of {expected})" in finished.output
    assert trained.rungs() == {"R0": "pass", "R1": "pass", "R2": "fail", "R3": "fail"}
    assert trained.version.tags["reproduced"] == "different"
    assert trained.version.description.count("Reproduced: ") == 1


def test_a_source_that_has_moved_is_named_on_the_command_line(trained, tmp_path):
    moved = tmp_path / "moved.csv"
    trained.ledger.rename(moved)
    try:
        found = trained.reproduce("--rungs", "R2", "--data", str(moved))
    finally:
        moved.rename(trained.ledger)
    assert (found.returncode, trained.rungs()) == (0, {"R0": "pass", "R2": "pass"})
    assert "NOT RETRAINED" in found.output


def test_one_parameter_changed_in_the_record_is_configuration(trained):
    file = trained.artifact("parameters.yml")
    with changed(file, lambda text: text.replace("max_steps: 4", "max_steps: 5")):
        finished = trained.reproduce("--rungs", "R3")
    assert finished.returncode == 1
    assert "DIFFERENT (configuration: parameters.yml: sha256 " in finished.output


def test_one_package_changed_is_environment(trained):
    root = trained.project.folder
    file = trained.artifact("environment.json")
    with changed(file, lambda text: text.replace('"numpy": "', '"numpy": "0.')):
        record = read_record(trained.client, trained.version)
    adapter = root / "data/06_models" / str(trained.version.run_id) / "adapter"
    found = [(each.cause, each.text) for each in find_differences(root, record, adapter)]
    assert {cause for cause, _ in found} == {"environment"}
    assert found[0][1].startswith("environment.json: sha256 ")
    assert any("numpy " in text and "instead of 0." in text for _, text in found[1:])


def test_edited_provenance_and_files_are_found_before_anything_else(trained):
    with changed(trained.artifact("provenance.json"), lambda text: text + " "):
        finished = trained.reproduce()
    assert finished.returncode == 1
    assert "DIFFERENT (files: provenance.json: sha256 " in finished.output
    assert trained.rungs()["R0"] == "fail"
    assert set(trained.rungs().values()) == {"fail", "skipped"}


def test_another_key_is_no_signature(trained, tmp_path, monkeypatch):
    mlflow.set_tracking_uri(trained.project.store)
    _, other = write_key(tmp_path / "other", ec.generate_private_key(ec.SECP256R1()))
    download_version(trained.version, tmp_path / "a", trained.keys[1])
    with pytest.raises(SignatureError, match=r"version 1: model\.sig: signed by the key"):
        download_version(trained.version, tmp_path / "b", other)
    monkeypatch.setenv("ACCOUNT_TAX_VERIFY_KEY", str(other))  # nobody needs to think of it
    with pytest.raises(SignatureError, match="signed by the key"):
        download_version(trained.version, tmp_path / "c")
    with changed(trained.artifact("signatures/model.sig"), lambda _: ""):
        monkeypatch.setenv("ACCOUNT_TAX_VERIFY_KEY", str(trained.keys[1]))
        with pytest.raises(SignatureError, match="not a signature"):
            download_version(trained.version, tmp_path / "d")


def test_what_can_not_be_asked_is_refused(trained):
    finished = trained.reproduce("--seeds", "few")
    assert (finished.returncode, "seeds = few" in finished.output) == (2, True), finished.output
    finished = trained.reproduce("--registered_model_name", "nobody")
    assert finished.returncode == 2
    assert "Nothing is registered as nobody" in finished.output


def test_a_key_that_can_not_sign_is_refused_before_training(trained, tiny, tmp_path):
    words = kedro_words([*tiny, f"sign_key={tmp_path}/none.pem"])
    finished = trained.project.kedro_train("--dry-run", *words)
    assert finished.returncode == 2
    assert "registry.sign_key = " in finished.output
    assert "none.pem (--sign_key): can't be read" in finished.output


def test_an_export_of_the_version(trained):
    command = ("mlflow", "run", ".", "-e", "export", "--env-manager", "local")
    finished = trained.project.run(*command, "-P", "version=1", "-P", "output=exported")
    assert finished.returncode == 0, finished.output
    assert "account-tax version 1 is in exported" in finished.output
    shutil.rmtree(trained.project.folder / "exported")
