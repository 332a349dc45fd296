"""A job as Slurm tells of it: its state and why, its end, and the end of it."""

from __future__ import annotations

import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from account_tax.processes.answers import answer_of

from .config import SlurmConfig
from .script import OUTPUT_FILE, STATUS_FILE

COMMAND_SECONDS = 60
# https://slurm.schedmd.com/squeue.html#SECTION_JOB-STATE-CODES; any other state is an end.
WAITING = frozenset({"PENDING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT"})
WORKING = frozenset(
    {"CONFIGURING", "RUNNING", "SUSPENDED", "STOPPED", "COMPLETING", "SIGNALING", "RESIZING"}
    | {"STAGE_OUT"}
)
UNKNOWN = "UNKNOWN"
# Reasons that waiting does not mend, and the key to look at.
NEVER_STARTS = {
    "PartitionTimeLimit": "time is more than the partition allows",
    "PartitionNodeLimit": "nodes is more than the partition allows",
    "PartitionConfig": "nodes, tasks, CPUs or memory are more than the partition has or allows",
    "BadConstraints": "no node fits constraint and the other demands",
    "InvalidAccount": "there is no such account",
    "AccountNotAllowed": "the account may not use this partition",
    "InvalidQOS": "there is no such qos",
    "QOSNotAllowed": "the qos may not be used here",
    "AssocMaxWallDurationPerJobLimit": "time is more than the account allows",
    "QOSMaxWallDurationPerJobLimit": "time is more than the qos allows",
    "AssocMaxNodePerJobLimit": "nodes is more than the account allows",
    "QOSMaxNodePerJobLimit": "nodes is more than the qos allows",
    "DependencyNeverSatisfied": "what it depends on failed",
}
ENDS_IN_WORDS = {
    "TIMEOUT": "it reached its time limit",
    "OUT_OF_MEMORY": "it ran out of memory",
    "NODE_FAIL": "a node failed",
    "BOOT_FAIL": "a node did not start",
    "DEADLINE": "its deadline passed",
    "PREEMPTED": "a job of a higher priority took its nodes",
    "CANCELLED": "it was cancelled",
    UNKNOWN: "Slurm no longer knows it, and it left no exit status",
}


class SlurmError(RuntimeError):
    """Slurm refused something, or is not there; the message says what it said."""


@dataclass(frozen=True)
class JobState:
    """What a job is doing.

    Attributes:
        name: Slurm's word, such as PENDING.
        reason: Slurm's word for why it waits; None where it does not.
        restarts: How often it was queued again.
        status: Exit status of a job that ended, 128 + n for signal n.
    """

    name: str
    reason: str | None = None
    restarts: int = 0
    status: int = 0

    @property
    def ended(self) -> bool:
        """Whether it is over."""
        return self.name not in WAITING | WORKING

    @property
    def never_starts(self) -> str | None:
        """Why waiting is in vain, if it is."""
        return NEVER_STARTS.get(self.reason or "") if self.name in WAITING else None

    @property
    def mlflow_status(self) -> str:
        """The MLflow run's status that goes with it."""
        if self.name in WAITING:
            return "SCHEDULED"
        if not self.ended:
            return "RUNNING"
        if self.name in ("CANCELLED", "PREEMPTED"):
            return "KILLED"
        return "FINISHED" if self.name == "COMPLETED" and self.status == 0 else "FAILED"

    def in_words(self) -> str:
        """Return what became of a job that ended."""
        return ENDS_IN_WORDS.get(self.name, f"exit status {self.status}")


