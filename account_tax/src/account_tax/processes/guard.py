"""What a stage's process does when it is told to end, and when its launcher is gone."""

from __future__ import annotations

import faulthandler
import os
import signal
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType

import psutil

from account_tax.storage.names import LAUNCHER_VARIABLE

from .groups import RANK_NAME
from .identity import state_of

POLL_SECONDS = 0.5

_guarded_pid: int | None = None
_saves = False  # whether this rank trains, so that it can save before it ends
_told: int | None = None


class Stopped(Exception):
    """This rank was told to end, and has saved: its work goes on another time."""


def guard_stage() -> None:
    """Make this process end with its launcher and, in a rank, take SIGTERM as a notice.

    Called in the main thread, the only one that may set handlers; Kedro trains in another.
    """
    global _guarded_pid
    _guarded_pid = os.getpid()
    if launcher := os.environ.get(LAUNCHER_VARIABLE):
        threading.Thread(target=_end_with, args=(launcher,), daemon=True).start()
    if rank := os.environ.get("RANK"):
        signal.signal(signal.SIGTERM, _take_notice)
        # The launcher asks a hung rank where it stands; this answers also from within a library.
        faulthandler.register(signal.SIGUSR1, all_threads=True)
        with suppress(OSError):
            Path("/proc/self/comm").write_text(f"{RANK_NAME}{rank}")


def saves_before_it_ends(saves: bool) -> None:
    """Say whether SIGTERM is a notice from now on (training), or ends this process at once."""
    global _saves
    _saves = saves


def told_to_end() -> int | None:
    """Return the signal by which this rank was told to end, or None."""
    return _told


def _take_notice(signum: int, frame: FrameType | None) -> None:
    global _told
    if _told is not None:
        return  # saving already
    if not _saves or os.getpid() != _guarded_pid or _a_peer_is_gone():
        signal.signal(signum, signal.SIG_DFL)
        os.kill(os.getpid(), signum)
    else:
        _told = signum


def _a_peer_is_gone() -> bool:
    """Return whether deepspeed's launch process (0.19.8) has lost a rank.

    It sends SIGTERM to the others then and waits 30 s for them; no step can be made any more.
    """
    with suppress(psutil.Error):
        ranks = psutil.Process(os.getppid()).children()
        alive = [rank for rank in ranks if rank.status() != psutil.STATUS_ZOMBIE]
        return len(alive) < int(os.environ.get("LOCAL_SIZE", 0))
    return False


def _end_with(launcher: str) -> None:
    """Kill this stage, all of its process group, as soon as the launcher is gone.

    Nobody would end it, judge it or close its run any more.
    """
    while state_of(launcher) != "gone":
        time.sleep(POLL_SECONDS)
    print("the launcher is gone; this stage ends with it", file=sys.stderr, flush=True)  # noqa: T201
    os.killpg(os.getpgrp(), signal.SIGKILL)
