"""The clone, with real git, and the comparison of weights and metrics."""

from dataclasses import replace

import pytest
import torch
from mlflow import MlflowClient
from safetensors.torch import save_file

from account_tax.provenance.code import PACKAGE_FOLDER, describe_code
from account_tax.registry.record import Difference, Record
from account_tax.reproduce.retrain import (
    Workshop,
    _code_difference,
    _environment,
    _read_training,
    clone_code,
    compare_metrics,
    compare_weights,
    hidden_from_git,
    retrain,
)
from account_tax.storage.names import ADAPTER_FOLDER
from tests.provenance.test_code import git, write


@pytest.fixture
def tree(tmp_path):
    folder = tmp_path / "tree"
    write(folder, {"account_tax/a.py": b"a = 1\n", "recipes/starter.yml": b"train: {}\n"})
    git(folder, "init", "-q")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "One")
    return folder


def record_of(tree):
    code = describe_code(tree)
    return Record(code.tags(), patch=code.patch or None)


def test_a_clone_has_the_dirty_tree_and_leaves_the_users_alone(tree, tmp_path):
    write(tree, {"account_tax/a.py": b"a = 2\n", "account_tax/new.py": b"new = 1\n"})
    record = record_of(tree)
    status = git(tree, "status", "--porcelain")
    assert clone_code(tree, record, tmp_path / "clone") == ""
    clone = tmp_path / "clone"
    assert (clone / "account_tax/new.py").read_bytes() == b"new = 1\n"
    assert (clone / "account_tax/a.py").read_bytes() == b"a = 2\n"
    assert git(tree, "status", "--porcelain") == status
    write(clone, {"recipes/reproduce-42.yml": b"train: {}\n"})
    assert describe_code(clone).tags() == dict(record.tags)  # what is written there is no change


def test_a_commit_that_no_branch_holds_any_more_is_found(tree, tmp_path):
    write(tree, {"account_tax/a.py": b"a = 2\n"})
    git(tree, "commit", "-q", "-am", "Two")
    record = record_of(tree)
    git(tree, "reset", "-q", "--hard", "HEAD~1")
    assert list(_code_difference(tree, record)) == []
    clone_code(tree, record, tmp_path / "clone")
    assert (tmp_path / "clone/account_tax/a.py").read_bytes() == b"a = 2\n"


def test_a_project_in_a_folder_of_its_repository_is_found_in_the_clone(tree, tmp_path):
    write(tree, {"below/account_tax/b.py": b"b = 1\n"})
    git(tree, "add", ".")
    git(tree, "commit", "-q", "-m", "Two")
    write(tree, {"below/account_tax/b.py": b"b = 2\n"})
    prefix = clone_code(tree / "below", record_of(tree / "below"), tmp_path / "clone")
    assert prefix == "below/"
    assert (tmp_path / "clone" / prefix / "account_tax/b.py").read_bytes() == b"b = 2\n"


def test_an_unknown_commit_is_code(tree):
    record = record_of(tree)
    unknown = replace(record, tags={"commit": "0" * 40})
    (found,) = _code_difference(tree, unknown)
    assert found.cause == "code"
    assert f"commit {'0' * 40} is not in this repository" in found.text
    (found,) = _code_difference(tree, replace(record, tags={}))
    assert found == Difference("code", "no commit was recorded: there was no repository, or no git")


def test_a_ledger_that_was_changed_is_no_code(tree):
    write(tree, {"ledger.csv": b"text,label\n"})
    record = record_of(tree)
    assert record.tags["dirty"] == "false"
    assert list(_code_difference(tree, record)) == []


def mark(name):
    return lambda tree: git(tree, "update-index", name, "account_tax/src/account_tax/a.py")


def nest(tree):
    write(tree, {"account_tax/src/account_tax/inner/b.py": b"b = 1\n"})
    git(tree / "account_tax/src/account_tax/inner", "init", "-q")


@pytest.mark.parametrize(
    "hide",
    [
        mark("--assume-unchanged"),
        mark("--skip-worktree"),
        lambda tree: write(tree, {".git/info/exclude": b"b.py", f"{PACKAGE_FOLDER}/b.py": b""}),
        nest,
    ],
)
def test_a_change_that_git_does_not_show_is_code(tree, tmp_path, hide):
    write(tree, {f"{PACKAGE_FOLDER}/a.py": b"a = 1\r\n"})
    git(tree, "-c", "core.autocrlf=true", "add", ".")
    git(tree, "commit", "-q", "-m", "Two")
    clone_code(tree, record_of(tree), tmp_path / "plain")
    assert hidden_from_git(tmp_path / "plain", record_of(tree)) is None
    hide(tree)
    write(tree, {f"{PACKAGE_FOLDER}/a.py": b"a = 2\n"})
    record = record_of(tree)
    clone_code(tree, record, tmp_path / "clone")
    found = hidden_from_git(tmp_path / "clone", record)
    assert found.cause == "code"
    assert f"instead of {record.tags['package_sha256']}" in found.text


