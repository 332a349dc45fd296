import json
import signal
from hashlib import sha256
from pathlib import Path

import pytest
import yaml
from mlflow import MlflowClient

from account_tax.errors import Failed, Refused
from account_tax.launch.register import _alone, _folder_of, _restore_stages, in_words, salvaged
from account_tax.processes.groups import Interrupted
from account_tax.processes.identity import identify
from account_tax.storage.names import (
    ADAPTER_FOLDER,
    MARKER_FILE,
    METRICS_FILE,
    PREPARED_FILE,
    REGISTRATION_FILE,
)
from account_tax.tracking.owned_run import OwnedRun
from account_tax.tracking.ownership import OWNER_TAG

PROJECT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def client(tmp_path_factory):
    return MlflowClient(f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}")


@pytest.fixture
def trained(client, tmp_path):
    """Return a run that has trained, and its folder."""
    tags = {"account_tax.config_sha256": "c" * 64}
    run_id = client.create_run("0", tags=tags).info.run_id
    folder = tmp_path / run_id
    (folder / ADAPTER_FOLDER).mkdir(parents=True)
    (folder / ADAPTER_FOLDER / "adapter_model.safetensors").write_bytes(b"weights")
    weights = {"adapter_model.safetensors": sha256(b"weights").hexdigest()}
    (folder / MARKER_FILE).write_text(json.dumps({"weights": weights}))
    (folder / METRICS_FILE).write_text("{}")
    (folder / "conf/base").mkdir(parents=True)
    for name in ("globals.yml", "parameters.yml"):
        (folder / "conf/base" / name).write_text("artifacts_root: /before/it/was/moved\nseed: 1\n")
    (folder / PREPARED_FILE).write_text(json.dumps({"tokenizer": "2026-11-24T00.00.00.000Z"}))
    client.set_tag(run_id, "account_tax.artifacts_root", str(folder))
    client.set_terminated(run_id, "FAILED")
    return run_id, folder


def restore(client, run_id):
    return _restore_stages(PROJECT, client.get_run(run_id))


def test_the_stages_are_those_of_the_launcher(client, trained):
    run_id, folder = trained
    stages = restore(client, run_id)
    assert stages.root == folder
    assert "--load-versions=tokenizer:2026-11-24T00.00.00.000Z" in stages.single("register")
    assert stages.environment["ACCOUNT_TAX_CONFIG_SHA256"] == "c" * 64


def test_a_moved_runs_configuration_says_where_it_is_now(client, trained):
    run_id, folder = trained
    restore(client, run_id)
    for name in ("globals.yml", "parameters.yml"):
        content = yaml.safe_load((folder / "conf/base" / name).read_text())
        assert content == {"artifacts_root": str(folder), "seed": 1}


def test_the_folder_is_found_without_and_with_a_parameter(client):
    run_id = client.create_run("0").info.run_id
    found = _folder_of(PROJECT, client.get_run(run_id))
    assert found == PROJECT / "data" / "06_models" / run_id
    client.set_tag(run_id, "account_tax.artifacts_root", "/elsewhere")
    assert _folder_of(PROJECT, client.get_run(run_id)) == Path("/elsewhere") / run_id


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_an_interruption_after_training_says_how_to_go_on(client, trained, signum):
    run_id, _ = trained
    stages = restore(client, run_id)
    run = OwnedRun.reopen(client, run_id, client.tracking_uri)
    said = f"^{signum.name}: training is complete; kedro register --run {run_id} would evaluate"
    with pytest.raises(Interrupted, match=said), salvaged(stages, run):
        raise Interrupted(signum)


@pytest.mark.parametrize("name", [MARKER_FILE, METRICS_FILE, PREPARED_FILE])
def test_what_has_not_trained_to_its_end_is_refused(client, trained, name):
    run_id, folder = trained
    (folder / name).unlink()
    with pytest.raises(Refused, match="has not trained to its end"):
        restore(client, run_id)


def test_what_is_under_way_is_refused_and_what_was_left_running_is_not(client, trained):
    run_id, _ = trained
    client.update_run(run_id, status="RUNNING")
    client.set_tag(run_id, OWNER_TAG, identify())
    with pytest.raises(Refused, match="still under way: host="):
        restore(client, run_id)
    client.set_tag(run_id, OWNER_TAG, identify().replace("boot=", "boot=0"))
    restore(client, run_id)


def test_what_is_registered_and_finished_is_refused(client, trained):
    run_id, folder = trained
    done = json.dumps({"name": "account-tax", "version": 3})
    (folder / REGISTRATION_FILE).write_text(done)
    restore(client, run_id)  # FAILED: it may have gone wrong after that
    client.set_terminated(run_id, "FINISHED")
    with pytest.raises(Refused, match="registered and finished already: account-tax version 3"):
        restore(client, run_id)


def test_of_two_that_register_a_run_at_once_one_is_refused(trained):
    run_id, folder = trained
    with _alone(folder):
        with pytest.raises(Refused, match=f"run {run_id} is being registered: .* Wait") as refused:
            _alone(folder).__enter__()
        assert "\n" not in str(refused.value)
    with _alone(folder):
        pass


def test_a_deleted_run_is_refused(client, trained):
    client.delete_run(trained[0])
    with pytest.raises(Refused, match=r"is deleted\. `mlflow runs restore"):
        restore(client, trained[0])


def test_changed_weights_are_not_registered(client, trained):
    (trained[1] / ADAPTER_FOLDER / "adapter_model.safetensors").write_bytes(b"others")
    with pytest.raises(Failed, match="is not the file the marker lists"):
        restore(client, trained[0])


def test_a_registration_says_what_is_new_and_who_has_the_alias():
    result = {
        **{"name": "account-tax", "version": 1, "alias": "challenger", "alias_version": 1},
        **{"created": True, "metrics": {"test/f1": 0.5}},
    }
    assert in_words(result) == "account-tax version 1 (challenger): f1 0.5000"
    again = in_words(result | {"created": False, "alias_version": 3})
    assert again.splitlines() == [
        "account-tax version 1: f1 0.5000",
        "the same content as version 1 had; nothing new was registered",
        "challenger stays with version 3, which is newer. This one is reviewed by "
        "`kedro review --version 1`",
    ]
