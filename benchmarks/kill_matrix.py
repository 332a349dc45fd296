"""Injects faults into real trainings, runs the same command again, and compares what came out.

    python -m benchmarks.kill_matrix                  all injections; the table goes to stdout
    python -m benchmarks.kill_matrix --only 'nan|C'   faults whose name fits
    python -m benchmarks.kill_matrix --each 1         another number of injections a fault
    python -m benchmarks.kill_matrix --report FOLDER  the table of what a --work folder holds so far

Each injection has an experiment and a folder of its own. The first command gets the fault; the
same command is run until it ends with 0, at most AGAIN times; then its adapter's digest and its
metric points are those of a run that nothing happened to, or the injection counts as bad. Runs are
tiny (two layers, 240 rows, 12 steps) and started warm, see `warm_start.py`.
"""

from __future__ import annotations

import argparse
import collections
import ctypes
import hashlib
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "account_tax" / "src")]

from benchmarks import faults, flaky_proxy, warm_start  # noqa: E402

STEPS, SAVE_EVERY, AGAIN = 12, 3, 2
LEFT_SECONDS = 5.0  # within which no process of a run is left
AWAY_SECONDS = 20.0  # of the tracking server
HUNG_SECONDS = 8.0  # where a rank is stopped
PR_SET_CHILD_SUBREAPER = 36
# Measured, not computed: another value each time.
VARYING = ("speed/", "cpu/", "gpu/", "time/", "train/runtime_seconds")
# Logged with a step's losses and again with its evaluation; MLflow drops one of two equal points of
# the same millisecond, so only one a step can be counted on.
OFTEN = ("cpu/", "gpu/", "train/epoch", "train/global_step")


@dataclass(frozen=True)
class Fault:
    """One kind of fault.

    Attributes:
        what: A signal's name, `nan`, `disk full` or `clock`.
        to: Who gets the signal: rank, launch, interpreter, launcher; or server: the way to the
            tracking server, which is cut for a while.
        statuses: Exit statuses of `kedro train` that are right.
        state: The MLflow status that is right after the same command has been run again or, where
            the fault ends the launcher itself, None: nobody could set one.
        rank: The rank that brings it about and, as `rank`, is struck.
        ranks: World size.
        saving: Whether it strikes while a checkpoint is written, not at a step.
        latest: The last step it strikes at, where not while saving.
        each: How often it is injected.
    """

    what: str
    to: str
    statuses: tuple[int, ...]
    state: str | None
    rank: int = 0
    ranks: int = 2
    saving: bool = False
    latest: int = STEPS - 2
    each: int = 5

    @property
    def name(self) -> str:
        """The fault in words, as the table names it."""
        if self.what == "clock":
            return "the wall clock jumps by years in every process"
        if self.to == "server":
            return f"tracking server away for {AWAY_SECONDS:g} s"
        who = {
            "rank": f"rank {self.rank} of {self.ranks}" if self.ranks > 1 else "the only rank",
            "launch": "deepspeed's launch process",
            "interpreter": "the warm interpreter",
            "launcher": "the launcher (`kedro train`)",
        }[self.to]
        when = "while a checkpoint is written" if self.saving else "at a step"
        if not self.what.startswith("SIG"):
            return f"{self.what}, {who}"
        word = {"SIGINT": "Ctrl-C (SIGINT)"}.get(self.what, self.what)
        alone = ", one rank" if self.ranks == 1 and self.to != "rank" else ""
        return f"{word} to {who}{alone}, {when}"


