"""Training in real DeepSpeed ranks: many cases in one launch, for tests and benchmarks.

As a module it launches; as a script it is one rank of what was launched.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def train_cases(
    cases: list[dict[str, Any]], world_size: int, work: Path, rows: dict[str, int]
) -> list[dict[str, Any]]:
    """Train every case and return it with its metrics, its history and its adapter's folder.

    Args:
        cases: Each with `changes` for `conftest.train_params`; one with `resume`, a pair (number of
            an earlier case, step), begins with what that one had saved until then; one with
            `family` trains that base of tests/bases.py, not the tiny BERT; one with `whole` leaves
            no layer out.
        world_size: Ranks.
        work: Scratch folder.
        rows: Rows a split.
    """
    from tests.bases import make_base
    from tests.conftest import make_tiny_base

    make_tiny_base(work / "base")
    for family in {case["family"] for case in cases if "family" in case}:
        make_base(work / family, family)
    order, results = work / f"cases{world_size}.json", work / f"results{world_size}.json"
    order.write_text(json.dumps({"cases": cases, "rows": rows, "results": str(results)}))
    launch_ranks(world_size, work / f"ranks{world_size}.log", __file__, str(order))
    if not results.exists():
        raise RuntimeError(f"{world_size} ranks left no results in {results}")
    return json.loads(results.read_text())


def launch_ranks(world_size: int, log: Path, *words: str) -> None:
    """Run a script in ranks of one thread each, by deepspeed's launcher; raise if one fails.

    Args:
        world_size: Ranks.
        log: Takes their output.
        words: The script and its arguments.
    """
    from account_tax.processes.ranks import free_port

    command = [
        *(sys.executable, "-m", "deepspeed.launcher.runner", f"--num_gpus={world_size}"),
        *("--no_local_rank", f"--master_port={free_port()}", *words),
    ]
    places = [str(ROOT / "account_tax/src"), str(ROOT), *sys.path, os.environ.get("PYTHONPATH")]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join(filter(None, places)),
        "OMP_NUM_THREADS": "1",
        "HF_HUB_OFFLINE": "1",
    }
    with log.open("w") as output:
        status = subprocess.run(
            command, env=environment, stdout=output, stderr=output, check=False
        ).returncode
    if status:
        raise RuntimeError(f"{world_size} ranks ended with {status}:\n{log.read_text()[-4000:]}")


def take_over(earlier: Path, folder: Path, step: int) -> None:
    """Leave in a folder what an interruption after a step's checkpoint would have left."""
    from account_tax.storage.checkpoints import ATTEMPT_FILE, list_checkpoints, step_of
    from account_tax.storage.files import write_json

    for checkpoint in list_checkpoints(earlier / "checkpoints"):
        if step_of(checkpoint) <= step:
            shutil.copytree(checkpoint, folder / "checkpoints" / checkpoint.name)
    write_json(folder / "checkpoints" / ATTEMPT_FILE, {"resume_from": f"checkpoint-{step}"})


def main() -> None:
    """Be one rank: train the cases of the order; rank 0 writes the results."""
    import torch
    from transformers import TrainerCallback
    from transformers.integrations.deepspeed import unset_hf_deepspeed_config

    from account_tax.model.classifier import load_tokenizer, resolve_base
    from account_tax.pipelines.train.frozen import FrozenLayers
    from account_tax.pipelines.train.training_core import run_training_pipeline
    from account_tax.processes.ranks import end_stage
    from tests.conftest import make_splits, train_params

    torch.set_num_threads(1)
    leave_out, keep_all = FrozenLayers.on_train_begin, TrainerCallback.on_train_begin
    order = Path(sys.argv[1])
    given = json.loads(order.read_text())
    results = []
    for number, case in enumerate(given["cases"]):
        folder = order.parent / f"{order.stem}-{number}"
        base = order.parent / case.get("family", "base")
        params = train_params(base, **{"training.disable_tqdm": True, **case["changes"]})
        tokenizer = load_tokenizer(resolve_base(str(base)))
        if "resume" in case and os.environ["RANK"] == "0":
            take_over(order.parent / f"{order.stem}-{case['resume'][0]}", folder, case["resume"][1])
        FrozenLayers.on_train_begin = keep_all if "whole" in case else leave_out
        torch.distributed.is_initialized() and torch.distributed.barrier()
        metrics = run_training_pipeline(make_splits(given["rows"]), tokenizer, params, str(folder))
        unset_hf_deepspeed_config()  # or the next model would be built under this case's ZeRO-3
        if os.environ["RANK"] == "0":
            history = json.loads((folder / "log_history.json").read_text())
            results.append(
                case | {"metrics": metrics, "history": history, "adapter": str(folder / "adapter")}
            )
    if os.environ["RANK"] == "0":
        Path(given["results"]).write_text(json.dumps(results))
    end_stage()


if __name__ == "__main__":
    main()
