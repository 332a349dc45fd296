import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.entities import Dataset, DatasetInput, InputTag
from mlflow.store.tracking.dbmodels.models import SqlDataset
from mlflow.utils.validation import MAX_TAG_VAL_LENGTH
from sqlalchemy import event

from account_tax.processes.identity import identify, state_of
from account_tax.provenance.code import PACKAGE
from account_tax.tracking import owned_run as mlflow_run
from account_tax.tracking.metric_journal import MetricJournal, count_unsent, journal_file
from account_tax.tracking.owned_run import OwnedRun
from account_tax.tracking.ownership import OWNER_TAG, REASON_TAG
from account_tax.tracking.store import (
    PATIENCE_VARIABLE,
    TrackingAway,
    TrackingError,
    experiment_id,
    patience_seconds,
)
from tests.provenance.test_code import git, write


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


@pytest.fixture
def client(store, tmp_path, monkeypatch):
    """A client of the store, which the environment names too; artifacts go to the test's folder."""
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_NAME", "MLFLOW_REGISTRY_URI"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", store)
    client = MlflowClient(store)
    experiment = client.create_experiment(tmp_path.name, artifact_location=str(tmp_path / "files"))
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment)
    return client


@pytest.fixture
def run(client, tmp_path):
    return OwnedRun.open(tmp_path)


def stored(client, run):
    return client.get_run(run.run_id)


def add_version(client, run, name, tags):
    model = client.create_logged_model(
        stored(client, run).info.experiment_id, name="classifier", source_run_id=run.run_id
    )
    client.finalize_logged_model(model.model_id, "READY")
    if not client.search_registered_models(f"name = '{name}'"):
        client.create_registered_model(name)
    source = f"models:/{model.model_id}"
    client.create_model_version(name, source, run_id=run.run_id, tags=tags)
    return model.model_id


def test_a_tag_that_is_none_goes(client, run):
    run.set_tags({"a": "1", "b": "2"})
    run.set_tags({"a": None, "b": "", "c": None})
    tags = stored(client, run).data.tags
    assert ("a" in tags, tags["b"], "c" in tags) == (False, "", False)


def test_two_runs_that_read_the_same_data_at_once_both_say_so(client, run, tmp_path):
    other = OwnedRun.open(tmp_path)
    data = DatasetInput(
        Dataset("ledger", "d1", "local", "{}"), [InputTag("mlflow.data.context", "t")]
    )

    others = [other]

    def be_first(*_):
        if others:
            others.pop().log_datasets([data])

    event.listen(SqlDataset, "before_insert", be_first)
    try:
        run.log_datasets([data])
    finally:
        event.remove(SqlDataset, "before_insert", be_first)
    for each in (run, other):
        (logged,) = stored(client, each).inputs.dataset_inputs
        assert (logged.dataset.digest, logged.tags[0].value) == ("d1", "t")


def test_two_commands_that_make_the_experiment_at_once_share_it(client, monkeypatch):
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "of two")
    create = client.create_experiment
    made = []

    def after_another(name):
        made.append(create(name))
        return create(name)

    monkeypatch.setattr(client, "create_experiment", after_another)
    assert [experiment_id(client), experiment_id(client)] == made * 2


def test_bytes_are_stored_as_they_are(client, run, tmp_path):
    run.log_bytes(b"\xe9\r\n", "code.patch")
    assert Path(client.download_artifacts(run.run_id, "code.patch")).read_bytes() == b"\xe9\r\n"


# --- whose run it is ------------------------------------------------------------------------------


def test_mlflows_own_run_is_adopted_and_runs_again(client, tmp_path, monkeypatch):
    given = client.create_run(os.environ["MLFLOW_EXPERIMENT_ID"]).info.run_id
    client.set_terminated(given, "FAILED")
    monkeypatch.setenv("MLFLOW_RUN_ID", given)
    run = OwnedRun.open(tmp_path)
    assert run.run_id == given
    assert stored(client, run).info.status == "RUNNING"
    assert run.experiment_name == tmp_path.name


