"""What a run costs beside its training: from Enter to the first step, from the last to a version.

    python benchmarks/overhead.py                       # this checkout, 3 rounds
    python benchmarks/overhead.py --against ../before   # another checkout in turn with it

Each run is `mlflow run . -e train -P lora_r=8 -P max_steps=5 --env-manager local` with the data
prepared, in a store of its own. The marks are what the run says, when it says it; the last step is
when its loss was noted, as a line is shown once a second at most.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
from mlflow import MlflowClient

ROOT = Path(__file__).resolve().parent.parent
MARKS = {
    "checked": r"^rows  ",
    "first step": r"^train\b.* 0/5",
    "training ended": r"^register: ",
    "registered": r"^account-tax version ",
}
SPANS = {
    "Enter to first step": (None, "first step"),
    "of it: until the parameters, data and model are checked": (None, "checked"),
    "last step to registered version": ("last step", "registered"),
    "of it: evaluation, save": ("last step", "training ended"),
    "Enter to the end": (None, "end"),
}


def run_once(project: Path, work: Path, seed: int) -> dict[str, float]:
    """Run the main job in a checkout; return when each mark came, s, and its CPU time, `cpu`."""
    command = [
        *(sys.executable, "-m", "mlflow", "run", ".", "-e", "train", "--env-manager", "local"),
        *("-P", "lora_r=8", "-P", "max_steps=5", "-P", "allow_unlocked=true"),
        *("-P", f"artifacts_root={work / 'out'}", "-P", f"train.training.seed={seed}"),
    ]
    store = f"sqlite:///{work}/mlflow.db"
    environment = os.environ | {"MLFLOW_TRACKING_URI": store, "PYTHONUNBUFFERED": "1"}
    environment.pop("PYTHONPATH", None)
    before = psutil.Process().cpu_times()
    found, started, said, began = {}, time.perf_counter(), [], time.time()
    with subprocess.Popen(
        command,
        cwd=project,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            for mark, pattern in MARKS.items():
                if re.search(pattern, line):
                    found.setdefault(mark, time.perf_counter() - started)
    if process.returncode or found.keys() != MARKS.keys():
        raise RuntimeError(f"ended with {process.returncode}:\n{''.join(said[-20:])}")
    after = psutil.Process().cpu_times()
    cpu = sum(getattr(after, name) - getattr(before, name) for name in _CHILDREN)
    found |= {"end": time.perf_counter() - started, "cpu": cpu}
    client = MlflowClient(store)
    (run,) = client.search_runs(["0"], max_results=1, order_by=["attributes.start_time DESC"])
    points = client.get_metric_history(run.info.run_id, "train/loss")
    return found | {"last step": max(point.timestamp for point in points) / 1000 - began}


_CHILDREN = ("children_user", "children_system")


def main() -> None:
    """Measure in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--against", type=Path)
    given = parser.parse_args()
    projects = [ROOT, *([given.against.resolve()] if given.against else [])]
    with tempfile.TemporaryDirectory() as folder:
        works = [Path(folder) / str(number) for number in range(len(projects))]
        for project, work in zip(projects, works, strict=True):
            work.mkdir()
            run_once(project, work, 0)  # prepares the data, makes the store
        runs = [
            [run_once(*each, seed) for each in zip(projects, works, strict=True)]
            for seed in range(1, given.rounds + 1)
        ]
    columns = list(zip(*runs, strict=True))
    print("| seconds, median (min-max) |", " | ".join(each.name for each in projects), "|")
    print("|---|" + "---|" * len(projects))
    for name, (begin, end) in SPANS.items():
        print(f"| {name} |", " | ".join(_span(mine, begin, end) for mine in columns), "|")
    print("| CPU time |", " | ".join(_span(mine, None, "cpu") for mine in columns), "|")


def _span(runs: tuple[dict[str, float], ...], begin: str | None, end: str) -> str:
    found = [run[end] - (run[begin] if begin else 0.0) for run in runs]
    return f"{statistics.median(found):.1f} ({min(found):.1f}-{max(found):.1f})"


if __name__ == "__main__":
    main()
