"""Ranks on the hosts of a hostfile, by a real sshd on the loopback interface."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest

from account_tax.processes.ranks import free_port

from .conftest import Project, kedro_words
from .launched import LONG, Launched, override

SSHD = shutil.which("sshd") or "/usr/sbin/sshd"
MISSING = not Path(SSHD).exists() or os.geteuid() != 0
pytestmark = pytest.mark.skipif(MISSING, reason="no sshd (apt-get install openssh-server) or root")

SECRET = "-".join(["s3cr3t", "0123456789"])  # the copy of the project has this file too


@pytest.fixture(scope="module")
def ssh_args(tmp_path_factory) -> Iterator[str]:
    """Start an sshd with keys of its own; return the options of ssh that reach hosts a and b."""
    folder, port = tmp_path_factory.mktemp("ssh"), free_port()
    for key in ("host", "user"):
        words = ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(folder / key)]
        subprocess.run(words, check=True)
    (folder / "sshd_config").write_text(
        f"Port {port}\nListenAddress 127.0.0.1\nHostKey {folder}/host\nPidFile {folder}/pid\n"
        f"AuthorizedKeysFile {folder}/user.pub\nStrictModes no\nUsePAM no\n"
        "PasswordAuthentication no\nPermitRootLogin yes\nMaxStartups 50\n"
    )
    (folder / "config").write_text(
        f"Host a b\n  HostName 127.0.0.1\n  Port {port}\n"
        f"Host away\n  HostName 127.0.0.1\n  Port {free_port()}\n"
        f"Host *\n  IdentityFile {folder}/user\n  IdentitiesOnly yes\n"
        f"  UserKnownHostsFile {folder}/known\n  StrictHostKeyChecking accept-new\n"
    )
    Path("/run/sshd").mkdir(exist_ok=True)  # where it drops its rights
    daemon = subprocess.Popen([SSHD, "-D", "-e", "-f", str(folder / "sshd_config")])
    try:
        yield f"-F {folder / 'config'}"
    finally:
        daemon.terminate()
        daemon.wait(10)


@pytest.fixture(scope="module")
def project(new_project) -> Project:
    return new_project()


@pytest.fixture
def train(ssh_args, project, tiny, tmp_path) -> Iterator[Callable[..., Launched]]:
    """Return what starts `kedro train` on hosts, with a secret in deepspeed's environment file."""
    secrets = tmp_path / "deepspeed_env"
    secrets.write_text(f"MY_TOKEN={SECRET}\n")
    launched: list[Launched] = []

    def start(hosts: str, *changes: str) -> Launched:
        hostfile = tmp_path / "hosts"
        hostfile.write_text(hosts)
        options = [option for option in tiny if not option.startswith("num_gpus")]
        # One copy for all: each test's run is its own, not the one that another interrupted.
        given = [f"hostfile={hostfile}", "resume=never", *changes]
        words = kedro_words(override(options, given))
        settings = [f"PDSH_SSH_ARGS_APPEND={ssh_args}", f"DS_ENV_FILE={secrets}"]
        command = ["env", *settings, "kedro", "train", *words]
        launched.append(Launched(project, tmp_path / "output", *command))
        return launched[-1]

    yield start
    for each in launched:
        each.kill()


@pytest.mark.integration
def test_an_unreachable_host_is_refused_before_anything_starts(train, project):
    run = train("a slots=1\naway slots=1\n")
    assert run.process.wait(200) == 2
    assert "away can't be reached by ssh (ssh: connect to host 127.0.0.1 port" in run.output
    assert "prepare:" not in run.output
    with pytest.raises(ValueError, match="not enough values"):
        run.run()  # it has left none
    assert not (project.folder / "data" / "04_feature").exists()


@pytest.mark.integration
def test_two_hosts_train_a_rank_each(train, project):
    run = train("a slots=1\nb slots=1\n")
    assert run.process.wait(600) == 0, run.output
    assert "train: 2 CPU ranks" in run.output
    assert run.run().info.status == "FINISHED"
    folder = project.folder / "data" / "06_models" / run.run().info.run_id
    logs = sorted(log.name[-9:] for log in (folder / "logs" / "ranks").iterdir())
    assert logs == ["rank0.log", "rank1.log"]
    files = [file for file in project.folder.rglob("*") if file.is_file()]
    assert [file for file in files if SECRET.encode() in file.read_bytes()] == []


@pytest.mark.slow
def test_a_secret_reaches_the_ranks_and_no_command_line(train):
    run = train("a slots=1\nb slots=1\n", *LONG, "register=false")
    run.wait_for(lambda: "tokens/s" in run.output, 400)
    assert [rank.environ()["MY_TOKEN"] for rank in run.ranks()] == [SECRET, SECRET]
    lines = [" ".join(p.info["cmdline"] or []) for p in psutil.process_iter(["cmdline"])]
    assert [line for line in lines if SECRET in line] == []
    run.process.send_signal(signal.SIGINT)
    assert run.end(seconds=20) == 130
    assert run.run().info.status == "KILLED"


@pytest.mark.slow
def test_a_killed_rank_on_a_host_ends_those_on_the_others(train):
    run = train("a slots=1\nb slots=1\n", *LONG, "register=false")
    run.wait_for(lambda: "tokens/s" in run.output, 400)
    run.ranks()[1].kill()
    assert run.end(seconds=60) == 1
    reason = run.run().data.tags["account_tax.reason"]
    assert "ended by SIGKILL" in reason
    assert "host b ended with exit status 247" in reason


@pytest.mark.slow
def test_a_launcher_that_is_killed_leaves_nothing_on_the_hosts(train):
    run = train("a slots=1\nb slots=1\n", *LONG, "register=false")
    run.wait_for(lambda: "tokens/s" in run.output, 400)
    (over_ssh,) = [
        process
        for process in run.others()
        if "account_tax.backends.ssh.over_ssh" in process.cmdline()[1:4]
        and len(process.cmdline()) == 4
    ]
    over_ssh.send_signal(signal.SIGKILL)
    run.wait_for_end_of(run.ranks, seconds=30)
    time.sleep(0.5)
    assert run.ranks() == []
