"""What a step of several ranks is made of: computing, communicating, waiting; and at 64 GPUs.

    python benchmarks/scale.py                  # ZeRO 0, 2 and 3 on 1 and 2 ranks, 3 rounds in turn
    python benchmarks/scale.py --rounds 1 --steps 9

Real DeepSpeed ranks, each with one thread, train the recipe `english` on the sample ledger, 32
rows a rank. Every call of torch.distributed is timed and waited for. It ends when the last rank has
come to it: its shortest time among the ranks is communication, what others took beyond that is
waiting, and the rest of a step is computing. (DeepSpeed 0.19.8 has a `comms_logger`, whose times
are sums of all calls before.)

A call's bytes are those of its tensor; on the wire of one rank are 2 (n-1)/n of them for an
all-reduce and (n-1)/n for the other two. With T bytes of trained and A bytes of all weights in the
precision that is sent, a step of one micro-batch should send, after Rajbhandari et al. 2020
(arXiv:1910.02054, section 7), where T stands for all weights:

    ZeRO 0   all-reduce T
    ZeRO 2   reduce-scatter T, all-gather T
    ZeRO 3   all-gather A twice, reduce-scatter T

The model for 8 nodes of 8 GPUs: a step lasts as long as its slowest rank computes, and then its
calls, none hidden behind computing, which is the worst case. How far ranks are apart comes from the
waiting of two: of normal values of one spread s the mean of two waits 0.56 s for the larger. All
the model assumes is printed with it.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "account_tax/src")]

from benchmarks.train_speed import Clock, build_trainer, prepare  # noqa: E402
from tests.ranks import launch_ranks  # noqa: E402

STAGES, WORLDS = (0, 2, 3), (1, 2)
# Of its tensors' bytes, what goes over a rank's wire in a ring of n: this times (n-1)/n.
PASSES = {
    "all_reduce": 2,
    "reduce": 1,
    "reduce_scatter_tensor": 1,
    "all_gather": 1,
    "all_gather_into_tensor": 1,
    "broadcast": 1,
}

# The model's ground. The step is that of docs/results.md, "On a GPU": bert-base size, 512 rows of
# 128 tokens, one H200, and its 0.3 and 110 million weights, sent in bfloat16.
GPU_STEP = 512 * 128 / 703_000
GPU_WEIGHTS = {"trained": 2 * 0.31e6, "all": 2 * 110e6}
GPU_LAYERS = 200  # tensors' groups that ZeRO 3 gathers one by one
NVLINK, NETWORK = 450e9, 50e9  # bytes a second of one GPU, one way: H200's data sheet, 400 Gbit/s
LATENCY = {"in a node": 20e-6, "between nodes": 50e-6}  # a call's, by order of magnitude


def be_a_rank(stage: int, steps: int, results: Path) -> None:
    """Train in this rank; rank 0 writes what a step was made of."""
    import torch
    from transformers import TrainerCallback

    from account_tax.parameters.config import resolve
    from account_tax.processes.ranks import end_stage

    torch.set_num_threads(1)
    values = resolve(ROOT, [("recipe", "english")]).values
    splits, tokenizer, _ = prepare(values)
    train = values["train"]
    train["deepspeed"] |= {
        "zero_optimization": {"stage": stage},
        "train_batch_size": None,
        "gradient_accumulation_steps": 1,
        "train_micro_batch_size_per_gpu": 32,
    }
    calls = time_calls()
    marks: list[tuple[float, int]] = []

    class Marks(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            marks.append((time.perf_counter(), len(calls)))

    with tempfile.TemporaryDirectory() as folder:
        trainer = build_trainer(train, splits, tokenizer, steps, Clock(0), Path(folder))
        trainer.add_callback(Marks())
        trainer.train()
        weights = _whole_weights(trainer.model)
        (start, first), (end, last) = marks[steps // 3 - 1], marks[-1]
        mine = {"calls": calls[first:last], "step": (end - start) / (steps - steps // 3)}
        everyone: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(everyone, mine)
        if os.environ["RANK"] == "0":
            found = {"ranks": everyone, "steps": steps - steps // 3, **weights}
            results.write_text(json.dumps(found))
    end_stage()


def time_calls() -> list[tuple[str, int, float]]:
    """Return the list that will have the kind, bytes and seconds of each call from now on."""
    from torch import distributed

    calls: list[tuple[str, int, float]] = []

    def timed(kind: str, call: Any) -> Any:
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            start = time.perf_counter()
            handle = call(*args, **kwargs)
            if handle is not None:
                handle.wait()
            sizes = map(_bytes_of, (*args, *kwargs.values()))
            calls.append((kind, max(sizes), time.perf_counter() - start))
            return handle

        return wrapper

    for kind in PASSES:
        setattr(distributed, kind, timed(kind, getattr(distributed, kind)))
    return calls


def _bytes_of(value: Any) -> int:
    if isinstance(value, list | tuple):
        return sum(map(_bytes_of, value))
    return value.numel() * value.element_size() if hasattr(value, "element_size") else 0


def _whole_weights(model: Any) -> dict[str, int]:
    """Return how many weights are trained, and all; under ZeRO 3 a rank holds a part of each."""
    sizes = [(getattr(p, "ds_numel", p.numel()), p.requires_grad) for p in model.parameters()]
    return {"trained": sum(n for n, trains in sizes if trains), "all": sum(n for n, _ in sizes)}


def launch(stage: int, world: int, steps: int) -> dict[str, Any]:
    """Train in ranks of their own and return what rank 0 wrote."""
    with tempfile.TemporaryDirectory() as folder:
        results = Path(folder, "results.json")
        words = (__file__, "--steps", str(steps), "--rank-of", str(stage), str(results))
        launch_ranks(world, Path(folder, "ranks.log"), *words)
        return json.loads(results.read_text())


def take_apart(found: dict[str, Any]) -> dict[str, float]:
    """Return a step's mean seconds, its parts, its calls, and the bytes on a rank's wire."""
    ranks, steps = found["ranks"], found["steps"]
    world = len(ranks)
    shares = {"communicating": 0.0, "waiting": 0.0, "calls": 0.0, "wire": 0.0}
    for same in zip(*(rank["calls"] for rank in ranks), strict=True):
        kind, size, _ = same[0]
        seconds = [each[2] for each in same]
        shares["communicating"] += min(seconds) / steps
        shares["waiting"] += (statistics.fmean(seconds) - min(seconds)) / steps
        shares["calls"] += 1 / steps
        shares["wire"] += size * PASSES[kind] * (world - 1) / world / steps
    step = statistics.fmean(rank["step"] for rank in ranks)
    computing = step - shares["communicating"] - shares["waiting"]
    return {"step": step, "computing": computing, **shares}


def expected_bytes(stage: int, world: int, trained: float, whole: float) -> float:
    """Return the bytes on a rank's wire in a step of one micro-batch, as the paper counts them.

    Args:
        stage: 0, 2 or 3.
        world: Ranks.
        trained: Bytes of the trained weights.
        whole: Bytes of all weights.
    """
    per_stage = {0: 2 * trained, 2: 2 * trained, 3: 2 * whole + trained}
    return per_stage[stage] * (world - 1) / world


def print_measured(rounds: dict[tuple[int, int], list[dict[str, Any]]]) -> None:
    """Print a table of what was measured, medians of the rounds."""
    print(
        "| ZeRO | ranks | step, ms (min-max) | computing | communicating | waiting | calls "
        "| MB on the wire | by the formula |\n|---|---|---|---|---|---|---|---|---|"
    )
    for (stage, world), runs in rounds.items():
        apart = [take_apart(run) for run in runs]
        at = {key: statistics.median(each[key] for each in apart) for key in apart[0]}
        steps = [1000 * each["step"] for each in apart]
        sent = {key: 2 * runs[0][key] for key in ("trained", "all")}  # bfloat16
        formula = expected_bytes(stage, world, sent["trained"], sent["all"])
        print(
            f"| {stage} | {world} | {1000 * at['step']:.0f} ({min(steps):.0f}-{max(steps):.0f}) "
            f"| {1000 * at['computing']:.0f} | {1000 * at['communicating']:.1f} "
            f"| {1000 * at['waiting']:.1f} | {at['calls']:.0f} | {at['wire'] / 1e6:.2f} "
            f"| {formula / 1e6:.2f} |"
        )


def print_model(spread: float) -> None:
    """Print the model's assumptions and what it gives for one GPU, a node and eight nodes."""
    print(
        f"\nAssumed for GPUs: {1000 * GPU_STEP:.0f} ms of computing a step of 512 x 128 tokens "
        f"(measured on one), a spread of {spread:.1%} among ranks as measured above, "
        f"{GPU_WEIGHTS['trained'] / 1e6:.1f} of {GPU_WEIGHTS['all'] / 1e6:.0f} MB of weights "
        f"trained, {GPU_LAYERS} gathered groups, {NVLINK / 1e9:.0f} GB/s in a node and "
        f"{NETWORK / 1e9:.0f} GB/s a GPU between nodes, "
        + ", ".join(f"{value * 1e6:.0f} us a call {where}" for where, value in LATENCY.items())
        + "; nothing hidden behind computing.\n\n"
        "| ZeRO | GPUs | computing, slowest of all, ms | communicating, ms | step, ms "
        "| tokens/s | of n times one |\n|---|---|---|---|---|---|---|"
    )
    for stage in STAGES:
        for world in (1, 8, 64):
            where = "in a node" if world <= 8 else "between nodes"
            wire = expected_bytes(stage, world, GPU_WEIGHTS["trained"], GPU_WEIGHTS["all"])
            calls = {0: 1, 2: 2, 3: 2 * GPU_LAYERS + 1}[stage] if world > 1 else 0
            talk = wire / (NVLINK if world <= 8 else NETWORK) + calls * LATENCY[where]
            # The expected largest of n normal values lies about this many deviations up.
            slowest = GPU_STEP * (1 + spread * math.sqrt(2 * math.log(world)))
            step = slowest + talk
            print(
                f"| {stage} | {world} | {1000 * slowest:.1f} | {1000 * talk:.2f} "
                f"| {1000 * step:.1f} | {world * 512 * 128 / step:,.0f} | {GPU_STEP / step:.0%} |"
            )


def main() -> None:
    """Measure in turn and print both tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=45)
    parser.add_argument("--rank-of", nargs=2, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.rank_of:
        be_a_rank(int(given.rank_of[0]), given.steps, Path(given.rank_of[1]))
        return
    rounds: dict[tuple[int, int], list[dict[str, Any]]] = {
        (stage, world): [] for stage in STAGES for world in WORLDS
    }
    for _ in range(given.rounds):
        for (stage, world), runs in rounds.items():
            runs.append(launch(stage, world, given.steps))
    print_measured(rounds)
    pairs = [take_apart(run) for run in rounds[0, 2]]
    print_model(statistics.median(at["waiting"] / 0.56 / at["computing"] for at in pairs))


if __name__ == "__main__":
    main()
