"""Fresh copies of the project, the commands a user types in them, settings that take seconds."""

from __future__ import annotations

import csv
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Run

from account_tax.provenance.environment import find_unlocked, read_lock
from tests.conftest import WORDS

ROOT = Path(__file__).resolve().parents[2]
ACCOUNTS = {"meals": WORDS[:5], "travel": WORDS[5:10], "office": WORDS[10:]}
MARKER = "Confidential4711"  # begins every line of the ledger, and must stand nowhere else
ROWS = 240
GIT_IDENTITY = ("-c", "user.name=test", "-c", "user.email=test@localhost")

# -P options, as `mlflow run` takes them; `ledger` and `base` come with the fixture `tiny`.
SHORT = {
    "max_steps": "4",
    "micro_batch_size": "8",
    "grad_accum": "1",
    "num_gpus": "2",
    "train.training.logging_steps": "1",
    "train.lora.target_modules": "query,value",
}


@dataclass(frozen=True)
class Finished:
    """A command that ended: its exit status and all it said."""

    returncode: int
    output: str


@dataclass(frozen=True)
class Project:
    """A copy of the project, and what a user does in it."""

    folder: Path

    def run(
        self, *command: str, env: Mapping[str, str] | None = None, timeout: float = 180
    ) -> Finished:
        """Run a command of this Python's environment in the copy, as a shell would."""
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=environment(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            timeout=timeout,
            check=False,
        )
        return Finished(done.returncode, done.stdout)

    def mlflow_run(self, *options: str, **how) -> Finished:
        """Run `mlflow run . -e train` with `-P` options given as name=value."""
        return self.run(*mlflow_command(*options), **how)

    def kedro_train(self, *options: str, **how) -> Finished:
        return self.run("kedro", "train", *options, **how)

    @property
    def store(self) -> str:
        return f"sqlite:///{self.folder / 'mlflow.db'}"

    def client(self) -> MlflowClient:
        return MlflowClient(self.store)

    def runs(self) -> list[Run]:
        """Return every run of the copy's store, newest first."""
        return all_runs(self.client())


def mlflow_command(*options: str) -> list[str]:
    given = [word for option in options for word in ("-P", option)]
    return ["mlflow", "run", ".", "-e", "train", "--env-manager", "local", *given]


def environment(changes: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return this process's environment as a user's shell has it: no MLflow settings of a test."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("MLFLOW_", "PYTEST_", "COV_", "GIT_")) and name != "PYTHONPATH"
    }
    return {
        **kept,
        "PYTHONPATH": str(ROOT / "tests/warm"),
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "OMP_NUM_THREADS": "1",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "HF_HUB_DISABLE_TELEMETRY": "1",  # as stages have it, so that one warm Python serves all
        # A server's queues for jobs nobody asks for are seven processes, 1.2 GB.
        "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
        **(changes or {}),
    }


def all_runs(client: MlflowClient) -> list[Run]:
    experiments = [experiment.experiment_id for experiment in client.search_experiments()]
    return list(client.search_runs(experiments))


def kedro_words(options: list[str]) -> list[str]:
    """Return `-P` options, name=value, as words of `kedro train`."""
    return [f"--{option}" for option in options]


def write_ledger(file: Path, rows: int = ROWS) -> Path:
    """Write lines of the tiny base's words, three accounts, no two lines alike."""
    draw = random.Random(0)
    lines: dict[str, str] = {}
    while len(lines) < rows:
        account = list(ACCOUNTS)[len(lines) % len(ACCOUNTS)]
        words = [*draw.choices(ACCOUNTS[account], k=3), *draw.choices(WORDS, k=3)]
        lines.setdefault(" ".join([MARKER, *words]), account)
    with file.open("w", encoding="utf-8", newline="") as out:
        writer = csv.writer(out)
        writer.writerow(["text", "label"])
        writer.writerows(lines.items())
    return file


def copy_project(folder: Path) -> Project:
    """Return a repository of its own with the files as they are now, without what running made."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file():  # git still lists what was deleted just now
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, folder / name)
    if find_unlocked(read_lock(ROOT)):  # a developer's own environment; git ignores conf/local
        local = folder / "conf" / "local" / "parameters"
        local.mkdir(parents=True)
        (local / "registry.yml").write_text("registry: {allow_unlocked: true}\n")
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "Copy"]):
        subprocess.run(["git", *GIT_IDENTITY, *words], cwd=folder, env=environment(), check=True)
    return Project(folder)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, tiny_base) -> list[str]:
    """-P options that make a run small: a made-up ledger, a two-layer base, four steps."""
    ledger = write_ledger(tmp_path_factory.mktemp("ledger") / "ledger.csv")
    given = {"data": str(ledger), "model": str(tiny_base), **SHORT}
    return [f"{name}={value}" for name, value in given.items()]


@pytest.fixture(scope="session")
def new_project(tmp_path_factory) -> Callable[[], Project]:
    """Return what makes a fresh copy, for fixtures that live longer than one test."""
    return lambda: copy_project(tmp_path_factory.mktemp("project"))


@pytest.fixture
def project(new_project) -> Project:
    return new_project()


@pytest.fixture
def run_project(project) -> Callable[..., Finished]:
    """Return `mlflow run . -e train` in the fresh copy: run_project("lora_r=8", timeout=60)."""
    return project.mlflow_run


@pytest.fixture
def kedro_train(project) -> Callable[..., Finished]:
    """Return `kedro train` in the fresh copy: kedro_train("--train.lora.r=8")."""
    return project.kedro_train
