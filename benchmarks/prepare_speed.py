"""Rows a second and memory of the prepare stage, from a CSV file to tokenized splits.

    python benchmarks/prepare_speed.py                       # 100,000 and 1,000,000 rows
    python benchmarks/prepare_speed.py --rows 5000000 --recipe english

The ledger is the sample's lines with a number behind each, so that no two are one text. Every
measurement is a process of its own, which runs the stage's pipeline with a recipe's parameters.
Rows/s leave out the fitting of n-grams, which is training. Peaks are each stage's own.
"""

from __future__ import annotations

import argparse
import gc
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import pandas as pd

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "account_tax/src")]


def write_ledger(path: Path, rows: int) -> None:
    """Write the sample's lines over and over, each with a number behind it."""
    from account_tax.ledger.sample import sample_csv_bytes

    sample = path.with_name("sample.csv")
    sample.write_bytes(sample_csv_bytes())
    lines = pd.read_csv(sample, dtype=str)[["text", "label"]].to_numpy().tolist()
    with path.open("w", encoding="utf-8") as file:
        file.write("text,label\n")
        for number in range(rows):
            text, label = lines[number % len(lines)]
            file.write(f'"{text} {number}",{label}\n')


def prepare(path: Path, recipe: str) -> dict[str, Any]:
    """Run the stage's pipeline on a ledger and return what it took."""
    from account_tax.parameters.config import resolve
    from account_tax.pipelines.prepare.pipeline import create_pipeline

    gc.freeze()  # as where the stage is forked
    values = resolve(ROOT, [("recipe", recipe), ("data.source", str(path))]).values
    imported = peak_mb()
    made: dict[str, Any] = {
        "params:data": values["data"],
        "params:data.max_length": values["data"]["max_length"],
        "params:train": values["train"],
        "params:train.model": values["train"]["model"],
        "params:train.ngrams": values["train"]["ngrams"],
    }
    seconds, peaks = {}, {}
    for node in create_pipeline().nodes:
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        start = time.perf_counter()
        made |= node.run({name: made[name] for name in node.inputs})
        name = node.name.removesuffix("_node")
        seconds[name], peaks[name] = round(time.perf_counter() - start, 2), peak_mb()
    return {"seconds": seconds, "peaks": peaks, "imports_mb": imported}


def peak_mb() -> int:
    """Return the most memory this process has held, pages of mapped files among it."""
    (line,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(line) >> 10


def measure(rows: int, recipe: str, scratch: Path) -> dict[str, Any]:
    """Return what a process of its own took for so many rows."""
    path = scratch / f"{rows}.csv"
    write_ledger(path, rows)
    command = [sys.executable, __file__, "--recipe", recipe, "--only", str(path)]
    said = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
    return json.loads(said.splitlines()[-1])


def main() -> None:
    """Print a table, a line for each size."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, nargs="+", default=[100_000, 1_000_000])
    parser.add_argument("--only", type=Path, help="prepare this ledger and print what it took")
    parser.add_argument("--recipe", default="starter")
    options = parser.parse_args()
    if options.only:
        print(json.dumps(prepare(options.only, options.recipe)))
        return
    with tempfile.TemporaryDirectory() as scratch:
        measured = {rows: measure(rows, options.recipe, Path(scratch)) for rows in options.rows}
    stages = list(next(iter(measured.values()))["seconds"])
    heads = " | ".join(f"{stage}: s, peak MB" for stage in stages)
    print(f"| rows | rows/s | imports, MB | {heads} |")
    print("|---" * (3 + len(stages)) + "|")
    for rows, found in measured.items():
        seconds = found["seconds"].values()
        counted = sum(seconds) - found["seconds"]["fit_ngrams"]
        cells = [f"{rows:,}", f"{rows / counted:,.0f}"]
        cells += [f"{found['imports_mb']:,}"]
        cells += [f"{took}, {found['peaks'][stage]:,}" for stage, took in found["seconds"].items()]
        print(f"| {' | '.join(cells)} |")


if __name__ == "__main__":
    main()
