import base64
import json
import os
import sys

import pytest

from account_tax.backends.place import EachNode, OneMachine, OneRank, find_place
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


def test_a_study_in_a_job_has_a_worker_on_each_node_or_one_on_all(tmp_path):
    place = find_place(LaunchOptions(), JOB, workers=2)
    assert isinstance(place, EachNode)
    assert (place.world_size(1), place.world_size(3)) == (1, 3)  # of one node
    assert place.worker_environment(2) == {}  # a node each
    ((command, log),) = place.start_workers(["kedro", "tune"], 2, tmp_path / "study")
    for option in ("--ntasks=2", "--nodes=2", "--ntasks-per-node=1", "--kill-on-bad-exit=0"):
        assert option in command
    assert f"--output={tmp_path}/study/worker-%t.log" in command
    assert (command[-2:], log.name) == (["kedro", "tune"], "workers.log")
    (fault,) = place.workers_faults(3, 0)
    assert "tuning.workers = 3: Slurm job 7 has 2 nodes, a worker each." in fault
    assert place.workers_faults(2, 4) == []


def test_workers_of_one_machine_share_its_cores_and_no_gpu(tmp_path):
    place = find()
    assert place.start_workers(["kedro"], 2, tmp_path) == [
        (["kedro"], tmp_path / "worker-0.log"),
        (["kedro"], tmp_path / "worker-1.log"),
    ]
    cores = len(os.sched_getaffinity(0))
    assert place.worker_environment(1) == {}  # its ranks share them
    assert place.worker_environment(cores * 2) == {"OMP_NUM_THREADS": "1"}
    assert place.workers_faults(cores, 0) == place.workers_faults(1, 1) == []
    assert "expected 1 where there is a GPU" in place.workers_faults(2, 1)[0]
    assert f"at most {cores}, a core each" in place.workers_faults(cores + 1, 0)[0]


def test_hosts_of_a_file_are_for_one_worker(tmp_path):
    hostfile = tmp_path / "hosts"
    hostfile.write_text("a slots=2\n")
    place = find(hostfile=str(hostfile))
    assert place.workers_faults(1, 0) == []
    assert f"expected 1 with hostfile = {hostfile}" in place.workers_faults(2, 0)[0]


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


def test_one_machine_takes_its_devices_or_what_was_asked_for():
    assert find().world_size(1) == 1
    assert find().world_size(3) == 3
    assert find(num_gpus=2).world_size(1) == 2
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