def test_without_git_nothing_is_trained_and_no_verdict_given(tree, tmp_path, monkeypatch):
    record = record_of(tree)
    monkeypatch.setenv("PATH", str(tmp_path))
    rung = retrain(tree, tree, record, tmp_path, 0, print)
    assert (rung.status, rung.verdict) == ("skipped", None)
    assert "git is not on PATH" in rung.evidence


def test_a_training_is_found_wherever_its_commit_puts_results(tmp_path):
    workshop = Workshop(tmp_path, Record(), tmp_path, print)
    client = MlflowClient(workshop.store)
    run_id = client.create_run("0").info.run_id
    client.set_tag(run_id, "account_tax.artifacts_root", f"results/{run_id}")
    client.log_metric(run_id, "test/f1", 0.5)
    client.log_text(run_id, "data: {}\n", "parameters.yml")
    name = "adapter_model.safetensors"
    write(tmp_path, {f"results/{run_id}/{ADAPTER_FOLDER}/{name}": b"weights"})
    found = _read_training(workshop)
    assert (list(found.weights), found.metrics) == ([name], {"test/f1": 0.5})


# --- weights and metrics --------------------------------------------------------------------------


@pytest.fixture
def weights(tmp_path):
    def make(name, **tensors):
        file = tmp_path / name / "adapter_model.safetensors"
        file.parent.mkdir()
        save_file({key: torch.tensor(value) for key, value in tensors.items()}, file)
        return file

    return make


def test_the_same_bytes_have_no_difference(weights):
    then, again = weights("a", x=[1.0, 2.0]), weights("b", x=[1.0, 2.0])
    found = compare_weights(then.parent, {again.name: again})
    assert found == {"other_files": [], "max_abs_diff": 0.0, "other_tensors": []}


def test_the_largest_difference_is_found(weights):
    then = weights("a", x=[1.0, 2.0], y=[0.0])
    again = weights("b", x=[1.0, 2.5], y=[-0.25])
    found = compare_weights(then.parent, {again.name: again})
    assert found["max_abs_diff"] == 0.5
    assert found["other_files"] == [then.name]


def test_other_tensors_and_files_are_named(weights, tmp_path):
    then, again = weights("a", x=[1.0], y=[1.0]), weights("b", x=[1.0, 2.0], z=[1.0])
    assert compare_weights(then.parent, {again.name: again})["other_tensors"] == ["x", "y", "z"]
    found = compare_weights(then.parent, {})
    assert (found["other_files"], found["other_tensors"]) == ([then.name], [then.name])


def test_a_metric_is_judged_by_the_range_of_the_seeds():
    recorded = {"test/f1": 0.90, "test/loss": 0.50, "test/only_then": 1.0}
    again = {"test/f1": 0.91, "test/loss": 0.60}
    others = [{"test/f1": 0.88, "test/loss": 0.61}, {"test/f1": 0.90, "test/loss": 0.62}]
    f1, loss = compare_metrics(recorded, again, others)
    assert (f1["metric"], f1["within"]) == ("test/f1", True)
    assert f1["delta"] == pytest.approx(0.01)
    assert f1["band"] == pytest.approx(0.03)
    assert (loss["metric"], loss["within"]) == ("test/loss", False)


def test_recorded_code_runs_without_the_callers_secrets(tmp_path, monkeypatch):
    secrets = (
        *("AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AZURE_STORAGE_CONNECTION_STRING", "HF_TOKEN"),
        *("ACCOUNT_TAX_SIGN_KEY_PASSPHRASE", "MLFLOW_TRACKING_PASSWORD", "DATABASE_URL", "MY_KEY"),
        *("GOOGLE_APPLICATION_CREDENTIALS", "SSH_AUTH_SOCK", "HF_HUB_TOKEN", "PGPASSFILE"),
    )
    for name in secrets:
        monkeypatch.setenv(name, "hush")
    monkeypatch.setenv("https_proxy", "http://me:pw@proxy:8080")
    monkeypatch.setenv("http_proxy", "http://proxy:8080")
    monkeypatch.setenv("HF_HOME", "/models")
    found = _environment(Workshop(tmp_path, Record(), tmp_path, print))
    assert "hush" not in found.values()
    assert not {*secrets, "https_proxy"} & found.keys()
    assert {"PATH", "HOME", "HF_HOME", "http_proxy"} <= found.keys()
    assert found["MLFLOW_TRACKING_URI"] == f"sqlite:///{tmp_path}/mlflow.db"
