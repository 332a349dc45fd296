import pytest
from mlflow import MlflowClient

from account_tax.backends.runs import show_runs
from account_tax.backends.slurm.job import JobState, SlurmJob
from account_tax.backends.slurm.runs import FOLDER_TAG, job_of, settle
from account_tax.tracking.ownership import REFUSED_TAG, SLURM_TAG


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


@pytest.fixture
def client(store, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    return MlflowClient(store)


@pytest.fixture
def new_run(client, tmp_path):
    """Return what makes a run whose Slurm job has this number, and left this status."""

    def make(job, status=None):
        run_id = client.create_run("0").info.run_id
        client.set_tag(run_id, SLURM_TAG, job)
        client.set_tag(run_id, FOLDER_TAG, str(tmp_path))
        if status is not None:
            (tmp_path / "exit_status").write_text(f"{status}\n")
        return run_id

    return make


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
    assert settle(client, run_id, SlurmJob("7", tmp_path), state) == status
    run = client.get_run(run_id)
    assert run.info.status == status
    assert run.data.tags.get("account_tax.reason", "") == said


def test_what_the_command_made_of_its_run_stays(client, new_run, tmp_path):
    run_id = new_run("7")
    client.set_terminated(run_id, "FAILED")
    job = SlurmJob("7", tmp_path)
    assert settle(client, run_id, job, JobState("CANCELLED", status=143)) == "FAILED"
    assert settle(client, run_id, job, JobState("PENDING")) == "SCHEDULED"  # queued again


def test_kedro_runs_settles_a_run_whose_job_slurm_has_forgotten(
    client, new_run, tmp_path, monkeypatch, capsys
):
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(
        '#!/bin/sh\necho "slurm_load_jobs error: Invalid job id specified" >&2\nexit 1'
    )
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    run_id = new_run("8", status=1)
    client.update_run(run_id, status="RUNNING")
    assert show_runs(tmp_path, []) == 0
    header, first, *_ = capsys.readouterr().out.splitlines()
    assert header.split() == ["run", "status", "job", "since", "reason"]
    assert first.startswith(f"{run_id}  FAILED")
    assert first.endswith("Slurm job 8 ended: exit status 1")


def test_kedro_runs_says_that_slurm_is_not_here(client, new_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    run_id = new_run("9")
    show_runs(tmp_path, [])
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith(run_id))
    assert line.endswith("Slurm does not answer here")
    assert client.get_run(run_id).info.status == "RUNNING"


def test_a_store_that_does_not_answer_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert show_runs(tmp_path, []) == 2
    assert "MLFLOW_TRACKING_URI = http://127.0.0.1:9: " in capsys.readouterr().err


def test_a_refused_run_is_left_out_and_counted(client, tmp_path, capsys):
    run_id = client.create_run("0", tags={REFUSED_TAG: "true"}).info.run_id
    assert show_runs(tmp_path, []) == 0
    said = capsys.readouterr().out
    assert run_id not in said
    assert "1 refused, left out here: kedro runs --all shows them" in said
    assert show_runs(tmp_path, ["--all"]) == 0
    said = capsys.readouterr().out
    assert run_id in said
    assert "left out" not in said