FAULTS = (
    Fault("SIGKILL", "rank", (1,), "FAILED", rank=1, each=7),
    Fault("SIGKILL", "rank", (1,), "FAILED", rank=0, each=7),
    Fault("SIGKILL", "rank", (1,), "FAILED", ranks=1),
    Fault("SIGKILL", "rank", (1,), "FAILED", rank=0, saving=True, each=8),
    Fault("SIGKILL", "rank", (1,), "FAILED", rank=1, saving=True, each=8),
    Fault("SIGKILL", "launch", (1,), "FAILED"),
    Fault("SIGKILL", "launch", (1,), "FAILED", saving=True),
    Fault("SIGKILL", "interpreter", (1,), "FAILED"),
    Fault("SIGKILL", "launcher", (-9,), None, each=7),
    Fault("SIGKILL", "launcher", (-9,), None, saving=True, each=7),
    Fault("SIGTERM", "launcher", (143,), "KILLED", each=8),
    Fault("SIGTERM", "launcher", (143,), "KILLED", ranks=1),
    Fault("SIGTERM", "launcher", (143, 0), "KILLED", saving=True),
    Fault("SIGTERM", "rank", (143,), "KILLED", rank=1, latest=STEPS - 4),  # the last finishes
    Fault("SIGINT", "launcher", (130,), "KILLED"),
    Fault("SIGSTOP", "rank", (1,), "FAILED", rank=1),
    Fault("nan", "rank", (1,), "FAILED"),
    Fault("disk full", "rank", (1,), "FAILED", saving=True, each=4),
    Fault("SIGUSR1", "server", (0,), "FINISHED", each=4),
    Fault("clock", "rank", (0,), "FINISHED", each=2),
)


# A fault, what came of each injection of it, and what was wrong with each.
Row = tuple[Fault, list[dict[str, Any]], list[list[str]]]


@dataclass(frozen=True)
class Place:
    """Where the matrix works: a copy of the project, the ledger, the base, and a server."""

    project: Path
    work: Path
    server: str

    def words(self, name: str, ranks: int, hang_timeout: float) -> list[str]:
        """Return the words of `kedro train` for one injection."""
        options = {
            "data": self.work / "ledger.csv",
            "model": self.work / "base",
            "artifacts_root": self.work / "runs" / name,
            "num_gpus": ranks,
            "max_steps": STEPS,
            "epochs": 100,
            "micro_batch_size": 16 // ranks,
            "register": "false",
            "grace_seconds": 60,  # the machine may be busy
            "hang_timeout_seconds": hang_timeout,
            "train.lora.target_modules": "query,value",
            "train.training.logging_steps": 1,
            **dict.fromkeys(["train.training.eval_steps", "train.training.save_steps"], SAVE_EVERY),
            **dict.fromkeys(
                ["train.training.eval_strategy", "train.training.save_strategy"], "steps"
            ),
        }
        return ["kedro", "train", *(f"--{key}={value}" for key, value in options.items())]


@dataclass
class Attempt:
    """A command that has ended."""

    status: int
    seconds: float
    output: str
    left: list[str]


# --- one command ----------------------------------------------------------------------------------


def run(
    place: Place, name: str, ranks: int, fault: dict[str, Any] | None, server: str | None = None
) -> Attempt:
    """Run `kedro train`, with a fault or none, and wait until every process of it is gone."""
    log = place.work / "logs" / f"{name}.log"
    log.parent.mkdir(exist_ok=True)
    env = {key: text for key, text in os.environ.items() if not key.startswith("MLFLOW_")}
    env |= {"MLFLOW_TRACKING_URI": server or place.server, "MLFLOW_EXPERIMENT_NAME": name}
    if fault:
        env[faults.VARIABLE] = json.dumps(fault)
    begun, at = time.monotonic(), log.stat().st_size if log.exists() else 0
    with log.open("ab") as out:
        pid = os.fork()
        if pid == 0:
            os.setsid()
            ends = {1: out.fileno(), 2: out.fileno()}
            stopped = fault is not None and fault["what"] == "SIGSTOP"
            words = place.words(name, ranks, HUNG_SECONDS if stopped else 0)
            warm_start.start_here(words, ends, place.project, env)
    status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    seconds = time.monotonic() - begun
    text = log.read_bytes()[at:].decode(errors="replace")
    return Attempt(status, seconds, text, _left_after(LEFT_SECONDS, (fault or {}).get("pid")))


