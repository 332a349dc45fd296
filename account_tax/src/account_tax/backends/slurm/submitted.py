"""A submitted job followed to its end: its output shown, its MLflow run settled, Ctrl-C heard."""

# MLflow's base class has no types: its abstract methods read as returning None.
# pyright: reportIncompatibleMethodOverride=false

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import NoReturn, TextIO

import click
from mlflow import MlflowClient
from mlflow.exceptions import ExecutionException, MlflowException
from mlflow.projects.submitted_run import SubmittedRun

from account_tax.confidential import hide_secrets
from account_tax.processes.groups import Interrupted, raise_on_signals

from .config import SlurmConfig
from .job import JobState, SlurmJob, describe_demand
from .runs import end_with_job

ENDS_SECONDS = 120  # what a cancelled job may take: KillWait of slurm.conf and a little
OUTPUT_SECONDS = 5  # what a shared file system may take to show the last lines


class SlurmRun(SubmittedRun):
    """A submitted job and its MLflow run."""

    def __init__(self, run_id: str, job: SlurmJob, config: SlurmConfig):
        super().__init__()
        self._run_id, self.job, self._config = run_id, job, config
        self._state = JobState("PENDING")
        self._shown = 0  # bytes of the output
        self._announced = ""

    @property
    def run_id(self) -> str:
        """Id of the MLflow run."""
        return self._run_id

    def get_status(self) -> str:
        """Return the MLflow status that goes with the job's state now."""
        self._state = self.job.state() or self._state
        return self._state.mlflow_status

    def wait(self) -> bool:
        """Show the job's output until its end, settle the MLflow run, return whether it did well.

        Raises:
            ExecutionException: If the job can't ever start; it is cancelled then.
        """
        client = MlflowClient()
        while not self._state.ended:
            before = self._state
            self.get_status()
            self._announce(before, client)
            self._show_output(sys.stdout)
            if why := self._state.never_starts:
                self._give_up(why)
            time.sleep(0 if self._state.ended else self._config.poll_seconds)
        self._show_rest()
        status = end_with_job(client, self._run_id, self.job, self._state)
        if status != "FINISHED":
            self._attach_output(client)
        return status == "FINISHED"

    def cancel(self) -> None:
        """End the job, and the MLflow run as KILLED."""
        self.job.cancel()
        deadline = time.monotonic() + ENDS_SECONDS
        while not self._state.ended and time.monotonic() < deadline:
            time.sleep(min(0.5, self._config.poll_seconds))
            self.get_status()
            self._show_output(sys.stdout)
        ended = self._state if self._state.ended else JobState("CANCELLED", status=143)
        end_with_job(MlflowClient(), self._run_id, self.job, ended)

    def follow_to_the_end(self) -> None:
        """Wait; end the job on Ctrl-C or SIGTERM; leave with the job's status if it is not 0."""
        try:
            with _signals_interrupt():
                good = self.wait()
        except Interrupted as asked:
            click.echo(f"{asked}: cancelling Slurm job {self.job.job_id}", err=True)
            self.cancel()
            _leave(f"Slurm job {self.job.job_id} was cancelled", 128 + asked.signum)
        if not good:
            said = f"Slurm job {self.job.job_id} did not succeed: {self._state.in_words()}"
            _leave(f"{said} (run {self._run_id}, output {self.job.output})", self._state.status)

    def _announce(self, before: JobState, client: MlflowClient) -> None:
        """Say what is new about the job, and tell the MLflow run while nobody else does."""
        now = self._state
        text = f"Slurm job {self.job.job_id}: {now.name.lower()}"
        text += f", {now.reason}" if now.name == "PENDING" and now.reason else ""
        if now.restarts > before.restarts:
            most = self._config.max_requeues
            click.echo(f"Slurm job {self.job.job_id}: queued again ({now.restarts} of {most})")
        if text != self._announced and not now.ended:
            click.echo(text)
            end_with_job(client, self._run_id, self.job, now)
        self._announced = text

    def _show_output(self, out: TextIO) -> None:
        with suppress(FileNotFoundError), self.job.output.open("rb") as file:
            file.seek(self._shown)
            # A line that is half written is shown when it is whole.
            whole = file.read()
            if not self._state.ended:
                whole = whole[: max(whole.rfind(b"\n"), whole.rfind(b"\r")) + 1]
            self._shown += len(whole)
            out.write(whole.decode("utf-8", errors="replace"))
            out.flush()

    def _show_rest(self) -> None:
        deadline = time.monotonic() + OUTPUT_SECONDS
        while not self.job.output.exists() and time.monotonic() < deadline:
            time.sleep(0.2)
        self._show_output(sys.stdout)
        if not self.job.output.exists():
            click.echo(
                f"{self.job.output}: the job left no output. Does its first node see this folder? "
                "The project has to lie on storage that all nodes share.",
                err=True,
            )

    def _give_up(self, why: str) -> NoReturn:
        self.job.cancel()
        reason = (
            f"Slurm job {self.job.job_id} can't start: {self._state.reason}, {why}.\n"
            f"{describe_demand(self._config)}"
        )
        end_with_job(MlflowClient(), self._run_id, self.job, JobState("FAILED", status=1), reason)
        raise ExecutionException(reason)

    def _attach_output(self, client: MlflowClient) -> None:
        """Keep the output of a job that did not succeed with its run, less the secrets."""
        with suppress(FileNotFoundError, MlflowException):
            text = self.job.output.read_text(encoding="utf-8", errors="replace")
            client.log_text(self._run_id, hide_secrets(text, os.environ), "logs/job.log")


@contextmanager
def _signals_interrupt() -> Iterator[None]:
    """Turn SIGINT and SIGTERM into `Interrupted`; a hangup leaves the job running."""
    kinds = (signal.SIGINT, signal.SIGTERM)
    before = {each: signal.getsignal(each) for each in kinds}
    raise_on_signals(kinds)
    try:
        yield
    finally:
        for each, handler in before.items():
            signal.signal(each, handler)


def _leave(reason: str, status: int) -> NoReturn:
    """End the `mlflow` command with the job's own status; an exception for any other caller."""
    if click.get_current_context(silent=True) is None:
        raise ExecutionException(reason)
    click.echo(reason, err=True)
    sys.exit(status or 1)
