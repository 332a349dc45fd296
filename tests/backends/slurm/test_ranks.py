import os
import subprocess

import pytest

from account_tax.backends.slurm import ranks as allocation
from account_tax.backends.slurm.ranks import RANK_SETTINGS, Allocation, why_ended
from account_tax.errors import Failed, Preempted

# As `scontrol show job -o` of Slurm 22.05 prints them.
RUNNING = "JobState=RUNNING PreemptTime=None RunTime=00:00:09 TimeLimit=04:00:00 Signal=15@60"
PREEMPTED = RUNNING.replace("PreemptTime=None", "PreemptTime=2026-11-24T22:00:00")
LIMIT = RUNNING.replace("RunTime=00:00:09", "RunTime=03:59:02")


def test_why_slurm_told_a_job_to_end():
    assert why_ended(RUNNING) is None
    assert why_ended(PREEMPTED) == "preempted"
    assert why_ended(LIMIT) == "limit"
    assert why_ended(LIMIT.replace("04:00:00", "UNLIMITED")) is None
    assert why_ended("") is None


def job(monkeypatch, shown, restarts=0, max_requeues=3):
    def show_job(job_id):
        return subprocess.CompletedProcess(["scontrol", job_id], 0, shown, "")

    monkeypatch.setattr(allocation, "show_job", show_job)
    return Allocation("auto", "7", 4, 2, "n1", restarts, max_requeues)


def test_a_preempted_job_goes_on_until_it_may_not(monkeypatch, tmp_path):
    with pytest.raises(Preempted, match=r"was preempted and is queued again \(1 of 3\)") as caught:
        job(monkeypatch, PREEMPTED).raise_if_preempted(143, tmp_path / "none")
    assert (caught.value.status, caught.value.state) == (75, "SCHEDULED")
    with pytest.raises(Preempted, match="has been queued again 3 of 3 times") as caught:
        job(monkeypatch, PREEMPTED, restarts=3).raise_if_preempted(143, tmp_path / "none")
    assert (caught.value.status, caught.value.state) == (143, "KILLED")


def test_a_time_limit_goes_on_only_with_what_was_saved(monkeypatch, tmp_path):
    saved = tmp_path / "interrupted.json"
    with pytest.raises(Failed, match="reached its time limit"):
        job(monkeypatch, LIMIT).raise_if_preempted(143, saved)
    saved.touch()
    with pytest.raises(Preempted, match="reached its time limit and is queued again"):
        job(monkeypatch, LIMIT).raise_if_preempted(0, saved)


def test_a_fault_of_the_ranks_own_stays_one(monkeypatch, tmp_path):
    job(monkeypatch, PREEMPTED).raise_if_preempted(1, tmp_path / "none")
    job(monkeypatch, RUNNING).raise_if_preempted(143, tmp_path / "none")


def test_a_rank_knows_its_place_before_python_starts():
    given = {
        **os.environ,
        **{"SLURM_PROCID": "3", "SLURM_LOCALID": "1", "SLURM_NTASKS": "4", "SLURM_NODEID": "1"},
        **{"SLURM_STEP_TASKS_PER_NODE": "2(x2)", "SLURM_NNODES": "2"},
    }
    words = ["sh", "-c", RANK_SETTINGS, "rank", "10.0.0.1", "1234"]
    shown = 'echo "$RANK $LOCAL_RANK $WORLD_SIZE $LOCAL_SIZE $MASTER_ADDR:$MASTER_PORT"'
    done = subprocess.run([*words, "sh", "-c", shown], env=given, capture_output=True, text=True)
    assert done.stdout == "3 1 4 2 10.0.0.1:1234\n"
