"""A run that was interrupted goes on, and ends with the bytes it would have had anyway."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from mlflow.entities import Run

from account_tax.storage.checkpoints import DAMAGED, find_fault, list_checkpoints, step_of
from tests.ranks import train_cases

from .conftest import Project, kedro_words
from .launched import LONG, Launched, override

pytestmark = pytest.mark.integration

ADAPTER = "adapter_model.safetensors"
ROWS = {"train": 48, "validation": 17}
# Dropout and noise draw from every random number generator; no interval shares a factor with the
# epoch.
RESUMABLE = {
    "model.config": {"hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1},
    "lora.dropout": 0.1,
    "training.num_train_epochs": 3,
    "training.eval_strategy": "steps",
    "training.eval_steps": 2,
    "training.save_strategy": "steps",
    "training.save_steps": 2,
    "training.logging_steps": 3,
    "training.learning_rate": 1e-2,
    "training.neftune_noise_alpha": 5.0,
}
TIMES = ("runtime", "per_second")


def timeless(history: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [
        {key: value for key, value in entry.items() if not key.endswith(TIMES)} for entry in history
    ]


# --- every checkpoint of a training ---------------------------------------------------------------


def case(stage: int, **changes: Any) -> dict[str, Any]:
    gather = {"stage3_gather_16bit_weights_on_model_save": True}
    zero = {"deepspeed.zero_optimization": {"stage": stage} | gather}
    return {"name": f"ZeRO {stage}, {changes}", "changes": RESUMABLE | zero | changes}


def resumed_at(number: int, of: dict[str, Any], step: int) -> dict[str, Any]:
    return of | {"resume": [number, step]}


PLAIN = [
    case(0),
    case(2),
    case(1, **{"training.bf16": True}),
    case(0, **{"training.bf16": True, "averaging.enable": True, "training.eval_on_start": True}),
    case(2, **{"averaging.enable": True, "training.load_best_model_at_end": False}),
    case(
        2,
        **{
            "lora.enable": False,
            "training.eval_strategy": "epoch",
            "training.load_best_model_at_end": False,
        },
    ),
    case(
        0,
        **{
            "training.train_sampling_strategy": "group_by_length",
            "training.dataloader_num_workers": 1,
        },
    ),
    case(
        2,
        **{
            "training.max_steps": 4,
            "training.eval_strategy": "epoch",
            "training.load_best_model_at_end": False,
        },
    ),
]


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2])
# What ZeRO-3 hooks into torch stays, so it has processes of its own.
@pytest.mark.parametrize(
    "whole",
    [PLAIN, [case(3), case(3, **{"averaging.enable": True})]],
    ids=["ZeRO 0 to 2", "ZeRO 3"],
)
def test_from_any_checkpoint_the_same_adapter_and_history(whole, world_size, tmp_path):
    again = [
        resumed_at(number, each, step)
        for number, each in enumerate(whole)
        for step in range(2, 1 + each["changes"].get("training.max_steps", 18 // world_size), 2)
    ]
    results = train_cases([*whole, *again], world_size, tmp_path, ROWS)
    for result in results[len(whole) :]:
        number, step = result["resume"]
        first = results[number]
        name = "model.safetensors" if "lora.enable" in result["changes"] else ADAPTER
        same = [(Path(each["adapter"]) / name).read_bytes() for each in (first, result)]
        assert same[0] == same[1], (result["name"], step)
        assert timeless(result["history"]) == timeless(first["history"]), (result["name"], step)
        for key in ("train/loss", "eval/loss", "train/global_step"):
            assert result["metrics"][key] == first["metrics"][key], (result["name"], step, key)


# --- the command, killed --------------------------------------------------------------------------

STEPWISE = [
    *("max_steps=30", "epochs=100", "lora_dropout=0.1", "train.training.neftune_noise_alpha=5"),
    *("train.training.eval_strategy=steps", "train.training.eval_steps=2"),
    *("train.training.save_strategy=steps", "train.training.save_steps=2"),
]
PATIENCE = 600.0  # seconds, on a machine that does much else


def checkpoints_of(project: Project, run_id: str) -> list[Path]:
    (folder,) = project.folder.glob(f"data/06_models/checkpoints/*/{run_id}")
    return list_checkpoints(folder)


def saved_steps(project: Project, run_id: str) -> set[int]:
    return {step_of(checkpoint) for checkpoint in checkpoints_of(project, run_id)}


def newest_run(project: Project) -> Run:
    return project.runs()[0]


def kill_after(project: Project, options: list[str], step: int, output: Path) -> str:
    """Start a training, kill it when it has saved at a step; return its run's id."""
    train = Launched(project, output, "kedro", "train", *kedro_words(options))
    try:
        train.wait_for(lambda: "train: " in train.output, PATIENCE)
        run_id = train.run().info.run_id
        train.wait_for(lambda: max(saved_steps(project, run_id), default=0) >= step, PATIENCE)
    finally:
        train.kill()
        train.end(seconds=60)
    return run_id


def result_of(project: Project, run_id: str) -> tuple[bytes, list[dict[str, Any]], float]:
    """Return a run's weights, its history, and its mean loss."""
    root = project.folder / "data" / "06_models" / run_id
    history = json.loads((root / "log_history.json").read_text())
    metrics = json.loads((root / "training_metrics.json").read_text())
    return (root / "adapter" / ADAPTER).read_bytes(), timeless(history), metrics["train/loss"]


