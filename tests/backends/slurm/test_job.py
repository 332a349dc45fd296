import pytest

from account_tax.backends.slurm.job import JobState, SlurmError, parse_job, require_slurm

# As Slurm 22.05 prints them.
SHOWN = (
    "JobId=7 JobName=account-tax-1 UserId=root(0) Requeue=1 Restarts={restarts} BatchFlag=1 "
    "JobState={state} Reason={reason} Dependency=(null) ExitCode={code} RunTime=00:00:09"
)


def shown(state, reason="None", code="0:0", restarts=0):
    return SHOWN.format(state=state, reason=reason, code=code, restarts=restarts)


@pytest.mark.parametrize(
    ("line", "status", "mlflow_status", "ended"),
    [
        (shown("PENDING", "Resources"), 0, "SCHEDULED", False),
        (shown("RUNNING"), 0, "RUNNING", False),
        (shown("COMPLETING"), 0, "RUNNING", False),
        (shown("COMPLETED"), 0, "FINISHED", True),
        (shown("FAILED", "NonZeroExitCode", "2:0"), 2, "FAILED", True),
        (shown("FAILED", "RaisedSignal:9", "0:9"), 137, "FAILED", True),
        (shown("CANCELLED", code="0:15"), 143, "KILLED", True),
        (shown("TIMEOUT", "TimeLimit", "0:1"), 129, "FAILED", True),
        (shown("NODE_FAIL"), 0, "FAILED", True),
    ],
)
def test_a_state_has_a_status_and_an_mlflow_status(line, status, mlflow_status, ended):
    state = parse_job(line)
    assert (state.status, state.mlflow_status, state.ended) == (status, mlflow_status, ended)


def test_only_reasons_that_waiting_does_not_mend_end_the_wait():
    assert parse_job(shown("PENDING", "Priority")).never_starts is None
    assert "no such account" in (parse_job(shown("PENDING", "InvalidAccount")).never_starts or "")
    assert JobState("RUNNING", "InvalidAccount").never_starts is None


def test_restarts_are_counted():
    assert parse_job(shown("PENDING", "BeginTime", restarts=2)).restarts == 2


def test_no_slurm_client_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(SlurmError, match="no Slurm client: sbatch, scontrol, scancel not found"):
        require_slurm()
