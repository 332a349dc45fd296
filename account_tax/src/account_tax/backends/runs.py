"""`kedro runs`: what became of the runs; those whose Slurm job has ended are settled by it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Literal

import click
from mlflow import MlflowClient
from mlflow.entities import Run, RunStatus
from mlflow.exceptions import MlflowException

from account_tax.backends.slurm.runs import end_with_job, job_of
from account_tax.confidential import hide_secrets
from account_tax.errors import Refused
from account_tax.faults import in_a_line
from account_tax.parameters.kinds import Help
from account_tax.parameters.options import read_options
from account_tax.parameters.schema import Name
from account_tax.processes.identity import state_of
from account_tax.storage.names import TAG
from account_tax.tracking.ownership import OWNER_TAG, REASON_TAG, REFUSED_TAG, Kind
from account_tax.tracking.store import (
    condition,
    open_store,
    rewrite_places,
    short_waits,
    tracking_uri,
)

SHOWN = 20
LOOKED_AT = 200  # among which those to show are, unless nearly all were refused
LONGEST_REASON = 100
COLUMNS = ("run", "status", "name", "job", "since", "macro-F1", "version", "reason")
Status = Literal["RUNNING", "SCHEDULED", "FINISHED", "FAILED", "KILLED"]


@dataclass(frozen=True)
class Options:
    """What is asked."""

    all: Annotated[bool, Help("Show also runs whose command was refused.")] = False
    kind: Annotated[Kind | None, Help("Only those of a kind.")] = None
    recipe: Annotated[Name | None, Help("Only those of a recipe.")] = None
    base: Annotated[Name | None, Help("Only those on a base.")] = None
    version: Annotated[Name | None, Help("Only those of a version, as in account-tax/3.")] = None
    status: Annotated[Status | None, Help("Only those that stand so.")] = None
    moved_from: Annotated[
        Name | None, Help("The project's former folder: rewrites the paths in its own store.")
    ] = None


def show_runs(project: Path, words: Sequence[str]) -> int:
    """Print the newest runs of the store, newest first; return the exit status."""
    uri = ""
    try:
        options, _ = read_options(Options, words)
        if options.moved_from:
            count = rewrite_places(project.resolve() / "mlflow.db", options.moved_from)
            click.echo(f"{count} recorded paths below {options.moved_from} were rewritten")
        with short_waits():
            uri = tracking_uri(project)
            client = open_store(uri)
            experiments = [each.experiment_id for each in client.search_experiments()]
            found = client.search_runs(experiments, _filter(options), max_results=LOOKED_AT)
            runs = [run for run in found if options.all or REFUSED_TAG not in run.data.tags]
            rows = [_row(client, run) for run in runs[:SHOWN]]
    except Refused as err:
        click.echo(err, err=True)
        return 2
    except MlflowException as err:
        click.echo(f"MLFLOW_TRACKING_URI = {hide_secrets(uri)}: {err.message}", err=True)
        return 2
    click.echo(_table([COLUMNS, *rows]) if rows else "no runs")
    if left_out := len(found) - len(runs):
        click.echo(f"{left_out} refused, left out here: kedro runs --all shows them")
    return 0


def _filter(options: Options) -> str:
    """Return what is asked for as MLflow's filter."""
    tags = ("kind", "recipe", "base", "version")
    given = {f"tags.`{TAG}{name}`": getattr(options, name) for name in tags}
    given |= {"attributes.status": options.status}
    return " and ".join(condition(key, text) for key, text in given.items() if text)


def _row(client: MlflowClient, run: Run) -> tuple[str, ...]:
    """Return a run's line; settle it first, if its job has ended."""
    status, reason = run.info.status, run.data.tags.get(REASON_TAG, "")
    job = job_of(run)
    if job and not RunStatus.is_terminated(RunStatus.from_string(status)):
        state = job.state()
        if state is None:
            reason = "Slurm does not answer here"
        else:
            status = end_with_job(client, run.info.run_id, job, state)
            tags = client.get_run(run.info.run_id).data.tags
            reason = state.never_starts or state.reason or tags.get(REASON_TAG, "")
    elif status == "RUNNING" and state_of(run.data.tags.get(OWNER_TAG, "")) == "gone":
        reason = "its process is gone; the next command but this one closes it as FAILED"
    since = datetime.fromtimestamp((run.info.end_time or run.info.start_time) / 1000)
    f1, version = run.data.metrics.get("test/f1"), run.data.tags.get(f"{TAG}version", "")
    return (
        *(run.info.run_id, status, run.info.run_name or "", job.job_id if job else ""),
        *(f"{since:%Y-%m-%d %H:%M:%S}", "" if f1 is None else f"{f1:.4f}", version),
        in_a_line(reason)[:LONGEST_REASON],
    )


def _table(rows: Sequence[Sequence[str]]) -> str:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (zip(row, widths, strict=True) for row in rows)
    return "\n".join("  ".join(f"{t:<{w}}" for t, w in line).rstrip() for line in lines)
