"""A stage's guard in real processes: who ends, when, and who stays."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest

from tests.processes.test_groups import wait_for

SOURCE = Path(__file__).parents[2] / "account_tax" / "src"


def python(text: str, *words: str, **env: str) -> subprocess.Popen[str]:
    """Start a program in a session of its own, as a stage has it."""
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(text), *words],
        env=os.environ | {"PYTHONPATH": str(SOURCE)} | env,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )


def gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


STAGE = """
import subprocess, sys, time
from account_tax.processes.guard import guard_stage
guard_stage()
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
print(child.pid, flush=True)
time.sleep(600)
"""
LAUNCHER = """
import os, subprocess, sys, time
from account_tax.storage.names import LAUNCHER_VARIABLE
from account_tax.processes.identity import identify
env = os.environ | {LAUNCHER_VARIABLE: identify()}
stage = subprocess.Popen([sys.executable, "-c", sys.argv[1]], env=env, start_new_session=True)
print(stage.pid, flush=True)
time.sleep(600)
"""


def test_a_stage_and_all_its_processes_end_with_a_killed_launcher():
    launcher = python(LAUNCHER, STAGE)
    stage, child = (int(launcher.stdout.readline()) for _ in range(2))
    os.kill(child, signal.SIGSTOP)  # a process that can do nothing about it itself
    time.sleep(1.2)
    assert not gone(stage)
    launcher.kill()  # a zombie until the end of this test: it counts as gone
    wait_for(lambda: gone(stage) and gone(child), seconds=3)


RANK = """
import os, sys, threading, time
from account_tax.processes import guard
guard.guard_stage()
guard.saves_before_it_ends(sys.argv[1] == "saves")
def train():
    while guard.told_to_end() is None:
        time.sleep(0.01)
    time.sleep(0.3)
    print("saved", guard.told_to_end(), flush=True)
thread = threading.Thread(target=train)  # where Kedro runs nodes
thread.start()
print(open("/proc/self/comm").read().strip(), flush=True)
thread.join()
"""


@pytest.fixture
def rank():
    started = []

    def start(saves: bool, local_size: int = 0):
        env = {"RANK": "1", "LOCAL_SIZE": str(local_size), "ACCOUNT_TAX_LAUNCHER": ""}
        started.append(python(RANK, "saves" if saves else "not", **env))
        assert started[-1].stdout.readline() == "rank1\n"  # its name: it is ready
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_sigterm_is_a_notice_for_a_rank_that_trains_however_often_it_comes(rank):
    process = rank(saves=True)
    process.send_signal(signal.SIGTERM)
    time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    assert process.stdout.readline() == "saved 15\n"
    assert process.wait(timeout=5) == 0


def test_sigterm_ends_a_rank_at_once_that_has_nothing_to_save(rank):
    process = rank(saves=False)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=5) == -signal.SIGTERM


def test_sigterm_ends_a_rank_at_once_that_has_lost_a_peer(rank):
    # deepspeed's launch process sends it then; it has this process's children for its ranks here.
    process = rank(saves=True, local_size=1000)
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=5) == -signal.SIGTERM
