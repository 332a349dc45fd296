"""The MLflow runs of Slurm jobs: found by their tags, settled when their job has ended."""

from __future__ import annotations

from pathlib import Path

from mlflow import MlflowClient
from mlflow.entities import Run, RunStatus
from mlflow.utils.validation import MAX_TAG_VAL_LENGTH

from account_tax.storage.names import TAG
from account_tax.tracking.ownership import REASON_TAG, SLURM_TAG

from .job import JobState, SlurmJob

FOLDER_TAG = f"{TAG}slurm_folder"


def end_with_job(
    client: MlflowClient, run_id: str, job: SlurmJob, state: JobState, reason: str = ""
) -> str:
    """Bring an MLflow run to the status of its job, and return that.

    What the command itself made of its run stays: it knows more than an exit status does.
    """
    run = client.get_run(run_id)
    status = run.info.status
    if state.ended and not RunStatus.is_terminated(RunStatus.from_string(status)):
        status = state.mlflow_status
        if status != "FINISHED":
            said = reason or f"Slurm job {job.job_id} ended: {state.in_words()}"
            client.set_tag(run_id, REASON_TAG, said[:MAX_TAG_VAL_LENGTH])
        client.set_terminated(run_id, status)
    elif state.mlflow_status == "SCHEDULED" != status:
        status = "SCHEDULED"  # also one that was ended, where Slurm queued its job again
        client.update_run(run_id, status=status)
    return status


def job_of(run: Run) -> SlurmJob | None:
    """Return the job of a run, or None where it has none."""
    tags = run.data.tags
    return SlurmJob(tags[SLURM_TAG], Path(tags[FOLDER_TAG])) if SLURM_TAG in tags else None
