import subprocess

import pytest

from account_tax.backends.shipped import MEBIBYTE, find_shipped


@pytest.fixture
def repository(tmp_path):
    def git(*words):
        identity = ("-c", "user.name=test", "-c", "user.email=test@localhost")
        subprocess.run(["git", *identity, *words], cwd=tmp_path, check=True)

    (tmp_path / ".gitignore").write_text("/data/\n.venv/\n*.db\n/mlruns/\n__pycache__/\n")
    (tmp_path / "code.py").write_text("x = 1\n")
    git("init", "-q")
    git("add", ".")
    git("commit", "-q", "-m", "One")
    return tmp_path


def test_a_clone_may_be_shipped(repository):
    assert find_shipped(repository).faults == []


def test_whatever_git_does_not_keep_is_refused_with_its_size(repository):
    for name in ("data/01_raw/ledger.csv", ".venv/bin/python", "mlflow.db", "my ledger.csv"):
        (repository / name).parent.mkdir(parents=True, exist_ok=True)
        (repository / name).write_bytes(bytes(2 * MEBIBYTE))
    findings = find_shipped(repository)
    (fault,) = findings.faults
    for name in ("data/", ".venv/", "mlflow.db", "my ledger.csv"):
        assert f"{name} (2.0 MiB)" in fault
    assert "git clone . " in fault
    assert findings.facts["shipped"].startswith("8.")


def test_what_mlflow_leaves_out_and_bytecode_are_no_fault(repository):
    for name in ("mlruns/0/meta.yaml", "__pycache__/code.pyc"):
        (repository / name).parent.mkdir(parents=True)
        (repository / name).write_bytes(bytes(2 * MEBIBYTE))
    assert find_shipped(repository).faults == []


def test_without_a_repository_nothing_tells_what_may_leave(tmp_path):
    (fault,) = find_shipped(tmp_path).faults
    assert "no git repository" in fault


def test_without_git_nothing_tells_either(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    (fault,) = find_shipped(tmp_path).faults
    assert "or no git" in fault
