import os
import subprocess
import sys

import pytest
from mlflow import MlflowClient

from account_tax.ownership import (
    OWNER_TAG,
    REASON_TAG,
    SLURM_TAG,
    close_dead_runs,
    describe_owner,
    state_of,
)


def changed(owner, **changes):
    words = dict(word.split("=") for word in owner.split(" "))
    assert changes.keys() <= words.keys()
    return " ".join(f"{key}={value}" for key, value in (words | changes).items())


@pytest.fixture(scope="module")
def dead():
    """The description of a process of this host that has ended."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        owner = describe_owner(process.pid)
    assert state_of(owner) == "gone"
    return owner


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


# --- one process ----------------------------------------------------------------------------------


def test_this_process_is_alive():
    assert state_of(describe_owner()) == "alive"


def test_a_child_is_alive_until_it_ends_and_gone_before_its_parent_asks():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        owner = describe_owner(process.pid)
        assert state_of(owner) == "alive"
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie from here on
        assert state_of(owner) == "gone"
    assert state_of(owner) == "gone"


def test_another_process_of_the_same_pid_is_not_the_owner():
    words = dict(word.split("=") for word in describe_owner().split(" "))
    assert state_of(changed(describe_owner(), started=int(words["started"]) - 1)) == "gone"


def test_what_ran_before_the_machine_started_again_is_gone():
    assert state_of(changed(describe_owner(), boot="0" * 36)) == "gone"


@pytest.mark.parametrize("key", ["host", "machine", "pid_namespace"])
def test_of_another_host_or_container_nothing_is_known(dead, key):
    assert state_of(changed(dead, **{key: "another"})) == "unknown"


def test_another_boot_of_a_host_of_the_same_name_tells_nothing(dead):
    assert state_of(changed(dead, machine="another", boot="0" * 36)) == "unknown"


@pytest.mark.parametrize("owner", ["", "host=x", "host pid", "a=b c=d"])
def test_what_is_no_description_tells_nothing(owner):
    assert state_of(owner) == "unknown"


def test_a_process_of_another_user_is_alive():
    assert state_of(describe_owner(1)) == "alive"


def test_a_clock_that_is_set_changes_no_start(monkeypatch):
    owner = describe_owner()
    monkeypatch.setattr("time.time", lambda: 0.0)
    assert describe_owner() == owner


# --- the runs of a store --------------------------------------------------------------------------


def test_the_run_of_a_process_that_is_gone_is_closed_with_the_reason(client, add_run, dead):
    run_id = add_run(dead)
    assert close_dead_runs(client) == [run_id]
    assert status(client, run_id) == "FAILED"
    reason = client.get_run(run_id).data.tags[REASON_TAG]
    assert "is gone" in reason
    assert "The same command goes on from the last checkpoint" in reason
    assert close_dead_runs(client) == []


def test_every_other_run_is_left_alone(client, add_run, dead):
    others = [
        add_run(describe_owner()),
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
        add_run(describe_owner())
    asked = []
    for name in ("search_experiments", "search_runs", "get_run"):
        real = getattr(client, name)
        monkeypatch.setattr(
            client, name, lambda *a, _n=name, _r=real, **k: (asked.append(_n), _r(*a, **k))[1]
        )
    close_dead_runs(client)
    assert asked == ["search_experiments", "search_runs"]
