"""Rows and useful tokens a second of the starter, and of what it leaves out, in one run.

    python benchmarks/train_speed.py                 # 3 rounds, the alternatives in turn
    python benchmarks/train_speed.py --rounds 5 --steps 60
    python benchmarks/train_speed.py --only starter upper    # those whose names begin so

Every measurement is a process of its own that trains on the sample ledger; the first third of its
steps warms up and does not count. The first alternative is plain transformers.Trainer with PEFT.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "account_tax/src")]

BATCH = 32
AS_THE_MODEL_SAYS = {"train.model.config": "null", "train.lora.dropout": "0.05"}
IN_EACH_STEP = ", those below in each step"
ALTERNATIVES: dict[str, dict[str, str] | None] = {
    "transformers.Trainer + PEFT, fp32": None,
    "ours, fp32, dropout, SDPA": {"precision": "fp32", **AS_THE_MODEL_SAYS},
    "ours, bf16, dropout, SDPA": {"precision": "bf16", **AS_THE_MODEL_SAYS},
    "ours, bf16, no dropout, SDPA": {"train.model.config": "{attn_implementation: sdpa}"},
    "starter (bf16, no dropout, plain attention)": {},
    **{
        f"upper {layers} of 12 layers{computed}": {
            "train.lora.layers_to_transform": ",".join(map(str, range(12 - layers, 12))),
            "train.lora.target_modules": "query,key,value,dense",
        }
        for layers in (6, 4)
        for computed in (IN_EACH_STEP, ", those below computed once")
    },
}


class Clock:
    """Counts useful tokens and seconds of the steps after the warm-up."""

    def __init__(self, warmup: int, batch: int = BATCH):
        self.warmup, self.batch, self.steps = warmup, batch, 0
        self.tokens: Any = 0  # a sum on the device: nothing waits for it
        self.first = self.since = 0.0

    def count(self, attention_mask: Any) -> None:
        """Take one micro-batch; the call comes before its forward pass."""
        if self.steps == 0:
            self.first = time.perf_counter()
        if self.steps == self.warmup:
            self.since, self.tokens = _now(), 0
        self.steps += 1
        self.tokens = self.tokens + attention_mask.sum()

    def result(self) -> dict[str, float]:
        """Return tokens/s and rows/s."""
        seconds = _now() - self.since
        rows = (self.steps - self.warmup) * self.batch
        return {"tokens_per_sec": int(self.tokens) / seconds, "rows_per_sec": rows / seconds}


def _now() -> float:
    """Return the time when all that was asked of the device is done, seconds."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def prepare(values: dict[str, Any]) -> tuple[Any, Any, list[str]]:
    """Return the sample's tokenized splits, the tokenizer and the labels."""
    from account_tax.ledger.reading import read_ledger
    from account_tax.ledger.splitting import split_ledger
    from account_tax.ledger.tokens import load_base_tokenizer, tokenize_splits

    data = values["data"]
    ledger = read_ledger(data)
    splits, labels = split_ledger(ledger, data)
    tokenizer = load_base_tokenizer(values["train"]["model"], labels, data["max_length"])
    texts = ledger.with_texts(splits)
    return tokenize_splits(texts, labels, tokenizer, data["max_length"]), tokenizer, labels


