"""The GPU benchmark's code, on tiny sizes: it has to run the first time a card is at hand."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent.parent

pytestmark = pytest.mark.integration


def test_every_case_of_a_size_trains_without_a_gpu(tmp_path):
    words = ["--rehearse", "--only", "rates", "0.6 B decoder", "--out", str(tmp_path)]
    subprocess.run([sys.executable, ROOT / "benchmarks/gpu.py", *words], check=True)

    parts = json.loads((tmp_path / "gpu.json").read_text())["parts"]
    cases = parts["0.6 B decoder"]
    assert parts["rates"]["bf16_tflops"] > 0
    assert not [case for case, found in cases.items() if "tokens_per_sec" not in found]
    of_nothing = hashlib.sha256().hexdigest()
    assert not [case for case, found in cases.items() if found["adapter_sha256"] == of_nothing]
    again = "ours, gradient checkpointing"  # recomputes the same numbers
    assert cases["ours, ZeRO 0"]["adapter_sha256"] == cases[again]["adapter_sha256"]


def test_without_a_gpu_the_benchmark_says_what_to_do(tmp_path):
    done = subprocess.run(
        [sys.executable, ROOT / "benchmarks/gpu.py", "--out", str(tmp_path)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, "--rehearse" in done.stdout) == (1, True)
