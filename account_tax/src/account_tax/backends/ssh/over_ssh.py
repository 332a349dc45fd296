"""Runs a command on each of several hosts by ssh, to the last one's end or the first fault.

The environment goes over ssh's standard input: no file and no command line has it. A host ends what
it started when that input ends, so nothing outlives the process that asked for it, however it went.

    python -m account_tax.backends.ssh.over_ssh '{"ssh": [...], "commands": {"HOST": [...]}}'
    python -m account_tax.backends.ssh.over_ssh     on a host: told by its input's first line
"""

from __future__ import annotations

import json
import os
import shlex
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from account_tax.backends.handed_over import passed_names
from account_tax.processes.groups import GRACE_SECONDS, ask_group_to_end, kill_group

POLL_SECONDS = 0.2
DEEPSPEED_ENVIRONMENT = os.environ.get("DS_ENV_FILE", ".deepspeed_env")
# What launcher and stages set, beside what any place is given.
OURS = ("ACCOUNT_TAX_*", "DS_*", "PYTHON*", "TOKENIZERS_*", "CUBLAS_*", "FLASH_ATTENTION_*")


def run_on_hosts(ssh: Sequence[str], commands: Mapping[str, Sequence[str]]) -> int:
    """Return the exit status of the command that failed first, else 0."""
    environment = {name: os.environ[name] for name in passed_names(os.environ, OURS)}
    environment |= read_deepspeed_environment([Path.home(), Path.cwd()])
    source = f"PYTHONPATH={os.environ.get('PYTHONPATH', '')}"
    there = in_folder(["env", source, sys.executable, "-m", "account_tax.backends.ssh.over_ssh"])
    running: dict[str, subprocess.Popen[str]] = {}
    for host, command in commands.items():
        process = subprocess.Popen([*ssh, host, there], stdin=subprocess.PIPE, text=True)
        running[host] = process
        _tell(process, json.dumps({"command": command, "environment": environment}) + "\n")
    try:
        while True:
            statuses = {host: process.poll() for host, process in running.items()}
            if failed := {host: status for host, status in statuses.items() if status}:
                host, status = next(iter(failed.items()))
                print(f"host {host} ended with exit status {status}", flush=True)  # noqa: T201
                return status
            if None not in statuses.values():
                return 0
            time.sleep(POLL_SECONDS)
    finally:
        _end(list(running.values()))


def in_folder(words: Sequence[str]) -> str:
    """Return the shell's command line that runs words in this process's working directory."""
    # What a machine does not see is said by what runs there.
    return f"cd {shlex.quote(os.getcwd())} 2>/dev/null; exec {shlex.join(words)}"


def _tell(process: subprocess.Popen[str], text: str) -> None:
    assert process.stdin is not None
    try:
        process.stdin.write(text)
        process.stdin.flush()
    except BrokenPipeError:  # ssh has ended, and its exit status says it
        return


def _end(processes: Sequence[subprocess.Popen[str]]) -> None:
    """Close each host's input, wait until it has ended what it started, then end ssh."""
    for process in processes:
        assert process.stdin is not None
        try:
            process.stdin.close()
        except BrokenPipeError:
            continue
    deadline = time.monotonic() + 3 * GRACE_SECONDS
    while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
        time.sleep(POLL_SECONDS)
    for process in processes:
        process.kill()


def read_deepspeed_environment(folders: Sequence[Path]) -> dict[str, str]:
    """Return the variables of each folder's .deepspeed_env, NAME=VALUE a line."""
    found: dict[str, str] = {}
    for folder in folders:
        file = folder / DEEPSPEED_ENVIRONMENT
        lines = file.read_text(encoding="utf-8").splitlines() if file.is_file() else []
        for line in lines:
            name, equals, value = line.partition("=")
            if equals and not name.startswith("#"):
                found[name.strip()] = value
    return found


# --- on a host ------------------------------------------------------------------------------------


def run_as_told() -> int:
    """Run what the first line of the input says; end it when the input ends."""
    told = json.loads(sys.stdin.readline())
    process = subprocess.Popen(
        told["command"],
        env=os.environ | told["environment"],
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )

    def end_with_input() -> None:
        sys.stdin.read()
        _end_group(process.pid)

    threading.Thread(target=end_with_input, daemon=True).start()
    status = process.wait()
    _end_group(process.pid)
    return 128 - status if status < 0 else status


def _end_group(group: int) -> None:
    ask_group_to_end(group, GRACE_SECONDS)
    kill_group(group)


def _leave(signum: int, frame: object) -> None:
    signal.signal(signum, signal.SIG_IGN)  # one is enough
    sys.exit(128 + signum)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        signal.signal(signal.SIGTERM, _leave)
        sys.exit(run_on_hosts(**json.loads(sys.argv[1])))
    sys.exit(run_as_told())
