import os
import shutil
import socket
import subprocess
from collections import namedtuple

import pytest

from account_tax.launch.refusals import BASE_BYTES, BYTES_PER_PARAMETER, find_machine_faults

VALUES = {"artifacts_root": "models", "train": {"training": {"save_total_limit": 2}}}
CPU = {"gpus": 0, "trainable_parameters": 1000}
Usage = namedtuple("Usage", ["total", "used", "free"])


@pytest.fixture
def refuse(tmp_path):
    def find(values=VALUES, report=CPU, ranks=1, port="auto", **checkpoints):
        return find_machine_faults(values, report, ranks, port, tmp_path, **checkpoints)

    return find


@pytest.fixture
def free_bytes(monkeypatch):
    """Return what sets how much room the disk has."""

    def have(free):
        monkeypatch.setattr(shutil, "disk_usage", lambda folder: Usage(free, 0, free))

    return have


@pytest.fixture
def no_tools(monkeypatch, tmp_path):
    folder = tmp_path / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", str(folder))
    monkeypatch.delenv("CXX", raising=False)
    return folder


def add_tool(folder, name):
    (folder / name).write_text("#!/bin/sh\n")
    (folder / name).chmod(0o755)


def test_a_machine_that_has_everything_is_not_refused(refuse):
    assert refuse() == []


def test_more_ranks_than_gpus_are_refused(refuse):
    (fault,) = refuse(report=CPU | {"gpus": 1}, ranks=2)
    assert fault.startswith("num_gpus = 2: this machine shows 1 GPU. Lower it")


def test_cpu_ranks_may_be_any_number(refuse):
    assert refuse(ranks=8) == []


def with_offload(device="cpu", what="offload_optimizer", **block):
    return {"deepspeed": {"zero_optimization": {what: {"device": device}}, **block}}


@pytest.mark.parametrize(
    ("train", "gpus", "key"),
    [
        ({}, 0, None),
        ({}, 1, None),
        (with_offload(), 0, None),  # nothing to offload from
        (with_offload(), 1, "offload_optimizer"),
        (with_offload("none"), 1, None),
        (with_offload(zero_force_ds_cpu_optimizer=False), 1, None),  # torch's own optimizer
        (with_offload("nvme", zero_force_ds_cpu_optimizer=False), 1, "offload_optimizer"),
        (with_offload(what="offload_param"), 1, None),
        (with_offload("nvme", "offload_param"), 1, "offload_param"),
    ],
)
def test_a_compiler_is_needed_where_operators_are_built(refuse, no_tools, train, gpus, key):
    found = refuse(VALUES | {"train": VALUES["train"] | train}, CPU | {"gpus": gpus})
    if key is None:
        assert found == []
        return
    (fault,) = found
    assert fault.startswith("C++ compiler = c++ (default): not found on PATH, and DeepSpeed")
    assert key in fault
    assert "apt-get install g++" in fault


BUILT = {
    "values": VALUES | {"train": VALUES["train"] | with_offload()},
    "report": CPU | {"gpus": 1},
}


def test_the_compiler_is_the_one_torch_calls(refuse, no_tools, monkeypatch):
    add_tool(no_tools, "g++")
    assert refuse(**BUILT), "torch calls c++ unless CXX names another"
    monkeypatch.setenv("CXX", "g++ -pipe")
    assert refuse(**BUILT) == []
    monkeypatch.setenv("CXX", "icpx")
    (fault,) = refuse(**BUILT)
    assert fault.startswith("C++ compiler = icpx (CXX): not found")


def test_pythons_headers_are_needed_where_operators_are_built(refuse, monkeypatch, tmp_path):
    monkeypatch.setattr("sysconfig.get_path", lambda name: str(tmp_path))
    assert refuse() == []
    (fault,) = refuse(**BUILT)
    assert "no Python.h" in fault
    assert "apt-get install python3-dev" in fault


