"""Loss and gradient norm of every step, for one global batch split in every way.

    python benchmarks/loss_invariance.py            # prints the table of docs/results.md
    python benchmarks/loss_invariance.py --quick    # one table row a ZeRO stage

Real DeepSpeed ranks (gloo on a machine without a GPU) train a two-layer BERT on 37 rows with a
global batch of 16, so the third step is a partial one. Each world size is one launch.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# micro-batch, accumulation, ranks: global batch 16 each
SPLITS = [(16, 1, 1), (4, 4, 1), (8, 1, 2), (2, 4, 2)]
STAGES = (0, 1, 2, 3)
STEPS = 6


def cases(quick: bool) -> list[dict]:
    """Return the table's cases: split x ZeRO stage x LoRA on/off x class weights."""
    variants = [("lora", {}), ("full", {"lora.enable": False})]
    if not quick:
        variants.append(("lora, balanced weights", {"loss.class_weights": "balanced"}))
        variants.append(("lora, mean pooling", {"model.pooling": "mean"}))
    return [
        {"split": split, "stage": stage, "variant": name, "changes": changes}
        for stage in STAGES
        for name, changes in variants
        for split in SPLITS
        if not (stage and name in ("lora, balanced weights", "lora, mean pooling"))
    ]


def run_cases(work: Path, world_size: int, quick: bool) -> None:
    """One rank: train every case of this world size; rank 0 writes the curves."""
    import torch
    from transformers import AutoTokenizer

    sys.path.insert(0, str(ROOT / "tests"))
    from account_tax.pipelines.train.training_core import run_training_pipeline
    from conftest import make_splits, train_params

    torch.set_num_threads(1)
    base = work / "base"
    splits = make_splits({"train": 37, "validation": 11})
    curves = []
    for number, case in enumerate(cases(quick)):
        micro, accumulation, ranks = case["split"]
        if ranks != world_size:
            continue
        changes = {
            "deepspeed.train_micro_batch_size_per_gpu": micro,
            "deepspeed.gradient_accumulation_steps": accumulation,
            "deepspeed.zero_optimization": {
                "stage": case["stage"],
                "stage3_gather_16bit_weights_on_model_save": True,
            },
            "training.max_steps": STEPS,
            "training.learning_rate": 1.0e-2,
            "training.eval_strategy": "no",
            "training.save_strategy": "no",
            "training.load_best_model_at_end": False,
            "training.disable_tqdm": True,
            **case["changes"],
        }
        folder = work / f"case{number}"
        params = train_params(base, **changes)
        metrics = run_training_pipeline(
            splits, AutoTokenizer.from_pretrained(base), params, str(folder)
        )
        if os.environ["RANK"] == "0":
            history = json.loads((folder / "log_history.json").read_text())
            steps = [entry for entry in history if "loss" in entry]
            curves.append(
                case
                | {"loss": [entry["loss"] for entry in steps]}
                | {"grad_norm": [entry["grad_norm"] for entry in steps]}
                | {"eval_loss": metrics["eval/loss"]}
            )
    if os.environ["RANK"] == "0":
        (work / f"curves{world_size}.json").write_text(json.dumps(curves))


def measure(work: Path, quick: bool = False) -> list[dict]:
    """Launch both world sizes and return every case with its curves."""
    sys.path.insert(0, str(ROOT / "tests"))
    from conftest import make_tiny_base

    make_tiny_base(work / "base")
    curves: list[dict] = []
    for world_size in (1, 2):
        command = [
            *(sys.executable, "-m", "deepspeed.launcher.runner"),
            *(f"--num_gpus={world_size}", "--no_local_rank", f"--master_port={29610 + world_size}"),
            *(__file__, "--rank-of", str(world_size), "--work", str(work)),
            *(["--quick"] if quick else []),
        ]
        environment = os.environ | {
            "PYTHONPATH": str(ROOT / "account_tax/src"),
            "OMP_NUM_THREADS": "1",
            "HF_HUB_OFFLINE": "1",
        }
        with (work / f"ranks{world_size}.log").open("w") as log:
            done = subprocess.run(command, env=environment, stdout=log, stderr=log, check=False)
        result = work / f"curves{world_size}.json"
        if done.returncode or not result.exists():
            tail = (work / f"ranks{world_size}.log").read_text()[-3000:]
            raise RuntimeError(f"{world_size} ranks ended with {done.returncode}:\n{tail}")
        curves += json.loads(result.read_text())
    return curves


def largest_difference(curve: list[float], reference: list[float]) -> float:
    """Return the largest relative difference of two curves, step by step."""
    return max(
        abs(value - expected) / abs(expected)
        for value, expected in zip(curve, reference, strict=True)
    )


def table(curves: list[dict]) -> str:
    """Return the Markdown table, each case against 16 x 1 x 1 at ZeRO 0 of its variant."""
    reference = {c["variant"]: c for c in curves if c["split"] == [16, 1, 1] and c["stage"] == 0}
    lines = [
        "| variant | ZeRO | micro x accumulation x ranks | loss, step 1 | grad norm, step 1 "
        "| largest relative difference: loss | grad norm | eval loss |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case in curves:
        expected = reference[case["variant"]]
        lines.append(
            f"| {case['variant']} | {case['stage']} | {' x '.join(map(str, case['split']))} "
            f"| {case['loss'][0]:.7f} | {case['grad_norm'][0]:.7f} "
            f"| {largest_difference(case['loss'], expected['loss']):.1e} "
            f"| {largest_difference(case['grad_norm'], expected['grad_norm']):.1e} "
            f"| {case['eval_loss']:.7f} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure and print, or be one rank of the measurement."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--rank-of", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.rank_of:
        run_cases(given.work, given.rank_of, given.quick)
        return
    with tempfile.TemporaryDirectory() as work:
        print(table(measure(Path(work), given.quick)))


if __name__ == "__main__":
    main()