@pytest.mark.parametrize(
    ("stage", "ranks"),
    [(2, 2), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((0, 1), (0, 2), (2, 1)))],
)
def test_a_killed_training_goes_on_to_the_bytes_of_an_uninterrupted_one(
    new_project, tiny, tmp_path, stage, ranks
):
    project = new_project()
    options = override(tiny, [*STEPWISE, f"zero_stage={stage}", f"num_gpus={ranks}"])
    whole = project.kedro_train(*kedro_words(options), timeout=PATIENCE)
    assert whole.returncode == 0, whole.output
    first = newest_run(project).info.run_id

    killed = kill_after(project, options, 8, tmp_path / "killed")
    assert killed != first, "a finished run is trained anew"
    newest, before, *_ = checkpoints_of(project, killed)
    (newest / "trainer_state.json").write_text("{}")
    refused = project.kedro_train(*kedro_words(override(options, [f"num_gpus={3 - ranks}"])))
    assert refused.returncode == 2, refused.output
    assert f"{newest.name} of run {killed} is damaged" in refused.output
    assert f"num_gpus={ranks} goes on from it" in refused.output

    done = project.mlflow_run(*options, timeout=PATIENCE)
    assert done.returncode == 0, done.output
    step = before.name.split("-")[1]
    assert f"train: going on from step {step} of run {killed}, checkpoint " in done.output
    assert result_of(project, killed) == result_of(project, first)
    assert_one_run_went_on(project, killed, newest.name)
    assert_best_is_beside(project, killed)
    assert len(checkpoints_of(project, killed)) == 3
    assert not list(project.folder.glob(f"data/06_models/checkpoints/*/{first}"))


def assert_one_run_went_on(project: Project, killed: str, damaged: str) -> None:
    run, client = project.client().get_run(killed), project.client()
    assert run.info.status == "FINISHED"
    assert (
        f"{damaged} of run {killed} is damaged" in run.data.tags["account_tax.damaged_checkpoints"]
    )
    assert list(project.folder.glob(f"data/06_models/checkpoints/*/{killed}/{DAMAGED}{damaged}"))
    (attempt,) = [each for each in project.runs() if "mlflow.parentRunId" in each.data.tags]
    assert attempt.data.tags["mlflow.parentRunId"] == killed
    assert attempt.info.status == "FINISHED"
    assert not attempt.data.metrics
    assert {each.info.status for each in project.runs()} == {
        "FINISHED"
    }  # a refused one leaves none
    (version,) = client.search_model_versions()
    assert int(version.version) == 1, "the same content is the same version"


def assert_best_is_beside(project: Project, run_id: str) -> None:
    root = project.folder / "data" / "06_models" / run_id
    assert (root / "best" / ADAPTER).read_bytes() == (root / "adapter" / ADAPTER).read_bytes()
    model = json.loads((root / "model_metadata.json").read_text())
    assert model["run_id"] == run_id
    assert model["metric"] == "f1"
    assert (
        json.loads((root / "dataset_metadata.json").read_text())["inputs_sha256"]
        == (model["inputs_sha256"])
    )


def test_of_two_commands_at_once_the_second_is_refused_with_the_first(new_project, tiny, tmp_path):
    project = new_project()
    options = override(tiny, [*LONG, "num_gpus=1"])
    first = Launched(project, tmp_path / "first", "kedro", "train", *kedro_words(options))
    try:
        first.wait_for(lambda: "train: 1 CPU rank" in first.output, PATIENCE)
        second = project.kedro_train(*kedro_words(options))
    finally:
        first.kill()
        first.end(seconds=60)
    assert second.returncode == 2, second.output
    (run_id,) = (each.info.run_id for each in project.runs())  # the second leaves none
    said = f"being trained already: run {run_id}, process {first.process.pid} on "
    assert said in second.output


@pytest.fixture
def small_disk(tmp_path) -> Iterator[Path]:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no permission to mount a small disk")
    yield disk
    subprocess.run(["umount", "--lazy", str(disk)], check=True)


@pytest.mark.slow  # the kill matrix has it too
def test_a_disk_that_gets_full_fails_the_run_and_keeps_the_previous_checkpoint(
    new_project, tiny, tmp_path, small_disk
):
    project = new_project()
    options = override(tiny, [*STEPWISE, f"train.training.output_dir={small_disk}/checkpoints"])
    train = Launched(project, tmp_path / "output", "kedro", "train", *kedro_words(options))
    try:
        train.wait_for(lambda: list(small_disk.glob("checkpoints/*/*/checkpoint-4")), PATIENCE)
        with (small_disk / "filler").open("wb", buffering=0) as filler, suppress(OSError):
            while True:
                filler.write(bytes(4096))
        train.wait_for_end_of(train.others, PATIENCE)
        assert train.process.wait(timeout=60) == 1
    finally:
        train.kill()
        train.end(seconds=60)
    run = train.run()
    assert run.info.status == "FAILED"
    reason = run.data.tags["account_tax.reason"]
    assert "the disk of" in reason
    assert "Free some space and run the same command again" in reason
    (folder,) = small_disk.glob(f"checkpoints/*/{run.info.run_id}")
    kept = list_checkpoints(folder)
    assert kept
    assert [find_fault(checkpoint) for checkpoint in kept] == [""] * len(kept)
    assert f"Kept whole: {kept[0].name}" in reason
