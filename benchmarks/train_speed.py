"""Rows and useful tokens a second of the starter, and of what it leaves out, in one run.

    python benchmarks/train_speed.py                 # 3 rounds, the alternatives in turn
    python benchmarks/train_speed.py --rounds 5 --steps 60
    python benchmarks/train_speed.py --only starter upper    # those whose names begin so

Every measurement trains on the sample ledger in processes of its own: one, and for what is ours as
many ranks as `kedro train` takes here. The first third of its steps warms up and does not count.
The first alternative is plain transformers.Trainer with PEFT.

MFU is the useful work over the rate of a large bf16 product here, measured in each process: a token
of a frozen base costs 4 operations a linear weight (forward, and backward to the activations) and
12 * length * width a layer for attention (forward once, backward twice; half of it where it is
causal). Adapters, padding and layers below the first adapter count as no work.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "account_tax/src")]

from account_tax.processes.ranks import end_stage  # noqa: E402

BATCH = 32
AS_THE_MODEL_SAYS = {"train.model.config": "null", "train.lora.dropout": "0.05"}
IN_EACH_STEP = ", those below in each step"
# What plain transformers.Trainer is given; all others are changes of the starter's parameters.
PLAIN: dict[str, dict[str, Any]] = {
    "transformers.Trainer + PEFT, fp32": {},
    "transformers.Trainer + PEFT, bf16": {"bf16": True},
    "transformers.Trainer + PEFT, bf16, through DeepSpeed": {
        "bf16": True,
        "deepspeed": {
            "train_micro_batch_size_per_gpu": "auto",
            "train_batch_size": "auto",
            "bf16": {"enabled": "auto"},
            "zero_optimization": {"stage": 0},
        },
    },
}
ALTERNATIVES: dict[str, dict[str, str]] = {
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
        """Return tokens/s, rows/s and a row's tokens."""
        seconds = _now() - self.since
        rows, tokens = (self.steps - self.warmup) * self.batch, int(self.tokens)
        return {
            "tokens_per_sec": tokens / seconds,
            "rows_per_sec": rows / seconds,
            "length": tokens / rows,
        }


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

    overrides = ALTERNATIVES.get(alternative, {})
    values = resolve(ROOT, list(overrides.items())).values
    splits, tokenizer, _ = prepare(values)
    clock = Clock(steps // 3, BATCH // int(os.environ.get("WORLD_SIZE", 1)))
    build = build_trainer
    if alternative in PLAIN:
        build = partial(build_plain_trainer, **{"bf16": False, **PLAIN[alternative]})
    with tempfile.TemporaryDirectory() as folder:
        trainer = build(values["train"], splits, tokenizer, steps, clock, Path(folder))
        if alternative.endswith(IN_EACH_STEP):
            trainer.remove_callback(trainer.frozen)
        start = time.perf_counter()
        trainer.train()
        found = clock.result() | {"seconds_before": clock.first - start}
        work = found["tokens_per_sec"] * operations_a_token(trainer.model, found["length"])
        return found | {"mfu": work / bf16_rate(2048)}


def operations_a_token(model: Any, length: float) -> float:
    """Return the useful operations of a token of a row so long, forward and backward."""
    from torch import nn

    config, layer = model.config, re.compile(r"\.layers?\.(\d+)\.")
    trained = [
        int(found[1])
        for name, weight in model.named_parameters()
        if weight.requires_grad and (found := layer.search(name))
    ]
    first = min(trained, default=0)
    weights = sum(
        module.in_features * module.out_features
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear)
        and "lora_" not in name
        and (found := layer.search(f"{name}."))
        and int(found[1]) >= first
    )
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    width *= config.num_attention_heads
    attention = 12 * length * width * (config.num_hidden_layers - first)
    return 4 * weights + attention / (1 if config.model_type == "bert" else 2)


