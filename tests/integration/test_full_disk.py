"""A disk that fills, for real: one clear line, and nothing half done."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from mlflow import MlflowClient

from account_tax.errors import Failed
from account_tax.registry.registry_state import verify_history
from account_tax.review.allowed import Proposal
from account_tax.review.decision import decide
from tests.registered import NOW, PASSED, register

from .conftest import Project, copy_project, kedro_words
from .launched import override

pytestmark = pytest.mark.integration


def mount(folder: Path, size: str) -> Path:
    folder.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    if not shutil.which("mount") or subprocess.run(words, capture_output=True).returncode:
        pytest.skip("no permission to mount a small disk")
    return folder


@pytest.fixture(scope="module")
def trained(tmp_path_factory, tiny) -> Iterator[tuple[Project, str]]:
    """A project on a disk of its own that has trained and not registered; the run's id."""
    disk = mount(tmp_path_factory.mktemp("disk") / "own", "1g")
    try:
        project = copy_project(disk)
        changes = ["num_gpus=1", "register=false", "registry.allow_unlocked=true"]
        done = project.kedro_train(*kedro_words(override(tiny, changes)))
        assert done.returncode == 0, done.output
        yield project, project.runs()[0].info.run_id
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)  # SQLite holds it here


def fill(folder: Path, left: int = 0) -> Path:
    """Write a file that takes all the disk's space but so many bytes; return it."""
    ballast = folder / "ballast"
    with ballast.open("wb", buffering=0) as out:
        out.truncate(0)
        try:
            while True:
                out.write(bytes(1 << 16))
        except OSError:
            out.truncate(max(0, out.tell() - left))
    return ballast


@pytest.mark.parametrize("left", [0, 30_000])
def test_a_disk_that_fills_during_register_leaves_no_half_version(trained, left):
    project, run_id = trained
    ballast = fill(project.folder, left)
    done = project.run("kedro", "register", "--run", run_id)
    ballast.unlink()
    assert done.returncode in (1, 2), done.output
    assert "Traceback" not in done.output
    assert "  File " not in done.output
    assert (
        "No space left" in done.output or "disk is full" in done.output or "disk I/O" in done.output
    )
    project.run("kedro", "runs")  # closes what a full store did not take
    assert project.client().search_model_versions() == []
    assert project.client().search_registered_models() == []


def test_afterwards_it_is_registered(trained):
    project, run_id = trained
    done = project.run("kedro", "register", "--run", run_id)
    assert done.returncode == 0, done.output
    assert project.client().get_run(run_id).info.status == "FINISHED"


def test_a_disk_that_fills_during_predict_keeps_what_is_whole(trained, tmp_path):
    project, _ = trained
    ledger = tmp_path / "ledger.csv"
    ledger.write_text("text\n" + "".join(f"taxi hotel {number}\n" for number in range(2000)))
    disk = mount(tmp_path / "small", "200k")
    try:
        words = ["--model", "models:/account-tax/1", "--input", str(ledger), "--batch_rows", "200"]
        fill(disk, 20_000)
        done = project.run("kedro", "predict", *words, "--output", str(disk / "filed.csv"))
        assert done.returncode == 1, done.output
        assert "predict failed: No space left on device." in done.output
        assert "Traceback" not in done.output
        assert not (disk / "filed.csv").exists()
        (disk / "ballast").unlink()
        done = project.run("kedro", "predict", *words, "--output", str(disk / "filed.csv"))
        assert done.returncode == 0, done.output
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_disk_that_fills_during_a_decision_decides_nothing(tmp_path, monkeypatch):
    disk = mount(tmp_path / "small", "8m")
    try:
        monkeypatch.chdir(disk)
        client = MlflowClient(f"sqlite:///{disk}/mlflow.db")
        name = register(client, "account-tax")
        proposal = Proposal("approve", "kim", "looked at it", NOW, "a" * 32, [PASSED])
        ballast = fill(disk)
        with pytest.raises(Failed, match="Nothing was changed") as failed:
            decide(client, name, proposal, 1)
        assert "\n" not in str(failed.value)
        ballast.unlink()
        assert client.get_registered_model(name).aliases == {}
        assert decide(client, name, proposal, 1).entry.n == 1
        assert verify_history(client, name) == []
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)
