"""A command that runs while a test does something to it, and all the processes it starts."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path

import psutil
from mlflow.entities import Run

from .conftest import Project, environment

STARTED_IN = 120.0  # seconds a stage may take to begin on a busy machine
LONG = ["max_steps=100000", "epochs=100000"]  # still training when the fault comes


def override(options: list[str], changes: Iterable[str]) -> list[str]:
    """Return `name=value` options with the changes in place of those of the same name."""
    return list({option.partition("=")[0]: option for option in [*options, *changes]}.values())


class Running:
    """A command with a process group of its own, as a terminal gives it, and all it has said."""

    def __init__(
        self, folder: Path, output: Path, *command: str, env: Mapping[str, str] | None = None
    ):
        self._output = output
        with output.open("ab") as out:
            self.process = subprocess.Popen(
                command,
                cwd=folder,
                env=environment({"WARM_COMMANDS": "no", **(env or {})}),
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def output(self) -> str:
        return self._output.read_text(encoding="utf-8", errors="replace")

    def wait_for(self, condition: Callable[[], object], seconds: float = STARTED_IN) -> None:
        """Wait until something is so, while the command runs."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, f"it ended before:\n{self.output}"
            assert time.monotonic() < deadline, f"not within {seconds} s:\n{self.output}"
            time.sleep(0.02)


class Launched(Running):
    """A command that runs in the copy of the project, and the MLflow run it makes."""

    def __init__(
        self, project: Project, output: Path, *command: str, env: Mapping[str, str] | None = None
    ):
        has_store = (project.folder / "mlflow.db").exists()
        self._runs_before = {run.info.run_id for run in project.runs()} if has_store else set()
        self.project = project
        super().__init__(project.folder, output, *command, env=env)

    def wait_until_said(self, words: str) -> None:
        self.wait_for(lambda: words in self.output)

    def wait_until_training(self, ranks: int) -> None:
        """Wait for the first step."""
        self.wait_until_said("tokens/s")
        assert len(self.ranks()) == ranks

    def others(self) -> list[psutil.Process]:
        """Return every live process that works in the copy but the command itself."""
        return [
            process
            for process in psutil.process_iter()
            if process.pid != self.process.pid and works_in(process, self.project.folder)
        ]

    def ranks(self) -> list[psutil.Process]:
        """Return the ranks' processes in their order; loaders' workers are not theirs here."""
        return sorted((p for p in self.others() if rank_of(p)), key=lambda p: rank_of(p) or "")

    def end(self, seconds: float) -> int:
        """Return the exit status; no process it started may live on after these seconds."""
        self.wait_for_end_of(self.others, seconds)
        return self.process.wait(timeout=20)

    def kill(self) -> None:
        """Kill the command, then all that it started: what a power cut does."""
        self.process.kill()
        for process in self.others():
            process.kill()

    def wait_for_end_of(self, processes: Callable[[], list], seconds: float) -> None:
        deadline = time.monotonic() + seconds
        while left := processes():
            assert time.monotonic() < deadline, left
            time.sleep(0.05)

    def run(self) -> Run:
        """Return the one MLflow run that the command has left."""
        (run,) = [r for r in self.project.runs() if r.info.run_id not in self._runs_before]
        return run


def works_in(process: psutil.Process, folder: Path) -> bool:
    try:
        alive = process.status() != psutil.STATUS_ZOMBIE
        return alive and Path(process.cwd()).is_relative_to(folder)
    except (psutil.NoSuchProcess, psutil.AccessDenied, OSError):
        return False


def rank_of(process: psutil.Process) -> str | None:
    """Return the number of a rank, by its name: its first environment is another process's."""
    try:
        return process.name().partition("rank")[2] or None
    except (psutil.NoSuchProcess, psutil.AccessDenied):
        return None
