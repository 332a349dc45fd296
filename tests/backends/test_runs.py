import os
import subprocess
import sys

import pytest

from account_tax.backends.runs import show_runs
from account_tax.provenance.code import PACKAGE
from account_tax.tracking.ownership import OWNER_TAG, REFUSED_TAG


def test_kedro_runs_settles_a_run_whose_job_slurm_has_forgotten(
    client, new_run, tmp_path, monkeypatch, capsys
):
    scontrol = tmp_path / "scontrol"
    scontrol.write_text(
        '#!/bin/sh\necho "slurm_load_jobs error: Invalid job id specified" >&2\nexit 1'
    )
    scontrol.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=":")
    run_id = new_run("8", status=1)
    client.update_run(run_id, status="RUNNING")
    assert show_runs(tmp_path, []) == 0
    header, first, *_ = capsys.readouterr().out.splitlines()
    assert header.split() == [
        "run",
        "status",
        "name",
        "job",
        "since",
        "macro-F1",
        "version",
        "reason",
    ]
    assert first.startswith(f"{run_id}  FAILED")
    assert first.endswith("Slurm job 8 ended: exit status 1")


def test_kedro_runs_says_that_slurm_is_not_here(client, new_run, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("PATH", str(tmp_path))
    run_id = new_run("9")
    show_runs(tmp_path, [])
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith(run_id))
    assert line.endswith("Slurm does not answer here")
    assert client.get_run(run_id).info.status == "RUNNING"


def test_a_run_whose_process_is_gone_is_said_to_be(client, tmp_path, capsys):
    begun = "from account_tax.processes.identity import identify; print(identify())"
    here = os.environ | {"PYTHONPATH": str(PACKAGE.parent)}
    owner = subprocess.check_output([sys.executable, "-c", begun], text=True, env=here)
    run_id = client.create_run("0", tags={OWNER_TAG: owner.strip()}).info.run_id
    show_runs(tmp_path, [])
    line = next(x for x in capsys.readouterr().out.splitlines() if x.startswith(run_id))
    assert "RUNNING" in line
    assert line.endswith("its process is gone; the next command but this one closes it as FAILED")


def test_a_store_that_does_not_answer_is_named(monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    assert show_runs(tmp_path, []) == 2
    assert "MLFLOW_TRACKING_URI = http://127.0.0.1:9: " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "wanted", "other"),
    [("kind", "train", "trial"), *((name, "it", "its") for name in ("recipe", "base", "version"))],
)
def test_runs_are_found_by_what_they_are(client, tmp_path, capsys, name, wanted, other):
    run_id = client.create_run("0", tags={f"account_tax.{name}": wanted}, run_name="this one")
    other_id = client.create_run("0", tags={f"account_tax.{name}": other}).info.run_id
    client.log_metric(run_id.info.run_id, "test/f1", 0.5)
    assert show_runs(tmp_path, [f"--{name}", wanted]) == 0
    said = capsys.readouterr().out
    assert f"{run_id.info.run_id}  RUNNING  this one" in said
    assert " 0.5000" in said
    assert other_id not in said


def test_a_kind_or_status_that_there_is_not_is_refused(tmp_path, capsys):
    assert show_runs(tmp_path, ["--kind", "tain", "--status", "finished"]) == 2
    said = capsys.readouterr().err
    assert "kind = tain (--kind): expected one of train, tune," in said
    assert "status = finished (--status): expected one of RUNNING," in said


def test_a_refused_run_is_left_out_and_counted(client, tmp_path, capsys):
    run_id = client.create_run("0", tags={REFUSED_TAG: "true"}).info.run_id
    assert show_runs(tmp_path, []) == 0
    said = capsys.readouterr().out
    assert run_id not in said
    assert "1 refused, left out here: kedro runs --all shows them" in said
    assert show_runs(tmp_path, ["--all"]) == 0
    said = capsys.readouterr().out
    assert run_id in said
    assert "left out" not in said
