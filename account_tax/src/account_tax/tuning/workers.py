"""The workers of a study: `kedro tune` in processes of their own, and what they say of trials."""

from __future__ import annotations

import signal
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import click

from account_tax.backends.place import OneMachine, worker_log
from account_tax.errors import Failed
from account_tax.processes.answers import last_lines
from account_tax.processes.groups import GRACE_SECONDS, Interrupted, ask_group_to_end, kill_group
from account_tax.processes.warm import start_process


@dataclass
class Workers:
    """Processes that run the trials of one study side by side.

    Attributes:
        command: What each of them runs.
        count: How many there are.
        place: Where they run.
        folder: The study's, which is there; they write their logs into it.
    """

    command: Sequence[str]
    count: int
    place: OneMachine
    folder: Path
    _read: dict[int, int] = field(default_factory=dict)  # bytes of each worker's log

    def run(self, project: Path, environment: Mapping[str, str], grace_seconds: float) -> None:
        """Run them to their end, telling of their trials.

        Raises:
            Failed: If one of them ends badly; the others have ended then too.
            Preempted: If their nodes were taken away.
        """
        settings = {**self.place.worker_environment(self.count), **environment}
        settings.pop("MLFLOW_RUN_ID", None)  # the study's, or the job's
        for log in self.folder.glob("worker*.log"):  # an earlier call's; each trial has its own
            log.unlink()
        self._read = dict.fromkeys(range(self.count), 0)
        commands = self.place.start_workers(self.command, self.count, self.folder)
        started = [start_process(words, project, settings, log) for words, log in commands]
        try:
            while any(each.poll() is None for each in started):
                self._tell()
                time.sleep(1)
        except Interrupted:
            for each in started:
                ask_group_to_end(each.pid, grace_seconds + GRACE_SECONDS)
            raise
        finally:
            for each in started:
                kill_group(each.pid)
                each.wait()
        self._tell()
        for each, (_, log) in zip(started, commands, strict=True):
            if each.returncode and each.returncode > 0:
                if each.returncode == 128 + signal.SIGTERM:  # no fault of theirs
                    self.place.raise_if_preempted(each.returncode, self.folder)
                logs = [log] if len(commands) > 1 else [log, *map(self._log, self._read)]
                said = "\n".join(line for each in logs for line in last_lines(each))
                raise Failed(f"{log.stem} ended badly. The same command goes on.\n{said}")

    def _log(self, number: int) -> Path:
        return worker_log(self.folder, number)

    def _tell(self) -> None:
        """Print what the workers have said of their trials since it was last asked."""
        for number, since in self._read.items():
            log = self._log(number)
            if not log.exists():
                continue
            with log.open("rb") as opened:
                opened.seek(since)
                text = opened.read()
            whole = text[: text.rfind(b"\n") + 1]
            self._read[number] += len(whole)
            for line in whole.decode(errors="replace").splitlines():
                if line.startswith("trial "):
                    click.echo(f"worker {number}: {line}")