def test_a_run_names_its_process_from_the_start(client, run, monkeypatch, tmp_path):
    assert state_of(stored(client, run).data.tags[OWNER_TAG]) == "alive"
    given = client.create_run(os.environ["MLFLOW_EXPERIMENT_ID"]).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", given)
    OwnedRun.open(tmp_path)
    assert state_of(client.get_run(given).data.tags[OWNER_TAG]) == "alive"


def test_a_run_that_goes_on_has_a_new_owner_before_it_is_running(client, run, monkeypatch):
    client.set_tag(run.run_id, OWNER_TAG, "a former one")
    run.close("FAILED", "a reason")
    seen = []
    real = MlflowClient.update_run

    def update(self, run_id, **how):
        seen.append(client.get_run(run_id).data.tags[OWNER_TAG])
        return real(self, run_id, **how)

    monkeypatch.setattr(MlflowClient, "update_run", update)
    OwnedRun.reopen(client, run.run_id, run.tracking_uri)
    assert seen == [identify()]
    assert stored(client, run).info.status == "RUNNING"
    assert REASON_TAG not in stored(client, run).data.tags


def test_without_a_run_one_is_started_in_the_named_experiment(client, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID")
    assert OwnedRun.open(tmp_path).experiment_name == "Default"  # that of `mlflow run`
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "another")
    assert OwnedRun.open(tmp_path).experiment_name == "another"


@pytest.mark.parametrize(("given", "name"), [(None, "train starter r8"), ("mine", "mine")])
def test_a_run_says_what_it_is_unless_a_person_named_it(client, tmp_path, given, name):
    run = OwnedRun.open(tmp_path)
    if given:
        client.set_tag(run.run_id, "mlflow.runName", given)
    run.introduce("train", "starter r8", {"account_tax.recipe": "starter"})
    found = client.get_run(run.run_id)
    assert (found.info.run_name, found.data.tags["account_tax.kind"]) == (name, "train")
    assert found.data.tags["account_tax.recipe"] == "starter"


@pytest.mark.parametrize("there", [False, True], ids=["no-store", "another-store"])
def test_a_relative_store_that_is_not_the_runs_is_refused(client, tmp_path, monkeypatch, there):
    # `mlflow run URI` reads the path from its own folder, the project from the clone.
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "sqlite:///runs.db")
    if there:
        shutil.copy(client.tracking_uri.removeprefix("sqlite:///"), tmp_path / "runs.db")
    with pytest.raises(TrackingError, match=r"relative to the folder.*sqlite:////.*runs\.db"):
        OwnedRun.open(tmp_path)
    assert (tmp_path / "runs.db").exists() == there


def test_a_relative_store_that_has_the_run_is_handed_on_by_its_full_path(
    client, tmp_path, monkeypatch
):
    given = client.create_run(os.environ["MLFLOW_EXPERIMENT_ID"]).info.run_id
    full = Path(client.tracking_uri.removeprefix("sqlite:///"))
    monkeypatch.chdir(full.parent)
    monkeypatch.setenv("MLFLOW_RUN_ID", given)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{full.name}")
    assert OwnedRun.open(tmp_path).tracking_uri == client.tracking_uri


