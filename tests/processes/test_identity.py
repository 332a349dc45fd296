import os
import subprocess
import sys

import pytest

from account_tax.processes import identity as process_identity
from account_tax.processes.identity import identify, parse_identity, state_of


def changed(identity, **changes):
    words = parse_identity(identity)
    assert changes.keys() <= words.keys()
    return " ".join(f"{key}={value}" for key, value in (words | changes).items())


def test_this_process_is_alive():
    assert state_of(identify()) == "alive"


def test_a_child_is_alive_until_it_ends_and_gone_before_its_parent_asks():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as process:
        identity = identify(process.pid)
        assert state_of(identity) == "alive"
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # a zombie from here on
        assert state_of(identity) == "gone"
    assert state_of(identity) == "gone"


def test_another_process_of_the_same_pid_is_not_the_owner():
    words = parse_identity(identify())
    assert state_of(changed(identify(), started=int(words["started"]) - 1)) == "gone"


def give_machine_id(monkeypatch, text):
    real = process_identity._read
    monkeypatch.setattr(
        process_identity, "_read", lambda path: text if path == "/etc/machine-id" else real(path)
    )


def test_what_ran_before_the_machine_started_again_is_gone(monkeypatch):
    give_machine_id(monkeypatch, "a" * 32)  # a container may have none
    assert state_of(changed(identify(), boot="0" * 36)) == "gone"


@pytest.mark.parametrize("key", ["host", "machine", "pid_namespace"])
def test_of_another_host_or_container_nothing_is_known(dead, key):
    assert state_of(changed(dead, **{key: "another"})) == "unknown"


def test_another_boot_of_a_host_of_the_same_name_tells_nothing(dead):
    assert state_of(changed(dead, machine="another", boot="0" * 36)) == "unknown"


@pytest.mark.parametrize("identity", ["", "host=x", "host pid", "a=b c=d"])
def test_what_is_no_description_tells_nothing(identity):
    assert state_of(identity) == "unknown"


def test_a_process_of_another_user_is_alive():
    assert state_of(identify(1)) == "alive"


def test_a_clock_that_is_set_changes_no_start(monkeypatch):
    identity = identify()
    monkeypatch.setattr("time.time", lambda: 0.0)
    assert identify() == identity


def test_a_machine_without_an_id_is_not_told_from_another_of_its_name(monkeypatch):
    give_machine_id(monkeypatch, "")
    assert state_of(identify()) == "alive"
    assert state_of(changed(identify(), boot="0" * 36)) == "unknown"


def test_of_a_process_that_is_not_there_no_identity_can_be_had(dead):
    with pytest.raises(OSError, match=r"/proc/"):
        identify(int(parse_identity(dead)["pid"]))
