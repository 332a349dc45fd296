import hashlib
import json
import sys
from pathlib import Path

import pytest
import yaml

from account_tax.errors import Failed, Preempted
from account_tax.launch.stages import Stages, stage_environment
from account_tax.parameters.config import resolve
from account_tax.processes.answers import TAIL_LINES
from account_tax.processes.identity import state_of

REPOSITORY = Path(__file__).parents[2]


@pytest.fixture
def stages(tmp_path):
    checkpoints = tmp_path / "checkpoints/of the configuration/run"
    return Stages(REPOSITORY, tmp_path / "run", {"PATH": "/usr/bin"}, checkpoints=checkpoints)


@pytest.fixture
def trained(stages):
    """A run folder as training leaves it."""
    weights = stages.root / "adapter" / "adapter_model.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(b"weights")
    marker = {"weights": {weights.name: hashlib.sha256(b"weights").hexdigest()}, "global_step": 4}
    (stages.root / "train_complete.json").write_text(json.dumps(marker))
    (stages.root / "training_metrics.json").write_text("{}")
    return stages


def write_log(stages, name, *lines):
    file = stages.logs / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text("\n".join(lines))


# --- commands and environment ---------------------------------------------------------------------


def test_every_stage_reads_the_configuration_and_data_versions_of_the_run(stages):
    stages.versions = {"tokenizer": "v1", "tokenized_datasets": "v1"}
    for command in (stages.single("register"), stages.kedro("train")):
        assert f"--conf-source={stages.root / 'conf'}" in command
        assert "--load-versions=tokenizer:v1,tokenized_datasets:v1" in command
    assert stages.single("register")[0] == sys.executable


def test_cpu_ranks_share_the_cores_unless_told_otherwise(stages, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: range(8))
    assert stages.rank_environment(2, 0, {})["OMP_NUM_THREADS"] == "4"
    assert stages.rank_environment(16, 0, {})["OMP_NUM_THREADS"] == "1"
    assert stages.rank_environment(2, 0, {})["DS_ACCELERATOR"] == "cpu"
    stages.environment["OMP_NUM_THREADS"] = "3"
    assert stages.rank_environment(2, 0, {})["OMP_NUM_THREADS"] == "3"
    assert "DS_ACCELERATOR" not in stages.rank_environment(2, 2, {})


def test_ranks_never_get_the_passphrase_of_the_signing_key(stages):
    stages.environment["ACCOUNT_TAX_SIGN_KEY_PASSPHRASE"] = "hush-hush"
    assert "hush-hush" not in stages.rank_environment(1, 1, {}).values()
    assert "hush-hush" in stages.environment.values()  # what registers has it


