"""`kedro runs`: what became of the runs; those whose Slurm job has ended are settled by it."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import click
from mlflow import MlflowClient
from mlflow.entities import Run, RunStatus
from mlflow.exceptions import MlflowException

from account_tax.backends.slurm.runs import job_of, settle
from account_tax.tracking.ownership import REASON_TAG
from account_tax.tracking.store import short_waits, tracking_uri

SHOWN = 20
LONGEST_REASON = 100
COLUMNS = ("run", "status", "job", "since", "reason")


def show_runs(project: Path) -> int:
    """Print the newest runs of the store, newest first; return the exit status."""
    uri = tracking_uri(project)
    try:
        with short_waits():
            client = MlflowClient(uri)
            experiments = [each.experiment_id for each in client.search_experiments()]
            runs = client.search_runs(experiments, max_results=SHOWN)
            rows = [_row(client, run) for run in runs]
    except MlflowException as err:
        click.echo(f"MLFLOW_TRACKING_URI = {uri}: {err.message}", err=True)
        return 2
    click.echo(_table([COLUMNS, *rows]) if rows else "no runs")
    return 0


def _row(client: MlflowClient, run: Run) -> tuple[str, ...]:
    """Return a run's line; settle it first, if its job has ended."""
    status, reason = run.info.status, run.data.tags.get(REASON_TAG, "")
    job = job_of(run)
    if job and not RunStatus.is_terminated(RunStatus.from_string(status)):
        state = job.state()
        if state is None:
            reason = "Slurm does not answer here"
        else:
            status = settle(client, run.info.run_id, job, state)
            tags = client.get_run(run.info.run_id).data.tags
            reason = state.never_starts or state.reason or tags.get(REASON_TAG, "")
    since = datetime.fromtimestamp((run.info.end_time or run.info.start_time) / 1000)
    first = next(iter(reason.splitlines()), "")
    return (
        *(run.info.run_id, status, job.job_id if job else ""),
        *(f"{since:%Y-%m-%d %H:%M:%S}", first[:LONGEST_REASON]),
    )


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (zip(row, widths, strict=True) for row in rows)
    return "\n".join("  ".join(f"{t:<{w}}" for t, w in line).rstrip() for line in lines)
