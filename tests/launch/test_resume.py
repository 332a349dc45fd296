"""Which checkpoint a training goes on from, with a real store of runs; why another is not used."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from mlflow import MlflowClient

from account_tax.errors import Refused
from account_tax.launch import resume
from account_tax.launch.plan import store_of
from account_tax.launch.resume import CODE_BEFORE_TAG, DAMAGED_TAG, RESUMED_TAG, Start, begin
from account_tax.parameters.config import LaunchOptions, Resolved
from account_tax.provenance.code import Code
from account_tax.storage.checkpoints import (
    ATTEMPT_FILE,
    DAMAGED,
    LAUNCH_LOCK,
    RANKS_LOCK,
    list_checkpoints,
    publish,
    stage,
)
from account_tax.storage.files import hold, read_json, write_json
from account_tax.tracking.owned_run import OwnedRun

DATA, CODE = "d" * 64, {"commit": "c" * 40, "patch": b""}


@pytest.fixture(scope="module")
def database(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('store') / 'mlflow.db'}"


@dataclass
class Checkout:
    """A checkout with its store of runs, and the commands in it."""

    folder: Path
    client: MlflowClient

    def plan(
        self,
        wanted: str = "auto",
        lora_r: int = 8,
        inputs: str = DATA,
        ranks: int = 1,
        any_ranks: bool = False,
    ) -> Any:
        values = {"artifacts_root": "models", "train": {"training": {}, "lora": {"r": lora_r}}}
        resolved = Resolved(LaunchOptions(resume=wanted), values, {})
        return SimpleNamespace(
            resolved=resolved,
            report={"inputs_sha256": inputs},
            world_size=ranks,
            any_ranks=any_ranks,
            code=Code(CODE["commit"], patch=CODE["patch"]),
        )

    def train(self, end: str, steps: tuple[int, ...] = (), **plan: Any) -> tuple[str, Start]:
        """Train as far as these checkpoints; the run ends as told, or is RUNNING: killed."""
        run, made = OwnedRun.open(self.folder), self.plan(**plan)
        with begin(self.folder, made, run) as start:
            folder = self.folder / start.folder
            facts = read_json(folder / ATTEMPT_FILE)["facts"]
            for step in steps:
                staged = stage(folder) / f"checkpoint-{step}"
                staged.mkdir()
                (staged / "weights").write_bytes(b"%d" % step)
                publish(staged, {**facts, "world_size": made.world_size, "best": None})
        if end != "RUNNING":
            run.close(end)
        return run.run_id, start

    def folder_of(self, run_id: str) -> Path:
        return self.folder / store_of(self.plan().resolved) / run_id


@pytest.fixture
def checkout(database, tmp_path, monkeypatch):
    for name in ("MLFLOW_RUN_ID", "MLFLOW_EXPERIMENT_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    monkeypatch.setenv("MLFLOW_EXPERIMENT_NAME", tmp_path.name)
    return Checkout(tmp_path, MlflowClient(database))


def damage(checkpoint: Path) -> None:
    (checkpoint / "weights").write_bytes(b"not these")


@pytest.mark.parametrize("end", ["RUNNING", "FAILED", "KILLED"])
def test_an_interrupted_run_goes_on_from_its_newest_checkpoint(checkout, capsys, end):
    first, begun = checkout.train(end, (20, 40))
    assert begun.checkpoint is None
    again, start = checkout.train("FINISHED", (60,))
    assert again == first
    assert start.checkpoint == begun.folder / "checkpoint-40"
    assert read_json(checkout.folder / start.folder / ATTEMPT_FILE)["resume_from"] == (
        "checkpoint-40"
    )
    assert checkout.client.get_run(first).data.tags[RESUMED_TAG] == "checkpoint-40"
    start.say(again)
    said = f"train: going on from step 40 of run {first}, checkpoint {start.checkpoint}\n"
    assert capsys.readouterr().out == said


def test_a_finished_run_is_not_gone_on_with_and_neither_is_what_it_left_behind(checkout):
    left, _ = checkout.train("FAILED", (20,))
    finished, _ = checkout.train("FINISHED", (20, 40), wanted="never")
    third, start = checkout.train("FAILED")
    assert start.checkpoint is None
    assert third not in (left, finished)


def test_what_finished_earlier_is_cleared_when_the_next_one_finishes(checkout):
    first, _ = checkout.train("FINISHED", (20,))
    failed, _ = checkout.train("FAILED", (20,), wanted="never")
    nothing, _ = checkout.train("FAILED", wanted="never")
    last, _ = checkout.train("FINISHED", (20,), wanted="never")
    assert not checkout.folder_of(first).exists()
    assert not checkout.folder_of(nothing).exists()
    assert list_checkpoints(checkout.folder_of(failed))
    assert list_checkpoints(checkout.folder_of(last))


def test_a_run_without_a_checkpoint_is_passed_over_in_silence(checkout, capsys):
    first, _ = checkout.train("FAILED", (20,))
    checkout.train("KILLED", wanted="never")
    assert checkout.train("FAILED")[0] == first
    assert capsys.readouterr().err == ""


def test_never_begins_anew(checkout):
    first, _ = checkout.train("FAILED", (20,))
    second, start = checkout.train("FAILED", wanted="never")
    assert second != first
    assert start.checkpoint is None


def test_another_configuration_never_picks_it_up(checkout):
    first, _ = checkout.train("FAILED", (20,))
    second, start = checkout.train("FAILED", lora_r=16)
    assert second != first
    assert start.checkpoint is None


def test_other_data_never_does_and_says_so(checkout, capsys):
    first, _ = checkout.train("FAILED", (20,))
    _, start = checkout.train("FAILED", inputs="e" * 64)
    assert start.checkpoint is None
    said = f"resume: checkpoint-20 of run {first} is not used: it was trained on other data (ddd"
    assert said in capsys.readouterr().err
    with pytest.raises(Refused, match=rf"resume = {first}: .* other data"):
        checkout.train("FAILED", inputs="e" * 64, wanted=first)
    assert checkout.train("FAILED")[0] == first  # the former data again


def test_a_damaged_checkpoint_is_named_set_aside_and_the_one_before_it_used(checkout, capsys):
    first, _ = checkout.train("FAILED", (20, 40, 60))
    folder = checkout.folder_of(first)
    damage(folder / "checkpoint-60")
    (folder / "checkpoint-40" / "checkpoint.json").unlink()
    _, start = checkout.train("FAILED")
    assert start.checkpoint
    assert start.checkpoint.name == "checkpoint-20"
    said = capsys.readouterr().err
    tag = checkout.client.get_run(first).data.tags[DAMAGED_TAG]
    for why in (
        f"checkpoint-60 of run {first} is damaged: weights has sha256",
        f"checkpoint-40 of run {first} is damaged: its checkpoint.json is missing",
    ):
        assert why in said
        assert why in tag
    assert (folder / f"{DAMAGED}checkpoint-60" / "weights").read_bytes() == b"not these"
    assert (folder / f"{DAMAGED}checkpoint-40").is_dir()


def test_with_no_whole_one_left_the_training_begins_anew(checkout):
    first, _ = checkout.train("FAILED", (20,))
    damage(checkout.folder_of(first) / "checkpoint-20")
    second, start = checkout.train("FAILED")
    assert second != first
    assert start.checkpoint is None
    assert "is damaged" in checkout.client.get_run(second).data.tags[DAMAGED_TAG]


def test_a_checkpoint_without_its_best_model_would_give_another_result(checkout, capsys):
    first, _ = checkout.train("FAILED", (20,))
    folder = checkout.folder_of(first)
    staged = stage(folder) / "checkpoint-40"
    staged.mkdir()
    (staged / "weights").write_bytes(b"40")
    facts = read_json(folder / ATTEMPT_FILE)["facts"]
    publish(staged, {**facts, "world_size": 1, "best": "checkpoint-20"})
    damage(folder / "checkpoint-20")
    assert checkout.train("FAILED")[1].checkpoint is None
    assert "best model until then was in checkpoint-20, which is gone" in capsys.readouterr().err


def test_a_checkpoint_of_the_model_only_is_not_gone_on_from(checkout, capsys):
    first, _ = checkout.train("FAILED", (20,))
    manifest = checkout.folder_of(first) / "checkpoint-20" / "checkpoint.json"
    write_json(manifest, read_json(manifest) | {"model_only": True})
    assert checkout.train("FAILED")[1].checkpoint is None
    assert "it has no optimizer (train.training.save_only_model)" in capsys.readouterr().err


def test_where_nobody_asked_for_ranks_they_are_the_checkpoints(checkout):
    first, _ = checkout.train("KILLED", (20,), ranks=2, any_ranks=True)
    again, start = checkout.train("FINISHED", ranks=1, any_ranks=True)
    assert (again, start.world_size, start.checkpoint.name) == (first, 2, "checkpoint-20")
    assert checkout.train("FAILED", ranks=1, any_ranks=True)[1].world_size == 1


def test_other_ranks_are_refused_with_what_to_do(checkout):
    first, _ = checkout.train("FAILED", (20,))
    with pytest.raises(Refused, match=r"= 2: .*by 1 rank, .*num_gpus=1 goes on.*resume=never"):
        checkout.train("FAILED", ranks=2)
    assert checkout.train("FAILED", ranks=2, wanted="never")[0] != first


def test_damage_is_said_also_where_the_command_is_refused(checkout, capsys):
    first, _ = checkout.train("FAILED", (20, 40))
    damage(checkout.folder_of(first) / "checkpoint-40")
    with pytest.raises(Refused, match="num_gpus=1 goes on"):
        checkout.train("FAILED", ranks=2)
    assert f"checkpoint-40 of run {first} is damaged" in capsys.readouterr().err
    assert "checkpoint-40" in checkout.client.get_run(first).data.tags[DAMAGED_TAG]


# --- a certain run --------------------------------------------------------------------------------


def test_a_certain_run_is_gone_on_with_also_behind_another(checkout):
    first, _ = checkout.train("FAILED", (20,))
    checkout.train("FAILED", (40,), wanted="never")
    again, start = checkout.train("FAILED", wanted=first)
    assert again == first
    assert start.checkpoint
    assert start.checkpoint.name == "checkpoint-20"


def test_a_run_that_has_none_is_refused_with_those_there_are(checkout):
    first, _ = checkout.train("KILLED", (20,))
    with pytest.raises(Refused, match=rf"There are: {first} \(KILLED, step 20\)"):
        checkout.train("FAILED", wanted="0" * 32)


def test_a_finished_or_damaged_run_is_refused(checkout):
    first, _ = checkout.train("FINISHED", (20,))
    with pytest.raises(Refused, match="it has FINISHED; resume=never trains anew"):
        checkout.train("FAILED", wanted=first)
    second, _ = checkout.train("FAILED", (20,))
    damage(checkout.folder_of(second) / "checkpoint-20")
    with pytest.raises(Refused, match="none of its checkpoints is whole: checkpoint-20 of run"):
        checkout.train("FAILED", wanted=second)


def test_a_run_the_server_does_not_know_is_not_gone_on_with(checkout, capsys):
    first, _ = checkout.train("FAILED", (20,))
    checkout.client.delete_run(first)
    assert checkout.train("FAILED")[1].checkpoint is None
    assert "the tracking server knows no such run" in capsys.readouterr().err


def test_a_job_that_goes_on_by_itself_is_left_alone_unless_it_is_this_one(
    checkout, capsys, monkeypatch
):
    first, _ = checkout.train("SCHEDULED", (20,))
    assert checkout.train("FAILED")[0] != first
    assert f"resume={first} takes it over" in capsys.readouterr().err
    assert checkout.train("SCHEDULED", wanted=first)[0] == first
    monkeypatch.setenv("MLFLOW_RUN_ID", first)  # queued once more
    again, start = checkout.train("FAILED")
    assert again == first
    assert start.checkpoint


def test_the_commands_own_run_comes_first(checkout, monkeypatch):
    first, _ = checkout.train("FAILED", (20,))
    second, _ = checkout.train("FAILED", (40,), wanted="never")
    monkeypatch.setenv("MLFLOW_RUN_ID", first)
    assert checkout.train("FAILED")[0] == first
    monkeypatch.setenv("MLFLOW_RUN_ID", second)
    assert checkout.train("FAILED")[0] == second


@pytest.mark.parametrize(
    ("name", "now", "said"),
    [
        ("commit", "f" * 40, "(commit cccccccccccc, now commit ffffffffffff)"),
        ("patch", b"x", "(commit cccccccccccc, now commit cccccccccccc and code.patch "),
    ],
)
def test_other_code_goes_on_and_is_said(checkout, capsys, monkeypatch, name, now, said):
    first, _ = checkout.train("FAILED", (20,))
    checkout.train("FAILED")
    assert CODE_BEFORE_TAG not in checkout.client.get_run(first).data.tags
    monkeypatch.setitem(CODE, name, now)
    assert checkout.train("FAILED", (40,))[0] == first
    assert f"the code is another than the checkpoint's {said}" in capsys.readouterr().err
    tag = checkout.client.get_run(first).data.tags[CODE_BEFORE_TAG]
    assert tag == "until checkpoint-20: commit cccccccccccc"
    checkout.train("FAILED")  # the same code as of step 40, whose beginning is the other's still
    assert checkout.client.get_run(first).data.tags[CODE_BEFORE_TAG] == tag


def test_a_change_taken_back_before_the_next_checkpoint_was_none(checkout, monkeypatch):
    first, _ = checkout.train("FAILED", (20,))
    with monkeypatch.context() as changed:
        changed.setitem(CODE, "commit", "f" * 40)
        checkout.train("FAILED")
    assert CODE_BEFORE_TAG in checkout.client.get_run(first).data.tags
    checkout.train("FAILED")
    assert CODE_BEFORE_TAG not in checkout.client.get_run(first).data.tags


# --- one at a time --------------------------------------------------------------------------------

HOLDER = """
import sys
from pathlib import Path
from account_tax.storage.files import hold
with hold(Path(sys.argv[1])) as sign:
    sign({"run_id": "abc", "host": "there"})
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def held_by_another():
    """Return what makes another process hold a lock."""
    holders = []

    def start(lock: Path) -> subprocess.Popen:
        source = str(Path(__file__).parents[2] / "account_tax" / "src")
        pipe = subprocess.PIPE
        command = [sys.executable, "-c", HOLDER, str(lock)]
        environment = os.environ | {"PYTHONPATH": source}
        holders.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, env=environment))
        assert holders[-1].stdout.readline() == b"held\n"
        return holders[-1]

    yield start
    for holder in holders:
        holder.kill()
        holder.communicate()


def test_of_two_at_once_the_second_is_refused_until_the_first_has_died(checkout, held_by_another):
    first, _ = checkout.train("FAILED", (20,))
    holder = held_by_another(checkout.folder_of(first).parent / LAUNCH_LOCK)
    said = rf"being trained already: run abc, process {holder.pid} on there"
    with pytest.raises(Refused, match=said):
        checkout.train("FAILED")
    checkout.train("FAILED", lora_r=16)  # another configuration
    holder.kill()
    holder.wait()
    assert checkout.train("FAILED")[0] == first


def test_ranks_that_outlive_their_launcher_are_waited_for(checkout, held_by_another, monkeypatch):
    monkeypatch.setattr(resume, "RANKS_END_SECONDS", 0.5)
    first, _ = checkout.train("RUNNING", (20,))
    holder = held_by_another(checkout.folder_of(first) / RANKS_LOCK)
    with pytest.raises(Refused, match=rf"its launcher is gone.*process {holder.pid}, still trains"):
        checkout.train("FAILED")
    holder.kill()
    holder.wait()
    with hold(checkout.folder_of(first) / RANKS_LOCK):
        pass
    assert checkout.train("FAILED")[0] == first
