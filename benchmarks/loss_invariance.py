"""Loss and gradient norm of every step, for one global batch split in every way.

    python benchmarks/loss_invariance.py            # prints the table of docs/results.md
    python benchmarks/loss_invariance.py --quick    # LoRA on and off only

Real DeepSpeed ranks (gloo on a machine without a GPU) train a two-layer BERT on 37 rows with a
global batch of 16, so every third step is a partial one. Each world size is one launch.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "account_tax/src")]

from tests.ranks import train_cases  # noqa: E402

# micro-batch, accumulation, ranks: global batch 16 each
SPLITS = [(16, 1, 1), (4, 4, 1), (8, 1, 2), (2, 4, 2)]
STAGES = (0, 1, 2, 3)
VARIANTS = {
    "lora": {},
    "full": {"lora.enable": False},
    "lora, balanced weights": {"loss.class_weights": "balanced"},
    "lora, mean pooling": {"model.pooling": "mean"},
    "lora, grouped by length": {"training.train_sampling_strategy": "group_by_length"},
}
ALL_STAGES = ("lora", "full")
STEPS = 6


def cases(quick: bool) -> list[dict[str, Any]]:
    """Return the table's cases: split x variant, and ZeRO stage where the variant has all."""
    return [
        {
            "split": split,
            "stage": stage,
            "variant": variant,
            "changes": {**_changes(split, stage), **VARIANTS[variant]},
        }
        for variant in (ALL_STAGES if quick else VARIANTS)
        for stage in (STAGES if variant in ALL_STAGES else (0,))
        for split in SPLITS
    ]


def _changes(split: tuple[int, int, int], stage: int) -> dict[str, Any]:
    return {
        "deepspeed.train_micro_batch_size_per_gpu": split[0],
        "deepspeed.gradient_accumulation_steps": split[1],
        "deepspeed.zero_optimization": {
            "stage": stage,
            "stage3_gather_16bit_weights_on_model_save": True,
        },
        "training.max_steps": STEPS,
        "training.learning_rate": 1.0e-2,
        "training.eval_strategy": "no",
        "training.save_strategy": "no",
        "training.load_best_model_at_end": False,
    }


def measure(
    work: Path, quick: bool = False, worlds: tuple[int, ...] = (1, 2)
) -> list[dict[str, Any]]:
    """Launch the world sizes; return every case with its loss, grad_norm and eval_loss."""
    results = []
    for world_size in worlds:
        mine = [case for case in cases(quick) if case["split"][2] == world_size]
        results += train_cases(mine, world_size, work, {"train": 37, "validation": 11})
    for case in results:
        steps = [entry for entry in case["history"] if "loss" in entry]
        case["loss"] = [entry["loss"] for entry in steps]
        case["grad_norm"] = [entry["grad_norm"] for entry in steps]
        case["eval_loss"] = case["metrics"]["eval/loss"]
    return sorted(results, key=lambda case: (list(VARIANTS).index(case["variant"]), case["stage"]))


def largest_difference(curve: list[float], reference: list[float]) -> float:
    """Return the largest relative difference of two curves, step by step."""
    return max(
        abs(value - expected) / abs(expected)
        for value, expected in zip(curve, reference, strict=True)
    )


def largest(curves: list[dict[str, Any]]) -> dict[str, float]:
    """Return the largest relative differences of all cases, each against its reference."""
    references = _references(curves)
    return {
        key: max(largest_difference(c[key], references[c["variant"]][key]) for c in curves)
        for key in ("loss", "grad_norm")
    }


def _references(curves: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {c["variant"]: c for c in curves if c["split"] == [16, 1, 1] and c["stage"] == 0}


def table(curves: list[dict[str, Any]]) -> str:
    """Return the Markdown table, each case against 16 x 1 x 1 at ZeRO 0 of its variant."""
    reference = _references(curves)
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
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as work:
        print(table(measure(Path(work), given.quick)))


if __name__ == "__main__":
    main()
