"""What goes wrong for a user, provoked for real: the message, the exit status, what is left."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from itertools import permutations
from pathlib import Path

import pytest
from mlflow.entities import Run

from tests.conftest import WORDS

from .conftest import (
    Finished,
    Project,
    kedro_words,
    mlflow_command,
    write_ledger,
)
from .launched import LONG, STARTED_IN, Launched, override

pytestmark = pytest.mark.integration

TAG = "account_tax.refused"


@pytest.fixture(scope="module")
def project(new_project) -> Project:
    """One copy for the file: refusals leave nothing in it, and prepared data is used again."""
    return new_project()


# --- refused before anything started --------------------------------------------------------------


@dataclass(frozen=True)
class Refusal:
    """Parameters that can't be used, and what the message has to say of each."""

    given: list[str]
    said: list[str]
    ledger: bytes | None = None  # in place of the good one


PAIRS = list(permutations(WORDS, 2))[:40]  # numbers are all the same to the tiny base
ROWS = [f"lunch {one} {two},{'meals' if one < two else 'travel'}" for one, two in PAIRS]


def csv(*lines: str) -> bytes:
    return "\n".join(["text,label", *lines, ""]).encode()


REFUSALS = {
    "empty file, base not to be had": Refusal(
        ["model=nobody/nothing-of-this-name"],
        [
            "ledger.csv (--data): the file is empty.",
            "train.model.name = nobody/nothing-of-this-name (--model): not a folder, "
            "not in the local cache",
            "hf download nobody/nothing-of-this-name",
        ],
        b"",
    ),
    "no known encoding, target_modules of another model": Refusal(
        ["train.lora.target_modules=q_proj,v_proj"],
        [
            "ledger.csv (--data): its text is neither UTF-8, UTF-16, CP949 nor CP1252. Set "
            "data.encoding",
            "train.lora.target_modules = ['q_proj', 'v_proj'] (--train.lora.target_modules): ",
            "no layer for it is called q_proj. There are: dense, key, query, value.",
        ],
        b"text,label\nlunch,\xc3(\x81\x8d\n",
    ),
    "other columns, batch sizes that contradict": Refusal(
        ["train.deepspeed.train_batch_size=7"],
        [
            "expected the columns ['label', 'text'], found ['account', 'text']. "
            "Rename the column or set data.label_column.",
            "train.deepspeed.train_batch_size = 7 (--train.deepspeed.train_batch_size): "
            "can't be shared by 8 (train_micro_batch_size_per_gpu, --micro_batch_size) x 1 "
            "(gradient_accumulation_steps, --grad_accum) x 2 (ranks, num_gpus). Expected 16, or "
            "other factors.",
        ],
        b"text,account\nlunch,meals\n",
    ),
    "one class, a length the base does not take": Refusal(
        ["max_length=65"],
        [
            "data.label_column = label (data.yml): one class in the 2 rows that are left",
            "takes at most 64 tokens. Set it to that or less.",
        ],
        csv("lunch,meals", "coffee,meals"),
    ),
    "a class too small, num_labels of other data": Refusal(
        ["train.model.num_labels=7", "data.rare=refuse"],
        [
            "data.rare = refuse (--data.rare): fewer than 3 different texts of rare (2). Set",
            "train.model.num_labels = 7 (--train.model.num_labels): the data has 3 labels. "
            "Set it to 3, or to null",
        ],
        csv(*ROWS, "stamp,rare", "stamp fee,rare"),
    ),
    "values that can't stand together hide no fault of data and machine": Refusal(
        ["train.training.bf16=true", "train.training.fp16=true", "artifacts_root=README.md"],
        [
            "train.training.fp16 = true (--train.training.fp16): bf16 and fp16 can't both be true",
            "ledger.csv (--data): the file has no rows.",
            "artifacts_root = README.md (--artifacts_root): ",
            "README.md is no folder that can be written to.",
        ],
        csv(),
    ),
}


