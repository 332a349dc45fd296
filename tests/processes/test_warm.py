"""Stages forked from a warm interpreter: processes of their own, as if they had been executed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from account_tax.processes import warm
from account_tax.processes.identity import identify, state_of

TELL = """
    import json, os, random, sys
    import numpy, torch
    print(json.dumps({
        "argv": sys.argv[1:], "name": __name__, "cwd": os.getcwd(), "word": os.environ.get("WORD"),
        "parent": os.getppid(), "session": os.getsid(0) == os.getpid(),
        "threads": torch.get_num_threads(), "path": os.environ.get("PATH"),
        "random": [random.random(), numpy.random.random()],
        "open": os.listdir("/proc/self/fd"),
        "int": repr(__import__("signal").getsignal(2)),
    }))
    sys.exit(int(sys.argv[1]))
"""


@pytest.fixture
def modules(tmp_path):
    """A folder of modules, and the environment in which Python finds them."""
    (tmp_path / "tell.py").write_text(textwrap.dedent(TELL))
    (tmp_path / "rest.py").write_text("import time\nprint('resting', flush=True)\ntime.sleep(60)\n")
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}


@pytest.fixture
def warmed(tmp_path, modules, monkeypatch):
    monkeypatch.setattr(warm, "GPU_DEVICES", ())
    with warm.warm_interpreter(["numpy", "torch"], tmp_path, modules):
        yield modules


def start(tmp_path, environment, *words, log="stage.log"):
    command = [sys.executable, "-u", "-m", *words]
    return warm.start_process(command, tmp_path, environment, tmp_path / log)


def wait_for(log, text):
    deadline = time.monotonic() + 30
    while not log.exists() or text not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def test_a_stage_is_forked_with_its_own_environment_folder_session_and_log(tmp_path, warmed):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {**warmed, "WORD": "세금", "OMP_NUM_THREADS": "1"}
    del environment["PATH"]
    process = start(elsewhere, environment, "tell", "0", log="../stage.log")
    assert isinstance(process, warm.Forked)
    assert process.wait() == 0
    said = json.loads((tmp_path / "stage.log").read_text())
    assert (said["argv"], said["name"]) == (["0"], "__main__")
    assert (said["cwd"], said["word"], said["path"]) == (str(elsewhere), "세금", None)
    assert said["session"]
    assert said["threads"] == 1
    assert said["parent"] not in (os.getpid(), 1)
    assert len(said["open"]) <= 4  # the three streams, and the folder that is being listed
    assert "default_int_handler" in said["int"]


@pytest.mark.parametrize("status", [0, 3])
def test_the_exit_status_is_the_stages(tmp_path, warmed, status):
    assert start(tmp_path, warmed, "tell", str(status)).wait() == status


def test_an_error_is_in_the_log_and_the_status(tmp_path, warmed):
    process = start(tmp_path, warmed, "tell", "no number")
    assert process.wait() == 1
    assert "ValueError: invalid literal for int()" in (tmp_path / "stage.log").read_text()


def test_a_killed_stage_has_the_signals_status(tmp_path, warmed):
    process = start(tmp_path, warmed, "rest")
    wait_for(tmp_path / "stage.log", "resting")
    assert process.poll() is None
    os.kill(process.pid, signal.SIGKILL)
    assert process.wait() == process.poll() == -signal.SIGKILL


def test_forks_draw_other_random_numbers(tmp_path, warmed):
    logs = ["one.log", "two.log"]
    for process in [start(tmp_path, warmed, "tell", "0", log=log) for log in logs]:
        assert process.wait() == 0
    one, two = (json.loads((tmp_path / log).read_text())["random"] for log in logs)
    assert not set(one) & set(two)


def test_without_the_interpreter_a_stage_is_lost_and_the_next_is_executed(tmp_path, warmed):
    process = start(tmp_path, warmed, "rest")
    wait_for(tmp_path / "stage.log", "resting")
    assert warm._interpreter is not None
    warm._interpreter.process.kill()
    warm._interpreter.process.wait()
    assert process.wait() == -signal.SIGKILL
    os.kill(process.pid, signal.SIGKILL)  # as run_stage ends the group of what it has lost
    following = start(tmp_path, warmed, "tell", "3", log="next.log")
    assert isinstance(following, subprocess.Popen)
    assert following.wait() == 3


def test_another_command_is_executed(tmp_path, warmed):
    log = tmp_path / "other.log"
    process = warm.start_process([sys.executable, "-c", "print(1)"], tmp_path, warmed, log)
    assert isinstance(process, subprocess.Popen)
    assert (process.wait(), log.read_text()) == (0, "1\n")


def test_a_module_that_can_not_be_imported_leaves_stages_to_be_executed(tmp_path, modules):
    with warm.warm_interpreter(["no_such_module"], tmp_path, modules):
        process = start(tmp_path, modules, "tell", "0")
        assert isinstance(process, subprocess.Popen)
        assert process.wait() == 0


@pytest.mark.parametrize("ends", ["kill -9 $$", "kill -6 $$; exit", "exit 3"])
def test_the_rank_that_a_signal_has_ended_is_told_of_whichever_is_found_first(ends, monkeypatch):
    monkeypatch.setattr(
        warm, "_fork", lambda words, *_: os.posix_spawn("/bin/sh", words, dict(os.environ))
    )
    monkeypatch.setattr(warm._Rank, "_all", [])
    monkeypatch.setattr(warm, "_module_words", list)
    failed, ended = (warm._Rank(["sh", "-c", script], {}) for script in ("exit 1", ends))
    for rank in (failed, ended):
        os.waitid(os.P_PID, rank.pid, os.WEXITED | os.WNOWAIT)
    assert failed.poll() == (-signal.SIGKILL if "-9" in ends else 1)
    assert ended.poll() in (-signal.SIGKILL, -signal.SIGABRT, 3)


def test_where_there_is_a_gpu_nothing_is_forked(tmp_path, modules, monkeypatch):
    monkeypatch.setattr(warm, "GPU_DEVICES", (str(tmp_path),))
    with warm.warm_interpreter(["numpy"], tmp_path, modules):
        assert warm._interpreter is None


def test_the_interpreter_ends_with_its_launcher(tmp_path, modules):
    launcher = textwrap.dedent(
        f"""
        import os, signal
        from pathlib import Path
        from account_tax.processes import warm
        warm.GPU_DEVICES = ()
        with warm.warm_interpreter(["json"], Path({str(tmp_path)!r}), os.environ):
            print(warm._interpreter.process.pid, flush=True)
            input()
        """
    )
    with subprocess.Popen(
        [sys.executable, "-c", launcher],
        env=modules,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        interpreter = identify(int(process.stdout.readline()))
        assert state_of(interpreter) == "alive"
        process.kill()
    deadline = time.monotonic() + 30
    while state_of(interpreter) != "gone" and time.monotonic() < deadline:
        time.sleep(0.05)
    assert state_of(interpreter) == "gone"
