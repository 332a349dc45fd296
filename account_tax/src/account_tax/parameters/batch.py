"""How the rows of a step are shared out among ranks and micro-batches.

Of DeepSpeed's three sizes two may be left out, and follow from the others as DeepSpeed has it
(0.19.8, runtime/config.py). With `train_batch_size` a step has the same rows on any machine.
"""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Set
from typing import Any

# With fewer rows a step's fixed costs outweigh what a CPU rank more would do (docs/results.md).
ROWS_A_CPU_RANK = 16

# What `num_train_epochs: auto` means: with fewer steps a small ledger is half learnt, and more
# epochs than twelve were no better (docs/results.md).
EPOCHS, MOST_EPOCHS, ENOUGH_STEPS = 6, 12, 180

SIZES = ("train_batch_size", "train_micro_batch_size_per_gpu", "gradient_accumulation_steps")
PLACE = "train.deepspeed."

Block = Mapping[str, Any]
EMPTY: Mapping[str, str] = {}


def sizes_that_follow(given: Set[str]) -> list[str]:
    """Return the sizes that what sets these ones leaves open, whatever a lower layer says."""
    total, micro, steps = SIZES
    if total in given:
        return [steps]
    return [total] if {micro, steps} <= given else []


def share_batch(block: Block, ranks: int) -> tuple[int, int]:
    """Return the rows a rank computes at once, and how many times it does so in a step.

    Args:
        block: The `train.deepspeed` section.
        ranks: Those that share a step.
    """
    total, micro, steps = _sizes(block)
    if micro is None:
        steps = steps or 1
        return (total or 0) // (steps * ranks), steps
    if steps is None:
        steps = total // (micro * ranks) if total else 1
    return micro, steps


def count_epochs(given: float | str, rows: int, rows_a_step: int) -> float:
    """Return the passes over a split; auto: six, or up to twelve where fewer are few steps."""
    if given != "auto":
        return float(given)
    enough = math.ceil(ENOUGH_STEPS / math.ceil(rows / rows_a_step))
    return float(min(max(EPOCHS, enough), MOST_EPOCHS))


def batch_faults(block: Block | None, ranks: int, sources: Mapping[str, str] = EMPTY) -> list[str]:
    """Return what is wrong with the batch settings for this many ranks; usually nothing.

    Args:
        block: The `train.deepspeed` section.
        ranks: Those that share a step.
        sources: Where each dotted key was set.
    """
    if block is None:  # it has a fault of its own
        return []
    total, micro, steps = _sizes(block)
    if total is None:
        text = "null, and train_batch_size as well. Set one of them"
        return [f"{PLACE}{SIZES[1]} = null: {text}."] if micro is None else []
    if math.prod((*share_batch(block, ranks), ranks)) == total:
        return []
    unit = math.prod((micro or 1, steps or 1, ranks))
    given = [
        f"{value} ({', '.join(filter(None, (size, sources.get(PLACE + size))))})"
        for size, value in zip(SIZES[1:], (micro, steps), strict=True)
        if value
    ]
    factors = " x ".join([*given, f"{ranks} (ranks, num_gpus)"])
    fitting = {unit} if micro and steps else {total // unit * unit, (total // unit + 1) * unit}
    wanted = " or ".join(str(each) for each in sorted(fitting) if each)
    return [
        f"{PLACE}{SIZES[0]} = {total}: can't be shared by {factors}. Expected {wanted}, or other "
        "factors."
    ]


def cpu_ranks(block: Block | None, cores: int) -> int:
    """Return how many ranks these cores are worth, a thread or more each.

    A core has no other to wait for then. It takes a step whose rows are fixed, so that ranks do not
    add to them.
    """
    total, micro, steps = _sizes(block or {})
    if not total or micro:
        return 1
    rows = total // (steps or 1)
    fitting = range(1, min(cores, rows // ROWS_A_CPU_RANK) + 1)
    return max((ranks for ranks in fitting if rows % ranks == 0), default=1)


def free_cores() -> int:
    """Return the cores that ranks may share; one where threads were handed out already."""
    return 1 if "OMP_NUM_THREADS" in os.environ else len(os.sched_getaffinity(0))


def _sizes(block: Block) -> list[int | None]:
    return [block.get(size) for size in SIZES]
