import json
import os
import signal
import subprocess
import sys
import time

import pytest

from account_tax.errors import Failed
from account_tax.launch import hang
from account_tax.launch.hang import SLOW_SECONDS, HangWatch, rank_states
from tests.processes.test_groups import wait_for

RANK = """
import faulthandler, signal, sys, time
faulthandler.register(signal.SIGUSR1)
open("/proc/self/comm", "w").write(sys.argv[1])
print("ready", flush=True)
time.sleep(600)
"""


@pytest.fixture
def clock(monkeypatch):
    """Monotonic time that a test moves, one look a second as it were; the wall clock jumps."""
    now = [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "time", lambda: (now[0] * 7919) % 3 * 1e9)
    monkeypatch.setattr(time, "sleep", lambda seconds: None)
    return now


@pytest.fixture
def file(tmp_path):
    return tmp_path / "progress.json"


def beat(file, number, doing="training"):
    file.write_text(json.dumps({"step": number, "beats": number, "doing": doing}))


def look(watch, clock, seconds):
    for _ in range(int(seconds)):
        clock[0] += 1
        watch.check()


def test_a_step_within_the_time_is_no_hang(file, clock):
    watch = HangWatch(file, 10)
    for step in range(5):
        beat(file, step)
        look(watch, clock, 9)


@pytest.mark.parametrize("doing", ["training", "evaluating"])
def test_silence_between_micro_batches_is_a_hang(file, clock, doing):
    beat(file, 7, doing)
    watch = HangWatch(file, 10)
    with pytest.raises(Failed, match=r"no sign of life for 10 s .*= 10\) after step 7"):
        look(watch, clock, 12)


@pytest.mark.parametrize("doing", ["saving", "starting"])
def test_what_gives_no_sign_of_life_may_take_longer(file, clock, doing):
    beat(file, 7, doing)
    watch = HangWatch(file, 10)
    look(watch, clock, SLOW_SECONDS - 1)
    with pytest.raises(Failed, match="after step 7"):
        look(watch, clock, 3)


def test_a_start_that_never_ends_is_found(file, clock):
    watch = HangWatch(file, 10)
    look(watch, clock, SLOW_SECONDS - 2)
    with pytest.raises(Failed, match="after step 0"):
        look(watch, clock, 3)


@pytest.mark.parametrize("timeout", [None, 0])
def test_it_can_be_turned_off(file, clock, timeout):
    beat(file, 7)
    look(HangWatch(file, timeout), clock, 2 * SLOW_SECONDS)


def test_a_launcher_that_was_stopped_or_slept_itself_does_not_count_that_time(file, clock):
    beat(file, 7)
    watch = HangWatch(file, 10)
    look(watch, clock, 5)
    clock[0] += 100_000  # Ctrl-Z, a laptop that was closed
    look(watch, clock, 3)


@pytest.fixture
def ranks():
    started = []
    for number in (0, 1):
        command = [sys.executable, "-c", RANK, f"rank{number}"]
        started.append(
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
        assert started[-1].stdout.readline() == "ready\n"
    yield started
    for process in started:
        process.kill()
        process.communicate()


def test_a_stopped_rank_is_a_hang_also_where_silence_is_no_wonder_and_is_named(file, ranks):
    os.kill(ranks[1].pid, signal.SIGSTOP)
    beat(file, 7, "saving")
    watch = HangWatch(file, 0.5)

    def keep_looking():
        while True:
            watch.check()
            time.sleep(0.1)

    began = time.monotonic()
    with pytest.raises(Failed, match="rank 0 is sleeping, rank 1 is stopped"):
        keep_looking()
    assert 0.5 <= time.monotonic() - began < 4


def test_ranks_that_hang_write_where_they_stand(ranks):
    wait_for(lambda: rank_states() == ["rank 0 is sleeping", "rank 1 is sleeping"])
    hang._ask_where_they_stand()
    ranks[0].kill()
    assert "most recent call first" in ranks[0].stderr.read()
