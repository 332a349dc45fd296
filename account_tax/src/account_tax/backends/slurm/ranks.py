"""A job of Slurm as the place of the ranks: srun starts one for each of its tasks."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from account_tax.backends.same_everywhere import PROBE_SECONDS, probe_ranks
from account_tax.errors import Failed, Preempted
from account_tax.processes.answers import answer_of
from account_tax.storage.names import REQUEUES_VARIABLE

from .job import call, parse_fields, show_job

TERMINATED = (143, -15)  # ranks that SIGTERM ended, as srun says it
NOTICE_SLACK_SECONDS = 120  # Slurm's notice comes up to a minute early

# What a rank must know before Python starts. deepspeed's launcher sets the same names.
RANK_SETTINGS = (
    "export RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID WORLD_SIZE=$SLURM_NTASKS"
    " LOCAL_SIZE=${SLURM_STEP_TASKS_PER_NODE%%[(,]*}"
    " CROSS_RANK=$SLURM_NODEID CROSS_SIZE=$SLURM_NNODES"
    ' MASTER_ADDR="$1" MASTER_PORT="$2"; shift 2; exec "$@"'
)


@dataclass(frozen=True)
class Allocation:
    """The nodes of a job.

    Attributes:
        wanted: Ranks that were asked for.
        job_id: Slurm's number of the job.
        tasks: Ranks in all.
        nodes: Nodes they are on, each with the same number.
        node: This one, the first.
        restarts: How often the job was queued again.
        max_requeues: How often it may be; 0 for a job that won't be.
        cpus_per_task: As asked for; srun does not take it from the job by itself.
    """

    wanted: int | Literal["auto"]
    job_id: str
    tasks: int
    nodes: int
    node: str
    restarts: int = 0
    max_requeues: int = 0
    cpus_per_task: str = ""

    @classmethod
    def read(cls, wanted: int | Literal["auto"], environment: Mapping[str, str]) -> Allocation:
        """Return the allocation that Slurm's variables describe."""
        return cls(
            wanted,
            environment["SLURM_JOB_ID"],
            int(environment["SLURM_NTASKS"]),
            int(environment.get("SLURM_JOB_NUM_NODES", 1)),
            environment.get("SLURMD_NODENAME", "localhost"),
            int(environment.get("SLURM_RESTART_COUNT", 0)),
            int(environment.get(REQUEUES_VARIABLE, 0)),
            environment.get("SLURM_CPUS_PER_TASK", ""),
        )

    def world_size(self, devices: int) -> int:
        """Return the job's tasks."""
        return self.tasks

    def ranks_here(self, world_size: int) -> int:
        """Return how many ranks share a node."""
        return -(-self.tasks // self.nodes)

    def faults(self, folders: Sequence[Path], environment: Mapping[str, str]) -> list[str]:
        """Return what speaks against training here: tasks, storage, code that differs."""
        found = []
        if self.wanted not in ("auto", self.tasks):
            found.append(
                f"num_gpus = {self.wanted}: Slurm job {self.job_id} has {self.tasks} tasks on "
                f"{self.nodes} nodes, a rank each. Leave num_gpus at auto, and set nodes and "
                "tasks_per_node in the backend configuration."
            )

        def ask(words: list[str]) -> tuple[str, str]:
            srun = [*self._srun(), "--quiet", "sh", *words]
            done = answer_of(srun, PROBE_SECONDS, environment)
            return done.stdout, done.stderr

        return found + probe_ranks(folders, ask, range(self.tasks))

    def workers_faults(self, count: int, gpus: int) -> list[str]:
        """Return none: all of the job is for one worker."""
        return []

    def start_ranks(
        self, kedro: Sequence[str], world_size: int, port: int, logs: Path
    ) -> list[str]:
        """Return srun's command.

        The logs' folder is made: Slurm opens each rank's log before the rank starts.
        """
        logs.mkdir(parents=True, exist_ok=True)
        return [
            *(*self._srun(), "--kill-on-bad-exit=1", "--unbuffered"),
            f"--output={logs}/slurm_rank%t.log",
            *("sh", "-c", RANK_SETTINGS, "rank", self._address(), str(port)),
            *(sys.executable, "-m", "kedro", *kedro),
        ]

    def one_task_a_node(self) -> Allocation:
        """Return the same job with a task on each node, which has all of its cores."""
        return replace(self, wanted="auto", tasks=self.nodes, cpus_per_task="")

    def start_workers(self, command: Sequence[str], log: Path) -> list[str]:
        """Return srun's command, which runs another on each node; %t in the log is its number."""
        each_its_end = ("--kill-on-bad-exit=0", "--wait=0")
        return [*self.one_task_a_node()._srun(), *each_its_end, f"--output={log}", *command]

    def _srun(self) -> list[str]:
        # sbatch's --export=NAMES would hold for srun too.
        cpus = [f"--cpus-per-task={self.cpus_per_task}"] if self.cpus_per_task else []
        # Words beside the number of nodes' would be the job's own, of its tasks.
        spread = (
            [] if self.tasks != self.nodes else [f"--nodes={self.nodes}", "--ntasks-per-node=1"]
        )
        return ["srun", f"--ntasks={self.tasks}", *spread, "--export=ALL", "--input=none", *cpus]

    def _address(self) -> str:
        """Return where other nodes reach this one: names of nodes need not resolve."""
        shown = call("scontrol", "show", "node", "-o", self.node).stdout
        return parse_fields(shown).get("NodeAddr") or self.node

    def raise_if_preempted(self, status: int, saved: Path) -> None:
        """Raise if Slurm ended the ranks, and not a fault of theirs.

        Raises:
            Preempted: If a job of a higher priority took the nodes, or the time limit came after
                the ranks had saved their state.
            Failed: If the time limit came, and nothing was saved.
        """
        if not saved.exists() and status not in TERMINATED:
            return
        why = why_ended(show_job(self.job_id).stdout)
        if why == "limit" and not saved.exists():
            raise Failed(
                f"training failed: Slurm job {self.job_id} reached its time limit. "
                "Give it a longer time in the backend configuration."
            )
        if why is None:
            return
        what = "reached its time limit" if why == "limit" else "was preempted"
        goes_on = self.restarts < self.max_requeues
        then = f"is queued again ({self.restarts + 1} of {self.max_requeues})"
        ends = f"has been queued again {self.restarts} of {self.max_requeues} times"
        raise Preempted(
            f"Slurm job {self.job_id} {what} and {then if goes_on else ends}.", goes_on=goes_on
        )


def why_ended(shown: str) -> Literal["preempted", "limit"] | None:
    """Return why Slurm told a job to end, from what it tells of it."""
    fields = parse_fields(shown)
    if fields.get("PreemptTime", "None") != "None":
        return "preempted"
    ran, limit = (_seconds(fields.get(name, "")) for name in ("RunTime", "TimeLimit"))
    notice = re.search(r"Signal=\S*@(\d+)|KillSignal", shown)
    early = NOTICE_SLACK_SECONDS + int(notice[1] if notice and notice[1] else 60)
    return "limit" if ran and limit and ran >= limit - early else None


def _seconds(text: str) -> int | None:
    match = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", text)
    if match is None:
        return None
    days, hours, minutes, seconds = (int(part or 0) for part in match.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + seconds