def test_a_relative_store_is_found_where_the_run_was_started_from(client, tmp_path):
    # As `mlflow run URI` does it: the run is made here, the project works in another folder.
    given = client.create_run(os.environ["MLFLOW_EXPERIMENT_ID"]).info.run_id
    store = Path(client.tracking_uri.removeprefix("sqlite:///"))
    show = (
        "from account_tax.tracking.owned_run import *; "
        "print(OwnedRun.open(Path.cwd()).tracking_uri)"
    )
    done = subprocess.run(
        ["sh", "-c", f'(cd "{tmp_path}" && "{sys.executable}" -c "{show}"); true'],
        cwd=store.parent,
        env=os.environ
        | {"MLFLOW_RUN_ID": given, "MLFLOW_TRACKING_URI": f"sqlite:///{store.name}"}
        | {"PYTHONPATH": str(PACKAGE.parent)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == client.tracking_uri
    assert not (tmp_path / store.name).exists()


def test_stages_find_the_run_in_their_environment(run, store, tmp_path):
    assert run.environment() == {
        "MLFLOW_RUN_ID": run.run_id,
        "MLFLOW_TRACKING_URI": store,
        "MLFLOW_EXPERIMENT_NAME": tmp_path.name,
    }


def test_artifacts_that_can_not_be_kept_are_said_before_there_is_a_run(
    client, tmp_path, monkeypatch
):
    experiment = client.create_experiment("nowhere", artifact_location="file:///proc/no%20where")
    monkeypatch.setenv("MLFLOW_EXPERIMENT_ID", experiment)
    with pytest.raises(TrackingError, match=r"^/proc/no where: .* can't be written to \(.*MLFLOW_"):
        OwnedRun.open(tmp_path)
    assert client.search_runs([experiment]) == []


# --- what it holds --------------------------------------------------------------------------------


def test_params_are_logged_by_dotted_key_however_many(client, run):
    run.log_params({f"train.training.key_{number}": number for number in range(150)})
    params = stored(client, run).data.params
    assert len(params) == 150
    assert params["train.training.key_149"] == "149"


def test_a_key_that_is_no_name_of_a_param_goes_before_its_value(client, run):
    pattern = "train.lora.rank_pattern"
    long = f"{pattern}.{'q' * 300}"
    run.log_params({f"{pattern}.q.*": 4, f"{pattern}.q.+": 8, f"{pattern}.라벨": 2, long: 1})
    params = stored(client, run).data.params
    assert params[f"{pattern}.q._"] == f"{pattern}.q.* = 4, {pattern}.q.+ = 8"
    assert params[f"{pattern}.라벨"] == "2"
    assert params[long[:250]] == f"{long} = 1"


def test_a_param_that_mlflow_logged_already_stays(client, run):
    client.log_param(run.run_id, "train.lora.r", "08")
    run.log_params({"train.lora.r": 8})
    assert stored(client, run).data.params["train.lora.r"] == "08"


def test_a_run_ends_with_its_state_and_reason(client, run):
    run.close("KILLED", "ended by SIGINT")
    assert stored(client, run).info.status == "KILLED"
    assert stored(client, run).data.tags["account_tax.reason"] == "ended by SIGINT"


def test_a_killed_run_stays_killed_though_the_parent_says_failed(client, tmp_path, monkeypatch):
    # What `mlflow run` 3.17 does after its command has ended.
    given = client.create_run(os.environ["MLFLOW_EXPERIMENT_ID"]).info.run_id
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as parent:
        monkeypatch.setenv("MLFLOW_RUN_ID", given)
        monkeypatch.setattr("os.getppid", lambda: parent.pid)
        OwnedRun.open(tmp_path).close("KILLED", "ended by SIGINT")
        client.set_terminated(given, "FAILED")
    deadline = time.monotonic() + 60
    while client.get_run(given).info.status != "KILLED":
        assert time.monotonic() < deadline
        time.sleep(0.1)


def test_a_run_that_ends_well_has_no_reason(client, run):
    run.close("FINISHED")
    assert stored(client, run).info.status == "FINISHED"
    assert "account_tax.reason" not in stored(client, run).data.tags


def test_of_a_reason_too_long_for_a_tag_both_ends_are_kept(client, run):
    run.close("FAILED", "what failed\n" + "x" * MAX_TAG_VAL_LENGTH + "\nthe last line")
    tag = stored(client, run).data.tags["account_tax.reason"]
    assert tag.startswith("what failed")
    assert tag.endswith("the last line")
    assert len(tag) <= MAX_TAG_VAL_LENGTH


# --- what is left of a run that did not finish ----------------------------------------------------


def test_logs_are_attached(client, run, tmp_path):
    log = tmp_path / "train.log"
    log.write_text("last words")
    run.salvage([log])
    (file,) = client.list_artifacts(run.run_id, "logs")
    assert file.path == "logs/train.log"


def test_a_version_no_cold_load_confirmed_is_withdrawn(client, run):
    add_version(client, run, "half", {})
    run.salvage([])
    assert not client.search_registered_models("name = 'half'")
    assert not client.search_logged_models([stored(client, run).info.experiment_id])


def test_a_confirmed_version_and_other_runs_versions_stay(client, run, tmp_path):
    kept = add_version(client, run, "whole", {"verified": "true"})
    other = OwnedRun.open(tmp_path)
    others = add_version(client, other, "whole", {})
    run.salvage([])
    assert {version.version for version in client.search_model_versions("name = 'whole'")} == {1, 2}
    models = client.search_logged_models([stored(client, run).info.experiment_id])
    assert {model.model_id for model in models} == {kept, others}


def test_a_logged_model_that_never_became_a_version_is_withdrawn(client, run):
    experiment = stored(client, run).info.experiment_id
    client.create_logged_model(experiment, name="classifier", source_run_id=run.run_id)
    run.salvage([])
    assert not client.search_logged_models([experiment])


def test_salvage_never_raises(client, run, tmp_path, monkeypatch):
    add_version(client, run, "gone", {})

    def away(*args, **kwargs):
        raise OSError(28, "No space left on device")

    run.salvage([tmp_path / "no such.log"])
    assert not client.search_registered_models("name = 'gone'")  # the logs come after
    for call in ("log_artifact", "search_model_versions"):
        monkeypatch.setattr(MlflowClient, call, away)
    run.salvage([tmp_path / "no such.log"])


# --- a server that is not there -------------------------------------------------------------------


def test_a_server_that_refuses_is_said_at_once_with_what_to_do(tmp_path, monkeypatch):
    with socket.socket() as taken:  # bound, so that nobody else takes it, and not listening
        taken.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{taken.getsockname()[1]}"
        monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
        began = time.monotonic()
        with pytest.raises(TrackingError) as caught:
            OwnedRun.open(tmp_path)
    assert time.monotonic() - began < 10
    assert str(caught.value).startswith(f"MLFLOW_TRACKING_URI = {uri}: ")
    assert "Start the server, or unset the variable" in str(caught.value)


@pytest.fixture
def away(tmp_path):
    """A run whose server refuses every connection."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        uri = f"http://127.0.0.1:{taken.getsockname()[1]}"
        yield OwnedRun(MlflowClient(uri), "a" * 32, "account-tax", uri)


def test_the_end_of_a_run_waits_for_a_server_as_long_as_it_may(away, capsys):
    began = time.monotonic()
    with pytest.raises(TrackingAway, match="It was waited for, 3 s"):
        away.close("FINISHED", patience=3)
    assert 1 <= time.monotonic() - began < 20
    assert "waiting for the tracking server, 3 s at most" in capsys.readouterr().err


def test_points_stay_in_their_file_while_the_server_is_away(away, tmp_path):
    journal = MetricJournal(journal_file(tmp_path, away.run_id))
    journal.add({"train/loss": 0.5}, 1)
    journal.close()
    with pytest.raises(TrackingAway):
        away.send_metrics(journal.file)
    assert count_unsent(journal.file) == 1


def test_a_server_that_answers_is_not_asked_again(client, run):
    stranger = OwnedRun(client, "0" * 32, run.experiment_name, run.tracking_uri)
    began = time.monotonic()
    with pytest.raises(TrackingError, match=f"{'0' * 32} not found. `kedro runs` shows"):
        stranger.close("FINISHED", patience=60)
    assert time.monotonic() - began < 20


@pytest.mark.parametrize(("given", "seconds"), [(None, 120), ("5", 5), ("soon", 120)])
def test_the_patience_is_the_users(given, seconds, monkeypatch):
    monkeypatch.delenv(PATIENCE_VARIABLE, raising=False)
    if given:
        monkeypatch.setenv(PATIENCE_VARIABLE, given)
    assert patience_seconds() == seconds


def test_a_run_the_server_does_not_know_is_said(client, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    with pytest.raises(TrackingError, match="0" * 32):
        OwnedRun.open(tmp_path)


@pytest.mark.parametrize("scheme", ["postgresql", "mysql", "mssql"])
def test_a_database_without_its_driver_is_said(scheme, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"{scheme}://me@127.0.0.1:1/mlflow")
    with pytest.raises(TrackingError, match=r"driver .* is not in this environment.*mlflow server"):
        OwnedRun.open(tmp_path)


def test_short_waits_are_the_launchers_alone_and_the_users_setting_wins(run, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    with mlflow_run.answers_soon("somewhere"):
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
        assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "1"
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ


# --- going on -------------------------------------------------------------------------------------


@pytest.fixture
def interrupted(client, run):
    """The id of an earlier run that failed."""
    run.log_params({"train.lora.r": 8})
    run.close("FAILED", "training failed")
    return run.run_id


def test_by_hand_the_earlier_run_goes_on_and_no_other_is_left(client, tmp_path, interrupted):
    again = OwnedRun.open(tmp_path)
    again.go_on(interrupted, "step 20")
    assert again.environment()["MLFLOW_RUN_ID"] == interrupted
    (left,) = client.search_runs([os.environ["MLFLOW_EXPERIMENT_ID"]])
    assert (left.info.run_id, left.info.status) == (interrupted, "RUNNING")
    assert mlflow_run.REASON_TAG not in left.data.tags
    again.log_params({"train.lora.r": 8})
    again.close("FINISHED")
    assert stored(client, again).info.status == "FINISHED"


@pytest.mark.parametrize("end", ["FINISHED", "FAILED"])
def test_mlflows_run_is_marked_as_an_attempt_and_ends_with_the_other(
    client, tmp_path, interrupted, monkeypatch, end
):
    given = client.create_run(os.environ["MLFLOW_EXPERIMENT_ID"]).info.run_id
    name = client.get_run(interrupted).info.run_name
    monkeypatch.setenv("MLFLOW_RUN_ID", given)
    again = OwnedRun.open(tmp_path)
    again.go_on(interrupted, "step 20")
    again.set_tags({"account_tax.recipe": "starter"})
    again.close(end)
    attempt, goes_on = client.get_run(given), client.get_run(interrupted)
    assert attempt.info.status == goes_on.info.status == end
    assert (attempt.info.run_name, goes_on.info.run_name) == ("attempt from step 20", name)
    assert attempt.data.tags["mlflow.parentRunId"] == interrupted
    assert attempt.data.tags[mlflow_run.CONTINUES_TAG] == interrupted
    assert f"continued run {interrupted} from step 20" in attempt.data.tags["mlflow.note.content"]
    assert goes_on.data.tags["account_tax.recipe"] == "starter"
    assert "account_tax.recipe" not in attempt.data.tags


def test_the_very_run_simply_goes_on(client, tmp_path, interrupted, monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", interrupted)  # as where a job was queued once more
    again = OwnedRun.open(tmp_path)
    again.go_on(interrupted, "step 20")
    tags = stored(client, again).data.tags
    assert not {mlflow_run.REASON_TAG, mlflow_run.CONTINUES_TAG, "mlflow.parentRunId"} & set(tags)
    assert stored(client, again).info.status == "RUNNING"


def test_the_status_of_a_run_nobody_knows_or_that_was_deleted_is_none(client, run, interrupted):
    assert run.status_of(interrupted) == "FAILED"
    assert run.status_of("0" * 32) is None
    client.delete_run(interrupted)
    assert run.status_of(interrupted) is None


def test_every_run_says_whose_it_is_and_of_what(client, tmp_path, monkeypatch):
    monkeypatch.setenv("LOGNAME", "kim")
    write(tmp_path / "books", {"a.py": b"a = 1\n"})
    for words in (["init", "-q"], ["add", "."], ["commit", "-q", "-m", "One"]):
        git(tmp_path / "books", *words)
    run = OwnedRun.open(tmp_path / "books")
    adopted = client.create_run("0", tags={"mlflow.user": "lee"}).info.run_id
    monkeypatch.setenv("MLFLOW_RUN_ID", adopted)
    OwnedRun.open(tmp_path / "books")
    for run_id, user in ((run.run_id, "kim"), (adopted, "lee")):
        tags = client.get_run(run_id).data.tags
        assert (tags["mlflow.user"], tags["mlflow.source.name"]) == (user, "books")
        assert len(tags["mlflow.source.git.commit"]) == 40
