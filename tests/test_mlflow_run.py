import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from mlflow import MlflowClient
from mlflow.utils.validation import MAX_TAG_VAL_LENGTH

from account_tax import mlflow_run
from account_tax.mlflow_run import OwnedRun, TrackingError


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


# --- whose run it is ------------------------------------------------------------------------------


def test_mlflows_own_run_is_adopted_and_runs_again(client, tmp_path, monkeypatch):
    given = client.create_run(os.environ["MLFLOW_EXPERIMENT_ID"]).info.run_id
    client.set_terminated(given, "FAILED")
    monkeypatch.setenv("MLFLOW_RUN_ID", given)
    run = OwnedRun.open(tmp_path)
    assert run.run_id == given
    assert stored(client, run).info.status == "RUNNING"
    assert run.experiment_name == tmp_path.name


def test_without_a_run_one_is_started_in_the_named_experiment(client, tmp_path, monkeypatch):
    monkeypatch.delenv("MLFLOW_EXPERIMENT_ID")
    assert OwnedRun.open(tmp_path).experiment_name == "account-tax"
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", "another")
    assert OwnedRun.open(tmp_path).experiment_name == "another"


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
    show = "from account_tax.mlflow_run import *; print(OwnedRun.open(Path.cwd()).tracking_uri)"
    done = subprocess.run(
        ["sh", "-c", f'(cd "{tmp_path}" && "{sys.executable}" -c "{show}"); true'],
        cwd=store.parent,
        env=os.environ
        | {"MLFLOW_RUN_ID": given, "MLFLOW_TRACKING_URI": f"sqlite:///{store.name}"}
        | {"PYTHONPATH": str(Path(mlflow_run.__file__).parents[1])},
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


# --- what it holds --------------------------------------------------------------------------------


def test_params_are_logged_by_dotted_key_however_many(client, run):
    run.log_params({f"train.training.key_{number}": number for number in range(150)})
    params = stored(client, run).data.params
    assert len(params) == 150
    assert params["train.training.key_149"] == "149"


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


def test_register_and_launcher_mean_the_same_tag():
    from account_tax.pipelines.register.registry import VERIFIED_TAG

    assert mlflow_run.VERIFIED_TAG == VERIFIED_TAG


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


def test_a_run_the_server_does_not_know_is_said(client, tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_RUN_ID", "0" * 32)
    with pytest.raises(TrackingError, match="0" * 32):
        OwnedRun.open(tmp_path)


def test_short_waits_are_the_launchers_alone_and_the_users_setting_wins(run, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "77")
    monkeypatch.delenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", raising=False)
    with mlflow_run._answers_soon("somewhere"):
        assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
        assert os.environ["MLFLOW_HTTP_REQUEST_MAX_RETRIES"] == "1"
    assert os.environ["MLFLOW_HTTP_REQUEST_TIMEOUT"] == "77"
    assert "MLFLOW_HTTP_REQUEST_MAX_RETRIES" not in os.environ
