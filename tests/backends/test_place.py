import base64
import json
import sys

import pytest

from account_tax.backends.place import OneMachine, OneRank, find_place
from account_tax.backends.slurm.ranks import Allocation
from account_tax.backends.ssh.hosts import Hosts
from account_tax.parameters.config import ConfigError, LaunchOptions

JOB = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_JOB_NUM_NODES": "2"}


def find(environment=None, **options):
    return find_place(LaunchOptions(**options), environment or {})


def test_the_environment_and_the_options_tell_the_place(tmp_path):
    hostfile = tmp_path / "hosts"
    hostfile.write_text("a slots=2\n")
    assert type(find()) is OneMachine
    assert isinstance(find(JOB), Allocation)
    assert isinstance(find(hostfile=str(hostfile)), Hosts)
    assert isinstance(find({"RANK": "0", **JOB}), OneRank)
    assert type(find({"SLURM_STEP_ID": "0", **JOB})) is OneMachine  # srun --pty bash


def world_of(command):
    """Return the GPUs by host that deepspeed's launch process is told."""
    (word,) = [word for word in command if word.startswith("--world_info=")]
    return json.loads(base64.urlsafe_b64decode(word.partition("=")[2]))


def test_ranks_are_started_by_deepspeed_each_with_its_log(tmp_path):
    command = find().start_ranks(["run"], 2, 1234, tmp_path)
    assert command[:4] == [sys.executable, "-u", "-m", "deepspeed.launcher.launch"]
    for option in ("--module", "--no_local_rank", "--master_port=1234"):
        assert option in command
    assert world_of(command) == {"localhost": [0, 1]}
    assert f"--enable_each_rank_log={tmp_path}" in command
    assert command[-2:] == ["kedro", "run"]


def test_ranks_take_the_visible_gpus_only(tmp_path):
    place = find({"CUDA_VISIBLE_DEVICES": "3,GPU-5,7"})
    command = place.start_ranks(["run"], 2, 1234, tmp_path)
    assert world_of(command) == {"localhost": ["3", "GPU-5"]}


def test_one_machine_takes_its_gpus_or_what_was_asked_for():
    assert find().world_size(0) == 1
    assert find().world_size(3) == 3
    assert find(num_gpus=2).world_size(0) == 2
    assert find(num_gpus=2).ranks_here(2) == 2


def test_where_a_rank_was_started_nothing_is_started(tmp_path):
    assert find({"RANK": "0"}).start_ranks(["run"], 1, 1, tmp_path) == [
        *(sys.executable, "-m", "kedro", "run")
    ]
    assert find({"RANK": "0"}).faults([], {}) == []
    (fault,) = find({"RANK": "1", "WORLD_SIZE": "4"}).faults([], {})
    assert "WORLD_SIZE = 4 (environment): these ranks have been started" in fault


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a slots=2\nb slot=2\n", "line 2 = b slot=2: expected NAME slots=N."),
        ("a slots=0\n", "line 1 = a slots=0: expected NAME slots=N."),
        ("a slots=1\n\n# b\na slots=1\n", "line 4: a stands there twice."),
        ("# nothing\n", "has no line of the form NAME slots=N."),
    ],
)
def test_a_malformed_hostfile_is_refused_line_by_line(tmp_path, text, said):
    hostfile = tmp_path / "hosts"
    hostfile.write_text(text)
    with pytest.raises(ConfigError) as caught:
        find(hostfile=str(hostfile))
    assert said in str(caught.value)


def test_a_hostfile_that_is_not_there_is_named(tmp_path):
    with pytest.raises(ConfigError, match=r"hostfile = .*can't be read"):
        find(hostfile=str(tmp_path / "none"))
