"""Which process owns an MLflow run, and what becomes of a run whose owner is gone."""

from __future__ import annotations

import hashlib
import os
import socket
from pathlib import Path
from typing import Literal

from mlflow import MlflowClient
from mlflow.entities import Run

OWNER_TAG = "account_tax.owner"
REASON_TAG = "account_tax.reason"
SLURM_TAG = "account_tax.slurm_job"  # the scheduler knows what became of those
GONE = (
    "the process that owned this run, {pid} on {host}, is gone and did not say how it ended. "
    "The same command goes on from the last checkpoint, if there is one."
)
MAX_FOUND = 1000  # runs one search returns at most


def describe_owner(pid: int | None = None) -> str:
    """Return what tells a process from every other: machine, boot, pid namespace, pid, start.

    The start counts clock ticks since boot, so no change of the clock changes it.
    """
    pid = pid or os.getpid()
    return " ".join(f"{key}={value}" for key, value in (_here() | _process(pid)).items())


def state_of(owner: str) -> Literal["alive", "gone", "unknown"]:
    """Return what is certain of a described process; of another host's nothing is."""
    then, here = _words(owner), _here()
    if then.keys() != here.keys() | {"pid", "started"} or not then["pid"].isdigit():
        return "unknown"
    if any(then[key] != here[key] for key in ("host", "machine")):
        return "unknown"
    if then["boot"] != here["boot"]:
        return "gone"
    if then["pid_namespace"] != here["pid_namespace"]:  # another container of this host
        return "unknown"
    return _look_up(int(then["pid"]), then["started"])


def close_dead_runs(client: MlflowClient) -> list[str]:
    """Close as FAILED every run of the store that RUNS by a process of this host that is gone.

    Args:
        client: The store's client; it is asked for its experiments and for their runs.

    Returns:
        The ids of the runs that were closed.
    """
    experiments = [each.experiment_id for each in client.search_experiments()]
    mine = f"tags.`{OWNER_TAG}` LIKE 'host={socket.gethostname()} %'"
    running = f"attributes.status = 'RUNNING' and {mine}"
    found = client.search_runs(experiments, running, max_results=MAX_FOUND)
    dead = [run for run in found if _is_dead(run)]
    # Asked again: another command may have taken one up in the meantime, owner first.
    return [
        run.info.run_id
        for run in dead
        if _is_dead(client.get_run(run.info.run_id)) and _close(client, run)
    ]


def _close(client: MlflowClient, run: Run) -> bool:
    owner = _words(run.data.tags[OWNER_TAG])
    client.set_tag(run.info.run_id, REASON_TAG, GONE.format_map(owner))
    client.set_terminated(run.info.run_id, "FAILED")
    return True


def _is_dead(run: Run) -> bool:
    tags = run.data.tags
    if run.info.status != "RUNNING" or SLURM_TAG in tags:
        return False
    return state_of(tags.get(OWNER_TAG, "")) == "gone"


def _words(owner: str) -> dict[str, str]:
    parts = (word.partition("=") for word in owner.split(" "))
    return {key: value for key, _, value in parts}


def _here() -> dict[str, str]:
    # systemd asks not to show the machine's id as it is (man machine-id).
    machine = hashlib.sha256(b"account-tax " + _read("/etc/machine-id").encode()).hexdigest()
    return {
        "host": socket.gethostname(),
        "machine": machine[:16],
        "boot": _read("/proc/sys/kernel/random/boot_id"),
        "pid_namespace": os.readlink("/proc/self/ns/pid").strip("pid:[]"),
    }


def _process(pid: int) -> dict[str, str]:
    return {"pid": str(pid), "started": _stat(pid)[1]}


def _look_up(pid: int, started: str) -> Literal["alive", "gone", "unknown"]:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return "gone"
    except PermissionError:  # somebody else's, and it may be hidden in /proc
        pass
    try:
        state, now_started = _stat(pid)
    except OSError:
        return "unknown"
    # A zombie has ended, and waits for its parent only.
    return "gone" if state == "Z" or now_started != started else "alive"


def _stat(pid: int) -> tuple[str, str]:
    """Return a process's state and its start, clock ticks since boot (man proc_pid_stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    words = fields.rpartition(")")[2].split()  # the name may hold blanks and brackets
    return words[0], words[19]


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""