def measure_one(alternative: str, steps: int) -> dict[str, float]:
    """Train in this process and return the speed."""
    from account_tax.parameters.config import resolve

    overrides = ALTERNATIVES[alternative]
    values = resolve(ROOT, list((overrides or {}).items())).values
    splits, tokenizer, _ = prepare(values)
    clock = Clock(steps // 3)
    build = build_plain_trainer if overrides is None else build_trainer
    with tempfile.TemporaryDirectory() as folder:
        trainer = build(values["train"], splits, tokenizer, steps, clock, Path(folder))
        if alternative.endswith(IN_EACH_STEP):
            trainer.remove_callback(trainer.frozen)
        start = time.perf_counter()
        trainer.train()
        return {**clock.result(), "seconds_before": clock.first - start}


# Neither evaluates nor saves: steps alone are measured.
STEPS_ALONE = {
    "eval_strategy": "no",
    "save_strategy": "no",
    "load_best_model_at_end": False,
    "report_to": [],
    "disable_tqdm": True,
}


def build_trainer(
    train: dict[str, Any], splits: Any, tokenizer: Any, steps: int, clock: Clock, folder: Path
) -> Any:
    """Return the project's trainer of a `train` section; it stops after so many steps.

    By its plan it would go on for long, so that what is done once for all epochs is done.
    """
    from transformers import TrainerCallback

    from account_tax.pipelines.train import training_core as core
    from account_tax.processes.ranks import join_as_one_rank

    class Stop(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            control.should_training_stop = state.global_step >= steps

    train["training"] |= {"max_steps": 1000 * steps, **STEPS_ALONE}
    labels = splits["train"].features["labels"].names
    join_as_one_rank()
    checkpointing = train["training"].get("gradient_checkpointing", False)
    model = core.instantiate_model(
        {**train["model"], "labels": labels, "gradient_checkpointing": checkpointing}, tokenizer
    )
    model = core.apply_lora_adapters(model, train["lora"])
    arguments = core.build_training_arguments(train, str(folder))
    trainer = core._build_trainer(
        model, tokenizer, arguments, splits, train, Path(arguments.output_dir or folder)
    )
    trainer.speed.count = clock.count
    trainer.add_callback(Stop())
    return trainer


def build_plain_trainer(
    train: dict[str, Any], splits: Any, tokenizer: Any, steps: int, clock: Clock, folder: Path
) -> Any:
    """Return transformers' Trainer with PEFT as its documentation has it: rows as they come."""
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model

    from account_tax.model.classifier import resolve_base

    class Counting(transformers.Trainer):
        def training_step(self, model: Any, inputs: Any, *rest: Any) -> Any:
            clock.count(inputs["attention_mask"])
            return super().training_step(model, inputs, *rest)

    labels = splits["train"].features["labels"].names
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        resolve_base(train["model"]["name"]).path, num_labels=len(labels)
    )
    model.config.pad_token_id = tokenizer.pad_token_id
    lora = LoraConfig(
        r=train["lora"]["r"],
        lora_alpha=train["lora"]["alpha"],
        target_modules=train["lora"]["target_modules"],
        lora_dropout=0.05,
        task_type="SEQ_CLS",
    )
    cuda = torch.cuda.is_available()
    return Counting(
        model=get_peft_model(model, lora),
        args=transformers.TrainingArguments(
            output_dir=str(folder),
            per_device_train_batch_size=clock.batch,
            max_steps=steps,
            bf16=cuda,
            dataloader_num_workers=train["training"]["dataloader_num_workers"],
            use_cpu=not cuda,
            **{key: STEPS_ALONE[key] for key in ("save_strategy", "report_to", "disable_tqdm")},
        ),
        train_dataset=splits["train"].select_columns(["input_ids", "attention_mask", "labels"]),
        data_collator=transformers.DataCollatorWithPadding(tokenizer),
    )


def measure(alternative: str, steps: int, **environment: str) -> dict[str, float]:
    """Train in a process of its own, with a changed environment, and return the speed."""
    command = [sys.executable, __file__, "--one", alternative, "--steps", str(steps)]
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env=os.environ | environment
    )
    line = next(x for x in done.stdout.splitlines() if x.startswith("RESULT "))
    return json.loads(line.removeprefix("RESULT "))


def main() -> None:
    """Measure in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=45)
    parser.add_argument("--only", nargs="*", default=[""])
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print("RESULT " + json.dumps(measure_one(given.one, given.steps)))
        return
    chosen = [name for name in ALTERNATIVES if name.startswith(tuple(given.only))]
    speeds: dict[str, list[dict[str, float]]] = {name: [] for name in chosen}
    for _ in range(given.rounds):
        for name in chosen:
            speeds[name].append(measure(name, given.steps))
    print_table(speeds)


def print_table(speeds: dict[str, list[dict[str, float]]]) -> None:
    """Print the speeds as Markdown, each round against its first alternative."""
    print(
        "| alternative | rows/s, median (min-max) | useful tokens/s | ratio "
        "| seconds before the first step |"
    )
    print("|---|---|---|---|---|")
    reference = next(iter(speeds.values()))
    for name, found in speeds.items():
        rows = [each["rows_per_sec"] for each in found]
        tokens = statistics.median(each["tokens_per_sec"] for each in found)
        ratio = statistics.median(
            mine["tokens_per_sec"] / other["tokens_per_sec"]
            for mine, other in zip(found, reference, strict=True)
        )
        low, high = min(rows), max(rows)
        print(
            f"| {name} | {statistics.median(rows):.0f} ({low:.0f}-{high:.0f}) "
            f"| {tokens:,.0f} | {ratio:.1f} "
            f"| {statistics.median(each['seconds_before'] for each in found):.1f} |"
        )


if __name__ == "__main__":
    main()
