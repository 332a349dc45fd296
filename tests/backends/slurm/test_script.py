import os
import subprocess
import time

import pytest

from account_tax.backends.slurm.config import read_config
from account_tax.backends.slurm.script import write_script


@pytest.fixture
def run(tmp_path):
    """Run a job's script as Slurm would, with a scontrol that notes what it is asked."""
    bin_folder, folder = tmp_path / "bin", tmp_path / "job"
    bin_folder.mkdir()
    folder.mkdir()
    scontrol = bin_folder / "scontrol"
    scontrol.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\n')
    scontrol.chmod(0o755)

    def start(command, setup=(), where=tmp_path):
        config = read_config({"time": "1", "setup": list(setup)})
        script = folder / "job.sh"
        script.write_text(write_script(folder, config, where, None, command))
        path = f"{bin_folder}:{os.environ['PATH']}"
        return subprocess.Popen(
            ["bash", str(script)],
            env={"PATH": path, "SLURM_JOB_ID": "7", "SLURMD_NODENAME": "n1"},
            stderr=subprocess.PIPE,
            text=True,
        )

    return start


def own_status(tmp_path):
    return (tmp_path / "job" / "exit_status").read_text().strip()


@pytest.mark.parametrize("status", [0, 1, 2, 137])
def test_the_commands_status_is_the_jobs(run, tmp_path, status):
    assert run(f"exit {status}").wait(10) == status
    assert own_status(tmp_path) == str(status)
    assert not (tmp_path / "asked").exists()


def test_a_command_that_goes_on_later_queues_the_job_again(run, tmp_path):
    assert run("exit 75").wait(10) == 0
    assert (tmp_path / "asked").read_text() == "requeue 7\n"
    assert not (tmp_path / "job" / "exit_status").exists()


def test_a_cancelled_job_waits_for_its_command_and_is_not_queued_again(run, tmp_path):
    job = run("sleep 1; exit 75")
    time.sleep(0.3)
    job.terminate()
    assert job.wait(10) == 143
    assert own_status(tmp_path) == "143"
    assert not (tmp_path / "asked").exists()


def test_a_setup_line_that_fails_ends_the_job_and_is_named(run, tmp_path):
    job = run("touch ran", setup=["export A='b c'", "false || false"])
    assert "setup line 2 failed: false || false" in job.communicate(timeout=10)[1]
    assert job.returncode == 1
    assert not (tmp_path / "ran").exists()


def test_a_setup_line_reaches_the_command(run, tmp_path):
    assert run('[ "$A" = "b c" ]', setup=["export A='b c'"]).wait(10) == 0


def test_a_node_that_does_not_see_the_project_is_named(run, tmp_path):
    job = run("true", where=tmp_path / "gone")
    assert "node n1 does not see the project" in job.communicate(timeout=10)[1]
    assert job.returncode == 1
