"""Which process is which: a name no other process of any machine has, and what became of it."""

from __future__ import annotations

import hashlib
import os
import socket
from pathlib import Path
from typing import Literal


def identify(pid: int | None = None) -> str:
    """Return what tells a process from every other: machine, boot, pid namespace, pid, start.

    A pid alone is given out again, and means something else in another container or on another
    node. The start counts clock ticks since boot, so no change of the clock changes it.

    Raises:
        OSError: If there is no such process.
    """
    pid = pid or os.getpid()
    parts = _here() | {"pid": str(pid), "started": _stat(pid)[1]}
    return " ".join(f"{key}={value}" for key, value in parts.items())


def state_of(identity: str) -> Literal["alive", "gone", "unknown"]:
    """Return what is certain of a process; of another host's or container's nothing is."""
    then, here = parse_identity(identity), _here()
    if then.keys() != here.keys() | {"pid", "started"} or not then["pid"].isdigit():
        return "unknown"
    if any(then[key] != here[key] for key in ("host", "machine")):
        return "unknown"
    if then["boot"] != here["boot"]:  # without a machine's id it may be another of this name
        return "gone" if here["machine"] else "unknown"
    if then["pid_namespace"] != here["pid_namespace"]:  # another container of this host
        return "unknown"
    return _look_up(int(then["pid"]), then["started"])


def parse_identity(identity: str) -> dict[str, str]:
    """Return what `identify` has put together: host, machine, boot, pid_namespace, pid, started."""
    parts = (word.partition("=") for word in identity.split(" "))
    return {key: value for key, _, value in parts}


def _here() -> dict[str, str]:
    # systemd asks not to show the machine's id as it is (man machine-id).
    machine = _read("/etc/machine-id")
    digest = hashlib.sha256(f"account-tax {machine}".encode()).hexdigest()
    return {
        "host": socket.gethostname(),
        "machine": digest[:16] if machine else "",
        "boot": _read("/proc/sys/kernel/random/boot_id"),
        "pid_namespace": os.readlink("/proc/self/ns/pid").strip("pid:[]"),
    }


def _look_up(pid: int, started: str) -> Literal["alive", "gone", "unknown"]:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return "gone"
    except PermissionError:  # somebody else's, and it may be hidden in /proc
        pass
    try:
        state, now_started = _stat(pid)
    except OSError:
        return "unknown"
    # A zombie has ended, and waits for its parent only.
    return "gone" if state in "ZX" or now_started != started else "alive"


def _stat(pid: int) -> tuple[str, str]:
    """Return a process's state and its start, clock ticks since boot (man proc_pid_stat)."""
    fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    words = fields.rpartition(")")[2].split()  # the name may hold blanks and brackets
    return words[0], words[19]


def _read(path: str) -> str:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return ""
