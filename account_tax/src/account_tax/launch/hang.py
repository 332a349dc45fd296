"""Finding a run that hangs: no sign of life from rank 0, and in which state each rank is."""

from __future__ import annotations

import json
import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import psutil

from account_tax.errors import Failed
from account_tax.processes.groups import POLL_SECONDS, RANK_NAME

COMPUTING = ("training", "evaluating")  # a sign of life after each micro-batch
# What else ranks do (start, build DeepSpeed's operators, save, load the best model) gives none.
SLOW_SECONDS = 1800.0
STATES = {"T": "stopped", "t": "stopped by a debugger", "D": "waiting for a disk", "R": "running"}


class HangWatch:
    """Counts the time without a sign of life, on the monotonic clock and only while it looks.

    So neither a wall clock that jumps nor a machine that sleeps makes a run look hung.

    Args:
        progress: The file that rank 0 writes.
        timeout_seconds: Silence that makes a run hung; None or 0: never.
    """

    def __init__(self, progress: Path, timeout_seconds: float | None):
        self._file, self._timeout = progress, timeout_seconds or float("inf")
        self._seen = ""
        self._looked, self._silent = time.monotonic(), 0.0

    def check(self) -> None:
        """Look once more.

        Raises:
            Failed: If the run hangs: since which step, and the state of each rank.
        """
        now, looked = time.monotonic(), self._looked
        self._looked = now
        with suppress(FileNotFoundError):
            said = self._file.read_text(encoding="utf-8")
            if said != self._seen:
                self._seen, self._silent = said, 0.0
                return
        self._silent += min(now - looked, 5 * POLL_SECONDS)
        if self._silent < self._timeout:
            return
        progress = json.loads(self._seen or "{}")
        states = rank_states()
        slow = progress.get("doing") not in COMPUTING
        if slow and self._silent < SLOW_SECONDS and not any("stopped" in s for s in states):
            return
        _ask_where_they_stand()
        raise Failed(
            f"training failed: no sign of life for {self._silent:.0f} s "
            f"(hang_timeout_seconds = {self._timeout:g}) after step {progress.get('step', 0)}: "
            f"{', '.join(states) or 'no rank is to be seen on this machine'}. Where each rank "
            "stood is in its log. If nothing is wrong, give it more time with "
            "-P hang_timeout_seconds."
        )


def rank_states() -> list[str]:
    """Return `rank 0 is running` and so on, for the ranks that this process has started."""
    found = {process.name(): _state(process.pid) for process in _ranks()}
    return [f"rank {name[len(RANK_NAME) :]} is {state}" for name, state in sorted(found.items())]


def _ranks() -> list[psutil.Process]:
    """Return the ranks below this process, without their loaders' workers, which have the name."""
    below = psutil.Process().children(recursive=True)
    named = {p.pid: p for p in below if p.name().startswith(RANK_NAME)}
    return [process for process in named.values() if process.ppid() not in named]


def _state(pid: int) -> str:
    """Return what a process does: what stops it all first, then what its busiest thread does."""
    letters = set[str]()
    for stat in Path(f"/proc/{pid}/task").glob("*/stat"):
        with suppress(OSError):
            letters.add(stat.read_text().rpartition(")")[2].split()[0])
    return next((words for letter, words in STATES.items() if letter in letters), "sleeping")


def _ask_where_they_stand() -> None:
    """Make each rank write the stacks of its threads to its log, where it still can."""
    with suppress(psutil.Error):
        for process in _ranks():
            os.kill(process.pid, signal.SIGUSR1)
    time.sleep(1)
