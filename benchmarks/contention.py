"""What another busy program costs the starter's training, by how OpenMP's threads wait.

    python benchmarks/contention.py            # 3 rounds, the alternatives in turn

Beside the training, which has every core, runs nothing, a loop of one thread a core, or another
torch program with as many threads, whose own threads wait as they do by default.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT)]

from benchmarks.train_speed import ALTERNATIVES, measure  # noqa: E402

STARTER = next(name for name in ALTERNATIVES if name.startswith("starter"))
CORES = len(os.sched_getaffinity(0))
LOOP = "while True: pass"
TORCH = """
import torch
a = torch.randn(512, 384)
while True:
    a = (a @ a.T @ a).softmax(-1)
"""
BESIDE = {"nothing": [], "a busy loop a core": [LOOP] * CORES, "a torch program": [TORCH]}
POLICIES = ("ACTIVE", "PASSIVE")


@contextmanager
def busy(programs: list[str]) -> Iterator[None]:
    """Let programs run beside, each until the end of the block."""
    environment = {key: value for key, value in os.environ.items() if key != "OMP_WAIT_POLICY"}
    started = [subprocess.Popen([sys.executable, "-c", each], env=environment) for each in programs]
    try:
        yield
    finally:
        for each in started:
            each.kill()
            each.wait()


def main() -> None:
    """Measure in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=45)
    given = parser.parse_args()
    cases = list(product(BESIDE, POLICIES))
    speeds: dict[tuple[str, str], list[float]] = {case: [] for case in cases}
    for _, (beside, policy) in product(range(given.rounds), cases):
        with busy(BESIDE[beside]):
            found = measure(STARTER, given.steps, OMP_WAIT_POLICY=policy)
        speeds[beside, policy].append(found["tokens_per_sec"])
    medians = {case: statistics.median(found) for case, found in speeds.items()}
    print("| beside | OMP_WAIT_POLICY | useful tokens/s, median (min-max) | slow-down |")
    print("|---|---|---|---|")
    for (beside, policy), found in speeds.items():
        slower = medians["nothing", policy] / medians[beside, policy]
        print(
            f"| {beside} | {policy} | {medians[beside, policy]:,.0f} "
            f"({min(found):,.0f}-{max(found):,.0f}) | {slower:.1f} |"
        )


if __name__ == "__main__":
    main()
