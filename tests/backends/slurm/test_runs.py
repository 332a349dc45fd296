"""The MLflow runs of Slurm jobs."""

import pytest

from account_tax.backends.slurm.job import JobState, SlurmJob
from account_tax.backends.slurm.runs import end_with_job, job_of


def test_a_run_knows_its_job(client, new_run, tmp_path):
    assert job_of(client.get_run(new_run("7"))) == SlurmJob("7", tmp_path)
    assert job_of(client.create_run("0")) is None


@pytest.mark.parametrize(
    ("state", "status", "said"),
    [
        (JobState("PENDING", "Priority"), "SCHEDULED", ""),
        (JobState("RUNNING"), "RUNNING", ""),
        (JobState("COMPLETED"), "FINISHED", ""),
        (JobState("TIMEOUT", status=1), "FAILED", "Slurm job 7 ended: it reached its time limit"),
        (JobState("CANCELLED", status=143), "KILLED", "Slurm job 7 ended: it was cancelled"),
    ],
)
def test_a_run_is_settled_by_its_job(client, new_run, tmp_path, state, status, said):
    run_id = new_run("7")
    assert end_with_job(client, run_id, SlurmJob("7", tmp_path), state) == status
    run = client.get_run(run_id)
    assert run.info.status == status
    assert run.data.tags.get("account_tax.reason", "") == said


def test_what_the_command_made_of_its_run_stays(client, new_run, tmp_path):
    run_id = new_run("7")
    client.set_terminated(run_id, "FAILED")
    job = SlurmJob("7", tmp_path)
    assert end_with_job(client, run_id, job, JobState("CANCELLED", status=143)) == "FAILED"
    assert end_with_job(client, run_id, job, JobState("PENDING")) == "SCHEDULED"  # queued again
