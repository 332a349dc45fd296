"""Where ranks run and what starts them; the launcher can't tell one place from another.

deepspeed starts them on this machine, srun in a job of Slurm (allocation.py), ssh on the hosts of a
hostfile (hosts.py). Where RANK is set, whatever set it has started them, and nothing does here.
"""

from __future__ import annotations

import base64
import json
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from account_tax.backends.slurm.ranks import Allocation
from account_tax.backends.ssh.hosts import read_hosts
from account_tax.parameters.config import LaunchOptions


class Place(Protocol):
    """What the launcher asks of a place."""

    def world_size(self, devices: int) -> int:
        """Return how many ranks there will be.

        Args:
            devices: GPUs that this machine shows; without one, ranks that its cores are worth.
        """
        ...

    def ranks_here(self, world_size: int) -> int:
        """Return how many of them share a machine."""
        ...

    def faults(self, folders: Sequence[Path], environment: Mapping[str, str]) -> list[str]:
        """Return what speaks against ranks that need these folders, before anything starts."""
        ...

    def workers_faults(self, count: int, gpus: int) -> list[str]:
        """Return what speaks against so many workers of a study, where a machine shows GPUs."""
        ...

    def start_ranks(
        self, kedro: Sequence[str], world_size: int, port: int, logs: Path
    ) -> list[str]:
        """Return the command that runs `kedro` with these arguments in every rank."""
        ...

    def raise_if_preempted(self, status: int, saved: Path) -> None:
        """Raise Preempted if the ranks ended because the place was taken away.

        Args:
            status: The ranks' exit status.
            saved: What rank 0 leaves when it was told to end and all that is needed to go on from
                there is saved.
        """
        ...


@dataclass(frozen=True)
class OneMachine:
    """This machine: deepspeed starts the ranks."""

    options: LaunchOptions
    visible_devices: str = ""

    def world_size(self, devices: int) -> int:
        """Return what was asked for, else a rank for each of its devices."""
        return devices if self.options.num_gpus == "auto" else self.options.num_gpus

    def ranks_here(self, world_size: int) -> int:
        """Return all of them."""
        return world_size

    def faults(self, folders: Sequence[Path], environment: Mapping[str, str]) -> list[str]:
        """Return none: refusals.py looks at this machine in any case."""
        return []

    def start_ranks(
        self, kedro: Sequence[str], world_size: int, port: int, logs: Path
    ) -> list[str]:
        """Return the command of deepspeed's launch process, as its runner would start it.

        The runner (0.19.8) would only find out where: it imports torch to do so.
        """
        devices = self.visible_devices.split(",") if self.visible_devices else range(world_size)
        world = json.dumps({"localhost": [*devices][:world_size]}).encode()
        return [
            *(sys.executable, "-u", "-m", "deepspeed.launcher.launch"),
            f"--world_info={base64.urlsafe_b64encode(world).decode()}",
            *("--master_addr=127.0.0.1", f"--master_port={port}"),
            *("--module", "--no_local_rank", f"--enable_each_rank_log={logs}"),
            *("kedro", *kedro),
        ]

    def raise_if_preempted(self, status: int, saved: Path) -> None:
        """Return: nobody takes this machine away and gives it back."""

    def workers_faults(self, count: int, gpus: int) -> list[str]:
        """Return a fault if they would share a GPU, or two of them a core."""
        cores = len(os.sched_getaffinity(0))
        if count == 1 or (not gpus and count <= cores):
            return []
        most = (
            "1 where there is a GPU, which none shares" if gpus else f"at most {cores}, a core each"
        )
        return [f"tuning.workers = {count}: expected {most}."]

    def start_workers(
        self, command: Sequence[str], count: int, logs: Path
    ) -> list[tuple[list[str], Path]]:
        """Return the commands that start a study's workers, and the log of each."""
        return [([*command], worker_log(logs, number)) for number in range(count)]

    def worker_environment(self, workers: int) -> dict[str, str]:
        """Return what gives each of several workers its share of the cores."""
        share = max(1, len(os.sched_getaffinity(0)) // workers)
        return {"OMP_NUM_THREADS": str(share)} if workers > 1 else {}


@dataclass(frozen=True)
class OneRank(OneMachine):
    """A process that was started as a rank; nothing more can be started from it."""

    started: int = 1

    def world_size(self, devices: int) -> int:
        """Return how many ranks whatever started this one has started."""
        return self.started

    def faults(self, folders: Sequence[Path], environment: Mapping[str, str]) -> list[str]:
        """Return a fault where there are several: each would prepare, own the run and register."""
        if self.started == 1:
            return []
        return [
            f"WORLD_SIZE = {self.started} (environment): these ranks have been started, and `kedro "
            "train` starts them itself. Unset RANK and WORLD_SIZE, or run the stages by hand: "
            "`kedro run --pipeline=prepare` once, `--pipeline=train` in each rank, "
            "`--pipeline=register` once."
        ]

    def start_ranks(
        self, kedro: Sequence[str], world_size: int, port: int, logs: Path
    ) -> list[str]:
        """Return the plain command."""
        return [sys.executable, "-m", "kedro", *kedro]


@dataclass(frozen=True)
class EachNode(OneMachine):
    """The nodes of a Slurm job, one machine each: a worker of a study on every one."""

    job: Allocation = field(kw_only=True)

    def faults(self, folders: Sequence[Path], environment: Mapping[str, str]) -> list[str]:
        """Return what speaks against workers there: storage, code that differs."""
        return self.job.one_task_a_node().faults(folders, environment)

    def raise_if_preempted(self, status: int, saved: Path) -> None:
        """Raise Preempted if the job lost its nodes."""
        self.job.raise_if_preempted(status, saved)

    def workers_faults(self, count: int, gpus: int) -> list[str]:
        """Return a fault unless there are as many workers as nodes."""
        if count == self.job.nodes:
            return []
        return [
            f"tuning.workers = {count}: Slurm job {self.job.job_id} has {self.job.nodes} nodes, a "
            "worker each. Give that number, or 1 to let each trial have all of them."
        ]

    def start_workers(
        self, command: Sequence[str], count: int, logs: Path
    ) -> list[tuple[list[str], Path]]:
        """Return srun's command, which starts them all."""
        return [(self.job.start_workers(command, worker_log(logs, "%t")), logs / "workers.log")]

    def worker_environment(self, workers: int) -> dict[str, str]:
        """Return nothing: each has a node's cores to itself."""
        return {}


def worker_log(folder: Path, number: int | str) -> Path:
    """Return where a worker of a study writes."""
    return folder / f"worker-{number}.log"


def find_place(
    options: LaunchOptions, environment: Mapping[str, str] = os.environ, workers: int = 1
) -> Place:
    """Return the place this process is in, by its options and environment.

    A step of Slurm's (`srun --pty bash`) is one machine: steps don't nest.

    Raises:
        ConfigError: If the hostfile can't be used.
    """
    devices = environment.get("CUDA_VISIBLE_DEVICES", "")
    if "RANK" in environment:
        return OneRank(options, started=int(environment.get("WORLD_SIZE", 1)))
    if options.hostfile:
        return read_hosts(Path(options.hostfile), options.num_gpus, environment)
    if "SLURM_NTASKS" in environment and "SLURM_STEP_ID" not in environment:
        job = Allocation.read(options.num_gpus, environment)
        return job if workers == 1 else EachNode(options, devices, job=job)
    return OneMachine(options, devices)
