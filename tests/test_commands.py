"""Every way out of a command leaves its MLflow run ended."""

import os
import signal

import pytest
from mlflow import MlflowClient

from account_tax import commands
from account_tax.commands import run_in_mlflow
from account_tax.errors import Failed, Preempted, Refused
from account_tax.processes.identity import identify
from account_tax.tracking.ownership import OWNER_TAG, REASON_TAG
from account_tax.tracking.store import TrackingAway


@pytest.fixture
def client(tmp_path, monkeypatch):
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)
    store = f"sqlite:///{tmp_path / 'mlflow.db'}"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    return MlflowClient(store)


@pytest.fixture(autouse=True)
def _handlers():
    before = {each: signal.getsignal(each) for each in (1, 2, 15)}
    yield
    for each, handler in before.items():
        signal.signal(each, handler)


def newest_run(client):
    experiments = [each.experiment_id for each in client.search_experiments()]
    return client.search_runs(experiments)[0]


def fail(err):
    def work(run):
        raise err

    return work


@pytest.mark.parametrize(
    ("err", "status", "state", "reason"),
    [
        (Refused("no"), 2, "FAILED", "no"),
        (Failed("broken"), 1, "FAILED", "broken"),
        (Failed("some rows", status=3), 3, "FAILED", "some rows"),
        (TrackingAway("away"), 1, "FAILED", "away"),
        (Preempted("taken back", goes_on=True), 75, "SCHEDULED", "taken back"),
        (Preempted("taken back", goes_on=False), 143, "KILLED", "taken back"),
        (KeyError("bug"), 1, "FAILED", "unexpected KeyError: 'bug'"),
    ],
)
def test_a_run_ends_however_the_work_ended(client, tmp_path, err, status, state, reason):
    assert run_in_mlflow(tmp_path, fail(err)) == status
    run = newest_run(client)
    assert run.info.status == state
    assert run.data.tags[REASON_TAG] == reason


def test_a_run_whose_work_is_done_is_finished(client, tmp_path):
    assert run_in_mlflow(tmp_path, lambda run: None) == 0
    assert newest_run(client).info.status == "FINISHED"


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_kills_the_run_while_it_works_and_after(client, tmp_path, monkeypatch, signum):
    def send(*_):
        os.kill(os.getpid(), signum)

    assert run_in_mlflow(tmp_path, send) == 128 + signum
    assert newest_run(client).info.status == "KILLED"

    tell, told = commands._tell, []

    def tell_later(run, end):
        told.append(end.state)
        if len(told) == 1:
            send()
        return tell(run, end)

    monkeypatch.setattr(commands, "_tell", tell_later)
    assert run_in_mlflow(tmp_path, lambda run: None) == 128 + signum
    assert told == ["FINISHED", "KILLED"]
    assert newest_run(client).info.status == "KILLED"


def test_a_signal_after_the_end_changes_no_status(client, tmp_path, monkeypatch):
    close = commands.close

    def close_and_be_ended(run, end):
        status = close(run, end)
        os.kill(os.getpid(), signal.SIGTERM)
        return status

    monkeypatch.setattr(commands, "close", close_and_be_ended)
    run_in_mlflow(tmp_path, lambda run: None)
    assert newest_run(client).info.status == "FINISHED"


def test_a_command_closes_the_run_of_a_process_that_is_gone(client, tmp_path, capsys, dead):
    left = client.create_run("0", tags={OWNER_TAG: dead}).info.run_id
    living = client.create_run("0", tags={OWNER_TAG: identify()}).info.run_id
    assert run_in_mlflow(tmp_path, lambda run: None) == 0
    assert f"run {left}: its process is gone; closed as FAILED" in capsys.readouterr().err
    assert client.get_run(left).info.status == "FAILED"
    assert client.get_run(living).info.status == "RUNNING"


def test_a_store_that_goes_away_is_said_with_how_to_go_on(client, tmp_path, monkeypatch, capsys):
    def close(self, *_, **__):
        raise TrackingAway("MLFLOW_TRACKING_URI = x: no answer.")

    monkeypatch.setattr(commands.OwnedRun, "close", close)
    assert run_in_mlflow(tmp_path, lambda run: None) == 1
    run_id = newest_run(client).info.run_id
    said = capsys.readouterr().err
    assert f"the MLflow run {run_id} is not marked as FINISHED. " in said
    assert f"`kedro register --run {run_id}`" in said
