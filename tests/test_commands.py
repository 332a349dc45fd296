"""Every way out of a command leaves its MLflow run ended."""

import os
import re
import signal
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from account_tax import commands
from account_tax.errors import Failed, Preempted, Refused, Unmeasured
from account_tax.processes.identity import identify
from account_tax.tracking.ownership import OWNER_TAG, REASON_TAG, REFUSED_TAG
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


def run_in_mlflow(project, work):
    return commands.run_in_mlflow(project, lambda: None, lambda _, run: work(run))


def fail(err):
    def work(run):
        raise err

    return work


@pytest.mark.parametrize(
    ("err", "status", "state", "reason"),
    [
        (Failed("broken"), 1, "FAILED", "broken"),
        (Failed("some rows", status=3), 3, "FAILED", "some rows"),
        (TrackingAway("away"), 1, "FAILED", "away"),
        (Preempted("taken back", goes_on=True), 75, "SCHEDULED", "taken back"),
        (Preempted("taken back", goes_on=False), 143, "KILLED", "taken back"),
        (OSError(28, "full"), 1, "FAILED", "unexpected OSError: [Errno 28] full"),
    ],
)
def test_a_run_ends_however_the_work_ended(client, tmp_path, err, status, state, reason):
    assert run_in_mlflow(tmp_path, fail(err)) == status
    run = newest_run(client)
    assert run.info.status == state
    assert run.data.tags[REASON_TAG] == reason


def test_a_run_holds_neither_a_secret_nor_a_librarys_words(client, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_123456")

    def work(run):
        run.set_tags({"told": "with hf_123456"})
        run.log_params({"uri": "s3://me:hunter22@bucket/x"})
        run.log_text("https://h/x?sig=hunter22", "note.txt")
        raise KeyError("a cell"[::-1])

    assert run_in_mlflow(tmp_path, work) == 1
    run = newest_run(client)
    stored = str(run.to_dictionary())
    stored += Path(client.download_artifacts(run.info.run_id, "note.txt")).read_text()
    said = stored + "".join(capsys.readouterr())
    assert not [each for each in ("hf_123456", "hunter22", "llec a") if each in said]
    assert re.search(r"unexpected KeyError at .*test_commands.py:\d+; its words may quote", said)


def test_mlflows_own_tags_of_a_remote_lose_its_password(client, tmp_path, monkeypatch):
    tags = {"mlflow.source.name": "https://ghp_123@host/x.git"}
    run = client.create_run(client.create_experiment("x"), tags=tags)
    monkeypatch.setenv("MLFLOW_RUN_ID", run.info.run_id)
    assert run_in_mlflow(tmp_path, lambda run: None) == 0
    assert "ghp_123" not in str(client.get_run(run.info.run_id).to_dictionary())


def test_a_signal_inside_a_library_that_catches_all_is_a_signal(client, tmp_path):
    def work(run):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except Exception as err:  # as MLflow's store does around each statement
            raise MlflowException(str(err)) from err

    assert run_in_mlflow(tmp_path, work) == 143
    run = newest_run(client)
    assert run.info.status == "KILLED"
    assert run.data.tags[REASON_TAG] == "ended by SIGTERM"


def refuse(run):
    raise Refused("no")


def test_a_refused_command_leaves_no_run_that_it_made(client, tmp_path, capsys):
    assert run_in_mlflow(tmp_path, refuse) == 2
    assert capsys.readouterr().err == "no\n"
    assert run_in_mlflow(tmp_path, fail(Unmeasured("not known"))) == 4
    assert client.search_runs([each.experiment_id for each in client.search_experiments()]) == []


def test_a_refused_word_opens_no_run(client, tmp_path):
    def read():
        raise Refused("no")

    assert commands.run_in_mlflow(tmp_path, read, lambda _, run: pytest.fail("it went on")) == 2
    assert [each.name for each in client.search_experiments()] == ["Default"]


@pytest.mark.parametrize("when", ["read", "work"])
def test_a_run_of_mlflow_projects_ends_failed_and_tagged(client, tmp_path, monkeypatch, when):
    run_id = client.create_run("0").info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    read = (lambda: refuse(None)) if when == "read" else (lambda: None)
    assert commands.run_in_mlflow(tmp_path, read, lambda _, run: refuse(run)) == 2
    run = client.get_run(run_id)
    assert run.info.status == "FAILED"
    assert run.data.tags[REASON_TAG] == "no"
    assert run.data.tags[REFUSED_TAG] == "true"
    commands.run_in_mlflow(tmp_path, lambda: None, lambda _, run: None)  # such as a job requeued
    assert REFUSED_TAG not in client.get_run(run_id).data.tags


def test_what_was_logged_before_a_refusal_stays(client, tmp_path):
    def work(run):
        run.set_tags({"account_tax.reviewed": "models:/account-tax/1"})
        raise Refused("no")

    assert run_in_mlflow(tmp_path, work) == 2
    run = newest_run(client)
    assert (run.info.status, run.data.tags[REASON_TAG]) == ("FAILED", "no")
    assert REFUSED_TAG not in run.data.tags


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


@pytest.mark.parametrize(
    ("run_id", "said"),
    [
        ("", "a (--a): b. Set --c to 1.\n`mlflow run . -P d=1`"),
        ("r", "a (-P a): b. Set -P c to 1."),
    ],
)
def test_options_are_told_as_they_are_typed(monkeypatch, capsys, run_id, said):
    monkeypatch.delenv("MLFLOW_RUN_ID", raising=False)
    if run_id:
        monkeypatch.setenv("MLFLOW_RUN_ID", run_id)
    reason = "a (-P a): b. Set -P c to 1.\n`mlflow run . -P d=1`"
    commands._tell(None, commands.End(2, "FAILED", reason))
    assert said in capsys.readouterr().err