def bf16_rate(size: int) -> float:
    """Return the device's rate for products of square bf16 matrices, operations a second."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    left, right = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in "ab")
    into = torch.empty_like(left)
    return 2 * size**3 / median_seconds(lambda: torch.mm(left, right, out=into))


def median_seconds(work: Any) -> float:
    """Return the median time of a call, seconds, after warming up."""
    for _ in range(5):
        work()
    found = []
    for _ in range(20):
        start = _now()
        work()
        found.append(_now() - start)
    return statistics.median(found)


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
    train: dict[str, Any],
    splits: Any,
    tokenizer: Any,
    steps: int,
    clock: Clock,
    folder: Path,
    **arguments: Any,
) -> Any:
    """Return transformers' Trainer with PEFT as its documentation has it: rows as they come.

    The weights are loaded in float32, which a base's own files may not be: a product in float16
    takes 70 times as long on a CPU.
    """
    import torch
    import transformers
    from peft import LoraConfig, get_peft_model

    from account_tax.model.classifier import resolve_base
    from account_tax.processes.ranks import join_as_one_rank

    if "deepspeed" in arguments:
        join_as_one_rank()

    class Counting(transformers.Trainer):
        def training_step(self, model: Any, inputs: Any, *rest: Any) -> Any:
            clock.count(inputs["attention_mask"])
            return super().training_step(model, inputs, *rest)

    labels = splits["train"].features["labels"].names
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        resolve_base(train["model"]["name"]).path, num_labels=len(labels), dtype=torch.float32
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
            dataloader_num_workers=train["training"]["dataloader_num_workers"],
            use_cpu=not cuda,
            **{key: STEPS_ALONE[key] for key in ("save_strategy", "report_to", "disable_tqdm")},
            **{"bf16": cuda, **arguments},
        ),
        train_dataset=splits["train"].select_columns(["input_ids", "attention_mask", "labels"]),
        data_collator=transformers.DataCollatorWithPadding(tokenizer),
    )


def measure(alternative: str, steps: int, **environment: str) -> dict[str, float]:
    """Train in processes of their own, with a changed environment, and return the speed."""
    command = [sys.executable, __file__, "--one", alternative, "--steps", str(steps)]
    ranks = [
        subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ | its)
        for its in rank_environments(alternative, environment)
    ]
    found = list[dict[str, float]]()
    for rank in ranks:
        said, _ = rank.communicate()
        line = next(x for x in said.splitlines() if x.startswith("RESULT "))
        found.append(json.loads(line.removeprefix("RESULT ")))
    rates = {key: sum(each[key] for each in found) for key in ("tokens_per_sec", "rows_per_sec")}
    return {key: statistics.fmean(each[key] for each in found) for key in found[0]} | rates


def rank_environments(alternative: str, environment: dict[str, str]) -> list[dict[str, str]]:
    """Return what each rank of an alternative finds in its environment; one finds nothing more."""
    from account_tax.parameters.batch import cpu_ranks, free_cores
    from account_tax.parameters.config import resolve
    from account_tax.processes.ranks import free_port

    overrides, cores = ALTERNATIVES.get(alternative), free_cores()
    if overrides is None:
        return [environment]
    values = resolve(ROOT, list(overrides.items())).values
    if (count := cpu_ranks(values["train"]["deepspeed"], cores)) == 1:
        return [environment]
    world = {
        **environment,
        "WORLD_SIZE": str(count),
        "OMP_NUM_THREADS": str(cores // count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(free_port()),
    }
    return [world | {"RANK": str(rank), "LOCAL_RANK": str(rank)} for rank in range(count)]


def main() -> None:
    """Measure in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=45)
    parser.add_argument("--only", nargs="*", default=[""])
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        print("RESULT " + json.dumps(measure_one(given.one, given.steps)), flush=True)
        end_stage()
        return
    chosen = [name for name in (*PLAIN, *ALTERNATIVES) if name.startswith(tuple(given.only))]
    speeds: dict[str, list[dict[str, float]]] = {name: [] for name in chosen}
    for _ in range(given.rounds):
        for name in chosen:
            speeds[name].append(measure(name, given.steps))
    print_table(speeds)


def print_table(speeds: dict[str, list[dict[str, float]]]) -> None:
    """Print the speeds as Markdown, each round against its first alternative."""
    print(
        "| alternative | rows/s, median (min-max) | useful tokens/s | MFU | ratio "
        "| seconds before the first step |"
    )
    print("|---|---|---|---|---|---|")
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
            f"| {tokens:,.0f} | {statistics.median(each['mfu'] for each in found):.0%} "
            f"| {ratio:.1f} "
            f"| {statistics.median(each['seconds_before'] for each in found):.1f} |"
        )


if __name__ == "__main__":
    main()