def test_determinism_is_set_before_a_rank_starts(stages):
    assert "CUBLAS_WORKSPACE_CONFIG" not in stages.rank_environment(1, 1, {})
    settings = stages.rank_environment(1, 1, {"full_determinism": True})
    assert settings["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"


def test_the_written_configuration_is_the_resolved_one(stages):
    resolved = resolve(REPOSITORY, [("train.lora.r", "3")])
    stages.write_configuration(resolved)
    written = yaml.safe_load((stages.root / "conf/base/parameters.yml").read_text())
    assert written["train"] == resolved.values["train"]
    assert written["recipe"] is None
    assert written["artifacts_root"] == str(stages.root)


def test_prepare_saves_in_a_folder_of_the_runs_own(stages, tmp_path):
    stages.write_prepare_catalog(tmp_path / "scratch")
    catalog = yaml.safe_load((stages.root / "conf/prepare/catalog.yml").read_text())
    base = yaml.safe_load((REPOSITORY / "conf/base/catalog.yml").read_text())
    assert set(catalog) == {"tokenized_datasets", "tokenizer", "ngrams", "dataset_metadata"}
    for name, entry in catalog.items():
        (key,) = {"path", "filepath"} & set(entry)
        place = Path(entry[key])
        assert place.parent == tmp_path / "scratch"
        assert place.name == Path(base[name][key]).name
        assert {**entry, key: None} == {**base[name], key: None}


# --- evidence -------------------------------------------------------------------------------------


def test_training_is_proven_by_marker_and_digests(trained):
    assert trained.prove_training(0)["global_step"] == 4


def test_exit_status_0_without_a_result_is_a_failure(stages):
    with pytest.raises(Failed, match="exit status 0, but no result was written"):
        stages.prove_training(0)


def test_a_result_does_not_excuse_a_bad_exit_status(trained):
    with pytest.raises(Failed, match="training failed: exit status 1"):
        trained.prove_training(1)


def test_changed_weights_are_a_failure(trained):
    (trained.root / "adapter" / "adapter_model.safetensors").write_bytes(b"others")
    with pytest.raises(Failed, match="not the file the marker lists"):
        trained.prove_training(0)


@pytest.mark.parametrize(
    ("status", "words"),
    [
        (1, "training failed: exit status 1"),
        # 256 - 9: deepspeed, for a killed rank
        (247, "ended by SIGKILL .*ran out of memory.*same command begins anew"),
        (245, "ended by SIGSEGV"),
        (-9, "ended by SIGKILL .*ran out of memory.*same command begins anew"),  # deepspeed itself
    ],
)
def test_an_exit_status_is_put_into_words(stages, status, words):
    with pytest.raises(Failed, match=words):
        stages.prove_training(status)


def test_a_killed_run_says_where_the_same_command_goes_on(stages):
    stages.again = "with --resume 7f the same command"
    with pytest.raises(Failed, match=r"\. The same command begins anew\."):
        stages.prove_training(-9)
    for step in (5, 40):
        (stages.checkpoints / f"checkpoint-{step}").mkdir(parents=True)
    words = "ith --resume 7f the same command goes on from step 40"
    with pytest.raises(Failed, match=f"W{words}"):
        stages.prove_training(-9)
    with pytest.raises(Preempted, match=f"interrupted before a save; w{words}"):
        stages.prove_training(-15)


def test_a_failure_has_the_last_lines_of_each_rank(stages):
    many = [f"line {number}" for number in range(50)]
    write_log(stages, "ranks/1_rank0.log", *many, "ValueError: rank 0's reason", "")
    write_log(stages, "ranks/1_rank1.log", "rank 1's reason")
    write_log(stages, "train.log", "deepspeed's reason")
    with pytest.raises(Failed) as caught:
        stages.prove_training(1)
    text = str(caught.value)
    assert "ValueError: rank 0's reason" in text
    assert "rank 1's reason" in text
    assert "deepspeed's reason" not in text
    assert f"line {50 - TAIL_LINES + 1}" in text
    assert f"line {50 - TAIL_LINES}\n" not in text


def test_where_no_rank_said_anything_the_last_lines_are_deepspeeds(stages):
    write_log(stages, "ranks/1_rank0.log", "")
    write_log(stages, "train.log", "deepspeed's reason")
    with pytest.raises(Failed, match="deepspeed's reason"):
        stages.prove_training(1)


def test_a_failed_registration_says_where_the_adapter_is(stages):
    write_log(stages, "register.log", "RegistrationError: a logit differs")
    with pytest.raises(Failed, match="a logit differs") as caught:
        stages.prove_registration(1)
    assert str(stages.root / "adapter") in str(caught.value)


def test_a_registration_without_a_result_is_a_failure(stages):
    with pytest.raises(Failed, match="registration failed"):
        stages.prove_registration(0)


def test_another_stage_fails_with_its_own_log(stages):
    write_log(stages, "prepare.log", "DataError: reason")
    stages.prove("prepare", 0)
    with pytest.raises(Failed, match=r"prepare failed: exit status 3\.\n.*\nDataError: reason"):
        stages.prove("prepare", 3)


# --- told to end ----------------------------------------------------------------------------------


def test_ranks_that_saved_when_told_to_end_did_not_fail(stages):
    stages.root.mkdir()
    (stages.root / "interrupted.json").write_text(json.dumps({"step": 7, "signal": "SIGTERM"}))
    with pytest.raises(Preempted, match="interrupted at step 7; the same command goes") as caught:
        stages.prove_training(0)
    assert (caught.value.status, caught.value.state) == (143, "KILLED")


@pytest.mark.parametrize("status", [241, -15])  # of a rank, of deepspeed itself
def test_sigterm_before_the_first_step_is_no_failure_either(stages, status):
    with pytest.raises(Preempted, match="before a save; the same command begins anew"):
        stages.prove_training(status)


def test_training_that_is_complete_says_what_is_left(trained):
    left = "training is complete; kedro register --run run would evaluate and register it"
    assert trained.outcome_of_interruption() == left
    with pytest.raises(Preempted, match=left):
        trained.prove_training(143)
    (trained.root / "registration.json").write_text("{}")
    left = "its results are registered; kedro register --run run would give the run its end"
    assert trained.outcome_of_interruption() == left
    (trained.root / "registration.json").unlink()
    (trained.root / "training_metrics.json").unlink()  # register would miss it
    assert trained.outcome_of_interruption().endswith("the same command begins anew")


def test_why_training_stopped_itself_comes_first(stages):
    stages.root.mkdir()
    (stages.root / "fault.json").write_text(json.dumps({"step": 7, "reason": "the loss is nan"}))
    with pytest.raises(Failed, match=r"^training failed: the loss is nan\."):
        stages.prove_training(1)


def test_stages_know_the_launcher_they_belong_to():
    assert state_of(stage_environment(REPOSITORY)["ACCOUNT_TAX_LAUNCHER"]) == "alive"


def test_a_librarys_frames_stay_in_the_log(stages):
    frames = ["Traceback (most recent call last):", '  File "x.py", line 1, in f', "    f(x)"]
    write_log(stages, "register.log", "begun", *frames * 6, "OSError: No space left on device")
    with pytest.raises(Failed) as failed:
        stages.prove_registration(1)
    shown = str(failed.value).partition("last lines\n")[2]
    assert shown == "begun\nOSError: No space left on device"
