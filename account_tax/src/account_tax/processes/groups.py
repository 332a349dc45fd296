"""Starting a stage, following it and ending every process of it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType

import psutil

from account_tax.terminal import follow

from .warm import start_process

GRACE_SECONDS = 5.0  # between SIGTERM and SIGKILL, for a stage that has nothing to save
POLL_SECONDS = 0.2
ENDING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
RANK_NAME = "rank"  # a rank that saves when it gets SIGTERM goes by the name rank0, rank1, ...


class Interrupted(BaseException):
    """This process was asked to stop by a signal; `outcome` says what became of the work.

    No Exception: libraries catch those, MLflow's store around each statement, and go on.
    """

    def __init__(self, signum: int, outcome: str = ""):
        super().__init__(": ".join(filter(None, [signal.Signals(signum).name, outcome])))
        self.signum = signum


def raise_on_signals(kinds: Sequence[signal.Signals] = ENDING) -> None:
    """Turn signals into `Interrupted`; a second one while ending is ignored."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        for each in kinds:
            signal.signal(each, signal.SIG_IGN)
        raise Interrupted(signum)

    for each in kinds:
        signal.signal(each, interrupt)


def run_stage(
    command: Sequence[str],
    *,
    cwd: Path,
    environment: Mapping[str, str],
    log: Path,
    watch: Callable[[], None] = lambda: None,
    grace_seconds: float = GRACE_SECONDS,
) -> int:
    """Run a command in a process group of its own and return its exit status.

    Whatever happens, nothing of the group is alive afterwards: deepspeed's launch process leaves
    the ranks running when it is killed. Only a signal to this process gives the group
    time to end in order; what outlives its command, or hangs, is killed.

    Args:
        command: The command and its arguments.
        cwd: Where it runs.
        environment: All of its environment.
        log: Takes its standard output and error.
        watch: Called a few times a second while it runs.
        grace_seconds: For the group to end in order after a signal, before it is killed.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    show_log = follow(log)
    process = start_process(command, cwd, environment, log)
    try:
        while process.poll() is None:
            watch()
            show_log()
            time.sleep(POLL_SECONDS)
        watch()
        show_log()
        return process.wait()
    except Interrupted:
        ask_group_to_end(process.pid, grace_seconds)
        raise
    finally:
        kill_group(process.pid)
        process.wait()


def ask_group_to_end(group: int, grace_seconds: float) -> None:
    """Send SIGTERM to a group, and wait until it is gone or the grace time is over.

    Ranks come first and alone: they save, while deepspeed's launch process would kill them half a
    minute after its own SIGTERM. Each process is asked once: a rank that is told again must not
    take it for its last word.
    """
    deadline = time.monotonic() + grace_seconds
    asked: set[int] = set()
    while (members := _members(group)) and time.monotonic() < deadline:
        ranks = [pid for pid, name in members.items() if name.startswith(RANK_NAME)]
        for pid in ranks or members:
            if pid not in asked:
                asked.add(pid)
                _signal(pid, signal.SIGTERM)
        time.sleep(POLL_SECONDS)


def kill_group(group: int) -> None:
    """Kill every process of a group, also those that are stopped."""
    deadline = time.monotonic() + GRACE_SECONDS
    while (members := _members(group)) and time.monotonic() < deadline:
        for pid in members:
            _signal(pid, signal.SIGKILL)
        time.sleep(POLL_SECONDS / 10)


def _members(group: int) -> dict[int, str]:
    """Return the live processes of a group by name; its zombies can't be ended any further."""
    found = {}
    for process in psutil.process_iter():
        try:
            if os.getpgid(process.pid) == group and process.status() != psutil.STATUS_ZOMBIE:
                found[process.pid] = process.name()
        except (OSError, psutil.Error):
            continue  # it ended while we looked
    return found


def _signal(pid: int, signum: int) -> None:
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        return  # it ended by itself