@pytest.mark.parametrize("address", ["127.0.0.1", "0.0.0.0"])
def test_a_port_in_use_is_refused_until_it_is_free(refuse, address):
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((address, 0))
        listener.listen()
        port = listener.getsockname()[1]
        (fault,) = refuse(port=port)
        assert fault.startswith(f"master_port = {port}: another process listens on it.")
        assert "master_port=auto" in fault
    assert refuse(port=port) == []


def test_a_disk_is_full_when_checkpoints_and_best_model_do_not_fit(refuse, free_bytes):
    needed = BASE_BYTES + (2 + 2) * 1000 * BYTES_PER_PARAMETER
    free_bytes(needed)
    assert refuse() == []
    free_bytes(needed - 1)
    (fault,) = refuse()
    assert fault.startswith("artifacts_root = models: 256 MiB are free, and 2 checkpoints")
    assert "save_total_limit" in fault


def test_the_mean_of_the_weights_takes_four_bytes_more(refuse, free_bytes):
    averaged = {**VALUES, "train": VALUES["train"] | {"averaging": {"enable": True}}}
    needed = BASE_BYTES + (2 + 2) * 1000 * (BYTES_PER_PARAMETER + 4)
    free_bytes(needed)
    assert refuse(values=averaged) == []
    free_bytes(needed - 1)
    assert refuse(values=averaged)


def test_checkpoints_that_are_there_already_need_no_more_room(refuse, free_bytes):
    size = 1000 * BYTES_PER_PARAMETER
    free_bytes(BASE_BYTES + 2 * size)
    assert refuse()
    assert refuse(saved_bytes=2 * size) == []
    free_bytes(BASE_BYTES + 2 * size - 1)
    assert refuse(saved_bytes=99 * size), "a new one is saved before an old one goes"


def test_without_a_limit_room_for_every_checkpoint_is_needed(refuse, free_bytes):
    values = {"artifacts_root": "models", "train": {"training": {"save_total_limit": None}}}
    needed = BASE_BYTES + (1 + 20) * 1000 * BYTES_PER_PARAMETER
    free_bytes(needed)
    assert refuse(values=values, written=20) == []
    free_bytes(needed - 1)
    (fault,) = refuse(values=values, written=20)
    assert "all 20 checkpoints, the best model and the logs need" in fault
    assert "set a lower train.training.save_total_limit" in fault
    assert refuse(values=values, written=20, saved_bytes=1) == [], "one byte of them is there"


def test_checkpoints_on_a_disk_of_their_own_are_counted_there(refuse, tmp_path):
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    if not shutil.which("mount") or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no permission to mount a small disk")
    training = {"save_total_limit": 2, "output_dir": str(disk / "checkpoints")}
    values = {"artifacts_root": "models", "train": {"training": training}}
    try:
        assert refuse(values=values, report=CPU | {"trainable_parameters": 20_000}) == []
        (fault,) = refuse(values=values, report=CPU | {"trainable_parameters": 30_000})
        assert fault.startswith(f"train.training.output_dir = {disk}/checkpoints: 1 MiB are free")
        assert "2 checkpoints and a new one need about 1 MiB" in fault
    finally:
        subprocess.run(["umount", str(disk)], check=True)


def test_the_size_counts_no_weights_that_do_not_train(refuse, free_bytes):
    free_bytes(BASE_BYTES + 4 * 1000 * BYTES_PER_PARAMETER)
    assert refuse(report=CPU | {"parameters": 10**12}) == []


def test_a_file_in_the_way_of_the_results_is_refused(refuse, tmp_path):
    (tmp_path / "models").write_text("")
    (fault,) = refuse()
    assert "is no folder that can be written to" in fault


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_permission_is_refused(refuse, tmp_path):
    tmp_path.chmod(0o500)
    (fault,) = refuse()
    assert "is no folder that can be written to" in fault


def test_sections_with_faults_of_their_own_are_passed_over(refuse):
    assert refuse(values={"train": {}}) == []
    assert refuse(values={"artifacts_root": "models", "train": {}}) == []
