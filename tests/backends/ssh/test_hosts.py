import os
from pathlib import Path

import pytest

from account_tax.backends.ssh.hosts import Hosts, read_hosts
from account_tax.parameters.config import ConfigError


def test_hosts_keep_the_files_order_and_their_slots(tmp_path):
    file = tmp_path / "hosts"
    file.write_text("# all\nworker-2 slots=4\nroot@worker-1  slots=2  # the old one\n")
    hosts = read_hosts(file, "auto", {"PDSH_SSH_ARGS_APPEND": "-p 2222"})
    assert list(hosts.slots.items()) == [("worker-2", 4), ("root@worker-1", 2)]
    assert hosts.ssh[-2:] == ["-p", "2222"]
    assert hosts.world_size(0) == 6
    assert hosts.ranks_here(6) == 4


def test_an_unreachable_host_is_named_before_anything_else_is_asked(tmp_path):
    # 192.0.2.0/24 is nobody's (RFC 5737); the stand-in for ssh answers for all but one.
    ssh = tmp_path / "ssh"
    ssh.write_text('#!/bin/sh\n[ "$2" = good ] || { echo "no route to $2" >&2; exit 255; }\n')
    ssh.chmod(0o755)
    hosts = Hosts("auto", Path("hosts"), {"good": 1, "192.0.2.1": 1}, [str(ssh)])
    (fault,) = hosts.faults([tmp_path / "folder"], {})
    assert "hostfile = hosts: 192.0.2.1 can't be reached by ssh (no route to 192.0.2.1)." in fault
    assert not (tmp_path / "folder").exists()


def test_other_ranks_than_slots_are_refused(tmp_path):
    hosts = Hosts(3, Path("hosts"), {"a": 1}, ["false"])
    assert "num_gpus = 3: hosts has 1 slots, a rank each." in hosts.faults([], {})[0]


@pytest.fixture
def ssh(tmp_path):
    """A command in ssh's place that runs what it is given here, on a host of two GPUs."""
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\nfor n in 0 1; do echo GPU $n: NVIDIA; done\n")
    smi.chmod(0o755)
    return ["env", f"PATH={tmp_path}:{os.environ['PATH']}", "sh", "-c", 'shift; eval "$2"', "ssh"]


@pytest.mark.parametrize(("slots", "said"), [(2, []), (3, ["b slots=3, but it has 2 GPUs"])])
def test_more_slots_than_gpus_are_refused_before_a_rank_starts(ssh, tmp_path, slots, said):
    hosts = Hosts("auto", tmp_path / "hosts", {"a": 1, "b": slots}, ssh)
    found = [fault for fault in hosts.faults([tmp_path], {}) if "slots" in fault]
    assert len(found) == len(said)
    assert all(part in fault for part, fault in zip(said, found, strict=True))


@pytest.mark.parametrize("host", ["-oProxyCommand=touch", "-F", ".hidden"])
def test_a_hosts_name_is_never_an_option_of_ssh(tmp_path, host):
    (tmp_path / "hosts").write_text(f"{host} slots=1\n")
    with pytest.raises(ConfigError, match="expected NAME slots=N"):
        read_hosts(tmp_path / "hosts", "auto", {})
