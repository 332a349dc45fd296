"""Starting a stage, following it and ending every process of it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import FrameType

import psutil

GRACE_SECONDS = 5.0  # between SIGTERM and SIGKILL; Ctrl-C promises an end within ten
POLL_SECONDS = 0.2


class Interrupted(Exception):
    """The launcher was asked to stop by a signal."""

    def __init__(self, signum: int):
        super().__init__(signal.Signals(signum).name)
        self.signum = signum


def raise_on_signals() -> None:
    """Turn SIGINT, SIGTERM and SIGHUP into `Interrupted`; a second one while ending is ignored."""

    def interrupt(signum: int, frame: FrameType | None) -> None:
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(each, signal.SIG_IGN)
        raise Interrupted(signum)

    for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(each, interrupt)


def run_stage(
    command: Sequence[str],
    *,
    cwd: Path,
    environment: Mapping[str, str],
    log: Path,
    watch: Callable[[], None] = lambda: None,
) -> int:
    """Run a command in a process group of its own and return its exit status.

    Whatever happens, nothing of the group is alive afterwards: `deepspeed` exits 0 when its launch
    process is killed, and leaves the ranks running.

    Args:
        command: The command and its arguments.
        cwd: Where it runs.
        environment: All of its environment.
        log: Takes its standard output and error.
        watch: Called a few times a second while it runs.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=dict(environment),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # Ctrl-C reaches the launcher alone, which ends the group
        )
        try:
            while process.poll() is None:
                watch()
                time.sleep(POLL_SECONDS)
            watch()
            return process.returncode
        finally:
            end_group(process.pid)
            process.wait()


def end_group(group: int) -> None:
    """Ask every process of a group to end, and kill those that have not after the grace time."""
    for signum, seconds in ((signal.SIGTERM, GRACE_SECONDS), (signal.SIGKILL, GRACE_SECONDS)):
        deadline = time.monotonic() + seconds
        while members := _members(group):
            if time.monotonic() > deadline:
                break
            for pid in members:
                _signal(pid, signum)
            time.sleep(POLL_SECONDS)


def _members(group: int) -> list[int]:
    """Return the live processes of a group; its zombies can't be ended any further."""
    found = []
    for process in psutil.process_iter(["pid", "status"]):
        try:
            if (
                os.getpgid(process.info["pid"]) == group
                and process.info["status"] != psutil.STATUS_ZOMBIE
            ):
                found.append(process.info["pid"])
        except OSError:
            continue  # it ended while we looked
    return found


def _signal(pid: int, signum: int) -> None:
    try:
        os.kill(pid, signum)
    except ProcessLookupError:
        return  # it ended by itself