def _left_after(seconds: float, kept: int | None) -> list[str]:
    """Return what still runs below this process, which takes over orphans; it is killed then."""
    deadline = time.monotonic() + seconds
    while True:
        while _reap():
            continue
        left = [p for p in psutil.Process().children(recursive=True) if p.pid != kept]
        if not left or time.monotonic() > deadline:
            break
        time.sleep(0.1)
    names = [process.name() for process in left]
    for process in left:
        process.kill()
    return names


def _reap() -> bool:
    try:
        return os.waitpid(-1, os.WNOHANG)[0] != 0
    except ChildProcessError:
        return False


# --- one injection --------------------------------------------------------------------------------


def inject(place: Place, number: int, kind: Fault | None, ranks: int, seed: int) -> dict[str, Any]:
    """Return what came of one fault; without a fault, what it is compared with."""
    name = f"{number:03}"
    draw = random.Random(seed * 1000 + number)
    given = kind and {
        **{"what": kind.what, "to": kind.to, "rank": kind.rank, "saving": kind.saving},
        "step": SAVE_EVERY * draw.randrange(1, 4) if kind.saving else draw.randint(2, kind.latest),
        "delay": draw.uniform(0, 0.12 if kind.saving else 0.05),
    }
    disk = place.work / "runs" / name
    small = kind is not None and kind.what == "disk full"
    if small:
        disk.mkdir(parents=True)
        _mount_small(disk)
    server = None
    if given and kind.to == "server":
        host, _, port = place.server.removeprefix("http://").partition(":")
        given["pid"], port = flaky_proxy.start(host, int(port), AWAY_SECONDS)
        server = f"http://127.0.0.1:{port}"
    attempts = [run(place, name, ranks, given, server)]
    state = _states(place, name)
    if server:
        os.kill(given["pid"], signal.SIGKILL)
    if small:
        (ballast,) = disk.rglob("ballast")
        ballast.unlink()
    while kind and attempts[-1].status != 0 and len(attempts) <= AGAIN:
        attempts.append(run(place, name, ranks, None))
    outcome = _outcome(place, name, attempts)
    if small:
        subprocess.run(["umount", "--lazy", str(disk)], check=False)
    return outcome | {"number": number, "fault": given, "first_state": state}


def _mount_small(folder: Path) -> None:
    command = ["mount", "-t", "tmpfs", "-o", "size=300m", "none", str(folder)]
    subprocess.run(command, check=True)


def _client(place: Place) -> Any:
    from mlflow import MlflowClient

    return MlflowClient(place.server)


def _states(place: Place, name: str) -> list[str]:
    """Return the status of every run of an injection's experiment, oldest first."""
    return [run.info.status for run in _runs(place, name)]


def _runs(place: Place, name: str) -> list[Any]:
    client = _client(place)
    experiment = client.get_experiment_by_name(name)
    if experiment is None:
        return []
    return list(client.search_runs([experiment.experiment_id], order_by=["start_time ASC"]))


def _outcome(place: Place, name: str, attempts: list[Attempt]) -> dict[str, Any]:
    client, runs = _client(place), _runs(place, name)
    points: list[tuple[str, int, float]] = []
    for key in runs[-1].data.metrics if runs else ():
        history = client.get_metric_history(runs[-1].info.run_id, key)
        points += [(key, point.step, point.value) for point in history]
    adapters = sorted((place.work / "runs" / name).rglob("adapter/adapter_model.safetensors"))
    digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in adapters]
    return {
        "statuses": [attempt.status for attempt in attempts],
        "seconds": [round(attempt.seconds, 1) for attempt in attempts],
        "left": [each for attempt in attempts for each in attempt.left],
        "said": [attempt.output[-3000:] for attempt in attempts],
        "states": [run.info.status for run in runs],
        "reasons": [run.data.tags.get("account_tax.reason", "") for run in runs],
        "adapter": digests[-1] if digests else None,
        "points": sorted(points),
    }


# --- all of them ----------------------------------------------------------------------------------


