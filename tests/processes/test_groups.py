import os
import signal
import subprocess
import sys
import textwrap
import threading
import time

import psutil
import pytest

from account_tax.confidential import hidden_output
from account_tax.processes.groups import (
    Interrupted,
    ask_group_to_end,
    kill_group,
    raise_on_signals,
    run_stage,
)
from account_tax.terminal import VERBOSE_VARIABLE

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


# Lines, one of them in two parts with a letter cut in half, and what is not of this run.
TALKATIVE = """
import sys, time
out = sys.stdout.buffer
out.write("a library speaks\\n경비".encode()[:-2]); out.flush()
time.sleep(0.7)
out.write("경비".encode()[-2:] + b" with s3cret-word\\nno end"); out.flush()
"""


@pytest.mark.parametrize("verbose", [True, False])
def test_a_stage_is_heard_where_asked_for_and_no_secret_of_it(
    stage, tmp_path, capsys, monkeypatch, verbose
):
    log = tmp_path / "logs/log"
    log.parent.mkdir()
    log.write_text("of an earlier attempt\n")
    monkeypatch.setenv("MY_TOKEN", "s3cret-word")
    if verbose:
        monkeypatch.setenv(VERBOSE_VARIABLE, "true")
    with hidden_output():
        assert stage(TALKATIVE) == 0
    heard = "a library speaks\n경비 with [hidden]\n"
    assert capsys.readouterr().err == (heard if verbose else "")
    assert log.read_text().endswith("no end")


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


def started(source, *words):
    return subprocess.Popen([sys.executable, "-c", source, *words], start_new_session=True)


def test_processes_that_refuse_to_end_are_killed_after_the_grace_time(tmp_path):
    file, log = tmp_path / "stubborn.py", tmp_path / "log"
    file.write_text(STUBBORN)
    with log.open("wb") as out:
        parent = subprocess.Popen([sys.executable, file], stdout=out, start_new_session=True)
    wait_for(lambda: len(pids_in(log)) == 2)
    began = time.monotonic()
    ask_group_to_end(parent.pid, 0.6)
    assert 0.6 <= time.monotonic() - began < 5
    assert all(alive(pid) for pid in pids_in(log))
    kill_group(parent.pid)
    assert not any(alive(pid) for pid in pids_in(log))
    assert parent.wait() == -signal.SIGKILL


def test_a_stopped_process_is_killed():
    parent = started("import time; time.sleep(600)")
    os.kill(parent.pid, signal.SIGSTOP)
    kill_group(parent.pid)
    assert parent.wait(timeout=5) == -signal.SIGKILL


def test_processes_that_end_when_asked_are_not_waited_for():
    parent = started("import time; time.sleep(600)")
    time.sleep(0.3)
    began = time.monotonic()
    ask_group_to_end(parent.pid, 5)
    assert time.monotonic() - began < 2.5
    assert parent.wait() == -signal.SIGTERM


# A rank that needs a while to save, and a launch process that kills it once it is told to end.
RANK = """
import signal, sys, time
told = []
signal.signal(signal.SIGTERM, lambda *_: told.append(1))
open("/proc/self/comm", "w").write("rank0")
open(sys.argv[1], "w").write("ready")
while not told:
    time.sleep(0.01)
time.sleep(0.7)
open(sys.argv[1], "w").write(str(len(told)))
"""
LAUNCH = """
import signal, subprocess, sys, time
child = subprocess.Popen([sys.executable, "-c", *sys.argv[1:]])
def end(*_):
    child.kill()
    sys.exit(1)
signal.signal(signal.SIGTERM, end)
child.wait()
time.sleep(600)
"""


def test_ranks_are_asked_first_and_once_so_that_their_launch_process_lets_them_save(tmp_path):
    said = tmp_path / "said"
    parent = started(LAUNCH, RANK, str(said))
    wait_for(lambda: said.exists() and said.read_text() == "ready")
    ask_group_to_end(parent.pid, 5)
    assert said.read_text() == "1"
    assert parent.wait(timeout=1) == 1  # asked when the rank was gone


def test_a_group_that_is_gone_is_no_error():
    gone = started("")
    gone.wait()
    ask_group_to_end(gone.pid, 5)
    kill_group(gone.pid)


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
