"""Brings a fault about from inside a rank, at a step or while a checkpoint is written.

What happens is real: the signal is sent to the process named, a weight becomes NaN, the disk is
full. Only the moment is chosen, which nothing outside the rank could hit.
"""

from __future__ import annotations

import functools
import itertools
import json
import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import psutil

JUMPS = (0, 1e8, -1e8)  # seconds, of the wall clock from one look to the next
VARIABLE = "ACCOUNT_TAX_FAULT"  # of the rank: the fault as JSON


def install() -> None:
    """Put the fault of the environment into this process and the ranks that are forked from it."""
    fault = json.loads(os.environ.get(VARIABLE, "{}"))
    if fault.get("what") == "clock":  # in every process
        now, jumps = time.time, itertools.cycle(JUMPS)
        time.time = lambda: now() + next(jumps)
        return
    if not fault:
        return
    from account_tax.pipelines.train.trainer import LedgerTrainer

    def at(method: str, reached: Any) -> None:
        plain = getattr(LedgerTrainer, method)

        @functools.wraps(plain)
        def wrapped(trainer: Any, *args: Any, **kwargs: Any) -> Any:
            struck = int(os.environ.get("RANK", -1)) == fault["rank"]
            if struck and reached(trainer) and not fault.get("done"):
                fault["done"] = True
                bring_about(fault, trainer)
            return plain(trainer, *args, **kwargs)

        setattr(LedgerTrainer, method, wrapped)

    if fault["saving"]:
        at("_save_checkpoint", lambda trainer: trainer.state.global_step >= fault["step"])
    else:
        at("training_step", lambda trainer: trainer.state.global_step == fault["step"])


def bring_about(fault: dict[str, Any], trainer: Any) -> None:
    """Let the fault happen now, or `delay` seconds from now in whatever the rank then does."""
    if fault["what"] == "nan":
        weight = next(p for p in trainer.model.parameters() if p.requires_grad)
        weight.data.fill_(float("nan"))
    elif fault["what"] == "disk full":
        _fill(Path(trainer.args.output_dir))
    else:
        pid = process_of(fault["to"]) if fault["to"] != "server" else fault["pid"]
        signum = signal.Signals[fault["what"]]
        threading.Timer(fault["delay"], os.kill, (pid, signum)).start()


def process_of(role: str) -> int:
    """Return the pid of `rank`, `launch` (its parent), `interpreter` (the warm one), `launcher`."""
    process = psutil.Process()
    chain = ["rank", "launch", "interpreter", "launcher"]
    return [process, *process.parents()][chain.index(role)].pid


def _fill(folder: Path) -> None:
    """Write a file until nothing more fits on the disk of a folder."""
    while not folder.exists():
        folder = folder.parent
    block = bytes(4096)
    with open(folder / "ballast", "wb", buffering=0) as out:
        try:
            while out.write(block):
                continue
        except OSError:
            return
