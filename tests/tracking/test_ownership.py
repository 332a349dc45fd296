import pytest
from mlflow import MlflowClient

from account_tax.processes.identity import identify
from account_tax.tracking.ownership import (
    KIND_TAG,
    OWNER_TAG,
    REASON_TAG,
    SLURM_TAG,
    close_dead_runs,
)
from tests.processes.test_identity import changed


@pytest.fixture
def client(tmp_path):
    return MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")


@pytest.fixture
def add_run(client):
    experiments = iter(range(100))

    def add(owner, **tags):
        given = ({OWNER_TAG: owner} if owner else {}) | tags
        experiment = client.create_experiment(f"experiment {next(experiments)}")
        return client.create_run(experiment, tags=given).info.run_id

    return add


def status(client, run_id):
    return client.get_run(run_id).info.status


# --- the runs of a store --------------------------------------------------------------------------


def test_the_run_of_a_process_that_is_gone_is_closed_with_the_reason(client, add_run, dead):
    run_id = add_run(dead, **{KIND_TAG: "train"})
    assert close_dead_runs(client) == [run_id]
    assert status(client, run_id) == "FAILED"
    reason = client.get_run(run_id).data.tags[REASON_TAG]
    assert "is gone" in reason
    assert "The same command goes on where something was kept" in reason
    assert f"kedro register --run {run_id}" in reason
    assert close_dead_runs(client) == []


def test_who_was_predicting_is_told_nothing_of_registering(client, add_run, dead):
    run_id = add_run(dead, **{KIND_TAG: "predict"})
    assert close_dead_runs(client) == [run_id]
    assert "register" not in client.get_run(run_id).data.tags[REASON_TAG]


def test_every_other_run_is_left_alone(client, add_run, dead):
    others = [
        add_run(identify()),
        add_run(None),
        add_run(changed(dead, host="elsewhere")),
        add_run(changed(dead, pid_namespace="4026500000")),
        add_run(dead, **{SLURM_TAG: "17"}),
    ]
    ended = add_run(dead)
    client.set_terminated(ended, "KILLED")
    assert close_dead_runs(client) == []
    assert {status(client, run_id) for run_id in others} == {"RUNNING"}
    assert status(client, ended) == "KILLED"


def test_two_requests_find_that_there_is_nothing_to_close(client, add_run, monkeypatch):
    for _ in range(3):
        add_run(identify())
    asked = []
    for name in ("search_experiments", "search_runs", "get_run"):
        real = getattr(client, name)
        monkeypatch.setattr(
            client, name, lambda *a, _n=name, _r=real, **k: (asked.append(_n), _r(*a, **k))[1]
        )
    close_dead_runs(client)
    assert asked == ["search_experiments", "search_runs"]
