"""Which MLflow run belongs to which process, and what becomes of one whose owner is gone."""

from __future__ import annotations

import socket
from typing import Literal

from mlflow import MlflowClient
from mlflow.entities import Run

from account_tax.processes.identity import parse_identity, state_of
from account_tax.storage.names import TAG

from .store import condition

OWNER_TAG = f"{TAG}owner"
REASON_TAG = f"{TAG}reason"
KIND_TAG = f"{TAG}kind"
Kind = Literal[
    "train",
    "tune",
    "trial",
    "predict",
    "review",
    "compare",
    "reproduce",
    "export",
    "attempt",
    "dry run",
    "refused",
]
REFUSED_TAG = f"{TAG}refused"  # true: its command was refused before it did anything
SLURM_TAG = f"{TAG}slurm_job"  # the scheduler knows what became of those
GONE = (
    "the process that owned this run, {pid} on {host}, is gone and did not say how it ended. "
    "The same command goes on where something was kept"
)
OF_TRAINING = "; what has trained to its end is finished by kedro register --run {run_id}"
MAX_FOUND = 1000  # runs one search returns at most


def close_dead_runs(client: MlflowClient) -> list[str]:
    """Close as FAILED every run of the store that RUNS by a process of this host that is gone.

    Args:
        client: The store's client; it is asked for its experiments and for their runs.

    Returns:
        The ids of the runs that were closed.
    """
    experiments = [each.experiment_id for each in client.search_experiments()]
    mine = condition(f"tags.`{OWNER_TAG}`", f"host={socket.gethostname()} %", "LIKE")
    running = f"attributes.status = 'RUNNING' and {mine}"
    found = client.search_runs(experiments, running, max_results=MAX_FOUND)
    closed = []
    for run_id in [run.info.run_id for run in found if _is_dead(run)]:
        # Asked again: another command may have taken it up in the meantime, owner first.
        if _is_dead(run := client.get_run(run_id)):
            owner = parse_identity(run.data.tags[OWNER_TAG])
            trains = run.data.tags.get(KIND_TAG) in ("train", "trial")
            reason = f"{GONE}{OF_TRAINING * trains}.".format_map(owner | {"run_id": run_id})
            client.set_tag(run_id, REASON_TAG, reason)
            client.set_terminated(run_id, "FAILED")
            closed.append(run_id)
    return closed


def _is_dead(run: Run) -> bool:
    tags = run.data.tags
    if run.info.status != "RUNNING" or SLURM_TAG in tags:
        return False
    return state_of(tags.get(OWNER_TAG, "")) == "gone"