CONTRADICTION = (
    *("train.training.eval_strategy=steps", "train.training.save_strategy=steps"),
    *("train.training.eval_steps=10", "train.training.save_steps=15"),
)
CONTRADICTED = (
    "train.training.save_steps = 15 (-P train.training.save_steps): load_best_model_at_end needs a "
    "multiple of eval_steps, 10."
)


@pytest.mark.parametrize("name", REFUSALS)
def test_kedro_train_refuses(project, tiny, tmp_path, name):
    case = REFUSALS[name]
    ledger = tmp_path / "ledger.csv"
    ledger.write_bytes(case.ledger or b"")
    before = files_of(project)
    done = project.kedro_train(*kedro_words(override(tiny, [f"data={ledger}", *case.given])))
    assert done.returncode == 2, done.output
    assert_refused(project, done, case.said)
    assert files_of(project) == before


def test_mlflow_run_says_every_word_that_can_not_be_read_in_one_message(project, tiny):
    mine = project.folder / "conf" / "local" / "parameters" / "mine.yml"
    mine.parent.mkdir(parents=True, exist_ok=True)
    mine.write_text("train:\n  training:\n    learing_rate: 1\n")
    faulty = ["lorra_r=3", "lora_r=abc", "lora_dropout=1.5", "recipe=starer", *CONTRADICTION]
    done = project.mlflow_run(*override(tiny, faulty))
    assert done.returncode == 1, done.output  # MLflow's own, for whatever a command returns
    said = [
        "6 problems in the parameters",
        "recipe = starer (-P recipe): no such recipe. There are: bert-base, english, "
        "klue-roberta, multilingual, starter, xlm-roberta-large-zero3.",
        "train.lora.r = abc (-P lora_r): expected a whole number of at least 1.",
        "train.lora.dropout = 1.5 (-P lora_dropout): expected a number of at least 0 and below 1.",
        "train.training.learing_rate (conf/local/parameters/mine.yml): unknown parameter. "
        "Did you mean train.training.learning_rate?",
        "lorra_r (-P lorra_r): unknown parameter. Did you mean lora_r?",
        CONTRADICTED,
    ]
    mine.unlink()
    assert_refused(project, done, said, project.runs()[0])
    assert "refused, left out here" in project.run("kedro", "runs").output


def test_mlflow_run_says_faults_of_values_data_and_machine_in_one_message(project, tiny):
    before = files_of(project)
    with listener() as port:
        done = project.mlflow_run(
            *override(tiny, ["data=none.csv", f"master_port={port}", *CONTRADICTION]),
        )
    assert done.returncode == 1, done.output
    said = [
        CONTRADICTED,
        "data.source = none.csv (-P data): no such file or folder.",
        f"master_port = {port} (-P master_port): another process listens on it. Give another port",
    ]
    assert_refused(project, done, said, project.runs()[0])
    assert files_of(project) == before


def test_a_byte_order_mark_is_no_fault(project, tiny, tmp_path):
    ledger = write_ledger(tmp_path / "ledger.csv")
    ledger.write_bytes(b"\xef\xbb\xbf" + ledger.read_bytes())
    done = project.kedro_train(*kedro_words(override(tiny, [f"data={ledger}", "dry_run=true"])))
    assert done.returncode == 0, done.output
    assert re.search(r"train 192 \(.*validation 24 \(.*test 24 \(", done.output)