def judge(kind: Fault, got: dict[str, Any], want: dict[str, Any]) -> list[str]:
    """Return what is wrong with an injection's outcome; nothing, if all is as it has to be."""
    wrong = []
    first, state = got["statuses"][0], (got["first_state"] or ["none"])[-1]
    finished_first = first == 0 and 0 in kind.statuses
    if first not in kind.statuses:
        wrong.append(f"exit status {first}")
    if kind.state and not finished_first and state != kind.state:
        wrong.append(f"the MLflow run is {state}")
    if got["left"]:
        wrong.append(f"left running: {', '.join(got['left'])}")
    if got["statuses"][-1] != 0:
        wrong.append(f"run again: {got['statuses'][1:]}")
    if "RUNNING" in got["states"]:
        wrong.append("a run is left RUNNING")
    if got["adapter"] != want["adapter"]:
        wrong.append("another adapter")
    have, need = _places(got["points"]), _places(want["points"])
    if have != need:
        lost, more = (need - have).total(), (have - need).total()
        wrong.append(f"{lost} metric points lost, {more} doubled")
    elif _values(got["points"]) != _values(want["points"]):
        wrong.append("other metric values")
    return wrong


def _places(points: list[Any]) -> collections.Counter[tuple[str, int]]:
    counted = collections.Counter((key, step) for key, step, _ in points)
    return collections.Counter(
        {place: 1 if place[0].startswith(OFTEN) else count for place, count in counted.items()}
    )


def _values(points: list[Any]) -> list[Any]:
    return sorted({tuple(point) for point in points if not point[0].startswith(VARYING)})


def work_off(
    place: Place, jobs: Sequence[tuple[int, Fault | None, int]], seed: int, side: int
) -> None:
    """Do injections in forks, `side` at a time; each writes its result to a file."""
    running: set[int] = set()
    for number, kind, ranks in jobs:
        while len(running) >= side:
            running.discard(os.wait()[0])
        pid = os.fork()
        if pid == 0:
            _in_fork(place, number, kind, ranks, seed)
        running.add(pid)
    while running:
        running.discard(os.wait()[0])


def _in_fork(place: Place, number: int, kind: Fault | None, ranks: int, seed: int) -> None:
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        result = inject(place, number, kind, ranks, seed)
    except BaseException:
        result = {"number": number, "crash": traceback.format_exc()}
    file = place.work / "results" / f"{number:03}.json"
    file.write_text(json.dumps(result))
    os._exit(0)


def result_of(work: Path, number: int) -> dict[str, Any]:
    """Return what an injection's fork has written."""
    content = json.loads((work / "results" / f"{number:03}.json").read_text())
    if "crash" in content:
        raise RuntimeError(content["crash"])
    return content


def set_up(work: Path) -> Place:
    """Return a fresh copy of the project with a ledger, a base model and a tracking server."""
    from account_tax.processes.ranks import free_port
    from tests.conftest import make_tiny_base
    from tests.integration.conftest import copy_project, write_ledger

    (work / "results").mkdir(parents=True)
    (work / "project").mkdir()
    project = copy_project(work / "project").folder
    write_ledger(work / "ledger.csv")
    make_tiny_base(work / "base")
    return Place(project, work, f"http://127.0.0.1:{free_port()}")


def start_server(place: Place) -> subprocess.Popen[bytes]:
    """Start an `mlflow server` and wait until it answers."""
    host, _, port = place.server.removeprefix("http://").partition(":")
    store = f"sqlite:///{place.work / 'mlflow.db'}"
    command = [*(sys.executable, "-c", "from mlflow.cli import cli; cli()", "server")]
    command += ["--host", host, "--port", port, "--backend-store-uri", store, "--workers", "1"]
    command += ["--artifacts-destination", str(place.work / "artifacts")]
    with (place.work / "server.log").open("wb") as out:
        server = subprocess.Popen(command, stdout=out, stderr=out, start_new_session=True)
    import requests

    for _ in range(600):
        try:
            requests.get(f"{place.server}/health", timeout=1)
            return server
        except requests.RequestException:
            time.sleep(0.2)
    raise RuntimeError((place.work / "server.log").read_text())