@dataclass(frozen=True)
class SlurmJob:
    """A job that was submitted, and the folder it writes to."""

    job_id: str
    folder: Path

    @property
    def output(self) -> Path:
        """Everything the job says."""
        return self.folder / OUTPUT_FILE

    def state(self) -> JobState | None:
        """Return what the job is doing; None while Slurm does not answer."""
        shown = show_job(self.job_id)
        if shown.returncode == 0 and "JobState=" in shown.stdout:
            state, own = parse_job(shown.stdout), self._own_status()
            # The job wrote its own status; Slurm's is lost with a signal.
            return replace(state, status=own) if state.ended and own is not None else state
        if "Invalid job id" not in shown.stderr:
            return None
        return self._forgotten()

    def _forgotten(self) -> JobState:
        """Return how a job ended that the controller has dropped (MinJobAge, minutes)."""
        own = self._own_status()
        if own is not None:
            return JobState("FAILED" if own else "COMPLETED", status=own)
        account = call("sacct", "-nXP", "-o", "State,ExitCode", "-j", self.job_id).stdout
        match = re.match(r"([A-Z_]+)[^|]*\|(\d+):(\d+)", account)
        if match is None:
            return JobState(UNKNOWN, status=1)
        return JobState(match[1], status=_status(match[2], match[3]))

    def _own_status(self) -> int | None:
        file = self.folder / STATUS_FILE
        return int(file.read_text()) if file.is_file() and file.stat().st_size else None

    def cancel(self) -> None:
        """Ask Slurm to end the job."""
        call("scancel", self.job_id)


def call(*words: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    """Run a command of Slurm's and return what it said."""
    return answer_of(words, COMMAND_SECONDS, environment)


def show_job(job_id: str) -> subprocess.CompletedProcess:
    """Return what Slurm tells of a job, in one line of NAME=VALUE."""
    return call("scontrol", "show", "job", "-o", job_id)


def parse_fields(shown: str) -> dict[str, str]:
    """Return the values of a line of NAME=VALUE by their names."""
    return dict(re.findall(r"(\w+)=(\S*)", shown))


def parse_job(shown: str) -> JobState:
    """Return the state that a job's line tells."""
    fields = parse_fields(shown)
    code, _, signum = fields.get("ExitCode", "0:0").partition(":")
    reason = fields.get("Reason", "None")
    return JobState(
        fields["JobState"].split("+")[0],
        None if reason in ("None", "") else reason,
        int(fields.get("Restarts", 0)),
        _status(code, signum or "0"),
    )


def _status(code: str, signum: str) -> int:
    return 128 + int(signum) if int(signum) else int(code)


def require_slurm() -> None:
    """Raise SlurmError, with what to do, where no job can be submitted."""
    missing = [name for name in ("sbatch", "scontrol", "scancel") if not shutil.which(name)]
    if missing:
        raise SlurmError(
            f"no Slurm client: {', '.join(missing)} not found on PATH. Submit from a login node of "
            "the cluster, or load its Slurm module first."
        )


def submit(words: Sequence[str], environment: dict[str, str], config: SlurmConfig) -> str:
    """Submit with `sbatch` and return the job's id.

    Raises:
        SlurmError: With what sbatch said, what was asked for and what the cluster has.
    """
    done = call("sbatch", "--parsable", *words, environment=environment)
    if done.returncode == 0:
        return done.stdout.strip().split(";")[0]
    said = " ".join(re.sub(r"sbatch: (error: )?", "", done.stderr).split())
    if "munge" in said.lower():
        raise SlurmError(
            f"sbatch: {said} Slurm's authentication, munge, does not work on this machine: its "
            "daemon is down or has another key. Ask the cluster's administrators."
        )
    raise SlurmError(f"sbatch: {said}\n{describe_demand(config)}")


def describe_demand(config: SlurmConfig) -> str:
    """Return what a job asks for, and what its partition has; all of them if it is not there."""
    partition = config.partition
    asked = f"  asked for  {' '.join(config.sbatch_options())}"
    shown = "partition %R: %D nodes, %c CPUs, %m MB, gres %G a node; time limit %l; %a"
    for only in ([f"--partition={partition}"] if partition else [], []):
        lines = call("sinfo", "-h", "-o", shown, *only).stdout.strip().splitlines()
        if lines:
            return "\n".join([asked, *(f"  there is   {line}" for line in lines)])
    return f"{asked}\n  sinfo does not answer."
