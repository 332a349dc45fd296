import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import psutil
import pytest

from account_tax import processes
from account_tax.processes import Interrupted, end_group, raise_on_signals, run_stage

# A parent and a child in one group that both refuse SIGTERM; each writes its number once it does.
STUBBORN = """
import os, signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
print(os.getpid(), flush=True)
if len(sys.argv) == 1:
    subprocess.Popen([sys.executable, __file__, "child"])
time.sleep(600)
"""


@pytest.fixture(autouse=True)
def _own_signals():
    kept = {each: signal.getsignal(each) for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    for each, handler in kept.items():
        signal.signal(each, handler)


@pytest.fixture
def stage(tmp_path):
    """Return what runs Python text as a stage, with its log."""

    def run(text, **how):
        file = tmp_path / "stage.py"
        file.write_text(textwrap.dedent(text))
        settings = {"cwd": tmp_path, "environment": dict(os.environ), "log": tmp_path / "logs/log"}
        return run_stage([sys.executable, str(file)], **settings | how)

    return run


def alive(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


def pids_in(log):
    return [int(line) for line in log.read_text().split()] if log.exists() else []


def wait_for(condition, seconds=10):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_a_stage_gives_its_exit_status_and_logs_both_streams(stage, tmp_path):
    status = stage("import sys; print('out'); print('err', file=sys.stderr); sys.exit(3)")
    assert status == 3
    assert sorted((tmp_path / "logs/log").read_text().split()) == ["err", "out"]


def test_a_killed_stage_gives_the_negative_signal(stage):
    assert stage("import os; os.kill(os.getpid(), 9)") == -signal.SIGKILL


def test_a_stage_has_exactly_the_environment_and_folder_given(stage, tmp_path):
    stage("import os; print(os.getcwd(), sorted(os.environ))", environment={"ONLY": "this"})
    said = (tmp_path / "logs/log").read_text()
    assert said.startswith(str(tmp_path))
    assert "'ONLY'" in said
    assert "'PATH'" not in said


def test_what_a_stage_leaves_running_is_ended_when_it_returns(stage, tmp_path):
    # As deepspeed does when its launch process is killed: exit status 0, and ranks that live on.
    child = "import os, time; print(os.getpid(), flush=True); time.sleep(600)"
    status = stage(
        f"""
        import subprocess, sys, time
        subprocess.Popen([sys.executable, "-c", {child!r}])
        time.sleep(1)
        """
    )
    (pid,) = pids_in(tmp_path / "logs/log")
    assert status == 0
    assert not alive(pid)


def test_processes_that_refuse_to_end_are_killed_after_the_grace_time(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "GRACE_SECONDS", 0.6)
    file, log = tmp_path / "stubborn.py", tmp_path / "log"
    file.write_text(STUBBORN)
    with log.open("wb") as out:
        parent = subprocess.Popen([sys.executable, file], stdout=out, start_new_session=True)
    wait_for(lambda: len(pids_in(log)) == 2)
    began = time.monotonic()
    end_group(parent.pid)
    assert 0.6 <= time.monotonic() - began < 5
    assert not any(alive(pid) for pid in pids_in(log))
    assert parent.wait() == -signal.SIGKILL


def test_processes_that_end_when_asked_are_not_waited_for(tmp_path):
    parent = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"],
                              start_new_session=True)  # fmt: skip
    time.sleep(0.3)
    began = time.monotonic()
    end_group(parent.pid)
    assert time.monotonic() - began < processes.GRACE_SECONDS / 2
    assert parent.wait() == -signal.SIGTERM


def test_a_group_that_is_gone_is_no_error():
    gone = subprocess.Popen([sys.executable, "-c", ""], start_new_session=True)
    gone.wait()
    end_group(gone.pid)


def test_an_error_of_the_watcher_ends_the_stage_too(stage, tmp_path):
    log = tmp_path / "logs/log"

    def watch():
        if pids_in(log):
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        stage("import os, time; print(os.getpid(), flush=True); time.sleep(600)", watch=watch)
    assert not any(alive(pid) for pid in pids_in(log))


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_the_stage_and_names_itself(stage, tmp_path, signum):
    raise_on_signals()
    log = tmp_path / "logs/log"
    asked = threading.Event()

    def ask_once():
        if pids_in(log) and not asked.is_set():
            asked.set()
            os.kill(os.getpid(), signum)

    with pytest.raises(Interrupted, match=signum.name) as caught:
        stage("import os, time; print(os.getpid(), flush=True); time.sleep(600)", watch=ask_once)
    assert caught.value.signum == signum
    assert not any(alive(pid) for pid in pids_in(log))


def test_a_second_signal_does_not_disturb_the_end(stage):
    raise_on_signals()
    with pytest.raises(Interrupted):
        os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGINT)
    os.kill(os.getpid(), signal.SIGTERM)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_IGN


def test_a_signal_to_the_launchers_own_group_does_not_reach_the_stage(stage, tmp_path):
    stage("import os; print(os.getpgid(0), os.getpid())")
    group, pid = (tmp_path / "logs/log").read_text().split()
    assert group == pid
    assert int(group) != os.getpgid(0)