def table(rows: list[Row]) -> str:
    """Return the matrix as Markdown."""
    lines = [
        "| fault | injected | exit status | resumed in the same run | as it has to be | else |",
        "|---|---|---|---|---|---|",
    ]
    for kind, results, wrongs in rows:
        statuses = collections.Counter(result["statuses"][0] for result in results)
        shown = ", ".join(f"{status} ({count}x)" for status, count in sorted(statuses.items()))
        went_on = sum(len(result["states"]) == 1 for result in results)
        good = sum(not wrong for wrong in wrongs)
        words = collections.Counter(word for wrong in wrongs for word in wrong)
        other = "; ".join(f"{word} ({count}x)" for word, count in words.items())
        lines.append(
            f"| {kind.name} | {len(results)} | {shown} | {went_on} | {good} | {other or '-'} |"
        )
    everything = sum(len(results) for _, results, _ in rows)
    good = sum(not wrong for _, _, wrongs in rows for wrong in wrongs)
    lines.append(f"| **all** | {everything} | | | {good} | |")
    return "\n".join(lines)


def main() -> int:
    """Run the matrix; exit status 1 if anything was not as it has to be."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="", help="regular expression; case does not count")
    parser.add_argument("--each", type=int, help="injections a fault")
    parser.add_argument("--seed", type=int, default=1, help="of the moments")
    parser.add_argument("--side", type=int, default=2, help="injections side by side")
    parser.add_argument("--work", type=Path, help="folder to keep everything in")
    parser.add_argument("--report", type=Path, help="--work folder to report on; runs nothing")
    given = parser.parse_args()
    chosen = [kind for kind in FAULTS if re.search(given.only, kind.name, re.I)]
    jobs = _number(chosen, given.each)
    if given.report:
        print(table(_judge_all(given.report, jobs)))
        return 0
    work = given.work or Path(tempfile.mkdtemp(prefix="kill_matrix_"))
    begun = time.monotonic()
    warm_start.warm_up()
    warm_start.at_start.append(faults.install)
    place = set_up(work.resolve())
    server = start_server(place)
    try:
        _inject_all(place, jobs, given)
        rows = _judge_all(work, jobs)
    finally:
        server.terminate()
        server.wait()
    print(table(rows))
    print(f"\n{time.monotonic() - begun:.0f} s, seed {given.seed}")
    if not given.work:
        shutil.rmtree(work, ignore_errors=True)
    return int(any(wrong for _, _, wrongs in rows for wrong in wrongs))


def _number(chosen: list[Fault], each: int | None) -> list[tuple[int, Fault, int]]:
    """Return the injections with their numbers and ranks; below 10 are those without a fault."""
    kinds = [kind for kind in chosen for _ in range(each or kind.each)]
    return [(number, kind, kind.ranks) for number, kind in enumerate(kinds, start=10)]


def _inject_all(
    place: Place, jobs: list[tuple[int, Fault, int]], given: argparse.Namespace
) -> None:
    worlds = sorted({ranks for _, _, ranks in jobs})
    work_off(place, [(ranks, None, ranks) for ranks in worlds], given.seed, 1)  # prepares the data
    for ranks in worlds:
        plain = result_of(place.work, ranks)
        print(f"{ranks} ranks, no fault:", plain["statuses"], plain["seconds"], file=sys.stderr)
        if plain["statuses"] != [0]:
            raise RuntimeError(plain["said"][0])
    work_off(place, jobs, given.seed, given.side)


def _judge_all(work: Path, jobs: list[tuple[int, Fault, int]]) -> list[Row]:
    """Return the table's rows of what there is, and say to stderr what is wrong."""
    found: dict[Fault, tuple[list[dict[str, Any]], list[list[str]]]] = {}
    for number, kind, ranks in jobs:
        if not (work / "results" / f"{number:03}.json").exists():
            continue
        result = result_of(work, number)
        wrong = judge(kind, result, result_of(work, ranks))
        if wrong:
            print(f"{number:03} {kind.name}: {wrong}", file=sys.stderr)
        results, wrongs = found.setdefault(kind, ([], []))
        results.append(result)
        wrongs.append(wrong)
    return [(kind, *lists) for kind, lists in found.items()]


if __name__ == "__main__":
    sys.exit(main())
