"""The hosts of a DeepSpeed hostfile as the place of the ranks: ssh starts deepspeed on each."""

from __future__ import annotations

import base64
import json
import re
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from account_tax.backends.same_everywhere import PROBE_SECONDS, probe_ranks
from account_tax.parameters.config import ConfigError
from account_tax.processes.answers import answer_of

from . import over_ssh

CONNECT_SECONDS = 10
COUNT_GPUS = "nvidia-smi -L 2>/dev/null; true"  # a line each; ssh's own status stays
SSH_ARGS = "PDSH_SSH_ARGS_APPEND"  # deepspeed's variable for more options of ssh
LINE = re.compile(r"(?P<host>\w[\w.@:-]*)\s+slots=(?P<slots>[1-9]\d*)\s*(#.*)?")


@dataclass(frozen=True)
class Hosts:
    """Machines that ssh reaches without a password.

    Attributes:
        wanted: Ranks that were asked for.
        hostfile: Where the hosts stand.
        slots: Host -> ranks on it, in the file's order.
        ssh: The command, up to the host.
    """

    wanted: int | Literal["auto"]
    hostfile: Path
    slots: Mapping[str, int]
    ssh: Sequence[str]

    def world_size(self, devices: int) -> int:
        """Return the slots of all hosts."""
        return sum(self.slots.values())

    def ranks_here(self, world_size: int) -> int:
        """Return the most ranks that share a machine."""
        return max(self.slots.values())

    def faults(self, folders: Sequence[Path], environment: Mapping[str, str]) -> list[str]:
        """Return what speaks against training there: reach, storage, code that differs."""
        found = []
        if self.wanted not in ("auto", self.world_size(0)):
            found.append(
                f"num_gpus = {self.wanted}: {self.hostfile} has {self.world_size(0)} slots, a rank "
                "each. Leave num_gpus at auto."
            )
        if unfit := self._unfit():
            return found + unfit
        counts = list(self.slots.values())
        first_ranks = [sum(counts[:number]) for number in range(len(counts))]

        def ask(words: list[str]) -> tuple[str, str]:
            python_path = f"PYTHONPATH={environment.get('PYTHONPATH', '')}"
            answers = self._ssh_each(
                {
                    host: over_ssh.in_folder(
                        ["env", python_path, f"NODE={host}", f"PROBED_RANK={rank}", "sh", *words]
                    )
                    for host, rank in zip(self.slots, first_ranks, strict=True)
                },
                PROBE_SECONDS,
            ).values()
            return "".join(a.stdout for a in answers), " ".join(a.stderr for a in answers)

        return found + probe_ranks(folders, ask, first_ranks)

    def _unfit(self) -> list[str]:
        """Return a fault for each host that does not answer, or has fewer GPUs than slots.

        A host without any trains on its CPU, with as many ranks as one likes.
        """
        found = []
        answers = self._ssh_each(dict.fromkeys(self.slots, COUNT_GPUS), 2 * CONNECT_SECONDS)
        for host, done in answers.items():
            gpus = len(re.findall(r"^GPU \d", done.stdout, re.MULTILINE))
            if done.returncode:
                found.append(
                    f"hostfile = {self.hostfile}: {host} can't be reached by ssh "
                    f"({' '.join(done.stderr.split()) or 'no answer'}). It has to answer without a "
                    "password; start it, or take it out of the file."
                )
            elif 0 < gpus < self.slots[host]:
                found.append(
                    f"hostfile = {self.hostfile}: {host} slots={self.slots[host]}, but it has "
                    f"{gpus} GPU{'s' * (gpus > 1)}, one for a rank. Lower its slots."
                )
        return found

    def workers_faults(self, count: int, gpus: int) -> list[str]:
        """Return a fault unless there is one worker: each trial has all hosts."""
        if count == 1:
            return []
        return [f"tuning.workers = {count}: expected 1 with hostfile = {self.hostfile}."]

    def start_ranks(
        self, kedro: Sequence[str], world_size: int, port: int, logs: Path
    ) -> list[str]:
        """Return the command of over_ssh.py, which gives each host deepspeed's own."""
        devices = {host: list(range(count)) for host, count in self.slots.items()}
        world = base64.urlsafe_b64encode(json.dumps(devices).encode()).decode()
        commands = {
            host: [
                *(sys.executable, "-m", "deepspeed.launcher.launch"),
                *(f"--world_info={world}", f"--node_rank={number}"),
                *(f"--master_addr={self._address()}", f"--master_port={port}"),
                *("--module", "--no_local_rank", f"--enable_each_rank_log={logs}"),
                *("kedro", *kedro),
            ]
            for number, host in enumerate(self.slots)
        }
        plan = {"ssh": list(self.ssh), "commands": commands}
        return [sys.executable, "-m", over_ssh.__name__, json.dumps(plan)]

    def raise_if_preempted(self, status: int, saved: Path) -> None:
        """Return: nobody takes hosts away and gives them back."""

    def _address(self) -> str:
        """Return where the first host is reached: its name may be one of ssh's configuration."""
        host = next(iter(self.slots))
        shown = answer_of([*self.ssh, "-G", host], CONNECT_SECONDS)
        match = re.search(r"^hostname (\S+)", shown.stdout, re.MULTILINE)
        return match[1] if match else host.rpartition("@")[2]

    def _ssh_each(
        self, commands: Mapping[str, str], seconds: float
    ) -> dict[str, subprocess.CompletedProcess[str]]:
        """Run a command on each host, all at once."""

        def one(host: str, command: str) -> subprocess.CompletedProcess[str]:
            return answer_of([*self.ssh, "-n", host, command], seconds)

        with ThreadPoolExecutor(len(commands)) as pool:
            answers = list(pool.map(one, commands, commands.values()))
        return dict(zip(commands, answers, strict=True))


def read_hosts(
    hostfile: Path, wanted: int | Literal["auto"], environment: Mapping[str, str]
) -> Hosts:
    """Return the hosts of a file, `NAME slots=N` a line, as deepspeed reads it.

    Raises:
        ConfigError: With each line that can't be used.
    """
    try:
        lines = hostfile.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as err:
        raise ConfigError([f"hostfile = {hostfile}: can't be read ({err})."]) from err
    slots: dict[str, int] = {}
    faults = []
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        match = LINE.fullmatch(line.strip())
        if match is None:
            faults.append(f"{hostfile}, line {number} = {line.strip()}: expected NAME slots=N.")
        elif match["host"] in slots:
            faults.append(f"{hostfile}, line {number}: {match['host']} stands there twice.")
        else:
            slots[match["host"]] = int(match["slots"])
    if not slots and not faults:
        faults.append(f"hostfile = {hostfile}: has no line of the form NAME slots=N.")
    if faults:
        raise ConfigError(faults)
    options = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_SECONDS}"]
    return Hosts(
        wanted, hostfile, slots, ["ssh", *options, *shlex.split(environment.get(SSH_ARGS, ""))]
    )