def test_a_full_disk_is_refused(project, tiny, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no permission to mount a small disk")
    try:
        done = project.kedro_train(*kedro_words([*tiny, f"artifacts_root={disk}/models"]))
        assert done.returncode == 2, done.output
        said = [
            f"artifacts_root = {disk}/models (--artifacts_root): 8 MiB are free, and 3 checkpoints",
            "Free some space",
        ]
        assert_refused(project, done, said)
        assert list(disk.iterdir()) == []
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_a_tracking_server_that_does_not_answer_is_refused_within_a_minute(project, tiny):
    with listener() as port:
        uri = f"http://127.0.0.1:{port}"
        began = time.monotonic()
        done = project.kedro_train(*kedro_words(tiny), env={"MLFLOW_TRACKING_URI": uri})
        assert time.monotonic() - began < 60
    assert done.returncode == 2, done.output
    assert f"MLFLOW_TRACKING_URI = {uri}: " in done.output
    assert "Start the server, or unset the variable to log to mlflow.db" in done.output
    assert "Traceback" not in done.output


def assert_refused(
    project: Project, done: Finished, said: list[str], run: Run | None = None
) -> None:
    """Check the message, and that it left no run, or is the reason of the one of `mlflow run`."""
    for part in said:
        assert part in done.output
    assert "Traceback" not in done.output
    if run is None:
        assert not [each for each in project.runs() if each.data.tags.get(TAG) != "true"]
        return
    assert run.info.status == "FAILED"
    assert run.data.tags[TAG] == "true"
    reason = run.data.tags["account_tax.reason"]
    assert reason in done.output
    for part in said:
        assert part in reason


def files_of(project: Project) -> set[Path]:
    """Return everything in the copy but MLflow's store and what Python caches."""
    return {
        path
        for path in project.folder.rglob("*")
        if path.name not in ("mlflow.db", ".telemetry", "__pycache__") and path.suffix != ".pyc"
    }


@contextmanager
def listener() -> Iterator[int]:
    """Listen on a port, and never answer."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        yield taken.getsockname()[1]


def test_an_environment_off_the_lock_registers_nothing_unless_allowed(new_project, tiny):
    copy = new_project()
    shutil.rmtree(copy.folder / "conf" / "local" / "parameters", ignore_errors=True)
    lock = copy.folder / "conda.yaml"
    text = re.sub(r"- accelerate==\S+", "- accelerate==0.1", lock.read_text())
    lock.write_text(text)  # as a lock looks that this environment was not made from
    options = kedro_words(override(tiny, ["num_gpus=1"]))
    refused = copy.kedro_train(*options)
    assert refused.returncode == 2, refused.output
    assert "registry.allow_unlocked = false (registry.yml): this environment differs from the " in (
        refused.output
    )
    assert f"accelerate {metadata.version('accelerate')}: the lock has 0.1" in refused.output
    assert "--allow_unlocked=true" in refused.output
    assert not copy.client().search_registered_models()

    allowed = copy.kedro_train(*options, "--registry.allow_unlocked=true")
    assert allowed.returncode == 0, allowed.output
    version = copy.client().get_model_version_by_alias("account-tax", "challenger")
    assert "accelerate" in version.tags["environment"]
    assert "**Registered from an environment that differs from the lock**" in version.description


# --- while it runs --------------------------------------------------------------------------------


@pytest.fixture
def launch(project, tiny, tmp_path) -> Iterator[Callable[..., Launched]]:
    """Return what starts `kedro train` with changed options; what a test leaves is killed."""
    launched: list[Launched] = []

    def start(
        *changes: str,
        by: str = "kedro",
        copy: Project = project,
        env: Mapping[str, str] | None = None,
    ) -> Launched:
        # One copy for all: each test's run is its own, not the one that another interrupted.
        options = override(tiny, ["resume=never", *changes])
        command = {
            "kedro": ["kedro", "train", *kedro_words(options)],
            "mlflow": mlflow_command(*options),
        }[by]
        launched.append(Launched(copy, tmp_path / f"output{len(launched)}", *command, env=env))
        return launched[-1]

    yield start
    for each in launched:
        each.kill()


def checkpoints(train: Launched) -> set[str]:
    """Return the names of the checkpoints of the run that a command has left."""
    folder = train.project.folder / "data" / "06_models" / "checkpoints"
    return {path.name for path in folder.glob(f"*/{train.run().info.run_id}/checkpoint-*")}


SLOW_SIGINT = pytest.param(signal.SIGINT, marks=pytest.mark.slow)  # mlflow run's Ctrl-C is below


@pytest.mark.parametrize("signum", [SLOW_SIGINT, signal.SIGTERM])
def test_a_signal_while_training_saves_ends_every_rank_and_kills_the_run(launch, signum):
    train = launch(*LONG)
    train.wait_until_training(ranks=2)
    train.process.send_signal(signum)
    assert train.end(seconds=10) == 128 + signum
    assert assert_interrupted(train, f"ended by {signum.name}: interrupted at step ") > 0


def test_ctrl_c_in_mlflow_run_kills_the_run(launch):
    train = launch(*LONG, by="mlflow")
    train.wait_until_training(ranks=2)
    os.killpg(train.process.pid, signal.SIGINT)  # as a terminal does: the whole foreground group
    train.wait_for_end_of(train.ranks, seconds=10)
    assert train.end(seconds=30) != 0
    assert train.run().info.status == "KILLED"
    assert train.run().data.tags["account_tax.reason"].startswith("ended by SIG")


def test_a_killed_rank_ends_the_others_and_the_run_fails_with_its_last_lines(launch):
    train = launch(*LONG)
    train.wait_until_training(ranks=2)
    train.ranks()[1].kill()
    assert train.end(seconds=15) == 1
    assert_training_failed(
        train, "ended by SIGKILL (if nobody did that, the machine ran out of memory)"
    )
    reason = train.run().data.tags["account_tax.reason"]
    assert "rank1.log, last lines" in reason
    steps = [int(name.removeprefix("checkpoint-")) for name in checkpoints(train)]
    assert steps  # it saves after each epoch, of a few steps
    assert f" the same command goes on from step {max(steps)}." in reason


@pytest.mark.slow  # the kill matrix has it too
def test_no_rank_outlives_deepspeeds_launch_process(launch):
    train = launch(*LONG)
    train.wait_until_training(ranks=2)
    (process,) = [p for p in train.others() if p.name() == "launch"]
    process.kill()
    assert train.end(seconds=15) == 1
    assert_training_failed(train, "a process of it was ended by SIGKILL")


@pytest.mark.slow  # the kill matrix has it too
def test_no_rank_outlives_the_warm_interpreter(launch):
    train = launch(*LONG)
    train.wait_until_training(ranks=2)
    (launch_process,) = [p for p in train.others() if p.name() == "launch"]
    launch_process.parent().kill()
    assert train.end(seconds=15) == 1
    assert_training_failed(train, "a process of it was ended by SIGKILL")


def test_an_exception_in_a_rank_fails_the_run_with_its_last_lines(launch, tiny_base, tmp_path):
    base = shutil.copytree(tiny_base, tmp_path / "base")
    weights = base / "model.safetensors"
    train = launch("num_gpus=1", f"model={base}")
    train.wait_until_said("train: 1 CPU rank")  # checked and prepared; the rank is starting
    weights.write_bytes(weights.read_bytes()[:100])
    assert train.end(seconds=60) == 1
    assert_training_failed(train, "its weights have sha256")  # the check pinned the others


def assert_training_failed(train: Launched, why: str) -> None:
    run = train.run()
    assert run.info.status == "FAILED"
    reason = run.data.tags["account_tax.reason"]
    assert reason.startswith("training failed: ")
    assert why in reason
    assert reason.rstrip() in train.output
    logs = {file.path for file in train.project.client().list_artifacts(run.info.run_id, "logs")}
    assert "logs/train.log" in logs
    assert any(name.endswith("_rank0.log") for name in logs)


@pytest.mark.slow  # the kill matrix has it too
def test_sigterm_to_a_rank_saves_in_all_and_a_clock_that_jumps_changes_nothing(
    launch, tmp_path, project
):
    # As Slurm's srun sends it; the wall clock of every process jumps by years all the while.
    (tmp_path / "sitecustomize.py").write_text(JUMPING_CLOCK)
    train = launch(*LONG, "hang_timeout_seconds=30", env={"PYTHONPATH": str(tmp_path)})
    train.wait_until_training(ranks=2)
    train.ranks()[1].send_signal(signal.SIGTERM)
    assert train.end(seconds=20) == 143
    step = assert_interrupted(train, "ended by SIGTERM: interrupted at step ")
    root = project.folder / "data" / "06_models" / train.run().info.run_id
    assert json.loads((root / "interrupted.json").read_text()) == {
        "step": step,
        "signal": "SIGTERM",
    }
    assert not (root / "train_complete.json").exists()
    assert f"checkpoint-{step}" in checkpoints(train)


JUMPING_CLOCK = """
import itertools, time
plain, jumps = time.time, itertools.cycle([0, 1e8, -1e8])
time.time = lambda: plain() + next(jumps)
"""


def assert_interrupted(train: Launched, begins: str) -> int:
    """Check the run's end and return the step that was saved."""
    run = train.run()
    assert run.info.status == "KILLED"
    reason = run.data.tags["account_tax.reason"]
    assert reason.startswith(begins)
    assert reason.endswith("the same command goes on from there")
    assert reason in train.output
    return int(reason.split("at step ")[1].split(";")[0])


@pytest.mark.slow  # the kill matrix has it too
def test_a_stopped_rank_is_found_and_named(launch):
    train = launch(*LONG, "hang_timeout_seconds=5")
    train.wait_until_training(ranks=2)
    train.ranks()[1].send_signal(signal.SIGSTOP)
    assert train.end(seconds=25) == 1
    reason = train.run().data.tags["account_tax.reason"]
    assert train.run().info.status == "FAILED"
    assert "training failed: no sign of life for 5 s (hang_timeout_seconds = 5) after " in reason
    assert "rank 1 is stopped" in reason


@pytest.mark.slow  # the kill matrix has it too
def test_no_process_outlives_a_killed_launcher(launch):
    train = launch(*LONG)
    train.wait_until_training(ranks=2)
    train.process.kill()
    assert train.end(seconds=5) == -signal.SIGKILL


def test_a_loss_that_is_no_number_stops_the_run_before_anything_is_saved(launch):
    # The first step ends with weights of 1e30, the second has no gradient any more.
    steps = ["eval_strategy=steps", "eval_steps=1", "save_strategy=steps", "save_steps=1"]
    faulty = ["learning_rate=1e30", "max_steps=50", "train.training.warmup_ratio=0"]
    train = launch(*faulty, *(f"train.training.{each}" for each in steps))
    train.wait_until_said("train: 2 CPU ranks")
    assert train.end(seconds=STARTED_IN) == 1
    assert train.run().info.status == "FAILED"
    reason = train.run().data.tags["account_tax.reason"]
    found = re.search(r"the gradient norm of step (\d+) is \S+, no finite number.", reason)
    assert found, reason
    last = int(found[1]) - 1
    assert f"checkpoint-{last}. Nothing was saved after it." in reason
    saved = checkpoints(train)
    assert f"checkpoint-{last}" in saved
    assert not saved & {f"checkpoint-{step}" for step in range(last + 1, 51)}


def test_an_interruption_leaves_no_half_version_of_data_or_model(launch, new_project, tiny):
    # Prepare interrupted, then register, then the same command again, which works.
    copy = new_project()
    first = launch(copy=copy)
    first.wait_until_said("prepare: reading")
    first.wait_for(lambda: list(copy.folder.glob("data/04_feature/.*/*")))
    first.process.send_signal(signal.SIGTERM)
    assert first.end(seconds=10) == 143
    assert first.run().info.status == "KILLED"
    assert not [path for path in (copy.folder / "data" / "04_feature").rglob("*") if path.is_file()]

    second = launch(copy=copy)
    client = copy.client()
    second.wait_for(client.search_model_versions)  # made, and being checked
    second.process.send_signal(signal.SIGINT)
    assert second.end(seconds=10) == 130
    assert second.run().info.status == "KILLED"
    reason = second.run().data.tags["account_tax.reason"]
    assert f"kedro register --run {second.run().info.run_id}" in reason
    assert not client.search_model_versions()
    assert not client.search_registered_models()
    assert not client.search_logged_models([second.run().info.experiment_id])

    done = copy.kedro_train(*kedro_words(tiny))
    assert done.returncode == 0, done.output
    assert "prepare: skipped" in done.output
    assert client.get_model_version_by_alias("account-tax", "challenger").version
    assert copy.runs()[0].info.status == "FINISHED"
